//! Log lines: to standard error, as text on a terminal and as JSON otherwise.
//!
//! Invariant: a log that is slow, blocked or full never holds up a request. Lines go through a
//! bounded channel to one thread; what does not fit is dropped and counted. A process that ends by
//! itself says why on its last line, whatever the log does ([`end`]).

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::reload;

use super::Metrics;
use crate::config::{Log, LogFormat};

/// Lines that may wait for the thread that writes them.
const LINES_WAITING_MAX: usize = 8_192;
/// How long the end of the process waits for the last lines.
const FLUSH_WAIT: Duration = Duration::from_secs(1);
/// The same for those and the very last one.
const END_WAIT: Duration = Duration::from_secs(2);

/// Where the lines of this process go, as its subscriber is one for all of it.
static LINES: OnceLock<SyncSender<Line>> = OnceLock::new();

/// Ends the process with `code`, at once and from any thread. What was logged so far is written, then `why`,
/// straight to standard error, and nothing after that. A reader that reads neither can't keep the process from ending.
pub fn end(code: i32, why: &str) -> ! {
    let text = format!("onrush: {why}\n");
    let (done, wait) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("last-line".to_owned())
        .spawn(move || {
            if let Some(lines) = LINES.get() {
                flush(lines);
            }
            let mut stderr = io::stderr().lock();
            // Standard error was the last place to tell it.
            let _lost = stderr.write_all(text.as_bytes());
            let _nobody_waits = done.send(());
            // It keeps the lock: what others log until the process is gone stays unsaid.
            loop {
                std::thread::park();
            }
        });
    if thread.is_ok() {
        let _late = wait.recv_timeout(END_WAIT);
    }
    std::process::exit(code)
}

fn flush(lines: &SyncSender<Line>) {
    let (done, wait) = sync_channel(1);
    if lines.try_send(Line::Flush(done)).is_ok() {
        // A log that is stuck must not keep the process from ending.
        let _late = wait.recv_timeout(FLUSH_WAIT);
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.level` is no level and no list of directives.
    #[error("log.level: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// Something else has set up logging in this process.
    #[error("logging is set up already")]
    Twice,
    /// No thread could be started.
    #[error("the log's thread could not be started: {0}")]
    Thread(#[from] io::Error),
    /// The level can't be changed any more.
    #[error("the log's level can't be changed: {0}")]
    Reload(#[from] reload::Error),
}

type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// Keeps the log going; dropping it writes what still waits, for a second at most.
pub struct LogGuard {
    lines: SyncSender<Line>,
    set_filter: SetFilter,
}

#[derive(Debug)]
enum Line {
    Text(Vec<u8>),
    /// Write all that came before, then tell.
    Flush(SyncSender<()>),
}

impl LogGuard {
    /// Has the log show what `level` says from now on; an error leaves it as it is.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        (self.set_filter)(filter(level)?)?;
        Ok(())
    }

    /// Waits until what was logged so far is written, for a second at most.
    pub fn flush(&self) {
        flush(&self.lines);
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.flush();
    }
}

/// What [`init`] would refuse of the settings.
pub fn check(settings: &Log) -> Result<(), LogError> {
    filter(&settings.level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    // The migration library tells at each start what it found, and the scheduler that it has a job; a
    // directive of one's own for them wins.
    let quiet = "refinery_core=warn,tokio_cron_scheduler=warn";
    Ok(EnvFilter::builder().parse(format!("{quiet},{level}"))?)
}

/// Sets up logging for the whole process; `metrics` counts dropped lines.
pub fn init(settings: &Log, metrics: Option<&Metrics>) -> Result<LogGuard, LogError> {
    let filter = filter(&settings.level)?;
    let (lines, waiting) = sync_channel(LINES_WAITING_MAX);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&waiting, io::stderr()))?;
    let writer = Lines {
        sender: lines.clone(),
        dropped: metrics.map(|metrics| metrics.log_lines_dropped_total.clone()),
    };
    let text = match settings.format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    let (set, set_filter): (_, SetFilter) = if text {
        let builder = builder
            .with_ansi(io::stderr().is_terminal())
            .with_filter_reloading();
        let handle = builder.reload_handle();
        let set_filter = Box::new(move |filter| handle.reload(filter));
        (builder.try_init(), set_filter)
    } else {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        let set_filter = Box::new(move |filter| handle.reload(filter));
        (builder.try_init(), set_filter)
    };
    set.map_err(|_| LogError::Twice)?;
    // It is the first: another one would not have been set up.
    let _is_first = LINES.set(lines.clone());
    Ok(LogGuard { lines, set_filter })
}

fn write_lines(waiting: &Receiver<Line>, mut sink: impl Write) {
    for line in waiting {
        match line {
            // The log is where it would be told that the log fails; serving goes on.
            Line::Text(bytes) => {
                let _lost = sink.write_all(&bytes);
            }
            Line::Flush(done) => {
                let _lost = sink.flush();
                let _nobody_waits = done.send(());
            }
        }
    }
}

/// Makes one buffer per event and hands it over whole.
struct Lines {
    sender: SyncSender<Line>,
    dropped: Option<IntCounter>,
}

struct LineWriter<'a> {
    lines: &'a Lines,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter {
            lines: self,
            bytes: Vec::new(),
        }
    }
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        if self.bytes.is_empty() {
            return;
        }
        match self
            .lines
            .sender
            .try_send(Line::Text(std::mem::take(&mut self.bytes)))
        {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                if let Some(dropped) = &self.lines.dropped {
                    dropped.inc();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_drops_and_counts() {
        let dropped = IntCounter::new("dropped", "lines").expect("valid");
        let (sender, waiting) = sync_channel(2);
        let lines = Lines {
            sender,
            dropped: Some(dropped.clone()),
        };
        for _ in 0..5 {
            lines
                .make_writer()
                .write_all(b"line\n")
                .expect("never fails");
        }
        assert_eq!(dropped.get(), 3);
        drop(lines);
        let mut sink = Vec::new();
        write_lines(&waiting, &mut sink);
        assert_eq!(sink, b"line\nline\n");
    }
}
