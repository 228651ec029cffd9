//! How popular products are: units ordered within the last day.
//!
//! Invariants: what is to change is found out beside the writer, which is then told of those products
//! alone, some at a time; a run that finds nothing new writes nothing.
//!
//! Orders count from the first one on. A popularity that came by import is a shop's history until its
//! own takes over: where it is higher it stays, until orders were made here before the window as well
//! as in it. And where nothing at all was ordered within the window, what stood stays: the order of
//! last week beats none.

use std::collections::HashMap;
use std::sync::Arc;

use super::sql;
use crate::clock::Timestamp;
use crate::config;
use crate::product::{self, ProductId};
use crate::store::{LongReads, Store, StoreError, Tx, Wanted};
use crate::task::{Handler, NoArgs, TaskContext, TaskFailure, TaskOutcome};

/// How far back an order made here shows that the shop has a history of its own, in windows.
const OWN_HISTORY_WINDOWS: i64 = 30;
/// Rows between two looks at whether the work is still wanted.
const ROWS_PER_LOOK: u32 = 4_096;

/// Brings the popularity of all products up to date.
pub struct UpdateProductPopularity {
    store: Store,
    reads: LongReads,
    rules: Arc<config::Products>,
}

impl UpdateProductPopularity {
    /// With what it reads from and writes to.
    pub fn new(store: Store, reads: LongReads, rules: Arc<config::Products>) -> Self {
        Self {
            store,
            reads,
            rules,
        }
    }
}

/// What is to become of the popularity of products.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// It stays as it is, for this reason.
    Keep(&'static str),
    /// These products get another.
    Change(Vec<(ProductId, i64)>),
}

impl Handler for UpdateProductPopularity {
    type Args = NoArgs;
    const NAME: &'static str = "update_product_popularity";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str = "Counts how many units of each product were ordered of late.";
    const MAX_ATTEMPTS: u32 = 3;

    async fn run(&self, context: TaskContext, _args: NoArgs) -> Result<TaskOutcome, TaskFailure> {
        let (now, rules) = (context.now(), Arc::clone(&self.rules));
        let looked = self
            .reads
            .read(move |tx, wanted| plan(tx, now, &rules, wanted));
        let plan = tokio::select! {
            plan = looked => plan?,
            () = context.cancelled() => return Err(TaskFailure::discard("it was cancelled")),
        };
        let wanted = match plan {
            Plan::Keep(why) => {
                return Ok(TaskOutcome::Done(Some(
                    serde_json::json!({"changed": 0, "kept": why}),
                )));
            }
            Plan::Change(wanted) => wanted,
        };
        let mut changed = 0;
        for part in wanted.chunks(self.rules.popularity_batch) {
            if context.is_cancelled() {
                return Err(TaskFailure::discard("it was cancelled"));
            }
            let part = part.to_vec();
            // Each in a write of its own, so that others get their turn in between.
            changed += self
                .store
                .write(move |tx| product::set_popularity(tx, &part))
                .await?;
        }
        Ok(TaskOutcome::Done(Some(
            serde_json::json!({"changed": changed}),
        )))
    }
}

/// Finds out which products' popularity is another by now.
fn plan(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Products,
    wanted: &Wanted,
) -> Result<Plan, StoreError> {
    let window = i64::try_from(rules.popularity_window_seconds).unwrap_or(i64::MAX);
    let since = now.plus_seconds(-window);
    let history = now.plus_seconds(-window.saturating_mul(OWN_HISTORY_WINDOWS));
    let has_whole_window = sql::any_own_order(tx, history, since)?;
    let mut rows = 0u32;
    let mut look = || {
        rows = rows.wrapping_add(1);
        if rows.is_multiple_of(ROWS_PER_LOOK) {
            wanted.check()
        } else {
            Ok(())
        }
    };
    let mut sold: HashMap<ProductId, i64> = HashMap::new();
    sql::each_ordered_since(tx, since, |id, quantity| {
        let units = sold.entry(id).or_default();
        *units = units.saturating_add(quantity);
        look()
    })?;
    if sold.is_empty() {
        return Ok(Plan::Keep("nothing was ordered within this window"));
    }
    let mut changes = Vec::new();
    let mut compare = |id, popularity, least| {
        let units = sold.remove(&id).unwrap_or(0).max(least);
        if units != popularity {
            changes.push((id, units));
        }
        look()
    };
    if has_whole_window {
        product::each_popular(tx, |id, popularity| compare(id, popularity, 0))?;
    } else {
        // Kept, never brought back: what the shop's own orders have replaced before is gone.
        product::each_popular_imported(tx, |id, popularity, imported| {
            compare(id, popularity, popularity.min(imported))
        })?;
    }
    changes.extend(sold);
    // Neighbours in the table together: fewer pages for each write.
    changes.sort_unstable();
    Ok(Plan::Change(changes))
}
