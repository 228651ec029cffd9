//! Every statement about tasks, in a file for each concept.
//!
//! Callers name them `sql::start`, whichever file it is in, and so do the figures of statements: no two
//! have the same name.

mod batches;
mod delivery;
mod edges;
mod external;
mod locks;
mod queues;
mod runs;
mod tasks;

use super::{Entry, RetryPolicy, TaskId};
use crate::store::{Row, StoreError};

pub use self::batches::*;
pub(super) use self::delivery::*;
pub(super) use self::edges::*;
pub use self::external::*;
pub(super) use self::locks::*;
pub(super) use self::queues::*;
pub use self::runs::*;
pub use self::tasks::*;

/// A stored policy. A text that this version does not know counts as the default.
fn policy(text: Option<String>) -> Option<RetryPolicy> {
    text.and_then(|text| serde_json::from_str(&text).ok())
}

fn entry(row: &Row<'_>, id: TaskId, from: usize) -> Result<Entry, StoreError> {
    Ok(Entry {
        queue: row.get(from)?,
        priority: small(row, from + 1)?,
        run_at: row.get(from + 2)?,
        id,
    })
}

fn small(row: &Row<'_>, index: usize) -> Result<u8, StoreError> {
    u8::try_from(row.get::<i64>(index)?)
        .map_err(|_| StoreError::Corrupt(format!("column {index} is no priority")))
}
