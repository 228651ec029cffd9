//! What each named statement costs: calls, rows, times, and of slow ones which caller ran it and how.
//!
//! Invariants: a call is counted without a lock; what is kept of slow calls is bounded, by statement
//! and in all; a parameter's value is kept only where the settings allow it. A name that comes
//! when there are too many is counted under [`OTHERS`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::clock::Timestamp;
use crate::config::{Database, ms};

/// Statements that are told apart.
const STATEMENTS_MAX: usize = 1_024;
/// Where further ones are counted.
const OTHERS: &str = "others";
/// Callers of slow calls remembered for each statement.
const CALLERS_MAX: usize = 8;
/// Steps of the histogram between a time and its double.
const STEPS: u64 = 4;
/// From 1 µs to over an hour.
const BUCKETS: usize = 32 * STEPS as usize;
/// A plan is asked for again after so many slow calls: it changes with the data, but not each time.
const PLAN_EVERY: u64 = 16;

/// What has statements run: a request or a task.
pub trait StatementCaller: Send + Sync {
    /// Which kind of work it is, from a bounded set: an endpoint, a task's name.
    fn what(&self) -> String;
    /// Which one of its kind: the request's or the task's id.
    fn id(&self) -> String;
    /// The trace that it belongs to (W3C `traceparent`), and so what follows from it.
    fn trace(&self) -> Option<&str>;
}

/// A caller, as it is handed on to the code that runs its statements.
pub type Called = Arc<dyn StatementCaller>;

tokio::task_local! {
    static CALLER: Called;
}

/// Runs `work` in the name of `caller`.
pub async fn called_by<T>(caller: Called, work: impl Future<Output = T>) -> T {
    CALLER.scope(caller, work).await
}

/// The caller in whose name this async task runs.
pub fn caller() -> Option<Called> {
    CALLER.try_with(Arc::clone).ok()
}

/// A call that took long.
#[derive(Clone, Debug)]
pub struct SlowCall {
    /// When it ended.
    pub at: Timestamp,
    /// The statement's name.
    pub statement: Arc<str>,
    /// How long it took.
    pub took: Duration,
    /// Rows that it read or changed.
    pub rows: u64,
    /// What ran it; `None` for the server's own upkeep.
    pub caller: Option<String>,
    /// Id of the request or task.
    pub caller_id: Option<String>,
    /// Values of its parameters, where they may be shown.
    pub params: Option<Vec<String>>,
}

/// Figures of one statement since the process began.
#[derive(Clone, Debug)]
pub struct StatementFigures {
    /// Its name: the feature and what it does there.
    pub name: Arc<str>,
    /// The text, as it was first met.
    pub text: String,
    /// How often it ran.
    pub calls: u64,
    /// Rows read or changed.
    pub rows: u64,
    /// Time of all calls.
    pub total: Duration,
    /// Time that 95 of 100 calls stay within, give or take a fifth.
    pub p95: Duration,
    /// The slowest call.
    pub max: Duration,
    /// Calls slower than the list's threshold.
    pub slow_calls: u64,
    /// How the database runs it, of a slow call.
    pub plan: Vec<String>,
    /// What ran the slow calls, and how many of them.
    pub callers: Vec<(String, u64)>,
}

/// One statement's counters.
pub struct Statement {
    name: Arc<str>,
    text: String,
    calls: AtomicU64,
    rows: AtomicU64,
    nanos: AtomicU64,
    max_nanos: AtomicU64,
    slow_calls: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    slow: Mutex<Slow>,
}

#[derive(Default)]
struct Slow {
    plan: Vec<String>,
    callers: Vec<(String, u64)>,
}

impl Statement {
    fn new(name: Arc<str>, text: &str) -> Self {
        Self {
            name,
            text: text.to_owned(),
            calls: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            max_nanos: AtomicU64::new(0),
            slow_calls: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            slow: Mutex::default(),
        }
    }

    fn figures(&self) -> StatementFigures {
        let nanos = |value: &AtomicU64| Duration::from_nanos(value.load(Ordering::Relaxed));
        let slow = self.slow.lock();
        let max = nanos(&self.max_nanos);
        StatementFigures {
            name: Arc::clone(&self.name),
            text: self.text.clone(),
            calls: self.calls.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            total: nanos(&self.nanos),
            p95: self.quantile(0.95).min(max),
            max,
            slow_calls: self.slow_calls.load(Ordering::Relaxed),
            plan: slow.plan.clone(),
            callers: slow.callers.clone(),
        }
    }

    fn quantile(&self, part: f64) -> Duration {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        let wanted = (counts.iter().sum::<u64>() as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (at, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return upper_end(at);
            }
        }
        Duration::ZERO
    }
}

/// Which bucket a time falls into: four of them between a time and its double.
fn bucket_of(nanos: u64) -> usize {
    let micros = (nanos / 1_000).max(1);
    let exponent = u64::from(micros.ilog2());
    let within = ((micros * STEPS) >> exponent) - STEPS;
    usize::try_from(exponent * STEPS + within)
        .unwrap_or(BUCKETS)
        .min(BUCKETS - 1)
}

/// The time that everything in the bucket stays below.
fn upper_end(bucket: usize) -> Duration {
    let (exponent, within) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    Duration::from_micros(((STEPS + within + 1) << exponent).div_ceil(STEPS))
}

/// All statements of one database.
pub struct Statements {
    /// Tells one apart from another in what threads remember.
    number: usize,
    known: RwLock<HashMap<Arc<str>, Arc<Statement>>>,
    recent: Mutex<VecDeque<SlowCall>>,
    listed: Duration,
    logged: Duration,
    kept: usize,
    shows_params: bool,
}

impl Statements {
    /// With the thresholds of the settings.
    pub fn new(settings: &Database) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            known: RwLock::default(),
            recent: Mutex::default(),
            listed: ms(settings.slow_list_ms),
            logged: ms(settings.slow_log_ms),
            kept: settings.slow_kept,
            shows_params: !settings.hide_parameters,
        }
    }

    /// Its number, which no other has.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Whether the values of parameters may be shown.
    pub fn shows_params(&self) -> bool {
        self.shows_params
    }

    /// The counters of the statement of this name.
    pub fn get(&self, name: &str, text: &str) -> Arc<Statement> {
        if let Some(found) = self.known.read().get(name) {
            return Arc::clone(found);
        }
        let mut known = self.known.write();
        let (name, text) = match known.len() < STATEMENTS_MAX || known.contains_key(name) {
            true => (name, text),
            false => (OTHERS, ""),
        };
        let name: Arc<str> = name.into();
        let new = || Arc::new(Statement::new(Arc::clone(&name), text));
        Arc::clone(known.entry(Arc::clone(&name)).or_insert_with(new))
    }

    /// Counts a call; whether it belongs into the list of slow ones.
    pub fn count(&self, statement: &Statement, took: Duration, rows: u64) -> bool {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        statement.calls.fetch_add(1, Ordering::Relaxed);
        statement.rows.fetch_add(rows, Ordering::Relaxed);
        statement.nanos.fetch_add(nanos, Ordering::Relaxed);
        statement.buckets[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
        if statement.max_nanos.load(Ordering::Relaxed) < nanos {
            statement.max_nanos.fetch_max(nanos, Ordering::Relaxed);
        }
        took >= self.listed
    }

    /// Keeps a slow call. `plan` asks the database how it runs the statement, which is done for
    /// the first and then now and then.
    pub fn keep_slow(
        &self,
        statement: &Statement,
        call: SlowCall,
        plan: impl FnOnce() -> Vec<String>,
    ) {
        let before = statement.slow_calls.fetch_add(1, Ordering::Relaxed);
        let asked = before.is_multiple_of(PLAN_EVERY).then(plan);
        let mut slow = statement.slow.lock();
        if let Some(plan) = asked {
            slow.plan = plan;
        }
        let who = call.caller.as_deref().unwrap_or("upkeep");
        let callers = &mut slow.callers;
        match callers.iter().position(|(name, _)| name == who) {
            Some(at) => callers[at].1 += 1,
            None if callers.len() < CALLERS_MAX => callers.push((who.to_owned(), 1)),
            None => {} // enough to begin with
        }
        if call.took >= self.logged {
            tracing::warn!(
                statement = &*call.statement,
                elapsed_ms = call.took.as_secs_f64() * 1_000.0,
                rows = call.rows,
                caller = call.caller,
                request_id = call.caller_id,
                params = call.params.as_ref().map(|params| params.join(", ")),
                plan = slow.plan.join("; "),
                "slow query"
            );
        }
        drop(slow);
        let mut recent = self.recent.lock();
        while recent.len() >= self.kept.max(1) {
            recent.pop_front();
        }
        recent.push_back(call);
    }

    /// Every statement that ran, that with the most time in all first.
    pub fn figures(&self) -> Vec<StatementFigures> {
        let known = self.known.read();
        let mut all: Vec<_> = known.values().map(|one| one.figures()).collect();
        all.retain(|one| one.calls > 0);
        all.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.name.cmp(&b.name)));
        all
    }

    /// The latest slow calls, newest first.
    pub fn recent(&self) -> Vec<SlowCall> {
        self.recent.lock().iter().rev().cloned().collect()
    }

    /// Calls of all statements since the process began.
    pub fn calls(&self) -> u64 {
        let known = self.known.read();
        let calls = |one: &Arc<Statement>| one.calls.load(Ordering::Relaxed);
        known.values().map(calls).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(statement: &Statement, took: Duration, caller: usize) -> SlowCall {
        SlowCall {
            at: Timestamp(0),
            statement: Arc::clone(&statement.name),
            took,
            rows: 1,
            caller: Some(format!("GET /{caller}")),
            caller_id: None,
            params: None,
        }
    }

    #[test]
    fn a_quantile_is_within_a_quarter_of_the_truth() {
        for micros in [1_u64, 2, 3, 7, 40, 999, 1_000, 123_456, 60_000_000] {
            let end = upper_end(bucket_of(micros * 1_000)).as_micros() as u64;
            assert!(
                end > micros && end <= micros + micros / 4 + 1,
                "{micros}: {end}"
            );
        }
        let all = Statements::new(&Database::default());
        let one = all.get("a", "SELECT 1");
        for micros in 1..=1_000 {
            all.count(&one, Duration::from_micros(micros), 2);
        }
        let figures = &all.figures()[0];
        assert_eq!((figures.calls, figures.rows), (1_000, 2_000));
        assert_eq!(figures.max, Duration::from_millis(1));
        let p95 = figures.p95.as_micros();
        assert!((950..=1_000).contains(&p95), "{p95}");
    }

    #[test]
    fn what_is_kept_of_slow_calls_is_bounded() {
        let all = Statements::new(&Database {
            slow_kept: 3,
            ..Database::default()
        });
        let one = all.get("a", "SELECT 1");
        let mut plans = 0;
        for caller in 0..40 {
            let slow = Duration::from_millis(caller as u64 + 200);
            assert!(all.count(&one, slow, 1));
            all.keep_slow(&one, call(&one, slow, caller), || {
                plans += 1;
                vec!["SCAN a".to_owned()]
            });
        }
        let figures = &all.figures()[0];
        assert_eq!(
            (figures.slow_calls, figures.callers.len()),
            (40, CALLERS_MAX)
        );
        assert_eq!((figures.plan.len(), plans), (1, 3));
        let recent: Vec<_> = all
            .recent()
            .iter()
            .map(|call| call.took.as_millis())
            .collect();
        assert_eq!(recent, [239, 238, 237]);
        for number in 0..2 * STATEMENTS_MAX {
            all.get(&number.to_string(), "SELECT 1");
        }
        assert!(all.known.read().len() <= STATEMENTS_MAX + 1);
    }
}
