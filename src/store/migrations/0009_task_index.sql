-- Which delivery index, under queue/, belongs to these rows: the one that the last orderly end left.
-- There is none while the process runs, and after any other end; nor does one fit rows that were
-- restored from a backup.
CREATE TABLE task_index (
    id   bigint PRIMARY KEY CHECK (id = 1),
    mark {text} NOT NULL
) {clustered};
