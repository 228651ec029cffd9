//! `onrush import products|orders`: files of spreadsheet programs into the shop, with progress and a
//! report.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Seek, SeekFrom};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Common, EXIT_BROKEN, EXIT_USAGE, Failed, Outcome, print, say};
use crate::app::{self, OpenData};
use crate::clock::Stopwatch;
use crate::config::Settings;
use crate::order::import::import_orders;
use crate::product::import::{ImportError, ImportReport, import_products};

use crate::sheet::{self, Reading, SheetError};
use crate::zone::Zone;

#[derive(Subcommand)]
pub(super) enum ImportCommand {
    /// Columns: sku, name, description, category, price (or unit_amount), currency, stock; or sku and
    /// stock alone, which counts what is known
    Products(FileArgs),
    /// Columns: order_id, customer, product (a SKU), quantity, amount, currency, time; customer_name
    /// if you like
    Orders(OrdersArgs),
}

#[derive(Args)]
pub(super) struct FileArgs {
    /// The file, its columns separated by commas, semicolons or tabs; `-` for standard input
    file: PathBuf,
    /// Its encoding, such as utf-8, gb18030, utf-16le or windows-1252, where that is not found by itself
    #[arg(long, value_name = "NAME")]
    charset: Option<String>,
}

#[derive(Args)]
pub(super) struct OrdersArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Time zone of times without an offset, such as 2026/1/5 9:03 [default: that of the shop]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
}

/// Shows the progress bar how far the file has been read.
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

impl<R: Seek> Seek for Watched<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let place = self.inner.seek(to)?;
        self.bar.set_position(place);
        Ok(place)
    }
}

/// Where a file comes from.
enum Source {
    /// A file of a disk, and its size.
    Disk(File, u64),
    /// What can be read once only, such as a pipe.
    Stream(Box<dyn Read>),
}

fn source(args: &FileArgs) -> Result<Source, Failed> {
    if args.file.as_os_str() == "-" {
        return Ok(Source::Stream(Box::new(std::io::stdin())));
    }
    let unreadable = |error: std::io::Error| {
        Failed::new(EXIT_USAGE, format!("{}: {error}", args.file.display()))
    };
    let file = File::open(&args.file).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if meta.is_dir() {
        return Err(unreadable(ErrorKind::IsADirectory.into()));
    }
    Ok(match meta.is_file() {
        true => Source::Disk(file, meta.len()),
        false => Source::Stream(Box::new(file)),
    })
}

pub(super) fn import(common: &Common, command: &ImportCommand) -> Outcome {
    let args = match command {
        ImportCommand::Products(args) => args,
        ImportCommand::Orders(args) => &args.file,
    };
    let settings = common.load(Vec::new())?.settings;
    let zone = match command {
        ImportCommand::Orders(OrdersArgs {
            time_zone: Some(name),
            ..
        }) => Zone::named(name)
            .map_err(|reason| Failed::new(EXIT_USAGE, format!("--time-zone: {reason}")))?,
        ImportCommand::Orders(_) | ImportCommand::Products(_) => settings.shop.time_zone.clone(),
    };
    let source = source(args)?;
    let opened = app::open_data(&settings)?;
    let watch = Stopwatch::start();
    let report = match source {
        Source::Disk(inner, bytes) => {
            let bar = if common.json || !std::io::stderr().is_terminal() {
                ProgressBar::hidden()
            } else {
                ProgressBar::new(bytes).with_style(ProgressStyle::with_template(
                    "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
                )?)
            };
            let file = Watched {
                inner,
                bar: bar.clone(),
            };
            let report = run(command, args, &settings, &opened, zone, file);
            bar.finish_and_clear();
            report
        }
        Source::Stream(stream) => sheet::spool(stream, opened.dir.root())
            .map_err(ImportError::from)
            .and_then(|file| run(command, args, &settings, &opened, zone, file)),
    };
    opened.close();
    match report {
        Ok(report) => show(common, &report, watch.elapsed_seconds()),
        Err(ImportError::Sheet(error @ (SheetError::Text(_) | SheetError::Header(_)))) => {
            let text = error.to_string();
            let is_open = text.ends_with("charset");
            let flag = if is_open { " with --charset" } else { "" };
            Err(Failed::new(EXIT_USAGE, format!("{text}{flag}")))
        }
        Err(error) => Err(error.into()),
    }
}

fn run(
    command: &ImportCommand,
    args: &FileArgs,
    settings: &Settings,
    opened: &OpenData,
    zone: impl chrono::TimeZone,
    file: impl Read + Seek,
) -> Result<ImportReport, ImportError> {
    let reading = Reading {
        charset: args.charset.clone(),
    };
    let (store, rules, now) = (&opened.store, &settings.import, opened.clock.now());
    match command {
        ImportCommand::Products(_) => import_products(store, rules, &reading, now, file, |_| ()),
        ImportCommand::Orders(_) => import_orders(store, rules, &reading, &zone, now, file, |_| ()),
    }
}

fn show(common: &Common, report: &ImportReport, seconds: f64) -> Outcome {
    if common.json {
        let mut object = serde_json::to_value(report)?;
        object["seconds"] = seconds.into();
        print(&object.to_string());
    } else {
        for error in &report.errors {
            let field = match error.field.as_str() {
                "" => String::new(),
                field => format!("{field}: "),
            };
            say(&format!("line {}: {field}{}", error.line, error.reason));
        }
        say(&format!(
            "The file was read as {}; between its columns: {}.",
            report.encoding, report.delimiter
        ));
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
