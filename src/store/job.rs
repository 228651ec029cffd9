//! Work that is handed to a thread which writes, and how its outcome reaches the caller.
//!
//! Invariants: a job runs once in each transaction that it is part of, and is settled once, after the commit or
//! after it is known that there will be none; only then its caller hears of it; callers who share a commit
//! are woken a few at a time, so that other requests need not wait behind all of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::tx::unless_it_panics;
use super::{StoreError, Tx};
use crate::clock::Stopwatch;
use crate::monitor::statements::Called;

/// Callers that are awake at once with an answer, for each processor. Woken all together, those of a
/// large batch fill the async threads' queues, and a request that has nothing to do with them waits
/// behind all of their answers: measured, 20 to 30 ms at the 99th percentile in place of 6 to 10.
const AWAKE_PER_CPU: usize = 2;
/// A woken caller that has not gone on for this long is not waited for: it may be part of something
/// that waits for another write.
const WAKING_WAIT: Duration = Duration::from_millis(20);

/// Work for the writer thread.
pub(super) trait Job: Send {
    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    /// In whose name it runs.
    fn take_caller(&mut self) -> Option<Called>;
    /// Runs inside a savepoint; `true` keeps what was written.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// What is to run right behind it, in the same transaction.
    fn rest(&mut self) -> Option<Box<dyn Job>> {
        None
    }
    /// Callers who wait for it, for the figures.
    fn size(&self) -> usize {
        1
    }
    /// Learns whether the commit that holds the work has succeeded, and calls what comes after.
    fn settle(&mut self, commit: Result<(), StoreError>);
    /// Hands over what its callers are to be told, in their order.
    fn letters(self: Box<Self>, to: &mut VecDeque<Box<dyn Letter>>);
}

/// An answer on its way to one caller.
pub(super) trait Letter: Send {
    /// Whether nobody waits for it any more.
    fn is_abandoned(&self) -> bool;
    /// Tells the caller, who gives the turn back on waking.
    fn deliver(self: Box<Self>, turn: Option<Turn>);
}

/// What is written, as often as it takes.
pub(super) type Work<T, E> = Box<dyn Fn(&mut Tx<'_>) -> Result<T, E> + Send>;
/// What follows the outcome, on the thread that writes.
pub(super) type After<T, E> = Box<dyn FnOnce(&Result<T, E>) + Send>;

/// A closure, its result, its caller, and what is to be done between the commit and the answer.
pub(super) struct Call<T, E> {
    pub(super) work: Work<T, E>,
    pub(super) after: Option<After<T, E>>,
    pub(super) result: Option<Result<T, E>>,
    pub(super) caller: Option<Called>,
    /// `None` where nobody waits from the beginning.
    pub(super) reply: Option<oneshot::Sender<Answer<T, E>>>,
}

/// What a caller hears.
pub(super) struct Answer<T, E> {
    result: Result<T, E>,
    _turn: Option<Turn>,
}

impl<T, E> Answer<T, E> {
    pub(super) fn new(result: Result<T, E>, turn: Option<Turn>) -> Self {
        Self {
            result,
            _turn: turn,
        }
    }

    /// What the work came to. The next caller is woken.
    pub(super) fn result(self) -> Result<T, E> {
        self.result
    }
}

impl<T, E> Job for Call<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    fn take_caller(&mut self) -> Option<Called> {
        self.caller.take()
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let result = unless_it_panics(|| (self.work)(tx));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn settle(&mut self, commit: Result<(), StoreError>) {
        let result = match (commit, self.result.take()) {
            // Even a refusal may rest on what others wrote in the same batch: it holds only if
            // that does.
            (Err(error), _) => Err(E::from(error)),
            (Ok(()), Some(result)) => result,
            (Ok(()), None) => Err(E::from(StoreError::Stopped)),
        };
        if let Some(after) = self.after.take() {
            after(&result);
        }
        self.result = Some(result);
    }

    fn letters(self: Box<Self>, to: &mut VecDeque<Box<dyn Letter>>) {
        to.push_back(self);
    }
}

impl<T: Send, E: Send> Letter for Call<T, E> {
    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    fn deliver(self: Box<Self>, turn: Option<Turn>) {
        let Some(result) = self.result else {
            return; // never settled, and so never to be answered
        };
        if let Some(reply) = self.reply {
            // A caller that went away does not want to know.
            drop(reply.send(Answer::new(result, turn)));
        }
    }
}

/// Answers whose callers are to be woken, a few at once.
pub(super) struct Outbox {
    letters: Mutex<Letters>,
    awake_max: usize,
}

struct Letters {
    waiting: VecDeque<Box<dyn Letter>>,
    awake: usize,
    last_waking: Stopwatch,
}

impl Outbox {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            letters: Mutex::new(Letters {
                waiting: VecDeque::new(),
                awake: 0,
                last_waking: Stopwatch::start(),
            }),
            awake_max: processors * AWAKE_PER_CPU,
        }
    }

    pub(super) fn post(self: &Arc<Self>, jobs: impl Iterator<Item = Box<dyn Job>>) {
        {
            let mut letters = self.letters.lock();
            jobs.for_each(|job| job.letters(&mut letters.waiting));
        }
        self.wake();
    }

    /// When to call [`Outbox::wake`] again; `None` when nobody waits.
    pub(super) fn patience(&self) -> Option<Duration> {
        (!self.letters.lock().waiting.is_empty()).then_some(WAKING_WAIT)
    }

    /// Wakes who may be woken, whatever those do who were woken long ago.
    pub(super) fn wake(self: &Arc<Self>) {
        {
            let mut letters = self.letters.lock();
            if letters.last_waking.elapsed() >= WAKING_WAIT {
                letters.awake = 0;
            }
        }
        self.pass_on();
    }

    /// Wakes callers while there are turns.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let mut letters = self.letters.lock();
            if letters.awake >= self.awake_max {
                return;
            }
            let Some(letter) = letters.waiting.pop_front() else {
                return;
            };
            if letter.is_abandoned() {
                continue;
            }
            letters.awake += 1;
            letters.last_waking = Stopwatch::start();
            drop(letters);
            letter.deliver(Some(Turn(Arc::clone(self))));
        }
    }
}

/// One of the few turns in which a woken caller goes on. Dropped, wherever that happens, it is the
/// next caller's.
pub(super) struct Turn(Arc<Outbox>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut letters = self.0.letters.lock();
        letters.awake = letters.awake.saturating_sub(1);
        drop(letters);
        self.0.pass_on();
    }
}

/// Answers a job that was not begun, at once.
pub(super) fn refuse(mut job: Box<dyn Job>, error: StoreError) {
    job.settle(Err(error));
    let mut letters = VecDeque::new();
    job.letters(&mut letters);
    for letter in letters {
        letter.deliver(None);
    }
}
