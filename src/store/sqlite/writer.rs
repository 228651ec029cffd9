//! The one writer: a thread that owns the writing connection and commits for everyone who waits.
//!
//! Invariants: a caller hears "yes" only after the commit that holds its work was synced to disk;
//! each job runs in its own savepoint, so its `Err` or its panic undoes it alone; the queue is
//! bounded and a full one refuses at once; after a failed sync, and once the database is known to be
//! damaged, nothing more is written (store/condition.rs).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel,
};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rusqlite::{CachedStatement, Connection};

use super::checkpoint::{LogFile, LogWork};
use crate::clock::Stopwatch;
use crate::config::Database;
use crate::monitor::Metrics;
use crate::monitor::statements::Statements;
use crate::store::condition::Condition;
use crate::store::job::{Job, Outbox, refuse};
use crate::store::tx::{Rows, Topic, Touched};
use crate::store::{StoreError, Tx};

/// Called on the writer's thread after a commit that touched the topic.
type Listener = (Topic, Box<dyn Fn(Rows<'_>) + Send + Sync>);

enum Message {
    Run(Box<dyn Job>),
    Log(LogWork),
    Stop,
}

/// What other threads see of the writer.
pub(in crate::store) struct Writer {
    queue: SyncSender<Message>,
    waiting: Arc<AtomicUsize>,
    in_batch: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
    condition: Condition,
    listeners: Arc<Mutex<Vec<Listener>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Called once, from the writer's thread, when a sync failed and the process must end.
pub(in crate::store) type OnFatal = Box<dyn FnOnce(&StoreError) + Send>;

impl Writer {
    pub(in crate::store) fn start(
        conn: Connection,
        log: LogFile,
        statements: Arc<Statements>,
        condition: Condition,
        settings: &Database,
        metrics: Metrics,
        on_fatal: OnFatal,
    ) -> Result<Self, StoreError> {
        let (queue, messages) = sync_channel(settings.write_queue_max);
        let waiting = Arc::new(AtomicUsize::new(0));
        let in_batch = Arc::new(AtomicUsize::new(0));
        let broken = Arc::new(AtomicBool::new(false));
        let listeners = Arc::new(Mutex::new(Vec::new()));
        let mut state = Loop {
            conn,
            log,
            statements,
            inbox: Inbox {
                messages,
                put_off: None,
                batch_max: settings.write_batch_max,
                waiting: Arc::clone(&waiting),
                in_batch: Arc::clone(&in_batch),
            },
            broken: Arc::clone(&broken),
            condition: condition.clone(),
            listeners: Arc::clone(&listeners),
            touched: Touched::default(),
            outbox: Arc::new(Outbox::new()),
            metrics,
            on_fatal: Some(on_fatal),
        };
        let thread = std::thread::Builder::new()
            .name("onrush-writer".to_owned())
            .spawn(move || state.run())
            .map_err(|error| {
                StoreError::Unavailable(format!("no thread for the writer: {error}"))
            })?;
        Ok(Self {
            queue,
            waiting,
            in_batch,
            broken,
            condition,
            listeners,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues a job; one that can't be queued is refused. With `patience` it blocks while the queue is full, which
    /// the thread is emptying.
    pub(in crate::store) fn send(&self, patience: bool, job: Box<dyn Job>) {
        if self.broken.load(Ordering::Acquire) {
            refuse(job, StoreError::Stopped);
            return;
        }
        if let Some(error) = self.condition.sealed() {
            refuse(job, error.clone());
            return;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let sent = if patience {
            let sent = self.queue.send(Message::Run(job));
            sent.map_err(|refused| TrySendError::Disconnected(refused.0))
        } else {
            self.queue.try_send(Message::Run(job))
        };
        if let Err(refused) = sent {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let (message, error) = match refused {
                TrySendError::Full(message) => (message, StoreError::Overloaded),
                TrySendError::Disconnected(message) => (message, StoreError::Stopped),
            };
            if let Message::Run(job) = message {
                refuse(job, error);
            }
        }
    }

    /// Has the thread do something to the log, unless it has too much to do.
    pub(in crate::store) fn ask(&self) -> impl Fn(LogWork) + Send + use<> {
        let queue = self.queue.clone();
        // It is asked again when the log is looked at the next time.
        move |work| drop(queue.try_send(Message::Log(work)))
    }

    /// From now on calls `listener` after each commit that touched `topic`.
    pub(in crate::store) fn listen(
        &self,
        topic: Topic,
        listener: Box<dyn Fn(Rows<'_>) + Send + Sync>,
    ) {
        self.listeners.lock().push((topic, listener));
    }

    pub(in crate::store) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Jobs that wait, and those of the transaction that runs.
    pub(in crate::store) fn under_way(&self) -> usize {
        self.waiting() + self.in_batch.load(Ordering::Relaxed)
    }

    /// Finishes what is queued, then ends the thread. Blocks until then.
    pub(in crate::store) fn stop(&self) {
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        // Blocks while the queue is full: the thread is emptying it. An error means it has ended.
        if self.queue.send(Message::Stop).is_ok() && thread.join().is_err() {
            tracing::error!("the writer thread ended in a panic");
        }
    }
}

/// What the thread is asked to do.
struct Inbox {
    messages: Receiver<Message>,
    /// What came while a batch ran and is no job.
    put_off: Option<Message>,
    batch_max: usize,
    waiting: Arc<AtomicUsize>,
    in_batch: Arc<AtomicUsize>,
}

impl Inbox {
    /// A job that has left the queue, unless nobody waits for it any more.
    fn wanted(&self, job: Box<dyn Job>) -> Option<Box<dyn Job>> {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if job.is_abandoned() {
            refuse(job, StoreError::Timeout);
            return None;
        }
        self.in_batch.fetch_add(1, Ordering::Relaxed);
        Some(job)
    }

    /// The next job for a batch of `len`, if one waits. What is no job comes after the batch.
    fn next_of_batch(&mut self, len: usize) -> Option<Box<dyn Job>> {
        while len < self.batch_max && self.put_off.is_none() {
            match self.messages.try_recv() {
                Ok(Message::Run(job)) => {
                    if let Some(job) = self.wanted(job) {
                        return Some(job);
                    }
                }
                Ok(other) => self.put_off = Some(other),
                Err(_) => break,
            }
        }
        None
    }
}

struct Loop {
    conn: Connection,
    log: LogFile,
    statements: Arc<Statements>,
    inbox: Inbox,
    broken: Arc<AtomicBool>,
    condition: Condition,
    listeners: Arc<Mutex<Vec<Listener>>>,
    /// What the batch in hand touched, as far as it was not undone.
    touched: Touched,
    outbox: Arc<Outbox>,
    metrics: Metrics,
    on_fatal: Option<OnFatal>,
}

impl Loop {
    fn run(&mut self) {
        let mut batch: Vec<Box<dyn Job>> = Vec::with_capacity(self.inbox.batch_max);
        while let Some(message) = self.next() {
            match message {
                Message::Run(job) => {
                    if let Some(job) = self.inbox.wanted(job) {
                        self.commit(job, &mut batch);
                    }
                }
                Message::Log(work) => self.log.work(&self.conn, &self.condition, work),
                Message::Stop => break,
            }
            if self.broken.load(Ordering::Acquire) {
                break;
            }
        }
        self.broken.store(true, Ordering::Release);
        // Whoever slipped in behind the end hears that it came too late.
        while let Ok(message) = self.inbox.messages.try_recv() {
            if let Message::Run(job) = message {
                self.inbox.waiting.fetch_sub(1, Ordering::Relaxed);
                refuse(job, StoreError::Stopped);
            }
        }
    }

    /// The next message; `None` when nobody is left to send one.
    fn next(&mut self) -> Option<Message> {
        if let Some(message) = self.inbox.put_off.take() {
            return Some(message);
        }
        while self.log.is_growing() {
            match self.inbox.messages.try_recv() {
                Ok(message) => return Some(message),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {
                    self.outbox.wake();
                    self.log.grow();
                }
            }
        }
        while let Some(wait) = self.outbox.patience() {
            match self.inbox.messages.recv_timeout(wait) {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Timeout) => self.outbox.wake(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        self.inbox.messages.recv().ok()
    }

    /// Runs a job, and those that wait by then, in one transaction and answers everyone.
    fn commit(&mut self, first: Box<dyn Job>, batch: &mut Vec<Box<dyn Job>>) {
        let before = self.conn.total_changes();
        let outcome = self.transaction(first, batch);
        // A commit of nothing says nothing of the disk.
        if outcome.is_err() || self.conn.total_changes() != before {
            self.condition.wrote(&outcome);
        }
        let size: usize = batch.iter().map(|job| job.size()).sum();
        self.metrics.db_write_batch_size.observe(size as f64);
        if let Err(error) = &outcome {
            if !self.conn.is_autocommit() && self.conn.execute_batch("ROLLBACK").is_err() {
                tracing::error!("the failed batch could not be rolled back");
            }
            // Of a database that nothing is written to any more, that was said when it came to that.
            if self.condition.sealed().is_none() {
                tracing::error!(%error, writes = size, "a batch of writes failed; none of it was kept");
            }
        }
        if outcome.is_ok() && !self.touched.is_empty() {
            for (topic, listener) in self.listeners.lock().iter() {
                self.touched.tell(*topic, listener);
            }
        }
        for job in batch.iter_mut() {
            job.settle(outcome.clone());
        }
        self.inbox.in_batch.store(0, Ordering::Relaxed);
        self.outbox.post(batch.drain(..));
        if let Err(error) = outcome
            && error.is_fatal()
        {
            self.broken.store(true, Ordering::Release);
            if let Some(on_fatal) = self.on_fatal.take() {
                on_fatal(&error);
            }
        }
    }

    /// Whoever comes while others of the batch run joins it: nobody is waited for, and a commit is
    /// shared by more. Each job is in `batch` before it runs, so that it is answered whatever happens.
    fn transaction(
        &mut self,
        first: Box<dyn Job>,
        batch: &mut Vec<Box<dyn Job>>,
    ) -> Result<(), StoreError> {
        let (conn, condition) = (&self.conn, &self.condition);
        let met = |error| condition.met(conn, error);
        let run =
            |statement: &mut CachedStatement<'_>| statement.raw_execute().map(drop).map_err(met);
        let prepared = |sql| conn.prepare_cached(sql).map_err(met);
        self.touched.clear();
        batch.push(first);
        // It may have come to that while this one waited.
        if let Some(error) = condition.sealed() {
            return Err(error.clone());
        }
        run(&mut prepared("BEGIN IMMEDIATE")?)?;
        fail::fail_point!("writer.begun");
        let mut savepoint = prepared("SAVEPOINT job")?;
        let mut release = prepared("RELEASE job")?;
        while let Some(job) = batch.last_mut() {
            run(&mut savepoint)?;
            let mut tx = Tx::new(conn, &self.statements, condition, job.take_caller());
            let keep = job.run(&mut tx);
            if conn.is_autocommit() {
                return Err(tx.failure());
            }
            if keep {
                self.touched.add(tx.touched());
            } else {
                run(&mut prepared("ROLLBACK TO job")?)?;
            }
            let rest = job.rest();
            run(&mut release)?;
            match rest.or_else(|| self.inbox.next_of_batch(batch.len())) {
                Some(job) => batch.push(job),
                None => break,
            }
        }
        fail::fail_point!("writer.before_commit");
        // What others of the batch decided may rest on a page that turned out to be damaged.
        if let Some(error) = condition.sealed() {
            return Err(error.clone());
        }
        let watch = Stopwatch::start();
        run(&mut prepared("COMMIT")?)?;
        self.metrics
            .db_commit_seconds
            .observe(watch.elapsed_seconds());
        fail::fail_point!("writer.after_commit");
        Ok(())
    }
}
