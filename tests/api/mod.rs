//! What each operation does, feature by feature, over HTTP.

mod accounts;
mod catalogue;
mod input;
mod mail;
mod orders;
mod sales;
mod tasks;
mod tls;
mod webhooks;
