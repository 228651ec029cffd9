//! Behaviour against the real server, in one binary.

mod api;
mod authz;
mod cache;
mod faults;
mod layout;
mod openapi;
mod oversell;
#[cfg(debug_assertions)]
mod postgres;
mod statements;
mod support;
