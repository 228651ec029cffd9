//! Tasks over HTTP: for those who make them ([`EnqueueApi`]), those who watch and steer them
//! ([`TaskApi`]), and workers in any language ([`RunApi`]).

mod enqueue;
mod runs;
mod steer;
mod views;

pub use self::enqueue::EnqueueApi;
pub use self::runs::RunApi;
pub use self::steer::TaskApi;
use super::{TaskError, TaskId};
use crate::check::FieldError;
use crate::http::Problem;

impl From<TaskError> for Problem {
    fn from(error: TaskError) -> Self {
        let text = error.to_string();
        match error {
            TaskError::Invalid(errors) => Problem::validation(errors),
            TaskError::NotFound(_) => Problem::not_found("task_not_found", text),
            TaskError::NoQueue(_) => Problem::not_found("queue_not_found", text),
            TaskError::UnknownTask { .. } => Problem::new(
                poem::http::StatusCode::UNPROCESSABLE_ENTITY,
                "unknown_task",
                text.clone(),
            )
            .field("name", text),
            TaskError::State(_) => Problem::conflict("task_state", text),
            TaskError::KeyHeld(_) => Problem::conflict("task_key_held", text),
            TaskError::Fenced { .. } => Problem::conflict("fenced", text),
            TaskError::KeyReused => {
                Problem::validation(vec![FieldError::new("Idempotency-Key", text)])
            }
            TaskError::Overloaded | TaskError::Stopped => Problem::overloaded(1),
            TaskError::Store(error) => error.into(),
        }
    }
}

fn ms(seconds: u32) -> i64 {
    i64::from(seconds) * 1_000
}

fn read_id(id: &str) -> Result<TaskId, Problem> {
    // Whatever is no UUID names no task.
    id.parse()
        .map_err(|_| Problem::not_found("task_not_found", format!("there is no task {id}")))
}
