//! What has been invalidated since when: one counter and a fixed table.
//!
//! Each invalidation draws the next number of one counter and leaves it at what it invalidates: a slot
//! of the table for a key or a tag, a kind, or everything. A load notes the counter before it begins
//! to read; what it brings is valid as long as nothing that it belongs to bears a later number. So a
//! load that began before an invalidation can fill the cache as late as it likes: no request is
//! served from it. Invariants: a number never falls; memory is fixed; two keys that share a slot are
//! invalidated together, which costs a load and nothing else.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Slots of the table: 256 KiB. At a thousand invalidations a second, an entry that none of them
/// means is hit by one of another about every half minute.
const SLOTS: usize = 32_768;

/// A number of the counter: later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) u64);

/// The last invalidation of something.
#[derive(Debug, Default)]
pub(super) struct Last(AtomicU64);

impl Last {
    /// Whether it was invalidated after `born`.
    pub(super) fn is_after(&self, born: Moment) -> bool {
        self.0.load(Ordering::SeqCst) > born.0
    }
}

/// The place of a key or tag in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot(pub(super) u32);

/// See the module.
pub(super) struct Freshness {
    counter: AtomicU64,
    everything: Last,
    slots: Box<[Last]>,
    seed: RandomState,
}

impl Freshness {
    pub(super) fn new() -> Self {
        Self {
            counter: AtomicU64::new(0),
            everything: Last::default(),
            slots: std::iter::repeat_with(Last::default).take(SLOTS).collect(),
            seed: RandomState::new(),
        }
    }

    /// To be noted before anything is read that will be cached.
    pub(super) fn now(&self) -> Moment {
        Moment(self.counter.load(Ordering::SeqCst))
    }

    /// The slot of a key, by its hash.
    pub(super) fn slot_of_hash(&self, hash: u64) -> Slot {
        // The high bits: the low ones choose the memory level's shard.
        Slot((hash >> 40) as u32 % SLOTS as u32)
    }

    /// The slot of a tag.
    pub(super) fn slot_of_tag(&self, tag: &str) -> Slot {
        self.slot_of_hash(self.seed.hash_one(tag))
    }

    /// From now on, what was read before this call is stale there.
    pub(super) fn invalidate(&self, what: &Last) {
        let moment = self.counter.fetch_add(1, Ordering::SeqCst) + 1;
        what.0.fetch_max(moment, Ordering::SeqCst);
    }

    pub(super) fn invalidate_slot(&self, slot: Slot) {
        self.invalidate(&self.slots[slot.0 as usize]);
    }

    pub(super) fn invalidate_everything(&self) {
        self.invalidate(&self.everything);
    }

    /// Whether a slot, or everything, was invalidated after `born`.
    pub(super) fn is_stale(&self, slot: Slot, born: Moment) -> bool {
        self.everything.is_after(born) || self.slots[slot.0 as usize].is_after(born)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_read_before_is_stale() {
        let freshness = Freshness::new();
        let (one, other) = (Slot(1), Slot(2));
        let before = freshness.now();
        freshness.invalidate_slot(one);
        let between = freshness.now();
        assert!(freshness.is_stale(one, before));
        assert!(!freshness.is_stale(one, between));
        assert!(!freshness.is_stale(other, before));
        freshness.invalidate_everything();
        assert!(freshness.is_stale(one, between) && freshness.is_stale(other, between));
        assert!(!freshness.is_stale(other, freshness.now()));
    }

    #[test]
    fn slots_are_used_evenly() {
        let freshness = Freshness::new();
        let mut used = vec![0_u32; SLOTS];
        for at in 0..SLOTS * 8 {
            used[freshness.slot_of_tag(&format!("tag:{at}")).0 as usize] += 1;
        }
        assert!(used.iter().all(|count| *count < 40), "a slot is crowded");
    }
}
