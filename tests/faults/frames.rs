//! What workers say that makes no sense: half of it, too much of it, of the wrong kind, or about tasks
//! that are not theirs; and workers that never listen.
//!
//! Must hold: whatever is not whole changes nothing; whatever is refused is told why; a client that
//! does not read costs a connection for a bounded time and bounded memory; others are served all the
//! while; nothing panics.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use onrush::clock::Stopwatch;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::ask::Client;
use super::sale::Sale;
use super::server::{Launch, Server};
use super::until;

/// Memory that hostile clients may cost, for all of a test's connections.
const MORE_KIB_MAX: u64 = 150 * 1_024;

/// A server with its Faktory port.
struct Place {
    _root: tempfile::TempDir,
    sale: Sale,
    server: Server,
    faktory: SocketAddr,
}

impl Place {
    fn open() -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        let launch = Launch::new(&root.path().join("data"))
            .set("ONRUSH_FAKTORY__ENABLED", true)
            .set("ONRUSH_FAKTORY__PORT", 0)
            .set("ONRUSH_FAKTORY__FETCH_WAIT_MS", 200)
            .set("ONRUSH_FAKTORY__WRITE_TIMEOUT_MS", 500)
            .set("ONRUSH_FAKTORY__COMMAND_TIMEOUT_MS", 2_000)
            .set("ONRUSH_SCHEDULES__ENABLED", false);
        let (sale, server) = Sale::make(launch, 10);
        let line = server.says("(Faktory)");
        let address = line.split("tcp://").nth(1).expect("an address");
        let address = address.split(' ').next().expect("an address");
        Self {
            faktory: address.parse().expect("an address"),
            _root: root,
            sale,
            server,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.faktory).expect("connected");
        stream
            .set_read_timeout(Some(super::PATIENCE))
            .expect("a limit");
        stream
    }

    /// A worker that was greeted.
    fn worker(&self) -> BufReader<TcpStream> {
        let mut stream = BufReader::new(self.connect());
        assert!(line(&mut stream).starts_with("+HI"));
        assert_eq!(ask(&mut stream, r#"HELLO {"v":2,"wid":"honest"}"#), "+OK");
        stream
    }

    fn get(&self, path: &str) -> Value {
        Client::new(self.server.address)
            .get(path, &self.sale.admin)
            .json()
    }

    fn names(&self) -> Vec<String> {
        let page = self.get("/api/v1/tasks?limit=200");
        let items = page["items"].as_array().expect("a list").iter();
        items
            .map(|task| task["name"].as_str().expect("a name").to_owned())
            .collect()
    }

    fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.server.pid());
        let status = std::fs::read_to_string(path).expect("its state");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.expect("its memory").split_whitespace().next();
        number.expect("a number").parse().expect("a number")
    }

    fn connections(&self) -> String {
        let text = Client::new(self.server.address)
            .get("/metrics", &self.sale.admin)
            .body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("faktory_connections_open "));
        line.expect("a gauge").to_owned()
    }

    fn end(self) {
        let ended = self.server.kill();
        assert!(!ended.log.contains("panicked"), "{ended:?}");
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> String {
    let mut bytes = Vec::new();
    stream.read_until(b'\n', &mut bytes).expect("an answer");
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

fn ask(stream: &mut BufReader<TcpStream>, command: &str) -> String {
    stream
        .get_mut()
        .write_all(format!("{command}\r\n").as_bytes())
        .expect("sent");
    line(stream)
}

/// Reads until the server closes, however it closes.
fn drain(stream: &mut TcpStream) {
    let mut piece = [0; 4_096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("it was not closed: {error}"),
        }
    }
}

#[test]
fn a_conversation_that_is_cut_anywhere_leaves_whole_commands_alone() {
    let place = Place::open();
    let hello = "HELLO {\"v\":2,\"wid\":\"cut\"}\r\n";
    for end in 0..=hello.len() {
        let mut stream = place.connect();
        stream.write_all(&hello.as_bytes()[..end]).expect("sent");
        drop(stream);
    }
    let start = format!("{hello}PUSH {{\"jid\":\"cut-00000\",\"jobtype\":\"cut\",\"args\":[]");
    let whole = format!("{start}}}\r\n");
    for end in hello.len()..=whole.len() {
        let mut stream = place.connect();
        // A jid of its own each time, or the second would be the first.
        let text = whole.replace("cut-00000", &format!("cut-{end:05}"));
        stream.write_all(&text.as_bytes()[..end]).expect("sent");
        if end % 2 == 0 || end == whole.len() {
            // No more will be said, but it listens on: who is not there is not even greeted.
            stream.shutdown(Shutdown::Write).expect("half closed");
            drain(&mut stream);
        }
    }
    // The command with its LF is whole, and nothing else was.
    until("the whole one is there", || place.names().len() == 1);
    until("all have gone", || place.connections() == "0");
    assert_eq!(place.names(), ["cut"]);
    place.end();
}

#[test]
fn whoever_never_reads_is_closed_in_time_and_others_are_served() {
    let place = Place::open();
    let mut honest = place.worker();
    let before = place.resident_kib();
    let deaf: Vec<_> = (0..4)
        .map(|number| {
            let mut stream = place.connect();
            std::thread::spawn(move || {
                let hello = format!("HELLO {{\"v\":2,\"wid\":\"deaf-{number}\"}}\r\n");
                stream.write_all(hello.as_bytes()).expect("sent");
                stream
                    .set_write_timeout(Some(super::PATIENCE))
                    .expect("a limit");
                // Its answer is as long, so that the kernel's buffers are soon full.
                let question = format!("TRACK GET {}\r\n", "x".repeat(50_000));
                // Asks and asks, and never takes an answer, until it is cut off.
                loop {
                    match stream.write_all(question.as_bytes()) {
                        Ok(()) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            panic!("it is never closed");
                        }
                        Err(_) => return,
                    }
                }
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    let mut number = 0;
    while !deaf.iter().all(std::thread::JoinHandle::is_finished) {
        let watch = Stopwatch::start();
        let push = format!(r#"PUSH {{"jid":"honest-{number:05}","jobtype":"x","args":[]}}"#);
        assert_eq!(ask(&mut honest, &push), "+OK");
        longest = longest.max(watch.elapsed());
        number += 1;
    }
    for thread in deaf {
        thread.join().expect("it was cut off");
    }
    assert!(
        longest < Duration::from_secs(5),
        "an honest one waited {longest:?}"
    );
    until("they have gone", || place.connections() == "1");
    let more = place.resident_kib().saturating_sub(before);
    assert!(
        more < MORE_KIB_MAX,
        "{more} KiB for clients that do not read"
    );
    assert_eq!(ask(&mut honest, "END"), "+OK");
    place.end();
}

#[test]
fn frames_that_never_end_or_are_noise_are_cut_off_within_bounded_memory() {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place::open();
    let before = place.resident_kib();
    let long: Vec<_> = (0..16)
        .map(|number| {
            let mut stream = place.connect();
            std::thread::spawn(move || {
                let hello = format!("HELLO {{\"v\":2,\"wid\":\"long-{number}\"}}\r\nPUSH ");
                stream.write_all(hello.as_bytes()).expect("sent");
                let (piece, mut sent) = (vec![b'['; 65_536], 0_usize);
                while stream.write_all(&piece).is_ok() {
                    sent += piece.len();
                    assert!(sent < 64 << 20, "it takes all of it");
                }
            })
        })
        .collect();
    for thread in long {
        thread.join().expect("it was cut off");
    }
    for number in 0..200 {
        let mut stream = place.connect();
        let mut bytes: Vec<u8> = Vec::new();
        if number % 2 == 0 {
            bytes.extend_from_slice(b"HELLO {\"v\":2}\r\n");
        }
        let verbs = [
            "PUSH ",
            "PUSHB ",
            "FETCH ",
            "ACK ",
            "FAIL ",
            "BATCH NEW ",
            "TRACK SET ",
            "",
        ];
        for _ in 0..5 {
            bytes.extend_from_slice(verbs[random.random_range(0..verbs.len())].as_bytes());
            let count = random.random_range(0..200);
            bytes.extend((0..count).map(|_| random.random::<u8>()));
            bytes.push(b'\n');
        }
        // It may be cut off before it has said all.
        let _cut = stream.write_all(&bytes);
        let _cut = stream.shutdown(Shutdown::Write);
        drain(&mut stream);
    }
    until("all have gone", || place.connections() == "0");
    assert_eq!(place.names(), Vec::<String>::new(), "seed {seed}");
    let more = place.resident_kib().saturating_sub(before);
    assert!(more < MORE_KIB_MAX, "{more} KiB after noise, seed {seed}");
    let mut honest = place.worker();
    let deep = format!(
        r#"PUSH {{"jid":"deep-0001","jobtype":"x","args":[{}{}]}}"#,
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    assert!(ask(&mut honest, &deep).starts_with("-ERR invalid JSON"));
    place.end();
}

#[test]
fn jobs_and_reports_of_the_wrong_kind_are_refused_and_the_connection_lives_on() {
    let place = Place::open();
    let mut raw = place.worker();
    let job = |more: &str| format!(r#"PUSH {{"jid":"abcdefgh","jobtype":"x","args":[],{more}}}"#);
    for command in [
        r#"PUSH {"jid":5,"jobtype":"x","args":[]}"#.to_owned(),
        r#"PUSH {"jid":null,"jobtype":"x","args":[]}"#.to_owned(),
        r#"PUSH {"jid":"abcdefgh","jobtype":["x"],"args":[]}"#.to_owned(),
        r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":{}}"#.to_owned(),
        r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":"[]"}"#.to_owned(),
        r#"PUSH [{"jid":"abcdefgh","jobtype":"x","args":[]}]"#.to_owned(),
        job(r#""priority":"high""#),
        job(r#""retry":"never""#),
        job(r#""retry":1e99"#),
        job(r#""reserve_for":-1.5"#),
        job(r#""at":1234567890"#),
        job(r#""queue":["a"]"#),
        job(r#""custom":[]"#),
        job(r#""custom":{"expires_at":"soon"}"#),
        job(r#""custom":{"bid":7}"#),
        "PUSHB {}".to_owned(),
        r#"PUSHB [5]"#.to_owned(),
        r#"ACK {"jid":7}"#.to_owned(),
        r#"ACK "abcdefgh""#.to_owned(),
        r#"FAIL {"jid":"abcdefgh","backtrace":"one"}"#.to_owned(),
        r#"FAIL {"message":"whose?"}"#.to_owned(),
        r#"BEAT {"wid":["a"]}"#.to_owned(),
        r#"TRACK SET {"jid":"abcdefgh","percent":"half"}"#.to_owned(),
        r#"BATCH NEW {"success":"x"}"#.to_owned(),
        "BATCH COMMIT".to_owned(),
        "BATCH COMMIT never-begun".to_owned(),
        r#"MUTATE {"cmd":"kill"}"#.to_owned(),
        format!("FETCH {}", "q ".repeat(10) + &"é".repeat(300)),
    ] {
        let said = ask(&mut raw, &command);
        // A PUSHB tells of its jobs one by one.
        let is_refused = said.starts_with("-ERR")
            || (command.starts_with("PUSHB") && said.starts_with('$') && {
                let told = line(&mut raw);
                told.contains("invalid JSON")
            });
        assert!(is_refused, "{command}: {said}");
    }
    assert_eq!(
        place.names(),
        Vec::<String>::new(),
        "nothing of it was made"
    );

    // Lies about jobs: of another worker, of the server's own, twice, before they were fetched.
    assert_eq!(
        ask(
            &mut raw,
            r#"PUSH {"jid":"job-0001","jobtype":"x","args":[]}"#
        ),
        "+OK"
    );
    assert_eq!(
        ask(&mut raw, r#"ACK {"jid":"job-0001"}"#),
        "+OK",
        "as to a late one"
    );
    assert!(ask(&mut raw, r#"FAIL {"jid":"job-0001"}"#).starts_with("-ERR Job not found"));
    let first = place.get("/api/v1/tasks?name=x");
    assert_eq!(
        first["items"][0]["state"], "available",
        "and nothing of it counted"
    );
    raw.get_mut().write_all(b"FETCH default\r\n").expect("sent");
    assert!(line(&mut raw).starts_with('$'));
    assert!(line(&mut raw).contains("job-0001"));
    let mut other = BufReader::new(place.connect());
    line(&mut other);
    assert_eq!(ask(&mut other, r#"HELLO {"v":2,"wid":"liar"}"#), "+OK");
    assert_eq!(ask(&mut other, r#"ACK {"jid":"job-0001"}"#), "+OK");
    assert!(ask(&mut other, r#"FAIL {"jid":"job-0001"}"#).starts_with("-ERR Job not found"));
    let id = place.get("/api/v1/tasks?name=x")["items"][0]["id"].clone();
    let id = id.as_str().expect("an id");
    assert!(
        ask(&mut other, &format!(r#"ACK {{"jid":"{id}"}}"#)).starts_with("-ERR Job not found"),
        "a job is known by the id that it came with"
    );
    assert_eq!(
        place.get(&format!("/api/v1/tasks/{id}"))["state"],
        "running"
    );
    assert_eq!(ask(&mut raw, r#"ACK {"jid":"job-0001"}"#), "+OK");
    assert_eq!(
        ask(&mut raw, r#"ACK {"jid":"job-0001"}"#),
        "+OK",
        "twice is once"
    );
    assert_eq!(place.get(&format!("/api/v1/tasks/{id}"))["attempt"], 1);
    place.end();
}

#[test]
fn what_workers_say_over_http_is_checked_field_by_field() {
    let place = Place::open();
    let mut client = Client::new(place.server.address);
    let mut post = |path: &str, body: &str| {
        let path = format!("/api/v1{path}");
        let answer = client.ask("POST", &path, &place.sale.admin, None, body);
        answer.expect("an answer")
    };
    let made = post("/tasks", r#"{"name":"x","queue":"q"}"#).json();
    let id = made["id"].as_str().expect("an id").to_owned();
    let run = post("/queues/q/fetch", r#"{"wait_seconds":20}"#).json();
    assert_eq!(run["task"]["id"], json!(id));
    for (what, body) in [
        ("ack", r#"{}"#),
        ("ack", r#"{"attempt":"1"}"#),
        ("ack", r#"{"attempt":-1}"#),
        ("ack", r#"{"attempt":1.5}"#),
        ("ack", r#"{"attempt":99999999999}"#),
        ("ack", r#"{"attempt":1,"result":1,"result":2}"#),
        ("ack", r#"{"attempt":1,"reslut":1}"#),
        ("ack", r#"{"attempt":1"#),
        ("ack", "[1]"),
        ("ack", ""),
        ("fail", r#"{"attempt":1,"error":7}"#),
        ("fail", r#"{"attempt":1,"error":"x","retry":"no"}"#),
        (
            "fail",
            r#"{"attempt":1,"error":"x","retry_after_seconds":-1}"#,
        ),
        ("heartbeat", r#"{"attempt":1,"lease_seconds":0}"#),
        ("heartbeat", r#"{"attempt":1,"lease_seconds":3601}"#),
        ("progress", r#"{"attempt":1,"percent":"half"}"#),
        ("progress", r#"{"attempt":1,"log":"one"}"#),
    ] {
        let answer = post(&format!("/tasks/{id}/{what}"), body);
        assert!(
            matches!(answer.status, 400 | 422),
            "{what} {body}: {answer:?}"
        );
        assert!(!answer.code().is_empty(), "{what} {body}: {answer:?}");
    }
    // A result that is too large is refused, and the run goes on.
    let large = json!({"attempt": 1, "result": "x".repeat(70_000)}).to_string();
    let answer = post(&format!("/tasks/{id}/ack"), &large);
    assert!(matches!(answer.status, 413 | 422), "{answer:?}");
    let deep = format!(
        r#"{{"attempt":1,"result":{}{}}}"#,
        "[".repeat(500),
        "]".repeat(500)
    );
    assert_eq!(post(&format!("/tasks/{id}/ack"), &deep).status, 400);
    // Attempts that are not: later, earlier, another's.
    for attempt in [0, 2, u32::MAX] {
        let body = json!({"attempt": attempt}).to_string();
        for what in ["ack", "heartbeat"] {
            let answer = post(&format!("/tasks/{id}/{what}"), &body);
            let outcome = (answer.status, answer.code());
            assert_eq!(outcome, (409, "fenced".to_owned()), "{what} {attempt}");
        }
    }
    let never = "018f0000-0000-7000-8000-000000000000";
    let answer = post(&format!("/tasks/{never}/ack"), r#"{"attempt":1}"#);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (404, "task_not_found")
    );
    assert_eq!(
        place.get(&format!("/api/v1/tasks/{id}"))["state"],
        "running"
    );
    // Half a request does nothing, and whoever sends it is not waited for.
    let mut half = TcpStream::connect(place.server.address).expect("connected");
    let head = format!(
        "POST /api/v1/tasks/{id}/ack HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{{\"attempt\":1",
        place.sale.admin
    );
    half.write_all(head.as_bytes()).expect("sent");
    drop(half);
    let body = r#"{"attempt":1,"result":"done"}"#;
    assert_eq!(post(&format!("/tasks/{id}/ack"), body).status, 204);
    let again = post(&format!("/tasks/{id}/ack"), body);
    assert_eq!((again.status, again.code().as_str()), (409, "fenced"));
    assert_eq!(place.get(&format!("/api/v1/tasks/{id}"))["result"], "done");
    place.end();
}
