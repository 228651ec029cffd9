//! Behaviour against the real server, in one binary.

mod api;
mod authz;
mod cache;
mod faults;
mod layout;
mod openapi;
mod oversell;
mod statements;
mod support;
