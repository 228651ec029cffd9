// The API client and the session.
//
// Types come from the specification, so an endpoint that changes breaks the type check. Invariants:
// the session's cookie is never readable here; every write carries the session's CSRF token; a
// request that finds the session gone waits for the login and is then sent again, so that no view
// and no half-filled form is lost.

import { effect, signal } from '@preact/signals';
import createClient from 'openapi-fetch';
import type { components, paths } from '../generated/openapi';
import { printWritten, readAnswer } from './json';

export type Schemas = components['schemas'];
export type User = Schemas['UserView'];
export type Product = Schemas['ProductView'];
export type Sale = Schemas['SaleView'];
export type Order = Schemas['OrderView'];
export type Task = Schemas['TaskView'];
export type Schedule = Schemas['ScheduleView'];

export interface FieldError {
  field: string;
  reason: string;
}

/** A failure as the server told it (RFC 9457), or as the network did. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly errors: FieldError[] = [],
  ) {
    super(detail);
  }
}

/** What is wrong with one field, found before anything was sent. */
export function invalid(field: string, reason: string): Problem {
  return new Problem(422, 'validation_failed', '', [{ field, reason }]);
}

export type Session =
  | { state: 'unknown' }
  | { state: 'out' }
  | { state: 'in'; user: User }
  /** Ended while the page was open; `user` is whose it was. */
  | { state: 'lost'; user: User };

export const session = signal<Session>({ state: 'unknown' });

/** Whoever is logged in, also while their session waits to be renewed. */
export function me(): User | undefined {
  const now = session.value;
  return now.state === 'in' || now.state === 'lost' ? now.user : undefined;
}

/** Whether to offer what only admins may do; the server has the last word. */
export function isAdmin(): boolean {
  return me()?.role === 'admin';
}

let csrfToken = '';

function begin(user: User, token: string | undefined): void {
  const before = session.value;
  if (before.state === 'lost' && before.user.id !== user.id) {
    // Waiting requests were another person's: they must not be sent in this one's name.
    location.reload();
    return;
  }
  csrfToken = token ?? '';
  session.value = { state: 'in', user };
}

function sessionIsBack(): Promise<void> {
  const now = session.value;
  if (now.state === 'in') session.value = { state: 'lost', user: now.user };
  return new Promise((resolve) => {
    const stop = effect(() => {
      if (session.value.state !== 'in') return;
      resolve();
      queueMicrotask(() => stop());
    });
  });
}

/** Whether the refused token was another session's: someone logged in anew in another tab. */
async function csrfChanged(refusal: Response): Promise<boolean> {
  const told: unknown = await refusal.clone().json();
  const before = session.value;
  if (problemOf(refusal.status, told).code !== 'csrf' || before.state !== 'in') return false;
  const me = await ask(api.GET('/api/v1/me'));
  if (me.id !== before.user.id) location.reload();
  else csrfToken = me.csrf_token ?? '';
  return me.id === before.user.id;
}

/** What the network tells, or that the server can't be reached: before an answer, or in the middle of one. */
async function reached<Told>(told: Promise<Told>): Promise<Told> {
  try {
    return await told;
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(0, 'unreachable', error instanceof Error ? error.message : String(error));
  }
}

const SAFE_METHODS = ['GET', 'HEAD', 'OPTIONS'];

async function send(request: Request): Promise<Response> {
  const isLogin = request.url.includes('/api/v1/auth/');
  let isRepeated = false;
  for (;;) {
    const attempt = request.clone();
    if (!SAFE_METHODS.includes(attempt.method)) attempt.headers.set('X-CSRF-Token', csrfToken);
    const response = await reached(fetch(attempt));
    const { state } = session.value;
    if (response.status === 403 && !isRepeated && (await csrfChanged(response))) {
      isRepeated = true;
      continue;
    }
    if (response.status !== 401 || isLogin || (state !== 'in' && state !== 'lost')) return response;
    await sessionIsBack();
  }
}

const client = createClient<paths>({
  baseUrl: location.origin,
  fetch: send,
  bodySerializer: (body) => printWritten(body),
});

/** Leaves the answer a text: [`ask`] reads it, without losing a digit. */
function unread<Call>(call: Call): Call {
  const asText = (path: unknown, init?: object) => (call as (...asked: unknown[]) => unknown)(path, { ...init, parseAs: 'text' });
  return asText as Call;
}

export const api = {
  GET: unread(client.GET),
  POST: unread(client.POST),
  PATCH: unread(client.PATCH),
  DELETE: unread(client.DELETE),
};

function problemOf(status: number, body: unknown): Problem {
  const told = (typeof body === 'object' && body !== null ? body : {}) as Partial<Schemas['Problem']>;
  return new Problem(
    status,
    told.code ?? 'unreadable',
    told.detail ?? (typeof body === 'string' && body !== '' ? body : `HTTP ${status}`),
    told.errors ?? [],
  );
}

/** The answer's body, or the failure thrown as a [`Problem`]. */
export async function ask<Answer extends { data?: unknown; error?: unknown; response: Response }>(
  asked: Promise<Answer>,
): Promise<Exclude<Answer['data'], undefined>> {
  const answer = await reached(asked);
  if (!answer.response.ok) throw problemOf(answer.response.status, answer.error);
  const text = answer.data as string | undefined;
  return (text ? readAnswer(text) : undefined) as Exclude<Answer['data'], undefined>;
}

/** Asks whether this browser is logged in; the page does it once, when it opens. */
export async function resume(): Promise<void> {
  try {
    const me = await ask(api.GET('/api/v1/me'));
    begin(me, me.csrf_token);
  } catch (error) {
    if (error instanceof Problem && error.status === 401) session.value = { state: 'out' };
    else throw error;
  }
}

export async function logIn(email: string, password: string): Promise<void> {
  const answer = await ask(api.POST('/api/v1/auth/login', { body: { email, password, cookie: true } }));
  begin(answer.user, answer.csrf_token);
}

/** Whether the token of a set-up link can still be used; only then is there a form to fill in. */
export async function isSetUpOpen(token: string): Promise<boolean> {
  try {
    await ask(api.POST('/api/v1/auth/setup/check', { body: { token } }));
    return true;
  } catch (error) {
    if (error instanceof Problem && error.status === 403) return false;
    throw error;
  }
}

export async function setUp(token: string, email: string, name: string, password: string): Promise<void> {
  const body = { token, email, name, password, cookie: true };
  const answer = await ask(api.POST('/api/v1/auth/setup', { body }));
  begin(answer.user, answer.csrf_token);
}

export async function logOut(): Promise<void> {
  try {
    await ask(api.POST('/api/v1/auth/logout'));
  } catch (error) {
    // No session to end is what was wanted.
    if (!(error instanceof Problem && error.status === 401)) throw error;
  }
  csrfToken = '';
  session.value = { state: 'out' };
}

/** `/metrics` as it is: the text that Prometheus reads. */
export async function readMetrics(): Promise<string> {
  const response = await send(new Request('/metrics'));
  const text = await reached(response.text());
  if (!response.ok) throw problemOf(response.status, text);
  return text;
}

const names = new Map<number, string>();

/** Names of products by id, kept; one request for all that are not known yet. */
export async function productNames(ids: number[]): Promise<Map<number, string>> {
  const unknown = [...new Set(ids)].filter((id) => !names.has(id));
  // The API takes 200 at once, which is also the longest page that any list gives.
  for (let at = 0; at < unknown.length; at += 200) {
    const part = unknown.slice(at, at + 200);
    const page = await ask(api.GET('/api/v1/products', { params: { query: { ids: part.join(',') } } }));
    for (const product of page.items) names.set(product.id, product.name);
    // Taken out of the shop: asked for once, shown by its number.
    for (const id of page.missing ?? []) names.set(id, `#${id}`);
  }
  return names;
}

/** To be told when a name is known to have changed. */
export function rememberName(product: Product): void {
  names.set(product.id, product.name);
}
