//! Views of products as a metric with a bounded number of labels.
//!
//! A hundred products have a counter of their own, all others share `other`. Invariants: no counter
//! ever falls while its label exists, so rates stay true; at each reading the busiest of the others
//! take the places of labelled products that have become quieter; memory is bounded.

use std::collections::HashMap;

use parking_lot::{Mutex, RwLock};
use prometheus::{IntCounter, IntCounterVec};

/// Products with a label of their own. Each label is a series that a monitoring server keeps, so the number is
/// the same for every shop.
const LABELLED_MAX: usize = 100;
/// Unlabelled products that are counted at once as candidates for a label.
const CANDIDATES_MAX: usize = 4_096;

/// Counts views; see the module.
pub struct ProductViews {
    vec: IntCounterVec,
    other: IntCounter,
    labelled: RwLock<HashMap<i64, Labelled>>,
    candidates: Mutex<HashMap<i64, u64>>,
}

struct Labelled {
    counter: IntCounter,
    /// The count at the last reading: growth since then is how busy the product is.
    at_last_reading: u64,
}

impl ProductViews {
    pub(super) fn new(vec: IntCounterVec) -> Self {
        Self {
            other: vec.with_label_values(&["other"]),
            vec,
            labelled: RwLock::new(HashMap::new()),
            candidates: Mutex::new(HashMap::new()),
        }
    }

    /// Counts one view.
    pub fn inc(&self, product_id: i64) {
        if let Some(labelled) = self.labelled.read().get(&product_id) {
            labelled.counter.inc();
            return;
        }
        self.other.inc();
        // A view missed as a candidate because of contention is counted in `other` all the same.
        if let Some(mut candidates) = self.candidates.try_lock()
            && (candidates.len() < CANDIDATES_MAX || candidates.contains_key(&product_id))
        {
            *candidates.entry(product_id).or_default() += 1;
        }
    }

    /// Gives labels to the busiest products since the last reading.
    pub(super) fn promote(&self) {
        let mut candidates: Vec<(u64, i64)> = std::mem::take(&mut *self.candidates.lock())
            .into_iter()
            .map(|(product_id, views)| (views, product_id))
            .collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        let mut labelled = self.labelled.write();
        let mut quietest: Vec<(u64, i64)> = labelled
            .iter_mut()
            .map(|(product_id, entry)| {
                let count = entry.counter.get();
                let growth = count - entry.at_last_reading.min(count);
                entry.at_last_reading = count;
                (growth, *product_id)
            })
            .collect();
        quietest.sort_unstable_by(|a, b| b.cmp(a));
        for (views, product_id) in candidates {
            if labelled.len() >= LABELLED_MAX {
                match quietest.last() {
                    // Twice as busy, so that two products of equal rank don't swap at each reading.
                    Some((growth, quiet)) if views > growth.saturating_mul(2) => {
                        labelled.remove(quiet);
                        // An error would only mean that the label is gone already.
                        let _absent = self.vec.remove_label_values(&[&quiet.to_string()]);
                        quietest.pop();
                    }
                    _ => break,
                }
            }
            let counter = self.vec.with_label_values(&[&product_id.to_string()]);
            labelled.insert(
                product_id,
                Labelled {
                    counter,
                    at_last_reading: 0,
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Opts;
    use prometheus::core::Collector;

    fn views() -> ProductViews {
        let vec = IntCounterVec::new(Opts::new("product_views_total", "views"), &["product_id"])
            .expect("valid");
        ProductViews::new(vec)
    }

    #[test]
    fn a_product_gets_a_label_from_its_second_reading_on() {
        let views = views();
        views.inc(7);
        views.promote();
        views.inc(7);
        views.inc(8);
        assert_eq!(views.other.get(), 2);
        assert_eq!(views.vec.with_label_values(&["7"]).get(), 1);
    }

    #[test]
    fn labels_are_bounded_and_go_to_the_busiest() {
        let views = views();
        for product_id in 0..500 {
            views.inc(product_id);
        }
        views.promote();
        for _ in 0..10 {
            views.inc(1_000);
        }
        views.promote();
        let series = views.vec.collect()[0].get_metric().len();
        assert_eq!(series, LABELLED_MAX + 1);
        views.inc(1_000);
        assert_eq!(views.vec.with_label_values(&["1000"]).get(), 1);
    }
}
