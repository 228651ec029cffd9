//! Onrush: a shop's catalogue, orders, stock and flash sales in one process.
pub mod check;
pub mod clock;
pub mod config;
pub mod http;
pub mod monitor;
pub mod store;
