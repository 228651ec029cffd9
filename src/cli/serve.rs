//! `onrush serve`: start, say where everything is, stop on a signal.

use clap::Args;

use super::{Common, Outcome, say};
use crate::app::{self, App};
use crate::monitor::logs;

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

pub(super) fn serve(common: &Common, args: &ServeArgs) -> Outcome {
    arm_fault_point()?;
    let loaded = common.load(args.flags())?;
    let metrics = crate::monitor::Metrics::new()?;
    let log = logs::init(&loaded.settings.log, Some(&metrics))?;
    let runtime = app::runtime(&loaded.settings)?;
    let outcome = runtime.block_on(async {
        let app = App::start(loaded.settings, metrics).await?;
        for line in app.greeting() {
            say(&line);
        }
        app.run_until_signal().await;
        Ok(())
    });
    log.flush();
    outcome
}
