//! Kinds of events: what each feature declares, and the list of all that the program is built with.
//!
//! Invariants: a kind is one `static` in the room that emits it, with its name, a sentence in English and in
//! Chinese, and the shape of its data; nothing here knows any of them. A [`Catalogue`] gives each a bit in the
//! order in which they are listed, so that who wants one is decided by a mask. Bits are of this process alone:
//! rows hold names.

use std::sync::Arc;

use serde_json::Value;

use crate::clock::Timestamp;

/// What may happen.
#[derive(Debug)]
pub struct EventKind {
    /// Its name, in rows and to receivers: the feature, a point, and what happened.
    pub name: &'static str,
    /// What it means, a sentence.
    pub about: &'static str,
    /// The same in Chinese, as the page shows it.
    pub about_zh: &'static str,
    /// The fields of its data.
    pub shape: Shape,
}

/// The fields of a JSON object: all of these, and no others.
pub type Shape = &'static [(&'static str, Holds)];

/// What a field holds.
#[derive(Debug)]
pub enum Holds {
    /// A whole number.
    Integer,
    /// A text.
    Text,
    /// A moment, as RFC 3339.
    Time,
    /// Null or this.
    OrNull(&'static Holds),
    /// A list of objects of this shape.
    List(Shape),
}

impl Holds {
    fn fits(&self, value: &Value) -> bool {
        match (self, value) {
            (Holds::Integer, value) => value.is_i64() || value.is_u64(),
            (Holds::Text, value) => value.is_string(),
            (Holds::Time, Value::String(text)) => Timestamp::parse_rfc3339(text).is_some(),
            (Holds::OrNull(holds), value) => value.is_null() || holds.fits(value),
            (Holds::List(shape), Value::Array(items)) => {
                items.iter().all(|item| fault(shape, item).is_none())
            }
            (Holds::Time | Holds::List(_), _) => false,
        }
    }
}

/// Where an object is not of a shape.
fn fault(shape: Shape, data: &Value) -> Option<String> {
    let Some(fields) = data.as_object() else {
        return Some("is no object".to_owned());
    };
    let extra = fields
        .keys()
        .find(|name| shape.iter().all(|(declared, _)| declared != name));
    if let Some(name) = extra {
        return Some(format!("has {name}, which is not declared"));
    }
    let wrong = shape
        .iter()
        .find(|(name, holds)| !fields.get(*name).is_some_and(|value| holds.fits(value)));
    wrong.map(|(name, holds)| format!("has no {name} that holds {holds:?}"))
}

impl EventKind {
    /// Where an event's data is not of the declared shape; `None` if it is.
    pub fn fault(&self, data: &Value) -> Option<String> {
        fault(self.shape, data)
    }

    /// Whether `pattern` means it: its name, `order.*`, or `*`.
    pub(super) fn fits(&self, pattern: &str) -> bool {
        match pattern.strip_suffix('*') {
            Some(beginning) => self.name.starts_with(beginning),
            None => self.name == pattern,
        }
    }
}

/// Kinds that a mask has bits for.
const KINDS_MAX: usize = u64::BITS as usize;

/// Every kind that an endpoint can choose; cheap to clone. The default one has none.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(Arc<[&'static EventKind]>);

impl Catalogue {
    /// Of what the features declare.
    ///
    /// # Panics
    ///
    /// If two are called alike or there are too many: the program is wrong then, and no start succeeds.
    pub fn of(features: &[&[&'static EventKind]]) -> Self {
        let kinds: Arc<[&'static EventKind]> = features.concat().into();
        assert!(kinds.len() <= KINDS_MAX, "a mask has {KINDS_MAX} bits");
        for (at, kind) in kinds.iter().enumerate() {
            let is_new = kinds[..at].iter().all(|before| before.name != kind.name);
            assert!(is_new, "two kinds of events are called {}", kind.name);
        }
        Self(kinds)
    }

    /// All of them, in the order in which they were listed.
    pub fn kinds(&self) -> &[&'static EventKind] {
        &self.0
    }

    /// The bit of a kind; none, which nobody wants, of one that was never listed.
    pub(super) fn bit(&self, kind: &'static EventKind) -> u64 {
        let at = self.0.iter().position(|known| std::ptr::eq(*known, kind));
        debug_assert!(at.is_some(), "{} is in no list of events", kind.name);
        at.map_or(0, |at| 1 << at)
    }

    /// The bits of the kinds that some of these patterns mean.
    pub(super) fn mask(&self, patterns: &[String]) -> u64 {
        let bits = self.0.iter().enumerate();
        bits.filter(|(_, kind)| patterns.iter().any(|pattern| kind.fits(pattern)))
            .fold(0, |mask, (at, _)| mask | 1 << at)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    static MADE: EventKind = EventKind {
        name: "thing.made",
        about: "A thing was made.",
        about_zh: "已制作",
        shape: &[
            ("id", Holds::Integer),
            ("at", Holds::Time),
            ("by", Holds::OrNull(&Holds::Text)),
            ("parts", Holds::List(&[("id", Holds::Integer)])),
        ],
    };
    static LOST: EventKind = EventKind {
        name: "thing.lost",
        about: "A thing was lost.",
        about_zh: "已丢失",
        shape: &[],
    };

    #[test]
    fn data_has_all_the_declared_fields_and_no_others() {
        let whole =
            json!({"id": 1, "at": "2026-11-11T00:00:00Z", "by": null, "parts": [{"id": 2}]});
        assert_eq!(MADE.fault(&whole), None);
        for (field, wrong) in [
            ("id", json!("1")),
            ("id", json!(1.5)),
            ("at", json!("yesterday")),
            ("by", json!(7)),
            ("parts", json!([{"id": null}])),
            ("parts", json!([{}])),
            ("parts", json!({})),
            ("more", json!(1)),
        ] {
            let mut data = whole.clone();
            data[field] = wrong;
            let fault = MADE.fault(&data);
            assert!(fault.is_some_and(|fault| fault.contains(field)), "{data}");
        }
        let mut less = whole;
        less.as_object_mut().expect("an object").remove("by");
        assert!(MADE.fault(&less).is_some(), "null is not absent");
        assert!(MADE.fault(&json!([])).is_some());
    }

    #[test]
    fn a_kind_has_the_bit_of_its_place_and_patterns_have_those_of_all_they_mean() {
        let catalogue = Catalogue::of(&[&[&MADE], &[&LOST]]);
        assert_eq!((catalogue.bit(&MADE), catalogue.bit(&LOST)), (1, 2));
        let mask = |pattern: &str| catalogue.mask(&[pattern.to_owned()]);
        assert_eq!((mask("*"), mask("thing.*")), (3, 3));
        assert_eq!(
            (mask("thing.lost"), mask("thing.l*"), mask("thin")),
            (2, 2, 0)
        );
    }

    #[test]
    #[should_panic(expected = "two kinds of events are called thing.made")]
    fn two_of_a_name_are_a_mistake() {
        Catalogue::of(&[&[&MADE], &[&MADE]]);
    }
}
