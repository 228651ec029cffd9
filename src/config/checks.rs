//! What must hold of the settings: their ranges, what several of them need of each other, and which of
//! them are fit for trying things out alone.

use ipnet::IpNet;

use super::sections::{Cache, Settings};
use super::values::MailTls;

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
pub(super) fn validate(s: &Settings) -> Result<(), (&'static str, String)> {
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
