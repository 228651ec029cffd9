//! `onrush report sales`: what was sold on some days, as tables, JSON or CSV. Works beside a running
//! server.

use std::io::IsTerminal;

use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Common, Failed, Outcome, existing_database, print};
use crate::check::FieldError;
use crate::clock::Clock;
use crate::product::import::minor_to_decimal;
use crate::report::{self, Report, ReportError, TopProduct};
use crate::store::file;

/// Days that the tables show; more are better read as CSV.
const DAYS_SHOWN: usize = 62;

#[derive(Subcommand)]
pub(super) enum ReportCommand {
    /// Orders, units and money by currency and by day, the best products, orders by state
    Sales(SalesArgs),
}

#[derive(Args)]
pub(super) struct SalesArgs {
    /// First day, such as 2026-11-01, in the time zone of the setting reports.time_zone
    #[arg(long, value_name = "DATE")]
    from: String,
    /// Last day
    #[arg(long, value_name = "DATE")]
    to: String,
    /// Print CSV instead of tables
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Leave out the byte-order mark, by which spreadsheet programs know that the CSV is UTF-8
    #[arg(long, requires = "csv")]
    no_bom: bool,
}

/// A refusal that names the flags in the place of the API's fields.
fn explained(error: ReportError) -> Failed {
    let flag = |text: &str| {
        let text = text.replace("start_date", "--from");
        text.replace("end_date", "--to")
    };
    match error {
        ReportError::Invalid(faults) => {
            let faults = faults
                .iter()
                .map(|fault| FieldError::new(flag(&fault.field), flag(&fault.reason)))
                .collect();
            ReportError::Invalid(faults).into()
        }
        ReportError::TooLarge(_) | ReportError::NotReady | ReportError::Store(_) => error.into(),
    }
}

pub(super) fn report(common: &Common, command: &ReportCommand) -> Outcome {
    let ReportCommand::Sales(args) = command;
    let settings = common.load(Vec::new())?.settings;
    let rules = &settings.reports;
    let days = report::days_of(rules, &args.from, &args.to).map_err(explained)?;
    let path = existing_database(&settings)?;
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(100).with_style(ProgressStyle::with_template("{bar:40} {percent} %")?)
    } else {
        ProgressBar::hidden()
    };
    let now = Clock::system().now();
    let made = file::read_alone(&path, &settings.database, |tx| {
        report::make(tx, now, rules, &days, |percent| {
            bar.set_position(u64::from(percent));
            Ok(())
        })
    });
    bar.finish_and_clear();
    let made = made.map_err(explained)?;
    if common.json {
        print(&serde_json::to_string(&made)?);
    } else if args.csv {
        print(report::csv_of(&made, !args.no_bom)?.trim_end());
    } else {
        show(&made);
    }
    Ok(())
}

fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header(head);
    table
}

fn show(report: &Report) {
    print(&format!(
        "Sales from {} to {} ({}). Gross is what is paid; what is not paid yet and what is to be paid back are not in it.",
        report.start_date, report.end_date, report.time_zone
    ));
    if report.states.is_empty() {
        print("No order was made on these days.");
        return;
    }
    let mut totals = table([
        "currency",
        "orders",
        "units",
        "gross",
        "not paid yet",
        "to be paid back",
    ]);
    for total in &report.totals {
        let figures = &total.figures;
        totals.add_row([
            total.currency.clone(),
            figures.orders.to_string(),
            figures.units.to_string(),
            minor_to_decimal(figures.gross_amount, &total.currency),
            minor_to_decimal(total.unpaid.gross_amount, &total.currency),
            minor_to_decimal(total.refund_due.gross_amount, &total.currency),
        ]);
    }
    print(&totals.to_string());
    if report.days.len() <= DAYS_SHOWN {
        let mut days = table(["day", "currency", "orders", "units", "gross"]);
        for day in &report.days {
            days.add_row([
                day.date.clone(),
                day.currency.clone(),
                day.figures.orders.to_string(),
                day.figures.units.to_string(),
                minor_to_decimal(day.figures.gross_amount, &day.currency),
            ]);
        }
        print(&days.to_string());
    } else {
        print("The days are left out here; --csv and --json have them.");
    }
    show_top("most units", &report.top_by_units);
    show_top("largest amounts", &report.top_by_amount);
    let mut states = table(["state", "currency", "orders", "amount"]);
    for state in &report.states {
        states.add_row([
            state.state.word().to_owned(),
            state.currency.clone(),
            state.orders.to_string(),
            minor_to_decimal(state.amount, &state.currency),
        ]);
    }
    print(&states.to_string());
}

fn show_top(what: &str, products: &[TopProduct]) {
    let mut table = table([what, "currency", "product", "sku", "name", "units", "gross"]);
    for product in products {
        table.add_row([
            product.rank.to_string(),
            product.currency.clone(),
            product.product_id.to_string(),
            product.sku.clone().unwrap_or_default(),
            product.name.clone(),
            product.units.to_string(),
            minor_to_decimal(product.gross_amount, &product.currency),
        ]);
    }
    print(&table.to_string());
}
