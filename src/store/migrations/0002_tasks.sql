-- Tasks: what is to be done, by whom, and what came of it.
-- The rows are the truth; the folder `queue/` only helps to find the next one. So there is no index
-- by queue, priority and time here: two small partial ones find all that is not finished, and the
-- key (UUIDv7, handed out by the writer) is the order of creation.

CREATE TABLE tasks (
    id                  {text} PRIMARY KEY,
    name                {text} NOT NULL,
    queue               {text} NOT NULL,
    state               {text} NOT NULL CHECK (state IN
        ('scheduled', 'available', 'running', 'retryable', 'completed', 'cancelled', 'discarded')),
    priority            bigint NOT NULL CHECK (priority BETWEEN 0 AND 255),
    run_at              bigint NOT NULL,
    created_at          bigint NOT NULL,
    attempt             bigint NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    max_attempts        bigint NOT NULL CHECK (max_attempts > 0),
    crashes             bigint NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    -- Tasks that must finish before; above 0 it stays `scheduled` whatever run_at says.
    waiting_on          bigint NOT NULL DEFAULT 0 CHECK (waiting_on >= 0),
    -- Tasks that wait for this one: whether finishing it must look into task_edges.
    followers           bigint NOT NULL DEFAULT 0 CHECK (followers >= 0),
    timeout_ms          bigint NOT NULL CHECK (timeout_ms > 0),
    args                {text} NOT NULL,
    metadata            {text},
    traceparent         {text},
    soft_timeout_ms     bigint,
    retry_policy        {text},
    expires_at          bigint,
    lock_key            {text},
    batch_id            {text},
    worker              {text},
    attempted_at        bigint,
    lease_expires_at    bigint,
    cancel_requested_at bigint,
    progress            bigint,
    progress_note       {text},
    result_seconds      bigint,
    result              {text},
    result_expires_at   bigint,
    error               {text},
    finished_at         bigint
) {clustered};
-- The two states that a task without delay goes through: one entry made and one removed.
CREATE INDEX tasks_live ON tasks (id) WHERE state IN ('available', 'running');
-- The states of the few.
CREATE INDEX tasks_exceptional ON tasks (state, id)
    WHERE state IN ('scheduled', 'retryable', 'cancelled', 'discarded');

-- Attempts that did not simply succeed. One that did is told by its task's row.
CREATE TABLE task_attempts (
    task_id     {text} NOT NULL,
    attempt     bigint NOT NULL,
    worker      {text},
    started_at  bigint NOT NULL,
    finished_at bigint NOT NULL,
    outcome     {text} NOT NULL CHECK (outcome IN
        ('failed', 'timed_out', 'crashed', 'snoozed', 'released', 'cancelled')),
    error       {text},
    PRIMARY KEY (task_id, attempt)
) {clustered};

CREATE TABLE task_logs (
    task_id {text} NOT NULL,
    attempt bigint NOT NULL,
    seq     bigint NOT NULL,
    at      bigint NOT NULL,
    level   {text} NOT NULL CHECK (level IN ('debug', 'info', 'warn', 'error')),
    line    {text} NOT NULL,
    PRIMARY KEY (task_id, attempt, seq)
) {clustered};

-- Who holds a key under which only one task may be. It ends when the task starts or finishes, as
-- `until_state` says, and at `expires_at` if that is set.
CREATE TABLE task_locks (
    key         {text} PRIMARY KEY,
    task_id     {text} NOT NULL,
    until_state {text} NOT NULL CHECK (until_state IN ('started', 'finished', 'expired')),
    expires_at  bigint
) {clustered};
CREATE INDEX task_locks_expiry ON task_locks (expires_at) WHERE expires_at IS NOT NULL;

-- `downstream` waits for `upstream`; `on_failure` says what becomes of it when that does not complete.
CREATE TABLE task_edges (
    upstream   {text} NOT NULL,
    downstream {text} NOT NULL,
    on_failure {text} NOT NULL CHECK (on_failure IN ('cancel', 'run')),
    PRIMARY KEY (upstream, downstream)
) {clustered};

-- Tasks that are counted together. `on_success` and `on_complete` are tasks to be, as JSON.
CREATE TABLE task_batches (
    id          {text} PRIMARY KEY,
    description {text},
    total       bigint NOT NULL CHECK (total >= 0),
    pending     bigint NOT NULL CHECK (pending >= 0),
    failed      bigint NOT NULL CHECK (failed >= 0),
    sealed_at   bigint,
    on_success  {text},
    on_complete {text},
    created_at  bigint NOT NULL,
    finished_at bigint
) {clustered};
CREATE INDEX task_batches_finished ON task_batches (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE queues (
    name            {text} PRIMARY KEY,
    paused_at       bigint,
    concurrency_max bigint CHECK (concurrency_max > 0),
    rate_limit      bigint CHECK (rate_limit > 0),
    rate_period_ms  bigint CHECK (rate_period_ms > 0)
) {clustered};

-- Paid orders are processed by a task from now on, so most orders end up as `processed`: they leave
-- the index of the few.
DROP INDEX orders_exceptional;
CREATE INDEX orders_exceptional ON orders (status, id) WHERE status NOT IN ('paid', 'processed', 'fulfilled');
