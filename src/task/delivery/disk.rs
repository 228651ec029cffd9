//! The part of the delivery index that does not fit into memory: sled, guarded.
//!
//! Invariants: nothing here is the record of anything; sled, and whatever else touches the folder, runs
//! on a thread of its own, and each call has a time limit, so that a panic, a hang or an error of it
//! costs the folder and nothing else: it is given up, and whoever uses it fills a new one from the
//! rows. Threads that hang are left to themselves, and there are only so many of them. Nothing is
//! synced before the orderly end; a folder that had none is not used again. Keys are big-endian, so
//! that their order is the order of delivery.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::task::TaskId;

/// Layout of the folder; another one is not read.
const FORMAT: &[u8] = b"1";
/// Page cache of sled, in bytes on disk; in memory it takes up to four times that.
const CACHE_BYTES: u64 = 2 * 1_048_576;
/// Entries after which what was written is flushed: sled keeps in memory what is not (measured with
/// 200,000 entries: 290 MB without any flush).
const FLUSH_ENTRIES: usize = 5_000;

/// Between two tries to open a folder that another has locked.
const LOCKED_PAUSE: Duration = Duration::from_millis(5);

/// Calls that may wait. One that waits for its answer waits for those before it as well.
const CALLS_MAX: usize = 8;
/// Threads at once, those that hang included; beyond that the disk counts as hung at once.
pub(super) const THREADS_MAX: usize = 6;

/// Order within a list: 255 − priority (0 for lists by time alone), time, id.
pub(super) type EntryKey = [u8; 25];

/// Which of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    /// By queue, then [`EntryKey`].
    Ready,
    /// By [`EntryKey`] alone.
    Scheduled,
}

/// A key with its queue and priority.
pub(super) type Item = (EntryKey, u8, Box<str>);

/// Why the folder can't be used (any longer).
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// sled said so.
    #[error("{0}")]
    Sled(#[from] sled::Error),
    /// Its thread is gone.
    #[error("its thread ended in a panic")]
    Panicked,
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Hung,
    /// What it holds makes no sense.
    #[error("what it holds makes no sense")]
    Nonsense,
    /// The folder can't be made, or is gone.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// What an orderly end leaves for the next start.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Rest {
    /// What the rows know this index by.
    #[serde(default)]
    pub(super) mark: String,
    /// Rows up to this id have been seen.
    pub(super) seen: Option<TaskId>,
    /// Entries on disk, by queue.
    pub(super) ready: HashMap<String, u64>,
    /// Entries on disk that wait for their time.
    pub(super) scheduled: u64,
    /// Leases of outside workers: id, attempt, queue, end of the lease as the row says.
    pub(super) leases: Vec<(TaskId, u32, String, i64)>,
}

/// How long to wait for the disk, and how many threads do.
#[derive(Clone)]
pub(super) struct Guard {
    timeout: Duration,
    threads: Arc<AtomicUsize>,
}

/// One of the threads that there may be at once.
struct ThreadSlot(Arc<AtomicUsize>);

impl Drop for ThreadSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Guard {
    /// With this time limit for each call.
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            threads: Arc::default(),
        }
    }

    /// Threads that have not come back.
    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        self.threads.load(Ordering::Acquire)
    }

    /// Starts a thread, unless too many of its kind have not come back.
    fn spawn(&self, work: impl FnOnce() + Send + 'static) -> Result<(), DiskError> {
        let slot = ThreadSlot(Arc::clone(&self.threads));
        if self.threads.fetch_add(1, Ordering::AcqRel) >= THREADS_MAX {
            return Err(DiskError::Hung); // dropping the slot counts back
        }
        std::thread::Builder::new()
            .name("onrush-queue".to_owned())
            .spawn(move || {
                let _slot = slot;
                work();
            })?;
        Ok(())
    }

    /// Runs something that may hang, and does not wait for ever.
    pub(super) fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, DiskError> {
        let (done, result) = sync_channel(1);
        // Whoever asked may have given up.
        self.spawn(move || drop(done.send(Ok(work()))))?;
        answer(&result, self.timeout)
    }
}

/// Entries by queue, and those that wait for their time.
type Counts = (HashMap<String, u64>, u64);

enum Call {
    Put(Tree, Vec<Item>),
    Take(
        Tree,
        Box<str>,
        usize,
        SyncSender<Result<Vec<Item>, DiskError>>,
    ),
    /// Takes these entries away; answers the queues of those that were there.
    Remove(
        Tree,
        Vec<Item>,
        SyncSender<Result<Vec<Box<str>>, DiskError>>,
    ),
    Check(SyncSender<Result<u64, DiskError>>),
    Count(SyncSender<Result<Counts, DiskError>>),
    Close(Box<Rest>, SyncSender<Result<(), DiskError>>),
}

/// An open folder.
pub(super) struct Disk {
    calls: SyncSender<Call>,
    /// Calls that its thread has done. As long as their number grows it does not hang, however long
    /// the one that waits has to wait behind the others.
    done: Arc<AtomicU64>,
    /// Bytes that it took when it was opened.
    size: u64,
    timeout: Duration,
}

/// What a folder was found to be.
struct Opened {
    rest: Option<Rest>,
    size: u64,
}

impl Disk {
    /// Opens what is in `folder`, if its last user ended in order; answers what that one left.
    pub(super) fn reopen(folder: &Path, guard: &Guard) -> Result<(Self, Rest), DiskError> {
        let folder = folder.to_owned();
        let (disk, rest) = Self::open(guard, move || {
            let [only] = inside(&folder)
                .try_into()
                .map_err(|_| DiskError::Nonsense)?;
            Ok((only, Vec::new()))
        })?;
        match rest {
            Some(rest) => Ok((disk, rest)),
            None => Err(DiskError::Nonsense),
        }
    }

    /// Opens an empty one in `folder` and deletes what else is there. Each gets a name of its own: a
    /// sled that was given up may still be at work on the old one.
    pub(super) fn anew(folder: &Path, guard: &Guard) -> Result<Self, DiskError> {
        let folder = folder.to_owned();
        let (disk, _) = Self::open(guard, move || {
            let old = inside(&folder);
            std::fs::create_dir_all(&folder)?;
            let name = format!("{:032x}", rand::random::<u128>());
            Ok((folder.join(name), old))
        })?;
        Ok(disk)
    }

    /// Opens the folder that `choose` names, and deletes those that it names as old.
    fn open(
        guard: &Guard,
        choose: impl FnOnce() -> Result<(PathBuf, Vec<PathBuf>), DiskError> + Send + 'static,
    ) -> Result<(Self, Option<Rest>), DiskError> {
        let (calls, waiting) = sync_channel(CALLS_MAX);
        let (ready, is_ready) = sync_channel(1);
        let done = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&done);
        let patience = guard.timeout / 2;
        guard.spawn(move || match choose() {
            Ok((folder, old)) => serve(&folder, &old, patience, (&ready, &waiting), &counted),
            Err(error) => drop(ready.send(Err(error))), // nobody may wait any more
        })?;
        let opened: Opened = answer(&is_ready, guard.timeout)?;
        let disk = Self {
            calls,
            done,
            size: opened.size,
            timeout: guard.timeout,
        };
        Ok((disk, opened.rest))
    }

    /// Bytes that it took when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Adds entries. Their failure shows with the next call that is answered.
    pub(super) fn put(&self, tree: Tree, items: Vec<Item>) -> Result<(), DiskError> {
        self.send(Call::Put(tree, items))
    }

    /// Takes the first entries away, of one queue or of the scheduled.
    pub(super) fn take(
        &self,
        tree: Tree,
        queue: &str,
        most: usize,
    ) -> Result<Vec<Item>, DiskError> {
        let (reply, taken) = sync_channel(1);
        self.send(Call::Take(tree, queue.into(), most, reply))?;
        self.answer(&taken, self.timeout)
    }

    /// Takes these entries away; answers the queues of those that were there.
    pub(super) fn remove(&self, tree: Tree, items: Vec<Item>) -> Result<Vec<Box<str>>, DiskError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, removed) = sync_channel(1);
        self.send(Call::Remove(tree, items, reply))?;
        self.answer(&removed, self.timeout)
    }

    /// Reads every entry, and holds their number against what was counted at the orderly end.
    pub(super) fn verify(&self, rest: &Rest) -> Result<(), DiskError> {
        let entries = rest.scheduled + rest.ready.values().sum::<u64>();
        let (reply, counted) = sync_channel(1);
        self.send(Call::Count(reply))?;
        let more = u32::try_from(entries / 200_000).unwrap_or(u32::MAX);
        let (ready, scheduled) = self.answer(&counted, self.timeout.saturating_mul(1 + more))?;
        if scheduled == rest.scheduled && ready == rest.ready {
            Ok(())
        } else {
            Err(DiskError::Nonsense)
        }
    }

    /// Whether sled answers and the folder is where it was; the bytes that it takes.
    pub(super) fn check(&self) -> Result<u64, DiskError> {
        let (reply, checked) = sync_channel(1);
        self.send(Call::Check(reply))?;
        self.answer(&checked, self.timeout)
    }

    /// Syncs and closes, so that the next start need not look through the rows.
    pub(super) fn close(self, rest: Rest) -> Result<(), DiskError> {
        let (reply, closed) = sync_channel(1);
        self.send(Call::Close(Box::new(rest), reply))?;
        self.answer(&closed, self.timeout)
    }

    /// Waits for room in the channel as long as for an answer.
    fn send(&self, call: Call) -> Result<(), DiskError> {
        use std::sync::mpsc::TrySendError;
        let (mut call, pause) = (call, Duration::from_millis(1));
        let mut done = self.done.load(Ordering::Acquire);
        let mut waited = Duration::ZERO;
        while waited < self.timeout {
            match self.calls.try_send(call) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(DiskError::Panicked),
                Err(TrySendError::Full(back)) => call = back,
            }
            std::thread::sleep(pause);
            waited += pause;
            let now = self.done.load(Ordering::Acquire);
            if now != done {
                (done, waited) = (now, Duration::ZERO);
            }
        }
        Err(DiskError::Hung)
    }

    /// The answer to a call, which may stand behind others: each of them has the whole time.
    fn answer<T>(
        &self,
        from: &Receiver<Result<T, DiskError>>,
        timeout: Duration,
    ) -> Result<T, DiskError> {
        loop {
            let done = self.done.load(Ordering::Acquire);
            match answer(from, timeout) {
                Err(DiskError::Hung) if self.done.load(Ordering::Acquire) != done => {}
                answered => return answered,
            }
        }
    }
}

fn answer<T>(from: &Receiver<Result<T, DiskError>>, timeout: Duration) -> Result<T, DiskError> {
    match from.recv_timeout(timeout) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(DiskError::Hung),
        Err(RecvTimeoutError::Disconnected) => Err(DiskError::Panicked),
    }
}

/// Identity of sled's file, if it is there.
fn inode_of(folder: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder.join("db"))
        .ok()
        .map(|meta| meta.ino())
}

/// The folders of sled in `folder`: there is one, unless a start was cut off or another hand at work.
fn inside(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

struct Open {
    db: sled::Db,
    ready: sled::Tree,
    scheduled: sled::Tree,
}

/// Opens sled's files. Their lock may outlast the one who held it for a moment: a program that is
/// being started shares it between its fork and its exec.
fn open_unlocked(folder: &Path, patience: Duration) -> sled::Result<sled::Db> {
    let waited = Stopwatch::start();
    loop {
        let opened = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open();
        match opened {
            Err(sled::Error::Io(error))
                // sled has no kind of error for it.
                if error.to_string().starts_with("could not acquire lock")
                    && waited.elapsed() < patience =>
            {
                std::thread::sleep(LOCKED_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Opens sled; answers what an orderly end left, which from now on is no longer so.
fn open(folder: &Path, patience: Duration) -> Result<(Open, Option<Rest>), DiskError> {
    let db = open_unlocked(folder, patience)?;
    let rest = match db.get("rest")? {
        Some(text) if db.get("format")?.is_some_and(|format| format == FORMAT) => {
            Some(serde_json::from_slice(&text).map_err(|_| DiskError::Nonsense)?)
        }
        Some(_) => return Err(DiskError::Nonsense),
        // New, or its user ended without order: only an empty one can be used.
        None if db.was_recovered() => return Err(DiskError::Nonsense),
        None => None,
    };
    db.insert("format", FORMAT)?;
    db.remove("rest")?;
    db.flush()?;
    let open = Open {
        ready: db.open_tree("ready")?,
        scheduled: db.open_tree("scheduled")?,
        db,
    };
    Ok((open, rest))
}

/// Bytes that sled takes.
fn size_of(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("db")).map_or(0, |meta| meta.len())
}

fn serve(
    folder: &Path,
    old: &[PathBuf],
    patience: Duration,
    (ready, calls): (&SyncSender<Result<Opened, DiskError>>, &Receiver<Call>),
    done: &AtomicU64,
) {
    let open = match open(folder, patience) {
        Ok((open, rest)) => {
            old.iter().for_each(|path| remove(path));
            let size = size_of(folder);
            if ready.send(Ok(Opened { rest, size })).is_err() {
                return; // it took too long: nobody waits any more
            }
            open
        }
        Err(error) => {
            drop(ready.send(Err(error)));
            return;
        }
    };
    // Tells whether the folder is still the one that was opened.
    let inode = inode_of(folder);
    let mut failed: Option<DiskError> = None;
    let mut unflushed = 0;
    while let Ok(call) = calls.recv() {
        // Whoever asked may have given up; then the folder is already another's to make anew.
        match call {
            Call::Put(tree, items) => {
                unflushed += items.len();
                let mut kept = put(&open, tree, items);
                if unflushed >= FLUSH_ENTRIES {
                    unflushed = 0;
                    kept = kept.and_then(|()| Ok(open.db.flush().map(drop)?));
                }
                if let Err(error) = kept {
                    failed = Some(error);
                }
            }
            Call::Take(tree, queue, most, reply) => {
                let taken = match failed.take() {
                    Some(error) => Err(error),
                    None => take(&open, tree, &queue, most),
                };
                drop(reply.send(taken));
            }
            Call::Remove(tree, items, reply) => {
                let removed = match failed.take() {
                    Some(error) => Err(error),
                    None => remove_entries(&open, tree, items),
                };
                drop(reply.send(removed));
            }
            Call::Check(reply) => {
                let there = inode_of(folder);
                let state = match failed.take() {
                    Some(error) => Err(error),
                    // It may have gone even before it was opened to the end.
                    None if there.is_none() || there != inode => {
                        Err(DiskError::Io(std::io::ErrorKind::NotFound.into()))
                    }
                    None => Ok(size_of(folder)),
                };
                drop(reply.send(state));
            }
            Call::Count(reply) => {
                drop(reply.send(count(&open)));
            }
            Call::Close(rest, reply) => {
                let closed = match failed.take() {
                    Some(error) => Err(error),
                    None => close(&open, &rest),
                };
                drop(open);
                drop(reply.send(closed));
                return;
            }
        }
        done.fetch_add(1, Ordering::AcqRel);
    }
}

fn full_key(tree: Tree, queue: &str, key: &EntryKey) -> Vec<u8> {
    match tree {
        Tree::Ready => {
            let mut full = Vec::with_capacity(queue.len() + 1 + key.len());
            full.extend_from_slice(queue.as_bytes());
            full.push(0); // no queue's name holds it
            full.extend_from_slice(key);
            full
        }
        Tree::Scheduled => key.to_vec(),
    }
}

fn of(open: &Open, tree: Tree) -> &sled::Tree {
    match tree {
        Tree::Ready => &open.ready,
        Tree::Scheduled => &open.scheduled,
    }
}

fn put(open: &Open, tree: Tree, items: Vec<Item>) -> Result<(), DiskError> {
    let mut batch = sled::Batch::default();
    for (key, priority, queue) in items {
        let mut value = Vec::with_capacity(1 + queue.len());
        if tree == Tree::Scheduled {
            value.push(priority);
            value.extend_from_slice(queue.as_bytes());
        }
        batch.insert(full_key(tree, &queue, &key), value);
    }
    of(open, tree).apply_batch(batch)?;
    Ok(())
}

fn remove_entries(open: &Open, tree: Tree, items: Vec<Item>) -> Result<Vec<Box<str>>, DiskError> {
    let mut removed = Vec::new();
    for (key, _, queue) in items {
        if of(open, tree)
            .remove(full_key(tree, &queue, &key))?
            .is_some()
        {
            removed.push(queue);
        }
    }
    Ok(removed)
}

fn take(open: &Open, tree: Tree, queue: &str, most: usize) -> Result<Vec<Item>, DiskError> {
    let tree_of = of(open, tree);
    let prefix = match tree {
        Tree::Ready => {
            let mut prefix = queue.as_bytes().to_vec();
            prefix.push(0);
            prefix
        }
        Tree::Scheduled => Vec::new(),
    };
    let (mut batch, mut items) = (sled::Batch::default(), Vec::new());
    for pair in tree_of.scan_prefix(&prefix).take(most) {
        let (full, value) = pair?;
        let key: EntryKey = full
            .get(prefix.len()..)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(DiskError::Nonsense)?;
        let item = match tree {
            Tree::Ready => (key, 255 - key[0], queue.into()),
            Tree::Scheduled => {
                let (priority, name) = value.split_first().ok_or(DiskError::Nonsense)?;
                let name = std::str::from_utf8(name).map_err(|_| DiskError::Nonsense)?;
                (key, *priority, name.into())
            }
        };
        batch.remove(full);
        items.push(item);
    }
    tree_of.apply_batch(batch)?;
    Ok(items)
}

fn count(open: &Open) -> Result<Counts, DiskError> {
    let mut ready: HashMap<String, u64> = HashMap::new();
    let mut current: (Vec<u8>, u64) = (Vec::new(), 0);
    let mut note = |(name, entries): (Vec<u8>, u64)| -> Result<(), DiskError> {
        if entries > 0 {
            let name = String::from_utf8(name).map_err(|_| DiskError::Nonsense)?;
            *ready.entry(name).or_default() += entries;
        }
        Ok(())
    };
    for pair in &open.ready {
        let (full, _) = pair?;
        let end = full
            .len()
            .checked_sub(26)
            .filter(|end| full[*end] == 0)
            .ok_or(DiskError::Nonsense)?;
        if current.0 != full[..end] {
            note(std::mem::replace(&mut current, (full[..end].to_vec(), 0)))?;
        }
        current.1 += 1;
    }
    note(current)?;
    let mut scheduled = 0;
    for pair in &open.scheduled {
        let (full, value) = pair?;
        if full.len() != 25 || value.is_empty() {
            return Err(DiskError::Nonsense);
        }
        scheduled += 1;
    }
    Ok((ready, scheduled))
}

fn close(open: &Open, rest: &Rest) -> Result<(), DiskError> {
    let text = serde_json::to_vec(rest).map_err(|_| DiskError::Nonsense)?;
    open.ready.flush()?;
    open.scheduled.flush()?;
    open.db.flush()?;
    open.db.insert("rest", text)?;
    open.db.flush()?;
    Ok(())
}

/// Deletes what is in `folder`, as far as that can be done in time.
pub(super) fn clear(folder: &Path, guard: &Guard) {
    let folder = folder.to_owned();
    let cleared = guard.within(move || inside(&folder).iter().for_each(|path| remove(path)));
    if let Err(error) = cleared {
        tracing::warn!(%error, "an old delivery index stays for now");
    }
}

fn remove(path: &Path) {
    let gone = match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        _ => std::fs::remove_file(path),
    };
    if let Err(error) = gone {
        tracing::debug!(%error, path = %path.display(), "an old delivery index stays");
    }
}

/// Whether there is anything to be taken up.
pub(super) fn exists(folder: &Path, guard: &Guard) -> Result<bool, DiskError> {
    let folder = folder.to_owned();
    guard.within(move || !inside(&folder).is_empty())
}
