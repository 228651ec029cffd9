//! Sums of the database's pages: taken after an orderly stop, compared from the next start on.
//!
//! SQLite has no sums in its file. A bit that a disk turned round inside a row is served as if somebody had
//! written it so, and one inside the tree of pages is met whenever a statement comes by. Invariants:
//! - The sums are of the file as the last process left it, with no log beside it. They are removed before
//!   anything is changed, and written anew by an orderly stop alone, which nothing was found damaged before.
//! - Sums that are missing, torn, or of another size of pages say nothing; then the structure of the
//!   file is looked over instead (`quick_check`).
//! - A file that differs and still has the time of its last change was changed by nobody: it is damaged. One
//!   that somebody wrote to, such as `sqlite3`, is looked over, and told of.
//! - The first pages are compared before the start, for a bounded time. What is left of a large file is
//!   compared beside those who are served, before the first checkpoint: until then, nobody writes to the
//!   file. The handle that it is read by stays open as long as the database (store/sqlite.rs says why).

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::connection;
use super::damage::{Sum, summed};
use crate::clock::Stopwatch;
use crate::store::StoreError;

/// What the file begins with; the last digit is the version of its format.
const BEGIN: &[u8; 8] = b"onrsums1";
/// Begin, size of a page, time of the last change in seconds and nanoseconds, number of pages.
const HEAD_BYTES: usize = 40;
const SUM_BYTES: usize = 8;
/// Read at a time.
const CHUNK_BYTES: usize = 262_144;
/// Pages that are named; beyond it, they are counted.
const NAMED_MAX: usize = 8;
/// Sums that there can be: of 16 GiB of pages of 4 KiB, which is more than is read while a stop waits.
const SUMS_MAX: usize = 1 << 22;

/// What the pages of a database added up to.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) struct Sums {
    page_bytes: usize,
    changed_at: (i64, i64),
    /// Of the first pages, in their order.
    pages: Vec<Sum>,
}

pub(in crate::store) fn beside(database: &Path) -> PathBuf {
    database.with_extension("sums")
}

fn changed_at(file: &File) -> std::io::Result<(i64, i64)> {
    let meta = file.metadata()?;
    Ok((meta.mtime(), meta.mtime_nsec()))
}

fn sum_of(page: &[u8]) -> Sum {
    // So that a page of zeros does not add up to nothing.
    summed((1, 1), page, false)
}

/// Calls `visit` with the number and the bytes of each page from `first` on, from 0, until it has had enough.
fn each_page(
    file: &File,
    page_bytes: usize,
    first: usize,
    mut visit: impl FnMut(usize, &[u8]) -> bool,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES.max(page_bytes)];
    let mut page = first;
    loop {
        let at = page as u64 * page_bytes as u64;
        let mut filled = 0;
        while filled < chunk.len() {
            match file.read_at(&mut chunk[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        for bytes in chunk[..filled].chunks_exact(page_bytes) {
            if !visit(page, bytes) {
                return Ok(());
            }
            page += 1;
        }
        if filled < chunk.len() {
            return Ok(());
        }
    }
}

impl Sums {
    /// Of a database that nobody has open; of its first pages alone, if there are more than fit in `budget`.
    pub(in crate::store) fn take(
        database: &Path,
        budget: Duration,
    ) -> Result<Option<Self>, StoreError> {
        let Some(head) = connection::head(database)? else {
            return Ok(None);
        };
        let watch = Stopwatch::start();
        let taken = || -> std::io::Result<Self> {
            let file = File::open(database)?;
            let mut pages = Vec::new();
            let changed_at = changed_at(&file)?;
            each_page(&file, head.page_bytes, 0, |_, bytes| {
                pages.push(sum_of(bytes));
                pages.len() < SUMS_MAX && watch.elapsed() < budget
            })?;
            Ok(Self {
                page_bytes: head.page_bytes,
                changed_at,
                pages,
            })
        };
        taken()
            .map(Some)
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", database.display())))
    }

    /// Puts them beside the database, whole or not at all. A cut of the power may leave them torn.
    pub(in crate::store) fn write(&self, database: &Path) -> std::io::Result<()> {
        let path = beside(database);
        let aside = path.with_extension("sums.part");
        remove(&aside)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(&self.bytes())?;
        std::fs::rename(&aside, &path)
    }

    /// Those that lie beside the database, if they can be read.
    pub(in crate::store) fn load(database: &Path) -> Option<Self> {
        let file = File::open(beside(database)).ok()?;
        let bytes_max = HEAD_BYTES as u64 + ((SUMS_MAX + 1) * SUM_BYTES) as u64;
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes).ok()?;
        Self::parse(&bytes)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = BEGIN.to_vec();
        for number in [
            self.page_bytes as u64,
            self.changed_at.0.cast_unsigned(),
            self.changed_at.1.cast_unsigned(),
            self.pages.len() as u64,
        ] {
            bytes.extend(number.to_be_bytes());
        }
        for sum in &self.pages {
            bytes.extend(written(*sum));
        }
        let own = sum_of(&bytes);
        bytes.extend(written(own));
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (rest, own) = bytes.split_last_chunk::<SUM_BYTES>()?;
        let (head, sums) = rest.split_at_checked(HEAD_BYTES)?;
        if &head[..8] != BEGIN || sums.len() % SUM_BYTES != 0 || *own != written(sum_of(rest)) {
            return None;
        }
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&head[at..at + 8]);
            u64::from_be_bytes(number)
        };
        if number(32) != (sums.len() / SUM_BYTES) as u64 {
            return None;
        }
        let pages = sums.chunks_exact(SUM_BYTES).map(|sum| {
            let half =
                |at: usize| u32::from_be_bytes([sum[at], sum[at + 1], sum[at + 2], sum[at + 3]]);
            (half(0), half(4))
        });
        Some(Self {
            page_bytes: usize::try_from(number(8)).ok()?,
            changed_at: (number(16).cast_signed(), number(24).cast_signed()),
            pages: pages.collect(),
        })
    }
}

fn written(sum: Sum) -> [u8; SUM_BYTES] {
    let mut bytes = [0; SUM_BYTES];
    bytes[..4].copy_from_slice(&sum.0.to_be_bytes());
    bytes[4..].copy_from_slice(&sum.1.to_be_bytes());
    bytes
}

/// Removes a file, if it is there.
pub(in crate::store) fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a comparison came to.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum Verdict {
    /// Every page that there was a sum of is as it was.
    Same,
    /// Pages differ, and nobody wrote to the file.
    Damaged(String),
    /// Somebody wrote to the file; in words, what differs.
    Changed(String),
}

/// A database on its way through the comparison.
#[derive(Debug)]
pub(in crate::store) struct Comparison {
    file: Arc<File>,
    sums: Sums,
    was_touched: bool,
    /// The next page to be compared, from 0.
    next: usize,
    /// Pages that were written since by us, from 1, in order.
    skipped: Vec<u32>,
    /// The first pages that differ, from 1, and how many there are.
    differing: (Vec<usize>, usize),
}

impl Comparison {
    /// Of a database that nobody has open. `None` where the sums are of something else.
    pub(in crate::store) fn begin(database: &Path, sums: Sums) -> Result<Option<Self>, StoreError> {
        let Some(head) = connection::head(database)? else {
            return Ok(None);
        };
        if head.page_bytes != sums.page_bytes {
            return Ok(None);
        }
        let opened = File::open(database).and_then(|file| Ok((changed_at(&file)?, file)));
        let (changed_at, file) = opened
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", database.display())))?;
        Ok(Some(Self {
            file: Arc::new(file),
            was_touched: changed_at != sums.changed_at,
            sums,
            next: 0,
            skipped: Vec::new(),
            differing: (Vec::new(), 0),
        }))
    }

    /// Whether there is a sum of every page of the file.
    pub(in crate::store) fn is_of_all(&self) -> bool {
        let bytes = self.sums.pages.len() as u64 * self.sums.page_bytes as u64;
        self.file.metadata().is_ok_and(|meta| meta.len() <= bytes)
    }

    /// The handle that must stay open.
    pub(in crate::store) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Leaves these pages out, which this process writes.
    pub(in crate::store) fn skip(&mut self, pages: impl IntoIterator<Item = u32>) {
        self.skipped.extend(pages);
        self.skipped.sort_unstable();
    }

    /// Goes on for `budget`. Whether it has come to its end.
    pub(in crate::store) fn step(&mut self, budget: Duration) -> Result<bool, StoreError> {
        let watch = Stopwatch::start();
        let (sums, skipped) = (&self.sums, &self.skipped);
        let (next, (named, count)) = (&mut self.next, &mut self.differing);
        let mut has_stopped = false;
        each_page(&self.file, sums.page_bytes, *next, |page, bytes| {
            let Some(sum) = sums.pages.get(page) else {
                has_stopped = true;
                return false;
            };
            let number = page + 1;
            let is_skipped =
                u32::try_from(number).is_ok_and(|number| skipped.binary_search(&number).is_ok());
            if sum_of(bytes) != *sum && !is_skipped {
                *count += 1;
                if named.len() < NAMED_MAX {
                    named.push(number);
                }
            }
            *next = number;
            has_stopped = watch.elapsed() >= budget;
            !has_stopped
        })
        .map_err(|error| StoreError::Io(error.to_string()))?;
        let pages = sums.pages.len();
        if !has_stopped && *next < pages {
            // The file ends before the sums do.
            if named.is_empty() {
                named.push(*next + 1);
            }
            *count += pages - *next;
            *next = pages;
        }
        Ok(*next >= pages)
    }

    /// What was found so far.
    pub(in crate::store) fn verdict(&self) -> Verdict {
        let (named, count) = &self.differing;
        if *count == 0 {
            return Verdict::Same;
        }
        let mut text = match count {
            1 => "page ".to_owned(),
            _ => "pages ".to_owned(),
        };
        let names: Vec<String> = named.iter().map(usize::to_string).collect();
        text.push_str(&names.join(", "));
        if *count > named.len() {
            text.push_str(&format!(" and {} more", count - named.len()));
        }
        let verb = if *count == 1 { "is" } else { "are" };
        match self.was_touched {
            true => Verdict::Changed(format!(
                "{text} of it {verb} not as the last process left it"
            )),
            false => Verdict::Damaged(format!(
                "{text} of it {verb} not as the last process left it, and nobody has written to it since"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn database(path: &Path) {
        let conn = rusqlite::Connection::open(path).expect("opened");
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB); \
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) \
             INSERT INTO t (x) SELECT randomblob(900) FROM n",
        )
        .expect("filled");
    }

    fn compared(path: &Path) -> Verdict {
        let sums = Sums::load(path).expect("sums");
        let mut comparison = Comparison::begin(path, sums)
            .expect("read")
            .expect("of the same pages");
        while !comparison.step(Duration::ZERO).expect("read") {}
        comparison.verdict()
    }

    /// Changes a byte as a disk does: without a word.
    fn rot(path: &Path, at: u64, with: u8) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("a file");
        let modified = file.metadata().and_then(|meta| meta.modified());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[byte[0] ^ with], at).expect("written");
        file.set_modified(modified.expect("a time")).expect("set");
    }

    #[test]
    fn every_byte_that_a_disk_changed_is_found_wherever_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.db");
        database(&path);
        let sums = Sums::take(&path, LONG).expect("read").expect("a database");
        sums.write(&path).expect("written");
        assert_eq!(Sums::load(&path), Some(sums));
        assert_eq!(compared(&path), Verdict::Same);
        let bytes = std::fs::metadata(&path).expect("a file").len();
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..200 {
            let (at, bit) = (
                random.random_range(0..bytes),
                1 << random.random_range(0..8),
            );
            // What is no database, or one of other pages, is refused or looked over before there are sums of it.
            if at < 18 {
                continue;
            }
            rot(&path, at, bit);
            let page = at / 4_096 + 1;
            match compared(&path) {
                Verdict::Damaged(what) => {
                    assert!(
                        what.starts_with(&format!("page {page} ")),
                        "{what}, seed {seed}"
                    );
                }
                other => panic!("byte {at}, seed {seed}: {other:?}"),
            }
            rot(&path, at, bit);
        }
        assert_eq!(compared(&path), Verdict::Same);
    }

    #[test]
    fn what_somebody_wrote_is_no_damage_and_what_we_write_is_left_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.db");
        database(&path);
        let take = || Sums::take(&path, LONG).expect("read").expect("a database");
        let sums = take();
        sums.write(&path).expect("written");
        let conn = rusqlite::Connection::open(&path).expect("opened");
        conn.execute("UPDATE t SET x = zeroblob(900) WHERE id = 7", [])
            .expect("written");
        drop(conn);
        assert!(matches!(compared(&path), Verdict::Changed(_)));

        let (old, new) = (sums, take());
        let written: Vec<u32> = (1..)
            .zip(old.pages.iter().zip(&new.pages))
            .filter_map(|(page, (old, new))| (old != new).then_some(page))
            .collect();
        let mut comparison = Comparison::begin(&path, old)
            .expect("read")
            .expect("of the same pages");
        comparison.skip(written);
        assert!(comparison.step(LONG).expect("read"));
        assert_eq!(comparison.verdict(), Verdict::Same);
    }

    #[test]
    fn a_file_that_was_cut_short_differs_and_sums_that_are_torn_say_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.db");
        database(&path);
        let sums = Sums::take(&path, LONG).expect("read").expect("a database");
        sums.write(&path).expect("written");
        let whole = std::fs::read(beside(&path)).expect("the sums");
        for cut in [0, 7, 8, 40, 48, whole.len() - 1] {
            assert_eq!(Sums::parse(&whole[..cut]), None, "{cut}");
        }
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 4;
            assert_eq!(Sums::parse(&torn), None, "{at}");
        }
        let file = File::options().write(true).open(&path).expect("a file");
        let bytes = file.metadata().expect("its size").len();
        file.set_len(bytes - 8_192).expect("cut");
        assert!(matches!(compared(&path), Verdict::Changed(_)));
    }
}
