//! One request on its way to the application and its answer on the way back, alike for both versions of
//! HTTP.
//!
//! Invariant: the connection's seat knows of a request from when its head is there until it is answered.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::future::Either;
use hyper::body::{Body as HttpBody, Incoming};
use poem::http::header;
use poem::http::uri::Scheme;
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Endpoint, Response};
use tokio::time::sleep;

use crate::http::connections::{RequestTurn, Seat};
use crate::http::tarpit::HeldBack;

/// What all requests of a connection have in common.
pub(super) struct ConnectionInfo {
    pub(super) local: Addr,
    pub(super) remote: Addr,
    pub(super) scheme: Scheme,
    /// Set when an answer was given before the body was read; see `guard.rs`.
    pub(super) linger: Arc<AtomicBool>,
    pub(super) seat: Arc<Seat>,
}

impl ConnectionInfo {
    /// Tells the connection's seat of a request; to be kept until it is answered.
    pub(super) fn turn(
        &self,
        request: &mut hyper::Request<Incoming>,
    ) -> Either<RequestTurn, Arc<RequestTurn>> {
        let turn = RequestTurn::new(&self.seat);
        let headers = request.headers();
        if request.body().is_end_stream() {
            turn.received();
            if !headers.contains_key(header::AUTHORIZATION) && !headers.contains_key(header::COOKIE)
            {
                return Either::Left(turn);
            }
        }
        // The code that reads the body, or checks the credentials, has news for the seat.
        let turn = Arc::new(turn);
        request.extensions_mut().insert(Arc::clone(&turn));
        Either::Right(turn)
    }
}

pub(super) fn to_poem(request: hyper::Request<Incoming>, info: &ConnectionInfo) -> poem::Request {
    poem::Request::from((
        request,
        LocalAddr(info.local.clone()),
        RemoteAddr(info.remote.clone()),
        info.scheme.clone(),
    ))
}

pub(super) async fn answer(app: &impl Endpoint, request: poem::Request) -> Response {
    app.get_response(request).await
}

/// Waits where the edge wants an answer to come late; tells whether it did.
pub(super) async fn hold_back<B>(response: &hyper::Response<B>) -> bool {
    let Some(HeldBack(wait)) = response.extensions().get() else {
        return false;
    };
    sleep(*wait).await;
    true
}
