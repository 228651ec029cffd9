//! The bytes of a request head as they came over HTTP/1.1, and what hyper answers to one by itself.
//!
//! Invariants: no more of a head is kept than the settings allow a head to be, and nothing of a body; what
//! hyper answers on its own behalf never reaches the client.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use poem::http::header::{self, HeaderMap};
use poem::http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Of an answer in HTTP/1.1 that says no: what hyper writes by itself begins like this.
const REFUSAL: &[u8] = b"HTTP/1.1 4";
/// Longest answer that hyper writes by itself.
const REFUSAL_BYTES_MAX: usize = 512;

/// The bytes of the request head that is being read.
///
/// hyper drops `Content-Length` when there is a `Transfer-Encoding`, so only the bytes themselves
/// still tell that both were sent. And to a head that it can't take it answers by itself, with a bare
/// status: that answer is kept here instead of being sent.
#[derive(Debug)]
pub(super) struct RecordedHead {
    bytes: Vec<u8>,
    bytes_max: usize,
    in_body: bool,
    refusal: Vec<u8>,
}

impl RecordedHead {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            bytes_max,
            in_body: false,
            refusal: Vec::new(),
        }
    }

    /// Whether hyper writes this on its own behalf: in the middle of a head, and without what each
    /// answer of the application has. It is kept then.
    fn keeps(&mut self, written: &[u8]) -> bool {
        let is_own = !self.in_body
            && !self.bytes.is_empty()
            && written.starts_with(REFUSAL)
            && written.len() <= REFUSAL_BYTES_MAX
            && written.ends_with(b"\r\n\r\n")
            && !written.windows(13).any(|window| window == b"x-request-id:");
        if is_own {
            self.refusal.extend_from_slice(written);
        }
        is_own
    }

    /// What hyper wanted to answer, to which method, and its date.
    pub(super) fn refused(&self) -> Option<(StatusCode, Method, String)> {
        let text = std::str::from_utf8(&self.refusal).ok()?;
        let mut status = StatusCode::from_bytes(text.get(9..12)?.as_bytes()).ok()?;
        let date = text.lines().find_map(|line| line.strip_prefix("date: "));
        let mut line = self.bytes.splitn(2, |byte| *byte == b'\n');
        let first = line.next().unwrap_or_default();
        if status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE && line.next().is_none() {
            // Not even its first line came to an end.
            status = StatusCode::URI_TOO_LONG;
        }
        let word = first.split(|byte| *byte == b' ').next().unwrap_or_default();
        let method = match Method::from_bytes(word) {
            Ok(Method::HEAD) => Method::HEAD,
            // Whatever it is, it is refused alike.
            Ok(_) | Err(_) => Method::GET,
        };
        Some((status, method, date.unwrap_or_default().to_owned()))
    }

    fn record(&mut self, read: &[u8]) {
        if !self.in_body {
            let room = self.bytes_max.saturating_sub(self.bytes.len());
            self.bytes.extend_from_slice(&read[..read.len().min(room)]);
        }
    }

    /// The head is complete. Tells whether a chunked request also had a `Content-Length`.
    pub(super) fn begin_body(&mut self, headers: &HeaderMap) -> bool {
        let both =
            headers.contains_key(header::TRANSFER_ENCODING) && has_content_length(&self.bytes);
        self.bytes.clear();
        self.in_body = true;
        both
    }

    /// The answer is on its way; what is read from now on is the next head.
    pub(super) fn begin_head(&mut self) {
        self.in_body = false;
    }
}

/// Whether the head that has the `Transfer-Encoding` line has a `Content-Length` line, too.
fn has_content_length(bytes: &[u8]) -> bool {
    let find = |haystack: &[u8], needle: &[u8]| {
        haystack
            .windows(needle.len())
            .position(|window| window.eq_ignore_ascii_case(needle))
    };
    let Some(at) = find(bytes, b"\ntransfer-encoding") else {
        return false; // it was read together with an earlier request; the connection closes anyway
    };
    let start = bytes[..at]
        .windows(4)
        .rposition(|window| window == b"\r\n\r\n")
        .unwrap_or(0);
    let end = find(&bytes[at..], b"\r\n\r\n").map_or(bytes.len(), |length| at + length);
    find(&bytes[start..end], b"\ncontent-length").is_some()
}

/// Lets [`RecordedHead`] see what is read, and what hyper writes by itself.
pub(super) struct RecordedIo<S> {
    pub(super) inner: S,
    pub(super) head: Arc<Mutex<RecordedHead>>,
}

impl<S> RecordedIo<S> {
    fn keeps(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(REFUSAL) && self.head.lock().keeps(bytes)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RecordedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() {
            self.head.lock().record(&buf.filled()[before..]);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RecordedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.keeps(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [part] = parts
            && self.keeps(part)
        {
            return Poll::Ready(Ok(part.len()));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.head.lock().refusal.is_empty() {
            return Poll::Ready(Ok(())); // the answer is still to come
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chunked_requests_own_head_counts() {
        let head = |text: &str| has_content_length(text.as_bytes());
        assert!(head(
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        ));
        assert!(head(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n"
        ));
        assert!(!head(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\ncontent-length: 3"
        ));
        assert!(!head(
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        ));
    }
}
