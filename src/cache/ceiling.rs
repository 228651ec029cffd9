//! The highest id of a kind: a higher one names nothing, and no level and no database need be looked into
//! to know that.
//!
//! Invariants: it is for ids that a database hands out in order; it is raised where a feature has a key
//! invalidated, so between the commit that made a row and the answer to the request that made it; what a read
//! found to be the highest counts only if nothing was forgotten since that read began.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use super::KindState;
use super::key::Id;

/// Not known: every id may exist.
const UNKNOWN: i64 = i64::MAX;

/// See the module. It is unknown until a read that looked for it tells it.
pub(super) struct Ceiling {
    value: AtomicI64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The highest id that was named in an invalidation.
    seen: i64,
    /// How often it was forgotten.
    lost: u64,
}

impl Ceiling {
    pub(super) fn new() -> Self {
        Self {
            value: AtomicI64::new(UNKNOWN),
            state: Mutex::default(),
        }
    }

    /// Whether there is certainly nothing of this id.
    pub(super) fn excludes(&self, id: &Id) -> bool {
        matches!(id, Id::Int(id) if *id > self.value.load(Ordering::SeqCst))
    }

    /// This id may exist from now on.
    pub(super) fn rise(&self, id: &Id) {
        let Id::Int(id) = id else {
            return;
        };
        let mut state = self.state.lock();
        state.seen = state.seen.max(*id);
        self.value.fetch_max(*id, Ordering::SeqCst);
    }

    /// Any id may exist from now on.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.lost += 1;
        self.value.store(UNKNOWN, Ordering::SeqCst);
    }

    fn learn(&self, lost: u64, highest: i64) {
        let state = self.state.lock();
        if state.lost == lost {
            self.value.store(highest.max(state.seen), Ordering::SeqCst);
        }
    }
}

/// Asks the load that it is given to for the highest id that there is; see
/// [`super::Kind::asks_for_highest`].
pub struct HighestWanted {
    kind: Arc<KindState>,
    lost: u64,
}

impl HighestWanted {
    /// For a read that begins now.
    pub(super) fn of(kind: &Arc<KindState>) -> Option<Self> {
        let ceiling = &kind.ceiling;
        let is_unknown = ceiling.value.load(Ordering::SeqCst) == UNKNOWN;
        is_unknown.then(|| Self {
            lost: ceiling.state.lock().lost,
            kind: Arc::clone(kind),
        })
    }

    /// The highest id that a read found which began after this was made; `None` for an empty table.
    pub fn tell(self, highest: Option<i64>) {
        self.kind.ceiling.learn(self.lost, highest.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learnt(ceiling: &Ceiling, highest: i64) {
        let lost = ceiling.state.lock().lost;
        ceiling.learn(lost, highest);
    }

    #[test]
    fn what_was_named_meanwhile_stays_below() {
        let ceiling = Ceiling::new();
        assert!(!ceiling.excludes(&Id::Int(i64::MAX)));
        // A read that began before the commit of 11 ends after it.
        let lost = ceiling.state.lock().lost;
        ceiling.rise(&Id::Int(11));
        ceiling.learn(lost, 10);
        assert!(!ceiling.excludes(&Id::Int(11)));
        assert!(ceiling.excludes(&Id::Int(12)));
        ceiling.rise(&Id::Int(12));
        assert!(!ceiling.excludes(&Id::Int(12)));
        assert!(!ceiling.excludes(&Id::from("any text")));
    }

    #[test]
    fn a_read_from_before_it_was_forgotten_tells_nothing() {
        let ceiling = Ceiling::new();
        learnt(&ceiling, 10);
        assert!(ceiling.excludes(&Id::Int(11)));
        let lost = ceiling.state.lock().lost;
        ceiling.forget();
        ceiling.learn(lost, 10);
        assert!(!ceiling.excludes(&Id::Int(11)));
        learnt(&ceiling, 5_000);
        assert!(!ceiling.excludes(&Id::Int(5_000)));
        assert!(ceiling.excludes(&Id::Int(5_001)));
    }
}
