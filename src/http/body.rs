//! Request bodies under a size limit and a deadline for each piece, inflated where they were gzipped;
//! and how long the body of a request or of an answer is.
//!
//! Invariants: no code sees more bytes than the limit, whatever `Content-Length` claims and whatever a
//! gzipped body inflates to: it is inflated as it is read, a few kilobytes at a time, and counted before
//! and after; what is kept is taken from the client's share of all bodies in memory; a client that stops
//! sending, or hardly sends, is cut off; the faults travel as [`BodyFault`] inside the `io::Error` of the
//! stream, so that the reader can answer 413, 408, 400, 429 or 503.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use poem::Response;
use poem::http::StatusCode;
use poem::http::header::{self, HeaderMap, HeaderValue};
use tokio::io::BufReader;

use super::connections::RequestTurn;
use super::pace::ClientPace;
use super::problem::Problem;
use super::shares::{Share, ShareRefused};
use crate::check;

/// Why a body could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// More bytes than allowed.
    #[error("the body is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit that it passed.
        bytes_max: u64,
    },
    /// The next piece did not come in time, or too little came for as long.
    #[error("the body came too slowly, or not at all, for {}", display(.wait))]
    TooSlow {
        /// How long was waited.
        wait: Duration,
    },
    /// Not the gzip that it is said to be, or only its beginning.
    #[error("the body is not the gzip that its Content-Encoding names, or it is cut off")]
    NotGzip,
    /// Too many bytes of bodies are held already.
    #[error("{0}")]
    Refused(ShareRefused),
}

fn display(wait: &Duration) -> String {
    format!("{:.1} s", wait.as_secs_f64())
}

impl BodyFault {
    /// The answer to a request with such a body.
    pub fn problem(self) -> Problem {
        let (status, code) = match self {
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::TooSlow { .. } => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::NotGzip => (StatusCode::BAD_REQUEST, "malformed_gzip"),
            Self::Refused(refused) => return refused.into(),
        };
        Problem::new(status, code, format!("{self}."))
    }
}

/// The fault of ours that is inside `error`, if one is.
fn fault_in(error: &io::Error) -> Option<BodyFault> {
    let mut source: Option<&(dyn std::error::Error + 'static)> =
        error.get_ref().map(|inner| inner as _);
    while let Some(inner) = source {
        if let Some(fault) = inner.downcast_ref::<BodyFault>() {
            return Some(*fault);
        }
        // An `io::Error` around another hides its inner error from `source()`.
        source = match inner.downcast_ref::<io::Error>() {
            Some(nested) => nested.get_ref().map(|inner| inner as _),
            None => inner.source(),
        };
    }
    None
}

/// The answer to a request whose body stream ended in `error`: 413, 408, or 400 when it is no gzip, or
/// the client went away or broke the framing.
pub fn read_problem(error: &io::Error) -> Problem {
    match fault_in(error) {
        Some(fault) => fault.problem(),
        None => Problem::new(
            StatusCode::BAD_REQUEST,
            "incomplete_body",
            "The body ended before it was complete.",
        ),
    }
}

/// Whether the body of a request is gzipped; 415 where it is coded in another way (RFC 9110, 15.5.16).
pub(super) fn is_gzipped(headers: &HeaderMap) -> Result<bool, Problem> {
    let mut codings = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .flat_map(|line| line.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"));
    let Some(first) = codings.next() else {
        return Ok(false);
    };
    let is_gzip = ["gzip", "x-gzip"].map(|name| first.eq_ignore_ascii_case(name));
    let Some(other) = codings.next().or((is_gzip == [false; 2]).then_some(first)) else {
        return Ok(true);
    };
    let detail = format!(
        "Send the body as it is, or gzipped once with `Content-Encoding: gzip`; {} is not read.",
        check::shortened(other)
    );
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_content_encoding",
        detail,
    )
    .header(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip")))
}

/// What `Content-Length` says.
pub(super) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// The exact length of an answer's body, if it is known.
pub(super) fn body_length(response: &mut Response) -> Option<u64> {
    let body: BoxBody<Bytes, io::Error> = response.take_body().into();
    let length = body.size_hint().exact();
    response.set_body(poem::Body::from(body));
    length.or_else(|| declared_length(response.headers()))
}

/// The content of a gzipped body, inflated as it is read.
pub(super) fn inflated(body: BoxBody<Bytes, io::Error>) -> BoxBody<Bytes, io::Error> {
    let gzipped = BufReader::new(poem::Body::from(body).into_async_read());
    let mut decoder = GzipDecoder::new(gzipped);
    // Gzipped files put one after the other are a gzipped file.
    decoder.multiple_members(true);
    let content: BoxBody<Bytes, io::Error> = poem::Body::from_async_read(decoder).into();
    content
        .map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::UnexpectedEof
                if fault_in(&error).is_none() =>
            {
                io::Error::other(BodyFault::NotGzip)
            }
            _ => error,
        })
        .boxed()
}

/// The whole body, or the answer to give instead.
pub async fn read(body: &mut poem::RequestBody) -> Result<Bytes, Problem> {
    let body = body.take().map_err(Problem::internal)?;
    let body: BoxBody<Bytes, io::Error> = body.into();
    match body.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(read_problem(&error)),
    }
}

/// Tells the time limit of an import that it goes on, also where the work no longer reads the body.
#[derive(Clone, Debug, Default)]
pub struct Moved(Arc<AtomicU64>);

impl Moved {
    /// Something was done.
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often; only a change means anything.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body that counts its bytes and times its pauses.
pub(super) struct GuardedBody {
    inner: BoxBody<Bytes, io::Error>,
    bytes_max: u64,
    seen: u64,
    pace: ClientPace,
    /// What the request holds of the bytes that all requests may hold; not for what is read piece by
    /// piece and not kept.
    share: Option<HeldBodyBytes>,
    /// Told when the whole body is there.
    turn: Option<Arc<RequestTurn>>,
    /// Raised with each piece; lets the request's own time limit see that something moves.
    progress: Option<Moved>,
}

/// The bytes of a body, held until the request is over.
pub(super) type HeldBodyBytes = Arc<Mutex<Share>>;

impl GuardedBody {
    pub(super) fn new(
        inner: BoxBody<Bytes, io::Error>,
        bytes_max: u64,
        pace: ClientPace,
        share: Option<HeldBodyBytes>,
        progress: Option<Moved>,
    ) -> Self {
        Self {
            inner,
            bytes_max,
            seen: 0,
            pace,
            share,
            turn: None,
            progress,
        }
    }

    /// Tells the connection's seat when the body was received whole.
    pub(super) fn telling(mut self, turn: Option<Arc<RequestTurn>>) -> Self {
        self.turn = turn;
        self
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.pace.moved(frame.data_ref().map_or(0, Bytes::len));
                if let Some(data) = frame.data_ref() {
                    let fault = |fault| Poll::Ready(Some(Err(io::Error::other(fault))));
                    let bytes = data.len() as u64;
                    self.seen = self.seen.saturating_add(bytes);
                    if self.seen > self.bytes_max {
                        let bytes_max = self.bytes_max;
                        return fault(BodyFault::TooLarge { bytes_max });
                    }
                    let share = self.share.as_ref();
                    if let Some(Err(refused)) = share.map(|share| share.lock().grow(bytes)) {
                        return fault(BodyFault::Refused(refused));
                    }
                }
                if let Some(progress) = &self.progress {
                    progress.note();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                if let Some(turn) = &self.turn {
                    turn.received();
                }
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Pending => {
                let wait = self.pace.wait();
                let late = |()| Some(Err(io::Error::other(BodyFault::TooSlow { wait })));
                self.pace.poll_over(cx).map(late)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn pace(wait: Duration) -> ClientPace {
        ClientPace::new(wait, 1)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).expect("written");
        encoder.finish().expect("a whole file")
    }

    /// The content of a gzipped body that comes in pieces of seven bytes, in at most `bytes_max`.
    async fn content(gzipped: &[u8], bytes_max: u64) -> Result<Bytes, Problem> {
        let pieces: Vec<Result<Bytes, io::Error>> = gzipped
            .chunks(7)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let body = poem::Body::from_bytes_stream(futures_util::stream::iter(pieces));
        let wait = Duration::from_secs(1);
        let content = GuardedBody::new(inflated(body.into()), bytes_max, pace(wait), None, None);
        match content.collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) => Err(read_problem(&error)),
        }
    }

    #[tokio::test]
    async fn a_gzipped_body_is_inflated_whole_or_not_at_all() {
        let text = "杯子 ".repeat(5_000);
        let whole = gzip(text.as_bytes());
        assert_eq!(content(&whole, 1 << 20).await.expect("gzip"), text);
        let twice = [whole.clone(), gzip(b"and more")].concat();
        let both = content(&twice, 1 << 20).await.expect("two files");
        assert_eq!(both, format!("{text}and more"));
        assert_eq!(content(&gzip(b""), 0).await.expect("nothing"), "");

        let mut damaged = whole.clone();
        let at = damaged.len() - 6; // within the check sum
        damaged[at] ^= 1;
        let padded = [whole.as_slice(), b"trailing"].concat();
        for bad in [
            b"{}".as_slice(),
            &whole[..whole.len() - 1],
            &whole[..12],
            &damaged,
            &padded,
        ] {
            let problem = content(bad, 1 << 20).await.expect_err("no gzip");
            assert_eq!(problem.code(), "malformed_gzip");
        }
    }

    #[tokio::test]
    async fn what_a_small_body_inflates_to_is_counted_and_never_held() {
        let bomb = gzip(&vec![0; 32 << 20]);
        assert!(bomb.len() < 64 << 10);
        let problem = content(&bomb, 100_000).await.expect_err("too large");
        assert_eq!(problem.code(), "body_too_large");
        // A reader that takes piece after piece holds one piece at a time.
        let mut pieces = inflated(poem::Body::from(bomb).into());
        let mut seen = 0;
        while let Some(frame) = pieces.frame().await {
            let piece = frame.expect("gzip").into_data().expect("data");
            assert!(piece.len() <= 64 << 10, "{} bytes at once", piece.len());
            seen += piece.len();
        }
        assert_eq!(seen, 32 << 20);
    }

    #[test]
    fn only_gzip_is_read_and_the_answer_says_so() {
        let read = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(line));
            }
            is_gzipped(&headers).map_err(|problem| problem.code().to_owned())
        };
        for plain in [&[][..], &["identity"], &[""], &["identity, "]] {
            assert_eq!(read(plain), Ok(false), "{plain:?}");
        }
        for gzip in [&["gzip"][..], &["GZip"], &["x-gzip"], &["identity", "gzip"]] {
            assert_eq!(read(gzip), Ok(true), "{gzip:?}");
        }
        for other in [
            &["br"][..],
            &["deflate"],
            &["gzip, gzip"],
            &["gzip", "br"],
            &["zstd,gzip"],
        ] {
            let refused = Err("unsupported_content_encoding".to_owned());
            assert_eq!(read(other), refused, "{other:?}");
        }
    }

    fn body(pieces: &[&'static str]) -> BoxBody<Bytes, io::Error> {
        let pieces: Vec<Result<&'static [u8], io::Error>> =
            pieces.iter().map(|piece| Ok(piece.as_bytes())).collect();
        poem::Body::from_bytes_stream(futures_util::stream::iter(pieces)).into()
    }

    #[tokio::test]
    async fn bytes_are_counted_over_all_pieces() {
        let wait = Duration::from_secs(1);
        let fits = GuardedBody::new(body(&["abc", "de"]), 5, pace(wait), None, None);
        assert_eq!(fits.collect().await.expect("fits").to_bytes(), "abcde");
        let large = GuardedBody::new(body(&["abc", "def"]), 5, pace(wait), None, None);
        let error = large.collect().await.expect_err("too large");
        assert_eq!(read_problem(&error).status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn silence_ends_in_a_timeout_even_inside_a_reader() {
        use tokio::io::AsyncReadExt;
        let silent = poem::Body::from_bytes_stream(futures_util::stream::pending::<
            Result<Bytes, io::Error>,
        >());
        let guarded = GuardedBody::new(
            silent.into(),
            5,
            pace(Duration::from_millis(10)),
            None,
            None,
        );
        let mut reader = poem::Body::from(guarded.boxed()).into_async_read();
        let error = reader
            .read_to_end(&mut Vec::new())
            .await
            .expect_err("silent");
        assert_eq!(read_problem(&error).code(), "body_timeout");
    }
}
