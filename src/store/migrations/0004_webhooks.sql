-- Webhooks: who wants to hear of what, what happened, and how each delivery went. And the language
-- in which an account is written to.

-- `secret` and `old_secret` are what signs, so they can't be hashes. `failing_since` is the first
-- failure after the last success.
CREATE TABLE webhook_endpoints (
    id                    {id},
    url                   {text} NOT NULL,
    description           {text} NOT NULL,
    events                {text} NOT NULL,
    status                {text} NOT NULL CHECK (status IN ('active', 'disabled')),
    disabled_reason       {text},
    failing_since         bigint,
    secret                {text} NOT NULL,
    old_secret            {text},
    old_secret_expires_at bigint,
    created_at            bigint NOT NULL,
    updated_at            bigint NOT NULL
);

-- What happened, written in the transaction in which it happened, and only if an endpoint wants it.
-- The key begins with the time, so the oldest come first.
CREATE TABLE webhook_events (
    id         {text} PRIMARY KEY,
    kind       {text} NOT NULL,
    body       {text} NOT NULL,
    created_at bigint NOT NULL
) {clustered};

-- One row per attempt. What still waits is a task.
CREATE TABLE webhook_deliveries (
    id          {id},
    endpoint_id bigint NOT NULL,
    event_id    {text} NOT NULL,
    kind        {text} NOT NULL,
    task_id     {text} NOT NULL,
    attempt     bigint NOT NULL,
    at          bigint NOT NULL,
    outcome     {text} NOT NULL CHECK (outcome IN ('delivered', 'failed')),
    status      bigint,
    duration_ms bigint NOT NULL,
    error       {text},
    excerpt     {text}
);
CREATE INDEX webhook_deliveries_endpoint ON webhook_deliveries (endpoint_id, id);
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (endpoint_id, id) WHERE outcome = 'failed';

-- Slow receivers must not take every worker: what goes out has its share of them, which can be
-- changed like that of any queue.
INSERT INTO queues (name, concurrency_max) VALUES ('webhooks', 12), ('http', 6), ('mail', 4)
    ON CONFLICT (name) DO NOTHING;

ALTER TABLE users ADD COLUMN language {text};
