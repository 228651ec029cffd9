//! What each operation does, feature by feature, over HTTP.

pub mod accounts;
pub mod catalogue;
pub mod faktory;
mod files;
mod hoarding;
mod input;
pub mod mail;
mod orders;
pub mod replays;
pub mod reports;
pub mod revival;
pub mod sales;
pub mod schedules;
mod searches;
pub mod tasks;
mod tls;
pub mod webhooks;
