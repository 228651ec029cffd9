//! Every statement about reports: what is read for them, and those that are kept.

use crate::clock::Timestamp;
use crate::order::{OrderId, OrderStatus};
use crate::product::ProductId;
use crate::sql;
use crate::store::{StoreError, Tx};

/// What a range of time shows, one after the other: an order, then its lines.
pub(super) enum Seen {
    /// An order.
    Order {
        status: OrderStatus,
        currency: String,
        amount: i64,
        at: Timestamp,
    },
    /// A line of the order before.
    Line {
        product: ProductId,
        quantity: i64,
        amount: i64,
    },
}

pub(super) const EACH_ORDER: &str = "SELECT o.id, o.status, o.currency, o.total_amount, o.created_at, \
     i.product_id, i.quantity, i.amount FROM orders o LEFT JOIN order_items i ON i.order_id = o.id \
     WHERE o.created_at >= $1 AND o.created_at < $2 ORDER BY o.created_at, o.id";

/// Shows the orders made from `from` on and before `until`, oldest first, each with its lines. One
/// statement, which holds nothing back: the index gives the order, so nothing is sorted.
pub(super) fn each_order(
    tx: &mut Tx<'_>,
    from: Timestamp,
    until: Timestamp,
    mut visit: impl FnMut(Seen) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut last: Option<OrderId> = None;
    tx.each(sql!(EACH_ORDER), &[from.into(), until.into()], |row| {
        let id = row.get(0)?;
        if last != Some(id) {
            last = Some(id);
            visit(Seen::Order {
                status: row.get(1)?,
                currency: row.get(2)?,
                amount: row.get(3)?,
                at: row.get(4)?,
            })?;
        }
        match row.get::<Option<ProductId>>(5)? {
            Some(product) => visit(Seen::Line {
                product,
                quantity: row.get(6)?,
                amount: row.get(7)?,
            }),
            None => Ok(()), // an order without lines
        }
    })
}

/// SKU and name of a product, whether or not it is still in the shop.
pub(super) fn product_label(
    tx: &mut Tx<'_>,
    id: ProductId,
) -> Result<Option<(Option<String>, String)>, StoreError> {
    tx.row(
        sql!("SELECT sku, name FROM products WHERE id = $1"),
        &[id.into()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Keeps a report; an older one under the same key goes.
pub(super) fn keep(
    tx: &mut Tx<'_>,
    key: &str,
    time_zone: &str,
    body: &str,
    made_at: Timestamp,
    expires_at: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("INSERT INTO cached_reports (key, time_zone, body, made_at, expires_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (key) DO UPDATE SET time_zone = excluded.time_zone, body = excluded.body, \
         made_at = excluded.made_at, expires_at = excluded.expires_at"),
        &[
            key.into(),
            time_zone.into(),
            body.into(),
            made_at.into(),
            expires_at.into(),
        ],
    )?;
    Ok(())
}

/// The report under a key, while it may be shown.
pub(super) fn kept(
    tx: &mut Tx<'_>,
    now: Timestamp,
    key: &str,
    time_zone: &str,
) -> Result<Option<String>, StoreError> {
    tx.row(
        sql!(
            "SELECT body FROM cached_reports WHERE key = $1 AND time_zone = $2 AND expires_at > $3"
        ),
        &[key.into(), time_zone.into(), now.into()],
        |row| row.get(0),
    )
}

/// Until when the report under a key may be shown; `None` where there is none that may.
pub(super) fn kept_until(
    tx: &mut Tx<'_>,
    now: Timestamp,
    key: &str,
    time_zone: &str,
) -> Result<Option<Timestamp>, StoreError> {
    tx.row(
        sql!("SELECT expires_at FROM cached_reports WHERE key = $1 AND time_zone = $2 AND expires_at > $3"),
        &[key.into(), time_zone.into(), now.into()],
        |row| row.get(0),
    )
}

/// Drops reports past their time, a bounded number at once.
pub(super) fn purge(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sql!(
            "DELETE FROM cached_reports WHERE key IN \
         (SELECT key FROM cached_reports WHERE expires_at <= $1 ORDER BY expires_at LIMIT 100)"
        ),
        &[now.into()],
    )
}
