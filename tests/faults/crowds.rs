//! Crowds that want the shop down: each of them alone is within every limit of a request.
//!
//! Must hold: whoever is honest is let in and answered beside them; what all together hold stays
//! within the sums of the settings, and comes back when they are gone; who is refused is told so with
//! 429 or 503 and when to come back.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use onrush::cli::drill::{Attack, Field, Over, Siege};
use onrush::clock::Stopwatch;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::ask::{Client, read_answer};
use super::disk::{Mount, fill};
use super::sale::{Buyer, Crowd, Sale};
use super::server::{Launch, Server};
use super::{skip, until};

/// A connection from another address of this machine, that takes in only so much by itself.
fn connect(from: [u8; 4], to: SocketAddr, receives: Option<usize>) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    if let Some(bytes) = receives {
        socket.set_recv_buffer_size(bytes).expect("a small window");
    }
    let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::from(from)), 0);
    socket.bind(&own.into()).expect("its address");
    socket.connect(&to.into()).expect("connected");
    let stream: TcpStream = socket.into();
    stream
        .set_read_timeout(Some(super::PATIENCE))
        .expect("a limit");
    stream
}

/// The figure of a line of `/metrics`.
fn figure(server: &Server, line: &str) -> f64 {
    let page = Client::new(server.address).get("/metrics", "").body;
    page.lines()
        .find_map(|text| text.strip_prefix(line)?.trim().parse().ok())
        .unwrap_or_default()
}

#[test]
fn whoever_comes_is_let_in_where_unfinished_logins_hold_all_connections() {
    let root = tempfile::tempdir().expect("temporary directory");
    let launch = Launch::new(&root.path().join("data"))
        .set("ONRUSH_SERVER__CONNECTIONS_MAX", 60)
        // Nobody goes for want of patience while this runs.
        .set("ONRUSH_SERVER__FIRST_BYTE_TIMEOUT_MS", 300_000)
        .set("ONRUSH_SERVER__HEADER_TIMEOUT_MS", 300_000)
        .set("ONRUSH_SERVER__BODY_TIMEOUT_MS", 300_000)
        .set("ONRUSH_SERVER__REQUEST_TIMEOUT_MS", 300_000);
    let (sale, server) = Sale::make(launch, 1);
    let mut known = Client {
        address: server.address,
        stream: Some(BufReader::new(connect(
            [127, 0, 0, 9],
            server.address,
            None,
        ))),
    };
    assert_eq!(known.get("/api/v1/me", &sale.admin).status, 200);
    let half = "POST /api/v1/auth/login HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\n\r\n{";
    let mut crowd = Vec::new();
    for round in 0..100 {
        for address in 0..5 {
            let mut stream = connect([127, 0, 1, address], server.address, None);
            // It may have no place.
            let _cut = stream.write_all(half.as_bytes());
            crowd.push(stream);
        }
        if round % 10 == 9 {
            let mut stream = connect([127, 0, 2, round], server.address, None);
            stream
                .write_all(b"GET /api/v1/products HTTP/1.1\r\nHost: shop\r\n\r\n")
                .expect("sent");
            let answer = read_answer(&mut BufReader::new(stream));
            assert_eq!(
                answer.map(|answer| answer.status),
                Some(200),
                "round {round}"
            );
        }
    }
    let answer = known.ask("GET", "/api/v1/me", &sale.admin, None, "");
    assert!(
        answer.is_some(),
        "whoever showed credentials kept the connection"
    );
    assert!(
        figure(
            &server,
            r#"http_connections_refused_total{reason="evicted"}"#
        ) >= 10.0
    );
}

#[test]
fn bodies_in_memory_are_bounded_in_sum_and_shared() {
    let root = tempfile::tempdir().expect("temporary directory");
    let launch = Launch::new(&root.path().join("data"))
        .set("ONRUSH_SERVER__BODIES_BYTES_MAX", 4_194_304)
        .set("ONRUSH_SERVER__BODY_TIMEOUT_MS", 300_000)
        .set("ONRUSH_SERVER__REQUEST_TIMEOUT_MS", 300_000);
    let (sale, server) = Sale::make(launch, 1);
    let buyer = sale.buyers(server.address, 1).remove(0).token;
    let head = format!(
        "POST /api/v1/orders HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n",
        buyer
    );
    let mut crowd: Vec<TcpStream> = (0..40)
        .map(|at| {
            let mut stream = connect([127, 0, 1, at % 5], server.address, None);
            stream.write_all(head.as_bytes()).expect("sent");
            // It may be refused before it was sent whole.
            let _cut = stream.write_all(&[b' '; 900_000]);
            stream
        })
        .collect();
    let used = || figure(&server, r#"http_shares_used{resource="body_bytes"}"#);
    until("some are refused", || {
        figure(
            &server,
            r#"http_shares_refused_total{by="client",resource="body_bytes"}"#,
        ) >= 20.0
    });
    assert!(used() <= 4_194_304.0 && used() > 1_000_000.0, "{}", used());
    let mut honest = Client {
        address: server.address,
        stream: Some(BufReader::new(connect(
            [127, 0, 0, 9],
            server.address,
            None,
        ))),
    };
    let order = json!({"items": [{"product_id": sale.product, "quantity": 1}]});
    let answer = honest.post("/api/v1/orders", &buyer, &order);
    assert_eq!(answer.map(|answer| answer.status), Some(201));
    let mut told = 0;
    for stream in &mut crowd {
        stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .expect("a limit");
        let mut begin = [0; 15];
        if stream.read_exact(&mut begin).is_ok() {
            let status = String::from_utf8_lossy(&begin[9..12]).into_owned();
            assert!(["429", "503"].contains(&status.as_str()), "{status}");
            told += 1;
        }
    }
    assert!(told >= 20, "{told} were told");
    drop(crowd);
    until("all of it came back", || used() == 0.0);
}

#[test]
fn answers_that_nobody_reads_are_bounded_in_sum_and_cut_off() {
    const SUM: u32 = 16_777_216;
    let root = tempfile::tempdir().expect("temporary directory");
    let launch = Launch::new(&root.path().join("data"))
        .set("ONRUSH_SERVER__ANSWERS_BYTES_MAX", SUM)
        .set("ONRUSH_SERVER__WRITE_TIMEOUT_MS", 3_000)
        .set("ONRUSH_SERVER__BYTES_PER_SECOND_MIN", 100_000)
        .set("ONRUSH_SERVER__SEND_BUFFER_BYTES", 16_384);
    let (sale, server) = Sale::make(launch, 1);
    let mut shop = Client::new(server.address);
    let long = "长 ".repeat(2_500);
    for at in 0..200 {
        let product = json!({"name": format!("P {at}"), "description": long, "unit_amount": 1, "currency": "CNY", "stock": 1});
        let made = shop.post("/api/v1/products", &sale.admin, &product);
        assert_eq!(made.map(|made| made.status), Some(201));
    }
    let ask = b"GET /api/v1/products?limit=200 HTTP/1.1\r\nHost: shop\r\n\r\n";
    let mut crowd: Vec<TcpStream> = (0..60)
        .map(|at| {
            let mut stream = connect([127, 0, 1, at % 3], server.address, Some(4_096));
            stream.write_all(ask).expect("sent");
            stream
        })
        .collect();
    let used = || figure(&server, r#"http_shares_used{resource="answer_bytes"}"#);
    until("some are refused", || {
        figure(
            &server,
            r#"http_shares_refused_total{by="client",resource="answer_bytes"}"#,
        ) >= 10.0
    });
    assert!(used() <= f64::from(SUM), "{}", used());
    let mut honest = Client {
        address: server.address,
        stream: Some(BufReader::new(connect(
            [127, 0, 0, 9],
            server.address,
            None,
        ))),
    };
    assert_eq!(honest.get("/api/v1/products?limit=2", "").status, 200);
    // One reads now and then, and far below the least rate.
    let mut dripping = crowd.remove(0);
    let watch = Stopwatch::start();
    let mut piece = [0; 2_048];
    while dripping.read(&mut piece).is_ok_and(|bytes| bytes > 0) {
        assert!(watch.elapsed() < super::PATIENCE, "it is borne for ever");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    until(
        "those who read nothing are cut off, and all came back",
        || used() == 0.0,
    );
}

#[test]
fn a_drill_attacks_a_copy_and_tells_what_honest_visitors_saw() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (sale, server) = Sale::make(Launch::new(&root.path().join("data")), 10);
    let args = ["--json", "rehearse", "--hostile", "--seconds", "1"];
    let drill = [&args[..], &["--attack", "guesses", "--addresses", "3"]].concat();
    let (status, said) = sale.launch.run(&drill, "");
    // A machine that is too busy breaks the promise, and the command says so.
    assert!(matches!(status.code(), Some(0 | 1)), "{said}");
    let report = said.lines().find(|line| line.starts_with('{'));
    let report: serde_json::Value = serde_json::from_str(report.expect("a report")).expect("JSON");
    assert!(report["alone"]["served"].as_u64() > Some(0), "{said}");
    let drills = report["drills"].as_array().expect("a list");
    assert_eq!(drills.len(), 1, "{said}");
    assert_eq!(drills[0]["attack"], "guesses");
    let told = |status: &str| drills[0]["attackers"][status].as_u64();
    assert!(told("401") > Some(0) && told("429") > Some(0), "{said}");
    // The shop has neither the drill's account nor its buyers.
    let users = Client::new(server.address).get_all("/api/v1/users?limit=200", &sale.admin);
    assert_eq!(users.len(), 1, "{users:?}");
    let (status, said) = sale.launch.run(&[&args[..], &["--exit"]].concat(), "");
    assert_eq!(
        status.code(),
        Some(2),
        "what has no meaning here is refused: {said}"
    );
}

#[test]
fn whoever_has_no_credentials_sends_little() {
    let root = tempfile::tempdir().expect("temporary directory");
    let server = Launch::new(&root.path().join("data")).start();
    let mut client = Client::new(server.address);
    let large = json!({"email": "a@example.com", "password": "x".repeat(20_000)});
    for path in ["login", "register", "setup", "setup/check"] {
        let answer = client.post(&format!("/api/v1/auth/{path}"), "", &large);
        let answer = answer.expect("an answer");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (413, "body_too_large"),
            "{path}"
        );
        client = Client::new(server.address);
    }
}

/// Where attackers come to a sale; those with accounts are its buyers.
fn field(sale: &Sale, server: &Server, buyers: &[Buyer]) -> Field {
    let login = ("a@example.com", "a long enough password");
    Field {
        address: server.address,
        login: (login.0.to_owned(), login.1.to_owned()),
        tokens: Arc::new(buyers.iter().map(|buyer| buyer.token.clone()).collect()),
        products: Arc::new(vec![sale.product]),
        words: Arc::new(vec!["%E8%80%B3".to_owned(), "%E6%9C%BA".to_owned()]),
        over: Over::Plain,
        have_accounts: true,
    }
}

fn begin(field: &Field, attack: Attack) -> Siege {
    let siege = Siege::begin(field, attack, 5).expect("an attack");
    until("attackers come", || siege.asked() >= 60);
    siege
}

fn end(siege: Siege) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(siege.end());
}

#[test]
fn killed_in_the_middle_of_any_attack_every_accepted_claim_is_there_once() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (sale, mut server) = Sale::make(Launch::new(&root.path().join("data")), 5_000);
    let mut fresh = sale.buyers(server.address, Attack::ALL.len() * 100);
    let mut all = Vec::new();
    for attack in Attack::ALL {
        let buyers = fresh.split_off(fresh.len() - 100);
        let siege = begin(&field(&sale, &server, &buyers), attack);
        let crowd = Crowd::start(server.address, &sale, buyers, 4);
        crowd.wait_for_grants(40);
        server.kill().assert_killed();
        all.extend(crowd.go_home());
        end(siege);
        server = sale.launch.start();
        sale.assert_kept(server.address, &mut all);
        sale.assert_orders_and_keys(server.address, &all);
    }
}

#[test]
fn a_disk_that_fills_up_in_the_middle_of_an_attack_stops_writing_alone() {
    let root = tempfile::tempdir().expect("temporary directory");
    let at = root.path().join("disk");
    let mount = match Mount::make(at, &["-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"]) {
        Ok(mount) => mount,
        Err(reason) => return skip(&reason),
    };
    let launch =
        Launch::new(&mount.at.join("data")).set("ONRUSH_DATABASE__WAL_READY_BYTES", 1_048_576);
    let (sale, server) = Sale::make(launch, 5_000);
    let mut buyers = sale.buyers(server.address, 400);
    let last = buyers.pop().expect("a buyer");
    // Registrations write as well, and held bodies leave little memory.
    let (first, second) = buyers.split_at_mut(200);
    for (attack, buyers) in [(Attack::Registrations, first), (Attack::HeldBodies, second)] {
        let field = field(&sale, &server, buyers);
        let siege = begin(&field, attack);
        let mut client = Client::new(server.address);
        for buyer in &mut buyers[..20] {
            buyer.claim(&mut client, &sale.claims());
            assert!(buyer.holds_a_unit(), "{:?}", buyer.heard);
        }
        let filler = mount.at.join("filler");
        fill(&filler);
        // The log has some room of its own.
        let large = json!({"name": "x", "description": "x".repeat(10_000), "unit_amount": 1,
            "currency": "CNY", "stock": 1});
        until("the disk is full", || {
            let answer = client.post("/api/v1/products", &sale.admin, &large);
            answer.is_some_and(|answer| answer.status == 503)
        });
        for path in [&sale.path, "/api/v1/products", "/livez"] {
            assert_eq!(client.get(path, "").status, 200, "{path}: reading goes on");
        }
        std::fs::remove_file(&filler).expect("removed");
        until("writing works again beside the attack", || {
            client.get("/readyz?writes", "").status == 200
        });
        let buyer = &mut buyers[20];
        until("somebody buys", || {
            buyer.claim(&mut client, &sale.claims());
            buyer.holds_a_unit()
        });
        end(siege);
    }
    buyers.push(last);
    sale.assert_kept(server.address, &mut buyers);
    server.kill().assert_killed();
    let server = sale.launch.start();
    sale.assert_kept(server.address, &mut buyers);
}

#[test]
fn whoever_is_refused_again_and_again_hears_it_late_and_the_others_at_once() {
    let root = tempfile::tempdir().expect("temporary directory");
    let launch =
        Launch::new(&root.path().join("data")).set("ONRUSH_SERVER__REFUSALS_PER_SECOND", 3);
    let server = launch.start();
    let held_back = || figure(&server, "http_refusals_held_back_total ");
    let mut client = Client::new(server.address);
    for _ in 0..20 {
        let gone = client.get("/api/v1/products/999999", "");
        assert_eq!(
            gone.status, 404,
            "what is not there is no refusal: {gone:?}"
        );
    }
    assert_eq!(held_back(), 0.0);
    let nothing = json!({});
    until("refusals are held back", || {
        let refused = client.post("/api/v1/auth/login", "", &nothing);
        let refused = refused.expect("each of them is answered in the end");
        assert_eq!(refused.status, 422, "{refused:?}");
        held_back() >= 2.0
    });
    let before = held_back();
    assert_eq!(client.get("/api/v1/products", "").status, 200);
    assert_eq!(held_back(), before, "what is served is not");
}
