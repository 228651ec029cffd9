//! How fast one customer may place orders.
//!
//! An order and its cancellation cost the writer two commits and the database rows for good, and flicker
//! the stock that others see; so a customer who places them in a loop is slowed down before the writer is asked.
//! Invariants: a customer may place `limit` orders at once, and each minute again as many, spread over it;
//! time is monotonic; memory is bounded, 16 bytes or so a customer, and a customer who is forgotten begins anew.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::auth::UserId;
use crate::clock::Clock;

const MINUTE_MS: u64 = 60_000;

/// Of each customer, until when the orders of before are accounted for: each takes its part of a minute.
/// In two generations: what is in neither is accounted for.
#[derive(Default)]
struct Accounts {
    recent: HashMap<UserId, u64>,
    older: HashMap<UserId, u64>,
    turned_at_ms: u64,
}

/// The pace of all customers; clones share it.
#[derive(Clone)]
pub struct Pace(Arc<Inner>);

struct Inner {
    clock: Clock,
    /// Orders a minute; 0 for any number.
    limit: u32,
    customers_max: usize,
    accounts: Mutex<Accounts>,
}

impl Pace {
    /// Of `limit` orders a minute, remembered of so many customers.
    pub fn new(clock: Clock, limit: u32, customers_max: usize) -> Self {
        Self(Arc::new(Inner {
            clock,
            limit,
            customers_max,
            accounts: Mutex::default(),
        }))
    }

    /// Orders a minute.
    pub fn limit(&self) -> u32 {
        self.0.limit
    }

    /// Counts an order, or says in how many seconds the next one counts.
    pub fn admit(&self, customer: UserId) -> Result<(), u64> {
        let inner = &*self.0;
        if inner.limit == 0 {
            return Ok(());
        }
        let part_ms = (MINUTE_MS / u64::from(inner.limit)).max(1);
        let room_ms = part_ms.saturating_mul(u64::from(inner.limit));
        let now_ms = inner.clock.monotonic_ms();
        let mut accounts = inner.accounts.lock();
        let is_old = now_ms.saturating_sub(accounts.turned_at_ms) >= MINUTE_MS;
        if is_old || accounts.recent.len() >= inner.customers_max {
            accounts.older = std::mem::take(&mut accounts.recent);
            accounts.turned_at_ms = now_ms;
        }
        let known = match accounts.recent.remove(&customer) {
            Some(until_ms) => Some(until_ms),
            None => accounts.older.remove(&customer),
        };
        let until_ms = known.unwrap_or(0).max(now_ms) + part_ms;
        let over_ms = until_ms.saturating_sub(now_ms + room_ms);
        let (kept_ms, verdict) = match over_ms {
            0 => (until_ms, Ok(())),
            _ => (until_ms - part_ms, Err(over_ms.div_ceil(1_000))),
        };
        accounts.recent.insert(customer, kept_ms);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Timestamp;

    fn pace(limit: u32) -> (Pace, Clock) {
        let clock = Clock::manual(Timestamp(5_000_000));
        (Pace::new(clock.clone(), limit, 100), clock)
    }

    #[test]
    fn orders_may_come_together_and_then_as_the_minute_goes() {
        let (pace, clock) = pace(6);
        for _ in 0..6 {
            assert_eq!(pace.admit(UserId(1)), Ok(()));
        }
        assert_eq!(pace.admit(UserId(1)), Err(10));
        assert_eq!(pace.admit(UserId(2)), Ok(()), "each for themselves");
        clock.advance(Duration::from_millis(9_500));
        assert_eq!(pace.admit(UserId(1)), Err(1), "a refusal costs nothing");
        clock.advance(Duration::from_millis(500));
        assert_eq!(pace.admit(UserId(1)), Ok(()));
        assert_eq!(pace.admit(UserId(1)), Err(10));
        clock.advance(Duration::from_secs(60));
        for _ in 0..6 {
            assert_eq!(pace.admit(UserId(1)), Ok(()));
        }
        assert_eq!(pace.admit(UserId(1)), Err(10));
    }

    #[test]
    fn no_minute_sees_more_than_twice_the_limit_and_the_longer_run_sees_the_limit() {
        let (pace, clock) = pace(7);
        let admitted: usize = (0..600)
            .map(|_| {
                clock.advance(Duration::from_secs(1));
                (0..5).filter(|_| pace.admit(UserId(1)).is_ok()).count()
            })
            .sum();
        assert!((70..=77).contains(&admitted), "{admitted} in ten minutes");
    }

    #[test]
    fn any_number_and_bounded_memory() {
        let (pace, _) = pace(0);
        assert!((0..1_000).all(|_| pace.admit(UserId(1)).is_ok()));
        let (pace, _) = self::pace(1);
        for customer in 0..10_000 {
            assert_eq!(pace.admit(UserId(customer)), Ok(()));
        }
        let accounts = pace.0.accounts.lock();
        assert!(accounts.recent.len() + accounts.older.len() <= 200);
    }
}
