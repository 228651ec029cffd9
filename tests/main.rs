//! Behaviour against the real server, in one binary.

mod layout;
