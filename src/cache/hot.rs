//! Which keys are read most, over a sliding window, in fixed memory; and the list of them that
//! outlives the process.
//!
//! Invariants: a read costs a random number, and one in [`SAMPLE`] a look into a sketch that it
//! doesn't wait for; memory does not grow with the number of keys; a damaged list is worth no more
//! than none.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use datasketches::frequencies::{ErrorType, FrequentItemsSketch};
use parking_lot::Mutex;

use super::key::CacheKey;

/// One read in so many is counted, as so many.
const SAMPLE: u32 = 16;
/// Parts of the window, the oldest of which is forgotten as the window moves on.
const SLICES: u64 = 6;
/// Places of each part's sketch (three quarters are used): a key read in more than about one of a
/// thousand reads is never missed.
const SKETCH_PLACES: usize = 1_024;

/// A key that is read often.
#[derive(Clone, Debug)]
pub(super) struct Hot {
    pub(super) key: CacheKey,
    /// Reads within the window, estimated.
    pub(super) reads: u64,
}

struct Slice {
    /// Which part of time it counts.
    number: u64,
    sketch: FrequentItemsSketch<CacheKey>,
}

/// Counts reads; see the module.
pub(super) struct HotKeys {
    slices: Mutex<Vec<Slice>>,
    slice_ms: u64,
}

thread_local! {
    /// Xorshift: cheap, and no pattern of reads falls in with it.
    static DICE: Cell<u32> = const { Cell::new(0x9E37_79B9) };
}

fn is_sampled() -> bool {
    DICE.with(|dice| {
        let mut x = dice.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        dice.set(x);
        x >> 8 & (SAMPLE - 1) == 0
    })
}

impl HotKeys {
    pub(super) fn new(window_seconds: u64) -> Self {
        Self {
            slices: Mutex::new(Vec::new()),
            slice_ms: (window_seconds * 1_000 / SLICES).max(1),
        }
    }

    /// Counts a read.
    pub(super) fn seen(&self, key: &CacheKey, now_ms: u64) {
        if !is_sampled() {
            return;
        }
        // A read that is not counted because another is being counted is one of many.
        let Some(mut slices) = self.slices.try_lock() else {
            return;
        };
        let number = now_ms / self.slice_ms;
        match slices.last_mut() {
            Some(slice) if slice.number == number => {
                slice
                    .sketch
                    .update_with_count(key.clone(), u64::from(SAMPLE));
            }
            _ => {
                slices.retain(|slice| slice.number + SLICES > number);
                let mut sketch = FrequentItemsSketch::new(SKETCH_PLACES);
                sketch.update_with_count(key.clone(), u64::from(SAMPLE));
                slices.push(Slice { number, sketch });
            }
        }
    }

    /// The keys read at least `reads_min` times within the window, the most read first.
    pub(super) fn top(&self, now_ms: u64, reads_min: u64, most: usize) -> Vec<Hot> {
        let number = now_ms / self.slice_ms;
        let mut whole = FrequentItemsSketch::new(SKETCH_PLACES);
        for slice in self.slices.lock().iter() {
            if slice.number + SLICES > number {
                whole.merge(&slice.sketch);
            }
        }
        let mut hot: Vec<Hot> = whole
            .frequent_items_with_threshold(ErrorType::NoFalsePositives, reads_min.saturating_sub(1))
            .into_iter()
            .map(|row| Hot {
                key: row.item().clone(),
                reads: row.estimate(),
            })
            .collect();
        hot.sort_by(|a, b| b.reads.cmp(&a.reads).then_with(|| a.key.id.cmp(&b.key.id)));
        hot.truncate(most);
        hot
    }
}

/// First line of the list; another one is not read.
const LIST_HEAD: &str = "onrush hot keys 1";
/// A list that is longer was not written by us.
const LIST_BYTES_MAX: u64 = 4 * 1_048_576;

/// Writes the list so that a reader sees the old one or the new one.
pub(super) fn write_list(path: &Path, keys: &[String]) -> std::io::Result<()> {
    let mut text = String::from(LIST_HEAD);
    for key in keys {
        text.push('\n');
        text.push_str(key);
    }
    text.push('\n');
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("new");
    let written = std::fs::File::create(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        // What is left of it would only be in the way; the error that counts is the first.
        let _second = std::fs::remove_file(&new);
    }
    written
}

/// Reads the list; what is not a list of keys is none.
pub(super) fn read_list(path: &Path, most: usize) -> Vec<Arc<str>> {
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(LIST_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the list of hot keys can't be read");
            return Vec::new();
        }
    }
    let mut lines = text.lines();
    if lines.next() != Some(LIST_HEAD) {
        tracing::warn!(path = %path.display(), "the list of hot keys is damaged and not used");
        return Vec::new();
    }
    lines.take(most).map(Arc::from).collect()
}

#[cfg(test)]
mod tests {
    use super::super::key::{Id, KindIndex};
    use super::*;
    use std::hash::RandomState;

    fn key(seed: &RandomState, id: i64) -> CacheKey {
        CacheKey::new(seed, KindIndex(0), Id::Int(id))
    }

    #[test]
    fn the_hot_are_found_among_a_million_keys_and_forgotten_when_they_cool() {
        let (hot, seed) = (HotKeys::new(60), RandomState::new());
        for at in 0..2_000_000_i64 {
            // Ten keys get a hundredth of the reads each; the rest go once to each of many.
            let id = if at % 10 == 0 { at / 10 % 10 } else { at };
            hot.seen(&key(&seed, id), 1_000);
        }
        let top = hot.top(1_000, 10_000, 100);
        let mut ids: Vec<&Id> = top.iter().map(|hot| hot.key.id()).collect();
        ids.sort();
        assert_eq!(
            ids,
            (0..10)
                .map(Id::Int)
                .collect::<Vec<_>>()
                .iter()
                .collect::<Vec<_>>()
        );
        for hot in &top {
            assert!((15_000..25_000).contains(&hot.reads), "{}", hot.reads);
        }
        for slice in hot.slices.lock().iter() {
            assert!(slice.sketch.num_active_items() <= SKETCH_PLACES);
        }
        assert_eq!(hot.top(59_000, 10_000, 3).len(), 3);
        assert!(
            hot.top(71_000, 1, 100).is_empty(),
            "the window has moved on"
        );
        hot.seen_for_sure(&key(&seed, 5), 71_000);
        assert_eq!(hot.slices.lock().len(), 1, "old parts are let go");
    }

    impl HotKeys {
        fn seen_for_sure(&self, key: &CacheKey, now_ms: u64) {
            for _ in 0..1_000 {
                self.seen(key, now_ms);
            }
        }
    }

    #[test]
    fn a_list_reads_back_and_damage_is_no_list() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("cache").join("hot-keys");
        assert!(read_list(&path, 10).is_empty());
        let keys = ["product:1".to_owned(), "list:\\x00".to_owned()];
        write_list(&path, &keys).expect("written");
        write_list(&path, &keys).expect("written again");
        let read = read_list(&path, 10);
        assert_eq!(read.iter().map(|key| &**key).collect::<Vec<_>>(), keys);
        assert_eq!(read_list(&path, 1).len(), 1);
        for damage in [&b"\xff\xfe\x00"[..], b"", b"product:1\nproduct:2"] {
            std::fs::write(&path, damage).expect("written");
            assert!(read_list(&path, 10).is_empty());
        }
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("a folder in its place");
        assert!(read_list(&path, 10).is_empty());
        assert!(write_list(&path, &keys).is_err());
    }
}
