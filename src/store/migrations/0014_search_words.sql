-- Which products have words in product_terms that an earlier rule cut: those above `above_id` and up to
-- `until_id`. The server renews them a few at a time while it runs, and removes the row in the end.
CREATE TABLE product_terms_due (
    id       bigint PRIMARY KEY CHECK (id = 1),
    above_id bigint NOT NULL,
    until_id bigint NOT NULL
) {clustered};
INSERT INTO product_terms_due (id, above_id, until_id)
    SELECT 1, 0, max(id) FROM products HAVING max(id) IS NOT NULL;
