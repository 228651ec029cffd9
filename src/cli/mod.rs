//! The command line: what a person types, what they see, how the process ends.
//!
//! Exit codes: 0 done; 1 a promise or a check failed; 2 wrong usage or settings; 69 the data
//! directory or a server is not available; 74 the disk failed; 130 Ctrl-C at a question. Invariants:
//! results go to standard output, all else to standard error; an error is one sentence that says what
//! to do next, each thing once; what was asked for wrongly is told from what is not available.

mod admin;
mod cache;
mod demo;
pub mod drill;
mod hostile;
mod import;
mod password;
mod rehearse;
mod report;
mod sample;
mod serve;
mod task;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::app::App;
use crate::auth::AuthError;
use crate::check::FieldError;
use crate::config::{self, ConfigError, Inputs, Loaded, Settings};
use crate::flash_sale::SaleError;
use crate::http::listen::ListenError;
use crate::http::tls::TlsError;
use crate::mail::MailSetupError;
use crate::monitor::logs::LogError;
use crate::report::ReportError;
use crate::schedule::NotDeclarable;
use crate::store::{StoreError, database_in};
use crate::task::TaskError;
use crate::user::UserError;

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
    /// Data directory [default: from the settings, else ./onrush-data; of `demo` ./onrush-demo]
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
/// The disk failed.
pub(crate) const EXIT_IO: u8 = 74;
/// Ctrl-C in the place of an answer, as shells number it.
pub(crate) const EXIT_STOPPED: u8 = 130;

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        if let Some(faults) = faults_of(&error) {
            return Self::new(EXIT_USAGE, in_words(faults));
        }
        let code = match error.downcast_ref() {
            Some(StoreError::Io(_)) => EXIT_IO,
            _ if is_asked_wrongly(&error) || is_set_wrongly(&error) => EXIT_USAGE,
            _ => EXIT_UNAVAILABLE,
        };
        let next = error.downcast_ref().and_then(next_step).unwrap_or_default();
        Self::new(code, told(&error) + next)
    }
}

/// What an error says and why, each thing once: many an error quotes its cause, which the chain
/// then has again.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Faults of fields as a person reads them.
fn in_words(faults: &[FieldError]) -> String {
    let word = |fault: &FieldError| format!("{} {}", fault.field, fault.reason);
    let words: Vec<String> = faults.iter().map(word).collect();
    words.join("; ")
}

/// The fields that an input was refused for.
fn faults_of(error: &anyhow::Error) -> Option<&[FieldError]> {
    if let Some(AuthError::Invalid(faults)) = error.downcast_ref() {
        return Some(faults);
    }
    if let Some(UserError::Invalid(faults)) = error.downcast_ref() {
        return Some(faults);
    }
    if let Some(SaleError::Invalid(faults)) = error.downcast_ref() {
        return Some(faults);
    }
    if let Some(TaskError::Invalid(faults)) = error.downcast_ref() {
        return Some(faults);
    }
    match error.downcast_ref() {
        Some(ReportError::Invalid(faults)) => Some(faults),
        _ => None,
    }
}

/// Whether the command asked for something that can't be, whatever the state of the machine.
fn is_asked_wrongly(error: &anyhow::Error) -> bool {
    let account = |error: &AuthError| matches!(error, AuthError::Exists | AuthError::NoAccount);
    error.downcast_ref().is_some_and(account)
        || error
            .downcast_ref()
            .is_some_and(|error: &UserError| !matches!(error, UserError::Store(_)))
        || error
            .downcast_ref()
            .is_some_and(|error: &SaleError| !matches!(error, SaleError::Store(_)))
        || matches!(
            error.downcast_ref(),
            Some(TaskError::NotFound(_) | TaskError::UnknownTask { .. } | TaskError::KeyHeld(_))
        )
        || matches!(error.downcast_ref(), Some(ReportError::TooLarge(_)))
}

/// Whether a setting is at fault.
fn is_set_wrongly(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<NotDeclarable>()
        || error.is::<MailSetupError>()
        || error.is::<TlsError>()
        || matches!(error.downcast_ref(), Some(ListenError::Tls(_)))
        || matches!(error.downcast_ref(), Some(LogError::Level(_)))
}

/// What is to be done about a refusal that the API has other words for.
fn next_step(error: &AuthError) -> Option<&'static str> {
    match error {
        AuthError::Exists => Some("; `onrush user promote` gives it another role"),
        AuthError::NoAccount => Some("; `onrush user add` makes one"),
        _ => None,
    }
}

pub(crate) type Outcome = Result<(), Failed>;

impl Common {
    fn load(&self, mut flags: Vec<(String, String)>) -> Result<Loaded, Failed> {
        if let Some(dir) = &self.data_dir {
            // A name that can't be told exactly would open another directory.
            let dir = dir.to_str().ok_or_else(|| {
                let reason = "--data-dir must be UTF-8; choose another directory";
                Failed::new(EXIT_USAGE, reason)
            })?;
            flags.push(("data.dir".to_owned(), dir.to_owned()));
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

/// The database of a shop that is to be there already, for a command that makes none.
pub(crate) fn existing_database(settings: &Settings) -> Result<PathBuf, Failed> {
    let dir = settings.data.dir.display();
    let path = database_in(&settings.data.dir);
    let reason = match path.try_exists() {
        Ok(true) => return Ok(path),
        Ok(false) => format!("there is no database in {dir}"),
        Err(_) if settings.data.dir.is_file() => format!("{dir} is a file"),
        Err(error) => format!("{}: {error}", path.display()),
    };
    let advice = "name the data directory with --data-dir";
    Err(Failed::new(EXIT_UNAVAILABLE, format!("{reason}; {advice}")))
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

/// What a running server tells where standard error goes: a person sees it once, a file keeps it.
fn greeting(app: &App) -> Vec<String> {
    match std::io::stderr().is_terminal() {
        true => app.greeting(),
        false => app.greeting_for_a_log(),
    }
}

/// A line for the person at the terminal, on standard error. One that can't be said, such as on a disk that
/// is full, changes nothing about how the command ends.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _lost = writeln!(std::io::stderr(), "{line}");
}

/// A line of the result, on standard output. A reader that went away (`| head`) is no error.
pub(crate) fn print(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
