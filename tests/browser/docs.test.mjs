// The API documentation in the browser: it renders and runs a request under its own policy.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { openPage, startBrowser, startServer } from './support.mjs';

let server;
let browser;

before(async () => {
  [server, browser] = await Promise.all([startServer(), startBrowser()]);
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

test('Swagger UI renders, and "Try it out" runs a request', async () => {
  const { page, assertClean } = await openPage(browser, server.url);
  await page.goto(`${server.url}/docs`);
  const operation = page.locator('.opblock', { has: page.locator('[data-path="/api/v1/products"]') }).first();
  await operation.locator('.opblock-summary').click();
  // "Try it out" is on from the start: the parameters can be filled in at once.
  await operation.getByPlaceholder('q', { exact: true }).fill('lamp');
  await operation.getByRole('button', { name: 'Execute' }).click();
  const answer = operation.locator('.live-responses-table .response');
  await answer.waitFor();
  assert.match(await answer.innerText(), /200[\s\S]*"items": \[\]/);
  assertClean();
});
