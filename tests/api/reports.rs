//! Sales reports, and what the shop does again and again by itself.

use std::time::Duration;

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::{Answer, Shop, text};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);

fn order(shop: &Shop, customer: &str, product: i64, quantity: i64) -> String {
    let body = json!({"items": [{"product_id": product, "quantity": quantity}]});
    let answer = shop.post("/api/v1/orders").token(customer).json(&body);
    answer.send().expect(201)["id"].to_string()
}

fn pay(shop: &Shop, customer: &str, order: &str) {
    let path = format!("/api/v1/orders/{order}/pay");
    shop.post(&path).token(customer).send().expect(200);
}

/// A paid one.
fn bought(shop: &Shop, customer: &str, product: i64, quantity: i64) -> String {
    let id = order(shop, customer, product, quantity);
    pay(shop, customer, &id);
    id
}

fn ask(shop: &Shop, staff: &str, more: &str) -> Answer {
    let path = format!("/api/v1/reports/sales?start_date=2026-11-11&end_date=2026-11-12{more}");
    shop.get(&path).token(staff).send()
}

fn have_made(shop: &Shop, staff: &str, more: Value) -> Value {
    let mut body = json!({"start_date": "2026-11-11", "end_date": "2026-11-12"});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    let answer = shop.post("/api/v1/reports/sales").token(staff).json(&body);
    answer.send().expect(202)
}

/// Waits until a task is done; answers what it left.
#[track_caller]
fn result_of(shop: &Shop, admin: &str, id: &str) -> Value {
    let path = format!("/api/v1/tasks/{id}");
    let look = || shop.get(&path).token(admin).send().expect(200);
    shop.wait_until("the task ends", || {
        ["completed", "discarded", "cancelled"].contains(&text(&look()["state"]).as_str())
    });
    let task = look();
    assert_eq!(task["state"], "completed", "{task}");
    task["result"].clone()
}

/// Runs one of the shop's own tasks.
#[track_caller]
fn run(shop: &Shop, admin: &str, name: &str) -> Value {
    let answer = shop.post("/api/v1/tasks").token(admin);
    let made = answer.json(&json!({"name": name})).send().expect(202);
    result_of(shop, admin, &text(&made["id"]))
}

#[test]
fn a_report_is_made_once_kept_for_an_hour_and_read_as_json_and_csv() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let customer = shop.token(Role::Customer);
    let product = shop.product(&staff, 100);
    bought(&shop, &customer, product, 2);
    let cancel = |id: &str| {
        let path = format!("/api/v1/orders/{id}/cancel");
        shop.post(&path).token(&customer).send().expect(200);
    };
    cancel(&order(&shop, &customer, product, 5));
    shop.clock.advance(DAY / 4);
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    // Nobody has paid the one; the other's money goes back.
    order(&shop, &customer, product, 4);
    cancel(&bought(&shop, &customer, product, 7));
    assert_eq!(ask(&shop, &staff, "").outcome(), "404 report_not_ready");

    let made = have_made(&shop, &staff, json!({}));
    assert_eq!(made["outcome"], "enqueued");
    let left = result_of(&shop, &admin, &text(&made["id"]));
    assert_eq!(left["report"], "sales_report:2026-11-11:2026-11-12");
    let answer = shop.get(&text(&made["report"])).token(&staff).send();
    let etag = answer.header("etag").expect("a tag").to_owned();
    let report = answer.expect(200);
    let figures = json!({"currency": "CNY", "orders": 1, "units": 2, "gross_amount": 2_000,
        "unpaid": {"orders": 1, "units": 4, "gross_amount": 4_000},
        "refund_due": {"orders": 1, "units": 7, "gross_amount": 7_000}});
    assert_eq!(report["totals"], json!([figures]));
    assert_eq!(report["time_zone"], "UTC");
    assert_eq!(
        (&report["days"][0]["date"], &report["days"][0]["units"]),
        (&json!("2026-11-11"), &json!(2))
    );
    assert_eq!(report["days"][1]["orders"], 0, "each day has its row");
    assert_eq!(
        report["top_by_units"],
        json!([{"rank": 1, "currency": "CNY", "product_id": product, "name": "Mug 杯子",
            "units": 2, "gross_amount": 2_000}])
    );
    assert_eq!(report["top_by_amount"], report["top_by_units"]);
    let states = report["states"].as_array().expect("a list");
    assert!(
        states.contains(
            &json!({"state": "cancelled", "currency": "CNY", "orders": 1, "amount": 5_000})
        )
    );
    let path = text(&made["report"]);
    let again = shop.get(&path).token(&staff).header("If-None-Match", &etag);
    assert_eq!(again.send().status, 304);

    let csv = ask(&shop, &staff, "&format=csv");
    assert_eq!(csv.status, 200);
    assert!(
        csv.header("content-type")
            .expect("a type")
            .starts_with("text/csv")
    );
    assert!(
        csv.header("content-disposition")
            .expect("a name")
            .contains("2026-11-11")
    );
    assert!(
        csv.body.contains(
            "\r\ntotal,,CNY,,,,,,1,2,2000,20.00\r\nunpaid,,CNY,,,,,,1,4,4000,40.00\r\n\
             refund_due,,CNY,,,,,,1,7,7000,70.00\r\n"
        ),
        "{}",
        csv.body
    );
    assert!(
        csv.body.starts_with("\u{feff}section,date,"),
        "{}",
        csv.body
    );
    let bare = ask(&shop, &staff, "&format=csv&bom=false");
    assert_eq!(csv.body.strip_prefix('\u{feff}'), Some(&*bare.body));
    let etag = csv.header("etag").expect("a tag").to_owned();
    let path = format!("{path}&format=csv");
    let again = shop.get(&path).token(&staff).header("If-None-Match", &etag);
    assert_eq!(again.send().status, 304);

    let output = std::process::Command::new(env!("CARGO_BIN_EXE_onrush"))
        .arg("--data-dir")
        .arg(shop.data_dir())
        .args([
            "report",
            "sales",
            "--from",
            "2026-11-11",
            "--to",
            "2026-11-12",
        ])
        .output()
        .expect("it runs");
    let shown = String::from_utf8_lossy(&output.stdout);
    let total = shown.lines().find(|line| line.contains("20.00"));
    let total: Vec<&str> = total.expect("a total").split_whitespace().collect();
    assert_eq!(
        total[total.len() - 4..total.len() - 1],
        ["20.00", "40.00", "70.00"]
    );

    // Asked for again it is not made again, unless somebody says so.
    bought(&shop, &customer, product, 1);
    let made = have_made(&shop, &staff, json!({}));
    assert_eq!(
        result_of(&shop, &admin, &text(&made["id"]))["was_ready"],
        true
    );
    assert_eq!(ask(&shop, &staff, "").expect(200), report);
    let made = have_made(&shop, &staff, json!({"refresh": true}));
    result_of(&shop, &admin, &text(&made["id"]));
    assert_eq!(ask(&shop, &staff, "").expect(200)["totals"][0]["units"], 3);
    shop.clock.advance(HOUR);
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    assert_eq!(ask(&shop, &staff, "").outcome(), "404 report_not_ready");
    assert_eq!(run(&shop, &admin, "clean_expired_cache")["reports"], 1);
}

#[test]
fn days_that_are_none_are_refused_and_a_waiting_report_is_not_begun_twice() {
    let shop = Shop::open_with(|settings| settings.tasks.workers = 0);
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let made = |body: Value| {
        let answer = shop.post("/api/v1/reports/sales").token(&staff).json(&body);
        answer.send().outcome()
    };
    for (first, last) in [
        ("2026-11-12", "2026-11-11"),
        ("2026-02-30", "2026-03-01"),
        ("2000-01-01", "2026-11-11"),
        ("yesterday", "today"),
    ] {
        let body = json!({"start_date": first, "end_date": last});
        assert_eq!(made(body), "422 validation_failed", "{first} {last}");
        let path = format!("/api/v1/reports/sales?start_date={first}&end_date={last}");
        let read = shop.get(&path).token(&staff).send();
        assert_eq!(read.outcome(), "422 validation_failed", "{first} {last}");
    }
    assert_eq!(
        ask(&shop, &staff, "&format=xls").outcome(),
        "422 validation_failed"
    );
    let task = json!({"name": "generate_sales_report",
        "args": {"start_date": "2026-11-12", "end_date": "2026-11-11"}});
    let task = shop.post("/api/v1/tasks").token(&admin).json(&task).send();
    assert_eq!(
        task.json()["errors"][0]["field"],
        "args.end_date",
        "{task:?}"
    );
    let first = have_made(&shop, &staff, json!({}));
    let second = have_made(&shop, &staff, json!({"refresh": true}));
    assert_eq!(
        (&second["id"], &second["outcome"]),
        (&first["id"], &json!("duplicate"))
    );
}

#[test]
pub fn days_begin_at_the_shops_own_midnight() {
    let shop = Shop::open_with(|settings| {
        settings.reports.time_zone = onrush::zone::Zone::named("Asia/Shanghai").expect("a zone");
    });
    let staff = shop.token(Role::Staff);
    let customer = shop.token(Role::Customer);
    let product = shop.product(&staff, 100);
    shop.clock.advance(HOUR * 16 - Duration::from_secs(1));
    bought(&shop, &customer, product, 1);
    shop.clock.advance(Duration::from_secs(1));
    bought(&shop, &customer, product, 2);
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let made = have_made(&shop, &staff, json!({}));
    result_of(&shop, &admin, &text(&made["id"]));
    let report = ask(&shop, &staff, "").expect(200);
    let units: Vec<&Value> = report["days"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|day| &day["units"])
        .collect();
    assert_eq!(units, [&json!(1), &json!(2)], "{report}");
}

#[test]
pub fn popularity_is_what_was_ordered_within_a_day_and_an_imported_one_until_then() {
    let shop = Shop::open_with(|settings| {
        settings.schedules.enabled = false;
        settings.orders.unpaid_units_max = 0;
    });
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let csv = "sku,name,price,currency,stock,popularity\nA,Mug,7,CNY,50,900\nB,Pen,1,CNY,50,800\nC,Cup,1,CNY,50,0\n";
    let import = shop.post("/api/v1/products/import").token(&staff);
    import.raw("text/csv", csv.as_bytes()).send().expect(200);
    let hot = || -> Vec<(String, i64)> {
        let page = shop.get("/api/v1/products/hot").send().expect(200);
        let items = page["items"].as_array().expect("a list");
        let row = |item: &Value| {
            (
                text(&item["sku"]),
                item["popularity"].as_i64().expect("a number"),
            )
        };
        items.iter().map(row).collect()
    };
    let is = |expected: [(&str, i64); 3], when: &str| {
        let expected = expected.map(|(sku, popularity)| (sku.to_owned(), popularity));
        assert_eq!(hot(), expected, "{when}");
    };
    let imported = [("A", 900), ("B", 800), ("C", 0)];
    let page = shop.get("/api/v1/products/hot").send().expect(200);
    let id = |at: usize| page["items"][at]["id"].as_i64().expect("an id");
    let (pen, cup) = (id(1), id(2));
    let customer = shop.token(Role::Customer);
    run(&shop, &admin, "update_product_popularity");
    is(imported, "no order yet");
    order(&shop, &customer, cup, 3);
    order(&shop, &customer, pen, 5);
    let counted = run(&shop, &admin, "update_product_popularity");
    assert_eq!(counted["changed"], 1, "own orders from the first one on");
    is([("A", 900), ("B", 800), ("C", 3)], "the higher one stays");
    let many = order(&shop, &customer, cup, 10);
    let more = order(&shop, &customer, pen, 30);
    run(&shop, &admin, "update_product_popularity");
    is([("A", 900), ("B", 800), ("C", 13)], "the shop's first day");
    for given_up in [many, more] {
        let cancel = format!("/api/v1/orders/{given_up}/cancel");
        shop.post(&cancel).token(&customer).send().expect(200);
    }
    run(&shop, &admin, "update_product_popularity");
    is(
        [("A", 900), ("B", 800), ("C", 3)],
        "what was given up does not count, on the first day either",
    );

    shop.clock.advance(DAY + HOUR);
    let (customer, admin) = (shop.token(Role::Customer), shop.token(Role::Admin));
    run(&shop, &admin, "update_product_popularity");
    is(
        [("A", 900), ("B", 800), ("C", 3)],
        "nothing was ordered within the day",
    );
    order(&shop, &customer, pen, 2);
    order(&shop, &customer, cup, 4);
    let given_up = order(&shop, &customer, pen, 9);
    let cancel = format!("/api/v1/orders/{given_up}/cancel");
    shop.post(&cancel).token(&customer).send().expect(200);
    let counted = run(&shop, &admin, "update_product_popularity");
    assert_eq!(counted["changed"], 3);
    is([("C", 4), ("B", 2), ("A", 0)], "the shop's own orders");
    let counted = run(&shop, &admin, "update_product_popularity");
    assert_eq!(counted["changed"], 0, "nothing new, nothing written");
}

#[test]
fn hot_products_are_there_on_the_day_of_the_first_sale() {
    let shop = Shop::open_with(|settings| settings.schedules.enabled = false);
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let products = [(); 3].map(|()| shop.product(&staff, 50));
    let hot = || -> Vec<(i64, i64)> {
        let page = shop.get("/api/v1/products/hot").send().expect(200);
        let items = page["items"].as_array().expect("a list");
        let number = |value: &Value| value.as_i64().expect("a number");
        let row = |item: &Value| (number(&item["id"]), number(&item["popularity"]));
        items.iter().map(row).collect()
    };
    let [first, second, third] = products;
    assert_eq!(
        hot(),
        [(third, 0), (second, 0), (first, 0)],
        "and cached so"
    );
    for _ in 0..7 {
        order(&shop, &shop.token(Role::Customer), first, 1);
    }
    order(&shop, &shop.token(Role::Customer), second, 2);
    let counted = run(&shop, &admin, "update_product_popularity");
    assert_eq!(counted, json!({"changed": 2}));
    assert_eq!(hot(), [(first, 7), (second, 2), (third, 0)]);
    let read = shop.get(&format!("/api/v1/products/{first}")).send();
    assert_eq!(read.expect(200)["popularity"], 7);

    // A second hour of the same day goes on counting, from nothing that an import brought.
    shop.clock.advance(HOUR);
    order(&shop, &shop.token(Role::Customer), third, 9);
    let admin = shop.token(Role::Admin);
    run(&shop, &admin, "update_product_popularity");
    assert_eq!(hot(), [(third, 9), (first, 7), (second, 2)]);
}

#[test]
fn last_use_is_gathered_and_written_by_the_task_and_at_the_stop() {
    // A small memory: callers leave it before their use is written.
    let mut shop = Shop::open_with(|settings| {
        settings.auth.callers_cached_max = 4;
        settings.schedules.enabled = false;
    });
    let users: Vec<(i64, String)> = (0..5)
        .map(|number| {
            let email = format!("u{number}@example.com");
            let id = shop.account(&email, Role::Customer);
            (id, shop.login(&email))
        })
        .collect();
    let use_all = |shop: &Shop| {
        for (_, token) in &users {
            shop.get("/api/v1/me").token(token).send().expect(200);
        }
    };
    let seen = |shop: &Shop| -> Vec<Value> {
        let staff = shop.token(Role::Staff);
        let look = |(id, _): &(i64, String)| {
            let user = shop
                .get(&format!("/api/v1/users/{id}"))
                .token(&staff)
                .send();
            user.expect(200)["last_seen_at"].clone()
        };
        users.iter().map(look).collect()
    };
    shop.clock.advance(HOUR);
    use_all(&shop);
    let admin = shop.token(Role::Admin);
    assert_eq!(seen(&shop), [const { Value::Null }; 5], "not yet");
    let at = json!(shop.clock.now());
    run(&shop, &admin, "sync_user_activity");
    assert_eq!(seen(&shop), [(); 5].map(|()| at.clone()));

    shop.clock.advance(HOUR);
    let at = json!(shop.clock.now());
    let (id, anna) = &users[0];
    shop.get("/api/v1/me").token(anna).send().expect(200);
    shop.restart();
    let staff = shop.token(Role::Staff);
    let user = shop
        .get(&format!("/api/v1/users/{id}"))
        .token(&staff)
        .send();
    assert_eq!(user.expect(200)["last_seen_at"], at, "written at the stop");
}

#[test]
fn holds_expire_by_the_task_too_and_what_is_kept_for_a_time_goes() {
    let shop = Shop::open_with(|settings| {
        settings.orders.expiry_interval_ms = 3_600_000;
        settings.flash_sales.sweep_interval_ms = 3_600_000;
        // What it would drop by itself is to be dropped by hand.
        settings.schedules.enabled = false;
    });
    let staff = shop.token(Role::Staff);
    let customer = shop.token(Role::Customer);
    let product = shop.product(&staff, 10);
    let body = json!({"items": [{"product_id": product, "quantity": 4}]});
    let ask = shop.post("/api/v1/orders").token(&customer).json(&body);
    ask.header("Idempotency-Key", "k").send().expect(201);
    assert_eq!(shop.stock(product), 6);
    let admin = shop.token(Role::Admin);
    assert_eq!(run(&shop, &admin, "expire_holds")["expired"], 0);
    shop.clock.advance(Duration::from_secs(901));
    assert_eq!(run(&shop, &admin, "expire_holds")["expired"], 1);
    assert_eq!(shop.stock(product), 10);
    assert_eq!(run(&shop, &admin, "clean_expired_cache")["sessions"], 0);
    shop.clock.advance(DAY * 31);
    let admin = shop.token(Role::Admin);
    let dropped = run(&shop, &admin, "clean_expired_cache");
    assert_eq!(
        dropped,
        // The product whose stock was read is out of date in the cache.
        json!({"sessions": 3, "registrations": 0, "idempotency_keys": 1, "known_places": 0, "reports": 0, "cache": 1})
    );
}
