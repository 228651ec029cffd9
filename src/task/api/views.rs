//! Tasks and queues as they are shown.

use poem_openapi::Object;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::task::{
    Attempt, BUILT_IN_QUEUES, BatchState, HandlerInfo, LogLine, QueueRow, RetryPolicy, Task, shown,
};

/// A task's id in JSON.
pub(super) type TaskKey = uuid::Uuid;

/// How long a failed task waits.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(skip_serializing_if_is_none)]
pub(super) struct RetryBody {
    /// `default` (attempt⁴ seconds), `fixed` or `exponential`
    kind: String,
    /// Of `fixed`: each wait
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay_ms: Option<i64>,
    /// Of `exponential`: the first wait; each further one is twice as long
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_ms: Option<i64>,
    /// Of `exponential`: the longest wait
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_ms: Option<i64>,
}

impl RetryBody {
    pub(super) fn policy(&self) -> Result<RetryPolicy, FieldError> {
        let missing = |field: &str| FieldError::new(format!("retry_policy.{field}"), "is required");
        match self.kind.as_str() {
            "default" => Ok(RetryPolicy::Default),
            "fixed" => Ok(RetryPolicy::Fixed {
                delay_ms: self.delay_ms.ok_or_else(|| missing("delay_ms"))?,
            }),
            "exponential" => Ok(RetryPolicy::Exponential {
                first_ms: self.first_ms.ok_or_else(|| missing("first_ms"))?,
                max_ms: self.max_ms.ok_or_else(|| missing("max_ms"))?,
            }),
            _ => Err(FieldError::new(
                "retry_policy.kind",
                "must be one of default, fixed, exponential",
            )),
        }
    }
}

impl From<RetryPolicy> for RetryBody {
    fn from(policy: RetryPolicy) -> Self {
        let (kind, delay_ms, first_ms, max_ms) = match policy {
            RetryPolicy::Default => ("default", None, None, None),
            RetryPolicy::Fixed { delay_ms } => ("fixed", Some(delay_ms), None, None),
            RetryPolicy::Exponential { first_ms, max_ms } => {
                ("exponential", None, Some(first_ms), Some(max_ms))
            }
        };
        Self {
            kind: kind.to_owned(),
            delay_ms,
            first_ms,
            max_ms,
        }
    }
}

/// A task.
#[derive(Serialize, Object)]
pub(super) struct TaskView {
    /// Key
    id: TaskKey,
    /// What is to be done
    name: String,
    /// Where it waits
    queue: String,
    /// `scheduled`, `available`, `running`, `retryable`, `completed`, `cancelled` or `discarded` (dead)
    state: String,
    /// Higher first
    priority: u8,
    /// Arguments; of `http_request`, without the secrets among its headers
    args: Value,
    /// What was kept with it
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Value>,
    /// Not before
    run_at: Timestamp,
    /// When it was made
    created_at: Timestamp,
    /// How often it was started
    attempt: u32,
    /// How often it may be
    max_attempts: u32,
    /// How often its process or worker went away
    crashes: u32,
    /// Unfinished tasks that it waits for
    waiting_on: u32,
    /// Longest run
    timeout_ms: i64,
    /// How long it waits after a failure
    retry_policy: RetryBody,
    /// Cancelled if not started by then
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// The batch that counts it
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_id: Option<String>,
    /// Who runs it, or ran it last
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    /// When it was started last
    #[serde(skip_serializing_if = "Option::is_none")]
    attempted_at: Option<Timestamp>,
    /// Until when an outside worker has it
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_expires_at: Option<Timestamp>,
    /// When its cancellation was asked for while it ran
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested_at: Option<Timestamp>,
    /// Percent done
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<u32>,
    /// What it is at
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_note: Option<String>,
    /// What came of it, while that is kept
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// Why it failed last
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// When it was completed, cancelled or discarded
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// W3C trace context of whoever made it
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

/// JSON that was checked when it was stored.
pub(super) fn stored(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

impl From<Task> for TaskView {
    fn from(task: Task) -> Self {
        Self {
            id: task.id.0,
            args: shown(&task.name, &task.args),
            result: task.result.as_deref().map(|text| shown(&task.name, text)),
            name: task.name,
            queue: task.queue,
            state: task.state.word().to_owned(),
            priority: task.priority,
            metadata: task.metadata.as_deref().map(stored),
            run_at: task.run_at,
            created_at: task.created_at,
            attempt: task.attempt,
            max_attempts: task.max_attempts,
            crashes: task.crashes,
            waiting_on: task.waiting_on,
            timeout_ms: task.timeout_ms,
            retry_policy: task.retry_policy.unwrap_or_default().into(),
            expires_at: task.expires_at,
            batch_id: task.batch_id,
            worker: task.worker,
            attempted_at: task.attempted_at,
            lease_expires_at: task.lease_expires_at,
            cancel_requested_at: task.cancel_requested_at,
            progress: task.progress,
            progress_note: task.progress_note,
            error: task.error,
            finished_at: task.finished_at,
            traceparent: task.traceparent,
        }
    }
}

/// An attempt that did not simply succeed.
#[derive(Serialize, Object)]
pub(super) struct AttemptView {
    /// Which, from 1
    attempt: u32,
    /// Who ran it
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    /// When it was started
    started_at: Timestamp,
    /// When it ended
    finished_at: Timestamp,
    /// `failed`, `timed_out`, `crashed`, `snoozed`, `released` or `cancelled`
    outcome: String,
    /// Why
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<Attempt> for AttemptView {
    fn from(attempt: Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            worker: attempt.worker,
            started_at: attempt.started_at,
            finished_at: attempt.finished_at,
            outcome: attempt.outcome.word().to_owned(),
            error: attempt.error,
        }
    }
}

/// A line that an attempt left behind.
#[derive(Serialize, Object)]
pub(super) struct LogView {
    /// Of which attempt
    attempt: u32,
    /// When
    at: Timestamp,
    /// `debug`, `info`, `warn` or `error`
    level: String,
    /// What
    line: String,
}

impl From<LogLine> for LogView {
    fn from(line: LogLine) -> Self {
        Self {
            attempt: line.attempt,
            at: line.at,
            level: line.level.word().to_owned(),
            line: line.line,
        }
    }
}

/// A batch.
#[derive(Serialize, Object)]
pub(super) struct BatchStateView {
    /// Key
    pub(super) id: String,
    /// For people
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// Tasks that it counts
    pub(super) total: u32,
    /// Of these, those that are not finished
    pub(super) pending: u32,
    /// Of these, those that were cancelled or died
    pub(super) failed: u32,
    /// When the last of them was finished; absent while one that failed is tried again
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finished_at: Option<Timestamp>,
}

impl From<BatchState> for BatchStateView {
    fn from(batch: BatchState) -> Self {
        Self {
            id: batch.id,
            description: batch.description,
            total: batch.total,
            pending: batch.pending,
            failed: batch.failed,
            finished_at: batch.finished_at,
        }
    }
}

/// How many tasks are in a state.
#[derive(Serialize, Object)]
pub(super) struct CountedView {
    /// `scheduled`, `available`, `running`, `retryable`, `completed`, `cancelled` or `discarded` (dead)
    pub(super) state: String,
    /// Tasks in it that were counted
    pub(super) count: u32,
    /// Whether there may be more: the count is bounded by `tasks.counted_max` of the settings
    pub(super) is_more: bool,
}

/// How many tasks there are.
#[derive(Serialize, Object)]
pub(super) struct CountList {
    /// By state
    pub(super) items: Vec<CountedView>,
}

/// A task with what its attempts left behind.
#[derive(Serialize, Object)]
pub(super) struct TaskDetail {
    #[serde(flatten)]
    #[oai(flatten)]
    pub(super) task: TaskView,
    /// Tasks that wait for it, 100 at most
    pub(super) followers: Vec<TaskKey>,
    /// The batch that counts it, while that is kept
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<BatchStateView>,
    /// Attempts that did not simply succeed, newest first
    pub(super) attempts: Vec<AttemptView>,
    /// The newest log lines, newest first
    pub(super) logs: Vec<LogView>,
}

/// One page of tasks.
#[derive(Serialize, Object)]
pub(super) struct TaskPage {
    /// Tasks, newest first
    pub(super) items: Vec<TaskView>,
    /// Pass it as `cursor` to go on; a page may be short, or empty, and yet lead on
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_cursor: Option<String>,
}

/// A queue.
#[derive(Serialize, Object)]
pub(super) struct QueueView {
    /// Name
    name: String,
    /// Tasks that can be started; some may have been cancelled since
    ready: u64,
    /// Tasks that run
    running: u32,
    /// How long the next one has been due, in seconds
    latency_seconds: f64,
    /// Whether this server serves it itself
    built_in: bool,
    /// Since when nothing of it is handed out
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_at: Option<Timestamp>,
    /// Tasks of it that run at once
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency_max: Option<u32>,
    /// Tasks of it that are started in each period
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<u32>,
    /// That period
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_period_ms: Option<i64>,
}

pub(super) fn view_of(
    now: Timestamp,
    row: QueueRow,
    ready: u64,
    running: u32,
    due: Option<Timestamp>,
) -> QueueView {
    QueueView {
        built_in: BUILT_IN_QUEUES.contains(&row.name.as_str()),
        name: row.name,
        ready,
        running,
        latency_seconds: due.map_or(0, |at| now.micros_since(at).max(0)) as f64 / 1_000_000.0,
        paused_at: row.paused_at,
        concurrency_max: row.concurrency_max,
        rate_limit: row.rate_limit,
        rate_period_ms: row.rate_period_ms,
    }
}

/// All queues.
#[derive(Serialize, Object)]
pub(super) struct QueueList {
    /// By name
    pub(super) items: Vec<QueueView>,
    /// Tasks that wait for their time, over all queues
    pub(super) scheduled: u64,
}

/// A built-in task.
#[derive(Serialize, Object)]
pub(super) struct TypeView {
    /// What it is called
    name: String,
    /// Where it waits
    queue: String,
    /// What it does
    about: String,
    /// Higher first
    priority: u8,
    /// How often it is started at most
    max_attempts: u32,
    /// Longest run
    timeout_ms: i64,
    /// When it is told that it takes long
    #[serde(skip_serializing_if = "Option::is_none")]
    soft_timeout_ms: Option<i64>,
    /// How long it waits after a failure
    retry_policy: RetryBody,
    /// JSON schema of its arguments
    args_schema: Value,
}

impl From<&HandlerInfo> for TypeView {
    fn from(info: &HandlerInfo) -> Self {
        Self {
            name: info.name.to_owned(),
            queue: info.queue.to_owned(),
            about: info.about.to_owned(),
            priority: info.priority,
            max_attempts: info.max_attempts,
            timeout_ms: info.timeout_ms,
            soft_timeout_ms: info.soft_timeout_ms,
            retry_policy: info.retry_policy.into(),
            args_schema: info.schema.clone(),
        }
    }
}

/// The built-in tasks.
#[derive(Serialize, Object)]
pub(super) struct TypeList {
    /// By name
    pub(super) items: Vec<TypeView>,
}
