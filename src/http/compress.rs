//! Compression of answers: which coding the client wants, and whether it pays.
//!
//! Invariants: only bodies of a compressible type and of known, sufficient size; never what has a
//! coding already, is partial, or forbids it; a strong tag becomes weak, because the bytes differ.

use poem::http::StatusCode;
use poem::http::header::{self, HeaderMap, HeaderValue};
use poem::web::{Compress, CompressionAlgo, CompressionLevel};
use poem::{IntoResponse, Response};

use super::body::body_length;

/// Codings we can produce, the cheapest for its result first.
const CODINGS: [(&str, CompressionAlgo); 3] = [
    ("zstd", CompressionAlgo::ZSTD),
    ("br", CompressionAlgo::BR),
    ("gzip", CompressionAlgo::GZIP),
];

/// Compresses `response` if the client wants it and it pays; tells whether it did.
pub(super) fn apply(
    mut response: Response,
    accepted: Option<&HeaderValue>,
    bytes_min: usize,
) -> (Response, bool) {
    if !is_candidate(&mut response, bytes_min) {
        return (response, false);
    }
    response
        .headers_mut()
        .append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let wanted = accepted
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let Some(algo) = choose(wanted) else {
        return (response, false);
    };
    weaken_etag(response.headers_mut());
    let compressed = Compress::new(response, algo)
        .with_quality(CompressionLevel::Fastest)
        .into_response();
    (compressed, true)
}

fn is_candidate(response: &mut Response, bytes_min: usize) -> bool {
    let headers = response.headers();
    response.status() != StatusCode::PARTIAL_CONTENT
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.get(header::CACHE_CONTROL).is_some_and(|value| {
            value
                .as_bytes()
                .windows(12)
                .any(|part| part == b"no-transform")
        })
        && response.content_type().is_some_and(is_compressible)
        && body_length(response).is_some_and(|length| length >= bytes_min as u64)
}

fn is_compressible(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.starts_with("text/")
        || essence.ends_with("+json")
        || essence.ends_with("+xml")
        || matches!(
            essence,
            "application/json"
                | "application/javascript"
                | "application/xml"
                | "application/yaml"
                | "application/wasm"
        )
}

/// The coding with the highest weight that we can produce; `None` to send it as it is.
fn choose(accept_encoding: &str) -> Option<CompressionAlgo> {
    let mut best: Option<(f32, CompressionAlgo)> = None;
    for (name, algo) in CODINGS {
        let quality = quality_of(accept_encoding, name);
        if quality > 0.0 && best.is_none_or(|(other, _)| quality > other) {
            best = Some((quality, algo));
        }
    }
    let (quality, algo) = best?;
    // `identity` competes only where the client ranks it explicitly.
    let identity = explicit_quality(accept_encoding, "identity").unwrap_or(0.0);
    (quality >= identity).then_some(algo)
}

/// Whether a client that sends `accept_encoding` can read `coding`.
pub(super) fn accepts(accept_encoding: Option<&HeaderValue>, coding: &str) -> bool {
    let text = accept_encoding
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    quality_of(text, coding) > 0.0
}

fn quality_of(accept_encoding: &str, coding: &str) -> f32 {
    explicit_quality(accept_encoding, coding)
        .or_else(|| explicit_quality(accept_encoding, "*"))
        .unwrap_or(0.0)
}

fn explicit_quality(accept_encoding: &str, coding: &str) -> Option<f32> {
    accept_encoding.split(',').find_map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case(coding) {
            return None;
        }
        let weight = parts.find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case("q")
                .then(|| value.trim().parse().unwrap_or(0.0))
        });
        Some(weight.unwrap_or(1.0))
    })
}

fn weaken_etag(headers: &mut HeaderMap) {
    let weak = headers.get(header::ETAG).and_then(|tag| {
        let text = tag.to_str().ok()?;
        (!text.starts_with("W/")).then(|| HeaderValue::from_str(&format!("W/{text}")).ok())?
    });
    if let Some(weak) = weak {
        headers.insert(header::ETAG, weak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_weights_decide() {
        for (accept, expected) in [
            ("", None),
            ("identity", None),
            ("gzip", Some(CompressionAlgo::GZIP)),
            ("gzip, br", Some(CompressionAlgo::BR)),
            ("gzip, deflate, br, zstd", Some(CompressionAlgo::ZSTD)),
            ("gzip;q=1.0, br;q=0.5", Some(CompressionAlgo::GZIP)),
            ("br;q=0, gzip;q=0", None),
            ("*", Some(CompressionAlgo::ZSTD)),
            ("*;q=0", None),
            ("zstd;q=0, *", Some(CompressionAlgo::BR)),
            ("GZIP ; Q=0.3", Some(CompressionAlgo::GZIP)),
            ("gzip;q=nonsense", None),
            ("identity;q=1, gzip;q=0.5", None),
        ] {
            assert_eq!(choose(accept), expected, "{accept}");
        }
    }

    #[test]
    fn small_partial_coded_or_opaque_answers_stay_as_they_are() {
        let answer = |content_type: &str, size: usize| {
            Response::builder()
                .content_type(content_type)
                .body(vec![b'a'; size])
        };
        let gzip = HeaderValue::from_static("gzip");
        let coded = |response: Response| {
            let (response, is_compressed) = apply(response, Some(&gzip), 100);
            assert_eq!(is_compressed, response.header("content-encoding").is_some());
            response.headers().contains_key(header::CONTENT_ENCODING)
        };
        assert!(coded(answer("application/json", 100)));
        assert!(coded(answer(
            "application/problem+json; charset=utf-8",
            100
        )));
        assert!(!coded(answer("application/json", 99)));
        assert!(!coded(answer("image/png", 1_000)));
        let mut partial = answer("text/plain", 1_000);
        partial.set_status(StatusCode::PARTIAL_CONTENT);
        assert!(!coded(partial));
        let mut ready = answer("text/css", 1_000);
        ready.headers_mut().insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, no-transform"),
        );
        assert!(!coded(ready));
    }

    #[test]
    fn a_compressed_answer_varies_and_weakens_its_tag() {
        let response = Response::builder()
            .content_type("application/json")
            .header("etag", "\"x\"")
            .body(vec![b'a'; 1_000]);
        let (response, _) = apply(response, Some(&HeaderValue::from_static("br")), 100);
        assert_eq!(response.header("etag"), Some("W/\"x\""));
        assert_eq!(response.header("vary"), Some("Accept-Encoding"));
        assert_eq!(response.header("content-encoding"), Some("br"));
    }
}
