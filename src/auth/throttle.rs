//! Slows down guessing: failed logins per account and per address earn a growing wait.
//!
//! Invariants: bounded memory; no permanent lock, so nobody can lock another out for good; time is
//! monotonic, so moving the clock helps nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::config;

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    wait_until_ms: u64,
}

pub(super) struct Throttle {
    settings: Arc<config::Auth>,
    clock: Clock,
    failures: Mutex<HashMap<String, Failures>>,
}

fn address_key(address: IpAddr) -> String {
    format!("@{address}")
}

impl Throttle {
    pub(super) fn new(settings: Arc<config::Auth>, clock: Clock) -> Self {
        Self {
            settings,
            clock,
            failures: Mutex::new(HashMap::new()),
        }
    }

    /// `Err` holds the seconds to wait.
    pub(super) fn check(&self, email: &str, address: IpAddr) -> Result<(), u64> {
        let now = self.clock.monotonic_ms();
        let failures = self.failures.lock();
        let wait = [email.to_owned(), address_key(address)]
            .iter()
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

    pub(super) fn failed(&self, email: &str, address: IpAddr) {
        let now = self.clock.monotonic_ms();
        let mut failures = self.failures.lock();
        if failures.len() + 2 > self.settings.login_tracked_max {
            failures.retain(|_, failed| failed.wait_until_ms > now);
        }
        for (key, free) in [
            (email.to_owned(), self.settings.login_account_failures),
            (address_key(address), self.settings.login_address_failures),
        ] {
            if failures.len() >= self.settings.login_tracked_max && !failures.contains_key(&key) {
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
                    .settings
                    .login_delay_seconds
                    .saturating_mul(factor)
                    .min(self.settings.login_delay_seconds_max);
                entry.wait_until_ms = now.saturating_add(seconds.saturating_mul(1_000));
            }
        }
    }

    /// The right password clears the account; the address keeps what it has earned.
    pub(super) fn succeeded(&self, email: &str) {
        self.failures.lock().remove(email);
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
        let throttle = Throttle::new(Arc::new(config::Auth::default()), clock.clone());
        let address = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..4 {
            throttle.failed("a@b", address);
        }
        assert_eq!(throttle.check("a@b", address), Ok(()));
        throttle.failed("a@b", address);
        assert_eq!(throttle.check("a@b", address), Err(1));
        throttle.failed("a@b", address);
        assert_eq!(throttle.check("a@b", address), Err(2));
        assert_eq!(throttle.check("other@b", address), Ok(()));
        clock.advance(Duration::from_secs(2));
        assert_eq!(throttle.check("a@b", address), Ok(()));
        throttle.failed("a@b", address);
        throttle.succeeded("a@b");
        assert_eq!(throttle.check("a@b", address), Ok(()));
    }
}
