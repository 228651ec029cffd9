-- What is asked of each row that is written, in words that cost less: SQLite builds a table of its own
-- for a list of three or more, at each write, and compares for one or two. Nothing else is asked than
-- before.

DROP INDEX tasks_exceptional;
CREATE INDEX tasks_exceptional ON tasks (state, id)
    WHERE state <> 'available' AND state <> 'running' AND state <> 'completed';
DROP INDEX orders_exceptional;
CREATE INDEX orders_exceptional ON orders (status, id)
    WHERE status <> 'paid' AND status <> 'processed' AND status <> 'fulfilled';
{cheap_checks}
