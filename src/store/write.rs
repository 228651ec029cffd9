//! The one way to write: [`Store::write`], with options.
//!
//! Invariants: the closure may be run again, when the database undid the transaction by itself, so it only borrows
//! what it captured; what follows the outcome is called once, after the commit or after it is known that
//! there will be none.

use std::future::{Future, IntoFuture};
use std::pin::Pin;

use tokio::sync::oneshot;

use super::job::{After, Answer, Call, Work};
use super::{Store, StoreError, Tx};
use crate::monitor::statements::{Called, caller};

/// How long a write may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patience {
    /// A full queue refuses it at once ([`StoreError::Overloaded`]), and its answer is waited for as long as
    /// `database.write_timeout_ms` says.
    #[default]
    Limited,
    /// For what must not be lost to a full queue: it waits for room, and for its answer however long that takes.
    Unlimited,
}

/// A write that has not begun: `.await` it, or end it with [`Write::blocking`], [`Write::unanswered`] or
/// [`Write::promised`].
#[must_use = "a write that is not awaited or ended is not done"]
pub struct Write<'s, T, E> {
    store: &'s Store,
    work: Work<T, E>,
    after: Option<After<T, E>>,
    patience: Patience,
}

/// The end of a write's answer that goes to the part of the program that finds out what is to be written.
pub struct Promise<T, E> {
    reply: oneshot::Sender<Answer<T, E>>,
    caller: Option<Called>,
}

impl<T, E> Promise<T, E> {
    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

/// The end of a write's answer that stays with the caller.
pub struct Promised<T, E>(oneshot::Receiver<Answer<T, E>>);

impl<T, E: From<StoreError>> Promised<T, E> {
    /// The answer, however long it takes; [`StoreError::Stopped`] if nothing will be written. It can be
    /// asked again after a call that was given up.
    pub async fn wait(&mut self) -> Result<T, E> {
        let answer = (&mut self.0).await;
        answer.map_or_else(|_| Err(E::from(StoreError::Stopped)), Answer::result)
    }
}

impl Store {
    /// Runs `work` in a transaction of its own: `Ok` is on disk, `Err` left nothing behind. `work` may be run
    /// again if the database undid it by itself.
    pub fn write<T, E>(
        &self,
        work: impl Fn(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Write<'_, T, E> {
        Write {
            store: self,
            work: Box::new(work),
            after: None,
            patience: Patience::Limited,
        }
    }

    /// Both ends of a write's answer, before it is known what is to be written: the part of the program that
    /// finds that out, on any thread, ends the write with [`Write::promised`]. The write is in the name of
    /// the caller of this.
    pub fn promise<T, E: From<StoreError>>() -> (Promise<T, E>, Promised<T, E>) {
        let (reply, answer) = oneshot::channel();
        let promise = Promise {
            reply,
            caller: caller(),
        };
        (promise, Promised(answer))
    }
}

impl<'s, T, E> Write<'s, T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    /// Calls `after` on the thread that writes once the outcome is certain, whether or not the caller still
    /// waits. `after` must be quick and must not block.
    pub fn then(mut self, after: impl FnOnce(&Result<T, E>) + Send + 'static) -> Self {
        self.after = Some(Box::new(after));
        self
    }

    /// How long it may wait; [`Patience::Limited`] if nothing is said.
    pub fn patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// For a thread that is not async, such as an import: waits for room in the queue, and for its turn.
    pub fn blocking(self) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        let store = self.store;
        store.0.writer.send(true, self.call(None, Some(reply)));
        answer
            .blocking_recv()
            .map_or_else(|_| Err(E::from(StoreError::Stopped)), Answer::result)
    }

    /// For threads that must not wait: nobody hears the answer, only what [`Write::then`] calls. A full queue
    /// refuses it.
    pub fn unanswered(self) {
        let store = self.store;
        store.0.writer.send(false, self.call(None, None));
    }

    /// The caller that holds the other end of `promise` hears the answer. Never blocks; a full queue refuses the
    /// write.
    pub fn promised(self, promise: Promise<T, E>) {
        let store = self.store;
        let call = self.call(promise.caller, Some(promise.reply));
        store.0.writer.send(false, call);
    }

    fn call(
        self,
        caller: Option<Called>,
        reply: Option<oneshot::Sender<Answer<T, E>>>,
    ) -> Box<Call<T, E>> {
        Box::new(Call {
            work: self.work,
            after: self.after,
            result: None,
            caller,
            reply,
        })
    }

    async fn answered(self) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        let (store, patience) = (self.store, self.patience);
        let call = self.call(caller(), Some(reply));
        if patience == Patience::Limited {
            store.0.writer.send(false, call);
            return match tokio::time::timeout(store.0.write_timeout, answer).await {
                Ok(Ok(answer)) => answer.result(),
                Ok(Err(_)) => Err(E::from(StoreError::Stopped)),
                Err(_) => Err(E::from(StoreError::Timeout)),
            };
        }
        if store.0.writer.waiting() < store.0.patience_from {
            store.0.writer.send(false, call);
        } else {
            let store = store.clone();
            tokio::task::spawn_blocking(move || store.0.writer.send(true, call))
                .await
                .map_err(|error| E::from(StoreError::Panicked(error.to_string())))?;
        }
        answer
            .await
            .map_or_else(|_| Err(E::from(StoreError::Stopped)), Answer::result)
    }
}

impl<'s, T, E> IntoFuture for Write<'s, T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    type Output = Result<T, E>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 's>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.answered())
    }
}
