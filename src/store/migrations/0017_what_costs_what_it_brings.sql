-- The orders of a buyer that wait for payment, but those of flash sales, which have limits of their own
-- and so cost nothing here.
CREATE INDEX orders_unpaid_own ON orders (user_id) WHERE status = 'pending_payment' AND sale_id IS NULL;

-- Newest first, past what was taken out of the shop.
CREATE INDEX products_newest ON products (status, id);
