//! Sales reports: what was sold on which days.
//!
//! An order counts on the day that it was made, with what it cost then, whether it came from a
//! flash sale, from an ordinary order or from an import of past orders. Orders that came to nothing
//! (`cancelled`, `expired`, `refund_due`) are not in the sums; the orders by state show them. Money
//! of different currencies is never added up.
//!
//! Invariants: a report is made from one consistent moment and in one pass, holding the sums and
//! one entry for each product sold, never the orders; days and rows are bounded.

pub mod api;
mod days;
mod sheet;
mod sql;
pub mod tasks;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::config;
use crate::order::OrderStatus;
use crate::product::ProductId;
use crate::store::{StoreError, Tx};

pub use days::Days;
pub use sheet::csv_of;

/// How many products each of the two lists names.
const TOP: usize = 10;
/// Rows between two looks at whether the report is still wanted.
const ROWS_PER_LOOK: u32 = 4_096;

/// Orders, units and money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Orders.
    pub orders: i64,
    /// Units in them.
    pub units: i64,
    /// What they cost together, in minor units.
    pub gross_amount: i64,
}

/// All that was sold in one currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// ISO 4217.
    pub currency: String,
    /// The sums.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What was sold in one currency on one day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayTotal {
    /// The day.
    pub date: String,
    /// ISO 4217.
    pub currency: String,
    /// The sums.
    #[serde(flatten)]
    pub figures: Figures,
}

/// A product among those that sold best in one currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopProduct {
    /// From 1.
    pub rank: u32,
    /// ISO 4217.
    pub currency: String,
    /// Key.
    pub product_id: i64,
    /// The shop's own article number.
    pub sku: Option<String>,
    /// Name.
    pub name: String,
    /// Units sold.
    pub units: i64,
    /// What they cost together, in minor units.
    pub gross_amount: i64,
}

/// Orders of one currency in one state, those that came to nothing included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateTotal {
    /// The state.
    pub state: OrderStatus,
    /// ISO 4217.
    pub currency: String,
    /// Orders in it.
    pub orders: i64,
    /// What they cost together, in minor units.
    pub amount: i64,
}

/// A sales report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// First day.
    pub start_date: String,
    /// Last day.
    pub end_date: String,
    /// Whose midnights the days begin at.
    pub time_zone: String,
    /// Of which moment it is.
    pub made_at: Timestamp,
    /// By currency.
    pub totals: Vec<Total>,
    /// Every day of the range, for each currency.
    pub days: Vec<DayTotal>,
    /// Best first, for each currency.
    pub top_by_units: Vec<TopProduct>,
    /// Best first, for each currency.
    pub top_by_amount: Vec<TopProduct>,
    /// By currency and state.
    pub states: Vec<StateTotal>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The days are none.
    #[error("the days are not valid")]
    Invalid(Vec<FieldError>),
    /// Days and currencies make too many rows.
    #[error("the report would have more than {0} rows; ask for fewer days")]
    TooLarge(usize),
    /// None has been made for these days, or it is too old by now.
    #[error(
        "there is no report for these days; POST /api/v1/reports/sales makes one, which takes a moment"
    )]
    NotReady,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Under which name a report is kept.
pub fn key_of(days: &Days) -> String {
    format!("sales_report:{}:{}", days.first_date(), days.last_date())
}

/// The days that were asked for, in the shop's time zone.
pub fn days_of(
    rules: &config::Reports,
    start_date: &str,
    end_date: &str,
) -> Result<Days, ReportError> {
    Days::parse(start_date, end_date, rules.time_zone, rules.days_max).map_err(ReportError::Invalid)
}

/// Sums of one currency.
struct Sums {
    currency: String,
    days: Vec<Figures>,
    states: [(i64, i64); OrderStatus::WORDS.len()],
    products: HashMap<ProductId, (i64, i64)>,
}

/// What becomes of a report while the orders go by.
struct Tally<'a> {
    days: &'a Days,
    rows_max: usize,
    sums: Vec<Sums>,
    /// Place of the order in hand's currency, and of its day.
    currency: usize,
    day: usize,
    counts: bool,
    is_too_large: bool,
}

/// Whether an order of this state is in the sums.
fn counts(status: OrderStatus) -> bool {
    match status {
        OrderStatus::PendingPayment
        | OrderStatus::Paid
        | OrderStatus::Processed
        | OrderStatus::Fulfilled => true,
        OrderStatus::Cancelled | OrderStatus::Expired | OrderStatus::RefundDue => false,
    }
}

impl Tally<'_> {
    fn add(&mut self, seen: sql::Seen) -> Result<(), StoreError> {
        match seen {
            sql::Seen::Order {
                status,
                currency,
                amount,
                at,
            } => {
                self.turn_to(currency)?;
                self.day = self.days.place(self.day, at);
                self.counts = counts(status);
                let sums = &mut self.sums[self.currency];
                let (orders, total) = &mut sums.states[status as usize];
                *orders += 1;
                *total = total.saturating_add(amount);
                if self.counts {
                    let day = &mut sums.days[self.day];
                    day.orders += 1;
                    day.gross_amount = day.gross_amount.saturating_add(amount);
                }
            }
            sql::Seen::Line {
                product,
                quantity,
                amount,
            } if self.counts => {
                let sums = &mut self.sums[self.currency];
                let day = &mut sums.days[self.day];
                day.units = day.units.saturating_add(quantity);
                let (units, total) = sums.products.entry(product).or_default();
                *units = units.saturating_add(quantity);
                *total = total.saturating_add(amount);
            }
            sql::Seen::Line { .. } => {}
        }
        Ok(())
    }

    /// Finds the sums of a currency: as a rule those of the order before.
    fn turn_to(&mut self, currency: String) -> Result<(), StoreError> {
        if self
            .sums
            .get(self.currency)
            .is_some_and(|sums| sums.currency == currency)
        {
            return Ok(());
        }
        if let Some(known) = self.sums.iter().position(|sums| sums.currency == currency) {
            self.currency = known;
            return Ok(());
        }
        if (self.sums.len() + 1) * self.days.len() > self.rows_max {
            self.is_too_large = true;
            return Err(StoreError::Stopped); // the walk ends here; the caller looks why
        }
        self.currency = self.sums.len();
        self.sums.push(Sums {
            currency,
            days: vec![Figures::default(); self.days.len()],
            states: Default::default(),
            products: HashMap::new(),
        });
        Ok(())
    }
}

/// Makes the report of some days. `watch` hears now and then how much is done, in percent, and may
/// end it.
pub fn make(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Reports,
    days: &Days,
    mut watch: impl FnMut(u32) -> Result<(), StoreError>,
) -> Result<Report, ReportError> {
    let mut tally = Tally {
        days,
        rows_max: rules.rows_max,
        sums: Vec::new(),
        currency: 0,
        day: 0,
        counts: false,
        is_too_large: false,
    };
    let mut rows = 0u32;
    let walked = sql::each_order(tx, days.from(), days.until(), |seen| {
        rows = rows.wrapping_add(1);
        if rows.is_multiple_of(ROWS_PER_LOOK) {
            let percent = tally.day * 100 / days.len();
            watch(u32::try_from(percent).unwrap_or(100))?;
        }
        tally.add(seen)
    });
    if tally.is_too_large {
        return Err(ReportError::TooLarge(rules.rows_max));
    }
    walked?;
    let mut sums = tally.sums;
    sums.sort_unstable_by(|a, b| a.currency.cmp(&b.currency));
    let mut report = Report {
        start_date: days.first_date(),
        end_date: days.last_date(),
        time_zone: days.zone().name().to_owned(),
        made_at: now,
        totals: Vec::with_capacity(sums.len()),
        days: Vec::with_capacity(sums.len() * days.len()),
        top_by_units: Vec::new(),
        top_by_amount: Vec::new(),
        states: Vec::new(),
    };
    for sums in sums {
        put(tx, days, sums, &mut report)?;
    }
    Ok(report)
}

/// Writes one currency's sums into the report.
fn put(tx: &mut Tx<'_>, days: &Days, sums: Sums, report: &mut Report) -> Result<(), ReportError> {
    let currency = || sums.currency.clone();
    let mut total = Figures::default();
    for (place, day) in sums.days.iter().enumerate() {
        total.orders += day.orders;
        total.units = total.units.saturating_add(day.units);
        total.gross_amount = total.gross_amount.saturating_add(day.gross_amount);
        report.days.push(DayTotal {
            date: days.date(place),
            currency: currency(),
            figures: *day,
        });
    }
    report.totals.push(Total {
        currency: currency(),
        figures: total,
    });
    for word in OrderStatus::WORDS {
        let Some(state) = OrderStatus::from_word(word) else {
            continue;
        };
        let (orders, amount) = sums.states[state as usize];
        if orders > 0 {
            report.states.push(StateTotal {
                state,
                currency: currency(),
                orders,
                amount,
            });
        }
    }
    let by_units = top(&sums.products, |(units, amount)| (units, amount));
    let by_amount = top(&sums.products, |(units, amount)| (amount, units));
    for (found, list) in [
        (by_units, &mut report.top_by_units),
        (by_amount, &mut report.top_by_amount),
    ] {
        for (rank, (id, (units, gross_amount))) in (1..).zip(found) {
            let (sku, name) = sql::product_label(tx, id)?.unwrap_or_default();
            list.push(TopProduct {
                rank,
                currency: currency(),
                product_id: id.0,
                sku,
                name,
                units,
                gross_amount,
            });
        }
    }
    Ok(())
}

/// The products with the highest `value`, best first; of equal ones the older product.
fn top(
    products: &HashMap<ProductId, (i64, i64)>,
    value: impl Fn((i64, i64)) -> (i64, i64),
) -> Vec<(ProductId, (i64, i64))> {
    let mut best: Vec<(ProductId, (i64, i64))> = Vec::with_capacity(TOP + 1);
    let place = |(id, sold): (ProductId, (i64, i64))| (std::cmp::Reverse(value(sold)), id);
    for (id, sold) in products {
        let found = (*id, *sold);
        if best.len() == TOP && best.last().is_some_and(|last| place(*last) < place(found)) {
            continue;
        }
        let at = best.partition_point(|better| place(*better) < place(found));
        best.insert(at, found);
        best.truncate(TOP);
    }
    best
}

/// Keeps a report for as long as the settings say, and drops old ones.
pub fn keep(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rules: &config::Reports,
    days: &Days,
    report: &Report,
) -> Result<Timestamp, ReportError> {
    let seconds = i64::try_from(rules.cache_seconds).unwrap_or(i64::MAX);
    let expires_at = now.plus_seconds(seconds);
    let body = serde_json::to_string(report).map_err(|error| StoreError::Bug(error.to_string()))?;
    sql::purge(tx, now)?;
    let (key, zone) = (key_of(days), days.zone().name());
    sql::keep(tx, &key, zone, &body, report.made_at, expires_at)?;
    Ok(expires_at)
}

/// The kept report of some days.
pub fn kept(tx: &mut Tx<'_>, now: Timestamp, days: &Days) -> Result<Report, ReportError> {
    let body = sql::kept(tx, now, &key_of(days), days.zone().name())?;
    let body = body.ok_or(ReportError::NotReady)?;
    Ok(serde_json::from_str(&body).map_err(|error| StoreError::Bug(error.to_string()))?)
}

/// Until when the kept report of some days may be shown; `None` where there is none.
pub fn kept_until(
    tx: &mut Tx<'_>,
    now: Timestamp,
    days: &Days,
) -> Result<Option<Timestamp>, StoreError> {
    sql::kept_until(tx, now, &key_of(days), days.zone().name())
}

/// Drops kept reports past their time, a bounded number at once; answers how many.
pub fn purge(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    sql::purge(tx, now)
}
