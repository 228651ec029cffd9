//! How a load runs: within a bounded number of others, for a bounded time, on a task of its own once
//! it has to wait for anything; where its kind has turns of its own, as long as a request waits for it.

use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;

use super::disk::OnDisk;
use super::entry::{Cached, Entry, Held, Loaded, Origin, Stored, Tag, Times};
use super::flight::{Ending, Flight, LoadOutcome};
use super::freshness::Moment;
use super::key::{CacheKey, Id};
use super::{Cache, CacheError, Inner, KindState, disk_key};
use crate::clock::Stopwatch;
use crate::config::ms;

/// A value of some type, with its tags.
pub(super) struct Brought {
    value: Box<dyn Stored>,
    tags: Vec<String>,
}

impl<V: Cached> From<Loaded<V>> for Brought {
    fn from(loaded: Loaded<V>) -> Self {
        Self {
            value: Box::new(Held(loaded.value)),
            tags: loaded.tags,
        }
    }
}

/// Brings something, or nothing, for each flight of the load, in their order.
pub(super) type Future = Pin<
    Box<
        dyn std::future::Future<Output = Result<Vec<Option<Brought>>, Arc<dyn Error + Send + Sync>>>
            + Send,
    >,
>;

/// The load of one key.
pub(super) fn one<V: Cached, E: Error + Send + Sync + 'static>(
    load: impl std::future::Future<Output = Result<Option<Loaded<V>>, E>> + Send + 'static,
) -> Future {
    Box::pin(async move {
        match load.await {
            Ok(loaded) => Ok(vec![loaded.map(Brought::from)]),
            Err(error) => Err(Arc::new(error) as Arc<dyn Error + Send + Sync>),
        }
    })
}

/// The load of many: what is not among the answer does not exist.
pub(super) fn many<V: Cached, E: Error + Send + Sync + 'static>(
    ids: Vec<Id>,
    load: impl std::future::Future<Output = Result<Vec<(Id, Loaded<V>)>, E>> + Send + 'static,
) -> Future {
    Box::pin(async move {
        match load.await {
            Ok(loaded) => {
                let found: std::collections::BTreeMap<Id, Loaded<V>> = loaded.into_iter().collect();
                // An id that is asked for twice gets its value twice.
                let of = |id: &Id| found.get(id).cloned().map(Brought::from);
                Ok(ids.iter().map(of).collect())
            }
            Err(error) => Err(Arc::new(error) as Arc<dyn Error + Send + Sync>),
        }
    })
}

/// A load of one or more keys of a kind.
pub(super) struct Load {
    pub(super) kind: Arc<KindState>,
    pub(super) flights: Vec<Arc<Flight>>,
    /// The entries whose place it takes.
    pub(super) replaced: Vec<Arc<Entry>>,
    pub(super) future: Future,
    /// Whether what it brings is put into the cache.
    pub(super) is_kept: bool,
    /// Whether no request waits for it: then it does not wait for a turn either, where there are too many.
    pub(super) is_refresh: bool,
}

/// Held by a load that waits for its turn.
struct Turn<'a>(&'a std::sync::atomic::AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cache {
    /// Begins a load on the caller's task, where a look-up by key ends at once, and leaves it to a
    /// task of its own when it does not: so it goes on when its caller gives up.
    pub(super) async fn start(&self, load: Load) {
        let mut run = Box::pin(Arc::clone(&self.0).run(load));
        let has_ended = std::future::poll_fn(|context| {
            Poll::Ready(run.as_mut().poll_unpin(context).is_ready())
        });
        if !has_ended.await {
            tokio::spawn(run);
        }
    }

    /// Begins a load that no request waits for.
    pub(super) fn start_behind(&self, load: Load) {
        tokio::spawn(Arc::clone(&self.0).run(load));
    }
}

impl Inner {
    async fn run(self: Arc<Self>, load: Load) {
        let ending = Ending::new(&self.flights, load.flights.clone());
        if let [flight] = &*load.flights
            && load.is_kept
            && !load.is_refresh
            && let Some(entry) = self.found_on_disk(&load.kind, flight).await
        {
            self.keep(&load.kind, &flight.key, &entry);
            ending.end([Ok(entry)]);
            return;
        }
        let began_ms = self.clock.monotonic_ms();
        let rules = &load.kind.rules;
        let bringing = self.bring(load.future, load.is_refresh, rules.has_own_turns);
        let brought = match &*load.flights {
            // Where there is an expired value, the requests that waited were answered with that.
            [flight] if rules.has_own_turns && !load.is_refresh && load.replaced.is_empty() => {
                match self.while_awaited(flight, bringing).await {
                    Some(brought) => brought,
                    None => return,
                }
            }
            _ => bringing.await,
        };
        match brought {
            Ok(brought) => {
                let took_ms = self.clock.monotonic_ms().saturating_sub(began_ms);
                let cost_ms = took_ms / (load.flights.len().max(1) as u64);
                let outcomes: Vec<LoadOutcome> = load
                    .flights
                    .iter()
                    .zip(brought)
                    .map(|(flight, brought)| {
                        let entry = self.entry(&load.kind, flight, brought, began_ms, cost_ms);
                        if load.is_kept {
                            self.keep(&load.kind, &flight.key, &entry);
                        }
                        Ok(entry)
                    })
                    .collect();
                ending.end(outcomes);
            }
            Err(error) => {
                let until_ms = self.clock.monotonic_ms() + self.settings.stale_retry_ms;
                for entry in &load.replaced {
                    entry.rest_until(until_ms);
                    entry.end_refresh();
                }
                ending.end(load.flights.iter().map(|_| Err(error.clone())));
            }
        }
    }

    /// What `bringing` comes to; `None` once no request waits for it any more.
    async fn while_awaited<T>(
        &self,
        flight: &Arc<Flight>,
        bringing: impl std::future::Future<Output = T>,
    ) -> Option<T> {
        let mut bringing = std::pin::pin!(bringing);
        loop {
            tokio::select! {
                brought = &mut bringing => return Some(brought),
                () = flight.nobody_waits() => if self.flights.give_up(flight) {
                    return None;
                }
            }
        }
    }

    /// A place among the loads that are under way.
    async fn turn(&self, is_refresh: bool) -> Result<OwnedSemaphorePermit, CacheError> {
        if let Ok(permit) = Arc::clone(&self.loads).try_acquire_owned() {
            return Ok(permit);
        }
        let waiting = self.loads_waiting.fetch_add(1, Ordering::Relaxed);
        let turn = Turn(&self.loads_waiting);
        if is_refresh || waiting >= self.settings.loads_queue_max {
            return Err(CacheError::Overloaded);
        }
        let limit = ms(self.settings.wait_timeout_ms);
        let permit = tokio::time::timeout(limit, Arc::clone(&self.loads).acquire_owned()).await;
        drop(turn);
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(CacheError::Stopped),
            Err(_) => Err(CacheError::Overloaded),
        }
    }

    /// Runs the loader itself.
    async fn bring(
        &self,
        future: Future,
        is_refresh: bool,
        has_own_turns: bool,
    ) -> Result<Vec<Option<Brought>>, CacheError> {
        let figures = &self.metrics.cache;
        let permit = match has_own_turns {
            true => None,
            false => match self.turn(is_refresh).await {
                Ok(permit) => Some(permit),
                Err(error) => {
                    figures.loads_refused.inc();
                    return Err(error);
                }
            },
        };
        let watch = Stopwatch::start();
        let limit = ms(self.settings.load_timeout_ms);
        let ended = tokio::time::timeout(limit, AssertUnwindSafe(future).catch_unwind()).await;
        drop(permit);
        figures.load_seconds.observe(watch.elapsed_seconds());
        match ended {
            Ok(Ok(Ok(brought))) => {
                let found = brought.iter().flatten().count();
                figures.loads_ok.inc_by(found as u64);
                figures.loads_absent.inc_by((brought.len() - found) as u64);
                Ok(brought)
            }
            Ok(Ok(Err(error))) => {
                figures.loads_failed.inc();
                Err(CacheError::Failed(error))
            }
            Ok(Err(panic)) => {
                figures.loads_panicked.inc();
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                tracing::error!(panic = text, "a load of the cache panicked");
                Err(CacheError::Panicked)
            }
            Err(_) => {
                figures.loads_timed_out.inc();
                Err(CacheError::Timeout)
            }
        }
    }

    /// Makes an entry of what a load brought.
    fn entry(
        &self,
        kind: &KindState,
        flight: &Flight,
        brought: Option<Brought>,
        loaded_ms: u64,
        load_ms: u64,
    ) -> Arc<Entry> {
        let settings = &self.settings;
        let (value, tags) = match brought {
            Some(Brought { value, tags }) => (Some(value), tags),
            None => (None, Vec::new()),
        };
        let ttl_seconds = match (&value, kind.rules.ttl_seconds) {
            (None, _) => settings.absent_seconds,
            (Some(_), Some(seconds)) => seconds,
            (Some(_), None) => settings
                .adaptive_load_ms
                .iter()
                .zip(&settings.adaptive_ttl_seconds)
                .rev()
                .find(|(step_ms, _)| load_ms >= **step_ms)
                .map_or(settings.ttl_seconds, |(_, seconds)| *seconds),
        };
        let ttl_ms = jittered(
            ttl_seconds.saturating_mul(1_000),
            settings.ttl_jitter_percent,
        );
        let refresh_ms = match settings.refresh_percent {
            100.. => u64::MAX,
            percent => loaded_ms.saturating_add(ttl_ms / 100 * percent),
        };
        let expires_ms = loaded_ms.saturating_add(ttl_ms);
        let times = Times {
            loaded_ms,
            refresh_ms,
            expires_ms,
            stale_until_ms: expires_ms.saturating_add(settings.stale_seconds.saturating_mul(1_000)),
            load_ms,
        };
        self.entry_of(&flight.key, value, tags, flight.born, times, Origin::Loader)
    }

    pub(super) fn entry_of(
        &self,
        key: &CacheKey,
        value: Option<Box<dyn Stored>>,
        tags: Vec<String>,
        born: Moment,
        times: Times,
        origin: Origin,
    ) -> Arc<Entry> {
        let tags = tags
            .into_iter()
            .map(|name| Tag {
                slot: self.freshness.slot_of_tag(&name),
                name: name.into(),
            })
            .collect();
        let key_bytes = key.id.heap_bytes();
        Arc::new(Entry::new(value, tags, key_bytes, born, times, origin))
    }

    /// The entry as the disk has it, if it is fresh and nothing of it was invalidated since.
    async fn found_on_disk(&self, kind: &KindState, flight: &Flight) -> Option<Arc<Entry>> {
        if !kind.rules.on_disk || !self.disk.is_open() {
            return None;
        }
        let OnDisk {
            born,
            times,
            tags,
            value,
        } = self.disk.find(&disk_key(kind, &flight.key)).await?;
        if kind.cleared_on_disk.is_after(born) {
            return None;
        }
        let value = (kind.from_disk)(&value)?;
        let entry = self.entry_of(&flight.key, Some(value), tags, born, times, Origin::Disk);
        let is_good =
            entry.is_fresh(self.clock.monotonic_ms()) && self.is_valid(kind, &flight.key, &entry);
        is_good.then_some(entry)
    }
}

/// A life that is longer or shorter by a random part up to `percent`.
fn jittered(ttl_ms: u64, percent: u64) -> u64 {
    let spread = ttl_ms / 100 * percent;
    match spread {
        0 => ttl_ms,
        _ => rand::random_range(ttl_ms - spread..=ttl_ms + spread),
    }
}
