//! The accept loop: sockets, TLS, connection limits, deadlines, drain.
//!
//! poem's own server gives hyper no timer and spins when descriptors run out, so connections are
//! accepted here and poem's endpoints are called from hyper's service. Invariants: every wait for a
//! client has a deadline; connections are bounded in all and per address; a failing `accept` never
//! spins; a certificate that can't be used never replaces one that can; after the shutdown signal no
//! connection is accepted, and what is in flight may finish until the grace is over.

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::Either;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use poem::http::header::{self, HeaderMap, HeaderValue};
use poem::http::uri::Scheme;
use poem::http::{Method, StatusCode};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Endpoint, Response};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use super::connections::{Connections, LEAVING_MAX, NoSeat, Seat, Turn};
use super::edge::{AmbiguousLength, RefusedHead};
use super::pace::Pace;
use super::problem::PROBLEM_JSON;
use super::request::RequestId;
use super::shares::NowAndThen;
use super::tarpit::HeldBack;
use crate::clock::Clock;
use crate::config::{self, ms};
use crate::monitor::Metrics;

/// Pause after an `accept` that failed for lack of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the certificate's files are looked at.
const CERTIFICATE_POLL: Duration = Duration::from_secs(5);
/// Descriptors that connections must leave to the database, logs and files.
const DESCRIPTORS_RESERVED: u64 = 128 + LEAVING_MAX as u64;
/// After an early refusal the rest of a body is read and thrown away for this long, at most this
/// much: closing at once would reset the connection and the client might never see the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Streams that a client may reset before we have accepted them ("rapid reset", CVE-2023-44487).
const H2_PENDING_RESETS_MAX: usize = 20;
/// Streams that we may have to reset before the connection is given up.
const H2_LOCAL_RESETS_MAX: usize = 128;
const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// What a client may send of one body, and of all bodies of its connection, before we have read it: it
/// is in memory, and not yet counted as the body's.
const H2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// Of an answer in HTTP/1.1 that says no: what hyper writes by itself begins like this.
const REFUSAL: &[u8] = b"HTTP/1.1 4";
/// Longest answer that hyper writes by itself.
const REFUSAL_BYTES_MAX: usize = 512;
/// Connections that are accepted before requests that are there have their turn: a crowd that only comes
/// and goes must not keep those waiting who are in.
const ACCEPTED_AT_ONCE: u32 = 16;

/// Why the server could not start to listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address can't be had.
    #[error("can't listen on {address}: {}", why_not(.reason, .setting))]
    Tcp {
        /// What was asked for.
        address: SocketAddr,
        /// What asked for it, as a person is told to change it.
        setting: &'static str,
        /// Why not.
        reason: io::Error,
    },
    /// The unix socket can't be had.
    #[error("can't listen on {}: {reason}; choose another place with server.unix_socket", path.display())]
    Unix {
        /// What was asked for.
        path: PathBuf,
        /// Why not.
        reason: io::Error,
    },
    /// The certificate or key can't be used.
    #[error("can't use the certificate: {0}")]
    Tls(#[from] TlsError),
}

/// Why an address can't be had, and what to do about it.
fn why_not(error: &io::Error, setting: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process listens there; stop that one, or choose another port ({setting})"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 0.0.0.0 and :: stand for all that it has".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            format!("{error}; choose a port above 1023 ({setting})")
        }
        _ => error.to_string(),
    }
}

/// Why a certificate or key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or is no PEM.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// They don't belong together, or are of an unknown kind.
    #[error("{0}")]
    Rustls(#[from] tokio_rustls::rustls::Error),
}

/// Sockets that are bound and listening, so that a test knows its port before it serves.
#[derive(Debug)]
pub struct Listeners {
    tcp: TcpListener,
    address: SocketAddr,
    unix: Option<UnixSocket>,
    tls: Option<Tls>,
}

impl Listeners {
    /// Binds what the settings name. Must be called inside the async runtime.
    pub fn bind(settings: &config::Server) -> Result<Self, ListenError> {
        let wanted = SocketAddr::new(settings.host, settings.port);
        let tls = match settings.tls_cert.as_os_str().is_empty() {
            true => None,
            false => Some(Tls::load(&settings.tls_cert, &settings.tls_key)?),
        };
        let failed = |reason| ListenError::Tcp {
            address: wanted,
            setting: "--port or server.port",
            reason,
        };
        let tcp = bind_tcp(wanted, settings.backlog, settings.send_buffer_bytes).map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        let unix = match settings.unix_socket.as_os_str().is_empty() {
            true => None,
            false => Some(UnixSocket::bind(&settings.unix_socket).map_err(|reason| {
                ListenError::Unix {
                    path: settings.unix_socket.clone(),
                    reason,
                }
            })?),
        };
        Ok(Self {
            tcp,
            address,
            unix,
            tls,
        })
    }

    /// The TCP address, with the port that was chosen if the settings said 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether the TCP address speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What it speaks TLS with, to have that read its files again.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    async fn accept(&self) -> io::Result<Accepted> {
        let unix = async {
            match &self.unix {
                Some(socket) => socket.listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.tcp.accept() => accepted.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
            accepted = unix => accepted.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// A listening socket. Must be called inside the async runtime. `send_buffer_bytes` is what the system
/// takes of an answer before the client does; 0 leaves it to the system.
pub fn bind_tcp(
    address: SocketAddr,
    backlog: u32,
    send_buffer_bytes: usize,
) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for connections of the last run to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if send_buffer_bytes > 0 {
        // Whoever is accepted inherits it; Linux doubles it for its own records.
        socket.set_send_buffer_size(send_buffer_bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

/// A unix socket whose file goes away with it.
#[derive(Debug)]
struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixSocket {
    fn bind(path: &Path) -> io::Result<Self> {
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is a file of another kind at this path",
                ));
            }
            // Only a socket that nobody answers on is left over from a run that crashed.
            match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?
                }
                Ok(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        "another process answers on this socket",
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // If it is gone already, that is what was wanted.
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// The TLS configuration in force; swapped when the files change.
#[derive(Clone, Debug)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    cert: PathBuf,
    key: PathBuf,
}

impl Tls {
    /// Reads both files.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self {
            current: Arc::new(ArcSwap::from_pointee(tls_config(cert, key)?)),
            cert: cert.to_owned(),
            key: key.to_owned(),
        })
    }

    /// The server's half of a handshake, with the configuration of this moment.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(self.current.load_full())
            .accept(stream)
            .await
    }

    /// Looks at the files until the process ends.
    pub async fn watch(self) {
        let mut seen = self.stamp();
        loop {
            sleep(CERTIFICATE_POLL).await;
            let stamp = self.stamp();
            if stamp == seen {
                continue;
            }
            seen = stamp;
            self.reload();
        }
    }

    /// Reads both files again. Connections that are open keep what they have.
    pub fn reload(&self) {
        match tls_config(&self.cert, &self.key) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                tracing::info!(cert = %self.cert.display(), "the TLS certificate was reloaded");
            }
            // Often one of the two files is simply not written yet; the next change is tried again.
            Err(error) => {
                tracing::error!(%error, "the new TLS certificate can't be used; the old one stays")
            }
        }
    }

    fn stamp(&self) -> [Option<(std::time::SystemTime, u64)>; 2] {
        [&self.cert, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

/// The certificates of a PEM file, of which there must be one at least.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = |reason: String| TlsError::File {
        path: path.to_owned(),
        reason,
    };
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fault(error.to_string()))?;
    if all.is_empty() {
        return Err(fault("it holds no certificate".to_owned()));
    }
    Ok(all)
}

fn tls_config(cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let chain = certificates(cert)?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
        path: key.to_owned(),
        reason: error.to_string(),
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had to be cut off because the grace was over.
    pub cut_off: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    stage: watch::Receiver<Stage>,
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
    let (stage, stage_seen) = watch::channel(Stage::Run);
    let shared = Arc::new(Shared {
        app,
        http1: http1_builder(&settings),
        http2: http2_builder(&settings),
        connections: Arc::new(Connections::new(
            connections_max(settings.connections_max),
            settings.connections_per_address_max,
        )),
        short: NowAndThen::default(),
        tls: listeners.tls.clone(),
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
        // An error means that whoever could tell us to stop is gone; stop, too.
        _stop = shutdown.wait_for(|stop| *stop) => {}
    }

    drop(listeners);
    drop(alive);
    if let Some(reload) = reload {
        reload.abort();
    }
    stage.send_replace(Stage::Drain);
    let grace = ms(shared.settings.shutdown_grace_ms);
    let cut_off = match timeout(grace, all_gone.recv()).await {
        Ok(_none) => 0,
        Err(_late) => {
            let cut_off = shared.open.load(Ordering::Acquire);
            stage.send_replace(Stage::Cut);
            all_gone.recv().await;
            cut_off
        }
    };
    Drained { cut_off }
}

/// Descriptors or memory ran out: waiting helps, trying again at once does not.
pub fn is_exhausted(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(
        code,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

/// The setting, or less when the system does not give us enough descriptors.
fn connections_max(wanted: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return wanted;
    };
    let needed = (wanted as u64).saturating_add(DESCRIPTORS_RESERVED);
    let raised = needed.min(hard);
    let limit = if soft < raised && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
        raised
    } else {
        soft
    };
    let possible =
        usize::try_from(limit.saturating_sub(DESCRIPTORS_RESERVED)).unwrap_or(usize::MAX);
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            "the limit of open files allows fewer connections than the settings"
        );
    }
    possible.clamp(1, wanted.max(1))
}

fn http1_builder(settings: &config::Server) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(ms(settings.header_timeout_ms))
        .max_headers(settings.headers_max)
        .max_header_size(settings.header_bytes_max)
        // Of its own accord hyper would only stop a head that does not end within this buffer.
        .max_buf_size(settings.header_bytes_max);
    builder
}

fn http2_builder(settings: &config::Server) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.h2_streams_max)
        // What is larger than the setting is refused by us, with a body; what is far larger by h2, which
        // can only send a status.
        .max_header_list_size(
            u32::try_from(settings.header_bytes_max.saturating_mul(2)).unwrap_or(u32::MAX),
        )
        .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(H2_LOCAL_RESETS_MAX)
        .max_send_buf_size(H2_SEND_BUFFER_BYTES)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(ms(settings.header_timeout_ms))
        .keep_alive_timeout(ms(settings.header_timeout_ms));
    builder
}

/// Starts a connection's task, if there is a seat for it.
fn admit<E: Endpoint + 'static>(
    shared: &Arc<Shared<E>>,
    accepted: Accepted,
    alive: mpsc::Sender<Infallible>,
) {
    let address = match &accepted {
        Accepted::Tcp(_, peer) => Some(peer.ip().to_canonical()),
        Accepted::Unix(_) => None,
    };
    let trusted = &shared.settings.trusted_proxies;
    let client = address.filter(|ip| !trusted.iter().any(|range| range.contains(ip)));
    let refused = &shared.metrics.http_connections_refused_total;
    let place = match Connections::admit(&shared.connections, client) {
        Ok((place, freed)) => {
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
            place
        }
        Err(why) => {
            let (reason, said) = match why {
                NoSeat::Client => ("address_limit", "Too many connections from this address."),
                NoSeat::Everyone => ("full", "Too many connections."),
            };
            refused.with_label_values(&[reason]).inc();
            if let (Accepted::Tcp(stream, _), None) = (&accepted, &shared.tls) {
                // Best effort: whoever is over the limit has no claim to more.
                let _unsent = stream.try_write(too_many_connections(said).as_bytes());
            }
            return;
        }
    };
    let seat = Arc::clone(&place.seat);
    let of_task = Arc::clone(shared);
    let task = tokio::spawn(async move {
        let shared = of_task;
        let seat = Arc::clone(&place.seat);
        let _held = (alive, place);
        let _open = Open::new(&shared);
        match accepted {
            Accepted::Tcp(stream, peer) => {
                // Small answers must not wait for more to say; failing to say so only costs time.
                let _slower = stream.set_nodelay(true);
                let ends = (
                    stream.local_addr().map(Addr::from).unwrap_or_default(),
                    Addr::from(peer),
                );
                connection(&shared, stream, ends, shared.tls.as_ref(), seat).await;
            }
            Accepted::Unix(stream) => {
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
struct Open<'a, E>(&'a Shared<E>);

impl<'a, E> Open<'a, E> {
    fn new(shared: &'a Shared<E>) -> Self {
        shared.open.fetch_add(1, Ordering::AcqRel);
        shared.metrics.http_connections_open.inc();
        Self(shared)
    }
}

impl<E> Drop for Open<'_, E> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.metrics.http_connections_open.dec();
    }
}

/// A socket that can tell when there is something to read, without taking it.
trait FirstByte: AsyncRead + AsyncWrite + Unpin + Send + 'static {
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

async fn connection<E: Endpoint + 'static>(
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
        _draining = stage.wait_for(|stage| *stage != Stage::Run) => return,
    }

    let linger = Arc::new(AtomicBool::new(false));
    let pace = Pace::new(ms(settings.write_timeout_ms), settings.bytes_per_second_min);
    let io = GuardedIo::new(stream, pace, Arc::clone(&linger));
    let caller = Caller {
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
        Some(tls) => Box::pin(secure(shared, io, tls, caller)).await,
        None => speak_http1(shared, io, caller).await,
    }
}

/// Shakes hands, and speaks what was agreed on.
async fn secure<E: Endpoint + 'static>(
    shared: &Arc<Shared<E>>,
    io: GuardedIo<impl FirstByte>,
    tls: &Tls,
    caller: Caller,
) {
    let limit = ms(shared.settings.tls_handshake_timeout_ms);
    let Ok(Ok(stream)) = timeout(limit, tls.accept(io)).await else {
        let refused = &shared.metrics.http_connections_refused_total;
        return refused.with_label_values(&["tls"]).inc();
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        Box::pin(speak_http2(shared, stream, caller)).await;
    } else {
        Box::pin(speak_http1(shared, stream, caller)).await;
    }
}

/// Who is at the other end of a connection.
struct Caller {
    local: Addr,
    remote: Addr,
    scheme: Scheme,
    /// Set when an answer was given before the body was read; see [`LINGER`].
    linger: Arc<AtomicBool>,
    seat: Arc<Seat>,
}

impl Caller {
    /// Tells the connection's seat of a request; to be kept until it is answered.
    fn turn(&self, request: &mut hyper::Request<Incoming>) -> Either<Turn, Arc<Turn>> {
        let turn = Turn::new(&self.seat);
        let headers = request.headers();
        if request.body().is_end_stream() {
            turn.received();
            if !headers.contains_key(header::AUTHORIZATION) && !headers.contains_key(header::COOKIE)
            {
                return Either::Left(turn);
            }
        }
        // Whoever reads the body, or looks at the credentials, has news for the seat.
        let turn = Arc::new(turn);
        request.extensions_mut().insert(Arc::clone(&turn));
        Either::Right(turn)
    }
}

async fn speak_http1<E, S>(shared: &Arc<Shared<E>>, stream: S, caller: Caller)
where
    E: Endpoint + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let head = Arc::new(Mutex::new(Head::new(shared.settings.header_bytes_max)));
    let io = TokioIo::new(Recorded {
        inner: stream,
        head: Arc::clone(&head),
    });
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        let shared = Arc::clone(shared);
        let head = Arc::clone(&head);
        let caller = &caller;
        let has_length = head.lock().begin_body(request.headers());
        let turn = caller.turn(&mut request);
        // hyper moves the future into its place, which for one of this size costs more than a box.
        Box::pin(async move {
            let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
            let has_body = !request.body().is_end_stream();
            let mut request = to_poem(request, caller);
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
                caller.linger.store(true, Ordering::Release);
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = shared.http1.serve_connection(io, service);
    let mut stage = shared.stage.clone();
    let mut draining = false;
    loop {
        tokio::select! {
            ended = Pin::new(&mut connection) => match ended {
                // hyper has answered a head that is no HTTP or too large, and leaves the rest unread.
                Err(error) if error.is_parse() => break,
                // Other errors are the client's, too: it left, or does not read.
                Ok(()) | Err(_) => return,
            },
            seen = stage.wait_for(|stage| *stage == Stage::Cut || (!draining && *stage == Stage::Drain)) => {
                match seen.map(|stage| *stage) {
                    Ok(Stage::Drain) => {
                        draining = true;
                        Pin::new(&mut connection).graceful_shutdown();
                    }
                    Ok(Stage::Cut | Stage::Run) | Err(_) => return,
                }
            }
        }
    }
    caller.linger.store(true, Ordering::Release);
    let mut stream = connection.into_parts().io.into_inner().inner;
    let refused = head.lock().refused();
    if let Some((status, method, date)) = refused {
        let told = Box::pin(tell(shared, &caller, status, method, &date)).await;
        // It may have gone; the answer was counted and logged all the same.
        let _unheard = stream.write_all(&told).await;
    }
    // Nothing follows, so it does not matter how the closing went.
    let _closed = stream.shutdown().await;
}

/// The answer to a head that hyper would not take, through the application as any other, as bytes.
async fn tell<E: Endpoint>(
    shared: &Shared<E>,
    caller: &Caller,
    status: StatusCode,
    method: Method,
    date: &str,
) -> Vec<u8> {
    let (mut parts, ()) = hyper::Request::new(()).into_parts();
    parts.method = method;
    parts.extensions.insert(RefusedHead(status));
    let parts = poem::RequestParts::from((
        parts,
        LocalAddr(caller.local.clone()),
        RemoteAddr(caller.remote.clone()),
        caller.scheme.clone(),
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

async fn speak_http2<E, S>(shared: &Arc<Shared<E>>, stream: S, caller: Caller)
where
    E: Endpoint + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let caller = Arc::new(caller);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        let shared = Arc::clone(shared);
        let caller = Arc::clone(&caller);
        let activity = Arc::clone(&activity);
        let turn = caller.turn(&mut request);
        async move {
            let running = Running::new(&activity);
            let refused = refused_head(&request, &shared.settings);
            let mut request = to_poem(request, &caller);
            if let Some(refused) = refused {
                request.extensions_mut().insert(refused);
            }
            let response = answer(&shared.app, request).await;
            drop((running, turn));
            let response: hyper::Response<BoxBody<Bytes, io::Error>> = response.into();
            hold_back(&response).await;
            Ok::<_, Infallible>(response.map(|inner| Watched { inner, activity }))
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
            stage = stage.wait_for(|stage| *stage == Stage::Cut || (!draining && *stage == Stage::Drain)) => {
                match stage.map(|stage| *stage) {
                    Ok(Stage::Drain) => {
                        draining = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    Ok(Stage::Cut | Stage::Run) | Err(_) => return,
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

fn to_poem(request: hyper::Request<Incoming>, caller: &Caller) -> poem::Request {
    poem::Request::from((
        request,
        LocalAddr(caller.local.clone()),
        RemoteAddr(caller.remote.clone()),
        caller.scheme.clone(),
    ))
}

async fn answer(app: &impl Endpoint, request: poem::Request) -> Response {
    app.get_response(request).await
}

/// Waits where the edge wants an answer to come late; tells whether it did.
async fn hold_back<B>(response: &hyper::Response<B>) -> bool {
    let Some(HeldBack(wait)) = response.extensions().get() else {
        return false;
    };
    sleep(*wait).await;
    true
}

/// What moves on an HTTP/2 connection.
#[derive(Debug, Default)]
struct Activity {
    running: AtomicUsize,
    progress: AtomicU64,
}

struct Running<'a>(&'a Activity);

impl<'a> Running<'a> {
    fn new(activity: &'a Activity) -> Self {
        activity.running.fetch_add(1, Ordering::Relaxed);
        activity.progress.fetch_add(1, Ordering::Relaxed);
        Self(activity)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// A body that shows that it moves.
struct Watched {
    inner: BoxBody<Bytes, io::Error>,
    activity: Arc<Activity>,
}

impl HttpBody for Watched {
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

/// The bytes of the request head that is being read.
///
/// hyper drops `Content-Length` when there is a `Transfer-Encoding`, so only the bytes themselves
/// still tell that both were sent. And to a head that it can't take it answers by itself, with a bare
/// status: that answer is kept here instead of being sent.
#[derive(Debug)]
struct Head {
    bytes: Vec<u8>,
    bytes_max: usize,
    in_body: bool,
    refusal: Vec<u8>,
}

impl Head {
    fn new(bytes_max: usize) -> Self {
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
    fn refused(&self) -> Option<(StatusCode, Method, String)> {
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
    fn begin_body(&mut self, headers: &HeaderMap) -> bool {
        let both =
            headers.contains_key(header::TRANSFER_ENCODING) && has_content_length(&self.bytes);
        self.bytes.clear();
        self.in_body = true;
        both
    }

    /// The answer is on its way; what is read from now on is the next head.
    fn begin_head(&mut self) {
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

/// Lets [`Head`] see what is read, and what hyper writes by itself.
struct Recorded<S> {
    inner: S,
    head: Arc<Mutex<Head>>,
}

impl<S> Recorded<S> {
    fn keeps(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(REFUSAL) && self.head.lock().keeps(bytes)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorded<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Recorded<S> {
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

/// A socket that gives up on a client that does not read, or hardly, and that closes politely.
struct GuardedIo<S> {
    inner: S,
    pace: Pace,
    linger: Arc<AtomicBool>,
    closing: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> GuardedIo<S> {
    fn new(inner: S, pace: Pace, linger: Arc<AtomicBool>) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::docs::RouteTable;
    use crate::http::edge::{BodyKind, Edge, EdgeOptions};
    use crate::http::shares::Shares;
    use poem::{Route, handler};
    use tokio::io::AsyncReadExt;
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    /// Far more than anything here takes; a test that hangs must end.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[handler]
    async fn echo(body: Vec<u8>) -> Vec<u8> {
        body
    }

    struct Server {
        address: SocketAddr,
        stop: watch::Sender<bool>,
        task: JoinHandle<Drained>,
        metrics: Metrics,
        /// A request to `/wait` is answered when this is notified.
        go: Arc<Notify>,
        arrived: Arc<Notify>,
    }

    fn start(change: impl FnOnce(&mut config::Server)) -> Server {
        let mut settings = config::Server {
            port: 0,
            first_byte_timeout_ms: 100,
            header_timeout_ms: 200,
            body_timeout_ms: 200,
            write_timeout_ms: 200,
            body_bytes_max: 1_000,
            shutdown_grace_ms: 10_000,
            ..config::Server::default()
        };
        change(&mut settings);
        let settings = Arc::new(settings);
        let metrics = Metrics::new().expect("unique names");
        let (go, arrived) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let wait = poem::endpoint::make({
            let (go, arrived) = (Arc::clone(&go), Arc::clone(&arrived));
            move |_| {
                let (go, arrived) = (Arc::clone(&go), Arc::clone(&arrived));
                async move {
                    arrived.notify_one();
                    go.notified().await;
                    "done"
                }
            }
        });
        let app = Route::new()
            .at("/echo", poem::post(echo))
            .at("/hello", poem::get(poem::endpoint::make_sync(|_| "hello")))
            .at(
                "/large",
                poem::get(poem::endpoint::make_sync(|_| vec![b'a'; 32 << 20])),
            )
            .at("/wait", poem::get(wait));
        let shares = shares_of(&settings, &metrics);
        let edge = Edge::new(
            app,
            EdgeOptions {
                server: Arc::clone(&settings),
                log_requests: false,
                metrics: metrics.clone(),
                clock: Clock::system(),
                routes: RouteTable::default(),
                bodies: |_| BodyKind::Usual,
                shares,
            },
        );
        let listeners = Listeners::bind(&settings).expect("a free port");
        let address = listeners.local_addr();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(serve(listeners, edge, settings, metrics.clone(), stopped));
        Server {
            address,
            stop,
            task,
            metrics,
            go,
            arrived,
        }
    }

    fn shares_of(server: &config::Server, metrics: &Metrics) -> Shares {
        let settings = config::Settings {
            server: server.clone(),
            ..config::Settings::default()
        };
        Shares::new(&settings, metrics)
    }

    /// Sends `bytes` and gives everything that comes until the server closes.
    async fn exchange(server: &Server, bytes: &str) -> String {
        let mut stream = TcpStream::connect(server.address).await.expect("connected");
        stream.write_all(bytes.as_bytes()).await.expect("sent");
        rest(&mut stream).await
    }

    async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        // A reset after the answer is a way of closing, too.
        let _closed = read.expect("the server closes");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn silence_and_dripping_headers_end_the_connection() {
        let server = start(|_| {});
        assert_eq!(exchange(&server, "").await, "");
        let half = exchange(&server, "GET /hello HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
        assert!(
            half.is_empty() || half.starts_with("HTTP/1.1 408"),
            "{half}"
        );
        let idle = exchange(&server, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(
            idle.starts_with("HTTP/1.1 200") && idle.ends_with("hello"),
            "{idle}"
        );
        let refused = server
            .metrics
            .http_connections_refused_total
            .with_label_values(&["first_byte"]);
        assert_eq!(refused.get(), 1);
    }

    #[tokio::test]
    async fn bodies_that_are_too_large_too_slow_or_ambiguous_are_refused() {
        let server = start(|_| {});
        for (request, status) in [
            (
                "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n",
                413,
            ),
            (
                "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
                408,
            ),
            (
                "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
                408,
            ),
            (
                "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                400,
            ),
            (
                "POST /echo HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                400,
            ),
            ("GET /hello HTTP/1.1\r\n\r\n", 400),
            (
                "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
                400,
            ),
        ] {
            let answer = exchange(&server, request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{request}\n{answer}"
            );
        }
        let chunks = format!(
            "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            format!("1f4\r\n{}\r\n", "a".repeat(500)).repeat(3)
        );
        assert!(exchange(&server, &chunks).await.starts_with("HTTP/1.1 413"));
        let good = exchange(
            &server,
            "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\n\r\ncontent-length: 3\r\n\r\nabc\r\n\r\n0\r\n\r\n",
        )
        .await;
        assert!(
            good.starts_with("HTTP/1.1 200") && good.contains("connection: close"),
            "{good}"
        );
        let huge = format!(
            "GET /hello HTTP/1.1\r\nHost: x\r\nX-Huge: {}\r\n\r\n",
            "a".repeat(40_000)
        );
        let answer = exchange(&server, &huge).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    #[tokio::test]
    async fn a_head_that_is_refused_is_answered_with_a_problem_like_any_other() {
        let server = start(|_| {});
        let good = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";
        let (long, many) = ("a".repeat(40_000), "X: y\r\n".repeat(200));
        for (before, request, status, code) in [
            (
                "",
                format!("GET /hello HTTP/1.1\r\nHost: x\r\nX-Huge: {long}\r\n\r\n"),
                431,
                "headers_too_large",
            ),
            (
                "",
                format!("GET /hello HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
                431,
                "headers_too_large",
            ),
            (
                good,
                format!("GET /hello HTTP/1.1\r\nHost: x\r\nX-Huge: {long}\r\n\r\n"),
                431,
                "headers_too_large",
            ),
            (
                "",
                format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
                414,
                "uri_too_long",
            ),
            (
                "",
                "GET /hello HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n".to_owned(),
                400,
                "malformed_request",
            ),
            (
                "",
                "what is this?\r\n\r\n".to_owned(),
                400,
                "malformed_request",
            ),
        ] {
            let mut stream = TcpStream::connect(server.address).await.expect("connected");
            if !before.is_empty() {
                stream.write_all(before.as_bytes()).await.expect("sent");
                let mut first = [0; 2_000];
                let read = stream.read(&mut first).await.expect("an answer");
                assert!(first[..read].starts_with(b"HTTP/1.1 200"));
            }
            // The server may have had enough before it has read all of it.
            let _early = stream.write_all(request.as_bytes()).await;
            let answer = rest(&mut stream).await;
            let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            let header = |name: &str| {
                let line = head.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("no {name} in {answer}"))
                    .to_owned()
            };
            assert_eq!(header("content-type: "), PROBLEM_JSON);
            assert_eq!(header("content-length: "), body.len().to_string());
            assert_eq!(header("connection: "), "close");
            assert!(header("date: ").ends_with("GMT"), "{answer}");
            let problem: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(problem["code"], code, "{answer}");
            assert_eq!(problem["status"], status);
            assert_eq!(problem["request_id"], header("x-request-id: "));
        }
        let metrics = server.metrics.render();
        let line = "http_requests_total{endpoint=\"none\",method=\"GET\",status=\"431\"} 3";
        assert!(metrics.contains(line), "{metrics}");
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut_off() {
        let server = start(|_| {});
        let mut stream = TcpStream::connect(server.address).await.expect("connected");
        stream
            .write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        let gone = async {
            while server.metrics.http_connections_open.get() > 0
                || server.metrics.http_active_requests.get() > 0
            {
                tokio::task::yield_now().await;
            }
        };
        // The connection is open until its first request is read.
        timeout(PATIENCE, stream.readable())
            .await
            .expect("answered")
            .expect("open");
        timeout(PATIENCE, gone).await.expect("cut off");
    }

    #[tokio::test]
    async fn a_drain_finishes_what_is_in_flight_and_takes_nothing_new() {
        let server = start(|settings| settings.header_timeout_ms = 15_000);
        let mut idle = TcpStream::connect(server.address).await.expect("connected");
        idle.write_all(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        let mut first = [0_u8; 8];
        idle.read_exact(&mut first).await.expect("answered");
        let mut busy = TcpStream::connect(server.address).await.expect("connected");
        busy.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        timeout(PATIENCE, server.arrived.notified())
            .await
            .expect("arrived");
        server.stop.send_replace(true);
        rest(&mut idle).await; // an idle connection is closed at once
        assert!(
            TcpStream::connect(server.address).await.is_err(),
            "nobody listens any more"
        );
        server.go.notify_one();
        let answer = rest(&mut busy).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"),
            "{answer}"
        );
        let drained = timeout(PATIENCE, server.task)
            .await
            .expect("ends")
            .expect("no panic");
        assert_eq!(drained, Drained { cut_off: 0 });
    }

    #[tokio::test]
    async fn the_grace_ends() {
        let server = start(|settings| settings.shutdown_grace_ms = 50);
        let mut busy = TcpStream::connect(server.address).await.expect("connected");
        busy.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        timeout(PATIENCE, server.arrived.notified())
            .await
            .expect("arrived");
        server.stop.send_replace(true);
        let drained = timeout(PATIENCE, server.task)
            .await
            .expect("ends")
            .expect("no panic");
        assert_eq!(drained, Drained { cut_off: 1 });
    }

    #[tokio::test]
    async fn an_address_over_its_limit_is_told_and_refused() {
        let server = start(|settings| settings.connections_per_address_max = 1);
        let mut busy = TcpStream::connect(server.address).await.expect("connected");
        busy.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        timeout(PATIENCE, server.arrived.notified())
            .await
            .expect("arrived");
        let mut second = TcpStream::connect(server.address).await.expect("connected");
        let answer = rest(&mut second).await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("overloaded"),
            "{answer}"
        );
        server.go.notify_one();
        drop(busy);
    }

    #[test]
    fn the_ready_made_refusal_is_well_formed() {
        let told = too_many_connections("Too many connections.");
        let (head, body) = told.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        let document: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(document["status"], 503);
        let id = document["request_id"].as_str().expect("an id");
        assert!(id.len() == 36 && head.contains(&format!("x-request-id: {id}\r\n")));
    }

    #[test]
    fn an_ipv6_client_is_counted_by_its_network() {
        let seats = Arc::new(Connections::new(10, 1));
        let admit = |text: &str| {
            let address = text.parse().expect("address");
            Connections::admit(&seats, Some(address)).map(|(place, _)| place)
        };
        let first = admit("2001:db8::1");
        assert!(first.is_ok());
        assert_eq!(admit("2001:db8::ffff:2").err(), Some(NoSeat::Client));
        assert!(admit("2001:db8:0:1::1").is_ok());
        drop(first);
        assert!(admit("2001:db8::2").is_ok());
    }

    #[tokio::test]
    async fn a_unix_socket_left_over_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("onrush.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("left over"));
        let socket = UnixSocket::bind(&path).expect("replaced");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        assert_eq!(
            UnixSocket::bind(&path).expect_err("alive").kind(),
            io::ErrorKind::AddrInUse
        );
        drop(socket);
        assert!(!path.exists());
        std::fs::write(&path, "a file").expect("written");
        assert_eq!(
            UnixSocket::bind(&path).expect_err("a file").kind(),
            io::ErrorKind::AlreadyExists
        );
    }

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
