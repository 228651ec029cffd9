//! TLS as a client from outside meets it: HTTP/2 or 1.1 by agreement, and a new certificate without
//! a restart.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, Version, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::Shop;

struct Certificate {
    cert_pem: String,
    key_pem: String,
    der: CertificateDer<'static>,
}

fn certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    Certificate {
        cert_pem: made.cert.pem(),
        key_pem: made.signing_key.serialize_pem(),
        der: made.cert.der().clone(),
    }
}

/// What a client hears that trusts these certificates and offers these protocols.
struct Heard {
    version: Version,
    status: u16,
    request_id: Option<String>,
    is_strict: bool,
    body: Bytes,
    presented: CertificateDer<'static>,
}

async fn ask(address: SocketAddr, trusted: &[&Certificate], alpn: &[&str]) -> Heard {
    let request = Request::get("https://localhost/livez").header("host", "localhost");
    ask_for(address, trusted, alpn, request).await
}

async fn ask_for(
    address: SocketAddr,
    trusted: &[&Certificate],
    alpn: &[&str],
    request: hyper::http::request::Builder,
) -> Heard {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.der.clone()).expect("a root");
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let tcp = TcpStream::connect(address).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .expect("a certificate that is trusted");
    let session = tls.get_ref().1;
    let presented = session.peer_certificates().expect("presented")[0].clone();
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    let io = TokioIo::new(tls);
    let answer: Response<Incoming> = if is_h2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        sender.send_request(request).await.expect("answered")
    } else {
        let (mut sender, connection) = http1::handshake(io).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        sender.send_request(request).await.expect("answered")
    };
    Heard {
        version: answer.version(),
        status: answer.status().as_u16(),
        request_id: answer
            .headers()
            .get("x-request-id")
            .map(|id| id.to_str().expect("text").to_owned()),
        is_strict: answer.headers().contains_key("strict-transport-security"),
        body: answer
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes(),
        presented,
    }
}

#[test]
fn http2_and_http1_are_spoken_and_a_new_certificate_needs_no_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let write = |certificate: &Certificate| {
        std::fs::write(&cert, &certificate.cert_pem).expect("written");
        std::fs::write(&key, &certificate.key_pem).expect("written");
    };
    let (first, second) = (certificate(), certificate());
    write(&first);
    let shop = Shop::open_with(|settings| {
        settings.server.tls_cert = cert.clone();
        settings.server.tls_key = key.clone();
    });
    let client = tokio::runtime::Runtime::new().expect("a runtime");
    let ask =
        |trusted: &[&Certificate], alpn: &[&str]| client.block_on(ask(shop.address, trusted, alpn));
    for (alpn, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"][..], Version::HTTP_11),
        (&[][..], Version::HTTP_11),
    ] {
        let heard = ask(&[&first], alpn);
        assert_eq!((heard.version, heard.status), (version, 200), "{alpn:?}");
        assert!(heard.is_strict && !heard.body.is_empty(), "{alpn:?}");
    }
    // Between the two writes the pair does not fit; the old one must serve until the new one does.
    write(&second);
    shop.wait_until("the new certificate is presented", || {
        let heard = ask(&[&first, &second], &["h2"]);
        assert_eq!(heard.status, 200);
        heard.presented == second.der
    });
    std::fs::write(&key, "no key").expect("written");
    // As SIGHUP does; nobody waits for the next look at the files.
    shop.app().reload_certificates();
    assert_eq!(ask(&[&second], &["h2"]).status, 200);
    let third = certificate();
    write(&third);
    shop.app().reload_certificates();
    assert_eq!(ask(&[&third], &["h2"]).presented, third.der);
}

#[test]
fn a_head_that_is_too_large_is_answered_with_a_problem_over_http2_as_well() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = certificate();
    std::fs::write(&cert, &made.cert_pem).expect("written");
    std::fs::write(&key, &made.key_pem).expect("written");
    let shop = Shop::open_with(|settings| {
        settings.server.tls_cert = cert.clone();
        settings.server.tls_key = key.clone();
        settings.server.header_bytes_max = 8_192;
    });
    let client = tokio::runtime::Runtime::new().expect("a runtime");
    let ask = |request| client.block_on(ask_for(shop.address, &[&made], &["h2"], request));
    let get = |path: &str| Request::get(format!("https://localhost/{path}"));
    let long = |length: usize| "a".repeat(length);
    for (request, status, code) in [
        (
            get("livez").header("x-huge", long(9_000)),
            431,
            "headers_too_large",
        ),
        (get(&long(9_000)), 414, "uri_too_long"),
    ] {
        let heard = ask(request);
        assert_eq!((heard.version, heard.status), (Version::HTTP_2, status));
        let problem: serde_json::Value = serde_json::from_slice(&heard.body).expect("JSON");
        assert_eq!(problem["code"], code);
        assert_eq!(problem["request_id"].as_str(), heard.request_id.as_deref());
        assert!(heard.request_id.is_some());
    }
    // Twice the limit is more than h2 takes, which then answers by itself.
    let heard = ask(get("livez").header("x-huge", long(20_000)));
    assert_eq!((heard.status, heard.body.len()), (431, 0));
    assert_eq!(ask(get("livez")).status, 200);
}
