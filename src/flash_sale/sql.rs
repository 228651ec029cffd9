//! Every statement about claims.

use super::{ClaimOnRecord, ClaimRequest, GrantedRow};
use crate::allotment::{SALE_ROWS, SaleId};
use crate::auth::UserId;
use crate::clock::Timestamp;
use crate::order::OrderId;
use crate::product::ProductId;
use crate::sql;
use crate::store::{StoreError, Tx};

/// Units of this sale that each of these buyers has.
pub(super) fn units_of(
    tx: &mut Tx<'_>,
    id: SaleId,
    buyers: &[UserId],
) -> Result<Vec<i64>, StoreError> {
    tx.require_lock(SALE_ROWS, id);
    let units = tx.row_of_each(
        sql!("SELECT COALESCE(CAST(SUM(c.quantity) AS bigint), 0) FROM claims c JOIN orders o ON o.id = c.order_id \
         WHERE c.sale_id = $1 AND c.user_id = $2 AND o.status <> 'cancelled' AND o.status <> 'expired' \
         AND o.status <> 'refund_due'"),
        buyers.iter().map(|buyer| [id.into(), (*buyer).into()]),
        |row| row.get(0),
    )?;
    Ok(units.into_iter().map(Option::unwrap_or_default).collect())
}

/// Whether a buyer has no more units of a sale than one may have.
pub(super) fn is_within_limit(
    tx: &mut Tx<'_>,
    sale: SaleId,
    buyer: UserId,
) -> Result<bool, StoreError> {
    tx.require_lock(SALE_ROWS, sale);
    Ok(tx
        .row(
            sql!("SELECT 1 FROM flash_sales s WHERE s.id = $1 AND (SELECT COALESCE(SUM(c.quantity), 0) FROM claims c \
             JOIN orders o ON o.id = c.order_id WHERE c.sale_id = $1 AND c.user_id = $2 AND o.status <> 'cancelled' \
             AND o.status <> 'expired' AND o.status <> 'refund_due') <= s.per_user_limit"),
            &[sale.into(), buyer.into()],
            |_| Ok(()),
        )?
        .is_some())
}

/// Writes claims of one sale. Their buyers' limits were looked at while the sale was locked.
pub(super) fn insert_claims(
    tx: &mut Tx<'_>,
    id: SaleId,
    granted: &[GrantedRow],
) -> Result<(), StoreError> {
    tx.execute_each(
        sql!(
            "INSERT INTO claims (id, sale_id, user_id, order_id, quantity, created_at) VALUES ($1, $2, $3, $4, $5, $6)"
        ),
        granted.iter().map(|claim| {
            [
                (&claim.claim_id).into(),
                id.into(),
                claim.user_id.into(),
                claim.order_id.into(),
                claim.quantity.into(),
                claim.at.into(),
            ]
        }),
    )?;
    Ok(())
}

/// Writes the claim unless the buyer's units in this sale would pass the limit.
pub(super) fn insert_claim(
    tx: &mut Tx<'_>,
    now: Timestamp,
    claim_id: &str,
    request: &ClaimRequest,
    per_user_limit: i64,
    order: OrderId,
) -> Result<bool, StoreError> {
    tx.require_lock(SALE_ROWS, request.sale_id);
    Ok(tx.execute(
        sql!(
            "INSERT INTO claims (id, sale_id, user_id, order_id, quantity, created_at) \
         SELECT $1, $2, $3, $4, $5, $6 WHERE (SELECT COALESCE(SUM(c.quantity), 0) FROM claims c \
         JOIN orders o ON o.id = c.order_id WHERE c.sale_id = $2 AND c.user_id = $3 \
         AND o.status <> 'cancelled' AND o.status <> 'expired' AND o.status <> 'refund_due') + $5 <= $7"
        ),
        &[
            claim_id.into(),
            request.sale_id.into(),
            request.user_id.into(),
            order.into(),
            request.quantity.into(),
            now.into(),
            per_user_limit.into(),
        ],
    )? == 1)
}

/// One claim, as it stands now.
pub(super) fn claim(tx: &mut Tx<'_>, id: &str) -> Result<Option<ClaimOnRecord>, StoreError> {
    tx.row(
        sql!("SELECT c.sale_id, c.user_id, c.order_id, c.quantity, c.created_at, o.status FROM claims c \
         JOIN orders o ON o.id = c.order_id WHERE c.id = $1"),
        &[id.into()],
        |row| {
            Ok(ClaimOnRecord {
                sale_id: row.get(0)?,
                user_id: row.get(1)?,
                order_id: row.get(2)?,
                quantity: row.get(3)?,
                created_at: row.get(4)?,
                state: row.get(5)?,
            })
        },
    )
}

/// The sale that a claim was granted in, if it sold this product.
pub(super) fn sale_of_claim(
    tx: &mut Tx<'_>,
    claim: &str,
    product: ProductId,
) -> Result<Option<SaleId>, StoreError> {
    tx.row(
        sql!("SELECT s.id FROM claims c JOIN flash_sales s ON s.id = c.sale_id WHERE c.id = $1 AND s.product_id = $2"),
        &[claim.into(), product.into()],
        |row| row.get(0),
    )
}

/// Units in the sale's live orders, counted from the orders themselves. An order without its sale is
/// one whose late payment took free units, as version 0.1.0 had it.
pub(super) fn units_ordered(tx: &mut Tx<'_>, id: SaleId) -> Result<i64, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT CAST(COALESCE(SUM(c.quantity), 0) AS bigint) FROM claims c JOIN orders o ON o.id = c.order_id \
             WHERE c.sale_id = $1 AND o.sale_id = c.sale_id AND o.status <> 'cancelled' AND o.status <> 'expired' AND o.status <> 'refund_due'"),
            &[id.into()],
            |row| row.get(0),
        )?
        .unwrap_or(0))
}

/// Whether a claim and its order are both there.
pub(super) fn claim_has_order(
    tx: &mut Tx<'_>,
    claim: &str,
    order: i64,
) -> Result<bool, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT 1 FROM claims c JOIN orders o ON o.id = c.order_id WHERE c.id = $1 AND o.id = $2"),
            &[claim.into(), order.into()],
            |_| Ok(()),
        )?
        .is_some())
}

/// All rows that claims leave, for the test that compares them; a task's number and times and a claim's number
/// are left out.
#[cfg(test)]
pub(super) const ROWS_OF_CLAIMS: [&str; 7] = [
    "SELECT 'sale', * FROM flash_sales ORDER BY id",
    "SELECT 'order', * FROM orders ORDER BY id",
    "SELECT 'line', * FROM order_items ORDER BY order_id, line",
    "SELECT 'moved', * FROM stock_movements ORDER BY product_id, seq",
    "SELECT 'claim', sale_id, user_id, order_id, quantity, created_at FROM claims ORDER BY order_id",
    "SELECT 'task', name, queue, state, priority, max_attempts, timeout_ms, args FROM tasks ORDER BY name, args",
    "SELECT 'key', caller, key, fingerprint, created_at, body FROM idempotency_keys ORDER BY caller, key",
];
