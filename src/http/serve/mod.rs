//! The accept loop: which connections get a seat, how serving ends.
//!
//! poem's own server gives hyper no timer and spins when descriptors run out, so connections are
//! accepted here and poem's endpoints are called from hyper's service. `connection.rs` has a connection
//! from its first byte on, `http1.rs` and `http2.rs` speak, `exchange.rs` takes one request to the
//! application, `head.rs` keeps the bytes of a head, `guard.rs` guards the socket, `limits.rs` has the
//! bounds. Invariants of all of them: every wait for a client has a deadline; connections are bounded in
//! all and per address; a failing `accept` never spins; after the shutdown signal no connection is
//! accepted, and what is in flight may finish until the grace is over.

mod connection;
mod exchange;
mod guard;
mod head;
mod http1;
mod http2;
mod limits;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::server::conn;
use hyper_util::rt::TokioExecutor;
use poem::{Addr, Endpoint};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::connections::{Connections, NoSeat};
use super::listen::{ACCEPT_PAUSE, AcceptedSocket, Listeners, is_exhausted};
use super::problem::PROBLEM_JSON;
use super::request::RequestId;
use super::shares::NowAndThen;
use super::tls::Tls;
use crate::clock::Clock;
use crate::config::{self, ms};
use crate::monitor::Metrics;
use connection::connection;
use limits::{connections_max, http1_builder, http2_builder};

/// Connections that are accepted before the requests of open ones have their turn: a crowd that only comes
/// and goes must not keep open connections waiting.
const ACCEPTED_AT_ONCE: u32 = 16;

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had to be cut off because the grace was over.
    pub cut_off: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServeStage {
    Run,
    /// Finish what is in flight.
    Drain,
    /// Drop everything.
    Cut,
}

/// Everything that a connection needs.
struct Shared<E> {
    app: E,
    settings: Arc<config::Server>,
    metrics: Metrics,
    connections: Arc<Connections>,
    short: NowAndThen,
    tls: Option<Tls>,
    http1: conn::http1::Builder,
    http2: conn::http2::Builder<TokioExecutor>,
    stage: watch::Receiver<ServeStage>,
    open: AtomicUsize,
}

/// Serves until `shutdown` turns true, then drains.
pub async fn serve<E>(
    listeners: Listeners,
    app: E,
    settings: Arc<config::Server>,
    metrics: Metrics,
    mut shutdown: watch::Receiver<bool>,
) -> Drained
where
    E: Endpoint + 'static,
{
    let (stage, stage_seen) = watch::channel(ServeStage::Run);
    let shared = Arc::new(Shared {
        app,
        http1: http1_builder(&settings),
        http2: http2_builder(&settings),
        connections: Arc::new(Connections::new(
            connections_max(settings.connections_max),
            settings.connections_per_address_max,
        )),
        short: NowAndThen::default(),
        tls: listeners.tls().cloned(),
        metrics,
        stage: stage_seen,
        open: AtomicUsize::new(0),
        settings,
    });
    let reload = shared.tls.clone().map(|tls| tokio::spawn(tls.watch()));
    // Each connection holds a sender; when all are gone, so are the connections.
    let (alive, mut all_gone) = mpsc::channel::<Infallible>(1);

    let accepting = async {
        let mut accepted_at_once = 0;
        loop {
            if accepted_at_once == ACCEPTED_AT_ONCE {
                accepted_at_once = 0;
                tokio::task::yield_now().await;
            }
            accepted_at_once += 1;
            shared.connections.may_accept().await;
            match listeners.accept().await {
                Ok(accepted) => admit(&shared, accepted, alive.clone()),
                Err(error) if is_exhausted(&error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
                // The client left before it was accepted, or the like: the next one may do better.
                Err(error) => tracing::debug!(%error, "a connection could not be accepted"),
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        // An error means that the sender is gone, so that nothing else can tell us to stop; stop, too.
        _stop = shutdown.wait_for(|stop| *stop) => {}
    }

    drop(listeners);
    drop(alive);
    if let Some(reload) = reload {
        reload.abort();
    }
    stage.send_replace(ServeStage::Drain);
    let grace = ms(shared.settings.shutdown_grace_ms);
    let cut_off = match timeout(grace, all_gone.recv()).await {
        Ok(_none) => 0,
        Err(_late) => {
            let cut_off = shared.open.load(Ordering::Acquire);
            stage.send_replace(ServeStage::Cut);
            all_gone.recv().await;
            cut_off
        }
    };
    Drained { cut_off }
}

/// Starts a connection's task, if there is a seat for it.
fn admit<E: Endpoint + 'static>(
    shared: &Arc<Shared<E>>,
    accepted: AcceptedSocket,
    alive: mpsc::Sender<Infallible>,
) {
    let address = match &accepted {
        AcceptedSocket::Tcp(_, peer) => Some(peer.ip().to_canonical()),
        AcceptedSocket::Unix(_) => None,
    };
    let trusted = &shared.settings.trusted_proxies;
    let client = address.filter(|ip| !trusted.iter().any(|range| range.contains(ip)));
    let refused = &shared.metrics.http_connections_refused_total;
    let slot = match Connections::admit(&shared.connections, client) {
        Ok((slot, freed)) => {
            if freed > 0 {
                let evicted = refused.with_label_values(&["evicted"]);
                evicted.inc_by(freed as u64);
                if let Some(closed) = shared.short.note(freed as u64) {
                    tracing::warn!(
                        closed,
                        open = shared.open.load(Ordering::Relaxed),
                        "connections run short; those that did least for longest are closed for newcomers"
                    );
                }
            }
            slot
        }
        Err(why) => {
            let (reason, said) = match why {
                NoSeat::Client => ("address_limit", "Too many connections from this address."),
                NoSeat::Everyone => ("full", "Too many connections."),
            };
            refused.with_label_values(&[reason]).inc();
            if let (AcceptedSocket::Tcp(stream, _), None) = (&accepted, &shared.tls) {
                // Best effort: a connection without a seat is not waited for.
                let _unsent = stream.try_write(too_many_connections(said).as_bytes());
            }
            return;
        }
    };
    let seat = Arc::clone(&slot.seat);
    let of_task = Arc::clone(shared);
    let task = tokio::spawn(async move {
        let shared = of_task;
        let seat = Arc::clone(&slot.seat);
        let _held = (alive, slot);
        let _open = OpenConnection::new(&shared);
        match accepted {
            AcceptedSocket::Tcp(stream, peer) => {
                // Small answers must not wait for more to say; failing to say so only costs time.
                let _slower = stream.set_nodelay(true);
                let ends = (
                    stream.local_addr().map(Addr::from).unwrap_or_default(),
                    Addr::from(peer),
                );
                connection(&shared, stream, ends, shared.tls.as_ref(), seat).await;
            }
            AcceptedSocket::Unix(stream) => {
                let here = || Addr::custom("unix", "");
                connection(&shared, stream, (here(), here()), None, seat).await;
            }
        }
    });
    seat.ends_with(task.abort_handle());
}

/// The answer to a connection too many; nothing of a request is read for it.
fn too_many_connections(said: &str) -> String {
    let id = RequestId::fresh(Clock::system().now());
    let id = id.as_str();
    let body = format!(
        "{{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
         \"detail\":\"{said}\",\"code\":\"overloaded\",\
         \"request_id\":\"{id}\"}}"
    );
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {PROBLEM_JSON}\r\n\
         content-length: {}\r\nretry-after: 1\r\nx-request-id: {id}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Counts a connection as open until it is dropped.
struct OpenConnection<'a, E>(&'a Shared<E>);

impl<'a, E> OpenConnection<'a, E> {
    fn new(shared: &'a Shared<E>) -> Self {
        shared.open.fetch_add(1, Ordering::AcqRel);
        shared.metrics.http_connections_open.inc();
        Self(shared)
    }
}

impl<E> Drop for OpenConnection<'_, E> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.metrics.http_connections_open.dec();
    }
}
