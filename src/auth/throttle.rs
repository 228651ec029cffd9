//! Slows down guessing: wrong passwords earn a growing wait, per account and per address.
//!
//! Invariants: bounded memory; no permanent lock, so nobody can lock another out for good; time is
//! monotonic, so moving the clock helps nobody; an address is what [`network_of`] counts as one.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::config;
use crate::http::network_of;

/// How much is borne before one must wait.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Wrong passwords of one account before it must wait.
    pub account_failures: u32,
    /// Wrong passwords of one address before it must wait.
    pub address_failures: u32,
    /// The first wait; each further failure doubles it.
    pub delay_seconds: u64,
    /// The longest wait.
    pub delay_seconds_max: u64,
    /// Accounts and addresses that are remembered.
    pub tracked_max: usize,
}

impl From<&config::Auth> for Rules {
    fn from(settings: &config::Auth) -> Self {
        Self {
            account_failures: settings.login_account_failures,
            address_failures: settings.login_address_failures,
            delay_seconds: settings.login_delay_seconds,
            delay_seconds_max: settings.login_delay_seconds_max,
            tracked_max: settings.login_tracked_max,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    wait_until_ms: u64,
}

/// Who failed how often.
#[derive(Debug)]
pub struct Throttle {
    rules: Rules,
    clock: Clock,
    failures: Mutex<HashMap<String, Failures>>,
}

fn address_key(address: IpAddr) -> String {
    format!("@{}", network_of(address))
}

impl Throttle {
    /// Nobody has failed yet.
    pub fn new(rules: Rules, clock: Clock) -> Self {
        Self {
            rules,
            clock,
            failures: Mutex::new(HashMap::new()),
        }
    }

    /// `Err` holds the seconds to wait. Without an account, only the address counts.
    pub fn check(&self, account: Option<&str>, address: IpAddr) -> Result<(), u64> {
        let now = self.clock.monotonic_ms();
        let failures = self.failures.lock();
        let keys = [account.map(str::to_owned), Some(address_key(address))];
        let wait = keys
            .iter()
            .flatten()
            .filter_map(|key| failures.get(key))
            .map(|failed| failed.wait_until_ms.saturating_sub(now))
            .max()
            .unwrap_or(0);
        if wait == 0 {
            Ok(())
        } else {
            Err(wait.div_ceil(1_000))
        }
    }

    /// The password was wrong.
    pub fn failed(&self, account: Option<&str>, address: IpAddr) {
        let now = self.clock.monotonic_ms();
        let mut failures = self.failures.lock();
        if failures.len() + 2 > self.rules.tracked_max {
            failures.retain(|_, failed| failed.wait_until_ms > now);
        }
        let account = account.map(|account| (account.to_owned(), self.rules.account_failures));
        let address = (address_key(address), self.rules.address_failures);
        for (key, free) in account.into_iter().chain([address]) {
            if failures.len() >= self.rules.tracked_max && !failures.contains_key(&key) {
                continue;
            }
            let entry = failures.entry(key).or_insert(Failures {
                count: 0,
                wait_until_ms: 0,
            });
            entry.count = entry.count.saturating_add(1);
            if let Some(over) = entry.count.checked_sub(free) {
                let factor = 1u64.checked_shl(over).unwrap_or(u64::MAX);
                let seconds = self
                    .rules
                    .delay_seconds
                    .saturating_mul(factor)
                    .min(self.rules.delay_seconds_max);
                entry.wait_until_ms = now.saturating_add(seconds.saturating_mul(1_000));
            }
        }
    }

    /// The right password clears the account; the address keeps what it has earned, because a right
    /// password for one account says nothing of another's.
    pub fn succeeded(&self, account: &str) {
        self.failures.lock().remove(account);
    }

    /// Clears an address, where there is one password only and so nothing left to guess.
    pub fn forgive(&self, address: IpAddr) {
        self.failures.lock().remove(&address_key(address));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn the_wait_grows_ends_and_is_cleared_by_success() {
        let clock = Clock::manual(Timestamp(1_000_000));
        let throttle = Throttle::new(Rules::from(&config::Auth::default()), clock.clone());
        let address = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..4 {
            throttle.failed(Some("a@b"), address);
        }
        assert_eq!(throttle.check(Some("a@b"), address), Ok(()));
        throttle.failed(Some("a@b"), address);
        assert_eq!(throttle.check(Some("a@b"), address), Err(1));
        throttle.failed(Some("a@b"), address);
        assert_eq!(throttle.check(Some("a@b"), address), Err(2));
        assert_eq!(throttle.check(Some("other@b"), address), Ok(()));
        clock.advance(Duration::from_secs(2));
        assert_eq!(throttle.check(Some("a@b"), address), Ok(()));
        throttle.failed(Some("a@b"), address);
        throttle.succeeded("a@b");
        assert_eq!(throttle.check(Some("a@b"), address), Ok(()));
    }

    #[test]
    fn whoever_owns_a_network_is_one_address() {
        let rules = Rules {
            address_failures: 2,
            ..Rules::from(&config::Auth::default())
        };
        let throttle = Throttle::new(rules, Clock::manual(Timestamp(1_000_000)));
        let [first, second, other] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
            .map(|text| text.parse().expect("one"));
        throttle.failed(None, first);
        assert_eq!(throttle.check(None, first), Ok(()));
        throttle.failed(None, second);
        assert_eq!(throttle.check(None, first), Err(1));
        assert_eq!(throttle.check(None, other), Ok(()));
        throttle.forgive(second);
        assert_eq!(throttle.check(None, first), Ok(()));
    }
}
