//! What is shown from the cache is never older than a commit that its reader could know of.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::Shop;

const PRODUCTS: usize = 6;
const CHANGES: i64 = 60;
const READERS: usize = 4;

/// What a reader finds of each product: its price, however it is asked for.
fn prices(answer: &Value) -> HashMap<i64, i64> {
    let one = |item: &Value| Some((item["id"].as_i64()?, item["unit_amount"].as_i64()?));
    match answer["items"].as_array() {
        Some(items) => items.iter().filter_map(one).collect(),
        None => one(answer).into_iter().collect(),
    }
}

#[test]
fn no_read_is_older_than_a_change_that_was_answered_before_it() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let ids: Vec<i64> = (0..PRODUCTS).map(|_| shop.product(&staff, 10)).collect();
    // By product, the last price whose change was answered.
    let answered: Vec<AtomicI64> = (0..PRODUCTS).map(|_| AtomicI64::new(1_000)).collect();
    let is_over = AtomicBool::new(false);
    let all: Vec<String> = ids.iter().map(i64::to_string).collect();
    let batch = format!("/api/v1/products?ids={}", all.join(","));
    let reads = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (shop, ids, answered, is_over, batch) =
                    (&shop, &ids, &answered, &is_over, &batch);
                scope.spawn(move || {
                    let mut reads = 0;
                    while !is_over.load(Ordering::Acquire) || reads < 50 {
                        let path = match (reads + reader) % 4 {
                            0 => batch.clone(),
                            1 => "/api/v1/products?sort=newest".to_owned(),
                            2 => "/api/v1/products/hot".to_owned(),
                            _ => format!("/api/v1/products/{}", ids[reads % PRODUCTS]),
                        };
                        let known: Vec<i64> = answered
                            .iter()
                            .map(|price| price.load(Ordering::Acquire))
                            .collect();
                        let seen = prices(&shop.get(&path).send().expect(200));
                        assert!(!seen.is_empty());
                        for (at, id) in ids.iter().enumerate() {
                            if let Some(price) = seen.get(id) {
                                assert!(*price >= known[at], "{path}: {price} after {}", known[at]);
                            }
                        }
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (shop, ids, answered, staff) = (&shop, &ids, &answered, &staff);
                scope.spawn(move || {
                    for change in 1..=CHANGES {
                        // Each has products of its own, so that prices only grow.
                        for at in (writer..PRODUCTS).step_by(2) {
                            let price = 1_000 + change;
                            let path = format!("/api/v1/products/{}", ids[at]);
                            let asked = shop.ask("PATCH", &path).token(staff);
                            asked
                                .json(&json!({"unit_amount": price}))
                                .send()
                                .expect(200);
                            answered[at].store(price, Ordering::Release);
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().expect("every change was made");
        }
        is_over.store(true, Ordering::Release);
        let reads = readers
            .into_iter()
            .map(|reader| reader.join().expect("no old price"));
        reads.sum::<usize>()
    });
    assert!(reads > 200, "{reads}");
}

#[test]
fn each_way_to_change_a_product_or_a_sale_shows_at_once() {
    let shop = Shop::open_with(|settings| settings.orders.payment_window_seconds = 0);
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let buyer = shop.token(Role::Customer);
    let product = shop.product(&staff, 10);
    let path = format!("/api/v1/products/{product}");
    let first = shop.get(&path).send();
    let etag = first.header("etag").expect("a tag").to_owned();
    assert_eq!(shop.stock(product), 10);
    let same = shop.get(&path).header("If-None-Match", &etag).send();
    assert_eq!(same.status, 304);

    let order = shop.post("/api/v1/orders").token(&buyer);
    let items = json!({"items": [{"product_id": product, "quantity": 3}]});
    let order = order.json(&items).send().expect(201)["id"].clone();
    assert_eq!(shop.stock(product), 7);
    let other = shop.get(&path).header("If-None-Match", &etag).send();
    assert_eq!(other.status, 200);
    let cancel = format!("/api/v1/orders/{order}/cancel");
    shop.post(&cancel).token(&admin).send().expect(200);
    assert_eq!(shop.stock(product), 10);

    let sale = shop.sale(&staff, product, 4, json!({}));
    assert_eq!(shop.stock(product), 6);
    let sale_path = format!("/api/v1/flash-sales/{sale}");
    let remaining = || shop.get(&sale_path).send().expect(200)["remaining"].as_i64();
    assert_eq!(remaining(), Some(4));
    let claim = shop.post(&format!("{sale_path}/claims")).token(&buyer);
    claim.send().expect(201);
    assert_eq!(remaining(), Some(3));
    let stop = format!("{sale_path}/stop");
    shop.post(&stop).token(&staff).send().expect(200);
    assert_eq!(shop.stock(product), 9);
    assert_eq!(shop.get(&sale_path).send().expect(200)["state"], "stopped");

    // A list knows of a new product, of a new price, and of one that is gone.
    let cheapest = || {
        let list = shop.get("/api/v1/products?sort=price_asc&limit=1").send();
        list.expect(200)["items"][0]["id"].as_i64()
    };
    assert_eq!(cheapest(), Some(product));
    let csv = "sku,name,currency,unit_amount,stock\nA,Cup,CNY,5,1\n";
    let import = shop.post("/api/v1/products/import").token(&staff);
    import.raw("text/csv", csv.as_bytes()).send().expect(200);
    let cup = cheapest().expect("the cup");
    assert_ne!(cup, product);
    let patch = shop.ask("PATCH", &path).token(&staff);
    patch.json(&json!({"unit_amount": 1})).send().expect(200);
    assert_eq!(cheapest(), Some(product));
    shop.ask("DELETE", &path).token(&staff).send().expect(204);
    assert_eq!(cheapest(), Some(cup));
    assert_eq!(shop.get(&path).send().status, 404);
    let missing = format!("/api/v1/products?ids={product},{cup}");
    let answer = shop.get(&missing).send().expect(200);
    assert_eq!(answer["missing"], json!([product]));
    assert_eq!(answer["items"][0]["id"].as_i64(), Some(cup));

    // What was not there is there once it is made.
    let next = cup + 1;
    let next_path = format!("/api/v1/products/{next}");
    assert_eq!(shop.get(&next_path).send().status, 404);
    assert_eq!(shop.product(&staff, 1), next);
    assert_eq!(shop.get(&next_path).send().status, 200);
}

#[test]
fn a_tag_takes_back_all_that_shows_a_category_or_sells_a_product() {
    let shop = Shop::open();
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let (fruit, tool) = (shop.product(&staff, 9), shop.product(&staff, 9));
    for (id, category) in [(fruit, "Fruit 水果"), (tool, "Tools")] {
        let patch = shop.ask("PATCH", &format!("/api/v1/products/{id}"));
        let patch = patch.token(&staff).json(&json!({"category": category}));
        patch.send().expect(200);
    }
    let sale = shop.sale(&staff, fruit, 4, json!({}));
    let paths = [
        format!("/api/v1/products/{fruit}"),
        format!("/api/v1/products/{tool}"),
        "/api/v1/products?category=Fruit%20%E6%B0%B4%E6%9E%9C".to_owned(),
        "/api/v1/products?category=Tools".to_owned(),
        "/api/v1/products?sort=newest".to_owned(),
        format!("/api/v1/flash-sales/{sale}"),
    ];
    let loads = || {
        let stats = shop.get("/api/v1/cache/stats").token(&admin).send();
        stats.expect(200)["loads"].as_i64().expect("a number")
    };
    // Which of them have to be loaded again.
    let loaded = || -> Vec<usize> {
        let is_loaded = |path: &String| {
            let before = loads();
            shop.get(path).send().expect(200);
            loads() > before
        };
        let loaded = paths.iter().enumerate();
        loaded
            .filter_map(|(at, path)| is_loaded(path).then_some(at))
            .collect()
    };
    loaded();
    assert_eq!(loaded(), [0usize; 0], "all of it lies ready");
    let invalidate = |tag: &str| {
        let asked = shop.post("/api/v1/cache/invalidate").token(&admin);
        asked.json(&json!({"tag": tag})).send().expect(200);
    };
    invalidate("category:Fruit 水果");
    assert_eq!(loaded(), [0, 2]);
    invalidate(&format!("product:{fruit}"));
    assert_eq!(loaded(), [5]);
    let entry = shop.get(&format!("/api/v1/cache/entries/product:{tool}"));
    let entry = entry.token(&admin).send().expect(200);
    assert_eq!(entry["tags"], json!(["category:Tools"]));
}

#[test]
fn the_figures_tell_reads_and_limits() {
    for is_on in [true, false] {
        let shop = Shop::open_with(|settings| {
            settings.cache.enabled = is_on;
            settings.cache.memory_entries_max = 1_234;
            settings.cache.absent_entries_max = 567;
        });
        let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
        let product = shop.product(&staff, 1);
        let stats = || {
            let stats = shop.get("/api/v1/cache/stats").token(&admin);
            stats.send().expect(200)
        };
        let before = stats()["reads"].as_u64().expect("reads");
        for _ in 0..3 {
            let path = format!("/api/v1/products/{product}");
            shop.get(&path).send().expect(200);
        }
        let stats = stats();
        let memory = if is_on { "on" } else { "off" };
        let level = |at: usize| {
            let level = &stats["levels"][at];
            (level["state"].clone(), level["entries_max"].clone())
        };
        assert_eq!(level(0), (json!(memory), json!(1_234)));
        assert_eq!(level(1), (json!(memory), json!(567)));
        assert_eq!(level(2), (json!("off"), json!(null)));
        if is_on {
            assert!(stats["reads"].as_u64() >= Some(before + 3), "{stats}");
        }
    }
}

#[test]
fn what_a_sale_needs_lies_ready_before_it_begins() {
    let shop = Shop::open();
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let product = shop.product(&staff, 10);
    let starts = shop.clock.now().plus_seconds(600);
    let window = json!({"starts_at": starts, "ends_at": starts.plus_seconds(60)});
    let sale = shop.sale(&staff, product, 5, window);
    let lies_ready = |key: String| {
        let entry = shop.get(&format!("/api/v1/cache/entries/{key}"));
        entry.token(&admin).send().status == 200
    };
    assert!(!lies_ready(format!("flash_sale:{sale}")));
    shop.clock.advance(std::time::Duration::from_secs(595));
    shop.wait_until("both are loaded", || {
        lies_ready(format!("flash_sale:{sale}")) && lies_ready(format!("product:{product}"))
    });
}

#[test]
fn a_command_and_a_task_load_keys_ahead() {
    let shop = Shop::open();
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let (one, other) = (shop.product(&staff, 1), shop.product(&staff, 1));
    let lies_ready = |id: i64| {
        let entry = shop.get(&format!("/api/v1/cache/entries/product:{id}"));
        entry.token(&admin).send().status == 200
    };
    let key = shop.post("/api/v1/api-keys").token(&admin);
    let key = key
        .json(&json!({"name": "warm", "scopes": ["cache"]}))
        .send();
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("key");
    let key = crate::support::text(&key.expect(201)["key"]);
    std::fs::write(&file, format!("{key}\n")).expect("written");
    let warm = |keys: &[String], file: &std::path::Path| {
        std::process::Command::new(env!("CARGO_BIN_EXE_onrush"))
            .args([
                "cache",
                "warm",
                "--json",
                "--address",
                &shop.address.to_string(),
            ])
            .arg("--api-key-file")
            .arg(file)
            .args(keys)
            .output()
            .expect("it runs")
    };
    assert!(!lies_ready(one));
    let keys = [
        format!("product:{one}"),
        "product:999".into(),
        "moon:1".into(),
    ];
    let done = warm(&keys, &file);
    let told: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(told, json!({"warmed": 1, "failed": 1, "unknown": 1}));
    assert!(lies_ready(one) && !lies_ready(other));
    std::fs::write(&file, "nothing").expect("written");
    let refused = warm(&keys, &file);
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("401"), "{told}");

    let task = json!({"name": "warm_cache", "args": {"keys": [format!("product:{other}")]}});
    let made = shop.post("/api/v1/tasks").token(&admin).json(&task).send();
    let path = format!(
        "/api/v1/tasks/{}",
        crate::support::text(&made.expect(202)["id"])
    );
    shop.wait_until("the task is completed", || {
        shop.get(&path).token(&admin).send().expect(200)["state"] == "completed"
    });
    assert!(lies_ready(other));
}

#[test]
fn ids_that_were_never_given_out_need_no_statement_and_new_ones_show_at_once() {
    let shop = Shop::open();
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let statements = || {
        let list = shop
            .get("/api/v1/system/slow-queries?sort=calls&limit=200")
            .token(&admin)
            .send()
            .expect(200);
        let items = list["items"].as_array().expect("a list");
        let of_shop = |name: &str| name.starts_with("product.") || name.starts_with("flash_sale.");
        let calls = items
            .iter()
            .filter(|item| item["name"].as_str().is_some_and(of_shop))
            .map(|item| item["calls"].as_u64().expect("a number"));
        calls.sum::<u64>()
    };
    let product = shop.product(&staff, 10);
    let sale = shop.sale(&staff, product, 4, json!({}));
    // The first finds out how far the ids go.
    shop.get(&format!("/api/v1/products/{}", product + 1))
        .send()
        .expect(404);
    let next_sale = format!("/api/v1/flash-sales/{}", sale + 1);
    shop.get(&next_sale).send().expect(404);
    let before = statements();
    for id in 1..=300 {
        let id = id * 1_000_003;
        shop.get(&format!("/api/v1/products/{id}"))
            .send()
            .expect(404);
        shop.get(&format!("/api/v1/flash-sales/{id}"))
            .send()
            .expect(404);
        let batch = format!("/api/v1/products?ids={id},{},{}", id + 1, i64::MAX);
        assert_eq!(shop.get(&batch).send().expect(200)["items"], json!([]));
    }
    // The shop itself looks at its sales now and then.
    let more = statements() - before;
    assert!(more < 20, "{more} statements for 900 requests");

    for _ in 0..20 {
        let next = product + 1;
        let made = shop.product(&staff, 3);
        assert!(made >= next);
        assert_eq!(shop.stock(made), 3);
    }
    let made = shop.sale(&staff, product + 1, 1, json!({}));
    let path = format!("/api/v1/flash-sales/{made}");
    shop.get(&path).send().expect(200);
}
