//! Every statement about accounts' credentials, sessions and API keys.

use super::{
    Account, AccountChange, ApiKey, Carrier, KeyId, KeyRow, PlaceKind, Recipient, RegistrationRow,
    Role, Scope, SessionRow, USER_ROWS, UserId,
};
use crate::check;
use crate::clock::Timestamp;
use crate::config::Language;
use crate::sql;
use crate::store::{Param, Row, StoreError, Tx, value_rows};

pub(super) fn account_by_id(tx: &mut Tx<'_>, id: UserId) -> Result<Option<Account>, StoreError> {
    tx.row(
        sql!("SELECT id, email, name, role, status, created_at, last_seen_at FROM users WHERE id = $1"),
        &[id.into()],
        Account::read,
    )
}

pub(super) fn account_by_email(
    tx: &mut Tx<'_>,
    email: &str,
) -> Result<Option<(Account, Option<String>)>, StoreError> {
    tx.row(
        sql!("SELECT id, email, name, role, status, created_at, last_seen_at, password_hash FROM users WHERE email = $1"),
        &[email.into()],
        |row| Ok((Account::read(row)?, row.get(7)?)),
    )
}

pub(super) fn insert_account(
    tx: &mut Tx<'_>,
    now: Timestamp,
    email: &str,
    name: &str,
    password_hash: Option<&str>,
    role: Role,
) -> Result<UserId, StoreError> {
    tx.row(
        sql!(
            "INSERT INTO users (email, name, folded_name, password_hash, role, status, created_at, updated_at) \
         VALUES ($1, $2, $6, $3, $4, 'active', $5, $5) RETURNING id"
        ),
        &[
            email.into(),
            name.into(),
            password_hash.into(),
            role.into(),
            now.into(),
            (&check::folded(name)).into(),
        ],
        |row| row.get(0),
    )?
    .ok_or_else(|| StoreError::Bug("an insert returned no id".to_owned()))
}

/// Makes an admin only while there is none: the condition stands in the statement.
pub(super) fn insert_first_admin(
    tx: &mut Tx<'_>,
    now: Timestamp,
    email: &str,
    name: &str,
    password_hash: &str,
) -> Result<Option<UserId>, StoreError> {
    tx.row(
        sql!(
            "INSERT INTO users (email, name, folded_name, password_hash, role, status, created_at, updated_at) \
         SELECT $1, $2, $5, $3, 'admin', 'active', $4, $4 \
         WHERE NOT EXISTS (SELECT 1 FROM users WHERE role = 'admin') RETURNING id"
        ),
        &[
            email.into(),
            name.into(),
            password_hash.into(),
            now.into(),
            (&check::folded(name)).into(),
        ],
        |row| row.get(0),
    )
}

pub(super) fn has_admin(tx: &mut Tx<'_>) -> Result<bool, StoreError> {
    Ok(tx
        .row(
            sql!("SELECT 1 FROM users WHERE role = 'admin' LIMIT 1"),
            &[],
            |_| Ok(()),
        )?
        .is_some())
}

pub(super) fn insert_session(
    tx: &mut Tx<'_>,
    now: Timestamp,
    token_hash: &str,
    user: UserId,
    carrier: Carrier,
    expires_at: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sql!("INSERT INTO sessions (token_hash, user_id, kind, created_at, last_seen_at, expires_at) \
         VALUES ($1, $2, $3, $4, $4, $5)"),
        &[
            token_hash.into(),
            user.into(),
            carrier.into(),
            now.into(),
            expires_at.into(),
        ],
    )?;
    Ok(())
}

pub(super) fn session(tx: &mut Tx<'_>, token_hash: &str) -> Result<Option<SessionRow>, StoreError> {
    tx.row(
        sql!(
            "SELECT s.user_id, u.role, u.status, s.last_seen_at, s.expires_at \
         FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.token_hash = $1"
        ),
        &[token_hash.into()],
        |row| {
            Ok(SessionRow {
                user_id: row.get(0)?,
                role: row.get(1)?,
                status: row.get(2)?,
                last_seen_at: row.get(3)?,
                expires_at: row.get(4)?,
            })
        },
    )
}

pub(super) fn delete_session(tx: &mut Tx<'_>, token_hash: &str) -> Result<(), StoreError> {
    tx.execute(
        sql!("DELETE FROM sessions WHERE token_hash = $1"),
        &[token_hash.into()],
    )?;
    Ok(())
}

/// Notes when sessions were last used, in one statement. The number of rows is rounded up to a power
/// of two, so that few statements fill the cache of prepared ones.
pub(super) fn touch_sessions(
    tx: &mut Tx<'_>,
    seen: &[(String, Timestamp)],
) -> Result<(), StoreError> {
    let Some((hash, at)) = seen.last() else {
        return Ok(());
    };
    let places = seen.len().next_power_of_two();
    let pair = |hash, at: &Timestamp| [Param::Text(hash), (*at).into()];
    let mut params: Vec<Param<'_>> = seen.iter().flat_map(|(hash, at)| pair(hash, at)).collect();
    while params.len() < places * 2 {
        params.extend(pair(hash, at));
    }
    tx.execute(
        sql!(&format!(
            "WITH seen (token_hash, at) AS (VALUES {}) UPDATE sessions SET last_seen_at = seen.at FROM seen \
             WHERE sessions.token_hash = seen.token_hash AND sessions.last_seen_at < seen.at",
            value_rows(places, &["text", "bigint"])
        )),
        &params,
    )?;
    Ok(())
}

/// Notes when accounts were last used, in one statement; each account once. As [`touch_sessions`].
pub(super) fn touch_accounts(
    tx: &mut Tx<'_>,
    seen: &[(UserId, Timestamp)],
) -> Result<(), StoreError> {
    let Some(last) = seen.last() else {
        return Ok(());
    };
    let places = seen.len().next_power_of_two();
    let pair = |(id, at): &(UserId, Timestamp)| [Param::from(*id), Param::from(*at)];
    let mut params: Vec<Param<'_>> = seen.iter().flat_map(pair).collect();
    while params.len() < places * 2 {
        params.extend(pair(last));
    }
    tx.lock(USER_ROWS, seen.iter().map(|(id, _)| *id))?;
    tx.execute(
        sql!(&format!(
            "WITH seen (id, at) AS (VALUES {}) UPDATE users SET last_seen_at = seen.at FROM seen \
             WHERE users.id = seen.id AND (users.last_seen_at IS NULL OR users.last_seen_at < seen.at)",
            value_rows(places, &["bigint", "bigint"])
        )),
        &params,
    )?;
    Ok(())
}

/// Drops sessions past their end, a bounded number at a time.
pub(super) fn purge_sessions(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sql!(
            "DELETE FROM sessions WHERE token_hash IN \
         (SELECT token_hash FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT 500)"
        ),
        &[now.into()],
    )
}

fn api_key(row: &Row<'_>) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.get(0)?,
        user_id: row.get(1)?,
        name: row.get(2)?,
        scopes: row
            .get::<String>(3)?
            .split(' ')
            .filter_map(Scope::from_word)
            .collect(),
        created_at: row.get(4)?,
        expires_at: row.get(5)?,
        revoked_at: row.get(6)?,
    })
}

pub(super) fn insert_key(
    tx: &mut Tx<'_>,
    now: Timestamp,
    user: UserId,
    name: &str,
    expires_at: Option<Timestamp>,
    key_hash: &str,
    scopes: &str,
) -> Result<ApiKey, StoreError> {
    tx.row(
        sql!(
            "INSERT INTO api_keys (user_id, name, key_hash, scopes, created_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6) \
         RETURNING id, user_id, name, scopes, created_at, expires_at, revoked_at"
        ),
        &[
            user.into(),
            name.into(),
            key_hash.into(),
            scopes.into(),
            now.into(),
            expires_at.into(),
        ],
        api_key,
    )?
    .ok_or_else(|| StoreError::Bug("an insert returned no row".to_owned()))
}

pub(super) fn live_keys(tx: &mut Tx<'_>, user: UserId, now: Timestamp) -> Result<i64, StoreError> {
    let count = tx.row(
        sql!(
            "SELECT count(*) FROM api_keys WHERE user_id = $1 AND revoked_at IS NULL \
         AND (expires_at IS NULL OR expires_at > $2)"
        ),
        &[user.into(), now.into()],
        |row| row.get(0),
    )?;
    Ok(count.unwrap_or(0))
}

pub(super) fn keys(tx: &mut Tx<'_>, before: i64, limit: i64) -> Result<Vec<ApiKey>, StoreError> {
    tx.rows(
        sql!(
            "SELECT id, user_id, name, scopes, created_at, expires_at, revoked_at FROM api_keys \
         WHERE id < $1 ORDER BY id DESC LIMIT $2"
        ),
        &[before.into(), limit.into()],
        api_key,
    )
}

pub(super) fn keys_of(
    tx: &mut Tx<'_>,
    owner: UserId,
    before: i64,
    limit: i64,
) -> Result<Vec<ApiKey>, StoreError> {
    tx.rows(
        sql!(
            "SELECT id, user_id, name, scopes, created_at, expires_at, revoked_at FROM api_keys \
         WHERE user_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3"
        ),
        &[owner.into(), before.into(), limit.into()],
        api_key,
    )
}

pub(super) fn revoke_key(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: KeyId,
    owner: Option<UserId>,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        sql!(
            "UPDATE api_keys SET revoked_at = coalesce(revoked_at, $2) \
         WHERE id = $1 AND ($3 IS NULL OR user_id = $3)"
        ),
        &[id.into(), now.into(), owner.into()],
    )?;
    Ok(changed == 1)
}

pub(super) fn key(
    tx: &mut Tx<'_>,
    key_hash: &str,
    now: Timestamp,
) -> Result<Option<KeyRow>, StoreError> {
    tx.row(
        sql!("SELECT k.user_id, u.role, u.status, k.scopes, k.expires_at FROM api_keys k JOIN users u ON u.id = k.user_id \
         WHERE k.key_hash = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)"),
        &[key_hash.into(), now.into()],
        |row| Ok(KeyRow { user_id: row.get(0)?, role: row.get(1)?, status: row.get(2)?, scopes: row.get(3)?, expires_at: row.get(4)? }),
    )
}

/// How an active account is written to.
pub(super) fn recipient(tx: &mut Tx<'_>, id: UserId) -> Result<Option<Recipient>, StoreError> {
    tx.row(
        sql!("SELECT email, name, proven_at, language FROM users WHERE id = $1 AND status = 'active' AND email IS NOT NULL"),
        &[id.into()],
        |row| {
            let (name, proven_at): (String, Option<Timestamp>) = (row.get(1)?, row.get(2)?);
            let language: Option<String> = row.get(3)?;
            Ok(Recipient {
                email: row.get(0)?,
                name: proven_at.map(|_| name),
                language: language.as_deref().and_then(Language::from_word),
            })
        },
    )
}

/// Notes that the account's name was chosen by who reads its mails, or by staff.
pub(super) fn prove(tx: &mut Tx<'_>, now: Timestamp, id: UserId) -> Result<(), StoreError> {
    tx.locks(USER_ROWS, id);
    tx.execute(
        sql!("UPDATE users SET proven_at = $2 WHERE id = $1"),
        &[id.into(), now.into()],
    )?;
    Ok(())
}

/// Ends the account's sessions beyond the newest `most`, a bounded number at once; answers the hashes of
/// their tokens.
pub(super) fn end_sessions_beyond(
    tx: &mut Tx<'_>,
    user: UserId,
    most: u32,
) -> Result<Vec<String>, StoreError> {
    tx.rows(
        sql!(
            "DELETE FROM sessions WHERE token_hash IN \
         (SELECT token_hash FROM sessions WHERE user_id = $1 \
          ORDER BY created_at DESC, token_hash LIMIT 500 OFFSET $2) RETURNING token_hash"
        ),
        &[user.into(), i64::from(most).into()],
        |row| row.get(0),
    )
}

fn registration_row(row: &Row<'_>) -> Result<RegistrationRow, StoreError> {
    Ok(RegistrationRow {
        id: row.get(0)?,
        email: row.get(1)?,
        name: row.get(2)?,
        password_hash: row.get(3)?,
        language: row.get(4)?,
    })
}

pub(super) fn insert_registration(
    tx: &mut Tx<'_>,
    asked: &RegistrationRow,
    expires_at: Timestamp,
) -> Result<i64, StoreError> {
    tx.row(
        sql!(
            "INSERT INTO registrations (email, name, password_hash, language, expires_at) \
         VALUES ($1, $2, $3, $4, $5) RETURNING id"
        ),
        &[
            (&asked.email).into(),
            (&asked.name).into(),
            (&asked.password_hash).into(),
            asked.language.as_deref().into(),
            expires_at.into(),
        ],
        |row| row.get(0),
    )?
    .ok_or_else(|| StoreError::Bug("an insert returned no id".to_owned()))
}

/// Gives a registration the token that proves its address, instead of one before.
pub(super) fn set_registration_token(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: i64,
    token_hash: &str,
) -> Result<Option<RegistrationRow>, StoreError> {
    tx.row(
        sql!(
            "UPDATE registrations SET token_hash = $2 WHERE id = $1 AND expires_at > $3 \
         RETURNING id, email, name, password_hash, language"
        ),
        &[id.into(), token_hash.into(), now.into()],
        registration_row,
    )
}

pub(super) fn registration(
    tx: &mut Tx<'_>,
    now: Timestamp,
    token_hash: &str,
) -> Result<Option<RegistrationRow>, StoreError> {
    tx.row(
        sql!(
            "SELECT id, email, name, password_hash, language FROM registrations \
         WHERE token_hash = $1 AND expires_at > $2"
        ),
        &[token_hash.into(), now.into()],
        registration_row,
    )
}

/// Takes a registration away, so that one alone makes an account of it.
pub(super) fn take_registration(
    tx: &mut Tx<'_>,
    id: i64,
    token_hash: &str,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        sql!("DELETE FROM registrations WHERE id = $1 AND token_hash = $2"),
        &[id.into(), token_hash.into()],
    )?;
    Ok(changed == 1)
}

/// Drops registrations past their end, a bounded number at a time.
pub(super) fn purge_registrations(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sql!(
            "DELETE FROM registrations WHERE id IN \
         (SELECT id FROM registrations WHERE expires_at <= $1 ORDER BY expires_at LIMIT 500)"
        ),
        &[now.into()],
    )
}

pub(super) fn set_language(tx: &mut Tx<'_>, id: UserId, language: &str) -> Result<(), StoreError> {
    tx.locks(USER_ROWS, id);
    tx.execute(
        sql!("UPDATE users SET language = $2 WHERE id = $1"),
        &[id.into(), language.into()],
    )?;
    Ok(())
}

/// Whether the account has logged in from this place.
pub(super) fn is_known_place(
    tx: &mut Tx<'_>,
    place_hash: &str,
    user: UserId,
) -> Result<bool, StoreError> {
    let found = tx.row(
        sql!("SELECT 1 FROM known_places WHERE place_hash = $1 AND user_id = $2"),
        &[place_hash.into(), user.into()],
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Whether any account has logged in from the device with this token.
pub(super) fn is_device(tx: &mut Tx<'_>, place_hash: &str) -> Result<bool, StoreError> {
    let found = tx.row(
        sql!("SELECT 1 FROM known_places WHERE place_hash = $1 AND kind = 'device' LIMIT 1"),
        &[place_hash.into()],
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

pub(super) fn note_place(
    tx: &mut Tx<'_>,
    now: Timestamp,
    place_hash: &str,
    user: UserId,
    kind: PlaceKind,
) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "INSERT INTO known_places (place_hash, user_id, kind, seen_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (place_hash, user_id) DO UPDATE SET seen_at = excluded.seen_at"
        ),
        &[place_hash.into(), user.into(), kind.into(), now.into()],
    )?;
    Ok(())
}

/// Keeps the account's `most` places of this kind that were used last.
pub(super) fn forget_places_beyond(
    tx: &mut Tx<'_>,
    user: UserId,
    kind: PlaceKind,
    most: i64,
) -> Result<(), StoreError> {
    tx.execute(
        sql!(
            "DELETE FROM known_places WHERE (place_hash, user_id) IN \
         (SELECT place_hash, user_id FROM known_places WHERE user_id = $1 AND kind = $2 \
          ORDER BY seen_at DESC, place_hash DESC LIMIT 100 OFFSET $3)"
        ),
        &[user.into(), kind.into(), most.into()],
    )?;
    Ok(())
}

/// Drops places that were last used before `until`, a bounded number at a time.
pub(super) fn purge_places(tx: &mut Tx<'_>, until: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sql!("DELETE FROM known_places WHERE (place_hash, user_id) IN \
         (SELECT place_hash, user_id FROM known_places WHERE seen_at <= $1 ORDER BY seen_at LIMIT 500)"),
        &[until.into()],
    )
}

/// The account of a customer whom the shop before knew by this id, made if need be.
pub fn past_customer(
    tx: &mut Tx<'_>,
    now: Timestamp,
    external_id: &str,
    name: &str,
) -> Result<UserId, StoreError> {
    tx.row(
        sql!(
            "INSERT INTO users (external_id, name, folded_name, role, status, created_at, updated_at) \
         VALUES ($1, $3, $4, 'customer', 'active', $2, $2) \
         ON CONFLICT (external_id) DO UPDATE SET updated_at = users.updated_at RETURNING id"
        ),
        &[
            external_id.into(),
            now.into(),
            name.into(),
            (&check::folded(name)).into(),
        ],
        |row| row.get(0),
    )?
    .ok_or_else(|| StoreError::Bug("an upsert returned no id".to_owned()))
}

/// Changes what is not `None` of an account, unless that took the last active admin away, or the account is no
/// customer's and `by_admin` does not hold; `None` when nothing changed.
pub fn update_account(
    tx: &mut Tx<'_>,
    now: Timestamp,
    by_admin: bool,
    id: UserId,
    change: AccountChange<'_>,
) -> Result<Option<Account>, StoreError> {
    // Two admins who take each other's role away must not both find the other in place.
    let mut accounts: Vec<UserId> = tx.rows(
        sql!(
            "admins",
            "SELECT id FROM users WHERE role = 'admin' AND status = 'active' ORDER BY id LIMIT 1000"
        ),
        &[],
        |row| row.get(0),
    )?;
    accounts.push(id);
    tx.lock(USER_ROWS, accounts)?;
    let folded = change.name.map(check::folded);
    tx.row(
        sql!("UPDATE users SET name = coalesce($4, name), folded_name = coalesce($7, folded_name), \
         role = coalesce($5, role), status = coalesce($6, status), updated_at = $2 \
         WHERE id = $1 AND (role = 'customer' OR $3 = 1) AND (\
           role <> 'admin' OR status <> 'active' \
           OR (coalesce($5, role) = 'admin' AND coalesce($6, status) = 'active') \
           OR EXISTS (SELECT 1 FROM users WHERE role = 'admin' AND status = 'active' AND id <> $1)) \
         RETURNING id, email, name, role, status, created_at, last_seen_at"),
        &[
            id.into(),
            now.into(),
            i64::from(by_admin).into(),
            change.name.into(),
            change.role.into(),
            change.status.into(),
            folded.as_ref().into(),
        ],
        Account::read,
    )
}

/// Accounts whose name an earlier version left as it was written, at most so many.
pub(super) fn unfolded(tx: &mut Tx<'_>, most: i64) -> Result<Vec<(UserId, String)>, StoreError> {
    tx.rows(
        sql!("SELECT id, name FROM users WHERE folded_name IS NULL LIMIT $1"),
        &[most.into()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Writes names as they are searched for.
pub(super) fn fold(tx: &mut Tx<'_>, names: &[(UserId, String)]) -> Result<(), StoreError> {
    let folded: Vec<String> = names.iter().map(|(_, name)| check::folded(name)).collect();
    tx.execute_each(
        sql!("UPDATE users SET folded_name = $2 WHERE id = $1 AND folded_name IS NULL"),
        names
            .iter()
            .zip(&folded)
            .map(|((id, _), folded)| [(*id).into(), folded.into()]),
    )?;
    Ok(())
}

/// Ends all sessions of an account.
pub fn end_sessions(tx: &mut Tx<'_>, id: UserId) -> Result<(), StoreError> {
    tx.execute(
        sql!("DELETE FROM sessions WHERE user_id = $1"),
        &[id.into()],
    )?;
    Ok(())
}
