//! A request that was done under a key is answered as then, whatever has become of the world since.

use std::time::Duration;

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::{Answer, Shop, text};

fn same(answer: &Answer, first: &str, when: &str) {
    assert_eq!(answer.outcome(), "201", "{when}: {answer:?}");
    assert_eq!(answer.header("idempotent-replayed"), Some("true"), "{when}");
    assert_eq!(answer.body, first, "{when}");
}

#[test]
pub fn a_claim_by_product_is_answered_as_then_when_its_sale_is_over_or_another_has_begun() {
    let mut shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let (product, other) = (shop.product(&staff, 20), shop.product(&staff, 20));
    let sale = shop.sale(&staff, product, 3, json!({}));
    shop.sale(&staff, other, 3, json!({}));
    let claim = |shop: &Shop, token: &str, path: &str, quantity: i64| {
        let ask = shop.post(path).token(token).header("Idempotency-Key", "k");
        ask.json(&json!({"quantity": quantity})).send()
    };
    let path = format!("/seckill/{product}");
    let first = claim(&shop, &anna, &path, 1);
    assert_eq!(first.outcome(), "201");
    let first = first.body;
    same(&claim(&shop, &anna, &path, 1), &first, "at once");
    for _ in 0..3 {
        let _counts = shop.post(&path).token(&anna).send();
    }
    let refused = shop.post(&path).token(&anna).send();
    assert_eq!(refused.outcome(), "429 rate_limited");
    same(&claim(&shop, &anna, &path, 1), &first, "too many attempts");

    // Over by the clock, before and after it was closed.
    shop.clock.advance(Duration::from_secs(3_601));
    same(&claim(&shop, &anna, &path, 1), &first, "over");
    shop.wait_until("it is closed", || shop.stock(product) == 19);
    same(&claim(&shop, &anna, &path, 1), &first, "closed");
    let by_sale = format!("/api/v1/flash-sales/{sale}/claims");
    same(&claim(&shop, &anna, &by_sale, 1), &first, "the other path");

    // What it does not stand for.
    let ben = shop.token(Role::Customer);
    assert_eq!(claim(&shop, &ben, &path, 1).outcome(), "404 sale_not_found");
    let reused = "422 validation_failed";
    assert_eq!(claim(&shop, &anna, &path, 2).outcome(), reused);
    let elsewhere = format!("/seckill/{other}");
    assert_eq!(claim(&shop, &anna, &elsewhere, 1).outcome(), reused);
    let no_key = shop.post(&path).token(&anna).send();
    assert_eq!(no_key.outcome(), "404 sale_not_found");

    // Another sale of the product: to come, running, sold out, stopped.
    let (now, staff) = (shop.clock.now(), shop.token(Role::Staff));
    let next = shop.sale(
        &staff,
        product,
        1,
        json!({"starts_at": now.plus_seconds(60), "ends_at": now.plus_seconds(600)}),
    );
    same(&claim(&shop, &anna, &path, 1), &first, "the next to come");
    shop.clock.advance(Duration::from_secs(61));
    same(&claim(&shop, &anna, &path, 1), &first, "the next runs");
    assert_eq!(claim(&shop, &ben, &path, 1).outcome(), "201");
    same(&claim(&shop, &anna, &path, 1), &first, "sold out");
    let stop = format!("/api/v1/flash-sales/{next}/stop");
    shop.post(&stop).token(&staff).send().expect(200);
    let delete = format!("/api/v1/products/{product}");
    shop.ask("DELETE", &delete).token(&staff).send().expect(204);
    same(
        &claim(&shop, &anna, &path, 1),
        &first,
        "the product is gone",
    );
    shop.restart();
    same(&claim(&shop, &anna, &path, 1), &first, "started again");

    // Kept for a day, counted from the answer.
    shop.clock.advance(Duration::from_secs(86_400));
    let anna = {
        let me = shop.get("/api/v1/me").token(&anna).send().expect(200);
        shop.login(&text(&me["email"]))
    };
    assert_eq!(
        claim(&shop, &anna, &path, 1).outcome(),
        "404 sale_not_found"
    );
}

#[test]
fn an_order_is_answered_as_then_whatever_its_buyer_may_now() {
    let shop = Shop::open_with(|settings| {
        settings.orders.unpaid_orders_max = 1;
        settings.orders.per_minute_max = 3;
    });
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 1);
    let order = |key: &str| {
        let ask = shop.post("/api/v1/orders").token(&anna);
        let ask = ask.header("Idempotency-Key", key);
        ask.json(&json!({"items": [{"product_id": product, "quantity": 1}]}))
            .send()
    };
    let first = order("k");
    assert_eq!(first.outcome(), "201");
    let first = first.body;
    same(&order("k"), &first, "at the limit of unpaid orders");
    let delete = format!("/api/v1/products/{product}");
    shop.ask("DELETE", &delete).token(&staff).send().expect(204);
    same(&order("k"), &first, "the product is gone");
    assert_eq!(order("other").outcome(), "429 rate_limited");
    same(&order("k"), &first, "too many orders at once");
}

#[test]
fn tasks_are_answered_as_then_when_their_time_is_over() {
    let shop = Shop::open();
    let admin = shop.token(Role::Admin);
    for path in ["/api/v1/tasks", "/api/v1/tasks/batch"] {
        let expires_at = shop.clock.now().plus_seconds(60);
        let task = json!({"name": "x", "queue": "q", "args": {}, "expires_at": expires_at});
        let body = match path {
            "/api/v1/tasks" => task,
            _ => json!({"tasks": [task]}),
        };
        let enqueue = |key: &str, body: &Value| {
            let ask = shop.post(path).token(&admin);
            ask.header("Idempotency-Key", key).json(body).send()
        };
        let first = enqueue(path, &body);
        assert_eq!(first.outcome(), "202");
        shop.clock.advance(Duration::from_secs(61));
        let again = enqueue(path, &body);
        assert_eq!((again.status, &again.body), (202, &first.body), "{path}");
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        assert_eq!(enqueue("new", &body).outcome(), "422 validation_failed");
    }
}
