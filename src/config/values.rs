//! The types of settings that are neither numbers nor plain texts: words of a list, and secrets.
//!
//! Invariant: a secret shows itself to those who ask for it by name, and to nothing that prints.

use serde::{Deserialize, Serialize};

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Which entry of the cache gives way to a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eviction {
    /// One that was not read again soon after it came.
    S3Fifo,
    /// The one that is read least.
    Lfu,
    /// The one that was not read for longest.
    Lru,
    /// One that was not read since it was last looked at.
    Sieve,
    /// The oldest.
    Fifo,
}

/// How the mail server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// Encrypted from the first byte.
    Tls,
    /// Encrypted before anything is said that matters, or not at all.
    Starttls,
    /// In the clear.
    None,
}

/// A language that Onrush writes mails in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// English.
    En,
    /// Chinese, simplified.
    Zh,
}

impl Language {
    /// Every word, in the order of declaration.
    pub const WORDS: &'static [&'static str] = &["en", "zh"];

    /// The word that stands for it in settings, tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Language::En => "en",
            Language::Zh => "zh",
        }
    }

    /// The language that a word stands for.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "en" => Some(Language::En),
            "zh" => Some(Language::Zh),
            _ => None,
        }
    }
}

/// When a kind of mail is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailRule {
    /// When there is a mail server.
    Smtp,
    /// Also when they only land in `outbox/`.
    Always,
    /// Not at all: the shop writes its own.
    Never,
}

/// A text that must not be seen: its debug output and [`Loaded::effective`] leave it out.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the code that sends or compares it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { MASK })
    }
}

/// What stands in the place of a secret.
pub const MASK: &str = "********";
/// What a header's name has in it where its value is meant for the receiver alone.
const SECRET_HEADERS: &[&str] = &[
    "authorization",
    "cookie",
    "token",
    "secret",
    "password",
    "passwd",
    "api-key",
    "api_key",
    "apikey",
    "credential",
    "signature",
    "x-auth",
];

/// Whether the value of a header of this name is a secret.
pub fn is_secret_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_HEADERS.iter().any(|part| name.contains(part))
}

/// Puts [`MASK`] in the place of each secret among the member `headers` of `value`.
pub fn mask_headers(value: &mut serde_json::Value) {
    let headers = value
        .get_mut("headers")
        .and_then(|value| value.as_object_mut());
    for (name, value) in headers.into_iter().flatten() {
        if is_secret_header(name) {
            *value = MASK.into();
        }
    }
}
