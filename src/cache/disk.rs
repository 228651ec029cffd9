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
            DiskState::Open => "on",
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

#[cfg(test)]
mod tests {
    use super::super::freshness::Slot;
    use super::*;
    use crate::cache::entry::Held;
    use crate::cache::{Cached, Origin, Ready};
    use crate::clock::{Stopwatch, Timestamp};
    use std::process::Command;

    fn entry(body: &str) -> Entry {
        let times = Times {
            loaded_ms: 1,
            refresh_ms: 2,
            expires_ms: 3,
            stale_until_ms: 4,
            load_ms: 5,
        };
        let ready = Ready::new("text/plain", "\"1\"".to_owned(), body.as_bytes().to_vec());
        let tag = Tag {
            slot: Slot::default(),
            name: "tag".into(),
        };
        let value = Some(Box::new(Held(ready)) as Box<dyn Stored>);
        Entry::new(value, [tag].into(), 0, Moment(7), times, Origin::Loader)
    }

    fn disk(folder: &Path) -> (Arc<Disk>, Clock) {
        let clock = Clock::manual(Timestamp(1_000_000_000));
        let metrics = Metrics::new().expect("unique names");
        let disk = Disk::new(
            folder.to_owned(),
            64 * 1_048_576,
            10_000,
            60,
            clock.clone(),
            metrics,
        );
        (disk, clock)
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let watch = Stopwatch::start();
        while !holds() {
            assert!(watch.elapsed() < Duration::from_secs(60), "never: {what}");
            tokio::task::yield_now().await;
        }
    }

    /// Offers until the level is open and has the entry.
    async fn put(disk: &Arc<Disk>, key: &str, body: &str) {
        disk.offer(key.into(), &entry(body));
        until("it is open", || disk.is_open()).await;
        disk.offer(key.into(), &entry(body));
        disk.settle().await;
    }

    async fn body(disk: &Arc<Disk>, key: &str) -> Option<String> {
        let found = disk.find(&key.as_bytes().to_vec()).await?;
        assert_eq!(
            (found.born, &*found.tags),
            (Moment(7), &["tag".to_owned()][..])
        );
        assert_eq!(found.times.load_ms, 5);
        let ready = Ready::from_disk(&found.value).expect("sound");
        Some(String::from_utf8(ready.body().to_vec()).expect("text"))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn opened_by_the_first_entry_and_empty_at_the_next_start() {
        let root = tempfile::tempdir().expect("folder");
        let folder = root.path().join("cache").join("disk");
        let (first, _) = disk(&folder);
        assert_eq!(body(&first, "key").await, None);
        assert!(!folder.exists(), "nothing to keep, nothing made");
        put(&first, "key", "value").await;
        assert_eq!(body(&first, "key").await.as_deref(), Some("value"));
        put(&first, "key", "newer").await;
        assert_eq!(body(&first, "key").await.as_deref(), Some("newer"));
        first.remove(&b"key".to_vec());
        assert_eq!(body(&first, "key").await, None);
        put(&first, "key", "value").await;
        // As after kill -9: the files are there, and nobody closed them.
        let (second, _) = disk(&folder);
        put(&second, "other", "value").await;
        assert_eq!(body(&second, "key").await, None, "nothing comes back");
        assert_eq!(body(&second, "other").await.as_deref(), Some("value"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_deleted_folder_is_a_miss_and_made_anew_later() {
        let root = tempfile::tempdir().expect("folder");
        let folder = root.path().join("disk");
        let (disk, clock) = disk(&folder);
        put(&disk, "key", "value").await;
        std::fs::remove_dir_all(&folder).expect("deleted");
        disk.check().await;
        assert_eq!(disk.state(), DiskState::Closed);
        assert_eq!(body(&disk, "key").await, None);
        disk.offer(b"key".to_vec(), &entry("value"));
        assert_eq!(disk.state(), DiskState::Closed, "not at once");
        assert!(!folder.exists());
        clock.advance(Duration::from_secs(60));
        put(&disk, "key", "again").await;
        assert_eq!(body(&disk, "key").await.as_deref(), Some("again"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn damaged_files_are_misses_and_never_other_values() {
        use std::os::unix::fs::FileExt;
        let root = tempfile::tempdir().expect("folder");
        let folder = root.path().join("disk");
        let (disk, clock) = disk(&folder);
        let keys: Vec<String> = (0..50).map(|at| format!("key{at}")).collect();
        let value = |key: &str| format!("{key} {}", "x".repeat(5_000));
        for round in ["overwritten", "cut off"] {
            for key in &keys {
                put(&disk, key, &value(key)).await;
            }
            // Whatever is still on its way is found in memory; it is damage of the files that counts.
            disk.settle().await;
            for file in std::fs::read_dir(&folder).expect("folder") {
                let path = file.expect("entry").path();
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .expect("file");
                match round {
                    "overwritten" => {
                        for at in (0..4 * 1_048_576).step_by(1_024) {
                            file.write_all_at(&[0xA5; 512], at).expect("written");
                        }
                    }
                    _ => file.set_len(0).expect("cut off"),
                }
            }
            let mut found = 0;
            for key in &keys {
                if let Some(body) = body(&disk, key).await {
                    assert_eq!(body, value(key), "{round}");
                    found += 1;
                }
            }
            assert!(found < keys.len(), "{round}: {found} were not touched");
            clock.advance(Duration::from_secs(60));
        }
        put(&disk, "key", "again").await;
        assert_eq!(body(&disk, "key").await.as_deref(), Some("again"));
    }

    /// A small file system of its own; `None` where this machine can't.
    struct Mounted(PathBuf);

    impl Mounted {
        fn new(at: &Path) -> Option<Self> {
            std::fs::create_dir_all(at).expect("folder");
            let options = ["-t", "tmpfs", "-o", "size=80m,mode=700", "tmpfs"];
            let mounted = Command::new("mount").args(options).arg(at).output();
            if mounted.is_ok_and(|output| output.status.success()) {
                return Some(Self(at.to_owned()));
            }
            assert_ne!(
                std::env::var("CI").as_deref(),
                Ok("true"),
                "this must run in CI"
            );
            None
        }

        fn remount(&self, options: &str) -> bool {
            let mut mount = Command::new("mount");
            let output = mount
                .arg("-o")
                .arg(format!("remount,{options}"))
                .arg(&self.0)
                .output();
            output.is_ok_and(|output| output.status.success())
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            // What is still open goes with the process.
            let _gone = Command::new("umount").arg("-l").arg(&self.0).output();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_disk_switches_the_level_off_and_space_brings_it_back() {
        let root = tempfile::tempdir().expect("folder");
        let Some(mounted) = Mounted::new(&root.path().join("mount")) else {
            return;
        };
        let (disk, clock) = disk(&mounted.0.join("disk"));
        put(&disk, "key", "value").await;
        let filler = mounted.0.join("filler");
        let file = std::fs::File::create(&filler).expect("file");
        let mut left = vec![1; 1_048_576];
        while !left.is_empty() {
            use std::io::Write;
            if (&file).write_all(&left).is_err() {
                left.truncate(left.len() / 4);
            }
        }
        disk.offer(b"more".to_vec(), &entry(&"x".repeat(500_000)));
        disk.check().await;
        assert_eq!(disk.state(), DiskState::Closed);
        clock.advance(Duration::from_secs(60));
        // It does not even open, and is tried again.
        disk.offer(b"key".to_vec(), &entry("value"));
        until("it was tried", || {
            matches!(&*disk.state.read(), State::Closed { retry_ms } if *retry_ms > clock.monotonic_ms())
        })
        .await;
        // Not removed alone: a process that another test is just starting may hold it open, and with
        // it the space.
        file.set_len(0).expect("space");
        drop(file);
        std::fs::remove_file(&filler).expect("removed");
        clock.advance(Duration::from_secs(60));
        put(&disk, "key", "again").await;
        assert_eq!(body(&disk, "key").await.as_deref(), Some("again"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_read_only_file_system_leaves_it_closed() {
        let root = tempfile::tempdir().expect("folder");
        let Some(mounted) = Mounted::new(&root.path().join("mount")) else {
            return;
        };
        let (disk, clock) = disk(&mounted.0.join("disk"));
        assert!(mounted.remount("ro"), "read-only");
        disk.offer(b"key".to_vec(), &entry("value"));
        until(
            "it was tried",
            || matches!(&*disk.state.read(), State::Closed { retry_ms } if *retry_ms > 0),
        )
        .await;
        assert_eq!(body(&disk, "key").await, None);
        assert!(mounted.remount("rw"), "writable again");
        clock.advance(Duration::from_secs(60));
        put(&disk, "key", "value").await;
        assert_eq!(body(&disk, "key").await.as_deref(), Some("value"));
    }
}
