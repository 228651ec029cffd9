//! Every statement about orders and their lines.

use super::{Filter, NewOrder, ORDER_ROWS, Order, OrderId, OrderItem, OrderStatus, UnpaidLine};
use crate::auth::{Account, UserId};
use crate::clock::Timestamp;
use crate::product::ProductId;
use crate::sql;
use crate::store::{Row, StoreError, Tx};

fn order(row: &Row<'_>) -> Result<Order, StoreError> {
    order_at(row, 0)
}

/// An order whose columns begin at `first`.
fn order_at(row: &Row<'_>, first: usize) -> Result<Order, StoreError> {
    Ok(Order {
        id: row.get(first)?,
        user_id: row.get(first + 1)?,
        status: row.get(first + 2)?,
        total_amount: row.get(first + 3)?,
        currency: row.get(first + 4)?,
        sale_id: row.get(first + 5)?,
        created_at: row.get(first + 6)?,
        expires_at: row.get(first + 7)?,
        paid_at: row.get(first + 8)?,
        processed_at: row.get(first + 9)?,
        items: Vec::new(),
    })
}

/// Adds a row of an order joined with its lines, both of whose columns begin at `first`, to the
/// orders before it.
fn gather(row: &Row<'_>, first: usize, orders: &mut Vec<Order>) -> Result<(), StoreError> {
    let id: OrderId = row.get(first)?;
    if orders.last().is_none_or(|last| last.id != id) {
        orders.push(order_at(row, first)?);
    }
    if let (Some(order), Some(product_id)) = (orders.last_mut(), row.get(first + 10)?) {
        order.items.push(OrderItem {
            product_id,
            quantity: row.get(first + 11)?,
            unit_amount: row.get(first + 12)?,
            amount: row.get(first + 13)?,
        });
    }
    Ok(())
}

pub(super) fn insert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewOrder,
) -> Result<OrderId, StoreError> {
    let made = insert_all(tx, std::iter::once((now, new)))?.pop();
    made.ok_or_else(|| StoreError::Bug("an order was not made".to_owned()))
}

/// Writes orders; answers their keys in the order of `new`.
pub(super) fn insert_all<'a>(
    tx: &mut Tx<'_>,
    new: impl Iterator<Item = (Timestamp, &'a NewOrder)>,
) -> Result<Vec<OrderId>, StoreError> {
    tx.insert_each(
        sql!("INSERT INTO orders (user_id, status, total_amount, currency, sale_id, created_at, updated_at, expires_at, \
         paid_at) VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8)"),
        new.map(|(now, new)| {
            [
                new.user_id.into(),
                new.status.into(),
                new.total_amount.into(),
                (&new.currency).into(),
                new.sale_id.into(),
                now.into(),
                new.expires_at.into(),
                (new.status == OrderStatus::Paid).then_some(now).into(),
            ]
        }),
    )
}

/// Writes lines of orders, each with its number in its order, from 1.
pub(super) fn insert_items<'a>(
    tx: &mut Tx<'_>,
    lines: impl Iterator<Item = (OrderId, i64, &'a OrderItem)>,
) -> Result<(), StoreError> {
    tx.execute_each(
        sql!(
            "INSERT INTO order_items (order_id, line, product_id, quantity, unit_amount, amount) \
         VALUES ($1, $2, $3, $4, $5, $6)"
        ),
        lines.map(|(order, line, item)| {
            [
                order.into(),
                line.into(),
                item.product_id.into(),
                item.quantity.into(),
                item.unit_amount.into(),
                item.amount.into(),
            ]
        }),
    )?;
    Ok(())
}

/// How many of a buyer's newest orders are looked at for what waits for payment, from the oldest order of the
/// shop that does on: it bounds the work, and only a buyer who orders this often within the time for payment, and
/// has paid all but a few, gets beyond it.
const NEWEST_LOOKED_AT: i64 = 1_000;

/// Lines of a buyer's orders that wait for payment, the newest order first; those of flash sales are left out.
pub(super) fn unpaid_lines(tx: &mut Tx<'_>, buyer: UserId) -> Result<Vec<UnpaidLine>, StoreError> {
    tx.rows(
        sql!("SELECT own.id, COALESCE(own.expires_at, 0), i.product_id, i.quantity FROM \
         (SELECT id, status, sale_id, expires_at FROM orders WHERE user_id = $1 AND id >= (SELECT MIN(id) FROM orders \
         WHERE status = 'pending_payment' AND status <> 'paid' AND status <> 'processed' AND status <> 'fulfilled') \
         ORDER BY id DESC LIMIT $2) own JOIN order_items i ON i.order_id = own.id \
         WHERE own.status = 'pending_payment' AND own.sale_id IS NULL ORDER BY own.id DESC"),
        &[buyer.into(), NEWEST_LOOKED_AT.into()],
        |row| {
            Ok(UnpaidLine {
                order_id: row.get(0)?,
                expires_at: row.get(1)?,
                product_id: row.get(2)?,
                quantity: row.get(3)?,
            })
        },
    )
}

pub(super) fn get(tx: &mut Tx<'_>, id: OrderId) -> Result<Option<Order>, StoreError> {
    tx.row(
        sql!("SELECT id, user_id, status, total_amount, currency, sale_id, created_at, expires_at, paid_at, processed_at \
         FROM orders WHERE id = $1"),
        &[id.into()],
        order,
    )
}

pub(super) fn items(tx: &mut Tx<'_>, id: OrderId) -> Result<Vec<OrderItem>, StoreError> {
    tx.rows(
        sql!("SELECT product_id, quantity, unit_amount, amount FROM order_items WHERE order_id = $1 ORDER BY line"),
        &[id.into()],
        |row| {
            Ok(OrderItem {
                product_id: row.get(0)?,
                quantity: row.get(1)?,
                unit_amount: row.get(2)?,
                amount: row.get(3)?,
            })
        },
    )
}

/// The orders of a page with their lines, in one statement: `page` bounds it.
macro_rules! with_lines {
    ($page:literal) => {
        concat!(
            "SELECT o.id, o.user_id, o.status, o.total_amount, o.currency, o.sale_id, o.created_at, \
             o.expires_at, o.paid_at, o.processed_at, i.product_id, i.quantity, i.unit_amount, i.amount FROM (",
            "SELECT id, user_id, status, total_amount, currency, sale_id, created_at, expires_at, \
             paid_at, processed_at FROM orders WHERE ",
            $page,
            " ORDER BY id DESC LIMIT $2) o LEFT JOIN order_items i ON i.order_id = o.id \
             ORDER BY o.id DESC, i.line"
        )
    };
}

pub(super) fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<Order>, StoreError> {
    // A text for each kind of filter, so that each has an index that serves it. Where most orders
    // are paid, processed or delivered, walking back from the newest finds a page of those at once.
    let sql = match (filter.user_id, filter.status) {
        (None, None) => with_lines!("id < $1 AND $3 IS NULL AND $4 IS NULL"),
        (Some(_), _) => {
            with_lines!("id < $1 AND user_id = $3 AND ($4 IS NULL OR status = $4)")
        }
        (None, Some(OrderStatus::Paid | OrderStatus::Processed | OrderStatus::Fulfilled)) => {
            with_lines!("id < $1 AND $3 IS NULL AND status = $4")
        }
        (None, Some(_)) => with_lines!(
            "id < $1 AND $3 IS NULL AND status = $4 AND status <> 'paid' AND status <> 'processed' AND status <> 'fulfilled'"
        ),
    };
    let mut orders: Vec<Order> = Vec::new();
    tx.each(
        sql!(sql),
        &[
            filter.before.into(),
            filter.limit.into(),
            filter.user_id.into(),
            filter.status.into(),
        ],
        |row| gather(row, 0, &mut orders),
    )?;
    Ok(orders)
}

/// A user and the newest orders with their lines, in one statement.
pub(super) fn user_with_orders(
    tx: &mut Tx<'_>,
    user: UserId,
    limit: i64,
) -> Result<Option<(Account, Vec<Order>)>, StoreError> {
    let (mut account, mut orders) = (None, Vec::new());
    tx.each(
        sql!("SELECT u.id, u.email, u.name, u.role, u.status, u.created_at, u.last_seen_at, \
         o.id, o.user_id, o.status, o.total_amount, o.currency, o.sale_id, o.created_at, o.expires_at, o.paid_at, o.processed_at, \
         i.product_id, i.quantity, i.unit_amount, i.amount FROM users u \
         LEFT JOIN (SELECT id, user_id, status, total_amount, currency, sale_id, created_at, expires_at, paid_at, \
         processed_at FROM orders WHERE user_id = $1 ORDER BY id DESC LIMIT $2) o ON o.user_id = u.id \
         LEFT JOIN order_items i ON i.order_id = o.id WHERE u.id = $1 ORDER BY o.id DESC, i.line"),
        &[user.into(), limit.into()],
        |row| {
            if account.is_none() {
                account = Some(Account::read(row)?);
            }
            match row.get::<Option<OrderId>>(7)? {
                Some(_) => gather(row, 7, &mut orders),
                None => Ok(()), // a user without orders
            }
        },
    )?;
    Ok(account.map(|account| (account, orders)))
}

/// Moves an order from one state to another; `false` when it is not in the first.
pub(super) fn shift(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: OrderId,
    from: OrderStatus,
    to: OrderStatus,
) -> Result<bool, StoreError> {
    tx.locks(ORDER_ROWS, id);
    Ok(tx.execute(
        sql!("UPDATE orders SET status = $3, updated_at = $4, \
         paid_at = CASE WHEN $3 = 'paid' THEN $4 ELSE paid_at END, \
         processed_at = CASE WHEN $3 = 'processed' THEN $4 ELSE processed_at END WHERE id = $1 AND status = $2"),
        &[id.into(), from.into(), to.into(), now.into()],
    )? == 1)
}

pub(super) fn due(tx: &mut Tx<'_>, now: Timestamp, limit: u32) -> Result<Vec<OrderId>, StoreError> {
    tx.rows(
        sql!("SELECT id FROM orders WHERE status = 'pending_payment' AND expires_at <= $1 ORDER BY expires_at LIMIT $2"),
        &[now.into(), limit.into()],
        |row| row.get(0),
    )
}

/// A payment that came too late and gets no units: the money is due back. The order was set to
/// `paid` in this transaction.
pub(super) fn owe_back(tx: &mut Tx<'_>, now: Timestamp, id: OrderId) -> Result<(), StoreError> {
    tx.locks(ORDER_ROWS, id);
    let changed = tx.execute(
        sql!("UPDATE orders SET status = 'refund_due', updated_at = $2 WHERE id = $1 AND status = 'paid'"),
        &[id.into(), now.into()],
    )?;
    match changed {
        1 => Ok(()),
        _ => Err(StoreError::Bug(format!(
            "order {id} left the state it was given"
        ))),
    }
}

/// The run that imported an order; `None` when it is not there.
pub(super) fn import_run_of(tx: &mut Tx<'_>, external_id: &str) -> Result<Option<i64>, StoreError> {
    tx.row(
        sql!("SELECT import_run FROM orders WHERE external_id = $1"),
        &[external_id.into()],
        |row| row.get(0),
    )
}

/// A past order, taken over as delivered.
pub(super) fn insert_past(
    tx: &mut Tx<'_>,
    run: Timestamp,
    external_id: &str,
    user: UserId,
    total_amount: i64,
    currency: &str,
    at: Timestamp,
) -> Result<OrderId, StoreError> {
    tx.insert(
        sql!("INSERT INTO orders (user_id, status, total_amount, currency, created_at, updated_at, paid_at, external_id, \
         import_run) VALUES ($1, 'fulfilled', $2, $3, $4, $4, $4, $5, $6)"),
        &[
            user.into(),
            total_amount.into(),
            currency.into(),
            at.into(),
            external_id.into(),
            run.into(),
        ],
    )
}

/// Units in orders, by product: `(held, sold)`. Imported history never moved stock here.
pub(super) fn each_ordered(
    tx: &mut Tx<'_>,
    mut visit: impl FnMut(ProductId, i64, i64),
) -> Result<(), StoreError> {
    tx.each(
        sql!("SELECT i.product_id, CAST(SUM(CASE WHEN o.status = 'pending_payment' THEN i.quantity ELSE 0 END) AS bigint), \
         CAST(SUM(CASE WHEN o.status <> 'pending_payment' THEN i.quantity ELSE 0 END) AS bigint) \
         FROM orders o JOIN order_items i ON i.order_id = o.id \
         WHERE o.external_id IS NULL AND o.status IN ('pending_payment', 'paid', 'processed', 'fulfilled') \
         GROUP BY i.product_id"),
        &[],
        |row| {
            visit(row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(())
        },
    )
}

/// Shows the lines of orders made from `since` on that did not come to nothing: product and units.
pub(super) fn each_ordered_since(
    tx: &mut Tx<'_>,
    since: Timestamp,
    mut visit: impl FnMut(ProductId, i64) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    tx.each(
        sql!(
            "SELECT i.product_id, i.quantity FROM orders o JOIN order_items i ON i.order_id = o.id \
         WHERE o.created_at >= $1 AND o.status NOT IN ('cancelled', 'expired', 'refund_due')"
        ),
        &[since.into()],
        |row| visit(row.get(0)?, row.get(1)?),
    )
}

/// Whether an order was made here, and not imported, from `since` on and before `until`.
pub(super) fn any_own_order(
    tx: &mut Tx<'_>,
    since: Timestamp,
    until: Timestamp,
) -> Result<bool, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT 1 FROM orders WHERE created_at >= $1 AND created_at < $2 AND import_run IS NULL LIMIT 1"),
            &[since.into(), until.into()],
            |_| Ok(()),
        )?
        .is_some())
}
