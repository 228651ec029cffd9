//! Statements about runs: from the start of an attempt to its end, and what it leaves behind.

use std::cell::Cell;

use super::{entry, policy, small};
use crate::clock::Timestamp;
use crate::sql;
use crate::store::{Row, StoreError, Tx};
use crate::task::rows::{Ended, Fresh, Running, WaitingTask};
use crate::task::{Attempt, AttemptOutcome, Entry, LogLevel, LogLine, Started, TaskId, TaskState};

/// What a run is made of, if the task may be started and is where the delivery found it.
const FIND_STARTABLE: &str = "SELECT attempt, max_attempts, name, args, metadata, traceparent, timeout_ms, soft_timeout_ms, created_at, \
         batch_id, external_id, lock_key FROM tasks \
         WHERE id = $1 AND (state = 'available' OR state = 'scheduled' OR state = 'retryable') AND run_at = $2 AND priority = $3 \
         AND (run_at <= $4 OR state = 'available') AND waiting_on = 0 AND (expires_at IS NULL OR expires_at > $4)";
/// The start of what [`FIND_STARTABLE`] found, if it is still so.
const MARK_STARTED: &str = "UPDATE tasks SET state = 'running', attempt = $2 + 1, worker = $3, attempted_at = $4, lease_expires_at = $5, \
         progress = NULL, progress_note = NULL \
         WHERE id = $1 AND attempt = $2 AND (state = 'available' OR state = 'scheduled' OR state = 'retryable') AND run_at = $6 \
         AND priority = $7 AND waiting_on = 0";
/// The end of a run that succeeded, if it is still that run and no more tasks wait for it than were read.
const MARK_COMPLETED: &str = "UPDATE tasks SET state = 'completed', finished_at = $3, result = $4, result_expires_at = \
         CASE WHEN $4 IS NULL THEN NULL ELSE $3 + COALESCE(result_seconds, $5) * 1000000 END, \
         error = NULL, lease_expires_at = NULL WHERE id = $1 AND attempt = $2 AND state = 'running' AND followers = $6";

/// The run, and the key that the task holds. A lease never lasts longer than the longest run. What is
/// available has been due, whatever a clock that was set back says of it now. Read first, and then
/// changed if it still is what was read: cheaper than `RETURNING`, for which SQLite fills a table of
/// its own.
pub(in crate::task) fn start(
    tx: &mut Tx<'_>,
    now: Timestamp,
    entry: &Entry,
    worker: &str,
    lease: Option<Timestamp>,
) -> Result<Option<(Started, Option<String>)>, StoreError> {
    let id = entry.id;
    let id_text = id.text();
    let found = tx.row(
        sql!("find", FIND_STARTABLE),
        &[
            (&id_text).into(),
            entry.run_at.into(),
            i64::from(entry.priority).into(),
            now.into(),
        ],
        |row| startable(row, now, entry, lease),
    )?;
    let Some((mut started, lock_key)) = found else {
        return Ok(None);
    };
    let is_started = tx.execute(
        sql!(MARK_STARTED),
        &[
            (&id_text).into(),
            started.attempt.into(),
            worker.into(),
            now.into(),
            started.lease_expires_at.into(),
            entry.run_at.into(),
            i64::from(entry.priority).into(),
        ],
    )? == 1;
    started.attempt += 1;
    Ok(is_started.then_some((started, lock_key)))
}

fn startable(
    row: &Row<'_>,
    now: Timestamp,
    entry: &Entry,
    lease: Option<Timestamp>,
) -> Result<StartedRow, StoreError> {
    let timeout_ms = row.get(6)?;
    let started = Started {
        id: entry.id,
        attempt: row.get(0)?,
        max_attempts: row.get(1)?,
        name: row.get(2)?,
        queue: entry.queue.clone(),
        args: row.get(3)?,
        metadata: row.get(4)?,
        traceparent: row.get(5)?,
        timeout_ms,
        soft_timeout_ms: row.get(7)?,
        created_at: row.get(8)?,
        run_at: entry.run_at,
        batch_id: row.get(9)?,
        lease_expires_at: lease.map(|ends| ends.min(now.plus_ms(timeout_ms))),
        external_id: row.get(10)?,
    };
    Ok((started, row.get(11)?))
}

/// A run that was started, and the key of the lock that its task holds.
type StartedRow = (Started, Option<String>);

/// [`start`] of each of `entries`, in their order; `None` of all if one of them changed in between, and
/// then some are started and others are not: the caller undoes it.
pub(in crate::task) fn start_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    entries: &[Entry],
    worker: &str,
    lease: Option<Timestamp>,
) -> Result<Option<Vec<Option<StartedRow>>>, StoreError> {
    let ids: Vec<_> = entries.iter().map(|entry| entry.id.text()).collect();
    let asks_for = Cell::new(None);
    let asked = entries.iter().zip(&ids).map(|(entry, id)| {
        asks_for.set(Some(entry));
        let priority = i64::from(entry.priority);
        [id.into(), entry.run_at.into(), priority.into(), now.into()]
    });
    let mut found = tx.row_of_each(sql!("find", FIND_STARTABLE), asked, |row| {
        let entry = asks_for
            .get()
            .ok_or_else(|| StoreError::Bug("a row that was not asked for".to_owned()))?;
        startable(row, now, entry, lease)
    })?;
    let marked = found.iter().zip(entries.iter().zip(&ids));
    let marked = marked.filter_map(|(found, (entry, id))| {
        let (started, _) = found.as_ref()?;
        Some([
            id.into(),
            started.attempt.into(),
            worker.into(),
            now.into(),
            started.lease_expires_at.into(),
            entry.run_at.into(),
            i64::from(entry.priority).into(),
        ])
    });
    let changed = tx.execute_each(sql!(MARK_STARTED), marked)?;
    for (started, _) in found.iter_mut().flatten() {
        started.attempt += 1;
    }
    let is_whole = changed == found.iter().flatten().count() as u64;
    Ok(is_whole.then_some(found))
}

/// By the same conditions as [`start`].
pub(in crate::task) fn fresh(
    tx: &mut Tx<'_>,
    now: Timestamp,
    entry: &Entry,
) -> Result<Option<Fresh>, StoreError> {
    tx.row(
        sql!("SELECT args, name, lock_key, batch_id, followers, traceparent FROM tasks WHERE id = $1 AND attempt = 0 \
         AND state IN ('available', 'scheduled') AND run_at = $2 AND priority = $3 \
         AND (run_at <= $4 OR state = 'available') AND waiting_on = 0 AND (expires_at IS NULL OR expires_at > $4)"),
        &[
            (&entry.id.text()).into(),
            entry.run_at.into(),
            i64::from(entry.priority).into(),
            now.into(),
        ],
        |row| {
            Ok(Fresh {
                args: row.get(0)?,
                traceparent: row.get(5)?,
                ended: Ended {
                    name: row.get(1)?,
                    queue: entry.queue.clone(),
                    was_running: true,
                    started_at: Some(now),
                    lock_key: row.get(2)?,
                    batch_id: row.get(3)?,
                    followers: row.get(4)?,
                    place: None,
                },
            })
        },
    )
}

/// Start and end of a [`Fresh`] task in one; `false` if it is another's by now, or more wait for it.
pub(in crate::task) fn complete_fresh(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    worker: &str,
    followers: u32,
    result: Option<&str>,
    result_seconds: i64,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE tasks SET state = 'completed', attempt = 1, worker = $2, attempted_at = $3, finished_at = $3, \
         result = $4, result_expires_at = \
         CASE WHEN $4 IS NULL THEN NULL ELSE $3 + COALESCE(result_seconds, $5) * 1000000 END \
         WHERE id = $1 AND attempt = 0 AND state IN ('available', 'scheduled') AND followers = $6"),
        &[
            (&id.text()).into(),
            worker.into(),
            now.into(),
            result.into(),
            result_seconds.min(i64::from(u32::MAX)).into(),
            followers.into(),
        ],
    )? == 1)
}

pub(in crate::task) fn waiting(
    tx: &mut Tx<'_>,
    id: TaskId,
) -> Result<Option<WaitingTask>, StoreError> {
    tx.row(
        sql!(
            "SELECT queue, priority, run_at, expires_at FROM tasks WHERE id = $1 \
         AND (state = 'available' OR state = 'scheduled' OR state = 'retryable') AND waiting_on = 0"
        ),
        &[(&id.text()).into()],
        |row| {
            Ok(WaitingTask {
                entry: entry(row, id, 0)?,
                expires_at: row.get(3)?,
            })
        },
    )
}

pub(super) fn ended(row: &Row<'_>, was_running: bool) -> Result<Ended, StoreError> {
    Ok(Ended {
        name: row.get(0)?,
        queue: row.get(1)?,
        started_at: row.get::<Option<Timestamp>>(2)?.filter(|_| was_running),
        was_running,
        lock_key: row.get(3)?,
        batch_id: row.get(4)?,
        followers: row.get(5)?,
        place: None,
    })
}

/// What is left of a run when it ends: for [`complete`], which only changes what is still so, as
/// [`start`] does.
pub(in crate::task) fn ending(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
) -> Result<Option<Ended>, StoreError> {
    tx.row(
        sql!(
            "SELECT name, queue, attempted_at, lock_key, batch_id, followers FROM tasks \
             WHERE id = $1 AND attempt = $2 AND state = 'running'"
        ),
        &[(&id.text()).into(), attempt.into()],
        |row| ended(row, true),
    )
}

/// A run that an outside worker ends, among others.
pub(in crate::task) struct Leased {
    pub(in crate::task) ended: Ended,
    /// Whether it is an outside worker's, and not this process's own.
    pub(in crate::task) has_lease: bool,
}

/// [`ending`] of each of `runs`, in their order.
pub(in crate::task) fn ending_all(
    tx: &mut Tx<'_>,
    runs: &[(TaskId, u32)],
) -> Result<Vec<Option<Leased>>, StoreError> {
    let ids: Vec<_> = runs.iter().map(|(id, _)| id.text()).collect();
    tx.row_of_each(
        sql!(
            "SELECT name, queue, attempted_at, lock_key, batch_id, followers, lease_expires_at FROM tasks \
             WHERE id = $1 AND attempt = $2 AND state = 'running'"
        ),
        runs.iter()
            .zip(&ids)
            .map(|((_, attempt), id)| [id.into(), (*attempt).into()]),
        |row| {
            Ok(Leased {
                ended: ended(row, true)?,
                has_lease: row.get::<Option<Timestamp>>(6)?.is_some(),
            })
        },
    )
}

/// A run that succeeded, as the statement takes it.
pub(in crate::task) struct Completed<'a> {
    pub(in crate::task) id: TaskId,
    pub(in crate::task) attempt: u32,
    pub(in crate::task) followers: u32,
    pub(in crate::task) result: Option<&'a str>,
}

/// [`complete`] of each of `runs`, no task twice; answers how many were so.
pub(in crate::task) fn complete_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    runs: &[Completed<'_>],
    result_seconds: i64,
) -> Result<u64, StoreError> {
    let ids: Vec<_> = runs.iter().map(|run| run.id.text()).collect();
    let result_seconds = result_seconds.min(i64::from(u32::MAX));
    tx.execute_each(
        sql!(MARK_COMPLETED),
        runs.iter().zip(&ids).map(|(run, id)| {
            [
                id.into(),
                run.attempt.into(),
                now.into(),
                run.result.into(),
                result_seconds.into(),
                run.followers.into(),
            ]
        }),
    )
}

/// Notes that a run succeeded; `false` if it is over, or more wait for it.
pub(in crate::task) fn complete(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    attempt: u32,
    followers: u32,
    result: Option<&str>,
    result_seconds: i64,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(MARK_COMPLETED),
        &[
            (&id.text()).into(),
            attempt.into(),
            now.into(),
            result.into(),
            result_seconds.min(i64::from(u32::MAX)).into(),
            followers.into(),
        ],
    )? == 1)
}

pub(in crate::task) fn running(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
) -> Result<Option<Running>, StoreError> {
    tx.row(
        sql!("SELECT worker, attempted_at, max_attempts, crashes, retry_policy, cancel_requested_at, lease_expires_at, \
         run_at, priority, timeout_ms FROM tasks WHERE id = $1 AND attempt = $2 AND state = 'running'"),
        &[(&id.text()).into(), attempt.into()],
        |row| {
            Ok(Running {
                worker: row.get(0)?,
                started_at: row.get(1)?,
                max_attempts: row.get(2)?,
                crashes: row.get(3)?,
                retry_policy: policy(row.get(4)?),
                cancel_requested: row.get::<Option<Timestamp>>(5)?.is_some(),
                lease_expires_at: row.get(6)?,
                run_at: row.get(7)?,
                priority: small(row, 8)?,
                timeout_ms: row.get(9)?,
            })
        },
    )
}

/// Ends a run that did not succeed.
#[expect(
    clippy::too_many_arguments,
    reason = "the columns that one statement sets; a struct would only repeat their names"
)]
pub(in crate::task) fn end_attempt(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    attempt: u32,
    state: TaskState,
    run_at: Timestamp,
    crashes: u32,
    more_attempts: u32,
    why: &str,
) -> Result<Option<Ended>, StoreError> {
    let finished = state.is_final().then_some(now);
    tx.row(
        sql!("UPDATE tasks SET state = $3, run_at = $4, crashes = $5, max_attempts = max_attempts + $6, error = $7, \
         finished_at = $8, lease_expires_at = NULL WHERE id = $1 AND attempt = $2 AND state = 'running' \
         RETURNING name, queue, attempted_at, lock_key, batch_id, followers"),
        &[
            (&id.text()).into(),
            attempt.into(),
            state.into(),
            run_at.into(),
            crashes.into(),
            more_attempts.into(),
            why.into(),
            finished.into(),
        ],
        |row| ended(row, true),
    )
}

pub(in crate::task) fn insert_attempt(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    attempt: u32,
    run: &Running,
    outcome: AttemptOutcome,
    error: Option<&str>,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("INSERT INTO task_attempts (task_id, attempt, worker, started_at, finished_at, outcome, error) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (task_id, attempt) DO NOTHING"),
        &[
            (&id.text()).into(),
            attempt.into(),
            run.worker.as_ref().into(),
            run.started_at.into(),
            now.into(),
            outcome.into(),
            error.into(),
        ],
    )?;
    Ok(())
}

pub(in crate::task) fn attempts(tx: &mut Tx<'_>, id: TaskId) -> Result<Vec<Attempt>, StoreError> {
    tx.rows(
        sql!("SELECT attempt, worker, started_at, finished_at, outcome, error FROM task_attempts WHERE task_id = $1 \
         ORDER BY attempt DESC LIMIT 100"),
        &[(&id.text()).into()],
        |row| {
            Ok(Attempt {
                attempt: row.get(0)?,
                worker: row.get(1)?,
                started_at: row.get(2)?,
                finished_at: row.get(3)?,
                outcome: row.get(4)?,
                error: row.get(5)?,
            })
        },
    )
}

/// When and why a task failed last.
pub fn last_failure(
    tx: &mut Tx<'_>,
    id: TaskId,
) -> Result<Option<(Timestamp, Option<String>)>, StoreError> {
    tx.row(
        sql!(
            "SELECT finished_at, error FROM task_attempts WHERE task_id = $1 \
         AND outcome IN ('failed', 'timed_out', 'crashed') ORDER BY attempt DESC LIMIT 1"
        ),
        &[(&id.text()).into()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Renews a lease, though not beyond the end of the longest run, whose beginning is behind the clock by
/// `begun_behind` microseconds; answers its end, and whether the task was cancelled.
pub(in crate::task) fn heartbeat(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
    lease: Timestamp,
    begun_behind: i64,
) -> Result<Option<(Timestamp, bool)>, StoreError> {
    tx.row(
        sql!("UPDATE tasks SET lease_expires_at = CASE WHEN attempted_at + $4 + timeout_ms * 1000 < $3 \
         THEN attempted_at + $4 + timeout_ms * 1000 ELSE $3 END WHERE id = $1 AND attempt = $2 AND state = 'running' \
         AND lease_expires_at IS NOT NULL RETURNING lease_expires_at, cancel_requested_at"),
        &[
            (&id.text()).into(),
            attempt.into(),
            lease.into(),
            begun_behind.into(),
        ],
        |row| Ok((row.get(0)?, row.get::<Option<Timestamp>>(1)?.is_some())),
    )
}

/// Lets a run last longer than it should have.
pub fn lengthen(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
    timeout_ms: i64,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE tasks SET timeout_ms = $3 WHERE id = $1 AND attempt = $2 AND state = 'running' AND timeout_ms < $3"),
        &[(&id.text()).into(), attempt.into(), timeout_ms.into()],
    )?;
    Ok(())
}

/// Moves the times of an outside worker's run along with a clock that was set: its beginning, and the
/// lease, unless that was renewed since.
pub(in crate::task) fn shift_run(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
    lease: Timestamp,
    begun_micros: i64,
    lease_micros: i64,
) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "UPDATE tasks SET attempted_at = attempted_at + $4, lease_expires_at = \
         CASE WHEN lease_expires_at = $3 THEN lease_expires_at + $5 ELSE lease_expires_at END \
         WHERE id = $1 AND attempt = $2 AND state = 'running'"
        ),
        &[
            (&id.text()).into(),
            attempt.into(),
            lease.into(),
            begun_micros.into(),
            lease_micros.into(),
        ],
    )?;
    Ok(())
}

pub(in crate::task) fn progress(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
    percent: u32,
    note: Option<&str>,
) -> Result<Option<bool>, StoreError> {
    tx.row(
        sql!("UPDATE tasks SET progress = $3, progress_note = $4 WHERE id = $1 AND attempt = $2 AND state = 'running' \
         RETURNING cancel_requested_at"),
        &[
            (&id.text()).into(),
            attempt.into(),
            percent.into(),
            note.into(),
        ],
        |row| Ok(row.get::<Option<Timestamp>>(0)?.is_some()),
    )
}

pub(in crate::task) fn last_log(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
) -> Result<u32, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT seq FROM task_logs WHERE task_id = $1 AND attempt = $2 ORDER BY seq DESC LIMIT 1"),
            &[(&id.text()).into(), attempt.into()],
            |row| row.get(0),
        )?
        .unwrap_or(0))
}

pub(in crate::task) fn insert_log(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
    seq: u32,
    at: Timestamp,
    level: LogLevel,
    line: &str,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("INSERT INTO task_logs (task_id, attempt, seq, at, level, line) VALUES ($1, $2, $3, $4, $5, $6)"),
        &[
            (&id.text()).into(),
            attempt.into(),
            seq.into(),
            at.into(),
            level.into(),
            line.into(),
        ],
    )?;
    Ok(())
}

pub(in crate::task) fn logs(
    tx: &mut Tx<'_>,
    id: TaskId,
    limit: u32,
) -> Result<Vec<LogLine>, StoreError> {
    tx.rows(
        sql!("SELECT attempt, at, level, line FROM task_logs WHERE task_id = $1 ORDER BY attempt DESC, seq DESC LIMIT $2"),
        &[(&id.text()).into(), limit.into()],
        |row| {
            Ok(LogLine {
                attempt: row.get(0)?,
                at: row.get(1)?,
                level: row.get(2)?,
                line: row.get(3)?,
            })
        },
    )
}
