//! Keys: a kind and an id of any bytes, their text form, and patterns over that form.
//!
//! Invariants: a key is hashed once, where it is made, with a seed of this process, so that a client
//! can't choose ids that collide; its text is `kind:id`, has no line breaks whatever the id, and reads back
//! as the same key.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

/// What tells the entries of one kind apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    /// A row's id.
    Int(i64),
    /// Anything else: a search, a range of dates, a token.
    Bytes(Arc<[u8]>),
}

impl From<i64> for Id {
    fn from(id: i64) -> Self {
        Self::Int(id)
    }
}

impl From<&str> for Id {
    fn from(id: &str) -> Self {
        Self::Bytes(id.as_bytes().into())
    }
}

impl From<String> for Id {
    fn from(id: String) -> Self {
        Self::Bytes(id.into_bytes().into())
    }
}

impl From<&[u8]> for Id {
    fn from(id: &[u8]) -> Self {
        Self::Bytes(id.into())
    }
}

impl Id {
    /// Bytes that it takes beside its own size.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Id::Int(_) => 0,
            Id::Bytes(bytes) => bytes.len(),
        }
    }

    /// The id in a key's text. Bytes that are a whole number in its usual spelling are written so that
    /// they don't read back as a number.
    fn write(&self, text: &mut String) {
        let bytes = match self {
            Id::Int(id) => {
                // Writing to a text can't fail.
                let _infallible = write!(text, "{id}");
                return;
            }
            Id::Bytes(bytes) => bytes,
        };
        if spells_a_number(bytes) {
            let _infallible = write!(text, "\\x{:02x}", bytes[0]);
            text.push_str(&String::from_utf8_lossy(&bytes[1..]));
            return;
        }
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    c if c.is_control() => {
                        let mut utf8 = [0; 4];
                        for byte in c.encode_utf8(&mut utf8).bytes() {
                            let _infallible = write!(text, "\\x{byte:02x}");
                        }
                    }
                    c => text.push(c),
                }
            }
            for byte in chunk.invalid() {
                let _infallible = write!(text, "\\x{byte:02x}");
            }
        }
    }

    /// Reads what [`Id::write`] wrote. `None` for a backslash that begins nothing known.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if spells_a_number(text.as_bytes()) {
            return text.parse().ok().map(Id::Int);
        }
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            if *first != b'\\' {
                bytes.push(*first);
                continue;
            }
            match rest {
                [b'\\', after @ ..] => {
                    bytes.push(b'\\');
                    rest = after;
                }
                [b'x', high, low, after @ ..] => {
                    let digit = |byte: &u8| char::from(*byte).to_digit(16);
                    bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                    rest = after;
                }
                _ => return None,
            }
        }
        Some(Id::Bytes(bytes.into()))
    }
}

/// Whether these bytes are how [`Id::Int`] is written.
fn spells_a_number(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse::<i64>().ok().map(|id| (text, id)))
        .is_some_and(|(text, id)| id.to_string() == text)
}

/// The place of a kind in the cache's list of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KindIndex(pub(super) u16);

/// What an entry is found by.
#[derive(Clone, Debug)]
pub struct CacheKey {
    pub(super) kind: KindIndex,
    pub(super) id: Id,
    pub(super) hash: u64,
}

impl CacheKey {
    pub(super) fn new(seed: &RandomState, kind: KindIndex, id: Id) -> Self {
        let hash = match &id {
            Id::Int(id) => seed.hash_one((kind.0, *id)),
            Id::Bytes(bytes) => seed.hash_one((kind.0, &**bytes)),
        };
        Self { kind, id, hash }
    }

    /// What tells it apart from the others of its kind.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// `kind:id`.
    pub(super) fn text(&self, kind_name: &str) -> String {
        let mut text = String::with_capacity(kind_name.len() + 24);
        text.push_str(kind_name);
        text.push(':');
        self.id.write(&mut text);
        text
    }
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.kind == other.kind && self.id == other.id
    }
}

impl Eq for CacheKey {}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Takes a key's own hash as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OwnHash;

/// See [`OwnHash`].
#[derive(Default)]
pub(super) struct OwnHasher(u64);

impl BuildHasher for OwnHash {
    type Hasher = OwnHasher;

    fn build_hasher(&self) -> OwnHasher {
        OwnHasher(0)
    }
}

impl Hasher for OwnHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only keys are hashed with it, and they write one number; anything else still counts.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Which keys are meant: a text in which each `*` stands for any characters, also for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// `*`
    Everything,
    /// `kind:*`
    Kind(String),
    /// One key, spelt out.
    One(String),
    /// Anything else, as the parts between the stars.
    Parts(Vec<String>),
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Self {
        if !text.contains('*') {
            return Self::One(text.to_owned());
        }
        if text.bytes().all(|byte| byte == b'*') {
            return Self::Everything;
        }
        if let Some((kind, "*")) = text.split_once(':')
            && !kind.contains('*')
        {
            return Self::Kind(kind.to_owned());
        }
        Self::Parts(text.split('*').map(str::to_owned).collect())
    }

    /// Whether a key's text is meant.
    pub(super) fn matches(&self, text: &str) -> bool {
        let parts = match self {
            Pattern::Everything => return true,
            Pattern::Kind(kind) => {
                return text.split_once(':').is_some_and(|(name, _)| name == kind);
            }
            Pattern::One(key) => return text == key,
            Pattern::Parts(parts) => parts,
        };
        let [first, middle @ .., last] = parts.as_slice() else {
            return false;
        };
        let Some(rest) = text.strip_prefix(first.as_str()) else {
            return false;
        };
        let Some(mut rest) = rest.strip_suffix(last.as_str()) else {
            return false;
        };
        // The leftmost place of each part leaves the most to those after it.
        for part in middle {
            match rest.find(part.as_str()) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(id: Id) -> CacheKey {
        CacheKey::new(&RandomState::new(), KindIndex(0), id)
    }

    proptest! {
        #[test]
        fn any_bytes_read_back_from_their_text(bytes: Vec<u8>) {
            let id = Id::from(&bytes[..]);
            let text = key(id.clone()).text("kind");
            prop_assert!(!text.contains(['\n', '\r', '\0']));
            let (_, written) = text.split_once(':').expect("a colon");
            prop_assert_eq!(Id::parse(written), Some(id));
        }

        #[test]
        fn any_number_reads_back_and_is_not_its_digits(number: i64) {
            let text = key(Id::Int(number)).text("kind");
            let (_, written) = text.split_once(':').expect("a colon");
            prop_assert_eq!(Id::parse(written), Some(Id::Int(number)));
            let digits = Id::from(number.to_string());
            let text = key(digits.clone()).text("kind");
            let (_, written) = text.split_once(':').expect("a colon");
            prop_assert_eq!(Id::parse(written), Some(digits));
        }

        #[test]
        fn a_pattern_matches_as_a_search_through_all_splits_would(
            pattern in "[ab*]{0,6}", text in "[ab]{0,8}",
        ) {
            fn slow(pattern: &str, text: &str) -> bool {
                match pattern.chars().next() {
                    None => text.is_empty(),
                    Some('*') => {
                        (0..=text.len()).any(|at| slow(&pattern[1..], &text[at..]))
                    }
                    Some(c) => text.starts_with(c) && slow(&pattern[1..], &text[1..]),
                }
            }
            prop_assert_eq!(Pattern::parse(&pattern).matches(&text), slow(&pattern, &text));
        }
    }

    #[test]
    fn a_broken_escape_names_no_key() {
        for text in ["a\\", "\\x", "\\x1", "\\xg0", "\\n"] {
            assert_eq!(Id::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_pattern_over_a_whole_kind_is_known_as_such() {
        assert_eq!(
            Pattern::parse("product:*"),
            Pattern::Kind("product".to_owned())
        );
        assert_eq!(Pattern::parse("**"), Pattern::Everything);
        assert_eq!(Pattern::parse("a:b"), Pattern::One("a:b".to_owned()));
        assert!(matches!(Pattern::parse("*:b"), Pattern::Parts(_)));
        assert!(Pattern::parse("product:*").matches("product:7"));
        assert!(!Pattern::parse("product:*").matches("products:7"));
    }
}
