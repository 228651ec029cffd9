// What the browser tests stand on: the real binary on a free port with a directory of its own, the
// system's Chromium, and a watch over everything that must never happen on a page.
//
// Nothing here waits for time to pass: a line of the server, an answer, or an element.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

// The packages are the page's own, one folder over.
const { chromium } = createRequire(new URL('../../web/package.json', import.meta.url))('playwright-core');

// Not ONRUSH_…: the server reads those as its settings and refuses unknown ones.
const BINARY = process.env.TESTED_BINARY ?? fileURLToPath(new URL('../../target/debug/onrush', import.meta.url));
const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const CHROMIUM_ARGS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/**
 * Starts `onrush serve`, with further settings from `env`; `setupLink` is the one-time link that it
 * wrote down, `workersUrl` where workers of the Faktory protocol come in, if they may.
 */
export async function startServer(env = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'onrush-browser-'));
  const child = spawn(BINARY, ['serve', '--port', '0', '--data-dir', join(folder, 'data')], {
    stdio: ['ignore', 'ignore', 'pipe'],
    // Hashing at full cost would make dozens of accounts slow; nothing here is about its strength.
    // The ledger is checked at once, because the page shows what a check found.
    env: {
      ...process.env,
      ONRUSH_AUTH__ARGON2_MEMORY_KIB: '64',
      ONRUSH_AUTH__ARGON2_PASSES: '1',
      ONRUSH_ORDERS__LEDGER_CHECK_SECONDS: '1',
      ...env,
    },
  });
  const said = [];
  const lines = createInterface({ input: child.stderr });
  const setupLink = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`the server ended with ${code}:\n${said.join('\n')}`)));
    // Read on after the link, so that the log never blocks the server.
    lines.on('line', (line) => {
      said.push(line);
      assert.doesNotMatch(line, /#setup=/, 'a log keeps no secret');
      const file = /\S+\/setup-link/.exec(line);
      if (file) readFile(file[0], 'utf8').then((link) => resolve(link.trim()), reject);
    });
  });
  return {
    url: new URL(setupLink).origin,
    setupLink,
    workersUrl: /\S+(?= \(Faktory\))/.exec(said.join('\n'))?.[0],
    /** Ends it as an operator does, and leaves its folder. */
    async end() {
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      const [code] = await ended;
      assert.equal(code, 0, `the server ended in order:\n${said.join('\n')}`);
    },
    async stop() {
      // One that a signal ended has no code, and says nothing any more.
      if (child.exitCode === null && child.signalCode === null) await this.end();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export function startBrowser() {
  return chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_ARGS });
}

/**
 * A page that is watched: errors on the console, violations of its policy, requests to another
 * origin. `expectStatuses` are answers of the API that a test provokes; Chromium puts those on the
 * console, too.
 */
export async function openPage(browser, url, options = {}) {
  const context = await browser.newContext({ locale: 'en-US', ...options });
  const page = await context.newPage();
  const faults = [];
  const expected = new Set([401]);
  page.setDefaultTimeout(15_000);
  page.on('pageerror', (error) => faults.push(`exception: ${error.stack}`));
  page.on('console', (message) => {
    if (message.type() !== 'error' && message.type() !== 'warning') return;
    const status = /^Failed to load resource: the server responded with a status of (\d+)/.exec(message.text())?.[1];
    const isOfApi = message.location().url.startsWith(`${url}/api/v1/`);
    if (status && isOfApi && expected.has(Number(status))) return;
    faults.push(`console: ${message.text()} (${message.location().url})`);
  });
  page.on('request', (request) => {
    if (!request.url().startsWith(`${url}/`) && !/^(data|blob):/.test(request.url())) {
      faults.push(`a request left the server: ${request.url()}`);
    }
  });
  await page.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) => {
      console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  return {
    page,
    context,
    expectStatuses: (...statuses) => statuses.forEach((status) => expected.add(status)),
    assertClean: () => assert.deepEqual(faults, []),
  };
}

/** That a view is no wider than its screen, names its inputs and columns, and has one main heading. */
export async function assertFits(page, view) {
  const found = await page.evaluate(() => ({
    wider: document.documentElement.scrollWidth - innerWidth,
    headings: document.querySelectorAll('h1').length,
    nameless: [...document.querySelectorAll('input, select, textarea, button')]
      .filter((control) => !control.labels?.length && !control.ariaLabel && !control.textContent.trim())
      .map((control) => control.outerHTML),
    headless: [...document.querySelectorAll('th')].filter((head) => head.scope !== 'col').length,
  }));
  assert.deepEqual(found, { wider: 0, headings: 1, nameless: [], headless: 0 }, view);
}

/**
 * The API as any client uses it: one request, its status, its body, and the body's text. A body that is
 * a text goes out as it is, with digits that a number of JavaScript does not have.
 */
export async function call(url, method, path, { token, body, key } = {}) {
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...(key && { 'Idempotency-Key': key }) };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const response = await fetch(`${url}/api/v1/${path}`, { method, headers, body: typeof body === 'string' ? body : body && JSON.stringify(body) });
  const text = await response.text();
  return { status: response.status, body: text === '' ? undefined : JSON.parse(text), text };
}

let customers = 0;

/** Registers a buyer and gives their token and id. */
export async function newCustomer(url) {
  customers += 1;
  const { status, body } = await call(url, 'POST', 'auth/register', {
    body: { email: `buyer${customers}@example.com`, name: `Buyer ${customers}`, password: 'a long enough one' },
  });
  assert.equal(status, 201, JSON.stringify(body));
  return { token: body.token, id: body.user.id, name: body.user.name };
}
