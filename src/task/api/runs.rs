//! Runs of tasks, for workers in any language: fetch, heartbeat, progress, and how it ended.

use std::sync::Arc;
use std::time::Duration;

use poem_openapi::param::Path;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::views::{TaskKey, stored};
use super::{ms, read_id};
use crate::auth::api::{Access, Tag};
use crate::auth::{Role, Scope};
use crate::check::{Checks, FieldError};
use crate::clock::Timestamp;
use crate::http::{Body, Failure, NoContent, OptionalBody, Problem, fails};
use crate::task::life::require_lease;
use crate::task::{
    self, BUILT_IN_QUEUES, Changes, Failure as RunFailure, Started, Tasks, queue_name,
};

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
    /// When to try again, instead of what the task's policy says; up to the setting
    /// `tasks.delay_seconds_max`, a year unless set
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

/// For workers.
#[derive(Clone)]
pub struct RunApi {
    tasks: Tasks,
}

impl RunApi {
    /// With the handle that it works on.
    pub fn new(tasks: Tasks) -> Self {
        Self { tasks }
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
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Tasks")]
impl RunApi {
    /// Fetch a task
    ///
    /// For a worker: the next task of the queue, as soon as there is one. The worker has it for
    /// `lease_seconds`, renewed by each heartbeat, and must answer with `ack` or `fail`.
    #[oai(
        path = "/queues/:name/fetch",
        method = "post",
        operation_id = "fetch_task"
    )]
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
        checks.key("worker", &worker, 1, 200);
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
    #[oai(
        path = "/tasks/:id/ack",
        method = "post",
        operation_id = "acknowledge_task"
    )]
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
                let changes = task::complete(tx, now, &rules, id, attempt, result.as_deref())?;
                Ok(((), changes))
            })
            .await
            .map_err(Problem::from)?;
        Ok(NoContent)
    }

    /// Report a failure
    ///
    /// For a worker: it is tried again as its policy says, or is dead.
    #[oai(path = "/tasks/:id/fail", method = "post", operation_id = "fail_task")]
    async fn fail(
        &self,
        access: Access,
        /// Key of the task
        id: Path<String>,
        body: Body<FailBody>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>> {
        access.0.require(Role::Staff, Scope::Work)?;
        let (id, attempt) = (read_id(&id.0)?, body.0.attempt);
        if let Some(seconds) = body.0.retry_after_seconds {
            let mut checks = Checks::new();
            let most = self.tasks.rules().delay_seconds_max;
            checks.range("retry_after_seconds", u64::from(seconds), 0, most);
            checks.finish()?;
        }
        let failure = RunFailure {
            is_final: body.0.retry == Some(false),
            retry_after_ms: body.0.retry_after_seconds.map(ms),
            ..RunFailure::new(body.0.error)
        };
        let (now, rules) = (self.tasks.clock().now(), Arc::clone(self.tasks.rules()));
        self.tasks
            .change(move |tx| {
                require_lease(tx, id, attempt)?;
                let changes: Changes = task::fail(tx, now, &rules, id, attempt, &failure)?;
                Ok(((), changes))
            })
            .await
            .map_err(Problem::from)?;
        Ok(NoContent)
    }

    /// Renew a lease
    ///
    /// For a worker: it is alive. The answer tells whether the task was cancelled meanwhile.
    #[oai(
        path = "/tasks/:id/heartbeat",
        method = "post",
        operation_id = "renew_task_lease"
    )]
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
    #[oai(
        path = "/tasks/:id/progress",
        method = "post",
        operation_id = "report_task_progress"
    )]
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
                    .iter()
                    .map(|line| (now, task::LogLevel::Info, line.clone()))
                    .collect();
                task::append_logs(tx, &rules, id, body.attempt, &lines)?;
                let note = body.note.as_deref();
                task::progress(tx, &rules, id, body.attempt, body.percent, note)
            })
            .await
            .map_err(Problem::from)?;
        Ok(Body(BeatView {
            cancel_requested,
            lease_expires_at: None,
        }))
    }
}
