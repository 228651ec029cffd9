//! Checks of what came from outside: names the field and the reason, and knows nothing of HTTP.
//!
//! Invariants: all faults of one input are collected before it is refused, so that a caller mends
//! them in one go; text never holds control characters, so it is safe in logs, CSV and terminals.

use std::borrow::Cow;
use std::fmt::Display;

use serde::de::DeserializeOwned;

/// Longest reason that quotes what the caller sent.
const REASON_CHARS_MAX: usize = 200;

/// One fault of one field.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FieldError {
    /// Where: `items[0].quantity`; empty for the whole input.
    pub field: String,
    /// What is wrong, in words.
    pub reason: String,
}

impl FieldError {
    /// A fault of `field`.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// Collects faults; [`Checks::finish`] tells whether there were any.
#[derive(Debug, Default)]
pub struct Checks(Vec<FieldError>);

impl Checks {
    /// Nothing found yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes `reason` for `field` unless `holds`.
    pub fn require(&mut self, holds: bool, field: impl Into<String>, reason: impl Into<String>) {
        if !holds {
            self.0.push(FieldError::new(field, reason));
        }
    }

    /// `value` must lie within `min..=max`.
    pub fn range<T: PartialOrd + Display>(
        &mut self,
        field: impl Into<String>,
        value: T,
        min: T,
        max: T,
    ) {
        if value < min || value > max {
            self.0.push(FieldError::new(
                field,
                format!("must be between {min} and {max}"),
            ));
        }
    }

    /// `value` must have `chars_min..=chars_max` characters, none of them a control character.
    pub fn text(&mut self, field: &str, value: &str, chars_min: usize, chars_max: usize) {
        self.length(field, value, chars_min, chars_max);
        if value.chars().any(char::is_control) {
            self.0.push(FieldError::new(
                field,
                "must not contain control characters",
            ));
        }
    }

    /// As [`Checks::text`], but line breaks and tabs are welcome: descriptions, notes.
    pub fn paragraphs(&mut self, field: &str, value: &str, chars_min: usize, chars_max: usize) {
        self.length(field, value, chars_min, chars_max);
        if value
            .chars()
            .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
        {
            self.0.push(FieldError::new(
                field,
                "must not contain control characters other than line breaks and tabs",
            ));
        }
    }

    fn length(&mut self, field: &str, value: &str, chars_min: usize, chars_max: usize) {
        let chars = value.chars().count();
        if chars < chars_min || chars > chars_max {
            self.0.push(FieldError::new(
                field,
                format!("must have {chars_min} to {chars_max} characters, has {chars}"),
            ));
        }
    }

    /// All faults found, or none.
    pub fn finish(self) -> Result<(), Vec<FieldError>> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(self.0)
        }
    }
}

/// Why a text was not read as what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonError {
    /// It is no JSON; the reason names the place.
    Malformed(String),
    /// It is JSON of another shape.
    Shape(FieldError),
}

/// Reads `bytes` as `T`, or says what is wrong and where.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let malformed = |error: &serde_json::Error| {
        JsonError::Malformed(shortened(&error.to_string()).into_owned())
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        if error.inner().is_data() {
            JsonError::Shape(fault(&error))
        } else {
            malformed(error.inner())
        }
    })?;
    json.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

/// The candidate that is spelt most like `word`, if any is spelt nearly so.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(candidate, word), candidate))
        .min()
        .filter(|(distance, candidate)| *distance * 3 <= candidate.len())
        .map(|(_, candidate)| candidate)
}

/// serde's message, with the field taken out of its text and into its path.
fn fault(error: &serde_path_to_error::Error<serde_json::Error>) -> FieldError {
    let path = error.path().to_string();
    let path = if path == "." { "" } else { &path };
    let text = error.inner().to_string();
    // "… at line 1 column 2" is of no use beside the path.
    let text = text
        .rfind(" at line ")
        .map_or(text.as_str(), |end| &text[..end]);
    let quoted = || text.split('`').nth(1).unwrap_or_default();
    if text.starts_with("missing field `") {
        return FieldError::new(join(path, quoted()), "is required");
    }
    if text.starts_with("unknown field `") {
        return FieldError::new(join(path, quoted()), "is not a known field");
    }
    if text.starts_with("duplicate field `") {
        return FieldError::new(join(path, quoted()), "is given more than once");
    }
    FieldError::new(path, plain_words(&shortened(text)))
}

fn join(path: &str, field: &str) -> String {
    let last = path.rsplit('.').next().unwrap_or_default();
    if path.is_empty() {
        field.to_owned()
    } else if last == field {
        path.to_owned() // the path already leads to the field
    } else {
        format!("{path}.{field}")
    }
}

/// Rust's names of types mean nothing to a caller.
fn plain_words(text: &str) -> String {
    const WORDS: &[(&str, &str)] = &[
        ("u8", "a whole number of 0 or more"),
        ("u16", "a whole number of 0 or more"),
        ("u32", "a whole number of 0 or more"),
        ("u64", "a whole number of 0 or more"),
        ("usize", "a whole number of 0 or more"),
        ("i8", "a whole number"),
        ("i16", "a whole number"),
        ("i32", "a whole number"),
        ("i64", "a whole number"),
        ("f64", "a number"),
        ("a sequence", "a list"),
        ("a map", "an object"),
    ];
    let Some((found, expected)) = text.rsplit_once(", expected ") else {
        return text.to_owned();
    };
    let expected = match WORDS.iter().find(|(rust, _)| *rust == expected) {
        Some((_, words)) => (*words).to_owned(),
        None if expected.starts_with("struct ") => "an object".to_owned(),
        None => expected.to_owned(),
    };
    format!("{found}, expected {expected}")
}

/// A text that is quoted in a reason, without its middle if it is long.
pub fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(REASON_CHARS_MAX) {
        // The end of the message tells what was expected; keep it.
        Some((cut, _)) => {
            let tail = text
                .rfind(", expected ")
                .filter(|at| *at >= cut && text.len() - at <= REASON_CHARS_MAX);
            Cow::Owned(format!(
                "{}…{}",
                &text[..cut],
                tail.map_or("", |at| &text[at..])
            ))
        }
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_collected_with_its_field() {
        let mut checks = Checks::new();
        checks.range("quantity", 0, 1, 10);
        checks.text("name", "a\0b", 1, 2);
        checks.require(false, "items[1]", "is listed twice");
        let fields: Vec<String> = checks
            .finish()
            .expect_err("faults")
            .into_iter()
            .map(|fault| fault.field)
            .collect();
        assert_eq!(fields, ["quantity", "name", "name", "items[1]"]);
    }

    #[test]
    fn length_counts_characters_not_bytes() {
        let mut checks = Checks::new();
        checks.text("name", "ééé", 1, 3);
        checks.paragraphs("description", "a\nb\tc", 0, 5);
        assert_eq!(checks.finish(), Ok(()));
    }
}
