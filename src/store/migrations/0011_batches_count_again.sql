-- A batch counts a failed task again that is retried by hand, also once it was complete.

-- When it was complete for the first time, of a batch of which a task was tried again since: its
-- on_complete has come.
ALTER TABLE task_batches ADD COLUMN first_finished_at bigint;

-- One with failed tasks is kept as long as dead tasks are, the others as long as completed ones.
DROP INDEX task_batches_finished;
CREATE INDEX task_batches_successful ON task_batches (finished_at) WHERE finished_at IS NOT NULL AND failed = 0;
CREATE INDEX task_batches_failed ON task_batches (finished_at) WHERE finished_at IS NOT NULL AND failed > 0;
