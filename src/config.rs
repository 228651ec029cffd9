//! Every setting and limit: its default, its meaning, where its value came from.
//!
//! Order: defaults < `onrush.toml` < environment < flags. No file is needed. Invariants: no limit
//! lives anywhere else in the code; an unknown key is refused with the nearest known one; a secret
//! never appears in [`Settings::effective`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use figment::providers::{Format, Serialized, Toml};
use figment::{Figment, Profile};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::check::{self, JsonError};
use crate::zone::Zone;

/// Name of the settings file, looked for in the working directory unless `--config` names one.
pub const FILE_NAME: &str = "onrush.toml";

/// Why the settings could not be used; each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key that no setting has.
    #[error("{source_name}: there is no setting `{key}`{}", hint(.key, .nearest))]
    UnknownKey {
        /// The key as written, dotted.
        key: String,
        /// The known key that is spelt most like it.
        nearest: Option<String>,
        /// The file, variable or flag that holds it.
        source_name: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{key}: {reason} (set by {source_name})")]
    Invalid {
        /// The dotted key.
        key: String,
        /// What is wrong and what would be right.
        reason: String,
        /// The file, variable or flag that holds it.
        source_name: String,
    },
    /// The file is there but can't be read or is no TOML.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Settings that other pools of connections have, and what takes their place here.
const OF_OTHER_POOLS: &[(&str, &str)] = &[
    (
        "pool_size",
        "the connections that read are `database.readers`, and one more writes for all",
    ),
    (
        "max_overflow",
        "the number of connections is fixed, so raise `database.readers`",
    ),
    (
        "pool_timeout",
        "how long a read waits for a connection is `database.reader_timeout_ms`",
    ),
    (
        "pool_recycle",
        "a connection to a local file does not age, so none is renewed",
    ),
    (
        "pool_pre_ping",
        "a local file does not go away, so no connection is tried before its use",
    ),
    (
        "pre_ping",
        "a local file does not go away, so no connection is tried before its use",
    ),
    (
        "pool_use_lifo",
        "the connection that was used last is always lent out first",
    ),
    (
        "lifo",
        "the connection that was used last is always lent out first",
    ),
    (
        "statement_timeout",
        "how long a statement may read is `database.statement_timeout_ms`",
    ),
];

fn hint(key: &str, nearest: &Option<String>) -> String {
    let of_another = key.strip_prefix("database.").and_then(|name| {
        let found = OF_OTHER_POOLS.iter().find(|(other, _)| *other == name);
        found.map(|(_, word)| format!(": {word}"))
    });
    if let Some(word) = of_another {
        return word;
    }
    nearest
        .as_ref()
        .map(|key| format!("; did you mean `{key}`?"))
        .unwrap_or_default()
}

/// All settings, as they are in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the database and everything else is kept.
    pub data: Data,
    /// What is true of the whole shop.
    pub shop: Shop,
    /// The HTTP edge.
    pub server: Server,
    /// SQLite: pools, the writer, limits.
    pub database: Database,
    /// Sessions, passwords, login throttling.
    pub auth: Auth,
    /// How popular products are.
    pub products: Products,
    /// Orders and their payment window.
    pub orders: Orders,
    /// Flash sales and their gate.
    pub flash_sales: FlashSales,
    /// The cache.
    pub cache: Cache,
    /// Tasks, their queues and workers.
    pub tasks: Tasks,
    /// Schedules that make tasks again and again.
    pub schedules: Schedules,
    /// Sales reports.
    pub reports: Reports,
    /// Workers that speak the Faktory protocol.
    pub faktory: Faktory,
    /// Calls to other servers.
    pub outgoing: Outgoing,
    /// Webhooks.
    pub webhooks: Webhooks,
    /// Mails.
    pub mail: Mail,
    /// CSV imports.
    pub import: Import,
    /// Log lines.
    pub log: Log,
}

impl Settings {
    /// What of these settings is fit for trying things out alone, in words for whoever runs the shop.
    pub fn risks(&self) -> Vec<String> {
        let (server, faktory, mail) = (&self.server, &self.faktory, &self.mail);
        let is_clear = server.tls_cert.as_os_str().is_empty() && server.trusted_proxies.is_empty();
        let is_local = |url: &str| ["127.0.0.1", "localhost", "[::1]"].map(|own| url.contains(own));
        let is_proxied = server.host.is_loopback()
            && !server.public_url.is_empty()
            && is_local(&server.public_url) == [false; 3];
        let is_anyones = |range: &IpNet| range.prefix_len() == 0;
        let mut risks = Vec::new();
        if self.orders.customers_confirm_payment {
            risks.push(
                "customers confirm their own payments (orders.customers_confirm_payment), so an order costs nothing"
                    .to_owned(),
            );
        }
        if !server.host.is_loopback() && is_clear {
            risks.push(format!(
                "passwords and sessions travel in the clear: server.host is {}, and there is neither server.tls_cert nor a proxy in server.trusted_proxies",
                server.host
            ));
        }
        if is_proxied && server.trusted_proxies.is_empty() {
            risks.push(
                "server.public_url tells of a proxy that server.trusted_proxies does not name: every client counts as one of this machine, for the limits of an address and for /metrics"
                    .to_owned(),
            );
        }
        if server.metrics_allow.iter().any(is_anyones) {
            risks.push("everyone may read /metrics (server.metrics_allow)".to_owned());
        }
        if faktory.enabled && !faktory.host.is_loopback() && !faktory.tls {
            risks.push(format!(
                "jobs travel in the clear: faktory.host is {}, and faktory.tls is off",
                faktory.host
            ));
        }
        if mail.smtp_tls == MailTls::None
            && !mail.smtp_host.is_empty()
            && is_local(&mail.smtp_host) == [false; 3]
        {
            risks.push(format!(
                "mails travel in the clear to {} (mail.smtp_tls)",
                mail.smtp_host
            ));
        }
        risks
    }
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $text:literal])+ $field:ident : $kind:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[doc = $text])+ pub $field: $kind,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            /// Each key of this section with its explanation, in the order of declaration.
            const DOCS: &'static [(&'static str, &'static [&'static str])] =
                &[$((stringify!($field), &[$($text),+])),*];
        }
    };
}

/// This machine's own addresses.
fn loopback() -> Vec<IpNet> {
    let nets = [
        IpAddr::from([127, 0, 0, 0]),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    nets.into_iter()
        .zip([8, 128])
        .filter_map(|(address, bits)| IpNet::new(address, bits).ok())
        .collect()
}

section! {
    /// `[data]`
    Data {
        /// The data directory: `onrush.db`, `static/`, `tls/`, `backups/`. Created with mode 0700.
        dir: PathBuf = PathBuf::from("onrush-data"),
    }
}

section! {
    /// `[shop]`
    Shop {
        /// Time zone of the shop: of its schedules and of the days of its reports, unless
        /// `schedules.time_zone` or `reports.time_zone` is set. An IANA name such as `Asia/Shanghai`.
        time_zone: Zone = Zone::utc(),
        /// A system clock that is set by more than this is not followed at once: sales would end, orders
        /// expire and kept data be deleted by a time that is wrong for a moment.
        clock_jump_seconds: u64 = 10,
        /// It is followed when the new time has stood for so long; 0 follows it at once.
        clock_hold_seconds: u64 = 60,
    }
}

section! {
    /// `[server]`
    Server {
        /// Address to listen on; `0.0.0.0` or `::` for all.
        host: IpAddr = IpAddr::from([127, 0, 0, 1]),
        /// TCP port; 0 takes a free one.
        port: u16 = 8000,
        /// Async worker threads; 0 means one per core.
        workers: usize = 0,
        /// Listen on this unix socket as well; empty for none.
        unix_socket: PathBuf = PathBuf::new(),
        /// PEM file with the certificate chain; empty for plain HTTP. Reloaded when it changes.
        tls_cert: PathBuf = PathBuf::new(),
        /// PEM file with the private key.
        tls_key: PathBuf = PathBuf::new(),
        /// What users type to reach the server, for links in output; empty to derive it.
        public_url: String = String::new(),
        /// Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed, as CIDR ranges.
        trusted_proxies: Vec<IpNet> = Vec::new(),
        /// Origins that browsers may call from; none means CORS is off.
        cors_origins: Vec<String> = Vec::new(),
        /// Addresses that may read `/metrics` without credentials, as CIDR ranges. From elsewhere it takes
        /// an API key with the scope `metrics`, or a session of staff.
        metrics_allow: Vec<IpNet> = loopback(),
        /// Whether `/docs`, `/openapi.json` and `/openapi.yaml` are served.
        docs: bool = true,
        /// Open connections at once. Where they run short, the ones that did least for longest are closed
        /// for newcomers, first those of clients that hold more than an equal part.
        connections_max: usize = 4096,
        /// Open connections of one address (of an IPv6 /64); trusted proxies are exempt.
        connections_per_address_max: usize = 1024,
        /// Length of the kernel's queue of connections not yet accepted.
        backlog: u32 = 1024,
        /// What the system takes of an answer before the client does, for each connection; 0 lets the system
        /// choose, which may be megabytes for a client that reads nothing.
        send_buffer_bytes: usize = 262_144,
        /// Time until the first byte of a connection.
        first_byte_timeout_ms: u64 = 5_000,
        /// Time for the request line and all headers; also how long a kept-alive connection may idle.
        header_timeout_ms: u64 = 10_000,
        /// Longest wait for the next piece of a request body.
        body_timeout_ms: u64 = 10_000,
        /// Time for a whole request, from its headers to the start of the answer.
        request_timeout_ms: u64 = 30_000,
        /// Longest time that a client may take to read any of an answer before it is cut off.
        write_timeout_ms: u64 = 30_000,
        /// Time for a TLS handshake.
        tls_handshake_timeout_ms: u64 = 5_000,
        /// Largest request body.
        body_bytes_max: usize = 1_048_576,
        /// Largest body of an operation that needs no credentials, such as logging in.
        open_body_bytes_max: usize = 16_384,
        /// Largest body of a CSV import.
        import_bytes_max: usize = 268_435_456,
        /// Bytes of request bodies that are in memory at once, of all requests together. A client that has
        /// taken its share of them is answered 429; where all are taken, 503. At least eight thirds of the
        /// largest body.
        bodies_bytes_max: usize = 67_108_864,
        /// What each client (an address, an IPv6 /64) may hold of them even beside greedy ones.
        bodies_bytes_small: usize = 32_768,
        /// Bytes of answers that were made and are not sent, of all together.
        answers_bytes_max: usize = 67_108_864,
        /// What each client may hold of them even beside greedy ones.
        answers_bytes_small: usize = 65_536,
        /// Reads that look through many rows, such as searches, at once, those that wait included.
        slow_reads_max: usize = 128,
        /// What each client may have of them even beside greedy ones.
        slow_reads_small: usize = 2,
        /// Least bytes a second at which a client sends a body and takes an answer, once it is a whole
        /// `body_timeout_ms` or `write_timeout_ms` behind.
        bytes_per_second_min: u64 = 1_024,
        /// Refusals (statuses 400, 401, 403, 413, 422, 429, 503 and the like) that a client hears at once in a
        /// second; further ones come a quarter of a second later. 0 for any number.
        refusals_per_second: u32 = 20,
        /// Largest request head (line and headers together).
        header_bytes_max: usize = 32_768,
        /// Most header lines of a request.
        headers_max: usize = 64,
        /// Concurrent streams of one HTTP/2 connection.
        h2_streams_max: u32 = 128,
        /// Answers smaller than this are not compressed.
        compress_bytes_min: usize = 1_024,
        /// How long requests in flight may go on after SIGTERM.
        shutdown_grace_ms: u64 = 30_000,
        /// How long `/readyz` says no before the listener closes, so that a balancer notices.
        shutdown_notice_ms: u64 = 0,
    }
}

section! {
    /// `[database]`
    Database {
        /// Read-only connections.
        readers: u32 = 8,
        /// Of these, so many may bring pages of lists at once; fewer where none would be left for look-ups by
        /// key, which no list and no search holds up.
        list_readers: u32 = 4,
        /// Of these, so many may search at once, likewise.
        search_readers: u32 = 2,
        /// Lists, and likewise searches, that may wait for their turn; one more is answered 503.
        lane_queue_max: usize = 256,
        /// How long one waits for its turn before 503.
        lane_timeout_ms: u64 = 2_000,
        /// Reads of reports and other long ones at once, on connections of their own; the rest wait.
        long_readers: u32 = 2,
        /// How long a read may wait for a connection.
        reader_timeout_ms: u64 = 250,
        /// Longest run of one reading statement.
        statement_timeout_ms: u64 = 5_000,
        /// Longest run of one search.
        search_timeout_ms: u64 = 1_000,
        /// A statement that takes as long is kept in the list of slow queries; 0 keeps every one.
        slow_list_ms: u64 = 100,
        /// One that takes as long is logged as well.
        slow_log_ms: u64 = 1_000,
        /// Slow calls kept in the list.
        slow_kept: usize = 200,
        /// Whether the values of a slow query's parameters stay hidden, in list and log.
        hide_parameters: bool = true,
        /// Prepared statements kept by each connection.
        statement_cache: usize = 128,
        /// Page cache of the writer, in KiB.
        writer_cache_kib: u32 = 16_384,
        /// Page cache of each reader, in KiB.
        reader_cache_kib: u32 = 2_048,
        /// Bytes of the database file that readers map into memory; 0 turns it off.
        mmap_bytes: u64 = 268_435_456,
        /// Writes that may wait; one more is answered 503.
        write_queue_max: usize = 4_096,
        /// Writes that share one commit, at most.
        write_batch_max: usize = 512,
        /// How long a write may wait and run before its caller is answered 503.
        write_timeout_ms: u64 = 10_000,
        /// Size that the file of the write-ahead log is given and keeps, so that commits overwrite what
        /// is there, which a disk syncs sooner than a file that grows; 0 lets it grow.
        wal_ready_bytes: u64 = 16_777_216,
        /// The file is cut back once it passes this size, as it does while somebody reads for long.
        wal_bytes_max: u64 = 134_217_728,
        /// Pause between looks at the write-ahead log.
        checkpoint_interval_ms: u64 = 500,
    }
}

section! {
    /// `[auth]`
    Auth {
        /// Life of a session.
        session_seconds: u64 = 2_592_000,
        /// A customer's session ends when unused for this long.
        session_idle_seconds: u64 = 1_209_600,
        /// Life of a staff or admin session (OWASP ASVS 5.0, 7.3.2).
        staff_session_seconds: u64 = 28_800,
        /// A staff or admin session ends when unused for this long (ASVS 7.3.1).
        staff_session_idle_seconds: u64 = 1_800,
        /// Argon2id memory per password, in KiB (OWASP: 19 MiB).
        argon2_memory_kib: u32 = 19_456,
        /// Argon2id passes.
        argon2_passes: u32 = 2,
        /// Passwords hashed at once; 0 means one per core, at most 4.
        hash_concurrency: usize = 0,
        /// Passwords that may wait in each of three lanes: log-ins from known addresses and browsers, other
        /// log-ins of accounts, registrations. One more is answered 503.
        hash_queue_max: usize = 256,
        /// What each client (an address, an IPv6 /64) may have of registrations and of log-ins that wait for
        /// others of the same account or address, even beside greedy ones.
        hash_queue_small: usize = 4,
        /// Failed logins of one account before it must wait, from wherever they come. A caller at an
        /// address or in a browser that has logged in to the account before has as many of its own,
        /// so that strangers do not shut it out.
        login_account_failures: u32 = 5,
        /// After this time one of these failures is forgotten. From now on an account is guessed at
        /// this often; in the first hour 19 times with these values.
        login_account_forget_seconds: u64 = 900,
        /// Accounts that fail at one address (of an IPv6 /64) before it must wait; each further failure of
        /// the same account counts a quarter, and a right password takes back what its account added.
        login_address_failures: u32 = 20,
        /// The same for accounts that have logged in from this address or browser before.
        login_known_failures: u32 = 100,
        /// After this time one of an address's failures is forgotten: 30 accounts an hour, 57 in the
        /// first.
        login_address_forget_seconds: u64 = 120,
        /// The first wait; each further failure doubles it.
        login_delay_seconds: u64 = 1,
        /// The longest wait. There is no permanent lock.
        login_delay_seconds_max: u64 = 900,
        /// Accounts that fail in one wider network (an IPv4 /24, an IPv6 /48) before its strangers must
        /// wait, counted as those of an address. Callers at known addresses and in known browsers pass.
        login_network_failures: u32 = 200,
        /// After this time one of a wider network's failures is forgotten: 300 accounts an hour, some 500 in
        /// the first.
        login_network_forget_seconds: u64 = 12,
        /// Counts that are remembered of accounts, and as many of addresses: some 40 bytes each.
        login_tracked_max: usize = 100_000,
        /// Addresses, and as many browsers, that are remembered of each account.
        login_known_places_max: u32 = 8,
        /// An address or a browser that an account did not log in from for so long is forgotten.
        login_known_days: u32 = 90,
        /// Sessions and API keys kept in memory, so that a request needs no query to know its caller.
        callers_cached_max: usize = 100_000,
        /// Live API keys of one account.
        api_keys_max: usize = 100,
        /// Life of the link that makes the first admin.
        setup_seconds: u64 = 86_400,
        /// Sessions of one account; a further log-in ends the oldest.
        sessions_max: u32 = 100,
        /// Whether anyone may register; otherwise staff create the accounts.
        open_registration: bool = true,
        /// Whether an account comes to be only once its address is proven, with what a mail there says:
        /// `smtp` (when there is a mail server), `always`, `never`. Where it is, registering says the same
        /// of an address that has an account and of one that has none.
        confirm_registration: MailRule = MailRule::Smtp,
        /// How long what the mail says is good for.
        confirm_seconds: u64 = 86_400,
        /// Registrations from one address (of an IPv6 /64): so many at once, and so many an hour.
        registrations_per_address: u32 = 100,
        /// The same of a wider network (an IPv4 /24, an IPv6 /48).
        registrations_per_network: u32 = 1_000,
        /// The same from everywhere.
        registrations_in_all: u32 = 20_000,
    }
}

section! {
    /// `[products]`
    Products {
        /// A product is as popular as units of it were ordered within this time.
        popularity_window_seconds: u64 = 86_400,
        /// Products that get their new popularity in one write.
        popularity_batch: usize = 256,
        /// Steps of one search: each product that it passes is one, and so are up to 64 bytes of a text that
        /// it reads. A search that needs more answers what it has found, and where to go on.
        search_steps_max: u32 = 10_000,
    }
}

section! {
    /// `[orders]`
    Orders {
        /// Units are held this long for an order to be paid; 0 means orders start as paid.
        payment_window_seconds: u64 = 900,
        /// Lines of one order.
        lines_max: usize = 100,
        /// Units of one line.
        quantity_max: u32 = 1_000,
        /// Orders of one customer that may wait for payment at once; 0 for any number. Those of flash sales,
        /// which have limits of their own, and those of staff don't count.
        unpaid_orders_max: u32 = 5,
        /// Units of one product that these orders of one customer may hold together; 0 for any number. A
        /// shop for businesses sets more.
        unpaid_units_max: u32 = 20,
        /// Orders that one customer may place within a minute; 0 for any number. Staff may more.
        per_minute_max: u32 = 30,
        /// Customers whose orders of the last minute are remembered for that; beyond it the first are
        /// forgotten.
        tracked_customers_max: usize = 200_000,
        /// Whether a customer's own call to `pay` counts: for trying things out. Otherwise only staff and
        /// keys with the scope `payments`, such as a payment provider's, confirm a payment.
        customers_confirm_payment: bool = false,
        /// How often unpaid orders are looked through for expiry.
        expiry_interval_ms: u64 = 1_000,
        /// Orders expired in one transaction.
        expiry_batch: u32 = 200,
        /// How often the stock ledger is checked while the server runs; 0 turns that off.
        ledger_check_seconds: u64 = 3_600,
        /// How long the answer to an `Idempotency-Key` is kept.
        idempotency_seconds: u64 = 86_400,
        /// Whether each paid order is processed by a task, which sets it to `processed`.
        process: bool = true,
    }
}

section! {
    /// `[flash_sales]`
    FlashSales {
        /// Buyers of one sale that may wait for a unit that another is just paying for in the queue.
        waiting_max: usize = 4_096,
        /// How long such a buyer waits before 503.
        wait_timeout_ms: u64 = 5_000,
        /// Buyers whose attempts are remembered, over all sales; beyond it the oldest are forgotten.
        tracked_buyers_max: usize = 2_000_000,
        /// Units that one sale may have.
        quantity_max: u32 = 10_000_000,
        /// How often sales are opened and closed by the clock, besides at their exact times.
        sweep_interval_ms: u64 = 1_000,
    }
}

section! {
    /// `[cache]`
    Cache {
        /// Whether anything is kept at all. Without it, requests still share a load that is under way.
        enabled: bool = true,
        /// Memory for values, what an entry costs beside them included.
        memory_bytes: usize = 33_554_432,
        /// Values in memory, however small.
        memory_entries_max: usize = 200_000,
        /// Which entry gives way to a new one: `s3_fifo`, `lfu`, `lru`, `sieve` or `fifo`.
        eviction: Eviction = Eviction::S3Fifo,
        /// A value that is larger is loaded each time.
        value_bytes_max: usize = 1_048_576,
        /// What has a longer key is loaded each time.
        key_bytes_max: usize = 512,
        /// Tags of one value; with more it is loaded each time.
        tags_max: usize = 64,
        /// Keys that are known not to exist. They have a room of their own, so that a flood of them
        /// can't push out what is asked for.
        absent_entries_max: usize = 20_000,
        /// How long something is taken not to exist.
        absent_seconds: u64 = 30,
        /// Life of a value, where its kind has none of its own.
        ttl_seconds: u64 = 300,
        /// Each life is longer or shorter by a random part up to this, so that what was loaded together
        /// does not expire together.
        ttl_jitter_percent: u64 = 20,
        /// A load that took this long, in rising steps, earns its value a longer life …
        adaptive_load_ms: Vec<u64> = vec![500, 1_000, 2_000],
        /// … namely this, step by step.
        adaptive_ttl_seconds: Vec<u64> = vec![900, 1_800, 3_600],
        /// How long after its end a value may still be served when its load fails or is slow; 0 for never.
        /// What a write has changed is never served.
        stale_seconds: u64 = 600,
        /// A load is slow after this long: whoever has an expired value gets that, and the load goes on.
        stale_after_ms: u64 = 200,
        /// Pause between two tries of a load that fails while there is an expired value to serve.
        stale_retry_ms: u64 = 1_000,
        /// A hot value is loaded anew when this part of its life is over; 100 turns that off.
        refresh_percent: u64 = 80,
        /// Loads by key at once. Fewer than `database.readers`, so that what is not cached finds one as well.
        /// Those of lists and of searches have places of their own, in `[database]`.
        loads_max: usize = 6,
        /// Loads that wait for their turn; one more is answered 503.
        loads_queue_max: usize = 1_024,
        /// Longest run of a load.
        load_timeout_ms: u64 = 15_000,
        /// How long a request waits for a load, or a load for its turn, before 503.
        wait_timeout_ms: u64 = 5_000,
        /// Requests that wait for a load of another's at once.
        waiters_max: usize = 16_384,
        /// The window over which reads of a key are counted.
        hot_window_seconds: u64 = 60,
        /// A key is hot when it was read so often within the window.
        hot_reads_min: u64 = 600,
        /// Hot keys that are kept out of the way of eviction.
        hot_keys_max: usize = 256,
        /// Size of their values in all.
        hot_bytes_max: usize = 4_194_304,
        /// How often the hot keys are loaded ahead of those who ask for them; 0 for never.
        warm_seconds: u32 = 600,
        /// How long before a flash sale opens it and its product are loaded.
        warm_sale_seconds: u32 = 10,
        /// Keys that one call may warm up.
        warm_keys_max: usize = 10_000,
        /// Room on disk for values that took long to load; 0 for none. At least 67108864 otherwise.
        disk_bytes: usize = 0,
        /// A value is worth its place on disk when its load took this long.
        disk_load_ms_min: u64 = 5,
        /// Longest wait for the disk.
        disk_timeout_ms: u64 = 100,
        /// After errors the level on disk is tried again after this long.
        disk_retry_seconds: u64 = 60,
    }
}

section! {
    /// `[tasks]`
    Tasks {
        /// Built-in tasks that run at once in this process; 0 leaves them to wait.
        workers: usize = 64,
        /// How long running tasks may go on after the server was told to stop.
        shutdown_grace_ms: u64 = 10_000,
        /// Largest arguments of a task, as JSON.
        args_bytes_max: usize = 65_536,
        /// Largest metadata of a task, as JSON.
        metadata_bytes_max: usize = 8_192,
        /// Largest result that is kept, as JSON.
        result_bytes_max: usize = 65_536,
        /// How long a result is kept.
        result_seconds: u64 = 86_400,
        /// Attempts of a task that does not say how many.
        max_attempts: u32 = 25,
        /// Crashes of the process or of a worker after which a task is set aside as dead.
        crashes_max: u32 = 3,
        /// Longest run of a task that does not say how long; then it is ended and tried again.
        timeout_ms: u64 = 1_800_000,
        /// Longest run that a task may ask for.
        timeout_ms_max: u64 = 86_400_000,
        /// How far ahead a task may be put off.
        delay_seconds_max: u64 = 31_622_400,
        /// Lease of an outside worker that does not say how long.
        lease_seconds: u64 = 60,
        /// Longest lease that a worker may ask for.
        lease_seconds_max: u64 = 3_600,
        /// Longest wait of a worker that asks for a task.
        fetch_wait_ms_max: u64 = 20_000,
        /// Workers that may wait for a task at once.
        fetchers_max: usize = 4_096,
        /// Tasks of one request, chain or batch.
        batch_tasks_max: usize = 1_000,
        /// Tasks that one bulk action changes.
        bulk_tasks_max: u32 = 1_000,
        /// Tasks of one state that are counted; of more it is only said that there are more.
        counted_max: u32 = 2_000,
        /// Log lines kept of one attempt.
        log_lines_max: u32 = 1_000,
        /// Longest log line or error text that is kept, in characters.
        log_line_chars_max: usize = 2_000,
        /// How long a completed or cancelled task is kept.
        retention_seconds: u64 = 604_800,
        /// How long a dead task is kept.
        dead_retention_seconds: u64 = 7_776_000,
        /// A batch that was begun and not committed is dropped after this, once none of its tasks is pending.
        batch_open_seconds: u64 = 604_800,
        /// Rows that the upkeep reads at a time.
        upkeep_rows: u32 = 500,
        /// Pause between two such looks, where there was nothing to do; ten times that at the end.
        upkeep_interval_ms: u64 = 100,
        /// How often rows are looked for without having been told.
        poll_interval_ms: u64 = 1_000,
        /// Waiting tasks of one queue that are held in memory, about 100 bytes each; the rest wait in
        /// `queue/`, which takes longer to fill after an unclean stop, and more memory while it does.
        index_memory_max: usize = 1_000_000,
        /// Messages to the delivery thread that may wait; beyond that it looks into the rows itself.
        index_queue_max: usize = 16_384,
        /// Longest that opening or using `queue/` may take before it is set aside and rebuilt.
        index_timeout_ms: u64 = 5_000,
        /// Queues that may be known at once.
        queues_max: usize = 1_000,
    }
}

section! {
    /// `[schedules]`
    Schedules {
        /// Whether this process fires schedules; otherwise it only shows and changes them.
        enabled: bool = true,
        /// Time zone of schedules that name none; that of `[shop]` unless set here.
        time_zone: Zone = Zone::utc(),
        /// A fire that comes later than this counts as missed: the schedule says what is done then.
        late_seconds: u64 = 60,
        /// Schedules that there may be.
        schedules_max: u32 = 1_000,
        /// Missed fires that a schedule may ask to be made up for.
        catch_up_max: u32 = 100,
        /// Runs that are kept of each schedule.
        history_max: u32 = 1_000,
        /// How often the rows are looked through without having been nudged.
        poll_interval_ms: u64 = 5_000,
        /// Schedules by name, each a table such as `[schedules.entries.nightly]` with `cron` or
        /// `interval_seconds`, and `task`; optional are `time_zone`, `queue`, `args`, `priority`,
        /// `max_attempts`, `timeout_seconds`, `overlap` (`skip`, `allow`, `queue_one`), `missed`
        /// (`once`, `skip`, `all`), `missed_max` and `jitter_seconds`. A built-in one needs no `task`.
        entries: BTreeMap<String, ScheduleEntry> = BTreeMap::new(),
    }
}

/// A schedule of the settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleEntry {
    /// Fires as this expression says.
    pub cron: Option<String>,
    /// Fires every so many seconds.
    pub interval_seconds: Option<u32>,
    /// In which zone the expression is read.
    pub time_zone: Option<String>,
    /// What is to be done.
    pub task: Option<String>,
    /// Where its tasks wait.
    pub queue: Option<String>,
    /// Its tasks' arguments.
    #[serde(deserialize_with = "json_of_toml")]
    pub args: Option<serde_json::Value>,
    /// Higher first.
    pub priority: Option<u8>,
    /// How often each task may be started.
    pub max_attempts: Option<u32>,
    /// Longest run of each task.
    pub timeout_seconds: Option<u32>,
    /// What a fire does while the task before is unfinished.
    pub overlap: Option<String>,
    /// What becomes of missed fires.
    pub missed: Option<String>,
    /// How many of them `all` makes up for.
    pub missed_max: Option<u32>,
    /// Each task is put off by a random time up to this.
    pub jitter_seconds: Option<u32>,
}

/// TOML has numbers that JSON has not, and which would silently become `null`: `inf` and `nan`.
fn json_of_toml<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<serde_json::Value>, D::Error> {
    use figment::value::{Num, Value};
    fn is_json(value: &Value) -> bool {
        match value {
            Value::Num(_, Num::F64(float)) => float.is_finite(),
            Value::Dict(_, members) => members.values().all(is_json),
            Value::Array(_, values) => values.iter().all(is_json),
            _ => true,
        }
    }
    let Some(value) = Option::<Value>::deserialize(from)? else {
        return Ok(None);
    };
    if !is_json(&value) {
        return Err(serde::de::Error::custom(
            "JSON has no numbers `inf` and `nan`; send them as texts",
        ));
    }
    serde_json::to_value(value)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

section! {
    /// `[reports]`
    Reports {
        /// Time zone whose midnights the days of a report begin at; that of `[shop]` unless set here.
        time_zone: Zone = Zone::utc(),
        /// How long a report is kept and shown.
        cache_seconds: u64 = 3_600,
        /// Days of one report.
        days_max: u32 = 3_660,
        /// Days times currencies of one report.
        rows_max: usize = 20_000,
    }
}

section! {
    /// `[outgoing]`
    Outgoing {
        /// Internal addresses that tasks and webhooks may call nevertheless, as CIDR ranges. Every
        /// other address that is not public is refused.
        allow_internal: Vec<IpNet> = Vec::new(),
        /// PEM file with certificate authorities that are trusted besides the public ones.
        extra_ca: PathBuf = PathBuf::new(),
        /// Longest call, from the look-up of the name to the last byte of the answer.
        timeout_ms: u64 = 15_000,
        /// Time for one address to take the connection.
        connect_timeout_ms: u64 = 5_000,
        /// What is read of an answer's body.
        response_bytes_max: usize = 32_768,
        /// Largest head of an answer.
        response_header_bytes_max: usize = 32_768,
        /// Most header lines of an answer.
        response_headers_max: usize = 100,
        /// Names that are looked up at once.
        lookups_max: usize = 8,
    }
}

section! {
    /// `[faktory]`
    Faktory {
        /// Whether workers and producers that speak the Faktory protocol are served.
        enabled: bool = false,
        /// Address to listen on. Any other than this machine's own needs a password.
        host: IpAddr = IpAddr::from([127, 0, 0, 1]),
        /// TCP port; 0 takes a free one.
        port: u16 = 7419,
        /// What clients must know; empty for none. Better given by `ONRUSH_FAKTORY__PASSWORD_FILE`.
        password: Secret = Secret::default(),
        /// SHA-256 passes over the password.
        password_passes: u32 = 5_000,
        /// Wrong passwords of one address (of an IPv6 /64) before it must wait.
        password_failures: u32 = 10,
        /// The first wait; each further wrong password doubles it.
        password_delay_seconds: u64 = 1,
        /// The longest wait. It also keeps out workers at that address that know the password.
        password_delay_seconds_max: u64 = 60,
        /// After this time one wrong password is forgotten.
        password_forget_seconds: u64 = 300,
        /// Addresses that are remembered for it.
        password_tracked_max: usize = 10_000,
        /// Speak TLS, with the certificate and key of `[server]`.
        tls: bool = false,
        /// Open connections at once. Where they run short, the ones that did least for longest are closed
        /// for newcomers, first those that have not greeted.
        connections_max: usize = 1_024,
        /// Open connections of one address (of an IPv6 /64).
        connections_per_address_max: usize = 512,
        /// Workers that are known at once.
        workers_max: usize = 4_096,
        /// A worker without a connection that was not heard of for this long is forgotten.
        worker_seconds: u64 = 60,
        /// Largest command, such as all jobs of one `PUSHB`.
        command_bytes_max: usize = 1_048_576,
        /// Time for the TLS handshake, and again for the greeting.
        handshake_timeout_ms: u64 = 5_000,
        /// Time for the rest of a command after its first byte.
        command_timeout_ms: u64 = 10_000,
        /// Longest time that a client may take to read its answer.
        write_timeout_ms: u64 = 10_000,
        /// A connection that asks for nothing for this long is closed.
        idle_seconds: u64 = 3_600,
        /// How long `FETCH` waits for a job.
        fetch_wait_ms: u64 = 2_000,
        /// Queues that one `FETCH` or `QUEUE` may name.
        queues_max: usize = 64,
        /// How long workers may still report on their jobs after the server was told to stop.
        shutdown_grace_ms: u64 = 5_000,
    }
}

section! {
    /// `[webhooks]`
    Webhooks {
        /// Endpoints that there may be.
        endpoints_max: u32 = 100,
        /// Longest wait for an endpoint's answer.
        timeout_ms: u64 = 15_000,
        /// Calls of one endpoint at once; further ones wait, so that a slow one does not hold up the rest.
        endpoint_calls_max: u32 = 4,
        /// An endpoint that has only failed for this long is disabled.
        disable_after_seconds: u64 = 432_000,
        /// What is kept of an endpoint's answer in the delivery log.
        excerpt_bytes_max: usize = 1_024,
        /// How long the old secret signs beside the new one, unless the rotation says otherwise.
        secret_overlap_seconds: u64 = 86_400,
        /// How long events and the delivery log are kept.
        retention_seconds: u64 = 2_592_000,
    }
}

section! {
    /// `[mail]`
    Mail {
        /// The mail server. Without one, mails are written to `outbox/` in the data directory.
        smtp_host: String = String::new(),
        /// Its port; 0 for the customary one: 465 with `tls`, 587 with `starttls`, 25 with `none`.
        smtp_port: u16 = 0,
        /// `tls` from the first byte, `starttls`, or `none`: in the clear, for a server on this machine.
        smtp_tls: MailTls = MailTls::Starttls,
        /// PEM file with certificate authorities that are trusted besides the public ones.
        smtp_ca: PathBuf = PathBuf::new(),
        /// Who logs in there; empty for nobody.
        smtp_user: String = String::new(),
        /// The password; better in a file that ONRUSH_MAIL__SMTP_PASSWORD_FILE names.
        smtp_password: Secret = Secret::default(),
        /// Longest time for one mail.
        timeout_ms: u64 = 30_000,
        /// Who writes: `name@example.com` or `Name <name@example.com>`.
        from: String = "Onrush <onrush@localhost>".to_owned(),
        /// The shop's name, in subjects and texts.
        shop_name: String = "Onrush".to_owned(),
        /// Language of accounts that chose none: `en` or `zh`.
        language: Language = Language::En,
        /// Whether those who register get a mail.
        welcome: bool = true,
        /// The page of the shop to which the link of a registration leads; what it sends to
        /// `POST /api/v1/auth/confirm` is added as `#token=…`. Without one the mail has it as text.
        confirm_url: String = String::new(),
        /// Whether customers get mails about their orders: `smtp` (when there is a mail server),
        /// `always`, `never`.
        orders: MailRule = MailRule::Smtp,
        /// Mails in `outbox/`; beyond it the oldest are removed.
        outbox_files_max: usize = 1_000,
        /// How long a mail stays in `outbox/`.
        outbox_seconds: u64 = 2_592_000,
    }
}

section! {
    /// `[import]`
    Import {
        /// Rows that share one write.
        batch_rows: usize = 1_000,
        /// Bad rows that are reported one by one; the rest are only counted.
        errors_max: usize = 100,
        /// Longest field of a CSV file.
        field_bytes_max: usize = 65_536,
    }
}

section! {
    /// `[log]`
    Log {
        /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,onrush::store=debug`.
        level: String = "info".to_owned(),
        /// `text`, `json`, or `auto`: text on a terminal, JSON otherwise.
        format: LogFormat = LogFormat::Auto,
        /// One line per request at level info; otherwise only failures (5xx) are logged.
        requests: bool = false,
        /// Lines a second of each kind of event about security (the target `security`), ten times as many at
        /// once; of what comes on top the number is told.
        security_lines_per_second: u32 = 5,
    }
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Which entry of the cache gives way to a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eviction {
    /// One that was not read again soon after it came.
    S3Fifo,
    /// The one that is read least.
    Lfu,
    /// The one that was not read for longest.
    Lru,
    /// One that was not read since it was last looked at.
    Sieve,
    /// The oldest.
    Fifo,
}

/// How the mail server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// Encrypted from the first byte.
    Tls,
    /// Encrypted before anything is said that matters, or not at all.
    Starttls,
    /// In the clear.
    None,
}

/// A language that Onrush writes mails in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// English.
    En,
    /// Chinese, simplified.
    Zh,
}

impl Language {
    /// Every word, in the order of declaration.
    pub const WORDS: &'static [&'static str] = &["en", "zh"];

    /// The word that stands for it in settings, tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Language::En => "en",
            Language::Zh => "zh",
        }
    }

    /// The language that a word stands for.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "en" => Some(Language::En),
            "zh" => Some(Language::Zh),
            _ => None,
        }
    }
}

/// When a kind of mail is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailRule {
    /// When there is a mail server.
    Smtp,
    /// Also when they only land in `outbox/`.
    Always,
    /// Not at all: the shop writes its own.
    Never,
}

impl MailRule {
    /// Whether it is, with these settings of mails.
    pub fn applies(self, mail: &Mail) -> bool {
        match self {
            MailRule::Always => true,
            MailRule::Never => false,
            MailRule::Smtp => !mail.smtp_host.is_empty(),
        }
    }
}

/// A text that nobody is to see: its debug output and [`Loaded::effective`] leave it out.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for whoever it was made for.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { MASK })
    }
}

/// What stands in the place of a secret.
pub const MASK: &str = "********";
/// What a header's name has in it where its value is nobody's business but the receiver's.
const SECRET_HEADERS: &[&str] = &[
    "authorization",
    "cookie",
    "token",
    "secret",
    "password",
    "passwd",
    "api-key",
    "api_key",
    "apikey",
    "credential",
    "signature",
    "x-auth",
];

/// Whether the value of a header of this name is a secret.
pub fn is_secret_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_HEADERS.iter().any(|part| name.contains(part))
}

/// Puts [`MASK`] in the place of each secret among the member `headers` of `value`.
pub fn mask_headers(value: &mut serde_json::Value) {
    let headers = value
        .get_mut("headers")
        .and_then(|value| value.as_object_mut());
    for (name, value) in headers.into_iter().flatten() {
        if is_secret_header(name) {
            *value = MASK.into();
        }
    }
}
/// Keys whose values are secrets.
const SECRETS: &[&str] = &["faktory.password", "mail.smtp_password"];

/// Sections in the order of `config init`, with their keys' explanations.
type Docs = &'static [(&'static str, &'static [&'static str])];
const SECTIONS: &[(&str, Docs)] = &[
    ("data", Data::DOCS),
    ("shop", Shop::DOCS),
    ("server", Server::DOCS),
    ("database", Database::DOCS),
    ("auth", Auth::DOCS),
    ("products", Products::DOCS),
    ("orders", Orders::DOCS),
    ("flash_sales", FlashSales::DOCS),
    ("cache", Cache::DOCS),
    ("tasks", Tasks::DOCS),
    ("schedules", Schedules::DOCS),
    ("reports", Reports::DOCS),
    ("faktory", Faktory::DOCS),
    ("outgoing", Outgoing::DOCS),
    ("webhooks", Webhooks::DOCS),
    ("mail", Mail::DOCS),
    ("import", Import::DOCS),
    ("log", Log::DOCS),
];

/// Environment names that other servers taught people to set, and the key each one means.
const CUSTOMARY: &[(&str, &str)] = &[
    ("HOST", "server.host"),
    ("PORT", "server.port"),
    ("WORKERS", "server.workers"),
];
const ENV_PREFIX: &str = "ONRUSH_";
/// The one setting whose keys are names that an owner chooses.
const ENTRIES: &str = "schedules.entries";
/// Meant for the build (`web/build.rs`), and often still set when the result is started.
const BUILD_ONLY: &str = "ONRUSH_UI_DIST";

/// A duration setting in milliseconds, as a [`Duration`].
pub fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// Where a value came from, in words for `config show`.
pub type Sources = BTreeMap<String, String>;

/// What the command line and the environment said, gathered before any of it is believed.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The settings file: named by a flag, or [`FILE_NAME`] when that exists.
    pub file: Option<PathBuf>,
    /// The environment, as `(name, value)`.
    pub env: Vec<(String, String)>,
    /// Flags, as `(dotted key, value)`.
    pub flags: Vec<(String, String)>,
}

impl Inputs {
    /// The process's own environment, and `onrush.toml` of the working directory if there is one.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let default = PathBuf::from(FILE_NAME);
        Self {
            file: file.or_else(|| default.exists().then_some(default)),
            env: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            flags,
        }
    }
}

/// Settings with the source of each value that is not a default.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values in force.
    pub settings: Settings,
    /// Dotted key → what set it.
    pub sources: Sources,
}

/// Reads all sources, refuses what is unknown or out of range.
pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigError> {
    let known = known_keys();
    let mut figment = Figment::from(Serialized::defaults(Settings::default()));
    let mut sources = Sources::new();

    if let Some(path) = &inputs.file {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let table: serde_json::Value =
            Figment::from(Toml::string(&text))
                .extract()
                .map_err(|error| ConfigError::File {
                    path: path.clone(),
                    reason: without_excerpt(&error.to_string()),
                })?;
        for (key, value) in flatten(&table) {
            // A heading with nothing below it sets nothing.
            if is_empty(&value) && is_section(&key, &known) {
                continue;
            }
            check_known(&key, &known, &path.display().to_string())?;
            sources.insert(key, path.display().to_string());
        }
        figment = figment.merge(Toml::string(&text));
    }

    let mut overrides: Vec<(String, String, String)> = Vec::new();
    for (name, key) in CUSTOMARY {
        if let Some((_, value)) = inputs.env.iter().find(|(n, _)| n == name) {
            overrides.push((
                (*key).to_owned(),
                value.clone(),
                format!("environment {name}"),
            ));
        }
    }
    for (name, value) in &inputs.env {
        let Some(rest) = name.strip_prefix(ENV_PREFIX).filter(|_| name != BUILD_ONLY) else {
            continue;
        };
        let (rest, value) = match rest.strip_suffix("_FILE") {
            Some(stem) => {
                let text = std::fs::read_to_string(value).map_err(|error| ConfigError::File {
                    path: PathBuf::from(value),
                    reason: format!("{error} (named by {name})"),
                })?;
                (stem, text.trim_end_matches(['\r', '\n']).to_owned())
            }
            None => (rest, value.clone()),
        };
        let key = rest.to_ascii_lowercase().replace("__", ".");
        check_known(&key, &known, &format!("environment {name}"))?;
        overrides.push((key, value, format!("environment {name}")));
    }
    for (key, value) in &inputs.flags {
        check_known(key, &known, "the command line")?;
        overrides.push((key.clone(), value.clone(), "command line".to_owned()));
    }
    for (key, value, source) in overrides {
        if pattern_of(&key) == format!("{ENTRIES}.*.args")
            && let Err(JsonError::Shape(fault)) =
                check::parse_kept_json::<serde_json::Value>(value.as_bytes())
        {
            return Err(ConfigError::Invalid {
                key,
                reason: format!("{} {}", fault.field, fault.reason),
                source_name: source,
            });
        }
        let typed = typed_like(&known[&pattern_of(&key)], &value).map_err(|reason| {
            ConfigError::Invalid {
                key: key.clone(),
                reason,
                source_name: source.clone(),
            }
        })?;
        figment = figment.merge(Serialized::global(&key, typed));
        sources.insert(key, source);
    }

    let figment = figment.select(Profile::Default);
    let mut settings: Settings = figment
        .extract()
        .map_err(|error| invalid(&error, &sources, &figment))?;
    follow_shop(&mut settings, &mut sources);
    validate(&settings).map_err(|(key, reason)| ConfigError::Invalid {
        source_name: sources
            .get(key)
            .cloned()
            .unwrap_or_else(|| "its default".to_owned()),
        key: key.to_owned(),
        reason,
    })?;
    Ok(Loaded { settings, sources })
}

/// Gives the shop's time zone to those settings that say nothing of their own.
fn follow_shop(settings: &mut Settings, sources: &mut Sources) {
    const SHOP: &str = "shop.time_zone";
    let (zone, schedules, reports) = (
        settings.shop.time_zone.clone(),
        &mut settings.schedules.time_zone,
        &mut settings.reports.time_zone,
    );
    if !sources.contains_key(SHOP) {
        return;
    }
    let mut follows = |key: &str| {
        let is_unset = !sources.contains_key(key);
        if is_unset {
            sources.insert(key.to_owned(), SHOP.to_owned());
        }
        is_unset
    };
    if follows("schedules.time_zone") {
        schedules.clone_from(&zone);
    }
    if follows("reports.time_zone") {
        *reports = zone;
    }
}

impl Loaded {
    /// How many settings have another value than their default.
    pub fn changed(&self) -> usize {
        let known = flatten(&defaults());
        let values = flatten(&to_json(&self.settings));
        let differs = |(key, value): &(&String, &serde_json::Value)| {
            !value.is_null() && known.get(*key) != Some(*value)
        };
        values.iter().filter(differs).count()
    }

    /// The dotted keys whose values are others in `other`, secrets included.
    pub fn differences(&self, other: &Loaded) -> Vec<String> {
        let (own, others) = (
            flatten(&to_json(&self.settings)),
            flatten(&to_json(&other.settings)),
        );
        let mut keys: Vec<String> = own.keys().chain(others.keys()).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| own.get(key) != others.get(key));
        keys
    }

    /// Every effective value as `(dotted key, value, source)`, in the order of the file.
    pub fn effective(&self) -> Vec<(String, String, String)> {
        let values = flatten(&to_json(&self.settings));
        let row = |key: &str, value: &serde_json::Value| {
            let mut value = value.clone();
            // Those of the task `http_request`, in an entry of the schedules.
            mask_headers(&mut value);
            let source = self.sources.get(key).map_or("default", String::as_str);
            let shown = match value.to_string() {
                text if text != "\"\"" && SECRETS.contains(&key) => format!("\"{MASK}\""),
                text => text,
            };
            (key.to_owned(), shown, source.to_owned())
        };
        let mut rows = Vec::new();
        for (section, docs) in SECTIONS {
            for (name, _) in *docs {
                let key = format!("{section}.{name}");
                if let Some(value) = values.get(&key) {
                    rows.push(row(&key, value));
                    continue;
                }
                // The entries that there are, each with what was said of it.
                let within = format!("{key}.");
                let entries = values
                    .iter()
                    .filter(|(key, value)| key.starts_with(&within) && !value.is_null());
                rows.extend(entries.map(|(key, value)| row(key, value)));
            }
        }
        rows
    }
}

/// The commented file that `config init` writes: every key with its meaning and default.
pub fn commented_file() -> String {
    let values = flatten(&defaults());
    let mut text = String::from(
        "# Settings of Onrush. Each line shows its default; remove the `#` to change it.\n\
         # The environment (ONRUSH_SERVER__PORT=9000) and flags override this file.\n",
    );
    for (section, docs) in SECTIONS {
        text.push_str(&format!("\n[{section}]\n"));
        for (name, lines) in *docs {
            for line in *lines {
                text.push_str(&format!("#{line}\n"));
            }
            let value = &values[&format!("{section}.{name}")];
            text.push_str(&format!("# {name} = {value}\n"));
        }
    }
    text
}

fn defaults() -> serde_json::Value {
    to_json(&Settings::default())
}

fn to_json(settings: &Settings) -> serde_json::Value {
    serde_json::to_value(settings).unwrap_or(serde_json::Value::Null)
}

/// Every key that may be set, with a value of its type; an entry's name is written as `*`.
fn known_keys() -> BTreeMap<String, serde_json::Value> {
    let mut known = flatten(&defaults());
    let entry = serde_json::to_value(ScheduleEntry::default()).unwrap_or_default();
    for (field, value) in flatten(&entry) {
        known.insert(format!("{ENTRIES}.*.{field}"), value);
    }
    known
}

/// Whether `value` is a table with nothing in it.
fn is_empty(value: &serde_json::Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// Whether settings stand below `key`: the file as a whole, a section, the entries, or one of them.
fn is_section(key: &str, known: &BTreeMap<String, serde_json::Value>) -> bool {
    let name = key
        .strip_prefix(ENTRIES)
        .and_then(|rest| rest.strip_prefix('.'));
    let below = match name {
        Some(name) if !name.contains('.') => format!("{ENTRIES}.*."),
        _ => format!("{key}."),
    };
    key.is_empty() || known.keys().any(|known| known.starts_with(&below))
}

/// Of a key within an entry, the entry's name and the rest.
fn entry_of(key: &str) -> Option<(&str, &str)> {
    let inside = key.strip_prefix(ENTRIES)?.strip_prefix('.')?;
    // A name may have points in it; what belongs to an entry has none.
    inside.rsplit_once('.')
}

/// `schedules.entries.nightly.cron` → `schedules.entries.*.cron`; other keys as they are.
fn pattern_of(key: &str) -> String {
    match entry_of(key) {
        Some((_, field)) => format!("{ENTRIES}.*.{field}"),
        None => key.to_owned(),
    }
}

/// `{a: {b: 1}}` → `{"a.b": 1}`; lists, empty objects and the arguments of tasks are values.
fn flatten(value: &serde_json::Value) -> BTreeMap<String, serde_json::Value> {
    fn walk(
        prefix: &str,
        value: &serde_json::Value,
        out: &mut BTreeMap<String, serde_json::Value>,
    ) {
        let is_value = pattern_of(prefix) == format!("{ENTRIES}.*.args");
        match value.as_object() {
            Some(map) if !map.is_empty() && !is_value => {
                for (name, inner) in map {
                    let key = if prefix.is_empty() {
                        name.clone()
                    } else {
                        format!("{prefix}.{name}")
                    };
                    walk(&key, inner, out);
                }
            }
            Some(_) | None => {
                out.insert(prefix.to_owned(), value.clone());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", value, &mut out);
    out
}

fn check_known(
    key: &str,
    known: &BTreeMap<String, serde_json::Value>,
    source_name: &str,
) -> Result<(), ConfigError> {
    let pattern = pattern_of(key);
    if known.contains_key(&pattern) {
        return Ok(());
    }
    if is_section(key, known) {
        return Err(ConfigError::Invalid {
            key: key.to_owned(),
            reason: format!(
                "is a section and takes no value; set what belongs to it, such as {key}.{}",
                first_of(key)
            ),
            source_name: source_name.to_owned(),
        });
    }
    let sections = SECTIONS.iter().map(|(section, _)| *section);
    let nearest = known
        .keys()
        .map(String::as_str)
        .chain(sections)
        .map(|candidate| (strsim::damerau_levenshtein(candidate, &pattern), candidate))
        .min()
        .filter(|(distance, candidate)| *distance * 3 <= candidate.len())
        .map(|(_, candidate)| match entry_of(key) {
            Some((name, _)) => candidate.replace(".*.", &format!(".{name}.")),
            None => candidate.to_owned(),
        });
    Err(ConfigError::UnknownKey {
        key: key.to_owned(),
        nearest,
        source_name: source_name.to_owned(),
    })
}

/// The first setting of a section; of an entry, what it needs most.
fn first_of(section: &str) -> &'static str {
    let found = SECTIONS.iter().find(|(name, _)| *name == section);
    found
        .and_then(|(_, docs)| docs.first())
        .map_or("cron", |(name, _)| *name)
}

/// A value as it may stand in `onrush.toml` behind `=`; `None` where it may not.
fn toml_value(text: &str) -> Option<serde_json::Value> {
    let line = format!("value = {text}");
    let table: serde_json::Map<String, serde_json::Value> =
        Figment::from(Toml::string(&line)).extract().ok()?;
    // A line break in it would make two settings of one.
    let mut values = table.into_iter();
    let (first, rest) = (values.next()?.1, values.next());
    rest.is_none().then_some(first)
}

/// Text from the environment or a flag, read as the type that the default has. Numbers, lists and
/// tables may also be written as in the file.
fn typed_like(default: &serde_json::Value, text: &str) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    match default {
        Value::Bool(_) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Value::Bool(true)),
            "false" | "0" | "no" | "off" => Ok(Value::Bool(false)),
            _ => Err(format!("`{text}` is neither true nor false")),
        },
        Value::Number(_) => text
            .trim()
            .parse::<u64>()
            .ok()
            .or_else(|| toml_value(text)?.as_u64())
            .map(Value::from)
            .ok_or_else(|| format!("`{text}` is not a whole number of 0 or more")),
        Value::Array(_) if text.trim_start().starts_with('[') => {
            toml_value(text).filter(Value::is_array).ok_or_else(|| {
                format!("`{text}` is no list; write one,two or, as in the file, [\"one\", \"two\"]")
            })
        }
        Value::Array(items) => text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| match items.first() {
                Some(number @ Value::Number(_)) => typed_like(number, part),
                _ => Ok(Value::from(part)),
            })
            .collect::<Result<_, _>>()
            .map(Value::Array),
        // An optional setting says nothing of its type; a JSON text is what it looks like.
        Value::Null => Ok(serde_json::from_str(text)
            .ok()
            .or_else(|| table_in(text))
            .unwrap_or_else(|| Value::from(text))),
        Value::Object(_) => table_in(text).ok_or_else(|| {
            "is no table; write it as in the file, such as { name = \"value\" }".to_owned()
        }),
        Value::String(_) => Ok(Value::from(text)),
    }
}

/// The table or list that a text is, written as in the file.
fn table_in(text: &str) -> Option<serde_json::Value> {
    let is_one = text.trim_start().starts_with(['{', '[']);
    is_one.then(|| toml_value(text)).flatten()
}

/// A complaint of the TOML parser without the line that it shows: a secret may stand there.
fn without_excerpt(complaint: &str) -> String {
    let is_told = |line: &&str| {
        !line
            .trim_start_matches([' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
            .starts_with('|')
    };
    let told: Vec<&str> = complaint.lines().filter(is_told).collect();
    told.join(": ")
}

fn invalid(error: &figment::Error, sources: &Sources, figment: &Figment) -> ConfigError {
    let first = error.clone().into_iter().next();
    let path = first.as_ref().map_or(&[][..], |error| &error.path[..]);
    // What set a list is to be named, and of the list the one that is wrong.
    let place = path.iter().position(|part| part.parse::<usize>().is_ok());
    let key = path[..place.unwrap_or(path.len())].join(".");
    let reason = match &first {
        // The usual reason shows what was found.
        _ if SECRETS.contains(&key.as_str()) => "must be a text in quotes".to_owned(),
        Some(error) => match &error.kind {
            // All that the parsers of addresses ever say.
            figment::error::Kind::Message(said) if said.contains("IP address") => {
                let found = found_at(figment, &key, path.get(key.split('.').count()));
                match place {
                    Some(_) => format!(
                        "{found} is no range of addresses; write 10.0.0.0/8, or 10.0.0.1/32 for one address"
                    ),
                    None => format!(
                        "{found} is no address; write one such as 127.0.0.1, or 0.0.0.0 or :: for all"
                    ),
                }
            }
            kind => kind.to_string(),
        },
        None => error.to_string(),
    };
    ConfigError::Invalid {
        source_name: sources
            .get(&key)
            .cloned()
            .unwrap_or_else(|| "the settings".to_owned()),
        reason,
        key,
    }
}

/// The text at a key, or at a place of the list there, as it is quoted to the one who wrote it.
fn found_at(figment: &Figment, key: &str, place: Option<&String>) -> String {
    let found = figment.extract_inner::<serde_json::Value>(key).ok();
    let text = found.as_ref().and_then(|value| match place {
        Some(place) => value.get(place.parse::<usize>().ok()?)?.as_str(),
        None => value.as_str(),
    });
    text.map_or_else(|| "this".to_owned(), |text| format!("`{text}`"))
}

/// The ranges of `[cache]`, as [`validate`].
fn validate_cache(cache: &Cache) -> Result<(), (&'static str, String)> {
    for (key, value, min) in [
        ("cache.memory_bytes", cache.memory_bytes as u64, 1_048_576),
        (
            "cache.memory_entries_max",
            cache.memory_entries_max as u64,
            1_000,
        ),
        (
            "cache.absent_entries_max",
            cache.absent_entries_max as u64,
            100,
        ),
        ("cache.absent_seconds", cache.absent_seconds, 1),
        ("cache.ttl_seconds", cache.ttl_seconds, 1),
        ("cache.stale_retry_ms", cache.stale_retry_ms, 1),
        ("cache.refresh_percent", cache.refresh_percent, 1),
        ("cache.loads_max", cache.loads_max as u64, 1),
        ("cache.load_timeout_ms", cache.load_timeout_ms, 10),
        ("cache.wait_timeout_ms", cache.wait_timeout_ms, 10),
        ("cache.waiters_max", cache.waiters_max as u64, 1),
        ("cache.hot_window_seconds", cache.hot_window_seconds, 1),
        ("cache.hot_reads_min", cache.hot_reads_min, 1),
        ("cache.warm_keys_max", cache.warm_keys_max as u64, 1),
        ("cache.disk_timeout_ms", cache.disk_timeout_ms, 1),
        ("cache.disk_retry_seconds", cache.disk_retry_seconds, 1),
    ] {
        if value < min {
            return Err((key, format!("{value} is too small; the least is {min}")));
        }
    }
    for (key, value, max) in [
        ("cache.ttl_jitter_percent", cache.ttl_jitter_percent, 90),
        ("cache.refresh_percent", cache.refresh_percent, 100),
        // They are pushed out of memory together with what else is there.
        (
            "cache.hot_bytes_max",
            cache.hot_bytes_max as u64,
            cache.memory_bytes as u64,
        ),
        // A value on disk lies within one block.
        (
            "cache.value_bytes_max",
            cache.value_bytes_max as u64,
            3_145_728,
        ),
    ] {
        if value > max {
            return Err((key, format!("{value} is too large; the most is {max}")));
        }
    }
    if (1..67_108_864).contains(&cache.disk_bytes) {
        return Err((
            "cache.disk_bytes",
            "it must be 0, or 67108864 at least".to_owned(),
        ));
    }
    let steps = &cache.adaptive_load_ms;
    if steps.len() != cache.adaptive_ttl_seconds.len() {
        return Err((
            "cache.adaptive_ttl_seconds",
            format!(
                "it needs one life for each of the {} steps of cache.adaptive_load_ms",
                steps.len()
            ),
        ));
    }
    if steps.len() > 16 || steps.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err((
            "cache.adaptive_load_ms",
            "it must be at most 16 rising numbers".to_owned(),
        ));
    }
    Ok(())
}

/// Ranges that types don't express. Returns the first key that is out of its range.
fn validate(s: &Settings) -> Result<(), (&'static str, String)> {
    let at_least = |key: &'static str, value: u64, min: u64| {
        if value < min {
            Err((key, format!("{value} is too small; the least is {min}")))
        } else {
            Ok(())
        }
    };
    let at_most = |key: &'static str, value: u64, max: u64| {
        if value > max {
            Err((key, format!("{value} is too large; the most is {max}")))
        } else {
            Ok(())
        }
    };
    at_least("shop.clock_jump_seconds", s.shop.clock_jump_seconds, 1)?;
    at_most("shop.clock_jump_seconds", s.shop.clock_jump_seconds, 3_600)?;
    at_most("shop.clock_hold_seconds", s.shop.clock_hold_seconds, 86_400)?;
    at_least("server.connections_max", s.server.connections_max as u64, 1)?;
    at_least(
        "server.connections_per_address_max",
        s.server.connections_per_address_max as u64,
        1,
    )?;
    at_least(
        "server.body_bytes_max",
        s.server.body_bytes_max as u64,
        1_024,
    )?;
    for (key, sum, small) in [
        (
            "server.bodies_bytes_small",
            s.server.bodies_bytes_max,
            s.server.bodies_bytes_small,
        ),
        (
            "server.answers_bytes_small",
            s.server.answers_bytes_max,
            s.server.answers_bytes_small,
        ),
        (
            "server.slow_reads_small",
            s.server.slow_reads_max,
            s.server.slow_reads_small,
        ),
        (
            "auth.hash_queue_small",
            s.auth.hash_queue_max,
            s.auth.hash_queue_small,
        ),
    ] {
        at_least(key, small as u64, 1)?;
        at_most(key, small as u64, sum as u64)?;
    }
    at_least(
        "server.answers_bytes_max",
        s.server.answers_bytes_max as u64,
        16_777_216,
    )?;
    at_least(
        "server.open_body_bytes_max",
        s.server.open_body_bytes_max as u64,
        1_024,
    )?;
    at_least(
        "server.header_bytes_max",
        s.server.header_bytes_max as u64,
        8_192,
    )?;
    at_least("server.headers_max", s.server.headers_max as u64, 16)?;
    at_least(
        "server.first_byte_timeout_ms",
        s.server.first_byte_timeout_ms,
        100,
    )?;
    at_least("server.header_timeout_ms", s.server.header_timeout_ms, 100)?;
    at_least("server.body_timeout_ms", s.server.body_timeout_ms, 100)?;
    at_least(
        "server.request_timeout_ms",
        s.server.request_timeout_ms,
        100,
    )?;
    at_least("server.write_timeout_ms", s.server.write_timeout_ms, 100)?;
    at_least(
        "server.tls_handshake_timeout_ms",
        s.server.tls_handshake_timeout_ms,
        100,
    )?;
    at_least(
        "server.h2_streams_max",
        u64::from(s.server.h2_streams_max),
        1,
    )?;
    for (key, value, min) in [
        ("database.readers", u64::from(s.database.readers), 1),
        (
            "database.list_readers",
            u64::from(s.database.list_readers),
            1,
        ),
        (
            "database.search_readers",
            u64::from(s.database.search_readers),
            1,
        ),
        (
            "database.long_readers",
            u64::from(s.database.long_readers),
            1,
        ),
        ("database.lane_timeout_ms", s.database.lane_timeout_ms, 10),
        (
            "database.search_timeout_ms",
            s.database.search_timeout_ms,
            10,
        ),
    ] {
        at_least(key, value, min)?;
    }
    at_least(
        "database.statement_timeout_ms",
        s.database.statement_timeout_ms,
        10,
    )?;
    at_least(
        "database.statement_cache",
        s.database.statement_cache as u64,
        16,
    )?;
    at_least(
        "database.write_queue_max",
        s.database.write_queue_max as u64,
        1,
    )?;
    at_least(
        "database.write_batch_max",
        s.database.write_batch_max as u64,
        1,
    )?;
    at_least(
        "database.write_timeout_ms",
        s.database.write_timeout_ms,
        100,
    )?;
    at_least(
        "database.wal_bytes_max",
        s.database.wal_bytes_max,
        s.database.wal_ready_bytes.max(1_048_576),
    )?;
    at_least(
        "database.checkpoint_interval_ms",
        s.database.checkpoint_interval_ms,
        10,
    )?;
    at_least("auth.session_seconds", s.auth.session_seconds, 60)?;
    at_least(
        "auth.argon2_memory_kib",
        u64::from(s.auth.argon2_memory_kib),
        8,
    )?;
    at_least("auth.argon2_passes", u64::from(s.auth.argon2_passes), 1)?;
    for (key, value) in [
        (
            "auth.login_account_failures",
            u64::from(s.auth.login_account_failures),
        ),
        (
            "auth.login_account_forget_seconds",
            s.auth.login_account_forget_seconds,
        ),
        (
            "auth.login_address_failures",
            u64::from(s.auth.login_address_failures),
        ),
        (
            "auth.login_known_failures",
            u64::from(s.auth.login_known_failures),
        ),
        (
            "auth.login_address_forget_seconds",
            s.auth.login_address_forget_seconds,
        ),
        ("auth.login_delay_seconds", s.auth.login_delay_seconds),
        (
            "auth.login_known_places_max",
            u64::from(s.auth.login_known_places_max),
        ),
        ("auth.login_known_days", u64::from(s.auth.login_known_days)),
        (
            "auth.login_network_failures",
            u64::from(s.auth.login_network_failures),
        ),
        (
            "auth.login_network_forget_seconds",
            s.auth.login_network_forget_seconds,
        ),
        ("auth.sessions_max", u64::from(s.auth.sessions_max)),
        ("auth.confirm_seconds", s.auth.confirm_seconds),
        (
            "auth.registrations_per_address",
            u64::from(s.auth.registrations_per_address),
        ),
        (
            "auth.registrations_per_network",
            u64::from(s.auth.registrations_per_network),
        ),
        (
            "auth.registrations_in_all",
            u64::from(s.auth.registrations_in_all),
        ),
        (
            "log.security_lines_per_second",
            u64::from(s.log.security_lines_per_second),
        ),
        (
            "faktory.password_forget_seconds",
            s.faktory.password_forget_seconds,
        ),
    ] {
        at_least(key, value, 1)?;
    }
    at_least(
        "auth.login_tracked_max",
        s.auth.login_tracked_max as u64,
        1_000,
    )?;
    at_least("orders.lines_max", s.orders.lines_max as u64, 1)?;
    at_least("orders.quantity_max", u64::from(s.orders.quantity_max), 1)?;
    at_most(
        "orders.per_minute_max",
        u64::from(s.orders.per_minute_max),
        60_000,
    )?;
    at_least(
        "orders.tracked_customers_max",
        s.orders.tracked_customers_max as u64,
        1_000,
    )?;
    at_least("orders.expiry_batch", u64::from(s.orders.expiry_batch), 1)?;
    at_least("orders.expiry_interval_ms", s.orders.expiry_interval_ms, 10)?;
    at_least(
        "flash_sales.quantity_max",
        u64::from(s.flash_sales.quantity_max),
        1,
    )?;
    at_least(
        "flash_sales.tracked_buyers_max",
        s.flash_sales.tracked_buyers_max as u64,
        1_000,
    )?;
    at_least(
        "flash_sales.sweep_interval_ms",
        s.flash_sales.sweep_interval_ms,
        10,
    )?;
    for (key, value) in [
        ("tasks.args_bytes_max", s.tasks.args_bytes_max as u64),
        ("tasks.max_attempts", u64::from(s.tasks.max_attempts)),
        ("tasks.crashes_max", u64::from(s.tasks.crashes_max)),
        ("tasks.timeout_ms", s.tasks.timeout_ms),
        ("tasks.lease_seconds", s.tasks.lease_seconds),
        ("tasks.batch_tasks_max", s.tasks.batch_tasks_max as u64),
        ("tasks.bulk_tasks_max", u64::from(s.tasks.bulk_tasks_max)),
        ("tasks.counted_max", u64::from(s.tasks.counted_max)),
        ("tasks.upkeep_rows", u64::from(s.tasks.upkeep_rows)),
        ("tasks.queues_max", s.tasks.queues_max as u64),
    ] {
        at_least(key, value, 1)?;
    }
    at_least("tasks.upkeep_interval_ms", s.tasks.upkeep_interval_ms, 10)?;
    at_least("tasks.poll_interval_ms", s.tasks.poll_interval_ms, 10)?;
    at_least("tasks.index_timeout_ms", s.tasks.index_timeout_ms, 100)?;
    at_least(
        "tasks.index_memory_max",
        s.tasks.index_memory_max as u64,
        100,
    )?;
    at_least("tasks.index_queue_max", s.tasks.index_queue_max as u64, 64)?;
    for (key, value) in [
        ("schedules.schedules_max", s.schedules.schedules_max),
        ("schedules.catch_up_max", s.schedules.catch_up_max),
        ("schedules.history_max", s.schedules.history_max),
    ] {
        at_least(key, u64::from(value), 1)?;
    }
    at_least(
        "schedules.poll_interval_ms",
        s.schedules.poll_interval_ms,
        10,
    )?;
    at_least(
        "products.popularity_window_seconds",
        s.products.popularity_window_seconds,
        60,
    )?;
    at_least(
        "products.popularity_batch",
        s.products.popularity_batch as u64,
        1,
    )?;
    at_most(
        "products.popularity_batch",
        s.products.popularity_batch as u64,
        5_000,
    )?;
    at_least(
        "products.search_steps_max",
        u64::from(s.products.search_steps_max),
        1_000,
    )?;
    validate_cache(&s.cache)?;
    at_least("reports.cache_seconds", s.reports.cache_seconds, 1)?;
    at_least("reports.days_max", u64::from(s.reports.days_max), 1)?;
    at_least("reports.rows_max", s.reports.rows_max as u64, 1)?;
    let faktory = &s.faktory;
    for (key, value, min) in [
        (
            "faktory.password_passes",
            u64::from(faktory.password_passes),
            1,
        ),
        ("faktory.connections_max", faktory.connections_max as u64, 1),
        (
            "faktory.connections_per_address_max",
            faktory.connections_per_address_max as u64,
            1,
        ),
        (
            "faktory.password_tracked_max",
            faktory.password_tracked_max as u64,
            10,
        ),
        ("faktory.workers_max", faktory.workers_max as u64, 1),
        ("faktory.worker_seconds", faktory.worker_seconds, 1),
        (
            "faktory.command_bytes_max",
            faktory.command_bytes_max as u64,
            4_096,
        ),
        (
            "faktory.handshake_timeout_ms",
            faktory.handshake_timeout_ms,
            100,
        ),
        (
            "faktory.command_timeout_ms",
            faktory.command_timeout_ms,
            100,
        ),
        ("faktory.write_timeout_ms", faktory.write_timeout_ms, 100),
        ("faktory.idle_seconds", faktory.idle_seconds, 1),
        ("faktory.fetch_wait_ms", faktory.fetch_wait_ms, 1),
        ("faktory.queues_max", faktory.queues_max as u64, 1),
    ] {
        at_least(key, value, min)?;
    }
    // Each pass costs the server as much as the client; a greeting must stay cheap.
    if faktory.password_passes > 100_000 {
        return Err((
            "faktory.password_passes",
            "it may be 100000 at most".to_owned(),
        ));
    }
    if faktory.enabled && !faktory.host.is_loopback() && faktory.password.is_empty() {
        return Err((
            "faktory.password",
            "it is needed where other machines can connect; set one, or listen on 127.0.0.1"
                .to_owned(),
        ));
    }
    if faktory.enabled && faktory.tls && s.server.tls_cert.as_os_str().is_empty() {
        return Err((
            "faktory.tls",
            "it needs server.tls_cert and server.tls_key".to_owned(),
        ));
    }
    for (key, value) in [
        ("outgoing.timeout_ms", s.outgoing.timeout_ms),
        ("outgoing.connect_timeout_ms", s.outgoing.connect_timeout_ms),
        ("webhooks.timeout_ms", s.webhooks.timeout_ms),
        ("mail.timeout_ms", s.mail.timeout_ms),
    ] {
        at_least(key, value, 10)?;
    }
    let confirm_url = &s.mail.confirm_url;
    let is_page = ["https://", "http://"].map(|scheme| confirm_url.starts_with(scheme))
        != [false; 2]
        && !confirm_url.contains(['#', ' ', '"', '<', '>']);
    if !confirm_url.is_empty() && !is_page {
        return Err((
            "mail.confirm_url",
            "it must begin with https:// or http:// and have no `#`".to_owned(),
        ));
    }
    // hyper asks for so much.
    at_least(
        "outgoing.response_header_bytes_max",
        s.outgoing.response_header_bytes_max as u64,
        8_192,
    )?;
    for (key, value) in [
        (
            "outgoing.response_headers_max",
            s.outgoing.response_headers_max as u64,
        ),
        ("outgoing.lookups_max", s.outgoing.lookups_max as u64),
        (
            "webhooks.endpoint_calls_max",
            u64::from(s.webhooks.endpoint_calls_max),
        ),
        ("webhooks.retention_seconds", s.webhooks.retention_seconds),
        ("mail.outbox_files_max", s.mail.outbox_files_max as u64),
    ] {
        at_least(key, value, 1)?;
    }
    at_least("import.batch_rows", s.import.batch_rows as u64, 1)?;
    if s.server.tls_cert.as_os_str().is_empty() != s.server.tls_key.as_os_str().is_empty() {
        return Err((
            "server.tls_key",
            "tls_cert and tls_key go together; set both or neither".to_owned(),
        ));
    }
    if s.data.dir.as_os_str().is_empty() {
        return Err(("data.dir", "it must name a directory".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Inputs {
        Inputs {
            env: pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            ..Inputs::default()
        }
    }

    #[test]
    fn later_sources_win_and_are_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("onrush.toml");
        std::fs::write(&file, "[server]\nport = 1111\nbacklog = 7\n").expect("write");
        let mut inputs = env(&[
            ("PORT", "2222"),
            ("ONRUSH_SERVER__PORT", "3333"),
            ("ONRUSH_UI_DIST", "elsewhere"),
            ("HOST", "::1"),
        ]);
        inputs.file = Some(file);
        let loaded = load(&inputs).expect("valid");
        assert_eq!(loaded.settings.server.port, 3333);
        assert_eq!(loaded.settings.server.backlog, 7);
        assert_eq!(
            loaded.sources["server.port"],
            "environment ONRUSH_SERVER__PORT"
        );
        inputs.flags = vec![("server.port".to_owned(), "4444".to_owned())];
        assert_eq!(load(&inputs).expect("valid").settings.server.port, 4444);
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_nearest_one() {
        let error = load(&env(&[("ONRUSH_SERVER__PROT", "1")])).expect_err("unknown");
        assert!(
            error.to_string().contains("did you mean `server.port`?"),
            "{error}"
        );
    }

    #[test]
    fn the_settings_of_other_pools_are_told_what_takes_their_place() {
        let told = |name: &str| {
            let name = format!("ONRUSH_DATABASE__{}", name.to_uppercase());
            let error = load(&env(&[(&name, "1")])).expect_err("unknown");
            error.to_string()
        };
        for (name, word) in OF_OTHER_POOLS {
            assert!(told(name).contains(word), "{name}");
        }
        let known = known_keys();
        for (_, word) in OF_OTHER_POOLS {
            for key in word.split('`').filter(|part| part.starts_with("database.")) {
                assert!(known.contains_key(key), "{key}");
            }
        }
    }

    #[test]
    fn schedules_are_declared_by_name_and_their_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("onrush.toml");
        let load_text = |text: &str, pairs: &[(&str, &str)]| {
            std::fs::write(&file, text).expect("write");
            let mut inputs = env(pairs);
            inputs.file = Some(file.clone());
            load(&inputs)
        };
        let text = "[schedules.entries.nightly]\ncron = \"0 1 * * *\"\ntask = \"resize\"\n\
                    args = { image = { id = 7 }, headers = { X-Api-Key = \"k7\", X-Own = \"o7\" } }\n[schedules.entries.often]\ninterval_seconds = 5\n";
        let priority = ("ONRUSH_SCHEDULES__ENTRIES__OFTEN__PRIORITY", "7");
        let task = ("ONRUSH_SCHEDULES__ENTRIES__OFTEN__TASK", "count");
        let loaded = load_text(text, &[priority, task]).expect("valid");
        let entries = &loaded.settings.schedules.entries;
        assert_eq!(
            entries["nightly"].args,
            Some(serde_json::json!({
                "image": {"id": 7}, "headers": {"X-Api-Key": "k7", "X-Own": "o7"}
            }))
        );
        assert_eq!(entries["often"].priority, Some(7));
        assert_eq!(entries["often"].task.as_deref(), Some("count"));
        let effective = loaded.effective();
        let shown = |key: &str| effective.iter().find(|(shown, ..)| shown == key);
        let (_, args, _) = shown("schedules.entries.nightly.args").expect("shown");
        assert!(args.contains("o7") && !args.contains("k7"), "{args}");
        assert!(shown("schedules.entries.nightly.queue").is_none());
        let (.., source) = shown("schedules.entries.often.priority").expect("shown");
        assert_eq!(
            source,
            "environment ONRUSH_SCHEDULES__ENTRIES__OFTEN__PRIORITY"
        );
        let wrong = "[schedules.entries.nightly]\ncorn = \"0 1 * * *\"\n";
        let error = load_text(wrong, &[]).expect_err("unknown").to_string();
        assert!(error.contains("schedules.entries.nightly.corn"), "{error}");
        assert!(
            error.contains("mean `schedules.entries.nightly.cron`"),
            "{error}"
        );
        for number in ["inf", "-inf", "nan"] {
            let wrong = format!("[schedules.entries.nightly]\nargs = {{ n = [{number}] }}\n");
            let error = load_text(&wrong, &[]).expect_err("no JSON").to_string();
            assert!(error.contains("JSON has no numbers"), "{error}");
        }
        let args = ("ONRUSH_SCHEDULES__ENTRIES__OFTEN__ARGS", r#"{"n":[1e400]}"#);
        let error = load_text(text, &[task, args])
            .expect_err("lost")
            .to_string();
        assert!(error.contains("n[0] is a number"), "{error}");
        let args = (args.0, r#"{"n":18446744073709551615}"#);
        let loaded = load_text(text, &[task, args]).expect("valid");
        let kept = &loaded.settings.schedules.entries["often"].args;
        assert_eq!(kept, &Some(serde_json::json!({"n": u64::MAX})));
        let wrong = "[schedules.entries]\nnightly = 5\n";
        assert!(load_text(wrong, &[]).is_err());
        let wrong = "[schedules.entries.nightly]\npriority = \"high\"\n";
        assert!(load_text(wrong, &[]).is_err());
    }

    #[test]
    fn wrong_types_and_ranges_name_the_key_and_its_source() {
        for (name, value, word) in [
            ("ONRUSH_SERVER__PORT", "abc", "whole number"),
            ("ONRUSH_SERVER__PORT", "70000", "server.port"),
            ("ONRUSH_AUTH__OPEN_REGISTRATION", "maybe", "neither"),
            ("ONRUSH_DATABASE__READERS", "0", "the least is 1"),
            (
                "ONRUSH_SERVER__TRUSTED_PROXIES",
                "10.0.0.0/33",
                "server.trusted_proxies",
            ),
        ] {
            let error = load(&env(&[(name, value)])).expect_err(name).to_string();
            assert!(error.contains(word) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_is_fit_for_trying_out_alone_is_told_and_the_defaults_are_not() {
        let risks = |change: &dyn Fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.risks()
        };
        assert_eq!(risks(&|_| ()), Vec::<String>::new());
        let everywhere = |settings: &mut Settings| settings.server.host = [0, 0, 0, 0].into();
        let ranges = |text: &str| vec![text.parse::<IpNet>().expect("a range")];
        type Change<'a> = &'a dyn Fn(&mut Settings);
        let cases: &[(Change<'_>, &str)] = &[
            (
                &|settings| settings.orders.customers_confirm_payment = true,
                "customers_confirm_payment",
            ),
            (&everywhere, "travel in the clear: server.host is 0.0.0.0"),
            (
                &|settings| settings.server.public_url = "https://shop.example".to_owned(),
                "server.public_url",
            ),
            (
                &|settings| settings.server.metrics_allow = ranges("0.0.0.0/0"),
                "/metrics",
            ),
            (
                &|settings| {
                    settings.faktory.enabled = true;
                    settings.faktory.host = [10, 0, 0, 1].into();
                },
                "faktory.tls",
            ),
            (
                &|settings| {
                    settings.mail.smtp_host = "mail.example.com".to_owned();
                    settings.mail.smtp_tls = MailTls::None;
                },
                "mail.smtp_tls",
            ),
        ];
        for (change, word) in cases {
            let told = risks(change);
            assert!(told.len() == 1 && told[0].contains(word), "{told:?}");
        }
        let safe: &[Change<'_>] = &[
            &|settings| {
                everywhere(settings);
                settings.server.tls_cert = PathBuf::from("cert.pem");
            },
            &|settings| {
                everywhere(settings);
                settings.server.trusted_proxies = ranges("10.0.0.0/8");
            },
            &|settings| settings.server.public_url = "http://localhost:8000".to_owned(),
        ];
        for change in safe {
            assert_eq!(risks(change), Vec::<String>::new());
        }
    }

    #[test]
    fn a_password_is_needed_where_others_can_connect_and_is_never_shown() {
        let open = [
            ("ONRUSH_FAKTORY__ENABLED", "true"),
            ("ONRUSH_FAKTORY__HOST", "0.0.0.0"),
        ];
        let error = load(&env(&open)).expect_err("no password").to_string();
        assert!(error.contains("faktory.password"), "{error}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "hunter2\n").expect("written");
        let path = file.path().to_string_lossy().into_owned();
        let mut pairs = open.to_vec();
        pairs.push(("ONRUSH_FAKTORY__PASSWORD_FILE", &path));
        let loaded = load(&env(&pairs)).expect("valid");
        assert_eq!(loaded.settings.faktory.password.reveal(), "hunter2");
        assert!(!format!("{:?}", loaded.settings).contains("hunter2"));
        let shown = loaded.effective();
        assert!(shown.iter().all(|(_, value, _)| !value.contains("hunter2")));
        let row = shown.iter().find(|(key, _, _)| key == "faktory.password");
        assert_eq!(
            row.map(|(_, value, _)| value.as_str()),
            Some("\"********\"")
        );
    }

    #[test]
    fn the_shops_time_zone_is_everyones_who_has_none() {
        let zones = |pairs: &[(&str, &str)]| {
            let loaded = load(&env(pairs)).expect("valid");
            let settings = &loaded.settings;
            let shown = loaded.effective();
            let sources = ["schedules.time_zone", "reports.time_zone"].map(|wanted| {
                let row = shown.iter().find(|(key, ..)| key == wanted);
                row.map(|(.., source)| source.clone()).expect("shown")
            });
            (
                settings.schedules.time_zone.name().to_owned(),
                settings.reports.time_zone.name().to_owned(),
                sources,
            )
        };
        let (shop, reports) = (
            ("ONRUSH_SHOP__TIME_ZONE", "Asia/Shanghai"),
            ("ONRUSH_REPORTS__TIME_ZONE", "Europe/Berlin"),
        );
        let none = (
            "UTC".to_owned(),
            "UTC".to_owned(),
            ["default", "default"].map(str::to_owned),
        );
        assert_eq!(zones(&[]), none);
        let (schedules, of_reports, sources) = zones(&[shop, reports]);
        assert_eq!(
            (schedules.as_str(), of_reports.as_str()),
            ("Asia/Shanghai", "Europe/Berlin")
        );
        assert_eq!(
            sources,
            ["shop.time_zone", "environment ONRUSH_REPORTS__TIME_ZONE"]
        );
        assert_eq!(zones(&[shop]).1, "Asia/Shanghai");
        // Files from before know of the one or the other.
        assert_eq!(zones(&[reports]).0, "UTC");
        for key in ["shop", "schedules", "reports"] {
            let name = format!("ONRUSH_{}__TIME_ZONE", key.to_uppercase());
            let wrong = load(&env(&[(&name, "Asia/Beijing")]));
            let wrong = wrong.expect_err("no such zone").to_string();
            assert!(wrong.contains(&format!("{key}.time_zone")), "{wrong}");
            assert!(wrong.contains("did you mean Asia/Shanghai?"), "{wrong}");
        }
    }

    #[test]
    fn a_secret_is_not_shown_by_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("onrush.toml");
        for key in SECRETS {
            let (section, name) = key.split_once('.').expect("a section");
            for (wrong, told) in [
                ("4711", "must be a text in quotes"),
                ("\"4711", "line 2"),
                ("[\"4711\"]", "must be a text in quotes"),
            ] {
                let text = format!("[{section}]\n{name} = {wrong}\n");
                std::fs::write(&file, text).expect("write");
                let inputs = Inputs {
                    file: Some(file.clone()),
                    ..Inputs::default()
                };
                let error = load(&inputs).expect_err(wrong);
                let (shown, inside) = (error.to_string(), format!("{error:?}"));
                assert!(shown.contains(told), "{shown}");
                assert!(
                    !shown.contains("4711") && !inside.contains("4711"),
                    "{shown}"
                );
            }
        }
    }

    fn load_text(text: &str) -> Result<Loaded, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("write");
        load(&Inputs {
            file: Some(file.path().to_owned()),
            ..Inputs::default()
        })
    }

    #[test]
    fn a_heading_with_nothing_below_it_sets_nothing() {
        let sections = SECTIONS.iter().map(|(name, _)| format!("[{name}]\n"));
        let all: String = sections.clone().collect();
        let others = [
            "",
            "# nothing\n",
            "[schedules.entries]\n",
            "auth = {}\n",
            &all,
        ];
        for text in sections.chain(others.map(str::to_owned)) {
            let loaded = load_text(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(loaded.settings, Settings::default(), "{text}");
            assert!(loaded.sources.is_empty(), "{text}");
        }
        let entry = load_text("[schedules.entries.nightly]\n").expect("an entry of nothing");
        assert_eq!(
            entry.settings.schedules.entries["nightly"],
            ScheduleEntry::default()
        );
        let named = "[schedules.entries.\"v1.5\"]\ncron = \"0 1 * * *\"\n";
        let entries = load_text(named).expect("a name with a point");
        assert!(entries.settings.schedules.entries.contains_key("v1.5"));
        for (text, word) in [
            ("[ordres]\n", "did you mean `orders`?"),
            ("[auth.session]\n", "there is no setting `auth.session`"),
            ("auth = 5\n", "auth: is a section"),
            ("[[server]]\nport = 1\n", "server: is a section"),
            ("[schedules]\nentries = 5\n", "schedules.entries: "),
        ] {
            let error = load_text(text).expect_err(text).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn each_line_of_the_commented_file_holds_by_itself() {
        let text = commented_file();
        let mut lines = 0;
        for (at, line) in text.lines().enumerate() {
            let is_setting = line.strip_prefix("# ").filter(|rest| {
                let name = rest.split_once(" = ").map_or("", |(name, _)| name);
                !name.is_empty()
                    && name
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c))
            });
            let Some(setting) = is_setting else {
                continue;
            };
            let lines_with = text.lines().enumerate();
            let with: Vec<&str> = lines_with
                .map(|(other, line)| if other == at { setting } else { line })
                .collect();
            let loaded = load_text(&with.join("\n"));
            let loaded = loaded.unwrap_or_else(|error| panic!("{setting}: {error}"));
            assert_eq!(loaded.settings, Settings::default(), "{setting}");
            assert_eq!(loaded.changed(), 0, "{setting}");
            lines += 1;
        }
        assert_eq!(
            lines,
            SECTIONS.iter().map(|(_, docs)| docs.len()).sum::<usize>()
        );
    }

    #[test]
    fn lists_numbers_and_tables_in_the_environment_may_be_written_as_in_the_file() {
        let proxies = |text: &str| {
            let loaded = load(&env(&[("ONRUSH_SERVER__TRUSTED_PROXIES", text)]))?;
            Ok::<_, ConfigError>(loaded.settings.server.trusted_proxies)
        };
        let both = proxies("10.0.0.0/8, 192.168.0.0/16").expect("with commas");
        assert_eq!(both.len(), 2);
        for same in [
            "[\"10.0.0.0/8\", \"192.168.0.0/16\"]",
            " ['10.0.0.0/8','192.168.0.0/16',] ",
            "10.0.0.0/8,,192.168.0.0/16,",
        ] {
            assert_eq!(proxies(same).expect(same), both, "{same}");
        }
        assert!(proxies("").expect("none").is_empty() && proxies("[]").expect("none").is_empty());
        for (text, word) in [
            (
                "[10.0.0.0/8]",
                "`[10.0.0.0/8]` is no list; write one,two or",
            ),
            ("[\"10.0.0.0/8\"", "is no list"),
            ("[\"10.0.0.0/8\"]\nother = 1", "is no list"),
            ("[\"10.0.0.0/8\", 5]", "server.trusted_proxies"),
            (
                "10.0.0.0/8,10.0.0.1",
                "`10.0.0.1` is no range of addresses; write 10.0.0.0/8",
            ),
            ("[\"10.0.0.0/33\"]", "`10.0.0.0/33` is no range"),
        ] {
            let error = proxies(text).expect_err(text).to_string();
            assert!(error.contains(word), "{error}");
            assert!(error.contains("(set by environment ONRUSH_SERVER__TRUSTED_PROXIES)"));
        }
        let loaded = load(&env(&[
            ("ONRUSH_SERVER__CORS_ORIGINS", "[\"https://a.example\"]"),
            ("ONRUSH_SERVER__BODY_BYTES_MAX", "2_097_152"),
            (
                "ONRUSH_SCHEDULES__ENTRIES",
                "{ nightly = { cron = \"0 1 * * *\" } }",
            ),
            ("ONRUSH_SCHEDULES__ENTRIES__NIGHTLY__ARGS", "{ image = 7 }"),
        ]));
        let settings = loaded.expect("as in the file").settings;
        assert_eq!(settings.server.cors_origins, ["https://a.example"]);
        assert_eq!(settings.server.body_bytes_max, 2_097_152);
        let nightly = &settings.schedules.entries["nightly"];
        assert_eq!(nightly.cron.as_deref(), Some("0 1 * * *"));
        assert_eq!(nightly.args, Some(serde_json::json!({"image": 7})));
        for (text, word) in [("five", "is no table"), ("{ nightly = 5 }", "nightly")] {
            let error = load(&env(&[("ONRUSH_SCHEDULES__ENTRIES", text)]));
            let error = error.expect_err(text).to_string();
            assert!(error.contains(word), "{error}");
        }
        let wrong = load_text("[server]\nmetrics_allow = [\"127.0.0.0/8\", \"all\"]\n");
        let wrong = wrong.expect_err("no range").to_string();
        assert!(
            wrong.contains("server.metrics_allow: `all` is no range"),
            "{wrong}"
        );
    }

    #[test]
    fn the_commented_file_is_valid_and_says_only_defaults() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("onrush.toml");
        let text = commented_file();
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") && !rest.contains("ONRUSH_") => {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        std::fs::write(&file, uncommented).expect("write");
        let loaded = load(&Inputs {
            file: Some(file),
            ..Inputs::default()
        })
        .expect("valid");
        assert_eq!(loaded.settings, Settings::default());
        assert!(loaded.sources.len() > 50);
    }
}
