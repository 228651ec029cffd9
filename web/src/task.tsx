// One task: what it was asked to do, what became of each attempt, and what may be done about it.

import { useState } from 'preact/hooks';
import { api, ask, isAdmin } from './api';
import type { Schemas } from './api';
import { useLoad } from './data';
import { go, Link, part } from './router';
import { isFinal, isWaiting, Json, jsonOf, jsonText, TaskLink, When, WorkerName } from './task-parts';
import { Confirm, Dialog, Fact, Facts, Field, Form, localInput, Meter, momentOf, say, Show, State, Table, textOf, Verbatim, View, wholeOf } from './ui';
import { clock, exactly, number, t, timeZone, took } from './words';

const REFRESH_MS = 1500;

type Detail = Schemas['TaskDetail'];
type Attempt = Schemas['AttemptView'];
type Asking = 'retry' | 'cancel' | 'remove' | 'edit';

export function TaskDetail({ id }: { id: string }) {
  const [asking, setAsking] = useState<Asking | undefined>(undefined);
  const [isSettled, setSettled] = useState(false);
  const path = { params: { path: { id } } };
  const loaded = useLoad(
    async () => {
      const task = await ask(api.GET('/api/v1/tasks/{id}', path));
      setSettled(isFinal(task.state));
      return task;
    },
    [id, isSettled],
    isSettled ? undefined : REFRESH_MS,
  );
  const task = loaded.data;
  const close = () => setAsking(undefined);
  const retry = async () => {
    await ask(api.POST('/api/v1/tasks/{id}/retry', path));
    say(t('task_retried'));
    loaded.again();
  };
  const cancel = async () => {
    const { state } = await ask(api.POST('/api/v1/tasks/{id}/cancel', path));
    say(t(state === 'running' ? 'task_cancel_asked' : 'task_cancelled'));
    loaded.again();
  };
  const remove = async () => {
    await ask(api.DELETE('/api/v1/tasks/{id}', path));
    say(t('task_removed'));
    go('/tasks');
  };
  return (
    <View
      title={task?.name ?? t('task')}
      badge={task && <State of="task_state" name={task.state} />}
      back="/tasks"
      actions={task && isAdmin() && <Actions task={task} onAsk={setAsking} />}
    >
      <Show of={loaded}>{(task) => <TaskNow task={task} />}</Show>
      {asking === 'retry' && (
        <Confirm
          title={t('task_retry_title')}
          text={t(task && isFinal(task.state) ? 'task_retry_text' : 'task_now_text')}
          action={t(task && isFinal(task.state) ? 'retry' : 'run_now')}
          onConfirm={retry}
          onClose={close}
        />
      )}
      {asking === 'cancel' && (
        <Confirm
          title={t('task_cancel_title')}
          text={t(task?.state === 'running' ? 'task_cancel_running' : 'task_cancel_text')}
          action={t('task_cancel')}
          dismiss={t('back')}
          isDangerous
          onConfirm={cancel}
          onClose={close}
        />
      )}
      {asking === 'remove' && (
        <Confirm
          title={t('task_remove_title')}
          text={t('task_remove_text')}
          action={t('remove')}
          isDangerous
          onConfirm={remove}
          onClose={close}
        />
      )}
      {asking === 'edit' && task && <EditDialog task={task} onClose={close} onSaved={loaded.again} />}
    </View>
  );
}

function Actions({ task, onAsk }: { task: Detail; onAsk: (asked: Asking) => void }) {
  const { state } = task;
  const mayRetry = state === 'discarded' || state === 'cancelled' || state === 'retryable' || (state === 'scheduled' && task.waiting_on === 0);
  return (
    <>
      {mayRetry && (
        <button type="button" class="primary" onClick={() => onAsk('retry')}>
          {t(isFinal(state) ? 'retry' : 'run_now')}
        </button>
      )}
      {isWaiting(state) && (
        <button type="button" onClick={() => onAsk('edit')}>
          {t('edit')}
        </button>
      )}
      {!isFinal(state) && !task.cancel_requested_at && (
        <button type="button" class="danger" onClick={() => onAsk('cancel')}>
          {t('task_cancel')}
        </button>
      )}
      {isFinal(state) && (
        <button type="button" class="danger" onClick={() => onAsk('remove')}>
          {t('remove')}
        </button>
      )}
    </>
  );
}

function retryText(policy: Schemas['RetryBody']): string {
  switch (policy.kind) {
    case 'fixed':
      return t('retry_fixed', { time: took(policy.delay_ms ?? 0) });
    case 'exponential':
      return t('retry_exponential', { first: took(policy.first_ms ?? 0), most: took(policy.max_ms ?? 0) });
    default:
      return t('retry_default');
  }
}

function TaskNow({ task }: { task: Detail }) {
  return (
    <>
      {task.error && task.state !== 'completed' && (
        <p class="alert plain-text">
          {task.error}
        </p>
      )}
      <section class="card">
        {task.progress !== undefined && (
          <div class="meter">
            <Meter percent={task.progress} label={t('percent_done', { n: task.progress })} />
            <p class="quiet">
              {task.progress} % {task.progress_note}
            </p>
          </div>
        )}
        <Facts>
          <Fact name={t('id')}>
            <code>{task.id}</code>
          </Fact>
          <Fact name={t('queue')}>
            <Link to={`/tasks?queue=${part(task.queue)}`}>{task.queue}</Link>
          </Fact>
          <Fact name={t(task.state === 'retryable' ? 'next_attempt' : 'when')}>
            <When task={task} />
          </Fact>
          <Fact name={t('attempts')}>{t('n_of_m', { n: task.attempt, m: task.max_attempts })}</Fact>
          <Fact name={t('created_at')}>{exactly(task.created_at)}</Fact>
          {task.state === 'scheduled' || task.state === 'retryable' ? (
            <Fact name={t('not_before')}>{exactly(task.run_at)}</Fact>
          ) : null}
          {task.finished_at && <Fact name={t('finished_at')}>{exactly(task.finished_at)}</Fact>}
          {task.expires_at && <Fact name={t('start_until')}>{exactly(task.expires_at)}</Fact>}
          <Fact name={t('priority')}>{number(task.priority)}</Fact>
          <Fact name={t('time_limit')}>{took(task.timeout_ms)}</Fact>
          <Fact name={t('retries')}>{retryText(task.retry_policy)}</Fact>
          {task.worker && (
            <Fact name={t('worker')}>
              <WorkerName name={task.worker} />
            </Fact>
          )}
          {task.lease_expires_at && <Fact name={t('lease_until')}>{exactly(task.lease_expires_at)}</Fact>}
          {task.crashes > 0 && <Fact name={t('crashes')}>{number(task.crashes)}</Fact>}
          {task.cancel_requested_at && <Fact name={t('cancel_asked_at')}>{exactly(task.cancel_requested_at)}</Fact>}
          {task.traceparent && (
            <Fact name={t('trace')}>
              <code>{task.traceparent}</code>
            </Fact>
          )}
        </Facts>
      </section>
      <Tied task={task} />
      <div class="columns">
        <Json name={t('args')} value={task.args} />
        {task.result !== undefined && <Json name={t('result')} value={task.result} />}
        {task.metadata !== undefined && <Json name={t('metadata')} value={task.metadata} />}
      </div>
      <h2>{t('attempts')}</h2>
      <Attempts task={task} />
      {task.logs.length > 0 && <Log lines={task.logs} />}
    </>
  );
}

/** What the task waits for, what waits for it, and which others it is counted with. */
function Tied({ task }: { task: Detail }) {
  const { batch, followers } = task;
  if (!batch && followers.length === 0 && task.waiting_on === 0) return null;
  return (
    <section class="card">
      <h2>{t('tied')}</h2>
      <Facts>
        {task.waiting_on > 0 && <Fact name={t('waits')}>{t('for_tasks', { n: task.waiting_on })}</Fact>}
        {followers.length > 0 && (
          <Fact name={t('followers')}>
            {followers.map((id) => (
              <span key={id}>
                <TaskLink id={id} />{' '}
              </span>
            ))}
          </Fact>
        )}
        {batch && (
          <>
            <Fact name={t('batch')}>{batch.description ?? <code>{batch.id}</code>}</Fact>
            <Fact name={t('batch_done')}>
              {t('n_of_m', { n: batch.total - batch.pending, m: batch.total })}
              {batch.failed > 0 && ` · ${t('batch_failed', { n: batch.failed })}`}
            </Fact>
            {batch.finished_at && <Fact name={t('finished_at')}>{exactly(batch.finished_at)}</Fact>}
          </>
        )}
      </Facts>
    </section>
  );
}

interface AttemptRow extends Omit<Attempt, 'finished_at'> {
  finished_at?: string | undefined;
}

/** The attempts that did not simply succeed, and the one that did or that runs, which the task itself tells. */
function attemptsOf(task: Detail): AttemptRow[] {
  if ((task.state !== 'running' && task.state !== 'completed') || !task.attempted_at) return task.attempts;
  const last: AttemptRow = {
    attempt: task.attempt,
    outcome: task.state,
    started_at: task.attempted_at,
    finished_at: task.finished_at,
    ...(task.worker && { worker: task.worker }),
  };
  return [last, ...task.attempts];
}

function Attempts({ task }: { task: Detail }) {
  return (
    <Table
      caption={t('attempts')}
      rows={attemptsOf(task)}
      keyOf={(attempt) => attempt.attempt}
      empty={t('no_attempts')}
      columns={[
        { head: '#', kind: 'number', cell: (attempt) => number(attempt.attempt) },
        {
          head: t('outcome'),
          cell: (attempt) => (
            <>
              <State of="outcome" name={attempt.outcome} />
              {attempt.error && <p class="quiet excerpt plain-text">{attempt.error}</p>}
            </>
          ),
        },
        { head: t('started_at'), cell: (attempt) => exactly(attempt.started_at) },
        {
          head: t('duration'),
          kind: 'number',
          cell: (attempt) => attempt.finished_at && took(Date.parse(attempt.finished_at) - Date.parse(attempt.started_at)),
        },
        { head: t('worker'), kind: 'wide', cell: (attempt) => <WorkerName name={attempt.worker} /> },
      ]}
    />
  );
}

/** Oldest first, as it was written. */
function Log({ lines }: { lines: Schemas['LogView'][] }) {
  return (
    <Verbatim name={t('log')}>
      {lines.toReversed().map((line, at) => (
        <span key={at} class={`level-${line.level}`}>
          {`${clock(line.at)}  #${line.attempt}  ${line.line}\n`}
        </span>
      ))}
    </Verbatim>
  );
}

function EditDialog({ task, onClose, onSaved }: { task: Detail; onClose: () => void; onSaved: () => void }) {
  const args = jsonText(task.args);
  const metadata = task.metadata === undefined ? '' : jsonText(task.metadata);
  const before = {
    priority: String(task.priority),
    max_attempts: String(task.max_attempts),
    timeout_seconds: String(Math.ceil(task.timeout_ms / 1000)),
    eta: localInput(new Date(task.run_at)),
    expires_at: task.expires_at ? localInput(new Date(task.expires_at)) : '',
  };
  const save = async (data: FormData) => {
    const typed = (name: string) => textOf(data, name);
    const differs = (name: keyof typeof before) => typed(name) !== '' && typed(name) !== before[name];
    const body: Schemas['TaskPatch'] = {
      ...(typed('args') !== args && { args: jsonOf(data, 'args') }),
      ...(typed('metadata') !== metadata && { metadata: jsonOf(data, 'metadata') }),
      ...(differs('priority') && { priority: wholeOf(data, 'priority') }),
      ...(differs('max_attempts') && { max_attempts: wholeOf(data, 'max_attempts') }),
      ...(differs('timeout_seconds') && { timeout_seconds: wholeOf(data, 'timeout_seconds') }),
      ...(differs('eta') && { eta: momentOf(data, 'eta') }),
      ...(differs('expires_at') && { expires_at: momentOf(data, 'expires_at') }),
    };
    await ask(api.PATCH('/api/v1/tasks/{id}', { params: { path: { id: task.id } }, body }));
    say(t('saved'));
    onSaved();
    onClose();
  };
  return (
    <Dialog title={t('edit')} isWide onClose={onClose}>
      <Form class="form" submit={t('save')} onSubmit={save} onCancel={onClose}>
        <Field name="args" label={t('args')} class="full">
          <textarea class="code" rows={6} spellcheck={false} defaultValue={args} />
        </Field>
        <Field name="eta" label={t('not_before')} hint={t('local_time', { zone: timeZone() })}>
          <input type="datetime-local" defaultValue={before.eta} />
        </Field>
        <Field name="expires_at" label={t('start_until')} hint={t('local_time', { zone: timeZone() })} isOptional>
          <input type="datetime-local" defaultValue={before.expires_at} />
        </Field>
        <Field name="priority" label={t('priority')} hint={t('priority_hint')}>
          <input type="number" min={0} max={255} step={1} defaultValue={before.priority} />
        </Field>
        <Field name="max_attempts" label={t('max_attempts')}>
          <input type="number" min={1} step={1} defaultValue={before.max_attempts} />
        </Field>
        <Field name="timeout_seconds" label={t('time_limit_seconds')}>
          <input type="number" min={1} step={1} defaultValue={before.timeout_seconds} />
        </Field>
        <Field name="metadata" label={t('metadata')} class="full" isOptional>
          <textarea class="code" rows={2} spellcheck={false} defaultValue={metadata} />
        </Field>
      </Form>
    </Dialog>
  );
}
