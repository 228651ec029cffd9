//! The queue against a plain model of it, through thousands of histories with restarts.
//!
//! The delivery's own loop is driven by hand, on rows in a real database and a real folder of sled,
//! with a clock that the history moves. Set `PROPTEST_CASES` for more histories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;
use proptest::sample::Index as Pick;
use tokio::sync::oneshot;

use super::handle::{Handing, Reserved, Starting, Tasks};
use super::line::Line;
use super::relay::{Flags, Loop, Message, Parts, Take, Taker, reserve};
use crate::clock::{Clock, Moment, Timestamp};
use crate::config;
use crate::monitor::Metrics;
use crate::store::Store;
use crate::task::life::{RunEnd, RunOutcome, end_all, start_all};
use crate::task::run::do_at_once;
use crate::task::{
    self, AttemptOutcome, Effect, Failure, Filter, NewBatch, NewTask, Registry, RetryPolicy, Start,
    Started, TaskError, TaskFailure, TaskId, TaskState,
};

const QUEUES: [&str; 2] = ["a", "b"];
/// Where what follows batches waits; nothing is fetched from it.
const CALLBACKS: &str = "callbacks";
const LEASE_MS: i64 = 30_000;
const RETRY_MS: i64 = 5_000;

#[derive(Clone, Debug)]
enum Step {
    Enqueue {
        queue: usize,
        priority: u8,
        delay: i64,
        expires: Option<i64>,
        max_attempts: u32,
    },
    /// Tasks that are counted together, with a task to follow in either case.
    Batch {
        queue: usize,
        tasks: usize,
        max_attempts: u32,
    },
    Fetch {
        queue: usize,
        is_own: bool,
    },
    /// Many at once, for an outside worker.
    FetchMany {
        queue: usize,
        most: usize,
    },
    /// Ends many runs in one request, some of them twice, and others' as well; `true` for those that
    /// succeeded.
    EndMany(Vec<(Pick, bool)>),
    /// Enqueues while a worker waits, if nothing else does; the transaction may be undone.
    HandOver {
        queue: usize,
        priority: u8,
        is_undone: bool,
    },
    /// By this process, for a handler that only writes.
    Do {
        queue: usize,
        succeeds: bool,
    },
    Complete(Pick),
    Fail {
        run: Pick,
        is_final: bool,
    },
    Snooze {
        run: Pick,
        wait: i64,
    },
    Release(Pick),
    Beat(Pick),
    Lie(Pick),
    Cancel(Pick),
    Retry(Pick),
    Advance(u64),
    Restart {
        is_orderly: bool,
    },
    LoseFolder,
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<Pick>;
    prop_oneof![
        8 => (0..2usize, prop::sample::select(vec![50u8, 100, 200]), prop::sample::select(vec![0i64, 0, 10, 40]),
              prop::option::weighted(0.2, 1..60i64), 1..4u32)
            .prop_map(|(queue, priority, delay, expires, max_attempts)| Step::Enqueue {
                queue, priority, delay, expires: expires.map(|more| delay + more), max_attempts }),
        3 => (0..2usize, 1..4usize, 1..3u32)
            .prop_map(|(queue, tasks, max_attempts)| Step::Batch { queue, tasks, max_attempts }),
        8 => (0..2usize, any::<bool>()).prop_map(|(queue, is_own)| Step::Fetch { queue, is_own }),
        3 => (0..2usize, 1..6usize).prop_map(|(queue, most)| Step::FetchMany { queue, most }),
        3 => prop::collection::vec((pick(), any::<bool>()), 1..6).prop_map(Step::EndMany),
        4 => (0..2usize, prop::sample::select(vec![50u8, 200]), prop::bool::weighted(0.2))
            .prop_map(|(queue, priority, is_undone)| Step::HandOver { queue, priority, is_undone }),
        4 => (0..2usize, prop::bool::weighted(0.7)).prop_map(|(queue, succeeds)| Step::Do { queue, succeeds }),
        4 => pick().prop_map(Step::Complete),
        3 => (pick(), prop::bool::weighted(0.2)).prop_map(|(run, is_final)| Step::Fail { run, is_final }),
        1 => (pick(), 0..20i64).prop_map(|(run, wait)| Step::Snooze { run, wait }),
        1 => pick().prop_map(Step::Release),
        2 => pick().prop_map(Step::Beat),
        1 => pick().prop_map(Step::Lie),
        2 => pick().prop_map(Step::Cancel),
        2 => pick().prop_map(Step::Retry),
        4 => (1..40u64).prop_map(Step::Advance),
        1 => any::<bool>().prop_map(|is_orderly| Step::Restart { is_orderly }),
        1 => Just(Step::LoseFolder),
    ]
}

/// What the model knows of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    queue: usize,
    priority: u8,
    run_at: Timestamp,
    expires_at: Option<Timestamp>,
    state: TaskState,
    attempt: u32,
    max_attempts: u32,
    crashes: u32,
    is_cancelled: bool,
    /// Of a running task: when its lease ends, or `None` for this process's own.
    lease: Option<Timestamp>,
    /// The place of the batch that counts it.
    batch: Option<usize>,
}

/// What the model knows of a batch.
#[derive(Clone, Debug)]
struct KnownBatch {
    /// A task of it, by which it is found.
    member: TaskId,
    /// Whether all its tasks were finished at some time.
    was_complete: bool,
    /// Whether all have succeeded.
    was_success: bool,
}

impl Known {
    fn waits(&self) -> bool {
        matches!(
            self.state,
            TaskState::Scheduled | TaskState::Available | TaskState::Retryable
        )
    }

    fn fail(&mut self, now: Timestamp, is_final: bool) {
        if self.is_cancelled {
            self.state = TaskState::Cancelled;
        } else if is_final || self.attempt >= self.max_attempts {
            self.state = TaskState::Discarded;
        } else {
            self.state = TaskState::Retryable;
            self.run_at = Timestamp(now.0 + RETRY_MS * 1_000);
        }
    }

    fn crash(&mut self, now: Timestamp) {
        self.crashes += 1;
        if self.is_cancelled {
            self.state = TaskState::Cancelled;
        } else if self.crashes >= 3 || self.attempt >= self.max_attempts {
            self.state = TaskState::Discarded;
        } else {
            self.state = TaskState::Available;
            self.run_at = now;
        }
    }

    fn put_back(&mut self, now: Timestamp, wait: i64) {
        if self.is_cancelled {
            self.state = TaskState::Cancelled;
            return;
        }
        self.max_attempts += 1;
        self.run_at = now.plus_seconds(wait);
        self.state = if wait > 0 {
            TaskState::Scheduled
        } else {
            TaskState::Available
        };
    }
}

struct World {
    store: Store,
    clock: Clock,
    rules: Arc<config::Tasks>,
    dir: tempfile::TempDir,
    state: Option<Loop>,
    flags: Arc<Flags>,
    line: Arc<Line<Take>>,
    /// For workers who wait to be handed a task; it delivers nothing itself.
    tasks: Tasks,
    worker: u32,
    known: BTreeMap<TaskId, Known>,
    batches: Vec<KnownBatch>,
}

impl World {
    fn new(store: &Store) -> Self {
        let clock = Clock::manual(Timestamp(1_800_000_000_000_000));
        let rules = Arc::new(config::Tasks {
            index_memory_max: 4, // so that most of it is on disk
            ..config::Tasks::default()
        });
        let (metrics, registry) = (
            Metrics::new().expect("metrics"),
            Registry::builder().build(),
        );
        let tasks = Tasks::new(
            store.clone(),
            clock.clone(),
            Arc::clone(&rules),
            metrics,
            registry,
        );
        let mut world = Self {
            store: store.clone(),
            clock,
            rules,
            dir: tempfile::tempdir().expect("a directory"),
            state: None,
            flags: Arc::default(),
            line: Arc::new(Line::new()),
            tasks,
            worker: 0,
            known: BTreeMap::new(),
            batches: Vec::new(),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.worker += 1;
        let (_messages, inbox) = sync_channel(64);
        let parts = Parts {
            store: self.store.clone(),
            clock: self.clock.clone(),
            rules: Arc::clone(&self.rules),
            metrics: Metrics::new().expect("metrics"),
            folder: self.dir.path().join("queue"),
            worker: format!("process:{}", self.worker).into(),
            names: Arc::default(),
            is_away: Arc::default(),
            on_changes: Arc::new(|_| ()),
        };
        self.flags = Arc::default();
        self.line = Arc::new(Line::new());
        let (flags, line) = (Arc::clone(&self.flags), Arc::clone(&self.line));
        self.state = Some(Loop::new(parts, inbox, flags, line));
        self.settle();
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn delivery(&mut self) -> &mut Loop {
        self.state.as_mut().expect("it runs")
    }

    /// Tells the delivery, as its handle does.
    fn tell(&mut self, message: Message) {
        if message.is_news() {
            self.line.tells();
        }
        self.delivery().handle(message);
    }

    /// Rounds until nothing is left to be done.
    fn settle(&mut self) {
        let delivery = self.delivery();
        delivery.wake();
        delivery.round();
        while delivery.is_busy() {
            delivery.round();
        }
    }

    fn change(
        &mut self,
        work: impl Fn(&mut crate::store::Tx<'_>) -> Result<task::Changes, TaskError> + Send + 'static,
    ) -> Result<(), TaskError> {
        let changes = self.store.write(work).blocking()?;
        self.tell(Message::Changed(changes));
        Ok(())
    }

    /// Those in one of the states, by id.
    fn pick(&self, pick: Pick, fits: impl Fn(&Known) -> bool) -> Option<TaskId> {
        let all: Vec<TaskId> = self
            .known
            .iter()
            .filter(|(_, known)| fits(known))
            .map(|(id, _)| *id)
            .collect();
        (!all.is_empty()).then(|| *pick.get(&all))
    }

    fn fetch(&mut self, queue: usize, is_own: bool) -> Option<(TaskId, u32)> {
        self.begin(queue, is_own, None)
            .map(|(id, attempt, _)| (id, attempt))
    }

    /// The next task, which attempt this is, and whether it is done already: with `at_once`, whose
    /// value says whether that succeeds, it may be.
    fn begin(
        &mut self,
        queue: usize,
        is_own: bool,
        at_once: Option<bool>,
    ) -> Option<(TaskId, u32, bool)> {
        let worker = format!("process:{}", self.worker);
        loop {
            let (reply, mut offer) = oneshot::channel();
            self.tell(Message::Take(Take {
                queues: Arc::from([QUEUES[queue].to_owned()]),
                most: 1,
                waits: true,
                taker: Taker::Entries(reply),
            }));
            let entry = offer.try_recv().ok()?.pop().expect("one");
            let (at, id, name) = (self.clock.moment(), entry.id, worker.clone());
            let now = at.wall;
            let lease = (!is_own).then_some(LEASE_MS);
            let rules = Arc::clone(&self.rules);
            let begun = self
                .store
                .write(move |tx| {
                    if let Some(succeeds) = at_once {
                        let effect = |_: &str, _: &str| -> Option<Effect> {
                            Some(Box::new(move |_, _| match succeeds {
                                true => Ok(None),
                                false => Err(TaskFailure::retry("no")),
                            }))
                        };
                        let done = do_at_once(tx, now, &rules, &entry, &name, effect)?;
                        if let Some(changes) = done {
                            return Ok(Err(changes));
                        }
                    }
                    task::start(tx, now, &entry, &name, lease).map(Ok)
                })
                .blocking()
                .expect("a start");
            let start = match begun {
                Ok(start) => start,
                Err(changes) => {
                    self.tell(Message::Changed(changes));
                    return Some((id, 1, true));
                }
            };
            match start {
                Start::Run(run) => {
                    if let Some(ends) = run.lease_expires_at {
                        self.tell(Message::Leased {
                            id,
                            attempt: run.attempt,
                            queue: run.queue.clone(),
                            ends,
                            at,
                        });
                    }
                    return Some((id, run.attempt, false));
                }
                Start::Expired(changes) => {
                    self.tell(Message::Dropped(id));
                    self.tell(Message::Changed(changes));
                    self.known.get_mut(&id).expect("known").state = TaskState::Cancelled;
                }
                Start::Moved(place) => self.tell(Message::Moved(place)),
                Start::Stale => self.tell(Message::Dropped(id)),
            }
        }
    }

    /// Tasks for an outside worker, handed out and started together.
    fn fetch_many(&mut self, queue: usize, most: usize) {
        let expected: Vec<TaskId> = {
            let mut due = self.due(queue);
            due.truncate(most);
            due.sort_unstable();
            due
        };
        let mut got = Vec::new();
        while got.len() < most {
            let (reply, mut offer) = oneshot::channel();
            self.tell(Message::Take(Take {
                queues: Arc::from([QUEUES[queue].to_owned()]),
                most: most - got.len(),
                waits: false,
                taker: Taker::Entries(reply),
            }));
            let entries = offer.try_recv().expect("an answer");
            if entries.is_empty() {
                break;
            }
            let (at, asked) = (self.clock.moment(), entries.clone());
            let starts = self
                .store
                .write(move |tx| start_all(tx, at.wall, &asked, "w", Some(LEASE_MS)))
                .blocking()
                .expect("a start");
            for (entry, start) in entries.iter().zip(starts) {
                let id = entry.id;
                match start {
                    Start::Run(run) => {
                        self.runs(at, &run);
                        let known = self.known.get_mut(&id).expect("known");
                        known.attempt += 1;
                        known.state = TaskState::Running;
                        known.lease = Some(Timestamp(at.wall.0 + LEASE_MS * 1_000));
                        assert_eq!(run.attempt, known.attempt);
                        got.push(id);
                    }
                    Start::Expired(changes) => {
                        self.tell(Message::Dropped(id));
                        self.tell(Message::Changed(changes));
                        self.known.get_mut(&id).expect("known").state = TaskState::Cancelled;
                    }
                    Start::Moved(place) => self.tell(Message::Moved(place)),
                    Start::Stale => self.tell(Message::Dropped(id)),
                }
            }
        }
        got.sort_unstable();
        assert_eq!(got, expected, "the next tasks of {queue}");
    }

    /// The delivery hears of an outside worker's run.
    fn runs(&mut self, at: Moment, run: &Started) {
        self.tell(Message::Leased {
            id: run.id,
            attempt: run.attempt,
            queue: run.queue.clone(),
            ends: run.lease_expires_at.expect("a lease"),
            at,
        });
    }

    fn end_many(&mut self, picks: &[(Pick, bool)]) {
        let (now, rules) = (self.now(), Arc::clone(&self.rules));
        let mut ends = Vec::new();
        let mut expected = Vec::new();
        for (pick, succeeds) in picks {
            let Some(id) = self.pick(*pick, |known| known.attempt > 0) else {
                return;
            };
            let known = self.known.get_mut(&id).expect("known");
            let attempt = known.attempt;
            let outcome = match succeeds {
                true => RunOutcome::Completed(Some("1".to_owned())),
                false => RunOutcome::Failed(Failure::new("no")),
            };
            let counts = known.state == TaskState::Running && known.lease.is_some();
            if counts && *succeeds {
                known.state = TaskState::Completed;
            } else if counts {
                known.fail(now, false);
            }
            ends.push(RunEnd {
                id,
                attempt,
                outcome,
            });
            expected.push(counts);
        }
        let (ended, changes) = self
            .store
            .write(move |tx| end_all(tx, now, &rules, &ends))
            .blocking()
            .expect("answers");
        self.tell(Message::Changed(changes));
        let ended: Vec<bool> = ended.iter().map(Result::is_ok).collect();
        assert_eq!(ended, expected);
    }

    fn hand_over(&mut self, queue: usize, priority: u8, is_undone: bool) {
        // What waits is served first, and old entries with it.
        if self.expected(queue).is_some() || self.fetch(queue, false).is_some() {
            return;
        }
        let (starter, mut starting) = self.tasks.starter("w", Some(LEASE_MS));
        self.tell(Message::Take(Take {
            queues: Arc::from([QUEUES[queue].to_owned()]),
            most: 3,
            waits: true,
            taker: Taker::Runs(Box::new(starter)),
        }));
        self.settle();
        let (at, tasks, line) = (
            self.clock.moment(),
            self.tasks.clone(),
            Arc::clone(&self.line),
        );
        let mut new = NewTask::named("x".to_owned(), QUEUES[queue].to_owned(), "{}".to_owned());
        new.priority = priority;
        new.max_attempts = 2;
        new.retry_policy = Some(RetryPolicy::Fixed { delay_ms: RETRY_MS });
        let done = self
            .store
            .write(move |tx| {
                let handing = Handing::new(&tasks);
                let reserved = |queue: &str| reserve(&line, queue, at.wall).map(Reserved::new);
                let enqueued = handing.enqueue_for(tx, at.wall, &new, reserved)?;
                match is_undone {
                    true => Err(TaskError::Stopped),
                    false => Ok((enqueued.id(), handing)),
                }
            })
            .blocking();
        let heard = |starting: &mut Starting| {
            let heard = starting.wait().now_or_never().expect("it was told");
            heard.expect("an answer")
        };
        let Ok((id, handing)) = done else {
            assert!(is_undone);
            assert_eq!(heard(&mut starting), [], "it asks again");
            return;
        };
        let run = handing.started().expect("handed over");
        self.runs(at, &run);
        handing.committed();
        assert_eq!(heard(&mut starting), std::slice::from_ref(&run));
        assert_eq!((run.id, run.attempt), (id, 1));
        let known = Known {
            queue,
            priority,
            run_at: at.wall,
            expires_at: None,
            state: TaskState::Running,
            attempt: 1,
            max_attempts: 2,
            crashes: 0,
            is_cancelled: false,
            lease: run.lease_expires_at,
            batch: None,
        };
        self.known.insert(id, known);
    }

    /// What a fetch must give: the first by priority, time and id.
    fn expected(&self, queue: usize) -> Option<TaskId> {
        self.due(queue).first().copied()
    }

    /// What may be started now, in its order.
    fn due(&self, queue: usize) -> Vec<TaskId> {
        let now = self.now();
        let mut due: Vec<(&TaskId, &Known)> = self
            .known
            .iter()
            .filter(|(_, known)| {
                known.queue == queue
                    && known.waits()
                    && known.run_at <= now
                    && known.expires_at.is_none_or(|at| at > now)
            })
            .collect();
        due.sort_by_key(|(id, known)| (255 - known.priority, known.run_at, **id));
        due.into_iter().map(|(id, _)| *id).collect()
    }

    fn run(&mut self, step: Step) {
        let now = self.now();
        let rules = Arc::clone(&self.rules);
        let running = |known: &Known| known.state == TaskState::Running;
        match step {
            Step::Enqueue {
                queue,
                priority,
                delay,
                expires,
                max_attempts,
            } => {
                let mut new =
                    NewTask::named("x".to_owned(), QUEUES[queue].to_owned(), "{}".to_owned());
                new.priority = priority;
                new.max_attempts = max_attempts;
                new.retry_policy = Some(RetryPolicy::Fixed { delay_ms: RETRY_MS });
                new.run_at = (delay > 0).then(|| now.plus_seconds(delay));
                new.expires_at = expires.map(|seconds| now.plus_seconds(seconds));
                let known = Known {
                    queue,
                    priority,
                    run_at: new.run_at.unwrap_or(now),
                    expires_at: new.expires_at,
                    state: if delay > 0 {
                        TaskState::Scheduled
                    } else {
                        TaskState::Available
                    },
                    attempt: 0,
                    max_attempts,
                    crashes: 0,
                    is_cancelled: false,
                    lease: None,
                    batch: None,
                };
                let id = self
                    .store
                    .write(move |tx| task::enqueue(tx, now, &new))
                    .blocking()
                    .expect("a task")
                    .id();
                self.known.insert(id, known);
            }
            Step::Batch {
                queue,
                tasks,
                max_attempts,
            } => {
                let place = self.batches.len();
                let task = |name: String, queue: &str| {
                    let mut new = NewTask::named(name, queue.to_owned(), "{}".to_owned());
                    new.max_attempts = max_attempts;
                    new.retry_policy = Some(RetryPolicy::Fixed { delay_ms: RETRY_MS });
                    new
                };
                let new = NewBatch {
                    description: None,
                    tasks: vec![task("x".to_owned(), QUEUES[queue]); tasks],
                    on_success: Some(task(format!("success {place}"), CALLBACKS)),
                    on_complete: Some(task(format!("complete {place}"), CALLBACKS)),
                };
                let priority = new.tasks[0].priority;
                let made = self
                    .store
                    .write(move |tx| task::enqueue_batch(tx, now, &new))
                    .blocking()
                    .expect("a batch");
                for enqueued in &made.tasks {
                    let known = Known {
                        queue,
                        priority,
                        run_at: now,
                        expires_at: None,
                        state: TaskState::Available,
                        attempt: 0,
                        max_attempts,
                        crashes: 0,
                        is_cancelled: false,
                        lease: None,
                        batch: Some(place),
                    };
                    self.known.insert(enqueued.id(), known);
                }
                self.batches.push(KnownBatch {
                    member: made.tasks[0].id(),
                    was_complete: false,
                    was_success: false,
                });
            }
            Step::Fetch { queue, is_own } => {
                let expected = self.expected(queue);
                let got = self.fetch(queue, is_own);
                assert_eq!(got.map(|(id, _)| id), expected, "the next task of {queue}");
                if let Some((id, attempt)) = got {
                    let known = self.known.get_mut(&id).expect("known");
                    known.attempt += 1;
                    known.state = TaskState::Running;
                    known.lease = (!is_own).then(|| Timestamp(now.0 + LEASE_MS * 1_000));
                    assert_eq!(attempt, known.attempt);
                }
            }
            Step::FetchMany { queue, most } => self.fetch_many(queue, most),
            Step::EndMany(picks) => self.end_many(&picks),
            Step::HandOver {
                queue,
                priority,
                is_undone,
            } => self.hand_over(queue, priority, is_undone),
            Step::Do { queue, succeeds } => {
                let expected = self.expected(queue);
                let got = self.begin(queue, true, Some(succeeds));
                assert_eq!(got.map(|(id, ..)| id), expected, "the next task of {queue}");
                if let Some((id, attempt, is_done)) = got {
                    let known = self.known.get_mut(&id).expect("known");
                    assert_eq!(is_done, succeeds && known.attempt == 0);
                    known.attempt += 1;
                    known.lease = None;
                    known.state = match is_done {
                        true => TaskState::Completed,
                        false => TaskState::Running,
                    };
                    assert_eq!(attempt, known.attempt);
                }
            }
            Step::Complete(run) => {
                let Some(id) = self.pick(run, running) else {
                    return;
                };
                let attempt = self.known[&id].attempt;
                self.change(move |tx| task::complete(tx, now, &rules, id, attempt, Some("1")))
                    .expect("completed");
                self.known.get_mut(&id).expect("known").state = TaskState::Completed;
            }
            Step::Fail { run, is_final } => {
                let Some(id) = self.pick(run, running) else {
                    return;
                };
                let attempt = self.known[&id].attempt;
                let failure = Failure {
                    is_final,
                    outcome: AttemptOutcome::Failed,
                    ..Failure::new("no")
                };
                self.change(move |tx| task::fail(tx, now, &rules, id, attempt, &failure))
                    .expect("failed");
                self.known.get_mut(&id).expect("known").fail(now, is_final);
            }
            Step::Snooze { run, wait } => {
                let Some(id) = self.pick(run, running) else {
                    return;
                };
                let attempt = self.known[&id].attempt;
                self.change(move |tx| task::snooze(tx, now, &rules, id, attempt, wait * 1_000))
                    .expect("put off");
                self.known.get_mut(&id).expect("known").put_back(now, wait);
            }
            Step::Release(run) => {
                if let Some(id) = self.pick(run, running) {
                    self.release(id);
                }
            }
            Step::Beat(run) => {
                let leased = |known: &Known| running(known) && known.lease.is_some();
                let Some(id) = self.pick(run, leased) else {
                    return;
                };
                let attempt = self.known[&id].attempt;
                let beat = self
                    .store
                    .write(move |tx| task::heartbeat(tx, now, id, attempt, LEASE_MS, 0))
                    .blocking()
                    .expect("a beat");
                let at = self.clock.moment();
                self.tell(Message::Renewed {
                    id,
                    attempt,
                    ends: beat.lease_expires_at,
                    at,
                });
                let known = self.known.get_mut(&id).expect("known");
                assert_eq!(beat.cancel_requested, known.is_cancelled);
                known.lease = Some(beat.lease_expires_at);
            }
            Step::Lie(run) => {
                let Some(id) = self.pick(run, |known| known.attempt > 0) else {
                    return;
                };
                let known = &self.known[&id];
                let attempt = known.attempt - u32::from(running(known));
                let refused =
                    self.change(move |tx| task::complete(tx, now, &rules, id, attempt, None));
                assert!(
                    matches!(refused, Err(TaskError::Fenced { .. })),
                    "{refused:?}"
                );
            }
            Step::Cancel(task) => {
                let Some(id) = self.pick(task, |_| true) else {
                    return;
                };
                let cancelled = self.change(move |tx| task::cancel(tx, now, id));
                let known = self.known.get_mut(&id).expect("known");
                assert_eq!(cancelled.is_ok(), !known.state.is_final());
                if known.waits() {
                    known.state = TaskState::Cancelled;
                } else if known.state == TaskState::Running {
                    known.is_cancelled = true;
                }
            }
            Step::Retry(task) => {
                let Some(id) = self.pick(task, |_| true) else {
                    return;
                };
                let retried = self.change(move |tx| task::retry_task(tx, now, id));
                let known = self.known.get_mut(&id).expect("known");
                let may = match known.state {
                    TaskState::Cancelled
                    | TaskState::Discarded
                    | TaskState::Retryable
                    | TaskState::Scheduled => true,
                    TaskState::Available | TaskState::Running | TaskState::Completed => false,
                };
                assert_eq!(retried.is_ok(), may, "{known:?}");
                if may {
                    known.state = TaskState::Available;
                    known.run_at = now;
                    known.expires_at = None;
                    known.crashes = 0;
                    known.is_cancelled = false;
                    if known.attempt >= known.max_attempts {
                        known.max_attempts = known.attempt + 1;
                    }
                }
            }
            Step::Advance(seconds) => {
                self.clock.advance(Duration::from_secs(seconds));
                let now = self.now();
                for known in self.known.values_mut() {
                    if running(known) && known.lease.is_some_and(|ends| ends <= now) {
                        known.crash(now);
                    }
                }
            }
            Step::Restart { is_orderly } => {
                let own: Vec<TaskId> = self
                    .known
                    .iter()
                    .filter(|(_, known)| running(known) && known.lease.is_none())
                    .map(|(id, _)| *id)
                    .collect();
                if is_orderly {
                    own.into_iter().for_each(|id| self.release(id));
                } else {
                    for id in own {
                        self.known.get_mut(&id).expect("known").crash(now);
                    }
                }
                self.settle();
                self.state.take().expect("it runs").end(is_orderly);
                self.start();
            }
            Step::LoseFolder => {
                // It may have been lost before.
                let _gone = std::fs::remove_dir_all(self.dir.path().join("queue"));
            }
        }
        self.settle();
        self.look_at_batches();
    }

    /// States of a batch's tasks.
    fn members(&self, place: usize) -> Vec<TaskState> {
        let all = self.known.values();
        all.filter(|known| known.batch == Some(place))
            .map(|known| known.state)
            .collect()
    }

    fn look_at_batches(&mut self) {
        for place in 0..self.batches.len() {
            let members = self.members(place);
            let batch = &mut self.batches[place];
            batch.was_complete |= members.iter().all(|state| state.is_final());
            batch.was_success |= members.iter().all(|state| *state == TaskState::Completed);
        }
    }

    /// Each batch counts as the model does, and each of its callbacks came once if it was due.
    fn verify_batches(&self) {
        for (place, batch) in self.batches.iter().enumerate() {
            let (now, member) = (self.now(), batch.member);
            let callbacks = |name: String| {
                let filter = Filter {
                    queue: Some(CALLBACKS.to_owned()),
                    name: Some(name),
                    limit: 200,
                    ..Filter::default()
                };
                let list = self.store.read_blocking(move |tx| task::list(tx, &filter));
                list.expect("a list").0.len()
            };
            let seen = (
                callbacks(format!("complete {place}")),
                callbacks(format!("success {place}")),
            );
            let due = (
                usize::from(batch.was_complete),
                usize::from(batch.was_success),
            );
            assert_eq!(seen, due, "{batch:?}: {:?}", self.members(place));
            let state = self
                .store
                .read_blocking(move |tx| {
                    let (task, ..) = task::get(tx, now, member)?;
                    task::ties(tx, &task)
                })
                .expect("a task")
                .batch
                .expect("its batch");
            let members = self.members(place);
            let count = |fits: fn(&TaskState) -> bool| {
                u32::try_from(members.iter().filter(|state| fits(state)).count()).expect("few")
            };
            let pending = count(|state| !state.is_final());
            let failed =
                count(|state| matches!(state, TaskState::Cancelled | TaskState::Discarded));
            assert_eq!((state.pending, state.failed), (pending, failed));
            assert_eq!(state.finished_at.is_some(), pending == 0);
        }
    }

    fn release(&mut self, id: TaskId) {
        let (now, attempt) = (self.now(), self.known[&id].attempt);
        self.change(move |tx| task::release(tx, now, id, attempt))
            .expect("released");
        self.known.get_mut(&id).expect("known").put_back(now, 0);
    }

    /// Every row is what the model says, and everything that waits is handed out in the end.
    fn verify(&mut self) {
        for (id, known) in &self.known {
            let (id, now) = (*id, self.clock.now());
            let (task, attempts, _) = self
                .store
                .read_blocking(move |tx| task::get(tx, now, id))
                .expect("a task");
            let seen = (
                task.state,
                task.attempt,
                task.crashes,
                task.max_attempts,
                task.run_at,
            );
            let expected = (
                known.state,
                known.attempt,
                known.crashes,
                known.max_attempts,
                known.run_at,
            );
            assert_eq!(seen, expected, "{id}");
            assert!(attempts.len() <= known.attempt as usize);
        }
        self.verify_batches();
        self.clock.advance(Duration::from_secs(100));
        self.run(Step::Advance(0));
        for queue in 0..QUEUES.len() {
            while self.expected(queue).is_some() {
                self.run(Step::Fetch {
                    queue,
                    is_own: true,
                });
            }
            assert_eq!(self.fetch(queue, true), None);
        }
    }
}

fn store(dir: &std::path::Path) -> Store {
    let metrics = Metrics::new().expect("metrics");
    let settings = config::Database::default();
    Store::open(&dir.join("onrush.db"), &settings, metrics, |_| ()).expect("a store")
}

#[test]
fn every_history_is_as_the_model_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store_now = store(dir.path());
    let mut histories = 0;
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 300,
        ..ProptestConfig::with_cases(
            std::env::var("PROPTEST_CASES")
                .ok()
                .and_then(|text| text.parse().ok())
                .unwrap_or(150),
        )
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let shared = std::cell::RefCell::new((&mut store_now, &mut histories));
    runner
        .run(&prop::collection::vec(step(), 1..60), |steps| {
            let store = {
                let mut shared = shared.borrow_mut();
                *shared.1 += 1;
                shared.0.clone()
            };
            // Each history begins without tasks.
            store
                .write(task::sql::clear)
                .blocking()
                .expect("an empty table");
            let mut world = World::new(&store);
            for step in steps {
                world.run(step);
            }
            world.verify();
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    store_now.close();
}

/// Found by the histories: an entry of a task's old time came up while it ran, and took its lease
/// along when it turned out to be stale.
#[test]
fn an_old_entry_of_a_running_task_does_it_no_harm() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let mut world = World::new(&store);
    world.run(Step::Enqueue {
        queue: 0,
        priority: 100,
        delay: 10,
        expires: None,
        max_attempts: 2,
    });
    let (id, now) = (*world.known.keys().next().expect("one"), world.clock.now());
    world
        .change(move |tx| task::retry_task(tx, now, id))
        .expect("brought forward");
    let known = world.known.get_mut(&id).expect("known");
    (known.state, known.run_at) = (TaskState::Available, now);
    for step in [
        Step::Fetch {
            queue: 0,
            is_own: false,
        },
        Step::Advance(10),
        Step::Fetch {
            queue: 0,
            is_own: false,
        },
        Step::Advance(20),
    ] {
        world.run(step);
    }
    assert_eq!(world.known[&id].crashes, 1);
    world.verify();
    store.close();
}

/// What is between two looks at the clock when that is set.
#[derive(Clone, Copy, Debug)]
enum Late {
    /// The message of the start, which speaks of the old time.
    Start,
    /// That of a renewal, which speaks of the old time.
    OldRenewal,
    /// That of a renewal, which speaks of the new time, though the others do not yet.
    NewRenewal,
}

impl World {
    fn lease_ends(&self, id: TaskId) -> Option<Timestamp> {
        let running = move |tx: &mut crate::store::Tx<'_>| task::sql::running(tx, id, 1);
        let run = self.store.read_blocking(running).expect("a row")?;
        run.lease_expires_at
    }

    fn assert_a_lease_lasts(&mut self, late: Late, seconds: i64) {
        let what = format!("{late:?}, set by {seconds} s");
        self.run(Step::Enqueue {
            queue: 0,
            priority: 100,
            delay: 0,
            expires: None,
            max_attempts: 9,
        });
        let id = *self.known.last_key_value().expect("one").0;
        let (reply, mut offer) = oneshot::channel();
        let take = Take {
            queues: Arc::from([QUEUES[0].to_owned()]),
            most: 1,
            waits: false,
            taker: Taker::Entries(reply),
        };
        self.tell(Message::Take(take));
        let entry = offer.try_recv().expect("an answer").pop().expect("one");
        assert_eq!(entry.id, id);
        let mut at = self.clock.moment();
        let (started, wall) = (at, at.wall);
        let begin =
            move |tx: &mut crate::store::Tx<'_>| task::start(tx, wall, &entry, "w", Some(LEASE_MS));
        let Start::Run(run) = self.store.write(begin).blocking().expect("a start") else {
            panic!("{what}: not started");
        };
        let leased = Message::Leased {
            id,
            attempt: 1,
            queue: run.queue.clone(),
            ends: run.lease_expires_at.expect("a lease"),
            at,
        };
        let beat = |world: &Self| {
            let at = world.clock.moment();
            let behind = world.flags.rows_behind(at);
            let beat = move |tx: &mut crate::store::Tx<'_>| {
                task::heartbeat(tx, at.wall, id, 1, LEASE_MS, behind)
            };
            let ends = world
                .store
                .write(beat)
                .blocking()
                .expect("a beat")
                .lease_expires_at;
            (
                at,
                Message::Renewed {
                    id,
                    attempt: 1,
                    ends,
                    at,
                },
            )
        };
        match late {
            Late::Start => {
                self.clock.jump_seconds(seconds);
                self.delivery().round();
                self.tell(leased);
            }
            Late::OldRenewal => {
                self.tell(leased);
                self.clock.advance(Duration::from_secs(10));
                let renewed = beat(self);
                self.clock.jump_seconds(seconds);
                self.delivery().round();
                at = renewed.0;
                self.tell(renewed.1);
            }
            Late::NewRenewal => {
                self.tell(leased);
                self.clock.advance(Duration::from_secs(10));
                self.clock.jump_seconds(seconds);
                let renewed = beat(self);
                at = renewed.0;
                self.tell(renewed.1);
            }
        }
        self.settle();
        let passed = i64::try_from(at.monotonic_ms - started.monotonic_ms).expect("small");
        let until = started.wall.0 + (passed + LEASE_MS) * 1_000 + seconds * 1_000_000;
        assert_eq!(self.lease_ends(id), Some(Timestamp(until)), "{what}");
        self.clock
            .advance(Duration::from_millis(LEASE_MS as u64 - 1));
        self.settle();
        assert_eq!(
            self.lease_ends(id),
            Some(Timestamp(until)),
            "{what}: too soon"
        );
        self.clock.advance(Duration::from_millis(1));
        self.settle();
        assert_eq!(self.lease_ends(id), None, "{what}: too late");
        let (task, ..) = self
            .store
            .read_blocking(move |tx| task::get(tx, Timestamp(until), id))
            .expect("a task");
        assert_eq!(
            (task.state, task.crashes),
            (TaskState::Available, 1),
            "{what}"
        );
        self.store
            .write(task::sql::clear)
            .blocking()
            .expect("an empty table");
        *self = Self::new(&self.store.clone());
    }
}

/// The messages of leases and the setting of the clock come in any order.
#[test]
fn a_message_from_before_a_jump_of_the_clock_neither_ends_a_lease_nor_prolongs_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let mut world = World::new(&store);
    for late in [Late::Start, Late::OldRenewal, Late::NewRenewal] {
        for seconds in [3_600, -3_600, 0] {
            world.assert_a_lease_lasts(late, seconds);
        }
    }
    store.close();
}
