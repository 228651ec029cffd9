//! Which words of a product stand in the index, and the renewal of those that an earlier rule cut.
//!
//! Invariants: a migration writes up to which product there are words of the earlier rule
//! (`product_terms_due`), and the row goes when all are renewed. A step is one transaction: it renews
//! the words of a few products and writes in that row how far it came. So a process that is killed
//! goes on where it was, and a step that is repeated changes nothing. What changes a product's text
//! meanwhile holds that row as the step does, so neither reads what the other is about to change.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;

use super::{LISTED, Product, ProductId, sql, terms};
use crate::clock::Stopwatch;
use crate::store::{Store, StoreError, Tx};

/// Products and bytes of text of one step. The writer does nothing else meanwhile; this much Chinese
/// has a row for each of its 4,000 characters.
const STEP_PRODUCTS: u32 = 32;
const STEP_BYTES: usize = 12_000;
/// Pause after a step that failed.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Writes the words of a new product.
pub(super) fn created<'a>(
    tx: &mut Tx<'_>,
    id: ProductId,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<(), StoreError> {
    sql::add_terms(tx, id, &terms::index(texts))
}

/// Brings the words of a product to its changed text.
pub(super) fn changed(
    tx: &mut Tx<'_>,
    before: &Product,
    after: &Product,
) -> Result<(), StoreError> {
    if before.text() == after.text() {
        return Ok(());
    }
    let (mut old, new) = (terms::index(before.text()), terms::index(after.text()));
    if sql::hold_if_terms_due(tx, after.id)? {
        // It is not known which of the two rules wrote what is there.
        old.extend(terms::first::index(before.text()));
        return replace(tx, after.id, &old, &new);
    }
    sql::remove_terms(tx, after.id, old.difference(&new))?;
    sql::add_terms(tx, after.id, new.difference(&old))
}

/// Leaves these words, whatever there was of the old ones.
fn replace(
    tx: &mut Tx<'_>,
    id: ProductId,
    old: &BTreeSet<String>,
    new: &BTreeSet<String>,
) -> Result<(), StoreError> {
    sql::remove_terms(tx, id, old.difference(new))?;
    sql::add_terms(tx, id, new)
}

/// Renews the words of the next few products; answers whether there may be more.
fn step(tx: &mut Tx<'_>) -> Result<bool, StoreError> {
    let Some((above, until)) = sql::hold_terms_due(tx)? else {
        return Ok(false);
    };
    let (mut last, mut bytes) = (None, 0);
    for product in sql::by_key(tx, above, until, STEP_PRODUCTS)? {
        bytes += product.text().iter().map(|text| text.len()).sum::<usize>();
        if last.is_some() && bytes > STEP_BYTES {
            break;
        }
        let old = terms::first::index(product.text());
        replace(tx, product.id, &old, &terms::index(product.text()))?;
        last = Some(product.id);
        fail::fail_point!("product.words_renewed");
    }
    match last {
        Some(last) => sql::note_terms_due(tx, last)?,
        None => {
            sql::no_terms_due(tx)?;
            // Lists that were searched for before may lack what is found now.
            tx.touch(LISTED);
        }
    }
    Ok(last.is_some())
}

/// The background service that renews what an earlier version left, and ends then.
pub struct Reindexer(Store);

impl Reindexer {
    /// Of this database.
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    /// Runs until nothing is left, or `stopped` turns true.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        loop {
            let watch = Stopwatch::start();
            let rest = match self.step().await {
                Ok(false) => return,
                // As long as it took: others have the writer, and the disk, for half of the time.
                Ok(true) => watch.elapsed(),
                Err(error) => {
                    tracing::warn!(%error, "the search index could not be renewed; it is tried again");
                    RETRY_AFTER
                }
            };
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn step(&self) -> Result<bool, StoreError> {
        let Some((above, until)) = self.0.point(sql::terms_due).await? else {
            return Ok(false);
        };
        if above == 0 {
            tracing::info!(
                until,
                "products of an earlier version are indexed again for the search, beside all else"
            );
        }
        let is_more = self.0.write(step).await?;
        if !is_more {
            tracing::info!("all products are indexed for the search");
        }
        Ok(is_more)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::Path;

    use super::*;
    use crate::clock::Timestamp;
    use crate::config::{Database, Products};
    use crate::monitor::Metrics;
    use crate::product::{Filter, ProductPatch, Search, Sort, list, update};

    /// Fifty products that version 0.1.0 imported, one of them archived.
    const OLD: &[u8] = include_bytes!("../../tests/fixtures/onrush-0.1.0.db.gz");

    fn open(dir: &Path) -> Store {
        let path = dir.join("onrush.db");
        if !path.exists() {
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(OLD)
                .read_to_end(&mut bytes)
                .expect("a database");
            std::fs::write(&path, bytes).expect("written");
        }
        let metrics = Metrics::new().expect("metrics");
        Store::open(&path, &Database::default(), metrics, |_| ()).expect("store")
    }

    fn found(store: &Store, q: &str) -> Vec<String> {
        let filter = Filter {
            category: None,
            search: Search::new(q),
            sort: Sort::Newest,
            after: None,
            limit: 200,
        };
        let rules = Products::default();
        let listed = store.read_blocking(move |tx| list(tx, &rules, &filter));
        let listed = listed.expect("a list").products.into_iter();
        listed.filter_map(|product| product.sku).collect()
    }

    /// Every product has the words of its text and no others.
    fn assert_exact(store: &Store) {
        let products = store
            .read_blocking(|tx| sql::by_key(tx, 0, i64::MAX, 1_000))
            .expect("products");
        assert_eq!(products.len(), 50);
        for product in products {
            let there = store
                .read_blocking(|tx| sql::terms_of(tx, product.id))
                .expect("words");
            let there = BTreeSet::from_iter(there);
            let sku = product.sku.as_deref().unwrap_or_default();
            assert!(there == terms::index(product.text()), "{sku}: {there:?}");
        }
    }

    fn change_name(store: &Store, id: i64, name: &str) {
        let patch = ProductPatch {
            name: Some(name.to_owned()),
            ..ProductPatch::default()
        };
        store
            .write(move |tx| update(tx, Timestamp(9), ProductId(id), &patch))
            .blocking()
            .expect("changed");
    }

    #[test]
    fn an_old_index_is_renewed_step_by_step_over_restarts_and_changes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut store = open(dir.path());
        // What the old version found is found before a step was made.
        let shown = found(&store, "商品");
        assert_eq!(shown.len(), 39, "the archived one is not shown");
        let before: [(&str, Vec<&str>); 8] = [
            ("café", vec!["CAFE-NFC"]),
            ("große", vec!["STRASSE"]),
            ("ＵＳＢ", vec!["ＵＳＢ－Ｃ－１５"]),
            ("ﾜｲﾔﾚｽ", vec!["KANA"]),
            ("ёлка", vec!["RU"]),
            // The first gets another name below.
            ("商", shown.iter().skip(1).map(String::as_str).collect()),
            ("item 3", vec!["P003"]),
            ("word19", vec!["EN-LONG"]),
        ];
        let assert_as_before = |store: &Store| {
            for (q, skus) in &before {
                let found = found(store, q);
                assert!(
                    skus.iter().all(|sku| found.iter().any(|one| one == sku)),
                    "{q}: {found:?}"
                );
            }
        };
        assert_as_before(&store);
        assert!(found(&store, "word899").is_empty());

        let (mut steps, mut is_more) = (0, true);
        while is_more {
            is_more = store.write(step).blocking().expect("a step");
            steps += 1;
            assert_as_before(&store);
            if steps == 2 {
                // One that had its turn, and twice one that has not.
                change_name(&store, 1, "第一");
                change_name(&store, 49, "Crème 甲乙丙");
                change_name(&store, 49, "Item 48 丁");
            }
            if steps % 3 == 0 {
                store.close();
                drop(store);
                store = open(dir.path());
            }
        }
        assert!(steps > 5, "in bounded steps: {steps}");
        assert_exact(&store);
        assert!(!store.write(step).blocking().expect("nothing to do"));
        for (q, sku) in [
            ("word899", "EN-LONG"),
            ("cafe noir", "CAFE-NFD"),
            ("CAFE\u{301} CR", "CAFE-NFC"),
            ("usb-c 15", "ＵＳＢ－Ｃ－１５"),
            ("ワイヤレス ガジェット", "KANA"),
            ("STRASSE", "STRASSE"),
            ("istanbul", "ISTANBUL"),
            ("елк", "RU"),
            ("丁", "P038"),
        ] {
            assert_eq!(found(&store, q), [sku], "{q}");
        }
        assert!(found(&store, "甲乙").is_empty() && found(&store, "creme 甲").is_empty());
        // Later changes are as exact.
        change_name(&store, 2, "Größe 二");
        assert_exact(&store);
    }

    #[test]
    fn a_new_database_has_nothing_to_renew() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        assert!(store.read_blocking(sql::terms_due).expect("read").is_none());
        assert!(!store.write(step).blocking().expect("nothing to do"));
    }
}
