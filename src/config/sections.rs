//! Every setting: its section, its type, its default and its meaning.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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
            pub(super) const DOCS: &'static [(&'static str, &'static [&'static str])] =
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

/// Keys whose values are secrets.
pub(super) const SECRETS: &[&str] = &["faktory.password", "mail.smtp_password"];

/// Sections in the order of `config init`, with their keys' explanations.
type Docs = &'static [(&'static str, &'static [&'static str])];
pub(super) const SECTIONS: &[(&str, Docs)] = &[
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

/// The one setting whose keys are names that an owner chooses.
pub(super) const ENTRIES: &str = "schedules.entries";
