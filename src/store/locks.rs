//! In which order transactions lock rows, so that no two wait for each other in a circle.
//!
//! Invariants: each table that rows are locked of has one place in the order (`src/README.md` lists it), its
//! owner's; a transaction locks rows by ascending place, and of one table by ascending key; in debug builds one
//! that does otherwise fails, and so does one that relies on a lock which it does not hold. With SQLite a
//! lock is nothing but that check: its one writer has the database to itself.

/// A table whose rows are locked, and its place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockOrder {
    place: u8,
    table: &'static str,
}

impl LockOrder {
    /// The rows of `table`, at this place; no two tables have the same.
    pub const fn new(place: u8, table: &'static str) -> Self {
        Self { place, table }
    }
}

/// The rows that a transaction has locked, or made itself.
#[cfg(debug_assertions)]
#[derive(Debug, Default)]
pub(super) struct HeldLocks {
    locked: Vec<(u8, i64)>,
    made: Vec<(u8, i64)>,
}

#[cfg(not(debug_assertions))]
#[derive(Debug, Default)]
pub(super) struct HeldLocks;

#[cfg(debug_assertions)]
impl HeldLocks {
    fn holds(&self, lock: (u8, i64)) -> bool {
        self.locked.contains(&lock) || self.made.contains(&lock)
    }

    /// Notes a lock; panics if it comes out of order.
    pub(super) fn note(&mut self, of: LockOrder, row: i64) {
        let lock = (of.place, row);
        if self.holds(lock) {
            return;
        }
        let above = self.locked.iter().max().copied();
        assert!(
            above.is_none_or(|above| above < lock),
            "row {row} of {} is locked after {above:?}: see the order in src/README.md",
            of.table
        );
        self.locked.push(lock);
    }

    /// Notes a row that nobody else can see yet, and so nobody waits for.
    pub(super) fn made(&mut self, of: LockOrder, row: i64) {
        self.made.push((of.place, row));
    }

    /// Panics if the row is not locked.
    pub(super) fn require(&self, of: LockOrder, row: i64) {
        assert!(
            self.holds((of.place, row)),
            "row {row} of {} has to be locked here, and is not",
            of.table
        );
    }
}

#[cfg(not(debug_assertions))]
impl HeldLocks {
    pub(super) fn note(&mut self, _: LockOrder, _: i64) {}

    pub(super) fn made(&mut self, _: LockOrder, _: i64) {}

    pub(super) fn require(&self, _: LockOrder, _: i64) {}
}
