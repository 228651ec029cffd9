//! The one wrapper around the whole application.
//!
//! What each request gets: an id, a client address, a body limit, a time limit, containment of
//! panics. What each answer gets: the id, security headers, a cache policy, a metric by route
//! template; and each failure becomes a [`Problem`]. Invariants: [`Edge::call`] never returns `Err`;
//! a request is counted exactly once; a 5xx is logged exactly once, with its cause; nothing of a
//! cause is sent.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use poem::error::{MethodNotAllowedError, NotFoundError, ReadBodyError};
use poem::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use poem::http::uri::Scheme;
use poem::http::{Method, StatusCode, Uri, Version};
use poem::{Addr, Endpoint, PathPattern, Request, Response};
use poem_openapi::error::{
    AuthorizationError, ContentTypeError, ParseParamError, ParsePathError, ParseRequestPayloadError,
};
use tracing::Instrument;

use super::answer::{self, AnswerRoom, AnswerTerms, COUNTED_BYTES_MIN};
use super::body::{
    self, BodyFault, GuardedBody, HeldBodyBytes, Moved, body_length, declared_length,
};
use super::connections::RequestTurn;
use super::docs::RouteTable;
use super::pace::ClientPace;
use super::problem::{Problem, title};
use super::request::{self, Info, Peer, RequestId, RequestInfo, TraceParent};
use super::shares::{Resource, Shares};
use super::tarpit::{HeldBack, Tarpit};
use crate::clock::{Clock, Stopwatch};
use crate::config::{self, ms};
use crate::monitor::statements::called_by;
use crate::monitor::{Metrics, RouteMetrics};

/// Seconds after which a request that ran into the time limit may come again.
const TIMEOUT_RETRY_SECONDS: u64 = 1;
/// What inflating a body takes besides what comes of it.
const INFLATER_BYTES: u64 = 32 * 1_024;
/// How long a browser may remember the answer to a preflight.
const PREFLIGHT_SECONDS: &str = "600";
/// The label and template of a request that no route matched.
const NO_ROUTE: &str = "none";

/// Below this path, every query parameter must be one that the operation knows.
const STRICT: &str = "/api/v1/";

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_RESPONSE_TIME: HeaderName = HeaderName::from_static("x-response-time");
pub(super) const CORP: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

const API_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
const ALLOWED_HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Encoding, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-ID, X-User-Id, traceparent",
);
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "ETag, Idempotent-Replayed, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-ID, X-Response-Time",
);
const DEFAULT_ALLOW: &str = "GET, HEAD, OPTIONS";

/// Mark of a request that came with both `Content-Length` and `Transfer-Encoding`: two readings of
/// where it ends are how one request is smuggled inside another (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug)]
pub(super) struct AmbiguousLength;

/// Mark of a request that is refused for its head alone, before anything looks at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusedHead(pub(super) StatusCode);

impl RefusedHead {
    fn problem(self, server: &config::Server) -> Problem {
        let bytes_max = server.header_bytes_max;
        let (code, detail) = match self.0 {
            StatusCode::URI_TOO_LONG => (
                "uri_too_long",
                format!("The URI is longer than {bytes_max} bytes."),
            ),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
                "headers_too_large",
                format!(
                    "The headers are larger than {bytes_max} bytes, or more than {}.",
                    server.headers_max
                ),
            ),
            _ => (
                "malformed_request",
                "The request is no valid HTTP.".to_owned(),
            ),
        };
        Problem::new(self.0, code, detail)
    }
}

/// What the edge needs to know.
#[derive(Clone)]
pub struct EdgeOptions {
    /// Limits, proxies, origins.
    pub server: Arc<config::Server>,
    /// Whether each request gets a log line.
    pub log_requests: bool,
    /// Where requests are counted.
    pub metrics: Metrics,
    /// Where the time of new request ids comes from.
    pub clock: Clock,
    /// Templates and methods of the API's routes.
    pub routes: RouteTable,
    /// What kind of body each path takes.
    pub bodies: fn(&str) -> BodyKind,
    /// What all requests may hold together.
    pub shares: Shares,
}

/// How large a body may be, and how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// As the settings allow for most.
    Usual,
    /// Of an operation that needs no credentials: small.
    Open,
    /// As large as an import's. It is read piece by piece, for as long as it keeps moving.
    Import,
}

/// An application behind the edge.
pub struct Edge<E> {
    app: E,
    options: EdgeOptions,
    origins: Vec<HeaderValue>,
    unmatched: Arc<RouteMetrics>,
    /// The metrics of each known route, once it was asked for.
    counted: Vec<OnceLock<Arc<RouteMetrics>>>,
    tarpit: Tarpit,
}

impl<E: Endpoint<Output = Response>> Edge<E> {
    /// Puts `app` behind the edge.
    pub fn new(app: E, options: EdgeOptions) -> Self {
        let origins = options
            .server
            .cors_origins
            .iter()
            .filter_map(|origin| HeaderValue::from_str(origin.trim_end_matches('/')).ok())
            .collect();
        let unmatched = options.metrics.route(NO_ROUTE, || NO_ROUTE.to_owned());
        let counted = (0..options.routes.len()).map(|_| OnceLock::new()).collect();
        let tarpit = Tarpit::new(options.server.refusals_per_second, &options.metrics);
        Self {
            tarpit,
            counted,
            app,
            options,
            origins,
            unmatched,
        }
    }

    fn info(&self, request: &Request) -> RequestInfo {
        let peer = match request.remote_addr().0 {
            Addr::SocketAddr(address) => Peer::Tcp(address),
            Addr::Unix(_) => Peer::Local,
            // Only our own loop knows a local peer; an unknown one has no address to trust.
            Addr::Custom("unix", _) => Peer::Local,
            Addr::Custom(..) => Peer::Tcp(([0, 0, 0, 0], 0).into()),
        };
        let headers = request.headers();
        let trusted = &self.options.server.trusted_proxies;
        RequestInfo(Arc::new(Info {
            id: RequestId::of(headers, self.options.clock.now()),
            client: request::client_address(peer, headers, trusted),
            is_vouched: peer.is_trusted(trusted) && headers.contains_key("x-forwarded-for"),
            secure: request::is_secure(request.scheme() == &Scheme::HTTPS, peer, headers, trusted),
            trace: headers
                .get("traceparent")
                .and_then(|value| TraceParent::parse(value.to_str().ok()?)),
            method: request.method().clone(),
            uri: request.uri().clone(),
        }))
    }

    /// Runs the application under the time limit; a panic becomes a failure of this request only.
    async fn run(
        &self,
        mut request: Request,
        path: &Uri,
        client: IpAddr,
    ) -> Result<Response, poem::Error> {
        let server = &self.options.server;
        if let Some(refused) = request.data::<RefusedHead>() {
            return Err(refused.problem(server).into());
        }
        refuse(&request)?;
        if let Some(query) = path.query().filter(|_| path.path().starts_with(STRICT))
            && let Some(route) = self.options.routes.by_path(path.path())
        {
            route.check_query(request.method().as_str(), query)?;
        }
        let shares = &self.options.shares;
        if request.method() == Method::GET {
            shares
                .unless_short(Resource::AnswerBytes, client, COUNTED_BYTES_MIN)
                .map_err(Problem::from)?;
        }
        let kind = (self.options.bodies)(path.path());
        let bytes_max = match kind {
            BodyKind::Usual => server.body_bytes_max,
            BodyKind::Open => server.open_body_bytes_max.min(server.body_bytes_max),
            BodyKind::Import => server.import_bytes_max,
        } as u64;
        if let Some(length) = declared_length(request.headers()) {
            if length > bytes_max {
                return Err(BodyFault::TooLarge { bytes_max }.problem().into());
            }
            if kind != BodyKind::Import {
                // Reading what can't be held costs as much as reading what can.
                shares
                    .unless_short(Resource::BodyBytes, client, length)
                    .map_err(Problem::from)?;
            }
        }
        let progress = (kind == BodyKind::Import).then(Moved::default);
        // Held until the request is over, for as long as what was made of the body may be.
        let mut held: Option<HeldBodyBytes> = None;
        if let Some(moved) = &progress {
            request.set_data(moved.clone());
        }
        let body = request.take_body();
        if !body.is_empty() {
            let turn = request.data::<Arc<RequestTurn>>().cloned();
            let guarded = |body, share: Option<&HeldBodyBytes>| {
                let pace = ClientPace::new(ms(server.body_timeout_ms), server.bytes_per_second_min);
                GuardedBody::new(body, bytes_max, pace, share.cloned(), progress.clone())
                    .telling(turn.clone())
                    .boxed()
            };
            let is_gzipped = body::is_gzipped(request.headers())?;
            if kind != BodyKind::Import {
                let mut share = shares.nothing(Resource::BodyBytes, client);
                if is_gzipped {
                    share.grow(INFLATER_BYTES).map_err(Problem::from)?;
                }
                held = Some(Arc::new(Mutex::new(share)));
            }
            let share = held.as_ref();
            let mut body = guarded(body.into(), share.filter(|_| !is_gzipped));
            if is_gzipped {
                body = guarded(body::inflated(body), share);
                // What the application reads has neither this coding nor this length.
                request.headers_mut().remove(header::CONTENT_ENCODING);
                request.headers_mut().remove(header::CONTENT_LENGTH);
            }
            request.set_body(poem::Body::from(body));
        }
        // Pinned where it is: handing a future of this size from wrapper to wrapper copies it each time.
        let app = pin!(async {
            if kind == BodyKind::Open {
                // Any stranger may stop sending in the middle of it, and what the application holds
                // meanwhile is larger than the body.
                let body = request.take_body().into_bytes().await?;
                request.set_body(body);
            }
            self.app.call(request).await
        });
        let work = AssertUnwindSafe(app).catch_unwind();
        let done = limited(work, ms(server.request_timeout_ms), progress.as_ref()).await;
        drop(held);
        match done {
            Some(Ok(outcome)) => outcome,
            Some(Err(panic)) => {
                self.options.metrics.http_panics_total.inc();
                Err(Problem::internal(format_args!("panic: {}", panic_text(&*panic))).into())
            }
            None => Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "request_timeout",
                "The request took too long and was given up. Whether it took effect is unknown: \
                 ask, or send it again with the same Idempotency-Key.",
            )
            .retry_after(TIMEOUT_RETRY_SECONDS)
            .into()),
        }
    }

    fn is_allowed_origin(&self, origin: &HeaderValue) -> bool {
        self.origins.contains(origin)
    }

    /// The answer to a preflight of an allowed origin.
    fn preflight(&self, path: &str) -> Response {
        let allow = self
            .options
            .routes
            .by_path(path)
            .map_or(DEFAULT_ALLOW, |route| route.allow.as_str());
        let mut response = Response::builder().status(StatusCode::NO_CONTENT).finish();
        let headers = response.headers_mut();
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_str(allow).unwrap_or(HeaderValue::from_static(DEFAULT_ALLOW)),
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
        headers.insert(
            header::ACCESS_CONTROL_MAX_AGE,
            HeaderValue::from_static(PREFLIGHT_SECONDS),
        );
        response
    }

    /// Turns whatever the application gave into an answer, or into the problem to answer with.
    fn settle(
        &self,
        outcome: Result<Response, poem::Error>,
        method: &Method,
        allow: &str,
        params: &[String],
    ) -> SettledAnswer {
        match outcome {
            Ok(response) => settle_response(response),
            Err(error) if *method == Method::OPTIONS && error.is::<MethodNotAllowedError>() => {
                SettledAnswer::Answer(
                    Response::builder()
                        .status(StatusCode::NO_CONTENT)
                        .header(header::ALLOW, allow)
                        .finish(),
                )
            }
            Err(error) if error.is_from_response() => settle_response(error.into_response()),
            Err(error) => SettledAnswer::Problem(problem_of(error, allow, params)),
        }
    }
}

enum SettledAnswer {
    Answer(Response),
    Problem(Problem),
}

impl<E: Endpoint<Output = Response>> Endpoint for Edge<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let watch = Stopwatch::start();
        let metrics = &self.options.metrics;
        let _active = Active::new(metrics);

        let info = self.info(&request);
        let asked = AskedRequest::of(&request);
        request.extensions_mut().insert(info.clone());
        if asked.method == Method::HEAD {
            // HEAD is GET without the body, wherever there is a GET.
            request.set_method(Method::GET);
        }

        let room = AnswerRoom {
            shares: &self.options.shares,
            client: info.client().0,
        };
        let mut share = None;
        let cors_origin = asked
            .origin
            .as_ref()
            .filter(|origin| self.is_allowed_origin(origin));
        let outcome = if asked.is_preflight && cors_origin.is_some() {
            Ok(self.preflight(asked.uri.path()))
        } else if let Err(refused) = asked.answer().begin(room, &mut share) {
            Err(Problem::from(refused).into())
        } else {
            let span = tracing::debug_span!(
                "request",
                request_id = info.id().as_str(),
                trace_id = info.trace().map(TraceParent::trace_id),
            );
            let run = pin!(self.run(request, &asked.uri, info.client().0));
            called_by(info.caller(), run.instrument(span)).await
        };

        let pattern = match &outcome {
            Ok(response) => response.data::<PathPattern>(),
            Err(error) => error.data::<PathPattern>(),
        };
        let not_found = matches!(&outcome, Err(error) if error.is::<NotFoundError>());
        let known = pattern
            .map(|pattern| &*pattern.0)
            .and_then(|pattern| self.options.routes.by_pattern(pattern));
        // A route that panicked or timed out left no pattern behind; its path still tells it.
        let known = known.or_else(|| {
            (pattern.is_none() && !not_found)
                .then(|| self.options.routes.by_path(asked.uri.path()))?
        });
        let undocumented;
        let route = match (known, pattern) {
            (Some(known), _) => self.counted[known.number]
                .get_or_init(|| metrics.route(&known.template, || known.template.clone())),
            (None, Some(pattern)) if !not_found => {
                undocumented = metrics.route(&pattern.0, || super::docs::template_of(&pattern.0));
                &undocumented
            }
            (None, _) => &self.unmatched,
        };

        let allow = known.map_or(DEFAULT_ALLOW, |route| route.allow.as_str());
        let params = known.map_or(&[][..], |route| route.params.as_slice());
        let (response, problem) = match self.settle(outcome, &asked.method, allow, params) {
            SettledAnswer::Answer(response) => (response, None),
            SettledAnswer::Problem(problem) => refusal(problem, &info),
        };

        let response = not_modified(response, &asked);
        let compress_bytes_min = self.options.server.compress_bytes_min;
        let ready =
            answer::ready(response, &asked.answer(), (room, share), compress_bytes_min).await;
        let (mut response, problem) = match ready {
            Ok(response) => (response, problem),
            Err(refused) => refusal(refused, &info),
        };
        if asked.method == Method::HEAD {
            drop_body(&mut response);
        }
        let elapsed = watch.elapsed();
        dress(response.headers_mut(), &info, elapsed);
        if !self.origins.is_empty() {
            allow_origin(response.headers_mut(), cors_origin);
        }

        metrics.observe(
            route,
            asked.method.as_str(),
            response.status().as_u16(),
            elapsed.as_secs_f64(),
        );
        self.log(&asked, &info, route, &response, problem.as_ref(), elapsed);
        if let Some(wait) = self.tarpit.holds_back(&response, room.client) {
            response.extensions_mut().insert(HeldBack(wait));
        }
        Ok(response)
    }
}

impl<E> Edge<E> {
    fn log(
        &self,
        asked: &AskedRequest,
        info: &RequestInfo,
        route: &RouteMetrics,
        response: &Response,
        problem: Option<&Problem>,
        elapsed: Duration,
    ) {
        let status = response.status();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            // Too much to do is no bug; a bug must stand out beside it.
            tracing::warn!(
                request_id = info.id().as_str(),
                trace_id = info.trace().map(TraceParent::trace_id),
                method = asked.method.as_str(),
                endpoint = route.endpoint(),
                status = status.as_u16(),
                code = problem.map(Problem::code),
                cause = problem.and_then(Problem::internal_cause),
                elapsed_ms = elapsed.as_secs_f64() * 1_000.0,
                "request refused"
            );
        } else if status.is_server_error() {
            tracing::error!(
                request_id = info.id().as_str(),
                trace_id = info.trace().map(TraceParent::trace_id),
                method = asked.method.as_str(),
                endpoint = route.endpoint(),
                path = asked.uri.path(),
                status = status.as_u16(),
                code = problem.map(Problem::code),
                cause = problem.and_then(Problem::internal_cause),
                elapsed_ms = elapsed.as_secs_f64() * 1_000.0,
                "request failed"
            );
        }
        if self.options.log_requests {
            tracing::info!(
                request_id = info.id().as_str(),
                trace_id = info.trace().map(TraceParent::trace_id),
                client = %info.client().0,
                method = asked.method.as_str(),
                path = asked.uri.path(),
                status = status.as_u16(),
                elapsed_ms = elapsed.as_secs_f64() * 1_000.0,
                "request"
            );
        }
    }
}

fn refusal(problem: Problem, info: &RequestInfo) -> (Response, Option<Problem>) {
    (problem.render(info.id().as_str()), Some(problem))
}

/// What must be remembered of the request while the application owns it.
struct AskedRequest {
    method: Method,
    version: Version,
    uri: Uri,
    if_none_match: Option<HeaderValue>,
    accept_encoding: Option<HeaderValue>,
    origin: Option<HeaderValue>,
    is_preflight: bool,
}

impl AskedRequest {
    fn of(request: &Request) -> Self {
        let headers = request.headers();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        Self {
            method: request.method().clone(),
            version: request.version(),
            uri: request.uri().clone(),
            if_none_match: reads
                .then(|| headers.get(header::IF_NONE_MATCH).cloned())
                .flatten(),
            accept_encoding: headers.get(header::ACCEPT_ENCODING).cloned(),
            origin: headers.get(header::ORIGIN).cloned(),
            is_preflight: *request.method() == Method::OPTIONS
                && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD),
        }
    }

    fn answer(&self) -> AnswerTerms<'_> {
        AnswerTerms {
            method: &self.method,
            version: self.version,
            accept_encoding: self.accept_encoding.as_ref(),
        }
    }
}

/// Counts a request as active until it is dropped, however it ends.
struct Active<'a>(&'a Metrics);

impl<'a> Active<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.http_active_requests.inc();
        Self(metrics)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.http_active_requests.dec();
    }
}

/// Requests whose meaning is in doubt are refused before anything looks at them.
fn refuse(request: &Request) -> Result<(), Problem> {
    let bad = |code, detail: &str| Err(Problem::new(StatusCode::BAD_REQUEST, code, detail));
    if request.version() == Version::HTTP_11 {
        let hosts = request.headers().get_all(header::HOST).iter().count();
        if hosts != 1 {
            return bad(
                "missing_host",
                "An HTTP/1.1 request must have exactly one Host header.",
            );
        }
    }
    let headers = request.headers();
    let both = headers.contains_key(header::TRANSFER_ENCODING)
        && headers.contains_key(header::CONTENT_LENGTH);
    if both || request.data::<AmbiguousLength>().is_some() {
        return bad(
            "ambiguous_length",
            "A request must not have both Content-Length and Transfer-Encoding.",
        );
    }
    Ok(())
}

/// `None` when the time is over. An import's time starts anew with each piece of its body, and with
/// each batch of its rows.
async fn limited<T>(
    work: impl Future<Output = T>,
    limit: Duration,
    progress: Option<&Moved>,
) -> Option<T> {
    let Some(progress) = progress else {
        return tokio::time::timeout(limit, work).await.ok();
    };
    tokio::pin!(work);
    let mut seen = progress.count();
    loop {
        if let Ok(done) = tokio::time::timeout(limit, &mut work).await {
            return Some(done);
        }
        let now = progress.count();
        if now == seen {
            return None;
        }
        seen = now;
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "without a message"
    }
}

/// An error answer that is no problem document, and has no other form of its own, becomes one.
fn settle_response(response: Response) -> SettledAnswer {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return SettledAnswer::Answer(response);
    }
    let bare = match response.content_type() {
        None => true,
        Some(content_type) => content_type.starts_with("text/plain"),
    };
    if bare {
        SettledAnswer::Problem(Problem::new(
            status,
            code_of(status),
            format!("{}.", title(status)),
        ))
    } else {
        SettledAnswer::Answer(response)
    }
}

fn code_of(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "bad_request",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        405 => "method_not_allowed",
        406 => "not_acceptable",
        408 => "body_timeout",
        409 => "conflict",
        412 => "precondition_failed",
        413 => "body_too_large",
        415 => "unsupported_media_type",
        416 => "range_not_satisfiable",
        422 => "validation_failed",
        429 => "rate_limited",
        503 => "unavailable",
        500..=599 => "internal_error",
        _ => "refused",
    }
}

/// Every error that poem or its extractors can give, as a problem.
fn problem_of(error: poem::Error, allow: &str, params: &[String]) -> Problem {
    let error = match error.downcast::<Problem>() {
        Ok(problem) => return problem,
        Err(other) => other,
    };
    let bad_parameter = |name: &str, reason: &str| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid_parameter",
            format!("The parameter `{name}` does not fit."),
        )
        .field(name, plain_reason(reason))
    };
    if error.is::<AuthorizationError>() {
        return Problem::unauthorized("This needs a valid bearer token.");
    }
    if let Some(ParseParamError { name, reason }) = error.downcast_ref() {
        return bad_parameter(name, reason);
    }
    if let Some(ParsePathError { name, reason }) = error.downcast_ref() {
        // poem-openapi numbers path parameters: `param0`, `param1`, ….
        let number = name
            .strip_prefix("param")
            .and_then(|digits| digits.parse::<usize>().ok());
        let name = number
            .and_then(|at| params.get(at))
            .map_or(*name, String::as_str);
        return bad_parameter(name, reason);
    }
    if let Some(ParseRequestPayloadError { reason }) = error.downcast_ref() {
        return Problem::new(
            StatusCode::BAD_REQUEST,
            "malformed_body",
            format!("The body can't be read: {reason}."),
        );
    }
    if let Some(error) = error.downcast_ref::<ContentTypeError>() {
        return Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!("{error}."),
        );
    }
    if error.is::<NotFoundError>() {
        return Problem::not_found("no_route", "There is nothing at this path.");
    }
    if error.is::<MethodNotAllowedError>() {
        let problem = Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("This path takes {allow}."),
        );
        return match HeaderValue::from_str(allow) {
            Ok(allow) => problem.header(header::ALLOW, allow),
            Err(_) => problem,
        };
    }
    if let Some(error) = error.downcast_ref::<ReadBodyError>() {
        match error {
            ReadBodyError::Io(error) => return body::read_problem(error),
            ReadBodyError::Utf8(_) => {
                return Problem::new(
                    StatusCode::BAD_REQUEST,
                    "malformed_body",
                    "The body is no valid UTF-8.",
                );
            }
            ReadBodyError::PayloadTooLarge => {
                return Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body_too_large",
                    "The body is too large.",
                );
            }
            ReadBodyError::BodyHasBeenTaken => return Problem::internal(error),
        }
    }
    let status = error.status();
    if status.is_server_error() {
        let problem = Problem::internal(&error);
        return if status == StatusCode::SERVICE_UNAVAILABLE {
            Problem::overloaded(TIMEOUT_RETRY_SECONDS).cause(error)
        } else {
            problem
        };
    }
    Problem::new(status, code_of(status), format!("{error}."))
}

/// poem-openapi names Rust's types in its reasons; clients are told the part after them.
fn plain_reason(reason: &str) -> String {
    let text: String = reason.chars().take(200).collect();
    match text
        .strip_prefix("failed to parse \"")
        .and_then(|rest| rest.split_once("\": "))
    {
        Some((_, told)) => told.to_owned(),
        None => text,
    }
}

/// 304 when the client's copy is the current one (RFC 9110 §13.1.2, weak comparison).
fn not_modified(mut response: Response, asked: &AskedRequest) -> Response {
    let Some(wanted) = &asked.if_none_match else {
        return response;
    };
    let current = response.status() == StatusCode::OK
        && response
            .headers()
            .get(header::ETAG)
            .is_some_and(|tag| matches_etag(wanted, tag));
    if current {
        response.set_status(StatusCode::NOT_MODIFIED);
        response.take_body();
        for name in [
            header::CONTENT_TYPE,
            header::CONTENT_LENGTH,
            header::CONTENT_ENCODING,
        ] {
            response.headers_mut().remove(name);
        }
    }
    response
}

/// Whether the list of `If-None-Match` names `tag`, or is `*`.
pub(super) fn matches_etag(wanted: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(wanted), Ok(tag)) = (wanted.to_str(), tag.to_str()) else {
        return false;
    };
    if wanted.trim() == "*" {
        return true;
    }
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    let tag = opaque(tag);
    let mut rest = wanted.trim_start();
    while !rest.is_empty() {
        let quoted = rest.strip_prefix("W/").unwrap_or(rest);
        // A comma inside the quotes belongs to the tag.
        let Some(end) = quoted.strip_prefix('"').and_then(|inner| inner.find('"')) else {
            return false;
        };
        if quoted[..end + 2] == *tag {
            return true;
        }
        rest = quoted[end + 2..].trim_start_matches([' ', '\t', ',']);
    }
    false
}

fn drop_body(response: &mut Response) {
    if let Some(length) = body_length(response) {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.take_body();
}

/// Headers that every answer has; what the application has set stays.
fn dress(headers: &mut HeaderMap, info: &RequestInfo, elapsed: Duration) {
    headers.insert(X_REQUEST_ID, info.id().header());
    headers.insert(X_RESPONSE_TIME, milliseconds(elapsed));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    headers
        .entry(CORP)
        .or_insert(HeaderValue::from_static("same-origin"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(API_POLICY);
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    if info.is_secure() {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000"),
        );
    }
}

/// `X-Response-Time`: milliseconds with three decimals, `1.234ms`.
fn milliseconds(elapsed: Duration) -> HeaderValue {
    let micros = elapsed.as_micros();
    let text = format!("{}.{:03}ms", micros / 1_000, micros % 1_000);
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0.000ms"))
}

/// Lets an allowed origin's script read the answer; tells caches that others may not.
fn allow_origin(headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        headers.insert(CORP, HeaderValue::from_static("cross-origin"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::http::{Body, Failure, Tagged, fails};
    use poem::endpoint::make;
    use poem::{Route, get};
    use poem_openapi::param::{Path, Query};
    use poem_openapi::{Object, OpenApi, OpenApiService};
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Serialize, Deserialize, Object)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        name: String,
    }

    struct Api;

    #[OpenApi]
    impl Api {
        /// Reads
        #[oai(path = "/things/:thing_id", method = "get")]
        async fn read(
            &self,
            thing_id: Path<i64>,
            limit: Query<Option<u32>>,
        ) -> Result<Tagged<Thing>, Failure<{ fails::NOT_FOUND }>> {
            match thing_id.0 {
                0 => Err(Problem::not_found("thing_not_found", "No such thing.").into()),
                13 => panic!("unlucky"),
                14 => std::future::pending().await,
                15 => Err(Problem::internal("disk on fire").into()),
                size => Ok(Tagged(Thing {
                    name: "x".repeat(
                        usize::try_from(size).unwrap_or_default()
                            + limit.0.unwrap_or_default() as usize,
                    ),
                })),
            }
        }

        /// Writes
        #[oai(path = "/things", method = "post")]
        async fn write(
            &self,
            body: Body<Thing>,
        ) -> Result<Body<Thing>, Failure<{ fails::CONFLICT }>> {
            Ok(body)
        }
    }

    fn edge_with(change: impl FnOnce(&mut config::Server)) -> Edge<Route> {
        let mut server = config::Server {
            request_timeout_ms: 50,
            body_bytes_max: 64,
            import_bytes_max: 128,
            ..config::Server::default()
        };
        change(&mut server);
        let service = OpenApiService::new(Api, "Test", "1");
        let spec = super::super::docs::OpenApiSpec::new(&service.spec()).expect("a document");
        let metrics = Metrics::new().expect("unique names");
        let options = EdgeOptions {
            server: Arc::new(server),
            log_requests: false,
            metrics: metrics.clone(),
            clock: Clock::manual(Timestamp(1_700_000_000_000_000)),
            routes: spec.routes("/api/v1"),
            bodies: |path| match path {
                "/import" => BodyKind::Import,
                _ => BodyKind::Usual,
            },
            shares: Shares::new(&config::Settings::default(), &metrics),
        };
        let import = make(|mut request: Request| async move {
            let bytes = request.take_body().into_bytes().await?;
            Ok::<_, poem::Error>(bytes.len().to_string())
        });
        let plain = make(|_| async {
            Response::builder()
                .status(StatusCode::BAD_GATEWAY)
                .body("secret stack trace")
        });
        let app = Route::new()
            .nest("/api/v1", service)
            .at("/import", poem::post(import))
            .at("/plain", get(plain));
        Edge::new(app, options)
    }

    fn edge() -> Edge<Route> {
        edge_with(|_| {})
    }

    fn request(method: Method, path: &str) -> poem::RequestBuilder {
        Request::builder()
            .method(method)
            .uri_str(path)
            .version(Version::HTTP_11)
            .header("host", "shop.test")
    }

    async fn json(response: Response) -> serde_json::Value {
        let bytes = response.into_body().into_bytes().await.expect("body");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    async fn send(edge: &Edge<Route>, request: Request) -> Response {
        edge.call(request).await.expect("the edge never fails")
    }

    #[tokio::test]
    async fn every_answer_names_its_request_and_is_safe_by_default() {
        let edge = edge();
        for path in ["/api/v1/things/1", "/nowhere", "/api/v1/things/x"] {
            let request = request(Method::GET, path)
                .header("x-request-id", "mine-1")
                .finish();
            let response = send(&edge, request).await;
            assert_eq!(response.header("x-request-id"), Some("mine-1"));
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
            assert!(
                response
                    .header("x-response-time")
                    .is_some_and(|time| time.ends_with("ms"))
            );
            assert!(response.header("content-security-policy").is_some());
            assert!(response.header("cache-control").is_some());
            assert_eq!(response.header("strict-transport-security"), None);
        }
    }

    #[tokio::test]
    async fn failures_of_every_kind_are_problems() {
        let edge = edge();
        let cases = [
            (request(Method::GET, "/nowhere").finish(), 404, "no_route"),
            (
                request(Method::DELETE, "/api/v1/things/1").finish(),
                405,
                "method_not_allowed",
            ),
            (
                request(Method::GET, "/api/v1/things/x").finish(),
                400,
                "invalid_parameter",
            ),
            (
                request(Method::GET, "/api/v1/things/1?limit=-1").finish(),
                400,
                "invalid_parameter",
            ),
            (
                request(Method::GET, "/api/v1/things/0").finish(),
                404,
                "thing_not_found",
            ),
            (
                request(Method::GET, "/api/v1/things/13").finish(),
                500,
                "internal_error",
            ),
            (
                request(Method::GET, "/api/v1/things/14").finish(),
                503,
                "request_timeout",
            ),
            (
                request(Method::GET, "/api/v1/things/15").finish(),
                500,
                "internal_error",
            ),
            (
                request(Method::GET, "/plain").finish(),
                502,
                "internal_error",
            ),
            (
                request(Method::POST, "/api/v1/things").body("{}"),
                415,
                "unsupported_media_type",
            ),
            (
                request(Method::POST, "/api/v1/things")
                    .content_type("text/plain")
                    .body("{}"),
                415,
                "unsupported_media_type",
            ),
            (
                request(Method::POST, "/api/v1/things")
                    .content_type("application/json")
                    .finish(),
                400,
                "body_required",
            ),
            (
                request(Method::POST, "/api/v1/things")
                    .content_type("application/json")
                    .body("{"),
                400,
                "malformed_json",
            ),
            (
                request(Method::POST, "/api/v1/things")
                    .content_type("application/json")
                    .body("{}"),
                422,
                "validation_failed",
            ),
            (
                request(Method::POST, "/api/v1/things")
                    .content_type("application/json")
                    .body("[\"x\"]"),
                422,
                "validation_failed",
            ),
            (
                request(Method::POST, "/api/v1/things")
                    .content_type("application/json")
                    .body("x".repeat(65)),
                413,
                "body_too_large",
            ),
            (
                request(Method::GET, "/api/v1/things/1")
                    .header("content-length", "65")
                    .finish(),
                413,
                "body_too_large",
            ),
            (
                Request::builder()
                    .uri_str("/x")
                    .version(Version::HTTP_11)
                    .finish(),
                400,
                "missing_host",
            ),
            (
                request(Method::POST, "/x")
                    .header("content-length", "1")
                    .header("transfer-encoding", "chunked")
                    .finish(),
                400,
                "ambiguous_length",
            ),
        ];
        for (request, status, code) in cases {
            let label = format!("{} {}", request.method(), request.uri());
            let response = send(&edge, request).await;
            assert_eq!(
                response.content_type(),
                Some("application/problem+json"),
                "{label}"
            );
            let allow = response.header("allow").map(str::to_owned);
            let document = json(response).await;
            assert_eq!(
                (&document["status"], &document["code"]),
                (&status.into(), &code.into()),
                "{label}"
            );
            assert_eq!(allow.is_some(), status == 405, "{label}");
            assert!(!document.to_string().contains("secret"), "{label}");
            assert!(!document.to_string().contains("fire"), "{label}");
        }
        assert_eq!(edge.options.metrics.http_panics_total.get(), 1);
        assert_eq!(edge.options.metrics.http_active_requests.get(), 0);
    }

    #[tokio::test]
    async fn a_parameter_that_does_not_fit_is_named_as_in_the_specification() {
        let edge = edge();
        for (path, field) in [
            ("/api/v1/things/x", "thing_id"),
            ("/api/v1/things/1?limit=x", "limit"),
        ] {
            let document = json(send(&edge, request(Method::GET, path).finish()).await).await;
            assert_eq!(document["errors"][0]["field"], field);
        }
    }

    #[tokio::test]
    async fn requests_are_counted_by_template_whatever_became_of_them() {
        let edge = edge();
        for path in [
            "/api/v1/things/1",
            "/api/v1/things/2",
            "/api/v1/things/13",
            "/api/v1/things/14",
            "/secret/7",
        ] {
            send(&edge, request(Method::GET, path).finish()).await;
        }
        let text = edge.options.metrics.render();
        for line in [
            r#"http_requests_total{endpoint="/api/v1/things/{thing_id}",method="GET",status="200"} 2"#,
            r#"http_requests_total{endpoint="/api/v1/things/{thing_id}",method="GET",status="500"} 1"#,
            r#"http_requests_total{endpoint="/api/v1/things/{thing_id}",method="GET",status="503"} 1"#,
            r#"http_requests_total{endpoint="none",method="GET",status="404"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("secret"));
    }

    #[tokio::test]
    async fn head_options_and_conditional_requests_follow_from_get() {
        let edge = edge();
        let got = send(&edge, request(Method::GET, "/api/v1/things/5").finish()).await;
        let tag = got.header("etag").expect("tag").to_owned();
        let length = got
            .into_body()
            .into_bytes()
            .await
            .expect("body")
            .len()
            .to_string();

        let head = send(&edge, request(Method::HEAD, "/api/v1/things/5").finish()).await;
        assert_eq!(
            (head.status(), head.header("content-length")),
            (StatusCode::OK, Some(length.as_str()))
        );
        assert!(head.into_body().is_empty());

        let options = send(&edge, request(Method::OPTIONS, "/api/v1/things/5").finish()).await;
        assert_eq!(
            (options.status(), options.header("allow")),
            (StatusCode::NO_CONTENT, Some("GET, HEAD, OPTIONS"))
        );

        let again = request(Method::GET, "/api/v1/things/5")
            .header("if-none-match", format!("\"a\", W/{tag}"));
        let again = send(&edge, again.finish()).await;
        assert_eq!(
            (again.status(), again.header("etag")),
            (StatusCode::NOT_MODIFIED, Some(tag.as_str()))
        );
        assert_eq!(again.header("content-type"), None);
    }

    #[tokio::test]
    async fn an_import_has_its_own_limit() {
        let edge = edge();
        let fits = send(
            &edge,
            request(Method::POST, "/import").body("x".repeat(128)),
        )
        .await;
        assert_eq!(fits.into_body().into_string().await.expect("text"), "128");
        let large = send(
            &edge,
            request(Method::POST, "/import").body("x".repeat(129)),
        )
        .await;
        assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn only_a_listed_origin_may_share() {
        let closed = edge();
        let preflight = |origin: &str| {
            request(Method::OPTIONS, "/api/v1/things/1")
                .header("origin", origin)
                .header("access-control-request-method", "GET")
                .finish()
        };
        let answer = send(&closed, preflight("https://shop.test")).await;
        assert_eq!(answer.header("access-control-allow-origin"), None);

        let open = edge_with(|server| server.cors_origins = vec!["https://shop.test".to_owned()]);
        let answer = send(&open, preflight("https://shop.test")).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("https://shop.test")
        );
        assert_eq!(
            answer.header("access-control-allow-methods"),
            Some("GET, HEAD, OPTIONS")
        );
        let answer = send(&open, preflight("https://shop.test.evil.test")).await;
        assert_eq!(answer.header("access-control-allow-origin"), None);
        assert_eq!(answer.header("vary"), Some("Origin"));
    }

    #[tokio::test]
    async fn large_json_is_compressed_when_asked_for() {
        let edge = edge_with(|server| server.compress_bytes_min = 100);
        let ask = |path: &str| {
            request(Method::GET, path)
                .header("accept-encoding", "gzip")
                .finish()
        };
        let large = send(&edge, ask("/api/v1/things/200")).await;
        assert_eq!(large.header("content-encoding"), Some("gzip"));
        assert_eq!(
            send(&edge, ask("/api/v1/things/20"))
                .await
                .header("content-encoding"),
            None
        );
    }

    #[test]
    fn entity_tags_are_compared_weakly_and_as_a_list() {
        let tag = HeaderValue::from_static("\"a,b\"");
        for (wanted, expected) in [
            ("*", true),
            ("\"a,b\"", true),
            ("W/\"a,b\"", true),
            ("\"x\", \"a,b\"", true),
            ("\"x\",W/\"a,b\" , \"y\"", true),
            ("\"a\", \"b\"", false),
            ("a,b", false),
            ("", false),
            ("\"a,b", false),
        ] {
            let wanted = HeaderValue::from_static(wanted);
            assert_eq!(matches_etag(&wanted, &tag), expected, "{wanted:?}");
        }
    }
}
