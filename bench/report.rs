//! The sales report over the past orders of a real grocer, from the command line and as a task of a
//! running server, next to the same figures out of plain SQL in the `sqlite3` shell.
//!
//! `bench/completejourney.py` fetches the data; without it a fifth as many lines are made up. Needs
//! `sqlite3`. `cargo bench --bench report`, with `-- --quick`, `-- --json`, or words of the wanted
//! figures' names.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use onrush::clock::Stopwatch;
use serde_json::Value;

#[path = "support/command.rs"]
mod command;
#[path = "support/data.rs"]
mod data;
mod support;

use command::{file, watched};
use data::Data;
use support::{Bar, Options, Process, Report, binary, tell, temporary};

const ROUNDS: usize = 5;
/// The days of the data, in UTC, which a shop's days are in unless it says otherwise.
const FIRST: &str = "2017-01-01";
const LAST: &str = "2018-01-01";
/// Lines that are made up where there are no real ones, and how many an order has.
const MADE_UP_LINES: usize = 300_000;
const LINES_AN_ORDER: usize = 10;
const MADE_UP_PRODUCTS: usize = 20_000;
/// Between two looks at whether a report is there.
const LOOK: Duration = Duration::from_millis(5);
const PATIENCE_SECONDS: f64 = 120.0;

/// The report as whoever knows SQL would write it: what counts once, and then each part of it.
const SQL: &str = "
CREATE TEMP TABLE counted AS SELECT id, currency, total_amount AS amount, date(created_at / 1000000, 'unixepoch') AS day
    FROM orders WHERE created_at >= unixepoch('2017-01-01') * 1000000 AND created_at < unixepoch('2018-01-02') * 1000000
    AND status IN ('paid', 'processed', 'fulfilled');
CREATE TEMP TABLE days AS SELECT currency, day, count(*) AS orders, sum(amount) AS gross_amount,
    sum((SELECT sum(quantity) FROM order_items WHERE order_id = counted.id)) AS units FROM counted GROUP BY currency, day;
CREATE TEMP TABLE sold AS SELECT currency, product_id, sum(quantity) AS units, sum(i.amount) AS gross_amount
    FROM counted JOIN order_items i ON i.order_id = counted.id GROUP BY currency, product_id;
SELECT currency, sum(orders) AS orders, sum(units) AS units, sum(gross_amount) AS gross_amount FROM days GROUP BY currency;
SELECT day AS date, currency, orders, units, gross_amount FROM days ORDER BY currency, day;
SELECT currency, product_id, units, gross_amount FROM sold ORDER BY units DESC, gross_amount DESC, product_id LIMIT 10;
SELECT currency, product_id, units, gross_amount FROM sold ORDER BY gross_amount DESC, units DESC, product_id LIMIT 10;
SELECT status AS state, currency, count(*) AS orders, sum(total_amount) AS amount FROM orders
    WHERE created_at >= unixepoch('2017-01-01') * 1000000 AND created_at < unixepoch('2018-01-02') * 1000000
    GROUP BY status, currency ORDER BY currency, status;
";
/// The parts, in the order in which [`SQL`] shows them, and the fields of each.
const PARTS: [(&str, &[&str]); 5] = [
    ("totals", &["currency", "orders", "units", "gross_amount"]),
    (
        "days",
        &["date", "currency", "orders", "units", "gross_amount"],
    ),
    (
        "top_by_units",
        &["currency", "product_id", "units", "gross_amount"],
    ),
    (
        "top_by_amount",
        &["currency", "product_id", "units", "gross_amount"],
    ),
    ("states", &["state", "currency", "orders", "amount"]),
];

fn main() -> ExitCode {
    support::run(measure)
}

fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let binary = binary()?;
    let data = Data::new()?;
    let made_up = temporary()?;
    let (products, orders) = match file("orders.csv").exists() {
        true => (file("products.csv"), file("orders.csv")),
        false => {
            tell("there is no real data; bench/completejourney.py fetches it. Lines are made up");
            make_up(made_up.path())?
        }
    };
    for (what, csv) in [("products", &products), ("orders", &orders)] {
        tell(&format!("importing {what}"));
        let mut import = Command::new(&binary);
        import.env_clear().args(["import", what, "--json"]);
        let (said, _) = watched(import.arg("--data-dir").arg(&data.path).arg(csv))?;
        if what == "orders" {
            let said: Value = serde_json::from_str(&said)?;
            let lines = said["created"].as_f64().context("no count")?;
            report.add("order lines", "lines", lines, Bar::None);
        }
    }
    for round in 0..if options.quick { 1 } else { ROUNDS } {
        tell(&format!("round {}", round + 1));
        let plain = plain_sql(&data)?;
        report.add("plain SQL", "seconds", plain.seconds, Bar::None);
        report.add("plain SQL", "CPU seconds", plain.cpu_seconds, Bar::None);
        report.add("plain SQL", "peak RSS MB", plain.peak_mb, Bar::None);
        if options.wants("command line") {
            command_line(report, &binary, &data, &plain)?;
        }
        if options.wants("task") {
            task(report, &binary, &data, &plain)?;
        }
    }
    Ok(())
}

/// Files of the same shape as the real ones: what it is about depends on the numbers alone.
fn make_up(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (products, orders) = (folder.join("products.csv"), folder.join("orders.csv"));
    let mut out = BufWriter::new(std::fs::File::create(&products)?);
    writeln!(
        out,
        "sku,name,description,category,price,currency,stock,popularity"
    )?;
    for number in 0..MADE_UP_PRODUCTS {
        writeln!(
            out,
            "made-up-{number},Product {number},One of many,Category {},{}.50,USD,1000,0",
            number % 300,
            number % 90
        )?;
    }
    out.flush()?;
    let mut out = BufWriter::new(std::fs::File::create(&orders)?);
    writeln!(
        out,
        "order_id,customer,product,quantity,amount,currency,time"
    )?;
    for line in 0..MADE_UP_LINES {
        let order = line / LINES_AN_ORDER;
        // Spread over the year, in order; a few products are sold far more often than the others.
        let minute = order * 360 * 24 * 60 / (MADE_UP_LINES / LINES_AN_ORDER);
        let at = onrush::clock::Timestamp::parse_rfc3339("2017-01-01T00:00:00Z")
            .context("no time")?
            .plus_seconds(i64::try_from(minute)? * 60);
        let product = (line * 7_919 % MADE_UP_PRODUCTS) * (line % 13) / 13;
        writeln!(
            out,
            "{order},household-{},made-up-{product},{},{}.{:02},USD,{at}",
            order % 2_500,
            1 + line % 3,
            line % 40,
            line % 100,
        )?;
    }
    out.flush()?;
    Ok((products, orders))
}

/// Processor seconds of the commands that have ended so far.
fn children_cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}

/// What the shell found.
struct Plain {
    seconds: f64,
    cpu_seconds: f64,
    peak_mb: f64,
    parts: Vec<Value>,
}

fn plain_sql(data: &Data) -> anyhow::Result<Plain> {
    let before = children_cpu_seconds()?;
    let watch = Stopwatch::start();
    let (said, peak_mb) = watched(
        Command::new("sqlite3")
            .args(["-readonly", "-json"])
            .arg(data.path.join("onrush.db"))
            .arg(SQL),
    )
    .context("sqlite3 is needed to compare with")?;
    let seconds = watch.elapsed_seconds();
    let cpu_seconds = children_cpu_seconds()? - before;
    let parts = serde_json::Deserializer::from_str(&said)
        .into_iter()
        .collect::<Result<Vec<Value>, _>>()?;
    ensure!(parts.len() == PARTS.len(), "sqlite3 said {said}");
    Ok(Plain {
        seconds,
        cpu_seconds,
        peak_mb,
        parts,
    })
}

impl Plain {
    /// Counts the parts in which a report says the same, and notes where it says something else.
    fn compare(&self, report: &mut Report, what: &str, made: &Value) {
        let mut equal = 0.0;
        for ((part, fields), plain) in PARTS.iter().zip(&self.parts) {
            let rows = |value: &Value| -> Vec<Vec<Value>> {
                let rows = value.as_array().map(Vec::as_slice).unwrap_or_default();
                rows.iter()
                    .map(|row| fields.iter().map(|field| row[*field].clone()).collect())
                    .collect()
            };
            let mut ours = rows(&made[*part]);
            match *part {
                // SQL knows nothing of a day without orders.
                "days" => ours.retain(|row: &Vec<Value>| row[2] != 0),
                // The report shows states in the order in which an order goes through them.
                "states" => ours.sort_by_key(|row| format!("{} {}", row[1], row[0])),
                _ => {}
            }
            let plain = rows(plain);
            if ours == plain && !plain.is_empty() {
                equal += 1.0;
            } else {
                let different = ours
                    .iter()
                    .zip(&plain)
                    .find(|(ours, plain)| ours != plain)
                    .map_or_else(
                        || format!("{} rows for {}", ours.len(), plain.len()),
                        |(ours, plain)| format!("{ours:?} for {plain:?}"),
                    );
                report.wrong(format!("{what}: {part} differ from plain SQL: {different}"));
            }
        }
        let all = PARTS.len() as f64;
        report.add(what, "parts as in SQL", equal, Bar::Least(all, all));
    }
}

/// `onrush report sales`.
fn command_line(
    report: &mut Report,
    binary: &Path,
    data: &Data,
    plain: &Plain,
) -> anyhow::Result<()> {
    let what = "command line";
    let before = children_cpu_seconds()?;
    let watch = Stopwatch::start();
    let (said, peak) = watched(
        Command::new(binary)
            .env_clear()
            .args(["report", "sales", "--from", FIRST, "--to", LAST, "--json"])
            .arg("--data-dir")
            .arg(&data.path),
    )?;
    let seconds = watch.elapsed_seconds();
    let cpu_seconds = children_cpu_seconds()? - before;
    plain.compare(report, what, &serde_json::from_str(&said)?);
    let ratio = seconds / plain.seconds;
    report.add(what, "of plain SQL", ratio, Bar::Most(1.3, 1.1));
    let ratio = cpu_seconds / plain.cpu_seconds;
    report.add(what, "CPU of plain SQL", ratio, Bar::Most(1.3, 1.1));
    report.add(what, "seconds", seconds, Bar::None);
    report.add(what, "peak RSS MB", peak, Bar::None);
    let more = peak - plain.peak_mb;
    report.add(
        what,
        "more than the shell, MB",
        more,
        Bar::Most(100.0, 100.0),
    );
    Ok(())
}

/// The same over HTTP: from the request until the task is seen to be completed.
fn task(report: &mut Report, binary: &Path, data: &Data, plain: &Plain) -> anyhow::Result<()> {
    let what = "task";
    let server = Process::serve(binary, &data.path, &[])?;
    let call = |method: &str, path: &str, body: &str| -> anyhow::Result<Value> {
        let (status, body) = server.call(method, path, &data.key, body)?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status} {body}"
        );
        Ok(serde_json::from_str(&body)?)
    };
    call("GET", "/api/v1/queues", "")?;
    let (held, cpu) = (server.memory_mb("VmRSS")?, server.cpu_seconds()?);
    let asked = serde_json::json!({"start_date": FIRST, "end_date": LAST, "refresh": true});
    let watch = Stopwatch::start();
    let made = call("POST", "/api/v1/reports/sales", &asked.to_string())?;
    let path = format!("/api/v1/tasks/{}", made["id"].as_str().context("no id")?);
    loop {
        let task = call("GET", &path, "")?;
        match task["state"].as_str() {
            Some("completed") => break,
            Some("available" | "running") => {}
            _ => anyhow::bail!("the report's task is {task}"),
        }
        ensure!(
            watch.elapsed_seconds() < PATIENCE_SECONDS,
            "there is no report after {PATIENCE_SECONDS} s"
        );
        std::thread::sleep(LOOK);
    }
    let seconds = watch.elapsed_seconds();
    let path = format!("/api/v1/reports/sales?start_date={FIRST}&end_date={LAST}");
    plain.compare(report, what, &call("GET", &path, "")?);
    let ratio = seconds / plain.seconds;
    report.add(what, "of plain SQL", ratio, Bar::Most(1.3, 1.1));
    report.add(what, "seconds", seconds, Bar::None);
    let ratio = (server.cpu_seconds()? - cpu) / plain.cpu_seconds;
    report.add(what, "CPU of plain SQL", ratio, Bar::Most(1.3, 1.1));
    let more = server.memory_mb("VmHWM")? - held;
    report.add(what, "more than before, MB", more, Bar::Most(100.0, 100.0));
    server.stop()
}
