//! Threads for work that takes long on a processor: they give way to those that answer requests.
//!
//! Invariants: what runs here never holds up a request that needs no such work for longer than the system
//! takes to switch threads; a bounded number runs at once; nothing here waits for anything else.

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Nice value of such threads: beside a thread of usual priority one gets about a tenth of a processor,
/// and all of one that is idle (sched(7)).
const NICE: i32 = 10;

/// A few threads of less priority; they are made when they are needed.
pub struct Yielding(Option<Runtime>);

impl Yielding {
    /// At most `most` of them, called `name`.
    pub fn new(name: &str, most: usize) -> Self {
        let runtime = Builder::new_current_thread()
            .thread_name(name)
            .max_blocking_threads(most.max(1))
            .on_thread_start(|| {
                // On Linux that is of one thread. Refused, it only takes more from others.
                let _refused = rustix::process::nice(NICE);
            })
            .build();
        if let Err(error) = &runtime {
            tracing::warn!(%error, name, "work that takes long shares the threads of other work");
        }
        Self(runtime.ok())
    }

    /// Runs `work` on one of them, once one is free.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        match &self.0 {
            Some(runtime) => runtime.spawn_blocking(work),
            None => tokio::task::spawn_blocking(work),
        }
    }
}

impl Drop for Yielding {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn they_have_less_priority_and_the_others_keep_theirs() {
        let own = rustix::process::getpriority_process(None).expect("known");
        let threads = Yielding::new("test", 1);
        let there = threads.run(|| rustix::process::getpriority_process(None));
        let there = there.await.expect("no panic").expect("known");
        assert_eq!(there, (own + NICE).min(19));
        assert_eq!(rustix::process::getpriority_process(None), Ok(own));
    }
}
