//! Accounts and sessions over HTTP, and the security scheme that every other operation uses.
//!
//! Invariant: an operation learns who calls only through [`Access`]; there is no other way in.

use poem::Request;
use poem_openapi::auth::Bearer;
use poem_openapi::{Object, OpenApi, SecurityScheme, Tags};
use serde::{Deserialize, Serialize};

use super::{Account, Auth, AuthError, Caller, Denied, Login};
use crate::clock::Timestamp;
use crate::http::{Body, ClientAddr, Created, Failure, NoContent, Problem, fails};
use crate::store::StoreError;

/// Groups of the document.
#[derive(Tags)]
pub enum Tag {
    /// Accounts, sessions, the first admin.
    Accounts,
    /// Products and stock.
    Products,
    /// Orders and their states.
    Orders,
    /// Sales with a limited number of units.
    FlashSales,
}

/// A session's token or an API key: `Authorization: Bearer …`. A key with the scope `act_as` may
/// add `X-User-Id` and acts for that user.
#[derive(SecurityScheme)]
#[oai(ty = "bearer", rename = "token", checker = "resolve")]
pub struct Access(pub Caller);

async fn resolve(request: &Request, bearer: Bearer) -> poem::Result<Caller> {
    let auth = request
        .data::<Auth>()
        .ok_or_else(|| Problem::internal("the routes carry no Auth"))?;
    let acts_for = match request.headers().get("x-user-id") {
        None => None,
        Some(value) => Some(
            value
                .to_str()
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or_else(|| {
                    Problem::new(
                        poem::http::StatusCode::BAD_REQUEST,
                        "invalid_parameter",
                        "X-User-Id is no user id",
                    )
                    .field("X-User-Id", "must be a whole number")
                })?,
        ),
    };
    Ok(auth
        .caller(&bearer.token, acts_for)
        .await
        .map_err(|error| match error {
            AuthError::Wrong | AuthError::NoAccount => {
                Problem::unauthorized("the token is unknown, ended or may not act for that user")
            }
            other => problem(other),
        })?)
}

impl From<Denied> for Problem {
    fn from(_: Denied) -> Self {
        Problem::forbidden("your role or your key's scopes do not allow this")
    }
}

impl<const SET: u64> From<Denied> for Failure<SET> {
    fn from(denied: Denied) -> Self {
        Problem::from(denied).into()
    }
}

/// The database's failures as any operation answers them.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let unavailable = |code, detail: &str, seconds| {
            Problem::new(poem::http::StatusCode::SERVICE_UNAVAILABLE, code, detail)
                .retry_after(seconds)
        };
        match &error {
            StoreError::Overloaded | StoreError::Busy => Problem::overloaded(1).cause(&error),
            StoreError::Timeout => unavailable("timeout", "The database did not answer in time; whether a write succeeded is not known. Repeat it with the same Idempotency-Key.", 1).cause(&error),
            StoreError::StatementTimeout => unavailable("query_timeout", "The query ran longer than it may; ask for less.", 5).cause(&error),
            StoreError::StorageFull => unavailable("storage_full", "The disk is full: nothing was written, reading goes on.", 30).cause(&error),
            StoreError::ReadOnly => unavailable("read_only", "The data directory can't be written to; reading goes on.", 30).cause(&error),
            StoreError::Io(_) | StoreError::Stopped => unavailable("unavailable", "The server is restarting.", 5).cause(&error),
            StoreError::Corrupt(_)
            | StoreError::Constraint(_)
            | StoreError::Foreign(_)
            | StoreError::Unavailable(_)
            | StoreError::Panicked(_)
            | StoreError::Bug(_) => Problem::internal(error),
        }
    }
}

fn problem(error: AuthError) -> Problem {
    let text = error.to_string();
    match error {
        AuthError::Invalid(errors) => Problem::validation(errors),
        AuthError::Wrong => Problem::unauthorized(text),
        AuthError::Throttled(seconds) => Problem::new(
            poem::http::StatusCode::TOO_MANY_REQUESTS,
            "login_throttled",
            text,
        )
        .retry_after(seconds),
        AuthError::Overloaded => Problem::overloaded(1),
        AuthError::Exists => {
            Problem::conflict("email_taken", text).field("email", "has an account")
        }
        AuthError::SetupOver => Problem::forbidden(text),
        AuthError::NoAccount => Problem::not_found("no_account", text),
        AuthError::Hash(_) | AuthError::Random => Problem::internal(text),
        AuthError::Store(error) => error.into(),
    }
}

#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct RegisterBody {
    /// Address to log in with
    #[oai(validator(max_length = 254))]
    email: String,
    /// What to call you
    #[oai(validator(max_length = 100))]
    name: String,
    /// At least 8 characters, none of the most used passwords
    #[oai(validator(min_length = 8, max_length = 256))]
    password: String,
}

#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct LoginBody {
    /// Address
    email: String,
    /// Password
    password: String,
}

#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct SetupBody {
    /// The one-time token that `onrush serve` printed
    token: String,
    /// Address to log in with
    email: String,
    /// What to call you
    name: String,
    /// At least 8 characters
    password: String,
}

/// An account.
#[derive(Serialize, Object)]
pub struct UserView {
    /// Key
    id: i64,
    /// Address; absent for customers that came by import
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    /// What to call its owner
    name: String,
    /// `customer`, `staff` or `admin`
    role: String,
    /// `active` or `disabled`
    status: String,
    /// When it was made
    created_at: Timestamp,
}

impl From<Account> for UserView {
    fn from(account: Account) -> Self {
        Self {
            id: account.id.0,
            email: account.email,
            name: account.name,
            role: account.role.word().to_owned(),
            status: account.status.word().to_owned(),
            created_at: account.created_at,
        }
    }
}

#[derive(Serialize, Object)]
struct SessionView {
    /// Send it as `Authorization: Bearer`
    token: String,
    /// When it ends
    expires_at: Timestamp,
    /// Whose it is
    user: UserView,
}

impl From<Login> for SessionView {
    fn from(login: Login) -> Self {
        Self {
            token: login.token,
            expires_at: login.expires_at,
            user: login.account.into(),
        }
    }
}

/// Accounts and sessions.
pub struct AuthApi {
    auth: Auth,
    open_registration: bool,
}

impl AuthApi {
    /// With the handle that it works on.
    pub fn new(auth: Auth) -> Self {
        let open_registration = auth.0.settings.open_registration;
        Self {
            auth,
            open_registration,
        }
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Accounts")]
impl AuthApi {
    /// Register
    ///
    /// Makes a customer's account and logs it in.
    #[oai(path = "/auth/register", method = "post")]
    async fn register(
        &self,
        body: Body<RegisterBody>,
    ) -> Result<Created<SessionView>, Failure<{ fails::CONFLICT | fails::FORBIDDEN }>> {
        if !self.open_registration {
            return Err(Problem::forbidden("accounts are made by staff here").into());
        }
        let RegisterBody {
            email,
            name,
            password,
        } = body.0;
        let login = self
            .auth
            .register(&email, &name, &password)
            .await
            .map_err(problem)?;
        Ok(Created::new(login.into(), "/api/v1/me"))
    }

    /// Log in
    ///
    /// Answers with a token. Repeated failures of one account or one address must wait longer and longer.
    #[oai(path = "/auth/login", method = "post")]
    async fn login(
        &self,
        client: ClientAddr,
        body: Body<LoginBody>,
    ) -> Result<Body<SessionView>, Failure<{ fails::UNAUTHORIZED | fails::RATE_LIMITED }>> {
        let login = self
            .auth
            .login(&body.0.email, &body.0.password, client.0)
            .await
            .map_err(problem)?;
        Ok(Body(login.into()))
    }

    /// Log out
    ///
    /// The token is worth nothing from now on.
    #[oai(path = "/auth/logout", method = "post")]
    async fn logout(&self, access: Access) -> Result<NoContent, Failure<{ fails::SECURED }>> {
        self.auth.logout(&access.0).await.map_err(problem)?;
        Ok(NoContent)
    }

    /// Make the first admin
    ///
    /// Works once, with the token that `onrush serve` prints while there is no admin.
    #[oai(path = "/auth/setup", method = "post")]
    async fn setup(
        &self,
        body: Body<SetupBody>,
    ) -> Result<Created<SessionView>, Failure<{ fails::FORBIDDEN | fails::CONFLICT }>> {
        let SetupBody {
            token,
            email,
            name,
            password,
        } = body.0;
        let login = self
            .auth
            .finish_setup(&token, &email, &name, &password)
            .await
            .map_err(problem)?;
        Ok(Created::new(login.into(), "/api/v1/me"))
    }

    /// Who am I
    #[oai(path = "/me", method = "get")]
    async fn me(&self, access: Access) -> Result<Body<UserView>, Failure<{ fails::SECURED }>> {
        let id = access.0.user_id;
        let account = self
            .auth
            .0
            .store
            .point(move |tx| super::sql::account_by_id(tx, id))
            .await
            .map_err(Problem::from)?
            .ok_or_else(|| Problem::unauthorized("the account is gone"))?;
        Ok(Body(account.into()))
    }
}
