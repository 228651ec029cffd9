//! Loads that are under way: one per key, and further requests for the key wait for that one.
//!
//! Invariants: a flight ends, whatever becomes of its load, because a guard that is dropped ends it;
//! no request joins a flight whose key was invalidated since it began, or that was given up; the number of
//! requests that wait is bounded over all keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::CacheError;
use super::entry::Entry;
use super::freshness::Moment;
use super::key::{CacheKey, OwnHash};

/// What a flight brought: an entry, which may say that there is nothing, or why there is none.
pub(super) type LoadOutcome = Result<Arc<Entry>, CacheError>;

/// A load under way.
pub(super) struct Flight {
    pub(super) key: CacheKey,
    /// Noted before the load began.
    pub(super) born: Moment,
    pub(super) began_ms: u64,
    outcome: watch::Sender<Option<LoadOutcome>>,
}

impl Flight {
    /// A flight that no request can join.
    pub(super) fn alone(key: CacheKey, born: Moment, began_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            key,
            born,
            began_ms,
            outcome: watch::Sender::new(None),
        })
    }

    pub(super) fn watch(&self) -> Watch {
        self.outcome.subscribe()
    }

    /// Done when no request waits any more.
    pub(super) async fn nobody_waits(&self) {
        self.outcome.closed().await;
    }
}

/// What a request that found no entry is to do.
pub(super) enum Part {
    /// Load it, as the first.
    Lead(Arc<Flight>),
    /// Wait for the load that another request began.
    Join(Arc<Flight>, Watch),
}

/// Where the outcome of a load will be seen.
pub(super) type Watch = watch::Receiver<Option<LoadOutcome>>;

/// Flights are divided into so many parts, each under a lock of its own.
const SHARDS: usize = 16;

/// All flights.
pub(super) struct Flights {
    shards: [Mutex<HashMap<CacheKey, Arc<Flight>, OwnHash>>; SHARDS],
    waiting: Arc<AtomicUsize>,
    waiters_max: usize,
}

/// Held by a request that waits; it counts it.
pub(super) struct Waiter(Arc<AtomicUsize>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Flights {
    pub(super) fn new(waiters_max: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            waiting: Arc::default(),
            waiters_max,
        }
    }

    fn shard(&self, key: &CacheKey) -> &Mutex<HashMap<CacheKey, Arc<Flight>, OwnHash>> {
        &self.shards[(key.hash >> 32) as usize % SHARDS]
    }

    /// Joins the flight of `key`, or begins one. `is_stale` tells whether the key was invalidated
    /// after a moment, `now` the moment of the beginning.
    pub(super) fn enter(
        &self,
        key: &CacheKey,
        is_stale: impl Fn(Moment) -> bool,
        now: impl Fn() -> Moment,
        now_ms: u64,
    ) -> Part {
        let mut flights = self.shard(key).lock();
        if let Some(flight) = flights.get(key)
            && !is_stale(flight.born)
        {
            // Seen under the lock, or else the flight could be given up in between.
            return Part::Join(Arc::clone(flight), flight.watch());
        }
        let flight = Flight::alone(key.clone(), now(), now_ms);
        flights.insert(key.clone(), Arc::clone(&flight));
        Part::Lead(flight)
    }

    /// Ends a flight and tells the requests that wait. The entry must be in the cache already.
    pub(super) fn end(&self, flight: &Arc<Flight>, outcome: LoadOutcome) {
        let mut flights = self.shard(&flight.key).lock();
        if flights
            .get(&flight.key)
            .is_some_and(|there| Arc::ptr_eq(there, flight))
        {
            flights.remove(&flight.key);
        }
        drop(flights);
        flight.outcome.send_replace(Some(outcome));
    }

    /// Gives up a flight that no request waits for, unless one has joined it meanwhile.
    pub(super) fn give_up(&self, flight: &Arc<Flight>) -> bool {
        let mut flights = self.shard(&flight.key).lock();
        if flight.outcome.receiver_count() > 0 {
            return false;
        }
        if flights
            .get(&flight.key)
            .is_some_and(|there| Arc::ptr_eq(there, flight))
        {
            flights.remove(&flight.key);
        }
        true
    }

    /// A place among the requests that wait, if there is one.
    pub(super) fn wait(&self) -> Option<Waiter> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiter = Waiter(Arc::clone(&self.waiting));
        (waiting < self.waiters_max).then_some(waiter)
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The keys that are being loaded.
    pub(super) fn keys(&self) -> Vec<CacheKey> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            keys.extend(shard.lock().keys().cloned());
        }
        keys
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// Ends each flight of one load that was not ended, once the load is given up.
pub(super) struct Ending<'a> {
    flights: &'a Flights,
    open: Vec<Arc<Flight>>,
}

impl<'a> Ending<'a> {
    pub(super) fn new(flights: &'a Flights, open: Vec<Arc<Flight>>) -> Self {
        Self { flights, open }
    }

    /// Ends them in their order.
    pub(super) fn end(mut self, outcomes: impl IntoIterator<Item = LoadOutcome>) {
        let mut outcomes = outcomes.into_iter();
        for flight in self.open.drain(..) {
            let outcome = outcomes.next().unwrap_or(Err(CacheError::Stopped));
            self.flights.end(&flight, outcome);
        }
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        for flight in self.open.drain(..) {
            self.flights.end(&flight, Err(CacheError::Stopped));
        }
    }
}
