// The page's words: both languages say the same, and the page knows in Chinese whatever the server may
// say to it. What that is is read from the server's sources and asked from the server itself, so that a
// new code, reason or task without its Chinese text fails here.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { call, startServer } from './support.mjs';

const ts = createRequire(new URL('../../web/package.json', import.meta.url))('typescript');
const SOURCES = fileURLToPath(new URL('../../src', import.meta.url));

/** A module of the page that stands for itself. */
async function page(name) {
  const text = readFileSync(new URL(`../../web/src/${name}`, import.meta.url), 'utf8');
  const { outputText } = ts.transpileModule(text, { compilerOptions: { module: 'ESNext', target: 'ES2022' } });
  return import(`data:text/javascript,${encodeURIComponent(outputText)}`);
}

const { en } = await page('words.en.ts');
const { zh } = await page('words.zh.ts');
const { zhAbouts, zhProblems, zhReasons } = await page('said.zh.ts');

// ── The server's sources ────────────────────────────────────────────────────────────────────────

/** Nothing of these is said to the page. */
const UNHEARD = /^(main|app)\.rs$|^(cli|config|store|monitor)\/|^faktory\/(commands|job|mutate|serve|wire)\.rs$|^order\/import\.rs$|^webhook\/event\.rs$|tests\.rs$/;
/** A reason is told of a field, and so begins like this. */
const REASON = /^(must|is|has|have|may|can't|cannot|does not|do not|never|needs|at most|waits must|give|pass) /;
/** In these, whatever is a sentence is a reason. */
const REASONS_ALL = /^product\/import\.rs$/;
/** Reasons that begin otherwise, by their first words. */
const REASONS_TOO = /^(there is no task |there are as many queues |the account has as many keys |the lines of this product |the SKU is |the stock changed |\{host\} (has the address|could not be looked up)|the header |the \{name\} |`\{name\}` is no )/;
/** What only looks like a reason, and why it is none. */
const NO_REASONS = [
  /^is not known\{/, // of a query parameter: the page sends none but its own
  /^the file can't be read: /, // the text of `malformed_csv`
  /^(can't|may not) /, // beginnings of sentences for the log and the terminal
  /^(has no valid (name|value)|is set by the connection)$/, // ends of the reason for a header
];

/** Texts in Rust with what stands before each; comments, tests and lines for the log are left out. */
function textsOf(source) {
  const [code] = source.split(/#\[cfg\(test\)\]\s*\nmod /);
  const found = [];
  for (const match of code.matchAll(/\/\/[^\n]*|'(?:\\.|[^'\\])'|"((?:\\[^]|[^"\\])*)"/g)) {
    if (match[1] === undefined) continue;
    const before = code.slice(Math.max(0, match.index - 160), match.index);
    if (/(tracing::\w+|(?:warn|error|info|debug)|assert\w*)!\([^;]*$|expect\($/.test(before) && !/#\[error\($/.test(before)) continue;
    found.push([match[1].replace(/\\\n\s*/g, '').replaceAll('\\"', '"'), before]);
  }
  return found;
}

const sources = readdirSync(SOURCES, { recursive: true })
  .filter((name) => name.endsWith('.rs') && !UNHEARD.test(name))
  .map((name) => [name, textsOf(readFileSync(`${SOURCES}/${name}`, 'utf8'))]);

/** A format's text with something in each place. */
function filled(format) {
  return format.replace(/\{\{|\}\}|\{[^}]*\}/g, (place) => {
    if (place === '{{' || place === '}}') return place[0];
    if (place.includes('what')) return 'has no valid name';
    return /\?\}$/.test(place) ? '"7"' : /hint|near/.test(place) ? '' : '7';
  });
}

function codes() {
  const found = new Set();
  for (const [, texts] of sources) {
    for (const [text, before] of texts) {
      const isCode = /(?:Problem::(?:new|conflict|not_found)\(|StatusCode::[A-Z_]+,|unavailable\()\s*$/.test(before);
      if (isCode && /^[a-z]+(_[a-z]+)*$/.test(text)) found.add(text);
    }
  }
  return found;
}

function reasons() {
  const found = new Map();
  for (const [name, texts] of sources) {
    for (const [text] of texts) {
      const isReason = REASON.test(text) || REASONS_TOO.test(text) || (REASONS_ALL.test(name) && / \S+ /.test(text));
      if (isReason && !NO_REASONS.some((one) => one.test(text))) found.set(text, name);
    }
  }
  return found;
}

const isChinese = (text) => /\p{Script=Han}/u.test(text ?? '');
const inChinese = (reason) => {
  const fit = zhReasons.find(([pattern]) => pattern.test(reason));
  return fit && reason.replace(fit[0], fit[1]);
};

describe('the words', () => {
  let server;
  let token;
  before(async () => {
    server = await startServer();
    const body = { token: server.setupLink.split('#setup=')[1], email: 'mei@example.com', name: 'Mei', password: 'tea and lanterns 88' };
    token = (await call(server.url, 'POST', 'auth/setup', { body })).body.token;
  });
  after(() => server.stop());

  test('are the same in both languages, with the same places for values', () => {
    assert.deepEqual(Object.keys(en).sort(), Object.keys(zh).sort());
    const places = (text) => [...new Set([...text.matchAll(/\{(\w+)/g)].map(([, name]) => name))].sort();
    for (const word of Object.keys(en)) assert.deepEqual(places(zh[word]), places(en[word]), word);
  });

  test('tell one thing from many', () => {
    const many = Object.entries(en).filter(([, text]) => !text.includes('{n:') && /\{n\} (?!(?:min|s|h|in|of|more|per|failed|unfinished|at once|so far|refused|under|pinned)\b)[a-z]+/.test(text));
    assert.deepEqual(many, [], 'one row was, two rows were: {n:row was|rows were}');
  });

  test('are there in Chinese for each code of the server', () => {
    const known = codes();
    assert.ok(known.size > 60, [...known].join(' '));
    const own = ['validation_failed']; // the page has its own text
    assert.deepEqual([...known].filter((code) => !isChinese(zhProblems[code]) && !own.includes(code)), []);
    assert.deepEqual(Object.keys(zhProblems).filter((code) => !known.has(code)), [], 'no such code');
  });

  test('are there in Chinese for each reason of the server', () => {
    const known = reasons();
    assert.ok(known.size > 80, [...known.keys()].join('\n'));
    const missing = [...known].filter(([format]) => !isChinese(inChinese(filled(format))));
    assert.deepEqual(missing, []);
  });

  test('are there in Chinese for each built-in task, its arguments, and each kind of event', async () => {
    const ask = async (path) => (await call(server.url, 'GET', path, { token })).body.items;
    const [tasks, events] = [await ask('task-types'), await ask('webhook-event-types')];
    assert.ok(tasks.length > 8 && events.length > 8);
    const told = [
      ...tasks.map((task) => task.name),
      ...tasks.flatMap((task) => Object.keys(task.args_schema.properties ?? {}).map((name) => `${task.name}.${name}`)),
      ...events.map((event) => event.type),
    ];
    assert.deepEqual(told.filter((name) => !isChinese(zhAbouts[name])), []);
    assert.deepEqual(Object.keys(zhAbouts).filter((name) => !told.includes(name)), [], 'there is no such thing');
  });

  test('say in Chinese what a person is told most', async () => {
    const told = async (method, path, body) => {
      const answer = await call(server.url, method, path, { token, body });
      assert.equal(answer.status, 422, JSON.stringify(answer.body));
      return answer.body.errors.map((error) => inChinese(error.reason));
    };
    const user = (password) => told('POST', 'users', { email: 'a@example.com', name: 'A', role: 'staff', password });
    assert.deepEqual(await user('password1'), ['这是最常用的密码之一，请换一个']);
    assert.deepEqual(await user('short'), ['至少须有 8 个字符']);
    const cron = (cron) => told('POST', 'schedules', { name: 's', cron, task: 'verify_stock' });
    assert.deepEqual(await cron('61 3 * * *'), ['分“61”无法识别，须为 0 至 59，可配合 * , - /']);
    assert.deepEqual(await cron('0 0 30 2 *'), ['永远不会触发：没有符合的日期']);
    const [hook] = await told('POST', 'webhooks', { url: 'http://127.0.0.1/x', events: ['*'] });
    assert.match(hook, /^127\.0\.0\.1 指向内部地址 127\.0\.0\.1/);
    const post = async (path, type, body) => {
      const headers = { Authorization: `Bearer ${token}`, 'Content-Type': type };
      const answer = await fetch(`${server.url}/api/v1/${path}`, { method: 'POST', headers, body });
      return (await answer.json()).errors.map((error) => inChinese(error.reason));
    };
    const long = '{"name":"x","args":{"no":99999999999999999999}}';
    assert.deepEqual(await post('tasks', 'application/json', long), ['数字超出 64 位，无法原样保存，请改为文本']);
    const file = 'sku,name,price,currency\nA-1,Tea,12.3456,CNY\n';
    assert.deepEqual(await post('products/import', 'text/csv', file), ['不是该货币的有效金额，例如 12.50']);
  });
});

describe('JSON that loses no digit', async () => {
  const { parseWritten, printWritten, readAnswer, idOf } = await page('json.ts');

  test('comes back as it was written', () => {
    for (const text of [
      '{"order_no":738529527931269425}',
      '[18446744073709551615,-9223372036854775808,1.0,1.50,1e400,-0,0.1,7]',
      '{"a":"738529527931269425","b\\"c":"\\\\","n12":"n12","t":"t","é":"1.0 \\"1.0\\""}',
      '{"":{"738529527931269425":[]},"x":null,"y":[true,false,"",{}]}',
      '"1.0"',
      '1.0',
      '{"__proto__":1.0}',
    ]) {
      assert.equal(printWritten(parseWritten(text)), text);
    }
    assert.equal(printWritten(parseWritten(' { "a" : [ 1.0 , "b" ] } '), 2), JSON.stringify({ a: [1, 'b'] }, null, 2).replace('1', '1.0'));
    for (const text of ['', '{', '{"a":1.}', '01', '{a:1}', '"\n"']) assert.throws(() => parseWritten(text), SyntaxError);
    assert.throws(() => parseWritten('{"a":1.0,}'), /position 9/);
    assert.equal(printWritten(undefined), undefined);
  });

  test('is told from the rest of an answer, whose numbers are numbers', () => {
    const read = readAnswer('{"id":738529527931269425,"latency":1.0,"count":7,"args":{"id":1.0},"items":[{"user_id":9007199254740993}]}');
    assert.deepEqual([read.latency, read.count, String(read.args.id)], [1, 7, '1.0']);
    assert.equal(`${read.id} ${read.items[0].user_id}`, '738529527931269425 9007199254740993');
    assert.equal(read.id, idOf('738529527931269425'));
    assert.notEqual(read.id, idOf('738529527931269426'));
    assert.equal(idOf('7'), 7);
  });

  test('is quick, also where there is much of it', () => {
    const text = JSON.stringify({ args: Array.from({ length: 20_000 }, (_, at) => ({ at, text: 'x"\\'.repeat(5) })) });
    assert.equal(printWritten(parseWritten(text)), text);
    const long = JSON.stringify('\\"x'.repeat(1_000_000));
    assert.equal(printWritten(parseWritten(long)), long);
  });
});
