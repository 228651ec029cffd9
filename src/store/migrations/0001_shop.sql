-- The shop: accounts, catalogue, stock and its ledger, orders, flash sales.
-- One text for SQLite and PostgreSQL. Two tokens differ by database and are filled in by
-- store/migrate.rs: {id} is a 64-bit key that the database hands out, {clustered} keeps a table's
-- rows in the order of its key where the database can.
-- Times are microseconds UTC, money is integer minor units.

CREATE TABLE users (
    id            {id},
    email         {text} UNIQUE,
    external_id   {text} UNIQUE,
    name          {text} NOT NULL,
    password_hash {text},
    role          {text} NOT NULL CHECK (role IN ('customer', 'staff', 'admin')),
    status        {text} NOT NULL CHECK (status IN ('active', 'disabled')),
    created_at    bigint NOT NULL,
    updated_at    bigint NOT NULL,
    last_seen_at  bigint
);
CREATE INDEX users_name ON users (lower(name), id);
CREATE INDEX users_role ON users (role, id);

CREATE TABLE sessions (
    token_hash   {text} PRIMARY KEY,
    user_id      bigint NOT NULL REFERENCES users (id),
    kind         {text} NOT NULL CHECK (kind IN ('bearer', 'cookie')),
    created_at   bigint NOT NULL,
    last_seen_at bigint NOT NULL,
    expires_at   bigint NOT NULL
) {clustered};
CREATE INDEX sessions_user ON sessions (user_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

CREATE TABLE api_keys (
    id         {id},
    user_id    bigint NOT NULL REFERENCES users (id),
    name       {text} NOT NULL,
    key_hash   {text} NOT NULL UNIQUE,
    scopes     {text} NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    revoked_at bigint
);
CREATE INDEX api_keys_user ON api_keys (user_id);

CREATE TABLE products (
    id           {id},
    sku          {text} UNIQUE,
    name         {text} NOT NULL,
    description  {text} NOT NULL,
    category     {text} NOT NULL,
    unit_amount  bigint NOT NULL CHECK (unit_amount >= 0),
    currency     {text} NOT NULL,
    stock        bigint NOT NULL CHECK (stock >= 0),
    popularity   bigint NOT NULL CHECK (popularity >= 0),
    status       {text} NOT NULL CHECK (status IN ('active', 'archived')),
    created_at   bigint NOT NULL,
    last_updated bigint NOT NULL
);
CREATE INDEX products_popularity ON products (status, popularity, id);
CREATE INDEX products_price ON products (status, unit_amount, id);
CREATE INDEX products_category_popularity ON products (status, category, popularity, id);
CREATE INDEX products_category_price ON products (status, category, unit_amount, id);
CREATE INDEX products_category_newest ON products (status, category, id);

-- The words of a product's name, category, description and SKU, as product/mod.rs cuts them:
-- an inverted index that works alike in both databases and for Chinese.
CREATE TABLE product_terms (
    term       {text} NOT NULL,
    product_id bigint NOT NULL,
    PRIMARY KEY (term, product_id)
) {clustered};

-- One row per change of stock. `reason` says from where to where `quantity` units moved, `delta` is
-- what entered (or, negative, left) the house, `balance_after` is the free stock afterwards, and
-- `hash` covers the row and `prev_hash`: SHA-256 in hexadecimal.
CREATE TABLE stock_movements (
    product_id    bigint NOT NULL,
    seq           bigint NOT NULL,
    sale_id       bigint,
    order_id      bigint,
    reason        {text} NOT NULL,
    quantity      bigint NOT NULL CHECK (quantity > 0),
    delta         bigint NOT NULL,
    balance_after bigint NOT NULL CHECK (balance_after >= 0),
    at            bigint NOT NULL,
    prev_hash     {text} NOT NULL,
    hash          {text} NOT NULL,
    PRIMARY KEY (product_id, seq)
) {clustered};

CREATE TABLE flash_sales (
    id                     {id},
    product_id             bigint NOT NULL REFERENCES products (id),
    quantity               bigint NOT NULL CHECK (quantity > 0),
    remaining              bigint NOT NULL CHECK (remaining >= 0),
    held                   bigint NOT NULL CHECK (held >= 0),
    sold                   bigint NOT NULL CHECK (sold >= 0),
    returned               bigint NOT NULL CHECK (returned >= 0),
    unit_amount            bigint NOT NULL CHECK (unit_amount >= 0),
    currency               {text} NOT NULL,
    starts_at              bigint NOT NULL,
    ends_at                bigint NOT NULL,
    per_user_limit         bigint NOT NULL CHECK (per_user_limit > 0),
    attempts_per_minute    bigint NOT NULL CHECK (attempts_per_minute > 0),
    payment_window_seconds bigint NOT NULL CHECK (payment_window_seconds >= 0),
    status                 {text} NOT NULL CHECK (status IN ('open', 'ended', 'stopped')),
    created_at             bigint NOT NULL,
    closed_at              bigint,
    CHECK (ends_at > starts_at),
    CHECK (remaining + held + sold + returned = quantity)
);
CREATE INDEX flash_sales_product ON flash_sales (product_id);
CREATE INDEX flash_sales_open ON flash_sales (ends_at) WHERE status = 'open';

CREATE TABLE orders (
    id           {id},
    user_id      bigint NOT NULL REFERENCES users (id),
    status       {text} NOT NULL CHECK (status IN
        ('pending_payment', 'paid', 'processed', 'fulfilled', 'cancelled', 'expired', 'refund_due')),
    total_amount bigint NOT NULL CHECK (total_amount >= 0),
    currency     {text} NOT NULL,
    sale_id      bigint,
    created_at   bigint NOT NULL,
    updated_at   bigint NOT NULL,
    expires_at   bigint,
    paid_at      bigint,
    processed_at bigint,
    external_id  {text},
    import_run   bigint
);
CREATE INDEX orders_user ON orders (user_id, id);
-- Most orders are paid or delivered, so a list of those finds its page at once; the others are few.
CREATE INDEX orders_exceptional ON orders (status, id) WHERE status NOT IN ('paid', 'fulfilled');
CREATE INDEX orders_unpaid ON orders (expires_at) WHERE status = 'pending_payment';
CREATE UNIQUE INDEX orders_external ON orders (external_id) WHERE external_id IS NOT NULL;

CREATE TABLE order_items (
    order_id    bigint NOT NULL REFERENCES orders (id),
    line        bigint NOT NULL,
    product_id  bigint NOT NULL,
    quantity    bigint NOT NULL CHECK (quantity > 0),
    unit_amount bigint NOT NULL CHECK (unit_amount >= 0),
    amount      bigint NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (order_id, line)
) {clustered};

CREATE TABLE claims (
    id         {text} PRIMARY KEY,
    sale_id    bigint NOT NULL REFERENCES flash_sales (id),
    user_id    bigint NOT NULL,
    order_id   bigint NOT NULL,
    quantity   bigint NOT NULL CHECK (quantity > 0),
    created_at bigint NOT NULL
) {clustered};
CREATE INDEX claims_buyer ON claims (sale_id, user_id);

CREATE TABLE idempotency_keys (
    caller      {text} NOT NULL,
    key         {text} NOT NULL,
    fingerprint {text} NOT NULL,
    location    {text} NOT NULL,
    body        {text} NOT NULL,
    created_at  bigint NOT NULL,
    PRIMARY KEY (caller, key)
) {clustered};
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
