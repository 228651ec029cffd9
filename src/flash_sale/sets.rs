//! Claims that are granted as one set against the same claims one after the other: whatever waits together,
//! with replays, limits, refusals and a claim in the middle that can't be written, leaves the same rows and
//! the same answers. Set `PROPTEST_CASES` for more histories.

use std::sync::Arc;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Claim, ClaimRequest, SaleError};
use crate::allotment::{NewSale, SaleId};
use crate::auth::idempotency::IdempotencyKey;
use crate::auth::{self, NewAccount, Role, UserId};
use crate::clock::Timestamp;
use crate::config;
use crate::monitor::Metrics;
use crate::order::{FollowUps, audit};
use crate::product::{self, NewProduct, ProductError};
use crate::store::{Param, Sql, Store, StoreError, Tx};
use crate::webhook::Events;

const BUYERS: i64 = 4;
/// No account has this number, so that its order can't be written.
const NOBODY: i64 = 999;
const BEGIN: Timestamp = Timestamp(1_700_000_000_000_000);
/// Seconds from when until when the sale grants claims.
const WINDOW: (i64, i64) = (2, 12);

#[derive(Clone, Debug)]
struct Asked {
    user: i64,
    quantity: u32,
    key: Option<u8>,
    /// Seconds since the claim before.
    after: i64,
}

#[derive(Clone, Debug)]
struct Terms {
    quantity: u32,
    price: i64,
    limit: u32,
    payment_seconds: i64,
}

fn asked() -> impl Strategy<Value = Asked> {
    (
        prop_oneof![20 => 1..=BUYERS, 1 => Just(NOBODY)],
        select(vec![1u32, 1, 1, 2, 3]),
        prop_oneof![2 => Just(None), 3 => (0..3u8).prop_map(Some)],
        select(vec![0i64, 0, 0, 0, 0, 0, 1, 3]),
    )
        .prop_map(|(user, quantity, key, after)| Asked {
            user,
            quantity,
            key,
            after,
        })
}

fn history() -> impl Strategy<Value = (Terms, Vec<Vec<Asked>>)> {
    let terms = (
        1..12u32,
        select(vec![0i64, 100]),
        1..4u32,
        select(vec![0i64, 60]),
    )
        .prop_map(|(quantity, price, limit, payment_seconds)| Terms {
            quantity,
            price,
            limit,
            payment_seconds,
        });
    let sets = proptest::collection::vec(proptest::collection::vec(asked(), 1..24), 1..4);
    (terms, sets)
}

struct House {
    store: Store,
    sale: SaleId,
    _dir: tempfile::TempDir,
}

impl House {
    fn open(terms: &Terms) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let settings = config::Database {
            readers: 1,
            ..config::Database::default()
        };
        let metrics = Metrics::new().expect("unique names");
        let store = Store::open(&dir.path().join("onrush.db"), &settings, metrics, |_| ());
        let store = store.expect("a database");
        let terms = terms.clone();
        let sale = store
            .write::<_, SaleError>(move |tx| {
                let auth = config::Auth {
                    argon2_memory_kib: 8,
                    argon2_passes: 1,
                    ..config::Auth::default()
                };
                for buyer in 0..BUYERS {
                    let email = format!("{buyer}@example.com");
                    let account = NewAccount::checked(&email, "b", "a long enough password", &auth);
                    auth::create_account(tx, BEGIN, &account.expect("valid"), Role::Customer)
                        .expect("an account");
                }
                let new = NewProduct {
                    sku: None,
                    name: "p".to_owned(),
                    description: String::new(),
                    category: String::new(),
                    unit_amount: 500,
                    currency: "CNY".to_owned(),
                    stock: 50,
                    popularity: 0,
                };
                let product = product::create(tx, BEGIN, &new).map_err(|error| match error {
                    ProductError::Store(error) => error,
                    other => StoreError::Bug(other.to_string()),
                })?;
                let new = NewSale {
                    product_id: product,
                    quantity: terms.quantity,
                    unit_amount: terms.price,
                    starts_at: BEGIN.plus_seconds(WINDOW.0),
                    ends_at: BEGIN.plus_seconds(WINDOW.1),
                    per_user_limit: terms.limit,
                    attempts_per_minute: 100,
                    payment_window_seconds: terms.payment_seconds,
                };
                let (rules, events) = (config::FlashSales::default(), Events::default());
                super::create(tx, BEGIN, &rules, &events, &new).map(|sale| sale.id)
            })
            .blocking();
        Self {
            store,
            sale: sale.expect("a sale"),
            _dir: dir,
        }
    }

    /// All rows that claims leave, as text without what is drawn by lot.
    fn rows(&self) -> Vec<String> {
        let read = |tx: &mut Tx<'_>| {
            let mut all = Vec::new();
            for text in super::sql::ROWS_OF_CLAIMS {
                all.extend(tx.rows(Sql::new("rows", "", text), &[], |row| {
                    let mut shown = String::new();
                    let mut column = 0;
                    while let Ok(value) = row.get::<Option<Shown>>(column) {
                        let value = value.map_or_else(|| "-".to_owned(), |value| value.0);
                        shown.push_str(&format!("{value} | "));
                        column += 1;
                    }
                    Ok(shown)
                })?);
            }
            Ok::<_, StoreError>(all)
        };
        self.store.read_blocking(read).expect("rows")
    }
}

/// A value of any type; a claim's number is left out.
struct Shown(String);

impl crate::store::Column for Shown {
    fn read(value: Param<'_>) -> Option<Self> {
        Some(Shown(match value {
            Param::Int(value) => value.to_string(),
            Param::Text(text) => without_claim(text),
            Param::NullInt | Param::NullText => return None,
        }))
    }
}

fn without_claim(text: &str) -> String {
    match text.strip_prefix("{\"claim_id\":\"") {
        Some(rest) => rest.get(36..).unwrap_or_default().to_owned(),
        None => text.to_owned(),
    }
}

fn told(outcome: &Result<Claim, SaleError>) -> String {
    match outcome {
        Ok(Claim::Granted(stored)) => format!("granted {}", without_claim(&stored.body)),
        Ok(Claim::Replayed(stored)) => format!("replayed {}", without_claim(&stored.body)),
        Err(SaleError::Order(error)) => format!("{error}"),
        Err(SaleError::Store(error)) => format!("{error}"),
        Err(error) => error.to_string(),
    }
}

fn request(sale: SaleId, asked: &Asked) -> ClaimRequest {
    let key = asked.key.map(|key| {
        let asked = super::asked(sale, asked.quantity);
        IdempotencyKey::new(&format!("key {key}"), &asked, 3_600).expect("a key")
    });
    ClaimRequest {
        sale_id: sale,
        user_id: UserId(asked.user),
        quantity: asked.quantity,
        key,
        follow_ups: FollowUps {
            process: true,
            mail: true,
            events: Events::default(),
        },
    }
}

/// One after the other, each in a transaction of its own.
fn one_by_one(house: &House, asked: &[(Timestamp, Asked)]) -> Vec<String> {
    let one = |(now, asked): &(Timestamp, Asked)| {
        let (now, request) = (*now, request(house.sale, asked));
        let outcome = house
            .store
            .write(move |tx| super::claim(tx, now, &request))
            .blocking();
        told(&outcome)
    };
    asked.iter().map(one).collect()
}

/// All of them while the writer is busy.
async fn together(house: &House, asked: &[(Timestamp, Asked)]) -> Vec<String> {
    let sets = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&sets);
    let gathered = house.store.gather(
        move |tx, sale: &SaleId, items: &[(Timestamp, ClaimRequest)]| {
            seen.lock().expect("nobody panicked").push(items.len());
            let asked: Vec<_> = items.iter().map(|(now, request)| (*now, request)).collect();
            super::claim_many(tx, *sale, &asked)
        },
        |_, _, _| (),
    );
    let (release, released) = std::sync::mpsc::channel::<()>();
    house
        .store
        .write::<_, StoreError>(move |_| {
            // Fails when all have come and the sender is gone.
            let _gone = released.recv();
            Ok(())
        })
        .unanswered();
    let claims = asked.iter().map(|(now, asked)| {
        let item = (*now, request(house.sale, asked));
        gathered.write(&house.store, house.sale, item)
    });
    // Each is asked for once, in order, before the writer goes on.
    let (outcomes, ()) = tokio::join!(join_all(claims), async move { drop(release) });
    let first = sets.lock().expect("nobody panicked")[0];
    assert_eq!(first, asked.len(), "they were one set");
    outcomes.iter().map(told).collect()
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases.and_then(|text| text.parse().ok()).unwrap_or(24))
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_set_of_claims_leaves_what_the_same_claims_leave_one_by_one((terms, sets) in history()) {
        let (apart, at_once) = (House::open(&terms), House::open(&terms));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        let mut now = BEGIN;
        for set in sets {
            let set: Vec<(Timestamp, Asked)> = set
                .into_iter()
                .map(|asked| {
                    now = now.plus_seconds(asked.after);
                    (now, asked)
                })
                .collect();
            let is_nobody = |at: usize| set[at].1.user == NOBODY;
            let expected = one_by_one(&apart, &set);
            let mut found = runtime.block_on(together(&at_once, &set));
            for at in (0..set.len()).filter(|at| is_nobody(*at)) {
                // Refused, or not written: the one is found out before the other.
                prop_assert!(!found[at].starts_with("granted") && !expected[at].starts_with("granted"));
                found[at].clone_from(&expected[at]);
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(at_once.rows(), apart.rows());
        }
        let verdict = at_once.store.read_blocking(|tx| audit::verify(tx, |_| Ok(())));
        let verdict = verdict.expect("read");
        prop_assert_eq!(verdict.problems_total, 0, "{:?}", verdict.problems);
        apart.store.close();
        at_once.store.close();
    }
}
