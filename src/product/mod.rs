//! The catalogue: products, how they are found, what a valid one is.
//!
//! Invariants: money is integer minor units with an ISO 4217 currency; a product that is taken out
//! of the shop is archived, never deleted, because its ledger and orders stay; stock changes only
//! through [`stock`]. What is absent: orders and sales.

pub mod api;
pub mod currency;
pub mod import;
pub mod reindex;
mod search;
pub mod showcase;
mod sql;
pub mod stock;
pub mod tasks;
mod terms;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::check::{self, Checks, FieldError};
use crate::clock::Timestamp;
use crate::config;
use crate::id_type;
use crate::store::{LockOrder, StoreError, Topic, Tx};
pub use sql::{each_popular, each_popular_imported, set_popularity};
use stock::{Movement, Reason, SaleId, StockError};
use terms::Asked;

/// Touched, by row, by whatever changes what is shown of a product.
pub const CHANGED: Topic = Topic::new(1);
/// Touched by whatever changes which products a list has, or their order. A list has no stock.
pub const LISTED: Topic = Topic::new(2);
/// Rows of products, which are locked after sales and before users. Each guards its product's ledger too.
pub(crate) const PRODUCT_ROWS: LockOrder = LockOrder::new(3, "products");

id_type! {
    /// Key of a product.
    ProductId
}

/// Largest price: 10^12 minor units.
pub const UNIT_AMOUNT_MAX: i64 = 1_000_000_000_000;
/// Largest stock of a product.
pub const STOCK_MAX: i64 = 1_000_000_000;
/// Longest name of a category.
pub const CATEGORY_CHARS_MAX: usize = 100;
/// Most products of one page or batch.
pub const PAGE_MAX: usize = 200;

/// A product as the shop sells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Key of its row.
    pub id: ProductId,
    /// The shop's own article number.
    pub sku: Option<String>,
    /// Name, 1 to 200 characters.
    pub name: String,
    /// Description, at most 10,000 characters.
    pub description: String,
    /// Category, at most 100 characters; empty for none.
    pub category: String,
    /// Price of one unit in minor units.
    pub unit_amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// Free units: what an order can take.
    pub stock: i64,
    /// Units that open sales began with: set aside, and claimed in those sales since.
    pub set_aside: i64,
    /// Units sold of late, as the popularity task counts them.
    pub popularity: i64,
    /// When it came into the catalogue.
    pub created_at: Timestamp,
    /// When its text or price last changed.
    pub last_updated: Timestamp,
}

/// A product to be made.
#[derive(Clone, Debug)]
pub struct NewProduct {
    /// The shop's own article number, unique.
    pub sku: Option<String>,
    /// Name, 1 to 200 characters.
    pub name: String,
    /// Description, at most 10,000 characters.
    pub description: String,
    /// Category, at most 100 characters.
    pub category: String,
    /// Price of one unit in minor units.
    pub unit_amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// Units in the house.
    pub stock: i64,
    /// Popularity to start with.
    pub popularity: i64,
}

/// What shall change; `None` stays.
#[derive(Clone, Debug, Default)]
pub struct ProductPatch {
    /// New name.
    pub name: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New category.
    pub category: Option<String>,
    /// New price.
    pub unit_amount: Option<i64>,
    /// Free units after a stock-take.
    pub stock: Option<i64>,
}

/// Order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Most sold first.
    Popularity,
    /// Cheapest first.
    PriceAsc,
    /// Dearest first.
    PriceDesc,
    /// Newest first.
    Newest,
}

impl Sort {
    /// One letter that stands for it, in cursors and in keys of the cache.
    fn letter(self) -> &'static str {
        match self {
            Sort::Popularity => "p",
            Sort::PriceAsc => "a",
            Sort::PriceDesc => "d",
            Sort::Newest => "n",
        }
    }
}

/// Which page of which list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only this category.
    pub category: Option<String>,
    /// Words that must occur.
    pub search: Search,
    /// The order of the list.
    pub sort: Sort,
    /// Where the page before ended.
    pub after: Option<ListPlace>,
    /// Rows at most.
    pub limit: i64,
}

/// A place in a list: a product's sort key and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPlace {
    /// What the list is sorted by.
    pub key: i64,
    /// Which of those that have the same.
    pub id: ProductId,
}

/// Among which products is looked for some.
enum Among<'a> {
    /// All of them.
    All,
    /// Those that the index has under any of these.
    Having(Vec<&'a Asked>),
}

/// A product on the way through a list.
struct Step {
    /// Where it stands.
    place: ListPlace,
    /// Whether the index has it under all of the words.
    has_words: bool,
}

/// One page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Products in the order asked for.
    pub products: Vec<Product>,
    /// Where it goes on; `None` at the end of the list.
    pub next: Option<ListPlace>,
}

/// What a text asks the catalogue for.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The words that must all occur; none asks for nothing.
    asked: Vec<Asked>,
    /// What the rule before this one asked for, where that is something else: products that
    /// [`reindex`] has not been at are found by it.
    earlier: Vec<Asked>,
}

impl Search {
    /// The words of this text.
    pub fn new(text: &str) -> Self {
        let (asked, mut earlier) = (terms::query(text), terms::first::query(text));
        if earlier == asked {
            earlier.clear();
        }
        Self { asked, earlier }
    }

    /// Names it among all questions, in letters, digits, `*` and line ends. Those that find the same have
    /// the same name; what the earlier rule asked for counts while there is something that it finds.
    fn key(&self, is_earlier_asked: bool) -> String {
        let mut key = String::new();
        let earlier: &[Asked] = if is_earlier_asked { &self.earlier } else { &[] };
        for list in [&self.asked, earlier] {
            let mut list: Vec<&Asked> = list.iter().collect();
            list.sort_unstable();
            for asked in list {
                let (word, end) = match asked {
                    Asked::Whole(word) => (word, "\r"),
                    Asked::Beginning(word) => (word, "*\r"),
                };
                key.push_str(word);
                key.push_str(end);
            }
            key.push('\n');
        }
        key
    }

    /// Whether it has no words.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }
}

/// What was taken, at what price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Price of one unit in minor units of `currency`.
    pub unit_amount: i64,
    /// ISO 4217.
    pub currency: String,
}

/// A row of the ledger.
struct LedgerRow {
    product_id: ProductId,
    seq: i64,
    sale_id: Option<SaleId>,
    order_id: Option<i64>,
    reason: Reason,
    quantity: i64,
    delta: i64,
    balance_after: i64,
    at: Timestamp,
    prev_hash: String,
    hash: String,
}

/// Why something could not be done to the catalogue.
#[derive(Debug, thiserror::Error)]
pub enum ProductError {
    /// Fields don't hold.
    #[error("the product is not valid")]
    Invalid(Vec<FieldError>),
    /// No such product.
    #[error("there is no product {0}")]
    NotFound(ProductId),
    /// The article number is another product's.
    #[error("the SKU is another product's")]
    DuplicateSku,
    /// Units are bound in sales or orders meanwhile.
    #[error("the stock changed meanwhile")]
    StockChanged,
    /// These flash sales sell it or will; the first few of them.
    #[error("the product is sold in flash sale {}; stop that first", .0.iter().map(SaleId::to_string).collect::<Vec<_>>().join(", "))]
    InSale(Vec<SaleId>),
    /// The database.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for ProductError {
    fn from(error: StoreError) -> Self {
        if error.is_unique_violation("products.sku") {
            ProductError::DuplicateSku
        } else {
            ProductError::Store(error)
        }
    }
}

impl From<StockError> for ProductError {
    fn from(error: StockError) -> Self {
        match error {
            StockError::NotFound(id) => ProductError::NotFound(id),
            StockError::Insufficient { .. } => ProductError::StockChanged,
            StockError::Store(error) => error.into(),
        }
    }
}

/// Trims a text in place, if there is anything to trim.
fn trim(text: &mut String) {
    let trimmed = check::trimmed(text);
    if trimmed.len() != text.len() {
        *text = trimmed.to_owned();
    }
}

/// Whether [`trim`] would change it.
fn is_trimmed(text: &str) -> bool {
    check::trimmed(text).len() == text.len()
}

impl NewProduct {
    /// As it is kept: without white space around its texts. Borrowed where there is none, as a rule.
    fn trimmed(&self) -> Cow<'_, Self> {
        let texts = [Some(&self.name), Some(&self.category), self.sku.as_ref()];
        if texts.into_iter().flatten().all(|text| is_trimmed(text)) {
            return Cow::Borrowed(self);
        }
        let mut new = self.clone();
        trim(&mut new.name);
        trim(&mut new.category);
        new.sku.iter_mut().for_each(trim);
        Cow::Owned(new)
    }

    /// Refuses what no product may be.
    pub fn check(&self) -> Result<(), Vec<FieldError>> {
        let mut checks = Checks::new();
        if let Some(sku) = &self.sku {
            checks.key("sku", sku, 1, 64);
        }
        checks.name("name", &self.name, 1, 200);
        checks.name("category", &self.category, 0, CATEGORY_CHARS_MAX);
        check_description(&mut checks, &self.description);
        checks.range("unit_amount", self.unit_amount, 0, UNIT_AMOUNT_MAX);
        checks.range("stock", self.stock, 0, STOCK_MAX);
        if let Err(reason) = currency::check(&self.currency) {
            checks.require(false, "currency", reason);
        }
        checks.finish()
    }

    /// Bytes of all text that is searched.
    fn text_bytes(&self) -> usize {
        self.text().iter().map(|text| text.len()).sum()
    }

    fn text(&self) -> [&str; 4] {
        [
            &self.name,
            &self.category,
            self.sku.as_deref().unwrap_or_default(),
            &self.description,
        ]
    }
}

impl ProductPatch {
    /// As [`NewProduct::trimmed`].
    fn trimmed(&self) -> Cow<'_, Self> {
        let texts = [&self.name, &self.category];
        if texts.into_iter().flatten().all(|text| is_trimmed(text)) {
            return Cow::Borrowed(self);
        }
        let mut patch = self.clone();
        patch.name.iter_mut().for_each(trim);
        patch.category.iter_mut().for_each(trim);
        Cow::Owned(patch)
    }

    /// Refuses what no product may become.
    pub fn check(&self) -> Result<(), Vec<FieldError>> {
        let mut checks = Checks::new();
        if let Some(name) = &self.name {
            checks.name("name", name, 1, 200);
        }
        if let Some(category) = &self.category {
            checks.name("category", category, 0, CATEGORY_CHARS_MAX);
        }
        if let Some(description) = &self.description {
            check_description(&mut checks, description);
        }
        if let Some(unit_amount) = self.unit_amount {
            checks.range("unit_amount", unit_amount, 0, UNIT_AMOUNT_MAX);
        }
        if let Some(stock) = self.stock {
            checks.range("stock", stock, 0, STOCK_MAX);
        }
        checks.finish()
    }
}

/// A description may have lines; other control characters it may not have.
fn check_description(checks: &mut Checks, text: &str) {
    checks.require(
        text.chars().count() <= 10_000,
        "description",
        "must have at most 10000 characters",
    );
    checks.require(
        !text
            .chars()
            .any(|c| c.is_control() && c != '\n' && c != '\r' && c != '\t'),
        "description",
        "must not contain control characters other than line ends and tabs",
    );
}

/// Puts a product into the shop; its first units are received into the ledger.
pub fn create(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewProduct,
) -> Result<ProductId, ProductError> {
    let new = &*new.trimmed();
    new.check().map_err(ProductError::Invalid)?;
    let id = sql::insert(tx, now, new)?;
    reindex::created(tx, id, new.text())?;
    if let Ok(quantity @ 1..) = u32::try_from(new.stock) {
        let movement = Movement {
            product_id: id,
            sale_id: None,
            order_id: None,
            reason: Reason::Receipt,
            quantity,
        };
        stock::append(tx, now, &movement)?;
    }
    Ok(id)
}

/// Changes a product.
pub fn update(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: ProductId,
    patch: &ProductPatch,
) -> Result<Product, ProductError> {
    let patch = &*patch.trimmed();
    patch.check().map_err(ProductError::Invalid)?;
    let before = sql::get(tx, id)?.ok_or(ProductError::NotFound(id))?;
    if let Some(counted) = patch.stock {
        stock::set(tx, now, id, counted)?;
    }
    let after = sql::update(tx, now, id, patch)?.ok_or(ProductError::NotFound(id))?;
    reindex::changed(tx, &before, &after)?;
    Ok(after)
}

impl Product {
    fn text(&self) -> [&str; 4] {
        [
            &self.name,
            &self.category,
            self.sku.as_deref().unwrap_or_default(),
            &self.description,
        ]
    }

    /// Its place in a list of this order.
    fn place(&self, sort: Sort) -> ListPlace {
        let key = match sort {
            Sort::Popularity => self.popularity,
            Sort::PriceAsc | Sort::PriceDesc => self.unit_amount,
            Sort::Newest => self.id.0,
        };
        ListPlace { key, id: self.id }
    }
}

/// The first few flash sales of a product that run or will: a room above knows them, and hands this down.
pub type SalesNotOver = fn(&mut Tx<'_>, Timestamp, ProductId) -> Result<Vec<SaleId>, StoreError>;

/// Takes a product out of the shop, unless a flash sale sells it or will.
pub fn archive(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: ProductId,
    sales_not_over: SalesNotOver,
) -> Result<(), ProductError> {
    if !sql::archive(tx, now, id)? {
        return Err(ProductError::NotFound(id));
    }
    // Looked up once the product's row is locked: a sale that is being made takes its units from that
    // row, so it was made before and is seen here, or it comes after and finds no product.
    let sales = sales_not_over(tx, now, id)?;
    if sales.is_empty() {
        Ok(())
    } else {
        Err(ProductError::InSale(sales))
    }
}

/// One product.
pub fn get(tx: &mut Tx<'_>, id: ProductId) -> Result<Product, ProductError> {
    sql::get(tx, id)?.ok_or(ProductError::NotFound(id))
}

/// One page of a list. Where words are asked for, it may have fewer products than there is room for and
/// yet go on: see [`search`].
pub fn list(
    tx: &mut Tx<'_>,
    rules: &config::Products,
    filter: &Filter,
) -> Result<Page, StoreError> {
    if !filter.search.is_empty() {
        return search::page(tx, rules.search_steps_max, filter);
    }
    let products = sql::list(tx, filter)?;
    let is_full = products.len() as i64 >= filter.limit;
    let last = products.last().filter(|_| is_full);
    Ok(Page {
        next: last.map(|last| last.place(filter.sort)),
        products,
    })
}

/// What an import's row did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upsert {
    /// A new product.
    Created,
    /// A known one, changed.
    Updated,
    /// A known one, as it was.
    Unchanged,
}

/// Columns that an import's file lacks: they stay as they are in known products.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent {
    /// The file has no `description`.
    pub description: bool,
    /// The file has no `category`.
    pub category: bool,
}

/// A row of an import: by its SKU, a product is made or changed; `counted` is `None` where the file
/// does not speak of the stock.
pub fn upsert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewProduct,
    counted: Option<i64>,
    silent: Silent,
) -> Result<Upsert, ProductError> {
    let new = &*new.trimmed();
    new.check().map_err(ProductError::Invalid)?;
    let sku = new.sku.as_deref().unwrap_or_default();
    let Some(before) = sql::by_sku(tx, sku)? else {
        create(tx, now, new)?;
        return Ok(Upsert::Created);
    };
    let mut changed = sql::import_over(tx, now, before.id, new, silent)?;
    if changed && let Some(after) = sql::get(tx, before.id)? {
        reindex::changed(tx, &before, &after)?;
    }
    if let Some(counted) = counted
        && counted != before.stock
    {
        stock::set(tx, now, before.id, counted)?;
        changed = true;
    }
    Ok(if changed {
        Upsert::Updated
    } else {
        Upsert::Unchanged
    })
}

/// A row of a stock-take: the product of this SKU has so many free units. `None` where the shop has no
/// such product.
pub fn count_stock(
    tx: &mut Tx<'_>,
    now: Timestamp,
    sku: &str,
    counted: i64,
) -> Result<Option<Upsert>, ProductError> {
    let known = match sql::by_sku(tx, sku)? {
        Some(product) => sql::get(tx, product.id)?,
        None => None,
    };
    let Some(before) = known else {
        return Ok(None);
    };
    if counted == before.stock {
        return Ok(Some(Upsert::Unchanged));
    }
    stock::set(tx, now, before.id, counted)?;
    Ok(Some(Upsert::Updated))
}

/// The id of a product by its article number, archived ones included.
pub fn id_of_sku(tx: &mut Tx<'_>, sku: &str) -> Result<Option<(ProductId, String)>, StoreError> {
    Ok(sql::by_sku(tx, sku)?.map(|product| (product.id, product.currency)))
}
