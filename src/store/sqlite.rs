//! SQLite connections: how each is opened, what is asserted of it, and what its result codes mean.
//!
//! Invariants: the library is at least 3.51.3 (older ones can lose commits when the WAL is reset);
//! every PRAGMA that safety depends on is read back after it was set; every result code that a
//! caller could meet is matched by name, and the rest is a bug.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::ffi::ErrorCode;
use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use crate::clock::Stopwatch;
use crate::config::Database;

/// The first release without the WAL-reset bug: <https://sqlite.org/wal.html#walresetbug>.
const VERSION_MIN: i32 = 3_051_003;
/// How long the readers may take to open: a start on a busy machine must not fail for a limit that
/// is meant for requests.
const OPEN_WAIT: Duration = Duration::from_secs(30);
/// How long the writer waits for another process that writes, such as `sqlite3`.
pub(super) const WRITER_WAIT: Duration = Duration::from_secs(5);
/// How many virtual-machine steps pass between two looks at the statement's deadline.
const PROGRESS_STEPS: i32 = 10_000;

thread_local! {
    /// When the read that runs on this thread started, and how long it may take. A statement runs
    /// on one thread from start to end, so the progress handler finds it here.
    static READ_LIMIT: Cell<Option<(Stopwatch, Duration)>> = const { Cell::new(None) };
}

/// Limits the statements that `run` executes on this thread.
pub(super) fn with_limit<T>(limit: Duration, run: impl FnOnce() -> T) -> T {
    READ_LIMIT.set(Some((Stopwatch::start(), limit)));
    let result = run();
    READ_LIMIT.set(None);
    result
}

/// The one connection that writes.
pub(super) fn open_writer(path: &Path, settings: &Database) -> Result<Connection, StoreError> {
    if rusqlite::version_number() < VERSION_MIN {
        return Err(StoreError::Bug(format!(
            "SQLite {} is older than 3.51.3, which is the first safe one",
            rusqlite::version()
        )));
    }
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    let cache = -i64::from(settings.writer_cache_kib);
    assert_pragma(&conn, "journal_mode", "WAL", "wal")?;
    assert_pragma(&conn, "synchronous", "FULL", "2")?;
    assert_pragma(&conn, "foreign_keys", "ON", "1")?;
    assert_pragma(&conn, "trusted_schema", "OFF", "0")?;
    assert_pragma(&conn, "cell_size_check", "ON", "1")?;
    assert_pragma(&conn, "cache_size", &cache.to_string(), &cache.to_string())?;
    assert_pragma(&conn, "temp_store", "MEMORY", "2")?;
    // The checkpoints are made by store/checkpoint.rs, outside the commit that someone waits for.
    assert_pragma(&conn, "wal_autocheckpoint", "0", "0")?;
    conn.busy_timeout(WRITER_WAIT)?;
    conn.set_prepared_statement_cache_capacity(settings.statement_cache);
    Ok(conn)
}

/// A second connection that only folds the write-ahead log into the database.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, StoreError> {
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    assert_pragma(&conn, "synchronous", "FULL", "2")?;
    assert_pragma(&conn, "wal_autocheckpoint", "0", "0")?;
    Ok(conn)
}

/// The pool of readers. Connections are not recycled and not probed: that would throw away their
/// statement and page caches, and a local file does not go away.
pub(super) fn open_readers(
    path: &Path,
    settings: &Database,
) -> Result<r2d2::Pool<SqliteConnectionManager>, StoreError> {
    let cache = -i64::from(settings.reader_cache_kib);
    let mmap = settings.mmap_bytes;
    let statements = settings.statement_cache;
    let manager = SqliteConnectionManager::file(path)
        .with_flags(OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .with_init(move |conn| {
            conn.pragma_update(None, "query_only", true)?;
            conn.pragma_update(None, "cache_size", cache)?;
            conn.pragma_update(None, "temp_store", "MEMORY")?;
            conn.pragma_update(None, "mmap_size", i64::try_from(mmap).unwrap_or(i64::MAX))?;
            conn.busy_timeout(Duration::from_secs(1))?;
            conn.set_prepared_statement_cache_capacity(statements);
            conn.progress_handler(
                PROGRESS_STEPS,
                Some(|| {
                    READ_LIMIT
                        .get()
                        .is_some_and(|(watch, limit)| watch.elapsed() > limit)
                }),
            )
        });
    r2d2::Pool::builder()
        .max_size(settings.readers)
        .test_on_check_out(false)
        .max_lifetime(None)
        .idle_timeout(None)
        .connection_timeout(OPEN_WAIT)
        .build(manager)
        .map_err(|error| {
            StoreError::Unavailable(format!("the readers could not be opened: {error}"))
        })
}

/// How SQLite runs a statement, a line for each step (<https://sqlite.org/eqp.html>); empty if it
/// can't be told.
pub(super) fn plan(conn: &Connection, sql: &str) -> Vec<String> {
    let told = || -> rusqlite::Result<Vec<String>> {
        let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
        let mut rows = statement.raw_query();
        let mut steps = Vec::new();
        while let Some(row) = rows.next()? {
            steps.push(row.get(3)?);
        }
        Ok(steps)
    };
    told().unwrap_or_default()
}

/// Sets a PRAGMA and reads it back.
fn assert_pragma(
    conn: &Connection,
    name: &str,
    value: &str,
    expected: &str,
) -> Result<(), StoreError> {
    // Some PRAGMAs answer with a row, some don't; both forms are accepted here.
    conn.execute_batch(&format!("PRAGMA {name} = {value}"))?;
    let actual: String = conn.query_row(&format!("PRAGMA {name}"), [], |row| {
        row.get_ref(0).map(|value| match value {
            rusqlite::types::ValueRef::Integer(number) => number.to_string(),
            rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            other => format!("{other:?}"),
        })
    })?;
    if actual.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(StoreError::Unavailable(format!(
        "PRAGMA {name} is {actual} where {expected} is needed; is the data directory on a file system \
         that SQLite's write-ahead log can't use (a network share)?"
    )))
}

/// `PRAGMA quick_check`, stopped after `budget`. `Ok(false)` when the time did not suffice.
pub(super) fn quick_check(path: &Path, budget: Duration) -> Result<bool, StoreError> {
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    let watch = Stopwatch::start();
    conn.progress_handler(PROGRESS_STEPS, Some(move || watch.elapsed() > budget))?;
    let verdict: Result<String, _> = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    match verdict.map_err(StoreError::from) {
        Ok(verdict) if verdict == "ok" => Ok(true),
        // It speaks in lines; an error is one sentence.
        Ok(verdict) => Err(StoreError::Corrupt(
            verdict.lines().collect::<Vec<_>>().join(" "),
        )),
        Err(StoreError::StatementTimeout) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a failed write means. SQLite calls it an I/O error when the file system has turned
/// read-only (as ext4 does when it meets damage); nothing was written then, so reading can go on. A
/// failed sync is never taken for that: what it left on disk is not known.
pub(super) fn write_failure(conn: &Connection, error: rusqlite::Error) -> StoreError {
    let unwritten = matches!(&error, rusqlite::Error::SqliteFailure(code, _)
        if code.extended_code == rusqlite::ffi::SQLITE_IOERR_WRITE);
    if unwritten
        && conn
            .path()
            .is_some_and(|path| is_read_only(Path::new(path)))
    {
        return StoreError::ReadOnly;
    }
    error.into()
}

/// Asked by writing: the flags of a mount don't tell of a read-only state forced by an error.
fn is_read_only(database: &Path) -> bool {
    let probe = database.with_extension("probe");
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe);
    match made {
        Ok(_) => {
            // One that stays is in nobody's way but the next probe's.
            let _stays = std::fs::remove_file(&probe);
            false
        }
        Err(error) => error.kind() == std::io::ErrorKind::ReadOnlyFilesystem,
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(code, message) = &error else {
            return StoreError::Bug(error.to_string());
        };
        let text = message.clone().unwrap_or_else(|| error.to_string());
        match code.code {
            ErrorCode::ConstraintViolation => StoreError::Constraint(text),
            ErrorCode::DiskFull => StoreError::StorageFull,
            // The shared-memory file of the WAL could not grow: a full disk as well.
            ErrorCode::SystemIoFailure
                if code.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE =>
            {
                StoreError::StorageFull
            }
            ErrorCode::ReadOnly => StoreError::ReadOnly,
            ErrorCode::OperationInterrupted => StoreError::StatementTimeout,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Busy,
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::OutOfMemory => {
                StoreError::Io(text)
            }
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => StoreError::Corrupt(text),
            _ => StoreError::Bug(text),
        }
    }
}
