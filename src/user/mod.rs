//! Everyone's accounts, as staff see and change them.
//!
//! Invariants: there is always an active admin, which stands in the update's WHERE (`auth::update_account`)
//! and not in a look before it; staff change customers, admins change everyone. Credentials and sessions are
//! `auth`'s, orders are `order`'s.

pub mod api;
pub mod events;
mod sql;
pub mod tasks;

use crate::auth::{self, Account, AccountChange, Role, Status, UserId};
use crate::check::{self, Checks, FieldError};
use crate::clock::Timestamp;
use crate::store::{StoreError, Tx};

/// Why an account was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Fields don't hold.
    #[error("the change is not valid")]
    Invalid(Vec<FieldError>),
    /// No such account.
    #[error("there is no user {0}")]
    NotFound(UserId),
    /// The change would leave nobody to run Onrush.
    #[error("this is the last active admin; make another one first")]
    LastAdmin,
    /// The caller's role does not reach that far.
    #[error("only an admin changes roles, and accounts of staff and admins")]
    Beyond,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What shall change about an account; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    /// What to call its owner.
    pub name: Option<String>,
    /// What it may do.
    pub role: Option<Role>,
    /// Whether it may be used.
    pub status: Option<Status>,
}

/// Changes an account. Sessions end with the same commit where the account is disabled, and where it gets
/// another role: a session of that role begins with the password. To be followed by
/// [`crate::auth::Auth::forget_callers`]. `by` is the role of the account that makes the change.
pub fn update(
    tx: &mut Tx<'_>,
    now: Timestamp,
    by: Role,
    id: UserId,
    patch: &Patch,
) -> Result<Account, UserError> {
    let mut checks = Checks::new();
    let name = patch.name.as_deref().map(check::trimmed);
    if let Some(name) = name {
        checks.name("name", name, 1, 100);
    }
    checks.finish().map_err(UserError::Invalid)?;
    let by_admin = by.covers(Role::Admin);
    if patch.role.is_some() && !by_admin {
        return Err(UserError::Beyond);
    }
    let before = get(tx, id)?.role;
    let change = AccountChange {
        name,
        role: patch.role,
        status: patch.status,
    };
    let Some(account) = auth::update_account(tx, now, by_admin, id, change)? else {
        let account = get(tx, id)?;
        return Err(if account.role == Role::Customer || by_admin {
            UserError::LastAdmin
        } else {
            UserError::Beyond
        });
    };
    if account.status == Status::Disabled || account.role != before {
        auth::end_sessions(tx, id)?;
    }
    Ok(account)
}

/// One account.
pub fn get(tx: &mut Tx<'_>, id: UserId) -> Result<Account, UserError> {
    sql::get(tx, id)?.ok_or(UserError::NotFound(id))
}

/// Which accounts to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Beginning of the address or of the name.
    pub beginning: Option<String>,
    /// Only this role.
    pub role: Option<Role>,
    /// Only this status.
    pub status: Option<Status>,
    /// Ids below this.
    pub before: i64,
    /// At most so many.
    pub limit: i64,
}

/// Accounts, newest first.
pub fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<Account>, UserError> {
    Ok(match &filter.beginning {
        Some(beginning) => sql::beginning_with(tx, beginning, filter)?,
        None => sql::list(tx, filter)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{NewAccount, create_account};
    use crate::config::{Auth, Database};
    use crate::monitor::Metrics;
    use crate::store::Store;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn account(store: &Store, email: &str, role: Role) -> UserId {
        let cheap = Auth {
            argon2_memory_kib: 8,
            ..Auth::default()
        };
        let new = NewAccount::checked(email, "李雷 Li Lei", "long enough", &cheap).expect("valid");
        store
            .write(move |tx| create_account(tx, NOW, &new, role))
            .blocking()
            .expect("account")
    }

    fn change(store: &Store, by: Role, id: UserId, patch: Patch) -> Result<Account, UserError> {
        store
            .write(move |tx| update(tx, NOW, by, id, &patch))
            .blocking()
    }

    #[test]
    fn there_is_always_an_admin_and_staff_reach_customers_only() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        let admin = account(&store, "admin@example.com", Role::Admin);
        let buyer = account(&store, "buyer@example.com", Role::Customer);
        let disabled = || Patch {
            status: Some(Status::Disabled),
            ..Patch::default()
        };
        let role = |role| Patch {
            role: Some(role),
            ..Patch::default()
        };
        for patch in [disabled(), role(Role::Staff), role(Role::Customer)] {
            let refused = change(&store, Role::Admin, admin, patch);
            assert!(matches!(refused, Err(UserError::LastAdmin)), "{refused:?}");
        }
        for (id, patch) in [
            (admin, disabled()),
            (buyer, role(Role::Admin)),
            (buyer, role(Role::Customer)),
        ] {
            let refused = change(&store, Role::Staff, id, patch);
            assert!(matches!(refused, Err(UserError::Beyond)), "{refused:?}");
        }
        let gone = change(&store, Role::Admin, UserId(99), disabled());
        assert!(matches!(gone, Err(UserError::NotFound(_))), "{gone:?}");
        let out = change(&store, Role::Staff, buyer, disabled()).expect("staff may");
        assert_eq!(out.status, Status::Disabled);
        // A disabled admin is none: with the only other one disabled, the first stays.
        let second = account(&store, "second@example.com", Role::Admin);
        change(&store, Role::Admin, second, disabled()).expect("the first is left");
        let refused = change(&store, Role::Admin, admin, role(Role::Staff));
        assert!(matches!(refused, Err(UserError::LastAdmin)), "{refused:?}");
        change(&store, Role::Admin, buyer, role(Role::Admin)).expect("disabled, so no help");
        let refused = change(&store, Role::Admin, admin, disabled());
        assert!(matches!(refused, Err(UserError::LastAdmin)), "{refused:?}");
    }

    #[test]
    fn accounts_are_found_by_the_beginning_of_address_or_name() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        let first = account(&store, "anna@example.com", Role::Customer);
        let second = account(&store, "annika@example.com", Role::Staff);
        let found = |beginning: Option<&str>, role, before| -> Vec<UserId> {
            let filter = Filter {
                beginning: beginning.map(str::to_owned),
                role,
                status: Some(Status::Active),
                before,
                limit: 10,
            };
            let list = store.read_blocking(|tx| list(tx, &filter)).expect("list");
            list.into_iter().map(|account| account.id).collect()
        };
        assert_eq!(found(None, None, i64::MAX), [second, first]);
        assert_eq!(found(Some("ANN"), None, i64::MAX), [second, first]);
        assert_eq!(found(Some("anna"), None, i64::MAX), [first]);
        assert_eq!(found(Some("李雷"), None, second.0), [first]);
        assert_eq!(found(None, Some(Role::Staff), i64::MAX), [second]);
        assert_eq!(found(Some("ann%"), None, i64::MAX), []);
    }
}
