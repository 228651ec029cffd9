// API keys: for programs that act in this account's name.

import { useState } from 'preact/hooks';
import { api, ask, invalid } from './api';
import type { Schemas } from './api';
import { usePages } from './data';
import { Confirm, Dialog, FaultOf, Field, Form, momentOf, Pager, say, Show, ShownOnce, State, Table, textOf, View } from './ui';
import { moment, t, timeZone, wordOf } from './words';

const SCOPES = ['catalogue', 'orders', 'payments', 'sales', 'users', 'reports', 'tasks', 'work', 'webhooks', 'metrics', 'cache', 'system', 'act_as'];

const ROWS = 25;

type Key = Schemas['KeyView'];

/** By the names that programs and the terminal know, each with what it means. */
function Scopes({ names }: { names: string[] }) {
  return names.map((name, at) => (
    <>
      {at > 0 && ', '}
      <code title={wordOf('scope', name)}>{name}</code>
    </>
  ));
}

export function Keys() {
  const [isMaking, setMaking] = useState(false);
  const [made, setMade] = useState<string | undefined>(undefined);
  const [revoking, setRevoking] = useState<Key | undefined>(undefined);
  const keys = usePages(
    (cursor) => ask(api.GET('/api/v1/api-keys', { params: { query: { limit: ROWS, ...(cursor && { cursor }) } } })),
    [],
  );
  const create = async (data: FormData) => {
    const scopes = data.getAll('scopes').map(String);
    if (scopes.length === 0) throw invalid('scopes', t('need_scope'));
    const expires = textOf(data, 'expires_at') !== '' && { expires_at: momentOf(data, 'expires_at') };
    const key = await ask(api.POST('/api/v1/api-keys', { body: { name: textOf(data, 'name'), scopes, ...expires } }));
    setMaking(false);
    setMade(key.key);
    keys.again();
  };
  const revoke = async (id: number) => {
    await ask(api.DELETE('/api/v1/api-keys/{id}', { params: { path: { id } } }));
    say(t('revoked'));
    keys.again();
  };
  return (
    <View
      title={t('keys')}
      actions={
        <button type="button" class="primary" onClick={() => setMaking(true)}>
          {t('new_key')}
        </button>
      }
    >
      <Show of={keys}>
        {(page) => (
          <Table
            caption={t('keys')}
            rows={page.items}
            keyOf={(key) => key.id}
            columns={[
              { head: t('name'), cell: (key) => key.name },
              { head: t('scopes'), kind: 'wide', cell: (key) => <Scopes names={key.scopes} /> },
              { head: t('created_at'), kind: 'wide', cell: (key) => moment(key.created_at) },
              { head: t('expires_at'), cell: (key) => (key.expires_at ? moment(key.expires_at) : t('never')) },
              {
                head: t('status'),
                cell: (key) => <State name={key.revoked_at ? 'revoked' : 'active'} />,
              },
              {
                head: t('revoke'),
                cell: (key) => !key.revoked_at && (
                  <button type="button" class="small danger" onClick={() => setRevoking(key)}>
                    {t('revoke')}
                    <span class="unseen"> {key.name}</span>
                  </button>
                ),
              },
            ]}
          />
        )}
      </Show>
      <Pager of={keys} />
      {isMaking && (
        <Dialog title={t('new_key')} onClose={() => setMaking(false)}>
          <Form submit={t('create')} onSubmit={create} onCancel={() => setMaking(false)}>
            <Field name="name" label={t('name')} hint={t('key_name_hint')}>
              <input type="text" required maxLength={100} autocomplete="off" autofocus />
            </Field>
            <fieldset>
              <legend>{t('scopes')}</legend>
              <p class="hint">{t('scopes_hint')}</p>
              {SCOPES.map((scope) => (
                <label class="tick" key={scope}>
                  <input type="checkbox" name="scopes" value={scope} />
                  <span>
                    <code>{scope}</code> <span class="quiet">{wordOf('scope', scope)}</span>
                  </span>
                </label>
              ))}
              <FaultOf name="scopes" />
            </fieldset>
            <Field
              name="expires_at"
              label={t('expires_at')}
              isOptional
              hint={`${t('expires_hint')}. ${t('local_time', { zone: timeZone() })}`}
            >
              <input type="datetime-local" />
            </Field>
          </Form>
        </Dialog>
      )}
      {made && <ShownOnce title={t('key_made')} text={made} onClose={() => setMade(undefined)} />}
      {revoking && (
        <Confirm
          title={t('revoke_title', { name: revoking.name })}
          text={t('revoke_text')}
          action={t('revoke')}
          isDangerous
          onConfirm={() => revoke(revoking.id)}
          onClose={() => setRevoking(undefined)}
        />
      )}
    </View>
  );
}
