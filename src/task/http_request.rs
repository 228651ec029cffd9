//! `http_request`: calls a URL, at its time, until the answer is as expected.
//!
//! Invariants: the call goes through the guard ([`Outgoing`]); it is made at least once, and carries
//! the task's id as `Idempotency-Key`, so that a receiver can tell a repetition; the answer that is
//! kept is bounded, and what is left out is said; a secret among the headers is sent and never shown
//! ([`shown`], [`Secrets`]): neither are those of the answer, nor what the receiver repeats of ours.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Handler, TaskContext, TaskFailure, TaskOutcome};
use crate::check::{self, Checks, FieldError};
use crate::config::{MASK, is_secret_header, mask_headers};
use crate::http::outgoing::{Headers, Outgoing, OutgoingCall, OutgoingError, Reply, Target};

/// Methods that a call may have.
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// Headers of one call.
const HEADERS_MAX: usize = 50;
/// What is kept of the answer's headers.
const KEPT_HEADER_BYTES_MAX: usize = 4_096;
/// Shorter secrets are not looked for in what comes back: they stand in every text.
const SECRET_BYTES_MIN: usize = 4;

/// See the module.
pub struct HttpRequest {
    outgoing: Outgoing,
}

impl HttpRequest {
    /// With the way out.
    pub fn new(outgoing: Outgoing) -> Self {
        Self { outgoing }
    }
}

/// What to call.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpRequestArgs {
    /// `https://` or `http://`, without credentials.
    pub url: String,
    /// `GET` unless said otherwise.
    #[serde(default = "get")]
    pub method: String,
    /// Headers to send. Those that hold secrets by their name (`Authorization`, `Cookie`, `X-Api-Key`,
    /// `…token…`, `…secret…`, `…password…` and the like) are sent as they are and shown as `********`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Text to send.
    #[serde(default)]
    pub body: Option<String>,
    /// Statuses that count as success; any 2xx if there are none.
    #[serde(default)]
    pub expected_status: Vec<u16>,
    /// Longest wait for the whole answer; the settings bound it.
    #[serde(default)]
    pub timeout_seconds: Option<u32>,
}

fn get() -> String {
    "GET".to_owned()
}

impl Handler for HttpRequest {
    type Args = HttpRequestArgs;
    const NAME: &'static str = "http_request";
    const QUEUE: &'static str = "http";
    const ABOUT: &'static str = "Calls a URL; its result is the answer. Redirects are not followed, internal addresses are refused.";
    const TIMEOUT_MS: i64 = 120_000;

    fn check(args: &HttpRequestArgs) -> Result<(), Vec<FieldError>> {
        let mut checks = Checks::new();
        if let Err(error) = Target::parse(&args.url) {
            let reason = error.to_string();
            let reason = reason.strip_prefix("the URL ").unwrap_or(&reason);
            let hint = match error == OutgoingError::Credentials {
                true => "; send the header Authorization instead",
                false => "",
            };
            checks.require(false, "args.url", format!("{reason}{hint}"));
        }
        checks.require(
            METHODS.contains(&args.method.as_str()),
            "args.method",
            format!("must be one of {}", METHODS.join(", ")),
        );
        checks.range("args.headers", args.headers.len(), 0, HEADERS_MAX);
        if let Err(error) = read_headers(args) {
            checks.require(false, "args.headers", error.to_string());
        }
        // What was shown masked is no value: kept, it would be sent.
        checks.require(
            !args
                .headers
                .iter()
                .any(|(name, value)| is_secret_header(name) && value == MASK),
            "args.headers",
            format!("must hold the secrets themselves, not {MASK}"),
        );
        checks.require(
            args.expected_status.len() <= 20
                && args
                    .expected_status
                    .iter()
                    .all(|status| (200..600).contains(status)),
            "args.expected_status",
            "may name 20 statuses from 200 to 599",
        );
        checks.range(
            "args.timeout_seconds",
            args.timeout_seconds.unwrap_or(1),
            1,
            110,
        );
        checks.finish()
    }

    async fn run(
        &self,
        context: TaskContext,
        args: HttpRequestArgs,
    ) -> Result<TaskOutcome, TaskFailure> {
        let secrets = Secrets::of(&args);
        let reply = self.call(&context, &args).await.map_err(|error| {
            let text = secrets.hidden(error.to_string());
            if error.is_final() {
                TaskFailure::discard(text)
            } else {
                TaskFailure::retry(text)
            }
        })?;
        judge(&context, &args, &secrets, &reply)?;
        // The answer is the result: half of one is none.
        if let Some(error) = &reply.unfinished {
            return Err(TaskFailure::retry(secrets.hidden(error.to_string())));
        }
        let most = context.tasks.rules().result_bytes_max;
        Ok(TaskOutcome::Done(Some(kept(&secrets, &reply, most))))
    }
}

impl HttpRequest {
    async fn call(
        &self,
        context: &TaskContext,
        args: &HttpRequestArgs,
    ) -> Result<Reply, OutgoingError> {
        let target = self.outgoing.check(&args.url)?;
        let mut headers = read_headers(args)?;
        if !headers.has("idempotency-key") && args.method != "GET" && args.method != "HEAD" {
            headers.add("idempotency-key", &context.id().to_string())?;
        }
        if let Some(trace) = context
            .traceparent()
            .filter(|_| !headers.has("traceparent"))
        {
            headers.add("traceparent", trace)?;
        }
        let limit = context.time_left();
        let asked = args.timeout_seconds.map(u64::from);
        self.outgoing
            .call(OutgoingCall {
                method: args.method.clone(),
                target,
                headers,
                body: Bytes::from(args.body.clone().unwrap_or_default()),
                timeout: asked.map_or(limit, |seconds| Duration::from_secs(seconds).min(limit)),
                body_bytes_max: usize::MAX,
            })
            .await
    }
}

fn read_headers(args: &HttpRequestArgs) -> Result<Headers, OutgoingError> {
    let pairs = args.headers.iter();
    Headers::read(pairs.map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Whether the answer is as expected; if not, whether another attempt makes sense.
fn judge(
    context: &TaskContext,
    args: &HttpRequestArgs,
    secrets: &Secrets,
    reply: &Reply,
) -> Result<(), TaskFailure> {
    let is_expected = if args.expected_status.is_empty() {
        reply.is_success()
    } else {
        args.expected_status.contains(&reply.status)
    };
    if is_expected {
        return Ok(());
    }
    let text = secrets.hidden(reply.text());
    let error = format!(
        "the answer was {}: {}",
        reply.status,
        check::shortened(&text)
    );
    Err(match reply.status {
        429 | 503 => match reply.retry_after(context.now()) {
            Some(wait) => TaskFailure::retry_after(error, wait),
            None => TaskFailure::retry(error),
        },
        408 | 425 | 500.. => TaskFailure::retry(error),
        // The receiver understood and refuses, or sends us elsewhere.
        _ => TaskFailure::discard(error),
    })
}

/// The arguments or the result of a task as they are shown: of this one, without the secrets among its
/// headers. Text that is no JSON was never stored.
pub fn shown(task: &str, stored: &str) -> Value {
    let mut value = serde_json::from_str(stored).unwrap_or(Value::Null);
    if task == HttpRequest::NAME {
        mask_headers(&mut value);
    }
    value
}

/// What a call sends that nobody else is to see.
struct Secrets(Vec<String>);

impl Secrets {
    fn of(args: &HttpRequestArgs) -> Self {
        let secrets = args
            .headers
            .iter()
            .filter(|(name, _)| is_secret_header(name));
        let mut texts: Vec<String> = secrets
            // Of `Bearer abc`, the second word alone is the secret, and may come back alone.
            .flat_map(|(_, value)| {
                [
                    Some(value.as_str()),
                    value.split_once(' ').map(|(_, own)| own),
                ]
            })
            .flatten()
            .filter(|text| text.len() >= SECRET_BYTES_MIN)
            .map(str::to_owned)
            .collect();
        // The longer first, lest a part of it be replaced before the whole.
        texts.sort_unstable_by_key(|text| std::cmp::Reverse(text.len()));
        Self(texts)
    }

    /// What the other side said, without what we had told it.
    fn hidden(&self, mut text: String) -> String {
        for secret in &self.0 {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), MASK);
            }
        }
        text
    }
}

/// The answer as a result, cut so that it fits.
fn kept(secrets: &Secrets, reply: &Reply, bytes_max: usize) -> Value {
    let mut headers = BTreeMap::new();
    let mut room = KEPT_HEADER_BYTES_MAX.min(bytes_max / 4);
    for (name, value) in reply.headers.pairs() {
        let size = name.len() + value.len();
        if size <= room {
            room -= size;
            headers.insert(name.to_owned(), secrets.hidden(value));
        }
    }
    let (mut body, mut is_cut) = (secrets.hidden(reply.text()), reply.is_cut);
    loop {
        let result = json!({
            "status": reply.status,
            "headers": headers,
            "body": body,
            "body_cut": is_cut,
            "duration_ms": u64::try_from(reply.took.as_millis()).unwrap_or(u64::MAX),
        });
        // Quotes and control characters take more room as JSON than they do in the body.
        if body.is_empty() || result.to_string().len() <= bytes_max {
            return result;
        }
        let mut end = body.len() / 2;
        while !body.is_char_boundary(end) {
            end -= 1;
        }
        body.truncate(end);
        is_cut = true;
    }
}
