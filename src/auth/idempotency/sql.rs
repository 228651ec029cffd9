//! Every statement about idempotency keys.

use super::{IdempotencyKey, KeyAsked, Stored};
use crate::auth::UserId;
use crate::clock::Timestamp;
use crate::sql;
use crate::store::{StoreError, Tx};

pub(super) fn stored(
    tx: &mut Tx<'_>,
    caller: UserId,
    key: &str,
    since: Timestamp,
) -> Result<Option<Stored>, StoreError> {
    tx.row(
        sql!("SELECT fingerprint, location, body FROM idempotency_keys WHERE caller = $1 AND key = $2 AND created_at > $3"),
        &[(&caller.to_string()).into(), key.into(), since.into()],
        |row| Ok(Stored { fingerprint: row.get(0)?, location: row.get(1)?, body: row.get(2)? }),
    )
}

/// Takes each key that has no answer, or an old one; answers how many. A key that another transaction has taken
/// waits for its end here.
pub(super) fn begin_keys(tx: &mut Tx<'_>, asked: &[KeyAsked<'_>]) -> Result<u64, StoreError> {
    let callers: Vec<String> = asked.iter().map(|asked| asked.caller.to_string()).collect();
    tx.execute_each(
        sql!("INSERT INTO idempotency_keys (caller, key, fingerprint, location, body, created_at) \
         VALUES ($1, $2, '', '', '', $3) ON CONFLICT (caller, key) DO UPDATE SET fingerprint = excluded.fingerprint, \
         location = excluded.location, body = excluded.body, created_at = excluded.created_at \
         WHERE idempotency_keys.created_at <= $4"),
        callers.iter().zip(asked).map(|(caller, asked)| {
            let since = asked.key.since(asked.now);
            [caller.into(), asked.key.text().into(), asked.now.into(), since.into()]
        }),
    )
}

/// The answers under these keys, in their order; `None` for one that this transaction has taken.
pub(super) fn answered(
    tx: &mut Tx<'_>,
    asked: &[KeyAsked<'_>],
) -> Result<Vec<Option<Stored>>, StoreError> {
    let callers: Vec<String> = asked.iter().map(|asked| asked.caller.to_string()).collect();
    tx.row_of_each(
        sql!("SELECT fingerprint, location, body FROM idempotency_keys WHERE caller = $1 AND key = $2 AND body <> ''"),
        callers
            .iter()
            .zip(asked)
            .map(|(caller, asked)| [caller.into(), asked.key.text().into()]),
        |row| Ok(Stored { fingerprint: row.get(0)?, location: row.get(1)?, body: row.get(2)? }),
    )
}

/// Keeps answers under keys that this transaction has taken; answers how many.
pub(super) fn keep_answers(
    tx: &mut Tx<'_>,
    kept: &[(UserId, &IdempotencyKey, &Stored)],
) -> Result<u64, StoreError> {
    let callers: Vec<String> = kept.iter().map(|kept| kept.0.to_string()).collect();
    tx.execute_each(
        sql!(
            "UPDATE idempotency_keys SET fingerprint = $3, location = $4, body = $5 \
         WHERE caller = $1 AND key = $2 AND body = ''"
        ),
        callers.iter().zip(kept).map(|(caller, (_, key, stored))| {
            [
                caller.into(),
                key.text().into(),
                (&stored.fingerprint).into(),
                (&stored.location).into(),
                (&stored.body).into(),
            ]
        }),
    )
}

/// Gives up keys without an answer.
pub(super) fn give_up_keys(
    tx: &mut Tx<'_>,
    keys: &[(UserId, &IdempotencyKey)],
) -> Result<(), StoreError> {
    let callers: Vec<String> = keys.iter().map(|(caller, _)| caller.to_string()).collect();
    tx.execute_each(
        sql!("DELETE FROM idempotency_keys WHERE caller = $1 AND key = $2 AND body = ''"),
        callers
            .iter()
            .zip(keys)
            .map(|(caller, (_, key))| [caller.into(), key.text().into()]),
    )?;
    Ok(())
}

pub(super) fn purge_keys(tx: &mut Tx<'_>, until: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sql!("DELETE FROM idempotency_keys WHERE (caller, key) IN \
         (SELECT caller, key FROM idempotency_keys WHERE created_at <= $1 ORDER BY created_at LIMIT 500)"),
        &[until.into()],
    )
}
