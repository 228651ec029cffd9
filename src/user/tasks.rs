//! The upkeep of accounts: when they were last used, and what is kept for them only for a time.

use std::sync::Arc;

use crate::auth::{Auth, AuthError};
use crate::cache::Cache;
use crate::clock::Timestamp;
use crate::store::{Store, StoreError, Tx};
use crate::task::{Handler, NoArgs, TaskContext, TaskFailure, TaskOutcome};

/// Writes down when accounts and their sessions were last used, which a running server gathers in
/// memory. A stop in order does the same once more; what a crash costs is some minutes of it.
pub struct SyncUserActivity(Auth);

impl SyncUserActivity {
    /// Of these accounts.
    pub fn new(auth: Auth) -> Self {
        Self(auth)
    }
}

impl From<AuthError> for TaskFailure {
    fn from(error: AuthError) -> Self {
        TaskFailure::retry(error.to_string())
    }
}

impl Handler for SyncUserActivity {
    type Args = NoArgs;
    const NAME: &'static str = "sync_user_activity";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str = "Writes down when accounts and sessions were last used.";
    const MAX_ATTEMPTS: u32 = 3;

    async fn run(&self, _context: TaskContext, _args: NoArgs) -> Result<TaskOutcome, TaskFailure> {
        let sessions = self.0.sync_activity().await?;
        Ok(TaskOutcome::Done(Some(
            serde_json::json!({"sessions": sessions}),
        )))
    }
}

/// Drops a bounded number of rows past their time; answers how many, 0 once there are none left.
pub type Sweep = Arc<dyn Fn(&mut Tx<'_>, Timestamp) -> Result<u64, StoreError> + Send + Sync>;

/// Drops all that is kept for a time and past it. What that is, its owners say: it may vanish at any
/// moment, because no answer shows it any more.
pub struct CleanExpiredCache {
    store: Store,
    cache: Cache,
    sweeps: Vec<(&'static str, Sweep)>,
}

impl CleanExpiredCache {
    /// With the sweeps that make it up, by what they drop, and the cache in memory.
    pub fn new(store: Store, cache: Cache, sweeps: Vec<(&'static str, Sweep)>) -> Self {
        Self {
            store,
            cache,
            sweeps,
        }
    }
}

impl Handler for CleanExpiredCache {
    type Args = NoArgs;
    const NAME: &'static str = "clean_expired_cache";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str = "Drops sessions, registrations, answers to idempotency keys, reports and cached values that are past their time.";
    const MAX_ATTEMPTS: u32 = 5;
    const TIMEOUT_MS: i64 = 1_800_000;

    async fn run(&self, context: TaskContext, _args: NoArgs) -> Result<TaskOutcome, TaskFailure> {
        let now = context.now();
        let mut dropped = serde_json::Map::new();
        for (what, sweep) in &self.sweeps {
            let mut all = 0;
            loop {
                if context.is_cancelled() {
                    return Err(TaskFailure::discard("it was cancelled"));
                }
                let sweep = Arc::clone(sweep);
                // Each in a write of its own, so that others get their turn in between.
                let some = self.store.write(move |tx| sweep(tx, now)).await?;
                if some == 0 {
                    break;
                }
                all += some;
            }
            dropped.insert((*what).to_owned(), all.into());
        }
        let cache = self.cache.clone();
        // It looks at each value that there is, which no async thread should.
        let swept = tokio::task::spawn_blocking(move || cache.sweep()).await;
        let swept = swept.map_err(|error| TaskFailure::retry(error.to_string()))?;
        dropped.insert("cache".to_owned(), swept.into());
        Ok(TaskOutcome::Done(Some(dropped.into())))
    }
}
