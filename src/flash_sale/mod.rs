//! Flash sales: a number of units, a window of time, more buyers than units.
//!
//! Invariants: granting is one transaction — the conditional update on the sale, the order, the
//! ledger row, the claim and the kept answer commit together or not at all; the update's WHERE and
//! the schema's CHECKs make overselling impossible whatever the gate says; who comes in time and
//! within the limits gets a unit while one is left.

pub mod api;
pub mod gate;
#[cfg(test)]
mod model;
pub mod rehearsal;
pub mod service;
mod sql;
pub mod tasks;

use uuid::Uuid;

use crate::auth::UserId;
use crate::check::{Checks, FieldError};
use crate::clock::{self, Timestamp};
use crate::order::{
    self, FollowUps, NewOrder, OrderError, OrderId, OrderItem, OrderStatus, Stored,
    idempotency::{Key, KeyError},
};
use crate::product::stock::{self, Movement, Reason, StockError};
use crate::product::{ProductId, UNIT_AMOUNT_MAX};
use crate::store::{StoreError, Tx};
use crate::task::webhook::{EventKind, Events};
use crate::{config, id_type, word_type};

id_type! {
    /// Key of a flash sale.
    SaleId
}

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

/// Longest sale: one year.
const WINDOW_SECONDS_MAX: i64 = 366 * 86_400;
/// Longest payment window: 30 days.
const PAYMENT_SECONDS_MAX: i64 = 30 * 86_400;

/// Where claims are to be had, by their ids.
const CLAIMS: &str = "/api/v1/claims/";

/// A flash sale.
#[derive(Clone, Debug)]
pub struct Sale {
    /// Key.
    pub id: SaleId,
    /// What is sold.
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
}

/// A sale to be made.
#[derive(Clone, Debug)]
pub struct NewSale {
    /// What is sold.
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

/// Why a sale or a claim was not made.
#[derive(Debug, thiserror::Error)]
pub enum SaleError {
    /// Fields don't hold.
    #[error("the sale is not valid")]
    Invalid(Vec<FieldError>),
    /// No such sale.
    #[error("there is no flash sale {0}")]
    NotFound(SaleId),
    /// The product is not there, or has too few free units.
    #[error(transparent)]
    Stock(StockError),
    /// Another open sale of the product overlaps.
    #[error("another open sale of this product overlaps this one in time")]
    Overlap,
    /// It has not begun.
    #[error("the sale has not started")]
    NotStarted,
    /// It is over.
    #[error("the sale is over")]
    Ended,
    /// Fewer units are left than were asked for.
    #[error("{0} units are left")]
    SoldOut(i64),
    /// The buyer has as many as one may have.
    #[error("a buyer may have {0} units of this sale")]
    LimitReached(i64),
    /// The order could not be made.
    #[error(transparent)]
    Order(OrderError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<OrderError> for SaleError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Store(error) => SaleError::Store(error),
            other => SaleError::Order(other),
        }
    }
}

impl From<KeyError> for SaleError {
    fn from(error: KeyError) -> Self {
        OrderError::from(error).into()
    }
}

impl From<StockError> for SaleError {
    fn from(error: StockError) -> Self {
        match error {
            StockError::Store(error) => SaleError::Store(error),
            other => SaleError::Stock(other),
        }
    }
}

fn check(
    new: &NewSale,
    now: Timestamp,
    settings: &config::FlashSales,
) -> Result<(), Vec<FieldError>> {
    let mut checks = Checks::new();
    checks.range("quantity", new.quantity, 1, settings.quantity_max);
    checks.range("unit_amount", new.unit_amount, 0, UNIT_AMOUNT_MAX);
    checks.require(
        new.ends_at > new.starts_at,
        "ends_at",
        "must be after starts_at",
    );
    checks.require(new.ends_at > now, "ends_at", "must be in the future");
    let window = new.ends_at.micros_since(new.starts_at) / 1_000_000;
    checks.require(
        window <= WINDOW_SECONDS_MAX,
        "ends_at",
        "must be within 366 days of starts_at",
    );
    checks.range(
        "per_user_limit",
        new.per_user_limit,
        1,
        settings.quantity_max,
    );
    checks.range("attempts_per_minute", new.attempts_per_minute, 1, 1_000);
    checks.range(
        "payment_window_seconds",
        new.payment_window_seconds,
        0,
        PAYMENT_SECONDS_MAX,
    );
    checks.finish()
}

/// Makes a sale: its units leave the free stock and are set aside for it.
pub fn create(
    tx: &mut Tx<'_>,
    now: Timestamp,
    settings: &config::FlashSales,
    events: &Events,
    new: &NewSale,
) -> Result<Sale, SaleError> {
    check(new, now, settings).map_err(SaleError::Invalid)?;
    let taken = stock::take(tx, new.product_id, new.quantity)?;
    let sale = sql::insert(tx, now, new, &taken.currency)?.ok_or(SaleError::Overlap)?;
    let movement = Movement {
        product_id: new.product_id,
        sale_id: Some(sale.id.0),
        order_id: None,
        reason: Reason::Allot,
        quantity: new.quantity,
    };
    stock::append(tx, now, &movement)?;
    stock::sale_opens(tx, new.product_id, new.quantity)?;
    events.emit(tx, now, EventKind::SaleCreated, || described(&sale, now))?;
    Ok(sale)
}

/// A sale as receivers of events see it.
fn described(sale: &Sale, now: Timestamp) -> serde_json::Value {
    serde_json::json!({
        "sale_id": sale.id,
        "product_id": sale.product_id,
        "state": sale.state(now),
        "quantity": sale.quantity,
        "remaining": sale.remaining,
        "held": sale.held,
        "sold": sale.sold,
        "returned": sale.returned,
        "unit_amount": sale.unit_amount,
        "currency": sale.currency,
        "starts_at": sale.starts_at,
        "ends_at": sale.ends_at,
    })
}

/// One sale.
pub fn get(tx: &mut Tx<'_>, id: SaleId) -> Result<Sale, SaleError> {
    sql::get(tx, id)?.ok_or(SaleError::NotFound(id))
}

/// Sales with ids below `before`, newest first.
pub fn list(tx: &mut Tx<'_>, before: i64, limit: i64) -> Result<Vec<Sale>, SaleError> {
    Ok(sql::list(tx, before, limit)?)
}

/// All sales that are not closed.
pub fn open_sales(tx: &mut Tx<'_>) -> Result<Vec<Sale>, StoreError> {
    sql::open_sales(tx)
}

/// A claim that was granted.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Claimed {
    /// UUIDv7.
    pub claim_id: Uuid,
    /// The order that it became.
    pub order_id: OrderId,
    /// The order's state: `paid`, or `pending_payment` until `expires_at`.
    pub state: OrderStatus,
    /// Units left in the sale right after.
    pub remaining: i64,
    /// Until when it must be paid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// What a claim came to.
#[derive(Clone, Debug)]
pub enum Claim {
    /// Units were granted now: the answer's text and where the claim is.
    Granted(Stored),
    /// They were granted before, under the same key.
    Replayed(Stored),
}

/// What a buyer asks for.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// In which sale.
    pub sale_id: SaleId,
    /// Who.
    pub user_id: UserId,
    /// How many.
    pub quantity: u32,
    /// Under which key.
    pub key: Option<Key>,
    /// What follows from it.
    pub follow_ups: FollowUps,
}

/// What a claim asks for, as its key remembers it.
pub fn asked(sale: SaleId, quantity: u32) -> String {
    format!("claim {sale} {quantity}")
}

/// The answer to a claim of this product that was granted under this key, in whichever of its sales
/// that was, over or not.
pub fn granted_before(
    tx: &mut Tx<'_>,
    now: Timestamp,
    user_id: UserId,
    product_id: ProductId,
    quantity: u32,
    key: &Key,
) -> Result<Option<Stored>, SaleError> {
    let Some(location) = key.made_at(tx, now, user_id)? else {
        return Ok(None);
    };
    let sale = match location.strip_prefix(CLAIMS) {
        Some(claim_id) => sql::sale_of_claim(tx, claim_id, product_id)?,
        None => None,
    };
    let Some(sale_id) = sale else {
        return Err(KeyError::Reused.into());
    };
    let key = key.asking(&asked(sale_id, quantity));
    Ok(key.look_up(tx, now, user_id)?)
}

/// Grants units, or says why not. All of it or nothing.
pub fn claim(tx: &mut Tx<'_>, now: Timestamp, request: &ClaimRequest) -> Result<Claim, SaleError> {
    if let Some(key) = &request.key
        && let Some(stored) = key.look_up(tx, now, request.user_id)?
    {
        return Ok(Claim::Replayed(stored));
    }
    let quantity = request.quantity;
    let sale_id = request.sale_id;
    let Some(sale) = sql::take(tx, sale_id, quantity, now)? else {
        return Err(refusal(tx, sale_id, now)?);
    };
    fail::fail_point!("claim.units_taken");
    let amount = sale.unit_amount.saturating_mul(i64::from(quantity));
    let (status, expires_at) = order::payment_terms(now, sale.payment_window_seconds, amount);
    let item = OrderItem {
        product_id: sale.product_id,
        quantity,
        unit_amount: sale.unit_amount,
        amount,
    };
    let new = NewOrder {
        user_id: request.user_id,
        status,
        total_amount: amount,
        currency: sale.currency,
        sale_id: Some(sale_id.0),
        expires_at,
    };
    let reason = if status == OrderStatus::Paid {
        Reason::ClaimSell
    } else {
        Reason::ClaimHold
    };
    let order = order::insert(tx, now, &request.follow_ups, &new, vec![item], reason)?;
    fail::fail_point!("claim.order_written");
    let claim_id = clock::uuid_at(now);
    if !sql::insert_claim(
        tx,
        now,
        &claim_id.to_string(),
        request,
        sale.per_user_limit,
        order.id,
    )? {
        return Err(SaleError::LimitReached(sale.per_user_limit));
    }
    fail::fail_point!("claim.claim_written");
    if sale.remaining == 0 {
        request
            .follow_ups
            .sale_sold_out(tx, now, sale_id.0, sale.product_id)?;
    }
    let claimed = Claimed {
        claim_id,
        order_id: order.id,
        state: status,
        remaining: sale.remaining,
        expires_at,
    };
    let body =
        serde_json::to_string(&claimed).map_err(|error| StoreError::Bug(error.to_string()))?;
    let location = format!("{CLAIMS}{claim_id}");
    if let Some(key) = &request.key {
        key.keep(tx, now, request.user_id, location.clone(), body.clone())?;
        fail::fail_point!("claim.key_kept");
    }
    Ok(Claim::Granted(Stored {
        fingerprint: String::new(),
        location,
        body,
    }))
}

/// Why the conditional update took nothing.
fn refusal(tx: &mut Tx<'_>, id: SaleId, now: Timestamp) -> Result<SaleError, StoreError> {
    Ok(match sql::get(tx, id)? {
        None => SaleError::NotFound(id),
        Some(sale) if sale.status != SaleStatus::Open || now >= sale.ends_at => SaleError::Ended,
        Some(sale) if now < sale.starts_at => SaleError::NotStarted,
        Some(sale) => SaleError::SoldOut(sale.remaining),
    })
}

/// Closes a sale; what is left goes back to the free stock. `None` when it was closed already.
pub fn close(
    tx: &mut Tx<'_>,
    now: Timestamp,
    events: &Events,
    id: SaleId,
    status: SaleStatus,
) -> Result<Option<Sale>, SaleError> {
    let Some((sale, left)) = sql::close(tx, now, id, status)? else {
        get(tx, id)?;
        return Ok(None);
    };
    fail::fail_point!("sale.closed");
    stock::sale_ends(tx, sale.product_id, sale.quantity)?;
    if let Ok(quantity @ 1..) = u32::try_from(left) {
        stock::give_back(tx, sale.product_id, quantity)?;
        let movement = Movement {
            product_id: sale.product_id,
            sale_id: Some(id.0),
            order_id: None,
            reason: Reason::Unallot,
            quantity,
        };
        stock::append(tx, now, &movement)?;
    }
    events.emit(tx, now, EventKind::SaleEnded, || described(&sale, now))?;
    Ok(Some(sale))
}

/// Units in live orders of a sale, counted from the orders: what a report card compares with.
pub fn units_ordered(tx: &mut Tx<'_>, id: SaleId) -> Result<i64, StoreError> {
    sql::units_ordered(tx, id)
}

/// A claim that was granted, as it stands now.
#[derive(Clone, Debug)]
pub struct ClaimOnRecord {
    /// In which sale.
    pub sale_id: SaleId,
    /// To whom.
    pub user_id: UserId,
    /// The order that it became.
    pub order_id: OrderId,
    /// Units.
    pub quantity: u32,
    /// When it was granted.
    pub created_at: Timestamp,
    /// The order's state.
    pub state: OrderStatus,
}

/// A claim; another's is as absent as none. `owner` is `None` for staff.
pub fn claim_on_record(
    tx: &mut Tx<'_>,
    claim_id: &str,
    owner: Option<UserId>,
) -> Result<Option<ClaimOnRecord>, SaleError> {
    let claim = sql::claim(tx, claim_id)?;
    Ok(claim.filter(|claim| owner.is_none_or(|owner| owner == claim.user_id)))
}

/// Whether an accepted claim is on record with its order.
pub fn is_on_record(tx: &mut Tx<'_>, claim_id: &str, order_id: i64) -> Result<bool, StoreError> {
    sql::claim_has_order(tx, claim_id, order_id)
}
