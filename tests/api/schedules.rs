//! Schedules over HTTP, on a clock that the test moves.

use std::time::Duration;

use onrush::auth::Role;
use onrush::config::ScheduleEntry;
use serde_json::{Value, json};

use crate::support::{Answer, Shop, text};

/// A shop with an admin.
fn open() -> (Shop, String) {
    let shop = Shop::open();
    let admin = shop.token(Role::Admin);
    (shop, admin)
}

fn post(shop: &Shop, admin: &str, body: &Value) -> Answer {
    shop.post("/api/v1/schedules")
        .token(admin)
        .json(body)
        .send()
}

fn patch(shop: &Shop, admin: &str, name: &str, body: &Value) -> Answer {
    shop.ask("PATCH", &format!("/api/v1/schedules/{name}"))
        .token(admin)
        .json(body)
        .send()
}

fn action(shop: &Shop, admin: &str, name: &str, what: &str) -> Answer {
    shop.post(&format!("/api/v1/schedules/{name}/{what}"))
        .token(admin)
        .send()
}

fn get(shop: &Shop, admin: &str, path: &str) -> Value {
    shop.get(&format!("/api/v1/{path}"))
        .token(admin)
        .send()
        .expect(200)
}

fn runs(shop: &Shop, admin: &str, name: &str) -> Vec<Value> {
    let runs = get(shop, admin, &format!("schedules/{name}/runs"));
    runs["items"].as_array().expect("a list").clone()
}

#[test]
pub fn a_schedule_is_made_seen_fires_and_goes() {
    let (shop, admin) = open();
    let body = json!({
        "name": "nightly", "cron": "0 1 * * *", "time_zone": "Asia/Shanghai",
        "task": "count", "queue": "night", "args": {"what": "all"}, "priority": 7,
    });
    let answer = post(&shop, &admin, &body);
    assert_eq!(answer.header("location"), Some("/api/v1/schedules/nightly"));
    let made = answer.expect(201);
    assert_eq!(made["state"], "active");
    assert_eq!(made["source"], "api");
    assert_eq!(
        (&made["overlap"], &made["missed"]),
        (&json!("skip"), &json!("once"))
    );
    let next = made["next_runs"].as_array().expect("a list");
    assert_eq!(next.len(), 10);
    assert_eq!(next[0], "2026-11-11T17:00:00.000000Z");
    assert_eq!(next[9], "2026-11-20T17:00:00.000000Z");
    assert_eq!(post(&shop, &admin, &body).outcome(), "409 schedule_exists");
    assert!(runs(&shop, &admin, "nightly").is_empty());
    // The day has come; sessions of staff have not lasted so long.
    shop.clock.advance(Duration::from_secs(17 * 3_600));
    let admin = shop.token(Role::Admin);
    shop.wait_until("it fires", || runs(&shop, &admin, "nightly").len() == 1);
    let run = runs(&shop, &admin, "nightly")[0].clone();
    assert_eq!(run["fire_at"], "2026-11-11T17:00:00.000000Z");
    assert_eq!(
        (&run["cause"], &run["outcome"]),
        (&json!("time"), &json!("enqueued"))
    );
    let task = get(&shop, &admin, &format!("tasks/{}", text(&run["task_id"])));
    assert_eq!(
        (
            &task["name"],
            &task["queue"],
            &task["args"],
            &task["priority"]
        ),
        (
            &json!("count"),
            &json!("night"),
            &json!({"what": "all"}),
            &json!(7)
        )
    );
    assert_eq!(
        task["metadata"],
        json!({"schedule": "nightly", "fire_at": "2026-11-11T17:00:00.000000Z"})
    );
    // A worker does it; the run tells how long that took.
    let fetch = shop.post("/api/v1/queues/night/fetch").token(&admin);
    let fetched = fetch.json(&json!({"wait_seconds": 10})).send().expect(200)["task"].clone();
    assert_eq!(fetched["id"], run["task_id"]);
    shop.clock.advance(Duration::from_secs(3));
    let path = format!("/api/v1/tasks/{}/ack", text(&fetched["id"]));
    let ack = shop.post(&path).token(&admin).json(&json!({"attempt": 1}));
    ack.send().expect(204);
    let seen = get(&shop, &admin, "schedules/nightly");
    assert_eq!(seen["last_run"]["outcome"], "completed");
    assert_eq!(seen["last_run"]["duration_seconds"], 3.0);
    let line = r#"schedule_runs_total{outcome="completed",schedule="nightly"} 1"#;
    shop.wait_until("it is counted", || {
        shop.get("/metrics").send().body.contains(line)
    });
    let gone = shop
        .ask("DELETE", "/api/v1/schedules/nightly")
        .token(&admin);
    gone.send().expect(204);
    let gone = shop.get("/api/v1/schedules/nightly").token(&admin).send();
    assert_eq!(gone.outcome(), "404 schedule_not_found");
    assert!(
        !shop
            .get("/metrics")
            .send()
            .body
            .contains("schedule=\"nightly\"")
    );
}

#[test]
pub fn by_hand_paused_resumed_and_re_timed() {
    let (shop, admin) = open();
    let body =
        json!({"name": "s", "interval_seconds": 60, "task": "x", "queue": "q", "paused": true});
    let made = post(&shop, &admin, &body).expect(201);
    assert_eq!(
        (&made["state"], &made["next_runs"]),
        (&json!("paused"), &json!([]))
    );
    let run = || {
        shop.post("/api/v1/schedules/s/run")
            .token(&admin)
            .header("Idempotency-Key", "k")
            .send()
    };
    let first = run();
    let location = first.header("location").expect("Location").to_owned();
    let first = first.expect(202);
    assert_eq!(
        location,
        format!("/api/v1/tasks/{}", text(&first["task_id"]))
    );
    let again = run();
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.expect(202), first);
    assert_eq!(
        action(&shop, &admin, "s", "run").outcome(),
        "409 schedule_unfinished"
    );
    let allow = json!({"overlap": "allow", "args": [1]});
    patch(&shop, &admin, "s", &allow).expect(200);
    action(&shop, &admin, "s", "run").expect(202);
    let [second, first] = &runs(&shop, &admin, "s")[..] else {
        panic!("two runs");
    };
    assert_eq!(
        (&first["cause"], &second["cause"]),
        (&json!("hand"), &json!("hand"))
    );
    assert_eq!(
        action(&shop, &admin, "s", "resume").expect(200)["state"],
        "active"
    );
    shop.clock.advance(Duration::from_secs(60));
    shop.wait_until("it fires", || runs(&shop, &admin, "s").len() == 3);
    let view = action(&shop, &admin, "s", "pause").expect(200);
    assert_eq!(view["state"], "paused");
    assert_eq!(view["last_run"]["fire_at"], "2026-11-11T00:01:00.000000Z");
    action(&shop, &admin, "s", "resume").expect(200);
    let view = patch(&shop, &admin, "s", &json!({"cron": "*/30 * * * * *"})).expect(200);
    assert_eq!(view["interval_seconds"], Value::Null);
    assert_eq!(view["next_runs"][1], "2026-11-11T00:02:00.000000Z");
    for what in ["run", "pause", "resume"] {
        assert_eq!(
            action(&shop, &admin, "none", what).outcome(),
            "404 schedule_not_found"
        );
    }
    // Pages lead on.
    let page = get(&shop, &admin, "schedules/s/runs?limit=2");
    let cursor = text(&page["next_cursor"]);
    let rest = get(
        &shop,
        &admin,
        &format!("schedules/s/runs?limit=2&cursor={cursor}"),
    );
    assert_eq!(rest["items"].as_array().expect("a list").len(), 1);
    post(
        &shop,
        &admin,
        &json!({"name": "t", "cron": "@hourly", "task": "x"}),
    )
    .expect(201);
    let (mut names, mut next) = (Vec::new(), "schedules?limit=1".to_owned());
    loop {
        let page = get(&shop, &admin, &next);
        names.push(text(&page["items"][0]["name"]));
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        next = format!("schedules?limit=1&cursor={cursor}");
    }
    assert_eq!(
        names,
        [
            "clean_expired_cache",
            "s",
            "sync_user_activity",
            "t",
            "update_product_popularity",
            "warm_cache"
        ]
    );
}

#[test]
fn bad_input_is_refused_with_field_and_reason() {
    let (shop, admin) = open();
    let refused = |more: Value| {
        let mut body = json!({"name": "s", "task": "x"});
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        let answer = post(&shop, &admin, &body);
        assert_eq!(answer.outcome(), "422 validation_failed", "{more}");
        let error = answer.json()["errors"][0].clone();
        (text(&error["field"]), text(&error["reason"]))
    };
    for (more, field, words) in [
        (json!({}), "cron", "is required"),
        (
            json!({"cron": "@daily", "interval_seconds": 5}),
            "interval_seconds",
            "does not go",
        ),
        (json!({"cron": "0 25 * * *"}), "cron", "the hour `25`"),
        (json!({"cron": "0 0 31 2 *"}), "cron", "never fires"),
        (
            json!({"cron": "*/90 * * * *"}),
            "cron",
            "for every 90 minutes use interval_seconds 5400",
        ),
        (
            json!({"cron": "@daily", "time_zone": "Asia/Beijing"}),
            "time_zone",
            "did you mean Asia/Shanghai?",
        ),
        (json!({"cron": "* * *"}), "cron", "has 3 fields"),
        (
            json!({"interval_seconds": 0}),
            "interval_seconds",
            "between 1 and",
        ),
        (
            json!({"cron": "@daily", "time_zone": "Asia/Shangai"}),
            "time_zone",
            "did you mean Asia/Shanghai?",
        ),
        (json!({"cron": "@daily", "name": "a b"}), "name", "letters"),
        (
            json!({"cron": "@daily", "overlap": "never"}),
            "overlap",
            "skip, allow, queue_one",
        ),
        (
            json!({"cron": "@daily", "missed": "never"}),
            "missed",
            "once, skip, all",
        ),
        (
            json!({"cron": "@daily", "missed_max": 0}),
            "missed_max",
            "between 1",
        ),
        (
            json!({"cron": "@daily", "queue": "a b"}),
            "queue",
            "letters",
        ),
        (
            json!({"cron": "@daily", "max_attempts": 0}),
            "max_attempts",
            "between",
        ),
        (
            json!({"cron": "@daily", "task": "proces_order", "queue": "orders"}),
            "task",
            "did you mean process_order?",
        ),
        (
            json!({"cron": "@daily", "task": "process_order", "args": {}}),
            "args.order_id",
            "is required",
        ),
        (json!({"corn": "@daily"}), "corn", "is not a known field"),
    ] {
        let (at, reason) = refused(more.clone());
        assert_eq!(at, field, "{more}: {reason}");
        assert!(reason.contains(words), "{more}: {reason}");
    }
    post(
        &shop,
        &admin,
        &json!({"name": "s", "cron": "@daily", "task": "x"}),
    )
    .expect(201);
    let wrong = patch(&shop, &admin, "s", &json!({"cron": "@never"}));
    assert_eq!(wrong.outcome(), "422 validation_failed");
    assert_eq!(
        get(&shop, &admin, "schedules/s")["cron"],
        "@daily",
        "it stays"
    );
    let answer = shop
        .get("/api/v1/schedules/s/runs?cursor=x")
        .token(&admin)
        .send();
    assert_eq!(answer.outcome(), "400 invalid_cursor");
}

#[test]
pub fn the_settings_declare_schedules_and_the_built_in_ones_are_there() {
    let mut shop = Shop::open_with(|settings| {
        settings.orders.ledger_check_seconds = 3_600;
        settings.schedules.time_zone = onrush::zone::Zone::named("Asia/Shanghai").expect("a zone");
        let entry = ScheduleEntry {
            cron: Some("0 3 * * *".to_owned()),
            task: Some("count".to_owned()),
            missed: Some("all".to_owned()),
            ..ScheduleEntry::default()
        };
        settings
            .schedules
            .entries
            .insert("nightly".to_owned(), entry);
    });
    let admin = shop.token(Role::Admin);
    let all = get(&shop, &admin, "schedules");
    let items = all["items"].as_array().expect("a list");
    let named: Vec<_> = items
        .iter()
        .map(|schedule| (text(&schedule["name"]), text(&schedule["source"])))
        .collect();
    let expected = [
        ("clean_expired_cache", "built_in"),
        ("nightly", "settings"),
        ("sync_user_activity", "built_in"),
        ("update_product_popularity", "built_in"),
        ("verify_stock", "built_in"),
        ("warm_cache", "built_in"),
    ];
    assert_eq!(
        named,
        expected.map(|(name, source)| (name.to_owned(), source.to_owned()))
    );
    assert_eq!(items[1]["next_runs"][0], "2026-11-11T19:00:00.000000Z");
    let edit = json!({"cron": "0 4 * * *"});
    assert_eq!(
        patch(&shop, &admin, "nightly", &edit).outcome(),
        "409 schedule_fixed"
    );
    for name in ["nightly", "verify_stock"] {
        let gone = shop
            .ask("DELETE", &format!("/api/v1/schedules/{name}"))
            .token(&admin)
            .send();
        assert_eq!(gone.outcome(), "409 schedule_fixed");
    }
    let fixed = patch(&shop, &admin, "verify_stock", &json!({"task": "count"}));
    assert_eq!(fixed.outcome(), "422 validation_failed");
    // The built-in one can be given other times, which outlast a restart.
    let timed = patch(
        &shop,
        &admin,
        "verify_stock",
        &json!({"interval_seconds": 40}),
    );
    timed.expect(200);
    shop.restart();
    let admin = shop.token(Role::Admin);
    assert_eq!(
        get(&shop, &admin, "schedules/verify_stock")["interval_seconds"],
        40
    );
    let staff = shop.token(Role::Staff);
    shop.product(&staff, 5);
    shop.clock.advance(Duration::from_secs(40));
    shop.wait_until("the ledger is checked", || {
        runs(&shop, &admin, "verify_stock")
            .first()
            .is_some_and(|run| run["outcome"] == "completed")
    });
    let task = text(&runs(&shop, &admin, "verify_stock")[0]["task_id"]);
    let result = &get(&shop, &admin, &format!("tasks/{task}"))["result"];
    assert_eq!(
        (&result["drift_units"], &result["products"]),
        (&json!(0), &json!(1))
    );
    assert!(
        shop.get("/metrics")
            .send()
            .body
            .contains("\nstock_drift_units 0")
    );
    // What was missed while the server was away is made up for.
    action(&shop, &admin, "verify_stock", "pause").expect(200);
    shop.clock.advance(Duration::from_secs(3 * 86_400));
    shop.restart();
    let admin = shop.token(Role::Admin);
    shop.wait_until("three nights are made up for", || {
        let causes: Vec<Value> = runs(&shop, &admin, "nightly")
            .iter()
            .map(|run| run["cause"].clone())
            .collect();
        causes == vec![json!("catch_up"); 3]
    });
    assert_eq!(
        get(&shop, &admin, "schedules/verify_stock")["state"],
        "paused",
        "a pause outlasts a restart"
    );
}
