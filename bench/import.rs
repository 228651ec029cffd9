//! A shop moves in: the catalogue and the past orders of a real grocer through `onrush import`, next
//! to the same rows written by a bare rusqlite loop (S); then `stock verify`, and a start with it.
//!
//! `bench/completejourney.py` fetches the data. `cargo bench --bench import`, with `-- --quick`,
//! `-- --json`, or words of what shall follow the imports.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use onrush::app;
use onrush::clock::Stopwatch;
use onrush::config::Settings;
use rusqlite::{Connection, OpenFlags, Row, params, types::Value};

#[path = "support/command.rs"]
mod command;
mod support;

use command::{file, watched};
use support::{Bar, Options, Process, Report, binary, tell, temporary};

const ROUNDS: usize = 5;

fn main() -> ExitCode {
    support::run(measure)
}

fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if !file("products.csv").exists() || !file("orders.csv").exists() {
        tell("there is no data yet; run bench/completejourney.py, which fetches it");
        return Ok(());
    }
    let binary = binary()?;
    for round in 0..if options.quick { 1 } else { ROUNDS } {
        let dir = temporary()?;
        let data = dir.path().join("data");
        let mut floor = Floor::new(&dir.path().join("floor"))?;
        for what in ["products", "orders"] {
            tell(&format!("import {what}, round {}", round + 1));
            let ours = import(report, &binary, &data, what)?;
            let source = Connection::open_with_flags(
                data.join("onrush.db"),
                OpenFlags::SQLITE_OPEN_READ_ONLY,
            )?;
            let rows = match what {
                "products" => floor.products(&source)?,
                _ => floor.orders(&source)?,
            };
            let what = format!("import {what}");
            report.add(&what, "of S", ours / rows, Bar::Least(0.4, 0.7));
            report.add(&what, "S: rows/s", rows, Bar::None);
        }
        if options.wants("stock verify") {
            verify(report, &binary, &data)?;
        }
        if options.wants("start with real data") {
            start(report, &binary, &data)?;
        }
    }
    Ok(())
}

/// Rows a second of one import.
fn import(report: &mut Report, binary: &Path, data: &Path, what: &str) -> anyhow::Result<f64> {
    let csv = file(&format!("{what}.csv"));
    let watch = Stopwatch::start();
    let (said, peak) = watched(
        Command::new(binary)
            .args(["import", what, "--json", "--data-dir"])
            .arg(data)
            .arg(&csv),
    )?;
    let seconds = watch.elapsed_seconds();
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let (read, created) = (said["read"].as_u64(), said["created"].as_u64());
    if read != created || read.is_none() {
        report.wrong(format!("import {what}: {said}"));
    }
    let rate = read.unwrap_or(0) as f64 / seconds;
    let what = format!("import {what}");
    report.add(&what, "rows/s", rate, Bar::None);
    report.add(&what, "seconds", seconds, Bar::None);
    report.add(&what, "peak RSS MB", peak, Bar::None);
    Ok(rate)
}

fn verify(report: &mut Report, binary: &Path, data: &Path) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let (said, peak) = watched(
        Command::new(binary)
            .args(["stock", "verify", "--json", "--data-dir"])
            .arg(data),
    )?;
    let seconds = watch.elapsed_seconds();
    let said: serde_json::Value = serde_json::from_str(&said)?;
    if said["problems_total"] != 0 {
        report.wrong(format!("stock verify: {said}"));
    }
    let movements = said["movements"].as_f64().context("no count")?;
    report.add("stock verify", "rows/s", movements / seconds, Bar::None);
    report.add("stock verify", "seconds", seconds, Bar::None);
    report.add("stock verify", "peak RSS MB", peak, Bar::None);
    Ok(())
}

/// A start after a clean stop, and what the process holds when it has nothing to do.
fn start(report: &mut Report, binary: &Path, data: &Path) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let server = Process::serve(binary, data, &[])?;
    let (status, body) = server.call("GET", "/readyz", "", "")?;
    let ready_ms = watch.elapsed_seconds() * 1e3;
    ensure!(status == 200, "not ready: {status} {body}");
    let what = "start with real data";
    report.add(what, "start to ready ms", ready_ms, Bar::Most(150.0, 25.0));
    let cpu_ms = server.cpu_seconds()? * 1e3;
    report.add(what, "CPU ms", cpu_ms, Bar::None);
    let (status, body) = server.call("GET", "/api/v1/products?limit=1", "", "")?;
    ensure!(
        status == 200 && body.contains("next_cursor"),
        "no products: {status} {body}"
    );
    let held = server.memory_mb("VmRSS")?;
    report.add(what, "RSS MB", held, Bar::Most(80.0, 40.0));
    server.stop()
}

/// S: an empty database of the same schema, and as many rows to a transaction as an import writes.
struct Floor {
    conn: Connection,
    batch: usize,
}

/// All columns of a row.
fn values(row: &Row<'_>, columns: usize) -> rusqlite::Result<Vec<Value>> {
    (0..columns).map(|column| row.get(column)).collect()
}

impl Floor {
    fn new(data: &Path) -> anyhow::Result<Self> {
        let mut settings = Settings::default();
        settings.data.dir = data.to_owned();
        app::open_data(&settings)?.close();
        let conn = Connection::open(data.join("onrush.db"))?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.set_prepared_statement_cache_capacity(64);
        Ok(Self {
            conn,
            batch: settings.import.batch_rows,
        })
    }

    fn insert(&self, table: &str, row: &[Value]) -> anyhow::Result<()> {
        let marks = vec!["?"; row.len()].join(",");
        let sql = format!("INSERT INTO {table} VALUES ({marks})");
        self.conn
            .prepare_cached(&sql)?
            .execute(rusqlite::params_from_iter(row))?;
        Ok(())
    }

    /// Ends a full transaction and begins the next.
    fn turn(&self, rows: usize) -> anyhow::Result<()> {
        if rows.is_multiple_of(self.batch) {
            if rows > 0 {
                self.conn.execute_batch("COMMIT")?;
            }
            self.conn.execute_batch("BEGIN IMMEDIATE")?;
        }
        Ok(())
    }

    /// Copies products, their words and their first ledger row; answers products a second.
    fn products(&mut self, source: &Connection) -> anyhow::Result<f64> {
        let mut words: HashMap<i64, Vec<String>> = HashMap::new();
        let mut read = source.prepare("SELECT product_id, term FROM product_terms")?;
        for pair in read.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
            let (product, term) = pair?;
            words.entry(product).or_default().push(term);
        }
        let watch = Stopwatch::start();
        let mut products = source.prepare("SELECT * FROM products ORDER BY id")?;
        let mut ledger = source.prepare("SELECT * FROM stock_movements WHERE product_id = ?1")?;
        let (columns, ledger_columns) = (products.column_count(), ledger.column_count());
        let (mut rows, mut count) = (products.query([])?, 0);
        while let Some(row) = rows.next()? {
            self.turn(count)?;
            count += 1;
            self.insert("products", &values(row, columns)?)?;
            let product: i64 = row.get(0)?;
            for term in words.remove(&product).unwrap_or_default() {
                self.conn
                    .prepare_cached("INSERT INTO product_terms VALUES (?1, ?2)")?
                    .execute(params![term, product])?;
            }
            let mut movements = ledger.query([product])?;
            while let Some(movement) = movements.next()? {
                self.insert("stock_movements", &values(movement, ledger_columns)?)?;
            }
        }
        self.conn.execute_batch("COMMIT")?;
        Ok(count as f64 / watch.elapsed_seconds())
    }

    /// Copies orders, their lines and their customers; answers lines of the file a second.
    fn orders(&mut self, source: &Connection) -> anyhow::Result<f64> {
        let watch = Stopwatch::start();
        let mut customers = source.prepare("SELECT * FROM users WHERE id = ?1")?;
        let mut orders = source.prepare("SELECT * FROM orders ORDER BY id")?;
        let mut items = source.prepare("SELECT * FROM order_items WHERE order_id = ?1")?;
        let columns = (
            customers.column_count(),
            orders.column_count(),
            items.column_count(),
        );
        let (mut rows, mut count, mut known) = (orders.query([])?, 0, HashSet::new());
        while let Some(row) = rows.next()? {
            let customer: i64 = row.get(1)?;
            let mut lines = items.query([row.get::<_, i64>(0)?])?;
            let mut first = true;
            while let Some(line) = lines.next()? {
                self.turn(count)?;
                count += 1;
                if std::mem::take(&mut first) {
                    if known.insert(customer) {
                        let user = customers.query_row([customer], |row| values(row, columns.0))?;
                        self.insert("users", &user)?;
                    }
                    self.insert("orders", &values(row, columns.1)?)?;
                }
                self.insert("order_items", &values(line, columns.2)?)?;
            }
        }
        self.conn.execute_batch("COMMIT")?;
        Ok(count as f64 / watch.elapsed_seconds())
    }
}
