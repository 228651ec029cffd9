//! What must hold of the settings: each in its bounds, which stand where the setting stands, and several as
//! they need each other; and which of them are fit for trying things out alone.

use ipnet::IpNet;

use super::keys::{flatten, to_json};
use super::sections::{SECTIONS, Settings};
use super::values::MailTls;

impl Settings {
    /// What of these settings is fit for trying things out alone, in words for those who run the shop.
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

/// The first setting that is out of its bounds, or breaks a rule about several, with what is wrong.
pub(super) fn check(settings: &Settings) -> Result<(), (String, String)> {
    bounded(settings)?;
    consistent(settings).map_err(|(key, reason)| (key.to_owned(), reason))
}

/// Each setting by itself.
fn bounded(settings: &Settings) -> Result<(), (String, String)> {
    let values = flatten(&to_json(settings));
    for (section, all) in SECTIONS {
        for setting in *all {
            let key = format!("{section}.{}", setting.name);
            if let Some(Err(reason)) = values.get(&key).map(|value| setting.bounds.check(value)) {
                return Err((key, reason));
            }
        }
    }
    Ok(())
}

/// What settings need of each other.
fn consistent(settings: &Settings) -> Result<(), (&'static str, String)> {
    let (server, database, auth) = (&settings.server, &settings.database, &settings.auth);
    // A client that may hold more than all together would keep the others from anything.
    for (key, one, all) in [
        (
            "server.bodies_bytes_small",
            server.bodies_bytes_small,
            server.bodies_bytes_max,
        ),
        (
            "server.answers_bytes_small",
            server.answers_bytes_small,
            server.answers_bytes_max,
        ),
        (
            "server.slow_reads_small",
            server.slow_reads_small,
            server.slow_reads_max,
        ),
        (
            "auth.hash_queue_small",
            auth.hash_queue_small,
            auth.hash_queue_max,
        ),
    ] {
        at_most(key, one as u64, all as u64)?;
    }
    // The log would be cut back below the room that it was just given, at each commit.
    if database.wal_bytes_max < database.wal_ready_bytes {
        let (bytes, least) = (database.wal_bytes_max, database.wal_ready_bytes);
        let reason = format!("{bytes} is too small; the least is {least}");
        return Err(("database.wal_bytes_max", reason));
    }
    let cache = &settings.cache;
    // Hot values lie in the same memory as all the others, which are pushed out for them.
    at_most(
        "cache.hot_bytes_max",
        cache.hot_bytes_max as u64,
        cache.memory_bytes as u64,
    )?;
    // A step without a life of its own means nothing, and so does a life without a step.
    let steps = cache.adaptive_load_ms.len();
    if steps != cache.adaptive_ttl_seconds.len() {
        return Err((
            "cache.adaptive_ttl_seconds",
            format!("it needs one life for each of the {steps} steps of cache.adaptive_load_ms"),
        ));
    }
    let faktory = &settings.faktory;
    // Without a password, any machine that reaches the port could make and take jobs.
    if faktory.enabled && !faktory.host.is_loopback() && faktory.password.is_empty() {
        return Err((
            "faktory.password",
            "it is needed where other machines can connect; set one, or listen on 127.0.0.1"
                .to_owned(),
        ));
    }
    // It has no certificate of its own.
    if faktory.enabled && faktory.tls && server.tls_cert.as_os_str().is_empty() {
        return Err((
            "faktory.tls",
            "it needs server.tls_cert and server.tls_key".to_owned(),
        ));
    }
    // Neither is of use without the other; a start in the clear would be a surprise.
    if server.tls_cert.as_os_str().is_empty() != server.tls_key.as_os_str().is_empty() {
        return Err((
            "server.tls_key",
            "tls_cert and tls_key go together; set both or neither".to_owned(),
        ));
    }
    Ok(())
}

fn at_most(key: &'static str, value: u64, most: u64) -> Result<(), (&'static str, String)> {
    if value > most {
        return Err((key, format!("{value} is too large; the most is {most}")));
    }
    Ok(())
}
