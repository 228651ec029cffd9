//! What clients ask for, one function each.
//!
//! Invariants: a command is answered once what it changed is on disk; it is one transaction, or
//! several that each stand for themselves; whatever is not understood is refused and changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::sleep;

use super::job::{self, Job, Kept, LastFailure, Pushed, open_queue};
use super::wire::{Answer, Wire};
use super::workers::{NAMED, NAMELESS, WorkerState};
use super::{Inner, Refused, Stage, mutate};
use crate::check::{self, Checks, JsonError};
use crate::clock::{Stopwatch, Timestamp};
use crate::config::ms;
use crate::store::{StoreError, Tx};
use crate::task::external::{self, ExternalTask};
use crate::task::{
    self, AttemptOutcome, Changes, DEFAULT_QUEUE, Enqueued, Failure, Handing, LogLevel, NewTask,
    Started, TaskError, TaskState, add_to_batch, append_logs, enqueue, fail, open_batch, progress,
    queue_name, seal_batch, shortened,
};

/// Lines of a backtrace that are kept at most.
const BACKTRACE_LINES_MAX: usize = 50;
const ERRTYPE_CHARS_MAX: usize = 100;
/// What INFO says the server's version is: the one whose commands these are.
const FAKTORY_VERSION: &str = "1.9.0";
/// Commands that are labels of metrics; anything else is `other`.
const COMMANDS: &[&str] = &[
    "PUSH", "PUSHB", "FETCH", "ACK", "FAIL", "BEAT", "INFO", "FLUSH", "MUTATE", "QUEUE", "TRACK",
    "BATCH", "END",
];

/// A client that was admitted.
pub(super) struct Session {
    inner: Arc<Inner>,
    /// Its worker's name for itself; a mere producer has none.
    wid: Option<String>,
    /// The name under which it runs tasks.
    worker: String,
    /// Jobs that a client without a name has.
    jobs: std::sync::atomic::AtomicU32,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(wid) = &self.wid {
            self.inner
                .workers
                .leave(self.inner.tasks.clock().now(), wid);
        }
    }
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Invalid(why.into()))
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Refused> {
    serde_json::from_str(text).or_else(|error| invalid(format!("invalid JSON: {error}")))
}

/// Reads what is kept: jobs. A number that would not come back as it is is refused.
fn read_kept<T: DeserializeOwned>(text: &str) -> Result<T, Refused> {
    check::parse_kept_json(text.as_bytes()).or_else(|error| {
        invalid(match error {
            JsonError::Malformed(reason) => format!("invalid JSON: {reason}"),
            JsonError::Shape(fault) => format!("invalid JSON: {} {}", fault.field, fault.reason),
        })
    })
}

/// The id of a job that could not be read; empty where it has none.
fn jid_in(text: &str) -> String {
    read::<Reference>(text).map_or_else(|_| String::new(), |job| job.jid)
}

/// What came of an answer to a job.
enum Ended {
    Done,
    /// The run is over: another has the job, or nobody.
    Stale,
    Unknown,
}

impl Session {
    pub(super) fn new(inner: Arc<Inner>, wid: Option<String>) -> Self {
        let worker = wid
            .as_ref()
            .map_or_else(|| NAMELESS.to_owned(), |wid| format!("{NAMED}{wid}"));
        Self {
            inner,
            wid,
            worker,
            jobs: std::sync::atomic::AtomicU32::new(0),
        }
    }

    fn now(&self) -> Timestamp {
        self.inner.tasks.clock().now()
    }

    /// Whether it, or its worker over another connection, has jobs that it did not report on.
    pub(super) fn has_jobs(&self) -> bool {
        match &self.wid {
            Some(wid) => self.inner.workers.has_jobs(wid),
            None => self.jobs.load(Ordering::Relaxed) > 0,
        }
    }

    fn count_job(&self, is_more: bool) {
        match &self.wid {
            Some(wid) => self.inner.workers.count_job(wid, is_more),
            None if is_more => {
                self.jobs.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                let less = |jobs: u32| Some(jobs.saturating_sub(1));
                // The closure always gives a value.
                let _was = self
                    .jobs
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            }
        }
    }

    /// Obeys a command and answers it; `false` when the conversation is over.
    pub(super) async fn obey<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        wire: &mut Wire<S>,
        line: &str,
        stage: &mut watch::Receiver<Stage>,
    ) -> bool {
        Inner::count_up(&self.inner.counts.commands);
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        let mut run = None;
        let answered = match verb {
            "PUSH" => self.push(rest).await,
            "PUSHB" => self.push_bulk(rest).await,
            "FETCH" => match self.fetch(wire, rest, stage).await {
                Ok(Fetched::Run(started, text)) => {
                    run = Some(started);
                    Ok(Answer::Bulk(text))
                }
                Ok(Fetched::Nothing) => Ok(Answer::Null),
                Ok(Fetched::Gone) => return false,
                Err(error) => Err(error),
            },
            "ACK" => self.ack(rest).await,
            "FAIL" => self.fail(rest).await,
            "BEAT" => self.beat(rest),
            "INFO" => self.info().await,
            "FLUSH" => invalid(
                "FLUSH is refused: this server holds more than jobs; MUTATE clears sets of them",
            ),
            "MUTATE" => self.mutate(rest).await,
            "QUEUE" => self.queue(rest).await,
            "TRACK" => self.track(rest).await,
            "BATCH" => self.batch(rest).await,
            "END" => Ok(Answer::Ok),
            _ => invalid(format!(
                "unknown command {}",
                verb.chars().take(40).collect::<String>()
            )),
        };
        let outcome = if answered.is_ok() { "ok" } else { "error" };
        self.count_command(verb, outcome);
        let answer = answered.unwrap_or_else(Refused::answer);
        let is_heard = wire.say(&answer).await.is_ok();
        if let (Some(started), false) = (run, is_heard) {
            self.give_back(&started).await;
        }
        is_heard && verb != "END"
    }

    fn count_command(&self, verb: &str, outcome: &str) {
        let known = COMMANDS.iter().find(|known| **known == verb);
        self.inner
            .metrics
            .faktory_commands_total
            .with_label_values(&[known.unwrap_or(&"other"), outcome])
            .inc();
    }

    async fn push(&self, rest: &str) -> Result<Answer, Refused> {
        let (now, job) = (self.now(), read_kept::<Job>(rest)?);
        let pushed = job.read(&self.inner.tasks, now)?;
        let tasks = &self.inner.tasks;
        tasks
            .enqueue_in(move |tx, handing| push_in(tx, now, &pushed, Some(handing)))
            .await?;
        Ok(Answer::Ok)
    }

    async fn push_bulk(&self, rest: &str) -> Result<Answer, Refused> {
        let (now, all) = (self.now(), read::<Vec<&RawValue>>(rest)?);
        let mut errors = serde_json::Map::new();
        let mut pushed = Vec::with_capacity(all.len());
        for job in all {
            let read = read_kept::<Job>(job.get()).and_then(|job| job.read(&self.inner.tasks, now));
            match read {
                Ok(job) => pushed.push(job),
                Err(error) => {
                    errors.insert(jid_in(job.get()), text(error).into());
                }
            }
        }
        let most = self.inner.tasks.rules().batch_tasks_max;
        while !pushed.is_empty() {
            let rest = pushed.split_off(pushed.len().min(most));
            let part = std::mem::replace(&mut pushed, rest);
            let store = self.inner.tasks.store();
            let refused = store
                .write(move |tx| {
                    let mut refused = Vec::new();
                    for job in &part {
                        match push_in(tx, now, job, None) {
                            Ok(()) => {}
                            // Neither has left anything behind.
                            Err(error @ (Refused::NotUnique | Refused::NoBatch(_))) => {
                                refused.push((job.jid.clone(), error));
                            }
                            Err(error) => return Err(error),
                        }
                    }
                    Ok::<_, Refused>(refused)
                })
                .await?;
            for (jid, error) in refused {
                errors.insert(jid, text(error).into());
            }
        }
        Ok(Answer::Bulk(Value::Object(errors).to_string()))
    }

    async fn fetch<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        wire: &mut Wire<S>,
        rest: &str,
        stage: &mut watch::Receiver<Stage>,
    ) -> Result<Fetched, Refused> {
        let queues = self.queues(rest)?;
        let settings = &self.inner.settings;
        let (wait, most) = (ms(settings.fetch_wait_ms), settings.command_bytes_max);
        let state = self
            .wid
            .as_ref()
            .map_or(WorkerState::Running, |wid| self.inner.workers.state(wid));
        let is_draining = *stage.borrow() != Stage::Run;
        if state != WorkerState::Running || is_draining {
            return Ok(tokio::select! {
                () = sleep(wait) => Fetched::Nothing,
                () = wire.gone(most) => Fetched::Gone,
                _ = stage.wait_for(|stage| *stage != Stage::Run), if !is_draining => Fetched::Nothing,
            });
        }
        let watch = Stopwatch::start();
        // As long as the job may take: each job says so itself.
        let lease_ms = i64::try_from(self.inner.tasks.rules().timeout_ms_max).unwrap_or(i64::MAX);
        let fetched = tokio::select! {
            fetched = self.inner.tasks.fetch(&queues, &self.worker, lease_ms, wait) => fetched?,
            () = wire.gone(most) => return Ok(Fetched::Gone),
            _ = stage.wait_for(|stage| *stage != Stage::Run) => return Ok(Fetched::Nothing),
        };
        let Some(started) = fetched else {
            // Sent away early, because the server is about to stop: a client must not spin.
            let left = wait.saturating_sub(watch.elapsed());
            return Ok(tokio::select! {
                () = sleep(left) => Fetched::Nothing,
                () = wire.gone(most) => Fetched::Gone,
                _ = stage.wait_for(|stage| *stage != Stage::Run) => Fetched::Nothing,
            });
        };
        self.count_job(true);
        let printed = match self.last_failure(&started).await {
            Ok(failure) => job::of_run(&started, failure),
            Err(error) => Err(error),
        };
        match printed {
            Ok(text) => Ok(Fetched::Run(Box::new(started), text)),
            Err(error) => {
                self.give_back(&started).await;
                Err(error)
            }
        }
    }

    async fn give_back(&self, started: &Started) {
        self.count_job(false);
        let released = self.inner.tasks.release(started.id, started.attempt).await;
        if let Err(error) = released {
            // Its lease runs out.
            tracing::warn!(%error, task = %started.id, "a job that nobody took could not be given back");
        }
    }

    async fn last_failure(&self, started: &Started) -> Result<Option<LastFailure>, Refused> {
        if started.attempt <= 1 {
            return Ok(None);
        }
        let (id, store) = (started.id, self.inner.tasks.store());
        let last = store
            .point(move |tx| external::last_failure(tx, id).map_err(Refused::from))
            .await?;
        Ok(last.map(|(failed_at, message)| LastFailure {
            // The first failure is retry 0.
            retry_count: started.attempt.saturating_sub(2),
            retry_remaining: started.max_attempts.saturating_sub(started.attempt) + 1,
            failed_at,
            next_at: None,
            message,
            errtype: "unknown",
        }))
    }

    /// Queues as a command names them.
    fn queues(&self, rest: &str) -> Result<Vec<String>, Refused> {
        let mut queues: Vec<String> = Vec::new();
        for name in rest.split_ascii_whitespace() {
            // Some clients name a queue several times, the more the heavier it weighs.
            if !queues.iter().any(|queue| queue == name) {
                queues.push(name.to_owned());
            }
            if queues.len() > self.inner.settings.queues_max {
                return invalid(format!(
                    "{} queues may be named at most",
                    self.inner.settings.queues_max
                ));
            }
        }
        if queues.is_empty() {
            queues.push(DEFAULT_QUEUE.to_owned());
        }
        let mut checks = Checks::new();
        for queue in &queues {
            queue_name(&mut checks, "queue", queue);
            open_queue(queue)?;
        }
        checks.finish().map_err(TaskError::Invalid)?;
        Ok(queues)
    }

    async fn ack(&self, rest: &str) -> Result<Answer, Refused> {
        let Ok(Reference { jid }) = read::<Reference>(rest) else {
            return invalid(format!("invalid ACK {}", beginning(rest)));
        };
        let (now, worker) = (self.now(), self.worker.clone());
        let rules = Arc::clone(self.inner.tasks.rules());
        let asked = jid.clone();
        let ended = self
            .inner
            .tasks
            .change(move |tx| match running(tx, &asked, &worker)? {
                Ok(found) => {
                    let changes = external::complete(tx, now, &rules, found)?;
                    Ok((Ended::Done, changes))
                }
                Err(other) => Ok((other, Changes::default())),
            })
            .await?;
        match ended {
            Ended::Done => {
                self.count_job(false);
                Inner::count_up(&self.inner.counts.processed);
                Ok(Answer::Ok)
            }
            Ended::Stale => {
                self.count_job(false);
                self.count_command("ACK", "stale");
                tracing::info!(jid, worker = self.worker, "a late ACK changed nothing");
                Ok(Answer::Ok)
            }
            Ended::Unknown => Err(Refused::NoJob(jid)),
        }
    }

    async fn fail(&self, rest: &str) -> Result<Answer, Refused> {
        let Ok(report) = read::<FailReport>(rest) else {
            return invalid(format!("invalid FAIL {}", beginning(rest)));
        };
        let (now, worker) = (self.now(), self.worker.clone());
        let rules = Arc::clone(self.inner.tasks.rules());
        let jid = report.jid.clone();
        let ended = self
            .inner
            .tasks
            .change(move |tx| match running(tx, &report.jid, &worker)? {
                Ok(found) => {
                    let kept = Kept::read(found.metadata.as_deref());
                    let most = kept.backtrace_lines().min(BACKTRACE_LINES_MAX);
                    let lines: Vec<_> = report
                        .backtrace
                        .iter()
                        .flatten()
                        .take(most)
                        .map(|line| (now, LogLevel::Error, line.clone()))
                        .collect();
                    append_logs(tx, &rules, found.id, found.attempt, &lines)?;
                    let failure = Failure {
                        outcome: AttemptOutcome::Failed,
                        error: report.text(),
                        is_final: false,
                        retry_after_ms: None,
                    };
                    let changes = fail(tx, now, &rules, found.id, found.attempt, &failure)?;
                    Ok((Ended::Done, changes))
                }
                Err(other) => Ok((other, Changes::default())),
            })
            .await?;
        match ended {
            Ended::Done => {
                self.count_job(false);
                Inner::count_up(&self.inner.counts.processed);
                Inner::count_up(&self.inner.counts.failed);
                Ok(Answer::Ok)
            }
            Ended::Stale => {
                self.count_job(false);
                self.count_command("FAIL", "stale");
                Err(Refused::NoJob(jid))
            }
            Ended::Unknown => Err(Refused::NoJob(jid)),
        }
    }

    fn beat(&self, rest: &str) -> Result<Answer, Refused> {
        let Ok(beat) = read::<Beat>(rest) else {
            return invalid(format!("invalid BEAT {}", beginning(rest)));
        };
        let state = beat
            .current_state
            .as_deref()
            .and_then(WorkerState::from_word);
        let workers = &self.inner.workers;
        match workers.beat(self.now(), &beat.wid, state, beat.rss_kb) {
            None => Err(Refused::NoWorker(beat.wid)),
            Some(WorkerState::Running) => Ok(Answer::Ok),
            Some(state) => Ok(Answer::Bulk(json!({"state": state.word()}).to_string())),
        }
    }

    async fn info(&self) -> Result<Answer, Refused> {
        let inner = &self.inner;
        let (queues, _) = inner.tasks.stats().await?;
        let open: Vec<_> = queues
            .iter()
            .filter(|queue| open_queue(&queue.name).is_ok())
            .collect();
        let sizes: serde_json::Map<String, Value> = open
            .iter()
            .map(|queue| (queue.name.clone(), queue.ready.into()))
            .collect();
        let now = self.now();
        let uptime_ms = inner.tasks.clock().monotonic_ms() - inner.started_ms;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let resident = inner.metrics.resident_bytes().unwrap_or(0);
        // `HH:MM:SS` of RFC 3339.
        let time_of_day = now.to_string().get(11..19).unwrap_or_default().to_owned();
        Ok(Answer::Bulk(
            json!({
                "now": now,
                "server_utc_time": format!("{time_of_day} UTC"),
                "faktory": {
                    "total_failures": count(&inner.counts.failed),
                    "total_processed": count(&inner.counts.processed),
                    "total_enqueued": open.iter().map(|queue| queue.ready).sum::<u64>(),
                    "total_queues": open.len(),
                    "queues": sizes,
                    "tasks": {},
                },
                "server": {
                    "description": concat!("Onrush ", env!("CARGO_PKG_VERSION")),
                    "faktory_version": FAKTORY_VERSION,
                    "uptime": uptime_ms / 1_000,
                    "connections": count(&inner.counts.connections),
                    "command_count": count(&inner.counts.commands),
                    "used_memory_mb": resident / 1_048_576,
                },
            })
            .to_string(),
        ))
    }

    async fn mutate(&self, rest: &str) -> Result<Answer, Refused> {
        mutate::mutate(&self.inner.tasks, &read::<mutate::Operation>(rest)?).await?;
        Ok(Answer::Ok)
    }

    async fn queue(&self, rest: &str) -> Result<Answer, Refused> {
        let (action, names) = rest.split_once(' ').unwrap_or((rest, ""));
        if names.trim().is_empty() {
            return invalid("QUEUE needs PAUSE, RESUME or REMOVE, and names of queues or *");
        }
        let tasks = &self.inner.tasks;
        let queues = if names.trim() == "*" {
            let (queues, _) = tasks.stats().await?;
            let names = queues.into_iter().map(|queue| queue.name);
            names.filter(|name| open_queue(name).is_ok()).collect()
        } else {
            self.queues(names)?
        };
        for name in queues {
            let (now, rules) = (self.now(), Arc::clone(tasks.rules()));
            match action {
                "PAUSE" | "RESUME" => {
                    let is_paused = action == "PAUSE";
                    tasks
                        .change_queue(move |tx| task::set_paused(tx, now, &rules, &name, is_paused))
                        .await?;
                }
                "REMOVE" => mutate::remove_queue(tasks, &name).await?,
                _ => return invalid("QUEUE knows PAUSE, RESUME and REMOVE"),
            }
        }
        Ok(Answer::Ok)
    }

    async fn track(&self, rest: &str) -> Result<Answer, Refused> {
        match rest.split_once(' ') {
            Some(("GET", jid)) => self.track_get(jid.trim().to_owned()).await,
            Some(("SET", text)) => self.track_set(read(text)?).await,
            Some(_) | None => invalid("TRACK knows GET and SET"),
        }
    }

    async fn track_get(&self, jid: String) -> Result<Answer, Refused> {
        let asked = jid.clone();
        let found = self
            .inner
            .tasks
            .store()
            .read(move |tx| {
                let Some(found) = external::find_external(tx, &asked)? else {
                    return Ok::<_, Refused>(None);
                };
                Ok(task::find(tx, found.id)?)
            })
            .await?
            .filter(|task| open_queue(&task.queue).is_ok());
        let Some(task) = found else {
            let unknown = json!({"jid": jid, "state": "unknown", "updated_at": ""});
            return Ok(Answer::Bulk(unknown.to_string()));
        };
        let state = match task.state {
            TaskState::Scheduled | TaskState::Available => "enqueued",
            TaskState::Running => "working",
            TaskState::Retryable => "failed",
            TaskState::Completed => "success",
            TaskState::Cancelled | TaskState::Discarded => "dead",
        };
        let updated_at = task
            .finished_at
            .or(task.attempted_at)
            .unwrap_or(task.created_at);
        let mut view = json!({"jid": jid, "state": state, "updated_at": updated_at});
        if let Some(percent) = task.progress {
            view["percent"] = percent.into();
        }
        if let Some(note) = task.progress_note {
            view["desc"] = note.into();
        }
        Ok(Answer::Bulk(view.to_string()))
    }

    async fn track_set(&self, said: TrackReport) -> Result<Answer, Refused> {
        let rules = Arc::clone(self.inner.tasks.rules());
        let now = self.now();
        let until = match said
            .reserve_until
            .as_deref()
            .filter(|text| !text.is_empty())
        {
            None => None,
            Some(text) => match Timestamp::parse_rfc3339(text) {
                Some(until) => Some(until),
                None => return invalid("reserve_until must be a time in RFC 3339"),
            },
        };
        let longer = self
            .inner
            .tasks
            .store()
            .write(move |tx| {
                // Whoever knows the id may tell how far the job is: clients do it over other
                // connections than their worker's.
                let found = external::find_external(tx, &said.jid)?
                    .filter(|job| job.state == TaskState::Running && is_open(job));
                let Some(job) = found else {
                    return Err(Refused::NoJob(said.jid.clone()));
                };
                if said.percent.is_some() || said.desc.is_some() {
                    let percent = said.percent.unwrap_or(0);
                    let note = said.desc.as_deref();
                    progress(tx, &rules, job.id, job.attempt, percent, note)?;
                }
                let most = i64::try_from(rules.timeout_ms_max).unwrap_or(i64::MAX);
                let (Some(until), Some(started)) = (until, job.attempted_at) else {
                    return Ok(None);
                };
                let until = until.min(started.plus_ms(most));
                if job.lease_expires_at.is_none_or(|ends| ends >= until) {
                    return Ok(None);
                }
                let timeout_ms = until.micros_since(started) / 1_000;
                external::lengthen(tx, job.id, job.attempt, timeout_ms)?;
                Ok(Some((job.id, job.attempt, until)))
            })
            .await?;
        if let Some((id, attempt, until)) = longer {
            let lease_ms = until.micros_since(now) / 1_000;
            self.inner.tasks.heartbeat(id, attempt, lease_ms).await?;
        }
        Ok(Answer::Ok)
    }

    async fn batch(&self, rest: &str) -> Result<Answer, Refused> {
        let store = self.inner.tasks.store();
        let now = self.now();
        match rest.split_once(' ') {
            Some(("NEW", text)) => self.batch_new(read_kept(text)?).await,
            Some(("OPEN", bid)) => {
                let bid = bid.trim().to_owned();
                let asked = bid.clone();
                store
                    .write(move |tx| match external::reopen_batch(tx, &asked)? {
                        true => Ok(()),
                        false => Err(Refused::NoBatch(asked.clone())),
                    })
                    .await?;
                Ok(Answer::Bulk(bid))
            }
            Some(("COMMIT", bid)) => {
                let bid = bid.trim().to_owned();
                store
                    .write(move |tx| {
                        if external::batch_on_record(tx, &bid)?.is_none() {
                            return Err(Refused::NoBatch(bid.clone()));
                        }
                        Ok(seal_batch(tx, now, &bid)?)
                    })
                    .await?;
                Ok(Answer::Ok)
            }
            Some(("STATUS", bid)) => {
                let bid = bid.trim().to_owned();
                let status = store.read(move |tx| batch_status(tx, &bid)).await?;
                Ok(Answer::Bulk(status.to_string()))
            }
            Some(_) | None => invalid("BATCH knows NEW, OPEN, COMMIT and STATUS"),
        }
    }

    async fn batch_new(&self, new: BatchNew) -> Result<Answer, Refused> {
        if new.parent_bid.is_some_and(|bid| !bid.is_empty()) {
            return invalid("a batch can't be part of another");
        }
        let now = self.now();
        let callback = |job: Option<Job>| -> Result<Option<NewTask>, Refused> {
            match job {
                None => Ok(None),
                Some(job) => {
                    let pushed = job.read(&self.inner.tasks, now)?;
                    if pushed.bid.is_some() {
                        return invalid("a callback can't be part of a batch");
                    }
                    Ok(Some(pushed.task))
                }
            }
        };
        let (success, complete) = (callback(new.success)?, callback(new.complete)?);
        if success.is_none() && complete.is_none() {
            return invalid("batches must have a success or complete callback");
        }
        let description = new
            .description
            .map(|text| shortened(check::trimmed(&text), 500));
        let bid = self
            .inner
            .tasks
            .store()
            .write(move |tx| {
                let (success, complete) = (success.as_ref(), complete.as_ref());
                open_batch(tx, now, description.as_deref(), success, complete)
            })
            .await?;
        Ok(Answer::Bulk(bid))
    }
}

/// What a FETCH came to.
enum Fetched {
    Run(Box<Started>, String),
    Nothing,
    Gone,
}

/// A refusal in the words that its answer has.
fn text(error: Refused) -> String {
    match error.answer() {
        Answer::Error(_, text) => text,
        Answer::Ok | Answer::Line(_) | Answer::Bulk(_) | Answer::Null => String::new(),
    }
}

/// Enough of a command to know it again.
fn beginning(rest: &str) -> String {
    rest.chars().take(100).collect()
}

/// Makes the task of a job; `handing` gives it to a worker that waits for it, if it can.
fn push_in(
    tx: &mut Tx<'_>,
    now: Timestamp,
    job: &Pushed,
    handing: Option<&Handing>,
) -> Result<(), Refused> {
    if external::by_external_id(tx, &job.jid)?.is_some() {
        return Ok(()); // pushed before; that its answer was lost is nobody's fault
    }
    let enqueued = match &job.bid {
        None => match handing {
            Some(handing) => handing.enqueue(tx, now, &job.task)?,
            None => enqueue(tx, now, &job.task)?,
        },
        Some(bid) => match add_to_batch(tx, now, bid, &job.task)? {
            Some(enqueued) => enqueued,
            None => return Err(Refused::NoBatch(bid.clone())),
        },
    };
    match enqueued {
        Enqueued::New(_) | Enqueued::PutOff(_) => Ok(()),
        Enqueued::Duplicate(_) => Err(Refused::NotUnique),
    }
}

fn is_open(job: &ExternalTask) -> bool {
    open_queue(&job.queue).is_ok()
}

/// The run of a job that this worker has.
fn running(
    tx: &mut Tx<'_>,
    jid: &str,
    worker: &str,
) -> Result<Result<ExternalTask, Ended>, TaskError> {
    let Some(job) = external::find_external(tx, jid)?.filter(is_open) else {
        return Ok(Err(Ended::Unknown));
    };
    let is_theirs = job.state == TaskState::Running
        && job.worker.as_deref() == Some(worker)
        && job.lease_expires_at.is_some();
    Ok(if is_theirs {
        Ok(job)
    } else {
        Err(Ended::Stale)
    })
}

fn batch_status(tx: &mut Tx<'_>, bid: &str) -> Result<Value, Refused> {
    let batch =
        external::batch_on_record(tx, bid)?.ok_or_else(|| Refused::NoBatch(bid.to_owned()))?;
    let success = batch.finished_at.is_some() && batch.failed == 0;
    let complete = batch.finished_at.or(batch.first_finished_at).is_some();
    Ok(json!({
        "bid": bid,
        "description": batch.description.unwrap_or_default(),
        "created_at": batch.created_at,
        "total": batch.total,
        "pending": batch.pending,
        "failed": batch.failed,
        "success_st": callback_state(tx, success, batch.on_success.as_deref())?,
        "complete_st": callback_state(tx, complete, batch.on_complete.as_deref())?,
    }))
}

/// How far a callback is: `1` once it is enqueued, `2` once it is done.
fn callback_state(
    tx: &mut Tx<'_>,
    is_made: bool,
    callback: Option<&str>,
) -> Result<&'static str, Refused> {
    let Some(text) = callback.filter(|_| is_made) else {
        return Ok("");
    };
    let task: NewTask =
        serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let found = match &task.external_id {
        Some(jid) => external::find_external(tx, jid)?,
        None => None,
    };
    Ok(match found {
        Some(job) if job.state == TaskState::Completed => "2",
        Some(_) | None => "1",
    })
}

#[derive(Deserialize)]
struct Reference {
    jid: String,
}

#[derive(Deserialize)]
struct FailReport {
    jid: String,
    #[serde(default)]
    errtype: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    backtrace: Option<Vec<String>>,
}

impl FailReport {
    fn text(&self) -> String {
        let message = self.message.as_deref().unwrap_or_default().trim();
        let message = if message.is_empty() {
            "unknown"
        } else {
            message
        };
        match self.errtype.as_deref().map(str::trim) {
            // What clients say that know no better.
            None | Some("" | "unknown" | "undefined") => message.to_owned(),
            Some(kind) => {
                let kind: String = kind.chars().take(ERRTYPE_CHARS_MAX).collect();
                format!("{kind}: {message}")
            }
        }
    }
}

#[derive(Deserialize)]
struct Beat {
    wid: String,
    #[serde(default)]
    current_state: Option<String>,
    #[serde(default)]
    rss_kb: Option<i64>,
}

#[derive(Deserialize)]
struct TrackReport {
    jid: String,
    #[serde(default)]
    percent: Option<u32>,
    #[serde(default)]
    desc: Option<String>,
    #[serde(default)]
    reserve_until: Option<String>,
}

#[derive(Deserialize)]
struct BatchNew {
    #[serde(default)]
    parent_bid: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    success: Option<Job>,
    #[serde(default)]
    complete: Option<Job>,
}
