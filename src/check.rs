//! Checks of what came from outside: names the field and the reason, and knows nothing of HTTP.
//!
//! Invariants: all faults of one input are collected before it is refused, so that a caller mends
//! them in one go; text never holds control characters, so it is safe in logs, CSV and terminals.

use std::fmt::Display;

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
