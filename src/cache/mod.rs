//! The cache: what is read again and again, kept ready in memory and, where it took long to make, on
//! disk.
//!
//! A read is [`Kind::get_or_load`]. Invariants:
//!
//! - **Exact.** No read brings a value that was loaded before an invalidation which was done before
//!   that read began, from whatever level and however late a load ends (`freshness.rs`). So a write
//!   invalidates after its commit and before its answer.
//! - **One load per key at a time**; the rest wait for it, in bounded number and for a bounded time.
//!   It runs on when one of them gives up. The number of loads at once is bounded over all keys; loads
//!   of a kind that may take long wait elsewhere ([`KindRules::has_own_turns`]), so those by key never wait
//!   for them, and end when no request waits for them any more.
//! - **Never at fault.** A full, broken or missing level is a miss. A load that fails, hangs or panics
//!   is an error to the requests that asked, or an expired value that a write has not changed since.
//! - Memory is bounded by the settings, whatever is asked for; keys that don't exist have a room of
//!   their own.
//! - No decision about stock or money is taken from here, and nothing that was cached by an earlier
//!   process is read.
//!
//! What is cached is not known here: a feature makes a [`Kind`] for each sort of value it keeps, reads
//! through it, and invalidates what it wrote in the `after` of its write (`Store::write_then`), which
//! runs between the commit and the answer:
//!
//! ```ignore
//! let products: Kind<Ready> = cache.kind(KindRules::new("product", 1));
//! let hit = products.get_or_load(id, || async move { store.point(load_product).await }).await?;
//! store.write(change_product).then(move |done| if done.is_ok() { products.invalidate(id) }).await?;
//! ```

pub mod api;
mod ceiling;
mod disk;
mod entry;
mod flight;
mod freshness;
mod hot;
mod key;
mod load;
mod upkeep;

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::hash::RandomState;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foyer::{Event, EventListener};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, watch};

pub use ceiling::HighestWanted;
pub use disk::DiskState;
pub use entry::{Cached, Loaded, Origin, Ready};
pub use key::{CacheKey, Id};
pub use upkeep::{CacheStats, EntryView, HotKey, Level, Warmed};

use crate::clock::Clock;
use crate::config::{self, Eviction, ms};
use crate::monitor::Metrics;
use ceiling::Ceiling;
use disk::Disk;
use entry::{Entry, Stored};
use flight::{Flight, Flights, LoadOutcome, Part};
use freshness::{Freshness, Last, Moment, Slot};
use hot::HotKeys;
use key::{KindIndex, OwnHash, Pattern};
use load::Load;

/// Why there is no value.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// The load failed; see [`CacheError::cause`].
    #[error("{0}")]
    Failed(Arc<dyn Error + Send + Sync>),
    /// The load panicked, which is a bug of its own.
    #[error("a load of the cache panicked")]
    Panicked,
    /// The load did not end in time.
    #[error("a load of the cache did not end in time")]
    Timeout,
    /// Too many loads are under way, or too many wait for them.
    #[error("too many loads of the cache are under way")]
    Overloaded,
    /// The process is ending.
    #[error("the cache is shutting down")]
    Stopped,
}

impl CacheError {
    /// The loader's own error.
    pub fn cause<E: Error + 'static>(&self) -> Option<&E> {
        match self {
            CacheError::Failed(error) => error.downcast_ref(),
            CacheError::Panicked
            | CacheError::Timeout
            | CacheError::Overloaded
            | CacheError::Stopped => None,
        }
    }
}

/// What a kind's values are like.
#[derive(Clone, Copy, Debug)]
pub struct KindRules {
    /// First part of the keys' text, such as `product`: letters, digits and `_`.
    pub name: &'static str,
    /// To be raised whenever the form of [`Cached::to_disk`] or the meaning of an id changes.
    pub version: u32,
    /// How long a value lives. Without, that depends on what its load took.
    pub ttl_seconds: Option<u64>,
    /// Whether it is remembered which keys don't exist.
    pub remembers_absent: bool,
    /// Whether values that took long to load may lie on disk.
    pub on_disk: bool,
    /// Whether its loads wait for their turn where they read, in a bounded number. Then they take no place
    /// among the loads of other kinds, and are given up when no request waits for them any more.
    pub has_own_turns: bool,
}

impl KindRules {
    /// Values that live as long as their load deserves, and are kept on disk if that pays.
    pub const fn new(name: &'static str, version: u32) -> Self {
        Self {
            name,
            version,
            ttl_seconds: None,
            remembers_absent: true,
            on_disk: true,
            has_own_turns: false,
        }
    }
}

/// Loads keys of one kind ahead of the requests that are expected for them.
type Warmer =
    Box<dyn Fn(Cache, Vec<Id>) -> BoxFuture<'static, Result<usize, CacheError>> + Send + Sync>;

/// What the cache knows of a kind.
struct KindState {
    rules: KindRules,
    index: KindIndex,
    ceiling: Ceiling,
    cleared: Last,
    /// Like `cleared`, for what lies on disk alone.
    cleared_on_disk: Last,
    from_disk: fn(&[u8]) -> Option<Box<dyn Stored>>,
    warmer: OnceLock<Warmer>,
}

/// All kinds, by their index.
#[derive(Default)]
struct Kinds(RwLock<Vec<Arc<KindState>>>);

impl Kinds {
    fn of(&self, index: KindIndex) -> Option<Arc<KindState>> {
        self.0.read().get(usize::from(index.0)).cloned()
    }

    fn named(&self, name: &str) -> Option<Arc<KindState>> {
        let kinds = self.0.read();
        kinds.iter().find(|kind| kind.rules.name == name).cloned()
    }

    /// `kind:id` of a key.
    fn text(&self, key: &CacheKey) -> String {
        let kinds = self.0.read();
        kinds
            .get(usize::from(key.kind.0))
            .map(|kind| key.text(kind.rules.name))
            .unwrap_or_default()
    }
}

type Memory = foyer::Cache<CacheKey, Arc<Entry>, OwnHash>;

/// A cheap handle; clones share the cache.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    settings: Arc<config::Cache>,
    clock: Clock,
    metrics: Metrics,
    seed: RandomState,
    freshness: Freshness,
    kinds: Arc<Kinds>,
    memory: Memory,
    absent: Memory,
    /// Held while values become pins, and by an invalidation that has to find each of them: one that
    /// is on its way from memory to the pins could be found in neither.
    pinning: Mutex<()>,
    /// The hot keys, with their values while there are any.
    pins: RwLock<HashMap<CacheKey, Option<Arc<Entry>>, OwnHash>>,
    flights: Flights,
    loads: Arc<Semaphore>,
    loads_waiting: AtomicUsize,
    hot: HotKeys,
    disk: Arc<Disk>,
    /// Where the list of hot keys outlives the process.
    list: PathBuf,
}

/// Levels in memory are divided into so many parts, each under a lock of its own.
const SHARDS: usize = 8;
/// How often a request joins a load that turns out to have begun too early for it, before it loads by itself.
const JOINS_MAX: u32 = 3;

/// Sees entries leave memory.
struct Leaving {
    kinds: Arc<Kinds>,
    disk: Arc<Disk>,
    metrics: Metrics,
    disk_load_ms_min: u64,
}

impl EventListener for Leaving {
    type Key = CacheKey;
    type Value = Arc<Entry>;

    fn on_leave(&self, reason: Event, key: &CacheKey, entry: &Arc<Entry>) {
        if reason != Event::Evict || entry.is_dropped() {
            return;
        }
        self.metrics.cache.memory.evictions.inc();
        // What came from the disk is still there.
        if entry.origin == Origin::Loader
            && entry.times.load_ms >= self.disk_load_ms_min
            && let Some(kind) = self.kinds.of(key.kind)
            && kind.rules.on_disk
        {
            self.disk.offer(disk_key(&kind, key), entry);
        }
    }
}

/// The key of an entry on disk: its kind with the version of its form, and the id.
fn disk_key(kind: &KindState, key: &CacheKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(kind.rules.name.len() + 16);
    bytes.extend_from_slice(kind.rules.name.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&kind.rules.version.to_le_bytes());
    match &key.id {
        Id::Int(id) => {
            bytes.push(0);
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        Id::Bytes(id) => {
            bytes.push(1);
            bytes.extend_from_slice(id);
        }
    }
    bytes
}

/// A level in memory.
///
/// S3-FIFO is the default of `cache.eviction` for its hits and because a hit takes no exclusive lock.
/// Measured with Zipf keys (exponent 0.99) over 92,331 products of which 5 % fit, 1.5 million reads:
/// S3-FIFO 71.6 %, Sieve 71.8 %, LFU 71.7 %, LRU 64.5 %, FIFO 60.9 % hits; with a scan of other keys
/// between every four reads S3-FIFO 71.9 %, Sieve 71.4 %, LFU 71.4 %, LRU 60.1 %, FIFO 56.2 %. A mixed
/// operation of LFU took up to two and a half times as long as one of S3-FIFO.
fn level(
    capacity: usize,
    entries_max: usize,
    eviction: Eviction,
) -> foyer::CacheBuilder<CacheKey, Arc<Entry>, OwnHash> {
    // Each entry weighs at least its share, so that their number is bounded as well as their size.
    let least = capacity / entries_max.max(1);
    let builder = foyer::CacheBuilder::new(capacity)
        .with_shards(SHARDS)
        .with_hash_builder(OwnHash)
        .with_weighter(move |_: &CacheKey, entry: &Arc<Entry>| entry.bytes.max(least));
    match eviction {
        Eviction::S3Fifo => builder.with_eviction_config(foyer::S3FifoConfig::default()),
        Eviction::Lfu => builder.with_eviction_config(foyer::LfuConfig::default()),
        Eviction::Lru => builder.with_eviction_config(foyer::LruConfig::default()),
        Eviction::Sieve => builder.with_eviction_config(foyer::SieveConfig {}),
        Eviction::Fifo => builder.with_eviction_config(foyer::FifoConfig::default()),
    }
}

/// What a look into the levels in memory found.
enum Look {
    Fresh(Arc<Entry>),
    Absent,
    /// Nothing, or what may be served if there is nothing better.
    Expired(Option<Arc<Entry>>),
}

/// What a wait for a load brought.
enum Found {
    Entry(Arc<Entry>),
    /// The load had begun too early for the request that waited.
    TooOld,
}

/// A value, and how old it is.
#[derive(Clone, Debug)]
pub struct Hit<V> {
    /// The value.
    pub value: V,
    /// Time since its load began, in milliseconds.
    pub age_ms: u64,
    /// Whether its life is over: its load failed, or is slow.
    pub is_stale: bool,
}

impl Cache {
    /// An empty cache. `folder` is for its level on disk and its list of hot keys; it is made when it
    /// is needed.
    pub fn new(
        settings: Arc<config::Cache>,
        folder: &Path,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let disk = Disk::new(
            folder.join("disk"),
            if settings.enabled {
                settings.disk_bytes
            } else {
                0
            },
            settings.disk_timeout_ms,
            settings.disk_retry_seconds,
            clock.clone(),
            metrics.clone(),
        );
        let kinds = Arc::new(Kinds::default());
        let memory = level(
            settings.memory_bytes,
            settings.memory_entries_max,
            settings.eviction,
        )
        .with_event_listener(Arc::new(Leaving {
            kinds: Arc::clone(&kinds),
            disk: Arc::clone(&disk),
            metrics: metrics.clone(),
            disk_load_ms_min: settings.disk_load_ms_min,
        }))
        .build();
        let absent = level(
            settings.absent_entries_max * entry::OVERHEAD_BYTES,
            settings.absent_entries_max,
            Eviction::Fifo,
        )
        .build();
        Self(Arc::new(Inner {
            seed: RandomState::new(),
            freshness: Freshness::new(),
            kinds,
            memory,
            absent,
            pinning: Mutex::default(),
            pins: RwLock::default(),
            flights: Flights::new(settings.waiters_max),
            loads: Arc::new(Semaphore::new(settings.loads_max)),
            loads_waiting: AtomicUsize::new(0),
            hot: HotKeys::new(settings.hot_window_seconds),
            disk,
            list: folder.join("hot-keys"),
            settings,
            clock,
            metrics,
        }))
    }

    /// Makes a kind of value. Its name must be used once only; a second kind of that name would share
    /// nothing with the first and can't be reached by its keys' text.
    pub fn kind<V: Cached>(&self, rules: KindRules) -> Kind<V> {
        let mut kinds = self.0.kinds.0.write();
        let state = Arc::new(KindState {
            rules,
            index: KindIndex(u16::try_from(kinds.len()).unwrap_or(u16::MAX)),
            ceiling: Ceiling::new(),
            cleared: Last::default(),
            cleared_on_disk: Last::default(),
            from_disk: |bytes| Some(Box::new(entry::Held(V::from_disk(bytes)?)) as Box<dyn Stored>),
            warmer: OnceLock::new(),
        });
        kinds.push(Arc::clone(&state));
        drop(kinds);
        Kind {
            cache: self.clone(),
            state,
            values: PhantomData,
        }
    }

    /// Invalidates every value with this tag. To be called after the commit that changed what the tag
    /// stands for, and before its answer; quick, and from any thread.
    pub fn invalidate_tag(&self, tag: &str) {
        let inner = &*self.0;
        inner
            .freshness
            .invalidate_slot(inner.freshness.slot_of_tag(tag));
    }

    /// Invalidates every key that `pattern` means, in which `*` stands for any characters; answers
    /// how many values left memory. `kind:*` and `*` cost the same however much there is; another
    /// pattern looks at each key.
    pub fn invalidate(&self, pattern: &str) -> usize {
        let inner = &*self.0;
        let pattern = Pattern::parse(pattern);
        let is_searched = matches!(pattern, Pattern::Parts(_));
        let _pinning = is_searched.then(|| inner.pinning.lock());
        match &pattern {
            Pattern::One(text) => {
                return match inner.parse_key(text) {
                    Some((kind, key)) => usize::from(inner.invalidate_key(&kind, &key)),
                    None => 0,
                };
            }
            Pattern::Kind(name) => match inner.kinds.named(name) {
                Some(kind) => inner.freshness.invalidate(&kind.cleared),
                None => return 0,
            },
            Pattern::Everything => inner.freshness.invalidate_everything(),
            Pattern::Parts(_) => {
                // The keys on disk are not known; what lies there of any kind is not used any more.
                for kind in inner.kinds.0.read().iter() {
                    inner.freshness.invalidate(&kind.cleared_on_disk);
                }
                // A load that ended before this look has put its value where it is found below; one
                // that begins after it reads what the write left.
                for key in inner.flights.keys() {
                    if pattern.matches(&inner.kinds.text(&key)) {
                        inner.invalidate_slot_of(&key);
                    }
                }
            }
        }
        let is_meant = |key: &CacheKey| match &pattern {
            Pattern::Everything => true,
            Pattern::One(_) | Pattern::Kind(_) | Pattern::Parts(_) => {
                pattern.matches(&inner.kinds.text(key))
            }
        };
        // Taking a value out is not enough where its kind is not invalidated as a whole: another
        // thread may hold it already and put it elsewhere.
        let invalidates = |key: &CacheKey| {
            let is_meant = is_meant(key);
            if is_meant && is_searched {
                inner.invalidate_slot_of(key);
            }
            is_meant
        };
        for (key, entry) in inner.pins.write().iter_mut() {
            if invalidates(key) {
                *entry = None;
            }
        }
        take_out(&inner.absent, |key, _| invalidates(key));
        take_out(&inner.memory, |key, _| invalidates(key))
    }

    /// Invalidates everything.
    pub fn clear(&self) -> usize {
        self.invalidate("*")
    }
}

/// Takes out of a level what `is_meant`; answers how many that were.
fn take_out(level: &Memory, is_meant: impl Fn(&CacheKey, &Entry) -> bool) -> usize {
    let mut count = 0;
    // Nothing is waited for where no disk hangs on the level itself.
    let done = level
        .flush_if(|key, entry| {
            let is_meant = is_meant(key, entry);
            if is_meant {
                entry.drop_on_purpose();
                count += 1;
            }
            is_meant
        })
        .now_or_never();
    debug_assert!(done.is_some(), "nothing is flushed");
    count
}

impl Inner {
    fn key(&self, kind: &KindState, id: Id) -> CacheKey {
        CacheKey::new(&self.seed, kind.index, id)
    }

    fn parse_key(&self, text: &str) -> Option<(Arc<KindState>, CacheKey)> {
        let (name, id) = text.split_once(':')?;
        let kind = self.kinds.named(name)?;
        let key = self.key(&kind, Id::parse(id)?);
        Some((kind, key))
    }

    fn slot_of(&self, key: &CacheKey) -> Slot {
        self.freshness.slot_of_hash(key.hash)
    }

    /// Whether a key was invalidated after `born`, not counting tags.
    fn is_key_stale(&self, kind: &KindState, key: &CacheKey, born: Moment) -> bool {
        kind.cleared.is_after(born) || self.freshness.is_stale(self.slot_of(key), born)
    }

    fn is_valid(&self, kind: &KindState, key: &CacheKey, entry: &Entry) -> bool {
        !self.is_key_stale(kind, key, entry.born)
            && !entry
                .tags
                .iter()
                .any(|tag| self.freshness.is_stale(tag.slot, entry.born))
    }

    fn invalidate_slot_of(&self, key: &CacheKey) {
        self.freshness.invalidate_slot(self.slot_of(key));
    }

    /// Invalidates one key; answers whether there was a value in memory.
    fn invalidate_key(&self, kind: &KindState, key: &CacheKey) -> bool {
        self.invalidate_slot_of(key);
        let was_there = self.memory.remove(key).is_some();
        if kind.rules.remembers_absent {
            drop(self.absent.remove(key));
        }
        if let Some(entry) = self.pins.write().get_mut(key) {
            *entry = None;
        }
        if self.disk.is_open() && kind.rules.on_disk {
            self.disk.remove(&disk_key(kind, key));
        }
        was_there
    }

    /// Looks into the levels in memory.
    fn look(&self, kind: &KindState, key: &CacheKey, now_ms: u64) -> Look {
        let layers = &self.metrics.cache;
        if kind.ceiling.excludes(&key.id) {
            layers.memory.misses.inc();
            layers.absent.hits.inc();
            return Look::Absent;
        }
        let mut expired = None;
        if let Some(record) = self.memory.get(key)
            && self.is_valid(kind, key, record.value())
        {
            let entry = record.value();
            if entry.is_fresh(now_ms) {
                layers.memory.hits.inc();
                return Look::Fresh(Arc::clone(entry));
            }
            expired = entry.is_usable(now_ms).then(|| Arc::clone(entry));
        }
        let pinned = self.pins.read().get(key).cloned().flatten();
        if let Some(entry) = pinned.filter(|entry| self.is_valid(kind, key, entry)) {
            if entry.is_fresh(now_ms) {
                layers.memory.hits.inc();
                return Look::Fresh(entry);
            }
            if expired.is_none() && entry.is_usable(now_ms) {
                expired = Some(entry);
            }
        }
        layers.memory.misses.inc();
        if !kind.rules.remembers_absent {
            return Look::Expired(expired);
        }
        if let Some(record) = self.absent.get(key)
            && record.value().is_fresh(now_ms)
            && self.is_valid(kind, key, record.value())
        {
            layers.absent.hits.inc();
            return Look::Absent;
        }
        layers.absent.misses.inc();
        Look::Expired(expired)
    }

    /// Puts what a load brought where reads find it.
    fn keep(&self, kind: &KindState, key: &CacheKey, entry: &Arc<Entry>) {
        let settings = &self.settings;
        // A value larger than a good part of its shard would push out everything else there.
        let bytes_max = settings
            .value_bytes_max
            .min(settings.memory_bytes / SHARDS / 4);
        let fits = entry.bytes <= bytes_max
            && entry.tags.len() <= settings.tags_max
            && key.id.heap_bytes() <= settings.key_bytes_max;
        if !settings.enabled || !self.is_valid(kind, key, entry) {
            return;
        }
        if entry.value.is_none() || !fits {
            drop(self.memory.remove(key));
        }
        let pin = (entry.value.is_some() && fits).then(|| Arc::clone(entry));
        if self.pins.read().contains_key(key)
            && let Some(there) = self.pins.write().get_mut(key)
        {
            entry.set_hot(pin.is_some());
            *there = pin;
        }
        if !fits {
            return;
        }
        if entry.value.is_some() {
            drop(self.memory.insert(key.clone(), Arc::clone(entry)));
            if kind.rules.remembers_absent {
                drop(self.absent.remove(key));
            }
        } else if kind.rules.remembers_absent {
            drop(self.absent.insert(key.clone(), Arc::clone(entry)));
        }
    }

    /// Joins the load of `key`, or begins one.
    fn enter(&self, kind: &KindState, key: &CacheKey, now_ms: u64) -> Part {
        self.flights.enter(
            key,
            |born| self.is_key_stale(kind, key, born),
            || self.freshness.now(),
            now_ms,
        )
    }

    /// An expired value, if it may still be served.
    fn usable(
        &self,
        kind: &KindState,
        key: &CacheKey,
        expired: Option<&Arc<Entry>>,
    ) -> Option<Arc<Entry>> {
        let now_ms = self.clock.monotonic_ms();
        expired
            .filter(|entry| entry.is_usable(now_ms) && self.is_valid(kind, key, entry))
            .cloned()
    }

    /// Waits for a load. `joined` is the moment at which a read began that did not begin the load
    /// itself: what the load brings may be older than that.
    async fn wait_for(
        &self,
        kind: &KindState,
        flight: &Flight,
        mut outcome: watch::Receiver<Option<LoadOutcome>>,
        expired: Option<&Arc<Entry>>,
        joined: Option<Moment>,
    ) -> Result<Found, CacheError> {
        let key = &flight.key;
        let ended = outcome.borrow_and_update().clone();
        let ended = match ended {
            Some(ended) => Some(ended),
            None => {
                let waiter = match self.flights.wait() {
                    Some(waiter) => waiter,
                    None => {
                        return match self.usable(kind, key, expired) {
                            Some(entry) => {
                                self.metrics.cache.stale_slow.inc();
                                Ok(Found::Entry(entry))
                            }
                            None => Err(CacheError::Overloaded),
                        };
                    }
                };
                let limit = match expired {
                    Some(_) => {
                        let passed = self.clock.monotonic_ms().saturating_sub(flight.began_ms);
                        self.settings.stale_after_ms.saturating_sub(passed)
                    }
                    None => self.settings.wait_timeout_ms,
                };
                let ended = match limit {
                    0 => None,
                    _ => ending(&mut outcome, ms(limit)).await,
                };
                drop(waiter);
                match ended {
                    Some(ended) => Some(ended),
                    // The expired value became invalid while its load went on.
                    None if expired.is_some() && self.usable(kind, key, expired).is_none() => {
                        ending(&mut outcome, ms(self.settings.wait_timeout_ms)).await
                    }
                    None => None,
                }
            }
        };
        match ended {
            Some(Ok(entry)) => {
                let is_young = joined.is_none_or(|joined| joined <= flight.born);
                match is_young || self.is_valid(kind, key, &entry) {
                    true => Ok(Found::Entry(entry)),
                    false => Ok(Found::TooOld),
                }
            }
            Some(Err(error)) => match self.usable(kind, key, expired) {
                Some(entry) => {
                    self.metrics.cache.stale_failed.inc();
                    Ok(Found::Entry(entry))
                }
                None => Err(error),
            },
            None => match self.usable(kind, key, expired) {
                Some(entry) => {
                    self.metrics.cache.stale_slow.inc();
                    Ok(Found::Entry(entry))
                }
                None => Err(CacheError::Timeout),
            },
        }
    }
}

/// The end of a load, if it comes within `limit`.
async fn ending(
    outcome: &mut watch::Receiver<Option<LoadOutcome>>,
    limit: Duration,
) -> Option<LoadOutcome> {
    match tokio::time::timeout(limit, outcome.wait_for(Option::is_some)).await {
        Ok(Ok(ended)) => ended.clone(),
        Ok(Err(_)) => Some(Err(CacheError::Stopped)),
        Err(_) => None,
    }
}

/// A kind of value in the cache; clones share it.
pub struct Kind<V> {
    cache: Cache,
    state: Arc<KindState>,
    values: PhantomData<fn() -> V>,
}

impl<V> Clone for Kind<V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            state: Arc::clone(&self.state),
            values: PhantomData,
        }
    }
}

impl<V: Cached> Kind<V> {
    /// The value, if it is there and its life is not over. No lock is held and nothing is waited for.
    pub fn get(&self, id: impl Into<Id>) -> Option<Hit<V>> {
        let inner = &*self.cache.0;
        let key = inner.key(&self.state, id.into());
        let now_ms = inner.clock.monotonic_ms();
        inner.hot.seen(&key, now_ms);
        match inner.look(&self.state, &key, now_ms) {
            Look::Fresh(entry) => hit(&entry, now_ms),
            Look::Absent | Look::Expired(_) => None,
        }
    }

    /// The value, loaded if need be; `None` when there is nothing of that id. `load` is asked for its
    /// future only when that is needed. The future must read what was committed when it is first
    /// polled, or later, and nothing older.
    pub async fn get_or_load<F, E>(
        &self,
        id: impl Into<Id>,
        load: impl FnOnce() -> F,
    ) -> Result<Option<Hit<V>>, CacheError>
    where
        F: Future<Output = Result<Option<Loaded<V>>, E>> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let (inner, kind) = (&*self.cache.0, &*self.state);
        let key = inner.key(kind, id.into());
        let now_ms = inner.clock.monotonic_ms();
        let joined = inner.freshness.now();
        inner.hot.seen(&key, now_ms);
        let expired = match inner.look(kind, &key, now_ms) {
            Look::Fresh(entry) => {
                if self.begins_refresh(&entry, now_ms) {
                    self.refresh(vec![(key, Arc::clone(&entry))], |_| load::one(load()));
                }
                return Ok(hit(&entry, now_ms));
            }
            Look::Absent => return Ok(None),
            Look::Expired(expired) => expired,
        };
        if let Some(entry) = &expired
            && entry.rests(now_ms)
        {
            inner.metrics.cache.stale_failed.inc();
            return Ok(hit(entry, now_ms));
        }
        let mut joins = 0;
        let (flight, is_kept) = loop {
            if joins == JOINS_MAX {
                let born = inner.freshness.now();
                break (Flight::alone(key, born, now_ms), false);
            }
            match inner.enter(kind, &key, now_ms) {
                Part::Lead(flight) => break (flight, true),
                Part::Join(flight, outcome) => {
                    joins += 1;
                    inner.metrics.cache.joined.inc();
                    let waited =
                        inner.wait_for(kind, &flight, outcome, expired.as_ref(), Some(joined));
                    if let Found::Entry(entry) = waited.await? {
                        return Ok(hit(&entry, inner.clock.monotonic_ms()));
                    }
                }
            }
        };
        let outcome = flight.watch();
        self.cache
            .start(Load {
                kind: Arc::clone(&self.state),
                flights: vec![Arc::clone(&flight)],
                replaced: expired.iter().cloned().collect(),
                future: load::one(load()),
                is_kept,
                is_refresh: false,
            })
            .await;
        match inner
            .wait_for(kind, &flight, outcome, expired.as_ref(), None)
            .await?
        {
            Found::Entry(entry) => Ok(hit(&entry, inner.clock.monotonic_ms())),
            // The request that began a load is not told so.
            Found::TooOld => Err(CacheError::Stopped),
        }
    }

    /// The values of many ids, in their order: what is there from the cache, what is being loaded from
    /// those loads, and the rest from one call of `load`, which brings what it finds of the ids that
    /// it is given. The level on disk is not asked: a batch is for what is cheap one by one.
    pub async fn get_many_or_load<F, E>(
        &self,
        ids: &[Id],
        load: impl Fn(Vec<Id>) -> F,
    ) -> Result<Vec<Option<Hit<V>>>, CacheError>
    where
        F: Future<Output = Result<Vec<(Id, Loaded<V>)>, E>> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let (inner, kind) = (&*self.cache.0, &*self.state);
        let now_ms = inner.clock.monotonic_ms();
        let joined = inner.freshness.now();
        let mut hits: Vec<Option<Hit<V>>> = Vec::with_capacity(ids.len());
        let mut wanted: Vec<(usize, CacheKey, Option<Arc<Entry>>)> = Vec::new();
        let mut refreshed: Vec<(CacheKey, Arc<Entry>)> = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let key = inner.key(kind, id.clone());
            inner.hot.seen(&key, now_ms);
            hits.push(match inner.look(kind, &key, now_ms) {
                Look::Fresh(entry) => {
                    let hit = hit(&entry, now_ms);
                    if self.begins_refresh(&entry, now_ms) {
                        refreshed.push((key, entry));
                    }
                    hit
                }
                Look::Absent => None,
                Look::Expired(Some(entry)) if entry.rests(now_ms) => {
                    inner.metrics.cache.stale_failed.inc();
                    hit(&entry, now_ms)
                }
                Look::Expired(expired) => {
                    wanted.push((at, key, expired));
                    None
                }
            });
        }
        if !refreshed.is_empty() {
            self.refresh(refreshed, |ids| load::many(ids.clone(), load(ids)));
        }
        let mut joins = 0;
        while !wanted.is_empty() {
            let is_kept = joins < JOINS_MAX;
            joins += 1;
            let (mut led, mut replaced, mut waits) = (Vec::new(), Vec::new(), Vec::new());
            for (at, key, expired) in wanted.drain(..) {
                let part = match is_kept {
                    true => inner.enter(kind, &key, now_ms),
                    false => Part::Lead(Flight::alone(key.clone(), inner.freshness.now(), now_ms)),
                };
                let (flight, outcome, since) = match part {
                    Part::Lead(flight) => {
                        led.push(Arc::clone(&flight));
                        replaced.extend(expired.clone());
                        let outcome = flight.watch();
                        (flight, outcome, None)
                    }
                    Part::Join(flight, outcome) => {
                        inner.metrics.cache.joined.inc();
                        (flight, outcome, Some(joined))
                    }
                };
                waits.push((at, key, expired, outcome, flight, since));
            }
            if !led.is_empty() {
                let ids: Vec<Id> = led.iter().map(|flight| flight.key.id.clone()).collect();
                self.cache
                    .start(Load {
                        kind: Arc::clone(&self.state),
                        flights: led,
                        replaced,
                        future: load::many(ids.clone(), load(ids)),
                        is_kept,
                        is_refresh: false,
                    })
                    .await;
            }
            for (at, key, expired, outcome, flight, since) in waits {
                let waited = inner.wait_for(kind, &flight, outcome, expired.as_ref(), since);
                match waited.await? {
                    Found::Entry(entry) => hits[at] = hit(&entry, inner.clock.monotonic_ms()),
                    Found::TooOld => wanted.push((at, key, expired)),
                }
            }
        }
        Ok(hits)
    }

    /// Invalidates one id. To be called after the commit that changed it, and before its answer;
    /// quick, and from any thread.
    pub fn invalidate(&self, id: impl Into<Id>) {
        let inner = &*self.cache.0;
        let key = inner.key(&self.state, id.into());
        // A row of this id may be new. What people invalidate by hand makes none.
        self.state.ceiling.rise(&key.id);
        inner.invalidate_key(&self.state, &key);
    }

    /// For a load that is about to read and may find nothing: the load that gets it is to tell the highest id
    /// that is there, so that ids beyond it need no load any more. For kinds alone whose ids a database hands
    /// out in order, and of which each new row is invalidated. `None` while that is known.
    pub fn asks_for_highest(&self) -> Option<HighestWanted> {
        HighestWanted::of(&self.state)
    }

    /// Invalidates every id of this kind; quick, and from any thread.
    pub fn invalidate_all(&self) {
        self.state.ceiling.forget();
        self.cache.0.freshness.invalidate(&self.state.cleared);
    }

    /// How keys of this kind are loaded ahead of the requests that are expected for them: `warm`
    /// reads the ids by this kind and answers how many of them there are. It must not hold on to the
    /// cache; a second call changes nothing.
    pub fn on_warm(
        &self,
        warm: impl Fn(Kind<V>, Vec<Id>) -> BoxFuture<'static, Result<usize, CacheError>>
        + Send
        + Sync
        + 'static,
    ) {
        let index = self.state.index;
        let warmer: Warmer = Box::new(move |cache, ids| {
            let Some(state) = cache.0.kinds.of(index) else {
                return Box::pin(async { Ok(0) });
            };
            let kind = Kind {
                cache,
                state,
                values: PhantomData,
            };
            warm(kind, ids)
        });
        // What was said first stands.
        let _second = self.state.warmer.set(warmer);
    }

    /// Whether this read is the one that has to refresh a hot entry.
    fn begins_refresh(&self, entry: &Entry, now_ms: u64) -> bool {
        entry.is_hot()
            && now_ms >= entry.times.refresh_ms
            && !entry.rests(now_ms)
            && entry.begin_refresh()
    }

    /// Loads entries anew behind the reads that go on.
    fn refresh(
        &self,
        entries: Vec<(CacheKey, Arc<Entry>)>,
        load: impl FnOnce(Vec<Id>) -> load::Future,
    ) {
        let inner = &*self.cache.0;
        let now_ms = inner.clock.monotonic_ms();
        let (mut flights, mut replaced) = (Vec::new(), Vec::new());
        for (key, entry) in entries {
            match inner.enter(&self.state, &key, now_ms) {
                Part::Lead(flight) => {
                    flights.push(flight);
                    replaced.push(entry);
                }
                Part::Join(..) => entry.end_refresh(),
            }
        }
        if flights.is_empty() {
            return;
        }
        inner.metrics.cache.refreshes.inc();
        let ids = flights.iter().map(|flight| flight.key.id.clone()).collect();
        self.cache.start_behind(Load {
            kind: Arc::clone(&self.state),
            flights,
            replaced,
            future: load(ids),
            is_kept: true,
            is_refresh: true,
        });
    }
}

/// An entry's value for the request that asked; `None` for an entry that says that there is nothing.
fn hit<V: Cached>(entry: &Entry, now_ms: u64) -> Option<Hit<V>> {
    Some(Hit {
        value: entry.value()?,
        age_ms: now_ms.saturating_sub(entry.times.loaded_ms),
        is_stale: !entry.is_fresh(now_ms),
    })
}

#[cfg(test)]
mod tests;
