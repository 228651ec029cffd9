//! The server against clients that are slow, greedy, silent or wrong, over real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use poem::{Route, handler};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::http::docs::RouteTable;
use crate::http::edge::{BodyKind, Edge, EdgeOptions};
use crate::http::shares::Shares;

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
        "no socket listens any more"
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
