//! Answers on their way: compressed where that pays, and counted for as long as they are in memory.
//!
//! Invariants: the bytes of an answer that was made for one request stay in its client's share until the
//! last of them is sent or dropped, however slowly the client reads; what is there anyway (files of the
//! page) and what is read piece by piece (files on disk) is not counted, what compresses it is; an answer
//! to a write is never taken back for want of room, because what it tells has happened.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use poem::Response;
use poem::http::header::HeaderValue;
use poem::http::{Method, Version};

use super::body::body_length;
use super::compress;
use super::problem::Problem;
use super::shares::{Resource, Share, ShareRefused, Shares};

/// Smaller answers are not counted: connections are bounded, and each has one on its way.
pub(super) const COUNTED_BYTES_MIN: u64 = 16 * 1_024;
/// What a stream of HTTP/2 counts for whatever it asks: a connection has many on their way.
pub(super) const STREAM_BYTES: u64 = 4 * 1_024;
/// What compressing an answer piece by piece takes.
const COMPRESSOR_BYTES: u64 = 1_048_576;
/// Larger answers are compressed piece by piece, as they are sent.
const COMPRESSED_AT_ONCE_MAX: u64 = 1_048_576;

/// Mark of an answer whose bytes were not made for it.
#[derive(Clone, Copy)]
pub(super) struct NotMade;

/// What must be known of the request.
pub(super) struct AnswerTerms<'a> {
    pub(super) method: &'a Method,
    pub(super) version: Version,
    pub(super) accept_encoding: Option<&'a HeaderValue>,
}

/// Where its bytes are counted, and whose they are.
#[derive(Clone, Copy)]
pub(super) struct AnswerRoom<'a> {
    pub(super) shares: &'a Shares,
    pub(super) client: IpAddr,
}

impl AnswerRoom<'_> {
    /// Takes more; most answers take nothing.
    fn grow(self, share: &mut Option<Share>, bytes: u64) -> Result<(), ShareRefused> {
        let nothing = || self.shares.nothing(Resource::AnswerBytes, self.client);
        share.get_or_insert_with(nothing).grow(bytes)
    }
}

impl AnswerTerms<'_> {
    /// What a stream takes of its client's share before it is answered.
    pub(super) fn begin(
        &self,
        room: AnswerRoom<'_>,
        share: &mut Option<Share>,
    ) -> Result<(), ShareRefused> {
        match self.version {
            Version::HTTP_2 => room.grow(share, STREAM_BYTES),
            _ => Ok(()),
        }
    }

    fn must_be_told(&self) -> bool {
        !matches!(*self.method, Method::GET | Method::HEAD)
    }
}

/// Makes an answer ready to be sent; its bytes go into `share`.
pub(super) async fn ready(
    mut response: Response,
    asked: &AnswerTerms<'_>,
    (room, mut share): (AnswerRoom<'_>, Option<Share>),
    compress_bytes_min: usize,
) -> Result<Response, Problem> {
    let was_made = response.data::<NotMade>().is_none();
    let length = body_length(&mut response);
    // Tells whether it is held now: what must be told goes out also where there is no room.
    let hold = |share: &mut Option<Share>, bytes| match room.grow(share, bytes) {
        Ok(()) => Ok(true),
        Err(_) if asked.must_be_told() => Ok(false),
        Err(refused) => Err(refused),
    };
    let mut counted = length.filter(|bytes| {
        was_made && (*bytes >= COUNTED_BYTES_MIN || asked.version == Version::HTTP_2)
    });
    if let Some(bytes) = counted
        && !hold(&mut share, bytes)?
    {
        counted = None;
    }
    let (mut response, is_compressed) =
        compress::apply(response, asked.accept_encoding, compress_bytes_min);
    let at_once = was_made && length.is_some_and(|bytes| bytes <= COMPRESSED_AT_ONCE_MAX);
    let is_streamed = is_compressed && !at_once;
    if !is_streamed && (is_compressed || counted.is_some()) {
        let body = response.take_body().into_bytes().await;
        let bytes = body.map_err(Problem::internal)?;
        if let (Some(before), Some(share)) = (counted, &mut share) {
            share.shrink(before.saturating_sub(bytes.len() as u64));
        }
        response.set_body(match share {
            Some(share) if !share.is_empty() && !bytes.is_empty() => {
                Bytes::from_owner(HeldAnswerBytes {
                    bytes,
                    _share: share,
                })
            }
            _ => bytes,
        });
        return Ok(response);
    }
    if is_streamed {
        hold(&mut share, COMPRESSOR_BYTES)?;
    }
    if let Some(share) = share
        && !share.is_empty()
    {
        let inner: BoxBody<Bytes, io::Error> = response.take_body().into();
        let held = HeldAnswerBody {
            inner,
            _share: share,
        };
        response.set_body(poem::Body::from(held.boxed()));
    }
    Ok(response)
}

/// Bytes that are counted until the last reference to them is gone.
struct HeldAnswerBytes {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for HeldAnswerBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body that is counted until it is sent: one that is compressed meanwhile, or a stream's.
struct HeldAnswerBody {
    inner: BoxBody<Bytes, io::Error>,
    _share: Share,
}

impl HttpBody for HeldAnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
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
    use crate::config::Settings;
    use crate::monitor::Metrics;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn shares() -> Shares {
        let mut settings = Settings::default();
        settings.server.answers_bytes_max = 1_000_000;
        settings.server.answers_bytes_small = 10_000;
        Shares::new(&settings, &Metrics::new().expect("metrics"))
    }

    async fn made(
        shares: &Shares,
        (method, version): (Method, Version),
        bytes: usize,
        coding: Option<&'static str>,
    ) -> Result<Response, Problem> {
        let coding = coding.map(HeaderValue::from_static);
        let asked = AnswerTerms {
            method: &method,
            version,
            accept_encoding: coding.as_ref(),
        };
        let room = AnswerRoom {
            shares,
            client: CLIENT,
        };
        let mut share = None;
        asked.begin(room, &mut share)?;
        let response = Response::builder()
            .content_type("application/json")
            .body(vec![b'a'; bytes]);
        ready(response, &asked, (room, share), 1_024).await
    }

    /// What the client may still have.
    fn is_free(shares: &Shares, bytes: u64) -> bool {
        shares.take(Resource::AnswerBytes, CLIENT, bytes).is_ok()
    }

    const PLAIN: (Method, Version) = (Method::GET, Version::HTTP_11);

    #[tokio::test]
    async fn an_answer_counts_until_its_last_byte_is_gone() {
        let shares = shares();
        let mut answer = made(&shares, PLAIN, 300_000, None).await.expect("room");
        assert!(!is_free(&shares, 100_000));
        let body = answer.take_body().into_bytes().await.expect("in memory");
        drop(answer);
        let tail = body.slice(299_999..);
        drop(body);
        assert!(!is_free(&shares, 100_000), "a byte of it is on its way");
        drop(tail);
        assert!(is_free(&shares, 300_000));
    }

    #[tokio::test]
    async fn a_read_is_refused_where_there_is_no_room_and_what_was_written_is_told() {
        let shares = shares();
        let _held = made(&shares, PLAIN, 300_000, None).await.expect("room");
        let refused = made(&shares, PLAIN, 300_000, None).await.err();
        assert_eq!(refused.map(|problem| problem.code()), Some("client_busy"));
        assert!(
            made(&shares, PLAIN, 10_000, None).await.is_ok(),
            "not counted"
        );
        let write = (Method::POST, Version::HTTP_11);
        assert!(made(&shares, write, 300_000, None).await.is_ok());
    }

    #[tokio::test]
    async fn a_compressed_answer_counts_for_what_is_sent() {
        let shares = shares();
        for coding in ["gzip", "br", "zstd"] {
            let answer = made(&shares, PLAIN, 300_000, Some(coding)).await;
            let mut answer = answer.expect("room");
            assert_eq!(answer.header("content-encoding"), Some(coding));
            assert!(is_free(&shares, 350_000), "it is small now");
            assert!(!is_free(&shares, 375_000), "and not nothing");
            let sent = answer.take_body().into_bytes().await.expect("in memory");
            assert!(sent.len() < 10_000);
        }
    }

    #[tokio::test]
    async fn each_stream_of_a_connection_counts() {
        let shares = shares();
        let stream = (Method::GET, Version::HTTP_2);
        let mut streams = Vec::new();
        while let Ok(answer) = made(&shares, stream.clone(), 100, None).await {
            streams.push(answer);
            assert!(streams.len() < 1_000, "without end");
        }
        assert!(streams.len() > 50, "{}", streams.len());
        streams.clear();
        assert!(made(&shares, stream, 100, None).await.is_ok());
    }

    #[tokio::test]
    async fn a_stream_that_brings_a_file_counts_as_well() {
        let shares = shares();
        let asked = AnswerTerms {
            method: &Method::GET,
            version: Version::HTTP_2,
            accept_encoding: None,
        };
        let mut streams = Vec::new();
        loop {
            let room = AnswerRoom {
                shares: &shares,
                client: CLIENT,
            };
            let mut share = None;
            if asked.begin(room, &mut share).is_err() {
                break;
            }
            let mut file = Response::builder().body("piece by piece");
            file.extensions_mut().insert(NotMade);
            let file = ready(file, &asked, (room, share), 1_024).await;
            streams.push(file.expect("room"));
            assert!(streams.len() < 1_000, "without end");
        }
        streams.clear();
        assert!(is_free(&shares, 300_000));
    }
}
