//! What is shown of the catalogue, kept ready: products by key, and which of them a list has. What a commit
//! changed is gone from here before its caller hears of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::{CHANGED, Filter, LISTED, ListPlace, PAGE_MAX, Page, Product, ProductId, sql};
use crate::cache::{Cache, CacheError, Cached, Id, Kind, KindRules, Loaded, Ready};
use crate::config;
use crate::http::ClientAddr;
use crate::http::shares::{Resource, ShareRefused, Shares};
use crate::kept::{Kept, KeptTable};
use crate::store::{Lane, Store, StoreError, Topic, Tx};

/// Makes of a product the answer that shows it.
pub type Print = fn(Product) -> Result<Ready, StoreError>;

/// The products, as they are shown.
#[derive(Clone, Copy)]
struct Products {
    print: Print,
}

impl KeptTable for Products {
    type Key = ProductId;
    type Row = Product;
    type Value = Ready;

    const CHANGED: Topic = CHANGED;

    fn one(tx: &mut Tx<'_>, id: ProductId) -> Result<Option<Product>, StoreError> {
        sql::get(tx, id)
    }

    fn many(tx: &mut Tx<'_>, ids: &[ProductId]) -> Result<Vec<Product>, StoreError> {
        sql::by_ids(tx, ids)
    }

    fn highest_id(tx: &mut Tx<'_>) -> Result<Option<i64>, StoreError> {
        sql::highest_id(tx)
    }

    fn key(product: &Product) -> ProductId {
        product.id
    }

    fn keep(self, product: Product) -> Result<Loaded<Ready>, StoreError> {
        let tag = category_tag(&product.category);
        (self.print)(product).map(|shown| Loaded::new(shown).tag(tag))
    }
}

/// A page of a list: where its products stand, and where it goes on. It may be longer than the page that
/// was asked for: see [`room_for`].
#[derive(Clone)]
struct Listed(Arc<(Vec<ListPlace>, Option<ListPlace>)>);

impl Listed {
    /// The first `limit` products, and where a page of those goes on.
    fn first(&self, limit: i64) -> (&[ListPlace], Option<ListPlace>) {
        let (places, next) = &*self.0;
        let limit = usize::try_from(limit).unwrap_or(0);
        match places.get(..limit) {
            Some(first) if limit < places.len() => (first, first.last().copied()),
            Some(_) | None => (places, *next),
        }
    }
}

impl Cached for Listed {
    fn heap_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.0.0) + 64
    }

    fn to_disk(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&*self.0).ok()
    }

    fn from_disk(bytes: &[u8]) -> Option<Self> {
        Some(Self(Arc::new(serde_json::from_slice(bytes).ok()?)))
    }
}

/// Pages are kept in two lengths, so that requests for one product more or less share one.
const ROOMS: [i64; 2] = [50, PAGE_MAX as i64];

/// The length of the page that is kept for those who ask for so many products.
fn room_for(limit: i64) -> i64 {
    let fits = ROOMS.into_iter().find(|room| *room >= limit);
    fits.unwrap_or(PAGE_MAX as i64)
}

/// A page of a list, with what is shown of its products.
pub(super) struct ShownPage {
    products: ShownProducts,
    /// Where the list goes on; `None` at its end.
    pub(super) next: Option<ListPlace>,
}

enum ShownProducts {
    /// Read with the list, by this request: so many of them.
    Brought(Arc<OnceLock<Brought>>, usize),
    /// As the cache has them.
    Found(Vec<Option<Ready>>),
}

impl ShownPage {
    /// The products, in the order of the list.
    pub(super) fn products(&self) -> impl Iterator<Item = &Ready> + Clone {
        let (brought, found): (&[Ready], &[Option<Ready>]) = match &self.products {
            ShownProducts::Brought(brought, count) => {
                let all = brought.get().map_or(&[][..], |(_, shown)| shown);
                (all.get(..*count).unwrap_or(all), &[])
            }
            ShownProducts::Found(found) => (&[], found),
        };
        brought.iter().chain(found.iter().flatten())
    }
}

/// Why a page was not shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShowError {
    /// The database.
    #[error(transparent)]
    Store(StoreError),
    /// Too much is under way.
    #[error(transparent)]
    Busy(ShareRefused),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// See the module; clones share what is kept.
#[derive(Clone)]
pub struct Showcase {
    pub(super) store: Store,
    shares: Shares,
    rules: Arc<config::Products>,
    print: Print,
    products: Kept<Products>,
    lists: Kind<Listed>,
    searches: Kind<Listed>,
    /// Whether there may be products that only the earlier rule's words find.
    has_two_rules: Arc<AtomicBool>,
}

impl Showcase {
    /// Of this database's products. To be made once for each cache.
    pub fn new(
        store: Store,
        shares: Shares,
        rules: Arc<config::Products>,
        cache: &Cache,
        print: Print,
    ) -> Self {
        let products = Products { print };
        let products = Kept::new(store.clone(), cache, KindRules::new("product", 2), products);
        let listing = |name| KindRules {
            has_own_turns: true,
            ..KindRules::new(name, 2)
        };
        let lists: Kind<Listed> = cache.kind(listing("product_list"));
        let searches: Kind<Listed> = cache.kind(listing("product_search"));
        let listed = [lists.clone(), searches.clone()];
        store.on_commit(LISTED, move || {
            listed.iter().for_each(Kind::invalidate_all);
        });
        Self {
            store,
            shares,
            rules,
            print,
            products,
            lists,
            searches,
            has_two_rules: Arc::new(AtomicBool::new(true)),
        }
    }

    /// A product; `None` when there is none of this key.
    pub(super) async fn one(&self, id: i64) -> Result<Option<Ready>, CacheError> {
        self.products.one(id).await
    }

    /// Those of these products that there are, in this order.
    pub(super) async fn many(&self, ids: &[Id]) -> Result<Vec<Option<Ready>>, CacheError> {
        self.products.many(ids).await
    }

    /// A page of a list, for the client that asks.
    pub(super) async fn page(
        &self,
        mut filter: Filter,
        client: ClientAddr,
    ) -> Result<ShownPage, ShowError> {
        let limit = filter.limit;
        filter.limit = room_for(limit);
        // A list is there, if without products.
        let Some((listed, brought)) = self.listed(&filter, client).await? else {
            return Ok(ShownPage {
                products: ShownProducts::Found(Vec::new()),
                next: None,
            });
        };
        let (places, next) = listed.first(limit);
        let is_own = brought
            .get()
            .is_some_and(|(own, _)| Arc::ptr_eq(&own.0, &listed.0));
        let products = if is_own {
            ShownProducts::Brought(brought, places.len())
        } else {
            let ids: Vec<Id> = places.iter().map(|place| Id::from(place.id.0)).collect();
            ShownProducts::Found(self.many(&ids).await?)
        };
        Ok(ShownPage { products, next })
    }

    /// A page of a list, and the products that were read for it if this request had it loaded.
    async fn listed(
        &self,
        filter: &Filter,
        client: ClientAddr,
    ) -> Result<Option<(Listed, Arc<OnceLock<Brought>>)>, ShowError> {
        let kind = match filter.search.is_empty() {
            true => &self.lists,
            false => &self.searches,
        };
        let key = list_key(filter, self.has_two_rules.load(Ordering::Acquire));
        for _ in 0..LOADS_JOINED_MAX {
            let (brought, is_refused) = (Arc::default(), Arc::new(AtomicBool::new(false)));
            let load = || self.load_list(filter.clone(), client, &brought, &is_refused);
            let error = match kind.get_or_load(key.clone(), load).await {
                Ok(hit) => return Ok(hit.map(|hit| (hit.value, brought))),
                Err(error) => error,
            };
            match error.cause() {
                Some(ListError::Store(error)) => return Err(ShowError::Store(error.clone())),
                Some(ListError::Busy(refused)) if is_refused.load(Ordering::Acquire) => {
                    return Err(ShowError::Busy(*refused));
                }
                // The load was another client's, which has too much under way.
                Some(ListError::Busy(_)) => {}
                None => return Err(error.into()),
            }
        }
        Err(ShowError::Busy(ShareRefused::Everyone))
    }

    /// Brings a page of a list; tells by `is_refused` that the client has too much under way.
    fn load_list(
        &self,
        filter: Filter,
        client: ClientAddr,
        brought: &Arc<OnceLock<Brought>>,
        is_refused: &Arc<AtomicBool>,
    ) -> impl Future<Output = Result<Option<Loaded<Listed>>, ListError>> + Send + use<> {
        let lane = match filter.search.is_empty() {
            true => Lane::List,
            false => Lane::Search,
        };
        let (showcase, rules) = (self.clone(), Arc::clone(&self.rules));
        let (brought, is_refused) = (Arc::clone(brought), Arc::clone(is_refused));
        let (sort, of) = (filter.sort, filter.category.clone());
        async move {
            // Held until the search has ended, whichever requests wait for it.
            let _share = match lane {
                Lane::List => None,
                Lane::Search => Some(
                    showcase
                        .shares
                        .take(Resource::SlowReads, client.0, 1)
                        .inspect_err(|_| is_refused.store(true, Ordering::Release))?,
                ),
            };
            let has_two_rules = Arc::clone(&showcase.has_two_rules);
            let read = showcase.store.read_in(lane, move |tx| {
                // Once all products were renewed, they stay so.
                if lane == Lane::Search && has_two_rules.load(Ordering::Acquire) {
                    has_two_rules.store(sql::terms_due(tx)?.is_some(), Ordering::Release);
                }
                super::list(tx, &rules, &filter)
            });
            let Page { products, next } = read.await?;
            let places = products.iter().map(|one| one.place(sort)).collect();
            let items: Result<Vec<Ready>, StoreError> =
                products.into_iter().map(showcase.print).collect();
            let listed = Listed(Arc::new((places, next)));
            // Set once: a load runs once.
            let _first = brought.set((listed.clone(), items?));
            let loaded = Loaded::new(listed);
            Ok(Some(match &of {
                Some(category) => loaded.tag(category_tag(category)),
                None => loaded,
            }))
        }
    }
}

/// A list as it was loaded, and its products.
type Brought = (Listed, Vec<Ready>);

/// Loads of another client that one waits for before it is told that there is too much to do: such a load
/// fails where that client has too much under way.
const LOADS_JOINED_MAX: usize = 4;

/// Why a list was not brought.
#[derive(Debug, thiserror::Error)]
enum ListError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too much is under way.
    #[error(transparent)]
    Busy(#[from] ShareRefused),
}

/// Names a page among all pages of all lists.
fn list_key(filter: &Filter, has_two_rules: bool) -> String {
    let Filter {
        category,
        search,
        sort,
        after,
        limit,
    } = filter;
    let after = after
        .map(|place| format!("{}.{}", place.key, place.id))
        .unwrap_or_default();
    // A category may hold any characters; words hold letters and digits alone.
    format!(
        "{}\n{limit}\n{after}\n{}\n{}{}",
        sort.letter(),
        search.key(has_two_rules),
        u8::from(category.is_some()),
        category.as_deref().unwrap_or_default()
    )
}

/// The tag of what shows a category: its products, and the lists of them.
fn category_tag(category: &str) -> String {
    format!("category:{category}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_a_list_comes_back_from_disk_as_it_was() {
        let place = |key, id| ListPlace {
            key,
            id: ProductId(id),
        };
        let places = vec![place(9, 7), place(9, 3)];
        for next in [None, Some(place(9, 3))] {
            let listed = Listed(Arc::new((places.clone(), next)));
            let bytes = listed.to_disk().expect("a form");
            assert_eq!(Listed::from_disk(&bytes).expect("the same").0, listed.0);
        }
        assert!(Listed::from_disk(b"{}").is_none());
    }
}
