//! The HTTP edge: accept loop, limits, error answers, bodies, documentation, files.
//!
//! Invariants: no feature and no SQL is named here; every answer passes through [`edge::Edge`], so
//! that each one has a request id, security headers and a metric, and each failure is a
//! [`problem::Problem`]; every limit comes from [`crate::config::Server`].

mod answer;
pub mod body;
pub mod client;
pub mod compress;
pub mod connections;
pub mod docs;
pub mod edge;
pub mod files;
pub mod json;
pub mod listen;
pub mod outgoing;
mod pace;
pub mod probes;
pub mod problem;
pub mod request;
pub mod serve;
pub mod shares;
mod tarpit;
pub mod tls;

pub use connections::note_known;
pub use json::{
    Body, Created, CsvBody, NoContent, OptionalBody, Printed, PrintedTagged, Tagged, read_cursor,
};
pub use problem::{Failure, Problem, fails};
pub use request::{ClientAddr, RequestId, RequestInfo, TraceParent, comes_from, network_of};

/// Fields that an answer has when it leaves: room for them is made once.
const HEADERS_USUAL: usize = 12;
