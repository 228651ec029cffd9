// One flash sale, live: what is left, how fast it goes, and the way to stop it.

import { useRef, useState } from 'preact/hooks';
import { api, ask } from './api';
import type { Sale } from './api';
import { useLoad, useNow } from './data';
import { Link } from './router';
import { Countdown, isOver, named, Progress } from './sale-parts';
import { Confirm, Fact, Facts, Show, Sparkline, say, State, View } from './ui';
import { duration, moment, money, number, t } from './words';

const REFRESH_MS = 1000;
const POINTS_MAX = 300;
/** Over how long the pace is taken: long enough to be calm, short enough to follow a rush. */
const PACE_MS = 10_000;

interface Point {
  at: number;
  remaining: number;
}

/** Units claimed per second over the last points; `undefined` before there are two. */
function paceOf(points: Point[]): number | undefined {
  const last = points.at(-1);
  const first = points.find((point) => last && last.at - point.at <= PACE_MS);
  if (!last || !first || first === last) return undefined;
  return Math.max(0, first.remaining - last.remaining) / ((last.at - first.at) / 1000);
}

export function SaleView({ id }: { id: number }) {
  const points = useRef<Point[]>([]);
  const [isStopping, setStopping] = useState(false);
  const [isSettled, setSettled] = useState(false);
  const path = { params: { path: { id } } };
  const load = async () => {
    const sale = await ask(api.GET('/api/v1/flash-sales/{id}', path));
    const [one] = await named([sale]);
    points.current = [...points.current, { at: performance.now(), remaining: sale.remaining }].slice(-POINTS_MAX);
    setSettled(isOver(sale) && sale.held === 0);
    return { sale, name: one?.name };
  };
  const loaded = useLoad(load, [id, isSettled], isSettled ? undefined : REFRESH_MS);
  const sale = loaded.data?.sale;
  const stop = async () => {
    await ask(api.POST('/api/v1/flash-sales/{id}/stop', path));
    say(t('stopped'));
    loaded.again();
  };
  return (
    <View
      title={loaded.data?.name ?? t('sale_n', { n: String(id) })}
      badge={sale && <State name={sale.state} />}
      back="/sales"
      actions={
        sale &&
        !isOver(sale) && (
          <button type="button" class="danger" onClick={() => setStopping(true)}>
            {t('stop')}
          </button>
        )
      }
    >
      <Show of={loaded}>{({ sale }) => <SaleNow sale={sale} points={points.current} />}</Show>
      {isStopping && sale && (
        <Confirm
          title={t('stop_title')}
          text={t('stop_text', { n: sale.remaining })}
          action={t('stop')}
          isDangerous
          onConfirm={stop}
          onClose={() => setStopping(false)}
        />
      )}
    </View>
  );
}

function SaleNow({ sale, points }: { sale: Sale; points: Point[] }) {
  const now = useNow();
  const pace = paceOf(points);
  return (
    <>
      <section class="card">
        <div class="hero">
          <p class="big">
            {number(sale.remaining)} <span>{`${t('remaining')} · ${t('of_units', { n: sale.quantity })}`}</span>
          </p>
          <p class="quiet">
            <Countdown sale={sale} now={now} />
            {sale.state === 'running' && pace !== undefined && (
              <>
                {' · '}
                {t('pace')} <b>{number(pace, 1)}</b>
                {pace > 0 && ` · ${t('sold_out_in', { time: duration((sale.remaining / pace) * 1000) })}`}
              </>
            )}
          </p>
        </div>
        <Progress sale={sale} />
        {points.length > 1 && !isOver(sale) && (
          <figure class="chart">
            <Sparkline values={points.map((point) => point.remaining)} />
            <figcaption class="quiet">{t('remaining_over_time')}</figcaption>
          </figure>
        )}
      </section>
      <section class="card">
        <h2>{t('sale_rules')}</h2>
        <Facts>
          <Fact name={t('product')}>
            <Link to={`/products/${sale.product_id}`}>{t('product_n', { n: String(sale.product_id) })}</Link>
          </Fact>
          <Fact name={t('sale_price')}>{money(sale.unit_amount, sale.currency)}</Fact>
          <Fact name={t('starts_at')}>{moment(sale.starts_at)}</Fact>
          <Fact name={t('ends_at')}>{moment(sale.ends_at)}</Fact>
          <Fact name={t('per_user_limit')}>{number(sale.per_user_limit)}</Fact>
          <Fact name={t('attempts_per_minute')}>{number(sale.attempts_per_minute)}</Fact>
          <Fact name={t('payment_window')}>
            {sale.payment_window_seconds === 0
              ? t('no_payment_step')
              : t('minutes', { n: number(sale.payment_window_seconds / 60, 1) })}
          </Fact>
          <Fact name={t('created_at')}>{moment(sale.created_at)}</Fact>
        </Facts>
      </section>
    </>
  );
}
