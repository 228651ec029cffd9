// Takes the README's picture: a small shop in the middle of a sale, on the real server.
//
//   cd web && npm run screenshot [-- --out FOLDER]
//
// writes web/screenshot.png; with --out it writes the other views, languages, schemes and widths into
// a folder, to be looked at.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fileURLToPath } from 'node:url';
import { call, newCustomer, openPage, startBrowser, startServer } from './support.mjs';

const PICTURE = fileURLToPath(new URL('../../web/screenshot.png', import.meta.url));
const ADMIN = { email: 'mei@example.com', name: 'Mei Lin', password: 'tea and lanterns 88' };
const BUYERS = 60;
const MINUTE_MS = 60_000;

const PRODUCTS = [
  ['Aurora 无线耳机', 'audio', 29900, 4000],
  ['Lantern 智能台灯', 'home', 18900, 900],
  ['Bamboo keyboard 75%', 'desk', 45900, 350],
  ['Pu’er tea 2019, 357 g', 'tea', 16800, 1200],
  ['Cloud 保温杯 500 ml', 'kitchen', 8900, 2600],
  ['Travel umbrella', 'outdoor', 12900, 0],
];
// product, units, price, minutes until the start, minutes until the end, minutes to pay, units per buyer
const SALES = [
  [5, 300, 5900, -30, 45, 0, 6],
  [1, 500, 19900, -5, 26, 10, 8],
  [3, 120, 32900, -5, 55, 15, 2],
  [2, 200, 12900, 35, 95, 0, 1],
  [4, 150, 9900, 180, 240, 0, 2],
];

const { values } = parseArgs({ options: { out: { type: 'string' } } });
const SETTINGS = {
  // The receiver of the webhook is on this machine.
  ONRUSH_OUTGOING__ALLOW_INTERNAL: '127.0.0.0/8',
  // Often enough to be seen, seldom enough not to fill the lists.
  ONRUSH_ORDERS__LEDGER_CHECK_SECONDS: '10',
  // A small shop has hot keys and slow calls by these alone.
  ONRUSH_CACHE__HOT_READS_MIN: '30',
  ONRUSH_DATABASE__SLOW_LIST_MS: '1',
};
const [server, browser] = await Promise.all([startServer(SETTINGS), startBrowser()]);
const { url } = server;

async function made(path, token, body) {
  const answer = await call(url, 'POST', path, { token, body });
  assert.ok(answer.status < 300, `${path}: ${JSON.stringify(answer.body)}`);
  return answer.body;
}

async function read(path) {
  return (await call(url, 'GET', path, { token })).body;
}

async function change(path, body) {
  const answer = await call(url, 'PATCH', path, { token, body });
  assert.ok(answer.status < 300, `${path}: ${JSON.stringify(answer.body)}`);
}

async function settledTask(id, isSettled) {
  let task = await read(`tasks/${id}`);
  while (!isSettled(task.state)) task = await read(`tasks/${id}`);
}

const token = (await made('auth/setup', undefined, { token: server.setupLink.split('#setup=')[1], ...ADMIN })).token;
for (const [index, [name, category, unitAmount, stock]] of PRODUCTS.entries()) {
  await made('products', token, { sku: `A-${100 + index}`, name, category, unit_amount: unitAmount, currency: 'CNY', stock });
}
const at = (minutes) => new Date(Date.now() + minutes * MINUTE_MS).toISOString();
for (const [productId, quantity, unitAmount, start, end, toPay, perUser] of SALES) {
  await made('flash-sales', token, {
    product_id: productId,
    quantity,
    unit_amount: unitAmount,
    starts_at: at(start),
    ends_at: at(end),
    payment_window_seconds: toPay * 60,
    per_user_limit: perUser,
    attempts_per_minute: 100,
  });
}
const buyers = [];
for (let at = 0; at < BUYERS; at += 10) {
  buyers.push(...(await Promise.all(Array.from({ length: 10 }, () => newCustomer(url)))));
}
// A sale that was sold out and stopped, for the list of those that are over.
const claim = (buyer, sale, quantity = 1) => call(url, 'POST', `flash-sales/${sale}/claims`, { token: buyer.token, body: { quantity } });
for (const buyer of buyers.slice(0, 40)) await claim(buyer, 1, 6);
await made('flash-sales/1/stop', token);

const { page, context, assertClean } = await openPage(browser, url, { viewport: { width: 1440, height: 900 }, timezoneId: 'Asia/Shanghai' });
await page.goto(`${url}/admin/`);
await page.getByLabel('E-mail').fill(ADMIN.email);
await page.getByLabel('Password', { exact: true }).fill(ADMIN.password);
await page.getByRole('button', { name: 'Log in' }).click();
await page.getByRole('heading', { name: 'Running now' }).waitFor();

// Waves of buyers, one for each reading of the metrics, so that the small curves show a rush.
let samples = 0;
page.on('requestfinished', (request) => {
  if (request.url().endsWith('/metrics')) samples += 1;
});
for (let wave = 1; wave <= 14; wave += 1) {
  const size = 6 + Math.round(18 * Math.sin((wave / 14) * Math.PI) ** 2);
  for (let place = 0; place < size; place += 1) {
    const buyer = buyers[(wave * 17 + place) % BUYERS];
    for (const looked of ['products/1', 'flash-sales/2', 'products?limit=20']) await call(url, 'GET', looked);
    const claimed = await claim(buyer, 2, 1 + (place % 2));
    const claims = [claimed, ...(place % 3 === 0 ? [await claim(buyer, 3)] : [])];
    // One in four has not paid yet.
    for (const { status, body } of claims) {
      if (status === 201 && (body.order_id % 4 || body.state !== 'pending_payment')) {
        await made(`orders/${body.order_id}/pay`, token);
      }
    }
  }
  const seen = samples;
  while (samples === seen) await page.waitForEvent('requestfinished');
}
const settled = async () => {
  await page.waitForFunction(() => document.querySelector('h1') && !document.querySelector('.loading'));
  // The bars move for a moment after each change.
  await page.waitForFunction(() => document.getAnimations().length === 0);
};
await settled();
await page.screenshot({ path: PICTURE });

/** Tasks in every state, a schedule, a webhook and a report; answers the views that show them. */
async function someWork() {
  const receiver = createServer((request, response) => {
    request.resume().on('end', () => response.writeHead(request.url === '/erp' ? 200 : 503).end('{"took": "it"}'));
  });
  receiver.unref().listen(0, '127.0.0.1');
  await once(receiver, 'listening');
  const there = `http://127.0.0.1:${receiver.address().port}`;
  const done = (id) => settledTask(id, (state) => ['completed', 'discarded', 'retryable'].includes(state));
  const hook = await made('webhooks', token, { url: `${there}/erp`, events: ['order.*', 'flash_sale.sold_out'], description: 'Our ERP' });
  await made('webhooks', token, { url: `${there}/down`, events: ['*'], description: '客服系统' });
  await done((await made(`webhooks/${hook.id}/ping`, token)).task_id);
  for (const place of [1, 2, 3]) await made('orders', buyers[place].token, { items: [{ product_id: place, quantity: place }] });
  await made('webhooks/1/replay', token, { event_id: (await read('webhooks/1/deliveries')).items[0].event_id });

  const dead = await made('tasks', token, { name: 'http_request', args: { url: `${there}/down`, method: 'POST', body: '{"sku":"A-101"}' }, max_attempts: 1, metadata: { by: 'mei' } });
  await made('tasks', token, { name: 'http_request', args: { url: `${there}/down` }, max_attempts: 5 });
  await done(dead.id);
  await made('tasks/batch', token, { chain: true, tasks: [{ name: 'render_film', queue: 'films', args: { film: 3 } }, { name: 'publish_film', queue: 'films', args: { film: 3 } }] });
  await made('tasks', token, { name: 'newsletter', queue: 'mailings', countdown_seconds: 7200, args: { list: 'vip' } });
  for (const image of [7, 8, 9, 10]) await made('tasks', token, { name: 'resize', queue: 'images', args: { image, width: 300 } });
  const { task: run } = await made('queues/images/fetch', token, { worker: 'resizer-1', lease_seconds: 600 });
  await made(`tasks/${run.id}/progress`, token, { attempt: 1, percent: 62, note: '已缩放 62 张', log: ['opened 7.png', 'scaled to 300 px', 'writing webp'] });
  await made('queues/mailings/pause', token);
  await change('queues/images', { concurrency_max: 4, rate_limit: 10 });
  await made('schedules', token, { name: 'nightly_check', task: 'verify_stock', cron: '30 3 * * MON-FRI', time_zone: 'Asia/Shanghai' });
  await done((await made('schedules/nightly_check/run', token)).task_id);
  const day = (ago) => new Date(Date.now() - ago * 24 * 60 * MINUTE_MS).toISOString().slice(0, 10);
  const range = { start_date: day(29), end_date: day(-1) };
  const report = await made('reports/sales', token, range);
  await done(report.id);
  return {
    tasks: 'tasks',
    'tasks-dead': 'tasks?state=discarded',
    'task-running': `tasks/${run.id}`,
    'task-dead': `tasks/${dead.id}`,
    'new-task': 'tasks/new',
    queues: 'queues',
    schedules: 'schedules',
    schedule: 'schedules/nightly_check',
    'new-schedule': 'schedules/+new',
    webhooks: 'webhooks',
    webhook: 'webhooks/1',
    report: `reports?from=${range.start_date}&to=${range.end_date}&task=${report.id}`,
  };
}

if (values.out) {
  const work = await someWork();
  const views = { overview: '', ...work, sale: 'sales/2', sales: 'sales', 'new-sale': 'sales/new?product=4', products: 'products', product: 'products/2', import: 'products/import', orders: 'orders', order: 'orders/41', users: 'users', user: 'users/3', keys: 'keys', cache: 'cache', 'cache-entry': 'cache/flash_sale%3A2', queries: 'queries', 'slow-calls': 'queries?list=slow' };
  for (const language of ['EN', '中文']) {
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      for (const width of [1440, 390]) {
        await page.setViewportSize({ width, height: width === 390 ? 844 : 900 });
        for (const [name, path] of Object.entries(views)) {
          await page.goto(`${url}/admin/${path}`);
          await settled();
          if (language === '中文' && name === 'overview' && (await page.locator('html').getAttribute('lang')) === 'en') {
            if (width === 390) await page.locator('.menu-button').click();
            await page.getByRole('button', { name: language }).click();
            await settled();
          }
          const file = `${name}-${language === 'EN' ? 'en' : 'zh'}-${colorScheme}-${width}.png`;
          await page.screenshot({ path: join(values.out, file), fullPage: width === 390 });
        }
      }
    }
  }
  await page.goto(`${url}/admin/`);
  await context.clearCookies();
  await page.reload();
  await page.locator('.gate-card').waitFor();
  await page.screenshot({ path: join(values.out, 'login-390.png') });
}
assertClean();
await browser.close();
await server.stop();
