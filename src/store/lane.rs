//! Lanes: reads that may take long share few of the readers, so that look-ups by key always find one.
//!
//! Invariants: of each lane a bounded number runs at once and a bounded number waits, for a bounded time;
//! one more is refused at once; a place is held until the read has really ended, whoever waits for it; while
//! there are two readers or more, one at least is in no lane.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::StoreError;
use crate::config::{Database, ms};
use crate::threads::Yielding;

/// What a read costs, and so with whom it shares readers. What has no lane is a look-up by key, or the
/// program's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A page of a list in the order of an index: it costs what it brings.
    List,
    /// A search, which looks at more than it brings.
    Search,
}

impl Lane {
    /// The word for it in metrics.
    pub(super) fn word(self) -> &'static str {
        match self {
            Lane::List => "list",
            Lane::Search => "search",
        }
    }
}

/// One lane.
pub(super) struct Turns {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    wait: Duration,
    /// Longest run of one statement.
    pub(super) statement_timeout: Duration,
}

/// Held by one who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    fn new(places: u32, settings: &Database, statement_timeout_ms: u64) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(places as usize)),
            waiting: AtomicUsize::new(0),
            waiting_max: settings.lane_queue_max,
            wait: ms(settings.lane_timeout_ms),
            statement_timeout: ms(statement_timeout_ms),
        }
    }

    /// A place, at once or when others have given theirs back.
    pub(super) async fn enter(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        if let Ok(place) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(place);
        }
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if ahead >= self.waiting_max {
            return Err(StoreError::Overloaded);
        }
        match tokio::time::timeout(self.wait, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(StoreError::Stopped),
            Err(_) => Err(StoreError::Overloaded),
        }
    }
}

/// All lanes of a pool of readers.
pub(super) struct Lanes {
    list: Turns,
    search: Turns,
    /// What searches read on.
    search_threads: Yielding,
}

impl Lanes {
    pub(super) fn new(settings: &Database) -> Self {
        let (list, search) = places(settings);
        Self {
            list: Turns::new(list, settings, settings.statement_timeout_ms),
            search: Turns::new(search, settings, settings.search_timeout_ms),
            search_threads: Yielding::new("onrush-search", search as usize),
        }
    }

    /// Runs what reads in this lane.
    pub(super) fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        match lane {
            Lane::List => tokio::task::spawn_blocking(work),
            Lane::Search => self.search_threads.run(work),
        }
    }

    pub(super) fn of(&self, lane: Lane) -> &Turns {
        match lane {
            Lane::List => &self.list,
            Lane::Search => &self.search,
        }
    }
}

/// Readers for lists and for searches: as the settings have it, or fewer where there are so few readers that
/// none would be left.
fn places(settings: &Database) -> (u32, u32) {
    let shared = settings.readers.saturating_sub(1);
    let search = settings.search_readers.min(shared / 2).max(1);
    let left = shared.saturating_sub(search);
    (settings.list_readers.min(left).max(1), search)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(readers: u32, list_readers: u32, search_readers: u32) -> Database {
        Database {
            readers,
            list_readers,
            search_readers,
            ..Database::default()
        }
    }

    #[test]
    fn a_reader_is_left_for_look_ups_by_key() {
        assert_eq!(places(&Database::default()), (4, 2));
        assert_eq!(places(&of(8, 100, 100)), (4, 3));
        for readers in 3..40 {
            for (lists, searches) in [(1, 1), (4, 2), (100, 1), (1, 100), (100, 100)] {
                let (list, search) = places(&of(readers, lists, searches));
                assert!(list >= 1 && search >= 1 && list + search < readers);
            }
        }
        // With one or two, lanes can't but share.
        assert_eq!(places(&of(1, 4, 2)), (1, 1));
        assert_eq!(places(&of(2, 4, 2)), (1, 1));
    }

    #[tokio::test]
    async fn a_full_lane_refuses_at_once_and_a_place_comes_back_with_its_holder() {
        let lane = Arc::new(Turns::new(
            1,
            &Database {
                lane_queue_max: 1,
                lane_timeout_ms: 3_600_000, // no test sits it out
                ..Database::default()
            },
            1_000,
        ));
        let first = lane.enter().await.expect("a place");
        let second = tokio::spawn({
            let lane = Arc::clone(&lane);
            async move { lane.enter().await.map(drop) }
        });
        while lane.waiting.load(Ordering::Relaxed) < 1 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(lane.enter().await, Err(StoreError::Overloaded)));
        drop(first);
        assert!(second.await.expect("no panic").is_ok());
        // Who gives up waiting takes no room.
        let held = lane.enter().await.expect("a place");
        for _ in 0..10 {
            let waits = tokio::spawn({
                let lane = Arc::clone(&lane);
                async move { lane.enter().await.map(drop) }
            });
            while lane.waiting.load(Ordering::Relaxed) < 1 {
                tokio::task::yield_now().await;
            }
            waits.abort();
            assert!(waits.await.is_err());
        }
        assert_eq!(lane.waiting.load(Ordering::Relaxed), 0);
        drop(held);
        assert!(lane.enter().await.is_ok());
    }

    #[tokio::test]
    async fn a_wait_has_an_end() {
        let hurried = Database {
            lane_timeout_ms: 1,
            ..Database::default()
        };
        let lane = Turns::new(1, &hurried, 1_000);
        let _held = lane.enter().await.expect("a place");
        assert!(matches!(lane.enter().await, Err(StoreError::Overloaded)));
    }
}
