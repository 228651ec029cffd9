// Where the page is: paths below /admin/, so that every view has an address that can be kept,
// reloaded and sent to a colleague. The server answers all of them with the same page.

import { signal } from '@preact/signals';
import type { ComponentChildren } from 'preact';

const BASE = '/admin';

export interface Place {
  /** `/sales/3` */
  path: string;
  query: URLSearchParams;
}

function here(): Place {
  return {
    path: location.pathname.slice(BASE.length).replace(/\/+$/, '') || '/',
    query: new URLSearchParams(location.search),
  };
}

export const place = signal<Place>(here());

addEventListener('popstate', () => (place.value = here()));

export function href(to: string): string {
  return BASE + to;
}

/** Part of a path that may hold any sign. */
export function part(name: string): string {
  return encodeURIComponent(name);
}

export function go(to: string): void {
  history.pushState(null, '', href(to));
  place.value = here();
  scrollTo(0, 0);
}

/** Changes what the address says after the `?` and stays in the view; empty values are left out. */
export function setQuery(values: Record<string, string>): void {
  const query = new URLSearchParams(place.value.query);
  for (const [name, value] of Object.entries(values)) {
    if (value === '') query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  history.replaceState(null, '', href(place.value.path) + (text && `?${text}`));
  place.value = here();
}

interface LinkProps {
  to: string;
  class?: string;
  current?: boolean;
  onClick?: () => void;
  children: ComponentChildren;
}

export function Link({ to, current, onClick, children, ...rest }: LinkProps) {
  const click = (event: MouseEvent) => {
    onClick?.();
    if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(to);
  };
  return (
    <a href={href(to)} onClick={click} aria-current={current ? 'page' : undefined} {...rest}>
      {children}
    </a>
  );
}
