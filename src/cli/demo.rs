//! `onrush demo`: a sample shop, a flash sale under a crowd, the report card, then the server.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use indicatif::ProgressBar;

use super::{Common, EXIT_BROKEN, Failed, Outcome, print, sample, say};
use crate::app::{self, App};
use crate::auth;
use crate::flash_sale::rehearsal::{self, Card, Plan, Progress};
use crate::flash_sale::{self, NewSale, SaleError};
use crate::monitor::{Metrics, logs};
use crate::product::ProductId;

#[derive(Args)]
pub(super) struct DemoArgs {
    /// Units of the sale
    #[arg(long, default_value_t = 2_000)]
    units: u32,
    /// Virtual buyers
    #[arg(long, default_value_t = 10_000)]
    buyers: u32,
    /// Connections at once
    #[arg(long, default_value_t = 256)]
    connections: u16,
    /// TCP port; 0 takes a free one [default: 8000]
    #[arg(long)]
    port: Option<String>,
    /// End after the report card instead of serving on
    #[arg(long)]
    exit: bool,
}

pub(super) fn demo(common: &Common, args: &DemoArgs) -> Outcome {
    let mut flags = vec![("log.level".to_owned(), "warn".to_owned())];
    if common.data_dir.is_none() {
        flags.push((
            "data.dir".to_owned(),
            PathBuf::from("onrush-demo").display().to_string(),
        ));
    }
    flags.extend(
        args.port
            .clone()
            .map(|port| ("server.port".to_owned(), port)),
    );
    let loaded = common.load(flags)?;
    let metrics = Metrics::new()?;
    let log = logs::init(&loaded.settings.log, Some(&metrics))?;
    let runtime = app::runtime(&loaded.settings)?;
    let outcome = runtime.block_on(async {
        let app = App::start(loaded.settings, metrics).await?;
        let quiet = common.json;
        let tell = |line: &str| {
            if !quiet {
                say(line);
            }
        };
        let (store, now) = (app.store.clone(), app.clock.now());
        let made = tokio::task::spawn_blocking(move || sample::fill(&store, now)).await??;
        tell(&format!("The shop has {} products.", made.products));
        let card = sell(&app, args, made.first_product, quiet).await?;
        show(common, &card)?;
        let broken = card.broken();
        if args.exit || broken.is_some() {
            app.stop().await;
        } else {
            for line in app.greeting() {
                tell(&line);
            }
            tell("Press Ctrl-C to stop.");
            app.run_until_signal().await;
        }
        match broken {
            None => Ok(()),
            Some(promise) => Err(Failed::new(
                EXIT_BROKEN,
                format!("a promise broke: {promise}"),
            )),
        }
    });
    log.flush();
    outcome
}

/// Opens a sale and lets the buyers loose.
async fn sell(app: &App, args: &DemoArgs, product: ProductId, quiet: bool) -> Result<Card, Failed> {
    let (now, units) = (app.clock.now(), args.units);
    let settings = app.settings.flash_sales.clone();
    let sale = app
        .store
        .write(move |tx| {
            let new = NewSale {
                product_id: product,
                quantity: units,
                unit_amount: 9_900,
                starts_at: now,
                ends_at: now.plus_seconds(3_600),
                per_user_limit: 1,
                attempts_per_minute: 3,
                payment_window_seconds: 0,
            };
            for open in flash_sale::open_sales(tx)?
                .iter()
                .filter(|open| open.product_id == product)
            {
                flash_sale::close(tx, now, open.id, flash_sale::SaleStatus::Stopped)?;
            }
            crate::product::stock::receive(tx, now, product, units)?;
            flash_sale::create(tx, now, &settings, &new)
        })
        .await
        .map_err(|error: SaleError| anyhow::anyhow!("the sale could not be opened: {error}"))?;
    app.gate.open(sale.clone());
    let mut tokens = Vec::new();
    for first in (0..args.buyers).step_by(500) {
        let count = (args.buyers - first).min(500);
        tokens.extend(
            app.store
                .write(move |tx| auth::create_rehearsal_buyers(tx, now, first, count))
                .await?,
        );
    }
    let progress = Arc::new(Progress::default());
    let plan = Plan {
        address: app.address,
        sale_id: sale.id,
        allotted: args.units,
        tokens,
        connections: usize::from(args.connections.max(1)),
    };
    let bar = if quiet || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        ProgressBar::new_spinner()
    };
    let drawing = tokio::spawn({
        let (bar, progress) = (bar.clone(), Arc::clone(&progress));
        async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                bar.set_message(format!(
                    "{} attempts, {} units sold",
                    progress.attempts.load(Ordering::Relaxed),
                    progress.accepted.load(Ordering::Relaxed)
                ));
                bar.tick();
            }
        }
    });
    let card = rehearsal::run(plan, &app.store, progress).await;
    drawing.abort();
    bar.finish_and_clear();
    Ok(card?)
}

fn show(common: &Common, card: &Card) -> Outcome {
    if common.json {
        print(&serde_json::to_string(card)?);
        return Ok(());
    }
    let mut table = Table::new();
    table
        .load_preset(UTF8_HORIZONTAL_ONLY)
        .set_header(["report card", ""]);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row(
        "sold / allotted",
        format!("{} / {}", card.sold, card.allotted),
    );
    row("oversold", card.oversold.to_string());
    row("accepted but lost", card.accepted_lost.to_string());
    row(
        "attempts",
        format!("{} in {:.2} s", card.attempts, card.seconds),
    );
    for (code, count) in &card.refused {
        row(&format!("refused: {code}"), count.to_string());
    }
    row(
        "stock ledger",
        if card.ledger_ok {
            "verified".to_owned()
        } else {
            format!("drift {}", card.drift_units)
        },
    );
    row(
        "requests a second",
        format!("{:.0}", card.requests_per_second),
    );
    row(
        "p50 / p99",
        format!("{:.1} ms / {:.1} ms", card.p50_ms, card.p99_ms),
    );
    print(&table.to_string());
    Ok(())
}
