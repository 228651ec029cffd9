//! Statements about tasks that are counted together.

use crate::clock::Timestamp;
use crate::sql;
use crate::store::{StoreError, Tx};
use crate::task::rows::{BatchOnRecord, ClosedBatch};
use crate::task::{BatchState, TaskId};

pub(in crate::task) fn insert_batch(
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
pub(in crate::task) fn grow_batch(tx: &mut Tx<'_>, id: &str, by: i64) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "UPDATE task_batches SET total = total + $2, pending = pending + $2 \
         WHERE id = $1 AND finished_at IS NULL"
        ),
        &[id.into(), by.into()],
    )? == 1)
}

/// One task of a batch is finished.
pub(in crate::task) fn count_down_batch(
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
pub(in crate::task) fn count_up_batch(tx: &mut Tx<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "UPDATE task_batches SET pending = pending + 1, failed = failed - 1, \
         first_finished_at = COALESCE(first_finished_at, finished_at), finished_at = NULL \
         WHERE id = $1 AND failed > 0"
        ),
        &[id.into()],
    )? == 1)
}

pub(in crate::task) fn leave_batch(tx: &mut Tx<'_>, id: TaskId) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE tasks SET batch_id = NULL WHERE id = $1"),
        &[(&id.text()).into()],
    )?;
    Ok(())
}

pub(in crate::task) fn seal_batch(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: &str,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE task_batches SET sealed_at = $2 WHERE id = $1 AND sealed_at IS NULL"),
        &[id.into(), now.into()],
    )?;
    Ok(())
}

/// Closes a batch of which nothing is pending, if it is not closed.
pub(in crate::task) fn close_batch(
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

/// Lets more tasks into a batch that is not complete, until it is sealed again; `false` if there is
/// no such batch.
pub fn reopen_batch(tx: &mut Tx<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE task_batches SET sealed_at = NULL WHERE id = $1 AND finished_at IS NULL"),
        &[id.into()],
    )? == 1)
}

pub(in crate::task) fn batch(tx: &mut Tx<'_>, id: &str) -> Result<Option<BatchState>, StoreError> {
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

/// Whether [`purge_batches`] would find one.
pub(in crate::task) fn any_old_batch(
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

/// Drops batches that were closed by `until`, a bounded number at a time. One with failed tasks stays
/// until `dead_until`: as long as one of them may be tried again.
pub(in crate::task) fn purge_batches(
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

pub(in crate::task) fn any_old_open_batch(
    tx: &mut Tx<'_>,
    until: Timestamp,
) -> Result<bool, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT 1 FROM task_batches WHERE sealed_at IS NULL AND created_at <= $1 AND pending = 0 \
             AND finished_at IS NULL LIMIT 1"),
            &[until.into()],
            |_| Ok(()),
        )?
        .is_some())
}

/// Drops batches that were begun and never committed, a bounded number at a time. One of which tasks
/// are pending stays: one of them may be adding to it.
pub(in crate::task) fn purge_open_batches(
    tx: &mut Tx<'_>,
    until: Timestamp,
) -> Result<u64, StoreError> {
    tx.execute(
        sql!("DELETE FROM task_batches WHERE id IN (SELECT id FROM task_batches WHERE sealed_at IS NULL \
         AND created_at <= $1 AND pending = 0 AND finished_at IS NULL ORDER BY created_at LIMIT 500)"),
        &[until.into()],
    )
}
