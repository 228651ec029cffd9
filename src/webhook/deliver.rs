//! `deliver_webhook`: one event to one endpoint, over the published schedule.
//!
//! Invariants: only 2xx is success; a redirect is a failure and is not followed; 410 disables the
//! endpoint, and so does a time without any success; every attempt leaves a row that says what came
//! back. The success of an attempt is noted in the transaction that completes the task.

use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Delivery, DeliveryId, DeliveryOutcome, Endpoint, EndpointId, EndpointStatus, Event, Webhooks,
    sql,
};
use crate::check;
use crate::clock::{Stopwatch, Timestamp};
use crate::config::ms;
use crate::http::outgoing::{Headers, Outgoing, OutgoingCall, OutgoingError, Reply};
use crate::store::StoreError;
use crate::task::{Handler, TaskContext, TaskFailure, TaskOutcome};

/// Seconds to wait after the first failure, the second, and so on; each ± 10 %. With the first
/// attempt these are ten over three days: the schedule that Standard Webhooks recommends.
const WAITS_SECONDS: [u64; 9] = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];

/// See the module.
pub struct DeliverWebhook {
    webhooks: Webhooks,
    outgoing: Outgoing,
}

impl DeliverWebhook {
    /// With what it needs.
    pub fn new(webhooks: Webhooks, outgoing: Outgoing) -> Self {
        Self { webhooks, outgoing }
    }
}

/// Which event, to whom.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeliverWebhookArgs {
    /// Key of the endpoint.
    pub endpoint_id: i64,
    /// Key of the event.
    pub event_id: String,
    /// Whether a person asked for it: then also to an endpoint that is disabled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
}

impl Handler for DeliverWebhook {
    type Args = DeliverWebhookArgs;
    const NAME: &'static str = "deliver_webhook";
    const QUEUE: &'static str = "webhooks";
    const ABOUT: &'static str = "Tells a webhook endpoint of an event.";
    const MAX_ATTEMPTS: u32 = WAITS_SECONDS.len() as u32 + 1;
    const TIMEOUT_MS: i64 = 120_000;

    async fn run(
        &self,
        context: TaskContext,
        args: DeliverWebhookArgs,
    ) -> Result<TaskOutcome, TaskFailure> {
        let id = EndpointId(args.endpoint_id);
        let event_id = args.event_id.clone();
        let (endpoint, event) = context
            .store()
            .point(move |tx| {
                Ok::<_, StoreError>((sql::endpoint(tx, id)?, sql::event(tx, &event_id)?))
            })
            .await?;
        let skipped = |why: &str| Ok(TaskOutcome::Done(Some(json!({"skipped": why}))));
        let Some(endpoint) = endpoint else {
            return skipped("the endpoint was removed");
        };
        let Some(event) = event else {
            return skipped("the event is kept no longer");
        };
        if endpoint.status == EndpointStatus::Disabled && !args.by_hand {
            return skipped("the endpoint is disabled");
        }
        let place = match self.webhooks.place(id) {
            Ok(place) => place,
            Err(wait) => return Ok(TaskOutcome::Snooze(wait)),
        };
        let watch = Stopwatch::start();
        let result = self.call(&context, &endpoint, &event).await;
        drop(place);
        let delivery = self.delivery(&context, &endpoint, &event, &result, watch.elapsed());
        if delivery.outcome == DeliveryOutcome::Delivered {
            return Ok(TaskOutcome::commit(move |tx, _| {
                sql::insert_delivery(tx, &delivery)?;
                sql::note_success(tx, delivery.endpoint_id)?;
                Ok(Some(
                    json!({"status": delivery.status, "duration_ms": delivery.duration_ms}),
                ))
            }));
        }
        let error = delivery.error.clone().unwrap_or_default();
        self.note_failure(delivery).await?;
        let wait = wait(&context, &result);
        let is_gone = matches!(&result, Ok(reply) if reply.status == 410);
        let is_final = is_gone || matches!(&result, Err(error) if error.is_final());
        Err(if is_final {
            TaskFailure::discard(error)
        } else {
            TaskFailure::retry_after(error, wait)
        })
    }
}

/// How long to wait after this failure: what the schedule says, or longer if the endpoint asks for it.
fn wait(context: &TaskContext, result: &Result<Reply, OutgoingError>) -> Duration {
    let started = context.started();
    // Snoozes and retries by hand raise both numbers.
    let extra = started
        .max_attempts
        .saturating_sub(DeliverWebhook::MAX_ATTEMPTS);
    let failures = started.attempt.saturating_sub(extra).max(1) as usize;
    let seconds = WAITS_SECONDS[(failures - 1).min(WAITS_SECONDS.len() - 1)];
    let spread = rand::random_range(900..=1_100);
    let scheduled = Duration::from_millis(seconds * spread);
    let asked = match result {
        Ok(reply) if matches!(reply.status, 429 | 503) => reply.retry_after(context.now()),
        Ok(_) | Err(_) => None,
    };
    scheduled.max(asked.unwrap_or_default())
}

impl DeliverWebhook {
    async fn call(
        &self,
        context: &TaskContext,
        endpoint: &Endpoint,
        event: &Event,
    ) -> Result<Reply, OutgoingError> {
        let target = self.outgoing.check(&endpoint.url)?;
        let now = context.now();
        let seconds = now.0 / 1_000_000;
        let signatures: Vec<String> = endpoint
            .secrets(now)
            .filter_map(|secret| secret.sign(&event.id, seconds, &event.body))
            .collect();
        let mut headers = Headers::read([
            ("content-type", "application/json"),
            ("webhook-id", event.id.as_str()),
            ("webhook-timestamp", seconds.to_string().as_str()),
            ("webhook-signature", signatures.join(" ").as_str()),
        ])?;
        if let Some(trace) = context.traceparent() {
            headers.add("traceparent", trace)?;
        }
        let rules = self.webhooks.rules();
        self.outgoing
            .call(OutgoingCall {
                method: "POST".to_owned(),
                target,
                headers,
                body: Bytes::from(event.body.clone()),
                timeout: ms(rules.timeout_ms),
                body_bytes_max: rules.excerpt_bytes_max,
            })
            .await
    }

    fn delivery(
        &self,
        context: &TaskContext,
        endpoint: &Endpoint,
        event: &Event,
        result: &Result<Reply, OutgoingError>,
        took: Duration,
    ) -> Delivery {
        let (outcome, error) = match result {
            Ok(reply) if reply.is_success() => (DeliveryOutcome::Delivered, None),
            Ok(reply) => {
                let text = reply.text();
                let error = format!("it answered {}: {}", reply.status, check::shortened(&text));
                (DeliveryOutcome::Failed, Some(error))
            }
            Err(error) => (DeliveryOutcome::Failed, Some(error.to_string())),
        };
        Delivery {
            id: DeliveryId(0), // the database hands it out
            endpoint_id: endpoint.id,
            event_id: event.id.clone(),
            kind: event.kind.clone(),
            task_id: context.id(),
            attempt: context.attempt(),
            at: context.now(),
            outcome,
            status: result.as_ref().ok().map(|reply| u32::from(reply.status)),
            duration_ms: i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
            error,
            excerpt: result.as_ref().ok().map(|reply| {
                // A table holds no NUL on every database.
                reply.text().replace('\0', "\u{fffd}")
            }),
        }
    }

    /// Writes the attempt down, and disables the endpoint if that was enough.
    async fn note_failure(&self, delivery: Delivery) -> Result<(), TaskFailure> {
        let limit = self.webhooks.rules().disable_after_seconds;
        let id = delivery.endpoint_id;
        let disabled = self
            .webhooks
            .change(move |tx| {
                sql::insert_delivery(tx, &delivery)?;
                let now = delivery.at;
                let Some(since) = sql::note_failure(tx, now, id)? else {
                    return Ok(None); // it was removed meanwhile
                };
                let reason = if delivery.status == Some(410) {
                    "it answered 410 Gone".to_owned()
                } else if is_over(since, limit, now) {
                    format!("every attempt has failed since {since}")
                } else {
                    return Ok(None);
                };
                Ok(sql::disable(tx, now, id, &reason)?.then_some(reason))
            })
            .await
            .map_err(|error| TaskFailure::retry(error.to_string()))?;
        if let Some(reason) = disabled {
            tracing::warn!(endpoint = id.0, reason, "a webhook endpoint was disabled");
        }
        Ok(())
    }
}

fn is_over(since: Timestamp, limit_seconds: u64, now: Timestamp) -> bool {
    let limit = i64::try_from(limit_seconds).unwrap_or(i64::MAX);
    since.plus_seconds(limit) <= now
}
