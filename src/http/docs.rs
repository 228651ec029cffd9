//! The specification and its page.
//!
//! Owns what poem-openapi's document still lacks, `/openapi.json`, `/openapi.yaml`, `/docs`, and the
//! table of routes that the edge asks for templates and methods. Invariants: one API gives one
//! document, byte for byte; the page works without a network and without inline scripts.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use poem::http::StatusCode;
use poem::http::header::{self, HeaderValue};
use poem::{Endpoint, Request, Response, Route, get};
use poem_openapi::OpenApiService;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use tokio::sync::OnceCell;

use super::answer::NotMade;
use super::compress;
use super::json::etag_of;
use super::problem::{self, PROBLEM_JSON, Problem};
use crate::check;

/// Swagger's page needs inline styles and data: images; scripts come from files only.
const DOCS_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The finished document: what poem-openapi printed, made complete and put in a fixed order.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenApiSpec(Value);

/// The text that poem-openapi printed is no OpenAPI document.
#[derive(Debug, thiserror::Error)]
#[error("the specification can't be read: {0}")]
pub struct SpecError(#[from] serde_json::Error);

impl OpenApiSpec {
    /// Completes `raw`, which is `OpenApiService::spec()`.
    pub fn new(raw: &str) -> Result<Self, SpecError> {
        let Merged(mut document) = serde_json::from_str(raw)?;
        drop_null_defaults(&mut document);
        let request_schemas = request_schemas(&document);
        close_objects(&mut document, &request_schemas);
        complete_operations(&mut document);
        Ok(Self(document))
    }

    /// `openapi.json`: indented, members in alphabetical order.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.0).unwrap_or_default();
        text.push('\n');
        text
    }

    /// `openapi.yaml`: the same document.
    pub fn yaml(&self) -> String {
        let mut text = String::new();
        write_yaml(&mut text, &self.0, 0);
        text
    }

    /// The operations, mounted at `prefix` (`/api/v1`).
    pub fn routes(&self, prefix: &str) -> RouteTable {
        RouteTable::new(&self.0, prefix)
    }
}

/// A JSON value whose repeated members are merged: poem-openapi prints a path once for each API
/// that has operations on it, and an ordinary parser would keep only the last.
struct Merged(Value);

impl<'de> Deserialize<'de> for Merged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergingVisitor;

        impl<'de> Visitor<'de> for MergingVisitor {
            type Value = Merged;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Merged, E> {
                Ok(Merged(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Merged, E> {
                Ok(Merged(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Merged, E> {
                Ok(Merged(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Merged, E> {
                // poem-openapi keeps limits as floats; `1.0` where an integer is meant reads badly.
                let whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
                Ok(Merged(if whole {
                    (value as i64).into()
                } else {
                    value.into()
                }))
            }

            fn visit_str<E>(self, value: &str) -> Result<Merged, E> {
                Ok(Merged(value.into()))
            }

            fn visit_unit<E>(self) -> Result<Merged, E> {
                Ok(Merged(Value::Null))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merged, A::Error> {
                let mut values = Vec::new();
                while let Some(Merged(value)) = list.next_element()? {
                    values.push(value);
                }
                Ok(Merged(Value::Array(values)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Merged, A::Error> {
                let mut object = Map::new();
                while let Some((name, Merged(value))) = map.next_entry::<String, Merged>()? {
                    match (object.get_mut(&name), value) {
                        (Some(Value::Object(there)), Value::Object(more)) => there.extend(more),
                        (_, value) => {
                            object.insert(name, value);
                        }
                    }
                }
                Ok(Merged(Value::Object(object)))
            }
        }

        deserializer.deserialize_any(MergingVisitor)
    }
}

/// Characters that are shown of the name of an unknown parameter.
const PARAMETER_CHARS_MAX: usize = 100;
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

fn operations_mut(document: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    document
        .get_mut("paths")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flatten()
        .filter_map(|(_, item)| item.as_object_mut())
        .flatten()
        .filter(|(method, _)| METHODS.contains(&method.as_str()))
}

/// poem-openapi prints `default: null` where a field that may be left out has no other default. OpenAPI
/// wants a default of the field's own type, and what is left out needs none.
fn drop_null_defaults(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            // An example is no schema: it may hold anything.
            let members = object.iter_mut().filter(|(name, _)| *name != "example");
            members.for_each(|(_, member)| drop_null_defaults(member));
        }
        Value::Array(list) => list.iter_mut().for_each(drop_null_defaults),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Names of all schemas that a request body reaches.
fn request_schemas(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut queue: Vec<&Value> = document["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, item)| item.as_object())
        .flatten()
        .filter_map(|(_, operation)| operation.get("requestBody"))
        .collect();
    while let Some(value) = queue.pop() {
        match value {
            Value::Object(object) => {
                let name = object
                    .get("$ref")
                    .and_then(Value::as_str)
                    .and_then(|path| path.strip_prefix("#/components/schemas/"));
                if let Some(name) = name
                    && !found.iter().any(|known| known == name)
                {
                    found.push(name.to_owned());
                    queue.push(&document["components"]["schemas"][name]);
                }
                queue.extend(object.values());
            }
            Value::Array(list) => queue.extend(list),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    found
}

/// Every type of a request body refuses unknown fields, and takes `null` for a field that may be
/// left out and has no default; the document has to say so.
fn close_objects(document: &mut Value, names: &[String]) {
    for name in names {
        let schema = &mut document["components"]["schemas"][name];
        if schema["type"] == "object"
            && schema.get("properties").is_some()
            && schema.get("additionalProperties").is_none()
        {
            schema["additionalProperties"] = Value::Bool(false);
        }
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
        for (name, property) in properties.into_iter().flatten() {
            let may_be_left_out = !required.iter().any(|known| known == name);
            if may_be_left_out && property.get("default").is_none() {
                property["nullable"] = Value::Bool(true);
            }
        }
    }
}

fn complete_operations(document: &mut Value) {
    for (_, operation) in operations_mut(document) {
        let has_body = operation.get("requestBody").is_some();
        let is_secured = operation
            .get("security")
            .and_then(Value::as_array)
            .is_some_and(|schemes| !schemes.is_empty());
        let Some(responses) = operation
            .get_mut("responses")
            .and_then(Value::as_object_mut)
        else {
            continue;
        };
        if !has_body {
            // Only a body can be slow to come or of a wrong type.
            responses.remove("408");
            responses.remove("415");
        }
        if is_secured && !responses.contains_key("401") {
            responses.insert(
                "401".to_owned(),
                serde_json::json!({
                    "description": "No credentials, or none that are valid.",
                    "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }),
            );
        }
        for (status, response) in responses.iter_mut() {
            if let (Ok(status), Some(content)) = (
                status.parse(),
                response
                    .get_mut("content")
                    .and_then(|content| content.get_mut(PROBLEM_JSON)),
            ) {
                content["example"] = problem::example(status);
            }
            response["headers"]["X-Request-ID"] = serde_json::json!({
                "description": "Names this request in the server's log.",
                "schema": {"type": "string"},
            });
        }
    }
}

/// YAML in block style; strings are quoted as in JSON, which YAML reads alike.
fn write_yaml(out: &mut String, value: &Value, depth: usize) {
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (name, member) in object {
                out.push_str(&indent);
                out.push_str(&quoted(name));
                out.push(':');
                write_member(out, member, depth);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for member in list {
                out.push_str(&indent);
                out.push('-');
                write_member(out, member, depth);
            }
        }
        scalar => {
            out.push_str(&scalar.to_string());
            out.push('\n');
        }
    }
}

fn write_member(out: &mut String, member: &Value, depth: usize) {
    let nested = match member {
        Value::Object(object) => !object.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    out.push(if nested { '\n' } else { ' ' });
    write_yaml(out, member, depth + 1);
}

/// The API's routes: for the router's pattern, what a person calls it and which methods it takes.
#[derive(Clone, Debug, Default)]
pub struct RouteTable(Arc<BTreeMap<String, RouteEntry>>);

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// `/api/v1/products/{product_id}`
    pub template: String,
    /// The value of `Allow`.
    pub allow: String,
    /// Names of the path parameters, in order.
    pub params: Vec<String>,
    /// Its place among all routes, from 0.
    pub number: usize,
    /// Bytes of the template before its first parameter.
    fixed: usize,
    /// Names of the query parameters that each method takes, in capitals.
    queries: BTreeMap<String, Vec<String>>,
}

impl RouteEntry {
    /// Refuses a query parameter that the operation does not know: misspelt, it would be ignored, and
    /// a filter that is ignored shows or changes too much. A method that is not taken is no matter here.
    pub fn check_query(&self, method: &str, query: &str) -> Result<(), Problem> {
        let Some(known) = self.queries.get(method) else {
            return Ok(());
        };
        for (name, _) in url::form_urlencoded::parse(query.as_bytes()) {
            if known.iter().any(|known| *known == name) {
                continue;
            }
            let name: String = name.chars().take(PARAMETER_CHARS_MAX).collect();
            let hint = match check::nearest(&name, known.iter().map(String::as_str)) {
                Some(near) => format!("; did you mean `{near}`?"),
                None if known.is_empty() => "; this operation takes none".to_owned(),
                None => format!("; there are {}", known.join(", ")),
            };
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "unknown_parameter",
                format!("There is no query parameter `{name}` here{hint}"),
            )
            .field(name, format!("is not known{hint}")));
        }
        Ok(())
    }
}

/// Of the operation, the names of its query parameters.
fn query_names(operation: &Value) -> Vec<String> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters
        .filter(|parameter| parameter["in"] == "query")
        .filter_map(|parameter| parameter["name"].as_str())
        .map(str::to_owned)
        .collect()
}

impl RouteTable {
    fn new(document: &Value, prefix: &str) -> Self {
        let mut routes = BTreeMap::new();
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            let template = format!("{prefix}{path}");
            let queries: BTreeMap<String, Vec<String>> = item
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(method, _)| METHODS.contains(&method.as_str()))
                .map(|(method, operation)| (method.to_ascii_uppercase(), query_names(operation)))
                .collect();
            let mut methods: Vec<String> = queries.keys().cloned().collect();
            if methods.iter().any(|method| method == "GET") {
                methods.push("HEAD".to_owned());
            }
            methods.push("OPTIONS".to_owned());
            methods.sort_unstable();
            methods.dedup();
            let mut params = Vec::new();
            let pattern: Vec<String> = template
                .split('/')
                .map(|segment| {
                    match segment
                        .strip_prefix('{')
                        .and_then(|rest| rest.strip_suffix('}'))
                    {
                        Some(name) => {
                            params.push(name.to_owned());
                            format!(":param{}", params.len() - 1)
                        }
                        None => segment.to_owned(),
                    }
                })
                .collect();
            let route = RouteEntry {
                fixed: template.find('{').unwrap_or(template.len()),
                template,
                allow: methods.join(", "),
                params,
                number: routes.len(),
                queries,
            };
            routes.insert(pattern.join("/"), route);
        }
        Self(Arc::new(routes))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The route that poem's router matched.
    pub fn by_pattern(&self, pattern: &str) -> Option<&RouteEntry> {
        self.0.get(pattern)
    }

    /// The route that would match `path`, for what is decided before the router is reached. All routes are
    /// looked at, so most are told apart by what they begin with (measured: 5 µs a request without).
    pub fn by_path(&self, path: &str) -> Option<&RouteEntry> {
        let fits = |route: &RouteEntry| {
            let (fixed, rest) = route.template.split_at(route.fixed);
            let Some(given) = path.strip_prefix(fixed) else {
                return false;
            };
            let mut wanted = rest.split('/');
            let mut given = given.split('/');
            loop {
                match (wanted.next(), given.next()) {
                    (None, None) => return true,
                    (Some(wanted), Some(given))
                        if wanted == given || (wanted.starts_with('{') && !given.is_empty()) => {}
                    _ => return false,
                }
            }
        };
        // A literal segment wins over a parameter, and so does the shorter list of parameters.
        self.0
            .values()
            .filter(|route| fits(route))
            .min_by_key(|route| route.params.len())
    }
}

/// `/static/*path` → `/static/{path}`, `/x/:id` → `/x/{id}`: a pattern of poem's as a template.
pub(super) fn template_of(pattern: &str) -> String {
    let segments: Vec<String> = pattern
        .split('/')
        .map(|segment| {
            match segment
                .strip_prefix(':')
                .or_else(|| segment.strip_prefix('*'))
            {
                Some(name) => format!("{{{name}}}"),
                None => segment.to_owned(),
            }
        })
        .collect();
    segments.join("/")
}

/// `/openapi.json`, `/openapi.yaml` and `/docs` with its files; nest it at `/`, or add its routes.
pub fn add_routes(route: Route, spec: &OpenApiSpec) -> Route {
    let files = Arc::new(Files {
        json: spec.json(),
        yaml: spec.yaml(),
        made: OnceCell::new(),
    });
    let file = |name: &'static str| DocsFile {
        files: Arc::clone(&files),
        name,
    };
    route
        .at("/openapi.json", get(file("openapi.json")))
        .at("/openapi.yaml", get(file("openapi.yaml")))
        .at("/docs", get(file("index.html")))
        .at("/docs/init.js", get(file("init.js")))
        .at("/docs/swagger-ui.js", get(file("swagger-ui.js")))
        .at("/docs/swagger-ui.css", get(file("swagger-ui.css")))
}

struct Files {
    json: String,
    yaml: String,
    /// Made when first asked for: compressing a megabyte and a half must not delay each start.
    made: OnceCell<BTreeMap<&'static str, ReadyFile>>,
}

/// A file with its compressed form.
struct ReadyFile {
    content_type: &'static str,
    plain: Bytes,
    gzip: Bytes,
    etag: HeaderValue,
}

impl ReadyFile {
    fn new(content_type: &'static str, plain: impl Into<Bytes>) -> Self {
        let plain: Bytes = plain.into();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        // Writing to a vector can't fail; if it did, an empty gzip would mean: send the plain one.
        let gzip = encoder
            .write_all(&plain)
            .and_then(|()| encoder.finish())
            .unwrap_or_default();
        Self {
            content_type,
            etag: etag_of(&plain),
            plain,
            gzip: gzip.into(),
        }
    }
}

const PAGE: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<title>Onrush API</title>
<link rel=\"icon\" href=\"data:,\">
<link rel=\"stylesheet\" href=\"/docs/swagger-ui.css\">
</head>
<body>
<div id=\"ui\"></div>
<noscript>This page needs JavaScript; the specification itself is at <a href=\"/openapi.json\">/openapi.json</a>.</noscript>
<script src=\"/docs/swagger-ui.js\"></script>
<script src=\"/docs/init.js\"></script>
</body>
</html>
";

const INIT: &str = "SwaggerUIBundle({
  dom_id: '#ui',
  url: '/openapi.json',
  deepLinking: true,
  persistAuthorization: false,
  tryItOutEnabled: true,
  validatorUrl: null,
});
";

fn make(json: String, yaml: String) -> BTreeMap<&'static str, ReadyFile> {
    // The only way to the files that poem-openapi embeds is through its one-page version.
    let inlined = OpenApiService::new((), "", "").swagger_ui_html();
    let between = |open: &str, close: &str| {
        let rest = inlined.split_once(open).map_or("", |(_, rest)| rest);
        rest.split_once(close)
            .map_or("", |(inner, _)| inner)
            .to_owned()
    };
    let style = between("<style charset=\"UTF-8\">", "</style>");
    let script = between("<script charset=\"UTF-8\">", "</script>");
    BTreeMap::from([
        ("openapi.json", ReadyFile::new("application/json", json)),
        ("openapi.yaml", ReadyFile::new("application/yaml", yaml)),
        (
            "index.html",
            ReadyFile::new("text/html; charset=utf-8", PAGE),
        ),
        (
            "init.js",
            ReadyFile::new("text/javascript; charset=utf-8", INIT),
        ),
        (
            "swagger-ui.js",
            ReadyFile::new("text/javascript; charset=utf-8", script),
        ),
        (
            "swagger-ui.css",
            ReadyFile::new("text/css; charset=utf-8", style),
        ),
    ])
}

struct DocsFile {
    files: Arc<Files>,
    name: &'static str,
}

impl Endpoint for DocsFile {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let files = &self.files;
        let made = files
            .made
            .get_or_try_init(|| async {
                let (json, yaml) = (files.json.clone(), files.yaml.clone());
                tokio::task::spawn_blocking(move || make(json, yaml)).await
            })
            .await
            .map_err(Problem::internal)?;
        let file = made
            .get(self.name)
            .ok_or_else(|| Problem::internal(format_args!("no file {}", self.name)))?;
        let gzip = !file.gzip.is_empty()
            && compress::accepts(request.headers().get(header::ACCEPT_ENCODING), "gzip");
        let mut response = Response::builder().status(StatusCode::OK).body(if gzip {
            file.gzip.clone()
        } else {
            file.plain.clone()
        });
        response.extensions_mut().insert(NotMade);
        let headers = response.headers_mut();
        if gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(file.content_type),
        );
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, no-transform"),
        );
        headers.insert(header::CONTENT_SECURITY_POLICY, DOCS_POLICY);
        // One tag for both codings: weak, because their bytes differ.
        let weak = file
            .etag
            .to_str()
            .map(|tag| format!("W/{tag}"))
            .unwrap_or_default();
        if let Ok(weak) = HeaderValue::from_str(&weak) {
            headers.insert(header::ETAG, weak);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Body, Created, Failure, fails};
    use poem_openapi::param::Path;
    use poem_openapi::{Object, OpenApi};
    use serde::Serialize;

    #[derive(Debug, Serialize, serde::Deserialize, Object)]
    #[serde(deny_unknown_fields)]
    struct NewThing {
        name: String,
        parts: Vec<Part>,
        #[oai(default)]
        note: Option<String>,
        #[oai(default)]
        shelf: u32,
    }

    #[derive(Debug, Serialize, serde::Deserialize, Object)]
    #[serde(deny_unknown_fields)]
    struct Part {
        #[oai(validator(minimum(value = "1")))]
        count: u32,
    }

    struct Readers;
    struct Writers;

    #[OpenApi]
    impl Readers {
        /// Reads a thing
        #[oai(path = "/things/:thing_id", method = "get")]
        async fn read(
            &self,
            thing_id: Path<i64>,
        ) -> Result<Body<Part>, Failure<{ fails::NOT_FOUND }>> {
            Ok(Body(Part {
                count: thing_id.0 as u32,
            }))
        }
    }

    #[OpenApi]
    impl Writers {
        /// Replaces a thing
        #[oai(path = "/things/:thing_id", method = "put")]
        async fn replace(
            &self,
            thing_id: Path<i64>,
            body: Body<NewThing>,
        ) -> Result<Created<NewThing>, Failure<{ fails::CONFLICT }>> {
            Ok(Created::new(body.0, format!("/things/{}", thing_id.0)))
        }
    }

    fn spec() -> OpenApiSpec {
        OpenApiSpec::new(&OpenApiService::new((Readers, Writers), "Test", "1").spec())
            .expect("a document")
    }

    #[test]
    fn operations_of_two_apis_on_one_path_are_both_there() {
        let OpenApiSpec(document) = spec();
        let item = &document["paths"]["/things/{thing_id}"];
        assert!(
            item.get("get").is_some() && item.get("put").is_some(),
            "{item}"
        );
    }

    #[test]
    fn request_objects_are_closed_and_failures_have_examples() {
        let OpenApiSpec(document) = spec();
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["NewThing"]["additionalProperties"], false);
        assert_eq!(schemas["Part"]["additionalProperties"], false);
        assert_eq!(schemas["Part"]["properties"]["count"]["minimum"], 1);
        // Left out it is nothing, which null says as well; nothing is no default.
        let properties = &schemas["NewThing"]["properties"];
        assert_eq!(properties["note"].get("default"), None);
        assert_eq!(properties["note"]["nullable"], true);
        assert_eq!(properties["shelf"]["default"], 0);
        let responses = &document["paths"]["/things/{thing_id}"]["get"]["responses"];
        assert_eq!(
            responses["404"]["content"][PROBLEM_JSON]["example"]["status"],
            404
        );
        assert!(responses.get("415").is_none(), "a GET has no body");
    }

    #[test]
    fn the_document_is_the_same_each_time_and_in_both_forms() {
        assert_eq!(spec().json(), spec().json());
        let from_yaml: Value = serde_yaml::from_str(&spec().yaml()).expect("YAML");
        assert_eq!(from_yaml, spec().0);
    }

    #[test]
    fn routes_are_found_by_the_routers_pattern_and_by_path() {
        let routes = spec().routes("/api/v1");
        let route = routes.by_pattern("/api/v1/things/:param0").expect("known");
        assert_eq!(route.template, "/api/v1/things/{thing_id}");
        assert_eq!(route.allow, "GET, HEAD, OPTIONS, PUT");
        assert_eq!(route.params, ["thing_id"]);
        assert_eq!(routes.by_path("/api/v1/things/7"), Some(route));
        assert_eq!(routes.by_path("/api/v1/things"), None);
        assert_eq!(template_of("/static/*path"), "/static/{path}");
    }

    #[test]
    fn the_pages_files_are_found_in_what_poem_openapi_embeds() {
        let made = make(String::new(), String::new());
        assert!(made["swagger-ui.js"].plain.len() > 1_000_000);
        assert!(made["swagger-ui.css"].plain.len() > 100_000);
        assert!(made["swagger-ui.js"].gzip.len() < 600_000);
    }
}
