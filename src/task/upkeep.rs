//! The upkeep of tasks' rows: old ones go, results and waiting tasks past their time as well.
//!
//! Invariants: it takes no input and may run at any time and twice; it walks along the key in bounded
//! steps, so it needs no index and never reads more at once than a page; each removal is conditional
//! on the state, so a task that was retried meanwhile stays.

use std::sync::Arc;

use tokio::sync::watch;

use super::life::{recover, settle};
use super::rows::UpkeepRow;
use super::{Changes, TaskError, TaskId, TaskState, Tasks, sql};
use crate::clock::Timestamp;
use crate::config::{self, ms};

/// How long a run may go between its start and its handler.
const LOST_AFTER_SECONDS: i64 = 60;
/// Pages between two looks at locks and batches.
const PAGES_PER_LOOK: u32 = 50;

/// The background service.
pub struct Upkeep {
    tasks: Tasks,
    above: Option<TaskId>,
    pages: u32,
}

impl Upkeep {
    /// Begins with the oldest.
    pub fn new(tasks: Tasks) -> Self {
        Self {
            tasks,
            above: None,
            pages: 0,
        }
    }

    /// Runs until `stopped` turns true.
    pub async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let rest = ms(self.tasks.rules().upkeep_interval_ms);
        loop {
            let mut wait = rest;
            match self.step().await {
                Ok(true) => wait = std::time::Duration::ZERO,
                Ok(false) if self.above.is_none() => wait = rest * 10, // all of it was seen
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "old tasks could not be cleared away; it is tried again");
                    wait = rest * 10;
                }
            }
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One page; answers whether there was something to do.
    pub async fn step(&mut self) -> Result<bool, TaskError> {
        let (now, rules) = (self.tasks.now(), Arc::clone(self.tasks.rules()));
        let (above, rows) = (self.above, rules.upkeep_rows);
        let page = self
            .tasks
            .store()
            .read(move |tx| sql::old_above(tx, above, rows).map_err(TaskError::from))
            .await?;
        self.above = match page.last() {
            Some(last) if page.len() == rows as usize => Some(last.id),
            Some(_) | None => None, // the end: from the beginning again
        };
        if self.pages.is_multiple_of(PAGES_PER_LOOK) {
            self.look_at_locks_and_batches(now, &rules).await?;
        }
        self.pages = self.pages.wrapping_add(1);
        let dues: Vec<Due> = page
            .iter()
            .filter_map(|row| due(now, &rules, row).or_else(|| self.lost(now, row)))
            .collect();
        if dues.is_empty() {
            return Ok(false);
        }
        self.tasks
            .change(move |tx| {
                let mut changes = Changes::default();
                for due in &dues {
                    match *due {
                        Due::Remove(id) => {
                            sql::remove(tx, id)?;
                        }
                        Due::ForgetResult(id) => sql::forget_result(tx, now, id)?,
                        Due::TakeBack(id, attempt) => {
                            changes.add(recover(tx, now, &rules, id, attempt, None, |_| false)?);
                        }
                        Due::Expire(id) => {
                            let state = TaskState::Cancelled;
                            if let Some(ended) = sql::finish_waiting(tx, now, id, state, "expired")?
                            {
                                settle(tx, now, id, ended, state, &mut changes)?;
                            }
                        }
                    }
                }
                Ok(((), changes))
            })
            .await?;
        Ok(true)
    }

    /// A run that this process began and does not know: its start was answered to nobody.
    fn lost(&self, now: Timestamp, row: &UpkeepRow) -> Option<Due> {
        let is_own = row.process.as_deref() == Some(&**self.tasks.worker());
        let is_old = row
            .attempted_at
            .is_some_and(|at| at.plus_seconds(LOST_AFTER_SECONDS) <= now);
        (is_own && is_old && !self.tasks.running().lock().contains_key(&row.id))
            .then_some(Due::TakeBack(row.id, row.attempt))
    }

    async fn look_at_locks_and_batches(
        &self,
        now: Timestamp,
        rules: &config::Tasks,
    ) -> Result<(), TaskError> {
        let until = seconds_ago(now, rules.retention_seconds);
        let kept_seconds = rules.dead_retention_seconds.max(rules.retention_seconds);
        let dead_until = seconds_ago(now, kept_seconds);
        let begun = seconds_ago(now, rules.batch_open_seconds);
        let store = self.tasks.store();
        let (locks, batches, open_batches) = store
            .point(move |tx| {
                Ok::<_, TaskError>((
                    sql::any_old_lock(tx, now)?,
                    sql::any_old_batch(tx, until, dead_until)?,
                    sql::any_old_open_batch(tx, begun)?,
                ))
            })
            .await?;
        if locks {
            store
                .write(move |tx| sql::purge_locks(tx, now).map_err(TaskError::from))
                .await?;
        }
        if batches {
            store
                .write(move |tx| sql::purge_batches(tx, until, dead_until).map_err(TaskError::from))
                .await?;
        }
        if open_batches {
            store
                .write(move |tx| sql::purge_open_batches(tx, begun).map_err(TaskError::from))
                .await?;
        }
        Ok(())
    }
}

enum Due {
    Remove(TaskId),
    ForgetResult(TaskId),
    Expire(TaskId),
    TakeBack(TaskId, u32),
}

fn seconds_ago(now: Timestamp, seconds: u64) -> Timestamp {
    now.plus_seconds(-i64::try_from(seconds).unwrap_or(i64::MAX))
}

fn due(now: Timestamp, rules: &config::Tasks, row: &UpkeepRow) -> Option<Due> {
    let is_before = |at: Option<Timestamp>, until: Timestamp| at.is_some_and(|at| at <= until);
    let kept = match row.state {
        TaskState::Completed | TaskState::Cancelled => rules.retention_seconds,
        TaskState::Discarded => rules.dead_retention_seconds,
        TaskState::Scheduled | TaskState::Available | TaskState::Retryable => {
            return is_before(row.expires_at, now).then_some(Due::Expire(row.id));
        }
        TaskState::Running => return None,
    };
    if is_before(row.finished_at, seconds_ago(now, kept)) {
        Some(Due::Remove(row.id))
    } else if is_before(row.result_expires_at, now) {
        Some(Due::ForgetResult(row.id))
    } else {
        None
    }
}
