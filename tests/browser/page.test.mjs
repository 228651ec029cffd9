// The admin page against the real server: what a shop's operator does, from the first link on.
//
// The tests run in order and build on one another, as a working day does. Each view is watched for
// errors and violations of the page's policy all the time.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { assertFits, call, newCustomer, openPage, startBrowser, startServer } from './support.mjs';

const ADMIN = { email: 'owner@example.com', name: 'Mei Owner', password: 'tea and lanterns 88' };
const VIEWS = ['', 'sales', 'sales/new', 'sales/1', 'products', 'products/new', 'products/1', 'products/import', 'orders', 'orders/1', 'users', 'users/new', 'users/1', 'keys', 'nowhere'];

let server;
let browser;
let tab;
let page;

const heading = (name) => page.getByRole('heading', { level: 1, name });
const button = (name) => page.getByRole('button', { name, exact: true });
const link = (name) => page.getByRole('link', { name, exact: true });
const field = (label) => page.getByLabel(label, { exact: true });
const says = (text) => page.getByText(text, { exact: true }).first().waitFor();
const go = (view) => page.goto(`${server.url}/admin/${view}`);
const row = (text) => page.getByRole('row').filter({ hasText: text });
const dialog = () => page.getByRole('dialog');
const alert = () => page.getByRole('alert');

async function logIn(email = ADMIN.email, password = ADMIN.password) {
  await field('E-mail').fill(email);
  await field('Password').fill(password);
  await button('Log in').click();
}

/** A token of the admin's own, to look at the truth behind the page. */
async function adminToken() {
  const { body } = await call(server.url, 'POST', 'auth/login', { body: { email: ADMIN.email, password: ADMIN.password } });
  return body.token;
}

describe('the admin page', { concurrency: false }, () => {
  before(async () => {
    [server, browser] = await Promise.all([startServer(), startBrowser()]);
    tab = await openPage(browser, server.url);
    ({ page } = tab);
  });

  after(async () => {
    await browser?.close();
    await server?.stop();
  });

  test('the short addresses lead to it, and its policy allows no inline script', async () => {
    for (const path of ['/', '/admin', '/admin/']) {
      const response = await fetch(server.url + path);
      assert.equal(new URL(response.url).pathname, '/admin/', path);
      const policy = response.headers.get('content-security-policy');
      assert.match(policy, /default-src 'self'/);
      assert.match(policy, /frame-ancestors 'none'/);
      assert.doesNotMatch(policy, /unsafe/);
    }
  });

  test('the one-time link makes the first admin and logs in', async () => {
    await page.goto(server.setupLink);
    await heading('Welcome. Make the first admin').waitFor();
    assert.doesNotMatch(page.url(), /setup/, 'the token leaves the address at once');
    await page.reload();
    await heading('Welcome. Make the first admin').waitFor();
    // The same link in a second tab, which loses the race.
    const late = await tab.context.newPage();
    await late.goto(server.setupLink);
    await late.getByLabel('Your name').fill('Late');
    await late.getByLabel('E-mail').fill('late@example.com');
    await late.getByLabel('Password', { exact: true }).fill(ADMIN.password);
    await late.getByLabel('Password again').fill(ADMIN.password);
    await field('Your name').fill(ADMIN.name);
    await field('E-mail').fill(ADMIN.email);
    await field('Password').fill(ADMIN.password);
    await field('Password again').fill('something else');
    await button('Set up and log in').click();
    await says('The two passwords differ');
    await field('Password again').fill(ADMIN.password);
    await button('Set up and log in').click();
    await heading('Overview').waitFor();
    await says(ADMIN.name);
    await late.getByRole('button', { name: 'Set up and log in' }).click();
    await late.getByText(/used or is out of date/).waitFor();
    await late.close();
    const cookies = await tab.context.cookies();
    assert.ok(cookies.every((cookie) => cookie.httpOnly && cookie.sameSite === 'Strict'), JSON.stringify(cookies));
    await page.reload();
    await heading('Overview').waitFor();
  });

  test('a wrong password is told, the right one lets in', async () => {
    await button('Log out').click();
    await heading('Log in to your shop').waitFor();
    await logIn(ADMIN.email, 'not my password');
    await alert().waitFor();
    assert.match(await alert().innerText(), /wrong/);
    await logIn();
    await heading('Overview').waitFor();
  });

  test('a used link leads to the log-in, or on, and says why', async () => {
    const other = await openPage(browser, server.url);
    other.expectStatuses(403);
    await other.page.goto(server.setupLink);
    await other.page.getByRole('heading', { name: 'Log in to your shop' }).waitFor();
    await other.page.getByText(/used or is out of date/).waitFor();
    await other.page.getByLabel('E-mail').fill(ADMIN.email);
    await other.page.getByLabel('Password', { exact: true }).fill(ADMIN.password);
    await other.page.getByRole('button', { name: 'Log in' }).click();
    await other.page.getByRole('heading', { name: 'Overview' }).waitFor();
    assert.equal(await other.page.getByText(/link/).count(), 0);
    await other.page.goto(`${server.url}/admin/`);
    await other.page.goto(server.setupLink);
    await other.page.getByText('This link has been used: the shop is set up, and you are logged in.').waitFor();
    await other.page.getByRole('heading', { name: 'Overview' }).waitFor();
    other.assertClean();
    await other.context.close();
  });

  test('a product is made; its price is cut as text, never rounded', async () => {
    await link('Products').click();
    await link('New product').click();
    await heading('New product').waitFor();
    await field('Price').fill('299.005');
    await button('Create').click();
    await says('Please fill this in');
    await field('Name').fill('无线耳机 Aurora');
    await field('Stock').fill('500');
    await button('Create').click();
    await page.getByText(/at most 2 decimals/).waitFor();
    await field('Price').fill('299.9');
    await button('Create').click();
    await heading('无线耳机 Aurora').waitFor();
    const { body } = await call(server.url, 'GET', 'products/1');
    assert.deepEqual([body.unit_amount, body.currency, body.stock], [29990, 'CNY', 500]);
  });

  test('a currency has its own number of decimals', async () => {
    for (const [currency, price, minor] of [['JPY', '500', 500], ['KWD', '1.234', 1234]]) {
      await go('products/new');
      await field('Name').fill(`Priced in ${currency}`);
      await field('Price').fill(price);
      await field('Currency').fill(currency);
      await button('Create').click();
      await heading(`Priced in ${currency}`).waitFor();
      assert.equal(await field(`Price (${currency})`).inputValue(), price);
      const { body } = await call(server.url, 'GET', 'products?q=' + currency);
      assert.deepEqual(body.items.map((product) => product.unit_amount), [minor]);
    }
  });

  test("the server's word on a field stands beside its input", async () => {
    tab.expectStatuses(409);
    for (const name of ['Lamp', 'Lamp again']) {
      await go('products/new');
      await field('Name').fill(name);
      await page.getByLabel('Article number').fill('L-1');
      await field('Price').fill('10');
      await button('Create').click();
      if (name === 'Lamp') await heading(name).waitFor();
    }
    await alert().waitFor();
    const sku = page.getByLabel('Article number');
    assert.equal(await sku.getAttribute('aria-invalid'), 'true');
    const describedBy = (await sku.getAttribute('aria-describedby')).split(' ');
    const words = await Promise.all(describedBy.map((id) => page.locator(`[id="${id}"]`).innerText()));
    assert.ok(words.includes("is another product's"), words.join());
  });

  test('a product is changed, counted and found', async () => {
    await go('products');
    await page.getByLabel('Search').fill('耳机');
    await page.waitForURL(/q=/);
    await link('无线耳机 Aurora').click();
    await page.getByLabel('Counted stock').fill('480');
    await page.getByLabel('Category').fill('audio');
    await button('Save').click();
    await says('Saved');
    await page.getByText('Free units now: 480', { exact: false }).waitFor();
    const { body } = await call(server.url, 'GET', 'products/1');
    assert.deepEqual([body.stock, body.category, body.unit_amount], [480, 'audio', 29990]);
    await go('products?category=audio&sort=newest');
    await link('无线耳机 Aurora').waitFor();
    assert.equal(await link('Lamp').count(), 0);
    await link('Products').click();
    await link('Lamp').waitFor();
    assert.equal(await field('Category').inputValue(), '', 'the menu leads to the whole list');
  });

  test('a sale is made by keyboard alone from the list of products', async () => {
    await go('sales/new');
    await field('Product').press('ArrowDown');
    await field('Product').pressSequentially('耳机');
    await page.getByRole('option', { name: /Aurora/ }).waitFor();
    await field('Product').press('Enter');
    await page.getByText(/480 in stock/).first().waitFor();
    await field('Units').fill('100');
    await field('Sale price (CNY)').fill('99');
    await field('Start now').check();
    await field('Minutes to pay').fill('10');
    await field('Units per buyer').fill('2');
    await button('Create').click();
    await heading(/Aurora/).waitFor();
    await says('Running');
    const { body } = await call(server.url, 'GET', 'flash-sales/1');
    assert.deepEqual([body.quantity, body.unit_amount, body.payment_window_seconds, body.per_user_limit], [100, 9900, 600, 2]);
  });

  let buyers;

  test('remaining units fall on the open page while buyers claim', async () => {
    const remaining = page.locator('.big');
    assert.match(await remaining.innerText(), /^100\b/);
    buyers = await Promise.all(Array.from({ length: 5 }, () => newCustomer(server.url)));
    for (const { token } of buyers) {
      const claim = await call(server.url, 'POST', 'flash-sales/1/claims', { token, body: { quantity: 2 } });
      assert.equal(claim.status, 201, JSON.stringify(claim.body));
    }
    await remaining.filter({ hasText: /^90\b/ }).waitFor();
    await page.getByRole('img', { name: '0 sold, 10 held, 90 remaining of 100' }).waitFor();
  });

  test('the overview shows it, and that no unit is unaccounted for', async () => {
    await link('Overview').click();
    await page.getByRole('img', { name: '0 sold, 10 held, 90 remaining of 100' }).waitFor();
    const figure = (name) => page.locator('.figure', { has: page.getByRole('heading', { name }) }).locator('.value');
    await figure('Stock drift').filter({ hasText: /^0$/ }).waitFor();
    await figure('Claims accepted').filter({ hasText: /^5$/ }).waitFor();
    await figure('Commit time').filter({ hasText: /ms$/ }).waitFor();
    await figure('Requests / s').filter({ hasText: /^[0-9.,]+$/ }).waitFor();
  });

  test('an order is confirmed as paid, another is cancelled', async () => {
    await link('Orders').click();
    await field('State').selectOption('Waiting for payment');
    await page.waitForURL(/state=pending_payment/);
    await page.getByRole('link', { name: '1', exact: true }).click();
    await heading('Order 1').waitFor();
    await button('Confirm payment').click();
    await dialog().getByText('CN¥198.00', { exact: false }).or(dialog().getByText('¥198.00', { exact: false })).first().waitFor();
    await dialog().getByRole('button', { name: 'Confirm payment' }).click();
    await says('The payment is confirmed');
    await says('Paid');
    await go('orders/2');
    await button('Cancel order').click();
    await dialog().getByRole('button', { name: 'Cancel order' }).click();
    await says('Cancelled');
    const token = await adminToken();
    const states = () => Promise.all([1, 2].map(async (id) => (await call(server.url, 'GET', `orders/${id}`, { token })).body.state));
    // A task takes a paid order over within a moment.
    let seen = await states();
    while (seen[0] === 'paid') seen = await states();
    assert.deepEqual(seen, ['processed', 'cancelled']);
    const { body: sale } = await call(server.url, 'GET', 'flash-sales/1');
    assert.deepEqual([sale.sold, sale.held, sale.remaining], [2, 6, 92]);
  });

  test('a sale is stopped, but only after a question', async () => {
    await go('sales');
    await link('无线耳机 Aurora').click();
    await button('Stop the sale').click();
    await dialog().getByRole('button', { name: 'Cancel' }).click();
    assert.equal((await call(server.url, 'GET', 'flash-sales/1')).body.state, 'running');
    await button('Stop the sale').click();
    await dialog().getByRole('button', { name: 'Stop the sale' }).click();
    await says('The sale is stopped');
    await says('Stopped');
    assert.equal((await call(server.url, 'GET', 'flash-sales/1')).body.state, 'stopped');
    assert.equal(await button('Stop the sale').count(), 0);
  });

  test('an import names the line of a bad row and takes the others', async () => {
    await go('products/import');
    const csv = 'sku,name,price,currency,stock\nC-1,Cup,12.50,CNY,10\nC-2,Bowl,twelve,CNY,10\nC-3,Plate,8,CNY,10\n';
    await page.getByLabel('CSV file').setInputFiles({ name: 'cups.csv', mimeType: 'text/csv', buffer: Buffer.from(csv) });
    await button('Import').click();
    await says('1 row was not taken');
    const bad = page.getByRole('row').nth(1);
    assert.match((await bad.innerText()).replace(/\s+/g, ' '), /^3 price /);
    const { body } = await call(server.url, 'GET', 'products?q=plate');
    assert.deepEqual(body.items.map((product) => [product.name, product.unit_amount]), [['Plate', 800]]);
  });

  test('a file as a spreadsheet program in China writes it is read, and told of', async () => {
    await go('products/import');
    // In GBK: sku,name,price,currency and M-1,毛毯,￥1299,CNY; then a row that is refused.
    const gbk = Buffer.concat([
      Buffer.from('sku,name,price,currency\r\nM-1,'),
      Buffer.from([0xc3, 0xab, 0xcc, 0xba, 0x2c, 0xa3, 0xa4]),
      Buffer.from('1299,CNY\r\n'),
    ]);
    await page.getByLabel('CSV file').setInputFiles({ name: 'gbk.csv', mimeType: 'text/csv', buffer: gbk });
    await button('Import').click();
    await says('1 created, 0 updated, 0 unchanged, 0 not taken');
    await says('GB18030, columns separated by commas');
    const { body } = await call(server.url, 'GET', `products?q=${encodeURIComponent('毛毯')}`);
    assert.deepEqual(body.items.map((product) => [product.name, product.unit_amount]), [['毛毯', 129900]]);
    const none = 'sku;name;price;currency\nM-2;Cup;1.234;EUR\n';
    await page.getByLabel('CSV file').setInputFiles({ name: 'none.csv', mimeType: 'text/csv', buffer: Buffer.from(none) });
    await button('Import').click();
    await says('Nothing was imported; rows not taken: 1');
    await says('could mean 1234 or 1.234; write it without a mark between thousands');
  });

  test('an import with an unknown column is refused in words', async () => {
    tab.expectStatuses(422);
    const csv = 'sku,name,prize,currency\nC-1,Cup,12.50,CNY\n';
    await page.getByLabel('CSV file').setInputFiles({ name: 'cups.csv', mimeType: 'text/csv', buffer: Buffer.from(csv) });
    await button('Import').click();
    await alert().waitFor();
    assert.match(await alert().innerText(), /prize/);
  });

  test('a disabled customer is out at once, and back when enabled', async () => {
    const [buyer] = buyers;
    await go('users');
    await page.getByLabel('Beginning of name or e-mail').fill(buyer.name);
    await page.waitForURL(/q=/);
    await link(buyer.name).click();
    await link('1').waitFor();
    await button('Disable').click();
    await dialog().getByRole('button', { name: 'Disable' }).click();
    await says('The account is disabled');
    assert.equal((await call(server.url, 'GET', 'me', { token: buyer.token })).status, 401);
    await button('Enable').click();
    await dialog().getByRole('button', { name: 'Enable' }).click();
    await says('The account is enabled');
    await says('Active');
  });

  test('a staff account is made and may log in', async () => {
    await go('users/new');
    await field('Name').fill('Jun Staff');
    await field('E-mail').fill('jun@example.com');
    await field('Password').fill('counting boxes 77');
    await field('Role').selectOption('Staff');
    await button('Create').click();
    await heading('Jun Staff').waitFor();
    const { body } = await call(server.url, 'POST', 'auth/login', { body: { email: 'jun@example.com', password: 'counting boxes 77' } });
    assert.equal(body.user.role, 'staff');
  });

  test('a customer who logs in is told that this is not for them', async () => {
    const other = await openPage(browser, server.url);
    await other.page.goto(`${server.url}/admin/orders`);
    await other.page.getByLabel('E-mail').fill('buyer1@example.com');
    await other.page.getByLabel('Password', { exact: true }).fill('a long enough one');
    await other.page.getByRole('button', { name: 'Log in' }).click();
    await other.page.getByRole('heading', { name: 'No access' }).waitFor();
    other.assertClean();
    await other.context.close();
  });

  test('an API key is shown once, works, and is revoked', async () => {
    await go('keys');
    await button('New API key').click();
    await dialog().getByLabel('Name').fill('web shop');
    await dialog().getByRole('button', { name: 'Create' }).click();
    await dialog().getByText('Choose at least one').waitFor();
    // All scopes that the server knows, by the names that it knows them by.
    const refused = await tab.context.request.post(`${server.url}/api/v1/auth/login`, { data: { email: ADMIN.email, password: ADMIN.password } });
    const { token: admin } = await refused.json();
    const { body: told } = await call(server.url, 'POST', 'api-keys', { token: admin, body: { name: 'x', scopes: ['none'] } });
    const scopes = told.errors[0].reason.replace('must be one of ', '').split(', ');
    const offered = await dialog().locator('input[name=scopes]').evaluateAll((boxes) => boxes.map((box) => [box.value, box.labels[0].innerText]));
    assert.deepEqual(offered.map(([scope]) => scope).sort(), scopes.sort());
    for (const [scope, label] of offered) assert.match(label, new RegExp(`^${scope} .{8}`));
    await dialog().getByLabel('orders Read and place orders, claim').check();
    await dialog().getByRole('button', { name: 'Create' }).click();
    const token = await dialog().getByLabel('Your new key').inputValue();
    await dialog().getByRole('button', { name: 'Close' }).click();
    assert.equal((await call(server.url, 'GET', 'orders', { token })).status, 200);
    assert.equal((await call(server.url, 'GET', 'users', { token })).status, 403);
    await row('web shop').getByText('orders', { exact: true }).waitFor();
    await page.getByRole('button', { name: 'Revoke web shop' }).click();
    await dialog().getByRole('button', { name: 'Revoke' }).click();
    await says('The key is revoked');
    assert.equal((await call(server.url, 'GET', 'orders', { token })).status, 401);
  });

  test('a session that ends costs neither the place nor a half-filled form', async () => {
    await go('products/new');
    await field('Name').fill('Written before the session ended');
    await field('Price').fill('5');
    await tab.context.clearCookies();
    await button('Create').click();
    await dialog().getByText('Your session has ended').waitFor();
    assert.equal(await dialog().getByLabel('E-mail').inputValue(), ADMIN.email);
    await dialog().getByLabel('Password').first().fill(ADMIN.password);
    await dialog().getByRole('button', { name: 'Log in', exact: true }).click();
    await heading('Written before the session ended').waitFor();
  });

  test('a log-in in another tab does not break this one', async () => {
    tab.expectStatuses(403);
    await go('products/new');
    await field('Name').fill('From the older tab');
    await field('Price').fill('5');
    // Another session in the same browser: the cookie changes, and with it the token for writes.
    const second = await tab.context.newPage();
    await second.goto(`${server.url}/admin/`);
    await second.getByRole('button', { name: 'Log out' }).click();
    await second.getByLabel('E-mail').fill(ADMIN.email);
    await second.getByLabel('Password', { exact: true }).fill(ADMIN.password);
    await second.getByRole('button', { name: 'Log in' }).click();
    await second.getByRole('heading', { name: 'Overview' }).waitFor();
    await second.close();
    await button('Create').click();
    await heading('From the older tab').waitFor();
  });

  test('a product is taken out of the shop', async () => {
    await button('Take out of the shop').click();
    await dialog().getByRole('button', { name: 'Take out of the shop' }).click();
    await says('Taken out of the shop');
    const { body } = await call(server.url, 'GET', 'products?q=older');
    assert.deepEqual(body.items, []);
  });

  test('the language is switched everywhere and remembered', async () => {
    await go('');
    await button('中文').click();
    await heading('概览').waitFor();
    assert.equal(await page.locator('html').getAttribute('lang'), 'zh-CN');
    await page.reload();
    await heading('概览').waitFor();
    // Whatever view is opened: no word of its own is left in English.
    const own = /\b(Log|Save|Search|Flash|Order|Product|User|New|Create|State|Price|Name|Stock|Loading|Page|Units)\b/;
    for (const view of VIEWS) {
      await go(view);
      await page.locator('h1').waitFor();
      await page.waitForFunction(() => !document.querySelector('.loading'));
      const text = await page.locator('#main').innerText();
      const left = text.split('\n').filter((line) => own.test(line) && !/Written|Mei|Lamp|Priced|sku/.test(line));
      assert.deepEqual(left, [], view);
    }
    await go('');
    await button('EN').click();
    await heading('Overview').waitFor();
    const chinese = await openPage(browser, server.url, { locale: 'zh-CN' });
    await chinese.page.goto(`${server.url}/admin/`);
    await chinese.page.getByRole('heading', { name: '登录您的商店' }).waitFor();
    chinese.assertClean();
    await chinese.context.close();
  });

  test('every view fits a phone, names its inputs and has one main heading', async () => {
    tab.expectStatuses(404);
    await page.setViewportSize({ width: 390, height: 844 });
    for (const view of VIEWS) {
      await go(view);
      await page.locator('h1').waitFor();
      await page.waitForFunction(() => !document.querySelector('.loading'));
      await assertFits(page, view);
    }
    await page.getByRole('button', { name: 'Menu' }).click();
    await link('Flash sales').click();
    await heading('Flash sales').waitFor();
    await page.setViewportSize({ width: 1440, height: 900 });
  });

  test('nothing went wrong on any view', () => tab.assertClean());

  test('after the server ended, the figures say that they are not those of now', async () => {
    await go('');
    const figures = page.locator('.figures');
    await figures.locator('.figure.good').waitFor();
    assert.equal(await page.locator('.stale').count(), 0);
    await server.end();
    await page.locator('.figures.is-stale').waitFor();
    assert.equal(await figures.locator('.figure').count(), 6);
    assert.equal(await figures.locator('.figure.good').count(), 0);
    const note = page.locator('.stale').first();
    await note.filter({ hasText: 'Not refreshed: The server can’t be reached.' }).waitFor();
    // Above the figures, before the eye has taken them for what is.
    const place = async (locator) => (await locator.boundingBox()).y;
    assert.ok((await place(note)) < (await place(figures)));
    assert.match(await figures.evaluate((element) => getComputedStyle(element).filter), /grayscale\(1\)/);
  });
});
