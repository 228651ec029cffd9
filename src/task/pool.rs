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

use super::handler::{BUILT_IN_QUEUES, Lines, Outcome, TaskContext, TaskFailure};
use super::{
    AttemptOutcome, Changes, Failure, Started, TaskError, Tasks, append_logs, complete, fail,
    release, snooze,
};
use crate::clock::Stopwatch;
use crate::config::ms;
use crate::store::StoreError;

/// Tasks started in one transaction.
const START_AT_ONCE: usize = 64;
/// How long to wait after the database, or the delivery, could not do more.
const PAUSE: Duration = Duration::from_millis(100);
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
        let entries = self
            .tasks
            .take(queues.into(), permits.len())?
            .wait()
            .await?;
        permits.truncate(entries.len());
        let (tasks, ended) = (self.tasks.clone(), ended.clone());
        // On a task of its own, so that the next ones are looked for while these are committed.
        tokio::spawn(async move {
            let worker = Arc::clone(tasks.worker());
            match tasks.start(entries, &worker, None).await {
                Ok(starts) => {
                    for (started, permit) in starts.into_iter().zip(permits) {
                        tokio::spawn(run_one(tasks.clone(), started, ended.clone(), permit));
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
    started: Started,
    mut ended: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) {
    let started = Arc::new(started);
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
async fn handle(tasks: &Tasks, context: TaskContext) -> Result<Outcome, Failure> {
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
    outcome: Result<Outcome, Failure>,
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
                if let StoreError::Constraint(_) | StoreError::Bug(_) = error {
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
    outcome: Outcome,
    lines: Vec<(crate::clock::Timestamp, super::LogLevel, String)>,
) -> Result<(), FinishError> {
    let (id, attempt) = (started.id, started.attempt);
    let (now, rules) = (tasks.now(), Arc::clone(tasks.rules()));
    tasks
        .change_patiently(move |tx| {
            let result = match outcome {
                Outcome::Done(result) => result,
                Outcome::Commit(effect) => effect(tx, now).map_err(FinishError::Failed)?,
                Outcome::Snooze(wait) => {
                    append_logs(tx, &rules, id, attempt, &lines)?;
                    let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
                    return Ok(((), snooze(tx, now, id, attempt, wait)?));
                }
            };
            append_logs(tx, &rules, id, attempt, &lines)?;
            let text = result.map(|value| value.to_string());
            if text
                .as_ref()
                .is_some_and(|text| text.len() > rules.result_bytes_max)
            {
                return Err(FinishError::Failed(TaskFailure::discard(format!(
                    "its result is larger than {} bytes",
                    rules.result_bytes_max
                ))));
            }
            let changes: Changes = complete(tx, now, &rules, id, attempt, text.as_deref())?;
            Ok(((), changes))
        })
        .await
}
