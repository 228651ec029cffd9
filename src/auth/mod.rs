//! Who calls: accounts' credentials, sessions, API keys, roles, and the [`Caller`] they amount to.
//!
//! Invariants: tokens are 256 random bits, stored only as SHA-256; passwords only as argon2id;
//! status and role are read anew after every change of them (a cached caller carries the epoch in
//! which it was read, and every change starts a new one); a key has no scope that its owner's role does
//! not reach at that moment; an unknown account costs as much time as a wrong password; a session of the
//! page travels only in its cookie and writes only with the token that is bound to it; an account has a
//! bounded number of sessions; what is no address, or can be no password, is refused before anything is
//! counted or hashed.

pub mod api;
pub mod idempotency;
mod password;
pub mod place;
pub mod registration;
mod sql;
pub mod throttle;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use rand::TryRngCore;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::check::{self, Checks, FieldError};
use crate::clock::{Clock, Stopwatch, Timestamp};
use crate::config::{self, Language};
use crate::http::RequestInfo;
use crate::http::shares::{Resource, Share, ShareRefused, Shares};
use crate::monitor::security::{Event, SecurityLog, Who};
use crate::store::{LockOrder, Row, Store, StoreError, Tx};
use crate::{id_type, word_type};
use password::{Lane, Passwords};
use place::{DEVICE_PREFIX, Origin};
use registration::OnAsked;
pub use sql::{end_sessions, past_customer, update_account};
use throttle::{Attempt, Rules, Throttle, Verdict};

/// Rows of accounts, which are locked after products.
pub(crate) const USER_ROWS: LockOrder = LockOrder::new(4, "users");

id_type! {
    /// Key of an account.
    UserId
}

id_type! {
    /// Key of an API key's row.
    KeyId
}

word_type! {
    /// What an account may do; each role may do what the one before it may.
    Role {
        /// Buys.
        Customer = "customer",
        /// Runs the shop.
        Staff = "staff",
        /// Runs Onrush.
        Admin = "admin",
    }
}

word_type! {
    /// Whether an account may be used.
    Status {
        /// It may.
        Active = "active",
        /// It may not: each of its requests is answered 401.
        Disabled = "disabled",
    }
}

word_type! {
    /// What an account is known to have logged in from.
    PlaceKind {
        /// A network.
        Address = "address",
        /// A browser.
        Device = "device",
    }
}

word_type! {
    /// What an API key may do, within its account's role.
    Scope {
        /// Change products and stock.
        Catalogue = "catalogue",
        /// Read and place orders, claim.
        Orders = "orders",
        /// Confirm payments.
        Payments = "payments",
        /// Run flash sales.
        Sales = "sales",
        /// Read and change accounts.
        Users = "users",
        /// Enqueue, see and steer tasks and queues.
        Tasks = "tasks",
        /// Fetch and finish tasks, as a worker.
        Work = "work",
        /// Have sales reports made, and read them.
        Reports = "reports",
        /// Choose who is told of events.
        Webhooks = "webhooks",
        /// See, empty and warm the cache.
        Cache = "cache",
        /// See how the server itself does.
        System = "system",
        /// Read `/metrics`.
        Metrics = "metrics",
        /// Act for the user that `X-User-Id` names, as a customer.
        ActAs = "act_as",
    }
}

impl Scope {
    /// The least role whose own rights reach as far; a key whose owner has less is as one without this
    /// scope. To act for others is an admin's to give away.
    fn least_role(self) -> Role {
        match self {
            Scope::Orders => Role::Customer,
            Scope::Catalogue
            | Scope::Payments
            | Scope::Sales
            | Scope::Users
            | Scope::Tasks
            | Scope::Work
            | Scope::Reports
            | Scope::Metrics => Role::Staff,
            Scope::Webhooks | Scope::Cache | Scope::System | Scope::ActAs => Role::Admin,
        }
    }
}

impl Role {
    /// Whether this role may do all that `other` may.
    pub fn covers(self, other: Role) -> bool {
        self.rank() >= other.rank()
    }

    fn rank(self) -> u8 {
        match self {
            Role::Customer => 0,
            Role::Staff => 1,
            Role::Admin => 2,
        }
    }
}

/// An account without its credentials.
#[derive(Clone, Debug)]
pub struct Account {
    /// Key of its row.
    pub id: UserId,
    /// Address that it logs in with; none for customers that came by import.
    pub email: Option<String>,
    /// What to call its owner.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Whether it may be used.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_seen_at: Option<Timestamp>,
}

impl Account {
    /// Reads a row of `id, email, name, role, status, created_at, last_seen_at`.
    pub(crate) fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.get(0)?,
            email: row.get(1)?,
            name: row.get(2)?,
            role: row.get(3)?,
            status: row.get(4)?,
            created_at: row.get(5)?,
            last_seen_at: row.get(6)?,
        })
    }
}

struct SessionRow {
    user_id: UserId,
    role: Role,
    status: Status,
    last_seen_at: Timestamp,
    expires_at: Timestamp,
}

/// A registration that waits for the proof of its address, as far as another request needs it.
struct RegistrationRow {
    id: i64,
    email: String,
    name: String,
    password_hash: String,
    language: Option<String>,
}

struct KeyRow {
    user_id: UserId,
    role: Role,
    status: Status,
    scopes: String,
    expires_at: Option<Timestamp>,
}

/// Who makes a request, and within what bounds.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The account that is acted for.
    pub user_id: UserId,
    /// What it may do here.
    pub role: Role,
    scopes: Option<Arc<[Scope]>>,
    token_hash: Arc<str>,
    watch: Option<Watch>,
}

/// Where a caller's refusals are told of, and by which request.
#[derive(Clone, Debug)]
struct Watch {
    log: SecurityLog,
    info: RequestInfo,
}

/// The caller lacks a role or a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied;

impl Caller {
    /// Refuses a caller below `role`, and an API key without `scope`.
    pub fn require(&self, role: Role, scope: Scope) -> Result<(), Denied> {
        if !self.role.covers(role) || !self.may(scope) {
            self.note(Event::AuthzFail, None, scope.word());
            return Err(Denied);
        }
        let is_write = |watch: &Watch| watch.info.is_write();
        if role == Role::Admin && self.watch.as_ref().is_some_and(is_write) {
            self.note(Event::AuthzAdmin, None, scope.word());
        }
        Ok(())
    }

    /// Where it calls from.
    fn address(&self) -> IpAddr {
        let told = self.watch.as_ref().map(|watch| watch.info.client().0);
        told.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// Tells of what this caller did, or was refused. `what` is a word of ours.
    pub fn note(&self, event: Event, on: Option<UserId>, what: &str) {
        let Some(Watch { log, info }) = &self.watch else {
            return;
        };
        log.note(
            event,
            &Who {
                user_id: Some(self.user_id.0),
                address: Some(info.client().0),
                request_id: Some(info.id().as_str()),
                on_user_id: on.map(|id| id.0),
                what: Some(what),
            },
        );
    }

    /// Whether it is staff or admin.
    pub fn is_staff(&self) -> bool {
        self.role.covers(Role::Staff)
    }

    /// Refuses API keys, and anyone below `role`: for what only a person does.
    pub fn require_person(&self, role: Role) -> Result<(), Denied> {
        if self.role.covers(role) && self.scopes.is_none() {
            Ok(())
        } else {
            self.note(Event::AuthzFail, None, "a person's own");
            Err(Denied)
        }
    }

    /// Whether `scope` is open to it: always for a session.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes
            .as_ref()
            .is_none_or(|scopes| scopes.contains(&scope))
    }

    /// Whether an API key calls, and it has this scope.
    pub fn is_key_with(&self, scope: Scope) -> bool {
        self.scopes
            .as_ref()
            .is_some_and(|scopes| scopes.contains(&scope))
    }
}

/// Why credentials were not accepted or made.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Fields don't hold.
    #[error("the account is not valid")]
    Invalid(Vec<FieldError>),
    /// No valid credentials.
    #[error("the address or the password is wrong")]
    Wrong,
    /// Too many failures; come back after so many seconds.
    #[error("too many wrong passwords; wait before the next try")]
    Throttled(u64),
    /// Too many passwords are being checked.
    #[error("too many logins at once")]
    Overloaded,
    /// As many of them as this client, or all, may have waiting.
    #[error(transparent)]
    Refused(#[from] ShareRefused),
    /// The address has an account.
    #[error("the address has an account")]
    Exists,
    /// As many registrations as there may be; come back after so many seconds.
    #[error("there were as many registrations as there may be; wait before the next")]
    Crowded(u64),
    /// No registration waits for this token.
    #[error("no registration waits for this token; it is used up or out of date")]
    NoRegistration,
    /// The set-up token is wrong, used up or expired.
    #[error(
        "the set-up token is not valid; the server prints a new one when it starts without an admin"
    )]
    SetupOver,
    /// No such account.
    #[error("there is no such account")]
    NoAccount,
    /// No such key, or another's.
    #[error("there is no API key {0}")]
    NoKey(KeyId),
    /// The password could not be hashed.
    #[error("the password could not be hashed: {0}")]
    Hash(String),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers")]
    Random,
    /// The database.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for AuthError {
    fn from(error: StoreError) -> Self {
        if error.is_unique_violation("users.email") {
            AuthError::Exists
        } else {
            AuthError::Store(error)
        }
    }
}

/// Lower case without surrounding space: how addresses are stored and compared.
pub fn normal_email(email: &str) -> String {
    email.trim().to_lowercase()
}

/// A password that some account could have; what can't be one is told before it is hashed.
fn check_known_password(password: &str) -> Result<(), FieldError> {
    let reason = match password.len() {
        0 => "is required",
        1..=password::BYTES_MAX => return Ok(()),
        _ => "must have at most 256 bytes",
    };
    Err(FieldError::new("password", reason))
}

/// What a new account must be like; answers its address and name as they are stored.
fn check_account(
    email: &str,
    name: &str,
    password: &str,
) -> Result<(String, String), Vec<FieldError>> {
    let mut checks = Checks::new();
    let read = check::address(email);
    let name = check::trimmed(name);
    checks.name("name", name, 1, 100);
    if let Err(reason) = password::check(password, email) {
        checks.require(false, "password", reason);
    }
    match read {
        Ok(email) => checks.finish().map(|()| (email, name.to_owned())),
        Err(reason) => {
            let mut faults = vec![FieldError::new("email", reason)];
            faults.extend(checks.finish().err().into_iter().flatten());
            Err(faults)
        }
    }
}

/// A token and the hash under which it is stored.
#[derive(Clone)]
struct Token {
    text: String,
    hash: String,
}

fn new_token(prefix: &str) -> Result<Token, AuthError> {
    let mut bytes = [0u8; 32];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|_| AuthError::Random)?;
    let text = format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes));
    let hash = hash_token(&text);
    Ok(Token { text, hash })
}

/// SHA-256 in base64: a token has 256 random bits, so no salt and no slow hash is needed.
fn hash_token(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(token.as_bytes()))
}

word_type! {
    /// How a session's token travels. A token of one kind is worth nothing in the other's place.
    Carrier {
        /// `Authorization: Bearer`, for programs.
        Bearer = "bearer",
        /// The admin page's cookie, which no script can read.
        Cookie = "cookie",
    }
}

impl Carrier {
    fn prefix(self) -> &'static str {
        match self {
            Carrier::Bearer => "ons_",
            Carrier::Cookie => "onc_",
        }
    }

    /// Whether `token` is one of this kind; an API key travels as a bearer does.
    pub fn carries(self, token: &str) -> bool {
        token.starts_with(Carrier::Cookie.prefix()) == (self == Carrier::Cookie)
    }
}

/// What a page must send back with each write: bound to the session, and useless without it.
pub fn csrf_token(session_token: &str) -> String {
    hash_token(&format!("csrf {session_token}"))
}

/// Whether `sent` is that token; in constant time.
pub fn is_csrf_token(session_token: &str, sent: &str) -> bool {
    bool::from(csrf_token(session_token).as_bytes().ct_eq(sent.as_bytes()))
}

/// A session that was just made.
#[derive(Debug)]
pub struct Login {
    /// What shows that it is the session's owner who calls.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Whose it is.
    pub account: Account,
    /// What a browser is to hold as its device cookie.
    pub device: Option<String>,
    /// Hashes of the tokens of those sessions that had to end for it.
    evicted: Vec<String>,
}

/// What came of a password.
enum Checked {
    /// It is this account's.
    Right(Account),
    /// It is not, of an account that may be there.
    Wrong(Option<UserId>),
}

/// A session that is about to be made.
struct NewSession {
    token: Token,
    carrier: Carrier,
    origin: Origin,
    /// For a browser that has no device token.
    device: Token,
}

impl NewSession {
    fn new(carrier: Carrier, origin: Origin) -> Result<Self, AuthError> {
        Ok(Self {
            token: new_token(carrier.prefix())?,
            carrier,
            origin,
            device: new_token(DEVICE_PREFIX)?,
        })
    }
}

/// Accounts and sessions whose last use is written in one statement each.
const SEEN_AT_ONCE: usize = 256;

#[derive(Clone)]
struct Cached {
    caller: Caller,
    is_key: bool,
    epoch: u64,
    expires_at: Timestamp,
    last_seen_at: Timestamp,
    /// The last use that is on disk.
    saved_at: Timestamp,
}

/// A session's use that is not on disk yet.
#[derive(Clone)]
struct SessionUse {
    token_hash: Arc<str>,
    user_id: UserId,
    at: Timestamp,
}

/// Callers that are known without a query, by the hash of their token.
struct Callers {
    known: HashMap<String, Cached>,
    /// Uses of sessions that are no longer among them.
    unsaved: Vec<SessionUse>,
    callers_max: usize,
}

impl Cached {
    fn unsaved(&self) -> Option<SessionUse> {
        (!self.is_key && self.last_seen_at > self.saved_at).then(|| SessionUse {
            token_hash: Arc::clone(&self.caller.token_hash),
            user_id: self.caller.user_id,
            at: self.last_seen_at,
        })
    }
}

impl Callers {
    fn insert(&mut self, hash: String, cached: Cached) {
        if self.known.len() >= self.callers_max {
            // Simple and rare: what is in use comes back with one look-up each.
            let known = std::mem::take(&mut self.known);
            self.keep(known.values().filter_map(Cached::unsaved));
        }
        self.known.insert(hash, cached);
    }

    fn forget(&mut self, hash: &str) {
        let seen = self.known.remove(hash).and_then(|cached| cached.unsaved());
        self.keep(seen);
    }

    /// Bounded: where nothing can be written for long, the oldest notes stay and the rest is lost.
    fn keep(&mut self, seen: impl IntoIterator<Item = SessionUse>) {
        let room = self.callers_max.saturating_sub(self.unsaved.len());
        self.unsaved.extend(seen.into_iter().take(room));
    }

    /// All that is not on disk. What is still known stays noted there.
    fn take_unsaved(&mut self) -> Vec<SessionUse> {
        let mut unsaved = std::mem::take(&mut self.unsaved);
        unsaved.extend(self.known.values().filter_map(Cached::unsaved));
        unsaved
    }

    fn note_saved(&mut self, seen: &[SessionUse]) {
        for seen in seen {
            if let Some(cached) = self.known.get_mut(&*seen.token_hash) {
                cached.saved_at = cached.saved_at.max(seen.at);
            }
        }
    }
}

/// What follows from a registration, in its transaction.
pub type OnRegistered =
    Box<dyn Fn(&mut Tx<'_>, Timestamp, &Account) -> Result<(), StoreError> + Send + Sync>;

/// What is done elsewhere about accounts, and where their events are told of.
pub struct Surroundings {
    /// What follows from an account that a customer has made.
    pub on_registered: OnRegistered,
    /// What follows from a registration whose address is to be proven first. Without it an account is made
    /// at once.
    pub on_asked: Option<OnAsked>,
    /// Where events are told of.
    pub log: SecurityLog,
    /// What clients may have waiting.
    pub shares: Shares,
}

/// The handle to all of this; clones share it.
#[derive(Clone)]
pub struct Auth(Arc<Inner>);

struct Inner {
    store: Store,
    settings: Arc<config::Auth>,
    clock: Clock,
    passwords: Passwords,
    throttle: Throttle,
    epoch: AtomicU64,
    callers: Mutex<Callers>,
    setup: Mutex<Option<(String, Timestamp)>>,
    surroundings: Surroundings,
}

impl Auth {
    /// Nothing is read yet.
    pub fn new(
        store: Store,
        settings: Arc<config::Auth>,
        clock: Clock,
        surroundings: Surroundings,
    ) -> Self {
        Self(Arc::new(Inner {
            passwords: Passwords::new(&settings),
            throttle: Throttle::new(Rules::from(&*settings), clock.clone()),
            callers: Mutex::new(Callers {
                known: HashMap::new(),
                unsaved: Vec::new(),
                callers_max: settings.callers_cached_max,
            }),
            store,
            settings,
            clock,
            epoch: AtomicU64::new(0),
            setup: Mutex::new(None),
            surroundings,
        }))
    }

    /// To be called after the commit of any change of a role, a status or a key.
    pub fn forget_callers(&self) {
        self.0.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// While there is no admin: a token, valid once, that makes the first one.
    pub async fn begin_setup(&self) -> Result<Option<String>, AuthError> {
        if self.0.store.point(sql::has_admin).await? {
            return Ok(None);
        }
        let token = new_token("setup_")?;
        let seconds = i64::try_from(self.0.settings.setup_seconds).unwrap_or(i64::MAX);
        *self.0.setup.lock() = Some((token.hash, self.0.clock.now().plus_seconds(seconds)));
        Ok(Some(token.text))
    }

    /// Whether the token can still make the first admin.
    pub fn check_setup(&self, token: &str, origin: &Origin) -> Result<(), AuthError> {
        check_token(token)?;
        let now = self.0.clock.now();
        let is_valid = self
            .0
            .setup
            .lock()
            .as_ref()
            .is_some_and(|(hash, expires_at)| {
                now < *expires_at && bool::from(hash.as_bytes().ct_eq(hash_token(token).as_bytes()))
            });
        if is_valid {
            return Ok(());
        }
        // Only wrong tokens count: the right one has 256 random bits, so letting it in at once gives
        // nobody a guess, and no stranger keeps the owner out.
        Err(self.wrong_secret("setup", origin, AuthError::SetupOver))
    }

    /// How a wrong secret that belongs to no account is answered, as `wrong` while it may be tried.
    fn wrong_secret(&self, what: &str, origin: &Origin, wrong: AuthError) -> AuthError {
        match self.0.throttle.secret_begins(what, origin.address) {
            Verdict::Go(attempt) => {
                attempt.failed();
                self.tell(Event::LoginFail, origin, None, what);
                wrong
            }
            Verdict::Wait(seconds) => {
                self.tell(Event::LoginFailMax, origin, None, what);
                AuthError::Throttled(seconds)
            }
            Verdict::Busy => AuthError::Overloaded,
        }
    }

    /// Notes an event of a caller without a session in the security log; `what` is a fixed word of the code.
    fn tell(&self, event: Event, origin: &Origin, user: Option<UserId>, what: &str) {
        let who = Who {
            user_id: user.map(|id| id.0),
            what: Some(what),
            ..origin.who()
        };
        self.0.surroundings.log.note(event, &who);
    }

    /// Makes the first admin. Of two that race, the statement lets one win.
    pub async fn finish_setup(
        &self,
        token: &str,
        email: &str,
        name: &str,
        password: &str,
        carrier: Carrier,
        origin: Origin,
    ) -> Result<Login, AuthError> {
        let (email, name) = check_account(email, name, password).map_err(AuthError::Invalid)?;
        self.check_setup(token, &origin)?;
        let now = self.0.clock.now();
        let passwords = &self.0.passwords;
        let hash = passwords
            .hash(Lane::Known, origin.address, password)
            .await?;
        let login = self
            .0
            .store
            .write({
                let (auth, new) = (self.clone(), NewSession::new(carrier, origin.clone())?);
                move |tx| {
                    let id = sql::insert_first_admin(tx, now, &email, &name, &hash)?
                        .ok_or(AuthError::SetupOver)?;
                    auth.begin_session(tx, now, id, &new)
                }
            })
            .await?;
        *self.0.setup.lock() = None;
        let id = Some(login.account.id);
        self.tell(Event::UserCreated, &origin, id, "the first admin");
        self.tell(Event::PermissionsChanged, &origin, id, Role::Admin.word());
        Ok(login)
    }

    /// Makes an account without logging it in: what staff do for others.
    pub async fn create(
        &self,
        by: &Caller,
        email: &str,
        name: &str,
        password: &str,
        role: Role,
    ) -> Result<Account, AuthError> {
        let (email, name) = check_account(email, name, password).map_err(AuthError::Invalid)?;
        let passwords = &self.0.passwords;
        let hash = passwords.hash(Lane::Known, by.address(), password).await?;
        let now = self.0.clock.now();
        let made = self
            .0
            .store
            .write(move |tx| {
                let id = sql::insert_account(tx, now, &email, &name, Some(&hash), role)?;
                // Staff chose the name, so mails may carry it.
                sql::prove(tx, now, id)?;
                account(tx, id)
            })
            .await?;
        by.note(Event::UserCreated, Some(made.id), role.word());
        if role != Role::Customer {
            by.note(Event::PermissionsChanged, Some(made.id), role.word());
        }
        Ok(made)
    }

    /// Checks a password and begins a session.
    pub async fn login(
        &self,
        email: &str,
        password: &str,
        origin: Origin,
        carrier: Carrier,
    ) -> Result<Login, AuthError> {
        // What can be no account's is refused before anything is counted.
        let read = check::address(email).map_err(|reason| FieldError::new("email", reason));
        let faults: Vec<FieldError> = read
            .as_ref()
            .err()
            .cloned()
            .into_iter()
            .chain(check_known_password(password).err())
            .collect();
        let email = match read {
            Ok(email) if faults.is_empty() => email,
            Ok(_) | Err(_) => return Err(AuthError::Invalid(faults)),
        };
        let admitted = self.admit(&email, &origin).await;
        if let Err(AuthError::Throttled(_)) = admitted {
            self.tell(Event::LoginFailMax, &origin, None, "password");
        }
        let (attempt, known) = admitted?;
        let account = match self.check_password(&email, password, &origin).await {
            Ok(Checked::Right(account)) => account,
            Ok(Checked::Wrong(id)) => {
                attempt.failed();
                self.tell(Event::LoginFail, &origin, id, "password");
                return Err(self.wrong(&email, &origin, known));
            }
            Err(error) => {
                attempt.unchecked();
                return Err(error);
            }
        };
        attempt.succeeded();
        if known.is_some() {
            self.0.throttle.vouched(&email, origin.address);
        }
        let (auth, now, id) = (self.clone(), self.0.clock.now(), account.id);
        let new = NewSession::new(carrier, origin.clone())?;
        let forgetful = self.clone();
        let login = self
            .0
            .store
            .write(move |tx| auth.begin_session(tx, now, id, &new))
            .then(
                // Also when the client went away before its answer.
                move |login| forgetful.forget_evicted(login),
            )
            .await?;
        self.tell(Event::LoginSuccess, &origin, Some(id), carrier.word());
        Ok(login)
    }

    /// Of the sessions that a new one has ended, what is in memory goes as well.
    fn forget_evicted(&self, login: &Result<Login, AuthError>) {
        let evicted = login.as_ref().map_or(&[][..], |login| &login.evicted);
        if evicted.is_empty() {
            return;
        }
        let mut callers = self.0.callers.lock();
        for hash in evicted {
            callers.forget(hash);
        }
    }

    /// Lets a guess begin, as a stranger's or, where strangers must wait, as one from a place that the
    /// account is known to log in from.
    async fn admit(
        &self,
        email: &str,
        origin: &Origin,
    ) -> Result<(Attempt<'_>, Option<PlaceKind>), AuthError> {
        let throttle = &self.0.throttle;
        let watch = Stopwatch::start();
        let mut place = None;
        let mut waiting = None;
        loop {
            // Before it is asked, so that no end is missed in between.
            let settled = throttle.settled();
            let refusal = match throttle.stranger_begins(email, origin.address) {
                Verdict::Go(attempt) => return Ok((attempt, None)),
                Verdict::Wait(seconds) => Some(seconds),
                Verdict::Busy => None,
            };
            let known = match place {
                Some(known) => known,
                None => *place.insert(self.known_place(email, origin).await?),
            };
            let own = known.map(|kind| (kind, throttle.known_begins(email, origin.place(kind))));
            let seconds = match (own, refusal) {
                (Some((kind, Verdict::Go(attempt))), _) => return Ok((attempt, Some(kind))),
                (Some((PlaceKind::Device, Verdict::Wait(seconds))), _) => Some(seconds),
                (Some((_, Verdict::Busy)), _) => None,
                (Some((PlaceKind::Address, Verdict::Wait(_))) | None, refusal) => refusal,
            };
            let Some(seconds) = seconds else {
                if waiting.is_none() {
                    waiting = Some(self.share(origin)?);
                }
                settled.await;
                continue;
            };
            // As long as a wrong password takes of a caller whom strangers do not shut out: how fast
            // the answer comes does not tell whose address this is.
            let rest = self
                .0
                .passwords
                .usual_time()
                .saturating_sub(watch.elapsed());
            tokio::time::sleep(rest).await;
            return Err(AuthError::Throttled(seconds));
        }
    }

    /// One of the passwords that may wait, for this client.
    fn share(&self, origin: &Origin) -> Result<Share, AuthError> {
        let shares = &self.0.surroundings.shares;
        Ok(shares.take(Resource::Hashing, origin.address, 1)?)
    }

    async fn known_place(
        &self,
        email: &str,
        origin: &Origin,
    ) -> Result<Option<PlaceKind>, AuthError> {
        let (email, origin) = (email.to_owned(), origin.clone());
        self.0
            .store
            .point(move |tx| match sql::account_by_email(tx, &email)? {
                Some((account, _)) => Ok(origin.known_to(tx, account.id)?),
                None => Ok(None),
            })
            .await
    }

    /// Whether this is the password of a usable account with this address.
    async fn check_password(
        &self,
        email: &str,
        password: &str,
        origin: &Origin,
    ) -> Result<Checked, AuthError> {
        let (key, from) = (email.to_owned(), origin.clone());
        let found = self
            .0
            .store
            .point(move |tx| {
                let Some((account, hash)) = sql::account_by_email(tx, &key)? else {
                    return Ok::<_, AuthError>(None);
                };
                let is_known = from.known_to(tx, account.id)?.is_some();
                Ok(Some((account, hash, is_known)))
            })
            .await?;
        let id = found.as_ref().map(|(account, ..)| account.id);
        let Some((account, Some(hash), is_known)) =
            found.filter(|(account, ..)| account.status == Status::Active)
        else {
            self.0.passwords.verify_nothing(password).await?;
            return Ok(Checked::Wrong(id));
        };
        let lane = if is_known {
            Lane::Known
        } else {
            Lane::Stranger
        };
        let passwords = &self.0.passwords;
        let is_right = passwords
            .verify(lane, origin.address, password, hash)
            .await?;
        Ok(match is_right {
            true => Checked::Right(account),
            false => Checked::Wrong(id),
        })
    }

    /// How a wrong password is answered. A caller who was let in for its address alone hears what a
    /// stranger would: else the answer told which accounts log in from there.
    fn wrong(&self, email: &str, origin: &Origin, known: Option<PlaceKind>) -> AuthError {
        let wait = match known {
            Some(PlaceKind::Address) => self.0.throttle.stranger_waits(email, origin.address),
            Some(PlaceKind::Device) | None => None,
        };
        wait.map_or(AuthError::Wrong, AuthError::Throttled)
    }

    fn begin_session(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        id: UserId,
        new: &NewSession,
    ) -> Result<Login, AuthError> {
        let account = sql::account_by_id(tx, id)?.ok_or(AuthError::NoAccount)?;
        let expires_at = now.plus_seconds(self.life(account.role).0);
        let before = self.0.settings.sessions_max.saturating_sub(1);
        let evicted = sql::end_sessions_beyond(tx, id, before)?;
        sql::insert_session(tx, now, &new.token.hash, id, new.carrier, expires_at)?;
        let places_max = self.0.settings.login_known_places_max;
        let device = new.origin.remember(tx, now, id, &new.device, places_max)?;
        Ok(Login {
            token: new.token.text.clone(),
            expires_at,
            account,
            device,
            evicted,
        })
    }

    /// Seconds that a session lives, and may be unused.
    fn life(&self, role: Role) -> (i64, i64) {
        let settings = &self.0.settings;
        let (life, idle) = match role {
            Role::Customer => (settings.session_seconds, settings.session_idle_seconds),
            Role::Staff | Role::Admin => (
                settings.staff_session_seconds,
                settings.staff_session_idle_seconds,
            ),
        };
        (
            i64::try_from(life).unwrap_or(i64::MAX),
            i64::try_from(idle).unwrap_or(i64::MAX),
        )
    }

    /// Ends the caller's session.
    pub async fn logout(&self, caller: &Caller) -> Result<(), AuthError> {
        caller.note(Event::SessionExpired, None, "logged out");
        let (auth, hash) = (self.clone(), Arc::clone(&caller.token_hash));
        let token_hash = Arc::clone(&hash);
        self.0
            .store
            .write(move |tx| sql::delete_session(tx, &token_hash).map_err(AuthError::from))
            .then(
                // Also when the client went away before its answer.
                move |_| {
                    auth.0.callers.lock().forget(&hash);
                },
            )
            .await
    }

    /// Who a token stands for; `acts_for` is the request's `X-User-Id`.
    pub async fn caller(&self, token: &str, acts_for: Option<i64>) -> Result<Caller, AuthError> {
        let hash = hash_token(token);
        let now = self.0.clock.now();
        let epoch = self.0.epoch.load(Ordering::Acquire);
        let hit = {
            let mut callers = self.0.callers.lock();
            callers
                .known
                .get_mut(&hash)
                .filter(|cached| cached.epoch == epoch)
                .map(|cached| {
                    let idle_since = cached.last_seen_at;
                    cached.last_seen_at = now;
                    (cached.clone(), idle_since)
                })
        };
        let (cached, idle_since) = match hit {
            Some(hit) => hit,
            None => self.look_up(&hash, now, epoch).await?,
        };
        let idle = self.life(cached.caller.role).1;
        if now >= cached.expires_at || (!cached.is_key && now >= idle_since.plus_seconds(idle)) {
            self.0.callers.lock().forget(&hash);
            return Err(AuthError::Wrong);
        }
        match acts_for {
            None => Ok(cached.caller),
            Some(id) if cached.caller.is_key_with(Scope::ActAs) => {
                let id = UserId(id);
                let account = self
                    .0
                    .store
                    .point(move |tx| sql::account_by_id(tx, id))
                    .await?;
                match account {
                    Some(account) if account.status == Status::Active => Ok(Caller {
                        user_id: id,
                        role: Role::Customer,
                        ..cached.caller
                    }),
                    _ => Err(AuthError::NoAccount),
                }
            }
            Some(_) => Err(AuthError::Wrong),
        }
    }

    async fn look_up(
        &self,
        hash: &str,
        now: Timestamp,
        epoch: u64,
    ) -> Result<(Cached, Timestamp), AuthError> {
        let key = hash.to_owned();
        let token_hash: Arc<str> = Arc::from(hash);
        let cached = self
            .0
            .store
            .point(move |tx| {
                if let Some(row) = sql::session(tx, &key)? {
                    return Ok(Some((
                        row.user_id,
                        row.role,
                        row.status,
                        None,
                        row.last_seen_at,
                        row.expires_at,
                    )));
                }
                Ok::<_, AuthError>(sql::key(tx, &key, now)?.map(|row| {
                    (
                        row.user_id,
                        row.role,
                        row.status,
                        Some(row.scopes),
                        now,
                        row.expires_at.unwrap_or(Timestamp(i64::MAX)),
                    )
                }))
            })
            .await?;
        let Some((user_id, role, Status::Active, scopes, last_seen_at, expires_at)) = cached else {
            return Err(AuthError::Wrong);
        };
        let is_key = scopes.is_some();
        // What its owner may no longer do, the key may not either.
        let within = |scope: &Scope| role.covers(scope.least_role());
        let scopes = scopes.map(|words| {
            let scopes = words.split(' ').filter_map(Scope::from_word);
            scopes.filter(within).collect()
        });
        let caller = Caller {
            user_id,
            role,
            scopes,
            token_hash,
            watch: None,
        };
        let cached = Cached {
            caller,
            is_key,
            epoch,
            expires_at,
            last_seen_at: now,
            saved_at: last_seen_at,
        };
        self.0
            .callers
            .lock()
            .insert(hash.to_owned(), cached.clone());
        Ok((cached, last_seen_at))
    }

    /// Writes down when sessions and their accounts were last used, as far as that is not on disk;
    /// answers how many sessions that were. What could not be written is kept for the next time.
    pub async fn sync_activity(&self) -> Result<usize, AuthError> {
        let unsaved = self.0.callers.lock().take_unsaved();
        for (at, part) in unsaved.chunks(SEEN_AT_ONCE).enumerate() {
            let sessions: Vec<(String, Timestamp)> = part
                .iter()
                .map(|seen| (seen.token_hash.to_string(), seen.at))
                .collect();
            let mut accounts: HashMap<UserId, Timestamp> = HashMap::new();
            for seen in part {
                let last = accounts.entry(seen.user_id).or_insert(seen.at);
                *last = seen.at.max(*last);
            }
            let accounts: Vec<(UserId, Timestamp)> = accounts.into_iter().collect();
            let written = self
                .0
                .store
                .write(move |tx| {
                    sql::touch_sessions(tx, &sessions)?;
                    sql::touch_accounts(tx, &accounts).map_err(AuthError::from)
                })
                .await;
            let mut callers = self.0.callers.lock();
            if let Err(error) = written {
                callers.keep(unsaved[at * SEEN_AT_ONCE..].iter().cloned());
                return Err(error);
            }
            callers.note_saved(part);
        }
        Ok(unsaved.len())
    }
}

/// Drops sessions past their end, a bounded number at once; answers how many.
pub fn purge_sessions(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    sql::purge_sessions(tx, now)
}

/// A checked account whose password is hashed, ready to be written.
pub struct NewAccount {
    email: String,
    name: String,
    password_hash: String,
}

impl NewAccount {
    /// Checks and hashes; takes tens of milliseconds, so not for an async thread.
    pub fn checked(
        email: &str,
        name: &str,
        password: &str,
        settings: &config::Auth,
    ) -> Result<Self, AuthError> {
        let (email, name) = check_account(email, name, password).map_err(AuthError::Invalid)?;
        Ok(Self {
            email,
            name,
            password_hash: password::hash_now(password, settings)?,
        })
    }
}

/// Writes an account, for an operator.
pub fn create_account(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewAccount,
    role: Role,
) -> Result<UserId, AuthError> {
    let hash = Some(&*new.password_hash);
    let id = sql::insert_account(tx, now, &new.email, &new.name, hash, role)?;
    sql::prove(tx, now, id)?;
    Ok(id)
}

/// Names folded in one transaction, for which others wait.
const FOLDED_AT_ONCE: i64 = 1_000;

/// Folds the names that an earlier version left, so that a search finds them; for a start.
pub fn fold_names(store: &Store) -> Result<(), StoreError> {
    loop {
        let names = store.read_blocking(|tx| sql::unfolded(tx, FOLDED_AT_ONCE))?;
        if names.is_empty() {
            return Ok(());
        }
        store.write(move |tx| sql::fold(tx, &names)).blocking()?;
    }
}

/// An API key without the key itself, of which only a hash is kept.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// Key of the row.
    pub id: KeyId,
    /// Whose rights it has.
    pub user_id: UserId,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A key to make.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it shall end by itself.
    pub expires_at: Option<Timestamp>,
}

/// Longest token in a body, in characters.
const TOKEN_CHARS_MAX: usize = 100;

/// Refuses what is longer than any token.
fn check_token(token: &str) -> Result<(), AuthError> {
    let mut checks = Checks::new();
    checks.text("token", token, 1, TOKEN_CHARS_MAX);
    checks.finish().map_err(AuthError::Invalid)
}

/// Words in a list of scopes; a word may stand there twice.
const SCOPES_MAX: usize = 32;

/// Makes a key with an account's rights; the text beside it is the only copy of the key.
pub fn create_api_key(
    tx: &mut Tx<'_>,
    now: Timestamp,
    user: UserId,
    new: &NewKey,
    keys_max: usize,
) -> Result<(ApiKey, String), AuthError> {
    let mut checks = Checks::new();
    let name = check::trimmed(&new.name);
    checks.name("name", name, 1, 100);
    checks.range("scopes", new.scopes.len(), 1, SCOPES_MAX);
    checks.require(
        new.expires_at.is_none_or(|end| end > now),
        "expires_at",
        "must be in the future",
    );
    checks.require(
        sql::live_keys(tx, user, now)? < i64::try_from(keys_max).unwrap_or(i64::MAX),
        "name",
        "the account has as many keys as it may; revoke one first",
    );
    checks.finish().map_err(AuthError::Invalid)?;
    let token = new_token("onk_")?;
    let asked =
        |word: &&str| Scope::from_word(word).is_some_and(|scope| new.scopes.contains(&scope));
    let words: Vec<&str> = Scope::WORDS.iter().copied().filter(asked).collect();
    let key = sql::insert_key(
        tx,
        now,
        user,
        name,
        new.expires_at,
        &token.hash,
        &words.join(" "),
    )?;
    Ok((key, token.text))
}

/// Makes a key for the account with this address.
pub fn create_api_key_for(
    tx: &mut Tx<'_>,
    now: Timestamp,
    email: &str,
    new: &NewKey,
    keys_max: usize,
) -> Result<(ApiKey, String), AuthError> {
    let (account, _) =
        sql::account_by_email(tx, &normal_email(email))?.ok_or(AuthError::NoAccount)?;
    create_api_key(tx, now, account.id, new, keys_max)
}

/// Keys with ids below `before`, newest first; `owner` is `None` for all accounts' keys.
pub fn list_api_keys(
    tx: &mut Tx<'_>,
    owner: Option<UserId>,
    before: i64,
    limit: i64,
) -> Result<Vec<ApiKey>, AuthError> {
    Ok(match owner {
        Some(owner) => sql::keys_of(tx, owner, before, limit)?,
        None => sql::keys(tx, before, limit)?,
    })
}

/// Revokes a key; revoked twice it is revoked once. `owner` as in [`list_api_keys`].
pub fn revoke_api_key(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: KeyId,
    owner: Option<UserId>,
) -> Result<(), AuthError> {
    if sql::revoke_key(tx, now, id, owner)? {
        Ok(())
    } else {
        Err(AuthError::NoKey(id))
    }
}

/// One account.
pub fn account(tx: &mut Tx<'_>, id: UserId) -> Result<Account, AuthError> {
    sql::account_by_id(tx, id)?.ok_or(AuthError::NoAccount)
}

/// The account with this address.
pub fn account_with(tx: &mut Tx<'_>, email: &str) -> Result<Account, AuthError> {
    let found = sql::account_by_email(tx, &normal_email(email))?;
    Ok(found.ok_or(AuthError::NoAccount)?.0)
}

/// What is to change of an account; what is `None` stays.
#[derive(Clone, Copy, Debug)]
pub struct AccountChange<'a> {
    /// What to call its owner.
    pub name: Option<&'a str>,
    /// What it may do.
    pub role: Option<Role>,
    /// Whether it may be used.
    pub status: Option<Status>,
}

/// How the owner of an account is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Mail address.
    pub email: String,
    /// What to call them. `None` while it is not known that the reader of that address chose the name: a stranger
    /// can register any address under any text as a name.
    pub name: Option<String>,
    /// The language that they read; `None` if they never said.
    pub language: Option<Language>,
}

/// How an active account is written to; `None` if there is no such account, or no address.
pub fn recipient(tx: &mut Tx<'_>, id: UserId) -> Result<Option<Recipient>, StoreError> {
    sql::recipient(tx, id)
}

/// Makes a customer who has no password, with a session of `seconds`; answers the session's token.
pub fn create_customer_with_session(
    tx: &mut Tx<'_>,
    now: Timestamp,
    email: &str,
    name: &str,
    seconds: i64,
) -> Result<String, AuthError> {
    let id = sql::insert_account(tx, now, email, name, None, Role::Customer)?;
    let token = new_token(Carrier::Bearer.prefix())?;
    let ends = now.plus_seconds(seconds);
    sql::insert_session(tx, now, &token.hash, id, Carrier::Bearer, ends)?;
    Ok(token.text)
}
