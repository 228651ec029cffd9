//! Tasks for a protocol whose clients know them by ids of their own.
//!
//! Owns what such a protocol needs beyond what everyone uses: to find a task by its maker's id, to end
//! a run that was found so without reading the row again, and batches with their callbacks. Invariant:
//! nothing here knows which protocol it is.

use super::life::{Ended, complete_found, settle};
use super::{Changes, TaskError, TaskId, TaskState, sql};
use crate::clock::Timestamp;
use crate::config;
use crate::store::Tx;

pub use super::sql::{
    batch_on_record, by_external_id, external_id, find_external, last_failure, lengthen,
    reopen_batch, state,
};

/// A task as an answer to its worker needs it.
pub struct ExternalTask {
    /// Key.
    pub id: TaskId,
    /// How often it was started.
    pub attempt: u32,
    /// Where in its life it is.
    pub state: TaskState,
    /// Where it waits, or waited.
    pub queue: String,
    /// Who runs it, or ran it last.
    pub worker: Option<String>,
    /// JSON of its maker.
    pub metadata: Option<String>,
    /// Until when an outside worker has it.
    pub lease_expires_at: Option<Timestamp>,
    /// When it was started last.
    pub attempted_at: Option<Timestamp>,
    pub(super) name: String,
    pub(super) lock_key: Option<String>,
    pub(super) batch_id: Option<String>,
    pub(super) followers: u32,
}

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

/// A batch as it stands.
pub struct BatchOnRecord {
    /// For people.
    pub description: Option<String>,
    /// Tasks that it counts.
    pub total: i64,
    /// Of these, those that are not finished.
    pub pending: i64,
    /// Of these, those that were cancelled or died.
    pub failed: i64,
    /// The task that follows if all are completed, as JSON.
    pub on_success: Option<String>,
    /// The task that follows in any case, as JSON.
    pub on_complete: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the last of its tasks was finished.
    pub finished_at: Option<Timestamp>,
    /// When it was complete for the first time, if a task of it is tried again since.
    pub first_finished_at: Option<Timestamp>,
}
