//! Accounts and sessions over HTTP, and the security scheme that every other operation uses.
//!
//! Invariant: an operation learns who calls only through [`Access`]; there is no other way in.

use ipnet::IpNet;
use poem::http::header::{self, HeaderMap, HeaderValue};
use poem::http::{Method, StatusCode};
use poem::{Endpoint, FromRequest, Request, RequestBody};
use poem_openapi::param::{Path, Query};
use poem_openapi::registry::{MetaSecurityScheme, Registry};
use poem_openapi::types::Example;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, Object, OpenApi, Tags};
use serde::{Deserialize, Serialize};

use super::idempotency::KeyError;
use super::place::Origin;
use super::registration::Registered;
use super::{
    Account, ApiKey, Auth, AuthError, Caller, Carrier, Denied, KeyId, Login, NewKey, Role, Scope,
    Watch,
};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::config::{self, Language};
use crate::http::json::{Either, Noted, WithCookie};
use crate::http::{
    Body, Created, Failure, NoContent, Problem, RequestInfo, comes_from, fails, note_known,
    read_cursor,
};
use crate::monitor::security::Event;
use crate::store::StoreError;

/// Groups of the document.
#[derive(Tags)]
pub enum Tag {
    /// Accounts, sessions, API keys, the first admin.
    Accounts,
    /// Everyone's accounts, for staff.
    Users,
    /// Products and stock.
    Products,
    /// Orders and their states.
    Orders,
    /// Sales with a limited number of units.
    #[oai(rename = "Flash sales")]
    FlashSales,
    /// Tasks, queues and their workers.
    Tasks,
    /// What is done again and again.
    Schedules,
    /// What was sold.
    Reports,
    /// Endpoints that are told of events, and how that went.
    Webhooks,
    /// What is kept ready because it is read again and again.
    Cache,
    /// How the server itself does.
    System,
}

/// Who calls: by a session's token or an API key (`Authorization: Bearer …`), or by the cookie of
/// the admin page. A key with the scope `act_as` may add `X-User-Id` and acts for that user.
pub struct Access(pub Caller, Option<String>);

/// Name of the scheme of tokens and keys in the document.
const TOKEN_SCHEME: &str = "token";
/// Name of the scheme of the page's cookie.
const COOKIE_SCHEME: &str = "cookie";
/// The cookie over TLS. The prefix makes browsers refuse one that another host or path set.
const SECURE_COOKIE: &str = "__Host-onrush";
/// The cookie over plain HTTP, where browsers refuse that prefix.
const PLAIN_COOKIE: &str = "onrush_session";
/// The cookie by which a browser is known where it has logged in before, over TLS.
const SECURE_DEVICE_COOKIE: &str = "__Host-onrush-device";
/// The same over plain HTTP.
const PLAIN_DEVICE_COOKIE: &str = "onrush_device";
/// Proof that a write by cookie comes from our own page.
const CSRF_HEADER: &str = "x-csrf-token";

// Written by hand because a derived scheme knows one way in, and tells which one failed badly.
impl<'a> ApiExtractor<'a> for Access {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        let scheme = |ty, description, name, key_in, scheme| MetaSecurityScheme {
            ty,
            description: Some(description),
            name,
            key_in,
            scheme,
            bearer_format: None,
            flows: None,
            openid_connect_url: None,
        };
        registry.create_security_scheme(
            TOKEN_SCHEME,
            scheme(
                "http",
                "A session's token or an API key. A key with the scope `act_as` may add \
                 `X-User-Id` and acts for that user.",
                None,
                None,
                Some("bearer"),
            ),
        );
        registry.create_security_scheme(
            COOKIE_SCHEME,
            scheme(
                "apiKey",
                "The admin page's session: log in with `cookie: true`. Writes also need the header \
                 `X-CSRF-Token`. Over plain HTTP the cookie is called `onrush_session`.",
                Some(SECURE_COOKIE),
                Some("cookie"),
                None,
            ),
        );
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![TOKEN_SCHEME, COOKIE_SCHEME]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(resolve(request).await?)
    }
}

/// A page that only those see who come from an address that is allowed, or whose credentials do.
pub struct Guarded<E> {
    page: E,
    allowed: Vec<IpNet>,
    role: Role,
    scope: Scope,
}

impl<E> Guarded<E> {
    /// Asks for `role`, and of an API key for `scope`, outside of `allowed`.
    pub fn new(page: E, allowed: &[IpNet], role: Role, scope: Scope) -> Self {
        Self {
            page,
            allowed: allowed.to_vec(),
            role,
            scope,
        }
    }
}

impl<E: Endpoint> Endpoint for Guarded<E> {
    type Output = E::Output;

    async fn call(&self, request: Request) -> poem::Result<E::Output> {
        if !comes_from(&request, &self.allowed) {
            let Access(caller, _) = resolve(&request).await?;
            caller
                .require(self.role, self.scope)
                .map_err(Problem::from)?;
        }
        self.page.call(request).await
    }
}

async fn resolve(request: &Request) -> Result<Access, Problem> {
    let auth = request
        .data::<Auth>()
        .ok_or_else(|| Problem::internal("the routes carry no Auth"))?;
    let headers = request.headers();
    let (token, carrier) = if headers.contains_key(header::AUTHORIZATION) {
        let token = bearer(headers).ok_or_else(|| {
            Problem::unauthorized("the Authorization header is not `Bearer` and a token")
        })?;
        (token, Carrier::Bearer)
    } else {
        let is_secure = request
            .data::<RequestInfo>()
            .is_some_and(RequestInfo::is_secure);
        let token = cookie(headers, cookie_name(is_secure)).ok_or_else(|| {
            Problem::unauthorized("log in, then send `Authorization: Bearer` with the token")
        })?;
        (token, Carrier::Cookie)
    };
    let unknown =
        || Problem::unauthorized("the token is unknown, ended or may not act for that user");
    if !carrier.carries(token) {
        return Err(unknown());
    }
    let acts_for = headers.get("x-user-id").map(|value| {
        let id = value.to_str().ok().and_then(|text| text.parse().ok());
        id.ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "invalid_parameter",
                "X-User-Id is no user id",
            )
            .field("X-User-Id", "must be a whole number")
        })
    });
    let mut caller =
        auth.caller(token, acts_for.transpose()?)
            .await
            .map_err(|error| match error {
                AuthError::Wrong | AuthError::NoAccount => unknown(),
                other => problem(other),
            })?;
    caller.watch = request.data::<RequestInfo>().map(|info| Watch {
        log: auth.0.surroundings.log.clone(),
        info: info.clone(),
    });
    note_known(request);
    if carrier == Carrier::Bearer {
        return Ok(Access(caller, None));
    }
    let is_write = !matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    let has_token = || {
        let sent = headers.get(CSRF_HEADER).and_then(|sent| sent.to_str().ok());
        sent.is_some_and(|sent| super::is_csrf_token(token, sent))
    };
    if is_write && (sent_by(request) != Some(Site::Own) || !has_token()) {
        caller.note(Event::ForeignWrite, None, "cookie");
        return Err(foreign());
    }
    Ok(Access(caller, Some(super::csrf_token(token))))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_start())
}

fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            (name == wanted).then_some(value)
        })
}

fn cookie_name(is_secure: bool) -> &'static str {
    if is_secure {
        SECURE_COOKIE
    } else {
        PLAIN_COOKIE
    }
}

fn device_cookie_name(is_secure: bool) -> &'static str {
    if is_secure {
        SECURE_DEVICE_COOKIE
    } else {
        PLAIN_DEVICE_COOKIE
    }
}

impl<'a> FromRequest<'a> for Origin {
    async fn from_request(request: &'a Request, body: &mut RequestBody) -> poem::Result<Self> {
        let info = <RequestInfo as FromRequest>::from_request(request, body).await?;
        let headers = request.headers();
        let device = cookie(headers, device_cookie_name(info.is_secure()));
        // Browsers alone send it, and no script can.
        let is_browser = headers.contains_key("sec-fetch-site");
        let is_foreign = sent_by(request) == Some(Site::Foreign);
        Ok(Origin::new(info, device, is_browser).foreign(is_foreign))
    }
}

/// Whose page sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    Own,
    Foreign,
}

/// Whose page sent the request, as the browser says that did; `None` for what is no browser's. Old ones,
/// and all of them over plain HTTP, say it by `Origin`, which is the page's address as it was typed: a
/// proxy may hand on another `Host`, but then tells this one (no page can have a browser send that header).
fn sent_by(request: &Request) -> Option<Site> {
    let headers = request.headers();
    let site = |is_own| if is_own { Site::Own } else { Site::Foreign };
    if let Some(told) = headers.get("sec-fetch-site") {
        return Some(site(told.as_bytes() == b"same-origin"));
    }
    let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or_default();
    let authority = origin
        .strip_prefix("https://")
        .or_else(|| origin.strip_prefix("http://"));
    let named = ["host", "x-forwarded-host"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .chain(request.uri().authority().map(|own| own.as_str()));
    let is_own = |own: &str| authority.is_some_and(|asked| asked.eq_ignore_ascii_case(own.trim()));
    Some(site(named.into_iter().any(is_own)))
}

fn foreign() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "csrf",
        "what a cookie vouches for is taken from our own page alone: a write needs Sec-Fetch-Site or \
         Origin to say so, and X-CSRF-Token with the token that logging in, or GET /api/v1/me, answered with",
    )
}

/// The header that hands the page its session, or with no token takes it away.
fn set_cookie(is_secure: bool, token: Option<&str>) -> Option<HeaderValue> {
    let (name, secure) = (
        cookie_name(is_secure),
        if is_secure { "; Secure" } else { "" },
    );
    // Without an end of its own the cookie goes with the browser; the session's end is the server's.
    let end = if token.is_some() { "" } else { "; Max-Age=0" };
    let text = format!(
        "{name}={}; Path=/; HttpOnly; SameSite=Strict{secure}{end}",
        token.unwrap_or_default()
    );
    HeaderValue::from_str(&text).ok()
}

/// The header that gives a browser its device token, for as long as it is remembered unused.
fn set_device_cookie(is_secure: bool, token: &str, seconds: i64) -> Option<HeaderValue> {
    let name = device_cookie_name(is_secure);
    let secure = if is_secure { "; Secure" } else { "" };
    let text =
        format!("{name}={token}; Path=/; HttpOnly; SameSite=Strict{secure}; Max-Age={seconds}");
    HeaderValue::from_str(&text).ok()
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
            StoreError::Corrupt(_) => unavailable("database_damaged", "The database is damaged: nothing is written to it any more, and what can be read is served. The operator has to restore a backup; the server's log says more.", 300).cause(&error),
            StoreError::Constraint(_)
            | StoreError::Unique(_)
            | StoreError::Foreign(_)
            | StoreError::Unavailable(_)
            | StoreError::Panicked(_)
            | StoreError::Bug(_) => Problem::internal(error),
        }
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let text = error.to_string();
        match error {
            KeyError::Reused => Problem::validation(vec![FieldError::new("Idempotency-Key", text)]),
            KeyError::Store(error) => error.into(),
        }
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        problem(error)
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
        AuthError::Refused(refused) => refused.into(),
        AuthError::Exists => {
            Problem::conflict("email_taken", text).field("email", "has an account")
        }
        AuthError::Crowded(seconds) => Problem::new(
            poem::http::StatusCode::TOO_MANY_REQUESTS,
            "registration_throttled",
            text,
        )
        .retry_after(seconds),
        AuthError::NoRegistration => Problem::not_found("registration_not_found", text),
        AuthError::SetupOver => Problem::forbidden(text),
        AuthError::NoAccount => Problem::not_found("account_not_found", text),
        AuthError::NoKey(_) => Problem::not_found("api_key_not_found", text),
        AuthError::Hash(_) | AuthError::Random => Problem::internal(text),
        AuthError::Store(error) => error.into(),
    }
}

#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct RegisterBody {
    /// Address to log in with
    #[oai(validator(
        min_length = 3,
        max_length = 254,
        pattern = r#"^\s*[^@\s<>()\[\]\\,;:"]+@[^@\s<>()\[\]\\,;:"/]+\s*$"#
    ))]
    email: String,
    /// What to call you
    #[oai(validator(max_length = 100))]
    name: String,
    /// At least 8 characters, none of the most used passwords
    #[oai(validator(min_length = 8, max_length = 256))]
    password: String,
    /// Language of mails, `en` or `zh`; the shop's own if left out
    #[oai(validator(max_length = 2))]
    #[serde(default)]
    language: Option<String>,
}

impl Example for RegisterBody {
    fn example() -> Self {
        Self {
            email: "hanmeimei@example.com".to_owned(),
            name: "韩梅梅 Han Meimei".to_owned(),
            password: EXAMPLE.password.to_owned(),
            language: Some("zh".to_owned()),
        }
    }
}

/// An account that an example logs in to.
pub struct ExampleAccount {
    /// Address.
    pub email: &'static str,
    /// What to call its owner.
    pub name: &'static str,
    /// Password.
    pub password: &'static str,
}

/// The account of the specification's log-in. The demonstration's shop has it, so that the page of the
/// specification can be tried out there; no other shop does.
pub const EXAMPLE: ExampleAccount = ExampleAccount {
    email: "lilei@example.com",
    name: "李雷 Li Lei",
    password: "correct horse battery",
};

#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct LoginBody {
    /// Address
    #[oai(validator(
        min_length = 3,
        max_length = 254,
        pattern = r#"^\s*[^@\s<>()\[\]\\,;:"]+@[^@\s<>()\[\]\\,;:"/]+\s*$"#
    ))]
    email: String,
    /// Password
    #[oai(validator(min_length = 1, max_length = 256))]
    password: String,
    /// Answer with a cookie instead of a token: for the admin page
    #[oai(default)]
    #[serde(default)]
    cookie: bool,
}

impl Example for LoginBody {
    fn example() -> Self {
        Self {
            email: EXAMPLE.email.to_owned(),
            password: EXAMPLE.password.to_owned(),
            cookie: false,
        }
    }
}

#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct SetupBody {
    /// The one-time token that `onrush serve` printed
    #[oai(validator(min_length = 1, max_length = 100))]
    token: String,
    /// Address to log in with
    #[oai(validator(
        min_length = 3,
        max_length = 254,
        pattern = r#"^\s*[^@\s<>()\[\]\\,;:"]+@[^@\s<>()\[\]\\,;:"/]+\s*$"#
    ))]
    email: String,
    /// What to call you
    #[oai(validator(max_length = 100))]
    name: String,
    /// At least 8 characters, none of the most used passwords
    #[oai(validator(min_length = 8, max_length = 256))]
    password: String,
    /// Answer with a cookie instead of a token: for the admin page
    #[oai(default)]
    #[serde(default)]
    cookie: bool,
}

impl Example for SetupBody {
    fn example() -> Self {
        Self {
            token: "setup_…".to_owned(),
            email: "owner@example.com".to_owned(),
            name: "Owner".to_owned(),
            password: "correct horse battery".to_owned(),
            cookie: false,
        }
    }
}

/// The token of a set-up link.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct SetupCheckBody {
    /// The one-time token that `onrush serve` printed
    #[oai(validator(min_length = 1, max_length = 100))]
    token: String,
}

/// What completes a registration.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct ConfirmBody {
    /// What the mail says
    #[oai(validator(min_length = 1, max_length = 100))]
    token: String,
    /// The password of the registration
    #[oai(validator(min_length = 1, max_length = 256))]
    password: String,
}

impl Example for ConfirmBody {
    fn example() -> Self {
        Self {
            token: "reg_…".to_owned(),
            password: EXAMPLE.password.to_owned(),
        }
    }
}

/// A registration that waits for the proof of its address.
#[derive(Serialize, Object)]
struct PendingView {
    /// Always `to_be_confirmed`: a mail to the address says how
    state: String,
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
    /// When it was last used, as far as has been written down
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_at: Option<Timestamp>,
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
            last_seen_at: account.last_seen_at,
        }
    }
}

/// The caller's own account.
#[derive(Serialize, Object)]
struct MeView {
    #[serde(flatten)]
    #[oai(flatten)]
    user: UserView,
    /// What the page sends as `X-CSRF-Token`; only for a session by cookie
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
}

#[derive(Serialize, Object)]
struct SessionView {
    /// Send it as `Authorization: Bearer`; absent when the session is in a cookie
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// Send it as `X-CSRF-Token` with each write; only when the session is in a cookie
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
    /// When it ends
    expires_at: Timestamp,
    /// Whose it is
    user: UserView,
}

impl SessionView {
    /// The answer, and the cookies that go with it.
    fn new(
        login: Login,
        carrier: Carrier,
        info: &RequestInfo,
        settings: &config::Auth,
    ) -> (Self, Vec<HeaderValue>) {
        let seconds = i64::from(settings.login_known_days) * 86_400;
        let device = login
            .device
            .and_then(|token| set_device_cookie(info.is_secure(), &token, seconds));
        let (token, csrf_token, session) = match carrier {
            Carrier::Bearer => (Some(login.token), None, None),
            Carrier::Cookie => (
                None,
                Some(super::csrf_token(&login.token)),
                set_cookie(info.is_secure(), Some(&login.token)),
            ),
        };
        let view = Self {
            token,
            csrf_token,
            expires_at: login.expires_at,
            user: login.account.into(),
        };
        (view, session.into_iter().chain(device).collect())
    }
}

fn carrier_of(cookie: bool) -> Carrier {
    if cookie {
        Carrier::Cookie
    } else {
        Carrier::Bearer
    }
}

/// An API key; the key itself is shown only once, when it is made.
#[derive(Serialize, Object)]
struct KeyView {
    /// Key of the row
    id: i64,
    /// Whose rights it has
    user_id: i64,
    /// What it is for
    name: String,
    /// What it may do
    scopes: Vec<String>,
    /// When it was made
    created_at: Timestamp,
    /// When it ends by itself
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// When it was revoked
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
    /// The key: now or never
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id.0,
            user_id: key.user_id.0,
            name: key.name,
            scopes: key
                .scopes
                .iter()
                .map(|scope| scope.word().to_owned())
                .collect(),
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            key: None,
        }
    }
}

/// One page of API keys.
#[derive(Serialize, Object)]
struct KeyPage {
    /// Keys, newest first
    items: Vec<KeyView>,
    /// Pass it as `cursor` for the next page
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A key to make.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct KeyBody {
    /// What it is for
    #[oai(validator(min_length = 1, max_length = 100))]
    name: String,
    /// Any of `catalogue`, `orders`, `payments`, `sales`, `users`, `tasks`, `work`, `reports`,
    /// `webhooks`, `metrics`, `cache`, `system`, `act_as`
    #[oai(validator(min_items = 1, max_items = 32))]
    scopes: Vec<String>,
    /// When it shall end by itself
    #[serde(default)]
    expires_at: Option<Timestamp>,
}

impl Example for KeyBody {
    fn example() -> Self {
        Self {
            name: "checkout".to_owned(),
            scopes: vec!["orders".to_owned()],
            expires_at: None,
        }
    }
}

/// Scopes that reach beyond the account itself: a key that has one is an admin's to make.
const FAR_SCOPES: &[Scope] = &[Scope::ActAs, Scope::Payments, Scope::Tasks, Scope::Work];

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
    /// Makes a customer's account and logs it in. Where addresses are proven first
    /// (`auth.confirm_registration`), the answer is a 202, the same for an address that has an account and
    /// one that has none, and a mail says how it goes on.
    #[oai(
        path = "/auth/register",
        method = "post",
        operation_id = "register_account"
    )]
    async fn register(
        &self,
        info: RequestInfo,
        origin: Origin,
        body: Body<RegisterBody>,
    ) -> Result<
        Either<WithCookie<Created<SessionView>>, Noted<PendingView>>,
        Failure<{ fails::CONFLICT | fails::FORBIDDEN | fails::RATE_LIMITED }>,
    > {
        if !self.open_registration {
            return Err(Problem::forbidden("accounts are made by staff here").into());
        }
        let RegisterBody {
            email,
            name,
            password,
            language,
        } = body.0;
        let language = language
            .map(|word| {
                Language::from_word(&word).ok_or_else(|| {
                    let reason = format!("must be one of {}", Language::WORDS.join(", "));
                    vec![FieldError::new("language", reason)]
                })
            })
            .transpose()?;
        let registered = self
            .auth
            .register(&email, &name, &password, language, origin)
            .await
            .map_err(problem)?;
        let login = match registered {
            Registered::Account(login) => *login,
            Registered::Asked => {
                let state = "to_be_confirmed".to_owned();
                return Ok(Either::Second(Noted(PendingView { state })));
            }
        };
        let settings = &self.auth.0.settings;
        let (view, cookies) = SessionView::new(login, Carrier::Bearer, &info, settings);
        let made = Created::new(view, "/api/v1/me");
        Ok(Either::First(WithCookie::new(made, cookies)))
    }

    /// Complete a registration
    ///
    /// Makes the account and logs it in, with what the mail says and the password of the registration.
    #[oai(
        path = "/auth/confirm",
        method = "post",
        operation_id = "confirm_registration"
    )]
    async fn confirm(
        &self,
        info: RequestInfo,
        origin: Origin,
        body: Body<ConfirmBody>,
    ) -> Result<
        WithCookie<Created<SessionView>>,
        Failure<{ fails::UNAUTHORIZED | fails::NOT_FOUND | fails::CONFLICT | fails::RATE_LIMITED }>,
    > {
        let ConfirmBody { token, password } = body.0;
        let confirmed = self.auth.confirm(&token, &password, origin).await;
        let login = confirmed.map_err(problem)?;
        let settings = &self.auth.0.settings;
        let (view, cookies) = SessionView::new(login, Carrier::Bearer, &info, settings);
        Ok(WithCookie::new(Created::new(view, "/api/v1/me"), cookies))
    }

    /// Log in
    ///
    /// Answers with a token, or for the admin page with a cookie. Repeated failures of one account,
    /// and failures of many accounts at one address, must wait longer and longer: `Retry-After` says
    /// how long. A client is not kept waiting for what strangers did where it comes from an address
    /// that has logged in to the account before, or sends the device cookie that it was given then.
    #[oai(path = "/auth/login", method = "post", operation_id = "log_in")]
    async fn login(
        &self,
        origin: Origin,
        info: RequestInfo,
        body: Body<LoginBody>,
    ) -> Result<
        WithCookie<Body<SessionView>>,
        Failure<{ fails::UNAUTHORIZED | fails::FORBIDDEN | fails::RATE_LIMITED }>,
    > {
        let LoginBody {
            email,
            password,
            cookie,
        } = body.0;
        if cookie && origin.is_foreign {
            return Err(foreign().into());
        }
        let carrier = carrier_of(cookie);
        let login = self
            .auth
            .login(&email, &password, origin.keeps_cookies(cookie), carrier)
            .await
            .map_err(problem)?;
        let settings = &self.auth.0.settings;
        let (view, cookies) = SessionView::new(login, carrier, &info, settings);
        Ok(WithCookie::new(Body(view), cookies))
    }

    /// Log out
    ///
    /// The token or the cookie is worth nothing from now on.
    #[oai(path = "/auth/logout", method = "post", operation_id = "log_out")]
    async fn logout(
        &self,
        access: Access,
        info: RequestInfo,
    ) -> Result<WithCookie<NoContent>, Failure<{ fails::SECURED }>> {
        access.0.require_person(Role::Customer)?;
        self.auth.logout(&access.0).await.map_err(problem)?;
        let gone = access.1.and_then(|_| set_cookie(info.is_secure(), None));
        Ok(WithCookie::new(NoContent, gone))
    }

    /// Make the first admin
    ///
    /// Works once, with the token that `onrush serve` prints while there is no admin.
    #[oai(
        path = "/auth/setup",
        method = "post",
        operation_id = "create_first_admin"
    )]
    async fn setup(
        &self,
        origin: Origin,
        info: RequestInfo,
        body: Body<SetupBody>,
    ) -> Result<
        WithCookie<Created<SessionView>>,
        Failure<{ fails::FORBIDDEN | fails::CONFLICT | fails::RATE_LIMITED }>,
    > {
        let SetupBody {
            token,
            email,
            name,
            password,
            cookie,
        } = body.0;
        if cookie && origin.is_foreign {
            return Err(foreign().into());
        }
        let carrier = carrier_of(cookie);
        let login = self
            .auth
            .finish_setup(
                &token,
                &email,
                &name,
                &password,
                carrier,
                origin.keeps_cookies(cookie),
            )
            .await
            .map_err(problem)?;
        let settings = &self.auth.0.settings;
        let (view, cookies) = SessionView::new(login, carrier, &info, settings);
        Ok(WithCookie::new(Created::new(view, "/api/v1/me"), cookies))
    }

    /// Check a set-up token
    ///
    /// Whether the first admin can still be made with it: 204, or 403 once it was used or is out of
    /// date. Changes nothing.
    #[oai(
        path = "/auth/setup/check",
        method = "post",
        operation_id = "check_setup_token"
    )]
    async fn check_setup(
        &self,
        origin: Origin,
        body: Body<SetupCheckBody>,
    ) -> Result<NoContent, Failure<{ fails::FORBIDDEN | fails::RATE_LIMITED }>> {
        let asked = self.auth.check_setup(&body.0.token, &origin);
        asked.map_err(problem)?;
        Ok(NoContent)
    }

    /// Who am I
    #[oai(path = "/me", method = "get", operation_id = "get_me")]
    async fn me(&self, access: Access) -> Result<Body<MeView>, Failure<{ fails::SECURED }>> {
        let id = access.0.user_id;
        let account = self
            .auth
            .0
            .store
            .point(move |tx| super::sql::account_by_id(tx, id))
            .await
            .map_err(Problem::from)?
            .ok_or_else(|| Problem::unauthorized("the account is gone"))?;
        Ok(Body(MeView {
            user: account.into(),
            csrf_token: access.1,
        }))
    }

    /// Make an API key
    ///
    /// For programs, with the rights of your own account and only the scopes that it names. For
    /// staff; the scopes `act_as`, `payments`, `tasks` and `work` for admins. The key is shown this once.
    #[oai(path = "/api-keys", method = "post", operation_id = "create_api_key")]
    async fn create_key(
        &self,
        access: Access,
        body: Body<KeyBody>,
    ) -> Result<Created<KeyView>, Failure<{ fails::SECURED }>> {
        let caller = access.0;
        caller.require_person(Role::Staff)?;
        let mut scopes = Vec::new();
        for (at, word) in body.0.scopes.iter().enumerate() {
            scopes.push(Scope::from_word(word).ok_or_else(|| {
                vec![FieldError::new(
                    format!("scopes[{at}]"),
                    format!("must be one of {}", Scope::WORDS.join(", ")),
                )]
            })?);
        }
        if scopes.iter().any(|scope| FAR_SCOPES.contains(scope)) {
            caller.require_person(Role::Admin)?;
        }
        let new = NewKey {
            name: body.0.name,
            scopes,
            expires_at: body.0.expires_at,
        };
        let inner = &self.auth.0;
        let (now, most) = (inner.clock.now(), inner.settings.api_keys_max);
        let id = caller.user_id;
        let (key, text) = inner
            .store
            .write(move |tx| super::create_api_key(tx, now, id, &new, most))
            .await
            .map_err(problem)?;
        let words: Vec<&str> = key.scopes.iter().map(|scope| scope.word()).collect();
        caller.note(Event::TokenCreated, None, &words.join(" "));
        let location = format!("/api/v1/api-keys/{}", key.id);
        let mut view = KeyView::from(key);
        view.key = Some(text);
        Ok(Created::new(view, location))
    }

    /// List API keys
    ///
    /// Your own; for an admin everyone's. For staff.
    #[oai(path = "/api-keys", method = "get", operation_id = "list_api_keys")]
    async fn list_keys(
        &self,
        access: Access,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<i64>,
    ) -> Result<Body<KeyPage>, Failure<{ fails::SECURED }>> {
        let caller = access.0;
        caller.require_person(Role::Staff)?;
        let before = read_cursor(cursor.0.as_deref())?;
        let (owner, rows) = (key_owner(&caller), limit.0);
        let keys = self
            .auth
            .0
            .store
            .read(move |tx| super::list_api_keys(tx, owner, before, rows))
            .await
            .map_err(problem)?;
        let next_cursor = (keys.len() as i64 == rows)
            .then(|| keys.last().map(|key| key.id.to_string()))
            .flatten();
        Ok(Body(KeyPage {
            items: keys.into_iter().map(KeyView::from).collect(),
            next_cursor,
        }))
    }

    /// Revoke an API key
    ///
    /// Its next request is answered 401. Revoked twice it is revoked once. Your own; for an admin
    /// anyone's. For staff.
    #[oai(
        path = "/api-keys/:id",
        method = "delete",
        operation_id = "revoke_api_key"
    )]
    async fn revoke_key(
        &self,
        access: Access,
        /// Key of the row
        id: Path<i64>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        let caller = access.0;
        caller.require_person(Role::Staff)?;
        let inner = &self.auth.0;
        let (now, owner, auth) = (inner.clock.now(), key_owner(&caller), self.auth.clone());
        inner
            .store
            .write(move |tx| super::revoke_api_key(tx, now, KeyId(id.0), owner))
            .then(
                // Also when the client went away before its answer.
                move |_| auth.forget_callers(),
            )
            .await
            .map_err(problem)?;
        caller.note(Event::TokenRevoked, None, &format!("key {}", id.0));
        Ok(NoContent)
    }
}

/// Whose keys the caller sees and revokes; `None` for everyone's.
fn key_owner(caller: &Caller) -> Option<super::UserId> {
    (caller.role != Role::Admin).then_some(caller.user_id)
}

fn default_limit() -> i64 {
    50
}
