//! The handle that everyone else holds: enqueue, fetch, answer, steer.
//!
//! Invariants: whatever changes a task goes through [`Tasks::change`], which tells the delivery once
//! it is committed; a task that was handed out and not started, because its asker went away at any
//! moment, waits again; a worker hears of a task that was handed over only after the commit that started it.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::relay::{Delivery, IsAway, Message, Parts, Stats, Take, Taker};
use crate::clock::{self, Clock, Moment, Timestamp};
use crate::config;
use crate::monitor::Metrics;
use crate::store::{Patience, Promise, Promised, Store, StoreError, Tx};
use crate::task::enqueue::enqueue_for;
use crate::task::life::start_all;
use crate::task::rows::RunBy;
use crate::task::run::do_at_once;
use crate::task::{
    self, Beat, Changes, Enqueued, Entry, Failure, NewTask, QueueRow, Registry, Start, Started,
    TaskError, TaskId, sql,
};

/// See the module; clones share it.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    rules: Arc<config::Tasks>,
    metrics: Metrics,
    registry: Registry,
    worker: Arc<str>,
    /// Whatever this process enqueues comes after it.
    first: TaskId,
    delivery: Mutex<Option<Arc<Delivery>>>,
    fetchers: AtomicUsize,
    /// Whether those who wait for tasks are sent away, because the process stops.
    turned_away: watch::Sender<bool>,
    /// Queues that there are, as of a second ago.
    names: Arc<ArcSwap<BTreeSet<String>>>,
    /// Whoever knows the workers of a protocol tells whether one has gone.
    is_away: Arc<OnceLock<IsAway>>,
    /// Runs in this process, and the way to tell them that they are cancelled.
    running: Arc<Mutex<HashMap<TaskId, watch::Sender<bool>>>>,
}

/// Makes ids go on above those that are there. For whatever opens a data directory, before its
/// first enqueue.
pub fn continue_ids(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    if let Some(last) = sql::last_id(tx)? {
        TaskId::start_above(last);
    }
    Ok(())
}

impl Tasks {
    /// A handle that can change tasks and delivers none, until [`Tasks::deliver`].
    pub fn new(
        store: Store,
        clock: Clock,
        rules: Arc<config::Tasks>,
        metrics: Metrics,
        registry: Registry,
    ) -> Self {
        let now = clock.now();
        Self(Arc::new(Inner {
            store,
            clock,
            rules,
            metrics,
            registry,
            worker: format!("process:{}", clock::uuid_at(now)).into(),
            first: TaskId::next(now),
            delivery: Mutex::new(None),
            fetchers: AtomicUsize::new(0),
            turned_away: watch::channel(false).0,
            names: Arc::default(),
            is_away: Arc::default(),
            running: Arc::default(),
        }))
    }

    /// Starts the delivery, with its index in `folder`. Blocks on the disk.
    pub fn deliver(&self, folder: PathBuf) -> Result<(), StoreError> {
        let inner = &self.0;
        let (metrics, registry) = (inner.metrics.clone(), inner.registry.clone());
        let delivery = Delivery::start(Parts {
            store: inner.store.clone(),
            clock: inner.clock.clone(),
            rules: Arc::clone(&inner.rules),
            metrics: inner.metrics.clone(),
            folder,
            worker: Arc::clone(&inner.worker),
            names: Arc::clone(&inner.names),
            is_away: Arc::clone(&inner.is_away),
            on_changes: Arc::new(move |changes| count(&metrics, &registry, changes)),
        })?;
        *inner.delivery.lock() = Some(Arc::new(delivery));
        Ok(())
    }

    /// From now on nobody waits for a task: the process is about to stop.
    pub fn turn_away(&self) {
        self.0.turned_away.send_replace(true);
    }

    /// Ends the delivery; in order if every run of this process is over. Blocks.
    pub fn stop(&self) {
        if let Some(delivery) = self.0.delivery.lock().take() {
            let is_orderly = self.0.running.lock().is_empty();
            delivery.stop(is_orderly);
        }
    }

    /// The record.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Its settings.
    pub fn rules(&self) -> &Arc<config::Tasks> {
        &self.0.rules
    }

    /// The built-in tasks.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// From now on this tells whether a worker has gone; the first who asks for it stays.
    pub fn ask_of_workers(&self, is_away: IsAway) {
        if self.0.is_away.set(is_away).is_err() {
            tracing::debug!("who tells of workers is known already");
        }
    }

    /// Whether a task may wait in this queue: there are only so many queues.
    pub fn admits_queue(&self, name: &str) -> bool {
        let names = self.0.names.load();
        names.len() < self.0.rules.queues_max || names.contains(name)
    }

    /// The name under which this process runs tasks.
    pub(in crate::task) fn worker(&self) -> &Arc<str> {
        &self.0.worker
    }

    pub(in crate::task) fn running(&self) -> &Mutex<HashMap<TaskId, watch::Sender<bool>>> {
        &self.0.running
    }

    fn delivery(&self) -> Option<Arc<Delivery>> {
        self.0.delivery.lock().clone()
    }

    /// Tells the delivery, the counters and the running handlers of committed changes.
    pub fn tell(&self, changes: &Changes) {
        fail::fail_point!("task.told");
        for id in &changes.cancelled {
            if let Some(run) = self.0.running.lock().get(id) {
                run.send_replace(true);
            }
        }
        count(&self.0.metrics, &self.0.registry, changes);
        if (!changes.ready.is_empty() || !changes.over.is_empty() || !changes.gone.is_empty())
            && let Some(delivery) = self.delivery()
        {
            delivery.post(Message::Changed(changes.clone()));
        }
    }

    fn post(&self, message: Message) {
        if let Some(delivery) = self.delivery() {
            delivery.post(message);
        }
    }

    /// Runs `work` in a transaction and tells what it changed, whether or not the caller still waits.
    pub async fn change<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Tx<'_>) -> Result<(T, Changes), TaskError> + Send + 'static,
    ) -> Result<T, TaskError> {
        let tasks = self.clone();
        let (value, _) = self
            .0
            .store
            .write(work)
            .then(move |done: &Result<(T, Changes), TaskError>| {
                if let Ok((_, changes)) = done {
                    tasks.tell(changes);
                }
            })
            .await?;
        Ok(value)
    }

    /// [`Tasks::change`] for what must not be lost to a full queue of writes.
    pub(in crate::task) async fn change_patiently<T, E>(
        &self,
        work: impl Fn(&mut Tx<'_>) -> Result<(T, Changes), E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let tasks = self.clone();
        let (value, _) = self
            .0
            .store
            .write(work)
            .then(move |done: &Result<(T, Changes), E>| {
                if let Ok((_, changes)) = done {
                    tasks.tell(changes);
                }
            })
            .patience(Patience::Unlimited)
            .await?;
        Ok(value)
    }

    /// Runs `work` in a transaction. A task that it enqueues through the [`Handing`] goes, if it can, to a worker
    /// that waits for it: started by the same commit.
    pub async fn enqueue_in<T, E>(
        &self,
        work: impl Fn(&mut Tx<'_>, &Handing) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let tasks = self.clone();
        let (value, _) = self
            .0
            .store
            .write(move |tx| {
                let handing = Handing::new(&tasks);
                let value = work(tx, &handing)?;
                Ok((value, handing))
            })
            .then(|done: &Result<(T, Handing), E>| {
                if let Ok((_, handing)) = done {
                    handing.committed();
                }
            })
            .await?;
        Ok(value)
    }

    /// Makes one task in a transaction of its own.
    pub async fn enqueue(&self, new: NewTask) -> Result<Enqueued, TaskError> {
        let now = self.0.clock.now();
        self.0
            .store
            .write(move |tx| task::enqueue(tx, now, &new))
            .await
    }

    /// [`Tasks::fetch_many`] for one.
    pub async fn fetch(
        &self,
        queues: &[String],
        worker: &str,
        lease_ms: i64,
        wait: Duration,
    ) -> Result<Option<Started>, TaskError> {
        let started = self.fetch_many(queues, worker, lease_ms, wait, 1).await?;
        Ok(started.into_iter().next())
    }

    /// Waits up to `wait` for a task of one of the queues, the first of them first, and starts it for
    /// `worker`, together with those that are ready at that moment, up to `most` in all. None, if none
    /// came in time.
    pub async fn fetch_many(
        &self,
        queues: &[String],
        worker: &str,
        lease_ms: i64,
        wait: Duration,
        most: usize,
    ) -> Result<Vec<Started>, TaskError> {
        let _slot = FetcherSlot::take(&self.0.fetchers, self.0.rules.fetchers_max)
            .ok_or(TaskError::Overloaded)?;
        let queues: Arc<[String]> = queues.into();
        let mut turned_away = self.0.turned_away.subscribe();
        let patience = self.0.store.write_timeout();
        let until = tokio::time::sleep(if wait.is_zero() { patience } else { wait });
        tokio::pin!(until);
        loop {
            let (starter, mut starting) = self.starter(worker, Some(lease_ms));
            let has_begun = Arc::clone(&starter.has_begun);
            let take = Take {
                queues: Arc::clone(&queues),
                most,
                waits: !wait.is_zero(),
                taker: Taker::Runs(Box::new(starter)),
            };
            self.ask(Message::Take(take))?;
            let started = tokio::select! {
                biased;
                started = starting.wait() => Some(started?),
                () = &mut until => None,
                _ = turned_away.wait_for(|is| *is) => None,
            };
            let started = match started {
                Some(started) => started,
                // They are on their way.
                None if has_begun.load(Ordering::Acquire) => {
                    let started = tokio::time::timeout(patience, starting.wait()).await;
                    started.map_err(|_| StoreError::Timeout)??
                }
                None => return Ok(Vec::new()),
            };
            // None were there, or were not to be started any more: then others may be.
            if !started.is_empty() || !has_begun.load(Ordering::Acquire) {
                return Ok(started);
            }
        }
    }

    fn ask(&self, message: Message) -> Result<(), TaskError> {
        self.delivery().ok_or(TaskError::Stopped)?.ask(message)
    }

    /// What starts tasks for a worker, and the end that hears of it. Without a lease they are this
    /// process's own, and those that only write are done with it.
    pub(super) fn starter(&self, worker: &str, lease_ms: Option<i64>) -> (Starter, Starting) {
        let (promise, done) = Store::promise();
        let (answer, started) = oneshot::channel();
        let starter = Starter {
            tasks: self.clone(),
            worker: worker.to_owned(),
            lease_ms,
            has_begun: Arc::default(),
            answer,
            promise,
        };
        let starting = Starting {
            tasks: self.clone(),
            done,
            started,
        };
        (starter, starting)
    }

    /// Asks for up to `most` tasks; the answer comes when there is at least one,
    /// or else at once.
    pub(in crate::task) fn take(
        &self,
        queues: Arc<[String]>,
        most: usize,
        waits: bool,
    ) -> Result<Offer<'_>, TaskError> {
        let (reply, offer) = oneshot::channel();
        let take = Take {
            queues,
            most,
            waits,
            taker: Taker::Entries(reply),
        };
        self.ask(Message::Take(take))?;
        Ok(Offer {
            tasks: self,
            offer: Some(offer),
        })
    }

    /// Gives handed-out tasks back.
    pub(in crate::task) fn give_back(&self, entries: Vec<Entry>) {
        self.post(Message::Back(entries));
    }

    /// Starts tasks that were handed out, in one transaction; answers those that this process runs now.
    /// If nobody waits for the answer any more, they wait again.
    pub(in crate::task) async fn start(
        &self,
        entries: Vec<Entry>,
    ) -> Result<Vec<Started>, TaskError> {
        let (starter, mut starting) = self.starter(&self.0.worker, None);
        starter.start(entries);
        let patience = self.0.store.write_timeout();
        let started = tokio::time::timeout(patience, starting.wait()).await;
        started.map_err(|_| StoreError::Timeout)?
    }

    fn after_start(&self, begun: &[(Entry, Begun)], at: Moment) -> Vec<Started> {
        fail::fail_point!("task.started");
        let mut running = Vec::new();
        let mut changed = Changes::default();
        for (entry, begun) in begun {
            let start = match begun {
                Begun::Done(changes) => {
                    changed.add(changes.clone());
                    continue;
                }
                Begun::Start(start) => start,
            };
            match start {
                Start::Run(started) => {
                    if let Some(ends) = started.lease_expires_at {
                        self.post(Message::Leased {
                            id: started.id,
                            attempt: started.attempt,
                            queue: started.queue.clone(),
                            ends,
                            at,
                        });
                    }
                    running.push((**started).clone());
                }
                Start::Expired(changes) => {
                    self.post(Message::Dropped(entry.id));
                    changed.add(changes.clone());
                }
                Start::Moved(place) => self.post(Message::Moved(place.clone())),
                Start::Stale => self.post(Message::Dropped(entry.id)),
            }
        }
        self.tell(&changed);
        running
    }

    /// Gives runs back that nobody will do. On any thread, the writer's as well, so it only begins it.
    fn release_all(&self, starts: Vec<Started>) {
        if starts.is_empty() {
            return;
        }
        let (tasks, now) = (self.clone(), self.0.clock.now());
        let after = move |done: &Result<Changes, TaskError>| {
            if let Ok(changes) = done {
                tasks.tell(changes);
            }
        };
        // Not awaited: it was queued, and if it is lost the lease runs out.
        self.0
            .store
            .write(move |tx| {
                let mut changes = Changes::default();
                for started in &starts {
                    // One that is over by now is no reason to keep the others.
                    let released =
                        tx.part(|tx| task::release(tx, now, started.id, started.attempt))?;
                    if let Ok(released) = released {
                        changes.add(released);
                    }
                }
                Ok::<_, TaskError>(changes)
            })
            .then(after)
            .unanswered();
    }

    /// Notes that an outside worker's run succeeded.
    pub async fn complete(
        &self,
        id: TaskId,
        attempt: u32,
        result: Option<String>,
    ) -> Result<(), TaskError> {
        let (now, rules) = (self.0.clock.now(), Arc::clone(&self.0.rules));
        self.change(move |tx| {
            let changes = task::complete(tx, now, &rules, id, attempt, result.as_deref())?;
            Ok(((), changes))
        })
        .await
    }

    /// Notes that a run failed.
    pub async fn fail(&self, id: TaskId, attempt: u32, failure: Failure) -> Result<(), TaskError> {
        let (now, rules) = (self.0.clock.now(), Arc::clone(&self.0.rules));
        self.change(move |tx| {
            let changes = task::fail(tx, now, &rules, id, attempt, &failure)?;
            Ok(((), changes))
        })
        .await
    }

    /// Hands a run back untried.
    pub async fn release(&self, id: TaskId, attempt: u32) -> Result<(), TaskError> {
        let now = self.0.clock.now();
        self.change(move |tx| Ok(((), task::release(tx, now, id, attempt)?)))
            .await
    }

    /// Renews an outside worker's lease.
    pub async fn heartbeat(
        &self,
        id: TaskId,
        attempt: u32,
        lease_ms: i64,
    ) -> Result<Beat, TaskError> {
        let (at, tasks) = (self.0.clock.moment(), self.clone());
        let behind = self.delivery().map_or(0, |thread| thread.rows_behind(at));
        self.0
            .store
            .write(move |tx| task::heartbeat(tx, at.wall, id, attempt, lease_ms, behind))
            .then(move |done| {
                if let Ok(beat) = done {
                    let ends = beat.lease_expires_at;
                    tasks.post(Message::Renewed {
                        id,
                        attempt,
                        ends,
                        at,
                    });
                }
            })
            .await
    }

    /// Notes how far a run is; answers whether its cancellation was asked for.
    pub async fn progress(
        &self,
        id: TaskId,
        attempt: u32,
        percent: u32,
        note: Option<String>,
    ) -> Result<bool, TaskError> {
        let rules = Arc::clone(&self.0.rules);
        self.0
            .store
            .write(move |tx| task::progress(tx, &rules, id, attempt, percent, note.as_deref()))
            .await
    }

    /// Cancels a task, or asks its run to stop.
    pub async fn cancel(&self, id: TaskId) -> Result<(), TaskError> {
        let now = self.0.clock.now();
        self.change(move |tx| Ok(((), task::cancel(tx, now, id)?)))
            .await
    }

    /// Lets a task run again.
    pub async fn retry(&self, id: TaskId) -> Result<(), TaskError> {
        let now = self.0.clock.now();
        self.change(move |tx| Ok(((), task::retry_task(tx, now, id)?)))
            .await
    }

    /// Changes how a queue is served.
    pub async fn change_queue(
        &self,
        work: impl Fn(&mut Tx<'_>) -> Result<QueueRow, TaskError> + Send + 'static,
    ) -> Result<QueueRow, TaskError> {
        let tasks = self.clone();
        self.0
            .store
            .write(work)
            .then(move |done: &Result<QueueRow, TaskError>| {
                if let Ok(row) = done {
                    tasks.post(Message::Queue(row.clone()));
                }
            })
            .await
    }

    /// What waits and runs, by queue.
    pub async fn stats(&self) -> Result<Stats, TaskError> {
        let (reply, stats) = oneshot::channel();
        self.delivery()
            .ok_or(TaskError::Stopped)?
            .ask(Message::Look(reply))?;
        stats.await.map_err(|_| TaskError::Stopped)
    }

    /// The time now.
    pub(in crate::task) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }
}

/// What became of a task that was handed out.
enum Begun {
    /// It was done in the transaction that would have started it.
    Done(Changes),
    /// It was started, or could not be.
    Start(Start),
}

type Starts = Vec<(Entry, Begun)>;

/// What starts tasks for somebody once they are handed out, on whichever thread that is.
pub(super) struct Starter {
    tasks: Tasks,
    worker: String,
    lease_ms: Option<i64>,
    /// Whether tasks were handed out to it.
    has_begun: Arc<AtomicBool>,
    /// Carries the runs, because it notices when nobody takes them any more.
    answer: oneshot::Sender<Vec<Started>>,
    promise: Promise<Starts, TaskError>,
}

impl Starter {
    /// Whether nobody waits for it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.promise.is_abandoned()
    }

    /// Starts the tasks in one transaction. Never blocks. If nobody waits for the answer any more, they
    /// wait again.
    pub(super) fn start(self, entries: Vec<Entry>) {
        let Self {
            tasks,
            worker,
            lease_ms,
            has_begun,
            answer,
            promise,
        } = self;
        if entries.is_empty() {
            drop(answer.send(Vec::new()));
            return;
        }
        has_begun.store(true, Ordering::Release);
        let at = tasks.0.clock.moment();
        let (inner, asked) = (Arc::clone(&tasks.0), entries.clone());
        let work = move |tx: &mut Tx<'_>| -> Result<Starts, TaskError> {
            fail::fail_point!("task.start");
            if lease_ms.is_some() {
                let starts = start_all(tx, at.wall, &asked, &worker, lease_ms)?;
                let starts = starts.into_iter().map(Begun::Start);
                return Ok(asked.iter().cloned().zip(starts).collect());
            }
            asked
                .iter()
                .map(|entry| {
                    let done = if entry.id > inner.first {
                        let effect = |name: &str, args: &str| inner.registry.effect(name, args);
                        do_at_once(tx, at.wall, &inner.rules, entry, &worker, effect)?
                    } else {
                        None
                    };
                    let begun = match done {
                        Some(changes) => Begun::Done(changes),
                        None => Begun::Start(task::start(tx, at.wall, entry, &worker, None)?),
                    };
                    Ok((entry.clone(), begun))
                })
                .collect()
        };
        let store = tasks.0.store.clone();
        store
            .write(work)
            .then(move |done| match done {
                Ok(begun) => {
                    if let Err(unclaimed) = answer.send(tasks.after_start(begun, at)) {
                        tasks.release_all(unclaimed);
                    }
                }
                Err(_) => tasks.give_back(entries),
            })
            .promised(promise);
    }
}

impl Starter {
    /// Tells what runs now. If nobody waits for the answer any more, it comes back.
    fn answer(self, started: Vec<Started>) -> Result<(), Vec<Started>> {
        // The write's own answer, which there is none of, wakes the caller: it comes last.
        let Self {
            answer, promise, ..
        } = self;
        let told = answer.send(started);
        drop(promise);
        told
    }
}

/// A worker that was taken out of the line to be handed a task. If it gets none, because the transaction is
/// undone, it hears so and asks again.
pub(super) struct Reserved(Option<Box<Starter>>);

impl Reserved {
    pub(super) fn new(starter: Box<Starter>) -> Self {
        starter.has_begun.store(true, Ordering::Release);
        Self(Some(starter))
    }

    /// Under whose name, and for how long, the run is.
    fn run(&self, now: Timestamp) -> Option<RunBy> {
        let starter = self.0.as_ref()?;
        Some(RunBy {
            worker: starter.worker.clone(),
            at: now,
            lease_ends: now.plus_ms(starter.lease_ms?),
        })
    }

    fn answer(mut self, started: Vec<Started>) -> Result<(), Vec<Started>> {
        match self.0.take() {
            Some(starter) => starter.answer(started),
            None => Err(started),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(starter) = self.0.take() {
            // It may have gone away meanwhile.
            drop(starter.answer(Vec::new()));
        }
    }
}

/// Hands a task over in the transaction that enqueues it: the worker is taken out of the line, the row is
/// written as started, and the worker hears of it after the commit. One task a transaction: a transaction
/// that makes many is shared by many workers, and the relay serves those together.
pub struct Handing {
    tasks: Tasks,
    at: Moment,
    over: Cell<Option<(Reserved, Started)>>,
}

impl Handing {
    pub(super) fn new(tasks: &Tasks) -> Self {
        Self {
            tasks: tasks.clone(),
            at: tasks.0.clock.moment(),
            over: Cell::new(None),
        }
    }

    /// [`task::enqueue`], with the task handed over if a worker waits for it and nothing else is to be given
    /// out before it.
    pub fn enqueue(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        new: &NewTask,
    ) -> Result<Enqueued, TaskError> {
        self.enqueue_for(tx, now, new, |queue| {
            let starter = self.tasks.delivery()?.reserve(queue, self.at.wall)?;
            Some(Reserved::new(starter))
        })
    }

    /// [`Handing::enqueue`] with the worker that `reserve` gives.
    pub(super) fn enqueue_for(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        new: &NewTask,
        reserve: impl Fn(&str) -> Option<Reserved>,
    ) -> Result<Enqueued, TaskError> {
        let before = self.over.take();
        if before.is_some() {
            self.over.set(before);
            return task::enqueue(tx, now, new);
        }
        let mut reserved = None;
        let (enqueued, started) = enqueue_for(tx, now, new, &mut || {
            reserved = reserve(&new.queue);
            let run = reserved.as_ref()?.run(self.at.wall);
            fail::fail_point!("task.reserved");
            run
        })?;
        self.over.set(reserved.zip(started));
        Ok(enqueued)
    }

    /// The run that the worker is to hear of.
    #[cfg(test)]
    pub(super) fn started(&self) -> Option<Started> {
        let over = self.over.take();
        let started = over.as_ref().map(|(_, started)| started.clone());
        self.over.set(over);
        started
    }

    /// After the commit: the delivery is told of the run, and the worker gets it.
    pub(super) fn committed(&self) {
        let Some((reserved, started)) = self.over.take() else {
            return;
        };
        fail::fail_point!("task.handed_over");
        if let Some(ends) = started.lease_expires_at {
            self.tasks.post(Message::Leased {
                id: started.id,
                attempt: started.attempt,
                queue: started.queue.clone(),
                ends,
                at: self.at,
            });
        }
        if let Err(unclaimed) = reserved.answer(vec![started]) {
            self.tasks.release_all(unclaimed);
        }
    }
}

/// Whoever waits for a [`Starter`]. When it is dropped before it took what was started, that is handed
/// back.
pub(super) struct Starting {
    tasks: Tasks,
    done: Promised<Starts, TaskError>,
    started: oneshot::Receiver<Vec<Started>>,
}

impl Starting {
    /// What runs now; nothing, if there was nothing. It can be asked again after a call that was given
    /// up.
    pub(super) async fn wait(&mut self) -> Result<Vec<Started>, TaskError> {
        // The runs come first: what is done after a commit comes before the write's own answer.
        let done = self.done.wait().await;
        match (done, self.started.try_recv()) {
            (_, Ok(started)) => Ok(started),
            (Err(error), Err(_)) => Err(error),
            (Ok(_), Err(_)) => Err(TaskError::Stopped),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.started.close();
        if let Ok(unclaimed) = self.started.try_recv() {
            self.tasks.release_all(unclaimed);
        }
    }
}

/// A request for a task. When it is dropped before its answer was taken, what came goes back.
pub(in crate::task) struct Offer<'a> {
    tasks: &'a Tasks,
    offer: Option<oneshot::Receiver<Vec<Entry>>>,
}

impl Offer<'_> {
    pub(in crate::task) async fn wait(&mut self) -> Result<Vec<Entry>, TaskError> {
        let Some(offer) = &mut self.offer else {
            return Err(TaskError::Stopped);
        };
        let entries = offer.await.map_err(|_| TaskError::Stopped);
        self.offer = None;
        entries
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        if let Some(mut offer) = self.offer.take() {
            offer.close();
            if let Ok(entries) = offer.try_recv() {
                self.tasks.give_back(entries);
            }
        }
    }
}

/// One of the workers that may wait for a task at once.
struct FetcherSlot<'a>(&'a AtomicUsize);

impl<'a> FetcherSlot<'a> {
    fn take(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        let slot = Self(count);
        if count.fetch_add(1, Ordering::AcqRel) >= most {
            return None; // dropping it counts back
        }
        Some(slot)
    }
}

impl Drop for FetcherSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Names that are labels of metrics: those of the built-in tasks; everything else is `other`.
fn label<'a>(registry: &Registry, name: &'a str) -> &'a str {
    if registry.handler(name).is_some() {
        name
    } else {
        "other"
    }
}

fn count(metrics: &Metrics, registry: &Registry, changes: &Changes) {
    for over in &changes.over {
        let name = label(registry, &over.name);
        let seconds = over.micros.map(|micros| micros as f64 / 1_000_000.0);
        metrics.count_task(name, over.state.word(), seconds);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::task::TaskState;

    const LEASE_MS: i64 = 60_000;

    struct World {
        tasks: Tasks,
        _dir: tempfile::TempDir,
    }

    impl World {
        fn open() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let metrics = Metrics::new().expect("metrics");
            let path = dir.path().join("onrush.db");
            let settings = config::Database::default();
            let store = Store::open(&path, &settings, metrics.clone(), |_| ()).expect("a store");
            let (clock, rules) = (Clock::system(), Arc::new(config::Tasks::default()));
            let tasks = Tasks::new(store, clock, rules, metrics, Registry::builder().build());
            tasks.deliver(dir.path().join("queue")).expect("delivery");
            Self { tasks, _dir: dir }
        }

        async fn enqueue(&self) -> TaskId {
            let new = NewTask::named("resize".to_owned(), "images".to_owned(), "{}".to_owned());
            self.tasks.enqueue(new).await.expect("enqueued").id()
        }

        async fn fetch(&self, wait: Duration) -> Option<Started> {
            let queues = ["images".to_owned()];
            let fetched = self.tasks.fetch(&queues, "w", LEASE_MS, wait).await;
            fetched.expect("an answer")
        }

        /// Until the delivery has this many to give, and this many given out.
        async fn until(&self, ready: u64, running: u32) {
            loop {
                let (queues, _) = self.tasks.stats().await.expect("figures");
                let found = queues.iter().find(|queue| queue.name == "images");
                if found.is_some_and(|queue| (queue.ready, queue.running) == (ready, running)) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }

        /// Holds the writer until what it answers is dropped.
        fn hold_writer(&self) -> std::sync::mpsc::Sender<()> {
            let (held, freed) = std::sync::mpsc::channel();
            let wait = move |_: &mut Tx<'_>| {
                let _freed = freed.recv();
                Ok::<_, StoreError>(())
            };
            self.tasks.store().write(wait).unanswered();
            held
        }

        async fn close(self) {
            let tasks = self.tasks.clone();
            let ended = tokio::task::spawn_blocking(move || {
                tasks.stop();
                tasks.store().close();
            });
            ended.await.expect("closed");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_start_that_is_under_way_when_the_wait_is_over_is_waited_for() {
        let world = World::open();
        assert!(world.fetch(Duration::from_millis(5)).await.is_none());
        assert!(world.fetch(Duration::ZERO).await.is_none());
        let id = world.enqueue().await;
        world.until(1, 0).await;
        let held = world.hold_writer();
        {
            let fetch = world.fetch(Duration::from_millis(5));
            let free = async {
                world.until(0, 1).await;
                // Its wait is over by then: the timers of one runtime fire in order.
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(held);
            };
            let (started, ()) = tokio::join!(fetch, free);
            let started = started.expect("the task");
            assert_eq!((started.id, started.attempt), (id, 1));
        }
        world.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_whose_asker_went_away_before_its_start_waits_again_unstarted() {
        let world = World::open();
        let id = world.enqueue().await;
        world.until(1, 0).await;
        let held = world.hold_writer();
        {
            let fetch = world.fetch(Duration::from_secs(60));
            tokio::pin!(fetch);
            tokio::select! {
                started = &mut fetch => panic!("it can't have been started: {started:?}"),
                () = world.until(0, 1) => {}
            }
        }
        drop(held);
        let started = world.fetch(Duration::from_secs(60)).await;
        let started = started.expect("the task");
        assert_eq!((started.id, started.attempt), (id, 1), "never begun before");
        world.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_whose_asker_went_away_after_its_start_is_handed_back() {
        let world = World::open();
        let id = world.enqueue().await;
        world.until(1, 0).await;
        let mut fetch = Box::pin(world.fetch(Duration::from_secs(60)));
        // It asks, and is never looked at again.
        assert!(fetch.as_mut().now_or_never().is_none());
        let is_running = || {
            let state = move |tx: &mut Tx<'_>| sql::state(tx, id);
            let state = world.tasks.store().read_blocking(state).expect("a row");
            state.is_some_and(|(state, _)| state == TaskState::Running)
        };
        while !is_running() {
            tokio::task::yield_now().await;
        }
        drop(fetch);
        let started = world.fetch(Duration::from_secs(60)).await;
        let started = started.expect("the task");
        assert_eq!((started.id, started.attempt), (id, 2));
        world.close().await;
    }
}
