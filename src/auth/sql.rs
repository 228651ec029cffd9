//! Every statement about accounts' credentials, sessions and API keys.

use super::{Account, KeyRow, Role, SessionRow, UserId};
use crate::clock::Timestamp;
use crate::store::{Row, StoreError, Tx};

fn account(row: &Row<'_>) -> Result<Account, StoreError> {
    Ok(Account {
        id: row.get(0)?,
        email: row.get(1)?,
        name: row.get(2)?,
        role: row.get(3)?,
        status: row.get(4)?,
        created_at: row.get(5)?,
        last_seen_at: row.get(6)?,
    })
}

pub(super) fn account_by_id(tx: &mut Tx<'_>, id: UserId) -> Result<Option<Account>, StoreError> {
    tx.row(
        "SELECT id, email, name, role, status, created_at, last_seen_at FROM users WHERE id = $1",
        &[id.into()],
        account,
    )
}

pub(super) fn account_by_email(
    tx: &mut Tx<'_>,
    email: &str,
) -> Result<Option<(Account, Option<String>)>, StoreError> {
    tx.row(
        "SELECT id, email, name, role, status, created_at, last_seen_at, password_hash FROM users WHERE email = $1",
        &[email.into()],
        |row| Ok((account(row)?, row.get(7)?)),
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
        "INSERT INTO users (email, name, password_hash, role, status, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, 'active', $5, $5) RETURNING id",
        &[
            email.into(),
            name.into(),
            password_hash.into(),
            role.into(),
            now.into(),
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
        "INSERT INTO users (email, name, password_hash, role, status, created_at, updated_at) \
         SELECT $1, $2, $3, 'admin', 'active', $4, $4 \
         WHERE NOT EXISTS (SELECT 1 FROM users WHERE role = 'admin') RETURNING id",
        &[email.into(), name.into(), password_hash.into(), now.into()],
        |row| row.get(0),
    )
}

pub(super) fn has_admin(tx: &mut Tx<'_>) -> Result<bool, StoreError> {
    Ok(tx
        .row(
            "SELECT 1 FROM users WHERE role = 'admin' LIMIT 1",
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
    expires_at: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO sessions (token_hash, user_id, kind, created_at, last_seen_at, expires_at) \
         VALUES ($1, $2, 'bearer', $3, $3, $4)",
        &[
            token_hash.into(),
            user.into(),
            now.into(),
            expires_at.into(),
        ],
    )?;
    Ok(())
}

pub(super) fn session(tx: &mut Tx<'_>, token_hash: &str) -> Result<Option<SessionRow>, StoreError> {
    tx.row(
        "SELECT s.user_id, u.role, u.status, s.last_seen_at, s.expires_at \
         FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.token_hash = $1",
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
        "DELETE FROM sessions WHERE token_hash = $1",
        &[token_hash.into()],
    )?;
    Ok(())
}

pub(super) fn touch_session(
    tx: &mut Tx<'_>,
    token_hash: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE sessions SET last_seen_at = $2 WHERE token_hash = $1 AND last_seen_at < $2",
        &[token_hash.into(), at.into()],
    )?;
    Ok(())
}

/// Drops sessions past their end, a bounded number at a time.
pub(super) fn purge_sessions(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM sessions WHERE token_hash IN \
         (SELECT token_hash FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT 500)",
        &[now.into()],
    )
}

pub(super) fn insert_key(
    tx: &mut Tx<'_>,
    now: Timestamp,
    user: UserId,
    name: &str,
    key_hash: &str,
    scopes: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO api_keys (user_id, name, key_hash, scopes, created_at) VALUES ($1, $2, $3, $4, $5)",
        &[user.into(), name.into(), key_hash.into(), scopes.into(), now.into()],
    )?;
    Ok(())
}

pub(super) fn key(
    tx: &mut Tx<'_>,
    key_hash: &str,
    now: Timestamp,
) -> Result<Option<KeyRow>, StoreError> {
    tx.row(
        "SELECT k.user_id, u.role, u.status, k.scopes FROM api_keys k JOIN users u ON u.id = k.user_id \
         WHERE k.key_hash = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)",
        &[key_hash.into(), now.into()],
        |row| Ok(KeyRow { user_id: row.get(0)?, role: row.get(1)?, status: row.get(2)?, scopes: row.get(3)? }),
    )
}
