//! A PostgreSQL 15 of a test's own: in a temporary directory, reachable through a socket there alone, gone with
//! the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};
use onrush::clock::Stopwatch;
use tokio_postgres::{Client, Config, NoTls};

use crate::faults::skip;

/// Where Debian's package `postgresql-15` has its programs.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The account that the package makes: PostgreSQL refuses to run as root.
const ACCOUNT: &str = "postgres";
const START_MAX: Duration = Duration::from_secs(60);

/// A server that runs.
pub struct Server {
    process: Child,
    dir: tempfile::TempDir,
}

impl Server {
    /// A new one; `None`, with the reason printed, on a machine that can't run it and is not there to check
    /// changes (`CI=true`).
    pub fn start() -> Option<Self> {
        Self::try_start().map_err(|reason| skip(&reason)).ok()
    }

    fn try_start() -> Result<Self, String> {
        let programs = Path::new(PROGRAMS);
        if !programs.join("initdb").exists() {
            return Err(format!(
                "PostgreSQL 15 (Debian's postgresql-15) is not in {PROGRAMS}"
            ));
        }
        let account = match geteuid().is_root() {
            true => Some(
                User::from_name(ACCOUNT)
                    .ok()
                    .flatten()
                    .ok_or_else(|| format!("there is no account `{ACCOUNT}` to run PostgreSQL"))?,
            ),
            false => None,
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        if let Some(account) = &account {
            chown(dir.path(), Some(account.uid), Some(account.gid)).expect("given to the account");
        }
        let run = |program: &str, leads: bool| {
            let mut command = Command::new("setpriv");
            if account.is_some() {
                command.arg(format!("--reuid={ACCOUNT}"));
                command.args([&format!("--regid={ACCOUNT}"), "--init-groups"]);
            }
            // A test that is killed takes its server with it.
            command.args(["--pdeathsig", if leads { "INT" } else { "KILL" }, "--"]);
            command.arg(programs.join(program));
            command.current_dir(dir.path()).stdin(Stdio::null());
            command
        };
        let data = dir.path().join("data");
        // A natural language orders the texts of this server, where a column does not say otherwise.
        let made = run("initdb", false)
            .args(["--username=onrush", "--auth=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--locale-provider=icu", "--icu-locale=en"])
            .arg("--no-sync")
            .arg("--pgdata")
            .arg(&data)
            .output()
            .map_err(|error| format!("setpriv (util-linux) does not run: {error}"))?;
        assert!(made.status.success(), "{made:?}");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let process = run("postgres", true)
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"])
            .arg(dir.path())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        Ok(Self { process, dir })
    }

    /// A connection. Must be called on a runtime.
    pub async fn connect(&mut self) -> Client {
        let mut config = Config::new();
        config
            .host_path(self.dir.path())
            .user("onrush")
            .dbname("postgres");
        let watch = Stopwatch::start();
        loop {
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => {
                    let ended = self.process.try_wait().expect("its state");
                    let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
                    assert!(
                        ended.is_none() && watch.elapsed() < START_MAX,
                        "{error}: {}",
                        log()
                    );
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The fast way down: connections end, and so do all of its processes before it.
        let id = i32::try_from(self.process.id()).expect("a process id");
        let _ended = kill(Pid::from_raw(id), Signal::SIGINT);
        let _status = self.process.wait();
    }
}
