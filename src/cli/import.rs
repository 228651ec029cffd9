//! `onrush import products|orders`: CSV files into the shop, with progress and a report.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Common, EXIT_BROKEN, Failed, Outcome, print, say};
use crate::app;
use crate::clock::Stopwatch;
use crate::order::import::import_orders;
use crate::product::import::{ImportReport, import_products};

#[derive(Subcommand)]
pub(super) enum ImportCommand {
    /// Columns: sku, name, description, category, price (or unit_amount), currency, stock
    Products(FileArgs),
    /// Columns: order_id, customer, product (a SKU), quantity, amount, currency, time; customer_name
    /// if you like
    Orders(FileArgs),
}

#[derive(Args)]
pub(super) struct FileArgs {
    /// The CSV file; `-` for standard input
    file: PathBuf,
}

/// Shows the progress bar how much has been read.
struct Watched<R> {
    inner: R,
    bar: ProgressBar,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bar.inc(count as u64);
        Ok(count)
    }
}

pub(super) fn import(common: &Common, command: &ImportCommand) -> Outcome {
    let (ImportCommand::Products(args) | ImportCommand::Orders(args)) = command;
    let loaded = common.load(Vec::new())?;
    let (reader, bytes): (Box<dyn Read>, u64) = if args.file.as_os_str() == "-" {
        (Box::new(std::io::stdin()), 0)
    } else {
        let file = File::open(&args.file).map_err(|error| {
            Failed::new(
                super::EXIT_USAGE,
                format!("{}: {error}", args.file.display()),
            )
        })?;
        let bytes = file.metadata()?.len();
        (Box::new(file), bytes)
    };
    let opened = app::open_data(&loaded.settings)?;
    let bar = if common.json || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(bytes).with_style(ProgressStyle::with_template(
            "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        )?)
    };
    let reader = Watched {
        inner: reader,
        bar: bar.clone(),
    };
    let watch = Stopwatch::start();
    let settings = &loaded.settings;
    let now = opened.clock.now();
    let report = match command {
        ImportCommand::Products(_) => {
            import_products(&opened.store, &settings.import, now, reader, |_| ())?
        }
        ImportCommand::Orders(_) => {
            import_orders(&opened.store, &settings.import, now, reader, |_| ())?
        }
    };
    bar.finish_and_clear();
    opened.close();
    show(common, &report, watch.elapsed_seconds())
}

fn show(common: &Common, report: &ImportReport, seconds: f64) -> Outcome {
    if common.json {
        let mut object = serde_json::to_value(report)?;
        object["seconds"] = seconds.into();
        print(&object.to_string());
    } else {
        for error in &report.errors {
            say(&format!(
                "line {}: {}: {}",
                error.line, error.field, error.reason
            ));
        }
        print(&format!(
            "{} rows in {seconds:.1} s ({:.0} rows/s): {} created, {} updated, {} unchanged, {} failed",
            report.read,
            report.read as f64 / seconds.max(1e-9),
            report.created,
            report.updated,
            report.unchanged,
            report.failed,
        ));
    }
    if report.failed > 0 {
        return Err(Failed::new(
            EXIT_BROKEN,
            format!(
                "{} rows were not taken; correct them and import the file again, nothing is doubled",
                report.failed
            ),
        ));
    }
    Ok(())
}
