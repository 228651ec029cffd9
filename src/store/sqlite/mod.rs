//! The record in a file: one SQLite database, one thread that writes, many readers.
//!
//! Invariants: only this room and [`super::tx`] know SQLite; the database is opened, looked over and folded by
//! one process at a time ([`super::DataDir`]).

pub(super) mod belong;
pub(super) mod checkpoint;
pub(super) mod connection;
pub(super) mod damage;
pub(super) mod sums;
pub(super) mod writer;
