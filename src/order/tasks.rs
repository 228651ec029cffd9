//! What is done with an order after the customer has gone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::events::Happened;
use super::letters::{self, About};
use super::{FollowUps, Order, OrderError, OrderId, OrderStatus, sql};
use crate::auth;
use crate::clock::Timestamp;
use crate::mail::{MAIL_ATTEMPTS, MAIL_TIMEOUT_MS, Mailer};
use crate::product::{self, ProductError};
use crate::store::{Store, StoreError, Tx};
use crate::task::{
    self, Effect, Handler, NewTask, TaskContext, TaskError, TaskFailure, TaskOutcome,
};

/// Takes a paid order over into the shop's processing: checks that its lines add up, and sets
/// `processed` and `processed_at` in the transaction that completes the task.
pub struct ProcessOrder {
    follow_ups: FollowUps,
}

impl ProcessOrder {
    /// With what follows from it.
    pub fn new(follow_ups: FollowUps) -> Self {
        Self { follow_ups }
    }
}

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

    fn effect(&self, args: ProcessOrderArgs) -> Option<Effect> {
        let follow_ups = self.follow_ups.clone();
        Some(Box::new(move |tx, now| {
            process(tx, now, &follow_ups, OrderId(args.order_id))
        }))
    }
}

/// What follows from what happened to an order: webhooks that want it are told, a paid order is processed, the
/// customer gets a mail. All of it commits with what happened, or none.
pub(super) fn follow(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    order: &Order,
    what: Happened,
) -> Result<(), StoreError> {
    follow_all(tx, now, follow_ups, std::slice::from_ref(order), what)
}

/// [`follow`] of many orders to which the same has happened.
pub(super) fn follow_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    orders: &[Order],
    what: Happened,
) -> Result<(), StoreError> {
    let described = orders.iter().map(letters::described);
    follow_ups
        .events
        .emit_all(tx, now, what.event(), described)?;
    let tasks = orders
        .iter()
        .filter_map(|order| task_after(follow_ups, order, what))
        .collect::<Result<Vec<NewTask>, StoreError>>()?;
    enqueue_all(tx, now, &tasks)
}

/// The task that follows from what happened to an order, if one does.
fn task_after(
    follow_ups: &FollowUps,
    order: &Order,
    what: Happened,
) -> Option<Result<NewTask, StoreError>> {
    let id = order.id;
    if what == Happened::Paid && follow_ups.process {
        // The mail comes from there: a claim is paid for with one task, not two.
        return Some(NewTask::of::<ProcessOrder>(&ProcessOrderArgs {
            order_id: id.0,
        }));
    }
    let about = match what {
        Happened::Created if order.status == OrderStatus::PendingPayment => About::Placed,
        Happened::Paid => About::Paid,
        Happened::Cancelled => About::Cancelled,
        Happened::Expired => About::Expired,
        Happened::RefundDue => About::RefundDue,
        // There is nothing to write to a customer about.
        Happened::Created | Happened::Processed => return None,
    };
    letter(follow_ups, id, about)
}

fn letter(
    follow_ups: &FollowUps,
    id: OrderId,
    about: About,
) -> Option<Result<NewTask, StoreError>> {
    let args = SendOrderEmailArgs {
        order_id: id.0,
        about,
    };
    follow_ups
        .mail
        .then(|| NewTask::of::<SendOrderEmail>(&args))
}

fn write_to_customer(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    id: OrderId,
    about: About,
) -> Result<(), StoreError> {
    match letter(follow_ups, id, about) {
        Some(task) => enqueue_all(tx, now, &[task?]),
        None => Ok(()),
    }
}

fn enqueue_all(tx: &mut Tx<'_>, now: Timestamp, tasks: &[NewTask]) -> Result<(), StoreError> {
    task::enqueue_all(tx, now, tasks).map_err(|error| match error {
        TaskError::Store(error) => error,
        other => StoreError::Bug(other.to_string()),
    })?;
    Ok(())
}

fn process(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    id: OrderId,
) -> Result<Option<serde_json::Value>, TaskFailure> {
    let mut order = super::get(tx, id, None).map_err(|error| match error {
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
            (order.status, order.processed_at) = (OrderStatus::Processed, Some(now));
            follow(tx, now, follow_ups, &order, Happened::Processed)?;
            write_to_customer(tx, now, follow_ups, id, About::Paid)?;
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

/// Writes to a customer about an order, unless it is no longer true.
pub struct SendOrderEmail {
    store: Store,
    mailer: Mailer,
}

impl SendOrderEmail {
    /// With what it needs.
    pub fn new(store: Store, mailer: Mailer) -> Self {
        Self { store, mailer }
    }
}

/// About which order, and what.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendOrderEmailArgs {
    /// Key of the order.
    pub order_id: i64,
    /// `placed`, `paid`, `cancelled`, `expired` or `refund_due`.
    pub about: About,
}

impl Handler for SendOrderEmail {
    type Args = SendOrderEmailArgs;
    const NAME: &'static str = "send_order_email";
    const QUEUE: &'static str = "mail";
    const ABOUT: &'static str = "Writes to a customer about an order.";
    const MAX_ATTEMPTS: u32 = MAIL_ATTEMPTS;
    const TIMEOUT_MS: i64 = MAIL_TIMEOUT_MS;

    async fn run(
        &self,
        context: TaskContext,
        args: SendOrderEmailArgs,
    ) -> Result<TaskOutcome, TaskFailure> {
        let id = OrderId(args.order_id);
        let found = self
            .store
            .read(move |tx| {
                let order = super::get(tx, id, None)?;
                let recipient = auth::recipient(tx, order.user_id)?;
                let mut names = Vec::new();
                for item in order.items.iter().take(letters::LINES_SHOWN) {
                    names.push(match product::get(tx, item.product_id) {
                        Ok(product) => product.name,
                        Err(ProductError::Store(error)) => return Err(error.into()),
                        Err(_) => format!("# {}", item.product_id),
                    });
                }
                Ok::<_, OrderError>((order, recipient, names))
            })
            .await;
        let skipped = |why: &str| Ok(TaskOutcome::Done(Some(json!({"skipped": why}))));
        let (order, recipient, names) = match found {
            Ok(found) => found,
            Err(OrderError::NotFound(_)) => return skipped("there is no such order"),
            Err(error) => return Err(TaskFailure::retry(error.to_string())),
        };
        let Some(recipient) = recipient else {
            return skipped("the customer has no address");
        };
        if !args.about.holds(order.status) {
            return skipped("it is no longer true");
        }
        let letter = letters::write(
            self.mailer.language(&recipient),
            self.mailer.shop_name(),
            recipient.name.as_deref(),
            args.about,
            &order,
            &names,
        );
        let sent = self
            .mailer
            .send(context.id(), context.now(), &recipient, &letter)
            .await?;
        Ok(TaskOutcome::Done(Some(sent)))
    }
}
