//! Sales reports: what was sold on which days.
//!
//! An order counts on the day that it was made, with what it cost then, whether it came from a
//! flash sale, from an ordinary order or from an import of past orders. Sold is what is paid (`paid`,
//! `processed`, `fulfilled`). What waits for its payment and what is to be paid back are sums of their
//! own; orders that came to nothing (`cancelled`, `expired`) are among the orders by state alone.
//! Money of different currencies is never added up.
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

/// All that was sold in one currency, and what may yet become of the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// ISO 4217.
    pub currency: String,
    /// What is paid.
    #[serde(flatten)]
    pub figures: Figures,
    /// What waits for its payment: not sold yet.
    pub unpaid: Figures,
    /// What is to be paid back, because it was paid too late or cancelled: not sold.
    pub refund_due: Figures,
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
    Days::parse(
        start_date,
        end_date,
        rules.time_zone.clone(),
        rules.days_max,
    )
    .map_err(ReportError::Invalid)
}

/// Sums of one currency.
struct Sums {
    currency: String,
    days: Vec<Figures>,
    unpaid: Figures,
    refund_due: Figures,
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
    part: Part,
    is_too_large: bool,
}

/// In which sums an order is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Paid,
    Unpaid,
    RefundDue,
    /// In none: it came to nothing.
    Nothing,
}

impl Part {
    fn of(status: OrderStatus) -> Self {
        match status {
            OrderStatus::Paid | OrderStatus::Processed | OrderStatus::Fulfilled => Part::Paid,
            OrderStatus::PendingPayment => Part::Unpaid,
            OrderStatus::RefundDue => Part::RefundDue,
            OrderStatus::Cancelled | OrderStatus::Expired => Part::Nothing,
        }
    }
}

impl Sums {
    /// The sums that an order of this part is in, made on a day.
    fn figures(&mut self, part: Part, day: usize) -> Option<&mut Figures> {
        match part {
            Part::Paid => self.days.get_mut(day),
            Part::Unpaid => Some(&mut self.unpaid),
            Part::RefundDue => Some(&mut self.refund_due),
            Part::Nothing => None,
        }
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
                self.part = Part::of(status);
                let sums = &mut self.sums[self.currency];
                let (orders, total) = &mut sums.states[status as usize];
                *orders += 1;
                *total = total.saturating_add(amount);
                if let Some(figures) = sums.figures(self.part, self.day) {
                    figures.orders += 1;
                    figures.gross_amount = figures.gross_amount.saturating_add(amount);
                }
            }
            sql::Seen::Line {
                product,
                quantity,
                amount,
            } => {
                let sums = &mut self.sums[self.currency];
                if let Some(figures) = sums.figures(self.part, self.day) {
                    figures.units = figures.units.saturating_add(quantity);
                }
                if self.part == Part::Paid {
                    let (units, total) = sums.products.entry(product).or_default();
                    *units = units.saturating_add(quantity);
                    *total = total.saturating_add(amount);
                }
            }
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
            unpaid: Figures::default(),
            refund_due: Figures::default(),
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
        part: Part::Nothing,
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
        unpaid: sums.unpaid,
        refund_due: sums.refund_due,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::zone::Zone;
    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::auth::{self, NewAccount, Role};
    use crate::monitor::Metrics;
    use crate::product::{NewProduct, create};
    use crate::sql;
    use crate::store::Store;

    const CURRENCIES: [&str; 3] = ["CNY", "USD", "JPY"];
    const PRODUCTS: i64 = 14;

    #[derive(Clone, Debug)]
    struct Order {
        at: Timestamp,
        status: OrderStatus,
        currency: &'static str,
        is_imported: bool,
        lines: Vec<(i64, i64, i64)>,
    }

    impl Order {
        fn amount(&self) -> i64 {
            self.lines.iter().map(|(.., amount)| amount).sum()
        }
    }

    /// Orders of some days around the change of the clocks in Berlin, 2026-03-29.
    fn an_order() -> impl Strategy<Value = Order> {
        let start = Timestamp::parse_rfc3339("2026-03-25T00:00:00Z").expect("a time");
        (
            0..7 * 86_400i64,
            0..OrderStatus::WORDS.len(),
            0..CURRENCIES.len(),
            any::<bool>(),
            proptest::collection::vec((1..=PRODUCTS, 1..5i64, 0..1_000i64), 1..4),
        )
            .prop_map(
                move |(seconds, status, currency, is_imported, lines)| Order {
                    at: start.plus_seconds(seconds),
                    status: OrderStatus::from_word(OrderStatus::WORDS[status]).expect("a state"),
                    currency: CURRENCIES[currency],
                    is_imported,
                    lines,
                },
            )
    }

    fn open(dir: &std::path::Path) -> Store {
        let metrics = Metrics::new().expect("metrics");
        let database = config::Database::default();
        Store::open(&dir.join("onrush.db"), &database, metrics, |_| ()).expect("store")
    }

    fn fill(store: &Store, orders: Vec<Order>) {
        let cheap = config::Auth {
            argon2_memory_kib: 8,
            argon2_passes: 1,
            ..config::Auth::default()
        };
        let account = NewAccount::checked("a@b.co", "A", "long enough", &cheap).expect("valid");
        let now = Timestamp(1);
        let filled = store.write(move |tx| {
            let user = auth::create_account(tx, now, &account, Role::Customer).expect("user");
            for number in 1..=PRODUCTS {
                let new = NewProduct {
                    sku: Some(format!("P-{number}")),
                    name: format!("Product {number}"),
                    description: String::new(),
                    category: String::new(),
                    unit_amount: 1,
                    currency: "CNY".to_owned(),
                    stock: 0,
                    popularity: 0,
                };
                let id = create(tx, now, &new).expect("product");
                assert_eq!(id.0, number);
            }
            for order in &orders {
                let run = order.is_imported.then_some(7i64);
                let id: i64 = tx.insert(
                    sql!("orders", "INSERT INTO orders (user_id, status, total_amount, currency, created_at, updated_at, import_run) \
                     VALUES ($1, $2, $3, $4, $5, $5, $6)"),
                    &[
                        user.into(),
                        order.status.into(),
                        order.amount().into(),
                        order.currency.into(),
                        order.at.into(),
                        run.into(),
                    ],
                )?;
                for (line, (product, quantity, amount)) in (1i64..).zip(&order.lines) {
                    tx.execute(
                        sql!("order_items", "INSERT INTO order_items (order_id, line, product_id, quantity, unit_amount, amount) \
                         VALUES ($1, $2, $3, $4, $5, $5)"),
                        &[
                            id.into(),
                            line.into(),
                            (*product).into(),
                            (*quantity).into(),
                            (*amount).into(),
                        ],
                    )?;
                }
            }
            Ok::<_, StoreError>(())
        }).blocking();
        filled.expect("filled");
    }

    fn make_all(
        store: &Store,
        rules: &config::Reports,
        days: &Days,
    ) -> Result<Report, ReportError> {
        store.read_blocking(|tx| make(tx, Timestamp(5), rules, days, |_| Ok(())))
    }

    /// What `top` must find: everything sorted.
    fn best(
        sold: &BTreeMap<i64, (i64, i64)>,
        value: impl Fn((i64, i64)) -> (i64, i64),
    ) -> Vec<(i64, i64, i64)> {
        let mut all: Vec<(i64, i64, i64)> = sold
            .iter()
            .map(|(id, (units, amount))| (*id, *units, *amount))
            .collect();
        all.sort_by_key(|(id, units, amount)| (std::cmp::Reverse(value((*units, *amount))), *id));
        all.truncate(TOP);
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Every figure is what one gets by going through the orders one by one.
        #[test]
        fn a_report_says_what_going_through_the_orders_says(
            orders in proptest::collection::vec(an_order(), 0..120),
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "Asia/Shanghai", "America/Havana"]),
            first in 26..30u32,
            more in 0..4u32,
        ) {
            let dir = tempfile::tempdir().expect("temporary directory");
            let store = open(dir.path());
            fill(&store, orders.clone());
            let zone = Zone::named(zone).expect(zone);
            let rules = config::Reports { time_zone: zone.clone(), ..config::Reports::default() };
            let dates = (format!("2026-03-{first}"), format!("2026-03-{}", (first + more).min(31)));
            let days = days_of(&rules, &dates.0, &dates.1).expect("days");
            let report = make_all(&store, &rules, &days).expect("a report");
            store.close();

            let mut by_day: BTreeMap<(String, String), Figures> = BTreeMap::new();
            let mut totals: BTreeMap<String, [Figures; 3]> = BTreeMap::new();
            let mut states: BTreeMap<(String, &str), (i64, i64)> = BTreeMap::new();
            let mut sold: BTreeMap<String, BTreeMap<i64, (i64, i64)>> = BTreeMap::new();
            for order in &orders {
                let shown = DateTime::from_timestamp_micros(order.at.0).expect("a moment");
                let date = shown.with_timezone(&zone).date_naive().to_string();
                if date < dates.0 || date > dates.1 {
                    continue;
                }
                let currency = order.currency.to_owned();
                let state = states.entry((currency.clone(), order.status.word())).or_default();
                *state = (state.0 + 1, state.1 + order.amount());
                let [paid, unpaid, refund_due] = totals.entry(currency.clone()).or_default();
                let add = |figures: &mut Figures| {
                    figures.orders += 1;
                    figures.units += order.lines.iter().map(|(_, units, _)| units).sum::<i64>();
                    figures.gross_amount += order.amount();
                };
                match order.status.word() {
                    "paid" | "processed" | "fulfilled" => add(paid),
                    "pending_payment" => add(unpaid),
                    "refund_due" => add(refund_due),
                    _ => {}
                }
                if !["paid", "processed", "fulfilled"].contains(&order.status.word()) {
                    continue;
                }
                add(by_day.entry((currency.clone(), date)).or_default());
                for (product, units, amount) in &order.lines {
                    let sum = sold.entry(currency.clone()).or_default().entry(*product).or_default();
                    *sum = (sum.0 + units, sum.1 + amount);
                }
            }
            let found: BTreeMap<String, [Figures; 3]> = report
                .totals
                .iter()
                .map(|total| (total.currency.clone(), [total.figures, total.unpaid, total.refund_due]))
                .collect();
            prop_assert_eq!(&found, &totals);
            prop_assert_eq!(report.days.len(), days.len() * totals.len());
            let found: BTreeMap<(String, String), Figures> = report
                .days
                .iter()
                .filter(|day| day.figures != Figures::default())
                .map(|day| ((day.currency.clone(), day.date.clone()), day.figures))
                .collect();
            prop_assert_eq!(found, by_day);
            let found: BTreeMap<(String, &str), (i64, i64)> = report
                .states
                .iter()
                .map(|row| ((row.currency.clone(), row.state.word()), (row.orders, row.amount)))
                .collect();
            prop_assert_eq!(found, states);
            for (currency, sold) in &sold {
                let listed = |list: &[TopProduct]| -> Vec<(i64, i64, i64)> {
                    list.iter()
                        .filter(|product| product.currency == *currency)
                        .map(|product| (product.product_id, product.units, product.gross_amount))
                        .collect()
                };
                prop_assert_eq!(listed(&report.top_by_units), best(sold, |(units, amount)| (units, amount)));
                prop_assert_eq!(listed(&report.top_by_amount), best(sold, |(units, amount)| (amount, units)));
            }
            for product in report.top_by_units.iter().chain(&report.top_by_amount) {
                prop_assert_eq!(&product.name, &format!("Product {}", product.product_id));
                prop_assert_eq!(product.sku.clone(), Some(format!("P-{}", product.product_id)));
            }
        }
    }

    #[test]
    fn a_report_is_bounded_ends_when_told_to_and_is_kept_for_its_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = open(dir.path());
        let at = Timestamp::parse_rfc3339("2026-03-28T12:00:00Z").expect("a time");
        let order = |currency| Order {
            at,
            status: OrderStatus::Paid,
            currency,
            is_imported: false,
            lines: vec![(1, 1, 10); 2_100],
        };
        fill(&store, vec![order("CNY"), order("USD"), order("JPY")]);
        let rules = config::Reports {
            rows_max: 62,
            ..config::Reports::default()
        };
        let days = days_of(&rules, "2026-03-01", "2026-03-31").expect("days");
        let refused = make_all(&store, &rules, &days);
        assert!(matches!(refused, Err(ReportError::TooLarge(62))));
        let rules = config::Reports::default();
        let mut told = Vec::new();
        let ended = store.read_blocking(|tx| {
            make(tx, Timestamp(5), &rules, &days, |percent| {
                told.push(percent);
                Err(StoreError::Stopped)
            })
        });
        assert!(matches!(
            ended,
            Err(ReportError::Store(StoreError::Stopped))
        ));
        assert_eq!(told, [27 * 100 / 31], "it ends at the first look");
        let report = make_all(&store, &rules, &days).expect("a report");
        assert_eq!(report.totals.len(), 3);

        let (now, kept_days, made) = (Timestamp(7_000_000), days.clone(), report.clone());
        let until = store
            .write(move |tx| keep(tx, now, &config::Reports::default(), &kept_days, &made))
            .blocking()
            .expect("kept");
        assert_eq!(until, now.plus_seconds(3_600));
        let read = |now, days: &Days| store.read_blocking(|tx| kept(tx, now, days));
        assert_eq!(read(until.plus_seconds(-1), &days).expect("kept"), report);
        assert!(matches!(read(until, &days), Err(ReportError::NotReady)));
        let elsewhere = config::Reports {
            time_zone: Zone::named("Asia/Shanghai").expect("a zone"),
            ..config::Reports::default()
        };
        let other = days_of(&elsewhere, "2026-03-01", "2026-03-31").expect("days");
        assert!(
            matches!(read(now, &other), Err(ReportError::NotReady)),
            "the same dates in another zone are other days"
        );
        let dropped = |now| {
            store
                .write(move |tx| purge(tx, now))
                .blocking()
                .expect("purged")
        };
        assert_eq!((dropped(now), dropped(until), dropped(until)), (0, 1, 0));
    }

    #[test]
    fn the_range_is_read_from_an_index_and_nothing_is_sorted() {
        let dir = tempfile::tempdir().expect("temporary directory");
        drop(open(dir.path()));
        let conn = rusqlite::Connection::open(dir.path().join("onrush.db")).expect("opens");
        let mut statement = conn
            .prepare(&format!("EXPLAIN QUERY PLAN {}", sql::EACH_ORDER))
            .expect("a statement");
        let plan: Vec<String> = statement
            .query_map([0, 1], |row| row.get(3))
            .expect("a plan")
            .collect::<Result<_, _>>()
            .expect("rows");
        assert!(plan[0].contains("USING INDEX orders_created"), "{plan:?}");
        assert!(!plan.join(" ").contains("B-TREE"), "{plan:?}");
    }
}
