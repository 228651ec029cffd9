//! Schedules over HTTP.

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Draft, Run, Schedule, ScheduleError, Schedules, When};
use crate::auth::api::{Access, Tag};
use crate::auth::idempotency::IdempotencyKey;
use crate::auth::{Role, Scope};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::http::json::Accepted;
use crate::http::{Body, Created, Failure, NoContent, Problem, fails};
use crate::store::StoreError;
use crate::task;

impl From<ScheduleError> for Problem {
    fn from(error: ScheduleError) -> Self {
        let text = error.to_string();
        match error {
            ScheduleError::Invalid(errors) => Problem::validation(errors),
            ScheduleError::NotFound(_) => Problem::not_found("schedule_not_found", text),
            ScheduleError::Exists(_) => Problem::conflict("schedule_exists", text),
            ScheduleError::TooMany(_) => Problem::conflict("too_many_schedules", text),
            ScheduleError::Fixed(..) => Problem::conflict("schedule_fixed", text),
            ScheduleError::Unfinished(_) => Problem::conflict("schedule_unfinished", text),
            ScheduleError::NotDeclarable(error) => Problem::internal(error),
            ScheduleError::KeyReused => {
                Problem::validation(vec![FieldError::new("Idempotency-Key", text)])
            }
            ScheduleError::Store(error) => error.into(),
        }
    }
}

/// A schedule to be.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct ScheduleBody {
    /// What to call it: letters, digits and `_ . : -`
    #[oai(validator(min_length = 1, max_length = 100))]
    name: String,
    /// Make it without letting it fire yet
    #[oai(default)]
    #[serde(default)]
    paused: bool,
    /// Cron expression: minute, hour, day of the month, month, day of the week; with seconds in front
    /// if there are six; or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
    ///
    /// Where the clock is put forward, what would fire in the hour that is skipped fires once, right
    /// after it; where it is put back, what fires in the hour that is repeated does so the first time
    /// alone. An expression for every hour follows time as it passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    /// Fire every so many seconds; instead of `cron`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval_seconds: Option<u32>,
    /// IANA time zone in which `cron` is read [default: `schedules.time_zone` of the settings, which is the shop's]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    /// What is to be done: a built-in task, or whatever the queue's workers know
    task: String,
    /// Where its tasks wait [default: the built-in task's own queue, else `default`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    /// The tasks' arguments, any JSON
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Value>,
    /// Higher first, 0 to 255
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    /// How often each task may be started
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    /// Longest run of each task
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u32>,
    /// What a fire does while a task of an earlier one is unfinished: `skip`, `allow` (make another
    /// all the same) or `queue_one` (make one that starts when that is finished) [default: `skip`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overlap: Option<String>,
    /// What becomes of fires that were missed, because the server was down or late: `once` (one task
    /// makes up for all), `skip`, or `all` (up to `missed_max`, the latest ones) [default: `once`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missed: Option<String>,
    /// How many missed fires `all` makes up for [default: 10]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missed_max: Option<u32>,
    /// Put off each task by a random time up to this [default: 0]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jitter_seconds: Option<u32>,
}

impl Example for ScheduleBody {
    fn example() -> Self {
        Self {
            name: "nightly_report".to_owned(),
            paused: false,
            cron: Some("0 1 * * *".to_owned()),
            interval_seconds: None,
            time_zone: Some("Asia/Shanghai".to_owned()),
            task: "make_report".to_owned(),
            queue: Some("night".to_owned()),
            args: Some(serde_json::json!({"kind": "daily"})),
            priority: None,
            max_attempts: None,
            timeout_seconds: None,
            overlap: None,
            missed: None,
            missed_max: None,
            jitter_seconds: Some(30),
        }
    }
}

impl From<ScheduleBody> for Draft {
    fn from(body: ScheduleBody) -> Self {
        Self {
            cron: body.cron,
            interval_seconds: body.interval_seconds,
            time_zone: body.time_zone,
            task: Some(body.task),
            queue: body.queue,
            args: body.args.map(|args| args.to_string()),
            priority: body.priority,
            max_attempts: body.max_attempts,
            timeout_seconds: body.timeout_seconds,
            overlap: body.overlap,
            missed: body.missed,
            missed_max: body.missed_max,
            jitter_seconds: body.jitter_seconds,
        }
    }
}

/// What a schedule is to say from now on; what is absent stays as it is.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct ScheduleEdit {
    /// Cron expression: minute, hour, day of the month, month, day of the week; with seconds in front
    /// if there are six; or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
    ///
    /// Where the clock is put forward, what would fire in the hour that is skipped fires once, right
    /// after it; where it is put back, what fires in the hour that is repeated does so the first time
    /// alone. An expression for every hour follows time as it passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    /// Fire every so many seconds; instead of `cron`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval_seconds: Option<u32>,
    /// IANA time zone in which `cron` is read
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    /// What is to be done: a built-in task, or whatever the queue's workers know
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// Where its tasks wait
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    /// The tasks' arguments, any JSON
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Value>,
    /// Higher first, 0 to 255
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    /// How often each task may be started
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    /// Longest run of each task
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u32>,
    /// What a fire does while a task of an earlier one is unfinished: `skip`, `allow` (make another
    /// all the same) or `queue_one` (make one that starts when that is finished)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overlap: Option<String>,
    /// What becomes of fires that were missed, because the server was down or late: `once` (one task
    /// makes up for all), `skip`, or `all` (up to `missed_max`, the latest ones)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missed: Option<String>,
    /// How many missed fires `all` makes up for
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missed_max: Option<u32>,
    /// Put off each task by a random time up to this
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jitter_seconds: Option<u32>,
}

impl Example for ScheduleEdit {
    fn example() -> Self {
        Self {
            cron: Some("30 2 * * MON-FRI".to_owned()),
            interval_seconds: None,
            time_zone: None,
            task: None,
            queue: None,
            args: None,
            priority: None,
            max_attempts: None,
            timeout_seconds: None,
            overlap: Some("queue_one".to_owned()),
            missed: None,
            missed_max: None,
            jitter_seconds: None,
        }
    }
}

impl From<ScheduleEdit> for Draft {
    fn from(body: ScheduleEdit) -> Self {
        Self {
            cron: body.cron,
            interval_seconds: body.interval_seconds,
            time_zone: body.time_zone,
            task: body.task,
            queue: body.queue,
            args: body.args.map(|args| args.to_string()),
            priority: body.priority,
            max_attempts: body.max_attempts,
            timeout_seconds: body.timeout_seconds,
            overlap: body.overlap,
            missed: body.missed,
            missed_max: body.missed_max,
            jitter_seconds: body.jitter_seconds,
        }
    }
}

/// A schedule.
#[derive(Serialize, Object)]
struct ScheduleView {
    /// What it is called
    name: String,
    /// Who made it: `api`, `settings` or `built_in`
    source: String,
    /// `active`, `paused`, or `broken` where it can't be read
    state: String,
    /// Cron expression
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    /// Seconds between two fires
    #[serde(skip_serializing_if = "Option::is_none")]
    interval_seconds: Option<u32>,
    /// IANA time zone in which `cron` is read
    time_zone: String,
    /// What is to be done
    task: String,
    /// Where its tasks wait, if not in the task's own queue
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    /// The tasks' arguments; of `http_request`, without the secrets among its headers
    args: Value,
    /// Higher first
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    /// How often each task may be started
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    /// Longest run of each task
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<i64>,
    /// What a fire does while a task of an earlier one is unfinished
    overlap: String,
    /// What becomes of missed fires
    missed: String,
    /// How many missed fires `all` makes up for
    missed_max: u32,
    /// Each task is put off by a random time up to this
    jitter_seconds: i64,
    /// Since when it does not fire
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_at: Option<Timestamp>,
    /// The next fires, ten at most
    next_runs: Vec<Timestamp>,
    /// The last run
    #[serde(skip_serializing_if = "Option::is_none")]
    last_run: Option<ScheduleRunView>,
    /// Why it does not fire
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// When it was made
    created_at: Timestamp,
    /// When it was changed last
    updated_at: Timestamp,
}

impl ScheduleView {
    fn new(schedule: Schedule, last: Option<Run>) -> Self {
        let next_runs = schedule.upcoming();
        let state = match (&schedule.error, schedule.paused_at) {
            (Some(_), _) => "broken",
            (None, Some(_)) => "paused",
            (None, None) => "active",
        };
        let spec = schedule.spec;
        let (cron, interval_seconds) = match spec.when {
            When::Cron(text) => (Some(text), None),
            When::Every(seconds) => (None, Some(seconds)),
        };
        let args = task::shown(&spec.task, &spec.args);
        Self {
            name: schedule.name,
            source: schedule.source.word().to_owned(),
            state: state.to_owned(),
            cron,
            interval_seconds,
            time_zone: spec.time_zone,
            task: spec.task,
            queue: spec.queue,
            args,
            priority: spec.priority,
            max_attempts: spec.max_attempts,
            timeout_seconds: spec.timeout_ms.map(|ms| ms / 1_000),
            overlap: spec.overlap.word().to_owned(),
            missed: spec.missed.word().to_owned(),
            missed_max: spec.missed_max,
            jitter_seconds: spec.jitter_ms / 1_000,
            paused_at: schedule.paused_at,
            next_runs,
            last_run: last.map(ScheduleRunView::from),
            error: schedule.error,
            created_at: schedule.created_at,
            updated_at: schedule.updated_at,
        }
    }
}

/// One time that a schedule fired, or should have.
#[derive(Serialize, Object)]
struct ScheduleRunView {
    /// The time that it was for
    fire_at: Timestamp,
    /// `time`, `catch_up` (it makes up for missed ones) or `hand`
    cause: String,
    /// `enqueued` while its task is unfinished; `completed`, `cancelled` or `discarded` as that one was,
    /// `removed` if it is gone; or why there is no task: `skipped` (an earlier one was unfinished),
    /// `missed`, `refused`
    outcome: String,
    /// Its task
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<uuid::Uuid>,
    /// Why there is no task, or why it failed
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// When it was decided
    created_at: Timestamp,
    /// When its task was started last
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    /// When its task was finished
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// How long its task ran
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_seconds: Option<f64>,
}

impl From<Run> for ScheduleRunView {
    fn from(run: Run) -> Self {
        let duration = run
            .started_at
            .zip(run.finished_at)
            .map(|(started, finished)| finished.micros_since(started).max(0) as f64 / 1_000_000.0);
        Self {
            fire_at: run.fire_at,
            cause: run.cause.word().to_owned(),
            outcome: run.outcome.word().to_owned(),
            task_id: run.task_id.map(|id| id.0),
            error: run.error,
            created_at: run.created_at,
            started_at: run.started_at,
            finished_at: run.finished_at,
            duration_seconds: duration,
        }
    }
}

/// One page of schedules.
#[derive(Serialize, Object)]
struct SchedulePage {
    /// By name
    items: Vec<ScheduleView>,
    /// Pass it as `cursor` to go on
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// One page of a schedule's runs.
#[derive(Serialize, Object)]
struct ScheduleRunPage {
    /// Newest first
    items: Vec<ScheduleRunView>,
    /// Pass it as `cursor` to go on
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A run by hand.
#[derive(Serialize, Object)]
struct HandRunView {
    /// By which it stands in the history
    fire_at: Timestamp,
    /// Its task
    task_id: uuid::Uuid,
}

/// Schedules.
#[derive(Clone)]
pub struct ScheduleApi {
    schedules: Schedules,
    idempotency_seconds: u64,
}

impl ScheduleApi {
    /// With the handle that it works on.
    pub fn new(schedules: Schedules, idempotency_seconds: u64) -> Self {
        Self {
            schedules,
            idempotency_seconds,
        }
    }

    async fn view(&self, schedule: Schedule) -> Result<Body<ScheduleView>, ScheduleError> {
        let (schedule, last) = self.schedules.get(schedule.name).await?;
        Ok(Body(ScheduleView::new(schedule, last)))
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Schedules")]
impl ScheduleApi {
    /// List schedules
    #[oai(path = "/schedules", method = "get", operation_id = "list_schedules")]
    async fn list(
        &self,
        access: Access,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<u32>,
    ) -> Result<Body<SchedulePage>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let (after, limit) = (cursor.0.unwrap_or_default(), limit.0);
        let mut page = self
            .schedules
            .read(move |tx| super::list(tx, &after, limit + 1))
            .await
            .map_err(Problem::from)?;
        let is_last = page.len() <= limit as usize;
        page.truncate(limit as usize);
        let last = page.last().map(|(schedule, _)| schedule.name.clone());
        Ok(Body(SchedulePage {
            items: page
                .into_iter()
                .map(|(schedule, last)| ScheduleView::new(schedule, last))
                .collect(),
            next_cursor: last.filter(|_| !is_last),
        }))
    }

    /// Make a schedule
    ///
    /// Each time it fires it makes a task. Its first fire is the first after now.
    #[oai(path = "/schedules", method = "post", operation_id = "create_schedule")]
    async fn create(
        &self,
        access: Access,
        body: Body<ScheduleBody>,
    ) -> Result<Created<ScheduleView>, Failure<{ fails::SECURED | fails::CONFLICT }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let body = body.0;
        let (name, is_paused) = (body.name.clone(), body.paused);
        let made = self
            .schedules
            .create(name, body.into(), is_paused)
            .await
            .map_err(Problem::from)?;
        let location = format!("/api/v1/schedules/{}", made.name);
        Ok(Created::new(ScheduleView::new(made, None), location))
    }

    /// Read a schedule
    ///
    /// With its next ten fires and its last run.
    #[oai(
        path = "/schedules/:name",
        method = "get",
        operation_id = "get_schedule"
    )]
    async fn get(
        &self,
        access: Access,
        /// Name of the schedule
        name: Path<String>,
    ) -> Result<Body<ScheduleView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let (schedule, last) = self.schedules.get(name.0).await.map_err(Problem::from)?;
        Ok(Body(ScheduleView::new(schedule, last)))
    }

    /// Change a schedule
    ///
    /// With other times it begins anew, from now on. A built-in schedule can be given other times and
    /// policies, not another task; one that is declared in the settings is changed there.
    #[oai(
        path = "/schedules/:name",
        method = "patch",
        operation_id = "update_schedule"
    )]
    async fn edit(
        &self,
        access: Access,
        /// Name of the schedule
        name: Path<String>,
        body: Body<ScheduleEdit>,
    ) -> Result<Body<ScheduleView>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let edited = self
            .schedules
            .edit(name.0, body.0.into())
            .await
            .map_err(Problem::from)?;
        Ok(self.view(edited).await.map_err(Problem::from)?)
    }

    /// Remove a schedule
    ///
    /// With its history. Tasks that it has made go on.
    #[oai(
        path = "/schedules/:name",
        method = "delete",
        operation_id = "delete_schedule"
    )]
    async fn remove(
        &self,
        access: Access,
        /// Name of the schedule
        name: Path<String>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        self.schedules.remove(name.0).await.map_err(Problem::from)?;
        Ok(NoContent)
    }

    /// Run a schedule now
    ///
    /// Makes its task, paused or not, as far as its overlap policy allows; when it fires next stays as
    /// it is. Send an `Idempotency-Key` and repeat the request freely.
    #[oai(
        path = "/schedules/:name/run",
        method = "post",
        operation_id = "run_schedule"
    )]
    async fn run(
        &self,
        access: Access,
        /// Name of the schedule
        name: Path<String>,
        /// Any text that is new for each run, kept for 24 hours
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Header<Option<String>>,
    ) -> Result<
        Accepted<HandRunView>,
        Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>,
    > {
        let caller = access.0;
        caller.require(Role::Admin, Scope::Tasks)?;
        let name = name.0;
        let key = idempotency_key
            .0
            .map(|key| {
                let asked = format!("POST /schedules/{name}/run");
                IdempotencyKey::new(&key, &asked, self.idempotency_seconds)
            })
            .transpose()?;
        let user = caller.user_id;
        let made = self
            .schedules
            .change(move |tx, now, basis| {
                if let Some(key) = &key
                    && let Some(stored) = key.begin(tx, now, user)?
                {
                    return Ok(Accepted::replay(stored.body, stored.location));
                }
                let (fire_at, id) = super::run(tx, now, basis, &name)?;
                let location = format!("/api/v1/tasks/{id}");
                let view = HandRunView {
                    fire_at,
                    task_id: id.0,
                };
                let text = serde_json::to_string(&view)
                    .map_err(|error| StoreError::Bug(error.to_string()))?;
                if let Some(key) = &key {
                    key.keep(tx, user, location.clone(), text.clone())?;
                }
                Ok(Accepted::printed(text, location))
            })
            .await
            .map_err(Problem::from)?;
        Ok(made)
    }

    /// Pause a schedule
    ///
    /// It does not fire until it is resumed. Tasks that it has made go on.
    #[oai(
        path = "/schedules/:name/pause",
        method = "post",
        operation_id = "pause_schedule"
    )]
    async fn pause(
        &self,
        access: Access,
        /// Name of the schedule
        name: Path<String>,
    ) -> Result<Body<ScheduleView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let paused = self.schedules.set_paused(name.0, true).await;
        let paused = paused.map_err(Problem::from)?;
        Ok(self.view(paused).await.map_err(Problem::from)?)
    }

    /// Resume a schedule
    ///
    /// It fires from now on; what would have been meanwhile is not made up for.
    #[oai(
        path = "/schedules/:name/resume",
        method = "post",
        operation_id = "resume_schedule"
    )]
    async fn resume(
        &self,
        access: Access,
        /// Name of the schedule
        name: Path<String>,
    ) -> Result<Body<ScheduleView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        let resumed = self.schedules.set_paused(name.0, false).await;
        let resumed = resumed.map_err(Problem::from)?;
        Ok(self.view(resumed).await.map_err(Problem::from)?)
    }

    /// List a schedule's runs
    ///
    /// Newest first: when it fired and why, and what came of it.
    #[oai(
        path = "/schedules/:name/runs",
        method = "get",
        operation_id = "list_schedule_runs"
    )]
    async fn runs(
        &self,
        access: Access,
        /// Name of the schedule
        name: Path<String>,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<u32>,
    ) -> Result<Body<ScheduleRunPage>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let before = Timestamp(crate::http::read_cursor(cursor.0.as_deref())?);
        let (name, limit) = (name.0, limit.0);
        let runs = self
            .schedules
            .read(move |tx| super::runs(tx, &name, before, limit))
            .await
            .map_err(Problem::from)?;
        let next = runs.last().filter(|_| runs.len() == limit as usize);
        let next_cursor = next.map(|run| run.fire_at.0.to_string());
        Ok(Body(ScheduleRunPage {
            items: runs.into_iter().map(ScheduleRunView::from).collect(),
            next_cursor,
        }))
    }
}

fn default_limit() -> u32 {
    50
}
