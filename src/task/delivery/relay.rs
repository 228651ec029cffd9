//! The delivery: one thread that knows what waits, and gives it to whoever asks.
//!
//! It owns the [`Index`], reads new rows into it, moves what is due, takes back what a worker did not
//! answer for, and matches tasks with those who wait for one. Invariants: it takes no input that it
//! could not do without: what it is told only makes it faster, and what it was not told it finds in
//! the rows; it never writes except to take back what crashed; trouble with the disk costs it the
//! folder, never its life.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::handle::Starter;
use super::index::{Found, Index, QueueStats};
use super::line::{Line, News};
use crate::clock::{Clock, Moment, Timestamp};
use crate::config;
use crate::monitor::Metrics;
use crate::store::{Store, StoreError};
use crate::task::rows::DeliveryRow;
use crate::task::{
    self, Changes, ENQUEUED, Entry, QueueRow, TaskError, TaskId, TaskState, recover, sql,
};

/// New rows read at a time.
const ROWS_AT_ONCE: u32 = 1_000;
/// Rows read at a time when the index is filled anew.
const WALK_ROWS: u32 = 2_000;
/// Messages handled before the rows are looked at again.
const MESSAGES_AT_ONCE: usize = 2_000;
/// Runs taken back in one transaction.
const RECOVER_AT_ONCE: usize = 200;
/// How often the disk is looked after and the figures are published.
const LOOK_AFTER_MS: u64 = 1_000;
/// How far the wall clock must have been set, in microseconds, for the times of runs to move along.
const JUMP_MICROS: i64 = 2_000_000;
/// How soon a lease that ran out is looked at again if taking the task back failed.
const LEASE_AGAIN_MS: u64 = 1_000;

/// Figures of the queues, and how many tasks wait for their time.
pub type Stats = (Vec<QueueStats>, u64);

/// What the thread is told.
pub(super) enum Message {
    Wake,
    Changed(Changes),
    /// An outside worker has the task until `ends`, by the wall clock as it was at `at`.
    Leased {
        id: TaskId,
        attempt: u32,
        queue: String,
        ends: Timestamp,
        at: Moment,
    },
    Renewed {
        id: TaskId,
        attempt: u32,
        ends: Timestamp,
        at: Moment,
    },
    Take(Take),
    /// Handed out, but not started: they wait again, and may be started at once.
    Back(Vec<Entry>),
    /// Handed out, but not started: its place is another by now.
    Moved(Entry),
    /// Handed out, but it was not to be started (any more).
    Dropped(TaskId),
    Queue(QueueRow),
    Look(oneshot::Sender<Stats>),
    Stop {
        is_orderly: bool,
    },
}

impl Message {
    /// Whether it brings tasks back that wait, or changes how a queue is served: until it is handled, none
    /// is handed over past it.
    pub(super) fn is_news(&self) -> bool {
        match self {
            Message::Changed(changes) => !changes.ready.is_empty(),
            Message::Back(_) | Message::Moved(_) | Message::Dropped(_) | Message::Queue(_) => true,
            Message::Wake
            | Message::Leased { .. }
            | Message::Renewed { .. }
            | Message::Take(_)
            | Message::Look(_)
            | Message::Stop { .. } => false,
        }
    }
}

/// Somebody who wants tasks.
pub(super) struct Take {
    pub(super) queues: Arc<[String]>,
    pub(super) most: usize,
    /// Whether to wait until there is one; otherwise the answer comes at once and may be empty.
    pub(super) waits: bool,
    pub(super) taker: Taker,
}

impl Take {
    fn is_gone(&self) -> bool {
        self.taker.is_gone()
    }
}

/// What becomes of tasks that are handed out.
pub(super) enum Taker {
    /// Whoever asked starts them.
    Entries(oneshot::Sender<Vec<Entry>>),
    /// They are started from here: each switch from thread to thread on the way costs more than the
    /// start itself.
    Runs(Box<Starter>),
}

impl Taker {
    fn is_gone(&self) -> bool {
        match self {
            Taker::Entries(reply) => reply.is_closed(),
            Taker::Runs(starter) => starter.is_gone(),
        }
    }
}

#[derive(Default)]
pub(super) struct Flags {
    /// There are new rows, and the thread has been told so.
    rows: AtomicBool,
    /// A message was lost: the rows have to be looked through.
    behind: AtomicBool,
    /// The wall clock's lead over the time that passed, in microseconds, of which the rows of leased
    /// tasks speak.
    wall_lead: AtomicI64,
}

impl Flags {
    /// By how many microseconds the rows of leased tasks are behind the wall clock as it is at `at`;
    /// none, unless that was set and they have not moved along yet.
    pub(super) fn rows_behind(&self, at: Moment) -> i64 {
        let by = at.wall_lead_micros() - self.wall_lead.load(Ordering::Acquire);
        if by.abs() < JUMP_MICROS { 0 } else { by }
    }

    fn follow(&self, at: Moment) {
        self.wall_lead
            .store(at.wall_lead_micros(), Ordering::Release);
    }
}

/// The thread, as others see it.
pub(super) struct Delivery {
    messages: SyncSender<Message>,
    flags: Arc<Flags>,
    line: Arc<Line<Take>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Tells of a worker, by the name under which it runs tasks, whether it has gone.
pub type IsAway = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// What the thread works with.
pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) rules: Arc<config::Tasks>,
    pub(super) metrics: Metrics,
    pub(super) folder: PathBuf,
    /// Name of this process's own runs; rows of any other are orphans.
    pub(super) worker: Arc<str>,
    /// Told the names of the queues, now and then.
    pub(super) names: Arc<ArcSwap<BTreeSet<String>>>,
    /// Tells of a worker whether it has gone, if anybody can tell.
    pub(super) is_away: Arc<OnceLock<IsAway>>,
    /// Told what was taken back.
    pub(super) on_changes: Arc<dyn Fn(&Changes) + Send + Sync>,
}

impl Delivery {
    /// Starts the thread. It serves at once, while it looks through the rows.
    pub(super) fn start(parts: Parts) -> Result<Self, StoreError> {
        let (messages, inbox) = sync_channel(parts.rules.index_queue_max);
        let flags = Arc::new(Flags::default());
        flags.follow(parts.clock.moment());
        let line = Arc::new(Line::new());
        let (told, counted) = (Arc::clone(&flags), Arc::clone(&line));
        let waker = messages.clone();
        parts.store.on_commit(ENQUEUED, move || {
            let is_told = told.rows.swap(true, Ordering::AcqRel);
            // Counted after it was told: once the relay knows of the count, it looks for the rows.
            counted.committed();
            if !is_told {
                // A full queue of messages wakes it as well.
                drop(waker.try_send(Message::Wake));
            }
        });
        let for_thread = (Arc::clone(&flags), Arc::clone(&line));
        let thread = std::thread::Builder::new()
            .name("onrush-delivery".to_owned())
            .spawn(move || Loop::new(parts, inbox, for_thread.0, for_thread.1).run())
            .map_err(|error| {
                StoreError::Unavailable(format!("no thread for the delivery: {error}"))
            })?;
        Ok(Self {
            messages,
            flags,
            line,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Tells it something that it could find out by itself. Never blocks.
    pub(super) fn post(&self, message: Message) {
        let is_news = message.is_news();
        if is_news {
            self.line.tells();
        }
        let sent = self.messages.try_send(message);
        if sent.is_err() {
            self.flags.behind.store(true, Ordering::Release);
            if is_news {
                self.line.told_nothing();
            }
        }
    }

    /// Takes the worker that is to have a task which is enqueued now, if one waits for it and nothing is to
    /// be given out before that task. Never blocks for long.
    pub(super) fn reserve(&self, queue: &str, now: Timestamp) -> Option<Box<Starter>> {
        if self.flags.behind.load(Ordering::Acquire) {
            return None;
        }
        reserve(&self.line, queue, now)
    }

    /// Asks it for something; an error means that it has too much to do, or has ended.
    pub(super) fn ask(&self, message: Message) -> Result<(), TaskError> {
        self.messages
            .try_send(message)
            .map_err(|error| match error {
                TrySendError::Full(_) => TaskError::Overloaded,
                TrySendError::Disconnected(_) => TaskError::Stopped,
            })
    }

    /// As [`Flags::rows_behind`].
    pub(super) fn rows_behind(&self, at: Moment) -> i64 {
        self.flags.rows_behind(at)
    }

    /// Ends it; in order, so that the next start takes up from here. Blocks.
    pub(super) fn stop(&self, is_orderly: bool) {
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        if self.messages.send(Message::Stop { is_orderly }).is_ok() && thread.join().is_err() {
            tracing::error!("the delivery thread ended in a panic");
        }
    }
}

/// [`Delivery::reserve`], as far as the line knows.
pub(super) fn reserve(line: &Line<Take>, queue: &str, now: Timestamp) -> Option<Box<Starter>> {
    let may = |take: &Take| matches!(take.taker, Taker::Runs(_));
    let take = line.reserve(queue, now, Take::is_gone, may)?;
    match take.taker {
        Taker::Runs(starter) => Some(starter),
        Taker::Entries(_) => None,
    }
}

/// A look through all unfinished rows: which list is being read, and how far it got.
struct Walk {
    lists: VecDeque<Option<TaskState>>,
    above: Option<TaskId>,
    rows: u64,
    /// Handed out before it began: those that no row shows as running are over.
    handed: Vec<TaskId>,
}

pub(super) struct Loop {
    parts: Parts,
    inbox: Receiver<Message>,
    flags: Arc<Flags>,
    index: Index,
    /// Rows up to here have been read.
    seen: Option<TaskId>,
    walk: Option<Walk>,
    orphans: Vec<(TaskId, u32)>,
    line: Arc<Line<Take>>,
    /// Messages handled that are news.
    told: u64,
    /// When the rate of some queue allows more.
    again_ms: Option<u64>,
    polled_ms: u64,
    looked_after_ms: u64,
    has_more: bool,
    stop: Option<bool>,
}

impl Loop {
    /// With the index that an orderly end left, or an empty one that is filled from the rows.
    pub(super) fn new(
        parts: Parts,
        inbox: Receiver<Message>,
        flags: Arc<Flags>,
        line: Arc<Line<Take>>,
    ) -> Self {
        flags.follow(parts.clock.moment());
        let mark = take_mark(&parts.store);
        let (index, found) = Index::open(&parts.folder, &parts.rules, mark.as_deref());
        let now_ms = parts.clock.monotonic_ms();
        let mut state = Self {
            index,
            seen: None,
            walk: None,
            orphans: Vec::new(),
            line,
            told: 0,
            again_ms: None,
            polled_ms: 0,
            looked_after_ms: now_ms,
            has_more: true,
            stop: None,
            parts,
            inbox,
            flags,
        };
        match found {
            Found::Kept(seen) => {
                state.seen = seen;
                for (id, _, ends) in state.index.leases() {
                    let deadline = state.deadline(ends, state.parts.clock.moment());
                    state.index.renew(id, deadline, ends);
                }
            }
            Found::Nothing => state.walk_anew(),
            Found::Unusable => {
                state.parts.metrics.task_index_rebuilds_total.inc();
                state.walk_anew();
            }
        }
        state.load_queues();
        state
    }

    fn load_queues(&mut self) {
        let rules = Arc::clone(&self.parts.rules);
        let rows = self
            .parts
            .store
            .read_blocking(move |tx| task::queues(tx, &rules));
        match rows {
            Ok(rows) => rows.into_iter().for_each(|row| self.set_queue(row)),
            Err(error) => tracing::error!(%error, "the queues' settings could not be read"),
        }
    }

    fn set_queue(&mut self, row: QueueRow) {
        let is_limited =
            row.paused_at.is_some() || row.concurrency_max.is_some() || row.rate_limit.is_some();
        self.line.set_limited(&row.name, is_limited);
        self.index.set_queue(row);
    }

    /// Begins a look through all rows that are there now; newer ones come the ordinary way.
    fn walk_anew(&mut self) {
        if self.seen.is_none() {
            match self.parts.store.read_blocking(sql::last_id) {
                Ok(last) => self.seen = last,
                Err(error) => {
                    tracing::warn!(%error, "the tasks could not be looked through; it is tried again");
                    self.flags.behind.store(true, Ordering::Release);
                    return;
                }
            }
        }
        self.index.not_short();
        self.walk = Some(Walk {
            lists: [None, Some(TaskState::Retryable), Some(TaskState::Scheduled)].into(),
            above: None,
            rows: 0,
            handed: self.index.handed(),
        });
    }

    /// Monotonic end of a lease that the row ends at `ends`, by the wall clock as it was at `at`: a jump
    /// of the clock does not end it, and does not keep it longer than a lease may be.
    fn deadline(&self, ends: Timestamp, at: Moment) -> u64 {
        let left_ms = ends.micros_since(at.wall) / 1_000;
        let most = self.parts.rules.lease_seconds_max.saturating_mul(1_000);
        let left = u64::try_from(left_ms).unwrap_or(0).min(most);
        at.monotonic_ms.saturating_add(left)
    }

    fn run(&mut self) {
        loop {
            match self.inbox.recv_timeout(self.pause()) {
                Ok(first) => {
                    self.follow_the_clock();
                    self.handle(first);
                    for _ in 0..MESSAGES_AT_ONCE {
                        match self.inbox.try_recv() {
                            Ok(message) => self.handle(message),
                            Err(_) => break,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.stop = Some(false),
            }
            if let Some(is_orderly) = self.stop {
                self.end(is_orderly);
                return;
            }
            self.round();
        }
    }

    /// As if new rows had been told of.
    #[cfg(test)]
    pub(super) fn wake(&mut self) {
        self.flags.rows.store(true, Ordering::Release);
    }

    /// Whether there is something to do without new messages.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        self.has_more || self.walk.is_some() || !self.orphans.is_empty()
    }

    /// How long to wait for a message.
    fn pause(&self) -> Duration {
        if self.has_more || self.walk.is_some() {
            return Duration::ZERO;
        }
        let clock = &self.parts.clock;
        let (now, now_ms) = (clock.now(), clock.monotonic_ms());
        let mut wait = self.parts.rules.poll_interval_ms;
        if let Some(due) = self.index.next_due() {
            let left = due.micros_since(now).max(0) as u64;
            wait = wait.min(left.div_ceil(1_000));
        }
        for at in [self.again_ms, self.index.next_lease_end()]
            .into_iter()
            .flatten()
        {
            wait = wait.min(at.saturating_sub(now_ms));
        }
        // Never none at all: what is due and can't be done must not make it spin.
        Duration::from_millis(wait.max(1))
    }

    pub(super) fn handle(&mut self, message: Message) {
        self.told += u64::from(message.is_news());
        self.obey(message);
    }

    fn obey(&mut self, message: Message) {
        match message {
            Message::Wake => {}
            Message::Changed(changes) => self.apply(&changes),
            Message::Leased {
                id,
                attempt,
                queue,
                ends,
                at,
            } => {
                let deadline = self.deadline(ends, at);
                let by = -self.flags.rows_behind(at);
                let ends = self.catch_up(id, attempt, ends, (by, by));
                self.index.lease(id, attempt, &queue, deadline, ends);
            }
            Message::Renewed {
                id,
                attempt,
                ends,
                at,
            } => {
                // Not sooner than before, though the row may say so: the clock may have been set.
                let before = self.index.lease_deadline(id).unwrap_or(0);
                let deadline = self.deadline(ends, at).max(before);
                let by = -self.flags.rows_behind(at);
                let ends = self.catch_up(id, attempt, ends, (0, by));
                self.index.renew(id, deadline, ends);
            }
            Message::Take(take) => self.take(take),
            Message::Back(entries) => {
                for entry in entries {
                    self.index.not_started(entry.id);
                    self.index.add_due(&entry);
                }
            }
            Message::Moved(entry) => {
                let now = self.parts.clock.now();
                self.index.not_started(entry.id);
                self.index.add(now, &entry);
            }
            Message::Dropped(id) => self.index.not_started(id),
            Message::Queue(row) => self.set_queue(row),
            Message::Look(reply) => {
                // Whoever asked may have gone.
                drop(reply.send(self.index.stats()));
            }
            Message::Stop { is_orderly } => self.stop = Some(is_orderly),
        }
    }

    fn apply(&mut self, changes: &Changes) {
        for over in &changes.over {
            self.index.over(over.id);
        }
        if let Err(error) = self.index.forget(&changes.gone) {
            self.heal(&error.to_string());
        }
        let now = self.parts.clock.now();
        for entry in &changes.ready {
            self.index.add(now, entry);
        }
    }

    fn take(&mut self, take: Take) {
        if take.taker.is_gone() {
            return;
        }
        let now_ms = self.parts.clock.monotonic_ms();
        let mut entries = Vec::new();
        for queue in take.queues.iter() {
            let most = take.most - entries.len();
            if most == 0 {
                break;
            }
            self.hand_out(queue, most, now_ms, &mut entries);
        }
        if !entries.is_empty() || !take.waits {
            self.give(take, entries);
            return;
        }
        let queues = Arc::clone(&take.queues);
        self.line.join(&queues, take);
    }

    fn hand_out(&mut self, queue: &str, most: usize, now_ms: u64, out: &mut Vec<Entry>) {
        match self.index.hand_out(queue, most, now_ms, out) {
            Ok(None) => {}
            Ok(Some(wait_ms)) => {
                let at = now_ms + wait_ms.max(1);
                self.again_ms = Some(self.again_ms.map_or(at, |before| before.min(at)));
            }
            Err(error) => self.heal(&error.to_string()),
        }
    }

    fn give(&mut self, take: Take, entries: Vec<Entry>) {
        fail::fail_point!("task.handed_out");
        match take.taker {
            Taker::Entries(reply) => {
                if let Err(entries) = reply.send(entries) {
                    // The process did without them meanwhile.
                    self.obey(Message::Back(entries));
                }
            }
            Taker::Runs(starter) => starter.start(entries),
        }
    }

    /// One look at everything that is not a message.
    pub(super) fn round(&mut self) {
        self.follow_the_clock();
        let (now, now_ms) = (self.parts.clock.now(), self.parts.clock.monotonic_ms());
        self.has_more = false;
        if self.again_ms.is_some_and(|at| at <= now_ms) {
            self.again_ms = None;
        }
        if self.flags.behind.load(Ordering::Acquire) {
            self.line.close();
            self.flags.behind.store(false, Ordering::Release);
            tracing::info!("messages to the delivery were lost; the rows are looked through");
            self.begin_anew();
        }
        let commits = self.line.commits();
        let poll = now_ms.saturating_sub(self.polled_ms) >= self.parts.rules.poll_interval_ms;
        if self.flags.rows.swap(false, Ordering::AcqRel) || poll {
            self.polled_ms = now_ms;
            self.read_new_rows(now);
        }
        self.walk_on(now);
        if self.walk.is_none() && self.index.is_short() {
            if !self.index.has_disk() {
                self.index.start_over(); // there may be one again
            }
            self.walk_anew();
        }
        match self.index.ripen(now) {
            Ok(more) => self.has_more |= more,
            Err(error) => self.heal(&error.to_string()),
        }
        self.take_back_orphans(now);
        self.take_back_leases(now, now_ms);
        self.serve_lines(now_ms);
        if let Err(error) = self.index.settle() {
            self.heal(&error.to_string());
        }
        self.open_line(commits);
        if now_ms.saturating_sub(self.looked_after_ms) >= LOOK_AFTER_MS {
            self.looked_after_ms = now_ms;
            match self.index.check() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!("queue/ has grown too large; it is made anew from the rows");
                    self.begin_anew();
                }
                Err(error) => self.heal(&error.to_string()),
            }
            self.publish(now);
        }
    }

    /// Lets tasks be handed over to those in line, unless there may be others to give to them. `commits` were
    /// counted before the new rows were read.
    fn open_line(&self, commits: u64) {
        let has_more = self.has_more
            || self.walk.is_some()
            || !self.orphans.is_empty()
            || self.index.is_short()
            || self.flags.rows.load(Ordering::Acquire)
            || self.flags.behind.load(Ordering::Acquire);
        if has_more {
            self.line.close();
            return;
        }
        let told = self.told;
        self.line
            .open(News { commits, told }, self.index.next_due());
    }

    /// The disk can't be used: begin anew, from the rows.
    fn heal(&mut self, reason: &str) {
        tracing::warn!(
            reason,
            "the tasks' delivery index failed; it is made anew from the rows"
        );
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        self.line.close();
        self.parts.metrics.task_index_rebuilds_total.inc();
        self.index.start_over();
        self.walk_anew();
    }

    fn read_new_rows(&mut self, now: Timestamp) {
        let above = self.seen;
        let rows = self
            .parts
            .store
            .read_blocking(move |tx| sql::rows_above(tx, above, ROWS_AT_ONCE));
        match rows {
            Ok(rows) => {
                fail::fail_point!("task.relay");
                if rows.len() == ROWS_AT_ONCE as usize {
                    self.flags.rows.store(true, Ordering::Release);
                    self.has_more = true;
                }
                for row in rows {
                    self.seen = Some(row.entry.id);
                    if row.waiting_on == 0 && waits(row.state) {
                        self.add(now, &row);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "new tasks could not be read; it is tried again");
                self.flags.rows.store(true, Ordering::Release);
            }
        }
    }

    /// What is available has been due: a clock that was set back does not keep it waiting.
    fn add(&mut self, now: Timestamp, row: &DeliveryRow) {
        if row.state == TaskState::Available {
            self.index.add_due(&row.entry);
        } else {
            self.index.add(now, &row.entry);
        }
    }

    fn walk_on(&mut self, now: Timestamp) {
        let Some(walk) = &mut self.walk else {
            return;
        };
        let Some(list) = walk.lists.front().copied() else {
            let walk = self.walk.take();
            self.finish_walk(walk.map_or_else(Vec::new, |walk| {
                tracing::debug!(rows = walk.rows, "the unfinished tasks were looked through");
                walk.handed
            }));
            return;
        };
        let above = walk.above;
        let rows = self
            .parts
            .store
            .read_blocking(move |tx| sql::unfinished_above(tx, list, above, WALK_ROWS));
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "the tasks could not be looked through; it is tried again");
                return;
            }
        };
        walk.rows += rows.len() as u64;
        walk.above = rows.last().map(|row| row.entry.id);
        if rows.len() < WALK_ROWS as usize {
            walk.lists.pop_front();
            walk.above = None;
        }
        for row in rows {
            if row.state != TaskState::Running {
                if row.waiting_on == 0 {
                    self.add(now, &row);
                }
                continue;
            }
            let id = row.entry.id;
            match row.lease_expires_at {
                Some(ends) => {
                    let deadline = self.deadline(ends, self.parts.clock.moment());
                    self.index
                        .lease(id, row.attempt, &row.entry.queue, deadline, ends);
                }
                None if row.worker.as_deref() == Some(&*self.parts.worker) => {
                    self.index.note_running(id, &row.entry.queue);
                }
                None => self.orphans.push((id, row.attempt)),
            }
        }
    }

    /// What was handed out before the walk and runs no longer has been over for some time.
    fn finish_walk(&mut self, handed: Vec<TaskId>) {
        for ids in handed.chunks(500) {
            let asked = ids.to_vec();
            let states = self.parts.store.read_blocking::<_, StoreError>(move |tx| {
                asked
                    .into_iter()
                    .map(|id| Ok((id, sql::state(tx, id)?)))
                    .collect::<Result<Vec<_>, _>>()
            });
            match states {
                Ok(states) => {
                    for (id, state) in states {
                        if state.is_none_or(|(state, _)| state != TaskState::Running) {
                            self.index.over(id);
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "running tasks could not be counted"),
            }
        }
    }

    /// Takes back what processes before this one were running when they ended.
    fn take_back_orphans(&mut self, now: Timestamp) {
        if self.orphans.is_empty() {
            return;
        }
        let count = self.orphans.len().min(RECOVER_AT_ONCE);
        let some: Vec<(TaskId, u32)> = self.orphans.drain(..count).collect();
        self.has_more |= !self.orphans.is_empty();
        let (rules, asked) = (Arc::clone(&self.parts.rules), some.clone());
        let done = self
            .parts
            .store
            .write(move |tx| {
                let mut changes = Changes::default();
                for &(id, attempt) in &asked {
                    changes.add(recover(tx, now, &rules, id, attempt, None, |_| false)?);
                }
                Ok::<_, TaskError>(changes)
            })
            .blocking();
        match done {
            Ok(changes) => {
                tracing::info!(
                    tasks = count,
                    "tasks that ran when the process ended wait again"
                );
                self.tell(&changes);
            }
            Err(error) => {
                tracing::warn!(%error, "orphaned tasks could not be taken back; it is tried again");
                self.orphans.extend(some);
                self.has_more = false;
            }
        }
    }

    /// How long outside workers' runs and leases last is counted in time that passed; their rows speak
    /// of the wall clock. When that is set, the rows of all known leases move along; for a lease whose
    /// message is read later, or speaks of the new time already, [`Self::catch_up`] does it.
    fn follow_the_clock(&mut self) {
        let at = self.parts.clock.moment();
        let jump = self.flags.rows_behind(at);
        if jump != 0 {
            let leases = self.index.leases();
            let moved = self
                .parts
                .store
                .write(move |tx| {
                    leases.iter().try_for_each(|&(id, attempt, ends)| {
                        sql::shift_run(tx, id, attempt, ends, jump, jump)
                    })
                })
                .blocking();
            if let Err(error) = moved {
                tracing::warn!(%error, "runs could not follow the clock; it is tried again");
                return;
            }
            tracing::warn!(
                seconds = jump / 1_000_000,
                "the clock was set; the times of runs moved along"
            );
            self.index.shift_leases(jump);
        }
        self.flags.follow(at);
    }

    /// Makes a lease's row, which ends at `ends`, speak of the time that the other rows speak of, if its
    /// message comes from before or after a jump of the clock: by how many microseconds the run's
    /// beginning and the lease's end are behind. Answers the end that the row shows now.
    fn catch_up(
        &self,
        id: TaskId,
        attempt: u32,
        ends: Timestamp,
        (begun, lease): (i64, i64),
    ) -> Timestamp {
        if lease == 0 {
            return ends;
        }
        let moved = self
            .parts
            .store
            .write(move |tx| sql::shift_run(tx, id, attempt, ends, begun, lease))
            .blocking();
        match moved {
            Ok(()) => Timestamp(ends.0.saturating_add(lease)),
            Err(error) => {
                tracing::warn!(%error, "a run could not follow the clock; its lease may end late");
                ends
            }
        }
    }

    /// Takes back what outside workers did not answer for in time.
    fn take_back_leases(&mut self, now: Timestamp, now_ms: u64) {
        let due = self
            .index
            .run_out(now_ms, now_ms + LEASE_AGAIN_MS, RECOVER_AT_ONCE);
        if due.is_empty() {
            return;
        }
        let (rules, is_away) = (
            Arc::clone(&self.parts.rules),
            Arc::clone(&self.parts.is_away),
        );
        let done = self
            .parts
            .store
            .write(move |tx| {
                let (mut changes, mut left) = (Changes::default(), Vec::new());
                for &(id, attempt, ends) in &due {
                    if ends > now {
                        // It was renewed while the clock was being set.
                        left.push((id, Some(ends)));
                        continue;
                    }
                    let is_away = |worker: &str| is_away.get().is_some_and(|tells| tells(worker));
                    changes.add(recover(tx, now, &rules, id, attempt, Some(ends), is_away)?);
                    // It runs on: it was renewed, and nobody told.
                    let lease = sql::running(tx, id, attempt)?.map(|run| run.lease_expires_at);
                    left.push((id, lease.flatten()));
                }
                Ok::<_, TaskError>((changes, left))
            })
            .blocking();
        match done {
            Ok((changes, left)) => {
                for (id, lease) in left {
                    match lease {
                        Some(ends) => {
                            let deadline = self.deadline(ends, self.parts.clock.moment());
                            self.index.renew(id, deadline, ends);
                        }
                        None => {
                            self.index.over(id);
                        }
                    }
                }
                self.tell(&changes);
            }
            Err(error) => {
                tracing::warn!(%error, "expired leases could not be taken back; it is tried again");
            }
        }
    }

    fn tell(&mut self, changes: &Changes) {
        (self.parts.on_changes)(changes);
        self.apply(changes);
    }

    /// Gives tasks to those who wait, first come, first served.
    fn serve_lines(&mut self, now_ms: u64) {
        for name in self.line.queues() {
            while let Some(most) = self.line.look(&name, Take::is_gone, |take| take.most) {
                let mut entries = Vec::new();
                self.hand_out(&name, most, now_ms, &mut entries);
                if entries.is_empty() {
                    break;
                }
                // The first may have been handed another task meanwhile; then they are the next one's.
                match self.line.take(&name, Take::is_gone) {
                    Some(take) if entries.len() > take.most => {
                        let rest = entries.split_off(take.most);
                        self.give(take, entries);
                        self.obey(Message::Back(rest));
                    }
                    Some(take) => self.give(take, entries),
                    None => self.obey(Message::Back(entries)),
                }
            }
        }
    }

    fn publish(&mut self, now: Timestamp) {
        self.line.tidy(Take::is_gone);
        self.index.forget_idle();
        let (queues, scheduled) = self.index.stats();
        let names = queues.iter().map(|queue| queue.name.clone()).collect();
        self.parts.names.store(Arc::new(names));
        self.parts.metrics.set_queues(
            queues.iter().map(|queue| {
                let age = queue
                    .oldest_due_at
                    .map_or(0, |at| now.micros_since(at).max(0));
                (
                    queue.name.as_str(),
                    queue.ready,
                    queue.running,
                    age as f64 / 1_000_000.0,
                )
            }),
            scheduled,
        );
    }

    pub(super) fn end(&mut self, is_orderly: bool) {
        if !is_orderly || self.walk.is_some() || !self.orphans.is_empty() || !self.index.has_disk()
        {
            return; // the next start looks through the rows
        }
        if self.flags.behind.load(Ordering::Acquire) || self.index.is_short() {
            return;
        }
        let empty = Index::closed(&self.parts.folder, &self.parts.rules);
        let index = std::mem::replace(&mut self.index, empty);
        let mark = TaskId::next(self.parts.clock.now()).to_string();
        let kept = index
            .close(self.seen, &mark)
            .map_err(|error| error.to_string())
            .and_then(|()| {
                let noted = self
                    .parts
                    .store
                    .write(move |tx| sql::put_mark(tx, &mark))
                    .blocking();
                noted.map_err(|error| error.to_string())
            });
        if let Err(error) = kept {
            tracing::info!(%error, "the tasks' delivery index was not kept; the next start makes it anew");
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.line.clear();
    }
}

/// The mark of the index that an orderly end left, which fits the rows this once.
fn take_mark(store: &Store) -> Option<String> {
    let mark = store.read_blocking(sql::mark);
    let taken = mark.and_then(|mark| match mark {
        Some(_) => store.write(sql::remove_mark).blocking().map(|()| mark),
        None => Ok(None),
    });
    taken.unwrap_or_else(|error| {
        tracing::warn!(%error, "the tasks' delivery index is made anew: its mark could not be taken");
        None
    })
}

/// Whether a row in this state may be delivered, now or at its time.
fn waits(state: TaskState) -> bool {
    match state {
        TaskState::Scheduled | TaskState::Available | TaskState::Retryable => true,
        TaskState::Running | TaskState::Completed | TaskState::Cancelled | TaskState::Discarded => {
            false
        }
    }
}
