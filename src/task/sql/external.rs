//! Statements about tasks by the ids that their makers gave them.

use crate::sql;
use crate::store::{Row, StoreError, Tx};
use crate::task::TaskId;
use crate::task::rows::ExternalTask;

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

/// The task that came with this id of its maker's own.
pub fn by_external_id(tx: &mut Tx<'_>, external_id: &str) -> Result<Option<TaskId>, StoreError> {
    tx.row(
        sql!("SELECT id FROM tasks WHERE external_id = $1"),
        &[external_id.into()],
        |row| row.get(0),
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
