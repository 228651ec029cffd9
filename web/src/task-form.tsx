// A task by hand: what is to be done, with which arguments, where and when.

import { useState } from 'preact/hooks';
import { api, ask, isAdmin } from './api';
import { useLoad } from './data';
import { go, part } from './router';
import { ArgsField, jsonOf, skeletonOf, TaskChoice, taskTypes } from './task-parts';
import type { TaskType } from './task-parts';
import { Field, Form, momentOf, NotFound, say, Show, textOf, View, wholeOf } from './ui';
import { number, t, timeZone } from './words';

export function NewTask() {
  const types = useLoad(taskTypes, []);
  if (!isAdmin()) return <NotFound />;
  return (
    <View title={t('new_task')} back="/tasks">
      <Show of={types}>{(types) => <TaskForm types={types} />}</Show>
    </View>
  );
}

function TaskForm({ types }: { types: TaskType[] }) {
  const [chosen, choose] = useState(types[0]?.name ?? '');
  const type = types.find((one) => one.name === chosen);
  const send = async (data: FormData) => {
    const typed = (name: string) => textOf(data, name) !== '';
    const made = await ask(
      api.POST('/api/v1/tasks', {
        body: {
          name: textOf(data, 'name'),
          args: jsonOf(data, 'args') ?? {},
          after: [],
          after_failure: false,
          unique_args: false,
          ...(typed('queue') && { queue: textOf(data, 'queue') }),
          ...(typed('priority') && { priority: wholeOf(data, 'priority') }),
          ...(typed('eta') && { eta: momentOf(data, 'eta') }),
          ...(typed('expires_at') && { expires_at: momentOf(data, 'expires_at') }),
          ...(typed('max_attempts') && { max_attempts: wholeOf(data, 'max_attempts') }),
          ...(typed('timeout_seconds') && { timeout_seconds: wholeOf(data, 'timeout_seconds') }),
          ...(typed('unique_key') && { unique_key: textOf(data, 'unique_key') }),
          ...(typed('metadata') && { metadata: jsonOf(data, 'metadata') }),
        },
      }),
    );
    say(t(made.outcome === 'duplicate' ? 'task_is_there' : 'task_enqueued'));
    go(`/tasks/${part(made.id)}`);
  };
  const usual = (value: number | undefined) => (value === undefined ? undefined : t('default_is', { value: number(value) }));
  const zone = t('local_time', { zone: timeZone() });
  return (
    <Form class="card form" submit={t('enqueue')} onSubmit={send} onCancel={() => go('/tasks')}>
      <TaskChoice types={types} name="name" chosen={chosen} onChoose={choose} />
      <ArgsField text={skeletonOf(type)} type={type} />
      {!type && (
        <Field name="queue" label={t('queue')} hint={t('queue_hint')}>
          <input type="text" autocomplete="off" maxLength={100} required defaultValue="default" />
        </Field>
      )}
      <Field name="eta" label={t('not_before')} hint={zone} isOptional>
        <input type="datetime-local" />
      </Field>
      <Field name="expires_at" label={t('start_until')} hint={zone} isOptional>
        <input type="datetime-local" />
      </Field>
      <Field name="priority" label={t('priority')} hint={t('priority_hint')} isOptional>
        <input type="number" min={0} max={255} step={1} />
      </Field>
      <Field name="max_attempts" label={t('max_attempts')} hint={usual(type?.max_attempts)} isOptional>
        <input type="number" min={1} step={1} />
      </Field>
      <Field
        name="timeout_seconds"
        label={t('time_limit_seconds')}
        hint={usual(type && Math.round(type.timeout_ms / 1000))}
        isOptional
      >
        <input type="number" min={1} step={1} />
      </Field>
      <Field name="unique_key" label={t('unique_key')} hint={t('unique_key_hint')} isOptional>
        <input type="text" autocomplete="off" maxLength={255} />
      </Field>
      <Field name="metadata" label={t('metadata')} hint={t('metadata_hint')} isOptional class="full">
        <textarea class="code" rows={2} spellcheck={false} />
      </Field>
    </Form>
  );
}
