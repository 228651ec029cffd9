//! What SQLite's result codes mean, and how it says that it runs a statement.
//!
//! Invariants: every result code that a caller could meet is matched by name, and the rest is a bug; a unique
//! violation is known by its code, and told with its columns.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::ffi::{self, ErrorCode};

use super::StoreError;

/// What an error of a statement means, whether it reads or writes. SQLite calls it an I/O error when the
/// file system has turned read-only (as ext4 does when it meets damage), whether that stopped a write, or
/// a sync of what the cache still took: one state has one answer.
pub(super) fn failure(conn: &Connection, error: rusqlite::Error) -> StoreError {
    let writes = matches!(&error, rusqlite::Error::SqliteFailure(code, _)
    if code.code == ErrorCode::CannotOpen || matches!(
        code.extended_code,
        ffi::SQLITE_IOERR_WRITE
            | ffi::SQLITE_IOERR_TRUNCATE
            | ffi::SQLITE_IOERR_SHMSIZE
            | ffi::SQLITE_IOERR_SHMOPEN
    )) || is_failed_sync(&error);
    if writes
        && conn
            .path()
            .is_some_and(|path| is_read_only(Path::new(path)))
    {
        return StoreError::ReadOnly;
    }
    error.into()
}

/// Whether what was written may be on the disk or not.
pub(super) fn is_failed_sync(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(code, _)
        if matches!(code.extended_code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC))
}

/// Asked by writing: the flags of a mount don't tell of a read-only state forced by an error.
fn is_read_only(database: &Path) -> bool {
    let probe = database.with_extension("probe");
    let made = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
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
            ErrorCode::ConstraintViolation => match code.extended_code {
                ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY => {
                    // Which it is, SQLite says nowhere else: "UNIQUE constraint failed: users.email".
                    let columns = text
                        .rsplit_once(": ")
                        .map(|(_, columns)| columns.to_owned());
                    StoreError::Unique(columns.unwrap_or(text))
                }
                _ => StoreError::Constraint(text),
            },
            ErrorCode::DiskFull => StoreError::StorageFull,
            // The shared-memory file of the WAL could not grow: a full disk as well.
            ErrorCode::SystemIoFailure if code.extended_code == ffi::SQLITE_IOERR_SHMSIZE => {
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
