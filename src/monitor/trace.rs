//! The trace that work belongs to (W3C `traceparent`), carried along without being handed on.
//!
//! Invariants: work that belongs to no trace pays one look at a task-local value for each write; a
//! trace never outlives the future or the closure that it was given to.

use std::future::Future;
use std::sync::Arc;

tokio::task_local! {
    static CURRENT: Arc<str>;
}

/// Runs `work` as part of the trace, down to what it hands to the writer.
pub async fn traced<T>(traceparent: Arc<str>, work: impl Future<Output = T>) -> T {
    CURRENT.scope(traceparent, work).await
}

/// [`traced`], for a closure that goes on on another thread.
pub fn traced_here<T>(traceparent: Option<Arc<str>>, work: impl FnOnce() -> T) -> T {
    match traceparent {
        Some(traceparent) => CURRENT.sync_scope(traceparent, work),
        None => work(),
    }
}

/// The trace that the calling code is part of.
pub fn current_trace() -> Option<Arc<str>> {
    CURRENT.try_with(Arc::clone).ok()
}
