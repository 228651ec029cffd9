//! Where values come from: defaults, the file, the environment, flags; each later one wins.
//!
//! Invariants: an unknown key is refused with the nearest known one; what can't be read as the setting's
//! type is refused with the name of its source.

use std::collections::BTreeMap;
use std::path::PathBuf;

use figment::providers::{Format, Serialized, Toml};
use figment::{Figment, Profile};

use super::FILE_NAME;
use super::checks::check;
use super::error::ConfigError;
use super::keys::{check_known, flatten, is_empty, is_section, known_keys, pattern_of};
use super::sections::{ENTRIES, SECRETS, Settings};
use crate::check::{JsonError, parse_kept_json};

/// Environment names that other servers taught people to set, and the key each one means.
const CUSTOMARY: &[(&str, &str)] = &[
    ("HOST", "server.host"),
    ("PORT", "server.port"),
    ("WORKERS", "server.workers"),
];
const ENV_PREFIX: &str = "ONRUSH_";
/// Meant for the build (`web/build.rs`), and often still set when the result is started.
const BUILD_ONLY: &str = "ONRUSH_UI_DIST";

/// Where a value came from, in words for `config show`.
pub type Sources = BTreeMap<String, String>;

/// What the command line and the environment said, gathered before any of it is believed.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The settings file: named by a flag, or [`FILE_NAME`] when that exists.
    pub file: Option<PathBuf>,
    /// The environment, as `(name, value)`.
    pub env: Vec<(String, String)>,
    /// Flags, as `(dotted key, value)`.
    pub flags: Vec<(String, String)>,
}

impl Inputs {
    /// The process's own environment, and `onrush.toml` of the working directory if there is one.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let default = PathBuf::from(FILE_NAME);
        Self {
            file: file.or_else(|| default.exists().then_some(default)),
            env: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            flags,
        }
    }
}

/// Settings with the source of each value that is not a default.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values in force.
    pub settings: Settings,
    /// Dotted key → what set it.
    pub sources: Sources,
}

/// Reads all sources, refuses what is unknown or out of range.
pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigError> {
    let known = known_keys();
    let mut figment = Figment::from(Serialized::defaults(Settings::default()));
    let mut sources = Sources::new();

    if let Some(path) = &inputs.file {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let table: serde_json::Value =
            Figment::from(Toml::string(&text))
                .extract()
                .map_err(|error| ConfigError::File {
                    path: path.clone(),
                    reason: without_excerpt(&error.to_string()),
                })?;
        for (key, value) in flatten(&table) {
            // A heading with nothing below it sets nothing.
            if is_empty(&value) && is_section(&key, &known) {
                continue;
            }
            check_known(&key, &known, &path.display().to_string())?;
            sources.insert(key, path.display().to_string());
        }
        figment = figment.merge(Toml::string(&text));
    }

    let mut overrides: Vec<(String, String, String)> = Vec::new();
    for (name, key) in CUSTOMARY {
        if let Some((_, value)) = inputs.env.iter().find(|(n, _)| n == name) {
            overrides.push((
                (*key).to_owned(),
                value.clone(),
                format!("environment {name}"),
            ));
        }
    }
    for (name, value) in &inputs.env {
        let Some(rest) = name.strip_prefix(ENV_PREFIX).filter(|_| name != BUILD_ONLY) else {
            continue;
        };
        let (rest, value) = match rest.strip_suffix("_FILE") {
            Some(stem) => {
                let text = std::fs::read_to_string(value).map_err(|error| ConfigError::File {
                    path: PathBuf::from(value),
                    reason: format!("{error} (named by {name})"),
                })?;
                (stem, text.trim_end_matches(['\r', '\n']).to_owned())
            }
            None => (rest, value.clone()),
        };
        let key = rest.to_ascii_lowercase().replace("__", ".");
        check_known(&key, &known, &format!("environment {name}"))?;
        overrides.push((key, value, format!("environment {name}")));
    }
    for (key, value) in &inputs.flags {
        check_known(key, &known, "the command line")?;
        overrides.push((key.clone(), value.clone(), "command line".to_owned()));
    }
    for (key, value, source) in overrides {
        if pattern_of(&key) == format!("{ENTRIES}.*.args")
            && let Err(JsonError::Shape(fault)) =
                parse_kept_json::<serde_json::Value>(value.as_bytes())
        {
            return Err(ConfigError::Invalid {
                key,
                reason: format!("{} {}", fault.field, fault.reason),
                source_name: source,
            });
        }
        let typed = typed_like(&known[&pattern_of(&key)], &value).map_err(|reason| {
            ConfigError::Invalid {
                key: key.clone(),
                reason,
                source_name: source.clone(),
            }
        })?;
        figment = figment.merge(Serialized::global(&key, typed));
        sources.insert(key, source);
    }

    let figment = figment.select(Profile::Default);
    let mut settings: Settings = figment
        .extract()
        .map_err(|error| invalid(&error, &sources, &figment))?;
    follow_shop(&mut settings, &mut sources);
    check(&settings).map_err(|(key, reason)| ConfigError::Invalid {
        source_name: sources
            .get(&key)
            .cloned()
            .unwrap_or_else(|| "its default".to_owned()),
        key,
        reason,
    })?;
    Ok(Loaded { settings, sources })
}

/// Gives the shop's time zone to those settings that say nothing of their own.
fn follow_shop(settings: &mut Settings, sources: &mut Sources) {
    const SHOP: &str = "shop.time_zone";
    let (zone, schedules, reports) = (
        settings.shop.time_zone.clone(),
        &mut settings.schedules.time_zone,
        &mut settings.reports.time_zone,
    );
    if !sources.contains_key(SHOP) {
        return;
    }
    let mut follows = |key: &str| {
        let is_unset = !sources.contains_key(key);
        if is_unset {
            sources.insert(key.to_owned(), SHOP.to_owned());
        }
        is_unset
    };
    if follows("schedules.time_zone") {
        schedules.clone_from(&zone);
    }
    if follows("reports.time_zone") {
        *reports = zone;
    }
}

/// A value as it may stand in `onrush.toml` behind `=`; `None` where it may not.
fn toml_value(text: &str) -> Option<serde_json::Value> {
    let line = format!("value = {text}");
    let table: serde_json::Map<String, serde_json::Value> =
        Figment::from(Toml::string(&line)).extract().ok()?;
    // A line break in it would make two settings of one.
    let mut values = table.into_iter();
    let (first, rest) = (values.next()?.1, values.next());
    rest.is_none().then_some(first)
}

/// Text from the environment or a flag, read as the type that the default has. Numbers, lists and
/// tables may also be written as in the file.
fn typed_like(default: &serde_json::Value, text: &str) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    match default {
        Value::Bool(_) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Value::Bool(true)),
            "false" | "0" | "no" | "off" => Ok(Value::Bool(false)),
            _ => Err(format!("`{text}` is neither true nor false")),
        },
        Value::Number(_) => text
            .trim()
            .parse::<u64>()
            .ok()
            .or_else(|| toml_value(text)?.as_u64())
            .map(Value::from)
            .ok_or_else(|| format!("`{text}` is not a whole number of 0 or more")),
        Value::Array(_) if text.trim_start().starts_with('[') => {
            toml_value(text).filter(Value::is_array).ok_or_else(|| {
                format!("`{text}` is no list; write one,two or, as in the file, [\"one\", \"two\"]")
            })
        }
        Value::Array(items) => text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| match items.first() {
                Some(number @ Value::Number(_)) => typed_like(number, part),
                _ => Ok(Value::from(part)),
            })
            .collect::<Result<_, _>>()
            .map(Value::Array),
        // An optional setting says nothing of its type; a JSON text is what it looks like.
        Value::Null => Ok(serde_json::from_str(text)
            .ok()
            .or_else(|| table_in(text))
            .unwrap_or_else(|| Value::from(text))),
        Value::Object(_) => table_in(text).ok_or_else(|| {
            "is no table; write it as in the file, such as { name = \"value\" }".to_owned()
        }),
        Value::String(_) => Ok(Value::from(text)),
    }
}

/// The table or list that a text is, written as in the file.
fn table_in(text: &str) -> Option<serde_json::Value> {
    let is_one = text.trim_start().starts_with(['{', '[']);
    is_one.then(|| toml_value(text)).flatten()
}

/// A complaint of the TOML parser without the line that it shows: a secret may stand there.
fn without_excerpt(complaint: &str) -> String {
    let is_told = |line: &&str| {
        !line
            .trim_start_matches([' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
            .starts_with('|')
    };
    let told: Vec<&str> = complaint.lines().filter(is_told).collect();
    told.join(": ")
}

fn invalid(error: &figment::Error, sources: &Sources, figment: &Figment) -> ConfigError {
    let first = error.clone().into_iter().next();
    let path = first.as_ref().map_or(&[][..], |error| &error.path[..]);
    // What set a list is to be named, and of the list the one that is wrong.
    let place = path.iter().position(|part| part.parse::<usize>().is_ok());
    let key = path[..place.unwrap_or(path.len())].join(".");
    let reason = match &first {
        // The usual reason shows what was found.
        _ if SECRETS.contains(&key.as_str()) => "must be a text in quotes".to_owned(),
        Some(error) => match &error.kind {
            // All that the parsers of addresses ever say.
            figment::error::Kind::Message(said) if said.contains("IP address") => {
                let found = found_at(figment, &key, path.get(key.split('.').count()));
                match place {
                    Some(_) => format!(
                        "{found} is no range of addresses; write 10.0.0.0/8, or 10.0.0.1/32 for one address"
                    ),
                    None => format!(
                        "{found} is no address; write one such as 127.0.0.1, or 0.0.0.0 or :: for all"
                    ),
                }
            }
            kind => kind.to_string(),
        },
        None => error.to_string(),
    };
    ConfigError::Invalid {
        source_name: sources
            .get(&key)
            .cloned()
            .unwrap_or_else(|| "the settings".to_owned()),
        reason,
        key,
    }
}

/// The text at a key, or at a place of the list there, as it is quoted to the one who wrote it.
fn found_at(figment: &Figment, key: &str, place: Option<&String>) -> String {
    let found = figment.extract_inner::<serde_json::Value>(key).ok();
    let text = found.as_ref().and_then(|value| match place {
        Some(place) => value.get(place.parse::<usize>().ok()?)?.as_str(),
        None => value.as_str(),
    });
    text.map_or_else(|| "this".to_owned(), |text| format!("`{text}`"))
}
