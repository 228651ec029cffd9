//! Ids of tasks: UUIDv7 in the order of commits.
//!
//! Invariant: every id is greater than all before it, also when the clock goes back and across a
//! restart ([`start_above`]), because the relay finds new rows by their ids alone. They are handed
//! out on the writer's thread, so the order of ids is the order of commits.

use std::fmt;
use std::str::FromStr;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::{self, Timestamp};
use crate::store::{Column, Nullable, Param};

/// Key of a task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub Uuid);

/// The one thing that is global here: an enqueue happens deep inside others' transactions, which
/// carry no handle, and the order must hold over all of them.
static LAST: Mutex<u128> = Mutex::new(0);

impl TaskId {
    /// A new one of the moment `now`, greater than every one before.
    pub fn next(now: Timestamp) -> Self {
        let mut last = LAST.lock();
        *last = clock::uuid_at(now).as_u128().max(*last + 1);
        Self(Uuid::from_u128(*last))
    }

    /// From now on all are greater than `id`, which a process before this one handed out.
    pub(super) fn start_above(id: TaskId) {
        let mut last = LAST.lock();
        *last = id.0.as_u128().max(*last);
    }

    /// As it stands in the table.
    pub fn text(self) -> Text {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        self.0.hyphenated().encode_lower(&mut text);
        Text(text)
    }
}

/// An id's text, without a place on the heap.
pub struct Text([u8; uuid::fmt::Hyphenated::LENGTH]);

impl<'a> From<&'a Text> for Param<'a> {
    fn from(text: &'a Text) -> Self {
        Param::Text(std::str::from_utf8(&text.0).unwrap_or_default())
    }
}

impl Nullable for &Text {
    const NULL: Param<'static> = Param::NullText;
}

impl Column for TaskId {
    fn read(value: Param<'_>) -> Option<Self> {
        match value {
            Param::Text(text) => text.parse().ok(),
            Param::NullInt | Param::NullText | Param::Int(_) => None,
        }
    }
}

impl FromStr for TaskId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::from_str(text).map(TaskId)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_only_grow_even_above_a_future_one() {
        let now = Timestamp(1_700_000_000_000_000);
        let mut before = TaskId::next(now);
        for round in 0..2_000 {
            if round == 1_000 {
                let hour_ahead = before.0.as_u128() + (3_600_000u128 << 80);
                TaskId::start_above(TaskId(Uuid::from_u128(hour_ahead)));
            }
            let id = TaskId::next(now);
            assert!(id > before && id.to_string() > before.to_string());
            assert_eq!(id.0.get_version_num(), 7);
            before = id;
        }
    }
}
