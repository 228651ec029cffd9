//! The catalogue over HTTP.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use poem::http::StatusCode;
use poem::http::header::HeaderValue;
use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::import::{ImportError, ImportReport, import_products};
use super::{
    CATEGORY_CHARS_MAX, CHANGED, Filter, LISTED, NewProduct, PAGE_MAX, Page, Place, Product,
    ProductError, ProductId, ProductPatch, Search, Sort, sql,
};
use crate::auth::api::{Access, Tag};
use crate::auth::{Role, Scope};
use crate::cache::{Cache, CacheError, Cached, HighestWanted, Id, Kind, KindRules, Loaded, Ready};
use crate::check::FieldError;
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::http::json::etag_of;
use crate::http::shares::{Resource, ShareRefused, Shares};
use crate::http::{
    Body, ClientAddr, Created, CsvBody, Failure, NoContent, Printed, PrintedTagged, Problem, fails,
};
use crate::monitor::Metrics;
use crate::sheet;
use crate::store::{Lane, Rows, Store, StoreError};

impl From<ProductError> for Problem {
    fn from(error: ProductError) -> Self {
        let text = error.to_string();
        match error {
            ProductError::Invalid(errors) => Problem::validation(errors),
            ProductError::NotFound(_) => Problem::not_found("product_not_found", text),
            ProductError::DuplicateSku => {
                Problem::conflict("sku_taken", text).field("sku", "is another product's")
            }
            ProductError::StockChanged => Problem::conflict("stock_changed", text),
            ProductError::InSale(_) => Problem::conflict("product_in_sale", text),
            ProductError::Store(error) => error.into(),
        }
    }
}

/// A product.
#[derive(Serialize, Object)]
struct ProductView {
    /// Key
    id: i64,
    /// The shop's own article number
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<String>,
    /// Name
    name: String,
    /// Description
    description: String,
    /// Category
    category: String,
    /// Price of one in minor units
    unit_amount: i64,
    /// ISO 4217
    currency: String,
    /// Free units: what an ordinary order can have
    stock: i64,
    /// Units set aside for flash sales that are not over; how many are left, each sale's `remaining` says
    set_aside: i64,
    /// Units sold of late
    popularity: i64,
    /// When it came into the catalogue
    created_at: Timestamp,
    /// When its text or price last changed
    last_updated: Timestamp,
}

impl From<Product> for ProductView {
    fn from(product: Product) -> Self {
        Self {
            id: product.id.0,
            sku: product.sku,
            name: product.name,
            description: product.description,
            category: product.category,
            unit_amount: product.unit_amount,
            currency: product.currency,
            stock: product.stock,
            set_aside: product.set_aside,
            popularity: product.popularity,
            created_at: product.created_at,
            last_updated: product.last_updated,
        }
    }
}

/// One page of products.
#[derive(Serialize, Object)]
struct ProductPage {
    /// Products in the order asked for
    items: Vec<ProductView>,
    /// Pass it as `cursor` for the next page
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// Asked for by `ids` and not there
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[oai(default)]
    missing: Vec<i64>,
}

/// A product to make.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct ProductBody {
    /// The shop's own article number, unique
    #[serde(default)]
    sku: Option<String>,
    /// Name
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
    /// Description
    #[oai(default, validator(max_length = 10000))]
    #[serde(default)]
    description: String,
    /// Category
    #[oai(default, validator(max_length = 100))]
    #[serde(default)]
    category: String,
    /// Price of one in minor units
    #[oai(validator(minimum(value = "0")))]
    unit_amount: i64,
    /// ISO 4217, such as CNY
    #[oai(validator(pattern = "^[A-Z]{3}$"))]
    currency: String,
    /// Units in the house
    #[oai(default, validator(minimum(value = "0")))]
    #[serde(default)]
    stock: i64,
}

impl Example for ProductBody {
    fn example() -> Self {
        Self {
            sku: Some("TEA-001".to_owned()),
            name: "Green Tea 绿茶".to_owned(),
            description: "Spring harvest. 明前新茶。".to_owned(),
            category: "Food 食品".to_owned(),
            unit_amount: 6_800,
            currency: "CNY".to_owned(),
            stock: 500,
        }
    }
}

/// What shall change.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct PatchBody {
    /// New name
    #[serde(default)]
    name: Option<String>,
    /// New description
    #[serde(default)]
    description: Option<String>,
    /// New category
    #[serde(default)]
    category: Option<String>,
    /// New price
    #[serde(default)]
    unit_amount: Option<i64>,
    /// Free units after a stock-take
    #[serde(default)]
    stock: Option<i64>,
}

impl Example for PatchBody {
    fn example() -> Self {
        Self {
            name: None,
            description: None,
            category: None,
            unit_amount: Some(5_900),
            stock: Some(480),
        }
    }
}

/// A row that was not taken.
#[derive(Serialize, Object)]
struct RowErrorView {
    /// Line of the file, from 1
    line: u64,
    /// Column; empty when the row as a whole is wrong
    field: String,
    /// What is wrong
    reason: String,
}

/// What an import did.
#[derive(Serialize, Object)]
struct ImportView {
    /// Rows read
    read: u64,
    /// Rows that made a product
    created: u64,
    /// Rows that changed one
    updated: u64,
    /// Rows that said what was known
    unchanged: u64,
    /// Rows that were not taken
    failed: u64,
    /// The first of those
    errors: Vec<RowErrorView>,
    /// The encoding that the file was read in, such as `UTF-8` or `GB18030`
    encoding: String,
    /// What stands between its columns: `comma`, `semicolon`, `tab`, or the character itself
    delimiter: String,
}

impl From<ImportReport> for ImportView {
    fn from(report: ImportReport) -> Self {
        Self {
            read: report.read,
            created: report.created,
            updated: report.updated,
            unchanged: report.unchanged,
            failed: report.failed,
            errors: report
                .errors
                .into_iter()
                .map(|error| RowErrorView {
                    line: error.line,
                    field: error.field,
                    reason: error.reason,
                })
                .collect(),
            encoding: report.encoding,
            delimiter: report.delimiter,
        }
    }
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Sheet(error) => error.into(),
            ImportError::Store(error) => error.into(),
        }
    }
}

/// A product as it is shown.
fn shown(product: Product) -> Result<Ready, StoreError> {
    let json = serde_json::to_vec(&ProductView::from(product))
        .map_err(|error| StoreError::Bug(error.to_string()))?;
    let etag = etag_of(&json).to_str().unwrap_or_default().to_owned();
    Ok(Ready::new("application/json", etag, json))
}

/// A page of a list: where its products stand, and where it goes on. It may be longer than who asked for it
/// wants: see [`room_for`].
#[derive(Clone)]
struct Listed(Arc<(Vec<Place>, Option<Place>)>);

impl Listed {
    /// The first `limit` products, and where a page of those goes on.
    fn first(&self, limit: i64) -> (&[Place], Option<Place>) {
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

/// Pages are kept in two lengths, so that who asks for one product more or less asks for the same.
const ROOMS: [i64; 2] = [50, PAGE_MAX as i64];

/// The length of the page that is kept for those who ask for so many products.
fn room_for(limit: i64) -> i64 {
    let fits = ROOMS.into_iter().find(|room| *room >= limit);
    fits.unwrap_or(PAGE_MAX as i64)
}

/// The key of a product.
fn number(id: &Id) -> Option<i64> {
    match id {
        Id::Int(id) => Some(*id),
        Id::Bytes(_) => None,
    }
}

/// What is shown of the catalogue, kept ready: products by key, and which of them a list has. What a
/// commit changed is gone from here before its caller hears of it.
#[derive(Clone)]
pub struct Showcase {
    store: Store,
    shares: Shares,
    rules: Arc<config::Products>,
    products: Kind<Ready>,
    lists: Kind<Listed>,
    searches: Kind<Listed>,
    /// Whether there may be products that only the earlier rule's words find.
    has_two_rules: Arc<AtomicBool>,
}

impl Showcase {
    /// Of this database's products. To be made once for each cache.
    pub fn new(store: Store, shares: Shares, rules: Arc<config::Products>, cache: &Cache) -> Self {
        let products: Kind<Ready> = cache.kind(KindRules::new("product", 2));
        let listing = |name| KindRules {
            has_own_turns: true,
            ..KindRules::new(name, 2)
        };
        let lists: Kind<Listed> = cache.kind(listing("product_list"));
        let searches: Kind<Listed> = cache.kind(listing("product_search"));
        let changed = products.clone();
        store.on_commit_of(CHANGED, move |rows| match rows {
            Rows::Any => changed.invalidate_all(),
            Rows::These(ids) => ids.iter().for_each(|id| changed.invalidate(*id)),
        });
        let listed = [lists.clone(), searches.clone()];
        store.on_commit(LISTED, move || {
            listed.iter().for_each(Kind::invalidate_all);
        });
        let of = store.clone();
        products.on_warm(move |products, ids| {
            let store = of.clone();
            Box::pin(async move {
                let found =
                    products.get_many_or_load(&ids, |ids| load_shown(store.clone(), ids, None));
                Ok(found.await?.into_iter().flatten().count())
            })
        });
        Self {
            store,
            shares,
            rules,
            products,
            lists,
            searches,
            has_two_rules: Arc::new(AtomicBool::new(true)),
        }
    }

    async fn one(&self, id: i64) -> Result<Option<Ready>, CacheError> {
        let load = || {
            let (store, wanted) = (self.store.clone(), self.products.asks_for_highest());
            async move {
                let read = store.point(move |tx| {
                    let found = sql::get(tx, ProductId(id))?;
                    if let (None, Some(wanted)) = (&found, wanted) {
                        wanted.tell(sql::highest_id(tx)?);
                    }
                    Ok::<_, StoreError>(found)
                });
                let found = read.await?;
                found.map(loaded).transpose()
            }
        };
        let hit = self.products.get_or_load(id, load).await?;
        Ok(hit.map(|hit| hit.value))
    }

    /// Those of these products that there are, in this order.
    async fn many(&self, ids: &[Id]) -> Result<Vec<Option<Ready>>, CacheError> {
        let load = |ids| load_shown(self.store.clone(), ids, self.products.asks_for_highest());
        let hits = self.products.get_many_or_load(ids, load).await?;
        Ok(hits
            .into_iter()
            .map(|hit| hit.map(|hit| hit.value))
            .collect())
    }

    async fn page(
        &self,
        mut filter: Filter,
        client: ClientAddr,
        leads_on: bool,
    ) -> Result<Printed<ProductPage>, Problem> {
        let (sort, limit) = (filter.sort, filter.limit);
        filter.limit = room_for(limit);
        let loaded = self.listed(&filter, client).await?;
        // A list is there, if without products.
        let Some((listed, brought)) = loaded else {
            return Ok(print_page(std::iter::empty(), None, &[]));
        };
        let (places, next) = listed.first(limit);
        let cursor = next.filter(|_| leads_on);
        let cursor = cursor.map(|next| write_cursor(sort, next));
        if let Some((own, shown)) = brought.get()
            && Arc::ptr_eq(&own.0, &listed.0)
        {
            let shown = shown.iter().take(places.len());
            return Ok(print_page(shown, cursor.as_deref(), &[]));
        }
        let ids: Vec<Id> = places.iter().map(|place| Id::from(place.id.0)).collect();
        let items = self.many(&ids).await?;
        Ok(print_page(items.iter().flatten(), cursor.as_deref(), &[]))
    }

    /// A page of a list, and the products that were read for it if this request had it loaded.
    async fn listed(
        &self,
        filter: &Filter,
        client: ClientAddr,
    ) -> Result<Option<(Listed, Arc<OnceLock<Brought>>)>, Problem> {
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
                Some(ListError::Store(error)) => return Err(error.clone().into()),
                Some(ListError::Busy(refused)) if is_refused.load(Ordering::Acquire) => {
                    return Err((*refused).into());
                }
                // The load was another client's, who has too much under way.
                Some(ListError::Busy(_)) => {}
                None => return Err(error.into()),
            }
        }
        Err(ShareRefused::Everyone.into())
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
            // Held until the search has ended, whoever waits for it.
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
            let items: Result<Vec<Ready>, StoreError> = products.into_iter().map(shown).collect();
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
        sort_letter(*sort),
        search.key(has_two_rules),
        u8::from(category.is_some()),
        category.as_deref().unwrap_or_default()
    )
}

/// The tag of what shows a category: its products, and the lists of them.
fn category_tag(category: &str) -> String {
    format!("category:{category}")
}

fn loaded(product: Product) -> Result<Loaded<Ready>, StoreError> {
    let tag = category_tag(&product.category);
    shown(product).map(|shown| Loaded::new(shown).tag(tag))
}

async fn load_shown(
    store: Store,
    ids: Vec<Id>,
    wanted: Option<HighestWanted>,
) -> Result<Vec<(Id, Loaded<Ready>)>, StoreError> {
    let ids: Vec<ProductId> = ids
        .iter()
        .filter_map(|id| number(id).map(ProductId))
        .collect();
    let read = store.point(move |tx| {
        let found = sql::by_ids(tx, &ids)?;
        if let Some(wanted) = wanted
            && found.len() < ids.len()
        {
            wanted.tell(sql::highest_id(tx)?);
        }
        Ok::<_, StoreError>(found)
    });
    let found = read.await?;
    found
        .into_iter()
        .map(|product| {
            let id = Id::from(product.id.0);
            Ok((id, loaded(product)?))
        })
        .collect()
}

/// JSON of a [`ProductPage`], of products that are printed already.
fn print_page<'a>(
    items: impl Iterator<Item = &'a Ready> + Clone,
    next_cursor: Option<&str>,
    missing: &[i64],
) -> Printed<ProductPage> {
    // The products are nearly all of it; growing towards their length would copy them again and again.
    let bodies: usize = items.clone().map(|item| item.body().len() + 1).sum();
    let mut json = Vec::with_capacity(bodies + 128);
    json.extend_from_slice(b"{\"items\":[");
    for (at, item) in items.enumerate() {
        if at > 0 {
            json.push(b',');
        }
        json.extend_from_slice(&item.body());
    }
    json.push(b']');
    if let Some(cursor) = next_cursor {
        // Letters of base64 alone: there is nothing to escape.
        json.extend_from_slice(b",\"next_cursor\":\"");
        json.extend_from_slice(cursor.as_bytes());
        json.push(b'"');
    }
    if !missing.is_empty() {
        json.extend_from_slice(b",\"missing\":[");
        for (at, id) in missing.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            json.extend_from_slice(format!("{comma}{id}").as_bytes());
        }
        json.push(b']');
    }
    json.push(b'}');
    Printed::new(json)
}

/// The catalogue.
#[derive(Clone)]
pub struct ProductApi {
    store: Store,
    showcase: Showcase,
    clock: Clock,
    metrics: Metrics,
    import: Arc<config::Import>,
    /// Where a file is put aside while it is imported.
    folder: Arc<std::path::Path>,
    import_turn: Arc<Semaphore>,
}

impl ProductApi {
    /// With the handles that it works on.
    pub fn new(
        showcase: Showcase,
        clock: Clock,
        metrics: Metrics,
        import: Arc<config::Import>,
        folder: Arc<std::path::Path>,
    ) -> Self {
        Self {
            store: showcase.store.clone(),
            showcase,
            clock,
            metrics,
            import,
            folder,
            import_turn: Arc::new(Semaphore::new(1)),
        }
    }
}

fn bad_parameter(field: &str, reason: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "invalid_parameter",
        format!("{field} {reason}"),
    )
    .field(field, reason)
}

fn sort_of(word: &str) -> Result<Sort, Problem> {
    match word {
        "popularity" => Ok(Sort::Popularity),
        "price_asc" => Ok(Sort::PriceAsc),
        "price_desc" => Ok(Sort::PriceDesc),
        "newest" => Ok(Sort::Newest),
        _ => Err(bad_parameter(
            "sort",
            "must be popularity, price_asc, price_desc or newest",
        )),
    }
}

fn sort_letter(sort: Sort) -> &'static str {
    match sort {
        Sort::Popularity => "p",
        Sort::PriceAsc => "a",
        Sort::PriceDesc => "d",
        Sort::Newest => "n",
    }
}

/// A place, with the order that it is a place in.
fn write_cursor(sort: Sort, place: Place) -> String {
    let text = format!("{}.{}.{}", sort_letter(sort), place.key, place.id);
    URL_SAFE_NO_PAD.encode(text)
}

/// The place of a cursor; `None` when it is not ours or of another order.
fn read_cursor(text: &str, sort: Sort) -> Option<Place> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let (letter, place) = text.split_once('.')?;
    let (key, id) = place.split_once('.')?;
    (letter == sort_letter(sort)).then_some(())?;
    let (key, id) = (key.parse().ok()?, ProductId(id.parse().ok()?));
    Some(Place { key, id })
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Products")]
impl ProductApi {
    /// List products
    ///
    /// By page, filtered and sorted; or exactly the ones that `ids` names, in that order. A page of a search
    /// may be shorter than `limit`, or empty, and yet have a `next_cursor`, where products with all of the
    /// words are far between.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a parameter of the operation"
    )]
    #[oai(path = "/products", method = "get", operation_id = "list_products")]
    async fn list(
        &self,
        client: ClientAddr,
        /// Keys, separated by commas, at most 200; the other parameters don't count then
        ids: Query<Option<String>>,
        /// Words to search for, in English or Chinese; twelve of them count
        #[oai(validator(max_length = 500))]
        q: Query<Option<String>>,
        /// Only this category
        category: Query<Option<String>>,
        /// `popularity`, `price_asc`, `price_desc` or `newest`
        #[oai(default = "by_popularity")]
        sort: Query<String>,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<i64>,
    ) -> Result<Printed<ProductPage>, Failure<{ fails::RATE_LIMITED }>> {
        if let Some(ids) = ids.0 {
            return Ok(self.batch(&ids).await?);
        }
        let sort = sort_of(&sort.0)?;
        let after = match cursor.0.as_deref() {
            None => None,
            Some(text) => Some(read_cursor(text, sort).ok_or_else(|| {
                bad_parameter(
                    "cursor",
                    "is none of ours; pass next_cursor of the page before",
                )
            })?),
        };
        let search = q.0.as_deref().map(Search::new).unwrap_or_default();
        let has_no_words = q.0.is_some_and(|text| !text.trim().is_empty()) && search.is_empty();
        let is_none = |category: &String| category.chars().count() > CATEGORY_CHARS_MAX;
        if has_no_words || category.0.as_ref().is_some_and(is_none) {
            return Ok(print_page(std::iter::empty(), None, &[]));
        }
        let filter = Filter {
            category: category.0,
            search,
            sort,
            after,
            limit: limit.0,
        };
        Ok(self.showcase.page(filter, client, true).await?)
    }

    /// The most popular products
    #[oai(
        path = "/products/hot",
        method = "get",
        operation_id = "list_hot_products"
    )]
    async fn hot(
        &self,
        client: ClientAddr,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<i64>,
    ) -> Result<Printed<ProductPage>, Failure<{ fails::NOTHING }>> {
        let filter = Filter {
            category: None,
            search: Search::default(),
            sort: Sort::Popularity,
            after: None,
            limit: limit.0,
        };
        Ok(self.showcase.page(filter, client, false).await?)
    }

    /// Read a product
    #[oai(path = "/products/:id", method = "get", operation_id = "get_product")]
    async fn get(
        &self,
        /// Key of the product
        id: Path<i64>,
    ) -> Result<PrintedTagged<ProductView>, Failure<{ fails::NOT_FOUND }>> {
        let shown = self.showcase.one(id.0).await.map_err(Problem::from)?;
        let Some(shown) = shown else {
            return Err(Problem::from(ProductError::NotFound(ProductId(id.0))).into());
        };
        self.metrics.product_views.inc(id.0);
        let etag = HeaderValue::from_str(shown.etag()).map_err(Problem::internal)?;
        Ok(PrintedTagged::new(shown.body(), etag))
    }

    /// Make a product
    ///
    /// For staff.
    #[oai(path = "/products", method = "post", operation_id = "create_product")]
    async fn create(
        &self,
        access: Access,
        body: Body<ProductBody>,
    ) -> Result<Created<ProductView>, Failure<{ fails::SECURED | fails::CONFLICT }>> {
        access.0.require(Role::Staff, Scope::Catalogue)?;
        let body = body.0;
        let new = NewProduct {
            sku: body.sku,
            name: body.name,
            description: body.description,
            category: body.category,
            unit_amount: body.unit_amount,
            currency: body.currency,
            stock: body.stock,
            popularity: 0,
        };
        let now = self.clock.now();
        let product = self
            .store
            .write(move |tx| {
                let id = super::create(tx, now, &new)?;
                super::get(tx, id)
            })
            .await
            .map_err(Problem::from)?;
        let location = format!("/api/v1/products/{}", product.id);
        Ok(Created::new(product.into(), location))
    }

    /// Import products
    ///
    /// A CSV file with the columns `sku`, `name`, `currency`, `price` (or `unit_amount`) and, as you
    /// like, `description`, `category`, `stock`, `popularity`; or with `sku` and `stock` alone, which
    /// counts what is known. Rows are matched by `sku`, so the same file may be sent again; bad rows
    /// are named and cost no other row. Columns are separated by commas, semicolons or tabs. The whole
    /// file is in one encoding: that of its byte-order mark, else the `charset` of the content type,
    /// else UTF-8, GB18030 or UTF-16 as found; the answer says which. One import runs at a time. For
    /// staff.
    #[oai(
        path = "/products/import",
        method = "post",
        operation_id = "import_products"
    )]
    async fn import(
        &self,
        access: Access,
        file: CsvBody,
    ) -> Result<Body<ImportView>, Failure<{ fails::SECURED | fails::CONFLICT }>> {
        access.0.require(Role::Staff, Scope::Catalogue)?;
        let turn = Arc::clone(&self.import_turn)
            .try_acquire_owned()
            .map_err(|_| {
                Problem::conflict(
                    "import_running",
                    "another import is running; wait for its end",
                )
                .retry_after(5)
            })?;
        let (store, settings) = (self.store.clone(), Arc::clone(&self.import));
        let (now, folder) = (self.clock.now(), Arc::clone(&self.folder));
        let upload = file.into_upload();
        let report = tokio::task::spawn_blocking(move || {
            // Held here, because the import runs on when its client goes away.
            let _turn = turn;
            let (reading, moved) = (upload.reading, upload.moved);
            let file = sheet::spool(upload.body, &folder)?;
            import_products(&store, &settings, &reading, now, file, |_| moved.note())
        })
        .await
        .map_err(Problem::internal)?
        .map_err(Problem::from)?;
        Ok(Body(report.into()))
    }

    /// Change a product
    ///
    /// `stock` is what a stock-take counted; the difference goes into the ledger. For staff.
    #[oai(
        path = "/products/:id",
        method = "patch",
        operation_id = "update_product"
    )]
    async fn update(
        &self,
        access: Access,
        /// Key of the product
        id: Path<i64>,
        body: Body<PatchBody>,
    ) -> Result<Body<ProductView>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        access.0.require(Role::Staff, Scope::Catalogue)?;
        let PatchBody {
            name,
            description,
            category,
            unit_amount,
            stock,
        } = body.0;
        let patch = ProductPatch {
            name,
            description,
            category,
            unit_amount,
            stock,
        };
        let now = self.clock.now();
        let product = self
            .store
            .write(move |tx| super::update(tx, now, ProductId(id.0), &patch))
            .await
            .map_err(Problem::from)?;
        Ok(Body(product.into()))
    }

    /// Take a product out of the shop
    ///
    /// Its orders and its ledger stay. While a flash sale sells it or will, 409 `product_in_sale` names
    /// the sales to be stopped first. For staff.
    #[oai(
        path = "/products/:id",
        method = "delete",
        operation_id = "delete_product"
    )]
    async fn delete(
        &self,
        access: Access,
        /// Key of the product
        id: Path<i64>,
    ) -> Result<NoContent, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>> {
        access.0.require(Role::Staff, Scope::Catalogue)?;
        let now = self.clock.now();
        self.store
            .write(move |tx| super::archive(tx, now, ProductId(id.0)))
            .await
            .map_err(Problem::from)?;
        Ok(NoContent)
    }
}

impl ProductApi {
    async fn batch(&self, ids: &str) -> Result<Printed<ProductPage>, Problem> {
        let parsed: Option<Vec<i64>> = ids.split(',').map(|id| id.trim().parse().ok()).collect();
        let mut ids = parsed
            .filter(|ids| (1..=PAGE_MAX).contains(&ids.len()))
            .ok_or_else(|| bad_parameter("ids", "must be 1 to 200 keys, separated by commas"))?;
        // Asked for twice, it is answered once.
        let mut seen = HashSet::with_capacity(ids.len());
        ids.retain(|id| seen.insert(*id));
        let keys: Vec<Id> = ids.iter().map(|id| Id::from(*id)).collect();
        let found = self.showcase.many(&keys).await?;
        let missing: Vec<i64> = ids
            .iter()
            .zip(&found)
            .filter_map(|(id, shown)| shown.is_none().then_some(*id))
            .collect();
        Ok(print_page(found.iter().flatten(), None, &missing))
    }
}

fn by_popularity() -> String {
    "popularity".to_owned()
}

fn default_limit() -> i64 {
    50
}

/// A list of field errors as a problem, for bodies that fit their schema and yet don't hold.
impl From<Vec<FieldError>> for Problem {
    fn from(errors: Vec<FieldError>) -> Self {
        Problem::validation(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_a_list_comes_back_from_disk_as_it_was() {
        let place = |key, id| Place {
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
