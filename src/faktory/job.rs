//! A Faktory job and the task that stands for it.
//!
//! Invariants: the job's id is the task's `external_id`; what the task has no column for (`custom`,
//! `backtrace`, …) is its metadata, and comes back as it was. A task that came another way is a job
//! too: its own id is the job's, and its arguments are a list of one if they are none.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Refused;
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::config;
use crate::task::{
    Asked, BUILT_IN_QUEUES, DEFAULT_QUEUE, NewTask, Started, Task, TaskError, TaskId, Tasks,
    Unique, Until,
};

/// Seconds that a job may be reserved for.
const RESERVE_SECONDS: std::ops::RangeInclusive<i64> = 60..=86_400;
const RESERVE_SECONDS_DEFAULT: i64 = 1_800;
const RETRIES_DEFAULT: i64 = 25;
/// The protocol knows 1 to 9, with 5 in the middle, as 100 is among the tasks'.
const PRIORITY_STEP: i64 = 20;
const JID_CHARS: std::ops::RangeInclusive<usize> = 8..=200;

/// A job as its producer sends it.
#[derive(Debug, Deserialize)]
pub(super) struct Job {
    #[serde(default)]
    pub(super) jid: Option<String>,
    #[serde(default)]
    jobtype: Option<String>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    queue: Option<String>,
    #[serde(default)]
    priority: Option<i64>,
    #[serde(default)]
    reserve_for: Option<i64>,
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    retry: Option<i64>,
    #[serde(default)]
    backtrace: Option<i64>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    custom: Option<Map<String, Value>>,
}

/// What the task has no column for.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backtrace: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    custom: Option<Map<String, Value>>,
}

impl Kept {
    pub(super) fn read(metadata: Option<&str>) -> Self {
        metadata
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }

    /// Lines of a failure's backtrace that are to be kept.
    pub(super) fn backtrace_lines(&self) -> usize {
        self.backtrace
            .and_then(|lines| usize::try_from(lines).ok())
            .unwrap_or(0)
    }
}

fn refused<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Invalid(why.into()))
}

/// A job, checked.
pub(super) struct Pushed {
    pub(super) task: NewTask,
    pub(super) jid: String,
    /// The batch that shall count it.
    pub(super) bid: Option<String>,
}

impl Job {
    /// Makes a checked task of it.
    pub(super) fn read(self, tasks: &Tasks, now: Timestamp) -> Result<Pushed, Refused> {
        let jid = self.jid.unwrap_or_default();
        if !JID_CHARS.contains(&jid.chars().count()) || jid.chars().any(char::is_control) {
            return refused(format!(
                "jobs must have a reasonable jid parameter, of {} to {} characters",
                JID_CHARS.start(),
                JID_CHARS.end()
            ));
        }
        let Some(name) = self.jobtype.filter(|name| !name.is_empty()) else {
            return refused("jobs must have a jobtype parameter");
        };
        let Some(args) = self.args else {
            return refused("jobs must have an args parameter");
        };
        let reserve_for = match self.reserve_for.unwrap_or(0) {
            0 => RESERVE_SECONDS_DEFAULT,
            seconds if seconds > *RESERVE_SECONDS.end() => {
                return refused("jobs cannot be reserved for more than one day");
            }
            seconds => seconds.max(*RESERVE_SECONDS.start()),
        };
        let queue = self
            .queue
            .filter(|queue| !queue.is_empty())
            .unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
        open_queue(&queue)?;
        let run_at = match self.at.as_deref().filter(|at| !at.is_empty()) {
            None => None,
            Some(text) => match Timestamp::parse_rfc3339(text) {
                Some(at) => Some(at).filter(|at| *at > now),
                None => return refused(format!("invalid timestamp for 'at': {text:?}")),
            },
        };
        let retry = self.retry.unwrap_or(RETRIES_DEFAULT);
        let priority = self
            .priority
            .filter(|priority| *priority != 0)
            .map(|priority| (priority.clamp(1, 9) * PRIORITY_STEP) as u8);
        let text = Value::Array(args).to_string();
        let asked = Asked {
            name,
            queue: Some(queue),
            args: text,
            priority,
            max_attempts: Some(u32::try_from(retry.clamp(0, 999) + 1).unwrap_or(1)),
            timeout_ms: Some(reserve_for * 1_000),
            ..Asked::default()
        };
        let rules = tasks.rules();
        let mut task = tasks.registry().resolve(rules, asked)?;
        task.run_at = run_at;
        let (mut bid, empty) = (None, Map::new());
        let custom = self.custom.as_ref().unwrap_or(&empty);
        let start = run_at.unwrap_or(now);
        task.expires_at = expiry(custom, start, rules)?;
        task.unique = unique(custom, &task, now, start, rules)?;
        if let Some(value) = custom.get("bid") {
            match value.as_str() {
                Some(text) => bid = Some(text.to_owned()),
                None => return refused("custom.bid must be a text"),
            }
        }
        let kept = Kept {
            created_at: self.created_at.filter(|text| !text.is_empty()),
            at: self.at.filter(|text| !text.is_empty()),
            priority: self.priority,
            retry: Some(retry),
            backtrace: self.backtrace.filter(|lines| *lines != 0),
            custom: self.custom,
        };
        let metadata = serde_json::to_string(&kept);
        task.metadata =
            Some(metadata.map_err(|error| Refused::Invalid(format!("invalid JSON: {error}")))?);
        task.external_id = Some(jid.clone());
        let checked = tasks.registry().check(rules, now, &task);
        checked.map_err(TaskError::Invalid)?;
        if !tasks.admits_queue(&task.queue) {
            return refused("there are as many queues as may be");
        }
        Ok(Pushed { task, jid, bid })
    }
}

/// Refuses a queue that this server serves itself: its tasks belong to the shop.
pub(super) fn open_queue(queue: &str) -> Result<(), Refused> {
    if BUILT_IN_QUEUES.contains(&queue) {
        return refused(format!("queue {queue} is served by this server itself"));
    }
    Ok(())
}

/// Seconds that a value gives, as a number or as a text that is one.
fn seconds(
    custom: &Map<String, Value>,
    name: &str,
    rules: &config::Tasks,
) -> Result<Option<i64>, Refused> {
    let Some(value) = custom.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let number = value
        .as_f64()
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    match number {
        Some(number) if (0.0..=rules.delay_seconds_max as f64).contains(&number) => {
            Ok(Some(number.ceil() as i64))
        }
        Some(_) | None => refused(format!(
            "custom.{name} must be a number of seconds from 0 to {}",
            rules.delay_seconds_max
        )),
    }
}

fn expiry(
    custom: &Map<String, Value>,
    start: Timestamp,
    rules: &config::Tasks,
) -> Result<Option<Timestamp>, Refused> {
    if let Some(seconds) = seconds(custom, "expires_in", rules)? {
        return Ok(Some(start.plus_seconds(seconds)));
    }
    let Some(value) = custom.get("expires_at").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    match value.as_str().and_then(Timestamp::parse_rfc3339) {
        Some(at) => Ok(Some(at)),
        None => refused("custom.expires_at must be a time in RFC 3339"),
    }
}

fn unique(
    custom: &Map<String, Value>,
    task: &NewTask,
    now: Timestamp,
    start: Timestamp,
    rules: &config::Tasks,
) -> Result<Option<Unique>, Refused> {
    let Some(seconds) = seconds(custom, "unique_for", rules)?.filter(|seconds| *seconds > 0) else {
        return Ok(None);
    };
    let until = match custom.get("unique_until").map(Value::as_str) {
        None | Some(Some("success")) => Until::Finished,
        Some(Some("start")) => Until::Started,
        Some(_) => return refused("custom.unique_until must be success or start"),
    };
    let mut digest = Sha256::new();
    for part in [&*task.name, &*task.queue, task.args.as_str()] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    // The time until a job may start does not count.
    let delay = start.micros_since(now) / 1_000_000;
    Ok(Some(Unique {
        key: format!("faktory:{}", hex(&digest.finalize())),
        until,
        seconds: Some(seconds.saturating_add(delay)),
    }))
}

/// In lower case.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a job failed last.
#[derive(Serialize)]
pub(super) struct LastFailure {
    pub(super) retry_count: u32,
    #[serde(rename = "remaining")]
    pub(super) retry_remaining: u32,
    pub(super) failed_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
    pub(super) errtype: &'static str,
}

/// A job as a worker gets it.
#[derive(Serialize)]
struct Payload<'a> {
    jid: String,
    queue: &'a str,
    jobtype: &'a str,
    args: Value,
    created_at: String,
    enqueued_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    reserve_for: i64,
    retry: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backtrace: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<LastFailure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom: Option<Map<String, Value>>,
}

/// What a payload is made of.
struct Parts<'a> {
    id: TaskId,
    external_id: Option<&'a str>,
    queue: &'a str,
    name: &'a str,
    args: &'a str,
    metadata: Option<&'a str>,
    created_at: Timestamp,
    run_at: Timestamp,
    timeout_ms: i64,
    max_attempts: u32,
    failure: Option<LastFailure>,
}

/// The job as JSON, for the worker that runs it.
pub(super) fn of_run(run: &Started, failure: Option<LastFailure>) -> Result<String, Refused> {
    print(Parts {
        id: run.id,
        external_id: run.external_id.as_deref(),
        queue: &run.queue,
        name: &run.name,
        args: &run.args,
        metadata: run.metadata.as_deref(),
        created_at: run.created_at,
        run_at: run.run_at,
        timeout_ms: run.timeout_ms,
        max_attempts: run.max_attempts,
        failure,
    })
}

/// The job as JSON, as patterns are held against it.
pub(super) fn of_task(task: &Task, external_id: Option<&str>) -> Result<String, Refused> {
    let failure = task.error.as_ref().map(|error| LastFailure {
        retry_count: task.attempt.saturating_sub(1),
        retry_remaining: task.max_attempts.saturating_sub(task.attempt),
        failed_at: task.attempted_at.unwrap_or(task.created_at),
        next_at: (!task.state.is_final()).then_some(task.run_at),
        message: Some(error.clone()),
        errtype: "unknown",
    });
    print(Parts {
        id: task.id,
        external_id,
        queue: &task.queue,
        name: &task.name,
        args: &task.args,
        metadata: task.metadata.as_deref(),
        created_at: task.created_at,
        run_at: task.run_at,
        timeout_ms: task.timeout_ms,
        max_attempts: task.max_attempts,
        failure,
    })
}

fn print(parts: Parts<'_>) -> Result<String, Refused> {
    let kept = match parts.external_id {
        Some(_) => Kept::read(parts.metadata),
        // Whoever made it keeps something else there.
        None => Kept {
            custom: parts
                .metadata
                .and_then(|text| match serde_json::from_str(text).ok()? {
                    Value::Object(map) => Some(map),
                    other => Some(Map::from_iter([("metadata".to_owned(), other)])),
                }),
            ..Kept::default()
        },
    };
    let args = match serde_json::from_str(parts.args) {
        Ok(Value::Array(args)) => Value::Array(args),
        Ok(other) => Value::Array(vec![other]),
        Err(error) => return refused(format!("the arguments can't be read: {error}")),
    };
    let payload = Payload {
        jid: parts
            .external_id
            .map_or_else(|| parts.id.to_string(), str::to_owned),
        queue: parts.queue,
        jobtype: parts.name,
        args,
        created_at: kept
            .created_at
            .unwrap_or_else(|| parts.created_at.to_string()),
        enqueued_at: parts.run_at.max(parts.created_at),
        at: kept.at,
        reserve_for: parts.timeout_ms / 1_000,
        retry: kept
            .retry
            .unwrap_or(i64::from(parts.max_attempts.saturating_sub(1))),
        priority: kept.priority,
        backtrace: kept.backtrace,
        failure: parts.failure,
        custom: kept.custom,
    };
    serde_json::to_string(&payload)
        .map_err(|error| Refused::Invalid(format!("the job can't be printed: {error}")))
}

/// One text for all that is wrong with a task.
pub(super) fn words(errors: &[FieldError]) -> String {
    let words: Vec<String> = errors
        .iter()
        .map(|error| format!("{} {}", error.field, error.reason))
        .collect();
    words.join("; ")
}
