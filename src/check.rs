//! Checks of what came from outside: names the field and the reason, and knows nothing of HTTP.
//!
//! Invariants: all faults of one input are collected before it is refused, so that a caller mends
//! them in one go; text never holds control characters, so it is safe in logs, CSV and terminals.

mod numbers;

use std::borrow::Cow;
use std::fmt::Display;

use serde::de::DeserializeOwned;

use numbers::require_kept_numbers;

/// How serde_json tells of a float beyond all floats, which it counts among what is no JSON.
const OUT_OF_RANGE: &str = "number out of range";
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

    /// As [`Checks::text`], for what people are to read and write down: it has something to be seen,
    /// and does not turn round the text that it is shown in. Checked is what [`trimmed`] left.
    pub fn name(&mut self, field: &str, value: &str, chars_min: usize, chars_max: usize) {
        self.text(field, value, chars_min, chars_max);
        let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if let Some(c) = value.chars().find(|c| turns(*c)) {
            self.hidden(field, c);
        } else if !value.is_empty() && value.chars().all(|c| c.is_whitespace() || is_invisible(c)) {
            let reason = "must have a character that can be seen";
            self.0.push(FieldError::new(field, reason));
        }
    }

    /// As [`Checks::text`], for what programs compare: two that look alike are alike.
    pub fn key(&mut self, field: &str, value: &str, chars_min: usize, chars_max: usize) {
        self.text(field, value, chars_min, chars_max);
        if value != value.trim() {
            let reason = "must not begin or end with white space";
            self.0.push(FieldError::new(field, reason));
        }
        let is_hidden = |c: char| is_invisible(c) || (c.is_whitespace() && c != ' ');
        if let Some(c) = value
            .trim()
            .chars()
            .find(|c| is_hidden(*c) && !c.is_control())
        {
            self.hidden(field, c);
        }
    }

    /// A name that is part of addresses, keys and labels.
    pub fn path_name(&mut self, field: &str, value: &str) {
        let holds = (1..=100).contains(&value.len())
            && value
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte));
        self.require(
            holds,
            field,
            "must be 1 to 100 letters, digits or any of _ . : -",
        );
        // Whatever sends or passes on an address takes such a part out of it.
        self.require(
            !matches!(value, "." | ".."),
            field,
            "must not be . or .., which no address can end in",
        );
    }

    fn hidden(&mut self, field: &str, c: char) {
        let reason = format!(
            "must not contain the invisible character U+{:04X}",
            u32::from(c)
        );
        self.0.push(FieldError::new(field, reason));
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

/// Characters that an address may have.
pub const ADDRESS_CHARS_MAX: usize = 254;
const NO_ADDRESS: &str = "must be an address such as name@example.com";

/// An address of mail as it is kept and compared, in lower case and without space around it, or why it is
/// none. Letters of any script may stand in it; what only a quoted name may hold may not, and neither may
/// what ends an address or begins another one in the head of a mail.
pub fn address(text: &str) -> Result<String, &'static str> {
    // Nothing is made of what is longer: letters may only double as they become small.
    if text.len() > 8 * ADDRESS_CHARS_MAX {
        return Err(NO_ADDRESS);
    }
    let address = text.trim().to_lowercase();
    let (name, domain) = address.split_once('@').unwrap_or_default();
    let is_word = |c: char| match c.is_ascii() {
        true => c.is_ascii_alphanumeric(),
        false => !c.is_control() && !c.is_whitespace() && !is_invisible(c),
    };
    let is_atom = |atom: &str| {
        !atom.is_empty()
            && atom
                .chars()
                .all(|c| is_word(c) || "!#$%&'*+/=?^_`{|}~-".contains(c))
    };
    let is_label = |label: &str| {
        (1..=63).contains(&label.chars().count())
            && label.chars().all(|c| is_word(c) || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let holds = name.len() <= 64
        && name.split('.').all(is_atom)
        && domain.split('.').all(is_label)
        && address.chars().count() <= ADDRESS_CHARS_MAX;
    if holds { Ok(address) } else { Err(NO_ADDRESS) }
}

/// A name as it is kept: without white space around it, and without what editors and web pages leave
/// there unseen.
pub fn trimmed(text: &str) -> &str {
    let is_left_over =
        |c: char| c.is_whitespace() || matches!(c, '\u{ad}' | '\u{200b}' | '\u{2060}' | '\u{feff}');
    text.trim_matches(is_left_over)
}

/// A text as it is searched for, whatever its case, in any alphabet. Each character is folded by itself, so what
/// begins a text begins it folded as well. The program does this because databases do not agree on it: SQLite
/// knows the letters A to Z alone.
pub fn folded(text: &str) -> String {
    // By way of the capitals, which are fewer: ς and σ are one letter, and so are ß and ss.
    text.chars()
        .flat_map(char::to_lowercase)
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
}

/// Whether a character is shown as nothing (Unicode's `Default_Ignorable_Code_Point`, and two blanks).
/// Some of them are at home in names: they join emoji, or part words in Khmer and Persian.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Why a text was not read as what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonError {
    /// It is no JSON; the reason names the place.
    Malformed(String),
    /// It is JSON of another shape.
    Shape(FieldError),
}

/// As [`parse_json`], for what is kept: a number that would not come back as it is is refused.
pub fn parse_kept_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let value = parse_json(bytes)?;
    require_kept_numbers(bytes).map_err(JsonError::Shape)?;
    Ok(value)
}

/// Reads `bytes` as `T`, or says what is wrong and where.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let malformed = |error: &serde_json::Error| {
        JsonError::Malformed(shortened(&error.to_string()).into_owned())
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        if error.inner().is_data() || error.inner().to_string().starts_with(OUT_OF_RANGE) {
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
    if text == OUT_OF_RANGE {
        return FieldError::new(path, numbers::NOT_KEPT);
    }
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

    fn faults(check: impl Fn(&mut Checks)) -> usize {
        let mut checks = Checks::new();
        check(&mut checks);
        checks.finish().map_or_else(|faults| faults.len(), |()| 0)
    }

    #[test]
    fn a_name_can_be_seen_and_a_key_is_what_it_looks_like() {
        let name = |text: &str| faults(|checks| checks.name("name", trimmed(text), 1, 20));
        for good in [
            "Mug 杯子",
            " Mug\u{3000}",
            "\u{feff}Mug\u{200b}",
            "👩\u{200d}🍳 Li",
            "می\u{200c}خواهم",
            "❤\u{fe0f}",
        ] {
            assert_eq!(name(good), 0, "{good:?}");
        }
        for bad in [
            "",
            " \u{a0}\u{3000}",
            "\u{200b}\u{feff}",
            "\u{3164}",
            "\u{200d}",
            "Mug\u{202e}",
            "Mug\u{7}x",
        ] {
            assert_eq!(name(bad), 1, "{bad:?}");
        }
        assert_eq!(trimmed("\u{feff} Mug 杯子\u{200b}\u{3000}"), "Mug 杯子");
        let key = |text: &str| faults(|checks| checks.key("sku", text, 1, 20));
        for good in ["A-1", "A 1", "货号１", "a/b:c"] {
            assert_eq!(key(good), 0, "{good:?}");
        }
        for bad in [
            "",
            " A-1",
            "A-1\u{3000}",
            "A\u{a0}1",
            "A-1\u{200b}",
            "A\u{ad}1",
            "A\u{200d}1",
            "A\n1",
        ] {
            assert_eq!(key(bad), 1, "{bad:?}");
        }
        let part = |text: &str| faults(|checks| checks.path_name("name", text));
        for good in ["mails", "a.b", "...", "-", "a:b_c-d"] {
            assert_eq!(part(good), 0, "{good:?}");
        }
        for bad in ["", ".", "..", " a", "a ", "a/b", "é"] {
            assert_eq!(part(bad), 1, "{bad:?}");
        }
    }

    #[test]
    fn an_address_is_one_and_nothing_beside_it() {
        for (text, read) in [
            ("a@b", "a@b"),
            ("  Anna@Example.com ", "anna@example.com"),
            (
                "first.last+tag@sub.example.co",
                "first.last+tag@sub.example.co",
            ),
            ("o'brien@example.ie", "o'brien@example.ie"),
            ("admin@localhost", "admin@localhost"),
            ("用户@例子.广告", "用户@例子.广告"),
            ("Ünal@Bücher.example\u{3000}", "ünal@bücher.example"),
        ] {
            assert_eq!(address(text).as_deref(), Ok(read));
        }
        let long_name = format!("{}@example.com", "x".repeat(65));
        let long = format!("x@{}", "abc.".repeat(70) + "com");
        for text in [
            "",
            "@",
            "a@",
            "@b",
            "no-at-sign",
            "a@b@c",
            "evil@example.net>",
            "<evil@example.net>",
            "Evil <evil@example.net>",
            "a@example.com,b@example.com",
            "a@example.com;b",
            "a:b@example.com",
            "a(b)@example.com",
            "\"a b\"@example.com",
            "a\\b@example.com",
            "a[b]@example.com",
            "a@[127.0.0.1]",
            "a b@example.com",
            "a\u{200b}@example.com",
            "a\n@example.com",
            "a@example.com\r\nBcc: b@example.com",
            ".a@example.com",
            "a.@example.com",
            "a..b@example.com",
            "a@example..com",
            "a@example.com.",
            "a@-example.com",
            "a@example-.com",
            "a@exa_mple.com",
            "a@example.com/x",
            &long_name,
            &long,
            &"x".repeat(1_000_000),
        ] {
            assert_eq!(address(text), Err(NO_ADDRESS), "{text:?}");
        }
    }

    #[test]
    fn length_counts_characters_not_bytes() {
        let mut checks = Checks::new();
        checks.text("name", "ééé", 1, 3);
        checks.paragraphs("description", "a\nb\tc", 0, 5);
        assert_eq!(checks.finish(), Ok(()));
    }
}
