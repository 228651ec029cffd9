//! The data directory: every path in it, its mode, and the lock that keeps a second process out.
//!
//! Invariants: mode 0700; one process at a time; the lock file tells who holds it, and whether the
//! last holder let go in an orderly way. It says `4711` while process 4711 opens or closes the
//! database, `4711 open` in between, and nothing after an orderly end. So a database or a
//! write-ahead log that should be there and is not is missed, instead of being made anew, empty.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::Stopwatch;

/// Why a data directory can't be used; each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Another process uses it.
    #[error("{} is in use by process {holder}; stop that one first, or choose another directory with --data-dir", .dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The process id that the lock file names.
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
        what: &'static str,
        /// The file that remembers it.
        lock: PathBuf,
    },
}

/// What a process that ended left in the lock file for the time between opening and closing.
const OPEN: &str = "open";

/// How long the lock may be another's: a command that reads what an unclean stop left has it for a
/// moment ([`left_behind`]).
const LOCK_WAIT: Duration = Duration::from_millis(500);
const LOCK_STEP: Duration = Duration::from_millis(10);

/// A data directory that this process holds.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    lock: File,
    was_clean: bool,
    was_open: bool,
    /// Whether the lock file says so of this process.
    is_open: AtomicBool,
}

impl DataDir {
    /// Makes the directory if need be, checks its mode and takes its lock.
    pub fn open(root: &Path) -> Result<Self, DirError> {
        let unusable = |path: &Path, error: std::io::Error| {
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
        };
        if !root.exists() {
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
        let path = root.join("onrush.lock");
        let is_new = !path.exists();
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| unusable(&path, error))?;
        let mut holder = String::new();
        let watch = Stopwatch::start();
        let mut taken = lock.try_lock();
        while matches!(taken, Err(TryLockError::WouldBlock)) && watch.elapsed() < LOCK_WAIT {
            std::thread::sleep(LOCK_STEP);
            taken = lock.try_lock();
        }
        match taken {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let read = lock.read_to_string(&mut holder);
                return Err(DirError::InUse {
                    dir: root.to_owned(),
                    holder: match (read, holder.split_whitespace().next()) {
                        (Ok(_), Some(process)) => process.to_owned(),
                        _ => "unknown".to_owned(),
                    },
                });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(&path, error)),
        }
        lock.read_to_string(&mut holder)
            .map_err(|error| unusable(&path, error))?;
        let dir = Self {
            root: root.to_owned(),
            lock,
            was_clean: holder.trim().is_empty(),
            was_open: holder.split_whitespace().nth(1) == Some(OPEN),
            is_open: AtomicBool::new(false),
        };
        dir.find_missing(is_new, path)?;
        // A full disk must not keep a shop from starting to read: without the note, the next start
        // merely takes this stop for a clean one.
        if let Err(error) = dir.note_closing() {
            tracing::warn!(%error, "the process id could not be noted in the lock file");
        }
        Ok(dir)
    }

    /// Refuses a directory that lost a file with orders in it.
    fn find_missing(&self, is_new: bool, lock: PathBuf) -> Result<(), DirError> {
        let bytes = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.len());
        let database = self.database();
        let mut log = database.clone().into_os_string();
        log.push("-wal");
        let log = PathBuf::from(log);
        let missing = |file, what| Err(DirError::Missing { file, what, lock });
        match bytes(&database) {
            // SQLite would throw the log away.
            None if self.was_open || bytes(&log).is_some_and(|bytes| bytes > 0) => {
                missing(database, "missing")
            }
            // After an end in the middle of the very first start, it may be empty.
            Some(0) if self.was_open || (self.was_clean && !is_new) => missing(database, "empty"),
            Some(1..) if self.was_open && bytes(&log).is_none() => missing(
                log,
                "missing, and the last process did not end in order (had another program, such \
                     as sqlite3, opened and closed the database since, then nothing is lost)",
            ),
            _ => Ok(()),
        }
    }

    /// Notes that the database and its log are there from now on.
    pub fn note_open(&self) -> std::io::Result<()> {
        // The names first: the note must not be on disk without them.
        File::open(&self.root)?.sync_all()?;
        self.is_open.store(true, Ordering::Release);
        self.note(&format!("{} {OPEN}", std::process::id()))
    }

    /// Notes that the database closes, which removes its log.
    pub fn note_closing(&self) -> std::io::Result<()> {
        self.is_open.store(false, Ordering::Release);
        self.note(&std::process::id().to_string())
    }

    fn note(&self, text: &str) -> std::io::Result<()> {
        let mut file = &self.lock;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.sync_data()
    }

    /// Whether the last process let go in an orderly way (or there was none).
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Notes an orderly end; to be called when everything else is closed.
    pub fn release(&self) {
        if let Err(error) = self.note("") {
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

impl Drop for DataDir {
    /// A start that fails later, or a panic, closes the database without order, yet closes it.
    fn drop(&mut self) {
        if self.is_open.load(Ordering::Acquire)
            && let Err(error) = self.note_closing()
        {
            tracing::warn!(%error, "the stop could not be noted in the lock file");
        }
    }
}

/// The lock of a directory whose last process did not end in order and which nobody has by now; while
/// it is held, nobody opens that. `None` otherwise, and where it can't be told.
pub(super) fn left_behind(root: &Path) -> Option<File> {
    let mut lock = File::open(root.join("onrush.lock")).ok()?;
    lock.try_lock_shared().ok()?;
    let mut holder = String::new();
    lock.read_to_string(&mut holder).ok()?;
    (!holder.trim().is_empty()).then_some(lock)
}
