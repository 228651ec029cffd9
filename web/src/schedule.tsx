// One schedule: its rules, its next times, and what came of the last ones.

import { useState } from 'preact/hooks';
import { api, ask, isAdmin } from './api';
import type { Schedule, Schemas } from './api';
import { timesText } from './cron';
import { useLoad, usePages } from './data';
import { go, Link, part } from './router';
import { ScheduleForm } from './schedule-form';
import { RunNow, Source } from './schedules';
import { Json, TaskLink } from './task-parts';
import { Ago, Confirm, Fact, Facts, Pager, say, Show, State, Table, View } from './ui';
import { exactly, momentIn, number, t, timeZone, took, wordOf } from './words';

const REFRESH_MS = 3000;
const ROWS = 20;

type Run = Schemas['ScheduleRunView'];
type Asking = 'run' | 'pause' | 'remove' | 'edit';

export function ScheduleDetail({ name }: { name: string }) {
  const [asking, setAsking] = useState<Asking | undefined>(undefined);
  const params = { path: { name } };
  const loaded = useLoad(() => ask(api.GET('/api/v1/schedules/{name}', { params })), [name], REFRESH_MS);
  const runs = usePages(
    (cursor) =>
      ask(
        api.GET('/api/v1/schedules/{name}/runs', {
          params: { ...params, query: { limit: ROWS, ...(cursor && { cursor }) } },
        }),
      ),
    [name],
    REFRESH_MS,
  );
  const schedule = loaded.data;
  const close = () => setAsking(undefined);
  const pauseOrResume = async () => {
    if (schedule?.paused_at) await ask(api.POST('/api/v1/schedules/{name}/resume', { params }));
    else await ask(api.POST('/api/v1/schedules/{name}/pause', { params }));
    say(t(schedule?.paused_at ? 'schedule_resumed' : 'schedule_paused'));
    loaded.again();
  };
  const remove = async () => {
    await ask(api.DELETE('/api/v1/schedules/{name}', { params }));
    say(t('schedule_removed'));
    go('/schedules');
  };
  if (asking === 'edit' && schedule) {
    const saved = () => {
      loaded.again();
      close();
    };
    return (
      <View title={name} badge={<Source name={schedule.source} />} back="/schedules">
        <ScheduleForm schedule={schedule} onDone={saved} onCancel={close} />
      </View>
    );
  }
  return (
    <View
      title={name}
      badge={schedule && <State name={schedule.state} />}
      back="/schedules"
      actions={
        schedule &&
        isAdmin() && (
          <>
            <button type="button" class="primary" onClick={() => setAsking('run')}>
              {t('run_now')}
            </button>
            <button type="button" onClick={() => setAsking('pause')}>
              {t(schedule.paused_at ? 'resume' : 'pause')}
            </button>
            {schedule.source !== 'settings' && (
              <button type="button" onClick={() => setAsking('edit')}>
                {t('edit')}
              </button>
            )}
            {schedule.source === 'api' && (
              <button type="button" class="danger" onClick={() => setAsking('remove')}>
                {t('remove')}
              </button>
            )}
          </>
        )
      }
    >
      <Show of={loaded}>{(schedule) => <ScheduleNow schedule={schedule} />}</Show>
      {schedule && (
        <>
          <h2>{t('history')}</h2>
          <Show of={runs}>{(page) => <Runs runs={page.items} />}</Show>
          <Pager of={runs} />
        </>
      )}
      {asking === 'run' && <RunNow name={name} onClose={close} />}
      {asking === 'pause' && (
        <Confirm
          title={t(schedule?.paused_at ? 'schedule_resume_title' : 'schedule_pause_title', { name })}
          text={t(schedule?.paused_at ? 'schedule_resume_text' : 'schedule_pause_text')}
          action={t(schedule?.paused_at ? 'resume' : 'pause')}
          onConfirm={pauseOrResume}
          onClose={close}
        />
      )}
      {asking === 'remove' && (
        <Confirm
          title={t('schedule_remove_title', { name })}
          text={t('schedule_remove_text')}
          action={t('remove')}
          isDangerous
          onConfirm={remove}
          onClose={close}
        />
      )}
    </View>
  );
}

function ScheduleNow({ schedule }: { schedule: Schedule }) {
  const [first] = schedule.next_runs;
  const isElsewhere = schedule.cron !== undefined && schedule.time_zone !== timeZone();
  return (
    <>
      {schedule.error && <p class="alert plain-text">{schedule.error}</p>}
      <section class="card">
        <p class="times">{timesText(schedule)}</p>
        <Facts>
          {schedule.cron !== undefined && (
            <>
              <Fact name={t('cron')}>
                <code>{schedule.cron}</code>
              </Fact>
              <Fact name={t('time_zone')}>{schedule.time_zone}</Fact>
            </>
          )}
          <Fact name={t('next_run')}>{first ? <Ago at={first} /> : '–'}</Fact>
          <Fact name={t('task')}>
            <Link to={`/tasks?name=${part(schedule.task)}`}>{schedule.task}</Link>
          </Fact>
          <Fact name={t('made_by')}>{wordOf('source', schedule.source)}</Fact>
          {schedule.queue && <Fact name={t('queue')}>{schedule.queue}</Fact>}
          <Fact name={t('overlap')}>{wordOf('overlap', schedule.overlap)}</Fact>
          <Fact name={t('missed')}>
            {wordOf('missed', schedule.missed)}
            {schedule.missed === 'all' && ` (${t('up_to', { n: schedule.missed_max })})`}
          </Fact>
          {schedule.jitter_seconds > 0 && (
            <Fact name={t('jitter')}>{t('up_to', { n: took(schedule.jitter_seconds * 1000) })}</Fact>
          )}
          {schedule.priority !== undefined && <Fact name={t('priority')}>{number(schedule.priority)}</Fact>}
          {schedule.max_attempts !== undefined && <Fact name={t('max_attempts')}>{number(schedule.max_attempts)}</Fact>}
          {schedule.timeout_seconds !== undefined && (
            <Fact name={t('time_limit')}>{took(schedule.timeout_seconds * 1000)}</Fact>
          )}
        </Facts>
      </section>
      <div class="columns">
        {schedule.next_runs.length > 0 && (
          <section class="card">
            <h2>{t('next_runs')}</h2>
            <ol class="fires">
              {schedule.next_runs.map((at) => (
                <li key={at}>
                  {exactly(at)}
                  {isElsewhere && <span class="quiet"> · {momentIn(at, schedule.time_zone)}</span>}
                </li>
              ))}
            </ol>
            <p class="hint">{t('local_time', { zone: timeZone() })}</p>
          </section>
        )}
        <Json name={t('args')} value={schedule.args} />
      </div>
    </>
  );
}

function Runs({ runs }: { runs: Run[] }) {
  return (
    <Table
      caption={t('history')}
      rows={runs}
      keyOf={(run) => run.fire_at + run.cause}
      empty={t('no_runs')}
      columns={[
        { head: t('fired_for'), cell: (run) => exactly(run.fire_at) },
        { head: t('cause'), kind: 'wide', cell: (run) => wordOf('cause', run.cause) },
        {
          head: t('outcome'),
          cell: (run) => (
            <>
              <State of="outcome" name={run.outcome} />
              {run.error && <p class="quiet excerpt">{run.error}</p>}
            </>
          ),
        },
        {
          head: t('duration'),
          kind: 'number',
          cell: (run) => (run.duration_seconds === undefined ? '–' : took(run.duration_seconds * 1000)),
        },
        { head: t('task'), cell: (run) => run.task_id && <TaskLink id={run.task_id} /> },
      ]}
    />
  );
}
