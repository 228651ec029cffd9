//! Statements about how queues are served.

use crate::sql;
use crate::store::{Row, StoreError, Tx};
use crate::task::QueueRow;

fn queue(row: &Row<'_>) -> Result<QueueRow, StoreError> {
    Ok(QueueRow {
        name: row.get(0)?,
        paused_at: row.get(1)?,
        concurrency_max: row.get(2)?,
        rate_limit: row.get(3)?,
        rate_period_ms: row.get(4)?,
    })
}

pub(in crate::task) fn queues(tx: &mut Tx<'_>, limit: usize) -> Result<Vec<QueueRow>, StoreError> {
    tx.rows(
        sql!("SELECT name, paused_at, concurrency_max, rate_limit, rate_period_ms FROM queues ORDER BY name LIMIT $1"),
        &[i64::try_from(limit).unwrap_or(i64::MAX).into()],
        queue,
    )
}

pub(in crate::task) fn queue_row(
    tx: &mut Tx<'_>,
    name: &str,
) -> Result<Option<QueueRow>, StoreError> {
    tx.row(
        sql!("SELECT name, paused_at, concurrency_max, rate_limit, rate_period_ms FROM queues WHERE name = $1"),
        &[name.into()],
        queue,
    )
}

/// Writes a queue's row, unless that would make one too many.
pub(in crate::task) fn put_queue(
    tx: &mut Tx<'_>,
    row: &QueueRow,
    most: usize,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!(
            "INSERT INTO queues (name, paused_at, concurrency_max, rate_limit, rate_period_ms) \
         SELECT $1, $2, $3, $4, $5 WHERE (SELECT COUNT(*) FROM queues WHERE name <> $1) < $6 \
         ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at, \
         concurrency_max = excluded.concurrency_max, rate_limit = excluded.rate_limit, \
         rate_period_ms = excluded.rate_period_ms"
        ),
        &[
            (&row.name).into(),
            row.paused_at.into(),
            row.concurrency_max.into(),
            row.rate_limit.into(),
            row.rate_period_ms.into(),
            i64::try_from(most).unwrap_or(i64::MAX).into(),
        ],
    )? == 1)
}
