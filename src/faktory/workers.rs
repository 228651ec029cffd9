//! The workers that are known: who they say they are, whether they are alive, what they are told.
//!
//! Invariants: they are kept in memory alone, and only so many; a worker's state only goes forward
//! (running, quiet, terminate), and outlives its connections for a while, so that a worker that was
//! told to be quiet can't forget it by connecting anew.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::word_type;

/// Under what a client without a name of its own runs tasks, ...
pub(super) const NAMELESS: &str = "faktory";
/// ... and what stands before the name of one that has one.
pub(super) const NAMED: &str = "faktory:";

word_type! {
    /// What a worker is to do.
    WorkerState {
        /// Fetch and run jobs.
        Running = "running",
        /// Fetch nothing more, finish what it has.
        Quiet = "quiet",
        /// Finish or give up what it has, and end.
        Terminate = "terminate",
    }
}

/// A worker process.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its own name for itself.
    pub wid: String,
    /// Its machine.
    pub hostname: String,
    /// Its process there.
    pub pid: i64,
    /// Words that it gave itself.
    pub labels: Vec<String>,
    /// Where it connected from.
    pub address: String,
    /// What it is to do.
    pub state: WorkerState,
    /// Its open connections.
    pub connections: u32,
    /// Jobs that it fetched and did not report on.
    pub jobs: u32,
    /// Memory that it says it uses.
    pub rss_kb: Option<i64>,
    /// When it came.
    pub started_at: Timestamp,
    /// When it was heard of last.
    pub last_beat_at: Timestamp,
}

/// What a worker says when it connects.
pub(super) struct Introduction {
    pub(super) wid: String,
    pub(super) hostname: String,
    pub(super) pid: i64,
    pub(super) labels: Vec<String>,
    pub(super) address: String,
}

/// All that are known.
pub(super) struct Workers {
    known: Mutex<HashMap<String, Worker>>,
    most: usize,
    kept_seconds: i64,
}

impl Workers {
    pub(super) fn new(most: usize, kept_seconds: u64) -> Self {
        Self {
            known: Mutex::new(HashMap::new()),
            most,
            kept_seconds: i64::try_from(kept_seconds).unwrap_or(i64::MAX),
        }
    }

    /// Notes a connection of a worker; `false` when there are too many workers.
    pub(super) fn join(&self, now: Timestamp, who: Introduction) -> bool {
        let mut known = self.known.lock();
        if !known.contains_key(&who.wid) {
            if known.len() >= self.most {
                self.forget(now, &mut known);
            }
            if known.len() >= self.most {
                return false;
            }
        }
        let worker = known.entry(who.wid.clone()).or_insert_with(|| Worker {
            wid: who.wid,
            hostname: who.hostname,
            pid: who.pid,
            labels: who.labels,
            address: who.address,
            state: WorkerState::Running,
            connections: 0,
            jobs: 0,
            rss_kb: None,
            started_at: now,
            last_beat_at: now,
        });
        worker.connections += 1;
        worker.last_beat_at = now;
        true
    }

    /// Notes that a connection is over.
    pub(super) fn leave(&self, now: Timestamp, wid: &str) {
        if let Some(worker) = self.known.lock().get_mut(wid) {
            worker.connections = worker.connections.saturating_sub(1);
            worker.last_beat_at = now;
        }
    }

    fn forget(&self, now: Timestamp, known: &mut HashMap<String, Worker>) {
        let until = now.plus_seconds(-self.kept_seconds);
        known.retain(|_, worker| worker.connections > 0 || worker.last_beat_at > until);
    }

    /// Notes a sign of life, with what the worker says of itself; answers what it is to do, or
    /// `None` if it is not known.
    pub(super) fn beat(
        &self,
        now: Timestamp,
        wid: &str,
        state: Option<WorkerState>,
        rss_kb: Option<i64>,
    ) -> Option<WorkerState> {
        let mut known = self.known.lock();
        let worker = known.get_mut(wid)?;
        worker.last_beat_at = now;
        worker.rss_kb = rss_kb.or(worker.rss_kb);
        if let Some(state) = state {
            forward(worker, state);
        }
        Some(worker.state)
    }

    /// Tells a worker what to do, with its next sign of life; answers it as it is now.
    pub(super) fn tell(&self, wid: &str, state: WorkerState) -> Option<Worker> {
        let mut known = self.known.lock();
        let worker = known.get_mut(wid)?;
        forward(worker, state);
        Some(worker.clone())
    }

    /// Whether who runs tasks under this name is a worker that has hung up, or that this process never
    /// saw. Who gave no name can't be told from others.
    pub(super) fn is_away(&self, name: &str) -> bool {
        let Some(wid) = name.strip_prefix(NAMED) else {
            return false;
        };
        let known = self.known.lock();
        known.get(wid).is_none_or(|worker| worker.connections == 0)
    }

    /// What a worker is to do.
    pub(super) fn state(&self, wid: &str) -> WorkerState {
        let known = self.known.lock();
        known
            .get(wid)
            .map_or(WorkerState::Running, |worker| worker.state)
    }

    /// Notes that a worker has one more job, or one less.
    pub(super) fn count_job(&self, wid: &str, is_more: bool) {
        if let Some(worker) = self.known.lock().get_mut(wid) {
            worker.jobs = if is_more {
                worker.jobs.saturating_add(1)
            } else {
                worker.jobs.saturating_sub(1)
            };
        }
    }

    /// Whether a worker has jobs that it did not report on.
    pub(super) fn has_jobs(&self, wid: &str) -> bool {
        let known = self.known.lock();
        known.get(wid).is_some_and(|worker| worker.jobs > 0)
    }

    /// Those that are there, by their names for themselves.
    pub(super) fn list(&self, now: Timestamp) -> Vec<Worker> {
        let mut known = self.known.lock();
        self.forget(now, &mut known);
        let mut all: Vec<Worker> = known.values().cloned().collect();
        all.sort_by(|a, b| a.wid.cmp(&b.wid));
        all
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.known.lock().len()
    }
}

fn forward(worker: &mut Worker, state: WorkerState) {
    worker.state = match (worker.state, state) {
        (WorkerState::Terminate, _) | (_, WorkerState::Terminate) => WorkerState::Terminate,
        (WorkerState::Quiet, _) | (_, WorkerState::Quiet) => WorkerState::Quiet,
        (WorkerState::Running, WorkerState::Running) => WorkerState::Running,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(wid: &str) -> Introduction {
        Introduction {
            wid: wid.to_owned(),
            hostname: "h".to_owned(),
            pid: 1,
            labels: Vec::new(),
            address: "127.0.0.1:1".to_owned(),
        }
    }

    #[test]
    fn workers_are_bounded_and_forgotten_only_when_gone_for_a_while() {
        let now = Timestamp(1_000_000_000);
        let workers = Workers::new(2, 60);
        assert!(workers.join(now, who("a")) && workers.join(now, who("b")));
        assert!(workers.join(now, who("a")), "one more connection");
        assert!(!workers.join(now, who("c")));
        workers.leave(now, "a");
        workers.leave(now, "a");
        assert!(!workers.join(now, who("c")), "it may come back");
        let later = now.plus_seconds(61);
        assert!(workers.join(later, who("c")));
        let names: Vec<String> = workers.list(later).into_iter().map(|w| w.wid).collect();
        assert_eq!(names, ["b", "c"]);
    }

    #[test]
    fn a_state_only_goes_forward() {
        let now = Timestamp(0);
        let workers = Workers::new(2, 60);
        workers.join(now, who("a"));
        let beat = |state| workers.beat(now, "a", state, None);
        assert_eq!(beat(None), Some(WorkerState::Running));
        assert!(workers.tell("a", WorkerState::Terminate).is_some());
        assert_eq!(beat(Some(WorkerState::Quiet)), Some(WorkerState::Terminate));
        assert!(workers.tell("b", WorkerState::Quiet).is_none());
        assert_eq!(workers.beat(now, "b", None, None), None);
    }
}
