// How tasks are shown and asked for wherever they are: their states, their arguments as JSON with
// the schema beside them, and the choice of what is to be done.

import { api, ask, invalid } from './api';
import type { Schemas, Task } from './api';
import { parseWritten, printWritten } from './json';
import { Link, part } from './router';
import { Ago, Field, Table, textOf, Verbatim } from './ui';
import { aboutOf, t } from './words';

/** Those that change by themselves first, then those that ended. */
export const TASK_STATES = ['running', 'available', 'scheduled', 'retryable', 'discarded', 'cancelled', 'completed'];

export type TaskType = Schemas['TypeView'];

export function isWaiting(state: string): boolean {
  return state === 'scheduled' || state === 'available' || state === 'retryable';
}

export function isFinal(state: string): boolean {
  return state === 'completed' || state === 'cancelled' || state === 'discarded';
}

/** The moment that matters in the task's state, led by what it is. */
export function When({ task }: { task: Task }) {
  if (task.finished_at) return <Ago at={task.finished_at} />;
  if (task.state === 'running') {
    return (
      <>
        {t('since_moment')} <Ago at={task.attempted_at ?? task.created_at} />
      </>
    );
  }
  if (task.waiting_on > 0) return <>{t('waits_for', { n: task.waiting_on })}</>;
  return (
    <>
      {t('due_moment')} <Ago at={task.run_at} />
    </>
  );
}

/** Ids are long; their ends tell them apart. */
export function TaskLink({ id, children }: { id: string; children?: string }) {
  return (
    <Link to={`/tasks/${part(id)}`} class={children ? '' : 'code'}>
      {children ?? `…${id.slice(-8)}`}
    </Link>
  );
}

/** This process calls itself so, with an id that is new at each start. */
const OWN_WORKER = /^process:/;

export function WorkerName({ name }: { name: string | undefined }) {
  if (!name) return null;
  return OWN_WORKER.test(name) ? <span title={name}>{t('this_server')}</span> : <code>{name}</code>;
}

export async function taskTypes(): Promise<TaskType[]> {
  return (await ask(api.GET('/api/v1/task-types'))).items;
}

// ── JSON ────────────────────────────────────────────────────────────────────────────────────────

export function jsonText(value: unknown): string {
  return printWritten(value, 2) ?? '';
}

export function Json({ value, name }: { value: unknown; name: string }) {
  return <Verbatim name={name}>{jsonText(value)}</Verbatim>;
}

/** What was typed as JSON; `undefined` where nothing was. */
export function jsonOf(data: FormData, name: string): unknown {
  const text = textOf(data, name);
  if (text === '') return undefined;
  try {
    return parseWritten(text);
  } catch (error) {
    throw invalid(name, t('is_no_json', { reason: error instanceof Error ? error.message : String(error) }));
  }
}

// ── Arguments and their schema ──────────────────────────────────────────────────────────────────

/** As much of JSON Schema as the server's own schemas need to be read by people. */
interface Schema {
  type?: string | string[];
  description?: string;
  default?: unknown;
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  additionalProperties?: Schema | boolean;
  enum?: unknown[];
  anyOf?: Schema[];
  $ref?: string;
}

function kindOf(schema: Schema): string {
  if (schema.enum) return schema.enum.map(String).join(' | ');
  if (schema.$ref) return schema.$ref.split('/').at(-1) ?? '';
  if (schema.anyOf) return schema.anyOf.map(kindOf).join(' | ');
  const kinds = [schema.type ?? 'any'].flat().filter((kind) => kind !== 'null');
  return kinds.map((kind) => (kind === 'array' && schema.items ? `${kindOf(schema.items)}[]` : kind)).join(' | ');
}

const EMPTY: Record<string, unknown> = { string: '', integer: 0, number: 0, boolean: false, array: [], object: {} };

/** What must be filled in, to begin with. */
export function skeletonOf(type: TaskType | undefined): string {
  const schema = (type?.args_schema ?? {}) as Schema;
  const needed = (schema.required ?? []).map((name) => {
    const kind = [schema.properties?.[name]?.type ?? 'string'].flat()[0] ?? 'string';
    return [name, EMPTY[kind] ?? null];
  });
  return needed.length === 0 ? '{}' : jsonText(Object.fromEntries(needed));
}

function fieldsOf(type: TaskType): [string, Schema][] {
  return Object.entries((type.args_schema as Schema).properties ?? {});
}

/** What a built-in task does and takes. */
export function TypeHelp({ type }: { type: TaskType }) {
  const schema = type.args_schema as Schema;
  const fields = fieldsOf(type);
  return (
    <div class="full help">
      <p class="quiet">{aboutOf(type.name, type.about)}</p>
      {fields.length === 0 ? (
        <p class="quiet">{t('takes_nothing')}</p>
      ) : (
        <Table
          caption={t('args')}
          rows={fields}
          keyOf={([name]) => name}
          columns={[
            {
              head: t('argument'),
              cell: ([name]) => (
                <>
                  <code>{name}</code>
                  {schema.required?.includes(name) && <span class="needed"> {t('needed')}</span>}
                </>
              ),
            },
            { head: t('kind'), cell: ([, field]) => <code>{kindOf(field)}</code> },
            {
              head: t('meaning'),
              kind: 'wide',
              cell: ([name, field]) => (
                <>
                  {aboutOf(`${type.name}.${name}`, field.description ?? '').replaceAll('`', '')}
                  {field.default !== undefined && field.default !== null && (
                    <span class="quiet"> {t('default_is', { value: JSON.stringify(field.default) })}</span>
                  )}
                </>
              ),
            },
          ]}
        />
      )}
    </div>
  );
}

/** The name by which a worker's task is chosen in the list: no task is called so. */
const OTHERS = '';

interface TaskChoiceProps {
  types: TaskType[];
  /** Of the input: `name` for a task, `task` for a schedule. */
  name: string;
  /** `undefined` as long as nothing is chosen, `''` for a worker's task. */
  chosen: string | undefined;
  onChoose: (name: string) => void;
  /** What a worker's task is called so far. */
  other?: string | undefined;
}

/** What is to be done: a built-in task, or whatever a worker of one's own knows. */
export function TaskChoice({ types, name, chosen, onChoose, other }: TaskChoiceProps) {
  const type = types.find((one) => one.name === chosen);
  return (
    <>
      <Field name={type ? name : 'task_kind'} label={t('task')}>
        <select
          value={chosen === undefined ? types[0]?.name : chosen}
          onChange={(event) => onChoose(event.currentTarget.value)}
        >
          {types.map((one) => (
            <option key={one.name} value={one.name}>
              {one.name}
            </option>
          ))}
          <option value={OTHERS}>{t('other_task')}</option>
        </select>
      </Field>
      {!type && (
        <Field name={name} label={t('task_name')} hint={t('task_name_hint')}>
          <input type="text" required maxLength={200} autocomplete="off" defaultValue={other} />
        </Field>
      )}
      {type && <TypeHelp type={type} />}
    </>
  );
}

/** Arguments as JSON, begun with what the task needs; nothing for one that takes none. */
export function ArgsField({ text, type }: { text: string; type: TaskType | undefined }) {
  if (type && fieldsOf(type).length === 0) return null;
  return (
    <Field name="args" label={t('args')} hint={t('json_hint')} class="full">
      <textarea key={text} class="code" rows={Math.min(12, Math.max(4, text.split('\n').length))} spellcheck={false} defaultValue={text} />
    </Field>
  );
}
