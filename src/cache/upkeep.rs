//! What the cache does by itself, once a second, and what it tells about itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::entry::Entry;
use super::hot::{self, Hot};
use super::key::{CacheKey, Id, OwnHash};
use super::{Cache, DiskState, Inner, KindState, disk_key, take_out};

/// How often hot keys are looked for and gauges set.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at the disk.
const DISK_TICKS: u64 = 10;
/// Ticks between two writings of the list of hot keys.
const LIST_TICKS: u64 = 60;
/// Keys that are warmed up in one load.
const WARM_BATCH: usize = 200;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// In memory, and may be pushed out.
    Memory,
    /// In memory as a hot key's, and may not.
    Pinned,
    /// Among what is known not to exist.
    Absent,
    /// On disk.
    Disk,
}

impl Level {
    /// The word that stands for it in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Level::Memory => "memory",
            Level::Pinned => "pinned",
            Level::Absent => "absent",
            Level::Disk => "disk",
        }
    }
}

/// An entry, for people.
#[derive(Clone, Debug)]
pub struct EntryView {
    /// `kind:id`.
    pub key: String,
    /// Where it is.
    pub level: Level,
    /// Where it came from.
    pub origin: super::Origin,
    /// Time since its load began.
    pub age_ms: u64,
    /// Time until its life is over; negative when it is.
    pub ttl_left_ms: i64,
    /// What its load took.
    pub load_ms: u64,
    /// Memory that it takes; on disk, the size of its value.
    pub bytes: usize,
    /// Whether it is one of the hot keys.
    pub is_hot: bool,
    /// What it is invalidated with besides its key.
    pub tags: Vec<String>,
}

/// A key that is read often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotKey {
    /// `kind:id`.
    pub key: String,
    /// Reads within the window, estimated from a sample.
    pub reads: u64,
    /// Whether its value is kept out of the way of eviction.
    pub is_pinned: bool,
}

/// What came of a warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Keys that are in the cache now.
    pub warmed: usize,
    /// Keys of which nothing is known, or whose load failed.
    pub failed: usize,
    /// Texts that are no key of a kind that can be warmed up.
    pub unknown: usize,
}

/// The cache at a glance.
#[derive(Clone, Debug)]
pub struct CacheStats {
    /// Whether the settings want anything kept.
    pub is_on: bool,
    /// Values in memory.
    pub memory_entries: usize,
    /// How many there may be.
    pub memory_entries_max: usize,
    /// Their size.
    pub memory_bytes: usize,
    /// What they may take.
    pub memory_bytes_max: usize,
    /// Keys known not to exist.
    pub absent_entries: usize,
    /// How many there may be.
    pub absent_entries_max: usize,
    /// Their size.
    pub absent_bytes: usize,
    /// Values of hot keys that can't be pushed out.
    pub pinned_entries: usize,
    /// How the level on disk is.
    pub disk: DiskState,
    /// Bytes written to it since the start.
    pub disk_bytes_written: u64,
    /// What it may take.
    pub disk_bytes_max: usize,
    /// Reads answered from memory since the start.
    pub memory_hits: u64,
    /// Reads that were not.
    pub memory_misses: u64,
    /// Reads answered by what is known not to exist.
    pub absent_hits: u64,
    /// Reads answered from disk.
    pub disk_hits: u64,
    /// Values that gave way to others.
    pub evictions: u64,
    /// Loads that brought something.
    pub loads: u64,
    /// Loads that failed, panicked, or took too long.
    pub loads_failed: u64,
    /// Loads that were refused.
    pub loads_refused: u64,
    /// Reads that got an expired value.
    pub stale_served: u64,
    /// Reads that waited for another's load.
    pub joined: u64,
    /// Keys that are being loaded.
    pub loading: usize,
    /// Reads that wait for a load.
    pub waiting: usize,
    /// The kinds that there are.
    pub kinds: Vec<&'static str>,
}

impl Cache {
    /// Keeps hot keys in view, gauges right and the disk honest, until told to stop. Begins with
    /// loading what was hot when the last process ended.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        if !self.0.settings.enabled {
            return;
        }
        let warming = self.clone();
        // No request waits for it, and a stop does not wait either.
        let warming = tokio::spawn(async move { warming.preload().await });
        let mut ticks = 0_u64;
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep(TICK) => {}
            }
            ticks += 1;
            self.tick();
            if ticks.is_multiple_of(DISK_TICKS) {
                self.0.disk.check().await;
            }
            if ticks.is_multiple_of(LIST_TICKS) {
                self.save_hot_keys().await;
            }
        }
        warming.abort();
        self.save_hot_keys().await;
    }

    /// Loads what was hot when the last process ended.
    pub async fn preload(&self) {
        let (path, most) = (self.0.list.clone(), self.0.settings.hot_keys_max);
        let read = tokio::task::spawn_blocking(move || hot::read_list(&path, most)).await;
        let keys = read.unwrap_or_default();
        if keys.is_empty() {
            return;
        }
        let warmed = self.warm(&keys).await;
        tracing::info!(
            warmed = warmed.warmed,
            failed = warmed.failed,
            unknown = warmed.unknown,
            "the cache holds again what was hot"
        );
    }

    /// The hot keys as text.
    pub fn hot_key_names(&self) -> Vec<String> {
        self.hot_keys().into_iter().map(|hot| hot.key).collect()
    }

    /// Loads keys, given as text, by what their kinds said of it.
    pub async fn warm(&self, keys: &[impl AsRef<str>]) -> Warmed {
        let mut warmed = Warmed::default();
        let mut by_kind: BTreeMap<u16, (Arc<KindState>, Vec<Id>)> = BTreeMap::new();
        for (at, text) in keys.iter().enumerate() {
            match self.0.parse_key(text.as_ref()) {
                Some((kind, key))
                    if kind.warmer.get().is_some() && at < self.0.settings.warm_keys_max =>
                {
                    let (_, ids) = by_kind
                        .entry(kind.index.0)
                        .or_insert_with(|| (kind, Vec::new()));
                    ids.push(key.id);
                }
                _ => warmed.unknown += 1,
            }
        }
        for (kind, ids) in by_kind.into_values() {
            let Some(warm) = kind.warmer.get() else {
                continue;
            };
            for ids in ids.chunks(WARM_BATCH) {
                let found = match warm(self.clone(), ids.to_vec()).await {
                    Ok(found) => found.min(ids.len()),
                    Err(error) => {
                        tracing::warn!(%error, kind = kind.rules.name, "keys could not be warmed up");
                        0
                    }
                };
                warmed.warmed += found;
                warmed.failed += ids.len() - found;
            }
        }
        warmed
    }

    /// Writes down which keys are hot, for the next start. When none is, what is there stays.
    pub(super) async fn save_hot_keys(&self) {
        let keys = self.hot_key_names();
        if keys.is_empty() {
            return;
        }
        let path = self.0.list.clone();
        match tokio::task::spawn_blocking(move || hot::write_list(&path, &keys)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the list of hot keys could not be written");
            }
            Err(error) => tracing::error!(%error, "the list of hot keys could not be written"),
        }
    }

    /// One turn of [`Cache::run`], without the disk.
    pub(super) fn tick(&self) {
        let inner = &*self.0;
        inner.pin_hot();
        let figures = &inner.metrics.cache;
        let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        figures.memory.items.set(whole(inner.memory.entries()));
        figures.memory.bytes.set(whole(inner.memory.usage()));
        figures.absent.items.set(whole(inner.absent.entries()));
        figures.absent.bytes.set(whole(inner.absent.usage()));
    }

    /// Takes out what can't be served any more; answers how many entries that were.
    pub fn sweep(&self) -> usize {
        let inner = &*self.0;
        let now_ms = inner.clock.monotonic_ms();
        let is_dead = |key: &CacheKey, entry: &Entry, is_over: bool| {
            is_over
                || inner
                    .kinds
                    .of(key.kind)
                    .is_none_or(|kind| !inner.is_valid(&kind, key, entry))
        };
        take_out(&inner.absent, |key, entry| {
            is_dead(key, entry, !entry.is_fresh(now_ms))
        }) + take_out(&inner.memory, |key, entry| {
            is_dead(key, entry, !entry.is_usable(now_ms))
        })
    }

    /// The cache at a glance.
    pub fn stats(&self) -> CacheStats {
        let inner = &*self.0;
        let figures = &inner.metrics.cache;
        CacheStats {
            is_on: inner.settings.enabled,
            memory_entries: inner.memory.entries(),
            memory_entries_max: inner.settings.memory_entries_max,
            memory_bytes: inner.memory.usage(),
            memory_bytes_max: inner.settings.memory_bytes,
            absent_entries: inner.absent.entries(),
            absent_entries_max: inner.settings.absent_entries_max,
            absent_bytes: inner.absent.usage(),
            pinned_entries: inner.pins.read().values().flatten().count(),
            disk: inner.disk.state(),
            disk_bytes_written: inner.disk.bytes_written(),
            disk_bytes_max: inner.settings.disk_bytes,
            memory_hits: figures.memory.hits.get(),
            memory_misses: figures.memory.misses.get(),
            absent_hits: figures.absent.hits.get(),
            disk_hits: figures.disk.hits.get(),
            evictions: figures.memory.evictions.get(),
            loads: figures.loads_ok.get(),
            loads_failed: figures.loads_failed.get()
                + figures.loads_panicked.get()
                + figures.loads_timed_out.get(),
            loads_refused: figures.loads_refused.get(),
            stale_served: figures.stale_failed.get() + figures.stale_slow.get(),
            joined: figures.joined.get(),
            loading: inner.flights.len(),
            waiting: inner.flights.waiting(),
            kinds: inner
                .kinds
                .0
                .read()
                .iter()
                .map(|kind| kind.rules.name)
                .collect(),
        }
    }

    /// The hot keys, the most read first.
    pub fn hot_keys(&self) -> Vec<HotKey> {
        let inner = &*self.0;
        let top = inner.top();
        let pins = inner.pins.read();
        top.into_iter()
            .map(|Hot { key, reads }| HotKey {
                is_pinned: pins.get(&key).is_some_and(Option::is_some),
                key: inner.kinds.text(&key),
                reads,
            })
            .collect()
    }

    /// The entry of a key, given as text, in the first level that has one.
    pub async fn entry(&self, key: &str) -> Option<EntryView> {
        let inner = &*self.0;
        let (kind, key) = inner.parse_key(key)?;
        let now_ms = inner.clock.monotonic_ms();
        let valid = |entry: &Arc<Entry>| inner.is_valid(&kind, &key, entry);
        let pinned = inner.pins.read().get(&key).cloned().flatten();
        if let Some(entry) = pinned.filter(valid) {
            return Some(inner.view(&key, &entry, Level::Pinned, now_ms));
        }
        for (level, entries) in [
            (Level::Memory, &inner.memory),
            (Level::Absent, &inner.absent),
        ] {
            if let Some(record) = entries.get(&key)
                && valid(record.value())
            {
                return Some(inner.view(&key, record.value(), level, now_ms));
            }
        }
        if !kind.rules.on_disk || !inner.disk.is_open() {
            return None;
        }
        let on_disk = inner.disk.find(&disk_key(&kind, &key)).await?;
        let is_cleared = kind.cleared_on_disk.is_after(on_disk.born);
        let bytes = on_disk.value.len();
        let entry = inner.entry_of(
            &key,
            None,
            on_disk.tags,
            on_disk.born,
            on_disk.times,
            super::Origin::Disk,
        );
        (!is_cleared && valid(&entry)).then(|| EntryView {
            bytes,
            ..inner.view(&key, &entry, Level::Disk, now_ms)
        })
    }

    /// Invalidates a key, given as text; `false` when that is no key of a known kind.
    pub fn invalidate_text(&self, key: &str) -> bool {
        let Some((kind, key)) = self.0.parse_key(key) else {
            return false;
        };
        self.0.invalidate_key(&kind, &key);
        true
    }
}

impl Inner {
    fn top(&self) -> Vec<Hot> {
        let settings = &self.settings;
        self.hot.top(
            self.clock.monotonic_ms(),
            settings.hot_reads_min,
            settings.hot_keys_max,
        )
    }

    /// Keeps the values of the keys that are hot now, and no others, out of the way of eviction.
    fn pin_hot(&self) {
        let top = self.top();
        if top.is_empty() && self.pins.read().is_empty() {
            return;
        }
        let _pinning = self.pinning.lock();
        let mut bytes = 0;
        let mut pinned: HashMap<CacheKey, Option<Arc<Entry>>, OwnHash> = HashMap::default();
        for Hot { key, .. } in top {
            let in_memory = || {
                self.memory
                    .get(&key)
                    .map(|record| Arc::clone(record.value()))
            };
            let before = self.pins.read().get(&key).cloned().flatten();
            let Some(kind) = self.kinds.of(key.kind) else {
                continue;
            };
            let entry = in_memory()
                .or(before)
                .filter(|entry| self.is_valid(&kind, &key, entry));
            bytes += entry.as_ref().map_or(0, |entry| entry.bytes);
            if bytes > self.settings.hot_bytes_max {
                break;
            }
            pinned.insert(key, entry);
        }
        for entry in pinned.values().flatten() {
            entry.set_hot(true);
        }
        let before = std::mem::replace(&mut *self.pins.write(), pinned);
        let pins = self.pins.read();
        for (key, entry) in before {
            if let Some(entry) = entry
                && !pins.contains_key(&key)
            {
                entry.set_hot(false);
            }
        }
    }

    fn view(&self, key: &CacheKey, entry: &Entry, level: Level, now_ms: u64) -> EntryView {
        let whole = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        EntryView {
            key: self.kinds.text(key),
            level,
            origin: entry.origin,
            age_ms: now_ms.saturating_sub(entry.times.loaded_ms),
            ttl_left_ms: whole(entry.times.expires_ms) - whole(now_ms),
            load_ms: entry.times.load_ms,
            bytes: entry.bytes,
            is_hot: entry.is_hot(),
            tags: entry.tags.iter().map(|tag| tag.name.to_string()).collect(),
        }
    }
}
