//! What only a database in a file can have done to it: looked over, its log folded, copied, read without a server.
//!
//! Invariants: what refuses a file leaves it byte for byte as it was; a command beside a server changes nothing.

use std::path::Path;
use std::time::Duration;

use super::condition::Condition;
use super::sqlite::connection::{self, Around};
use super::sqlite::damage::{self, Damage};
use super::sqlite::sums::{Comparison, Sums, Verdict};
use super::sqlite::{belong, checkpoint};
use super::{Left, StoreError, Tx, dir, migrate, snapshot};
use crate::config::Database;
use crate::monitor::statements::Statements;

/// What [`examine`] found besides what it refuses.
#[derive(Debug, Default)]
pub struct Examined {
    /// The database was not looked over to the end: [`check_beside`] is to do it.
    pub is_unchecked: bool,
    /// Commits behind a damaged place in the log are given up: [`fold_log`] comes before anything
    /// else.
    pub gives_up_commits: bool,
    has_log: bool,
    /// What of the look is to go on once it serves ([`super::Store::open_as`]).
    pub seen: Seen,
}

/// How long a start looks at the whole database before it serves; a larger one is looked over beside.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// After an orderly stop.
    pub after_order: Duration,
    /// After any other end.
    pub after_disorder: Duration,
}

/// What the sums of the last orderly stop say of the database.
#[derive(Debug, Default)]
pub struct Seen {
    /// It was not compared to the end.
    pub(super) rest: Option<Comparison>,
    /// Another program changed it, in words.
    pub(super) changed: Option<String>,
}

/// What is sound of a database, and what is not.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Survey {
    /// Tables that are sound, with their indexes.
    pub sound: Vec<String>,
    /// What is not, and what is wrong with it.
    pub damaged: Vec<Finding>,
}

/// One thing that is damaged.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Finding {
    /// A table, `sqlite_schema` for the list of them, or `file`.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
}

/// Looks over what the last process left, before anybody opens it and while nobody can, and refuses
/// what must not be opened. No file is changed. After an orderly end the file is compared with the sums
/// that were taken then; else the log is read once, and the whole database looked over by its structure.
/// Either within a `budget`, if one is given; else only the header and the log are read.
pub fn examine(path: &Path, left: &Left, budget: Option<Budget>) -> Result<Examined, StoreError> {
    let version = migrate::check_header(path)?;
    let log = damage::read(&checkpoint::log_of(path))
        .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let Some(mut version) = version else {
        return match log.commits {
            None => Ok(Examined::default()),
            Some(_) => Err(StoreError::Corrupt(format!(
                "{} holds nothing, and its log does",
                path.display()
            ))),
        };
    };
    if let Some(commits) = &log.commits {
        belong::check(path, commits, &left.marks)?;
    }
    let mut found = Examined {
        has_log: log.commits.is_some(),
        ..Examined::default()
    };
    if let Some(Damage { frame }) = log.damage {
        if !left.is_clean {
            return Err(StoreError::Corrupt(format!(
                "its write-ahead log does not check at frame {frame}, and commits stand behind that; \
                 to go on without those commits, remove onrush.lock, and start"
            )));
        }
        // Somebody removed the lock file, as they were told.
        found.gives_up_commits = true;
    }
    let Some(budget) = budget else {
        return Ok(found);
    };
    if connection::file_bytes(&connection::beside(path, "-journal")) > 0 {
        // A first start was cut off where SQLite keeps what it overwrites: it undoes that itself.
        found.is_unchecked = true;
        return Ok(found);
    }
    let was_left = found.has_log || found.gives_up_commits || !left.is_clean;
    let mut is_to_be_checked = true;
    if !was_left
        && left.is_known
        && let Some((seen, is_of_all)) = compare(path, budget.after_order)?
    {
        is_to_be_checked = !is_of_all || seen.changed.is_some();
        found.seen = seen;
    }
    if is_to_be_checked || version < migrate::latest() {
        let conn = connection::open_untouched(path, found.has_log)?;
        version = migrate::check_open(&conn)?;
        if is_to_be_checked {
            let budget = match was_left {
                true => budget.after_disorder,
                false => budget.after_order,
            };
            found.is_unchecked = !connection::quick_check(&conn, budget)?;
        }
        if version < migrate::latest() {
            migrate::check_history(&conn)?;
            // The upgrade may write to any page.
            found.is_unchecked |= found.seen.rest.take().is_some();
        }
    }
    Ok(found)
}

/// Looks the whole file over by its structure (`PRAGMA quick_check`) within `budget`, beside the process
/// that serves it and a slice at a time, so that others have the disk and the processors. `Ok(false)` when
/// the time did not suffice for a verdict, or it is no longer to go on. Damage is noted.
pub fn check_beside(
    path: &Path,
    settings: &Database,
    condition: &Condition,
    budget: Duration,
    goes_on: impl Fn() -> bool,
) -> Result<bool, StoreError> {
    let checked = connection::open_reader(path, settings, Around::Served)
        .and_then(|conn| connection::quick_check_beside(&conn, budget, goes_on));
    if let Err(error) = &checked {
        condition.note(error);
    }
    checked
}

/// What is sound of a database and what is not, table by table, also where a start would refuse it for
/// damage. Beside a running server it is as it was at the begin of each table. `visit` is told what is
/// being looked at.
pub fn survey(
    path: &Path,
    settings: &Database,
    mut visit: impl FnMut(&str),
) -> Result<Survey, StoreError> {
    let mut survey = Survey {
        sound: Vec::new(),
        damaged: Vec::new(),
    };
    let root = path.parent().unwrap_or(Path::new("."));
    let mut found = |what: &str, checked: Result<(), StoreError>| match checked {
        Ok(()) => Ok(Some(what.to_owned())),
        Err(StoreError::Corrupt(why)) => {
            survey.damaged.push(Finding {
                what: what.to_owned(),
                why,
            });
            Ok(None)
        }
        Err(error) => Err(error),
    };
    let mut is_known = false;
    if let Some(idle) = dir::idle(root)
        && idle.left.is_clean
        && idle.left.is_known
    {
        visit("file");
        let compared = compare(path, Duration::MAX);
        is_known = found("file", compared.map(drop))?.is_none();
    }
    let conn = match open_alone(path, settings) {
        Ok(conn) => conn,
        // That is known already, and this may say more of it.
        Err(error @ StoreError::Corrupt(_)) if is_known => {
            found("file", Err(error))?;
            return Ok(survey);
        }
        Err(error) => return Err(error),
    };
    let tables = connection::tables(&conn);
    let names = match tables {
        Ok(names) => names,
        Err(error) => {
            found("sqlite_schema", Err(error))?;
            return Ok(survey);
        }
    };
    let mut sound = Vec::new();
    for name in names {
        visit(&name);
        sound.extend(found(&name, connection::check_table(&conn, &name))?);
    }
    survey.sound = sound;
    Ok(survey)
}

/// Folds what can be read of the log into the database and empties it, so that what lies behind a
/// damaged place is not found again once new commits have been written before it.
pub fn fold_log(path: &Path) -> Result<(), StoreError> {
    checkpoint::fold(path)
}

/// Opens an existing database for reading alone, beside a process that serves it.
pub fn read_alone<T, E: From<StoreError>>(
    path: &Path,
    settings: &Database,
    work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let conn = open_alone(path, settings)?;
    let (statements, condition) = (Statements::new(settings), Condition::default());
    snapshot(&conn, &statements, &condition, None, work)
}

/// Writes a copy of the database at `path`, of one consistent moment and beside its server if
/// need be, to `target`, which must not exist.
pub fn copy_alone(path: &Path, settings: &Database, target: &Path) -> Result<(), StoreError> {
    let conn = open_alone(path, settings)?;
    // The file is opened read-only, which VACUUM INTO does not mind; query_only would stop it.
    conn.pragma_update(None, "query_only", false)?;
    conn.execute("VACUUM INTO ?1", [target.to_string_lossy()])?;
    Ok(())
}

/// Compares a database that nobody has open with the sums of the last orderly stop, within `budget`, and
/// refuses damage. Also answers whether there is a sum of every page; `None` if there are none at all.
fn compare(path: &Path, budget: Duration) -> Result<Option<(Seen, bool)>, StoreError> {
    let Some(sums) = Sums::load(path) else {
        return Ok(None);
    };
    let Some(mut comparison) = Comparison::begin(path, sums)? else {
        return Ok(None);
    };
    let is_of_all = comparison.is_of_all();
    let is_at_end = comparison.step(budget)?;
    let seen = match comparison.verdict() {
        Verdict::Damaged(what) => return Err(StoreError::Corrupt(what)),
        Verdict::Changed(what) => Seen {
            changed: Some(what),
            rest: None,
        },
        Verdict::Same => Seen {
            changed: None,
            rest: (!is_at_end).then_some(comparison),
        },
    };
    Ok(Some((seen, is_of_all)))
}

/// A reader for a command. What nobody serves is examined first, and refused as a start would refuse it.
fn open_alone(path: &Path, settings: &Database) -> Result<rusqlite::Connection, StoreError> {
    let root = path.parent().unwrap_or(Path::new("."));
    let Some(idle) = dir::idle(root) else {
        let conn = connection::open_reader(path, settings, Around::Served)?;
        migrate::check_open(&conn)?;
        return Ok(conn);
    };
    dir::find_missing(root, &idle.left)
        .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let found = examine(path, &idle.left, None)?;
    let around = match found.has_log {
        true => Around::LeftOpen,
        false => Around::Closed,
    };
    let conn = connection::open_reader(path, settings, around)?;
    // The log may tell of a newer version than the header that was examined.
    migrate::check_open(&conn)?;
    Ok(conn)
}
