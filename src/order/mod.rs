//! Orders: their lines, their states, what becomes of their units.
//!
//! ```text
//! pending_payment ──pay──▶ paid ──▶ processed ──▶ fulfilled
//!    │        │              └──cancel──┴──▶ refund_due
//!    │cancel  │expire                          ▲  ▲
//!    │        ▼                                │  │
//!    │      expired ──paid late, no units──────┘  │
//!    │        └───────paid late, units taken again──▶ paid
//!    ▼                                            │
//! cancelled ──paid all the same───────────────────┘
//! ```
//!
//! Invariants: an order and its units' movements commit together; every change of state is a
//! conditional update on the state before; a buyer who paid gets the units or is owed a refund, never
//! neither; a late payment takes units only from where they were and by the terms under which they
//! were first taken, so it is no way round the limits of a sale; what a customer holds without having
//! paid is bounded by the settings, in orders and in units of each product, and counted in the transaction
//! that takes more (claims are bounded by their sale instead). What is absent: `order` does not
//! decide about flash sales; it moves its orders' units back to what is set aside for one
//! ([`crate::allotment`]) and asks of a room above whether a buyer may have more ([`WithinLimit`]).

pub mod api;
pub mod audit;
pub mod events;
pub mod import;
mod letters;
pub mod pace;
pub mod popularity;
mod sql;
pub mod tasks;

use std::collections::BTreeMap;

use crate::allotment::{self, SALE_ROWS, SaleId, SaleUnits, TakenAgain};
pub use crate::auth::idempotency::{self, Stored};
use crate::auth::{USER_ROWS, UserId};
use crate::check::{Checks, FieldError};
use crate::clock::Timestamp;
use crate::config;
use crate::product::stock::{self, Movement, Reason, StockError};
use crate::product::{PRODUCT_ROWS, ProductId};
use crate::store::{LockOrder, StoreError, Tx};
use crate::webhook::Events;
use crate::{id_type, word_type};
use events::Happened;

/// Rows of orders, which are locked before any other.
pub(crate) const ORDER_ROWS: LockOrder = LockOrder::new(1, "orders");

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
    /// The product.
    pub product_id: ProductId,
    /// Units, at least 1.
    pub quantity: u32,
    /// Price of one unit in minor units.
    pub unit_amount: i64,
    /// Price of all units.
    pub amount: i64,
}

/// An order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Key of its row.
    pub id: OrderId,
    /// The buyer's account.
    pub user_id: UserId,
    /// Where it is in its life.
    pub status: OrderStatus,
    /// Sum of its lines in minor units.
    pub total_amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// The sale that its units came from, if any.
    pub sale_id: Option<SaleId>,
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
    /// The buyer's account.
    pub user_id: UserId,
    /// First state: pending or paid.
    pub status: OrderStatus,
    /// Sum of the lines.
    pub total_amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// The sale that the units came from.
    pub sale_id: Option<SaleId>,
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
    /// Where webhooks are told of it.
    pub events: Events,
}

impl FollowUps {
    /// The last unit of a sale that could be claimed is gone.
    pub fn sale_sold_out(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        sale_id: SaleId,
        product_id: ProductId,
    ) -> Result<(), StoreError> {
        self.events.emit(
            tx,
            now,
            &events::SALE_SOLD_OUT,
            || serde_json::json!({"sale_id": sale_id, "product_id": product_id}),
        )
    }
}

/// A caller who places an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buyer {
    /// The account that the order is for.
    pub user_id: UserId,
    /// Whether it is staff, whom the limits of what is unpaid don't hold for: they may count the stock
    /// anyhow.
    pub is_staff: bool,
}

/// A line of an order that waits for payment.
struct UnpaidLine {
    order_id: OrderId,
    expires_at: Timestamp,
    product_id: ProductId,
    quantity: i64,
}

/// Why a customer gets nothing more on credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpaid {
    /// As many orders wait for payment as may.
    Orders {
        /// How many may.
        limit: u32,
    },
    /// The line would hold more units of its product, together with those of orders that wait for payment.
    Units {
        /// Its place among those asked for.
        line: usize,
        /// How many units may be held.
        limit: u32,
        /// How many are held by other orders.
        held: i64,
    },
}

/// Why something could not be done to an order.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Fields don't hold.
    #[error("the order is not valid")]
    Invalid(Vec<FieldError>),
    /// The customer has not paid for what was ordered before.
    #[error("orders of yours wait for payment; pay or cancel one first")]
    Unpaid {
        /// Which limit was met.
        what: Unpaid,
        /// Until the first of them expires.
        seconds: u64,
    },
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

/// First state and end of the payment window of an order made now. An order of nothing has no
/// payment step: no provider confirms a payment of 0.
pub fn payment_terms(
    now: Timestamp,
    window_seconds: i64,
    total_amount: i64,
) -> (OrderStatus, Option<Timestamp>) {
    if window_seconds > 0 && total_amount > 0 {
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
    buyer: Buyer,
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
    let (status, expires_at) = payment_terms(now, window, total);
    if status == OrderStatus::PendingPayment && !buyer.is_staff {
        check_unpaid(tx, now, rules, buyer.user_id, lines, &items)?;
    }
    let new = NewOrder {
        user_id: buyer.user_id,
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

/// Refuses an order that its buyer would hold too much by.
fn check_unpaid(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Orders,
    user_id: UserId,
    lines: &[(ProductId, u32)],
    items: &[OrderItem],
) -> Result<(), OrderError> {
    let line_of = |product: ProductId| lines.iter().position(|(known, _)| *known == product);
    let units_max = match rules.unpaid_units_max {
        0 => u32::MAX,
        limit => limit,
    };
    if let Some(item) = items.iter().find(|item| item.quantity > units_max) {
        // No payment and no time would help.
        let field = format!("items[{}].quantity", line_of(item.product_id).unwrap_or(0));
        let reason = format!("an unpaid order may hold at most {units_max} units of a product");
        return Err(OrderError::Invalid(vec![FieldError::new(field, reason)]));
    }
    if rules.unpaid_orders_max == 0 && rules.unpaid_units_max == 0 {
        return Ok(());
    }
    // Two orders of one buyer are counted one after the other.
    tx.lock(USER_ROWS, [user_id])?;
    let mut unpaid = sql::unpaid_lines(tx, user_id)?;
    let refused = |what, expires_at: Timestamp| {
        let micros = expires_at.micros_since(now).max(1);
        Err(OrderError::Unpaid {
            what,
            seconds: u64::try_from(micros).unwrap_or(1).div_ceil(1_000_000),
        })
    };
    let expiry = |lines: &mut dyn Iterator<Item = &UnpaidLine>| {
        lines.map(|line| line.expires_at).min().unwrap_or(now)
    };
    let orders = unpaid.chunk_by(|line, next| line.order_id == next.order_id);
    if rules.unpaid_orders_max != 0 && orders.count() >= rules.unpaid_orders_max as usize {
        let limit = rules.unpaid_orders_max;
        return refused(Unpaid::Orders { limit }, expiry(&mut unpaid.iter()));
    }
    if rules.unpaid_units_max == 0 {
        return Ok(());
    }
    unpaid.sort_by_key(|line| line.product_id);
    for lines in unpaid.chunk_by(|line, next| line.product_id == next.product_id) {
        let product = lines[0].product_id;
        let Some(item) = items.iter().find(|item| item.product_id == product) else {
            continue;
        };
        let held = lines
            .iter()
            .fold(0i64, |sum, line| sum.saturating_add(line.quantity));
        if held.saturating_add(i64::from(item.quantity)) > i64::from(units_max) {
            let what = Unpaid::Units {
                line: line_of(product).unwrap_or(0),
                limit: units_max,
                held,
            };
            return refused(what, expiry(&mut lines.iter()));
        }
    }
    Ok(())
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
    sql::insert_items(tx, (1..).zip(&items).map(|(line, item)| (id, line, item)))?;
    for item in &items {
        let movement = Movement {
            product_id: item.product_id,
            sale_id: new.sale_id,
            order_id: Some(id.0),
            reason,
            quantity: item.quantity,
        };
        stock::append(tx, now, &movement)?;
    }
    let order = new.clone().made(id, now, items);
    tasks::follow(tx, now, follow_ups, &order, Happened::Created)?;
    if order.status == OrderStatus::Paid {
        tasks::follow(tx, now, follow_ups, &order, Happened::Paid)?;
    }
    Ok(order)
}

/// [`insert`] of many orders of one product with one line each, all paid or none, with a number of statements
/// that does not grow with theirs. Answers their keys in the order of `new`.
pub fn insert_all(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    product_id: ProductId,
    new: Vec<(Timestamp, NewOrder, OrderItem)>,
    reason: Reason,
) -> Result<Vec<OrderId>, OrderError> {
    let ids = sql::insert_all(tx, new.iter().map(|(at, new, _)| (*at, new)))?;
    fail::fail_point!("order.row_written");
    let lines = ids.iter().zip(&new);
    sql::insert_items(tx, lines.map(|(id, (.., item))| (*id, 1, item)))?;
    let movement = |(id, (at, new, item)): (&OrderId, &(Timestamp, NewOrder, OrderItem))| {
        let movement = Movement {
            product_id,
            sale_id: new.sale_id,
            order_id: Some(id.0),
            reason,
            quantity: item.quantity,
        };
        (*at, movement)
    };
    let movements: Vec<(Timestamp, Movement)> = ids.iter().zip(&new).map(movement).collect();
    stock::append_all(tx, product_id, &movements)?;
    let orders: Vec<Order> = ids
        .iter()
        .zip(new)
        .map(|(id, (at, new, item))| new.made(*id, at, vec![item]))
        .collect();
    tasks::follow_all(tx, now, follow_ups, &orders, Happened::Created)?;
    if orders
        .first()
        .is_some_and(|order| order.status == OrderStatus::Paid)
    {
        tasks::follow_all(tx, now, follow_ups, &orders, Happened::Paid)?;
    }
    Ok(ids)
}

impl NewOrder {
    /// The order that it has become.
    fn made(self, id: OrderId, now: Timestamp, items: Vec<OrderItem>) -> Order {
        Order {
            id,
            user_id: self.user_id,
            status: self.status,
            total_amount: self.total_amount,
            currency: self.currency,
            sale_id: self.sale_id,
            created_at: now,
            expires_at: self.expires_at,
            paid_at: (self.status == OrderStatus::Paid).then_some(now),
            processed_at: None,
            items,
        }
    }
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
) -> Result<(Order, Vec<SaleUnits>), OrderError> {
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
        true => Happened::Cancelled,
        false => Happened::RefundDue,
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
) -> Result<Vec<SaleUnits>, OrderError> {
    let mut released = Vec::new();
    for item in &order.items {
        let back_to_sale = match order.sale_id {
            Some(sale) => allotment::give_back(tx, sale, item.quantity, was_held)?,
            None => false,
        };
        let reason = match (back_to_sale, was_held) {
            (true, true) => Reason::ReleaseToSale,
            (true, false) => Reason::RefundToSale,
            (false, true) => Reason::Release,
            (false, false) => Reason::Refund,
        };
        match order.sale_id {
            Some(sale_id) if back_to_sale => released.push(SaleUnits {
                sale_id,
                change: i64::from(item.quantity),
            }),
            sale => {
                if let Some(sale) = sale {
                    allotment::count_returned(tx, sale, item.quantity, was_held)?;
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

/// Whether a buyer has no more units of a sale than one may have. The claims that tell are a room's above, which
/// hands this down.
pub type WithinLimit = fn(&mut Tx<'_>, SaleId, UserId) -> Result<bool, StoreError>;

/// Notes a payment. Paid twice is paid once; paid too late takes the units again or is due back.
/// Answers besides what a late payment took from a sale that is open.
pub fn pay(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    is_within_limit: WithinLimit,
    id: OrderId,
    owner: Option<UserId>,
) -> Result<(Order, Vec<SaleUnits>), OrderError> {
    let order = get(tx, id, owner)?;
    let mut taken = Vec::new();
    match order.status {
        OrderStatus::PendingPayment => {
            if !sql::shift(tx, now, id, OrderStatus::PendingPayment, OrderStatus::Paid)? {
                return Err(OrderError::State(order.status));
            }
            for item in &order.items {
                if let Some(sale) = order.sale_id {
                    allotment::sell_held(tx, sale, item.quantity)?;
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
        OrderStatus::Expired => taken = pay_late(tx, now, follow_ups, is_within_limit, &order)?,
        // Its buyer gave it up, but the money is here.
        OrderStatus::Cancelled => {
            if !sql::shift(tx, now, id, OrderStatus::Cancelled, OrderStatus::Paid)? {
                return Err(OrderError::State(order.status));
            }
            sql::owe_back(tx, now, id)?;
        }
        OrderStatus::Paid
        | OrderStatus::Processed
        | OrderStatus::Fulfilled
        | OrderStatus::RefundDue => {}
    }
    let paid = get(tx, id, None)?;
    if paid.status != order.status {
        let what = match paid.status {
            OrderStatus::RefundDue => Happened::RefundDue,
            _ => Happened::Paid,
        };
        tasks::follow(tx, now, follow_ups, &paid, what)?;
    }
    Ok((paid, taken))
}

/// Why a late payment gets no units.
#[derive(Debug)]
enum Late {
    /// There are none for it, or its terms no longer hold: the money goes back.
    Refused,
    /// The database.
    Store(StoreError),
}

impl From<StoreError> for Late {
    fn from(error: StoreError) -> Self {
        Late::Store(error)
    }
}

impl From<StockError> for Late {
    fn from(error: StockError) -> Self {
        match error {
            StockError::Store(error) => Late::Store(error),
            StockError::NotFound(_) | StockError::Insufficient { .. } => Late::Refused,
        }
    }
}

/// Takes an expired order's units again, all of them from where they were, or makes its money due
/// back. Answers what an open sale gave.
fn pay_late(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    is_within_limit: WithinLimit,
    order: &Order,
) -> Result<Vec<SaleUnits>, OrderError> {
    if !sql::shift(tx, now, order.id, OrderStatus::Expired, OrderStatus::Paid)? {
        return Err(OrderError::State(order.status));
    }
    // What a line took before another was refused is undone with it.
    match tx.part(|tx| take_again(tx, now, follow_ups, is_within_limit, order))? {
        Ok(taken) => Ok(taken),
        Err(Late::Store(error)) => Err(error.into()),
        Err(Late::Refused) => {
            sql::owe_back(tx, now, order.id)?;
            Ok(Vec::new())
        }
    }
}

/// The order is `paid` by now, so that it counts among what its buyer has of the sale.
fn take_again(
    tx: &mut Tx<'_>,
    now: Timestamp,
    follow_ups: &FollowUps,
    is_within_limit: WithinLimit,
    order: &Order,
) -> Result<Vec<SaleUnits>, Late> {
    let mut from_sale = Vec::new();
    for item in &order.items {
        let reason = match order.sale_id {
            Some(sale) => {
                match allotment::take_again(tx, now, sale, item.quantity, item.unit_amount)? {
                    Some(TakenAgain::FromSale { remaining }) => {
                        from_sale.push(SaleUnits {
                            sale_id: sale,
                            change: -i64::from(item.quantity),
                        });
                        if remaining == 0 {
                            follow_ups.sale_sold_out(tx, now, sale, item.product_id)?;
                        }
                        Reason::ClaimSell
                    }
                    // The sale has closed since, and its units lie with the free ones.
                    Some(TakenAgain::FromReturned) => {
                        stock::take(tx, item.product_id, item.quantity)?;
                        Reason::Sell
                    }
                    None => return Err(Late::Refused),
                }
            }
            None => {
                let now_sold_at = stock::take(tx, item.product_id, item.quantity)?;
                if now_sold_at.unit_amount > item.unit_amount
                    || now_sold_at.currency != order.currency
                {
                    return Err(Late::Refused);
                }
                Reason::Sell
            }
        };
        let movement = Movement {
            product_id: item.product_id,
            sale_id: order.sale_id,
            order_id: Some(order.id.0),
            reason,
            quantity: item.quantity,
        };
        stock::append(tx, now, &movement)?;
    }
    // Counted once the sale's row is locked by the change above: another transaction that gives this
    // buyer units of the sale comes before or after this one, never in between.
    if let Some(sale) = order.sale_id
        && !is_within_limit(tx, sale, order.user_id)?
    {
        return Err(Late::Refused);
    }
    Ok(from_sale)
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
) -> Result<(usize, Vec<SaleUnits>), OrderError> {
    let due = sql::due(tx, now, batch)?;
    let mut released = Vec::new();
    let mut orders = Vec::with_capacity(due.len());
    for id in &due {
        orders.push(get(tx, *id, None)?);
    }
    // All that they need, in the order that every transaction keeps to.
    tx.lock(ORDER_ROWS, due.iter().copied())?;
    tx.lock(SALE_ROWS, orders.iter().filter_map(|order| order.sale_id))?;
    let items = orders.iter().flat_map(|order| &order.items);
    tx.lock(PRODUCT_ROWS, items.map(|item| item.product_id))?;
    for (id, mut order) in due.iter().zip(orders) {
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
            tasks::follow(tx, now, follow_ups, &order, Happened::Expired)?;
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
    /// No order here is of a sale.
    const NO_SALE: WithinLimit = |_, _, _| Ok(false);

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
            .write(move |tx| {
                crate::auth::create_account(tx, START, &account, crate::auth::Role::Customer)
            })
            .blocking()
            .expect("user");
        let new = NewProduct {
            sku: None,
            name: "Mug".to_owned(),
            description: String::new(),
            category: String::new(),
            unit_amount: 700,
            currency: "CNY".to_owned(),
            stock: 10,
            popularity: 0,
        };
        let product = new.clone();
        let product = store
            .write(move |tx| create_product(tx, START, &product))
            .blocking()
            .expect("product");
        let stock_is = |expected: i64, step: &str| {
            let free = store
                .read_blocking(|tx| crate::product::get(tx, product))
                .expect("product")
                .stock;
            assert_eq!(free, expected, "{step}");
            let verdict = store
                .read_blocking::<_, StoreError>(|tx| audit::verify(tx, |_| Ok(())))
                .expect("verify");
            assert_eq!(verdict.problems, Vec::<String>::new(), "{step}");
        };
        let place = |lines: Vec<(ProductId, u32)>| {
            store
                .write(move |tx| {
                    create(
                        tx,
                        START,
                        &config::Orders::default(),
                        &FollowUps::default(),
                        Buyer {
                            user_id: user,
                            is_staff: false,
                        },
                        &lines,
                    )
                })
                .blocking()
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
            let (paid, _) = store
                .write(move |tx| pay(tx, START, &FollowUps::default(), NO_SALE, id, Some(user)))
                .blocking()
                .expect("pay");
            assert_eq!(paid.status, OrderStatus::Paid);
            stock_is(7, "paid");
        }
        let (back, _) = store
            .write(move |tx| cancel(tx, START, &FollowUps::default(), id, Some(user)))
            .blocking()
            .expect("cancel");
        assert_eq!(back.status, OrderStatus::RefundDue);
        stock_is(10, "paid and cancelled");

        let id = place(vec![(product, 6)]).expect("order").id;
        let expire = || {
            store
                .write(move |tx| expire_due(tx, late, &FollowUps::default(), 10))
                .blocking()
                .expect("expire")
                .0
        };
        assert_eq!((expire(), expire()), (1, 0));
        stock_is(10, "expired");
        let (paid, _) = store
            .write(move |tx| pay(tx, late, &FollowUps::default(), NO_SALE, id, None))
            .blocking()
            .expect("late payment");
        assert_eq!(paid.status, OrderStatus::Paid);
        stock_is(4, "paid late, units taken again");

        let id = place(vec![(product, 4)]).expect("order").id;
        assert_eq!(expire(), 1);
        place(vec![(product, 1)]).expect("another buyer");
        let (paid, _) = store
            .write(move |tx| pay(tx, late, &FollowUps::default(), NO_SALE, id, None))
            .blocking()
            .expect("late payment");
        assert_eq!(paid.status, OrderStatus::RefundDue);
        stock_is(3, "paid late, units gone");
        let other = UserId(user.0 + 1);
        let foreign = store
            .write(move |tx| cancel(tx, late, &FollowUps::default(), id, Some(other)).map(|_| ()))
            .blocking();
        assert!(
            matches!(foreign, Err(OrderError::NotFound(_))),
            "another's order is as absent as none"
        );

        let other = NewProduct {
            unit_amount: 300,
            ..new
        };
        let other = store
            .write(move |tx| create_product(tx, START, &other))
            .blocking()
            .expect("product");
        let id = place(vec![(product, 1), (other, 1)]).expect("order").id;
        assert_eq!(expire(), 2, "this one and the other buyer's");
        store
            .write(move |tx| crate::product::archive(tx, late, other, allotment::not_over))
            .blocking()
            .expect("archived");
        let (paid, _) = store
            .write(move |tx| pay(tx, late, &FollowUps::default(), NO_SALE, id, None))
            .blocking()
            .expect("late payment");
        assert_eq!(paid.status, OrderStatus::RefundDue);
        assert_eq!(paid.paid_at, Some(late), "the money came");
        stock_is(
            4,
            "paid late, one of two products is gone: neither is taken",
        );

        let id = place(vec![(product, 1)]).expect("order").id;
        assert_eq!(expire(), 1);
        let dearer = crate::product::ProductPatch {
            unit_amount: Some(701),
            ..Default::default()
        };
        store
            .write(move |tx| crate::product::update(tx, late, product, &dearer))
            .blocking()
            .expect("dearer");
        let (paid, _) = store
            .write(move |tx| pay(tx, late, &FollowUps::default(), NO_SALE, id, None))
            .blocking()
            .expect("late payment");
        assert_eq!(paid.status, OrderStatus::RefundDue);
        stock_is(4, "paid late, at a price of before");

        let id = place(vec![(product, 1)]).expect("order").id;
        store
            .write(move |tx| cancel(tx, START, &FollowUps::default(), id, None))
            .blocking()
            .expect("cancelled");
        let (paid, _) = store
            .write(move |tx| pay(tx, START, &FollowUps::default(), NO_SALE, id, None))
            .blocking()
            .expect("a payment that crossed it");
        assert_eq!(paid.status, OrderStatus::RefundDue);
        stock_is(4, "cancelled, then paid");

        // Taken over from the shop before, delivered.
        let item = OrderItem {
            product_id: product,
            quantity: 2,
            unit_amount: 700,
            amount: 1_400,
        };
        let past = store
            .write::<_, StoreError>(move |tx| {
                let id = sql::insert_past(tx, START, "A-1", user, 1_400, "CNY", START)?;
                sql::insert_items(tx, std::iter::once((id, 1, &item)))?;
                Ok(id)
            })
            .blocking()
            .expect("a past order");
        let refused = store
            .write(move |tx| cancel(tx, late, &FollowUps::default(), past, None).map(|_| ()))
            .blocking();
        assert!(matches!(
            refused,
            Err(OrderError::State(OrderStatus::Fulfilled))
        ));
        let (again, moved) = store
            .write(move |tx| pay(tx, late, &FollowUps::default(), NO_SALE, past, None))
            .blocking()
            .expect("paid already");
        assert_eq!((again.status, moved), (OrderStatus::Fulfilled, Vec::new()));
        stock_is(4, "delivered is delivered");
    }

    #[test]
    fn an_order_of_nothing_has_no_payment_step() {
        assert_eq!(payment_terms(START, 900, 0), (OrderStatus::Paid, None));
        assert_eq!(
            payment_terms(START, 900, 1),
            (OrderStatus::PendingPayment, Some(START.plus_seconds(900)))
        );
        assert_eq!(payment_terms(START, 0, 1), (OrderStatus::Paid, None));
    }
}
