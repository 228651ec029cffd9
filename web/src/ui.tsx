// The pieces that every view is made of: forms that show the server's errors beside their inputs,
// dialogs, tables with pages, messages. Each is usable by keyboard and named for screen readers.

import { signal } from '@preact/signals';
import { cloneElement, createContext } from 'preact';
import type { AllHTMLAttributes, ComponentChildren, VNode } from 'preact';
import { useContext, useEffect, useId, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { invalid, Problem } from './api';
import type { FieldError } from './api';
import type { Loaded, Paged } from './data';
import { href, Link } from './router';
import { exactly, number, problemText, reasonText, relative, t, wordOf } from './words';
import type { WordGroup } from './words';

// ── Messages ────────────────────────────────────────────────────────────────────────────────────

const MESSAGE_MS = 6000;
const message = signal<{ text: string; at: number } | undefined>(undefined);

/** Says briefly that something was done. */
export function say(text: string): void {
  const at = Date.now();
  message.value = { text, at };
  setTimeout(() => {
    if (message.value?.at === at) message.value = undefined;
  }, MESSAGE_MS);
}

export function Messages() {
  return (
    <div class="messages" role="status" aria-live="polite">
      {message.value && (
        <p class="message" key={message.value.at}>
          {message.value.text}
        </p>
      )}
    </div>
  );
}

export function Alert({ problem, again }: { problem: Problem; again?: () => void }) {
  return (
    <div class="alert" role="alert">
      <p>{problemText(problem)}</p>
      {again && (
        <button type="button" class="small" onClick={again}>
          {t('try_again')}
        </button>
      )}
    </div>
  );
}

// ── Views ───────────────────────────────────────────────────────────────────────────────────────

interface ViewProps {
  title: string;
  back?: string;
  actions?: ComponentChildren;
  badge?: ComponentChildren;
  children: ComponentChildren;
}

/** A view with its heading; takes the focus when it opens, so that readers hear where they are. */
export function View({ title, back, actions, badge, children }: ViewProps) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    if (!document.activeElement?.closest('[data-keeps-focus]')) heading.current?.focus({ preventScroll: true });
  }, []);
  useEffect(() => {
    document.title = `${title} · Onrush`;
  }, [title]);
  return (
    <>
      <header class="view-head">
        <div>
          {back && (
            <Link to={back} class="back">
              <span aria-hidden="true">←</span> {t('back')}
            </Link>
          )}
          <h1 ref={heading} tabIndex={-1}>
            {title} {badge}
          </h1>
        </div>
        {actions && <div class="actions">{actions}</div>}
      </header>
      {children}
    </>
  );
}

/** That what is shown is not the newest, and why. */
export function Stale({ problem }: { problem: Problem }) {
  return (
    <p class="stale" role="status">
      {t('stale', { reason: problemText(problem) })}
    </p>
  );
}

/** What was loaded, or why it was not. What is on screen stays when a refresh fails, and says so. */
export function Show<T>({ of, children }: { of: Loaded<T>; children: (data: T) => ComponentChildren }) {
  if (of.data === undefined) {
    if (of.problem) return <Alert problem={of.problem} again={of.again} />;
    return (
      <p class="quiet loading" role="status">
        {t('loading')}
      </p>
    );
  }
  return (
    <>
      {of.problem && <Stale problem={of.problem} />}
      {children(of.data)}
    </>
  );
}

const TONES: Record<string, string> = {
  running: 'good',
  paid: 'good',
  fulfilled: 'good',
  processed: 'good',
  active: 'good',
  scheduled: 'info',
  sold_out: 'accent',
  pending_payment: 'warn',
  refund_due: 'bad',
  disabled: 'bad',
  broken: 'bad',
  paused: 'warn',
  available: 'info',
  retryable: 'warn',
  completed: 'good',
  discarded: 'bad',
  delivered: 'good',
  failed: 'bad',
  timed_out: 'bad',
  crashed: 'bad',
  refused: 'bad',
  missed: 'warn',
  skipped: 'warn',
  enqueued: 'info',
  quiet: 'warn',
  on: 'good',
  pinned: 'accent',
  terminate: 'warn',
};

/** A state in words; `of` tells apart what is called alike and said differently. */
export function State({ name, of = 'state' }: { name: string; of?: WordGroup }) {
  return <span class={`badge ${TONES[name] ?? 'plain'}`}>{wordOf(of, name)}</span>;
}

/** `3 minutes ago`, with the exact time for whoever points at it. */
export function Ago({ at }: { at: string }) {
  return (
    <time dateTime={at} title={exactly(at)}>
      {relative(Date.parse(at) - Date.now())}
    </time>
  );
}

// ── Forms ───────────────────────────────────────────────────────────────────────────────────────

const Faults = createContext<FieldError[]>([]);

/** Whether a fault is of this input or of a part of what it holds: `args.url` is of `args`. */
function isOf(fault: FieldError, name: string): boolean {
  return fault.field === name || fault.field.startsWith(`${name}.`) || fault.field.startsWith(`${name}[`);
}

/** What is wrong, led by the name of the part where only a part is wrong. */
function FaultText({ fault, of }: { fault: FieldError; of: string }) {
  const part = fault.field.slice(of.length).replace(/^\./, '');
  return (
    <>
      {part && <code>{part} </code>}
      {reasonText(fault.reason)}
    </>
  );
}

type Control = HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement;

/** What the browser finds wrong with an input, in the page's language. */
function faultOf(control: Control): string | undefined {
  const { validity } = control;
  if (validity.valid) return undefined;
  if (validity.badInput) return t(control.type === 'number' ? 'is_no_whole_number' : 'is_no_time');
  if (validity.valueMissing) return t('is_required');
  if (validity.typeMismatch) return t('is_no_email');
  if (validity.tooShort) return t('is_too_short', { n: (control as HTMLInputElement).minLength });
  if (validity.tooLong) return t('is_too_long', { n: (control as HTMLInputElement).maxLength });
  if (validity.rangeUnderflow) return t('is_too_small', { n: number(Number((control as HTMLInputElement).min)) });
  if (validity.rangeOverflow) return t('is_too_large', { n: number(Number((control as HTMLInputElement).max)) });
  if (validity.stepMismatch) return t('is_no_whole_number');
  return control.validationMessage;
}

interface FormProps {
  /** Throws a [`Problem`] to have it shown. */
  onSubmit: (data: FormData) => Promise<void>;
  submit: string;
  busy?: string;
  onCancel?: () => void;
  class?: string;
  children: ComponentChildren;
}

/** A form: checks its inputs, is sent once at a time, shows each fault beside its input. */
export function Form({ onSubmit, submit, busy, onCancel, children, ...rest }: FormProps) {
  const [isSending, setSending] = useState(false);
  const [problem, setProblem] = useState<Problem | undefined>(undefined);
  const form = useRef<HTMLFormElement>(null);

  useEffect(() => {
    if (problem) form.current?.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus();
  }, [problem]);

  const controls = () =>
    [...(form.current?.elements ?? [])].filter((element): element is Control => 'validity' in element);
  const send = async (event: Event) => {
    event.preventDefault();
    if (isSending || !form.current) return;
    const faults = controls().flatMap((control) => {
      const reason = control.name ? faultOf(control) : undefined;
      return reason ? [{ field: control.name, reason }] : [];
    });
    if (faults.length > 0) {
      setProblem(new Problem(422, 'validation_failed', '', faults));
      return;
    }
    setSending(true);
    try {
      await onSubmit(new FormData(form.current));
      setProblem(undefined);
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, 'page_failed', String(error)));
    }
    setSending(false);
  };

  const faults = problem?.errors ?? [];
  const inputs = [...new Set(controls().map((control) => control.name))].filter((name) => name !== '');
  const homeless = faults.filter((fault) => !inputs.some((name) => isOf(fault, name)));
  return (
    <form ref={form} onSubmit={send} noValidate {...rest}>
      <Faults.Provider value={faults}>
        {problem && (
          <div class="alert" role="alert">
            <p>{problemText(problem)}</p>
            {homeless.length > 0 && (
              <ul>
                {homeless.map((fault) => (
                  <li key={fault.field + fault.reason}>
                    {fault.field} {reasonText(fault.reason)}
                  </li>
                ))}
              </ul>
            )}
          </div>
        )}
        {children}
        <div class="form-foot">
          <button type="submit" class="primary" disabled={isSending}>
            {isSending ? (busy ?? submit) : submit}
          </button>
          {onCancel && (
            <button type="button" onClick={onCancel}>
              {t('cancel')}
            </button>
          )}
        </div>
      </Faults.Provider>
    </form>
  );
}

interface FieldProps {
  name: string;
  label: string;
  hint?: ComponentChildren;
  isOptional?: boolean;
  class?: string;
  /** One input, select or textarea. */
  children: VNode<object>;
}

/** An input with its label, its hint and what is wrong with it. */
export function Field({ name, label, hint, isOptional, children, class: extra = '' }: FieldProps) {
  const id = useId();
  const faults = useContext(Faults).filter((fault) => isOf(fault, name));
  const isFaulty = faults.length > 0;
  const described = [hint && `${id}-hint`, isFaulty && `${id}-fault`].filter(Boolean).join(' ');
  return (
    <div class={`field ${extra}`}>
      <label for={id}>
        {label}
        {isOptional && <span class="quiet"> ({t('optional')})</span>}
      </label>
      {cloneElement(children, {
        id,
        name,
        'aria-invalid': isFaulty ? 'true' : undefined,
        'aria-describedby': described || undefined,
      } as AllHTMLAttributes)}
      {hint && (
        <p class="hint" id={`${id}-hint`}>
          {hint}
        </p>
      )}
      {isFaulty && (
        <div class="fault" id={`${id}-fault`}>
          {faults.map((fault) => (
            <p key={fault.field + fault.reason}>
              <FaultText fault={fault} of={name} />
            </p>
          ))}
        </div>
      )}
    </div>
  );
}

/** What is wrong with a group of inputs, such as boxes to tick, that share a name. */
export function FaultOf({ name }: { name: string }) {
  const fault = useContext(Faults).find((one) => isOf(one, name));
  return fault ? (
    <p class="fault">
      <FaultText fault={fault} of={name} />
    </p>
  ) : null;
}

interface PasswordProps {
  autocomplete: 'current-password' | 'new-password';
  required?: boolean;
  minLength?: number;
  maxLength?: number;
  autofocus?: boolean;
}

/** A password's input; `Field` adds the id and the name. */
export function Password(props: PasswordProps) {
  const [isShown, setShown] = useState(false);
  return (
    <span class="with-button">
      {isShown ? <input {...props} type="text" /> : <input {...props} type="password" />}
      <button type="button" class="small" aria-pressed={isShown} onClick={() => setShown(!isShown)}>
        {t(isShown ? 'hide_password' : 'show_password')}
      </button>
    </span>
  );
}

// What forms send: text, trimmed; whole numbers; moments.

export function textOf(data: FormData, name: string): string {
  return String(data.get(name) ?? '').trim();
}

export function wholeOf(data: FormData, name: string): number {
  const value = Number(textOf(data, name));
  if (!Number.isSafeInteger(value)) throw invalid(name, t('is_no_whole_number'));
  return value;
}

/** A `datetime-local` input's value, which is in the browser's zone, as the API wants it. */
export function momentOf(data: FormData, name: string): string {
  const at = new Date(textOf(data, name));
  if (Number.isNaN(at.getTime())) throw invalid(name, t('is_no_time'));
  return at.toISOString();
}

/** The other way: what a `datetime-local` input shows for a moment. */
export function localInput(at: Date): string {
  const two = (value: number) => String(value).padStart(2, '0');
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}T${two(at.getHours())}:${two(at.getMinutes())}`;
}

// ── Dialogs ─────────────────────────────────────────────────────────────────────────────────────

interface DialogProps {
  title: string;
  isWide?: boolean;
  onClose?: () => void;
  children: ComponentChildren;
}

/** A modal dialog: the browser keeps the focus inside and gives it back afterwards. */
export function Dialog({ title, isWide, onClose, children }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    const element = dialog.current;
    element?.showModal();
    return () => element?.close();
  }, []);
  return (
    <dialog
      ref={dialog}
      aria-labelledby={id}
      class={isWide ? 'wide-dialog' : undefined}
      data-keeps-focus
      onCancel={(event) => {
        event.preventDefault();
        onClose?.();
      }}
    >
      <h2 id={id}>{title}</h2>
      {children}
    </dialog>
  );
}

interface ConfirmProps {
  title: string;
  text: string;
  action: string;
  dismiss?: string;
  isDangerous?: boolean;
  onConfirm: () => Promise<void>;
  onClose: () => void;
}

/** Asks before something that can't be undone. */
export function Confirm({ title, text, action, dismiss, isDangerous, onConfirm, onClose }: ConfirmProps) {
  const [problem, setProblem] = useState<Problem | undefined>(undefined);
  const [isSending, setSending] = useState(false);
  const confirm = async () => {
    setSending(true);
    try {
      await onConfirm();
      onClose();
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, 'page_failed', String(error)));
      setSending(false);
    }
  };
  return (
    <Dialog title={title} onClose={onClose}>
      <p>{text}</p>
      {problem && <Alert problem={problem} />}
      <div class="form-foot">
        <button type="button" class={isDangerous ? 'danger' : 'primary'} disabled={isSending} onClick={confirm}>
          {action}
        </button>
        <button type="button" onClick={onClose}>
          {dismiss ?? t('cancel')}
        </button>
      </div>
    </Dialog>
  );
}

/** A secret that is told this once. Closes by its button only: a slip must not lose it. */
export function ShownOnce({ title, text, onClose }: { title: string; text: string; onClose: () => void }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    // Absent on plain HTTP from afar; there the person copies the selected text.
    await navigator.clipboard?.writeText(text);
    setCopied(Boolean(navigator.clipboard));
  };
  return (
    <Dialog title={title}>
      <p>{t('shown_once')}</p>
      <span class="with-button">
        <input
          class="code"
          type="text"
          readOnly
          aria-label={title}
          value={text}
          onFocus={(event) => event.currentTarget.select()}
        />
        <button type="button" class="small" onClick={copy}>
          {t(isCopied ? 'copied' : 'copy')}
        </button>
      </span>
      <div class="form-foot">
        <button type="button" class="primary" onClick={onClose}>
          {t('close')}
        </button>
      </div>
    </Dialog>
  );
}

// ── Tables ──────────────────────────────────────────────────────────────────────────────────────

interface Column<T> {
  head: string;
  cell: (row: T) => ComponentChildren;
  /** `number` aligns right; `wide` columns are left out on small screens. */
  kind?: 'number' | 'wide' | 'wide number';
}

interface TableProps<T> {
  caption: string;
  rows: T[];
  keyOf: (row: T) => string | number;
  columns: Column<T>[];
  empty?: string;
}

export function Table<T>({ caption, rows, keyOf, columns, empty }: TableProps<T>) {
  if (rows.length === 0) return <p class="empty">{empty ?? t('nothing')}</p>;
  return (
    <div class="table">
      <table>
        <caption class="unseen">{caption}</caption>
        <thead>
          <tr>
            {columns.map((column) => (
              <th key={column.head} scope="col" class={column.kind}>
                {column.head}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={keyOf(row)}>
              {columns.map((column) => (
                <td key={column.head} class={column.kind}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Below a table: where one is in the list, and the way on. */
export function Pager<T>({ of }: { of: Paged<T> }) {
  if (!of.next && !of.previous) return null;
  return (
    <nav class="pager" aria-label={t('page', { n: of.number })}>
      <button type="button" disabled={!of.previous} onClick={of.previous}>
        {t('previous_page')}
      </button>
      <span>{t('page', { n: of.number })}</span>
      <button type="button" disabled={!of.next} onClick={of.next}>
        {t('next_page')}
      </button>
    </nav>
  );
}

const SEARCH_MS = 250;

interface SearchProps {
  label: string;
  value: string;
  /** Id of a `datalist` of what may be meant. */
  list?: string;
  onSearch: (text: string) => void;
}

/** A search box that tells what was typed when the typing pauses. */
export function Search({ label, value, list, onSearch }: SearchProps) {
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  const box = useRef<HTMLInputElement>(null);
  useEffect(() => () => clearTimeout(timer.current), []);
  useEffect(() => {
    // The address changed by other means, such as the menu; what is being typed stays.
    if (box.current && document.activeElement !== box.current) box.current.value = value;
  }, [value]);
  return (
    <input
      ref={box}
      type="search"
      list={list}
      aria-label={label}
      placeholder={label}
      defaultValue={value}
      onInput={(event) => {
        const text = event.currentTarget.value.trim();
        clearTimeout(timer.current);
        timer.current = setTimeout(() => onSearch(text), SEARCH_MS);
      }}
    />
  );
}

interface ChoiceProps {
  label: string;
  value: string;
  options: [value: string, text: string][];
  onChoose: (value: string) => void;
}

export function Choice({ label, value, options, onChoose }: ChoiceProps) {
  return (
    <select aria-label={label} value={value} onChange={(event) => onChoose(event.currentTarget.value)}>
      {options.map(([option, text]) => (
        <option key={option} value={option}>
          {text}
        </option>
      ))}
    </select>
  );
}

// ── Figures ─────────────────────────────────────────────────────────────────────────────────────

interface FigureProps {
  name: string;
  value: string;
  note: ComponentChildren;
  tone?: string;
  /** A [`Sparkline`], where the figure moves. */
  children?: ComponentChildren;
}

/** One figure at a glance; several stand in a `figures` section. */
export function Figure({ name, value, note, tone = '', children }: FigureProps) {
  return (
    <div class={`figure ${tone}`}>
      <h3>{name}</h3>
      <p class="value">{value}</p>
      <p class="note">{note}</p>
      {children}
    </div>
  );
}

/** How full or how far something is; `label` says it to those who don't see it. */
export function Meter({ percent, label }: { percent: number; label: string }) {
  return (
    <div class="bar" role="img" aria-label={label}>
      <span class="sold" style={{ width: `${Math.min(Math.max(percent, 0), 100)}%` }} />
    </div>
  );
}

/** A small line of the latest values; decoration beside a figure that says the same. */
export function Sparkline({ values, class: extra = '' }: { values: number[]; class?: string }) {
  if (values.length < 2) return <svg class={`spark ${extra}`} aria-hidden="true" />;
  const top = Math.max(...values, Number.MIN_VALUE);
  const points = values.map((value, at) => {
    const x = (at / (values.length - 1)) * 100;
    return `${x.toFixed(2)},${(29 - (value / top) * 27).toFixed(2)}`;
  });
  return (
    <svg class={`spark ${extra}`} viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">
      <polygon points={`0,30 ${points.join(' ')} 100,30`} />
      <polyline points={points.join(' ')} />
    </svg>
  );
}

export function Facts({ children }: { children: ComponentChildren }) {
  return <dl class="facts">{children}</dl>;
}

export function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** Text as it is, such as JSON or SQL: may be scrolled by keyboard. */
export function Verbatim({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <section class="card json">
      <h2>{name}</h2>
      <pre tabIndex={0} aria-label={name}>
        {children}
      </pre>
    </section>
  );
}

export function NotFound() {
  return (
    <View title={t('not_found')}>
      <p>
        <a href={href('/')}>{t('go_overview')}</a>
      </p>
    </View>
  );
}
