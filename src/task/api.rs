//! Tasks over HTTP: for those who make them, those who watch them, and workers in any language.

use std::sync::Arc;
use std::time::Duration;

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::handler::{Asked, BUILT_IN_QUEUES, queue_name};
use super::life::require_lease;
use super::{
    Attempt, BatchState, Bulk, Changes, Debounce, Enqueued, Failure as RunFailure, Filter,
    HandlerInfo, LogLine, NewBatch, NewTask, Node, Patch, QueuePatch, QueueRow, RetryPolicy,
    Started, Task, TaskError, TaskId, TaskState, Tasks, Unique, Until,
};
use crate::auth::api::{Access, Tag};
use crate::auth::idempotency::Key;
use crate::auth::{Role, Scope};
use crate::check::{Checks, FieldError};
use crate::clock::Timestamp;
use crate::http::json::Accepted;
use crate::http::{Body, Failure, NoContent, OptionalBody, Problem, RequestInfo, fails};

impl From<TaskError> for Problem {
    fn from(error: TaskError) -> Self {
        let text = error.to_string();
        match error {
            TaskError::Invalid(errors) => Problem::validation(errors),
            TaskError::NotFound(_) => Problem::not_found("task_not_found", text),
            TaskError::NoQueue(_) => Problem::not_found("queue_not_found", text),
            TaskError::UnknownTask { .. } => Problem::new(
                poem::http::StatusCode::UNPROCESSABLE_ENTITY,
                "unknown_task",
                text.clone(),
            )
            .field("name", text),
            TaskError::State(_) => Problem::conflict("task_state", text),
            TaskError::Fenced { .. } => Problem::conflict("fenced", text),
            TaskError::KeyReused => {
                Problem::validation(vec![FieldError::new("Idempotency-Key", text)])
            }
            TaskError::Overloaded | TaskError::Stopped => Problem::overloaded(1),
            TaskError::Store(error) => error.into(),
        }
    }
}

/// How long a failed task waits.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(skip_serializing_if_is_none)]
struct RetryBody {
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
    fn policy(&self) -> Result<RetryPolicy, FieldError> {
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

/// A task to be.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct TaskBody {
    /// What is to be done: a built-in task (see `GET task-types`), or whatever the queue's workers know
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
    /// Its arguments, any JSON; built-in tasks refuse what does not fit their schema
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Value>,
    /// Where it waits [default: the built-in task's own queue, else `default`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    /// Higher first, 0 to 255 [default: 100]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    /// Not before this time
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eta: Option<Timestamp>,
    /// Not before so many seconds have passed; instead of `eta`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    countdown_seconds: Option<u32>,
    /// Cancelled if it was not started by then
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// How often it may be started
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    /// Longest run; then it is ended and tried again
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u32>,
    /// When the handler is told that it takes long
    #[serde(default, skip_serializing_if = "Option::is_none")]
    soft_timeout_seconds: Option<u32>,
    /// How long it waits after a failure
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_policy: Option<RetryBody>,
    /// How long its result is kept
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result_seconds: Option<u32>,
    /// At most one task under this key; another enqueue is answered with the one that there is
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unique_key: Option<String>,
    /// At most one task of this name with these arguments; instead of `unique_key`
    #[oai(default)]
    #[serde(default)]
    unique_args: bool,
    /// What frees the key: `started`, `finished` or `expired` [default: `finished`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unique_until: Option<String>,
    /// What else frees the key: so many seconds
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unique_seconds: Option<u32>,
    /// While a task under this key waits for its time, it is put off and gets these arguments instead
    #[serde(default, skip_serializing_if = "Option::is_none")]
    debounce_key: Option<String>,
    /// Tasks that must be finished first
    #[oai(default)]
    #[serde(default)]
    after: Vec<TaskKey>,
    /// Run although one of `after` was cancelled or died; otherwise it is cancelled then
    #[oai(default)]
    #[serde(default)]
    after_failure: bool,
    /// Any JSON, kept with it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<Value>,
}

/// A task's id in JSON.
type TaskKey = uuid::Uuid;

impl Example for TaskBody {
    fn example() -> Self {
        Self {
            name: "resize_image".to_owned(),
            args: Some(serde_json::json!({"image": 7, "width": 300})),
            queue: Some("images".to_owned()),
            priority: None,
            eta: None,
            countdown_seconds: Some(60),
            expires_at: None,
            max_attempts: Some(5),
            timeout_seconds: Some(30),
            soft_timeout_seconds: None,
            retry_policy: None,
            result_seconds: None,
            unique_key: Some("image:7".to_owned()),
            unique_args: false,
            unique_until: None,
            unique_seconds: None,
            debounce_key: None,
            after: Vec::new(),
            after_failure: false,
            metadata: None,
        }
    }
}

/// The task that stands for an enqueue.
#[derive(Serialize, Object)]
struct EnqueuedView {
    /// Key
    id: TaskKey,
    /// `enqueued`; `duplicate` where another holds the unique key; `put_off` where one was put off
    outcome: String,
}

impl From<Enqueued> for EnqueuedView {
    fn from(enqueued: Enqueued) -> Self {
        let outcome = match enqueued {
            Enqueued::New(_) => "enqueued",
            Enqueued::Duplicate(_) => "duplicate",
            Enqueued::PutOff(_) => "put_off",
        };
        Self {
            id: enqueued.id().0,
            outcome: outcome.to_owned(),
        }
    }
}

/// Tasks to be, together.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct BatchBody {
    /// The tasks
    #[oai(validator(min_items = 1))]
    tasks: Vec<BatchTask>,
    /// Count them together: needed for the two callbacks
    #[oai(default)]
    #[serde(default)]
    batch: bool,
    /// Each waits for the one before
    #[oai(default)]
    #[serde(default)]
    chain: bool,
    /// For people
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// Enqueued once all are completed
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_success: Option<TaskBody>,
    /// Enqueued once all are completed, cancelled or dead
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_complete: Option<TaskBody>,
}

/// A task of many.
#[derive(Serialize, Deserialize, Object)]
struct BatchTask {
    #[serde(flatten)]
    #[oai(flatten)]
    task: TaskBody,
    /// Places in the list, from 0, of tasks that must be finished first; each before its own
    #[oai(default)]
    #[serde(default)]
    after_places: Vec<u32>,
}

impl Example for BatchBody {
    fn example() -> Self {
        Self {
            tasks: vec![BatchTask {
                task: TaskBody::example(),
                after_places: Vec::new(),
            }],
            batch: true,
            chain: false,
            description: Some("the images of product 7".to_owned()),
            on_success: None,
            on_complete: None,
        }
    }
}

/// Tasks that were made together.
#[derive(Serialize, Object)]
struct BatchView {
    /// Key of the batch, if they are counted together
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_id: Option<String>,
    /// In the order of the request
    tasks: Vec<EnqueuedView>,
}

/// A task.
#[derive(Serialize, Object)]
struct TaskView {
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
    /// Arguments
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
fn stored(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

impl From<Task> for TaskView {
    fn from(task: Task) -> Self {
        Self {
            id: task.id.0,
            name: task.name,
            queue: task.queue,
            state: task.state.word().to_owned(),
            priority: task.priority,
            args: stored(&task.args),
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
            result: task.result.as_deref().map(stored),
            error: task.error,
            finished_at: task.finished_at,
            traceparent: task.traceparent,
        }
    }
}

/// An attempt that did not simply succeed.
#[derive(Serialize, Object)]
struct AttemptView {
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
struct LogView {
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
struct BatchStateView {
    /// Key
    id: String,
    /// For people
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// Tasks that it counts
    total: u32,
    /// Of these, those that are not finished
    pending: u32,
    /// Of these, those that were cancelled or died
    failed: u32,
    /// When the last of them was finished
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
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
struct CountedView {
    /// `scheduled`, `available`, `running`, `retryable`, `completed`, `cancelled` or `discarded` (dead)
    state: String,
    /// Tasks in it that were counted
    count: u32,
    /// Whether there may be more: the count is bounded by `tasks.counted_max` of the settings
    is_more: bool,
}

/// How many tasks there are.
#[derive(Serialize, Object)]
struct CountList {
    /// By state
    items: Vec<CountedView>,
}

/// A task with what its attempts left behind.
#[derive(Serialize, Object)]
struct TaskDetail {
    #[serde(flatten)]
    #[oai(flatten)]
    task: TaskView,
    /// Tasks that wait for it, 100 at most
    followers: Vec<TaskKey>,
    /// The batch that counts it, while that is kept
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<BatchStateView>,
    /// Attempts that did not simply succeed, newest first
    attempts: Vec<AttemptView>,
    /// The newest log lines, newest first
    logs: Vec<LogView>,
}

/// One page of tasks.
#[derive(Serialize, Object)]
struct TaskPage {
    /// Tasks, newest first
    items: Vec<TaskView>,
    /// Pass it as `cursor` to go on; a page may be short, or empty, and yet lead on
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// New values for a waiting task.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct TaskPatch {
    /// Arguments
    #[serde(default)]
    args: Option<Value>,
    /// Higher first
    #[serde(default)]
    priority: Option<u8>,
    /// Not before
    #[serde(default)]
    eta: Option<Timestamp>,
    /// Cancelled if not started by then
    #[serde(default)]
    expires_at: Option<Timestamp>,
    /// How often it may be started
    #[serde(default)]
    max_attempts: Option<u32>,
    /// Longest run
    #[serde(default)]
    timeout_seconds: Option<u32>,
    /// Any JSON
    #[serde(default)]
    metadata: Option<Value>,
}

/// What is to be done to which tasks.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct BulkBody {
    /// `cancel`, `retry` or `remove`
    action: String,
    /// Only tasks in this state
    #[serde(default)]
    state: Option<String>,
    /// Only tasks of this queue
    #[serde(default)]
    queue: Option<String>,
    /// Only tasks of this name
    #[serde(default)]
    name: Option<String>,
    /// Where the last answer ended
    #[serde(default)]
    cursor: Option<String>,
}

impl Example for BulkBody {
    fn example() -> Self {
        Self {
            action: "retry".to_owned(),
            state: Some("discarded".to_owned()),
            queue: Some("mail".to_owned()),
            name: None,
            cursor: None,
        }
    }
}

/// What a bulk action came to.
#[derive(Serialize, Object)]
struct BulkView {
    /// Tasks that were changed
    changed: u32,
    /// Repeat the request with it for the rest
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A queue.
#[derive(Serialize, Object)]
struct QueueView {
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

/// All queues.
#[derive(Serialize, Object)]
struct QueueList {
    /// By name
    items: Vec<QueueView>,
    /// Tasks that wait for their time, over all queues
    scheduled: u64,
}

/// New limits of a queue; 0 lifts one.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct QueueBody {
    /// Tasks of it that run at once, over all workers
    #[serde(default)]
    concurrency_max: Option<u32>,
    /// Tasks of it that are started in each period
    #[serde(default)]
    rate_limit: Option<u32>,
    /// That period in milliseconds [default: 1000]
    #[serde(default)]
    rate_period_ms: Option<u32>,
}

impl Example for QueueBody {
    fn example() -> Self {
        Self {
            concurrency_max: Some(4),
            rate_limit: Some(10),
            rate_period_ms: Some(1_000),
        }
    }
}

/// A built-in task.
#[derive(Serialize, Object)]
struct TypeView {
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
struct TypeList {
    /// By name
    items: Vec<TypeView>,
}

/// A worker's request for a task.
#[derive(Serialize, Deserialize, Object, Default)]
#[serde(deny_unknown_fields, default)]
struct FetchBody {
    /// What to call the worker
    #[oai(default)]
    worker: Option<String>,
    /// How long to wait for a task [default: 0]
    #[oai(default)]
    wait_seconds: Option<u32>,
    /// How long the worker has it without a heartbeat
    #[oai(default)]
    lease_seconds: Option<u32>,
}

/// A run for a worker; absent when none came in time.
#[derive(Serialize, Object)]
struct FetchView {
    /// The task
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<RunView>,
}

/// A run of a task.
#[derive(Serialize, Object)]
struct RunView {
    /// Key
    id: TaskKey,
    /// Which run of it: to be named in every answer
    attempt: u32,
    /// How often it may be started
    max_attempts: u32,
    /// What is to be done
    name: String,
    /// Where it waited
    queue: String,
    /// Arguments
    args: Value,
    /// What was kept with it
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Value>,
    /// W3C trace context of whoever made it
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    /// Longest run
    timeout_ms: i64,
    /// Until when the worker has it; a heartbeat renews it
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_expires_at: Option<Timestamp>,
}

impl From<Started> for RunView {
    fn from(run: Started) -> Self {
        Self {
            id: run.id.0,
            attempt: run.attempt,
            max_attempts: run.max_attempts,
            name: run.name,
            queue: run.queue,
            args: stored(&run.args),
            metadata: run.metadata.as_deref().map(stored),
            traceparent: run.traceparent,
            timeout_ms: run.timeout_ms,
            lease_expires_at: run.lease_expires_at,
        }
    }
}

/// A run is done.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct AckBody {
    /// Which run
    attempt: u32,
    /// What came of it, any JSON
    #[serde(default)]
    result: Option<Value>,
}

/// A run failed.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct FailBody {
    /// Which run
    attempt: u32,
    /// Why
    #[oai(validator(max_length = 100000))]
    error: String,
    /// Whether to try again [default: true]
    #[serde(default)]
    retry: Option<bool>,
    /// When to try again, instead of what the task's policy says
    #[serde(default)]
    retry_after_seconds: Option<u32>,
}

/// The worker is alive.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct BeatBody {
    /// Which run
    attempt: u32,
    /// How long the worker has it from now on
    #[serde(default)]
    lease_seconds: Option<u32>,
}

/// What a worker hears in answer.
#[derive(Serialize, Object)]
struct BeatView {
    /// Whether the task was cancelled: stop, and answer with `fail`
    cancel_requested: bool,
    /// Until when the worker has it
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_expires_at: Option<Timestamp>,
}

/// How far a run is.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct ProgressBody {
    /// Which run
    attempt: u32,
    /// Percent done
    #[oai(validator(maximum(value = "100")))]
    percent: u32,
    /// What it is at
    #[serde(default)]
    note: Option<String>,
    /// Log lines, of level info
    #[oai(default)]
    #[serde(default)]
    log: Vec<String>,
}

/// Tasks, queues and workers.
#[derive(Clone)]
pub struct TaskApi {
    tasks: Tasks,
    idempotency_seconds: u64,
}

fn ms(seconds: u32) -> i64 {
    i64::from(seconds) * 1_000
}

fn prefixed(prefix: &str, errors: Vec<FieldError>) -> Vec<FieldError> {
    errors
        .into_iter()
        .map(|error| FieldError::new(format!("{prefix}{}", error.field), error.reason))
        .collect()
}

fn read_id(id: &str) -> Result<TaskId, Problem> {
    // Whatever is no UUID names no task.
    id.parse()
        .map_err(|_| Problem::not_found("task_not_found", format!("there is no task {id}")))
}

fn read_cursor(cursor: Option<&str>) -> Result<Option<TaskId>, Problem> {
    cursor
        .map(|text| {
            text.parse().map_err(|_| {
                Problem::new(
                    poem::http::StatusCode::BAD_REQUEST,
                    "invalid_cursor",
                    "the cursor is none of ours",
                )
                .field("cursor", "pass next_cursor of the page before")
            })
        })
        .transpose()
}

fn read_state(state: Option<&str>) -> Result<Option<TaskState>, Vec<FieldError>> {
    state
        .map(|word| {
            TaskState::from_word(word).ok_or_else(|| {
                let reason = format!("must be one of {}", TaskState::WORDS.join(", "));
                vec![FieldError::new("state", reason)]
            })
        })
        .transpose()
}

impl TaskApi {
    /// With the handle that it works on.
    pub fn new(tasks: Tasks, idempotency_seconds: u64) -> Self {
        Self {
            tasks,
            idempotency_seconds,
        }
    }

    /// Makes a checked task of what came in.
    fn read(
        &self,
        body: &TaskBody,
        now: Timestamp,
        traceparent: Option<&str>,
    ) -> Result<NewTask, TaskError> {
        let rules = self.tasks.rules();
        let invalid = |field: &str, reason: &str| {
            Err(TaskError::Invalid(vec![FieldError::new(field, reason)]))
        };
        let policy = body
            .retry_policy
            .as_ref()
            .map(RetryBody::policy)
            .transpose();
        let asked = Asked {
            name: body.name.clone(),
            queue: body.queue.clone(),
            args: body
                .args
                .as_ref()
                .map_or_else(|| "{}".to_owned(), Value::to_string),
            priority: body.priority,
            max_attempts: body.max_attempts,
            timeout_ms: body.timeout_seconds.map(ms),
            soft_timeout_ms: body.soft_timeout_seconds.map(ms),
            retry_policy: policy.map_err(|fault| TaskError::Invalid(vec![fault]))?,
        };
        let registry = self.tasks.registry();
        let mut new = registry.resolve(rules, asked)?;
        new.run_at = match (body.eta, body.countdown_seconds) {
            (Some(_), Some(_)) => {
                return invalid("countdown_seconds", "does not go with eta");
            }
            (Some(eta), None) => Some(eta),
            (None, Some(seconds)) => Some(now.plus_seconds(i64::from(seconds))),
            (None, None) => None,
        };
        new.expires_at = body.expires_at;
        new.metadata = body.metadata.as_ref().map(Value::to_string);
        new.traceparent = traceparent.map(str::to_owned);
        new.result_seconds = body.result_seconds.map(i64::from);
        new.after = body.after.iter().map(|id| TaskId(*id)).collect();
        new.after_failure = body.after_failure;
        new.debounce = body.debounce_key.clone().map(|key| Debounce { key });
        new.unique = match (&body.unique_key, body.unique_args) {
            (Some(_), true) => return invalid("unique_args", "does not go with unique_key"),
            (Some(key), false) => Some(Unique {
                key: key.clone(),
                until: Until::Finished,
                seconds: None,
            }),
            (None, true) => Some(Unique::by_args(&new.name, &new.args)),
            (None, false) => None,
        };
        if let Some(unique) = &mut new.unique {
            unique.seconds = body.unique_seconds.map(i64::from);
            if let Some(word) = &body.unique_until {
                let Some(until) = Until::from_word(word) else {
                    return invalid("unique_until", "must be one of started, finished, expired");
                };
                unique.until = until;
            }
            if unique.until == Until::Expired && unique.seconds.is_none() {
                return invalid("unique_seconds", "is required with unique_until expired");
            }
        }
        registry
            .check(rules, now, &new)
            .map_err(TaskError::Invalid)?;
        if !self.tasks.admits_queue(&new.queue) {
            return invalid("queue", "there are as many queues as may be");
        }
        Ok(new)
    }

    fn key(&self, header: Option<String>, asked: &str) -> Result<Option<Key>, Vec<FieldError>> {
        header
            .map(|key| Key::new(&key, asked, self.idempotency_seconds))
            .transpose()
    }

    fn lease_ms(&self, seconds: Option<u32>) -> Result<i64, Vec<FieldError>> {
        let rules = self.tasks.rules();
        let seconds = seconds.map_or(rules.lease_seconds, u64::from);
        let mut checks = Checks::new();
        checks.range("lease_seconds", seconds, 1, rules.lease_seconds_max);
        checks.finish()?;
        Ok(i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000))
    }

    async fn detail(&self, id: TaskId) -> Result<TaskDetail, TaskError> {
        let now = self.tasks.clock().now();
        let (task, attempts, logs, ties) = self
            .tasks
            .store()
            .read(move |tx| {
                let (task, attempts, logs) = super::get(tx, now, id)?;
                let ties = super::ties(tx, &task)?;
                Ok::<_, TaskError>((task, attempts, logs, ties))
            })
            .await?;
        Ok(TaskDetail {
            task: task.into(),
            followers: ties.followers.into_iter().map(|id| id.0).collect(),
            batch: ties.batch.map(BatchStateView::from),
            attempts: attempts.into_iter().map(AttemptView::from).collect(),
            logs: logs.into_iter().map(LogView::from).collect(),
        })
    }

    async fn queue_view(&self, row: QueueRow) -> Result<QueueView, TaskError> {
        let (queues, _) = self.tasks.stats().await?;
        let now = self.tasks.clock().now();
        let found = queues.into_iter().find(|queue| queue.name == row.name);
        let (ready, running, due) = found.map_or((0, 0, None), |queue| {
            (queue.ready, queue.running, queue.oldest_due_at)
        });
        Ok(view_of(now, row, ready, running, due))
    }
}

fn view_of(
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

fn checked_queue(name: String) -> Result<String, Vec<FieldError>> {
    let mut checks = Checks::new();
    queue_name(&mut checks, "name", &name);
    checks.finish()?;
    Ok(name)
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Tasks")]
impl TaskApi {
    /// Enqueue a task
    ///
    /// Answered once the task is on disk. Built-in tasks are run by this server, all others wait for
    /// a worker of their queue. Send an `Idempotency-Key` and repeat the request freely.
    #[oai(path = "/tasks", method = "post")]
    async fn enqueue(
        &self,
        access: Access,
        info: RequestInfo,
        /// Any text that is new for each task, kept for 24 hours
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Header<Option<String>>,
        body: Body<TaskBody>,
    ) -> Result<Accepted<EnqueuedView>, Failure<{ fails::SECURED }>> {
        let caller = access.0;
        caller.require(Role::Admin, Scope::Tasks)?;
        let now = self.tasks.clock().now();
        let trace = info.trace().map(crate::http::TraceParent::as_str);
        let new = self.read(&body.0, now, trace).map_err(Problem::from)?;
        let key = match idempotency_key.0 {
            None => None,
            header => {
                let asked = serde_json::to_string(&body.0).map_err(Problem::internal)?;
                self.key(header, &format!("POST /tasks {asked}"))?
            }
        };
        let user = caller.user_id;
        let made = self
            .tasks
            .store()
            .write(move |tx| {
                if let Some(key) = &key
                    && let Some(stored) = key.look_up(tx, now, user)?
                {
                    return Ok(Accepted::replay(stored.body, stored.location));
                }
                let enqueued = super::enqueue(tx, now, &new)?;
                let location = format!("/api/v1/tasks/{}", enqueued.id());
                let text = serde_json::to_string(&EnqueuedView::from(enqueued))
                    .map_err(|error| crate::store::StoreError::Bug(error.to_string()))?;
                if let Some(key) = &key {
                    key.keep(tx, now, user, location.clone(), text.clone())?;
                }
                Ok::<_, TaskError>(Accepted::printed(text, location))
            })
            .await
            .map_err(Problem::from)?;
        Ok(made)
    }

    /// Enqueue many tasks
    ///
    /// All or none. With `batch` they are counted together and may be followed by callbacks; with
    /// `chain`, or `after_places`, they wait for each other.
    #[oai(path = "/tasks/batch", method = "post")]
    async fn enqueue_batch(
        &self,
        access: Access,
        info: RequestInfo,
        /// Any text that is new for each batch, kept for 24 hours
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Header<Option<String>>,
        body: Body<BatchBody>,
    ) -> Result<Accepted<BatchView>, Failure<{ fails::SECURED }>> {
        let caller = access.0;
        caller.require(Role::Admin, Scope::Tasks)?;
        let now = self.tasks.clock().now();
        let trace = info.trace().map(crate::http::TraceParent::as_str);
        let key = match idempotency_key.0 {
            None => None,
            header => {
                let asked = serde_json::to_string(&body.0).map_err(Problem::internal)?;
                self.key(header, &format!("POST /tasks/batch {asked}"))?
            }
        };
        let body = body.0;
        let mut checks = Checks::new();
        checks.range(
            "tasks",
            body.tasks.len(),
            1,
            self.tasks.rules().batch_tasks_max,
        );
        let has_order = body.chain || body.tasks.iter().any(|task| !task.after_places.is_empty());
        let has_callbacks = body.on_success.is_some() || body.on_complete.is_some();
        checks.require(
            !(has_order && body.batch),
            "batch",
            "does not go with chain or after_places",
        );
        checks.require(
            body.batch || !has_callbacks,
            "batch",
            "must be true for on_success and on_complete",
        );
        if let Some(text) = &body.description {
            checks.text("description", text, 0, 500);
        }
        checks.finish()?;
        let mut nodes = Vec::with_capacity(body.tasks.len());
        for (at, item) in body.tasks.iter().enumerate() {
            let task = self
                .read(&item.task, now, trace)
                .map_err(|error| match error {
                    TaskError::Invalid(errors) => {
                        TaskError::Invalid(prefixed(&format!("tasks[{at}]."), errors))
                    }
                    other => other,
                });
            let mut after: Vec<usize> = item
                .after_places
                .iter()
                .map(|place| *place as usize)
                .collect();
            if body.chain {
                after.extend(at.checked_sub(1));
            }
            nodes.push(Node {
                task: task.map_err(Problem::from)?,
                after,
            });
        }
        let callback = |task: &Option<TaskBody>| {
            task.as_ref()
                .map(|task| self.read(task, now, trace))
                .transpose()
                .map_err(Problem::from)
        };
        let (on_success, on_complete) = (callback(&body.on_success)?, callback(&body.on_complete)?);
        let (user, description, is_batch) = (caller.user_id, body.description, body.batch);
        let made = self
            .tasks
            .store()
            .write(move |tx| {
                if let Some(key) = &key
                    && let Some(stored) = key.look_up(tx, now, user)?
                {
                    return Ok(Accepted::replay(stored.body, stored.location));
                }
                let view = if is_batch {
                    let new = NewBatch {
                        description,
                        tasks: nodes.into_iter().map(|node| node.task).collect(),
                        on_success,
                        on_complete,
                    };
                    let batch = super::enqueue_batch(tx, now, &new)?;
                    BatchView {
                        batch_id: Some(batch.id),
                        tasks: batch.tasks.into_iter().map(EnqueuedView::from).collect(),
                    }
                } else if has_order {
                    let ids = super::enqueue_graph(tx, now, &nodes)?;
                    BatchView {
                        batch_id: None,
                        tasks: ids.into_iter().map(|id| Enqueued::New(id).into()).collect(),
                    }
                } else {
                    let tasks: Vec<NewTask> = nodes.into_iter().map(|node| node.task).collect();
                    let made = super::enqueue_all(tx, now, &tasks)?;
                    BatchView {
                        batch_id: None,
                        tasks: made.into_iter().map(EnqueuedView::from).collect(),
                    }
                };
                let location = "/api/v1/tasks".to_owned();
                let text = serde_json::to_string(&view)
                    .map_err(|error| crate::store::StoreError::Bug(error.to_string()))?;
                if let Some(key) = &key {
                    key.keep(tx, now, user, location.clone(), text.clone())?;
                }
                Ok::<_, TaskError>(Accepted::printed(text, location))
            })
            .await
            .map_err(Problem::from)?;
        Ok(made)
    }

    /// List tasks
    ///
    /// Newest first. A page may hold fewer than asked for, or none, and yet lead on with its cursor:
    /// one request looks over a bounded number of tasks.
    #[oai(path = "/tasks", method = "get")]
    async fn list(
        &self,
        access: Access,
        /// Only in this state
        state: Query<Option<String>>,
        /// Only of this queue
        queue: Query<Option<String>>,
        /// Only of this name
        name: Query<Option<String>>,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<u32>,
    ) -> Result<Body<TaskPage>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let filter = Filter {
            state: read_state(state.0.as_deref())?,
            queue: queue.0,
            name: name.0,
            before: read_cursor(cursor.0.as_deref())?,
            limit: limit.0,
        };
        let (tasks, next) = self
            .tasks
            .store()
            .read(move |tx| super::list(tx, &filter))
            .await
            .map_err(Problem::from)?;
        Ok(Body(TaskPage {
            items: tasks.into_iter().map(TaskView::from).collect(),
            next_cursor: next.map(|id| id.to_string()),
        }))
    }

    /// Read a task
    ///
    /// With its attempts, result, progress and log lines. An unknown id is 404, never "pending".
    #[oai(path = "/tasks/:id", method = "get")]
    async fn get(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
    ) -> Result<Body<TaskDetail>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let id = read_id(&id.0)?;
        Ok(Body(self.detail(id).await.map_err(Problem::from)?))
    }

    /// Edit a waiting task
    #[oai(path = "/tasks/:id", method = "patch")]
    async fn edit(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
        body: Body<TaskPatch>,
    ) -> Result<Body<TaskDetail>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let (id, body) = (read_id(&id.0)?, body.0);
        let now = self.tasks.clock().now();
        let before = self.detail(id).await.map_err(Problem::from)?.task;
        // Held against the same limits as a new one.
        let merged = TaskBody {
            name: before.name.clone(),
            queue: Some(before.queue),
            args: Some(body.args.clone().unwrap_or(before.args)),
            priority: body.priority,
            eta: body.eta,
            expires_at: body.expires_at,
            max_attempts: body.max_attempts,
            timeout_seconds: body.timeout_seconds,
            metadata: body.metadata.clone(),
            countdown_seconds: None,
            soft_timeout_seconds: None,
            unique_key: None,
            ..TaskBody::example()
        };
        self.read(&merged, now, None).map_err(Problem::from)?;
        let patch = Patch {
            args: body.args.as_ref().map(Value::to_string),
            priority: body.priority,
            run_at: body.eta,
            expires_at: body.expires_at,
            max_attempts: body.max_attempts,
            timeout_ms: body.timeout_seconds.map(ms),
            metadata: body.metadata.as_ref().map(Value::to_string),
        };
        self.tasks
            .change(move |tx| Ok(((), super::edit(tx, now, id, &patch)?)))
            .await
            .map_err(Problem::from)?;
        Ok(Body(self.detail(id).await.map_err(Problem::from)?))
    }

    /// Remove a finished task
    #[oai(path = "/tasks/:id", method = "delete")]
    async fn remove(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let id = read_id(&id.0)?;
        self.tasks
            .store()
            .write(move |tx| super::remove(tx, id))
            .await
            .map_err(Problem::from)?;
        Ok(NoContent)
    }

    /// Retry a task
    ///
    /// One that was cancelled, is dead, or waits for its time runs now.
    #[oai(path = "/tasks/:id/retry", method = "post")]
    async fn retry(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
    ) -> Result<Body<TaskDetail>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let id = read_id(&id.0)?;
        self.tasks.retry(id).await.map_err(Problem::from)?;
        Ok(Body(self.detail(id).await.map_err(Problem::from)?))
    }

    /// Cancel a task
    ///
    /// At once if it waits. If it runs, its worker is told, and it is cancelled when that one answers.
    #[oai(path = "/tasks/:id/cancel", method = "post")]
    async fn cancel(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
    ) -> Result<Body<TaskDetail>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let id = read_id(&id.0)?;
        self.tasks.cancel(id).await.map_err(Problem::from)?;
        Ok(Body(self.detail(id).await.map_err(Problem::from)?))
    }

    /// Change many tasks
    ///
    /// A bounded number at a time: repeat it with the cursor of the answer until there is none.
    #[oai(path = "/tasks/bulk", method = "post")]
    async fn bulk(
        &self,
        access: Access,
        body: Body<BulkBody>,
    ) -> Result<Body<BulkView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let body = body.0;
        let what = match body.action.as_str() {
            "cancel" => Bulk::Cancel,
            "retry" => Bulk::Retry,
            "remove" => Bulk::Remove,
            _ => {
                let reason = "must be one of cancel, retry, remove";
                return Err(vec![FieldError::new("action", reason)].into());
            }
        };
        let filter = Filter {
            state: read_state(body.state.as_deref())?,
            queue: body.queue,
            name: body.name,
            before: read_cursor(body.cursor.as_deref())?,
            limit: self.tasks.rules().bulk_tasks_max,
        };
        let now = self.tasks.clock().now();
        let (changed, next) = self
            .tasks
            .change(move |tx| {
                let (changed, next, changes) = super::bulk(tx, now, what, &filter)?;
                Ok(((changed, next), changes))
            })
            .await
            .map_err(Problem::from)?;
        Ok(Body(BulkView {
            changed,
            next_cursor: next.map(|id| id.to_string()),
        }))
    }

    /// Count tasks
    ///
    /// By state. A count is bounded, so that it costs the same however many there are; `is_more` says
    /// that it stopped there. Completed ones are counted among the newest tasks alone.
    #[oai(path = "/task-counts", method = "get")]
    async fn counts(&self, access: Access) -> Result<Body<CountList>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let most = self.tasks.rules().counted_max;
        let counts = self
            .tasks
            .store()
            .read(move |tx| super::counts(tx, most))
            .await
            .map_err(Problem::from)?;
        let items = counts.into_iter().map(|counted| CountedView {
            state: counted.state.word().to_owned(),
            count: counted.count,
            is_more: counted.is_more,
        });
        Ok(Body(CountList {
            items: items.collect(),
        }))
    }

    /// List built-in tasks
    ///
    /// What this server can do itself, with the JSON schema of each one's arguments.
    #[oai(path = "/task-types", method = "get")]
    async fn types(&self, access: Access) -> Result<Body<TypeList>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        Ok(Body(TypeList {
            items: self.tasks.registry().infos().map(TypeView::from).collect(),
        }))
    }

    /// List queues
    #[oai(path = "/queues", method = "get")]
    async fn queues(&self, access: Access) -> Result<Body<QueueList>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let (queues, scheduled) = self.tasks.stats().await.map_err(Problem::from)?;
        let now = self.tasks.clock().now();
        Ok(Body(QueueList {
            items: queues
                .into_iter()
                .map(|queue| {
                    view_of(
                        now,
                        queue.row,
                        queue.ready,
                        queue.running,
                        queue.oldest_due_at,
                    )
                })
                .collect(),
            scheduled,
        }))
    }

    /// Set a queue's limits
    #[oai(path = "/queues/:name", method = "patch")]
    async fn patch_queue(
        &self,
        access: Access,
        /// Name of the queue
        name: Path<String>,
        body: Body<QueueBody>,
    ) -> Result<Body<QueueView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let name = checked_queue(name.0)?;
        let body = body.0;
        let above_none = |value: u32| (value > 0).then_some(value);
        let period = i64::from(body.rate_period_ms.and_then(above_none).unwrap_or(1_000));
        let patch = QueuePatch {
            concurrency_max: body.concurrency_max.map(above_none),
            rate: body
                .rate_limit
                .map(|limit| above_none(limit).map(|limit| (limit, period))),
        };
        let rules = Arc::clone(self.tasks.rules());
        let row = self
            .tasks
            .change_queue(move |tx| super::patch_queue(tx, &rules, &name, patch))
            .await
            .map_err(Problem::from)?;
        Ok(Body(self.queue_view(row).await.map_err(Problem::from)?))
    }

    /// Pause a queue
    ///
    /// What runs goes on; nothing more of it is handed out.
    #[oai(path = "/queues/:name/pause", method = "post")]
    async fn pause(
        &self,
        access: Access,
        /// Name of the queue
        name: Path<String>,
    ) -> Result<Body<QueueView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        self.set_paused(name.0, true).await
    }

    /// Resume a queue
    #[oai(path = "/queues/:name/resume", method = "post")]
    async fn resume(
        &self,
        access: Access,
        /// Name of the queue
        name: Path<String>,
    ) -> Result<Body<QueueView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        self.set_paused(name.0, false).await
    }

    /// Fetch a task
    ///
    /// For a worker: the next task of the queue, as soon as there is one. The worker has it for
    /// `lease_seconds`, renewed by each heartbeat, and must answer with `ack` or `fail`.
    #[oai(path = "/queues/:name/fetch", method = "post")]
    async fn fetch(
        &self,
        access: Access,
        /// Name of the queue, or several separated by commas, the first of them first
        name: Path<String>,
        body: OptionalBody<FetchBody>,
    ) -> Result<Body<FetchView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Work)?;
        let body = body.0;
        let lease_ms = self.lease_ms(body.lease_seconds)?;
        let mut checks = Checks::new();
        let queues: Vec<String> = name.0.split(',').map(str::to_owned).collect();
        checks.range("name", queues.len(), 1, 20);
        for queue in queues.iter().take(20) {
            queue_name(&mut checks, "name", queue);
            checks.require(
                !BUILT_IN_QUEUES.contains(&queue.as_str()),
                "name",
                format!("{queue} is served by this server itself"),
            );
        }
        let worker = body.worker.unwrap_or_else(|| "http".to_owned());
        checks.text("worker", &worker, 1, 200);
        let wait_ms = u64::from(body.wait_seconds.unwrap_or(0)) * 1_000;
        let most = self.tasks.rules().fetch_wait_ms_max;
        checks.range("wait_seconds", wait_ms / 1_000, 0, most / 1_000);
        checks.finish()?;
        let started = self
            .tasks
            .fetch(&queues, &worker, lease_ms, Duration::from_millis(wait_ms))
            .await
            .map_err(Problem::from)?;
        Ok(Body(FetchView {
            task: started.map(RunView::from),
        }))
    }

    /// Acknowledge a task
    ///
    /// For a worker: it is done. Answered once that is on disk; 409 `fenced` if the run is over.
    #[oai(path = "/tasks/:id/ack", method = "post")]
    async fn ack(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
        body: Body<AckBody>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>> {
        access.0.require(Role::Staff, Scope::Work)?;
        let (id, attempt) = (read_id(&id.0)?, body.0.attempt);
        let result = body.0.result.map(|value| value.to_string());
        let rules = Arc::clone(self.tasks.rules());
        if result
            .as_ref()
            .is_some_and(|text| text.len() > rules.result_bytes_max)
        {
            let reason = format!("may have {} bytes as JSON", rules.result_bytes_max);
            return Err(vec![FieldError::new("result", reason)].into());
        }
        let now = self.tasks.clock().now();
        self.tasks
            .change(move |tx| {
                require_lease(tx, id, attempt)?;
                let changes = super::complete(tx, now, &rules, id, attempt, result.as_deref())?;
                Ok(((), changes))
            })
            .await
            .map_err(Problem::from)?;
        Ok(NoContent)
    }

    /// Report a failure
    ///
    /// For a worker: it is tried again as its policy says, or is dead.
    #[oai(path = "/tasks/:id/fail", method = "post")]
    async fn fail(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
        body: Body<FailBody>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>> {
        access.0.require(Role::Staff, Scope::Work)?;
        let (id, attempt) = (read_id(&id.0)?, body.0.attempt);
        let failure = RunFailure {
            is_final: body.0.retry == Some(false),
            retry_after_ms: body.0.retry_after_seconds.map(ms),
            ..RunFailure::new(body.0.error)
        };
        let (now, rules) = (self.tasks.clock().now(), Arc::clone(self.tasks.rules()));
        self.tasks
            .change(move |tx| {
                require_lease(tx, id, attempt)?;
                let changes: Changes = super::fail(tx, now, &rules, id, attempt, &failure)?;
                Ok(((), changes))
            })
            .await
            .map_err(Problem::from)?;
        Ok(NoContent)
    }

    /// Renew a lease
    ///
    /// For a worker: it is alive. The answer tells whether the task was cancelled meanwhile.
    #[oai(path = "/tasks/:id/heartbeat", method = "post")]
    async fn heartbeat(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
        body: Body<BeatBody>,
    ) -> Result<Body<BeatView>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        access.0.require(Role::Staff, Scope::Work)?;
        let lease_ms = self.lease_ms(body.0.lease_seconds)?;
        let beat = self
            .tasks
            .heartbeat(read_id(&id.0)?, body.0.attempt, lease_ms)
            .await
            .map_err(Problem::from)?;
        Ok(Body(BeatView {
            cancel_requested: beat.cancel_requested,
            lease_expires_at: Some(beat.lease_expires_at),
        }))
    }

    /// Report progress
    ///
    /// For a worker: how far it is, with log lines if it likes.
    #[oai(path = "/tasks/:id/progress", method = "post")]
    async fn progress(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
        body: Body<ProgressBody>,
    ) -> Result<Body<BeatView>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        access.0.require(Role::Staff, Scope::Work)?;
        let id = read_id(&id.0)?;
        let (now, rules) = (self.tasks.clock().now(), Arc::clone(self.tasks.rules()));
        let body = body.0;
        let cancel_requested = self
            .tasks
            .store()
            .write(move |tx| {
                require_lease(tx, id, body.attempt)?;
                let lines: Vec<_> = body
                    .log
                    .into_iter()
                    .map(|line| (now, super::LogLevel::Info, line))
                    .collect();
                super::append_logs(tx, &rules, id, body.attempt, &lines)?;
                let note = body.note.as_deref();
                super::progress(tx, &rules, id, body.attempt, body.percent, note)
            })
            .await
            .map_err(Problem::from)?;
        Ok(Body(BeatView {
            cancel_requested,
            lease_expires_at: None,
        }))
    }
}

impl TaskApi {
    async fn set_paused<const SET: u64>(
        &self,
        name: String,
        is_paused: bool,
    ) -> Result<Body<QueueView>, Failure<SET>> {
        let name = checked_queue(name)?;
        let (now, rules) = (self.tasks.clock().now(), Arc::clone(self.tasks.rules()));
        let row = self
            .tasks
            .change_queue(move |tx| super::set_paused(tx, now, &rules, &name, is_paused))
            .await
            .map_err(Problem::from)?;
        Ok(Body(self.queue_view(row).await.map_err(Problem::from)?))
    }
}

fn default_limit() -> u32 {
    50
}
