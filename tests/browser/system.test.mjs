// The admin page on how the machine does: the cache and the database's statements.
//
// As in page.test.mjs the tests run in order against a real server; a second one, with other
// settings, shows what the first can't.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { assertFits, call, openPage, startBrowser, startServer } from './support.mjs';

const ADMIN = { email: 'owner@example.com', name: 'Mei Owner', password: 'tea and lanterns 88' };
const STAFF = { email: 'jun@example.com', name: 'Jun Staff', password: 'a long enough one' };
/** Reads are counted by a sample: so many are surely enough to be told of as hot. */
const READS = 200;
const HOT_READS = 40;

let server;
let browser;
let tab;
let page;
let token;

const heading = (name) => page.getByRole('heading', { level: 1, name });
const button = (name) => page.getByRole('button', { name, exact: true });
const link = (name) => page.getByRole('link', { name, exact: true });
const field = (label) => page.getByLabel(label, { exact: true });
const says = (text) => page.getByText(text, { exact: true }).first().waitFor();
const go = (view) => page.goto(`${server.url}/admin/${view}`);
const dialog = () => page.getByRole('dialog');
const confirm = (name) => dialog().getByRole('button', { name, exact: true }).click();
const row = (text) => page.getByRole('row').filter({ hasText: text });
const card = (name) => page.locator('section.card').filter({ has: page.getByRole('heading', { name, exact: true }) });
const figure = (name) => page.locator('.figure').filter({ has: page.getByRole('heading', { name, exact: true }) });

async function ask(method, path, body) {
  const answer = await call(server.url, method, path, { token, body });
  assert.ok(answer.status < 300, `${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
  return answer.body;
}

/** Status of the entry as the API has it. */
const cached = async (key) => (await call(server.url, 'GET', `cache/entries/${encodeURIComponent(key)}`, { token })).status === 200;

async function openAs({ email, password }) {
  const opened = await openPage(browser, server.url);
  ({ page } = opened);
  await go('');
  await field('E-mail').fill(email);
  await field('Password').fill(password);
  await button('Log in').click();
  await heading('Overview').waitFor();
  return opened;
}

async function start(env) {
  server = await startServer(env);
  const made = await call(server.url, 'POST', 'auth/setup', { body: { token: server.setupLink.split('#setup=')[1], ...ADMIN } });
  token = made.body.token;
  for (const name of ['Lantern', 'Umbrella', 'Teapot']) {
    await ask('POST', 'products', { name, unit_amount: 12900, currency: 'CNY', stock: 100 });
  }
}

describe('how the machine does', { concurrency: false }, () => {
  before(async () => {
    browser = await startBrowser();
    await start({
      ONRUSH_CACHE__HOT_READS_MIN: String(HOT_READS),
      // No statement of these tests takes a minute.
      ONRUSH_DATABASE__SLOW_LIST_MS: '60000',
    });
    tab = await openAs(ADMIN);
    // What is looked for in the cache may not be there.
    tab.expectStatuses(404);
  });

  after(async () => {
    await browser?.close();
    await server?.stop();
  });

  test('the cache tells of its hits, its levels against their limits, and that nothing is hot yet', async () => {
    await link('Cache').click();
    await heading('Cache').waitFor();
    await page.getByText(`No key was read ${HOT_READS} times within 1 min`, { exact: false }).waitFor();
    for (let at = 0; at < READS; at += 1) await ask('GET', 'products/1');
    assert.equal((await call(server.url, 'GET', 'products/999')).status, 404);
    assert.equal((await call(server.url, 'GET', 'products/999')).status, 404);
    await figure('Hit ratio').getByText(/^9\d(\.\d)? %$/).waitFor();
    const { reads, levels } = await ask('GET', 'cache/stats');
    assert.ok(reads >= READS + 2);
    await figure('Reads').getByText(reads.toLocaleString('en'), { exact: true }).waitFor();
    await figure('Known absent').getByText('1', { exact: true }).waitFor();
    await figure('Loads').getByText('none failed').waitFor();
    await row('Memory').getByText('/ 32 MB').waitFor();
    await row('Memory').getByText(`/ ${levels[0].entries_max.toLocaleString('en')}`).waitFor();
    await row('Disk').getByText('off: cache.disk_bytes is 0').waitFor();
    // By itself, as the view is looked at.
    await row('product:1').getByText(/^≈ \d+$/).waitFor();
  });

  test('a hot key leads to its entry, which is dropped and loaded again', async () => {
    await link('product:1').click();
    await heading(/^product:1/).waitFor();
    await says('a load');
    await page.getByText(/^in \d+ (min|sec)\.$/).waitFor();
    await button('Drop').click();
    await dialog().getByText('The next read loads it anew').waitFor();
    await confirm('Drop');
    await says('The entry is dropped');
    await says('Nothing is cached of this key.');
    assert.equal(await cached('product:1'), false);
    await button('Load it now').click();
    await says('Ready: 1');
    await button('Drop').waitFor();
    assert.equal(await cached('product:1'), true);
    await page.reload();
    await heading(/^product:1/).waitFor();
    await page.getByRole('link', { name: 'Back' }).click();
    await heading('Cache').waitFor();
  });

  test('an entry is looked up by its key; what is not there is told beside the input', async () => {
    const form = card('Look at an entry');
    await form.getByRole('button', { name: 'Look up' }).click();
    await form.locator('.fault').filter({ hasText: 'Please fill this in' }).waitFor();
    await form.getByLabel('Key').fill('moon/base:1?x');
    await form.getByRole('button', { name: 'Look up' }).click();
    await form.locator('.fault').filter({ hasText: 'nothing is cached of that key' }).waitFor();
    await form.getByLabel('Key').fill('product:1');
    await page.keyboard.press('Enter');
    await heading(/^product:1/).waitFor();
    await go(`cache/${encodeURIComponent('moon/base:1?x')}`);
    await says('Nothing is cached of this key.');
    await button('Load it now').click();
    await page.getByText('no such key: 1', { exact: false }).waitFor();
  });

  test('many entries are invalidated by pattern and by tag, all of them only after a clear question', async () => {
    await go('cache');
    await ask('POST', 'cache/warm', { keys: ['product:1', 'product:2', 'product:3'] });
    const form = card('Invalidate');
    const invalidate = () => form.getByRole('button', { name: 'Invalidate' }).click();
    await form.getByLabel('Pattern', { exact: true }).fill('product:*');
    await invalidate();
    await dialog().getByRole('heading', { name: 'Invalidate product:*?' }).waitFor();
    await confirm('Cancel');
    assert.equal(await cached('product:2'), true);
    await invalidate();
    await confirm('Invalidate');
    await form.getByText('Entries of product:* that left memory: 3').waitFor();
    assert.equal(await cached('product:2'), false);

    await ask('POST', 'cache/warm', { keys: ['product:2'] });
    await form.getByLabel('Pattern', { exact: true }).fill('*:*');
    await invalidate();
    await dialog().getByRole('heading', { name: 'Invalidate everything?' }).waitFor();
    await page.keyboard.press('Escape');
    await dialog().waitFor({ state: 'detached' });
    assert.equal(await cached('product:2'), true);
    await invalidate();
    await confirm('Invalidate');
    await form.getByText(/Entries of \*:\* that left memory: [1-9]/).waitFor();
    assert.equal(await cached('product:2'), false);

    await form.getByLabel('By tag').check();
    await form.getByLabel('Tag', { exact: true }).fill('shop:1');
    await invalidate();
    await confirm('Invalidate');
    await form.getByText('Whatever bears the tag shop:1 is not served any more').waitFor();
  });

  test('a pattern that the server refuses is told beside its input', async () => {
    tab.expectStatuses(422);
    const form = card('Invalidate');
    await form.getByLabel('By pattern').check();
    await form.getByLabel('Pattern', { exact: true }).fill('x'.repeat(1025));
    await form.getByRole('button', { name: 'Invalidate' }).click();
    await confirm('Invalidate');
    await form.locator('.fault').filter({ hasText: 'must have 1 to 1024 characters, has 1025' }).waitFor();
    assert.equal(await form.getByLabel('Pattern', { exact: true }).getAttribute('aria-invalid'), 'true');
    assert.equal(await form.locator('.outcome').count(), 0);
  });

  test('keys are loaded ahead, named ones and hot ones', async () => {
    const form = card('Load ahead');
    await form.getByLabel(/^Keys/).fill('product:1\n product:2 \n\nproduct:998\nmoon:1');
    await form.getByRole('button', { name: 'Warm now' }).click();
    await form.getByText('Ready: 2 · not there, or failed: 1 · no such key: 1').waitFor();
    assert.equal(await cached('product:2'), true);
    await form.getByLabel(/^Keys/).fill('');
    for (let at = 0; at < READS; at += 1) await ask('GET', 'products/3');
    await form.getByRole('button', { name: 'Warm now' }).click();
    await form.getByText(/^Ready: [1-9]\d*$/).waitFor();
  });

  test('the overview leads to the cache', async () => {
    await link('Overview').click();
    await page.locator('.strip').getByRole('link', { name: /% Hit ratio$/ }).click();
    await heading('Cache').waitFor();
  });

  test('statements are sorted and searched; none slow says from when on and by which setting', async () => {
    await link('Queries').click();
    await heading('Queries').waitFor();
      await page.locator('dd').filter({ hasText: /^hidden\s*database\.hide_parameters$/ }).waitFor();
    await field('Sort by').selectOption('Calls');
    await page.waitForURL(/sort=calls/);
    const { items } = await ask('GET', 'system/slow-queries?sort=calls&limit=3');
    await page.getByRole('row').nth(1).getByRole('button', { name: items[0].name, exact: true }).waitFor();
    await page.getByLabel('Name or SQL').fill('PRODUCT.GET');
    await page.waitForURL(/q=/);
    await page.waitForFunction(() => document.querySelectorAll('tbody tr').length > 0 && [...document.querySelectorAll('tbody tr')].every((row) => /product/i.test(row.textContent)));
    await button('product.get').click();
    await dialog().getByText(/^SELECT/).waitFor();
    await dialog().getByText('A plan is kept of slow calls; this statement had none.').waitFor();
    await confirm('Close');
    await page.getByLabel('Name or SQL').fill('no such thing');
    await says('Nothing matches');
    await page.getByLabel('Name or SQL').fill('');
    await field('Statements').selectOption('With slow calls');
    const none = page.getByText('No call has taken 1 min or longer since the server started. database.slow_list_ms sets that limit', { exact: false });
    await none.waitFor();
    await button('Slow calls 0').click();
    await none.waitFor();
  });

  test('staff are not led there', async () => {
    await ask('POST', 'users', { ...STAFF, role: 'staff' });
    const admins = page;
    const other = await openAs(STAFF);
    assert.deepEqual([await link('Cache').count(), await link('Queries').count()], [0, 0]);
    for (const view of ['cache', 'cache/product%3A1', 'queries']) {
      await go(view);
      await heading('There is nothing at this address').waitFor();
    }
    other.assertClean();
    await other.context.close();
    page = admins;
  });

  test('nothing went wrong on any view', async () => {
    tab.assertClean();
    await tab.context.close();
    await server.stop();
    server = undefined;
  });

  test('slow calls tell their plan, who made them and, where the settings allow it, their values', async () => {
    await start({
      ONRUSH_DATABASE__SLOW_LIST_MS: '0',
      ONRUSH_DATABASE__HIDE_PARAMETERS: 'false',
      // So that its statements don't push others out of the list.
      ONRUSH_ORDERS__LEDGER_CHECK_SECONDS: '60',
    });
    tab = await openAs(ADMIN);
    tab.expectStatuses(404);
    await go('queries?list=slow');
    await page.locator('dd').filter({ hasText: /^shown\s*database\.hide_parameters$/ }).waitFor();
    await fetch(`${server.url}/api/v1/products?q=bamboo`, { headers: { 'X-Request-ID': 'who-asked' } });
    const asked = row('GET /api/v1/products who-asked').filter({ hasText: 'bamboo' }).first();
    await asked.getByRole('button').click();
    await dialog().getByLabel('Last plan (EXPLAIN QUERY PLAN)').getByText(/SEARCH|SCAN/).waitFor();
    await dialog().getByRole('row').filter({ hasText: 'GET /api/v1/products' }).waitFor();
    await page.keyboard.press('Escape');
    await dialog().waitFor({ state: 'detached' });
    await ask('POST', 'tasks', { name: 'update_product_popularity' });
    await row('task update_product_popularity').first().getByRole('link').click();
    await heading(/^update_product_popularity/).waitFor();
  });

  test('every view speaks Chinese and fits a phone', async () => {
    await ask('GET', 'products/1');
    await go('');
    await button('中文').click();
    await heading('概览').waitFor();
    await page.setViewportSize({ width: 375, height: 812 });
    const own = /\b(Cache|Queries|Hit|Reads|Loads|Level|Memory|Disk|On|Off|Entries|Size|Hot|Key|Look|Invalidate|Pattern|Warm|Drop|Age|Expires|Statement|Calls|Rows|Total|Mean|Slow|Asked|upkeep|hidden|shown|Loading|since|ago)\b/;
    for (const view of ['', 'cache', 'cache/product%3A1', 'cache/product%3A77', 'queries', 'queries?list=slow']) {
      await go(view);
      await page.locator('h1').waitFor();
      await page.waitForFunction(() => !document.querySelector('.loading'));
      const texts = await page.evaluate(() => {
        const found = [];
        const walker = document.createTreeWalker(document.querySelector('#main'), NodeFilter.SHOW_TEXT);
        // Statements, plans and values are the database's own.
        while (walker.nextNode()) if (!walker.currentNode.parentElement.closest('code, .code')) found.push(walker.currentNode.data);
        return found;
      });
      assert.deepEqual(texts.filter((text) => own.test(text)), [], view);
      await assertFits(page, view);
    }
    await go('queries');
    await page.locator('td button').first().click();
    await dialog().getByRole('heading', { name: /^最近的执行计划/ }).waitFor();
    await confirm('关闭');
    tab.expectStatuses(422);
    await go('cache');
    await page.getByLabel('模式', { exact: true }).fill('x'.repeat(1025));
    await button('使缓存失效').click();
    await confirm('使缓存失效');
    await page.locator('.fault').filter({ hasText: '长度须为 1 至 1024 个字符，当前为 1025 个' }).waitFor();
  });

  test('nothing went wrong there either', () => tab.assertClean());
});
