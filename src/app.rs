//! Builds each handle once, starts the parts in order, stops them in reverse.
//!
//! Invariants: whatever a start can be refused for is tried before it changes a file; nothing is answered
//! before the database was looked over, as far as a bounded time goes, and migrated; readiness fails first when
//! the process is told to stop;
//! the database closes last, after every request and background service that could write. No business
//! rule lives here.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use poem::endpoint::make_sync;
use poem::web::Redirect;
use poem::{Endpoint, EndpointExt, IntoEndpoint, IntoResponse, Route, get};
use poem_openapi::OpenApiService;
use rust_embed::RustEmbed;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::allotment;
use crate::auth::api::{AuthApi, Guarded};
use crate::auth::registration::{self, OnAsked};
use crate::auth::{self, Auth, OnRegistered, Role, Scope, Surroundings, idempotency};
use crate::cache::Cache;
use crate::cache::api::CacheApi;
use crate::clock::{Clock, Stopwatch};
use crate::config::{self, Settings, ms};
use crate::faktory::api::WorkerApi;
use crate::faktory::{Faktory, Listener};
use crate::flash_sale;
use crate::flash_sale::api::{FlashSaleApi, SeckillApi};
use crate::flash_sale::gate::Gate;
use crate::flash_sale::ready::ReadySales;
use crate::flash_sale::service::Sweeper;
use crate::flash_sale::tasks::ExpireHolds;
use crate::http::docs::OpenApiSpec;
use crate::http::edge::{BodyKind, Edge, EdgeOptions};
use crate::http::files::{EmbeddedPage, StaticFiles};
use crate::http::listen::Listeners;
use crate::http::outgoing::Outgoing;
use crate::http::serve::serve;
use crate::http::shares::Shares;
use crate::http::tls::Tls;
use crate::http::{docs, probes};
use crate::mail::{Mailer, SendConfirmationEmail, SendWelcomeEmail};
use crate::monitor::api::SystemApi;
use crate::monitor::security::{Event, SecurityLog, Who};
use crate::monitor::{self, CheckOutcome, Health, Metrics, Need, State, logs};
use crate::order::api::OrderApi;
use crate::order::audit::VerifyStock;
use crate::order::popularity::UpdateProductPopularity;
use crate::order::tasks::{ProcessOrder, SendOrderEmail};
use crate::order::{self, FollowUps};
use crate::product;
use crate::product::api::ProductApi;
use crate::product::reindex::Reindexer;
use crate::product::showcase::Showcase;
use crate::product::tasks::WarmCache;
use crate::report;
use crate::report::api::ReportApi;
use crate::report::tasks::GenerateSalesReport;
use crate::schedule::api::ScheduleApi;
use crate::schedule::{self, BuiltIn, ScheduleError, Schedules, Ticker, When};
use crate::store::file::{self, Budget, Examined};
use crate::store::{Condition, DataDir, LongReads, Mark, Store, StoreError};
use crate::task::api::{EnqueueApi, RunApi, TaskApi};
use crate::task::http_request::HttpRequest;
use crate::task::{self, Pool, Registry, Tasks, Upkeep};
use crate::user;
use crate::user::api::UserApi;
use crate::user::tasks::{CleanExpiredCache, Sweep, SyncUserActivity};
use crate::webhook::api::WebhookApi;
use crate::webhook::{Catalogue, DeliverWebhook, Webhooks};

/// How long the look over the whole database may hold up a start. A larger database is looked over in the
/// background, while it serves.
const CHECK_AT_START: Budget = Budget {
    after_order: Duration::from_millis(10),
    after_disorder: Duration::from_millis(100),
};
/// How long the same look may take in the background.
const CHECK_BEHIND: Duration = Duration::from_secs(600);
/// Exit code for a failed disk (EX_IOERR of sysexits.h).
const EXIT_IO: i32 = 74;
/// The stock ledger is checked for the first time when the rush of the start is over.
const FIRST_LEDGER_CHECK_SECONDS: u32 = 60;

/// A data directory with its database, opened by this process.
pub struct OpenData {
    /// Paths and the lock.
    pub dir: Arc<DataDir>,
    /// The record.
    pub store: Store,
    /// The machine's clock.
    pub clock: Clock,
}

impl OpenData {
    /// The built-in tasks, for whoever makes some.
    pub fn registry(&self, settings: &Settings) -> anyhow::Result<Registry> {
        let (handles, _) = handles(
            Arc::new(settings.clone()),
            &Places::of(&self.dir),
            Senders::new(settings, self.dir.outbox())?,
            self.store.clone(),
            self.clock.clone(),
            Metrics::new()?,
        );
        Ok(handles.tasks.registry().clone())
    }

    /// Closes the database and notes the orderly end. Blocks.
    pub fn close(&self) {
        close(&self.dir, &self.store);
    }
}

fn close(dir: &DataDir, store: &Store) {
    // Without this note, an end in the middle of closing would be taken for a lost log.
    if let Err(error) = dir.note_closing() {
        tracing::warn!(%error, "the stop could not be noted in the lock file");
    }
    store.close();
    if !store.is_compared() {
        dir.set_sound(false);
    }
    dir.release();
}

/// Opens the data directory for a command that does not serve.
pub fn open_data(settings: &Settings) -> anyhow::Result<OpenData> {
    open(hold(settings)?, settings, &Metrics::new()?)
}

/// A data directory that this process holds and looked over. Nothing in it was changed.
struct Held {
    dir: DataDir,
    found: Examined,
}

fn hold(settings: &Settings) -> anyhow::Result<Held> {
    let dir = DataDir::open(&settings.data.dir)?;
    let found = file::examine(&dir.database(), dir.left(), Some(CHECK_AT_START))
        .map_err(|error| damaged(error, &dir))?;
    Ok(Held { dir, found })
}

/// From here on files are changed.
fn open(held: Held, settings: &Settings, metrics: &Metrics) -> anyhow::Result<OpenData> {
    let Held { dir, found } = held;
    let (path, mark) = (dir.database(), Mark::fresh());
    dir.begin(&mark);
    if found.gives_up_commits {
        tracing::warn!("the start goes on without the commits behind the damaged place in the log");
        file::fold_log(&path)?;
    }
    let dir = Arc::new(dir);
    dir.set_sound(!found.is_unchecked);
    let metrics = metrics.clone();
    let store = Store::open_as(
        &mark,
        found.seen,
        &path,
        &settings.database,
        metrics,
        |error| {
            tracing::error!(%error, "the disk failed under a commit");
            logs::end(
                EXIT_IO,
                &format!(
                    "{error}; nothing that was answered is lost: see to the disk, and start again"
                ),
            );
        },
    )
    .map_err(|error| damaged(error, &dir))?;
    let noting = Arc::downgrade(&dir);
    store.condition().on_damage(move || {
        if let Some(dir) = noting.upgrade() {
            dir.note_damage();
        }
    });
    let opened = (|| {
        store
            .read_blocking(task::continue_ids)
            .map_err(|error| damaged(error, &dir))?;
        if found.is_unchecked {
            tracing::info!("the database is being looked over while it serves");
            let condition = store.condition().clone();
            check_behind(
                Arc::downgrade(&dir),
                path,
                settings.database.clone(),
                condition,
            )?;
        }
        anyhow::Ok(())
    })();
    if let Err(error) = opened {
        close(&dir, &store);
        return Err(error);
    }
    // A full disk must not keep a shop from starting to read.
    if let Err(error) = auth::fold_names(&store) {
        tracing::warn!(%error, "some accounts are not found by their names before the next start");
    }
    if let Err(error) = dir.note_open(store.mark()) {
        tracing::warn!(%error, "the start could not be noted in the lock file");
    }
    Ok(OpenData {
        dir,
        store,
        clock: Clock::system(),
    })
}

/// Adds to a damaged database's error what to do about it.
fn damaged(error: StoreError, dir: &DataDir) -> anyhow::Error {
    match error {
        StoreError::Corrupt(_) => anyhow::anyhow!(
            "{error}; keep a copy of {}, see what is sound with `onrush stock verify`, then put a backup of \
             onrush.db in its place (without -wal and -shm files, and without onrush.lock)",
            dir.root().display()
        ),
        other => other.into(),
    }
}

/// Looks the database over while it is served. What it finds damaged is not written to from then on
/// ([`Condition`]).
fn check_behind(
    dir: Weak<DataDir>,
    path: PathBuf,
    settings: config::Database,
    condition: Condition,
) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("onrush-check".to_owned())
        .spawn(move || {
            let goes_on = || dir.strong_count() > 0;
            match file::check_beside(&path, &settings, &condition, CHECK_BEHIND, goes_on) {
                Ok(true) => {
                    if let Some(dir) = dir.upgrade() {
                        dir.set_sound(true);
                    }
                    tracing::info!("the database is sound");
                }
                Ok(false) => tracing::warn!("the database could not be looked over in time"),
                // It is said where that is noted.
                Err(StoreError::Corrupt(_)) => {}
                Err(error) => tracing::warn!(%error, "the database could not be looked over"),
            }
        })?;
    Ok(())
}

/// What the probes tell of this process.
fn register_checks(health: &Health, store: &Store, clock: &Clock) {
    let condition = store.condition().clone();
    health.register("database", Need::Everything, move || {
        match (condition.damage(), condition.changed()) {
            (Some(what), _) => CheckOutcome::Fail(format!(
                "the database is damaged, and nothing is written to it any more: {what}"
            )),
            (None, Some(what)) => CheckOutcome::Warn(format!(
                "another program changed the database since the last orderly stop: {what}"
            )),
            (None, None) => CheckOutcome::Pass,
        }
    });
    let condition = store.condition().clone();
    health.register("writes", Need::Writing, move || {
        match condition.refusing() {
            None => CheckOutcome::Pass,
            Some(error) => CheckOutcome::Fail(format!(
                "{error}: nobody can log in or order; reading goes on"
            )),
        }
    });
    let clock = clock.clone();
    health.register("clock", Need::Everything, move || match clock.held() {
        None => CheckOutcome::Pass,
        Some(seconds) => CheckOutcome::Warn(format!(
            "the system's clock was set by {seconds} s and is not followed until that has stood for a while"
        )),
    });
}

/// The async runtime that the settings ask for.
pub fn runtime(settings: &Settings) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if settings.server.workers > 0 {
        builder.worker_threads(settings.server.workers);
    }
    builder
        .max_blocking_threads(64)
        .thread_name("onrush")
        .enable_all()
        .build()
}

/// What most handles are built on.
struct Basis<'a> {
    settings: &'a Settings,
    database: &'a Path,
    store: &'a Store,
    metrics: &'a Metrics,
}

/// The built-in tasks.
fn registry(
    basis: &Basis<'_>,
    auth: Auth,
    cache: &Cache,
    sweeper: Sweeper,
    ways_out: &WaysOut,
) -> Registry {
    let Basis {
        settings,
        database,
        store,
        metrics,
    } = *basis;
    let reads = LongReads::new(database.to_owned(), &settings.database, store);
    let reports = Arc::new(settings.reports.clone());
    let products = Arc::new(settings.products.clone());
    let key_seconds = settings.orders.idempotency_seconds;
    let known_seconds = i64::from(settings.auth.login_known_days) * 86_400;
    let sweeps: Vec<(&str, Sweep)> = vec![
        ("sessions", Arc::new(auth::purge_sessions)),
        ("registrations", Arc::new(registration::purge)),
        (
            "known_places",
            Arc::new(move |tx, now| auth::place::purge_places(tx, now, known_seconds)),
        ),
        (
            "idempotency_keys",
            Arc::new(move |tx, now| idempotency::purge(tx, now, key_seconds)),
        ),
        ("reports", Arc::new(report::purge)),
    ];
    Registry::builder()
        .with(ProcessOrder::new(ways_out.follow_ups(settings)))
        .with(SendOrderEmail::new(store.clone(), ways_out.mailer.clone()))
        .with(SendWelcomeEmail::new(ways_out.mailer.clone()))
        .with(SendConfirmationEmail::new(
            ways_out.mailer.clone(),
            settings.auth.confirm_seconds,
        ))
        .with(HttpRequest::new(ways_out.outgoing.clone()))
        .with(DeliverWebhook::new(
            ways_out.webhooks.clone(),
            ways_out.outgoing.clone(),
        ))
        .with(VerifyStock::new(reads.clone(), metrics.clone()))
        .with(GenerateSalesReport::new(reads.clone(), reports))
        .with(UpdateProductPopularity::new(store.clone(), reads, products))
        .with(SyncUserActivity::new(auth))
        .with(CleanExpiredCache::new(store.clone(), cache.clone(), sweeps))
        .with(WarmCache::new(cache.clone()))
        .with(ExpireHolds::new(sweeper))
        .build()
}

/// What the shop does again and again by itself.
fn built_in_schedules(settings: &Settings) -> Vec<BuiltIn> {
    let mut all = vec![
        BuiltIn::of::<CleanExpiredCache>(When::Cron("0 1 * * *".to_owned())),
        BuiltIn::of::<SyncUserActivity>(When::Every(300)),
        BuiltIn::of::<UpdateProductPopularity>(When::Every(900)),
    ];
    if settings.cache.enabled && settings.cache.warm_seconds > 0 {
        all.push(BuiltIn::of::<WarmCache>(When::Every(
            settings.cache.warm_seconds,
        )));
    }
    let ledger_check_seconds = settings.orders.ledger_check_seconds;
    if ledger_check_seconds > 0 {
        let every = When::Every(u32::try_from(ledger_check_seconds).unwrap_or(u32::MAX));
        // What the last process found, this one's gauges don't tell.
        all.push(BuiltIn::of::<VerifyStock>(every).soon_after_start(FIRST_LEDGER_CHECK_SECONDS));
    }
    all
}

/// Checks of the settings what a start would refuse beyond their values, without a data directory:
/// the files that they name, the log's directives, the schedules that they declare.
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    logs::check(&settings.log)?;
    let server = &settings.server;
    if !server.tls_cert.as_os_str().is_empty() {
        Tls::load(&server.tls_cert, &server.tls_key)?;
    }
    without_data(settings.clone(), |handles| {
        let basis = schedule::Basis {
            rules: Arc::new(settings.schedules.clone()),
            task_rules: Arc::new(settings.tasks.clone()),
            registry: handles.tasks.registry().clone(),
        };
        let now = handles.clock.now();
        schedule::declarations(&basis, now, &built_in_schedules(settings))?;
        Ok(())
    })
}

/// Builds the handles over an empty database that is thrown away afterwards.
fn without_data<T>(
    settings: Settings,
    work: impl FnOnce(&Handles) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    // Its name can't be foretold, it is made by this call or not at all, and it is nobody else's: the
    // folder for temporary files is everybody's.
    let dir = tempfile::Builder::new()
        .prefix("onrush-")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()?;
    let done = (|| {
        let metrics = Metrics::new()?;
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &settings.database, metrics.clone(), |_| ())?;
        let places = Places {
            database: path,
            cache: dir.path().join("cache"),
        };
        let senders = Senders::new(&settings, dir.path().join("outbox"))?;
        let settings = Arc::new(settings);
        let (handles, _) = handles(settings, &places, senders, store, Clock::system(), metrics);
        let done = work(&handles);
        handles.store.close();
        done
    })();
    dir.close()?;
    done
}

/// Where in the data directory the handles keep what is theirs.
struct Places {
    database: PathBuf,
    cache: PathBuf,
}

impl Places {
    fn of(dir: &DataDir) -> Self {
        Self {
            database: dir.database(),
            cache: dir.cache(),
        }
    }
}

/// Every kind of event that the features declare.
pub fn events() -> Catalogue {
    Catalogue::of(&[
        order::events::EVENTS,
        flash_sale::events::EVENTS,
        user::events::EVENTS,
    ])
}

/// What leaves the house: calls, webhooks, mails.
struct WaysOut {
    outgoing: Outgoing,
    webhooks: Webhooks,
    mailer: Mailer,
}

/// What goes out without knowing the record; its settings can be refused.
struct Senders {
    outgoing: Outgoing,
    mailer: Mailer,
}

impl Senders {
    fn new(settings: &Settings, outbox: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            outgoing: Outgoing::new(Arc::new(settings.outgoing.clone()))?,
            mailer: Mailer::new(settings.mail.clone(), outbox)?,
        })
    }
}

impl WaysOut {
    fn new(senders: Senders, settings: &Settings, store: Store, clock: Clock) -> Self {
        Self {
            outgoing: senders.outgoing,
            webhooks: Webhooks::new(events(), store, clock, settings.webhooks.clone()),
            mailer: senders.mailer,
        }
    }

    fn follow_ups(&self, settings: &Settings) -> FollowUps {
        FollowUps {
            process: settings.orders.process,
            mail: settings.mail.orders.applies(&settings.mail),
            events: self.webhooks.events().clone(),
        }
    }

    /// What follows from a registration.
    fn on_registered(&self, settings: &Settings) -> OnRegistered {
        let (events, welcome) = (self.webhooks.events().clone(), settings.mail.welcome);
        Box::new(move |tx, now, account| {
            user::events::registered(&events, tx, now, account)?;
            if welcome {
                SendWelcomeEmail::enqueue(tx, now, account.id)?;
            }
            Ok(())
        })
    }

    /// What follows from a registration whose address is to be proven, if addresses are.
    fn on_asked(settings: &Settings) -> Option<OnAsked> {
        let is_proven = settings.auth.confirm_registration.applies(&settings.mail);
        is_proven.then(|| Box::new(SendConfirmationEmail::enqueue) as OnAsked)
    }
}

/// The handles that the API is made of.
struct Handles {
    settings: Arc<Settings>,
    store: Store,
    clock: Clock,
    metrics: Metrics,
    shares: Shares,
    security: SecurityLog,
    auth: Auth,
    cache: Cache,
    showcase: Showcase,
    ready_sales: ReadySales,
    gate: Gate,
    tasks: Tasks,
    schedules: Schedules,
    faktory: Faktory,
    ways_out: WaysOut,
}

/// The whole API, in the order of the document's tags.
type Api = (
    AuthApi,
    UserApi,
    ProductApi,
    OrderApi,
    FlashSaleApi,
    SeckillApi,
    (EnqueueApi, TaskApi, RunApi),
    ScheduleApi,
    ReportApi,
    WorkerApi,
    WebhookApi,
    CacheApi,
    SystemApi,
);

/// Builds each handle once. The sweeper is a service and a task.
fn handles(
    settings: Arc<Settings>,
    places: &Places,
    senders: Senders,
    store: Store,
    clock: Clock,
    metrics: Metrics,
) -> (Handles, Sweeper) {
    let ways_out = WaysOut::new(senders, &settings, store.clone(), clock.clone());
    let cache = Cache::new(
        Arc::new(settings.cache.clone()),
        &places.cache,
        clock.clone(),
        metrics.clone(),
    );
    let shares = Shares::new(&settings, &metrics);
    let security = SecurityLog::new(
        &metrics,
        settings.log.security_lines_per_second,
        clock.clone(),
    );
    let auth = Auth::new(
        store.clone(),
        Arc::new(settings.auth.clone()),
        clock.clone(),
        Surroundings {
            on_registered: ways_out.on_registered(&settings),
            on_asked: WaysOut::on_asked(&settings),
            log: security.clone(),
            shares: shares.clone(),
        },
    );
    let gate = Gate::new(
        Arc::new(settings.flash_sales.clone()),
        clock.clone(),
        metrics.clone(),
    );
    let sweeper = Sweeper::new(
        store.clone(),
        clock.clone(),
        Arc::clone(&settings),
        gate.clone(),
        ways_out.follow_ups(&settings),
        cache.clone(),
    );
    let tasks = Tasks::new(
        store.clone(),
        clock.clone(),
        Arc::new(settings.tasks.clone()),
        metrics.clone(),
        registry(
            &Basis {
                settings: &settings,
                database: &places.database,
                store: &store,
                metrics: &metrics,
            },
            auth.clone(),
            &cache,
            sweeper.clone(),
            &ways_out,
        ),
    );
    let schedules = Schedules::new(
        &tasks,
        Arc::new(settings.schedules.clone()),
        metrics.clone(),
    );
    let faktory = Faktory::new(
        tasks.clone(),
        Arc::new(settings.faktory.clone()),
        metrics.clone(),
        security.clone(),
    );
    let handles = Handles {
        showcase: Showcase::new(
            store.clone(),
            shares.clone(),
            Arc::new(settings.products.clone()),
            &cache,
            product::api::shown,
        ),
        shares,
        ready_sales: ReadySales::new(store.clone(), &cache),
        settings,
        store,
        clock,
        metrics,
        security,
        auth,
        cache,
        gate,
        tasks,
        schedules,
        faktory,
        ways_out,
    };
    (handles, sweeper)
}

fn service(handles: &Handles) -> OpenApiService<Api, ()> {
    let follow_ups = handles.ways_out.follow_ups(&handles.settings);
    let sales = FlashSaleApi::new(
        handles.ready_sales.clone(),
        handles.clock.clone(),
        Arc::clone(&handles.settings),
        handles.metrics.clone(),
        handles.gate.clone(),
        follow_ups.clone(),
    );
    let gate = handles.gate.clone();
    let api = (
        AuthApi::new(handles.auth.clone()),
        UserApi::new(
            handles.store.clone(),
            handles.clock.clone(),
            handles.auth.clone(),
        ),
        ProductApi::new(
            handles.showcase.clone(),
            handles.clock.clone(),
            handles.metrics.clone(),
            Arc::new(handles.settings.import.clone()),
            Arc::from(handles.settings.data.dir.as_path()),
            allotment::not_over,
        ),
        OrderApi::new(
            handles.store.clone(),
            handles.clock.clone(),
            Arc::new(handles.settings.orders.clone()),
            handles.metrics.clone(),
            Arc::new(move |moved| gate.adjust(moved)),
            flash_sale::is_within_limit,
            follow_ups,
        ),
        sales.clone(),
        SeckillApi::new(sales),
        (
            EnqueueApi::new(
                handles.tasks.clone(),
                handles.settings.orders.idempotency_seconds,
            ),
            TaskApi::new(handles.tasks.clone()),
            RunApi::new(handles.tasks.clone()),
        ),
        ScheduleApi::new(
            handles.schedules.clone(),
            handles.settings.orders.idempotency_seconds,
        ),
        ReportApi::new(
            handles.tasks.clone(),
            Arc::new(handles.settings.reports.clone()),
        ),
        WorkerApi::new(handles.faktory.clone()),
        WebhookApi::new(
            handles.ways_out.webhooks.clone(),
            handles.ways_out.outgoing.clone(),
        ),
        CacheApi::new(
            handles.cache.clone(),
            Arc::new(handles.settings.cache.clone()),
        ),
        SystemApi::new(handles.store.clone(), handles.settings.database.clone()),
    );
    OpenApiService::new(api, "Onrush", env!("CARGO_PKG_VERSION"))
        .description(
            "A shop's catalogue, orders, stock and flash sales in one process. The body of a request may \
             be gzipped, with the header `Content-Encoding: gzip`.",
        )
        .server("/")
}

/// The OpenAPI document, made without a server: `(JSON, YAML)`.
pub fn openapi() -> anyhow::Result<(String, String)> {
    without_data(Settings::default(), |handles| {
        let spec = document(handles)?;
        Ok((spec.json(), spec.yaml()))
    })
}

fn document(handles: &Handles) -> anyhow::Result<OpenApiSpec> {
    Ok(OpenApiSpec::new(&service(handles).spec())?)
}

/// The admin page as `web/build.rs` made it.
#[derive(RustEmbed)]
#[folder = "$OUT_DIR/ui"]
struct AdminPage;

fn body_kind(path: &str) -> BodyKind {
    if path == "/api/v1/products/import" {
        BodyKind::Import
    } else if path.starts_with("/api/v1/auth/") {
        BodyKind::Open
    } else {
        BodyKind::Usual
    }
}

fn routes(
    handles: &Handles,
    health: &Health,
    static_files: &Path,
) -> anyhow::Result<impl Endpoint + use<>> {
    let spec = document(handles)?;
    let table = spec.routes("");
    let mut route = Route::new()
        .at(
            "/",
            get(make_sync(|_| {
                Redirect::temporary("/admin/").into_response()
            })),
        )
        .nest("/admin", EmbeddedPage::new::<AdminPage>())
        .nest("/static", StaticFiles::new(static_files));
    let server = &handles.settings.server;
    if server.docs {
        route = docs::add_routes(route, &spec);
    }
    route = probes::add_health(route, health);
    let metrics = Guarded::new(
        probes::metrics_page(&handles.metrics),
        &server.metrics_allow,
        Role::Staff,
        Scope::Metrics,
    );
    route = route.at("/metrics", get(metrics));
    // Not nested at the root: there its catch-all would take `/` itself.
    let api = Arc::new(service(handles).into_endpoint());
    let app = route
        .nest_no_strip("/api", Arc::clone(&api))
        .nest_no_strip("/seckill", api)
        .data(handles.auth.clone())
        .map_to_response();
    Ok(Edge::new(
        app,
        EdgeOptions {
            server: Arc::new(handles.settings.server.clone()),
            log_requests: handles.settings.log.requests,
            metrics: handles.metrics.clone(),
            clock: handles.clock.clone(),
            routes: table,
            bodies: body_kind,
            shares: handles.shares.clone(),
        },
    ))
}

/// What a server needs besides its data, and what a start can be refused for: it is had before any file
/// is changed. Who connects already waits until it is served.
struct Outside {
    listeners: Listeners,
    for_workers: Option<Listener>,
    senders: Senders,
}

impl Outside {
    async fn prepare(settings: &Arc<Settings>, dir: &DataDir) -> anyhow::Result<Self> {
        let senders = Senders::new(settings, dir.outbox())?;
        if !settings.schedules.entries.is_empty() {
            let asked = Arc::clone(settings);
            tokio::task::spawn_blocking(move || check(&asked)).await??;
        }
        Ok(Self {
            listeners: Listeners::bind(&settings.server)?,
            for_workers: match settings.faktory.enabled {
                true => Some(Listener::bind(&settings.faktory, &settings.server)?),
                false => None,
            },
            senders,
        })
    }
}

/// The signals that must not end a server. As long as it lives and ever after, SIGHUP is heard,
/// SIGUSR1 and SIGUSR2 are ignored, and so is SIGXFSZ, whose write then fails with an error as on a full
/// disk. (Rust ignores SIGPIPE by itself.)
pub struct Signals {
    hangup: Signal,
}

impl Signals {
    /// To be made before anything else, inside the async runtime.
    pub fn listen() -> std::io::Result<Self> {
        for ignored in [
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::from_raw(nix::libc::SIGXFSZ),
        ] {
            // The handler stays when its stream is dropped.
            drop(signal(ignored)?);
        }
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// SIGTERM and Ctrl-C, which end a running server in order. Before they are listened for, either ends
/// the process at once, so that a start or a crowd can be given up.
pub struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    /// To be made before the server says that it is ready: from then on it is stopped in order.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn heard(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A running server.
pub struct App {
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// Where it listens.
    pub address: std::net::SocketAddr,
    /// The record.
    pub store: Store,
    security: SecurityLog,
    /// Sessions and keys.
    pub auth: Auth,
    /// The gate of the flash sales.
    pub gate: Gate,
    /// Tasks and their queues.
    pub tasks: Tasks,
    /// Workers that speak the Faktory protocol.
    pub faktory: Faktory,
    /// Where they connect to, if they may.
    pub faktory_address: Option<std::net::SocketAddr>,
    faktory_url: Option<String>,
    faktory_server: Option<tokio::task::JoinHandle<()>>,
    /// Its clock.
    pub clock: Clock,
    is_tls: bool,
    tls: Vec<Tls>,
    dir: Arc<DataDir>,
    health: Health,
    setup_token: Option<String>,
    stop: watch::Sender<bool>,
    stop_services: watch::Sender<bool>,
    server: tokio::task::JoinHandle<crate::http::serve::Drained>,
    services: JoinSet<()>,
}

impl App {
    /// Opens everything and begins to serve.
    pub async fn start(settings: Settings, metrics: Metrics) -> anyhow::Result<Self> {
        let shop = &settings.shop;
        let clock = Clock::system().guarded(
            Duration::from_secs(shop.clock_jump_seconds),
            Duration::from_secs(shop.clock_hold_seconds),
        );
        Self::start_with_clock(settings, metrics, clock).await
    }

    /// [`App::start`] with a clock that a test moves.
    pub async fn start_with_clock(
        settings: Settings,
        metrics: Metrics,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let settings = Arc::new(settings);
        let (asked, counts) = (Arc::clone(&settings), metrics.clone());
        let held = tokio::task::spawn_blocking(move || hold(&asked)).await??;
        let outside = Outside::prepare(&settings, &held.dir).await?;
        let asked = Arc::clone(&settings);
        let opened = tokio::task::spawn_blocking(move || open(held, &asked, &counts)).await??;
        let (dir, store) = (Arc::clone(&opened.dir), opened.store.clone());
        let started = Self::start_on(opened, outside, settings, metrics, clock).await;
        if started.is_err() {
            tokio::task::spawn_blocking(move || close(&dir, &store)).await?;
        }
        started
    }

    /// What is left to do once the database is open. Hardly anything can fail here.
    async fn start_on(
        opened: OpenData,
        outside: Outside,
        settings: Arc<Settings>,
        metrics: Metrics,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let OpenData { dir, store, .. } = opened;
        let Outside {
            listeners,
            for_workers,
            senders,
        } = outside;
        let health = Health::new();
        register_checks(&health, &store, &clock);
        tell_risks(&settings, &health);
        let (handles, sweeper) = handles(
            Arc::clone(&settings),
            &Places::of(&dir),
            senders,
            store.clone(),
            clock.clone(),
            metrics.clone(),
        );
        let (auth, gate, tasks) = (
            handles.auth.clone(),
            handles.gate.clone(),
            handles.tasks.clone(),
        );
        let webhooks = handles.ways_out.webhooks.clone();
        let security = handles.security.clone();
        gate.load(&store).await?;
        webhooks.load().await?;
        let (delivering, folder) = (tasks.clone(), dir.queue());
        tokio::task::spawn_blocking(move || delivering.deliver(folder)).await??;
        let (schedules, faktory) = (handles.schedules.clone(), handles.faktory.clone());
        schedules
            .declare(&built_in_schedules(&settings))
            .await
            .map_err(|error| match error {
                // The settings are at fault, and whoever started it is to be told so.
                ScheduleError::NotDeclarable(error) => anyhow::Error::new(error),
                other => other.into(),
            })?;
        // One that an earlier start has written is worth nothing any more.
        if let Err(error) = remove_file(&setup_file(&dir)) {
            tracing::warn!(%error, "an old link that made the first admin could not be removed");
        }
        let setup_token = auth.begin_setup().await?;
        let endpoint = routes(&handles, &health, &dir.static_files())?;
        let (address, is_tls) = (listeners.local_addr(), listeners.is_tls());
        let tls = [
            listeners.tls(),
            for_workers.as_ref().and_then(Listener::tls),
        ];
        let tls = tls.into_iter().flatten().cloned().collect();
        let (stop, stopped) = watch::channel(false);
        let (stop_services, services_stopped) = watch::channel(false);

        let mut services = JoinSet::new();
        services.spawn(sweeper.run(services_stopped.clone()));
        services.spawn(Pool::new(tasks.clone()).run(services_stopped.clone()));
        services.spawn(Upkeep::new(tasks.clone()).run(services_stopped.clone()));
        services.spawn(handles.cache.clone().run(services_stopped.clone()));
        services.spawn(webhooks.run_upkeep(services_stopped.clone()));
        services.spawn(Reindexer::new(store.clone()).run(services_stopped.clone()));
        services.spawn(keep_gauges(
            store.clone(),
            dir.database(),
            settings.database.readers,
            metrics.clone(),
            security.clone(),
            services_stopped.clone(),
        ));
        if settings.schedules.enabled {
            services.spawn(Ticker::new(schedules).run(services_stopped));
        }

        let faktory_address = for_workers.as_ref().map(Listener::local_addr);
        let faktory_url = for_workers.as_ref().map(Listener::url);
        let faktory_server = for_workers
            .map(|listener| tokio::spawn(faktory.clone().serve(listener, stopped.clone())));
        let server = tokio::spawn(serve(
            listeners,
            endpoint,
            Arc::new(settings.server.clone()),
            metrics,
            stopped,
        ));
        health.set(State::Ready);
        security.note(Event::Startup, &Who::default());
        Ok(Self {
            settings,
            address,
            store,
            security,
            auth,
            gate,
            tasks,
            faktory,
            faktory_address,
            faktory_url,
            faktory_server,
            clock,
            is_tls,
            tls,
            dir,
            health,
            setup_token,
            stop,
            stop_services,
            server,
            services,
        })
    }

    /// Where the record is.
    pub fn database(&self) -> std::path::PathBuf {
        self.dir.database()
    }

    /// What people type to reach it.
    pub fn url(&self) -> String {
        let public = &self.settings.server.public_url;
        if !public.is_empty() {
            return public.trim_end_matches('/').to_owned();
        }
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// What `serve` tells the person who started it.
    pub fn greeting(&self) -> Vec<String> {
        let url = self.url();
        let mut lines = vec![
            format!("Onrush {} is ready", env!("CARGO_PKG_VERSION")),
            format!("  page     {url}/admin/"),
            format!("  API      {url}/api/v1"),
            format!("  metrics  {url}/metrics"),
            format!("  data     {}", self.dir.root().display()),
        ];
        if self.settings.server.docs {
            lines.insert(2, format!("  docs     {url}/docs"));
        }
        if let Some(url) = &self.faktory_url {
            lines.push(format!("  workers  {url} (Faktory)"));
        }
        let risks = self.settings.risks();
        lines.extend(risks.iter().map(|risk| format!("WARNING: {risk}")));
        if let Some(link) = self.setup_link() {
            lines
                .push("There is no admin yet. Make the first one with this link, once:".to_owned());
            lines.push(format!("  {link}"));
        }
        lines
    }

    fn setup_link(&self) -> Option<String> {
        let token = self.setup_token.as_ref()?;
        Some(format!("{}/admin/#setup={token}", self.url()))
    }

    /// [`App::greeting`] for what is kept, such as a journal: the link that makes the first admin is put
    /// into a file that its owner alone may read, and the greeting says where that is.
    pub fn greeting_for_a_log(&self) -> Vec<String> {
        let mut lines = self.greeting();
        let Some(link) = self.setup_link() else {
            return lines;
        };
        lines.truncate(lines.len().saturating_sub(2));
        let path = setup_file(&self.dir);
        let written = remove_file(&path).and_then(|()| {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            writeln!(file, "{link}")
        });
        let path = path.display();
        lines.push(match written {
            Ok(()) => {
                format!("There is no admin yet. Make the first one with the link in {path}, once")
            }
            Err(error) => format!(
                "There is no admin yet, and the link that makes the first one can't be written to {path}: {error}"
            ),
        });
        lines
    }

    /// Reads the certificates' files again.
    pub fn reload_certificates(&self) {
        for tls in &self.tls {
            tls.reload();
        }
    }

    /// Serves until SIGTERM or SIGINT, then stops in order. A second signal ends at once. SIGHUP calls
    /// `reload`, which must be quick.
    pub async fn run_until_signal(
        self,
        mut signals: Signals,
        mut end: End,
        mut reload: impl FnMut(&Self),
    ) {
        loop {
            tokio::select! {
                () = end.heard() => break,
                Some(()) = signals.hangup.recv() => reload(&self),
            }
        }
        tracing::info!("stopping: no new connections, requests in flight finish");
        tokio::select! {
            () = self.stop() => {}
            () = end.heard() => {
                logs::end(1, "stopped at once by a second signal");
            }
        }
    }

    /// Readiness fails first, then the listener closes, requests in flight finish, services end,
    /// the database closes.
    pub async fn stop(mut self) {
        self.health.set(State::Draining);
        self.security.note(Event::Shutdown, &Who::default());
        self.tasks.turn_away();
        tokio::time::sleep(ms(self.settings.server.shutdown_notice_ms)).await;
        // A receiver that is gone has stopped already.
        self.stop.send_replace(true);
        match self.server.await {
            Ok(drained) if drained.cut_off > 0 => {
                tracing::warn!(
                    connections = drained.cut_off,
                    "the grace was over; connections were cut"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the server ended in a panic"),
        }
        if let Some(server) = self.faktory_server.take()
            && let Err(error) = server.await
        {
            tracing::error!(%error, "the server of the Faktory protocol ended in a panic");
        }
        self.stop_services.send_replace(true);
        while let Some(ended) = self.services.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a background service ended in a panic");
            }
        }
        // After the last request and the last task.
        if let Err(error) = self.auth.sync_activity().await {
            tracing::warn!(%error, "the sessions' last use could not be written");
        }
        self.security.tell_left_out(true);
        let (tasks, store, dir) = (self.tasks, self.store, self.dir);
        let closed = tokio::task::spawn_blocking(move || {
            tasks.stop();
            close(&dir, &store);
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "the database did not close in order");
        }
    }
}

/// Part of the readers, in hundredths, from whose use on the log says that they are few.
const POOL_WARNS_FROM: u32 = 80;
/// Pause between two such lines.
const POOL_WARNS_EVERY: Duration = Duration::from_secs(60);

/// Where the link that makes the first admin is put where it can't be shown to a person at once.
fn setup_file(dir: &DataDir) -> PathBuf {
    dir.root().join("setup-link")
}

/// Removes a file that may not be there.
fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Names unsafe settings in the log at the start, and in `/health`.
fn tell_risks(settings: &Settings, health: &Health) {
    let risks = settings.risks();
    for risk in &risks {
        tracing::warn!(risk, "a setting that is fit for trying out alone");
    }
    let told = risks.join("; ");
    health.register("settings", Need::Everything, move || match told.as_str() {
        "" => monitor::CheckOutcome::Pass,
        risks => monitor::CheckOutcome::Warn(risks.to_owned()),
    });
}

/// Brings the database's gauges up to date each second, and tries a disk that refused a write.
async fn keep_gauges(
    store: Store,
    database: PathBuf,
    readers: u32,
    metrics: Metrics,
    security: SecurityLog,
    mut stopped: watch::Receiver<bool>,
) {
    let mut warned: Option<Stopwatch> = None;
    loop {
        let stats = store.stats();
        metrics
            .db_connections_peak
            .set(i64::from(stats.readers_peak));
        let is_tight = stats.readers_peak.saturating_mul(100) >= readers * POOL_WARNS_FROM;
        if is_tight && warned.is_none_or(|since| since.elapsed() >= POOL_WARNS_EVERY) {
            warned = Some(Stopwatch::start());
            tracing::warn!(
                in_use = stats.readers_peak,
                readers,
                "nearly all reading connections are in use at once; database.readers allows more"
            );
        }
        metrics
            .db_connections_in_use
            .set(i64::from(stats.readers_in_use));
        metrics
            .db_connections_idle
            .set(i64::from(stats.readers_idle));
        metrics
            .db_write_queue_depth
            .set(i64::try_from(stats.writes_waiting).unwrap_or(i64::MAX));
        metrics
            .db_wal_bytes
            .set(i64::try_from(stats.wal_bytes).unwrap_or(i64::MAX));
        if store.condition().refusing().is_some() {
            let (store, database) = (store.clone(), database.clone());
            let tried = tokio::task::spawn_blocking(move || store.try_the_disk(&database)).await;
            if let Err(error) = tried {
                tracing::warn!(%error, "it could not be tried whether the disk takes more");
            }
        }
        security.tell_left_out(false);
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}
