//! Webhooks: what happens here, told to other people's servers.
//!
//! Invariants: an event and the tasks that deliver it are written in the transaction in which it
//! happened, or not at all; where no endpoint wants it, that costs a look into memory and nothing
//! else ([`Events`]). Delivery is at least once: an event keeps its id over all attempts and
//! replays, so a receiver can tell a repetition. Events of one endpoint may overtake each other.
//! Whatever changes an endpoint goes through [`Webhooks::change`], which renews what is in memory.
//! A secret is shown when it is made and never again. Nothing here knows what an event is about: what may
//! happen is declared by the features and comes as a list ([`Catalogue`]).

pub mod api;
mod deliver;
mod event;
mod sign;
mod sql;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use deliver::DeliverWebhook;
use deliver::DeliverWebhookArgs;
pub use event::{Catalogue, EventKind, Holds, Shape};
use sign::SigningSecret;

use crate::check::{self, Checks, FieldError};
use crate::clock::{self, Clock, Timestamp};
use crate::config;
use crate::http::outgoing::Outgoing;
use crate::store::{Store, StoreError, Tx};
use crate::task::{self, NewTask, TaskError, TaskId};
use crate::{id_type, word_type};

id_type! {
    /// Key of an endpoint.
    EndpointId
}

id_type! {
    /// Key of an attempt to deliver.
    DeliveryId
}

/// What an endpoint is sent when a person wants to know whether it works. No endpoint can choose it.
static PING: EventKind = EventKind {
    name: "ping",
    about: "A person wants to know whether an endpoint works.",
    about_zh: "测试接收地址",
    shape: &[("endpoint_id", Holds::Integer)],
};

word_type! {
    /// Whether an endpoint is told anything.
    EndpointStatus {
        /// It is.
        Active = "active",
        /// It is not: by hand, because it is gone, or because it failed for long.
        Disabled = "disabled",
    }
}

word_type! {
    /// How an attempt ended.
    DeliveryOutcome {
        /// The endpoint answered 2xx.
        Delivered = "delivered",
        /// Anything else.
        Failed = "failed",
    }
}

/// Somebody's server that is told of events.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Key.
    pub id: EndpointId,
    /// Where it is.
    pub url: String,
    /// For people.
    pub description: String,
    /// What it wants: names, `order.*`, `*`.
    pub events: Vec<String>,
    /// Whether it is told.
    pub status: EndpointStatus,
    /// Why not.
    pub disabled_reason: Option<String>,
    /// Since when every attempt has failed.
    pub failing_since: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
    /// Until when the old secret signs as well.
    pub old_secret_expires_at: Option<Timestamp>,
    secret: SigningSecret,
    old_secret: Option<SigningSecret>,
}

impl Endpoint {
    /// The secrets that sign now, the newest first.
    fn secrets(&self, now: Timestamp) -> impl Iterator<Item = &SigningSecret> {
        let old = self
            .old_secret
            .as_ref()
            .filter(|_| self.old_secret_expires_at.is_some_and(|end| now < end));
        std::iter::once(&self.secret).chain(old)
    }

    /// The beginning of its secret, enough to tell it from another.
    pub fn masked_secret(&self) -> String {
        self.secret.masked()
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Key; what receivers know it by.
    pub id: String,
    /// The name of its kind.
    pub kind: Cow<'static, str>,
    /// What is sent, byte for byte.
    pub body: String,
    /// When.
    pub created_at: Timestamp,
}

/// An attempt to deliver an event.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Key.
    pub id: DeliveryId,
    /// To whom.
    pub endpoint_id: EndpointId,
    /// Of what.
    pub event_id: String,
    /// The name of that event's kind.
    pub kind: Cow<'static, str>,
    /// By which task.
    pub task_id: TaskId,
    /// Which of its attempts.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: DeliveryOutcome,
    /// What the endpoint answered.
    pub status: Option<u32>,
    /// How long it took.
    pub duration_ms: i64,
    /// Why it failed.
    pub error: Option<String>,
    /// The beginning of the answer's body.
    pub excerpt: Option<String>,
}

/// Why something could not be done to an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// Fields don't hold.
    #[error("the endpoint is not valid")]
    Invalid(Vec<FieldError>),
    /// No such endpoint.
    #[error("there is no webhook endpoint {0}")]
    NotFound(EndpointId),
    /// No such event, or it is kept no longer.
    #[error("there is no event {0}; they are kept for webhooks.retention_seconds")]
    NoEvent(String),
    /// There are as many as may be.
    #[error("there are {0} webhook endpoints already; remove one, or raise webhooks.endpoints_max")]
    TooMany(u32),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers")]
    Random,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<TaskError> for WebhookError {
    fn from(error: TaskError) -> Self {
        WebhookError::Store(as_store_error(error))
    }
}

/// Tasks made here are valid and have no lock, so only the database can refuse them.
fn as_store_error(error: TaskError) -> StoreError {
    match error {
        TaskError::Store(error) => error,
        other => StoreError::Bug(other.to_string()),
    }
}

/// Who wants what, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    any: u64,
    endpoints: Vec<(EndpointId, u64)>,
}

impl Wanted {
    fn of(catalogue: &Catalogue, endpoints: &[Endpoint]) -> Self {
        let active = endpoints
            .iter()
            .filter(|endpoint| endpoint.status == EndpointStatus::Active);
        let endpoints: Vec<_> = active
            .map(|endpoint| (endpoint.id, catalogue.mask(&endpoint.events)))
            .collect();
        Self {
            any: endpoints.iter().fold(0, |any, (_, mask)| any | mask),
            endpoints,
        }
    }
}

/// Where the rules say what happened; clones share it. The default one is wanted by nobody.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    catalogue: Catalogue,
    wanted: ArcSwap<Wanted>,
}

impl Events {
    fn of(catalogue: Catalogue) -> Self {
        Self(Arc::new(Known {
            catalogue,
            wanted: ArcSwap::default(),
        }))
    }

    fn want(&self, wanted: Arc<Wanted>) {
        self.0.wanted.store(wanted);
    }

    /// Writes an event and the tasks that deliver it, in the caller's transaction, if any endpoint
    /// wants it; only then is `data` called.
    pub fn emit(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        kind: &'static EventKind,
        data: impl FnOnce() -> Value,
    ) -> Result<(), StoreError> {
        self.emit_all(tx, now, kind, std::iter::once_with(data))
    }

    /// [`Events::emit`] of many of a kind, with a number of statements that does not grow with theirs.
    pub fn emit_all(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        kind: &'static EventKind,
        data: impl Iterator<Item = Value>,
    ) -> Result<(), StoreError> {
        let wanted = self.0.wanted.load();
        if wanted.any == 0 {
            return Ok(());
        }
        let bit = self.0.catalogue.bit(kind);
        if wanted.any & bit == 0 {
            return Ok(());
        }
        let events: Vec<Event> = data.map(|data| Event::new(now, kind, &data)).collect();
        sql::insert_events(tx, &events)?;
        let endpoints = wanted.endpoints.iter().filter(|(_, mask)| mask & bit != 0);
        let tasks = endpoints
            .flat_map(|(endpoint, _)| {
                let of = |event| delivery(*endpoint, event, Delivering::Ordinary);
                events.iter().map(of)
            })
            .collect::<Result<Vec<NewTask>, StoreError>>()?;
        task::enqueue_all(tx, now, &tasks).map_err(as_store_error)?;
        fail::fail_point!("webhook.enqueued");
        Ok(())
    }
}

impl Event {
    fn new(now: Timestamp, kind: &'static EventKind, data: &Value) -> Self {
        debug_assert_eq!(kind.fault(data), None, "{}: {data}", kind.name);
        Self {
            id: format!("evt_{}", clock::uuid_at(now).simple()),
            kind: Cow::Borrowed(kind.name),
            body: json!({"type": kind.name, "timestamp": now, "data": data}).to_string(),
            created_at: now,
        }
    }
}

/// How much is done for a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivering {
    /// Over the whole schedule, while the endpoint is active.
    Ordinary,
    /// The same, by hand: also to an endpoint that is disabled.
    Replay,
    /// Once.
    Ping,
}

fn enqueue(
    tx: &mut Tx<'_>,
    now: Timestamp,
    endpoint: EndpointId,
    event: &Event,
    how: Delivering,
) -> Result<TaskId, StoreError> {
    let task = delivery(endpoint, event, how)?;
    let enqueued = task::enqueue(tx, now, &task).map_err(as_store_error)?;
    fail::fail_point!("webhook.enqueued");
    Ok(enqueued.id())
}

/// The task that delivers an event.
fn delivery(endpoint: EndpointId, event: &Event, how: Delivering) -> Result<NewTask, StoreError> {
    let args = DeliverWebhookArgs {
        endpoint_id: endpoint.0,
        event_id: event.id.clone(),
        by_hand: how != Delivering::Ordinary,
    };
    let mut task = NewTask::of::<DeliverWebhook>(&args)?;
    if how == Delivering::Ping {
        task.max_attempts = 1;
    }
    Ok(task)
}

/// An endpoint to make.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    /// Where it is.
    pub url: String,
    /// For people.
    pub description: String,
    /// What it wants.
    pub events: Vec<String>,
    /// Its secret; `None` for a new one.
    pub secret: Option<String>,
}

/// New values of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct EndpointPatch {
    /// Where it is.
    pub url: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// What it wants.
    pub events: Option<Vec<String>>,
    /// Whether it is told.
    pub status: Option<EndpointStatus>,
}

fn check_fields(
    catalogue: &Catalogue,
    outgoing: &Outgoing,
    url: Option<&str>,
    description: Option<&str>,
    events: Option<&[String]>,
) -> Checks {
    let mut checks = Checks::new();
    if let Some(Err(error)) = url.map(|url| outgoing.check(url)) {
        let reason = error.to_string();
        let reason = reason.strip_prefix("the URL ").unwrap_or(&reason);
        checks.require(false, "url", reason);
    }
    if let Some(description) = description {
        checks.name("description", check::trimmed(description), 0, 500);
    }
    if let Some(events) = events {
        let kinds = catalogue.kinds();
        checks.range("events", events.len(), 1, kinds.len());
        for (at, pattern) in events.iter().enumerate().take(kinds.len()) {
            let fits = kinds.iter().any(|kind| kind.fits(pattern));
            // `order*` is no beginning that anybody means.
            let is_pattern =
                fits && (!pattern.ends_with('*') || pattern == "*" || pattern.ends_with(".*"));
            let near = check::nearest(pattern, kinds.iter().map(|kind| kind.name));
            let hint = near
                .map(|near| format!("; did you mean {near}?"))
                .unwrap_or_default();
            checks.require(
                is_pattern,
                format!("events[{at}]"),
                format!("must be the name of an event, a group such as order.*, or *{hint}"),
            );
        }
    }
    checks
}

/// Makes an endpoint.
pub fn create(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Webhooks,
    catalogue: &Catalogue,
    outgoing: &Outgoing,
    new: &NewEndpoint,
) -> Result<(Endpoint, String), WebhookError> {
    let mut checks = check_fields(
        catalogue,
        outgoing,
        Some(&new.url),
        Some(&new.description),
        Some(&new.events),
    );
    let given = new.secret.as_deref().map(SigningSecret::parse);
    checks.require(
        given != Some(None),
        "secret",
        "must be whsec_ and 24 to 64 bytes in base64",
    );
    checks.finish().map_err(WebhookError::Invalid)?;
    let secret = match given.flatten() {
        Some(secret) => secret,
        None => SigningSecret::random().ok_or(WebhookError::Random)?,
    };
    let endpoint = sql::insert_endpoint(tx, now, new, &secret, rules.endpoints_max)?
        .ok_or(WebhookError::TooMany(rules.endpoints_max))?;
    Ok((endpoint, secret.reveal().to_owned()))
}

/// One endpoint.
pub fn get(tx: &mut Tx<'_>, id: EndpointId) -> Result<Endpoint, WebhookError> {
    sql::endpoint(tx, id)?.ok_or(WebhookError::NotFound(id))
}

/// All endpoints; there are only so many.
pub fn list(tx: &mut Tx<'_>) -> Result<Vec<Endpoint>, WebhookError> {
    Ok(sql::endpoints(tx)?)
}

/// Changes an endpoint. Enabling it forgets its failures.
pub fn update(
    tx: &mut Tx<'_>,
    now: Timestamp,
    catalogue: &Catalogue,
    outgoing: &Outgoing,
    id: EndpointId,
    patch: &EndpointPatch,
) -> Result<Endpoint, WebhookError> {
    check_fields(
        catalogue,
        outgoing,
        patch.url.as_deref(),
        patch.description.as_deref(),
        patch.events.as_deref(),
    )
    .finish()
    .map_err(WebhookError::Invalid)?;
    sql::update_endpoint(tx, now, id, patch)?.ok_or(WebhookError::NotFound(id))
}

/// Removes an endpoint. What still waits for it ends when its turn comes.
pub fn remove(tx: &mut Tx<'_>, id: EndpointId) -> Result<(), WebhookError> {
    if sql::delete_endpoint(tx, id)? {
        Ok(())
    } else {
        Err(WebhookError::NotFound(id))
    }
}

/// Gives an endpoint a new secret; the old one signs beside it for so long.
pub fn rotate(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: EndpointId,
    overlap_seconds: i64,
) -> Result<(Endpoint, String), WebhookError> {
    let secret = SigningSecret::random().ok_or(WebhookError::Random)?;
    let until = now.plus_seconds(overlap_seconds);
    let endpoint =
        sql::rotate_secret(tx, now, id, &secret, until)?.ok_or(WebhookError::NotFound(id))?;
    Ok((endpoint, secret.reveal().to_owned()))
}

/// Sends an event of no meaning to an endpoint, once.
pub fn ping(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: EndpointId,
) -> Result<(Event, TaskId), WebhookError> {
    get(tx, id)?;
    let event = Event::new(now, &PING, &json!({"endpoint_id": id}));
    sql::insert_events(tx, std::slice::from_ref(&event))?;
    let task = enqueue(tx, now, id, &event, Delivering::Ping)?;
    Ok((event, task))
}

/// Sends an event to an endpoint once more.
pub fn replay(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: EndpointId,
    event_id: &str,
) -> Result<TaskId, WebhookError> {
    get(tx, id)?;
    let event = event(tx, event_id)?;
    Ok(enqueue(tx, now, id, &event, Delivering::Replay)?)
}

/// What happened.
pub fn event(tx: &mut Tx<'_>, id: &str) -> Result<Event, WebhookError> {
    sql::event(tx, id)?.ok_or_else(|| WebhookError::NoEvent(id.to_owned()))
}

/// Attempts to deliver to an endpoint with keys below `before`, newest first.
pub fn deliveries(
    tx: &mut Tx<'_>,
    id: EndpointId,
    only_failed: bool,
    before: i64,
    limit: i64,
) -> Result<Vec<Delivery>, WebhookError> {
    get(tx, id)?;
    Ok(sql::deliveries(tx, id, only_failed, before, limit)?)
}

/// The handle; clones share it.
#[derive(Clone)]
pub struct Webhooks(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    rules: config::Webhooks,
    events: Events,
    busy: Mutex<HashMap<EndpointId, Busy>>,
}

/// How much of an endpoint's attention is taken.
#[derive(Default)]
struct Busy {
    calls: u32,
    /// When the last of those that wait for a place comes back.
    next_ms: u64,
}

/// How far apart those come back that found no place at an endpoint.
const SPACING_MS: u64 = 250;
/// The longest that one waits for a place.
const WAIT_MS_MAX: u64 = 600_000;
/// Rows that are removed in one transaction.
const PURGE_ROWS: u32 = 500;
/// How often old events and deliveries are looked for.
const PURGE_EVERY: Duration = Duration::from_secs(60);

impl Webhooks {
    /// Tells of these kinds of events. Knows no endpoint until [`Webhooks::load`].
    pub fn new(catalogue: Catalogue, store: Store, clock: Clock, rules: config::Webhooks) -> Self {
        Self(Arc::new(Inner {
            store,
            clock,
            rules,
            events: Events::of(catalogue),
            busy: Mutex::default(),
        }))
    }

    /// Where the rules say what happened.
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// Every kind that an endpoint can choose.
    pub fn catalogue(&self) -> &Catalogue {
        &self.0.events.0.catalogue
    }

    /// The record.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Its settings.
    pub fn rules(&self) -> &config::Webhooks {
        &self.0.rules
    }

    /// Reads who wants what. Before the first event.
    pub async fn load(&self) -> Result<(), StoreError> {
        let endpoints = self.0.store.read(sql::endpoints).await?;
        let wanted = Wanted::of(self.catalogue(), &endpoints);
        self.0.events.want(Arc::new(wanted));
        Ok(())
    }

    /// Changes endpoints; once that is committed, what happens next is told accordingly.
    pub async fn change<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Tx<'_>) -> Result<T, WebhookError> + Send + 'static,
    ) -> Result<T, WebhookError> {
        let (events, catalogue) = (self.0.events.clone(), self.catalogue().clone());
        let (value, _) = self
            .0
            .store
            .write(move |tx| {
                let value = work(tx)?;
                let wanted = Wanted::of(&catalogue, &sql::endpoints(tx)?);
                Ok((value, Arc::new(wanted)))
            })
            .then(move |done: &Result<(T, Arc<Wanted>), WebhookError>| {
                if let Ok((_, wanted)) = done {
                    events.want(Arc::clone(wanted));
                }
            })
            .await?;
        Ok(value)
    }

    /// A place among the calls of an endpoint, or how long to wait before asking again. Each who is
    /// turned away gets a time of its own, so that a backlog does not come back all at once.
    fn place(&self, id: EndpointId) -> Result<CallSlot, Duration> {
        let now = self.0.clock.monotonic_ms();
        let mut all = self.0.busy.lock();
        let busy = all.entry(id).or_default();
        if busy.calls < self.0.rules.endpoint_calls_max {
            busy.calls += 1;
            return Ok(CallSlot {
                webhooks: self.clone(),
                id,
            });
        }
        busy.next_ms = (busy.next_ms.max(now) + SPACING_MS).min(now + WAIT_MS_MAX);
        Err(Duration::from_millis(busy.next_ms - now))
    }

    /// Removes old events and deliveries now and then, until `stopped` turns true.
    pub async fn run_upkeep(self, mut stopped: watch::Receiver<bool>) {
        loop {
            if let Err(error) = self.purge().await {
                tracing::warn!(%error, "old webhook events could not be cleared away; it is tried again");
            }
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(PURGE_EVERY) => {}
            }
        }
    }

    /// Removes what is too old, in bounded steps.
    async fn purge(&self) -> Result<(), StoreError> {
        let seconds = i64::try_from(self.0.rules.retention_seconds).unwrap_or(i64::MAX);
        loop {
            let until = self.0.clock.now().plus_seconds(-seconds);
            if !self
                .0
                .store
                .point(move |tx| sql::any_old(tx, until))
                .await?
            {
                return Ok(());
            }
            self.0
                .store
                .write(move |tx| sql::purge(tx, until, PURGE_ROWS))
                .await?;
        }
    }
}

/// One of the calls that an endpoint gets at once, until it is dropped.
struct CallSlot {
    webhooks: Webhooks,
    id: EndpointId,
}

impl Drop for CallSlot {
    fn drop(&mut self) {
        let mut all = self.webhooks.0.busy.lock();
        if let Some(busy) = all.get_mut(&self.id) {
            busy.calls = busy.calls.saturating_sub(1);
            if busy.calls == 0 {
                all.remove(&self.id);
            }
        }
    }
}
