//! `onrush serve`: start, say where everything is, read again on SIGHUP what can be read again, stop on a
//! signal.

use clap::Args;

use super::{Common, Outcome, greeting, say};
use crate::app::{self, App, End, Signals};
use crate::config::Loaded;
use crate::monitor::logs::{self, LogGuard};

#[derive(Args)]
pub(super) struct ServeArgs {
    /// Address to listen on [default: from the settings, else 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// TCP port; 0 takes a free one [default: from the settings, else 8000]
    #[arg(long)]
    port: Option<String>,
}

impl ServeArgs {
    fn flags(&self) -> Vec<(String, String)> {
        [("server.host", &self.host), ("server.port", &self.port)]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
            .collect()
    }
}

/// In a test build only: kills this process, as SIGKILL does, when the named fault point is passed
/// for the n-th time (`FAULT_KILL_AT=claim.order_written:3`).
fn arm_fault_point() -> anyhow::Result<()> {
    use std::sync::atomic::{AtomicU32, Ordering};
    if !fail::has_failpoints() {
        return Ok(());
    }
    let Ok(order) = std::env::var("FAULT_KILL_AT") else {
        return Ok(());
    };
    let (point, count) = order.split_once(':').unwrap_or((&order, "1"));
    let left = AtomicU32::new(count.parse()?);
    fail::cfg_callback(point, move || {
        if left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let own = nix::unistd::Pid::this();
            // There is nobody left to tell of an error.
            let _killed = nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL);
        }
    })
    .map_err(|error| anyhow::anyhow!("{error}"))
}

/// The one setting that a running server takes over.
const LOG_LEVEL: &str = "log.level";

/// Reads the settings and the certificates again; what can't be used leaves everything as it is.
/// `in_force` is what the server goes by.
fn reload(app: &App, log: &LogGuard, in_force: &mut Loaded, read: Result<Loaded, String>) {
    app.reload_certificates();
    let new = match read {
        Ok(new) => new,
        Err(error) => {
            tracing::error!(
                error,
                "SIGHUP: the settings can't be used; the old ones stay"
            );
            return;
        }
    };
    let mut changed = in_force.differences(&new);
    let level = new.settings.log.level;
    if changed.iter().any(|key| key == LOG_LEVEL) {
        tracing::info!(level, "SIGHUP: the log's level changes");
        match log.set_level(&level) {
            Ok(()) => in_force.settings.log.level = level,
            Err(error) => {
                tracing::error!(%error, "SIGHUP: the new level can't be used; the old one stays");
            }
        }
        changed.retain(|key| key != LOG_LEVEL);
    }
    if changed.is_empty() {
        tracing::info!("SIGHUP: no other setting has changed");
    } else {
        tracing::warn!(
            settings = changed.join(", "),
            "SIGHUP: these settings have changed and need a restart"
        );
    }
}

pub(super) fn serve(common: &Common, args: &ServeArgs) -> Outcome {
    arm_fault_point()?;
    let mut loaded = common.load(args.flags())?;
    let metrics = crate::monitor::Metrics::new()?;
    let log = logs::init(&loaded.settings.log, Some(&metrics))?;
    let runtime = app::runtime(&loaded.settings)?;
    let outcome = runtime.block_on(async {
        let signals = Signals::listen()?;
        let app = App::start(loaded.settings.clone(), metrics).await?;
        let end = match End::listen() {
            Ok(end) => end,
            Err(error) => {
                app.stop().await;
                return Err(error.into());
            }
        };
        for line in greeting(&app) {
            say(&line);
        }
        app.run_until_signal(signals, end, |app| {
            let read = common.load(args.flags()).map_err(|failed| failed.message);
            reload(app, &log, &mut loaded, read);
        })
        .await;
        Ok(())
    });
    log.flush();
    outcome
}
