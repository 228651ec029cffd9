-- Sales reports, and what the shop's recurring tasks need.

-- A report reads the orders of some days, and the popularity of products those of the last one. Keys
-- grow with time only as long as nobody imports past orders and no clock is set back, so they can't
-- stand in for it. Time grows as well: the entry of a new order goes to the end of the index, which
-- costs half a microsecond of an order.
CREATE INDEX orders_created ON orders (created_at);

-- Reports that were made, for as long as they may be shown.
CREATE TABLE cached_reports (
    key        {text} PRIMARY KEY,
    time_zone  {text} NOT NULL,
    body       {text} NOT NULL,
    made_at    bigint NOT NULL,
    expires_at bigint NOT NULL
) {clustered};
CREATE INDEX cached_reports_expiry ON cached_reports (expires_at);

-- One report at a time: each keeps a processor busy, and sales come first. The queue's limit can be
-- changed like any other's.
INSERT INTO queues (name, concurrency_max) VALUES ('reports', 1) ON CONFLICT DO NOTHING;
