//! What makes schedules be looked at: a nudge each second, a wake when one is changed, the time of
//! the next fire.
//!
//! Invariants: a nudge says only that it is worth a look. tokio-cron-scheduler loses some, and all of
//! them while the clock is back from where it was; so this never depends on it, but looks by its own
//! monotonic time as well. It takes no input and may run anywhere, at any time, and twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::fire::OpenRun;
use super::{ScheduleError, Schedules};
use crate::clock::Timestamp;
use crate::config::ms;

/// How often the rows are looked at when nothing else happens: whole seconds are all that a schedule
/// can name.
const NUDGE: Duration = Duration::from_secs(1);
/// Shortest rest between two looks.
const REST: Duration = Duration::from_millis(5);

/// The background service.
pub struct Ticker {
    schedules: Schedules,
    /// The latest time seen, to notice that the clock went back.
    seen: Option<Timestamp>,
    /// Where the look at open runs goes on.
    above: Option<OpenRun>,
}

impl Ticker {
    /// With the handle that it works on.
    pub fn new(schedules: Schedules) -> Self {
        Self {
            schedules,
            seen: None,
            above: None,
        }
    }

    /// Runs until `stopped` turns true.
    pub async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let nudge = Arc::new(Notify::new());
        let mut nudging = match nudging(Arc::clone(&nudge)).await {
            Ok(scheduler) => Some(scheduler),
            Err(error) => {
                tracing::warn!(%error, "nobody nudges the schedules; they are looked at now and then");
                None
            }
        };
        loop {
            let poll = ms(self.schedules.basis().rules.poll_interval_ms);
            let wait = match self.step().await {
                Ok(until_next) => until_next.map_or(poll, |wait| wait.clamp(REST, poll)),
                Err(error) => {
                    tracing::warn!(%error, "not every schedule could be fired; it is tried again");
                    poll
                }
            };
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => break,
                () = nudge.notified() => {}
                () = self.schedules.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        if let Some(scheduler) = &mut nudging
            && let Err(error) = scheduler.shutdown().await
        {
            tracing::debug!(%error, "the nudging did not end in order");
        }
    }

    /// One look; answers how long it is until the next fire, if there is one.
    pub async fn step(&mut self) -> Result<Option<Duration>, ScheduleError> {
        let now = self.schedules.clock().now();
        // At the start as well: the clock may have gone back while the process was down.
        if self.seen.is_none_or(|seen| now < seen) {
            self.schedules.follow_the_clock_back().await?;
        }
        self.seen = Some(now);
        let fired = self.schedules.fire().await;
        self.above = self.schedules.settle(self.above.take()).await?;
        fired?;
        let next = self.schedules.next().await?;
        let now = self.schedules.clock().now();
        Ok(next.map(|at| Duration::from_micros(u64::try_from(at.micros_since(now)).unwrap_or(0))))
    }
}

async fn nudging(nudge: Arc<Notify>) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    let job = Job::new_repeated(NUDGE, move |_, _| nudge.notify_one())?;
    scheduler.add(job).await?;
    scheduler.start().await?;
    Ok(scheduler)
}
