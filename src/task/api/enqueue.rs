//! Making tasks: one, many, chains, batches.

use poem_openapi::param::Header;
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ms;
use super::views::{RetryBody, TaskKey};
use crate::auth::api::{Access, Tag};
use crate::auth::idempotency::IdempotencyKey;
use crate::auth::{Role, Scope, UserId};
use crate::check::{self, Checks, FieldError};
use crate::clock::Timestamp;
use crate::http::json::Accepted;
use crate::http::{Body, Failure, Problem, RequestInfo, fails};
use crate::task::{
    self, Asked, Debounce, Enqueued, NewBatch, NewTask, Node, TaskError, TaskId, Tasks, Unique,
    Until,
};

/// A task to be.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
pub(super) struct TaskBody {
    /// What is to be done: a built-in task (see `GET task-types`), or whatever the queue's workers know
    #[oai(validator(min_length = 1, max_length = 200))]
    pub(super) name: String,
    /// Its arguments, any JSON; built-in tasks refuse what does not fit their schema
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) args: Option<Value>,
    /// Where it waits [default: the built-in task's own queue, else `default`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) queue: Option<String>,
    /// Higher first, 0 to 255 [default: 100]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<u8>,
    /// Not before this time
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) eta: Option<Timestamp>,
    /// Not before so many seconds have passed; instead of `eta`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) countdown_seconds: Option<u32>,
    /// Cancelled if it was not started by then
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<Timestamp>,
    /// How often it may be started
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_attempts: Option<u32>,
    /// Longest run; then it is ended and tried again
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout_seconds: Option<u32>,
    /// When the handler is told that it takes long
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) soft_timeout_seconds: Option<u32>,
    /// How long it waits after a failure
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retry_policy: Option<RetryBody>,
    /// How long its result is kept
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result_seconds: Option<u32>,
    /// At most one task under this key; another enqueue is answered with the one that there is
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unique_key: Option<String>,
    /// At most one task of this name with these arguments; instead of `unique_key`
    #[oai(default)]
    #[serde(default)]
    pub(super) unique_args: bool,
    /// What frees the key: `started`, `finished` or `expired` [default: `finished`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unique_until: Option<String>,
    /// What else frees the key: so many seconds
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unique_seconds: Option<u32>,
    /// While a task under this key waits for its time, it is put off and gets these arguments instead
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) debounce_key: Option<String>,
    /// Tasks that must be finished first
    #[oai(default)]
    #[serde(default)]
    pub(super) after: Vec<TaskKey>,
    /// Run although one of `after` was cancelled or died; otherwise it is cancelled then
    #[oai(default)]
    #[serde(default)]
    pub(super) after_failure: bool,
    /// Any JSON, kept with it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<Value>,
}

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
    /// Enqueued once all are completed, also where some had failed and were retried by hand
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_success: Option<TaskBody>,
    /// Enqueued once all are completed, cancelled or dead; a retry by hand does not bring it again
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

/// For those who have something to be done.
#[derive(Clone)]
pub struct EnqueueApi {
    tasks: Tasks,
    idempotency_seconds: u64,
}

fn prefixed(prefix: &str, errors: Vec<FieldError>) -> Vec<FieldError> {
    errors
        .into_iter()
        .map(|error| FieldError::new(format!("{prefix}{}", error.field), error.reason))
        .collect()
}

/// Makes a checked task of what came in.
pub(super) fn read(
    tasks: &Tasks,
    body: &TaskBody,
    now: Timestamp,
    traceparent: Option<&str>,
) -> Result<NewTask, TaskError> {
    let rules = tasks.rules();
    let invalid =
        |field: &str, reason: &str| Err(TaskError::Invalid(vec![FieldError::new(field, reason)]));
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
    let registry = tasks.registry();
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
    if !tasks.admits_queue(&new.queue) {
        return invalid("queue", "there are as many queues as may be");
    }
    Ok(new)
}

/// Tasks that are to be made together, checked.
struct Together {
    nodes: Vec<Node>,
    /// Whether some wait for others of them.
    has_order: bool,
    on_success: Option<NewTask>,
    on_complete: Option<NewTask>,
    description: Option<String>,
}

/// Many tasks, by what binds them.
enum NewTogether {
    /// They are counted together.
    Batch(Box<NewBatch>),
    /// They wait for each other.
    Graph(Vec<Node>),
    /// Nothing.
    Each(Vec<NewTask>),
}

impl NewTogether {
    fn of(together: Together, is_batch: bool) -> Self {
        if together.has_order && !is_batch {
            return Self::Graph(together.nodes);
        }
        let tasks = together.nodes.into_iter().map(|node| node.task).collect();
        if !is_batch {
            return Self::Each(tasks);
        }
        Self::Batch(Box::new(NewBatch {
            description: together.description,
            tasks,
            on_success: together.on_success,
            on_complete: together.on_complete,
        }))
    }
}

/// [`read`] for many.
fn together(
    tasks: &Tasks,
    body: BatchBody,
    now: Timestamp,
    traceparent: Option<&str>,
) -> Result<Together, TaskError> {
    let mut checks = Checks::new();
    checks.range("tasks", body.tasks.len(), 1, tasks.rules().batch_tasks_max);
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
        checks.name("description", check::trimmed(text), 0, 500);
    }
    checks.finish().map_err(TaskError::Invalid)?;
    let mut nodes = Vec::with_capacity(body.tasks.len());
    for (at, item) in body.tasks.iter().enumerate() {
        let task = read(tasks, &item.task, now, traceparent).map_err(|error| match error {
            TaskError::Invalid(errors) => {
                TaskError::Invalid(prefixed(&format!("tasks[{at}]."), errors))
            }
            other => other,
        })?;
        let places = item.after_places.iter().map(|place| *place as usize);
        let mut after: Vec<usize> = places.collect();
        if body.chain {
            after.extend(at.checked_sub(1));
        }
        nodes.push(Node { task, after });
    }
    let callback = |task: &Option<TaskBody>| {
        task.as_ref()
            .map(|task| read(tasks, task, now, traceparent))
            .transpose()
    };
    Ok(Together {
        nodes,
        has_order,
        on_success: callback(&body.on_success)?,
        on_complete: callback(&body.on_complete)?,
        description: body
            .description
            .as_deref()
            .map(|text| check::trimmed(text).to_owned()),
    })
}

impl EnqueueApi {
    /// With the handle that it works on.
    pub fn new(tasks: Tasks, idempotency_seconds: u64) -> Self {
        Self {
            tasks,
            idempotency_seconds,
        }
    }

    /// The answer of before, where a request that is refused now was done under its key once; else the
    /// refusal. Times pass and settings change, so what held then need not hold any more.
    async fn made_before<T>(
        &self,
        key: Option<IdempotencyKey>,
        now: Timestamp,
        user: UserId,
        refused: Problem,
    ) -> Result<Accepted<T>, Problem> {
        let Some(key) = key else {
            return Err(refused);
        };
        let stored = self
            .tasks
            .store()
            .point(move |tx| key.look_up(tx, now, user));
        match stored.await? {
            Some(stored) => Ok(Accepted::replay(stored.body, stored.location)),
            None => Err(refused),
        }
    }

    fn key(
        &self,
        header: Option<String>,
        asked: &str,
    ) -> Result<Option<IdempotencyKey>, Vec<FieldError>> {
        header
            .map(|key| IdempotencyKey::new(&key, asked, self.idempotency_seconds))
            .transpose()
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Tasks")]
impl EnqueueApi {
    /// Enqueue a task
    ///
    /// Answered once the task is on disk. Built-in tasks are run by this server, all others wait for
    /// a worker of their queue. Send an `Idempotency-Key` and repeat the request freely.
    #[oai(path = "/tasks", method = "post", operation_id = "enqueue_task")]
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
        let key = match idempotency_key.0 {
            None => None,
            header => {
                let asked = serde_json::to_string(&body.0).map_err(Problem::internal)?;
                self.key(header, &format!("POST /tasks {asked}"))?
            }
        };
        let user = caller.user_id;
        let new = match read(&self.tasks, &body.0, now, trace) {
            Ok(new) => new,
            Err(error) => return Ok(self.made_before(key, now, user, error.into()).await?),
        };
        let made = self
            .tasks
            .enqueue_in(move |tx, handing| {
                if let Some(key) = &key
                    && let Some(stored) = key.begin(tx, now, user)?
                {
                    return Ok(Accepted::replay(stored.body, stored.location));
                }
                let enqueued = handing.enqueue(tx, now, &new)?;
                let location = format!("/api/v1/tasks/{}", enqueued.id());
                let text = serde_json::to_string(&EnqueuedView::from(enqueued))
                    .map_err(|error| crate::store::StoreError::Bug(error.to_string()))?;
                if let Some(key) = &key {
                    key.keep(tx, user, location.clone(), text.clone())?;
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
    #[oai(path = "/tasks/batch", method = "post", operation_id = "enqueue_tasks")]
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
        let (user, is_batch) = (caller.user_id, body.0.batch);
        let together = match together(&self.tasks, body.0, now, trace) {
            Ok(together) => together,
            Err(error) => return Ok(self.made_before(key, now, user, error.into()).await?),
        };
        let new = NewTogether::of(together, is_batch);
        let made = self
            .tasks
            .store()
            .write(move |tx| {
                if let Some(key) = &key
                    && let Some(stored) = key.begin(tx, now, user)?
                {
                    return Ok(Accepted::replay(stored.body, stored.location));
                }
                let (batch_id, made) = match &new {
                    NewTogether::Batch(new) => {
                        let batch = task::enqueue_batch(tx, now, new)?;
                        (Some(batch.id), batch.tasks)
                    }
                    NewTogether::Graph(nodes) => {
                        let ids = task::enqueue_graph(tx, now, nodes)?;
                        (None, ids.into_iter().map(Enqueued::New).collect())
                    }
                    NewTogether::Each(tasks) => (None, task::enqueue_all(tx, now, tasks)?),
                };
                let tasks = made.into_iter().map(EnqueuedView::from).collect();
                let view = BatchView { batch_id, tasks };
                let location = "/api/v1/tasks".to_owned();
                let text = serde_json::to_string(&view)
                    .map_err(|error| crate::store::StoreError::Bug(error.to_string()))?;
                if let Some(key) = &key {
                    key.keep(tx, user, location.clone(), text.clone())?;
                }
                Ok::<_, TaskError>(Accepted::printed(text, location))
            })
            .await
            .map_err(Problem::from)?;
        Ok(made)
    }
}
