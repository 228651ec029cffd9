// The language of the page: English or Simplified Chinese, chosen by the browser's preference until
// the person chooses; and numbers, money and times as that language writes them.

import { effect, signal } from '@preact/signals';
import type { Problem } from './api';
import { formatMoney } from './money';
import { en } from './words.en';
import { zh, zhProblems, zhReasons } from './words.zh';

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

export function t(word: Word, values: Record<string, string | number> = {}): string {
  const text = language.value === 'zh' ? zh[word] : en[word];
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => {
    const value = values[name];
    if (value === undefined) return whole;
    return typeof value === 'number' ? number(value) : value;
  });
}

/** A state, role or scope in words; one that this page does not know yet is shown as it is. */
export function wordOf(group: 'state' | 'role' | 'scope', name: string): string {
  const key = `${group}_${name}`;
  return key in en ? t(key as Word) : name;
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

export function money(minor: number, currency: string): string {
  return formatMoney(minor, currency, locale());
}

export function moment(at: string): string {
  return new Date(at).toLocaleString(locale(), { dateStyle: 'medium', timeStyle: 'short' });
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
