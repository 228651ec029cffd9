//! Finds products by words, at a bounded cost.
//!
//! Two ways lead to a page. Where one of the words is rare, its products are few: all of them are looked at.
//! Where all words are common, so are products that have them: the list is walked in its order, and those that
//! have them are picked, until the page is full. Only words that are common and yet hardly ever meet would
//! make that walk long; it ends after a number of steps with what it has found, and says where to go on. So
//! no question costs more than that, however many products there are.
//!
//! Invariants: all pages together are exactly the products that have every word, in order; a page without a
//! next place is the last; a page that goes on has made at least one step.

use std::collections::HashMap;

use super::terms::{Asked, Wanted};
use super::{Among, Filter, Page, Product, ProductId, Search, Step, sql};
use crate::store::{StoreError, Tx};

/// A word is rare if so few products have it: to look at each costs less than to walk a list of tens of
/// thousands for a page of products that have it.
const RARE_MAX: i64 = 2_000;
/// Places of the list that are walked with one statement, and of these so many at first as there is room
/// for in the page.
const WALK_MAX: i64 = 4_096;
/// Products whose texts are read with one statement: of the longest texts, 5 MB.
const TEXTS_MAX: usize = 128;
/// Bytes of a text that cost a step; those that are left over cost one as well.
const STEP_BYTES: usize = 64;

/// How a question is answered.
struct Plan<'a> {
    among: Among<'a>,
    /// Words that the index tells of each product, besides those that it is `among`.
    by_index: Vec<&'a str>,
    /// Words that only a product's text tells.
    by_text: Wanted,
}

/// One page of the products that have every word.
pub(super) fn page(tx: &mut Tx<'_>, steps_max: u32, filter: &Filter) -> Result<Page, StoreError> {
    let Some(plan) = plan(tx, &filter.search)? else {
        return Ok(Page::default());
    };
    let limit = usize::try_from(filter.limit).unwrap_or(0).max(1);
    let mut steps = i64::from(steps_max);
    let (mut after, mut walk) = (filter.after, filter.limit.max(1));
    let mut products = Vec::with_capacity(limit);
    loop {
        let asked = match plan.among {
            // They are sorted together in any case.
            Among::Having(_) => 2 * RARE_MAX + 1,
            Among::All => walk.min(WALK_MAX).min(steps),
        };
        let found = sql::walk(tx, filter, &plan.among, &plan.by_index, after, asked)?;
        let is_end = (found.len() as i64) < asked;
        let mut texts = Texts::default();
        for (at, step) in found.iter().enumerate() {
            steps -= 1;
            after = Some(step.place);
            if step.has_words {
                let wanted = limit - products.len();
                let ahead = found[at..].iter().filter(|step| step.has_words);
                let product = texts.of(tx, step.place.id, ahead, &plan.by_text, wanted)?;
                let Some(product) = product else { continue };
                let (is_found, bytes) = plan.by_text.are_in(product.text());
                if bytes > 0 {
                    steps -= 1 + (bytes / STEP_BYTES) as i64;
                }
                if is_found {
                    products.push(product);
                }
            }
            let is_last = is_end && at + 1 == found.len();
            if !is_last && (products.len() == limit || steps <= 0) {
                return Ok(Page {
                    products,
                    next: after,
                });
            }
        }
        if is_end {
            return Ok(Page {
                products,
                next: None,
            });
        }
        walk *= 2;
    }
}

/// Products that were read ahead.
#[derive(Default)]
struct Texts(HashMap<ProductId, Product>);

impl Texts {
    /// The product of this key, which is the first `ahead`; others of these are read with it: as many as the
    /// page has room for, or, where the text decides, as many as may be read at once.
    fn of<'a>(
        &mut self,
        tx: &mut Tx<'_>,
        id: ProductId,
        ahead: impl Iterator<Item = &'a Step>,
        by_text: &Wanted,
        wanted: usize,
    ) -> Result<Option<Product>, StoreError> {
        if !self.0.contains_key(&id) {
            let count = match by_text.is_empty() {
                true => wanted,
                false => TEXTS_MAX,
            };
            let ids: Vec<ProductId> = ahead.take(count).map(|step| step.place.id).collect();
            let read = sql::by_ids(tx, &ids)?;
            self.0 = read.into_iter().map(|one| (one.id, one)).collect();
        }
        Ok(self.0.remove(&id))
    }
}

/// How to answer; `None` where nothing can be found.
fn plan<'a>(tx: &mut Tx<'_>, search: &'a Search) -> Result<Option<Plan<'a>>, StoreError> {
    let Search { asked, earlier } = search;
    // Products that were not renewed yet have words of the earlier rule: the index tells of both rules which
    // may be meant, and the text tells which are.
    let has_two_rules = !earlier.is_empty() && sql::terms_due(tx)?.is_some();
    let (mut rarest, mut count) = fewest(tx, asked)?;
    let mut among: Vec<&Asked> = rarest.into_iter().collect();
    if has_two_rules {
        let (of_earlier, count_of_earlier) = fewest(tx, earlier)?;
        count = count.max(count_of_earlier);
        among.extend(of_earlier);
        rarest = None;
    }
    if count == 0 {
        return Ok(None);
    }
    let is_rare = count <= RARE_MAX;
    let is_left = |asked: &&Asked| !(is_rare && rarest == Some(*asked));
    let left: Vec<&Asked> = asked.iter().filter(is_left).collect();
    let by_index = match has_two_rules {
        true => Vec::new(),
        false => left.iter().filter_map(|asked| asked.whole()).collect(),
    };
    let is_for_text = |asked: &&&Asked| has_two_rules || asked.whole().is_none();
    Ok(Some(Plan {
        among: match is_rare {
            true => Among::Having(among),
            false => Among::All,
        },
        by_index,
        by_text: Wanted::new(left.iter().filter(is_for_text).copied()),
    }))
}

/// The word that the fewest products have, and how many those are, if they are few.
fn fewest<'a>(tx: &mut Tx<'_>, asked: &'a [Asked]) -> Result<(Option<&'a Asked>, i64), StoreError> {
    let (mut rarest, mut fewest) = (None, RARE_MAX + 1);
    for word in asked {
        let count = sql::count_having(tx, word, fewest)?;
        if count < fewest {
            (rarest, fewest) = (Some(word), count);
        }
    }
    Ok((rarest, fewest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::config::Database;
    use crate::monitor::Metrics;
    use crate::product::terms;
    use crate::product::{NewProduct, ProductError, Sort, create};
    use crate::store::Store;

    /// More than a rare word has.
    const PRODUCTS: usize = 2 * RARE_MAX as usize + 500;
    const STEPS_MAX: u32 = 1_000;

    fn new(number: usize) -> NewProduct {
        let parity = ["even", "odd"][number % 2];
        let rare = if number.is_multiple_of(500) {
            " scarce"
        } else {
            ""
        };
        let late = if number + 3 >= PRODUCTS {
            " 末尾"
        } else {
            ""
        };
        NewProduct {
            sku: Some(format!("N{number}")),
            name: format!("Mug {parity} 杯子{late}"),
            description: format!("color{} size{}{rare}", number % 7, number % 60),
            category: ["Home", "Garden"][number % 3 / 2].to_owned(),
            unit_amount: (number * 7_919 % 11) as i64,
            currency: "CNY".to_owned(),
            stock: 0,
            popularity: (number % 4) as i64,
        }
    }

    fn shop() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("store");
        store
            .write::<_, ProductError>(|tx| {
                for number in 0..PRODUCTS {
                    create(tx, Timestamp(1), &new(number))?;
                }
                Ok(())
            })
            .blocking()
            .expect("products");
        (dir, store)
    }

    /// What the pages of a list have together, and how many pages that were.
    fn all_pages(store: &Store, mut filter: Filter) -> (Vec<i64>, usize) {
        let (mut ids, mut pages) = (Vec::new(), 0);
        loop {
            let asked = filter.clone();
            let page = store.read_blocking(move |tx| page(tx, STEPS_MAX, &asked));
            let found = page.expect("a page");
            assert!(found.products.len() <= filter.limit as usize);
            ids.extend(found.products.iter().map(|product| product.id.0));
            pages += 1;
            match found.next {
                Some(next) => {
                    assert_ne!(filter.after, Some(next), "it goes on");
                    filter.after = Some(next);
                }
                None => return (ids, pages),
            }
        }
    }

    #[test]
    fn every_question_finds_exactly_what_has_all_words_in_order_and_at_a_bounded_cost() {
        let (_dir, store) = shop();
        let all: Vec<NewProduct> = (0..PRODUCTS).map(new).collect();
        let mut longest = 0;
        for q in [
            "mug",
            "mug odd",
            "odd even",
            "even odd mug",
            "scarce",
            "scarce odd",
            "mug scarce color0",
            "color1 size",
            "size5",
            "杯",
            "杯子 odd",
            "末",
            "mug 末尾",
            "n449",
            "m",
            "mug nothing",
            "nothing",
            "odd even col",
        ] {
            let asked = terms::query(q);
            let wanted = Wanted::new(&asked);
            for (sort, category, limit) in [
                (Sort::Popularity, None, 50),
                (Sort::PriceAsc, None, 200),
                (Sort::PriceDesc, Some("Home"), 50),
                (Sort::Newest, Some("Garden"), 200),
                (Sort::Newest, None, 7),
            ] {
                let (ids, pages) = all_pages(
                    &store,
                    Filter {
                        category: category.map(str::to_owned),
                        search: Search::new(q),
                        sort,
                        after: None,
                        limit,
                    },
                );
                let mut expected: Vec<(i64, i64)> = (1..)
                    .zip(&all)
                    .filter(|(_, new)| category.is_none_or(|known| known == new.category))
                    .filter(|(_, new)| wanted.are_in(new.text()).0)
                    .map(|(id, new)| match sort {
                        Sort::Popularity => (-new.popularity, -id),
                        Sort::PriceAsc => (new.unit_amount, id),
                        Sort::PriceDesc => (-new.unit_amount, -id),
                        Sort::Newest => (-id, -id),
                    })
                    .collect();
                expected.sort_unstable();
                let expected: Vec<i64> = expected.iter().map(|(_, id)| id.abs()).collect();
                assert_eq!(ids, expected, "{q:?} {sort:?} {category:?}");
                // A page is full, or has made its steps, or is the last one.
                let full = expected.len() / limit as usize;
                let walked = 20 * PRODUCTS / STEPS_MAX as usize;
                assert!(pages <= full + walked + 1, "{q:?}: {pages} pages");
                longest = longest.max(pages.saturating_sub(full));
            }
        }
        assert!(longest >= 4, "what hardly meets ends in between: {longest}");
    }

    #[test]
    fn a_question_for_what_is_common_or_rare_makes_few_steps() {
        let (_dir, store) = shop();
        for (q, at_most) in [("mug odd", 500), ("scarce", 100), ("mug 末尾", 100)] {
            let filter = Filter {
                category: None,
                search: Search::new(q),
                sort: Sort::Popularity,
                after: None,
                limit: 50,
            };
            let found = store
                .read_blocking(move |tx| page(tx, at_most, &filter))
                .expect("a page");
            let is_whole = found.products.len() == 50 || found.next.is_none();
            assert!(is_whole, "{q}: {}", found.products.len());
        }
    }
}
