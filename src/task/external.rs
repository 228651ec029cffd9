//! Tasks for a protocol whose clients know them by ids of their own.
//!
//! Owns what such a protocol needs beyond what everyone uses: to find a task by its maker's id, to end
//! a run that was found so without reading the row again, and batches with their callbacks. Invariant:
//! nothing here knows which protocol it is.

use super::life::{complete_found, settle};
use super::rows::Ended;
use super::{Changes, TaskError, TaskId, TaskState, sql};
use crate::clock::Timestamp;
use crate::config;
use crate::store::Tx;

pub use super::rows::{BatchOnRecord, ExternalTask};
pub use super::sql::{
    batch_on_record, by_external_id, external_id, find_external, last_failure, lengthen,
    reopen_batch, state,
};

/// Notes that the run of a task, which this transaction has just found running, succeeded without a
/// result.
pub fn complete(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    found: ExternalTask,
) -> Result<Changes, TaskError> {
    let (id, attempt) = (found.id, found.attempt);
    let ended = Ended {
        name: found.name,
        queue: found.queue,
        was_running: true,
        started_at: found.attempted_at,
        lock_key: found.lock_key,
        batch_id: found.batch_id,
        followers: found.followers,
        place: None,
    };
    complete_found(tx, now, rules, id, attempt, ended, None)
}

/// Makes a task that waits a dead one; nothing happens to one that does not wait.
pub fn kill(tx: &mut Tx<'_>, now: Timestamp, id: TaskId, why: &str) -> Result<Changes, TaskError> {
    let mut changes = Changes::default();
    let dead = TaskState::Discarded;
    if let Some(ended) = sql::finish_waiting(tx, now, id, dead, why)? {
        settle(tx, now, id, ended, dead, &mut changes)?;
    }
    Ok(changes)
}
