//! Slow and hostile clients, over raw sockets, and a server that runs out of file descriptors.
//!
//! Must hold: who says nothing, too little or too much is answered or closed in time; who has too
//! many connections is told so; honest clients of other addresses are answered all the while; a
//! server without descriptors waits instead of spinning, and serves again when it has some.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use onrush::clock::Stopwatch;
use socket2::{Domain, Socket, Type};

use super::ask::{Client, read_answer};
use super::server::{Launch, Server};
use super::{skip, tool, until};

/// Limits so small that a test takes seconds.
fn strict(root: &tempfile::TempDir) -> Launch {
    Launch::new(&root.path().join("data"))
        .set("ONRUSH_SERVER__FIRST_BYTE_TIMEOUT_MS", 400)
        .set("ONRUSH_SERVER__HEADER_TIMEOUT_MS", 600)
        .set("ONRUSH_SERVER__BODY_TIMEOUT_MS", 500)
        .set("ONRUSH_SERVER__BODY_BYTES_MAX", 4_096)
        .set("ONRUSH_SERVER__HEADER_BYTES_MAX", 8_192)
        .set("ONRUSH_SERVER__CONNECTIONS_PER_ADDRESS_MAX", 100)
}

/// A connection from another address of this machine.
fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0);
    socket.bind(&own.into()).expect("its address");
    socket.connect(&to.into()).expect("connected");
    socket
        .set_read_timeout(Some(super::PATIENCE))
        .expect("a limit");
    socket.into()
}

fn honest(last: u8, to: SocketAddr) -> Client {
    Client {
        address: to,
        stream: Some(BufReader::new(connect_from(last, to))),
    }
}

/// All that the server says until it closes, however it closes.
fn rest(stream: &mut TcpStream) -> String {
    stream
        .set_read_timeout(Some(super::PATIENCE))
        .expect("a limit");
    let (mut all, mut piece) = (Vec::new(), [0; 4_096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(bytes) => all.extend(&piece[..bytes]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("it was not closed: {error}"),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Sends a piece now and then until the server closes; answers how long that took.
fn drip(address: SocketAddr, start: &str, piece: &str) -> Duration {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.write_all(start.as_bytes()).expect("sent");
    stream
        .set_read_timeout(Some(Duration::from_millis(25)))
        .expect("a limit");
    let watch = Stopwatch::start();
    let mut answer = [0; 4_096];
    loop {
        assert!(watch.elapsed() < super::PATIENCE, "it is never closed");
        match stream.read(&mut answer) {
            Ok(0) => return watch.elapsed(),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stream.write_all(piece.as_bytes()).is_err() {
                    return watch.elapsed();
                }
            }
            Err(_) => return watch.elapsed(),
        }
    }
}

#[test]
fn silent_and_dripping_clients_are_closed_while_honest_ones_are_served() {
    let root = tempfile::tempdir().expect("temporary directory");
    let server = strict(&root).start();
    let address = server.address;
    let mut slow: Vec<_> = (0..20)
        .map(|_| std::thread::spawn(move || drip(address, "", "")))
        .collect();
    for _ in 0..20 {
        let head = "GET /livez HTTP/1.1\r\nHost: shop\r\nX-Slow: ";
        slow.push(std::thread::spawn(move || drip(address, head, "a")));
        let body = "POST /api/v1/auth/login HTTP/1.1\r\nHost: shop\r\n\
            Content-Type: application/json\r\nContent-Length: 4000\r\n\r\n{";
        slow.push(std::thread::spawn(move || drip(address, body, "")));
    }
    let mut client = honest(2, address);
    let (mut served, mut longest) = (0, Duration::ZERO);
    while !slow.iter().all(|client| client.is_finished()) {
        let watch = Stopwatch::start();
        let answer = client.get("/api/v1/products", "");
        assert_eq!(answer.status, 200, "{answer:?}");
        longest = longest.max(watch.elapsed());
        served += 1;
    }
    assert!(served > 20, "{served} honest requests were answered");
    assert!(longest < Duration::from_secs(5), "one took {longest:?}");
    for client in slow {
        let closed = client.join().expect("a slow client");
        // Ten times the limit: a busy machine is late, a missing limit never comes.
        assert!(closed < Duration::from_secs(6), "closed after {closed:?}");
    }
}

#[test]
fn requests_that_are_too_large_or_ambiguous_get_their_status() {
    let root = tempfile::tempdir().expect("temporary directory");
    let server = strict(&root).start();
    let huge = "a".repeat(20_000);
    let post = "POST /api/v1/auth/login HTTP/1.1\r\n";
    let json = "Content-Type: application/json\r\n";
    for (request, status) in [
        (
            format!("GET /livez HTTP/1.1\r\nHost: shop\r\nX-Huge: {huge}\r\n\r\n"),
            431,
        ),
        (
            format!(
                "GET /livez HTTP/1.1\r\nHost: shop\r\n{}\r\n",
                "X: y\r\n".repeat(200)
            ),
            431,
        ),
        (
            format!(
                "{post}Host: shop\r\n{json}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
            ),
            400,
        ),
        (format!("{post}{json}Content-Length: 2\r\n\r\n{{}}"), 400),
        (
            format!("{post}Host: shop\r\n{json}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"),
            400,
        ),
        (
            format!("{post}Host: shop\r\n{json}Content-Length: 20000\r\n\r\n{huge}"),
            413,
        ),
        (
            format!(
                "{post}Host: shop\r\n{json}Transfer-Encoding: chunked\r\n\r\n4e20\r\n{huge}\r\n0\r\n\r\n"
            ),
            413,
        ),
        (
            format!("{post}Host: shop\r\n{json}Content-Length: 100\r\n\r\n{{"),
            408,
        ),
        ("\u{0}\u{1}\u{2} rubbish\r\n\r\n".to_owned(), 400),
    ] {
        let mut stream = TcpStream::connect(server.address).expect("connected");
        // It may be answered before it was read to its end.
        let _cut = stream.write_all(request.as_bytes());
        let answer = rest(&mut stream);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{status}: {}\n{answer}",
            &request[..request.len().min(200)]
        );
    }
    let answer = Client::new(server.address).get("/livez", "");
    assert_eq!(answer.status, 200, "it serves on");
    let ended = server.kill();
    assert!(!ended.log.contains("panicked"), "{ended:?}");
}

#[test]
fn an_address_with_too_many_idle_connections_is_told_and_others_are_served() {
    let root = tempfile::tempdir().expect("temporary directory");
    let server = strict(&root)
        // The crowd is to stay while it is counted.
        .set("ONRUSH_SERVER__FIRST_BYTE_TIMEOUT_MS", 3_000)
        .start();
    let mut other = honest(2, server.address);
    let mut idle: Vec<TcpStream> = (0..300)
        .map(|_| TcpStream::connect(server.address).expect("connected"))
        .collect();
    assert_eq!(other.get("/api/v1/products", "").status, 200);
    let metrics = other.get("/metrics", "").body;
    let refused = r#"onrush_http_connections_refused_total{reason="address_limit"} 200"#;
    assert!(
        metrics.contains(refused) || metrics.contains(&refused["onrush_".len()..]),
        "{metrics}"
    );
    let mut told = 0;
    for stream in &mut idle {
        let answer = rest(stream);
        match answer.split(' ').nth(1) {
            Some(status) => {
                assert_eq!(status, "503", "{answer}");
                told += 1;
            }
            // It had a place, said nothing, and was closed.
            None => assert_eq!(answer, ""),
        }
    }
    assert_eq!(told, 200, "all but 100 were refused");
    until("the places are free again", || {
        Client::new(server.address)
            .ask("GET", "/livez", "", None, "")
            .is_some_and(|answer| answer.status == 200)
    });
}

/// Processor time that a process has used.
fn processor_time(server: &Server) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("its state");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum();
    // Linux tells programs of 100 ticks a second, whatever it counts in.
    Duration::from_millis(ticks * 10)
}

/// With more connections than a server can take, it must wait, then serve again.
fn assert_no_spin(server: &Server) {
    let crowd: Vec<TcpStream> = (0..60)
        .map(|_| TcpStream::connect(server.address).expect("in the backlog"))
        .collect();
    let (watch, before) = (Stopwatch::start(), processor_time(server));
    until("two seconds have passed", || {
        watch.elapsed() > Duration::from_secs(2)
    });
    let (waited, used) = (watch.elapsed(), processor_time(server) - before);
    assert!(used < waited / 2, "it used {used:?} of {waited:?}");
    drop(crowd);
    until("it serves again", || {
        let mut stream = TcpStream::connect(server.address).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a limit");
        let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: shop\r\n\r\n");
        asked.is_ok()
            && read_answer(&mut BufReader::new(stream)).is_some_and(|answer| answer.status == 200)
    });
}

#[test]
fn a_server_with_few_descriptors_does_not_spin_and_recovers() {
    if let Err(reason) = tool(&["prlimit", "--version"]) {
        return skip(&reason);
    }
    let root = tempfile::tempdir().expect("temporary directory");
    let patient = |launch: Launch| {
        launch
            .set("ONRUSH_SERVER__FIRST_BYTE_TIMEOUT_MS", 20_000)
            .set("ONRUSH_SERVER__CONNECTIONS_PER_ADDRESS_MAX", 4_096)
    };
    // From the start: it takes no more connections than it has descriptors for.
    let server = patient(strict(&root))
        .under(&["prlimit", "--nofile=64:64"])
        .start();
    assert_no_spin(&server);
    server.stop();

    // Taken away later: accepting fails.
    let server = patient(strict(&root)).start();
    // It raises its own limit before it serves.
    assert_eq!(Client::new(server.address).get("/livez", "").status, 200);
    let pid = server.pid().to_string();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its descriptors")
        .count();
    let limit = format!("--nofile={}", open + 5);
    tool(&["prlimit", "--pid", &pid, &limit]).expect("limited");
    assert_no_spin(&server);
    let ended = server.kill();
    assert!(
        ended.log.contains("could not be accepted"),
        "the limit was met: {ended:?}"
    );
}
