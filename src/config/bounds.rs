//! Which values one setting may have, whatever the others are.
//!
//! Invariants: each setting has [`Bounds`], if only the reason why it has none; a value is checked as it is
//! written in the file, so that what is printed, documented and checked is the same.

use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

use super::values::{Eviction, Language, LogFormat, MailRule, MailTls};
use crate::zone::Zone;

/// Which values a setting may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bounds {
    /// A whole number from `least` to `most`.
    Number {
        /// The smallest number.
        least: u64,
        /// The largest number.
        most: u64,
    },
    /// 0, which turns something off, or a whole number from `least` to `most`.
    ZeroOr {
        /// The smallest number beside 0.
        least: u64,
        /// The largest number.
        most: u64,
    },
    /// A list of whole numbers from `least` to `most`.
    Each {
        /// The smallest number.
        least: u64,
        /// The largest number.
        most: u64,
    },
    /// A list of whole numbers, each of them larger than the one before.
    Rising {
        /// The longest list.
        numbers_max: usize,
    },
    /// A list of other things, whose form their type checks.
    Items {
        /// The longest list.
        most: usize,
    },
    /// A text, which may be empty.
    Text {
        /// The longest text.
        chars_max: usize,
    },
    /// The path of a file, or nothing.
    Path {
        /// The longest path.
        bytes_max: usize,
    },
    /// The path of a directory, which must be there to name one.
    Directory {
        /// The longest path.
        bytes_max: usize,
    },
    /// The address of a page to which `#token=…` can be added, or nothing.
    Page {
        /// The longest address.
        chars_max: usize,
    },
    /// What the type allows and no more, in words.
    OfType(&'static str),
    /// No bounds of its own.
    None {
        /// Why it needs none.
        because: &'static str,
    },
}

/// A type none of whose values is out of bounds.
pub(super) trait Closed {
    /// What its values are, in words.
    const FORM: &'static str;
}

macro_rules! closed {
    ($($kind:ty = $form:literal,)*) => {
        $(impl Closed for $kind {
            const FORM: &'static str = $form;
        })*
    };
}

closed! {
    bool = "true or false",
    IpAddr = "an IP address",
    Zone = "the IANA name of a time zone",
    Eviction = "s3_fifo, lfu, lru, sieve or fifo",
    Language = "en or zh",
    LogFormat = "auto, text or json",
    MailRule = "smtp, always or never",
    MailTls = "tls, starttls or none",
}

impl Bounds {
    /// What is wrong with a value, if anything. The words never hold the value of a text, which may be a secret.
    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        match *self {
            Self::Number { least, most } => in_range(number(value), least, most),
            Self::ZeroOr { least, most } => match number(value) {
                0 => Ok(()),
                small if small < least => Err(format!("it must be 0, or {least} at least")),
                number => in_range(number, least, most),
            },
            Self::Each { least, most } => {
                let mut numbers = items(value).iter().map(number);
                numbers.try_for_each(|number| in_range(number, least, most))
            }
            Self::Rising { numbers_max } => {
                let numbers: Vec<u64> = items(value).iter().map(number).collect();
                let is_rising = numbers.windows(2).all(|pair| pair[0] < pair[1]);
                if numbers.len() > numbers_max || !is_rising {
                    return Err(format!("it must be at most {numbers_max} rising numbers"));
                }
                Ok(())
            }
            Self::Items { most } => short_enough(items(value).len(), most, "entries"),
            Self::Text { chars_max } => {
                short_enough(text(value).chars().count(), chars_max, "characters")
            }
            Self::Path { bytes_max } => short_enough(text(value).len(), bytes_max, "bytes"),
            Self::Directory { bytes_max } => {
                if text(value).is_empty() {
                    return Err("it must name a directory".to_owned());
                }
                short_enough(text(value).len(), bytes_max, "bytes")
            }
            Self::Page { chars_max } => {
                let address = text(value);
                let is_page = (address.starts_with("https://") || address.starts_with("http://"))
                    && !address.contains(['#', ' ', '"', '<', '>']);
                if !address.is_empty() && !is_page {
                    return Err("it must begin with https:// or http:// and have no `#`".to_owned());
                }
                short_enough(address.chars().count(), chars_max, "characters")
            }
            Self::OfType(_) | Self::None { .. } => Ok(()),
        }
    }

    /// The bounds in words, where the explanation of a setting leaves them to be said.
    pub(super) fn words(&self) -> Option<String> {
        match self {
            Self::OfType(_) | Self::None { .. } => None,
            bounds => Some(bounds.to_string()),
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number { least, most } => {
                write!(f, "{} to {}", grouped(least), grouped(most))
            }
            Self::ZeroOr { least, most } => {
                write!(f, "0, or {} to {}", grouped(least), grouped(most))
            }
            Self::Each { least, most } => {
                write!(f, "each {} to {}", grouped(least), grouped(most))
            }
            Self::Rising { numbers_max } => write!(f, "at most {numbers_max} rising numbers"),
            Self::Items { most } => write!(f, "at most {} entries", grouped(most as u64)),
            Self::Text { chars_max } | Self::Page { chars_max } => {
                write!(f, "at most {} characters", grouped(chars_max as u64))
            }
            Self::Path { bytes_max } | Self::Directory { bytes_max } => {
                write!(f, "at most {} bytes", grouped(bytes_max as u64))
            }
            Self::OfType(form) => f.write_str(form),
            Self::None { because } => f.write_str(because),
        }
    }
}

fn in_range(number: u64, least: u64, most: u64) -> Result<(), String> {
    if number < least {
        return Err(format!("{number} is too small; the least is {least}"));
    }
    if number > most {
        return Err(format!("{number} is too large; the most is {most}"));
    }
    Ok(())
}

fn short_enough(length: usize, most: usize, unit: &str) -> Result<(), String> {
    if length > most {
        return Err(format!("it has {length} {unit}; the most is {most}"));
    }
    Ok(())
}

/// `1048576` → `1_048_576`, as TOML may have it as well.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

/// The settings' types are numbers, lists and texts where their bounds are of such; a test looks at each.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(u64::MAX)
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_says_what_is_wrong_and_lets_the_ends_through() {
        let page = Bounds::Page { chars_max: 20 };
        let from_to = Bounds::ZeroOr {
            least: 10,
            most: 20,
        };
        let cases = [
            (Bounds::Number { least: 2, most: 3 }, json!(2), None),
            (Bounds::Number { least: 2, most: 3 }, json!(3), None),
            (
                Bounds::Number { least: 2, most: 3 },
                json!(1),
                Some("1 is too small; the least is 2"),
            ),
            (
                Bounds::Number { least: 2, most: 3 },
                json!(4),
                Some("4 is too large; the most is 3"),
            ),
            (from_to, json!(0), None),
            (from_to, json!(10), None),
            (from_to, json!(9), Some("it must be 0, or 10 at least")),
            (from_to, json!(21), Some("21 is too large; the most is 20")),
            (Bounds::Each { least: 1, most: 5 }, json!([1, 5]), None),
            (
                Bounds::Each { least: 1, most: 5 },
                json!([1, 0]),
                Some("0 is too small; the least is 1"),
            ),
            (Bounds::Rising { numbers_max: 2 }, json!([1, 2]), None),
            (
                Bounds::Rising { numbers_max: 2 },
                json!([2, 2]),
                Some("it must be at most 2 rising numbers"),
            ),
            (
                Bounds::Rising { numbers_max: 2 },
                json!([1, 2, 3]),
                Some("it must be at most 2 rising numbers"),
            ),
            (Bounds::Items { most: 1 }, json!(["a"]), None),
            (
                Bounds::Items { most: 1 },
                json!(["a", "b"]),
                Some("it has 2 entries; the most is 1"),
            ),
            (Bounds::Text { chars_max: 2 }, json!("商店"), None),
            (
                Bounds::Text { chars_max: 2 },
                json!("abc"),
                Some("it has 3 characters; the most is 2"),
            ),
            (
                Bounds::Path { bytes_max: 5 },
                json!("商店"),
                Some("it has 6 bytes; the most is 5"),
            ),
            (Bounds::Path { bytes_max: 5 }, json!(""), None),
            (
                Bounds::Directory { bytes_max: 5 },
                json!(""),
                Some("it must name a directory"),
            ),
            (page, json!(""), None),
            (page, json!("https://a.example"), None),
            (
                page,
                json!("https://a.example/#b"),
                Some("it must begin with https:// or http:// and have no `#`"),
            ),
            (
                page,
                json!("https://a.example/long"),
                Some("it has 22 characters; the most is 20"),
            ),
        ];
        for (bounds, value, wrong) in cases {
            let found = bounds.check(&value).err();
            assert_eq!(found.as_deref(), wrong, "{bounds:?} {value}");
        }
    }

    #[test]
    fn numbers_are_printed_in_groups_of_three_digits() {
        for (number, printed) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1_000"),
            (12_345, "12_345"),
            (1_048_576, "1_048_576"),
        ] {
            assert_eq!(grouped(number), printed);
        }
    }
}
