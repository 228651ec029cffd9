// The first view: what sells right now, and whether the machine is well.

import { api, ask, isAdmin } from './api';
import type { Schemas } from './api';
import { useLoad, useNow } from './data';
import { metrics, METRICS_MS, takeSample } from './metrics';
import type { Rates, Window } from './metrics';
import { OrderTable } from './orders';
import { Link } from './router';
import { Countdown, isOver, named, Progress } from './sale-parts';
import type { Named } from './sale-parts';
import { countText } from './tasks';
import { Alert, Figure, Show, Sparkline, Stale, State, Table, View } from './ui';
import { closely, moment, money, number, percent, size, t, took, wordOf } from './words';

const REFRESH_MS = 1500;
const ORDERS_MS = 5000;
const TASKS_MS = 3000;
/** The newest sales; those that run or come are among them unless a shop plans hundreds ahead. */
const SALES_LOOKED_AT = 100;
const OVER_SHOWN = 5;
const ORDERS_SHOWN = 6;

interface FiguresProps {
  window: Window;
  /** Whether these are the last that were heard of, and not those of now. */
  isStale: boolean;
}

function Figures({ window: { last, rates }, isStale }: FiguresProps) {
  const now = rates.at(-1);
  const line = (of: (rates: Rates) => number) => rates.map(of);
  const rate = (value: number | undefined) => (value === undefined ? '–' : number(value, value < 10 ? 1 : 0));
  // The pause between two bursts of writes says nothing about the disk: the last known mean stays.
  const commit = rates.findLast((one) => one.commitMs !== undefined)?.commitMs;
  const overall = last && last.commits > 0 ? (last.commitSeconds / last.commits) * 1000 : undefined;
  const commitMs = commit ?? overall;
  const drift = last?.drift;
  return (
    <section class={`figures ${isStale ? 'is-stale' : ''}`} aria-label={t('overview')}>
      <Figure name={t('requests_per_second')} value={rate(now?.requests)} note={t('last_minutes')}>
        <Sparkline values={line((one) => one.requests)} />
      </Figure>
      <Figure
        name={t('claims_accepted')}
        value={last ? number(last.accepted) : '–'}
        note={now?.accepted ? t('per_second', { n: rate(now.accepted) }) : t('since_start')}
      >
        <Sparkline values={line((one) => one.accepted)} class="good" />
      </Figure>
      <Figure
        name={t('claims_refused')}
        value={last ? number(last.refused) : '–'}
        note={now?.refused ? t('per_second', { n: rate(now.refused) }) : t('since_start')}
      >
        <Sparkline values={line((one) => one.refused)} class="warn" />
      </Figure>
      <Figure
        name={t('commit_time')}
        value={commitMs === undefined ? '–' : closely(commitMs)}
        note={commitMs === undefined ? t('no_commits') : t('last_commit')}
      >
        <Sparkline values={rates.flatMap((one) => one.commitMs ?? [])} class="info" />
      </Figure>
      <Figure
        name={t('drift')}
        value={drift === undefined ? '–' : number(drift)}
        note={drift === undefined ? '' : t(drift === 0 ? 'drift_ok' : 'drift_bad')}
        tone={drift === undefined || isStale ? '' : drift === 0 ? 'good' : 'bad'}
      />
      <Figure
        name={t('memory')}
        value={last?.memoryBytes === undefined ? '–' : size(last.memoryBytes)}
        note={last?.connections === undefined ? '' : t('open_connections', { n: last.connections })}
      />
    </section>
  );
}

function RunningSale({ sale, name, now }: Named & { now: number }) {
  return (
    <li class="card sale-card">
      <div class="sale-head">
        <h3>
          <Link to={`/sales/${sale.id}`}>{name}</Link>
        </h3>
        <State name={sale.state} />
      </div>
      <p class="quiet">
        {money(sale.unit_amount, sale.currency)} · {t('of_units', { n: sale.quantity })} · <Countdown sale={sale} now={now} />
      </p>
      <p class="big">
        {number(sale.remaining)} <span>{t('remaining')}</span>
      </p>
      <Progress sale={sale} />
    </li>
  );
}

/** A sale that may still change by itself or by a buyer; `scheduled` ones only wait for their time. */
function SalesNow({ sales }: { sales: Named[] }) {
  const now = useNow();
  const running = sales.filter(({ sale }) => sale.state === 'running' || sale.state === 'sold_out');
  const coming = sales
    .filter(({ sale }) => sale.state === 'scheduled')
    .sort((one, other) => one.sale.starts_at.localeCompare(other.sale.starts_at));
  const over = sales.filter(({ sale }) => isOver(sale));
  return (
    <>
      <section>
        <h2>{t('running_now')}</h2>
        {running.length === 0 ? (
          <p class="empty">{t('no_running')}</p>
        ) : (
          <ul class="cards">
            {running.map((one) => (
              <RunningSale key={one.sale.id} {...one} now={now} />
            ))}
          </ul>
        )}
      </section>
      <div class="columns">
        <section>
          <h2>{t('coming_up')}</h2>
          {coming.length === 0 ? (
            <p class="empty">{t('no_coming')}</p>
          ) : (
            <ul class="rows">
              {coming.map(({ sale, name }) => (
                <li key={sale.id}>
                  <div>
                    <Link to={`/sales/${sale.id}`}>{name}</Link>
                    <p class="quiet">
                      {number(sale.quantity)} × {money(sale.unit_amount, sale.currency)} · {moment(sale.starts_at)}
                    </p>
                  </div>
                  <Countdown sale={sale} now={now} />
                </li>
              ))}
            </ul>
          )}
        </section>
        <section>
          <h2>{t('lately_over')}</h2>
          <Table
            caption={t('lately_over')}
            rows={over}
            keyOf={({ sale }) => sale.id}
            columns={[
              { head: t('product'), cell: ({ sale, name }) => <Link to={`/sales/${sale.id}`}>{name}</Link> },
              { head: t('sold'), kind: 'number', cell: ({ sale }) => `${number(sale.sold)} / ${number(sale.quantity)}` },
              { head: t('state'), cell: ({ sale }) => <State name={sale.state} /> },
            ]}
          />
        </section>
      </div>
    </>
  );
}

interface TaskFigures {
  counts: Map<string, Schemas['CountedView']>;
  /** How long the next one has been due in the queue that is latest, where any is due. */
  latencySeconds: number | undefined;
}

async function loadTasks(): Promise<TaskFigures> {
  const [counts, queues] = await Promise.all([ask(api.GET('/api/v1/task-counts')), ask(api.GET('/api/v1/queues'))]);
  const due = queues.items.filter((queue) => queue.ready > 0).map((queue) => queue.latency_seconds);
  return {
    counts: new Map(counts.items.map((count) => [count.state, count])),
    latencySeconds: due.length > 0 ? Math.max(...due) : undefined,
  };
}

/** One line: what is to be done later, and whether any of it is stuck. */
function TasksNow({ counts, latencySeconds }: TaskFigures) {
  const figure = (state: string) => {
    const count = counts.get(state);
    return (
      <li class={state === 'discarded' && count && count.count > 0 ? 'bad' : ''}>
        <Link to={`/tasks?state=${state}`}>
          <b>{count ? countText(count) : '–'}</b> {wordOf('task_state', state)}
        </Link>
      </li>
    );
  };
  return (
    <section class="card strip">
      <h2>
        <Link to="/tasks">{t('tasks')}</Link>
      </h2>
      <ul>
        {figure('available')}
        {figure('running')}
        {figure('scheduled')}
        {figure('retryable')}
        {figure('discarded')}
        <li>
          <Link to="/queues">
            <b>{latencySeconds === undefined ? '–' : took(latencySeconds * 1000)}</b> {t('oldest_ready')}
          </Link>
        </li>
      </ul>
    </section>
  );
}

/** One line: how much of what is read lies ready. */
function CacheNow({ window: { last, rates }, isStale }: FiguresProps) {
  if (!last || last.reads === 0) return null;
  const now = rates.at(-1);
  return (
    <section class={`card strip ${isStale ? 'is-stale' : ''}`}>
      <h2>
        <Link to="/cache">{t('cache')}</Link>
      </h2>
      <ul>
        <li>
          <Link to="/cache">
            <b>{percent(last.hits / last.reads)}</b> {t('hit_ratio')}
          </Link>
        </li>
        <li>
          <Link to="/cache">
            <b>{now ? number(now.reads) : '–'}</b> {t('reads_per_second')}
          </Link>
        </li>
      </ul>
    </section>
  );
}

async function loadSales(): Promise<Named[]> {
  const page = await ask(api.GET('/api/v1/flash-sales', { params: { query: { limit: SALES_LOOKED_AT } } }));
  let over = 0;
  return named(page.items.filter((sale) => !isOver(sale) || over++ < OVER_SHOWN));
}

export function Overview() {
  const figures = useLoad(takeSample, [], METRICS_MS);
  const sales = useLoad(loadSales, [], REFRESH_MS);
  const tasks = useLoad(loadTasks, [], TASKS_MS);
  const orders = useLoad(
    () => ask(api.GET('/api/v1/orders', { params: { query: { limit: ORDERS_SHOWN } } })),
    [],
    ORDERS_MS,
  );
  return (
    <View
      title={t('overview')}
      actions={
        <Link to="/sales/new" class="button primary">
          {t('new_sale')}
        </Link>
      }
    >
      {figures.problem && !metrics.value.last ? (
        <Alert problem={figures.problem} again={figures.again} />
      ) : (
        <>
          {figures.problem && <Stale problem={figures.problem} />}
          <Figures window={metrics.value} isStale={figures.problem !== undefined} />
        </>
      )}
      <div class="strips">
        <Show of={tasks}>{(figures) => <TasksNow {...figures} />}</Show>
        {isAdmin() && <CacheNow window={metrics.value} isStale={figures.problem !== undefined} />}
      </div>
      <Show of={sales}>{(data) => <SalesNow sales={data} />}</Show>
      <section>
        <div class="section-head">
          <h2>{t('latest_orders')}</h2>
          <Link to="/orders">{t('all_orders')}</Link>
        </div>
        <Show of={orders}>{(page) => <OrderTable orders={page.items} />}</Show>
      </section>
    </View>
  );
}
