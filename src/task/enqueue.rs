//! Making tasks: one, many, in order, counted together, or at most once.
//!
//! Invariants: everything here runs in the caller's transaction, so a task exists exactly if what it
//! is for was committed; a lock is taken by one statement; a task that waits for others knows how
//! many, and nobody ever looks for tasks that could go on: whoever finishes counts down.

use super::rows::{Placed, RunBy};
use super::{ENQUEUED, NewTask, Started, TaskError, TaskId, TaskState, Until, sql};
use crate::check::FieldError;
use crate::clock::{self, Timestamp};
use crate::store::{StoreError, Tx};

impl NewTask {
    /// Whether it has no key of any kind and waits for no other task.
    fn is_plain(&self) -> bool {
        self.external_id.is_none()
            && self.unique.is_none()
            && self.debounce.is_none()
            && self.after.is_empty()
    }
}

/// What an enqueue came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// A new task.
    New(TaskId),
    /// None: this one holds the unique key.
    Duplicate(TaskId),
    /// None: this one was put off and has the new arguments.
    PutOff(TaskId),
}

impl Enqueued {
    /// The task that stands for the enqueue.
    pub fn id(self) -> TaskId {
        match self {
            Enqueued::New(id) | Enqueued::Duplicate(id) | Enqueued::PutOff(id) => id,
        }
    }
}

/// Makes a task in the caller's transaction. What it asks for is taken as checked
/// ([`super::Registry::check`] does that for what comes from outside).
pub fn enqueue(tx: &mut Tx<'_>, now: Timestamp, new: &NewTask) -> Result<Enqueued, TaskError> {
    Ok(enqueue_in(tx, now, new, None, &mut || None)?.0)
}

/// [`enqueue`] of a task that may be started at once, if `runner` finds who waits for it; asked only where
/// nothing else stands in the way of that. Its row is written as started, and it comes with its run.
pub(super) fn enqueue_for(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewTask,
    runner: &mut dyn FnMut() -> Option<RunBy>,
) -> Result<(Enqueued, Option<Started>), TaskError> {
    enqueue_in(tx, now, new, None, runner)
}

/// Tasks that are written in one statement.
const TOGETHER_MAX: usize = 256;

/// Makes many, in order. Where none of them asks for more than to be done, a statement writes many.
pub fn enqueue_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &[NewTask],
) -> Result<Vec<Enqueued>, TaskError> {
    if new.len() < 2 || !new.iter().all(NewTask::is_plain) {
        return new.iter().map(|new| enqueue(tx, now, new)).collect();
    }
    let caller = tx.caller();
    let trace = caller.as_ref().and_then(|caller| caller.trace());
    let mut all = Vec::with_capacity(new.len());
    for new in new.chunks(TOGETHER_MAX) {
        let placed: Vec<Placed<'_>> = new
            .iter()
            .map(|new| Placed {
                id: TaskId::next(now),
                new,
                state: match new.run_at {
                    Some(at) if at > now => TaskState::Scheduled,
                    _ => TaskState::Available,
                },
                run_at: new.run_at.unwrap_or(now),
                waiting_on: 0,
                lock: None,
                batch_id: None,
                error: None,
                traceparent: new.traceparent.as_deref().or(trace),
            })
            .collect();
        sql::insert_all(tx, now, &placed)?;
        all.extend(placed.iter().map(|placed| Enqueued::New(placed.id)));
    }
    fail::fail_point!("task.enqueued");
    tx.touch(ENQUEUED);
    Ok(all)
}

fn enqueue_in(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewTask,
    batch_id: Option<&str>,
    runner: &mut dyn FnMut() -> Option<RunBy>,
) -> Result<(Enqueued, Option<Started>), TaskError> {
    if let Some(external_id) = &new.external_id
        && let Some(there) = sql::by_external_id(tx, external_id)?
    {
        return Ok((Enqueued::Duplicate(there), None));
    }
    let id = TaskId::next(now);
    let run_at = new.run_at.unwrap_or(now);
    let mut lock = None;
    if let Some(debounce) = &new.debounce {
        if let Some(holder) = take_lock(tx, now, id, &debounce.key, Until::Started, None)? {
            if sql::put_off(tx, holder, run_at, &new.args, new.metadata.as_deref())? {
                tx.touch(ENQUEUED);
                return Ok((Enqueued::PutOff(holder), None));
            }
            // It waits no longer: the key goes over to the new task.
            sql::hand_over_lock(tx, &debounce.key, holder, id)?;
        }
        lock = Some((debounce.key.as_str(), Until::Started));
    } else if let Some(unique) = &new.unique {
        let ends = unique.seconds.map(|seconds| now.plus_seconds(seconds));
        if let Some(holder) = take_lock(tx, now, id, &unique.key, unique.until, ends)? {
            return Ok((Enqueued::Duplicate(holder), None));
        }
        lock = Some((unique.key.as_str(), unique.until));
    }
    let (waiting_on, broken) = wait_for(tx, id, new)?;
    let state = match broken {
        Some(_) => TaskState::Cancelled,
        None if waiting_on > 0 || run_at > now => TaskState::Scheduled,
        None => TaskState::Available,
    };
    let caller = tx.caller();
    let trace = caller.as_ref().and_then(|caller| caller.trace());
    let placed = Placed {
        id,
        new,
        state,
        run_at,
        waiting_on,
        lock,
        batch_id,
        error: broken.as_deref(),
        traceparent: new.traceparent.as_deref().or(trace),
    };
    let may_start = state == TaskState::Available && new.expires_at.is_none_or(|at| at > now);
    if let Some(run) = may_start.then(runner).flatten() {
        let started = started(now, &placed, &run);
        sql::insert_started(tx, now, &placed, &run, started.lease_expires_at)?;
        if let Some((key, _)) = lock {
            sql::release_started_lock(tx, key, id)?;
        }
        fail::fail_point!("task.enqueued");
        // The relay need not look for it.
        return Ok((Enqueued::New(id), Some(started)));
    }
    sql::insert(tx, now, &placed)?;
    fail::fail_point!("task.enqueued");
    if broken.is_some() {
        if let Some((key, _)) = lock {
            sql::release_lock(tx, key, id)?;
        }
        if let Some(batch) = batch_id {
            sql::count_down_batch(tx, batch, true)?;
        }
    } else if waiting_on == 0 {
        tx.touch(ENQUEUED);
    }
    Ok((Enqueued::New(id), None))
}

/// The first run of a task that is enqueued as started.
fn started(now: Timestamp, placed: &Placed<'_>, run: &RunBy) -> Started {
    let new = placed.new;
    let longest = run.at.plus_ms(new.timeout_ms);
    Started {
        id: placed.id,
        attempt: 1,
        max_attempts: new.max_attempts,
        name: new.name.to_string(),
        queue: new.queue.to_string(),
        args: new.args.clone(),
        metadata: new.metadata.clone(),
        traceparent: placed.traceparent.map(str::to_owned),
        timeout_ms: new.timeout_ms,
        soft_timeout_ms: new.soft_timeout_ms,
        created_at: now,
        run_at: placed.run_at,
        batch_id: placed.batch_id.map(str::to_owned),
        lease_expires_at: Some(run.lease_ends.min(longest)),
        external_id: new.external_id.clone(),
    }
}

/// Takes the key for `id`; answers who has it instead.
pub(super) fn take_lock(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: TaskId,
    key: &str,
    until: Until,
    ends: Option<Timestamp>,
) -> Result<Option<TaskId>, TaskError> {
    if sql::take_lock(tx, now, key, id, until, ends)? {
        return Ok(None);
    }
    let holder = sql::lock_holder(tx, key)?;
    Ok(Some(holder.ok_or_else(|| {
        StoreError::Bug("a lock that is held has no holder".to_owned())
    })?))
}

/// Ties `id` to the unfinished ones of those it waits for. Answers how many those are, and why it
/// can never run, if one of them has failed already.
fn wait_for(
    tx: &mut Tx<'_>,
    id: TaskId,
    new: &NewTask,
) -> Result<(u32, Option<String>), TaskError> {
    let (mut waiting_on, mut broken) = (0, None);
    for upstream in &new.after {
        if sql::add_follower(tx, *upstream)? {
            if sql::insert_edge(tx, *upstream, id, new.after_failure)? {
                waiting_on += 1;
            } else {
                sql::drop_follower(tx, *upstream)?; // named twice
            }
            continue;
        }
        match sql::state(tx, *upstream)? {
            None => {
                return Err(TaskError::Invalid(vec![FieldError::new(
                    "after",
                    format!("there is no task {upstream}"),
                )]));
            }
            Some((TaskState::Completed, _)) => {}
            Some((state, _)) if !new.after_failure => {
                broken = Some(not_completed(*upstream, state));
            }
            Some(_) => {}
        }
    }
    if broken.is_some() {
        for upstream in &new.after {
            if sql::remove_edge(tx, *upstream, id)? {
                sql::drop_follower(tx, *upstream)?;
            }
        }
        return Ok((0, broken));
    }
    Ok((waiting_on, None))
}

/// Why a task that waited for `upstream` is cancelled.
pub(super) fn not_completed(upstream: TaskId, state: TaskState) -> String {
    format!("task {upstream}, which it waited for, was {}", state.word())
}

/// Makes tasks of which each waits for the one before.
pub fn enqueue_chain(
    tx: &mut Tx<'_>,
    now: Timestamp,
    tasks: &[NewTask],
) -> Result<Vec<TaskId>, TaskError> {
    let nodes: Vec<Node> = tasks
        .iter()
        .enumerate()
        .map(|(at, task)| Node {
            task: task.clone(),
            after: at.checked_sub(1).into_iter().collect(),
        })
        .collect();
    enqueue_graph(tx, now, &nodes)
}

/// A task of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The task.
    pub task: NewTask,
    /// Places in the list of those that it waits for; each before its own, so there is no circle.
    pub after: Vec<usize>,
}

/// Makes tasks that wait for each other. None of them may turn out to be a duplicate: what waits for
/// it would wait for another's task.
pub fn enqueue_graph(
    tx: &mut Tx<'_>,
    now: Timestamp,
    nodes: &[Node],
) -> Result<Vec<TaskId>, TaskError> {
    let mut ids: Vec<TaskId> = Vec::with_capacity(nodes.len());
    for (at, node) in nodes.iter().enumerate() {
        let invalid = |what: &str, reason: &str| {
            TaskError::Invalid(vec![FieldError::new(format!("tasks[{at}].{what}"), reason)])
        };
        let mut task = node.task.clone();
        for upstream in &node.after {
            let id = ids.get(*upstream).ok_or_else(|| {
                invalid("after", "must name tasks that stand before it in the list")
            })?;
            task.after.push(*id);
        }
        match enqueue(tx, now, &task)? {
            Enqueued::New(id) => ids.push(id),
            Enqueued::Duplicate(_) | Enqueued::PutOff(_) => {
                return Err(invalid("unique", "another task holds this key"));
            }
        }
    }
    Ok(ids)
}

/// Tasks that are counted together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewBatch {
    /// For people.
    pub description: Option<String>,
    /// The tasks.
    pub tasks: Vec<NewTask>,
    /// Enqueued once all are completed, be it that some were tried again by hand.
    pub on_success: Option<NewTask>,
    /// Enqueued when all are completed, cancelled or dead for the first time.
    pub on_complete: Option<NewTask>,
}

/// A batch that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Key, UUIDv7.
    pub id: String,
    /// Its tasks.
    pub tasks: Vec<Enqueued>,
}

/// Makes a batch with all its tasks.
pub fn enqueue_batch(tx: &mut Tx<'_>, now: Timestamp, new: &NewBatch) -> Result<Batch, TaskError> {
    let id = open_batch(
        tx,
        now,
        new.description.as_deref(),
        new.on_success.as_ref(),
        new.on_complete.as_ref(),
    )?;
    let mut tasks = Vec::with_capacity(new.tasks.len());
    for task in &new.tasks {
        tasks.push(add_to_batch(tx, now, &id, task)?.ok_or_else(|| {
            StoreError::Bug("a batch was complete before it was sealed".to_owned())
        })?);
    }
    seal_batch(tx, now, &id)?;
    Ok(Batch { id, tasks })
}

/// Begins a batch to which tasks can be added until [`seal_batch`].
pub fn open_batch(
    tx: &mut Tx<'_>,
    now: Timestamp,
    description: Option<&str>,
    on_success: Option<&NewTask>,
    on_complete: Option<&NewTask>,
) -> Result<String, TaskError> {
    let text = |task: Option<&NewTask>| {
        task.map(serde_json::to_string)
            .transpose()
            .map_err(|error| StoreError::Bug(error.to_string()))
    };
    let id = clock::uuid_at(now).to_string();
    sql::insert_batch(
        tx,
        now,
        &id,
        description,
        text(on_success)?.as_deref(),
        text(on_complete)?.as_deref(),
    )?;
    Ok(id)
}

/// Adds a task to a batch that is not complete; `None` if it is, or was never there.
pub fn add_to_batch(
    tx: &mut Tx<'_>,
    now: Timestamp,
    batch_id: &str,
    new: &NewTask,
) -> Result<Option<Enqueued>, TaskError> {
    if !sql::grow_batch(tx, batch_id, 1)? {
        return Ok(None);
    }
    let (enqueued, _) = enqueue_in(tx, now, new, Some(batch_id), &mut || None)?;
    if !matches!(enqueued, Enqueued::New(_)) {
        // Another's task is not this batch's to count.
        sql::grow_batch(tx, batch_id, -1)?;
    }
    Ok(Some(enqueued))
}

/// Ends the adding; a batch whose tasks are all finished is complete with this.
pub fn seal_batch(tx: &mut Tx<'_>, now: Timestamp, batch_id: &str) -> Result<(), TaskError> {
    sql::seal_batch(tx, now, batch_id)?;
    close_batch_if_done(tx, now, batch_id)
}

/// Enqueues a batch's callbacks if nothing of it is pending. Closing is conditional, so each comes
/// once: `on_complete` with the first closing, and `on_success` with the one that finds no failed task,
/// after which nothing of the batch can be tried again.
pub(super) fn close_batch_if_done(
    tx: &mut Tx<'_>,
    now: Timestamp,
    batch_id: &str,
) -> Result<(), TaskError> {
    let Some(closed) = sql::close_batch(tx, now, batch_id)? else {
        return Ok(());
    };
    let on_success = closed.on_success.filter(|_| closed.failed == 0);
    let on_complete = closed.on_complete.filter(|_| !closed.is_again);
    for text in [on_success, on_complete].into_iter().flatten() {
        let mut task: NewTask =
            serde_json::from_str(&text).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        // What was "at once" when the batch was made means now.
        task.run_at = task.run_at.filter(|at| *at > now);
        enqueue(tx, now, &task)?;
    }
    Ok(())
}
