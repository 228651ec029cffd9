//! The data directory: every path in it, its mode, and the lock that keeps a second process out.
//!
//! Invariants: mode 0700; one process at a time; the lock file tells who holds it, and whether the
//! last holder let go in an orderly way. It says `4711` while process 4711 opens or closes the
//! database, `4711 open` in between, and nothing after an orderly end. So a database or a
//! write-ahead log that should be there and is not is missed, instead of being made anew, empty. Behind
//! that stand the marks of the database that the log belongs to (store/belong.rs).
//!
//! A process that has only taken the lock has changed nothing: the changes begin with
//! [`DataDir::begin`]. If it lets go before that, the directory is as it was, and what was made for the
//! lock is gone again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::sqlite::belong::Mark;
use super::sqlite::checkpoint::log_of;
use super::sqlite::{damage, sums};
use crate::clock::Stopwatch;

/// Why a data directory can't be used; each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Another process uses it.
    #[error("{} is in use by {holder}; stop that one first, or choose another directory with --data-dir", .dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The process that the lock file names.
        holder: String,
    },
    /// Others may read it.
    #[error("{} can be read by others (mode {mode:o}); {advice}", .dir.display())]
    TooOpen {
        /// The data directory.
        dir: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// How this process can come by one that others can't read.
        advice: String,
    },
    /// It can't be made or used.
    #[error("{}: {reason}", .dir.display())]
    Unusable {
        /// The data directory or a file in it.
        dir: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file that holds orders is not there.
    #[error("the database is damaged: {} is {what}; put it back, or restore a backup of onrush.db; \
        only if no order can be in it, remove {}", .file.display(), .lock.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
        /// The file that remembers it.
        lock: PathBuf,
    },
    /// The last process met damage.
    #[error("the database is damaged: the process that served {} last met damage in it, and its log says where; \
        keep a copy of the directory, see what is sound with `onrush stock verify`, then put a backup of onrush.db \
        in its place (without -wal and -shm files, and without {})", .dir.display(), .lock.display())]
    Damaged {
        /// The data directory.
        dir: PathBuf,
        /// The file that remembers it.
        lock: PathBuf,
    },
}

/// What a process that ended left in the lock file for the time between opening and closing.
const OPEN: &str = "open";
/// What a process leaves in the lock file that met damage.
const DAMAGED: &str = "damaged";
/// Files in the data directory whose mode is looked at.
const NARROWED_MAX: usize = 1_000;

/// How long the lock may be another's: a command that reads what an unclean stop left has it for a
/// moment ([`idle`]).
const LOCK_WAIT: Duration = Duration::from_millis(500);
const LOCK_STEP: Duration = Duration::from_millis(10);
/// How long an orderly stop may take the sums of the database's pages: of more than a gigabyte that is in
/// the system's cache. What is left of a larger one has none.
const SUMS_WAIT: Duration = Duration::from_secs(3);

/// What the last process said of its end in the lock file.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// It was orderly, or there was no process.
    pub is_clean: bool,
    /// There was a lock file to say so.
    pub(super) is_known: bool,
    /// The database and its log should both be there.
    is_open: bool,
    /// The database is damaged.
    is_damaged: bool,
    /// The marks of which the log's database bears one; none where it is not known.
    pub(super) marks: Vec<Mark>,
}

impl Left {
    fn read(text: &str, is_known: bool) -> Self {
        let mut words = text.split_whitespace();
        let is_clean = words.next().is_none();
        let rest: Vec<&str> = words.collect();
        Self {
            is_clean,
            is_known,
            is_open: rest.first() == Some(&OPEN),
            is_damaged: rest.contains(&DAMAGED),
            marks: rest.iter().filter_map(|word| word.parse().ok()).collect(),
        }
    }
}

/// What was made to take the lock.
#[derive(Clone, Copy, Debug)]
struct Made {
    dir: bool,
    lock: bool,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    lock: File,
    left: Left,
    made: Made,
    /// Whether anything in it was changed.
    has_begun: AtomicBool,
    /// Whether the lock file says so of this process.
    is_open: AtomicBool,
    /// Whether an orderly end is to be noted as one: not before what an unclean one left was looked over.
    is_sound: AtomicBool,
    /// Whether the lock file is to say that the database is damaged.
    is_damaged: AtomicBool,
    /// Those that the lock file names.
    marks: Mutex<Vec<Mark>>,
    /// Held while the lock file is written.
    writing: Mutex<()>,
}

impl DataDir {
    /// Makes the directory if need be, checks its mode and takes its lock. From now on all that this process
    /// makes is its user's alone.
    pub fn open(root: &Path) -> Result<Self, DirError> {
        umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let makes_dir = !root.exists();
        if makes_dir {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(root)
                .map_err(|error| unusable(root, error))?;
        }
        let meta = std::fs::metadata(root).map_err(|error| unusable(root, error))?;
        if !meta.is_dir() {
            return Err(unusable(root, ErrorKind::NotADirectory.into()));
        }
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(DirError::TooOpen {
                dir: root.to_owned(),
                mode,
                advice: how_to_close(root, meta.uid()),
            });
        }
        let path = lock_in(root);
        let (mut lock, makes_lock) = take_lock(root, &path)?;
        let mut text = String::new();
        let read = lock.read_to_string(&mut text);
        let dir = Self {
            root: root.to_owned(),
            lock,
            left: Left::read(&text, !makes_lock),
            made: Made {
                dir: makes_dir,
                lock: makes_lock,
            },
            has_begun: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
            is_sound: AtomicBool::new(true),
            is_damaged: AtomicBool::new(false),
            marks: Mutex::default(),
            writing: Mutex::default(),
        };
        read.map_err(|error| unusable(&path, error))?;
        if dir.left.is_damaged {
            return Err(DirError::Damaged {
                dir: root.to_owned(),
                lock: path,
            });
        }
        find_missing(root, &dir.left)?;
        Ok(dir)
    }

    /// Notes that this process changes what is here from now on, and that the database gets the mark
    /// `next`. A full disk must not keep a shop from starting to read: without the note, the next start
    /// merely takes this stop for a clean one.
    pub fn begin(&self, next: &Mark) {
        self.has_begun.store(true, Ordering::Release);
        if let Err(error) = narrow(&self.root) {
            tracing::warn!(%error, "not every file's mode could be set to its user alone");
        }
        {
            let mut marks = self.marks.lock();
            marks.clone_from(&self.left.marks);
            // Where it is not known which one the database bears, the new one alone would be wrong.
            if !marks.is_empty() {
                marks.push(next.clone());
            }
        }
        if let Err(error) = self.note_closing() {
            tracing::warn!(%error, "the process id could not be noted in the lock file");
        }
        // They are of the file as it was until now. Left there, they would be compared only after an
        // orderly stop that could not write new ones, and then tell of a change.
        if let Err(error) = sums::remove(&sums::beside(&self.database())) {
            tracing::warn!(%error, "the sums of the last stop could not be removed");
        }
    }

    /// Notes that the database and its log are there from now on, and the mark that the database bears
    /// where that is known.
    pub fn note_open(&self, mark: Option<&Mark>) -> std::io::Result<()> {
        let (log, kept) = (log_of(&self.database()), kept_in(&self.root));
        // Where a file system knows no second names, a log that was folded can't be told from one that
        // was taken away.
        if let Err(error) = sums::remove(&kept).and_then(|()| std::fs::hard_link(log, kept)) {
            tracing::info!(%error, "the write-ahead log gets no second name");
        }
        // The names first: the note must not be on disk without them.
        File::open(&self.root)?.sync_all()?;
        if let Some(mark) = mark {
            *self.marks.lock() = vec![mark.clone()];
        }
        self.is_open.store(true, Ordering::Release);
        self.note(&[OPEN])
    }

    /// Notes that the database closes, which removes its log.
    pub fn note_closing(&self) -> std::io::Result<()> {
        self.is_open.store(false, Ordering::Release);
        self.note(&[])
    }

    /// Writes the process id, `words` and the marks.
    fn note(&self, words: &[&str]) -> std::io::Result<()> {
        let _alone = self.writing.lock();
        let mut text = std::process::id().to_string();
        let marks: Vec<String> = self.marks.lock().iter().map(Mark::to_string).collect();
        let damaged = self.is_damaged.load(Ordering::Acquire).then_some(DAMAGED);
        for word in words
            .iter()
            .copied()
            .chain(marks.iter().map(String::as_str))
            .chain(damaged)
        {
            text.push(' ');
            text.push_str(word);
        }
        self.write(&text)
    }

    fn write(&self, text: &str) -> std::io::Result<()> {
        let mut file = &self.lock;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.sync_data()
    }

    /// What the last process left.
    pub fn left(&self) -> &Left {
        &self.left
    }

    /// Whether what an unclean stop left was looked over to the end. Until then, an orderly end is not
    /// noted as one, so that the next start looks again.
    pub fn set_sound(&self, is_sound: bool) {
        self.is_sound.store(is_sound, Ordering::Release);
    }

    /// Notes that the database is damaged, for all later starts.
    pub fn note_damage(&self) {
        self.is_damaged.store(true, Ordering::Release);
        let words: &[&str] = match self.is_open.load(Ordering::Acquire) {
            true => &[OPEN],
            false => &[],
        };
        if let Err(error) = self.note(words) {
            tracing::error!(%error, "the damage could not be noted in the lock file; the next start may not know of it");
        }
    }

    /// Notes an orderly end; to be called when everything else is closed. The sums of the database's pages
    /// are taken for it ([`super::sqlite::sums`]).
    pub fn release(&self) {
        self.has_begun.store(true, Ordering::Release);
        if let Err(error) = sums::remove(&kept_in(&self.root)) {
            tracing::warn!(%error, "the second name of the log could not be removed");
        }
        if !self.is_sound.load(Ordering::Acquire) || self.is_damaged.load(Ordering::Acquire) {
            return;
        }
        let database = self.database();
        let taken = sums::Sums::take(&database, SUMS_WAIT).map(|sums| {
            sums.map_or(Ok(()), |sums| sums.write(&database))
                .map_err(|error| error.to_string())
        });
        if let Err(error) = taken.unwrap_or_else(|error| Err(error.to_string())) {
            tracing::warn!(
                error,
                "the sums of the database could not be kept; the next start looks it over by its structure"
            );
        }
        let _alone = self.writing.lock();
        if self.is_damaged.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.write("") {
            tracing::warn!(%error, "the orderly stop could not be noted; the next start checks the database");
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The record.
    pub fn database(&self) -> PathBuf {
        database_in(&self.root)
    }

    /// The tasks' delivery index, which may be deleted at any time.
    pub fn queue(&self) -> PathBuf {
        self.root.join("queue")
    }

    /// The cache's level on disk and its list of hot keys, which may be deleted at any time.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Mails that there is no server for.
    pub fn outbox(&self) -> PathBuf {
        self.root.join("outbox")
    }

    /// Files that the owner serves under `/static/`.
    pub fn static_files(&self) -> PathBuf {
        self.root.join("static")
    }
}

/// How a directory that others may read becomes one that they may not, or what to take in its place:
/// a mounted volume often belongs to another user, or keeps the mode that it was mounted with.
fn how_to_close(root: &Path, owner: u32) -> String {
    let (shown, own) = (quoted(root), nix::unistd::geteuid());
    let may_close = own.is_root() || own.as_raw() == owner;
    let is_used = database_in(root).exists();
    let inside = || {
        let inside = quoted(&root.join("onrush"));
        format!(
            "name a directory in it, which is then made for its user alone: --data-dir {inside}"
        )
    };
    match (may_close, is_used) {
        (true, true) => format!("run: chmod 700 {shown}"),
        (true, false) => format!(
            "run: chmod 700 {shown}; or, where a mounted volume does not take that, {}",
            inside()
        ),
        (false, false) => format!(
            "it belongs to user {owner}, and this is user {own}, so {}",
            inside()
        ),
        (false, true) => format!(
            "it belongs to user {owner}, and this is user {own}: have root run: chown -R {own} {shown} && chmod 700 {shown}"
        ),
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// Where the database of a data directory is, for a process that only reads beside its holder.
pub fn database_in(root: &Path) -> PathBuf {
    root.join("onrush.db")
}

fn lock_in(root: &Path) -> PathBuf {
    root.join("onrush.lock")
}

/// The second name of the write-ahead log.
fn kept_in(root: &Path) -> PathBuf {
    root.join("onrush.wal-kept")
}

/// Refuses a directory that lost a file with orders in it. `left` is what its lock file says.
pub(super) fn find_missing(root: &Path, left: &Left) -> Result<(), DirError> {
    let bytes = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.len());
    let (was_open, was_clean) = (left.is_open, left.is_clean);
    let (database, lock) = (database_in(root), lock_in(root));
    let log = log_of(&database);
    let missing = |file, what: &str| {
        let what = what.to_owned();
        Err(DirError::Missing { file, what, lock })
    };
    // SQLite would throw it away.
    let has_log = bytes(&log).is_some_and(|bytes| bytes > 0);
    match bytes(&database) {
        None if was_open || has_log => missing(database, "missing"),
        // After an end in the middle of the very first start, it may be empty.
        Some(0) if was_open || has_log || (was_clean && left.is_known) => {
            missing(database, "empty")
        }
        Some(1..) if was_open && !has_log => {
            let kept = kept_in(root);
            match (bytes(&kept), damage::is_folded(&kept, &database)) {
                // An empty log that nothing was written to.
                (None, _) if bytes(&log).is_some() => Ok(()),
                (None, _) => missing(
                    log,
                    "missing, and the last process did not end in order (had another program, such \
                     as sqlite3, opened and closed the database since, then nothing is lost)",
                ),
                (Some(_), Ok(true)) => Ok(()),
                (Some(_), Ok(false) | Err(_)) => missing(
                    log,
                    "missing, the last process did not end in order, and what was accepted is not all \
                     in the database; the log is still there under its second name (in that \
                     directory: ln onrush.wal-kept onrush.db-wal)",
                ),
            }
        }
        _ => Ok(()),
    }
}

/// Takes from others what rights they have to the files of a data directory. They can't come by them through
/// it; but a copy, or a file that is moved elsewhere, has the mode that it had here.
fn narrow(root: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root)?.take(NARROWED_MAX) {
        let entry = entry?;
        let name = entry.file_name();
        // What the owner serves, and certificates that other programs may read as well, are the owner's.
        if name == "static" || name == "tls" {
            continue;
        }
        // It does not follow a link.
        let meta = entry.metadata()?;
        let mode = meta.permissions().mode();
        if mode & 0o077 != 0 && (meta.is_file() || meta.is_dir()) {
            let narrowed = std::fs::Permissions::from_mode(mode & 0o7700);
            std::fs::set_permissions(entry.path(), narrowed)?;
        }
    }
    Ok(())
}

fn unusable(path: &Path, error: std::io::Error) -> DirError {
    DirError::Unusable {
        dir: path.to_owned(),
        reason: match error.kind() {
            ErrorKind::ReadOnlyFilesystem => {
                "the file system is read-only; make it writable, or choose another directory with --data-dir"
                    .to_owned()
            }
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                "it is no directory; name one with --data-dir".to_owned()
            }
            ErrorKind::PermissionDenied => format!(
                "{error}; run as the user that may write there, or choose another directory with --data-dir"
            ),
            _ => error.to_string(),
        },
    }
}

/// The lock, and whether its file was made for that.
fn take_lock(root: &Path, path: &Path) -> Result<(File, bool), DirError> {
    let watch = Stopwatch::start();
    loop {
        let is_new = !path.exists();
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| unusable(path, error))?;
        match lock.try_lock() {
            Ok(()) if is_at(&lock, path) => return Ok((lock, is_new)),
            // The one who held it had made it, and took it away again: this lock is worth nothing.
            Ok(()) | Err(TryLockError::WouldBlock) if watch.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_STEP);
            }
            Ok(()) | Err(TryLockError::WouldBlock) => {
                return Err(DirError::InUse {
                    dir: root.to_owned(),
                    holder: holder(&mut lock),
                });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(path, error)),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// Who holds the lock, as far as the file tells: before a start has begun to change anything, the file
/// names the one that was there before.
fn holder(lock: &mut File) -> String {
    let mut text = String::new();
    let named = lock
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| text.split_whitespace().next()?.parse().ok())
        // Signal 0 is not sent; it tells whether the process is there, though it may be another user's.
        .filter(|pid| {
            *pid > 0 && signal::kill(Pid::from_raw(*pid), None) != Err(nix::errno::Errno::ESRCH)
        });
    match named {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

impl Drop for DataDir {
    /// A start that refuses leaves the directory as it was. One that fails later, or a panic, closes the
    /// database without order, yet closes it.
    fn drop(&mut self) {
        if !self.has_begun.load(Ordering::Acquire) {
            // What can't be taken away again is empty, and in nobody's way.
            if self.made.lock {
                let _stays = std::fs::remove_file(lock_in(&self.root));
            }
            if self.made.dir {
                let _stays = std::fs::remove_dir(&self.root);
            }
            return;
        }
        if self.is_open.load(Ordering::Acquire)
            && let Err(error) = self.note_closing()
        {
            tracing::warn!(%error, "the stop could not be noted in the lock file");
        }
    }
}

/// A directory that no process serves; where there is a lock file, none can as long as this lives.
pub(super) struct Idle {
    pub(super) left: Left,
    /// Shared with others who read.
    _lock: Option<File>,
}

/// For who only reads and takes no lock of its own. `None` where a process has the directory, or where
/// that can't be told.
pub(super) fn idle(root: &Path) -> Option<Idle> {
    let mut lock = match File::open(lock_in(root)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Some(Idle {
                left: Left::read("", false),
                _lock: None,
            });
        }
        Err(_) => return None,
    };
    lock.try_lock_shared().ok()?;
    let mut text = String::new();
    lock.read_to_string(&mut text).ok()?;
    Some(Idle {
        left: Left::read(&text, true),
        _lock: Some(lock),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_says_how_the_last_process_ended_also_an_earlier_onrush() {
        let mark = Mark::fresh();
        for (text, is_clean, is_open, marks) in [
            ("", true, false, 0),
            ("4711", false, false, 0),
            ("4711 open", false, true, 0),
            (&format!("4711 open {mark}"), false, true, 1),
            (&format!("4711 {mark} {}", Mark::fresh()), false, false, 2),
            ("4711 open nonsense", false, true, 0),
            (&format!("4711 open {mark} damaged"), false, true, 1),
        ] {
            let left = Left::read(text, true);
            let is = (left.is_clean, left.is_open, left.marks.len());
            assert_eq!(is, (is_clean, is_open, marks), "{text}");
            assert_eq!(left.is_damaged, text.ends_with("damaged"), "{text}");
        }
    }

    #[test]
    fn what_was_made_for_the_lock_alone_is_gone_after_a_refusal() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("data");
        drop(DataDir::open(&path).expect("made"));
        assert!(!path.exists());
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .expect("made");
        drop(DataDir::open(&path).expect("locked"));
        assert!(path.exists() && !lock_in(&path).exists());
        let kept = DataDir::open(&path).expect("locked");
        kept.begin(&Mark::fresh());
        drop(kept);
        assert!(lock_in(&path).exists());
        std::fs::write(lock_in(&path), "4711 open").expect("written");
        std::fs::write(path.join("onrush.db"), "x").expect("written");
        DataDir::open(&path).expect_err("the log is missing");
        let text = std::fs::read_to_string(lock_in(&path)).expect("read");
        assert_eq!(text, "4711 open", "it remembers for the next start as well");
    }
}
