//! Every statement of the catalogue, the stock and its ledger.

use super::terms::Asked;
use super::{
    Among, CHANGED, Filter, LISTED, LedgerRow, ListPlace, NewProduct, PRODUCT_ROWS, Product,
    ProductId, ProductPatch, Silent, Sort, Step, Taken,
};
use crate::clock::Timestamp;
use crate::sql;
use crate::store::{Param, Row, StoreError, Tx, value_rows};

const COLUMNS: &str = "id, sku, name, description, category, unit_amount, currency, stock, set_aside, popularity, \
     created_at, last_updated";

fn product(row: &Row<'_>) -> Result<Product, StoreError> {
    Ok(Product {
        id: row.get(0)?,
        sku: row.get(1)?,
        name: row.get(2)?,
        description: row.get(3)?,
        category: row.get(4)?,
        unit_amount: row.get(5)?,
        currency: row.get(6)?,
        stock: row.get(7)?,
        set_aside: row.get(8)?,
        popularity: row.get(9)?,
        created_at: row.get(10)?,
        last_updated: row.get(11)?,
    })
}

pub(super) fn get(tx: &mut Tx<'_>, id: ProductId) -> Result<Option<Product>, StoreError> {
    tx.row(
        sql!("SELECT id, sku, name, description, category, unit_amount, currency, stock, set_aside, popularity, \
         created_at, last_updated FROM products WHERE id = $1 AND status = 'active'"),
        &[id.into()],
        product,
    )
}

/// The highest key that a product has, shown or not.
pub(super) fn highest_id(tx: &mut Tx<'_>) -> Result<Option<i64>, StoreError> {
    let highest = tx.row(sql!("SELECT max(id) FROM products"), &[], |row| row.get(0))?;
    Ok(highest.flatten())
}

/// Keys of the products that have these SKUs.
pub(super) fn ids_by_sku<'a>(
    tx: &mut Tx<'_>,
    skus: impl Iterator<Item = &'a str>,
) -> Result<Vec<ProductId>, StoreError> {
    let found = tx.row_of_each(
        sql!("SELECT id FROM products WHERE sku = $1"),
        skus.map(|sku| [sku.into()]),
        |row| row.get(0),
    )?;
    Ok(found.into_iter().flatten().collect())
}

pub(super) fn by_sku(tx: &mut Tx<'_>, sku: &str) -> Result<Option<Product>, StoreError> {
    tx.row(
        sql!(&format!("SELECT {COLUMNS} FROM products WHERE sku = $1")),
        &[sku.into()],
        product,
    )
}

/// Several products in one statement. The number of placeholders is rounded up to a power of two,
/// so that few statements fill the cache of prepared ones. The keys alone decide which rows are read:
/// with `status` in the WHERE as well, SQLite prefers an index on it and walks the whole catalogue.
pub(super) fn by_ids(tx: &mut Tx<'_>, ids: &[ProductId]) -> Result<Vec<Product>, StoreError> {
    let Some(last) = ids.last() else {
        return Ok(Vec::new());
    };
    let places = ids.len().next_power_of_two();
    let marks: Vec<String> = (1..=places).map(|number| format!("${number}")).collect();
    let mut params: Vec<Param<'_>> = ids.iter().map(|id| (*id).into()).collect();
    params.resize(places, (*last).into());
    let found = tx.rows(
        sql!(&format!(
            "SELECT {COLUMNS}, CASE status WHEN 'active' THEN 1 ELSE 0 END FROM products WHERE id IN ({})",
            marks.join(",")
        )),
        &params,
        |row| Ok(row.get::<bool>(12)?.then_some(product(row)?)),
    )?;
    Ok(found.into_iter().flatten().collect())
}

/// One page, of all products.
pub(super) fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<Product>, StoreError> {
    let mut params = Vec::new();
    let among = Among::All;
    let sql = ordered(
        filter,
        &among,
        COLUMNS,
        filter.after,
        filter.limit,
        &mut params,
    );
    tx.rows(sql!(&sql), &params, product)
}

/// The next places of a list, from its index alone where that has all products, and whether these have the
/// words.
pub(super) fn walk(
    tx: &mut Tx<'_>,
    filter: &Filter,
    among: &Among<'_>,
    words: &[&str],
    after: Option<ListPlace>,
    limit: i64,
) -> Result<Vec<Step>, StoreError> {
    let mut params: Vec<Param<'_>> = Vec::new();
    let mut has = Vec::with_capacity(words.len());
    for word in words {
        params.push(Param::Text(word));
        let at = params.len();
        has.push(format!(
            "EXISTS (SELECT 1 FROM product_terms t WHERE t.term = ${at} AND t.product_id = products.id)"
        ));
    }
    let has = match has.as_slice() {
        [] => "1".to_owned(),
        has => format!("CASE WHEN {} THEN 1 ELSE 0 END", has.join(" AND ")),
    };
    let (column, _) = order_of(filter.sort);
    let select = format!("{column}, id, {has}");
    let sql = ordered(filter, among, &select, after, limit, &mut params);
    tx.rows(sql!(&sql), &params, |row| {
        let place = ListPlace {
            key: row.get(0)?,
            id: row.get(1)?,
        };
        Ok(Step {
            place,
            has_words: row.get(2)?,
        })
    })
}

/// The column that a list is sorted by, and whether it rises.
fn order_of(sort: Sort) -> (&'static str, bool) {
    match sort {
        Sort::Popularity => ("popularity", false),
        Sort::PriceAsc => ("unit_amount", true),
        Sort::PriceDesc => ("unit_amount", false),
        Sort::Newest => ("id", false),
    }
}

/// What brings `select` of a list's next products. Only fixed pieces of text are put together; every value is
/// a parameter.
///
/// Of all products an index brings them in order. It is told apart whether the sort key is that of the place
/// before or comes after it: SQLite does not use an index for both at once where one of the two columns is the
/// row's key, and would pass all products with the same sort key anew for each page. Of the products that an
/// index of words has, the keys alone decide which rows are read: with `status` or `category` beside them
/// SQLite prefers an index on those and walks the whole catalogue.
fn ordered<'a>(
    filter: &'a Filter,
    among: &Among<'a>,
    select: &str,
    after: Option<ListPlace>,
    limit: i64,
    params: &mut Vec<Param<'a>>,
) -> String {
    let mut mark = |value: Param<'a>| {
        params.push(value);
        format!("${}", params.len())
    };
    let category = filter
        .category
        .as_ref()
        .map(|category| mark(category.into()));
    let base = match among {
        Among::All => {
            let category = category.map(|mark| format!(" AND category = {mark}"));
            let category = category.unwrap_or_default();
            format!("SELECT {select} FROM products WHERE status = 'active'{category}")
        }
        Among::Having(words) => {
            let having = words.iter().map(|asked| having(asked, &mut mark));
            let having = having.collect::<Vec<_>>().join(" UNION ");
            let category = category
                .map(|mark| format!(" AND CASE WHEN category = {mark} THEN 1 ELSE 0 END = 1"));
            let category = category.unwrap_or_default();
            format!(
                "SELECT {select} FROM products WHERE id IN ({having}) \
                 AND CASE status WHEN 'active' THEN 1 ELSE 0 END = 1{category}"
            )
        }
    };
    let (column, is_rising) = order_of(filter.sort);
    let (order, later) = if is_rising {
        ("ASC", ">")
    } else {
        ("DESC", "<")
    };
    let page = match after {
        None => base,
        Some(place) => {
            let (key, id) = (mark(place.key.into()), mark(place.id.into()));
            match (among, filter.sort) {
                (_, Sort::Newest) => format!("{base} AND id {later} {id}"),
                (Among::All, _) => format!(
                    "{base} AND {column} = {key} AND id {later} {id} UNION ALL {base} AND {column} {later} {key}"
                ),
                (Among::Having(_), _) => format!(
                    "{base} AND ({column} {later} {key} OR ({column} = {key} AND id {later} {id}))"
                ),
            }
        }
    };
    let limit = mark(limit.into());
    format!("{page} ORDER BY {column} {order}, id {order} LIMIT {limit}")
}

/// The last character that there is: what begins with a word comes before the word with this behind it.
const LAST: &str = "\u{10FFFF}";

/// What brings the products that the index has under a word, or under one that begins so.
fn having<'a>(asked: &'a Asked, mark: &mut impl FnMut(Param<'a>) -> String) -> String {
    match asked {
        Asked::Whole(word) => {
            let word = mark(Param::Text(word));
            format!("SELECT product_id FROM product_terms WHERE term = {word}")
        }
        Asked::Beginning(word) => {
            let (word, last) = (mark(Param::Text(word)), mark(Param::Text(LAST)));
            format!(
                "SELECT product_id FROM product_terms WHERE term >= {word} AND term < {word} || {last}"
            )
        }
    }
}

/// How often the index has a word, or any that begins so; counted up to `most`.
pub(super) fn count_having(tx: &mut Tx<'_>, asked: &Asked, most: i64) -> Result<i64, StoreError> {
    let (sql, word) = match asked {
        Asked::Whole(word) => (
            sql!(
                "whole",
                "SELECT COUNT(*) FROM (SELECT 1 FROM product_terms WHERE term = $1 LIMIT $2) AS few"
            ),
            word,
        ),
        Asked::Beginning(word) => (
            sql!(
                "beginning",
                "SELECT COUNT(*) FROM (SELECT 1 FROM product_terms WHERE term >= $1 AND term < $1 || $3 LIMIT $2) AS few"
            ),
            word,
        ),
    };
    let params = [word.into(), most.into(), Param::Text(LAST)];
    let count = tx.row(sql, &params, |row| row.get(0))?;
    Ok(count.unwrap_or(0))
}

pub(super) fn insert(
    tx: &mut Tx<'_>,
    now: Timestamp,
    new: &NewProduct,
) -> Result<ProductId, StoreError> {
    tx.touch(LISTED);
    let id = tx.insert(
        sql!("INSERT INTO products (sku, name, description, category, unit_amount, currency, stock, popularity, \
         imported_popularity, status, created_at, last_updated) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, 'active', $9, $9)"),
        &[
            new.sku.as_deref().into(),
            (&new.name).into(),
            (&new.description).into(),
            (&new.category).into(),
            new.unit_amount.into(),
            (&new.currency).into(),
            new.stock.into(),
            new.popularity.into(),
            now.into(),
        ],
    )?;
    // A reader who asked for this key before was told that there is no such product.
    tx.touch_row(CHANGED, id);
    tx.made(PRODUCT_ROWS, id);
    Ok(id)
}

/// Changes what the patch names. `None` when there is no such product.
pub(super) fn update(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: ProductId,
    patch: &ProductPatch,
) -> Result<Option<Product>, StoreError> {
    tx.touch_row(CHANGED, id);
    tx.locks(PRODUCT_ROWS, id);
    tx.touch(LISTED);
    tx.row(
        sql!(&format!(
            "UPDATE products SET name = COALESCE($2, name), description = COALESCE($3, description), \
             category = COALESCE($4, category), unit_amount = COALESCE($5, unit_amount), last_updated = $6 \
             WHERE id = $1 AND status = 'active' RETURNING {COLUMNS}"
        )),
        &[
            id.into(),
            patch.name.as_deref().into(),
            patch.description.as_deref().into(),
            patch.category.as_deref().into(),
            patch.unit_amount.into(),
            now.into(),
        ],
        product,
    )
}

/// Takes a product out of the shop. `false` when it was not there.
pub(super) fn archive(tx: &mut Tx<'_>, now: Timestamp, id: ProductId) -> Result<bool, StoreError> {
    tx.touch_row(CHANGED, id);
    tx.locks(PRODUCT_ROWS, id);
    tx.touch(LISTED);
    Ok(tx.execute(
        sql!("UPDATE products SET status = 'archived', last_updated = $2 WHERE id = $1 AND status = 'active'"),
        &[id.into(), now.into()],
    )? == 1)
}

/// A row of an import onto a known SKU; what the file is silent about stays; `false` when nothing differs.
pub(super) fn import_over(
    tx: &mut Tx<'_>,
    now: Timestamp,
    id: ProductId,
    new: &NewProduct,
    silent: Silent,
) -> Result<bool, StoreError> {
    tx.locks(PRODUCT_ROWS, id);
    let is_changed = tx.execute(
        sql!("UPDATE products SET name = $2, description = COALESCE($3, description), \
         category = COALESCE($4, category), unit_amount = $5, currency = $6, \
         status = 'active', last_updated = $7 WHERE id = $1 AND (name <> $2 \
         OR description <> COALESCE($3, description) OR category <> COALESCE($4, category) OR unit_amount <> $5 OR currency <> $6 OR status <> 'active')"),
        &[
            id.into(),
            (&new.name).into(),
            (!silent.description).then_some(new.description.as_str()).into(),
            (!silent.category).then_some(new.category.as_str()).into(),
            new.unit_amount.into(),
            (&new.currency).into(),
            now.into(),
        ],
    )? == 1;
    if is_changed {
        tx.touch_row(CHANGED, id);
        tx.touch(LISTED);
    }
    Ok(is_changed)
}

/// Adds words; those that are there already stay. One statement each: for one of several rows that
/// could fail half-way, SQLite keeps the pages before it once more, and what it keeps of a long
/// transaction it walks through after each such statement (measured: twice the time of an import).
pub(super) fn add_terms<'a>(
    tx: &mut Tx<'_>,
    id: ProductId,
    terms: impl IntoIterator<Item = &'a String>,
) -> Result<(), StoreError> {
    for term in terms {
        tx.execute(
            sql!("INSERT INTO product_terms (term, product_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"),
            &[term.into(), id.into()],
        )?;
    }
    Ok(())
}

/// Removes words, if they are there.
pub(super) fn remove_terms<'a>(
    tx: &mut Tx<'_>,
    id: ProductId,
    terms: impl IntoIterator<Item = &'a String>,
) -> Result<(), StoreError> {
    for term in terms {
        tx.execute(
            sql!("DELETE FROM product_terms WHERE term = $1 AND product_id = $2"),
            &[term.into(), id.into()],
        )?;
    }
    Ok(())
}

/// The products above the first key and up to the second that have words of an earlier rule.
pub(super) fn terms_due(tx: &mut Tx<'_>) -> Result<Option<(i64, i64)>, StoreError> {
    tx.row(
        sql!("SELECT above_id, until_id FROM product_terms_due WHERE id = 1"),
        &[],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// [`terms_due`], and holds the row until the transaction ends.
pub(super) fn hold_terms_due(tx: &mut Tx<'_>) -> Result<Option<(i64, i64)>, StoreError> {
    tx.row(
        sql!("UPDATE product_terms_due SET above_id = above_id WHERE id = 1 RETURNING above_id, until_id"),
        &[],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Whether the product is among those of [`terms_due`]; then the row is held as well.
pub(super) fn hold_if_terms_due(tx: &mut Tx<'_>, id: ProductId) -> Result<bool, StoreError> {
    Ok(tx.execute(
        sql!("UPDATE product_terms_due SET above_id = above_id WHERE id = 1 AND above_id < $1 AND until_id >= $1"),
        &[id.into()],
    )? == 1)
}

/// The products up to this one have the words of this rule.
pub(super) fn note_terms_due(tx: &mut Tx<'_>, above: ProductId) -> Result<(), StoreError> {
    tx.execute(
        sql!("UPDATE product_terms_due SET above_id = $1 WHERE id = 1"),
        &[above.into()],
    )?;
    Ok(())
}

/// All products have the words of this rule.
pub(super) fn no_terms_due(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute(sql!("DELETE FROM product_terms_due WHERE id = 1"), &[])?;
    Ok(())
}

/// The next products by key, shown or not.
pub(super) fn by_key(
    tx: &mut Tx<'_>,
    above: i64,
    until: i64,
    limit: u32,
) -> Result<Vec<Product>, StoreError> {
    tx.rows(
        sql!(&format!(
            "SELECT {COLUMNS} FROM products WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3"
        )),
        &[above.into(), until.into(), limit.into()],
        product,
    )
}

pub(super) fn take_stock(
    tx: &mut Tx<'_>,
    id: ProductId,
    quantity: u32,
) -> Result<Option<Taken>, StoreError> {
    tx.touch_row(CHANGED, id);
    tx.locks(PRODUCT_ROWS, id);
    tx.row(
        sql!("UPDATE products SET stock = stock - $2 WHERE id = $1 AND status = 'active' AND stock >= $2 \
         RETURNING unit_amount, currency"),
        &[id.into(), quantity.into()],
        |row| Ok(Taken { unit_amount: row.get(0)?, currency: row.get(1)? }),
    )
}

/// Adds free units. A product that is not there would leave a ledger row without stock, so it fails.
pub(super) fn give_stock(tx: &mut Tx<'_>, id: ProductId, quantity: i64) -> Result<(), StoreError> {
    tx.touch_row(CHANGED, id);
    tx.locks(PRODUCT_ROWS, id);
    let changed = tx.execute(
        sql!("UPDATE products SET stock = stock + $2 WHERE id = $1"),
        &[id.into(), quantity.into()],
    )?;
    match changed {
        1 => Ok(()),
        _ => Err(StoreError::Bug(format!(
            "units given back to product {id}, which is not there"
        ))),
    }
}

/// Adds to, or takes from, the units that are set aside for open sales; in the house they stay.
pub(super) fn set_aside(tx: &mut Tx<'_>, id: ProductId, change: i64) -> Result<(), StoreError> {
    tx.touch_row(CHANGED, id);
    tx.locks(PRODUCT_ROWS, id);
    let changed = tx.execute(
        sql!("UPDATE products SET set_aside = set_aside + $2 WHERE id = $1"),
        &[id.into(), change.into()],
    )?;
    match changed {
        1 => Ok(()),
        _ => Err(StoreError::Bug(format!(
            "units set aside of product {id}, which is not there"
        ))),
    }
}

/// Sets the free stock if it still is `before`; `false` when it is not.
pub(super) fn set_stock(
    tx: &mut Tx<'_>,
    id: ProductId,
    before: i64,
    counted: i64,
) -> Result<bool, StoreError> {
    tx.touch_row(CHANGED, id);
    tx.locks(PRODUCT_ROWS, id);
    Ok(tx.execute(
        sql!("UPDATE products SET stock = $3 WHERE id = $1 AND status = 'active' AND stock = $2"),
        &[id.into(), before.into(), counted.into()],
    )? == 1)
}

pub(super) fn free_stock(tx: &mut Tx<'_>, id: ProductId) -> Result<Option<i64>, StoreError> {
    tx.row(
        sql!("SELECT stock FROM products WHERE id = $1 AND status = 'active'"),
        &[id.into()],
        |row| row.get(0),
    )
}

/// The last row's number, balance and hash.
pub(super) fn ledger_head(
    tx: &mut Tx<'_>,
    id: ProductId,
) -> Result<Option<(i64, i64, String)>, StoreError> {
    tx.row(
        sql!("SELECT seq, balance_after, hash FROM stock_movements WHERE product_id = $1 ORDER BY seq DESC LIMIT 1"),
        &[id.into()],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )
}

/// Writes rows of the ledger, each after the head of its product's chain, which the product's lock holds still.
pub(super) fn insert_movements(tx: &mut Tx<'_>, rows: &[LedgerRow]) -> Result<(), StoreError> {
    for row in rows {
        tx.require_lock(PRODUCT_ROWS, row.product_id);
    }
    tx.execute_each(
        sql!("INSERT INTO stock_movements (product_id, seq, sale_id, order_id, reason, quantity, delta, balance_after, at, \
         prev_hash, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"),
        rows.iter().map(|row| {
            [
                row.product_id.into(),
                row.seq.into(),
                row.sale_id.into(),
                row.order_id.into(),
                row.reason.into(),
                row.quantity.into(),
                row.delta.into(),
                row.balance_after.into(),
                row.at.into(),
                (&row.prev_hash).into(),
                (&row.hash).into(),
            ]
        }),
    )?;
    Ok(())
}

/// Shows each row with its product and number; `None` for one whose fields can't be read.
pub(super) fn each_movement(
    tx: &mut Tx<'_>,
    mut visit: impl FnMut(ProductId, i64, Option<LedgerRow>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    tx.each(
        sql!("SELECT product_id, seq, sale_id, order_id, reason, quantity, delta, balance_after, at, prev_hash, hash \
         FROM stock_movements ORDER BY product_id, seq"),
        &[],
        |row| {
            let read = match ledger_row(row) {
                Ok(read) => Some(read),
                Err(StoreError::Bug(_)) => None,
                Err(error) => return Err(error),
            };
            visit(row.get(0)?, row.get(1)?, read)
        },
    )
}

fn ledger_row(row: &Row<'_>) -> Result<LedgerRow, StoreError> {
    Ok(LedgerRow {
        product_id: row.get(0)?,
        seq: row.get(1)?,
        sale_id: row.get(2)?,
        order_id: row.get(3)?,
        reason: row.get(4)?,
        quantity: row.get(5)?,
        delta: row.get(6)?,
        balance_after: row.get(7)?,
        at: row.get(8)?,
        prev_hash: row.get(9)?,
        hash: row.get(10)?,
    })
}

pub(super) fn each_free(
    tx: &mut Tx<'_>,
    mut visit: impl FnMut(ProductId, i64),
) -> Result<(), StoreError> {
    tx.each(
        sql!("SELECT id, stock FROM products WHERE stock > 0"),
        &[],
        |row| {
            visit(row.get(0)?, row.get(1)?);
            Ok(())
        },
    )
}

/// Shows the products in the shop that have some popularity, from an index alone.
pub fn each_popular(
    tx: &mut Tx<'_>,
    mut visit: impl FnMut(ProductId, i64) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    tx.each(
        sql!("SELECT id, popularity FROM products WHERE status = 'active' AND popularity > 0 ORDER BY popularity, id"),
        &[],
        |row| visit(row.get(0)?, row.get(1)?),
    )
}

/// [`each_popular`] with the popularity that each came with. Of a product that is older than this
/// column nothing is known, so what it has counts as imported.
pub fn each_popular_imported(
    tx: &mut Tx<'_>,
    mut visit: impl FnMut(ProductId, i64, i64) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    tx.each(
        sql!(
            "SELECT id, popularity, COALESCE(imported_popularity, popularity) FROM products \
         WHERE status = 'active' AND popularity > 0 ORDER BY popularity, id"
        ),
        &[],
        |row| visit(row.get(0)?, row.get(1)?, row.get(2)?),
    )
}

/// Sets the popularity of some products, where it is another; answers of how many. One statement,
/// whose number of rows is rounded up so that few texts fill the cache of prepared ones.
pub fn set_popularity(tx: &mut Tx<'_>, wanted: &[(ProductId, i64)]) -> Result<u64, StoreError> {
    let Some(last) = wanted.last() else {
        return Ok(0);
    };
    let places = wanted.len().next_power_of_two();
    let pair = |(id, units): &(ProductId, i64)| [Param::from(*id), Param::Int(*units)];
    let mut params: Vec<Param<'_>> = wanted.iter().flat_map(pair).collect();
    while params.len() < places * 2 {
        params.extend(pair(last));
    }
    tx.touch(CHANGED);
    tx.touch(LISTED);
    tx.lock(PRODUCT_ROWS, wanted.iter().map(|(id, _)| *id))?;
    tx.execute(
        sql!(&format!(
            "WITH sold (id, units) AS (VALUES {}) UPDATE products SET popularity = sold.units FROM sold \
             WHERE products.id = sold.id AND products.status = 'active' AND products.popularity <> sold.units",
            value_rows(places, &["bigint", "bigint"])
        )),
        &params,
    )
}

/// All words of a product, for the test that compares them: no index leads to them.
#[cfg(test)]
pub(super) fn terms_of(tx: &mut Tx<'_>, id: ProductId) -> Result<Vec<String>, StoreError> {
    tx.rows(
        sql!("SELECT term FROM product_terms WHERE product_id = $1"),
        &[id.into()],
        |row| row.get(0),
    )
}

/// Statements of a forger, for the test that finds the forgery.
#[cfg(test)]
pub(super) mod tampering {
    use super::{ProductId, StoreError, Tx};
    use crate::sql;

    /// One change of each field; of `reason`, a known word and an unknown one.
    pub(in super::super) const CHANGES: &[&str] = &[
        "product_id = product_id + 1",
        "seq = seq + 100",
        "sale_id = 0",
        "order_id = 0",
        "reason = CASE reason WHEN 'receipt' THEN 'release' ELSE 'receipt' END",
        "reason = 'gift'",
        "quantity = quantity + 1",
        "quantity = 'many'",
        "delta = delta + 1",
        "balance_after = balance_after + 1",
        "at = at + 1",
        "prev_hash = 'x'",
        "hash = 'x'",
    ];

    /// Changes of a row that has a sale and an order.
    pub(in super::super) const OF_SALES: &[&str] = &[
        "sale_id = NULL",
        "order_id = NULL",
        "sale_id = sale_id + 1",
        "order_id = order_id + 1",
        "sale_id = order_id, order_id = sale_id",
        "sale_id = NULL, order_id = NULL",
    ];

    pub(in super::super) fn change(
        tx: &mut Tx<'_>,
        id: ProductId,
        seq: i64,
        change: &str,
    ) -> Result<(), StoreError> {
        let sql = format!("UPDATE stock_movements SET {change} WHERE product_id = $1 AND seq = $2");
        tx.execute(sql!(&sql), &[id.into(), seq.into()])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::monitor::Metrics;
    use crate::product::Search;
    use crate::store::Store;

    /// Wherever a page begins, an index brings it in order and nothing before it is passed.
    #[test]
    fn a_page_far_down_a_list_costs_what_one_at_its_top_costs() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        for sort in [
            Sort::Popularity,
            Sort::PriceAsc,
            Sort::PriceDesc,
            Sort::Newest,
        ] {
            for category in [None, Some("Home".to_owned())] {
                for after in [
                    None,
                    Some(ListPlace {
                        key: 0,
                        id: ProductId(9),
                    }),
                ] {
                    let filter = Filter {
                        category: category.clone(),
                        search: Search::default(),
                        sort,
                        after,
                        limit: 50,
                    };
                    let plan = store.read_blocking(|tx| {
                        let mut params = Vec::new();
                        let page = ordered(&filter, &Among::All, COLUMNS, after, 50, &mut params);
                        tx.rows(
                            sql!(&format!("EXPLAIN QUERY PLAN {page}")),
                            &params,
                            |row| row.get::<String>(3),
                        )
                    });
                    let plan = plan.expect("a plan").join("\n");
                    let passes = ["SCAN", "TEMP B-TREE"]
                        .iter()
                        .any(|word| plan.contains(word));
                    assert!(!passes, "{sort:?} {category:?} {after:?}:\n{plan}");
                    let is_found =
                        after.is_none() || plan.contains("id<?") || plan.contains("id>?");
                    assert!(
                        is_found,
                        "{sort:?} {category:?}: the place is looked up:\n{plan}"
                    );
                }
            }
        }
    }
}
