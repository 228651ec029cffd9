//! Every statement about schedules and their runs.

use std::collections::HashMap;

use super::fire::OpenRun;
use super::{Cause, Run, RunOutcome, Schedule, Source, Spec, When};
use crate::clock::Timestamp;
use crate::sql;
use crate::store::{Param, Row, StoreError, Tx};
use crate::task::{Task, TaskId};

const COLUMNS: &str = "name, source, cron, interval_seconds, time_zone, task, queue, args, priority, \
     max_attempts, timeout_ms, overlap, missed, missed_max, jitter_ms, is_edited, paused_at, next_run_at, \
     forgotten_until, error, created_at, updated_at";

fn schedule(row: &Row<'_>) -> Result<Schedule, StoreError> {
    let when = match (row.get::<Option<String>>(2)?, row.get::<Option<u32>>(3)?) {
        (Some(cron), _) => When::Cron(cron),
        (None, Some(seconds)) => When::Every(seconds),
        (None, None) => {
            let what = "a schedule has neither an expression nor an interval";
            return Err(StoreError::Corrupt(what.to_owned()));
        }
    };
    let priority = row
        .get::<Option<u32>>(8)?
        .map(u8::try_from)
        .transpose()
        .map_err(|_| StoreError::Corrupt("a schedule's priority is above 255".to_owned()))?;
    Ok(Schedule {
        name: row.get(0)?,
        source: row.get(1)?,
        spec: Spec {
            when,
            time_zone: row.get(4)?,
            task: row.get(5)?,
            queue: row.get(6)?,
            args: row.get(7)?,
            priority,
            max_attempts: row.get(9)?,
            timeout_ms: row.get(10)?,
            overlap: row.get(11)?,
            missed: row.get(12)?,
            missed_max: row.get(13)?,
            jitter_ms: row.get(14)?,
        },
        is_edited: row.get(15)?,
        paused_at: row.get(16)?,
        next_run_at: row.get(17)?,
        forgotten_until: row.get(18)?,
        error: row.get(19)?,
        created_at: row.get(20)?,
        updated_at: row.get(21)?,
    })
}

/// `cron` and `interval_seconds`, of which one is NULL.
fn when(spec: &Spec) -> (Param<'_>, Param<'_>) {
    match &spec.when {
        When::Cron(text) => (text.into(), Param::NullInt),
        When::Every(seconds) => (Param::NullText, (*seconds).into()),
    }
}

/// Makes a schedule unless there is one of its name, or as many as may be.
#[expect(
    clippy::too_many_arguments,
    reason = "the columns of a new row; a struct would only repeat their names"
)]
pub(super) fn insert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    name: &str,
    source: Source,
    spec: &Spec,
    paused_at: Option<Timestamp>,
    next: Option<Timestamp>,
    most: u32,
) -> Result<bool, StoreError> {
    let (cron, interval) = when(spec);
    Ok(tx.execute(
        sql!("INSERT INTO schedules (name, source, cron, interval_seconds, time_zone, task, queue, args, priority, \
         max_attempts, timeout_ms, overlap, missed, missed_max, jitter_ms, is_edited, paused_at, next_run_at, \
         created_at, updated_at) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0, $16, \
         $17, $18, $18 WHERE (SELECT COUNT(*) FROM schedules) < $19 ON CONFLICT (name) DO NOTHING"),
        &[
            name.into(),
            source.into(),
            cron,
            interval,
            (&spec.time_zone).into(),
            (&spec.task).into(),
            spec.queue.as_ref().into(),
            (&spec.args).into(),
            spec.priority.map(i64::from).into(),
            spec.max_attempts.into(),
            spec.timeout_ms.into(),
            spec.overlap.into(),
            spec.missed.into(),
            spec.missed_max.into(),
            spec.jitter_ms.into(),
            paused_at.into(),
            next.into(),
            now.into(),
            most.into(),
        ],
    )? == 1)
}

/// Gives a schedule another meaning; whatever kept it from firing is mended with that.
pub(super) fn update(
    tx: &mut Tx<'_>,
    now: Timestamp,
    name: &str,
    source: Source,
    spec: &Spec,
    is_edited: bool,
    next: Option<Timestamp>,
) -> Result<(), StoreError> {
    let (cron, interval) = when(spec);
    tx.execute(
        sql!("UPDATE schedules SET source = $2, cron = $3, interval_seconds = $4, time_zone = $5, task = $6, queue = $7, \
         args = $8, priority = $9, max_attempts = $10, timeout_ms = $11, overlap = $12, missed = $13, \
         missed_max = $14, jitter_ms = $15, is_edited = $16, next_run_at = $17, error = NULL, updated_at = $18 \
         WHERE name = $1"),
        &[
            name.into(),
            source.into(),
            cron,
            interval,
            (&spec.time_zone).into(),
            (&spec.task).into(),
            spec.queue.as_ref().into(),
            (&spec.args).into(),
            spec.priority.map(i64::from).into(),
            spec.max_attempts.into(),
            spec.timeout_ms.into(),
            spec.overlap.into(),
            spec.missed.into(),
            spec.missed_max.into(),
            spec.jitter_ms.into(),
            i64::from(is_edited).into(),
            next.into(),
            now.into(),
        ],
    )?;
    Ok(())
}

pub(super) fn get(tx: &mut Tx<'_>, name: &str) -> Result<Option<Schedule>, StoreError> {
    tx.row(
        sql!(&format!("SELECT {COLUMNS} FROM schedules WHERE name = $1")),
        &[name.into()],
        schedule,
    )
}

/// Schedules by name, after `after`.
pub(super) fn page(tx: &mut Tx<'_>, after: &str, limit: u32) -> Result<Vec<Schedule>, StoreError> {
    tx.rows(
        sql!(&format!(
            "SELECT {COLUMNS} FROM schedules WHERE name > $1 ORDER BY name LIMIT $2"
        )),
        &[after.into(), limit.into()],
        schedule,
    )
}

pub(super) fn remove(tx: &mut Tx<'_>, name: &str) -> Result<(), StoreError> {
    tx.execute(
        sql!("schedules", "DELETE FROM schedules WHERE name = $1"),
        &[name.into()],
    )?;
    tx.execute(
        sql!(
            "schedule_runs",
            "DELETE FROM schedule_runs WHERE schedule = $1"
        ),
        &[name.into()],
    )?;
    Ok(())
}

pub(super) fn set_paused(
    tx: &mut Tx<'_>,
    now: Timestamp,
    name: &str,
    paused_at: Option<Timestamp>,
    next: Option<Timestamp>,
) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "UPDATE schedules SET paused_at = $2, next_run_at = $3, updated_at = $4 WHERE name = $1"
        ),
        &[name.into(), paused_at.into(), next.into(), now.into()],
    )?;
    Ok(())
}

/// Names of schedules whose time has come, the longest due first.
pub(super) fn due(tx: &mut Tx<'_>, now: Timestamp, limit: u32) -> Result<Vec<String>, StoreError> {
    tx.rows(
        sql!("SELECT name FROM schedules WHERE next_run_at <= $1 ORDER BY next_run_at LIMIT $2"),
        &[now.into(), limit.into()],
        |row| row.get(0),
    )
}

/// When the next schedule fires.
pub(super) fn next(tx: &mut Tx<'_>) -> Result<Option<Timestamp>, StoreError> {
    tx.row(
        sql!("SELECT next_run_at FROM schedules WHERE next_run_at IS NOT NULL ORDER BY next_run_at LIMIT 1"),
        &[],
        |row| row.get(0),
    )
}

/// Moves a schedule on from one time to another; `false` if it does not stand there any more.
pub(super) fn advance(
    tx: &mut Tx<'_>,
    name: &str,
    from: Timestamp,
    to: Option<Timestamp>,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE schedules SET next_run_at = $3 WHERE name = $1 AND next_run_at = $2"),
        &[name.into(), from.into(), to.into()],
    )? == 1)
}

/// Keeps a schedule that can't be read from being due for ever.
pub(super) fn set_aside(
    tx: &mut Tx<'_>,
    now: Timestamp,
    name: &str,
    error: &str,
) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "UPDATE schedules SET next_run_at = NULL, error = $2, updated_at = $3 WHERE name = $1"
        ),
        &[name.into(), error.into(), now.into()],
    )?;
    Ok(())
}

/// Writes down a fire; `false` if it has happened.
pub(super) fn record(
    tx: &mut Tx<'_>,
    now: Timestamp,
    name: &str,
    fire_at: Timestamp,
    cause: Cause,
    outcome: RunOutcome,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("INSERT INTO schedule_runs (schedule, fire_at, cause, outcome, created_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (schedule, fire_at) DO NOTHING"),
        &[
            name.into(),
            fire_at.into(),
            cause.into(),
            outcome.into(),
            now.into(),
        ],
    )? == 1)
}

pub(super) fn set_task(
    tx: &mut Tx<'_>,
    name: &str,
    fire_at: Timestamp,
    task_id: TaskId,
) -> Result<(), StoreError> {
    let id = task_id.to_string();
    tx.execute(
        sql!("UPDATE schedule_runs SET task_id = $3 WHERE schedule = $1 AND fire_at = $2"),
        &[name.into(), fire_at.into(), id.as_str().into()],
    )?;
    Ok(())
}

/// Ends a run that has no task.
pub(super) fn close(
    tx: &mut Tx<'_>,
    name: &str,
    fire_at: Timestamp,
    outcome: RunOutcome,
    error: Option<&str>,
) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "UPDATE schedule_runs SET outcome = $3, error = $4 WHERE schedule = $1 AND fire_at = $2"
        ),
        &[name.into(), fire_at.into(), outcome.into(), error.into()],
    )?;
    Ok(())
}

/// Writes down what came of a run's task; `false` if that was done.
pub(super) fn settle(
    tx: &mut Tx<'_>,
    name: &str,
    fire_at: Timestamp,
    outcome: RunOutcome,
    task: Option<&Task>,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "UPDATE schedule_runs SET outcome = $3, started_at = $4, finished_at = $5, error = $6 \
         WHERE schedule = $1 AND fire_at = $2 AND outcome = 'enqueued'"
        ),
        &[
            name.into(),
            fire_at.into(),
            outcome.into(),
            task.and_then(|task| task.attempted_at).into(),
            task.and_then(|task| task.finished_at).into(),
            task.and_then(|task| task.error.as_ref()).into(),
        ],
    )? == 1)
}

/// Tasks of a schedule that are not known to be finished, the newest first.
pub(super) fn open_tasks(
    tx: &mut Tx<'_>,
    name: &str,
    limit: u32,
) -> Result<Vec<TaskId>, StoreError> {
    tx.rows(
        sql!("SELECT task_id FROM schedule_runs WHERE schedule = $1 AND outcome = 'enqueued' AND task_id IS NOT NULL \
         ORDER BY fire_at DESC LIMIT $2"),
        &[name.into(), limit.into()],
        |row| row.get(0),
    )
}

/// Open runs of all schedules after `above`.
pub(super) fn open_above(
    tx: &mut Tx<'_>,
    above: Option<&OpenRun>,
    limit: u32,
) -> Result<Vec<OpenRun>, StoreError> {
    let (name, fire_at) = above.map_or(("", Timestamp(i64::MIN)), |run| {
        (run.schedule.as_str(), run.fire_at)
    });
    tx.rows(
        sql!("SELECT schedule, fire_at, task_id FROM schedule_runs WHERE outcome = 'enqueued' AND task_id IS NOT NULL \
         AND (schedule, fire_at) > ($1, $2) ORDER BY schedule, fire_at LIMIT $3"),
        &[name.into(), fire_at.into(), limit.into()],
        |row| {
            Ok(OpenRun {
                schedule: row.get(0)?,
                fire_at: row.get(1)?,
                task_id: row.get(2)?,
            })
        },
    )
}

/// Runs of a schedule before `before`, newest first.
pub(super) fn runs(
    tx: &mut Tx<'_>,
    name: &str,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<Run>, StoreError> {
    tx.rows(
        sql!("SELECT fire_at, cause, outcome, task_id, error, created_at, started_at, finished_at FROM schedule_runs \
         WHERE schedule = $1 AND fire_at < $2 ORDER BY fire_at DESC LIMIT $3"),
        &[name.into(), before.into(), limit.into()],
        |row| run(row, 0),
    )
}

/// The newest run of each schedule of a page, as [`page`] has them.
pub(super) fn last_runs(
    tx: &mut Tx<'_>,
    after: &str,
    limit: u32,
) -> Result<HashMap<String, Run>, StoreError> {
    let runs = tx.rows(
        sql!("SELECT r.schedule, r.fire_at, r.cause, r.outcome, r.task_id, r.error, r.created_at, r.started_at, r.finished_at \
         FROM (SELECT name FROM schedules WHERE name > $1 ORDER BY name LIMIT $2) AS s \
         JOIN schedule_runs AS r ON r.schedule = s.name \
         AND r.fire_at = (SELECT MAX(fire_at) FROM schedule_runs WHERE schedule = s.name)"),
        &[after.into(), limit.into()],
        |row| Ok((row.get(0)?, run(row, 1)?)),
    )?;
    Ok(runs.into_iter().collect())
}

/// A run, from the column `at` on.
fn run(row: &Row<'_>, at: usize) -> Result<Run, StoreError> {
    Ok(Run {
        fire_at: row.get(at)?,
        cause: row.get(at + 1)?,
        outcome: row.get(at + 2)?,
        task_id: row.get(at + 3)?,
        error: row.get(at + 4)?,
        created_at: row.get(at + 5)?,
        started_at: row.get(at + 6)?,
        finished_at: row.get(at + 7)?,
    })
}

/// The fire after the newest `kept` ones, going back.
pub(super) fn nth_newest(
    tx: &mut Tx<'_>,
    name: &str,
    kept: u32,
) -> Result<Option<Timestamp>, StoreError> {
    tx.row(
        sql!("SELECT fire_at FROM schedule_runs WHERE schedule = $1 ORDER BY fire_at DESC LIMIT 1 OFFSET $2"),
        &[name.into(), kept.into()],
        |row| row.get(0),
    )
}

/// Drops the runs up to `until`, and keeps in mind that there were some.
pub(super) fn forget_runs(tx: &mut Tx<'_>, name: &str, until: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "schedule_runs",
            "DELETE FROM schedule_runs WHERE schedule = $1 AND fire_at <= $2"
        ),
        &[name.into(), until.into()],
    )?;
    tx.execute(
        sql!(
            "schedules",
            "UPDATE schedules SET forgotten_until = $2 WHERE name = $1 \
         AND (forgotten_until IS NULL OR forgotten_until < $2)"
        ),
        &[name.into(), until.into()],
    )?;
    Ok(())
}

/// Drops the runs after `from`, and the mark if it lies there as well.
pub(super) fn drop_void_runs(
    tx: &mut Tx<'_>,
    name: &str,
    from: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "schedule_runs",
            "DELETE FROM schedule_runs WHERE schedule = $1 AND fire_at > $2"
        ),
        &[name.into(), from.into()],
    )?;
    tx.execute(
        sql!(
            "schedules",
            "UPDATE schedules SET forgotten_until = NULL WHERE name = $1 AND forgotten_until > $2"
        ),
        &[name.into(), from.into()],
    )?;
    Ok(())
}

/// Gives a schedule a time zone that no data base has. For tests.
#[cfg(test)]
pub(super) fn spoil(tx: &mut Tx<'_>, name: &str) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE schedules SET time_zone = 'Mars/Olympus' WHERE name = $1"),
        &[name.into()],
    )?;
    Ok(())
}
