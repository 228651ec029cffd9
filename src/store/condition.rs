//! The database's condition while it is served: whether it is damaged, and whether writes get through.
//!
//! Invariants: what was found once is not forgotten before the process is started anew; from then on
//! nothing is written, and reads that work go on; asking costs a look at an atomic, so a probe never waits.
//!
//! Nothing is written to a damaged database because every write decides by what it reads: stock that lies
//! on a damaged page would be sold by what is left of it. And nothing is written after a sync that failed:
//! what it left on the disk is not known, and a second sync does not tell (Rebello et al., USENIX ATC 2020).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rusqlite::Connection;

use super::{StoreError, codes};

type OnDamage = Box<dyn Fn() + Send + Sync>;

/// A cheap handle; clones share it.
#[derive(Clone, Default)]
pub struct Condition(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Why nothing is written any more.
    sealed: OnceLock<StoreError>,
    /// Pages that another program wrote since the last orderly stop, in words.
    changed: OnceLock<String>,
    /// Why the last write got nowhere, as long as none has since.
    refused: Mutex<Option<StoreError>>,
    is_refusing: AtomicBool,
    on_damage: OnceLock<OnDamage>,
}

impl Condition {
    /// Why nothing is written any more: [`StoreError::Corrupt`], or [`StoreError::ReadOnly`] after a sync
    /// that failed.
    pub fn sealed(&self) -> Option<&StoreError> {
        self.0.sealed.get()
    }

    /// What is damaged, in words.
    pub fn damage(&self) -> Option<&str> {
        match self.sealed() {
            Some(StoreError::Corrupt(what)) => Some(what),
            _ => None,
        }
    }

    /// That another program changed the database while nobody served it, in words.
    pub fn changed(&self) -> Option<&str> {
        self.0.changed.get().map(String::as_str)
    }

    /// Why writes are refused at the moment: damage, a full disk, a read-only file system.
    pub fn refusing(&self) -> Option<StoreError> {
        if let Some(error) = self.sealed() {
            return Some(error.clone());
        }
        if !self.0.is_refusing.load(Ordering::Acquire) {
            return None;
        }
        self.0.refused.lock().clone()
    }

    /// Calls `call` once damage is met, on whatever thread meets it; at once if it was met already.
    pub fn on_damage(&self, call: impl Fn() + Send + Sync + 'static) {
        // There is one owner, who registers once.
        let _twice = self.0.on_damage.set(Box::new(call));
        if self.damage().is_some() {
            self.tell();
        }
    }

    fn tell(&self) {
        if let Some(call) = self.0.on_damage.get() {
            call();
        }
    }

    /// Takes note of an error, if it is damage.
    pub(super) fn note(&self, error: &StoreError) {
        if let StoreError::Corrupt(what) = error
            && self.0.sealed.set(error.clone()).is_ok()
        {
            tracing::error!(
                what,
                "the database is damaged: nothing is written any more, and what can be read is served; stop \
                 the server, keep a copy of the data directory, see what is sound with `onrush stock verify`, \
                 and restore a backup"
            );
            self.tell();
        }
    }

    /// What SQLite's error means, taken note of.
    pub(super) fn met(&self, conn: &Connection, error: rusqlite::Error) -> StoreError {
        let is_sync = codes::is_failed_sync(&error);
        let error = codes::failure(conn, error);
        if is_sync
            && matches!(error, StoreError::ReadOnly)
            && self.0.sealed.set(StoreError::ReadOnly).is_ok()
        {
            tracing::error!(
                "the file system has turned read-only: nothing is written any more, and reading goes on; \
                 mend it, and start the server anew"
            );
        }
        self.note(&error);
        error
    }

    /// Takes note of what became of a batch of writes.
    pub(super) fn wrote(&self, outcome: &Result<(), StoreError>) {
        let refused = match outcome {
            Ok(()) => None,
            Err(error @ (StoreError::StorageFull | StoreError::ReadOnly)) => Some(error.clone()),
            // Of the others none is about the disk, or the process ends.
            Err(_) => return,
        };
        if refused.is_some() || self.0.is_refusing.load(Ordering::Acquire) {
            self.0
                .is_refusing
                .store(refused.is_some(), Ordering::Release);
            *self.0.refused.lock() = refused;
        }
    }

    /// The disk takes writes again, as somebody found who tried.
    pub(super) fn can_write_again(&self) {
        self.wrote(&Ok(()));
    }

    /// Takes note that another program changed the database since the last orderly stop.
    pub(super) fn note_changed(&self, what: String) {
        tracing::warn!(
            what,
            "another program changed the database since the last orderly stop; if that was nobody's doing, \
             stop the server, keep a copy of the data directory, and restore a backup"
        );
        let _again = self.0.changed.set(what);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn damage_is_kept_and_told_once_and_a_full_disk_is_forgotten_with_the_next_write() {
        let condition = Condition::default();
        let told = Arc::new(AtomicU32::new(0));
        let counts = Arc::clone(&told);
        condition.on_damage(move || {
            counts.fetch_add(1, Ordering::SeqCst);
        });
        condition.wrote(&Err(StoreError::StorageFull));
        assert!(matches!(
            condition.refusing(),
            Some(StoreError::StorageFull)
        ));
        condition.wrote(&Err(StoreError::Overloaded));
        assert!(
            condition.refusing().is_some(),
            "that says nothing of the disk"
        );
        condition.wrote(&Ok(()));
        assert!(condition.refusing().is_none());
        assert!(condition.sealed().is_none());
        for what in ["page 7", "page 8"] {
            condition.note(&StoreError::Corrupt(what.to_owned()));
        }
        condition.wrote(&Ok(()));
        assert_eq!(condition.damage(), Some("page 7"));
        assert!(matches!(condition.refusing(), Some(StoreError::Corrupt(_))));
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_asks_to_be_told_late_is_told_at_once() {
        let condition = Condition::default();
        condition.note(&StoreError::Corrupt("page 7".to_owned()));
        let told = Arc::new(AtomicBool::new(false));
        let hears = Arc::clone(&told);
        condition.on_damage(move || hears.store(true, Ordering::SeqCst));
        assert!(told.load(Ordering::SeqCst));
    }
}
