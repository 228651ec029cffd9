//! Every statement about sales and what is left of them.

use super::{NewSale, SALE_CHANGED, SALE_ROWS, Sale, SaleId, SaleStatus, SaleTerms, TakenAgain};
use crate::clock::Timestamp;
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
pub fn insert(
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
        // A reader who asked for this key before was told that there is no such sale.
        tx.touch_row(SALE_CHANGED, sale.id);
    }
    Ok(made)
}

/// One sale.
pub fn get(tx: &mut Tx<'_>, id: SaleId) -> Result<Option<Sale>, StoreError> {
    tx.row(
        sql!(&format!("SELECT {COLUMNS} FROM flash_sales WHERE id = $1")),
        &[id.into()],
        sale,
    )
}

/// The highest key that a sale has.
pub fn highest_id(tx: &mut Tx<'_>) -> Result<Option<i64>, StoreError> {
    let highest = tx.row(sql!("SELECT max(id) FROM flash_sales"), &[], |row| {
        row.get(0)
    })?;
    Ok(highest.flatten())
}

/// Sales with keys below `before`, newest first.
pub fn list(tx: &mut Tx<'_>, before: i64, limit: i64) -> Result<Vec<Sale>, StoreError> {
    tx.rows(
        sql!(&format!(
            "SELECT {COLUMNS} FROM flash_sales WHERE id < $1 ORDER BY id DESC LIMIT $2"
        )),
        &[before.into(), limit.into()],
        sale,
    )
}

/// The sales that are not closed, at most 10,000.
pub fn open_sales(tx: &mut Tx<'_>) -> Result<Vec<Sale>, StoreError> {
    tx.rows(
        sql!(&format!(
            "SELECT {COLUMNS} FROM flash_sales WHERE status = 'open' ORDER BY ends_at LIMIT 10000"
        )),
        &[],
        sale,
    )
}

/// Sales whose window is over and that are not closed, at most 100.
pub fn due(tx: &mut Tx<'_>, now: Timestamp) -> Result<Vec<SaleId>, StoreError> {
    tx.rows(
        sql!("SELECT id FROM flash_sales WHERE status = 'open' AND ends_at <= $1 ORDER BY ends_at LIMIT 100"),
        &[now.into()],
        |row| row.get(0),
    )
}

/// The decision: takes units from a sale that is open, in its window, and has them.
pub fn take(
    tx: &mut Tx<'_>,
    id: SaleId,
    quantity: u32,
    now: Timestamp,
) -> Result<Option<SaleTerms>, StoreError> {
    tx.touch_row(SALE_CHANGED, id);
    tx.locks(SALE_ROWS, id);
    tx.row(
        sql!("UPDATE flash_sales SET remaining = remaining - $2, \
         held = held + CASE WHEN payment_window_seconds > 0 AND unit_amount > 0 THEN $2 ELSE 0 END, \
         sold = sold + CASE WHEN payment_window_seconds > 0 AND unit_amount > 0 THEN 0 ELSE $2 END \
         WHERE id = $1 AND status = 'open' AND starts_at <= $3 AND ends_at > $3 AND remaining >= $2 \
         RETURNING product_id, remaining, unit_amount, currency, per_user_limit, payment_window_seconds"),
        &[id.into(), quantity.into(), now.into()],
        |row| {
            Ok(SaleTerms {
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

/// A sale that no other transaction changes before this one ends.
pub fn lock(tx: &mut Tx<'_>, id: SaleId) -> Result<Option<Sale>, StoreError> {
    tx.lock_row(
        SALE_ROWS,
        id,
        sql!(&format!("SELECT {COLUMNS} FROM flash_sales WHERE id = $1")),
        &[id.into()],
        sale,
    )
}

/// [`take`] of what claims of one sale were granted together: the first of them came at `first`, the last at
/// `last`.
pub fn take_all(
    tx: &mut Tx<'_>,
    id: SaleId,
    quantity: i64,
    (first, last): (Timestamp, Timestamp),
) -> Result<bool, StoreError> {
    tx.touch_row(SALE_CHANGED, id);
    tx.locks(SALE_ROWS, id);
    Ok(tx.execute(
        sql!("UPDATE flash_sales SET remaining = remaining - $2, \
         held = held + CASE WHEN payment_window_seconds > 0 AND unit_amount > 0 THEN $2 ELSE 0 END, \
         sold = sold + CASE WHEN payment_window_seconds > 0 AND unit_amount > 0 THEN 0 ELSE $2 END \
         WHERE id = $1 AND status = 'open' AND starts_at <= $3 AND ends_at > $4 AND remaining >= $2"),
        &[id.into(), quantity.into(), first.into(), last.into()],
    )? == 1)
}

/// Closes an open sale; answers it as it is then, and what was left in it. `None` when it is not there, or was
/// closed before.
pub fn close(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: SaleId,
    status: SaleStatus,
) -> Result<Option<(Sale, i64)>, StoreError> {
    let Some(before) = lock(tx, id)?.filter(|sale| sale.status == SaleStatus::Open) else {
        return Ok(None);
    };
    tx.touch_row(SALE_CHANGED, id);
    let closed = tx.row(
        sql!(&format!(
            "UPDATE flash_sales SET returned = returned + remaining, remaining = 0, status = $2, closed_at = $3 \
             WHERE id = $1 AND status = 'open' RETURNING {COLUMNS}"
        )),
        &[id.into(), status.into(), now.into()],
        sale,
    )?;
    match closed {
        Some(sale) => Ok(Some((sale, before.remaining))),
        None => Err(StoreError::Bug(format!("sale {id} changed under its lock"))),
    }
}

/// Opens a sale for a rehearsal: it begins now at the latest and ends at `until` at the earliest.
pub fn bring_forward(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: SaleId,
    until: Timestamp,
) -> Result<bool, StoreError> {
    tx.touch_row(SALE_CHANGED, id);
    tx.locks(SALE_ROWS, id);
    let changed = tx.execute(
        sql!("UPDATE flash_sales SET starts_at = CASE WHEN starts_at < $2 THEN starts_at ELSE $2 END, \
         ends_at = CASE WHEN ends_at > $3 THEN ends_at ELSE $3 END WHERE id = $1 AND status = 'open'"),
        &[id.into(), now.into(), until.into()],
    )?;
    Ok(changed == 1)
}

/// Units of an order, paid or (`was_held`) not yet, can be claimed again while the sale is open; `false` when it
/// is closed.
pub fn give_back(
    tx: &mut Tx<'_>,
    sale: SaleId,
    quantity: u32,
    was_held: bool,
) -> Result<bool, StoreError> {
    let sql = if was_held {
        "UPDATE flash_sales SET remaining = remaining + $2, held = held - $2 WHERE id = $1 AND status = 'open'"
    } else {
        "UPDATE flash_sales SET remaining = remaining + $2, sold = sold - $2 WHERE id = $1 AND status = 'open'"
    };
    tx.touch_row(SALE_CHANGED, sale);
    tx.locks(SALE_ROWS, sale);
    Ok(tx.execute(sql!(sql), &[sale.into(), quantity.into()])? == 1)
}

/// Units of a closed sale's order, paid or (`was_held`) not yet, go to the free stock: the sale counts them as
/// returned.
pub fn count_returned(
    tx: &mut Tx<'_>,
    sale: SaleId,
    quantity: u32,
    was_held: bool,
) -> Result<(), StoreError> {
    let sql = if was_held {
        "UPDATE flash_sales SET returned = returned + $2, held = held - $2 WHERE id = $1"
    } else {
        "UPDATE flash_sales SET returned = returned + $2, sold = sold - $2 WHERE id = $1"
    };
    tx.touch_row(SALE_CHANGED, sale);
    tx.locks(SALE_ROWS, sale);
    tx.execute(sql!(sql), &[sale.into(), quantity.into()])?;
    Ok(())
}

/// Units that an order held are paid.
pub fn sell_held(tx: &mut Tx<'_>, sale: SaleId, quantity: u32) -> Result<(), StoreError> {
    tx.touch_row(SALE_CHANGED, sale);
    tx.locks(SALE_ROWS, sale);
    tx.execute(
        sql!("UPDATE flash_sales SET held = held - $2, sold = sold + $2 WHERE id = $1"),
        &[sale.into(), quantity.into()],
    )?;
    Ok(())
}

/// A late payment, of `unit_amount` for each unit, takes units of its sale again, by the terms of the sale: within
/// its window and the payment window after it, at a price that has not risen, while the sale has any of its
/// units left. A sale that was stopped by hand has none for it. `None` when it gets none.
pub fn take_again(
    tx: &mut Tx<'_>,
    now: Timestamp,
    sale: SaleId,
    quantity: u32,
    unit_amount: i64,
) -> Result<Option<TakenAgain>, StoreError> {
    let params = [sale.into(), quantity.into(), unit_amount.into(), now.into()];
    tx.touch_row(SALE_CHANGED, sale);
    tx.locks(SALE_ROWS, sale);
    let open = tx.row(
        sql!("open", "UPDATE flash_sales SET remaining = remaining - $2, sold = sold + $2 WHERE id = $1 AND status = 'open' \
         AND remaining >= $2 AND unit_amount <= $3 AND ends_at + payment_window_seconds * 1000000 > $4 \
         RETURNING remaining"),
        &params,
        |row| Ok(TakenAgain::FromSale { remaining: row.get(0)? }),
    )?;
    if open.is_some() {
        return Ok(open);
    }
    let ended = tx.execute(
        sql!("ended", "UPDATE flash_sales SET returned = returned - $2, sold = sold + $2 WHERE id = $1 AND status = 'ended' \
         AND returned >= $2 AND unit_amount <= $3 AND ends_at + payment_window_seconds * 1000000 > $4"),
        &params,
    )?;
    Ok((ended == 1).then_some(TakenAgain::FromReturned))
}

/// The flash sales of a product that run or will, the earliest first, at most ten.
pub fn not_over(tx: &mut Tx<'_>, now: Timestamp, id: ProductId) -> Result<Vec<SaleId>, StoreError> {
    tx.rows(
        sql!(
            "SELECT id FROM flash_sales WHERE product_id = $1 AND status = 'open' AND ends_at > $2 \
         ORDER BY starts_at LIMIT 10"
        ),
        &[id.into(), now.into()],
        |row| row.get(0),
    )
}

/// Shows the units that can still be claimed, by product.
pub fn each_allotted(
    tx: &mut Tx<'_>,
    mut visit: impl FnMut(ProductId, i64),
) -> Result<(), StoreError> {
    tx.each(
        sql!("SELECT product_id, CAST(SUM(remaining) AS bigint) FROM flash_sales WHERE remaining > 0 GROUP BY product_id"),
        &[],
        |row| {
            visit(row.get(0)?, row.get(1)?);
            Ok(())
        },
    )
}
