//! `onrush rehearse`: the same crowd as the demonstration's, against a copy of one's own shop; and
//! what both share: the crowd's progress, the report card, what comes after.
//!
//! Invariants: the shop itself is only read, beside its server if need be; the copy is deleted in
//! the end unless it was asked for.

use std::io::IsTerminal;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use indicatif::ProgressBar;

use super::drill::Attack;
use super::{
    Common, EXIT_BROKEN, EXIT_USAGE, Failed, Outcome, existing_database, greeting, print, say,
};
use crate::allotment::{NewSale, Sale, SaleId};
use crate::app::{self, App, End, Signals};
use crate::flash_sale::rehearsal::{self, Card, Plan, Progress};
use crate::flash_sale::{self, SaleError};
use crate::monitor::{Metrics, logs};
use crate::order::audit;
use crate::product::ProductId;
use crate::store::{StoreError, database_in, file};
use crate::webhook::Events;

#[derive(Args)]
pub(super) struct RehearseArgs {
    /// The flash sale to rehearse [default: of those with units left, the one that runs or else
    /// the next to begin]
    #[arg(long, conflicts_with = "product")]
    sale: Option<i64>,
    /// Rehearse a new sale of this product instead, with --units and --unit-amount
    #[arg(long, requires = "units")]
    product: Option<i64>,
    /// Units of the new sale, taken from the product's free stock
    #[arg(long, requires = "product")]
    units: Option<u32>,
    /// Price of one in minor units
    #[arg(long, requires = "product", default_value_t = 100)]
    unit_amount: i64,
    /// Virtual buyers [default: five for each unit, 1,000 to 100,000]
    #[arg(long)]
    buyers: Option<u32>,
    /// Connections at once
    #[arg(long, default_value_t = 256)]
    connections: u16,
    /// TCP port; 0 takes a free one
    #[arg(long, default_value = "0")]
    port: String,
    /// Where the copy is made, and then kept [default: a temporary directory, deleted]
    #[arg(long, value_name = "DIR")]
    copy_to: Option<PathBuf>,
    /// End after the report card instead of serving the copy on
    #[arg(long)]
    exit: bool,
    /// Attack the copy in eight ways instead, and tell what honest visitors see beside each
    #[arg(long, conflicts_with_all = ["product", "sale", "buyers", "connections", "port", "copy_to", "exit"])]
    hostile: bool,
    /// Make this attack alone, with --hostile; may be given several times [default: all]
    #[arg(long, requires = "hostile", value_parser = attack_names())]
    attack: Vec<String>,
    /// Addresses that the attackers come from, with --hostile
    #[arg(long, requires = "hostile", default_value_t = 5)]
    addresses: u32,
    /// Seconds of each attack, with --hostile
    #[arg(long, requires = "hostile", default_value_t = 5)]
    seconds: u16,
}

fn attack_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Attack::ALL.map(Attack::name))
}

/// The attacks of these words; all of them if there are no words.
fn attacks(words: &[String]) -> Vec<Attack> {
    let is_wanted =
        |attack: &Attack| words.is_empty() || words.iter().any(|word| word == attack.name());
    Attack::ALL.into_iter().filter(is_wanted).collect()
}

/// How many come.
pub(super) struct Crowd {
    pub(super) buyers: u32,
    pub(super) connections: u16,
}

/// The copy's directory, deleted with it unless it is to be kept.
struct Copy {
    dir: PathBuf,
    is_kept: bool,
}

impl Copy {
    /// Makes the directory, which must not be there: another's, or a link that another laid in a folder that
    /// is everybody's, would be filled with the shop's data, and deleted.
    fn make(named: Option<&PathBuf>) -> Result<Self, Failed> {
        let Some(dir) = named else {
            // Its name can't be foretold.
            let made = tempfile::Builder::new()
                .prefix("onrush-rehearsal-")
                .permissions(std::fs::Permissions::from_mode(0o700))
                .tempdir()?;
            return Ok(Self {
                dir: made.keep(),
                is_kept: false,
            });
        };
        let failed = |error: std::io::Error| {
            let dir = dir.display();
            Failed::new(
                EXIT_USAGE,
                match error.kind() {
                    std::io::ErrorKind::AlreadyExists => {
                        format!("{dir} is there already; choose another --copy-to")
                    }
                    _ => format!("{dir}: {error}; choose another --copy-to"),
                },
            )
        };
        if let Some(parent) = dir.parent().filter(|path| !path.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut new = std::fs::DirBuilder::new();
        new.mode(0o700).create(dir).map_err(failed)?;
        Ok(Self {
            dir: dir.clone(),
            is_kept: true,
        })
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = std::fs::remove_dir_all(&self.dir)
        {
            say(&format!(
                "the copy in {} could not be deleted: {error}",
                self.dir.display()
            ));
        }
    }
}

pub(super) fn rehearse(common: &Common, args: &RehearseArgs) -> Outcome {
    let own = common.load(Vec::new())?.settings;
    let database = existing_database(&own)?;
    let copy = Copy::make(args.copy_to.as_ref())?;
    let target = database_in(&copy.dir);
    // Through the data directory, so that the copy is its user's alone. There is no lock file yet that would
    // say of the database that it is missing.
    drop(crate::store::DataDir::open(&copy.dir)?);
    file::copy_alone(&database, &own.database, &target)?;
    if args.hostile {
        let drills = super::hostile::Drills {
            addresses: args.addresses.max(1),
            time: Duration::from_secs(u64::from(args.seconds.max(1))),
            attacks: attacks(&args.attack),
        };
        let outcome = super::hostile::run(common, &copy.dir, drills);
        drop(copy);
        return outcome;
    }
    let flags = vec![
        ("data.dir".to_owned(), copy.dir.display().to_string()),
        ("server.host".to_owned(), "127.0.0.1".to_owned()),
        ("server.port".to_owned(), args.port.clone()),
        // The buyers speak plain HTTP over TCP, and the shop's own socket is its own.
        ("server.tls_cert".to_owned(), String::new()),
        ("server.tls_key".to_owned(), String::new()),
        ("server.unix_socket".to_owned(), String::new()),
        ("server.public_url".to_owned(), String::new()),
        // The copy holds the shop's waiting tasks, and those are not the rehearsal's to do.
        ("tasks.workers".to_owned(), "0".to_owned()),
        ("schedules.enabled".to_owned(), "false".to_owned()),
        ("log.level".to_owned(), "warn".to_owned()),
    ];
    let settings = common.load_with(flags)?.settings;
    let metrics = Metrics::new()?;
    let log = logs::init(&settings.log, Some(&metrics))?;
    let runtime = app::runtime(&settings)?;
    let outcome = runtime.block_on(async {
        let app = App::start(settings, metrics).await?;
        let sale = match choose(&app, args).await {
            Ok(sale) => sale,
            Err(failed) => {
                app.stop().await;
                return Err(failed);
            }
        };
        app.gate.open(sale.clone());
        let left = u32::try_from(sale.remaining).unwrap_or(u32::MAX);
        let crowd = Crowd {
            buyers: args
                .buyers
                .unwrap_or_else(|| left.saturating_mul(5).clamp(1_000, 100_000)),
            connections: args.connections,
        };
        if !common.json {
            say(&format!(
                "Sale {} of product {} has {} units; {} buyers come. Your shop itself is not touched.",
                sale.id, sale.product_id, sale.remaining, crowd.buyers
            ));
        }
        hold(common, app, sale, crowd, args.exit).await
    });
    log.flush();
    drop(copy);
    outcome
}

/// The sale that was asked for, opened in the copy.
async fn choose(app: &App, args: &RehearseArgs) -> Result<Sale, Failed> {
    let (now, settings) = (app.clock.now(), app.settings.flash_sales.clone());
    let (wanted, unit_amount) = (args.sale.map(SaleId), args.unit_amount);
    let new = args.product.map(ProductId).zip(args.units);
    let sale = app
        .store
        .write(move |tx| {
            let Some((product_id, quantity)) = new else {
                return rehearsal::open_now(tx, now, wanted);
            };
            rehearsal::close_others(tx, now, product_id)?;
            let new = NewSale {
                product_id,
                quantity,
                unit_amount,
                starts_at: now,
                ends_at: now.plus_seconds(3_600),
                per_user_limit: 1,
                attempts_per_minute: 3,
                payment_window_seconds: 0,
            };
            flash_sale::create(tx, now, &settings, &Events::default(), &new).map(Some)
        })
        .await
        .map_err(|error| refused("the sale can't be rehearsed", error))?;
    let sale = sale.ok_or_else(|| {
        Failed::new(
            EXIT_USAGE,
            "the shop has no open sale with units left; make one, or try a new one with --product and --units",
        )
    })?;
    if sale.remaining == 0 {
        return Err(Failed::new(
            EXIT_USAGE,
            format!(
                "sale {} is sold out; try a new one with --product and --units",
                sale.id
            ),
        ));
    }
    Ok(sale)
}

/// Why a sale was not opened, behind what was to be done.
pub(super) fn refused(what: &str, error: SaleError) -> Failed {
    let Failed { code, message } = error.into();
    Failed::new(code, format!("{what}: {message}"))
}

/// Lets the crowd into the open sale, shows the report card, and serves on or stops.
pub(super) async fn hold(
    common: &Common,
    app: App,
    sale: Sale,
    crowd: Crowd,
    exit: bool,
) -> Outcome {
    let signals = Signals::listen()?;
    let card = match sell(&app, &sale, &crowd, common.json).await {
        Ok(card) => card,
        Err(failed) => {
            app.stop().await;
            return Err(failed);
        }
    };
    show(common, &card)?;
    let broken = card.broken;
    if exit || broken.is_some() {
        app.stop().await;
    } else {
        let end = match End::listen() {
            Ok(end) => end,
            Err(error) => {
                app.stop().await;
                return Err(error.into());
            }
        };
        if !common.json {
            for line in greeting(&app) {
                say(&line);
            }
            say("Press Ctrl-C to stop.");
        }
        app.run_until_signal(signals, end, App::reload_certificates)
            .await;
    }
    match broken {
        None => Ok(()),
        Some(promise) => Err(Failed::new(
            EXIT_BROKEN,
            format!("a promise broke: {promise}"),
        )),
    }
}

async fn sell(app: &App, sale: &Sale, crowd: &Crowd, quiet: bool) -> Result<Card, Failed> {
    let (now, sale_id) = (app.clock.now(), sale.id);
    let mut tokens = Vec::new();
    for first in (0..crowd.buyers).step_by(500) {
        let count = (crowd.buyers - first).min(500);
        tokens.extend(
            app.store
                .write(move |tx| rehearsal::create_buyers(tx, now, first, count))
                .await?,
        );
    }
    let sold_before = app
        .store
        .read(move |tx| flash_sale::units_ordered(tx, sale_id))
        .await?;
    let progress = Arc::new(Progress::default());
    let plan = Plan {
        address: app.address,
        sale_id,
        allotted: u32::try_from(sale.remaining).unwrap_or(u32::MAX),
        sold_before,
        units_may_return: sale.payment_window_seconds > 0 || sale.held > 0,
        tokens,
        connections: usize::from(crowd.connections.max(1)),
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
                    "{} attempts, {} claims accepted",
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
    let mut card = card?;
    // A large ledger takes longer than a request may, so this reads without the server's limit.
    let (path, settings) = (app.database(), app.settings.database.clone());
    let verdict = tokio::task::spawn_blocking(move || {
        file::read_alone::<_, StoreError>(&path, &settings, |tx| audit::verify(tx, |_| Ok(())))
    })
    .await??;
    card.conclude(&verdict);
    Ok(card)
}

fn show(common: &Common, card: &Card) -> Outcome {
    if common.json {
        print(&serde_json::to_string(card)?);
        return Ok(());
    }
    let mut table = Table::new();
    table
        .load_preset(UTF8_BORDERS_ONLY)
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
    row("doubled and granted twice", card.doubled.to_string());
    row(
        "attempts",
        format!("{} in {:.2} s", card.attempts, card.seconds),
    );
    // These lines add up to the attempts.
    row("  accepted", card.accepted.to_string());
    row("  answered again", card.replayed.to_string());
    for (code, count) in &card.refused {
        row(&format!("  refused: {code}"), count.to_string());
    }
    row("  unanswered", card.unanswered.to_string());
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
    row(
        "verdict",
        match &card.broken {
            None => "kept: every promise held".to_owned(),
            Some(promise) => format!("BROKEN: {promise}"),
        },
    );
    print(&table.to_string());
    Ok(())
}
