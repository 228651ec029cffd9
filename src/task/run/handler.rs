//! What a built-in task is: its name, the shape of its arguments, what it does.
//!
//! Invariants: a handler that wants an effect in the database hands it back as
//! [`TaskOutcome::Commit`], and it commits together with the note that the task is done, fenced by the
//! attempt: so it happens once, whatever crashes. A name that a built-in queue does not know is
//! refused at the enqueue, and so are arguments that do not fit.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::check::{self, Checks, FieldError, JsonError};
use crate::clock::{Stopwatch, Timestamp};
use crate::config;
use crate::store::{Store, StoreError, Tx};
use crate::task::new_task::latest_run_at;
use crate::task::{
    LogLevel, NewTask, PRIORITY_DEFAULT, RetryPolicy, Started, TaskError, TaskId, Tasks,
};

/// Queues that this process serves itself; they take only tasks that it knows.
pub const BUILT_IN_QUEUES: &[&str] = &[
    "orders",
    "mail",
    "webhooks",
    "http",
    "reports",
    "maintenance",
];
/// The queue of a task that names none and is not built in.
pub const DEFAULT_QUEUE: &str = "default";

/// What a task that ran to its end leaves.
pub enum TaskOutcome {
    /// Done, with a result that is kept for a time.
    Done(Option<serde_json::Value>),
    /// Done as soon as this is committed, together with the note that it is done. An error undoes it
    /// and counts as this run's failure.
    Commit(Effect),
    /// Not now: again after this time. It counts neither as a failure nor as an attempt.
    Snooze(Duration),
}

/// The part of a task that writes, run inside the transaction that completes it.
pub type Effect =
    Box<dyn Fn(&mut Tx<'_>, Timestamp) -> Result<Option<serde_json::Value>, TaskFailure> + Send>;

impl TaskOutcome {
    /// [`TaskOutcome::Commit`] of a closure.
    pub fn commit(
        effect: impl Fn(&mut Tx<'_>, Timestamp) -> Result<Option<serde_json::Value>, TaskFailure>
        + Send
        + 'static,
    ) -> Self {
        TaskOutcome::Commit(Box::new(effect))
    }
}

/// Why a run failed, and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct TaskFailure {
    /// For people.
    pub error: String,
    /// Whether another attempt makes sense.
    pub is_final: bool,
    /// When to try again; `None` for what the task's policy says.
    pub retry_after: Option<Duration>,
}

impl TaskFailure {
    /// Try again as the policy says.
    pub fn retry(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            is_final: false,
            retry_after: None,
        }
    }

    /// Try again after this time.
    pub fn retry_after(error: impl Into<String>, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::retry(error)
        }
    }

    /// Another attempt would fail alike: the task is dead.
    pub fn discard(error: impl Into<String>) -> Self {
        Self {
            is_final: true,
            ..Self::retry(error)
        }
    }
}

impl From<StoreError> for TaskFailure {
    fn from(error: StoreError) -> Self {
        TaskFailure::retry(error.to_string())
    }
}

/// A built-in task.
pub trait Handler: Send + Sync + 'static {
    /// Its arguments: a struct that denies unknown fields.
    type Args: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// What it is called in tables, metrics and the API.
    const NAME: &'static str;
    /// Where it waits: one of [`BUILT_IN_QUEUES`].
    const QUEUE: &'static str;
    /// What it does, in a sentence.
    const ABOUT: &'static str;
    /// Higher first.
    const PRIORITY: u8 = PRIORITY_DEFAULT;
    /// How often it is started at most.
    const MAX_ATTEMPTS: u32 = 25;
    /// Longest run; then it is ended and tried again.
    const TIMEOUT_MS: i64 = 300_000;
    /// When it is told that it takes long.
    const SOFT_TIMEOUT_MS: Option<i64> = None;
    /// How long to wait after a failure.
    const RETRY_POLICY: Option<RetryPolicy> = None;

    /// Does it. Dropped at its time limit; told before by [`TaskContext::soft_limit`] and
    /// [`TaskContext::cancelled`]. It may run again after a crash, so what it does outside the
    /// database must bear that. Where [`Handler::effect`] is all of it, that is what is done.
    fn run(
        &self,
        _context: TaskContext,
        args: Self::Args,
    ) -> impl Future<Output = Result<TaskOutcome, TaskFailure>> + Send {
        async move {
            match self.effect(args) {
                Some(effect) => Ok(TaskOutcome::Commit(effect)),
                None => Err(TaskFailure::discard("there is nothing to do")),
            }
        }
    }

    /// What it does, if that is nothing but a few quick statements: such a task can be started, done
    /// and completed in one transaction.
    fn effect(&self, _args: Self::Args) -> Option<Effect> {
        None
    }

    /// What the shape of the arguments can't say.
    fn check(_args: &Self::Args) -> Result<(), Vec<FieldError>> {
        Ok(())
    }
}

impl NewTask {
    /// A task of a built-in handler, with its defaults.
    pub fn of<H: Handler>(args: &H::Args) -> Result<Self, StoreError> {
        let args =
            serde_json::to_string(args).map_err(|error| StoreError::Bug(error.to_string()))?;
        Ok(Self {
            name: Cow::Borrowed(H::NAME),
            queue: Cow::Borrowed(H::QUEUE),
            priority: H::PRIORITY,
            max_attempts: H::MAX_ATTEMPTS,
            timeout_ms: H::TIMEOUT_MS,
            soft_timeout_ms: H::SOFT_TIMEOUT_MS,
            retry_policy: H::RETRY_POLICY,
            ..Self::named(String::new(), String::new(), args)
        })
    }
}

/// The arguments of a task that needs none.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoArgs {}

/// What a run leaves, as text, unless that is too much.
pub(in crate::task) fn result_text(
    rules: &config::Tasks,
    result: Option<&serde_json::Value>,
) -> Result<Option<String>, TaskFailure> {
    let text = result.map(serde_json::Value::to_string);
    if text
        .as_ref()
        .is_some_and(|text| text.len() > rules.result_bytes_max)
    {
        return Err(TaskFailure::discard(format!(
            "its result is larger than {} bytes",
            rules.result_bytes_max
        )));
    }
    Ok(text)
}

type Run<'a> = Pin<Box<dyn Future<Output = Result<TaskOutcome, TaskFailure>> + Send + 'a>>;

/// [`Handler`] without its type.
pub(in crate::task) trait AnyHandler: Send + Sync {
    fn run<'a>(&'a self, context: TaskContext, args: &str) -> Run<'a>;
    fn effect(&self, args: &str) -> Option<Effect>;
    fn check(&self, args: &str) -> Result<(), Vec<FieldError>>;
}

impl<H: Handler> AnyHandler for H {
    fn run<'a>(&'a self, context: TaskContext, args: &str) -> Run<'a> {
        match read_args::<H>(args) {
            Ok(args) => Box::pin(Handler::run(self, context, args)),
            Err(faults) => {
                let words: Vec<String> = faults
                    .iter()
                    .map(|fault| format!("{} {}", fault.field, fault.reason))
                    .collect();
                let failure =
                    TaskFailure::discard(format!("the arguments do not fit: {}", words.join("; ")));
                Box::pin(std::future::ready(Err(failure)))
            }
        }
    }

    fn effect(&self, args: &str) -> Option<Effect> {
        Handler::effect(self, read_args::<H>(args).ok()?)
    }

    fn check(&self, args: &str) -> Result<(), Vec<FieldError>> {
        H::check(&read_args::<H>(args)?)
    }
}

fn read_args<H: Handler>(args: &str) -> Result<H::Args, Vec<FieldError>> {
    check::parse_json(args.as_bytes()).map_err(|error| {
        vec![match error {
            JsonError::Shape(fault) if fault.field.is_empty() => {
                FieldError::new("args", fault.reason)
            }
            JsonError::Shape(fault) => {
                FieldError::new(format!("args.{}", fault.field), fault.reason)
            }
            JsonError::Malformed(reason) => FieldError::new("args", reason),
        }]
    })
}

/// A built-in task, for people.
#[derive(Clone, Debug)]
pub struct HandlerInfo {
    /// What it is called.
    pub name: &'static str,
    /// Where it waits.
    pub queue: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Higher first.
    pub priority: u8,
    /// How often it is started at most.
    pub max_attempts: u32,
    /// Longest run.
    pub timeout_ms: i64,
    /// When it is told that it takes long.
    pub soft_timeout_ms: Option<i64>,
    /// How long to wait after a failure.
    pub retry_policy: RetryPolicy,
    /// JSON schema of its arguments.
    pub schema: serde_json::Value,
}

struct Known {
    handler: Box<dyn AnyHandler>,
    info: HandlerInfo,
}

/// The built-in tasks; cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<BTreeMap<&'static str, Known>>);

/// Collects the built-in tasks.
#[derive(Default)]
pub struct RegistryBuilder(BTreeMap<&'static str, Known>);

impl RegistryBuilder {
    /// Adds a handler.
    #[must_use]
    pub fn with<H: Handler>(mut self, handler: H) -> Self {
        debug_assert!(BUILT_IN_QUEUES.contains(&H::QUEUE), "{}", H::QUEUE);
        let info = HandlerInfo {
            name: H::NAME,
            queue: H::QUEUE,
            about: H::ABOUT,
            priority: H::PRIORITY,
            max_attempts: H::MAX_ATTEMPTS,
            timeout_ms: H::TIMEOUT_MS,
            soft_timeout_ms: H::SOFT_TIMEOUT_MS,
            retry_policy: H::RETRY_POLICY.unwrap_or_default(),
            schema: schemars::schema_for!(H::Args).into(),
        };
        let handler: Box<dyn AnyHandler> = Box::new(handler);
        let before = self.0.insert(H::NAME, Known { handler, info });
        debug_assert!(before.is_none(), "two handlers are called {}", H::NAME);
        self
    }

    /// Nothing more is added.
    pub fn build(self) -> Registry {
        Registry(Arc::new(self.0))
    }
}

/// What came from outside and is to become a task.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// What is to be done.
    pub name: String,
    /// Where it shall wait; `None` for the handler's own queue, or [`DEFAULT_QUEUE`].
    pub queue: Option<String>,
    /// JSON.
    pub args: String,
    /// Higher first.
    pub priority: Option<u8>,
    /// How often it may be started.
    pub max_attempts: Option<u32>,
    /// Longest run.
    pub timeout_ms: Option<i64>,
    /// When the handler is told that it takes long.
    pub soft_timeout_ms: Option<i64>,
    /// How long to wait after a failure.
    pub retry_policy: Option<RetryPolicy>,
}

impl Registry {
    /// To be filled.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// The built-in tasks, by name.
    pub fn infos(&self) -> impl Iterator<Item = &HandlerInfo> {
        self.0.values().map(|known| &known.info)
    }

    /// Names of the built-in tasks.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// What a task does, if that is a few quick statements and nothing else.
    pub(in crate::task) fn effect(&self, name: &str, args: &str) -> Option<Effect> {
        self.handler(name)?.effect(args)
    }

    pub(in crate::task) fn handler(&self, name: &str) -> Option<&dyn AnyHandler> {
        self.0.get(name).map(|known| &*known.handler)
    }

    /// Checks arguments against their handler's shape, where the task is built in.
    pub fn check_args(&self, name: &str, args: &str) -> Result<(), Vec<FieldError>> {
        self.handler(name)
            .map_or(Ok(()), |handler| handler.check(args))
    }

    /// Makes a task of what came from outside: fills in the handler's defaults, or the settings';
    /// refuses unknown names in built-in queues and arguments that don't fit.
    pub fn resolve(&self, rules: &config::Tasks, asked: Asked) -> Result<NewTask, TaskError> {
        let known = self.0.get(asked.name.as_str()).map(|known| &known.info);
        let queue = match (asked.queue, known) {
            (Some(queue), _) => queue,
            (None, Some(info)) => info.queue.to_owned(),
            (None, None) => DEFAULT_QUEUE.to_owned(),
        };
        let is_built_in = BUILT_IN_QUEUES.contains(&queue.as_str());
        if is_built_in && known.is_none() {
            let nearest = check::nearest(&asked.name, self.names());
            return Err(TaskError::UnknownTask {
                name: asked.name,
                nearest: nearest.map(str::to_owned),
            });
        }
        if is_built_in {
            self.check_args(&asked.name, &asked.args)
                .map_err(TaskError::Invalid)?;
        }
        let known = known.filter(|_| is_built_in);
        let mut new = NewTask::named(asked.name, queue, asked.args);
        new.max_attempts = asked
            .max_attempts
            .unwrap_or(known.map_or(rules.max_attempts, |info| info.max_attempts));
        let timeout = i64::try_from(rules.timeout_ms).unwrap_or(i64::MAX);
        new.timeout_ms = asked
            .timeout_ms
            .unwrap_or(known.map_or(timeout, |info| info.timeout_ms));
        new.soft_timeout_ms = asked
            .soft_timeout_ms
            .or(known.and_then(|info| info.soft_timeout_ms));
        new.priority = asked
            .priority
            .unwrap_or(known.map_or(PRIORITY_DEFAULT, |info| info.priority));
        new.retry_policy = asked
            .retry_policy
            .or(known.map(|info| info.retry_policy))
            .filter(|policy| *policy != RetryPolicy::Default);
        Ok(new)
    }

    /// Holds a task against the limits; for tasks that come from outside.
    pub fn check(
        &self,
        rules: &config::Tasks,
        now: Timestamp,
        new: &NewTask,
    ) -> Result<(), Vec<FieldError>> {
        let mut checks = Checks::new();
        checks.key("name", &new.name, 1, 200);
        queue_name(&mut checks, "queue", &new.queue);
        let fits = |text: &str, most: usize| text.len() <= most;
        checks.require(
            fits(&new.args, rules.args_bytes_max),
            "args",
            format!("may have {} bytes as JSON", rules.args_bytes_max),
        );
        checks.require(
            new.metadata
                .as_ref()
                .is_none_or(|text| fits(text, rules.metadata_bytes_max)),
            "metadata",
            format!("may have {} bytes as JSON", rules.metadata_bytes_max),
        );
        checks.range("max_attempts", new.max_attempts, 1, 1_000);
        // A setting or a handler may say less than a second.
        let seconds = |ms: i64| ms.saturating_add(999).div_euclid(1_000);
        let most = i64::try_from(rules.timeout_ms_max).unwrap_or(i64::MAX);
        checks.range("timeout_seconds", seconds(new.timeout_ms), 1, seconds(most));
        if let Some(soft) = new.soft_timeout_ms {
            let most = seconds(new.timeout_ms);
            checks.range("soft_timeout_seconds", seconds(soft), 1, most);
        }
        let longest = i64::try_from(rules.delay_seconds_max).unwrap_or(i64::MAX);
        if let Some(run_at) = new.run_at {
            checks.require(
                run_at <= latest_run_at(now, rules),
                "eta",
                format!("must be within {} seconds", rules.delay_seconds_max),
            );
        }
        if let Some(expires_at) = new.expires_at {
            checks.require(
                expires_at > new.run_at.unwrap_or(now),
                "expires_at",
                "must be after the time that it may start",
            );
        }
        if let Some(fault) = new.retry_policy.and_then(RetryPolicy::fault) {
            checks.require(false, "retry_policy", fault);
        }
        if let Some(seconds) = new.result_seconds {
            checks.range("result_seconds", seconds, 0, longest);
        }
        if let Some(unique) = &new.unique {
            checks.key("unique_key", &unique.key, 1, 255);
            if let Some(seconds) = unique.seconds {
                // The time until it may start need not be counted.
                let delay = new.run_at.map_or(0, |at| at.micros_since(now) / 1_000_000);
                let longest = longest.saturating_add(delay.max(0));
                checks.range("unique_seconds", seconds, 1, longest);
            }
        }
        if let Some(debounce) = &new.debounce {
            checks.key("debounce_key", &debounce.key, 1, 255);
            checks.require(
                new.unique.is_none() && new.after.is_empty(),
                "debounce_key",
                "does not go with unique_key or after",
            );
        }
        checks.require(
            new.after.len() <= 100,
            "after",
            "may name 100 tasks at most",
        );
        checks.finish()
    }
}

/// A queue's name is part of keys and labels: letters, digits and `_ . : -`.
pub fn queue_name(checks: &mut Checks, field: &str, name: &str) {
    checks.path_name(field, name);
}

/// Lines that wait to be written.
pub(super) type Lines = Arc<Mutex<Vec<(Timestamp, LogLevel, String)>>>;

/// What a running handler knows of its run, and may say.
#[derive(Clone)]
pub struct TaskContext {
    pub(in crate::task) tasks: Tasks,
    pub(super) started: Arc<Started>,
    pub(super) watch: Stopwatch,
    pub(super) cancelled: watch::Receiver<bool>,
    pub(super) lines: Lines,
}

impl TaskContext {
    /// Which task.
    pub fn id(&self) -> TaskId {
        self.started.id
    }

    /// Which run of it, from 1.
    pub fn attempt(&self) -> u32 {
        self.started.attempt
    }

    /// Whether no other attempt will follow a failure.
    pub fn is_last_attempt(&self) -> bool {
        self.started.attempt >= self.started.max_attempts
    }

    /// Everything about this run.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// JSON of whoever enqueued it.
    pub fn metadata(&self) -> Option<&str> {
        self.started.metadata.as_deref()
    }

    /// W3C trace context of whoever enqueued it.
    pub fn traceparent(&self) -> Option<&str> {
        self.started.traceparent.as_deref()
    }

    /// The record.
    pub fn store(&self) -> &Store {
        self.tasks.store()
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.tasks.clock().now()
    }

    /// Time until the run is ended.
    pub fn time_left(&self) -> Duration {
        limit(self.started.timeout_ms).saturating_sub(self.watch.elapsed())
    }

    /// Done when the run has taken as long as it should; never, if there is no such limit.
    pub async fn soft_limit(&self) {
        match self.started.soft_timeout_ms {
            Some(ms) => {
                tokio::time::sleep(limit(ms).saturating_sub(self.watch.elapsed())).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Done when somebody asked for the task to be cancelled.
    pub async fn cancelled(&self) {
        let mut cancelled = self.cancelled.clone();
        if cancelled.wait_for(|is| *is).await.is_err() {
            std::future::pending::<()>().await; // the run is over
        }
    }

    /// Whether somebody asked for the task to be cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Says how far it is. Not kept if the database has too much to do.
    pub async fn progress(&self, percent: u32, note: Option<&str>) {
        let note = note.map(str::to_owned);
        if let Err(error) = self
            .tasks
            .progress(self.id(), self.attempt(), percent, note)
            .await
        {
            tracing::debug!(%error, task = %self.id(), "progress was not kept");
        }
    }

    /// Adds a line to what the attempt leaves behind; written within a second, or when it ends.
    pub fn log(&self, level: LogLevel, line: impl Into<String>) {
        let mut lines = self.lines.lock();
        if lines.len() < self.tasks.rules().log_lines_max as usize {
            lines.push((self.now(), level, line.into()));
        }
    }
}

fn limit(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
