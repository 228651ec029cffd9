//! What accounts tell the world of.

use serde_json::json;

use crate::auth::Account;
use crate::clock::Timestamp;
use crate::store::{StoreError, Tx};
use crate::webhook::{EventKind, Events, Holds};

static REGISTERED: EventKind = EventKind {
    name: "user.registered",
    about: "Somebody registered.",
    about_zh: "有新用户注册",
    shape: &[
        ("user_id", Holds::Integer),
        ("name", Holds::Text),
        ("email", Holds::OrNull(&Holds::Text)),
    ],
};

/// All that happens to an account.
pub static EVENTS: &[&EventKind] = &[&REGISTERED];

/// Tells that an account was made by the person whose it is.
pub fn registered(
    events: &Events,
    tx: &mut Tx<'_>,
    now: Timestamp,
    account: &Account,
) -> Result<(), StoreError> {
    events.emit(
        tx,
        now,
        &REGISTERED,
        || json!({"user_id": account.id, "name": account.name, "email": account.email}),
    )
}
