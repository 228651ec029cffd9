//! Sales, kept ready to be shown. For looks at a sale alone: a claim is decided by the row.

use std::sync::Arc;

use crate::allotment::{self, SALE_CHANGED, Sale, SaleId};
use crate::cache::{Cache, CacheError, Cached, KindRules, Loaded};
use crate::kept::{Kept, KeptTable};
use crate::store::{Store, StoreError, Topic, Tx};

/// A sale as its row is; what it is called at a moment is worked out when it is shown.
#[derive(Clone)]
struct ShownSale(Arc<Sale>);

impl Cached for ShownSale {
    fn heap_bytes(&self) -> usize {
        std::mem::size_of::<Sale>() + self.0.currency.len()
    }
}

#[derive(Clone, Copy)]
struct Sales;

impl KeptTable for Sales {
    type Key = SaleId;
    type Row = Sale;
    type Value = ShownSale;

    const CHANGED: Topic = SALE_CHANGED;

    fn one(tx: &mut Tx<'_>, id: SaleId) -> Result<Option<Sale>, StoreError> {
        allotment::get(tx, id)
    }

    /// One by one: only a warm-up asks for several, and few sales are ahead at once.
    fn many(tx: &mut Tx<'_>, ids: &[SaleId]) -> Result<Vec<Sale>, StoreError> {
        let found = ids.iter().map(|id| allotment::get(tx, *id));
        found.filter_map(Result::transpose).collect()
    }

    fn highest_id(tx: &mut Tx<'_>) -> Result<Option<i64>, StoreError> {
        allotment::highest_id(tx)
    }

    fn key(sale: &Sale) -> SaleId {
        sale.id
    }

    fn keep(self, sale: Sale) -> Result<Loaded<ShownSale>, StoreError> {
        let tag = format!("product:{}", sale.product_id);
        Ok(Loaded::new(ShownSale(Arc::new(sale))).tag(tag))
    }
}

/// See the module; clones share what is kept.
#[derive(Clone)]
pub struct ReadySales {
    pub(super) store: Store,
    sales: Kept<Sales>,
}

impl ReadySales {
    /// Of this database's sales. To be made once for each cache.
    pub fn new(store: Store, cache: &Cache) -> Self {
        let rules = KindRules {
            on_disk: false,
            ..KindRules::new("flash_sale", 1)
        };
        Self {
            sales: Kept::new(store.clone(), cache, rules, Sales),
            store,
        }
    }

    /// A sale; `None` when there is none of this key.
    pub(super) async fn get(&self, id: SaleId) -> Result<Option<Arc<Sale>>, CacheError> {
        let found = self.sales.one(id.0).await?;
        Ok(found.map(|shown| shown.0))
    }
}
