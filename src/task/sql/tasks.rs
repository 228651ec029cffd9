//! Statements about tasks' rows: made, read, listed, given up, tried again, removed.

use super::runs::ended;
use super::{entry, policy, small};
use crate::clock::Timestamp;
use crate::sql;
use crate::store::{Param, Row, StoreError, Tx};
use crate::task::id::Text;
use crate::task::rows::{Edit, Ended, GivenUp, Placed, RunBy, UpkeepRow};
use crate::task::{Counted, Entry, Filter, Task, TaskId, TaskState, Until};

pub(in crate::task) fn insert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    placed: &Placed<'_>,
) -> Result<(), StoreError> {
    insert_all(tx, now, std::slice::from_ref(placed))
}

pub(in crate::task) fn insert_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    placed: &[Placed<'_>],
) -> Result<(), StoreError> {
    let policies = placed
        .iter()
        .map(policy_text)
        .collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<_> = placed.iter().map(|placed| placed.id.text()).collect();
    tx.execute_each(
        sql!("INSERT INTO tasks (id, name, queue, state, priority, run_at, created_at, max_attempts, waiting_on, \
         timeout_ms, args, metadata, traceparent, soft_timeout_ms, retry_policy, expires_at, lock_key, batch_id, \
         result_seconds, error, finished_at, external_id, lock_until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, \
         $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)"),
        placed
            .iter()
            .zip(ids.iter().zip(&policies))
            .map(|(placed, (id, policy))| made_with(now, placed, id, policy.as_ref())),
    )?;
    Ok(())
}

fn policy_text(placed: &Placed<'_>) -> Result<Option<String>, StoreError> {
    let policy = placed.new.retry_policy;
    policy
        .map(|policy| serde_json::to_string(&policy))
        .transpose()
        .map_err(|error| StoreError::Bug(error.to_string()))
}

/// Columns that every task has from the beginning.
const MADE_WITH: usize = 23;

fn made_with<'p>(
    now: Timestamp,
    placed: &'p Placed<'_>,
    id: &'p Text,
    policy: Option<&'p String>,
) -> [Param<'p>; MADE_WITH] {
    let new = placed.new;
    [
        id.into(),
        (&*new.name).into(),
        (&*new.queue).into(),
        placed.state.into(),
        i64::from(new.priority).into(),
        placed.run_at.into(),
        now.into(),
        new.max_attempts.into(),
        placed.waiting_on.into(),
        new.timeout_ms.into(),
        (&new.args).into(),
        new.metadata.as_ref().into(),
        placed.traceparent.into(),
        new.soft_timeout_ms.into(),
        policy.into(),
        new.expires_at.into(),
        placed.lock.map(|(key, _)| key).into(),
        placed.batch_id.into(),
        new.result_seconds.into(),
        placed.error.into(),
        placed.state.is_final().then_some(now).into(),
        new.external_id.as_ref().into(),
        placed.lock.map(|(_, until)| until).into(),
    ]
}

/// [`insert`] of a task whose first run begins with it.
pub(in crate::task) fn insert_started(
    tx: &mut Tx<'_>,
    now: Timestamp,
    placed: &Placed<'_>,
    run: &RunBy,
    lease_ends: Option<Timestamp>,
) -> Result<(), StoreError> {
    let (id, policy) = (placed.id.text(), policy_text(placed)?);
    let mut all = [Param::NullInt; MADE_WITH + 3];
    all[..MADE_WITH].copy_from_slice(&made_with(now, placed, &id, policy.as_ref()));
    all[3] = TaskState::Running.into();
    all[MADE_WITH..].copy_from_slice(&[(&run.worker).into(), run.at.into(), lease_ends.into()]);
    tx.execute(
        sql!("INSERT INTO tasks (id, name, queue, state, priority, run_at, created_at, max_attempts, waiting_on, \
         timeout_ms, args, metadata, traceparent, soft_timeout_ms, retry_policy, expires_at, lock_key, batch_id, \
         result_seconds, error, finished_at, external_id, lock_until, worker, attempted_at, lease_expires_at, attempt) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, \
         $23, $24, $25, $26, 1)"),
        &all,
    )?;
    Ok(())
}

/// Puts off a task that still waits for its time.
pub(in crate::task) fn put_off(
    tx: &mut Tx<'_>,
    id: TaskId,
    run_at: Timestamp,
    args: &str,
    metadata: Option<&str>,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE tasks SET run_at = $2, args = $3, metadata = $4 WHERE id = $1 AND state = 'scheduled' AND attempt = 0"),
        &[(&id.text()).into(), run_at.into(), args.into(), metadata.into()],
    )? == 1)
}

/// Ends the waiting of a task that is not running: it is cancelled, or dead.
pub(in crate::task) fn finish_waiting(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    state: TaskState,
    why: &str,
) -> Result<Option<Ended>, StoreError> {
    tx.row(
        sql!("UPDATE tasks SET state = $2, finished_at = $3, error = $4, waiting_on = 0 WHERE id = $1 \
         AND (state = 'available' OR state = 'scheduled' OR state = 'retryable') \
         RETURNING name, queue, attempted_at, lock_key, batch_id, followers, priority, run_at"),
        &[(&id.text()).into(), state.into(), now.into(), why.into()],
        |row| {
            let ended = ended(row, false)?;
            let place = Entry {
                queue: ended.queue.clone(),
                priority: small(row, 6)?,
                run_at: row.get(7)?,
                id,
            };
            Ok(Ended {
                place: Some(place),
                ..ended
            })
        },
    )
}

/// A task's state and attempt.
pub fn state(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<(TaskState, u32)>, StoreError> {
    tx.row(
        sql!("SELECT state, attempt FROM tasks WHERE id = $1"),
        &[(&id.text()).into()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Asks a running task to stop; answers whether it runs.
pub(in crate::task) fn request_cancel(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "UPDATE tasks SET cancel_requested_at = COALESCE(cancel_requested_at, $2) \
         WHERE id = $1 AND state = 'running'"
        ),
        &[(&id.text()).into(), now.into()],
    )? == 1)
}

pub(super) fn given_up(row: &Row<'_>) -> Result<GivenUp, StoreError> {
    let key: Option<String> = row.get(0)?;
    let until = row.get::<Option<Until>>(1)?.unwrap_or(Until::Finished);
    Ok(GivenUp {
        lock: key.map(|key| (key, until)),
        batch_id: row.get(2)?,
        followers: row.get(3)?,
    })
}

/// A task that was cancelled, or is dead.
pub(in crate::task) fn find_given_up(
    tx: &mut Tx<'_>,
    id: TaskId,
) -> Result<Option<GivenUp>, StoreError> {
    tx.row(
        sql!(
            "SELECT lock_key, lock_until, batch_id, followers FROM tasks WHERE id = $1 \
         AND state IN ('cancelled', 'discarded')"
        ),
        &[(&id.text()).into()],
        given_up,
    )
}

/// Makes a task that was given up, or waits, available at once. A dead one may be started once more
/// than so far.
pub(in crate::task) fn revive(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
) -> Result<Option<Entry>, StoreError> {
    tx.row(
        sql!("UPDATE tasks SET state = 'available', run_at = $2, finished_at = NULL, cancel_requested_at = NULL, \
         crashes = 0, expires_at = NULL, waiting_on = 0, \
         max_attempts = CASE WHEN attempt >= max_attempts THEN attempt + 1 ELSE max_attempts END \
         WHERE id = $1 AND (state IN ('cancelled', 'discarded', 'retryable') \
         OR (state = 'scheduled' AND waiting_on = 0)) RETURNING queue, priority, run_at"),
        &[(&id.text()).into(), now.into()],
        |row| entry(row, id, 0),
    )
}

pub(in crate::task) fn edit(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    edit: &Edit<'_>,
) -> Result<Option<(Entry, u32)>, StoreError> {
    tx.row(
        sql!(
            "UPDATE tasks SET args = COALESCE($3, args), priority = COALESCE($4, priority), \
         run_at = COALESCE($5, run_at), expires_at = COALESCE($6, expires_at), \
         max_attempts = COALESCE($7, max_attempts), timeout_ms = COALESCE($8, timeout_ms), \
         metadata = COALESCE($9, metadata), state = CASE WHEN state = 'retryable' THEN state \
         WHEN waiting_on > 0 OR COALESCE($5, run_at) > $2 THEN 'scheduled' ELSE 'available' END \
         WHERE id = $1 AND (state = 'available' OR state = 'scheduled' OR state = 'retryable') \
         RETURNING queue, priority, run_at, waiting_on"
        ),
        &[
            (&id.text()).into(),
            now.into(),
            edit.args.into(),
            edit.priority.map(i64::from).into(),
            edit.run_at.into(),
            edit.expires_at.into(),
            edit.max_attempts.into(),
            edit.timeout_ms.into(),
            edit.metadata.into(),
        ],
        |row| Ok((entry(row, id, 0)?, row.get(3)?)),
    )
}

/// Removes a finished task and all that hangs on it; `false` when it is not finished.
pub(in crate::task) fn remove(tx: &mut Tx<'_>, id: TaskId) -> Result<bool, StoreError> {
    let text = id.text();
    let followers: Option<u32> = tx.row(
        sql!("tasks", "DELETE FROM tasks WHERE id = $1 AND (state = 'completed' OR state = 'cancelled' OR state = 'discarded') RETURNING followers"),
        &[(&text).into()],
        |row| row.get(0),
    )?;
    if followers.is_some_and(|count| count > 0) {
        tx.execute(
            sql!("task_edges", "DELETE FROM task_edges WHERE upstream = $1"),
            &[(&text).into()],
        )?;
    }
    if followers.is_some() {
        tx.execute(
            sql!(
                "task_attempts",
                "DELETE FROM task_attempts WHERE task_id = $1"
            ),
            &[(&text).into()],
        )?;
        tx.execute(
            sql!("task_logs", "DELETE FROM task_logs WHERE task_id = $1"),
            &[(&text).into()],
        )?;
    }
    Ok(followers.is_some())
}

const COLUMNS: &str = "id, name, queue, state, priority, run_at, created_at, attempt, max_attempts, crashes, \
     waiting_on, timeout_ms, soft_timeout_ms, args, metadata, traceparent, retry_policy, expires_at, batch_id, worker, \
     attempted_at, lease_expires_at, cancel_requested_at, progress, progress_note, result, result_expires_at, error, \
     finished_at";

fn task(row: &Row<'_>) -> Result<Task, StoreError> {
    Ok(Task {
        id: row.get(0)?,
        name: row.get(1)?,
        queue: row.get(2)?,
        state: row.get(3)?,
        priority: small(row, 4)?,
        run_at: row.get(5)?,
        created_at: row.get(6)?,
        attempt: row.get(7)?,
        max_attempts: row.get(8)?,
        crashes: row.get(9)?,
        waiting_on: row.get(10)?,
        timeout_ms: row.get(11)?,
        soft_timeout_ms: row.get(12)?,
        args: row.get(13)?,
        metadata: row.get(14)?,
        traceparent: row.get(15)?,
        retry_policy: policy(row.get(16)?),
        expires_at: row.get(17)?,
        batch_id: row.get(18)?,
        worker: row.get(19)?,
        attempted_at: row.get(20)?,
        lease_expires_at: row.get(21)?,
        cancel_requested_at: row.get(22)?,
        progress: row.get(23)?,
        progress_note: row.get(24)?,
        result: row.get(25)?,
        result_expires_at: row.get(26)?,
        error: row.get(27)?,
        finished_at: row.get(28)?,
    })
}

pub(in crate::task) fn get(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<Task>, StoreError> {
    tx.row(
        sql!(&format!("SELECT {COLUMNS} FROM tasks WHERE id = $1")),
        &[(&id.text()).into()],
        task,
    )
}

/// Those of these tasks that there are.
pub(in crate::task) fn get_all(tx: &mut Tx<'_>, ids: &[TaskId]) -> Result<Vec<Task>, StoreError> {
    let texts: Vec<_> = ids.iter().map(|id| id.text()).collect();
    let params: Vec<_> = texts.iter().map(Into::into).collect();
    let places: Vec<String> = (1..=ids.len()).map(|place| format!("${place}")).collect();
    tx.rows(
        sql!(&format!(
            "SELECT {COLUMNS} FROM tasks WHERE id IN ({})",
            places.join(", ")
        )),
        &params,
        task,
    )
}

/// How many rows of each state there are, up to `most`; each look is bounded by the index it follows.
pub(in crate::task) fn counts(tx: &mut Tx<'_>, most: u32) -> Result<Vec<Counted>, StoreError> {
    let counted = |state, count, is_more| Counted {
        state,
        count,
        is_more,
    };
    let mut found = Vec::with_capacity(7);
    for state in [
        TaskState::Scheduled,
        TaskState::Retryable,
        TaskState::Cancelled,
        TaskState::Discarded,
    ] {
        let count: u32 = tx
            .row(
                sql!(
                    "few",
                    "SELECT count(*) FROM (SELECT 1 FROM tasks WHERE state = $1 \
                 AND state <> 'available' AND state <> 'running' AND state <> 'completed' LIMIT $2) AS few"
                ),
                &[state.into(), most.into()],
                |row| row.get(0),
            )?
            .unwrap_or_default();
        found.push(counted(state, count, count == most));
    }
    // Oldest first, because those that run are among the oldest.
    let live = tx.rows(
        sql!("live", "SELECT state, count(*) FROM (SELECT state FROM tasks WHERE state IN ('available', 'running') \
         ORDER BY id LIMIT $1) AS live GROUP BY state"),
        &[most.into()],
        |row| Ok((row.get::<TaskState>(0)?, row.get::<u32>(1)?)),
    )?;
    let newest = tx.rows(
        sql!("newest", "SELECT state, count(*) FROM (SELECT state FROM tasks ORDER BY id DESC LIMIT $1) AS newest \
         GROUP BY state"),
        &[most.into()],
        |row| Ok((row.get::<TaskState>(0)?, row.get::<u32>(1)?)),
    )?;
    for (state, among) in [
        (TaskState::Available, &live),
        (TaskState::Running, &live),
        (TaskState::Completed, &newest),
    ] {
        let looked_at: u32 = among.iter().map(|(_, count)| count).sum();
        let count = among.iter().find(|(other, _)| *other == state);
        found.push(counted(
            state,
            count.map_or(0, |(_, count)| *count),
            looked_at == most,
        ));
    }
    Ok(found)
}

/// Rows that a filtered list looks at for one page; a cursor leads on from there.
const LOOKED_AT_MAX: i64 = 20_000;

/// Tasks older than `before` that fit, newest first, and where the look ended if it did not reach
/// the end.
pub(in crate::task) fn list(
    tx: &mut Tx<'_>,
    filter: &Filter,
) -> Result<(Vec<Task>, Option<TaskId>), StoreError> {
    // A text for each kind of filter, so that each has an index that serves it.
    let among = match filter.state {
        None => "$2 IS NULL",
        Some(TaskState::Completed) => "state = $2",
        Some(TaskState::Available | TaskState::Running) => {
            "state = $2 AND state IN ('available', 'running')"
        }
        Some(
            TaskState::Scheduled
            | TaskState::Retryable
            | TaskState::Cancelled
            | TaskState::Discarded,
        ) => "state = $2 AND state <> 'available' AND state <> 'running' AND state <> 'completed'",
    };
    // The filter by state is served by an index, or the rows of other states count as looked at.
    let base = match filter.state {
        None | Some(TaskState::Completed) => "$2 IS NULL OR $2 = 'completed'",
        Some(TaskState::Available | TaskState::Running) => {
            "state IN ('available', 'running') AND $2 IS NOT NULL"
        }
        Some(
            TaskState::Scheduled
            | TaskState::Retryable
            | TaskState::Cancelled
            | TaskState::Discarded,
        ) => among,
    };
    let before = filter.before.map(|id| id.to_string());
    // Above every UUID.
    let before = before.as_deref().unwrap_or("g");
    let is_exact = filter.queue.is_none()
        && filter.name.is_none()
        && match filter.state {
            None
            | Some(
                TaskState::Scheduled
                | TaskState::Retryable
                | TaskState::Cancelled
                | TaskState::Discarded,
            ) => true,
            Some(TaskState::Completed | TaskState::Available | TaskState::Running) => false,
        };
    let floor: Option<String> = if is_exact {
        None
    } else {
        tx.row(
            sql!("floor", &format!(
                "SELECT id FROM tasks WHERE id < $1 AND ({base}) ORDER BY id DESC LIMIT 1 OFFSET $3"
            )),
            &[
                before.into(),
                filter.state.into(),
                (LOOKED_AT_MAX - 1).into(),
            ],
            |row| row.get(0),
        )?
    };
    let tasks = tx.rows(
        sql!(
            "page",
            &format!(
                "SELECT {COLUMNS} FROM tasks WHERE id < $1 AND ({among}) AND id >= $3 \
             AND ($4 IS NULL OR queue = $4) AND ($5 IS NULL OR name = $5) ORDER BY id DESC LIMIT $6"
            )
        ),
        &[
            before.into(),
            filter.state.into(),
            floor.as_deref().unwrap_or("").into(),
            filter.queue.as_ref().into(),
            filter.name.as_ref().into(),
            filter.limit.into(),
        ],
        task,
    )?;
    let next = if tasks.len() as i64 == i64::from(filter.limit) {
        tasks.last().map(|task| task.id)
    } else {
        floor
            .map(|id| {
                id.parse()
                    .map_err(|_| StoreError::Corrupt("a task's id is no UUID".to_owned()))
            })
            .transpose()?
    };
    Ok((tasks, next))
}

pub(in crate::task) fn last_id(tx: &mut Tx<'_>) -> Result<Option<TaskId>, StoreError> {
    tx.row(
        sql!("SELECT id FROM tasks ORDER BY id DESC LIMIT 1"),
        &[],
        |row| row.get(0),
    )
}

pub(in crate::task) fn old_above(
    tx: &mut Tx<'_>,
    above: Option<TaskId>,
    limit: u32,
) -> Result<Vec<UpkeepRow>, StoreError> {
    let above = above.map(|id| id.to_string()).unwrap_or_default();
    tx.rows(
        sql!(
            "SELECT id, state, finished_at, expires_at, result_expires_at, attempt, attempted_at, \
         CASE WHEN state = 'running' AND lease_expires_at IS NULL THEN worker END FROM tasks \
         WHERE id > $1 ORDER BY id LIMIT $2"
        ),
        &[above.as_str().into(), limit.into()],
        |row| {
            Ok(UpkeepRow {
                id: row.get(0)?,
                state: row.get(1)?,
                finished_at: row.get(2)?,
                expires_at: row.get(3)?,
                result_expires_at: row.get(4)?,
                attempt: row.get(5)?,
                attempted_at: row.get(6)?,
                process: row.get(7)?,
            })
        },
    )
}

pub(in crate::task) fn forget_result(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE tasks SET result = NULL, result_expires_at = NULL WHERE id = $1 AND result_expires_at <= $2"),
        &[(&id.text()).into(), now.into()],
    )?;
    Ok(())
}

/// Removes every task and batch. For tests.
#[cfg(test)]
pub(in crate::task) fn clear(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute(sql!("tasks", "DELETE FROM tasks"), &[])?;
    tx.execute(sql!("task_attempts", "DELETE FROM task_attempts"), &[])?;
    tx.execute(sql!("task_logs", "DELETE FROM task_logs"), &[])?;
    tx.execute(sql!("task_batches", "DELETE FROM task_batches"), &[])?;
    Ok(())
}
