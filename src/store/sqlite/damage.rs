//! Reads a write-ahead log that nobody has open: which pages SQLite would read from it, and whether it
//! is damaged or a write at its end was merely cut off.
//!
//! SQLite reads a log up to its first frame that does not check, whatever lies behind that. A write
//! that a crash cut off looks like that, and so does a flipped bit in the middle, which would take
//! all later commits along in silence. Invariants: every commit is synced before the next one begins,
//! so of all frames that SQLite does not read, at most the last transaction's may be missing their
//! base; a commit on which further frames were built was complete, and if it is not read, it is lost.
//! What an undone transaction left behind is not taken for a commit, nor what is left of the time
//! before the log started anew. Nothing is written here.
//!
//! The format: <https://sqlite.org/fileformat2.html#walformat>.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// The magic number; the lowest bit says in which order the bytes are summed up.
const MAGIC: u32 = 0x377f_0682;
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 512..=65_536;
/// Where the header does not say it.
const PAGE_BYTES_DEFAULT: usize = 4_096;

pub(in crate::store) type Sum = (u32, u32);

/// Where a log is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Damage {
    /// The first frame that does not check, from 1; 0 for the header.
    pub(in crate::store) frame: u64,
}

/// What SQLite reads of a log: whole commits, up to the first frame that does not check.
#[derive(Debug, Default)]
pub(in crate::store) struct Commits {
    /// Size of a page in bytes.
    pub(in crate::store) page_bytes: usize,
    /// The pages that are read from the log and not from the database, and the frame of each, from 1.
    pub(in crate::store) pages: HashMap<u32, u64>,
    /// How many pages the database has after the last of them.
    pub(in crate::store) database_pages: u32,
}

/// What a log holds.
#[derive(Debug, Default)]
pub(in crate::store) struct Log {
    /// `None` if SQLite reads nothing of it.
    pub(in crate::store) commits: Option<Commits>,
    /// Where it is damaged, with commits behind that.
    pub(in crate::store) damage: Option<Damage>,
}

/// Looks a log over that nobody has open. A log that is not there holds nothing.
pub(in crate::store) fn read(log: &Path) -> std::io::Result<Log> {
    let file = match File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Log::default()),
        Err(error) => return Err(error),
    };
    scan(BufReader::with_capacity(1 << 20, file))
}

/// Whether a database holds all that a log held which was beside it: so it does once the log was folded into
/// it, and not if somebody took the log away before. Nobody may have either open.
pub(in crate::store) fn is_folded(log: &Path, database: &Path) -> std::io::Result<bool> {
    let found = read(log)?;
    if found.damage.is_some() {
        return Ok(false);
    }
    let Some(commits) = found.commits else {
        return Ok(true);
    };
    let (log, database) = (File::open(log)?, File::open(database)?);
    let mut pages: Vec<(u32, u64)> = commits.pages.into_iter().collect();
    pages.sort_unstable();
    let bytes = commits.page_bytes;
    let (mut logged, mut kept) = (vec![0; bytes], vec![0; bytes]);
    for (page, frame) in pages {
        if page > commits.database_pages {
            break; // cut off by a later commit
        }
        let from = HEADER_BYTES as u64 + (frame - 1) * (FRAME_HEADER_BYTES + bytes) as u64;
        log.read_exact_at(&mut logged, from + FRAME_HEADER_BYTES as u64)?;
        match database.read_exact_at(&mut kept, u64::from(page - 1) * bytes as u64) {
            Ok(()) if logged == kept => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The header, as far as it can be trusted.
struct Header {
    page_bytes: usize,
    is_big_endian: bool,
    /// What every frame of this log bears, and the sum on which the first one builds.
    valid: Option<([u8; 8], Sum)>,
}

impl Header {
    fn read(bytes: &[u8; HEADER_BYTES]) -> Self {
        let (magic, page_bytes) = (word(bytes, 0), word(bytes, 8) as usize);
        let is_big_endian = magic == MAGIC | 1;
        let sum = summed((0, 0), &bytes[..24], is_big_endian);
        let fits = PAGE_BYTES.contains(&page_bytes) && page_bytes.is_power_of_two();
        let holds = magic & !1 == MAGIC && fits && sum == (word(bytes, 24), word(bytes, 28));
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[16..24]);
        Self {
            page_bytes: if fits { page_bytes } else { PAGE_BYTES_DEFAULT },
            is_big_endian,
            valid: holds.then_some((salts, sum)),
        }
    }
}

fn scan(mut log: impl Read) -> std::io::Result<Log> {
    let mut bytes = [0; HEADER_BYTES];
    let mut found = Log::default();
    if !fill(&mut log, &mut bytes)? || bytes == [0; HEADER_BYTES] {
        return Ok(found); // not begun
    }
    // The pages of a transaction whose end was not met yet.
    let mut begun = Vec::new();
    let header = Header::read(&bytes);
    let mut salts = header.valid.map(|(salts, _)| salts);
    // What SQLite reads builds on this; `None` once something did not check.
    let mut base = header.valid.map(|(_, sum)| sum);
    let mut damage = Damage { frame: 0 };
    // Of the frame before: the sum that it bears, or should bear, and whether it ends a commit. It need
    // not check itself: a frame that builds on its sum shows that it was of this log.
    let (mut before, mut is_after_commit) = (Vec::new(), false);
    let mut frame = vec![0; FRAME_HEADER_BYTES + header.page_bytes];
    for number in 1.. {
        if !fill(&mut log, &mut frame)? {
            return Ok(found);
        }
        let (head, page) = frame.split_at(FRAME_HEADER_BYTES);
        let salts = *salts.get_or_insert_with(|| {
            let mut first = [0; 8];
            first.copy_from_slice(&head[8..16]);
            first
        });
        let is_of_this_log = word(head, 0) != 0 && head[8..16] == salts;
        let is_commit = word(head, 4) != 0;
        let borne = (word(head, 16), word(head, 20));
        let from = |sum: Sum| {
            let sum = summed(sum, &head[..8], header.is_big_endian);
            summed(sum, page, header.is_big_endian)
        };
        let builds_on = |sum: &Sum| is_of_this_log && from(*sum) == borne;
        if let Some(sum) = base {
            if builds_on(&sum) {
                base = Some(borne);
                begun.push((word(head, 0), number));
                if is_commit {
                    let commits = found.commits.get_or_insert_default();
                    commits.page_bytes = header.page_bytes;
                    commits.pages.extend(begun.drain(..));
                    commits.database_pages = word(head, 4);
                }
                continue;
            }
            base = None;
            damage.frame = number;
            before = vec![borne, from(sum)];
        } else {
            if is_after_commit && before.iter().any(builds_on) {
                found.damage = Some(damage);
                return Ok(found);
            }
            before = vec![borne];
        }
        is_after_commit = is_commit;
    }
    Ok(found)
}

/// Reads exactly as much; `false` at the end, even if a part was there.
fn fill(log: &mut impl Read, into: &mut [u8]) -> std::io::Result<bool> {
    match log.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}

/// The log's checksum, continued over `bytes`, whose number is a multiple of eight.
pub(in crate::store) fn summed((mut one, mut two): Sum, bytes: &[u8], is_big_endian: bool) -> Sum {
    let number = |bytes: &[u8]| {
        let mut word = [0; 4];
        word.copy_from_slice(bytes);
        match is_big_endian {
            true => u32::from_be_bytes(word),
            false => u32::from_le_bytes(word),
        }
    };
    for pair in bytes.chunks_exact(8) {
        one = one.wrapping_add(number(&pair[..4])).wrapping_add(two);
        two = two.wrapping_add(number(&pair[4..])).wrapping_add(one);
    }
    (one, two)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;

    fn open(path: &Path) -> Connection {
        let conn = Connection::open(path).expect("opened");
        let set = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; \
                   PRAGMA cache_size = 8; CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x BLOB)";
        conn.execute_batch(set).expect("set");
        conn
    }

    fn write(conn: &Connection, rows: u32, ends: &str) {
        conn.execute_batch("BEGIN IMMEDIATE").expect("begun");
        for _ in 0..rows {
            conn.execute("INSERT INTO t (x) VALUES (randomblob(700))", [])
                .expect("written");
        }
        conn.execute_batch(ends).expect("ended");
    }

    fn log(path: &Path) -> Vec<u8> {
        std::fs::read(path.with_extension("db-wal")).expect("the log")
    }

    /// Frames up to the end of the last commit, as SQLite counts them.
    fn frames(conn: &Connection) -> u64 {
        let count: i64 = conn
            .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1))
            .expect("a count");
        count as u64
    }

    fn found(log: &[u8]) -> Option<Damage> {
        scan(log).expect("read").damage
    }

    #[test]
    fn a_log_that_is_sound_cut_off_or_begun_anew_is_not_damaged() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.db");
        let conn = open(&path);
        let nothing = read(&path.with_extension("db-nothing")).expect("read");
        assert!(nothing.damage.is_none() && nothing.commits.is_none());
        for rows in [1, 40, 3, 200, 1] {
            write(&conn, rows, "COMMIT");
            // Larger than its cache, so that it comes to the log before it is undone.
            write(&conn, 100, "ROLLBACK");
            write(&conn, 1, "COMMIT");
        }
        let whole = log(&path);
        assert_eq!(found(&whole), None);
        assert_eq!(
            found(&[&whole[..], &[0; 100_000]].concat()),
            None,
            "zeros behind it"
        );
        for end in (0..whole.len()).step_by(1_000) {
            assert_eq!(found(&whole[..end]), None, "cut at {end}");
            // The file may have its size before it has its content.
            let mut torn = whole.clone();
            torn[end..].fill(0);
            assert_eq!(found(&torn), None, "zeros from {end}");
        }
        // The next round overwrites what is there, and what is left of this one fits it no more.
        for round in 0..20 {
            let mut anew = "PRAGMA wal_checkpoint(RESTART)".to_owned();
            anew.push_str(if round % 2 == 0 {
                "; BEGIN; COMMIT"
            } else {
                ""
            });
            conn.execute_batch(&anew).expect("begun anew");
            write(&conn, 1 + round % 7, "COMMIT");
            assert_eq!(found(&log(&path)), None);
        }
        assert_eq!(
            found(b"no log at all, but longer than a header would be, and than a page"),
            None
        );
        assert_eq!(found(&[0xa5; 20_000]), None);
    }

    /// SQLite folds a log and removes it when the last program closes the database; with its second name
    /// it can be told from one that was only removed.
    #[test]
    fn a_log_that_was_folded_is_told_from_one_that_was_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.db");
        let (log, second) = (path.with_extension("db-wal"), dir.path().join("kept"));
        let left = |ends: &str, anew: bool| {
            for file in [&path, &log, &second, &path.with_extension("db-shm")] {
                let _none = std::fs::remove_file(file);
            }
            let conn = open(&path);
            std::fs::hard_link(&log, &second).expect("linked");
            write(&conn, 40, "COMMIT");
            conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)")
                .expect("copied");
            if anew {
                conn.execute_batch("PRAGMA wal_checkpoint(RESTART)")
                    .expect("begun anew");
            }
            write(&conn, 100, "COMMIT");
            conn.execute_batch("UPDATE t SET x = zeroblob(700) WHERE id % 7 = 0")
                .expect("written");
            write(&conn, 3, ends);
            conn
        };
        let folded = || is_folded(&second, &path).expect("read");
        for anew in [false, true] {
            drop(left("COMMIT", anew));
            assert!(!log.exists(), "the last one to close it removes it");
            assert!(folded(), "{anew}");
            // What is missing of it, wherever that is.
            let conn = left("ROLLBACK", anew);
            assert!(!folded(), "{anew}");
            conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)")
                .expect("copied");
            assert!(folded(), "{anew}: all of it was copied");
            conn.execute_batch("UPDATE t SET x = 1 WHERE id = 9")
                .expect("written");
            assert!(!folded(), "{anew}: one commit was not");
            drop(conn);
            drop(left("COMMIT", anew));
            let conn = Connection::open(&path).expect("opened");
            conn.execute_batch("DELETE FROM t WHERE id > 5; VACUUM")
                .expect("made smaller");
            drop(conn);
            assert!(!folded(), "{anew}: another log was folded since");
            let conn = left("COMMIT", anew);
            conn.execute_batch("DELETE FROM t WHERE id > 5; VACUUM")
                .expect("made smaller");
            drop(conn);
            assert!(folded(), "{anew}: also by who made the file smaller");
        }
        std::fs::write(&second, "").expect("emptied");
        assert!(folded(), "there was nothing in it");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

        /// A write that a power cut left incomplete, whichever of its blocks came to the disk, is no
        /// damage; a flipped bit is, unless it is in what was written last.
        #[test]
        fn one_bit_in_what_was_synced_is_found_and_a_torn_last_write_is_not(
            sizes in prop::collection::vec((1u32..30, any::<bool>()), 2..12),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
            lost in prop::collection::vec(any::<bool>(), 200),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("t.db");
            let conn = open(&path);
            let (mut earlier, mut last) = (0, frames(&conn));
            for (rows, is_undone) in sizes {
                if is_undone {
                    write(&conn, 60, "ROLLBACK");
                }
                write(&conn, rows, "COMMIT");
                (earlier, last) = (last, frames(&conn));
            }
            let whole = log(&path);
            let size = FRAME_HEADER_BYTES + PAGE_BYTES_DEFAULT;
            let place = |frame: u64| HEADER_BYTES + frame as usize * size;
            prop_assert_eq!(found(&whole), None);

            let mut torn = whole.clone();
            for (block, is_lost) in torn[place(earlier)..place(last)].chunks_mut(512).zip(lost.iter().cycle()) {
                if *is_lost {
                    block.fill(0);
                }
            }
            prop_assert_eq!(found(&torn), None);

            let at = at.index(place(earlier));
            let mut flipped = whole;
            flipped[at] ^= 1 << bit;
            // A commit that seems to be none, with one more behind it, may be a write that was cut off.
            let is_unmade = |at: usize| flipped[at..at + 4] == [0; 4];
            prop_assume!(earlier == 0 || !is_unmade(place(earlier - 1) + 4));
            let frame = at.checked_sub(HEADER_BYTES).map_or(0, |at| (at / size) as u64 + 1);
            let expected = Some(Damage { frame });
            prop_assert_eq!(found(&flipped), expected, "byte {} of {}, commits to {} and {}", at, place(last), earlier, last);
        }
    }
}
