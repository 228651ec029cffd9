//! Webhook endpoints over HTTP, for admins.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Delivery, Endpoint, EndpointId, EndpointPatch, EndpointStatus, Event, NewEndpoint,
    WebhookError, Webhooks,
};
use crate::auth::api::{Access, Tag};
use crate::auth::{Role, Scope};
use crate::check::{Checks, FieldError};
use crate::clock::Timestamp;
use crate::http::json::Accepted;
use crate::http::outgoing::Outgoing;
use crate::http::{Body, Created, Failure, NoContent, OptionalBody, Problem, fails, read_cursor};

/// Longest time that an old secret may go on signing: a week.
const OVERLAP_SECONDS_MAX: i64 = 604_800;

impl From<WebhookError> for Problem {
    fn from(error: WebhookError) -> Self {
        let text = error.to_string();
        match error {
            WebhookError::Invalid(errors) => Problem::validation(errors),
            WebhookError::NotFound(_) => Problem::not_found("webhook_not_found", text),
            WebhookError::NoEvent(_) => Problem::not_found("event_not_found", text),
            WebhookError::TooMany(_) => Problem::conflict("too_many_webhooks", text),
            WebhookError::Random => Problem::internal(text),
            WebhookError::Store(error) => error.into(),
        }
    }
}

/// An endpoint to make.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct EndpointBody {
    /// Where it is: https or http, without credentials
    #[oai(validator(min_length = 8, max_length = 2000))]
    url: String,
    /// What it wants: names of events, groups such as `order.*`, or `*`
    #[oai(validator(min_items = 1))]
    events: Vec<String>,
    /// For people
    #[oai(default, validator(max_length = 500))]
    #[serde(default)]
    description: String,
    /// Its secret, `whsec_` and 24 to 64 bytes in base64; made for it if left out
    #[serde(default)]
    secret: Option<String>,
}

impl Example for EndpointBody {
    fn example() -> Self {
        Self {
            url: "https://erp.example.com/hooks/onrush".to_owned(),
            events: vec!["order.*".to_owned(), "flash_sale.sold_out".to_owned()],
            description: "Our ERP".to_owned(),
            secret: None,
        }
    }
}

/// What shall change; what is left out stays.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct EndpointChange {
    /// Where it is
    #[serde(default)]
    url: Option<String>,
    /// What it wants
    #[serde(default)]
    events: Option<Vec<String>>,
    /// For people
    #[serde(default)]
    description: Option<String>,
    /// `active` or `disabled`
    #[serde(default)]
    status: Option<String>,
}

impl Example for EndpointChange {
    fn example() -> Self {
        Self {
            url: None,
            events: None,
            description: None,
            status: Some("active".to_owned()),
        }
    }
}

/// An endpoint.
#[derive(Serialize, Object)]
#[oai(skip_serializing_if_is_none)]
struct EndpointView {
    /// Key
    id: i64,
    /// Where it is
    url: String,
    /// For people
    description: String,
    /// What it wants
    events: Vec<String>,
    /// `active` or `disabled`
    status: String,
    /// Why it is disabled
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_reason: Option<String>,
    /// Since when every attempt has failed
    #[serde(skip_serializing_if = "Option::is_none")]
    failing_since: Option<Timestamp>,
    /// The beginning of its secret
    secret_hint: String,
    /// Until when the secret before it signs as well
    #[serde(skip_serializing_if = "Option::is_none")]
    old_secret_expires_at: Option<Timestamp>,
    /// When it was made
    created_at: Timestamp,
    /// When it was changed
    updated_at: Timestamp,
}

impl From<Endpoint> for EndpointView {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            secret_hint: endpoint.masked_secret(),
            id: endpoint.id.0,
            url: endpoint.url,
            description: endpoint.description,
            events: endpoint.events,
            status: endpoint.status.word().to_owned(),
            disabled_reason: endpoint.disabled_reason,
            failing_since: endpoint.failing_since,
            old_secret_expires_at: endpoint.old_secret_expires_at,
            created_at: endpoint.created_at,
            updated_at: endpoint.updated_at,
        }
    }
}

/// An endpoint with its secret, which is shown this once.
#[derive(Serialize, Object)]
struct EndpointWithSecret {
    #[serde(flatten)]
    #[oai(flatten)]
    endpoint: EndpointView,
    /// What signs from now on; it is not shown again
    secret: String,
}

/// All endpoints.
#[derive(Serialize, Object)]
struct EndpointList {
    /// Oldest first
    items: Vec<EndpointView>,
}

/// How to rotate.
#[derive(Default, Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(skip_serializing_if_is_none)]
struct RotateBody {
    /// How long the old secret signs beside the new one
    #[oai(validator(minimum(value = "0"), maximum(value = "604800")))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overlap_seconds: Option<i64>,
}

/// What to send again.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct ReplayBody {
    /// Key of the event
    #[oai(validator(max_length = 100))]
    event_id: String,
}

impl Example for ReplayBody {
    fn example() -> Self {
        Self {
            event_id: "evt_019a7b3c5d6e7f80a1b2c3d4e5f60718".to_owned(),
        }
    }
}

/// What is on its way.
#[derive(Serialize, Object)]
struct Sending {
    /// The event
    event_id: String,
    /// The task that delivers it
    task_id: String,
}

impl Sending {
    fn accepted(self) -> Result<Accepted<Self>, Problem> {
        let location = format!("/api/v1/tasks/{}", self.task_id);
        let text = serde_json::to_string(&self).map_err(Problem::internal)?;
        Ok(Accepted::printed(text, location))
    }
}

/// An attempt to deliver.
#[derive(Serialize, Object)]
#[oai(skip_serializing_if_is_none)]
struct DeliveryView {
    /// Key
    id: i64,
    /// The event
    event_id: String,
    /// What kind it is
    event_type: String,
    /// The task that delivers it
    task_id: String,
    /// Which of the task's attempts
    attempt: u32,
    /// When
    at: Timestamp,
    /// `delivered` or `failed`
    outcome: String,
    /// What the endpoint answered
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u32>,
    /// How long it took
    duration_ms: i64,
    /// Why it failed
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The beginning of the answer
    #[serde(skip_serializing_if = "Option::is_none")]
    response_excerpt: Option<String>,
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id.0,
            event_id: delivery.event_id,
            event_type: delivery.kind.into_owned(),
            task_id: delivery.task_id.to_string(),
            attempt: delivery.attempt,
            at: delivery.at,
            outcome: delivery.outcome.word().to_owned(),
            status: delivery.status,
            duration_ms: delivery.duration_ms,
            error: delivery.error,
            response_excerpt: delivery.excerpt,
        }
    }
}

/// One page of attempts.
#[derive(Serialize, Object)]
struct DeliveryPage {
    /// Newest first
    items: Vec<DeliveryView>,
    /// Pass it as `cursor` for the next page
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Something that happened.
#[derive(Serialize, Object)]
struct EventView {
    /// Key, which receivers get as `webhook-id`
    id: String,
    /// What kind it is
    r#type: String,
    /// When
    created_at: Timestamp,
    /// What is sent
    body: Value,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            id: event.id,
            r#type: event.kind.into_owned(),
            created_at: event.created_at,
            body: serde_json::from_str(&event.body).unwrap_or(Value::String(event.body)),
        }
    }
}

/// A kind of event.
#[derive(Serialize, Object)]
struct KindView {
    /// Its name
    r#type: String,
    /// What it means
    description: String,
}

/// All kinds of events.
#[derive(Serialize, Object)]
struct KindList {
    /// In no order that matters
    items: Vec<KindView>,
}

/// Who is told of what.
#[derive(Clone)]
pub struct WebhookApi {
    webhooks: Webhooks,
    outgoing: Outgoing,
}

impl WebhookApi {
    /// With the handles that it works on.
    pub fn new(webhooks: Webhooks, outgoing: Outgoing) -> Self {
        Self { webhooks, outgoing }
    }
}

fn allowed(access: &Access) -> Result<(), Problem> {
    Ok(access.0.require(Role::Admin, Scope::Webhooks)?)
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Webhooks")]
impl WebhookApi {
    /// List kinds of events
    #[oai(
        path = "/webhook-event-types",
        method = "get",
        operation_id = "list_webhook_event_types"
    )]
    async fn kinds(&self, access: Access) -> Result<Body<KindList>, Failure<{ fails::SECURED }>> {
        allowed(&access)?;
        Ok(Body(KindList {
            items: self
                .webhooks
                .catalogue()
                .kinds()
                .iter()
                .map(|kind| KindView {
                    r#type: kind.name.to_owned(),
                    description: kind.about.to_owned(),
                })
                .collect(),
        }))
    }

    /// Make an endpoint
    ///
    /// From now on it is told of the events that it wants, signed as Standard Webhooks says. An endpoint
    /// that answers 410, or has not answered 2xx for days, is disabled; what happens then is not kept for
    /// it. The secret is in this answer and never again. For admins.
    #[oai(path = "/webhooks", method = "post", operation_id = "create_webhook")]
    async fn create(
        &self,
        access: Access,
        body: Body<EndpointBody>,
    ) -> Result<Created<EndpointWithSecret>, Failure<{ fails::SECURED | fails::CONFLICT }>> {
        allowed(&access)?;
        let new = NewEndpoint {
            url: body.0.url,
            description: body.0.description,
            events: body.0.events,
            secret: body.0.secret,
        };
        let (now, outgoing) = (self.webhooks.now(), self.outgoing.clone());
        let catalogue = self.webhooks.catalogue().clone();
        let rules = self.webhooks.rules().clone();
        let (endpoint, secret) = self
            .webhooks
            .change(move |tx| super::create(tx, now, &rules, &catalogue, &outgoing, &new))
            .await
            .map_err(Problem::from)?;
        let location = format!("/api/v1/webhooks/{}", endpoint.id);
        let made = EndpointWithSecret {
            endpoint: endpoint.into(),
            secret,
        };
        Ok(Created::new(made, location))
    }

    /// List endpoints
    #[oai(path = "/webhooks", method = "get", operation_id = "list_webhooks")]
    async fn list(
        &self,
        access: Access,
    ) -> Result<Body<EndpointList>, Failure<{ fails::SECURED }>> {
        allowed(&access)?;
        let endpoints = self
            .webhooks
            .store()
            .read(super::list)
            .await
            .map_err(Problem::from)?;
        Ok(Body(EndpointList {
            items: endpoints.into_iter().map(EndpointView::from).collect(),
        }))
    }

    /// Read an endpoint
    #[oai(path = "/webhooks/:id", method = "get", operation_id = "get_webhook")]
    async fn get(
        &self,
        access: Access,
        /// Key of the endpoint
        id: Path<i64>,
    ) -> Result<Body<EndpointView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        allowed(&access)?;
        let endpoint = self
            .webhooks
            .store()
            .point(move |tx| super::get(tx, EndpointId(id.0)))
            .await
            .map_err(Problem::from)?;
        Ok(Body(endpoint.into()))
    }

    /// Change an endpoint
    ///
    /// While it is disabled it is told nothing, and what happens meanwhile is not kept for it, as is
    /// customary: once it is enabled again, read what it missed from the shop (`GET orders`), or replay
    /// events that another endpoint wanted and that are therefore there. Enabling it forgets its failures.
    #[oai(
        path = "/webhooks/:id",
        method = "patch",
        operation_id = "update_webhook"
    )]
    async fn update(
        &self,
        access: Access,
        /// Key of the endpoint
        id: Path<i64>,
        body: Body<EndpointChange>,
    ) -> Result<Body<EndpointView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        allowed(&access)?;
        let status = body
            .0
            .status
            .map(|word| {
                EndpointStatus::from_word(&word).ok_or_else(|| {
                    let reason = format!("must be one of {}", EndpointStatus::WORDS.join(", "));
                    vec![FieldError::new("status", reason)]
                })
            })
            .transpose()?;
        let patch = EndpointPatch {
            url: body.0.url,
            description: body.0.description,
            events: body.0.events,
            status,
        };
        let (now, outgoing) = (self.webhooks.now(), self.outgoing.clone());
        let catalogue = self.webhooks.catalogue().clone();
        let endpoint = self
            .webhooks
            .change(move |tx| {
                super::update(tx, now, &catalogue, &outgoing, EndpointId(id.0), &patch)
            })
            .await
            .map_err(Problem::from)?;
        Ok(Body(endpoint.into()))
    }

    /// Remove an endpoint
    #[oai(
        path = "/webhooks/:id",
        method = "delete",
        operation_id = "delete_webhook"
    )]
    async fn delete(
        &self,
        access: Access,
        /// Key of the endpoint
        id: Path<i64>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        allowed(&access)?;
        self.webhooks
            .change(move |tx| super::remove(tx, EndpointId(id.0)))
            .await
            .map_err(Problem::from)?;
        Ok(NoContent)
    }

    /// Rotate an endpoint's secret
    ///
    /// For a time both the new and the old one sign, so that the receiver can change over.
    #[oai(
        path = "/webhooks/:id/rotate",
        method = "post",
        operation_id = "rotate_webhook_secret"
    )]
    async fn rotate(
        &self,
        access: Access,
        /// Key of the endpoint
        id: Path<i64>,
        body: OptionalBody<RotateBody>,
    ) -> Result<Body<EndpointWithSecret>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        allowed(&access)?;
        let usual = self.webhooks.rules().secret_overlap_seconds;
        let usual = i64::try_from(usual).unwrap_or(OVERLAP_SECONDS_MAX);
        let overlap = body
            .0
            .overlap_seconds
            .unwrap_or(usual.min(OVERLAP_SECONDS_MAX));
        let mut checks = Checks::new();
        checks.range("overlap_seconds", overlap, 0, OVERLAP_SECONDS_MAX);
        checks.finish()?;
        let now = self.webhooks.now();
        let (endpoint, secret) = self
            .webhooks
            .change(move |tx| super::rotate(tx, now, EndpointId(id.0), overlap))
            .await
            .map_err(Problem::from)?;
        Ok(Body(EndpointWithSecret {
            endpoint: endpoint.into(),
            secret,
        }))
    }

    /// Ping an endpoint
    ///
    /// Sends it an event of type `ping`, once, also while it is disabled. What came of it is in its
    /// deliveries.
    #[oai(
        path = "/webhooks/:id/ping",
        method = "post",
        operation_id = "ping_webhook"
    )]
    async fn ping(
        &self,
        access: Access,
        /// Key of the endpoint
        id: Path<i64>,
    ) -> Result<Accepted<Sending>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        allowed(&access)?;
        let now = self.webhooks.now();
        let (event, task) = self
            .webhooks
            .store()
            .write(move |tx| super::ping(tx, now, EndpointId(id.0)))
            .await
            .map_err(Problem::from)?;
        let sending = Sending {
            event_id: event.id,
            task_id: task.to_string(),
        };
        Ok(sending.accepted()?)
    }

    /// Replay an event
    ///
    /// Sends it once more under the same `webhook-id`, also to an endpoint that is disabled.
    #[oai(
        path = "/webhooks/:id/replay",
        method = "post",
        operation_id = "replay_webhook_event"
    )]
    async fn replay(
        &self,
        access: Access,
        /// Key of the endpoint
        id: Path<i64>,
        body: Body<ReplayBody>,
    ) -> Result<Accepted<Sending>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        allowed(&access)?;
        let (now, event_id) = (self.webhooks.now(), body.0.event_id);
        let event = event_id.clone();
        let task = self
            .webhooks
            .store()
            .write(move |tx| super::replay(tx, now, EndpointId(id.0), &event))
            .await
            .map_err(Problem::from)?;
        let sending = Sending {
            event_id,
            task_id: task.to_string(),
        };
        Ok(sending.accepted()?)
    }

    /// List attempts to deliver
    #[oai(
        path = "/webhooks/:id/deliveries",
        method = "get",
        operation_id = "list_webhook_deliveries"
    )]
    async fn deliveries(
        &self,
        access: Access,
        /// Key of the endpoint
        id: Path<i64>,
        /// Only those that failed
        #[oai(default)]
        failed: Query<bool>,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<i64>,
    ) -> Result<Body<DeliveryPage>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        allowed(&access)?;
        let (before, rows) = (read_cursor(cursor.0.as_deref())?, limit.0);
        let deliveries = self
            .webhooks
            .store()
            .read(move |tx| super::deliveries(tx, EndpointId(id.0), failed.0, before, rows))
            .await
            .map_err(Problem::from)?;
        let next_cursor = (deliveries.len() as i64 == rows)
            .then(|| deliveries.last().map(|delivery| delivery.id.to_string()))
            .flatten();
        Ok(Body(DeliveryPage {
            items: deliveries.into_iter().map(DeliveryView::from).collect(),
            next_cursor,
        }))
    }

    /// Read an event
    #[oai(
        path = "/webhook-events/:id",
        method = "get",
        operation_id = "get_webhook_event"
    )]
    async fn event(
        &self,
        access: Access,
        /// Key of the event
        id: Path<String>,
    ) -> Result<Body<EventView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        allowed(&access)?;
        let event = self
            .webhooks
            .store()
            .point(move |tx| super::event(tx, &id.0))
            .await
            .map_err(Problem::from)?;
        Ok(Body(event.into()))
    }
}

fn default_limit() -> i64 {
    50
}
