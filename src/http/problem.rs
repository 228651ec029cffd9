//! Failures as a client sees them: RFC 9457 problem documents.
//!
//! Owns the shape of every error answer and which of them an operation may give. Invariants: a
//! `code` is stable and meant for programs, `detail` for people; the cause of an internal failure
//! never leaves the process, the edge logs it once beside the request id; an operation answers only
//! with statuses that its [`Failure`] declares, because the specification is made from that type.

use std::fmt;

use poem::Response;
use poem::error::ResponseError;
use poem::http::StatusCode;
use poem::http::header::{self, HeaderName, HeaderValue};
use poem_openapi::ApiResponse;
use poem_openapi::registry::{
    MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::HEADERS_USUAL;
use crate::check::FieldError;

/// Media type of every error answer.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A failure with its status, stable code and text; what [`crate::http::edge`] turns into an answer.
#[derive(Debug)]
pub struct Problem(Box<ProblemParts>);

#[derive(Debug)]
struct ProblemParts {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    retry_after_seconds: Option<u64>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<String>,
}

impl Problem {
    /// A failure that the caller may read about: `detail` goes out as it is.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self(Box::new(ProblemParts {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after_seconds: None,
            headers: Vec::new(),
            cause: None,
        }))
    }

    /// 500: a failure that is ours. `cause` is logged with the request id and never sent.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "Something failed on our side. It has been logged under this request id.",
        )
        .cause(cause)
    }

    /// 422 `validation_failed`, with every field that does not hold.
    pub fn validation(errors: Vec<FieldError>) -> Self {
        let mut problem = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "validation_failed",
            "Some fields do not hold; see `errors`.",
        );
        problem.0.errors = errors;
        problem
    }

    /// 401 `unauthorized`, with the challenge that RFC 9110 asks for.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// 403 `forbidden`.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 404 with the code that names what is missing, such as `product_not_found`.
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 409 with the code of the conflict, such as `sold_out`.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 503 `overloaded`: nothing was done, and the same request may be sent again.
    pub fn overloaded(retry_after_seconds: u64) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "Too much is waiting already. Nothing was done; try again.",
        )
        .retry_after(retry_after_seconds)
    }

    /// Adds a field and its fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>, reason: impl Into<String>) -> Self {
        self.0.errors.push(FieldError::new(field, reason));
        self
    }

    /// Adds `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_seconds = Some(seconds);
        self
    }

    /// Adds a header to the answer, such as `RateLimit`.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Adds what is to be logged beside the request id, and only there.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// What the caller may read about it.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Fields that do not hold.
    pub fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }

    /// What went wrong inside; for the log.
    pub fn internal_cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }

    /// The answer, naming the request that failed.
    pub fn render(&self, request_id: &str) -> Response {
        let parts = &*self.0;
        let body = serde_json::to_vec(&Document { parts, request_id }).unwrap_or_default();
        let mut response = Response::builder().status(parts.status).body(body);
        let headers = response.headers_mut();
        headers.reserve(HEADERS_USUAL);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = parts.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in &parts.headers {
            headers.append(name, value.clone());
        }
        response
    }
}

/// Order and names of the members are part of the contract.
struct Document<'a> {
    parts: &'a ProblemParts,
    request_id: &'a str,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let parts = self.parts;
        let mut map = serializer.serialize_map(None)?;
        // `about:blank` says that the title is the status's own phrase; `code` tells problems apart.
        map.serialize_entry("type", "about:blank")?;
        map.serialize_entry("title", title(parts.status))?;
        map.serialize_entry("status", &parts.status.as_u16())?;
        map.serialize_entry("detail", &parts.detail)?;
        map.serialize_entry("code", parts.code)?;
        map.serialize_entry("request_id", self.request_id)?;
        if !parts.errors.is_empty() {
            map.serialize_entry("errors", &parts.errors)?;
        }
        map.end()
    }
}

/// The status's own phrase, as RFC 9457 asks for with `about:blank`.
pub(super) fn title(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.0.status.as_u16(),
            self.0.code,
            self.0.detail
        )
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status(&self) -> StatusCode {
        self.0.status
    }

    fn as_response(&self) -> Response {
        self.render("")
    }
}

/// Statuses that an operation's [`Failure`] may hold; combine with `|`.
pub mod fails {
    /// Nothing beside what the edge itself may answer.
    pub const NOTHING: u64 = 0;
    /// 401: no valid credentials.
    pub const UNAUTHORIZED: u64 = 1 << 1;
    /// 403: valid credentials, not enough rights.
    pub const FORBIDDEN: u64 = 1 << 2;
    /// 404: what the path names does not exist, or is not the caller's.
    pub const NOT_FOUND: u64 = 1 << 3;
    /// 409: the state does not allow it.
    pub const CONFLICT: u64 = 1 << 5;
    /// 410: it was there and will not come back.
    pub const GONE: u64 = 1 << 6;
    /// 412: a precondition of the request does not hold.
    pub const PRECONDITION_FAILED: u64 = 1 << 7;
    /// 429: too many requests or attempts.
    pub const RATE_LIMITED: u64 = 1 << 11;
    /// What any operation behind a login may answer.
    pub const SECURED: u64 = UNAUTHORIZED | FORBIDDEN;

    /// 400: the request can't be understood.
    pub(super) const BAD_REQUEST: u64 = 1 << 0;
    /// 408: the body came too slowly.
    pub(super) const REQUEST_TIMEOUT: u64 = 1 << 4;
    /// 413: the body is too large.
    pub(super) const PAYLOAD_TOO_LARGE: u64 = 1 << 8;
    /// 415: the body is of another media type.
    pub(super) const UNSUPPORTED_MEDIA_TYPE: u64 = 1 << 9;
    /// 422: understood, but a field does not hold.
    pub(super) const UNPROCESSABLE: u64 = 1 << 10;
    /// 500: a failure on our side.
    pub(super) const INTERNAL: u64 = 1 << 12;
    /// 503: too much to do, or it took too long.
    pub(super) const UNAVAILABLE: u64 = 1 << 13;
    /// What the edge may answer to any operation, whatever it declares.
    pub const COMMON: u64 = BAD_REQUEST
        | REQUEST_TIMEOUT
        | PAYLOAD_TOO_LARGE
        | UNSUPPORTED_MEDIA_TYPE
        | UNPROCESSABLE
        | RATE_LIMITED
        | INTERNAL
        | UNAVAILABLE;
}

/// Each bit with its status, and what the specification says about it.
const CATALOGUE: &[(u64, u16, &str)] = &[
    (
        fails::BAD_REQUEST,
        400,
        "The request can't be understood: a parameter, header or the JSON is malformed.",
    ),
    (
        fails::UNAUTHORIZED,
        401,
        "No credentials, or none that are valid.",
    ),
    (
        fails::FORBIDDEN,
        403,
        "The credentials are valid but don't allow this.",
    ),
    (
        fails::NOT_FOUND,
        404,
        "What the request names doesn't exist, or isn't the caller's.",
    ),
    (fails::REQUEST_TIMEOUT, 408, "The body came too slowly."),
    (
        fails::CONFLICT,
        409,
        "The current state doesn't allow this; `code` says why.",
    ),
    (fails::GONE, 410, "It existed and won't come back."),
    (
        fails::PRECONDITION_FAILED,
        412,
        "A precondition of the request doesn't hold.",
    ),
    (
        fails::PAYLOAD_TOO_LARGE,
        413,
        "The body is larger than the server accepts.",
    ),
    (
        fails::UNSUPPORTED_MEDIA_TYPE,
        415,
        "The body is of a media type that this operation doesn't read, or coded in another way than gzip.",
    ),
    (
        fails::UNPROCESSABLE,
        422,
        "The request is well formed, but fields don't hold; see `errors`.",
    ),
    (
        fails::RATE_LIMITED,
        429,
        "Too many requests or attempts; `Retry-After` says when to come back.",
    ),
    (
        fails::INTERNAL,
        500,
        "A failure on the server's side, logged under the request id.",
    ),
    (
        fails::UNAVAILABLE,
        503,
        "The server has too much to do or took too long; `Retry-After` says when to come back.",
    ),
];

/// The failure type of an operation: a [`Problem`] whose status is in `SET` or in
/// [`fails::COMMON`]. `Result<Body<T>, Failure<{ fails::NOT_FOUND }>>` puts exactly those statuses
/// into the specification.
#[derive(Debug)]
pub struct Failure<const SET: u64>(pub Problem);

impl<const SET: u64> From<Problem> for Failure<SET> {
    fn from(problem: Problem) -> Self {
        let declared = CATALOGUE.iter().any(|(bit, status, _)| {
            *status == problem.status().as_u16() && (SET | fails::COMMON) & bit != 0
        });
        if !declared {
            tracing::error!(
                status = problem.status().as_u16(),
                code = problem.code(),
                "an operation fails with a status that it does not declare"
            );
        }
        debug_assert!(declared, "undeclared failure: {problem}");
        Self(problem)
    }
}

impl<const SET: u64> From<Vec<FieldError>> for Failure<SET> {
    fn from(errors: Vec<FieldError>) -> Self {
        Self(Problem::validation(errors))
    }
}

impl<const SET: u64> From<Failure<SET>> for poem::Error {
    fn from(failure: Failure<SET>) -> Self {
        failure.0.into()
    }
}

impl<const SET: u64> ApiResponse for Failure<SET> {
    fn meta() -> MetaResponses {
        let responses = CATALOGUE
            .iter()
            .filter(|(bit, _, _)| (SET | fails::COMMON) & bit != 0)
            .map(|(_, status, description)| MetaResponse {
                description,
                status: Some(*status),
                status_range: None,
                content: vec![MetaMediaType {
                    content_type: PROBLEM_JSON,
                    schema: MetaSchemaRef::Reference(SCHEMA_NAME.to_owned()),
                }],
                headers: failure_headers(*status),
            })
            .collect();
        MetaResponses { responses }
    }

    fn register(registry: &mut Registry) {
        registry.create_schema::<Problem, _>(SCHEMA_NAME.to_owned(), |_| problem_schema());
    }
}

const SCHEMA_NAME: &str = "Problem";

fn failure_headers(status: u16) -> Vec<MetaHeader> {
    match status {
        401 => vec![meta_header(
            "WWW-Authenticate",
            "How to authenticate.",
            MetaSchema::new("string"),
        )],
        415 => vec![meta_header(
            "Accept-Encoding",
            "The codings that are read, where the body's is none of them.",
            MetaSchema::new("string"),
        )],
        429 | 503 => vec![meta_header(
            "Retry-After",
            "Seconds to wait.",
            MetaSchema::new("integer"),
        )],
        _ => Vec::new(),
    }
}

/// An optional response header for the specification.
pub(super) fn meta_header(name: &str, description: &str, schema: MetaSchema) -> MetaHeader {
    MetaHeader {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        required: false,
        deprecated: false,
        schema: MetaSchemaRef::Inline(Box::new(schema)),
    }
}

fn problem_schema() -> MetaSchema {
    fn described(ty: &'static str, description: &'static str) -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            description: Some(description),
            ..MetaSchema::new(ty)
        }))
    }
    let fault = MetaSchema {
        required: vec!["field", "reason"],
        properties: vec![
            (
                "field",
                described(
                    "string",
                    "Where: `items[0].quantity`; empty for the whole body.",
                ),
            ),
            ("reason", described("string", "What is wrong.")),
        ],
        ..MetaSchema::new("object")
    };
    MetaSchema {
        title: Some(SCHEMA_NAME.to_owned()),
        description: Some("A failure (RFC 9457). Programs tell failures apart by `code`."),
        required: vec!["type", "title", "status", "detail", "code", "request_id"],
        properties: vec![
            ("type", described("string", "Always `about:blank`.")),
            ("title", described("string", "The phrase of the status.")),
            ("status", described("integer", "The HTTP status.")),
            ("detail", described("string", "What happened, for people.")),
            (
                "code",
                described("string", "What happened, for programs; stable."),
            ),
            (
                "request_id",
                described("string", "Names this request in the server's log."),
            ),
            (
                "errors",
                MetaSchemaRef::Inline(Box::new(MetaSchema {
                    description: Some("Fields that don't hold."),
                    items: Some(Box::new(MetaSchemaRef::Inline(Box::new(fault)))),
                    ..MetaSchema::new("array")
                })),
            ),
        ],
        ..MetaSchema::new("object")
    }
}

/// An example of a problem document with `status`, for the specification.
pub(super) fn example(status: u16) -> serde_json::Value {
    let (code, detail) = match status {
        400 => (
            "malformed_json",
            "The body is no valid JSON: expected `,` or `}` at line 1 column 17.",
        ),
        401 => ("unauthorized", "This needs a valid bearer token."),
        403 => ("forbidden", "Only staff may do this."),
        404 => ("product_not_found", "There is no product 42."),
        408 => ("body_timeout", "The body came too slowly."),
        409 => ("sold_out", "Every unit has been sold."),
        410 => ("gone", "It is no longer here."),
        412 => ("precondition_failed", "It has changed since it was read."),
        413 => ("body_too_large", "The body is larger than 1048576 bytes."),
        415 => (
            "unsupported_media_type",
            "Send the body as application/json.",
        ),
        422 => (
            "validation_failed",
            "Some fields do not hold; see `errors`.",
        ),
        429 => ("rate_limited", "Too many attempts."),
        503 => (
            "overloaded",
            "Too much is waiting already. Nothing was done; try again.",
        ),
        _ => (
            "internal_error",
            "Something failed on our side. It has been logged under this request id.",
        ),
    };
    let phrase = StatusCode::from_u16(status).map_or("Error", title);
    let mut document = serde_json::json!({
        "type": "about:blank",
        "title": phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": "01993a1e-7c1b-7d3a-9b1e-0f4a2f6f9c11",
    });
    if status == 422 {
        document["errors"] = serde_json::json!([{
            "field": "items[0].quantity",
            "reason": "must be between 1 and 1000",
        }]);
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn json(response: Response) -> serde_json::Value {
        let bytes = response.into_body().into_bytes().await.expect("body");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[tokio::test]
    async fn a_problem_has_the_members_of_the_contract() {
        let response = Problem::validation(vec![FieldError::new("name", "is missing")])
            .retry_after(3)
            .render("r-1");
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(response.content_type(), Some(PROBLEM_JSON));
        assert_eq!(response.header("retry-after"), Some("3"));
        assert_eq!(
            json(response).await,
            serde_json::json!({
                "type": "about:blank",
                "title": "Unprocessable Entity",
                "status": 422,
                "detail": "Some fields do not hold; see `errors`.",
                "code": "validation_failed",
                "request_id": "r-1",
                "errors": [{"field": "name", "reason": "is missing"}],
            })
        );
    }

    #[tokio::test]
    async fn the_cause_of_an_internal_failure_stays_inside() {
        let problem = Problem::internal("password=hunter2");
        assert_eq!(problem.internal_cause(), Some("password=hunter2"));
        let document = json(problem.render("r-1")).await;
        assert!(!document.to_string().contains("hunter2"));
        assert_eq!(document.get("errors"), None);
    }

    #[test]
    fn an_operation_lists_its_own_statuses_and_the_common_ones_once() {
        let statuses: Vec<u16> = Failure::<{ fails::NOT_FOUND | fails::CONFLICT }>::meta()
            .responses
            .iter()
            .filter_map(|response| response.status)
            .collect();
        assert_eq!(statuses, [400, 404, 408, 409, 413, 415, 422, 429, 500, 503]);
    }

    #[test]
    #[should_panic(expected = "undeclared failure")]
    fn an_undeclared_status_is_noticed() {
        let _failure = Failure::<{ fails::NOTHING }>::from(Problem::conflict("sold_out", "gone"));
    }
}
