//! Whether the stock ledger adds up with where the units are: free, set aside for sales, in orders.

use std::collections::BTreeMap;

use super::sql;
use crate::allotment;
use crate::monitor::Metrics;
use crate::product::ProductId;
use crate::product::stock::{self, Bound, Verdict};
use crate::store::{LongReads, StoreError, Tx};
use crate::task::{Handler, NoArgs, TaskContext, TaskFailure, TaskOutcome};

/// [`stock::verify`] with what sales and orders have.
pub fn verify(
    tx: &mut Tx<'_>,
    progress: impl FnMut(u64) -> Result<(), StoreError>,
) -> Result<Verdict, StoreError> {
    let mut bound: BTreeMap<ProductId, Bound> = BTreeMap::new();
    allotment::each_allotted(tx, |product, units| {
        bound.entry(product).or_default().allotted = units;
    })?;
    sql::each_ordered(tx, |product, held, sold| {
        let entry = bound.entry(product).or_default();
        entry.held = held;
        entry.sold = sold;
    })?;
    stock::verify(tx, &bound, progress)
}

/// Checks the stock ledger against the tables, for the gauges and the log.
pub struct VerifyStock {
    reads: LongReads,
    metrics: Metrics,
}

impl VerifyStock {
    /// With what it reads from, and the gauges that tell of it.
    pub fn new(reads: LongReads, metrics: Metrics) -> Self {
        Self { reads, metrics }
    }
}

impl Handler for VerifyStock {
    type Args = NoArgs;
    const NAME: &'static str = "verify_stock";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str = "Checks the stock ledger, row by row, against stock and orders.";
    // The next time it is due is soon enough.
    const MAX_ATTEMPTS: u32 = 3;
    const TIMEOUT_MS: i64 = 3_600_000;

    async fn run(&self, context: TaskContext, _args: NoArgs) -> Result<TaskOutcome, TaskFailure> {
        let checking = self.reads.read(|tx, wanted| verify(tx, |_| wanted.check()));
        let verdict = tokio::select! {
            checked = checking => checked?,
            () = context.cancelled() => return Err(TaskFailure::discard("it was cancelled")),
        };
        self.metrics
            .set_stock_verdict(verdict.drift_units, verdict.problems_total);
        for problem in &verdict.problems {
            tracing::error!(problem, "the stock ledger does not add up");
        }
        Ok(TaskOutcome::Done(Some(serde_json::json!({
            "products": verdict.products, "movements": verdict.movements,
            "drift_units": verdict.drift_units, "problems": verdict.problems,
        }))))
    }
}
