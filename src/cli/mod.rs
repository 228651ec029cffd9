//! The command line: what a person types, what they see, how the process ends.
//!
//! Exit codes: 0 done; 1 a promise or a check failed; 2 wrong usage or settings; 69 the data
//! directory or a server is not available; 74 the disk failed. Invariants: results go to standard
//! output, all else to standard error; an error is one sentence that says what to do next.

mod admin;
mod cache;
mod demo;
mod import;
mod rehearse;
mod report;
mod sample;
mod serve;
mod task;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Inputs, Loaded};
use crate::schedule::NotDeclarable;

#[derive(Parser)]
#[command(
    name = "onrush",
    version,
    about = "A shop's catalogue, orders, stock and flash sales in one process",
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Clone)]
struct Common {
    /// Settings file [default: ./onrush.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory [default: ./onrush-data]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::ServeArgs),
    /// Make a sample shop, run a flash sale under a crowd, print the report card, serve on
    Demo(demo::DemoArgs),
    /// Run a flash sale under a crowd in a copy of your own shop, print the report card
    Rehearse(rehearse::RehearseArgs),
    /// Read a CSV file into the shop
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// Accounts
    #[command(subcommand)]
    User(admin::UserCommand),
    /// API keys
    #[command(subcommand)]
    ApiKey(admin::ApiKeyCommand),
    /// Tasks: enqueue one, list them, show one
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Reports: what was sold
    #[command(subcommand)]
    Report(report::ReportCommand),
    /// The cache of a running server
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Stock and its ledger
    #[command(subcommand)]
    Stock(admin::StockCommand),
    /// Settings: show what is in force, write a commented file, check
    #[command(subcommand)]
    Config(admin::ConfigCommand),
    /// Print the OpenAPI document
    Openapi(admin::OpenapiArgs),
    /// Ask a running server whether it is ready (for containers and balancers)
    Healthcheck(admin::HealthcheckArgs),
}

/// An error with the exit code that it means.
#[derive(Debug)]
pub(crate) struct Failed {
    code: u8,
    message: String,
}

impl Failed {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// A check or a promise failed.
pub(crate) const EXIT_BROKEN: u8 = 1;
/// Wrong usage or settings.
pub(crate) const EXIT_USAGE: u8 = 2;
/// The data directory or a server is not available.
pub(crate) const EXIT_UNAVAILABLE: u8 = 69;

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        let is_setting = error.is::<config::ConfigError>() || error.is::<NotDeclarable>();
        let code = if is_setting {
            EXIT_USAGE
        } else {
            EXIT_UNAVAILABLE
        };
        Self {
            code,
            message: format!("{error:#}"),
        }
    }
}

pub(crate) type Outcome = Result<(), Failed>;

impl Common {
    fn load(&self, mut flags: Vec<(String, String)>) -> Result<Loaded, Failed> {
        if let Some(dir) = &self.data_dir {
            flags.push(("data.dir".to_owned(), dir.display().to_string()));
        }
        self.load_with(flags)
    }

    /// Like `load`, for a data directory that is not the one on the command line.
    fn load_with(&self, flags: Vec<(String, String)>) -> Result<Loaded, Failed> {
        Ok(config::load(&Inputs::from_process(
            self.config.clone(),
            flags,
        ))?)
    }
}

/// Reads the command line, runs the command, reports its error.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let common = cli.common;
    let outcome = match cli.command {
        Command::Serve(args) => serve::serve(&common, &args),
        Command::Demo(args) => demo::demo(&common, &args),
        Command::Rehearse(args) => rehearse::rehearse(&common, &args),
        Command::Import(command) => import::import(&common, &command),
        Command::User(command) => admin::user(&common, &command),
        Command::ApiKey(command) => admin::api_key(&common, &command),
        Command::Task(command) => task::task(&common, &command),
        Command::Report(command) => report::report(&common, &command),
        Command::Cache(command) => cache::cache(&common, &command),
        Command::Stock(command) => admin::stock(&common, &command),
        Command::Config(command) => admin::config(&common, &command),
        Command::Openapi(args) => admin::openapi(&common, &args),
        Command::Healthcheck(args) => admin::healthcheck(&common, &args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            say(&format!("onrush: {}", failed.message));
            ExitCode::from(failed.code)
        }
    }
}

/// A line for the person at the terminal, on standard error.
#[expect(
    clippy::print_stderr,
    reason = "this is where the terminal is spoken to"
)]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// A line of the result, on standard output. A reader that went away (`| head`) is no error.
pub(crate) fn print(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
