//! Why the settings can't be used, in words that say what to do.
//!
//! Invariant: no message holds the value of a secret.

use std::path::PathBuf;

/// Why the settings could not be used; each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key that no setting has.
    #[error("{source_name}: there is no setting `{key}`{}", hint(.key, .nearest))]
    UnknownKey {
        /// The key as written, dotted.
        key: String,
        /// The known key that is spelt most like it.
        nearest: Option<String>,
        /// The file, variable or flag that holds it.
        source_name: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{key}: {reason} (set by {source_name})")]
    Invalid {
        /// The dotted key.
        key: String,
        /// What is wrong and what would be right.
        reason: String,
        /// The file, variable or flag that holds it.
        source_name: String,
    },
    /// The file is there but can't be read or is no TOML.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Settings that other pools of connections have, and what takes their place here.
pub(super) const OF_OTHER_POOLS: &[(&str, &str)] = &[
    (
        "pool_size",
        "the connections that read are `database.readers`, and one more writes for all",
    ),
    (
        "max_overflow",
        "the number of connections is fixed, so raise `database.readers`",
    ),
    (
        "pool_timeout",
        "how long a read waits for a connection is `database.reader_timeout_ms`",
    ),
    (
        "pool_recycle",
        "a connection to a local file does not age, so none is renewed",
    ),
    (
        "pool_pre_ping",
        "a local file does not go away, so no connection is tried before its use",
    ),
    (
        "pre_ping",
        "a local file does not go away, so no connection is tried before its use",
    ),
    (
        "pool_use_lifo",
        "the connection that was used last is always lent out first",
    ),
    (
        "lifo",
        "the connection that was used last is always lent out first",
    ),
    (
        "statement_timeout",
        "how long a statement may read is `database.statement_timeout_ms`",
    ),
];

fn hint(key: &str, nearest: &Option<String>) -> String {
    let of_another = key.strip_prefix("database.").and_then(|name| {
        let found = OF_OTHER_POOLS.iter().find(|(other, _)| *other == name);
        found.map(|(_, word)| format!(": {word}"))
    });
    if let Some(word) = of_another {
        return word;
    }
    nearest
        .as_ref()
        .map(|key| format!("; did you mean `{key}`?"))
        .unwrap_or_default()
}
