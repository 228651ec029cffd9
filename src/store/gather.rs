//! Work for the same hot row, done as one set: whoever comes while the writer is busy joins.
//!
//! Invariants: items of one key are handed over in the order of their arrival, each of them once; what is
//! decided of one is told to its caller alone, and only after the commit; if the set can't be written as one,
//! each item is written by itself, so that none fails for another's sake; a bounded number waits.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::job::{Answer, Job, Letter, Turn};
use super::tx::unless_it_panics;
use super::{Store, StoreError, Tx};
use crate::monitor::statements::{Called, caller};

/// Items that are handed over at once: what is written of them fits in one statement each.
pub const GATHERED_MAX: usize = 256;

/// Writes items of one key, in their order, and answers each. `Err` means that all of it is undone; then
/// they are written one by one.
type Many<K, I, T, E> =
    Box<dyn Fn(&mut Tx<'_>, &K, &[I]) -> Result<Vec<Result<T, E>>, E> + Send + Sync>;

/// What follows an item's outcome on the writer's thread, once that is certain.
type After<K, I, T, E> = Box<dyn Fn(&K, I, &Result<T, E>) + Send + Sync>;

/// Gathers items by their key; clones share it.
pub struct Gather<K, I, T, E>(Arc<Gathering<K, I, T, E>>);

impl<K, I, T, E> Clone for Gather<K, I, T, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Gathering<K, I, T, E> {
    waiting: Mutex<HashMap<K, Items<I, T, E>>>,
    /// Items in it, of all keys.
    count: AtomicUsize,
    count_max: usize,
    many: Many<K, I, T, E>,
    after: After<K, I, T, E>,
}

/// Items that wait, the first to come in front.
type Items<I, T, E> = VecDeque<Item<I, T, E>>;

/// An item, and who waits for its outcome.
struct Item<I, T, E> {
    item: I,
    caller: Option<Called>,
    reply: oneshot::Sender<Answer<T, E>>,
}

impl Store {
    /// Gathers items that wait for the same key. `many` writes those of one key, in the order of their
    /// arrival, and decides each by itself; `after` is called for each once its outcome is certain, as that
    /// of [`Store::write_then`].
    pub fn gather<K, I, T, E>(
        &self,
        many: impl Fn(&mut Tx<'_>, &K, &[I]) -> Result<Vec<Result<T, E>>, E> + Send + Sync + 'static,
        after: impl Fn(&K, I, &Result<T, E>) + Send + Sync + 'static,
    ) -> Gather<K, I, T, E> {
        Gather(Arc::new(Gathering {
            waiting: Mutex::default(),
            count: AtomicUsize::new(0),
            count_max: self.0.write_queue_max,
            many: Box::new(many),
            after: Box::new(after),
        }))
    }
}

impl<K, I, T, E> Gather<K, I, T, E>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    I: Send + Sync + 'static,
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    /// Writes an item together with those that wait for the same key. `Ok` is on disk, as with
    /// [`Store::write`].
    pub async fn write(&self, store: &Store, key: K, item: I) -> Result<T, E> {
        let all = &self.0;
        if all.count.fetch_add(1, Ordering::Relaxed) >= all.count_max {
            all.count.fetch_sub(1, Ordering::Relaxed);
            return Err(E::from(StoreError::Overloaded));
        }
        let (reply, answer) = oneshot::channel();
        let is_first = {
            let mut waiting = all.waiting.lock();
            let items = waiting.entry(key.clone()).or_default();
            items.push_back(Item {
                item,
                caller: caller(),
                reply,
            });
            items.len() == 1
        };
        // The others' job takes this one along.
        if is_first {
            store.0.writer.send(false, Box::new(Set::new(all, key)));
        }
        match tokio::time::timeout(store.0.write_timeout, answer).await {
            Ok(Ok(answer)) => answer.result(),
            Ok(Err(_)) => Err(E::from(StoreError::Stopped)),
            Err(_) => Err(E::from(StoreError::Timeout)),
        }
    }
}

/// The job that writes what waits for a key when its turn has come.
struct Set<K, I, T, E> {
    all: Arc<Gathering<K, I, T, E>>,
    key: K,
    /// Taken out of what waits, in order.
    items: Vec<I>,
    replies: Vec<oneshot::Sender<Answer<T, E>>>,
    outcomes: Vec<Result<T, E>>,
    caller: Option<Called>,
    has_run: bool,
    /// Whether more waited than were taken.
    has_left: bool,
}

impl<K: Clone + Eq + Hash, I, T, E> Set<K, I, T, E> {
    fn new(all: &Arc<Gathering<K, I, T, E>>, key: K) -> Self {
        Self {
            all: Arc::clone(all),
            key,
            items: Vec::new(),
            replies: Vec::new(),
            outcomes: Vec::new(),
            caller: None,
            has_run: false,
            has_left: false,
        }
    }

    /// Takes out what waits, at most so much. What is left has nobody else to write it.
    fn take(&mut self, most: usize) {
        let mut waiting = self.all.waiting.lock();
        let Some(items) = waiting.get_mut(&self.key) else {
            return;
        };
        let mut taken = 0;
        while self.items.len() < most
            && let Some(Item {
                item,
                caller,
                reply,
            }) = items.pop_front()
        {
            taken += 1;
            // Nobody waits for it any more, and it was not begun.
            if reply.is_closed() {
                continue;
            }
            if self.caller.is_none() {
                self.caller = caller;
            }
            self.items.push(item);
            self.replies.push(reply);
        }
        self.has_left = !items.is_empty();
        if !self.has_left {
            waiting.remove(&self.key);
        }
        drop(waiting);
        self.all.count.fetch_sub(taken, Ordering::Relaxed);
    }
}

impl<K, I, T, E> Set<K, I, T, E>
where
    E: From<StoreError>,
{
    /// Outcomes of all items.
    fn write(&self, tx: &mut Tx<'_>) -> Result<Vec<Result<T, E>>, StoreError> {
        let many = |tx: &mut Tx<'_>, items: &[I]| {
            let outcomes = (self.all.many)(tx, &self.key, items)?;
            match outcomes.len() == items.len() {
                true => Ok(outcomes),
                false => Err(E::from(StoreError::Bug(format!(
                    "{} outcomes of {} items",
                    outcomes.len(),
                    items.len()
                )))),
            }
        };
        if let [_] = self.items.as_slice() {
            // What it wrote before it was refused, the job's own savepoint undoes.
            return Ok(match unless_it_panics(|| many(tx, &self.items)) {
                Ok(outcomes) => outcomes,
                Err(error) => vec![Err(error)],
            });
        }
        if let Ok(outcomes) = tx.part(|tx| many(tx, &self.items))? {
            return Ok(outcomes);
        }
        let mut outcomes = Vec::with_capacity(self.items.len());
        for item in &self.items {
            let alone = tx.part(|tx| many(tx, std::slice::from_ref(item)))?;
            outcomes.push(alone.and_then(|mut one| one.swap_remove(0)));
        }
        Ok(outcomes)
    }
}

impl<K, I, T, E> Job for Set<K, I, T, E>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    I: Send + Sync + 'static,
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    fn is_abandoned(&self) -> bool {
        // Others may have come.
        false
    }

    fn take_caller(&mut self) -> Option<Called> {
        self.take(GATHERED_MAX);
        self.caller.take()
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        self.has_run = true;
        if self.items.is_empty() {
            return false;
        }
        match self.write(tx) {
            Ok(outcomes) => {
                let keeps = outcomes.iter().any(Result::is_ok);
                self.outcomes = outcomes;
                keeps
            }
            // The transaction is lost, and so is its commit, which says why.
            Err(_) => false,
        }
    }

    fn rest(&mut self) -> Option<Box<dyn Job>> {
        self.has_left
            .then(|| Box::new(Set::new(&self.all, self.key.clone())) as Box<dyn Job>)
    }

    fn size(&self) -> usize {
        self.items.len().max(self.outcomes.len())
    }

    fn settle(&mut self, commit: Result<(), StoreError>) {
        if !self.has_run {
            self.take(usize::MAX);
        }
        if let Err(error) = commit {
            self.outcomes = (0..self.items.len())
                .map(|_| Err(E::from(error.clone())))
                .collect();
        }
        for (item, outcome) in self.items.drain(..).zip(&self.outcomes) {
            (self.all.after)(&self.key, item, outcome);
        }
    }

    fn letters(self: Box<Self>, to: &mut VecDeque<Box<dyn Letter>>) {
        for (reply, result) in self.replies.into_iter().zip(self.outcomes) {
            to.push_back(Box::new(One { reply, result }));
        }
    }
}

/// The outcome of one item.
struct One<T, E> {
    reply: oneshot::Sender<Answer<T, E>>,
    result: Result<T, E>,
}

impl<T: Send, E: Send> Letter for One<T, E> {
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn deliver(self: Box<Self>, turn: Option<Turn>) {
        // A caller that went away does not want to know.
        drop(self.reply.send(Answer::new(self.result, turn)));
    }
}
