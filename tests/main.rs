//! Behaviour against the real server, in one binary.
