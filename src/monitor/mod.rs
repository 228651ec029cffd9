//! Metrics, health and logs: what the process tells about itself.
//!
//! Invariants: no feature is named beyond the metrics that dashboards rely on; every label is
//! bounded, a raw path or id never becomes one; a reader of metrics can't slow down a request.

mod health;
pub mod logs;
mod metrics;
mod system;
mod trace;
mod views;

pub use health::{Check, Health, Outcome, State};
pub use metrics::{Metrics, RouteMetrics, TEXT_FORMAT};
pub use trace::{current_trace, traced, traced_here};
