//! Requests against the running server: reads, refusals, accepted claims, orders; each next to its
//! floor in alternating rounds.
//!
//! `cargo bench --bench http`, with `-- --quick`, `-- --tenfold`, `-- --json`, or words of the wanted figures' names.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use onrush::clock::Stopwatch;

#[path = "support/cost.rs"]
mod cost;
#[path = "support/data.rs"]
mod data;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/floor.rs"]
mod floor;
#[path = "support/load.rs"]
mod load;
#[path = "support/metrics.rs"]
mod metrics;
#[path = "support/plain.rs"]
mod plain;
#[path = "support/shop.rs"]
mod shop;
mod support;

use cost::costed;
use floor::Rows;
use load::{Answer, Length, Seen, request, whole};
use shop::Shop;
use support::{Bar, Options, Process, Report, binary, tell};

const PRODUCTS: usize = 1_000;
const BUYERS: u32 = 20_000;
/// Products that everyone looks at.
const HOT: usize = 100;
/// Rounds of each figure, and of its floor between them.
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    plain::run(measure)
}

/// What all measurements need.
struct Bench<'a> {
    options: &'a Options,
    report: &'a mut Report,
    shop: &'a Shop,
    server: &'a Process,
    round: Length,
}

fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let binary = binary()?;
    tell("making a shop");
    let shop = Shop::new(PRODUCTS, BUYERS)?;
    if options.tenfold {
        tell("making it ten times as large");
        shop.grow()?;
    }
    let server = Process::serve(&binary, &shop.data, &unlimited(&binary)?)?;
    let mut bench = Bench {
        options,
        report,
        shop: &shop,
        server: &server,
        round: Length::Seconds(if options.quick { 0.4 } else { 2.0 }),
    };
    if options.wants("product read") {
        bench.product_read()?;
    }
    if options.wants("batch read of 20") {
        bench.batch_read()?;
    }
    if options.wants("sold-out claim") {
        bench.sold_out()?;
    }
    if options.wants("over-limit claim") {
        bench.over_limit()?;
    }
    if options.wants("rate-limited claim") {
        bench.rate_limited()?;
    }
    if options.wants("accepted claim") {
        bench.accepted_claims()?;
    }
    if options.wants("order") {
        bench.orders()?;
    }
    if options.wants("one client alone, order") {
        bench.one_client()?;
    }
    if options.wants("reads beside claims") {
        bench.reads_beside_claims()?;
    }
    let held = server.memory_mb("VmRSS")?;
    report.add("after all of it", "RSS MB", held, Bar::None);
    server.stop()
}

/// Buyers here order more, and faster, than a customer may. A binary from before these limits has no settings
/// for them.
fn unlimited(binary: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let shown = Command::new(binary).args(["config", "show"]).output()?;
    let knows = String::from_utf8_lossy(&shown.stdout).contains("unpaid_orders_max");
    let settings = [
        ("ONRUSH_ORDERS__UNPAID_ORDERS_MAX", "1000000"),
        ("ONRUSH_ORDERS__UNPAID_UNITS_MAX", "1000000"),
        ("ONRUSH_ORDERS__PER_MINUTE_MAX", "60000"),
    ];
    let settings = settings.into_iter().filter(|_| knows);
    Ok(settings
        .map(|(key, value)| (key, value.to_owned()))
        .collect())
}

impl Bench<'_> {
    fn rounds(&self) -> usize {
        if self.options.quick { 3 } else { ROUNDS }
    }

    /// Notes wrong answers.
    fn judge(&mut self, what: &str, seen: &Seen) {
        cost::judge(self.report, what, seen);
    }

    /// Rounds of 64 connections, alternating with a plain server that answers as many bytes.
    fn against_plain(
        &mut self,
        what: &str,
        requests: &[Vec<u8>],
        ratio_bar: Bar,
        micros_bar: Bar,
        right: impl Fn(&Answer<'_>) -> bool,
    ) -> anyhow::Result<()> {
        tell(what);
        let mut bytes = 0;
        let warm = load::run(
            self.server.address,
            64,
            Length::Seconds(0.3),
            requests,
            |answer| {
                bytes = answer.body.len();
                right(answer)
            },
        )?;
        self.judge(what, &warm);
        let plain = plain::start(bytes)?;
        let plain_requests: Vec<Vec<u8>> = requests
            .iter()
            .map(|bytes| plain::request(bytes))
            .collect::<anyhow::Result<_>>()?;
        load::run(
            plain.address,
            64,
            Length::Seconds(0.3),
            &plain_requests,
            |_| true,
        )?;
        for _ in 0..self.rounds() {
            let (ours, micros) = costed(self.server, |address| {
                load::run(address, 64, self.round, requests, &right)
            })?;
            self.judge(what, &ours);
            let (floor, floor_micros) = costed(&plain, |address| {
                load::run(address, 64, self.round, &plain_requests, |answer| {
                    answer.status == 200 && answer.body.len() == bytes
                })
            })?;
            self.judge("plain server", &floor);
            self.report
                .add(what, "of P", ours.rate() / floor.rate(), ratio_bar);
            self.report.add(what, "µs", micros, micros_bar);
            self.report.add(what, "/s", ours.rate(), Bar::None);
            self.report
                .add(what, "p99 ms", ours.quantile_ms(0.99), Bar::None);
            self.report.add(what, "P: µs", floor_micros, Bar::None);
            self.report.add(what, "P: /s", floor.rate(), Bar::None);
            let own = ours.cpu_seconds * 1e6 / ours.answered as f64;
            self.report.add(what, "load: µs", own, Bar::None);
        }
        Ok(())
    }

    fn product_read(&mut self) -> anyhow::Result<()> {
        let mut bodies = Vec::new();
        let mut requests = Vec::new();
        for id in &self.shop.products[..HOT] {
            let path = format!("/api/v1/products/{id}");
            let (status, body) = self.server.call("GET", &path, "", "")?;
            ensure!(status == 200, "{path}: {status} {body}");
            bodies.push(body);
            requests.push(request("GET", &path, "", ""));
        }
        self.against_plain(
            "product read",
            &requests,
            Bar::Least(0.6, 0.8),
            Bar::Most(20.0, 15.0),
            |answer| answer.status == 200 && answer.body == bodies[answer.request % HOT].as_bytes(),
        )
    }

    fn batch_read(&mut self) -> anyhow::Result<()> {
        let mut bodies = Vec::new();
        let mut requests = Vec::new();
        for ids in self.shop.products[..HOT].chunks(20) {
            let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
            let path = format!("/api/v1/products?ids={}", ids.join(","));
            let (status, body) = self.server.call("GET", &path, "", "")?;
            ensure!(status == 200, "{path}: {status} {body}");
            bodies.push(body);
            requests.push(request("GET", &path, "", ""));
        }
        self.against_plain(
            "batch read of 20",
            &requests,
            Bar::None,
            Bar::Most(45.0, 25.0),
            |answer| {
                answer.status == 200
                    && answer.body == bodies[answer.request % bodies.len()].as_bytes()
            },
        )
    }

    fn claims_of(&self, sale: i64, buyers: usize) -> Vec<Vec<u8>> {
        let path = format!("/api/v1/flash-sales/{sale}/claims");
        self.shop.buyers[..buyers]
            .iter()
            .map(|token| request("POST", &path, token, "{}"))
            .collect()
    }

    fn sold_out(&mut self) -> anyhow::Result<()> {
        let sale = self
            .shop
            .open_sale(self.server, self.shop.products[0], 1, 1, 3)?;
        let requests = self.claims_of(sale, 2_000);
        let first = load::run(
            self.server.address,
            1,
            Length::Requests(1),
            &requests,
            |answer| answer.status == 201,
        )?;
        self.judge("the last unit", &first);
        self.against_plain(
            "sold-out claim",
            &requests,
            Bar::Least(0.55, 0.75),
            Bar::None,
            |answer| answer.status == 409 && has(answer.body, b"\"sold_out\""),
        )
    }

    fn over_limit(&mut self) -> anyhow::Result<()> {
        let sale = self
            .shop
            .open_sale(self.server, self.shop.products[1], 1_000_000, 1, 1_000)?;
        let requests = self.claims_of(sale, 2_000);
        let first = load::run(
            self.server.address,
            64,
            Length::Requests(requests.len()),
            &requests,
            |answer| answer.status == 201,
        )?;
        self.judge("a first claim", &first);
        self.against_plain(
            "over-limit claim",
            &requests,
            Bar::Least(0.55, 0.75),
            Bar::None,
            |answer| match answer.status {
                409 => has(answer.body, b"\"limit_reached\""),
                // So many attempts of one buyer in a minute, on a fast machine.
                status => status == 429,
            },
        )
    }

    fn rate_limited(&mut self) -> anyhow::Result<()> {
        let sale = self
            .shop
            .open_sale(self.server, self.shop.products[2], 1_000_000, 1_000, 1)?;
        let requests = self.claims_of(sale, 2_000);
        let first = load::run(
            self.server.address,
            64,
            Length::Requests(requests.len()),
            &requests,
            |answer| answer.status == 201,
        )?;
        self.judge("a first claim", &first);
        self.against_plain(
            "rate-limited claim",
            &requests,
            Bar::Least(0.55, 0.75),
            Bar::None,
            |answer| answer.status == 429 && has(answer.body, b"\"rate_limited\""),
        )
    }

    /// Rounds of writes, alternating with the same rows in transactions of the same size.
    fn against_rows(
        &mut self,
        what: &str,
        bars: [Bar; 3],
        mut ours: impl FnMut(&mut Self, usize) -> anyhow::Result<(Seen, f64)>,
        mut floor: impl FnMut(usize, usize) -> anyhow::Result<f64>,
    ) -> anyhow::Result<()> {
        tell(what);
        let [ratio_bar, micros_bar, p99_bar] = bars;
        for round in 0..self.rounds() {
            let (writes, commits) = metrics::commits(self.server)?;
            let (seen, micros) = ours(self, round)?;
            self.judge(what, &seen);
            let (writes_now, commits_now) = metrics::commits(self.server)?;
            let batch = (writes_now - writes) / (commits_now - commits).max(1.0);
            let rows = floor(seen.answered, (batch.round() as usize).max(1))?;
            self.report.add(what, "of S", seen.rate() / rows, ratio_bar);
            self.report.add(what, "µs", micros, micros_bar);
            self.report
                .add(what, "p99 ms", seen.quantile_ms(0.99), p99_bar);
            self.report
                .add(what, "p50 ms", seen.quantile_ms(0.5), Bar::None);
            self.report.add(what, "/s", seen.rate(), Bar::None);
            self.report.add(what, "writes a commit", batch, Bar::None);
            self.report.add(what, "S: /s", rows, Bar::None);
        }
        Ok(())
    }

    fn accepted_claims(&mut self) -> anyhow::Result<()> {
        let mut rows = Rows::new(Shop::new(PRODUCTS, BUYERS)?)?;
        let count = if self.options.quick { 4_000 } else { 20_000 };
        self.against_rows(
            "accepted claim",
            [
                Bar::Least(0.35, 0.6),
                Bar::Most(110.0, 80.0),
                Bar::Most(60.0, 22.0),
            ],
            |bench, round| {
                let product = bench.shop.products[10 + round];
                let sale = bench
                    .shop
                    .open_sale(bench.server, product, 1_000_000, 1, 3)?;
                let requests = bench.claims_of(sale, count);
                costed(bench.server, |address| {
                    load::run(address, 256, Length::Requests(count), &requests, |answer| {
                        answer.status == 201
                    })
                })
            },
            |count, batch| rows.claims(count, batch),
        )
    }

    /// Orders of one unit of one product each, by all buyers over all products.
    fn order_requests(&self) -> Vec<Vec<u8>> {
        (0..BUYERS as usize)
            .map(|number| {
                let product = self.shop.products[number % PRODUCTS];
                let body = format!("{{\"items\":[{{\"product_id\":{product},\"quantity\":1}}]}}");
                request("POST", "/api/v1/orders", &self.shop.buyers[number], &body)
            })
            .collect()
    }

    fn orders(&mut self) -> anyhow::Result<()> {
        let mut rows = Rows::new(Shop::new(PRODUCTS, BUYERS)?)?;
        let requests = self.order_requests();
        self.against_rows(
            "order",
            [Bar::Least(0.35, 0.6), Bar::Most(100.0, 60.0), Bar::None],
            |bench, _| {
                costed(bench.server, |address| {
                    load::run(address, 64, bench.round, &requests, |answer| {
                        answer.status == 201
                    })
                })
            },
            |count, batch| rows.orders(count, batch),
        )
    }

    fn one_client(&mut self) -> anyhow::Result<()> {
        let what = "one client alone, order";
        tell(what);
        let requests = self.order_requests();
        for _ in 0..self.rounds() {
            let syncs = disk::syncs_ms(if self.options.quick { 200 } else { 1_000 })?;
            let f = syncs[syncs.len() / 2];
            let seen = load::run(self.server.address, 1, self.round, &requests, |answer| {
                answer.status == 201
            })?;
            self.judge(what, &seen);
            let p50 = seen.quantile_ms(0.5);
            // F differs from round to round, so each round is held against its own.
            let (bar, stretch) = (p50 / (2.5 * f + 0.4), p50 / (1.5 * f + 0.1));
            self.report
                .add(what, "of 2.5 F + 0.4 ms", bar, Bar::Most(1.0, 1.0));
            self.report
                .add(what, "of 1.5 F + 0.1 ms", stretch, Bar::None);
            self.report.add(what, "p50 ms", p50, Bar::None);
            self.report.add(what, "F: p50 ms", f, Bar::None);
        }
        Ok(())
    }

    fn reads_beside_claims(&mut self) -> anyhow::Result<()> {
        let what = "reads beside claims";
        tell(what);
        let seconds = if self.options.quick { 1.0 } else { 3.0 };
        let path = format!("/api/v1/products/{}", self.shop.products[0]);
        let read = request("GET", &path, "", "");
        let address = self.server.address;
        let plain = plain::start(512)?;
        let plain_read = plain::request(&read)?;
        for round in 0..self.rounds() {
            let alone = paced_reads(address, &read, seconds)?;
            let product = self.shop.products[100 + round];
            let sale = self
                .shop
                .open_sale(self.server, product, 10_000_000, 1_000, 1_000)?;
            let claims = self.claims_of(sale, BUYERS as usize);
            let beside_claims = |reader: SocketAddr, read: &[u8]| {
                std::thread::scope(|scope| -> anyhow::Result<_> {
                    let claims = scope.spawn(|| {
                        load::run(
                            address,
                            256,
                            Length::Seconds(seconds + 0.4),
                            &claims,
                            |answer| answer.status == 201,
                        )
                    });
                    let reads = paced_reads(reader, read, seconds)?;
                    let seen = claims.join().ok().context("the load ended in a panic")??;
                    Ok((reads, seen))
                })
            };
            let (beside, seen) = beside_claims(address, &read)?;
            self.judge(what, &seen);
            // What the same claims do to a process that has nothing else to do: the cores are
            // shared, so no server on this machine can answer sooner than that.
            let (floor, seen_beside_floor) = beside_claims(plain.address, &plain_read)?;
            self.judge(what, &seen_beside_floor);
            let p99 = |reads: &Histogram<u64>| reads.value_at_quantile(0.99) as f64 / 1e6;
            self.report.add(
                what,
                "p99 of alone",
                p99(&beside) / p99(&alone),
                Bar::Most(3.0, 1.5),
            );
            self.report.add(what, "p99 ms", p99(&beside), Bar::None);
            self.report
                .add(what, "alone: p99 ms", p99(&alone), Bar::None);
            self.report
                .add(what, "P beside: p99 ms", p99(&floor), Bar::None);
            self.report.add(what, "claims/s", seen.rate(), Bar::None);
        }
        Ok(())
    }
}

fn has(body: &[u8], word: &[u8]) -> bool {
    body.windows(word.len()).any(|window| window == word)
}

/// A thousand reads a second from four threads that each keep time.
fn paced_reads(address: SocketAddr, read: &[u8], seconds: f64) -> anyhow::Result<Histogram<u64>> {
    const THREADS: u32 = 4;
    const INTERVAL: Duration = Duration::from_micros(4_000);
    let mut all = Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn(move || {
                    // Not all at once: each starts its turn a quarter later.
                    std::thread::sleep(INTERVAL / THREADS * number);
                    one_reader(address, read, seconds, INTERVAL)
                })
            })
            .collect();
        for thread in threads {
            all.add(thread.join().ok().context("a reader ended in a panic")??)?;
        }
        anyhow::Ok(())
    })?;
    Ok(all)
}

/// A read that is due while the one before is under way counts from when it was due.
fn one_reader(
    address: SocketAddr,
    read: &[u8],
    seconds: f64,
    interval: Duration,
) -> anyhow::Result<Histogram<u64>> {
    let mut times = Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (watch, mut due, mut buffer) = (Stopwatch::start(), Duration::ZERO, vec![0; 16_384]);
    while due.as_secs_f64() < seconds {
        let late = watch.elapsed().checked_sub(due);
        if late.is_none() {
            std::thread::sleep(due.saturating_sub(watch.elapsed()));
        }
        let sent = Stopwatch::start();
        stream.write_all(read)?;
        let mut filled = 0;
        let status = loop {
            let count = stream.read(&mut buffer[filled..])?;
            ensure!(count > 0, "the server closed a reader's connection");
            filled += count;
            if let Some((status, ..)) = whole(&buffer[..filled])? {
                break status;
            }
        };
        ensure!(status == 200, "a read was answered {status}");
        let took = sent.elapsed() + late.unwrap_or_default();
        times.saturating_record(u64::try_from(took.as_nanos())?);
        due += interval;
    }
    Ok(times)
}
