// The catalogue: find, make, change, count, take out.

import { useState } from 'preact/hooks';
import { api, ask, invalid, rememberName } from './api';
import type { Product, Schemas } from './api';
import { useLoad, usePages } from './data';
import { exponent, toMajor, toMinor } from './money';
import { go, Link, place, setQuery } from './router';
import { isOver } from './sale-parts';
import { Choice, Confirm, Fact, Facts, Field, Form, Pager, say, Search, Show, Table, textOf, View, wholeOf } from './ui';
import { moment, money, number, t } from './words';

const ROWS = 25;
const CURRENCIES = ['CNY', 'USD', 'EUR', 'GBP', 'HKD', 'JPY', 'KRW', 'SGD', 'TWD', 'INR', 'AUD', 'CAD', 'CHF'];
const CURRENCY_KEPT_AS = 'onrush.currency';

/** The newest sales: the open ones are among them unless a shop plans hundreds ahead. */
const SALES_LOOKED_AT = 100;

interface Listed {
  product: Product;
  /** Units that open sales still have. */
  inSales: number;
}

/** Sales are asked for only where a product has no free unit and some that are set aside. */
async function listed(products: Product[]): Promise<Listed[]> {
  const isAside = (product: Product) => product.stock === 0 && product.set_aside > 0;
  if (!products.some(isAside)) return products.map((product) => ({ product, inSales: 0 }));
  const page = await ask(api.GET('/api/v1/flash-sales', { params: { query: { limit: SALES_LOOKED_AT } } }));
  const left = new Map<number, number>();
  for (const sale of page.items.filter((sale) => !isOver(sale))) {
    left.set(sale.product_id, (left.get(sale.product_id) ?? 0) + sale.remaining);
  }
  // Of a sale that is not among them it is known how many it began with.
  return products.map((product) => ({
    product,
    inSales: isAside(product) ? (left.get(product.id) ?? product.set_aside) : 0,
  }));
}

function StockCell({ product, inSales }: Listed) {
  if (product.stock > 0) return <>{number(product.stock)}</>;
  if (inSales > 0) return <span class="badge info">{t('n_in_sales', { n: inSales })}</span>;
  return <span class="badge warn">{t('low_stock')}</span>;
}

export function Products() {
  const { query } = place.value;
  const q = query.get('q') ?? '';
  const category = query.get('category') ?? '';
  const sort = query.get('sort') ?? 'popularity';
  const products = usePages(
    async (cursor) => {
      const page = await ask(
        api.GET('/api/v1/products', {
          params: { query: { limit: ROWS, sort, ...(q && { q }), ...(category && { category }), ...(cursor && { cursor }) } },
        }),
      );
      return { ...page, items: await listed(page.items) };
    },
    [q, category, sort],
  );
  return (
    <View
      title={t('products')}
      actions={
        <>
          <Link to="/products/import" class="button">
            {t('import_csv')}
          </Link>
          <Link to="/products/new" class="button primary">
            {t('new_product')}
          </Link>
        </>
      }
    >
      <div class="filters" role="search">
        <Search label={t('search')} value={q} onSearch={(text) => setQuery({ q: text })} />
        <Search label={t('category')} value={category} onSearch={(text) => setQuery({ category: text })} />
        <Choice
          label={t('sort')}
          value={sort}
          options={[
            ['popularity', t('sort_popularity')],
            ['newest', t('sort_newest')],
            ['price_asc', t('sort_price_asc')],
            ['price_desc', t('sort_price_desc')],
          ]}
          onChoose={(chosen) => setQuery({ sort: chosen === 'popularity' ? '' : chosen })}
        />
      </div>
      <Show of={products}>
        {(page) => (
          <Table
            caption={t('products')}
            rows={page.items}
            keyOf={({ product }) => product.id}
            // A search makes a bounded number of steps: it may find nothing and yet lead on.
            empty={page.next_cursor ? t('nothing_on_page') : q || category ? t('nothing_found') : t('nothing')}
            columns={[
              { head: t('name'), cell: ({ product }) => <Link to={`/products/${product.id}`}>{product.name}</Link> },
              { head: t('sku'), kind: 'wide', cell: ({ product }) => product.sku ?? '' },
              { head: t('category'), kind: 'wide', cell: ({ product }) => product.category },
              { head: t('price'), kind: 'number', cell: ({ product }) => money(product.unit_amount, product.currency) },
              { head: t('stock'), kind: 'number', cell: (row) => <StockCell {...row} /> },
              { head: t('sold_lately'), kind: 'wide number', cell: ({ product }) => number(product.popularity) },
            ]}
          />
        )}
      </Show>
      <Pager of={products} />
    </View>
  );
}

function amountOf(data: FormData, currency: string): number {
  const amount = toMinor(textOf(data, 'unit_amount'), currency);
  if (amount === undefined) {
    throw invalid('unit_amount', t('is_no_amount', { n: exponent(currency), example: toMajor(29900, currency) }));
  }
  return amount;
}

/** The currency that this shop's last product was priced in. */
function usualCurrency(): string {
  try {
    return localStorage.getItem(CURRENCY_KEPT_AS) ?? 'CNY';
  } catch {
    return 'CNY';
  }
}

function TextFields({ product }: { product?: Product }) {
  return (
    <>
      <Field name="name" label={t('name')} class="full">
        <input type="text" required maxLength={200} defaultValue={product?.name} />
      </Field>
      <Field name="category" label={t('category')} isOptional>
        <input type="text" maxLength={100} defaultValue={product?.category} />
      </Field>
    </>
  );
}

function DescriptionField({ product }: { product?: Product }) {
  return (
    <Field name="description" label={t('description')} isOptional class="full">
      <textarea rows={4} maxLength={10000} defaultValue={product?.description} />
    </Field>
  );
}

export function NewProduct() {
  const send = async (data: FormData) => {
    const currency = textOf(data, 'currency').toUpperCase();
    if (!/^[A-Z]{3}$/.test(currency)) throw invalid('currency', t('is_no_currency'));
    const sku = textOf(data, 'sku');
    const product = await ask(
      api.POST('/api/v1/products', {
        body: {
          name: textOf(data, 'name'),
          description: textOf(data, 'description'),
          category: textOf(data, 'category'),
          unit_amount: amountOf(data, currency),
          currency,
          stock: wholeOf(data, 'stock'),
          ...(sku && { sku }),
        },
      }),
    );
    try {
      localStorage.setItem(CURRENCY_KEPT_AS, currency);
    } catch {
      // Only a convenience for the next product.
    }
    say(t('product_created'));
    go(`/products/${product.id}`);
  };
  return (
    <View title={t('new_product')} back="/products">
      <Form class="card form" submit={t('create')} onSubmit={send} onCancel={() => go('/products')}>
        <TextFields />
        <Field name="sku" label={t('sku')} hint={t('sku_hint')} isOptional>
          <input type="text" autocomplete="off" maxLength={100} />
        </Field>
        <Field name="unit_amount" label={t('price')}>
          <input type="text" inputMode="decimal" autocomplete="off" required />
        </Field>
        <Field name="currency" label={t('currency')}>
          <input type="text" list="currencies" required maxLength={3} autocomplete="off" defaultValue={usualCurrency()} />
        </Field>
        <datalist id="currencies">
          {CURRENCIES.map((currency) => (
            <option key={currency} value={currency} />
          ))}
        </datalist>
        <Field name="stock" label={t('stock')} hint={t('stock_hint')}>
          <input type="number" inputMode="numeric" min={0} step={1} required defaultValue="0" />
        </Field>
        <DescriptionField />
      </Form>
    </View>
  );
}

export function EditProduct({ id }: { id: number }) {
  const [isArchiving, setArchiving] = useState(false);
  const path = { path: { id } };
  const loaded = useLoad(() => ask(api.GET('/api/v1/products/{id}', { params: path })), [id]);
  const product = loaded.data;
  const archive = async () => {
    await ask(api.DELETE('/api/v1/products/{id}', { params: path }));
    say(t('archived'));
    go('/products');
  };
  return (
    <View
      title={product?.name ?? t('product_n', { n: String(id) })}
      back="/products"
      actions={
        product && (
          <>
            <Link to={`/sales/new?product=${id}`} class="button">
              {t('make_sale')}
            </Link>
            <button type="button" class="danger" onClick={() => setArchiving(true)}>
              {t('archive')}
            </button>
          </>
        )
      }
    >
      <Show of={loaded}>
        {(product) => (
          // Made anew when what is stored changed, so that the inputs show it.
          <EditForm key={`${product.last_updated} ${product.stock}`} product={product} onSaved={loaded.again} />
        )}
      </Show>
      {isArchiving && product && (
        <Confirm
          title={t('archive_title', { name: product.name })}
          text={t('archive_text')}
          action={t('archive')}
          isDangerous
          onConfirm={archive}
          onClose={() => setArchiving(false)}
        />
      )}
    </View>
  );
}

function EditForm({ product, onSaved }: { product: Product; onSaved: () => void }) {
  const send = async (data: FormData) => {
    const asked = {
      name: textOf(data, 'name'),
      description: textOf(data, 'description'),
      category: textOf(data, 'category'),
      unit_amount: amountOf(data, product.currency),
    };
    // Only what was changed here: a colleague's change of another field stays.
    const changed: Schemas['PatchBody'] = Object.fromEntries(
      Object.entries(asked).filter(([name, value]) => product[name as keyof typeof asked] !== value),
    );
    if (textOf(data, 'stock') !== '') changed.stock = wholeOf(data, 'stock');
    const params = { path: { id: product.id } };
    rememberName(await ask(api.PATCH('/api/v1/products/{id}', { params, body: changed })));
    say(t('saved'));
    onSaved();
  };
  return (
    <>
      <section class="card">
        <Facts>
          <Fact name={t('stock')}>{number(product.stock)}</Fact>
          {product.set_aside > 0 && <Fact name={t('set_aside')}>{number(product.set_aside)}</Fact>}
          <Fact name={t('sku')}>{product.sku ?? '–'}</Fact>
          <Fact name={t('currency')}>{product.currency}</Fact>
          <Fact name={t('sold_lately')}>{number(product.popularity)}</Fact>
          <Fact name={t('created_at')}>{moment(product.created_at)}</Fact>
          <Fact name={t('last_updated')}>{moment(product.last_updated)}</Fact>
        </Facts>
      </section>
      <Form class="card form" submit={t('save')} onSubmit={send}>
        <TextFields product={product} />
        <Field name="unit_amount" label={`${t('price')} (${product.currency})`}>
          <input
            type="text"
            inputMode="decimal"
            autocomplete="off"
            required
            defaultValue={toMajor(product.unit_amount, product.currency)}
          />
        </Field>
        <Field name="stock" label={t('stock_take')} hint={t('stock_take_hint', { n: product.stock })} isOptional>
          <input type="number" inputMode="numeric" min={0} step={1} />
        </Field>
        <DescriptionField product={product} />
      </Form>
    </>
  );
}
