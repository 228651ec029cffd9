// Loading: once, again on demand, and over and over while the page is looked at.
//
// Invariants: an older answer never replaces a newer one; a refresh never begins before the one
// before it has ended, and none runs while the page is hidden; what was shown stays until there is
// something newer.

import { useEffect, useRef, useState } from 'preact/hooks';
import { Problem } from './api';
import { printWritten } from './json';

export interface Loaded<T> {
  data: T | undefined;
  problem: Problem | undefined;
  isLoading: boolean;
  again: () => void;
}

function asProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem(0, 'page_failed', String(error));
}

/** Runs `load` when `deps` change and, with `everyMs`, again and again while the page is visible. */
export function useLoad<T>(load: () => Promise<T>, deps: unknown[], everyMs?: number): Loaded<T> {
  const [shown, setShown] = useState<Omit<Loaded<T>, 'again'>>({
    data: undefined,
    problem: undefined,
    isLoading: true,
  });
  const start = useRef(() => {});

  useEffect(() => {
    let isOver = false;
    let isRunning = false;
    let isWanted = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const run = async () => {
      clearTimeout(timer);
      // Asked for while one runs: what runs may have read before the change that is to be shown.
      isWanted = isRunning;
      if (isOver || isRunning) return;
      isRunning = true;
      setShown((before) => (before.isLoading ? before : { ...before, isLoading: true }));
      try {
        const data = await load();
        if (!isOver) setShown({ data, problem: undefined, isLoading: false });
      } catch (error) {
        if (!isOver) setShown((before) => ({ ...before, problem: asProblem(error), isLoading: false }));
      }
      isRunning = false;
      if (isWanted) return void run();
      if (everyMs && !isOver && !document.hidden) timer = setTimeout(run, everyMs);
    };
    const wake = () => {
      if (everyMs && !document.hidden) void run();
    };
    start.current = () => void run();
    document.addEventListener('visibilitychange', wake);
    void run();
    return () => {
      isOver = true;
      clearTimeout(timer);
      document.removeEventListener('visibilitychange', wake);
    };
  }, deps);

  return { ...shown, again: () => start.current() };
}

export interface Page<T> {
  items: T[];
  next_cursor?: string;
}

export interface Paged<T> extends Loaded<Page<T>> {
  number: number;
  next: (() => void) | undefined;
  previous: (() => void) | undefined;
}

/** A list that the server gives by cursor; `deps` are what it is filtered by. */
export function usePages<T>(
  load: (cursor: string | undefined) => Promise<Page<T>>,
  deps: unknown[],
  everyMs?: number,
): Paged<T> {
  const key = printWritten(deps) ?? '';
  const [trail, setTrail] = useState<{ key: string; cursors: string[] }>({ key, cursors: [] });
  // Another filter is another list: its pages begin anew.
  const cursors = trail.key === key ? trail.cursors : [];
  const cursor = cursors.at(-1);
  const loaded = useLoad(() => load(cursor), [key, cursor], everyMs);
  const next = loaded.data?.next_cursor;
  return {
    ...loaded,
    number: cursors.length + 1,
    next: next === undefined ? undefined : () => setTrail({ key, cursors: [...cursors, next] }),
    previous: cursors.length === 0 ? undefined : () => setTrail({ key, cursors: cursors.slice(0, -1) }),
  };
}

/** The present moment, moving on each second: for countdowns. */
export function useNow(): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}
