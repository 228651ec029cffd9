//! `onrush rehearse --hostile`: the drills of [`super::drill`] against a copy of one's own shop, which a
//! server of its own serves, so that what it holds is not what the attackers hold.
//!
//! Invariants: the shop itself is not touched, and nothing leaves the machine: the copy does no tasks,
//! fires no schedules, and listens on 127.0.0.1; the server ends with the command.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::distr::{Alphanumeric, SampleString};
use serde::Serialize;

use super::drill::{self, Attack, Field, Outcome as Drilled, Over, Seen};
use super::{Common, EXIT_BROKEN, EXIT_UNAVAILABLE, Failed, Outcome, print, say};
use crate::app;
use crate::auth::{self, AuthError, NewAccount, Role};
use crate::flash_sale::rehearsal;
use crate::monitor::resident_mb;

/// Buyers with sessions: honest visitors and attackers.
const SESSIONS: u32 = 2_000;
/// Share of honest requests that must be served beside an attack.
const SERVED_MIN: f64 = 0.99;
/// Longest that a known account's login may take.
const LOGIN_MS_MAX: f64 = 2_000.0;
/// How long the copy's server may take to start.
const STARTS: Duration = Duration::from_secs(60);
/// Words that are searched for where the catalogue has none.
const WORDS: [&str; 2] = ["a", "new"];

/// How it is attacked.
pub(super) struct Drills {
    /// Addresses that attackers come from.
    pub(super) addresses: u32,
    /// How long each attack is measured.
    pub(super) time: Duration,
    /// Which ones are made.
    pub(super) attacks: Vec<Attack>,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Report {
    alone: Seen,
    drills: Vec<Drilled>,
    broken: Vec<String>,
}

/// The copy's server, killed with the command.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

pub(super) fn run(common: &Common, copy: &Path, drills: Drills) -> Outcome {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With fewer descriptors fewer attackers come.
        let _fewer = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    let flags = vec![("data.dir".to_owned(), copy.display().to_string())];
    let settings = common.load_with(flags)?.settings;
    let login = (
        "drill@rehearsal.invalid".to_owned(),
        Alphanumeric.sample_string(&mut rand::rng(), 24),
    );
    let account = NewAccount::checked(&login.0, "Drill", &login.1, &settings.auth)?;
    let opened = app::open_data(&settings)?;
    let now = opened.clock.now();
    let made = opened
        .store
        .write::<_, AuthError>(move |tx| {
            auth::create_account(tx, now, &account, Role::Customer)?;
            rehearsal::create_buyers(tx, now, 0, SESSIONS)
        })
        .blocking();
    opened.close();
    // Its lock would keep the copy's own server out.
    drop(opened);
    let tokens = made?;
    let (server, address) = serve(common, copy)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(attack(common, &server, address, login, tokens, drills))?;
    drop(server);
    show(common, &report)
}

/// Starts this program over the copy, and waits until it is ready.
fn serve(common: &Common, copy: &Path) -> Result<(Server, SocketAddr), Failed> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(config) = &common.config {
        command.arg("--config").arg(config);
    }
    command
        .arg("--data-dir")
        .arg(copy)
        .args(["serve", "--host", "127.0.0.1", "--port"])
        .arg(address.port().to_string())
        .envs([
            ("ONRUSH_SERVER__TLS_CERT", ""),
            ("ONRUSH_SERVER__TLS_KEY", ""),
            ("ONRUSH_SERVER__UNIX_SOCKET", ""),
            ("ONRUSH_SERVER__PUBLIC_URL", ""),
            ("ONRUSH_FAKTORY__ENABLED", "false"),
            // The copy holds the shop's waiting tasks, and those are not the drill's to do.
            ("ONRUSH_TASKS__WORKERS", "0"),
            ("ONRUSH_SCHEDULES__ENABLED", "false"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut server = Server(command.spawn()?);
    let watch = crate::clock::Stopwatch::start();
    while std::net::TcpStream::connect(address).is_err() {
        if let Some(status) = server.0.try_wait()? {
            return Err(Failed::new(
                EXIT_UNAVAILABLE,
                format!(
                    "the copy's server ended at once ({status}); `onrush config check` may say why"
                ),
            ));
        }
        if watch.elapsed() > STARTS {
            return Err(Failed::new(
                EXIT_UNAVAILABLE,
                "the copy's server did not start in time",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((server, address))
}

async fn attack(
    common: &Common,
    server: &Server,
    address: SocketAddr,
    login: (String, String),
    tokens: Vec<String>,
    drills: Drills,
) -> Result<Report, Failed> {
    let (products, words) = drill::catalogue(address).await?;
    let field = Field {
        address,
        login,
        tokens: Arc::new(tokens),
        products: Arc::new(products),
        words: Arc::new(match words.is_empty() {
            true => WORDS.map(str::to_owned).to_vec(),
            false => words,
        }),
        over: Over::Plain,
        have_accounts: false,
    };
    if !drill::log_in(&field).await {
        return Err(Failed::new(
            EXIT_UNAVAILABLE,
            "the copy's server lets nobody log in",
        ));
    }
    let tell = |what: &str| {
        if !common.json {
            say(what);
        }
    };
    tell("Honest visitors alone …");
    let alone = drill::honest(&field, drills.time).await;
    let (mut done, mut broken) = (Vec::new(), Vec::new());
    for attack in drills.attacks {
        tell(&format!(
            "Beside {} from {} addresses …",
            attack.name(),
            drills.addresses
        ));
        let pid = server.0.id();
        let outcome = drill::drill(
            &field,
            attack,
            drills.addresses,
            drills.time,
            None,
            move || resident_mb(pid).unwrap_or_default(),
        )
        .await?;
        broken.extend(broken_by(&outcome));
        done.push(outcome);
    }
    Ok(Report {
        alone,
        drills: done,
        broken,
    })
}

fn share(seen: &Seen) -> f64 {
    seen.served as f64 / seen.asked.max(1) as f64
}

/// What did not hold beside an attack.
fn broken_by(outcome: &Drilled) -> Vec<String> {
    let (name, seen) = (outcome.attack, &outcome.honest);
    let mut broken = Vec::new();
    if share(seen) < SERVED_MIN {
        broken.push(format!(
            "beside {name}, {:.1} % of honest requests were served",
            share(seen) * 100.0
        ));
    }
    if seen.logged_in < seen.logins || seen.login_ms_max > LOGIN_MS_MAX {
        broken.push(format!(
            "beside {name}, a known account logged in {} times of {}, the slowest in {:.0} ms",
            seen.logged_in, seen.logins, seen.login_ms_max
        ));
    }
    broken
}

fn show(common: &Common, report: &Report) -> Outcome {
    if common.json {
        print(&serde_json::to_string(report)?);
    } else {
        let mut table = Table::new();
        table.load_preset(UTF8_BORDERS_ONLY).set_header([
            "attack",
            "served",
            "p50 ms",
            "p99 ms",
            "login ms",
            "memory MB",
            "attackers were told",
        ]);
        let mut row = |name: &str, seen: &Seen, rest: [String; 2]| {
            let [memory, told] = rest;
            table.add_row([
                name.to_owned(),
                format!("{:.1} %", share(seen) * 100.0),
                format!("{:.1}", seen.p50_ms),
                format!("{:.1}", seen.p99_ms),
                format!("{:.0}", seen.login_ms_max),
                memory,
                told,
            ]);
        };
        row("none", &report.alone, [String::new(), String::new()]);
        for outcome in &report.drills {
            let told: Vec<String> = outcome
                .attackers
                .iter()
                .map(|(word, count)| format!("{word}: {count}"))
                .collect();
            let memory = format!("{:.0}", outcome.rss_mb);
            row(outcome.attack, &outcome.honest, [memory, told.join(", ")]);
        }
        print(&table.to_string());
    }
    match report.broken.as_slice() {
        [] => Ok(()),
        broken => Err(Failed::new(EXIT_BROKEN, broken.join("; "))),
    }
}
