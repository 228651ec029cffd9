//! What each operation does, feature by feature, over HTTP.

mod accounts;
mod catalogue;
mod faktory;
mod input;
mod orders;
mod reports;
mod sales;
mod schedules;
mod tasks;
mod tls;
