// The language of the page: English or Simplified Chinese, chosen by the browser's preference until
// the person chooses; and numbers, money and times as that language writes them.

import { effect, signal } from '@preact/signals';
import type { Problem } from './api';
import { formatMoney } from './money';
import { zhAbouts, zhProblems, zhReasons } from './said.zh';
import { en } from './words.en';
import { zh } from './words.zh';

export type Language = 'en' | 'zh';
export type Word = keyof typeof en;

const KEPT_AS = 'onrush.language';

function kept(): string | null {
  try {
    return localStorage.getItem(KEPT_AS);
  } catch {
    // A browser may forbid storage; then the choice lasts as long as the page.
    return null;
  }
}

function first(): Language {
  const chosen = kept();
  if (chosen === 'en' || chosen === 'zh') return chosen;
  return navigator.languages.find((tag) => /^(en|zh)\b/.test(tag))?.startsWith('zh') ? 'zh' : 'en';
}

export const language = signal<Language>(first());

export function speak(chosen: Language): void {
  language.value = chosen;
  try {
    localStorage.setItem(KEPT_AS, chosen);
  } catch {
    // See `kept`.
  }
}

function locale(): string {
  return language.value === 'zh' ? 'zh-CN' : 'en';
}

effect(() => {
  document.documentElement.lang = locale();
});

/** `{n}` stands for a value, `{n:row was|rows were}` for what goes with one and with any other number. */
export function t(word: Word, values: Record<string, string | number> = {}): string {
  const text = language.value === 'zh' ? zh[word] : en[word];
  return text.replace(/\{(\w+)(?::([^|}]*)\|([^}]*))?\}/g, (whole, name: string, one?: string, many?: string) => {
    const value = values[name];
    if (value === undefined) return whole;
    // A figure that was written before, such as `1`, is told like the number.
    if (one !== undefined && many !== undefined) return String(value) === '1' ? one : many;
    return typeof value === 'number' ? number(value) : value;
  });
}

export type WordGroup =
  | 'state'
  | 'task_state'
  | 'worker_state'
  | 'outcome'
  | 'role'
  | 'scope'
  | 'source'
  | 'cause'
  | 'delimiter'
  | 'overlap'
  | 'missed'
  | 'level'
  | 'level_state'
  | 'origin';

/** What the API calls by a word; one that this page does not know yet is shown as it is. */
export function wordOf(group: WordGroup, name: string): string {
  const key = `${group}_${name}`;
  return key in en ? t(key as Word) : name;
}

/** What the server says of a built-in task, of one of its arguments (`task.argument`), or of a kind of event. */
export function aboutOf(name: string, about: string): string {
  return (language.value === 'zh' && zhAbouts[name]) || about;
}

export function problemText(problem: Problem): string {
  if (problem.code === 'unreachable') return t('unreachable');
  if (problem.code === 'validation_failed') return t('check_fields');
  return (language.value === 'zh' && zhProblems[problem.code]) || problem.message;
}

export function reasonText(reason: string): string {
  if (language.value !== 'zh') return reason;
  for (const [pattern, text] of zhReasons) {
    if (pattern.test(reason)) return reason.replace(pattern, text);
  }
  return reason;
}

export function number(value: number, decimals = 0): string {
  return value.toLocaleString(locale(), { maximumFractionDigits: decimals });
}

/** With all its decimals, so that figures below each other can be compared. */
function fixed(value: number, decimals: number): string {
  return value.toLocaleString(locale(), { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

export function money(minor: number, currency: string): string {
  return formatMoney(minor, currency, locale());
}

export function moment(at: string): string {
  return new Date(at).toLocaleString(locale(), { dateStyle: 'medium', timeStyle: 'short' });
}

/** With the seconds, for whoever looks closely. */
export function exactly(at: string): string {
  return new Date(at).toLocaleString(locale(), { dateStyle: 'medium', timeStyle: 'medium' });
}

/** `15:04:05.123`: for lines of a log. */
export function clock(at: string): string {
  const date = new Date(at);
  return `${date.toLocaleTimeString('sv')}.${String(date.getMilliseconds()).padStart(3, '0')}`;
}

/** In another zone than the browser's, with that zone's name; a zone unknown here is left alone. */
export function momentIn(at: string, zone: string): string {
  try {
    return new Date(at).toLocaleString(locale(), { dateStyle: 'short', timeStyle: 'long', timeZone: zone });
  } catch {
    return zone;
  }
}

const DAY_MS = 86_400_000;
const STEPS: [Intl.RelativeTimeFormatUnit, number][] = [
  ['hour', 3_600_000],
  ['minute', 60_000],
  ['second', 1000],
];

/** Days of the calendar between now and then, as a person counts them: by the nights. */
function nights(now: Date, then: Date): number {
  // Days of the local calendar, put on a clock without summer time.
  const day = (at: Date) => Date.UTC(at.getFullYear(), at.getMonth(), at.getDate());
  return (day(then) - day(now)) / DAY_MS;
}

/** `3 minutes ago`, `in 2 hours`, `tomorrow`: how far a moment is away. */
export function relative(ms: number): string {
  const format = new Intl.RelativeTimeFormat(locale(), { numeric: 'auto', style: 'short' });
  const now = new Date();
  if (Math.abs(ms) >= DAY_MS) return format.format(nights(now, new Date(now.getTime() + ms)), 'day');
  const [unit, step] = STEPS.find(([, step]) => Math.abs(ms) >= step) ?? ['second', 1000];
  return format.format(Math.round(ms / step), unit);
}

/** `38 ms`, `4.2 s`, `12 min`, `2.5 h`: how long something took. */
export function took(ms: number): string {
  if (ms < 1000) return `${number(Math.max(0, ms))} ms`;
  if (ms < 60_000) return t('n_seconds', { n: number(ms / 1000, 1) });
  return ms < 3_600_000 ? t('minutes', { n: number(ms / 60_000, 1) }) : t('n_hours', { n: number(ms / 3_600_000, 1) });
}

/** `64 µs`, `9.50 ms`, `38.2 ms`, `4.2 s`: where parts of a millisecond count. */
export function closely(ms: number): string {
  if (ms < 0.1) return `${number(ms * 1000)} µs`;
  if (ms >= 1000) return took(ms);
  return `${fixed(ms, ms < 10 ? 2 : 1)} ms`;
}

const SIZES = ['B', 'KB', 'MB', 'GB', 'TB'];

/** `512 B`, `3.4 MB`, `57 MB` */
export function size(bytes: number): string {
  const step = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), SIZES.length - 1);
  const value = bytes / 1024 ** step;
  return `${number(value, step > 0 && value < 10 ? 1 : 0)} ${SIZES[step]}`;
}

/** `98.3 %`; only what is whole is called 100 %. */
export function percent(share: number): string {
  return `${fixed(Math.floor(share * 1000) / 10, 1)} %`;
}

/** A day's date, such as `2026-11-11`, as it is written here; no zone moves it. */
export function day(date: string): string {
  return new Date(`${date}T00:00:00Z`).toLocaleDateString(locale(), { dateStyle: 'medium', timeZone: 'UTC' });
}

/** The days of the week, Sunday first, and the months, as cron counts them. */
export function calendarName(kind: 'weekday' | 'month', at: number): string {
  // 2023 began on a Sunday.
  const date = kind === 'weekday' ? new Date(Date.UTC(2023, 0, 1 + (at % 7))) : new Date(Date.UTC(2023, at - 1, 1));
  return date.toLocaleDateString(locale(), { [kind]: 'long', timeZone: 'UTC' });
}

/** `a, b and c` */
export function listed(parts: string[]): string {
  return new Intl.ListFormat(locale()).format(parts);
}

/** `2 d 03:04:05` or `04:05`: how long it still takes. */
export function duration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const two = (value: number) => String(value).padStart(2, '0');
  const days = Math.floor(seconds / 86_400);
  const hours = Math.floor(seconds / 3600) % 24;
  const rest = `${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
  if (days > 0) return `${days} ${language.value === 'zh' ? '天' : 'd'} ${two(hours)}:${rest}`;
  return hours > 0 ? `${hours}:${rest}` : rest;
}

export function timeZone(): string {
  return Intl.DateTimeFormat().resolvedOptions().timeZone;
}
