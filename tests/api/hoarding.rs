//! Nobody sets stock aside without paying for it.

use std::time::Duration;

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::{Answer, Shop};

fn order(shop: &Shop, token: &str, lines: &[(i64, i64)]) -> Answer {
    let lines: Vec<Value> = lines
        .iter()
        .map(|(product, quantity)| json!({"product_id": product, "quantity": quantity}))
        .collect();
    let ask = shop.post("/api/v1/orders").token(token);
    ask.json(&json!({"items": lines})).send()
}

fn id(answer: Answer) -> i64 {
    answer.expect(201)["id"].as_i64().expect("an id")
}

/// Field and reason of a refusal.
fn fault(answer: &Answer) -> (String, String) {
    let fault = &answer.json()["errors"][0];
    let text = |name: &str| fault[name].as_str().unwrap_or_default().to_owned();
    (text("field"), text("reason"))
}

#[test]
fn one_account_sets_aside_a_few_units_in_a_few_orders_and_no_more() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 5_000);
    let others: Vec<i64> = (0..6).map(|_| shop.product(&staff, 100)).collect();

    // What no time and no payment would help.
    let much = order(&shop, &anna, &[(others[0], 1), (product, 1_000)]);
    assert_eq!(much.outcome(), "422 validation_failed");
    let reason = "an unpaid order may hold at most 20 units of a product".to_owned();
    assert_eq!(fault(&much), ("items[1].quantity".to_owned(), reason));

    let first = id(order(&shop, &anna, &[(product, 12)]));
    shop.clock.advance(Duration::from_secs(100));
    let second = id(order(&shop, &anna, &[(product, 8)]));
    let more = order(&shop, &anna, &[(others[0], 20), (product, 1)]);
    assert_eq!(more.outcome(), "409 unpaid_orders");
    let reason =
        "unpaid orders may hold at most 20 units of a product together; 20 are held already";
    assert_eq!(
        fault(&more),
        ("items[1].quantity".to_owned(), reason.to_owned())
    );
    assert_eq!(more.header("retry-after"), Some("800"), "the first expires");
    assert_eq!(shop.stock(product), 4_980);
    assert_eq!(shop.stock(others[0]), 100, "nothing of it was taken");

    for other in &others[..3] {
        id(order(&shop, &anna, &[(*other, 1)]));
    }
    let sixth = order(&shop, &anna, &[(others[3], 1)]);
    assert_eq!(sixth.outcome(), "409 unpaid_orders");
    let reason = "at most 5 orders of a customer may wait for payment";
    assert_eq!(fault(&sixth), ("items".to_owned(), reason.to_owned()));
    assert_eq!(sixth.header("retry-after"), Some("800"));
    assert_eq!(shop.stock(others[3]), 100);

    // Each for themselves; staff as they like.
    let ben = shop.token(Role::Customer);
    id(order(&shop, &ben, &[(product, 20)]));
    for _ in 0..7 {
        id(order(&shop, &staff, &[(product, 100)]));
    }

    // Paid, given up or expired, it makes room.
    let of = |order: i64, what: &str| {
        let path = format!("/api/v1/orders/{order}/{what}");
        shop.post(&path).token(&anna).send().expect(200)
    };
    of(first, "pay");
    id(order(&shop, &anna, &[(product, 12)]));
    assert_eq!(order(&shop, &anna, &[(others[3], 1)]).status, 409);
    of(second, "cancel");
    id(order(&shop, &anna, &[(product, 8)]));
    assert_eq!(order(&shop, &anna, &[(others[3], 1)]).status, 409);
    shop.clock.advance(Duration::from_secs(901));
    shop.wait_until("they expire", || shop.stock(product) == 5_000 - 12);
    id(order(&shop, &anna, &[(product, 20)]));
}

#[test]
fn who_acts_for_a_customer_has_the_customers_limits() {
    let shop = Shop::open();
    let (admin, staff) = (shop.token(Role::Admin), shop.token(Role::Staff));
    let product = shop.product(&staff, 1_000);
    let customer = shop.account("anna@example.com", Role::Customer);
    let body = json!({"name": "shop", "scopes": ["act_as", "orders"]});
    let key = shop
        .post("/api/v1/api-keys")
        .token(&admin)
        .json(&body)
        .send();
    let key = key.expect(201)["key"].as_str().expect("a key").to_owned();
    let for_customer = |quantity: i64| {
        let ask = shop.post("/api/v1/orders").token(&key);
        let ask = ask.header("X-User-Id", &customer.to_string());
        ask.json(&json!({"items": [{"product_id": product, "quantity": quantity}]}))
            .send()
    };
    assert_eq!(for_customer(21).outcome(), "422 validation_failed");
    for _ in 0..5 {
        assert_eq!(for_customer(4).outcome(), "201");
    }
    assert_eq!(for_customer(1).outcome(), "409 unpaid_orders");
    assert_eq!(shop.stock(product), 980);
}

#[test]
fn the_limits_hold_however_many_orders_come_at_once() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 1_000);
    let outcomes: Vec<String> = std::thread::scope(|scope| {
        let (shop, anna) = (&shop, &anna);
        let threads: Vec<_> = (0..20)
            .map(|_| scope.spawn(move || order(shop, anna, &[(product, 6)]).outcome()))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|answer| answer.expect("an answer")).collect()
    });
    let placed = outcomes.iter().filter(|outcome| *outcome == "201").count();
    assert_eq!(
        placed, 3,
        "three times six units are at most twenty: {outcomes:?}"
    );
    assert_eq!(shop.stock(product), 982);
}

#[test]
fn a_shop_sets_other_limits_or_none_and_what_is_paid_at_once_has_none() {
    let shop = Shop::open_with(|settings| {
        settings.orders.unpaid_orders_max = 0;
        settings.orders.unpaid_units_max = 0;
        settings.orders.per_minute_max = 0;
    });
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 100_000);
    for _ in 0..40 {
        id(order(&shop, &anna, &[(product, 1_000)]));
    }
    drop(shop);
    let shop = Shop::open_with(|settings| settings.orders.payment_window_seconds = 0);
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 100_000);
    for _ in 0..10 {
        id(order(&shop, &anna, &[(product, 1_000)]));
    }
}

#[test]
fn claims_have_the_limits_of_their_sale_and_are_none_of_these() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let terms = json!({"per_user_limit": 50, "payment_window_seconds": 900});
    for _ in 0..6 {
        let product = shop.product(&staff, 100);
        let sale = shop.sale(&staff, product, 60, terms.clone());
        let claim = shop.post(&format!("/api/v1/flash-sales/{sale}/claims"));
        let claim = claim.token(&anna).json(&json!({"quantity": 50})).send();
        assert_eq!(claim.outcome(), "201");
        id(order(&shop, &shop.token(Role::Customer), &[(product, 20)]));
    }
    let product = shop.product(&staff, 100);
    id(order(&shop, &anna, &[(product, 20)]));
}

#[test]
fn orders_that_are_made_and_given_up_in_a_loop_are_slowed_down() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 100);
    let make_and_give_up = |token: &str| {
        let placed = order(&shop, token, &[(product, 1)]);
        if placed.status == 201 {
            let path = format!("/api/v1/orders/{}/cancel", placed.json()["id"]);
            shop.post(&path).token(token).send().expect(200);
        }
        placed
    };
    for _ in 0..30 {
        assert_eq!(make_and_give_up(&anna).outcome(), "201");
    }
    let refused = make_and_give_up(&anna);
    assert_eq!(refused.outcome(), "429 rate_limited");
    assert_eq!(refused.header("retry-after"), Some("2"));
    assert_eq!(
        refused.header("ratelimit-policy"),
        Some("\"orders\";q=30;w=60")
    );
    assert_eq!(refused.header("ratelimit"), Some("\"orders\";r=0;t=2"));
    assert_eq!(make_and_give_up(&shop.token(Role::Customer)).status, 201);
    for _ in 0..40 {
        assert_eq!(make_and_give_up(&staff).outcome(), "201");
    }
    shop.clock.advance(Duration::from_secs(2));
    assert_eq!(make_and_give_up(&anna).outcome(), "201");
    assert_eq!(make_and_give_up(&anna).outcome(), "429 rate_limited");
}
