// Money: whole minor units in the API, major units for people.
//
// Never through floating point on the way in: what a person typed is cut as text. The exponents are
// ISO 4217's, the same as in `src/product/currency.rs`; browsers' own tables differ.

const NO_DECIMALS = 'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF'.split(' ');
const THREE_DECIMALS = 'BHD IQD JOD KWD LYD OMR TND'.split(' ');
const FOUR_DECIMALS = 'CLF UYW'.split(' ');

export function exponent(currency: string): number {
  if (NO_DECIMALS.includes(currency)) return 0;
  if (THREE_DECIMALS.includes(currency)) return 3;
  return FOUR_DECIMALS.includes(currency) ? 4 : 2;
}

/** `29900` as `299.00`, for an input. */
export function toMajor(minor: number, currency: string): string {
  const digits = exponent(currency);
  const text = String(minor).padStart(digits + 1, '0');
  return digits === 0 ? text : `${text.slice(0, -digits)}.${text.slice(-digits)}`;
}

/** `299` or `299.9` as `29900` and `29990`; `undefined` for what is no amount of this currency. */
export function toMinor(text: string, currency: string): number | undefined {
  const match = /^(\d+)(?:[.,](\d*))?$/.exec(text.trim());
  if (!match) return undefined;
  const digits = exponent(currency);
  const part = (match[2] ?? '').replace(/0+$/, '');
  if (part.length > digits) return undefined;
  const minor = Number(match[1] + part.padEnd(digits, '0'));
  return Number.isSafeInteger(minor) ? minor : undefined;
}

export function formatMoney(minor: number, currency: string, locale: string): string {
  const digits = exponent(currency);
  const amount = minor / 10 ** digits;
  if (!/^[A-Z]{3}$/.test(currency)) return `${toMajor(minor, currency)} ${currency}`;
  return new Intl.NumberFormat(locale, {
    style: 'currency',
    currency,
    currencyDisplay: 'narrowSymbol',
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  }).format(amount);
}
