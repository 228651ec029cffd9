//! What the answers of a run cost the server, and whether they were right.

use std::net::SocketAddr;

use crate::load::Seen;
use crate::support::{Process, Report};

/// What the load of `run` saw, and processor µs of the server for each answer.
pub fn costed(
    process: &Process,
    run: impl FnOnce(SocketAddr) -> anyhow::Result<Seen>,
) -> anyhow::Result<(Seen, f64)> {
    let before = process.cpu_seconds()?;
    let seen = run(process.address)?;
    let spent = process.cpu_seconds()? - before;
    let micros = spent * 1e6 / seen.answered.max(1) as f64;
    Ok((seen, micros))
}

/// Notes wrong answers.
pub fn judge(report: &mut Report, what: &str, seen: &Seen) {
    if let Some(first) = &seen.first_wrong {
        report.wrong(format!(
            "{what}: {} wrong answers, first {first}",
            seen.wrong
        ));
    }
    if seen.broken > 0 {
        report.wrong(format!("{what}: {} connections broke", seen.broken));
    }
}
