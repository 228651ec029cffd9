//! What the passing of time does to schedules: fires, and what came of them.
//!
//! Invariants: a fire's row, its task and the schedule's next time commit together; a fire whose row
//! is there, or was forgotten, does not happen again; each step is bounded, however long no process
//! looked.

use std::collections::{HashMap, VecDeque};

use super::cron::Rule;
use super::{
    Basis, Cause, Missed, Overlap, Run, RunOutcome, Schedule, ScheduleError, Spec, When, sql,
};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::store::{StoreError, Tx};
use crate::task::{self, Task, TaskId, TaskState};

/// Unfinished runs that are looked at for the overlap policy.
const OPEN_RUNS_MAX: u32 = 50;
/// Rows that one look reads.
pub(super) const PAGE: u32 = 100;
/// What a clock left behind that was ahead by more than this means nothing.
const AHEAD_SECONDS_MAX: i64 = 86_400;
/// Runs of one schedule within one millisecond that are told apart.
const MOMENTS_MAX: i64 = 1_000;

/// What is counted: which schedule, and what a run of it came to.
pub(super) type Outcomes = Vec<(String, RunOutcome)>;

/// What is to be done about a schedule whose time has come.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    /// Oldest first.
    fires: Vec<(Timestamp, Cause)>,
    /// The last one that is lost.
    lost: Option<Timestamp>,
    /// When it fires next.
    next: Option<Timestamp>,
}

/// Decides what to do at `now` about a schedule that was to fire at `first`, which is past.
///
/// The latest fire is on time unless it is late by more than `late_seconds`; every other one is
/// missed.
fn due(rule: &Rule, spec: &Spec, first: Timestamp, now: Timestamp, late_seconds: u64) -> Due {
    let late = i64::try_from(late_seconds).unwrap_or(i64::MAX);
    let most = match spec.missed {
        Missed::All => spec.missed_max.max(1) as usize,
        Missed::Once | Missed::Skip => 1,
    };
    let times = latest(rule, first, now, most);
    let mut due = Due {
        fires: Vec::with_capacity(times.len()),
        lost: None,
        next: rule.next_after(now, first),
    };
    let last = times.last().copied();
    for at in times {
        let is_on_time = Some(at) == last && at >= now.plus_seconds(late.saturating_neg());
        match (is_on_time, spec.missed) {
            (true, _) => due.fires.push((at, Cause::Time)),
            (false, Missed::Once | Missed::All) => due.fires.push((at, Cause::CatchUp)),
            (false, Missed::Skip) => due.lost = Some(at),
        }
    }
    due
}

/// The latest fires from `first` to `now`, `most` of them, oldest first. It looks back in growing
/// steps, so that years of missed seconds are not gone through.
fn latest(rule: &Rule, first: Timestamp, now: Timestamp, most: usize) -> Vec<Timestamp> {
    let mut back_seconds: i64 = 60;
    loop {
        let from = first.max(now.plus_seconds(-back_seconds));
        let mut times = VecDeque::with_capacity(most + 1);
        let mut at = if from == first {
            Some(first)
        } else {
            rule.next_after(Timestamp(from.0 - 1), first)
        };
        while let Some(time) = at.filter(|time| *time <= now) {
            times.push_back(time);
            if times.len() > most {
                times.pop_front();
            }
            at = rule.next_after(time, first);
        }
        if times.len() >= most || from == first {
            return times.into();
        }
        back_seconds = back_seconds.saturating_mul(8);
    }
}

/// Does what is due of one schedule; nothing, if another did it meanwhile.
pub(super) fn fire_due(
    tx: &mut Tx<'_>,
    now: Timestamp,
    basis: &Basis,
    name: &str,
) -> Result<Outcomes, ScheduleError> {
    let mut outcomes = Outcomes::new();
    let Some(schedule) = sql::get(tx, name)? else {
        return Ok(outcomes);
    };
    let Some(first) = schedule.next_run_at.filter(|at| *at <= now) else {
        return Ok(outcomes);
    };
    let rule = match schedule.spec.rule() {
        Ok(rule) => rule,
        Err(fault) => {
            // Written by another version, or by hand: it waits until staff mend it.
            let reason = format!("{} {}", fault.field, fault.reason);
            tracing::error!(
                name,
                reason,
                "a schedule can't be read and does not fire any more"
            );
            sql::set_aside(tx, now, name, &reason)?;
            return Ok(outcomes);
        }
    };
    let due = due(&rule, &schedule.spec, first, now, basis.rules.late_seconds);
    // First of all, so that of two nodes the second finds nothing left to do.
    if !sql::advance(tx, name, first, due.next)? {
        return Ok(outcomes);
    }
    if let Some(lost) = due.lost.filter(|at| !is_forgotten(&schedule, *at))
        && sql::record(tx, now, name, lost, Cause::Time, RunOutcome::Missed)?
    {
        outcomes.push((schedule.name.clone(), RunOutcome::Missed));
    }
    for (fire_at, cause) in due.fires {
        fire(tx, now, basis, &schedule, fire_at, cause, &mut outcomes)?;
    }
    prune(tx, basis, name)?;
    Ok(outcomes)
}

/// Whether a wall time has come before, though its row is dropped. An interval knows no wall times.
fn is_forgotten(schedule: &Schedule, fire_at: Timestamp) -> bool {
    match schedule.spec.when {
        When::Cron(_) => schedule
            .forgotten_until
            .is_some_and(|until| fire_at <= until),
        When::Every(_) => false,
    }
}

/// Writes down a run at the first moment from `from` on that no other has.
pub(super) fn record_from(
    tx: &mut Tx<'_>,
    now: Timestamp,
    name: &str,
    from: Timestamp,
    cause: Cause,
) -> Result<Option<Timestamp>, StoreError> {
    for step in 0..MOMENTS_MAX {
        let at = Timestamp(from.0.saturating_add(step));
        if sql::record(tx, now, name, at, cause, RunOutcome::Enqueued)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn fire(
    tx: &mut Tx<'_>,
    now: Timestamp,
    basis: &Basis,
    schedule: &Schedule,
    fire_at: Timestamp,
    cause: Cause,
    outcomes: &mut Outcomes,
) -> Result<(), ScheduleError> {
    let name = &schedule.name;
    let recorded = match schedule.spec.when {
        When::Cron(_) if is_forgotten(schedule, fire_at) => None,
        When::Cron(_) => {
            sql::record(tx, now, name, fire_at, cause, RunOutcome::Enqueued)?.then_some(fire_at)
        }
        // It was time, whatever the wall showed when it was so before: that this node alone moved the
        // schedule on is what keeps another from doing the same.
        When::Every(_) => record_from(tx, now, name, fire_at, cause)?,
    };
    let Some(fire_at) = recorded else {
        return Ok(()); // it happened before the clock went back
    };
    fail::fail_point!("schedule.recorded");
    match make_task(tx, now, basis, schedule, fire_at)? {
        Made::Task(id) => sql::set_task(tx, name, fire_at, id)?,
        Made::Skipped => {
            sql::close(tx, name, fire_at, RunOutcome::Skipped, None)?;
            outcomes.push((name.clone(), RunOutcome::Skipped));
        }
        Made::Refused(faults) => {
            let words: Vec<String> = faults
                .iter()
                .map(|fault| format!("{} {}", fault.field, fault.reason))
                .collect();
            let error = words.join("; ");
            tracing::error!(name, error, "the task of a schedule was refused");
            sql::close(tx, name, fire_at, RunOutcome::Refused, Some(&error))?;
            outcomes.push((name.clone(), RunOutcome::Refused));
        }
    }
    fail::fail_point!("schedule.enqueued");
    Ok(())
}

/// What became of the making of a run's task.
pub(super) enum Made {
    /// It waits.
    Task(TaskId),
    /// The overlap policy lets no other be made.
    Skipped,
    /// It does not fit.
    Refused(Vec<FieldError>),
}

/// Makes the task of a run, as far as the overlap policy allows.
pub(super) fn make_task(
    tx: &mut Tx<'_>,
    now: Timestamp,
    basis: &Basis,
    schedule: &Schedule,
    fire_at: Timestamp,
) -> Result<Made, ScheduleError> {
    let mut new = match schedule.spec.task(basis, now) {
        Ok(new) => new,
        Err(faults) => return Ok(Made::Refused(faults)),
    };
    let unfinished = match schedule.spec.overlap {
        Overlap::Allow => Vec::new(),
        Overlap::Skip | Overlap::QueueOne => unfinished(tx, &schedule.name)?,
    };
    match (schedule.spec.overlap, unfinished.as_slice()) {
        (Overlap::Allow, _) | (Overlap::Skip | Overlap::QueueOne, []) => {}
        (Overlap::QueueOne, [running]) => {
            new.after = vec![*running];
            new.after_failure = true;
        }
        (Overlap::Skip | Overlap::QueueOne, _) => return Ok(Made::Skipped),
    }
    if schedule.spec.jitter_ms > 0 {
        let micros = rand::random_range(0..=schedule.spec.jitter_ms).saturating_mul(1_000);
        new.run_at = Some(Timestamp(fire_at.0.saturating_add(micros))).filter(|at| *at > now);
    }
    let tag = serde_json::json!({"schedule": schedule.name, "fire_at": fire_at});
    new.metadata = Some(tag.to_string());
    Ok(Made::Task(task::enqueue(tx, now, &new)?.id()))
}

/// Up to two unfinished tasks of a schedule, the newest first.
fn unfinished(tx: &mut Tx<'_>, name: &str) -> Result<Vec<TaskId>, StoreError> {
    let mut found = Vec::new();
    for id in sql::open_tasks(tx, name, OPEN_RUNS_MAX)? {
        if task::find(tx, id)?.is_some_and(|task| !task.state.is_final()) {
            found.push(id);
            if found.len() == 2 {
                break;
            }
        }
    }
    Ok(found)
}

/// What a run came to, by its task; `None` while that is unfinished.
fn outcome_of(task: Option<&Task>) -> Option<RunOutcome> {
    match task.map(|task| task.state) {
        None => Some(RunOutcome::Removed),
        Some(TaskState::Completed) => Some(RunOutcome::Completed),
        Some(TaskState::Cancelled) => Some(RunOutcome::Cancelled),
        Some(TaskState::Discarded) => Some(RunOutcome::Discarded),
        Some(
            TaskState::Scheduled | TaskState::Available | TaskState::Running | TaskState::Retryable,
        ) => None,
    }
}

/// Brings runs that were read up to date with their tasks.
pub(super) fn look<'r>(
    tx: &mut Tx<'_>,
    runs: impl IntoIterator<Item = &'r mut Run>,
) -> Result<(), StoreError> {
    let mut open: Vec<(TaskId, &mut Run)> = runs
        .into_iter()
        .filter(|run| run.outcome == RunOutcome::Enqueued)
        .filter_map(|run| Some((run.task_id?, run)))
        .collect();
    let ids: Vec<TaskId> = open.iter().map(|(id, _)| *id).collect();
    let tasks = task::find_all(tx, &ids)?;
    let tasks: HashMap<TaskId, Task> = tasks.into_iter().map(|task| (task.id, task)).collect();
    for (id, run) in &mut open {
        let task = tasks.get(id);
        if let Some(outcome) = outcome_of(task) {
            run.outcome = outcome;
        }
        if let Some(task) = task {
            run.started_at = task.attempted_at;
            run.finished_at = task.finished_at;
            run.error.clone_from(&task.error);
        }
    }
    Ok(())
}

/// A run whose task was not finished when it was last looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OpenRun {
    pub(super) schedule: String,
    pub(super) fire_at: Timestamp,
    pub(super) task_id: TaskId,
}

/// One page of open runs after `above`: those whose task is finished by now, and where to go on.
pub(super) fn finished_page(
    tx: &mut Tx<'_>,
    above: Option<&OpenRun>,
) -> Result<(Vec<OpenRun>, Option<OpenRun>), ScheduleError> {
    let page = sql::open_above(tx, above, PAGE)?;
    let next = page.last().filter(|_| page.len() == PAGE as usize).cloned();
    let mut finished = Vec::new();
    for run in page {
        if outcome_of(task::find(tx, run.task_id)?.as_ref()).is_some() {
            finished.push(run);
        }
    }
    Ok((finished, next))
}

/// Writes down what came of runs whose tasks are finished.
pub(super) fn settle(tx: &mut Tx<'_>, runs: &[OpenRun]) -> Result<Outcomes, ScheduleError> {
    let mut outcomes = Outcomes::new();
    for run in runs {
        let task = task::find(tx, run.task_id)?;
        let Some(outcome) = outcome_of(task.as_ref()) else {
            continue; // retried by hand meanwhile
        };
        if sql::settle(tx, &run.schedule, run.fire_at, outcome, task.as_ref())? {
            outcomes.push((run.schedule.clone(), outcome));
        }
    }
    Ok(outcomes)
}

/// Drops the oldest runs beyond what is kept, and notes up to where they are forgotten.
pub(super) fn prune(tx: &mut Tx<'_>, basis: &Basis, name: &str) -> Result<(), StoreError> {
    if let Some(until) = sql::nth_newest(tx, name, basis.rules.history_max)? {
        sql::forget_runs(tx, name, until)?;
    }
    Ok(())
}

/// A schedule whose next time lies further ahead than a clock that went back would have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ahead {
    name: String,
    next_run_at: Timestamp,
    instead: Timestamp,
    /// Whether its runs tell of a clock that was far ahead.
    has_void_runs: bool,
}

/// Looks through a page of schedules, by name, for those that are ahead of the clock; answers where to
/// go on. Fires that have happened are found by their rows and do not happen again.
pub(super) fn ahead_page(
    tx: &mut Tx<'_>,
    now: Timestamp,
    after: &str,
) -> Result<(Vec<Ahead>, Option<String>), ScheduleError> {
    let page = sql::page(tx, after, PAGE)?;
    let next = page.last().filter(|_| page.len() == PAGE as usize);
    let next = next.map(|last| last.name.clone());
    let mut found = Vec::new();
    for schedule in page {
        let (Some(next_run_at), Ok(rule)) = (
            schedule.next_run_at.filter(|at| *at > now),
            schedule.spec.rule(),
        ) else {
            continue;
        };
        let Some(first) = rule.next_after(now, now) else {
            continue;
        };
        let instead = match schedule.spec.when {
            // Its steps count from the fire before: they begin anew only if that is in the future.
            When::Every(seconds)
                if next_run_at.micros_since(now) <= i64::from(seconds) * 1_000_000 =>
            {
                next_run_at
            }
            When::Every(_) | When::Cron(_) => first.min(next_run_at),
        };
        let newest = sql::runs(tx, &schedule.name, Timestamp(i64::MAX), 1)?.pop();
        let newest = newest.map(|run| run.fire_at).max(schedule.forgotten_until);
        let has_void_runs = newest.is_some_and(|at| at > void_from(now));
        if instead < next_run_at || has_void_runs {
            found.push(Ahead {
                name: schedule.name,
                next_run_at,
                instead,
                has_void_runs,
            });
        }
    }
    Ok((found, next))
}

fn void_from(now: Timestamp) -> Timestamp {
    now.plus_seconds(AHEAD_SECONDS_MAX)
}

/// Sets schedules that are ahead of the clock to their next time by it. Runs of more than a day ahead
/// are dropped: they would take the room of those that come now.
pub(super) fn set_back(
    tx: &mut Tx<'_>,
    now: Timestamp,
    ahead: &[Ahead],
) -> Result<(), ScheduleError> {
    for found in ahead {
        sql::advance(tx, &found.name, found.next_run_at, Some(found.instead))?;
        if found.has_void_runs {
            sql::drop_void_runs(tx, &found.name, void_from(now))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::cron::Expression;
    use super::*;

    fn spec(missed: Missed, missed_max: u32) -> Spec {
        Spec {
            when: When::Every(1),
            time_zone: "UTC".to_owned(),
            task: "x".to_owned(),
            queue: None,
            args: "{}".to_owned(),
            priority: None,
            max_attempts: None,
            timeout_ms: None,
            overlap: Overlap::Skip,
            missed,
            missed_max,
            jitter_ms: 0,
        }
    }

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(text).expect(text)
    }

    fn hourly() -> Rule {
        let zone = crate::zone::Zone::utc();
        Rule::Cron(Box::new(Expression::parse("0 * * * *", zone).expect("one")))
    }

    #[test]
    fn the_latest_fires_are_found_however_long_nobody_looked() {
        for (rule, step) in [(Rule::Every(1), 1), (Rule::Every(7), 7), (hourly(), 3_600)] {
            let first = at("2026-01-01T00:00:00Z");
            for back in [0, 5, 59, 60, 61, 4_000, 100_000, 40_000_000] {
                for most in [1_usize, 3, 100] {
                    let now = first.plus_seconds(back);
                    let all = back / step + 1;
                    let expected: Vec<Timestamp> = ((all - all.min(most as i64))..all)
                        .map(|at| first.plus_seconds(at * step))
                        .collect();
                    assert_eq!(
                        latest(&rule, first, now, most),
                        expected,
                        "{step} {back} {most}"
                    );
                }
            }
        }
    }

    #[test]
    fn late_is_missed_and_the_policy_decides() {
        let first = at("2026-01-01T00:00:00Z");
        let hour = |hour: i64| first.plus_seconds(hour * 3_600);
        let at_time =
            |now: Timestamp, missed, most| due(&hourly(), &spec(missed, most), first, now, 60);
        use Cause::{CatchUp, Time};
        for missed in [Missed::Skip, Missed::Once, Missed::All] {
            let on_time = at_time(first.plus_seconds(60), missed, 3);
            assert_eq!((on_time.fires, on_time.lost), (vec![(first, Time)], None));
            assert_eq!(on_time.next, Some(hour(1)));
        }
        let late = hour(5).plus_seconds(61);
        let skipped = at_time(late, Missed::Skip, 3);
        assert_eq!((skipped.fires, skipped.lost), (vec![], Some(hour(5))));
        assert_eq!(skipped.next, Some(hour(6)));
        assert_eq!(at_time(late, Missed::Once, 3).fires, [(hour(5), CatchUp)]);
        assert_eq!(
            at_time(late, Missed::All, 3).fires,
            [(hour(3), CatchUp), (hour(4), CatchUp), (hour(5), CatchUp)]
        );
        // The one that is on time stands for the missed ones, unless each counts.
        let on_time = hour(5).plus_seconds(3);
        assert_eq!(at_time(on_time, Missed::Once, 3).fires, [(hour(5), Time)]);
        assert_eq!(at_time(on_time, Missed::Skip, 3).fires, [(hour(5), Time)]);
        assert_eq!(
            at_time(on_time, Missed::All, 2).fires,
            [(hour(4), CatchUp), (hour(5), Time)]
        );
    }
}
