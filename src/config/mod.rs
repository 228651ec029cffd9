//! Settings: what an operator may change, and what it is changed with.
//!
//! Order: defaults < `onrush.toml` < environment < flags. No file is needed. Invariants: an unknown key is
//! refused with the nearest known one; a value out of its bounds is refused with the key and the source; a
//! secret never appears in [`Loaded::effective`], in a message or in debug output.
//!
//! In this folder: `sections.rs` (each setting with its default, meaning and bounds), `bounds.rs` (what bounds
//! there are), `values.rs` (types), `keys.rs` (dotted names), `sources.rs` (file, environment, flags),
//! `checks.rs` (what settings need of each other), `printed.rs` (what is shown), `error.rs`.
//!
//! # Which limits are settings
//!
//! A limit is a setting where the right value depends on the machine, the shop or its customers: memory and
//! disk, connections and waits, how long something is kept, how often a stranger may try. Every other limit is a
//! named constant beside the code that it bounds, with its reason. A new limit is a constant until an operator
//! has a reason to change it. The constants are of these kinds:
//!
//! - **What the API promises.** Clients are written against it, and a row that one server takes must be taken by
//!   the next: lengths of names and texts, the largest price and stock (`product::UNIT_AMOUNT_MAX`,
//!   `STOCK_MAX`), the longest page of a list (`product::PAGE_MAX`), the longest sale
//!   (`flash_sale` `WINDOW_SECONDS_MAX`), the longest retry wait (`task/retry.rs` `DELAY_MS_MAX`), the ends of
//!   a password's length (`auth/password.rs`), how long an old webhook secret may sign, the longest URL that
//!   is called.
//! - **What another's format or protocol says.** SQLite's pages and log frames (`store/damage.rs`,
//!   `store/belong.rs`), the Faktory protocol's reservations and priorities, HTTP/2's windows and resets
//!   (`http/`), the schedule of retries of Standard Webhooks (`WAITS_SECONDS`).
//! - **What was measured.** How much is done in one step so that others have their turn: rows of a batch,
//!   slices of a long look, wake-ups for each processor (`store/writer.rs` `AWAKE_PER_CPU`), connections
//!   accepted in a row, what a search's walk takes at once. Another value makes one thing slower and nothing
//!   possible.
//! - **How a structure is built.** Shards, slots, buckets, sketches (`cache/freshness.rs` `SLOTS`,
//!   `auth/throttle.rs` `BUCKET`): the code's own figures for errors and memory hold for these numbers.
//! - **What a person sees.** Lines of a mail, problems of a verdict, characters of a quoted value: the rest is
//!   counted, and a longer text would help no one.
//! - **What only an attacker or a fault reaches.** Clients that a tarpit remembers, the head of a file that was
//!   not written by us, words of a search, names of a zone: far above what is honest and far below what hurts.

mod bounds;
mod checks;
mod error;
mod keys;
mod printed;
mod sections;
mod sources;
#[cfg(test)]
mod tests;
mod values;

use std::time::Duration;

pub use error::ConfigError;
pub use printed::{Shown, commented_file};
pub use sections::{
    Auth, Cache, Data, Database, Faktory, FlashSales, Import, Log, Mail, Orders, Outgoing,
    Products, Reports, ScheduleEntry, Schedules, Server, Settings, Shop, Tasks, Webhooks,
};
pub use sources::{Inputs, Loaded, Sources, load};
pub use values::{
    Eviction, Language, LogFormat, MASK, MailRule, MailTls, Secret, is_secret_header, mask_headers,
};

/// Name of the settings file, looked for in the working directory unless `--config` names one.
pub const FILE_NAME: &str = "onrush.toml";

/// A duration setting in milliseconds, as a [`Duration`].
pub fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}
