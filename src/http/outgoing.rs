//! Calls to other people's servers: the only way out, guarded against being turned inward.
//!
//! Invariants: the address that is dialled is one that was checked, so a name that changes its mind
//! between the check and the call gains nothing; an address that is not public is never dialled
//! unless the settings allow it; a name of which any address is refused is refused; redirects are
//! answers like any other and are never followed; no environment variable sends a call elsewhere;
//! a call ends at its time, and what is read of its answer is bounded. An error names the host at
//! most: what stands in a path, a query or a header may be a secret.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::response::Parts;
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::{Host, Position, Url};

use super::tls::{TlsError, certificates};
use crate::clock::{Stopwatch, Timestamp};
use crate::config::{self, ms};

/// Longest URL that is called.
const URL_BYTES_MAX: usize = 2_000;
/// Addresses of one name that are tried, one after the other.
const ADDRESSES_MAX: usize = 4;
/// Longest wait that an answer may ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);
/// The `User-Agent` of a call that brings none of its own.
const USER_AGENT: &str = concat!("Onrush/", env!("CARGO_PKG_VERSION"));
/// Headers that belong to the connection, or that this client writes itself.
const OWN_HEADERS: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "expect",
    "proxy-connection",
    "proxy-authorization",
    "http2-settings",
];

/// Why a call was not made, or got no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutgoingError {
    /// It can't be called at all.
    #[error("the URL {0}")]
    Url(&'static str),
    /// It holds what is to be kept out of URLs.
    #[error("the URL must not hold a user name or password")]
    Credentials,
    /// A header or the method is none.
    #[error("{0}")]
    Request(String),
    /// It leads to an address that is not public.
    #[error(
        "{host} has the address {address}, which is not public; outgoing.allow_internal lists those that may be called nevertheless"
    )]
    Refused {
        /// The host of the URL.
        host: String,
        /// Its address.
        address: IpAddr,
    },
    /// The name has no address, or no name server told it.
    #[error("{host} could not be looked up: {reason}")]
    Lookup {
        /// The host of the URL.
        host: String,
        /// What the system says.
        reason: String,
    },
    /// No server answers at the address.
    #[error("{host} could not be reached: {reason}")]
    Connect {
        /// The host of the URL.
        host: String,
        /// What the system says.
        reason: String,
    },
    /// Its certificate does not hold, or it speaks no TLS.
    #[error("TLS with {host} failed: {reason}")]
    Tls {
        /// The host of the URL.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// It took too long.
    #[error("there was no whole answer within {0} ms")]
    Timeout(u64),
    /// What came back is no HTTP, or broke off.
    #[error("the answer was no valid HTTP: {0}")]
    Broken(String),
}

impl OutgoingError {
    /// Whether the same call would be refused again.
    pub fn is_final(&self) -> bool {
        match self {
            OutgoingError::Url(_)
            | OutgoingError::Credentials
            | OutgoingError::Request(_)
            | OutgoingError::Refused { .. } => true,
            OutgoingError::Lookup { .. }
            | OutgoingError::Connect { .. }
            | OutgoingError::Tls { .. }
            | OutgoingError::Timeout(_)
            | OutgoingError::Broken(_) => false,
        }
    }
}

/// Whether this address means the same machine everywhere on the Internet.
///
/// After IANA's registries of special-purpose addresses; what carries an IPv4 address is judged by
/// that one. Of IPv6 only the global unicast range counts, without its parts for protocols, tunnels
/// and documentation.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    match (a, b, c) {
        (0 | 10 | 127, ..) | (224.., ..) => false,
        (100, 64..=127, _) | (169, 254, _) | (172, 16..=31, _) | (192, 168, _) => false,
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18..=19, _) => false,
        (198, 51, 100) | (203, 0, 113) => false,
        // The host's own services at a cloud provider, on an address that looks public.
        (168, 63, 129) if d == 16 => false,
        _ => true,
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let words = address.segments();
    let embedded = || {
        let [a, b] = words[6].to_be_bytes();
        let [c, d] = words[7].to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match words {
        // IPv4 written as IPv6, and as the well-known prefix of NAT64 translates it.
        [0, 0, 0, 0, 0, 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => {
            is_public_v4(embedded())
        }
        // Teredo, ORCHID, benchmarks and other protocols; documentation, twice; 6to4.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x2002, ..] => false,
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

/// A URL that may be called, taken apart.
#[derive(Clone, Debug)]
pub struct Target {
    is_https: bool,
    host: Host<String>,
    port: u16,
    authority: String,
    path: String,
}

impl Target {
    /// Reads a URL: http or https, with a host and without credentials.
    pub fn parse(text: &str) -> Result<Self, OutgoingError> {
        if text.len() > URL_BYTES_MAX {
            return Err(OutgoingError::Url("is longer than 2000 bytes"));
        }
        let url = Url::parse(text).map_err(|_| OutgoingError::Url("is not valid"))?;
        let is_https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(OutgoingError::Url("must begin with https:// or http://")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(OutgoingError::Credentials);
        }
        let (Some(host), Some(port @ 1..)) = (url.host(), url.port_or_known_default()) else {
            return Err(OutgoingError::Url("must name a host and a port above 0"));
        };
        Ok(Self {
            is_https,
            host: host.to_owned(),
            port,
            authority: url[Position::BeforeHost..Position::AfterPort].to_owned(),
            path: url[Position::BeforePath..Position::AfterQuery].to_owned(),
        })
    }

    /// The host that it calls, for people: without the path, which may hold a secret.
    pub fn host(&self) -> String {
        self.host.to_string()
    }

    /// Its address, if it names one instead of a host.
    fn literal(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(IpAddr::V4(*address)),
            Host::Ipv6(address) => Some(IpAddr::V6(*address)),
        }
    }
}

/// A call to be made.
#[derive(Clone, Debug)]
pub struct OutgoingCall {
    /// Such as `POST`.
    pub method: String,
    /// Where to.
    pub target: Target,
    /// What goes with it.
    pub headers: Headers,
    /// What is sent.
    pub body: Bytes,
    /// From the look-up of the name to the last byte of the answer; the settings bound it.
    pub timeout: Duration,
    /// What is read of the answer's body; the settings bound it.
    pub body_bytes_max: usize,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Headers,
    /// Its body, or the beginning of it.
    pub body: Bytes,
    /// Whether there was more, or should have been.
    pub is_cut: bool,
    /// Why the end of the body did not come: it broke off, or took too long. The status stands.
    pub unfinished: Option<OutgoingError>,
    /// How long it took.
    pub took: Duration,
}

impl Reply {
    /// Whether it says yes.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// How long it asks to wait (`Retry-After`, in seconds or as a date), [`RETRY_AFTER_MAX`] at most.
    pub fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let text = self
            .headers
            .0
            .get(header::RETRY_AFTER)?
            .to_str()
            .ok()?
            .trim();
        let asked = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // More digits than fit are a long wait as well.
            Duration::from_secs(text.parse().unwrap_or(u64::MAX))
        } else {
            let at = chrono::DateTime::parse_from_rfc2822(text).ok()?;
            let micros = at.timestamp_micros().saturating_sub(now.0);
            Duration::from_micros(u64::try_from(micros).ok()?)
        };
        Some(asked.min(RETRY_AFTER_MAX))
    }

    /// The body as text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Headers of a call or of an answer.
#[derive(Clone, Debug, Default)]
pub struct Headers(HeaderMap);

impl Headers {
    /// Reads headers that are to be sent; refuses those that are the connection's own.
    pub fn read<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, OutgoingError> {
        let mut headers = Self::default();
        for (name, value) in pairs {
            headers.add(name, value)?;
        }
        Ok(headers)
    }

    /// Adds one.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), OutgoingError> {
        let fault = |what: &str| OutgoingError::Request(format!("the header {name:?} {what}"));
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| fault("has no valid name"))?;
        if OWN_HEADERS.contains(&name.as_str()) {
            return Err(fault("is set by the connection"));
        }
        let mut value = HeaderValue::from_str(value).map_err(|_| fault("has no valid value"))?;
        // It may be a secret: debug output leaves it out.
        value.set_sensitive(true);
        self.0.append(name, value);
        Ok(())
    }

    /// Whether one of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Each name with its value; what is no UTF-8 is replaced.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, String)> {
        self.0.iter().map(|(name, value)| {
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str(), text)
        })
    }
}

/// Where the addresses of a name come from.
enum Names {
    /// The system.
    System,
    /// A test: each look-up takes the next answer.
    #[cfg(test)]
    Scripted(parking_lot::Mutex<std::collections::VecDeque<Vec<IpAddr>>>),
}

/// The way out; clones share it.
#[derive(Clone)]
pub struct Outgoing(Arc<Inner>);

struct Inner {
    rules: Arc<config::Outgoing>,
    tls: Arc<ClientConfig>,
    names: Names,
    lookups: Semaphore,
}

impl Outgoing {
    /// With the certificate authorities that browsers trust, and those of `outgoing.extra_ca`.
    pub fn new(rules: Arc<config::Outgoing>) -> Result<Self, TlsError> {
        Self::with_names(rules, Names::System)
    }

    fn with_names(rules: Arc<config::Outgoing>, names: Names) -> Result<Self, TlsError> {
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        if !rules.extra_ca.as_os_str().is_empty() {
            for certificate in certificates(&rules.extra_ca)? {
                roots.add(certificate)?;
            }
        }
        let provider = Arc::new(ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(Inner {
            lookups: Semaphore::new(rules.lookups_max),
            rules,
            tls: Arc::new(tls),
            names,
        })))
    }

    /// Its settings.
    pub fn rules(&self) -> &config::Outgoing {
        &self.0.rules
    }

    /// Refuses a URL that could never be called, without looking up its name.
    pub fn check(&self, url: &str) -> Result<Target, OutgoingError> {
        let target = Target::parse(url)?;
        if let Some(address) = target.literal() {
            self.permit(&target, address)?;
        }
        Ok(target)
    }

    fn permit(&self, target: &Target, address: IpAddr) -> Result<(), OutgoingError> {
        let canonical = address.to_canonical();
        let allowed = &self.0.rules.allow_internal;
        let holds = |range: &IpNet| range.contains(&canonical);
        if is_public(address) || allowed.iter().any(holds) {
            Ok(())
        } else {
            Err(OutgoingError::Refused {
                host: target.host(),
                address,
            })
        }
    }

    /// Makes a call. Every answer is an answer, whatever its status, and also where its body breaks off.
    pub async fn call(&self, call: OutgoingCall) -> Result<Reply, OutgoingError> {
        let rules = &self.0.rules;
        let limit = call.timeout.min(ms(rules.timeout_ms));
        let watch = Stopwatch::start();
        let late = || OutgoingError::Timeout(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let begun = timeout(limit, self.begin(&call)).await;
        let BegunReply {
            head,
            mut body,
            connection: _connection,
        } = begun.map_err(|_| late())??;
        let most = call.body_bytes_max.min(rules.response_bytes_max);
        let mut bytes = Vec::new();
        let left = limit.saturating_sub(watch.elapsed());
        let read = timeout(left, read_body(&mut body, most, &mut bytes)).await;
        let (is_cut, unfinished) = match read {
            Ok(Ok(is_cut)) => (is_cut, None),
            Ok(Err(error)) => (true, Some(error)),
            Err(_) => (true, Some(late())),
        };
        Ok(Reply {
            status: head.status.as_u16(),
            headers: Headers(head.headers),
            body: Bytes::from(bytes),
            is_cut,
            unfinished,
            took: watch.elapsed(),
        })
    }

    /// The answer up to its body.
    async fn begin(&self, call: &OutgoingCall) -> Result<BegunReply, OutgoingError> {
        let target = &call.target;
        let addresses = self.addresses(target).await?;
        let stream = self.connect(target, &addresses).await?;
        if !target.is_https {
            return self.exchange(stream, call).await;
        }
        let fault = |reason: String| OutgoingError::Tls {
            host: target.host(),
            reason,
        };
        let name = match &target.host {
            Host::Domain(name) => ServerName::try_from(name.clone())
                .map_err(|_| fault("no certificate can name this host".to_owned()))?,
            Host::Ipv4(address) => ServerName::from(IpAddr::V4(*address)),
            Host::Ipv6(address) => ServerName::from(IpAddr::V6(*address)),
        };
        let stream = TlsConnector::from(Arc::clone(&self.0.tls))
            .connect(name, stream)
            .await
            .map_err(|error| fault(error.to_string()))?;
        self.exchange(stream, call).await
    }

    /// The addresses to dial, all of them checked.
    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, OutgoingError> {
        let found = match &target.host {
            Host::Domain(name) => self.look_up(name).await?,
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
        };
        for address in &found {
            self.permit(target, *address)?;
        }
        Ok(found
            .into_iter()
            .take(ADDRESSES_MAX)
            .map(|address| SocketAddr::new(address, target.port))
            .collect())
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, OutgoingError> {
        let fault = |reason: String| OutgoingError::Lookup {
            host: name.to_owned(),
            reason,
        };
        let found: Vec<IpAddr> = match &self.0.names {
            Names::System => {
                // The system's look-up holds a thread, and a bad name server holds it long.
                let _place = self.0.lookups.acquire().await;
                tokio::net::lookup_host((name, 0))
                    .await
                    .map_err(|error| fault(error.to_string()))?
                    .map(|address| address.ip())
                    .collect()
            }
            #[cfg(test)]
            Names::Scripted(answers) => answers.lock().pop_front().unwrap_or_default(),
        };
        if found.is_empty() {
            return Err(fault("it has no address".to_owned()));
        }
        Ok(found)
    }

    async fn connect(
        &self,
        target: &Target,
        addresses: &[SocketAddr],
    ) -> Result<TcpStream, OutgoingError> {
        let limit = ms(self.0.rules.connect_timeout_ms);
        let mut reason = String::new();
        for address in addresses {
            match timeout(limit, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Only a hint for speed; the call works without.
                    let _delayed = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => reason = error.to_string(),
                Err(_) => reason = format!("no answer within {} ms", limit.as_millis()),
            }
        }
        Err(OutgoingError::Connect {
            host: target.host(),
            reason,
        })
    }

    async fn exchange<S>(&self, stream: S, call: &OutgoingCall) -> Result<BegunReply, OutgoingError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let rules = &self.0.rules;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(rules.response_header_bytes_max)
            .max_headers(rules.response_headers_max)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Its error reaches the call that waits for the answer; it ends with this call at the latest.
        let connection = EndsWithIt(tokio::spawn(async move {
            let _ended = connection.await;
        }));
        let response = sender.send_request(request(call)?).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        Ok(BegunReply {
            head,
            body,
            connection,
        })
    }
}

/// An answer whose body is still to come.
struct BegunReply {
    head: Parts,
    body: Incoming,
    connection: EndsWithIt,
}

fn broken(error: hyper::Error) -> OutgoingError {
    OutgoingError::Broken(error.to_string())
}

/// Reads what there is, `most` bytes of it; answers whether there was more.
async fn read_body(
    body: &mut Incoming,
    most: usize,
    bytes: &mut Vec<u8>,
) -> Result<bool, OutgoingError> {
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else {
            continue; // trailers
        };
        let room = most - bytes.len();
        bytes.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            return Ok(true);
        }
    }
    Ok(false)
}

fn request(call: &OutgoingCall) -> Result<Request<Full<Bytes>>, OutgoingError> {
    let target = &call.target;
    let uri: Uri = target
        .path
        .parse()
        .map_err(|_| OutgoingError::Url("has a path that can't be sent"))?;
    let host = HeaderValue::from_str(&target.authority)
        .map_err(|_| OutgoingError::Url("has a host that can't be sent"))?;
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = Method::from_bytes(call.method.as_bytes())
        .map_err(|_| OutgoingError::Request("the method is not valid".to_owned()))?;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    *headers = call.headers.0.clone();
    headers.insert(header::HOST, host);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if !headers.contains_key(header::USER_AGENT) {
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    }
    Ok(request)
}

/// A background part that ends when this is dropped.
struct EndsWithIt(tokio::task::JoinHandle<()>);

impl Drop for EndsWithIt {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    fn outgoing(names: &[&[&str]], change: impl FnOnce(&mut config::Outgoing)) -> Outgoing {
        let answers: VecDeque<Vec<IpAddr>> = names
            .iter()
            .map(|answer| {
                answer
                    .iter()
                    .map(|text| text.parse().expect("an address"))
                    .collect()
            })
            .collect();
        let mut rules = config::Outgoing::default();
        change(&mut rules);
        Outgoing::with_names(Arc::new(rules), Names::Scripted(Mutex::new(answers))).expect("valid")
    }

    fn inside(rules: &mut config::Outgoing) {
        rules.allow_internal = vec!["127.0.0.0/8".parse().expect("a range")];
    }

    fn call(url: &str) -> OutgoingCall {
        OutgoingCall {
            method: "POST".to_owned(),
            target: Target::parse(url).expect("a URL"),
            headers: Headers::default(),
            body: Bytes::from_static(b"hello"),
            timeout: Duration::from_secs(10),
            body_bytes_max: 5,
        }
    }

    #[test]
    fn addresses_that_are_not_public_are_known() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "64:ff9b:1:2::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:0:4136:e378::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(!is_public(text.parse().expect(text)), "{text}");
        }
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "168.63.129.17",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.254",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700:4700::1111",
            "2a00:1450:4001::1",
            "3ffe::1",
        ] {
            assert!(is_public(text.parse().expect(text)), "{text}");
        }
    }

    #[test]
    fn urls_that_lead_inside_or_nowhere_are_refused_however_they_are_spelt() {
        let out = outgoing(&[], |_| ());
        for url in [
            "",
            "example.com",
            "//example.com",
            "ftp://example.com",
            "file:///etc/passwd",
            "gopher://example.com",
            "http://",
            "https://user@example.com",
            "https://user:secret@example.com",
            "http://@",
            "http://example.com:0/",
            "http://exa mple.com",
            "http://127.0.0.1",
            "http://127.0.0.1:8080/x",
            "http://127.1",
            "http://0x7f.1",
            "http://0x7f000001",
            "http://2130706433",
            "http://017700000001",
            "http://0177.0.0.1",
            "http://127.0.0.1.",
            "http://①②⑦.⓪.⓪.①",
            "http://0",
            "http://10.1",
            "http://169.254.169.254/latest",
            "http://0xa9fea9fe",
            "http://2852039166",
            "http://[::1]",
            "http://[::]",
            "http://[::ffff:127.0.0.1]",
            "http://[::ffff:7f00:1]",
            "http://[64:ff9b::a9fe:a9fe]",
            "http://[fe80::1]",
            "http://[fd00:ec2::254]",
            "http://[2002:7f00:1::]",
            "https://100.100.100.200/meta",
        ] {
            let error = out.check(url).expect_err(url);
            assert!(
                error.is_final() && !error.to_string().contains("secret"),
                "{url}: {error}"
            );
        }
        for url in [
            "https://example.com",
            "http://例子.中国/路径?问=1",
            "https://1.1.1.1:8443/x#y",
        ] {
            out.check(url).expect(url);
        }
        let long = format!("https://example.com/{}", "x".repeat(2_000));
        assert!(Target::parse(&long).is_err());
    }

    #[test]
    fn headers_of_the_connection_are_refused_and_values_stay_out_of_debug_output() {
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "Connection",
            "",
            "a b",
            "a\r\nb",
        ] {
            assert!(Headers::read([(name, "1")]).is_err(), "{name}");
        }
        assert!(Headers::read([("x", "a\r\nb: c")]).is_err());
        let headers = Headers::read([("authorization", "Bearer hunter2")]).expect("valid");
        assert!(!format!("{headers:?}").contains("hunter2"));
    }

    /// Answers every connection alike.
    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = [0; 1_024];
                let _read = stream.read(&mut bytes).await;
                let _gone = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn a_name_that_changes_its_mind_is_dialled_where_it_was_checked() {
        let port = server("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n12345678").await;
        let names: [&[&str]; 5] = [
            &["127.0.0.1"],
            &["10.0.0.1"],
            &["127.0.0.1", "169.254.169.254"],
            &["::ffff:127.0.0.1"],
            &[],
        ];
        let out = outgoing(&names, inside);
        let url = format!("http://rebind.example:{port}/");
        let reply = out
            .call(call(&url))
            .await
            .expect("the first answer is allowed");
        assert_eq!((reply.text().as_str(), reply.is_cut), ("12345", true));
        for _ in 0..2 {
            let error = out.call(call(&url)).await.expect_err("it leads inside");
            assert!(matches!(error, OutgoingError::Refused { .. }), "{error}");
        }
        // The range of IPv4 means its IPv6 spelling as well; whether it can be dialled is the system's.
        let spelt = out.call(call(&url)).await;
        assert!(
            !matches!(spelt, Err(OutgoingError::Refused { .. })),
            "{spelt:?}"
        );
        let none = out.call(call(&url)).await.expect_err("no address");
        assert!(matches!(none, OutgoingError::Lookup { .. }), "{none}");
    }

    #[tokio::test]
    async fn a_status_stands_whose_body_does_not_end() {
        // It sends half, and then either hangs up or keeps the connection.
        for keeps in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = listener.local_addr().expect("an address").port();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a call");
                let mut bytes = [0; 1_024];
                let _read = stream.read(&mut bytes).await;
                let half: &[u8] = match keeps {
                    true => b"HTTP/1.1 200 Fine\r\nContent-Length: 9\r\n\r\nhalf",
                    false => {
                        b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
                    }
                };
                stream.write_all(half).await.expect("sent");
                if keeps {
                    // Until the caller has had enough.
                    let _gone = stream.read(&mut bytes).await;
                }
            });
            let out = outgoing(&[], |rules| {
                inside(rules);
                rules.timeout_ms = 300;
            });
            let url = format!("http://127.0.0.1:{port}/");
            let reply = out.call(call(&url)).await.expect("an answer");
            assert_eq!((reply.status, reply.text().as_str()), (200, "half"));
            assert!(reply.is_success() && reply.is_cut);
            match reply.unfinished {
                Some(OutgoingError::Timeout(300)) => assert!(keeps),
                Some(OutgoingError::Broken(_)) => assert!(!keeps),
                other => panic!("{other:?}"),
            }
            server.await.expect("it ends");
        }
    }

    #[tokio::test]
    async fn silence_and_refusal_end_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let out = outgoing(&[], |rules| {
            inside(rules);
            rules.timeout_ms = 50;
        });
        let silent = out.call(call(&format!("http://127.0.0.1:{port}/"))).await;
        assert_eq!(silent.expect_err("silence"), OutgoingError::Timeout(50));
        drop(listener);
        let closed = out.call(call(&format!("http://127.0.0.1:{port}/"))).await;
        assert!(
            matches!(closed, Err(OutgoingError::Connect { .. })),
            "{closed:?}"
        );
    }

    #[tokio::test]
    async fn a_certificate_must_be_of_a_trusted_authority_and_of_the_host() {
        let made = rcgen::generate_simple_self_signed(vec!["hooks.example".to_owned()])
            .expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a pair");
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut bytes = [0; 1_024];
                let _read = stream.read(&mut bytes).await;
                let _gone = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        });
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, made.cert.pem()).expect("written");
        let here: [&[&str]; 2] = [&["127.0.0.1"], &["127.0.0.1"]];
        let trusting = outgoing(&here, |rules| {
            inside(rules);
            rules.extra_ca = file;
        });
        let url = format!("https://hooks.example:{port}/");
        let reply = trusting.call(call(&url)).await.expect("trusted");
        assert_eq!(reply.status, 204);
        let other = trusting
            .call(call(&format!("https://other.example:{port}/")))
            .await;
        assert!(matches!(other, Err(OutgoingError::Tls { .. })), "{other:?}");
        let strict = outgoing(&here, inside).call(call(&url)).await;
        assert!(
            matches!(strict, Err(OutgoingError::Tls { .. })),
            "{strict:?}"
        );
    }

    #[test]
    fn a_wait_is_read_in_seconds_or_as_a_date() {
        let reply = |value: &str| Reply {
            status: 503,
            headers: Headers::read([("retry-after", value)]).expect("valid"),
            body: Bytes::new(),
            is_cut: false,
            unfinished: None,
            took: Duration::ZERO,
        };
        let now = Timestamp::parse_rfc3339("2026-11-11T00:00:00Z").expect("a time");
        let wait = |value: &str| reply(value).retry_after(now);
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            wait("Wed, 11 Nov 2026 00:01:00 GMT"),
            Some(Duration::from_secs(60))
        );
        for bad in ["-1", "soon", "Wed, 11 Nov 2025 00:00:00 GMT", "1e9", ""] {
            assert_eq!(wait(bad), None, "{bad}");
        }
        for long in [
            "86401",
            "4294967295",
            "18446744073709551615",
            "999999999999999999999999999",
            "Fri, 31 Dec 9999 23:59:59 GMT",
        ] {
            assert_eq!(wait(long), Some(RETRY_AFTER_MAX), "{long}");
        }
    }
}
