// What a schedule is to say: when, what, and what if it comes late or twice.

import { useState } from 'preact/hooks';
import { api, ask, isAdmin } from './api';
import type { Schedule, Schemas } from './api';
import { cronWords } from './cron';
import { useLoad } from './data';
import { go, part } from './router';
import { ArgsField, jsonOf, jsonText, skeletonOf, TaskChoice, taskTypes } from './task-parts';
import type { TaskType } from './task-parts';
import { Field, Form, NotFound, say, Show, textOf, View, wholeOf } from './ui';
import { t, timeZone, wordOf } from './words';

const OVERLAPS = ['skip', 'allow', 'queue_one'];
const MISSED = ['once', 'skip', 'all'];

export function NewSchedule() {
  if (!isAdmin()) return <NotFound />;
  return (
    <View title={t('new_schedule')} back="/schedules">
      <ScheduleForm onDone={(name) => go(`/schedules/${part(name)}`)} onCancel={() => go('/schedules')} />
    </View>
  );
}

interface FormProps {
  /** The one to change; a new one without. */
  schedule?: Schedule;
  onDone: (name: string) => void;
  onCancel: () => void;
}

export function ScheduleForm(props: FormProps) {
  const types = useLoad(taskTypes, []);
  return <Show of={types}>{(types) => <Fields {...props} types={types} />}</Show>;
}

function Fields({ schedule, onDone, onCancel, types }: FormProps & { types: TaskType[] }) {
  const [isInterval, setInterval] = useState(schedule?.interval_seconds !== undefined);
  const [cron, setCron] = useState(schedule?.cron ?? '0 3 * * *');
  const known = (name: string | undefined) => (types.some((type) => type.name === name) ? name : '');
  const [chosen, choose] = useState(schedule ? known(schedule.task) : types[0]?.name);
  const type = types.find((one) => one.name === chosen);
  const args = schedule && chosen === known(schedule.task) ? jsonText(schedule.args) : skeletonOf(type);
  // A built-in one can be given other times and policies, and no other task.
  const hasTask = schedule?.source !== 'built_in';

  /** Of a change, only what differs from what there was. */
  const differs = (name: keyof Schedule, value: unknown) => !schedule || schedule[name] !== value;
  const send = async (data: FormData) => {
    const typed = (name: string) => textOf(data, name) !== '';
    const number = (name: 'missed_max' | 'jitter_seconds' | 'priority' | 'max_attempts' | 'timeout_seconds') =>
      typed(name) && differs(name, wholeOf(data, name)) && { [name]: wholeOf(data, name) };
    const word = (name: 'time_zone' | 'overlap' | 'missed') =>
      typed(name) && differs(name, textOf(data, name)) && { [name]: textOf(data, name) };
    const times = isInterval ? { interval_seconds: wholeOf(data, 'interval_seconds') } : { cron: textOf(data, 'cron') };
    const hasOtherTimes = isInterval
      ? differs('interval_seconds', times.interval_seconds)
      : differs('cron', times.cron);
    const edit: Schemas['ScheduleEdit'] = {
      ...(hasOtherTimes && times),
      ...word('time_zone'),
      ...word('overlap'),
      ...word('missed'),
      ...number('missed_max'),
      ...number('jitter_seconds'),
      ...(hasTask && {
        ...(differs('task', textOf(data, 'task')) && { task: textOf(data, 'task') }),
        ...(typed('queue') && differs('queue', textOf(data, 'queue')) && { queue: textOf(data, 'queue') }),
        ...((textOf(data, 'args') || '{}') !== (schedule && jsonText(schedule.args)) && { args: jsonOf(data, 'args') ?? {} }),
        ...number('priority'),
        ...number('max_attempts'),
        ...number('timeout_seconds'),
      }),
    };
    if (schedule) {
      await ask(api.PATCH('/api/v1/schedules/{name}', { params: { path: { name: schedule.name } }, body: edit }));
      say(t('saved'));
      onDone(schedule.name);
      return;
    }
    const name = textOf(data, 'name');
    const body = { ...edit, name, task: textOf(data, 'task'), paused: data.has('paused') };
    await ask(api.POST('/api/v1/schedules', { body }));
    say(t('schedule_made'));
    onDone(name);
  };

  return (
    <Form class="card form" submit={t(schedule ? 'save' : 'create')} onSubmit={send} onCancel={onCancel}>
      {!schedule && (
        <Field name="name" label={t('name')} hint={t('schedule_name_hint')} class="full">
          <input type="text" required maxLength={100} autocomplete="off" />
        </Field>
      )}
      <fieldset class="full choices">
        <legend>{t('when')}</legend>
        <label class="tick">
          <input type="radio" name="times" checked={!isInterval} onChange={() => setInterval(false)} />
          {t('by_cron')}
        </label>
        <label class="tick">
          <input type="radio" name="times" checked={isInterval} onChange={() => setInterval(true)} />
          {t('by_interval')}
        </label>
      </fieldset>
      {isInterval ? (
        <Field name="interval_seconds" label={t('interval_seconds')}>
          <input type="number" min={1} step={1} required defaultValue={schedule?.interval_seconds ?? 300} />
        </Field>
      ) : (
        <>
          <Field name="cron" label={t('cron')} hint={cronWords(cron) ?? t('cron_hint')}>
            <input
              type="text"
              class="code"
              required
              maxLength={200}
              autocomplete="off"
              defaultValue={cron}
              onInput={(event) => setCron(event.currentTarget.value)}
            />
          </Field>
          <Field name="time_zone" label={t('time_zone')} hint={t('time_zone_hint')}>
            <input type="text" list="time-zones" autocomplete="off" defaultValue={schedule?.time_zone ?? timeZone()} />
          </Field>
          <datalist id="time-zones">
            {Intl.supportedValuesOf('timeZone').map((zone) => (
              <option key={zone} value={zone} />
            ))}
          </datalist>
        </>
      )}
      {hasTask && (
        <>
          <TaskChoice types={types} name="task" chosen={chosen} onChoose={choose} other={schedule?.task} />
          <ArgsField text={args} type={type} />
          <Field name="queue" label={t('queue')} hint={t('schedule_queue_hint')} isOptional>
            <input type="text" autocomplete="off" maxLength={100} defaultValue={schedule?.queue} />
          </Field>
        </>
      )}
      <Field name="overlap" label={t('overlap')}>
        <select>
          {OVERLAPS.map((name) => (
            <option key={name} value={name} selected={name === (schedule?.overlap ?? 'skip')}>
              {wordOf('overlap', name)}
            </option>
          ))}
        </select>
      </Field>
      <Field name="missed" label={t('missed')}>
        <select>
          {MISSED.map((name) => (
            <option key={name} value={name} selected={name === (schedule?.missed ?? 'once')}>
              {wordOf('missed', name)}
            </option>
          ))}
        </select>
      </Field>
      <Field name="missed_max" label={t('missed_max')} isOptional>
        <input type="number" min={1} step={1} defaultValue={schedule?.missed_max} />
      </Field>
      <Field name="jitter_seconds" label={t('jitter_seconds')} hint={t('jitter_hint')} isOptional>
        <input type="number" min={0} step={1} defaultValue={schedule?.jitter_seconds} />
      </Field>
      {hasTask && (
        <>
          <Field name="priority" label={t('priority')} hint={t('priority_hint')} isOptional>
            <input type="number" min={0} max={255} step={1} defaultValue={schedule?.priority} />
          </Field>
          <Field name="max_attempts" label={t('max_attempts')} isOptional>
            <input type="number" min={1} step={1} defaultValue={schedule?.max_attempts} />
          </Field>
          <Field name="timeout_seconds" label={t('time_limit_seconds')} isOptional>
            <input type="number" min={1} step={1} defaultValue={schedule?.timeout_seconds} />
          </Field>
        </>
      )}
      {!schedule && (
        <label class="tick full">
          <input type="checkbox" name="paused" />
          {t('begin_paused')}
        </label>
      )}
    </Form>
  );
}
