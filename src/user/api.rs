//! Accounts over HTTP, for staff. `GET /users/{id}` stands in `order/api.rs`, because it may include
//! orders and a user knows of none.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::{Filter, Patch, UserError};
use crate::auth::api::{Access, Tag, UserView};
use crate::auth::{Account, Auth, Caller, Role, Scope, Status, UserId};
use crate::check::FieldError;
use crate::clock::Clock;
use crate::http::{Body, Created, Failure, Problem, fails, read_cursor};
use crate::monitor::security::Event;
use crate::store::Store;

impl From<UserError> for Problem {
    fn from(error: UserError) -> Self {
        let text = error.to_string();
        match error {
            UserError::Invalid(errors) => Problem::validation(errors),
            UserError::NotFound(_) => Problem::not_found("user_not_found", text),
            UserError::LastAdmin => Problem::conflict("last_admin", text),
            UserError::Beyond => Problem::forbidden(text),
            UserError::Store(error) => error.into(),
        }
    }
}

/// One page of accounts.
#[derive(Serialize, Object)]
struct UserPage {
    /// Accounts, newest first
    items: Vec<UserView>,
    /// Pass it as `cursor` for the next page
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// An account to make.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct UserBody {
    /// Address to log in with
    #[oai(validator(
        min_length = 3,
        max_length = 254,
        pattern = r#"^\s*[^@\s<>()\[\]\\,;:"]+@[^@\s<>()\[\]\\,;:"/]+\s*$"#
    ))]
    email: String,
    /// What to call its owner
    #[oai(validator(min_length = 1, max_length = 100))]
    name: String,
    /// At least 8 characters, none of the most used passwords
    #[oai(validator(min_length = 8, max_length = 256))]
    password: String,
    /// `customer`, `staff` or `admin`
    #[oai(default = "customer")]
    #[serde(default = "customer")]
    role: String,
}

impl Example for UserBody {
    fn example() -> Self {
        Self {
            email: "hanmeimei@example.com".to_owned(),
            name: "韩梅梅".to_owned(),
            password: "correct horse battery".to_owned(),
            role: customer(),
        }
    }
}

fn customer() -> String {
    Role::Customer.word().to_owned()
}

/// What shall change; what is left out stays.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct UserPatch {
    /// What to call its owner
    #[oai(validator(min_length = 1, max_length = 100))]
    #[serde(default)]
    name: Option<String>,
    /// `customer`, `staff` or `admin`; for admins
    #[serde(default)]
    role: Option<String>,
    /// `active` or `disabled`
    #[serde(default)]
    status: Option<String>,
}

impl Example for UserPatch {
    fn example() -> Self {
        Self {
            name: None,
            role: None,
            status: Some("disabled".to_owned()),
        }
    }
}

/// A word of a body or a parameter, or the field that is wrong.
fn word<T>(
    field: &str,
    word: Option<&str>,
    from_word: impl Fn(&str) -> Option<T>,
    words: &[&str],
) -> Result<Option<T>, Problem> {
    word.map(|word| {
        from_word(word).ok_or_else(|| {
            let reason = format!("must be one of {}", words.join(", "));
            Problem::validation(vec![FieldError::new(field, reason)])
        })
    })
    .transpose()
}

fn role(text: Option<&str>) -> Result<Option<Role>, Problem> {
    word("role", text, Role::from_word, Role::WORDS)
}

fn status(text: Option<&str>) -> Result<Option<Status>, Problem> {
    word("status", text, Status::from_word, Status::WORDS)
}

/// Everyone's accounts.
#[derive(Clone)]
pub struct UserApi {
    store: Store,
    clock: Clock,
    auth: Auth,
}

impl UserApi {
    /// With the handles that it works on.
    pub fn new(store: Store, clock: Clock, auth: Auth) -> Self {
        Self { store, clock, auth }
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Users")]
impl UserApi {
    /// List users
    ///
    /// For staff.
    #[oai(path = "/users", method = "get", operation_id = "list_users")]
    async fn list(
        &self,
        access: Access,
        /// Beginning of the address or of the name
        #[oai(validator(max_length = 254))]
        q: Query<Option<String>>,
        /// Only `customer`, `staff` or `admin`
        role: Query<Option<String>>,
        /// Only `active` or `disabled`
        status: Query<Option<String>>,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<i64>,
    ) -> Result<Body<UserPage>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Users)?;
        let filter = Filter {
            beginning: q.0.filter(|text| !text.is_empty()),
            role: self::role(role.0.as_deref())?,
            status: self::status(status.0.as_deref())?,
            before: read_cursor(cursor.0.as_deref())?,
            limit: limit.0,
        };
        let accounts = self
            .store
            .read(move |tx| super::list(tx, &filter))
            .await
            .map_err(Problem::from)?;
        let next_cursor = (accounts.len() as i64 == limit.0)
            .then(|| accounts.last().map(|account| account.id.to_string()))
            .flatten();
        Ok(Body(UserPage {
            items: accounts.into_iter().map(UserView::from).collect(),
            next_cursor,
        }))
    }

    /// Make a user
    ///
    /// Without logging it in. For staff; staff and admins are made by admins.
    #[oai(path = "/users", method = "post", operation_id = "create_user")]
    async fn create(
        &self,
        access: Access,
        body: Body<UserBody>,
    ) -> Result<Created<UserView>, Failure<{ fails::SECURED | fails::CONFLICT }>> {
        access.0.require(Role::Staff, Scope::Users)?;
        let UserBody {
            email,
            name,
            password,
            role,
        } = body.0;
        let role = self::role(Some(&role))?.unwrap_or(Role::Customer);
        if role != Role::Customer {
            access.0.require(Role::Admin, Scope::Users)?;
        }
        let account = self
            .auth
            .create(&access.0, &email, &name, &password, role)
            .await
            .map_err(Problem::from)?;
        let location = format!("/api/v1/users/{}", account.id);
        Ok(Created::new(account.into(), location))
    }

    /// Change a user
    ///
    /// A disabled user's next request is answered 401. The last active admin stays one. For staff;
    /// roles, and accounts of staff and admins, are changed by admins.
    #[oai(path = "/users/:id", method = "patch", operation_id = "update_user")]
    async fn update(
        &self,
        access: Access,
        /// Key of the account
        id: Path<i64>,
        body: Body<UserPatch>,
    ) -> Result<Body<UserView>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        access.0.require(Role::Staff, Scope::Users)?;
        let patch = Patch {
            role: self::role(body.0.role.as_deref())?,
            status: self::status(body.0.status.as_deref())?,
            name: body.0.name,
        };
        let (now, by, auth) = (self.clock.now(), access.0.role, self.auth.clone());
        let (id, asked) = (UserId(id.0), patch.clone());
        let updated = self
            .store
            .write(move |tx| super::update(tx, now, by, id, &patch))
            .then(move |_| auth.forget_callers())
            .await;
        if let Err(UserError::Beyond) = updated {
            access.0.note(Event::AuthzFail, Some(id), "users");
        }
        let account = updated.map_err(Problem::from)?;
        tell(&access.0, &account, &asked);
        Ok(Body(account.into()))
    }
}

/// Tells of a change that was made.
fn tell(by: &Caller, account: &Account, patch: &Patch) {
    let on = Some(account.id);
    if patch.name.is_some() {
        by.note(Event::UserUpdated, on, "name");
    }
    if let Some(status) = patch.status {
        by.note(Event::UserUpdated, on, status.word());
    }
    if let Some(role) = patch.role {
        by.note(Event::PermissionsChanged, on, role.word());
    }
    if patch.role.is_some() || patch.status == Some(Status::Disabled) {
        by.note(Event::SessionExpired, on, "another role or status");
    }
}

fn default_limit() -> i64 {
    50
}
