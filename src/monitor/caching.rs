//! What the cache counts: a handle for each figure, taken out of the registry once.
//!
//! Invariant: the label `cache_layer` has the values of [`CacheMetrics`]'s fields and no others.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use super::metrics::{histogram, int_counter, int_counter_vec, int_gauge_vec};

/// Seconds; from a look-up by key to a report over everything.
const LOAD_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0,
];

/// The figures of one level.
pub struct LayerMetrics {
    /// Look-ups that this level answered.
    pub hits: IntCounter,
    /// Look-ups that it could not answer.
    pub misses: IntCounter,
    /// Entries that gave way to others.
    pub evictions: IntCounter,
    /// Failures of the level itself; each was a miss.
    pub errors: IntCounter,
    /// Entries.
    pub items: IntGauge,
    /// Their size.
    pub bytes: IntGauge,
}

/// See the module.
pub struct CacheMetrics {
    /// Values in memory.
    pub memory: LayerMetrics,
    /// What is known not to exist.
    pub absent: LayerMetrics,
    /// Values on disk.
    pub disk: LayerMetrics,
    /// Loads that brought a value.
    pub loads_ok: IntCounter,
    /// Loads that found nothing.
    pub loads_absent: IntCounter,
    /// Loads that failed.
    pub loads_failed: IntCounter,
    /// Loads that panicked; each is a bug.
    pub loads_panicked: IntCounter,
    /// Loads that took too long.
    pub loads_timed_out: IntCounter,
    /// Loads that were refused because too many were under way.
    pub loads_refused: IntCounter,
    /// What a load took.
    pub load_seconds: Histogram,
    /// Loads that were begun before a request had to wait for them.
    pub refreshes: IntCounter,
    /// Values served after they had expired, because the load failed.
    pub stale_failed: IntCounter,
    /// The same, because the load was slow.
    pub stale_slow: IntCounter,
    /// Reads that waited for another's load.
    pub joined: IntCounter,
}

impl CacheMetrics {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        let label = &["cache_layer"];
        let hits = int_counter_vec(
            r,
            "cache_hits_total",
            "Look-ups that a level answered.",
            label,
        )?;
        let misses = int_counter_vec(
            r,
            "cache_misses_total",
            "Look-ups that a level could not answer.",
            label,
        )?;
        let evictions = int_counter_vec(
            r,
            "cache_evictions_total",
            "Entries that gave way to others.",
            label,
        )?;
        let errors = int_counter_vec(
            r,
            "cache_errors_total",
            "Failures of a level itself; each was a miss.",
            label,
        )?;
        let items = int_gauge_vec(r, "cache_size_items", "Entries of a level.", label)?;
        let bytes = int_gauge_vec(r, "cache_size_bytes", "Size of a level's entries.", label)?;
        let layer = |name: &str| LayerMetrics {
            hits: hits.with_label_values(&[name]),
            misses: misses.with_label_values(&[name]),
            evictions: evictions.with_label_values(&[name]),
            errors: errors.with_label_values(&[name]),
            items: items.with_label_values(&[name]),
            bytes: bytes.with_label_values(&[name]),
        };
        let loads = int_counter_vec(
            r,
            "cache_loads_total",
            "Loads by what came of them.",
            &["outcome"],
        )?;
        let stale = int_counter_vec(
            r,
            "cache_stale_served_total",
            "Values served after they had expired, by why.",
            &["reason"],
        )?;
        let of = |vec: &IntCounterVec, name: &str| vec.with_label_values(&[name]);
        Ok(Self {
            memory: layer("memory"),
            absent: layer("absent"),
            disk: layer("disk"),
            loads_ok: of(&loads, "ok"),
            loads_absent: of(&loads, "absent"),
            loads_failed: of(&loads, "failed"),
            loads_panicked: of(&loads, "panicked"),
            loads_timed_out: of(&loads, "timed_out"),
            loads_refused: of(&loads, "refused"),
            load_seconds: histogram(r, "cache_load_seconds", "What a load took.", LOAD_BUCKETS)?,
            refreshes: int_counter(
                r,
                "cache_refreshes_total",
                "Loads begun before anybody had to wait for them.",
            )?,
            stale_failed: of(&stale, "failed"),
            stale_slow: of(&stale, "slow"),
            joined: int_counter(
                r,
                "cache_joined_total",
                "Reads that waited for another's load.",
            )?,
        })
    }
}
