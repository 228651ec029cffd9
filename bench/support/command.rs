//! Commands that run to their end, on the real data if it was fetched.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::support::memory_of;

/// Between two looks at what a running command holds.
const LOOK: Duration = Duration::from_millis(10);

/// Where a file of the real data is, or would be.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("bench/data")
        .join(name)
}

/// Runs a command to its end; answers what it said and the most memory that it held, in MB.
pub fn watched(command: &mut Command) -> anyhow::Result<(String, f64)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut output = child.stdout.take().context("no standard output")?;
    // Beside it, or a full pipe would hold it up.
    let reader = std::thread::spawn(move || {
        let mut said = String::new();
        output.read_to_string(&mut said).map(|_| said)
    });
    let mut peak = 0.0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // It may end between the two looks.
        peak = memory_of(child.id(), "VmHWM").unwrap_or(peak);
        std::thread::sleep(LOOK);
    };
    let said = reader
        .join()
        .ok()
        .context("its reader ended in a panic")??;
    ensure!(status.success(), "{command:?} ended with {status}: {said}");
    Ok((said, peak))
}
