// All flash sales, and the form that makes one.

import { useState } from 'preact/hooks';
import { api, ask, invalid } from './api';
import type { Product } from './api';
import { useLoad, usePages } from './data';
import { idOf } from './json';
import { exponent, toMajor, toMinor } from './money';
import { ProductPicker } from './product-picker';
import { go, Link, place } from './router';
import { named } from './sale-parts';
import { Field, Form, localInput, momentOf, Pager, say, Show, State, Table, textOf, View, wholeOf } from './ui';
import { moment, money, number, t, timeZone } from './words';

const ROWS = 25;
const REFRESH_MS = 3000;
const MINUTE_MS = 60_000;

async function loadPage(cursor: string | undefined) {
  const query = { limit: ROWS, ...(cursor && { cursor }) };
  const page = await ask(api.GET('/api/v1/flash-sales', { params: { query } }));
  return { ...page, items: await named(page.items) };
}

export function Sales() {
  const sales = usePages(loadPage, [], REFRESH_MS);
  return (
    <View
      title={t('sales')}
      actions={
        <Link to="/sales/new" class="button primary">
          {t('new_sale')}
        </Link>
      }
    >
      <Show of={sales}>
        {(page) => (
          <Table
            caption={t('sales')}
            rows={page.items}
            keyOf={({ sale }) => sale.id}
            columns={[
              { head: t('product'), cell: ({ sale, name }) => <Link to={`/sales/${sale.id}`}>{name}</Link> },
              { head: t('state'), cell: ({ sale }) => <State name={sale.state} /> },
              { head: t('sold'), kind: 'number', cell: ({ sale }) => `${number(sale.sold)} / ${number(sale.quantity)}` },
              { head: t('remaining'), kind: 'wide number', cell: ({ sale }) => number(sale.remaining) },
              { head: t('held'), kind: 'wide number', cell: ({ sale }) => number(sale.held) },
              { head: t('price'), kind: 'wide number', cell: ({ sale }) => money(sale.unit_amount, sale.currency) },
              { head: t('starts_at'), kind: 'wide', cell: ({ sale }) => moment(sale.starts_at) },
              { head: t('ends_at'), kind: 'wide', cell: ({ sale }) => moment(sale.ends_at) },
            ]}
          />
        )}
      </Show>
      <Pager of={sales} />
    </View>
  );
}

/** The next full ten minutes: what a person who plans a sale most likely starts from. */
function nextStart(): Date {
  const step = 10 * MINUTE_MS;
  return new Date(Math.ceil((Date.now() + MINUTE_MS) / step) * step);
}

export function NewSale() {
  const asked = idOf(place.value.query.get('product') ?? '');
  const given = useLoad(
    async () => (asked > 0 ? await ask(api.GET('/api/v1/products/{id}', { params: { path: { id: asked } } })) : null),
    [asked],
  );
  return (
    <View title={t('new_sale')} back="/sales">
      <Show of={given}>{(product) => <SaleForm given={product ?? undefined} />}</Show>
    </View>
  );
}

function SaleForm({ given }: { given: Product | undefined }) {
  const [product, setProduct] = useState(given);
  const [start] = useState(nextStart);
  const [startsNow, setStartsNow] = useState(false);
  const zone = t('local_time', { zone: timeZone() });

  const send = async (data: FormData) => {
    if (!product) throw invalid('product_id', t('is_no_product'));
    const { currency } = product;
    const unitAmount = toMinor(textOf(data, 'unit_amount'), currency);
    if (unitAmount === undefined) {
      throw invalid('unit_amount', t('is_no_amount', { n: exponent(currency), example: toMajor(9900, currency) }));
    }
    const startsAt = startsNow ? new Date().toISOString() : momentOf(data, 'starts_at');
    const endsAt = momentOf(data, 'ends_at');
    if (endsAt <= startsAt) throw invalid('ends_at', t('is_before_start'));
    const sale = await ask(
      api.POST('/api/v1/flash-sales', {
        body: {
          product_id: product.id,
          quantity: wholeOf(data, 'quantity'),
          unit_amount: unitAmount,
          starts_at: startsAt,
          ends_at: endsAt,
          per_user_limit: wholeOf(data, 'per_user_limit'),
          attempts_per_minute: wholeOf(data, 'attempts_per_minute'),
          payment_window_seconds: wholeOf(data, 'payment_window_seconds') * 60,
        },
      }),
    );
    say(t('sale_created'));
    go(`/sales/${sale.id}`);
  };

  return (
    <Form class="card form" submit={t('create')} onSubmit={send} onCancel={() => go('/sales')}>
      <Field
        name="product_id"
        label={t('product')}
        class="full"
        hint={product && `${money(product.unit_amount, product.currency)} · ${t('in_stock', { n: product.stock })}`}
      >
        <ProductPicker chosen={product} onChoose={setProduct} />
      </Field>
      <Field name="quantity" label={t('units')} hint={t('units_hint')}>
        <input type="number" inputMode="numeric" min={1} step={1} required />
      </Field>
      <Field
        name="unit_amount"
        label={`${t('sale_price')}${product ? ` (${product.currency})` : ''}`}
        hint={product && t('sale_price_hint', { price: money(product.unit_amount, product.currency) })}
      >
        <input type="text" inputMode="decimal" autocomplete="off" required />
      </Field>
      <div class="field">
        <Field name="starts_at" label={t('starts_at')} hint={zone}>
          <input type="datetime-local" required={!startsNow} disabled={startsNow} defaultValue={localInput(start)} />
        </Field>
        <label class="tick">
          <input
            type="checkbox"
            checked={startsNow}
            onChange={(event) => setStartsNow(event.currentTarget.checked)}
          />
          {t('starts_now')}
        </label>
      </div>
      <Field name="ends_at" label={t('ends_at')} hint={zone}>
        <input
          type="datetime-local"
          required
          defaultValue={localInput(new Date(start.getTime() + 60 * MINUTE_MS))}
        />
      </Field>
      <Field name="per_user_limit" label={t('per_user_limit')}>
        <input type="number" inputMode="numeric" min={1} step={1} required defaultValue="1" />
      </Field>
      <Field name="attempts_per_minute" label={t('attempts_per_minute')} hint={t('attempts_hint')}>
        <input type="number" inputMode="numeric" min={1} max={1000} step={1} required defaultValue="3" />
      </Field>
      <Field name="payment_window_seconds" label={t('payment_window')} hint={t('payment_window_hint')}>
        <input type="number" inputMode="numeric" min={0} step={1} required defaultValue="0" />
      </Field>
    </Form>
  );
}
