// What is done to the cache by hand: look for an entry, invalidate many, load keys ahead.

import type { ComponentChildren } from 'preact';
import { useState } from 'preact/hooks';
import { api, ask, invalid, Problem } from './api';
import type { Schemas } from './api';
import { go, part } from './router';
import { Confirm, Field, Form, textOf } from './ui';
import { problemText, t } from './words';

/** What came of a form, said until it is sent again. */
function Outcome({ children }: { children: ComponentChildren }) {
  return (
    <p class="outcome" role="status">
      {children}
    </p>
  );
}

/** Leads to an entry where there is one. */
export function LookUp() {
  const lookUp = async (data: FormData) => {
    const key = textOf(data, 'key');
    try {
      await ask(api.GET('/api/v1/cache/entries/{key}', { params: { path: { key } } }));
    } catch (error) {
      if (error instanceof Problem && error.code === 'not_cached') throw invalid('key', problemText(error));
      throw error;
    }
    go(`/cache/${part(key)}`);
  };
  return (
    <section class="card">
      <h2>{t('look_up')}</h2>
      <Form submit={t('look_up_go')} onSubmit={lookUp}>
        <Field name="key" label={t('key')} hint={t('key_hint')}>
          <input class="code" type="text" required autocomplete="off" spellcheck={false} />
        </Field>
      </Form>
    </section>
  );
}

type By = 'pattern' | 'tag';

const BYS: By[] = ['pattern', 'tag'];

/** Every key is `kind:id`, so these mean all there is. */
const EVERYTHING = /^\*+(:\*+)?$/;

interface Asking {
  by: By;
  text: string;
  /** Goes on with the form, or leaves it as it is. */
  answer: (isSure: boolean) => void;
}

export function Invalidate({ kinds, onDone }: { kinds: string[]; onDone: () => void }) {
  const [by, setBy] = useState<By>('pattern');
  const [asking, setAsking] = useState<Asking | undefined>(undefined);
  const [outcome, setOutcome] = useState('');
  const isEverything = asking?.by === 'pattern' && EVERYTHING.test(asking.text);
  const invalidate = async (data: FormData) => {
    setOutcome('');
    const text = textOf(data, by);
    // Asked for amid the sending, so that what the server refuses stands beside the input.
    if (!(await new Promise<boolean>((answer) => setAsking({ by, text, answer })))) return;
    const { removed } = await ask(api.POST('/api/v1/cache/invalidate', { body: { [by]: text } }));
    // What bears a tag is not counted.
    setOutcome(by === 'tag' ? t('invalidated_tag', { tag: text }) : t('invalidated', { n: removed, pattern: text }));
    onDone();
  };
  const close = (isSure: boolean) => {
    asking?.answer(isSure);
    setAsking(undefined);
  };
  return (
    <section class="card">
      <h2>{t('invalidate')}</h2>
      <Form submit={t('invalidate')} onSubmit={invalidate}>
        <div class="choices" role="group" aria-label={t('invalidate_by')}>
          {BYS.map((one) => (
            <label class="tick" key={one}>
              <input type="radio" name="by" checked={by === one} onChange={() => setBy(one)} />
              {t(`by_${one}`)}
            </label>
          ))}
        </div>
        <Field key={by} name={by} label={t(by)} hint={by === 'tag' ? t('tag_hint') : t('pattern_hint', { kinds: kinds.join(', ') })}>
          <input class="code" type="text" list={by === 'pattern' ? 'patterns' : undefined} required autocomplete="off" spellcheck={false} />
        </Field>
        <datalist id="patterns">
          {kinds.map((kind) => (
            <option key={kind} value={`${kind}:*`} />
          ))}
        </datalist>
      </Form>
      {outcome && <Outcome>{outcome}</Outcome>}
      {asking && (
        <Confirm
          title={t(isEverything ? 'invalidate_all_title' : 'invalidate_title', { text: asking.text })}
          text={t(isEverything ? 'invalidate_all_text' : 'invalidate_text')}
          action={t('invalidate')}
          isDangerous
          onConfirm={async () => asking.answer(true)}
          onClose={() => close(false)}
        />
      )}
    </section>
  );
}

function warmedText({ warmed, failed, unknown }: Schemas['WarmedView']): string {
  if (warmed + failed + unknown === 0) return t('warmed_nothing');
  const parts = [t('n_warmed', { n: warmed }), failed > 0 && t('n_not_warmed', { n: failed }), unknown > 0 && t('n_unknown', { n: unknown })];
  return parts.filter(Boolean).join(' · ');
}

/** Loads keys ahead; without any, those that are hot. */
export async function warm(keys: string[]): Promise<string> {
  return warmedText(await ask(api.POST('/api/v1/cache/warm', { body: { keys } })));
}

export function Warm({ onDone }: { onDone: () => void }) {
  const [outcome, setOutcome] = useState('');
  const load = async (data: FormData) => {
    setOutcome('');
    const lines = textOf(data, 'keys').split('\n');
    setOutcome(await warm(lines.map((line) => line.trim()).filter((line) => line !== '')));
    onDone();
  };
  return (
    <section class="card">
      <h2>{t('warm')}</h2>
      <Form submit={t('warm_now')} busy={t('warming')} onSubmit={load}>
        <Field name="keys" label={t('keys_to_warm')} hint={t('warm_hint')} isOptional>
          <textarea class="code" rows={2} spellcheck={false} />
        </Field>
      </Form>
      {outcome && <Outcome>{outcome}</Outcome>}
    </section>
  );
}
