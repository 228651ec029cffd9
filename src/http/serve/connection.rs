//! A connection from its first byte on: TLS where the port has it, then the version that was agreed on.
//!
//! Invariants: a connection that says nothing is closed at its time, costs no more than its socket until
//! then, and is no work in flight; a handshake has a deadline; what a connection may become is in a box,
//! or each would be as large as the largest.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use poem::http::uri::Scheme;
use poem::{Addr, Endpoint};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::exchange::ConnectionInfo;
use super::guard::GuardedIo;
use super::http1::speak_http1;
use super::http2::speak_http2;
use super::{ServeStage, Shared};
use crate::config::ms;
use crate::http::connections::Seat;
use crate::http::pace::ClientPace;
use crate::http::tls::Tls;

/// A socket that can tell when there is something to read, without taking it.
pub(super) trait FirstByte: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Ends when a byte, or the end of the stream, is there.
    fn first_byte(&self) -> impl Future<Output = io::Result<()>> + Send;
}

// `readable()` alone would not do: tokio takes a fresh socket for readable until a read says no.
impl FirstByte for TcpStream {
    async fn first_byte(&self) -> io::Result<()> {
        self.async_io(Interest::READABLE, || peek(&SockRef::from(self)))
            .await
    }
}

impl FirstByte for UnixStream {
    async fn first_byte(&self) -> io::Result<()> {
        self.async_io(Interest::READABLE, || peek(&SockRef::from(self)))
            .await
    }
}

fn peek(socket: &SockRef<'_>) -> io::Result<()> {
    socket.peek(&mut [MaybeUninit::uninit(); 1]).map(drop)
}

pub(super) async fn connection<E: Endpoint + 'static>(
    shared: &Arc<Shared<E>>,
    stream: impl FirstByte,
    (local, remote): (Addr, Addr),
    tls: Option<&Tls>,
    seat: Arc<Seat>,
) {
    let settings = &shared.settings;
    let refused = |reason| {
        shared
            .metrics
            .http_connections_refused_total
            .with_label_values(&[reason])
            .inc()
    };
    let mut stage = shared.stage.clone();
    tokio::select! {
        first = timeout(ms(settings.first_byte_timeout_ms), stream.first_byte()) => match first {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => return refused("first_byte"),
        },
        // A connection that has not said anything is no work in flight.
        _draining = stage.wait_for(|stage| *stage != ServeStage::Run) => return,
    }

    let linger = Arc::new(AtomicBool::new(false));
    let pace = ClientPace::new(ms(settings.write_timeout_ms), settings.bytes_per_second_min);
    let io = GuardedIo::new(stream, pace, Arc::clone(&linger));
    let info = ConnectionInfo {
        local,
        remote,
        scheme: if tls.is_some() {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        },
        linger,
        seat,
    };
    // What a connection may become is in a box, or each would be as large as the largest.
    match tls {
        Some(tls) => Box::pin(secure(shared, io, tls, info)).await,
        None => speak_http1(shared, io, info).await,
    }
}

/// Shakes hands, and speaks what was agreed on.
async fn secure<E: Endpoint + 'static>(
    shared: &Arc<Shared<E>>,
    io: GuardedIo<impl FirstByte>,
    tls: &Tls,
    info: ConnectionInfo,
) {
    let limit = ms(shared.settings.tls_handshake_timeout_ms);
    let Ok(Ok(stream)) = timeout(limit, tls.accept(io)).await else {
        let refused = &shared.metrics.http_connections_refused_total;
        return refused.with_label_values(&["tls"]).inc();
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        Box::pin(speak_http2(shared, stream, info)).await;
    } else {
        Box::pin(speak_http1(shared, stream, info)).await;
    }
}
