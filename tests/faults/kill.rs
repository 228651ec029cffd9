//! SIGKILL: at any moment of a sale, and at each step of a claim, a commit, an order, an expiry, a
//! sale's end.
//!
//! Must hold: what was answered 201 is there after the restart with its order; units sold and left
//! are the units allotted; a key repeated is a claim told again; nothing is half done.

use std::time::Duration;

use onrush::clock::Stopwatch;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::ask::Client;
use super::sale::{Buyer, Crowd, Heard, Sale};
use super::server::Launch;
use super::{note, until};
use crate::support::unpack_first_version;

const KILLS: usize = 32;
const BUYERS: usize = 3_600;

/// Names the seed of a run that failed; `FAULT_SEED` runs it again.
struct Seed(u64);

impl Seed {
    fn take() -> Self {
        let set = std::env::var("FAULT_SEED");
        Self(set.map_or_else(
            |_| rand::random(),
            |text| text.parse().expect("FAULT_SEED is a number"),
        ))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            note(&format!("to run this again: FAULT_SEED={}", self.0));
        }
    }
}

#[test]
fn killed_at_random_moments_of_a_sale_every_accepted_claim_is_there_once() {
    let root = tempfile::tempdir().expect("temporary directory");
    let seed = Seed::take();
    let mut random = StdRng::seed_from_u64(seed.0);
    let (sale, mut server) = Sale::make(Launch::new(&root.path().join("data")), 5_000);
    let mut buyers = sale.buyers(server.address, BUYERS);
    let mut restarts = Vec::new();
    let mut cut_off = 0;
    for _ in 0..KILLS {
        // Whoever has not asked yet comes first, so that each round has a crowd.
        let (heard, fresh): (Vec<_>, Vec<_>) = buyers
            .into_iter()
            .partition(|buyer| !matches!(buyer.heard, Heard::Nothing));
        let crowd = Crowd::start(server.address, &sale, fresh, 16);
        crowd.wait_for_grants(1);
        if random.random_bool(0.5) {
            crowd.wait_for_grants(random.random_range(0..120));
        } else {
            let (watch, moment) = (Stopwatch::start(), random.random_range(0..40_000));
            // Watched closely: the moment is to fall between two steps of the server, anywhere.
            while watch.elapsed() < Duration::from_micros(moment) {
                std::hint::spin_loop();
            }
        }
        server.kill().assert_killed();
        let mut round = crowd.go_home();
        cut_off += round
            .iter()
            .filter(|buyer| matches!(buyer.heard, Heard::NoAnswer))
            .count();

        let watch = Stopwatch::start();
        server = sale.launch.start();
        assert_eq!(Client::new(server.address).get(&sale.path, "").status, 200);
        restarts.push(watch.elapsed());

        let known = round.len();
        round.extend(heard);
        sale.assert_kept(server.address, &mut round);
        sale.assert_orders_and_keys(server.address, &round[..known.min(round.len())]);
        buyers = round;
    }
    let held = buyers.iter().filter(|buyer| buyer.holds_a_unit()).count();
    assert!(cut_off > KILLS, "the kills hit buyers who were waiting");
    sale.assert_orders_and_keys(server.address, &buyers);
    restarts.sort();
    note(&format!(
        "{KILLS} kills, {held} claims, {cut_off} answers cut off; \
         from restart to first answer: median {:?}, longest {:?}",
        restarts[KILLS / 2],
        restarts[KILLS - 1]
    ));
}

#[test]
fn killed_at_every_step_of_a_claim_and_of_a_commit_nothing_is_half_done() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(Launch::new(&dir), 5_000);
    let mut unasked = sale.buyers(server.address, 120);
    server.kill().assert_killed();
    let mut buyers: Vec<Buyer> = Vec::new();
    for point in [
        "writer.begun",
        "claim.units_taken",
        "order.row_written",
        "claim.order_written",
        "claim.claim_written",
        "claim.key_kept",
        "writer.before_commit",
        "writer.after_commit",
    ] {
        for count in [1, 4] {
            let armed = Launch::new(&dir)
                .set("FAULT_KILL_AT", format!("{point}:{count}"))
                // Whatever else writes would take the counts that are meant for claims.
                .set("ONRUSH_ORDERS__EXPIRY_INTERVAL_MS", 3_600_000)
                .set("ONRUSH_FLASH_SALES__SWEEP_INTERVAL_MS", 3_600_000);
            let server = armed.start();
            let mut client = Client::new(server.address);
            loop {
                let mut buyer = unasked.pop().expect("a buyer");
                buyer.claim(&mut client, &sale.claims());
                let gone = matches!(buyer.heard, Heard::NoAnswer);
                assert!(gone || buyer.holds_a_unit(), "{point}: {:?}", buyer.heard);
                buyers.push(buyer);
                if gone {
                    break;
                }
            }
            server.ended().assert_killed();
            sale.launch.assert_ledger_holds();
            let server = sale.launch.start();
            let last = buyers.len() - 1;
            let had = sale.units(server.address).0;
            let committed = point == "writer.after_commit";
            let expected = if committed { last + 1 } else { last };
            assert_eq!(had, expected as i64, "{point}:{count}: units sold");
            sale.assert_kept(server.address, &mut buyers);
            sale.assert_orders_and_keys(server.address, &buyers[last..]);
            server.kill().assert_killed();
        }
    }
}

#[test]
fn killed_at_every_step_of_an_order_it_is_placed_once_or_not_at_all() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(Launch::new(&dir), 10);
    let points = [
        "order.units_taken",
        "order.row_written",
        "writer.before_commit",
        "writer.after_commit",
    ];
    let buyers = sale.buyers(server.address, points.len());
    server.kill().assert_killed();
    let body = json!({"items": [{"product_id": sale.product, "quantity": 3}]}).to_string();
    for (point, buyer) in points.into_iter().zip(&buyers) {
        let server = Launch::new(&dir).set("FAULT_KILL_AT", point).start();
        let mut client = Client::new(server.address);
        let (path, key) = ("/api/v1/orders", Some(point));
        let answer = client.ask("POST", path, &buyer.token, key, &body);
        assert!(answer.is_none(), "{point}: {answer:?}");
        server.ended().assert_killed();
        sale.launch.assert_ledger_holds();

        let server = sale.launch.start();
        let mut client = Client::new(server.address);
        let before = client.get(path, &buyer.token).json();
        let orders = before["items"].as_array().expect("orders").len();
        assert_eq!(
            orders,
            usize::from(point == "writer.after_commit"),
            "{point}"
        );
        let answer = client.ask("POST", path, &buyer.token, key, &body);
        let order = answer.expect("an answer").json();
        let after = client.get(path, &buyer.token).json();
        assert_eq!(after["items"].as_array().expect("orders").len(), 1);
        let cancel = format!("{path}/{}/cancel", order["id"]);
        let cancelled = client
            .post(&cancel, &buyer.token, &json!({}))
            .expect("an answer");
        assert_eq!(cancelled.status, 200, "{cancelled:?}");
        sale.launch.assert_ledger_holds();
        server.stop();
    }
}

#[test]
fn killed_while_unpaid_orders_expire_their_units_return_once() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let short = || Launch::new(&dir).set("ONRUSH_ORDERS__PAYMENT_WINDOW_SECONDS", 1);
    let (sale, server) = Sale::make(short(), 10);
    let buyer = sale.buyers(server.address, 1).remove(0);
    let product = format!("/api/v1/products/{}", sale.product);
    let stock = |address| Client::new(address).get(&product, "").json()["stock"].clone();
    let free = stock(server.address);
    server.kill().assert_killed();
    for point in [
        "order.expired",
        "writer.before_commit",
        "writer.after_commit",
    ] {
        // The order itself passes the commit once; its expiry is the second time.
        let count = if point == "order.expired" { 1 } else { 2 };
        let server = short()
            .set("FAULT_KILL_AT", format!("{point}:{count}"))
            .start();
        let body = json!({"items": [{"product_id": sale.product, "quantity": 7}]});
        let order = Client::new(server.address)
            .post("/api/v1/orders", &buyer.token, &body)
            .expect("an answer");
        assert_eq!(order.status, 201, "{order:?}");
        server.ended().assert_killed();
        sale.launch.assert_ledger_holds();

        let server = sale.launch.start();
        let path = format!("/api/v1/orders/{}", order.json()["id"]);
        let mut client = Client::new(server.address);
        until("the order has expired", || {
            client.get(&path, &buyer.token).json()["state"] == "expired"
        });
        assert_eq!(stock(server.address), free, "{point}");
        sale.launch.assert_ledger_holds();
        server.kill().assert_killed();
    }
}

#[test]
fn killed_while_a_sale_is_stopped_what_is_left_returns_once() {
    let root = tempfile::tempdir().expect("temporary directory");
    for point in ["sale.closed", "writer.before_commit", "writer.after_commit"] {
        let dir = root.path().join(point);
        let (sale, server) = Sale::make(Launch::new(&dir), 10);
        let mut buyers = sale.buyers(server.address, 3);
        let mut client = Client::new(server.address);
        for buyer in &mut buyers {
            buyer.claim(&mut client, &sale.claims());
        }
        server.kill().assert_killed();
        let server = Launch::new(&dir).set("FAULT_KILL_AT", point).start();
        let stop = format!("{}/stop", sale.path);
        let answer = Client::new(server.address).post(&stop, &sale.admin, &json!({}));
        assert!(answer.is_none(), "{point}: {answer:?}");
        server.ended().assert_killed();
        sale.launch.assert_ledger_holds();

        let server = sale.launch.start();
        let mut client = Client::new(server.address);
        let found = client.get(&sale.path, "").json();
        let state = if point == "writer.after_commit" {
            "stopped"
        } else {
            "running"
        };
        assert_eq!(found["state"], state, "{point}: {found}");
        let stopped = client
            .post(&stop, &sale.admin, &json!({}))
            .expect("an answer");
        assert_eq!(stopped.json()["state"], "stopped", "{stopped:?}");
        let product = client.get(&format!("/api/v1/products/{}", sale.product), "");
        assert_eq!(product.json()["stock"], 1_000 + 7, "{point}");
        sale.launch.assert_ledger_holds();
        sale.assert_orders_and_keys(server.address, &buyers);
    }
}

/// All words of the search, and whether some are still to be renewed.
fn words(dir: &std::path::Path) -> (Vec<(String, i64)>, bool) {
    // Read-only, it leaves the log where it is: a start misses one that is gone.
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let conn = rusqlite::Connection::open_with_flags(dir.join("onrush.db"), flags);
    let conn = conn.expect("a database");
    let mut all = conn
        .prepare("SELECT term, product_id FROM product_terms ORDER BY term, product_id")
        .expect("a statement");
    let rows = all
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .and_then(Iterator::collect)
        .expect("words");
    let due = conn.query_row("SELECT count(*) FROM product_terms_due", [], |row| {
        row.get::<_, i64>(0)
    });
    (rows, due.expect("a count") > 0)
}

#[test]
fn killed_while_an_old_search_index_is_renewed_it_goes_on_where_it_was() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (dir, undisturbed) = (root.path().join("data"), root.path().join("undisturbed"));
    unpack_first_version(&dir);
    unpack_first_version(&undisturbed);
    for count in [1, 12, 5, 20] {
        let armed =
            Launch::new(&dir).set("FAULT_KILL_AT", format!("product.words_renewed:{count}"));
        let ended = match armed.attempt() {
            Ok(server) => server.ended(),
            Err(ended) => ended,
        };
        ended.assert_killed();
        assert!(words(&dir).1, "some are left after {count}");
    }
    for dir in [&dir, &undisturbed] {
        let server = Launch::new(dir).start();
        server.says("all products are indexed for the search");
        server.kill().assert_killed();
    }
    let (renewed, is_due) = words(&dir);
    assert!(!is_due && renewed.len() > 9_000, "{}", renewed.len());
    assert!(renewed == words(&undisturbed).0);
}
