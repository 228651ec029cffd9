//! The level on disk: foyer's block engine, guarded.
//!
//! It keeps what was evicted from memory and took long enough to load that reading it from a file is
//! cheaper. Invariants: it begins empty with each process, so nothing that an earlier one wrote can
//! come back; it is opened when there is something to keep, never at the start; an error of it is a
//! miss, and after several in a row, or once its folder is gone or can't be written, it is given up,
//! told in one log line, and opened anew after a while. Nothing here decides whether an entry is
//! still valid: the cache does, by the moment at which its load began.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy, Load, PsyncIoEngineConfig, RecoverMode,
};
use parking_lot::RwLock;

use super::entry::{Entry, Stored, Tag, Times, put_slice, take_slice, take_u64};
use super::freshness::Moment;
use crate::clock::Clock;
use crate::config::ms;
use crate::monitor::Metrics;

/// foyer writes and drops whole blocks.
const BLOCK_BYTES: usize = 4 * 1_048_576;
/// What waits to be written; beyond it entries are not kept.
const QUEUE_BYTES: usize = 4 * 1_048_576;
/// Buffers of the thread that writes.
const BUFFER_BYTES: usize = 2 * BLOCK_BYTES;
/// Errors in a row after which the level is given up.
const STRIKES: u32 = 3;
/// Key of the entry that is written to see whether writing still works; no kind has an empty name.
const CANARY: &[u8] = b"";

type Engine = HybridCache<Vec<u8>, Vec<u8>>;

enum State {
    Closed { retry_ms: u64 },
    Opening,
    Open(Arc<Open>),
}

struct Open {
    engine: Engine,
    /// Tells whether the folder is still the one that was opened.
    inode: u64,
}

/// How the level is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// The settings want none.
    Off,
    /// Nothing was kept yet, or it failed and is tried again later.
    Closed,
    /// In use.
    Open,
}

impl DiskState {
    /// The word that stands for it in JSON.
    pub fn word(self) -> &'static str {
        match self {
            DiskState::Off => "off",
            DiskState::Closed => "closed",
            DiskState::Open => "open",
        }
    }
}

/// See the module.
pub(super) struct Disk {
    folder: PathBuf,
    bytes: usize,
    timeout: Duration,
    retry_ms: u64,
    clock: Clock,
    metrics: Metrics,
    state: RwLock<State>,
    strikes: AtomicU32,
    written: AtomicU64,
    is_dirty: AtomicBool,
}

/// An entry as it lies on disk.
pub(super) struct OnDisk {
    pub(super) born: Moment,
    pub(super) times: Times,
    pub(super) tags: Vec<String>,
    pub(super) value: Vec<u8>,
}

impl OnDisk {
    fn encode(entry: &Entry, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(value.len() + 128);
        let times = &entry.times;
        for number in [
            entry.born.0,
            times.loaded_ms,
            times.refresh_ms,
            times.expires_ms,
            times.stale_until_ms,
            times.load_ms,
            entry.tags.len() as u64,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for Tag { name, .. } in &entry.tags {
            put_slice(&mut out, name.as_bytes());
        }
        put_slice(&mut out, value);
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let born = Moment(take_u64(rest)?);
        let times = Times {
            loaded_ms: take_u64(rest)?,
            refresh_ms: take_u64(rest)?,
            expires_ms: take_u64(rest)?,
            stale_until_ms: take_u64(rest)?,
            load_ms: take_u64(rest)?,
        };
        let mut tags = Vec::new();
        for _ in 0..take_u64(rest)? {
            tags.push(String::from_utf8(take_slice(rest)?.to_vec()).ok()?);
        }
        let value = take_slice(rest)?.to_vec();
        rest.is_empty().then_some(Self {
            born,
            times,
            tags,
            value,
        })
    }
}

impl Disk {
    /// A level of `bytes` in `folder`, which is its own; 0 for none.
    pub(super) fn new(
        folder: PathBuf,
        bytes: usize,
        timeout_ms: u64,
        retry_seconds: u64,
        clock: Clock,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            folder,
            bytes,
            timeout: ms(timeout_ms),
            retry_ms: retry_seconds * 1_000,
            clock,
            metrics,
            state: RwLock::new(State::Closed { retry_ms: 0 }),
            strikes: AtomicU32::new(0),
            written: AtomicU64::new(0),
            is_dirty: AtomicBool::new(false),
        })
    }

    pub(super) fn state(&self) -> DiskState {
        match &*self.state.read() {
            _ if self.bytes == 0 => DiskState::Off,
            State::Closed { .. } | State::Opening => DiskState::Closed,
            State::Open(_) => DiskState::Open,
        }
    }

    /// Bytes written since the start.
    pub(super) fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn open(&self) -> Option<Arc<Open>> {
        match &*self.state.read() {
            State::Open(open) => Some(Arc::clone(open)),
            State::Closed { .. } | State::Opening => None,
        }
    }

    /// Whether a look-up has any sense.
    pub(super) fn is_open(&self) -> bool {
        self.bytes > 0 && self.open().is_some()
    }

    /// Keeps an entry, if it can be done without waiting. Opens the level where it is not open yet;
    /// what comes until then is not kept.
    pub(super) fn offer(self: &Arc<Self>, key: Vec<u8>, entry: &Entry) {
        if self.bytes == 0 {
            return;
        }
        let Some(open) = self.open() else {
            self.begin_opening();
            return;
        };
        let Some(value) = entry.value.as_deref().and_then(Stored::to_disk) else {
            return;
        };
        let bytes = OnDisk::encode(entry, &value);
        self.written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.is_dirty.store(true, Ordering::Relaxed);
        // Without an entry it was not admitted, which costs a load.
        let _kept = open.engine.storage_writer(key).force().insert(bytes);
    }

    /// Looks for an entry; any error is a miss.
    pub(super) async fn find(self: &Arc<Self>, key: &Vec<u8>) -> Option<OnDisk> {
        let open = self.open()?;
        let layer = &self.metrics.cache.disk;
        let found = tokio::time::timeout(self.timeout, open.engine.storage().load(key)).await;
        let bytes = match found {
            Ok(Ok(Load::Entry { value, .. })) => value,
            Ok(Ok(Load::Piece { piece, .. })) => piece.value().clone(),
            Ok(Ok(Load::Miss | Load::Throttled)) => {
                layer.misses.inc();
                return None;
            }
            Ok(Err(error)) => {
                self.strike(&open, &error);
                return None;
            }
            Err(_) => {
                self.strike(&open, &"it did not answer in time");
                return None;
            }
        };
        self.strikes.store(0, Ordering::Relaxed);
        let read = OnDisk::decode(&bytes);
        match read {
            Some(_) => layer.hits.inc(),
            None => layer.misses.inc(),
        }
        read
    }

    /// Drops an entry. That it is not served any more does not depend on it.
    pub(super) fn remove(&self, key: &Vec<u8>) {
        if let Some(open) = self.open() {
            open.engine.storage().delete(key);
        }
    }

    fn strike(self: &Arc<Self>, open: &Arc<Open>, error: &dyn std::fmt::Display) {
        self.metrics.cache.disk.misses.inc();
        self.metrics.cache.disk.errors.inc();
        if self.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES {
            self.give_up(open, error);
        }
    }

    /// Closes the level until it is worth another try.
    fn give_up(self: &Arc<Self>, open: &Arc<Open>, reason: &dyn std::fmt::Display) {
        let mut state = self.state.write();
        if !matches!(&*state, State::Open(now) if Arc::ptr_eq(now, open)) {
            return;
        }
        *state = State::Closed {
            retry_ms: self.clock.monotonic_ms() + self.retry_ms,
        };
        drop(state);
        tracing::warn!(
            %reason, folder = %self.folder.display(), retry_seconds = self.retry_ms / 1_000,
            "the cache on disk is given up for now; what it held is loaded again"
        );
    }

    fn begin_opening(self: &Arc<Self>) {
        let now_ms = self.clock.monotonic_ms();
        let may =
            |state: &State| matches!(state, State::Closed { retry_ms } if *retry_ms <= now_ms);
        if !may(&self.state.read()) {
            return;
        }
        // On a thread that is not async nothing can be opened; the next offer may come from one.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut state = self.state.write();
        if !may(&state) {
            return;
        }
        *state = State::Opening;
        drop(state);
        let disk = Arc::clone(self);
        runtime.spawn(async move { disk.finish_opening().await });
    }

    async fn finish_opening(self: Arc<Self>) {
        let opened = match tokio::time::timeout(Duration::from_secs(10), self.build()).await {
            Ok(opened) => opened,
            Err(_) => Err("it could not be opened in time".to_owned()),
        };
        let mut state = self.state.write();
        match opened {
            Ok(open) => {
                self.strikes.store(0, Ordering::Relaxed);
                *state = State::Open(Arc::new(open));
            }
            Err(reason) => {
                *state = State::Closed {
                    retry_ms: self.clock.monotonic_ms() + self.retry_ms,
                };
                drop(state);
                self.metrics.cache.disk.errors.inc();
                tracing::warn!(
                    reason, folder = %self.folder.display(), retry_seconds = self.retry_ms / 1_000,
                    "there is no cache on disk for now"
                );
            }
        }
    }

    async fn build(&self) -> Result<Open, String> {
        let (folder, bytes) = (self.folder.clone(), self.bytes);
        let device = tokio::task::spawn_blocking(move || -> Result<_, String> {
            empty(&folder).map_err(|error| error.to_string())?;
            probe(&folder).map_err(|error| error.to_string())?;
            FsDeviceBuilder::new(&folder)
                .with_capacity(bytes)
                .build()
                .map_err(|error| error.to_string())
        })
        .await
        .map_err(|error| error.to_string())??;
        let engine: Engine = HybridCacheBuilder::new()
            .with_name("onrush")
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .with_flush_on_close(false)
            // Its own memory level stays empty: entries are written as what is not to be kept there.
            .memory(1)
            .with_shards(1)
            .storage()
            .with_io_engine_config(PsyncIoEngineConfig::new())
            .with_engine_config(
                BlockEngineConfig::new(device)
                    .with_block_size(BLOCK_BYTES)
                    .with_buffer_pool_size(BUFFER_BYTES)
                    .with_submit_queue_size_threshold(QUEUE_BYTES)
                    .with_indexer_shards(4),
            )
            .with_recover_mode(RecoverMode::None)
            .build()
            .await
            .map_err(|error| error.to_string())?;
        let inode = inode_of(&self.folder).ok_or("its folder is gone")?;
        Ok(Open { engine, inode })
    }

    /// Looks whether the folder is there and can be written, and whether what is written reads back.
    /// Does nothing while nothing was written since the last time.
    pub(super) async fn check(self: &Arc<Self>) {
        let Some(open) = self.open() else {
            return;
        };
        if inode_of(&self.folder) != Some(open.inode) {
            self.metrics.cache.disk.errors.inc();
            self.give_up(&open, &"its folder is gone");
            return;
        }
        if !self.is_dirty.swap(false, Ordering::Relaxed) {
            return;
        }
        let limit = self.timeout.max(Duration::from_secs(2));
        if let Err(reason) = tokio::time::timeout(limit, self.write_and_read(&open))
            .await
            .unwrap_or_else(|_| Err("it did not answer in time".to_owned()))
        {
            self.metrics.cache.disk.errors.inc();
            self.give_up(&open, &reason);
        }
    }

    async fn write_and_read(&self, open: &Open) -> Result<(), String> {
        let folder = self.folder.clone();
        tokio::task::spawn_blocking(move || probe(&folder))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let (key, stamp) = (CANARY.to_vec(), self.bytes_written().to_le_bytes().to_vec());
        let storage = open.engine.storage();
        let writer = open.engine.storage_writer(key.clone()).force();
        drop(writer.insert(stamp.clone()));
        storage.wait().await;
        let read = match storage
            .load(&key)
            .await
            .map_err(|error| error.to_string())?
        {
            Load::Entry { value, .. } => value == stamp,
            Load::Piece { piece, .. } => *piece.value() == stamp,
            // The queue was full, or the block was dropped already: no news.
            Load::Throttled => true,
            Load::Miss => false,
        };
        match read {
            true => Ok(()),
            false => Err("what is written does not read back".to_owned()),
        }
    }

    /// Waits until what was offered is written.
    #[cfg(test)]
    pub(super) async fn settle(&self) {
        if let Some(open) = self.open() {
            open.engine.storage().wait().await;
        }
    }
}

/// Makes `folder` and throws away what is in it: it was written by a process that is gone.
fn empty(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// Writes a file and removes it: tells of a full or read-only file system.
fn probe(folder: &Path) -> std::io::Result<()> {
    let path = folder.join("probe");
    let written = std::fs::write(&path, [1; 4_096]);
    // What the writing says counts for more than what the removal of nothing says.
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

fn inode_of(folder: &Path) -> Option<u64> {
    std::fs::metadata(folder).ok().map(|meta| meta.ino())
}
