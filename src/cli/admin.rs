//! Commands of the operator: accounts, keys, stock, settings, the document, the health check.

use std::io::{IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Common, EXIT_BROKEN, EXIT_UNAVAILABLE, EXIT_USAGE, Failed, Outcome, existing_database,
    password, print, say,
};
use crate::app;
use crate::auth::{self, Role, Scope};
use crate::config;
use crate::order::audit;
use crate::store::{StoreError, file};
use crate::user;
use crate::zone;

#[derive(Subcommand)]
pub(super) enum UserCommand {
    /// Make an account; the password is asked for, or the first line of standard input
    Add(UserAddArgs),
    /// Give an account another role; the server must not run
    Promote(UserPromoteArgs),
}

#[derive(Args)]
pub(super) struct UserPromoteArgs {
    /// The account's address
    #[arg(long)]
    email: String,
    /// customer, staff or admin
    #[arg(long, default_value = "admin")]
    role: String,
}

#[derive(Args)]
pub(super) struct UserAddArgs {
    /// The address that the user logs in with
    #[arg(long)]
    email: String,
    /// What to call the user [default: the address]
    #[arg(long)]
    name: Option<String>,
    /// customer, staff or admin
    #[arg(long, default_value = "customer")]
    role: String,
}

#[derive(Subcommand)]
pub(super) enum ApiKeyCommand {
    /// Make a key; it is printed once and stored only as a hash
    Create(ApiKeyArgs),
}

#[derive(Args)]
pub(super) struct ApiKeyArgs {
    /// The account that the key acts for
    #[arg(long)]
    email: String,
    /// What the key is for
    #[arg(long)]
    name: String,
    /// What it may do, separated by commas
    #[arg(long, value_delimiter = ',')]
    scopes: Vec<String>,
}

#[derive(Subcommand)]
pub(super) enum StockCommand {
    /// Look every table over, and recompute every balance and every hash of the ledger
    Verify,
}

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every setting, its value and where that came from
    Show,
    /// Write a commented settings file
    Init {
        /// Where to write it, as --config says it too [default: ./onrush.toml]
        #[arg(conflicts_with = "config")]
        file: Option<PathBuf>,
    },
    /// Check the settings without starting
    Check,
}

#[derive(Args)]
pub(super) struct OpenapiArgs {
    /// Print YAML instead of JSON
    #[arg(long)]
    yaml: bool,
}

#[derive(Args)]
pub(super) struct HealthcheckArgs {
    /// Where the server listens [default: from the settings]
    #[arg(long)]
    address: Option<SocketAddr>,
}

fn role(word: &str) -> Result<Role, Failed> {
    Role::from_word(word).ok_or_else(|| {
        Failed::new(
            EXIT_USAGE,
            format!(
                "`{word}` is no role; choose one of {}",
                Role::WORDS.join(", ")
            ),
        )
    })
}

pub(super) fn user(common: &Common, command: &UserCommand) -> Outcome {
    let settings = common.load(Vec::new())?.settings;
    match command {
        UserCommand::Add(args) => {
            let role = role(&args.role)?;
            let name = args.name.clone().unwrap_or_else(|| args.email.clone());
            let password = password::read()?;
            let new = auth::NewAccount::checked(&args.email, &name, &password, &settings.auth)?;
            let opened = app::open_data(&settings)?;
            let now = opened.clock.now();
            let made = opened
                .store
                .write(move |tx| auth::create_account(tx, now, &new, role))
                .blocking();
            opened.close();
            let id = made?;
            print(&if common.json {
                serde_json::json!({"id": id, "email": args.email, "role": role}).to_string()
            } else {
                format!("user {id}: {} ({})", args.email, role.word())
            });
        }
        UserCommand::Promote(args) => {
            let role = role(&args.role)?;
            existing_database(&settings)?;
            let opened = app::open_data(&settings)?;
            let (now, email) = (opened.clock.now(), args.email.clone());
            let patch = user::Patch {
                role: Some(role),
                ..user::Patch::default()
            };
            let changed = opened
                .store
                .write(move |tx| {
                    let account = auth::account_with(tx, &email)?;
                    user::update(tx, now, Role::Admin, account.id, &patch)
                        .map_err(anyhow::Error::from)
                })
                .blocking();
            opened.close();
            let id = changed?.id;
            print(&if common.json {
                serde_json::json!({"id": id, "email": args.email, "role": role}).to_string()
            } else {
                format!("user {id}: {} ({})", args.email, role.word())
            });
        }
    }
    Ok(())
}

pub(super) fn api_key(common: &Common, command: &ApiKeyCommand) -> Outcome {
    let ApiKeyCommand::Create(args) = command;
    let mut scopes = Vec::new();
    for word in &args.scopes {
        scopes.push(Scope::from_word(word).ok_or_else(|| {
            Failed::new(
                EXIT_USAGE,
                format!(
                    "`{word}` is no scope; choose from {}",
                    Scope::WORDS.join(", ")
                ),
            )
        })?);
    }
    if scopes.is_empty() {
        return Err(Failed::new(
            EXIT_USAGE,
            format!(
                "name what the key may do: --scopes with any of {}",
                Scope::WORDS.join(",")
            ),
        ));
    }
    let settings = common.load(Vec::new())?.settings;
    existing_database(&settings)?;
    let opened = app::open_data(&settings)?;
    let now = opened.clock.now();
    let (email, most) = (args.email.clone(), settings.auth.api_keys_max);
    let new = auth::NewKey {
        name: args.name.clone(),
        scopes,
        expires_at: None,
    };
    let made = opened
        .store
        .write(move |tx| auth::create_api_key_for(tx, now, &email, &new, most))
        .blocking();
    opened.close();
    let (_, token) = made?;
    print(&if common.json {
        serde_json::json!({"name": args.name, "key": token}).to_string()
    } else {
        token
    });
    Ok(())
}

pub(super) fn stock(common: &Common, command: &StockCommand) -> Outcome {
    let StockCommand::Verify = command;
    let settings = common.load(Vec::new())?.settings;
    let path = existing_database(&settings)?;
    let bar = if common.json || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?)
    };
    // Reading needs no lock: it works beside a running server, the ledger on one consistent moment.
    let survey = file::survey(&path, &settings.database, |what| {
        bar.set_message(format!("looking over {what}"));
        bar.tick();
    })?;
    let verdict = file::read_alone::<_, StoreError>(&path, &settings.database, |tx| {
        audit::verify(tx, |rows| {
            bar.set_message(format!("{rows} movements"));
            bar.tick();
            Ok(())
        })
    });
    bar.finish_and_clear();
    let verdict = match verdict {
        Ok(verdict) => Some(verdict),
        // What is damaged is told, and so is that the ledger could not be read for it.
        Err(StoreError::Corrupt(_)) if !survey.damaged.is_empty() => None,
        Err(error) => return Err(error.into()),
    };
    if common.json {
        let mut told = match &verdict {
            Some(verdict) => serde_json::to_value(verdict)?,
            None => serde_json::json!({}),
        };
        told["database"] = serde_json::to_value(&survey)?;
        print(&told.to_string());
    } else {
        for finding in &survey.damaged {
            say(&format!("damaged: {}: {}", finding.what, finding.why));
        }
        if !survey.damaged.is_empty() {
            say(&format!("sound: {}", survey.sound.join(", ")));
        }
        for problem in verdict.iter().flat_map(|verdict| &verdict.problems) {
            say(problem);
        }
        print(&match &verdict {
            Some(verdict) => format!(
                "{} products, {} movements, drift {} units, {} problems",
                verdict.products, verdict.movements, verdict.drift_units, verdict.problems_total
            ),
            None => "the ledger can't be read to its end".to_owned(),
        });
    }
    if !survey.damaged.is_empty() {
        return Err(Failed::new(
            EXIT_BROKEN,
            "the database is damaged; keep a copy of the data directory and restore a backup",
        ));
    }
    if verdict.is_some_and(|verdict| verdict.problems_total > 0) {
        return Err(Failed::new(
            EXIT_BROKEN,
            "the stock ledger does not add up; keep a copy of the data directory and restore a backup, or correct the named rows' products by a stock-take",
        ));
    }
    Ok(())
}

pub(super) fn config(common: &Common, command: &ConfigCommand) -> Outcome {
    match command {
        ConfigCommand::Show => {
            let rows = common.load(Vec::new())?.effective();
            if common.json {
                let mut object: serde_json::Map<String, serde_json::Value> = rows
                    .into_iter()
                    .map(|row| {
                        let value: serde_json::Value =
                            serde_json::from_str(&row.value).unwrap_or(row.value.into());
                        let mut shown = serde_json::json!({"value": value, "source": row.source});
                        if let Some(bounds) = row.bounds {
                            shown["bounds"] = bounds.into();
                        }
                        (row.key, shown)
                    })
                    .collect();
                object.insert("time_zone_data".to_owned(), zone::data().into());
                print(&serde_json::to_string_pretty(&object)?);
            } else {
                let mut table = Table::new();
                table
                    .load_preset(UTF8_BORDERS_ONLY)
                    .set_header(["setting", "value", "set by", "may be"]);
                for row in rows {
                    let bounds = row.bounds.unwrap_or_default();
                    table.add_row([row.key, row.value, row.source, bounds]);
                }
                print(&table.to_string());
                print(&format!("time zones: {}", zone::data()));
            }
        }
        ConfigCommand::Init { file } => {
            let named = file.as_ref().or(common.config.as_ref());
            let file = named.cloned().unwrap_or_else(|| config::FILE_NAME.into());
            init(&file)?;
            let shown = file.display();
            print(&match (common.json, named) {
                (true, _) => serde_json::json!({"file": shown.to_string()}).to_string(),
                (false, Some(_)) => format!("wrote {shown}; give it to each command as --config"),
                (false, None) => format!("wrote {shown}"),
            });
        }
        ConfigCommand::Check => {
            let loaded = common.load(Vec::new())?;
            app::check(&loaded.settings)?;
            let changed = loaded.changed();
            print(&match (common.json, changed) {
                (true, _) => serde_json::json!({"valid": true, "changed": changed}).to_string(),
                (false, 1) => "the settings are valid; 1 differs from its default".to_owned(),
                (false, _) => {
                    format!("the settings are valid; {changed} differ from their defaults")
                }
            });
        }
    }
    Ok(())
}

/// Writes the commented settings file where none is.
fn init(file: &Path) -> Outcome {
    let failed = |error: std::io::Error| {
        Failed::new(
            EXIT_USAGE,
            match error.kind() {
                std::io::ErrorKind::AlreadyExists => format!(
                    "{} exists; remove it first or name another file",
                    file.display()
                ),
                _ => format!("{}: {error}; name another file", file.display()),
            },
        )
    };
    if let Some(folder) = file.parent().filter(|path| !path.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut open = std::fs::OpenOptions::new();
    let mut out = open
        .write(true)
        .create_new(true)
        .open(file)
        .map_err(failed)?;
    if let Err(error) = out.write_all(config::commented_file().as_bytes()) {
        // Half a file would be in the way of the next try.
        std::fs::remove_file(file).map_err(failed)?;
        return Err(failed(error));
    }
    Ok(())
}

pub(super) fn openapi(_common: &Common, args: &OpenapiArgs) -> Outcome {
    let (json, yaml) = app::openapi()?;
    print(if args.yaml {
        yaml.trim_end()
    } else {
        json.trim_end()
    });
    Ok(())
}

/// Asks `/readyz` with the least that a container image needs: a socket.
pub(super) fn healthcheck(common: &Common, args: &HealthcheckArgs) -> Outcome {
    let settings = common.load(Vec::new())?.settings;
    let address = args
        .address
        .unwrap_or_else(|| SocketAddr::new(settings.server.host, settings.server.port));
    let timeout = Duration::from_secs(3);
    let unreachable = |error: std::io::Error| {
        Failed::new(
            EXIT_UNAVAILABLE,
            format!("nothing answers at {address}: {error}; is `onrush serve` running?"),
        )
    };
    let mut stream = TcpStream::connect_timeout(&address, timeout).map_err(unreachable)?;
    stream
        .set_read_timeout(Some(timeout))
        .map_err(unreachable)?;
    stream
        .set_write_timeout(Some(timeout))
        .map_err(unreachable)?;
    stream
        .write_all(
            format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .map_err(unreachable)?;
    let mut answer = String::new();
    stream
        .take(65_536)
        .read_to_string(&mut answer)
        .map_err(unreachable)?;
    let ready = answer.split(' ').nth(1) == Some("200");
    print(&if common.json {
        serde_json::json!({"ready": ready, "address": address.to_string()}).to_string()
    } else if ready {
        "ready".to_owned()
    } else {
        "not ready".to_owned()
    });
    if ready {
        Ok(())
    } else {
        Err(Failed::new(EXIT_BROKEN, "the server is not ready"))
    }
}
