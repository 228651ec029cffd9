//! The cache over HTTP: a look into it, and a hand on it. For admins alone.

use std::sync::Arc;

use poem_openapi::param::Path;
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, CacheStats, EntryView, HotKey};
use crate::auth::api::{Access, Tag};
use crate::auth::{Role, Scope};
use crate::check::{Checks, FieldError};
use crate::config;
use crate::http::json::OptionalBody;
use crate::http::{Body, Failure, NoContent, Problem, fails};
use crate::store::StoreError;

impl From<CacheError> for Problem {
    fn from(error: CacheError) -> Self {
        if let Some(cause) = error.cause::<StoreError>() {
            return cause.clone().into();
        }
        match &error {
            CacheError::Overloaded | CacheError::Timeout => Problem::overloaded(1).cause(&error),
            CacheError::Stopped => Problem::overloaded(5).cause(&error),
            CacheError::Failed(_) | CacheError::Panicked => Problem::internal(error),
        }
    }
}

/// One level of the cache.
#[derive(Serialize, Object)]
struct LevelView {
    /// `memory`, `absent` (what is known not to exist) or `disk`
    level: String,
    /// `on`, `off` (the settings want none), or `closed` (nothing to keep yet, or given up for now)
    state: String,
    /// Entries; not counted on disk
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
    /// How many there may be
    #[serde(skip_serializing_if = "Option::is_none")]
    entries_max: Option<u64>,
    /// Their size; on disk what was written since the start
    bytes: u64,
    /// What they may take
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_max: Option<u64>,
    /// Look-ups that it answered since the start
    hits: u64,
}

/// The cache at a glance. Counts are since the start.
#[derive(Serialize, Object)]
struct StatsView {
    /// Of reads, the part that needed no load, 0 to 1; absent before the first read
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_ratio: Option<f64>,
    /// Reads, whatever answered them
    reads: u64,
    /// Level by level, in the order in which they are asked
    levels: Vec<LevelView>,
    /// Values of hot keys that can't be pushed out
    pinned_entries: u64,
    /// Values that gave way to others
    evictions: u64,
    /// Loads that brought a value
    loads: u64,
    /// Loads that failed or took too long
    loads_failed: u64,
    /// Loads that were refused, because too many were under way
    loads_refused: u64,
    /// Reads that got an expired value, because its load failed or was slow
    stale_served: u64,
    /// Reads that waited for another's load
    joined: u64,
    /// Keys that are being loaded at this moment
    loading: u64,
    /// Reads that wait at this moment
    waiting: u64,
    /// First parts of the keys
    kinds: Vec<String>,
}

impl From<CacheStats> for StatsView {
    fn from(stats: CacheStats) -> Self {
        let whole = |count: usize| count as u64;
        // Whatever memory missed was answered by another level, or loaded.
        let answered = stats.memory_hits + stats.absent_hits + stats.disk_hits;
        let reads = stats.memory_hits + stats.memory_misses;
        let memory = match stats.is_on {
            true => "on",
            false => "off",
        };
        Self {
            hit_ratio: (reads > 0).then(|| answered as f64 / reads as f64),
            reads,
            levels: vec![
                LevelView {
                    level: "memory".to_owned(),
                    state: memory.to_owned(),
                    entries: Some(whole(stats.memory_entries)),
                    entries_max: Some(whole(stats.memory_entries_max)),
                    bytes: whole(stats.memory_bytes),
                    bytes_max: Some(whole(stats.memory_bytes_max)),
                    hits: stats.memory_hits,
                },
                LevelView {
                    level: "absent".to_owned(),
                    state: memory.to_owned(),
                    entries: Some(whole(stats.absent_entries)),
                    entries_max: Some(whole(stats.absent_entries_max)),
                    bytes: whole(stats.absent_bytes),
                    bytes_max: None,
                    hits: stats.absent_hits,
                },
                LevelView {
                    level: "disk".to_owned(),
                    state: stats.disk.word().to_owned(),
                    entries: None,
                    entries_max: None,
                    bytes: stats.disk_bytes_written,
                    bytes_max: Some(whole(stats.disk_bytes_max)),
                    hits: stats.disk_hits,
                },
            ],
            pinned_entries: whole(stats.pinned_entries),
            evictions: stats.evictions,
            loads: stats.loads,
            loads_failed: stats.loads_failed,
            loads_refused: stats.loads_refused,
            stale_served: stats.stale_served,
            joined: stats.joined,
            loading: whole(stats.loading),
            waiting: whole(stats.waiting),
            kinds: stats.kinds.into_iter().map(str::to_owned).collect(),
        }
    }
}

/// An entry.
#[derive(Serialize, Object)]
struct CacheEntryView {
    /// `kind:id`
    key: String,
    /// `pinned` (in memory, as a hot key's), `memory`, `absent` (known not to exist) or `disk`
    level: String,
    /// Where it came from: `loader` or `disk`
    origin: String,
    /// Time since it was loaded
    age_ms: u64,
    /// Time until its life is over; negative when it is
    ttl_left_ms: i64,
    /// What its load took
    load_ms: u64,
    /// Memory that it takes; on disk, the size of its value
    bytes: u64,
    /// Whether its key is hot
    hot: bool,
    /// What it is invalidated with besides its key
    tags: Vec<String>,
}

impl From<EntryView> for CacheEntryView {
    fn from(entry: EntryView) -> Self {
        Self {
            key: entry.key,
            level: entry.level.word().to_owned(),
            origin: entry.origin.word().to_owned(),
            age_ms: entry.age_ms,
            ttl_left_ms: entry.ttl_left_ms,
            load_ms: entry.load_ms,
            bytes: entry.bytes as u64,
            hot: entry.is_hot,
            tags: entry.tags,
        }
    }
}

/// A key that is read often.
#[derive(Serialize, Object)]
struct HotKeyView {
    /// `kind:id`
    key: String,
    /// Reads within the window, estimated from a sample
    reads: u64,
    /// Whether its value is kept out of the way of eviction
    pinned: bool,
}

/// The hot keys.
#[derive(Serialize, Object)]
struct HotKeyList {
    /// Length of the window over which reads are counted
    window_seconds: u64,
    /// Reads within it that make a key hot
    reads_min: u64,
    /// The most read first
    items: Vec<HotKeyView>,
}

/// What is to be invalidated: one of both.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct InvalidateBody {
    /// Keys, in which `*` stands for any characters: `product:*`, `*`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(validator(min_length = 1, max_length = 1024))]
    pattern: Option<String>,
    /// A tag that values bear: `category:Food` for that category's products and the lists of them,
    /// `product:7` for its sales
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(validator(min_length = 1, max_length = 1024))]
    tag: Option<String>,
}

impl Example for InvalidateBody {
    fn example() -> Self {
        Self {
            pattern: Some("product:*".to_owned()),
            tag: None,
        }
    }
}

/// What was invalidated.
#[derive(Serialize, Object)]
struct InvalidatedView {
    /// Values that left memory. Those of a tag are not counted: they are not served any more, and
    /// leave when their room is needed
    removed: u64,
}

/// What is to be loaded; without it, the keys that are hot now.
#[derive(Serialize, Deserialize, Object, Default)]
#[serde(deny_unknown_fields, default)]
#[oai(example)]
struct WarmBody {
    /// Keys, such as `product:7`
    #[oai(default)]
    keys: Vec<String>,
}

impl Example for WarmBody {
    fn example() -> Self {
        Self {
            keys: vec!["product:7".to_owned()],
        }
    }
}

/// What came of a warm-up.
#[derive(Serialize, Object)]
struct WarmedView {
    /// Keys that are in the cache now
    warmed: u64,
    /// Keys that don't exist, or could not be loaded
    failed: u64,
    /// Texts that are no key that can be loaded this way
    unknown: u64,
}

/// The cache.
#[derive(Clone)]
pub struct CacheApi {
    cache: Cache,
    settings: Arc<config::Cache>,
}

impl CacheApi {
    /// With the handle that it works on.
    pub fn new(cache: Cache, settings: Arc<config::Cache>) -> Self {
        Self { cache, settings }
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Cache")]
impl CacheApi {
    /// The cache at a glance
    #[oai(
        path = "/cache/stats",
        method = "get",
        operation_id = "get_cache_stats"
    )]
    async fn stats(&self, access: Access) -> Result<Body<StatsView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Cache)?;
        Ok(Body(self.cache.stats().into()))
    }

    /// Look at an entry
    #[oai(
        path = "/cache/entries/:key",
        method = "get",
        operation_id = "get_cache_entry"
    )]
    async fn entry(
        &self,
        access: Access,
        /// Such as `product:7`
        key: Path<String>,
    ) -> Result<Body<CacheEntryView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Admin, Scope::Cache)?;
        match self.cache.entry(&key.0).await {
            Some(entry) => Ok(Body(entry.into())),
            None => Err(not_cached().into()),
        }
    }

    /// Invalidate an entry
    ///
    /// The next read loads it anew. Done as well when there is none.
    #[oai(
        path = "/cache/entries/:key",
        method = "delete",
        operation_id = "invalidate_cache_entry"
    )]
    async fn invalidate_entry(
        &self,
        access: Access,
        /// Such as `product:7`
        key: Path<String>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Admin, Scope::Cache)?;
        match self.cache.invalidate_text(&key.0) {
            true => Ok(NoContent),
            false => Err(Problem::not_found(
                "unknown_cache_key",
                "no kind of value has keys like that; GET /api/v1/cache/stats lists the kinds",
            )
            .into()),
        }
    }

    /// Invalidate many entries
    ///
    /// By a pattern over keys, or by a tag. No read that begins after the answer brings what was
    /// loaded before.
    #[oai(
        path = "/cache/invalidate",
        method = "post",
        operation_id = "invalidate_cache_entries"
    )]
    async fn invalidate(
        &self,
        access: Access,
        body: Body<InvalidateBody>,
    ) -> Result<Body<InvalidatedView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Cache)?;
        let mut checks = Checks::new();
        for (field, text) in [("pattern", &body.0.pattern), ("tag", &body.0.tag)] {
            if let Some(text) = text {
                checks.text(field, text, 1, 1_024);
            }
        }
        checks.finish().map_err(Problem::validation)?;
        let removed = match (body.0.pattern, body.0.tag) {
            (Some(pattern), None) => {
                let cache = self.cache.clone();
                // A pattern may look at every key there is.
                tokio::task::spawn_blocking(move || cache.invalidate(&pattern))
                    .await
                    .map_err(Problem::internal)?
            }
            (None, Some(tag)) => {
                self.cache.invalidate_tag(&tag);
                0
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(Problem::validation(vec![FieldError::new(
                    "pattern",
                    "give either a pattern or a tag",
                )])
                .into());
            }
        };
        Ok(Body(InvalidatedView {
            removed: removed as u64,
        }))
    }

    /// The hot keys
    ///
    /// What is read most, over a sliding window, the most read first.
    #[oai(
        path = "/cache/hot-keys",
        method = "get",
        operation_id = "list_hot_keys"
    )]
    async fn hot_keys(
        &self,
        access: Access,
    ) -> Result<Body<HotKeyList>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Cache)?;
        let view = |HotKey {
                        key,
                        reads,
                        is_pinned,
                    }| HotKeyView {
            key,
            reads,
            pinned: is_pinned,
        };
        Ok(Body(HotKeyList {
            window_seconds: self.settings.hot_window_seconds,
            reads_min: self.settings.hot_reads_min,
            items: self.cache.hot_keys().into_iter().map(view).collect(),
        }))
    }

    /// Load keys ahead
    ///
    /// Those that are named, or those that are hot; what is in the cache already stays as it is.
    #[oai(path = "/cache/warm", method = "post", operation_id = "warm_cache")]
    async fn warm(
        &self,
        access: Access,
        body: OptionalBody<WarmBody>,
    ) -> Result<Body<WarmedView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::Cache)?;
        let mut keys = body.0.keys;
        if keys.len() > self.settings.warm_keys_max {
            let most = self.settings.warm_keys_max;
            let error = FieldError::new("keys", format!("at most {most} at once"));
            return Err(Problem::validation(vec![error]).into());
        }
        if keys.is_empty() {
            keys = self.cache.hot_key_names();
        }
        let warmed = self.cache.warm(&keys).await;
        Ok(Body(WarmedView {
            warmed: warmed.warmed as u64,
            failed: warmed.failed as u64,
            unknown: warmed.unknown as u64,
        }))
    }
}

fn not_cached() -> Problem {
    Problem::not_found("not_cached", "nothing is cached of that key")
}
