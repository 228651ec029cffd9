//! The registry and a handle for each metric.
//!
//! Invariants: names and labels are a contract with dashboards; handles are cloned out of the
//! registry once, so that counting costs an atomic addition; a label value comes from a list that
//! the code or the catalogue bounds.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::caching::CacheMetrics;
use super::system::System;
use super::views::ProductViews;

/// Content type of [`Metrics::render`].
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Seconds; from a memory hit to the request limit.
const REQUEST_BUCKETS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];
const DATABASE_BUCKETS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
];
const BATCH_BUCKETS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// Seconds; from a task that only counts to one that reads everything.
const TASK_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1_800.0,
];

/// Every metric of the process; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Handles>);

impl std::ops::Deref for Metrics {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.0
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// The handles behind [`Metrics`].
pub struct Handles {
    registry: Registry,
    http_requests_total: IntCounterVec,
    http_request_duration_seconds: HistogramVec,
    routes: RwLock<HashMap<Box<str>, Arc<RouteMetrics>>>,
    /// Requests that are being worked on.
    pub http_active_requests: IntGauge,
    /// Handlers that panicked; each is a bug.
    pub http_panics_total: IntCounter,
    /// Connections that are open.
    pub http_connections_open: IntGauge,
    /// Connections refused or given up, by reason: `address_limit`, `full`, `evicted` (for a newcomer),
    /// `first_byte`, `tls`.
    pub http_connections_refused_total: IntCounterVec,
    /// Refusals that came late, because their client got many.
    pub http_refusals_held_back_total: IntCounter,

    shares_used: IntGaugeVec,
    shares_limit: IntGaugeVec,
    shares_refused_total: IntCounterVec,

    /// Readers that are lent out.
    pub db_connections_in_use: IntGauge,
    /// Readers that wait to be lent out.
    pub db_connections_idle: IntGauge,
    /// The most readers that were lent out at once within the last second.
    pub db_connections_peak: IntGauge,
    /// How long a read waited for its connection.
    pub db_connection_wait_seconds: Histogram,
    /// Reads that found their lane full, by lane: `list` or `search`.
    pub db_reads_refused_total: IntCounterVec,
    /// Writes that shared a commit.
    pub db_write_batch_size: Histogram,
    /// Time from the first write of a batch to the end of its commit.
    pub db_commit_seconds: Histogram,
    /// Writes that wait for the writer.
    pub db_write_queue_depth: IntGauge,
    /// Size of the write-ahead log.
    pub db_wal_bytes: IntGauge,

    /// Orders created, by claims too. An answer that was given again created none.
    pub orders_created_total: IntCounter,
    /// Attempts at claims by outcome: `accepted`, `replayed` (a granted claim's answer, given again
    /// under its idempotency key), or the code of the refusal: `sold_out`, `limit_reached`, ….
    pub flash_sale_claims_total: IntCounterVec,
    flash_sale_remaining: IntGaugeVec,
    /// Units by which the ledger and the stock differ; must read 0.
    pub stock_drift_units: IntGaugeVec,
    /// Problems that the last check of the ledger found; absent until the first check.
    pub stock_ledger_problems: IntGaugeVec,
    /// Views of products: the most viewed by id, the rest as `other`.
    pub product_views: ProductViews,

    tasks_total: IntCounterVec,
    task_duration_seconds: HistogramVec,
    schedule_runs_total: IntCounterVec,
    queue_depth: IntGaugeVec,
    queue_latency_seconds: GaugeVec,
    /// How often the tasks' delivery index was made anew while it was in use.
    pub task_index_rebuilds_total: IntCounter,

    /// Open connections of clients that speak the Faktory protocol.
    pub faktory_connections_open: IntGauge,
    /// Such connections refused or given up, by reason: `address_limit`, `tls`, `greeting`, `password`,
    /// `throttled`, `slow`, `idle`, `too_long`, `no_text`, `workers`.
    pub faktory_connections_refused_total: IntCounterVec,
    /// Their commands, by outcome: `ok`, `error`, `stale`.
    pub faktory_commands_total: IntCounterVec,
    /// Workers that are known by that protocol.
    pub faktory_workers: IntGauge,

    /// What the cache counts.
    pub cache: CacheMetrics,

    /// What happened that matters to security, by OWASP's names.
    pub security_events_total: IntCounterVec,

    /// Log lines that were dropped because the log could not keep up.
    pub log_lines_dropped_total: IntCounter,

    system_cpu_usage_percent: Gauge,
    system_memory_usage_percent: Gauge,
    process_memory_usage_bytes: IntGauge,
    system: System,
}

impl Metrics {
    /// What a check of the stock ledger found.
    pub fn set_stock_verdict(&self, drift_units: i64, problems: u64) {
        let none: &[&str] = &[];
        let problems = i64::try_from(problems).unwrap_or(i64::MAX);
        self.stock_drift_units
            .with_label_values(none)
            .set(drift_units);
        self.stock_ledger_problems
            .with_label_values(none)
            .set(problems);
    }

    /// Registers everything. Fails only when two metrics have one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        // Gives process_start_time_seconds, open descriptors, CPU seconds, threads.
        r.register(Box::new(ProcessCollector::for_self()))?;
        let build_info = int_gauge_vec(
            r,
            "onrush_build_info",
            "Always 1; the labels tell the build.",
            &["version"],
        )?;
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Ok(Self(Arc::new(Handles {
            http_requests_total: int_counter_vec(
                r,
                "http_requests_total",
                "Requests answered.",
                &["method", "endpoint", "status"],
            )?,
            http_request_duration_seconds: {
                let vec = HistogramVec::new(
                    HistogramOpts::new(
                        "http_request_duration_seconds",
                        "Time from the headers to the start of the answer.",
                    )
                    .buckets(REQUEST_BUCKETS.to_vec()),
                    &["method", "endpoint"],
                )?;
                r.register(Box::new(vec.clone()))?;
                vec
            },
            routes: RwLock::new(HashMap::new()),
            http_active_requests: int_gauge(
                r,
                "http_active_requests",
                "Requests being worked on.",
            )?,
            http_panics_total: int_counter(
                r,
                "http_panics_total",
                "Handlers that panicked; each is a bug.",
            )?,
            http_connections_open: int_gauge(r, "http_connections_open", "Open connections.")?,
            http_connections_refused_total: int_counter_vec(
                r,
                "http_connections_refused_total",
                "Connections refused or given up.",
                &["reason"],
            )?,
            http_refusals_held_back_total: int_counter(
                r,
                "http_refusals_held_back_total",
                "Refusals that came late, because their client got many.",
            )?,
            shares_used: int_gauge_vec(
                r,
                "http_shares_used",
                "What all clients hold of a resource.",
                &["resource"],
            )?,
            shares_limit: int_gauge_vec(
                r,
                "http_shares_limit",
                "What all clients together may hold of it.",
                &["resource"],
            )?,
            shares_refused_total: int_counter_vec(
                r,
                "http_shares_refused_total",
                "Requests that were refused a share: their client had too much, or everyone.",
                &["resource", "by"],
            )?,
            db_connections_in_use: int_gauge(r, "db_connections_in_use", "Readers lent out.")?,
            db_connections_idle: int_gauge(
                r,
                "db_connections_idle",
                "Readers waiting to be lent out.",
            )?,
            db_connections_peak: int_gauge(
                r,
                "db_connections_peak",
                "Most readers lent out at once within the last second.",
            )?,
            db_connection_wait_seconds: histogram(
                r,
                "db_connection_wait_seconds",
                "Wait of a read for its connection.",
                DATABASE_BUCKETS,
            )?,
            db_reads_refused_total: int_counter_vec(
                r,
                "db_reads_refused_total",
                "Lists and searches refused because too many were waiting.",
                &["lane"],
            )?,
            db_write_batch_size: histogram(
                r,
                "db_write_batch_size",
                "Writes that shared a commit.",
                BATCH_BUCKETS,
            )?,
            db_commit_seconds: histogram(
                r,
                "db_commit_seconds",
                "Time of a batch and its commit.",
                DATABASE_BUCKETS,
            )?,
            db_write_queue_depth: int_gauge(
                r,
                "db_write_queue_depth",
                "Writes waiting for the writer.",
            )?,
            db_wal_bytes: int_gauge(r, "db_wal_bytes", "Size of the write-ahead log.")?,
            orders_created_total: int_counter(
                r,
                "orders_created_total",
                "Orders created, by claims too; an answer given again created none.",
            )?,
            flash_sale_claims_total: int_counter_vec(
                r,
                "flash_sale_claims_total",
                "Attempts at claims: accepted, replayed (the answer given again), or why refused.",
                &["outcome"],
            )?,
            flash_sale_remaining: int_gauge_vec(
                r,
                "flash_sale_remaining",
                "Units of a running sale that can still be claimed.",
                &["sale_id"],
            )?,
            stock_drift_units: int_gauge_vec(
                r,
                "stock_drift_units",
                "Units by which the ledger and the stock differ; must read 0. Absent until checked.",
                &[],
            )?,
            stock_ledger_problems: int_gauge_vec(
                r,
                "stock_ledger_problems",
                "Problems that the last check of the ledger found; must read 0. Absent until checked.",
                &[],
            )?,
            product_views: ProductViews::new(int_counter_vec(
                r,
                "product_views_total",
                "Views of products: the most viewed by id, the rest as other.",
                &["product_id"],
            )?),
            tasks_total: int_counter_vec(
                r,
                "tasks_total",
                "Attempts of tasks that ended, by what the task became.",
                &["task", "state"],
            )?,
            task_duration_seconds: {
                let vec = HistogramVec::new(
                    HistogramOpts::new(
                        "task_duration_seconds",
                        "Time from the start of an attempt to its end.",
                    )
                    .buckets(TASK_BUCKETS.to_vec()),
                    &["task"],
                )?;
                r.register(Box::new(vec.clone()))?;
                vec
            },
            schedule_runs_total: int_counter_vec(
                r,
                "schedule_runs_total",
                "Runs of schedules that are over, by what they came to.",
                &["schedule", "outcome"],
            )?,
            queue_depth: int_gauge_vec(
                r,
                "queue_depth",
                "Tasks by queue: ready or running. The scheduled of all queues are under `all`.",
                &["queue", "state"],
            )?,
            queue_latency_seconds: {
                let vec = GaugeVec::new(
                    Opts::new(
                        "queue_latency_seconds",
                        "How long the next ready task of a queue has been due.",
                    ),
                    &["queue"],
                )?;
                r.register(Box::new(vec.clone()))?;
                vec
            },
            task_index_rebuilds_total: int_counter(
                r,
                "task_index_rebuilds_total",
                "How often the tasks' delivery index was damaged, hung or left without order, and made anew from the rows.",
            )?,
            faktory_connections_open: int_gauge(
                r,
                "faktory_connections_open",
                "Open connections of clients that speak the Faktory protocol.",
            )?,
            faktory_connections_refused_total: int_counter_vec(
                r,
                "faktory_connections_refused_total",
                "Connections of the Faktory protocol that were refused or given up.",
                &["reason"],
            )?,
            faktory_commands_total: int_counter_vec(
                r,
                "faktory_commands_total",
                "Commands of the Faktory protocol.",
                &["command", "outcome"],
            )?,
            faktory_workers: int_gauge(
                r,
                "faktory_workers",
                "Workers that are known by the Faktory protocol.",
            )?,
            cache: CacheMetrics::new(r)?,
            security_events_total: int_counter_vec(
                r,
                "security_events_total",
                "What happened that matters to security, by the names of OWASP's vocabulary.",
                &["event"],
            )?,
            log_lines_dropped_total: int_counter(
                r,
                "log_lines_dropped_total",
                "Log lines dropped because the log could not keep up.",
            )?,
            system_cpu_usage_percent: gauge(
                r,
                "system_cpu_usage_percent",
                "Processor time of the machine in use, between two readings.",
            )?,
            system_memory_usage_percent: gauge(
                r,
                "system_memory_usage_percent",
                "Memory of the machine in use.",
            )?,
            process_memory_usage_bytes: int_gauge(
                r,
                "process_memory_usage_bytes",
                "Resident memory of this process.",
            )?,
            system: System::default(),
            registry,
        })))
    }

    /// Everything in Prometheus's text format, read at this moment.
    pub fn render(&self) -> String {
        self.product_views.promote();
        let reading = self.system.read();
        if let Some(percent) = reading.cpu_percent {
            self.system_cpu_usage_percent.set(percent);
        }
        if let Some(percent) = reading.memory_percent {
            self.system_memory_usage_percent.set(percent);
        }
        if let Some(bytes) = reading.resident_bytes {
            self.process_memory_usage_bytes.set(bytes);
        }
        let mut text = Vec::with_capacity(16 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics could not be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// Resident memory of this process.
    pub fn resident_bytes(&self) -> Option<i64> {
        System::resident_bytes()
    }

    /// The registry, for metrics that only their owner knows.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Tells how many units of a running sale can still be claimed.
    pub fn set_flash_sale_remaining(&self, sale_id: i64, units: i64) {
        self.flash_sale_remaining
            .with_label_values(&[&sale_id.to_string()])
            .set(units);
    }

    /// Forgets a sale that has ended, so that old sales don't pile up.
    pub fn remove_flash_sale(&self, sale_id: i64) {
        // An error only means that the sale was never reported.
        let _absent = self
            .flash_sale_remaining
            .remove_label_values(&[&sale_id.to_string()]);
    }

    /// Counts an attempt that ended; `task` is one of a bounded list of names.
    pub fn count_task(&self, task: &str, state: &str, seconds: Option<f64>) {
        self.tasks_total.with_label_values(&[task, state]).inc();
        if let Some(seconds) = seconds {
            self.task_duration_seconds
                .with_label_values(&[task])
                .observe(seconds);
        }
    }

    /// Counts a run of a schedule that is over; there are only so many schedules.
    pub fn count_schedule_run(&self, schedule: &str, outcome: &str) {
        self.schedule_runs_total
            .with_label_values(&[schedule, outcome])
            .inc();
    }

    /// Forgets a schedule that was removed, so that old ones don't pile up.
    pub fn forget_schedule<'a>(&self, schedule: &str, outcomes: impl Iterator<Item = &'a str>) {
        for outcome in outcomes {
            // An error only means that it was never counted.
            let _absent = self
                .schedule_runs_total
                .remove_label_values(&[schedule, outcome]);
        }
    }

    /// Tells what waits and runs: for each queue the ready, the running, and the age of the next.
    pub fn set_queues<'a>(
        &self,
        queues: impl Iterator<Item = (&'a str, u64, u32, f64)>,
        scheduled: u64,
    ) {
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let depth = |queue: &str, state: &str, count: u64| {
            self.queue_depth
                .with_label_values(&[queue, state])
                .set(whole(count));
        };
        // What is gone must not be told of for ever.
        self.queue_depth.reset();
        self.queue_latency_seconds.reset();
        for (queue, ready, running, seconds) in queues {
            depth(queue, "ready", ready);
            depth(queue, "running", u64::from(running));
            self.queue_latency_seconds
                .with_label_values(&[queue])
                .set(seconds);
        }
        depth("all", "scheduled", scheduled);
    }

    /// The handles of a shared resource, of which there is `limit`.
    pub fn share(&self, resource: &str, limit: u64) -> ShareMetrics {
        let refused = |by| self.shares_refused_total.with_label_values(&[resource, by]);
        self.shares_limit
            .with_label_values(&[resource])
            .set(i64::try_from(limit).unwrap_or(i64::MAX));
        ShareMetrics {
            used: self.shares_used.with_label_values(&[resource]),
            of_client: refused("client"),
            of_everyone: refused("everyone"),
        }
    }

    /// The handles of a route, by the router's pattern; `template` names it for people when it is
    /// seen for the first time.
    pub fn route(&self, pattern: &str, template: impl FnOnce() -> String) -> Arc<RouteMetrics> {
        if let Some(route) = self.routes.read().get(pattern) {
            return Arc::clone(route);
        }
        let route = Arc::new(RouteMetrics {
            endpoint: template(),
            methods: std::array::from_fn(|_| OnceLock::new()),
        });
        Arc::clone(self.routes.write().entry(pattern.into()).or_insert(route))
    }

    /// Counts one answer of `route`.
    pub fn observe(&self, route: &RouteMetrics, method: &str, status: u16, seconds: f64) {
        let slot = METHODS
            .iter()
            .position(|known| *known == method)
            .unwrap_or(METHODS.len() - 1);
        let handles = route.methods[slot].get_or_init(|| MethodMetrics {
            duration: self
                .http_request_duration_seconds
                .with_label_values(&[METHODS[slot], &route.endpoint]),
            statuses: std::array::from_fn(|_| OnceLock::new()),
        });
        handles.duration.observe(seconds);
        let count = || {
            self.http_requests_total.with_label_values(&[
                METHODS[slot],
                &route.endpoint,
                &status.to_string(),
            ])
        };
        match STATUSES.iter().position(|known| *known == status) {
            Some(at) => handles.statuses[at].get_or_init(count).inc(),
            None => count().inc(),
        }
    }
}

/// Methods that become labels; anything else is `other`.
const METHODS: [&str; 8] = [
    "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "other",
];
/// Statuses whose counters are kept at hand; others take the slower way through the registry.
const STATUSES: [u16; 16] = [
    200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 409, 413, 422, 429, 500, 503,
];

/// The counters of one route.
pub struct RouteMetrics {
    endpoint: String,
    methods: [OnceLock<MethodMetrics>; METHODS.len()],
}

struct MethodMetrics {
    duration: Histogram,
    statuses: [OnceLock<IntCounter>; STATUSES.len()],
}

/// What is told of one shared resource.
pub struct ShareMetrics {
    /// What is held of it.
    pub used: IntGauge,
    /// Refusals because the client held its share.
    pub of_client: IntCounter,
    /// Refusals because everything was held.
    pub of_everyone: IntCounter,
}

impl RouteMetrics {
    /// The route's template, as in the label `endpoint`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

pub(super) fn int_counter(r: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let metric = IntCounter::new(name, help)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

pub(super) fn int_counter_vec(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn int_gauge(r: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let metric = IntGauge::new(name, help)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

pub(super) fn int_gauge_vec(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(r: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    let metric = Gauge::new(name, help)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

pub(super) fn histogram(
    r: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_counted_under_its_template_and_a_known_method() {
        let metrics = Metrics::new().expect("unique names");
        let route = metrics.route("/products/:param0", || "/products/{product_id}".to_owned());
        metrics.observe(&route, "GET", 200, 0.001);
        metrics.observe(&route, "BREW", 418, 0.001);
        let again = metrics.route("/products/:param0", || unreachable!("known"));
        metrics.observe(&again, "GET", 200, 0.001);
        assert!(
            !metrics.render().contains("stock_drift_units"),
            "nothing is said before it was checked"
        );
        metrics.set_stock_verdict(0, 2);
        let text = metrics.render();
        for line in [
            r#"http_requests_total{endpoint="/products/{product_id}",method="GET",status="200"} 2"#,
            r#"http_requests_total{endpoint="/products/{product_id}",method="other",status="418"} 1"#,
            r#"http_request_duration_seconds_count{endpoint="/products/{product_id}",method="GET"} 2"#,
            "process_start_time_seconds ",
            "onrush_build_info{version=",
            "stock_drift_units 0",
            "stock_ledger_problems 2",
            "process_memory_usage_bytes ",
            "system_memory_usage_percent ",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_sale_that_ended_is_forgotten() {
        let metrics = Metrics::new().expect("unique names");
        metrics.set_flash_sale_remaining(7, 5);
        assert!(
            metrics
                .render()
                .contains(r#"flash_sale_remaining{sale_id="7"} 5"#)
        );
        metrics.remove_flash_sale(7);
        metrics.remove_flash_sale(7);
        assert!(!metrics.render().contains("flash_sale_remaining{"));
    }
}
