//! What happens to a task between its start and its end.
//!
//! Invariants: every change here is a conditional update on `(id, attempt, state)`; one that finds
//! nothing says why ([`TaskError::Fenced`]) and leaves nothing behind. Finishing counts down what
//! waits for it and its batch in the same transaction.

use std::collections::HashMap;

use super::enqueue::{close_batch_if_done, not_completed};
use super::new_task::latest_run_at;
use super::rows::Ended;
use super::{
    AttemptOutcome, Changes, ENQUEUED, Entry, LogLevel, Over, Started, TaskError, TaskId,
    TaskState, sql,
};
use crate::clock::Timestamp;
use crate::config;
use crate::store::{StoreError, Tx};

/// What a start came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The worker has it, once this is committed.
    Run(Box<Started>),
    /// Its time was over; it is cancelled now.
    Expired(Changes),
    /// Its time or priority is another by now; this is its place.
    Moved(Entry),
    /// It is not there, or in no state to be started: another was faster, or it was cancelled.
    Stale,
}

/// Starts a task for `worker`, if it may be started and is still what the delivery knows of it, so
/// that an old entry never jumps the queue. Without `lease_ms` it is this process's own and
/// ends with it; a lease ends with the longest run that the task may have at the latest.
pub fn start(
    tx: &mut Tx<'_>,
    now: Timestamp,
    entry: &Entry,
    worker: &str,
    lease_ms: Option<i64>,
) -> Result<Start, TaskError> {
    let id = entry.id;
    let lease = lease_ms.map(|ms| now.plus_ms(ms));
    if let Some((started, lock_key)) = sql::start(tx, now, entry, worker, lease)? {
        if let Some(key) = lock_key {
            sql::release_started_lock(tx, &key, id)?;
        }
        return Ok(Start::Run(Box::new(started)));
    }
    let Some(found) = sql::waiting(tx, id)? else {
        return Ok(Start::Stale);
    };
    if found.expires_at.is_some_and(|at| at <= now) {
        let over = sql::finish_waiting(tx, now, id, TaskState::Cancelled, "expired")?;
        let mut changes = Changes::default();
        if let Some(ended) = over {
            // Its entry is the one that was handed out.
            let ended = Ended {
                place: None,
                ..ended
            };
            settle(tx, now, id, ended, TaskState::Cancelled, &mut changes)?;
        }
        return Ok(Start::Expired(changes));
    }
    Ok(Start::Moved(found.entry))
}

/// Why many were not changed by one statement: it found that one of them is another's by now. One by
/// one they are told apart.
#[derive(Debug)]
struct Apart;

impl From<StoreError> for Apart {
    fn from(error: StoreError) -> Self {
        tracing::debug!(%error, "runs are changed one by one");
        Apart
    }
}

impl From<TaskError> for Apart {
    fn from(error: TaskError) -> Self {
        tracing::debug!(%error, "runs are changed one by one");
        Apart
    }
}

/// [`start`] of each of `entries`, in their order, with a number of statements that grows only with those
/// of them that can't be started, or hold a key.
pub(super) fn start_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    entries: &[Entry],
    worker: &str,
    lease_ms: Option<i64>,
) -> Result<Vec<Start>, TaskError> {
    if entries.len() > 1
        && let Ok(starts) = tx.part(|tx| start_together(tx, now, entries, worker, lease_ms))?
    {
        return Ok(starts);
    }
    let each = entries.iter();
    each.map(|entry| start(tx, now, entry, worker, lease_ms))
        .collect()
}

fn start_together(
    tx: &mut Tx<'_>,
    now: Timestamp,
    entries: &[Entry],
    worker: &str,
    lease_ms: Option<i64>,
) -> Result<Vec<Start>, Apart> {
    let lease = lease_ms.map(|ms| now.plus_ms(ms));
    let Some(found) = sql::start_all(tx, now, entries, worker, lease)? else {
        return Err(Apart);
    };
    let mut starts = Vec::with_capacity(entries.len());
    for (entry, found) in entries.iter().zip(found) {
        starts.push(match found {
            Some((started, lock_key)) => {
                if let Some(key) = lock_key {
                    sql::release_started_lock(tx, &key, entry.id)?;
                }
                Start::Run(Box::new(started))
            }
            None => start(tx, now, entry, worker, lease_ms)?,
        });
    }
    Ok(starts)
}

/// When a task that is put off for so long may start: not later than any may be put off to.
fn put_off_to(now: Timestamp, rules: &config::Tasks, wait_ms: i64) -> Timestamp {
    now.plus_ms(wait_ms.max(0)).min(latest_run_at(now, rules))
}

/// Frees a finished task's lock, counts down its batch and those that wait for it. What can't go on
/// without it is cancelled, and what waits for that as well; it keeps its edges, and comes back when
/// the finished one is retried by hand.
pub(super) fn settle(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    ended: Ended,
    state: TaskState,
    changes: &mut Changes,
) -> Result<(), TaskError> {
    let mut open = vec![(id, ended, state)];
    while let Some((id, ended, state)) = open.pop() {
        if let Some(key) = &ended.lock_key {
            sql::release_lock(tx, key, id)?;
        }
        if let Some(batch) = &ended.batch_id {
            sql::count_down_batch(tx, batch, state != TaskState::Completed)?;
            close_batch_if_done(tx, now, batch)?;
        }
        if ended.followers > 0 {
            let is_completed = state == TaskState::Completed;
            let edges = if is_completed {
                sql::take_edges(tx, id)?
            } else {
                sql::edges(tx, id)?
            };
            for (follower, runs_anyway) in edges {
                if is_completed || runs_anyway {
                    if !is_completed {
                        sql::remove_edge(tx, id, follower)?;
                    }
                    if let Some(entry) = sql::count_down(tx, now, follower)? {
                        tx.touch(ENQUEUED);
                        changes.ready.push(entry);
                    }
                } else {
                    let why = not_completed(id, state);
                    match sql::cancel_follower(tx, now, follower, &why)? {
                        Some(ended) => open.push((follower, ended, TaskState::Cancelled)),
                        None => sql::remove_idle_edge(tx, id, follower)?,
                    }
                }
            }
        }
        changes.gone.extend(ended.place);
        changes.over.push(Over {
            id,
            name: ended.name,
            queue: ended.queue,
            was_running: ended.was_running,
            state,
            micros: ended.started_at.map(|at| now.micros_since(at)),
        });
    }
    Ok(())
}

/// Why an update by `(id, attempt)` changed nothing.
pub(super) fn refusal(tx: &mut Tx<'_>, id: TaskId, said: u32) -> Result<TaskError, TaskError> {
    Ok(match sql::state(tx, id)? {
        None => TaskError::NotFound(id),
        Some((state, attempt)) => TaskError::Fenced {
            said,
            attempt,
            state,
        },
    })
}

/// Notes that a run succeeded. Run it as the last part of the transaction that holds the effect.
pub fn complete(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    id: TaskId,
    attempt: u32,
    result: Option<&str>,
) -> Result<Changes, TaskError> {
    match sql::ending(tx, id, attempt)? {
        Some(ended) => complete_found(tx, now, rules, id, attempt, ended, result),
        None => Err(refusal(tx, id, attempt)?),
    }
}

/// [`complete`] for whoever has read the row in this transaction.
pub(super) fn complete_found(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    id: TaskId,
    attempt: u32,
    ended: Ended,
    result: Option<&str>,
) -> Result<Changes, TaskError> {
    let default = i64::try_from(rules.result_seconds).unwrap_or(i64::MAX);
    if !sql::complete(tx, now, id, attempt, ended.followers, result, default)? {
        return Err(refusal(tx, id, attempt)?);
    }
    let mut changes = Changes::default();
    settle(tx, now, id, ended, TaskState::Completed, &mut changes)?;
    fail::fail_point!("task.completed");
    Ok(changes)
}

/// How an outside worker's run ended, as it says among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunEnd {
    pub(super) id: TaskId,
    pub(super) attempt: u32,
    pub(super) outcome: RunOutcome,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RunOutcome {
    /// It succeeded, with this result as JSON.
    Completed(Option<String>),
    /// It failed.
    Failed(Failure),
}

/// Notes how many runs of outside workers ended, each by itself: what is refused of one, or fails, changes
/// nothing of the others. They count in their order: of two that name the same run the second comes too
/// late. Runs that succeeded are ended with a number of statements that does not grow with them, as far
/// as nothing hangs on them.
pub(super) fn end_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    ends: &[RunEnd],
) -> Result<(Vec<Result<(), TaskError>>, Changes), TaskError> {
    let mut named: HashMap<TaskId, u32> = HashMap::with_capacity(ends.len());
    for end in ends {
        *named.entry(end.id).or_default() += 1;
    }
    let together: Vec<(usize, &RunEnd, Option<&str>)> = ends
        .iter()
        .enumerate()
        .filter(|(_, end)| named.get(&end.id) == Some(&1))
        .filter_map(|(place, end)| match &end.outcome {
            RunOutcome::Completed(result) => Some((place, end, result.as_deref())),
            RunOutcome::Failed(_) => None,
        })
        .collect();
    let mut outcomes: Vec<Option<Result<(), TaskError>>> = ends.iter().map(|_| None).collect();
    let mut changes = Changes::default();
    if together.len() > 1
        && let Ok((done, more)) = tx.part(|tx| complete_together(tx, now, rules, &together))?
    {
        changes.add(more);
        for ((place, ..), outcome) in together.iter().zip(done) {
            if let Some(its) = outcomes.get_mut(*place) {
                *its = Some(outcome);
            }
        }
    }
    let mut all = Vec::with_capacity(ends.len());
    for (end, outcome) in ends.iter().zip(outcomes) {
        all.push(match outcome {
            Some(outcome) => outcome,
            None => tx
                .part(|tx| end_one(tx, now, rules, end))?
                .map(|more| changes.add(more)),
        });
    }
    Ok((all, changes))
}

fn end_one(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    end: &RunEnd,
) -> Result<Changes, TaskError> {
    require_lease(tx, end.id, end.attempt)?;
    match &end.outcome {
        RunOutcome::Completed(result) => {
            complete(tx, now, rules, end.id, end.attempt, result.as_deref())
        }
        RunOutcome::Failed(failure) => fail(tx, now, rules, end.id, end.attempt, failure),
    }
}

/// Ends runs that succeeded, no task twice: each with its place, which is only handed through, and its
/// result.
fn complete_together(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    runs: &[(usize, &RunEnd, Option<&str>)],
) -> Result<(Vec<Result<(), TaskError>>, Changes), Apart> {
    let asked: Vec<(TaskId, u32)> = runs
        .iter()
        .map(|(_, end, _)| (end.id, end.attempt))
        .collect();
    let found = sql::ending_all(tx, &asked)?;
    let succeeded: Vec<sql::Completed<'_>> = runs
        .iter()
        .zip(&found)
        .filter_map(|((_, end, result), found)| {
            let found = found.as_ref().filter(|found| found.has_lease)?;
            Some(sql::Completed {
                id: end.id,
                attempt: end.attempt,
                followers: found.ended.followers,
                result: *result,
            })
        })
        .collect();
    let result_seconds = i64::try_from(rules.result_seconds).unwrap_or(i64::MAX);
    let changed = sql::complete_all(tx, now, &succeeded, result_seconds)?;
    if changed != succeeded.len() as u64 {
        return Err(Apart);
    }
    let mut changes = Changes::default();
    let mut all = Vec::with_capacity(runs.len());
    for (&(id, attempt), found) in asked.iter().zip(found) {
        all.push(match found {
            Some(found) if found.has_lease => {
                settle(tx, now, id, found.ended, TaskState::Completed, &mut changes)?;
                fail::fail_point!("task.completed");
                Ok(())
            }
            Some(_) => Err(TaskError::State(TaskState::Running)),
            None => Err(refusal(tx, id, attempt)?),
        });
    }
    Ok((all, changes))
}

/// How a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How it is told of in the history.
    pub outcome: AttemptOutcome,
    /// For people.
    pub error: String,
    /// Whether another attempt makes sense.
    pub is_final: bool,
    /// When to try again; `None` for what the task's policy says.
    pub retry_after_ms: Option<i64>,
}

impl Failure {
    /// An ordinary failure: tried again as the policy says.
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            outcome: AttemptOutcome::Failed,
            error: error.into(),
            is_final: false,
            retry_after_ms: None,
        }
    }
}

/// At most `chars` characters of a text, without control characters that a terminal would obey.
pub fn shortened(text: &str, chars: usize) -> String {
    text.chars()
        .take(chars)
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// Notes that a run failed: the task is tried again later, or is dead.
pub fn fail(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    id: TaskId,
    attempt: u32,
    failure: &Failure,
) -> Result<Changes, TaskError> {
    let Some(run) = sql::running(tx, id, attempt)? else {
        return Err(refusal(tx, id, attempt)?);
    };
    let error = shortened(&failure.error, rules.log_line_chars_max);
    let is_crash = failure.outcome == AttemptOutcome::Crashed;
    let crashes = run.crashes + u32::from(is_crash);
    let (state, outcome, why) = if run.cancel_requested {
        (
            TaskState::Cancelled,
            AttemptOutcome::Cancelled,
            error.clone(),
        )
    } else if is_crash && crashes >= rules.crashes_max {
        let why = format!(
            "set aside after {crashes} attempts in which its process or worker went away; last: {error}"
        );
        (TaskState::Discarded, failure.outcome, why)
    } else if failure.is_final || attempt >= run.max_attempts {
        (TaskState::Discarded, failure.outcome, error.clone())
    } else if is_crash || failure.retry_after_ms == Some(0) {
        (TaskState::Available, failure.outcome, error.clone())
    } else {
        (TaskState::Retryable, failure.outcome, error.clone())
    };
    sql::insert_attempt(tx, now, id, attempt, &run, outcome, Some(&error))?;
    let mut changes = Changes::default();
    let next = match state {
        TaskState::Available => now,
        _ if state.is_final() => run.run_at,
        _ => {
            let policy = run.retry_policy.unwrap_or_default();
            let tried = attempt.saturating_sub(run.crashes);
            match failure.retry_after_ms {
                Some(wait) => put_off_to(now, rules, wait),
                None => now.plus_ms(policy.delay_ms(id, tried)),
            }
        }
    };
    let Some(ended) = sql::end_attempt(tx, now, id, attempt, state, next, crashes, 0, &why)? else {
        return Err(refusal(tx, id, attempt)?);
    };
    if state.is_final() {
        settle(tx, now, id, ended, state, &mut changes)?;
    } else {
        back_to_waiting(now, id, ended, state, next, run.priority, &mut changes);
    }
    fail::fail_point!("task.failed");
    Ok(changes)
}

/// Tells that a run is over and its task waits again.
fn back_to_waiting(
    now: Timestamp,
    id: TaskId,
    ended: Ended,
    state: TaskState,
    run_at: Timestamp,
    priority: u8,
    changes: &mut Changes,
) {
    changes.ready.push(Entry {
        queue: ended.queue.clone(),
        priority,
        run_at,
        id,
    });
    changes.over.push(Over {
        id,
        name: ended.name,
        queue: ended.queue,
        was_running: ended.was_running,
        state,
        micros: ended.started_at.map(|at| now.micros_since(at)),
    });
}

/// Puts a running task off; this attempt counts neither as a failure nor towards its limit.
pub fn snooze(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    id: TaskId,
    attempt: u32,
    wait_ms: i64,
) -> Result<Changes, TaskError> {
    let run_at = put_off_to(now, rules, wait_ms);
    let why = "put off by its handler";
    put_back(tx, now, id, attempt, run_at, AttemptOutcome::Snoozed, why)
}

/// Hands a running task back, because its worker stops or never got it. As [`snooze`], at once.
pub fn release(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    attempt: u32,
) -> Result<Changes, TaskError> {
    let why = "handed back by its worker";
    put_back(tx, now, id, attempt, now, AttemptOutcome::Released, why)
}

fn put_back(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    attempt: u32,
    run_at: Timestamp,
    outcome: AttemptOutcome,
    why: &str,
) -> Result<Changes, TaskError> {
    let Some(run) = sql::running(tx, id, attempt)? else {
        return Err(refusal(tx, id, attempt)?);
    };
    let (state, outcome) = if run.cancel_requested {
        (TaskState::Cancelled, AttemptOutcome::Cancelled)
    } else if run_at > now {
        (TaskState::Scheduled, outcome)
    } else {
        (TaskState::Available, outcome)
    };
    sql::insert_attempt(tx, now, id, attempt, &run, outcome, None)?;
    let run_at = if state.is_final() { run.run_at } else { run_at };
    let more = u32::from(!state.is_final());
    let ended = sql::end_attempt(tx, now, id, attempt, state, run_at, run.crashes, more, why)?;
    let Some(ended) = ended else {
        return Err(refusal(tx, id, attempt)?);
    };
    let mut changes = Changes::default();
    if state.is_final() {
        settle(tx, now, id, ended, state, &mut changes)?;
    } else {
        back_to_waiting(now, id, ended, state, run_at, run.priority, &mut changes);
    }
    Ok(changes)
}

/// What a worker hears when it says that it is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Until when it has the task now.
    pub lease_expires_at: Timestamp,
    /// Whether it should stop: the task was cancelled.
    pub cancel_requested: bool,
}

/// Refuses a run that is this process's own: no outside worker speaks for it.
pub(super) fn require_lease(tx: &mut Tx<'_>, id: TaskId, attempt: u32) -> Result<(), TaskError> {
    match sql::running(tx, id, attempt)? {
        Some(run) if run.lease_expires_at.is_some() => Ok(()),
        Some(_) => Err(TaskError::State(TaskState::Running)),
        None => Err(refusal(tx, id, attempt)?),
    }
}

/// Renews an outside worker's lease, though not beyond the longest run that the task may have. Its row
/// is behind the clock by `rows_behind` microseconds, if that was set a moment ago.
pub fn heartbeat(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    attempt: u32,
    lease_ms: i64,
    rows_behind: i64,
) -> Result<Beat, TaskError> {
    match sql::heartbeat(tx, id, attempt, now.plus_ms(lease_ms), rows_behind)? {
        Some((lease_expires_at, cancel_requested)) => Ok(Beat {
            lease_expires_at,
            cancel_requested,
        }),
        None => Err(refusal(tx, id, attempt)?),
    }
}

/// Notes how far a run is; answers whether its cancellation was asked for.
pub fn progress(
    tx: &mut Tx<'_>,
    rules: &config::Tasks,
    id: TaskId,
    attempt: u32,
    percent: u32,
    note: Option<&str>,
) -> Result<bool, TaskError> {
    let note = note.map(|note| shortened(note, rules.log_line_chars_max));
    match sql::progress(tx, id, attempt, percent.min(100), note.as_deref())? {
        Some(cancel_requested) => Ok(cancel_requested),
        None => Err(refusal(tx, id, attempt)?),
    }
}

/// Adds log lines of a run, as far as the limit for one attempt lets them in.
pub fn append_logs(
    tx: &mut Tx<'_>,
    rules: &config::Tasks,
    id: TaskId,
    attempt: u32,
    lines: &[(Timestamp, LogLevel, String)],
) -> Result<(), TaskError> {
    if lines.is_empty() {
        return Ok(());
    }
    if sql::running(tx, id, attempt)?.is_none() {
        return Err(refusal(tx, id, attempt)?);
    }
    let last = sql::last_log(tx, id, attempt)?;
    for (seq, (at, level, line)) in (last + 1..=rules.log_lines_max).zip(lines) {
        let line = shortened(line, rules.log_line_chars_max);
        sql::insert_log(tx, id, attempt, seq, *at, *level, &line)?;
    }
    Ok(())
}

/// Takes a run back whose process or worker went away: an outside worker's, if its lease is still
/// the one that ran out; one of this process's forerunners, whatever it was. A worker whose run took
/// too long, and of which `is_away` says that it has gone, counts as having crashed.
pub fn recover(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    id: TaskId,
    attempt: u32,
    lease: Option<Timestamp>,
    is_away: impl Fn(&str) -> bool,
) -> Result<Changes, TaskError> {
    let Some(run) = sql::running(tx, id, attempt)? else {
        return Ok(Changes::default());
    };
    if run.lease_expires_at != lease {
        return Ok(Changes::default()); // it was renewed meanwhile
    }
    let who = run.worker.as_deref().unwrap_or("its worker").to_owned();
    let is_over_time = run.started_at.plus_ms(run.timeout_ms) <= now;
    let (outcome, error) = match lease {
        Some(_) if is_over_time && !is_away(&who) => (
            AttemptOutcome::TimedOut,
            format!("it ran longer than {} ms", run.timeout_ms),
        ),
        Some(_) => (
            AttemptOutcome::Crashed,
            format!("{who} was not heard of until its lease ran out"),
        ),
        None => (AttemptOutcome::Crashed, format!("{who} ended while it ran")),
    };
    let failure = Failure {
        outcome,
        error,
        is_final: false,
        retry_after_ms: None,
    };
    fail::fail_point!("task.recovered");
    fail(tx, now, rules, id, attempt, &failure)
}
