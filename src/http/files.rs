//! Files: what the owner puts into `static/`, and pages that are built into the binary.
//!
//! Invariants: nothing outside the folder is served, whatever the path or a symlink says, and no
//! dot-file; a body is read off the async threads; a missing file is a problem, not a page.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use poem::error::MethodNotAllowedError;
use poem::http::header::{self, HeaderMap, HeaderValue};
use poem::http::{Method, StatusCode};
use poem::{Endpoint, Request, Response};
use rust_embed::RustEmbed;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::answer::NotMade;
use super::compress;
use super::edge::{CORP, matches_etag};
use super::json::etag_of;
use super::problem::Problem;

const STATIC_CACHE: HeaderValue = HeaderValue::from_static("public, max-age=2592000, immutable");
const HASHED_CACHE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// Kept, but asked about each time: it names the hashed files of its build.
const PAGE_CACHE: HeaderValue = HeaderValue::from_static("no-cache");
/// An owner's file may be a page, but it must not act with the rights of the admin page beside it.
const STATIC_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; \
     sandbox; frame-ancestors 'none'",
);
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; \
     frame-ancestors 'none'",
);
/// Smaller pieces would each cost a trip to the blocking threads.
const PIECE_BYTES: usize = 64 * 1024;

/// Serves a folder; nest it with `Route::nest("/static", StaticFiles::new(dir))`.
#[derive(Clone, Debug)]
pub struct StaticFiles {
    root: PathBuf,
}

impl StaticFiles {
    /// Serves `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl Endpoint for StaticFiles {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        require_reading(&request)?;
        let missing = || Problem::not_found("file_not_found", "There is no such file.");
        let path = plain_path(request.uri().path()).ok_or_else(missing)?;
        let root = self.root.clone();
        let found = tokio::task::spawn_blocking(move || open(&root, &path))
            .await
            .map_err(Problem::internal)?;
        let (file, name) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Err(missing().into()),
            Err(error) => return Err(Problem::internal(error).into()),
        };
        Ok(send(file, &name, request.headers()).await?)
    }
}

fn require_reading(request: &Request) -> Result<(), poem::Error> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(MethodNotAllowedError.into()),
    }
}

struct OpenFile {
    file: std::fs::File,
    length: u64,
    modified: Option<SystemTime>,
}

/// The file below `root`, unless a symlink leads out of it.
fn open(root: &Path, path: &Path) -> io::Result<Option<(OpenFile, PathBuf)>> {
    let absent = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => {
            Ok(None)
        }
        io::ErrorKind::PermissionDenied => Ok(None),
        _ => Err(error),
    };
    let (root, full) = match root
        .canonicalize()
        .and_then(|root| Ok((root.join(path).canonicalize()?, root)))
    {
        Ok((full, root)) => (root, full),
        Err(error) => return absent(error),
    };
    let Ok(inside) = full.strip_prefix(&root) else {
        return Ok(None);
    };
    // A link inside the folder must not make a hidden file visible either.
    if inside
        .components()
        .any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."))
    {
        return Ok(None);
    }
    let file = match std::fs::File::open(&full) {
        Ok(file) => file,
        Err(error) => return absent(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let open = OpenFile {
        length: metadata.len(),
        modified: metadata.modified().ok(),
        file,
    };
    Ok(Some((open, full)))
}

async fn send(open: OpenFile, name: &Path, asked: &HeaderMap) -> Result<Response, Problem> {
    let etag = file_etag(&open);
    let modified = open.modified.map(httpdate);
    let mut response = Response::builder().finish();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(content_type(name)),
    );
    headers.insert(header::CACHE_CONTROL, STATIC_CACHE);
    headers.insert(header::CONTENT_SECURITY_POLICY, STATIC_POLICY);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Pictures of products are shown on the shop's own pages, which are elsewhere.
    headers.insert(CORP, HeaderValue::from_static("cross-origin"));
    headers.insert(header::ETAG, etag.clone());
    if let Some(modified) = &modified {
        headers.insert(header::LAST_MODIFIED, modified.clone());
    }

    // `If-None-Match` wins over the date; the edge would see the former, too, but after the read.
    let unchanged = match asked.get(header::IF_NONE_MATCH) {
        Some(wanted) => matches_etag(wanted, &etag),
        None => modified.is_some() && asked.get(header::IF_MODIFIED_SINCE) == modified.as_ref(),
    };
    if unchanged {
        response.set_status(StatusCode::NOT_MODIFIED);
        response.headers_mut().remove(header::CONTENT_TYPE);
        return Ok(response);
    }

    let still_valid = asked
        .get(header::IF_RANGE)
        .is_none_or(|wanted| *wanted == etag || Some(wanted) == modified.as_ref());
    let wanted = asked
        .get(header::RANGE)
        .filter(|_| still_valid)
        .map_or(WantedRange::All, |range| {
            wanted_range(range.to_str().unwrap_or_default(), open.length)
        });
    let (start, length) = match wanted {
        WantedRange::All => (0, open.length),
        WantedRange::Part(range) => {
            let text = format!("bytes {}-{}/{}", range.start(), range.end(), open.length);
            if let Ok(value) = HeaderValue::from_str(&text) {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            response.set_status(StatusCode::PARTIAL_CONTENT);
            (*range.start(), range.end() - range.start() + 1)
        }
        WantedRange::Nothing => {
            let problem = Problem::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range_not_satisfiable",
                format!("The file has {} bytes.", open.length),
            );
            let value = HeaderValue::from_str(&format!("bytes */{}", open.length));
            return Err(match value {
                Ok(value) => problem.header(header::CONTENT_RANGE, value),
                Err(_) => problem,
            });
        }
    };
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let mut file = tokio::fs::File::from_std(open.file);
    if start > 0 {
        file.seek(io::SeekFrom::Start(start))
            .await
            .map_err(Problem::internal)?;
    }
    response.set_body(pieces(file, length));
    response.extensions_mut().insert(NotMade);
    Ok(response)
}

/// Streams `length` bytes; a file that shrinks meanwhile ends the connection instead of lying.
fn pieces(file: tokio::fs::File, length: u64) -> poem::Body {
    let stream = futures_util::stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let room = usize::try_from(left)
            .unwrap_or(PIECE_BYTES)
            .min(PIECE_BYTES);
        let mut piece = BytesMut::with_capacity(room);
        let read = (&mut file).take(room as u64).read_buf(&mut piece).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok::<_, io::Error>(Some((piece.freeze(), (file, left - read as u64))))
    });
    poem::Body::from_bytes_stream(stream)
}

/// Changes whenever the file does, without reading it.
fn file_etag(open: &OpenFile) -> HeaderValue {
    let nanos = open
        .modified
        .and_then(|modified| modified.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_nanos());
    HeaderValue::from_str(&format!("\"{:x}-{nanos:x}\"", open.length))
        .unwrap_or(HeaderValue::from_static("\"0\""))
}

fn httpdate(time: SystemTime) -> HeaderValue {
    let text = chrono::DateTime::<chrono::Utc>::from(time)
        .format("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    HeaderValue::from_str(&text)
        .unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

#[derive(Debug, PartialEq, Eq)]
enum WantedRange {
    All,
    Part(RangeInclusive<u64>),
    Nothing,
}

/// One range of bytes; several at once are answered with the whole, as RFC 9110 §14.2 allows.
fn wanted_range(text: &str, length: u64) -> WantedRange {
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .and_then(|spec| spec.trim().split_once('-'))
    else {
        return WantedRange::All;
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..=last.min(length.saturating_sub(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..=length.saturating_sub(1),
        (Err(_), Ok(count)) if first.is_empty() => {
            if count == 0 {
                return WantedRange::Nothing;
            }
            length.saturating_sub(count)..=length.saturating_sub(1)
        }
        _ => return WantedRange::All,
    };
    if *range.start() >= length {
        WantedRange::Nothing
    } else {
        WantedRange::Part(range)
    }
}

/// The decoded path, if every part of it is a plain name.
fn plain_path(path: &str) -> Option<PathBuf> {
    let decoded = percent_decode(path.trim_start_matches('/'))?;
    let plain = !decoded.is_empty()
        && decoded
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']));
    plain.then(|| PathBuf::from(decoded.into_owned()))
}

fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        if *byte == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn content_type(name: &Path) -> &'static str {
    let extension = name
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    match extension.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "txt" | "md" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "application/xml",
        "yaml" | "yml" => "application/yaml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}

/// A page that is built into the binary, with its files; nest it with
/// `Route::nest("/admin", EmbeddedPage::new::<Assets>())`.
#[derive(Debug)]
pub struct EmbeddedPage {
    files: HashMap<String, EmbeddedFile>,
}

#[derive(Debug)]
struct EmbeddedFile {
    plain: Bytes,
    /// Ready-made `.br` and `.gz` beside it, in the order in which they are preferred.
    coded: Vec<(&'static str, Bytes)>,
    etag: HeaderValue,
    content_type: &'static str,
}

const INDEX: &str = "index.html";
const CODED_SUFFIXES: [(&str, &str); 2] = [("br", ".br"), ("gzip", ".gz")];

impl EmbeddedPage {
    /// Takes all files of `E`.
    pub fn new<E: RustEmbed>() -> Self {
        let bytes = |name: &str| {
            E::get(name).map(|file| match file.data {
                Cow::Borrowed(data) => Bytes::from_static(data),
                Cow::Owned(data) => Bytes::from(data),
            })
        };
        let files = E::iter()
            .filter(|name| {
                !CODED_SUFFIXES
                    .iter()
                    .any(|(_, suffix)| name.ends_with(suffix))
            })
            .filter_map(|name| {
                let plain = bytes(&name)?;
                let coded = CODED_SUFFIXES
                    .iter()
                    .filter_map(|(coding, suffix)| {
                        Some((*coding, bytes(&format!("{name}{suffix}"))?))
                    })
                    .collect();
                let file = EmbeddedFile {
                    etag: etag_of(&plain),
                    content_type: content_type(Path::new(&*name)),
                    plain,
                    coded,
                };
                Some((name.into_owned(), file))
            })
            .collect();
        Self { files }
    }

    /// The file that `path` names. Files lie at the top and in `assets/`; any other path is one of the
    /// page's own routes, and so is one at the top without a dot.
    fn find(&self, path: &str) -> Option<(&str, &EmbeddedFile)> {
        let decoded = percent_decode(path.trim_start_matches('/'))?;
        let is_route = match decoded.split_once('/') {
            Some((folder, _)) => folder != "assets" && !folder.starts_with('.'),
            None => !decoded.contains('.'),
        };
        let (name, file) = match self.files.get_key_value(&*decoded) {
            Some(found) => found,
            None if is_route => self.files.get_key_value(INDEX)?,
            None => return None,
        };
        Some((name, file))
    }
}

impl Endpoint for EmbeddedPage {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        require_reading(&request)?;
        let inner = request.uri().path();
        let outer = request.original_uri().path();
        if matches!(inner, "" | "/") && !outer.ends_with('/') {
            // Relative links of the page start at its folder.
            return Ok(Response::builder()
                .status(StatusCode::PERMANENT_REDIRECT)
                .header(header::LOCATION, format!("{outer}/"))
                .finish());
        }
        let (name, file) = self
            .find(inner)
            .ok_or_else(|| Problem::not_found("file_not_found", "There is no such file."))?;
        let accepted = request.headers().get(header::ACCEPT_ENCODING);
        let coded = file
            .coded
            .iter()
            .find(|(coding, _)| compress::accepts(accepted, coding));
        let mut response =
            Response::builder().body(coded.map_or(&file.plain, |(_, bytes)| bytes).clone());
        response.extensions_mut().insert(NotMade);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(file.content_type),
        );
        headers.insert(header::CONTENT_SECURITY_POLICY, PAGE_POLICY);
        let cache = if name.starts_with("assets/") {
            HASHED_CACHE
        } else {
            PAGE_CACHE
        };
        headers.insert(header::CACHE_CONTROL, cache);
        headers.insert(header::ETAG, file.etag.clone());
        if !file.coded.is_empty() {
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        if let Some((coding, bytes)) = coded {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
            headers.insert(header::ETAG, etag_of(bytes));
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use poem::http::uri::Scheme;
    use poem::{EndpointExt, RequestParts, Route};

    struct Assets;

    impl RustEmbed for Assets {
        fn get(name: &str) -> Option<rust_embed::EmbeddedFile> {
            let data: &'static [u8] = match name {
                "index.html" => b"<html>",
                "assets/app-1.js" => b"let a;",
                "assets/app-1.js.gz" => b"gz",
                _ => return None,
            };
            let metadata = rust_embed::Metadata::__rust_embed_new([0; 32], None, None);
            Some(rust_embed::EmbeddedFile {
                data: Cow::Borrowed(data),
                metadata,
            })
        }

        fn iter() -> impl Iterator<Item = Cow<'static, str>> + 'static {
            ["index.html", "assets/app-1.js", "assets/app-1.js.gz"]
                .into_iter()
                .map(Cow::Borrowed)
        }
    }

    async fn get_with(
        app: &impl Endpoint<Output = Response>,
        path: &str,
        pairs: &[(&str, &str)],
    ) -> Response {
        // Built as the accept loop builds it, so that it knows its original path.
        let mut request = poem::http::Request::builder().uri(path);
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let parts =
            RequestParts::from((parts, Default::default(), Default::default(), Scheme::HTTP));
        app.get_response(Request::from_parts(parts, poem::Body::empty()))
            .await
    }

    #[tokio::test]
    async fn the_page_answers_routes_and_files_but_no_missing_asset() {
        let app = Route::new()
            .nest("/admin", EmbeddedPage::new::<Assets>())
            .map_to_response();
        assert_eq!(
            get_with(&app, "/admin", &[]).await.header("location"),
            Some("/admin/")
        );
        for route in [
            "/admin/",
            "/admin/index.html",
            "/admin/orders/7",
            "/admin/schedules/night.eu",
        ] {
            let page = get_with(&app, route, &[]).await;
            assert_eq!(
                page.content_type(),
                Some("text/html; charset=utf-8"),
                "{route}"
            );
            assert_eq!(page.header("cache-control"), Some("no-cache"));
        }
        for missing in [
            "/admin/assets/old.js",
            "/admin/assets/old",
            "/admin/logo.png",
            "/admin/%2e%2e/x.js",
        ] {
            assert_eq!(
                get_with(&app, missing, &[]).await.status(),
                StatusCode::NOT_FOUND,
                "{missing}"
            );
        }
        let plain = get_with(&app, "/admin/assets/app-1.js", &[]).await;
        assert!(
            plain
                .header("cache-control")
                .is_some_and(|cache| cache.contains("immutable"))
        );
        let gzip = get_with(
            &app,
            "/admin/assets/app-1.js",
            &[("accept-encoding", "br, gzip")],
        )
        .await;
        assert_eq!(gzip.header("content-encoding"), Some("gzip"));
        assert_ne!(gzip.header("etag"), plain.header("etag"));
    }

    #[tokio::test]
    async fn nothing_outside_the_folder_and_nothing_hidden_is_served() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().join("static");
        std::fs::create_dir_all(root.join("sub/.git")).expect("folders");
        std::fs::write(dir.path().join("secret.txt"), "secret").expect("file");
        std::fs::write(root.join(".env"), "secret").expect("file");
        std::fs::write(root.join("sub/.git/config"), "secret").expect("file");
        std::fs::write(root.join("sub/a b.txt"), "hello").expect("file");
        std::os::unix::fs::symlink(dir.path().join("secret.txt"), root.join("link.txt"))
            .expect("link");
        std::os::unix::fs::symlink(root.join(".env"), root.join("env.txt")).expect("link");
        let app = Route::new()
            .nest("/static", StaticFiles::new(&root))
            .map_to_response();
        assert_eq!(
            get_with(&app, "/static/sub/a%20b.txt", &[]).await.status(),
            StatusCode::OK
        );
        for path in [
            "/static/",
            "/static/sub",
            "/static/sub/",
            "/static/none.txt",
            "/static/.env",
            "/static/%2eenv",
            "/static/sub/.git/config",
            "/static/link.txt",
            "/static/env.txt",
            "/static/../secret.txt",
            "/static/sub/../../secret.txt",
            "/static/%2e%2e/secret.txt",
            "/static/..%2fsecret.txt",
            "/static/%2fetc%2fpasswd",
            "/static//etc/passwd",
            "/static/sub/a%00.txt",
            "/static/%zz",
            "/static/sub/a%20b.txt/x",
        ] {
            assert_eq!(
                get_with(&app, path, &[]).await.status(),
                StatusCode::NOT_FOUND,
                "{path}"
            );
        }
    }

    #[tokio::test]
    async fn a_file_is_sent_whole_in_part_or_not_at_all() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("a.txt"), "0123456789").expect("file");
        let app = Route::new()
            .nest("/static", StaticFiles::new(dir.path()))
            .map_to_response();
        let whole = get_with(&app, "/static/a.txt", &[]).await;
        assert_eq!(
            whole.header("cache-control"),
            Some("public, max-age=2592000, immutable")
        );
        let etag = whole.header("etag").expect("tag").to_owned();
        let date = whole.header("last-modified").expect("date").to_owned();
        assert_eq!(
            whole.into_body().into_string().await.expect("text"),
            "0123456789"
        );

        for (pair, status) in [
            (("if-none-match", etag.as_str()), 304),
            (("if-modified-since", date.as_str()), 304),
            (("range", "bytes=10-"), 416),
        ] {
            assert_eq!(
                get_with(&app, "/static/a.txt", &[pair])
                    .await
                    .status()
                    .as_u16(),
                status,
                "{pair:?}"
            );
        }
        let part = get_with(&app, "/static/a.txt", &[("range", "bytes=2-4")]).await;
        assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
        assert_eq!(part.into_body().into_string().await.expect("text"), "234");
        let stale = [("range", "bytes=2-4"), ("if-range", "\"other\"")];
        assert_eq!(
            get_with(&app, "/static/a.txt", &stale).await.status(),
            StatusCode::OK
        );
    }

    #[test]
    fn ranges_follow_the_standard() {
        for (text, expected) in [
            ("bytes=0-0", WantedRange::Part(0..=0)),
            ("bytes=5-", WantedRange::Part(5..=9)),
            ("bytes=-3", WantedRange::Part(7..=9)),
            ("bytes=-30", WantedRange::Part(0..=9)),
            ("bytes=5-99", WantedRange::Part(5..=9)),
            ("bytes=10-", WantedRange::Nothing),
            ("bytes=-0", WantedRange::Nothing),
            ("bytes=4-2", WantedRange::All),
            ("bytes=0-1,3-4", WantedRange::All),
            ("lines=0-1", WantedRange::All),
            ("bytes=x-y", WantedRange::All),
        ] {
            assert_eq!(wanted_range(text, 10), expected, "{text}");
        }
        assert_eq!(wanted_range("bytes=0-", 0), WantedRange::Nothing);
    }
}
