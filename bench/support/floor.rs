//! S, what writes are measured against in the same run: the same rows written by a bare rusqlite loop.
//!
//! Invariant: a floor does the least that the same result needs on the same libraries: no limits, no
//! checks, no metrics, no hashes.

use anyhow::Context;
use onrush::clock::{self, Clock, Stopwatch, Timestamp};
use rusqlite::{Connection, params};

use crate::shop::Shop;

/// S: a shop of its own, and a connection with the settings that the product commits under.
pub struct Rows {
    conn: Connection,
    sale: i64,
    product: i64,
    products: Vec<i64>,
    buyers: i64,
    seq: i64,
    _shop: Shop,
}

/// As long as the ledger's hashes are.
const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

impl Rows {
    /// Makes the shop and opens its database past the product.
    pub fn new(shop: Shop) -> anyhow::Result<Self> {
        let conn = Connection::open(shop.data.join("onrush.db"))?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.set_prepared_statement_cache_capacity(64);
        let product = *shop.products.first().context("no product")?;
        let now = Clock::system().now();
        conn.execute(
            "INSERT INTO flash_sales (product_id, quantity, remaining, held, sold, returned, unit_amount, currency, \
             starts_at, ends_at, per_user_limit, attempts_per_minute, payment_window_seconds, status, created_at) \
             VALUES (?1, 10000000, 10000000, 0, 0, 0, 9900, 'CNY', ?2, ?3, 1, 3, 0, 'open', ?2)",
            params![product, now.0, now.plus_seconds(3_600).0],
        )?;
        Ok(Self {
            sale: conn.last_insert_rowid(),
            conn,
            product,
            products: shop.products.clone(),
            buyers: shop.buyers.len() as i64,
            // The shop's own receipt of stock is row 1 of each product.
            seq: 1,
            _shop: shop,
        })
    }

    /// Writes the rows of `count` claims, `batch` to a transaction; answers claims a second.
    pub fn claims(&mut self, count: usize, batch: usize) -> anyhow::Result<f64> {
        let watch = Stopwatch::start();
        for first in (0..count).step_by(batch) {
            let now = Clock::system().now().0;
            self.conn.execute_batch("BEGIN IMMEDIATE")?;
            for number in first..count.min(first + batch) {
                let buyer = 2 + number as i64 % self.buyers;
                self.run(
                    "UPDATE flash_sales SET remaining = remaining - 1, sold = sold + 1 WHERE id = ?1",
                    params![self.sale],
                )?;
                let order = self.order(buyer, self.product, Some(self.sale), "claim_sell", now)?;
                self.run(
                    "INSERT INTO claims (id, sale_id, user_id, order_id, quantity, created_at) \
                     VALUES (?1, ?2, ?3, ?4, 1, ?5)",
                    params![
                        clock::uuid_at(Timestamp(now)).to_string(),
                        self.sale,
                        buyer,
                        order,
                        now
                    ],
                )?;
            }
            self.conn.execute_batch("COMMIT")?;
        }
        Ok(count as f64 / watch.elapsed_seconds())
    }

    /// Writes the rows of `count` orders of one line; answers orders a second.
    pub fn orders(&mut self, count: usize, batch: usize) -> anyhow::Result<f64> {
        let watch = Stopwatch::start();
        for first in (0..count).step_by(batch) {
            let now = Clock::system().now().0;
            self.conn.execute_batch("BEGIN IMMEDIATE")?;
            for number in first..count.min(first + batch) {
                let product = self.products[number % self.products.len()];
                self.run(
                    "UPDATE products SET stock = stock - 1 WHERE id = ?1",
                    params![product],
                )?;
                self.order(2 + number as i64 % self.buyers, product, None, "hold", now)?;
            }
            self.conn.execute_batch("COMMIT")?;
        }
        Ok(count as f64 / watch.elapsed_seconds())
    }

    fn run(&self, sql: &str, values: impl rusqlite::Params) -> anyhow::Result<()> {
        self.conn.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    /// An order, its line and its ledger row.
    fn order(
        &mut self,
        buyer: i64,
        product: i64,
        sale: Option<i64>,
        reason: &str,
        now: i64,
    ) -> anyhow::Result<i64> {
        self.seq += 1;
        let (status, expires_at, paid_at) = match sale {
            Some(_) => ("paid", None, Some(now)),
            None => ("pending_payment", Some(now + 900_000_000), None),
        };
        self.run(
            "INSERT INTO orders (user_id, status, total_amount, currency, sale_id, created_at, updated_at, expires_at, \
             paid_at) VALUES (?1, ?2, 9900, 'CNY', ?3, ?4, ?4, ?5, ?6)",
            params![buyer, status, sale, now, expires_at, paid_at],
        )?;
        let order = self.conn.last_insert_rowid();
        self.run(
            "INSERT INTO order_items (order_id, line, product_id, quantity, unit_amount, amount) \
             VALUES (?1, 1, ?2, 1, 9900, 9900)",
            params![order, product],
        )?;
        self.run(
            "INSERT INTO stock_movements (product_id, seq, sale_id, order_id, reason, quantity, delta, balance_after, \
             at, prev_hash, hash) VALUES (?1, ?2, ?3, ?4, ?5, 1, 0, 1000000, ?6, ?7, ?7)",
            params![product, self.seq, sale, order, reason, now, HASH],
        )?;
        Ok(order)
    }
}
