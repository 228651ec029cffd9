//! `onrush serve`: start, say where everything is, stop on a signal.

use clap::Args;

use super::{Common, Outcome, say};
use crate::app::{self, App};
use crate::monitor::logs;

#[derive(Args)]
pub(super) struct ServeArgs {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// TCP port; 0 takes a free one [default: 8000]
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

pub(super) fn serve(common: &Common, args: &ServeArgs) -> Outcome {
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
