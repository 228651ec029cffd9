//! The real binary under faults. `server`, `ask` and `sale` start it, ask it and compare what was
//! told with what was kept; each other file holds one kind of fault.
//!
//! Must hold: every wait ends; a test that this machine can't run says so and passes, but fails
//! where `CI` is `true`.

mod ask;
mod backup;
mod clients;
mod clock;
mod crowds;
mod damage;
mod disk;
mod frames;
mod kill;
mod outgoing;
mod power;
mod queue;
mod refusal;
mod rot;
mod sale;
mod schedules;
mod security;
mod server;
mod signals;
mod soak;
mod syscalls;
mod tasks;
mod terminal;
mod workers;

use std::process::{Command, Stdio};
use std::time::Duration;

use onrush::clock::Stopwatch;

/// Longer than anything here may take, on a busy machine; a wait that reaches it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `holds`, looking again and again.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let watch = Stopwatch::start();
    while !holds() {
        assert!(watch.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Says why a test is not run; where `CI` is `true` everything must run.
pub(crate) fn skip(reason: &str) {
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "this must run in CI: {reason}"
    );
    note(&format!("skipped: {reason}"));
}

#[expect(clippy::print_stderr, reason = "for whoever runs the tests")]
pub(crate) fn note(line: &str) {
    eprintln!("{line}");
}

/// Runs a tool of the system; `Err` is what it said.
fn tool(argv: &[&str]) -> Result<String, String> {
    let output = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", argv[0]))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{}: {}",
        argv.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
