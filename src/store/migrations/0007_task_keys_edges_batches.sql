-- What a task that is retried by hand takes back, and batches that were never committed.

-- What ends the task's key. NULL beside a key, as in rows that were there before, stands for
-- 'finished'.
ALTER TABLE tasks ADD COLUMN lock_until {text} CHECK (lock_until IN ('started', 'finished', 'expired'));

-- A task that was cancelled because of one that it waited for keeps its edges, and comes back only
-- when none of those is dead any more.
CREATE INDEX task_edges_downstream ON task_edges (downstream);

CREATE INDEX task_batches_open ON task_batches (created_at) WHERE sealed_at IS NULL;
