//! Tasks: what is to be done later, by whom, and what came of it.
//!
//! ```text
//!              run_at is due, nothing is waited on
//! scheduled ───────────────────────────────────────▶ available
//!     │                                                 │ start: attempt + 1
//!     │ start                                           ▼
//!     └───────────────────────────────────────────▶ running ──complete──▶ completed
//!                                                   │  │  │
//!     ┌──────────────────fail, attempts are left────┘  │  └──cancel──▶ cancelled
//!     ▼                                                │
//! retryable ──start──▶ running        no attempts left, told not to retry, or
//!                                     too many crashes ▼
//!                                                  discarded
//! ```
//!
//! Whatever waits may be cancelled; `cancelled` and `discarded` may be retried by hand.
//!
//! Invariants: a task is a row, written in the transaction of whoever needs it; the delivery index
//! ([`delivery`]) only helps to find it and may vanish at any time. A worker gets a task only after its
//! start was committed, so `(id, attempt)` tells one run from every other, and whatever a worker
//! says is fenced by that pair. What finishing a task brings about (its effect, its lock, its batch,
//! its followers) commits with it or not at all. Nothing here knows what a task does.

pub mod api;
mod delivery;
mod enqueue;
pub mod external;
pub mod http_request;
mod id;
mod life;
mod new_task;
mod retry;
mod rows;
mod run;
mod sql;
mod steer;
mod upkeep;

use serde::{Deserialize, Serialize};

use crate::auth::idempotency::KeyError;
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::store::{StoreError, Topic};
use crate::word_type;

pub use delivery::{Handing, IsAway, QueueStats, Stats, Tasks, continue_ids};
pub use enqueue::{
    Batch, Enqueued, NewBatch, Node, add_to_batch, enqueue, enqueue_all, enqueue_batch,
    enqueue_chain, enqueue_graph, open_batch, seal_batch,
};
pub use http_request::shown;
pub use id::TaskId;
pub use life::{
    Beat, Failure, Start, append_logs, complete, fail, heartbeat, progress, recover, release,
    shortened, snooze, start,
};
pub use new_task::{Debounce, NewTask, PRIORITY_DEFAULT, Unique, Until};
pub use retry::RetryPolicy;
pub use run::{
    Asked, BUILT_IN_QUEUES, DEFAULT_QUEUE, Effect, Handler, HandlerInfo, NoArgs, Pool, Registry,
    RegistryBuilder, TaskContext, TaskFailure, TaskOutcome, queue_name,
};
pub use steer::{
    Bulk, Patch, QueuePatch, Ties, bulk, cancel, counts, edit, find, find_all, get, list,
    patch_queue, queues, remove, retry as retry_task, set_paused, ties,
};
pub use upkeep::Upkeep;

/// Touched by whatever made a task that may be delivered.
pub const ENQUEUED: Topic = Topic::new(0);

word_type! {
    /// Where a task is in its life.
    TaskState {
        /// It waits for its time, or for other tasks.
        Scheduled = "scheduled",
        /// It may be started.
        Available = "available",
        /// A worker has it.
        Running = "running",
        /// It failed and will be tried again.
        Retryable = "retryable",
        /// It is done.
        Completed = "completed",
        /// It was given up: by hand, or because its time was over.
        Cancelled = "cancelled",
        /// It is dead: it failed for good. It is kept, and may be retried by hand.
        Discarded = "discarded",
    }
}

impl TaskState {
    /// Whether nothing more happens to it by itself.
    pub fn is_final(self) -> bool {
        match self {
            TaskState::Completed | TaskState::Cancelled | TaskState::Discarded => true,
            TaskState::Scheduled
            | TaskState::Available
            | TaskState::Running
            | TaskState::Retryable => false,
        }
    }

    /// What the state allows, for whoever asked for something else.
    pub fn allows(self) -> &'static str {
        match self {
            TaskState::Scheduled | TaskState::Available | TaskState::Retryable => {
                "it waits: it can be edited or cancelled"
            }
            TaskState::Running => {
                "it is running: it can be cancelled, and seen until it is finished"
            }
            TaskState::Completed => "it is done: it can be seen or removed",
            TaskState::Cancelled | TaskState::Discarded => {
                "it was given up: it can be retried or removed"
            }
        }
    }
}

word_type! {
    /// How an attempt ended that did not simply succeed.
    AttemptOutcome {
        /// The handler or worker said so.
        Failed = "failed",
        /// It ran longer than it may.
        TimedOut = "timed_out",
        /// The process, or the worker that held the lease, went away.
        Crashed = "crashed",
        /// The handler put it off.
        Snoozed = "snoozed",
        /// It was handed back untried, because its worker stops.
        Released = "released",
        /// It was cancelled while it ran.
        Cancelled = "cancelled",
    }
}

word_type! {
    /// How important a log line is.
    LogLevel {
        /// For whoever looks closely.
        Debug = "debug",
        /// What happened.
        Info = "info",
        /// What should not have happened.
        Warn = "warn",
        /// What went wrong.
        Error = "error",
    }
}

/// A line that an attempt left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Of which attempt.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
    /// How important.
    pub level: LogLevel,
    /// What.
    pub line: String,
}

/// An attempt that did not simply succeed.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Which, from 1.
    pub attempt: u32,
    /// Who ran it.
    pub worker: Option<String>,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// How.
    pub outcome: AttemptOutcome,
    /// Why.
    pub error: Option<String>,
}

/// A task as it stands.
#[derive(Clone, Debug)]
pub struct Task {
    /// Key of the task, a UUIDv7.
    pub id: TaskId,
    /// What is to be done.
    pub name: String,
    /// Where it waits.
    pub queue: String,
    /// Where in its life it is.
    pub state: TaskState,
    /// Higher first, 0 to 255.
    pub priority: u8,
    /// Not before.
    pub run_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// How often it was started.
    pub attempt: u32,
    /// How often it may be.
    pub max_attempts: u32,
    /// How often its process or worker went away.
    pub crashes: u32,
    /// Unfinished tasks that it waits for.
    pub waiting_on: u32,
    /// Longest run.
    pub timeout_ms: i64,
    /// When a running handler is told that it takes long.
    pub soft_timeout_ms: Option<i64>,
    /// JSON.
    pub args: String,
    /// JSON, for whoever enqueued it.
    pub metadata: Option<String>,
    /// W3C trace context (`traceparent`) of the request that enqueued it.
    pub traceparent: Option<String>,
    /// How long to wait after a failure; `None` for the default.
    pub retry_policy: Option<RetryPolicy>,
    /// Not started after this.
    pub expires_at: Option<Timestamp>,
    /// The batch that counts it.
    pub batch_id: Option<String>,
    /// Who runs it, or ran it last.
    pub worker: Option<String>,
    /// When it was started last.
    pub attempted_at: Option<Timestamp>,
    /// Until when an outside worker has it.
    pub lease_expires_at: Option<Timestamp>,
    /// When its cancellation was asked for while it ran.
    pub cancel_requested_at: Option<Timestamp>,
    /// Percent done, as the handler says.
    pub progress: Option<u32>,
    /// What it is at, as the handler says.
    pub progress_note: Option<String>,
    /// JSON.
    pub result: Option<String>,
    /// Until when the result is kept.
    pub result_expires_at: Option<Timestamp>,
    /// Why it failed last.
    pub error: Option<String>,
    /// When it was completed, cancelled or discarded.
    pub finished_at: Option<Timestamp>,
}

/// A run of a task, as its worker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Which task.
    pub id: TaskId,
    /// Which run of it; a worker names both with whatever it says.
    pub attempt: u32,
    /// How often it may be started.
    pub max_attempts: u32,
    /// What is to be done.
    pub name: String,
    /// Where it waited.
    pub queue: String,
    /// JSON.
    pub args: String,
    /// JSON that came with the enqueue, for the caller's own use.
    pub metadata: Option<String>,
    /// W3C trace context (`traceparent`) of the request that enqueued it.
    pub traceparent: Option<String>,
    /// Longest run.
    pub timeout_ms: i64,
    /// When the handler is told that it takes long.
    pub soft_timeout_ms: Option<i64>,
    /// When it was enqueued.
    pub created_at: Timestamp,
    /// When it was due.
    pub run_at: Timestamp,
    /// The batch that counts it.
    pub batch_id: Option<String>,
    /// Until when an outside worker has it.
    pub lease_expires_at: Option<Timestamp>,
    /// The id of its maker's own that it came with.
    pub external_id: Option<String>,
}

/// Which tasks to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these.
    pub state: Option<TaskState>,
    /// Only of this queue.
    pub queue: Option<String>,
    /// Only of this name.
    pub name: Option<String>,
    /// Only older than this.
    pub before: Option<TaskId>,
    /// At most so many.
    pub limit: u32,
}

/// How many tasks are in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The state.
    pub state: TaskState,
    /// Tasks in it.
    pub count: u32,
    /// Whether there may be more than were counted.
    pub is_more: bool,
}

/// A batch as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchState {
    /// Key of the batch, a UUIDv7.
    pub id: String,
    /// For people.
    pub description: Option<String>,
    /// Tasks that it counts.
    pub total: u32,
    /// Of these, those that are not finished.
    pub pending: u32,
    /// Of these, those that were cancelled or died.
    pub failed: u32,
    /// When the last of them was finished; none while one that failed is tried again.
    pub finished_at: Option<Timestamp>,
}

/// How a queue is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueRow {
    /// Its name.
    pub name: String,
    /// Since when nothing of it is handed out.
    pub paused_at: Option<Timestamp>,
    /// Tasks of it that run at once, over all workers.
    pub concurrency_max: Option<u32>,
    /// Tasks of it that are started in each period.
    pub rate_limit: Option<u32>,
    /// That period.
    pub rate_period_ms: Option<i64>,
}

/// Why something could not be done to a task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Fields don't hold.
    #[error("the task is not valid")]
    Invalid(Vec<FieldError>),
    /// No such task.
    #[error("there is no task {0}")]
    NotFound(TaskId),
    /// No such queue has ever been used.
    #[error("there is no queue {0}")]
    NoQueue(String),
    /// A queue of built-in tasks knows no task of this name.
    #[error("there is no task {name}{}", nearest.as_ref().map(|near| format!("; did you mean {near}?")).unwrap_or_default())]
    UnknownTask {
        /// What was asked for.
        name: String,
        /// The known name that is spelt most like it.
        nearest: Option<String>,
    },
    /// The state does not allow it.
    #[error("the task is {}; {}", .0.word(), .0.allows())]
    State(TaskState),
    /// Another task holds its key.
    #[error("task {0} holds its unique key; cancel that one, or wait until it is finished")]
    KeyHeld(TaskId),
    /// The attempt that speaks is not the one that runs: nothing of what it said was kept.
    #[error("attempt {said} of the task is over: it is {} with attempt {attempt}", state.word())]
    Fenced {
        /// The attempt that spoke.
        said: u32,
        /// The attempt that counts.
        attempt: u32,
        /// The state that stands.
        state: TaskState,
    },
    /// The idempotency key was used for another request.
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    /// Too many workers wait for tasks.
    #[error("too many workers are waiting")]
    Overloaded,
    /// The process stops and hands out nothing more.
    #[error("the server is stopping")]
    Stopped,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<KeyError> for TaskError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Reused => TaskError::KeyReused,
            KeyError::Store(error) => TaskError::Store(error),
        }
    }
}

/// What a change means for the delivery: told to it after the commit ([`Tasks::tell`]).
///
/// Losing it costs time, never a task: the rows are looked through now and then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "the delivery index has to be told"]
pub struct Changes {
    /// Tasks that may be delivered (again), now or at their time.
    pub ready: Vec<Entry>,
    /// Tasks that waited and do so no longer, where they stood.
    pub gone: Vec<Entry>,
    /// Attempts that are over: their place in the queue's concurrency is free.
    pub over: Vec<Over>,
    /// Running attempts whose cancellation was asked for.
    pub cancelled: Vec<TaskId>,
}

impl Changes {
    /// Adds another's.
    pub fn add(&mut self, more: Changes) {
        self.ready.extend(more.ready);
        self.gone.extend(more.gone);
        self.over.extend(more.over);
        self.cancelled.extend(more.cancelled);
    }
}

/// An attempt that ended, for the counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Over {
    /// Which task.
    pub id: TaskId,
    /// What it was.
    pub name: String,
    /// In which queue.
    pub queue: String,
    /// Whether it had been running; a task that was only waiting held no place.
    pub was_running: bool,
    /// What it is now.
    pub state: TaskState,
    /// How long it ran, if it did.
    pub micros: Option<i64>,
}

/// A task as the delivery knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Where it waits.
    pub queue: String,
    /// Higher first.
    pub priority: u8,
    /// Not before.
    pub run_at: Timestamp,
    /// Which.
    pub id: TaskId,
}
