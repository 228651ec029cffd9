//! Behaviour against the real server, in one binary.

mod faults;
mod layout;
mod openapi;
