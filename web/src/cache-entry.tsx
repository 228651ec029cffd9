// One entry of the cache: how old it is, how long it lives, what it takes, and its end by hand.

import { useState } from 'preact/hooks';
import { api, ask, Problem } from './api';
import type { Schemas } from './api';
import { warm } from './cache-forms';
import { useLoad } from './data';
import { Confirm, Fact, Facts, Form, say, Show, State, View } from './ui';
import { closely, relative, size, t, took, wordOf } from './words';

const REFRESH_MS = 2000;

type Entry = Schemas['CacheEntryView'];

export function CacheEntry({ name }: { name: string }) {
  const [isDropping, setDropping] = useState(false);
  const [isGone, setGone] = useState(false);
  const params = { path: { key: name } };
  // What is gone is not asked for over and over: it comes back when somebody reads it, or by hand.
  const loaded = useLoad(
    async (): Promise<{ entry?: Entry }> => {
      try {
        const entry = await ask(api.GET('/api/v1/cache/entries/{key}', { params }));
        setGone(false);
        return { entry };
      } catch (error) {
        if (!(error instanceof Problem && error.code === 'not_cached')) throw error;
        setGone(true);
        return {};
      }
    },
    [name, isGone],
    isGone ? undefined : REFRESH_MS,
  );
  const entry = loaded.data?.entry;
  const drop = async () => {
    await ask(api.DELETE('/api/v1/cache/entries/{key}', { params }));
    say(t('dropped'));
    loaded.again();
  };
  const load = async () => {
    say(await warm([name]));
    loaded.again();
  };
  return (
    <View
      title={name}
      badge={entry && <State of="level" name={entry.level} />}
      back="/cache"
      actions={
        entry && (
          <button type="button" class="danger" onClick={() => setDropping(true)}>
            {t('drop')}
          </button>
        )
      }
    >
      <Show of={loaded}>
        {({ entry }) =>
          entry ? (
            <EntryNow entry={entry} />
          ) : (
            <>
              <p class="empty">{t('not_cached')}</p>
              <Form submit={t('load_now')} busy={t('warming')} onSubmit={load}>
                {null}
              </Form>
            </>
          )
        }
      </Show>
      {isDropping && (
        <Confirm
          title={t('drop_title', { key: name })}
          text={t('invalidate_text')}
          action={t('drop')}
          isDangerous
          onConfirm={drop}
          onClose={() => setDropping(false)}
        />
      )}
    </View>
  );
}

function EntryNow({ entry }: { entry: Entry }) {
  return (
    <section class="card">
      <Facts>
        <Fact name={t('age')}>{took(entry.age_ms)}</Fact>
        <Fact name={t('expires_at')}>{relative(entry.ttl_left_ms)}</Fact>
        <Fact name={t('bytes')}>{size(entry.bytes)}</Fact>
        <Fact name={t('level')}>{wordOf('level', entry.level)}</Fact>
        <Fact name={t('came_from')}>{wordOf('origin', entry.origin)}</Fact>
        <Fact name={t('load_took')}>{closely(entry.load_ms)}</Fact>
        <Fact name={t('hot')}>{t(entry.hot ? 'yes' : 'no')}</Fact>
        <Fact name={t('tags')}>{entry.tags.length === 0 ? '–' : <code>{entry.tags.join(', ')}</code>}</Fact>
      </Facts>
    </section>
  );
}
