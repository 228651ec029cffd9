//! Flash sales over HTTP: their window, their limits, what returns, what a restart rebuilds.

use std::time::Duration;

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::{Shop, text};

fn view(shop: &Shop, sale: i64) -> Value {
    shop.get(&format!("/api/v1/flash-sales/{sale}"))
        .send()
        .expect(200)
}

#[test]
fn a_sale_goes_through_its_window_and_returns_what_is_left() {
    let mut shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 10);
    let start = shop.clock.now().plus_seconds(60);
    let more =
        json!({"starts_at": start, "ends_at": start.plus_seconds(600), "attempts_per_minute": 100});
    let sale = shop.sale(&staff, product, 4, more);
    assert_eq!(shop.stock(product), 6, "allotted");
    let claim = |shop: &Shop| {
        let path = format!("/api/v1/flash-sales/{sale}/claims");
        shop.post(&path).token(&anna).send()
    };
    assert_eq!(claim(&shop).outcome(), "409 not_started");
    assert_eq!(view(&shop, sale)["state"], "scheduled");
    shop.clock.advance(Duration::from_secs(60));
    shop.restart();
    let won = claim(&shop).expect(201);
    assert_eq!(
        (&won["remaining"], &won["state"]),
        (&json!(3), &json!("paid"))
    );
    assert_eq!(claim(&shop).outcome(), "409 limit_reached");
    let read = shop
        .get(&format!("/api/v1/claims/{}", text(&won["claim_id"])))
        .token(&anna)
        .send()
        .expect(200);
    assert_eq!(read["order_id"], won["order_id"]);
    shop.clock.advance(Duration::from_secs(600));
    assert_eq!(claim(&shop).outcome(), "409 ended");
    shop.wait_until("what is left returns", || shop.stock(product) == 9);
    let ended = view(&shop, sale);
    assert_eq!(
        (&ended["state"], &ended["sold"], &ended["returned"]),
        (&json!("ended"), &json!(1), &json!(3))
    );
    assert_eq!(claim(&shop).outcome(), "409 ended");
}

#[test]
fn stopping_returns_what_is_left_once() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 10);
    let sale = shop.sale(&staff, product, 10, json!({}));
    let path = format!("/api/v1/flash-sales/{sale}");
    let seckill = || {
        shop.post(&format!("/seckill/{product}"))
            .token(&anna)
            .send()
    };
    seckill().expect(201);
    for _ in 0..2 {
        let stopped = shop
            .post(&format!("{path}/stop"))
            .token(&staff)
            .send()
            .expect(200);
        assert_eq!(
            (&stopped["state"], &stopped["returned"]),
            (&json!("stopped"), &json!(9))
        );
        assert_eq!(shop.stock(product), 9);
    }
    assert_eq!(
        seckill().outcome(),
        "404 sale_not_found",
        "no sale of it runs"
    );
    let claim = shop.post(&format!("{path}/claims")).token(&anna).send();
    assert_eq!(claim.outcome(), "409 ended");
    let unknown = shop
        .post("/api/v1/flash-sales/777/claims")
        .token(&anna)
        .send();
    assert_eq!(unknown.outcome(), "404 sale_not_found");
}

#[test]
fn attempts_are_limited_per_buyer_in_a_sliding_minute() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 10);
    let sale = shop.sale(&staff, product, 5, json!({"attempts_per_minute": 2}));
    let claim = |token: &str| {
        let path = format!("/api/v1/flash-sales/{sale}/claims");
        shop.post(&path).token(token).send()
    };
    assert_eq!(claim(&anna).outcome(), "201");
    shop.clock.advance(Duration::from_secs(30));
    assert_eq!(claim(&anna).outcome(), "409 limit_reached");
    let limited = claim(&anna);
    assert_eq!(limited.outcome(), "429 rate_limited");
    let wait: u64 = limited
        .header("retry-after")
        .expect("a wait")
        .parse()
        .expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(
        claim(&shop.token(Role::Customer)).outcome(),
        "201",
        "others are free"
    );
    shop.clock.advance(Duration::from_secs(wait));
    assert_eq!(
        claim(&anna).outcome(),
        "409 limit_reached",
        "the first has left the minute"
    );
}

#[test]
pub fn held_units_come_back_to_the_sale_and_are_sold_to_the_next() {
    let mut shop = Shop::open();
    let (staff, anna, ben) = (
        shop.token(Role::Staff),
        shop.token(Role::Customer),
        shop.token(Role::Customer),
    );
    let product = shop.product(&staff, 1);
    let sale = shop.sale(&staff, product, 1, json!({"payment_window_seconds": 120}));
    let claims = format!("/api/v1/flash-sales/{sale}/claims");
    let won = shop.post(&claims).token(&anna).send().expect(201);
    assert_eq!(won["state"], "pending_payment");
    assert_eq!(view(&shop, sale)["held"], 1);
    assert_eq!(
        shop.post(&claims).token(&ben).send().outcome(),
        "409 sold_out"
    );
    shop.restart();
    assert_eq!(
        shop.post(&claims).token(&ben).send().outcome(),
        "409 sold_out"
    );
    shop.clock.advance(Duration::from_secs(121));
    shop.wait_until("the hold expires", || view(&shop, sale)["remaining"] == 1);
    let next = shop.post(&claims).token(&ben).send().expect(201);
    let pay = |order: &Value, token: &str| {
        let path = format!("/api/v1/orders/{order}/pay");
        text(&shop.post(&path).token(token).send().expect(200)["state"])
    };
    assert_eq!(pay(&next["order_id"], &ben), "paid");
    assert_eq!(
        pay(&won["order_id"], &anna),
        "refund_due",
        "too late, and none is left"
    );
    let end = view(&shop, sale);
    assert_eq!((&end["sold"], &end["held"]), (&json!(1), &json!(0)));
    // The winner gives it up: it is for sale again.
    let path = format!("/api/v1/orders/{}/cancel", next["order_id"]);
    shop.post(&path).token(&ben).send().expect(200);
    assert_eq!(view(&shop, sale)["remaining"], 1);
}

#[test]
fn a_sale_that_does_not_hold_is_refused_field_by_field() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let product = shop.product(&staff, 10);
    let now = shop.clock.now();
    let good = json!({
        "product_id": product, "quantity": 5, "unit_amount": 1,
        "starts_at": now, "ends_at": now.plus_seconds(60),
    });
    let send = |changes: Value| {
        let mut body = good.clone();
        for (key, value) in changes.as_object().expect("an object") {
            body[key] = value.clone();
        }
        shop.post("/api/v1/flash-sales")
            .token(&staff)
            .json(&body)
            .send()
    };
    for (changes, field) in [
        (json!({"quantity": 0}), "quantity"),
        (json!({"quantity": -5}), "quantity"),
        (json!({"unit_amount": -1}), "unit_amount"),
        (json!({"ends_at": now}), "ends_at"),
        (json!({"ends_at": "tomorrow"}), "ends_at"),
        (json!({"ends_at": "2926-01-01T00:00:00Z"}), "ends_at"),
        (json!({"per_user_limit": 0}), "per_user_limit"),
        (json!({"attempts_per_minute": 0}), "attempts_per_minute"),
        (json!({"attempts_per_minute": 1_001}), "attempts_per_minute"),
        (
            json!({"payment_window_seconds": -1}),
            "payment_window_seconds",
        ),
        (json!({"product_id": 999}), "product_id"),
        (json!({"remaining": 5}), "remaining"),
    ] {
        let answer = send(changes.clone());
        assert_eq!(answer.outcome(), "422 validation_failed", "{changes}");
        assert_eq!(
            answer.json()["errors"][0]["field"],
            field,
            "{changes}: {answer:?}"
        );
    }
    assert_eq!(
        send(json!({"quantity": 11})).outcome(),
        "409 insufficient_stock"
    );
    assert_eq!(shop.stock(product), 10);
    send(json!({})).expect(201);
    assert_eq!(send(json!({"quantity": 1})).outcome(), "409 sale_overlaps");
    assert_eq!(shop.stock(product), 5, "the refused one took nothing");
}

#[test]
pub fn the_server_checks_the_ledger_and_tells_what_it_found() {
    let shop = Shop::open_with(|settings| settings.orders.ledger_check_seconds = 1);
    let staff = shop.token(Role::Staff);
    shop.product(&staff, 5);
    let metrics = || shop.get("/metrics").send().body;
    assert!(
        !metrics().contains("\nstock_drift_units "),
        "not checked yet"
    );
    shop.clock.advance(Duration::from_secs(1));
    shop.wait_until("a check", || metrics().contains("\nstock_drift_units 0"));
    assert!(metrics().contains("\nstock_ledger_problems 0"));
}

/// A counter's value on `/metrics`; 0 where it has no line.
fn counted(shop: &Shop, line: &str) -> u64 {
    let page = shop.get("/metrics").token(&shop.token(Role::Staff)).send();
    assert_eq!(page.status, 200, "{page:?}");
    let value = page.body.lines().find_map(|found| {
        let value = found.strip_prefix(line)?.strip_prefix(' ')?;
        value.parse().ok()
    });
    value.unwrap_or(0)
}

#[test]
fn an_answer_given_again_counts_neither_as_a_claim_nor_as_an_order() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 10);
    let claims = |outcome: &str| {
        counted(
            &shop,
            &format!("flash_sale_claims_total{{outcome=\"{outcome}\"}}"),
        )
    };
    let orders = || counted(&shop, "orders_created_total");
    let sale = shop.sale(&staff, product, 2, json!({}));
    let path = format!("/api/v1/flash-sales/{sale}/claims");
    let claim = |token: &str, key: &str| {
        let ask = shop.post(&path).token(token);
        ask.header("Idempotency-Key", key).send()
    };
    // With a unit left the row knows the key; sold out, the gate has refused before.
    assert_eq!(claim(&anna, "a").status, 201);
    assert_eq!(claim(&anna, "a").status, 201);
    assert_eq!(claim(&shop.token(Role::Customer), "b").status, 201);
    assert_eq!(claim(&anna, "a").status, 201);
    let late = claim(&shop.token(Role::Customer), "c");
    assert_eq!(late.outcome(), "409 sold_out");
    assert_eq!((claims("accepted"), claims("replayed")), (2, 2));
    assert_eq!(claims("sold_out"), 1);
    assert_eq!(orders(), 2, "a claim is an order");

    let body = json!({"items": [{"product_id": product, "quantity": 1}]});
    for _ in 0..3 {
        let order = shop.post("/api/v1/orders").token(&anna).json(&body);
        order.header("Idempotency-Key", "o").send().expect(201);
    }
    assert_eq!(orders(), 3);
}

/// One connection, so that it is known who comes when: of ten buyers two send their request twice.
#[test]
fn the_report_card_adds_up_to_the_attempts_and_ends_in_one_verdict() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let product = shop.product(&staff, 50).to_string();
    let rehearse = |more: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_onrush"))
            .arg("--data-dir")
            .arg(shop.data_dir())
            .args(["rehearse", "--product", &product, "--units", "20"])
            .args(["--buyers", "60", "--connections", "1", "--exit"])
            .args(more)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        said
    };
    let card: serde_json::Value = serde_json::from_str(&rehearse(&["--json"])).expect("a card");
    let count = |name: &str| card[name].as_u64().expect(name);
    let refused: u64 = card["refused"]
        .as_object()
        .expect("refusals")
        .values()
        .map(|count| count.as_u64().expect("a count"))
        .sum();
    assert_eq!((count("sold"), count("accepted")), (20, 20), "{card}");
    assert_eq!(count("replayed"), 4, "{card}");
    assert_eq!(count("attempts"), 20 + 4 + count("unanswered") + refused);
    assert_eq!(count("attempts"), 6 * (6 + 4 + 3 + 6));
    assert_eq!(card["verdict"], "kept");
    assert_eq!(card["broken"], serde_json::Value::Null);

    let shown = rehearse(&[]);
    let row = |name: &str| -> u64 {
        let line = shown.lines().find(|line| line.contains(name)).expect(name);
        let digits = line.split_once(name).expect("a row").1;
        let digits = digits.trim_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit());
        digits[..end.unwrap_or(digits.len())]
            .parse()
            .expect("a number")
    };
    let outcomes = ["  accepted ", "  answered again ", "  unanswered "];
    let outcomes: u64 = outcomes.iter().map(|name| row(name)).sum();
    let refusals: u64 = shown
        .lines()
        .filter_map(|line| line.split_once("  refused: "))
        .map(|(_, rest)| row(rest.split_whitespace().next().expect("a code")))
        .sum();
    assert_eq!(outcomes + refusals, row("attempts"), "{shown}");
    let last = shown.lines().rev().find(|line| line.contains("verdict"));
    assert!(last.expect("a verdict").contains("kept"), "{shown}");
}

#[test]
fn a_product_tells_what_is_set_aside_of_it_until_its_sales_are_over() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 10);
    let path = format!("/api/v1/products/{product}");
    let units = || {
        let shown = shop.get(&path).send().expect(200);
        let listed = shop.get("/api/v1/products").send().expect(200)["items"][0].clone();
        assert_eq!(listed, shown);
        let number = |name: &str| shown[name].as_i64().expect("a number");
        (number("stock"), number("set_aside"))
    };
    assert_eq!(units(), (10, 0));
    let now = shop.clock.now();
    let tomorrow =
        json!({"starts_at": now.plus_seconds(86_400), "ends_at": now.plus_seconds(90_000)});
    let sale = shop.sale(&staff, product, 4, json!({}));
    let other = shop.sale(&staff, product, 6, tomorrow);
    assert_eq!(units(), (0, 10), "all of them, and none is gone");
    let body = json!({"items": [{"product_id": product, "quantity": 1}]});
    let order = shop.post("/api/v1/orders").token(&anna).json(&body).send();
    assert_eq!(order.outcome(), "409 insufficient_stock");
    assert!(order.body.contains("0 free units"), "{order:?}");

    let etag = |answer: crate::support::Answer| answer.header("etag").map(str::to_owned);
    let before = etag(shop.get(&path).send());
    let claim = shop.post(&format!("/api/v1/flash-sales/{sale}/claims"));
    claim.token(&anna).send().expect(201);
    assert_eq!(
        etag(shop.get(&path).send()),
        before,
        "a claim changes nothing that is shown of the product"
    );
    let stop = |sale: i64| {
        let path = format!("/api/v1/flash-sales/{sale}/stop");
        shop.post(&path).token(&staff).send().expect(200);
    };
    stop(sale);
    assert_eq!(units(), (3, 6));
    stop(sale);
    assert_eq!(units(), (3, 6), "stopped twice it is stopped once");
    stop(other);
    assert_eq!(units(), (9, 0));
    // A sale of which nothing comes back is over as well.
    let last = shop.sale(&staff, product, 1, json!({}));
    let claim = shop.post(&format!("/api/v1/flash-sales/{last}/claims"));
    claim.token(&anna).send().expect(201);
    assert_eq!(units(), (8, 1));
    stop(last);
    assert_eq!(units(), (8, 0));
}

/// One unit at 100, one a buyer: claimed, left to expire, three times; then all three are paid.
#[test]
pub fn paying_late_is_no_way_round_the_limits_of_a_sale() {
    for with_key in [true, false] {
        let shop =
            Shop::open_with(|settings| settings.orders.customers_confirm_payment = !with_key);
        let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
        let product = shop.product(&staff, 20);
        let terms =
            json!({"unit_amount": 100, "payment_window_seconds": 1, "attempts_per_minute": 100});
        let sale = shop.sale(&staff, product, 1, terms);
        let payer = if with_key {
            shop.account("till@example.com", Role::Admin);
            let admin = shop.login("till@example.com");
            let body = json!({"name": "provider", "scopes": ["payments"]});
            let key = shop.post("/api/v1/api-keys").token(&admin).json(&body);
            text(&key.send().expect(201)["key"])
        } else {
            anna.clone()
        };
        let orders: Vec<String> = (0..3)
            .map(|_| {
                let path = format!("/api/v1/flash-sales/{sale}/claims");
                let won = shop.post(&path).token(&anna).send().expect(201);
                shop.clock.advance(Duration::from_secs(1));
                shop.wait_until("the hold expires", || view(&shop, sale)["held"] == 0);
                won["order_id"].to_string()
            })
            .collect();
        let pay_all = || {
            let pay = |order: &String| {
                let path = format!("/api/v1/orders/{order}/pay");
                text(&shop.post(&path).token(&payer).send().expect(200)["state"])
            };
            orders.iter().map(pay).collect::<Vec<_>>()
        };
        let states = ["paid", "refund_due", "refund_due"];
        assert_eq!(pay_all(), states);
        assert_eq!(pay_all(), states, "told again, nothing changes");
        let sold = view(&shop, sale);
        assert_eq!(
            (&sold["sold"], &sold["state"], shop.stock(product)),
            (&json!(1), &json!("sold_out"), 19)
        );
        let ben = shop.token(Role::Customer);
        let path = format!("/api/v1/flash-sales/{sale}/claims");
        let refused = shop.post(&path).token(&ben).send();
        assert_eq!(refused.outcome(), "409 sold_out", "the gate knows");
    }
}

#[test]
fn what_costs_nothing_is_paid_at_once() {
    let shop = Shop::open_with(|settings| settings.orders.customers_confirm_payment = false);
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let body = json!({"name": "Sample", "unit_amount": 0, "currency": "CNY", "stock": 5});
    let product = shop.post("/api/v1/products").token(&staff).json(&body);
    let product = product.send().expect(201)["id"].as_i64().expect("an id");
    let body = json!({"items": [{"product_id": product, "quantity": 1}]});
    let order = shop.post("/api/v1/orders").token(&anna).json(&body);
    let order = order.send().expect(201);
    assert_eq!(order["state"], "paid");
    assert!(order.get("expires_at").is_none_or(Value::is_null));
    let terms = json!({"unit_amount": 0, "payment_window_seconds": 600});
    let sale = shop.sale(&staff, product, 2, terms);
    let path = format!("/api/v1/flash-sales/{sale}/claims");
    let won = shop.post(&path).token(&anna).send().expect(201);
    assert_eq!(won["state"], "paid");
    let sold = view(&shop, sale);
    assert_eq!((&sold["sold"], &sold["held"]), (&json!(1), &json!(0)));
}
