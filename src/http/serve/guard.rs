//! A socket that gives up on a client that does not read, or hardly, and that closes politely.
//!
//! Invariants: each wait for the client to take bytes has a deadline, and so has the closing: what is read
//! and thrown away for it is bounded in time and in bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::http::pace::ClientPace;

/// After an early refusal the rest of a body is read and thrown away for this long, at most this
/// much: closing at once would reset the connection and the client might never see the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// A socket that gives up on a client that does not read, or hardly, and that closes politely.
pub(super) struct GuardedIo<S> {
    inner: S,
    pace: ClientPace,
    linger: Arc<AtomicBool>,
    closing: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> GuardedIo<S> {
    pub(super) fn new(inner: S, pace: ClientPace, linger: Arc<AtomicBool>) -> Self {
        Self {
            inner,
            pace,
            linger,
            closing: None,
        }
    }

    fn within_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        written: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(done) => {
                self.pace.moved(done.as_ref().map_or(0, written));
                Poll::Ready(done)
            }
            Poll::Pending => self.pace.poll_over(cx).map(|()| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client does not read its answer",
                ))
            }),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GuardedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.within_time(cx, polled, |written| *written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.within_time(cx, polled, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.within_time(cx, polled, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            let polled = Pin::new(&mut this.inner).poll_shutdown(cx);
            match this.within_time(cx, polled, |()| 0) {
                Poll::Ready(Ok(())) if this.linger.load(Ordering::Acquire) => {
                    this.closing = Some((Box::pin(sleep(LINGER)), LINGER_BYTES_MAX));
                }
                other => return other,
            }
        }
        let Some((deadline, bytes_left)) = &mut this.closing else {
            return Poll::Ready(Ok(()));
        };
        let mut scratch = [0_u8; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && *bytes_left > 0 => {
                    *bytes_left = bytes_left.saturating_sub(buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return deadline.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
