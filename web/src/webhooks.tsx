// Servers of one's own that are told of what happens here.

import { useState } from 'preact/hooks';
import { api, ask, invalid } from './api';
import type { Schemas } from './api';
import { useLoad } from './data';
import { Link } from './router';
import { Ago, Dialog, FaultOf, Field, Form, Show, ShownOnce, State, Table, textOf, View } from './ui';
import { aboutOf, t } from './words';

const REFRESH_MS = 5000;

export type Endpoint = Schemas['EndpointView'];

export function Webhooks() {
  const [isMaking, setMaking] = useState(false);
  const [secret, setSecret] = useState<string | undefined>(undefined);
  const endpoints = useLoad(() => ask(api.GET('/api/v1/webhooks')), [], REFRESH_MS);
  const create = async (data: FormData) => {
    const own = textOf(data, 'secret');
    const made = await ask(
      api.POST('/api/v1/webhooks', {
        body: { ...endpointOf(data), ...(own && { secret: own }) },
      }),
    );
    setMaking(false);
    setSecret(made.secret);
    endpoints.again();
  };
  return (
    <View
      title={t('webhooks')}
      actions={
        <button type="button" class="primary" onClick={() => setMaking(true)}>
          {t('new_webhook')}
        </button>
      }
    >
      <Show of={endpoints}>
        {(list) => (
          <Table
            caption={t('webhooks')}
            rows={list.items}
            keyOf={(endpoint) => endpoint.id}
            empty={t('no_webhooks')}
            columns={[
              {
                head: t('address'),
                cell: (endpoint) => (
                  <>
                    <Link to={`/webhooks/${endpoint.id}`} class="long">
                      {endpoint.url}
                    </Link>
                    {endpoint.description && <p class="quiet excerpt">{endpoint.description}</p>}
                  </>
                ),
              },
              { head: t('events'), kind: 'wide', cell: (endpoint) => eventsText(endpoint.events) },
              { head: t('status'), cell: (endpoint) => <State name={endpoint.status} /> },
              {
                head: t('failing_since'),
                kind: 'wide',
                cell: ({ failing_since }) => (failing_since ? <Ago at={failing_since} /> : '–'),
              },
            ]}
          />
        )}
      </Show>
      {isMaking && (
        <Dialog title={t('new_webhook')} isWide onClose={() => setMaking(false)}>
          <Form submit={t('create')} onSubmit={create} onCancel={() => setMaking(false)}>
            <EndpointFields />
            <Field name="secret" label={t('secret')} hint={t('secret_hint')} isOptional>
              <input type="text" class="code" autocomplete="off" maxLength={200} />
            </Field>
          </Form>
        </Dialog>
      )}
      {secret && <ShownOnce title={t('webhook_secret')} text={secret} onClose={() => setSecret(undefined)} />}
    </View>
  );
}

export function eventsText(events: string[]): string {
  return events.includes('*') ? t('all_events') : events.join(', ');
}

/** What the fields of an endpoint say. */
export function endpointOf(data: FormData): { url: string; description: string; events: string[] } {
  const ticked = data.getAll('events').map(String);
  if (ticked.length === 0) throw invalid('events', t('need_event'));
  // Whoever wants a whole group wants no part of it besides.
  const groups = ticked.filter((name) => name.endsWith('*'));
  const isCovered = (name: string) => groups.some((group) => group !== name && name.startsWith(group.slice(0, -1)));
  const events = ticked.filter((name) => !isCovered(name));
  return { url: textOf(data, 'url'), description: textOf(data, 'description'), events };
}

export function EndpointFields({ endpoint }: { endpoint?: Endpoint }) {
  const kinds = useLoad(() => ask(api.GET('/api/v1/webhook-event-types')), []);
  return (
    <>
      <Field name="url" label={t('address')} hint={t('address_hint')}>
        <input type="text" inputMode="url" required maxLength={2000} autocomplete="off" defaultValue={endpoint?.url ?? 'https://'} />
      </Field>
      <Field name="description" label={t('description')} isOptional>
        <input type="text" maxLength={500} autocomplete="off" defaultValue={endpoint?.description} />
      </Field>
      <fieldset>
        <legend>{t('events')}</legend>
        <Show of={kinds}>
          {(list) => (
            <Events kinds={list.items} chosen={endpoint?.events ?? ['*']} />
          )}
        </Show>
        <FaultOf name="events" />
      </fieldset>
    </>
  );
}

function Events({ kinds, chosen }: { kinds: Schemas['KindView'][]; chosen: string[] }) {
  const [ticked, setTicked] = useState(chosen);
  const groups = [...new Set(kinds.map((kind) => `${kind.type.split('.')[0]}.*`))];
  const tick = (name: string, isTicked: boolean) =>
    setTicked(isTicked ? [...ticked, name] : ticked.filter((one) => one !== name));
  const box = (name: string, text: string, isCovered: boolean) => (
    <label class="tick" key={name}>
      <input
        type="checkbox"
        name="events"
        value={name}
        checked={isCovered || ticked.includes(name)}
        disabled={isCovered}
        onChange={(event) => tick(name, event.currentTarget.checked)}
      />
      <span>
        <code>{name}</code> <span class="quiet">{text}</span>
      </span>
    </label>
  );
  const isAll = ticked.includes('*');
  return (
    <>
      {box('*', t('all_events'), false)}
      {groups.map((group) => (
        <div class="event-group" key={group}>
          {box(group, t('whole_group'), isAll)}
          <div>
            {kinds
              .filter((kind) => kind.type.startsWith(group.slice(0, -1)))
              .map((kind) => box(kind.type, aboutOf(kind.type, kind.description), isAll || ticked.includes(group)))}
          </div>
        </div>
      ))}
    </>
  );
}
