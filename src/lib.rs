//! Onrush: a shop's catalogue, orders, stock and flash sales in one process.
//!
//! Code map, from the outside in; imports point down only (`tests/layout.rs` enforces it):
//!
//! | module | owns |
//! |---|---|
//! | [`cli`] | commands, exit codes, what a person sees in the terminal |
//! | [`app`] | builds each handle once, start order, reverse stop |
//! | [`flash_sale`] | sales, the gate, claims, rehearsal |
//! | [`report`] | sales reports |
//! | [`order`] | orders, their states, idempotency, import of past orders |
//! | [`allotment`] | what is set aside of products for sales |
//! | [`product`] | the catalogue, stock and its hash-chained ledger |
//! | [`user`] | accounts, as staff see and change them |
//! | [`schedule`] | what is done again and again, and what came of each time |
//! | [`webhook`] | events, told to other people's servers |
//! | [`mail`] | mails, handed to the shop's mail server |
//! | [`faktory`] | the Faktory protocol: workers and producers of tasks in any language |
//! | [`task`] | what is to be done later, by whom, and what came of it |
//! | [`auth`] | credentials, sessions, API keys, roles, the caller |
//! | [`http`] | accept loop, limits, problems, documentation, files |
//! | `kept` | rows of the database that are kept in the cache |
//! | [`store`] | the database: readers, the one writer, migrations |
//! | [`cache`] | what is read again and again, in memory and on disk |
//! | [`monitor`] | metrics, health, logs |
//! | [`sheet`] | tables as spreadsheet programs write and read them |
//! | [`config`], [`zone`], [`check`], [`clock`], `threads` | settings, time zones, input checks, time, work that gives way |
//!
//! One claim, in one direction: `flash_sale/api.rs` asks the gate, which may refuse early; then one
//! `store.write` runs `flash_sale::claim`, whose conditional update in `allotment/sql.rs` decides;
//! ledger row, claim and order join the same transaction; the writer commits for everyone who
//! waits; after the commit the gate is told, and the answer goes out.

pub mod allotment;
pub mod app;
pub mod auth;
pub mod cache;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod faktory;
pub mod flash_sale;
pub mod http;
mod kept;
pub mod mail;
pub mod monitor;
pub mod order;
pub mod product;
pub mod report;
pub mod schedule;
pub mod sheet;
pub mod store;
pub mod task;
mod threads;
pub mod user;
pub mod webhook;
pub mod zone;
