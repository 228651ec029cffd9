//! What is shown of the settings: the commented file of `config init`, the values of `config show`, and
//! which ones differ.
//!
//! Invariant: the value of a secret is never shown.

use super::bounds::Bounds;
use super::keys::{defaults, flatten, to_json};
use super::sections::{SECRETS, SECTIONS};
use super::sources::Loaded;
use super::values::{MASK, mask_headers};

/// A setting as `config show` shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its dotted key.
    pub key: String,
    /// Its value as JSON, masked where that is a secret.
    pub value: String,
    /// What set it.
    pub source: String,
    /// Which values it may have, in words, where there is more to say than its type does.
    pub bounds: Option<String>,
}

impl Loaded {
    /// How many settings have another value than their default.
    pub fn changed(&self) -> usize {
        let known = flatten(&defaults());
        let values = flatten(&to_json(&self.settings));
        let differs = |(key, value): &(&String, &serde_json::Value)| {
            !value.is_null() && known.get(*key) != Some(*value)
        };
        values.iter().filter(differs).count()
    }

    /// The dotted keys whose values are others in `other`, secrets included.
    pub fn differences(&self, other: &Loaded) -> Vec<String> {
        let (own, others) = (
            flatten(&to_json(&self.settings)),
            flatten(&to_json(&other.settings)),
        );
        let mut keys: Vec<String> = own.keys().chain(others.keys()).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| own.get(key) != others.get(key));
        keys
    }

    /// Every value in force, in the order of the file.
    pub fn effective(&self) -> Vec<Shown> {
        let values = flatten(&to_json(&self.settings));
        let row = |key: &str, value: &serde_json::Value, bounds: Option<&Bounds>| {
            let mut value = value.clone();
            // Those of the task `http_request`, in an entry of the schedules.
            mask_headers(&mut value);
            let source = self.sources.get(key).map_or("default", String::as_str);
            let shown = match value.to_string() {
                text if text != "\"\"" && SECRETS.contains(&key) => format!("\"{MASK}\""),
                text => text,
            };
            Shown {
                key: key.to_owned(),
                value: shown,
                source: source.to_owned(),
                bounds: bounds.and_then(Bounds::words),
            }
        };
        let mut rows = Vec::new();
        for (section, all) in SECTIONS {
            for setting in *all {
                let key = format!("{section}.{}", setting.name);
                if let Some(value) = values.get(&key) {
                    rows.push(row(&key, value, Some(&setting.bounds)));
                    continue;
                }
                // The entries that there are, each with what was said of it.
                let within = format!("{key}.");
                let entries = values
                    .iter()
                    .filter(|(key, value)| key.starts_with(&within) && !value.is_null());
                rows.extend(entries.map(|(key, value)| row(key, value, None)));
            }
        }
        rows
    }
}

/// The commented file that `config init` writes: every key with its meaning, its default and its bounds.
pub fn commented_file() -> String {
    let values = flatten(&defaults());
    let mut text = String::from(
        "# Settings of Onrush. Each line shows its default, and then what it may be; remove the `#` in front\n\
         # to change it.\n\
         # The environment (ONRUSH_SERVER__PORT=9000) and flags override this file.\n",
    );
    for (section, all) in SECTIONS {
        text.push_str(&format!("\n[{section}]\n"));
        for setting in *all {
            for line in setting.doc {
                text.push_str(&format!("#{line}\n"));
            }
            let (name, value) = (
                setting.name,
                &values[&format!("{section}.{}", setting.name)],
            );
            let bounds = setting.bounds.words();
            let bounds = bounds.map_or_else(String::new, |words| format!("  # {words}"));
            text.push_str(&format!("# {name} = {value}{bounds}\n"));
        }
    }
    text
}
