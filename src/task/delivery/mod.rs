//! The delivery: which task is next, and who gets it.
//!
//! [`Tasks`] is the handle that everyone else holds; behind it one thread ([`relay`]) owns the index of
//! what waits, with its head in memory ([`index`]) and the rest on disk ([`disk`]). Invariant: nothing
//! here is the record of anything. What is lost is found again in the rows, and a task is handed to
//! its worker only by a start that is committed. A worker that waits in [`line`] may be given a task by the
//! transaction that enqueues it.

mod disk;
mod handle;
mod index;
mod line;
#[cfg(test)]
mod model;
mod relay;

pub use self::handle::{Handing, Tasks, continue_ids};
pub use self::index::QueueStats;
pub use self::relay::{IsAway, Stats};
