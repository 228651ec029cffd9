//! SIGKILL between what happens and the telling of it.
//!
//! Must hold: every order that was answered is told to the endpoint that wants it, within seconds of
//! the next start, under one id however often it is told; its mail is written.

use std::collections::BTreeSet;
use std::time::Duration;

use onrush::clock::Stopwatch;
use serde_json::{Value, json};

use super::ask::Client;
use super::sale::Sale;
use super::server::{Launch, Server};
use super::{note, until};
use crate::support::receiver::{Reaction, Receiver};

fn launch(dir: &std::path::Path) -> Launch {
    Launch::new(dir)
        .set("ONRUSH_OUTGOING__ALLOW_INTERNAL", "127.0.0.0/8")
        .set("ONRUSH_MAIL__ORDERS", "always")
        // Whatever else writes would take the counts that are meant for deliveries.
        .set("ONRUSH_ORDERS__EXPIRY_INTERVAL_MS", 3_600_000)
        .set("ONRUSH_FLASH_SALES__SWEEP_INTERVAL_MS", 3_600_000)
}

fn order(client: &mut Client, sale: &Sale, key: &str) -> Option<i64> {
    let body = json!({"items": [{"product_id": sale.product, "quantity": 1}]}).to_string();
    let answer = client.ask("POST", "/api/v1/orders", &sale.admin, Some(key), &body)?;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["id"].as_i64()
}

#[test]
fn killed_between_an_order_and_its_delivery_everything_is_still_told() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let receiver = Receiver::open(&[Reaction::Status(200)]);
    let (sale, server) = Sale::make(launch(&dir), 10);
    let endpoint = json!({"url": receiver.url(), "events": ["order.created"]});
    let made = Client::new(server.address).post("/api/v1/webhooks", &sale.admin, &endpoint);
    assert_eq!(made.expect("an answer").status, 201);
    server.kill().assert_killed();
    let (mut orders, mut longest) = (BTreeSet::new(), Duration::ZERO);
    for point in [
        "webhook.enqueued",
        "task.start",
        "task.run",
        "task.completed",
        "writer.before_commit",
        "writer.after_commit",
    ] {
        let armed = launch(&dir).set("FAULT_KILL_AT", format!("{point}:2"));
        if let Ok(server) = armed.attempt() {
            let mut client = Client::new(server.address);
            let mut cut = None;
            for number in 0..50 {
                let key = format!("{point}:{number}");
                match order(&mut client, &sale, &key) {
                    Some(id) => {
                        orders.insert(id);
                    }
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
                let again = order(&mut Client::new(server.address), &sale, &key);
                orders.insert(again.expect("placed now, or before"));
            }
            until("every order is told", || told(&receiver).0 == orders);
            longest = longest.max(watch.elapsed());
            until("every mail is written", || {
                let is_late = watch.elapsed() > Duration::from_secs(40);
                assert!(!is_late, "{}", unfinished(&server, &sale));
                mails(&dir) == orders.len()
            });
            server.kill().assert_killed();
        }
    }
    let (told, ids) = told(&receiver);
    assert_eq!(told, orders);
    assert_eq!(
        ids,
        orders.len(),
        "an order has one event, however often it is told"
    );
    assert!(longest < Duration::from_secs(10), "{longest:?}");
    note(&format!(
        "{} orders, told {} times, at the latest {longest:?} after a start",
        orders.len(),
        receiver.count()
    ));
}

/// The orders that the receiver knows of, and how many events those were.
fn told(receiver: &Receiver) -> (BTreeSet<i64>, usize) {
    let received = receiver.received();
    let orders = received.iter().filter_map(|request| {
        let body: Value = serde_json::from_str(&request.body).expect("JSON");
        body["data"]["order_id"].as_i64()
    });
    let ids: BTreeSet<_> = received
        .iter()
        .filter_map(|request| request.header("webhook-id"))
        .collect();
    (orders.collect(), ids.len())
}

/// Mails in `outbox/`.
fn mails(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir.join("outbox")).map_or(0, |folder| {
        let paths = folder.flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "eml"))
            .count()
    })
}

/// Tasks that are not completed, for whoever reads why a test failed.
fn unfinished(server: &Server, sale: &Sale) -> String {
    let path = "/api/v1/tasks?limit=200";
    let page = Client::new(server.address).get(path, &sale.admin).json();
    let tasks = page["items"].as_array().cloned().unwrap_or_default();
    let left: Vec<Value> = tasks
        .into_iter()
        .filter(|task| task["state"] != "completed")
        .collect();
    json!(left).to_string()
}
