//! A shop to measure: a catalogue, an operator's key, buyers with sessions, made through the library
//! while no server runs.
//!
//! Invariant: what is in it depends on the numbers alone, so two runs measure the same shop.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use onrush::app;
use onrush::auth::AuthError;
use onrush::clock::Clock;
use onrush::config::Settings;
use onrush::flash_sale::rehearsal;
use onrush::product::{self, NewProduct, ProductError};
use rusqlite::Connection;

use crate::data::Data;
use crate::support::Process;

/// Units of each product: more than any run sells.
pub const STOCK: i64 = 500_000_000;

/// A data directory with a shop in it.
pub struct Shop {
    /// Where it is.
    pub data: PathBuf,
    /// An API key that may do everything an operator may.
    pub key: String,
    /// The buyers' tokens.
    pub buyers: Vec<String>,
    /// The products' ids.
    pub products: Vec<i64>,
    _base: Data,
}

impl Shop {
    /// Makes it.
    pub fn new(products: usize, buyers: u32) -> anyhow::Result<Self> {
        let base = Data::new()?;
        let mut settings = Settings::default();
        settings.data.dir = base.path.clone();
        let opened = app::open_data(&settings)?;
        let (store, now) = (&opened.store, opened.clock.now());
        let ids = store
            .write::<_, ProductError>(move |tx| {
                (0..products)
                    .map(|number| product::create(tx, now, &sample(number)))
                    .collect::<Result<Vec<_>, _>>()
            })
            .blocking()?;
        let buyers = store
            .write::<_, AuthError>(move |tx| rehearsal::create_buyers(tx, now, 0, buyers))
            .blocking()?;
        opened.close();
        Ok(Self {
            data: settings.data.dir,
            key: base.key.clone(),
            buyers,
            products: ids.into_iter().map(|id| id.0).collect(),
            _base: base,
        })
    }

    /// Ten times the real grocer's data beside what is measured: a million products that are out of
    /// stock, and five million delivered orders of three lines each.
    pub fn grow(&self) -> anyhow::Result<()> {
        let conn = Connection::open(self.data.join("onrush.db"))?;
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -500000; BEGIN",
        )?;
        let numbers = |count: u32| {
            format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
            )
        };
        let first: i64 =
            conn.query_row("SELECT max(id) + 1 FROM products", [], |row| row.get(0))?;
        let buyers: i64 = conn.query_row("SELECT max(id) FROM users", [], |row| row.get(0))?;
        let products = numbers(1_000_000);
        conn.execute_batch(&format!(
            "{products} INSERT INTO products (id, sku, name, description, category, unit_amount, currency, stock, \
             popularity, status, created_at, last_updated) SELECT {first} + i, 'GROWN-' || i, 'Filler ' || i, \
             'One of a million.', 'Category ' || (i % 300), 100 + i % 90000, 'CNY', 0, i % 1000, 'active', i, i FROM n;
             {products} INSERT INTO product_terms (term, product_id) \
             SELECT 'filler', {first} + i FROM n UNION ALL SELECT CAST(i AS text), {first} + i FROM n;"
        ))?;
        let orders = numbers(5_000_000);
        conn.execute_batch(&format!(
            "{orders} INSERT INTO orders (id, user_id, status, total_amount, currency, created_at, updated_at, paid_at, external_id, import_run) \
             SELECT i, 1 + (i * 7919) % {buyers}, 'fulfilled', 3000, 'CNY', i * 1000000, i * 1000000, i * 1000000, 'grown-' || i, 1 FROM n;
             {orders} INSERT INTO order_items (order_id, line, product_id, quantity, unit_amount, amount) \
             SELECT i, l, {first} + (i * 31 + l * 104729) % 1000000, 1, 1000, 1000 \
             FROM n, (SELECT 1 AS l UNION ALL SELECT 2 UNION ALL SELECT 3);
             COMMIT; PRAGMA wal_checkpoint(TRUNCATE);"
        ))?;
        Ok(())
    }

    /// Opens a sale that runs now, of one product; answers its id.
    pub fn open_sale(
        &self,
        server: &Process,
        product: i64,
        quantity: u32,
        per_user: u32,
        attempts: u32,
    ) -> anyhow::Result<i64> {
        let now = Clock::system().now();
        let sale = serde_json::json!({
            "product_id": product, "quantity": quantity, "unit_amount": 9_900,
            "starts_at": now.plus_seconds(-1), "ends_at": now.plus_seconds(3_600),
            "per_user_limit": per_user, "attempts_per_minute": attempts,
        });
        let (status, body) =
            server.call("POST", "/api/v1/flash-sales", &self.key, &sale.to_string())?;
        ensure!(status == 201, "no sale: {status} {body}");
        serde_json::from_str::<serde_json::Value>(&body)?["id"]
            .as_i64()
            .context("a sale without an id")
    }
}

fn sample(number: usize) -> NewProduct {
    NewProduct {
        sku: Some(format!("BENCH-{number:05}")),
        name: format!("Aurora Wireless Earbuds No. {number} · 极光无线耳机"),
        description: format!(
            "Number {number} of the series: light, long-lasting, quick to charge. 轻巧耐用，充电迅速，品质保证。"
        ),
        category: "Audio 音频".to_owned(),
        unit_amount: 19_900 + (number % 1_000) as i64,
        currency: "CNY".to_owned(),
        stock: STOCK,
        popularity: (number % 100) as i64,
    }
}
