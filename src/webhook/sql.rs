//! Every statement about webhook endpoints, events and deliveries.

use std::borrow::Cow;

use super::{
    Delivery, Endpoint, EndpointId, EndpointPatch, EndpointStatus, Event, NewEndpoint,
    SigningSecret,
};
use crate::check;
use crate::clock::Timestamp;
use crate::sql;
use crate::store::{Row, StoreError, Tx};

/// Endpoints that are read at most, whatever the settings have allowed before.
const ENDPOINTS_READ_MAX: u32 = 10_000;

fn secret(text: &str) -> Result<SigningSecret, StoreError> {
    SigningSecret::parse(text)
        .ok_or_else(|| StoreError::Corrupt("a webhook secret is none".to_owned()))
}

/// Reads a row of the columns that every statement below names in this order.
fn read(row: &Row<'_>) -> Result<Endpoint, StoreError> {
    Ok(Endpoint {
        id: row.get(0)?,
        url: row.get(1)?,
        description: row.get(2)?,
        events: row
            .get::<String>(3)?
            .split(' ')
            .map(str::to_owned)
            .collect(),
        status: row.get(4)?,
        disabled_reason: row.get(5)?,
        failing_since: row.get(6)?,
        secret: secret(&row.get::<String>(7)?)?,
        old_secret: row
            .get::<Option<String>>(8)?
            .map(|text| secret(&text))
            .transpose()?,
        old_secret_expires_at: row.get(9)?,
        created_at: row.get(10)?,
        updated_at: row.get(11)?,
    })
}

pub(super) fn endpoint(tx: &mut Tx<'_>, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
    tx.row(
        sql!("SELECT id, url, description, events, status, disabled_reason, failing_since, secret, old_secret, \
         old_secret_expires_at, created_at, updated_at FROM webhook_endpoints WHERE id = $1"),
        &[id.into()],
        read,
    )
}

pub(super) fn endpoints(tx: &mut Tx<'_>) -> Result<Vec<Endpoint>, StoreError> {
    tx.rows(
        sql!("SELECT id, url, description, events, status, disabled_reason, failing_since, secret, old_secret, \
         old_secret_expires_at, created_at, updated_at FROM webhook_endpoints ORDER BY id LIMIT $1"),
        &[ENDPOINTS_READ_MAX.into()],
        read,
    )
}

/// Makes one, unless there are as many as may be.
pub(super) fn insert_endpoint(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewEndpoint,
    secret: &SigningSecret,
    most: u32,
) -> Result<Option<Endpoint>, StoreError> {
    tx.row(
        sql!("INSERT INTO webhook_endpoints (url, description, events, status, secret, created_at, updated_at) \
         SELECT $1, $2, $3, 'active', $4, $5, $5 WHERE (SELECT count(*) FROM webhook_endpoints) < $6 \
         RETURNING id, url, description, events, status, disabled_reason, failing_since, secret, old_secret, \
         old_secret_expires_at, created_at, updated_at"),
        &[
            (&new.url).into(),
            check::trimmed(&new.description).into(),
            (&new.events.join(" ")).into(),
            secret.reveal().into(),
            now.into(),
            most.into(),
        ],
        read,
    )
}

pub(super) fn update_endpoint(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: EndpointId,
    patch: &EndpointPatch,
) -> Result<Option<Endpoint>, StoreError> {
    let events = patch.events.as_ref().map(|events| events.join(" "));
    let reason = (patch.status == Some(EndpointStatus::Disabled)).then_some("by hand");
    tx.row(
        sql!("UPDATE webhook_endpoints SET url = COALESCE($2, url), description = COALESCE($3, description), \
         events = COALESCE($4, events), status = COALESCE($5, status), \
         disabled_reason = CASE WHEN $5 IS NULL THEN disabled_reason ELSE $6 END, \
         failing_since = CASE WHEN $5 = 'active' THEN NULL ELSE failing_since END, updated_at = $7 WHERE id = $1 \
         RETURNING id, url, description, events, status, disabled_reason, failing_since, secret, old_secret, \
         old_secret_expires_at, created_at, updated_at"),
        &[
            id.into(),
            patch.url.as_ref().into(),
            patch.description.as_deref().map(check::trimmed).into(),
            events.as_ref().into(),
            patch.status.into(),
            reason.into(),
            now.into(),
        ],
        read,
    )
}

pub(super) fn rotate_secret(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: EndpointId,
    secret: &SigningSecret,
    old_until: Timestamp,
) -> Result<Option<Endpoint>, StoreError> {
    tx.row(
        sql!("UPDATE webhook_endpoints SET old_secret = secret, old_secret_expires_at = $4, secret = $2, updated_at = $3 \
         WHERE id = $1 \
         RETURNING id, url, description, events, status, disabled_reason, failing_since, secret, old_secret, \
         old_secret_expires_at, created_at, updated_at"),
        &[id.into(), secret.reveal().into(), now.into(), old_until.into()],
        read,
    )
}

pub(super) fn delete_endpoint(tx: &mut Tx<'_>, id: EndpointId) -> Result<bool, StoreError> {
    // Its deliveries go with the others of their age: there may be many.
    Ok(tx.execute(
        sql!("DELETE FROM webhook_endpoints WHERE id = $1"),
        &[id.into()],
    )? == 1)
}

/// Notes that it failed; answers since when it has.
pub(super) fn note_failure(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: EndpointId,
) -> Result<Option<Timestamp>, StoreError> {
    tx.row(
        sql!("UPDATE webhook_endpoints SET failing_since = COALESCE(failing_since, $2) WHERE id = $1 RETURNING failing_since"),
        &[id.into(), now.into()],
        |row| row.get(0),
    )
}

pub(super) fn note_success(tx: &mut Tx<'_>, id: EndpointId) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE webhook_endpoints SET failing_since = NULL WHERE id = $1 AND failing_since IS NOT NULL"),
        &[id.into()],
    )?;
    Ok(())
}

pub(super) fn disable(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: EndpointId,
    reason: &str,
) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE webhook_endpoints SET status = 'disabled', disabled_reason = $2, updated_at = $3 \
         WHERE id = $1 AND status = 'active'"),
        &[id.into(), reason.into(), now.into()],
    )? == 1)
}

pub(super) fn insert_events(tx: &mut Tx<'_>, events: &[Event]) -> Result<(), StoreError> {
    tx.execute_each(
        sql!("INSERT INTO webhook_events (id, kind, body, created_at) VALUES ($1, $2, $3, $4)"),
        events.iter().map(|event| {
            [
                (&event.id).into(),
                (&*event.kind).into(),
                (&event.body).into(),
                event.created_at.into(),
            ]
        }),
    )?;
    Ok(())
}

pub(super) fn event(tx: &mut Tx<'_>, id: &str) -> Result<Option<Event>, StoreError> {
    tx.row(
        sql!("SELECT id, kind, body, created_at FROM webhook_events WHERE id = $1"),
        &[id.into()],
        |row| {
            Ok(Event {
                id: row.get(0)?,
                kind: Cow::Owned(row.get(1)?),
                body: row.get(2)?,
                created_at: row.get(3)?,
            })
        },
    )
}

pub(super) fn insert_delivery(tx: &mut Tx<'_>, delivery: &Delivery) -> Result<(), StoreError> {
    tx.execute(
        sql!("INSERT INTO webhook_deliveries (endpoint_id, event_id, kind, task_id, attempt, at, outcome, status, \
         duration_ms, error, excerpt) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"),
        &[
            delivery.endpoint_id.into(),
            (&delivery.event_id).into(),
            (&*delivery.kind).into(),
            (&delivery.task_id.text()).into(),
            delivery.attempt.into(),
            delivery.at.into(),
            delivery.outcome.into(),
            delivery.status.into(),
            delivery.duration_ms.into(),
            delivery.error.as_ref().into(),
            delivery.excerpt.as_ref().into(),
        ],
    )?;
    Ok(())
}

fn read_delivery(row: &Row<'_>) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        id: row.get(0)?,
        endpoint_id: row.get(1)?,
        event_id: row.get(2)?,
        kind: Cow::Owned(row.get(3)?),
        task_id: row.get(4)?,
        attempt: row.get(5)?,
        at: row.get(6)?,
        outcome: row.get(7)?,
        status: row.get(8)?,
        duration_ms: row.get(9)?,
        error: row.get(10)?,
        excerpt: row.get(11)?,
    })
}

pub(super) fn deliveries(
    tx: &mut Tx<'_>,
    id: EndpointId,
    only_failed: bool,
    before: i64,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    let params = [id.into(), before.into(), limit.into()];
    if only_failed {
        tx.rows(
            sql!("failed", "SELECT id, endpoint_id, event_id, kind, task_id, attempt, at, outcome, status, duration_ms, error, excerpt \
             FROM webhook_deliveries WHERE endpoint_id = $1 AND id < $2 AND outcome = 'failed' ORDER BY id DESC LIMIT $3"),
            &params,
            read_delivery,
        )
    } else {
        tx.rows(
            sql!("all", "SELECT id, endpoint_id, event_id, kind, task_id, attempt, at, outcome, status, duration_ms, error, excerpt \
             FROM webhook_deliveries WHERE endpoint_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3"),
            &params,
            read_delivery,
        )
    }
}

/// Whether the oldest event or delivery is of before `until`. Keys are in the order of time.
pub(super) fn any_old(tx: &mut Tx<'_>, until: Timestamp) -> Result<bool, StoreError> {
    let event: Option<Timestamp> = tx.row(
        sql!(
            "events",
            "SELECT created_at FROM webhook_events ORDER BY id LIMIT 1"
        ),
        &[],
        |row| row.get(0),
    )?;
    let delivery: Option<Timestamp> = tx.row(
        sql!(
            "deliveries",
            "SELECT at FROM webhook_deliveries ORDER BY id LIMIT 1"
        ),
        &[],
        |row| row.get(0),
    )?;
    Ok([event, delivery].into_iter().flatten().any(|at| at < until))
}

/// Removes so many of the oldest of each, where they are of before `until`.
pub(super) fn purge(tx: &mut Tx<'_>, until: Timestamp, rows: u32) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "events",
            "DELETE FROM webhook_events WHERE created_at < $1 \
         AND id IN (SELECT id FROM webhook_events ORDER BY id LIMIT $2)"
        ),
        &[until.into(), rows.into()],
    )?;
    tx.execute(
        sql!(
            "deliveries",
            "DELETE FROM webhook_deliveries WHERE at < $1 \
         AND id IN (SELECT id FROM webhook_deliveries ORDER BY id LIMIT $2)"
        ),
        &[until.into(), rows.into()],
    )?;
    Ok(())
}
