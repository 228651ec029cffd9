//! Tasks and queues for those who watch and steer them.

use std::sync::Arc;

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::enqueue::{self, TaskBody};
use super::views::{
    AttemptView, BatchStateView, CountList, CountedView, LogView, QueueList, QueueView, TaskDetail,
    TaskPage, TaskView, TypeList, TypeView, stored, view_of,
};
use super::{ms, read_id};
use crate::auth::api::{Access, Tag};
use crate::auth::{Role, Scope};
use crate::check::{Checks, FieldError};
use crate::clock::Timestamp;
use crate::http::{Body, Failure, NoContent, Problem, fails};
use crate::task::{
    self, Bulk, Filter, Patch, QueuePatch, QueueRow, TaskError, TaskId, TaskState, Tasks,
    queue_name,
};

/// Longest period of a queue's rate: 30 days.
const RATE_PERIOD_MS_MAX: i64 = 30 * 86_400_000;

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
    /// That period in milliseconds, 30 days at most [default: 1000]
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

/// Tasks and queues, to be watched and steered.
#[derive(Clone)]
pub struct TaskApi {
    tasks: Tasks,
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

fn checked_queue(name: String) -> Result<String, Vec<FieldError>> {
    let mut checks = Checks::new();
    queue_name(&mut checks, "name", &name);
    checks.finish()?;
    Ok(name)
}

fn default_limit() -> u32 {
    50
}

impl TaskApi {
    /// With the handle that it works on.
    pub fn new(tasks: Tasks) -> Self {
        Self { tasks }
    }

    async fn detail(&self, id: TaskId) -> Result<TaskDetail, TaskError> {
        let now = self.tasks.clock().now();
        let (task, attempts, logs, ties) = self
            .tasks
            .store()
            .read(move |tx| {
                let (task, attempts, logs) = task::get(tx, now, id)?;
                let ties = task::ties(tx, &task)?;
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

    async fn set_paused<const SET: u64>(
        &self,
        name: String,
        is_paused: bool,
    ) -> Result<Body<QueueView>, Failure<SET>> {
        let name = checked_queue(name)?;
        let (now, rules) = (self.tasks.clock().now(), Arc::clone(self.tasks.rules()));
        let row = self
            .tasks
            .change_queue(move |tx| task::set_paused(tx, now, &rules, &name, is_paused))
            .await
            .map_err(Problem::from)?;
        Ok(Body(self.queue_view(row).await.map_err(Problem::from)?))
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Tasks")]
impl TaskApi {
    /// List tasks
    ///
    /// Newest first. A page may hold fewer than asked for, or none, and yet lead on with its cursor:
    /// one request looks over a bounded number of tasks.
    #[oai(path = "/tasks", method = "get", operation_id = "list_tasks")]
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
            .read(move |tx| task::list(tx, &filter))
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
    /// Secrets among the headers of an `http_request` (`Authorization`, `Cookie`, `X-Api-Key`, names with
    /// `token`, `secret`, `password` and the like) are sent as they are, and shown as `********` here, in
    /// lists, in errors and by the command line.
    #[oai(path = "/tasks/:id", method = "get", operation_id = "get_task")]
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
    ///
    /// Arguments are replaced as a whole: a header that is shown as `********` has to be sent again.
    #[oai(path = "/tasks/:id", method = "patch", operation_id = "update_task")]
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
        let store = self.tasks.store();
        let (before, ..) = store
            .read(move |tx| task::get(tx, now, id))
            .await
            .map_err(Problem::from)?;
        // Held against the same limits as a new one.
        let merged = TaskBody {
            name: before.name.clone(),
            queue: Some(before.queue),
            args: Some(body.args.clone().unwrap_or_else(|| stored(&before.args))),
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
        enqueue::read(&self.tasks, &merged, now, None).map_err(Problem::from)?;
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
            .change(move |tx| Ok(((), task::edit(tx, now, id, &patch)?)))
            .await
            .map_err(Problem::from)?;
        Ok(Body(self.detail(id).await.map_err(Problem::from)?))
    }

    /// Remove a finished task
    #[oai(path = "/tasks/:id", method = "delete", operation_id = "delete_task")]
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
            .write(move |tx| task::remove(tx, id))
            .await
            .map_err(Problem::from)?;
        Ok(NoContent)
    }

    /// Retry a task
    ///
    /// One that was cancelled, is dead, or waits for its time runs now. One that was given up takes its unique
    /// key again (`task_key_held` if another task has it), counts in its batch again, and what was cancelled
    /// because of it waits for it again. The batch's `on_success` comes once all have succeeded, its
    /// `on_complete` does not come a second time.
    #[oai(
        path = "/tasks/:id/retry",
        method = "post",
        operation_id = "retry_task"
    )]
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
    #[oai(
        path = "/tasks/:id/cancel",
        method = "post",
        operation_id = "cancel_task"
    )]
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
    #[oai(path = "/tasks/bulk", method = "post", operation_id = "change_tasks")]
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
                let (changed, next, changes) = task::bulk(tx, now, what, &filter)?;
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
    #[oai(path = "/task-counts", method = "get", operation_id = "count_tasks")]
    async fn counts(&self, access: Access) -> Result<Body<CountList>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let most = self.tasks.rules().counted_max;
        let counts = self
            .tasks
            .store()
            .read(move |tx| task::counts(tx, most))
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
    #[oai(path = "/task-types", method = "get", operation_id = "list_task_types")]
    async fn types(&self, access: Access) -> Result<Body<TypeList>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        Ok(Body(TypeList {
            items: self.tasks.registry().infos().map(TypeView::from).collect(),
        }))
    }

    /// List queues
    #[oai(path = "/queues", method = "get", operation_id = "list_queues")]
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
    #[oai(
        path = "/queues/:name",
        method = "patch",
        operation_id = "update_queue"
    )]
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
        let mut checks = Checks::new();
        checks.range("rate_period_ms", period, 1, RATE_PERIOD_MS_MAX);
        checks.finish()?;
        let patch = QueuePatch {
            concurrency_max: body.concurrency_max.map(above_none),
            rate: body
                .rate_limit
                .map(|limit| above_none(limit).map(|limit| (limit, period))),
        };
        let rules = Arc::clone(self.tasks.rules());
        let row = self
            .tasks
            .change_queue(move |tx| task::patch_queue(tx, &rules, &name, patch))
            .await
            .map_err(Problem::from)?;
        Ok(Body(self.queue_view(row).await.map_err(Problem::from)?))
    }

    /// Pause a queue
    ///
    /// What runs goes on; nothing more of it is handed out.
    #[oai(
        path = "/queues/:name/pause",
        method = "post",
        operation_id = "pause_queue"
    )]
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
    #[oai(
        path = "/queues/:name/resume",
        method = "post",
        operation_id = "resume_queue"
    )]
    async fn resume(
        &self,
        access: Access,
        /// Name of the queue
        name: Path<String>,
    ) -> Result<Body<QueueView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        self.set_paused(name.0, false).await
    }
}
