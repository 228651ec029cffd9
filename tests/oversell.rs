//! Never oversold, never undersold: crowds of buyers with a seed, repeated keys, units that come
//! back in the middle, and a restart, against the real server.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use onrush::auth::Role;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::support::{Shop, text};

/// Buyers act through a key that acts for them, so that each needs no login.
fn shop_with_buyers(count: usize) -> (Shop, String, String, Vec<i64>) {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    shop.account("till@example.com", Role::Admin);
    let admin = shop.login("till@example.com");
    let key = shop
        .post("/api/v1/api-keys")
        .token(&admin)
        .json(&json!({"name": "till", "scopes": ["act_as", "orders"]}))
        .send()
        .expect(201);
    let buyers = (0..count)
        .map(|number| shop.account(&format!("buyer{number}@example.com"), Role::Customer))
        .collect();
    (shop, staff, text(&key["key"]), buyers)
}

#[test]
pub fn with_more_willing_buyers_than_units_exactly_all_units_are_sold() {
    const UNITS: i64 = 150;
    let (mut shop, staff, key, buyers) = shop_with_buyers(200);
    let product = shop.product(&staff, 400);
    let sale = shop.sale(
        &staff,
        product,
        UNITS,
        json!({"attempts_per_minute": 1_000, "payment_window_seconds": 600}),
    );
    let path = format!("/api/v1/flash-sales/{sale}/claims");
    let seed: u64 = rand::rng().random();
    let mut orders: HashMap<i64, i64> = HashMap::new();
    for round in 0..3 {
        let next = AtomicUsize::new(0);
        let won: Vec<(i64, i64)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|thread| {
                    let (shop, key, path, buyers, next) = (&shop, &key, &path, &buyers, &next);
                    scope.spawn(move || {
                        let mut random = StdRng::seed_from_u64(seed ^ (round * 100 + thread));
                        let mut won = Vec::new();
                        while let Some(buyer) = buyers.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let keyed = random.random_bool(0.5);
                            let mut orders = HashSet::new();
                            for _ in 0..random.random_range(1..=3) {
                                let mut ask = shop
                                    .post(path)
                                    .token(key)
                                    .header("X-User-Id", &buyer.to_string());
                                if keyed {
                                    ask =
                                        ask.header("Idempotency-Key", &format!("{round}-{buyer}"));
                                }
                                let answer = ask.send();
                                match answer.status {
                                    201 => {
                                        let order = answer.json()["order_id"].as_i64();
                                        orders.insert(order.expect("an order"));
                                    }
                                    409 => {}
                                    _ => panic!("seed {seed}: {answer:?}"),
                                }
                            }
                            assert!(orders.len() <= 1, "seed {seed}: one buyer, one unit");
                            won.extend(orders.into_iter().map(|order| (*buyer, order)));
                        }
                        won
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("a buyer"))
                .collect()
        });
        for (buyer, order) in won {
            orders.insert(order, buyer);
        }
        let view = shop
            .get(&format!("/api/v1/flash-sales/{sale}"))
            .send()
            .expect(200);
        assert_eq!(view["remaining"], 0, "seed {seed}: no unit is left lying");
        assert_eq!(view["held"], UNITS, "seed {seed}");
        assert_eq!(
            orders.len() as i64,
            UNITS,
            "seed {seed}: as many orders as units"
        );
        if round == 2 {
            break;
        }
        // Some give up: their units, no more and no fewer, are for sale again.
        let gone: Vec<i64> = orders.keys().copied().take(40).collect();
        for order in gone {
            let buyer = orders.remove(&order).expect("known");
            shop.post(&format!("/api/v1/orders/{order}/cancel"))
                .token(&key)
                .header("X-User-Id", &buyer.to_string())
                .send()
                .expect(200);
        }
        if round == 0 {
            shop.restart();
        }
    }
    assert_eq!(shop.stock(product), 400 - UNITS);
}

#[test]
fn plain_orders_racing_for_the_last_units_sell_exactly_those() {
    let (shop, staff, key, buyers) = shop_with_buyers(40);
    let (a, b) = (shop.product(&staff, 25), shop.product(&staff, 25));
    let sold: i64 = std::thread::scope(|scope| {
        let threads: Vec<_> = buyers
            .iter()
            .enumerate()
            .map(|(number, buyer)| {
                let (shop, key) = (&shop, &key);
                scope.spawn(move || {
                    // Half name the products the other way round.
                    let mut lines = [
                        json!({"product_id": a, "quantity": 1}),
                        json!({"product_id": b, "quantity": 1}),
                    ];
                    if number % 2 == 0 {
                        lines.reverse();
                    }
                    let answer = shop
                        .post("/api/v1/orders")
                        .token(key)
                        .header("X-User-Id", &buyer.to_string())
                        .json(&json!({"items": lines}))
                        .send();
                    match answer.outcome().as_str() {
                        "201" => 1,
                        "409 insufficient_stock" => 0,
                        other => panic!("{other}"),
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a buyer"))
            .sum()
    });
    assert_eq!((sold, shop.stock(a), shop.stock(b)), (25, 0, 0));
}
