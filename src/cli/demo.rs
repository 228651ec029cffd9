//! `onrush demo`: a sample shop, a flash sale under a crowd, the report card, then the server.

use clap::Args;

use super::rehearse::{self, Crowd};
use super::{Common, Failed, Outcome, sample, say};
use crate::allotment::{NewSale, Sale};
use crate::app::{self, App};
use crate::flash_sale::{self, rehearsal};
use crate::monitor::{Metrics, logs};
use crate::product::ProductId;
use crate::webhook::Events;

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
    /// TCP port; 0 takes a free one [default: from the settings, else 8000]
    #[arg(long)]
    port: Option<String>,
    /// End after the report card instead of serving on
    #[arg(long)]
    exit: bool,
}

pub(super) fn demo(common: &Common, args: &DemoArgs) -> Outcome {
    let mut flags = vec![
        ("log.level".to_owned(), "warn".to_owned()),
        // There is nobody else who would.
        (
            "orders.customers_confirm_payment".to_owned(),
            "true".to_owned(),
        ),
        // The buyers speak plain HTTP over TCP.
        ("server.tls_cert".to_owned(), String::new()),
        ("server.tls_key".to_owned(), String::new()),
    ];
    if common.data_dir.is_none() {
        flags.push(("data.dir".to_owned(), "onrush-demo".to_owned()));
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
        let settings = app.settings.clone();
        let made =
            tokio::task::spawn_blocking(move || sample::fill(&store, &settings, now)).await??;
        tell(&format!(
            "The shop has {} products, {} customers and {} past orders. The sale of {} units begins.",
            made.products, made.customers, made.past_orders, args.units
        ));
        tell("Customers confirm their own payments here; a real shop leaves that to its payment provider.");
        let sale = open_sale(&app, made.first_product, args.units).await?;
        app.gate.open(sale.clone());
        let crowd = Crowd {
            buyers: args.buyers,
            connections: args.connections,
        };
        rehearse::hold(common, app, sale, crowd, args.exit).await
    });
    log.flush();
    outcome
}

/// Gives the sale its units and opens it; a sale that an earlier run left open ends.
async fn open_sale(app: &App, product: ProductId, units: u32) -> Result<Sale, Failed> {
    let now = app.clock.now();
    let settings = app.settings.flash_sales.clone();
    app.store
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
            rehearsal::close_others(tx, now, product)?;
            crate::product::stock::receive(tx, now, product, units)?;
            flash_sale::create(tx, now, &settings, &Events::default(), &new)
        })
        .await
        .map_err(|error| rehearse::refused("the sale could not be opened", error))
}
