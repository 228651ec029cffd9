//! Statements about tasks that wait for others.

use super::entry;
use super::runs::ended;
use super::tasks::given_up;
use crate::clock::Timestamp;
use crate::sql;
use crate::store::{StoreError, Tx};
use crate::task::rows::{Ended, GivenUp};
use crate::task::{Entry, TaskId};

/// Counts one more that waits for an unfinished task.
pub(in crate::task) fn add_follower(tx: &mut Tx<'_>, upstream: TaskId) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "UPDATE tasks SET followers = followers + 1 WHERE id = $1 \
         AND state <> 'completed' AND state <> 'cancelled' AND state <> 'discarded'"
        ),
        &[(&upstream.text()).into()],
    )? == 1)
}

pub(in crate::task) fn drop_follower(tx: &mut Tx<'_>, upstream: TaskId) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE tasks SET followers = followers - 1 WHERE id = $1 AND followers > 0"),
        &[(&upstream.text()).into()],
    )?;
    Ok(())
}

/// `false` when the edge was there.
pub(in crate::task) fn insert_edge(
    tx: &mut Tx<'_>,
    upstream: TaskId,
    downstream: TaskId,
    runs_anyway: bool,
) -> Result<bool, StoreError> {
    let on_failure = if runs_anyway { "run" } else { "cancel" };
    Ok(tx.execute(
        sql!(
            "INSERT INTO task_edges (upstream, downstream, on_failure) VALUES ($1, $2, $3) \
         ON CONFLICT (upstream, downstream) DO NOTHING"
        ),
        &[
            (&upstream.text()).into(),
            (&downstream.text()).into(),
            on_failure.into(),
        ],
    )? == 1)
}

pub(in crate::task) fn remove_edge(
    tx: &mut Tx<'_>,
    upstream: TaskId,
    downstream: TaskId,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("DELETE FROM task_edges WHERE upstream = $1 AND downstream = $2"),
        &[(&upstream.text()).into(), (&downstream.text()).into()],
    )? == 1)
}

/// All that leads from a task: who waits, and whether it runs anyway.
pub(in crate::task) fn edges(
    tx: &mut Tx<'_>,
    upstream: TaskId,
) -> Result<Vec<(TaskId, bool)>, StoreError> {
    tx.rows(
        sql!(
            "SELECT downstream, on_failure FROM task_edges WHERE upstream = $1 ORDER BY downstream"
        ),
        &[(&upstream.text()).into()],
        |row| Ok((row.get(0)?, row.get::<String>(1)? == "run")),
    )
}

pub(in crate::task) fn followers(
    tx: &mut Tx<'_>,
    upstream: TaskId,
    limit: u32,
) -> Result<Vec<TaskId>, StoreError> {
    tx.rows(
        sql!("SELECT downstream FROM task_edges WHERE upstream = $1 ORDER BY downstream LIMIT $2"),
        &[(&upstream.text()).into(), limit.into()],
        |row| row.get(0),
    )
}

/// How many tasks one waits for or did, and how many of those were given up.
pub(in crate::task) fn upstreams(
    tx: &mut Tx<'_>,
    downstream: TaskId,
) -> Result<(u32, u32), StoreError> {
    let counts = tx.row(
        sql!("SELECT COUNT(*), COUNT(CASE WHEN tasks.state IN ('cancelled', 'discarded') THEN 1 END) \
         FROM task_edges JOIN tasks ON tasks.id = task_edges.upstream WHERE task_edges.downstream = $1"),
        &[(&downstream.text()).into()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(counts.unwrap_or_default())
}

/// Takes away all that leads from a completed task: who waits.
pub(in crate::task) fn take_edges(
    tx: &mut Tx<'_>,
    upstream: TaskId,
) -> Result<Vec<(TaskId, bool)>, StoreError> {
    let edges = edges(tx, upstream)?;
    tx.execute(
        sql!("remove", "DELETE FROM task_edges WHERE upstream = $1"),
        &[(&upstream.text()).into()],
    )?;
    Ok(edges)
}

/// Removes the edge to a task that does not come back with the one that it waited for.
pub(in crate::task) fn remove_idle_edge(
    tx: &mut Tx<'_>,
    upstream: TaskId,
    downstream: TaskId,
) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "DELETE FROM task_edges WHERE upstream = $1 AND downstream = $2 AND NOT EXISTS \
         (SELECT 1 FROM tasks WHERE id = $2 AND state = 'cancelled' AND waiting_on > 0)"
        ),
        &[(&upstream.text()).into(), (&downstream.text()).into()],
    )?;
    Ok(())
}

/// One less to wait for; answers the task if that was the last.
pub(in crate::task) fn count_down(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
) -> Result<Option<Entry>, StoreError> {
    let counted = tx.row(
        sql!("UPDATE tasks SET waiting_on = waiting_on - 1, \
         state = CASE WHEN waiting_on = 1 AND run_at <= $2 THEN 'available' ELSE state END \
         WHERE id = $1 AND state = 'scheduled' AND waiting_on > 0 RETURNING waiting_on, queue, priority, run_at"),
        &[(&id.text()).into(), now.into()],
        |row| Ok((row.get::<u32>(0)?, entry(row, id, 1)?)),
    )?;
    Ok(counted.and_then(|(left, entry)| (left == 0).then_some(entry)))
}

/// Cancels a task that waits for others, because of one of them. That it still counts them tells it
/// from one that was cancelled by hand: it comes back with them.
pub(in crate::task) fn cancel_follower(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    why: &str,
) -> Result<Option<Ended>, StoreError> {
    tx.row(
        sql!(
            "UPDATE tasks SET state = 'cancelled', finished_at = $2, error = $3 WHERE id = $1 \
         AND state = 'scheduled' AND waiting_on > 0 \
         RETURNING name, queue, attempted_at, lock_key, batch_id, followers"
        ),
        &[(&id.text()).into(), now.into(), why.into()],
        |row| ended(row, false),
    )
}

/// A task that was cancelled because of one that it waited for.
pub(in crate::task) fn find_cancelled_follower(
    tx: &mut Tx<'_>,
    id: TaskId,
) -> Result<Option<GivenUp>, StoreError> {
    tx.row(
        sql!(
            "SELECT lock_key, lock_until, batch_id, followers FROM tasks WHERE id = $1 \
         AND state = 'cancelled' AND waiting_on > 0"
        ),
        &[(&id.text()).into()],
        given_up,
    )
}

/// Lets a task that was cancelled because of what it waited for wait again.
pub(in crate::task) fn revive_follower(
    tx: &mut Tx<'_>,
    id: TaskId,
    waiting_on: u32,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE tasks SET state = 'scheduled', waiting_on = $2, finished_at = NULL, error = NULL, expires_at = NULL \
         WHERE id = $1 AND state = 'cancelled' AND waiting_on > 0"),
        &[(&id.text()).into(), waiting_on.into()],
    )? == 1)
}
