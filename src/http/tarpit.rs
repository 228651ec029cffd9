//! Refusals to clients that get many of them are sent late.
//!
//! A client that is refused and asks again at once costs as much as one that is served. So the first
//! refusals of each second are sent to a client ([`network_of`]) at once, and each further one is held
//! back; a connection that waits for its answer then makes four requests a second.
//!
//! Invariants: only refusals are held back, and only for [`HELD_BACK`]; the connection counts as idle
//! meanwhile, so that it may be closed for a newcomer; of clients a bounded number is remembered, for a second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use poem::Response;
use poem::http::StatusCode;

use super::request::network_of;
use super::shares::NowAndThen;
use crate::clock::coarse_ms;
use crate::monitor::Metrics;

/// For how long a refusal is held back.
const HELD_BACK: Duration = Duration::from_millis(250);
/// Clients that are remembered.
const CLIENTS_MAX: usize = 65_536;

/// Mark of an answer that is to be sent so much later.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldBack(pub(super) Duration);

/// How often each client was refused in this second.
pub(super) struct Tarpit {
    /// Refusals of a second that a client hears at once; 0 for any number.
    at_once: u32,
    now: Mutex<Second>,
    metrics: Metrics,
    told: NowAndThen,
}

#[derive(Default)]
struct Second {
    number: u64,
    refusals: HashMap<IpAddr, u32>,
}

impl Tarpit {
    pub(super) fn new(at_once: u32, metrics: &Metrics) -> Self {
        Self {
            at_once,
            now: Mutex::default(),
            metrics: metrics.clone(),
            told: NowAndThen::default(),
        }
    }

    /// Whether this answer to `address` is to be held back, and for how long.
    pub(super) fn holds_back(&self, answer: &Response, address: IpAddr) -> Option<Duration> {
        // An answer that tells the client's own limit was given before any work was done.
        let tells_limit = answer.headers().contains_key("ratelimit-policy");
        if self.at_once == 0 || tells_limit || !is_refusal(answer.status()) {
            return None;
        }
        let client = network_of(address);
        if !self.note(client, coarse_ms() / 1_000) {
            return None;
        }
        self.metrics.http_refusals_held_back_total.inc();
        if let Some(answers) = self.told.note(1) {
            tracing::warn!(client = %client, answers, "refusals are held back from clients that get many");
        }
        Some(HELD_BACK)
    }

    /// Counts a refusal; tells whether it is one too many within this second.
    fn note(&self, client: IpAddr, second: u64) -> bool {
        let mut now = self.now.lock();
        if now.number != second {
            now.number = second;
            now.refusals.clear();
        }
        if now.refusals.len() >= CLIENTS_MAX && !now.refusals.contains_key(&client) {
            return false;
        }
        let count = now.refusals.entry(client).or_default();
        *count = count.saturating_add(1);
        *count > self.at_once
    }
}

/// Whether the client should not have asked, or not now. What it can't know beforehand, such as that
/// something is sold out or gone, is none.
fn is_refusal(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        400 | 401 | 403 | 408 | 413 | 414 | 415 | 422 | 429 | 431 | 503
    )
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn answer(status: StatusCode) -> Response {
        Response::builder().status(status).finish()
    }

    fn tarpit(at_once: u32) -> Tarpit {
        Tarpit::new(at_once, &Metrics::new().expect("unique names"))
    }

    #[test]
    fn the_first_of_a_second_are_heard_at_once_and_each_client_for_itself() {
        let tarpit = tarpit(3);
        for second in [7, 8] {
            let late: Vec<bool> = (0..5).map(|_| tarpit.note(CLIENT, second)).collect();
            assert_eq!(late, [false, false, false, true, true]);
            assert!(!tarpit.note(OTHER, second));
        }
    }

    #[test]
    fn what_is_no_refusal_is_never_held_back() {
        let tarpit = tarpit(1);
        for _ in 0..10 {
            for status in [
                StatusCode::OK,
                StatusCode::NOT_FOUND,
                StatusCode::CONFLICT,
                StatusCode::NOT_MODIFIED,
            ] {
                assert_eq!(tarpit.holds_back(&answer(status), CLIENT), None);
            }
            let mut limited = answer(StatusCode::TOO_MANY_REQUESTS);
            let policy = HeaderValue::from_static("\"attempts\";q=5;w=60");
            limited.headers_mut().insert("ratelimit-policy", policy);
            assert_eq!(tarpit.holds_back(&limited, CLIENT), None);
        }
        let refused = &answer(StatusCode::TOO_MANY_REQUESTS);
        // The second may change in between.
        let held = (0..10).filter(|_| tarpit.holds_back(refused, CLIENT).is_some());
        let held = held.count();
        assert!(held >= 7, "{held}");
        let counted = tarpit.metrics.http_refusals_held_back_total.get();
        assert_eq!(counted, held as u64);
        let never = self::tarpit(0);
        assert!((0..100).all(|_| never.holds_back(refused, CLIENT).is_none()));
    }

    #[test]
    fn a_bounded_number_is_remembered() {
        let tarpit = tarpit(1);
        for number in 0..(CLIENTS_MAX as u32 + 100) {
            tarpit.note(IpAddr::from(number.to_be_bytes()), 1);
        }
        assert_eq!(tarpit.now.lock().refusals.len(), CLIENTS_MAX);
    }
}
