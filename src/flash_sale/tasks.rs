//! What is done for sales by the clock, as a task: to be run and seen by hand.

use super::SaleError;
use super::service::Sweeper;
use crate::task::{Handler, NoArgs, TaskContext, TaskFailure, TaskOutcome};

/// Expires orders that were not paid in time, by the same rule as the sweeper does each second. Both
/// may run at once: the row decides.
pub struct ExpireHolds(Sweeper);

impl ExpireHolds {
    /// Of these sales.
    pub fn new(sweeper: Sweeper) -> Self {
        Self(sweeper)
    }
}

impl From<SaleError> for TaskFailure {
    fn from(error: SaleError) -> Self {
        TaskFailure::retry(error.to_string())
    }
}

impl Handler for ExpireHolds {
    type Args = NoArgs;
    const NAME: &'static str = "expire_holds";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str =
        "Expires orders that were not paid in time and gives their units back.";
    const MAX_ATTEMPTS: u32 = 5;

    async fn run(&self, _context: TaskContext, _args: NoArgs) -> Result<TaskOutcome, TaskFailure> {
        let expired = self.0.expire_holds().await?;
        Ok(TaskOutcome::Done(Some(
            serde_json::json!({"expired": expired}),
        )))
    }
}
