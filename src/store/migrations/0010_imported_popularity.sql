-- What a product's popularity was when it came into the shop, by import or as 0. It tells, in the shop's
-- first day, what an import brought from what orders made here have raised. NULL in older rows, of
-- which nobody knows.
ALTER TABLE products ADD COLUMN imported_popularity bigint CHECK (imported_popularity >= 0);
