//! Tasks, queues and workers over HTTP.

use std::time::Duration;

use onrush::auth::Role;
use onrush::config::MailRule;
use serde_json::{Value, json};

use crate::support::receiver::{Reaction, Receiver};
use crate::support::{Shop, text};

/// A shop with an admin.
fn open() -> (Shop, String) {
    let shop = Shop::open();
    let admin = shop.token(Role::Admin);
    (shop, admin)
}

fn enqueue(shop: &Shop, admin: &str, body: Value) -> String {
    let answer = shop.post("/api/v1/tasks").token(admin).json(&body).send();
    text(&answer.expect(202)["id"])
}

fn task(shop: &Shop, admin: &str, id: &str) -> Value {
    let answer = shop.get(&format!("/api/v1/tasks/{id}")).token(admin).send();
    answer.expect(200)
}

fn state(shop: &Shop, admin: &str, id: &str) -> String {
    text(&task(shop, admin, id)["state"])
}

/// Fetches from a queue; waits up to ten seconds for a task.
fn fetch(shop: &Shop, admin: &str, queue: &str) -> Value {
    fetch_for(shop, admin, queue, 10)
}

fn fetch_for(shop: &Shop, admin: &str, queue: &str, seconds: u32) -> Value {
    let answer = shop
        .post(&format!("/api/v1/queues/{queue}/fetch"))
        .token(admin)
        .json(&json!({"worker": "w", "wait_seconds": seconds, "lease_seconds": 30}))
        .send();
    answer.expect(200)["task"].clone()
}

fn say(shop: &Shop, admin: &str, run: &Value, what: &str, more: Value) -> String {
    let mut body = json!({"attempt": run["attempt"]});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    let path = format!("/api/v1/tasks/{}/{what}", text(&run["id"]));
    shop.post(&path).token(admin).json(&body).send().outcome()
}

#[test]
pub fn a_worker_fetches_beats_and_acknowledges_once() {
    let (shop, admin) = open();
    let body = json!({"name": "resize", "args": {"image": 7}, "queue": "images", "metadata": {"by": "me"}});
    let answer = shop.post("/api/v1/tasks").token(&admin).json(&body).send();
    let location = answer.header("location").expect("Location").to_owned();
    let id = text(&answer.expect(202)["id"]);
    assert_eq!(location, format!("/api/v1/tasks/{id}"));
    let run = fetch(&shop, &admin, "images");
    assert_eq!(
        (&run["id"], &run["attempt"], &run["args"]),
        (&json!(id), &json!(1), &json!({"image": 7}))
    );
    assert_eq!(state(&shop, &admin, &id), "running");
    assert_eq!(say(&shop, &admin, &run, "heartbeat", json!({})), "200");
    let more = json!({"percent": 50, "note": "half", "log": ["one", "two"]});
    assert_eq!(say(&shop, &admin, &run, "progress", more), "200");
    // Whoever lies about the attempt changes nothing.
    let lie = json!({"id": id, "attempt": 2});
    assert_eq!(say(&shop, &admin, &lie, "ack", json!({})), "409 fenced");
    let done = json!({"result": {"bytes": 12}});
    assert_eq!(say(&shop, &admin, &run, "ack", done.clone()), "204");
    assert_eq!(say(&shop, &admin, &run, "ack", done), "409 fenced");
    let late = json!({"error": "late"});
    assert_eq!(say(&shop, &admin, &run, "fail", late), "409 fenced");
    let seen = task(&shop, &admin, &id);
    assert_eq!(seen["state"], "completed");
    assert_eq!(seen["result"], json!({"bytes": 12}));
    assert_eq!(
        (&seen["progress"], &seen["metadata"]),
        (&json!(50), &json!({"by": "me"}))
    );
    assert_eq!(seen["logs"][0]["line"], "two");
    assert_eq!(seen["attempts"], json!([]));
    assert_eq!(fetch_for(&shop, &admin, "images", 0), Value::Null);
    // The result is kept for a time.
    shop.clock.advance(Duration::from_secs(86_400));
    let admin = shop.token(Role::Admin);
    assert_eq!(task(&shop, &admin, &id)["result"], Value::Null);
}

#[test]
fn failures_are_retried_after_a_while_and_die_at_last() {
    let (shop, admin) = open();
    let body = json!({"name": "x", "queue": "q", "max_attempts": 2,
        "retry_policy": {"kind": "fixed", "delay_ms": 60_000}});
    let id = enqueue(&shop, &admin, body);
    let run = fetch(&shop, &admin, "q");
    let failed = json!({"error": "no such image"});
    assert_eq!(say(&shop, &admin, &run, "fail", failed.clone()), "204");
    assert_eq!(state(&shop, &admin, &id), "retryable");
    assert_eq!(
        fetch_for(&shop, &admin, "q", 0),
        Value::Null,
        "not before its time"
    );
    shop.clock.advance(Duration::from_secs(60));
    let run = fetch(&shop, &admin, "q");
    assert_eq!(run["attempt"], 2);
    assert_eq!(say(&shop, &admin, &run, "fail", failed), "204");
    let dead = task(&shop, &admin, &id);
    assert_eq!(
        (&dead["state"], &dead["error"]),
        (&json!("discarded"), &json!("no such image"))
    );
    assert_eq!(dead["attempts"].as_array().expect("a list").len(), 2);
    let edit = shop
        .ask("PATCH", &format!("/api/v1/tasks/{id}"))
        .token(&admin);
    let edit = edit.json(&json!({"priority": 1})).send();
    assert_eq!(edit.outcome(), "409 task_state");
    assert!(edit.body.contains("can be retried"), "{edit:?}");
    // By hand it gets one more.
    let retried = shop
        .post(&format!("/api/v1/tasks/{id}/retry"))
        .token(&admin)
        .send();
    assert_eq!(retried.expect(200)["state"], "available");
    let run = fetch(&shop, &admin, "q");
    assert_eq!((&run["id"], &run["attempt"]), (&json!(id), &json!(3)));
    let last = json!({"error": "never", "retry": false});
    assert_eq!(say(&shop, &admin, &run, "fail", last), "204");
    assert_eq!(state(&shop, &admin, &id), "discarded");
    let gone = shop
        .ask("DELETE", &format!("/api/v1/tasks/{id}"))
        .token(&admin)
        .send();
    assert_eq!(gone.outcome(), "204");
    let gone = shop
        .get(&format!("/api/v1/tasks/{id}"))
        .token(&admin)
        .send();
    assert_eq!(gone.outcome(), "404 task_not_found");
}

#[test]
fn a_lease_that_runs_out_frees_the_task_and_poison_is_set_aside() {
    let (shop, admin) = open();
    let id = enqueue(&shop, &admin, json!({"name": "poison", "queue": "q"}));
    for attempt in 1..=3 {
        let run = fetch(&shop, &admin, "q");
        assert_eq!(run["attempt"], attempt);
        assert_eq!(
            say(
                &shop,
                &admin,
                &run,
                "heartbeat",
                json!({"lease_seconds": 60})
            ),
            "200"
        );
        shop.clock.advance(Duration::from_secs(59));
        assert_eq!(state(&shop, &admin, &id), "running");
        shop.clock.advance(Duration::from_secs(2));
        shop.wait_until("the lease is taken back", || {
            state(&shop, &admin, &id) != "running"
        });
        assert_eq!(say(&shop, &admin, &run, "ack", json!({})), "409 fenced");
    }
    let dead = task(&shop, &admin, &id);
    assert_eq!(
        (&dead["state"], &dead["crashes"]),
        (&json!("discarded"), &json!(3))
    );
    assert!(text(&dead["error"]).contains("set aside after 3"), "{dead}");
}

#[test]
fn heartbeats_carry_no_run_beyond_its_time_out() {
    let (shop, admin) = open();
    let body = json!({"name": "slow", "queue": "q", "timeout_seconds": 60, "max_attempts": 2,
        "retry_policy": {"kind": "fixed", "delay_ms": 1_000}});
    let id = enqueue(&shop, &admin, body);
    for attempt in 1..=2 {
        let run = fetch(&shop, &admin, "q");
        assert_eq!(run["attempt"], attempt);
        let begun = shop.clock.now();
        assert_eq!(run["lease_expires_at"], json!(begun.plus_seconds(30)));
        let path = format!("/api/v1/tasks/{id}/heartbeat");
        let beat = |lease: u32| {
            let body = json!({"attempt": attempt, "lease_seconds": lease});
            let beat = shop.post(&path).token(&admin).json(&body).send();
            beat.expect(200)["lease_expires_at"].clone()
        };
        // It beats as a worker should, and once asks for more than there is.
        for (lease, ends) in [(30, 45), (30, 60), (3_600, 60), (30, 60)] {
            let steps = [15, 15, 15, 14];
            let passed = shop.clock.now().micros_since(begun) / 1_000_000;
            let step = steps[usize::try_from(passed / 15).expect("few")];
            shop.clock.advance(Duration::from_secs(step));
            assert_eq!(beat(lease), json!(begun.plus_seconds(ends)));
        }
        assert_eq!(state(&shop, &admin, &id), "running", "a second is left");
        shop.clock.advance(Duration::from_secs(1));
        shop.wait_until("it is taken back", || {
            state(&shop, &admin, &id) != "running"
        });
        let seen = task(&shop, &admin, &id);
        let expected = if attempt == 1 {
            "retryable"
        } else {
            "discarded"
        };
        assert_eq!(seen["state"], expected);
        assert_eq!(seen["attempts"][0]["outcome"], "timed_out", "{seen}");
        for (what, more) in [
            ("heartbeat", json!({})),
            ("progress", json!({"percent": 99})),
            ("fail", json!({"error": "late"})),
            ("ack", json!({})),
        ] {
            let said = say(&shop, &admin, &run, what, more);
            assert_eq!(said, "409 fenced", "{what}");
        }
        shop.clock.advance(Duration::from_secs(1));
    }
    // A lease that is longer than the longest run ends with it.
    let body = json!({"name": "short", "queue": "q", "timeout_seconds": 10});
    enqueue(&shop, &admin, body);
    let run = fetch(&shop, &admin, "q");
    let ends = shop.clock.now().plus_seconds(10);
    assert_eq!(run["lease_expires_at"], json!(ends));
}

#[test]
fn whatever_another_attempt_says_changes_nothing() {
    let (shop, admin) = open();
    let id = enqueue(&shop, &admin, json!({"name": "x", "queue": "q"}));
    let first = fetch(&shop, &admin, "q");
    shop.clock.advance(Duration::from_secs(31));
    shop.wait_until("the lease is taken back", || {
        state(&shop, &admin, &id) == "available"
    });
    let second = fetch(&shop, &admin, "q");
    assert_eq!(
        (&first["attempt"], &second["attempt"]),
        (&json!(1), &json!(2))
    );
    let before = task(&shop, &admin, &id);
    shop.clock.advance(Duration::from_secs(10));
    // The worker that was too slow, one that never was, and one from the future.
    for attempt in [1, 0, 3, u32::MAX] {
        let other = json!({"id": id, "attempt": attempt});
        for (what, more) in [
            ("heartbeat", json!({})),
            (
                "progress",
                json!({"percent": 99, "note": "n", "log": ["line"]}),
            ),
            ("fail", json!({"error": "late"})),
            ("fail", json!({"error": "late", "retry": false})),
            ("fail", json!({"error": "late", "retry_after_seconds": 0})),
            ("ack", json!({"result": 1})),
        ] {
            let said = say(&shop, &admin, &other, what, more);
            assert_eq!(said, "409 fenced", "{what} of attempt {attempt}");
            let seen = task(&shop, &admin, &id);
            assert_eq!(seen, before, "{what} of attempt {attempt}");
        }
    }
    assert_eq!(say(&shop, &admin, &second, "heartbeat", json!({})), "200");
    let done = json!({"result": 2});
    assert_eq!(say(&shop, &admin, &second, "ack", done), "204");
    // Once it is done, nobody's word counts any more, its own neither.
    let before = task(&shop, &admin, &id);
    for attempt in [1, 2, 3] {
        let other = json!({"id": id, "attempt": attempt});
        for (what, more) in [
            ("heartbeat", json!({})),
            ("progress", json!({"percent": 99})),
            ("fail", json!({"error": "late"})),
            ("ack", json!({"result": 1})),
        ] {
            let said = say(&shop, &admin, &other, what, more);
            assert_eq!(said, "409 fenced", "{what} of attempt {attempt}");
        }
    }
    assert_eq!(task(&shop, &admin, &id), before);
}

#[test]
fn every_duration_from_outside_has_a_bound() {
    let (shop, admin) = open();
    let id = enqueue(&shop, &admin, json!({"name": "x", "queue": "q"}));
    let run = fetch(&shop, &admin, "q");
    let first = |method: &str, path: &str, body: &Value| {
        let path = format!("/api/v1{path}");
        let answer = shop.ask(method, &path).token(&admin).json(body).send();
        assert_eq!(answer.outcome(), "422 validation_failed", "{path} {body}");
        let error = answer.json()["errors"][0].clone();
        (text(&error["field"]), text(&error["reason"]))
    };
    // A year and a day, in seconds.
    const YEAR: u32 = 31_622_400;
    let task = |more: Value| {
        let mut body = json!({"name": "x", "queue": "q"});
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        body
    };
    let fail = |seconds: u32| json!({"attempt": run["attempt"], "error": "e", "retry_after_seconds": seconds});
    let schedule = |field: &str, seconds: u32| {
        let mut body = json!({"name": "s", "task": "x"});
        body["interval_seconds"] = json!(60);
        body[field] = json!(seconds);
        body
    };
    let running = format!("/tasks/{id}");
    let (fail_path, beat_path) = (format!("{running}/fail"), format!("{running}/heartbeat"));
    for (method, path, field, body, most) in [
        (
            "POST",
            fail_path.as_str(),
            "retry_after_seconds",
            fail(YEAR + 1),
            YEAR,
        ),
        (
            "POST",
            fail_path.as_str(),
            "retry_after_seconds",
            fail(u32::MAX),
            YEAR,
        ),
        (
            "POST",
            beat_path.as_str(),
            "lease_seconds",
            json!({"attempt": 1, "lease_seconds": 3_601}),
            3_600,
        ),
        (
            "POST",
            "/queues/q/fetch",
            "lease_seconds",
            json!({"lease_seconds": 3_601}),
            3_600,
        ),
        (
            "POST",
            "/queues/q/fetch",
            "wait_seconds",
            json!({"wait_seconds": u32::MAX}),
            20,
        ),
        (
            "POST",
            "/tasks",
            "eta",
            task(json!({"countdown_seconds": YEAR + 1})),
            YEAR,
        ),
        (
            "POST",
            "/tasks",
            "timeout_seconds",
            task(json!({"timeout_seconds": 86_401})),
            86_400,
        ),
        (
            "POST",
            "/tasks",
            "timeout_seconds",
            task(json!({"timeout_seconds": 0})),
            86_400,
        ),
        (
            "POST",
            "/tasks",
            "soft_timeout_seconds",
            task(json!({"timeout_seconds": 50, "soft_timeout_seconds": 51})),
            50,
        ),
        (
            "POST",
            "/tasks",
            "result_seconds",
            task(json!({"result_seconds": YEAR + 1})),
            YEAR,
        ),
        (
            "POST",
            "/tasks",
            "unique_seconds",
            task(json!({"unique_key": "k", "unique_seconds": YEAR + 1})),
            YEAR,
        ),
        (
            "PATCH",
            "/queues/q",
            "rate_period_ms",
            json!({"rate_limit": 1, "rate_period_ms": 2_592_000_001_u32}),
            2_592_000_000,
        ),
        (
            "POST",
            "/schedules",
            "interval_seconds",
            schedule("interval_seconds", YEAR + 1),
            YEAR,
        ),
        (
            "POST",
            "/schedules",
            "jitter_seconds",
            schedule("jitter_seconds", YEAR + 1),
            YEAR,
        ),
        (
            "POST",
            "/schedules",
            "timeout_seconds",
            schedule("timeout_seconds", 86_401),
            86_400,
        ),
    ] {
        let (at, reason) = first(method, path, &body);
        assert_eq!(at, field, "{path} {body}: {reason}");
        assert!(
            reason.contains(&most.to_string()),
            "{path} {body}: {reason}"
        );
    }
    let call = json!({"url": "https://example.com", "timeout_seconds": 111});
    let call = json!({"name": "http_request", "args": call});
    assert_eq!(first("POST", "/tasks", &call).0, "args.timeout_seconds");
    let policy = json!({"kind": "fixed", "delay_ms": 2_592_000_001_i64});
    let policy = task(json!({"retry_policy": policy}));
    assert_eq!(first("POST", "/tasks", &policy).0, "retry_policy");
    // What was refused did nothing; the longest wait is taken as it is.
    assert_eq!(state(&shop, &admin, &id), "running");
    let path = format!("/api/v1{fail_path}");
    let last = shop.post(&path).token(&admin).json(&fail(YEAR)).send();
    assert_eq!(last.outcome(), "204");
    let seen = self::task(&shop, &admin, &id);
    let due = shop.clock.now().plus_seconds(i64::from(YEAR));
    assert_eq!(
        (&seen["state"], &seen["run_at"]),
        (&json!("retryable"), &json!(due)),
        "{seen}"
    );
}

#[test]
fn order_is_by_priority_then_time_and_pause_and_limits_hold() {
    let (shop, admin) = open();
    let of = |name: &str, priority: u8| {
        enqueue(
            &shop,
            &admin,
            json!({"name": name, "queue": "q", "priority": priority}),
        )
    };
    of("low", 1);
    of("first", 100);
    of("second", 100);
    of("high", 200);
    let take = || text(&fetch(&shop, &admin, "q")["name"]);
    let limits = |body: Value| {
        let answer = shop
            .ask("PATCH", "/api/v1/queues/q")
            .token(&admin)
            .json(&body)
            .send();
        answer.expect(200)
    };
    shop.wait_until("all are ready", || limits(json!({}))["ready"] == 4);
    assert_eq!(take(), "high");
    limits(json!({"concurrency_max": 2}));
    assert_eq!(take(), "first");
    assert_eq!(fetch_for(&shop, &admin, "q", 0), Value::Null, "two run");
    limits(json!({"concurrency_max": 0}));
    shop.post("/api/v1/queues/q/pause")
        .token(&admin)
        .send()
        .expect(200);
    assert_eq!(
        fetch_for(&shop, &admin, "q", 0),
        Value::Null,
        "it is paused"
    );
    let view = shop
        .post("/api/v1/queues/q/resume")
        .token(&admin)
        .send()
        .expect(200);
    assert_eq!((&view["ready"], &view["running"]), (&json!(2), &json!(2)));
    limits(json!({"rate_limit": 1, "rate_period_ms": 60_000}));
    assert_eq!(take(), "second");
    assert_eq!(
        fetch_for(&shop, &admin, "q", 0),
        Value::Null,
        "one a minute"
    );
    shop.clock.advance(Duration::from_secs(60));
    assert_eq!(take(), "low");
}

#[test]
fn scheduled_tasks_wait_for_their_time_and_expire_after_it() {
    let (shop, admin) = open();
    let later = enqueue(
        &shop,
        &admin,
        json!({"name": "a", "queue": "q", "countdown_seconds": 60}),
    );
    assert_eq!(state(&shop, &admin, &later), "scheduled");
    let start = shop.clock.now();
    let soon = json!({"name": "b", "queue": "q", "expires_at": start.plus_seconds(30)});
    let short = enqueue(&shop, &admin, soon);
    shop.clock.advance(Duration::from_secs(60));
    assert_eq!(fetch(&shop, &admin, "q")["id"], json!(later));
    shop.wait_until("it expires", || state(&shop, &admin, &short) == "cancelled");
    assert_eq!(task(&shop, &admin, &short)["error"], "expired");
}

#[test]
pub fn unique_debounced_chained_and_counted_together() {
    let (shop, admin) = open();
    let post = |body: Value| {
        let answer = shop.post("/api/v1/tasks").token(&admin).json(&body).send();
        answer.expect(202)
    };
    let unique = json!({"name": "u", "queue": "u", "args": [1], "unique_args": true});
    let first = post(unique.clone());
    let second = post(unique.clone());
    assert_eq!(
        (&second["outcome"], &second["id"]),
        (&json!("duplicate"), &first["id"])
    );
    let run = fetch(&shop, &admin, "u");
    assert_eq!(
        post(unique.clone())["outcome"],
        "duplicate",
        "it is not finished"
    );
    assert_eq!(say(&shop, &admin, &run, "ack", json!({})), "204");
    assert_eq!(post(unique)["outcome"], "enqueued");

    let debounced = |value: u32| {
        post(
            json!({"name": "d", "queue": "d", "args": value, "countdown_seconds": 10, "debounce_key": "d"}),
        )
    };
    let first = debounced(1);
    shop.clock.advance(Duration::from_secs(8));
    assert_eq!(debounced(2)["id"], first["id"]);
    shop.clock.advance(Duration::from_secs(8));
    assert_eq!(
        fetch_for(&shop, &admin, "d", 0),
        Value::Null,
        "it was put off"
    );
    shop.clock.advance(Duration::from_secs(2));
    assert_eq!(fetch(&shop, &admin, "d")["args"], 2);
    assert_eq!(debounced(3)["outcome"], "enqueued", "the first has started");

    let many = |body: Value| {
        let answer = shop
            .post("/api/v1/tasks/batch")
            .token(&admin)
            .json(&body)
            .send();
        answer.expect(202)
    };
    let made = many(json!({"chain": true, "tasks": [
        {"name": "one", "queue": "c"}, {"name": "two", "queue": "c"}, {"name": "three", "queue": "c"}]}));
    let third = text(&made["tasks"][2]["id"]);
    let run = fetch(&shop, &admin, "c");
    assert_eq!(run["name"], "one");
    assert_eq!(fetch_for(&shop, &admin, "c", 0), Value::Null);
    let followers = |at: usize| {
        let id = text(&made["tasks"][at]["id"]);
        task(&shop, &admin, &id)["followers"].clone()
    };
    assert_eq!(
        (followers(0), followers(1), followers(2)),
        (
            json!([made["tasks"][1]["id"]]),
            json!([third]),
            Value::Array(Vec::new())
        )
    );
    assert_eq!(say(&shop, &admin, &run, "ack", json!({})), "204");
    assert_eq!(followers(0), json!([]), "nobody waits for it any more");
    let run = fetch(&shop, &admin, "c");
    assert_eq!(run["name"], "two");
    assert_eq!(
        say(
            &shop,
            &admin,
            &run,
            "fail",
            json!({"error": "x", "retry": false})
        ),
        "204"
    );
    assert_eq!(
        state(&shop, &admin, &third),
        "cancelled",
        "it waited for one that died"
    );

    let made = many(
        json!({"batch": true, "description": "two of b", "tasks": [{"name": "b1", "queue": "b"}, {"name": "b2", "queue": "b"}],
        "on_success": {"name": "all", "queue": "after"}, "on_complete": {"name": "done", "queue": "after"}}),
    );
    for (what, more) in [
        ("ack", json!({})),
        ("fail", json!({"error": "x", "retry": false})),
    ] {
        assert_eq!(fetch_for(&shop, &admin, "after", 0), Value::Null);
        let run = fetch(&shop, &admin, "b");
        assert_eq!(say(&shop, &admin, &run, what, more), "204");
    }
    let batch = task(&shop, &admin, &text(&made["tasks"][0]["id"]))["batch"].clone();
    assert_eq!(
        (&batch["id"], &batch["description"]),
        (&made["batch_id"], &json!("two of b"))
    );
    assert_eq!(
        (&batch["total"], &batch["pending"], &batch["failed"]),
        (&json!(2), &json!(0), &json!(1))
    );
    assert!(batch["finished_at"].is_string(), "{batch}");
    assert_eq!(fetch(&shop, &admin, "after")["name"], "done");
    assert_eq!(
        fetch_for(&shop, &admin, "after", 0),
        Value::Null,
        "not all were completed"
    );
}

#[test]
pub fn a_cancelled_task_never_starts_and_a_running_one_is_told() {
    let (shop, admin) = open();
    let waiting = enqueue(&shop, &admin, json!({"name": "w", "queue": "q"}));
    let cancel = |id: &str| {
        shop.post(&format!("/api/v1/tasks/{id}/cancel"))
            .token(&admin)
            .send()
    };
    assert_eq!(cancel(&waiting).expect(200)["state"], "cancelled");
    assert_eq!(cancel(&waiting).outcome(), "409 task_state");
    assert_eq!(fetch_for(&shop, &admin, "q", 0), Value::Null);
    let id = enqueue(&shop, &admin, json!({"name": "r", "queue": "q"}));
    let run = fetch(&shop, &admin, "q");
    assert_eq!(cancel(&id).expect(200)["state"], "running");
    let path = format!("/api/v1/tasks/{id}/heartbeat");
    let beat = shop
        .post(&path)
        .token(&admin)
        .json(&json!({"attempt": 1}))
        .send()
        .expect(200);
    assert_eq!(beat["cancel_requested"], true);
    assert_eq!(
        say(&shop, &admin, &run, "fail", json!({"error": "stopped"})),
        "204"
    );
    assert_eq!(state(&shop, &admin, &id), "cancelled");
}

#[test]
fn many_are_changed_by_filter_and_found_by_it() {
    let (shop, admin) = open();
    for at in 0..5 {
        enqueue(
            &shop,
            &admin,
            json!({"name": format!("n{}", at % 2), "queue": "q"}),
        );
    }
    let list = |query: &str| {
        let answer = shop
            .get(&format!("/api/v1/tasks?{query}"))
            .token(&admin)
            .send();
        answer.expect(200)["items"]
            .as_array()
            .expect("a list")
            .len()
    };
    assert_eq!(
        (list("queue=q"), list("name=n0"), list("state=available")),
        (5, 3, 5)
    );
    assert_eq!(
        (
            list("state=scheduled"),
            list("queue=other"),
            list("limit=2")
        ),
        (0, 0, 2)
    );
    let bulk = |body: Value| {
        let answer = shop
            .post("/api/v1/tasks/bulk")
            .token(&admin)
            .json(&body)
            .send();
        answer.expect(200)["changed"].clone()
    };
    assert_eq!(bulk(json!({"action": "cancel", "name": "n0"})), 3);
    assert_eq!(
        (list("state=cancelled"), list("state=available&name=n0")),
        (3, 0)
    );
    assert_eq!(bulk(json!({"action": "retry", "state": "cancelled"})), 3);
    assert_eq!(bulk(json!({"action": "cancel"})), 5);
    assert_eq!(bulk(json!({"action": "remove", "queue": "q"})), 5);
    assert_eq!(list(""), 0);
}

#[test]
fn tasks_are_counted_by_state_and_never_beyond_the_bound() {
    let shop = Shop::open_with(|settings| settings.tasks.counted_max = 3);
    let admin = shop.token(Role::Admin);
    let count = |state: &str| {
        let answer = shop.get("/api/v1/task-counts").token(&admin).send();
        let list = answer.expect(200)["items"].clone();
        let found = list
            .as_array()
            .expect("a list")
            .iter()
            .find(|one| one["state"] == state)
            .cloned()
            .expect("every state");
        (found["count"].clone(), found["is_more"] == true)
    };
    let post = |body: Value| enqueue(&shop, &admin, body);
    post(json!({"name": "first", "queue": "q"}));
    let run = fetch(&shop, &admin, "q");
    let dead = json!({"error": "x", "retry": false});
    assert_eq!(count("running"), (json!(1), false));
    assert_eq!(say(&shop, &admin, &run, "fail", dead), "204");
    assert_eq!(count("running"), (json!(0), false));
    assert_eq!(count("discarded"), (json!(1), false));
    post(json!({"name": "second", "queue": "q"}));
    let run = fetch(&shop, &admin, "q");
    assert_eq!(say(&shop, &admin, &run, "ack", json!({})), "204");
    assert_eq!(count("completed"), (json!(1), false));
    for _ in 0..4 {
        post(json!({"name": "later", "queue": "q", "countdown_seconds": 60}));
        post(json!({"name": "now", "queue": "q"}));
    }
    assert_eq!(count("scheduled"), (json!(3), true));
    assert_eq!(count("available"), (json!(3), true));
    assert_eq!(
        count("completed"),
        (json!(0), true),
        "it is not among the newest"
    );
    assert_eq!(
        shop.get("/api/v1/task-counts").send().outcome(),
        "401 unauthorized"
    );
}

#[test]
fn bad_input_is_refused_with_field_and_reason() {
    let (shop, admin) = open();
    let refused = |body: Value| {
        let answer = shop.post("/api/v1/tasks").token(&admin).json(&body).send();
        let errors = answer.json()["errors"].clone();
        (
            answer.outcome(),
            text(&errors[0]["field"]),
            text(&errors[0]["reason"]),
        )
    };
    let (code, field, reason) = refused(json!({"name": "proces_order", "queue": "orders"}));
    assert_eq!(
        (code.as_str(), field.as_str()),
        ("422 unknown_task", "name")
    );
    assert!(reason.contains("did you mean process_order?"), "{reason}");
    let order = |args: Value| refused(json!({"name": "process_order", "args": args}));
    let (code, field, reason) = order(json!({}));
    assert_eq!(
        (code.as_str(), field.as_str(), reason.as_str()),
        ("422 validation_failed", "args.order_id", "is required")
    );
    assert_eq!(order(json!({"order_id": 1, "x": 2})).1, "args.x");
    assert_eq!(order(json!({"order_id": "1"})).1, "args.order_id");
    for (more, expected) in [
        (json!({"queue": "a b"}), "queue"),
        (json!({"max_attempts": 0}), "max_attempts"),
        (json!({"eta": "9999-01-01T00:00:00Z"}), "eta"),
        (
            json!({"countdown_seconds": 1, "eta": "2030-01-01T00:00:00Z"}),
            "countdown_seconds",
        ),
        (json!({"expires_at": "2020-01-01T00:00:00Z"}), "expires_at"),
        (json!({"args": "x".repeat(70_000)}), "args"),
        (json!({"unique_key": ""}), "unique_key"),
        (
            json!({"unique_args": true, "unique_until": "never"}),
            "unique_until",
        ),
        (
            json!({"retry_policy": {"kind": "fixed"}}),
            "retry_policy.delay_ms",
        ),
        (
            json!({"retry_policy": {"kind": "fixed", "delay_ms": -1}}),
            "retry_policy",
        ),
        (
            json!({"after": ["018f0000-0000-7000-8000-000000000000"]}),
            "after",
        ),
    ] {
        let mut body = json!({"name": "x"});
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        let (code, field, _) = refused(body.clone());
        assert_eq!(
            (code.as_str(), field.as_str()),
            ("422 validation_failed", expected),
            "{body}"
        );
    }
    let built_in = shop
        .post("/api/v1/queues/orders/fetch")
        .token(&admin)
        .send();
    assert_eq!(built_in.outcome(), "422 validation_failed");
    for path in ["nonsense", "018f0000-0000-7000-8000-000000000000"] {
        let answer = shop
            .get(&format!("/api/v1/tasks/{path}"))
            .token(&admin)
            .send();
        assert_eq!(answer.outcome(), "404 task_not_found");
    }
    let types = shop
        .get("/api/v1/task-types")
        .token(&admin)
        .send()
        .expect(200);
    let types = types["items"].as_array().expect("a list");
    let named = |name: &str| types.iter().find(|kind| kind["name"] == name);
    let process = named("process_order").expect("it is built in");
    assert_eq!(process["args_schema"]["required"], json!(["order_id"]));
}

#[test]
fn the_same_key_is_the_same_task() {
    let (shop, admin) = open();
    let post = |name: &str| {
        let post = shop
            .post("/api/v1/tasks")
            .token(&admin)
            .header("Idempotency-Key", "k");
        post.json(&json!({"name": name, "queue": "q"})).send()
    };
    let first = post("a").expect(202);
    let again = post("a");
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.expect(202), first);
    assert_eq!(post("b").outcome(), "422 validation_failed");
}

#[test]
fn paid_orders_are_processed_once_also_across_a_restart() {
    let mut shop = Shop::open_with(|settings| settings.orders.process = true);
    let (staff, customer) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 100);
    let orders: Vec<String> = (0..20)
        .map(|at| {
            let body = json!({"items": [{"product_id": product, "quantity": 1}]});
            let order = shop
                .post("/api/v1/orders")
                .token(&customer)
                .json(&body)
                .send();
            let id = order.expect(201)["id"].to_string();
            if at == 10 {
                shop.restart();
            }
            shop.post(&format!("/api/v1/orders/{id}/pay"))
                .token(&staff)
                .send()
                .expect(200);
            id
        })
        .collect();
    for id in &orders {
        let order = || {
            shop.get(&format!("/api/v1/orders/{id}"))
                .token(&staff)
                .send()
                .expect(200)
        };
        shop.wait_until("it is processed", || order()["state"] == "processed");
        assert!(order()["processed_at"].is_string());
    }
    let cancelled = shop
        .post(&format!("/api/v1/orders/{}/cancel", orders[0]))
        .token(&customer)
        .send();
    assert_eq!(cancelled.expect(200)["state"], "refund_due");
    assert_eq!(shop.stock(product), 81, "its unit is on sale again");
    let tasks = shop
        .get("/api/v1/tasks?name=process_order")
        .token(&staff)
        .send()
        .expect(200);
    let tasks = tasks["items"].as_array().expect("a list").clone();
    assert_eq!(tasks.len(), 20);
    shop.wait_until("all are completed", || {
        let done = shop
            .get("/api/v1/tasks?state=completed")
            .token(&staff)
            .send()
            .expect(200);
        done["items"].as_array().expect("a list").len() == 20
    });
    let claimed = {
        let sale = shop.sale(&staff, product, 5, json!({"payment_window_seconds": 0}));
        let claims = format!("/api/v1/flash-sales/{sale}/claims");
        shop.post(&claims).token(&customer).send().expect(201)["order_id"].to_string()
    };
    let path = format!("/api/v1/orders/{claimed}");
    shop.wait_until("a claim is processed", || {
        shop.get(&path).token(&staff).send().expect(200)["state"] == "processed"
    });
}

#[test]
pub fn a_restart_and_a_lost_queue_folder_lose_nothing() {
    // So small a memory that the folder is needed.
    let mut shop = Shop::open_with(|settings| settings.tasks.index_memory_max = 4);
    let admin = shop.token(Role::Admin);
    let mut expected: Vec<String> = (0..30)
        .map(|at| {
            enqueue(
                &shop,
                &admin,
                json!({"name": "x", "queue": "q", "countdown_seconds": at % 3}),
            )
        })
        .collect();
    let leased = fetch(&shop, &admin, "q");
    shop.restart();
    assert_eq!(
        say(&shop, &admin, &leased, "ack", json!({})),
        "204",
        "its lease outlives a restart"
    );
    expected.retain(|id| json!(id) != leased["id"]);
    std::fs::remove_dir_all(shop.data_dir().join("queue")).expect("deleted while it runs");
    shop.clock.advance(Duration::from_secs(5));
    let mut got: Vec<String> = (0..15)
        .map(|_| text(&fetch(&shop, &admin, "q")["id"]))
        .collect();
    shop.restart();
    got.extend((0..14).map(|_| text(&fetch(&shop, &admin, "q")["id"])));
    got.sort();
    assert_eq!(got, expected);
    assert_eq!(fetch_for(&shop, &admin, "q", 0), Value::Null);
}

#[test]
pub fn a_waiting_task_is_edited_and_moves_to_its_new_place() {
    let (shop, admin) = open();
    let of = |name: &str| enqueue(&shop, &admin, json!({"name": name, "queue": "q"}));
    let (first, second, third) = (of("first"), of("second"), of("third"));
    let edit = |id: &str, body: Value| {
        let ask = shop
            .ask("PATCH", &format!("/api/v1/tasks/{id}"))
            .token(&admin);
        ask.json(&body).send()
    };
    let later = shop.clock.now().plus_seconds(20);
    let put_off = edit(&first, json!({"eta": later, "args": {"n": 1}})).expect(200);
    assert_eq!(
        (&put_off["state"], &put_off["args"]),
        (&json!("scheduled"), &json!({"n": 1}))
    );
    edit(&third, json!({"priority": 200})).expect(200);
    assert_eq!(fetch(&shop, &admin, "q")["id"], json!(third));
    let run = fetch(&shop, &admin, "q");
    assert_eq!(run["id"], json!(second));
    assert_eq!(fetch_for(&shop, &admin, "q", 0), Value::Null);
    assert_eq!(
        edit(&second, json!({"priority": 1})).outcome(),
        "409 task_state"
    );
    assert_eq!(
        edit(&first, json!({"max_attempts": 0})).outcome(),
        "422 validation_failed"
    );
    shop.clock.advance(Duration::from_secs(20));
    assert_eq!(fetch(&shop, &admin, "q")["args"], json!({"n": 1}));
    let metrics = || shop.get("/metrics").send().body;
    shop.wait_until("the figures are told", || {
        metrics().contains("queue_depth{queue=\"q\",state=\"running\"} 3")
    });
    let late = json!({"error": "x", "retry": false});
    assert_eq!(say(&shop, &admin, &run, "fail", late), "204");
    assert!(metrics().contains("tasks_total{state=\"discarded\",task=\"other\"} 1"));
}

#[test]
fn whoever_waits_for_a_task_is_served_as_soon_as_there_is_one() {
    let (shop, admin) = open();
    let shop = &shop;
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let admin = admin.clone();
                scope.spawn(move || fetch(shop, &admin, "other,q"))
            })
            .collect();
        let mut made: Vec<String> = (0..4)
            .map(|_| enqueue(shop, &admin, json!({"name": "x", "queue": "q"})))
            .collect();
        let mut got: Vec<String> = waiting
            .into_iter()
            .map(|waiting| text(&waiting.join().expect("served")["id"]))
            .collect();
        made.sort();
        got.sort();
        assert_eq!(got, made, "each has one of its own");
    });
}

#[test]
fn what_follows_from_a_request_belongs_to_its_trace() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let receiver = Receiver::open(&[Reaction::Status(200)]);
    let shop = Shop::open_with(|settings| {
        settings.orders.process = true;
        settings.orders.payment_window_seconds = 0;
        settings.mail.orders = MailRule::Always;
        settings.outgoing.allow_internal = vec!["127.0.0.0/8".parse().expect("a range")];
    });
    let admin = shop.token(Role::Admin);
    let endpoint = json!({"url": receiver.url(), "events": ["order.created"]});
    let endpoint = shop.post("/api/v1/webhooks").token(&admin).json(&endpoint);
    endpoint.send().expect(201);
    let product = shop.product(&admin, 10);
    let order = json!({"items": [{"product_id": product, "quantity": 1}]});
    let tasks = || {
        let list = shop.get("/api/v1/tasks?limit=200").token(&admin).send();
        let mut found: Vec<(String, Value)> = list.expect(200)["items"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|task| task["state"] == "completed")
            .map(|task| (text(&task["name"]), task["traceparent"].clone()))
            // The shop's own schedules belong to nobody's trace.
            .filter(|(name, _)| name.contains("order") || name.contains("webhook"))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    };
    let all = |trace: Value| {
        ["deliver_webhook", "process_order", "send_order_email"]
            .map(|name| (name.to_owned(), trace.clone()))
    };
    let ask = || shop.post("/api/v1/orders").token(&admin).json(&order);
    ask().header("traceparent", TRACE).send().expect(201);
    // The mail is born in the task that was born in the request.
    shop.wait_until("all of it is done", || tasks().len() == 3);
    assert_eq!(tasks(), all(json!(TRACE)));
    let call = receiver.received().remove(0);
    assert_eq!(call.header("traceparent"), Some(TRACE));
    ask().send().expect(201);
    shop.wait_until("all of it is done again", || tasks().len() == 6);
    let untraced: Vec<_> = tasks()
        .into_iter()
        .filter(|(_, trace)| trace.is_null())
        .collect();
    assert_eq!(untraced, all(Value::Null));
}

/// Fetches up to `max` at once.
fn fetch_many(shop: &Shop, admin: &str, queue: &str, max: u32, seconds: u32) -> Vec<Value> {
    let body = json!({"worker": "w", "wait_seconds": seconds, "lease_seconds": 30, "max": max});
    let answer = shop
        .post(&format!("/api/v1/queues/{queue}/fetch"))
        .token(admin)
        .json(&body)
        .send();
    let answer = answer.expect(200);
    assert_eq!(answer.get("task"), None, "with max it is a list");
    answer["tasks"].as_array().expect("a list").clone()
}

/// Ends many runs; answers the status and the code of each.
fn end_many(shop: &Shop, admin: &str, runs: &[Value]) -> Vec<Value> {
    let answer = shop
        .post("/api/v1/tasks/runs/end")
        .token(admin)
        .json(&json!({"runs": runs}))
        .send();
    let answer = answer.expect(200)["runs"]
        .as_array()
        .expect("a list")
        .clone();
    for (place, (asked, said)) in runs.iter().zip(&answer).enumerate() {
        assert_eq!(said["place"], json!(place));
        assert_eq!(said["task_id"], asked["task_id"]);
        assert_eq!(said["attempt"], asked["attempt"]);
    }
    assert_eq!(answer.len(), runs.len());
    answer
}

/// What a worker says of a run: `completed`, with the place as its result, or `failed`.
fn end_of(run: &Value, outcome: &str, more: &Value) -> Value {
    let mut said = json!({"task_id": run["id"], "attempt": run["attempt"], "outcome": outcome});
    for (key, value) in more.as_object().expect("an object") {
        said[key] = value.clone();
    }
    said
}

fn told(answer: &Value) -> String {
    match answer["code"].as_str() {
        Some(code) => format!("{} {code}", answer["status"]),
        None => answer["status"].to_string(),
    }
}

#[test]
fn a_worker_takes_many_at_once_in_their_order_and_waits_for_the_first_alone() {
    let (shop, admin) = open();
    assert_eq!(fetch_many(&shop, &admin, "q", 256, 0), [] as [Value; 0]);
    let make = |queue: &str, priority: u32| {
        enqueue(
            &shop,
            &admin,
            json!({"name": "x", "queue": queue, "priority": priority}),
        )
    };
    let made: Vec<String> = [50, 200, 100, 100]
        .map(|priority| make("q", priority))
        .into();
    let other = make("other", 50);
    let ids = |runs: &[Value]| runs.iter().map(|run| text(&run["id"])).collect::<Vec<_>>();
    // Until all have been indexed.
    shop.wait_until("they are ready", || {
        let queues = shop.get("/api/v1/queues").token(&admin).send().expect(200);
        let ready = |name: &str| {
            let items = queues["items"].as_array().expect("a list");
            let found = items.iter().find(|item| item["name"] == name);
            found.map_or(0, |item| item["ready"].as_u64().expect("a number"))
        };
        (ready("q"), ready("other")) == (4, 1)
    });
    let first = fetch_many(&shop, &admin, "q,other", 2, 0);
    assert_eq!(ids(&first), [&*made[1], &made[2]], "by priority, then time");
    assert_eq!(first[0]["attempt"], 1);
    assert!(first[0]["lease_expires_at"].is_string());
    // No more than there are, and of several queues the first of them first.
    let rest = fetch_many(&shop, &admin, "q,other", 256, 10);
    assert_eq!(ids(&rest), [&*made[3], &made[0], &other]);
    assert!(made.iter().all(|id| state(&shop, &admin, id) == "running"));
    // A list of one, too.
    let one = make("q", 1);
    assert_eq!(ids(&fetch_many(&shop, &admin, "q", 1, 10)), [one]);
    // A worker that waits for many gets the first task as soon as there is one.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fetch_many(&shop, &admin, "q", 256, 20));
        let one = make("q", 1);
        assert_eq!(ids(&waiting.join().expect("served")), [one]);
    });
}

#[test]
fn limits_of_a_queue_hold_for_many_at_once_and_what_may_not_start_is_left_out() {
    let (shop, admin) = open();
    let limit = |body: Value| {
        let queue = shop
            .ask("PATCH", "/api/v1/queues/q")
            .token(&admin)
            .json(&body);
        queue.send().expect(200)
    };
    let make = |more: Value| {
        let mut body = json!({"name": "x", "queue": "q"});
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        enqueue(&shop, &admin, body)
    };
    let expiry = shop.clock.now().plus_seconds(30);
    let mut made = vec![make(json!({"expires_at": expiry}))];
    made.extend((0..5).map(|_| make(json!({}))));
    limit(json!({"concurrency_max": 3}));
    let cancelled = shop
        .post(&format!("/api/v1/tasks/{}/cancel", made[1]))
        .token(&admin)
        .send();
    assert!(cancelled.status < 300, "{cancelled:?}");
    shop.clock.advance(Duration::from_secs(60));
    let mut got = Vec::new();
    while got.len() < 3 {
        got.extend(fetch_many(&shop, &admin, "q", 256, 10));
    }
    assert_eq!(fetch_many(&shop, &admin, "q", 256, 0), [] as [Value; 0]);
    let ids: Vec<String> = got.iter().map(|run| text(&run["id"])).collect();
    assert_eq!(ids, made[2..5]);
    assert_eq!(
        state(&shop, &admin, &made[0]),
        "cancelled",
        "its time was over"
    );
    let said: Vec<Value> = got
        .iter()
        .map(|run| end_of(run, "completed", &json!({})))
        .collect();
    let answers = end_many(&shop, &admin, &said);
    assert!(answers.iter().all(|answer| told(answer) == "204"));
    let last = fetch_many(&shop, &admin, "q", 256, 10);
    assert_eq!(last[0]["id"], json!(made[5]));
    let paused = shop.post("/api/v1/queues/q/pause").token(&admin).send();
    assert!(paused.status < 300, "{paused:?}");
    make(json!({}));
    assert_eq!(fetch_many(&shop, &admin, "q", 256, 1), [] as [Value; 0]);
}

#[test]
pub fn of_many_runs_that_end_each_is_answered_by_itself() {
    let (shop, admin) = open();
    let made: Vec<String> = (0..9)
        .map(|_| enqueue(&shop, &admin, json!({"name": "x", "queue": "q"})))
        .collect();
    let mut runs = Vec::new();
    while runs.len() < made.len() {
        runs.extend(fetch_many(&shop, &admin, "q", 256, 10));
    }
    let result = |place: usize| json!({"result": {"place": place}});
    // Late: its lease is over, and another has it.
    assert_eq!(
        say(
            &shop,
            &admin,
            &runs[2],
            "fail",
            json!({"error": "x", "retry_after_seconds": 0})
        ),
        "204"
    );
    assert_eq!(fetch(&shop, &admin, "q")["attempt"], 2);
    let unknown = json!({"id": "018f0000-0000-7000-8000-000000000000", "attempt": 1});
    let nonsense = json!({"id": "nonsense", "attempt": 1});
    let said = [
        end_of(&runs[0], "completed", &result(0)),
        end_of(&unknown, "completed", &json!({})),
        end_of(&runs[1], "completed", &result(2)),
        end_of(&runs[1], "completed", &result(3)),
        end_of(&runs[2], "completed", &json!({})),
        end_of(
            &runs[3],
            "failed",
            &json!({"error": "no such image", "retry_after_seconds": 7}),
        ),
        end_of(
            &runs[4],
            "failed",
            &json!({"error": "never", "retry": false}),
        ),
        end_of(&runs[4], "completed", &json!({})),
        end_of(&nonsense, "failed", &json!({"error": "x"})),
        end_of(
            &runs[5],
            "completed",
            &json!({"result": "x".repeat(70_000)}),
        ),
        end_of(&runs[5], "finished", &json!({})),
        end_of(&runs[5], "failed", &json!({})),
        end_of(&runs[5], "completed", &json!({"error": "x"})),
        end_of(
            &runs[5],
            "failed",
            &json!({"error": "x", "retry_after_seconds": 4_000_000_000_u32}),
        ),
        end_of(&runs[6], "completed", &result(14)),
    ];
    let answers = end_many(&shop, &admin, &said);
    let expected = [
        "204",
        "404 task_not_found",
        "204",
        "409 fenced",
        "409 fenced",
        "204",
        "204",
        "409 fenced",
        "404 task_not_found",
        "422 validation_failed",
        "422 validation_failed",
        "422 validation_failed",
        "422 validation_failed",
        "422 validation_failed",
        "204",
    ];
    let seen: Vec<String> = answers.iter().map(told).collect();
    assert_eq!(seen, expected);
    let fields: Vec<&Value> = answers[9..14]
        .iter()
        .map(|answer| &answer["errors"][0]["field"])
        .collect();
    assert_eq!(
        fields,
        [
            "runs[9].result",
            "runs[10].outcome",
            "runs[11].error",
            "runs[12].error",
            "runs[13].retry_after_seconds"
        ]
    );
    let reason = text(&answers[11]["errors"][0]["reason"]);
    assert_eq!(reason, "is required");
    assert!(
        text(&answers[3]["detail"]).contains("is over"),
        "{}",
        answers[3]
    );
    for (place, expected) in [(0, 0), (1, 2), (6, 14)] {
        let id = text(&runs[place]["id"]);
        let seen = task(&shop, &admin, &id);
        assert_eq!(seen["state"], "completed");
        assert_eq!(seen["result"], json!({"place": expected}));
    }
    let state_of = |place: usize| state(&shop, &admin, &text(&runs[place]["id"]));
    assert_eq!(state_of(3), "retryable");
    assert_eq!(state_of(4), "discarded");
    assert_eq!(
        (state_of(5), state_of(7)),
        ("running".to_owned(), "running".to_owned())
    );
    // The same again, as after an answer that was lost: what was noted stays as it is.
    let again = end_many(&shop, &admin, &said);
    assert!(again.iter().all(|answer| told(answer) != "204"));
    assert_eq!(
        task(&shop, &admin, &text(&runs[0]["id"]))["result"],
        json!({"place": 0})
    );
}

#[test]
fn what_hangs_on_many_runs_that_end_goes_on_with_them() {
    let (shop, admin) = open();
    let body = json!({"batch": true, "tasks": [{"name": "x", "queue": "q"}, {"name": "x", "queue": "q"},
        {"name": "x", "queue": "q", "unique_key": "one"}], "on_success": {"name": "all", "queue": "after"}});
    let batch = shop
        .post("/api/v1/tasks/batch")
        .token(&admin)
        .json(&body)
        .send()
        .expect(202);
    let first = text(&batch["tasks"][0]["id"]);
    let follower = enqueue(
        &shop,
        &admin,
        json!({"name": "y", "queue": "follow", "after": [first]}),
    );
    let mut runs = Vec::new();
    while runs.len() < 3 {
        runs.extend(fetch_many(&shop, &admin, "q", 256, 10));
    }
    assert_eq!(fetch_for(&shop, &admin, "after", 0), Value::Null);
    let said: Vec<Value> = runs
        .iter()
        .map(|run| end_of(run, "completed", &json!({})))
        .collect();
    let answers = end_many(&shop, &admin, &said);
    assert!(answers.iter().all(|answer| told(answer) == "204"));
    assert_eq!(fetch(&shop, &admin, "after")["name"], "all");
    assert_eq!(fetch(&shop, &admin, "follow")["id"], json!(follower));
    // The key is free again.
    let body = json!({"name": "x", "queue": "q", "unique_key": "one"});
    let answer = shop.post("/api/v1/tasks").token(&admin).json(&body).send();
    assert_eq!(answer.expect(202)["outcome"], "enqueued");
}

#[test]
fn too_many_and_too_few_at_once_are_refused_with_field_and_reason() {
    let (shop, admin) = open();
    let refused = |path: &str, body: Value| {
        let answer = shop.post(path).token(&admin).json(&body).send();
        let fault = answer.json()["errors"][0].clone();
        (
            answer.outcome(),
            text(&fault["field"]),
            text(&fault["reason"]),
        )
    };
    for max in [0, 257] {
        let (outcome, field, reason) = refused("/api/v1/queues/q/fetch", json!({"max": max}));
        assert_eq!((&*outcome, &*field), ("422 validation_failed", "max"));
        assert!(reason.contains("256"), "{reason}");
    }
    let run = json!({"task_id": "018f0000-0000-7000-8000-000000000000", "attempt": 1, "outcome": "completed"});
    for count in [0, 257] {
        let (outcome, field, reason) =
            refused("/api/v1/tasks/runs/end", json!({"runs": vec![&run; count]}));
        assert_eq!((&*outcome, &*field), ("422 validation_failed", "runs"));
        assert!(reason.contains("256"), "{reason}");
    }
    let (outcome, field, _) = refused(
        "/api/v1/tasks/runs/end",
        json!({"runs": [run, {"attempt": 1}]}),
    );
    assert_eq!(outcome, "422 validation_failed");
    assert!(field.starts_with("runs[1]"), "{field}");
    let all = end_many(&shop, &admin, &vec![run.clone(); 256]);
    assert!(
        all.iter()
            .all(|answer| told(answer) == "404 task_not_found")
    );
}

/// Commits of the server so far.
fn commits(shop: &Shop) -> u64 {
    let text = shop.get("/metrics").send().body;
    let line = text
        .lines()
        .find(|line| line.starts_with("db_commit_seconds_count"))
        .expect("commits are counted");
    let count = line.rsplit(' ').next().expect("a number");
    count.parse().expect("a number")
}

/// Enqueues into a queue for which a worker waits; answers what that has, and whether both took one commit.
fn enqueue_for_one_who_waits(shop: &Shop, admin: &str, body: &Value) -> (Value, bool) {
    let mut is_one = false;
    let mut run = Value::Null;
    // Between two looks at the commits something else may write.
    for _ in 0..50 {
        let before = std::sync::Mutex::new(0);
        run = std::thread::scope(|scope| {
            let queue = text(&body["queue"]);
            let waiting = scope.spawn(move || fetch(shop, admin, &queue));
            std::thread::sleep(Duration::from_millis(50));
            *before.lock().expect("whole") = commits(shop);
            let id = enqueue(shop, admin, body.clone());
            let run = waiting.join().expect("served");
            assert_eq!(run["id"], json!(id));
            run
        });
        is_one = commits(shop) - before.into_inner().expect("whole") == 1;
        assert_eq!(say(shop, admin, &run, "ack", json!({})), "204");
        if is_one {
            break;
        }
    }
    (run, is_one)
}

#[test]
fn a_task_for_which_a_worker_waits_is_enqueued_and_started_with_one_commit() {
    let (shop, admin) = open();
    let body = json!({"name": "x", "queue": "q", "args": {"n": 1}, "metadata": {"by": "me"}});
    let (run, is_one) = enqueue_for_one_who_waits(&shop, &admin, &body);
    assert!(is_one, "one commit");
    assert_eq!(
        (&run["attempt"], &run["args"]),
        (&json!(1), &json!({"n": 1}))
    );
    assert_eq!(run["metadata"], json!({"by": "me"}));
    assert!(run["lease_expires_at"].is_string());
    let seen = task(&shop, &admin, &text(&run["id"]));
    assert_eq!(
        (&seen["state"], &seen["worker"]),
        (&json!("completed"), &json!("w"))
    );
}

#[test]
fn what_is_limited_paused_or_not_due_is_not_handed_over() {
    let (shop, admin) = open();
    let shop = &shop;
    let first = enqueue(shop, &admin, json!({"name": "x", "queue": "q"}));
    let run = fetch(shop, &admin, "q");
    assert_eq!(run["id"], json!(first));
    let limited = shop
        .ask("PATCH", "/api/v1/queues/q")
        .token(&admin)
        .json(&json!({"concurrency_max": 1}))
        .send();
    limited.expect(200);
    // The limit is used up: a worker that waits gets nothing of what comes.
    let second = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fetch_for(shop, &admin, "q", 1));
        let second = enqueue(shop, &admin, json!({"name": "x", "queue": "q"}));
        assert_eq!(waiting.join().expect("an answer"), Value::Null);
        second
    });
    assert_eq!(say(shop, &admin, &run, "ack", json!({})), "204");
    let run = fetch(shop, &admin, "q");
    assert_eq!(run["id"], json!(second));
    assert_eq!(say(shop, &admin, &run, "ack", json!({})), "204");
    let paused = shop.post("/api/v1/queues/q/pause").token(&admin).send();
    assert!(paused.status < 300, "{paused:?}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fetch_for(shop, &admin, "q", 1));
        enqueue(shop, &admin, json!({"name": "x", "queue": "q"}));
        assert_eq!(waiting.join().expect("an answer"), Value::Null);
    });
    // In its time, and for what it waits for.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fetch_for(shop, &admin, "later", 1));
        let later = json!({"name": "x", "queue": "later", "countdown_seconds": 600});
        let later = enqueue(shop, &admin, later);
        let follower = json!({"name": "x", "queue": "later", "after": [later]});
        enqueue(shop, &admin, follower);
        assert_eq!(waiting.join().expect("an answer"), Value::Null);
    });
    // A key that ends with the start is free again.
    let unique = json!({"name": "x", "queue": "u", "unique_key": "k", "unique_until": "started"});
    for _ in 0..3 {
        let (run, _) = enqueue_for_one_who_waits(shop, &admin, &unique);
        assert_eq!(run["attempt"], 1);
    }
}
