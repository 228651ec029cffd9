// Finds a product by typing: a combobox with a list, as the ARIA practices describe it.

import { useEffect, useId, useRef, useState } from 'preact/hooks';
import { api, ask } from './api';
import type { Product } from './api';
import { money, number, t } from './words';

const SHOWN_MAX = 8;
const SEARCH_MS = 200;

interface PickerProps {
  chosen: Product | undefined;
  onChoose: (product: Product | undefined) => void;
  // Given by `Field`.
  id?: string;
  name?: string;
  'aria-invalid'?: 'true' | undefined;
  'aria-describedby'?: string | undefined;
}

export function ProductPicker({ chosen, onChoose, ...input }: PickerProps) {
  const [text, setText] = useState<string | undefined>(undefined);
  const [found, setFound] = useState<Product[]>([]);
  const [active, setActive] = useState(0);
  const list = useId();
  const box = useRef<HTMLInputElement>(null);

  useEffect(() => {
    if (text === undefined) return;
    let isOver = false;
    const timer = setTimeout(async () => {
      const query = { limit: SHOWN_MAX, ...(text.trim() && { q: text.trim() }) };
      try {
        const page = await ask(api.GET('/api/v1/products', { params: { query } }));
        if (!isOver) setFound(page.items);
      } catch {
        // The next letter asks again; a list that can't be had must not stop the typing.
        if (!isOver) setFound([]);
      }
      if (!isOver) setActive(0);
    }, SEARCH_MS);
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [text]);

  const isOpen = text !== undefined && found.length > 0;
  const choose = (product: Product) => {
    onChoose(product);
    setText(undefined);
    setFound([]);
  };
  const key = (event: KeyboardEvent) => {
    if (event.key === 'ArrowDown' && text === undefined) setText('');
    if (!isOpen) return;
    const product = found[active];
    if (event.key === 'ArrowDown') setActive((active + 1) % found.length);
    else if (event.key === 'ArrowUp') setActive((active + found.length - 1) % found.length);
    else if (event.key === 'Enter' && product) choose(product);
    else if (event.key === 'Escape') setText(undefined);
    else return;
    event.preventDefault();
  };

  return (
    <div class="picker">
      <input
        {...input}
        ref={box}
        type="text"
        role="combobox"
        autocomplete="off"
        required
        aria-expanded={isOpen}
        aria-controls={list}
        aria-autocomplete="list"
        aria-activedescendant={isOpen ? `${list}-${active}` : undefined}
        placeholder={t('pick_product')}
        value={text ?? chosen?.name ?? ''}
        onFocus={() => !chosen && setText('')}
        onInput={(event) => {
          if (chosen) onChoose(undefined);
          setText(event.currentTarget.value);
        }}
        onBlur={() => setText((now) => (now === '' || chosen ? undefined : now))}
        onKeyDown={key}
      />
      {isOpen && (
        <ul id={list} role="listbox" aria-label={t('products')}>
          {found.map((product, at) => (
            <li
              key={product.id}
              id={`${list}-${at}`}
              role="option"
              aria-selected={at === active}
              // The box keeps the focus, so that its blur does not close the list before the click.
              onMouseDown={(event) => event.preventDefault()}
              onClick={() => choose(product)}
            >
              <span>{product.name}</span>
              <span class="quiet">
                {money(product.unit_amount, product.currency)} · {t('in_stock', { n: number(product.stock) })}
              </span>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
