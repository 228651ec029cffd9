// What the database is asked, statement by statement: how often, for how long, and which calls were
// slow, for whom.

import { useState } from 'preact/hooks';
import { api, ask } from './api';
import type { Schemas } from './api';
import { useLoad } from './data';
import { place, setQuery } from './router';
import { TaskLink } from './task-parts';
import { short } from './tasks';
import { Ago, Choice, Dialog, Fact, Facts, Search, Show, Table, Verbatim, View } from './ui';
import { closely, number, percent, t, took } from './words';

const REFRESH_MS = 3000;
/** The most that the API gives; a shop runs fewer statements than that. */
const ROWS = 200;
const SORTS = ['total', 'mean', 'p95', 'max', 'calls', 'slow'] as const;
/** What a task's statements are run by is called so, and its id is the task's. */
const OF_TASK = /^task /;
/** Who asked where nobody did. */
const UPKEEP = 'upkeep';

type Answer = Schemas['SlowQueriesView'];
type Statement = Schemas['StatementView'];
type SlowCall = Schemas['SlowCallView'];

export function Queries() {
  const [seen, setSeen] = useState<Statement | undefined>(undefined);
  const { query } = place.value;
  const sort = query.get('sort') ?? '';
  const isSlowList = query.get('list') === 'slow';
  const slowOnly = query.get('slow') === '1';
  const loaded = useLoad(
    () =>
      ask(
        api.GET('/api/v1/system/slow-queries', {
          params: { query: { limit: ROWS, slow_only: slowOnly, ...(sort && { sort }) } },
        }),
      ),
    [sort, slowOnly],
    REFRESH_MS,
  );
  return (
    <View title={t('queries')}>
      <Show of={loaded}>
        {(answer) => (
          <>
            <Settings answer={answer} />
            <div class="tabs" role="group" aria-label={t('queries')}>
              <button type="button" aria-pressed={!isSlowList} onClick={() => setQuery({ list: '' })}>
                {t('statements')} <span>{number(answer.items.length)}</span>
              </button>
              <button type="button" aria-pressed={isSlowList} onClick={() => setQuery({ list: 'slow' })}>
                {t('slow_calls')} <span>{number(answer.recent.length)}</span>
              </button>
            </div>
            {isSlowList ? (
              <SlowCalls answer={answer} onSee={setSeen} />
            ) : (
              <>
                <Filters sort={sort} slowOnly={slowOnly} />
                <Statements answer={answer} text={query.get('q') ?? ''} isWhole={!slowOnly} onSee={setSeen} />
              </>
            )}
          </>
        )}
      </Show>
      {seen && <StatementDialog statement={seen} onClose={() => setSeen(undefined)} />}
    </View>
  );
}

function Filters({ sort, slowOnly }: { sort: string; slowOnly: boolean }) {
  return (
    <div class="filters" role="search">
      <Search label={t('find_statement')} value={place.value.query.get('q') ?? ''} onSearch={(q) => setQuery({ q })} />
      <Choice
        label={t('sort')}
        value={sort || 'total'}
        options={SORTS.map((one): [string, string] => [one, t(`sort_${one}`)])}
        onChoose={(chosen) => setQuery({ sort: chosen })}
      />
      <Choice
        label={t('statements')}
        value={slowOnly ? '1' : ''}
        options={[
          ['', t('all_statements')],
          ['1', t('slow_only')],
        ]}
        onChoose={(slow) => setQuery({ slow })}
      />
    </div>
  );
}

/** What counts as slow and what is told of it, each with the setting that says so. */
function Settings({ answer }: { answer: Answer }) {
  return (
    <section class="card">
      <Facts>
        <Fact name={t('calls_in_all')}>{number(answer.calls)}</Fact>
        <Fact name={t('slow_from')}>
          {took(answer.threshold_ms)}
          <p class="hint code">
            database.<wbr />
            slow_list_ms
          </p>
        </Fact>
        <Fact name={t('logged_from')}>
          {took(answer.log_threshold_ms)}
          <p class="hint code">
            database.<wbr />
            slow_log_ms
          </p>
        </Fact>
        <Fact name={t('parameters')}>
          {t(answer.parameters_hidden ? 'hidden' : 'shown')}
          <p class="hint code">
            database.<wbr />
            hide_parameters
          </p>
        </Fact>
      </Facts>
    </section>
  );
}

interface StatementsProps {
  answer: Answer;
  /** What is looked for in names and SQL. */
  text: string;
  /** Whether the answer leaves out none by what was asked for. */
  isWhole: boolean;
  onSee: (statement: Statement) => void;
}

function Statements({ answer, text, isWhole, onSee }: StatementsProps) {
  const { items } = answer;
  const wanted = text.toLowerCase();
  const isFound = (one: Statement) => `${one.name} ${one.text}`.toLowerCase().includes(wanted);
  const whole = items.reduce((sum, one) => sum + one.total_ms, 0);
  // A share is one of all statements, or it says nothing.
  const shareOf = (one: Statement) => (isWhole && items.length < ROWS && whole > 0 ? percent(one.total_ms / whole) : undefined);
  return (
    <Table
      caption={t('statements')}
      rows={items.filter(isFound)}
      keyOf={(one) => one.name}
      empty={items.length > 0 || isWhole ? t('nothing_found') : nothingSlow(answer)}
      columns={[
        {
          head: t('statement'),
          cell: (one) => (
            <>
              <StatementButton statement={one} onSee={onSee} />
              <p class="quiet excerpt wide code">{short(one.text)}</p>
              <p class="quiet excerpt narrow">{t('n_calls', { n: one.calls })}</p>
            </>
          ),
        },
        { head: t('calls'), kind: 'wide number', cell: (one) => number(one.calls) },
        { head: t('rows'), kind: 'wide number', cell: (one) => number(one.rows) },
        {
          head: t('total_time'),
          kind: 'number',
          cell: (one) => (
            <>
              {closely(one.total_ms)}
              <p class="quiet excerpt">{shareOf(one)}</p>
            </>
          ),
        },
        { head: t('mean'), kind: 'number', cell: (one) => closely(one.mean_ms) },
        { head: t('p95'), kind: 'wide number', cell: (one) => closely(one.p95_ms) },
        { head: t('longest'), kind: 'wide number', cell: (one) => closely(one.max_ms) },
        {
          head: t('slow'),
          kind: 'wide number',
          cell: (one) => (one.slow_calls > 0 ? <span class="badge warn">{number(one.slow_calls)}</span> : '–'),
        },
      ]}
    />
  );
}

function StatementButton({ statement, onSee }: { statement: Statement; onSee: (statement: Statement) => void }) {
  return (
    <button type="button" class="link code long" onClick={() => onSee(statement)}>
      {statement.name}
    </button>
  );
}

function nothingSlow({ threshold_ms: threshold }: Answer): string {
  return t('nothing_slow', { time: took(threshold) });
}

function SlowCalls({ answer, onSee }: { answer: Answer; onSee: (statement: Statement) => void }) {
  const statementOf = new Map(answer.items.map((one) => [one.name, one]));
  const name = (call: SlowCall) => {
    const statement = statementOf.get(call.statement);
    return statement ? <StatementButton statement={statement} onSee={onSee} /> : <code>{call.statement}</code>;
  };
  return (
    <Table
      caption={t('slow_calls')}
      // Two calls may end within the same millisecond.
      rows={answer.recent.map((call, at) => ({ ...call, place: answer.recent.length - at }))}
      keyOf={(call) => `${call.at} ${call.place}`}
      empty={nothingSlow(answer)}
      columns={[
        { head: t('when'), kind: 'wide', cell: (call) => <Ago at={call.at} /> },
        {
          head: t('statement'),
          cell: (call) => (
            <>
              {name(call)}
              <p class="quiet excerpt narrow">
                <Ago at={call.at} /> · <CallerOf call={call} />
              </p>
              {call.params && <p class="quiet excerpt code">{call.params.join(', ')}</p>}
            </>
          ),
        },
        { head: t('duration'), kind: 'number', cell: (call) => closely(call.elapsed_ms) },
        { head: t('rows'), kind: 'wide number', cell: (call) => number(call.rows) },
        { head: t('caller'), kind: 'wide', cell: (call) => <CallerOf call={call} /> },
      ]}
    />
  );
}

/** The endpoint or task, and the id by which the log knows that request. */
function CallerOf({ call }: { call: SlowCall }) {
  if (!call.caller) return <>{t('upkeep')}</>;
  const id = call.caller_id;
  return (
    <>
      <code class="long">{call.caller}</code> {id && (OF_TASK.test(call.caller) ? <TaskLink id={id} /> : <code class="quiet long">{id}</code>)}
    </>
  );
}

/** All that is known of a statement: its text, its figures, its plan, who waited for it. */
function StatementDialog({ statement, onClose }: { statement: Statement; onClose: () => void }) {
  return (
    <Dialog title={statement.name} isWide onClose={onClose}>
      <Facts>
        <Fact name={t('calls')}>{number(statement.calls)}</Fact>
        <Fact name={t('rows')}>{number(statement.rows)}</Fact>
        <Fact name={t('total_time')}>{closely(statement.total_ms)}</Fact>
        <Fact name={t('mean')}>{closely(statement.mean_ms)}</Fact>
        <Fact name={t('p95')}>{closely(statement.p95_ms)}</Fact>
        <Fact name={t('longest')}>{closely(statement.max_ms)}</Fact>
        <Fact name={t('slow_calls')}>{number(statement.slow_calls)}</Fact>
      </Facts>
      <Verbatim name="SQL">{statement.text}</Verbatim>
      {statement.plan && statement.plan.length > 0 ? (
        <Verbatim name={t('plan')}>{statement.plan.join('\n')}</Verbatim>
      ) : (
        <p class="quiet">{t('no_plan')}</p>
      )}
      {statement.callers && statement.callers.length > 0 && (
        <>
          <h2>{t('callers')}</h2>
          <Table
            caption={t('callers')}
            rows={statement.callers}
            keyOf={(one) => one.caller}
            columns={[
              { head: t('caller'), cell: (one) => (one.caller === UPKEEP ? t('upkeep') : <code class="long">{one.caller}</code>) },
              { head: t('slow_calls'), kind: 'number', cell: (one) => number(one.calls) },
            ]}
          />
        </>
      )}
      <div class="form-foot">
        <button type="button" onClick={onClose}>
          {t('close')}
        </button>
      </div>
    </Dialog>
  );
}
