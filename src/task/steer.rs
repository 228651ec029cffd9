//! What people do to tasks and queues: see, cancel, retry, edit, remove, pause.
//!
//! Invariants: each is a conditional update on the state; in the wrong state nothing is changed and
//! the answer says what the state allows; what is done to many is bounded.

use super::enqueue::take_lock;
use super::life::settle;
use super::rows::{Edit, GivenUp};
use super::{
    Attempt, BatchState, Changes, Counted, ENQUEUED, Filter, LogLine, QueueRow, Task, TaskError,
    TaskId, TaskState, Until, sql,
};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::config;
use crate::store::{StoreError, Tx};

/// Newest log lines that are shown with a task.
const LOG_LINES_SHOWN: u32 = 200;

/// Waiting tasks that are shown with the task that they wait for.
const FOLLOWERS_SHOWN: u32 = 100;

/// A task with what its attempts left behind, newest first.
pub fn get(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
) -> Result<(Task, Vec<Attempt>, Vec<LogLine>), TaskError> {
    let mut task = sql::get(tx, id)?.ok_or(TaskError::NotFound(id))?;
    if task.result_expires_at.is_some_and(|at| at <= now) {
        task.result = None;
    }
    Ok((
        task,
        sql::attempts(tx, id)?,
        sql::logs(tx, id, LOG_LINES_SHOWN)?,
    ))
}

/// A task as it stands, without what its attempts left behind.
pub fn find(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<Task>, StoreError> {
    sql::get(tx, id)
}

/// What a task is tied to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ties {
    /// Tasks that wait for it, [`FOLLOWERS_SHOWN`] at most.
    pub followers: Vec<TaskId>,
    /// The batch that counts it, while that is kept.
    pub batch: Option<BatchState>,
}

/// What a task is tied to as it stands.
pub fn ties(tx: &mut Tx<'_>, task: &Task) -> Result<Ties, TaskError> {
    let batch = match &task.batch_id {
        Some(id) => sql::batch(tx, id)?,
        None => None,
    };
    Ok(Ties {
        followers: sql::followers(tx, task.id, FOLLOWERS_SHOWN)?,
        batch,
    })
}

/// How many tasks are in each state, as they stand in the rows: up to `most` of each of the few, among
/// `most` of those that are ready or run, and among the `most` newest of all for the completed ones.
pub fn counts(tx: &mut Tx<'_>, most: u32) -> Result<Vec<Counted>, TaskError> {
    Ok(sql::counts(tx, most)?)
}

/// Those of these tasks that there are, as they stand. At most a few hundred.
pub fn find_all(tx: &mut Tx<'_>, ids: &[TaskId]) -> Result<Vec<Task>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    sql::get_all(tx, ids)
}

/// Tasks, newest first, and where to go on. A page may hold fewer than asked for, or none, and yet
/// lead on: a look goes over a bounded number of rows.
pub fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<(Vec<Task>, Option<TaskId>), TaskError> {
    Ok(sql::list(tx, filter)?)
}

/// Cancels a task: at once if it waits; if it runs, its worker is told.
pub fn cancel(tx: &mut Tx<'_>, now: Timestamp, id: TaskId) -> Result<Changes, TaskError> {
    let mut changes = Changes::default();
    if let Some(ended) = sql::finish_waiting(tx, now, id, TaskState::Cancelled, "cancelled")? {
        settle(tx, now, id, ended, TaskState::Cancelled, &mut changes)?;
        return Ok(changes);
    }
    if sql::request_cancel(tx, now, id)? {
        changes.cancelled.push(id);
        return Ok(changes);
    }
    Err(state_error(tx, id)?)
}

fn state_error(tx: &mut Tx<'_>, id: TaskId) -> Result<TaskError, TaskError> {
    Ok(match sql::state(tx, id)? {
        None => TaskError::NotFound(id),
        Some((state, _)) => TaskError::State(state),
    })
}

/// Lets a task that was given up, or that waits to be retried, run now. One more attempt than it had
/// is allowed; its crashes are forgotten.
///
/// One that was given up takes its key again ([`TaskError::KeyHeld`] if another has it), counts in
/// its batch again, and what was cancelled because of it waits for it again. What was made
/// after it had failed, and what was to run in any case and did, stays as it is.
pub fn retry(tx: &mut Tx<'_>, now: Timestamp, id: TaskId) -> Result<Changes, TaskError> {
    let given_up = sql::find_given_up(tx, id)?;
    if let Some(holder) = match &given_up {
        Some(before) => take_key_again(tx, now, id, before)?,
        None => None,
    } {
        return Err(TaskError::KeyHeld(holder));
    }
    let Some(entry) = sql::revive(tx, now, id)? else {
        return Err(state_error(tx, id)?);
    };
    if let Some(before) = given_up {
        count_in_batch_again(tx, id, &before)?;
        if before.followers > 0 {
            bring_back_followers(tx, now, id)?;
        }
    }
    tx.touch(ENQUEUED);
    Ok(Changes {
        ready: vec![entry],
        ..Changes::default()
    })
}

/// Takes the key of a task that was given up; answers who has it instead. A key that only its time
/// ends is not taken anew: its time began with the enqueue.
fn take_key_again(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    before: &GivenUp,
) -> Result<Option<TaskId>, TaskError> {
    let holder = match &before.lock {
        None => None,
        Some((key, Until::Expired)) => sql::lock_holder_now(tx, now, key)?,
        Some((key, until @ (Until::Started | Until::Finished))) => {
            take_lock(tx, now, id, key, *until, None)?
        }
    };
    Ok(holder.filter(|holder| *holder != id))
}

fn count_in_batch_again(tx: &mut Tx<'_>, id: TaskId, before: &GivenUp) -> Result<(), StoreError> {
    if let Some(batch) = &before.batch_id
        && !sql::count_up_batch(tx, batch)?
    {
        sql::leave_batch(tx, id)?; // it is kept no longer
    }
    Ok(())
}

/// Lets wait again what was cancelled because of a task that now is to run again, and what was
/// cancelled because of that; except what another dead task keeps back, or whose key another holds.
fn bring_back_followers(tx: &mut Tx<'_>, now: Timestamp, id: TaskId) -> Result<(), TaskError> {
    let mut open = vec![id];
    while let Some(upstream) = open.pop() {
        for (follower, _) in sql::edges(tx, upstream)? {
            let Some(before) = sql::find_cancelled_follower(tx, follower)? else {
                continue;
            };
            let (waiting_on, dead) = sql::upstreams(tx, follower)?;
            if dead > 0
                || take_key_again(tx, now, follower, &before)?.is_some()
                || !sql::revive_follower(tx, follower, waiting_on)?
            {
                continue;
            }
            count_in_batch_again(tx, follower, &before)?;
            if before.followers > 0 {
                open.push(follower);
            }
        }
    }
    Ok(())
}

/// New values for a task that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// JSON, checked against the handler's shape by [`super::Registry::check_args`].
    pub args: Option<String>,
    /// Higher first.
    pub priority: Option<u8>,
    /// Not before.
    pub run_at: Option<Timestamp>,
    /// Not after.
    pub expires_at: Option<Timestamp>,
    /// How often it may be started.
    pub max_attempts: Option<u32>,
    /// Longest run.
    pub timeout_ms: Option<i64>,
    /// JSON.
    pub metadata: Option<String>,
}

/// Changes a task that waits.
pub fn edit(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    patch: &Patch,
) -> Result<Changes, TaskError> {
    let values = Edit {
        args: patch.args.as_deref(),
        priority: patch.priority,
        run_at: patch.run_at,
        expires_at: patch.expires_at,
        max_attempts: patch.max_attempts,
        timeout_ms: patch.timeout_ms,
        metadata: patch.metadata.as_deref(),
    };
    let Some((entry, waiting_on)) = sql::edit(tx, now, id, &values)? else {
        return Err(state_error(tx, id)?);
    };
    let mut changes = Changes::default();
    if waiting_on == 0 {
        tx.touch(ENQUEUED);
        changes.ready.push(entry);
    }
    Ok(changes)
}

/// Removes a finished task.
pub fn remove(tx: &mut Tx<'_>, id: TaskId) -> Result<(), TaskError> {
    if sql::remove(tx, id)? {
        Ok(())
    } else {
        Err(state_error(tx, id)?)
    }
}

/// What is to be done to many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    /// [`cancel`]
    Cancel,
    /// [`retry`]
    Retry,
    /// [`remove`]
    Remove,
}

/// Does it to every task that fits, `filter.limit` at most, and says to how many, and whether there
/// may be more.
pub fn bulk(
    tx: &mut Tx<'_>,
    now: Timestamp,
    what: Bulk,
    filter: &Filter,
) -> Result<(u32, Option<TaskId>, Changes), TaskError> {
    let (tasks, next) = sql::list(tx, filter)?;
    let (mut done, mut changes) = (0, Changes::default());
    for task in &tasks {
        let changed = match what {
            Bulk::Cancel => cancel(tx, now, task.id),
            Bulk::Retry => retry(tx, now, task.id),
            Bulk::Remove => remove(tx, task.id).map(|()| Changes::default()),
        };
        match changed {
            Ok(more) => {
                changes.add(more);
                done += 1;
            }
            // Its state does not allow it, one before it has taken it along, or another holds its key.
            Err(TaskError::State(_) | TaskError::NotFound(_) | TaskError::KeyHeld(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((done, next, changes))
}

/// The queues that are not served in the ordinary way.
pub fn queues(tx: &mut Tx<'_>, rules: &config::Tasks) -> Result<Vec<QueueRow>, StoreError> {
    sql::queues(tx, rules.queues_max)
}

/// Stops or resumes handing out a queue's tasks.
pub fn set_paused(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    name: &str,
    is_paused: bool,
) -> Result<QueueRow, TaskError> {
    change_queue(tx, rules, name, |row| {
        row.paused_at = match (is_paused, row.paused_at) {
            (true, since) => since.or(Some(now)),
            (false, _) => None,
        };
    })
}

/// New limits of a queue; `Some(None)` lifts one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePatch {
    /// Tasks of it that run at once.
    pub concurrency_max: Option<Option<u32>>,
    /// Tasks of it that are started in each period, and that period in milliseconds.
    pub rate: Option<Option<(u32, i64)>>,
}

/// Sets a queue's limits.
pub fn patch_queue(
    tx: &mut Tx<'_>,
    rules: &config::Tasks,
    name: &str,
    patch: QueuePatch,
) -> Result<QueueRow, TaskError> {
    change_queue(tx, rules, name, |row| {
        if let Some(most) = patch.concurrency_max {
            row.concurrency_max = most;
        }
        if let Some(rate) = patch.rate {
            row.rate_limit = rate.map(|(limit, _)| limit);
            row.rate_period_ms = rate.map(|(_, period)| period);
        }
    })
}

fn change_queue(
    tx: &mut Tx<'_>,
    rules: &config::Tasks,
    name: &str,
    change: impl FnOnce(&mut QueueRow),
) -> Result<QueueRow, TaskError> {
    let mut row = sql::queue_row(tx, name)?.unwrap_or_else(|| QueueRow {
        name: name.to_owned(),
        ..QueueRow::default()
    });
    change(&mut row);
    if !sql::put_queue(tx, &row, rules.queues_max)? {
        return Err(TaskError::Invalid(vec![FieldError::new(
            "name",
            "there are as many queues as may be",
        )]));
    }
    Ok(row)
}
