//! F, what the disk itself takes: one append and its sync.

use std::fs::File;
use std::io::Write;

use onrush::clock::Stopwatch;

use crate::support::temporary;

/// F: milliseconds of each of `count` appends of 4 KiB with their `fdatasync`, in order of size.
pub fn syncs_ms(count: usize) -> anyhow::Result<Vec<f64>> {
    let dir = temporary()?;
    let mut file = File::create(dir.path().join("f"))?;
    let block = [7u8; 4_096];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let watch = Stopwatch::start();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(watch.elapsed_seconds() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
