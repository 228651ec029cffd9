//! The workers of the Faktory protocol, over HTTP: for those who watch and steer them.

use poem_openapi::param::Path;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;

use super::{Faktory, Worker, WorkerState};
use crate::auth::api::{Access, Tag};
use crate::auth::{Role, Scope};
use crate::clock::Timestamp;
use crate::http::{Body, Failure, Problem, fails};

/// A worker process.
#[derive(Serialize, Object)]
struct WorkerView {
    /// Its own name for itself
    wid: String,
    /// Its machine
    hostname: String,
    /// Its process there
    pid: i64,
    /// Words that it gave itself
    labels: Vec<String>,
    /// Where it connected from
    address: String,
    /// `running`, `quiet` (it fetches nothing more) or `terminate` (it ends)
    state: String,
    /// Its open connections
    connections: u32,
    /// Jobs that it fetched and did not report on
    jobs: u32,
    /// Memory that it says it uses
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_kb: Option<i64>,
    /// When it came
    started_at: Timestamp,
    /// When it was heard of last
    last_beat_at: Timestamp,
}

impl From<Worker> for WorkerView {
    fn from(worker: Worker) -> Self {
        Self {
            wid: worker.wid,
            hostname: worker.hostname,
            pid: worker.pid,
            labels: worker.labels,
            address: worker.address,
            state: worker.state.word().to_owned(),
            connections: worker.connections,
            jobs: worker.jobs,
            rss_kb: worker.rss_kb,
            started_at: worker.started_at,
            last_beat_at: worker.last_beat_at,
        }
    }
}

/// The workers that are there.
#[derive(Serialize, Object)]
struct WorkerList {
    /// By their names for themselves
    items: Vec<WorkerView>,
}

/// Workers that hold a connection.
#[derive(Clone)]
pub struct WorkerApi {
    faktory: Faktory,
}

impl WorkerApi {
    /// With the handle that it works on.
    pub fn new(faktory: Faktory) -> Self {
        Self { faktory }
    }

    fn tell(&self, wid: &str, state: WorkerState) -> Result<Body<WorkerView>, Problem> {
        self.faktory
            .tell(wid, state)
            .map(|worker| Body(worker.into()))
            .ok_or_else(|| {
                Problem::not_found("worker_not_found", format!("there is no worker {wid}"))
            })
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Tasks")]
impl WorkerApi {
    /// List workers
    ///
    /// Those that speak the Faktory protocol and hold a connection, or did a moment ago.
    #[oai(path = "/workers", method = "get", operation_id = "list_workers")]
    async fn list(&self, access: Access) -> Result<Body<WorkerList>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Tasks)?;
        let workers = self.faktory.workers();
        Ok(Body(WorkerList {
            items: workers.into_iter().map(WorkerView::from).collect(),
        }))
    }

    /// Quiet a worker
    ///
    /// It fetches nothing more and finishes what it has. There is no way back but to start it anew.
    #[oai(
        path = "/workers/:wid/quiet",
        method = "post",
        operation_id = "quiet_worker"
    )]
    async fn quiet(
        &self,
        access: Access,
        /// The worker's name for itself
        wid: Path<String>,
    ) -> Result<Body<WorkerView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        Ok(self.tell(&wid.0, WorkerState::Quiet)?)
    }

    /// Stop a worker
    ///
    /// It fetches nothing more, finishes or gives up what it has within its own time limit, and ends.
    #[oai(
        path = "/workers/:wid/stop",
        method = "post",
        operation_id = "stop_worker"
    )]
    async fn stop(
        &self,
        access: Access,
        /// The worker's name for itself
        wid: Path<String>,
    ) -> Result<Body<WorkerView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Admin, Scope::Tasks)?;
        Ok(self.tell(&wid.0, WorkerState::Terminate)?)
    }
}
