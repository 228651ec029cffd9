//! Statements of the delivery: the rows that it looks through, and the mark of its index.

use super::entry;
use crate::sql;
use crate::store::{Row, StoreError, Tx};
use crate::task::rows::DeliveryRow;
use crate::task::{TaskId, TaskState};

fn seen(row: &Row<'_>) -> Result<DeliveryRow, StoreError> {
    let id = row.get(0)?;
    Ok(DeliveryRow {
        entry: entry(row, id, 1)?,
        state: row.get(4)?,
        waiting_on: row.get(5)?,
        attempt: row.get(6)?,
        lease_expires_at: row.get(7)?,
        worker: row.get(8)?,
    })
}

/// New rows, oldest first.
pub(in crate::task) fn rows_above(
    tx: &mut Tx<'_>,
    above: Option<TaskId>,
    limit: u32,
) -> Result<Vec<DeliveryRow>, StoreError> {
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
pub(in crate::task) fn unfinished_above(
    tx: &mut Tx<'_>,
    state: Option<TaskState>,
    above: Option<TaskId>,
    limit: u32,
) -> Result<Vec<DeliveryRow>, StoreError> {
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
pub(in crate::task) fn mark(tx: &mut Tx<'_>) -> Result<Option<String>, StoreError> {
    tx.row(
        sql!("SELECT mark FROM task_index WHERE id = 1"),
        &[],
        |row| row.get(0),
    )
}

pub(in crate::task) fn put_mark(tx: &mut Tx<'_>, mark: &str) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "INSERT INTO task_index (id, mark) VALUES (1, $1) \
             ON CONFLICT (id) DO UPDATE SET mark = excluded.mark"
        ),
        &[mark.into()],
    )?;
    Ok(())
}

pub(in crate::task) fn remove_mark(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute(sql!("DELETE FROM task_index WHERE id = 1"), &[])?;
    Ok(())
}
