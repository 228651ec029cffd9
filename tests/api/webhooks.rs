//! Webhooks over HTTP: who is told of what, and what becomes of receivers that misbehave.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use onrush::auth::Role;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::receiver::{Reaction, Received, Receiver};
use crate::support::{Shop, text};

/// A shop that may call this machine, with an admin.
fn open() -> (Shop, String) {
    open_with(|_| ())
}

fn open_with(change: impl FnOnce(&mut onrush::config::Settings)) -> (Shop, String) {
    let shop = Shop::open_with(|settings| {
        settings.outgoing.allow_internal = vec!["127.0.0.0/8".parse().expect("a range")];
        settings.auth.staff_session_idle_seconds = 31_536_000;
        settings.auth.staff_session_seconds = 31_536_000;
        change(settings);
    });
    let admin = shop.token(Role::Admin);
    (shop, admin)
}

fn endpoint(shop: &Shop, admin: &str, url: &str, events: &[&str]) -> (i64, String) {
    let body = json!({"url": url, "events": events});
    let made = shop
        .post("/api/v1/webhooks")
        .token(admin)
        .json(&body)
        .send()
        .expect(201);
    (made["id"].as_i64().expect("an id"), text(&made["secret"]))
}

fn order(shop: &Shop, admin: &str, product: i64) -> i64 {
    let body = json!({"items": [{"product_id": product, "quantity": 1}]});
    let answer = shop.post("/api/v1/orders").token(admin).json(&body).send();
    answer.expect(201)["id"].as_i64().expect("an id")
}

fn get(shop: &Shop, admin: &str, path: &str) -> Value {
    shop.get(path).token(admin).send().expect(200)
}

fn deliveries(shop: &Shop, admin: &str, id: i64) -> Vec<Value> {
    let page = get(shop, admin, &format!("/api/v1/webhooks/{id}/deliveries"));
    page["items"].as_array().expect("a list").clone()
}

/// HMAC-SHA256 as RFC 2104 writes it, on nothing but the hash.
fn signature(secret: &str, request: &Received) -> String {
    let key = STANDARD
        .decode(secret.strip_prefix("whsec_").expect("its beginning"))
        .expect("base64");
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(&key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let signed = format!(
        "{}.{}.{}",
        request.header("webhook-id").expect("an id"),
        request.header("webhook-timestamp").expect("a time"),
        request.body
    );
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(signed);
    let outer = Sha256::new().chain_update(pad(0x5c));
    let mac = outer.chain_update(inner.finalize()).finalize();
    format!("v1,{}", STANDARD.encode(mac))
}

fn body(request: &Received) -> Value {
    serde_json::from_str(&request.body).expect("JSON")
}

#[test]
fn endpoints_are_made_seen_changed_and_removed_and_their_secrets_stay_theirs() {
    let (shop, admin) = open();
    let (id, secret) = endpoint(&shop, &admin, "https://erp.example.com/h?k=1", &["order.*"]);
    assert!(secret.starts_with("whsec_") && secret.len() > 40);
    let path = format!("/api/v1/webhooks/{id}");
    let seen = shop.get(&path).token(&admin).send();
    assert!(!seen.body.contains(&secret), "{seen:?}");
    assert_eq!(seen.expect(200)["status"], "active");
    let list = shop.get("/api/v1/webhooks").token(&admin).send();
    assert!(!list.body.contains(&secret), "{list:?}");
    let change = json!({"status": "disabled", "events": ["*"], "description": "ERP"});
    let changed = shop.ask("PATCH", &path).token(&admin).json(&change).send();
    let changed = changed.expect(200);
    assert_eq!(
        (
            &changed["status"],
            &changed["disabled_reason"],
            &changed["events"]
        ),
        (&json!("disabled"), &json!("by hand"), &json!(["*"]))
    );
    let own = json!({"url": "https://x.example.com", "events": ["*"],
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"});
    let made = shop
        .post("/api/v1/webhooks")
        .token(&admin)
        .json(&own)
        .send();
    assert_eq!(made.expect(201)["secret"], own["secret"]);
    for (field, wrong) in [
        ("url", json!({"url": "ftp://example.com/x"})),
        ("url", json!({"url": "https://a:b@example.com/"})),
        ("url", json!({"url": "http://169.254.169.254/latest"})),
        ("url", json!({"url": "http://[::ffff:10.0.0.1]/x"})),
        ("url", json!({"url": "http://0xa.1/xxx"})),
        ("events[0]", json!({"events": ["order.payd"]})),
        ("events[0]", json!({"events": ["ord*"]})),
        ("events[0]", json!({"events": ["ping"]})),
        ("secret", json!({"secret": "whsec_c2hvcnQ="})),
    ] {
        let mut body = json!({"url": "https://example.com/x", "events": ["*"]});
        for (key, value) in wrong.as_object().expect("an object") {
            body[key] = value.clone();
        }
        let answer = shop
            .post("/api/v1/webhooks")
            .token(&admin)
            .json(&body)
            .send();
        assert_eq!(answer.outcome(), "422 validation_failed", "{wrong}");
        let error = answer.json()["errors"][0].clone();
        assert_eq!(error["field"], field, "{answer:?}");
        // An endpoint has no headers of its own that could hold a password.
        assert!(!text(&error["reason"]).contains("header"), "{answer:?}");
    }
    let kinds = get(&shop, &admin, "/api/v1/webhook-event-types");
    assert!(kinds["items"].as_array().expect("a list").len() >= 10);
    shop.ask("DELETE", &path).token(&admin).send().expect(204);
    let gone = shop.ask("DELETE", &path).token(&admin).send();
    assert_eq!(gone.outcome(), "404 webhook_not_found");
    let ping = shop.post(&format!("{path}/ping")).token(&admin).send();
    assert_eq!(ping.outcome(), "404 webhook_not_found");
}

#[test]
fn what_happens_is_told_to_who_wants_it_signed_and_once() {
    let (shop, admin) = open();
    let product = shop.product(&admin, 10);
    // Nobody wants to hear of this one.
    let zero = order(&shop, &admin, product);
    let cancel = shop.post(&format!("/api/v1/orders/{zero}/cancel"));
    cancel.token(&admin).send().expect(200);
    let (orders, sales) = (
        Receiver::open(&[Reaction::Status(200)]),
        Receiver::open(&[Reaction::Status(204)]),
    );
    let (id, secret) = endpoint(&shop, &admin, &orders.url(), &["order.*"]);
    endpoint(
        &shop,
        &admin,
        &sales.url(),
        &["flash_sale.sold_out", "flash_sale.ended"],
    );
    let one = order(&shop, &admin, product);
    let pay = shop.post(&format!("/api/v1/orders/{one}/pay"));
    pay.token(&admin).send().expect(200);
    let cancel = shop.post(&format!("/api/v1/orders/{one}/cancel"));
    cancel.token(&admin).send().expect(200);
    let two = order(&shop, &admin, product);
    shop.clock.advance(Duration::from_secs(901));
    shop.wait_until("five events", || orders.count() == 5);
    let mut told: Vec<(String, Value)> = orders
        .received()
        .iter()
        .map(|request| {
            let body = body(request);
            (text(&body["type"]), body["data"]["order_id"].clone())
        })
        .collect();
    told.sort_by_key(|(kind, id)| (id.as_i64(), kind.clone()));
    let expected = [
        ("order.created", one),
        ("order.paid", one),
        ("order.refund_due", one),
        ("order.created", two),
        ("order.expired", two),
    ];
    assert_eq!(
        told,
        expected.map(|(kind, id)| (kind.to_owned(), json!(id)))
    );
    let first = &orders.received()[0];
    assert_eq!(first.line, "POST /hook?token=secret HTTP/1.1");
    assert_eq!(
        first.header("webhook-signature"),
        Some(signature(&secret, first).as_str())
    );
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(body(first)["data"]["items"][0]["quantity"], 1);
    // With a new secret both sign for a time, then the new one alone.
    let rotate = shop
        .post(&format!("/api/v1/webhooks/{id}/rotate"))
        .token(&admin);
    let rotated = rotate
        .json(&json!({"overlap_seconds": 60}))
        .send()
        .expect(200);
    let new = text(&rotated["secret"]);
    for (wait, both) in [(0, true), (61, false)] {
        shop.clock.advance(Duration::from_secs(wait));
        let before = orders.count();
        let ping = shop
            .post(&format!("/api/v1/webhooks/{id}/ping"))
            .token(&admin);
        ping.send().expect(202);
        shop.wait_until("the ping", || orders.count() == before + 1);
        let request = orders.received().pop().expect("the ping");
        let mut signatures = vec![signature(&new, &request)];
        if both {
            signatures.push(signature(&secret, &request));
        }
        let header = request.header("webhook-signature").expect("a signature");
        assert_eq!(header, signatures.join(" "));
    }
    // A sale that sells out and ends.
    let sale = shop.sale(&admin, product, 1, json!({}));
    let claim = shop.post(&format!("/api/v1/flash-sales/{sale}/claims"));
    claim.token(&admin).send().expect(201);
    let stop = shop.post(&format!("/api/v1/flash-sales/{sale}/stop"));
    stop.token(&admin).send().expect(200);
    shop.wait_until("the sale's events", || sales.count() == 2);
    let mut kinds: Vec<String> = sales
        .received()
        .iter()
        .map(|request| text(&body(request)["type"]))
        .collect();
    kinds.sort();
    assert_eq!(kinds, ["flash_sale.ended", "flash_sale.sold_out"]);
}

/// Names of the kinds of events that the sources declare.
fn declared() -> BTreeSet<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms = std::fs::read_dir(src).expect("the sources");
    let files = rooms.map(|room| room.expect("a room").path().join("events.rs"));
    let texts = files.filter_map(|file| std::fs::read_to_string(file).ok());
    let name = |line: &str| {
        let rest = line.trim().strip_prefix("name: \"")?;
        Some(rest.strip_suffix("\",")?.to_owned())
    };
    texts
        .flat_map(|text| text.lines().filter_map(name).collect::<Vec<_>>())
        .collect()
}

#[test]
pub fn every_event_is_listed_told_of_in_both_languages_and_sent_as_it_is_declared() {
    let (shop, admin) = open_with(|settings| settings.orders.process = true);
    let catalogue = onrush::app::events();
    let names: BTreeSet<String> = catalogue
        .kinds()
        .iter()
        .map(|kind| kind.name.to_owned())
        .collect();
    assert_eq!(names, declared(), "app.rs lists what the rooms declare");
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/src/said.zh.ts");
    let words = std::fs::read_to_string(words).expect("the page's words");
    let told = get(&shop, &admin, "/api/v1/webhook-event-types");
    for (kind, told) in catalogue
        .kinds()
        .iter()
        .zip(told["items"].as_array().expect("a list"))
    {
        assert_eq!(told, &json!({"type": kind.name, "description": kind.about}));
        let is_sentence = kind.about.starts_with(char::is_uppercase) && kind.about.ends_with('.');
        assert!(is_sentence, "{kind:?}");
        let line = format!("'{}': '{}',", kind.name, kind.about_zh);
        let is_chinese = kind.about_zh.starts_with(|c: char| c as u32 > 0x4e00);
        assert!(is_chinese && words.contains(&line), "{line}");
    }
    // All of it happens.
    let receiver = Receiver::open(&[Reaction::Status(200)]);
    endpoint(&shop, &admin, &receiver.url(), &["*"]);
    let seen = || -> BTreeSet<String> {
        let types = receiver.received();
        types.iter().map(|one| text(&body(one)["type"])).collect()
    };
    let act = |path: String| {
        shop.post(&path).token(&admin).send().expect(200);
    };
    let product = shop.product(&admin, 10);
    let paid = order(&shop, &admin, product);
    act(format!("/api/v1/orders/{paid}/pay"));
    shop.wait_until("it is processed", || seen().contains("order.processed"));
    act(format!("/api/v1/orders/{paid}/cancel"));
    let given_up = order(&shop, &admin, product);
    act(format!("/api/v1/orders/{given_up}/cancel"));
    order(&shop, &admin, product);
    shop.clock.advance(Duration::from_secs(901));
    let sale = shop.sale(&admin, product, 1, json!({}));
    let claim = shop.post(&format!("/api/v1/flash-sales/{sale}/claims"));
    claim.token(&admin).send().expect(201);
    act(format!("/api/v1/flash-sales/{sale}/stop"));
    let anna =
        json!({"email": "anna@example.com", "name": "Anna", "password": "tea and lanterns 88"});
    let register = shop.post("/api/v1/auth/register").json(&anna);
    register.send().expect(201);
    shop.wait_until("all kinds", || seen() == names);
    for request in receiver.received() {
        let body = body(&request);
        let kind = catalogue
            .kinds()
            .iter()
            .find(|one| body["type"] == one.name);
        let fault = kind.expect("a kind").fault(&body["data"]);
        assert_eq!(fault, None, "{body}");
    }
}

#[test]
pub fn a_failure_is_tried_again_over_the_schedule_and_replayed_by_hand() {
    let (shop, admin) = open();
    let product = shop.product(&admin, 10);
    let receiver = Receiver::open(&[
        Reaction::Status(500),
        Reaction::Status(503),
        Reaction::Status(200),
    ]);
    let (id, _) = endpoint(&shop, &admin, &receiver.url(), &["order.created"]);
    order(&shop, &admin, product);
    for (attempts, wait) in [(1, 6), (2, 331), (3, 0)] {
        shop.wait_until("an attempt", || {
            deliveries(&shop, &admin, id).len() == attempts
        });
        // The task waits for its next attempt only once its failure is noted.
        if wait > 0 {
            shop.wait_until("the failure is noted", || {
                let task = text(&deliveries(&shop, &admin, id)[0]["task_id"]);
                get(&shop, &admin, &format!("/api/v1/tasks/{task}"))["state"] == "retryable"
            });
        }
        shop.clock.advance(Duration::from_secs(wait));
    }
    let log = deliveries(&shop, &admin, id);
    let statuses: Vec<&Value> = log.iter().map(|row| &row["status"]).collect();
    assert_eq!(statuses, [200, 503, 500]);
    assert_eq!(log[0]["outcome"], "delivered");
    assert_eq!(
        (&log[2]["response_excerpt"], &log[2]["attempt"]),
        (&json!("so 😀"), &json!(1))
    );
    let ids: BTreeSet<_> = receiver
        .received()
        .iter()
        .map(|request| request.header("webhook-id").expect("an id").to_owned())
        .collect();
    assert_eq!(ids.len(), 1, "every attempt is of the same event");
    let failed = get(
        &shop,
        &admin,
        &format!("/api/v1/webhooks/{id}/deliveries?failed=true&limit=1"),
    );
    assert_eq!(failed["items"][0]["status"], 503);
    assert!(failed["next_cursor"].is_string());
    // By hand, also to a disabled endpoint.
    let path = format!("/api/v1/webhooks/{id}");
    let disable = shop.ask("PATCH", &path).token(&admin);
    disable
        .json(&json!({"status": "disabled"}))
        .send()
        .expect(200);
    let event = text(&log[0]["event_id"]);
    let kept = get(&shop, &admin, &format!("/api/v1/webhook-events/{event}"));
    assert_eq!(kept["body"], body(&receiver.received()[0]));
    let replay = shop.post(&format!("{path}/replay")).token(&admin);
    replay.json(&json!({"event_id": event})).send().expect(202);
    shop.wait_until("the replay", || receiver.count() == 4);
    assert_eq!(
        receiver.received()[3].header("webhook-id"),
        Some(event.as_str())
    );
    let none = shop.post(&format!("{path}/replay")).token(&admin);
    let none = none.json(&json!({"event_id": "evt_none"})).send();
    assert_eq!(none.outcome(), "404 event_not_found");
    // What happens while it is disabled is not told.
    order(&shop, &admin, product);
    let ping = shop.post(&format!("{path}/ping")).token(&admin);
    ping.send().expect(202);
    shop.wait_until("the ping", || receiver.count() == 5);
    assert_eq!(body(&receiver.received()[4])["type"], "ping");
}

#[test]
fn receivers_that_misbehave_fail_and_lead_nowhere() {
    let (shop, admin) = open_with(|settings| settings.webhooks.timeout_ms = 300);
    let inside = Receiver::open(&[Reaction::Status(200)]);
    let redirect = format!(
        "HTTP/1.1 307 T\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
        inside.url()
    );
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(100_000));
    let cut = "HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\nshort".to_owned();
    for (reaction, word) in [
        (Reaction::Hang, "within 300 ms"),
        (Reaction::Raw(redirect), "it answered 307"),
        (
            Reaction::Raw("\0\u{1}garbage\r\n\r\n".to_owned()),
            "no valid HTTP",
        ),
        (Reaction::Raw(String::new()), "no valid HTTP"),
        (Reaction::Raw(endless), "no valid HTTP"),
        (Reaction::Raw(cut), "it answered 500: short"),
        (Reaction::Status(404), "it answered 404"),
    ] {
        let receiver = Receiver::open(std::slice::from_ref(&reaction));
        let (id, _) = endpoint(&shop, &admin, &receiver.url(), &["*"]);
        let ping = shop
            .post(&format!("/api/v1/webhooks/{id}/ping"))
            .token(&admin);
        ping.send().expect(202);
        shop.wait_until("the attempt", || !deliveries(&shop, &admin, id).is_empty());
        let row = &deliveries(&shop, &admin, id)[0];
        let error = text(&row["error"]);
        assert!(error.contains(word), "{reaction:?}: {error}");
        assert!(!error.contains("secret"), "a query may be one: {error}");
        assert_eq!(row["outcome"], "failed");
    }
    assert_eq!(inside.count(), 0, "a redirect is not followed");
}

#[test]
fn an_endpoint_that_is_gone_or_fails_for_days_is_disabled() {
    let (shop, admin) = open();
    let product = shop.product(&admin, 10);
    let gone = Receiver::open(&[Reaction::Status(410)]);
    let broken = Receiver::open(&[Reaction::Status(500)]);
    let (first, _) = endpoint(&shop, &admin, &gone.url(), &["order.created"]);
    let (second, _) = endpoint(&shop, &admin, &broken.url(), &["order.created"]);
    let status = |id: i64| get(&shop, &admin, &format!("/api/v1/webhooks/{id}"));
    order(&shop, &admin, product);
    shop.wait_until("410 disables", || status(first)["status"] == "disabled");
    assert_eq!(status(first)["disabled_reason"], "it answered 410 Gone");
    let task = text(&deliveries(&shop, &admin, first)[0]["task_id"]);
    shop.wait_until("its task is dead", || {
        get(&shop, &admin, &format!("/api/v1/tasks/{task}"))["state"] == "discarded"
    });
    shop.wait_until("a failure", || status(second)["failing_since"].is_string());
    assert_eq!(status(second)["status"], "active");
    shop.clock.advance(Duration::from_secs(432_001));
    // The next failure is five days after the first.
    shop.wait_until("it is disabled", || status(second)["status"] == "disabled");
    assert!(text(&status(second)["disabled_reason"]).contains("every attempt has failed since"));
    // Once enabled and mended it is told again, and its failures are forgotten.
    broken.react(Reaction::Status(200));
    let enable = shop
        .ask("PATCH", &format!("/api/v1/webhooks/{second}"))
        .token(&admin);
    let enabled = enable.json(&json!({"status": "active"})).send().expect(200);
    assert_eq!(
        (&enabled["failing_since"], &enabled["disabled_reason"]),
        (&Value::Null, &Value::Null)
    );
    let before = broken.count();
    order(&shop, &admin, product);
    shop.wait_until("it is told", || broken.count() > before);
    assert_eq!(gone.count(), 1, "a disabled one hears nothing");
}

#[test]
pub fn an_answer_counts_by_its_status_also_where_its_body_breaks_off() {
    let (shop, admin) = open();
    let product = shop.product(&admin, 10);
    let half = |status: &str| {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 100\r\n\r\nhalf");
        Receiver::open(&[Reaction::Raw(answer)])
    };
    let chunk = "HTTP/1.1 202 Soon\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz";
    let told = [
        (half("200 Yes"), "delivered", "active", 200),
        (
            Receiver::open(&[Reaction::Raw(chunk.to_owned())]),
            "delivered",
            "active",
            202,
        ),
        (half("500 No"), "failed", "active", 500),
        (half("410 Gone"), "failed", "disabled", 410),
    ];
    let ids = told
        .each_ref()
        .map(|(receiver, ..)| endpoint(&shop, &admin, &receiver.url(), &["order.created"]).0);
    order(&shop, &admin, product);
    for ((receiver, outcome, status, code), id) in told.iter().zip(ids) {
        shop.wait_until("it is told", || deliveries(&shop, &admin, id).len() == 1);
        let delivery = deliveries(&shop, &admin, id).remove(0);
        assert_eq!(
            (
                &delivery["outcome"],
                &delivery["status"],
                &delivery["response_excerpt"]
            ),
            (&json!(outcome), &json!(code), &json!("half")),
            "{delivery}"
        );
        let seen = get(&shop, &admin, &format!("/api/v1/webhooks/{id}"));
        assert_eq!(seen["status"], *status);
        assert_eq!(receiver.count(), 1);
    }
    // Nothing of what was delivered is sent again.
    shop.clock.advance(Duration::from_secs(6));
    shop.wait_until("the failed one is tried again", || told[2].0.count() == 2);
    assert_eq!([0, 1, 3].map(|at| told[at].0.count()), [1, 1, 1]);
}

#[test]
fn no_receiver_puts_a_task_off_for_longer_than_a_day() {
    let (shop, admin) = open();
    let product = shop.product(&admin, 10);
    let day = shop.clock.now().plus_seconds(86_400);
    for wait in [
        "4294967295",
        "99999999999999999999999",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ] {
        let answer = format!("HTTP/1.1 503 No\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n");
        let receiver = Receiver::open(&[Reaction::Raw(answer)]);
        let (id, _) = endpoint(&shop, &admin, &receiver.url(), &["order.created"]);
        order(&shop, &admin, product);
        shop.wait_until("it is told", || deliveries(&shop, &admin, id).len() == 1);
        let webhook = text(&deliveries(&shop, &admin, id)[0]["task_id"]);
        let args = json!({"url": receiver.url()});
        let body = json!({"name": "http_request", "args": args});
        let call = shop.post("/api/v1/tasks").token(&admin).json(&body).send();
        let call = text(&call.expect(202)["id"]);
        for id in [webhook, call] {
            let task = || get(&shop, &admin, &format!("/api/v1/tasks/{id}"));
            // On a busy machine a connection may fail; then it is called again, a moment later.
            let soon = json!(shop.clock.now().plus_seconds(3_600));
            shop.wait_until("it is put off", || {
                let task = task();
                let is_late = task["run_at"].as_str() > soon.as_str();
                if task["state"] == "retryable" && !is_late {
                    shop.clock.advance(Duration::from_secs(1));
                }
                task["state"] == "retryable" && is_late
            });
            let (run_at, now) = (text(&task()["run_at"]), shop.clock.now());
            let latest = text(&json!(now.plus_seconds(86_400)));
            assert!(
                text(&json!(day)) <= run_at && run_at <= latest,
                "{wait}: {run_at}"
            );
        }
    }
}

#[test]
fn a_task_calls_a_url_and_keeps_the_answer() {
    let (shop, admin) = open();
    let receiver = Receiver::open(&[
        Reaction::Raw(
            "HTTP/1.1 429 Slow\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n".to_owned(),
        ),
        Reaction::Status(201),
    ]);
    let enqueue = |args: Value| {
        let body = json!({"name": "http_request", "args": args, "max_attempts": 3});
        shop.post("/api/v1/tasks").token(&admin).json(&body).send()
    };
    let task = |id: &str| get(&shop, &admin, &format!("/api/v1/tasks/{id}"));
    let args = json!({"url": receiver.url(), "method": "PUT", "body": "杯子",
        "headers": {"Authorization": "Bearer t", "X-Own": "1"}});
    let id = text(&enqueue(args).expect(202)["id"]);
    shop.wait_until("it is put off", || task(&id)["state"] == "retryable");
    shop.clock.advance(Duration::from_secs(119));
    assert_eq!(receiver.count(), 1);
    shop.clock.advance(Duration::from_secs(2));
    shop.wait_until("it is done", || task(&id)["state"] == "completed");
    let (done, calls) = (task(&id), receiver.received());
    assert_eq!(
        (&done["result"]["status"], &done["result"]["body"]),
        (&json!(201), &json!("so 😀"))
    );
    assert_eq!(
        (calls[1].body.as_str(), calls[1].header("x-own")),
        ("杯子", Some("1"))
    );
    assert_eq!(calls[1].header("idempotency-key"), Some(id.as_str()));
    assert_eq!(calls[0].header("authorization"), Some("Bearer t"));
    // Half an answer is no result: it is asked for again.
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
    let broken = Receiver::open(&[Reaction::Raw(half.to_owned()), Reaction::Status(200)]);
    let again = text(&enqueue(json!({"url": broken.url()})).expect(202)["id"]);
    shop.wait_until("it is put off", || task(&again)["state"] == "retryable");
    shop.clock.advance(Duration::from_secs(2));
    shop.wait_until("it is done", || task(&again)["state"] == "completed");
    assert_eq!(task(&again)["result"]["body"], "so 😀");
    let hint = enqueue(json!({"url": "https://a:b@example.com/"}));
    assert!(
        hint.body.contains("send the header Authorization instead"),
        "{hint:?}"
    );
    for (field, args) in [
        ("args.url", json!({"url": "file:///etc/passwd"})),
        (
            "args.method",
            json!({"url": receiver.url(), "method": "get"}),
        ),
        (
            "args.headers",
            json!({"url": receiver.url(), "headers": {"Host": "x"}}),
        ),
        (
            "args.headers",
            json!({"url": receiver.url(), "headers": {"X": "a\r\nb"}}),
        ),
        (
            "args.expected_status",
            json!({"url": receiver.url(), "expected_status": [99]}),
        ),
        ("args.urll", json!({"urll": receiver.url()})),
    ] {
        let answer = enqueue(args);
        assert_eq!(answer.outcome(), "422 validation_failed");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{answer:?}");
    }
    // A name may turn out to be internal only when it is looked up.
    let shop = Shop::open();
    let admin = shop.token(Role::Admin);
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let url = format!("http://{host}:{}/", receiver.address.port());
        let body = json!({"name": "http_request", "args": {"url": url}});
        let made = shop.post("/api/v1/tasks").token(&admin).json(&body).send();
        let id = text(&made.expect(202)["id"]);
        let path = format!("/api/v1/tasks/{id}");
        shop.wait_until("it is refused", || {
            get(&shop, &admin, &path)["state"] == "discarded"
        });
        let error = text(&get(&shop, &admin, &path)["error"]);
        assert!(error.contains("not public"), "{error}");
    }
    assert_eq!(receiver.count(), 2);
}

#[test]
fn the_secrets_of_a_call_are_sent_and_never_shown() {
    let (shop, admin) = open();
    let staff = shop.token(Role::Staff);
    // It repeats what it was sent, as servers that are asked to debug do.
    let echo = |status: u16, body: &str| {
        Reaction::Raw(format!(
            "HTTP/1.1 {status} So\r\nSet-Cookie: sid=c00kie-in\r\nX-Own: 1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let receiver = Receiver::open(&[
        echo(500, "you said Bearer t0k3n-in"),
        echo(200, "you said t0k3n-in and k3y-in"),
    ]);
    let headers = json!({
        "Authorization": "Bearer t0k3n-in", "X-Api-Key": "k3y-in", "X-Own": "visible",
        "cookie": "sid=c00kie-in", "X-Shop-Secret": "s3cr3t-in",
    });
    let args = json!({"url": receiver.url(), "headers": headers});
    let body = json!({"name": "http_request", "args": args, "countdown_seconds": 60});
    let made = shop.post("/api/v1/tasks").token(&admin).json(&body).send();
    let path = format!("/api/v1/tasks/{}", text(&made.expect(202)["id"]));
    let hides = |what: &str, shown: &str| {
        for secret in ["t0k3n-in", "k3y-in", "c00kie-in", "s3cr3t-in"] {
            assert!(!shown.contains(secret), "{what} shows {secret}: {shown}");
        }
    };
    let masked = json!({
        "Authorization": "********", "X-Api-Key": "********", "X-Own": "visible",
        "cookie": "********", "X-Shop-Secret": "********",
    });
    // Staff may look, and only look.
    let seen = shop.get(&path).token(&staff).send().expect(200);
    assert_eq!(seen["args"]["headers"], masked);
    let edit =
        |token: &str, patch: Value| shop.ask("PATCH", &path).token(token).json(&patch).send();
    let patch = json!({"priority": 7});
    assert_eq!(edit(&staff, patch.clone()).outcome(), "403 forbidden");
    let edited = edit(&admin, patch);
    hides("an edit", &edited.body);
    edited.expect(200);
    // What was shown is not taken for what is meant.
    let back = edit(&admin, json!({"args": seen["args"]}));
    assert_eq!(back.outcome(), "422 validation_failed");
    assert_eq!(back.json()["errors"][0]["field"], "args.headers");
    shop.clock.advance(Duration::from_secs(60));
    shop.wait_until("it failed", || {
        get(&shop, &admin, &path)["state"] == "retryable"
    });
    let failed = get(&shop, &admin, &path);
    assert_eq!(failed["error"], "the answer was 500: you said ********");
    hides("a failure", &failed.to_string());
    shop.clock.advance(Duration::from_secs(60));
    shop.wait_until("it is done", || {
        get(&shop, &admin, &path)["state"] == "completed"
    });
    let done = get(&shop, &admin, &path);
    assert_eq!(done["result"]["body"], "you said ******** and ********");
    assert_eq!(done["result"]["headers"]["x-own"], "1");
    hides("the result", &done.to_string());
    let list = shop.get("/api/v1/tasks?name=http_request").token(&staff);
    hides("the list", &list.send().body);
    let schedule = json!({"name": "poll", "cron": "@daily", "task": "http_request", "args": args});
    let schedule = shop.post("/api/v1/schedules").token(&admin).json(&schedule);
    let schedule = schedule.send();
    hides("a schedule", &schedule.body);
    schedule.expect(201);
    let schedules = shop.get("/api/v1/schedules").token(&staff).send();
    assert!(schedules.body.contains("visible"));
    hides("the schedules", &schedules.body);
    // The command line looks at the rows beside the server.
    for more in [&[][..], &["--json"][..]] {
        let shown = std::process::Command::new(env!("CARGO_BIN_EXE_onrush"))
            .arg("--data-dir")
            .arg(shop.data_dir())
            .args(["task", "show", path.trim_start_matches("/api/v1/tasks/")])
            .args(more)
            .output()
            .expect("it runs");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("visible"), "{shown}");
        hides("the command line", &shown);
    }
    for call in receiver.received() {
        assert_eq!(call.header("authorization"), Some("Bearer t0k3n-in"));
        assert_eq!(call.header("x-shop-secret"), Some("s3cr3t-in"));
    }
    assert_eq!(receiver.count(), 2);
}
