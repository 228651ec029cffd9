//! The real binary, killed in the middle of a sale.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_onrush");

fn start(dir: &Path) -> (Child, SocketAddr) {
    start_with(dir, None)
}

fn start_with(dir: &Path, kill_at: Option<&str>) -> (Child, SocketAddr) {
    let mut child = Command::new(BINARY)
        .envs(kill_at.map(|point| ("FAULT_KILL_AT", point)))
        .args(["serve", "--port", "0", "--data-dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    let address = loop {
        let line = lines
            .next()
            .expect("it says where it listens")
            .expect("text");
        if let Some((_, url)) = line.split_once("docs     http://") {
            break url.trim_end_matches("/docs").parse().expect("an address");
        }
    };
    // Keep reading, so that the log never blocks it.
    std::thread::spawn(move || lines.for_each(drop));
    (child, address)
}

/// One request on its own connection; `None` when it got no whole answer.
fn post(address: SocketAddr, path: &str, token: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

fn value(json: &str, key: &str) -> serde_json::Value {
    serde_json::from_str::<serde_json::Value>(json).expect("JSON")[key].clone()
}

fn run(dir: &Path, args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new(BINARY)
        .args(args)
        .arg("--data-dir")
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    child
        .stdin
        .take()
        .expect("stdin")
        .write_all(input.as_bytes())
        .expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    (
        output.status.success(),
        String::from_utf8(output.stdout).expect("text"),
    )
}

#[test]
fn killed_in_the_middle_of_a_sale_every_accepted_claim_is_there_and_the_ledger_holds() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (mut server, mut address, token, path) = running_sale(&dir);
    let mut accepted = 0;
    for round in 0..5 {
        let buyers: Vec<_> = (0..8)
            .map(|_| {
                let (path, token) = (path.clone(), token.clone());
                std::thread::spawn(move || {
                    let mut granted = 0;
                    for _ in 0..400 {
                        match post(address, &path, &token, "{}") {
                            Some((201, _)) => granted += 1,
                            Some(_) => {}
                            // The server is gone.
                            None => break,
                        }
                    }
                    granted
                })
            })
            .collect();
        // Killed once it has granted something in this round, a different number each time.
        let mark = r#"flash_sale_claims_total{outcome="accepted"}"#;
        loop {
            let granted = metric(address, mark);
            if granted >= 20 + round * 7 {
                break;
            }
        }
        server.kill().expect("killed");
        server.wait().expect("ended");
        accepted += buyers
            .into_iter()
            .map(|buyer| buyer.join().expect("a buyer"))
            .sum::<i64>();
        let (holds, verdict) = run(&dir, &["stock", "verify", "--json"], "");
        assert!(holds, "{verdict}");
        (server, address) = start(&dir);
    }
    let sale = get(address, path.trim_end_matches("/claims"));
    let (sold, remaining) = (
        value(&sale, "sold").as_i64(),
        value(&sale, "remaining").as_i64(),
    );
    let (sold, remaining) = (sold.expect("a number"), remaining.expect("a number"));
    assert_eq!(sold + remaining, 5000);
    assert!(
        sold >= accepted,
        "{accepted} claims were accepted, {sold} units are sold"
    );
    assert!(
        sold <= accepted + 5 * 8,
        "at most one claim of each buyer was cut off in each round"
    );
    server.kill().expect("killed");
    server.wait().expect("ended");
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

fn metric(address: SocketAddr, name: &str) -> i64 {
    get(address, "/metrics")
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .unwrap_or(0)
}

/// A server with a sale of 5,000 units that runs, and the admin's token.
fn running_sale(dir: &Path) -> (Child, SocketAddr, String, String) {
    let (made, _) = run(
        dir,
        &[
            "user",
            "add",
            "--email",
            "admin@example.com",
            "--role",
            "admin",
        ],
        "a long enough password\n",
    );
    assert!(made);
    let (server, address) = start(dir);
    let login = r#"{"email":"admin@example.com","password":"a long enough password"}"#;
    let (status, body) = post(address, "/api/v1/auth/login", "", login).expect("an answer");
    assert_eq!(status, 200, "{body}");
    let token = value(&body, "token").as_str().expect("a token").to_owned();
    let product = r#"{"name":"耳机","unit_amount":9900,"currency":"CNY","stock":5000}"#;
    let (status, body) = post(address, "/api/v1/products", &token, product).expect("an answer");
    assert_eq!(status, 201, "{body}");
    let product = value(&body, "id");
    let sale = format!(
        r#"{{"product_id":{product},"quantity":5000,"unit_amount":1,"starts_at":"2020-01-01T00:00:00Z",
            "ends_at":"2020-12-31T00:00:00Z","per_user_limit":5000,"attempts_per_minute":1000}}"#
    );
    let (status, body) = post(address, "/api/v1/flash-sales", &token, &sale).expect("an answer");
    assert_eq!(status, 422, "a sale of the past is refused: {body}");
    let now = std::process::Command::new("date")
        .args(["-u", "+%Y"])
        .output()
        .expect("date")
        .stdout;
    let year: i32 = String::from_utf8(now)
        .expect("text")
        .trim()
        .parse()
        .expect("a year");
    let sale = sale
        .replace("2020-01-01", &format!("{year}-01-01"))
        .replace(
            "2020-12-31T00:00:00Z",
            &format!("{}-01-01T23:59:59Z", year + 1),
        )
        .replace("2020", &year.to_string());
    let (status, body) = post(address, "/api/v1/flash-sales", &token, &sale).expect("an answer");
    assert_eq!(status, 201, "{body}");
    let path = format!("/api/v1/flash-sales/{}/claims", value(&body, "id"));
    (server, address, token, path)
}

#[test]
fn killed_at_every_step_of_a_claim_and_of_a_commit_nothing_is_half_done() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (mut server, _, token, path) = running_sale(&dir);
    server.kill().expect("killed");
    server.wait().expect("ended");
    let mut accepted = 0;
    for point in [
        "writer.begun",
        "claim.units_taken",
        "claim.order_written",
        "claim.claim_written",
        "writer.before_commit",
        "writer.after_commit",
    ] {
        for count in ["1", "4"] {
            let (mut server, address) = start_with(&dir, Some(&format!("{point}:{count}")));
            while let Some((status, body)) = post(address, &path, &token, "{}") {
                assert_eq!(status, 201, "{point}:{count}: {body}");
                accepted += 1;
            }
            let ended = server.wait().expect("ended");
            assert!(!ended.success(), "{point}:{count} killed it");
            let (holds, verdict) = run(&dir, &["stock", "verify", "--json"], "");
            assert!(holds, "{point}:{count}: {verdict}");
        }
    }
    let (mut server, address) = start(&dir);
    let sale = get(address, path.trim_end_matches("/claims"));
    let sold = value(&sale, "sold").as_i64().expect("a number");
    // Between the commit and the answer, a claim is on disk that nobody heard of: once for each
    // kill at `writer.after_commit`, and then only if a claim was in that commit.
    assert!(
        (accepted..=accepted + 2).contains(&sold),
        "{accepted} accepted, {sold} sold"
    );
    server.kill().expect("killed");
    server.wait().expect("ended");
}
