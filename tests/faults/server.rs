//! The server as a process: how it is started, signalled, and found to have ended.
//!
//! Must hold: it takes a free port; every wait ends; no server outlives its test, passed or failed.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::{PATIENCE, until};

pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_onrush");

/// How a server is started.
pub(super) struct Launch {
    dir: PathBuf,
    env: Vec<(String, String)>,
    under: Vec<String>,
    /// Whether nobody reads what it says once it serves.
    is_unheard: bool,
}

impl Launch {
    /// On a data directory, with passwords that cost next to nothing.
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            env: Vec::new(),
            under: Vec::new(),
            is_unheard: false,
        }
        .set("ONRUSH_AUTH__ARGON2_MEMORY_KIB", 8)
        .set("ONRUSH_AUTH__ARGON2_PASSES", 1)
        // Tasks write as well, and would take the counts that are meant for what a test does.
        .set("ONRUSH_MAIL__WELCOME", false)
        .set("ONRUSH_ORDERS__PROCESS", false)
        .set("ONRUSH_ORDERS__LEDGER_CHECK_SECONDS", 0)
        // Each buyer of a crowd registers from here.
        .set("ONRUSH_AUTH__REGISTRATIONS_PER_ADDRESS", 100_000)
        .set("ONRUSH_AUTH__REGISTRATIONS_PER_NETWORK", 100_000)
        .set("ONRUSH_AUTH__REGISTRATIONS_IN_ALL", 100_000)
    }

    pub(super) fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Started by another program, which must become the server or end as it does.
    pub(super) fn under(mut self, argv: &[&str]) -> Self {
        self.under = argv.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    /// What it says is read until it serves, and no longer.
    pub(super) fn unheard(mut self) -> Self {
        self.is_unheard = true;
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut argv = self.under.iter().map(String::as_str).chain([BINARY]);
        let mut command = Command::new(argv.next().expect("a program"));
        command
            .args(argv)
            .args(args)
            .arg("--data-dir")
            .arg(&self.dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            // Away from any settings file of whoever runs the tests.
            .current_dir("/");
        command
    }

    pub(super) fn start(&self) -> Server {
        match self.attempt() {
            Ok(server) => server,
            Err(ended) => panic!("it did not start: {ended:?}"),
        }
    }

    /// Starts a server and waits until it serves, or until it ended instead.
    pub(super) fn attempt(&self) -> Result<Server, Ended> {
        let mut child = self
            .command(&["serve", "--port", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it can be run");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr"));
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = mpsc::channel();
        let kept = Arc::clone(&log);
        let is_unheard = self.is_unheard;
        let (end, ends) = mpsc::channel::<()>();
        // Reads to the end, so that a full pipe never blocks the server.
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                if let Some((_, url)) = line.split_once("docs     http://") {
                    let url = url.trim().trim_end_matches("/docs");
                    // Whoever waited for it may have given up.
                    let _late = found.send(url.parse().expect("an address"));
                    if is_unheard {
                        // The pipe stays open, and fills.
                        let _gone = ends.recv();
                        return;
                    }
                }
                let mut kept = kept.lock().expect("log");
                if kept.len() < 1 << 20 {
                    kept.push_str(&line);
                }
                line.clear();
            }
        });
        let mut server = Server {
            child,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            log,
            reader: Some(reader),
            end: Some(end),
        };
        match address.recv_timeout(PATIENCE) {
            Ok(address) => {
                server.address = address;
                Ok(server)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(server.ended()),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it neither serves nor ends"),
        }
    }

    /// Runs a command that ends: `(how, standard output)`.
    pub(super) fn run(&self, args: &[&str], input: &str) -> (ExitStatus, String) {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be run");
        // A command that refuses at once does not read.
        let _unread = child
            .stdin
            .take()
            .expect("stdin")
            .write_all(input.as_bytes());
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8(output.stdout).expect("text");
        (output.status, text)
    }

    /// Recomputes the ledger; it must add up.
    pub(super) fn assert_ledger_holds(&self) {
        let (status, text) = self.run(&["stock", "verify", "--json"], "");
        let verdict: Value = serde_json::from_str(&text).unwrap_or_default();
        assert!(
            status.success() && verdict["drift_units"] == 0 && verdict["problems_total"] == 0,
            "{text}"
        );
    }
}

/// A running server; dropped, it is killed.
pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddr,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    /// Dropped when it has ended.
    end: Option<mpsc::Sender<()>>,
}

/// How a server ended, and all that it said.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) log: String,
}

impl Server {
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    pub(super) fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("it is there to be signalled");
    }

    /// The line of its log with these words, once it has said it.
    pub(super) fn says(&self, words: &str) -> String {
        let mut found = None;
        until(words, || {
            let log = self.log.lock().expect("log");
            found = log
                .lines()
                .find(|line| line.contains(words))
                .map(str::to_owned);
            found.is_some()
        });
        found.expect("it was said")
    }

    pub(super) fn kill(mut self) -> Ended {
        self.child.kill().expect("killed");
        self.ended()
    }

    /// Waits until it has ended of itself.
    pub(super) fn ended(mut self) -> Ended {
        let mut status = None;
        until("the process ends", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        drop(self.end.take());
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the log was read");
        }
        Ended {
            status: status.expect("it ended"),
            log: self.log.lock().expect("log").clone(),
        }
    }

    /// Ended by SIGTERM, in order.
    pub(super) fn stop(self) {
        self.signal(Signal::SIGTERM);
        let ended = self.ended();
        assert!(ended.status.success(), "{ended:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Ended {
    /// It refused to go on, in one sentence on its last line, without a panic and not by a signal.
    pub(super) fn assert_refusal(&self, code: i32, words: &str) {
        let last = self.log.lines().last().unwrap_or_default();
        assert!(
            self.status.code() == Some(code)
                && last.contains(words)
                && !self.log.contains("panicked"),
            "exit code {code} and `{words}` were expected: {self:?}"
        );
    }

    pub(super) fn assert_killed(&self) {
        assert_eq!(self.status.signal(), Some(9), "{self:?}");
    }
}
