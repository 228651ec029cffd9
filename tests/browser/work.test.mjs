// The admin page on what works for the shop: tasks, queues, workers, schedules, webhooks, reports.
//
// As in page.test.mjs the tests run in order against one real server; beside it stand a receiver of
// calls and a worker, both as small as can be.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { assertFits, call, openPage, startBrowser, startServer } from './support.mjs';

const ADMIN = { email: 'owner@example.com', name: 'Mei Owner', password: 'tea and lanterns 88' };
const STAFF = { email: 'jun@example.com', name: 'Jun Staff', password: 'a long enough one' };

let server;
let browser;
let tab;
let page;
let token;
let receiver;

const heading = (name) => page.getByRole('heading', { level: 1, name });
const button = (name) => page.getByRole('button', { name, exact: true });
const link = (name) => page.getByRole('link', { name, exact: true });
const field = (label) => page.getByLabel(label, { exact: true });
const says = (text) => page.getByText(text, { exact: true }).first().waitFor();
const go = (view) => page.goto(`${server.url}/admin/${view}`);
const dialog = () => page.getByRole('dialog');
const confirm = (name) => dialog().getByRole('button', { name, exact: true }).click();
const badge = (text) => page.locator('h1 .badge').filter({ hasText: text }).waitFor();
const row = (text) => page.getByRole('row').filter({ hasText: text });

async function ask(method, path, body) {
  const answer = await call(server.url, method, path, { token, body });
  assert.ok(answer.status < 300, `${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
  return answer.body;
}

const enqueue = (body) => ask('POST', 'tasks', body);
const fetchTask = async (queue) => (await ask('POST', `queues/${queue}/fetch`, { worker: 'resizer-1', wait_seconds: 10, lease_seconds: 60 })).task;

/** What an input for a date and a time shows, a day from now. */
function tomorrow() {
  return new Date(Date.now() + 86_400_000).toISOString().slice(0, 16);
}

/** Whether a queue hands out nothing just now. */
async function fetchNothing(queue) {
  const { task } = await ask('POST', `queues/${queue}/fetch`, { worker: 'resizer-1' });
  return task === undefined;
}

/** Somebody else's server: keeps what came, answers as it is told. */
async function startReceiver() {
  const got = [];
  const state = { status: 200 };
  const http = createServer((request, response) => {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      got.push({ path: request.url, headers: request.headers, body: Buffer.concat(parts).toString() });
      response.writeHead(state.status, { 'Content-Type': 'application/json' }).end('{"took":"it","as":738529527931269425}');
    });
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  return { url: `http://127.0.0.1:${http.address().port}`, got, state, stop: () => http.close() };
}

/** A worker of the Faktory protocol that says hello and waits; `heard` is the server's next line. */
async function startWorker(url) {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  const heard = async () => (await lines.next()).value;
  assert.match(await heard(), /^\+HI /);
  socket.write(`HELLO ${JSON.stringify({ v: 2, wid: 'resizer-7', hostname: 'render-box', pid: 4711, labels: ['images'] })}\r\n`);
  assert.equal(await heard(), '+OK');
  const beat = async () => {
    socket.write(`BEAT ${JSON.stringify({ wid: 'resizer-7', rss_kb: 65536 })}\r\n`);
    return heard();
  };
  return { beat, heard, stop: () => socket.destroy() };
}

async function logIn({ email, password }) {
  await field('E-mail').fill(email);
  await field('Password').fill(password);
  await button('Log in').click();
  await heading('Overview').waitFor();
}

describe('what works for the shop', { concurrency: false }, () => {
  before(async () => {
    const env = {
      ONRUSH_OUTGOING__ALLOW_INTERNAL: '127.0.0.0/8',
      ONRUSH_FAKTORY__ENABLED: 'true',
      ONRUSH_FAKTORY__PORT: '0',
    };
    // One by one, so that what was started is stopped though another was not.
    server = await startServer(env);
    browser = await startBrowser();
    receiver = await startReceiver();
    const made = await call(server.url, 'POST', 'auth/setup', { body: { token: server.setupLink.split('#setup=')[1], ...ADMIN } });
    token = made.body.token;
    // The shop's days are those of this zone, too.
    tab = await openPage(browser, server.url, { timezoneId: 'UTC' });
    // What is removed may be asked for once more before its view is left.
    tab.expectStatuses(404);
    ({ page } = tab);
    await go('');
    await logIn(ADMIN);
  });

  after(async () => {
    receiver?.stop();
    await browser?.close();
    await server?.stop();
  });

  test('a task is enqueued by hand, and what is wrong with it stands beside its input', async () => {
    tab.expectStatuses(422);
    await go('tasks/new');
    await field('Task').selectOption('http_request');
    await page.getByRole('cell', { name: 'url required' }).waitFor();
    await page.getByLabel('Arguments', { exact: true }).fill('{"url": ');
    await button('Enqueue').click();
    await page.getByText(/This is no JSON/).waitFor();
    await page.getByLabel('Arguments', { exact: true }).fill('{"url": "ftp://example.com", "method": "FETCH"}');
    await button('Enqueue').click();
    const fault = page.locator('.field', { has: page.getByLabel('Arguments', { exact: true }) }).locator('.fault');
    await fault.filter({ hasText: /url/ }).filter({ hasText: /method must be one of/ }).waitFor();
    receiver.state.status = 500;
    await page.getByLabel('Arguments', { exact: true }).fill(JSON.stringify({ url: `${receiver.url}/call` }));
    await page.getByLabel(/^Attempts at most/).fill('1');
    await page.getByLabel(/^Metadata/).fill('{"by": "hand"}');
    await button('Enqueue').click();
    await heading(/^http_request/).waitFor();
    await badge('Dead');
    assert.equal(receiver.got.length, 1);
    await page.getByRole('cell', { name: 'Failed' }).waitFor();
    await page.getByRole('region', { name: 'Metadata' }).or(page.getByLabel('Metadata')).first().waitFor();
  });

  test('a dead task is told of on the overview and retried by hand', async () => {
    await link('Overview').click();
    await page.locator('.strip').getByRole('link', { name: '1 Dead' }).click();
    await heading('Tasks').waitFor();
    await row('http_request').getByRole('link').click();
    await badge('Dead');
    receiver.state.status = 200;
    await button('Retry').click();
    await dialog().getByText(/one more attempt/).waitFor();
    await confirm('Retry');
    await badge('Completed');
    await page.getByRole('cell', { name: 'Completed' }).waitFor();
    assert.match(await page.getByLabel('Result').innerText(), /"status": 200/);
    assert.equal(receiver.got.length, 2);
  });

  test('a task for later is changed, run at once by a worker, and followed while it runs', async () => {
    await go('tasks/new');
    await field('Task').selectOption('Another, for a worker of yours');
    await field('Name of the task').fill('resize');
    await field('Queue').fill('images');
    await page.getByLabel('Arguments', { exact: true }).fill('{"image": 7}');
    await page.getByLabel(/^Not before/).fill(tomorrow());
    await button('Enqueue').click();
    await heading(/^resize/).waitFor();
    await badge('Scheduled');
    await button('Edit').click();
    await dialog().getByLabel('Arguments').fill('{"image": 8}');
    await dialog().getByLabel('Priority').fill('200');
    await dialog().getByRole('button', { name: 'Save' }).click();
    await says('Saved');
    await page.getByLabel('Arguments').getByText('"image": 8', { exact: false }).waitFor();
    await button('Run now').click();
    await confirm('Run now');
    await badge('Ready');
    const run = await fetchTask('images');
    assert.deepEqual([run.name, run.args], ['resize', { image: 8 }]);
    await badge('Running');
    await ask('POST', `tasks/${run.id}/progress`, { attempt: run.attempt, percent: 40, note: 'half of it', log: ['opened', 'scaled'] });
    await page.getByText('40 % half of it').waitFor();
    await page.getByRole('img', { name: '40 % done' }).waitFor();
    assert.match(await page.getByLabel('Log').innerText(), /opened[\s\S]*scaled/);

    await link('Queues').click();
    await row('resizer-1').filter({ hasText: '40 %' }).getByRole('link', { name: 'resize' }).click();
    await button('Cancel the task').click();
    await confirm('Cancel the task');
    await says('The worker is told to stop');
    await ask('POST', `tasks/${run.id}/fail`, { attempt: run.attempt, error: 'stopped as I was told' });
    await badge('Cancelled');
    await button('Remove').click();
    await confirm('Remove');
    await says('The task is removed');
    assert.equal((await call(server.url, 'GET', `tasks/${run.id}`, { token })).status, 404);
  });

  test('chains and batches show what they are tied to', async () => {
    const chain = await ask('POST', 'tasks/batch', { chain: true, tasks: [{ name: 'first', queue: 'films' }, { name: 'second', queue: 'films' }] });
    await go(`tasks/${chain.tasks[0].id}`);
    await page.getByRole('link', { name: `…${chain.tasks[1].id.slice(-8)}` }).click();
    await heading(/^second/).waitFor();
    await says('1 unfinished');
    const batch = await ask('POST', 'tasks/batch', { batch: true, description: 'two posters', tasks: [{ name: 'a', queue: 'films' }, { name: 'b', queue: 'films' }] });
    await go(`tasks/${batch.tasks[0].id}`);
    await says('two posters');
    await says('0 of 2');
  });

  test('all that fit a filter are cancelled, but only after a question, and counted', async () => {
    for (let at = 0; at < 30; at += 1) await enqueue({ name: `poster${at % 2}`, queue: 'posters', args: { at } });
    await go('tasks');
    await field('Queue').selectOption('posters');
    await page.waitForURL(/queue=posters/);
    await page.getByLabel('Name, as it is written').fill('poster1');
    await page.waitForURL(/name=poster1/);
    await row('poster0').first().waitFor({ state: 'detached' });
    await button('Cancel all').click();
    await dialog().getByText('queue posters · name poster1', { exact: false }).waitFor();
    await confirm('Cancel all');
    await says('Tasks changed: 15');
    await go('tasks?queue=posters&state=available');
    await row('poster0').first().waitFor();
    await go('tasks?queue=posters');
    await button('Next page').click();
    await says('Page 2');
    await button('Cancelled 15').click();
    await page.waitForURL(/state=cancelled/);
    await button('Run all now').click();
    await confirm('Run all now');
    await says('Tasks changed: 15');
    const left = await ask('GET', 'tasks?queue=posters&state=available&limit=50');
    assert.equal(left.items.length, 30);
  });

  test('numbers keep all their digits, wherever a shop keeps its own', async () => {
    const [long, longest] = ['738529527931269425', '18446744073709551615'];
    const text = async (path) => (await call(server.url, 'GET', path, { token })).text;
    const make = async (path, body) => {
      const answer = await call(server.url, 'POST', path, { token, body });
      assert.ok(answer.status < 300, answer.text);
      return answer.body;
    };
    const args = `{"order_no":${long},"rate":1.0}`;
    const { id } = await make('tasks', `{"name":"ship","queue":"parcels","countdown_seconds":60,"args":${args},"metadata":{"no":[${longest}]}}`);
    await go(`tasks/${id}`);
    await page.getByLabel('Arguments').getByText(`"order_no": ${long},`, { exact: false }).waitFor();
    await page.getByLabel('Metadata').getByText(longest, { exact: false }).waitFor();
    // Another field, then one beside the number.
    await button('Edit').click();
    await dialog().getByLabel('Priority').fill('7');
    await dialog().getByRole('button', { name: 'Save' }).click();
    await says('7');
    assert.match(await text(`tasks/${id}`), new RegExp(`"args":${args}`));
    await button('Edit').click();
    const box = dialog().getByLabel('Arguments');
    await box.fill((await box.inputValue()).replace('{', '{ "express": true, '));
    await dialog().getByLabel(/^Metadata/).fill(`{"no": ${long}}`);
    await dialog().getByRole('button', { name: 'Save' }).click();
    await page.getByLabel('Arguments').getByText('"express": true', { exact: false }).waitFor();
    assert.match(await text(`tasks/${id}`), new RegExp(`"args":\\{"express":true,"order_no":${long},"rate":1.0\\}`));
    assert.match(await text(`tasks/${id}`), new RegExp(`"metadata":\\{"no":${long}\\}`));

    // What no number of 64 bits holds is refused beside its input.
    await go('tasks/new');
    await field('Task').selectOption('Another, for a worker of yours');
    await field('Name of the task').fill('ship');
    await field('Queue').fill('parcels');
    const typed = page.getByLabel('Arguments', { exact: true });
    const fault = page.locator('.field', { has: typed }).locator('.fault');
    for (const number of ['18446744073709551616', '1e400', '0.1234567890123456789']) {
      await typed.fill(`{"nos": [7, ${number}]}`);
      await button('Enqueue').click();
      await fault.filter({ hasText: 'nos[1] is a number that does not fit in 64 bits' }).waitFor();
      await typed.fill('{');
      await button('Enqueue').click();
      await fault.filter({ hasText: 'This is no JSON' }).waitFor();
    }
    await typed.fill(`{"nos": [7, ${long}]}`);
    await button('Enqueue').click();
    await heading(/^ship/).waitFor();
    const run = (await make('queues/parcels/fetch', '{"worker":"w","wait_seconds":10}')).task;
    assert.match(await text(`tasks/${run.id}`), new RegExp(`"args":\\{"nos":\\[7,${long}\\]\\}`));
    const acked = await call(server.url, 'POST', `tasks/${run.id}/ack`, { token, body: `{"attempt":1,"result":{"label":${long}}}` });
    assert.ok(acked.status < 300);
    await page.getByLabel('Result').getByText(`"label": ${long}`, { exact: false }).waitFor();

    await make('schedules', `{"name":"parcels","cron":"@daily","task":"ship","args":${args}}`);
    await go('schedules/parcels');
    await page.getByLabel('Arguments').getByText(`"order_no": ${long},`, { exact: false }).waitFor();
    await button('Edit').click();
    await page.getByLabel(/^Priority/).fill('7');
    await button('Save').click();
    await says('Saved');
    assert.match(await text('schedules/parcels'), new RegExp(`"args":${args}`));
    await button('Edit').click();
    const changed = page.getByLabel('Arguments', { exact: true });
    await changed.fill((await changed.inputValue()).replace('1.0', '2.5'));
    await button('Save').click();
    await page.getByLabel('Arguments').getByText('"rate": 2.5', { exact: false }).waitFor();
    assert.match(await text('schedules/parcels'), new RegExp(`"order_no":${long},"rate":2.5`));
    await ask('DELETE', 'schedules/parcels');
    await ask('POST', `tasks/${id}/cancel`);

    // An id in the address is asked for as it stands there.
    tab.expectStatuses(404);
    for (const [view, path] of [['products', 'products'], ['sales', 'flash-sales'], ['orders', 'orders'], ['users', 'users'], ['webhooks', 'webhooks']]) {
      const asked = page.waitForRequest((request) => request.url().includes(`/api/v1/${path}/`));
      await go(`${view}/${long}`);
      assert.match((await asked).url(), new RegExp(`/${long}(\\?|$)`));
      await page.getByRole('alert').waitFor();
    }
    const asked = page.waitForRequest((request) => request.url().includes('user_id='));
    await go(`orders?user=${long}`);
    assert.match((await asked).url(), new RegExp(`user_id=${long}(&|$)`));
    await says('Nothing here yet');
  });

  test('a time is told by the nights in between, and hours in full', async () => {
    const at = (ms) => new Date(Date.now() + ms);
    const hours = (n) => n * 3_600_000;
    const midnight = (days) => {
      const day = at(0);
      day.setUTCHours(24 * days, 0, 0, 0);
      return day;
    };
    // Two midnights on: between one and two days away, and never tomorrow.
    for (const [eta, words] of [
      [midnight(3), 'in 3 days'],
      [at(hours(50)), /in [23] days/],
      [at(hours(23.9)), 'in 24 hr.'],
      [at(hours(1.95)), 'in 2 hr.'],
    ]) {
      const { id } = await enqueue({ name: 'then', queue: 'later', eta: eta.toISOString() });
      await go(`tasks/${id}`);
      await page.locator('time').filter({ hasText: words }).first().waitFor();
      await ask('POST', `tasks/${id}/cancel`);
    }
    // 25 hours are one night or two: it depends on when they begin.
    const then = midnight(2);
    const { id } = await enqueue({ name: 'then', queue: 'later', eta: then.toISOString() });
    const admins = page;
    const other = await openPage(browser, server.url, { timezoneId: 'UTC' });
    ({ page } = other);
    for (const [ahead, words] of [[hours(47.9), 'in 2 days'], [hours(25), 'in 2 days'], [hours(24), 'tomorrow']]) {
      await page.clock.setFixedTime(new Date(then.getTime() - ahead));
      await go(`tasks/${id}`);
      if (ahead === hours(47.9)) {
        await field('E-mail').fill(ADMIN.email);
        await field('Password').fill(ADMIN.password);
        await button('Log in').click();
      }
      await page.locator('time').filter({ hasText: words }).first().waitFor();
    }
    other.assertClean();
    await other.context.close();
    page = admins;
    await ask('POST', `tasks/${id}/cancel`);
  });

  test('a queue is paused, limited and resumed', async () => {
    await go('queues');
    await page.getByRole('button', { name: 'Pause posters' }).click();
    await dialog().getByText(/What is ready \(\d+\)/).waitFor();
    await confirm('Pause');
    await row('posters').getByText('Paused').waitFor();
    assert.equal(await fetchNothing('posters'), true);
    await page.getByRole('button', { name: 'Limit posters' }).click();
    await dialog().getByLabel(/^Tasks at once/).fill('2');
    await dialog().getByLabel(/^Tasks started per period/).fill('5');
    await dialog().getByRole('button', { name: 'Save' }).click();
    await row('posters').getByText('2 at once · 5 per 1 s').waitFor();
    await page.getByRole('button', { name: 'Resume posters' }).click();
    await confirm('Resume');
    await says('The queue goes on');
    const queue = (await ask('GET', 'queues')).items.find(({ name }) => name === 'posters');
    assert.deepEqual([queue.paused_at, queue.concurrency_max, queue.rate_limit], [undefined, 2, 5]);
    await page.getByRole('button', { name: 'Limit posters' }).click();
    await dialog().getByLabel(/^Tasks at once/).fill('');
    await dialog().getByLabel(/^Tasks started per period/).fill('');
    await dialog().getByRole('button', { name: 'Save' }).click();
    await row('posters').getByText('at once').waitFor({ state: 'detached' });
  });

  test('a worker of the Faktory protocol is seen and told to stop', async () => {
    const worker = await startWorker(server.workersUrl);
    await row('resizer-7').getByText('render-box · 4711 · images').waitFor();
    await page.getByRole('button', { name: 'Quiet resizer-7' }).click();
    await confirm('Quiet');
    await says('The worker is told');
    await row('resizer-7').getByText('Quiet', { exact: true }).first().waitFor();
    // The answer to a beat is a bulk string: its length, then what it says.
    assert.match(await worker.beat(), /^\$/);
    assert.match(await worker.heard(), /quiet/);
    await page.getByRole('button', { name: 'Stop resizer-7' }).click();
    await confirm('Stop');
    await row('resizer-7').getByText('Ending').waitFor();
    worker.stop();
  });

  test('built-in schedules are marked, told in words, and given other times alone', async () => {
    await go('schedules');
    await row('clean_expired_cache').getByText('Built in').waitFor();
    await row('clean_expired_cache').getByText('every day at 01:00').waitFor();
    await row('sync_user_activity').getByText('every 5 min').waitFor();
    await link('clean_expired_cache').click();
    await page.locator('.fires li').nth(9).waitFor();
    assert.equal(await page.locator('.fires li').count(), 10);
    await button('Edit').click();
    await page.getByLabel('Cron expression').fill('15 2,14 * * MON-FRI');
    await says('Monday to Friday at 02:15 and 14:15');
    assert.equal(await page.getByLabel('Arguments').count(), 0);
    await button('Save').click();
    await says('Saved');
    await says('Monday to Friday at 02:15 and 14:15');
    const kept = await ask('GET', 'schedules/clean_expired_cache');
    assert.deepEqual([kept.cron, kept.source], ['15 2,14 * * MON-FRI', 'built_in']);
  });

  test('times are told in words where there are any', async () => {
    await go('schedules/+new');
    const cron = page.getByLabel('Cron expression');
    const plain = 'Minute, hour, day, month, weekday; seconds in front if there are six';
    for (const [expression, words] of [
      ['* * * * *', 'every minute'],
      ['*/5 * * * *', 'every 5 min'],
      ['*/7 * * * *', plain],
      ['*/10 * * * * *', 'every 10 s'],
      ['20,50 * * * *', 'every hour at :20 and :50'],
      ['0 */6 * * *', 'every 6 h'],
      ['@weekly', 'every Sunday at 00:00'],
      ['30 0 9 1 * *', 'on day 1 of the month at 09:00:30'],
      ['0 0 L JAN,7 *', 'in January and July, on the last day of the month at 00:00'],
      ['0 9 1 * MON', plain],
      ['61 3 * * *', plain],
    ]) {
      await cron.fill(expression);
      await says(words);
    }
  });

  test('a schedule is made, run now, paused, changed and removed', async () => {
    tab.expectStatuses(422);
    await go('schedules/+new');
    await field('Name').fill('night.check');
    await page.getByLabel('Cron expression').fill('61 3 * * *');
    await field('Time zone').fill('Asia/Shanghaj');
    await field('Task').selectOption('verify_stock');
    await says('It takes no arguments.');
    assert.equal(await page.getByLabel('Arguments').count(), 0);
    await button('Create').click();
    await page.getByText(/Shanghaj/).filter({ hasText: 'did you mean Asia/Shanghai' }).waitFor();
    await field('Time zone').fill('Asia/Shanghai');
    await button('Create').click();
    await page.locator('.field', { has: page.getByLabel('Cron expression') }).locator('.fault').waitFor();
    await page.getByLabel('Cron expression').fill('30 3 * * *');
    await button('Create').click();
    await heading(/^night\.check/).waitFor();
    await says('every day at 03:30');
    await page.reload();
    await heading(/^night\.check/).waitFor();
    await button('Run now').click();
    await confirm('Run now');
    await heading(/^verify_stock/).waitFor();
    await badge('Completed');
    await go('schedules/night.check');
    const run = row('by hand');
    await run.getByText('Completed').waitFor();
    await run.getByRole('link').click();
    await heading(/^verify_stock/).waitFor();
    await page.goBack();
    await button('Pause').click();
    await confirm('Pause');
    await badge('Paused');
    await button('Edit').click();
    await page.getByLabel('Every so often').check();
    await field('Seconds between two runs').fill('90');
    await button('Save').click();
    await says('every 1.5 min');
    await button('Resume').click();
    await confirm('Resume');
    await badge('Active');
    const made = await ask('GET', 'schedules/night.check');
    assert.deepEqual([made.interval_seconds, made.cron, made.time_zone, made.source], [90, undefined, 'Asia/Shanghai', 'api']);
    await button('Remove').click();
    await confirm('Remove');
    await says('The schedule is removed');
    assert.equal((await call(server.url, 'GET', 'schedules/night.check', { token })).status, 404);
    // Its page is its own, whatever it is called.
    await ask('POST', 'schedules', { name: 'new', cron: '@daily', task: 'verify_stock' });
    await go('schedules');
    await page.getByRole('link', { name: 'new', exact: true }).click();
    await heading(/^new/).waitFor();
    await says('every day at 00:00');
    await ask('DELETE', 'schedules/new');
  });

  let order;

  test('a webhook is made, its secret is shown once, and an order is told to it', async () => {
    tab.expectStatuses(422);
    await go('webhooks');
    await button('New endpoint').click();
    await dialog().getByLabel('Address').fill('ftp://example.com/x');
    await dialog().getByLabel(/^\* everything/).uncheck();
    await dialog().getByRole('button', { name: 'Create' }).click();
    await dialog().getByText('Choose at least one').waitFor();
    await dialog().getByLabel(/^order\.\* all of these/).check();
    await dialog().getByRole('button', { name: 'Create' }).click();
    await dialog().locator('.fault').filter({ hasText: /http/ }).waitFor();
    await dialog().getByLabel('Address').fill(`${receiver.url}/hook`);
    await dialog().getByRole('button', { name: 'Create' }).click();
    const secret = await dialog().getByLabel('The secret that signs').inputValue();
    assert.match(secret, /^whsec_/);
    await confirm('Close');
    await link(`${receiver.url}/hook`).click();
    await heading(`${receiver.url}/hook`).waitFor();
    assert.equal(await page.getByText(secret).count(), 0);

    const product = await ask('POST', 'products', { name: 'Lantern', unit_amount: 12900, currency: 'CNY', stock: 100 });
    order = await ask('POST', 'orders', { items: [{ product_id: product.id, quantity: 3 }] });
    await row('order.created').getByText('Delivered').waitFor();
    const told = receiver.got.find(({ headers }) => headers['webhook-id']);
    assert.equal(told.path, '/hook');
    assert.match(told.headers['webhook-signature'], /^v1,/);
    await page.getByRole('button', { name: /^order\.created/ }).first().click();
    await dialog().getByText('"type": "order.created"', { exact: false }).first().waitFor();
    await dialog().getByText('"took": "it"', { exact: false }).waitFor();
    await dialog().getByText('"as": 738529527931269425', { exact: false }).waitFor();
    await confirm('Close');
  });

  test('a delivery that fails is told, replayed, and the endpoint is steered', async () => {
    receiver.state.status = 410;
    await button('Ping').click();
    await confirm('Ping');
    await row('ping').getByText('Failed').waitFor();
    await row('ping').getByText('410', { exact: false }).first().waitFor();
    await field('Deliveries').selectOption('Only failed ones');
    await row('order.created').waitFor({ state: 'detached' });
    receiver.state.status = 200;
    await page.getByRole('button', { name: /^Replay evt_/ }).first().click();
    await confirm('Replay');
    await says('The event is on its way again');
    await field('Deliveries').selectOption('All');
    await row('ping').getByText('Delivered').waitFor();
    const status = (await ask('GET', 'webhooks/1')).status;
    if (status === 'active') {
      await button('Disable').click();
      await confirm('Disable');
    }
    await badge('Disabled');
    await button('Enable').click();
    await confirm('Enable');
    await badge('Active');
    await button('Edit').click();
    await dialog().getByLabel(/^flash_sale\.sold_out/).check();
    await dialog().getByLabel(/^Description/).fill('Our ERP');
    await dialog().getByRole('button', { name: 'Save' }).click();
    await says('Our ERP');
    await says('order.*, flash_sale.sold_out');
    await button('New secret').click();
    await dialog().getByLabel('Hours that the old one goes on').fill('2');
    await confirm('New secret');
    assert.match(await dialog().getByLabel('The secret that signs').inputValue(), /^whsec_/);
    await confirm('Close');
    await says('Old secret signs until');
    await button('Remove').click();
    await confirm('Remove');
    await says('The endpoint is removed');
    assert.deepEqual((await ask('GET', 'webhooks')).items, []);
  });

  test('a product whose units are all set aside for a sale is not shown as sold out', async () => {
    const product = await ask('POST', 'products', { name: 'Lantern', unit_amount: 5000, currency: 'CNY', stock: 5 });
    const at = (hours) => new Date(Date.now() + hours * 3_600_000).toISOString();
    const sale = await ask('POST', 'flash-sales', {
      product_id: product.id, quantity: 5, unit_amount: 100, starts_at: at(24), ends_at: at(25),
    });
    const row = page.getByRole('row', { name: 'Lantern' });
    await go('products?q=Lantern');
    await row.getByText('5 in sales').waitFor();
    assert.equal(await row.getByText('none left').count(), 0);
    await ask('POST', `flash-sales/${sale.id}/stop`);
    await ask('PATCH', `products/${product.id}`, { stock: 0 });
    await page.reload();
    await row.getByText('none left').waitFor();
  });

  test('a sales report is made, shown and downloaded', async () => {
    await ask('POST', `orders/${order.id}/pay`);
    const other = await ask('POST', 'products', { name: 'Umbrella', unit_amount: 5000, currency: 'CNY', stock: 100 });
    const bought = await ask('POST', 'orders', { items: [{ product_id: other.id, quantity: 9 }] });
    await ask('POST', `orders/${bought.id}/pay`);
    await ask('POST', 'orders', { items: [{ product_id: other.id, quantity: 2 }] });
    await go('reports');
    await page.getByLabel('First day').fill('2026-05-05');
    await page.getByLabel('Last day').fill('2026-05-01');
    tab.expectStatuses(422);
    await button('Make the report').click();
    await page.locator('.fault').filter({ hasText: 'must not be before start_date' }).waitFor();
    await button('Last 7 days').click();
    await button('Make the report').click();
    const facts = page.locator('.facts').first();
    await facts.getByText('¥837.00', { exact: false }).first().waitFor();
    assert.match(await facts.innerText(), /Waiting for payment\s+.*¥100\.00 · 1 order/);
    await page.getByRole('img', { name: /^7 days, the best .+ with .*¥837\.00/ }).waitFor();
    const top = async (caption) => (await page.getByRole('table', { name: caption }).getByRole('row').nth(1).innerText()).replace(/\s+/g, ' ');
    assert.match(await top('Top 10 by amount'), /Umbrella 9 .*450\.00/);
    assert.match(await top('Top 10 by units'), /Umbrella 9 /);
    await page.getByText('As a table').click();
    await page.getByRole('table', { name: 'Turnover by day' }).getByRole('row').nth(7).waitFor();
    const [download] = await Promise.all([page.waitForEvent('download'), link('Download CSV').click()]);
    assert.match(download.suggestedFilename(), /^sales-.*\.csv$/);
    await page.reload();
    await facts.getByText('¥837.00', { exact: false }).first().waitFor();
    await button('Make it anew').click();
    await facts.getByText('¥837.00', { exact: false }).first().waitFor();
  });

  test('staff see the work and change nothing of it', async () => {
    await ask('POST', 'users', { ...STAFF, role: 'staff' });
    const other = await openPage(browser, server.url);
    other.expectStatuses(404);
    const admins = page;
    page = other.page;
    await go('');
    await logIn(STAFF);
    assert.equal(await link('Webhooks').count(), 0);
    await page.getByRole('navigation').getByRole('link', { name: 'Tasks' }).click();
    await heading('Tasks').waitFor();
    await page.getByLabel('Name, as it is written').fill('http_request');
    await page.waitForURL(/name=http_request/);
    await row('http_request').waitFor();
    assert.equal(await link('Enqueue a task').count(), 0);
    await page.getByRole('link', { name: /^http_request/ }).click();
    await badge('Completed');
    assert.equal(await button('Remove').count(), 0);
    await link('Queues').click();
    await says('posters');
    assert.equal(await page.getByRole('button', { name: /^Pause/ }).count(), 0);
    await link('Schedules').click();
    await says('verify_stock');
    assert.equal(await link('New schedule').count(), 0);
    for (const view of ['webhooks', 'webhooks/1', 'tasks/new', 'schedules/+new']) {
      await go(view);
      await heading('There is nothing at this address').waitFor();
    }
    other.assertClean();
    await other.context.close();
    page = admins;
  });

  test('what is gone or misspelt is told', async () => {
    await go('tasks/0199aaaa-0000-7000-8000-000000000000');
    await page.getByRole('alert').waitFor();
    await go('schedules/none.such');
    await page.getByRole('alert').waitFor();
    await go('reports?from=2020-01-01&to=2020-01-02&task=0199aaaa-0000-7000-8000-000000000000');
    await page.getByText('This report is kept no longer', { exact: false }).waitFor();
    await button('Try again').click();
    await says('Nothing was sold in these days.');
  });

  test('every view speaks Chinese and fits a phone', async () => {
    const { items } = await ask('GET', 'tasks?limit=1');
    await ask('POST', 'webhooks', { url: `${receiver.url}/hook`, events: ['*'] });
    const { id } = (await ask('GET', 'webhooks')).items[0];
    const views = ['', 'tasks', 'tasks/new', `tasks/${items[0].id}`, 'queues', 'schedules', 'schedules/+new', 'schedules/verify_stock', 'webhooks', `webhooks/${id}`, 'reports', 'keys'];
    await go('');
    await button('中文').click();
    await heading('概览').waitFor();
    await page.setViewportSize({ width: 375, height: 812 });
    const own = /\b(Log|Save|Search|Task|Queue|Schedule|Name|State|When|Created|Attempts|Arguments|Edit|Remove|Pause|Run|Next|Loading|Page|Built|every|Worker|since|due|ago)\b/;
    for (const view of views) {
      await go(view);
      await page.locator('h1').waitFor();
      await page.waitForFunction(() => !document.querySelector('.loading'));
      const left = (await page.locator('#main').innerText()).split('\n').filter((line) => own.test(line));
      // What the schema of a task's arguments says comes from the server.
      assert.deepEqual(left.filter((line) => view !== 'tasks/new' && view !== 'schedules/+new'), [], view);
      await assertFits(page, view);
    }
  });

  test('nothing went wrong on any view', () => tab.assertClean());
});
