//! Tasks that were given up and are retried by hand: their key, their batch, what waited for them; and
//! what is left of tasks that were cancelled, and of batches that were never committed.

use std::time::Duration;

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::{Shop, text};

struct Place {
    shop: Shop,
    admin: String,
}

impl Place {
    fn open() -> Self {
        let shop = Shop::open_with(|settings| {
            settings.auth.staff_session_idle_seconds = 31_536_000;
            settings.auth.staff_session_seconds = 31_536_000;
            // Nearly everything that waits is on disk.
            settings.tasks.index_memory_max = 10;
        });
        let admin = shop.token(Role::Admin);
        Self { shop, admin }
    }

    fn post(&self, path: &str, body: &Value) -> crate::support::Answer {
        let path = format!("/api/v1{path}");
        self.shop.post(&path).token(&self.admin).json(body).send()
    }

    fn get(&self, path: &str) -> Value {
        let path = format!("/api/v1{path}");
        self.shop.get(&path).token(&self.admin).send().expect(200)
    }

    fn enqueue(&self, body: &Value) -> String {
        text(&self.post("/tasks", body).expect(202)["id"])
    }

    fn many(&self, body: &Value) -> Vec<String> {
        let made = self.post("/tasks/batch", body).expect(202);
        let tasks = made["tasks"].as_array().expect("a list");
        tasks.iter().map(|task| text(&task["id"])).collect()
    }

    fn states(&self, ids: &[String]) -> Vec<String> {
        ids.iter()
            .map(|id| text(&self.get(&format!("/tasks/{id}"))["state"]))
            .collect()
    }

    /// Fetches the task of this name and ends its run.
    fn run(&self, queue: &str, name: &str, succeeds: bool) {
        let path = format!("/queues/{queue}/fetch");
        let run = self.post(&path, &json!({"wait_seconds": 10})).expect(200)["task"].clone();
        assert_eq!(run["name"], name, "{run}");
        let (what, body) = match succeeds {
            true => ("ack", json!({"attempt": run["attempt"]})),
            false => (
                "fail",
                json!({"attempt": run["attempt"], "error": "no", "retry": false}),
            ),
        };
        let path = format!("/tasks/{}/{what}", text(&run["id"]));
        assert_eq!(self.post(&path, &body).outcome(), "204");
    }

    fn retry(&self, id: &str) -> crate::support::Answer {
        self.post(&format!("/tasks/{id}/retry"), &json!({}))
    }

    fn nothing_waits(&self, queue: &str) {
        let path = format!("/queues/{queue}/fetch");
        assert_eq!(
            self.post(&path, &json!({})).expect(200)["task"],
            Value::Null
        );
    }
}

#[test]
pub fn a_retried_task_takes_its_key_again_or_is_told_who_has_it() {
    let place = Place::open();
    for until in ["finished", "started"] {
        let body = json!({"name": "x", "queue": "q", "unique_key": until, "unique_until": until});
        let again = || {
            let answer = place.post("/tasks", &body).expect(202);
            (text(&answer["outcome"]), text(&answer["id"]))
        };
        let first = place.enqueue(&body);
        place.run("q", "x", false);
        let (outcome, second) = again();
        assert_eq!(outcome, "enqueued", "a dead task holds no key");
        let refused = place.retry(&first);
        assert_eq!(refused.outcome(), "409 task_key_held");
        assert!(refused.body.contains(&second), "{refused:?}");
        assert_eq!(
            place.states(std::slice::from_ref(&first)),
            ["discarded"],
            "untouched"
        );
        let bulk = place.post(
            "/tasks/bulk",
            &json!({"action": "retry", "state": "discarded", "queue": "q"}),
        );
        assert_eq!(bulk.expect(200)["changed"], 0);
        place.run("q", "x", true);
        // Now it is free.
        place.retry(&first).expect(200);
        assert_eq!(again(), ("duplicate".to_owned(), first.clone()));
        let run = place
            .post("/queues/q/fetch", &json!({"wait_seconds": 10}))
            .expect(200);
        assert_eq!(run["task"]["id"], json!(first));
        let (outcome, third) = again();
        match until {
            "finished" => assert_eq!((outcome.as_str(), &third), ("duplicate", &first)),
            _ => assert_eq!(outcome, "enqueued", "its key ended with its start"),
        }
        let ack = json!({"attempt": 2});
        let ack = place.post(&format!("/tasks/{first}/ack"), &ack);
        assert_eq!(ack.outcome(), "204");
        if until == "started" {
            assert_eq!(again(), ("duplicate".to_owned(), third), "it was not freed");
            place.run("q", "x", true);
        }
        assert_eq!(again().0, "enqueued");
        place.run("q", "x", true);
    }
    // A key that its time alone ends is not taken anew when that is over.
    let body = json!({"name": "x", "queue": "q", "unique_key": "t", "unique_until": "expired",
        "unique_seconds": 60});
    let first = place.enqueue(&body);
    place.run("q", "x", false);
    place.retry(&first).expect(200);
    place.run("q", "x", false);
    place.shop.clock.advance(Duration::from_secs(61));
    let second = place.enqueue(&body);
    assert_ne!(first, second);
    assert_eq!(place.retry(&first).outcome(), "409 task_key_held");
    place.shop.clock.advance(Duration::from_secs(61));
    place.retry(&first).expect(200);
    let third = place.enqueue(&body);
    assert_ne!(third, first);
}

#[test]
pub fn what_was_cancelled_because_of_a_task_waits_for_it_again() {
    let place = Place::open();
    let chain = place.many(&json!({"chain": true, "tasks": [
        {"name": "one", "queue": "c"}, {"name": "two", "queue": "c"},
        {"name": "three", "queue": "c", "unique_key": "three"}]}));
    place.run("c", "one", true);
    place.run("c", "two", false);
    assert_eq!(
        place.states(&chain),
        ["completed", "discarded", "cancelled"]
    );
    place.retry(&chain[1]).expect(200);
    assert_eq!(
        place.states(&chain),
        ["completed", "available", "scheduled"]
    );
    let duplicate = json!({"name": "three", "queue": "c", "unique_key": "three"});
    let duplicate = place.post("/tasks", &duplicate).expect(202);
    assert_eq!(duplicate["outcome"], "duplicate", "it has its key again");
    // Twice makes no difference.
    place.run("c", "two", false);
    assert_eq!(
        place.states(&chain),
        ["completed", "discarded", "cancelled"]
    );
    place.retry(&chain[1]).expect(200);
    place.run("c", "two", true);
    place.run("c", "three", true);
    assert_eq!(place.states(&chain), ["completed"; 3]);
    place.nothing_waits("c");

    // One that waited for two dead ones comes back with the second; one that was cancelled by hand
    // does not; one that was to run in any case did.
    let graph = place.many(&json!({"tasks": [
        {"name": "left", "queue": "g"}, {"name": "right", "queue": "g", "priority": 50}]}));
    let both = place.enqueue(&json!({"name": "both", "queue": "g", "after": graph}));
    let last = place.enqueue(&json!({"name": "last", "queue": "g", "after": [both]}));
    let by_hand = place.enqueue(&json!({"name": "by hand", "queue": "g", "after": graph}));
    let anyway = place
        .enqueue(&json!({"name": "anyway", "queue": "g", "after": graph, "after_failure": true}));
    place
        .post(&format!("/tasks/{by_hand}/cancel"), &json!({}))
        .expect(200);
    place.run("g", "left", false);
    place.run("g", "right", false);
    place.run("g", "anyway", true);
    let rest = [both.clone(), last.clone(), by_hand.clone(), anyway];
    assert_eq!(
        place.states(&rest),
        ["cancelled", "cancelled", "cancelled", "completed"]
    );
    place.retry(&graph[0]).expect(200);
    assert_eq!(place.states(&rest[..1]), ["cancelled"], "the other is dead");
    place.run("g", "left", true);
    assert_eq!(place.states(&rest[..1]), ["cancelled"]);
    place.retry(&graph[1]).expect(200);
    assert_eq!(
        place.states(&rest),
        ["scheduled", "scheduled", "cancelled", "completed"]
    );
    assert_eq!(place.get(&format!("/tasks/{both}"))["waiting_on"], 1);
    place.run("g", "right", true);
    place.run("g", "both", true);
    place.run("g", "last", true);
    assert_eq!(
        place.states(&rest),
        ["completed", "completed", "cancelled", "completed"]
    );
    place.nothing_waits("g");
}

#[test]
fn a_retried_task_counts_in_its_batch_again_also_once_that_was_complete() {
    let place = Place::open();
    let batch = |name: &str| {
        place.many(&json!({"batch": true, "tasks": [{"name": "a", "queue": name}, {"name": "b", "queue": name}],
            "on_success": {"name": "all", "queue": format!("{name}-after")},
            "on_complete": {"name": "done", "queue": format!("{name}-after")}}))
    };
    let open = batch("open");
    place.run("open", "a", false);
    // It is due later than the other from now on.
    place.shop.clock.advance(Duration::from_secs(1));
    place.retry(&open[0]).expect(200);
    place.run("open", "b", true);
    place.nothing_waits("open-after");
    place.run("open", "a", true);
    place.run("open-after", "all", true);
    place.run("open-after", "done", true);
    place.nothing_waits("open-after");

    // One that died, or was cancelled, when the batch is complete already.
    for how in ["died", "cancelled"] {
        let members = batch(how);
        let after = format!("{how}-after");
        match how {
            "died" => place.run(how, "a", false),
            _ => {
                let path = format!("/tasks/{}/cancel", members[0]);
                place.post(&path, &json!({})).expect(200);
            }
        }
        place.run(how, "b", true);
        place.run(&after, "done", true);
        let state = || place.get(&format!("/tasks/{}", members[0]))["batch"].clone();
        let counts = || {
            let state = state();
            (state["pending"].clone(), state["failed"].clone())
        };
        assert_eq!(counts(), (json!(0), json!(1)));
        assert!(state()["finished_at"].is_string());
        // It fails once more: nothing follows.
        place.retry(&members[0]).expect(200);
        assert_eq!(counts(), (json!(1), json!(0)));
        assert_eq!(state()["finished_at"], Value::Null, "it is tried again");
        place.run(how, "a", false);
        assert_eq!(counts(), (json!(0), json!(1)));
        place.nothing_waits(&after);
        // Now it succeeds: what was to follow the success does so, once, and nothing else does.
        place.retry(&members[0]).expect(200);
        place.run(how, "a", true);
        place.run(&after, "all", true);
        place.nothing_waits(&after);
        assert_eq!(counts(), (json!(0), json!(0)));
        assert!(state()["finished_at"].is_string());
    }

    // Both died: the first success is not enough.
    let both = batch("both");
    place.run("both", "a", false);
    place.run("both", "b", false);
    place.run("both-after", "done", true);
    for (id, name) in [(&both[1], "b"), (&both[0], "a")] {
        place.nothing_waits("both-after");
        place.retry(id).expect(200);
        place.run("both", name, true);
    }
    place.run("both-after", "all", true);
    place.nothing_waits("both-after");
}

#[test]
fn cancelled_tasks_leave_the_delivery_at_once() {
    let place = Place::open();
    let many = |countdown: u32| {
        let task = json!({"name": "x", "queue": "q", "countdown_seconds": countdown});
        place.many(&json!({"tasks": vec![task; 200]}))
    };
    many(0);
    many(2_592_000);
    let figures = || {
        let queues = place.get("/queues");
        let of = queues["items"].as_array().expect("a list").iter();
        let of = of.filter(|queue| queue["name"] == "q").cloned();
        of.map(|queue| queue["ready"].as_u64().expect("a number"))
            .sum::<u64>()
    };
    // The figures are published once a second.
    let scheduled = || {
        place.shop.clock.advance(Duration::from_secs(1));
        let metrics = place.shop.get("/metrics").token(&place.admin).send().body;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("queue_depth") && line.contains(r#"state="scheduled""#));
        line.and_then(|line| line.rsplit_once(' '))
            .map(|(_, count)| count.to_owned())
    };
    place.shop.wait_until("all are known", || {
        figures() == 200 && scheduled().as_deref() == Some("200")
    });
    let cancel = json!({"action": "cancel", "queue": "q"});
    assert_eq!(
        place.post("/tasks/bulk", &cancel).expect(200)["changed"],
        400
    );
    place
        .shop
        .wait_until("none is left in the index", || figures() == 0);
    place.shop.wait_until("none waits for its time", || {
        scheduled().as_deref() == Some("0")
    });
    // A rate that lets one through each hour is not spent on what was cancelled.
    let limit = json!({"rate_limit": 1, "rate_period_ms": 3_600_000});
    let path = "/api/v1/queues/q";
    place
        .shop
        .ask("PATCH", path)
        .token(&place.admin)
        .json(&limit)
        .send()
        .expect(200);
    place.enqueue(&json!({"name": "alive", "queue": "q"}));
    place.run("q", "alive", true);
    place.nothing_waits("q");
}
