//! CSV import of products: streams, reports each bad row, can be run again without doubling.
//!
//! Invariants: bounded memory whatever the file's length; a bad row changes nothing and costs no
//! other row; money is read as decimal text, never through floating point.

use std::io::Read;

use serde::Serialize;

use super::currency::{self, minor_digits};
use super::{NewProduct, ProductError, Silent, Upsert};
use crate::clock::Timestamp;
use crate::config;
use crate::store::{Store, StoreError};

/// A row that was not taken.
#[derive(Clone, Debug, Serialize)]
pub struct RowError {
    /// Line of the file, from 1.
    pub line: u64,
    /// Column.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

/// What an import did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImportReport {
    /// Rows read.
    pub read: u64,
    /// Rows that made something.
    pub created: u64,
    /// Rows that changed something.
    pub updated: u64,
    /// Rows that said what was known.
    pub unchanged: u64,
    /// Rows that were not taken.
    pub failed: u64,
    /// The first of those.
    pub errors: Vec<RowError>,
}

impl ImportReport {
    /// Notes a row that was not taken; beyond `max` it is only counted.
    pub fn fail(
        &mut self,
        max: usize,
        line: u64,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) {
        self.failed += 1;
        if self.errors.len() < max {
            self.errors.push(RowError {
                line,
                field: field.into(),
                reason: reason.into(),
            });
        }
    }
}

/// Why an import ended early. What was taken before stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The header lacks a column, or has an unknown one.
    #[error("{0}")]
    Header(String),
    /// The file can't be read: it breaks off, or is no CSV.
    #[error("the file can't be read: {0}")]
    Read(csv::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// 1234 minor units as `"12.34"`: what [`decimal_to_minor`] reads.
pub fn minor_to_decimal(amount: i64, currency: &str) -> String {
    let digits = minor_digits(currency);
    let text = format!("{:0>width$}", amount.unsigned_abs(), width = digits + 1);
    let (whole, part) = text.split_at(text.len() - digits);
    let sign = if amount < 0 { "-" } else { "" };
    let point = if digits > 0 { "." } else { "" };
    format!("{sign}{whole}{point}{part}")
}

/// `"12.34"` in minor units of the currency (ISO 4217 exponents). `None` for anything else.
pub fn decimal_to_minor(text: &str, currency: &str) -> Option<i64> {
    let digits = minor_digits(currency);
    let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(part) {
        return None;
    }
    // 12.340 has two digits that count; 12.345 has three.
    let part = part.trim_end_matches('0');
    if part.len() > digits {
        return None;
    }
    format!("{whole}{part:0<digits$}").parse().ok()
}

const KNOWN: &[&str] = &[
    "sku",
    "name",
    "description",
    "category",
    "price",
    "unit_amount",
    "currency",
    "stock",
    "popularity",
];

/// Text of one write beyond which it does not wait for more rows: each character of Chinese is a row
/// of the search's index, and what else is to be written waits meanwhile. A thousand rows of
/// ordinary length have less.
const WRITE_BYTES_MAX: usize = 262_144;

/// A row with its line and, where the file speaks of it, the counted stock.
type Checked = (u64, NewProduct, Option<i64>);

/// Reads the whole file; `progress` hears how many rows were read.
pub fn import_products(
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
    for name in &header {
        if !KNOWN.contains(&name.as_str()) {
            return Err(ImportError::Header(format!(
                "there is no column `{name}`; the columns are {}",
                KNOWN.join(", ")
            )));
        }
    }
    if let Some((_, twice)) = header
        .iter()
        .enumerate()
        .find(|(index, name)| header[..*index].contains(*name))
    {
        return Err(ImportError::Header(format!(
            "the column `{twice}` is there twice"
        )));
    }
    let at = |name: &str| header.iter().position(|known| known == name);
    for name in ["sku", "name", "currency"] {
        if at(name).is_none() {
            return Err(ImportError::Header(format!(
                "the column `{name}` is missing"
            )));
        }
    }
    if at("price").is_none() && at("unit_amount").is_none() {
        return Err(ImportError::Header(
            "a column `price` or `unit_amount` is missing".to_owned(),
        ));
    }
    let silent = Silent {
        description: at("description").is_none(),
        category: at("category").is_none(),
    };
    let mut report = ImportReport::default();
    let mut batch: Vec<Checked> = Vec::with_capacity(settings.batch_rows);
    let mut batch_bytes = 0;
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {
                report.read += 1;
                let line = record.position().map_or(line, csv::Position::line);
                match read_row(&record, &at, header.len(), settings.field_bytes_max) {
                    Ok((new, counted)) => {
                        batch_bytes += new.text_bytes();
                        batch.push((line, new, counted));
                    }
                    Err((field, reason)) => report.fail(settings.errors_max, line, field, reason),
                }
            }
            Err(error) if matches!(error.kind(), csv::ErrorKind::Utf8 { .. }) => {
                report.read += 1;
                report.fail(settings.errors_max, line, "", "the row is not UTF-8");
            }
            Err(error) => return Err(ImportError::Read(error)),
        }
        if batch.len() >= settings.batch_rows || batch_bytes >= WRITE_BYTES_MAX {
            batch_bytes = 0;
            write(
                store,
                now,
                &mut batch,
                silent,
                &mut report,
                settings.errors_max,
            )?;
            progress(report.read);
        }
    }
    write(
        store,
        now,
        &mut batch,
        silent,
        &mut report,
        settings.errors_max,
    )?;
    progress(report.read);
    Ok(report)
}

fn read_row(
    record: &csv::StringRecord,
    at: &impl Fn(&str) -> Option<usize>,
    columns: usize,
    bytes_max: usize,
) -> Result<(NewProduct, Option<i64>), (String, String)> {
    // A row of another length has a comma too many or too few: its values stand in wrong columns.
    if record.len() != columns {
        return Err((
            String::new(),
            format!("has {} fields, the header has {columns}", record.len()),
        ));
    }
    let field = |name: &str| {
        at(name)
            .and_then(|index| record.get(index))
            .unwrap_or_default()
    };
    let wrong = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
    if record.iter().any(|text| text.len() > bytes_max) {
        return Err(wrong("", "a field is too long"));
    }
    let whole = |name: &str| -> Result<Option<i64>, (String, String)> {
        match field(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| wrong(name, "is not a whole number")),
        }
    };
    let currency = field("currency");
    currency::check(currency).map_err(|reason| ("currency".to_owned(), reason))?;
    let unit_amount = match whole("unit_amount")? {
        Some(amount) => amount,
        None => decimal_to_minor(field("price"), currency).ok_or_else(|| {
            wrong(
                "price",
                "is not a decimal amount of this currency, such as 12.50",
            )
        })?,
    };
    if field("sku").is_empty() {
        return Err(wrong(
            "sku",
            "is missing; it tells rows apart when the file is imported again",
        ));
    }
    let counted = whole("stock")?;
    let new = NewProduct {
        sku: Some(field("sku").to_owned()),
        name: field("name").to_owned(),
        description: field("description").to_owned(),
        category: field("category").to_owned(),
        unit_amount,
        currency: currency.to_owned(),
        stock: counted.unwrap_or(0),
        popularity: whole("popularity")?.unwrap_or(0),
    };
    if let Err(errors) = new.check()
        && let Some(first) = errors.into_iter().next()
    {
        return Err((first.field, first.reason));
    }
    Ok((new, counted))
}

fn write(
    store: &Store,
    now: Timestamp,
    batch: &mut Vec<Checked>,
    silent: Silent,
    report: &mut ImportReport,
    errors_max: usize,
) -> Result<(), ImportError> {
    let rows = std::mem::take(batch);
    let outcomes = store.write_blocking(move |tx| {
        let mut outcomes = Vec::with_capacity(rows.len());
        for (line, new, counted) in rows {
            match super::upsert(tx, now, &new, counted, silent) {
                Ok(done) => outcomes.push((line, Ok(done))),
                Err(ProductError::Store(error)) => return Err(error),
                Err(error) => outcomes.push((line, Err(error.to_string()))),
            }
        }
        Ok::<_, StoreError>(outcomes)
    })?;
    for (line, outcome) in outcomes {
        match outcome {
            Ok(Upsert::Created) => report.created += 1,
            Ok(Upsert::Updated) => report.updated += 1,
            Ok(Upsert::Unchanged) => report.unchanged += 1,
            Err(reason) => report.fail(errors_max, line, "", reason),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::monitor::Metrics;
    use crate::product::stock;

    #[test]
    fn decimals_become_minor_units_exactly_or_not_at_all() {
        for (text, currency, minor) in [
            ("12.34", "CNY", Some(1234)),
            ("12", "USD", Some(1200)),
            ("0.1", "EUR", Some(10)),
            ("12.340", "CNY", Some(1234)),
            ("12.345", "CNY", None),
            ("500", "JPY", Some(500)),
            ("500", "ISK", Some(500)),
            ("5.5", "ISK", None),
            ("1.234", "KWD", Some(1234)),
            ("-1", "CNY", None),
            ("1e3", "CNY", None),
            ("", "CNY", None),
            ("99999999999999999999", "CNY", None),
        ] {
            assert_eq!(decimal_to_minor(text, currency), minor, "{text} {currency}");
            if let Some(minor) = minor {
                let written = minor_to_decimal(minor, currency);
                assert_eq!(decimal_to_minor(&written, currency), Some(minor));
            }
        }
        let written = |minor, currency| minor_to_decimal(minor, currency);
        assert_eq!(written(5, "CNY"), "0.05");
        assert_eq!(written(123_456, "CNY"), "1234.56");
        assert_eq!(written(7, "JPY"), "7");
        assert_eq!(written(-1_500, "KWD"), "-1.500");
    }

    #[test]
    fn good_rows_are_taken_bad_ones_named_and_a_second_run_doubles_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let store = Store::open(
            &dir.path().join("onrush.db"),
            &Database::default(),
            metrics,
            |_| (),
        )
        .expect("store");
        let csv = "sku,name,price,currency,stock\nA,耳机,12.50,CNY,3\nB,Lamp,abc,CNY,1\n,Nameless,1,CNY,1\nC,Mug,7,CNY,-1\nD,Pen,1.00,CNY,5\n";
        let run = || {
            import_products(
                &store,
                &config::Import::default(),
                Timestamp(1),
                csv.as_bytes(),
                |_| (),
            )
            .expect("import")
        };
        let first = run();
        assert_eq!((first.read, first.created, first.failed), (5, 2, 3));
        let lines: Vec<_> = first
            .errors
            .iter()
            .map(|error| (error.line, error.field.as_str()))
            .collect();
        assert_eq!(lines, [(3, "price"), (4, "sku"), (5, "stock")]);
        let second = run();
        assert_eq!(
            (second.created, second.updated, second.unchanged),
            (0, 0, 2)
        );
        let verdict = store
            .read_blocking::<_, StoreError>(|tx| stock::verify(tx, |_| Ok(())))
            .expect("verify");
        assert_eq!((verdict.movements, verdict.problems_total), (2, 0));
    }

    #[test]
    fn what_the_file_is_silent_about_stays_and_shifted_rows_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        let run = |csv: &str| {
            let settings = config::Import::default();
            import_products(&store, &settings, Timestamp(1), csv.as_bytes(), |_| ())
        };
        run("sku,name,description,category,price,currency,stock\nA,Lamp,bright,home,1,CNY,3\n")
            .expect("import");
        let report =
            run("sku,name,price,currency\nA,Lamp,2,CNY\nB,Big, red lamp,1,CNY\n").expect("import");
        assert_eq!((report.updated, report.failed), (1, 1));
        let (id, _) = store
            .read_blocking::<_, StoreError>(|tx| crate::product::id_of_sku(tx, "A"))
            .expect("read")
            .expect("product");
        let lamp = store
            .read_blocking::<_, ProductError>(|tx| crate::product::get(tx, id))
            .expect("product");
        assert_eq!(
            (lamp.description.as_str(), lamp.category.as_str()),
            ("bright", "home")
        );
        assert_eq!((lamp.unit_amount, lamp.stock), (200, 3));
        assert!(matches!(
            run("sku,sku,name,price,currency\n"),
            Err(ImportError::Header(_))
        ));
    }
}
