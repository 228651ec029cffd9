//! What is done for the stock ledger now and then.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::stock;
use crate::config;
use crate::monitor::Metrics;
use crate::store::{Store, StoreError};
use crate::task::{Handler, Outcome, TaskContext, TaskFailure};

/// Checks the stock ledger against the tables, for the gauges and the log.
pub struct VerifyStock {
    database: PathBuf,
    settings: config::Database,
    metrics: Metrics,
}

impl VerifyStock {
    /// Of this database.
    pub fn new(database: PathBuf, settings: config::Database, metrics: Metrics) -> Self {
        Self {
            database,
            settings,
            metrics,
        }
    }
}

/// It needs to be told nothing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyStockArgs {}

/// Stops the reading thread when the run is dropped: at its time limit, or because the process stops.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Handler for VerifyStock {
    type Args = VerifyStockArgs;
    const NAME: &'static str = "verify_stock";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str = "Checks the stock ledger, row by row, against stock and orders.";
    // The next time it is due is soon enough.
    const MAX_ATTEMPTS: u32 = 3;
    const TIMEOUT_MS: i64 = 3_600_000;

    async fn run(
        &self,
        context: TaskContext,
        _args: VerifyStockArgs,
    ) -> Result<Outcome, TaskFailure> {
        let stop = StopOnDrop(Arc::default());
        let (database, settings) = (self.database.clone(), self.settings.clone());
        let stopped = Arc::clone(&stop.0);
        // On a connection of its own: a large ledger takes longer than a request may.
        let checking = tokio::task::spawn_blocking(move || {
            Store::read_alone(&database, &settings, |tx| {
                stock::verify(tx, |_| match stopped.load(Ordering::Acquire) {
                    true => Err(StoreError::Stopped),
                    false => Ok(()),
                })
            })
        });
        let verdict = tokio::select! {
            checked = checking => {
                checked.map_err(|error| TaskFailure::retry(error.to_string()))??
            }
            () = context.cancelled() => return Err(TaskFailure::discard("cancelled")),
        };
        self.metrics
            .set_stock_verdict(verdict.drift_units, verdict.problems_total);
        for problem in &verdict.problems {
            tracing::error!(problem, "the stock ledger does not add up");
        }
        Ok(Outcome::Done(Some(serde_json::json!({
            "products": verdict.products, "movements": verdict.movements,
            "drift_units": verdict.drift_units, "problems": verdict.problems,
        }))))
    }
}
