//! Searches cost others nothing: neither look-ups by key nor claims wait behind them, a client has its
//! share of them, and questions that are equal in effect are one.

use std::sync::mpsc::{Sender, channel};

use onrush::auth::Role;
use onrush::store::{Lane, StoreError};
use serde_json::json;

use crate::support::{Answer, Shop};

/// A shop in which one search and one list run at once, and no wait ends by itself.
fn narrow(change: impl FnOnce(&mut onrush::config::Settings)) -> Shop {
    Shop::open_with(|settings| {
        settings.database.list_readers = 1;
        settings.database.search_readers = 1;
        settings.database.lane_timeout_ms = 60_000;
        settings.database.search_timeout_ms = 60_000;
        settings.cache.wait_timeout_ms = 60_000;
        settings.cache.load_timeout_ms = 60_000;
        settings.server.request_timeout_ms = 60_000;
        change(settings);
    })
}

/// A read that has a place of a lane until it is ended.
struct Held {
    end: Sender<()>,
    read: std::thread::JoinHandle<()>,
}

impl Held {
    fn new(shop: &Shop, lane: Lane) -> Self {
        let (store, (end, until)) = (shop.app().store.clone(), channel::<()>());
        let (begun, begins) = channel();
        let read = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let read = store.read_in(lane, move |_| {
                begun.send(()).expect("somebody waits for it");
                // An error is the end as well.
                let _ended = until.recv();
                Ok::<_, StoreError>(())
            });
            let ended = runtime.expect("a runtime").block_on(read);
            ended.expect("nothing was read");
        });
        begins.recv().expect("it has begun");
        Self { end, read }
    }

    fn end(self) {
        drop(self.end);
        self.read.join().expect("it has ended");
    }
}

fn search(shop: &Shop, q: &str) -> Answer {
    shop.get(&format!("/api/v1/products?q={q}")).send()
}

/// A figure on `/metrics`; 0 where it has no line.
fn figure(shop: &Shop, line: &str) -> u64 {
    let page = shop.get("/metrics").token(&shop.token(Role::Staff)).send();
    assert_eq!(page.status, 200, "{page:?}");
    let value = page.body.lines().find_map(|found| {
        let value = found.strip_prefix(line)?.strip_prefix(' ')?;
        value.parse().ok()
    });
    value.unwrap_or(0)
}

#[test]
fn neither_look_ups_by_key_nor_claims_nor_lists_wait_behind_searches() {
    let shop = narrow(|settings| settings.database.lane_queue_max = 0);
    let (staff, anna) = (shop.token(Role::Staff), shop.token(Role::Customer));
    let product = shop.product(&staff, 10);
    let sale = shop.sale(&staff, product, 5, json!({}));
    let held = Held::new(&shop, Lane::Search);

    let refused = search(&shop, "mug");
    assert_eq!(refused.outcome(), "503 overloaded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(figure(&shop, "db_reads_refused_total{lane=\"search\"}"), 1);
    let passes = |path: &str, token: &str| {
        let answer = shop.get(path).token(token).send();
        assert_eq!(answer.outcome(), "200", "{path}");
        answer
    };
    // None of these was read before.
    passes(&format!("/api/v1/products/{product}"), &anna);
    passes(&format!("/api/v1/products?ids={product}"), &anna);
    passes(&format!("/api/v1/flash-sales/{sale}"), &anna);
    passes("/api/v1/products", &anna);
    passes("/api/v1/products/hot?limit=200", &anna);
    passes("/api/v1/flash-sales", &anna);
    passes("/api/v1/orders", &anna);
    let claim = shop.post(&format!("/api/v1/flash-sales/{sale}/claims"));
    assert_eq!(claim.token(&anna).send().outcome(), "201");
    let order = shop.post("/api/v1/orders").token(&anna);
    let lines = json!({"items": [{"product_id": product, "quantity": 1}]});
    assert_eq!(order.json(&lines).send().outcome(), "201");
    shop.account("ben@example.com", Role::Customer);
    assert!(!shop.login("ben@example.com").is_empty());

    held.end();
    assert_eq!(search(&shop, "mug").outcome(), "200");

    // Lists have a lane as well, and what is kept of them needs none.
    let held = Held::new(&shop, Lane::List);
    passes("/api/v1/products", &anna);
    let refused = shop.get("/api/v1/products?sort=newest").send();
    assert_eq!(refused.outcome(), "503 overloaded");
    let other = shop.product(&staff, 10);
    passes(&format!("/api/v1/products/{other}"), &anna);
    assert_eq!(search(&shop, "mug").outcome(), "200");
    held.end();
}

#[test]
fn a_client_has_its_share_of_the_searches_and_another_goes_on() {
    let shop = narrow(|settings| {
        settings.server.slow_reads_max = 4;
        settings.server.slow_reads_small = 1;
        settings.server.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    });
    let staff = shop.token(Role::Staff);
    shop.product(&staff, 10);
    let from = |address: &str, q: &str| {
        let ask = shop.get(&format!("/api/v1/products?q={q}"));
        ask.header("X-Forwarded-For", address).send().outcome()
    };
    let waiting = || figure(&shop, "http_shares_used{resource=\"slow_reads\"}");
    let held = Held::new(&shop, Lane::Search);
    std::thread::scope(|scope| {
        let greedy = scope.spawn(|| from("203.0.113.1", "mug"));
        shop.wait_until("a search waits", || waiting() == 1);
        assert_eq!(from("203.0.113.1", "cup"), "429 client_busy");
        // Another may, and may also wait for the answer to the same question.
        let honest = scope.spawn(|| from("203.0.113.2", "cup"));
        shop.wait_until("two wait", || waiting() == 2);
        let same = scope.spawn(|| from("203.0.113.3", "mug"));
        assert_eq!(from("203.0.113.1", "cups"), "429 client_busy");
        held.end();
        for search in [greedy, honest, same] {
            assert_eq!(search.join().expect("an answer"), "200");
        }
    });
    assert_eq!(waiting(), 0);
    assert_eq!(from("203.0.113.1", "cups"), "200");
}

#[test]
fn a_search_that_nobody_waits_for_any_more_gives_its_place_back() {
    use std::io::Write;
    let shop = narrow(|_| ());
    let held = Held::new(&shop, Lane::Search);
    let waiting = || figure(&shop, "http_shares_used{resource=\"slow_reads\"}");
    let mut gone = std::net::TcpStream::connect(shop.address).expect("it listens");
    gone.write_all(b"GET /api/v1/products?q=mug HTTP/1.1\r\nHost: shop\r\n\r\n")
        .expect("sent");
    shop.wait_until("it waits", || waiting() == 1);
    drop(gone);
    shop.wait_until("it is given up", || waiting() == 0);
    held.end();
    assert_eq!(search(&shop, "mug").outcome(), "200");
}

#[test]
fn questions_that_are_equal_in_effect_are_answered_once() {
    let shop = Shop::open();
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let ids: Vec<String> = (0..3)
        .map(|_| shop.product(&staff, 10).to_string())
        .collect();
    // Loads by key are not what is counted.
    let batch = format!("/api/v1/products?ids={}", ids.join(","));
    shop.get(&batch).send().expect(200);
    let loads = || {
        let stats = shop.get("/api/v1/cache/stats").token(&admin).send();
        stats.expect(200)["loads"].as_i64().expect("a number")
    };
    // The first of a group has to be loaded, the others are not.
    for same in [
        [
            "q=Mug",
            "q=mug",
            "q=%20MUG%21",
            "q=%EF%BD%8D%EF%BD%95%EF%BD%87",
            "q=mug&limit=49",
        ],
        [
            "q=a%20b%20mu",
            "q=b%20a%20mu",
            "q=B%20%20a%2C%20MU",
            "q=a%20b%20b%20mu",
            "q=b%20a%20mu&limit=1",
        ],
        ["limit=3", "", "limit=2", "limit=50", "sort=popularity"],
        [
            "sort=newest&limit=100",
            "sort=newest&limit=200",
            "sort=newest&limit=51",
            "limit=99&sort=newest",
            "sort=newest&limit=180",
        ],
    ] {
        let before = loads();
        for query in same {
            shop.get(&format!("/api/v1/products?{query}"))
                .send()
                .expect(200);
            assert_eq!(loads(), before + 1, "{query}");
        }
    }
    // A page is as long as was asked for, and leads on from its own end.
    let page = |query: &str| {
        shop.get(&format!("/api/v1/products?{query}"))
            .send()
            .expect(200)
    };
    for q in ["", "q=mug&"] {
        let two = page(&format!("{q}sort=newest&limit=2"));
        assert_eq!(two["items"].as_array().map(Vec::len), Some(2));
        let cursor = two["next_cursor"].as_str().expect("it goes on").to_owned();
        let last = page(&format!("{q}sort=newest&limit=2&cursor={cursor}"));
        assert_eq!(last["items"].as_array().map(Vec::len), Some(1), "{last}");
        assert!(last.get("next_cursor").is_none());
        assert_eq!(
            page(&format!("{q}limit=3"))["items"]
                .as_array()
                .map(Vec::len),
            Some(3)
        );
    }
    // What no product can have is answered without a look.
    let before = loads();
    page(&format!("category={}", "x".repeat(101)));
    page("q=%21%3F");
    assert_eq!(loads(), before);
    let long = shop
        .get(&format!("/api/v1/products?q={}", "x".repeat(501)))
        .send();
    assert_eq!(long.status / 100, 4, "{long:?}");
}
