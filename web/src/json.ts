// JSON that loses no digit: what a shop keeps with its tasks is shown, changed and sent back as it was
// written, also where a JavaScript number would round it.
//
// Invariants: every number of free-form JSON is sent back in the digits in which it came; an id is equal
// to itself and to no other; all other numbers of an answer are plain numbers. The browser's own parser
// does the work, on a text in which the numbers that it would change stand as texts.

/** A number that JavaScript would print otherwise: `738529527931269425`, `1.0`, `1e400`. */
export class Written {
  constructor(readonly text: string) {}

  toString(): string {
    return this.text;
  }
}

/** A text, with the colon where it is a name; or a number. */
const TOKENS = /"[^"\\]*(?:\\[^][^"\\]*)*"(\s*:)?|-?\d[\d.eE+-]*/g;

// While the parser works on it, each text is led by a letter: these two can't be taken for each other.
const TEXT = 't';
const NUMBER = 'n';

/** As `JSON.parse`, with a [`Written`] for each number that JavaScript would print otherwise. */
export function parseWritten(text: string): unknown {
  // What is no JSON is told with the place that it has in the text itself.
  JSON.parse(text);
  const marked = text.replace(TOKENS, (token, colon?: string) => {
    if (colon !== undefined) return token;
    if (token.startsWith('"')) return `"${TEXT}${token.slice(1)}`;
    return String(Number(token)) === token ? token : `"${NUMBER}${token}"`;
  });
  return JSON.parse(marked, (_, value: unknown) => {
    if (typeof value !== 'string') return value;
    return value.startsWith(NUMBER) ? new Written(value.slice(1)) : value.slice(1);
  });
}

/** As `JSON.stringify`, with the digits of each [`Written`]; `undefined` for what is no JSON. */
export function printWritten(value: unknown, indent?: number): string | undefined {
  const marked = JSON.stringify(
    value,
    (_, one: unknown) => {
      if (one instanceof Written || typeof one === 'bigint') return NUMBER + String(one);
      return typeof one === 'string' ? TEXT + one : one;
    },
    indent,
  ) as string | undefined;
  return marked?.replace(TOKENS, (token, colon?: string) => {
    if (colon !== undefined || !token.startsWith('"')) return token;
    return token[1] === NUMBER ? token.slice(2, -1) : `"${token.slice(2)}`;
  });
}

/** Members of answers that hold JSON of the shop's own. */
const FREE = new Set(['args', 'metadata', 'result', 'body']);
const IDS = /^(id|missing)$|_ids?$/;

/** An id as the API writes it: a number as far as those tell it from its neighbours. */
export function idOf(text: string): number {
  const id = Number(text);
  // An integer of any size is compared, printed and used as a key just like a number.
  return Number.isSafeInteger(id) || !/^-?\d+$/.test(text) ? id : (BigInt(text) as unknown as number);
}

function settled(value: unknown, name: string): unknown {
  if (FREE.has(name)) return value;
  if (value instanceof Written) return IDS.test(name) ? idOf(value.text) : Number(value.text);
  if (Array.isArray(value)) return value.map((one) => settled(one, name));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([member, one]) => [member, settled(one, member)]));
}

/** An answer of the API. */
export function readAnswer(text: string): unknown {
  return settled(parseWritten(text), '');
}
