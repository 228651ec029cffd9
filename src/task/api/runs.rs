//! Runs of tasks, for workers in any language: fetch, heartbeat, progress, and how it ended; also many at
//! once, each of which is answered by itself.

use std::sync::Arc;
use std::time::Duration;

use poem_openapi::param::Path;
use poem_openapi::types::Example;
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
use crate::task::life::{RunEnd, RunOutcome, end_all, require_lease};
use crate::task::{
    self, BUILT_IN_QUEUES, Changes, Failure as RunFailure, Started, Tasks, queue_name,
};

/// Tasks of one fetch, and runs whose ends are told of in one request, at most.
const TOGETHER_MAX: usize = 256;

/// A worker's request for a task, or for many.
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
    /// Tasks that the worker takes at once; with it the answer has the list `tasks`. It is never waited
    /// for more than the first of them
    #[oai(default, validator(minimum(value = "1"), maximum(value = "256")))]
    max: Option<u32>,
}

/// What there is for a worker.
#[derive(Serialize, Object)]
struct FetchView {
    /// Without `max`: the task; absent when none came in time
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<RunView>,
    /// With `max`: the tasks, the next one first; empty when none came in time
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks: Option<Vec<RunView>>,
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

/// Runs that ended.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct EndsBody {
    /// The runs, each of a task of its own
    #[oai(validator(min_items = 1, max_items = 256))]
    runs: Vec<EndBody>,
}

/// A run that ended.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct EndBody {
    /// Key of the task
    task_id: String,
    /// Which run of it
    attempt: u32,
    /// `completed` or `failed`
    outcome: String,
    /// With `completed`: what came of it, any JSON
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// With `failed`: why
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// With `failed`: whether to try again [default: true]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<bool>,
    /// With `failed`: when to try again, instead of what the task's policy says; up to the setting
    /// `tasks.delay_seconds_max`, a year unless set
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u32>,
}

impl Example for EndsBody {
    fn example() -> Self {
        let completed = EndBody {
            task_id: "0199f3a2-7c10-7d5e-8f21-3b6a9c4d0e11".to_owned(),
            attempt: 1,
            outcome: "completed".to_owned(),
            result: Some(serde_json::json!({"bytes": 9_123})),
            error: None,
            retry: None,
            retry_after_seconds: None,
        };
        let failed = EndBody {
            task_id: "0199f3a2-7c10-7d5e-8f21-3b6a9c4d0e12".to_owned(),
            attempt: 3,
            outcome: "failed".to_owned(),
            result: None,
            error: Some("no such image".to_owned()),
            retry: None,
            retry_after_seconds: Some(60),
        };
        Self {
            runs: vec![completed, failed],
        }
    }
}

/// What became of what was said of the runs.
#[derive(Serialize, Object)]
struct EndsView {
    /// In the order of the request
    runs: Vec<EndView>,
}

/// What became of what was said of a run.
#[derive(Serialize, Object)]
struct EndView {
    /// Its place in the request, from 0
    place: u32,
    /// Key of the task, as the request had it
    task_id: String,
    /// Which run of it, as the request had it
    attempt: u32,
    /// 204 if that was noted; otherwise the status that an `ack` or `fail` of it alone is answered with
    status: u16,
    /// Stable code of the problem, such as `fenced`
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// The problem, for people
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Fields of it that do not hold
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Vec<EndFault>>,
}

/// A field that does not hold.
#[derive(Serialize, Object)]
struct EndFault {
    /// Where: `runs[3].result`
    field: String,
    /// What is wrong, in words
    reason: String,
}

impl EndView {
    fn of(place: usize, asked: (String, u32), ended: Result<(), Problem>) -> Self {
        let (task_id, attempt) = asked;
        let problem = ended.err();
        if let Some(cause) = problem.as_ref().and_then(Problem::internal_cause) {
            tracing::error!(cause, task = task_id, "the end of a run was not noted");
        }
        let errors: Vec<EndFault> = problem
            .iter()
            .flat_map(Problem::errors)
            .map(|error| EndFault {
                field: format!("runs[{place}].{}", error.field),
                reason: error.reason.clone(),
            })
            .collect();
        Self {
            place: u32::try_from(place).unwrap_or(u32::MAX),
            task_id,
            attempt,
            status: problem
                .as_ref()
                .map_or(204, |problem| problem.status().as_u16()),
            code: problem.as_ref().map(|problem| problem.code().to_owned()),
            detail: problem.as_ref().map(|problem| problem.detail().to_owned()),
            errors: (!errors.is_empty()).then_some(errors),
        }
    }
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

    /// A result as it is kept.
    fn result(&self, result: Option<Value>) -> Result<Option<String>, FieldError> {
        let result = result.map(|value| value.to_string());
        let most = self.tasks.rules().result_bytes_max;
        if result.as_ref().is_some_and(|text| text.len() > most) {
            let reason = format!("may have {most} bytes as JSON");
            return Err(FieldError::new("result", reason));
        }
        Ok(result)
    }

    fn failure(
        &self,
        error: String,
        retry: Option<bool>,
        retry_after_seconds: Option<u32>,
    ) -> Result<RunFailure, Vec<FieldError>> {
        if let Some(seconds) = retry_after_seconds {
            let mut checks = Checks::new();
            let most = self.tasks.rules().delay_seconds_max;
            checks.range("retry_after_seconds", u64::from(seconds), 0, most);
            checks.finish()?;
        }
        Ok(RunFailure {
            is_final: retry == Some(false),
            retry_after_ms: retry_after_seconds.map(ms),
            ..RunFailure::new(error)
        })
    }

    /// What is said of one run among others, checked.
    fn end(&self, said: EndBody) -> Result<RunEnd, Problem> {
        let EndBody {
            task_id,
            attempt,
            outcome,
            result,
            error,
            retry,
            retry_after_seconds,
        } = said;
        let mut checks = Checks::new();
        let mut absent = |field: &str, is_there: bool| {
            let reason = format!("does not go with the outcome {outcome}");
            checks.require(!is_there, field, reason);
        };
        let outcome = match outcome.as_str() {
            "completed" => {
                absent("error", error.is_some());
                absent("retry", retry.is_some());
                absent("retry_after_seconds", retry_after_seconds.is_some());
                checks.finish()?;
                let result = self.result(result).map_err(|fault| vec![fault])?;
                RunOutcome::Completed(result)
            }
            "failed" => {
                absent("result", result.is_some());
                checks.require(error.is_some(), "error", "is required");
                checks.finish()?;
                let error = error.unwrap_or_default();
                RunOutcome::Failed(self.failure(error, retry, retry_after_seconds)?)
            }
            _ => {
                checks.require(false, "outcome", "must be one of completed, failed");
                return Err(Problem::validation(
                    checks.finish().err().unwrap_or_default(),
                ));
            }
        };
        Ok(RunEnd {
            id: read_id(&task_id)?,
            attempt,
            outcome,
        })
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Tasks")]
impl RunApi {
    /// Fetch a task
    ///
    /// For a worker: the next task of the queue, as soon as there is one. The worker has it for
    /// `lease_seconds`, renewed by each heartbeat, and must answer with `ack` or `fail`. With `max` it gets
    /// all that are ready at that moment, up to so many, in the list `tasks`, and may answer for them with
    /// one request to `/tasks/runs/end`.
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
        let max = body.max.map_or(1, |max| max as usize);
        checks.range("max", max, 1, TOGETHER_MAX);
        checks.finish()?;
        let wait = Duration::from_millis(wait_ms);
        let started = self
            .tasks
            .fetch_many(&queues, &worker, lease_ms, wait, max)
            .await
            .map_err(Problem::from)?;
        let mut runs = started.into_iter().map(RunView::from);
        Ok(Body(match body.max {
            None => FetchView {
                task: runs.next(),
                tasks: None,
            },
            Some(_) => FetchView {
                task: None,
                tasks: Some(runs.collect()),
            },
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
        let result = self.result(body.0.result).map_err(|fault| vec![fault])?;
        let rules = Arc::clone(self.tasks.rules());
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
        let failure = self.failure(body.0.error, body.0.retry, body.0.retry_after_seconds)?;
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

    /// End many runs
    ///
    /// For a worker: what `ack` and `fail` say of one run, of up to 256 of them at once. Each is answered by
    /// itself: one that is over, unknown or not valid changes nothing of the others, and of two for the same
    /// run the second comes too late. Answered once all that was noted is on disk. Sent again after an
    /// answer that was lost, the runs that were noted are `fenced`.
    #[oai(
        path = "/tasks/runs/end",
        method = "post",
        operation_id = "end_task_runs"
    )]
    async fn end_many(
        &self,
        access: Access,
        body: Body<EndsBody>,
    ) -> Result<Body<EndsView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Work)?;
        let said = body.0.runs;
        let mut checks = Checks::new();
        checks.range("runs", said.len(), 1, TOGETHER_MAX);
        checks.finish()?;
        let mut asked = Vec::with_capacity(said.len());
        let mut ends = Vec::with_capacity(said.len());
        let mut refused = Vec::with_capacity(said.len());
        for one in said {
            asked.push((one.task_id.clone(), one.attempt));
            let refusal = match self.end(one) {
                Ok(end) => {
                    ends.push(end);
                    None
                }
                Err(problem) => Some(problem),
            };
            refused.push(refusal);
        }
        let mut ended = Vec::new();
        if !ends.is_empty() {
            let (now, rules) = (self.tasks.clock().now(), Arc::clone(self.tasks.rules()));
            ended = self
                .tasks
                .change(move |tx| end_all(tx, now, &rules, &ends))
                .await
                .map_err(Problem::from)?;
        }
        let mut ended = ended.into_iter();
        let runs = asked.into_iter().zip(refused).enumerate();
        let runs = runs.map(|(place, (asked, refused))| {
            let ended = match refused {
                Some(problem) => Err(problem),
                None => ended.next().unwrap_or(Ok(())).map_err(Problem::from),
            };
            EndView::of(place, asked, ended)
        });
        Ok(Body(EndsView {
            runs: runs.collect(),
        }))
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
