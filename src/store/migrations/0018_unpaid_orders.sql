-- What waits for payment is found among a buyer's newest orders (orders_user): an index of its own cost each
-- order a page of the log.
DROP INDEX orders_unpaid_own;
