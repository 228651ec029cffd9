//! Outside workers: the server is killed at each step of what they do, they are killed themselves, and
//! they come late.
//!
//! Must hold: no task that was answered is lost, none is completed twice, and whatever may run does
//! within five seconds of a start; a run whose worker died goes to another when its lease is over, and
//! whoever comes late with it is told so; a task that keeps killing its workers is set aside.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::faktory::{Worker, WorkerId};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use onrush::clock::Stopwatch;
use serde_json::{Value, json};

use super::ask::{Answer, Client};
use super::sale::Sale;
use super::server::{Launch, Server};
use super::{note, skip, tool, until};
use crate::support::receiver::{Reaction, Receiver};

const LEASE_SECONDS: u64 = 1;

fn launch(dir: &std::path::Path) -> Launch {
    Launch::new(dir)
        .set("ONRUSH_OUTGOING__ALLOW_INTERNAL", "127.0.0.0/8")
        // Whatever else writes would take the counts that are meant for tasks.
        .set("ONRUSH_ORDERS__EXPIRY_INTERVAL_MS", 3_600_000)
        .set("ONRUSH_FLASH_SALES__SWEEP_INTERVAL_MS", 3_600_000)
        .set("ONRUSH_SCHEDULES__ENABLED", false)
}

/// Tasks of a name, newest first.
fn tasks(address: std::net::SocketAddr, sale: &Sale, name: &str) -> Vec<Value> {
    let path = format!("/api/v1/tasks?name={name}&limit=200");
    Client::new(address).get_all(&path, &sale.admin)
}

/// What a worker knows: which tasks there are, and how often each was completed as far as it was told.
#[derive(Default)]
struct Ledger {
    /// Enqueues whose answer did not come: key and body.
    unanswered: Option<(String, Value)>,
    /// A run whose end was said and not answered: how, which, with what.
    unended: Option<(&'static str, String, Value)>,
    completed: BTreeMap<String, u32>,
}

/// The server did not answer: it is gone.
struct Gone;

impl Ledger {
    /// A task, or one that waits for `after`.
    fn enqueue(
        &mut self,
        client: &mut Client,
        sale: &Sale,
        key: String,
        after: Option<&str>,
    ) -> Result<String, Gone> {
        let mut body = json!({"name": "x", "queue": "q", "max_attempts": 1_000,
            "retry_policy": {"kind": "fixed", "delay_ms": 1}});
        if let Some(after) = after {
            body["after"] = json!([after]);
        }
        self.unanswered = Some((key, body));
        self.enqueue_again(client, sale)
    }

    fn enqueue_again(&mut self, client: &mut Client, sale: &Sale) -> Result<String, Gone> {
        let (key, body) = self.unanswered.as_ref().expect("something to be made");
        let path = "/api/v1/tasks";
        let answer = client.ask("POST", path, &sale.admin, Some(key), &body.to_string());
        let answer = answer.ok_or(Gone)?;
        assert_eq!(answer.status, 202, "{answer:?}");
        self.unanswered = None;
        let id = answer.json()["id"].as_str().expect("an id").to_owned();
        self.completed.entry(id.clone()).or_default();
        Ok(id)
    }

    fn end(&mut self, client: &mut Client, sale: &Sale) -> Result<(), Gone> {
        let (what, id, body) = self.unended.clone().expect("a run");
        let answer = client.post(&format!("/api/v1/tasks/{id}/{what}"), &sale.admin, &body);
        let answer = answer.ok_or(Gone)?;
        match answer.status {
            204 => {}
            // It was noted, and only the answer was lost; or the lease ran out meanwhile.
            409 => {
                assert_eq!(answer.code(), "fenced", "{answer:?}");
                let path = format!("/api/v1/tasks/{id}");
                let task = client.get(&path, &sale.admin).json();
                let is_noted = task["state"] == "completed" && task["attempt"] == body["attempt"];
                if what == "ack" && !is_noted {
                    self.unended = None;
                    return Ok(());
                }
            }
            _ => panic!("{answer:?}"),
        }
        self.unended = None;
        if what == "ack" {
            *self.completed.get_mut(&id).expect("a known task") += 1;
        }
        Ok(())
    }

    fn fetch(&mut self, client: &mut Client, sale: &Sale, seconds: u32) -> Result<Value, Gone> {
        let body = json!({"wait_seconds": seconds, "lease_seconds": LEASE_SECONDS, "worker": "w"});
        let answer = client.post("/api/v1/queues/q/fetch", &sale.admin, &body);
        let answer = answer.ok_or(Gone)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        Ok(answer.json()["task"].clone())
    }

    /// Makes two tasks of which one waits for the other, and works off whatever there is; every third
    /// run fails first.
    fn turn(&mut self, client: &mut Client, sale: &Sale, key: &str) -> Result<(), Gone> {
        let first = self.enqueue(client, sale, format!("{key}:a"), None)?;
        self.enqueue(client, sale, format!("{key}:b"), Some(&first))?;
        for number in 0..3 {
            let run = self.fetch(client, sale, 1)?;
            let Some(id) = run["id"].as_str() else {
                break;
            };
            let attempt = &run["attempt"];
            self.unended = Some(match number {
                0 => (
                    "fail",
                    id.to_owned(),
                    json!({"attempt": attempt, "error": "again"}),
                ),
                _ => ("ack", id.to_owned(), json!({"attempt": attempt})),
            });
            self.end(client, sale)?;
        }
        Ok(())
    }

    /// After a start: says again what was not answered, and works off everything.
    fn finish(&mut self, server: &Server, sale: &Sale) -> Duration {
        let watch = Stopwatch::start();
        let mut client = Client::new(server.address);
        let known = |_: Gone| panic!("it was gone after {:?}", watch.elapsed());
        if self.unanswered.is_some() {
            self.enqueue_again(&mut client, sale).unwrap_or_else(known);
        }
        if self.unended.is_some() {
            self.end(&mut client, sale)
                .unwrap_or_else(|gone| panic!("{:?}", known(gone)));
        }
        let left = || {
            let all = tasks(server.address, sale, "x");
            all.iter()
                .filter(|task| task["state"] != "completed")
                .count()
        };
        while left() > 0 {
            assert!(watch.elapsed() < super::PATIENCE, "{} are left", left());
            let run = self
                .fetch(&mut client, sale, 1)
                .unwrap_or_else(|_| panic!("gone"));
            if let Some(id) = run["id"].as_str() {
                let body = json!({"attempt": run["attempt"]});
                self.unended = Some(("ack", id.to_owned(), body));
                self.end(&mut client, sale)
                    .unwrap_or_else(|_| panic!("gone"));
            }
        }
        watch.elapsed()
    }
}

#[test]
fn killed_at_every_step_of_an_outside_workers_task_each_is_completed_once() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    server.kill().assert_killed();
    let (mut ledger, mut longest, mut kills) = (Ledger::default(), Duration::ZERO, 0);
    for point in [
        "task.enqueued",
        "task.relay",
        "task.handed_out",
        "task.start",
        "task.started",
        "task.failed",
        "task.completed",
        "task.told",
        "task.recovered",
        "writer.before_commit",
        "writer.after_commit",
    ] {
        for count in [1, 2] {
            // Runs that nobody ends, so that there are some to be taken back.
            let server = launch(&dir).start();
            let mut client = Client::new(server.address);
            let key = format!("{point}:{count}");
            for number in 0..count {
                let left = format!("{key}:left:{number}");
                let made = ledger.enqueue(&mut client, &sale, left, None);
                assert!(made.is_ok() && ledger.fetch(&mut client, &sale, 5).is_ok());
            }
            server.kill().assert_killed();

            let armed = launch(&dir).set("FAULT_KILL_AT", &key);
            // It may be hit by what is left from before, while the server starts.
            if let Ok(server) = armed.attempt() {
                let mut client = Client::new(server.address);
                let watch = Stopwatch::start();
                let mut number = 0;
                while ledger
                    .turn(&mut client, &sale, &format!("{key}:{number}"))
                    .is_ok()
                {
                    number += 1;
                    assert!(watch.elapsed() < super::PATIENCE, "{key} is never reached");
                }
                server.ended().assert_killed();
            }
            kills += 1;
            let server = launch(&dir).start();
            longest = longest.max(ledger.finish(&server, &sale));
            server.kill().assert_killed();
        }
    }
    let server = launch(&dir).start();
    let all = tasks(server.address, &sale, "x");
    assert_eq!(all.len(), ledger.completed.len(), "one task for each key");
    for (id, times) in &ledger.completed {
        assert_eq!(*times, 1, "task {id} was completed {times} times");
    }
    // A lease that the dead server had granted has to run out as well.
    let limit = Duration::from_secs(5 + LEASE_SECONDS);
    assert!(longest < limit, "{longest:?}");
    server.stop();
    note(&format!(
        "{kills} kills, {} tasks, each completed once; longest until all were: {longest:?}",
        all.len()
    ));
}

#[test]
fn killed_at_every_step_of_a_call_it_is_made_at_least_once_under_one_id() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let receiver = Receiver::open(&[Reaction::Status(200)]);
    let (sale, server) = Sale::make(launch(&dir), 10);
    server.kill().assert_killed();
    let args = json!({"url": receiver.url(), "method": "POST", "body": "x"});
    let body = json!({"name": "http_request", "args": args}).to_string();
    let call = |client: &mut Client, key: &str| -> Option<String> {
        let answer = client.ask("POST", "/api/v1/tasks", &sale.admin, Some(key), &body)?;
        assert_eq!(answer.status, 202, "{answer:?}");
        Some(answer.json()["id"].as_str().expect("an id").to_owned())
    };
    let (mut made, mut longest) = (Vec::new(), Duration::ZERO);
    for point in [
        "task.enqueued",
        "task.relay",
        "task.handed_out",
        "task.start",
        "task.started",
        "task.run",
        "task.completed",
        "task.told",
        "writer.before_commit",
        "writer.after_commit",
    ] {
        let armed = launch(&dir).set("FAULT_KILL_AT", format!("{point}:2"));
        let Ok(server) = armed.attempt() else {
            continue;
        };
        let mut client = Client::new(server.address);
        let mut cut = None;
        for number in 0..50 {
            let key = format!("{point}:{number}");
            match call(&mut client, &key) {
                Some(id) => made.push(id),
                None => {
                    cut = Some(key);
                    break;
                }
            }
        }
        server.ended().assert_killed();
        let server = launch(&dir).start();
        let watch = Stopwatch::start();
        if let Some(key) = cut {
            let again = call(&mut Client::new(server.address), &key);
            made.push(again.expect("an answer"));
        }
        until("all are completed", || {
            let all = tasks(server.address, &sale, "http_request");
            assert!(all.len() < 200, "one page shows them all");
            all.iter().all(|task| task["state"] == "completed")
        });
        longest = longest.max(watch.elapsed());
        server.kill().assert_killed();
    }
    let server = launch(&dir).start();
    let all = tasks(server.address, &sale, "http_request");
    assert_eq!(all.len(), made.len(), "one task for each key");
    let mut called: BTreeMap<String, u32> = BTreeMap::new();
    for request in receiver.received() {
        let id = request.header("idempotency-key").expect("an id").to_owned();
        *called.entry(id).or_default() += 1;
    }
    for id in &made {
        assert!(called.contains_key(id), "{id} was never called");
    }
    assert_eq!(called.len(), made.len(), "nothing else was called");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    server.stop();
    note(&format!(
        "{} calls, made {} times; longest until all were completed: {longest:?}",
        made.len(),
        receiver.count()
    ));
}

/// A worker that is a process, or several, of its own; dropped, it is killed.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        let command = command.process_group(0).stdin(Stdio::null());
        Self(
            command
                .stdout(Stdio::null())
                .spawn()
                .expect("it can be run"),
        )
    }

    fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.0.id()).expect("a process id"));
        // Both fail only when it has ended already.
        let _gone = killpg(group, Signal::SIGKILL);
        let _gone = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A worker made of curl alone: fetches one task and says that it is alive, again and again.
fn curl_worker(server: &Server, sale: &Sale) -> Process {
    let script = r#"
        run=$(curl -s -X POST "$API/queues/q/fetch" -H "Authorization: Bearer $TOKEN" \
            -H 'Content-Type: application/json' -d '{"worker":"curl","wait_seconds":20,"lease_seconds":1}')
        id=$(printf '%s' "$run" | sed 's/.*"id":"\([^"]*\)".*/\1/')
        attempt=$(printf '%s' "$run" | sed 's/.*"attempt":\([0-9]*\).*/\1/')
        while curl -sf -X POST "$API/tasks/$id/heartbeat" -H "Authorization: Bearer $TOKEN" \
            -H 'Content-Type: application/json' -d "{\"attempt\":$attempt,\"lease_seconds\":1}" >/dev/null
        do :; done"#;
    Process::start(
        Command::new("sh")
            .args(["-c", script])
            .env("API", format!("http://{}/api/v1", server.address))
            .env("TOKEN", &sale.admin),
    )
}

fn post(server: &Server, sale: &Sale, path: &str, body: &Value) -> Answer {
    let path = format!("/api/v1{path}");
    let answer = Client::new(server.address).post(&path, &sale.admin, body);
    answer.expect("an answer")
}

fn task(server: &Server, sale: &Sale, id: &str) -> Value {
    let path = format!("/api/v1/tasks/{id}");
    Client::new(server.address).get(&path, &sale.admin).json()
}

fn enqueue(server: &Server, sale: &Sale, more: Value) -> String {
    let mut body = json!({"name": "x", "queue": "q"});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    let made = post(server, sale, "/tasks", &body);
    assert_eq!(made.status, 202, "{made:?}");
    made.json()["id"].as_str().expect("an id").to_owned()
}

fn is_running(server: &Server, sale: &Sale, id: &str, attempt: u32) -> bool {
    let task = task(server, sale, id);
    task["state"] == "running" && task["attempt"] == attempt
}

#[test]
fn a_killed_curl_worker_loses_its_task_to_another_and_poison_is_set_aside() {
    if let Err(reason) = tool(&["curl", "--version"]) {
        return skip(&reason);
    }
    let root = tempfile::tempdir().expect("temporary directory");
    let (sale, server) = Sale::make(launch(&root.path().join("data")), 10);
    let id = enqueue(&server, &sale, json!({}));
    let worker = curl_worker(&server, &sale);
    until("it has the task", || is_running(&server, &sale, &id, 1));
    // Heartbeats keep it for longer than its lease.
    let first_end = task(&server, &sale, &id)["lease_expires_at"].clone();
    let watch = Stopwatch::start();
    until("three leases have passed", || {
        watch.elapsed() > Duration::from_secs(3 * LEASE_SECONDS)
    });
    assert!(is_running(&server, &sale, &id, 1), "it was heard of");
    assert_ne!(task(&server, &sale, &id)["lease_expires_at"], first_end);
    worker.kill();
    let killed = Stopwatch::start();
    let fetch = json!({"wait_seconds": 20, "lease_seconds": 60, "worker": "second"});
    let run = post(&server, &sale, "/queues/q/fetch", &fetch).json()["task"].clone();
    assert_eq!((&run["id"], &run["attempt"]), (&json!(id), &json!(2)));
    assert!(
        killed.elapsed() < Duration::from_secs(LEASE_SECONDS + 3),
        "{:?}",
        killed.elapsed()
    );
    for (what, body) in [
        ("ack", json!({"attempt": 1})),
        ("fail", json!({"attempt": 1, "error": "late"})),
        ("heartbeat", json!({"attempt": 1})),
    ] {
        let late = post(&server, &sale, &format!("/tasks/{id}/{what}"), &body);
        assert_eq!(
            (late.status, late.code().as_str()),
            (409, "fenced"),
            "{late:?}"
        );
        assert!(
            late.body.contains("attempt 1 of the task is over"),
            "{late:?}"
        );
    }
    let seen = task(&server, &sale, &id);
    assert_eq!(
        (&seen["state"], &seen["crashes"]),
        (&json!("running"), &json!(1))
    );
    assert_eq!(seen["attempts"][0]["outcome"], "crashed");
    let ack = post(
        &server,
        &sale,
        &format!("/tasks/{id}/ack"),
        &json!({"attempt": 2}),
    );
    assert_eq!(ack.status, 204, "{ack:?}");

    let poison = enqueue(&server, &sale, json!({}));
    for attempt in 1..=3 {
        let worker = curl_worker(&server, &sale);
        until("it has the task", || {
            is_running(&server, &sale, &poison, attempt)
        });
        worker.kill();
        until("it is taken back", || {
            !is_running(&server, &sale, &poison, attempt)
        });
    }
    let dead = task(&server, &sale, &poison);
    assert_eq!(dead["state"], "discarded", "{dead}");
    let error = dead["error"].as_str().expect("an error");
    assert!(error.contains("set aside after 3"), "{error}");
    server.stop();
}

/// Not a test: a process of its own that is a worker, for the test below, which starts and kills it.
#[test]
#[ignore = "started by another test, as a process"]
fn as_a_faktory_worker() {
    let Ok(url) = std::env::var("FAULT_FAKTORY_URL") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let worker = Worker::builder::<std::io::Error>()
            .wid(WorkerId::new(std::env::var("FAULT_WID").expect("a name")))
            .register_fn("x", |_job| std::future::pending())
            .connect_to(&url);
        let mut worker = worker.await.expect("connected");
        worker
            .run(&["q"])
            .await
            .expect("it runs until it is killed");
    });
}

fn line_of(stream: &mut impl BufRead) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer");
    line
}

fn faktory_worker(url: &str, wid: &str) -> Process {
    let name = concat!(module_path!(), "::as_a_faktory_worker");
    let name = name.split_once("::").expect("a path").1;
    Process::start(
        Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--ignored", "--nocapture"])
            .stderr(Stdio::null())
            .env("FAULT_FAKTORY_URL", url)
            .env("FAULT_WID", wid),
    )
}

#[test]
fn a_killed_faktory_client_loses_its_job_to_another_and_poison_is_set_aside() {
    let root = tempfile::tempdir().expect("temporary directory");
    let launch = launch(&root.path().join("data"))
        .set("ONRUSH_FAKTORY__ENABLED", true)
        .set("ONRUSH_FAKTORY__PORT", 0);
    let (sale, server) = Sale::make(launch, 10);
    let line = server.says("(Faktory)");
    let url = line
        .split_whitespace()
        .nth(1)
        .expect("an address")
        .to_owned();
    let short = json!({"timeout_seconds": 2, "retry_policy": {"kind": "fixed", "delay_ms": 1}});

    let id = enqueue(&server, &sale, short.clone());
    let worker = faktory_worker(&url, "first");
    until("it has the job", || is_running(&server, &sale, &id, 1));
    worker.kill();
    let second = faktory_worker(&url, "second");
    until("another has the job", || is_running(&server, &sale, &id, 2));
    let seen = task(&server, &sale, &id);
    assert_eq!(seen["worker"], "faktory:second", "{seen}");
    assert_eq!(
        (&seen["crashes"], &seen["attempts"][0]["outcome"]),
        (&json!(1), &json!("crashed"))
    );
    // The first comes back and speaks of its job: it is not its own any more.
    let address = url.trim_start_matches("tcp://");
    let mut late = BufReader::new(TcpStream::connect(address).expect("connected"));
    late.get_ref()
        .set_read_timeout(Some(super::PATIENCE))
        .expect("a limit");
    assert!(line_of(&mut late).starts_with("+HI"));
    let ack = json!({"jid": id});
    for (command, answer) in [
        (r#"HELLO {"v":2,"wid":"first"}"#.to_owned(), "+OK"),
        // As the protocol's own server answers it, and nothing of it counts.
        (format!("ACK {ack}"), "+OK"),
        (
            format!("FAIL {}", json!({"jid": id, "message": "late"})),
            "-ERR Job not found",
        ),
    ] {
        late.get_mut()
            .write_all(format!("{command}\r\n").as_bytes())
            .expect("sent");
        let said = line_of(&mut late);
        assert!(said.starts_with(answer), "{command}: {said}");
    }
    assert!(is_running(&server, &sale, &id, 2), "it was fenced");
    let metrics = Client::new(server.address)
        .get("/metrics", &sale.admin)
        .body;
    for command in ["ACK", "FAIL"] {
        let line = format!(r#"faktory_commands_total{{command="{command}",outcome="stale"}} 1"#);
        assert!(metrics.contains(&line), "{command} was counted as late");
    }
    drop(late);
    second.kill();
    until("it is taken back", || !is_running(&server, &sale, &id, 2));
    // Dead workers are counted, whoever they were.
    let third = faktory_worker(&url, "third");
    until("a third has it", || is_running(&server, &sale, &id, 3));
    third.kill();
    until("it is set aside", || {
        task(&server, &sale, &id)["state"] == "discarded"
    });
    let dead = task(&server, &sale, &id);
    let error = dead["error"].as_str().expect("an error");
    assert!(error.contains("set aside after 3"), "{dead}");

    // A slow worker that is there has not crashed.
    let slow = enqueue(&server, &sale, short);
    let worker = faktory_worker(&url, "slow");
    until("its time is over", || {
        task(&server, &sale, &slow)["attempts"][0]["outcome"] == "timed_out"
    });
    assert_eq!(task(&server, &sale, &slow)["crashes"], 0);
    worker.kill();
    server.stop();
}
