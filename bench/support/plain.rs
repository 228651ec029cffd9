//! P, what requests are measured against in the same run: a bare poem server.
//!
//! Invariant: a floor does the least that the same result needs on the same libraries: no limits, no
//! checks, no metrics.

use std::io::Write;
use std::process::{Command, ExitCode};

use anyhow::Context;
use poem::listener::{Acceptor, Listener, TcpListener};
use poem::web::{Data, Json};
use poem::{EndpointExt, Route, Server, get, handler};

use crate::support::{self, Options, Process, Report, tell};

/// The word that makes the bench's own executable a plain server.
const SERVER: &str = "plain-server";
/// The plain server's one route.
const PATH: &str = "/plain";

#[derive(serde::Serialize)]
struct Plain {
    text: &'static str,
}

#[handler]
fn plain(text: Data<&&'static str>) -> Json<Plain> {
    Json(Plain { text: *text })
}

/// Runs a bench target from its options to its exit code, or the plain server where its own executable
/// was started as that.
pub fn run(measure: impl FnOnce(&Options, &mut Report) -> anyhow::Result<()>) -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(SERVER) {
        return support::run(measure);
    }
    let bytes = arguments.next().and_then(|bytes| bytes.parse().ok());
    match serve(bytes.unwrap_or(0)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Serves a JSON of `bytes` bytes until it is killed.
fn serve(bytes: usize) -> anyhow::Result<()> {
    let frame = serde_json::to_string(&Plain { text: "" })?.len();
    let text: &'static str = "x".repeat(bytes.saturating_sub(frame)).leak();
    let app = Route::new().at(PATH, get(plain).post(plain)).data(text);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let acceptor = TcpListener::bind("127.0.0.1:0").into_acceptor().await?;
            let address = acceptor.local_addr().remove(0);
            let address = address.as_socket_addr().context("no address")?;
            writeln!(std::io::stderr(), "http://{address}/docs")?;
            Server::new_with_acceptor(acceptor).run(app).await?;
            Ok(())
        })
}

/// P in a process of its own.
pub fn start(bytes: usize) -> anyhow::Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([SERVER, &bytes.to_string()]);
    Process::start(command)
}

/// The same request for the plain server's route.
pub fn request(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let text = std::str::from_utf8(bytes)?;
    let (method, rest) = text.split_once(' ').context("no method")?;
    let (_, rest) = rest.split_once(' ').context("no path")?;
    Ok(format!("{method} {PATH} {rest}").into_bytes())
}
