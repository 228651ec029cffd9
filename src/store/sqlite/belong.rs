//! Tells a database's own write-ahead log from another's.
//!
//! A log holds whole pages and names no database. Put beside another one, such as a backup that was
//! moved into place after a crash, SQLite writes its pages over that one's and deletes it. Neither the
//! log's salts nor its checksums help: they are about the log alone.
//!
//! So each opening leaves a mark. Before anything else is written, a new random mark goes into the
//! table `openings`, all of the log is copied into the database, and the log begins anew, empty. Then
//! the lock file, which stays where the log stays, is told the mark and the schema's version
//! ([`crate::store::DataDir::note_open`]). From then on the database without its log bears the mark at every
//! moment: a checkpoint only writes pages that are in the log, and nobody writes that row again. So a
//! log beside a lock file with marks belongs to the database if and only if that bears one of them.
//!
//! Why a healthy pair is never refused:
//! - The mark is read from the database alone, without the log. A power cut in the middle of a checkpoint
//!   can leave a torn page only where the log has the whole one, and the row's page is not in the log.
//!   If the database can't be read by itself, nothing follows from that, and only the look over both
//!   together decides (`quick_check`).
//! - While the mark is being changed, and while the database opens and closes, the lock file names both
//!   marks or the one that still holds. Where the old one is not known, it names none.
//! - The schema's version only ever grows, also when another program changes the schema. `VACUUM` by another program
//!   writes every page to the log; then it does not matter what the database held.
//! - Where the lock file names no mark (an earlier Onrush, a lock file that was removed, a crash
//!   within the very first opening), the mark decides nothing.
//!
//! Why another's is not accepted:
//! - A file of another shop, or one that was copied from this shop before the last start, bears another
//!   mark or none.
//! - A copy that SQLite made since the last start bears the right mark, but `VACUUM INTO` leaves it in
//!   rollback mode, and a database with a log is never in that mode; the backup API gives it a schema
//!   version of its own, which is smaller.
//! - What `cp` takes from under a running server is no database: its pages are of different moments.
//!   The mark can't tell it; the look over both together does where the pages don't fit.
//!
//! Nothing is written here but the mark.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use rusqlite::{Connection, OptionalExtension};

use super::connection;
use super::damage::Commits;
use crate::store::StoreError;

const TOKEN_DIGITS: usize = 32;
/// <https://sqlite.org/fileformat2.html#the_lock_byte_page>
const LOCKS_AT: usize = 1 << 30;

/// What one opening left in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    token: String,
    /// The smallest version of the schema (`PRAGMA schema_version`) that the database can have.
    schema: i32,
}

impl Mark {
    /// One that no database bears yet.
    pub fn fresh() -> Self {
        Self {
            token: format!("{:032x}", rand::random::<u128>()),
            schema: 0,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.token, self.schema)
    }
}

impl FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (token, schema) = text.split_once('@').ok_or(())?;
        if token.len() != TOKEN_DIGITS || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(());
        }
        Ok(Self {
            token: token.to_owned(),
            schema: schema.parse().map_err(|_| ())?,
        })
    }
}

/// Gives the database its mark and has the log begin anew. `None` if it may bear the old one still: a
/// full disk, or another program that reads and so keeps the log from being copied.
///
/// `before_fold` is called when all that this start has written is in the log.
pub(in crate::store) fn renew(
    conn: &Connection,
    fresh: &Mark,
    before_fold: impl FnOnce(),
) -> Result<Option<Mark>, StoreError> {
    let renewed = move || -> Result<Option<Mark>, StoreError> {
        conn.execute(
            "INSERT INTO openings (id, mark) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET mark = excluded.mark",
            [&fresh.token],
        )?;
        let schema = conn.query_row("PRAGMA schema_version", [], |row| row.get(0))?;
        before_fold();
        let is_busy: bool =
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        Ok((!is_busy).then(|| Mark {
            token: fresh.token.clone(),
            schema,
        }))
    };
    match renewed() {
        Err(StoreError::StorageFull | StoreError::ReadOnly | StoreError::Busy) => Ok(None),
        other => other,
    }
}

/// Refuses a log with `commits` that is not the database's. `marks` are those of the lock file.
pub(in crate::store) fn check(
    path: &Path,
    commits: &Commits,
    marks: &[Mark],
) -> Result<(), StoreError> {
    let fits = connection::head(path)?
        .is_some_and(|head| head.is_in_wal_mode && head.page_bytes == commits.page_bytes);
    if !fits {
        return Err(foreign(path));
    }
    if marks.is_empty() {
        return Ok(());
    }
    // This page lies where SQLite's locks are, and nothing is ever written to it.
    let never_written = (LOCKS_AT / commits.page_bytes + 1) as u32;
    let is_whole = commits.database_pages > 0
        && (1..=commits.database_pages)
            .all(|page| page == never_written || commits.pages.contains_key(&page));
    match borne_alone(path) {
        Err(error) => {
            tracing::info!(%error, "the database can't be read without its log");
            Ok(())
        }
        Ok(borne) => {
            let is_own = borne.is_some_and(|borne| {
                marks
                    .iter()
                    .any(|mark| mark.token == borne.token && mark.schema <= borne.schema)
            });
            (is_own || is_whole)
                .then_some(())
                .ok_or_else(|| foreign(path))
        }
    }
}

/// The mark of the database as it is without its log.
fn borne_alone(path: &Path) -> Result<Option<Mark>, StoreError> {
    let conn = connection::open_without_log(path)?;
    // Its header may already tell of pages that the checkpoint had yet to write.
    conn.pragma_update(None, "writable_schema", true)?;
    let schema = conn.query_row("PRAGMA schema_version", [], |row| row.get(0))?;
    let has_table = conn
        .query_row(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'openings'",
            [],
            |_| Ok(()),
        )
        .optional()?
        .is_some();
    if !has_table {
        return Ok(None);
    }
    let token = conn
        .query_row("SELECT mark FROM openings WHERE id = 1", [], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(token.map(|token| Mark { token, schema }))
}

fn foreign(path: &Path) -> StoreError {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    StoreError::Foreign(format!(
        "{name}-wal in {} belongs to another database than {name}, and nothing was changed: if {name} is a \
         backup that was put in place, move {name}-wal, {name}-shm and onrush.lock out of the directory, \
         and start; if it is not, put the {name} back that the log was written for",
        path.parent().unwrap_or(Path::new(".")).display()
    ))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::config::Database;
    use crate::store::{checkpoint, damage, migrate};

    #[test]
    fn a_mark_is_read_as_it_is_written_and_nothing_else_is_one() {
        let mark = Mark {
            schema: 71,
            ..Mark::fresh()
        };
        assert_eq!(mark.to_string().parse(), Ok(mark));
        let zeros = "0".repeat(TOKEN_DIGITS);
        for text in ["", "open", "@", "12@3", &zeros, &format!("{zeros}@x")] {
            assert_eq!(text.parse::<Mark>(), Err(()), "{text}");
        }
        assert_ne!(Mark::fresh(), Mark::fresh());
    }

    /// Opened as a start does it; the bytes of the database and of the log are read beside it.
    fn open(path: &Path) -> (Connection, Mark) {
        let mut conn = connection::open_writer(path, &Database::default()).expect("opened");
        migrate::run(&mut conn).expect("migrated");
        let mark = renew(&conn, &Mark::fresh(), || ()).expect("marked");
        (conn, mark.expect("nobody reads"))
    }

    fn write(conn: &Connection, rows: u32) {
        conn.execute_batch("BEGIN IMMEDIATE").expect("begun");
        for _ in 0..rows {
            let sql = "INSERT INTO idempotency_keys (key, caller, fingerprint, location, body, created_at) \
                       VALUES (hex(randomblob(16)), 'c', '', '', hex(randomblob(300)), 0)";
            conn.execute(sql, []).expect("written");
        }
        conn.execute_batch("COMMIT").expect("committed");
    }

    /// A power cut in a checkpoint: some of the log's pages are in the database, others in part.
    fn cut_in_a_checkpoint(database: &[u8], log: &[u8], random: &mut StdRng) -> Vec<u8> {
        let mut cut = database.to_vec();
        for frame in log[32..].chunks_exact(24 + 4_096) {
            let page = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
            let (from, to) = match random.random_range(0..4) {
                0 => (0, 4_096),
                1 => (0, 512 * random.random_range(1..8)),
                2 => (512 * random.random_range(1..8), 4_096),
                _ => continue,
            };
            let at = (page - 1) * 4_096;
            if cut.len() < at + 4_096 {
                cut.resize(at + 4_096, 0);
            }
            cut[at + from..at + to].copy_from_slice(&frame[24 + from..24 + to]);
        }
        cut
    }

    #[test]
    fn its_own_log_is_known_in_the_middle_of_a_checkpoint_and_an_earlier_file_is_not_its_database()
    {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("shop.db");
        let log = checkpoint::log_of(&path);
        let (first, _) = open(&path);
        write(&first, 50);
        drop(first);
        let earlier = std::fs::read(&path).expect("the database");
        for how in ["", "CREATE TABLE other (x)", "VACUUM", "DROP TABLE other"] {
            let (conn, mark) = open(&path);
            write(&conn, 200);
            conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)")
                .expect("copied");
            write(&conn, 30);
            conn.execute_batch(how).expect(how);
            write(&conn, 3);
            let (database, pages) = (
                std::fs::read(&path).expect("the database"),
                std::fs::read(&log).expect("the log"),
            );
            let place = root.path().join("cut.db");
            std::fs::write(checkpoint::log_of(&place), &pages).expect("written");
            let commits = damage::read(&checkpoint::log_of(&place))
                .expect("read")
                .commits;
            let commits = commits.expect("commits");
            let marks = [Mark::fresh(), mark];
            for round in 0..60 {
                let cut = cut_in_a_checkpoint(&database, &pages, &mut random);
                std::fs::write(&place, cut).expect("written");
                let verdict = check(&place, &commits, &marks);
                assert!(verdict.is_ok(), "{how}, {round}, seed {seed}: {verdict:?}");
            }
            if how != "VACUUM" {
                // `VACUUM` has all pages in the log: whatever lies below is not read.
                std::fs::write(&place, &earlier).expect("written");
                let verdict = check(&place, &commits, &marks);
                assert!(
                    matches!(verdict, Err(StoreError::Foreign(_))),
                    "{how}: {verdict:?}"
                );
            }
        }
    }
}
