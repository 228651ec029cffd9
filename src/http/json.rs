//! Bodies of requests and answers.
//!
//! The schema of a body comes from poem-openapi, its parsing and printing from serde: straight from
//! and to bytes, with the path of the field that does not fit. Invariants: what is no JSON is 400,
//! what is JSON of the wrong shape is 422 and names its field; unknown and duplicate fields are
//! refused wherever the type denies them; a number that would not come back as it was sent is
//! refused as well (`check/numbers.rs`); nothing here reads more than the edge lets through.

use std::marker::PhantomData;

use std::borrow::Cow;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use poem::http::StatusCode;
use poem::http::header::{self, HeaderName, HeaderValue};
use poem::{IntoResponse, Request, RequestBody, Response};
use poem_openapi::registry::{
    MetaMediaType, MetaRequest, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::types::{
    ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToHeader, ToJSON, Type,
};
use poem_openapi::{ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::HEADERS_USUAL;
use super::body::{self, Moved};
use super::problem::{Problem, meta_header};
use crate::check::{self, FieldError, JsonError};
use crate::clock::Timestamp;
use crate::sheet::{Reading, SheetError};
use crate::store::StoreError;

const JSON: &str = "application/json";
/// A JSON body: of a request (`body: Body<NewOrder>`), or of an answer with status 200.
#[derive(Clone, Debug, PartialEq)]
pub struct Body<T>(pub T);

/// A JSON body that may be left out; then it is `T::default()`, and no content type is needed.
#[derive(Clone, Debug, PartialEq)]
pub struct OptionalBody<T>(pub T);

impl<'a, T: Type + DeserializeOwned> ApiExtractor<'a> for Body<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(json_request::<T>(true))
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        require_json(request)?;
        let bytes = body::read(body).await?;
        if is_blank(&bytes) {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "body_required",
                "The request needs a JSON body.",
            )
            .into());
        }
        Ok(Self(parse_shaped(&bytes)?))
    }
}

impl<'a, T: Type + DeserializeOwned + Default> ApiExtractor<'a> for OptionalBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(json_request::<T>(false))
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let bytes = body::read(body).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        require_json(request)?;
        Ok(Self(parse_shaped(&bytes)?))
    }
}

fn json_request<T: Type>(required: bool) -> MetaRequest {
    MetaRequest {
        description: None,
        content: vec![MetaMediaType {
            content_type: JSON,
            schema: T::schema_ref(),
        }],
        required,
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

/// `application/json`, or a type that says it is JSON inside (`application/merge-patch+json`).
fn require_json(request: &Request) -> Result<(), Problem> {
    let essence = media_type(request);
    let is_json = essence.as_deref().is_some_and(|essence| {
        essence == JSON || (essence.starts_with("application/") && essence.ends_with("+json"))
    });
    if is_json {
        Ok(())
    } else {
        Err(unsupported(essence, JSON))
    }
}

/// The content type without parameters, in lower case.
fn media_type(request: &Request) -> Option<String> {
    let value = request.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split(';').next().unwrap_or_default().trim();
    Some(essence.to_ascii_lowercase())
}

/// The charset that the content type names.
fn charset(request: &Request) -> Option<String> {
    let value = request.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    value.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_charset = name.trim().eq_ignore_ascii_case("charset");
        is_charset.then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn unsupported(found: Option<String>, wanted: &str) -> Problem {
    let detail = match found {
        Some(found) => format!(
            "Send the body as {wanted}, not as {}.",
            check::shortened(&found)
        ),
        None => format!("Send the body with the header `Content-Type: {wanted}`."),
    };
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        detail,
    )
}

/// serde would read a list as the fields of an object in their order, which no schema says.
fn parse_shaped<T: Type + DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'[') && !T::schema_ref().is_array() {
        return Err(Problem::validation(vec![FieldError::new(
            "",
            "is a list, expected an object",
        )]));
    }
    parse(bytes)
}

/// Reads `bytes` as `T`, or says what is wrong and where.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    check::parse_kept_json(bytes).map_err(|error| match error {
        JsonError::Shape(fault) => Problem::validation(vec![fault]),
        JsonError::Malformed(reason) => malformed(&reason),
    })
}

fn malformed(reason: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "malformed_json",
        format!("The body is no valid JSON: {reason}."),
    )
}

/// A response with `value` as JSON.
pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => json_bytes(status, bytes.into()),
        Err(error) => failed_to_print(&error),
    }
}

fn json_bytes(status: StatusCode, bytes: Bytes) -> Response {
    let mut response = Response::builder().status(status).body(bytes);
    let headers = response.headers_mut();
    headers.reserve(HEADERS_USUAL);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// Our own type that does not print is a bug; the edge logs and answers it like any other.
fn failed_to_print(error: &serde_json::Error) -> Response {
    tracing::error!(%error, "an answer could not be written as JSON");
    Response::builder()
        .status(StatusCode::INTERNAL_SERVER_ERROR)
        .finish()
}

fn json_meta<T: Type>(status: u16, description: &'static str) -> MetaResponse {
    MetaResponse {
        description,
        status: Some(status),
        status_range: None,
        content: vec![MetaMediaType {
            content_type: JSON,
            schema: T::schema_ref(),
        }],
        headers: Vec::new(),
    }
}

impl<T: Serialize + Send> IntoResponse for Body<T> {
    fn into_response(self) -> Response {
        json_response(StatusCode::OK, &self.0)
    }
}

impl<T: Type> ApiResponse for Body<T> {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![json_meta::<T>(200, "Done.")],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// 201 with `Location`: a fresh `T`, or the stored text of an answer that was given before.
#[derive(Debug)]
pub struct Created<T> {
    location: String,
    replayed: bool,
    content: CreatedContent<T>,
}

#[derive(Debug)]
enum CreatedContent<T> {
    Value(T),
    Text(String),
}

impl<T> Created<T> {
    /// A new thing, found at `location`.
    pub fn new(value: T, location: impl Into<String>) -> Self {
        Self {
            location: location.into(),
            replayed: false,
            content: CreatedContent::Value(value),
        }
    }

    /// A new thing whose JSON is already printed, because it is stored for replays.
    pub fn printed(text: String, location: impl Into<String>) -> Self {
        Self {
            location: location.into(),
            replayed: false,
            content: CreatedContent::Text(text),
        }
    }

    /// The same answer as before, marked with `Idempotent-Replayed: true`.
    pub fn replay(text: String, location: impl Into<String>) -> Self {
        Self {
            location: location.into(),
            replayed: true,
            content: CreatedContent::Text(text),
        }
    }

    /// Whether it is the answer of an earlier request: nothing was made now.
    pub fn is_replay(&self) -> bool {
        self.replayed
    }
}

/// Marks an answer that was given before.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

impl<T: Serialize + Send> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        let mut response = match self.content {
            CreatedContent::Value(value) => json_response(StatusCode::CREATED, &value),
            CreatedContent::Text(text) => json_bytes(StatusCode::CREATED, text.into()),
        };
        if let Ok(location) = HeaderValue::from_str(&self.location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        if self.replayed {
            response
                .headers_mut()
                .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl<T: Type> ApiResponse for Created<T> {
    fn meta() -> MetaResponses {
        let mut meta = json_meta::<T>(201, "Created; `Location` leads to it.");
        meta.headers = vec![
            meta_header("Location", "Where it is found.", MetaSchema::new("string")),
            meta_header(
                "Idempotent-Replayed",
                "`true` when this is the stored answer to the same `Idempotency-Key`.",
                MetaSchema::new("string"),
            ),
        ];
        MetaResponses {
            responses: vec![meta],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// 202 with `Location`: it will be done, and what becomes of it can be seen there. Otherwise as
/// [`Created`].
#[derive(Debug)]
pub struct Accepted<T>(Created<T>);

impl<T> Accepted<T> {
    /// What was accepted, its JSON printed because it is stored for replays.
    pub fn printed(text: String, location: impl Into<String>) -> Self {
        Self(Created::printed(text, location))
    }

    /// The same answer as before, marked with `Idempotent-Replayed: true`.
    pub fn replay(text: String, location: impl Into<String>) -> Self {
        Self(Created::replay(text, location))
    }
}

impl<T: Serialize + Send> IntoResponse for Accepted<T> {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        if response.status() == StatusCode::CREATED {
            response.set_status(StatusCode::ACCEPTED);
        }
        response
    }
}

impl<T: Type> ApiResponse for Accepted<T> {
    fn meta() -> MetaResponses {
        let mut meta = Created::<T>::meta();
        for response in &mut meta.responses {
            response.status = Some(202);
            response.description = "Accepted; `Location` leads to what becomes of it.";
        }
        meta
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// 202 without `Location`: the work goes on elsewhere, and the caller is not told how it ends.
#[derive(Debug)]
pub struct Noted<T>(pub T);

impl<T: Serialize + Send> IntoResponse for Noted<T> {
    fn into_response(self) -> Response {
        json_response(StatusCode::ACCEPTED, &self.0)
    }
}

impl<T: Type> ApiResponse for Noted<T> {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![json_meta::<T>(202, "Noted; it goes on elsewhere.")],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// One of two answers with different statuses.
#[derive(Debug)]
pub enum Either<A, B> {
    /// The first.
    First(A),
    /// The second.
    Second(B),
}

impl<A: IntoResponse, B: IntoResponse> IntoResponse for Either<A, B> {
    fn into_response(self) -> Response {
        match self {
            Either::First(answer) => answer.into_response(),
            Either::Second(answer) => answer.into_response(),
        }
    }
}

impl<A: ApiResponse, B: ApiResponse> ApiResponse for Either<A, B> {
    fn meta() -> MetaResponses {
        let mut responses = A::meta().responses;
        responses.extend(B::meta().responses);
        MetaResponses { responses }
    }

    fn register(registry: &mut Registry) {
        A::register(registry);
        B::register(registry);
    }
}

/// 200 with a strong `ETag`, the hash of its JSON. The edge answers 304 when `If-None-Match` names it.
#[derive(Debug)]
pub struct Tagged<T>(pub T);

/// A strong entity tag: half of the SHA-256 of the bytes, in base64.
pub fn etag_of(bytes: &[u8]) -> HeaderValue {
    let hash = Sha256::digest(bytes);
    let mut text = String::with_capacity(24);
    text.push('"');
    URL_SAFE_NO_PAD.encode_string(&hash[..16], &mut text);
    text.push('"');
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

impl<T: Serialize + Send> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let bytes = match serde_json::to_vec(&self.0) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => return failed_to_print(&error),
        };
        let etag = etag_of(&bytes);
        tagged(bytes, etag)
    }
}

impl<T: Type> ApiResponse for Tagged<T> {
    fn meta() -> MetaResponses {
        let mut found = json_meta::<T>(200, "Found.");
        found.headers = vec![meta_header(
            "ETag",
            "Names this state of it; send it back as `If-None-Match`.",
            MetaSchema::new("string"),
        )];
        let unchanged = MetaResponse {
            description: "Unchanged since the state that `If-None-Match` names.",
            status: Some(304),
            status_range: None,
            content: Vec::new(),
            headers: Vec::new(),
        };
        MetaResponses {
            responses: vec![found, unchanged],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// [`Body`] whose JSON is ready.
#[derive(Debug)]
pub struct Printed<T>(Bytes, PhantomData<fn() -> T>);

impl<T> Printed<T> {
    /// The JSON of a `T`.
    pub fn new(json: impl Into<Bytes>) -> Self {
        Self(json.into(), PhantomData)
    }
}

impl<T: Send> IntoResponse for Printed<T> {
    fn into_response(self) -> Response {
        json_bytes(StatusCode::OK, self.0)
    }
}

impl<T: Type> ApiResponse for Printed<T> {
    fn meta() -> MetaResponses {
        <Body<T> as ApiResponse>::meta()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// [`Tagged`] whose JSON and tag are ready.
#[derive(Debug)]
pub struct PrintedTagged<T> {
    json: Bytes,
    etag: HeaderValue,
    of: PhantomData<fn() -> T>,
}

impl<T> PrintedTagged<T> {
    /// The JSON of a `T` with its [`etag_of`].
    pub fn new(json: Bytes, etag: HeaderValue) -> Self {
        Self {
            json,
            etag,
            of: PhantomData,
        }
    }
}

impl<T: Send> IntoResponse for PrintedTagged<T> {
    fn into_response(self) -> Response {
        tagged(self.json, self.etag)
    }
}

impl<T: Type> ApiResponse for PrintedTagged<T>
where
    Tagged<T>: ApiResponse,
{
    fn meta() -> MetaResponses {
        <Tagged<T> as ApiResponse>::meta()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// 200 with a tag: may be kept, must be asked about each time, which is what the tag is for.
fn tagged(json: Bytes, etag: HeaderValue) -> Response {
    let mut response = json_bytes(StatusCode::OK, json);
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag);
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, no-cache"),
    );
    response
}

/// 204: done, and there is nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoContent;

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        Response::builder().status(StatusCode::NO_CONTENT).finish()
    }
}

impl ApiResponse for NoContent {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: "Done.",
                status: Some(204),
                status_range: None,
                content: Vec::new(),
                headers: Vec::new(),
            }],
        }
    }

    fn register(_registry: &mut Registry) {}
}

/// An answer that may set the session's cookie.
#[derive(Debug)]
pub struct WithCookie<R> {
    answer: R,
    cookies: Vec<HeaderValue>,
}

impl<R> WithCookie<R> {
    /// Each of `cookies` is a whole `Set-Cookie` value.
    pub fn new(answer: R, cookies: impl IntoIterator<Item = HeaderValue>) -> Self {
        Self {
            answer,
            cookies: cookies.into_iter().collect(),
        }
    }
}

impl<R: IntoResponse> IntoResponse for WithCookie<R> {
    fn into_response(self) -> Response {
        let mut response = self.answer.into_response();
        for cookie in self.cookies {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        response
    }
}

impl<R: ApiResponse> ApiResponse for WithCookie<R> {
    fn meta() -> MetaResponses {
        let mut meta = R::meta();
        for response in &mut meta.responses {
            response.headers.push(meta_header(
                "Set-Cookie",
                "The admin page's session, where it was asked for or ends; and for browsers a token \
                 that tells this one apart from strangers when it logs in again.",
                MetaSchema::new("string"),
            ));
        }
        meta
    }

    fn register(registry: &mut Registry) {
        R::register(registry);
    }
}

/// The id before which a page of a list that runs from new to old begins: all of it without a
/// cursor.
pub fn read_cursor(cursor: Option<&str>) -> Result<i64, Problem> {
    let Some(text) = cursor else {
        return Ok(i64::MAX);
    };
    text.parse().map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid_cursor",
            "the cursor is none of ours",
        )
        .field("cursor", "pass next_cursor of the page before")
    })
}

/// A CSV file as the body of a request, unread: it may be larger than memory should hold.
#[derive(Debug)]
pub struct CsvBody {
    body: poem::Body,
    reading: Reading,
    moved: Moved,
}

/// Such a file for a thread that may block.
pub struct Upload<R> {
    /// Its bytes; the limits of the body come out as I/O errors, which [`body::read_problem`]
    /// understands.
    pub body: R,
    /// What its sender said of it.
    pub reading: Reading,
    /// To be told as the work goes on.
    pub moved: Moved,
}

impl CsvBody {
    /// To be called on the runtime.
    pub fn into_upload(self) -> Upload<impl Read + Send> {
        Upload {
            body: BlockingBody {
                runtime: tokio::runtime::Handle::current(),
                body: Box::pin(self.body.into_async_read()),
            },
            reading: self.reading,
            moved: self.moved,
        }
    }
}

impl From<SheetError> for Problem {
    fn from(error: SheetError) -> Self {
        let text = error.to_string();
        match error {
            SheetError::Text(_) => Problem::validation(vec![FieldError::new("file", text)]),
            SheetError::Header(_) => Problem::validation(vec![FieldError::new("header", text)]),
            SheetError::Read(error) => body::read_problem(&error),
            SheetError::Spool(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                StoreError::StorageFull.into()
            }
            SheetError::Spool(error) => Problem::internal(error),
        }
    }
}

struct BlockingBody<R> {
    runtime: tokio::runtime::Handle,
    body: std::pin::Pin<Box<R>>,
}

impl<R: tokio::io::AsyncRead> Read for BlockingBody<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.runtime.block_on(self.body.as_mut().read(buffer))
    }
}

/// Of a CSV file; as plain bytes as well, which is what generated clients know how to send.
const CSV_TYPES: &[&str] = &["text/csv", "application/octet-stream"];
/// What some programs call the same, and tables with tabs; the specification has no need of them.
const CSV_TYPES_BESIDES: &[&str] = &["application/csv", "text/tab-separated-values"];

impl<'a> ApiExtractor<'a> for CsvBody {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn request_meta() -> Option<MetaRequest> {
        let content = CSV_TYPES
            .iter()
            .map(|content_type| MetaMediaType {
                content_type,
                schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format(
                    "string", "binary",
                ))),
            })
            .collect();
        Some(MetaRequest {
            description: None,
            content,
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let essence = media_type(request);
        if !essence.as_deref().is_some_and(|essence| {
            CSV_TYPES.contains(&essence) || CSV_TYPES_BESIDES.contains(&essence)
        }) {
            return Err(unsupported(essence, "text/csv").into());
        }
        Ok(Self {
            body: body.take().map_err(Problem::internal)?,
            reading: Reading {
                charset: charset(request),
            },
            moved: request.data::<Moved>().cloned().unwrap_or_default(),
        })
    }
}

impl Type for Timestamp {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "string_date-time".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            example: Some("2026-11-11T00:00:00Z".into()),
            ..MetaSchema::new_with_format("string", "date-time")
        }))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(self.as_raw_value().into_iter())
    }
}

const NOT_RFC3339: &str = "expected a time in RFC 3339, such as 2026-11-11T00:00:00Z";

impl ParseFromJSON for Timestamp {
    fn parse_from_json(value: Option<serde_json::Value>) -> ParseResult<Self> {
        match value {
            Some(serde_json::Value::String(text)) => Self::parse_from_parameter(&text),
            other => Err(ParseError::expected_type(other.unwrap_or_default())),
        }
    }
}

impl ParseFromParameter for Timestamp {
    fn parse_from_parameter(text: &str) -> ParseResult<Self> {
        Timestamp::parse_rfc3339(text).ok_or_else(|| ParseError::custom(NOT_RFC3339))
    }
}

impl ToJSON for Timestamp {
    fn to_json(&self) -> Option<serde_json::Value> {
        Some(self.to_string().into())
    }
}

impl ToHeader for Timestamp {
    fn to_header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.to_string()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        items: Vec<Item>,
        #[serde(default)]
        note: Option<String>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Item {
        product_id: i64,
        quantity: u32,
    }

    async fn refusal(text: &str) -> serde_json::Value {
        let problem = parse::<Order>(text.as_bytes()).expect_err(text);
        let bytes = problem
            .render("r")
            .into_body()
            .into_bytes()
            .await
            .expect("body");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[tokio::test]
    async fn a_field_that_does_not_fit_is_named() {
        for (text, field, reason) in [
            (
                r#"{"items":[{"product_id":1,"quantity":"x"}]}"#,
                "items[0].quantity",
                "invalid type: string \"x\", expected a whole number of 0 or more",
            ),
            (
                r#"{"items":[{"product_id":1}]}"#,
                "items[0].quantity",
                "is required",
            ),
            (
                r#"{"items":[],"role":"admin"}"#,
                "role",
                "is not a known field",
            ),
            (
                r#"{"items":[{"product_id":1,"quantity":1,"price":0}]}"#,
                "items[0].price",
                "is not a known field",
            ),
            (
                r#"{"items":[{"product_id":1,"quantity":1,"quantity":9}]}"#,
                "items[0].quantity",
                "is given more than once",
            ),
            (r#"{}"#, "items", "is required"),
            (
                r#"{"items":{}}"#,
                "items",
                "invalid type: map, expected a list",
            ),
            (
                r#""x""#,
                "",
                "invalid type: string \"x\", expected an object",
            ),
            (r#"null"#, "", "invalid type: null, expected an object"),
        ] {
            let document = refusal(text).await;
            assert_eq!(document["status"], 422, "{text}");
            assert_eq!(
                document["errors"],
                serde_json::json!([{"field": field, "reason": reason}]),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_json_is_a_bad_request_with_its_place() {
        for text in [
            "{",
            "{\"items\":[],}",
            "{\"items\":[]} x",
            "{\"note\":\"a\u{1}\"}",
        ] {
            let document = refusal(text).await;
            assert_eq!(
                (&document["status"], &document["code"]),
                (&400.into(), &"malformed_json".into())
            );
            assert!(
                document["detail"]
                    .as_str()
                    .is_some_and(|detail| detail.contains("line 1 column"))
            );
        }
        let deep = "[".repeat(100_000);
        let problem = parse::<serde_json::Value>(deep.as_bytes()).expect_err("too deep");
        assert_eq!(problem.code(), "malformed_json");
        assert_eq!(
            parse::<Order>(b"{\"note\":\"\xff\",\"items\":[]}")
                .expect_err("bad UTF-8")
                .code(),
            "malformed_json"
        );
    }

    #[tokio::test]
    async fn a_long_value_is_not_echoed_whole() {
        let text = format!(r#"{{"items":"{}"}}"#, "a".repeat(10_000));
        let document = refusal(&text).await;
        let reason = document["errors"][0]["reason"]
            .as_str()
            .expect("reason")
            .to_owned();
        assert!(
            reason.len() < 300 && reason.ends_with("expected a list"),
            "{reason}"
        );
    }

    #[test]
    fn a_replayed_answer_says_so() {
        let response =
            Created::<Order>::replay("{}".to_owned(), "/api/v1/orders/7").into_response();
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(response.header("location"), Some("/api/v1/orders/7"));
        assert_eq!(response.header("idempotent-replayed"), Some("true"));
    }

    #[test]
    fn equal_bytes_have_equal_strong_tags() {
        let tag = etag_of(b"{}");
        assert_eq!(tag, etag_of(b"{}"));
        assert_ne!(tag, etag_of(b"[]"));
        assert_eq!(tag.len(), 24);
    }
}
