//! What is done with an order after the customer has gone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OrderError, OrderId, OrderStatus, sql};
use crate::clock::Timestamp;
use crate::store::{StoreError, Tx};
use crate::task::{self, Handler, NewTask, Outcome, TaskContext, TaskError, TaskFailure};

/// Takes a paid order over into the shop's processing: checks that its lines add up, and sets
/// `processed` and `processed_at` in the transaction that completes the task.
pub struct ProcessOrder;

/// Which order.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessOrderArgs {
    /// Key of the order.
    pub order_id: i64,
}

impl Handler for ProcessOrder {
    type Args = ProcessOrderArgs;
    const NAME: &'static str = "process_order";
    const QUEUE: &'static str = "orders";
    const ABOUT: &'static str = "Checks a paid order and sets it to `processed`.";
    const TIMEOUT_MS: i64 = 30_000;

    async fn run(
        &self,
        _context: TaskContext,
        args: ProcessOrderArgs,
    ) -> Result<Outcome, TaskFailure> {
        Ok(Outcome::commit(move |tx, now| {
            process(tx, now, OrderId(args.order_id))
        }))
    }
}

/// Enqueues the processing of an order that was paid, in the transaction that notes the payment.
pub(super) fn enqueue_processing(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: OrderId,
) -> Result<(), StoreError> {
    let task = NewTask::of::<ProcessOrder>(&ProcessOrderArgs { order_id: id.0 })?;
    task::enqueue(tx, now, &task).map_err(|error| match error {
        TaskError::Store(error) => error,
        other => StoreError::Bug(other.to_string()),
    })?;
    Ok(())
}

fn process(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: OrderId,
) -> Result<Option<serde_json::Value>, TaskFailure> {
    let order = super::get(tx, id, None).map_err(|error| match error {
        OrderError::Store(error) => error.into(),
        other => TaskFailure::discard(other.to_string()),
    })?;
    let state = match order.status {
        OrderStatus::Paid => {
            let sum: i64 = order.items.iter().map(|item| item.amount).sum();
            let lines_hold = order.items.iter().all(|item| {
                i64::from(item.quantity).checked_mul(item.unit_amount) == Some(item.amount)
            });
            if order.items.is_empty() || !lines_hold || sum != order.total_amount {
                return Err(TaskFailure::discard(format!(
                    "order {id} does not add up: its lines are {sum}, its total is {}",
                    order.total_amount
                )));
            }
            if !sql::shift(tx, now, id, OrderStatus::Paid, OrderStatus::Processed)? {
                return Err(TaskFailure::retry("the order changed meanwhile"));
            }
            OrderStatus::Processed
        }
        OrderStatus::PendingPayment => {
            return Err(TaskFailure::discard(format!("order {id} is not paid")));
        }
        // Processed before, or given up since: there is nothing left to do.
        OrderStatus::Processed
        | OrderStatus::Fulfilled
        | OrderStatus::Cancelled
        | OrderStatus::Expired
        | OrderStatus::RefundDue => order.status,
    };
    Ok(Some(serde_json::json!({"state": state.word()})))
}
