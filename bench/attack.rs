//! Attacks on the edge, each from a few addresses and from many, with an honest crowd beside it: what
//! the honest see against what they see alone, what the server holds, and a sale meanwhile.
//!
//! `cargo bench --bench attack`, with `-- --quick`, `-- --json`, or words of the attacks' names. Needs
//! descriptors for about 6,000 connections, and so has the server.

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use onrush::cli::drill::{self, Attack, Field, Seen, Sold};
use onrush::clock::Stopwatch;

#[path = "support/data.rs"]
mod data;
#[path = "support/shop.rs"]
mod shop;
mod support;

use shop::Shop;
use support::{Bar, Options, Process, Report, binary, memory_of, tell};

/// Products with a description as long as one may be, so that a page of them is large.
const PRODUCTS: usize = 20_000;
const BUYERS: u32 = 60_000;
const UNITS: u64 = 1_000;
/// Words that all products have.
const WORDS: [&str; 9] = [
    "aurora", "wireless", "earbuds", "number", "series", "light", "lasting", "quick", "charge",
];
const LOGIN: (&str, &str) = ("owner@example.com", "correct horse battery");

fn main() -> ExitCode {
    support::run(measure)
}

fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let binary = binary()?;
    tell("making a shop");
    let shop = Shop::new(PRODUCTS, BUYERS)?;
    if options.tenfold {
        tell("making it ten times as large");
        shop.grow()?;
    }
    let mut add = Command::new(&binary)
        .args(["user", "add", "--role", "admin", "--email", LOGIN.0])
        .arg("--data-dir")
        .arg(&shop.data)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut input = add.stdin.take().context("no input")?;
    std::io::Write::write_all(&mut input, format!("{}\n", LOGIN.1).as_bytes())?;
    drop(input);
    ensure!(add.wait()?.success(), "the account could not be made");
    let time = Duration::from_secs(if options.quick { 3 } else { 10 });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut buyers = shop.buyers.chunks(2_500);
    let mut products = shop.products.iter().rev();
    let widths: &[u32] = if options.quick {
        &[5, 1_000]
    } else {
        &[1, 5, 1_000]
    };
    for attack in Attack::ALL {
        if !options.wants(attack.name()) {
            continue;
        }
        // A fresh process each time, so that what it holds is this attack's.
        let server = Process::serve(&binary, &shop.data, &[])?;
        lengthen(&server, &shop)?;
        let open_sale = |product: Option<&i64>| {
            let product = *product.context("no product is left")?;
            shop.open_sale(&server, product, UNITS as u32, 1, 1_000)
        };
        let field = |tokens: &[String]| Field {
            address: server.address,
            login: (LOGIN.0.to_owned(), LOGIN.1.to_owned()),
            tokens: Arc::new(tokens.to_vec()),
            products: Arc::new(shop.products[..200].to_vec()),
            words: Arc::new(WORDS.map(str::to_owned).to_vec()),
        };
        let alone = field(buyers.next().context("no buyer is left")?);
        ensure!(
            runtime.block_on(drill::log_in(&alone)),
            "the owner can't log in"
        );
        tell(&format!("{}: the honest alone", attack.name()));
        let calm = runtime.block_on(drill::honest(&alone, time));
        let sale = open_sale(products.next())?;
        let calm_sale = runtime.block_on(drill::sell(&alone, sale, UNITS));
        for addresses in widths {
            tell(&format!("{} from {addresses} addresses", attack.name()));
            let beside = field(buyers.next().context("no buyer is left")?);
            let sale = open_sale(products.next())?;
            let (pid, before, watch) = (server.pid(), server.cpu_seconds()?, Stopwatch::start());
            let outcome = runtime.block_on(drill::drill(
                &beside,
                attack,
                *addresses,
                time,
                Some((sale, UNITS)),
                move || memory_of(pid, "VmRSS").unwrap_or_default(),
            ));
            let what = format!("{} from {addresses}", attack.name());
            let used = (server.cpu_seconds()? - before) / watch.elapsed_seconds();
            report.add(&what, "server: processors", used, Bar::None);
            tell_of(report, &what, (&calm, calm_sale), &outcome);
        }
        let peak = server.memory_mb("VmHWM")?;
        report.add(attack.name(), "RSS peak MB", peak, Bar::Most(256.0, 150.0));
        server.stop()?;
    }
    Ok(())
}

/// Gives the products of the list that is asked for the longest descriptions.
fn lengthen(server: &Process, shop: &Shop) -> anyhow::Result<()> {
    let body = serde_json::json!({"description": "long ".repeat(1_900)}).to_string();
    let (status, list) = server.call("GET", "/api/v1/products?limit=200", "", "")?;
    ensure!(status == 200, "no list: {status} {list}");
    let list: serde_json::Value = serde_json::from_str(&list)?;
    for product in list["items"].as_array().context("no list")? {
        let product = &product["id"];
        let path = format!("/api/v1/products/{product}");
        let (status, said) = server.call("PATCH", &path, &shop.key, &body)?;
        ensure!(status == 200, "not changed: {status} {said}");
    }
    Ok(())
}

fn tell_of(report: &mut Report, what: &str, calm: (&Seen, Sold), outcome: &drill::Outcome) {
    let honest = &outcome.honest;
    let share = honest.served as f64 / honest.asked.max(1) as f64;
    let slower = honest.p99_ms / calm.0.p99_ms.max(0.001);
    report.add(what, "served share", share, Bar::Least(0.99, 0.999));
    report.add(what, "p50 ms", honest.p50_ms, Bar::None);
    report.add(what, "p99 ms", honest.p99_ms, Bar::None);
    report.add(what, "p99 of alone", slower, Bar::Most(3.0, 2.0));
    report.add(
        what,
        "login ms",
        honest.login_ms_max,
        Bar::Most(2_000.0, 500.0),
    );
    let logged_in = honest.logged_in as f64 / honest.logins.max(1) as f64;
    report.add(what, "logged in", logged_in, Bar::Least(1.0, 1.0));
    report.add(what, "RSS MB", outcome.rss_mb, Bar::Most(256.0, 150.0));
    if let Some(sale) = outcome.sale {
        let rate = calm.1.seconds / sale.seconds.max(0.001);
        report.add(
            what,
            "sale: units",
            sale.units as f64,
            Bar::Least(UNITS as f64, UNITS as f64),
        );
        report.add(what, "sale: rate of alone", rate, Bar::Least(0.5, 0.8));
    }
    for (word, count) in &outcome.attackers {
        report.add(
            what,
            &format!("attackers: {word}"),
            *count as f64,
            Bar::None,
        );
    }
}
