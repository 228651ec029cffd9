//! SQLite connections: how each is opened, and what is asserted of it.
//!
//! Invariants: the library is at least 3.51.3 (older ones can lose commits when the WAL is reset);
//! every PRAGMA that safety depends on is read back after it was set; no file of a database is opened by other
//! means while this process has a connection to it, because closing that would give up the connection's
//! locks (<https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>),
//! and another program that ends would take the log for its own and delete it.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::clock::Stopwatch;
use crate::config::Database;
use crate::store::StoreError;

/// The first release without the WAL-reset bug: <https://sqlite.org/wal.html#walresetbug>.
const VERSION_MIN: i32 = 3_051_003;
/// How long the readers may take to open: a start on a busy machine must not fail for a limit that
/// is meant for requests.
const OPEN_WAIT: Duration = Duration::from_secs(30);
/// How long the writer waits for another process that writes, such as `sqlite3`.
pub(in crate::store) const WRITER_WAIT: Duration = Duration::from_secs(5);
/// How many virtual-machine steps pass between two looks at the statement's deadline.
const PROGRESS_STEPS: i32 = 10_000;
/// The same for a look over the file, whose steps are pages and rows.
const CHECK_STEPS: i32 = 200;
/// How much is written to find out whether a disk that was full has room again: what a few commits take.
const PROBE_BYTES: usize = 262_144;
/// A look over the whole file beside those who are served goes on for this long, then rests: a quarter of
/// one processor at most, and never the disk for itself.
const SLICE: Duration = Duration::from_millis(4);
const SLICE_REST: Duration = Duration::from_millis(12);

thread_local! {
    /// When the read that runs on this thread started, and how long it may take. A statement runs
    /// on one thread from start to end, so the progress handler finds it here.
    static READ_LIMIT: Cell<Option<(Stopwatch, Duration)>> = const { Cell::new(None) };
    /// Turns false when nobody waits any more for the read that runs on this thread.
    static WANTED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Gives up the statements that `run` executes on this thread once `wanted` is false.
pub(in crate::store) fn while_wanted<T>(wanted: Arc<AtomicBool>, run: impl FnOnce() -> T) -> T {
    WANTED.set(Some(wanted));
    let result = run();
    WANTED.set(None);
    result
}

fn is_given_up() -> bool {
    let is_over = READ_LIMIT
        .get()
        .is_some_and(|(watch, limit)| watch.elapsed() > limit);
    let is_wanted = |wanted: &Arc<AtomicBool>| wanted.load(Ordering::Acquire);
    is_over || !WANTED.with_borrow(|wanted| wanted.as_ref().is_none_or(is_wanted))
}

/// Limits the statements that `run` executes on this thread.
pub(in crate::store) fn with_limit<T>(limit: Duration, run: impl FnOnce() -> T) -> T {
    READ_LIMIT.set(Some((Stopwatch::start(), limit)));
    let result = run();
    READ_LIMIT.set(None);
    result
}

/// The one connection that writes.
pub(in crate::store) fn open_writer(
    path: &Path,
    settings: &Database,
) -> Result<Connection, StoreError> {
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
    prepare_once(&conn, settings)?;
    Ok(conn)
}

/// Keeps statements prepared. Without the planner's stability guarantee (QPSG), SQLite looks at a value that is
/// bound to a LIMIT while it plans, and so plans such a statement anew at each call: measured, 31 µs in place
/// of 3 for a look-up of a few rows.
fn prepare_once(conn: &Connection, settings: &Database) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.set_prepared_statement_cache_capacity(settings.statement_cache);
    Ok(())
}

/// A second connection that only folds the write-ahead log into the database.
pub(in crate::store) fn open_checkpointer(path: &Path) -> Result<Connection, StoreError> {
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
pub(in crate::store) fn open_readers(
    path: &Path,
    settings: &Database,
) -> Result<r2d2::Pool<SqliteConnectionManager>, StoreError> {
    let reads = settings.clone();
    let manager = SqliteConnectionManager::file(path)
        .with_flags(OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .with_init(move |conn| prepare_reader(conn, &reads));
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

fn prepare_reader(conn: &Connection, settings: &Database) -> rusqlite::Result<()> {
    let mmap_bytes = i64::try_from(settings.mmap_bytes).unwrap_or(i64::MAX);
    conn.pragma_update(None, "query_only", true)?;
    conn.pragma_update(None, "cache_size", -i64::from(settings.reader_cache_kib))?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.pragma_update(None, "mmap_size", mmap_bytes)?;
    conn.busy_timeout(Duration::from_secs(1))?;
    prepare_once(conn, settings)?;
    conn.progress_handler(PROGRESS_STEPS, Some(is_given_up))
}

/// What is known of a database before a reader of its own is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Around {
    /// A process may have it: its log and the memory of that are shared.
    Served,
    /// Nobody has it, and it is all in one file.
    Closed,
    /// Nobody has it, and it has a log.
    LeftOpen,
}

/// A reader of its own, for what may take long. Where nobody has the database, no file is changed, and
/// none that was not there before stays, but for the log's shared memory where a log was without it: it
/// can't be taken away again while a server may have begun to use it.
pub(in crate::store) fn open_reader(
    path: &Path,
    settings: &Database,
    around: Around,
) -> Result<Connection, StoreError> {
    let memory = beside(path, "-shm");
    let conn = match around {
        Around::LeftOpen if memory.exists() => open_uri(path, "readonly_shm=1")?,
        // SQLite makes the files that it reads with, and takes them away again if it may write.
        Around::Closed if !memory.exists() => Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?,
        Around::Closed if beside(path, "-wal").exists() => open_uri(path, "readonly_shm=1")?,
        Around::Served | Around::Closed | Around::LeftOpen => Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?,
    };
    let settings = Database {
        // It may read everything once: mapped pages would stay in the process's memory.
        mmap_bytes: 0,
        ..settings.clone()
    };
    prepare_reader(&conn, &settings)?;
    Ok(conn)
}

/// The database as it is without its log, which nobody has open. No file is made or changed.
pub(in crate::store) fn open_without_log(path: &Path) -> Result<Connection, StoreError> {
    open_uri(path, "immutable=1")
}

/// The database and its log, which nobody has open and nobody can open meanwhile.
pub(in crate::store) struct Untouched {
    conn: Connection,
    // After the connection: it is dropped after that.
    _made: Option<MadeMemory>,
}

impl std::ops::Deref for Untouched {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.conn
    }
}

struct MadeMemory(PathBuf);

impl Drop for MadeMemory {
    fn drop(&mut self) {
        // One that stays is empty, and SQLite makes it anew.
        let _stays = std::fs::remove_file(&self.0);
    }
}

/// Both together, as SQLite reads them. It is told that it may not write the log's shared memory, and so
/// keeps its own; the database is opened read-only, and a reader never writes to a log. So no file is
/// changed, and one that had to be made is gone at the end. `has_log` tells whether there are commits in it.
pub(in crate::store) fn open_untouched(
    path: &Path,
    has_log: bool,
) -> Result<Untouched, StoreError> {
    if !has_log {
        let conn = open_without_log(path)?;
        return Ok(Untouched { conn, _made: None });
    }
    let memory = beside(path, "-shm");
    // It must be there, if only to be locked.
    let made = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&memory);
    let made = match made {
        Ok(_) => Some(MadeMemory(memory)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
        Err(error) => {
            return Err(StoreError::Unavailable(format!(
                "{}: {error}",
                memory.display()
            )));
        }
    };
    let conn = open_uri(path, "readonly_shm=1")?;
    Ok(Untouched { conn, _made: made })
}

fn open_uri(path: &Path, query: &str) -> Result<Connection, StoreError> {
    let conn = Connection::open_with_flags(
        uri(path, query),
        OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI,
    )?;
    keep_log(&conn)?;
    Ok(conn)
}

/// <https://sqlite.org/uri.html>
fn uri(path: &Path, query: &str) -> String {
    let mut uri = "file:".to_owned();
    if path.is_absolute() {
        uri.push_str("//");
    }
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push('?');
    uri.push_str(query);
    uri
}

/// Leaves the log as it is when the connection is closed.
pub(in crate::store) fn keep_log(conn: &Connection) -> Result<(), StoreError> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(())
}

pub(in crate::store) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// What the first bytes of a database that nobody has open say:
/// <https://sqlite.org/fileformat2.html#the_database_header>.
pub(in crate::store) struct Head {
    pub(in crate::store) page_bytes: usize,
    pub(in crate::store) is_in_wal_mode: bool,
    pub(in crate::store) application_id: i32,
    pub(in crate::store) version: i32,
}

/// `None` if there is no database, or an empty one because a first start was cut off.
pub(in crate::store) fn head(path: &Path) -> Result<Option<Head>, StoreError> {
    let no_database = || {
        Err(StoreError::Corrupt(format!(
            "{} is not a database",
            path.display()
        )))
    };
    let mut bytes = [0u8; 100];
    match File::open(path).and_then(|mut file| file.read_exact(&mut bytes)) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return match file_bytes(path) {
                0 => Ok(None),
                _ => no_database(),
            };
        }
        Err(error) => {
            return Err(StoreError::Unavailable(format!(
                "{}: {error}",
                path.display()
            )));
        }
    }
    if &bytes[..16] != b"SQLite format 3\0" {
        return no_database();
    }
    let number =
        |at: usize| i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(Some(Head {
        page_bytes: match u16::from_be_bytes([bytes[16], bytes[17]]) {
            1 => 65_536,
            bytes => bytes.into(),
        },
        is_in_wal_mode: bytes[18] == 2 && bytes[19] == 2,
        application_id: number(68),
        version: number(60),
    }))
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

/// How a look over the file goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Pace {
    /// As fast as it goes: nobody is served.
    Alone,
    /// A slice at a time, beside others.
    Beside,
}

/// `PRAGMA quick_check`, stopped after `budget`. `Ok(false)` when the time did not suffice.
pub(in crate::store) fn quick_check(
    conn: &Connection,
    budget: Duration,
) -> Result<bool, StoreError> {
    look(conn, "quick_check(1)", budget, Pace::Alone)
}

/// The same, one table after the other, each as it is at its own moment: a look that takes minutes must not
/// keep the write-ahead log from starting anew all that time. `goes_on` is asked before each.
pub(in crate::store) fn quick_check_beside(
    conn: &Connection,
    budget: Duration,
    goes_on: impl Fn() -> bool,
) -> Result<bool, StoreError> {
    let watch = Stopwatch::start();
    for table in tables(conn)? {
        let left = budget.saturating_sub(watch.elapsed());
        let of = format!("quick_check({})", quoted(&table));
        if !goes_on() || !look(conn, &of, left, Pace::Beside)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The tables that a look goes over, the list of them first: without that, none of the others is found.
pub(in crate::store) fn tables(conn: &Connection) -> Result<Vec<String>, StoreError> {
    let mut names = vec!["sqlite_schema".to_owned()];
    let mut listed =
        conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let mut rows = listed.query([])?;
    while let Some(row) = rows.next()? {
        names.push(row.get(0)?);
    }
    Ok(names)
}

/// Looks one table and its indexes over, entries against rows as well, however long that takes.
pub(in crate::store) fn check_table(conn: &Connection, table: &str) -> Result<(), StoreError> {
    let of = format!("integrity_check({})", quoted(table));
    look(conn, &of, Duration::MAX, Pace::Alone).map(drop)
}

/// A name as SQL takes it.
fn quoted(name: &str) -> String {
    format!("'{}'", name.replace('\'', "''"))
}

fn look(conn: &Connection, check: &str, budget: Duration, pace: Pace) -> Result<bool, StoreError> {
    let watch = Stopwatch::start();
    let mut slice = Stopwatch::start();
    let is_over = move || {
        if pace == Pace::Beside && slice.elapsed() > SLICE {
            std::thread::sleep(SLICE_REST);
            slice = Stopwatch::start();
        }
        watch.elapsed() > budget
    };
    conn.progress_handler(CHECK_STEPS, Some(is_over))?;
    let verdict: Result<String, _> =
        conn.query_row(&format!("PRAGMA {check}"), [], |row| row.get(0));
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

/// Whether the disk takes a little more: a file is written beside the database, synced and removed.
pub(in crate::store) fn takes_more(database: &Path) -> bool {
    let probe = database.with_extension("room");
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&probe)
        .and_then(|mut file| {
            file.write_all(&[0x5a; PROBE_BYTES])?;
            file.sync_all()
        });
    let removed = std::fs::remove_file(&probe);
    written.and(removed).is_ok()
}

/// Size of a file in bytes; 0 for one that is not there.
pub(in crate::store) fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map(|meta| meta.len()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_planned_once_whatever_is_bound_to_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let conn = open_writer(&dir.path().join("onrush.db"), &Database::default());
        let conn = conn.expect("a database");
        conn.execute_batch("CREATE TABLE t (a bigint, b bigint); CREATE INDEX t_a ON t (a, b)")
            .expect("a table");
        for limit in 1..5 {
            let mut statement = conn
                .prepare_cached("SELECT b FROM t WHERE a >= $1 ORDER BY a LIMIT $2")
                .expect("a statement");
            let rows = statement.query_map([limit, limit], |row| row.get::<_, i64>(0));
            assert_eq!(rows.expect("rows").count(), 0);
            assert_eq!(
                statement.get_status(rusqlite::StatementStatus::RePrepare),
                0
            );
        }
    }
}
