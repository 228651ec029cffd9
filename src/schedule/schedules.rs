//! The handle that other rooms hold: make, change, run, look, and do what is due.
//!
//! Invariants: whatever changes a schedule wakes the ticker once it is committed; what came of runs
//! is counted after the commit that wrote it down, and so once.

use std::sync::Arc;

use tokio::sync::Notify;

use super::fire::{self, OpenRun, Outcomes};
use super::{
    Basis, BuiltIn, Declared, Draft, Run, RunOutcome, Schedule, ScheduleError, declarations,
    declared, sql,
};
use crate::check::FieldError;
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::monitor::Metrics;
use crate::store::{Store, Tx};
use crate::task::Tasks;

/// See the module; clones share it.
#[derive(Clone)]
pub struct Schedules(Arc<Inner>);

struct Inner {
    tasks: Tasks,
    store: Store,
    clock: Clock,
    basis: Basis,
    metrics: Metrics,
    changed: Notify,
}

impl Schedules {
    /// A handle that fires nothing by itself; that is the ticker's to do.
    pub fn new(tasks: &Tasks, rules: Arc<config::Schedules>, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            tasks: tasks.clone(),
            store: tasks.store().clone(),
            clock: tasks.clock().clone(),
            basis: Basis {
                rules,
                task_rules: Arc::clone(tasks.rules()),
                registry: tasks.registry().clone(),
            },
            metrics,
            changed: Notify::new(),
        }))
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// What deciding takes.
    pub fn basis(&self) -> &Basis {
        &self.0.basis
    }

    /// Done when a schedule was changed in this process.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Runs `work` in a transaction, and wakes the ticker if it is committed.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Tx<'_>, Timestamp, &Basis) -> Result<T, ScheduleError> + Send + 'static,
    ) -> Result<T, ScheduleError> {
        let (now, basis, schedules) = (self.0.clock.now(), self.0.basis.clone(), self.clone());
        let after = move |done: &Result<T, ScheduleError>| {
            if done.is_ok() {
                schedules.0.changed.notify_one();
            }
        };
        self.0
            .store
            .write(move |tx| work(tx, now, &basis))
            .then(after)
            .await
    }

    /// Reads on one consistent snapshot.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, ScheduleError> + Send + 'static,
    ) -> Result<T, ScheduleError> {
        self.0.store.read(work).await
    }

    /// Brings the rows in line with what this program and the settings declare.
    pub async fn declare(&self, built_ins: &[BuiltIn]) -> Result<(), ScheduleError> {
        let declared = declarations(&self.0.basis, self.0.clock.now(), built_ins)?;
        self.declare_all(declared).await
    }

    async fn declare_all(&self, declared: Vec<Declared>) -> Result<(), ScheduleError> {
        let now = self.0.clock.now();
        let looked = declared.clone();
        let steps = self
            .read(move |tx| declared::differences(tx, now, &looked))
            .await?;
        if steps.is_empty() {
            return Ok(());
        }
        self.change(move |tx, now, basis| declared::apply(tx, now, basis, &declared))
            .await
    }

    /// There are only so many queues.
    fn require_queue(&self, draft: &Draft) -> Result<(), ScheduleError> {
        let is_full = |queue: &String| !self.0.tasks.admits_queue(queue);
        if draft.queue.as_ref().is_some_and(is_full) {
            let reason = "there are as many queues as may be";
            return Err(ScheduleError::Invalid(vec![FieldError::new(
                "queue", reason,
            )]));
        }
        Ok(())
    }

    /// Makes a schedule.
    pub async fn create(
        &self,
        name: String,
        draft: Draft,
        is_paused: bool,
    ) -> Result<Schedule, ScheduleError> {
        self.require_queue(&draft)?;
        self.change(move |tx, now, basis| {
            super::create(tx, now, basis, &name, draft.clone(), is_paused)
        })
        .await
    }

    /// Changes a schedule.
    pub async fn edit(&self, name: String, draft: Draft) -> Result<Schedule, ScheduleError> {
        self.require_queue(&draft)?;
        self.change(move |tx, now, basis| super::edit(tx, now, basis, &name, draft.clone()))
            .await
    }

    /// Removes a schedule.
    pub async fn remove(&self, name: String) -> Result<(), ScheduleError> {
        let removed = name.clone();
        self.change(move |tx, _, _| super::remove(tx, &removed))
            .await?;
        self.0
            .metrics
            .forget_schedule(&name, RunOutcome::WORDS.iter().copied());
        Ok(())
    }

    /// Pauses or resumes a schedule.
    pub async fn set_paused(
        &self,
        name: String,
        is_paused: bool,
    ) -> Result<Schedule, ScheduleError> {
        self.change(move |tx, now, _| super::set_paused(tx, now, &name, is_paused))
            .await
    }

    /// A schedule with its last run.
    pub async fn get(&self, name: String) -> Result<(Schedule, Option<Run>), ScheduleError> {
        self.read(move |tx| Ok((super::get(tx, &name)?, super::last_run(tx, &name)?)))
            .await
    }

    fn count(&self, outcomes: &Outcomes) {
        for (schedule, outcome) in outcomes {
            self.0.metrics.count_schedule_run(schedule, outcome.word());
        }
    }

    /// Does what is due now, each schedule in a transaction of its own. Two that do it at once, in
    /// this process or in another, do each fire once between them.
    pub async fn fire(&self) -> Result<(), ScheduleError> {
        let mut failed = None;
        loop {
            let now = self.0.clock.now();
            let names = self
                .0
                .store
                .point(move |tx| sql::due(tx, now, fire::PAGE).map_err(ScheduleError::from))
                .await?;
            let is_last = names.len() < fire::PAGE as usize;
            for name in names {
                let (basis, schedules) = (self.0.basis.clone(), self.clone());
                let fired = self
                    .0
                    .store
                    .write(move |tx| fire::fire_due(tx, now, &basis, &name))
                    .then(move |done| {
                        if let Ok(outcomes) = done {
                            schedules.count(outcomes);
                        }
                    })
                    .await;
                // The others are not to wait for one that can't.
                failed = fired.err().or(failed);
            }
            if let Some(error) = failed {
                return Err(error);
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Writes down what came of a page of runs; answers where to go on.
    pub(super) async fn settle(
        &self,
        above: Option<OpenRun>,
    ) -> Result<Option<OpenRun>, ScheduleError> {
        let (finished, next) = self
            .0
            .store
            .point(move |tx| fire::finished_page(tx, above.as_ref()))
            .await?;
        if !finished.is_empty() {
            let schedules = self.clone();
            self.0
                .store
                .write(move |tx| fire::settle(tx, &finished))
                .then(move |done| {
                    if let Ok(outcomes) = done {
                        schedules.count(outcomes);
                    }
                })
                .await?;
        }
        Ok(next)
    }

    /// After the clock went back: lets schedules that wait for a time beyond their next one go on.
    pub async fn follow_the_clock_back(&self) -> Result<(), ScheduleError> {
        let mut after = Some(String::new());
        while let Some(name) = after {
            let now = self.0.clock.now();
            let (ahead, next) = self
                .read(move |tx| fire::ahead_page(tx, now, &name))
                .await?;
            if !ahead.is_empty() {
                tracing::info!(
                    schedules = ahead.len(),
                    "schedules are ahead of the clock; they go by it again"
                );
                self.0
                    .store
                    .write(move |tx| fire::set_back(tx, now, &ahead))
                    .await?;
            }
            after = next;
        }
        Ok(())
    }

    /// When the next schedule fires.
    pub(super) async fn next(&self) -> Result<Option<Timestamp>, ScheduleError> {
        self.0
            .store
            .point(|tx| sql::next(tx).map_err(ScheduleError::from))
            .await
    }
}
