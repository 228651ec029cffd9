//! What a test asks that puts the program's statements to another database: each that ran, with the types of its
//! parameters.
//!
//! Invariants: a release build keeps nothing; a statement's parameters have the same types at each call, since
//! PostgreSQL is told them once, when it prepares the text.

use super::Sql;

/// A row that is inserted by `Tx::insert`: PostgreSQL answers with its key.
pub(super) const HANDS_BACK_KEY: &str = " RETURNING id";
/// A row that `Tx::lock_row` holds.
pub(super) const LOCKS: &str = " FOR UPDATE";

/// The type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `bigint`.
    Bigint,
    /// `text`.
    Text,
}

/// Remembers a statement that runs, with the types of its parameters.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) fn met(_: Sql<'_>, _: impl Iterator<Item = Kind>) {}

/// Remembers what PostgreSQL is to be sent behind the statement's text.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) fn ends_with(_: Sql<'_>, _: &'static str) {}

#[cfg(debug_assertions)]
pub use kept::{Statement, statements};
#[cfg(debug_assertions)]
pub(super) use kept::{ends_with, met};

#[cfg(debug_assertions)]
mod kept {
    use std::collections::HashMap;
    use std::sync::LazyLock;

    use parking_lot::Mutex;

    use super::{Kind, Sql};

    /// Texts of this process that are remembered; those that come later are not.
    const TEXTS_MAX: usize = 4_096;

    /// A statement that ran.
    #[derive(Clone, Debug)]
    pub struct Statement {
        /// Its name: [`Sql::name`].
        pub name: String,
        /// Its text, with what PostgreSQL is sent behind it.
        pub text: String,
        /// The types of its parameters; more than one list where calls did not agree.
        pub kinds: Vec<Vec<Kind>>,
    }

    static STATEMENTS: LazyLock<Mutex<HashMap<String, Statement>>> = LazyLock::new(Mutex::default);

    pub(in crate::store) fn met(sql: Sql<'_>, kinds: impl Iterator<Item = Kind>) {
        let kinds: Vec<Kind> = kinds.collect();
        with(sql, |statement| {
            if !statement.kinds.contains(&kinds) {
                statement.kinds.push(kinds);
            }
        });
    }

    pub(in crate::store) fn ends_with(sql: Sql<'_>, ending: &'static str) {
        with(sql, |statement| {
            if !statement.text.ends_with(ending) {
                statement.text.push_str(ending);
            }
        });
    }

    fn with(sql: Sql<'_>, change: impl FnOnce(&mut Statement)) {
        // Two functions may have the same text.
        let key = format!("{}\n{}", sql.name(), sql.text);
        let mut all = STATEMENTS.lock();
        let has_room = all.len() < TEXTS_MAX;
        match all.get_mut(&key) {
            Some(known) => change(known),
            None if has_room => {
                let mut new = Statement {
                    name: sql.name(),
                    text: sql.text.to_owned(),
                    kinds: Vec::new(),
                };
                change(&mut new);
                all.insert(key, new);
            }
            None => {}
        }
    }

    /// Every statement that ran in this process, by name.
    pub fn statements() -> Vec<Statement> {
        let mut all: Vec<Statement> = STATEMENTS.lock().values().cloned().collect();
        all.sort_by(|a, b| (&a.name, &a.text).cmp(&(&b.name, &b.text)));
        all
    }
}
