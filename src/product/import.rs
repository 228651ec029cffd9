//! Import of products from a file: streams, reports each bad row, can be run again without doubling.
//!
//! A file of `sku` and `stock` alone is a stock-take: it counts what is known and makes nothing.
//!
//! Invariants: bounded memory whatever the file's length; a bad row changes nothing and costs no
//! other row; money is read as decimal text, never through floating point.

use std::borrow::Cow;
use std::io::{Read, Seek};

use serde::Serialize;

use super::currency::{self, minor_digits};
use super::{NewProduct, PRODUCT_ROWS, ProductError, STOCK_MAX, Silent, Upsert, sql};
use crate::clock::Timestamp;
use crate::config;
use crate::sheet::cell::{self, Numbers, Reason};
use crate::sheet::{Columns, Next, Reading, Record, Sheet, SheetError, Written};
use crate::store::{Store, StoreError, Tx};

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
    /// The encoding that the file was read in, such as `UTF-8` or `GB18030`.
    pub encoding: String,
    /// What stands between its columns: `comma`, `semicolon`, `tab`, or the character itself.
    pub delimiter: String,
}

impl ImportReport {
    /// Of a file that is written so; nothing was read yet.
    pub fn of(written: &Written) -> Self {
        Self {
            encoding: written.encoding.clone(),
            delimiter: written.delimiter.clone(),
            ..Self::default()
        }
    }

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

/// Why an import ended early. What was taken before stays; before the first row nothing was.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file.
    #[error(transparent)]
    Sheet(#[from] SheetError),
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

const NO_AMOUNT: Reason = Cow::Borrowed("is not a decimal amount of this currency, such as 12.50");

/// An amount of the file's line `line` in minor units: as spreadsheet programs show it, with the sign
/// of its currency or without.
pub fn amount(text: &str, currency: &str, numbers: &mut Numbers, line: u64) -> Result<i64, Reason> {
    let bare = cell::without_sign(text, currency)?;
    let plain = numbers
        .plain(bare, line, minor_digits(currency))
        .map_err(|reason| {
            if reason == cell::NO_NUMBER {
                NO_AMOUNT
            } else {
                reason
            }
        })?;
    decimal_to_minor(&plain, currency).ok_or(NO_AMOUNT)
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

/// The columns of a stock-take, in either order.
const COUNTED: [&str; 2] = ["sku", "stock"];

const COLUMNS: Columns<'static> = Columns {
    with_lines: &["description"],
    is_row: |header, fields| {
        let field = |name: &str| {
            let at = header.iter().position(|known| known == name)?;
            fields.get(at).copied()
        };
        let price = field("price").or_else(|| field("unit_amount"));
        field("currency").is_some_and(has_form_of_currency)
            && price.is_some_and(|price| price.bytes().any(|byte| byte.is_ascii_digit()))
    },
};

fn has_form_of_currency(text: &str) -> bool {
    text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// A row that can be written.
enum Checked {
    /// A product and, where the file speaks of it, its counted stock.
    Product(NewProduct, Option<i64>),
    /// What a stock-take counted.
    Count { sku: String, counted: i64 },
}

impl Checked {
    fn sku(&self) -> Option<&str> {
        match self {
            Checked::Product(new, _) => new.sku.as_deref(),
            Checked::Count { sku, .. } => Some(sku),
        }
    }

    /// Text that goes into the search's index.
    fn text_bytes(&self) -> usize {
        match self {
            Checked::Product(new, _) => new.text_bytes(),
            Checked::Count { .. } => 0,
        }
    }
}

/// Where each column stands, once for the file.
struct Places {
    sku: Option<usize>,
    name: Option<usize>,
    description: Option<usize>,
    category: Option<usize>,
    price: Option<usize>,
    unit_amount: Option<usize>,
    currency: Option<usize>,
    stock: Option<usize>,
    popularity: Option<usize>,
    is_count: bool,
}

impl Places {
    fn of(header: &[String]) -> Result<Self, SheetError> {
        let wrong = |reason: String| Err(SheetError::Header(reason));
        if let Some(name) = header.iter().find(|name| !KNOWN.contains(&name.as_str())) {
            let name = crate::check::shortened(name);
            return wrong(format!(
                "there is no column `{name}`; the columns are {}",
                KNOWN.join(", ")
            ));
        }
        let at = |name: &str| header.iter().position(|known| known == name);
        let is_count =
            header.len() == COUNTED.len() && COUNTED.iter().all(|name| at(name).is_some());
        if !is_count {
            for name in ["sku", "name", "currency"] {
                if at(name).is_none() {
                    return wrong(format!("the column `{name}` is missing"));
                }
            }
            if at("price").is_none() && at("unit_amount").is_none() {
                return wrong("a column `price` or `unit_amount` is missing".to_owned());
            }
        }
        Ok(Self {
            sku: at("sku"),
            name: at("name"),
            description: at("description"),
            category: at("category"),
            price: at("price"),
            unit_amount: at("unit_amount"),
            currency: at("currency"),
            stock: at("stock"),
            popularity: at("popularity"),
            is_count,
        })
    }
}

/// Reads the whole file; `progress` hears how many rows were read.
pub fn import_products(
    store: &Store,
    settings: &config::Import,
    reading: &Reading,
    now: Timestamp,
    input: impl Read + Seek,
    mut progress: impl FnMut(u64),
) -> Result<ImportReport, ImportError> {
    let mut sheet = Sheet::open(input, reading, settings.field_bytes_max, &COLUMNS)?;
    let places = Places::of(sheet.header())?;
    let silent = Silent {
        description: places.description.is_none(),
        category: places.category.is_none(),
    };
    let mut numbers = Numbers::of(sheet.delimiter());
    let mut report = ImportReport::of(sheet.written());
    let errors_max = settings.errors_max;
    let mut batch: Vec<(u64, Checked)> = Vec::with_capacity(settings.batch_rows);
    let mut batch_bytes = 0;
    let step = settings.batch_rows.max(1) as u64;
    loop {
        let next = sheet.next_row()?;
        let record = sheet.record();
        let line = record.line();
        match next {
            Next::End => break,
            Next::Row => match read_row(record, &places, &mut numbers, settings.field_bytes_max) {
                Ok(checked) => {
                    batch_bytes += checked.text_bytes();
                    batch.push((line, checked));
                }
                Err((field, reason)) => report.fail(errors_max, line, field, reason),
            },
            Next::Bad(reason) => report.fail(errors_max, line, "", reason),
        }
        report.read += 1;
        if batch.len() >= settings.batch_rows || batch_bytes >= WRITE_BYTES_MAX {
            batch_bytes = 0;
            write(store, now, &mut batch, silent, &mut report, errors_max)?;
        }
        if report.read.is_multiple_of(step) {
            progress(report.read);
        }
    }
    write(store, now, &mut batch, silent, &mut report, errors_max)?;
    progress(report.read);
    Ok(report)
}

/// The field that is wrong, and why.
type Fault = (Cow<'static, str>, Reason);

fn read_row(
    record: &Record,
    places: &Places,
    numbers: &mut Numbers,
    bytes_max: usize,
) -> Result<Checked, Fault> {
    let field = |place: Option<usize>| place.map(|at| record.get(at)).unwrap_or_default();
    let of = |name: &'static str| move |reason: Reason| (Cow::Borrowed(name), reason);
    let wrong = |name: &'static str, reason: &'static str| of(name)(Cow::Borrowed(reason));
    if record.iter().any(|text| text.len() > bytes_max) {
        return Err(wrong("", "a field is too long"));
    }
    let line = record.line();
    let sku = field(places.sku);
    if sku.is_empty() {
        return Err(wrong(
            "sku",
            "is missing; it tells rows apart when the file is imported again",
        ));
    }
    if cell::is_shortened(sku) {
        return Err(wrong("sku", cell::SHORTENED));
    }
    if places.is_count {
        let counted = numbers
            .whole(field(places.stock), line)
            .map_err(of("stock"))?;
        let counted = counted.ok_or_else(|| wrong("stock", "is missing"))?;
        if !(0..=STOCK_MAX).contains(&counted) {
            let reason = format!("must be between 0 and {STOCK_MAX}");
            return Err(of("stock")(Cow::Owned(reason)));
        }
        let sku = sku.to_owned();
        return Ok(Checked::Count { sku, counted });
    }
    let currency = field(places.currency);
    currency::check(currency).map_err(|reason| of("currency")(Cow::Owned(reason)))?;
    let whole = numbers
        .whole(field(places.unit_amount), line)
        .map_err(of("unit_amount"))?;
    let unit_amount = match whole {
        Some(whole) => whole,
        None => amount(field(places.price), currency, numbers, line).map_err(of("price"))?,
    };
    // After the price, which shows most often how the file writes numbers.
    let counted = numbers
        .whole(field(places.stock), line)
        .map_err(of("stock"))?;
    let popularity = numbers
        .whole(field(places.popularity), line)
        .map_err(of("popularity"))?;
    let new = NewProduct {
        sku: Some(sku.to_owned()),
        name: field(places.name).to_owned(),
        description: field(places.description).to_owned(),
        category: field(places.category).to_owned(),
        unit_amount,
        currency: currency.to_owned(),
        stock: counted.unwrap_or(0),
        popularity: popularity.unwrap_or(0),
    };
    if let Err(errors) = new.check()
        && let Some(first) = errors.into_iter().next()
    {
        return Err((first.field.into(), first.reason.into()));
    }
    Ok(Checked::Product(new, counted))
}

fn write(
    store: &Store,
    now: Timestamp,
    batch: &mut Vec<(u64, Checked)>,
    silent: Silent,
    report: &mut ImportReport,
    errors_max: usize,
) -> Result<(), ImportError> {
    let rows = std::mem::take(batch);
    let outcomes = store
        .write(move |tx| {
            let mut outcomes = Vec::with_capacity(rows.len());
            // Rows come in the file's order; their products are locked in that of all transactions.
            let skus = rows.iter().filter_map(|(_, checked)| checked.sku());
            let known = sql::ids_by_sku(tx, skus)?;
            tx.lock(PRODUCT_ROWS, known)?;
            for (line, checked) in &rows {
                match write_row(tx, now, checked, silent) {
                    Ok(done) => outcomes.push((*line, done)),
                    Err(ProductError::Store(error)) => return Err(error),
                    Err(error) => outcomes.push((*line, Err(("", error.to_string())))),
                }
            }
            Ok::<_, StoreError>(outcomes)
        })
        .blocking()?;
    for (line, outcome) in outcomes {
        match outcome {
            Ok(Upsert::Created) => report.created += 1,
            Ok(Upsert::Updated) => report.updated += 1,
            Ok(Upsert::Unchanged) => report.unchanged += 1,
            Err((field, reason)) => report.fail(errors_max, line, field, reason),
        }
    }
    Ok(())
}

fn write_row(
    tx: &mut Tx<'_>,
    now: Timestamp,
    checked: &Checked,
    silent: Silent,
) -> Result<Result<Upsert, (&'static str, String)>, ProductError> {
    match checked {
        Checked::Product(new, counted) => super::upsert(tx, now, new, *counted, silent).map(Ok),
        Checked::Count { sku, counted } => {
            let done = super::count_stock(tx, now, sku, *counted)?;
            Ok(done.ok_or_else(|| {
                let reason = "is no product's; a file of sku and stock counts known ones only";
                ("sku", reason.to_owned())
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Cursor;

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
                &Reading::default(),
                Timestamp(1),
                Cursor::new(csv),
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
            .read_blocking::<_, StoreError>(|tx| stock::verify(tx, &BTreeMap::new(), |_| Ok(())))
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
            let (reading, now) = (Reading::default(), Timestamp(1));
            import_products(&store, &settings, &reading, now, Cursor::new(csv), |_| ())
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
            Err(ImportError::Sheet(SheetError::Header(_)))
        ));
    }

    fn store_in(dir: &tempfile::TempDir) -> Store {
        let path = dir.path().join("onrush.db");
        let metrics = Metrics::new().expect("metrics");
        Store::open(&path, &Database::default(), metrics, |_| ()).expect("store")
    }

    fn run(store: &Store, file: &[u8]) -> Result<ImportReport, ImportError> {
        let settings = config::Import::default();
        let (reading, now) = (Reading::default(), Timestamp(1));
        import_products(store, &settings, &reading, now, Cursor::new(file), |_| ())
    }

    fn product(store: &Store, sku: &str) -> crate::product::Product {
        store
            .read_blocking::<_, ProductError>(|tx| {
                let (id, _) = crate::product::id_of_sku(tx, sku)?.expect("a product");
                crate::product::get(tx, id)
            })
            .expect("read")
    }

    #[test]
    fn files_of_spreadsheet_programs_are_read_as_their_owners_see_them() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = store_in(&dir);
        // As Excel writes it in China, in Germany, and as "Unicode text".
        let chinese = "sku,name,price,currency,stock\r\nM-1,毛毯,\"￥1,299.00\",CNY,3\r\n";
        let chinese = encoding_rs::GBK.encode(chinese).0.into_owned();
        let german =
            "sku;name;price;currency;stock;;\r\nM-2;Decke;1.299,50 €;EUR;1.200;;\r\n;;;;;;\r\n";
        let unicode: Vec<u8> =
            "\u{feff}sku\tname\tprice\tcurrency\r\nM-3\t毛毯，大\t¥1299\tJPY\r\n"
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect();
        for (file, written, sku, name, unit_amount, stock) in [
            (
                &chinese[..],
                ("GB18030", "comma"),
                "M-1",
                "毛毯",
                129_900,
                3,
            ),
            (
                german.as_bytes(),
                ("UTF-8", "semicolon"),
                "M-2",
                "Decke",
                129_950,
                1_200,
            ),
            (
                &unicode[..],
                ("UTF-16LE", "tab"),
                "M-3",
                "毛毯，大",
                1_299,
                0,
            ),
        ] {
            let report = run(&store, file).expect("import");
            assert_eq!((report.read, report.created), (1, 1), "{sku} {report:?}");
            assert_eq!(
                (report.encoding.as_str(), report.delimiter.as_str()),
                written
            );
            let made = product(&store, sku);
            assert_eq!(
                (made.name.as_str(), made.unit_amount, made.stock),
                (name, unit_amount, stock)
            );
        }
    }

    #[test]
    fn a_file_that_is_not_in_one_encoding_makes_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = store_in(&dir);
        let mut file = b"sku,name,price,currency\n".to_vec();
        for number in 0..3_000 {
            file.extend_from_slice(format!("N{number},杯子,1,CNY\n").as_bytes());
        }
        file.extend_from_slice(b"X,\xff\xfe,1,CNY\n");
        let refused = run(&store, &file).expect_err("refused").to_string();
        assert!(refused.starts_with("line 3002, byte "), "{refused}");
        let known = store
            .read_blocking::<_, StoreError>(|tx| crate::product::id_of_sku(tx, "N0"))
            .expect("read");
        assert_eq!(known, None);
    }

    #[test]
    fn a_file_of_sku_and_stock_counts_and_makes_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = store_in(&dir);
        run(
            &store,
            b"sku,name,price,currency,stock\nA,Lamp,1,CNY,3\nB,Mug,1,CNY,4\n",
        )
        .expect("import");
        let id = product(&store, "B").id;
        store
            .write::<_, ProductError>(move |tx| {
                crate::product::archive(tx, Timestamp(2), id, |_, _, _| Ok(Vec::new()))
            })
            .blocking()
            .expect("archived");
        let report = run(&store, b"stock;sku\n7;A\n;A\n-1;A\n5;B\n1;C\n7;A\n").expect("import");
        assert_eq!((report.updated, report.unchanged, report.failed), (1, 1, 4));
        let places: Vec<_> = report
            .errors
            .iter()
            .map(|error| (error.line, error.field.as_str()))
            .collect();
        assert_eq!(places, [(3, "stock"), (4, "stock"), (5, "sku"), (6, "sku")]);
        let lamp = product(&store, "A");
        assert_eq!((lamp.name.as_str(), lamp.stock), ("Lamp", 7));
        let verdict = store
            .read_blocking::<_, StoreError>(|tx| stock::verify(tx, &BTreeMap::new(), |_| Ok(())))
            .expect("verify");
        assert_eq!(verdict.problems_total, 0);
    }

    #[test]
    fn a_quote_that_closes_in_the_next_row_swallows_neither() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = store_in(&dir);
        let file = "sku,name,description,price,currency\n\
            A,\"Lamp 5,x,1,CNY\nB,Mug \"big\",x,2,CNY\n\
            C,Pen,\"bright,3,CNY\nD,Cup,nice\",4,CNY\n\
            E,Jar,\"two\nlines, big, tall\",5,CNY\n1.5E+12,Pot,x,6,CNY\n";
        let report = run(&store, file.as_bytes()).expect("import");
        let errors: Vec<_> = report
            .errors
            .iter()
            .map(|error| (error.line, error.field.as_str()))
            .collect();
        assert_eq!(errors, [(2, ""), (4, ""), (8, "sku")]);
        assert!(
            report.errors[0]
                .reason
                .starts_with("a quote opens in this line")
        );
        assert_eq!((report.read, report.created), (6, 3));
        assert_eq!(product(&store, "B").name, "Mug \"big\"");
        assert_eq!(product(&store, "D").unit_amount, 400);
        assert_eq!(product(&store, "E").description, "two\nlines, big, tall");
    }
}
