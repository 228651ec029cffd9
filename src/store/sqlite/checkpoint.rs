//! Folds the write-ahead log into the database, outside the commits that callers wait for, and keeps
//! room for it. Before the first time it compares the file with what the last process left (store/sums.rs).
//!
//! Invariants: the log's size is bounded under constant load; a checkpoint never blocks a reader.
//! A passive checkpoint copies what it can while the writer goes on; only when more than
//! `database.wal_ready_bytes` of the log are in use is the writer asked to let it start anew between
//! two batches, and by then almost all of it has been copied, so that is short.
//!
//! The file keeps its size when the log starts anew, and is given one in quiet moments: a commit that
//! overwrites what is there needs one write of the disk to be synced, one that makes the file grow
//! needs a second for the file's new size (measured, seven pages: 140–180 against 280–300 µs). What
//! lies behind the log's end is read by nobody: its frames' salts and checksums do not fit
//! (<https://sqlite.org/fileformat2.html#walformat>).

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::connection::{self, file_bytes};
use super::sums::{Comparison, Verdict};
use crate::clock::Stopwatch;
use crate::config::{Database, ms};
use crate::store::StoreError;
use crate::store::condition::Condition;

/// A log smaller than this is not worth a checkpoint: 1,000 pages, SQLite's own measure.
const WORTHWHILE_BYTES: u64 = 4_096_000;
/// A log that has grown so far is there to stay: it is given room.
const ROOM_FROM_BYTES: u64 = 262_144;
/// Zeros written and synced at a time; a write that comes meanwhile waits for that.
static ZEROS: [u8; 262_144] = [0; 262_144];
/// How long letting the log start anew may wait for readers, and the writes that come meanwhile for
/// it: while somebody reads for long it is tried again and again.
const ANEW_WAIT: Duration = Duration::from_millis(5);
/// The same once the file has passed its limit, longer than most reads take: those that begin
/// meanwhile are not in the way.
const CUT_BACK_WAIT: Duration = Duration::from_millis(250);
/// How long the last checkpoint may wait for readers.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// The file is compared with the sums of the last stop for this long, then others have the disk and the
/// processor: an eighth of one, and 100 MB a second from a cache.
const COMPARE_SLICE: Duration = Duration::from_millis(1);
const COMPARE_REST: Duration = Duration::from_millis(7);
/// How long a stop waits for the comparison to come to its end.
const COMPARE_END: Duration = Duration::from_secs(3);
/// Header of each page in the log.
const FRAME_HEADER_BYTES: u64 = 24;

/// What only the writer may do to the log, between two batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum LogWork {
    /// To make the file as large as it is to be, in quiet moments.
    MakeRoom,
    /// To have the next commit begin at the file's begin.
    StartAnew,
    /// The same, and to make the file empty.
    CutBack,
}

pub(in crate::store) struct Checkpointer {
    stop: SyncSender<()>,
    wal: Arc<PathBuf>,
    is_compared: Arc<AtomicBool>,
    /// Closed after all connections are: that would give up their locks.
    _compared: Option<Arc<File>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpointer {
    /// `ask` has the writer do something, soon and if it can.
    pub(in crate::store) fn start(
        database: &Path,
        settings: &Database,
        condition: &Condition,
        comparison: Option<Comparison>,
        ask: impl Fn(LogWork) + Send + 'static,
    ) -> Result<Self, StoreError> {
        let conn = connection::open_checkpointer(database)?;
        let wal = Arc::new(log_of(database));
        let (stop, stopped) = sync_channel::<()>(1);
        let page_bytes: u32 = conn.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let interval = ms(settings.checkpoint_interval_ms);
        let mut tender = Tender {
            conn,
            ask: Box::new(ask),
            path: Arc::clone(&wal),
            frame_bytes: u64::from(page_bytes) + FRAME_HEADER_BYTES,
            ready_bytes: settings.wal_ready_bytes,
            bytes_max: settings.wal_bytes_max,
            seen: 0,
            condition: condition.clone(),
        };
        let compared = comparison.as_ref().map(Comparison::file);
        let is_compared = Arc::new(AtomicBool::new(comparison.is_none()));
        let told = Arc::clone(&is_compared);
        let thread = std::thread::Builder::new()
            .name("onrush-wal".to_owned())
            .spawn(move || {
                let mut is_stopped = false;
                if let Some(comparison) = comparison {
                    let is_whole = tender.compare(comparison, &stopped, &mut is_stopped);
                    told.store(is_whole, Ordering::Release);
                }
                while !is_stopped && is_to_go_on(&stopped, interval) {
                    let tended = tender.tend();
                    report(tended, &tender.condition);
                }
                // The last one empties the log, so that the next start has nothing to read.
                let last = || {
                    tender.conn.busy_timeout(LAST_WAIT)?;
                    checkpoint(&tender.conn, "TRUNCATE").map(|_| ())
                };
                report(last(), &tender.condition);
            })
            .map_err(|error| {
                StoreError::Unavailable(format!("no thread for checkpoints: {error}"))
            })?;
        Ok(Self {
            stop,
            wal,
            is_compared,
            _compared: compared,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(in crate::store) fn wal_bytes(&self) -> u64 {
        file_bytes(&self.wal)
    }

    /// Whether the comparison with the sums of the last stop has come to its end, or there was none.
    pub(in crate::store) fn is_compared(&self) -> bool {
        self.is_compared.load(Ordering::Acquire)
    }

    pub(in crate::store) fn stop(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // An error means that the thread has ended already, which is what is wanted.
            let _ended = self.stop.try_send(());
            if thread.join().is_err() {
                tracing::error!("the checkpoint thread ended in a panic");
            }
        }
    }
}

/// Pages in the log, and how many of them are in the database as well. A commit starts the log anew by
/// itself only if all were when its transaction began, which under load they never are.
struct Frames {
    used: u64,
    copied: u64,
}

struct Tender {
    conn: Connection,
    ask: Box<dyn Fn(LogWork) + Send>,
    path: Arc<PathBuf>,
    frame_bytes: u64,
    ready_bytes: u64,
    bytes_max: u64,
    /// Bytes in use when it was looked at last.
    seen: u64,
    condition: Condition,
}

impl Tender {
    /// Compares what is left of the file with the sums of the last stop, a little at a time, before the first
    /// checkpoint writes to it. A log that has grown too large meanwhile ends it. Told to stop, it hurries,
    /// and ends after a while. Whether it came to its end.
    fn compare(
        &self,
        mut comparison: Comparison,
        stopped: &Receiver<()>,
        is_stopped: &mut bool,
    ) -> bool {
        let mut stopping = None;
        loop {
            match comparison.step(COMPARE_SLICE) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "the database could not be compared with the sums of the last stop");
                    return false;
                }
            }
            let is_late = stopping.is_some_and(|since: Stopwatch| since.elapsed() > COMPARE_END);
            if is_late || file_bytes(&self.path) > self.bytes_max {
                tracing::warn!(
                    "not all of the database could be compared with the sums of the last stop"
                );
                return false;
            }
            if stopping.is_none() && !is_to_go_on(stopped, COMPARE_REST) {
                *is_stopped = true;
                stopping = Some(Stopwatch::start());
            }
        }
        match comparison.verdict() {
            Verdict::Same => {}
            Verdict::Changed(what) => self.condition.note_changed(what),
            Verdict::Damaged(what) => self.condition.note(&StoreError::Corrupt(what)),
        }
        true
    }

    fn tend(&mut self) -> Result<(), StoreError> {
        let frames = checkpoint(&self.conn, "NOOP")?;
        let used = frames.used * self.frame_bytes;
        if used >= ROOM_FROM_BYTES && file_bytes(&self.path) < self.ready_bytes {
            (self.ask)(LogWork::MakeRoom);
        }
        if used >= WORTHWHILE_BYTES && frames.copied < frames.used {
            checkpoint(&self.conn, "PASSIVE")?;
        }
        if file_bytes(&self.path) > self.bytes_max {
            (self.ask)(LogWork::CutBack);
        } else if used > self.ready_bytes.max(WORTHWHILE_BYTES) && used != self.seen {
            (self.ask)(LogWork::StartAnew);
        }
        self.seen = used;
        Ok(())
    }
}

fn checkpoint(conn: &Connection, mode: &str) -> Result<Frames, StoreError> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let (used, copied) = conn.query_row(&sql, [], |row| {
        Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    })?;
    // Both are -1 while there is no log.
    let count = |frames| u64::try_from(frames).unwrap_or(0);
    Ok(Frames {
        used: count(used),
        copied: count(copied),
    })
}

/// Waits for as long. Whether nobody has told the thread to stop.
fn is_to_go_on(stopped: &Receiver<()>, wait: Duration) -> bool {
    matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
}

fn report(result: Result<(), StoreError>, condition: &Condition) {
    match result {
        Ok(()) | Err(StoreError::Busy) => {}
        Err(error @ StoreError::Corrupt(_)) => condition.note(&error),
        // The writer meets the same disk and says so to its callers; here it is only noted.
        Err(error) => {
            tracing::warn!(%error, "a checkpoint did not succeed; the next one tries again")
        }
    }
}

/// The log, as the writer sees it: all of this runs on its thread, outside a transaction, so whatever
/// is behind the file's end is nobody's.
pub(in crate::store) struct LogFile {
    path: PathBuf,
    ready_bytes: u64,
    /// Open while room is to be made.
    growing: Option<File>,
}

impl LogFile {
    pub(in crate::store) fn new(database: &Path, settings: &Database) -> Self {
        Self {
            path: log_of(database),
            ready_bytes: settings.wal_ready_bytes,
            growing: None,
        }
    }

    /// Does what was asked for, or begins to ([`LogFile::grow`]).
    pub(in crate::store) fn work(
        &mut self,
        conn: &Connection,
        condition: &Condition,
        work: LogWork,
    ) {
        let (mode, wait) = match work {
            LogWork::MakeRoom => {
                self.growing = OpenOptions::new().append(true).open(&self.path).ok();
                return;
            }
            LogWork::StartAnew => ("RESTART", ANEW_WAIT),
            LogWork::CutBack => ("TRUNCATE", CUT_BACK_WAIT),
        };
        let done = || {
            conn.busy_timeout(wait)?;
            let done = checkpoint(conn, mode).map(|_| ());
            conn.busy_timeout(connection::WRITER_WAIT)?;
            done
        };
        report(done(), condition);
    }

    pub(in crate::store) fn is_growing(&self) -> bool {
        self.growing.is_some()
    }

    /// Makes the file a little longer; for a moment in which nothing is to be written.
    pub(in crate::store) fn grow(&mut self) {
        let Some(file) = &mut self.growing else {
            return;
        };
        match add_zeros(file, self.ready_bytes) {
            Ok(false) => {}
            Ok(true) => self.growing = None,
            Err(error) => {
                tracing::info!(%error, "no room is kept ready for the write-ahead log");
                self.growing = None;
                self.ready_bytes = 0;
            }
        }
    }
}

/// Adds zeros to a file, all or none: the last room of a disk is not for them. Whether it has `bytes`
/// now.
fn add_zeros(file: &mut File, bytes: u64) -> std::io::Result<bool> {
    let end = file.seek(SeekFrom::End(0))?;
    if end < bytes {
        file.write_all(&ZEROS)
            .inspect_err(|_| drop(file.set_len(end)))?;
        file.sync_data()?;
    }
    Ok(end + ZEROS.len() as u64 >= bytes)
}

/// Folds all of the log into the database and empties it; for a database that nobody has open.
pub(in crate::store) fn fold(database: &Path) -> Result<(), StoreError> {
    let conn = connection::open_checkpointer(database)?;
    checkpoint(&conn, "TRUNCATE").map(|_| ())
}

pub(in crate::store) fn log_of(database: &Path) -> PathBuf {
    connection::beside(database, "-wal")
}
