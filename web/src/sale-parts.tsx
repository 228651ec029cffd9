// How a sale is drawn wherever it is shown: its bar, its figures, its countdown.

import { productNames } from './api';
import type { Sale } from './api';
import { duration, number, t } from './words';

export interface Named {
  sale: Sale;
  /** Of its product. */
  name: string;
}

export async function named(sales: Sale[]): Promise<Named[]> {
  const names = await productNames(sales.map((sale) => sale.product_id));
  return sales.map((sale) => ({ sale, name: names.get(sale.product_id) ?? `#${sale.product_id}` }));
}

/** Sold, held and remaining units as one bar, with the figures below it. */
export function Progress({ sale }: { sale: Sale }) {
  const share = (units: number) => ({ width: `${(units / Math.max(sale.quantity, 1)) * 100}%` });
  const { sold, held, remaining, returned, quantity } = sale;
  return (
    <div class="progress">
      <div class="bar" role="img" aria-label={t('progress', { sold, held, remaining, quantity })}>
        <span class="sold" style={share(sold)} />
        <span class="held" style={share(held)} />
      </div>
      <ul class="legend">
        <li class="sold">
          {t('sold')} <b>{number(sold)}</b>
        </li>
        <li class="held" title={t('held_hint')}>
          {t('held')} <b>{number(held)}</b>
        </li>
        <li class="remaining">
          {t('remaining')} <b>{number(remaining)}</b>
        </li>
        {returned > 0 && (
          <li>
            {t('returned')} <b>{number(returned)}</b>
          </li>
        )}
      </ul>
    </div>
  );
}

export function isOver(sale: Sale): boolean {
  return sale.state === 'ended' || sale.state === 'stopped';
}

/** `ends in 04:05`; nothing for a sale that is over. */
export function Countdown({ sale, now }: { sale: Sale; now: number }) {
  if (isOver(sale)) return null;
  const starts = Date.parse(sale.starts_at);
  const text =
    now < starts
      ? t('starts_in', { time: duration(starts - now) })
      : t('ends_in', { time: duration(Date.parse(sale.ends_at) - now) });
  return <span class="countdown">{text}</span>;
}
