//! Import of past orders from a file, for a shop that moves in: streams, names bad rows, doubles nothing.
//!
//! Invariants: an order is taken whole or not at all; its rows stand together in the file; imported
//! orders are history: they move no stock and belong to no ledger row.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{Read, Seek};

use chrono::TimeZone;

use super::sql;
use crate::auth::{self, UserId};
use crate::check::{self, Checks};
use crate::clock::Timestamp;
use crate::config;
use crate::product::currency;
use crate::product::import::{ImportError, ImportReport, amount};
use crate::product::{self, ProductId};
use crate::sheet::cell::{self, Numbers, Reason};
use crate::sheet::{Columns, Next, Reading, Record, Sheet, SheetError};
use crate::store::{Store, StoreError, Tx};

const COLUMNS: &[&str] = &[
    "order_id", "customer", "product", "quantity", "amount", "currency", "time",
];
/// What a file may say besides: what to call a customer that is new.
const NAME_COLUMN: &str = "customer_name";
/// Lines of one past order at most.
const LINES_MAX: usize = 10_000;

/// A row of the file.
#[derive(Clone, Debug)]
struct Line {
    number: u64,
    order: String,
    customer: String,
    customer_name: String,
    sku: String,
    quantity: u32,
    amount: i64,
    currency: String,
    at: Timestamp,
}

/// The rows of one order, and whether any of them was bad.
struct PastOrder {
    id: String,
    lines: Vec<Line>,
    is_spoilt: bool,
}

/// What became of an order.
enum Taken {
    Created,
    Known,
    Refused(&'static str, String),
}

/// No column of an order has several lines.
const SHEET: Columns<'static> = Columns {
    with_lines: &[],
    is_row: |_, _| true,
};

fn places_of(header: &[String]) -> Result<([usize; 7], Option<usize>), SheetError> {
    let mut at = [0; 7];
    for (place, name) in at.iter_mut().zip(COLUMNS) {
        *place = header
            .iter()
            .position(|known| known == name)
            .ok_or_else(|| {
                SheetError::Header(format!(
                    "the column `{name}` is missing; needed are {}",
                    COLUMNS.join(", ")
                ))
            })?;
    }
    for name in header {
        if !COLUMNS.contains(&name.as_str()) && name != NAME_COLUMN {
            return Err(SheetError::Header(format!(
                "there is no column `{}`; the columns are {}, and {NAME_COLUMN} if you like",
                crate::check::shortened(name),
                COLUMNS.join(", ")
            )));
        }
    }
    let name_at = header.iter().position(|known| known == NAME_COLUMN);
    Ok((at, name_at))
}

/// Reads the whole file; `progress` hears how many rows were read. Times without an offset are those
/// of the clocks of `zone`.
pub fn import_orders(
    store: &Store,
    settings: &config::Import,
    reading: &Reading,
    zone: &impl TimeZone,
    now: Timestamp,
    input: impl Read + Seek,
    mut progress: impl FnMut(u64),
) -> Result<ImportReport, ImportError> {
    let mut sheet = Sheet::open(input, reading, settings.field_bytes_max, &SHEET)?;
    let (at, name_at) = places_of(sheet.header())?;
    let mut numbers = Numbers::of(sheet.delimiter());
    let mut report = ImportReport::of(sheet.written());
    let errors_max = settings.errors_max;
    let (mut batch, mut rows): (Vec<PastOrder>, usize) = (Vec::new(), 0);
    // A row whose order is unknown may belong to the order before it or to the one after.
    let mut is_next_spoilt = false;
    loop {
        let next = sheet.next_row()?;
        if next == Next::End {
            break;
        }
        let record = sheet.record();
        let number = record.line();
        report.read += 1;
        rows += 1;
        let id = record.get(at[0]);
        if id.is_empty() {
            if let Some(order) = batch.last_mut() {
                order.is_spoilt = true;
            }
            is_next_spoilt = true;
        } else if batch.last().is_none_or(|order| order.id != id) {
            // Only between two orders, so that each is written whole.
            if rows > settings.batch_rows {
                write(store, now, &mut batch, &mut report, errors_max)?;
                progress(report.read);
                rows = 1;
            }
            batch.push(PastOrder {
                id: id.to_owned(),
                lines: Vec::new(),
                is_spoilt: std::mem::take(&mut is_next_spoilt),
            });
        }
        let read = match next {
            Next::Bad(reason) => Err((Cow::Borrowed(""), Cow::Owned(reason))),
            _ => read_row(
                record,
                &at,
                name_at,
                &mut numbers,
                zone,
                settings.field_bytes_max,
            ),
        };
        let order = batch.last_mut();
        match (read, order) {
            (Ok(row), Some(order)) if order.lines.len() < LINES_MAX => order.lines.push(row),
            (Ok(_), order) => {
                report.fail(
                    errors_max,
                    number,
                    "order_id",
                    "the order has too many rows",
                );
                if let Some(order) = order {
                    order.is_spoilt = true;
                }
            }
            (Err((field, reason)), order) => {
                report.fail(errors_max, number, field, reason);
                if let Some(order) = order {
                    order.is_spoilt = true;
                }
            }
        }
    }
    write(store, now, &mut batch, &mut report, errors_max)?;
    progress(report.read);
    Ok(report)
}

/// The field that is wrong, and why.
type Fault = (Cow<'static, str>, Reason);

fn read_row(
    record: &Record,
    at: &[usize; 7],
    name_at: Option<usize>,
    numbers: &mut Numbers,
    zone: &impl TimeZone,
    bytes_max: usize,
) -> Result<Line, Fault> {
    let field = |column: usize| check::trimmed(record.get(at[column]));
    let of = |name: &'static str| move |reason: Reason| (Cow::Borrowed(name), reason);
    let wrong = |name: &'static str, reason: &'static str| of(name)(Cow::Borrowed(reason));
    if record.iter().any(|text| text.len() > bytes_max) {
        return Err(wrong("", "a field is too long"));
    }
    for (column, name) in COLUMNS.iter().enumerate() {
        if field(column).is_empty() {
            return Err(wrong(name, "is missing"));
        }
        // Two of them may look alike: two orders would be one.
        if column < 3 && cell::is_shortened(field(column)) {
            return Err(wrong(name, cell::SHORTENED));
        }
    }
    let customer_name = match name_at.map(|at| check::trimmed(record.get(at))) {
        None | Some("") => field(1),
        Some(name) => name,
    };
    let mut checks = Checks::new();
    checks.key(COLUMNS[0], field(0), 1, 255);
    checks.key(COLUMNS[1], field(1), 1, 255);
    checks.name(NAME_COLUMN, customer_name, 1, 255);
    if let Err(faults) = checks.finish()
        && let Some(first) = faults.into_iter().next()
    {
        let column = COLUMNS.iter().find(|column| **column == first.field);
        let column = column.copied().unwrap_or(NAME_COLUMN);
        return Err(of(column)(Cow::Owned(first.reason)));
    }
    let currency = field(5);
    currency::check_past(currency).map_err(|reason| of("currency")(Cow::Owned(reason)))?;
    let number = record.line();
    // The amount first: it shows most often how the file writes numbers.
    let amount = amount(field(4), currency, numbers, number).map_err(of("amount"))?;
    let quantity = numbers.whole(field(3), number).map_err(of("quantity"))?;
    Ok(Line {
        number,
        order: field(0).to_owned(),
        customer: field(1).to_owned(),
        customer_name: customer_name.to_owned(),
        sku: field(2).to_owned(),
        quantity: quantity
            .and_then(|quantity| u32::try_from(quantity).ok())
            .filter(|quantity| *quantity > 0)
            .ok_or_else(|| wrong("quantity", "is not a whole number of 1 or more"))?,
        amount,
        currency: currency.to_owned(),
        at: cell::moment(field(6), zone).map_err(of("time"))?,
    })
}

fn write(
    store: &Store,
    now: Timestamp,
    batch: &mut Vec<PastOrder>,
    report: &mut ImportReport,
    errors_max: usize,
) -> Result<(), ImportError> {
    let orders = std::mem::take(batch);
    let outcomes = store
        .write(move |tx| {
            let mut known = Known::default();
            let mut outcomes = Vec::with_capacity(orders.len());
            for order in &orders {
                let Some(first) = order.lines.first() else {
                    continue; // each of its rows has been told of
                };
                let taken = if order.is_spoilt {
                    let reason = "another row of this order is bad, and an order is taken whole";
                    Taken::Refused("order_id", reason.to_owned())
                } else {
                    take(tx, now, &order.lines, &mut known)?
                };
                outcomes.push((first.number, order.lines.len() as u64, taken));
            }
            Ok::<_, StoreError>(outcomes)
        })
        .blocking()?;
    for (number, rows, outcome) in outcomes {
        match outcome {
            Taken::Created => report.created += rows,
            Taken::Known => report.unchanged += rows,
            Taken::Refused(field, reason) => {
                report.fail(errors_max, number, field, reason);
                report.failed += rows - 1;
            }
        }
    }
    Ok(())
}

/// Ids looked up within one batch; bounded by it.
#[derive(Default)]
struct Known {
    products: HashMap<String, Option<ProductId>>,
    customers: HashMap<String, UserId>,
}

fn take(
    tx: &mut Tx<'_>,
    now: Timestamp,
    rows: &[Line],
    known: &mut Known,
) -> Result<Taken, StoreError> {
    let first = &rows[0];
    if let Some(run) = sql::import_run_of(tx, &first.order)? {
        return Ok(if run == now.0 {
            Taken::Refused(
                "order_id",
                "the order stood earlier in this file; keep an order's rows together".to_owned(),
            )
        } else {
            Taken::Known
        });
    }
    let mut lines: Vec<(ProductId, u32, i64)> = Vec::with_capacity(rows.len());
    for row in rows {
        if row.customer != first.customer || row.currency != first.currency {
            return Ok(Taken::Refused(
                "order_id",
                format!(
                    "line {}: an order has one customer and one currency",
                    row.number
                ),
            ));
        }
        let product = match known.products.get(&row.sku) {
            Some(found) => *found,
            None => {
                let found = product::id_of_sku(tx, &row.sku)?.map(|(id, _)| id);
                known.products.insert(row.sku.clone(), found);
                found
            }
        };
        let Some(product) = product else {
            return Ok(Taken::Refused(
                "product",
                format!("line {}: there is no product `{}`", row.number, row.sku),
            ));
        };
        // Two lines of one product are one.
        match lines.iter_mut().find(|(known, ..)| *known == product) {
            Some((_, quantity, amount)) => {
                *quantity = quantity.saturating_add(row.quantity);
                *amount = amount.saturating_add(row.amount);
            }
            None => lines.push((product, row.quantity, row.amount)),
        }
    }
    let customer = match known.customers.get(&first.customer) {
        Some(id) => *id,
        None => {
            let id = auth::past_customer(tx, now, &first.customer, &first.customer_name)?;
            known.customers.insert(first.customer.clone(), id);
            id
        }
    };
    let total = lines
        .iter()
        .fold(0i64, |sum, (.., amount)| sum.saturating_add(*amount));
    let order = sql::insert_past(
        tx,
        now,
        &first.order,
        customer,
        total,
        &first.currency,
        first.at,
    )?;
    let item = |(product_id, quantity, amount)| super::OrderItem {
        product_id,
        quantity,
        unit_amount: amount / i64::from(quantity),
        amount,
    };
    let items: Vec<super::OrderItem> = lines.into_iter().map(item).collect();
    let lines = (1..).zip(&items).map(|(line, item)| (order, line, item));
    sql::insert_items(tx, lines)?;
    Ok(Taken::Created)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    use chrono::Utc;

    use crate::config::Database;
    use crate::monitor::Metrics;
    use crate::product::import::import_products;

    #[test]
    fn orders_are_taken_whole_once_and_move_no_stock() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        let settings = config::Import {
            batch_rows: 2,
            ..config::Import::default()
        };
        let products = "sku,name,price,currency,stock\nA,Mug,7,USD,3\nB,Pen,1,USD,0\n";
        let reading = Reading::default();
        let products = Cursor::new(products);
        import_products(&store, &settings, &reading, Timestamp(1), products, |_| ())
            .expect("products");
        let orders = "order_id,customer,product,quantity,amount,currency,time\n\
            1,h-1,A,1,7.00,USD,2026-01-01T10:00:00Z\n1,h-1,A,2,14.00,USD,2026-01-01T10:00:00Z\n\
            1,h-1,B,1,1.00,USD,2026-01-01T10:00:00Z\n2,h-2,X,1,1.00,USD,2026-01-02T10:00:00Z\n\
            3,h-1,B,0,1.00,USD,2026-01-02T10:00:00Z\n4,h-2,B,5,4.99,USD,2026-01-03T10:00:00Z\n\
            1,h-1,B,9,9.00,USD,2026-01-01T10:00:00Z\n";
        let read = |now, file: &[u8]| {
            let (now, file) = (Timestamp(now), Cursor::new(file));
            import_orders(&store, &settings, &reading, &Utc, now, file, |_| ()).expect("import")
        };
        let run = |now| read(now, orders.as_bytes());
        let first = run(10);
        assert_eq!((first.read, first.created, first.failed), (7, 4, 3));
        let fields: Vec<_> = first
            .errors
            .iter()
            .map(|error| error.field.as_str())
            .collect();
        assert_eq!(fields, ["quantity", "product", "order_id"]);
        let second = run(20);
        assert_eq!((second.created, second.unchanged, second.failed), (0, 5, 2));
        // One bad row costs the whole order, whichever row it is; corrected, it comes whole.
        let head = "order_id,customer,product,quantity,amount,currency,time\n";
        let row = |quantity: &str| format!("9,h-1,A,{quantity},7.00,USD,2026-01-04T10:00:00Z\n");
        let import = |now, rows: &[u8]| read(now, &[head.as_bytes(), rows].concat());
        for bad in [
            [row("0"), row("1"), row("1")].concat().into_bytes(),
            [row("1"), row("x"), row("1")].concat().into_bytes(),
            [row("1"), row("1"), row("0")].concat().into_bytes(),
            // Neither a row whose quote stays open, nor one that is cut short, leaves the rest.
            [row("1").as_str(), "9,h-1,\"A,1,7.00,USD,x\n", &row("1")]
                .concat()
                .into_bytes(),
            [row("1").as_str(), "9,h-1,A,1\n", &row("1")]
                .concat()
                .into_bytes(),
            // Nor does a row that does not say which order it is of.
            [row("1").as_str(), ",h-1,A,1,7.00,USD,2026/1/4\n", &row("1")]
                .concat()
                .into_bytes(),
        ] {
            let report = import(30, &bad);
            assert_eq!((report.created, report.failed), (0, 3), "{report:?}");
        }
        let whole = import(40, [row("1"), row("1"), row("1")].concat().as_bytes());
        assert_eq!((whole.created, whole.failed), (3, 0));
        let verdict = store
            .read_blocking::<_, StoreError>(|tx| crate::order::audit::verify(tx, |_| Ok(())))
            .expect("verify");
        assert_eq!((verdict.movements, verdict.problems_total), (1, 0));
    }

    #[test]
    fn times_and_numbers_are_read_as_spreadsheets_write_them() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        let (settings, reading) = (config::Import::default(), Reading::default());
        let products = Cursor::new("sku,name,price,currency\nA,毛毯,7,CNY\n");
        import_products(&store, &settings, &reading, Timestamp(1), products, |_| ())
            .expect("products");
        let orders = "order_id;customer;product;quantity;amount;currency;time;customer_name;\r\n\
            1;h-1;A;1;￥1.299,50;CNY;2026/1/5 9:03;王芳;\r\n;;;;;;;;\r\n\
            2.02601E+17;h-1;A;1;7,00;CNY;2026/1/5 9:03;;\r\n\
            3;h-1;A;1;7,00;CNY;1/5/2026 9:03;;\r\n\
            4;h-1;A;1;7.00;CNY;2026/1/5 9:03;;\r\n\
            5;h-1;A;1;€7,00;CNY;2026/1/5 9:03;;\r\n";
        let file = encoding_rs::GB18030.encode(orders).0;
        let zone = chrono::FixedOffset::east_opt(8 * 3_600).expect("an offset");
        let (now, file) = (Timestamp(2), Cursor::new(file.into_owned()));
        let report =
            import_orders(&store, &settings, &reading, &zone, now, file, |_| ()).expect("import");
        assert_eq!((report.read, report.created, report.failed), (5, 1, 4));
        let places: Vec<_> = report
            .errors
            .iter()
            .map(|error| (error.line, error.field.as_str()))
            .collect();
        assert_eq!(
            places,
            [(4, "order_id"), (5, "time"), (6, "amount"), (7, "amount")]
        );
        let orders = store
            .read_blocking::<_, StoreError>(|tx| {
                let filter = crate::order::Filter {
                    user_id: None,
                    status: None,
                    before: i64::MAX,
                    limit: 10,
                };
                sql::list(tx, &filter)
            })
            .expect("read");
        let made = &orders[0];
        assert_eq!(made.total_amount, 129_950);
        assert_eq!(made.created_at.to_string(), "2026-01-05T01:03:00.000000Z");
    }
}
