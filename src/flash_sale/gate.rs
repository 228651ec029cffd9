//! The gate: refuses early, never grants.
//!
//! It knows, for each open sale, how many units the database has not given away (`left`) and how
//! many of those are being claimed right now (`reserved`). Invariants: claims are let in for at most
//! `left` units at once, so a crowd costs the database only what can be sold; a buyer who finds every
//! unit spoken for waits until one of those claims is decided, so the last unit is still sold; what a
//! claim came to is told by the writer's thread, so a buyer who went away leaks no place; memory is
//! bounded whatever the crowd. A buyer of whom the database said that the limit is reached is
//! refused here from then on, until units of the sale come back, for they may be that buyer's.
//! Attempts are counted in an exact sliding minute of monotonic time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::allotment::{self, Sale, SaleId, SaleUnits};
use crate::auth::UserId;
use crate::clock::{Clock, Timestamp};
use crate::config::{self, ms};
use crate::monitor::Metrics;
use crate::product::ProductId;
use crate::store::{Store, StoreError};

const MINUTE_MS: u64 = 60_000;

/// Why a buyer was turned away before the database was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such open sale.
    Unknown,
    /// It has not begun.
    NotStarted,
    /// It is over.
    Ended,
    /// Fewer units are left than were asked for.
    SoldOut,
    /// The buyer has as many as one may have: this many.
    LimitReached(i64),
    /// Too many attempts.
    RateLimited {
        /// Attempts that a buyer has in a minute.
        limit: u32,
        /// Seconds until the next one counts.
        seconds: u64,
    },
    /// Too many buyers wait, or the wait was too long.
    Overloaded,
}

/// What decides at the door of one sale.
struct SaleGate {
    sale: Sale,
    /// A copy of `places.left`, to refuse without the lock.
    left: AtomicU32,
    places: Mutex<Places>,
    attempts: Mutex<Attempts>,
    /// Buyers at their limit, with the fewest units that they were refused.
    full: Mutex<HashMap<UserId, u32>>,
}

struct Places {
    left: u32,
    reserved: u32,
    waiting: VecDeque<WaitingClaim>,
}

impl Places {
    /// Units for which no claim is under way. A late payment may take a unit for which one is: fewer are
    /// left then than are reserved, and the database refuses that claim.
    fn unreserved(&self) -> u32 {
        self.left.saturating_sub(self.reserved)
    }
}

/// A buyer's claim that waits for its turn.
struct WaitingClaim {
    quantity: u32,
    tell: oneshot::Sender<bool>,
}

/// The attempts of buyers, in two generations of a minute each: a buyer who is in neither has made
/// none within the last minute.
#[derive(Default)]
struct Attempts {
    recent: HashMap<UserId, VecDeque<u64>>,
    older: HashMap<UserId, VecDeque<u64>>,
    turned_at_ms: u64,
}

impl Attempts {
    /// Counts an attempt, or says how many milliseconds until the next one counts.
    fn admit(
        &mut self,
        user: UserId,
        now_ms: u64,
        limit: usize,
        buyers_max: usize,
    ) -> Result<(), u64> {
        if now_ms.saturating_sub(self.turned_at_ms) >= MINUTE_MS || self.recent.len() >= buyers_max
        {
            self.older = std::mem::take(&mut self.recent);
            self.turned_at_ms = now_ms;
        }
        let mut log = match self.recent.remove(&user) {
            Some(log) => log,
            None => self.older.remove(&user).unwrap_or_default(),
        };
        while log
            .front()
            .is_some_and(|at| now_ms.saturating_sub(*at) >= MINUTE_MS)
        {
            log.pop_front();
        }
        let verdict = match log.front() {
            Some(oldest) if log.len() >= limit => Err(oldest + MINUTE_MS - now_ms),
            _ => {
                log.push_back(now_ms);
                Ok(())
            }
        };
        self.recent.insert(user, log);
        verdict
    }
}

impl SaleGate {
    fn publish(&self, places: &Places) {
        self.left.store(places.left, Ordering::Release);
    }

    /// Lets in whom the places allow, from the front.
    fn admit_waiting(&self, places: &mut Places) {
        while let Some(first) = places.waiting.front() {
            let quantity = first.quantity;
            let sold_out = places.left < quantity;
            if !sold_out && places.unreserved() < quantity {
                break;
            }
            let Some(first) = places.waiting.pop_front() else {
                break;
            };
            if sold_out {
                // A buyer who no longer waits has dropped the other end.
                let _gone = first.tell.send(false);
            } else if first.tell.send(true).is_ok() {
                places.reserved += quantity;
            }
        }
        self.publish(places);
    }

    fn decide(&self, quantity: u32, sold: bool) {
        let mut places = self.places.lock();
        places.reserved = places.reserved.saturating_sub(quantity);
        if sold {
            places.left = places.left.saturating_sub(quantity);
        }
        self.admit_waiting(&mut places);
    }
}

/// A place in the writer's queue. It must be decided; dropped, it counts as not sold.
pub struct GatePlace {
    gate: Arc<SaleGate>,
    quantity: u32,
    buyers_max: usize,
    decided: bool,
}

impl GatePlace {
    /// Tells the gate what the claim came to.
    pub fn decide(mut self, sold: bool) {
        self.decided = true;
        self.gate.decide(self.quantity, sold);
    }

    /// Tells the gate that the database refused the claim for the buyer's limit. To be called on the
    /// writer's thread, as [`Gate::adjust`] is: their order there is the order of the commits.
    pub fn limit_reached(self, user: UserId) {
        let mut full = self.gate.full.lock();
        if full.len() >= self.buyers_max {
            // Simple and rare: each of these buyers costs the database one look more.
            full.clear();
        }
        let fewest = full.entry(user).or_insert(self.quantity);
        *fewest = self.quantity.min(*fewest);
        drop(full);
        self.decide(false);
    }
}

impl Drop for GatePlace {
    fn drop(&mut self) {
        if !self.decided {
            self.gate.decide(self.quantity, false);
        }
    }
}

/// All gates; clones share them.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    settings: Arc<config::FlashSales>,
    clock: Clock,
    metrics: Metrics,
    sales: RwLock<HashMap<SaleId, Arc<SaleGate>>>,
}

impl Gate {
    /// Without any sale.
    pub fn new(settings: Arc<config::FlashSales>, clock: Clock, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            settings,
            clock,
            metrics,
            sales: RwLock::new(HashMap::new()),
        }))
    }

    /// Builds the gates anew from the rows: after a start.
    pub async fn load(&self, store: &Store) -> Result<(), StoreError> {
        for sale in store.read(allotment::open_sales).await? {
            self.open(sale);
        }
        Ok(())
    }

    /// Opens the gate of a sale whose row has been committed.
    pub fn open(&self, sale: Sale) {
        let left = u32::try_from(sale.remaining).unwrap_or(u32::MAX);
        self.0
            .metrics
            .set_flash_sale_remaining(sale.id.0, sale.remaining);
        let gate = SaleGate {
            left: AtomicU32::new(left),
            places: Mutex::new(Places {
                left,
                reserved: 0,
                waiting: VecDeque::new(),
            }),
            attempts: Mutex::new(Attempts::default()),
            full: Mutex::new(HashMap::new()),
            sale,
        };
        self.0.sales.write().insert(gate.sale.id, Arc::new(gate));
    }

    /// Closes the gate of a sale; the claims that wait are refused.
    pub fn close(&self, id: SaleId) {
        let gate = self.0.sales.write().remove(&id);
        if let Some(gate) = gate {
            let mut places = gate.places.lock();
            places.left = 0;
            gate.admit_waiting(&mut places);
        }
        self.0.metrics.remove_flash_sale(id.0);
    }

    /// Units came back to open sales, or late payments took some.
    pub fn adjust(&self, moved: &[SaleUnits]) {
        for units in moved {
            let Some(gate) = self.find(units.sale_id) else {
                continue;
            };
            if units.change > 0 {
                gate.full.lock().clear();
            }
            let mut places = gate.places.lock();
            let left = i64::from(places.left).saturating_add(units.change);
            places.left = u32::try_from(left.max(0)).unwrap_or(u32::MAX);
            gate.admit_waiting(&mut places);
        }
    }

    /// The metric of units left, brought up to date.
    pub fn publish_metrics(&self) {
        for (id, gate) in self.0.sales.read().iter() {
            self.0
                .metrics
                .set_flash_sale_remaining(id.0, i64::from(gate.left.load(Ordering::Acquire)));
        }
    }

    /// Sales that begin between now and `until`, with their products.
    pub fn opening(&self, now: Timestamp, until: Timestamp) -> Vec<(SaleId, ProductId)> {
        let sales = self.0.sales.read();
        let soon = |sale: &&Sale| sale.starts_at > now && sale.starts_at <= until;
        sales
            .values()
            .map(|gate| &gate.sale)
            .filter(soon)
            .map(|sale| (sale.id, sale.product_id))
            .collect()
    }

    /// Units of an open sale that can be claimed, as the gate has it.
    #[cfg(test)]
    pub(super) fn left(&self, id: SaleId) -> Option<i64> {
        let gate = self.find(id)?;
        Some(i64::from(gate.left.load(Ordering::Acquire)))
    }

    fn find(&self, id: SaleId) -> Option<Arc<SaleGate>> {
        self.0.sales.read().get(&id).cloned()
    }

    /// The open sale of a product that runs now, or else the next to come.
    pub fn sale_of(&self, product: i64, now: Timestamp) -> Option<SaleId> {
        self.0
            .sales
            .read()
            .values()
            .filter(|gate| gate.sale.product_id.0 == product && now < gate.sale.ends_at)
            .min_by_key(|gate| gate.sale.starts_at)
            .map(|gate| gate.sale.id)
    }

    /// Asks for a place for `quantity` units; waits while every unit left is spoken for.
    pub async fn enter(
        &self,
        id: SaleId,
        user: UserId,
        quantity: u32,
        now: Timestamp,
    ) -> Result<GatePlace, Refusal> {
        let gate = self.find(id).ok_or(Refusal::Unknown)?;
        if now < gate.sale.starts_at {
            return Err(Refusal::NotStarted);
        }
        if now >= gate.sale.ends_at {
            return Err(Refusal::Ended);
        }
        if gate.left.load(Ordering::Acquire) < quantity {
            return Err(Refusal::SoldOut);
        }
        let limit = usize::try_from(gate.sale.attempts_per_minute).unwrap_or(usize::MAX);
        gate.attempts
            .lock()
            .admit(
                user,
                self.0.clock.monotonic_ms(),
                limit,
                self.0.settings.tracked_buyers_max,
            )
            .map_err(|wait_ms| Refusal::RateLimited {
                limit: u32::try_from(limit).unwrap_or(u32::MAX),
                seconds: wait_ms.div_ceil(1_000),
            })?;
        if gate
            .full
            .lock()
            .get(&user)
            .is_some_and(|fewest| quantity >= *fewest)
        {
            return Err(Refusal::LimitReached(gate.sale.per_user_limit));
        }
        let answer = {
            let mut places = gate.places.lock();
            if places.left < quantity {
                return Err(Refusal::SoldOut);
            }
            if places.waiting.is_empty() && places.unreserved() >= quantity {
                places.reserved += quantity;
                None
            } else if places.waiting.len() >= self.0.settings.waiting_max {
                return Err(Refusal::Overloaded);
            } else {
                let (tell, answer) = oneshot::channel();
                places.waiting.push_back(WaitingClaim { quantity, tell });
                Some(answer)
            }
        };
        if let Some(answer) = answer {
            let mut waiter = Waiter {
                gate: &gate,
                quantity,
                answer: Some(answer),
            };
            let verdict =
                tokio::time::timeout(ms(self.0.settings.wait_timeout_ms), waiter.wait()).await;
            match verdict {
                Ok(true) => {}
                Ok(false) => return Err(Refusal::SoldOut),
                Err(_) => return Err(Refusal::Overloaded),
            }
        }
        Ok(GatePlace {
            gate,
            quantity,
            buyers_max: self.0.settings.tracked_buyers_max,
            decided: false,
        })
    }
}

/// The end of a [`WaitingClaim`] that stays with its buyer. Dropped before it took its answer, it gives back a place
/// that the claim had got.
struct Waiter<'a> {
    gate: &'a SaleGate,
    quantity: u32,
    answer: Option<oneshot::Receiver<bool>>,
}

impl Waiter<'_> {
    async fn wait(&mut self) -> bool {
        let Some(answer) = self.answer.as_mut() else {
            return false;
        };
        let granted = answer.await.unwrap_or(false);
        self.answer = None;
        granted
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(mut answer) = self.answer.take() {
            answer.close();
            if answer.try_recv() == Ok(true) {
                self.gate.decide(self.quantity, false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::product::ProductId;

    fn sale(remaining: i64, attempts_per_minute: i64) -> Sale {
        Sale {
            id: SaleId(1),
            product_id: ProductId(1),
            quantity: remaining,
            remaining,
            held: 0,
            sold: 0,
            returned: 0,
            unit_amount: 100,
            currency: "CNY".to_owned(),
            starts_at: Timestamp(1_000),
            ends_at: Timestamp(1_000_000_000_000),
            per_user_limit: 1,
            attempts_per_minute,
            payment_window_seconds: 0,
            status: allotment::SaleStatus::Open,
            created_at: Timestamp(0),
        }
    }

    fn gate(remaining: i64, attempts_per_minute: i64) -> (Gate, Clock) {
        let clock = Clock::manual(Timestamp(5_000_000));
        let metrics = Metrics::new().expect("metrics");
        let gate = Gate::new(
            Arc::new(config::FlashSales {
                wait_timeout_ms: 3_600_000, // no test sits it out
                ..config::FlashSales::default()
            }),
            clock.clone(),
            metrics,
        );
        gate.open(sale(remaining, attempts_per_minute));
        (gate, clock)
    }

    #[tokio::test]
    async fn the_last_unit_waits_for_whoever_is_next_when_a_claim_fails() {
        let (gate, clock) = gate(1, 3);
        let now = clock.now();
        let first = gate
            .enter(SaleId(1), UserId(1), 1, now)
            .await
            .expect("a place");
        let second = tokio::spawn({
            let gate = gate.clone();
            async move {
                gate.enter(SaleId(1), UserId(2), 1, now)
                    .await
                    .map(|place| place.decide(true))
            }
        });
        until_waiting(&gate, 1).await;
        first.decide(false);
        assert_eq!(second.await.expect("task"), Ok(()));
        assert_eq!(
            gate.enter(SaleId(1), UserId(3), 1, now).await.err(),
            Some(Refusal::SoldOut)
        );
        gate.adjust(&[SaleUnits {
            sale_id: SaleId(1),
            change: 1,
        }]);
        assert!(gate.enter(SaleId(1), UserId(3), 1, now).await.is_ok());
    }

    /// Waits until so many buyers wait at the gate of the sale.
    async fn until_waiting(gate: &Gate, buyers: usize) {
        let sale = gate.find(SaleId(1)).expect("open");
        while sale.places.lock().waiting.len() < buyers {
            tokio::task::yield_now().await;
        }
    }

    /// What a buyer who waits is told, long before the wait would be over.
    async fn told(
        waits: tokio::task::JoinHandle<Result<GatePlace, Refusal>>,
    ) -> Result<(), Refusal> {
        let told = tokio::time::timeout(Duration::from_secs(60), waits).await;
        told.expect("told at once").expect("no panic").map(drop)
    }

    #[tokio::test]
    async fn buyers_who_wait_are_told_at_once_when_the_sale_closes() {
        let (gate, clock) = gate(2, 3);
        let now = clock.now();
        let enter = |buyer, quantity| {
            let gate = gate.clone();
            async move { gate.enter(SaleId(1), UserId(buyer), quantity, now).await }
        };
        let claiming = enter(1, 2).await.expect("a place");
        let waiting: Vec<_> = (2..5).map(|buyer| tokio::spawn(enter(buyer, 1))).collect();
        until_waiting(&gate, 3).await;
        gate.close(SaleId(1));
        for waits in waiting {
            assert_eq!(told(waits).await, Err(Refusal::SoldOut));
        }
        claiming.decide(true);
        assert_eq!(enter(9, 1).await.map(drop), Err(Refusal::Unknown));
    }

    #[tokio::test]
    async fn a_late_payment_takes_the_unit_that_buyers_wait_for() {
        let (gate, clock) = gate(1, 3);
        let now = clock.now();
        let enter = |buyer| {
            let gate = gate.clone();
            async move { gate.enter(SaleId(1), UserId(buyer), 1, now).await }
        };
        let claiming = enter(1).await.expect("a place");
        let waits = tokio::spawn(enter(2));
        until_waiting(&gate, 1).await;
        gate.adjust(&[SaleUnits {
            sale_id: SaleId(1),
            change: -1,
        }]);
        assert_eq!(told(waits).await, Err(Refusal::SoldOut));
        // The database refuses the one who was let in; a unit that comes back is for the next.
        claiming.decide(false);
        assert_eq!(enter(3).await.map(drop), Err(Refusal::SoldOut));
        gate.adjust(&[SaleUnits {
            sale_id: SaleId(1),
            change: 1,
        }]);
        assert!(enter(3).await.is_ok());
    }

    #[tokio::test]
    async fn a_buyer_who_goes_away_leaks_no_place() {
        let (gate, clock) = gate(1, 1_000);
        let now = clock.now();
        for round in 0..50 {
            let place = gate
                .enter(SaleId(1), UserId(1), 1, now)
                .await
                .expect("a place");
            let waiter = tokio::spawn({
                let gate = gate.clone();
                async move { gate.enter(SaleId(1), UserId(2), 1, now).await.map(drop) }
            });
            for _ in 0..round % 5 {
                tokio::task::yield_now().await;
            }
            waiter.abort();
            drop(place);
            drop(waiter.await);
            let sale = gate.find(SaleId(1)).expect("open");
            let places = sale.places.lock();
            assert_eq!((places.left, places.reserved), (1, 0), "round {round}");
        }
    }

    #[tokio::test]
    async fn attempts_count_in_a_sliding_minute() {
        let (gate, clock) = gate(100, 2);
        let enter = |gate: Gate, now| async move {
            gate.enter(SaleId(1), UserId(1), 1, now).await.map(drop)
        };
        assert!(enter(gate.clone(), clock.now()).await.is_ok());
        clock.advance(Duration::from_secs(40));
        assert!(enter(gate.clone(), clock.now()).await.is_ok());
        assert_eq!(
            enter(gate.clone(), clock.now()).await,
            Err(Refusal::RateLimited {
                limit: 2,
                seconds: 20
            })
        );
        clock.advance(Duration::from_secs(20));
        assert!(enter(gate.clone(), clock.now()).await.is_ok());
        assert_eq!(
            enter(gate.clone(), clock.now()).await,
            Err(Refusal::RateLimited {
                limit: 2,
                seconds: 40
            })
        );
    }

    #[tokio::test]
    async fn a_buyer_at_the_limit_is_refused_until_units_come_back() {
        let (gate, clock) = gate(100, 1_000);
        let enter = |quantity| {
            let (gate, now) = (gate.clone(), clock.now());
            async move { gate.enter(SaleId(1), UserId(1), quantity, now).await }
        };
        enter(2).await.expect("a place").limit_reached(UserId(1));
        for quantity in [2, 3] {
            let refused = enter(quantity).await.map(drop);
            assert_eq!(refused, Err(Refusal::LimitReached(1)));
        }
        enter(1).await.expect("fewer may still fit").decide(false);
        gate.adjust(&[SaleUnits {
            sale_id: SaleId(1),
            change: 1,
        }]);
        assert!(enter(3).await.is_ok());
    }

    #[test]
    fn attempts_forget_the_oldest_beyond_the_bound() {
        let mut attempts = Attempts::default();
        for user in 0..10_000 {
            attempts
                .admit(UserId(user), 1, 1, 100)
                .expect("first attempt");
        }
        assert!(attempts.recent.len() + attempts.older.len() <= 201);
    }
}
