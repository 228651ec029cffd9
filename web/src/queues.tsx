// The queues with what waits in each, how they are limited, and who works on them.

import { useState } from 'preact/hooks';
import { api, ask, isAdmin } from './api';
import type { Schemas, Task } from './api';
import { useLoad } from './data';
import { Link, part } from './router';
import { TaskLink, WorkerName } from './task-parts';
import { Ago, Confirm, Dialog, Field, Form, say, Show, State, Table, textOf, View, wholeOf } from './ui';
import { number, size, t, took } from './words';

const REFRESH_MS = 2000;
/** Running tasks that are looked for; more than that are told by the queues' figures. */
const RUNNING_SHOWN = 200;
/** A look for running tasks goes over a bounded number of rows: so many looks at most. */
const LOOKS_MAX = 5;

type Queue = Schemas['QueueView'];
type Worker = Schemas['WorkerView'];

async function running(): Promise<Task[]> {
  const found: Task[] = [];
  let cursor: string | undefined;
  for (let look = 0; look < LOOKS_MAX; look += 1) {
    const query = { state: 'running', limit: RUNNING_SHOWN, ...(cursor && { cursor }) };
    const page = await ask(api.GET('/api/v1/tasks', { params: { query } }));
    found.push(...page.items);
    cursor = page.next_cursor;
    if (!cursor || found.length >= RUNNING_SHOWN) break;
  }
  return found;
}

export function Queues() {
  const queues = useLoad(() => ask(api.GET('/api/v1/queues')), [], REFRESH_MS);
  const workers = useLoad(() => ask(api.GET('/api/v1/workers')), [], REFRESH_MS);
  const tasks = useLoad(running, [], REFRESH_MS);
  return (
    <View title={t('queues')}>
      <Show of={queues}>
        {(list) => (
          <>
            <p class="quiet lead">
              {t('queues_hint')} <Link to="/tasks?state=scheduled">{t('n_for_later', { n: list.scheduled })}</Link>
            </p>
            <QueueTable queues={list.items} onChanged={queues.again} />
          </>
        )}
      </Show>
      <h2>{t('running_tasks')}</h2>
      <Show of={tasks}>{(found) => <Running tasks={found} />}</Show>
      <h2>{t('workers')}</h2>
      <Show of={workers}>{(list) => <Workers workers={list.items} onChanged={workers.again} />}</Show>
    </View>
  );
}

function limitsOf(queue: Queue): string {
  const limits = [
    queue.concurrency_max !== undefined && t('at_once', { n: queue.concurrency_max }),
    queue.rate_limit !== undefined && t('per_time', { n: queue.rate_limit, time: took(queue.rate_period_ms ?? 1000) }),
  ];
  return limits.filter(Boolean).join(' · ');
}

function QueueTable({ queues, onChanged }: { queues: Queue[]; onChanged: () => void }) {
  const [pausing, setPausing] = useState<Queue | undefined>(undefined);
  const [limiting, setLimiting] = useState<Queue | undefined>(undefined);
  const resume = async (queue: Queue) => {
    await ask(api.POST('/api/v1/queues/{name}/resume', { params: { path: { name: queue.name } } }));
    say(t('queue_resumed'));
    onChanged();
  };
  const pause = async (queue: Queue) => {
    await ask(api.POST('/api/v1/queues/{name}/pause', { params: { path: { name: queue.name } } }));
    say(t('queue_paused'));
    onChanged();
  };
  const actions = (queue: Queue) => (
    <span class="row-actions">
      <button type="button" class="small" onClick={() => setPausing(queue)}>
        {t(queue.paused_at ? 'resume' : 'pause')}
        <span class="unseen"> {queue.name}</span>
      </button>
      <button type="button" class="small" onClick={() => setLimiting(queue)}>
        {t('limit')}
        <span class="unseen"> {queue.name}</span>
      </button>
    </span>
  );
  return (
    <>
      <Table
        caption={t('queues')}
        rows={queues}
        keyOf={(queue) => queue.name}
        columns={[
          {
            head: t('queue'),
            cell: (queue) => (
              <>
                <Link to={`/tasks?queue=${part(queue.name)}`}>{queue.name}</Link>{' '}
                {queue.paused_at && <State name="paused" />}
                {limitsOf(queue) && <p class="quiet excerpt">{limitsOf(queue)}</p>}
              </>
            ),
          },
          {
            head: t('ready'),
            kind: 'number',
            cell: (queue) => (
              <>
                {number(queue.ready)}
                {queue.ready > 0 && <p class="quiet excerpt narrow">{took(queue.latency_seconds * 1000)}</p>}
              </>
            ),
          },
          { head: t('running'), kind: 'number', cell: (queue) => number(queue.running) },
          {
            head: t('latency'),
            kind: 'wide number',
            cell: (queue) => (queue.ready === 0 ? '–' : took(queue.latency_seconds * 1000)),
          },
          { head: t('served_by'), kind: 'wide', cell: (queue) => t(queue.built_in ? 'this_server' : 'own_workers') },
          ...(isAdmin() ? [{ head: t('change'), cell: actions }] : []),
        ]}
      />
      {pausing && (
        <Confirm
          title={t(pausing.paused_at ? 'queue_resume_title' : 'queue_pause_title', { name: pausing.name })}
          text={t(pausing.paused_at ? 'queue_resume_text' : 'queue_pause_text', { n: pausing.ready })}
          action={t(pausing.paused_at ? 'resume' : 'pause')}
          isDangerous={!pausing.paused_at}
          onConfirm={() => (pausing.paused_at ? resume(pausing) : pause(pausing))}
          onClose={() => setPausing(undefined)}
        />
      )}
      {limiting && <Limits queue={limiting} onClose={() => setLimiting(undefined)} onSaved={onChanged} />}
    </>
  );
}

/** An empty input lifts a limit, which the API calls 0. */
function Limits({ queue, onClose, onSaved }: { queue: Queue; onClose: () => void; onSaved: () => void }) {
  const save = async (data: FormData) => {
    const limit = (name: string) => (textOf(data, name) === '' ? 0 : wholeOf(data, name));
    const period = limit('rate_period_ms');
    const body = {
      concurrency_max: limit('concurrency_max'),
      rate_limit: limit('rate_limit'),
      ...(period > 0 && { rate_period_ms: period }),
    };
    await ask(api.PATCH('/api/v1/queues/{name}', { params: { path: { name: queue.name } }, body }));
    say(t('saved'));
    onSaved();
    onClose();
  };
  return (
    <Dialog title={t('limit_title', { name: queue.name })} onClose={onClose}>
      <Form submit={t('save')} onSubmit={save} onCancel={onClose}>
        <Field name="concurrency_max" label={t('concurrency_max')} hint={t('no_limit_hint')} isOptional>
          <input type="number" min={1} step={1} defaultValue={queue.concurrency_max} />
        </Field>
        <Field name="rate_limit" label={t('rate_limit')} hint={t('no_limit_hint')} isOptional>
          <input type="number" min={1} step={1} defaultValue={queue.rate_limit} />
        </Field>
        <Field name="rate_period_ms" label={t('rate_period')}>
          <input type="number" min={1} step={1} defaultValue={queue.rate_period_ms ?? 1000} />
        </Field>
      </Form>
    </Dialog>
  );
}

function Running({ tasks }: { tasks: Task[] }) {
  // A worker may take many at once.
  const held = new Map<string, number>();
  for (const { worker } of tasks) if (worker) held.set(worker, (held.get(worker) ?? 0) + 1);
  return (
    <Table
      caption={t('running_tasks')}
      rows={tasks}
      keyOf={(task) => task.id}
      empty={t('nothing_runs')}
      columns={[
        {
          head: t('task'),
          cell: (task) => (
            <>
              <TaskLink id={task.id}>{task.name}</TaskLink>
              {task.progress !== undefined && (
                <p class="quiet excerpt">
                  {task.progress} % {task.progress_note}
                </p>
              )}
            </>
          ),
        },
        { head: t('queue'), kind: 'wide', cell: (task) => task.queue },
        {
          head: t('worker'),
          cell: (task) => {
            const count = held.get(task.worker ?? '') ?? 0;
            return (
              <>
                <WorkerName name={task.worker} />
                {count > 1 && <p class="quiet excerpt">{t('has_n_of_these', { n: count })}</p>}
              </>
            );
          },
        },
        { head: t('started_at'), cell: (task) => <Ago at={task.attempted_at ?? task.created_at} /> },
        { head: t('lease_until'), kind: 'wide', cell: (task) => task.lease_expires_at && <Ago at={task.lease_expires_at} /> },
      ]}
    />
  );
}

type Steer = 'quiet' | 'stop';

function Workers({ workers, onChanged }: { workers: Worker[]; onChanged: () => void }) {
  const [asking, setAsking] = useState<{ steer: Steer; worker: Worker } | undefined>(undefined);
  const steer = async () => {
    if (!asking) return;
    const params = { path: { wid: asking.worker.wid } };
    if (asking.steer === 'quiet') await ask(api.POST('/api/v1/workers/{wid}/quiet', { params }));
    else await ask(api.POST('/api/v1/workers/{wid}/stop', { params }));
    say(t('worker_told'));
    onChanged();
  };
  const actions = (worker: Worker) => (
    <span class="row-actions">
      {worker.state === 'running' && (
        <button type="button" class="small" onClick={() => setAsking({ steer: 'quiet', worker })}>
          {t('worker_quiet')}
          <span class="unseen"> {worker.wid}</span>
        </button>
      )}
      {worker.state !== 'terminate' && (
        <button type="button" class="small danger" onClick={() => setAsking({ steer: 'stop', worker })}>
          {t('worker_stop')}
          <span class="unseen"> {worker.wid}</span>
        </button>
      )}
    </span>
  );
  return (
    <>
      <Table
        caption={t('workers')}
        rows={workers}
        keyOf={(worker) => worker.wid}
        empty={t('no_workers')}
        columns={[
          {
            head: t('worker'),
            cell: (worker) => (
              <>
                <code>{worker.wid}</code>
                <p class="quiet excerpt">{[`${worker.hostname} · ${worker.pid}`, ...worker.labels].join(' · ')}</p>
              </>
            ),
          },
          { head: t('state'), cell: (worker) => <State of="worker_state" name={worker.state} /> },
          { head: t('jobs'), kind: 'number', cell: (worker) => number(worker.jobs) },
          { head: t('since_head'), kind: 'wide', cell: (worker) => <Ago at={worker.started_at} /> },
          { head: t('last_beat'), cell: (worker) => <Ago at={worker.last_beat_at} /> },
          {
            head: t('memory'),
            kind: 'wide number',
            cell: (worker) => (worker.rss_kb === undefined ? '–' : size(worker.rss_kb * 1024)),
          },
          ...(isAdmin() ? [{ head: t('change'), cell: actions }] : []),
        ]}
      />
      {asking && (
        <Confirm
          title={t(asking.steer === 'quiet' ? 'worker_quiet_title' : 'worker_stop_title', { name: asking.worker.wid })}
          text={t(asking.steer === 'quiet' ? 'worker_quiet_text' : 'worker_stop_text')}
          action={t(asking.steer === 'quiet' ? 'worker_quiet' : 'worker_stop')}
          isDangerous
          onConfirm={steer}
          onClose={() => setAsking(undefined)}
        />
      )}
    </>
  );
}
