// Reads Prometheus's text format and turns counters into rates for the views that show them.

import { signal } from '@preact/signals';
import { readMetrics } from './api';

/** The figures of one moment, summed over labels where a label does not matter here. */
export interface Sample {
  /** Milliseconds of the page's own monotonic clock. */
  at: number;
  requests: number;
  accepted: number;
  refused: number;
  commits: number;
  commitSeconds: number;
  drift: number | undefined;
  memoryBytes: number | undefined;
  connections: number | undefined;
  /** Reads of the cache, whatever answered them. */
  reads: number;
  /** Those that needed no load. */
  hits: number;
}

export interface Rates {
  requests: number;
  accepted: number;
  refused: number;
  /** Mean of the commits between two samples; `undefined` when there was none. */
  commitMs: number | undefined;
  reads: number;
  /** Part of the reads that needed no load, 0 to 1; `undefined` when there was none. */
  hitRatio: number | undefined;
}

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;

export function parse(text: string, at: number): Sample {
  const sums = new Map<string, number>();
  const add = (name: string, value: number) => sums.set(name, (sums.get(name) ?? 0) + value);
  for (const line of text.split('\n')) {
    const match = LINE.exec(line);
    if (!match) continue;
    const [, name = '', labels = '', text = ''] = match;
    const value = Number(text);
    if (name === 'flash_sale_claims_total') {
      // An answer given again under its key is neither: its claim was counted when it was granted.
      if (labels.includes('outcome="accepted"')) add('accepted', value);
      else if (!labels.includes('outcome="replayed"')) add('refused', value);
    } else {
      add(name, value);
      // Each read asks memory first.
      if (/^cache_(hits|misses)_total$/.test(name) && labels.includes('"memory"')) add('reads', value);
    }
  }
  const sum = (name: string) => sums.get(name) ?? 0;
  return {
    at,
    requests: sum('http_requests_total'),
    accepted: sum('accepted'),
    refused: sum('refused'),
    commits: sum('db_commit_seconds_count'),
    commitSeconds: sum('db_commit_seconds_sum'),
    drift: sums.get('stock_drift_units'),
    memoryBytes: sums.get('process_memory_usage_bytes'),
    connections: sums.get('http_connections_open'),
    reads: sum('reads'),
    hits: sum('cache_hits_total'),
  };
}

function ratesBetween(before: Sample, after: Sample): Rates {
  const seconds = Math.max((after.at - before.at) / 1000, 0.001);
  // A counter that fell belongs to a process that started anew.
  const rate = (from: number, to: number) => Math.max(to - from, 0) / seconds;
  const commits = after.commits - before.commits;
  const reads = after.reads - before.reads;
  return {
    requests: rate(before.requests, after.requests),
    accepted: rate(before.accepted, after.accepted),
    refused: rate(before.refused, after.refused),
    commitMs: commits > 0 ? ((after.commitSeconds - before.commitSeconds) / commits) * 1000 : undefined,
    reads: rate(before.reads, after.reads),
    hitRatio: reads > 0 ? (after.hits - before.hits) / reads : undefined,
  };
}

const RATES_KEPT = 90;

export interface Window {
  last: Sample | undefined;
  /** Oldest first, at most [`RATES_KEPT`]. */
  rates: Rates[];
}

/** Outlives the view, so that coming back to the overview shows the minutes before. */
export const metrics = signal<Window>({ last: undefined, rates: [] });

/** How often a view that shows them takes a sample. */
export const METRICS_MS = 2000;
const SAMPLE_MS_MIN = 500;

export async function takeSample(): Promise<Window> {
  const text = await readMetrics();
  const sample = parse(text, performance.now());
  const { last, rates } = metrics.value;
  // Two samples at nearly the same moment give a rate of nothing but noise.
  if (last && sample.at - last.at < SAMPLE_MS_MIN) return metrics.value;
  const next = last ? [...rates, ratesBetween(last, sample)].slice(-RATES_KEPT) : rates;
  return (metrics.value = { last: sample, rates: next });
}
