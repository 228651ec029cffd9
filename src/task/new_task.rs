//! A task to be: what its maker asks for.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{RetryPolicy, TaskId};
use crate::clock::Timestamp;
use crate::config;
use crate::word_type;

/// Priority of a task that does not say another.
pub const PRIORITY_DEFAULT: u8 = 100;

word_type! {
    /// What ends the lock of a unique task, besides its time.
    Until {
        /// That it is started: at most one waits.
        Started = "started",
        /// That it is completed, cancelled or dead: at most one is unfinished.
        Finished = "finished",
        /// Its time alone.
        Expired = "expired",
    }
}

/// At most one task at a time under a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unique {
    /// What must be unique.
    pub key: String,
    /// What ends the lock.
    pub until: Until,
    /// What else ends it: so many seconds after the enqueue.
    #[serde(default)]
    pub seconds: Option<i64>,
}

impl Unique {
    /// At most one unfinished task of this name with these arguments.
    pub fn by_args(name: &str, args: &str) -> Self {
        let digest = Sha256::digest(args.as_bytes());
        let hex: String = digest[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            key: format!("{name}:{hex}"),
            until: Until::Finished,
            seconds: None,
        }
    }
}

/// Many enqueues become one run: while the task still waits for its time, the next enqueue under the
/// same key puts it off and replaces its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debounce {
    /// What belongs together.
    pub key: String,
}

/// A task to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTask {
    /// What is to be done.
    pub name: Cow<'static, str>,
    /// Where it waits.
    pub queue: Cow<'static, str>,
    /// Higher first.
    pub priority: u8,
    /// JSON.
    pub args: String,
    /// JSON.
    #[serde(default)]
    pub metadata: Option<String>,
    /// W3C trace context; `None` for that of the transaction in which it is made.
    #[serde(default)]
    pub traceparent: Option<String>,
    /// Not before; `None` for at once.
    #[serde(default)]
    pub run_at: Option<Timestamp>,
    /// Not after.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// How often it may be started.
    pub max_attempts: u32,
    /// Longest run.
    pub timeout_ms: i64,
    /// When the handler is told that it takes long.
    #[serde(default)]
    pub soft_timeout_ms: Option<i64>,
    /// How long to wait after a failure; `None` for the default.
    #[serde(default)]
    pub retry_policy: Option<RetryPolicy>,
    /// How long its result is kept; `None` for the default.
    #[serde(default)]
    pub result_seconds: Option<i64>,
    /// An id of its maker's own: a second enqueue with it is answered with the task that there is,
    /// as long as that one is kept.
    #[serde(default)]
    pub external_id: Option<String>,
    /// At most once.
    #[serde(default)]
    pub unique: Option<Unique>,
    /// Many as one.
    #[serde(default)]
    pub debounce: Option<Debounce>,
    /// Not before these are finished.
    #[serde(default)]
    pub after: Vec<TaskId>,
    /// Whether to run although one of `after` was not completed; otherwise it is cancelled then.
    #[serde(default)]
    pub after_failure: bool,
}

impl NewTask {
    /// A task for the workers of a queue, with the defaults of a task that has no built-in handler.
    pub fn named(name: String, queue: String, args: String) -> Self {
        Self {
            name: Cow::Owned(name),
            queue: Cow::Owned(queue),
            priority: PRIORITY_DEFAULT,
            args,
            metadata: None,
            traceparent: None,
            run_at: None,
            expires_at: None,
            max_attempts: 25,
            timeout_ms: 1_800_000,
            soft_timeout_ms: None,
            retry_policy: None,
            result_seconds: None,
            external_id: None,
            unique: None,
            debounce: None,
            after: Vec::new(),
            after_failure: false,
        }
    }
}

/// How far ahead a time may lie.
pub(super) fn latest_run_at(now: Timestamp, rules: &config::Tasks) -> Timestamp {
    let seconds = i64::try_from(rules.delay_seconds_max).unwrap_or(i64::MAX);
    now.plus_seconds(seconds)
}
