//! Every statement about sales and claims.

use super::{ClaimOnRecord, ClaimRequest, NewSale, Sale, SaleId, SaleStatus};
use crate::auth::UserId;
use crate::clock::Timestamp;
use crate::order::{OrderId, SALE_CHANGED};
use crate::product::ProductId;
use crate::sql;
use crate::store::{Row, StoreError, Tx};

const COLUMNS: &str = "id, product_id, quantity, remaining, held, sold, returned, unit_amount, currency, starts_at, \
     ends_at, per_user_limit, attempts_per_minute, payment_window_seconds, status, created_at";

fn sale(row: &Row<'_>) -> Result<Sale, StoreError> {
    Ok(Sale {
        id: row.get(0)?,
        product_id: row.get(1)?,
        quantity: row.get(2)?,
        remaining: row.get(3)?,
        held: row.get(4)?,
        sold: row.get(5)?,
        returned: row.get(6)?,
        unit_amount: row.get(7)?,
        currency: row.get(8)?,
        starts_at: row.get(9)?,
        ends_at: row.get(10)?,
        per_user_limit: row.get(11)?,
        attempts_per_minute: row.get(12)?,
        payment_window_seconds: row.get(13)?,
        status: row.get(14)?,
        created_at: row.get(15)?,
    })
}

/// Writes a sale unless another open one of the product overlaps it in time.
pub(super) fn insert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewSale,
    currency: &str,
) -> Result<Option<Sale>, StoreError> {
    let made = tx.row(
        sql!(&format!(
            "INSERT INTO flash_sales (product_id, quantity, remaining, held, sold, returned, unit_amount, currency, \
             starts_at, ends_at, per_user_limit, attempts_per_minute, payment_window_seconds, status, created_at) \
             SELECT $1, $2, $2, 0, 0, 0, $3, $4, $5, $6, $7, $8, $9, 'open', $10 WHERE NOT EXISTS \
             (SELECT 1 FROM flash_sales WHERE product_id = $1 AND status = 'open' AND starts_at < $6 AND ends_at > $5) \
             RETURNING {COLUMNS}"
        )),
        &[
            new.product_id.into(),
            new.quantity.into(),
            new.unit_amount.into(),
            currency.into(),
            new.starts_at.into(),
            new.ends_at.into(),
            new.per_user_limit.into(),
            new.attempts_per_minute.into(),
            new.payment_window_seconds.into(),
            now.into(),
        ],
        sale,
    )?;
    if let Some(sale) = &made {
        // Whoever asked for it before was told that there is none.
        tx.touch_row(SALE_CHANGED, sale.id);
    }
    Ok(made)
}

pub(super) fn get(tx: &mut Tx<'_>, id: SaleId) -> Result<Option<Sale>, StoreError> {
    tx.row(
        sql!(&format!("SELECT {COLUMNS} FROM flash_sales WHERE id = $1")),
        &[id.into()],
        sale,
    )
}

/// The highest key that a sale has.
pub(super) fn highest_id(tx: &mut Tx<'_>) -> Result<Option<i64>, StoreError> {
    let highest = tx.row(sql!("SELECT max(id) FROM flash_sales"), &[], |row| {
        row.get(0)
    })?;
    Ok(highest.flatten())
}

pub(super) fn list(tx: &mut Tx<'_>, before: i64, limit: i64) -> Result<Vec<Sale>, StoreError> {
    tx.rows(
        sql!(&format!(
            "SELECT {COLUMNS} FROM flash_sales WHERE id < $1 ORDER BY id DESC LIMIT $2"
        )),
        &[before.into(), limit.into()],
        sale,
    )
}

pub(super) fn open_sales(tx: &mut Tx<'_>) -> Result<Vec<Sale>, StoreError> {
    tx.rows(
        sql!(&format!(
            "SELECT {COLUMNS} FROM flash_sales WHERE status = 'open' ORDER BY ends_at LIMIT 10000"
        )),
        &[],
        sale,
    )
}

pub(super) fn due(tx: &mut Tx<'_>, now: Timestamp) -> Result<Vec<SaleId>, StoreError> {
    tx.rows(
        sql!("SELECT id FROM flash_sales WHERE status = 'open' AND ends_at <= $1 ORDER BY ends_at LIMIT 100"),
        &[now.into()],
        |row| row.get(0),
    )
}

/// What a claim needs to know of its sale.
pub(super) struct Terms {
    pub(super) product_id: ProductId,
    pub(super) remaining: i64,
    pub(super) unit_amount: i64,
    pub(super) currency: String,
    pub(super) per_user_limit: i64,
    pub(super) payment_window_seconds: i64,
}

/// The decision: takes units from a sale that is open, in its window, and has them.
pub(super) fn take(
    tx: &mut Tx<'_>,
    id: SaleId,
    quantity: u32,
    now: Timestamp,
) -> Result<Option<Terms>, StoreError> {
    tx.touch_row(SALE_CHANGED, id);
    tx.row(
        sql!("UPDATE flash_sales SET remaining = remaining - $2, \
         held = held + CASE WHEN payment_window_seconds > 0 AND unit_amount > 0 THEN $2 ELSE 0 END, \
         sold = sold + CASE WHEN payment_window_seconds > 0 AND unit_amount > 0 THEN 0 ELSE $2 END \
         WHERE id = $1 AND status = 'open' AND starts_at <= $3 AND ends_at > $3 AND remaining >= $2 \
         RETURNING product_id, remaining, unit_amount, currency, per_user_limit, payment_window_seconds"),
        &[id.into(), quantity.into(), now.into()],
        |row| {
            Ok(Terms {
                product_id: row.get(0)?,
                remaining: row.get(1)?,
                unit_amount: row.get(2)?,
                currency: row.get(3)?,
                per_user_limit: row.get(4)?,
                payment_window_seconds: row.get(5)?,
            })
        },
    )
}

/// A sale, which nobody else changes before this transaction ends.
pub(super) fn lock(tx: &mut Tx<'_>, id: SaleId) -> Result<Option<Sale>, StoreError> {
    tx.lock_row(
        sql!(&format!("SELECT {COLUMNS} FROM flash_sales WHERE id = $1")),
        &[id.into()],
        sale,
    )
}

/// [`take`] of what claims of one sale were granted together: the first of them came at `first`, the last at
/// `last`.
pub(super) fn take_all(
    tx: &mut Tx<'_>,
    id: SaleId,
    quantity: i64,
    (first, last): (Timestamp, Timestamp),
) -> Result<bool, StoreError> {
    tx.touch_row(SALE_CHANGED, id);
    Ok(tx.execute(
        sql!("UPDATE flash_sales SET remaining = remaining - $2, \
         held = held + CASE WHEN payment_window_seconds > 0 AND unit_amount > 0 THEN $2 ELSE 0 END, \
         sold = sold + CASE WHEN payment_window_seconds > 0 AND unit_amount > 0 THEN 0 ELSE $2 END \
         WHERE id = $1 AND status = 'open' AND starts_at <= $3 AND ends_at > $4 AND remaining >= $2"),
        &[id.into(), quantity.into(), first.into(), last.into()],
    )? == 1)
}

/// Units of this sale that each of these buyers has.
pub(super) fn units_of(
    tx: &mut Tx<'_>,
    id: SaleId,
    buyers: &[UserId],
) -> Result<Vec<i64>, StoreError> {
    let units = tx.row_of_each(
        sql!("SELECT COALESCE(CAST(SUM(c.quantity) AS bigint), 0) FROM claims c JOIN orders o ON o.id = c.order_id \
         WHERE c.sale_id = $1 AND c.user_id = $2 AND o.status <> 'cancelled' AND o.status <> 'expired' \
         AND o.status <> 'refund_due'"),
        buyers.iter().map(|buyer| [id.into(), (*buyer).into()]),
        |row| row.get(0),
    )?;
    Ok(units.into_iter().map(Option::unwrap_or_default).collect())
}

/// A claim that was granted.
pub(super) struct GrantedRow {
    pub(super) claim_id: String,
    pub(super) user_id: UserId,
    pub(super) order_id: OrderId,
    pub(super) quantity: u32,
    pub(super) at: Timestamp,
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

/// Closes an open sale; answers what was left in it.
pub(super) fn close(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: SaleId,
    status: SaleStatus,
) -> Result<Option<(Sale, i64)>, StoreError> {
    let Some(before) = get(tx, id)?.filter(|sale| sale.status == SaleStatus::Open) else {
        return Ok(None);
    };
    tx.touch_row(SALE_CHANGED, id);
    let closed = tx.row(
        sql!(&format!(
            "UPDATE flash_sales SET returned = returned + remaining, remaining = 0, status = $2, closed_at = $3 \
             WHERE id = $1 AND status = 'open' AND remaining = $4 RETURNING {COLUMNS}"
        )),
        &[id.into(), status.into(), now.into(), before.remaining.into()],
        sale,
    )?;
    Ok(closed.map(|sale| (sale, before.remaining)))
}

/// Opens a sale for a rehearsal: it begins now at the latest and ends at `until` at the earliest.
pub(super) fn bring_forward(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: SaleId,
    until: Timestamp,
) -> Result<bool, StoreError> {
    tx.touch_row(SALE_CHANGED, id);
    let changed = tx.execute(
        sql!("UPDATE flash_sales SET starts_at = CASE WHEN starts_at < $2 THEN starts_at ELSE $2 END, \
         ends_at = CASE WHEN ends_at > $3 THEN ends_at ELSE $3 END WHERE id = $1 AND status = 'open'"),
        &[id.into(), now.into(), until.into()],
    )?;
    Ok(changed == 1)
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
