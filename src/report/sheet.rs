//! A report as CSV, for spreadsheets: one table, so that each line has the same columns.

use super::{Figures, Report, TopProduct};
use crate::product::import::minor_to_decimal;
use crate::sheet::{Cell, CsvOut, WriteError};
use crate::store::StoreError;

/// What each line has; `gross` is `gross_amount` with its decimal point.
const COLUMNS: [&str; 12] = [
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

/// The report as CSV, with a byte-order mark or without.
pub fn csv_of(report: &Report, has_mark: bool) -> Result<String, StoreError> {
    write(report, has_mark).map_err(|error| StoreError::Bug(error.to_string()))
}

fn write(report: &Report, has_mark: bool) -> Result<String, WriteError> {
    let mut out = CsvOut::new(&COLUMNS, has_mark)?;
    for line in lines(report) {
        let (product_id, sku, name) = match line.product {
            Some(product) => (
                Cell::number(Some(product.product_id)),
                product.sku.as_deref().map_or(Cell::Empty, Cell::Text),
                Cell::Text(&product.name),
            ),
            None => (Cell::Empty, Cell::Empty, Cell::Empty),
        };
        out.row(&[
            Cell::exact(line.section),
            Cell::exact(line.date),
            Cell::Text(line.currency),
            Cell::exact(line.state),
            Cell::number(line.rank.map(i64::from)),
            product_id,
            sku,
            name,
            Cell::number(line.orders),
            Cell::number(line.units),
            Cell::number(Some(line.amount)),
            Cell::exact(minor_to_decimal(line.amount, line.currency)),
        ])?;
    }
    out.finish()
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
        let text = csv_of(&report, false).expect("CSV");
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
