//! What the server says of itself at `/metrics`.

use anyhow::Context;

use crate::support::Process;

/// The values, at one moment, of lines such as `db_commit_seconds_count` or
/// `tasks_total{state="completed",task="t"}`; `None` while there is none, as of a label not yet seen.
pub fn values<const N: usize>(
    server: &Process,
    lines: [&str; N],
) -> anyhow::Result<[Option<f64>; N]> {
    let (_, text) = server.call("GET", "/metrics", "", "")?;
    let mut values = [None; N];
    for (value, wanted) in values.iter_mut().zip(lines) {
        *value = text
            .lines()
            .find_map(|line| line.strip_prefix(wanted)?.strip_prefix(' '))
            .map(|value| value.trim().parse())
            .transpose()?;
    }
    Ok(values)
}

/// Writes that shared each commit so far: `(writes, commits)`.
pub fn commits(server: &Process) -> anyhow::Result<(f64, f64)> {
    let lines = ["db_write_batch_size_sum", "db_write_batch_size_count"];
    let [writes, commits] = values(server, lines)?;
    Ok((
        writes.context("no writes are counted")?,
        commits.context("no commits are counted")?,
    ))
}
