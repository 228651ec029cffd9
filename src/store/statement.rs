//! A statement with the name under which it is counted.
//!
//! Invariant: the name comes from where the statement is written, so it can't be forgotten, and two
//! in one function must be told apart (a test reads the sources for that).

/// A statement's text and name; made by [`crate::sql!`].
#[derive(Clone, Copy, Debug)]
pub struct Sql<'a> {
    place: &'static str,
    part: &'static str,
    /// The text.
    pub(super) text: &'a str,
}

impl<'a> Sql<'a> {
    /// For [`crate::sql!`]: `place` is the path of a function inside the one that holds the statement.
    pub fn new(place: &'static str, part: &'static str, text: &'a str) -> Self {
        Self { place, part, text }
    }

    /// Feature and function, such as `task.start`, and the part of it where there are several.
    pub fn name(&self) -> String {
        let mut words: Vec<&str> = self
            .place
            .split("::")
            .filter(|word| !matches!(*word, "onrush" | "here" | "{{closure}}"))
            .collect();
        // Of what follows, only the function is told: a room may have a folder of such files.
        if let Some(at) = words.iter().position(|word| *word == "sql") {
            words.drain(at..words.len() - 1);
        }
        words.extend((!self.part.is_empty()).then_some(self.part));
        words.join(".")
    }
}

/// Names the statement `$text` after the function that it stands in; with `$part` before it, where
/// that function has several.
#[macro_export]
macro_rules! sql {
    ($text:expr) => {
        $crate::sql!("", $text)
    };
    ($part:literal, $text:expr) => {
        $crate::store::Sql::new(
            {
                fn here() {}
                std::any::type_name_of_val(&here)
            },
            $part,
            $text,
        )
    };
}
