//! Every setting and limit: its default, its meaning, where its value came from.
//!
//! Order: defaults < `onrush.toml` < environment < flags. No file is needed. Invariants: no limit
//! lives anywhere else in the code; an unknown key is refused with the nearest known one; a secret
//! never appears in [`Settings::effective`].

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
pub use printed::commented_file;
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
