//! Rows, as statements take them and give them back.
//!
//! What is for everyone's eyes ([`super::Task`], [`super::Started`], …) stands in `mod.rs`.

use super::{Entry, NewTask, RetryPolicy, TaskId, TaskState, Until};
use crate::clock::Timestamp;

/// What the insert needs beyond the task itself.
pub(super) struct Placed<'a> {
    pub(super) id: TaskId,
    pub(super) new: &'a NewTask,
    pub(super) state: TaskState,
    pub(super) run_at: Timestamp,
    pub(super) waiting_on: u32,
    pub(super) lock: Option<(&'a str, Until)>,
    pub(super) batch_id: Option<&'a str>,
    pub(super) error: Option<&'a str>,
    pub(super) traceparent: Option<&'a str>,
}

/// Who runs a task that is enqueued as started, and until when at the longest.
pub(super) struct RunBy {
    pub(super) worker: String,
    pub(super) at: Timestamp,
    pub(super) lease_ends: Timestamp,
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

/// What an ended task leaves to be settled.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) name: String,
    pub(super) queue: String,
    pub(super) was_running: bool,
    pub(super) started_at: Option<Timestamp>,
    pub(super) lock_key: Option<String>,
    pub(super) batch_id: Option<String>,
    pub(super) followers: u32,
    /// Where it waited, if it did and may be known to the delivery.
    pub(super) place: Option<Entry>,
}

/// A task that was never started and may be, as far as doing it at once needs it.
pub(super) struct Fresh {
    pub(super) args: String,
    pub(super) traceparent: Option<String>,
    pub(super) ended: Ended,
}

/// A task that waits for nothing but its time and a worker.
pub(super) struct WaitingTask {
    pub(super) entry: Entry,
    pub(super) expires_at: Option<Timestamp>,
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

/// What a task that was given up had, and takes back when it is retried.
pub(super) struct GivenUp {
    pub(super) lock: Option<(String, Until)>,
    pub(super) batch_id: Option<String>,
    pub(super) followers: u32,
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

/// What the relay reads of a row.
pub(super) struct DeliveryRow {
    pub(super) entry: Entry,
    pub(super) state: TaskState,
    pub(super) waiting_on: u32,
    pub(super) attempt: u32,
    pub(super) lease_expires_at: Option<Timestamp>,
    /// Who runs it, if it runs.
    pub(super) worker: Option<String>,
}

/// What the upkeep reads of a row.
pub(super) struct UpkeepRow {
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

/// A task as an answer to its worker needs it.
pub struct ExternalTask {
    /// Key of the task, a UUIDv7.
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
