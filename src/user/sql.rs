//! Every statement that shows accounts as staff see them; what changes them is `auth`'s.

use super::Filter;
use crate::auth::{Account, UserId};
use crate::check;
use crate::sql;
use crate::store::{StoreError, Tx};

pub(super) fn get(tx: &mut Tx<'_>, id: UserId) -> Result<Option<Account>, StoreError> {
    tx.row(
        sql!("SELECT id, email, name, role, status, created_at, last_seen_at FROM users WHERE id = $1"),
        &[id.into()],
        Account::read,
    )
}

pub(super) fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<Account>, StoreError> {
    let params = [
        filter.before.into(),
        filter.limit.into(),
        filter.status.into(),
        filter.role.into(),
    ];
    // Two texts, because an index serves only a role that is there for certain.
    let sql = if filter.role.is_some() {
        "SELECT id, email, name, role, status, created_at, last_seen_at FROM users \
         WHERE role = $4 AND id < $1 AND ($3 IS NULL OR status = $3) ORDER BY id DESC LIMIT $2"
    } else {
        "SELECT id, email, name, role, status, created_at, last_seen_at FROM users \
         WHERE id < $1 AND ($3 IS NULL OR status = $3) AND $4 IS NULL ORDER BY id DESC LIMIT $2"
    };
    tx.rows(sql!(sql), &params, Account::read)
}

/// Accounts whose address or name begins so, in small letters both: two ranges of two indexes.
pub(super) fn beginning_with(
    tx: &mut Tx<'_>,
    beginning: &str,
    filter: &Filter,
) -> Result<Vec<Account>, StoreError> {
    let (address, name) = (beginning.to_lowercase(), check::folded(beginning));
    let end = |of: &str| format!("{of}\u{10ffff}");
    tx.rows(
        sql!("SELECT id, email, name, role, status, created_at, last_seen_at FROM users WHERE id IN (\
           SELECT id FROM users WHERE email >= $1 AND email < $2 \
           UNION SELECT id FROM users WHERE folded_name >= $3 AND folded_name < $4) \
         AND id < $5 AND ($7 IS NULL OR role = $7) AND ($8 IS NULL OR status = $8) \
         ORDER BY id DESC LIMIT $6"),
        &[
            (&address).into(),
            (&end(&address)).into(),
            (&name).into(),
            (&end(&name)).into(),
            filter.before.into(),
            filter.limit.into(),
            filter.role.into(),
            filter.status.into(),
        ],
        Account::read,
    )
}
