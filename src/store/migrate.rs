//! The numbered migrations, embedded in the binary, and the guard against foreign or newer files.
//!
//! Invariants: migrations only add; a database of a newer Onrush, or of another program, is refused
//! before a byte of it is touched.

use std::io::Read;
use std::path::Path;

use refinery::{Migration, Runner};
use rusqlite::Connection;

use super::StoreError;

/// `PRAGMA application_id` of every Onrush database: "Onrs" in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x4f6e_7273;

const MIGRATIONS: &[(&str, &str)] = &[
    ("V1__shop", include_str!("migrations/0001_shop.sql")),
    ("V2__tasks", include_str!("migrations/0002_tasks.sql")),
    (
        "V3__schedules",
        include_str!("migrations/0003_schedules.sql"),
    ),
    ("V4__webhooks", include_str!("migrations/0004_webhooks.sql")),
    ("V5__reports", include_str!("migrations/0005_reports.sql")),
    (
        "V6__task_external_ids",
        include_str!("migrations/0006_task_external_ids.sql"),
    ),
    (
        "V7__task_keys_edges_batches",
        include_str!("migrations/0007_task_keys_edges_batches.sql"),
    ),
];

/// The DDL as SQLite reads it.
fn for_sqlite(text: &str) -> String {
    text.replace("{id}", "INTEGER PRIMARY KEY")
        .replace("{clustered}", "WITHOUT ROWID")
}

/// The version that this binary brings a database to.
pub(super) fn latest() -> i32 {
    i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX)
}

/// Reads the file's header alone and refuses what this binary must not open.
///
/// <https://sqlite.org/fileformat2.html#the_database_header>: magic at 0, `user_version` at 60,
/// `application_id` at 68, big-endian.
pub(super) fn check_header(path: &Path) -> Result<(), StoreError> {
    let mut header = [0u8; 100];
    match std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Ok(()) => {}
        // Absent, or empty because a first start was cut off: both are a new database.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return match std::fs::metadata(path).map(|meta| meta.len()) {
                Ok(0) => Ok(()),
                _ => Err(StoreError::Corrupt(format!(
                    "{} is not a database",
                    path.display()
                ))),
            };
        }
        Err(error) => {
            return Err(StoreError::Unavailable(format!(
                "{}: {error}",
                path.display()
            )));
        }
    }
    if &header[..16] != b"SQLite format 3\0" {
        return Err(StoreError::Corrupt(format!(
            "{} is not a database",
            path.display()
        )));
    }
    let field = |at: usize| {
        i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    check_versions(field(68), field(60))
}

fn check_versions(application_id: i32, version: i32) -> Result<(), StoreError> {
    // A first start that was cut off between creation and migration leaves both at 0.
    if application_id != APPLICATION_ID && !(application_id == 0 && version == 0) {
        return Err(StoreError::Foreign(
            "the database belongs to another program; choose another data directory".to_owned(),
        ));
    }
    if version > latest() {
        return Err(StoreError::Foreign(format!(
            "the database was written by a newer Onrush (schema {version}, this one knows {}); \
             start that version, or restore a backup",
            latest()
        )));
    }
    Ok(())
}

/// Brings the database to [`latest`], each migration in its own transaction.
pub(super) fn run(conn: &mut Connection) -> Result<(), StoreError> {
    let application_id: i32 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    check_versions(application_id, version)?;
    if version == latest() {
        return Ok(());
    }
    let migrations = MIGRATIONS
        .iter()
        .map(|(name, text)| Migration::unapplied(name, &for_sqlite(text)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| StoreError::Bug(error.to_string()))?;
    Runner::new(&migrations).run(conn).map_err(|error| {
        StoreError::Unavailable(format!("the database could not be upgraded: {error}"))
    })?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", latest())?;
    Ok(())
}
