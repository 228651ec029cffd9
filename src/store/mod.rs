//! The record: one SQLite database, one writer, many readers.
//!
//! Invariants: [`Store::write`] answers `Ok` only after its work was committed and synced;
//! [`Store::read`] sees one consistent moment; nothing here knows what a table means. Whatever may
//! scan runs off the async threads under a time limit; only [`Store::point`] runs inline, because
//! a look-up by key is cheaper than the hop to another thread (measured: 229,000 against 124,000
//! reads a second). Lists and searches have lanes ([`Lane`]), so that such a look-up waits for none.

mod codes;
mod condition;
pub mod conformance;
mod dir;
pub mod file;
mod gather;
mod job;
mod lane;
mod locks;
mod migrate;
mod sqlite;
mod statement;
mod tx;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use r2d2_sqlite::SqliteConnectionManager;
use tokio::sync::Semaphore;

pub use condition::Condition;
pub use dir::{DataDir, DirError, Left, database_in};
pub use gather::{GATHERED_MAX, Gather};
pub use lane::Lane;
pub use locks::LockOrder;
#[cfg(debug_assertions)]
pub use migrate::migrations_for_postgres;
pub use sqlite::belong::Mark;
pub use statement::Sql;
pub use tx::{Column, Nullable, Param, Row, Rows, Topic, Tx, value_rows};
pub use write::{Patience, Promise, Promised, Write};

use crate::clock::Stopwatch;
use crate::config::{Database, ms};
use crate::monitor::Metrics;
use crate::monitor::statements::{Called, Statements, caller};
use file::Seen;
use lane::Lanes;
use sqlite::checkpoint::{self, Checkpointer, LogFile};
use sqlite::connection::{self, Around};
use sqlite::writer::{OnFatal, Writer};
use sqlite::{belong, damage};

/// What can go wrong with the database, as far as a caller can act on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The writer's queue or a lane of reads is full: come back later.
    #[error("too much is waiting")]
    Overloaded,
    /// No connection became free, or no answer came, within the limit. A write may yet succeed.
    #[error("the database did not answer in time")]
    Timeout,
    /// One statement ran longer than `database.statement_timeout_ms`.
    #[error("the query ran longer than it may")]
    StatementTimeout,
    /// Another process holds the database's lock.
    #[error("the database is locked by another process")]
    Busy,
    /// The disk is full. Nothing was written; reads go on.
    #[error("the disk is full")]
    StorageFull,
    /// The file system is read-only.
    #[error("the data directory can't be written to")]
    ReadOnly,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(String),
    /// The file is damaged.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// A constraint of the schema refused the write.
    #[error("a constraint refused the write: {0}")]
    Constraint(String),
    /// There is a row with the same in these columns: `table.column`, separated by commas.
    #[error("there is a row already with the same {0}")]
    Unique(String),
    /// The store is shutting down.
    #[error("the database is shutting down")]
    Stopped,
    /// The database is another program's or a newer version's.
    #[error("{0}")]
    Foreign(String),
    /// It can't be opened or used as it is.
    #[error("{0}")]
    Unavailable(String),
    /// The closure panicked; its own work was undone.
    #[error("the write panicked: {0}")]
    Panicked(String),
    /// A statement or its use is wrong.
    #[error("bug: {0}")]
    Bug(String),
}

impl StoreError {
    /// Whether the process must end and be started anew. A database that is damaged, or whose file system has
    /// turned read-only, would be no better off for it: it is read on ([`Condition`]).
    pub fn is_fatal(&self) -> bool {
        matches!(self, StoreError::Io(_))
    }

    /// Whether a unique constraint over `column` (`table.column`) refused the write.
    pub fn is_unique_violation(&self, column: &str) -> bool {
        matches!(self, StoreError::Unique(columns) if columns == column)
    }
}

/// A cheap handle to the database; clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    statements: Arc<Statements>,
    readers: r2d2::Pool<SqliteConnectionManager>,
    lanes: Lanes,
    writer: Writer,
    checkpointer: Checkpointer,
    condition: Condition,
    mark: Option<Mark>,
    metrics: Metrics,
    reader_timeout: Duration,
    statement_timeout: Duration,
    write_timeout: Duration,
    /// Readers that are checked out, and the most that were since somebody last asked.
    readers_in_use: AtomicU32,
    readers_peak: AtomicU32,
    /// Writes waiting from which on a patient caller blocks for room instead of trying.
    patience_from: usize,
    write_queue_max: usize,
}

/// Connections in use and idle, and writes that wait.
#[derive(Clone, Copy, Debug)]
pub struct StoreStats {
    /// Readers that are checked out.
    pub readers_in_use: u32,
    /// Readers that are free.
    pub readers_idle: u32,
    /// The most that were checked out at once since the last call.
    pub readers_peak: u32,
    /// Jobs in the writer's queue.
    pub writes_waiting: usize,
    /// Size of the write-ahead log file in bytes.
    pub wal_bytes: u64,
}

impl Store {
    /// Opens (and creates or upgrades) the database file. `on_fatal` is called from the writer's
    /// thread when the disk failed under a commit: the process must end then.
    pub fn open(
        path: &Path,
        settings: &Database,
        metrics: Metrics,
        on_fatal: impl FnOnce(&StoreError) + Send + 'static,
    ) -> Result<Self, StoreError> {
        Self::open_as(
            &Mark::fresh(),
            Seen::default(),
            path,
            settings,
            metrics,
            on_fatal,
        )
    }

    /// [`Store::open`] under a mark by which the log's database is known ([`DataDir::begin`]). What was `seen`
    /// of the database before goes on while it serves.
    pub fn open_as(
        mark: &Mark,
        seen: Seen,
        path: &Path,
        settings: &Database,
        metrics: Metrics,
        on_fatal: impl FnOnce(&StoreError) + Send + 'static,
    ) -> Result<Self, StoreError> {
        migrate::check_header(path)?;
        let had_log = connection::file_bytes(&checkpoint::log_of(path)) > 0;
        let condition = Condition::default();
        let Seen { mut rest, changed } = seen;
        if let Some(what) = changed {
            condition.note_changed(what);
        }
        let mut conn = connection::open_writer(path, settings)?;
        let prepared = migrate::run(&mut conn).and_then(|()| {
            belong::renew(&conn, mark, || {
                // The pages that are about to be written to the file.
                let written = damage::read(&checkpoint::log_of(path)).map(|log| log.commits);
                match (&mut rest, written) {
                    (Some(rest), Ok(Some(commits))) => rest.skip(commits.pages.into_keys()),
                    (Some(_), Err(_)) => rest = None,
                    _ => {}
                }
            })
        });
        let mark = match prepared {
            Ok(mark) => mark,
            Err(error) => {
                // What was there stays; and after a sync that failed, the log is all that can be trusted.
                if had_log || matches!(error, StoreError::Io(_) | StoreError::Corrupt(_)) {
                    connection::keep_log(&conn)?;
                }
                return Err(error);
            }
        };
        let readers = connection::open_readers(path, settings)?;
        let on_fatal: OnFatal = Box::new(on_fatal);
        let statements = Arc::new(Statements::new(settings));
        let writer = Writer::start(
            conn,
            LogFile::new(path, settings),
            Arc::clone(&statements),
            condition.clone(),
            settings,
            metrics.clone(),
            on_fatal,
        )?;
        let checkpointer = Checkpointer::start(path, settings, &condition, rest, writer.ask())?;
        Ok(Self(Arc::new(Inner {
            statements,
            readers,
            lanes: Lanes::new(settings),
            writer,
            checkpointer,
            condition,
            mark,
            metrics,
            reader_timeout: ms(settings.reader_timeout_ms),
            statement_timeout: ms(settings.statement_timeout_ms),
            write_timeout: ms(settings.write_timeout_ms),
            readers_in_use: AtomicU32::new(0),
            readers_peak: AtomicU32::new(0),
            patience_from: settings.write_queue_max / 2,
            write_queue_max: settings.write_queue_max,
        })))
    }

    /// The mark that the database bears without its log; `None` where that is not known.
    pub fn mark(&self) -> Option<&Mark> {
        self.0.mark.as_ref()
    }

    /// What is known of the database's condition.
    pub fn condition(&self) -> &Condition {
        &self.0.condition
    }

    /// Whether the file was compared to the end with what the last process left, as far as that is known.
    pub fn is_compared(&self) -> bool {
        self.0.checkpointer.is_compared()
    }

    /// Tries whether a disk that refused the last write has room again, so that nobody need be refused to
    /// find that out.
    pub fn try_the_disk(&self, path: &Path) {
        if self.0.condition.sealed().is_none()
            && self.0.condition.refusing().is_some()
            && connection::takes_more(path)
        {
            self.0.condition.can_write_again();
        }
    }

    /// Calls `listener` after each commit that touched `topic` ([`Tx::touch`]), on the writer's thread
    /// and before the callers are answered. It must be quick, must not block and must not write.
    pub fn on_commit(&self, topic: Topic, listener: impl Fn() + Send + Sync + 'static) {
        self.on_commit_of(topic, move |_| listener());
    }

    /// [`Store::on_commit`], told which rows ([`Tx::touch_row`]).
    pub fn on_commit_of(&self, topic: Topic, listener: impl Fn(Rows<'_>) + Send + Sync + 'static) {
        self.0.writer.listen(topic, Box::new(listener));
    }

    /// How long an answer is waited for before it is [`StoreError::Timeout`].
    pub fn write_timeout(&self) -> Duration {
        self.0.write_timeout
    }

    /// Runs `work` on one consistent snapshot, off the async threads, under the statement limit.
    pub async fn read<T, E>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (store, caller) = (self.clone(), caller());
        tokio::task::spawn_blocking(move || store.read_for(caller, store.0.statement_timeout, work))
            .await
            .unwrap_or_else(|error| Err(E::from(StoreError::Panicked(error.to_string()))))
    }

    /// [`Store::read`] for what anybody may ask for and what takes longer than a look-up by key: in its
    /// lane, under the lane's limits, and given up once nobody waits for it any more.
    pub async fn read_in<T, E>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let turns = self.0.lanes.of(lane);
        let place = turns.enter().await.map_err(|error| {
            let refused = &self.0.metrics.db_reads_refused_total;
            refused.with_label_values(&[lane.word()]).inc();
            E::from(error)
        })?;
        let (store, caller, limit) = (self.clone(), caller(), turns.statement_timeout);
        let wanted = Arc::new(AtomicBool::new(true));
        let _waiting = Waiting(Arc::clone(&wanted));
        let read = move || {
            // Held until the statement has ended, not until its caller has gone.
            let _place = place;
            if !wanted.load(Ordering::Acquire) {
                return Err(E::from(StoreError::Stopped));
            }
            connection::while_wanted(wanted, || store.read_for(caller, limit, work))
        };
        let done = self.0.lanes.run(lane, read).await;
        done.unwrap_or_else(|error| Err(E::from(StoreError::Panicked(error.to_string()))))
    }

    /// [`Store::read`] on the calling thread, which must not be an async one.
    pub fn read_blocking<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.read_for(None, self.0.statement_timeout, work)
    }

    fn read_for<T, E: From<StoreError>>(
        &self,
        caller: Option<Called>,
        limit: Duration,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let watch = Stopwatch::start();
        let conn = self
            .0
            .readers
            .get_timeout(self.0.reader_timeout)
            .map_err(|_| E::from(StoreError::Timeout))?;
        self.0
            .metrics
            .db_connection_wait_seconds
            .observe(watch.elapsed_seconds());
        let _counted = Counted::new(&self.0);
        connection::with_limit(limit, || {
            snapshot(&conn, &self.0.statements, &self.0.condition, caller, work)
        })
    }

    /// Runs look-ups by key on the calling async thread. Each statement sees the newest commit; for
    /// one moment over several statements use [`Store::read`].
    pub async fn point<T, E>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        match self.0.readers.try_get() {
            Some(conn) => {
                let _counted = Counted::new(&self.0);
                let inner = &self.0;
                let mut tx = Tx::new(&conn, &inner.statements, &inner.condition, caller());
                connection::with_limit(self.0.statement_timeout, || work(&mut tx))
            }
            None => self.read(work).await,
        }
    }

    /// What its statements cost.
    pub fn statements(&self) -> &Statements {
        &self.0.statements
    }

    /// Writes that wait, and those of the transaction that runs.
    pub fn writes_under_way(&self) -> usize {
        self.0.writer.under_way()
    }

    /// Figures for the metrics.
    pub fn stats(&self) -> StoreStats {
        let state = self.0.readers.state();
        StoreStats {
            readers_in_use: state.connections - state.idle_connections,
            readers_idle: state.idle_connections,
            readers_peak: self.0.readers_peak.swap(
                self.0.readers_in_use.load(Ordering::Relaxed),
                Ordering::Relaxed,
            ),
            writes_waiting: self.0.writer.waiting(),
            wal_bytes: self.0.checkpointer.wal_bytes(),
        }
    }

    /// Finishes the queued writes, folds the log into the database and lets go. Blocks.
    pub fn close(&self) {
        self.0.writer.stop();
        self.0.checkpointer.stop();
    }
}

/// A reader that is checked out.
struct Counted<'a>(&'a Inner);

impl<'a> Counted<'a> {
    fn new(store: &'a Inner) -> Self {
        let now = store.readers_in_use.fetch_add(1, Ordering::Relaxed) + 1;
        if store.readers_peak.load(Ordering::Relaxed) < now {
            store.readers_peak.fetch_max(now, Ordering::Relaxed);
        }
        Self(store)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.readers_in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads that may take minutes: each on a connection of its own and off the async threads, so that
/// requests keep theirs. Few run at once, and the rest wait. They have no time limit; they end when nobody
/// waits for them any more.
#[derive(Clone)]
pub struct LongReads(Arc<LongParts>);

struct LongParts {
    path: PathBuf,
    settings: Database,
    store: Store,
    turns: Arc<Semaphore>,
}

/// Whether long work is still waited for.
pub struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// An error once nobody waits any more: the work shall end with it.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.0.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(StoreError::Stopped)
        }
    }
}

/// Held by whoever waits.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl LongReads {
    /// Of the database at `path`, which is `store`'s; its statements are counted there.
    pub fn new(path: PathBuf, settings: &Database, store: &Store) -> Self {
        Self(Arc::new(LongParts {
            path,
            settings: settings.clone(),
            store: store.clone(),
            turns: Arc::new(Semaphore::new(settings.long_readers as usize)),
        }))
    }

    /// Runs `work` on one consistent snapshot. It must ask [`Wanted::check`] now and then, which
    /// fails once the future was dropped.
    pub async fn read<T, E>(
        &self,
        work: impl FnOnce(&mut Tx<'_>, &Wanted) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (parts, wanted) = (Arc::clone(&self.0), Arc::new(AtomicBool::new(true)));
        let caller = caller();
        let turn = Arc::clone(&parts.turns).acquire_owned().await;
        let turn = turn.map_err(|_| E::from(StoreError::Stopped))?;
        let _waiting = Waiting(Arc::clone(&wanted));
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let conn = connection::open_reader(&parts.path, &parts.settings, Around::Served)
                .map_err(E::from)?;
            let inner = &parts.store.0;
            connection::while_wanted(Arc::clone(&wanted), || {
                snapshot(&conn, &inner.statements, &inner.condition, caller, |tx| {
                    work(tx, &Wanted(wanted))
                })
            })
        })
        .await
        .unwrap_or_else(|error| Err(E::from(StoreError::Panicked(error.to_string()))))
    }
}

/// A read-only transaction around `work`, ended whatever happens.
fn snapshot<T, E: From<StoreError>>(
    conn: &rusqlite::Connection,
    statements: &Statements,
    condition: &Condition,
    caller: Option<Called>,
    work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let met = |error| E::from(condition.met(conn, error));
    let transaction = conn.unchecked_transaction().map_err(met)?;
    let result = work(&mut Tx::new(&transaction, statements, condition, caller));
    // Nothing was written: rolling back is how a reader lets go of its snapshot.
    transaction.rollback().map_err(met)?;
    result
}

#[cfg(test)]
mod tests;
