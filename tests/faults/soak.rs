//! Hours at half load: whether anything grows that should not.
//!
//! Not run with the others, for its length:
//! `SOAK_MINUTES=60 cargo test --release --test main faults::soak -- --ignored --nocapture`. Every
//! client rests as long as its last request took. Samples are printed as a table; the last third of
//! them is compared with the first, after a warm-up. Must hold: memory, the write-ahead log, `queue/`
//! and the 99th percentile of all requests stay within the margins below.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onrush::clock::Stopwatch;
use serde_json::{Value, json};

use super::ask::Client;
use super::note;
use super::sale::Sale;
use super::server::{Launch, Server};

const SAMPLE_EVERY: Duration = Duration::from_secs(10);
const SAMPLES_MIN: u32 = 18;
/// What the last third may have more than the first: a share of that, and so much besides.
const MARGINS: [(&str, f64, f64); 4] = [
    ("memory, MiB", 0.15, 24.0),
    ("log, MiB", 0.25, 16.0),
    ("queue/, MiB", 0.25, 64.0),
    ("p99, ms", 1.0, 20.0),
];

/// What all clients share.
struct Load {
    address: SocketAddr,
    admin: String,
    claims: String,
    product: i64,
    is_over: AtomicBool,
    number: AtomicU64,
    micros: Mutex<Vec<u64>>,
    refused: AtomicU64,
}

impl Load {
    /// Asks, takes the time, and rests as long.
    fn ask(&self, client: &mut Client, path: &str, token: &str, body: &Value) -> Value {
        let watch = Stopwatch::start();
        let answer = client.post(path, token, body).expect("an answer");
        let took = watch.elapsed();
        let micros = u64::try_from(took.as_micros()).expect("a short time");
        self.micros.lock().expect("a list").push(micros);
        if answer.status >= 400 {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        let rest = Stopwatch::start();
        while rest.elapsed() < took {
            std::thread::park_timeout(took);
        }
        serde_json::from_str(&answer.body).unwrap_or_default()
    }

    fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers and claims a unit.
    fn buy(&self, client: &mut Client) {
        let number = self.next();
        let body = json!({"email": format!("b{number}@example.com"), "name": format!("买家 {number}"),
            "password": "a long enough password"});
        let buyer = self.ask(client, "/api/v1/auth/register", "", &body);
        let token = buyer["token"].as_str().expect("a token");
        self.ask(client, &self.claims, token, &json!({}));
    }

    /// Orders, and thinks better of it.
    fn order(&self, client: &mut Client) {
        let body = json!({"items": [{"product_id": self.product, "quantity": 1}]});
        let order = self.ask(client, "/api/v1/orders", &self.admin, &body);
        let path = format!("/api/v1/orders/{}/cancel", order["id"]);
        self.ask(client, &path, &self.admin, &json!({}));
    }

    /// Makes a task; some are for later.
    fn produce(&self, client: &mut Client) {
        let number = self.next();
        let countdown = if number.is_multiple_of(5) { 20 } else { 0 };
        let body = json!({"name": "soak", "queue": "q", "args": {"number": number},
            "priority": number % 200, "countdown_seconds": countdown});
        self.ask(client, "/api/v1/tasks", &self.admin, &body);
    }

    /// Works off two tasks, and fails now and then.
    fn work(&self, client: &mut Client) {
        for _ in 0..2 {
            let run = self.ask(client, "/api/v1/queues/q/fetch", &self.admin, &json!({}));
            let Some(id) = run["task"]["id"].as_str() else {
                return;
            };
            let attempt = &run["task"]["attempt"];
            let (what, body) = if self.next().is_multiple_of(50) && *attempt == 1 {
                let body = json!({"attempt": attempt, "error": "again", "retry_after_seconds": 1});
                ("fail", body)
            } else {
                ("ack", json!({"attempt": attempt, "result": {"done": true}}))
            };
            self.ask(
                client,
                &format!("/api/v1/tasks/{id}/{what}"),
                &self.admin,
                &body,
            );
        }
    }
}

/// Bytes in a folder and all below it.
fn size(path: &Path) -> u64 {
    let Ok(inside) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |meta| meta.len());
    };
    inside.flatten().map(|entry| size(&entry.path())).sum()
}

/// Tasks that wait for a worker.
fn waiting(server: &Server, sale: &Sale) -> u64 {
    let queues = Client::new(server.address).get("/api/v1/queues", &sale.admin);
    let queues = queues.json();
    let queues = queues["items"].as_array().expect("a list");
    let queue = queues.iter().find(|queue| queue["name"] == "q");
    queue.map_or(0, |queue| queue["ready"].as_u64().expect("a number"))
}

fn resident_mib(server: &Server) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()));
    let status = status.expect("its state");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = kib.expect("its memory").parse().expect("a number");
    kib / 1_024.0
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Figures that grew beyond their margin.
fn grown(samples: &[[f64; 4]]) -> Vec<String> {
    let warm = &samples[samples.len() / 6..];
    let third = warm.len() / 3;
    let (first, last) = (&warm[..third], &warm[warm.len() - third..]);
    let mut grown = Vec::new();
    for (at, (name, share, more)) in MARGINS.into_iter().enumerate() {
        let of = |part: &[[f64; 4]]| median(&part.iter().map(|row| row[at]).collect::<Vec<_>>());
        let (before, after) = (of(first), of(last));
        let most = before * (1.0 + share) + more;
        note(&format!(
            "{name}: first third {before:.1}, last third {after:.1}, at most {most:.1}"
        ));
        if after > most {
            grown.push(format!("{name} grew from {before:.1} to {after:.1}"));
        }
    }
    grown
}

#[test]
fn growth_beyond_the_margins_is_seen() {
    let rows = |step: f64| -> Vec<[f64; 4]> {
        (0..36)
            .map(|at| [100.0 + step * f64::from(at), 4.0, 8.0, 5.0])
            .collect()
    };
    assert_eq!(grown(&rows(0.5)), Vec::<String>::new());
    assert_eq!(grown(&rows(4.0)).len(), 1);
}

#[test]
#[ignore = "takes as long as SOAK_MINUTES says"]
fn hours_at_half_load_let_nothing_grow() {
    let minutes: f64 = std::env::var("SOAK_MINUTES")
        .map_or(60.0, |text| text.parse().expect("SOAK_MINUTES is a number"));
    let whole = Duration::from_secs_f64(minutes * 60.0);
    let every = (whole / SAMPLES_MIN).min(SAMPLE_EVERY);
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let launch = Launch::new(&dir)
        .set("ONRUSH_ORDERS__PROCESS", true)
        .set("ONRUSH_MAIL__WELCOME", true)
        .set("ONRUSH_MAIL__OUTBOX_FILES_MAX", 200)
        .set("ONRUSH_SERVER__CONNECTIONS_PER_ADDRESS_MAX", 1_000)
        // So little that it is reached: what is older goes while it runs.
        .set("ONRUSH_TASKS__RETENTION_SECONDS", 60)
        .set("ONRUSH_TASKS__INDEX_MEMORY_MAX", 200);
    let (sale, server) = Sale::make(launch, 10_000_000);
    for (name, cron) in [
        ("each_second", "* * * * * *"),
        ("each_third", "*/3 * * * * *"),
    ] {
        let body =
            json!({"name": name, "cron": cron, "task": "tick", "queue": "q", "overlap": "allow"});
        let made = Client::new(server.address).post("/api/v1/schedules", &sale.admin, &body);
        assert_eq!(made.expect("an answer").status, 201);
    }
    let load = Arc::new(Load {
        address: server.address,
        admin: sale.admin.clone(),
        claims: sale.claims(),
        product: sale.product,
        is_over: AtomicBool::new(false),
        number: AtomicU64::new(0),
        micros: Mutex::default(),
        refused: AtomicU64::new(0),
    });
    type Client1 = fn(&Load, &mut Client);
    let clients: [(usize, Client1); 4] = [
        (2, Load::buy),
        (1, Load::order),
        (3, Load::produce),
        // Each task takes two requests to work off: what waits must not pile up.
        (7, Load::work),
    ];
    let mut threads = Vec::new();
    for (count, act) in clients {
        for _ in 0..count {
            let load = Arc::clone(&load);
            threads.push(std::thread::spawn(move || {
                let mut client = Client::new(load.address);
                while !load.is_over.load(Ordering::Acquire) {
                    act(&load, &mut client);
                }
            }));
        }
    }
    note("     s   MiB  log MiB  queue MiB  waiting  database MiB  requests/s  p99 ms  refused");
    let (watch, mut samples) = (Stopwatch::start(), Vec::new());
    let mut next = every;
    while watch.elapsed() < whole {
        while watch.elapsed() < next {
            std::thread::park_timeout(next.saturating_sub(watch.elapsed()));
        }
        next += every;
        let mut micros = std::mem::take(&mut *load.micros.lock().expect("a list"));
        micros.sort_unstable();
        let p99 = micros.get(micros.len() * 99 / 100).copied().unwrap_or(0) as f64 / 1_000.0;
        let mib = |path: &str| size(&dir.join(path)) as f64 / 1_048_576.0;
        let row = [
            resident_mib(&server),
            mib("onrush.db-wal"),
            mib("queue"),
            p99,
        ];
        note(&format!(
            "{:>6.0} {:>5.0} {:>8.1} {:>10.1} {:>8} {:>13.1} {:>11.0} {:>7.1} {:>8}",
            watch.elapsed().as_secs_f64(),
            row[0],
            row[1],
            row[2],
            waiting(&server, &sale),
            mib("onrush.db"),
            micros.len() as f64 / every.as_secs_f64(),
            p99,
            load.refused.load(Ordering::Relaxed),
        ));
        samples.push(row);
    }
    load.is_over.store(true, Ordering::Release);
    for thread in threads {
        thread.join().expect("a client");
    }
    let grown = grown(&samples);
    assert_eq!(grown, Vec::<String>::new());
    sale.launch.assert_ledger_holds();
    server.stop();
}
