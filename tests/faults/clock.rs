//! A machine whose clock is set by an hour, forward and back, under a running server.
//!
//! Must hold: a lease lasts as long as it was to last, counted in time that passed: it neither ends
//! with the jump nor lives an hour longer; what was available is given out; what is to be at a time is
//! when the wall clock says so; no fire of a schedule has two tasks. Time that passed is the kernel's
//! own; only the wall clock is set.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use onrush::clock::{Clock, Stopwatch};
use serde_json::{Value, json};

use super::ask::{Answer, Client};
use super::disk::text;
use super::sale::Sale;
use super::server::{Launch, Server};
use super::{skip, tool, until};

/// Answers in the kernel's place: what the wall clock says, and so many seconds more as the file says
/// at that moment. libfaketime does the same, but ends at its own start in a program that brings its
/// own `malloc`.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *more;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULT_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *at = mmap(NULL, sizeof(*more), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (at != MAP_FAILED) more = at;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && more && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *more;
    return result;
}

time_t time(time_t *kept) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (kept) *kept = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict kept, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    kept->tv_sec = now.tv_sec;
    kept->tv_usec = now.tv_nsec / 1000;
    return result;
}
"#;

/// The hand that sets the clock.
struct Hand(File);

impl Hand {
    fn set(&self, seconds: i64) {
        self.0
            .write_all_at(&seconds.to_ne_bytes(), 0)
            .expect("written");
    }
}

/// A server whose clock can be set; `Err` says why this machine can't.
fn launch(dir: &Path) -> Result<(Launch, Hand), String> {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, LIBRARY).expect("written");
    tool(&[
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        text(&library),
        text(&source),
    ])?;
    let place = dir.join("clock");
    let hand = Hand(File::create(&place).expect("a file"));
    hand.set(0);
    let launch = Launch::new(&dir.join("data"))
        .set("LD_PRELOAD", library.display())
        .set("FAULT_CLOCK", place.display())
        // Followed at once, unless a test is about that.
        .set("ONRUSH_SHOP__CLOCK_HOLD_SECONDS", 0)
        .set("ONRUSH_SCHEDULES__POLL_INTERVAL_MS", 50)
        // Who asks stays who it is, whatever the clock says.
        .set("ONRUSH_AUTH__STAFF_SESSION_IDLE_SECONDS", 31_536_000)
        .set("ONRUSH_AUTH__STAFF_SESSION_SECONDS", 31_536_000);
    Ok((launch, hand))
}

fn post(server: &Server, sale: &Sale, path: &str, body: Value) -> Answer {
    let path = format!("/api/v1{path}");
    let answer = Client::new(server.address).post(&path, &sale.admin, &body);
    answer.expect("an answer")
}

fn enqueue(server: &Server, sale: &Sale, body: Value) -> String {
    let made = post(server, sale, "/tasks", body);
    assert_eq!(made.status, 202, "{made:?}");
    made.json()["id"].as_str().expect("an id").to_owned()
}

fn task(server: &Server, sale: &Sale, id: &str) -> Value {
    let path = format!("/api/v1/tasks/{id}");
    Client::new(server.address).get(&path, &sale.admin).json()
}

fn fetch(server: &Server, sale: &Sale, queue: &str, lease: u32) -> Value {
    let body = json!({"wait_seconds": 20, "lease_seconds": lease});
    let answer = post(server, sale, &format!("/queues/{queue}/fetch"), body);
    answer.json()["task"].clone()
}

/// The hour that the server's wall clock shows, as its answers tell it.
fn wall(server: &Server, sale: &Sale) -> String {
    let id = enqueue(server, sale, json!({"name": "time", "queue": "unused"}));
    let at = task(server, sale, &id)["created_at"].clone();
    at.as_str().expect("a time")[..13].to_owned()
}

fn assert_leases_last(server: &Server, sale: &Sale, hand: &Hand, seconds: i64) {
    let what = format!("set by {seconds} s");
    let before = wall(server, sale);
    let new = |queue: &str| json!({"name": "x", "queue": queue});
    let kept = enqueue(server, sale, new("kept"));
    let silent = enqueue(server, sale, new("silent"));
    // Shorter than the jump: the longest run must not seem over, either.
    let mut body = new("short");
    body["timeout_seconds"] = 600.into();
    let short = enqueue(server, sale, body);
    let waiting = enqueue(server, sale, new("waiting"));
    until("it is known", || {
        let queues = Client::new(server.address)
            .get("/api/v1/queues", &sale.admin)
            .json();
        let queues = queues["items"].as_array().expect("a list").clone();
        queues
            .iter()
            .any(|queue| queue["name"] == "waiting" && queue["ready"] == 1)
    });
    for (queue, lease) in [("kept", 4), ("silent", 4), ("short", 4)] {
        assert_eq!(fetch(server, sale, queue, lease)["attempt"], 1, "{what}");
    }
    let watch = Stopwatch::start();
    hand.set(seconds);
    until("the clock was set", || wall(server, sale) != before);
    // What was available is given out, whatever the clock says of it.
    let run = fetch(server, sale, "waiting", 60);
    assert_eq!(run["id"], json!(waiting), "{what}");
    // Two workers say that they are alive, the third does not.
    while watch.elapsed() < Duration::from_secs(3) {
        for id in [&kept, &short] {
            let body = json!({"attempt": 1, "lease_seconds": 4});
            let beat = post(server, sale, &format!("/tasks/{id}/heartbeat"), body);
            assert_eq!(beat.status, 200, "{what}: {beat:?}");
        }
        assert_eq!(
            task(server, sale, &silent)["state"],
            "running",
            "{what}: not yet"
        );
    }
    until("the silent one's lease is over", || {
        assert!(
            watch.elapsed() < Duration::from_secs(20),
            "{what}: it lives too long"
        );
        for id in [&kept, &short] {
            let body = json!({"attempt": 1, "lease_seconds": 4});
            let beat = post(server, sale, &format!("/tasks/{id}/heartbeat"), body);
            assert_eq!(beat.status, 200, "{what}: {beat:?}");
        }
        task(server, sale, &silent)["state"] != "running"
    });
    assert!(
        watch.elapsed() > Duration::from_millis(3_900),
        "{what}: {:?}",
        watch.elapsed()
    );
    let taken_back = task(server, sale, &silent);
    assert_eq!(
        taken_back["attempts"][0]["outcome"], "crashed",
        "{what}: {taken_back}"
    );
    assert_eq!(fetch(server, sale, "silent", 60)["attempt"], 2, "{what}");
    for id in [&kept, &short] {
        let ack = post(
            server,
            sale,
            &format!("/tasks/{id}/ack"),
            json!({"attempt": 1}),
        );
        assert_eq!(ack.status, 204, "{what}: {ack:?}");
    }
}

#[test]
fn a_clock_that_is_set_by_an_hour_neither_ends_leases_nor_prolongs_them() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (launch, hand) = match launch(root.path()) {
        Ok(made) => made,
        Err(reason) => return skip(&reason),
    };
    let (sale, server) = Sale::make(launch, 10);
    assert_leases_last(&server, &sale, &hand, 3_600);
    assert_leases_last(&server, &sale, &hand, 0);
    assert_leases_last(&server, &sale, &hand, -3_600);
    // What was available when the process was killed is so after the start, though its time has not
    // come by a clock that was set back meanwhile.
    let id = enqueue(&server, &sale, json!({"name": "x", "queue": "left"}));
    server.kill().assert_killed();
    hand.set(-7_200);
    let server = sale.launch.start();
    assert_eq!(fetch(&server, &sale, "left", 60)["id"], json!(id));
    server.stop();
}

/// A sale that ends in half an hour, an order in it that is to be paid by then, and a task that waits as long.
#[test]
fn a_clock_that_is_wrong_for_a_moment_ends_nothing_and_one_that_stays_so_does() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (launch, hand) = match launch(root.path()) {
        Ok(made) => made,
        Err(reason) => return skip(&reason),
    };
    let launch = launch
        .set("ONRUSH_SHOP__CLOCK_HOLD_SECONDS", 600)
        .set("ONRUSH_FLASH_SALES__SWEEP_INTERVAL_MS", 50)
        .set("ONRUSH_ORDERS__EXPIRY_INTERVAL_MS", 50);
    let (mut sale, server) = Sale::make(launch, 10);
    let now = Clock::system().now();
    let product = json!({"name": "键盘", "unit_amount": 9900, "currency": "CNY", "stock": 50});
    let product = post(&server, &sale, "/products", product).json()["id"].clone();
    let soon = json!({"product_id": product, "quantity": 10, "unit_amount": 1,
        "starts_at": now.plus_seconds(-60), "ends_at": now.plus_seconds(1_800),
        "payment_window_seconds": 900});
    let soon = post(&server, &sale, "/flash-sales", soon).json()["id"].clone();
    let claimed = post(
        &server,
        &sale,
        &format!("/flash-sales/{soon}/claims"),
        json!({}),
    );
    assert_eq!(claimed.status, 201, "{claimed:?}");
    let order = claimed.json()["order_id"].clone();
    let later = json!({"name": "later", "queue": "l", "countdown_seconds": 1_800});
    let later = enqueue(&server, &sale, later);
    let states = |server: &Server, sale: &Sale| {
        let get = |path: String| Client::new(server.address).get(&path, &sale.admin).json();
        let state = |value: Value| value.as_str().unwrap_or_default().to_owned();
        [
            state(get(format!("/api/v1/flash-sales/{soon}"))["state"].clone()),
            state(get(format!("/api/v1/orders/{order}"))["state"].clone()),
            state(get(format!("/api/v1/tasks/{later}"))["state"].clone()),
        ]
    };
    let clock_check = |server: &Server| {
        let health = Client::new(server.address).get("/health", "").json();
        health["checks"]["clock"][0]["status"].clone()
    };
    let before = states(&server, &sale);
    assert_eq!(before[1..], ["pending_payment", "scheduled"], "{before:?}");
    for by in [3_600, -3_600] {
        let watch = Stopwatch::start();
        hand.set(by);
        until("it is told", || clock_check(&server) == "warn");
        until("three seconds have passed", || {
            assert_eq!(states(&server, &sale), before, "set by {by} s");
            watch.elapsed() > Duration::from_secs(3)
        });
        hand.set(0);
        until("it is back", || clock_check(&server) == "pass");
        assert_eq!(states(&server, &sale), before, "set by {by} s");
    }
    server.says("its jump was not followed");
    // What is claimed during that is claimed at the time that it is.
    server.stop();

    sale.launch = sale.launch.set("ONRUSH_SHOP__CLOCK_HOLD_SECONDS", 2);
    let server = sale.launch.start();
    let watch = Stopwatch::start();
    hand.set(3_600);
    until("the sale is over", || {
        states(&server, &sale)[0] != before[0]
    });
    until("the order has expired", || {
        states(&server, &sale)[1] == "expired"
    });
    assert_eq!(fetch(&server, &sale, "l", 60)["id"], json!(later));
    assert!(
        watch.elapsed() > Duration::from_millis(1_900),
        "not before it has stood"
    );
    server.says("it is followed from now on");
    assert_eq!(clock_check(&server), "pass");
    server.stop();
}

#[test]
fn what_is_to_be_at_a_time_happens_when_the_clock_says_so_and_no_fire_twice() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (launch, hand) = match launch(root.path()) {
        Ok(made) => made,
        Err(reason) => return skip(&reason),
    };
    let (sale, server) = Sale::make(launch, 10);
    let schedule = json!({"name": "each_second", "cron": "* * * * * *", "task": "tick", "queue": "s",
        "overlap": "allow", "missed": "skip"});
    let made = post(&server, &sale, "/schedules", schedule);
    assert_eq!(made.status, 201, "{made:?}");
    let ticks = || {
        let path = "/api/v1/tasks?name=tick&limit=200";
        let page = Client::new(server.address).get(path, &sale.admin).json();
        page["items"].as_array().expect("a list").clone()
    };
    until("it fires", || ticks().len() >= 7);
    // Back by less than it has been firing for: those seconds had their fires.
    hand.set(-6);
    let (fired, watch) = (ticks().len(), Stopwatch::start());
    until("three seconds have passed", || {
        watch.elapsed() > Duration::from_secs(3)
    });
    let more = ticks().len() - fired;
    assert!(more <= 1, "{more} fires for seconds that had theirs");
    let later = json!({"name": "later", "queue": "l", "countdown_seconds": 1_800});
    let later = enqueue(&server, &sale, later);
    let much_later = json!({"name": "later", "queue": "l", "countdown_seconds": 7_200});
    let much_later = enqueue(&server, &sale, much_later);
    assert_eq!(task(&server, &sale, &later)["state"], "scheduled");

    // Back by an hour in which it never fired: it goes on there, and what waits still does.
    hand.set(-3_600);
    let before = wall(&server, &sale);
    let fired = ticks().len();
    until("it goes on", || ticks().len() > fired);
    assert_eq!(task(&server, &sale, &later)["state"], "scheduled");

    // Forward, an hour beyond the true time: what was due within it is.
    hand.set(3_600);
    until("the clock was set", || wall(&server, &sale) != before);
    let run = fetch(&server, &sale, "l", 60);
    assert_eq!(run["id"], json!(later));
    assert_eq!(task(&server, &sale, &much_later)["state"], "scheduled");
    let fired = ticks().len();
    until("it fires again", || ticks().len() >= fired + 2);
    let all = ticks();
    let times: BTreeSet<&str> = all
        .iter()
        .map(|task| task["metadata"]["fire_at"].as_str().expect("a time"))
        .collect();
    assert_eq!(times.len(), all.len(), "no fire has two tasks");
    assert!(
        all.len() < 60,
        "an hour of fires was not made up for: {}",
        all.len()
    );
    server.stop();
}
