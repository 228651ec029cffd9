//! A report as CSV, for spreadsheets (RFC 4180): one table, so that each line has the same columns.
//!
//! Invariant: no text of the shop becomes a formula where the file is opened.

use std::borrow::Cow;

use super::{Figures, Report, TopProduct};
use crate::product::import::minor_to_decimal;
use crate::store::StoreError;

/// What each line has; `gross` is `gross_amount` with its decimal point.
const COLUMNS: &[&str] = &[
    "section",
    "date",
    "currency",
    "state",
    "rank",
    "product_id",
    "sku",
    "name",
    "orders",
    "units",
    "gross_amount",
    "gross",
];

/// What a spreadsheet takes for the start of a formula, in both widths (OWASP, CSV injection).
const FORMULA: &[char] = &['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

/// A line to be; what it does not have stays empty.
#[derive(Default)]
struct Line<'a> {
    section: &'static str,
    date: &'a str,
    currency: &'a str,
    state: &'a str,
    rank: Option<u32>,
    product: Option<&'a TopProduct>,
    orders: Option<i64>,
    units: Option<i64>,
    amount: i64,
}

/// The report as CSV.
pub fn csv_of(report: &Report) -> Result<String, StoreError> {
    let bug = |error: &dyn std::fmt::Display| StoreError::Bug(error.to_string());
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(|error| bug(&error))?;
    for line in lines(report) {
        let number = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
        let (product_id, sku, name) = match line.product {
            Some(product) => (
                product.product_id.to_string(),
                harmless(product.sku.as_deref().unwrap_or_default()),
                harmless(&product.name),
            ),
            None => (String::new(), Cow::Borrowed(""), Cow::Borrowed("")),
        };
        let fields = [
            line.section,
            line.date,
            &harmless(line.currency),
            line.state,
            &number(line.rank.map(i64::from)),
            &product_id,
            &sku,
            &name,
            &number(line.orders),
            &number(line.units),
            &line.amount.to_string(),
            &minor_to_decimal(line.amount, line.currency),
        ];
        writer.write_record(fields).map_err(|error| bug(&error))?;
    }
    let bytes = writer.into_inner().map_err(|error| bug(&error))?;
    String::from_utf8(bytes).map_err(|error| bug(&error))
}

fn lines(report: &Report) -> impl Iterator<Item = Line<'_>> {
    fn summed<'a>(section: &'static str, currency: &'a str, figures: &Figures) -> Line<'a> {
        Line {
            section,
            currency,
            orders: Some(figures.orders),
            units: Some(figures.units),
            amount: figures.gross_amount,
            ..Line::default()
        }
    }
    fn top<'a>(section: &'static str, product: &'a TopProduct) -> Line<'a> {
        Line {
            section,
            currency: &product.currency,
            rank: Some(product.rank),
            product: Some(product),
            units: Some(product.units),
            amount: product.gross_amount,
            ..Line::default()
        }
    }
    let totals = report.totals.iter().flat_map(|total| {
        [
            summed("total", &total.currency, &total.figures),
            summed("unpaid", &total.currency, &total.unpaid),
            summed("refund_due", &total.currency, &total.refund_due),
        ]
    });
    let days = report.days.iter().map(|day| Line {
        date: &day.date,
        ..summed("day", &day.currency, &day.figures)
    });
    let units = report
        .top_by_units
        .iter()
        .map(|product| top("top_by_units", product));
    let amounts = report
        .top_by_amount
        .iter()
        .map(|product| top("top_by_amount", product));
    let states = report.states.iter().map(|state| Line {
        section: "state",
        currency: &state.currency,
        state: state.state.word(),
        orders: Some(state.orders),
        amount: state.amount,
        ..Line::default()
    });
    totals.chain(days).chain(units).chain(amounts).chain(states)
}

/// A text that begins as a formula does gets an apostrophe before it, which spreadsheets read as
/// "this is text".
fn harmless(text: &str) -> Cow<'_, str> {
    if text.trim_start_matches(' ').starts_with(FORMULA) {
        Cow::Owned(format!("'{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::order::OrderStatus;
    use crate::report::{DayTotal, StateTotal, Total};

    #[test]
    fn a_report_is_one_table_whose_texts_are_quoted_and_harmless() {
        let figures = Figures {
            orders: 2,
            units: 3,
            gross_amount: 1_234,
        };
        let product = |rank, name: &str, sku: Option<&str>| TopProduct {
            rank,
            currency: "CNY".to_owned(),
            product_id: 7,
            sku: sku.map(str::to_owned),
            name: name.to_owned(),
            units: 3,
            gross_amount: 1_234,
        };
        let names = [
            "Mug, \"large\" 杯子",
            "=HYPERLINK(\"http://x\")",
            "two\r\nlines",
            "＝1+1",
            "  @SUM(1)",
            "1-2",
        ];
        let report = Report {
            start_date: "2026-11-11".to_owned(),
            end_date: "2026-11-11".to_owned(),
            time_zone: "UTC".to_owned(),
            made_at: Timestamp(0),
            totals: vec![Total {
                currency: "CNY".to_owned(),
                figures,
                unpaid: Figures {
                    orders: 1,
                    units: 2,
                    gross_amount: 500,
                },
                refund_due: Figures::default(),
            }],
            days: vec![DayTotal {
                date: "2026-11-11".to_owned(),
                currency: "CNY".to_owned(),
                figures,
            }],
            top_by_units: (1..)
                .zip(names)
                .map(|(rank, name)| product(rank, name, Some("-1")))
                .collect(),
            top_by_amount: vec![product(1, "Mug", None)],
            states: vec![StateTotal {
                state: OrderStatus::Cancelled,
                currency: "JPY".to_owned(),
                orders: 1,
                amount: 500,
            }],
        };
        let text = csv_of(&report).expect("CSV");
        let head = "section,date,currency,state,rank,product_id,sku,name,orders,units,gross_amount,gross\r\n\
            total,,CNY,,,,,,2,3,1234,12.34\r\nunpaid,,CNY,,,,,,1,2,500,5.00\r\n\
            refund_due,,CNY,,,,,,0,0,0,0.00\r\nday,2026-11-11,CNY,,,,,,2,3,1234,12.34\r\n\
            top_by_units,,CNY,,1,7,'-1,\"Mug, \"\"large\"\" 杯子\",,3,1234,12.34\r\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.ends_with("state,,JPY,cancelled,,,,,1,,500,500\r\n"));
        // What is written is read back by any reader of the format, and as text.
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let read: Vec<String> = reader
            .records()
            .map(|record| record.expect("a record of the same length"))
            .filter(|record| &record[0] == "top_by_units")
            .map(|record| record[7].to_owned())
            .collect();
        let expected = [
            "Mug, \"large\" 杯子",
            "'=HYPERLINK(\"http://x\")",
            "two\r\nlines",
            "'＝1+1",
            "'  @SUM(1)",
            "1-2",
        ];
        assert_eq!(read, expected);
    }
}
