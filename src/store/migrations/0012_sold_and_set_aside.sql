-- What is sold, and what is set aside.

-- Units that a product's open sales began with. It changes when a sale opens and when it is over, never
-- with a claim, so that what is shown of a product stays as it is while a crowd claims it.
ALTER TABLE products ADD COLUMN set_aside bigint NOT NULL DEFAULT 0 CHECK (set_aside >= 0);
UPDATE products SET set_aside =
    (SELECT SUM(s.quantity) FROM flash_sales s WHERE s.product_id = products.id AND s.status = 'open')
    WHERE id IN (SELECT product_id FROM flash_sales WHERE status = 'open');

-- Reports made before count orders that nobody had paid; they are made anew when they are asked for.
DELETE FROM cached_reports;
