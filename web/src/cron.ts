// What a schedule's times mean, in words: the forms that people use; any other is shown as it was
// written. When a schedule fires is the server's alone to say.

import { calendarName, listed, t, took } from './words';

const NICKNAMES: Record<string, string> = {
  '@yearly': '0 0 1 1 *',
  '@annually': '0 0 1 1 *',
  '@monthly': '0 0 1 * *',
  '@weekly': '0 0 * * 0',
  '@daily': '0 0 * * *',
  '@midnight': '0 0 * * *',
  '@hourly': '0 * * * *',
};
const WEEKDAYS = ['SUN', 'MON', 'TUE', 'WED', 'THU', 'FRI', 'SAT'];
const MONTHS = ['JAN', 'FEB', 'MAR', 'APR', 'MAY', 'JUN', 'JUL', 'AUG', 'SEP', 'OCT', 'NOV', 'DEC'];

/** `7`, `MON`, `1-5`, `1,3` as numbers up to `most`; `undefined` for what is not just a few of them. */
function numbersIn(field: string, most: number, names: string[] = [], first = 0): number[] | undefined {
  const one = (text: string) => {
    const named = names.indexOf(text.toUpperCase());
    if (named >= 0) return named + first;
    return /^\d{1,2}$/.test(text) && Number(text) >= first && Number(text) <= most ? Number(text) : undefined;
  };
  const found: number[] = [];
  for (const item of field.split(',')) {
    const [from, to, more] = item.split('-').map(one);
    if (from === undefined || more !== undefined) return undefined;
    if (!item.includes('-')) found.push(from);
    else if (to === undefined || to < from) return undefined;
    else for (let at = from; at <= to; at += 1) found.push(at);
  }
  return found;
}

// A step counts anew in each hour or day: only where it goes evenly into the `whole` is it every so many.
function everyNth(field: string, whole: number): number | undefined {
  const nth = Number(/^(?:\*|0)\/(\d{1,2})$/.exec(field)?.[1]);
  return nth > 0 && whole % nth === 0 ? nth : undefined;
}

function clock(hour: number, minute: number, second: number): string {
  const two = (value: number) => String(value).padStart(2, '0');
  return `${two(hour)}:${two(minute)}${second > 0 ? `:${two(second)}` : ''}`;
}

/** On which days; `undefined` for what has no short words. */
function daysOf(day: string, month: string, weekday: string): string | undefined {
  const months = month === '*' ? undefined : numbersIn(month, 12, MONTHS, 1);
  if (month !== '*' && !months) return undefined;
  const inMonths = months ? t('cron_in_months', { months: listed(months.map((at) => calendarName('month', at))) }) : '';
  if (day === '*' && weekday === '*') return (months ? inMonths : '') + t('cron_daily');
  if (day !== '*' && weekday !== '*') return undefined;
  if (weekday !== '*') {
    const days = numbersIn(weekday, 7, WEEKDAYS);
    if (!days) return undefined;
    if (days.join() === '1,2,3,4,5') return inMonths + t('cron_workdays');
    return inMonths + t('cron_weekdays', { days: listed(days.map((at) => calendarName('weekday', at))) });
  }
  if (day === 'L') return inMonths + t('cron_last_day');
  const days = numbersIn(day, 31, [], 1);
  return days && inMonths + t('cron_month_days', { days: listed(days.map(String)) });
}

/** An expression in words, or `undefined` where it has no short ones. */
export function cronWords(expression: string): string | undefined {
  const text = expression.trim();
  const fields = (NICKNAMES[text.toLowerCase()] ?? text).split(/\s+/);
  if (fields.length === 5) fields.unshift('0');
  const [seconds = '', minute = '', hour = '', day = '', month = '', weekday = ''] = fields;
  if (fields.length !== 6) return undefined;
  const [second, ...furtherSeconds] = numbersIn(seconds, 59) ?? [];
  const isDaily = day === '*' && month === '*' && weekday === '*';
  if (minute === '*' && hour === '*' && isDaily) {
    const nth = everyNth(seconds, 60);
    if (seconds === '*' || nth === 1) return t('cron_every_second');
    if (nth) return t('every_time', { time: took(nth * 1000) });
    return second === 0 && furtherSeconds.length === 0 ? t('cron_every_minute') : undefined;
  }
  if (second === undefined || furtherSeconds.length > 0) return undefined;
  if (hour === '*' && isDaily) {
    const nth = everyNth(minute, 60);
    if (nth && second === 0) return t('every_time', { time: took(nth * 60_000) });
    const minutes = numbersIn(minute, 59);
    if (minutes && second === 0) return t('cron_hourly', { minutes: listed(minutes.map((at) => clock(0, at, 0).slice(2))) });
    return undefined;
  }
  const days = daysOf(day, month, weekday);
  const minutes = numbersIn(minute, 59);
  if (!days || minutes?.length !== 1) return undefined;
  const at = minutes[0] ?? 0;
  const nth = everyNth(hour, 24);
  if (nth && at === 0 && isDaily) return t('every_time', { time: took(nth * 3_600_000) });
  const hours = numbersIn(hour, 23);
  if (!hours || hours.length > 6) return undefined;
  return t('cron_at', { days, times: listed(hours.map((hour) => clock(hour, at, second))) });
}

interface Times {
  cron?: string;
  interval_seconds?: number;
}

/** When a schedule fires, in words or as it was written. */
export function timesText({ cron, interval_seconds }: Times): string {
  if (interval_seconds !== undefined) return t('every_time', { time: took(interval_seconds * 1000) });
  return cron === undefined ? '' : (cronWords(cron) ?? cron);
}
