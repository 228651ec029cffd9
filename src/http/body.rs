//! Request bodies under a size limit and a deadline for each piece.
//!
//! Invariants: no code sees more bytes than the limit, whatever `Content-Length` claims; a client
//! that stops sending is cut off; both faults travel as [`BodyFault`] inside the `io::Error` of the
//! stream, so that whoever reads it can answer 413 or 408.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use poem::http::StatusCode;
use tokio::time::{Instant, Sleep};

use super::problem::Problem;

/// Why a body could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// More bytes than allowed.
    #[error("the body is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit that it passed.
        bytes_max: u64,
    },
    /// The next piece did not come in time.
    #[error("no byte of the body came for {}", display(.wait))]
    TooSlow {
        /// How long was waited.
        wait: Duration,
    },
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
        };
        Problem::new(status, code, format!("{self}."))
    }
}

/// The answer to a request whose body stream ended in `error`: 413, 408, or 400 when the client
/// went away or broke the framing.
pub fn read_problem(error: &io::Error) -> Problem {
    let mut source: Option<&(dyn std::error::Error + 'static)> =
        error.get_ref().map(|inner| inner as _);
    while let Some(inner) = source {
        if let Some(fault) = inner.downcast_ref::<BodyFault>() {
            return fault.problem();
        }
        // An `io::Error` around another hides its inner error from `source()`.
        source = match inner.downcast_ref::<io::Error>() {
            Some(nested) => nested.get_ref().map(|inner| inner as _),
            None => inner.source(),
        };
    }
    Problem::new(
        StatusCode::BAD_REQUEST,
        "incomplete_body",
        "The body ended before it was complete.",
    )
}

/// The whole body, or the answer to give instead.
pub async fn read(body: &mut poem::RequestBody) -> Result<Bytes, Problem> {
    use http_body_util::BodyExt;
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
    wait: Duration,
    /// Runs only while the client keeps us waiting.
    timer: Option<Pin<Box<Sleep>>>,
    /// Raised with each piece; lets the request's own time limit see that something moves.
    progress: Option<Moved>,
}

impl GuardedBody {
    pub(super) fn new(
        inner: BoxBody<Bytes, io::Error>,
        bytes_max: u64,
        wait: Duration,
        progress: Option<Moved>,
    ) -> Self {
        Self {
            inner,
            bytes_max,
            seen: 0,
            wait,
            timer: None,
            progress,
        }
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
                self.timer = None;
                if let Some(data) = frame.data_ref() {
                    self.seen = self.seen.saturating_add(data.len() as u64);
                    if self.seen > self.bytes_max {
                        let bytes_max = self.bytes_max;
                        return Poll::Ready(Some(Err(io::Error::other(BodyFault::TooLarge {
                            bytes_max,
                        }))));
                    }
                }
                if let Some(progress) = &self.progress {
                    progress.note();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other),
            Poll::Pending => {
                let wait = self.wait;
                let timer = self.timer.get_or_insert_with(|| {
                    Box::pin(tokio::time::sleep_until(Instant::now() + wait))
                });
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        Poll::Ready(Some(Err(io::Error::other(BodyFault::TooSlow { wait }))))
                    }
                    Poll::Pending => Poll::Pending,
                }
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
    use http_body_util::BodyExt;

    fn body(pieces: &[&'static str]) -> BoxBody<Bytes, io::Error> {
        let pieces: Vec<Result<&'static [u8], io::Error>> =
            pieces.iter().map(|piece| Ok(piece.as_bytes())).collect();
        poem::Body::from_bytes_stream(futures_util::stream::iter(pieces)).into()
    }

    #[tokio::test]
    async fn bytes_are_counted_over_all_pieces() {
        let wait = Duration::from_secs(1);
        let fits = GuardedBody::new(body(&["abc", "de"]), 5, wait, None);
        assert_eq!(fits.collect().await.expect("fits").to_bytes(), "abcde");
        let large = GuardedBody::new(body(&["abc", "def"]), 5, wait, None);
        let error = large.collect().await.expect_err("too large");
        assert_eq!(read_problem(&error).status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn silence_ends_in_a_timeout_even_inside_a_reader() {
        use tokio::io::AsyncReadExt;
        let silent = poem::Body::from_bytes_stream(futures_util::stream::pending::<
            Result<Bytes, io::Error>,
        >());
        let guarded = GuardedBody::new(silent.into(), 5, Duration::from_millis(10), None);
        let mut reader = poem::Body::from(guarded.boxed()).into_async_read();
        let error = reader
            .read_to_end(&mut Vec::new())
            .await
            .expect_err("silent");
        assert_eq!(read_problem(&error).code(), "body_timeout");
    }
}
