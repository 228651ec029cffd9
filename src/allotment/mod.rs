//! What is set aside of a product for a sale: the sale's row and its counters.
//!
//! Invariants: `remaining + held + sold + returned = quantity` in every row (a CHECK of the schema); units move
//! between these four by conditional updates, so none is given away twice whatever the caller believes; every
//! statement that changes a row touches [`SALE_CHANGED`] with its key. The rows of the ledger that go with it, and
//! the free stock, are the caller's ([`crate::product::stock`]). What is absent: who may buy, and any decision
//! about a claim; orders and their buyers.

mod sql;

use crate::clock::Timestamp;
use crate::product::ProductId;
pub use crate::product::stock::SaleId;
use crate::store::{LockOrder, Topic};
use crate::word_type;
pub use sql::{
    bring_forward, close, count_returned, due, each_allotted, get, give_back, highest_id, insert,
    list, lock, not_over, open_sales, sell_held, take, take_again, take_all,
};

/// Touched, by row, by whatever changes a sale.
pub const SALE_CHANGED: Topic = Topic::new(3);
/// Rows of sales, which are locked after orders and before products.
pub(crate) const SALE_ROWS: LockOrder = LockOrder::new(2, "flash_sales");

word_type! {
    /// What the row says; with the clock it makes the state that users see.
    SaleStatus {
        /// Before, in or just past its window.
        Open = "open",
        /// Its window is over and what was left went back.
        Ended = "ended",
        /// It was stopped by hand and what was left went back.
        Stopped = "stopped",
    }
}

/// A flash sale.
#[derive(Clone, Debug)]
pub struct Sale {
    /// Key of its row.
    pub id: SaleId,
    /// The product that is sold.
    pub product_id: ProductId,
    /// Units allotted.
    pub quantity: i64,
    /// Units that can still be claimed.
    pub remaining: i64,
    /// Units claimed and not yet paid.
    pub held: i64,
    /// Units sold.
    pub sold: i64,
    /// Units that went back to the free stock.
    pub returned: i64,
    /// Price of one in minor units.
    pub unit_amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// First moment.
    pub starts_at: Timestamp,
    /// First moment after it.
    pub ends_at: Timestamp,
    /// Units of one buyer at most.
    pub per_user_limit: i64,
    /// Attempts of one buyer in a sliding minute.
    pub attempts_per_minute: i64,
    /// Seconds in which a claim must be paid; 0 means no payment step.
    pub payment_window_seconds: i64,
    /// What the row says.
    pub status: SaleStatus,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Sale {
    /// `scheduled`, `running`, `sold_out`, `ended` or `stopped`.
    pub fn state(&self, now: Timestamp) -> &'static str {
        match self.status {
            SaleStatus::Stopped => "stopped",
            SaleStatus::Ended => "ended",
            SaleStatus::Open if now >= self.ends_at => "ended",
            SaleStatus::Open if now < self.starts_at => "scheduled",
            SaleStatus::Open if self.remaining == 0 => "sold_out",
            SaleStatus::Open => "running",
        }
    }

    /// Whether it is open, and in its window.
    pub fn grants(&self, now: Timestamp) -> bool {
        self.status == SaleStatus::Open && self.starts_at <= now && now < self.ends_at
    }
}

/// A sale to be made.
#[derive(Clone, Debug)]
pub struct NewSale {
    /// The product that is sold.
    pub product_id: ProductId,
    /// Units to allot.
    pub quantity: u32,
    /// Price of one in minor units of the product's currency.
    pub unit_amount: i64,
    /// First moment.
    pub starts_at: Timestamp,
    /// First moment after it.
    pub ends_at: Timestamp,
    /// Units of one buyer at most.
    pub per_user_limit: u32,
    /// Attempts of one buyer in a sliding minute.
    pub attempts_per_minute: u32,
    /// Seconds in which a claim must be paid.
    pub payment_window_seconds: i64,
}

/// Units of an open sale that moved otherwise than by a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaleUnits {
    /// The sale.
    pub sale_id: SaleId,
    /// What that did to the units that can be claimed: above 0, so many came back; below 0, a late
    /// payment took so many.
    pub change: i64,
}

/// What a claim needs to know of the sale that it took units from.
#[derive(Clone, Debug)]
pub struct SaleTerms {
    /// The product that is sold.
    pub product_id: ProductId,
    /// Units that can still be claimed, after what was taken.
    pub remaining: i64,
    /// Price of one in minor units.
    pub unit_amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// Units of one buyer at most.
    pub per_user_limit: i64,
    /// Seconds in which a claim must be paid.
    pub payment_window_seconds: i64,
}

/// Where the units of a late payment came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenAgain {
    /// From the sale, which still has so many.
    FromSale {
        /// Units that can be claimed, after it.
        remaining: i64,
    },
    /// From those that the sale gave back at its end: the caller takes them from the free stock.
    FromReturned,
}
