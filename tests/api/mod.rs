//! What each operation does, feature by feature, over HTTP.

mod accounts;
mod catalogue;
mod faktory;
mod input;
mod orders;
mod sales;
mod tasks;
mod tls;
