//! The cache: one hot product; Zipf reads over a real catalogue of which a twentieth finds room;
//! batches; a stampede onto one slow key; everything expiring at once; a start with and without what
//! was hot, and one after a crash. Where it says something, the same without the cache beside it.
//!
//! `bench/completejourney.py` fetches the catalogue; without it one of the same size is made up.
//! `cargo bench --bench cache`, with `-- --quick` (20,000 products), `-- --json`, or words of the wanted
//! figures' names: `hot`, `zipf`, `batch`, `stampede`, `expiry`, `restart`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use onrush::clock::Stopwatch;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

#[path = "support/command.rs"]
mod command;
#[path = "support/cost.rs"]
mod cost;
#[path = "support/data.rs"]
mod data;
#[path = "support/load.rs"]
mod load;
#[path = "support/metrics.rs"]
#[expect(
    dead_code,
    reason = "hardly anything is written here, so no commits are counted"
)]
mod metrics;
#[path = "support/plain.rs"]
mod plain;
mod support;

use command::{file, watched};
use cost::{costed, judge};
use data::Data;
use load::{Answer, Length, Seen, request};
use support::{Bar, Options, Process, Report, binary, tell, temporary};

const ROUNDS: usize = 5;
/// Products of the real catalogue, and of a quick run: a twentieth of those is the least room that the
/// settings allow.
const PRODUCTS: usize = 92_348;
const QUICK_PRODUCTS: usize = 20_000;
/// One product in so many finds room in memory.
const ROOM: usize = 20;
/// What each of them is taken to weigh, more than any does: so their number alone decides.
const WEIGHT: usize = 8_192;
/// The ways to choose what gives way.
const EVICTIONS: [&str; 5] = ["s3_fifo", "lfu", "lru", "sieve", "fifo"];
/// Requests that come at once for one key.
const STAMPEDE: usize = 512;
/// What most products' words fit, so that the list of them takes long to make.
const SLOW_LIST: &str = "/api/v1/products?q=national%20brand%20m";
/// The statements that such a list takes.
const LIST_STATEMENTS: [&str; 2] = ["product.list", "product.by_ids"];
/// Products that expire together.
const EXPIRING: usize = 2_000;
/// The most that one request may name.
const PAGE_MAX: usize = 200;
/// Within this time, loads count as coming at once.
const AT_ONCE_SECONDS: f64 = 0.1;
/// Between two reads of everything that expires.
const LOOK: Duration = Duration::from_millis(20);
/// Reads that are the first after a start.
const FIRST_READS: usize = 200;
/// Products whose price changes just before the server is killed.
const CHANGED: usize = 20;

/// Environment variables of a server.
type Given = Vec<(&'static str, String)>;

fn main() -> ExitCode {
    plain::run(measure)
}

fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let binary = binary()?;
    let data = Data::new()?;
    let mut bench = Bench {
        options,
        report,
        ids: catalogue(options, &binary, &data)?,
        binary,
        data,
    };
    let products = bench.ids.len() as f64;
    bench
        .report
        .add("catalogue", "products", products, Bar::None);
    if options.wants("hot product") {
        bench.hot()?;
    }
    if options.wants("zipf reads") {
        bench.zipf()?;
    }
    if options.wants("batch of 20, hot") {
        bench.hot_batch()?;
    }
    if options.wants("batch of 20, half cold") {
        bench.half_cold_batch()?;
    }
    if options.wants("stampede") {
        bench.stampede()?;
    }
    if options.wants("expiry") {
        bench.expiry()?;
    }
    if options.wants("restart") {
        bench.restart()?;
    }
    if options.wants("restart, killed") {
        bench.killed()?;
    }
    Ok(())
}

/// Fills the catalogue; answers its ids in an order that has nothing to do with that of the rows.
fn catalogue(options: &Options, binary: &Path, data: &Data) -> anyhow::Result<Vec<i64>> {
    let dir = temporary()?;
    let count = match options.quick {
        true => QUICK_PRODUCTS,
        false => PRODUCTS,
    };
    let csv = match (file("products.csv"), options.quick) {
        (real, false) if real.exists() => real,
        (real, _) => {
            let some = dir.path().join("products.csv");
            match real.exists() {
                true => first_rows(&real, &some, count)?,
                false => {
                    tell(
                        "there is no real catalogue; bench/completejourney.py fetches it. One is made up",
                    );
                    make_up(&some, count)?;
                }
            }
            some
        }
    };
    tell("importing products");
    let mut import = Command::new(binary);
    import.env_clear().args(["import", "products", "--json"]);
    watched(import.arg("--data-dir").arg(&data.path).arg(&csv))?;
    let conn = Connection::open_with_flags(
        data.path.join("onrush.db"),
        OpenFlags::SQLITE_OPEN_READ_ONLY,
    )?;
    let mut ids = conn
        .prepare("SELECT id FROM products ORDER BY id")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<Vec<i64>, _>>()?;
    ensure!(ids.len() >= QUICK_PRODUCTS, "only {} products", ids.len());
    ids.shuffle(&mut StdRng::seed_from_u64(4));
    Ok(ids)
}

/// The first rows of a CSV file as a file of their own.
fn first_rows(from: &Path, to: &Path, count: usize) -> anyhow::Result<()> {
    let mut rows = csv::Reader::from_path(from)?;
    let mut out = csv::Writer::from_path(to)?;
    out.write_record(rows.headers()?)?;
    for row in rows.records().take(count) {
        out.write_record(&row?)?;
    }
    out.flush()?;
    Ok(())
}

/// A catalogue of the same shape as the real one.
fn make_up(to: &Path, count: usize) -> anyhow::Result<()> {
    let mut out = csv::Writer::from_path(to)?;
    let columns = [
        "sku",
        "name",
        "description",
        "category",
        "price",
        "currency",
        "stock",
        "popularity",
    ];
    out.write_record(columns)?;
    for number in 0..count {
        out.write_record([
            format!("made-up-{number}"),
            format!("PRODUCT {number}"),
            format!(
                "National brand, manufacturer {}, department MADE UP",
                number % 6_000
            ),
            format!("Category {}", number % 300),
            format!("{}.50", number % 90),
            "USD".to_owned(),
            "1000".to_owned(),
            (number % 1_000).to_string(),
        ])?;
    }
    out.flush()?;
    Ok(())
}

/// Draws places so that the second is half as likely as the first, the third a third, and so on.
struct Zipf {
    /// How likely a place is up to each.
    up_to: Vec<f64>,
}

impl Zipf {
    fn new(places: usize) -> Self {
        let mut sum = 0.0;
        let mut up_to: Vec<f64> = (1..=places)
            .map(|place| {
                sum += 1.0 / place as f64;
                sum
            })
            .collect();
        up_to.iter_mut().for_each(|so_far| *so_far /= sum);
        Self { up_to }
    }

    fn draw(&self, rng: &mut StdRng) -> usize {
        let drawn: f64 = rng.random();
        let place = self.up_to.partition_point(|so_far| *so_far <= drawn);
        place.min(self.up_to.len() - 1)
    }

    /// How many draws of 100 fall onto the first so many places.
    fn percent(&self, places: usize) -> f64 {
        100.0 * self.up_to[places - 1]
    }
}

/// Reads of products, one by one, and what their answers begin with.
struct Reads {
    requests: Vec<Vec<u8>>,
    beginnings: Vec<String>,
}

impl Reads {
    fn of(ids: impl IntoIterator<Item = i64>) -> Self {
        let (requests, beginnings) = ids
            .into_iter()
            .map(|id| {
                let path = format!("/api/v1/products/{id}");
                (request("GET", &path, "", ""), format!("{{\"id\":{id},"))
            })
            .unzip();
        Self {
            requests,
            beginnings,
        }
    }

    fn is_right(&self, answer: &Answer<'_>) -> bool {
        let beginning = &self.beginnings[answer.request % self.beginnings.len()];
        answer.status == 200 && answer.body.starts_with(beginning.as_bytes())
    }
}

/// What the cache has counted since the start of its server.
#[derive(Clone, Copy)]
struct Counted {
    /// Look-ups that each level answered.
    hits: [f64; 3],
    /// Look-ups that the first level was asked.
    asked: f64,
    loads: f64,
    joined: f64,
}

/// The levels, in the order in which they are asked.
const LEVELS: [&str; 3] = ["memory: hits %", "absent: hits %", "disk: hits %"];

impl Counted {
    fn of(server: &Process) -> anyhow::Result<Self> {
        let values = metrics::values(
            server,
            [
                "cache_hits_total{cache_layer=\"memory\"}",
                "cache_hits_total{cache_layer=\"absent\"}",
                "cache_hits_total{cache_layer=\"disk\"}",
                "cache_misses_total{cache_layer=\"memory\"}",
                "cache_loads_total{outcome=\"ok\"}",
                "cache_joined_total",
            ],
        )?;
        let mut known = [0.0; 6];
        for (known, value) in known.iter_mut().zip(values) {
            *known = value.context("the cache counts nothing")?;
        }
        let [memory, absent, disk, missed, loads, joined] = known;
        Ok(Self {
            hits: [memory, absent, disk],
            asked: memory + missed,
            loads,
            joined,
        })
    }

    /// What was counted since `before`, of 100 look-ups.
    fn percent_since(self, before: Self) -> Self {
        let asked = self.asked - before.asked;
        let of = |now: f64, before: f64| 100.0 * (now - before) / asked;
        let mut hits = self.hits;
        for (now, before) in hits.iter_mut().zip(before.hits) {
            *now = of(*now, before);
        }
        Self {
            hits,
            asked: 100.0,
            loads: of(self.loads, before.loads),
            joined: of(self.joined, before.joined),
        }
    }
}

/// How often each statement ran since the start, by its name.
fn statements(server: &Process, key: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let path = "/api/v1/system/slow-queries?sort=calls&limit=200";
    let (status, body) = server.call("GET", path, key, "")?;
    ensure!(status == 200, "{path}: {status} {body}");
    let body: Value = serde_json::from_str(&body)?;
    let mut calls = BTreeMap::new();
    for item in body["items"].as_array().context("no statements")? {
        let name = item["name"].as_str().context("no name")?;
        *calls.entry(name.to_owned()).or_insert(0.0) += item["calls"].as_f64().unwrap_or(0.0);
    }
    Ok(calls)
}

/// What all measurements need.
struct Bench<'a> {
    options: &'a Options,
    report: &'a mut Report,
    binary: PathBuf,
    data: Data,
    ids: Vec<i64>,
}

impl Bench<'_> {
    fn rounds(&self) -> usize {
        if self.options.quick { 1 } else { ROUNDS }
    }

    fn round(&self) -> Length {
        Length::Seconds(if self.options.quick { 0.5 } else { 2.0 })
    }

    fn serve(&self, given: &Given) -> anyhow::Result<Process> {
        Process::serve(&self.binary, &self.data.path, given)
    }

    fn judge(&mut self, what: &str, seen: &Seen) {
        judge(self.report, what, seen);
    }

    fn call(
        &self,
        server: &Process,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<String> {
        let (status, answer) = server.call(method, path, &self.data.key, body)?;
        ensure!(status == 200, "{method} {path}: {status} {answer}");
        Ok(answer)
    }

    /// Products that find room in memory.
    fn room(&self) -> usize {
        self.ids.len() / ROOM
    }

    /// Memory for [`Bench::room`] products.
    fn little_memory(&self) -> Given {
        vec![
            ("ONRUSH_CACHE__MEMORY_ENTRIES_MAX", self.room().to_string()),
            (
                "ONRUSH_CACHE__MEMORY_BYTES",
                (self.room() * WEIGHT).to_string(),
            ),
        ]
    }

    /// Rounds of 64 connections with the cache, without it, and of a plain server that answers as many
    /// bytes. `warm` is asked for first.
    fn on_and_off(
        &mut self,
        what: &str,
        on: &Given,
        [warm, requests]: [&[Vec<u8>]; 2],
        [ratio_bar, micros_bar]: [Bar; 2],
        right: impl Fn(&Answer<'_>) -> bool,
    ) -> anyhow::Result<()> {
        tell(what);
        let warm_up = Length::Seconds(0.3);
        let mut floor: Option<(Process, usize)> = None;
        for _ in 0..self.rounds() {
            let mut rates = Vec::new();
            for (name, given) in [
                (what.to_owned(), on.clone()),
                (format!("{what}, no cache"), off()),
            ] {
                let server = self.serve(&given)?;
                let is_ok = |answer: &Answer<'_>| answer.status == 200;
                let warmed = load::run(server.address, 64, warm_up, warm, is_ok)?;
                self.judge(&name, &warmed);
                let before = Counted::of(&server)?;
                let mut bytes = 0;
                let (seen, micros) = costed(&server, |address| {
                    load::run(address, 64, self.round(), requests, |answer| {
                        bytes = answer.body.len();
                        right(answer)
                    })
                })?;
                self.judge(&name, &seen);
                let counted = Counted::of(&server)?.percent_since(before);
                server.stop()?;
                if floor.is_none() {
                    floor = Some((plain::start(bytes)?, bytes));
                }
                let is_on = rates.is_empty();
                let bar = if is_on { micros_bar } else { Bar::None };
                self.report.add(&name, "µs", micros, bar);
                self.tell_seen(&name, &seen);
                self.report
                    .add(&name, LEVELS[0], counted.hits[0], Bar::None);
                rates.push((name, seen.rate(), micros));
            }
            let (plain, bytes) = floor.as_ref().context("no plain server")?;
            let plain_requests = [plain::request(&requests[0])?];
            let is_right =
                |answer: &Answer<'_>| answer.status == 200 && answer.body.len() == *bytes;
            let warmed = load::run(plain.address, 64, warm_up, &plain_requests, is_right)?;
            judge(self.report, "plain server", &warmed);
            let (seen, micros) = costed(plain, |address| {
                load::run(address, 64, self.round(), &plain_requests, is_right)
            })?;
            judge(self.report, "plain server", &seen);
            self.report.add(what, "P: µs", micros, Bar::None);
            self.report.add(what, "P: /s", seen.rate(), Bar::None);
            for (number, (name, rate, _)) in rates.iter().enumerate() {
                let bar = if number == 0 { ratio_bar } else { Bar::None };
                self.report.add(name, "of P", rate / seen.rate(), bar);
            }
            let saved = rates[0].2 / rates[1].2;
            self.report.add(what, "µs of no cache", saved, Bar::None);
        }
        Ok(())
    }

    /// How fast, how soon, and at what cost of the load.
    fn tell_seen(&mut self, what: &str, seen: &Seen) {
        let own = seen.cpu_seconds * 1e6 / seen.answered.max(1) as f64;
        for (unit, value) in [
            ("/s", seen.rate()),
            ("p50 ms", seen.quantile_ms(0.5)),
            ("p99 ms", seen.quantile_ms(0.99)),
            ("load: µs", own),
        ] {
            self.report.add(what, unit, value, Bar::None);
        }
    }

    fn hot(&mut self) -> anyhow::Result<()> {
        let reads = Reads::of([self.ids[0]]);
        self.on_and_off(
            "hot product",
            &Given::new(),
            [&reads.requests; 2],
            [Bar::Least(0.6, 0.8), Bar::Most(20.0, 15.0)],
            |answer| reads.is_right(answer),
        )
    }

    fn hot_batch(&mut self) -> anyhow::Result<()> {
        let requests = [batch(&self.ids[..20])];
        let first = self.ids[0];
        self.on_and_off(
            "batch of 20, hot",
            &Given::new(),
            [&requests; 2],
            [Bar::None, Bar::Most(45.0, 25.0)],
            move |answer| is_whole_batch(answer, first),
        )
    }

    /// Ten products that everyone asks for, and ten that nobody asked for lately: so many others were
    /// asked for since that they left memory.
    fn half_cold_batch(&mut self) -> anyhow::Result<()> {
        let (hot, cold) = self.ids.split_at(10);
        let requests: Vec<_> = cold
            .chunks_exact(10)
            .map(|cold| batch(&[hot, cold].concat()))
            .collect();
        let (warm, first) = ([batch(hot)], hot[0]);
        let given = self.little_memory();
        self.on_and_off(
            "batch of 20, half cold",
            &given,
            [&warm, &requests],
            [Bar::None, Bar::None],
            move |answer| is_whole_batch(answer, first),
        )
    }

    fn zipf_reads(&self, zipf: &Zipf, seed: u64, count: usize) -> Reads {
        let mut rng = StdRng::seed_from_u64(seed);
        Reads::of((0..count).map(|_| self.ids[zipf.draw(&mut rng)]))
    }

    /// In each round all ways are asked for the same products in the same order.
    fn zipf(&mut self) -> anyhow::Result<()> {
        let what = "zipf reads";
        let zipf = Zipf::new(self.ids.len());
        let count = if self.options.quick { 5_000 } else { 60_000 };
        self.report.add(what, "room", self.room() as f64, Bar::None);
        // What a memory would answer that held the most asked for from the start, and nothing else.
        let best = zipf.percent(self.room());
        self.report
            .add(what, "reads of the first 5 %: %", best, Bar::None);
        let mut ways: Vec<(String, Given)> = vec![
            (what.to_owned(), self.little_memory()),
            (format!("{what}, no cache"), off()),
        ];
        for eviction in EVICTIONS {
            let mut given = self.little_memory();
            given.push(("ONRUSH_CACHE__EVICTION", eviction.to_owned()));
            // Hot keys are kept whatever gives way; here it is to be seen by itself.
            given.push(("ONRUSH_CACHE__HOT_KEYS_MAX", "0".to_owned()));
            ways.push((format!("{what}, {eviction} alone"), given));
        }
        for round in 0..self.rounds() {
            tell(&format!("{what}, round {}", round + 1));
            let seed = 2 * round as u64;
            let warm = self.zipf_reads(&zipf, seed, count);
            let reads = self.zipf_reads(&zipf, seed + 1, count);
            for (name, given) in &ways {
                let server = self.serve(given)?;
                let run = |address, reads: &Reads| {
                    let length = Length::Requests(count);
                    load::run(address, 64, length, &reads.requests, |answer| {
                        reads.is_right(answer)
                    })
                };
                let warmed = run(server.address, &warm)?;
                self.judge(name, &warmed);
                let before = Counted::of(&server)?;
                let (seen, micros) = costed(&server, |address| run(address, &reads))?;
                self.judge(name, &seen);
                let counted = Counted::of(&server)?.percent_since(before);
                for (level, hits) in LEVELS.iter().zip(counted.hits) {
                    self.report.add(name, level, hits, Bar::None);
                }
                self.report.add(name, "joined %", counted.joined, Bar::None);
                self.report.add(name, "loads %", counted.loads, Bar::None);
                self.report.add(name, "µs", micros, Bar::None);
                self.tell_seen(name, &seen);
                let held = server.memory_mb("VmRSS")?;
                self.report.add(name, "RSS MB", held, Bar::None);
                server.stop()?;
            }
        }
        Ok(())
    }

    /// Everybody asks at once for a list that takes long to make; and, to see what that would be if
    /// nothing were shared, everybody for one of his own.
    fn stampede(&mut self) -> anyhow::Result<()> {
        let what = "stampede";
        tell(what);
        let alike = vec![request("GET", &format!("{SLOW_LIST}&limit=200"), "", "")];
        let sorts = ["popularity", "price_asc", "price_desc", "newest"];
        let different: Vec<_> = (0..STAMPEDE)
            .map(|number| {
                // No page is longer than the one that all ask for, and none is much shorter.
                let (sort, limit) = (sorts[number % 4], PAGE_MAX - number / 4);
                let path = format!("{SLOW_LIST}&sort={sort}&limit={limit}");
                request("GET", &path, "", "")
            })
            .collect();
        for _ in 0..self.rounds() {
            for (name, given) in [
                (what.to_owned(), Given::new()),
                (format!("{what}, no cache"), off()),
            ] {
                let server = self.serve(&given)?;
                let path = format!("{SLOW_LIST}&limit=200");
                let watch = Stopwatch::start();
                let body = self.call(&server, "GET", &path, "")?;
                let alone = watch.elapsed_seconds() * 1e3;
                ensure!(body.contains("\"id\":"), "the list is empty: {body}");
                self.report.add(&name, "one alone ms", alone, Bar::None);
                self.rush(&server, &name, &alike, |answer| {
                    answer.status == 200 && answer.body == body.as_bytes()
                })?;
                // Who can't be served in time is told so.
                let others = format!("{name}, nothing shared");
                self.rush(&server, &others, &different, |answer| {
                    answer.status == 503
                        || answer.status == 200 && answer.body.starts_with(b"{\"items\":[{\"id\":")
                })?;
                server.stop()?;
            }
        }
        Ok(())
    }

    /// [`STAMPEDE`] requests at once, of which nothing is in the cache.
    fn rush(
        &mut self,
        server: &Process,
        what: &str,
        requests: &[Vec<u8>],
        right: impl Fn(&Answer<'_>) -> bool,
    ) -> anyhow::Result<()> {
        self.call(
            server,
            "POST",
            "/api/v1/cache/invalidate",
            "{\"pattern\":\"*\"}",
        )?;
        let before = statements(server, &self.data.key)?;
        let mut served = 0;
        let (seen, micros) = costed(server, |address| {
            let length = Length::Requests(STAMPEDE);
            load::run(address, STAMPEDE, length, requests, |answer| {
                served += usize::from(answer.status == 200);
                right(answer)
            })
        })?;
        self.judge(what, &seen);
        let after = statements(server, &self.data.key)?;
        for name in LIST_STATEMENTS {
            let of = |calls: &BTreeMap<String, f64>| calls.get(name).copied().unwrap_or(0.0);
            let ran = of(&after) - of(&before);
            let unit = format!("{name} ran");
            self.report.add(what, &unit, ran, Bar::None);
        }
        self.report
            .add(what, "answered with a list", served as f64, Bar::None);
        self.report.add(what, "µs", micros, Bar::None);
        self.report
            .add(what, "p50 ms", seen.quantile_ms(0.5), Bar::None);
        self.report
            .add(what, "p99 ms", seen.quantile_ms(0.99), Bar::None);
        Ok(())
    }

    /// Products that were loaded together and are read all the time: when they are loaded anew.
    fn expiry(&mut self) -> anyhow::Result<()> {
        let ttl_seconds = if self.options.quick { 3 } else { 5 };
        let requests: Vec<_> = self.ids[..EXPIRING].chunks(PAGE_MAX).map(batch).collect();
        for round in 0..if self.options.quick { 1 } else { 3 } {
            tell(&format!("expiry, round {}", round + 1));
            for (what, jitter) in [
                ("expiry, lives differ by 20 %", "20"),
                ("expiry, lives are equal", "0"),
            ] {
                let server = self.serve(&vec![
                    ("ONRUSH_CACHE__TTL_SECONDS", ttl_seconds.to_string()),
                    ("ONRUSH_CACHE__TTL_JITTER_PERCENT", jitter.to_owned()),
                    // What is hot is loaded before it expires, which is not to be seen here.
                    ("ONRUSH_CACHE__HOT_KEYS_MAX", "0".to_owned()),
                ])?;
                self.expire(&server, what, ttl_seconds as f64, &requests)?;
                server.stop()?;
            }
        }
        Ok(())
    }

    fn expire(
        &mut self,
        server: &Process,
        what: &str,
        ttl_seconds: f64,
        requests: &[Vec<u8>],
    ) -> anyhow::Result<()> {
        let read_all = || {
            load::run(
                server.address,
                1,
                Length::Requests(requests.len()),
                requests,
                |answer| answer.status == 200 && answer.body.ends_with(b"}]}"),
            )
        };
        let watch = Stopwatch::start();
        let first = read_all()?;
        self.judge(what, &first);
        let mut so_far = Counted::of(server)?.loads;
        // When they were seen to have been loaded anew, and how many.
        let (mut anew, mut longest) = (Vec::new(), 0.0_f64);
        // Before any is loaded a third time: the shortest life twice is longer.
        while watch.elapsed_seconds() < 1.4 * ttl_seconds {
            let seen = read_all()?;
            self.judge(what, &seen);
            longest = longest.max(seen.seconds * 1e3);
            let loads = Counted::of(server)?.loads;
            if loads > so_far {
                anew.push((watch.elapsed_seconds(), loads - so_far));
            }
            so_far = loads;
            std::thread::sleep(LOOK);
        }
        let all: f64 = anew.iter().map(|(_, loads)| loads).sum();
        let busiest = (0..anew.len())
            .map(|first| {
                let until = anew[first].0 + AT_ONCE_SECONDS;
                let within = anew[first..].iter().take_while(|(at, _)| *at < until);
                within.map(|(_, loads)| loads).sum()
            })
            .fold(0.0, f64::max);
        let spread = match (anew.first(), anew.last()) {
            (Some((first, _)), Some((last, _))) => last - first,
            _ => 0.0,
        };
        self.report
            .add(what, "products", EXPIRING as f64, Bar::None);
        self.report.add(what, "loaded anew", all, Bar::None);
        self.report.add(what, "over how many s", spread, Bar::None);
        self.report.add(what, "most in 0.1 s", busiest, Bar::None);
        self.report
            .add(what, "longest read of all ms", longest, Bar::None);
        Ok(())
    }

    /// Keys are hot already when they are read a few times, so that a short run makes some.
    fn easily_hot(&self) -> Given {
        vec![("ONRUSH_CACHE__HOT_READS_MIN", "32".to_owned())]
    }

    /// The same, with room for a twentieth in memory and for the others on disk.
    fn easily_hot_on_disk(&self) -> Given {
        let mut given = self.easily_hot();
        given.extend(self.little_memory());
        given.push(("ONRUSH_CACHE__DISK_BYTES", (256 << 20).to_string()));
        given.push(("ONRUSH_CACHE__DISK_LOAD_MS_MIN", "0".to_owned()));
        given
    }

    /// MB that the level on disk takes.
    fn on_disk_mb(&self) -> anyhow::Result<f64> {
        let mut blocks = 0;
        let mut folders = vec![self.data.path.join("cache")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                let about = entry.metadata()?;
                blocks += about.blocks();
                if about.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        Ok(blocks as f64 * 512.0 / 1e6)
    }

    /// Where the list of hot keys lies between two runs.
    fn list(&self) -> PathBuf {
        self.data.path.join("cache").join("hot-keys")
    }

    /// Starts a server; answers it and after how many ms it was ready.
    fn start(&self, given: &Given) -> anyhow::Result<(Process, f64)> {
        let watch = Stopwatch::start();
        let server = self.serve(given)?;
        self.call(&server, "GET", "/readyz", "")?;
        Ok((server, watch.elapsed_seconds() * 1e3))
    }

    /// Makes some keys hot and ends in order, which writes the list of them; answers that.
    fn hot_keys(&mut self, what: &str, zipf: &Zipf, given: &Given) -> anyhow::Result<Vec<u8>> {
        let count = if self.options.quick { 5_000 } else { 60_000 };
        let reads = self.zipf_reads(zipf, 100, count);
        let server = self.serve(given)?;
        let length = Length::Requests(count);
        let seen = load::run(server.address, 64, length, &reads.requests, |answer| {
            reads.is_right(answer)
        })?;
        self.judge(what, &seen);
        server.stop()?;
        std::fs::read(self.list()).context("there is no list of hot keys")
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        let given = self.easily_hot_on_disk();
        let (what, zipf) = ("restart", Zipf::new(self.ids.len()));
        tell(what);
        let list = self.hot_keys(what, &zipf, &given)?;
        let keys = list.split(|byte| *byte == b'\n').count() - 2;
        self.report.add(what, "hot keys", keys as f64, Bar::None);
        // Its first minute is what a start is judged by, so once is enough.
        let rounds = if self.options.quick { self.rounds() } else { 1 };
        for round in 0..rounds {
            for (name, is_warm) in [
                ("restart, warmed up", true),
                ("restart, not warmed up", false),
            ] {
                match is_warm {
                    true => std::fs::write(self.list(), &list)?,
                    false => std::fs::remove_file(self.list())?,
                }
                let on_disk_mb = self.on_disk_mb()?;
                self.report
                    .add(name, "level on disk MB", on_disk_mb, Bar::None);
                let (server, ready_ms) = self.start(&given)?;
                self.report
                    .add(name, "start to ready ms", ready_ms, Bar::Most(150.0, 25.0));
                let before = Counted::of(&server)?;
                let reads = self.zipf_reads(&zipf, 200 + round as u64, 100_000);
                let first = Length::Requests(FIRST_READS);
                let seconds = Length::Seconds(if self.options.quick { 1.0 } else { 60.0 });
                let mut soonest = None;
                for length in [first, seconds] {
                    let seen = load::run(server.address, 16, length, &reads.requests, |answer| {
                        reads.is_right(answer)
                    })?;
                    self.judge(name, &seen);
                    let counted = Counted::of(&server)?.percent_since(before);
                    match soonest {
                        None => soonest = Some((counted, seen.quantile_ms(0.99))),
                        Some((at_first, p99)) => {
                            for (unit, value) in [
                                ("first 200 reads: hits %", at_first.hits[0]),
                                ("first 200 reads: p99 ms", p99),
                                ("first minute: reads", (FIRST_READS + seen.answered) as f64),
                                ("first minute: hits %", counted.hits[0]),
                                ("first minute: p99 ms", seen.quantile_ms(0.99)),
                            ] {
                                self.report.add(name, unit, value, Bar::None);
                            }
                        }
                    }
                }
                server.stop()?;
                // The next round removes it again.
                std::fs::write(self.list(), &list)?;
            }
        }
        Ok(())
    }

    /// Prices of hot products change under load; the server is killed as soon as the last change was
    /// answered; after its start each read must bring what was answered.
    fn killed(&mut self) -> anyhow::Result<()> {
        let (what, zipf) = ("restart, killed", Zipf::new(self.ids.len()));
        tell(what);
        // Nothing must come back from the level on disk.
        let given = self.easily_hot_on_disk();
        let list = self.hot_keys(what, &zipf, &given)?;
        let reads = self.zipf_reads(&zipf, 300, 100_000);
        let changed = self.ids[..CHANGED].to_vec();
        for round in 0..self.rounds() {
            let mut stale = 0;
            std::fs::write(self.list(), &list)?;
            let mut server = self.serve(&given)?;
            let address = server.address;
            let price = |at: usize| 1_000_000 + (round * CHANGED + at) as i64;
            std::thread::scope(|scope| -> anyhow::Result<()> {
                // Its connections break when the server is killed, as they must.
                let load = scope.spawn(|| {
                    load::run(
                        address,
                        16,
                        Length::Seconds(10.0),
                        &reads.requests,
                        |answer| reads.is_right(answer),
                    )
                });
                for (at, id) in changed.iter().enumerate() {
                    let path = format!("/api/v1/products/{id}");
                    self.call(&server, "GET", &path, "")?;
                    let body = format!("{{\"unit_amount\":{}}}", price(at));
                    self.call(&server, "PATCH", &path, &body)?;
                }
                server.kill()?;
                let seen = load.join().ok().context("the load ended in a panic")??;
                ensure!(seen.broken > 0, "the server was not killed under load");
                ensure!(seen.wrong == 0, "a wrong answer: {:?}", seen.first_wrong);
                Ok(())
            })?;
            drop(server);
            let (server, ready_ms) = self.start(&given)?;
            self.report
                .add(what, "start to ready ms", ready_ms, Bar::Most(300.0, 120.0));
            let ids: Vec<_> = changed.iter().map(i64::to_string).collect();
            let path = format!("/api/v1/products?ids={}", ids.join(","));
            let together: Value = serde_json::from_str(&self.call(&server, "GET", &path, "")?)?;
            for (at, id) in changed.iter().enumerate() {
                let path = format!("/api/v1/products/{id}");
                let alone: Value = serde_json::from_str(&self.call(&server, "GET", &path, "")?)?;
                for read in [&alone, &together["items"][at]] {
                    if read["id"] != *id || read["unit_amount"] != price(at) {
                        stale += 1;
                        let wanted = price(at);
                        self.report
                            .wrong(format!("{what}: {read}, but its price is {wanted}"));
                    }
                }
            }
            self.report
                .add(what, "prices changed", changed.len() as f64, Bar::None);
            self.report
                .add(what, "stale reads", f64::from(stale), Bar::Most(0.0, 0.0));
            server.stop()?;
        }
        Ok(())
    }
}

/// What turns the cache off.
fn off() -> Given {
    vec![("ONRUSH_CACHE__ENABLED", "false".to_owned())]
}

/// A read of several products at once.
fn batch(ids: &[i64]) -> Vec<u8> {
    let ids: Vec<_> = ids.iter().map(i64::to_string).collect();
    let path = format!("/api/v1/products?ids={}", ids.join(","));
    request("GET", &path, "", "")
}

/// Whether a batch begins with this product and lacks none.
fn is_whole_batch(answer: &Answer<'_>, first: i64) -> bool {
    let beginning = format!("{{\"items\":[{{\"id\":{first},");
    answer.status == 200
        && answer.body.starts_with(beginning.as_bytes())
        && answer.body.ends_with(b"}]}")
}
