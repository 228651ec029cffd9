//! CSV import of past orders, for a shop that moves in: streams, names bad rows, doubles nothing.
//!
//! Invariants: an order is taken whole or not at all; its rows stand together in the file; imported
//! orders are history: they move no stock and belong to no ledger row.

use std::collections::HashMap;
use std::io::Read;

use super::sql;
use crate::auth::UserId;
use crate::check::{self, Checks};
use crate::clock::Timestamp;
use crate::config;
use crate::product::currency;
use crate::product::import::{ImportError, ImportReport, decimal_to_minor};
use crate::product::{self, ProductId};
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

/// Reads the whole file; `progress` hears how many rows were read.
pub fn import_orders(
    store: &Store,
    settings: &config::Import,
    now: Timestamp,
    input: impl Read,
    mut progress: impl FnMut(u64),
) -> Result<ImportReport, ImportError> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(input);
    let header: Vec<String> = reader
        .headers()
        .map_err(ImportError::Read)?
        .iter()
        .map(|name| name.trim_start_matches('\u{feff}').to_ascii_lowercase())
        .collect();
    let mut at = [0; 7];
    for (place, name) in at.iter_mut().zip(COLUMNS) {
        *place = header
            .iter()
            .position(|known| known == name)
            .ok_or_else(|| {
                ImportError::Header(format!(
                    "the column `{name}` is missing; needed are {}",
                    COLUMNS.join(", ")
                ))
            })?;
    }
    for name in &header {
        if !COLUMNS.contains(&name.as_str()) && name != NAME_COLUMN {
            return Err(ImportError::Header(format!(
                "there is no column `{name}`; the columns are {}, and {NAME_COLUMN} if you like",
                COLUMNS.join(", ")
            )));
        }
    }
    let name_at = header.iter().position(|known| known == NAME_COLUMN);
    let mut report = ImportReport::default();
    let (mut batch, mut rows): (Vec<PastOrder>, usize) = (Vec::new(), 0);
    let mut record = csv::ByteRecord::new();
    loop {
        let line = reader.position().line();
        if !reader
            .read_byte_record(&mut record)
            .map_err(ImportError::Read)?
        {
            break;
        }
        report.read += 1;
        rows += 1;
        let number = record.position().map_or(line, csv::Position::line);
        let id = String::from_utf8_lossy(record.get(at[0]).unwrap_or_default());
        if batch.last().is_none_or(|order| order.id != id) {
            // Only between two orders, so that each is written whole.
            if rows > settings.batch_rows {
                write(store, now, &mut batch, &mut report, settings.errors_max)?;
                progress(report.read);
                rows = 1;
            }
            batch.push(PastOrder {
                id: id.into_owned(),
                lines: Vec::new(),
                is_spoilt: false,
            });
        }
        let Some(order) = batch.last_mut() else {
            continue;
        };
        match read_row(&record, &at, name_at, number, settings.field_bytes_max) {
            Ok(_) if order.lines.len() >= LINES_MAX => {
                report.fail(
                    settings.errors_max,
                    number,
                    "order_id",
                    "the order has too many rows",
                );
                order.is_spoilt = true;
            }
            Ok(row) => order.lines.push(row),
            Err((field, reason)) => {
                report.fail(settings.errors_max, number, field, reason);
                order.is_spoilt = true;
            }
        }
    }
    write(store, now, &mut batch, &mut report, settings.errors_max)?;
    progress(report.read);
    Ok(report)
}

fn read_row(
    record: &csv::ByteRecord,
    at: &[usize; 7],
    name_at: Option<usize>,
    number: u64,
    bytes_max: usize,
) -> Result<Line, (&'static str, String)> {
    let mut fields: [&str; 7] = [""; 7];
    for (field, column) in fields.iter_mut().zip(at) {
        *field = check::trimmed(text(record, *column)?);
    }
    let field = |column: usize| fields[column];
    if record.iter().any(|text| text.len() > bytes_max) {
        return Err(("", "a field is too long".to_owned()));
    }
    for (column, name) in COLUMNS.iter().enumerate() {
        if field(column).is_empty() {
            return Err((name, "is missing".to_owned()));
        }
    }
    let customer_name = match name_at.map(|at| text(record, at)).transpose()? {
        Some(name) if !check::trimmed(name).is_empty() => check::trimmed(name),
        Some(_) | None => field(1),
    };
    let mut checks = Checks::new();
    checks.key(COLUMNS[0], field(0), 1, 255);
    checks.key(COLUMNS[1], field(1), 1, 255);
    checks.name(NAME_COLUMN, customer_name, 1, 255);
    if let Err(faults) = checks.finish()
        && let Some(first) = faults.into_iter().next()
    {
        let column = COLUMNS.iter().find(|column| **column == first.field);
        return Err((column.copied().unwrap_or(NAME_COLUMN), first.reason));
    }
    let currency = field(5);
    currency::check_past(currency).map_err(|reason| ("currency", reason))?;
    let wrong = |column: &'static str, reason: &str| (column, reason.to_owned());
    Ok(Line {
        number,
        order: field(0).to_owned(),
        customer: field(1).to_owned(),
        customer_name: customer_name.to_owned(),
        sku: field(2).to_owned(),
        quantity: field(3)
            .parse()
            .ok()
            .filter(|quantity| *quantity > 0)
            .ok_or_else(|| wrong("quantity", "is not a whole number of 1 or more"))?,
        amount: decimal_to_minor(field(4), currency).ok_or_else(|| {
            wrong(
                "amount",
                "is not a decimal amount of this currency, such as 12.50",
            )
        })?,
        currency: currency.to_owned(),
        at: Timestamp::parse_rfc3339(field(6))
            .ok_or_else(|| wrong("time", "is no RFC 3339 time, such as 2026-11-11T00:00:00Z"))?,
    })
}

fn text(record: &csv::ByteRecord, column: usize) -> Result<&str, (&'static str, String)> {
    std::str::from_utf8(record.get(column).unwrap_or_default())
        .map_err(|_| ("", "the row is not UTF-8".to_owned()))
}

fn write(
    store: &Store,
    now: Timestamp,
    batch: &mut Vec<PastOrder>,
    report: &mut ImportReport,
    errors_max: usize,
) -> Result<(), ImportError> {
    let orders = std::mem::take(batch);
    let outcomes = store.write_blocking(move |tx| {
        let mut known = Known::default();
        let mut outcomes = Vec::with_capacity(orders.len());
        for order in orders {
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
    })?;
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
            let id = sql::customer(tx, now, &first.customer, &first.customer_name)?;
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
    for (line, (product_id, quantity, amount)) in (1..).zip(lines) {
        let unit_amount = amount / i64::from(quantity);
        sql::insert_item(
            tx,
            order,
            line,
            &super::OrderItem {
                product_id,
                quantity,
                unit_amount,
                amount,
            },
        )?;
    }
    Ok(Taken::Created)
}

#[cfg(test)]
mod tests {
    use super::*;
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
        import_products(&store, &settings, Timestamp(1), products.as_bytes(), |_| ())
            .expect("products");
        let orders = "order_id,customer,product,quantity,amount,currency,time\n\
            1,h-1,A,1,7.00,USD,2026-01-01T10:00:00Z\n1,h-1,A,2,14.00,USD,2026-01-01T10:00:00Z\n\
            1,h-1,B,1,1.00,USD,2026-01-01T10:00:00Z\n2,h-2,X,1,1.00,USD,2026-01-02T10:00:00Z\n\
            3,h-1,B,0,1.00,USD,2026-01-02T10:00:00Z\n4,h-2,B,5,4.99,USD,2026-01-03T10:00:00Z\n\
            1,h-1,B,9,9.00,USD,2026-01-01T10:00:00Z\n";
        let run = |now| {
            import_orders(&store, &settings, Timestamp(now), orders.as_bytes(), |_| ())
                .expect("import")
        };
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
        let import = |now, rows: &[u8]| {
            let file = [head.as_bytes(), rows].concat();
            import_orders(&store, &settings, Timestamp(now), file.as_slice(), |_| ())
                .expect("import")
        };
        for bad in [
            [row("0"), row("1"), row("1")].concat().into_bytes(),
            [row("1"), row("x"), row("1")].concat().into_bytes(),
            [row("1"), row("1"), row("0")].concat().into_bytes(),
            [
                row("1").as_bytes(),
                row("1").as_bytes(),
                b"9,h-1,\xff,1,7.00,USD,x\n",
            ]
            .concat(),
        ] {
            let report = import(30, &bad);
            assert_eq!((report.created, report.failed), (0, 3), "{report:?}");
        }
        let whole = import(40, [row("1"), row("1"), row("1")].concat().as_bytes());
        assert_eq!((whole.created, whole.failed), (3, 0));
        let verdict = store
            .read_blocking::<_, StoreError>(|tx| crate::product::stock::verify(tx, |_| Ok(())))
            .expect("verify");
        assert_eq!((verdict.movements, verdict.problems_total), (1, 0));
    }
}
