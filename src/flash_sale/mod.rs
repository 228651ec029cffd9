//! Flash sales: a number of units, a window of time, more buyers than units.
//!
//! Invariants: granting is one transaction — the conditional update on the sale, the order, the
//! ledger row, the claim and the kept answer commit together or not at all; the update's WHERE and
//! the schema's CHECKs make overselling impossible whatever the gate says; a buyer who comes in time
//! and within the limits gets a unit while one is left.

pub mod api;
pub mod events;
pub mod gate;
#[cfg(test)]
mod model;
pub mod ready;
pub mod rehearsal;
pub mod service;
#[cfg(test)]
mod sets;
mod sql;
pub mod tasks;

use std::collections::HashMap;

use crate::allotment::{self, NewSale, Sale, SaleId, SaleStatus};
use crate::auth::UserId;
use crate::check::{Checks, FieldError};
use crate::clock::{self, Timestamp};
use crate::config;
use crate::order::{
    self, FollowUps, NewOrder, OrderError, OrderId, OrderItem, OrderStatus, Stored,
    idempotency::{IdempotencyKey, KeyAsked, KeyError},
};
use crate::product::stock::{self, Movement, Reason, StockError};
use crate::product::{ProductId, UNIT_AMOUNT_MAX};
use crate::store::{StoreError, Tx};
use crate::webhook::Events;

/// Longest sale: one year.
const WINDOW_SECONDS_MAX: i64 = 366 * 86_400;
/// Longest payment window: 30 days.
const PAYMENT_SECONDS_MAX: i64 = 30 * 86_400;

/// Where claims are to be had, by their ids.
const CLAIMS: &str = "/api/v1/claims/";

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
    let sale = allotment::insert(tx, now, new, &taken.currency)?.ok_or(SaleError::Overlap)?;
    let movement = Movement {
        product_id: new.product_id,
        sale_id: Some(sale.id),
        order_id: None,
        reason: Reason::Allot,
        quantity: new.quantity,
    };
    stock::append(tx, now, &movement)?;
    stock::sale_opens(tx, new.product_id, new.quantity)?;
    events.emit(tx, now, &events::CREATED, || described(&sale, now))?;
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
    allotment::get(tx, id)?.ok_or(SaleError::NotFound(id))
}

/// Sales with ids below `before`, newest first.
pub fn list(tx: &mut Tx<'_>, before: i64, limit: i64) -> Result<Vec<Sale>, SaleError> {
    Ok(allotment::list(tx, before, limit)?)
}

/// A claim that was granted.
#[derive(serde::Serialize)]
struct Claimed<'a> {
    /// UUIDv7.
    claim_id: &'a str,
    /// The order that it became.
    order_id: OrderId,
    /// The order's state: `paid`, or `pending_payment` until `expires_at`.
    state: OrderStatus,
    /// Units left in the sale right after.
    remaining: i64,
    /// Until when it must be paid.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
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
    /// The sale that units are claimed in.
    pub sale_id: SaleId,
    /// The buyer's account.
    pub user_id: UserId,
    /// Units, at least 1.
    pub quantity: u32,
    /// The key that its answer is kept under, if one was sent.
    pub key: Option<IdempotencyKey>,
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
    key: &IdempotencyKey,
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
        && let Some(stored) = key.begin(tx, now, request.user_id)?
    {
        return Ok(Claim::Replayed(stored));
    }
    let quantity = request.quantity;
    let sale_id = request.sale_id;
    let Some(sale) = allotment::take(tx, sale_id, quantity, now)? else {
        return Err(why_not(allotment::get(tx, sale_id)?.as_ref(), sale_id, now));
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
        sale_id: Some(sale_id),
        expires_at,
    };
    let reason = if status == OrderStatus::Paid {
        Reason::ClaimSell
    } else {
        Reason::ClaimHold
    };
    let order = order::insert(tx, now, &request.follow_ups, &new, vec![item], reason)?;
    fail::fail_point!("claim.order_written");
    let claim_id = clock::uuid_at(now).to_string();
    if !sql::insert_claim(tx, now, &claim_id, request, sale.per_user_limit, order.id)? {
        return Err(SaleError::LimitReached(sale.per_user_limit));
    }
    fail::fail_point!("claim.claim_written");
    if sale.remaining == 0 {
        request
            .follow_ups
            .sale_sold_out(tx, now, sale_id, sale.product_id)?;
    }
    let grant = Grant {
        at: 0,
        remaining: sale.remaining,
        status,
        expires_at,
        amount,
    };
    let answer = grant.answer(order.id, &claim_id, request.key.as_ref())?;
    if let Some(key) = &request.key {
        IdempotencyKey::keep_all(tx, &[(request.user_id, key, &answer)])?;
        fail::fail_point!("claim.key_kept");
    }
    Ok(Claim::Granted(answer))
}

/// Grants claims of one sale that wait together, each decided as if they had come one after the other, with a
/// number of statements that does not grow with theirs. `Err` undoes all of it.
pub fn claim_many(
    tx: &mut Tx<'_>,
    sale_id: SaleId,
    asked: &[(Timestamp, &ClaimRequest)],
) -> Result<Vec<Result<Claim, SaleError>>, SaleError> {
    if let [(now, request)] = asked {
        return claim(tx, *now, request).map(|claim| vec![Ok(claim)]);
    }
    let mut keys = Keys::begin(tx, asked)?;
    let sale = allotment::lock(tx, sale_id)?;
    let mut buyers: Vec<UserId> = asked.iter().map(|(_, request)| request.user_id).collect();
    buyers.sort_unstable();
    buyers.dedup();
    let units = sql::units_of(tx, sale_id, &buyers)?;
    let mut set = Set {
        sale,
        units: buyers.into_iter().zip(units).collect(),
        granted: Vec::new(),
    };
    let mut decisions = Vec::with_capacity(asked.len());
    for (at, (now, request)) in asked.iter().enumerate() {
        let key = request.key.as_ref();
        decisions.push(match key.and_then(|key| keys.known(request.user_id, key)) {
            Some(Known::Answer(stored)) => Decision::Before(stored.clone()),
            Some(Known::Granted(grant)) => Decision::Again(*grant),
            None => match set.grant(at, *now, request) {
                Ok(grant) => {
                    if let Some(key) = key {
                        keys.granted(request.user_id, key, grant);
                    }
                    Decision::Granted(grant)
                }
                Err(why) => Decision::Refused(why),
            },
        });
    }
    fail::fail_point!("claim.decided");
    let answers = set.write(tx, sale_id, asked)?;
    keys.end(tx, asked, &set.granted, &answers)?;
    fail::fail_point!("claim.key_kept");
    let told = |(decision, (_, request)): (Decision, &(Timestamp, &ClaimRequest))| {
        let fitting = |stored: Stored| match &request.key {
            Some(key) => Ok(Claim::Replayed(key.fitting(stored)?)),
            None => Ok(Claim::Replayed(stored)),
        };
        match decision {
            Decision::Granted(grant) => Ok(Claim::Granted(answers[grant].clone())),
            Decision::Again(grant) => fitting(answers[grant].clone()),
            Decision::Before(stored) => fitting(stored),
            Decision::Refused(why) => Err(why),
        }
    };
    Ok(decisions.into_iter().zip(asked).map(told).collect())
}

/// What one of many claims came to; a number is that of a grant.
enum Decision {
    Granted(usize),
    /// The key has been granted a claim earlier in this set.
    Again(usize),
    /// The key was answered before this set.
    Before(Stored),
    Refused(SaleError),
}

/// What is known of a key.
enum Known {
    Answer(Stored),
    /// The number of the grant in this set.
    Granted(usize),
}

/// The keys of a set of claims, all of which this transaction has taken or found answered.
struct Keys<'a>(HashMap<(UserId, &'a str), (KeyAsked<'a>, Option<Known>)>);

impl<'a> Keys<'a> {
    /// In one order for all sets, so that two that share keys wait for each other and not in a circle.
    fn begin(tx: &mut Tx<'_>, asked: &[(Timestamp, &'a ClaimRequest)]) -> Result<Self, StoreError> {
        let with_key = |(now, request): &(Timestamp, &'a ClaimRequest)| request.asked_key(*now);
        let mut keys: Vec<KeyAsked<'a>> = asked.iter().filter_map(with_key).collect();
        // Of two alike the earlier stays.
        keys.sort_by_key(|asked| (asked.caller, asked.key.text()));
        keys.dedup_by_key(|asked| (asked.caller, asked.key.text()));
        let stored = IdempotencyKey::begin_all(tx, &keys)?;
        let known = keys.into_iter().zip(stored).map(|(asked, stored)| {
            let name = (asked.caller, asked.key.text());
            (name, (asked, stored.map(Known::Answer)))
        });
        Ok(Self(known.collect()))
    }

    fn known(&self, user: UserId, key: &'a IdempotencyKey) -> Option<&Known> {
        self.0.get(&(user, key.text()))?.1.as_ref()
    }

    fn granted(&mut self, user: UserId, key: &'a IdempotencyKey, grant: usize) {
        if let Some((_, known)) = self.0.get_mut(&(user, key.text())) {
            *known = Some(Known::Granted(grant));
        }
    }

    /// Keeps what was answered, and gives up the keys of those that were refused.
    fn end(
        self,
        tx: &mut Tx<'_>,
        asked: &[(Timestamp, &'a ClaimRequest)],
        granted: &[Grant],
        answers: &[Stored],
    ) -> Result<(), StoreError> {
        let (mut kept, mut given_up, mut taken_later) = (Vec::new(), Vec::new(), Vec::new());
        for ((user, _), (begun, known)) in self.0 {
            match known {
                None => given_up.push((user, begun.key)),
                Some(Known::Answer(_)) => {}
                Some(Known::Granted(grant)) => {
                    let (now, request) = asked[granted[grant].at];
                    kept.push((user, begun.key, &answers[grant]));
                    // The first that came with the key was refused: its age counts from this one.
                    if now != begun.now {
                        given_up.push((user, begun.key));
                        taken_later.extend(request.asked_key(now));
                    }
                }
            }
        }
        IdempotencyKey::give_up_all(tx, &given_up)?;
        IdempotencyKey::begin_all(tx, &taken_later)?;
        IdempotencyKey::keep_all(tx, &kept)
    }
}

impl ClaimRequest {
    fn asked_key(&self, now: Timestamp) -> Option<KeyAsked<'_>> {
        Some(KeyAsked {
            now,
            caller: self.user_id,
            key: self.key.as_ref()?,
        })
    }
}

/// Claims of one sale that are decided together.
struct Set {
    /// As it will be after those that were granted.
    sale: Option<Sale>,
    /// Units of each buyer, those included.
    units: HashMap<UserId, i64>,
    granted: Vec<Grant>,
}

/// One that was granted.
struct Grant {
    /// Its place among all that were asked for.
    at: usize,
    /// Units left in the sale right after.
    remaining: i64,
    status: OrderStatus,
    expires_at: Option<Timestamp>,
    amount: i64,
}

impl Set {
    /// Grants what the claim at this place asks for, or says why not; answers the grant's number.
    fn grant(
        &mut self,
        at: usize,
        now: Timestamp,
        request: &ClaimRequest,
    ) -> Result<usize, SaleError> {
        let quantity = i64::from(request.quantity);
        let sale = match &mut self.sale {
            Some(sale) if sale.grants(now) && sale.remaining >= quantity => sale,
            sale => return Err(why_not(sale.as_ref(), request.sale_id, now)),
        };
        let units = self.units.entry(request.user_id).or_default();
        if *units + quantity > sale.per_user_limit {
            return Err(SaleError::LimitReached(sale.per_user_limit));
        }
        *units += quantity;
        sale.remaining -= quantity;
        let amount = sale.unit_amount.saturating_mul(quantity);
        let (status, expires_at) = order::payment_terms(now, sale.payment_window_seconds, amount);
        self.granted.push(Grant {
            at,
            remaining: sale.remaining,
            status,
            expires_at,
            amount,
        });
        Ok(self.granted.len() - 1)
    }

    /// Writes what was granted; answers what each of those buyers is told.
    fn write(
        &self,
        tx: &mut Tx<'_>,
        sale_id: SaleId,
        asked: &[(Timestamp, &ClaimRequest)],
    ) -> Result<Vec<Stored>, SaleError> {
        let (Some(sale), [first, ..]) = (&self.sale, self.granted.as_slice()) else {
            return Ok(Vec::new());
        };
        let times = self.granted.iter().map(|grant| asked[grant.at].0);
        let window = times.fold((asked[first.at].0, asked[first.at].0), |(a, b), at| {
            (a.min(at), b.max(at))
        });
        let units = |grant: &Grant| i64::from(asked[grant.at].1.quantity);
        let all: i64 = self.granted.iter().map(units).sum();
        if !allotment::take_all(tx, sale_id, all, window)? {
            // It was locked: no other transaction can have changed it.
            return Err(StoreError::Bug(format!("sale {sale_id} changed under its lock")).into());
        }
        fail::fail_point!("claim.units_taken");
        let order = |grant: &Grant| {
            let (now, request) = asked[grant.at];
            let item = OrderItem {
                product_id: sale.product_id,
                quantity: request.quantity,
                unit_amount: sale.unit_amount,
                amount: grant.amount,
            };
            let order = NewOrder {
                user_id: request.user_id,
                status: grant.status,
                total_amount: grant.amount,
                currency: sale.currency.clone(),
                sale_id: Some(sale_id),
                expires_at: grant.expires_at,
            };
            (now, order, item)
        };
        let new = self.granted.iter().map(order).collect();
        let reason = match first.status {
            OrderStatus::Paid => Reason::ClaimSell,
            _ => Reason::ClaimHold,
        };
        let (_, now) = window;
        let follow_ups = &asked[first.at].1.follow_ups;
        let orders = order::insert_all(tx, now, follow_ups, sale.product_id, new, reason)?;
        fail::fail_point!("claim.order_written");
        let row = |(grant, order): (&Grant, &OrderId)| {
            let (at, request) = asked[grant.at];
            GrantedRow {
                claim_id: clock::uuid_at(at).to_string(),
                user_id: request.user_id,
                order_id: *order,
                quantity: request.quantity,
                at,
            }
        };
        let rows: Vec<GrantedRow> = self.granted.iter().zip(&orders).map(row).collect();
        sql::insert_claims(tx, sale_id, &rows)?;
        fail::fail_point!("claim.claim_written");
        if sale.remaining == 0 {
            follow_ups.sale_sold_out(tx, now, sale_id, sale.product_id)?;
        }
        let answer = |(grant, row): (&Grant, &GrantedRow)| {
            let key = asked[grant.at].1.key.as_ref();
            grant.answer(row.order_id, &row.claim_id, key)
        };
        let answers = self.granted.iter().zip(&rows).map(answer);
        Ok(answers.collect::<Result<_, _>>()?)
    }
}

/// The row of a claim that was granted.
struct GrantedRow {
    claim_id: String,
    user_id: UserId,
    order_id: OrderId,
    quantity: u32,
    at: Timestamp,
}

impl Grant {
    /// What its buyer is told.
    fn answer(
        &self,
        order_id: OrderId,
        claim_id: &str,
        key: Option<&IdempotencyKey>,
    ) -> Result<Stored, StoreError> {
        let claimed = Claimed {
            claim_id,
            order_id,
            state: self.status,
            remaining: self.remaining,
            expires_at: self.expires_at,
        };
        let body =
            serde_json::to_string(&claimed).map_err(|error| StoreError::Bug(error.to_string()))?;
        let location = format!("{CLAIMS}{claim_id}");
        Ok(match key {
            Some(key) => key.answer(location, body),
            None => Stored {
                fingerprint: String::new(),
                location,
                body,
            },
        })
    }
}

/// Why a sale grants no claim, as it is.
fn why_not(sale: Option<&Sale>, id: SaleId, now: Timestamp) -> SaleError {
    match sale {
        None => SaleError::NotFound(id),
        Some(sale) if sale.status != SaleStatus::Open || now >= sale.ends_at => SaleError::Ended,
        Some(sale) if now < sale.starts_at => SaleError::NotStarted,
        Some(sale) => SaleError::SoldOut(sale.remaining),
    }
}

/// Closes a sale; what is left goes back to the free stock. `None` when it was closed already.
pub fn close(
    tx: &mut Tx<'_>,
    now: Timestamp,
    events: &Events,
    id: SaleId,
    status: SaleStatus,
) -> Result<Option<Sale>, SaleError> {
    let Some((sale, left)) = allotment::close(tx, now, id, status)? else {
        get(tx, id)?;
        return Ok(None);
    };
    fail::fail_point!("sale.closed");
    stock::sale_ends(tx, sale.product_id, sale.quantity)?;
    if let Ok(quantity @ 1..) = u32::try_from(left) {
        stock::give_back(tx, sale.product_id, quantity)?;
        let movement = Movement {
            product_id: sale.product_id,
            sale_id: Some(id),
            order_id: None,
            reason: Reason::Unallot,
            quantity,
        };
        stock::append(tx, now, &movement)?;
    }
    events.emit(tx, now, &events::ENDED, || described(&sale, now))?;
    Ok(Some(sale))
}

/// Whether a buyer has no more units of a sale than one may have, counted by claims of live orders.
pub fn is_within_limit(tx: &mut Tx<'_>, id: SaleId, buyer: UserId) -> Result<bool, StoreError> {
    sql::is_within_limit(tx, id, buyer)
}

/// Units in live orders of a sale, counted from the orders: what a report card compares with.
pub fn units_ordered(tx: &mut Tx<'_>, id: SaleId) -> Result<i64, StoreError> {
    sql::units_ordered(tx, id)
}

/// A claim that was granted, as it stands now.
#[derive(Clone, Debug)]
pub struct ClaimOnRecord {
    /// The sale.
    pub sale_id: SaleId,
    /// The buyer's account.
    pub user_id: UserId,
    /// The order that it became.
    pub order_id: OrderId,
    /// Units that it granted.
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
