//! Statements about the keys of unique tasks.

use crate::clock::Timestamp;
use crate::sql;
use crate::store::{StoreError, Tx};
use crate::task::{TaskId, Until};

/// Takes a key that is free, or whose time is over.
pub(in crate::task) fn take_lock(
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
pub(in crate::task) fn lock_holder_now(
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

pub(in crate::task) fn lock_holder(
    tx: &mut Tx<'_>,
    key: &str,
) -> Result<Option<TaskId>, StoreError> {
    tx.row(
        sql!("SELECT task_id FROM task_locks WHERE key = $1"),
        &[key.into()],
        |row| row.get(0),
    )
}

pub(in crate::task) fn hand_over_lock(
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
pub(in crate::task) fn release_lock(
    tx: &mut Tx<'_>,
    key: &str,
    id: TaskId,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("DELETE FROM task_locks WHERE key = $1 AND task_id = $2 AND until_state <> 'expired'"),
        &[key.into(), (&id.text()).into()],
    )?;
    Ok(())
}

/// Frees the key of a task that was started, if that ends it.
pub(in crate::task) fn release_started_lock(
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

/// Whether any key's time is over: a look that costs no write.
pub(in crate::task) fn any_old_lock(tx: &mut Tx<'_>, now: Timestamp) -> Result<bool, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT 1 FROM task_locks WHERE expires_at <= $1 LIMIT 1"),
            &[now.into()],
            |_| Ok(()),
        )?
        .is_some())
}

/// Drops keys whose time is over, a bounded number at a time.
pub(in crate::task) fn purge_locks(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sql!("DELETE FROM task_locks WHERE key IN (SELECT key FROM task_locks WHERE expires_at <= $1 \
         ORDER BY expires_at LIMIT 500)"),
        &[now.into()],
    )
}
