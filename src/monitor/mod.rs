//! Metrics, health and logs: what the process tells about itself.
//!
//! Invariants: no feature is named beyond the metrics that dashboards rely on; every label is
//! bounded, a raw path or id never becomes one; a reader of metrics can't slow down a request.

pub mod api;
mod caching;
mod health;
pub mod logs;
mod metrics;
pub mod security;
pub mod statements;
mod system;
mod views;

pub use caching::{CacheMetrics, LayerMetrics};
pub use health::{Check, CheckOutcome, Health, Need, State};
pub use metrics::{Metrics, RouteMetrics, ShareMetrics, TEXT_FORMAT};
pub use system::resident_mb;
