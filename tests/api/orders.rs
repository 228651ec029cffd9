//! Orders: taking units, states, idempotency, expiry and late payment over HTTP.

use std::time::Duration;

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::{Answer, Shop, text};

fn order(shop: &Shop, token: &str, lines: &Value) -> Answer {
    let body = json!({ "items": lines });
    shop.post("/api/v1/orders").token(token).json(&body).send()
}

#[test]
fn an_order_takes_every_line_or_none_and_sums_two_of_one_product() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let (a, b) = (shop.product(&staff, 5), shop.product(&staff, 2));
    let line = |product: i64, quantity: i64| json!({"product_id": product, "quantity": quantity});
    let made = order(&shop, &anna, &json!([line(a, 1), line(b, 1), line(a, 2)])).expect(201);
    assert_eq!(made["items"].as_array().expect("a list").len(), 2);
    assert_eq!(made["total_amount"], 4_000);
    assert_eq!(made["state"], "pending_payment");
    assert_eq!((shop.stock(a), shop.stock(b)), (2, 1));
    let short = order(&shop, &anna, &json!([line(a, 1), line(b, 2)]));
    assert_eq!(short.outcome(), "409 insufficient_stock");
    let summed = order(&shop, &anna, &json!([line(b, 1), line(b, 1)]));
    assert_eq!(
        summed.outcome(),
        "409 insufficient_stock",
        "each alone would fit"
    );
    for lines in [
        json!([]),
        json!([line(a, 0)]),
        json!([line(a, -1)]),
        json!([line(a, 4_294_967_296)]),
        json!([line(999_999, 1)]),
        json!([line(a, 1), line(a, 1_000)]),
        Value::Array(vec![line(a, 1); 101]),
    ] {
        let answer = order(&shop, &anna, &lines);
        assert_eq!(answer.outcome(), "422 validation_failed", "{lines}");
    }
    assert_eq!((shop.stock(a), shop.stock(b)), (2, 1), "nothing was taken");
}

#[test]
fn one_key_makes_one_order_however_often_and_however_concurrently_it_is_sent() {
    let mut shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 100);
    let body = json!({"items": [{"product_id": product, "quantity": 1}]});
    let send = |shop: &Shop, token: &str, key: &str, body: &Value| {
        shop.post("/api/v1/orders")
            .token(token)
            .header("Idempotency-Key", key)
            .json(body)
            .send()
    };
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let (shop, body, anna) = (&shop, &body, &anna);
        let threads: Vec<_> = (0..30)
            .map(|_| scope.spawn(move || send(shop, anna, "k-1", body)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect()
    });
    assert!(answers.iter().all(|answer| answer.status == 201));
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
    let fresh = answers
        .iter()
        .filter(|answer| answer.header("idempotent-replayed").is_none());
    assert_eq!(fresh.count(), 1);
    assert_eq!(shop.stock(product), 99);
    let other = json!({"items": [{"product_id": product, "quantity": 2}]});
    assert_eq!(
        send(&shop, &anna, "k-1", &other).outcome(),
        "422 validation_failed"
    );
    let ben = shop.token(Role::Customer);
    assert_eq!(
        send(&shop, &ben, "k-1", &body).status,
        201,
        "keys are each caller's own"
    );
    assert_eq!(shop.stock(product), 98);
    shop.restart();
    let after = send(&shop, &anna, "k-1", &body);
    assert_eq!((after.status, after.body), (201, answers[0].body.clone()));
    for bad in ["", &"k".repeat(256)] {
        assert_eq!(
            send(&shop, &anna, bad, &body).outcome(),
            "422 validation_failed"
        );
    }
    shop.clock.advance(Duration::from_secs(86_401));
    let anna = {
        let me = shop.get("/api/v1/me").token(&anna).send().expect(200);
        shop.login(&text(&me["email"]))
    };
    assert_eq!(send(&shop, &anna, "k-1", &body).status, 201);
    shop.wait_until("the unpaid ones expire", || shop.stock(product) == 99);
}

#[test]
fn unpaid_orders_expire_and_a_late_payment_is_never_paid_without_units() {
    let shop = Shop::open();
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 2);
    let place = || {
        let lines = json!([{"product_id": product, "quantity": 1}]);
        order(&shop, &anna, &lines).expect(201)["id"].to_string()
    };
    let state = |id: &str| {
        let answer = shop
            .get(&format!("/api/v1/orders/{id}"))
            .token(&anna)
            .send();
        text(&answer.expect(200)["state"])
    };
    let pay = |id: &str| {
        let answer = shop
            .post(&format!("/api/v1/orders/{id}/pay"))
            .token(&anna)
            .send();
        text(&answer.expect(200)["state"])
    };
    let (first, second) = (place(), place());
    assert_eq!(shop.stock(product), 0);
    shop.clock.advance(Duration::from_secs(901));
    shop.wait_until("both expire", || shop.stock(product) == 2);
    assert_eq!(
        (state(&first), state(&second)),
        ("expired".to_owned(), "expired".to_owned())
    );
    assert_eq!(pay(&first), "paid", "units are there: taken again");
    assert_eq!(shop.stock(product), 1);
    let third = place();
    assert_eq!(pay(&third), "paid");
    assert_eq!(
        pay(&second),
        "refund_due",
        "no units left: the money goes back"
    );
    assert_eq!(pay(&second), "refund_due", "told again, the same");
    let cancel = |id: &str| {
        shop.post(&format!("/api/v1/orders/{id}/cancel"))
            .token(&anna)
            .send()
    };
    assert_eq!(text(&cancel(&third).expect(200)["state"]), "refund_due");
    assert_eq!(cancel(&third).outcome(), "409 invalid_state");
    assert_eq!(shop.stock(product), 1);
    let mine = |query: &str| {
        let answer = shop
            .get(&format!("/api/v1/orders{query}"))
            .token(&anna)
            .send();
        answer.expect(200)["items"]
            .as_array()
            .expect("a list")
            .len()
    };
    assert_eq!(
        (mine(""), mine("?state=refund_due"), mine("?state=paid")),
        (3, 2, 1)
    );
    let all = shop
        .get("/api/v1/orders?state=refund_due")
        .token(&staff)
        .send()
        .expect(200);
    assert_eq!(
        all["items"][0]["items"][0]["product_id"], product,
        "with its lines"
    );
    let bad = shop.get("/api/v1/orders?state=lost").token(&staff).send();
    assert_eq!(bad.outcome(), "422 validation_failed");
    let with = shop.get("/api/v1/me").token(&anna).send().expect(200)["id"].to_string();
    let user = shop
        .get(&format!("/api/v1/users/{with}?include=orders"))
        .token(&staff)
        .send()
        .expect(200);
    let orders = user["orders"].as_array().expect("orders");
    assert_eq!(orders.len(), 3);
    assert!(orders.is_sorted_by_key(|order| -order["id"].as_i64().expect("an id")));
    assert_eq!(orders[0]["items"][0]["product_id"], product);
    let nobody = shop.account("nobody@example.com", Role::Customer);
    let user = shop
        .get(&format!("/api/v1/users/{nobody}?include=orders"))
        .token(&staff)
        .send()
        .expect(200);
    assert_eq!(
        (&user["id"], &user["orders"]),
        (&json!(nobody), &json!([])),
        "a user without orders"
    );
    let none = shop
        .get("/api/v1/users/999999?include=orders")
        .token(&staff)
        .send();
    assert_eq!(none.status, 404);
}

#[test]
fn payments_can_be_left_to_the_payment_provider() {
    let shop = Shop::open_with(|settings| settings.orders.customers_confirm_payment = false);
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 1);
    let lines = json!([{"product_id": product, "quantity": 1}]);
    let id = order(&shop, &anna, &lines).expect(201)["id"].to_string();
    let path = format!("/api/v1/orders/{id}/pay");
    assert_eq!(
        shop.post(&path).token(&anna).send().outcome(),
        "403 forbidden"
    );
    assert_eq!(shop.post(&path).token(&staff).send().status, 200);
}
