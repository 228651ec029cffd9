//! SIGKILL at each step of a task's life, of a batch of runs and of a hand-over to a worker that waits, and a
//! damaged or missing `queue/`.
//!
//! Must hold: every order that was answered is processed within five seconds of the next start, by
//! one task; what a worker had is given out again, or kept, never lost; the folder is made anew
//! whatever was done to it.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use onrush::clock::Stopwatch;
use serde_json::{Value, json};

use super::ask::Client;
use super::sale::Sale;
use super::server::{Launch, Server};
use super::{note, until};

/// A server that processes orders, which are paid as soon as they are placed.
fn launch(dir: &std::path::Path) -> Launch {
    Launch::new(dir)
        .set("ONRUSH_ORDERS__PROCESS", true)
        .set("ONRUSH_ORDERS__PAYMENT_WINDOW_SECONDS", 0)
        // Whatever else writes would take the counts that are meant for tasks.
        .set("ONRUSH_ORDERS__EXPIRY_INTERVAL_MS", 3_600_000)
        .set("ONRUSH_FLASH_SALES__SWEEP_INTERVAL_MS", 3_600_000)
}

/// Places an order under its key; `None` when the server went away.
fn order(client: &mut Client, sale: &Sale, key: &str) -> Option<i64> {
    let body = json!({"items": [{"product_id": sale.product, "quantity": 1}]}).to_string();
    let answer = client.ask("POST", "/api/v1/orders", &sale.admin, Some(key), &body)?;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["id"].as_i64()
}

fn items(server: &Server, sale: &Sale, path: &str) -> Vec<Value> {
    Client::new(server.address).get_all(path, &sale.admin)
}

/// Waits until every order is processed; answers how long that took.
fn assert_all_processed(server: &Server, sale: &Sale, orders: usize) -> Duration {
    let watch = Stopwatch::start();
    until("all orders are processed", || {
        let all = items(server, sale, "/api/v1/orders?limit=200");
        assert_eq!(all.len(), orders, "orders that were answered");
        if watch.elapsed() > Duration::from_secs(20) {
            let tasks = items(server, sale, "/api/v1/tasks?limit=200");
            let left: Vec<_> = tasks
                .iter()
                .filter(|task| task["state"] != "completed")
                .collect();
            panic!("{left:?}");
        }
        all.iter().all(|order| order["state"] == "processed")
    });
    let took = watch.elapsed();
    until("all tasks are completed", || {
        let tasks = items(server, sale, "/api/v1/tasks?limit=200");
        assert_eq!(tasks.len(), orders, "one task for each order");
        tasks.iter().all(|task| task["state"] == "completed")
    });
    took
}

/// Places orders while nobody processes them. The next process takes them up as tasks of one before:
/// started first, and then done, where what it enqueues itself is done at once.
fn orders_left(dir: &std::path::Path, sale: &Sale, mark: &str, count: usize) {
    let server = launch(dir).set("ONRUSH_TASKS__WORKERS", 0).start();
    let mut client = Client::new(server.address);
    for number in 0..count {
        let key = format!("{mark}:left:{number}");
        assert!(order(&mut client, sale, &key).is_some());
    }
    server.kill().assert_killed();
}

#[test]
fn killed_at_every_step_of_a_task_each_order_is_processed_once_and_soon() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    server.kill().assert_killed();
    let (mut orders, mut longest) = (0, Duration::ZERO);
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
        for count in [1, 3] {
            orders_left(&dir, &sale, &format!("{point}:{count}"), 3);
            orders += 3;
            let armed = launch(&dir).set("FAULT_KILL_AT", format!("{point}:{count}"));
            // It may be hit by what is left from before, while the server starts.
            if let Ok(server) = armed.attempt() {
                let mut client = Client::new(server.address);
                for number in 0..50 {
                    let key = format!("{point}:{count}:{number}");
                    if order(&mut client, &sale, &key).is_some() {
                        orders += 1;
                        continue;
                    }
                    server.ended().assert_killed();
                    let server = launch(&dir).start();
                    // Whether it was placed or not, now it is, once.
                    let again = order(&mut Client::new(server.address), &sale, &key);
                    assert!(again.is_some());
                    orders += 1;
                    longest = longest.max(assert_all_processed(&server, &sale, orders));
                    server.kill().assert_killed();
                    break;
                }
            }
        }
    }
    // And while it takes back, at its start, what ran when it was killed.
    for number in 0..2 {
        let key = format!("task.recovered:{number}");
        orders_left(&dir, &sale, &key, 1);
        orders += 1;
        match launch(&dir).set("FAULT_KILL_AT", "task.run").attempt() {
            Ok(server) => server.ended(),
            Err(ended) => ended,
        }
        .assert_killed();
        let armed = launch(&dir).set("FAULT_KILL_AT", "task.recovered");
        match armed.attempt() {
            Ok(server) => server.ended(),
            Err(ended) => ended,
        }
        .assert_killed();
        let server = launch(&dir).start();
        let again = order(&mut Client::new(server.address), &sale, &key);
        assert!(again.is_some());
        orders += 1;
        longest = longest.max(assert_all_processed(&server, &sale, orders));
        server.kill().assert_killed();
    }
    let server = launch(&dir).start();
    longest = longest.max(assert_all_processed(&server, &sale, orders));
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    assert!(orders > 18, "{orders}");
    let crashed = items(&server, &sale, "/api/v1/tasks?limit=200")
        .iter()
        .filter(|task| task["crashes"] != 0)
        .count();
    assert!(crashed > 0, "some kill hit a running task");
    sale.launch.assert_ledger_holds();
    server.stop();
    note(&format!(
        "{orders} orders, {crashed} of their tasks ran when the process was killed; \
         longest until all were processed: {longest:?}"
    ));
}

fn enqueue(client: &mut Client, sale: &Sale, number: usize) -> String {
    let body = json!({"name": "x", "queue": "q", "args": number,
        "countdown_seconds": if number.is_multiple_of(3) { 1 } else { 0 }});
    let answer = client
        .post("/api/v1/tasks", &sale.admin, &body)
        .expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["id"].as_str().expect("an id").to_owned()
}

/// Works off the queue, as an outside worker; answers the ids.
fn work(server: &Server, sale: &Sale, count: usize, what: &str) -> Vec<String> {
    let mut client = Client::new(server.address);
    let mut done = Vec::new();
    while done.len() < count {
        let body = json!({"wait_seconds": 5});
        let path = "/api/v1/queues/q/fetch";
        let run = client
            .post(path, &sale.admin, &body)
            .unwrap_or_else(|| panic!("{what}: no answer after {}", done.len()))
            .json();
        let run = &run["task"];
        assert!(
            run.is_object(),
            "{what}: no task in time, after {}",
            done.len()
        );
        let id = run["id"].as_str().expect("an id").to_owned();
        let ack = json!({"attempt": run["attempt"], "result": 1});
        let path = format!("/api/v1/tasks/{id}/ack");
        let answer = client.post(&path, &sale.admin, &ack).expect("an answer");
        assert_eq!(answer.status, 204, "{answer:?}");
        done.push(id);
    }
    done.sort();
    done
}

/// Runs that workers were given, by task and attempt: no run may be given twice.
#[derive(Default)]
struct Given {
    runs: Mutex<HashSet<(String, u64)>>,
    /// Runs of which an answer to their end came.
    ended: AtomicUsize,
}

impl Given {
    fn note(&self, run: &Value) {
        let id = run["id"].as_str().expect("an id").to_owned();
        let attempt = run["attempt"].as_u64().expect("a number");
        let is_new = self.runs.lock().expect("whole").insert((id, attempt));
        assert!(is_new, "given twice: {run}");
    }
}

/// Works off the queue, many at a time, and tells of their ends in one request; until the server goes away or
/// nothing comes for `wait` seconds.
fn work_many(server: &Server, sale: &Sale, given: &Given, max: u32, wait: u32) {
    let mut client = Client::new(server.address);
    loop {
        let body = json!({"wait_seconds": wait, "lease_seconds": 2, "max": max});
        let path = "/api/v1/queues/q/fetch";
        let Some(answer) = client.post(path, &sale.admin, &body) else {
            return;
        };
        assert_eq!(answer.status, 200, "{answer:?}");
        let runs = answer.json()["tasks"].as_array().expect("a list").clone();
        if runs.is_empty() {
            return;
        }
        runs.iter().for_each(|run| given.note(run));
        let end = |run: &Value| json!({"task_id": run["id"], "attempt": run["attempt"], "outcome": "completed", "result": 1});
        let ends: Vec<Value> = runs.iter().map(end).collect();
        let body = json!({"runs": ends});
        let Some(answer) = client.post("/api/v1/tasks/runs/end", &sale.admin, &body) else {
            return;
        };
        let said = answer.json();
        for one in said["runs"].as_array().expect("a list") {
            // Late on a machine that is very busy: then another run of it was, or will be, given.
            assert!(one["status"] == 204 || one["code"] == "fenced", "{one}");
            given.ended.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Works off what is left: all tasks of the queue are there once, and done in the end.
fn assert_all_done(server: &Server, sale: &Sale, given: &Given, mut made: Vec<String>) {
    let mut all = Vec::new();
    until("all are done", || {
        work_many(server, sale, given, 256, 1);
        all = items(server, sale, "/api/v1/tasks?limit=200&queue=q");
        all.iter().all(|task| task["state"] == "completed")
    });
    let mut there: Vec<String> = all
        .iter()
        .map(|task| task["id"].as_str().expect("an id").to_owned())
        .collect();
    there.sort();
    made.sort();
    assert_eq!(there, made, "each is there once");
}

#[test]
fn killed_at_every_step_of_a_batch_of_runs_none_is_lost_and_none_is_given_twice() {
    const TASKS: usize = 8;
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    server.kill().assert_killed();
    let (mut made, given) = (Vec::new(), Given::default());
    for (point, counts) in [
        ("task.handed_out", &[1][..]),
        ("task.start", &[1]),
        ("task.started", &[1]),
        ("task.completed", &[1, 5]),
        ("task.told", &[1]),
        ("writer.before_commit", &[1, 2]),
        ("writer.after_commit", &[1, 2]),
    ] {
        for count in counts {
            let server = launch(&dir).start();
            let mut client = Client::new(server.address);
            for _ in 0..TASKS {
                made.push(enqueue(&mut client, &sale, 1));
            }
            server.kill().assert_killed();
            let armed = launch(&dir).set("FAULT_KILL_AT", format!("{point}:{count}"));
            match armed.attempt() {
                Ok(server) => {
                    work_many(&server, &sale, &given, 256, 3);
                    server.ended().assert_killed();
                }
                Err(ended) => ended.assert_killed(),
            }
            let server = launch(&dir).start();
            assert_all_done(&server, &sale, &given, made.clone());
            server.kill().assert_killed();
        }
    }
}

/// Enqueues under a key; `None` when the server went away.
fn enqueue_once(client: &mut Client, sale: &Sale, key: &str) -> Option<String> {
    let body = json!({"name": "x", "queue": "q"}).to_string();
    let answer = client.ask("POST", "/api/v1/tasks", &sale.admin, Some(key), &body)?;
    assert_eq!(answer.status, 202, "{answer:?}");
    Some(answer.json()["id"].as_str().expect("an id").to_owned())
}

#[test]
fn killed_at_every_step_of_a_hand_over_no_task_is_lost_and_none_is_given_twice() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    server.kill().assert_killed();
    let (mut made, given) = (Vec::new(), Given::default());
    for point in [
        "task.reserved",
        "task.enqueued",
        "writer.before_commit",
        "writer.after_commit",
        "task.handed_over",
    ] {
        for count in [1, 3] {
            let armed = launch(&dir).set("FAULT_KILL_AT", format!("{point}:{count}"));
            let unanswered = match armed.attempt() {
                Ok(server) => {
                    let unanswered = std::thread::scope(|scope| {
                        scope.spawn(|| work_many(&server, &sale, &given, 1, 10));
                        let mut client = Client::new(server.address);
                        let mut unanswered = None;
                        for number in 0..100 {
                            // Only a worker that has nothing to do waits.
                            std::thread::park_timeout(Duration::from_millis(20));
                            let ended = given.ended.load(Ordering::Acquire);
                            let key = format!("{point}:{count}:{number}");
                            match enqueue_once(&mut client, &sale, &key) {
                                Some(id) => {
                                    made.push(id);
                                    let watch = Stopwatch::start();
                                    while given.ended.load(Ordering::Acquire) == ended
                                        && watch.elapsed() < Duration::from_secs(2)
                                    {
                                        std::thread::park_timeout(Duration::from_millis(1));
                                    }
                                }
                                None => {
                                    unanswered = Some(key);
                                    break;
                                }
                            }
                        }
                        assert!(unanswered.is_some(), "{point} was not reached");
                        unanswered
                    });
                    server.ended().assert_killed();
                    unanswered
                }
                Err(ended) => {
                    ended.assert_killed();
                    None
                }
            };
            let server = launch(&dir).start();
            if let Some(key) = unanswered {
                let again = enqueue_once(&mut Client::new(server.address), &sale, &key);
                made.push(again.expect("an answer"));
            }
            assert_all_done(&server, &sale, &given, made.clone());
            server.kill().assert_killed();
        }
    }
}

/// What is done to the folder, and how.
type Damage<'a> = (&'static str, Box<dyn Fn() + 'a>);

#[test]
fn whatever_is_done_to_the_queue_folder_every_task_is_given_out_once() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    // A small memory, so that most of it is in the folder.
    let small = || launch(&dir).set("ONRUSH_TASKS__INDEX_MEMORY_MAX", 100);
    let (sale, mut server) = Sale::make(small(), 10);
    let queue = dir.join("queue");
    let file = || {
        let inside = std::fs::read_dir(&queue).expect("a folder");
        let inside = inside.flatten().next().expect("one inside").path();
        inside.join("db")
    };
    let damages: [Damage<'_>; 5] = [
        ("nothing", Box::new(|| ())),
        (
            "deleted",
            Box::new(|| std::fs::remove_dir_all(&queue).expect("deleted")),
        ),
        (
            "truncated",
            Box::new(|| {
                let bytes = std::fs::read(file()).expect("a file");
                std::fs::write(file(), &bytes[..bytes.len() / 3]).expect("written");
            }),
        ),
        (
            "flipped",
            Box::new(|| {
                let mut bytes = std::fs::read(file()).expect("a file");
                let step = bytes.len() / 97 + 1;
                bytes
                    .iter_mut()
                    .step_by(step)
                    .for_each(|byte| *byte ^= 0x55);
                std::fs::write(file(), bytes).expect("written");
            }),
        ),
        (
            "a file in its place",
            Box::new(|| {
                // Gone already, if the server before had no folder to work with.
                let _gone = std::fs::remove_dir_all(&queue);
                std::fs::write(&queue, "no folder").expect("written");
            }),
        ),
    ];
    for (what, damage) in damages {
        for is_orderly in [true, false] {
            let mut client = Client::new(server.address);
            let mut made: Vec<String> = (0..400)
                .map(|number| enqueue(&mut client, &sale, number))
                .collect();
            made.sort();
            drop(client);
            if is_orderly {
                server.stop();
            } else {
                server.kill().assert_killed();
            }
            damage();
            server = small().start();
            assert_eq!(work(&server, &sale, made.len(), what), made, "{what}");
            if queue.is_file() {
                // It went on in memory alone.
                std::fs::remove_file(&queue).expect("removed");
            }
        }
    }
    server.stop();
}
