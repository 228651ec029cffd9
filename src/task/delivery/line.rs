//! The line: those who wait for tasks, in the order in which they came.
//!
//! It stands between two threads. The relay lets waiters in and serves them with what the index has; a
//! transaction that enqueues a task may take the first one out, to hand the task over with the same commit.
//! Invariants: each waiter is taken out once, by one of them; a task is handed over only while the relay
//! has taken in all that was committed and told before, and found nothing more to give to those in line, so
//! the task overtakes nothing that was there before its transaction began; a lock is held only for as long
//! as it takes to move a waiter, and never while the index or the disk works.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::Timestamp;

/// How much of the news the relay has taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Commits that made new rows.
    pub(super) commits: u64,
    /// Messages that bring tasks back, or change how a queue is served.
    pub(super) told: u64,
}

/// See the module.
pub(super) struct Line<T> {
    waiting: Mutex<Waiting<T>>,
    commits: AtomicU64,
    told: AtomicU64,
}

struct Waiting<T> {
    waiters: HashMap<u64, T>,
    /// Numbers of those who wait for a queue. Some may be gone, or served by another queue.
    lines: HashMap<String, VecDeque<u64>>,
    next: u64,
    /// What the relay knew when it last had nothing more to do; none while it may have.
    open: Option<Open>,
    /// Queues that are paused, or let through only so much.
    limited: HashSet<String>,
}

struct Open {
    news: News,
    /// When the next task that waits for its time is due.
    next_due: Option<Timestamp>,
}

impl<T> Waiting<T> {
    /// The number of the first who still waits for the queue; those who do no longer are dropped.
    fn first(&mut self, queue: &str, is_gone: impl Fn(&T) -> bool) -> Option<u64> {
        let line = self.lines.get_mut(queue)?;
        while let Some(number) = line.front() {
            match self.waiters.get(number) {
                Some(waiter) if !is_gone(waiter) => return Some(*number),
                Some(_) => {
                    self.waiters.remove(number);
                }
                None => {}
            }
            line.pop_front();
        }
        self.lines.remove(queue);
        None
    }
}

impl<T> Line<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                waiters: HashMap::new(),
                lines: HashMap::new(),
                next: 0,
                open: None,
                limited: HashSet::new(),
            }),
            commits: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }
    }

    /// New rows were committed, and the relay has been told to look for them.
    pub(super) fn committed(&self) {
        self.commits.fetch_add(1, Ordering::AcqRel);
    }

    /// A message that the relay counts as news is about to be sent.
    pub(super) fn tells(&self) {
        self.told.fetch_add(1, Ordering::AcqRel);
    }

    /// That message was not sent.
    pub(super) fn told_nothing(&self) {
        self.told.fetch_sub(1, Ordering::AcqRel);
    }

    /// Commits that made new rows, so far.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    /// From now on tasks may be handed over, as long as there are no more news than these and nothing
    /// becomes due.
    pub(super) fn open(&self, news: News, next_due: Option<Timestamp>) {
        self.waiting.lock().open = Some(Open { news, next_due });
    }

    /// From now on nothing is handed over: the relay has something to do.
    pub(super) fn close(&self) {
        self.waiting.lock().open = None;
    }

    /// Nobody waits any more.
    pub(super) fn clear(&self) {
        let mut waiting = self.waiting.lock();
        waiting.open = None;
        waiting.lines.clear();
        let gone = std::mem::take(&mut waiting.waiters);
        drop(waiting);
        drop(gone); // which wakes them
    }

    /// How a queue is served, as far as it concerns those in line.
    pub(super) fn set_limited(&self, queue: &str, is_limited: bool) {
        let limited = &mut self.waiting.lock().limited;
        if is_limited {
            limited.insert(queue.to_owned());
        } else {
            limited.remove(queue);
        }
    }

    /// Puts a waiter behind all others of these queues.
    pub(super) fn join(&self, queues: &[String], waiter: T) {
        let mut waiting = self.waiting.lock();
        let waiting = &mut *waiting;
        let number = waiting.next;
        waiting.next += 1;
        for queue in queues {
            let line = waiting.lines.entry(queue.clone()).or_default();
            line.push_back(number);
            if line.len() > 2 * waiting.waiters.len() + 64 {
                line.retain(|number| waiting.waiters.contains_key(number));
                line.push_back(number);
            }
        }
        waiting.waiters.insert(number, waiter);
    }

    /// Queues for which there may be a waiter.
    pub(super) fn queues(&self) -> Vec<String> {
        self.waiting.lock().lines.keys().cloned().collect()
    }

    /// What `look` sees of the first who waits for the queue.
    pub(super) fn look<R>(
        &self,
        queue: &str,
        is_gone: impl Fn(&T) -> bool,
        look: impl FnOnce(&T) -> R,
    ) -> Option<R> {
        let mut waiting = self.waiting.lock();
        let number = waiting.first(queue, is_gone)?;
        waiting.waiters.get(&number).map(look)
    }

    /// Takes out the first who waits for the queue.
    pub(super) fn take(&self, queue: &str, is_gone: impl Fn(&T) -> bool) -> Option<T> {
        let mut waiting = self.waiting.lock();
        let number = waiting.first(queue, is_gone)?;
        waiting.waiters.remove(&number)
    }

    /// Takes out the first who waits for the queue, if a task that is enqueued now may be handed over to
    /// that waiter: nothing else is to be given out before it, the queue lets everything through, and the
    /// waiter `may` take it.
    pub(super) fn reserve(
        &self,
        queue: &str,
        now: Timestamp,
        is_gone: impl Fn(&T) -> bool,
        may: impl FnOnce(&T) -> bool,
    ) -> Option<T> {
        let mut waiting = self.waiting.lock();
        let open = waiting.open.as_ref()?;
        let news = News {
            commits: self.commits(),
            told: self.told.load(Ordering::Acquire),
        };
        if open.news != news
            || open.next_due.is_some_and(|due| due <= now)
            || waiting.limited.contains(queue)
        {
            return None;
        }
        let number = waiting.first(queue, is_gone)?;
        if !waiting.waiters.get(&number).is_some_and(may) {
            return None;
        }
        waiting.waiters.remove(&number)
    }

    /// Drops those who went away.
    pub(super) fn tidy(&self, is_gone: impl Fn(&T) -> bool) {
        self.waiting
            .lock()
            .waiters
            .retain(|_, waiter| !is_gone(waiter));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

    fn reserve(line: &Line<u32>, queue: &str) -> Option<u32> {
        line.reserve(queue, NOW, |waiter| *waiter == 0, |waiter| *waiter < 100)
    }

    fn queues(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_first_of_a_queue_is_taken_out_once_and_those_who_went_are_passed_over() {
        let line = Line::new();
        line.open(News::default(), None);
        line.join(&queues(&["a", "b"]), 1);
        line.join(&queues(&["a"]), 0);
        line.join(&queues(&["b"]), 2);
        line.join(&queues(&["a"]), 100);
        assert_eq!(reserve(&line, "b"), Some(1));
        assert_eq!(
            reserve(&line, "a"),
            None,
            "the one of another kind is next, and keeps its place"
        );
        assert_eq!(
            line.look("a", |waiter| *waiter == 0, |waiter| *waiter),
            Some(100)
        );
        assert_eq!(line.take("a", |waiter| *waiter == 0), Some(100));
        assert_eq!(reserve(&line, "c"), None);
        assert_eq!(reserve(&line, "b"), Some(2));
        assert_eq!(reserve(&line, "b"), None);
        line.join(&queues(&["b"]), 3);
        line.clear();
        line.open(News::default(), None);
        assert_eq!(reserve(&line, "b"), None);
    }

    #[test]
    fn nothing_is_handed_over_while_the_relay_may_have_something_to_give() {
        let line = Line::new();
        line.join(&queues(&["a"]), 1);
        assert_eq!(reserve(&line, "a"), None, "it has not looked yet");
        let mut news = News::default();
        line.open(news, None);
        line.committed();
        assert_eq!(reserve(&line, "a"), None, "there are new rows");
        news.commits = line.commits();
        line.open(news, None);
        line.tells();
        assert_eq!(reserve(&line, "a"), None, "there is a message");
        line.told_nothing();
        line.open(news, Some(NOW));
        assert_eq!(reserve(&line, "a"), None, "another is due");
        line.open(news, Some(NOW.plus_ms(1)));
        line.set_limited("a", true);
        assert_eq!(reserve(&line, "a"), None, "the queue is paused");
        line.set_limited("a", false);
        line.close();
        assert_eq!(reserve(&line, "a"), None, "the relay is at work");
        line.open(news, None);
        assert_eq!(reserve(&line, "a"), Some(1));
    }
}
