-- Schedules: what is to be done again and again, and what came of each time.
-- What is due is decided from these rows alone. A fire is one row of schedule_runs, written in the
-- transaction that makes its task; its key is why no fire happens twice, on however many nodes and
-- however the clock jumps.

CREATE TABLE schedules (
    name             {text} PRIMARY KEY,
    source           {text} NOT NULL CHECK (source IN ('api', 'settings', 'built_in')),
    cron             {text},
    interval_seconds bigint CHECK (interval_seconds > 0),
    time_zone        {text} NOT NULL,
    task             {text} NOT NULL,
    queue            {text},
    args             {text} NOT NULL,
    priority         bigint CHECK (priority BETWEEN 0 AND 255),
    max_attempts     bigint CHECK (max_attempts > 0),
    timeout_ms       bigint CHECK (timeout_ms > 0),
    overlap          {text} NOT NULL CHECK (overlap IN ('allow', 'skip', 'queue_one')),
    missed           {text} NOT NULL CHECK (missed IN ('skip', 'once', 'all')),
    missed_max       bigint NOT NULL CHECK (missed_max > 0),
    jitter_ms        bigint NOT NULL CHECK (jitter_ms >= 0),
    -- 1 once somebody gave a built-in schedule other times than its own.
    is_edited        bigint NOT NULL CHECK (is_edited IN (0, 1)),
    paused_at        bigint,
    -- NULL while it is paused or can't be read.
    next_run_at      bigint,
    -- Fires up to here have happened, though their rows were dropped to bound the history.
    forgotten_until  bigint,
    error            {text},
    created_at       bigint NOT NULL,
    updated_at       bigint NOT NULL,
    CHECK ((cron IS NULL) <> (interval_seconds IS NULL)),
    CHECK (paused_at IS NULL OR next_run_at IS NULL)
) {clustered};
CREATE INDEX schedules_due ON schedules (next_run_at) WHERE next_run_at IS NOT NULL;

CREATE TABLE schedule_runs (
    schedule    {text} NOT NULL,
    -- The moment that the schedule names, a whole second. Of a run by hand, and of an interval that
    -- has seen this second before the clock went back, a microsecond beside it.
    fire_at     bigint NOT NULL,
    cause       {text} NOT NULL CHECK (cause IN ('time', 'catch_up', 'hand')),
    outcome     {text} NOT NULL CHECK (outcome IN
        ('enqueued', 'completed', 'cancelled', 'discarded', 'removed', 'skipped', 'missed', 'refused')),
    task_id     {text},
    error       {text},
    created_at  bigint NOT NULL,
    started_at  bigint,
    finished_at bigint,
    PRIMARY KEY (schedule, fire_at)
) {clustered};
-- Runs whose task is not known to be finished.
CREATE INDEX schedule_runs_open ON schedule_runs (schedule, fire_at) WHERE outcome = 'enqueued';
