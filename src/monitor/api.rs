//! What the server tells its owners about its own work. For admins alone.

use std::time::Duration;

use poem_openapi::param::Query;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;

use super::statements::{SlowCall, StatementFigures};
use crate::auth::api::{Access, Tag};
use crate::auth::{Role, Scope};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::config;
use crate::http::{Body, Failure, fails};
use crate::store::Store;

/// What ran a statement.
#[derive(Serialize, Object)]
struct CallerView {
    /// Endpoint (`GET /api/v1/orders/{id}`), task (`task process_order`) or `upkeep`
    caller: String,
    /// How many of the statement's slow calls
    calls: u64,
}

/// A statement since the start.
#[derive(Serialize, Object)]
struct StatementView {
    /// Feature and function, such as `order.create`
    name: String,
    /// SQL
    text: String,
    /// How often it ran
    calls: u64,
    /// Rows that it read or changed
    rows: u64,
    /// Time of all calls
    total_ms: f64,
    /// Time of a call
    mean_ms: f64,
    /// What 95 of 100 calls stay within, to a fifth
    p95_ms: f64,
    /// The slowest call
    max_ms: f64,
    /// Calls slower than `threshold_ms`
    slow_calls: u64,
    /// Steps of the database (`EXPLAIN QUERY PLAN`), of a slow call
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[oai(default)]
    plan: Vec<String>,
    /// What ran the slow calls, the first eight kinds
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[oai(default)]
    callers: Vec<CallerView>,
}

/// A slow call.
#[derive(Serialize, Object)]
struct SlowCallView {
    /// When it ended
    at: Timestamp,
    /// Name of the statement
    statement: String,
    /// How long it took
    elapsed_ms: f64,
    /// Rows that it read or changed
    rows: u64,
    /// Endpoint or task that ran it; absent for the server's own upkeep
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<String>,
    /// Id of that request or task
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_id: Option<String>,
    /// Values of its parameters; absent unless `database.hide_parameters` is off
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Vec<String>>,
}

/// What the statements of this process cost.
#[derive(Serialize, Object)]
struct SlowQueriesView {
    /// A call that takes as long is slow (`database.slow_list_ms`)
    threshold_ms: u64,
    /// One that takes as long is logged, too (`database.slow_log_ms`)
    log_threshold_ms: u64,
    /// Whether the values of parameters are left out (`database.hide_parameters`)
    parameters_hidden: bool,
    /// Calls of all statements since the start
    calls: u64,
    /// Statements, in the order that was asked for
    items: Vec<StatementView>,
    /// The latest slow calls, newest first
    recent: Vec<SlowCallView>,
}

fn millis(time: Duration) -> f64 {
    // To a microsecond: more digits would be noise.
    (time.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

impl From<StatementFigures> for StatementView {
    fn from(one: StatementFigures) -> Self {
        let total = millis(one.total);
        let mean = match one.calls {
            0 => 0.0,
            calls => (total * 1_000.0 / calls as f64).round() / 1_000.0,
        };
        Self {
            name: one.name.to_string(),
            text: one.text,
            calls: one.calls,
            rows: one.rows,
            total_ms: total,
            mean_ms: mean,
            p95_ms: millis(one.p95),
            max_ms: millis(one.max),
            slow_calls: one.slow_calls,
            plan: one.plan,
            callers: one
                .callers
                .into_iter()
                .map(|(caller, calls)| CallerView { caller, calls })
                .collect(),
        }
    }
}

impl From<SlowCall> for SlowCallView {
    fn from(call: SlowCall) -> Self {
        Self {
            at: call.at,
            statement: call.statement.to_string(),
            elapsed_ms: millis(call.took),
            rows: call.rows,
            caller: call.caller,
            caller_id: call.caller_id,
            params: call.params,
        }
    }
}

/// Words of `sort`.
const SORTS: &[&str] = &["total", "mean", "p95", "max", "calls", "slow"];

/// The server's own work.
#[derive(Clone)]
pub struct SystemApi {
    store: Store,
    database: config::Database,
}

impl SystemApi {
    /// Of this database, opened with these settings.
    pub fn new(store: Store, database: config::Database) -> Self {
        Self { store, database }
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::System")]
impl SystemApi {
    /// List slow queries
    ///
    /// Every statement that ran since the start, with what it cost, and the latest slow calls with the
    /// request or task that made them. Parameters are not shown unless the settings allow it. For
    /// admins.
    #[oai(
        path = "/system/slow-queries",
        method = "get",
        operation_id = "list_slow_queries"
    )]
    async fn slow_queries(
        &self,
        access: Access,
        /// `total`, `mean`, `p95`, `max`, `calls` or `slow` (number of slow calls); the largest first
        #[oai(default = "by_total")]
        sort: Query<String>,
        /// Whether to leave out statements that were never slow
        #[oai(default)]
        slow_only: Query<bool>,
        /// Rows of each list, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<i64>,
    ) -> Result<Body<SlowQueriesView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Admin, Scope::System)?;
        let statements = self.store.statements();
        let limit = usize::try_from(limit.0).unwrap_or_default();
        let mut items: Vec<StatementView> = statements
            .figures()
            .into_iter()
            .filter(|one| !slow_only.0 || one.slow_calls > 0)
            .map(StatementView::from)
            .collect();
        let of: fn(&StatementView) -> f64 = match sort.0.as_str() {
            "total" => |one| one.total_ms,
            "mean" => |one| one.mean_ms,
            "p95" => |one| one.p95_ms,
            "max" => |one| one.max_ms,
            "calls" => |one| one.calls as f64,
            "slow" => |one| one.slow_calls as f64,
            _ => {
                let reason = format!("must be one of {}", SORTS.join(", "));
                return Err(vec![FieldError::new("sort", reason)].into());
            }
        };
        items.sort_by(|a, b| of(b).total_cmp(&of(a)));
        items.truncate(limit);
        let mut recent = statements.recent();
        recent.truncate(limit);
        Ok(Body(SlowQueriesView {
            threshold_ms: self.database.slow_list_ms,
            log_threshold_ms: self.database.slow_log_ms,
            parameters_hidden: self.database.hide_parameters,
            calls: statements.calls(),
            items,
            recent: recent.into_iter().map(SlowCallView::from).collect(),
        }))
    }
}

fn by_total() -> String {
    "total".to_owned()
}

fn default_limit() -> i64 {
    50
}
