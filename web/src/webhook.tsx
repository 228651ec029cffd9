// One endpoint: what it wants, how it is doing, and each attempt to reach it.

import { useState } from 'preact/hooks';
import { api, ask } from './api';
import type { Schemas } from './api';
import { useLoad, usePages } from './data';
import { parseWritten } from './json';
import { go, place, setQuery } from './router';
import { Json, jsonText, TaskLink } from './task-parts';
import { Ago, Choice, Confirm, Dialog, Fact, Facts, Field, Form, Pager, say, Show, ShownOnce, State, Table, Verbatim, View, wholeOf } from './ui';
import { exactly, number, t, took } from './words';
import { EndpointFields, endpointOf, eventsText } from './webhooks';
import type { Endpoint } from './webhooks';

const REFRESH_MS = 2000;
const ROWS = 20;

type Delivery = Schemas['DeliveryView'];
type Asking = 'edit' | 'status' | 'rotate' | 'remove';

export function WebhookDetail({ id }: { id: number }) {
  const [asking, setAsking] = useState<Asking | undefined>(undefined);
  const [secret, setSecret] = useState<string | undefined>(undefined);
  const isFailedOnly = place.value.query.get('failed') === 'true';
  const params = { path: { id } };
  const loaded = useLoad(() => ask(api.GET('/api/v1/webhooks/{id}', { params })), [id], REFRESH_MS);
  const deliveries = usePages(
    (cursor) =>
      ask(
        api.GET('/api/v1/webhooks/{id}/deliveries', {
          params: { ...params, query: { limit: ROWS, ...(isFailedOnly && { failed: true }), ...(cursor && { cursor }) } },
        }),
      ),
    [id, isFailedOnly],
    REFRESH_MS,
  );
  const endpoint = loaded.data;
  const isActive = endpoint?.status === 'active';
  const close = () => setAsking(undefined);
  const setStatus = async () => {
    await ask(api.PATCH('/api/v1/webhooks/{id}', { params, body: { status: isActive ? 'disabled' : 'active' } }));
    say(t(isActive ? 'webhook_disabled' : 'webhook_enabled'));
    loaded.again();
  };
  const ping = async () => {
    await ask(api.POST('/api/v1/webhooks/{id}/ping', { params }));
    say(t('ping_sent'));
    deliveries.again();
  };
  const remove = async () => {
    await ask(api.DELETE('/api/v1/webhooks/{id}', { params }));
    say(t('webhook_removed'));
    go('/webhooks');
  };
  const replay = async (delivery: Delivery) => {
    await ask(api.POST('/api/v1/webhooks/{id}/replay', { params, body: { event_id: delivery.event_id } }));
    say(t('replay_sent'));
    deliveries.again();
  };
  return (
    <View
      title={endpoint?.url ?? t('webhook')}
      badge={endpoint && <State name={endpoint.status} />}
      back="/webhooks"
      actions={endpoint && <Actions isActive={isActive} onPing={ping} onAsk={setAsking} />}
    >
      <Show of={loaded}>{(endpoint) => <EndpointNow endpoint={endpoint} />}</Show>
      {endpoint && (
        <>
          <div class="section-head">
            <h2>{t('deliveries')}</h2>
            <div class="filters">
              <Choice
                label={t('deliveries')}
                value={isFailedOnly ? 'true' : ''}
                options={[
                  ['', t('all')],
                  ['true', t('failed_only')],
                ]}
                onChoose={(chosen) => setQuery({ failed: chosen })}
              />
            </div>
          </div>
          <Show of={deliveries}>{(page) => <Deliveries deliveries={page.items} onReplay={replay} />}</Show>
          <Pager of={deliveries} />
        </>
      )}
      {asking === 'edit' && endpoint && <EditDialog endpoint={endpoint} onClose={close} onSaved={loaded.again} />}
      {asking === 'status' && endpoint && (
        <Confirm
          title={t(isActive ? 'webhook_disable_title' : 'webhook_enable_title')}
          text={t(isActive ? 'webhook_disable_text' : 'webhook_enable_text')}
          action={t(isActive ? 'disable' : 'enable')}
          isDangerous={isActive}
          onConfirm={setStatus}
          onClose={close}
        />
      )}
      {asking === 'rotate' && (
        <RotateDialog
          id={id}
          onClose={close}
          onRotated={(made) => {
            setSecret(made);
            loaded.again();
          }}
        />
      )}
      {asking === 'remove' && (
        <Confirm
          title={t('webhook_remove_title')}
          text={t('webhook_remove_text')}
          action={t('remove')}
          isDangerous
          onConfirm={remove}
          onClose={close}
        />
      )}
      {secret && <ShownOnce title={t('webhook_secret')} text={secret} onClose={() => setSecret(undefined)} />}
    </View>
  );
}

interface ActionsProps {
  isActive: boolean;
  onPing: () => Promise<void>;
  onAsk: (asked: Asking) => void;
}

function Actions({ isActive, onPing, onAsk }: ActionsProps) {
  const [isAsking, setAsking] = useState(false);
  return (
    <>
      <button type="button" class="primary" onClick={() => setAsking(true)}>
        {t('ping')}
      </button>
      <button type="button" onClick={() => onAsk('edit')}>
        {t('edit')}
      </button>
      <button type="button" onClick={() => onAsk('rotate')}>
        {t('rotate')}
      </button>
      <button type="button" class={isActive ? 'danger' : ''} onClick={() => onAsk('status')}>
        {t(isActive ? 'disable' : 'enable')}
      </button>
      <button type="button" class="danger" onClick={() => onAsk('remove')}>
        {t('remove')}
      </button>
      {isAsking && (
        <Confirm
          title={t('ping_title')}
          text={t('ping_text')}
          action={t('ping')}
          onConfirm={onPing}
          onClose={() => setAsking(false)}
        />
      )}
    </>
  );
}

function EndpointNow({ endpoint }: { endpoint: Endpoint }) {
  return (
    <section class="card">
      <Facts>
        <Fact name={t('events')}>{eventsText(endpoint.events)}</Fact>
        {endpoint.description && <Fact name={t('description')}>{endpoint.description}</Fact>}
        {endpoint.disabled_reason && <Fact name={t('disabled_reason')}>{endpoint.disabled_reason}</Fact>}
        {endpoint.failing_since && (
          <Fact name={t('failing_since')}>
            <Ago at={endpoint.failing_since} />
          </Fact>
        )}
        <Fact name={t('secret')}>
          <code>{endpoint.secret_hint}</code>
        </Fact>
        {endpoint.old_secret_expires_at && (
          <Fact name={t('old_secret_until')}>{exactly(endpoint.old_secret_expires_at)}</Fact>
        )}
        <Fact name={t('created_at')}>{exactly(endpoint.created_at)}</Fact>
      </Facts>
    </section>
  );
}

function Deliveries({ deliveries, onReplay }: { deliveries: Delivery[]; onReplay: (delivery: Delivery) => Promise<void> }) {
  const [seen, setSeen] = useState<Delivery | undefined>(undefined);
  const [replaying, setReplaying] = useState<Delivery | undefined>(undefined);
  return (
    <>
      <Table
        caption={t('deliveries')}
        rows={deliveries}
        keyOf={(delivery) => delivery.id}
        empty={t('no_deliveries')}
        columns={[
          {
            head: t('event'),
            cell: (delivery) => (
              <button type="button" class="link" onClick={() => setSeen(delivery)}>
                {delivery.event_type}
                <span class="unseen"> {delivery.event_id}</span>
              </button>
            ),
          },
          {
            head: t('outcome'),
            cell: (delivery) => (
              <>
                <State of="outcome" name={delivery.outcome} /> {delivery.status}
                {delivery.error && <p class="quiet excerpt">{delivery.error}</p>}
              </>
            ),
          },
          { head: t('when'), kind: 'wide', cell: (delivery) => <Ago at={delivery.at} /> },
          { head: t('attempt'), kind: 'wide number', cell: (delivery) => number(delivery.attempt) },
          { head: t('duration'), kind: 'wide number', cell: (delivery) => took(delivery.duration_ms) },
          {
            head: t('replay'),
            cell: (delivery) => (
              <button type="button" class="small" onClick={() => setReplaying(delivery)}>
                {t('replay')}
                <span class="unseen"> {delivery.event_id}</span>
              </button>
            ),
          },
        ]}
      />
      {seen && <DeliveryDialog delivery={seen} onClose={() => setSeen(undefined)} />}
      {replaying && (
        <Confirm
          title={t('replay_title')}
          text={t('replay_text', { event: replaying.event_type, id: replaying.event_id })}
          action={t('replay')}
          onConfirm={() => onReplay(replaying)}
          onClose={() => setReplaying(undefined)}
        />
      )}
    </>
  );
}

/** The event as it was sent, and what came back. */
function DeliveryDialog({ delivery, onClose }: { delivery: Delivery; onClose: () => void }) {
  const event = useLoad(
    () => ask(api.GET('/api/v1/webhook-events/{id}', { params: { path: { id: delivery.event_id } } })),
    [delivery.event_id],
  );
  return (
    <Dialog title={delivery.event_type} isWide onClose={onClose}>
      <Facts>
        <Fact name={t('when')}>{exactly(delivery.at)}</Fact>
        <Fact name={t('outcome')}>
          <State of="outcome" name={delivery.outcome} /> {delivery.status}
        </Fact>
        <Fact name={t('duration')}>{took(delivery.duration_ms)}</Fact>
        <Fact name={t('task')}>
          <TaskLink id={delivery.task_id} />
        </Fact>
        <Fact name={t('event')}>
          <code>{delivery.event_id}</code>
        </Fact>
      </Facts>
      {delivery.error && <p class="alert plain-text">{delivery.error}</p>}
      <Show of={event}>{(event) => <Json name={t('sent')} value={event.body} />}</Show>
      {delivery.response_excerpt && <Answer text={delivery.response_excerpt} />}
      <div class="form-foot">
        <button type="button" onClick={onClose}>
          {t('close')}
        </button>
      </div>
    </Dialog>
  );
}

/** JSON is laid out; anything else is shown as it came. */
function Answer({ text }: { text: string }) {
  let shown = text;
  try {
    shown = jsonText(parseWritten(text));
  } catch {
    // It is no JSON, or was cut off.
  }
  return <Verbatim name={t('answer')}>{shown}</Verbatim>;
}

function EditDialog({ endpoint, onClose, onSaved }: { endpoint: Endpoint; onClose: () => void; onSaved: () => void }) {
  const save = async (data: FormData) => {
    await ask(api.PATCH('/api/v1/webhooks/{id}', { params: { path: { id: endpoint.id } }, body: endpointOf(data) }));
    say(t('saved'));
    onSaved();
    onClose();
  };
  return (
    <Dialog title={t('edit')} isWide onClose={onClose}>
      <Form submit={t('save')} onSubmit={save} onCancel={onClose}>
        <EndpointFields endpoint={endpoint} />
      </Form>
    </Dialog>
  );
}

const HOUR_SECONDS = 3600;
const OVERLAP_HOURS = 24;

interface RotateProps {
  id: number;
  onClose: () => void;
  onRotated: (secret: string) => void;
}

function RotateDialog({ id, onClose, onRotated }: RotateProps) {
  const rotate = async (data: FormData) => {
    const body = { overlap_seconds: wholeOf(data, 'overlap_seconds') * HOUR_SECONDS };
    const made = await ask(api.POST('/api/v1/webhooks/{id}/rotate', { params: { path: { id } }, body }));
    onClose();
    onRotated(made.secret);
  };
  return (
    <Dialog title={t('rotate_title')} onClose={onClose}>
      <p>{t('rotate_text')}</p>
      <Form submit={t('rotate')} onSubmit={rotate} onCancel={onClose}>
        <Field name="overlap_seconds" label={t('overlap_hours')} hint={t('overlap_hours_hint')}>
          <input type="number" min={0} max={168} step={1} required defaultValue={OVERLAP_HOURS} />
        </Field>
      </Form>
    </Dialog>
  );
}
