//! Attacks on the edge, each from a few addresses and from many, in the clear, over HTTP/2 with TLS and
//! through a proxy, without accounts and with them, beside an honest crowd: what the honest see against what they see alone, what the server holds, and a sale meanwhile.
//!
//! `cargo bench --bench attack`, with `-- --quick` (in the clear alone), `-- --json`, or words of what is
//! measured (`half-logins from 5`). Needs
//! descriptors for about 6,000 connections, and so has the server.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use onrush::cli::drill::{self, Attack, Field, Over, Seen, Sold};
use onrush::clock::Stopwatch;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

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
/// Enough of them for a sale, and for attackers who have accounts.
const BUYERS_OF_SALE: usize = 2_500;
/// Words that all products have.
const WORDS: [&str; 9] = [
    "aurora", "wireless", "earbuds", "number", "series", "light", "lasting", "quick", "charge",
];
const LOGIN: (&str, &str) = ("owner@example.com", "correct horse battery");

fn main() -> ExitCode {
    support::run(measure)
}

/// How attackers and the honest come.
struct Way {
    name: &'static str,
    addresses: u32,
    over: Over,
    have_accounts: bool,
    settings: Vec<(&'static str, String)>,
}

/// All ways that are measured; the certificate lies in `folder`.
fn ways(options: &Options, folder: &Path) -> anyhow::Result<Vec<Way>> {
    let plain = |addresses| Way {
        name: "",
        addresses,
        over: Over::Plain,
        have_accounts: false,
        settings: Vec::new(),
    };
    if options.quick {
        return Ok(vec![plain(5), plain(1_000)]);
    }
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = Arc::new(tls);
    let http2 = |addresses| Way {
        name: " over HTTP/2 and TLS",
        over: Over::Http2(Arc::clone(&tls)),
        settings: vec![
            ("ONRUSH_SERVER__TLS_CERT", cert.display().to_string()),
            ("ONRUSH_SERVER__TLS_KEY", key.display().to_string()),
        ],
        ..plain(addresses)
    };
    let proxied = Way {
        name: " through a proxy",
        over: Over::Proxy,
        settings: vec![("ONRUSH_SERVER__TRUSTED_PROXIES", "127.0.0.1/32".to_owned())],
        ..plain(1_000)
    };
    let known = Way {
        name: " with accounts",
        have_accounts: true,
        ..plain(5)
    };
    let (few, many) = (http2(5), http2(1_000));
    Ok(vec![
        plain(1),
        plain(5),
        plain(1_000),
        known,
        proxied,
        few,
        many,
    ])
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
    let server = Process::serve(&binary, &shop.data, &[])?;
    lengthen(&server, &shop)?;
    server.stop()?;
    let time = Duration::from_secs(if options.quick { 3 } else { 5 });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let folder = support::temporary()?;
    let ways = ways(options, folder.path())?;
    // Everybody buys once in each sale; the next sale is other people's, for as long as there are others.
    let mut buyers = shop.buyers.chunks_exact(BUYERS_OF_SALE).cycle();
    let mut products = shop.products.iter().rev();
    for (attack, way) in Attack::ALL
        .iter()
        .flat_map(|attack| ways.iter().map(move |way| (*attack, way)))
    {
        let what = format!("{} from {}{}", attack.name(), way.addresses, way.name);
        if !options.wants(&what) {
            continue;
        }
        tell(&what);
        // Through the door that all can use, before it has another lock.
        let server = Process::serve(&binary, &shop.data, &[])?;
        let mut open_sale = || {
            let product = *products.next().context("no product is left")?;
            shop.open_sale(&server, product, UNITS as u32, 1, 1_000)
        };
        let sales = (open_sale()?, open_sale()?);
        server.stop()?;
        // A fresh process each time, so that what it holds is this attack's.
        let server = Process::serve(&binary, &shop.data, &way.settings)?;
        let field = |tokens: &[String]| Field {
            address: server.address,
            login: (LOGIN.0.to_owned(), LOGIN.1.to_owned()),
            tokens: Arc::new(tokens.to_vec()),
            products: Arc::new(shop.products[..200].to_vec()),
            words: Arc::new(WORDS.map(str::to_owned).to_vec()),
            over: way.over.clone(),
            have_accounts: way.have_accounts,
        };
        let alone = field(buyers.next().context("no buyers")?);
        ensure!(
            runtime.block_on(drill::log_in(&alone)),
            "the owner can't log in"
        );
        let calm = runtime.block_on(drill::honest(&alone, time));
        let calm_sale = runtime.block_on(drill::sell(&alone, sales.0, UNITS));
        let at_rest = server.memory_mb("VmRSS")?;
        report.add(&what, "RSS before MB", at_rest, Bar::None);
        let beside = field(buyers.next().context("no buyers")?);
        let (pid, before, watch) = (server.pid(), server.cpu_seconds()?, Stopwatch::start());
        let outcome = runtime.block_on(drill::drill(
            &beside,
            attack,
            way.addresses,
            time,
            Some((sales.1, UNITS)),
            move || memory_of(pid, "VmRSS").unwrap_or_default(),
        ))?;
        let used = (server.cpu_seconds()? - before) / watch.elapsed_seconds();
        report.add(&what, "server: processors", used, Bar::None);
        tell_of(report, &what, (&calm, calm_sale), &outcome);
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
    report.add(what, "p99 ms alone", calm.0.p99_ms, Bar::None);
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
