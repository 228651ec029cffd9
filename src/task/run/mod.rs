//! What runs in this process: the built-in tasks ([`handler`]) and the workers that run them ([`pool`]).

mod at_once;
mod handler;
mod pool;

pub(super) use self::at_once::do_at_once;
pub use self::handler::{
    Asked, BUILT_IN_QUEUES, DEFAULT_QUEUE, Effect, Handler, HandlerInfo, NoArgs, Registry,
    RegistryBuilder, TaskContext, TaskFailure, TaskOutcome, queue_name,
};
pub use self::pool::Pool;
