//! What every bench target shares: its options, the processes that it measures, its report.
//!
//! Invariants: figures are told, never judged, so a slow machine fails nothing; only a wrong answer
//! does. The measured program is the binary that is shipped: default settings, no fault points.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, bail, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ticks a second in `/proc/PID/stat`: Linux shows 100 to programs on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the person asked for.
pub struct Options {
    /// A short run, to see that it works.
    pub quick: bool,
    /// Beside ten times the data of a large shop.
    pub tenfold: bool,
    json: bool,
    only: Vec<String>,
}

impl Options {
    /// From the command line: `--quick`, `--json`, and words that the wanted figures' names contain.
    pub fn read() -> anyhow::Result<Self> {
        let mut options = Self {
            quick: false,
            tenfold: false,
            json: false,
            only: Vec::new(),
        };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--tenfold" => options.tenfold = true,
                "--json" => options.json = true,
                // Cargo says it to every bench target.
                "--bench" => {}
                word if word.starts_with('-') => {
                    bail!(
                        "{word} is unknown; there are --quick, --tenfold, --json and words of a figure's name"
                    )
                }
                word => options.only.push(word.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether the figure of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| name.contains(word.as_str()))
    }
}

/// The path of the binary that is shipped. Cargo built one for this target already, but with the
/// features that tests ask for, fault points among them; so it is built again as a release is.
/// `BENCH_BINARY` names another one to measure.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BENCH_BINARY") {
        return Ok(PathBuf::from(path));
    }
    let done = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--bin",
            "onrush",
        ])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .status()
        .context("cargo can't be run; name the binary with BENCH_BINARY")?;
    ensure!(done.success(), "the release binary does not build");
    Ok(PathBuf::from(env!("CARGO_BIN_EXE_onrush")))
}

/// A new directory on the disk that the build is on: `/tmp` may be memory, where a sync costs nothing.
pub fn temporary() -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}

/// A server in a process of its own, killed when dropped.
pub struct Process {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Process {
    /// Starts `onrush serve` on a free port; returns once it listens. `settings` are environment
    /// variables, for what is off by default.
    pub fn serve(binary: &Path, data: &Path, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        // Default settings, whatever the environment of whoever measures says.
        command
            .env_clear()
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .args(["serve", "--port", "0", "--data-dir"])
            .arg(data);
        Self::start(command)
    }

    /// Starts a server that says `http://ADDRESS/docs`, or the same with `https`, on its standard error.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let stderr = child.stderr.take().context("no standard error")?;
        let (mut lines, mut said) = (BufReader::new(stderr).lines(), String::new());
        let address = loop {
            let Some(line) = lines.next() else {
                child.wait()?;
                bail!("{command:?} ended: {said}");
            };
            let line = line?;
            let address = line
                .split_once("://")
                .and_then(|(_, rest)| rest.split_once("/docs"))
                .and_then(|(address, _)| address.parse().ok());
            if let Some(address) = address {
                break address;
            }
            said.push_str(&line);
        };
        // Somebody must go on reading, or a full pipe holds up its log.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, address })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Seconds of processor time that it has used, in user and kernel mode.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name, in parentheses, may hold spaces; utime and stime are fields 14 and 15.
        let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
        let mut ticks = rest.split_whitespace().skip(11).take(2);
        let mut next = || -> anyhow::Result<f64> { Ok(ticks.next().context("no time")?.parse()?) };
        Ok((next()? + next()?) / TICKS_PER_SECOND)
    }

    /// A line of `/proc/PID/status` in MB: `VmRSS` is what it holds, `VmHWM` the most it held.
    pub fn memory_mb(&self, line: &str) -> anyhow::Result<f64> {
        memory_of(self.pid(), line)
    }

    /// One request on a connection of its own: `(status, body)`.
    pub fn call(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: &str,
    ) -> anyhow::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {token}\r\nContent-Type: \
             application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// Kills it as SIGKILL does.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.terminate()
    }

    /// [`Process::stop`] of one that is started again in its place.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGTERM,
        )?;
        let ended = self.child.wait()?;
        ensure!(ended.success(), "the server ended with {ended}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ended = self.kill();
    }
}

/// [`Process::memory_mb`] of any process.
pub fn memory_of(process: u32, line: &str) -> anyhow::Result<f64> {
    let kib: f64 = std::fs::read_to_string(format!("/proc/{process}/status"))?
        .lines()
        .find_map(|text| text.strip_prefix(line)?.strip_prefix(':'))
        .and_then(|text| text.trim().strip_suffix(" kB"))
        .with_context(|| format!("no {line}"))?
        .parse()?;
    Ok(kib * 1_024.0 / 1e6)
}

/// What is aimed at.
#[derive(Clone, Copy)]
pub enum Bar {
    /// At least the first, better the second.
    Least(f64, f64),
    /// At most the first, better the second.
    Most(f64, f64),
    /// A figure that explains the others.
    None,
}

impl Bar {
    fn cells(self, median: f64) -> [String; 2] {
        let (sign, bar, stretch, reached): (_, _, _, fn(f64, f64) -> bool) = match self {
            Bar::Least(bar, stretch) => ("≥", bar, stretch, |median, mark| median >= mark),
            Bar::Most(bar, stretch) => ("≤", bar, stretch, |median, mark| median <= mark),
            Bar::None => return [String::new(), String::new()],
        };
        let verdict = if reached(median, stretch) {
            "stretch"
        } else if reached(median, bar) {
            "met"
        } else {
            "missed"
        };
        [
            format!("{sign} {} ({})", number(bar), number(stretch)),
            verdict.to_owned(),
        ]
    }
}

/// As many digits as say something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 20.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Smallest, middle and largest.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    (
        at(0),
        at(sorted.len() / 2),
        at(sorted.len().saturating_sub(1)),
    )
}

struct Figure {
    what: String,
    unit: String,
    values: Vec<f64>,
    bar: Bar,
}

/// All figures of a run, and what was wrong.
#[derive(Default)]
pub struct Report {
    figures: Vec<Figure>,
    wrong: Vec<String>,
}

impl Report {
    /// One more value of a figure: of one round, as a rule.
    pub fn add(&mut self, what: &str, unit: &str, value: f64, bar: Bar) {
        match self
            .figures
            .iter_mut()
            .find(|figure| figure.what == what && figure.unit == unit)
        {
            Some(figure) => figure.values.push(value),
            None => self.figures.push(Figure {
                what: what.to_owned(),
                unit: unit.to_owned(),
                values: vec![value],
                bar,
            }),
        }
    }

    /// A wrong answer: the run fails.
    pub fn wrong(&mut self, text: String) {
        self.wrong.push(text);
    }

    fn json(&self) -> serde_json::Value {
        let figures: Vec<_> = self
            .figures
            .iter()
            .map(|figure| {
                let (min, median, max) = spread(&figure.values);
                let bar = match figure.bar {
                    Bar::Least(bar, stretch) => serde_json::json!({"at_least": bar, "stretch": stretch}),
                    Bar::Most(bar, stretch) => serde_json::json!({"at_most": bar, "stretch": stretch}),
                    Bar::None => serde_json::Value::Null,
                };
                serde_json::json!({
                    "what": figure.what, "unit": figure.unit, "median": median, "min": min, "max": max,
                    "values": figure.values, "bar": bar,
                })
            })
            .collect();
        serde_json::json!({"figures": figures, "wrong": self.wrong})
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_HORIZONTAL_ONLY).set_header([
            "what",
            "unit",
            "median",
            "min",
            "max",
            "n",
            "bar (stretch)",
            "",
        ]);
        for figure in &self.figures {
            let (min, median, max) = spread(&figure.values);
            let [bar, verdict] = figure.bar.cells(median);
            table.add_row([
                figure.what.clone(),
                figure.unit.clone(),
                number(median),
                number(min),
                number(max),
                figure.values.len().to_string(),
                bar,
                verdict,
            ]);
        }
        table.to_string()
    }

    fn finish(self, options: &Options) -> ExitCode {
        let text = if options.json {
            self.json().to_string()
        } else {
            let mut text = self.table();
            for wrong in &self.wrong {
                text.push_str(&format!("\nWRONG: {wrong}"));
            }
            text
        };
        let told = writeln!(std::io::stdout(), "{text}");
        if self.wrong.is_empty() && told.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs a bench target from its options to its exit code.
pub fn run(measure: impl FnOnce(&Options, &mut Report) -> anyhow::Result<()>) -> ExitCode {
    let mut report = Report::default();
    let options = match Options::read() {
        Ok(options) => options,
        Err(error) => {
            report.wrong(format!("{error:#}"));
            Options {
                tenfold: false,
                quick: true,
                json: false,
                only: Vec::new(),
            }
        }
    };
    if report.wrong.is_empty()
        && let Err(error) = measure(&options, &mut report)
    {
        report.wrong(format!("{error:#}"));
    }
    report.finish(&options)
}

/// Tells the person who waits what is being measured.
pub fn tell(text: &str) {
    // Nobody may be listening.
    let _told = writeln!(std::io::stderr(), "{text}");
}
