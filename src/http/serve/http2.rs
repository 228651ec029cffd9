//! HTTP/2 on one connection.
//!
//! Invariants: a head that h2 let pass and that is larger than the settings allow is refused with a body
//! like any other; a connection on which nothing is asked, runs or is sent is ended, because hyper has no
//! idle limit for it.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use poem::Endpoint;
use poem::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use super::exchange::{ConnectionInfo, answer, hold_back, to_poem};
use super::{ServeStage, Shared};
use crate::config::{self, ms};
use crate::http::edge::RefusedHead;

pub(super) async fn speak_http2<E, S>(shared: &Arc<Shared<E>>, stream: S, info: ConnectionInfo)
where
    E: Endpoint + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(StreamActivity::default());
    let info = Arc::new(info);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        let shared = Arc::clone(shared);
        let info = Arc::clone(&info);
        let activity = Arc::clone(&activity);
        let turn = info.turn(&mut request);
        async move {
            let running = RunningStream::new(&activity);
            let refused = refused_head(&request, &shared.settings);
            let mut request = to_poem(request, &info);
            if let Some(refused) = refused {
                request.extensions_mut().insert(refused);
            }
            let response = answer(&shared.app, request).await;
            drop((running, turn));
            let response: hyper::Response<BoxBody<Bytes, io::Error>> = response.into();
            hold_back(&response).await;
            Ok::<_, Infallible>(response.map(|inner| WatchedBody { inner, activity }))
        }
    });
    let mut connection = pin!(shared.http2.serve_connection(TokioIo::new(stream), service));
    let mut stage = shared.stage.clone();
    let idle = ms(shared
        .settings
        .header_timeout_ms
        .max(shared.settings.write_timeout_ms));
    let mut draining = false;
    loop {
        let seen = activity.progress.load(Ordering::Relaxed);
        tokio::select! {
            _ended = connection.as_mut() => return,
            stage = stage.wait_for(|stage| *stage == ServeStage::Cut || (!draining && *stage == ServeStage::Drain)) => {
                match stage.map(|stage| *stage) {
                    Ok(ServeStage::Drain) => {
                        draining = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    Ok(ServeStage::Cut | ServeStage::Run) | Err(_) => return,
                }
            }
            // hyper has no idle limit for HTTP/2: nothing asked, nothing running and nothing sent
            // means that the client went quiet, or never takes what it asked for.
            () = sleep(idle) => {
                let quiet = activity.running.load(Ordering::Relaxed) == 0
                    && activity.progress.load(Ordering::Relaxed) == seen;
                if quiet && draining {
                    return;
                }
                if quiet {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Whether a head that h2 let pass is larger than the settings allow.
fn refused_head(
    request: &hyper::Request<Incoming>,
    settings: &config::Server,
) -> Option<RefusedHead> {
    let uri = request
        .uri()
        .path_and_query()
        .map_or(0, |uri| uri.as_str().len());
    if uri > settings.header_bytes_max {
        return Some(RefusedHead(StatusCode::URI_TOO_LONG));
    }
    let headers = request.headers();
    let fields = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    let is_too_large = uri + fields.sum::<usize>() > settings.header_bytes_max
        || headers.len() > settings.headers_max;
    is_too_large.then_some(RefusedHead(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE))
}

/// What moves on an HTTP/2 connection.
#[derive(Debug, Default)]
struct StreamActivity {
    running: AtomicUsize,
    progress: AtomicU64,
}

struct RunningStream<'a>(&'a StreamActivity);

impl<'a> RunningStream<'a> {
    fn new(activity: &'a StreamActivity) -> Self {
        activity.running.fetch_add(1, Ordering::Relaxed);
        activity.progress.fetch_add(1, Ordering::Relaxed);
        Self(activity)
    }
}

impl Drop for RunningStream<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// A body that shows that it moves.
struct WatchedBody {
    inner: BoxBody<Bytes, io::Error>,
    activity: Arc<StreamActivity>,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_ready() {
            self.activity.progress.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
