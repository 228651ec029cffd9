//! Stock: what can be sold, and the hash-chained ledger of every change.
//!
//! Invariants: `products.stock` is the free stock and never falls below zero (the rule stands in
//! the update's WHERE and in the schema); every change of where a unit is has one row in
//! `stock_movements`, written in the same transaction; each row's hash covers the row and the hash
//! before it, so a changed, missing or inserted row is found. At all times
//! `initial + Σ delta = free + allotted + held + sold`.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{LedgerRow, PRODUCT_ROWS, ProductId, Taken, sql};
use crate::clock::Timestamp;
use crate::store::{StoreError, Tx};
use crate::{id_type, word_type};

id_type! {
    /// Key of a flash sale: declared where the ledger names it; the sale itself is a room's above.
    SaleId
}

/// What stands in `prev_hash` of a product's first row.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Problems that a verdict spells out; the rest are counted.
const PROBLEMS_SHOWN: usize = 20;

word_type! {
    /// Why units moved, which says from where to where.
    Reason {
        /// Into the house: outside → free.
        Receipt = "receipt",
        /// Out of the house, lost or broken: free → outside.
        WriteOff = "write_off",
        /// Set aside for a sale: free → allotted.
        Allot = "allot",
        /// Left over from a sale: allotted → free.
        Unallot = "unallot",
        /// Ordered, to be paid: free → held.
        Hold = "hold",
        /// Ordered and paid at once: free → sold.
        Sell = "sell",
        /// Claimed, to be paid: allotted → held.
        ClaimHold = "claim_hold",
        /// Claimed and paid at once: allotted → sold.
        ClaimSell = "claim_sell",
        /// Paid: held → sold.
        Pay = "pay",
        /// Not paid or cancelled: held → free.
        Release = "release",
        /// Not paid or cancelled while its sale goes on: held → allotted.
        ReleaseToSale = "release_to_sale",
        /// Paid and cancelled: sold → free.
        Refund = "refund",
        /// Paid and cancelled while its sale goes on: sold → allotted.
        RefundToSale = "refund_to_sale",
    }
}

/// Where a unit is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UnitPlace {
    Outside,
    Free,
    Allotted,
    Held,
    Sold,
}

impl Reason {
    fn route(self) -> (UnitPlace, UnitPlace) {
        match self {
            Reason::Receipt => (UnitPlace::Outside, UnitPlace::Free),
            Reason::WriteOff => (UnitPlace::Free, UnitPlace::Outside),
            Reason::Allot => (UnitPlace::Free, UnitPlace::Allotted),
            Reason::Unallot => (UnitPlace::Allotted, UnitPlace::Free),
            Reason::Hold => (UnitPlace::Free, UnitPlace::Held),
            Reason::Sell => (UnitPlace::Free, UnitPlace::Sold),
            Reason::ClaimHold => (UnitPlace::Allotted, UnitPlace::Held),
            Reason::ClaimSell => (UnitPlace::Allotted, UnitPlace::Sold),
            Reason::Pay => (UnitPlace::Held, UnitPlace::Sold),
            Reason::Release => (UnitPlace::Held, UnitPlace::Free),
            Reason::ReleaseToSale => (UnitPlace::Held, UnitPlace::Allotted),
            Reason::Refund => (UnitPlace::Sold, UnitPlace::Free),
            Reason::RefundToSale => (UnitPlace::Sold, UnitPlace::Allotted),
        }
    }

    /// How the free stock changes when `quantity` units move.
    fn change_of_free(self, quantity: i64) -> i64 {
        match self.route() {
            (UnitPlace::Free, _) => quantity.saturating_neg(),
            (_, UnitPlace::Free) => quantity,
            _ => 0,
        }
    }

    /// How the number of units in the house changes.
    fn delta(self, quantity: i64) -> i64 {
        match self.route() {
            (UnitPlace::Outside, _) => quantity,
            (_, UnitPlace::Outside) => quantity.saturating_neg(),
            _ => 0,
        }
    }
}

/// One change of where units are.
#[derive(Clone, Copy, Debug)]
pub struct Movement {
    /// The product.
    pub product_id: ProductId,
    /// The sale that it belongs to, if any.
    pub sale_id: Option<SaleId>,
    /// The order that it belongs to, if any.
    pub order_id: Option<i64>,
    /// From where to where.
    pub reason: Reason,
    /// Units, at least 1.
    pub quantity: u32,
}

impl LedgerRow {
    /// SHA-256 over the fields in their order, separated so that no two rows read alike: what is
    /// absent is a dash, for 0 would be another row.
    fn digest(&self) -> String {
        let or_dash = |id: Option<i64>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let text = format!(
            "{}|{}|{}|{}|{}|{}|{}|{}|{}|{}",
            self.product_id,
            self.seq,
            or_dash(self.sale_id.map(|id| id.0)),
            or_dash(self.order_id),
            self.reason.word(),
            self.quantity,
            self.delta,
            self.balance_after,
            self.at.0,
            self.prev_hash,
        );
        hex(&Sha256::digest(text.as_bytes()))
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Appends a row. The caller changes the stock itself in the same transaction, with [`take`],
/// [`give_back`] or the sale's own counters.
pub fn append(tx: &mut Tx<'_>, now: Timestamp, movement: &Movement) -> Result<(), StoreError> {
    append_all(tx, movement.product_id, &[(now, *movement)])
}

/// Appends rows of one product in their order, with two statements however many they are.
pub fn append_all(
    tx: &mut Tx<'_>,
    product_id: ProductId,
    movements: &[(Timestamp, Movement)],
) -> Result<(), StoreError> {
    // No other transaction appends to this chain before this one ends.
    tx.lock(PRODUCT_ROWS, [product_id])?;
    let (mut seq, mut balance, mut prev_hash) =
        sql::ledger_head(tx, product_id)?.unwrap_or_else(|| (0, 0, GENESIS.to_owned()));
    let mut rows = Vec::with_capacity(movements.len());
    for (at, movement) in movements {
        let quantity = i64::from(movement.quantity);
        seq += 1;
        balance += movement.reason.change_of_free(quantity);
        let mut row = LedgerRow {
            product_id,
            seq,
            sale_id: movement.sale_id,
            order_id: movement.order_id,
            reason: movement.reason,
            quantity,
            delta: movement.reason.delta(quantity),
            balance_after: balance,
            at: *at,
            prev_hash,
            hash: String::new(),
        };
        row.hash = row.digest();
        prev_hash = row.hash.clone();
        rows.push(row);
    }
    sql::insert_movements(tx, &rows)
}

/// Why units could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum StockError {
    /// There is no such product, or it is no longer sold.
    #[error("there is no product {0}")]
    NotFound(ProductId),
    /// Fewer are free than were asked for.
    #[error("product {product_id} has {available} free units, {wanted} were asked for")]
    Insufficient {
        /// The product.
        product_id: ProductId,
        /// Free units at that moment.
        available: i64,
        /// Units asked for.
        wanted: u32,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes free units, all or none. Appends no row: the caller does, once it knows the order's id.
pub fn take(tx: &mut Tx<'_>, product_id: ProductId, quantity: u32) -> Result<Taken, StockError> {
    if let Some(taken) = sql::take_stock(tx, product_id, quantity)? {
        return Ok(taken);
    }
    match sql::free_stock(tx, product_id)? {
        Some(available) => Err(StockError::Insufficient {
            product_id,
            available,
            wanted: quantity,
        }),
        None => Err(StockError::NotFound(product_id)),
    }
}

/// Gives free units back. Appends no row, as [`take`].
pub fn give_back(tx: &mut Tx<'_>, product_id: ProductId, quantity: u32) -> Result<(), StoreError> {
    sql::give_stock(tx, product_id, i64::from(quantity))
}

/// Tells that a sale opens with `quantity` of the product's units. What is shown of a product changes
/// with it, and not with each claim: how many are left, the sale knows.
pub fn sale_opens(tx: &mut Tx<'_>, product_id: ProductId, quantity: u32) -> Result<(), StoreError> {
    sql::set_aside(tx, product_id, i64::from(quantity))
}

/// Tells that the sale that opened with `quantity` units is over.
pub fn sale_ends(tx: &mut Tx<'_>, product_id: ProductId, quantity: i64) -> Result<(), StoreError> {
    sql::set_aside(tx, product_id, quantity.saturating_neg())
}

/// Receives units into the house.
pub fn receive(
    tx: &mut Tx<'_>,
    now: Timestamp,
    product_id: ProductId,
    quantity: u32,
) -> Result<(), StoreError> {
    give_back(tx, product_id, quantity)?;
    let movement = Movement {
        product_id,
        sale_id: None,
        order_id: None,
        reason: Reason::Receipt,
        quantity,
    };
    append(tx, now, &movement)
}

/// Sets the free stock to `counted` after a stock-take: the difference is received or written off.
pub fn set(
    tx: &mut Tx<'_>,
    now: Timestamp,
    product_id: ProductId,
    counted: i64,
) -> Result<(), StockError> {
    let free = sql::free_stock(tx, product_id)?.ok_or(StockError::NotFound(product_id))?;
    let (reason, units) = if counted >= free {
        (Reason::Receipt, counted - free)
    } else {
        (Reason::WriteOff, free - counted)
    };
    let Ok(quantity) = u32::try_from(units) else {
        return Err(StockError::Store(StoreError::Constraint(
            "a movement of over 2^32 units".to_owned(),
        )));
    };
    if quantity == 0 {
        return Ok(());
    }
    // The update itself holds on to the stock that the difference was reckoned from.
    if !sql::set_stock(tx, product_id, free, counted)? {
        return Err(StockError::Insufficient {
            product_id,
            available: free,
            wanted: quantity,
        });
    }
    append(
        tx,
        now,
        &Movement {
            product_id,
            sale_id: None,
            order_id: None,
            reason,
            quantity,
        },
    )?;
    Ok(())
}

/// Units of one product that are not free, as the tables of rooms above have them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    /// Set aside for sales, and not claimed.
    pub allotted: i64,
    /// In orders that wait for payment.
    pub held: i64,
    /// In orders that are paid.
    pub sold: i64,
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verdict {
    /// Products that have a ledger.
    pub products: u64,
    /// Rows read.
    pub movements: u64,
    /// Units by which tables and ledger disagree; 0 when all is well.
    pub drift_units: i64,
    /// What is wrong, the first twenty.
    pub problems: Vec<String>,
    /// How many problems there are.
    pub problems_total: u64,
}

impl Verdict {
    fn problem(&mut self, text: String) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push(text);
        }
    }
}

/// Units of one product by place, as the ledger tells it or as the tables do.
#[derive(Clone, Copy, Default)]
struct Units {
    free: i64,
    allotted: i64,
    held: i64,
    sold: i64,
    total: i64,
}

impl Units {
    fn shift(&mut self, place: UnitPlace, by: i64) {
        match place {
            UnitPlace::Outside => self.total = self.total.saturating_sub(by),
            UnitPlace::Free => self.free = self.free.saturating_add(by),
            UnitPlace::Allotted => self.allotted = self.allotted.saturating_add(by),
            UnitPlace::Held => self.held = self.held.saturating_add(by),
            UnitPlace::Sold => self.sold = self.sold.saturating_add(by),
        }
    }
}

/// Recomputes every hash and balance, and compares the ledger with what the tables say: the products' own, and of
/// what is `bound` those above, read in this transaction. A row that can't even be read is a problem like any
/// other and ends nothing. Memory grows with the number of products that ever moved, not with the number of rows.
/// `progress` hears now and then how many rows were read, and ends the check with an error of its own.
pub fn verify(
    tx: &mut Tx<'_>,
    bound: &BTreeMap<ProductId, Bound>,
    mut progress: impl FnMut(u64) -> Result<(), StoreError>,
) -> Result<Verdict, StoreError> {
    let mut verdict = Verdict::default();
    let mut ledger: BTreeMap<ProductId, Units> = BTreeMap::new();
    let mut head: Option<(ProductId, i64, i64, String)> = None;
    sql::each_movement(tx, |product_id, row_seq, row| {
        verdict.movements += 1;
        if verdict.movements.is_multiple_of(10_000) {
            progress(verdict.movements)?;
        }
        let (seq, balance, prev) = match &head {
            Some((product, seq, balance, hash)) if *product == product_id => {
                (*seq, *balance, hash.clone())
            }
            _ => (0, 0, GENESIS.to_owned()),
        };
        let name = format!("product {product_id}, row {row_seq}");
        if row_seq != seq.saturating_add(1) {
            verdict.problem(format!("{name}: row {} is missing", seq.saturating_add(1)));
        }
        let Some(row) = row else {
            verdict.problem(format!("{name}: a field holds what no ledger row can"));
            ledger.entry(product_id).or_default();
            head = Some((product_id, row_seq, balance, String::new()));
            return Ok(());
        };
        if row_seq == seq.saturating_add(1) && row.prev_hash != prev {
            verdict.problem(format!("{name}: it does not follow the row before it"));
        }
        if row.digest() != row.hash {
            verdict.problem(format!("{name}: it was changed after it was written"));
        }
        if row.delta != row.reason.delta(row.quantity) {
            verdict.problem(format!("{name}: its delta does not fit its reason"));
        }
        if row.balance_after != balance.saturating_add(row.reason.change_of_free(row.quantity)) {
            verdict.problem(format!("{name}: its balance does not follow"));
        }
        let units = ledger.entry(row.product_id).or_default();
        let (from, to) = row.reason.route();
        units.shift(from, row.quantity.saturating_neg());
        units.shift(to, row.quantity);
        head = Some((row.product_id, row.seq, row.balance_after, row.hash));
        Ok(())
    })?;
    verdict.products = ledger.len() as u64;
    let of = |bound: &Bound| Units {
        allotted: bound.allotted,
        held: bound.held,
        sold: bound.sold,
        ..Units::default()
    };
    let mut tables: BTreeMap<ProductId, Units> =
        bound.iter().map(|(id, bound)| (*id, of(bound))).collect();
    sql::each_free(tx, |product, units| {
        tables.entry(product).or_default().free = units;
    })?;
    for product in ledger
        .keys()
        .chain(tables.keys().filter(|id| !ledger.contains_key(id)))
    {
        let said = ledger.get(product).copied().unwrap_or_default();
        let is = tables.get(product).copied().unwrap_or_default();
        for (place, said, is) in [
            ("free", said.free, is.free),
            ("allotted", said.allotted, is.allotted),
            ("held", said.held, is.held),
            ("sold", said.sold, is.sold),
            (
                "in all",
                said.total,
                is.free
                    .saturating_add(is.allotted)
                    .saturating_add(is.held)
                    .saturating_add(is.sold),
            ),
        ] {
            if said != is {
                let drift = said.saturating_sub(is).saturating_abs();
                verdict.drift_units = verdict.drift_units.saturating_add(drift);
                verdict.problem(format!(
                    "product {product}: {is} units {place}, but its ledger says {said}"
                ));
            }
        }
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::monitor::Metrics;
    use crate::product::{NewProduct, ProductError, create};
    use crate::store::Store;

    const NOW: Timestamp = Timestamp(1_000);

    fn shop(dir: &tempfile::TempDir, stock: i64) -> (Store, ProductId) {
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        let new = NewProduct {
            sku: Some("A".to_owned()),
            name: "Lamp".to_owned(),
            description: String::new(),
            category: String::new(),
            unit_amount: 1_250,
            currency: "CNY".to_owned(),
            stock,
            popularity: 0,
        };
        let id = store
            .write::<_, ProductError>(move |tx| create(tx, NOW, &new))
            .blocking()
            .expect("product");
        (store, id)
    }

    fn verdict(store: &Store) -> Verdict {
        store
            .read_blocking::<_, StoreError>(|tx| verify(tx, &BTreeMap::new(), |_| Ok(())))
            .expect("verify")
    }

    #[test]
    fn a_change_of_any_field_of_any_row_is_named() {
        // The last row belongs to a sale and an order, which can be made away with or exchanged.
        let changes = (1..=4)
            .flat_map(|row| {
                sql::tampering::CHANGES
                    .iter()
                    .map(move |change| (row, change))
            })
            .chain(sql::tampering::OF_SALES.iter().map(|change| (4, change)));
        for (row, change) in changes {
            let dir = tempfile::tempdir().expect("temporary directory");
            let (store, id) = shop(&dir, 10);
            store
                .write::<_, StockError>(move |tx| {
                    set(tx, NOW, id, 7)?;
                    set(tx, NOW, id, 9)?;
                    give_back(tx, id, 1)?;
                    let movement = Movement {
                        product_id: id,
                        sale_id: Some(SaleId(5)),
                        order_id: Some(8),
                        reason: Reason::Receipt,
                        quantity: 1,
                    };
                    Ok(append(tx, NOW, &movement)?)
                })
                .blocking()
                .expect("stock-take");
            assert_eq!(verdict(&store).problems_total, 0);
            store
                .write::<_, StoreError>(move |tx| sql::tampering::change(tx, id, row, change))
                .blocking()
                .expect("tampering");
            let found = verdict(&store);
            let first = found.problems.first().expect("a problem");
            assert!(
                first.contains(&format!("row {row}")) || change.starts_with("product_id"),
                "{change} of row {row}: {:?}",
                found.problems
            );
        }
    }

    #[test]
    fn taking_ends_at_zero_and_says_what_is_left() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, id) = shop(&dir, 5);
        let take_some = |quantity: u32| {
            store
                .write::<_, StockError>(move |tx| {
                    let taken = take(tx, id, quantity)?;
                    Ok((taken.unit_amount, taken.currency))
                })
                .blocking()
        };
        assert_eq!(take_some(3).expect("taken"), (1_250, "CNY".to_owned()));
        let refused = take_some(3).expect_err("too many");
        assert!(matches!(
            refused,
            StockError::Insufficient {
                available: 2,
                wanted: 3,
                ..
            }
        ));
        take_some(2).expect("taken");
        let refused = take_some(1).expect_err("none left");
        assert!(matches!(
            refused,
            StockError::Insufficient { available: 0, .. }
        ));
        let unknown = ProductId(id.0 + 1);
        let refused = store
            .write::<_, StockError>(move |tx| take(tx, unknown, 1))
            .blocking()
            .expect_err("no such product");
        assert!(matches!(refused, StockError::NotFound(found) if found == unknown));
    }

    #[test]
    fn nothing_can_be_given_back_to_a_product_that_is_not_there() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, id) = shop(&dir, 5);
        let unknown = ProductId(id.0 + 1);
        let given = store
            .write::<_, StoreError>(move |tx| receive(tx, NOW, unknown, 1))
            .blocking();
        assert!(matches!(given, Err(StoreError::Bug(_))));
        assert_eq!(verdict(&store).movements, 1);
    }
}
