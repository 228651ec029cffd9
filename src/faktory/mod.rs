//! The Faktory work protocol: workers and producers in any language, with the clients that there are.
//!
//! RESP over TCP, as the server of <https://contribsys.com/faktory/> speaks it, over the same rules
//! as everything else here. Where that server's answers and its specification differ, clients are
//! used to the answers. What is different, and why:
//!
//! - Queues of built-in tasks are out of reach: whoever has the password is a worker, not the shop.
//! - `FLUSH` is refused: there is more in this server than jobs.
//! - A job id that was seen before is answered with `OK`, and makes no second job.
//! - A job without retries (`retry: 0`) that fails is kept as dead, so that somebody can see it.
//! - A late or second `ACK` changes nothing and is answered with `OK`, as there; a client in Go would
//!   repeat it for ever otherwise. An id that nobody knows is refused, and so is a late `FAIL`.
//!
//! Invariants: a job is a task whose `external_id` is the job's id; a worker may only end what runs in
//! its own name; every wait for a client has a limit; nothing is kept per client beyond its
//! connection but a bounded list of workers.

pub mod api;
mod commands;
mod job;
mod mutate;
mod serve;
mod wire;
mod workers;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpListener;
use tokio::sync::watch;

use self::wire::Answer;
use self::workers::Workers;
pub use self::workers::{Worker, WorkerState};
use crate::auth::throttle::{Limit, Rules, Throttle};
use crate::config;
use crate::http::listen::{ListenError, bind_tcp};
use crate::http::tls::Tls;
use crate::monitor::Metrics;
use crate::monitor::security::{Event, SecurityLog, Who};
use crate::store::StoreError;
use crate::task::{TaskError, Tasks};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1_024;

/// Why a command was not obeyed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Another job is under way that this one must not be beside.
    #[error("Job not unique")]
    NotUnique,
    /// No such job, or it is not this worker's (any more).
    #[error("Job not found {0}")]
    NoJob(String),
    /// No such batch, or it is complete.
    #[error("No such batch {0}")]
    NoBatch(String),
    /// A worker that never said who it is.
    #[error("unknown worker {0}")]
    NoWorker(String),
    /// The tasks.
    #[error(transparent)]
    Task(#[from] TaskError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Refused::Task(TaskError::Store(error))
    }
}

impl Refused {
    fn answer(self) -> Answer {
        let text = match &self {
            Refused::Task(TaskError::Invalid(errors)) => job::words(errors),
            other => other.to_string(),
        };
        match self {
            Refused::NotUnique => Answer::Error("NOTUNIQUE", text),
            Refused::Invalid(_)
            | Refused::NoJob(_)
            | Refused::NoBatch(_)
            | Refused::NoWorker(_)
            | Refused::Task(_) => Answer::Error("ERR", text),
        }
    }
}

/// How far the port is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It serves.
    Run,
    /// Finish what is in flight.
    Drain,
    /// Drop everything.
    Cut,
}

/// What clients did since the start.
#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    commands: AtomicU64,
    processed: AtomicU64,
    failed: AtomicU64,
}

/// The protocol's server; clones share it.
#[derive(Clone)]
pub struct Faktory(Arc<Inner>);

struct Inner {
    tasks: Tasks,
    settings: Arc<config::Faktory>,
    metrics: Metrics,
    security: SecurityLog,
    workers: Arc<Workers>,
    passwords: Throttle,
    counts: Counts,
    started_ms: u64,
}

impl Inner {
    /// Tells of what a client did that has shown no password.
    fn tell(&self, event: Event, address: IpAddr) {
        let who = Who {
            address: Some(address),
            what: Some("faktory"),
            ..Who::default()
        };
        self.security.note(event, &who);
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    tls: Option<Tls>,
}

impl Listener {
    /// Binds what the settings name; the certificate is the HTTP server's. Must be called inside the
    /// async runtime.
    pub fn bind(settings: &config::Faktory, server: &config::Server) -> Result<Self, ListenError> {
        let wanted = SocketAddr::new(settings.host, settings.port);
        let tls = match settings.tls {
            true => Some(Tls::load(&server.tls_cert, &server.tls_key)?),
            false => None,
        };
        let failed = |reason| ListenError::Tcp {
            address: wanted,
            setting: "faktory.port",
            reason,
        };
        let tcp = bind_tcp(wanted, BACKLOG, server.send_buffer_bytes).map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        Ok(Self { tcp, address, tls })
    }

    /// Where it listens, with the port that was chosen if the settings said 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What it speaks TLS with, to have that read its files again.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// What clients are told to connect to.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "tcp+tls" } else { "tcp" };
        format!("{scheme}://{}", self.address)
    }
}

impl Faktory {
    /// A server without a socket, which knows of no worker.
    pub fn new(
        tasks: Tasks,
        settings: Arc<config::Faktory>,
        metrics: Metrics,
        security: SecurityLog,
    ) -> Self {
        let workers = Arc::new(Workers::new(settings.workers_max, settings.worker_seconds));
        let known = Arc::clone(&workers);
        let limit = Limit::new(settings.password_failures, settings.password_forget_seconds);
        tasks.ask_of_workers(Box::new(move |worker| known.is_away(worker)));
        Self(Arc::new(Inner {
            workers,
            passwords: Throttle::new(
                Rules {
                    // There is one password and no account.
                    account: limit,
                    address: limit,
                    known: limit,
                    delay_seconds: settings.password_delay_seconds,
                    delay_seconds_max: settings.password_delay_seconds_max,
                    tracked_max: settings.password_tracked_max,
                    // Nobody logs in or registers here.
                    ..Rules::from(&config::Auth::default())
                },
                tasks.clock().clone(),
            ),
            counts: Counts::default(),
            started_ms: tasks.clock().monotonic_ms(),
            tasks,
            settings,
            metrics,
            security,
        }))
    }

    /// Serves until `shutdown` turns true; then workers may report on what they have, for a while.
    pub async fn serve(self, listener: Listener, shutdown: watch::Receiver<bool>) {
        serve::serve(&self.0, listener, shutdown).await;
    }

    /// The workers that are there.
    pub fn workers(&self) -> Vec<Worker> {
        let workers = self.0.workers.list(self.0.tasks.clock().now());
        self.0.publish();
        workers
    }

    /// Tells a worker what to do, with its next sign of life. `None` if there is no such worker.
    pub fn tell(&self, wid: &str, state: WorkerState) -> Option<Worker> {
        self.0.workers.tell(wid, state)
    }
}

impl Inner {
    fn publish(&self) {
        let count = i64::try_from(self.workers.count()).unwrap_or(i64::MAX);
        self.metrics.faktory_workers.set(count);
    }

    fn count_refused(&self, reason: &str) {
        self.metrics
            .faktory_connections_refused_total
            .with_label_values(&[reason])
            .inc();
    }

    fn count_up(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
