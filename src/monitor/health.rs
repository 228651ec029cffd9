//! Health: is the process alive, should it get traffic, and what is wrong.
//!
//! Invariants: checks read what their owner already knows (an atomic, a gauge) and never wait, so
//! that a probe answers while everything else is stuck; not ready before start has finished, nor
//! once draining has begun. A shop that can't write is read on: it fails (`/health`), and is ready for
//! reads. A balancer that sends traffic elsewhere for it asks for the readiness to write (`/readyz?writes`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::RwLock;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Opening, migrating, warming up.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what is in flight.
    Draining,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// All is well.
    Pass,
    /// It works, but the shop's operator should look.
    Warn(String),
    /// It does not work; no traffic should come here that needs it.
    Fail(String),
}

/// What needs that a check passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// All traffic.
    Everything,
    /// Whatever writes: orders, logins, changes.
    Writing,
}

/// A named check.
pub type Check = Box<dyn Fn() -> CheckOutcome + Send + Sync>;

/// The process's health; cheap to clone.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    state: AtomicU8,
    checks: RwLock<Vec<(&'static str, Need, Check)>>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health")
            .field("state", &self.state())
            .finish()
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Starting, with no checks.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            state: AtomicU8::new(State::Starting as u8),
            checks: RwLock::new(Vec::new()),
        }))
    }

    /// Adds a check of what `need` needs; it must not wait for anything.
    pub fn register(
        &self,
        name: &'static str,
        need: Need,
        check: impl Fn() -> CheckOutcome + Send + Sync + 'static,
    ) {
        self.0.checks.write().push((name, need, Box::new(check)));
    }

    /// Moves to `state`.
    pub fn set(&self, state: State) {
        self.0.state.store(state as u8, Ordering::Release);
    }

    /// Where the process is in its life.
    pub fn state(&self) -> State {
        match self.0.state.load(Ordering::Acquire) {
            ready if ready == State::Ready as u8 => State::Ready,
            draining if draining == State::Draining as u8 => State::Draining,
            _ => State::Starting,
        }
    }

    /// Runs all checks.
    pub fn report(&self) -> Report {
        let state = self.state();
        let checks = self
            .0
            .checks
            .read()
            .iter()
            .map(|(name, need, check)| (*name, *need, check()))
            .collect();
        Report { state, checks }
    }
}

/// The checks' results; prints as `application/health+json`.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where the process is in its life.
    pub state: State,
    /// Each check's name, what needs it, and its result.
    pub checks: Vec<(&'static str, Need, CheckOutcome)>,
}

impl Report {
    /// Whether traffic should come here that at least reads.
    pub fn is_ready(&self) -> bool {
        let fails = |(_, need, outcome): &(_, Need, CheckOutcome)| {
            *need == Need::Everything && matches!(outcome, CheckOutcome::Fail(_))
        };
        self.state == State::Ready && !self.checks.iter().any(fails)
    }

    /// Whether traffic should come here that writes as well.
    pub fn is_ready_to_write(&self) -> bool {
        self.state == State::Ready && !self.fails()
    }

    /// Whether any check fails.
    pub fn fails(&self) -> bool {
        self.checks
            .iter()
            .any(|(_, _, outcome)| matches!(outcome, CheckOutcome::Fail(_)))
    }

    fn status(&self) -> &'static str {
        if self.fails() {
            return "fail";
        }
        let warns = self
            .checks
            .iter()
            .any(|(_, _, outcome)| matches!(outcome, CheckOutcome::Warn(_)));
        match self.state {
            State::Ready if !warns => "pass",
            State::Ready | State::Starting | State::Draining => "warn",
        }
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("status", self.status())?;
        map.serialize_entry("version", env!("CARGO_PKG_VERSION"))?;
        map.serialize_entry("serviceId", "onrush")?;
        map.serialize_entry(
            "output",
            match self.state {
                State::Starting => "starting",
                State::Ready => "ready",
                State::Draining => "draining",
            },
        )?;
        map.serialize_entry("checks", &Checks(&self.checks))?;
        map.end()
    }
}

struct Checks<'a>(&'a [(&'static str, Need, CheckOutcome)]);

impl Serialize for Checks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The draft keeps a list under each name.
        serializer.collect_map(
            self.0
                .iter()
                .map(|(name, _, outcome)| (name, [CheckResult(outcome)])),
        )
    }
}

struct CheckResult<'a>(&'a CheckOutcome);

impl Serialize for CheckResult<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (status, output) = match self.0 {
            CheckOutcome::Pass => ("pass", None),
            CheckOutcome::Warn(output) => ("warn", Some(output)),
            CheckOutcome::Fail(output) => ("fail", Some(output)),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("status", status)?;
        if let Some(output) = output {
            map.serialize_entry("output", output)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_started_not_draining_and_no_failing_check() {
        let health = Health::new();
        assert!(!health.report().is_ready());
        health.set(State::Ready);
        health.register("clock", Need::Everything, || {
            CheckOutcome::Warn("it was set".to_owned())
        });
        assert!(health.report().is_ready() && health.report().is_ready_to_write());
        health.register("disk", Need::Writing, || {
            CheckOutcome::Fail("full".to_owned())
        });
        let report = health.report();
        assert!(report.is_ready(), "reading goes on");
        assert!(report.fails() && !report.is_ready_to_write());
        health.register("database", Need::Everything, || {
            CheckOutcome::Fail("damaged".to_owned())
        });
        assert!(!health.report().is_ready());
        assert_eq!(
            serde_json::to_value(health.report()).expect("JSON")["checks"],
            serde_json::json!({
                "clock": [{"status": "warn", "output": "it was set"}],
                "disk": [{"status": "fail", "output": "full"}],
                "database": [{"status": "fail", "output": "damaged"}],
            })
        );
        health.set(State::Draining);
        assert!(!health.report().is_ready());
    }
}
