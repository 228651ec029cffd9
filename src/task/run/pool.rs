//! The workers in this process: they run the built-in tasks.
//!
//! Invariants: a bounded number of runs at once; a run's effect and the note that it is done commit
//! together; a panic or a time limit ends the run and nothing else; a run whose end could not be
//! written is tried until it can, or the process ends and the next start takes it back. At the stop
//! nothing new is begun, what runs may finish for a time, and what does not is handed back.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::handler::{BUILT_IN_QUEUES, Lines, TaskContext, TaskFailure, TaskOutcome, result_text};
use crate::clock::Stopwatch;
use crate::config::ms;
use crate::monitor::statements::{Called, StatementCaller, called_by};
use crate::store::StoreError;
use crate::task::{
    AttemptOutcome, Changes, Failure, LogLevel, Started, TaskError, Tasks, append_logs, complete,
    fail, release, snooze,
};

/// Tasks started in one transaction.
const START_AT_ONCE: usize = 64;
/// How long to wait after the database, or the delivery, could not do more.
const PAUSE: Duration = Duration::from_millis(100);
/// Writes of others that may be under way before tasks give way to them, ...
const GIVE_WAY_FROM: usize = 32;
/// ... looking again so often, ...
const GIVE_WAY_STEP: Duration = Duration::from_millis(5);
/// ... and for this long at most: a rush that does not end must not keep tasks from being done.
const GIVE_WAY_MOST: Duration = Duration::from_millis(100);
/// How often log lines of running tasks are written.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// The workers.
pub struct Pool {
    tasks: Tasks,
    places: Arc<Semaphore>,
    workers: usize,
}

/// Why a run could not be noted as done.
enum FinishError {
    /// Another holds the task now, or nobody.
    Refused(TaskError),
    /// Its effect failed.
    Failed(TaskFailure),
    /// The database.
    Store(StoreError),
}

impl From<StoreError> for FinishError {
    fn from(error: StoreError) -> Self {
        FinishError::Store(error)
    }
}

impl From<TaskError> for FinishError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Store(error) => FinishError::Store(error),
            other => FinishError::Refused(other),
        }
    }
}

impl StatementCaller for Started {
    fn what(&self) -> String {
        format!("task {}", self.name)
    }

    fn id(&self) -> String {
        self.id.to_string()
    }

    fn trace(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }
}

impl Pool {
    /// With as many workers as the settings say.
    pub fn new(tasks: Tasks) -> Self {
        let workers = tasks.rules().workers;
        Self {
            places: Arc::new(Semaphore::new(workers)),
            workers,
            tasks,
        }
    }

    /// Runs until `stopped` turns true, and then until what runs is over.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        if self.workers == 0 {
            return;
        }
        let mut queues: Vec<String> = BUILT_IN_QUEUES
            .iter()
            .map(|queue| (*queue).to_owned())
            .collect();
        let (end, ended) = watch::channel(false);
        loop {
            let begun = tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => break,
                begun = self.begin(&queues, &ended) => begun,
            };
            // Another queue is first the next time, so that none starves.
            queues.rotate_left(1);
            if let Err(error) = begun {
                tracing::warn!(%error, "tasks could not be started; it is tried again");
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => break,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
        let grace = ms(self.tasks.rules().shutdown_grace_ms);
        let all = u32::try_from(self.workers).unwrap_or(u32::MAX);
        if tokio::time::timeout(grace, self.places.acquire_many(all))
            .await
            .is_err()
        {
            tracing::warn!("the grace was over; running tasks are handed back");
            end.send_replace(true);
            // What can't even be handed back is taken back by the next start.
            let _late = tokio::time::timeout(grace, self.places.acquire_many(all)).await;
        }
    }

    /// Lets customers' writes go first: while a sale runs, what follows from it can wait a moment.
    async fn give_way(&self, permits: usize) {
        let watch = Stopwatch::start();
        // Its own runs write as well: that many are no sign of a rush.
        let free = self.places.available_permits() + permits;
        let own = self.workers.saturating_sub(free);
        while self.tasks.store().writes_under_way() > own + GIVE_WAY_FROM
            && watch.elapsed() < GIVE_WAY_MOST
        {
            tokio::time::sleep(GIVE_WAY_STEP).await;
        }
    }

    /// Waits for free places and for tasks, starts them and lets them run.
    async fn begin(
        &self,
        queues: &[String],
        ended: &watch::Receiver<bool>,
    ) -> Result<(), TaskError> {
        let closed = |_| TaskError::Stopped;
        let first = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(closed)?;
        let mut permits = vec![first];
        while permits.len() < START_AT_ONCE
            && let Ok(permit) = Arc::clone(&self.places).try_acquire_owned()
        {
            permits.push(permit);
        }
        self.give_way(permits.len()).await;
        let entries = self
            .tasks
            .take(queues.into(), permits.len(), true)?
            .wait()
            .await?;
        permits.truncate(entries.len());
        let (tasks, ended) = (self.tasks.clone(), ended.clone());
        // On a task of its own, so that the next ones are looked for while these are committed.
        tokio::spawn(async move {
            match tasks.start(entries).await {
                Ok(starts) => {
                    for (started, permit) in starts.into_iter().zip(permits) {
                        let started = Arc::new(started);
                        let caller = Arc::clone(&started) as Called;
                        let run = run_one(tasks.clone(), started, ended.clone(), permit);
                        tokio::spawn(called_by(caller, run));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "tasks could not be started; they wait again");
                    tokio::time::sleep(PAUSE).await;
                    drop(permits);
                }
            }
        });
        Ok(())
    }
}

async fn run_one(
    tasks: Tasks,
    started: Arc<Started>,
    mut ended: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) {
    let (cancel, cancelled) = watch::channel(false);
    tasks.running().lock().insert(started.id, cancel);
    let lines: Lines = Arc::new(Mutex::new(Vec::new()));
    let context = TaskContext {
        tasks: tasks.clone(),
        started: Arc::clone(&started),
        watch: Stopwatch::start(),
        cancelled: cancelled.clone(),
        lines: Arc::clone(&lines),
    };
    fail::fail_point!("task.run");
    let outcome = tokio::select! {
        outcome = handle(&tasks, context) => Some(outcome),
        () = flush_lines(&tasks, &started, &lines) => None,
        _ = ended.wait_for(|end| *end) => None,
    };
    match outcome {
        Some(outcome) => finish(&tasks, &started, outcome, &lines).await,
        None => {
            if let Err(error) = hand_back(&tasks, &started).await {
                tracing::warn!(%error, task = %started.id, "a running task could not be handed back");
            }
        }
    }
    tasks.running().lock().remove(&started.id);
    drop(permit);
}

/// Runs the handler within its limits.
async fn handle(tasks: &Tasks, context: TaskContext) -> Result<TaskOutcome, Failure> {
    let started = Arc::clone(&context.started);
    let Some(handler) = tasks.registry().handler(&started.name) else {
        return Err(Failure {
            is_final: true,
            ..Failure::new(format!("this server knows no task {}", started.name))
        });
    };
    let limit = Duration::from_millis(u64::try_from(started.timeout_ms).unwrap_or(0));
    let run = AssertUnwindSafe(async { handler.run(context, &started.args).await }).catch_unwind();
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(Ok(outcome))) => Ok(outcome),
        Ok(Ok(Err(failure))) => Err(as_failure(failure)),
        Ok(Err(panic)) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!(task = started.name, id = %started.id, text, "a task panicked");
            Err(Failure::new(format!("it panicked: {text}")))
        }
        Err(_) => Err(Failure {
            outcome: AttemptOutcome::TimedOut,
            ..Failure::new(format!("it ran longer than {} ms", started.timeout_ms))
        }),
    }
}

fn as_failure(failure: TaskFailure) -> Failure {
    Failure {
        is_final: failure.is_final,
        retry_after_ms: failure
            .retry_after
            .map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)),
        ..Failure::new(failure.error)
    }
}

/// Writes log lines now and then. Never done.
async fn flush_lines(tasks: &Tasks, started: &Started, lines: &Lines) {
    loop {
        tokio::time::sleep(FLUSH_EVERY).await;
        let some = std::mem::take(&mut *lines.lock());
        if some.is_empty() {
            continue;
        }
        let (rules, id, attempt) = (Arc::clone(tasks.rules()), started.id, started.attempt);
        let kept = tasks
            .store()
            .write(move |tx| append_logs(tx, &rules, id, attempt, &some))
            .await;
        if let Err(error) = kept {
            tracing::debug!(%error, task = %id, "log lines were not kept");
        }
    }
}

async fn hand_back(tasks: &Tasks, started: &Started) -> Result<(), TaskError> {
    let (now, id, attempt) = (tasks.now(), started.id, started.attempt);
    tasks
        .change_patiently(move |tx| Ok(((), release(tx, now, id, attempt)?)))
        .await
}

/// Notes how a run ended, until that is on disk or no longer true.
async fn finish(
    tasks: &Tasks,
    started: &Started,
    outcome: Result<TaskOutcome, Failure>,
    lines: &Lines,
) {
    let (id, attempt) = (started.id, started.attempt);
    let mut failure = match outcome {
        Ok(outcome) => {
            let some = std::mem::take(&mut *lines.lock());
            match note_success(tasks, started, outcome, some).await {
                Ok(()) => return,
                Err(FinishError::Refused(error)) => {
                    tracing::debug!(%error, task = %id, "a run ended too late");
                    return;
                }
                Err(FinishError::Failed(failure)) => as_failure(failure),
                Err(FinishError::Store(StoreError::Panicked(text))) => {
                    Failure::new(format!("its effect panicked: {text}"))
                }
                // Whether it was committed may not be known; if it was, the failure is fenced.
                Err(FinishError::Store(error)) => Failure {
                    retry_after_ms: Some(1_000),
                    ..Failure::new(format!("its end could not be written: {error}"))
                },
            }
        }
        Err(failure) => failure,
    };
    let some = std::mem::take(&mut *lines.lock());
    let mut lines = Some(some);
    loop {
        let (now, rules) = (tasks.now(), Arc::clone(tasks.rules()));
        let (said, log) = (failure.clone(), lines.clone().unwrap_or_default());
        let noted = tasks
            .change_patiently(move |tx| {
                append_logs(tx, &rules, id, attempt, &log)?;
                Ok::<_, TaskError>(((), fail(tx, now, &rules, id, attempt, &said)?))
            })
            .await;
        match noted {
            Ok(()) => return,
            Err(TaskError::Store(StoreError::Stopped)) => return,
            Err(TaskError::Store(error)) => {
                tracing::warn!(%error, task = %id, "a failed run could not be noted; it is tried again");
                if let StoreError::Constraint(_) | StoreError::Unique(_) | StoreError::Bug(_) =
                    error
                {
                    // Whatever is wrong with the text, the failure itself must be noted.
                    failure.error = "it failed, and its error could not be written".to_owned();
                    lines = None;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                tracing::debug!(%error, task = %id, "a run failed too late");
                return;
            }
        }
    }
}

async fn note_success(
    tasks: &Tasks,
    started: &Started,
    outcome: TaskOutcome,
    lines: Vec<(crate::clock::Timestamp, LogLevel, String)>,
) -> Result<(), FinishError> {
    let (id, attempt) = (started.id, started.attempt);
    let (now, rules) = (tasks.now(), Arc::clone(tasks.rules()));
    tasks
        .change_patiently(move |tx| {
            let committed;
            let result = match &outcome {
                TaskOutcome::Done(result) => result.as_ref(),
                TaskOutcome::Commit(effect) => {
                    committed = effect(tx, now).map_err(FinishError::Failed)?;
                    committed.as_ref()
                }
                TaskOutcome::Snooze(wait) => {
                    append_logs(tx, &rules, id, attempt, &lines)?;
                    let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
                    return Ok(((), snooze(tx, now, &rules, id, attempt, wait)?));
                }
            };
            append_logs(tx, &rules, id, attempt, &lines)?;
            let text = result_text(&rules, result).map_err(FinishError::Failed)?;
            let changes: Changes = complete(tx, now, &rules, id, attempt, text.as_deref())?;
            Ok(((), changes))
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::clock::Clock;
    use crate::config;
    use crate::monitor::Metrics;
    use crate::store::Store;
    use crate::task::{
        self, Attempt, Effect, Enqueued, Handler, LogLine, NewTask, Registry, RetryPolicy, Task,
        TaskId, TaskState,
    };

    /// Does what its arguments say.
    struct Odd {
        effects: Arc<AtomicU32>,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct OddArgs {
        what: String,
    }

    impl Handler for Odd {
        type Args = OddArgs;
        const NAME: &'static str = "odd";
        const QUEUE: &'static str = "maintenance";
        const ABOUT: &'static str = "For tests.";
        const MAX_ATTEMPTS: u32 = 2;
        const TIMEOUT_MS: i64 = 2_000;
        const SOFT_TIMEOUT_MS: Option<i64> = Some(10);
        const RETRY_POLICY: Option<RetryPolicy> = Some(RetryPolicy::Fixed { delay_ms: 1 });

        fn effect(&self, args: OddArgs) -> Option<Effect> {
            let effects = Arc::clone(&self.effects);
            Some(match args.what.as_str() {
                "at once" => Box::new(move |_, _| {
                    effects.fetch_add(1, Ordering::AcqRel);
                    Ok(Some(serde_json::json!("quick")))
                }),
                "at once fails" => Box::new(|_, _| Err(TaskFailure::discard("no"))),
                "at once panics" => Box::new(|_, _| panic!("in the effect")),
                _ => return None,
            })
        }

        async fn run(
            &self,
            context: TaskContext,
            args: OddArgs,
        ) -> Result<TaskOutcome, TaskFailure> {
            if let Some(effect) = self.effect(OddArgs {
                what: args.what.clone(),
            }) {
                return Ok(TaskOutcome::Commit(effect));
            }
            let effects = Arc::clone(&self.effects);
            context.log(LogLevel::Info, format!("attempt {}", context.attempt()));
            match args.what.as_str() {
                "done" => Ok(TaskOutcome::Done(Some(serde_json::json!({"odd": 1})))),
                "commit" => Ok(TaskOutcome::commit(move |_, _| {
                    effects.fetch_add(1, Ordering::AcqRel);
                    Ok(None)
                })),
                "commit fails" => Ok(TaskOutcome::commit(|_, _| Err(TaskFailure::discard("no")))),
                "commit panics" => Ok(TaskOutcome::commit(|_, _| panic!("in the effect"))),
                "fails" => Err(TaskFailure::retry("always")),
                "panics" => panic!("on purpose"),
                "hangs" => std::future::pending().await,
                "soft" => {
                    context.soft_limit().await;
                    context.progress(70, Some("told")).await;
                    Ok(TaskOutcome::Done(None))
                }
                "cancelled" => {
                    context.cancelled().await;
                    Err(TaskFailure::retry("stopped"))
                }
                "snoozes" if context.attempt() < 4 => {
                    Ok(TaskOutcome::Snooze(Duration::from_millis(1)))
                }
                "too large" => Ok(TaskOutcome::Done(Some("x".repeat(100_000).into()))),
                _ => Ok(TaskOutcome::Done(None)),
            }
        }
    }

    struct World {
        tasks: Tasks,
        effects: Arc<AtomicU32>,
        stop: watch::Sender<bool>,
        pool: tokio::task::JoinHandle<()>,
        /// Enqueued before the handle was made.
        before: Vec<TaskId>,
        _dir: tempfile::TempDir,
    }

    fn odd(what: &str) -> NewTask {
        let args = OddArgs {
            what: what.to_owned(),
        };
        NewTask::of::<Odd>(&args).expect("a task")
    }

    impl World {
        async fn open(change: impl FnOnce(&mut config::Tasks)) -> Self {
            Self::open_with(change, &[]).await
        }

        async fn open_with(change: impl FnOnce(&mut config::Tasks), before: &[&str]) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let metrics = Metrics::new().expect("metrics");
            let database = config::Database::default();
            let path = dir.path().join("onrush.db");
            let store = Store::open(&path, &database, metrics.clone(), |_| ()).expect("a store");
            let effects = Arc::new(AtomicU32::new(0));
            let registry = Registry::builder()
                .with(Odd {
                    effects: Arc::clone(&effects),
                })
                .build();
            let mut rules = config::Tasks::default();
            change(&mut rules);
            let clock = Clock::system();
            let mut made = Vec::new();
            for what in before {
                let (now, new) = (clock.now(), odd(what));
                let one = store.write(move |tx| task::enqueue(tx, now, &new)).await;
                made.push(one.expect("enqueued").id());
            }
            let tasks = Tasks::new(store, clock, Arc::new(rules), metrics, registry);
            tasks.deliver(dir.path().join("queue")).expect("delivery");
            let (stop, stopped) = watch::channel(false);
            let pool = tokio::spawn(Pool::new(tasks.clone()).run(stopped));
            Self {
                tasks,
                effects,
                stop,
                pool,
                before: made,
                _dir: dir,
            }
        }

        async fn enqueue(&self, what: &str) -> TaskId {
            let made = self.tasks.enqueue(odd(what)).await.expect("enqueued");
            assert!(matches!(made, Enqueued::New(_)));
            made.id()
        }

        async fn look(&self, id: TaskId) -> (Task, Vec<Attempt>, Vec<LogLine>) {
            let now = self.tasks.now();
            let found = self.tasks.store().read(move |tx| task::get(tx, now, id));
            found.await.expect("a task")
        }

        async fn until(&self, id: TaskId, state: TaskState) -> (Task, Vec<Attempt>, Vec<LogLine>) {
            let watch = Stopwatch::start();
            loop {
                let found = self.look(id).await;
                if found.0.state == state {
                    return found;
                }
                assert!(watch.elapsed() < Duration::from_secs(30), "{:?}", found.0);
                tokio::task::yield_now().await;
            }
        }

        async fn close(self) {
            self.stop.send_replace(true);
            self.pool.await.expect("the pool ends");
            let tasks = self.tasks.clone();
            tokio::task::spawn_blocking(move || {
                tasks.stop();
                tasks.store().close();
            })
            .await
            .expect("closed");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_run_ends_as_its_handler_says_and_never_worse() {
        let place = World::open(|_| ()).await;
        let (done, attempts, logs) = place
            .until(place.enqueue("done").await, TaskState::Completed)
            .await;
        assert_eq!(done.result.as_deref(), Some("{\"odd\":1}"));
        assert_eq!((attempts.len(), logs[0].line.as_str()), (0, "attempt 1"));
        place
            .until(place.enqueue("commit").await, TaskState::Completed)
            .await;
        assert_eq!(place.effects.load(Ordering::Acquire), 1);
        for (what, error, runs) in [
            ("at once fails", "no", 1),
            ("at once panics", "its effect panicked: in the effect", 2),
            ("commit fails", "no", 1),
            ("commit panics", "its effect panicked: in the effect", 2),
            ("fails", "always", 2),
            ("panics", "it panicked: on purpose", 2),
            ("too large", "its result is larger than 65536 bytes", 1),
        ] {
            let (task, attempts, logs) = place
                .until(place.enqueue(what).await, TaskState::Discarded)
                .await;
            assert_eq!(task.error.as_deref(), Some(error));
            assert_eq!(
                (task.attempt, attempts.len()),
                (runs, runs as usize),
                "{what}"
            );
            assert!(
                !logs.is_empty()
                    || what.contains("commit")
                    || what.contains("at once")
                    || what == "too large"
            );
        }
        let (soft, _, _) = place
            .until(place.enqueue("soft").await, TaskState::Completed)
            .await;
        assert_eq!(
            (soft.progress, soft.progress_note.as_deref()),
            (Some(70), Some("told"))
        );
        let (snoozed, attempts, _) = place
            .until(place.enqueue("snoozes").await, TaskState::Completed)
            .await;
        assert_eq!(
            (snoozed.attempt, snoozed.max_attempts, attempts.len()),
            (4, 5, 3)
        );
        let (hung, attempts, _) = place
            .until(place.enqueue("hangs").await, TaskState::Discarded)
            .await;
        assert_eq!(attempts[0].outcome, AttemptOutcome::TimedOut);
        assert_eq!(hung.error.as_deref(), Some("it ran longer than 2000 ms"));
        place.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_running_task_is_cancelled_and_at_the_stop_handed_back() {
        let place = World::open(|rules| rules.shutdown_grace_ms = 50).await;
        let id = place.enqueue("cancelled").await;
        place.until(id, TaskState::Running).await;
        place.tasks.cancel(id).await.expect("asked");
        place.until(id, TaskState::Cancelled).await;
        let id = place.enqueue("cancelled").await;
        place.until(id, TaskState::Running).await;
        place.stop.send_replace(true);
        let (back, attempts, _) = place.until(id, TaskState::Available).await;
        assert_eq!((back.attempt, back.crashes, back.max_attempts), (1, 0, 3));
        assert_eq!(attempts[0].outcome, AttemptOutcome::Released);
        place.close().await;
    }

    /// One from before this process began may be what ended the one before: its start is written.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_only_writes_is_done_at_once_unless_it_is_from_before() {
        let place = World::open_with(|_| (), &["at once"]).await;
        let new = place.enqueue("at once").await;
        let (new, attempts, _) = place.until(new, TaskState::Completed).await;
        assert_eq!((new.attempt, attempts.len()), (1, 0));
        assert_eq!(new.result.as_deref(), Some("\"quick\""));
        assert_eq!(new.attempted_at, new.finished_at);
        let old = place.before[0];
        let (old, _, _) = place.until(old, TaskState::Completed).await;
        assert_eq!(old.attempt, 1);
        assert!(old.attempted_at < old.finished_at);
        assert_eq!(place.effects.load(Ordering::Acquire), 2);
        place.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_are_done_once_each() {
        let place = World::open(|rules| rules.index_memory_max = 100).await;
        let ids: Vec<TaskId> =
            futures_util::future::join_all((0..2_000).map(|_| place.enqueue("commit"))).await;
        for id in ids {
            let (task, _, _) = place.until(id, TaskState::Completed).await;
            assert_eq!(task.attempt, 1);
        }
        assert_eq!(place.effects.load(Ordering::Acquire), 2_000);
        place.close().await;
    }
}
