//! The dotted names of settings: which there are, and which one a misspelt name means.

use std::collections::BTreeMap;

use super::error::ConfigError;
use super::sections::{ENTRIES, SECTIONS, ScheduleEntry, Settings};

pub(super) fn defaults() -> serde_json::Value {
    to_json(&Settings::default())
}

pub(super) fn to_json(settings: &Settings) -> serde_json::Value {
    serde_json::to_value(settings).unwrap_or(serde_json::Value::Null)
}

/// Every key that may be set, with a value of its type; an entry's name is written as `*`.
pub(super) fn known_keys() -> BTreeMap<String, serde_json::Value> {
    let mut known = flatten(&defaults());
    let entry = serde_json::to_value(ScheduleEntry::default()).unwrap_or_default();
    for (field, value) in flatten(&entry) {
        known.insert(format!("{ENTRIES}.*.{field}"), value);
    }
    known
}

/// Whether `value` is a table with nothing in it.
pub(super) fn is_empty(value: &serde_json::Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// Whether settings stand below `key`: the file as a whole, a section, the entries, or one of them.
pub(super) fn is_section(key: &str, known: &BTreeMap<String, serde_json::Value>) -> bool {
    let name = key
        .strip_prefix(ENTRIES)
        .and_then(|rest| rest.strip_prefix('.'));
    let below = match name {
        Some(name) if !name.contains('.') => format!("{ENTRIES}.*."),
        _ => format!("{key}."),
    };
    key.is_empty() || known.keys().any(|known| known.starts_with(&below))
}

/// Of a key within an entry, the entry's name and the rest.
fn entry_of(key: &str) -> Option<(&str, &str)> {
    let inside = key.strip_prefix(ENTRIES)?.strip_prefix('.')?;
    // A name may have points in it; what belongs to an entry has none.
    inside.rsplit_once('.')
}

/// `schedules.entries.nightly.cron` → `schedules.entries.*.cron`; other keys as they are.
pub(super) fn pattern_of(key: &str) -> String {
    match entry_of(key) {
        Some((_, field)) => format!("{ENTRIES}.*.{field}"),
        None => key.to_owned(),
    }
}

/// `{a: {b: 1}}` → `{"a.b": 1}`; lists, empty objects and the arguments of tasks are values.
pub(super) fn flatten(value: &serde_json::Value) -> BTreeMap<String, serde_json::Value> {
    fn walk(
        prefix: &str,
        value: &serde_json::Value,
        out: &mut BTreeMap<String, serde_json::Value>,
    ) {
        let is_value = pattern_of(prefix) == format!("{ENTRIES}.*.args");
        match value.as_object() {
            Some(map) if !map.is_empty() && !is_value => {
                for (name, inner) in map {
                    let key = if prefix.is_empty() {
                        name.clone()
                    } else {
                        format!("{prefix}.{name}")
                    };
                    walk(&key, inner, out);
                }
            }
            Some(_) | None => {
                out.insert(prefix.to_owned(), value.clone());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", value, &mut out);
    out
}

pub(super) fn check_known(
    key: &str,
    known: &BTreeMap<String, serde_json::Value>,
    source_name: &str,
) -> Result<(), ConfigError> {
    let pattern = pattern_of(key);
    if known.contains_key(&pattern) {
        return Ok(());
    }
    if is_section(key, known) {
        return Err(ConfigError::Invalid {
            key: key.to_owned(),
            reason: format!(
                "is a section and takes no value; set what belongs to it, such as {key}.{}",
                first_of(key)
            ),
            source_name: source_name.to_owned(),
        });
    }
    let sections = SECTIONS.iter().map(|(section, _)| *section);
    let nearest = known
        .keys()
        .map(String::as_str)
        .chain(sections)
        .map(|candidate| (strsim::damerau_levenshtein(candidate, &pattern), candidate))
        .min()
        .filter(|(distance, candidate)| *distance * 3 <= candidate.len())
        .map(|(_, candidate)| match entry_of(key) {
            Some((name, _)) => candidate.replace(".*.", &format!(".{name}.")),
            None => candidate.to_owned(),
        });
    Err(ConfigError::UnknownKey {
        key: key.to_owned(),
        nearest,
        source_name: source_name.to_owned(),
    })
}

/// The first setting of a section; of an entry, what it needs most.
fn first_of(section: &str) -> &'static str {
    let found = SECTIONS.iter().find(|(name, _)| *name == section);
    found
        .and_then(|(_, all)| all.first())
        .map_or("cron", |setting| setting.name)
}
