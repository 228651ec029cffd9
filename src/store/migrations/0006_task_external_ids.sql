-- Tasks that came with an id of their maker's own, such as a Faktory job's jid: at most one task each.
ALTER TABLE tasks ADD COLUMN external_id {text};
CREATE UNIQUE INDEX tasks_external ON tasks (external_id) WHERE external_id IS NOT NULL;
