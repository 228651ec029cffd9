//! Tasks that only write, done in the transaction that would have started them.
//!
//! Invariant: what is done so leaves the rows that a start and an end one after the other leave; what fails
//! leaves nothing, and goes the ordinary way.

use std::sync::Arc;

use super::handler::{Effect, TaskFailure, result_text};
use crate::clock::{Stopwatch, Timestamp};
use crate::config;
use crate::monitor::statements::StatementCaller;
use crate::store::Tx;
use crate::task::life::settle;
use crate::task::rows::Fresh;
use crate::task::{Changes, Entry, TaskError, TaskId, TaskState, sql};

/// A task that is done at once, as the caller in whose name its statements run.
struct AtOnce {
    id: TaskId,
    name: String,
    traceparent: Option<String>,
}

impl StatementCaller for AtOnce {
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

/// Does a task that only writes, from its start to its end, in this transaction: `effect` tells from
/// name and arguments what that is. `None` if it has to go the ordinary way: because it is not of
/// that kind, was started before, or failed just now, which the ordinary way finds out once more and
/// notes.
///
/// For tasks that were enqueued since this process began, for a start that is not on disk is not
/// counted: one that takes the process down goes the ordinary way from the next start on.
pub(in crate::task) fn do_at_once(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Tasks,
    entry: &Entry,
    worker: &str,
    effect: impl FnOnce(&str, &str) -> Option<Effect>,
) -> Result<Option<Changes>, TaskError> {
    let Some(fresh) = sql::fresh(tx, now, entry)? else {
        return Ok(None);
    };
    let Fresh {
        args,
        traceparent,
        mut ended,
    } = fresh;
    let Some(effect) = effect(&ended.name, &args) else {
        return Ok(None);
    };
    let (id, followers) = (entry.id, ended.followers);
    let result_seconds = i64::try_from(rules.result_seconds).unwrap_or(i64::MAX);
    let watch = Stopwatch::start();
    let run = Arc::new(AtOnce {
        id,
        name: ended.name.clone(),
        traceparent,
    });
    let done = tx.part(|tx| {
        let result = tx.called_by(run, |tx| effect(tx, now))?;
        let result = result_text(rules, result.as_ref())?;
        let result = result.as_deref();
        match sql::complete_fresh(tx, now, id, worker, followers, result, result_seconds)? {
            true => Ok(()),
            false => Err(TaskFailure::retry("the task changed meanwhile")),
        }
    })?;
    if let Err(failure) = done {
        tracing::debug!(%failure, task = %id, "a task that failed at once goes the ordinary way");
        return Ok(None);
    }
    let micros = i64::try_from(watch.elapsed().as_micros()).unwrap_or(i64::MAX);
    ended.started_at = Some(Timestamp(now.0.saturating_sub(micros)));
    let mut changes = Changes::default();
    settle(tx, now, id, ended, TaskState::Completed, &mut changes)?;
    fail::fail_point!("task.completed");
    Ok(Some(changes))
}
