//! The cache's promises. Each protection is shown with and without it: the loads that each costs are
//! printed (`cargo test --lib cache:: -- --nocapture`).

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::*;
use crate::clock::Timestamp;

#[derive(Clone, Debug, thiserror::Error)]
#[error("the database is away")]
struct Away;

/// A value whose size a test chooses.
#[derive(Clone, Debug, PartialEq)]
struct Text(Arc<str>);

impl Cached for Text {
    fn heap_bytes(&self) -> usize {
        self.0.len()
    }

    fn to_disk(&self) -> Option<Vec<u8>> {
        Some(self.0.as_bytes().to_vec())
    }

    fn from_disk(bytes: &[u8]) -> Option<Self> {
        Some(Self(std::str::from_utf8(bytes).ok()?.into()))
    }
}

fn text(of: impl std::fmt::Display) -> Loaded<Text> {
    Loaded::new(Text(of.to_string().into()))
}

/// A cache before a database that counts its loads.
struct Shop {
    cache: Cache,
    clock: Clock,
    metrics: Metrics,
    products: Kind<Text>,
    loads: Arc<AtomicU64>,
    _folder: tempfile::TempDir,
}

const RULES: KindRules = KindRules::new("product", 1);

impl Shop {
    fn new() -> Self {
        Self::with(|_| {}, RULES)
    }

    fn with(change: impl FnOnce(&mut config::Cache), rules: KindRules) -> Self {
        let mut settings = config::Cache::default();
        change(&mut settings);
        let folder = tempfile::tempdir().expect("folder");
        let clock = Clock::manual(Timestamp(1_000_000_000));
        let metrics = Metrics::new().expect("unique names");
        let cache = Cache::new(
            Arc::new(settings),
            folder.path(),
            clock.clone(),
            metrics.clone(),
        );
        Self {
            products: cache.kind(rules),
            cache,
            clock,
            metrics,
            loads: Arc::default(),
            _folder: folder,
        }
    }

    fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }

    fn seconds(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// A read whose load counts itself and brings `found`.
    async fn read(
        &self,
        id: impl Into<Id>,
        found: impl Into<Option<&'static str>>,
    ) -> Option<Hit<Text>> {
        let (loads, found) = (Arc::clone(&self.loads), found.into());
        let load = || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Away>(found.map(text))
        };
        self.products.get_or_load(id, load).await.expect("loaded")
    }

    /// A read whose load fails.
    async fn read_failing(&self, id: i64) -> Result<Option<Hit<Text>>, CacheError> {
        let loads = Arc::clone(&self.loads);
        let load = || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            Err(Away)
        };
        self.products.get_or_load(id, load).await
    }

    /// A read whose load waits until `gate` is opened.
    async fn read_gated(&self, id: i64, gate: &Arc<Gate>) -> Result<Option<Hit<Text>>, CacheError> {
        let (loads, gate) = (Arc::clone(&self.loads), Arc::clone(gate));
        let load = || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            gate.pass().await;
            Ok::<_, Away>(Some(text("gated")))
        };
        self.products.get_or_load(id, load).await
    }
}

/// Holds loads up until it is opened.
#[derive(Default)]
struct Gate {
    inside: AtomicU64,
    most: AtomicU64,
    is_open: AtomicBool,
    opened: Notify,
}

impl Gate {
    async fn pass(&self) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        loop {
            let opened = self.opened.notified();
            if self.is_open.load(Ordering::SeqCst) {
                break;
            }
            opened.await;
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
        self.opened.notify_waiters();
    }
}

/// Lets others run until `is_so`; a minute without it is a failure.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let watch = crate::clock::Stopwatch::start();
    while !is_so() {
        assert!(watch.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::task::yield_now().await;
    }
}

#[expect(clippy::print_stdout, reason = "what a protection saves is told")]
fn tell(protection: &str, with: impl std::fmt::Display, without: impl std::fmt::Display) {
    println!("{protection}: with {with}, without {without}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breakdown_ten_thousand_misses_of_one_key_are_one_load() {
    let (shop, gate) = (Arc::new(Shop::new()), Arc::new(Gate::default()));
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let (shop, gate) = (Arc::clone(&shop), Arc::clone(&gate));
        readers.spawn(async move { shop.read_gated(7, &gate).await });
    }
    until("all wait", || shop.cache.stats().waiting == 10_000).await;
    gate.open();
    while let Some(read) = readers.join_next().await {
        let hit = read.expect("no panic").expect("loaded").expect("there");
        assert_eq!(hit.value, Text("gated".into()));
    }
    let with = shop.loads();

    // Without: each asks the cache, and loads by himself when it has nothing.
    let (shop, gate) = (Arc::new(Shop::new()), Arc::new(Gate::default()));
    for _ in 0..10_000 {
        let (shop, gate) = (Arc::clone(&shop), Arc::clone(&gate));
        readers.spawn(async move {
            if shop.products.get(7).is_none() {
                shop.loads.fetch_add(1, Ordering::SeqCst);
                gate.pass().await;
            }
            shop.read(7, "loaded by hand").await;
            Ok(None)
        });
    }
    until("all load", || gate.inside.load(Ordering::SeqCst) == 10_000).await;
    gate.open();
    while readers.join_next().await.is_some() {}
    let without = shop.loads() - 1;
    tell("breakdown: loads", with, without);
    assert_eq!(with, 1);
    // What requests read by the cache afterwards may be loaded by one that came just as a load ended.
    assert!(without >= 10_000, "{without}");
}

/// Loads in the worst second when 500 values that were loaded together are read all the time.
async fn worst_second(jitter_percent: u64) -> u64 {
    let shop = Shop::with(
        |settings| {
            settings.ttl_jitter_percent = jitter_percent;
            settings.stale_seconds = 0;
        },
        RULES,
    );
    let mut worst = 0;
    for second in 0..400 {
        let before = shop.loads();
        for id in 0..500_i64 {
            shop.read(id, "product").await;
        }
        if second > 0 {
            worst = worst.max(shop.loads() - before);
        }
        shop.seconds(1);
    }
    worst
}

#[tokio::test]
async fn avalanche_what_was_loaded_together_does_not_expire_together() {
    let (with, without) = (worst_second(20).await, worst_second(0).await);
    tell("avalanche: loads in the worst second", with, without);
    assert_eq!(without, 500);
    assert!(with < 25, "{with}: 500 values end within 120 seconds");
}

#[tokio::test]
async fn penetration_what_does_not_exist_is_not_asked_for_again() {
    let mut loads = [0; 2];
    for (at, remembers_absent) in [true, false].into_iter().enumerate() {
        let shop = Shop::with(
            |_| {},
            KindRules {
                remembers_absent,
                ..RULES
            },
        );
        for _ in 0..1_000 {
            assert!(shop.read(404, None).await.is_none());
        }
        loads[at] = shop.loads();
        // Not for long, and not beyond the invalidation that follows when the row is made.
        shop.products.invalidate(404);
        assert!(shop.read(404, "made").await.is_some());
    }
    tell("penetration: loads", loads[0], loads[1]);
    assert_eq!(loads, [1, 1_000]);

    let shop = Shop::new();
    assert!(shop.read(404, None).await.is_none());
    shop.seconds(37);
    assert!(shop.read(404, "made elsewhere").await.is_some());
}

#[tokio::test]
async fn a_million_unknown_ids_push_out_nothing_and_take_no_more_memory() {
    let shop = Shop::with(|settings| settings.absent_entries_max = 5_000, RULES);
    for id in 0..1_000 {
        shop.read(id, "a good product").await;
    }
    let before = shop.cache.stats();
    for thousand in 1..=1_000 {
        let ids: Vec<Id> = (0..1_000)
            .map(|id| Id::Int(thousand * 1_000 + id))
            .collect();
        let nothing = |_| async { Ok::<_, Away>(Vec::new()) };
        let hits = shop.products.get_many_or_load(&ids, nothing).await;
        assert!(hits.expect("loaded").iter().all(Option::is_none));
    }
    let after = shop.cache.stats();
    assert_eq!(after.memory_entries, before.memory_entries);
    assert_eq!(after.memory_bytes, before.memory_bytes);
    assert!(after.absent_entries <= 5_000, "{}", after.absent_entries);
    assert_eq!((after.loading, after.waiting), (0, 0));
    let loads = shop.loads();
    for id in 0..1_000 {
        shop.read(id, "a good product").await;
    }
    assert_eq!(shop.loads(), loads, "each good one is still there");
}

#[tokio::test]
async fn penetration_ids_beyond_the_highest_need_no_load() {
    let mut loads = [0; 2];
    for (at, tells) in [true, false].into_iter().enumerate() {
        let shop = Shop::with(|settings| settings.absent_entries_max = 1_000, RULES);
        for id in 1_001..=101_000 {
            if let Some(wanted) = shop.products.asks_for_highest().filter(|_| tells) {
                wanted.tell(Some(1_000));
            }
            assert!(shop.read(id, None).await.is_none());
        }
        loads[at] = shop.loads();
        // By hand anything may be invalidated; nothing is made by that.
        shop.cache.invalidate_text("product:200000");
        assert_eq!(shop.products.asks_for_highest().is_some(), !tells);
        let before = shop.loads();
        shop.read(150_000, None).await;
        assert_eq!(shop.loads() - before, u64::from(!tells));
        // A row that is made is seen by the first request after the answer.
        shop.products.invalidate(1_001);
        assert!(shop.read(1_001, "made").await.is_some());
        let before = shop.loads();
        shop.read(1_002, None).await;
        assert_eq!(shop.loads() - before, u64::from(!tells));
        shop.products.invalidate_all();
        assert!(shop.read(9_999, "made with many others").await.is_some());
    }
    tell("penetration by 100,000 ids: loads", loads[0], loads[1]);
    assert_eq!(loads, [0, 100_000]);
}

#[tokio::test]
async fn fail_safe_an_expired_value_bridges_a_database_that_is_away() {
    let mut figures = Vec::new();
    for stale_seconds in [600, 0] {
        let shop = Shop::with(|settings| settings.stale_seconds = stale_seconds, RULES);
        shop.read(1, "good").await;
        shop.seconds(400);
        let (mut errors, loads) = (0, shop.loads());
        // A hundred reads within a second, then one a second later.
        for _ in 0..100 {
            match shop.read_failing(1).await {
                Ok(hit) => assert!(hit.expect("a value").is_stale),
                Err(error) => {
                    assert!(error.cause::<Away>().is_some(), "{error}");
                    errors += 1;
                }
            }
        }
        figures.push((errors, shop.loads() - loads));
        shop.seconds(1);
        let hit = shop.read(1, "good again").await.expect("a value");
        assert!(!hit.is_stale && hit.value == Text("good again".into()));
        // What a write has changed is not served, whatever the database does.
        shop.products.invalidate(1);
        assert!(shop.read_failing(1).await.is_err());
        // And not for ever.
        shop.read(1, "good").await;
        shop.seconds(361 + stale_seconds);
        assert!(shop.read_failing(1).await.is_err());
    }
    let [with, without] = figures[..] else {
        unreachable!("two runs")
    };
    tell(
        "fail-safe: (errors, loads)",
        format!("{with:?}"),
        format!("{without:?}"),
    );
    assert_eq!((with, without), ((0, 1), (100, 100)));
}

#[tokio::test]
async fn fail_safe_an_expired_value_bridges_a_slow_load() {
    let shop = Arc::new(Shop::with(|settings| settings.stale_after_ms = 1, RULES));
    shop.read(1, "old").await;
    shop.seconds(400);
    let gate = Arc::new(Gate::default());
    let hit = shop
        .read_gated(1, &gate)
        .await
        .expect("no error")
        .expect("a value");
    assert!(hit.is_stale && hit.value == Text("old".into()));
    // The load goes on, and a request that comes now does not wait at all.
    shop.clock.advance(Duration::from_millis(2));
    for _ in 0..10 {
        let hit = shop
            .read_gated(1, &gate)
            .await
            .expect("no error")
            .expect("a value");
        assert!(hit.is_stale);
    }
    assert_eq!(shop.loads(), 2);
    assert_eq!(shop.metrics.cache.stale_slow.get(), 11);
    gate.open();
    until("the load ends", || shop.cache.stats().loading == 0).await;
    let hit = shop.products.get(1).expect("loaded behind");
    assert!(!hit.is_stale && hit.value == Text("gated".into()));
}

/// Makes `id` hot: reads it often and lets the cache look.
fn heat(shop: &Shop, id: i64) {
    for _ in 0..20_000 {
        shop.products.get(id);
    }
    shop.cache.tick();
    let hot = shop.cache.hot_keys();
    assert!(
        hot.iter()
            .any(|hot| hot.key == format!("product:{id}") && hot.is_pinned),
        "{hot:?}"
    );
}

#[tokio::test]
async fn eager_refresh_nobody_waits_for_a_hot_key() {
    let mut waited = Vec::new();
    for refresh_percent in [80, 100] {
        let shop = Arc::new(Shop::with(
            |settings| {
                settings.refresh_percent = refresh_percent;
                settings.ttl_jitter_percent = 0;
                settings.stale_seconds = 0;
            },
            RULES,
        ));
        shop.read(1, "old").await;
        let mut waits = 0;
        // Twenty minutes of reads, ten a second or so: a read either has its value at once or waits.
        for second in 0..1_200 {
            if second % 60 == 0 {
                heat(&shop, 1);
            }
            let gate = Arc::new(Gate::default());
            let mut read = Box::pin(shop.read_gated(1, &gate));
            match once::poll_now(&mut read) {
                Some(hit) => assert!(hit.expect("no error").is_some()),
                None => {
                    waits += 1;
                    gate.open();
                    read.await.expect("no error");
                }
            }
            gate.open();
            until("refreshed", || shop.cache.stats().loading == 0).await;
            shop.seconds(1);
        }
        waited.push((waits, shop.metrics.cache.refreshes.get()));
    }
    tell(
        "eager refresh: (reads that waited, refreshes)",
        format!("{:?}", waited[0]),
        format!("{:?}", waited[1]),
    );
    assert_eq!(waited, [(0, 4), (3, 0)]);
}

/// Polls once.
mod once {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    pub(super) fn poll_now<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}

#[tokio::test]
async fn adaptive_life_what_is_dear_to_load_lives_longer() {
    let lives = async |cost_ms: u64, ttl_seconds: Option<u64>| {
        let shop = Shop::with(
            |settings| settings.ttl_jitter_percent = 0,
            KindRules {
                ttl_seconds,
                ..RULES
            },
        );
        // An hour of reads, one every ten seconds of the value's life.
        for _ in 0..360 {
            let (loads, clock) = (Arc::clone(&shop.loads), shop.clock.clone());
            let load = || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                clock.advance(Duration::from_millis(cost_ms));
                Ok::<_, Away>(Some(text("report")))
            };
            shop.products.get_or_load(1, load).await.expect("loaded");
            shop.seconds(10);
        }
        let entry = shop.cache.entry("product:1").await.expect("there");
        (
            entry.ttl_left_ms + i64::try_from(entry.age_ms).expect("small"),
            shop.loads(),
        )
    };
    let mut with = Vec::new();
    for (cost_ms, ttl_ms) in [
        (0, 300_000),
        (499, 300_000),
        (500, 900_000),
        (1_000, 1_800_000),
        (2_500, 3_600_000),
    ] {
        let (lived, loads) = lives(cost_ms, None).await;
        assert_eq!(lived, ttl_ms, "{cost_ms}");
        with.push(loads);
    }
    let (lived, without) = lives(2_500, Some(300)).await;
    assert_eq!(lived, 300_000);
    tell("adaptive life: loads of 2.5 s in an hour", with[4], without);
    assert_eq!((with[4], without), (1, 12));
    assert_eq!(with, [12, 12, 4, 2, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounded_loads_a_thousand_cold_keys_do_not_flood_the_database() {
    let mut most = Vec::new();
    for (loads_max, loads_queue_max) in [(8, 100), (10_000, 10_000)] {
        let shop = Arc::new(Shop::with(
            |settings| {
                settings.loads_max = loads_max;
                settings.loads_queue_max = loads_queue_max;
            },
            RULES,
        ));
        let gate = Arc::new(Gate::default());
        let mut readers = tokio::task::JoinSet::new();
        for id in 0..1_000 {
            let (shop, gate) = (Arc::clone(&shop), Arc::clone(&gate));
            readers.spawn(async move { shop.read_gated(id, &gate).await });
        }
        until("each loads, waits for its turn, or was refused", || {
            let refused = shop.metrics.cache.loads_refused.get();
            let waiting = shop.cache.0.loads_waiting.load(Ordering::SeqCst) as u64;
            gate.inside.load(Ordering::SeqCst) + waiting + refused == 1_000
        })
        .await;
        gate.open();
        let (mut loaded, mut refused) = (0, 0);
        while let Some(read) = readers.join_next().await {
            match read.expect("no panic") {
                Ok(_) => loaded += 1,
                Err(CacheError::Overloaded) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(loaded + refused, 1_000);
        assert_eq!(loaded, (loads_max + loads_queue_max).min(1_000));
        most.push(gate.most.load(Ordering::SeqCst));
    }
    tell("bounded loads: most at once", most[0], most[1]);
    assert_eq!(most, [8, 1_000]);
}

#[tokio::test]
async fn waiting_is_bounded_in_number_and_time() {
    let shop = Arc::new(Shop::with(
        |settings| {
            settings.waiters_max = 2;
            settings.wait_timeout_ms = 10;
        },
        RULES,
    ));
    let gate = Arc::new(Gate::default());
    let reads: Vec<_> = (0..3)
        .map(|_| {
            let (shop, gate) = (Arc::clone(&shop), Arc::clone(&gate));
            tokio::spawn(async move { shop.read_gated(1, &gate).await })
        })
        .collect();
    let mut outcomes = Vec::new();
    for read in reads {
        outcomes.push(
            read.await
                .expect("no panic")
                .expect_err("no value")
                .to_string(),
        );
    }
    outcomes.sort();
    let (timeout, overloaded) = (
        CacheError::Timeout.to_string(),
        CacheError::Overloaded.to_string(),
    );
    assert_eq!(outcomes, [timeout.clone(), timeout, overloaded]);
    // The load itself goes on.
    gate.open();
    until("loaded", || shop.products.get(1).is_some()).await;
    assert_eq!(shop.loads(), 1);
}

#[tokio::test]
async fn a_load_outlives_the_request_that_began_it() {
    let (shop, gate) = (Arc::new(Shop::new()), Arc::new(Gate::default()));
    let mut first = Box::pin(shop.read_gated(1, &gate));
    assert!(once::poll_now(&mut first).is_none());
    let second = {
        let (shop, gate) = (Arc::clone(&shop), Arc::clone(&gate));
        tokio::spawn(async move { shop.read_gated(1, &gate).await })
    };
    until("the second waits", || shop.cache.stats().waiting == 2).await;
    drop(first);
    assert_eq!(shop.cache.stats().waiting, 1);
    gate.open();
    assert!(second.await.expect("no panic").expect("loaded").is_some());
    assert_eq!(shop.loads(), 1);
}

#[tokio::test]
async fn a_load_that_panics_fails_or_hangs_is_an_error_and_the_next_one_is_tried() {
    let shop = Shop::with(|settings| settings.load_timeout_ms = 10, RULES);
    let panics = || async move {
        if true {
            panic!("a bug");
        }
        Ok::<_, Away>(Some(text("")))
    };
    let error = shop
        .products
        .get_or_load(1, panics)
        .await
        .expect_err("panic");
    assert!(matches!(error, CacheError::Panicked), "{error}");
    let panics_later = || async move {
        tokio::task::yield_now().await;
        if true {
            panic!("a later bug");
        }
        Ok::<_, Away>(Some(text("")))
    };
    let error = shop
        .products
        .get_or_load(1, panics_later)
        .await
        .expect_err("panic");
    assert!(matches!(error, CacheError::Panicked), "{error}");
    let hangs = || std::future::pending::<Result<Option<Loaded<Text>>, Away>>();
    let error = shop.products.get_or_load(1, hangs).await.expect_err("hang");
    assert!(matches!(error, CacheError::Timeout), "{error}");
    let error = shop.read_failing(1).await.expect_err("error");
    assert!(matches!(error, CacheError::Failed(_)), "{error}");
    assert_eq!(shop.cache.stats().loading, 0);
    assert!(shop.read(1, "at last").await.is_some());
}

#[tokio::test]
async fn a_value_larger_than_the_cache_is_served_and_pushes_out_nothing() {
    let shop = Shop::with(|settings| settings.memory_bytes = 1_048_576, RULES);
    for id in 0..100 {
        shop.read(id, "small").await;
    }
    let huge: Arc<str> = "x".repeat(2_000_000).into();
    for _ in 0..3 {
        let (loads, value) = (Arc::clone(&shop.loads), Arc::clone(&huge));
        let load = || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Away>(Some(Loaded::new(Text(value))))
        };
        let hit = shop
            .products
            .get_or_load(1_000, load)
            .await
            .expect("loaded");
        assert_eq!(hit.expect("there").value.0.len(), 2_000_000);
    }
    assert_eq!(shop.loads(), 103, "it is loaded each time");
    let stats = shop.cache.stats();
    assert_eq!(stats.memory_entries, 100);
    assert!(stats.memory_bytes < 1_048_576);
    // A key that is too long, and too many tags, are no different.
    shop.read("k".repeat(1_000), "value").await;
    let many_tags = || async {
        let tags = (0..65).fold(text("tagged"), |value, tag| value.tag(format!("tag:{tag}")));
        Ok::<_, Away>(Some(tags))
    };
    let hit = shop
        .products
        .get_or_load(2_000, many_tags)
        .await
        .expect("loaded");
    assert!(hit.is_some());
    assert_eq!(shop.cache.stats().memory_entries, 100);
}

#[tokio::test]
async fn memory_is_bounded_in_bytes_and_entries() {
    let shop = Shop::with(
        |settings| {
            settings.memory_bytes = 1_048_576;
            settings.memory_entries_max = 1_000;
        },
        RULES,
    );
    for id in 0..20_000 {
        shop.read(id, "tiny").await;
    }
    let stats = shop.cache.stats();
    assert!((900..=1_000).contains(&stats.memory_entries), "{stats:?}");
    assert!(stats.evictions >= 19_000);
    assert!(stats.memory_bytes <= 1_048_576, "{stats:?}");
}

#[tokio::test]
async fn keys_of_any_bytes_are_told_apart_and_can_be_named() {
    let shop = Shop::new();
    let ids: Vec<Id> = [
        &b""[..],
        b"\0",
        b"\xff\xfe",
        b"7",
        b"a:b",
        b"*",
        "价格 🛒\n".as_bytes(),
        b"\\x00",
    ]
    .into_iter()
    .map(Id::from)
    .chain([Id::Int(7), Id::Int(-1), Id::Int(i64::MIN)])
    .collect();
    for id in &ids {
        shop.read(id.clone(), "value").await;
    }
    assert_eq!(shop.loads(), ids.len() as u64);
    for id in ids {
        assert!(shop.products.get(id.clone()).is_some());
        let key = shop.cache.0.key(&shop.products.state, id.clone());
        let name = shop.cache.0.kinds.text(&key);
        assert_eq!(shop.cache.entry(&name).await.expect("there").key, name);
        assert!(shop.cache.invalidate_text(&name));
        assert!(shop.products.get(id).is_none());
    }
    assert_eq!(shop.cache.stats().memory_entries, 0);
    assert!(!shop.cache.invalidate_text("unknown:1"));
    assert!(!shop.cache.invalidate_text("product"));
}

#[tokio::test]
async fn patterns_and_tags_invalidate_what_they_mean_and_nothing_else() {
    // Keys that share a slot are invalidated together (cache/freshness.rs); these here don't.
    let (shop, lists) = loop {
        let shop = Shop::new();
        let lists: Kind<Text> = shop.cache.kind(KindRules::new("products", 1));
        let inner = &shop.cache.0;
        let products = (0..30).map(|id| inner.slot_of(&inner.key(&shop.products.state, id.into())));
        let named =
            ["toys", "books"].map(|name| inner.slot_of(&inner.key(&lists.state, name.into())));
        let tags = ["category:toys", "category:books", "catalogue"];
        let tags = tags.map(|tag| inner.freshness.slot_of_tag(tag));
        let slots: Vec<u32> = products
            .chain(named)
            .chain(tags)
            .map(|slot| slot.0)
            .collect();
        let different: std::collections::BTreeSet<_> = slots.iter().collect();
        if different.len() == slots.len() {
            break (shop, lists);
        }
    };
    let fill = async || {
        for id in 0..30 {
            shop.read(id, "product").await;
        }
        for (name, tag) in [("toys", "category:toys"), ("books", "category:books")] {
            let load = || async move { Ok::<_, Away>(Some(text(name).tag(tag).tag("catalogue"))) };
            lists.get_or_load(name, load).await.expect("loaded");
        }
    };
    let there = || {
        let products = (0..30)
            .filter(|id| shop.products.get(*id).is_some())
            .count();
        let lists = ["toys", "books"].map(|name| lists.get(name).is_some());
        (products, lists[0], lists[1])
    };
    fill().await;
    assert_eq!(shop.cache.invalidate("product:1*"), 11);
    assert_eq!(there(), (19, true, true));
    assert_eq!(shop.cache.invalidate("product:3"), 1);
    assert_eq!(there(), (18, true, true));
    assert_eq!(shop.cache.invalidate("*:*oo*"), 1);
    assert_eq!(there(), (18, true, false));
    fill().await;
    shop.cache.invalidate_tag("category:books");
    assert_eq!(there(), (30, true, false));
    fill().await;
    shop.cache.invalidate_tag("catalogue");
    assert_eq!(there(), (30, false, false));
    fill().await;
    assert_eq!(shop.cache.invalidate("product:*"), 30);
    assert_eq!(there(), (0, true, true));
    fill().await;
    shop.products.invalidate_all();
    assert_eq!(there(), (0, true, true));
    // What can't be reached any more is let go.
    assert_eq!(shop.cache.sweep(), 30);
    fill().await;
    assert_eq!(shop.cache.clear(), 32, "a pattern that matches everything");
    assert_eq!(there(), (0, false, false));
    assert_eq!(shop.cache.stats().memory_bytes, 0);
    fill().await;
    assert_eq!(
        there(),
        (30, true, true),
        "and everything can be filled again"
    );
    assert_eq!(shop.cache.invalidate("nothing:*"), 0);
    shop.seconds(10_000);
    assert_eq!(shop.cache.sweep(), 32, "what is over is let go as well");
}

#[tokio::test]
async fn a_load_that_began_before_an_invalidation_fills_nothing() {
    type Invalidate = fn(&Shop);
    let ways: &[(&str, Invalidate)] = &[
        ("key", |shop| shop.products.invalidate(1)),
        ("tag", |shop| shop.cache.invalidate_tag("tag")),
        ("kind", |shop| shop.products.invalidate_all()),
        ("whole kind", |shop| {
            shop.cache.invalidate("product:*");
        }),
        ("pattern", |shop| {
            shop.cache.invalidate("pro*:1");
        }),
        ("everything", |shop| {
            shop.cache.clear();
        }),
    ];
    for (name, invalidate) in ways {
        let (shop, gate) = (Arc::new(Shop::new()), Arc::new(Gate::default()));
        let load = {
            let gate = Arc::clone(&gate);
            || async move {
                gate.pass().await;
                Ok::<_, Away>(Some(text("before").tag("tag")))
            }
        };
        let mut early = Box::pin(shop.products.get_or_load(1, load));
        assert!(once::poll_now(&mut early).is_none());
        invalidate(&shop);
        // A request that comes now does not get what that load brings, but loads by itself where it is
        // known that it must; of a tag it is known only when the value is there.
        let late = {
            let shop = Arc::clone(&shop);
            tokio::spawn(async move { shop.read(1, "after").await })
        };
        until("the late one is done or waits", || {
            late.is_finished() || shop.cache.stats().waiting == 2
        })
        .await;
        gate.open();
        let early = early.await.expect("loaded").expect("there");
        assert_eq!(
            early.value,
            Text("before".into()),
            "{name}: it had begun before"
        );
        let late = late.await.expect("no panic").expect("there");
        assert_eq!(late.value, Text("after".into()), "{name}");
        let kept = shop.products.get(1).map(|hit| hit.value);
        assert_eq!(kept, Some(Text("after".into())), "{name}");
    }
}

#[tokio::test]
async fn a_batch_loads_what_is_missing_in_one_call() {
    let shop = Arc::new(Shop::new());
    for id in [1, 2, 3] {
        shop.read(id, "there").await;
    }
    let gate = Arc::new(Gate::default());
    let mut single = Box::pin(shop.read_gated(4, &gate));
    assert!(once::poll_now(&mut single).is_none());
    let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let ids: Vec<Id> = [3, 9, 4, 1, 8, 9, 7].map(Id::Int).to_vec();
    let batch = {
        let (shop, asked, ids) = (Arc::clone(&shop), Arc::clone(&asked), ids.clone());
        tokio::spawn(async move {
            shop.products
                .get_many_or_load(&ids, |missing| {
                    asked.lock().push(missing.clone());
                    async move {
                        tokio::task::yield_now().await;
                        let found = missing.into_iter().filter(|id| *id != Id::Int(7));
                        Ok::<_, Away>(found.map(|id| (id, text("batch"))).collect())
                    }
                })
                .await
        })
    };
    until("it waits for the single load", || {
        shop.cache.stats().waiting == 2
    })
    .await;
    gate.open();
    let hits = batch.await.expect("no panic").expect("loaded");
    let values: Vec<Option<&str>> = hits
        .iter()
        .map(|hit| hit.as_ref().map(|hit| &*hit.value.0))
        .collect();
    let (there, batch) = (Some("there"), Some("batch"));
    assert_eq!(
        values,
        [there, batch, Some("gated"), there, batch, batch, None]
    );
    assert_eq!(*asked.lock(), [[9, 8, 7].map(Id::Int).to_vec()]);
    single.await.expect("loaded");
    assert_eq!(shop.loads(), 4);
    // Now everything is known, also that there is no 7.
    let again = shop
        .products
        .get_many_or_load(&ids, |_| async { Err(Away) })
        .await;
    assert_eq!(again.expect("no load").iter().flatten().count(), 6);
    let error = shop
        .products
        .get_many_or_load(&[Id::Int(1), Id::Int(100)], |_| async { Err(Away) })
        .await
        .expect_err("it must load");
    assert!(error.cause::<Away>().is_some());
    assert_eq!(shop.cache.stats().loading, 0);
}

#[tokio::test]
async fn hot_keys_outlive_a_flood_refresh_and_invalidation() {
    let mut there = Vec::new();
    for is_heated in [true, false] {
        let shop = Shop::with(
            |settings| {
                settings.memory_bytes = 1_048_576;
                // The oldest gives way: nothing but the pin protects it.
                settings.eviction = Eviction::Fifo;
            },
            RULES,
        );
        shop.read(1, "hot").await;
        if is_heated {
            heat(&shop, 1);
            assert_eq!(
                shop.cache.entry("product:1").await.expect("there").level,
                Level::Pinned
            );
        }
        for id in 1_000..20_000 {
            shop.read(id, "flood").await;
        }
        there.push(shop.products.get(1).is_some());
        if is_heated {
            shop.products.invalidate(1);
            assert!(shop.products.get(1).is_none(), "a pin is no less exact");
            shop.read(1, "newer").await;
            for id in 1_000..20_000 {
                shop.read(id, "flood").await;
            }
            let hit = shop.products.get(1).expect("pinned again");
            assert_eq!(hit.value, Text("newer".into()));
            shop.seconds(120);
            shop.cache.tick();
            assert!(shop.cache.hot_keys().is_empty());
            assert_eq!(shop.cache.stats().pinned_entries, 0);
        }
    }
    tell("hot keys: still there after a flood", there[0], there[1]);
    assert_eq!(there, [true, false]);
}

#[tokio::test]
async fn what_was_hot_is_loaded_at_the_next_start() {
    let shop = Shop::new();
    shop.read(1, "hot").await;
    heat(&shop, 1);
    shop.cache.save_hot_keys().await;

    let again = Shop::new();
    std::fs::create_dir_all(again.cache.0.list.parent().expect("a folder")).expect("made");
    std::fs::copy(&shop.cache.0.list, &again.cache.0.list).expect("copied");
    again.cache.preload().await;
    assert!(
        again.products.get(1).is_none(),
        "nobody said how to load it"
    );
    let loads = Arc::clone(&again.loads);
    again.products.on_warm(move |kind, ids| {
        let loads = Arc::clone(&loads);
        Box::pin(async move {
            let hits = kind
                .get_many_or_load(&ids, |missing| {
                    loads.fetch_add(1, Ordering::SeqCst);
                    let found = missing.into_iter().filter(|id| *id != Id::Int(404));
                    let found = found.map(|id| (id, text("warm"))).collect();
                    async move { Ok::<_, Away>(found) }
                })
                .await?;
            Ok(hits.iter().flatten().count())
        })
    });
    again.cache.preload().await;
    assert!(again.products.get(1).is_some());
    let warmed = again
        .cache
        .warm(&[
            "product:2",
            "product:404",
            "product:\\z",
            "unknown:1",
            "nonsense",
        ])
        .await;
    assert_eq!(
        warmed,
        Warmed {
            warmed: 1,
            failed: 1,
            unknown: 3
        }
    );
    assert_eq!(again.loads(), 2, "one call for each list");
    assert!(again.products.get(2).is_some());
}

#[tokio::test]
async fn without_a_cache_loads_are_shared_all_the_same() {
    let shop = Arc::new(Shop::with(|settings| settings.enabled = false, RULES));
    for _ in 0..3 {
        assert!(shop.read(1, "value").await.is_some());
    }
    assert_eq!(shop.loads(), 3);
    assert_eq!(shop.cache.stats().memory_entries, 0);
    let gate = Arc::new(Gate::default());
    let reads: Vec<_> = (0..10)
        .map(|_| {
            let (shop, gate) = (Arc::clone(&shop), Arc::clone(&gate));
            tokio::spawn(async move { shop.read_gated(2, &gate).await })
        })
        .collect();
    until("all wait", || shop.cache.stats().waiting == 10).await;
    gate.open();
    for read in reads {
        assert!(read.await.expect("no panic").expect("loaded").is_some());
    }
    assert_eq!(shop.loads(), 4);
}

/// A small generator, so that a failure can be told by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

const KEYS: usize = 24;

/// Rows with a version each. A commit raises one; `told` is what a client may know of.
#[derive(Default)]
struct Rows {
    versions: [AtomicI64; KEYS],
    told: [AtomicI64; KEYS],
}

/// Writers commit, invalidate and answer; readers hold each value against what had been answered
/// before they began.
async fn readers_and_writers(shop: Shop, seed: u64) -> (u64, u64) {
    let (shop, rows) = (Arc::new(shop), Arc::new(Rows::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..2_u64 {
        let (shop, rows, stop) = (Arc::clone(&shop), Arc::clone(&rows), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut dice = Dice(seed * 31 + writer + 1);
            for _ in 0..4_000 {
                // Each writer has rows of its own, so that versions rise in the order of commits.
                let at = dice.below(KEYS as u64 / 2) as usize * 2 + writer as usize;
                let version = rows.versions[at].fetch_add(1, Ordering::SeqCst) + 1;
                match dice.below(20) {
                    0 => shop.cache.invalidate_tag(&format!("row:{at}")),
                    1 => {
                        shop.cache.invalidate(&format!("*:{at}"));
                    }
                    2 => shop.products.invalidate_all(),
                    3 => {
                        shop.cache.clear();
                    }
                    _ => shop.products.invalidate(at as i64),
                }
                rows.told[at].store(version, Ordering::SeqCst);
                for _ in 0..dice.below(4) {
                    tokio::task::yield_now().await;
                }
            }
            stop.store(true, Ordering::SeqCst);
            0
        });
    }
    for reader in 0..4_u64 {
        let (shop, rows, stop) = (Arc::clone(&shop), Arc::clone(&rows), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut dice = Dice(seed * 131 + reader + 7);
            let mut reads = 0;
            while !stop.load(Ordering::SeqCst) {
                let ids: Vec<usize> = (0..1 + dice.below(3))
                    .map(|_| dice.below(KEYS as u64) as usize)
                    .collect();
                let told: Vec<i64> = ids
                    .iter()
                    .map(|at| rows.told[*at].load(Ordering::SeqCst))
                    .collect();
                let pauses = dice.below(3);
                let load = {
                    let (rows, clock) = (Arc::clone(&rows), shop.clock.clone());
                    move |ids: Vec<Id>| {
                        let (rows, clock) = (Arc::clone(&rows), clock.clone());
                        async move {
                            let mut found = Vec::new();
                            for id in ids {
                                let Id::Int(at) = id else { continue };
                                let version = rows.versions[at as usize].load(Ordering::SeqCst);
                                let value = text(version).tag(format!("row:{at}"));
                                found.push((Id::Int(at), value));
                            }
                            // The time between reading and filling is where the danger is.
                            for _ in 0..pauses {
                                tokio::task::yield_now().await;
                            }
                            clock.advance(Duration::from_millis(5 * pauses));
                            Ok::<_, Away>(found)
                        }
                    }
                };
                let values: Vec<Hit<Text>> = match &ids[..] {
                    [at] => {
                        let (id, load) = (*at as i64, load.clone());
                        let one = || {
                            let load = load(vec![Id::Int(id)]);
                            async move { Ok::<_, Away>(load.await?.pop().map(|(_, value)| value)) }
                        };
                        let hit = shop.products.get_or_load(id, one).await;
                        vec![hit.expect("loaded").expect("there")]
                    }
                    many => {
                        let ids: Vec<Id> = many.iter().map(|at| Id::Int(*at as i64)).collect();
                        let hits = shop.products.get_many_or_load(&ids, load).await;
                        hits.expect("loaded").into_iter().flatten().collect()
                    }
                };
                assert_eq!(values.len(), ids.len());
                for ((at, told), hit) in ids.iter().zip(told).zip(values) {
                    let version: i64 = hit.value.0.parse().expect("a version");
                    assert!(
                        version >= told,
                        "seed {seed}: row {at} was read as {version} after {told} had been answered"
                    );
                    reads += 1;
                }
                // Hits alone never wait, and would keep the writers from running.
                tokio::task::yield_now().await;
                // Hot keys are pinned and refreshed meanwhile.
                if dice.below(50) == 0 {
                    shop.cache.tick();
                }
            }
            reads
        });
    }
    let mut reads = 0;
    while let Some(done) = tasks.join_next().await {
        reads += done.expect("no read was too old");
    }
    (reads, shop.metrics.cache.disk.hits.get())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_read_is_older_than_an_invalidation_that_was_done_before_it() {
    let mut whole = 0;
    for seed in 1..=6 {
        let shop = Shop::with(
            |settings| {
                settings.hot_reads_min = 100;
                // Half of the runs expire and refresh all the time.
                settings.ttl_seconds = if seed % 2 == 0 { 1 } else { 300 };
                settings.refresh_percent = 20;
                settings.stale_after_ms = 1;
            },
            RULES,
        );
        let (reads, _) = readers_and_writers(shop, seed).await;
        whole += reads;
    }
    assert!(whole > 1_000, "{whole} reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_with_values_that_come_and_go_from_disk() {
    let (mut reads, mut disk_hits) = (0, 0);
    for seed in 90..130 {
        let (some_reads, some_hits) = readers_writers_and_a_flood(seed).await;
        reads += some_reads;
        disk_hits += some_hits;
        if seed > 93 && disk_hits > 0 {
            break;
        }
    }
    assert!(reads > 100, "{reads} reads");
    assert!(disk_hits > 0, "values came back from disk");
}

/// [`readers_and_writers`] while others' values push theirs out of memory.
async fn readers_writers_and_a_flood(seed: u64) -> (u64, u64) {
    let shop = Shop::with(
        |settings| {
            settings.memory_bytes = 1_048_576;
            // So few that the flood pushes each out soon.
            settings.memory_entries_max = 48;
            settings.eviction = Eviction::Fifo;
            settings.disk_bytes = 67_108_864;
            settings.disk_load_ms_min = 1;
            settings.disk_timeout_ms = 5_000;
        },
        RULES,
    );
    // The level is opened by the first value that it is offered.
    let other: Kind<Text> = shop.cache.kind(KindRules::new("flood", 1));
    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let (stop, clock) = (Arc::clone(&stop), shop.clock.clone());
        tokio::spawn(async move {
            let mut at = 0_i64;
            while !stop.load(Ordering::SeqCst) {
                at += 1;
                let clock = clock.clone();
                let load = || async move {
                    clock.advance(Duration::from_millis(2));
                    Ok::<_, Away>(Some(text("flood")))
                };
                other.get_or_load(at, load).await.expect("loaded");
                if at % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        })
    };
    let done = readers_and_writers(shop, seed).await;
    stop.store(true, Ordering::SeqCst);
    flood.await.expect("no panic");
    done
}
