//! What is done for the catalogue now and then: that what is hot lies ready.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::task::{Handler, TaskContext, TaskFailure, TaskOutcome};

/// Loads what will be asked for into the cache.
pub struct WarmCache(Cache);

impl WarmCache {
    /// Of this cache.
    pub fn new(cache: Cache) -> Self {
        Self(cache)
    }
}

/// What to load.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmCacheArgs {
    /// Keys such as `product:7`; the hot ones, if none is named.
    #[serde(default)]
    pub keys: Vec<String>,
}

impl Handler for WarmCache {
    type Args = WarmCacheArgs;
    const NAME: &'static str = "warm_cache";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str = "Loads keys into the cache: those that are named, or the hot ones.";
    const MAX_ATTEMPTS: u32 = 3;

    async fn run(&self, _: TaskContext, args: WarmCacheArgs) -> Result<TaskOutcome, TaskFailure> {
        let warmed = match args.keys.is_empty() {
            true => self.0.warm(&self.0.hot_key_names()).await,
            false => self.0.warm(&args.keys).await,
        };
        Ok(TaskOutcome::Done(Some(serde_json::json!({
            "warmed": warmed.warmed, "failed": warmed.failed, "unknown": warmed.unknown,
        }))))
    }
}
