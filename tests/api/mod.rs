//! What each operation does, feature by feature, over HTTP.

mod accounts;
mod catalogue;
mod faktory;
mod files;
mod hoarding;
mod input;
mod mail;
mod orders;
mod replays;
mod reports;
mod revival;
mod sales;
mod schedules;
mod searches;
mod tasks;
mod tls;
mod webhooks;
