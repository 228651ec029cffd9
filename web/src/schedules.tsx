// What is done again and again: when next, and how it went last.

import { useState } from 'preact/hooks';
import { api, ask, isAdmin } from './api';
import type { Schedule } from './api';
import { timesText } from './cron';
import { usePages } from './data';
import { go, Link, part } from './router';
import { Ago, Confirm, Pager, say, Show, State, Table, View } from './ui';
import { t, wordOf } from './words';

const ROWS = 50;
const REFRESH_MS = 5000;

/** Runs it now, after a question, and leads to the task that this made. */
export function RunNow({ name, onClose }: { name: string; onClose: () => void }) {
  const run = async () => {
    const made = await ask(api.POST('/api/v1/schedules/{name}/run', { params: { path: { name } } }));
    say(t('schedule_runs'));
    go(`/tasks/${part(made.task_id)}`);
  };
  return (
    <Confirm
      title={t('schedule_run_title', { name })}
      text={t('schedule_run_text')}
      action={t('run_now')}
      onConfirm={run}
      onClose={onClose}
    />
  );
}

export function Source({ name }: { name: string }) {
  return <span class={`badge ${name === 'api' ? 'plain' : 'accent'}`}>{wordOf('source', name)}</span>;
}

export function Schedules() {
  const [running, setRunning] = useState<string | undefined>(undefined);
  const schedules = usePages(
    (cursor) => ask(api.GET('/api/v1/schedules', { params: { query: { limit: ROWS, ...(cursor && { cursor }) } } })),
    [],
    REFRESH_MS,
  );
  return (
    <View
      title={t('schedules')}
      actions={
        isAdmin() && (
          <Link to="/schedules/+new" class="button primary">
            {t('new_schedule')}
          </Link>
        )
      }
    >
      <Show of={schedules}>
        {(page) => (
          <Table
            caption={t('schedules')}
            rows={page.items}
            keyOf={(schedule) => schedule.name}
            columns={[
              {
                head: t('name'),
                cell: (schedule) => (
                  <>
                    <Link to={`/schedules/${part(schedule.name)}`} class="long">
                      {schedule.name}
                    </Link>{' '}
                    {schedule.source !== 'api' && <Source name={schedule.source} />}
                    <p class="quiet excerpt">{timesText(schedule)}</p>
                  </>
                ),
              },
              { head: t('task'), kind: 'wide', cell: (schedule) => schedule.task },
              { head: t('time_zone'), kind: 'wide', cell: (schedule) => (schedule.cron ? schedule.time_zone : '–') },
              { head: t('next_run'), cell: (schedule) => <Next schedule={schedule} /> },
              {
                head: t('last_run'),
                cell: ({ last_run }) =>
                  last_run ? (
                    <>
                      <State of="outcome" name={last_run.outcome} />
                      <p class="quiet excerpt">
                        <Ago at={last_run.created_at} />
                      </p>
                    </>
                  ) : (
                    '–'
                  ),
              },
              ...(isAdmin()
                ? [
                    {
                      head: t('change'),
                      kind: 'wide' as const,
                      cell: (schedule: Schedule) => (
                        <button type="button" class="small" onClick={() => setRunning(schedule.name)}>
                          {t('run_now')}
                          <span class="unseen"> {schedule.name}</span>
                        </button>
                      ),
                    },
                  ]
                : []),
            ]}
          />
        )}
      </Show>
      <Pager of={schedules} />
      {running && <RunNow name={running} onClose={() => setRunning(undefined)} />}
    </View>
  );
}

function Next({ schedule }: { schedule: Schedule }) {
  if (schedule.state !== 'active') return <State name={schedule.state} />;
  const next = schedule.next_runs[0];
  return next ? <Ago at={next} /> : <>–</>;
}
