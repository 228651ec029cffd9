//! HTTP/1.1 on one connection.
//!
//! Invariants: a request with two readings of its length is marked before the application sees it, and
//! nothing is read after a chunked body; a head that hyper would not take is answered by the application
//! like any other request; an answer that came before the body was read is not lost to a reset.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as HttpBody, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use poem::Endpoint;
use poem::http::header::{self, HeaderValue};
use poem::http::{Method, StatusCode};
use poem::web::{LocalAddr, RemoteAddr};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::exchange::{ConnectionInfo, answer, hold_back, to_poem};
use super::head::{RecordedHead, RecordedIo};
use super::{ServeStage, Shared};
use crate::http::edge::{AmbiguousLength, RefusedHead};

pub(super) async fn speak_http1<E, S>(shared: &Arc<Shared<E>>, stream: S, info: ConnectionInfo)
where
    E: Endpoint + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let head = Arc::new(Mutex::new(RecordedHead::new(
        shared.settings.header_bytes_max,
    )));
    let io = TokioIo::new(RecordedIo {
        inner: stream,
        head: Arc::clone(&head),
    });
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        let shared = Arc::clone(shared);
        let head = Arc::clone(&head);
        let info = &info;
        let has_length = head.lock().begin_body(request.headers());
        let turn = info.turn(&mut request);
        // hyper moves the future into its place, which for one of this size costs more than a box.
        Box::pin(async move {
            let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
            let has_body = !request.body().is_end_stream();
            let mut request = to_poem(request, info);
            if chunked && has_length {
                request.extensions_mut().insert(AmbiguousLength);
            }
            let mut response: hyper::Response<BoxBody<Bytes, io::Error>> =
                answer(&shared.app, request).await.into();
            if chunked {
                // Should an intermediary see the end of this body elsewhere than we do, then what
                // follows it must not be read as a request (RFC 9112 §6.1).
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            head.lock().begin_head();
            drop(turn);
            let is_held_back = hold_back(&response).await;
            // A client that is refused again and again may miss the answer: reading its body would cost more.
            if has_body && response.status().is_client_error() && !is_held_back {
                info.linger.store(true, Ordering::Release);
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = shared.http1.serve_connection(io, service);
    let mut stage = shared.stage.clone();
    let mut draining = false;
    loop {
        tokio::select! {
            ended = std::pin::Pin::new(&mut connection) => match ended {
                // hyper has answered a head that is no HTTP or too large, and leaves the rest unread.
                Err(error) if error.is_parse() => break,
                // Other errors are the client's, too: it left, or does not read.
                Ok(()) | Err(_) => return,
            },
            seen = stage.wait_for(|stage| *stage == ServeStage::Cut || (!draining && *stage == ServeStage::Drain)) => {
                match seen.map(|stage| *stage) {
                    Ok(ServeStage::Drain) => {
                        draining = true;
                        std::pin::Pin::new(&mut connection).graceful_shutdown();
                    }
                    Ok(ServeStage::Cut | ServeStage::Run) | Err(_) => return,
                }
            }
        }
    }
    info.linger.store(true, Ordering::Release);
    let mut stream = connection.into_parts().io.into_inner().inner;
    let refused = head.lock().refused();
    if let Some((status, method, date)) = refused {
        let told = Box::pin(tell(shared, &info, status, method, &date)).await;
        // It may have gone; the answer was counted and logged all the same.
        let _unheard = stream.write_all(&told).await;
    }
    // Nothing follows, so it does not matter how the closing went.
    let _closed = stream.shutdown().await;
}

/// The answer to a head that hyper would not take, through the application as any other, as bytes.
async fn tell<E: Endpoint>(
    shared: &Shared<E>,
    info: &ConnectionInfo,
    status: StatusCode,
    method: Method,
    date: &str,
) -> Vec<u8> {
    let (mut parts, ()) = hyper::Request::new(()).into_parts();
    parts.method = method;
    parts.extensions.insert(RefusedHead(status));
    let parts = poem::RequestParts::from((
        parts,
        LocalAddr(info.local.clone()),
        RemoteAddr(info.remote.clone()),
        info.scheme.clone(),
    ));
    let request = poem::Request::from_parts(parts, poem::Body::empty());
    let (parts, body) = answer(&shared.app, request).await.into_parts();
    // A problem's body is in memory and so can't fail.
    let body = body.into_bytes().await.unwrap_or_default();
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", parts.status.as_u16()).into_bytes();
    for (name, value) in &parts.headers {
        // How long it is and whether more follows is told below.
        if ![header::CONTENT_LENGTH, header::CONNECTION].contains(name) {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
    }
    let end = format!(
        "content-length: {}\r\nconnection: close\r\ndate: {date}\r\n\r\n",
        body.len()
    );
    bytes.extend_from_slice(end.as_bytes());
    bytes.extend_from_slice(&body);
    bytes
}
