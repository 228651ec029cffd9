//! Schedules: what is to be done again and again.
//!
//! A schedule is a row that says when (a cron expression in a time zone, or an interval) and what (a
//! task). Each time it fires there is a row of its own, under `(schedule, fire_at)`.
//!
//! Invariants: what is due is decided from the rows, in the transaction that writes the fire, makes
//! its task and moves the schedule on; so a fire happens once or not at all, whatever crashes,
//! however many nodes look, and wherever the clock jumps. The nudge ([`Ticker`]) may come late,
//! twice or never. Nothing here knows what a task does.

pub mod api;
pub mod cron;
mod declared;
mod fire;
mod schedules;
mod sql;
#[cfg(test)]
mod tests;
mod ticker;

use std::sync::Arc;

use crate::auth::idempotency::KeyError;
use crate::check::{Checks, FieldError};
use crate::clock::Timestamp;
use crate::config;
use crate::store::{StoreError, Tx};
use crate::task::{Asked, NewTask, Registry, TaskError, TaskId};
use crate::word_type;
use crate::zone::Zone;
use cron::{Expression, Rule};

pub use declared::{BuiltIn, Declared, NotDeclarable, declarations};
pub use schedules::Schedules;
pub use ticker::Ticker;

/// Fires that are shown ahead.
const FIRES_AHEAD: usize = 10;
/// Longest interval and longest jitter: a year.
const SECONDS_MAX: u32 = 31_622_400;

word_type! {
    /// What a fire does while a task of an earlier one is unfinished.
    ///
    /// Customary are all three: Celery beat and Kubernetes allow by default, systemd's timers and
    /// Temporal skip, and Temporal names the last "buffer one". The default here is to skip, because
    /// what runs for longer than its interval seldom gets better by running twice.
    Overlap {
        /// Nothing: it is skipped.
        Skip = "skip",
        /// Makes its task all the same.
        Allow = "allow",
        /// Makes its task, to start when the other is finished; but only one ever waits so.
        QueueOne = "queue_one",
    }
}

word_type! {
    /// What becomes of fires that were missed: whose time was while no process looked, and that are either
    /// not the latest, or late by more than `schedules.late_seconds`.
    Missed {
        /// One task makes up for all of them (as anacron and systemd's `Persistent` have it).
        Once = "once",
        /// They are lost; the last of them is noted.
        Skip = "skip",
        /// Each is made up for, up to a number, the latest ones.
        All = "all",
    }
}

word_type! {
    /// What made a schedule.
    Source {
        /// A call of the API.
        Api = "api",
        /// The settings; it can be changed there alone.
        Settings = "settings",
        /// This program; it can't be removed.
        BuiltIn = "built_in",
    }
}

word_type! {
    /// Why a run happened.
    Cause {
        /// It was time.
        Time = "time",
        /// It makes up for what was missed.
        CatchUp = "catch_up",
        /// A call that said so.
        Hand = "hand",
    }
}

word_type! {
    /// What a run came to.
    RunOutcome {
        /// Its task is not finished, as far as is known.
        Enqueued = "enqueued",
        /// Its task is done.
        Completed = "completed",
        /// Its task was cancelled.
        Cancelled = "cancelled",
        /// Its task is dead.
        Discarded = "discarded",
        /// Its task was removed before a look at what had come of it.
        Removed = "removed",
        /// No task: an earlier one was unfinished.
        Skipped = "skipped",
        /// No task: it was missed, and is not made up for.
        Missed = "missed",
        /// No task: it does not fit any more.
        Refused = "refused",
    }
}

/// When a schedule fires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// As a cron expression says.
    Cron(String),
    /// Every so many seconds.
    Every(u32),
}

/// What a schedule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// When it fires.
    pub when: When,
    /// The zone in which an expression is read.
    pub time_zone: String,
    /// What is to be done.
    pub task: String,
    /// Where its tasks wait; `None` for the task's own queue.
    pub queue: Option<String>,
    /// JSON.
    pub args: String,
    /// Higher first; `None` for the task's own.
    pub priority: Option<u8>,
    /// How often each task may be started; `None` for the task's own.
    pub max_attempts: Option<u32>,
    /// Longest run of each task; `None` for the task's own.
    pub timeout_ms: Option<i64>,
    /// What a fire does while the task before is unfinished.
    pub overlap: Overlap,
    /// What becomes of missed fires.
    pub missed: Missed,
    /// How many of them [`Missed::All`] makes up for.
    pub missed_max: u32,
    /// Each task is put off by a random time up to this.
    pub jitter_ms: i64,
}

/// A schedule as it stands.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its name, which no other schedule has.
    pub name: String,
    /// What made it.
    pub source: Source,
    /// What it says.
    pub spec: Spec,
    /// Whether staff gave a built-in one other times than its own.
    pub is_edited: bool,
    /// Since when it does not fire.
    pub paused_at: Option<Timestamp>,
    /// When it fires next.
    pub next_run_at: Option<Timestamp>,
    /// Fires up to here have happened, though nothing is kept of them.
    forgotten_until: Option<Timestamp>,
    /// Why it does not fire, if it can't be read.
    pub error: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

impl Schedule {
    /// The next fires, up to ten.
    pub fn upcoming(&self) -> Vec<Timestamp> {
        let (Some(first), Ok(rule)) = (self.next_run_at, self.spec.rule()) else {
            return Vec::new();
        };
        std::iter::successors(Some(first), |at| rule.next_after(*at, first))
            .take(FIRES_AHEAD)
            .collect()
    }
}

/// One time that a schedule fired, or should have.
#[derive(Clone, Debug)]
pub struct Run {
    /// The moment at which it was to fire.
    pub fire_at: Timestamp,
    /// Why it happened.
    pub cause: Cause,
    /// What it came to.
    pub outcome: RunOutcome,
    /// Its task.
    pub task_id: Option<TaskId>,
    /// Why there is no task, or why it failed.
    pub error: Option<String>,
    /// When this was decided.
    pub created_at: Timestamp,
    /// When its task was started last.
    pub started_at: Option<Timestamp>,
    /// When its task was finished.
    pub finished_at: Option<Timestamp>,
}

/// What was asked of a schedule; what is absent stays as it is, or has its default.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// A cron expression.
    pub cron: Option<String>,
    /// An interval.
    pub interval_seconds: Option<u32>,
    /// IANA time zone.
    pub time_zone: Option<String>,
    /// What is to be done.
    pub task: Option<String>,
    /// Where its tasks wait.
    pub queue: Option<String>,
    /// JSON.
    pub args: Option<String>,
    /// Higher first.
    pub priority: Option<u8>,
    /// How often each task may be started.
    pub max_attempts: Option<u32>,
    /// Longest run of each task.
    pub timeout_seconds: Option<u32>,
    /// A word of [`Overlap`].
    pub overlap: Option<String>,
    /// A word of [`Missed`].
    pub missed: Option<String>,
    /// How many missed fires are made up for.
    pub missed_max: Option<u32>,
    /// Each task is put off by a random time up to this.
    pub jitter_seconds: Option<u32>,
}

impl From<&config::ScheduleEntry> for Draft {
    fn from(entry: &config::ScheduleEntry) -> Self {
        let entry = entry.clone();
        Self {
            cron: entry.cron,
            interval_seconds: entry.interval_seconds,
            time_zone: entry.time_zone,
            task: entry.task,
            queue: entry.queue,
            args: entry.args.map(|args| args.to_string()),
            priority: entry.priority,
            max_attempts: entry.max_attempts,
            timeout_seconds: entry.timeout_seconds,
            overlap: entry.overlap,
            missed: entry.missed,
            missed_max: entry.missed_max,
            jitter_seconds: entry.jitter_seconds,
        }
    }
}

impl Draft {
    /// Fields that say what is done, not when.
    fn task_fields(&self) -> Vec<&'static str> {
        [
            ("task", self.task.is_some()),
            ("queue", self.queue.is_some()),
            ("args", self.args.is_some()),
            ("priority", self.priority.is_some()),
            ("max_attempts", self.max_attempts.is_some()),
            ("timeout_seconds", self.timeout_seconds.is_some()),
        ]
        .into_iter()
        .filter_map(|(field, is_given)| is_given.then_some(field))
        .collect()
    }

    /// What it says on top of `base`. Not yet checked but for what can't be put into a [`Spec`].
    fn spec(self, base: Option<&Spec>, rules: &config::Schedules) -> Result<Spec, Vec<FieldError>> {
        let mut checks = Checks::new();
        checks.require(
            self.cron.is_none() || self.interval_seconds.is_none(),
            "interval_seconds",
            "does not go with cron",
        );
        let when = match (self.cron, self.interval_seconds) {
            (Some(cron), _) => Some(When::Cron(cron)),
            (None, Some(seconds)) => Some(When::Every(seconds)),
            (None, None) => base.map(|base| base.when.clone()),
        };
        checks.require(when.is_some(), "cron", "is required, or interval_seconds");
        let task = self.task.or_else(|| base.map(|base| base.task.clone()));
        checks.require(task.is_some(), "task", "is required");
        let overlap = match self.overlap {
            Some(word) => {
                let known = Overlap::from_word(&word);
                let reason = format!("must be one of {}", Overlap::WORDS.join(", "));
                checks.require(known.is_some(), "overlap", reason);
                known
            }
            None => Some(base.map_or(Overlap::Skip, |base| base.overlap)),
        };
        let missed = match self.missed {
            Some(word) => {
                let known = Missed::from_word(&word);
                let reason = format!("must be one of {}", Missed::WORDS.join(", "));
                checks.require(known.is_some(), "missed", reason);
                known
            }
            None => Some(base.map_or(Missed::Once, |base| base.missed)),
        };
        let (Some(when), Some(task), Some(overlap), Some(missed)) = (when, task, overlap, missed)
        else {
            checks.finish()?;
            return Err(Vec::new());
        };
        checks.finish()?;
        let ms = |seconds: u32| i64::from(seconds) * 1_000;
        Ok(Spec {
            when,
            time_zone: self
                .time_zone
                .or_else(|| base.map(|base| base.time_zone.clone()))
                .unwrap_or_else(|| rules.time_zone.name().to_owned()),
            task,
            queue: self.queue.or_else(|| base?.queue.clone()),
            args: self
                .args
                .or_else(|| base.map(|base| base.args.clone()))
                .unwrap_or_else(|| "{}".to_owned()),
            priority: self.priority.or_else(|| base?.priority),
            max_attempts: self.max_attempts.or_else(|| base?.max_attempts),
            timeout_ms: self.timeout_seconds.map(ms).or_else(|| base?.timeout_ms),
            overlap,
            missed,
            missed_max: self
                .missed_max
                .unwrap_or_else(|| base.map_or(rules.catch_up_max.min(10), |base| base.missed_max)),
            jitter_ms: self
                .jitter_seconds
                .map_or_else(|| base.map_or(0, |base| base.jitter_ms), ms),
        })
    }
}

/// What deciding about schedules takes besides the rows.
#[derive(Clone)]
pub struct Basis {
    /// Limits of schedules.
    pub rules: Arc<config::Schedules>,
    /// Limits of tasks.
    pub task_rules: Arc<config::Tasks>,
    /// The built-in tasks.
    pub registry: Registry,
}

impl Spec {
    /// When it fires; an error names the field.
    fn rule(&self) -> Result<Rule, FieldError> {
        let zone =
            Zone::named(&self.time_zone).map_err(|reason| FieldError::new("time_zone", reason))?;
        match &self.when {
            When::Cron(text) => Expression::parse(text, zone)
                .map(|expression| Rule::Cron(Box::new(expression)))
                .map_err(|reason| FieldError::new("cron", reason)),
            When::Every(seconds) if (1..=SECONDS_MAX).contains(seconds) => {
                Ok(Rule::Every(i64::from(*seconds)))
            }
            When::Every(_) => Err(FieldError::new(
                "interval_seconds",
                format!("must be between 1 and {SECONDS_MAX}"),
            )),
        }
    }

    /// The task that a fire makes.
    fn task(&self, basis: &Basis, now: Timestamp) -> Result<NewTask, Vec<FieldError>> {
        let asked = Asked {
            name: self.task.clone(),
            queue: self.queue.clone(),
            args: self.args.clone(),
            priority: self.priority,
            max_attempts: self.max_attempts,
            timeout_ms: self.timeout_ms,
            ..Asked::default()
        };
        let named = |mut fault: FieldError| {
            if fault.field == "name" {
                "task".clone_into(&mut fault.field);
            }
            fault
        };
        let new = basis
            .registry
            .resolve(&basis.task_rules, asked)
            .map_err(|error| match error {
                TaskError::Invalid(faults) => faults,
                other => vec![FieldError::new("task", other.to_string())],
            })
            .and_then(|new| {
                basis.registry.check(&basis.task_rules, now, &new)?;
                Ok(new)
            });
        new.map_err(|faults| faults.into_iter().map(named).collect())
    }

    /// Holds it against what may be; answers when it fires.
    fn check(&self, basis: &Basis, now: Timestamp) -> Result<Rule, Vec<FieldError>> {
        let mut faults = Vec::new();
        let mut checks = Checks::new();
        checks.range("missed_max", self.missed_max, 1, basis.rules.catch_up_max);
        checks.range(
            "jitter_seconds",
            self.jitter_ms / 1_000,
            0,
            i64::from(SECONDS_MAX),
        );
        faults.extend(checks.finish().err().unwrap_or_default());
        faults.extend(self.task(basis, now).err().unwrap_or_default());
        if let When::Cron(text) = &self.when
            && let Err(reason) = cron::check_steps(text)
        {
            faults.insert(0, FieldError::new("cron", reason));
        }
        match self.rule() {
            Ok(rule) if faults.is_empty() => Ok(rule),
            Ok(_) => Err(faults),
            Err(fault) => {
                faults.insert(0, fault);
                Err(faults)
            }
        }
    }
}

/// Why something could not be done to a schedule.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Fields don't hold.
    #[error("the schedule is not valid")]
    Invalid(Vec<FieldError>),
    /// No such schedule.
    #[error("there is no schedule {0}")]
    NotFound(String),
    /// There is one of that name.
    #[error("there is a schedule {0} already")]
    Exists(String),
    /// There are as many as may be.
    #[error("there are {0} schedules, and that is as many as may be")]
    TooMany(u32),
    /// Its source does not allow it.
    #[error("{}", fixed(.0, *.1))]
    Fixed(String, Source),
    /// Its overlap policy does not let it run now.
    #[error(
        "a task of the schedule {0} is unfinished, and its overlap policy lets no other be made"
    )]
    Unfinished(String),
    /// What is declared can't be.
    #[error(transparent)]
    NotDeclarable(#[from] NotDeclarable),
    /// The idempotency key was used for another request.
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn fixed(name: &str, source: Source) -> String {
    match source {
        Source::Settings => format!(
            "the schedule {name} is declared in the settings: change it there; it can be paused here"
        ),
        Source::BuiltIn | Source::Api => format!(
            "the schedule {name} is built in: it can be paused and given other times, not removed"
        ),
    }
}

impl From<KeyError> for ScheduleError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Reused => ScheduleError::KeyReused,
            KeyError::Store(error) => ScheduleError::Store(error),
        }
    }
}

impl From<TaskError> for ScheduleError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Store(error) => ScheduleError::Store(error),
            TaskError::Invalid(faults) => ScheduleError::Invalid(faults),
            other => ScheduleError::Store(StoreError::Bug(other.to_string())),
        }
    }
}

/// A name is part of addresses and labels.
fn check_name(name: &str) -> Result<(), Vec<FieldError>> {
    let mut checks = Checks::new();
    checks.path_name("name", name);
    checks.finish()
}

/// Reads a schedule.
pub fn get(tx: &mut Tx<'_>, name: &str) -> Result<Schedule, ScheduleError> {
    sql::get(tx, name)?.ok_or_else(|| ScheduleError::NotFound(name.to_owned()))
}

/// Makes a schedule.
pub fn create(
    tx: &mut Tx<'_>,
    now: Timestamp,
    basis: &Basis,
    name: &str,
    draft: Draft,
    is_paused: bool,
) -> Result<Schedule, ScheduleError> {
    check_name(name).map_err(ScheduleError::Invalid)?;
    let spec = draft
        .spec(None, &basis.rules)
        .map_err(ScheduleError::Invalid)?;
    let rule = spec.check(basis, now).map_err(ScheduleError::Invalid)?;
    let next = rule.next_after(now, now).filter(|_| !is_paused);
    let paused_at = is_paused.then_some(now);
    insert(tx, now, basis, name, Source::Api, &spec, paused_at, next)?;
    get(tx, name)
}

#[expect(
    clippy::too_many_arguments,
    reason = "the columns of a new row; a struct would only repeat their names"
)]
fn insert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    basis: &Basis,
    name: &str,
    source: Source,
    spec: &Spec,
    paused_at: Option<Timestamp>,
    next: Option<Timestamp>,
) -> Result<(), ScheduleError> {
    let most = basis.rules.schedules_max;
    if sql::insert(tx, now, name, source, spec, paused_at, next, most)? {
        return Ok(());
    }
    Err(match sql::get(tx, name)? {
        Some(_) => ScheduleError::Exists(name.to_owned()),
        None => ScheduleError::TooMany(most),
    })
}

/// Changes a schedule. With other times it begins anew: what was due and not done is dropped.
pub fn edit(
    tx: &mut Tx<'_>,
    now: Timestamp,
    basis: &Basis,
    name: &str,
    draft: Draft,
) -> Result<Schedule, ScheduleError> {
    let before = get(tx, name)?;
    match before.source {
        Source::Api => {}
        Source::Settings => return Err(ScheduleError::Fixed(before.name, before.source)),
        Source::BuiltIn => {
            let mut checks = Checks::new();
            for field in draft.task_fields() {
                checks.require(false, field, "can't be changed: the schedule is built in");
            }
            checks.finish().map_err(ScheduleError::Invalid)?;
        }
    }
    let spec = draft
        .spec(Some(&before.spec), &basis.rules)
        .map_err(ScheduleError::Invalid)?;
    let rule = spec.check(basis, now).map_err(ScheduleError::Invalid)?;
    let next = next_of(now, &before, &spec, &rule);
    let is_edited = before.source == Source::BuiltIn;
    sql::update(tx, now, name, before.source, &spec, is_edited, next)?;
    get(tx, name)
}

/// When a schedule that now says `spec` fires next: as before, unless that is what changed.
fn next_of(now: Timestamp, before: &Schedule, spec: &Spec, rule: &Rule) -> Option<Timestamp> {
    if before.paused_at.is_some() {
        return None;
    }
    let is_same = before.spec.when == spec.when && before.spec.time_zone == spec.time_zone;
    before
        .next_run_at
        .filter(|_| is_same)
        .or_else(|| rule.next_after(now, now))
}

/// Removes a schedule and its history. Its tasks go on.
pub fn remove(tx: &mut Tx<'_>, name: &str) -> Result<(), ScheduleError> {
    let before = get(tx, name)?;
    match before.source {
        Source::Api => Ok(sql::remove(tx, name)?),
        Source::Settings | Source::BuiltIn => Err(ScheduleError::Fixed(before.name, before.source)),
    }
}

/// Stops a schedule from firing, or lets it fire again from now on: what would have been meanwhile is
/// not made up for.
pub fn set_paused(
    tx: &mut Tx<'_>,
    now: Timestamp,
    name: &str,
    is_paused: bool,
) -> Result<Schedule, ScheduleError> {
    let before = get(tx, name)?;
    if is_paused != before.paused_at.is_some() {
        let next = match before.spec.rule() {
            Ok(rule) => rule.next_after(now, now),
            Err(fault) if is_paused => {
                tracing::debug!(
                    name,
                    fault.reason,
                    "a schedule that can't be read is paused"
                );
                None
            }
            Err(fault) => return Err(ScheduleError::Invalid(vec![fault])),
        };
        let paused_at = is_paused.then_some(now);
        sql::set_paused(tx, now, name, paused_at, next.filter(|_| !is_paused))?;
    }
    get(tx, name)
}

/// Makes a schedule's task now, whatever the time is and whether it is paused or not; its overlap
/// policy holds.
pub fn run(
    tx: &mut Tx<'_>,
    now: Timestamp,
    basis: &Basis,
    name: &str,
) -> Result<(Timestamp, TaskId), ScheduleError> {
    let schedule = get(tx, name)?;
    // Not a whole second, so that it can't take the place of a fire.
    let from = Timestamp(now.0.saturating_add(i64::from(now.0 % 1_000_000 == 0)));
    let Some(fire_at) = fire::record_from(tx, now, name, from, Cause::Hand)? else {
        return Err(ScheduleError::Unfinished(schedule.name));
    };
    match fire::make_task(tx, now, basis, &schedule, fire_at)? {
        fire::Made::Task(id) => {
            sql::set_task(tx, name, fire_at, id)?;
            fire::prune(tx, basis, name)?;
            Ok((fire_at, id))
        }
        fire::Made::Skipped => Err(ScheduleError::Unfinished(schedule.name)),
        fire::Made::Refused(faults) => Err(ScheduleError::Invalid(faults)),
    }
}

/// Runs of a schedule before `before`, newest first.
pub fn runs(
    tx: &mut Tx<'_>,
    name: &str,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<Run>, ScheduleError> {
    get(tx, name)?;
    let mut runs = sql::runs(tx, name, before, limit)?;
    fire::look(tx, &mut runs)?;
    Ok(runs)
}

/// Schedules with their last runs, by name, after `after`.
pub fn list(
    tx: &mut Tx<'_>,
    after: &str,
    limit: u32,
) -> Result<Vec<(Schedule, Option<Run>)>, ScheduleError> {
    let page = sql::page(tx, after, limit)?;
    let mut last = sql::last_runs(tx, after, limit)?;
    fire::look(tx, last.values_mut())?;
    Ok(page
        .into_iter()
        .map(|schedule| {
            let last = last.remove(&schedule.name);
            (schedule, last)
        })
        .collect())
}

/// A schedule's last run.
pub fn last_run(tx: &mut Tx<'_>, name: &str) -> Result<Option<Run>, ScheduleError> {
    let mut run = sql::runs(tx, name, Timestamp(i64::MAX), 1)?.pop();
    fire::look(tx, &mut run)?;
    Ok(run)
}
