//! A whole sale, as buyers see it: 10,000 units, 50,000 attempts by 20,000 users over 256
//! connections; the same killed in the middle; and what the process costs before and after.
//!
//! `cargo bench --bench sale`, with `-- --quick`, `-- --json`, or words of the wanted figures' names.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, ensure};
use onrush::clock::Stopwatch;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

#[path = "support/data.rs"]
mod data;
#[path = "support/load.rs"]
mod load;
#[path = "support/shop.rs"]
mod shop;
mod support;

use load::{Answer, Length, Seen, request};
use shop::Shop;
use support::{Bar, Options, Process, Report, binary, tell, temporary};

const UNITS: u32 = 10_000;
const BUYERS: u32 = 20_000;
const ATTEMPTS: usize = 50_000;
const CONNECTIONS: usize = 256;
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    support::run(measure)
}

fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let binary = binary()?;
    let rounds = if options.quick { 1 } else { ROUNDS };
    let bytes = std::fs::metadata(&binary)?.len();
    report.add("binary", "MB", bytes as f64 / 1e6, Bar::Most(35.0, 22.0));
    if options.wants("idle, empty") {
        for _ in 0..rounds {
            idle(report, &binary)?;
        }
    }
    if !options.wants("a sale") && !options.wants("a sale, killed") {
        return Ok(());
    }
    tell("making a shop");
    let shop = Shop::new(2 * ROUNDS, BUYERS)?;
    if options.tenfold {
        tell("making it ten times as large");
        shop.grow()?;
    }
    for round in 0..rounds {
        if options.wants("a sale") {
            tell(&format!("a sale, round {}", round + 1));
            whole_sale(report, &binary, &shop, shop.products[round])?;
        }
        if options.wants("a sale, killed") {
            tell(&format!("a sale, killed, round {}", round + 1));
            killed_sale(report, &binary, &shop, shop.products[ROUNDS + round])?;
        }
    }
    Ok(())
}

/// An empty shop: how soon it is ready, what it holds.
fn idle(report: &mut Report, binary: &Path) -> anyhow::Result<()> {
    let dir = temporary()?;
    let watch = Stopwatch::start();
    let server = Process::serve(binary, &dir.path().join("data"), &[])?;
    let (status, body) = server.call("GET", "/readyz", "", "")?;
    let ready_ms = watch.elapsed_seconds() * 1e3;
    ensure!(status == 200, "not ready: {status} {body}");
    report.add("idle, empty", "start to ready ms", ready_ms, Bar::None);
    report.add(
        "idle, empty",
        "RSS MB",
        server.memory_mb("VmRSS")?,
        Bar::Most(60.0, 28.0),
    );
    server.stop()
}

/// Every buyer tries twice, every second one a third time, all in one order that is mixed the same
/// way each time. Each request comes with its buyer.
fn attempts(shop: &Shop, sale: i64) -> (Vec<Vec<u8>>, Vec<usize>) {
    let path = format!("/api/v1/flash-sales/{sale}/claims");
    let mut order: Vec<usize> = (0..ATTEMPTS)
        .map(|attempt| attempt % BUYERS as usize)
        .collect();
    order.shuffle(&mut StdRng::seed_from_u64(11));
    let requests = order
        .iter()
        .map(|buyer| request("POST", &path, &shop.buyers[*buyer], "{}"))
        .collect();
    (requests, order)
}

/// The ids of accepted claims, and who has one.
struct Accepted {
    claims: Vec<String>,
    winners: BTreeSet<usize>,
    /// The buyer of each request.
    buyers: Vec<usize>,
}

impl Accepted {
    fn new(buyers: Vec<usize>) -> Self {
        Self {
            claims: Vec::new(),
            winners: BTreeSet::new(),
            buyers,
        }
    }

    /// Whether the answer is one that a sale may give, one unit to a buyer; keeps the claim of a 201.
    fn takes(&mut self, answer: &Answer<'_>) -> bool {
        let Ok(body) = serde_json::from_slice::<serde_json::Value>(answer.body) else {
            return false;
        };
        match answer.status {
            201 => {
                let id = body["claim_id"].as_str().unwrap_or_default();
                self.claims.push(id.to_owned());
                !id.is_empty() && self.winners.insert(self.buyers[answer.request])
            }
            409 => body["code"] == "sold_out" || body["code"] == "limit_reached",
            429 => body["code"] == "rate_limited",
            _ => false,
        }
    }

    /// Looks each of them up; the server must know all.
    fn check(&self, report: &mut Report, server: &Process, shop: &Shop) -> anyhow::Result<()> {
        let different: BTreeSet<&String> = self.claims.iter().collect();
        if different.len() != self.claims.len() {
            report.wrong("two answers named the same claim".to_owned());
        }
        let requests: Vec<Vec<u8>> = self
            .claims
            .iter()
            .map(|id| request("GET", &format!("/api/v1/claims/{id}"), &shop.key, ""))
            .collect();
        let count = Length::Requests(requests.len());
        let seen = load::run(server.address, 16, count, &requests, |answer| {
            answer.status == 200
        })?;
        if seen.wrong > 0 {
            report.wrong(format!("{} accepted claims are lost", seen.wrong));
        }
        Ok(())
    }
}

fn judge(report: &mut Report, seen: &Seen) {
    if let Some(first) = &seen.first_wrong {
        report.wrong(format!("{} wrong answers, first {first}", seen.wrong));
    }
}

/// `(sold, remaining)` as the sale's row says.
fn counted(server: &Process, sale: i64) -> anyhow::Result<(i64, i64)> {
    let (status, body) = server.call("GET", &format!("/api/v1/flash-sales/{sale}"), "", "")?;
    ensure!(status == 200, "the sale: {status} {body}");
    let body: serde_json::Value = serde_json::from_str(&body)?;
    let count = |name: &str| body[name].as_i64().context("a sale without counts");
    Ok((count("sold")?, count("remaining")?))
}

/// `onrush stock verify` must find nothing.
fn verify(report: &mut Report, binary: &Path, shop: &Shop) -> anyhow::Result<()> {
    let output = Command::new(binary)
        .args(["stock", "verify", "--json", "--data-dir"])
        .arg(&shop.data)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        report.wrong(format!("the ledger does not add up: {said}"));
    }
    Ok(())
}

/// Before a sale begins, everyone looks at its product.
fn crowd(report: &mut Report, server: &Process, product: i64) -> anyhow::Result<()> {
    let page = request("GET", &format!("/api/v1/products/{product}"), "", "");
    let length = Length::Seconds(0.5);
    let seen = load::run(server.address, CONNECTIONS, length, &[page], |answer| {
        answer.status == 200
    })?;
    judge(report, &seen);
    Ok(())
}

fn whole_sale(report: &mut Report, binary: &Path, shop: &Shop, product: i64) -> anyhow::Result<()> {
    let server = Process::serve(binary, &shop.data, &[])?;
    let sale = shop.open_sale(&server, product, UNITS, 1, 3)?;
    let (requests, buyers) = attempts(shop, sale);
    crowd(report, &server, product)?;
    let before = server.cpu_seconds()?;
    let mut accepted = Accepted::new(buyers);
    let seen = load::run(
        server.address,
        CONNECTIONS,
        Length::Requests(ATTEMPTS),
        &requests,
        |answer| accepted.takes(answer),
    )?;
    let micros = (server.cpu_seconds()? - before) * 1e6 / ATTEMPTS as f64;
    judge(report, &seen);
    if seen.broken > 0 {
        report.wrong(format!("{} connections broke", seen.broken));
    }
    let what = "a sale";
    report.add(what, "/s", seen.rate(), Bar::None);
    report.add(what, "seconds", seen.seconds, Bar::Most(2.5, 1.2));
    report.add(what, "µs an attempt", micros, Bar::Most(60.0, 30.0));
    report.add(what, "p50 ms", seen.quantile_ms(0.5), Bar::None);
    report.add(what, "p99 ms", seen.quantile_ms(0.99), Bar::None);
    let own = seen.cpu_seconds * 1e6 / ATTEMPTS as f64;
    report.add(what, "load: µs", own, Bar::None);
    report.add(
        what,
        "RSS after MB",
        server.memory_mb("VmRSS")?,
        Bar::Most(200.0, 117.0),
    );
    let units = f64::from(UNITS);
    report.add(
        what,
        "units accepted",
        accepted.claims.len() as f64,
        Bar::Least(units, units),
    );
    let (sold, remaining) = counted(&server, sale)?;
    if (sold, remaining) != (i64::from(UNITS), 0) || accepted.claims.len() != UNITS as usize {
        report.wrong(format!(
            "{} claims were accepted, {sold} units are sold, {remaining} remain",
            accepted.claims.len()
        ));
    }
    accepted.check(report, &server, shop)?;
    server.stop()?;
    verify(report, binary, shop)
}

fn killed_sale(
    report: &mut Report,
    binary: &Path,
    shop: &Shop,
    product: i64,
) -> anyhow::Result<()> {
    let mut server = Process::serve(binary, &shop.data, &[])?;
    let sale = shop.open_sale(&server, product, UNITS, 1, 3)?;
    let (requests, buyers) = attempts(shop, sale);
    let mut accepted = Accepted::new(buyers);
    let address = server.address;
    let mut killed = false;
    let seen = load::run(
        address,
        CONNECTIONS,
        Length::Requests(ATTEMPTS),
        &requests,
        |answer| {
            let right = accepted.takes(answer);
            if !killed && accepted.claims.len() >= UNITS as usize / 3 {
                killed = server.kill().is_ok();
            }
            right
        },
    )?;
    judge(report, &seen);
    ensure!(killed, "the sale was over before it could be killed");
    let watch = Stopwatch::start();
    let server = Process::serve(binary, &shop.data, &[])?;
    let (status, body) = server.call("GET", &format!("/api/v1/products/{product}"), "", "")?;
    let back_ms = watch.elapsed_seconds() * 1e3;
    ensure!(status == 200, "after the kill: {status} {body}");
    report.add(
        "a sale, killed",
        "start to first answer ms",
        back_ms,
        Bar::Most(300.0, 120.0),
    );
    let (sold, remaining) = counted(&server, sale)?;
    let known = i64::try_from(accepted.claims.len())?;
    // A claim that was committed and not yet answered is sold, though nobody heard of it.
    let unheard = sold - known;
    if sold + remaining != i64::from(UNITS) || !(0..=CONNECTIONS as i64).contains(&unheard) {
        report.wrong(format!(
            "killed: {known} claims were accepted, {sold} units are sold, {remaining} remain"
        ));
    }
    accepted.check(report, &server, shop)?;
    server.stop()?;
    verify(report, binary, shop)
}
