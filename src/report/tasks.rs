//! Making a report in the background.
//!
//! Invariants: a report is read on a connection of its own, off the async threads, and ends soon
//! after its task was cancelled or its time was over; it is kept in the transaction that completes
//! the task.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Days, Report, ReportError, days};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::config;
use crate::store::LongReads;
use crate::task::{Handler, RetryPolicy, TaskContext, TaskFailure, TaskOutcome};

/// Progress is told when it has grown by so many percent.
const STEP_PERCENT: u32 = 5;

/// Makes the report of some days and keeps it.
pub struct GenerateSalesReport {
    reads: LongReads,
    rules: Arc<config::Reports>,
}

impl GenerateSalesReport {
    /// With what it reads from.
    pub fn new(reads: LongReads, rules: Arc<config::Reports>) -> Self {
        Self { reads, rules }
    }
}

/// Which days.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SalesReportArgs {
    /// First day, such as 2026-11-01.
    pub start_date: String,
    /// Last day, such as 2026-11-30.
    pub end_date: String,
    /// Make it anew though there is one that may still be shown.
    #[serde(default)]
    pub refresh: bool,
}

impl From<ReportError> for TaskFailure {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Invalid(faults) => {
                let faults: Vec<String> = faults
                    .iter()
                    .map(|fault| format!("{} {}", fault.field, fault.reason))
                    .collect();
                TaskFailure::discard(faults.join("; "))
            }
            ReportError::TooLarge(_) | ReportError::NotReady => {
                TaskFailure::discard(error.to_string())
            }
            ReportError::Store(error) => error.into(),
        }
    }
}

impl Handler for GenerateSalesReport {
    type Args = SalesReportArgs;
    const NAME: &'static str = "generate_sales_report";
    const QUEUE: &'static str = "reports";
    const ABOUT: &'static str =
        "Makes the sales report of some days and keeps it, to be read at `GET reports/sales`.";
    const MAX_ATTEMPTS: u32 = 5;
    const TIMEOUT_MS: i64 = 600_000;
    const RETRY_POLICY: Option<RetryPolicy> = Some(RetryPolicy::Exponential {
        first_ms: 1_000,
        max_ms: 60_000,
    });

    fn check(args: &SalesReportArgs) -> Result<(), Vec<FieldError>> {
        let within = |fault: FieldError| FieldError {
            field: format!("args.{}", fault.field),
            ..fault
        };
        match days::dates(&args.start_date, &args.end_date) {
            Ok(_) => Ok(()),
            Err(faults) => Err(faults.into_iter().map(within).collect()),
        }
    }

    async fn run(
        &self,
        context: TaskContext,
        args: SalesReportArgs,
    ) -> Result<TaskOutcome, TaskFailure> {
        let (now, rules) = (context.now(), Arc::clone(&self.rules));
        let days = Arc::new(super::days_of(&rules, &args.start_date, &args.end_date)?);
        let (percent, mut grown) = watch::channel(0);
        let work = {
            let (days, rules) = (Arc::clone(&days), Arc::clone(&rules));
            self.reads.read(move |tx, wanted| {
                if !args.refresh
                    && let Some(until) = super::kept_until(tx, now, &days)?
                {
                    return Ok(Made::Before(until));
                }
                let report = super::make(tx, now, &rules, &days, |done| {
                    percent.send_if_modified(|told| {
                        let is_step = done >= *told + STEP_PERCENT;
                        if is_step {
                            *told = done;
                        }
                        is_step
                    });
                    wanted.check()
                })?;
                Ok::<_, ReportError>(Made::Now(Box::new(report)))
            })
        };
        tokio::pin!(work);
        let made = loop {
            tokio::select! {
                biased;
                made = &mut work => break made?,
                () = context.cancelled() => return Err(TaskFailure::discard("it was cancelled")),
                Ok(()) = grown.changed() => {
                    let done = *grown.borrow_and_update();
                    context.progress(done, None).await;
                }
            }
        };
        match made {
            Made::Before(until) => Ok(TaskOutcome::Done(Some(result(&days, until, None)))),
            Made::Now(report) => Ok(TaskOutcome::commit(move |tx, now| {
                let until = super::keep(tx, now, &rules, &days, &report)?;
                Ok(Some(result(&days, until, Some(&report))))
            })),
        }
    }
}

enum Made {
    Before(Timestamp),
    Now(Box<Report>),
}

/// What the task leaves: where the report is, not the report.
fn result(days: &Days, until: Timestamp, report: Option<&Report>) -> serde_json::Value {
    serde_json::json!({
        "report": super::key_of(days),
        "expires_at": until,
        "was_ready": report.is_none(),
        "totals": report.map(|report| &report.totals),
    })
}
