//! Every setting: its section, its type, its default, its meaning and its bounds.
//!
//! A setting is declared once, as `name: type = default, in least..=most,`. In place of the range stands
//! `as` and other [`Bounds`] where it is no number; neither stands where the type itself allows no more than
//! it should ([`Closed`]). A setting with none of the three does not compile.
//!
//! A bound at which nothing breaks is wide: it tells a mistake (a time in the wrong unit, a number with three
//! zeros too many) and keeps sums, allocations and moments in what their types can hold.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::bounds::{Bounds, Closed};
use super::values::{Eviction, Language, LogFormat, MailRule, MailTls, Secret};
use crate::zone::Zone;

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

/// A day, in milliseconds: no wait, pause or run of one request is meant to be longer.
const DAY_MS: u64 = 86_400_000;
/// A year, in seconds and in milliseconds: as far as schedules repeat and tasks run.
const YEAR_SECONDS: u64 = 31_622_400;
const YEAR_MS: u64 = YEAR_SECONDS * 1_000;
/// A thousand years, which is as good as for ever, and can still be added to a moment.
const FOR_EVER_SECONDS: u64 = 31_557_600_000;
/// More bytes of one body, buffer or answer are not meant to be in memory.
const GIB: u64 = 1 << 30;
/// More bytes of memory or disk are not meant for one purpose.
const TIB: u64 = 1 << 40;
/// The longest text that SQLite keeps (`SQLITE_MAX_LENGTH`).
const TEXT_BYTES_MAX: u64 = 1_000_000_000;
/// More of anything that is counted, or kept by its number, is as good as no limit.
const COUNT_MAX: u64 = 1_000_000_000;
/// The largest stock of a product.
const UNITS_MAX: u64 = 1_000_000_000;
/// The longest path that Linux takes (`PATH_MAX`, without its last byte).
const PATH_BYTES_MAX: usize = 4_095;

/// One setting, as it is documented, printed and checked.
pub(super) struct Setting {
    /// Its name within the section.
    pub(super) name: &'static str,
    /// The lines that explain it.
    pub(super) doc: &'static [&'static str],
    /// Which values it may have.
    pub(super) bounds: Bounds,
}

macro_rules! bounds {
    ($kind:ty; in $least:tt ..= $most:tt) => {
        Bounds::Number {
            least: $least,
            most: $most,
        }
    };
    ($kind:ty; as $bounds:expr) => {
        $bounds
    };
    ($kind:ty;) => {
        Bounds::OfType(<$kind as Closed>::FORM)
    };
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $(
        $(#[doc = $text:literal])+
        $field:ident : $kind:ty = $default:expr, $(in $least:tt ..= $most:tt,)? $(as $bounds:expr,)?
    )* }) => {
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
            /// The settings of this section, in the order of declaration.
            pub(super) const ALL: &'static [Setting] = &[$(Setting {
                name: stringify!($field),
                doc: &[$($text),+],
                bounds: bounds!($kind; $(in $least ..= $most)? $(as $bounds)?),
            }),*];
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
        /// The data directory: `onrush.db`, `static/`, `tls/`, `backups/`. Created with mode 0700 when it is not there.
        dir: PathBuf = PathBuf::from("onrush-data"), as Bounds::Directory { bytes_max: PATH_BYTES_MAX },
    }
}

section! {
    /// `[shop]`
    Shop {
        /// Time zone of the shop: of its schedules and of the days of its reports, unless
        /// `schedules.time_zone` or `reports.time_zone` is set. An IANA name such as `Asia/Shanghai`.
        time_zone: Zone = Zone::utc(),
        /// Seconds by which the system's clock may be set and is followed at once. A larger jump is held back:
        /// a time that is wrong for a moment would end sales, expire orders and delete kept data.
        clock_jump_seconds: u64 = 10, in 1..=3_600,
        /// Seconds for which the new time must have stood until a larger jump is followed; 0 follows it at once.
        clock_hold_seconds: u64 = 60, in 0..=86_400,
    }
}

section! {
    /// `[server]`
    Server {
        /// Address to listen on; `0.0.0.0` or `::` for all.
        host: IpAddr = IpAddr::from([127, 0, 0, 1]),
        /// TCP port; 0 takes a free one.
        port: u16 = 8000, in 0..=65_535,
        /// Async worker threads; 0 means one per core.
        workers: usize = 0, in 0..=1_024,
        /// Listen on this unix socket as well; empty for none.
        unix_socket: PathBuf = PathBuf::new(), as Bounds::Path { bytes_max: 107 },
        /// PEM file with the certificate chain; empty for plain HTTP. Reloaded when it changes.
        tls_cert: PathBuf = PathBuf::new(), as Bounds::Path { bytes_max: PATH_BYTES_MAX },
        /// PEM file with the private key of `tls_cert`; set both or neither.
        tls_key: PathBuf = PathBuf::new(), as Bounds::Path { bytes_max: PATH_BYTES_MAX },
        /// What users type to reach the server, for links in output; empty to derive it.
        public_url: String = String::new(), as Bounds::Text { chars_max: 2_000 },
        /// Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed, as CIDR ranges.
        trusted_proxies: Vec<IpNet> = Vec::new(), as Bounds::Items { most: 4_096 },
        /// Origins that browsers may call from; none means CORS is off.
        cors_origins: Vec<String> = Vec::new(), as Bounds::Items { most: 4_096 },
        /// Addresses that may read `/metrics` without credentials, as CIDR ranges. From elsewhere it takes
        /// an API key with the scope `metrics`, or a session of staff.
        metrics_allow: Vec<IpNet> = loopback(), as Bounds::Items { most: 4_096 },
        /// Whether `/docs`, `/openapi.json` and `/openapi.yaml` are served.
        docs: bool = true,
        /// Open connections at once. Where they run short, the ones that did least for longest are closed
        /// for newcomers, first those of clients that hold more than an equal part.
        connections_max: usize = 4096, in 1..=1_000_000,
        /// Open connections of one address (of an IPv6 /64); trusted proxies are exempt.
        connections_per_address_max: usize = 1024, in 1..=1_000_000,
        /// Length of the kernel's queue of connections not yet accepted.
        backlog: u32 = 1024, in 0..=1_000_000,
        /// Bytes of an answer that the kernel takes before the client does, for each connection; 0 lets the
        /// kernel choose, which may be megabytes for a client that reads nothing.
        send_buffer_bytes: usize = 262_144, in 0..=GIB,
        /// Longest wait for the first byte of a connection, in milliseconds.
        first_byte_timeout_ms: u64 = 5_000, in 100..=DAY_MS,
        /// Longest time for the request line and all headers, in milliseconds; also how long a kept-alive
        /// connection may idle.
        header_timeout_ms: u64 = 10_000, in 100..=DAY_MS,
        /// Longest wait for the next piece of a request body, in milliseconds.
        body_timeout_ms: u64 = 10_000, in 100..=DAY_MS,
        /// Longest time for a whole request, from its headers to the start of the answer, in milliseconds.
        request_timeout_ms: u64 = 30_000, in 100..=DAY_MS,
        /// Longest wait, in milliseconds, for a client that reads nothing of its answer; then it is cut off.
        write_timeout_ms: u64 = 30_000, in 100..=DAY_MS,
        /// Longest time for a TLS handshake, in milliseconds.
        tls_handshake_timeout_ms: u64 = 5_000, in 100..=DAY_MS,
        /// Largest request body, in bytes.
        body_bytes_max: usize = 1_048_576, in 1_024..=GIB,
        /// Largest body of an operation that needs no credentials, such as logging in, in bytes.
        open_body_bytes_max: usize = 16_384, in 1_024..=GIB,
        /// Largest body of a CSV import, in bytes.
        import_bytes_max: usize = 268_435_456, in 0..=TIB,
        /// Bytes of request bodies that are in memory at once, of all requests together. A client that has
        /// taken its share of them is answered 429; where all are taken, 503. At least eight thirds of the
        /// largest body.
        bodies_bytes_max: usize = 67_108_864, in 1..=TIB,
        /// Bytes of request bodies that each client (an address, an IPv6 /64) may hold even beside greedy ones; at
        /// most `bodies_bytes_max`.
        bodies_bytes_small: usize = 32_768, in 1..=TIB,
        /// Bytes of answers that were made and are not sent, of all together.
        answers_bytes_max: usize = 67_108_864, in 16_777_216..=TIB,
        /// Bytes of answers that each client may hold even beside greedy ones; at most `answers_bytes_max`.
        answers_bytes_small: usize = 65_536, in 1..=TIB,
        /// Reads that look through many rows, such as searches, at once, those that wait included.
        slow_reads_max: usize = 128, in 1..=1_000_000,
        /// Such reads that each client may have even beside greedy ones; at most `slow_reads_max`.
        slow_reads_small: usize = 2, in 1..=1_000_000,
        /// Least bytes a second at which a client sends a body and takes an answer, once it is a whole
        /// `body_timeout_ms` or `write_timeout_ms` behind. 0 counts as 1.
        bytes_per_second_min: u64 = 1_024, in 0..=GIB,
        /// Refusals (statuses 400, 401, 403, 413, 422, 429, 503 and the like) that a client hears at once in a
        /// second; further ones come a quarter of a second later. 0 for any number.
        refusals_per_second: u32 = 20, in 0..=COUNT_MAX,
        /// Largest request head (line and headers together), in bytes.
        header_bytes_max: usize = 32_768, in 8_192..=16_777_216,
        /// Most header lines of a request.
        headers_max: usize = 64, in 16..=32_768,
        /// Concurrent streams of one HTTP/2 connection.
        h2_streams_max: u32 = 128, in 1..=1_000_000,
        /// Answers of fewer bytes are not compressed.
        compress_bytes_min: usize = 1_024, in 0..=TIB,
        /// How long requests in flight may go on after SIGTERM, in milliseconds.
        shutdown_grace_ms: u64 = 30_000, in 0..=DAY_MS,
        /// How long `/readyz` says no before the listener closes, in milliseconds, so that a balancer notices.
        shutdown_notice_ms: u64 = 0, in 0..=DAY_MS,
    }
}

section! {
    /// `[database]`
    Database {
        /// Connections that read. One more writes for all.
        readers: u32 = 8, in 1..=256,
        /// Readers that may bring pages of lists at once; fewer where none would be left for look-ups by key,
        /// which no list and no search holds up.
        list_readers: u32 = 4, in 1..=256,
        /// Readers that may search at once; fewer, likewise.
        search_readers: u32 = 2, in 1..=256,
        /// Lists, and likewise searches, that may wait for their turn; one more is answered 503.
        lane_queue_max: usize = 256, in 0..=1_000_000,
        /// Longest wait of a list or a search for its turn, in milliseconds; then it is answered 503.
        lane_timeout_ms: u64 = 2_000, in 10..=DAY_MS,
        /// Reads of reports and other long ones at once, on connections of their own; the rest wait.
        long_readers: u32 = 2, in 1..=256,
        /// Longest wait of a read for a connection, in milliseconds.
        reader_timeout_ms: u64 = 250, in 0..=DAY_MS,
        /// Longest run of one reading statement, in milliseconds.
        statement_timeout_ms: u64 = 5_000, in 10..=DAY_MS,
        /// Longest run of one search, in milliseconds.
        search_timeout_ms: u64 = 1_000, in 10..=DAY_MS,
        /// A statement that takes so many milliseconds is kept in the list of slow queries; 0 keeps every one.
        slow_list_ms: u64 = 100, in 0..=DAY_MS,
        /// One that takes so many milliseconds is logged as well.
        slow_log_ms: u64 = 1_000, in 0..=DAY_MS,
        /// Slow calls kept in the list.
        slow_kept: usize = 200, in 0..=1_000_000,
        /// Whether the values of a slow query's parameters stay hidden, in list and log.
        hide_parameters: bool = true,
        /// Prepared statements kept by each connection.
        statement_cache: usize = 128, in 16..=10_000,
        /// Page cache of the writer, in KiB.
        writer_cache_kib: u32 = 16_384, in 0..=67_108_864,
        /// Page cache of each reader, in KiB.
        reader_cache_kib: u32 = 2_048, in 0..=67_108_864,
        /// Bytes of the database file that readers map into memory; 0 turns it off.
        mmap_bytes: u64 = 268_435_456, in 0..=TIB,
        /// Writes that may wait; one more is answered 503.
        write_queue_max: usize = 4_096, in 1..=1_000_000,
        /// Writes that share one commit, at most.
        write_batch_max: usize = 512, in 1..=1_000_000,
        /// Longest time that a write may wait and run, in milliseconds; then its caller is answered 503.
        write_timeout_ms: u64 = 10_000, in 100..=DAY_MS,
        /// Bytes that the file of the write-ahead log is given and keeps, so that commits overwrite what
        /// is there, which a disk syncs sooner than a file that grows; 0 lets it grow.
        wal_ready_bytes: u64 = 16_777_216, in 0..=TIB,
        /// The file is cut back once it has more bytes than this, as it gets while one read runs for long; at
        /// least `wal_ready_bytes`.
        wal_bytes_max: u64 = 134_217_728, in 1_048_576..=TIB,
        /// Pause between looks at the write-ahead log, in milliseconds.
        checkpoint_interval_ms: u64 = 500, in 10..=DAY_MS,
    }
}

section! {
    /// `[auth]`
    Auth {
        /// Life of a customer's session, in seconds.
        session_seconds: u64 = 2_592_000, in 60..=FOR_EVER_SECONDS,
        /// A customer's session ends when it was unused for so many seconds.
        session_idle_seconds: u64 = 1_209_600, in 0..=FOR_EVER_SECONDS,
        /// Life of a staff or admin session, in seconds (OWASP ASVS 5.0, 7.3.2).
        staff_session_seconds: u64 = 28_800, in 0..=FOR_EVER_SECONDS,
        /// A staff or admin session ends when it was unused for so many seconds (ASVS 7.3.1).
        staff_session_idle_seconds: u64 = 1_800, in 0..=FOR_EVER_SECONDS,
        /// Argon2id memory per password, in KiB (OWASP: 19 MiB).
        argon2_memory_kib: u32 = 19_456, in 8..=4_194_304,
        /// Argon2id passes.
        argon2_passes: u32 = 2, in 1..=1_000,
        /// Passwords hashed at once; 0 means one per core, at most 4.
        hash_concurrency: usize = 0, in 0..=1_024,
        /// Passwords that may wait in each of three lanes: log-ins from known addresses and browsers, other
        /// log-ins of accounts, registrations. One more is answered 503.
        hash_queue_max: usize = 256, in 1..=1_000_000,
        /// Registrations that each client (an address, an IPv6 /64) may have waiting even beside greedy ones, and
        /// as many log-ins that wait for others of the same account or address; at most `hash_queue_max`.
        hash_queue_small: usize = 4, in 1..=1_000_000,
        /// Failed logins of one account before it must wait, from wherever they come. A caller at an
        /// address or in a browser that has logged in to the account before has as many of its own,
        /// so that strangers do not shut it out.
        login_account_failures: u32 = 5, in 1..=COUNT_MAX,
        /// Seconds after which one of these failures is forgotten. As often as that an account can be guessed at
        /// from then on; in the first hour 19 times with these values.
        login_account_forget_seconds: u64 = 900, in 1..=FOR_EVER_SECONDS,
        /// Accounts that fail at one address (of an IPv6 /64) before it must wait; each further failure of
        /// the same account counts a quarter, and a right password takes back what its account added.
        login_address_failures: u32 = 20, in 1..=COUNT_MAX,
        /// As `login_address_failures`, of accounts that have logged in from this address or browser before.
        login_known_failures: u32 = 100, in 1..=COUNT_MAX,
        /// Seconds after which one of an address's failures is forgotten: 30 accounts an hour, 57 in the
        /// first.
        login_address_forget_seconds: u64 = 120, in 1..=FOR_EVER_SECONDS,
        /// The first wait, in seconds; each further failure doubles it.
        login_delay_seconds: u64 = 1, in 1..=FOR_EVER_SECONDS,
        /// The longest wait, in seconds. There is no permanent lock.
        login_delay_seconds_max: u64 = 900, in 0..=FOR_EVER_SECONDS,
        /// Accounts that fail in one wider network (an IPv4 /24, an IPv6 /48) before its strangers must
        /// wait, counted as those of an address. Callers at known addresses and in known browsers pass.
        login_network_failures: u32 = 200, in 1..=COUNT_MAX,
        /// Seconds after which one of a wider network's failures is forgotten: 300 accounts an hour, some 500 in
        /// the first.
        login_network_forget_seconds: u64 = 12, in 1..=FOR_EVER_SECONDS,
        /// Counts that are remembered of accounts, and as many of addresses: some 40 bytes each.
        login_tracked_max: usize = 100_000, in 1_000..=100_000_000,
        /// Addresses, and as many browsers, that are remembered of each account.
        login_known_places_max: u32 = 8, in 1..=10_000,
        /// Days after which an address or a browser is forgotten that an account did not log in from meanwhile.
        login_known_days: u32 = 90, in 1..=365_000,
        /// Sessions and API keys kept in memory, so that a request needs no query to know its caller.
        callers_cached_max: usize = 100_000, in 0..=100_000_000,
        /// Live API keys of one account.
        api_keys_max: usize = 100, in 0..=1_000_000,
        /// Life of the link that makes the first admin, in seconds.
        setup_seconds: u64 = 86_400, in 0..=FOR_EVER_SECONDS,
        /// Sessions of one account; a further log-in ends the oldest.
        sessions_max: u32 = 100, in 1..=1_000_000,
        /// Whether anyone may register; otherwise staff create the accounts.
        open_registration: bool = true,
        /// Whether an account comes to be only once its address is proven, with what a mail there says:
        /// `smtp` (when there is a mail server), `always`, `never`. Where it is, registering says the same
        /// of an address that has an account and of one that has none.
        confirm_registration: MailRule = MailRule::Smtp,
        /// Life of what that mail says, in seconds.
        confirm_seconds: u64 = 86_400, in 1..=FOR_EVER_SECONDS,
        /// Registrations from one address (of an IPv6 /64): so many at once, and as many an hour.
        registrations_per_address: u32 = 100, in 1..=COUNT_MAX,
        /// Registrations from a wider network (an IPv4 /24, an IPv6 /48), counted likewise.
        registrations_per_network: u32 = 1_000, in 1..=COUNT_MAX,
        /// Registrations from everywhere, counted likewise.
        registrations_in_all: u32 = 20_000, in 1..=COUNT_MAX,
    }
}

section! {
    /// `[products]`
    Products {
        /// Seconds of the past that popularity looks at: a product is as popular as units of it were ordered
        /// within them.
        popularity_window_seconds: u64 = 86_400, in 60..=FOR_EVER_SECONDS,
        /// Products that get their new popularity in one write.
        popularity_batch: usize = 256, in 1..=5_000,
        /// Steps of one search: each product that it passes is one, and so are up to 64 bytes of a text that
        /// it reads. A search that needs more answers what it has found, and where to go on.
        search_steps_max: u32 = 10_000, in 1_000..=COUNT_MAX,
    }
}

section! {
    /// `[orders]`
    Orders {
        /// Seconds for which units are held for an order to be paid; 0 means orders start as paid.
        payment_window_seconds: u64 = 900, in 0..=FOR_EVER_SECONDS,
        /// Lines of one order.
        lines_max: usize = 100, in 1..=100_000,
        /// Units of one line.
        quantity_max: u32 = 1_000, in 1..=UNITS_MAX,
        /// Orders of one customer that may wait for payment at once; 0 for any number. Those of flash sales,
        /// which have limits of their own, and those of staff don't count.
        unpaid_orders_max: u32 = 5, in 0..=COUNT_MAX,
        /// Units of one product that these orders of one customer may hold together; 0 for any number. A
        /// shop for businesses sets more.
        unpaid_units_max: u32 = 20, in 0..=UNITS_MAX,
        /// Orders that one customer may place within a minute; 0 for any number. Staff may more.
        per_minute_max: u32 = 30, in 0..=60_000,
        /// Customers whose orders of the last minute are remembered for `per_minute_max`; beyond it the first are
        /// forgotten.
        tracked_customers_max: usize = 200_000, in 1_000..=100_000_000,
        /// Whether a customer's own call to `pay` counts: for trying things out. Otherwise only staff and
        /// keys with the scope `payments`, such as a payment provider's, confirm a payment.
        customers_confirm_payment: bool = false,
        /// Pause between two looks for unpaid orders that expire, in milliseconds.
        expiry_interval_ms: u64 = 1_000, in 10..=DAY_MS,
        /// Orders expired in one transaction.
        expiry_batch: u32 = 200, in 1..=1_000_000,
        /// Seconds between two checks of the stock ledger while the server runs; 0 turns that off.
        ledger_check_seconds: u64 = 3_600, in 0..=YEAR_SECONDS,
        /// Seconds for which the answer to an `Idempotency-Key` is kept.
        idempotency_seconds: u64 = 86_400, in 0..=FOR_EVER_SECONDS,
        /// Whether each paid order is processed by a task, which sets it to `processed`.
        process: bool = true,
    }
}

section! {
    /// `[flash_sales]`
    FlashSales {
        /// Buyers of one sale that may wait at once for a unit whose order is just being written.
        waiting_max: usize = 4_096, in 0..=1_000_000,
        /// Longest wait of such a buyer, in milliseconds; then the answer is 503.
        wait_timeout_ms: u64 = 5_000, in 0..=DAY_MS,
        /// Buyers whose attempts are remembered, over all sales; beyond it the oldest are forgotten.
        tracked_buyers_max: usize = 2_000_000, in 1_000..=COUNT_MAX,
        /// Units that one sale may have.
        quantity_max: u32 = 10_000_000, in 1..=UNITS_MAX,
        /// Pause between two looks for sales to open or close, in milliseconds, besides those at their exact times.
        sweep_interval_ms: u64 = 1_000, in 10..=DAY_MS,
    }
}

section! {
    /// `[cache]`
    Cache {
        /// Whether anything is kept at all. Without it, requests still share a load that is under way.
        enabled: bool = true,
        /// Bytes of memory for values, what an entry costs beside them included.
        memory_bytes: usize = 33_554_432, in 1_048_576..=TIB,
        /// Values in memory, however small.
        memory_entries_max: usize = 200_000, in 1_000..=COUNT_MAX,
        /// Which entry gives way to a new one: `s3_fifo`, `lfu`, `lru`, `sieve` or `fifo`.
        eviction: Eviction = Eviction::S3Fifo,
        /// A value of more bytes is loaded each time. On disk a value lies within one block, hence the bound.
        value_bytes_max: usize = 1_048_576, in 0..=3_145_728,
        /// What has a key of more bytes is loaded each time.
        key_bytes_max: usize = 512, in 0..=1_048_576,
        /// Tags of one value; with more it is loaded each time.
        tags_max: usize = 64, in 0..=10_000,
        /// Keys that are remembered not to exist. They have a room of their own, so that a flood of them
        /// can't push out what is asked for.
        absent_entries_max: usize = 20_000, in 100..=COUNT_MAX,
        /// Seconds for which a key is taken not to exist.
        absent_seconds: u64 = 30, in 1..=FOR_EVER_SECONDS,
        /// Life of a value, in seconds, where its kind has none of its own.
        ttl_seconds: u64 = 300, in 1..=FOR_EVER_SECONDS,
        /// Each life is longer or shorter by a random part of up to so many percent, so that what was loaded
        /// together does not expire together.
        ttl_jitter_percent: u64 = 20, in 0..=90,
        /// Steps of a load's time, in milliseconds: a load that took so long earns its value a longer life …
        adaptive_load_ms: Vec<u64> = vec![500, 1_000, 2_000], as Bounds::Rising { numbers_max: 16 },
        /// … namely so many seconds, one number for each step.
        adaptive_ttl_seconds: Vec<u64> = vec![900, 1_800, 3_600],
            as Bounds::Each { least: 0, most: FOR_EVER_SECONDS },
        /// Seconds after its end for which a value may still be served when its load fails or is slow; 0 for
        /// never. What a write has changed is never served.
        stale_seconds: u64 = 600, in 0..=FOR_EVER_SECONDS,
        /// A load is slow after so many milliseconds: a request for which there is an expired value gets that, and
        /// the load goes on.
        stale_after_ms: u64 = 200, in 0..=DAY_MS,
        /// Pause between two tries of a load that fails while there is an expired value to serve, in milliseconds.
        stale_retry_ms: u64 = 1_000, in 1..=DAY_MS,
        /// A hot value is loaded anew when so many percent of its life are over; 100 turns that off.
        refresh_percent: u64 = 80, in 1..=100,
        /// Loads by key at once. Fewer than `database.readers`, so that what is not cached finds one as well.
        /// Those of lists and of searches have places of their own, in `[database]`.
        loads_max: usize = 6, in 1..=10_000,
        /// Loads that wait for their turn; one more is answered 503.
        loads_queue_max: usize = 1_024, in 0..=1_000_000,
        /// Longest run of a load, in milliseconds.
        load_timeout_ms: u64 = 15_000, in 10..=DAY_MS,
        /// Longest wait of a request for a load, or of a load for its turn, in milliseconds; then the answer is 503.
        wait_timeout_ms: u64 = 5_000, in 10..=DAY_MS,
        /// Requests that may wait at once for a load that another request began.
        waiters_max: usize = 16_384, in 1..=COUNT_MAX,
        /// Seconds over which reads of a key are counted.
        hot_window_seconds: u64 = 60, in 1..=86_400,
        /// A key is hot when it was read so often within the window.
        hot_reads_min: u64 = 600, in 1..=COUNT_MAX,
        /// Hot keys that are kept out of the way of eviction.
        hot_keys_max: usize = 256, in 0..=1_000_000,
        /// Bytes of their values in all; at most `memory_bytes`, since other values are pushed out for them.
        hot_bytes_max: usize = 4_194_304, in 0..=TIB,
        /// Seconds between two loads of the hot keys ahead of those who ask for them; 0 for never.
        warm_seconds: u32 = 600, in 0..=YEAR_SECONDS,
        /// Seconds before a flash sale opens at which it and its product are loaded.
        warm_sale_seconds: u32 = 10, in 0..=86_400,
        /// Keys that one call may warm up.
        warm_keys_max: usize = 10_000, in 1..=1_000_000,
        /// Bytes on disk for values that took long to load; 0 for none.
        disk_bytes: usize = 0, as Bounds::ZeroOr { least: 67_108_864, most: TIB },
        /// A value is worth its place on disk when its load took so many milliseconds.
        disk_load_ms_min: u64 = 5, in 0..=DAY_MS,
        /// Longest wait for the disk, in milliseconds.
        disk_timeout_ms: u64 = 100, in 1..=DAY_MS,
        /// Seconds after which the level on disk is tried again that had errors.
        disk_retry_seconds: u64 = 60, in 1..=FOR_EVER_SECONDS,
    }
}

section! {
    /// `[tasks]`
    Tasks {
        /// Built-in tasks that run at once in this process; 0 leaves them to wait.
        workers: usize = 64, in 0..=100_000,
        /// How long running tasks may go on after the server was told to stop, in milliseconds.
        shutdown_grace_ms: u64 = 10_000, in 0..=DAY_MS,
        /// Largest arguments of a task, in bytes of JSON.
        args_bytes_max: usize = 65_536, in 1..=TEXT_BYTES_MAX,
        /// Largest metadata of a task, in bytes of JSON.
        metadata_bytes_max: usize = 8_192, in 0..=TEXT_BYTES_MAX,
        /// Largest result that is kept, in bytes of JSON.
        result_bytes_max: usize = 65_536, in 0..=TEXT_BYTES_MAX,
        /// Seconds for which a result is kept.
        result_seconds: u64 = 86_400, in 0..=FOR_EVER_SECONDS,
        /// Attempts of a task that does not say how many.
        max_attempts: u32 = 25, in 1..=1_000,
        /// Crashes of the process or of a worker after which a task is set aside as dead.
        crashes_max: u32 = 3, in 1..=COUNT_MAX,
        /// Longest run of a task that does not say how long, in milliseconds; then it is ended and tried again.
        timeout_ms: u64 = 1_800_000, in 1..=YEAR_MS,
        /// Longest run that a task may ask for, in milliseconds.
        timeout_ms_max: u64 = 86_400_000, in 0..=YEAR_MS,
        /// Seconds that a task may be put off.
        delay_seconds_max: u64 = 31_622_400, in 0..=FOR_EVER_SECONDS,
        /// Lease of an outside worker that does not say how long, in seconds.
        lease_seconds: u64 = 60, in 1..=YEAR_SECONDS,
        /// Longest lease that a worker may ask for, in seconds.
        lease_seconds_max: u64 = 3_600, in 0..=YEAR_SECONDS,
        /// Longest wait of a worker that asks for a task, in milliseconds.
        fetch_wait_ms_max: u64 = 20_000, in 0..=DAY_MS,
        /// Workers that may wait for a task at once.
        fetchers_max: usize = 4_096, in 0..=1_000_000,
        /// Tasks of one request, chain or batch.
        batch_tasks_max: usize = 1_000, in 1..=1_000_000,
        /// Tasks that one bulk action changes.
        bulk_tasks_max: u32 = 1_000, in 1..=1_000_000,
        /// Tasks of one state that are counted; of more it is only said that there are more.
        counted_max: u32 = 2_000, in 1..=COUNT_MAX,
        /// Log lines kept of one attempt.
        log_lines_max: u32 = 1_000, in 0..=1_000_000,
        /// Longest log line or error text that is kept, in characters.
        log_line_chars_max: usize = 2_000, in 0..=1_000_000,
        /// Seconds for which a completed or cancelled task is kept.
        retention_seconds: u64 = 604_800, in 0..=FOR_EVER_SECONDS,
        /// Seconds for which a dead task is kept.
        dead_retention_seconds: u64 = 7_776_000, in 0..=FOR_EVER_SECONDS,
        /// Seconds after which a batch is dropped that was begun and not committed, once none of its tasks is
        /// pending.
        batch_open_seconds: u64 = 604_800, in 0..=FOR_EVER_SECONDS,
        /// Rows that the upkeep reads at a time.
        upkeep_rows: u32 = 500, in 1..=1_000_000,
        /// Pause between two such looks, in milliseconds, where there was nothing to do; ten times that at the end.
        upkeep_interval_ms: u64 = 100, in 10..=DAY_MS,
        /// Pause between two looks for rows that nothing has told of, in milliseconds.
        poll_interval_ms: u64 = 1_000, in 10..=DAY_MS,
        /// Waiting tasks of one queue that are held in memory, about 100 bytes each; the rest wait in
        /// `queue/`, which takes longer to fill after an unclean stop, and more memory while it does.
        index_memory_max: usize = 1_000_000, in 100..=COUNT_MAX,
        /// Messages to the delivery thread that may wait; beyond that it looks into the rows itself.
        index_queue_max: usize = 16_384, in 64..=1_000_000,
        /// Milliseconds that opening or using `queue/` may take before it is set aside and rebuilt.
        index_timeout_ms: u64 = 5_000, in 100..=DAY_MS,
        /// Queues that may be known at once.
        queues_max: usize = 1_000, in 1..=1_000_000,
    }
}

section! {
    /// `[schedules]`
    Schedules {
        /// Whether this process fires schedules; otherwise it only shows and changes them.
        enabled: bool = true,
        /// Time zone of schedules that name none; that of `[shop]` unless set here.
        time_zone: Zone = Zone::utc(),
        /// A fire that is more seconds late counts as missed: the schedule says what is done then.
        late_seconds: u64 = 60, in 0..=FOR_EVER_SECONDS,
        /// Schedules that there may be.
        schedules_max: u32 = 1_000, in 1..=1_000_000,
        /// Missed fires that a schedule may ask to be made up for.
        catch_up_max: u32 = 100, in 1..=1_000_000,
        /// Runs that are kept of each schedule.
        history_max: u32 = 1_000, in 1..=COUNT_MAX,
        /// Pause between two looks through the rows that nothing has asked for, in milliseconds.
        poll_interval_ms: u64 = 5_000, in 10..=DAY_MS,
        /// Schedules by name, each a table such as `[schedules.entries.nightly]` with `cron` or
        /// `interval_seconds`, and `task`; optional are `time_zone`, `queue`, `args`, `priority`,
        /// `max_attempts`, `timeout_seconds`, `overlap` (`skip`, `allow`, `queue_one`), `missed`
        /// (`once`, `skip`, `all`), `missed_max` and `jitter_seconds`. A built-in one needs no `task`.
        entries: BTreeMap<String, ScheduleEntry> = BTreeMap::new(), as Bounds::None {
            because: "schedule/declared.rs checks them by the rules of every schedule, which know cron and zones",
        },
    }
}

/// A schedule of the settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleEntry {
    /// Cron expression of the moments at which it fires.
    pub cron: Option<String>,
    /// Seconds between two fires, in place of `cron`.
    pub interval_seconds: Option<u32>,
    /// Time zone in which `cron` is read; that of `schedules.time_zone` unless set.
    pub time_zone: Option<String>,
    /// Name of the task that each fire makes.
    pub task: Option<String>,
    /// Queue of its tasks.
    pub queue: Option<String>,
    /// Arguments of its tasks.
    #[serde(deserialize_with = "json_of_toml")]
    pub args: Option<serde_json::Value>,
    /// Priority of its tasks, 0 to 255; the higher ones go first.
    pub priority: Option<u8>,
    /// Attempts of each task.
    pub max_attempts: Option<u32>,
    /// Longest run of each task, in seconds.
    pub timeout_seconds: Option<u32>,
    /// What a fire does while the task of the one before is unfinished: `skip`, `allow`, `queue_one`.
    pub overlap: Option<String>,
    /// What becomes of missed fires: `once`, `skip`, `all`.
    pub missed: Option<String>,
    /// Missed fires that `all` makes up for.
    pub missed_max: Option<u32>,
    /// Seconds up to which each task is put off at random.
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
        /// Seconds for which a report is kept and shown.
        cache_seconds: u64 = 3_600, in 1..=FOR_EVER_SECONDS,
        /// Days of one report.
        days_max: u32 = 3_660, in 1..=1_000_000,
        /// Days times currencies of one report.
        rows_max: usize = 20_000, in 1..=COUNT_MAX,
    }
}

section! {
    /// `[outgoing]`
    Outgoing {
        /// Internal addresses that tasks and webhooks may call nevertheless, as CIDR ranges. Every
        /// other address that is not public is refused.
        allow_internal: Vec<IpNet> = Vec::new(), as Bounds::Items { most: 4_096 },
        /// PEM file with certificate authorities that are trusted besides the public ones.
        extra_ca: PathBuf = PathBuf::new(), as Bounds::Path { bytes_max: PATH_BYTES_MAX },
        /// Longest call, from the look-up of the name to the last byte of the answer, in milliseconds.
        timeout_ms: u64 = 15_000, in 10..=DAY_MS,
        /// Longest time for one address to take the connection, in milliseconds.
        connect_timeout_ms: u64 = 5_000, in 10..=DAY_MS,
        /// Bytes that are read of an answer's body.
        response_bytes_max: usize = 32_768, in 0..=GIB,
        /// Largest head of an answer, in bytes.
        response_header_bytes_max: usize = 32_768, in 8_192..=16_777_216,
        /// Most header lines of an answer.
        response_headers_max: usize = 100, in 1..=32_768,
        /// Names that are looked up at once.
        lookups_max: usize = 8, in 1..=1_024,
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
        port: u16 = 7419, in 0..=65_535,
        /// The password that clients must know; empty for none. Better given by `ONRUSH_FAKTORY__PASSWORD_FILE`.
        password: Secret = Secret::default(), as Bounds::Text { chars_max: 1_024 },
        /// SHA-256 passes over the password.
        password_passes: u32 = 5_000, in 1..=100_000,
        /// Wrong passwords of one address (of an IPv6 /64) before it must wait.
        password_failures: u32 = 10, in 0..=COUNT_MAX,
        /// The first wait, in seconds; each further wrong password doubles it.
        password_delay_seconds: u64 = 1, in 0..=FOR_EVER_SECONDS,
        /// The longest wait, in seconds. It also keeps out workers at that address that know the password.
        password_delay_seconds_max: u64 = 60, in 0..=FOR_EVER_SECONDS,
        /// Seconds after which one wrong password is forgotten.
        password_forget_seconds: u64 = 300, in 1..=FOR_EVER_SECONDS,
        /// Addresses whose wrong passwords are remembered.
        password_tracked_max: usize = 10_000, in 10..=100_000_000,
        /// Speak TLS, with the certificate and key of `[server]`.
        tls: bool = false,
        /// Open connections at once. Where they run short, the ones that did least for longest are closed
        /// for newcomers, first those that have not greeted.
        connections_max: usize = 1_024, in 1..=1_000_000,
        /// Open connections of one address (of an IPv6 /64).
        connections_per_address_max: usize = 512, in 1..=1_000_000,
        /// Workers that are known at once.
        workers_max: usize = 4_096, in 1..=1_000_000,
        /// Seconds after which a worker is forgotten that has no connection and was not heard of.
        worker_seconds: u64 = 60, in 1..=FOR_EVER_SECONDS,
        /// Largest command, such as all jobs of one `PUSHB`, in bytes.
        command_bytes_max: usize = 1_048_576, in 4_096..=GIB,
        /// Longest time for the TLS handshake, and again for the greeting, in milliseconds.
        handshake_timeout_ms: u64 = 5_000, in 100..=DAY_MS,
        /// Longest time for the rest of a command after its first byte, in milliseconds.
        command_timeout_ms: u64 = 10_000, in 100..=DAY_MS,
        /// Longest time that a client may take to read its answer, in milliseconds.
        write_timeout_ms: u64 = 10_000, in 100..=DAY_MS,
        /// A connection that asks for nothing for so many seconds is closed.
        idle_seconds: u64 = 3_600, in 1..=FOR_EVER_SECONDS,
        /// How long `FETCH` waits for a job, in milliseconds.
        fetch_wait_ms: u64 = 2_000, in 1..=DAY_MS,
        /// Queues that one `FETCH` or `QUEUE` may name.
        queues_max: usize = 64, in 1..=1_000_000,
        /// How long workers may still report on their jobs after the server was told to stop, in milliseconds.
        shutdown_grace_ms: u64 = 5_000, in 0..=DAY_MS,
    }
}

section! {
    /// `[webhooks]`
    Webhooks {
        /// Endpoints that there may be.
        endpoints_max: u32 = 100, in 0..=10_000,
        /// Longest wait for an endpoint's answer, in milliseconds.
        timeout_ms: u64 = 15_000, in 10..=DAY_MS,
        /// Calls of one endpoint at once; further ones wait, so that a slow one does not hold up the rest.
        endpoint_calls_max: u32 = 4, in 1..=COUNT_MAX,
        /// An endpoint that has only failed for so many seconds is disabled.
        disable_after_seconds: u64 = 432_000, in 0..=FOR_EVER_SECONDS,
        /// Bytes that the delivery log keeps of an endpoint's answer.
        excerpt_bytes_max: usize = 1_024, in 0..=GIB,
        /// Seconds for which the old secret signs beside the new one, unless the rotation says otherwise.
        secret_overlap_seconds: u64 = 86_400, in 0..=FOR_EVER_SECONDS,
        /// Seconds for which events and the delivery log are kept.
        retention_seconds: u64 = 2_592_000, in 1..=FOR_EVER_SECONDS,
    }
}

section! {
    /// `[mail]`
    Mail {
        /// Host name of the mail server. Without one, mails are written to `outbox/` in the data directory.
        smtp_host: String = String::new(), as Bounds::Text { chars_max: 253 },
        /// Port of the mail server; 0 for the customary one: 465 with `tls`, 587 with `starttls`, 25 with `none`.
        smtp_port: u16 = 0, in 0..=65_535,
        /// `tls` from the first byte, `starttls`, or `none`: in the clear, for a server on this machine.
        smtp_tls: MailTls = MailTls::Starttls,
        /// PEM file with certificate authorities that are trusted besides the public ones.
        smtp_ca: PathBuf = PathBuf::new(), as Bounds::Path { bytes_max: PATH_BYTES_MAX },
        /// User name for the mail server; empty for a server that asks for none.
        smtp_user: String = String::new(), as Bounds::Text { chars_max: 1_024 },
        /// Password of `smtp_user`; better in a file that ONRUSH_MAIL__SMTP_PASSWORD_FILE names.
        smtp_password: Secret = Secret::default(), as Bounds::Text { chars_max: 4_096 },
        /// Longest time for one mail, in milliseconds.
        timeout_ms: u64 = 30_000, in 10..=DAY_MS,
        /// Sender of each mail: `name@example.com` or `Name <name@example.com>`.
        from: String = "Onrush <onrush@localhost>".to_owned(), as Bounds::Text { chars_max: 1_000 },
        /// The shop's name, in subjects and texts.
        shop_name: String = "Onrush".to_owned(), as Bounds::Text { chars_max: 200 },
        /// Language of accounts that chose none: `en` or `zh`.
        language: Language = Language::En,
        /// Whether a new account gets a mail that welcomes it.
        welcome: bool = true,
        /// The page of the shop to which the link of a registration leads; what it sends to
        /// `POST /api/v1/auth/confirm` is added as `#token=…`. Without one the mail has it as text.
        confirm_url: String = String::new(), as Bounds::Page { chars_max: 2_000 },
        /// Whether customers get mails about their orders: `smtp` (when there is a mail server),
        /// `always`, `never`.
        orders: MailRule = MailRule::Smtp,
        /// Mails in `outbox/`; beyond it the oldest are removed.
        outbox_files_max: usize = 1_000, in 1..=COUNT_MAX,
        /// Seconds for which a mail stays in `outbox/`.
        outbox_seconds: u64 = 2_592_000, in 0..=FOR_EVER_SECONDS,
    }
}

section! {
    /// `[import]`
    Import {
        /// Rows that share one write.
        batch_rows: usize = 1_000, in 1..=100_000,
        /// Bad rows that are reported one by one; the rest are only counted.
        errors_max: usize = 100, in 0..=1_000_000,
        /// Longest field of a CSV file, in bytes.
        field_bytes_max: usize = 65_536, in 0..=TEXT_BYTES_MAX,
    }
}

section! {
    /// `[log]`
    Log {
        /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,onrush::store=debug`.
        level: String = "info".to_owned(), as Bounds::Text { chars_max: 2_000 },
        /// `text`, `json`, or `auto`: text on a terminal, JSON otherwise.
        format: LogFormat = LogFormat::Auto,
        /// One line per request at level info; otherwise only failures (5xx) are logged.
        requests: bool = false,
        /// Lines a second of each kind of event about security (the target `security`), ten times as many at
        /// once; of further ones only the number is logged.
        security_lines_per_second: u32 = 5, in 1..=1_000_000,
    }
}

/// Keys whose values are secrets.
pub(super) const SECRETS: &[&str] = &["faktory.password", "mail.smtp_password"];

/// Sections in the order of `config init`, each with its settings.
pub(super) const SECTIONS: &[(&str, &[Setting])] = &[
    ("data", Data::ALL),
    ("shop", Shop::ALL),
    ("server", Server::ALL),
    ("database", Database::ALL),
    ("auth", Auth::ALL),
    ("products", Products::ALL),
    ("orders", Orders::ALL),
    ("flash_sales", FlashSales::ALL),
    ("cache", Cache::ALL),
    ("tasks", Tasks::ALL),
    ("schedules", Schedules::ALL),
    ("reports", Reports::ALL),
    ("faktory", Faktory::ALL),
    ("outgoing", Outgoing::ALL),
    ("webhooks", Webhooks::ALL),
    ("mail", Mail::ALL),
    ("import", Import::ALL),
    ("log", Log::ALL),
];

/// The one setting whose keys are names that an owner chooses.
pub(super) const ENTRIES: &str = "schedules.entries";

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
