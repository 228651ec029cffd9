//! Every statement that only the Faktory protocol needs. The columns are the tasks' own.

use crate::clock::Timestamp;
use crate::sql;
use crate::store::{Row, StoreError, Tx};
use crate::task::life::Ended;
use crate::task::{TaskId, TaskState};

/// A job as an answer to it needs it.
pub(super) struct Found {
    pub(super) id: TaskId,
    pub(super) attempt: u32,
    pub(super) state: TaskState,
    pub(super) queue: String,
    pub(super) worker: Option<String>,
    pub(super) metadata: Option<String>,
    pub(super) lease_expires_at: Option<Timestamp>,
    pub(super) attempted_at: Option<Timestamp>,
    name: String,
    lock_key: Option<String>,
    batch_id: Option<String>,
    followers: u32,
}

impl Found {
    /// What is left of its run when that ends.
    pub(super) fn ending(self) -> Ended {
        Ended {
            name: self.name,
            queue: self.queue,
            was_running: true,
            started_at: self.attempted_at,
            lock_key: self.lock_key,
            batch_id: self.batch_id,
            followers: self.followers,
            place: None,
        }
    }
}

fn found(row: &Row<'_>) -> Result<Found, StoreError> {
    Ok(Found {
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

/// The job of this id: the one that it came with, or the task's own if it came with none.
pub(super) fn find(tx: &mut Tx<'_>, jid: &str) -> Result<Option<Found>, StoreError> {
    let by_jid = tx.row(
        sql!(
            "by_jid",
            "SELECT id, attempt, state, queue, worker, metadata, lease_expires_at, attempted_at, \
         name, lock_key, batch_id, followers FROM tasks \
         WHERE external_id = $1"
        ),
        &[jid.into()],
        found,
    )?;
    match (by_jid, jid.parse::<TaskId>()) {
        (Some(job), _) => Ok(Some(job)),
        (None, Ok(id)) => tx.row(
            sql!("by_id", "SELECT id, attempt, state, queue, worker, metadata, lease_expires_at, attempted_at, \
         name, lock_key, batch_id, followers FROM tasks \
             WHERE id = $1 AND external_id IS NULL"),
            &[id.to_string().as_str().into()],
            found,
        ),
        (None, Err(_)) => Ok(None),
    }
}

/// When and why a job failed last.
pub(super) fn last_failure(
    tx: &mut Tx<'_>,
    id: TaskId,
) -> Result<Option<(Timestamp, Option<String>)>, StoreError> {
    tx.row(
        sql!(
            "SELECT finished_at, error FROM task_attempts WHERE task_id = $1 \
         AND outcome IN ('failed', 'timed_out', 'crashed') ORDER BY attempt DESC LIMIT 1"
        ),
        &[id.to_string().as_str().into()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// The ids that a task's maker and its workers know it by.
pub(super) fn external_id(tx: &mut Tx<'_>, id: TaskId) -> Result<Option<String>, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT external_id FROM tasks WHERE id = $1"),
            &[id.to_string().as_str().into()],
            |row| row.get::<Option<String>>(0),
        )?
        .flatten())
}

/// Lets a run last longer than it should have.
pub(super) fn lengthen(
    tx: &mut Tx<'_>,
    id: TaskId,
    attempt: u32,
    timeout_ms: i64,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE tasks SET timeout_ms = $3 WHERE id = $1 AND attempt = $2 AND state = 'running' AND timeout_ms < $3"),
        &[
            id.to_string().as_str().into(),
            attempt.into(),
            timeout_ms.into(),
        ],
    )?;
    Ok(())
}

/// A batch as it stands.
pub(super) struct Batch {
    pub(super) description: Option<String>,
    pub(super) total: i64,
    pub(super) pending: i64,
    pub(super) failed: i64,
    pub(super) on_success: Option<String>,
    pub(super) on_complete: Option<String>,
    pub(super) created_at: Timestamp,
    pub(super) finished_at: Option<Timestamp>,
    /// Of one that was complete, and of which a job is tried again.
    pub(super) first_finished_at: Option<Timestamp>,
}

pub(super) fn batch(tx: &mut Tx<'_>, bid: &str) -> Result<Option<Batch>, StoreError> {
    tx.row(
        sql!("SELECT description, total, pending, failed, on_success, on_complete, created_at, finished_at, \
         first_finished_at FROM task_batches WHERE id = $1"),
        &[bid.into()],
        |row| {
            Ok(Batch {
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

/// Lets more jobs into a batch that is not complete, until it is committed again.
pub(super) fn reopen_batch(tx: &mut Tx<'_>, bid: &str) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE task_batches SET sealed_at = NULL WHERE id = $1 AND finished_at IS NULL"),
        &[bid.into()],
    )? == 1)
}
