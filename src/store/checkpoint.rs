//! Folds the write-ahead log into the database, outside the commits that callers wait for.
//!
//! Invariants: the log's size is bounded under constant load; a checkpoint never blocks a reader.
//! A passive checkpoint copies what it can while the writer goes on; only when the file has passed
//! `database.wal_bytes_max` does one wait for the writer's gap and start the log anew, and by then
//! almost all of it has been copied, so the gap is short.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::{StoreError, sqlite};
use crate::config::{Database, ms};

/// A log smaller than this is not worth a checkpoint: 1,000 pages, SQLite's own measure.
const WORTHWHILE_BYTES: u64 = 4_096_000;
/// How long a restart of the log may wait for readers and the writer.
const RESTART_WAIT: Duration = Duration::from_millis(250);

pub(super) struct Checkpointer {
    stop: SyncSender<()>,
    wal: Arc<PathBuf>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpointer {
    pub(super) fn start(database: &Path, settings: &Database) -> Result<Self, StoreError> {
        let conn = sqlite::open_checkpointer(database)?;
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        let wal = Arc::new(PathBuf::from(wal));
        let (stop, stopped) = sync_channel::<()>(1);
        let (interval, bytes_max) = (ms(settings.checkpoint_interval_ms), settings.wal_bytes_max);
        let path = Arc::clone(&wal);
        let thread = std::thread::Builder::new()
            .name("onrush-wal".to_owned())
            .spawn(move || {
                while matches!(
                    stopped.recv_timeout(interval),
                    Err(RecvTimeoutError::Timeout)
                ) {
                    tend(&conn, &path, bytes_max);
                }
                // The last one empties the log, so that the next start has nothing to read.
                report(checkpoint(&conn, "TRUNCATE", Duration::from_secs(2)));
            })
            .map_err(|error| {
                StoreError::Unavailable(format!("no thread for checkpoints: {error}"))
            })?;
        Ok(Self {
            stop,
            wal,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(super) fn wal_bytes(&self) -> u64 {
        file_bytes(&self.wal)
    }

    pub(super) fn stop(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // An error means that the thread has ended already, which is what is wanted.
            let _ended = self.stop.try_send(());
            if thread.join().is_err() {
                tracing::error!("the checkpoint thread ended in a panic");
            }
        }
    }
}

fn tend(conn: &Connection, wal: &Path, bytes_max: u64) {
    let bytes = file_bytes(wal);
    if bytes < WORTHWHILE_BYTES {
        return;
    }
    report(checkpoint(conn, "PASSIVE", Duration::ZERO));
    if bytes > bytes_max {
        // TRUNCATE rather than RESTART: the file's size is what this thread looks at.
        report(checkpoint(conn, "TRUNCATE", RESTART_WAIT));
    }
}

/// One checkpoint; `wait` is how long it may wait for others to let go.
fn checkpoint(conn: &Connection, mode: &str, wait: Duration) -> Result<(), StoreError> {
    conn.busy_timeout(wait)?;
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))?;
    Ok(())
}

fn report(result: Result<(), StoreError>) {
    match result {
        Ok(()) | Err(StoreError::Busy) => {}
        // The writer meets the same disk and says so to its callers; here it is only noted.
        Err(error) => {
            tracing::warn!(%error, "a checkpoint did not succeed; the next one tries again")
        }
    }
}

fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map(|meta| meta.len()).unwrap_or(0)
}
