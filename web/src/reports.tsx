// What was sold between two days: made in the background, waited for, shown and downloaded.

import { useRef, useState } from 'preact/hooks';
import { api, ask, Problem } from './api';
import type { Schemas } from './api';
import { BarChart } from './chart';
import { useLoad } from './data';
import { Link, part, place, setQuery } from './router';
import { isFinal, TaskLink } from './task-parts';
import { Alert, Choice, Fact, Facts, Field, Form, Show, Table, textOf, View } from './ui';
import { day, exactly, money, number, t, wordOf } from './words';

const WAIT_MS = 700;

type Report = Schemas['ReportView'];
type Top = Schemas['TopProductView'];

/** A day in the browser's zone, as the API writes it. */
function dateOf(at: Date): string {
  const two = (value: number) => String(value).padStart(2, '0');
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

function ranges(): { name: string; from: string; to: string }[] {
  const now = new Date();
  const daysAgo = (days: number) => dateOf(new Date(now.getFullYear(), now.getMonth(), now.getDate() - days));
  const month = (back: number) => ({
    from: dateOf(new Date(now.getFullYear(), now.getMonth() - back, 1)),
    to: back === 0 ? dateOf(now) : dateOf(new Date(now.getFullYear(), now.getMonth() - back + 1, 0)),
  });
  return [
    { name: t('today'), from: daysAgo(0), to: daysAgo(0) },
    { name: t('yesterday'), from: daysAgo(1), to: daysAgo(1) },
    { name: t('last_days', { n: 7 }), from: daysAgo(6), to: daysAgo(0) },
    { name: t('last_days', { n: 30 }), from: daysAgo(29), to: daysAgo(0) },
    { name: t('this_month'), ...month(0) },
    { name: t('last_month'), ...month(1) },
  ];
}

export function Reports() {
  const { query } = place.value;
  const from = query.get('from') ?? '';
  const to = query.get('to') ?? '';
  const task = query.get('task') ?? '';
  const [first, ...others] = ranges();
  const usual = others[2] ?? first;
  const make = async (range: { from: string; to: string }, refresh = false) => {
    const body = { start_date: range.from, end_date: range.to, refresh };
    const made = await ask(api.POST('/api/v1/reports/sales', { body }));
    setQuery({ ...range, task: made.id, currency: '' });
  };
  return (
    <View title={t('sales_report')}>
      <RangeForm key={from + to} from={from || (usual?.from ?? '')} to={to || (usual?.to ?? '')} onMake={make} />
      {task && from && to && <Made key={task} task={task} from={from} to={to} onAgain={() => make({ from, to }, true)} />}
    </View>
  );
}

interface RangeProps {
  from: string;
  to: string;
  onMake: (range: { from: string; to: string }) => Promise<void>;
}

function RangeForm({ from, to, onMake }: RangeProps) {
  const start = useRef<HTMLDivElement>(null);
  const set = (name: string, value: string) => {
    const input = start.current?.querySelector<HTMLInputElement>(`[name=${name}]`);
    if (input) input.value = value;
  };
  return (
    <div ref={start}>
      <Form
        class="card range"
        submit={t('make_report')}
        onSubmit={(data) => onMake({ from: textOf(data, 'start_date'), to: textOf(data, 'end_date') })}
      >
        <div class="presets" role="group" aria-label={t('range')}>
          {ranges().map((range) => (
            <button
              key={range.name}
              type="button"
              class="small"
              onClick={() => {
                set('start_date', range.from);
                set('end_date', range.to);
              }}
            >
              {range.name}
            </button>
          ))}
        </div>
        <Field name="start_date" label={t('first_day')}>
          <input type="date" required defaultValue={from} />
        </Field>
        <Field name="end_date" label={t('last_day')}>
          <input type="date" required defaultValue={to} />
        </Field>
      </Form>
    </div>
  );
}

/** Waits for the task that makes the report, then reads it. A report is kept for an hour. */
async function madeBy(task: string, from: string, to: string): Promise<{ task: Schemas['TaskDetail']; report?: Report }> {
  const made = await ask(api.GET('/api/v1/tasks/{id}', { params: { path: { id: task } } }));
  if (made.state !== 'completed') return { task: made };
  const query = { start_date: from, end_date: to };
  const report = await ask(api.GET('/api/v1/reports/sales', { params: { query } }));
  if (typeof report === 'string') throw new Problem(0, 'page_failed', report);
  return { task: made, report };
}

interface MadeProps {
  task: string;
  from: string;
  to: string;
  onAgain: () => Promise<void>;
}

function Made({ task, from, to, onAgain }: MadeProps) {
  const [isOver, setOver] = useState(false);
  const loaded = useLoad(
    async () => {
      try {
        const made = await madeBy(task, from, to);
        setOver(isFinal(made.task.state));
        return made;
      } catch (error) {
        // It will not come back by asking again.
        if (error instanceof Problem && error.status === 404) setOver(true);
        throw error;
      }
    },
    [task, isOver],
    isOver ? undefined : WAIT_MS,
  );
  if (loaded.problem?.status === 404) {
    return <Alert problem={new Problem(404, 'report_gone', t('report_gone'))} again={() => void onAgain()} />;
  }
  return (
    <Show of={loaded}>
      {(made) =>
        made.report ? (
          <ReportNow report={made.report} onAgain={onAgain} />
        ) : (
          <Waiting task={made.task} />
        )
      }
    </Show>
  );
}

function Waiting({ task }: { task: Schemas['TaskDetail'] }) {
  if (isFinal(task.state)) {
    return (
      <p class="alert" role="alert">
        <span>
          {t('report_failed')} {task.error} <TaskLink id={task.id}>{t('see_task')}</TaskLink>
        </span>
      </p>
    );
  }
  return (
    <section class="card" role="status">
      <p>
        {t(task.state === 'running' ? 'report_runs' : 'report_waits')} <TaskLink id={task.id}>{t('see_task')}</TaskLink>
      </p>
      <div class="progress">
        <div class="bar" role="img" aria-label={t('percent_done', { n: task.progress ?? 0 })}>
          <span class="sold" style={{ width: `${task.progress ?? 0}%` }} />
        </div>
      </div>
      {task.error && <p class="quiet">{task.error}</p>}
    </section>
  );
}

function ReportNow({ report, onAgain }: { report: Report; onAgain: () => Promise<void> }) {
  const currencies = report.totals.map((total) => total.currency);
  const asked = place.value.query.get('currency') ?? '';
  const currency = currencies.includes(asked) ? asked : (currencies[0] ?? '');
  const total = report.totals.find((one) => one.currency === currency);
  const of = <T extends { currency: string }>(rows: T[]) => rows.filter((row) => row.currency === currency);
  const csv = `/api/v1/reports/sales?start_date=${part(report.start_date)}&end_date=${part(report.end_date)}&format=csv`;
  const [problem, setProblem] = useState<Problem | undefined>(undefined);
  const again = async () => {
    try {
      await onAgain();
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, 'page_failed', String(error)));
    }
  };
  return (
    <>
      <div class="section-head">
        <h2>
          {day(report.start_date)}
          {report.end_date !== report.start_date && ` – ${day(report.end_date)}`}
        </h2>
        <div class="actions">
          {currencies.length > 1 && (
            <Choice
              label={t('currency')}
              value={currency}
              options={currencies.map((one): [string, string] => [one, one])}
              onChoose={(chosen) => setQuery({ currency: chosen })}
            />
          )}
          <button type="button" onClick={() => void again()}>
            {t('make_anew')}
          </button>
          <a class="button" href={csv} download>
            {t('download_csv')}
          </a>
        </div>
      </div>
      {problem && <Alert problem={problem} />}
      <p class="quiet">{t('report_of', { at: exactly(report.made_at), zone: report.time_zone })}</p>
      {total ? (
        <>
          <section class="card">
            <Facts>
              <Fact name={t('turnover')}>
                <span class="value">{money(total.gross_amount, currency)}</span>
              </Fact>
              <Fact name={t('orders')}>
                <span class="value">{number(total.orders)}</span>
              </Fact>
              <Fact name={t('units')}>
                <span class="value">{number(total.units)}</span>
              </Fact>
              <Fact name={t('per_order')}>
                <span class="value">{total.orders > 0 ? money(Math.round(total.gross_amount / total.orders), currency) : '–'}</span>
              </Fact>
              <Beside state="pending_payment" figures={total.unpaid} currency={currency} />
              <Beside state="refund_due" figures={total.refund_due} currency={currency} />
            </Facts>
          </section>
          <Days days={of(report.days)} currency={currency} />
          <div class="columns">
            <TopTen title={t('top_by_amount')} rows={of(report.top_by_amount)} />
            <TopTen title={t('top_by_units')} rows={of(report.top_by_units)} />
          </div>
        </>
      ) : (
        <p class="empty">{t('nothing_sold')}</p>
      )}
      {report.states.length > 0 && (
        <section>
          <h2>{t('orders_by_state')}</h2>
          <Table
            caption={t('orders_by_state')}
            rows={total ? of(report.states) : report.states}
            keyOf={(row) => row.state + row.currency}
            columns={[
              { head: t('state'), cell: (row) => wordOf('state', row.state) },
              { head: t('orders'), kind: 'number', cell: (row) => number(row.orders) },
              { head: t('amount'), kind: 'number', cell: (row) => money(row.amount, row.currency) },
            ]}
          />
        </section>
      )}
    </>
  );
}

/** Money that is no turnover: not paid yet, or to be paid back. */
function Beside({ state, figures, currency }: { state: string; figures: Schemas['FiguresView']; currency: string }) {
  if (figures.orders === 0) return null;
  return (
    <Fact name={wordOf('state', state)}>
      {money(figures.gross_amount, currency)} · {t('n_orders', { n: figures.orders })}
    </Fact>
  );
}

function Days({ days, currency }: { days: Schemas['DayView'][]; currency: string }) {
  const bars = days.map((one) => ({
    date: one.date,
    value: one.gross_amount,
    text: `${day(one.date)}: ${money(one.gross_amount, currency)} · ${t('n_orders', { n: one.orders })}`,
  }));
  const best = days.reduce((top, one) => (one.gross_amount > top.gross_amount ? one : top), days[0] ?? { date: '', gross_amount: 0 });
  return (
    <section class="card">
      <h2>{t('turnover_by_day')}</h2>
      {bars.length > 1 && (
        <BarChart
          bars={bars}
          label={t('chart_label', { n: bars.length, best: best.date && day(best.date), amount: money(best.gross_amount, currency) })}
          format={(value) => money(Math.round(value), currency)}
        />
      )}
      <details open={bars.length === 1}>
        <summary>{t('as_table')}</summary>
        <Table
          caption={t('turnover_by_day')}
          rows={days}
          keyOf={(one) => one.date}
          columns={[
            { head: t('date'), cell: (one) => day(one.date) },
            { head: t('orders'), kind: 'number', cell: (one) => number(one.orders) },
            { head: t('units'), kind: 'number', cell: (one) => number(one.units) },
            { head: t('turnover'), kind: 'number', cell: (one) => money(one.gross_amount, currency) },
          ]}
        />
      </details>
    </section>
  );
}

function TopTen({ title, rows }: { title: string; rows: Top[] }) {
  return (
    <section>
      <h2>{title}</h2>
      <Table
        caption={title}
        rows={rows}
        keyOf={(row) => row.product_id}
        columns={[
          { head: '#', kind: 'wide number', cell: (row) => number(row.rank) },
          { head: t('product'), cell: (row) => <Link to={`/products/${row.product_id}`}>{row.name}</Link> },
          { head: t('units'), kind: 'number', cell: (row) => number(row.units) },
          { head: t('amount'), kind: 'number', cell: (row) => money(row.gross_amount, row.currency) },
        ]}
      />
    </section>
  );
}
