//! SIGKILL at each step of a fire.
//!
//! Must hold: a fire's row, its task and the schedule's next time are there together or not at all;
//! no fire has two tasks; what was missed meanwhile is made up for.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ask::Client;
use super::sale::Sale;
use super::server::{Launch, Server};
use super::{note, until};

/// A server that writes little besides.
fn launch(dir: &std::path::Path) -> Launch {
    Launch::new(dir)
        .set("ONRUSH_ORDERS__EXPIRY_INTERVAL_MS", 3_600_000)
        .set("ONRUSH_FLASH_SALES__SWEEP_INTERVAL_MS", 3_600_000)
        .set("ONRUSH_SCHEDULES__POLL_INTERVAL_MS", 20)
}

fn items(server: &Server, sale: &Sale, path: &str) -> Vec<Value> {
    let found = Client::new(server.address).get(path, &sale.admin).json();
    found["items"].as_array().expect("a list").clone()
}

/// Every run has its task, and every task its run; answers how many there are.
fn assert_whole(server: &Server, sale: &Sale) -> usize {
    let pause = Client::new(server.address).post(
        "/api/v1/schedules/every_second/pause",
        &sale.admin,
        &json!({}),
    );
    assert_eq!(pause.expect("an answer").status, 200);
    let runs = items(
        server,
        sale,
        "/api/v1/schedules/every_second/runs?limit=200",
    );
    let tasks = items(server, sale, "/api/v1/tasks?name=tick&limit=200");
    assert!(runs.len() < 200, "one page shows them all");
    let mut by_fire: BTreeMap<String, &Value> = BTreeMap::new();
    for task in &tasks {
        let fire_at = task["metadata"]["fire_at"].as_str().expect("a time");
        let before = by_fire.insert(fire_at.to_owned(), &task["id"]);
        assert_eq!(before, None, "two tasks for {fire_at}");
    }
    for run in &runs {
        let fire_at = run["fire_at"].as_str().expect("a time");
        assert_eq!(by_fire.get(fire_at), Some(&&run["task_id"]), "{run}");
    }
    assert_eq!(runs.len(), tasks.len());
    let resume = Client::new(server.address).post(
        "/api/v1/schedules/every_second/resume",
        &sale.admin,
        &json!({}),
    );
    assert_eq!(resume.expect("an answer").status, 200);
    runs.len()
}

#[test]
fn killed_at_every_step_of_a_fire_it_has_one_task_or_has_not_happened() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    let body = json!({"name": "every_second", "cron": "* * * * * *", "task": "tick", "queue": "q",
        "overlap": "allow", "missed": "all", "missed_max": 3});
    let made = Client::new(server.address).post("/api/v1/schedules", &sale.admin, &body);
    assert_eq!(made.expect("an answer").status, 201);
    server.kill().assert_killed();
    let (mut kills, mut fires) = (0, 0);
    for point in [
        "schedule.recorded",
        "task.enqueued",
        "schedule.enqueued",
        "writer.before_commit",
        "writer.after_commit",
    ] {
        for count in [1, 2] {
            let armed = launch(&dir).set("FAULT_KILL_AT", format!("{point}:{count}"));
            // It fires within a second, as soon as it serves or before.
            let ended = match armed.attempt() {
                Ok(server) => server.ended(),
                Err(ended) => ended,
            };
            ended.assert_killed();
            kills += 1;
            let server = launch(&dir).start();
            let before = fires;
            until("it fires again", || {
                items(&server, &sale, "/api/v1/tasks?name=tick&limit=200").len() > before
            });
            fires = assert_whole(&server, &sale);
            server.kill().assert_killed();
        }
    }
    let server = launch(&dir).start();
    fires = assert_whole(&server, &sale);
    server.stop();
    note(&format!(
        "{kills} kills, {fires} fires, each with its one task"
    ));
}
