// Everyone's orders, one order, and what staff may do with it.

import { useState } from 'preact/hooks';
import { api, ask, productNames } from './api';
import type { Order } from './api';
import { useLoad, usePages } from './data';
import { idOf } from './json';
import { Link, place, setQuery } from './router';
import { Choice, Confirm, Fact, Facts, Pager, say, Show, State, Table, View } from './ui';
import { moment, money, number, t, wordOf } from './words';

const ROWS = 25;
const REFRESH_MS = 5000;
const STATES = ['pending_payment', 'paid', 'processed', 'fulfilled', 'cancelled', 'expired', 'refund_due'];
/** From these an order can still be cancelled; the server has the last word. */
const OPEN_STATES = ['pending_payment', 'paid', 'processed'];
const PAYABLE_STATES = ['pending_payment', 'expired'];

export function OrderTable({ orders }: { orders: Order[] }) {
  return (
    <Table
      caption={t('orders')}
      rows={orders}
      keyOf={(order) => order.id}
      columns={[
        { head: t('order'), cell: (order) => <Link to={`/orders/${order.id}`}>{String(order.id)}</Link> },
        { head: t('state'), cell: (order) => <State name={order.state} /> },
        { head: t('total'), kind: 'number', cell: (order) => money(order.total_amount, order.currency) },
        {
          head: t('units'),
          kind: 'wide number',
          cell: (order) => number(order.items.reduce((sum, item) => sum + item.quantity, 0)),
        },
        {
          head: t('buyer'),
          kind: 'wide',
          cell: (order) => <Link to={`/users/${order.user_id}`}>{t('user_n', { n: String(order.user_id) })}</Link>,
        },
        {
          head: t('sale'),
          kind: 'wide',
          cell: (order) =>
            order.sale_id === undefined ? (
              ''
            ) : (
              <Link to={`/sales/${order.sale_id}`}>{t('sale_n', { n: String(order.sale_id) })}</Link>
            ),
        },
        { head: t('placed_at'), kind: 'wide', cell: (order) => moment(order.created_at) },
      ]}
    />
  );
}

export function Orders() {
  const { query } = place.value;
  const state = query.get('state') ?? '';
  const user = query.get('user') ?? '';
  const orders = usePages(
    (cursor) =>
      ask(
        api.GET('/api/v1/orders', {
          params: {
            query: {
              limit: ROWS,
              ...(state && { state }),
              ...(user && { user_id: idOf(user) }),
              ...(cursor && { cursor }),
            },
          },
        }),
      ),
    [state, user],
    REFRESH_MS,
  );
  return (
    <View title={user ? `${t('orders')} ${t('of_user', { n: user })}` : t('orders')}>
      <div class="filters">
        <Choice
          label={t('state')}
          value={state}
          options={[['', t('all')], ...STATES.map((name): [string, string] => [name, wordOf('state', name)])]}
          onChoose={(chosen) => setQuery({ state: chosen })}
        />
        {user && (
          <button type="button" onClick={() => setQuery({ user: '' })}>
            {t('show_all_users')}
          </button>
        )}
      </div>
      <Show of={orders}>{(page) => <OrderTable orders={page.items} />}</Show>
      <Pager of={orders} />
    </View>
  );
}

export function OrderView({ id }: { id: number }) {
  const [asking, setAsking] = useState<'pay' | 'cancel' | undefined>(undefined);
  const path = { params: { path: { id } } };
  const loaded = useLoad(
    async () => {
      const order = await ask(api.GET('/api/v1/orders/{id}', path));
      const names = await productNames(order.items.map((item) => item.product_id));
      return { order, names };
    },
    [id],
    REFRESH_MS,
  );
  const order = loaded.data?.order;
  const shown = String(id);
  const pay = async () => {
    await ask(api.POST('/api/v1/orders/{id}/pay', path));
    say(t('payment_confirmed'));
    loaded.again();
  };
  const cancel = async () => {
    await ask(api.POST('/api/v1/orders/{id}/cancel', path));
    say(t('order_cancelled'));
    loaded.again();
  };
  return (
    <View
      title={t('order_n', { n: shown })}
      badge={order && <State name={order.state} />}
      back="/orders"
      actions={
        order && (
          <>
            {PAYABLE_STATES.includes(order.state) && (
              <button type="button" class="primary" onClick={() => setAsking('pay')}>
                {t('confirm_payment')}
              </button>
            )}
            {OPEN_STATES.includes(order.state) && (
              <button type="button" class="danger" onClick={() => setAsking('cancel')}>
                {t('cancel_order')}
              </button>
            )}
          </>
        )
      }
    >
      <Show of={loaded}>
        {({ order, names }) => (
          <>
            <section class="card">
              <Facts>
                <Fact name={t('total')}>{money(order.total_amount, order.currency)}</Fact>
                <Fact name={t('buyer')}>
                  <Link to={`/users/${order.user_id}`}>{t('user_n', { n: String(order.user_id) })}</Link>
                </Fact>
                <Fact name={t('placed_at')}>{moment(order.created_at)}</Fact>
                {order.paid_at && <Fact name={t('paid_at')}>{moment(order.paid_at)}</Fact>}
                {order.expires_at && order.state === 'pending_payment' && (
                  <Fact name={t('pay_until')}>{moment(order.expires_at)}</Fact>
                )}
                {order.sale_id !== undefined && (
                  <Fact name={t('sale')}>
                    <Link to={`/sales/${order.sale_id}`}>{t('sale_n', { n: String(order.sale_id) })}</Link>
                  </Fact>
                )}
              </Facts>
            </section>
            <h2>{t('items')}</h2>
            <Table
              caption={t('items')}
              rows={order.items}
              keyOf={(item) => item.product_id}
              columns={[
                {
                  head: t('product'),
                  cell: (item) => <Link to={`/products/${item.product_id}`}>{names.get(item.product_id)}</Link>,
                },
                { head: t('quantity'), kind: 'number', cell: (item) => number(item.quantity) },
                { head: t('price'), kind: 'wide number', cell: (item) => money(item.unit_amount, order.currency) },
                { head: t('amount'), kind: 'number', cell: (item) => money(item.amount, order.currency) },
              ]}
            />
          </>
        )}
      </Show>
      {asking === 'pay' && order && (
        <Confirm
          title={t('pay_title', { n: shown })}
          text={t('pay_text', { total: money(order.total_amount, order.currency) })}
          action={t('confirm_payment')}
          onConfirm={pay}
          onClose={() => setAsking(undefined)}
        />
      )}
      {asking === 'cancel' && (
        <Confirm
          title={t('cancel_title', { n: shown })}
          text={t('cancel_text')}
          action={t('cancel_order')}
          dismiss={t('keep_order')}
          isDangerous
          onConfirm={cancel}
          onClose={() => setAsking(undefined)}
        />
      )}
    </View>
  );
}
