// Everything that is to be done, runs or was done: by state, found by queue and name, changed one by
// one or all that fit.

import { useState } from 'preact/hooks';
import { api, ask, isAdmin } from './api';
import type { Schemas, Task } from './api';
import { useLoad, usePages } from './data';
import { Link, part, place, setQuery } from './router';
import { TASK_STATES, taskTypes, When } from './task-parts';
import { Choice, Confirm, Pager, say, Search, Show, State, Table, View } from './ui';
import { number, t, wordOf } from './words';

const ROWS = 25;
const REFRESH_MS = 3000;
const SHORT_CHARS = 120;

type Count = Schemas['CountedView'];
type Action = 'retry' | 'cancel' | 'remove';

/** What may be done to all in a state; to the whole list only what can't lose anything finished. */
function actionsIn(state: string, isFiltered: boolean): Action[] {
  switch (state) {
    case '':
      return isFiltered ? ['cancel'] : [];
    case 'scheduled':
    case 'retryable':
      return ['retry', 'cancel'];
    case 'available':
    case 'running':
      return ['cancel'];
    case 'discarded':
    case 'cancelled':
      return ['retry', 'remove'];
    default:
      return ['remove'];
  }
}

export function short(text: string): string {
  return text.length > SHORT_CHARS ? `${text.slice(0, SHORT_CHARS)}…` : text;
}

export function TaskTable({ tasks }: { tasks: Task[] }) {
  return (
    <Table
      caption={t('tasks')}
      rows={tasks}
      keyOf={(task) => task.id}
      empty={t('nothing_found')}
      columns={[
        {
          head: t('task'),
          cell: (task) => (
            <>
              <Link to={`/tasks/${part(task.id)}`}>
                {task.name}
                <span class="unseen"> {task.id}</span>
              </Link>
              {task.error && task.state !== 'completed' && <p class="quiet excerpt">{short(task.error)}</p>}
              {task.state === 'running' && task.progress !== undefined && (
                <p class="quiet excerpt">
                  {task.progress} % {task.progress_note}
                </p>
              )}
            </>
          ),
        },
        { head: t('state'), cell: (task) => <State of="task_state" name={task.state} /> },
        { head: t('queue'), kind: 'wide', cell: (task) => task.queue },
        { head: t('attempts'), kind: 'wide number', cell: (task) => `${number(task.attempt)} / ${number(task.max_attempts)}` },
        { head: t('when'), cell: (task) => <When task={task} /> },
      ]}
    />
  );
}

export function countText(count: Count): string {
  return number(count.count) + (count.is_more ? '+' : '');
}

function Tabs({ counts, chosen }: { counts: Count[]; chosen: string }) {
  const countOf = (state: string) => counts.find((count) => count.state === state);
  return (
    <div class="tabs" role="group" aria-label={t('state')}>
      {['', ...TASK_STATES].map((state) => {
        const count = countOf(state);
        return (
          <button
            key={state}
            type="button"
            aria-pressed={state === chosen}
            class={state === 'discarded' && count && count.count > 0 ? 'bad' : ''}
            onClick={() => setQuery({ state })}
          >
            {state === '' ? t('all') : wordOf('task_state', state)}
            {count && <span>{countText(count)}</span>}
          </button>
        );
      })}
    </div>
  );
}

interface BulkProps {
  action: Action;
  state: string;
  queue: string;
  name: string;
  count: Count | undefined;
  onClose: () => void;
  onDone: () => void;
}

/** Asks, then works through all that fit, page by page, and says how many it were. */
function BulkDialog({ action, state, queue, name, count, onClose, onDone }: BulkProps) {
  const [changed, setChanged] = useState<number | undefined>(undefined);
  const filters = [
    state && wordOf('task_state', state),
    queue && t('of_queue', { name: queue }),
    name && t('of_name', { name }),
  ].filter(Boolean);
  const isWhole = !queue && !name;
  const run = async () => {
    let done = 0;
    let cursor: string | undefined;
    do {
      const body = {
        action,
        ...(state && { state }),
        ...(queue && { queue }),
        ...(name && { name }),
        ...(cursor && { cursor }),
      };
      const answer = await ask(api.POST('/api/v1/tasks/bulk', { body }));
      done += answer.changed;
      cursor = answer.next_cursor;
      setChanged(done);
    } while (cursor);
    say(t('bulk_done', { n: done }));
    onDone();
  };
  const asked = t(`bulk_${action}_text`, { which: filters.join(' · ') });
  const many = isWhole && count ? ` ${t('bulk_many', { n: countText(count) })}` : '';
  return (
    <Confirm
      title={t(`bulk_${action}_title`)}
      text={changed === undefined ? asked + many : t('bulk_so_far', { n: changed })}
      action={t(`bulk_${action}`)}
      dismiss={t('back')}
      isDangerous={action !== 'retry'}
      onConfirm={run}
      onClose={onClose}
    />
  );
}

export function Tasks() {
  const [asking, setAsking] = useState<Action | undefined>(undefined);
  const { query } = place.value;
  const state = query.get('state') ?? '';
  const queue = query.get('queue') ?? '';
  const name = query.get('name') ?? '';
  const tasks = usePages(
    (cursor) =>
      ask(
        api.GET('/api/v1/tasks', {
          params: {
            query: {
              limit: ROWS,
              ...(state && { state }),
              ...(queue && { queue }),
              ...(name && { name }),
              ...(cursor && { cursor }),
            },
          },
        }),
      ),
    [state, queue, name],
    REFRESH_MS,
  );
  const counts = useLoad(() => ask(api.GET('/api/v1/task-counts')), [], REFRESH_MS);
  const queues = useLoad(() => ask(api.GET('/api/v1/queues')), []);
  const types = useLoad(taskTypes, []);
  const known = [...new Set([...(queues.data?.items.map((one) => one.name) ?? []), ...(queue ? [queue] : [])])];
  const again = () => {
    tasks.again();
    counts.again();
  };
  return (
    <View
      title={t('tasks')}
      actions={
        isAdmin() && (
          <>
            {actionsIn(state, Boolean(queue || name)).map((action) => (
              <button
                key={action}
                type="button"
                class={action === 'retry' ? '' : 'danger'}
                disabled={tasks.data?.items.length === 0 && !tasks.next}
                onClick={() => setAsking(action)}
              >
                {t(`bulk_${action}`)}
              </button>
            ))}
            <Link to="/tasks/new" class="button primary">
              {t('new_task')}
            </Link>
          </>
        )
      }
    >
      <Tabs counts={counts.data?.items ?? []} chosen={state} />
      <div class="filters" role="search">
        <Search label={t('task_name_exact')} value={name} list="task-names" onSearch={(text) => setQuery({ name: text })} />
        <datalist id="task-names">{types.data?.map((type) => <option key={type.name} value={type.name} />)}</datalist>
        <Choice
          label={t('queue')}
          value={queue}
          options={[['', t('any_queue')], ...known.map((one): [string, string] => [one, one])]}
          onChoose={(chosen) => setQuery({ queue: chosen })}
        />
      </div>
      <Show of={tasks}>
        {(page) =>
          // A look goes over a bounded number of rows: it may find nothing and yet lead on.
          page.items.length === 0 && page.next_cursor ? (
            <p class="empty">{t('nothing_so_far')}</p>
          ) : (
            <TaskTable tasks={page.items} />
          )
        }
      </Show>
      <Pager of={tasks} />
      {asking && (
        <BulkDialog
          action={asking}
          state={state}
          queue={queue}
          name={name}
          count={counts.data?.items.find((count) => count.state === state)}
          onClose={() => setAsking(undefined)}
          onDone={again}
        />
      )}
    </View>
  );
}
