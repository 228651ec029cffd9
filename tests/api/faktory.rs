//! Workers and producers of the Faktory protocol: a client as others wrote it, and bytes by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ::faktory::ent::{Batch, BatchId, CallbackState, JobState, ProgressUpdate};
use ::faktory::mutate::{Filter, JobSet};
use ::faktory::{Client, Error, Job, JobId, Worker, WorkerId};
use onrush::auth::Role;
use onrush::config::Settings;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Shop, text};

/// A shop that serves workers.
struct Place {
    shop: Shop,
    admin: String,
    /// Where the client runs. A test stays inside: the client says goodbye when it is dropped.
    client: tokio::runtime::Runtime,
}

impl Place {
    fn open() -> Self {
        Self::open_with(|_| ())
    }

    fn open_with(change: impl FnOnce(&mut Settings)) -> Self {
        let shop = Shop::open_with(|settings| {
            settings.faktory.enabled = true;
            settings.faktory.port = 0;
            settings.faktory.fetch_wait_ms = 300;
            settings.faktory.shutdown_grace_ms = 500;
            change(settings);
        });
        let admin = shop.token(Role::Admin);
        Self {
            shop,
            admin,
            client: tokio::runtime::Runtime::new().expect("a runtime"),
        }
    }

    fn address(&self) -> SocketAddr {
        self.shop.app().faktory_address.expect("it is on")
    }

    fn url(&self) -> String {
        format!("tcp://{}", self.address())
    }

    fn producer(&self) -> Client {
        let connected = self.client.block_on(Client::connect_to(&self.url()));
        connected.expect("connected")
    }

    /// A worker that does `good` and fails at `bad`.
    fn worker(&self, wid: &str) -> Worker<std::io::Error> {
        let builder = Worker::builder()
            .wid(WorkerId::new(wid))
            .hostname("here".to_owned())
            .labels(["rust".to_owned()])
            .register_fn("good", |_job| async { Ok::<(), std::io::Error>(()) })
            .register_fn("bad", |_job| async {
                Err(std::io::Error::other("no such image"))
            });
        let connected = self.client.block_on(builder.connect_to(&self.url()));
        connected.expect("connected")
    }

    fn push(&self, producer: &mut Client, job: Job) -> String {
        let jid = job.id().as_str().to_owned();
        self.client.block_on(producer.enqueue(job)).expect("taken");
        jid
    }

    fn run_one(&self, worker: &mut Worker<std::io::Error>, queues: &[&str]) -> bool {
        self.client
            .block_on(worker.run_one(0, queues))
            .expect("it runs")
    }

    /// The task that stands for a job.
    fn task(&self, name: &str) -> Value {
        let path = format!("/api/v1/tasks?name={name}");
        let page = self.shop.get(&path).token(&self.admin).send().expect(200);
        assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{page}");
        let id = text(&page["items"][0]["id"]);
        let path = format!("/api/v1/tasks/{id}");
        self.shop.get(&path).token(&self.admin).send().expect(200)
    }

    fn raw(&self) -> Raw {
        Raw::open(self.address())
    }

    /// Connections that the server has open.
    fn connections(&self) -> i64 {
        let metrics = self.shop.get("/metrics").send().body;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("faktory_connections_open "));
        line.expect("a gauge").parse().expect("a number")
    }

    fn worker_by_hand(&self, wid: &str) -> Raw {
        let mut raw = self.raw();
        assert!(raw.read().starts_with("+HI "));
        raw.send(&format!(
            r#"HELLO {{"v":2,"wid":"{wid}","pid":7,"labels":null}}"#
        ));
        assert_eq!(raw.read(), "+OK");
        raw
    }
}

/// A connection by hand.
struct Raw(BufReader<TcpStream>);

impl Raw {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        Self(BufReader::new(stream))
    }

    fn send(&mut self, line: &str) {
        let line = format!("{line}\r\n");
        self.0.get_mut().write_all(line.as_bytes()).expect("sent");
    }

    /// An answer; a counted text without its count.
    fn read(&mut self) -> String {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).expect("an answer");
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        match line.strip_prefix('$') {
            Some("-1") => "nil".to_owned(),
            Some(count) => {
                let mut bytes = vec![0; count.parse::<usize>().expect("a count") + 2];
                self.0.read_exact(&mut bytes).expect("a text");
                String::from_utf8(bytes[..bytes.len() - 2].to_vec()).expect("text")
            }
            None => line.to_owned(),
        }
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.read()
    }

    /// Whether the server has hung up.
    fn is_over(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}

#[test]
fn a_job_goes_from_a_producer_to_a_worker_and_is_done_once() {
    let place = Place::open();
    let _inside = place.client.enter();
    let (mut producer, mut worker) = (place.producer(), place.worker("w1"));
    let job = Job::builder("good")
        .args([json!(7), json!({"width": 300})])
        .queue("images")
        .add_to_custom_data("locale", "zh")
        .build();
    let again = job.clone();
    place.push(&mut producer, job);
    place.push(&mut producer, again);
    let task = place.task("good");
    assert_eq!(
        (&task["state"], &task["args"], &task["max_attempts"]),
        (&json!("available"), &json!([7, {"width": 300}]), &json!(26))
    );
    assert_eq!(task["metadata"]["custom"]["locale"], "zh");
    assert!(place.run_one(&mut worker, &["images"]));
    assert!(!place.run_one(&mut worker, &["images"]), "it was one job");
    let task = place.task("good");
    assert_eq!(
        (&task["state"], &task["worker"]),
        (&json!("completed"), &json!("faktory:w1"))
    );
    let info = place
        .client
        .block_on(producer.current_info())
        .expect("told");
    assert_eq!(info.data.total_processed, 1);
    let metrics = place.shop.get("/metrics").token(&place.admin).send().body;
    let line = r#"faktory_commands_total{command="ACK",outcome="ok"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn a_failed_job_is_retried_and_dies_at_last() {
    let place = Place::open();
    let _inside = place.client.enter();
    let (mut producer, mut worker) = (place.producer(), place.worker("w1"));
    place.push(&mut producer, Job::builder("bad").retry(1).build());
    assert!(place.run_one(&mut worker, &["default"]));
    let task = place.task("bad");
    assert_eq!(
        (&task["state"], &task["error"]),
        (&json!("retryable"), &json!("no such image"))
    );
    assert!(
        !place.run_one(&mut worker, &["default"]),
        "not before its time"
    );
    place.shop.clock.advance(Duration::from_secs(2));
    assert!(place.run_one(&mut worker, &["default"]));
    assert_eq!(place.task("bad")["state"], "discarded");
    // By hand, with what it knows of the failure.
    let by_id = Filter::empty();
    place
        .client
        .block_on(producer.requeue(JobSet::Dead, &by_id))
        .expect("requeued");
    let mut raw = place.worker_by_hand("w2");
    let job: Value = serde_json::from_str(&raw.ask("FETCH default")).expect("a job");
    assert_eq!(job["failure"]["retry_count"], 1);
    assert_eq!(job["failure"]["message"], "no such image");
    let fail = format!(
        r#"FAIL {{"jid":{},"errtype":"E","message":"m","backtrace":["one","two"]}}"#,
        job["jid"]
    );
    assert_eq!(raw.ask(&fail), "+OK");
    assert_eq!(place.task("bad")["error"], "E: m");
    assert!(raw.ask(&fail).starts_with("-ERR Job not found"));
}

#[test]
fn jobs_without_retries_die_at_their_first_failure() {
    let place = Place::open();
    let _inside = place.client.enter();
    let mut raw = place.worker_by_hand("w");
    for (name, retry) in [("zero", 0), ("never", -1)] {
        let push = format!(
            r#"PUSH {{"jid":"{name}-123","jobtype":"{name}","args":[],"retry":{retry},"backtrace":1}}"#
        );
        assert_eq!(raw.ask(&push), "+OK");
        let job: Value = serde_json::from_str(&raw.ask("FETCH")).expect("a job");
        assert_eq!(
            (&job["retry"], &job["reserve_for"]),
            (&json!(retry), &json!(1_800))
        );
        let fail =
            format!(r#"FAIL {{"jid":"{name}-123","message":"m","backtrace":["one","two"]}}"#);
        assert_eq!(raw.ask(&fail), "+OK");
        let task = place.task(name);
        assert_eq!(task["state"], "discarded");
        assert_eq!(task["logs"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn a_reservation_ends_and_whoever_comes_late_is_fenced() {
    let place = Place::open();
    let _inside = place.client.enter();
    let (mut slow, mut quick) = (place.worker_by_hand("slow"), place.worker_by_hand("quick"));
    let push = r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[1],"reserve_for":60}"#;
    assert_eq!(slow.ask(push), "+OK");
    assert!(slow.ask("FETCH default").contains(r#""jid":"abcdefgh""#));
    assert_eq!(quick.ask("FETCH default"), "nil");
    // Another worker's word does not count.
    assert_eq!(quick.ask(r#"ACK {"jid":"abcdefgh"}"#), "+OK");
    assert_eq!(place.task("x")["state"], "running");
    place.shop.clock.advance(Duration::from_secs(61));
    place.shop.wait_until("it is taken back", || {
        place.task("x")["state"] == "retryable"
    });
    place.shop.clock.advance(Duration::from_secs(2));
    assert!(quick.ask("FETCH default").contains("abcdefgh"));
    assert_eq!(slow.ask(r#"ACK {"jid":"abcdefgh"}"#), "+OK", "as there");
    assert!(
        slow.ask(r#"FAIL {"jid":"abcdefgh","message":"m"}"#)
            .starts_with("-ERR Job not found")
    );
    assert_eq!(place.task("x")["state"], "running", "nothing of it counted");
    assert_eq!(quick.ask(r#"ACK {"jid":"abcdefgh"}"#), "+OK");
    assert_eq!(place.task("x")["state"], "completed");
    assert_eq!(quick.ask(r#"ACK {"jid":"abcdefgh"}"#), "+OK", "twice");
    assert!(
        quick
            .ask(r#"ACK {"jid":"never-seen"}"#)
            .starts_with("-ERR Job not found")
    );
    let task = place.task("x");
    assert_eq!(task["attempts"][0]["outcome"], "timed_out");
}

#[test]
fn a_run_outlives_the_servers_restart() {
    let mut place = Place::open();
    let mut raw = place.worker_by_hand("w");
    raw.ask(r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[]}"#);
    assert!(raw.ask("FETCH").contains("abcdefgh"));
    place.shop.restart();
    let mut raw = place.worker_by_hand("w");
    assert_eq!(raw.ask(r#"ACK {"jid":"abcdefgh"}"#), "+OK");
    assert_eq!(place.task("x")["state"], "completed");
}

#[test]
fn order_time_and_queues_are_kept() {
    let place = Place::open();
    let _inside = place.client.enter();
    let mut producer = place.producer();
    let now = place.shop.clock.now();
    let at = chrono::DateTime::from_timestamp_micros(now.plus_seconds(60).0).expect("a time");
    let job = |kind: &str, queue: &str, priority: u8| {
        Job::builder(kind).queue(queue).priority(priority).build()
    };
    place.push(&mut producer, job("low", "a", 1));
    place.push(&mut producer, job("high", "a", 9));
    place.push(&mut producer, job("first", "b", 5));
    place.push(
        &mut producer,
        Job::builder("later").queue("b").at(at).build(),
    );
    let mut raw = place.worker_by_hand("w");
    let next = |raw: &mut Raw| {
        let job = raw.ask("FETCH b a b");
        serde_json::from_str::<Value>(&job).map_or(job, |job| text(&job["jobtype"]))
    };
    let seen: Vec<String> = (0..4).map(|_| next(&mut raw)).collect();
    assert_eq!(seen, ["first", "high", "low", "nil"]);
    assert_eq!(place.task("later")["state"], "scheduled");
    place.shop.clock.advance(Duration::from_secs(61));
    assert_eq!(next(&mut raw), "later");
    // A paused queue gives nothing.
    place
        .client
        .block_on(producer.queue_pause(&["a"]))
        .expect("paused");
    place.push(&mut producer, job("good", "a", 5));
    assert_eq!(next(&mut raw), "nil");
    place
        .client
        .block_on(producer.queue_resume_all())
        .expect("resumed");
    assert_eq!(next(&mut raw), "good");
}

#[test]
fn a_worker_is_listed_quieted_and_stopped() {
    let place = Place::open();
    let _inside = place.client.enter();
    let mut raw = place.worker_by_hand("w");
    let list = || {
        let answer = place.shop.get("/api/v1/workers").token(&place.admin).send();
        answer.expect(200)["items"].clone()
    };
    let workers = list();
    assert_eq!(
        (&workers[0]["wid"], &workers[0]["state"], &workers[0]["pid"]),
        (&json!("w"), &json!("running"), &json!(7))
    );
    let beat = r#"BEAT {"wid":"w","rss_kb":1024}"#;
    assert_eq!(raw.ask(beat), "+OK");
    assert_eq!(list()[0]["rss_kb"], 1_024);
    let tell = |what: &str| {
        let path = format!("/api/v1/workers/w/{what}");
        place
            .shop
            .post(&path)
            .token(&place.admin)
            .send()
            .expect(200)["state"]
            .clone()
    };
    assert_eq!(tell("quiet"), "quiet");
    assert_eq!(raw.ask(beat), r#"{"state":"quiet"}"#);
    raw.ask(r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[]}"#);
    assert_eq!(raw.ask("FETCH default"), "nil", "it gets nothing more");
    assert_eq!(tell("stop"), "terminate");
    assert_eq!(tell("quiet"), "terminate", "there is no way back");
    assert_eq!(raw.ask(beat), r#"{"state":"terminate"}"#);
    assert!(
        raw.ask(r#"BEAT {"wid":"z"}"#)
            .starts_with("-ERR unknown worker")
    );
    assert_eq!(raw.ask("END"), "+OK");
    assert!(raw.is_over());
    place
        .shop
        .wait_until("it has left", || list()[0]["connections"] == 0);
    place.shop.clock.advance(Duration::from_secs(61));
    place.shop.wait_until("it is forgotten", || {
        let admin = place.shop.token(Role::Admin);
        let answer = place.shop.get("/api/v1/workers").token(&admin).send();
        answer.expect(200)["items"] == json!([])
    });
    let gone = place.shop.post("/api/v1/workers/w/stop");
    let admin = place.shop.token(Role::Admin);
    assert_eq!(gone.token(&admin).send().outcome(), "404 worker_not_found");
}

#[test]
fn the_client_stops_when_it_is_told() {
    let place = Place::open();
    let _inside = place.client.enter();
    let mut worker = place.worker("w1");
    let path = "/api/v1/workers/w1/stop";
    place.shop.post(path).token(&place.admin).send().expect(200);
    let stopped = place.client.block_on(worker.run(&["default"]));
    let details = stopped.expect("it stops");
    assert_eq!(details.workers_still_running, 0);
}

#[test]
pub fn unique_jobs_expiry_progress_and_batches_are_those_of_its_clients() {
    let place = Place::open();
    let _inside = place.client.enter();
    let (mut producer, mut worker) = (place.producer(), place.worker("w1"));
    let unique = || Job::builder("good").args([1]).unique_for(60).build();
    place.push(&mut producer, unique());
    let error = place.client.block_on(producer.enqueue(unique()));
    let error = error.expect_err("there is one already");
    assert!(
        matches!(&error, Error::Protocol(::faktory::error::Protocol::UniqueConstraintViolation { msg })
            if msg == "Job not unique"),
        "{error:?}"
    );
    assert!(place.run_one(&mut worker, &["default"]));
    let jid = place.push(&mut producer, unique());
    assert!(place.run_one(&mut worker, &["default"]));
    let progress = place
        .client
        .block_on(producer.get_progress(JobId::new(jid.as_str())));
    let progress = progress.expect("told").expect("known");
    assert_eq!(progress.state, JobState::Success);
    let unknown = place
        .client
        .block_on(producer.get_progress(JobId::new("never-seen")));
    let unknown = unknown.expect("told").expect("an answer");
    assert_eq!(unknown.state, JobState::Unknown);

    // Progress, and a longer reservation.
    let job = Job::builder("slow").queue("s").build();
    let id = job.id().clone();
    place.push(&mut producer, job);
    let mut raw = place.worker_by_hand("w2");
    raw.ask("FETCH s");
    let now = place.shop.clock.now();
    let until = chrono::DateTime::from_timestamp_micros(now.plus_seconds(3_600).0).expect("a time");
    let update = ProgressUpdate::builder(id.clone())
        .percent(40)
        .desc("half".to_owned())
        .reserve_until(until)
        .build();
    place
        .client
        .block_on(producer.set_progress(&update))
        .expect("kept");
    let seen = place.client.block_on(producer.get_progress(&id));
    let seen = seen.expect("told").expect("known");
    assert_eq!(
        (seen.percent, seen.desc.as_deref()),
        (Some(40), Some("half"))
    );
    let task = place.task("slow");
    assert_eq!(task["lease_expires_at"], json!(now.plus_seconds(3_600)));

    // Expired before anybody took it.
    let ends = chrono::DateTime::from_timestamp_micros(now.plus_seconds(30).0).expect("a time");
    let job = Job::builder("stale").queue("e").expires_at(ends).build();
    place.push(&mut producer, job);
    place.shop.clock.advance(Duration::from_secs(31));
    assert!(!place.run_one(&mut worker, &["e"]));

    // A batch with its two callbacks.
    let callback = |queue: &str| Job::builder("good").queue(queue).build();
    let batch = Batch::builder()
        .description("both")
        .with_callbacks(callback("success"), callback("complete"));
    let bid = place.client.block_on(async {
        let mut handle = producer.start_batch(batch).await.expect("begun");
        let bid = handle.id().clone();
        for _ in 0..2 {
            let job = Job::builder("good").queue("batch").build();
            handle.add(job).await.expect("added");
        }
        handle.commit().await.expect("committed");
        bid
    });
    let status = |producer: &mut Client| {
        let status = place.client.block_on(producer.get_batch_status(&bid));
        status.expect("told").expect("known")
    };
    let begun = status(&mut producer);
    assert_eq!((begun.total, begun.pending, begun.failed), (2, 2, 0));
    assert_eq!(begun.complete_callback_state, CallbackState::Pending);
    for _ in 0..2 {
        assert!(place.run_one(&mut worker, &["batch"]));
    }
    assert!(place.run_one(&mut worker, &["success"]));
    let over = status(&mut producer);
    assert_eq!((over.total, over.pending), (2, 0));
    assert_eq!(over.success_callback_state, CallbackState::FinishedOk);
    assert_eq!(over.complete_callback_state, CallbackState::Enqueued);
    let opened = place
        .client
        .block_on(producer.open_batch(BatchId::new("no-such-batch")));
    assert!(opened.expect("an answer").is_none());
}

#[test]
pub fn sets_of_jobs_are_killed_requeued_and_discarded() {
    let place = Place::open();
    let _inside = place.client.enter();
    let mut raw = place.worker_by_hand("w");
    for (jid, kind) in [("aaaaaaaa", "A"), ("bbbbbbbb", "B"), ("cccccccc", "C")] {
        let push = format!(
            r#"PUSH {{"jid":"{jid}","jobtype":"{kind}","args":["uid:{kind}"],"at":"2026-11-12T00:00:00Z"}}"#
        );
        assert_eq!(raw.ask(&push), "+OK");
    }
    let states = || ["A", "B", "C"].map(|kind| text(&place.task(kind)["state"]));
    let mut mutate = |operation: Value| assert_eq!(raw.ask(&format!("MUTATE {operation}")), "+OK");
    mutate(json!({"cmd": "kill", "target": "scheduled", "filter": {"jobtype": "A"}}));
    mutate(json!({"cmd": "discard", "target": "scheduled", "filter": {"regexp": "*uid:B*"}}));
    mutate(
        json!({"cmd": "requeue", "target": "scheduled", "filter": {"jids": ["cccccccc", "zzzzzzzz"]}}),
    );
    assert_eq!(states(), ["discarded", "cancelled", "available"]);
    mutate(json!({"cmd": "requeue", "target": "dead", "filter": {}}));
    assert_eq!(states(), ["available", "cancelled", "available"]);
    assert!(
        raw.ask(r#"MUTATE {"cmd":"kill","target":"x"}"#)
            .starts_with("-ERR invalid target")
    );
    assert!(
        raw.ask(r#"MUTATE {"cmd":"x","target":"dead"}"#)
            .starts_with("-ERR unknown mutate")
    );
    // All that waits in a queue.
    assert_eq!(raw.ask("QUEUE REMOVE default"), "+OK");
    assert_eq!(states(), ["cancelled", "cancelled", "cancelled"]);
}

#[test]
fn many_jobs_are_pushed_at_once_and_the_bad_ones_are_named() {
    let place = Place::open();
    let _inside = place.client.enter();
    let mut raw = place.worker_by_hand("w");
    let good = |jid: &str| json!({"jid": jid, "jobtype": "x", "args": [], "queue": "q"});
    let jobs = json!([
        good("good-001"), good("good-002"), good("good-001"),
        {"jid": "no-args-1", "jobtype": "x"},
        {"jid": "built-in-1", "jobtype": "process_order", "args": [1], "queue": "orders"},
    ]);
    let answer: Value = serde_json::from_str(&raw.ask(&format!("PUSHB {jobs}"))).expect("a map");
    let named: Vec<&String> = answer.as_object().expect("a map").keys().collect();
    assert_eq!(named, ["built-in-1", "no-args-1"]);
    assert!(raw.ask("FETCH q").contains("good-001"));
    assert!(raw.ask("FETCH q").contains("good-002"));
    assert_eq!(raw.ask("FETCH q"), "nil");
    assert_eq!(raw.ask("PUSHB []"), "{}");
}

#[test]
fn a_job_keeps_its_numbers_or_is_refused() {
    let place = Place::open();
    let _inside = place.client.enter();
    let mut raw = place.worker_by_hand("w");
    let job = |jid: &str, number: &str| {
        format!(r#"{{"jid":"{jid}","jobtype":"x","queue":"q","args":[7,{{"no":{number}}}]}}"#)
    };
    for number in ["18446744073709551616", "1e400", "738529527931269425.0"] {
        let told = raw.ask(&format!("PUSH {}", job("lost-0001", number)));
        assert!(
            told.starts_with("-ERR invalid JSON: args[1].no is a number that"),
            "{told}"
        );
        let custom = r#"PUSH {"jid":"lost-0001","jobtype":"x","args":[],"custom":{"no":NUMBER}}"#;
        let told = raw.ask(&custom.replace("NUMBER", number));
        assert!(
            told.starts_with("-ERR invalid JSON: custom.no is a number that"),
            "{told}"
        );
        let batch = format!(r#"BATCH NEW {{"success":{}}}"#, job("lost-0001", number));
        let told = raw.ask(&batch);
        assert!(
            told.starts_with("-ERR invalid JSON: success.args[1].no"),
            "{told}"
        );
    }
    let (good, lost) = (
        job("good-0001", "738529527931269425"),
        job("lost-0001", "1e400"),
    );
    let told: Value =
        serde_json::from_str(&raw.ask(&format!("PUSHB [{lost},{good}]"))).expect("a map");
    assert_eq!(
        told.as_object().expect("a map").keys().collect::<Vec<_>>(),
        ["lost-0001"]
    );
    let got = raw.ask("FETCH q");
    assert!(
        got.contains("good-0001") && got.contains(r#"{"no":738529527931269425}"#),
        "{got}"
    );
    assert_eq!(raw.ask("FETCH q"), "nil");
}

#[test]
fn what_makes_no_sense_is_refused_and_the_connection_lives_on() {
    let place = Place::open();
    let _inside = place.client.enter();
    let mut raw = place.worker_by_hand("w");
    for (line, answer) in [
        ("NONSENSE", "-ERR unknown command NONSENSE"),
        ("PUSH", "-ERR invalid JSON"),
        ("PUSH {", "-ERR invalid JSON"),
        (
            r#"PUSH {"jobtype":"x","args":[]}"#,
            "-ERR jobs must have a reasonable jid",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","args":[]}"#,
            "-ERR jobs must have a jobtype",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x"}"#,
            "-ERR jobs must have an args",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"reserve_for":86401}"#,
            "-ERR jobs cannot be reserved",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"at":"soon"}"#,
            "-ERR invalid timestamp",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"queue":"a b"}"#,
            "-ERR queue must be",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"queue":"mail"}"#,
            "-ERR queue mail is served by this server itself",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"custom":{"bid":"none"}}"#,
            "-ERR No such batch none",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"at":"9999-01-01T00:00:00Z"}"#,
            "-ERR eta must be within 31622400 seconds",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"custom":{"expires_in":31622401}}"#,
            "-ERR custom.expires_in must be a number of seconds from 0 to 31622400",
        ),
        (
            r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"custom":{"unique_for":"1e300"}}"#,
            "-ERR custom.unique_for must be a number of seconds from 0 to 31622400",
        ),
        ("FETCH orders", "-ERR queue orders is served"),
        ("ACK {}", "-ERR invalid ACK"),
        ("FAIL 7", "-ERR invalid FAIL"),
        ("BEAT", "-ERR invalid BEAT"),
        ("FLUSH", "-ERR FLUSH is refused"),
        ("QUEUE PAUSE", "-ERR QUEUE needs"),
        ("QUEUE PAUSE orders", "-ERR queue orders is served"),
        ("TRACK", "-ERR TRACK knows"),
        ("BATCH NEW {}", "-ERR batches must have"),
        ("BATCH STATUS none", "-ERR No such batch none"),
    ] {
        let said = raw.ask(line);
        assert!(said.starts_with(answer), "{line}: {said}");
    }
    assert_eq!(raw.ask(r#"BEAT {"wid":"w"}"#), "+OK");
}

#[test]
fn hostile_connections_are_ended_in_time() {
    let place = Place::open_with(|settings| {
        settings.faktory.handshake_timeout_ms = 200;
        settings.faktory.command_timeout_ms = 200;
        settings.faktory.command_bytes_max = 4_096;
        settings.faktory.idle_seconds = 1;
    });
    let mut silent = place.raw();
    assert_eq!(silent.read(), r#"+HI {"v":2}"#);
    assert!(
        silent
            .read()
            .starts_with("-ERR the HELLO did not come in time")
    );
    assert!(silent.is_over());
    for greeting in ["GET / HTTP/1.1", "HELLO {", "PUSH {}"] {
        let mut raw = place.raw();
        raw.read();
        assert!(raw.ask(greeting).starts_with("-ERR"), "{greeting}");
        assert!(raw.is_over(), "{greeting}");
    }
    let mut half = place.worker_by_hand("half");
    half.0.get_mut().write_all(b"PUSH {\"jid\"").expect("sent");
    assert!(
        half.read()
            .starts_with("-ERR the command did not come in time")
    );
    assert!(half.is_over());
    let mut long = place.worker_by_hand("long");
    assert!(
        long.ask(&"x".repeat(5_000))
            .starts_with("-ERR the command is too long")
    );
    assert!(long.is_over());
    let mut binary = place.worker_by_hand("binary");
    binary
        .0
        .get_mut()
        .write_all(b"PUSH \xff\xfe\n")
        .expect("sent");
    assert!(binary.read().starts_with("-ERR the command is no UTF-8"));
    assert!(binary.is_over());
    let mut idle = place.worker_by_hand("idle");
    assert!(idle.is_over());
    let metrics = place.shop.get("/metrics").token(&place.admin).send().body;
    for reason in ["greeting", "slow", "too_long", "no_text", "idle"] {
        let line = format!(r#"faktory_connections_refused_total{{reason="{reason}"}}"#);
        assert!(metrics.contains(&line), "{reason}\n{metrics}");
    }
}

#[test]
fn a_worker_that_goes_away_while_it_waits_loses_nothing() {
    let place = Place::open_with(|settings| settings.faktory.fetch_wait_ms = 20_000);
    let mut gone = place.worker_by_hand("gone");
    gone.send("FETCH default");
    drop(gone);
    let mut raw = place.worker_by_hand("w");
    assert_eq!(
        raw.ask(r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[]}"#),
        "+OK"
    );
    assert!(raw.ask("FETCH default").contains("abcdefgh"));
}

#[test]
pub fn a_task_of_another_way_is_a_job_too_and_others_tasks_are_out_of_reach() {
    let place = Place::open();
    let _inside = place.client.enter();
    let enqueue = |body: Value| {
        let answer = place
            .shop
            .post("/api/v1/tasks")
            .token(&place.admin)
            .json(&body)
            .send();
        text(&answer.expect(202)["id"])
    };
    let id = enqueue(
        json!({"name": "resize", "args": {"image": 7}, "queue": "images",
        "metadata": {"by": "me"}}),
    );
    let order = enqueue(json!({"name": "process_order", "args": {"order_id": 1}}));
    let mut raw = place.worker_by_hand("w");
    let job: Value = serde_json::from_str(&raw.ask("FETCH images")).expect("a job");
    assert_eq!(
        (&job["jid"], &job["args"], &job["custom"]),
        (&json!(id), &json!([{"image": 7}]), &json!({"by": "me"}))
    );
    assert_eq!(raw.ask(&format!(r#"ACK {{"jid":"{id}"}}"#)), "+OK");
    assert_eq!(place.task("resize")["state"], "completed");
    let track = raw.ask(&format!("TRACK GET {order}"));
    assert!(track.contains(r#""state":"unknown""#), "{track}");
    assert!(
        raw.ask(&format!(r#"ACK {{"jid":"{order}"}}"#))
            .starts_with("-ERR Job not found")
    );
}

#[test]
fn a_password_is_asked_for_and_compared() {
    let place = Place::open_with(|settings| {
        settings.faktory.password = "hunter2".into();
        settings.faktory.password_passes = 1_545;
    });
    let url = |password: &str| format!("tcp://:{password}@{}", place.address());
    place.client.block_on(async {
        Client::connect_to(&url("hunter2")).await.expect("it fits");
        let refused = Client::connect_to(&url("hunter3")).await.err();
        let refused = refused.expect("it does not fit");
        assert!(
            matches!(&refused, Error::Protocol(::faktory::error::Protocol::Internal { msg })
                if msg == "Invalid password"),
            "{refused:?}"
        );
    });
    let mut raw = place.raw();
    let hi = raw.read();
    assert!(
        hi.contains(r#""i":1545"#) && hi.contains(r#""s":""#),
        "{hi}"
    );
    assert_eq!(raw.ask(r#"HELLO {"v":2}"#), "-ERR Invalid password");
    assert!(raw.is_over());
}

#[test]
fn guessing_the_password_is_slowed_down_and_connections_of_an_address_are_bounded() {
    let place = Place::open_with(|settings| {
        settings.faktory.password = "hunter2".into();
        settings.faktory.password_passes = 3;
        settings.faktory.password_failures = 3;
        settings.faktory.password_delay_seconds = 10;
        settings.faktory.password_delay_seconds_max = 15;
        settings.faktory.connections_per_address_max = 2;
    });
    // The limit counts what is open: a connection that was refused is over when it says so.
    let hello = |password: &str| {
        place
            .shop
            .wait_until("a free place", || place.connections() == 0);
        let mut raw = place.raw();
        let hi: Value = serde_json::from_str(raw.read().trim_start_matches("+HI ")).expect("JSON");
        let mut digest = Sha256::digest(format!("{password}{}", text(&hi["s"])));
        for _ in 1..3 {
            digest = Sha256::digest(digest);
        }
        let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = raw.ask(&format!(r#"HELLO {{"v":2,"pwdhash":"{hash}"}}"#));
        (raw, answer)
    };
    let try_with = |password: &str| hello(password).1;
    for _ in 0..3 {
        assert_eq!(try_with("hunter3"), "-ERR Invalid password");
    }
    let throttled = "-ERR too many wrong passwords; try again in 10 s";
    assert_eq!(try_with("hunter2"), throttled);
    place.shop.clock.advance(Duration::from_secs(10));
    assert_eq!(try_with("hunter3"), "-ERR Invalid password");
    // The wait grows up to its limit.
    let throttled = "-ERR too many wrong passwords; try again in 15 s";
    assert_eq!(try_with("hunter2"), throttled);
    place.shop.clock.advance(Duration::from_secs(15));
    // Whoever knows the password has nothing to guess.
    assert_eq!(try_with("hunter2"), "+OK");
    assert_eq!(try_with("hunter3"), "-ERR Invalid password");
    let (mut first, answer) = hello("hunter2");
    assert_eq!(answer, "+OK");
    let mut second = place.raw();
    assert!(second.read().starts_with("+HI "));
    let mut third = place.raw();
    assert_eq!(third.read(), "-ERR too many connections from this address");
    assert!(third.is_over());
    assert_eq!(first.ask("END"), "+OK");
    place
        .shop
        .wait_until("a place", || place.connections() == 1);
    assert!(place.raw().read().starts_with("+HI "));
    let metrics = place.shop.get("/metrics").send().body;
    for (event, times) in [("authn_login_fail", 5), ("authn_login_fail_max", 2)] {
        let line = format!("security_events_total{{event=\"{event}\"}} {times}\n");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    for (reason, times) in [("address_limit", 1), ("throttled", 2), ("password", 5)] {
        let line = format!("faktory_connections_refused_total{{reason=\"{reason}\"}} {times}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
}

#[test]
fn tls_is_spoken_with_the_servers_certificate() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let shop = Shop::open_with(|settings| {
        settings.faktory.enabled = true;
        settings.faktory.port = 0;
        settings.faktory.tls = true;
        settings.faktory.password = "hunter2".into();
        settings.faktory.password_passes = 1;
        settings.faktory.handshake_timeout_ms = 1_000;
        settings.server.tls_cert = cert.clone();
        settings.server.tls_key = key.clone();
    });
    let address = shop.app().faktory_address.expect("it is on");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = tokio::runtime::Runtime::new().expect("a runtime");
    client.block_on(async {
        let tcp = tokio::net::TcpStream::connect(address)
            .await
            .expect("connected");
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .expect("a certificate that is trusted");
        let mut tls = tokio::io::BufStream::new(tls);
        let mut hi = String::new();
        tls.read_line(&mut hi).await.expect("a greeting");
        let hi: Value = serde_json::from_str(hi.trim().trim_start_matches("+HI ")).expect("JSON");
        let digest = Sha256::digest(format!("hunter2{}", text(&hi["s"])));
        let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let hello = format!("HELLO {}\n", json!({"v": 2, "pwdhash": hash}));
        let push = "PUSH {\"jid\":\"abcdefgh\",\"jobtype\":\"x\",\"args\":[]}\n";
        for line in [hello.as_str(), push] {
            tls.write_all(line.as_bytes()).await.expect("sent");
            tls.flush().await.expect("sent");
            let mut answer = String::new();
            tls.read_line(&mut answer).await.expect("an answer");
            assert_eq!(answer, "+OK\r\n", "{line}");
        }
    });
    // Plain text gets nowhere.
    let mut raw = Raw::open(address);
    raw.send("HELLO {}");
    assert!(!raw.read().starts_with('+'));
}

#[test]
pub fn a_batch_that_is_never_committed_is_dropped_once_nothing_of_it_is_pending() {
    let mut place = Place::open_with(|settings| {
        settings.tasks.upkeep_interval_ms = 10;
        settings.tasks.batch_open_seconds = 3_600;
    });
    let mut raw = place.worker_by_hand("w");
    let begin = |raw: &mut Raw| {
        raw.ask(
            r#"BATCH NEW {"description":"d","success":{"jid":"callback","jobtype":"c","args":[]}}"#,
        )
    };
    let (empty, pending, committed) = (begin(&mut raw), begin(&mut raw), begin(&mut raw));
    for (bid, jid) in [(&pending, "pending-1"), (&committed, "committed-1")] {
        let push =
            format!(r#"PUSH {{"jid":"{jid}","jobtype":"x","args":[],"custom":{{"bid":"{bid}"}}}}"#);
        assert_eq!(raw.ask(&push), "+OK");
    }
    assert_eq!(raw.ask(&format!("BATCH COMMIT {committed}")), "+OK");
    place.shop.clock.advance(Duration::from_secs(3_601));
    let status = |place: &Place, bid: &str| {
        let mut raw = place.worker_by_hand("other");
        raw.ask(&format!("BATCH STATUS {bid}"))
    };
    let is_gone = |place: &Place, bid: &str| status(place, bid).starts_with("-ERR No such batch");
    place
        .shop
        .wait_until("the empty one is gone", || is_gone(&place, &empty));
    for bid in [&pending, &committed] {
        assert!(status(&place, bid).contains(r#""pending":1"#), "it stays");
    }
    // Its last job ends: now nobody adds to it any more. What was committed is as it was.
    for _ in 0..2 {
        let job: Value = serde_json::from_str(&raw.ask("FETCH default")).expect("a job");
        assert_eq!(raw.ask(&format!(r#"ACK {{"jid":{}}}"#, job["jid"])), "+OK");
    }
    place
        .shop
        .wait_until("the other is gone", || is_gone(&place, &pending));
    assert!(status(&place, &committed).contains(r#""pending":0"#));
    place.admin = place.shop.token(Role::Admin);
    let callback = place.task("c");
    assert_eq!(
        callback["state"], "available",
        "of the one that was committed"
    );
}

#[test]
pub fn a_job_that_is_requeued_by_hand_counts_in_its_complete_batch_again() {
    let place = Place::open_with(|settings| settings.tasks.upkeep_interval_ms = 1);
    let mut raw = place.worker_by_hand("w");
    let begin = |raw: &mut Raw, name: &str| {
        let callback = |kind: &str| json!({"jid": format!("{name}-{kind}"), "jobtype": kind, "args": [], "queue": "after"});
        let batch = json!({"success": callback("success"), "complete": callback("complete")});
        let bid = raw.ask(&format!("BATCH NEW {batch}"));
        let job = json!({"jid": format!("{name}-job-1"), "jobtype": "x", "args": [], "retry": 0, "custom": {"bid": bid}});
        assert_eq!(raw.ask(&format!("PUSH {job}")), "+OK");
        assert_eq!(raw.ask(&format!("BATCH COMMIT {bid}")), "+OK");
        bid
    };
    let take = |raw: &mut Raw, queue: &str, jid: &str| {
        let job: Value = serde_json::from_str(&raw.ask(&format!("FETCH {queue}"))).expect("a job");
        assert_eq!(job["jid"], jid);
    };
    let ack = |raw: &mut Raw, jid: &str| {
        assert_eq!(raw.ask(&format!(r#"ACK {{"jid":"{jid}"}}"#)), "+OK");
    };
    let status = |raw: &mut Raw, bid: &str| -> Value {
        serde_json::from_str(&raw.ask(&format!("BATCH STATUS {bid}"))).expect("a batch")
    };
    let (good, bad) = (begin(&mut raw, "good"), begin(&mut raw, "bad"));
    take(&mut raw, "default", "good-job-1");
    ack(&mut raw, "good-job-1");
    take(&mut raw, "default", "bad-job-1");
    let fail = json!({"jid": "bad-job-1", "errtype": "E", "message": "no"});
    assert_eq!(raw.ask(&format!("FAIL {fail}")), "+OK");
    for jid in ["good-success", "good-complete", "bad-complete"] {
        take(&mut raw, "after", jid);
        ack(&mut raw, jid);
    }
    let state = status(&mut raw, &bad);
    assert_eq!(
        (&state["pending"], &state["failed"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(
        (&state["success_st"], &state["complete_st"]),
        (&json!(""), &json!("2"))
    );

    // Successful batches are kept as long as completed tasks; one with dead jobs as long as those.
    place.shop.clock.advance(Duration::from_secs(8 * 86_400));
    let mut raw = place.worker_by_hand("later");
    place.shop.wait_until("the successful one is gone", || {
        let mut raw = place.worker_by_hand("other");
        raw.ask(&format!("BATCH STATUS {good}"))
            .starts_with("-ERR No such batch")
    });
    let requeue = json!({"cmd": "requeue", "target": "dead", "filter": {"jids": ["bad-job-1"]}});
    assert_eq!(raw.ask(&format!("MUTATE {requeue}")), "+OK");
    let state = status(&mut raw, &bad);
    assert_eq!(
        (&state["pending"], &state["failed"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(state["success_st"], "");
    assert_ne!(state["complete_st"], "", "it was made");
    take(&mut raw, "default", "bad-job-1");
    ack(&mut raw, "bad-job-1");
    take(&mut raw, "after", "bad-success");
    ack(&mut raw, "bad-success");
    assert_eq!(status(&mut raw, &bad)["success_st"], "2");
    // A second commit brings nothing again.
    assert_eq!(raw.ask(&format!("BATCH COMMIT {bad}")), "+OK");
    assert!(
        !raw.ask("FETCH after").starts_with('{'),
        "each callback came once"
    );
}

#[test]
fn neither_beats_nor_reports_carry_a_job_beyond_the_longest_run() {
    let mut place = Place::open_with(|settings| settings.tasks.timeout_ms_max = 7_200_000);
    let mut raw = place.worker_by_hand("w");
    let begun = place.shop.clock.now();
    let push = r#"PUSH {"jid":"abcdefgh","jobtype":"x","args":[],"reserve_for":60}"#;
    assert_eq!(raw.ask(push), "+OK");
    assert!(raw.ask("FETCH default").contains("abcdefgh"));
    let ends = |place: &Place, seconds: i64| {
        let lease = &place.task("x")["lease_expires_at"];
        assert_eq!(*lease, json!(begun.plus_seconds(seconds)));
    };
    ends(&place, 60);
    place.shop.clock.advance(Duration::from_secs(30));
    assert_eq!(raw.ask(r#"BEAT {"wid":"w"}"#), "+OK");
    ends(&place, 60);
    let report = json!({"jid": "abcdefgh", "percent": 1, "desc": "d", "reserve_until": begun.plus_seconds(86_400)});
    assert_eq!(raw.ask(&format!("TRACK SET {report}")), "+OK");
    ends(&place, 7_200);
    place.shop.clock.advance(Duration::from_secs(7_169));
    place.admin = place.shop.token(Role::Admin);
    assert_eq!(place.task("x")["state"], "running");
    place.shop.clock.advance(Duration::from_secs(1));
    place.shop.wait_until("it is taken back", || {
        place.task("x")["state"] == "retryable"
    });
    assert_eq!(place.task("x")["attempts"][0]["outcome"], "timed_out");
}
