//! What the edge learnt about a request: its id, the client that sent it, its trace.
//!
//! Invariants: an address or scheme told by a header is believed only from a trusted proxy or a
//! unix socket; a caller's request id is used only if it is short and plain, so that it can be
//! logged and echoed without escaping.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use poem::http::header::{HeaderMap, HeaderValue};
use poem::http::{Method, Uri};
use poem::{FromRequest, Request, RequestBody};
use rand::RngCore;

use super::problem::Problem;
use crate::clock::Timestamp;
use crate::monitor::statements::{Called, StatementCaller};

const REQUEST_ID_CHARS_MAX: usize = 128;

/// The id of a request: the caller's own if it is sane, else a UUIDv7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Takes the caller's `X-Request-ID` if it has 1 to 128 characters of `[A-Za-z0-9._-]`.
    pub(super) fn of(headers: &HeaderMap, now: Timestamp) -> Self {
        match headers.get("x-request-id") {
            Some(own) if is_plain(own.as_bytes()) => Self(own.clone()),
            _ => Self::fresh(now),
        }
    }

    pub(super) fn fresh(now: Timestamp) -> Self {
        let mut random = [0_u8; 10];
        rand::rng().fill_bytes(&mut random);
        let millis = u64::try_from(now.0 / 1_000).unwrap_or_default();
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        let mut text = [0_u8; uuid::fmt::Hyphenated::LENGTH];
        let text = id.as_hyphenated().encode_lower(&mut text);
        Self(HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown")))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

fn is_plain(text: &[u8]) -> bool {
    (1..=REQUEST_ID_CHARS_MAX).contains(&text.len())
        && text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// The client's address: the peer, or what a trusted proxy says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub IpAddr);

/// What counts as one client where clients are counted: the address itself, or of IPv6 its /64, which
/// is what one subscriber owns.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[8..].fill(0);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    }
}

/// The trace that a request belongs to (W3C `traceparent`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(String);

impl TraceParent {
    /// Reads the header; `None` when it is absent or breaks the W3C format, as the standard asks.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let lower_hex = |range: std::ops::Range<usize>| {
            bytes
                .get(range)
                .is_some_and(|part| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
        };
        let dash = |at: usize| bytes.get(at) == Some(&b'-');
        let shaped = lower_hex(0..2)
            && dash(2)
            && lower_hex(3..35)
            && dash(35)
            && lower_hex(36..52)
            && dash(52)
            && lower_hex(53..55);
        if !shaped {
            return None;
        }
        let version = &text[0..2];
        // A later version may append fields after another dash; `ff` is never valid.
        let length_fits = match version {
            "ff" => false,
            "00" => bytes.len() == 55,
            _ => bytes.len() == 55 || dash(55),
        };
        let named =
            text[3..35].bytes().any(|b| b != b'0') && text[36..52].bytes().any(|b| b != b'0');
        (length_fits && named && bytes.len() <= 512).then(|| Self(text.to_owned()))
    }

    /// The whole header value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 hexadecimal digits that name the trace.
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

/// Everything the edge found out; one extension of each request.
#[derive(Clone, Debug)]
pub struct RequestInfo(pub(super) Arc<Info>);

#[derive(Debug)]
pub(super) struct Info {
    pub(super) id: RequestId,
    pub(super) client: ClientAddr,
    /// Whether a trusted proxy named the client.
    pub(super) is_vouched: bool,
    pub(super) secure: bool,
    pub(super) trace: Option<TraceParent>,
    pub(super) method: Method,
    pub(super) uri: Uri,
}

impl StatementCaller for Info {
    fn what(&self) -> String {
        format!("{} {}", self.method, without_ids(self.uri.path()))
    }

    fn id(&self) -> String {
        self.id.as_str().to_owned()
    }

    fn trace(&self) -> Option<&str> {
        self.trace.as_ref().map(TraceParent::as_str)
    }
}

/// Characters of a path that are told.
const PATH_SHOWN_MAX: usize = 100;

/// A path by which requests for different things are one kind: numbers and UUIDs become `{id}`.
fn without_ids(path: &str) -> String {
    let segments = path.split('/').map(|segment| {
        let is_number = segment.bytes().all(|byte| byte.is_ascii_digit());
        match !segment.is_empty() && (is_number || uuid::Uuid::try_parse(segment).is_ok()) {
            true => "{id}",
            false => segment,
        }
    });
    let path = segments.collect::<Vec<_>>().join("/");
    path.chars().take(PATH_SHOWN_MAX).collect()
}

impl RequestInfo {
    /// This request, as the one that has statements run, for the list of slow ones.
    pub(super) fn caller(&self) -> Called {
        Arc::clone(&self.0) as Called
    }

    /// The request's id.
    pub fn id(&self) -> &RequestId {
        &self.0.id
    }

    /// The client's address.
    pub fn client(&self) -> ClientAddr {
        self.0.client
    }

    /// Whether the request's method is one that changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self.0.method, Method::GET | Method::HEAD | Method::OPTIONS)
    }

    /// Whether the client came over TLS, here or at a trusted proxy.
    pub fn is_secure(&self) -> bool {
        self.0.secure
    }

    /// The trace, if the caller sent a valid one.
    pub fn trace(&self) -> Option<&TraceParent> {
        self.0.trace.as_ref()
    }
}

fn info(request: &Request) -> Result<&RequestInfo, poem::Error> {
    request
        .data::<RequestInfo>()
        .ok_or_else(|| Problem::internal("the request did not pass through the edge").into())
}

impl<'a> FromRequest<'a> for RequestInfo {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        info(request).cloned()
    }
}

impl<'a> FromRequest<'a> for RequestId {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        info(request).map(|info| info.id().clone())
    }
}

impl<'a> FromRequest<'a> for ClientAddr {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        info(request).map(RequestInfo::client)
    }
}

/// Whether the request comes from one of `ranges` for certain. What came through a proxy that is not
/// trusted has the proxy's address, which says nothing of the client.
pub fn comes_from(request: &Request, ranges: &[IpNet]) -> bool {
    let Some(info) = request.data::<RequestInfo>() else {
        return false;
    };
    let headers = request.headers();
    let is_passed_on = ["x-forwarded-for", "forwarded", "via"]
        .iter()
        .any(|name| headers.contains_key(*name));
    is_trusted(info.client().0, ranges) && (!is_passed_on || info.0.is_vouched)
}

/// The other end of the connection, before any header is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    /// A unix socket: a process that may open it is on this machine and let in by the file's mode.
    Local,
}

impl Peer {
    fn address(self) -> IpAddr {
        match self {
            Self::Tcp(address) => address.ip().to_canonical(),
            Self::Local => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }

    pub(super) fn is_trusted(self, trusted: &[IpNet]) -> bool {
        match self {
            Self::Tcp(address) => is_trusted(address.ip().to_canonical(), trusted),
            Self::Local => true,
        }
    }
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|range| range.contains(&address))
}

/// The client's address: from the right of `X-Forwarded-For`, the first hop that is no trusted
/// proxy. What stands further left was written by strangers.
pub(super) fn client_address(peer: Peer, headers: &HeaderMap, trusted: &[IpNet]) -> ClientAddr {
    let mut nearest = peer.address();
    if peer.is_trusted(trusted) {
        let lines: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .map(|line| line.to_str().unwrap_or("?"))
            .collect();
        let hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
        for hop in hops {
            let Some(address) = parse_hop(hop.trim()) else {
                break; // unreadable, so nothing to its left can be vouched for
            };
            nearest = address;
            if !is_trusted(address, trusted) {
                break;
            }
        }
    }
    ClientAddr(nearest)
}

/// `1.2.3.4`, `1.2.3.4:567`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:567`.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let address = hop
        .parse::<IpAddr>()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
        .or_else(|| hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok())?;
    Some(address.to_canonical())
}

/// Whether the client's own connection was TLS, as far as we can know.
pub(super) fn is_secure(tls: bool, peer: Peer, headers: &HeaderMap, trusted: &[IpNet]) -> bool {
    if tls {
        return true;
    }
    let Some(told) = headers
        .get("x-forwarded-proto")
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let nearest = told.rsplit(',').next().unwrap_or_default().trim();
    nearest.eq_ignore_ascii_case("https") && peer.is_trusted(trusted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).expect("value"));
        }
        map
    }

    fn tcp(address: &str) -> Peer {
        Peer::Tcp(SocketAddr::new(address.parse().expect("address"), 4000))
    }

    #[test]
    fn only_trusted_hops_may_name_the_client() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"]
            .map(|net| net.parse().expect("net"))
            .into();
        let cases: &[(Peer, &[&str], &str)] = &[
            // A stranger's own claim is ignored.
            (tcp("203.0.113.9"), &["1.1.1.1"], "203.0.113.9"),
            (tcp("10.0.0.1"), &[], "10.0.0.1"),
            (tcp("10.0.0.1"), &["1.1.1.1"], "1.1.1.1"),
            // What stands left of the first stranger was written by that stranger.
            (tcp("10.0.0.1"), &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            (tcp("10.0.0.1"), &["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            (tcp("10.0.0.1"), &["6.6.6.6", "1.1.1.1"], "1.1.1.1"),
            (tcp("10.0.0.1"), &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (tcp("10.0.0.1"), &["1.1.1.1, garbage, 10.0.0.2"], "10.0.0.2"),
            (tcp("10.0.0.1"), &["1.1.1.1:5555"], "1.1.1.1"),
            (tcp("fd00::1"), &["[2001:db8::7]:443"], "2001:db8::7"),
            // A mapped address is the address that it maps.
            (tcp("::ffff:10.0.0.1"), &["::ffff:1.1.1.1"], "1.1.1.1"),
            (Peer::Local, &["1.1.1.1"], "1.1.1.1"),
            (Peer::Local, &[], "127.0.0.1"),
            (tcp("10.0.0.1"), &[""], "10.0.0.1"),
        ];
        for (peer, lines, expected) in cases {
            let pairs: Vec<_> = lines
                .iter()
                .map(|line| ("x-forwarded-for", *line))
                .collect();
            let found = client_address(*peer, &headers(&pairs), &trusted);
            assert_eq!(found.0.to_string(), *expected, "{peer:?} {lines:?}");
        }
    }

    #[test]
    fn https_is_believed_only_from_trusted_hops() {
        let trusted = ["10.0.0.0/8".parse().expect("net")];
        let told = headers(&[("x-forwarded-proto", "https")]);
        assert!(is_secure(false, tcp("10.0.0.1"), &told, &trusted));
        assert!(!is_secure(false, tcp("203.0.113.9"), &told, &trusted));
        assert!(is_secure(true, tcp("203.0.113.9"), &headers(&[]), &trusted));
    }

    #[test]
    fn a_request_id_is_taken_only_when_plain() {
        let now = Timestamp(1_700_000_000_000_000);
        for own in ["a", "01HX.y_z-9", &"a".repeat(128)] {
            assert_eq!(
                RequestId::of(&headers(&[("x-request-id", own)]), now).as_str(),
                own
            );
        }
        for odd in ["", "a b", "a\"b", "é", "<script>", &"a".repeat(129)] {
            let id = RequestId::of(&headers(&[("x-request-id", odd)]), now);
            let parsed = uuid::Uuid::parse_str(id.as_str()).expect("a fresh UUID");
            assert_eq!(parsed.get_version_num(), 7);
        }
    }

    #[test]
    fn traceparent_follows_the_standard() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = TraceParent::parse(good).expect("valid");
        assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let later = format!("01{}-more", &good[2..]);
        assert!(TraceParent::parse(&later).is_some());
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &format!("{good}-more"),
            &good.replacen("00-", "ff-", 1),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-é4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }
}
