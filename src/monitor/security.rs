//! What happens that matters to the shop's security: a line of the log each, and a count.
//!
//! The events are named as OWASP's Logging Vocabulary names them, under one target, `security`. Invariants:
//! a line holds numbers, addresses, ids that were checked and words of ours, never a text that a client
//! sent, and never a secret; of each kind of event only so many lines are written a second, and the number
//! of those left out is told, so that a flood of one hides neither the others nor itself; every event is
//! counted in `security_events_total`.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntCounter;

use super::Metrics;
use crate::clock::Clock;

/// Lines that may be written at once, in seconds of the usual number.
const BURST_SECONDS: u64 = 10;

macro_rules! events {
    ($($(#[$doc:meta])* $event:ident = $name:literal, $level:ident, $words:literal;)*) => {
        /// A kind of event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event { $($(#[$doc])* $event,)* }

        impl Event {
            /// Every kind, in the order of declaration.
            const ALL: &'static [Event] = &[$(Event::$event,)*];

            /// Its name in OWASP's vocabulary.
            pub fn name(self) -> &'static str {
                match self { $(Event::$event => $name,)* }
            }

            fn write(self, who: &Who<'_>, left_out: Option<u64>) {
                let Who { user_id, address, request_id, on_user_id, what } = *who;
                let address = address.map(tracing::field::display);
                match self {
                    $(Event::$event => tracing::$level!(
                        target: "security",
                        event = $name,
                        user_id,
                        address,
                        request_id,
                        on_user_id,
                        what,
                        left_out,
                        $words
                    ),)*
                }
            }
        }
    };
}

events! {
    /// An account was logged in to.
    LoginSuccess = "authn_login_success", info, "logged in";
    /// A wrong password, or no such account.
    LoginFail = "authn_login_fail", warn, "a wrong password, or no such account";
    /// A guess that was not looked at, because there were too many before it.
    LoginFailMax = "authn_login_fail_max", warn, "too many wrong guesses before; not looked at";
    /// An API key was made.
    TokenCreated = "authn_token_created", info, "an API key was made";
    /// An API key was revoked.
    TokenRevoked = "authn_token_revoked", info, "an API key was revoked";
    /// A caller asked for what its role or its scopes don't allow.
    AuthzFail = "authz_fail", warn, "refused: not within the role or the scopes";
    /// An admin changed something that only admins may.
    AuthzAdmin = "authz_admin", info, "a change that only admins may make was asked for";
    /// A write by cookie that does not come from our own page.
    ForeignWrite = "malicious_cors", warn, "refused: a write by cookie that is not from our own page";
    /// Sessions ended otherwise than by their time.
    SessionExpired = "session_expired", info, "sessions ended";
    /// An account was made.
    UserCreated = "user_created", info, "an account was made";
    /// An account was changed.
    UserUpdated = "user_updated", info, "an account was changed";
    /// An account got another role.
    PermissionsChanged = "privilege_permissions_changed", warn, "an account got another role";
    /// More registrations or proofs than are let through.
    RateLimitExceeded = "excess_rate_limit_exceeded", warn, "too many registrations";
    /// The server is ready.
    Startup = "sys_startup", info, "the server is ready";
    /// The server ends in order.
    Shutdown = "sys_shutdown", info, "the server is ending";
}

/// The account that did it, from where, and the account that it was done to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Who<'a> {
    /// The account that did it.
    pub user_id: Option<i64>,
    /// Where it came from.
    pub address: Option<IpAddr>,
    /// By which request.
    pub request_id: Option<&'a str>,
    /// The account that it was done to.
    pub on_user_id: Option<i64>,
    /// More of it, in words of ours alone: roles, scopes, keys of rows.
    pub what: Option<&'a str>,
}

/// The lines of one kind. As a bucket that fills up: `level_ms` sinks by itself.
#[derive(Clone, Copy, Default)]
struct Lines {
    level_ms: u64,
    at_ms: u64,
    left_out: u64,
}

struct Inner {
    counts: Vec<IntCounter>,
    lines: Mutex<Vec<Lines>>,
    line_ms: u64,
    clock: Clock,
}

/// Where events are told of; clones share it.
#[derive(Clone)]
pub struct SecurityLog(Arc<Inner>);

impl std::fmt::Debug for SecurityLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecurityLog")
    }
}

impl SecurityLog {
    /// With so many lines a second of each kind.
    pub fn new(metrics: &Metrics, lines_per_second: u32, clock: Clock) -> Self {
        let counts = Event::ALL.iter().map(|event| {
            metrics
                .security_events_total
                .with_label_values(&[event.name()])
        });
        Self(Arc::new(Inner {
            counts: counts.collect(),
            lines: Mutex::new(vec![Lines::default(); Event::ALL.len()]),
            line_ms: 1_000 / u64::from(lines_per_second.clamp(1, 1_000)),
            clock,
        }))
    }

    /// Counts an event and tells of it, unless there were too many of its kind just now.
    pub fn note(&self, event: Event, who: &Who<'_>) {
        self.0.counts[event as usize].inc();
        if let Some(left_out) = self.admit(event, true) {
            event.write(who, (left_out > 0).then_some(left_out));
        }
    }

    /// Tells how many events were left out, of each kind that has room for a line again; with `all` of
    /// the others, too. To be called now and then, and at the end.
    pub fn tell_left_out(&self, all: bool) {
        for event in Event::ALL {
            let left_out = match all {
                true => std::mem::take(&mut self.0.lines.lock()[*event as usize].left_out),
                false => self.admit(*event, false).unwrap_or(0),
            };
            if left_out > 0 {
                event.write(&Who::default(), Some(left_out));
            }
        }
    }

    /// Takes the room for a line, if there is any: how many were left out before it. Without an event of
    /// its own it takes it only to tell of some.
    fn admit(&self, event: Event, is_event: bool) -> Option<u64> {
        let now = self.0.clock.monotonic_ms();
        let lines = &mut self.0.lines.lock()[event as usize];
        lines.level_ms = lines
            .level_ms
            .saturating_sub(now.saturating_sub(lines.at_ms));
        lines.at_ms = now;
        if !is_event && lines.left_out == 0 {
            return None;
        }
        if lines.level_ms + self.0.line_ms > BURST_SECONDS * 1_000 {
            lines.left_out += u64::from(is_event);
            return None;
        }
        lines.level_ms += self.0.line_ms;
        Some(std::mem::take(&mut lines.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use crate::clock::Timestamp;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        fn lines(&self) -> Vec<serde_json::Value> {
            let text = String::from_utf8(std::mem::take(&mut *self.0.lock())).expect("text");
            let line = |line| serde_json::from_str(line).expect("JSON");
            text.lines().map(line).collect()
        }
    }

    #[test]
    fn a_flood_of_one_kind_is_counted_told_and_hides_no_other() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || writer.clone())
            .finish();
        let clock = Clock::manual(Timestamp(1_000_000_000));
        let metrics = Metrics::new().expect("metrics");
        let log = SecurityLog::new(&metrics, 5, clock.clone());
        tracing::subscriber::with_default(subscriber, || {
            let who = Who {
                user_id: Some(7),
                address: Some(IpAddr::from([192, 0, 2, 1])),
                request_id: Some("r-1"),
                ..Who::default()
            };
            for _ in 0..1_000 {
                log.note(Event::LoginFail, &who);
            }
            log.note(Event::LoginSuccess, &who);
            let lines = kept.lines();
            assert_eq!(lines.len(), 51);
            let last = &lines[50];
            assert_eq!(last["event"], "authn_login_success");
            assert_eq!(last["target"], "security");
            assert_eq!(
                (&last["user_id"], &last["address"], &last["request_id"]),
                (&7.into(), &"192.0.2.1".into(), &"r-1".into())
            );
            assert!(last.get("left_out").is_none() && last.get("what").is_none());
            log.tell_left_out(false);
            assert_eq!(kept.lines().len(), 0, "there is no room yet");
            clock.advance(Duration::from_secs(1));
            log.tell_left_out(false);
            let told = kept.lines();
            assert_eq!(told.len(), 1);
            assert_eq!(told[0]["event"], "authn_login_fail");
            assert_eq!(told[0]["left_out"], 950);
            log.tell_left_out(true);
            assert_eq!(kept.lines().len(), 0, "each once");
        });
        let counted = r#"security_events_total{event="authn_login_fail"} 1000"#;
        assert!(metrics.render().contains(counted));
    }
}
