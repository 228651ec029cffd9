//! Every statement about tasks, their attempts, logs, locks, edges, batches and queues.

use super::enqueue::Placed;
use super::external::{BatchOnRecord, ExternalTask};
use super::life::{Ended, Started, plus_ms};
use super::{
    Attempt, AttemptOutcome, BatchState, Counted, Entry, LogLevel, LogLine, RetryPolicy, Task,
    TaskId, TaskState, Until,
};
use crate::clock::Timestamp;
use crate::sql;
use crate::store::{Row, StoreError, Tx};

/// A stored policy. A text that this version does not know counts as the default.
fn policy(text: Option<String>) -> Option<RetryPolicy> {
    text.and_then(|text| serde_json::from_str(&text).ok())
}

pub(super) fn insert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    placed: &Placed<'_>,
) -> Result<(), StoreError> {
    insert_all(tx, now, std::slice::from_ref(placed))
}

pub(super) fn insert_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    placed: &[Placed<'_>],
) -> Result<(), StoreError> {
    let policy_of = |placed: &Placed<'_>| {
        let policy = placed.new.retry_policy;
        policy
            .map(|policy| serde_json::to_string(&policy))
            .transpose()
    };
    let policies = placed
        .iter()
        .map(policy_of)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| StoreError::Bug(error.to_string()))?;
    let ids: Vec<_> = placed.iter().map(|placed| placed.id.text()).collect();
    tx.execute_each(
        sql!("INSERT INTO tasks (id, name, queue, state, priority, run_at, created_at, max_attempts, waiting_on, \
         timeout_ms, args, metadata, traceparent, soft_timeout_ms, retry_policy, expires_at, lock_key, batch_id, \
         result_seconds, error, finished_at, external_id, lock_until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, \
         $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)"),
        placed.iter().zip(ids.iter().zip(&policies)).map(|(placed, (id, policy))| {
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
                policy.as_ref().into(),
                new.expires_at.into(),
                placed.lock.map(|(key, _)| key).into(),
                placed.batch_id.into(),
                new.result_seconds.into(),
                placed.error.into(),
                placed.state.is_final().then_some(now).into(),
                new.external_id.as_ref().into(),
                placed.lock.map(|(_, until)| until).into(),
            ]
        }),
    )?;
    Ok(())
}

/// The task that came with this id of its maker's own.
pub fn by_external_id(tx: &mut Tx<'_>, external_id: &str) -> Result<Option<TaskId>, StoreError> {
    tx.row(
        sql!("SELECT id FROM tasks WHERE external_id = $1"),
        &[external_id.into()],
        |row| row.get(0),
    )
}

/// Puts off a task that still waits for its time.
pub(super) fn put_off(
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

/// Takes a key that is free, or whose time is over.
pub(super) fn take_lock(
    tx: &mut Tx<'_>,
    now: Timestamp,
    key: &str,
    id: TaskId,
    until: Until,
    expires_at: Option<Timestamp>,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("INSERT INTO task_locks (key, task_id, until_state, expires_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (key) DO UPDATE SET task_id = excluded.task_id, until_state = excluded.until_state, \
         expires_at = excluded.expires_at WHERE task_locks.expires_at <= $5"),
        &[key.into(), (&id.text()).into(), until.into(), expires_at.into(), now.into()],
    )? == 1)
}

/// Who holds a key whose time is not over.
pub(super) fn lock_holder_now(
    tx: &mut Tx<'_>,
    now: Timestamp,
    key: &str,
) -> Result<Option<TaskId>, StoreError> {
    tx.row(
        sql!("SELECT task_id FROM task_locks WHERE key = $1 AND (expires_at IS NULL OR expires_at > $2)"),
        &[key.into(), now.into()],
        |row| row.get(0),
    )
}

pub(super) fn lock_holder(tx: &mut Tx<'_>, key: &str) -> Result<Option<TaskId>, StoreError> {
    tx.row(
        sql!("SELECT task_id FROM task_locks WHERE key = $1"),
        &[key.into()],
        |row| row.get(0),
    )
}

pub(super) fn hand_over_lock(
    tx: &mut Tx<'_>,
    key: &str,
    from: TaskId,
    to: TaskId,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE task_locks SET task_id = $3 WHERE key = $1 AND task_id = $2"),
        &[key.into(), (&from.text()).into(), (&to.text()).into()],
    )?;
    Ok(())
}

/// Frees the key of a task that is finished, unless only its time ends it.
pub(super) fn release_lock(tx: &mut Tx<'_>, key: &str, id: TaskId) -> Result<(), StoreError> {
    tx.execute(
        sql!("DELETE FROM task_locks WHERE key = $1 AND task_id = $2 AND until_state <> 'expired'"),
        &[key.into(), (&id.text()).into()],
    )?;
    Ok(())
}

/// Frees the key of a task that was started, if that ends it.
pub(super) fn release_started_lock(
    tx: &mut Tx<'_>,
    key: &str,
    id: TaskId,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("DELETE FROM task_locks WHERE key = $1 AND task_id = $2 AND until_state = 'started'"),
        &[key.into(), (&id.text()).into()],
    )?;
    Ok(())
}

/// Drops keys whose time is over, a bounded number at a time.
pub(super) fn purge_locks(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sql!("DELETE FROM task_locks WHERE key IN (SELECT key FROM task_locks WHERE expires_at <= $1 \
         ORDER BY expires_at LIMIT 500)"),
        &[now.into()],
    )
}

/// Whether any key's time is over: a look that costs no write.
pub(super) fn any_old_lock(tx: &mut Tx<'_>, now: Timestamp) -> Result<bool, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT 1 FROM task_locks WHERE expires_at <= $1 LIMIT 1"),
            &[now.into()],
            |_| Ok(()),
        )?
        .is_some())
}

/// Counts one more that waits for an unfinished task.
pub(super) fn add_follower(tx: &mut Tx<'_>, upstream: TaskId) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "UPDATE tasks SET followers = followers + 1 WHERE id = $1 \
         AND state <> 'completed' AND state <> 'cancelled' AND state <> 'discarded'"
        ),
        &[(&upstream.text()).into()],
    )? == 1)
}

pub(super) fn drop_follower(tx: &mut Tx<'_>, upstream: TaskId) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE tasks SET followers = followers - 1 WHERE id = $1 AND followers > 0"),
        &[(&upstream.text()).into()],
    )?;
    Ok(())
}

/// `false` when the edge was there.
pub(super) fn insert_edge(
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

pub(super) fn remove_edge(
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
pub(super) fn edges(tx: &mut Tx<'_>, upstream: TaskId) -> Result<Vec<(TaskId, bool)>, StoreError> {
    tx.rows(
        sql!(
            "SELECT downstream, on_failure FROM task_edges WHERE upstream = $1 ORDER BY downstream"
        ),
        &[(&upstream.text()).into()],
        |row| Ok((row.get(0)?, row.get::<String>(1)? == "run")),
    )
}

/// Removes the edge to a task that does not come back with the one that it waited for.
pub(super) fn remove_idle_edge(
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

/// How many tasks one waits for or did, and how many of those were given up.
pub(super) fn upstreams(tx: &mut Tx<'_>, downstream: TaskId) -> Result<(u32, u32), StoreError> {
    let counts = tx.row(
        sql!("SELECT COUNT(*), COUNT(CASE WHEN tasks.state IN ('cancelled', 'discarded') THEN 1 END) \
         FROM task_edges JOIN tasks ON tasks.id = task_edges.upstream WHERE task_edges.downstream = $1"),
        &[(&downstream.text()).into()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(counts.unwrap_or_default())
}

/// Takes away all that leads from a completed task: who waits.
pub(super) fn take_edges(
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

/// One less to wait for; answers the task if that was the last.
pub(super) fn count_down(
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

fn entry(row: &Row<'_>, id: TaskId, from: usize) -> Result<Entry, StoreError> {
    Ok(Entry {
        queue: row.get(from)?,
        priority: small(row, from + 1)?,
        run_at: row.get(from + 2)?,
        id,
    })
}

fn small(row: &Row<'_>, index: usize) -> Result<u8, StoreError> {
    u8::try_from(row.get::<i64>(index)?)
        .map_err(|_| StoreError::Corrupt(format!("column {index} is no priority")))
}

pub(super) fn insert_batch(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: &str,
    description: Option<&str>,
    on_success: Option<&str>,
    on_complete: Option<&str>,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("INSERT INTO task_batches (id, description, total, pending, failed, on_success, on_complete, created_at) \
         VALUES ($1, $2, 0, 0, 0, $3, $4, $5)"),
        &[
            id.into(),
            description.into(),
            on_success.into(),
            on_complete.into(),
            now.into(),
        ],
    )?;
    Ok(())
}

/// Counts tasks that come into a batch or leave it uncounted; `false` when it is complete.
pub(super) fn grow_batch(tx: &mut Tx<'_>, id: &str, by: i64) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "UPDATE task_batches SET total = total + $2, pending = pending + $2 \
         WHERE id = $1 AND finished_at IS NULL"
        ),
        &[id.into(), by.into()],
    )? == 1)
}

/// One task of a batch is finished.
pub(super) fn count_down_batch(
    tx: &mut Tx<'_>,
    id: &str,
    is_failure: bool,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE task_batches SET pending = pending - 1, failed = failed + $2 WHERE id = $1 AND pending > 0"),
        &[id.into(), i64::from(is_failure).into()],
    )?;
    Ok(())
}

/// A failed task of a batch is tried again by hand: the batch is no longer complete, if it was.
/// `false` when there is no such batch any more.
pub(super) fn count_up_batch(tx: &mut Tx<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "UPDATE task_batches SET pending = pending + 1, failed = failed - 1, \
         first_finished_at = COALESCE(first_finished_at, finished_at), finished_at = NULL \
         WHERE id = $1 AND failed > 0"
        ),
        &[id.into()],
    )? == 1)
}

pub(super) fn seal_batch(tx: &mut Tx<'_>, now: Timestamp, id: &str) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE task_batches SET sealed_at = $2 WHERE id = $1 AND sealed_at IS NULL"),
        &[id.into(), now.into()],
    )?;
    Ok(())
}

/// A batch that was closed just now.
pub(super) struct ClosedBatch {
    /// Tasks of it that were cancelled or died.
    pub(super) failed: i64,
    /// The task to follow it if there is no such task.
    pub(super) on_success: Option<String>,
    /// The task to follow it in any case.
    pub(super) on_complete: Option<String>,
    /// Whether it had been closed before, and a task of it was tried again since.
    pub(super) is_again: bool,
}

/// Closes a batch of which nothing is pending, if it is not closed.
pub(super) fn close_batch(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: &str,
) -> Result<Option<ClosedBatch>, StoreError> {
    tx.row(
        sql!("UPDATE task_batches SET finished_at = $2 WHERE id = $1 AND pending = 0 AND sealed_at IS NOT NULL \
         AND finished_at IS NULL RETURNING failed, on_success, on_complete, first_finished_at"),
        &[id.into(), now.into()],
        |row| {
            Ok(ClosedBatch {
                failed: row.get(0)?,
                on_success: row.get(1)?,
                on_complete: row.get(2)?,
                is_again: row.get::<Option<Timestamp>>(3)?.is_some(),
            })
        },
    )
}

/// Drops batches that were closed by `until`, a bounded number at a time. One with failed tasks stays
/// until `dead_until`: as long as one of them may be tried again.
pub(super) fn purge_batches(
    tx: &mut Tx<'_>,
    until: Timestamp,
    dead_until: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("successful", "DELETE FROM task_batches WHERE id IN (SELECT id FROM task_batches WHERE finished_at <= $1 \
         AND failed = 0 ORDER BY finished_at LIMIT 500)"),
        &[until.into()],
    )?;
    tx.execute(
        sql!("failed", "DELETE FROM task_batches WHERE id IN (SELECT id FROM task_batches WHERE finished_at <= $1 \
         AND failed > 0 ORDER BY finished_at LIMIT 500)"),
        &[dead_until.into()],
    )?;
    Ok(())
}

/// Drops batches that were begun and never committed, a bounded number at a time. One of which tasks
/// are pending stays: one of them may be adding to it.
pub(super) fn purge_open_batches(tx: &mut Tx<'_>, until: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sql!("DELETE FROM task_batches WHERE id IN (SELECT id FROM task_batches WHERE sealed_at IS NULL \
         AND created_at <= $1 AND pending = 0 AND finished_at IS NULL ORDER BY created_at LIMIT 500)"),
        &[until.into()],
    )
}

pub(super) fn any_old_open_batch(tx: &mut Tx<'_>, until: Timestamp) -> Result<bool, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT 1 FROM task_batches WHERE sealed_at IS NULL AND created_at <= $1 AND pending = 0 \
             AND finished_at IS NULL LIMIT 1"),
            &[until.into()],
            |_| Ok(()),
        )?
        .is_some())
}

/// Whether [`purge_batches`] would find one.
pub(super) fn any_old_batch(
    tx: &mut Tx<'_>,
    until: Timestamp,
    dead_until: Timestamp,
) -> Result<bool, StoreError> {
    let successful = tx.row(
        sql!(
            "successful",
            "SELECT 1 FROM task_batches WHERE finished_at <= $1 AND failed = 0 LIMIT 1"
        ),
        &[until.into()],
        |_| Ok(()),
    )?;
    if successful.is_some() {
        return Ok(true);
    }
    let failed = tx.row(
        sql!(
            "failed",
            "SELECT 1 FROM task_batches WHERE finished_at <= $1 AND failed > 0 LIMIT 1"
        ),
        &[dead_until.into()],
        |_| Ok(()),
    )?;
    Ok(failed.is_some())
}

/// The run, and the key that the task holds. A lease never lasts longer than the longest run. What is
/// available has been due, whatever a clock that was set back says of it now. Read first, and then
/// changed if it still is what was read: cheaper than `RETURNING`, for which SQLite fills a table of
/// its own.
pub(super) fn start(
    tx: &mut Tx<'_>,
    now: Timestamp,
    entry: &Entry,
    worker: &str,
    lease: Option<Timestamp>,
) -> Result<Option<(Started, Option<String>)>, StoreError> {
    let id = entry.id;
    let id_text = id.text();
    let found = tx.row(
        sql!("find", "SELECT attempt, max_attempts, name, args, metadata, traceparent, timeout_ms, soft_timeout_ms, created_at, \
         batch_id, external_id, lock_key FROM tasks \
         WHERE id = $1 AND (state = 'available' OR state = 'scheduled' OR state = 'retryable') AND run_at = $2 AND priority = $3 \
         AND (run_at <= $4 OR state = 'available') AND waiting_on = 0 AND (expires_at IS NULL OR expires_at > $4)"),
        &[
            (&id_text).into(),
            entry.run_at.into(),
            i64::from(entry.priority).into(),
            now.into(),
        ],
        |row| {
            let timeout_ms = row.get(6)?;
            let started = Started {
                id,
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
                lease_expires_at: lease.map(|ends| ends.min(plus_ms(now, timeout_ms))),
                external_id: row.get(10)?,
            };
            Ok((started, row.get(11)?))
        },
    )?;
    let Some((mut started, lock_key)) = found else {
        return Ok(None);
    };
    let is_started = tx.execute(
        sql!("UPDATE tasks SET state = 'running', attempt = $2 + 1, worker = $3, attempted_at = $4, lease_expires_at = $5, \
         progress = NULL, progress_note = NULL \
         WHERE id = $1 AND attempt = $2 AND (state = 'available' OR state = 'scheduled' OR state = 'retryable') AND run_at = $6 \
         AND priority = $7 AND waiting_on = 0"),
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

/// A task that was never started and may be, as far as doing it at once needs it.
pub(super) struct Fresh {
    pub(super) args: String,
    pub(super) traceparent: Option<String>,
    pub(super) ended: Ended,
}

/// By the same conditions as [`start`].
pub(super) fn fresh(
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
pub(super) fn complete_fresh(
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

/// A task that waits for nothing but its time and a worker.
pub(super) struct Waiting {
    pub(super) entry: Entry,
    pub(super) expires_at: Option<Timestamp>,
}

pub(super) fn waiting(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<Waiting>, StoreError> {
    tx.row(
        sql!(
            "SELECT queue, priority, run_at, expires_at FROM tasks WHERE id = $1 \
         AND (state = 'available' OR state = 'scheduled' OR state = 'retryable') AND waiting_on = 0"
        ),
        &[(&id.text()).into()],
        |row| {
            Ok(Waiting {
                entry: entry(row, id, 0)?,
                expires_at: row.get(3)?,
            })
        },
    )
}

fn ended(row: &Row<'_>, was_running: bool) -> Result<Ended, StoreError> {
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

/// Cancels a task that waits for others, because of one of them. That it still counts them tells it
/// from one that was cancelled by hand: it comes back with them.
pub(super) fn cancel_follower(
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

/// Ends the waiting of a task that is not running: it is cancelled, or dead.
pub(super) fn finish_waiting(
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

/// What is left of a run when it ends: for [`complete`], which only changes what is still so, as
/// [`start`] does.
pub(super) fn ending(
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

/// Notes that a run succeeded; `false` if it is over, or more wait for it.
pub(super) fn complete(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    attempt: u32,
    followers: u32,
    result: Option<&str>,
    result_seconds: i64,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE tasks SET state = 'completed', finished_at = $3, result = $4, result_expires_at = \
         CASE WHEN $4 IS NULL THEN NULL ELSE $3 + COALESCE(result_seconds, $5) * 1000000 END, \
         error = NULL, lease_expires_at = NULL WHERE id = $1 AND attempt = $2 AND state = 'running' AND followers = $6"),
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

/// What deciding about a failed run takes.
pub(super) struct Running {
    pub(super) worker: Option<String>,
    pub(super) started_at: Timestamp,
    pub(super) max_attempts: u32,
    pub(super) crashes: u32,
    pub(super) retry_policy: Option<RetryPolicy>,
    pub(super) cancel_requested: bool,
    pub(super) lease_expires_at: Option<Timestamp>,
    pub(super) run_at: Timestamp,
    pub(super) priority: u8,
    pub(super) timeout_ms: i64,
}

pub(super) fn running(
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
pub(super) fn end_attempt(
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

pub(super) fn insert_attempt(
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

/// A task's state and attempt.
pub fn state(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<(TaskState, u32)>, StoreError> {
    tx.row(
        sql!("SELECT state, attempt FROM tasks WHERE id = $1"),
        &[(&id.text()).into()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Renews a lease, though not beyond the end of the longest run, whose beginning is behind the clock by
/// `begun_behind` microseconds; answers its end, and whether the task was cancelled.
pub(super) fn heartbeat(
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

pub(super) fn progress(
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

pub(super) fn last_log(tx: &mut Tx<'_>, id: TaskId, attempt: u32) -> Result<u32, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT seq FROM task_logs WHERE task_id = $1 AND attempt = $2 ORDER BY seq DESC LIMIT 1"),
            &[(&id.text()).into(), attempt.into()],
            |row| row.get(0),
        )?
        .unwrap_or(0))
}

pub(super) fn insert_log(
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

/// Moves the times of an outside worker's run along with a clock that was set: its beginning, and the
/// lease, unless that was renewed since.
pub(super) fn shift_run(
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

/// Asks a running task to stop; answers whether it runs.
pub(super) fn request_cancel(
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

/// What a task that was given up had, and takes back when it is retried.
pub(super) struct GivenUp {
    pub(super) lock: Option<(String, Until)>,
    pub(super) batch_id: Option<String>,
    pub(super) followers: u32,
}

fn given_up(row: &Row<'_>) -> Result<GivenUp, StoreError> {
    let key: Option<String> = row.get(0)?;
    let until = row.get::<Option<Until>>(1)?.unwrap_or(Until::Finished);
    Ok(GivenUp {
        lock: key.map(|key| (key, until)),
        batch_id: row.get(2)?,
        followers: row.get(3)?,
    })
}

/// A task that was cancelled, or is dead.
pub(super) fn find_given_up(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<GivenUp>, StoreError> {
    tx.row(
        sql!(
            "SELECT lock_key, lock_until, batch_id, followers FROM tasks WHERE id = $1 \
         AND state IN ('cancelled', 'discarded')"
        ),
        &[(&id.text()).into()],
        given_up,
    )
}

/// A task that was cancelled because of one that it waited for.
pub(super) fn find_cancelled_follower(
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
pub(super) fn revive_follower(
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

/// Makes a task that was given up, or waits, available at once. A dead one may be started once more
/// than so far.
pub(super) fn revive(
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

pub(super) fn leave_batch(tx: &mut Tx<'_>, id: TaskId) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE tasks SET batch_id = NULL WHERE id = $1"),
        &[(&id.text()).into()],
    )?;
    Ok(())
}

/// New values for a task that waits; what is absent stays.
pub(super) struct Edit<'a> {
    pub(super) args: Option<&'a str>,
    pub(super) priority: Option<u8>,
    pub(super) run_at: Option<Timestamp>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) max_attempts: Option<u32>,
    pub(super) timeout_ms: Option<i64>,
    pub(super) metadata: Option<&'a str>,
}

pub(super) fn edit(
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
pub(super) fn remove(tx: &mut Tx<'_>, id: TaskId) -> Result<bool, StoreError> {
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

pub(super) fn get(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<Task>, StoreError> {
    tx.row(
        sql!(&format!("SELECT {COLUMNS} FROM tasks WHERE id = $1")),
        &[(&id.text()).into()],
        task,
    )
}

/// Those of these tasks that there are.
pub(super) fn get_all(tx: &mut Tx<'_>, ids: &[TaskId]) -> Result<Vec<Task>, StoreError> {
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

pub(super) fn attempts(tx: &mut Tx<'_>, id: TaskId) -> Result<Vec<Attempt>, StoreError> {
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

pub(super) fn followers(
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

pub(super) fn batch(tx: &mut Tx<'_>, id: &str) -> Result<Option<BatchState>, StoreError> {
    tx.row(
        sql!("SELECT id, description, total, pending, failed, finished_at FROM task_batches WHERE id = $1"),
        &[id.into()],
        |row| {
            Ok(BatchState {
                id: row.get(0)?,
                description: row.get(1)?,
                total: row.get(2)?,
                pending: row.get(3)?,
                failed: row.get(4)?,
                finished_at: row.get(5)?,
            })
        },
    )
}

/// How many rows of each state there are, up to `most`; each look is bounded by the index it follows.
pub(super) fn counts(tx: &mut Tx<'_>, most: u32) -> Result<Vec<Counted>, StoreError> {
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

pub(super) fn logs(tx: &mut Tx<'_>, id: TaskId, limit: u32) -> Result<Vec<LogLine>, StoreError> {
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

/// Rows that a filtered list looks at for one page; a cursor leads on from there.
const LOOKED_AT_MAX: i64 = 20_000;

/// Tasks older than `before` that fit, newest first, and where the look ended if it did not reach
/// the end.
pub(super) fn list(
    tx: &mut Tx<'_>,
    filter: &super::Filter,
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

/// What the relay reads of a row.
pub(super) struct Seen {
    pub(super) entry: Entry,
    pub(super) state: TaskState,
    pub(super) waiting_on: u32,
    pub(super) attempt: u32,
    pub(super) lease_expires_at: Option<Timestamp>,
    /// Who runs it, if it runs.
    pub(super) worker: Option<String>,
}

fn seen(row: &Row<'_>) -> Result<Seen, StoreError> {
    let id = row.get(0)?;
    Ok(Seen {
        entry: entry(row, id, 1)?,
        state: row.get(4)?,
        waiting_on: row.get(5)?,
        attempt: row.get(6)?,
        lease_expires_at: row.get(7)?,
        worker: row.get(8)?,
    })
}

/// New rows, oldest first.
pub(super) fn rows_above(
    tx: &mut Tx<'_>,
    above: Option<TaskId>,
    limit: u32,
) -> Result<Vec<Seen>, StoreError> {
    let above = above.map(|id| id.to_string()).unwrap_or_default();
    tx.rows(
        sql!(
            "SELECT id, queue, priority, run_at, state, waiting_on, attempt, lease_expires_at, \
             CASE WHEN state = 'running' THEN worker END FROM tasks \
         WHERE id > $1 ORDER BY id LIMIT $2"
        ),
        &[above.as_str().into(), limit.into()],
        seen,
    )
}

/// Unfinished rows, oldest first, of one of the two indexes.
pub(super) fn unfinished_above(
    tx: &mut Tx<'_>,
    state: Option<TaskState>,
    above: Option<TaskId>,
    limit: u32,
) -> Result<Vec<Seen>, StoreError> {
    let above = above.map(|id| id.to_string()).unwrap_or_default();
    let sql = match state {
        None => {
            "SELECT id, queue, priority, run_at, state, waiting_on, attempt, lease_expires_at, \
             CASE WHEN state = 'running' THEN worker END FROM tasks \
             WHERE id > $1 AND state IN ('available', 'running') AND $3 IS NULL ORDER BY id LIMIT $2"
        }
        Some(_) => {
            "SELECT id, queue, priority, run_at, state, waiting_on, attempt, lease_expires_at, \
             CASE WHEN state = 'running' THEN worker END FROM tasks \
             WHERE state = $3 AND id > $1 AND state <> 'available' AND state <> 'running' AND state <> 'completed' \
             ORDER BY id LIMIT $2"
        }
    };
    tx.rows(
        sql!(sql),
        &[above.as_str().into(), limit.into(), state.into()],
        seen,
    )
}

/// The mark of the delivery index that belongs to these rows.
pub(super) fn mark(tx: &mut Tx<'_>) -> Result<Option<String>, StoreError> {
    tx.row(
        sql!("SELECT mark FROM task_index WHERE id = 1"),
        &[],
        |row| row.get(0),
    )
}

pub(super) fn put_mark(tx: &mut Tx<'_>, mark: &str) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "INSERT INTO task_index (id, mark) VALUES (1, $1) \
             ON CONFLICT (id) DO UPDATE SET mark = excluded.mark"
        ),
        &[mark.into()],
    )?;
    Ok(())
}

pub(super) fn remove_mark(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute(sql!("DELETE FROM task_index WHERE id = 1"), &[])?;
    Ok(())
}

pub(super) fn last_id(tx: &mut Tx<'_>) -> Result<Option<TaskId>, StoreError> {
    tx.row(
        sql!("SELECT id FROM tasks ORDER BY id DESC LIMIT 1"),
        &[],
        |row| row.get(0),
    )
}

/// What the upkeep reads of a row.
pub(super) struct Old {
    pub(super) id: TaskId,
    pub(super) state: TaskState,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) result_expires_at: Option<Timestamp>,
    pub(super) attempt: u32,
    pub(super) attempted_at: Option<Timestamp>,
    /// Who runs it without a lease: a process, for itself.
    pub(super) process: Option<String>,
}

pub(super) fn old_above(
    tx: &mut Tx<'_>,
    above: Option<TaskId>,
    limit: u32,
) -> Result<Vec<Old>, StoreError> {
    let above = above.map(|id| id.to_string()).unwrap_or_default();
    tx.rows(
        sql!(
            "SELECT id, state, finished_at, expires_at, result_expires_at, attempt, attempted_at, \
         CASE WHEN state = 'running' AND lease_expires_at IS NULL THEN worker END FROM tasks \
         WHERE id > $1 ORDER BY id LIMIT $2"
        ),
        &[above.as_str().into(), limit.into()],
        |row| {
            Ok(Old {
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

pub(super) fn forget_result(tx: &mut Tx<'_>, now: Timestamp, id: TaskId) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE tasks SET result = NULL, result_expires_at = NULL WHERE id = $1 AND result_expires_at <= $2"),
        &[(&id.text()).into(), now.into()],
    )?;
    Ok(())
}

fn queue(row: &Row<'_>) -> Result<super::QueueRow, StoreError> {
    Ok(super::QueueRow {
        name: row.get(0)?,
        paused_at: row.get(1)?,
        concurrency_max: row.get(2)?,
        rate_limit: row.get(3)?,
        rate_period_ms: row.get(4)?,
    })
}

pub(super) fn queues(tx: &mut Tx<'_>, limit: usize) -> Result<Vec<super::QueueRow>, StoreError> {
    tx.rows(
        sql!("SELECT name, paused_at, concurrency_max, rate_limit, rate_period_ms FROM queues ORDER BY name LIMIT $1"),
        &[i64::try_from(limit).unwrap_or(i64::MAX).into()],
        queue,
    )
}

/// Writes a queue's row, unless that would make one too many.
pub(super) fn put_queue(
    tx: &mut Tx<'_>,
    row: &super::QueueRow,
    most: usize,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "INSERT INTO queues (name, paused_at, concurrency_max, rate_limit, rate_period_ms) \
         SELECT $1, $2, $3, $4, $5 WHERE (SELECT COUNT(*) FROM queues WHERE name <> $1) < $6 \
         ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at, \
         concurrency_max = excluded.concurrency_max, rate_limit = excluded.rate_limit, \
         rate_period_ms = excluded.rate_period_ms"
        ),
        &[
            (&row.name).into(),
            row.paused_at.into(),
            row.concurrency_max.into(),
            row.rate_limit.into(),
            row.rate_period_ms.into(),
            i64::try_from(most).unwrap_or(i64::MAX).into(),
        ],
    )? == 1)
}

pub(super) fn queue_row(
    tx: &mut Tx<'_>,
    name: &str,
) -> Result<Option<super::QueueRow>, StoreError> {
    tx.row(
        sql!("SELECT name, paused_at, concurrency_max, rate_limit, rate_period_ms FROM queues WHERE name = $1"),
        &[name.into()],
        queue,
    )
}

fn external(row: &Row<'_>) -> Result<ExternalTask, StoreError> {
    Ok(ExternalTask {
        id: row.get(0)?,
        attempt: row.get(1)?,
        state: row.get(2)?,
        queue: row.get(3)?,
        worker: row.get(4)?,
        metadata: row.get(5)?,
        lease_expires_at: row.get(6)?,
        attempted_at: row.get(7)?,
        name: row.get(8)?,
        lock_key: row.get(9)?,
        batch_id: row.get(10)?,
        followers: row.get(11)?,
    })
}

/// The task of this external id; one that came without is found by its own.
pub fn find_external(
    tx: &mut Tx<'_>,
    external_id: &str,
) -> Result<Option<ExternalTask>, StoreError> {
    let by_external_id = tx.row(
        sql!(
            "by_external_id",
            "SELECT id, attempt, state, queue, worker, metadata, lease_expires_at, attempted_at, \
         name, lock_key, batch_id, followers FROM tasks \
         WHERE external_id = $1"
        ),
        &[external_id.into()],
        external,
    )?;
    match (by_external_id, external_id.parse::<TaskId>()) {
        (Some(task), _) => Ok(Some(task)),
        (None, Ok(id)) => tx.row(
            sql!("by_id", "SELECT id, attempt, state, queue, worker, metadata, lease_expires_at, attempted_at, \
         name, lock_key, batch_id, followers FROM tasks \
             WHERE id = $1 AND external_id IS NULL"),
            &[(&id.text()).into()],
            external,
        ),
        (None, Err(_)) => Ok(None),
    }
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

/// The id that a task's maker gave it.
pub fn external_id(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<String>, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT external_id FROM tasks WHERE id = $1"),
            &[(&id.text()).into()],
            |row| row.get::<Option<String>>(0),
        )?
        .flatten())
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

/// A batch with its callbacks, as it stands.
pub fn batch_on_record(tx: &mut Tx<'_>, id: &str) -> Result<Option<BatchOnRecord>, StoreError> {
    tx.row(
        sql!("SELECT description, total, pending, failed, on_success, on_complete, created_at, finished_at, \
         first_finished_at FROM task_batches WHERE id = $1"),
        &[id.into()],
        |row| {
            Ok(BatchOnRecord {
                description: row.get(0)?,
                total: row.get(1)?,
                pending: row.get(2)?,
                failed: row.get(3)?,
                on_success: row.get(4)?,
                on_complete: row.get(5)?,
                created_at: row.get(6)?,
                finished_at: row.get(7)?,
                first_finished_at: row.get(8)?,
            })
        },
    )
}

/// Lets more tasks into a batch that is not complete, until it is sealed again; `false` if there is
/// no such batch.
pub fn reopen_batch(tx: &mut Tx<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE task_batches SET sealed_at = NULL WHERE id = $1 AND finished_at IS NULL"),
        &[id.into()],
    )? == 1)
}

/// Removes every task and batch. For tests.
#[cfg(test)]
pub(super) fn clear(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute(sql!("tasks", "DELETE FROM tasks"), &[])?;
    tx.execute(sql!("task_attempts", "DELETE FROM task_attempts"), &[])?;
    tx.execute(sql!("task_logs", "DELETE FROM task_logs"), &[])?;
    tx.execute(sql!("task_batches", "DELETE FROM task_batches"), &[])?;
    Ok(())
}
