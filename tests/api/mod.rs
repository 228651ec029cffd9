//! What each operation does, feature by feature, over HTTP.

mod accounts;
mod catalogue;
mod input;
mod orders;
mod reports;
mod sales;
mod tasks;
mod tls;
