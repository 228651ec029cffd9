//! Orders: their lines, their states, what becomes of their units.
//!
//! ```text
//! pending_payment ──pay──▶ paid ──▶ processed ──▶ fulfilled
//!    │        │             └──cancel───┴─▶ refund_due
//!    │cancel  │expire                      ▲
//!    ▼        ▼                            │ late payment, no units left
//! cancelled  expired ──late payment────────┴─▶ paid (units taken again)
//! ```
//!
//! Invariants: an order and its units' movements commit together; every change of state is a
//! conditional update on the state before; whoever paid gets the units or is owed a refund, never
//! neither. What is absent: `order` does not know what a flash sale is, only that some units return
//! to one ([`ReleasedToSale`]).

pub mod api;
pub mod import;
mod letters;
mod sql;
pub mod tasks;

use std::collections::BTreeMap;

use crate::auth::UserId;
pub use crate::auth::idempotency::{self, Stored};
use crate::check::{Checks, FieldError};
use crate::clock::Timestamp;
use crate::config;
use crate::product::ProductId;
use crate::product::stock::{self, Movement, Reason, StockError};
use crate::store::{StoreError, Topic, Tx};
use crate::task::webhook::{EventKind, Events};
use crate::{id_type, word_type};

/// Touched, by row, by whatever changes the figures of a sale that an order's units come from.
pub const SALE_CHANGED: Topic = Topic::new(3);

id_type! {
    /// Key of an order.
    OrderId
}

word_type! {
    /// Where an order is in its life.
    OrderStatus {
        /// Its units are held until it is paid or expires.
        PendingPayment = "pending_payment",
        /// Paid, or made without a payment step.
        Paid = "paid",
        /// Taken over by the shop's processing.
        Processed = "processed",
        /// Delivered.
        Fulfilled = "fulfilled",
        /// Given up before it was paid.
        Cancelled = "cancelled",
        /// Not paid in time.
        Expired = "expired",
        /// Paid, but there is nothing to deliver: the money goes back.
        RefundDue = "refund_due",
    }
}

/// A line of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderItem {
    /// What.
    pub product_id: ProductId,
    /// How many.
    pub quantity: u32,
    /// Price of one in minor units.
    pub unit_amount: i64,
    /// Price of all.
    pub amount: i64,
}

/// An order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Key.
    pub id: OrderId,
    /// Whose.
    pub user_id: UserId,
    /// State.
    pub status: OrderStatus,
    /// Sum of its lines in minor units.
    pub total_amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// The sale that its units came from, if any.
    pub sale_id: Option<i64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it must be paid.
    pub expires_at: Option<Timestamp>,
    /// When it was paid.
    pub paid_at: Option<Timestamp>,
    /// When it was taken over by the shop's processing.
    pub processed_at: Option<Timestamp>,
    /// Its lines.
    pub items: Vec<OrderItem>,
}

/// An order whose units have been taken already.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// Whose.
    pub user_id: UserId,
    /// First state: pending or paid.
    pub status: OrderStatus,
    /// Sum of the lines.
    pub total_amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// The sale that the units came from.
    pub sale_id: Option<i64>,
    /// Until when it must be paid.
    pub expires_at: Option<Timestamp>,
}

/// What follows from what happens to an order, in the same transaction.
#[derive(Clone, Debug, Default)]
pub struct FollowUps {
    /// Whether a task processes an order once it is paid.
    pub process: bool,
    /// Whether customers get mails about their orders.
    pub mail: bool,
    /// Whoever wants to hear of it.
    pub events: Events,
}

/// Units that returned to an open sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleasedToSale {
    /// The sale.
    pub sale_id: i64,
    /// How many.
    pub quantity: u32,
}

/// Why something could not be done to an order.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Fields don't hold.
    #[error("the order is not valid")]
    Invalid(Vec<FieldError>),
    /// No such order, or another's.
    #[error("there is no order {0}")]
    NotFound(OrderId),
    /// Units are missing.
    #[error(transparent)]
    Stock(StockError),
    /// Two lines have different currencies.
    #[error("the products have different currencies; order them apart")]
    MixedCurrencies,
    /// The state does not allow it.
    #[error("the order is {}, which does not allow this", .0.word())]
    State(OrderStatus),
    /// The idempotency key was used for another request.
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<idempotency::KeyError> for OrderError {
    fn from(error: idempotency::KeyError) -> Self {
        match error {
            idempotency::KeyError::Reused => OrderError::KeyReused,
            idempotency::KeyError::Store(error) => OrderError::Store(error),
        }
    }
}

impl From<StockError> for OrderError {
    fn from(error: StockError) -> Self {
        match error {
            StockError::Store(error) => OrderError::Store(error),
            other => OrderError::Stock(other),
        }
    }
}

/// First state and end of the payment window of an order made now.
pub fn payment_terms(now: Timestamp, window_seconds: i64) -> (OrderStatus, Option<Timestamp>) {
    if window_seconds > 0 {
        (
            OrderStatus::PendingPayment,
            Some(now.plus_seconds(window_seconds)),
        )
    } else {
        (OrderStatus::Paid, None)
    }
}

/// Makes an order of products at their current prices.
pub fn create(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Orders,
    follow_ups: &FollowUps,
    user_id: UserId,
    lines: &[(ProductId, u32)],
) -> Result<Order, OrderError> {
    let mut checks = Checks::new();
    checks.range("items", lines.len(), 1, rules.lines_max);
    let mut wanted: BTreeMap<ProductId, u32> = BTreeMap::new();
    for (at, (product, quantity)) in lines.iter().enumerate().take(rules.lines_max) {
        let field = format!("items[{at}].quantity");
        checks.range(field.clone(), *quantity, 1, rules.quantity_max);
        let sum = wanted.entry(*product).or_default();
        *sum = sum.saturating_add(*quantity);
        checks.require(
            *sum <= rules.quantity_max,
            field,
            "the lines of this product add up to too much",
        );
    }
    checks.finish().map_err(OrderError::Invalid)?;
    let (mut items, mut currency, mut total) =
        (Vec::with_capacity(wanted.len()), None::<String>, 0i64);
    // In the order of their ids, so that two orders never wait for each other's rows.
    for (product_id, quantity) in wanted {
        let taken = stock::take(tx, product_id, quantity)?;
        if currency
            .as_ref()
            .is_some_and(|known| *known != taken.currency)
        {
            return Err(OrderError::MixedCurrencies);
        }
        let amount = taken.unit_amount.saturating_mul(i64::from(quantity));
        total = total.saturating_add(amount);
        currency = Some(taken.currency);
        items.push(OrderItem {
            product_id,
            quantity,
            unit_amount: taken.unit_amount,
            amount,
        });
    }
    fail::fail_point!("order.units_taken");
    let window = i64::try_from(rules.payment_window_seconds).unwrap_or(i64::MAX);
    let (status, expires_at) = payment_terms(now, window);
    let new = NewOrder {
        user_id,
        status,
        total_amount: total,
        currency: currency.unwrap_or_default(),
        sale_id: None,
        expires_at,
    };
    let reason = if status == OrderStatus::Paid {
        Reason::Sell
    } else {
        Reason::Hold
    };
    insert(tx, now, follow_ups, &new, items, reason)
}

/// Writes an order, its lines and their movements; the units have been taken by the caller.
pub fn insert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    new: &NewOrder,
    items: Vec<OrderItem>,
    reason: Reason,
) -> Result<Order, OrderError> {
    let id = sql::insert(tx, now, new)?;
    fail::fail_point!("order.row_written");
    for (line, item) in (1..).zip(&items) {
        sql::insert_item(tx, id, line, item)?;
        let movement = Movement {
            product_id: item.product_id,
            sale_id: new.sale_id,
            order_id: Some(id.0),
            reason,
            quantity: item.quantity,
        };
        stock::append(tx, now, &movement)?;
    }
    let order = Order {
        id,
        user_id: new.user_id,
        status: new.status,
        total_amount: new.total_amount,
        currency: new.currency.clone(),
        sale_id: new.sale_id,
        created_at: now,
        expires_at: new.expires_at,
        paid_at: (new.status == OrderStatus::Paid).then_some(now),
        processed_at: None,
        items,
    };
    tasks::follow(tx, now, follow_ups, &order, EventKind::OrderCreated)?;
    if order.status == OrderStatus::Paid {
        tasks::follow(tx, now, follow_ups, &order, EventKind::OrderPaid)?;
    }
    Ok(order)
}

/// One order; another's is as absent as none. `owner` is `None` for staff.
pub fn get(tx: &mut Tx<'_>, id: OrderId, owner: Option<UserId>) -> Result<Order, OrderError> {
    let mut order = sql::get(tx, id)?
        .filter(|order| owner.is_none_or(|owner| owner == order.user_id))
        .ok_or(OrderError::NotFound(id))?;
    order.items = sql::items(tx, id)?;
    Ok(order)
}

/// Which orders to list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only this user's.
    pub user_id: Option<UserId>,
    /// Only these.
    pub status: Option<OrderStatus>,
    /// Ids below this.
    pub before: i64,
    /// At most so many.
    pub limit: i64,
}

/// Orders with their lines, newest first.
pub fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<Order>, OrderError> {
    Ok(sql::list(tx, filter)?)
}

/// Gives an order up. Its units return to where they came from; what was paid is due back.
pub fn cancel(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    id: OrderId,
    owner: Option<UserId>,
) -> Result<(Order, Vec<ReleasedToSale>), OrderError> {
    let order = get(tx, id, owner)?;
    let (was_held, to) = match order.status {
        OrderStatus::PendingPayment => (true, OrderStatus::Cancelled),
        // Processing takes a moment; until it is delivered, its buyer may think again.
        OrderStatus::Paid | OrderStatus::Processed => (false, OrderStatus::RefundDue),
        OrderStatus::Fulfilled
        | OrderStatus::Cancelled
        | OrderStatus::Expired
        | OrderStatus::RefundDue => return Err(OrderError::State(order.status)),
    };
    if !sql::shift(tx, now, id, order.status, to)? {
        return Err(OrderError::State(order.status));
    }
    let released = release(tx, now, &order, was_held)?;
    let order = get(tx, id, None)?;
    let what = match was_held {
        true => EventKind::OrderCancelled,
        false => EventKind::OrderRefundDue,
    };
    tasks::follow(tx, now, follow_ups, &order, what)?;
    Ok((order, released))
}

/// Returns an order's units to its sale while that is open, else to the free stock.
fn release(
    tx: &mut Tx<'_>,
    now: Timestamp,
    order: &Order,
    was_held: bool,
) -> Result<Vec<ReleasedToSale>, OrderError> {
    let mut released = Vec::new();
    for item in &order.items {
        let back = match order.sale_id {
            Some(sale) => sql::back_to_sale(tx, sale, item.quantity, was_held)?,
            None => None,
        };
        let reason = match (back, was_held) {
            (Some(_), true) => Reason::ReleaseToSale,
            (Some(_), false) => Reason::RefundToSale,
            (None, true) => Reason::Release,
            (None, false) => Reason::Refund,
        };
        match (back, order.sale_id) {
            (Some(units), _) => released.push(units),
            (None, sale) => {
                if let Some(sale) = sale {
                    sql::returned_from_sale(tx, sale, item.quantity, was_held)?;
                }
                stock::give_back(tx, item.product_id, item.quantity)?;
            }
        }
        let movement = Movement {
            product_id: item.product_id,
            sale_id: order.sale_id,
            order_id: Some(order.id.0),
            reason,
            quantity: item.quantity,
        };
        stock::append(tx, now, &movement)?;
    }
    Ok(released)
}

/// Notes a payment. Paid twice is paid once; paid too late takes the units again or is due back.
pub fn pay(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    id: OrderId,
    owner: Option<UserId>,
) -> Result<Order, OrderError> {
    let order = get(tx, id, owner)?;
    match order.status {
        OrderStatus::PendingPayment => {
            if !sql::shift(tx, now, id, OrderStatus::PendingPayment, OrderStatus::Paid)? {
                return Err(OrderError::State(order.status));
            }
            for item in &order.items {
                if let Some(sale) = order.sale_id {
                    sql::held_to_sold(tx, sale, item.quantity)?;
                }
                let movement = Movement {
                    product_id: item.product_id,
                    sale_id: order.sale_id,
                    order_id: Some(id.0),
                    reason: Reason::Pay,
                    quantity: item.quantity,
                };
                stock::append(tx, now, &movement)?;
            }
        }
        OrderStatus::Expired => pay_late(tx, now, &order)?,
        OrderStatus::Paid
        | OrderStatus::Processed
        | OrderStatus::Fulfilled
        | OrderStatus::RefundDue => {}
        OrderStatus::Cancelled => return Err(OrderError::State(order.status)),
    }
    let paid = get(tx, id, None)?;
    if paid.status != order.status {
        let what = match paid.status {
            OrderStatus::RefundDue => EventKind::OrderRefundDue,
            _ => EventKind::OrderPaid,
        };
        tasks::follow(tx, now, follow_ups, &paid, what)?;
    }
    Ok(paid)
}

fn pay_late(tx: &mut Tx<'_>, now: Timestamp, order: &Order) -> Result<(), OrderError> {
    let mut taken = Vec::new();
    for item in &order.items {
        match stock::take(tx, item.product_id, item.quantity) {
            Ok(_) => taken.push(item),
            Err(StockError::Store(error)) => return Err(error.into()),
            Err(StockError::NotFound(_) | StockError::Insufficient { .. }) => break,
        }
    }
    let complete = taken.len() == order.items.len();
    let to = if complete {
        OrderStatus::Paid
    } else {
        OrderStatus::RefundDue
    };
    if !sql::shift(tx, now, order.id, OrderStatus::Expired, to)? {
        return Err(OrderError::State(order.status));
    }
    if complete && order.sale_id.is_some() {
        sql::leave_sale(tx, order.id)?;
    }
    for item in taken {
        if !complete {
            stock::give_back(tx, item.product_id, item.quantity)?;
            continue;
        }
        let movement = Movement {
            product_id: item.product_id,
            sale_id: None,
            order_id: Some(order.id.0),
            reason: Reason::Sell,
            quantity: item.quantity,
        };
        stock::append(tx, now, &movement)?;
    }
    Ok(())
}

/// Whether any order waits to be expired: a look that costs no write.
pub fn any_due(tx: &mut Tx<'_>, now: Timestamp) -> Result<bool, StoreError> {
    Ok(!sql::due(tx, now, 1)?.is_empty())
}

/// Expires orders that were not paid in time, at most `batch`; answers how many, and what returned.
pub fn expire_due(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    batch: u32,
) -> Result<(usize, Vec<ReleasedToSale>), OrderError> {
    let due = sql::due(tx, now, batch)?;
    let mut released = Vec::new();
    for id in &due {
        let mut order = get(tx, *id, None)?;
        if sql::shift(
            tx,
            now,
            *id,
            OrderStatus::PendingPayment,
            OrderStatus::Expired,
        )? {
            fail::fail_point!("order.expired");
            released.extend(release(tx, now, &order, true)?);
            order.status = OrderStatus::Expired;
            tasks::follow(tx, now, follow_ups, &order, EventKind::OrderExpired)?;
        }
    }
    Ok((due.len(), released))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Auth, Database};
    use crate::monitor::Metrics;
    use crate::product::{NewProduct, create as create_product};
    use crate::store::Store;

    const START: Timestamp = Timestamp(1_000_000_000);

    /// Every way through the states, with the ledger checked after each step.
    #[test]
    fn units_follow_the_order_through_every_state() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        let cheap = Auth {
            argon2_memory_kib: 8,
            ..Auth::default()
        };
        let account =
            crate::auth::NewAccount::checked("a@b.co", "A", "long enough", &cheap).expect("valid");
        let user = store
            .write_blocking(move |tx| {
                crate::auth::create_account(tx, START, &account, crate::auth::Role::Customer)
            })
            .expect("user");
        let product = NewProduct {
            sku: None,
            name: "Mug".to_owned(),
            description: String::new(),
            category: String::new(),
            unit_amount: 700,
            currency: "CNY".to_owned(),
            stock: 10,
            popularity: 0,
        };
        let product = store
            .write_blocking(move |tx| create_product(tx, START, &product))
            .expect("product");
        let stock_is = |expected: i64, step: &str| {
            let free = store
                .read_blocking(|tx| crate::product::get(tx, product))
                .expect("product")
                .stock;
            assert_eq!(free, expected, "{step}");
            let verdict = store
                .read_blocking::<_, StoreError>(|tx| stock::verify(tx, |_| Ok(())))
                .expect("verify");
            assert_eq!(verdict.problems, Vec::<String>::new(), "{step}");
        };
        let place = |lines: Vec<(ProductId, u32)>| {
            store.write_blocking(move |tx| {
                create(
                    tx,
                    START,
                    &config::Orders::default(),
                    &FollowUps::default(),
                    user,
                    &lines,
                )
            })
        };
        let late = START.plus_seconds(901);

        let order = place(vec![(product, 1), (product, 2)]).expect("order");
        assert_eq!(
            (order.total_amount, order.items.len()),
            (2_100, 1),
            "two lines of one product are summed"
        );
        stock_is(7, "ordered");
        assert!(matches!(
            place(vec![(product, 8)]),
            Err(OrderError::Stock(_))
        ));
        assert!(matches!(
            place(vec![(product, 0)]),
            Err(OrderError::Invalid(_))
        ));
        stock_is(7, "refused");
        let id = order.id;
        for _ in 0..2 {
            let paid = store
                .write_blocking(move |tx| pay(tx, START, &FollowUps::default(), id, Some(user)))
                .expect("pay");
            assert_eq!(paid.status, OrderStatus::Paid);
            stock_is(7, "paid");
        }
        let (back, _) = store
            .write_blocking(move |tx| cancel(tx, START, &FollowUps::default(), id, Some(user)))
            .expect("cancel");
        assert_eq!(back.status, OrderStatus::RefundDue);
        stock_is(10, "paid and cancelled");

        let id = place(vec![(product, 6)]).expect("order").id;
        let expire = || {
            store
                .write_blocking(move |tx| expire_due(tx, late, &FollowUps::default(), 10))
                .expect("expire")
                .0
        };
        assert_eq!((expire(), expire()), (1, 0));
        stock_is(10, "expired");
        let paid = store
            .write_blocking(move |tx| pay(tx, late, &FollowUps::default(), id, None))
            .expect("late payment");
        assert_eq!(paid.status, OrderStatus::Paid);
        stock_is(4, "paid late, units taken again");

        let id = place(vec![(product, 4)]).expect("order").id;
        assert_eq!(expire(), 1);
        place(vec![(product, 1)]).expect("another buyer");
        let paid = store
            .write_blocking(move |tx| pay(tx, late, &FollowUps::default(), id, None))
            .expect("late payment");
        assert_eq!(paid.status, OrderStatus::RefundDue);
        stock_is(3, "paid late, units gone");
        let other = UserId(user.0 + 1);
        let foreign = store.write_blocking(move |tx| {
            cancel(tx, late, &FollowUps::default(), id, Some(other)).map(|_| ())
        });
        assert!(
            matches!(foreign, Err(OrderError::NotFound(_))),
            "another's order is as absent as none"
        );
    }
}
