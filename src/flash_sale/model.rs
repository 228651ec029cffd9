//! Sales, orders and stock against a plain model of them, through thousands of histories: no order
//! of calls sells beyond a sale's quantity, window, price or limit of a buyer, or has a buyer hold more
//! without payment than the settings allow.
//!
//! Every call goes the way of the HTTP handlers: the gate, the rule in a transaction, the gate told
//! after the commit. The model says beforehand what each call must come to. Set `PROPTEST_CASES` for
//! more histories.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;
use proptest::sample::{Index as Pick, select};

use super::gate::{Gate, Refusal};
use super::{ClaimRequest, SaleError};
use crate::allotment::{self, NewSale, SaleId, SaleStatus, SaleUnits};
use crate::auth::{NewAccount, Role, UserId};
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::monitor::Metrics;
use crate::order::{self, Buyer, FollowUps, OrderError, OrderId, OrderStatus, Unpaid, audit};
use crate::product::stock::StockError;
use crate::product::{self, NewProduct, ProductError, ProductId, ProductPatch};
use crate::store::{Store, StoreError};
use crate::webhook::Events;

const BUYERS: usize = 3;
const ORDER_WINDOW: i64 = 10;
const UNPAID_ORDERS_MAX: u32 = 2;
const UNPAID_UNITS_MAX: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Create {
        product: usize,
        quantity: u32,
        price: i64,
        starts_in: i64,
        lasts: i64,
        limit: u32,
        window: i64,
    },
    Claim {
        sale: Pick,
        buyer: usize,
        quantity: u32,
    },
    Order {
        product: usize,
        buyer: usize,
        quantity: u32,
    },
    Pay(Pick),
    /// One that has expired.
    PayLate(Pick),
    Cancel(Pick),
    Expire,
    Close,
    Stop(Pick),
    Price {
        product: usize,
        price: i64,
    },
    Count {
        product: usize,
        stock: i64,
    },
    Delete {
        product: usize,
    },
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<Pick>;
    let price = || select(vec![0i64, 100, 100, 100, 500]);
    prop_oneof![
        3 => (0..2usize, 1..5u32, price(), select(vec![0i64, 0, 3]), 5..40i64, 1..4u32, select(vec![0i64, 2, 2, 6]))
            .prop_map(|(product, quantity, price, starts_in, lasts, limit, window)| Step::Create {
                product, quantity, price, starts_in, lasts, limit, window }),
        12 => (pick(), 0..BUYERS, select(vec![1u32, 1, 1, 2]))
            .prop_map(|(sale, buyer, quantity)| Step::Claim { sale, buyer, quantity }),
        2 => (0..2usize, 0..BUYERS, 1..3u32)
            .prop_map(|(product, buyer, quantity)| Step::Order { product, buyer, quantity }),
        4 => pick().prop_map(Step::Pay),
        8 => pick().prop_map(Step::PayLate),
        3 => pick().prop_map(Step::Cancel),
        6 => Just(Step::Expire),
        1 => Just(Step::Close),
        1 => pick().prop_map(Step::Stop),
        1 => (0..2usize, price()).prop_map(|(product, price)| Step::Price { product, price }),
        1 => (0..2usize, 4..16i64).prop_map(|(product, stock)| Step::Count { product, stock }),
        1 => (0..2usize).prop_map(|product| Step::Delete { product }),
        8 => (1..5u64).prop_map(Step::Advance),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KnownProduct {
    id: ProductId,
    free: i64,
    price: i64,
    is_active: bool,
}

#[derive(Clone, Debug)]
struct KnownSale {
    id: SaleId,
    product: usize,
    quantity: i64,
    remaining: i64,
    held: i64,
    sold: i64,
    returned: i64,
    price: i64,
    starts_at: Timestamp,
    ends_at: Timestamp,
    limit: i64,
    window: i64,
    status: SaleStatus,
}

#[derive(Clone, Debug)]
struct KnownOrder {
    id: OrderId,
    buyer: usize,
    sale: Option<usize>,
    product: usize,
    quantity: i64,
    price: i64,
    status: OrderStatus,
    expires_at: Option<Timestamp>,
}

impl KnownOrder {
    fn has_units(&self) -> bool {
        matches!(self.status, OrderStatus::PendingPayment | OrderStatus::Paid)
    }
}

struct World {
    store: Store,
    clock: Clock,
    gate: Gate,
    buyers: Vec<UserId>,
    products: Vec<KnownProduct>,
    sales: Vec<KnownSale>,
    orders: Vec<KnownOrder>,
}

fn follow_ups() -> FollowUps {
    FollowUps::default()
}

/// What a refused claim is called, by the gate and by the rule alike.
fn of_gate(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown | Refusal::Ended => "ended",
        Refusal::NotStarted => "not started",
        Refusal::SoldOut => "sold out",
        Refusal::LimitReached(_) => "limit reached",
        Refusal::RateLimited { .. } | Refusal::Overloaded => "too many",
    }
}

fn of_rule(error: &SaleError) -> &'static str {
    match error {
        SaleError::Ended => "ended",
        SaleError::NotStarted => "not started",
        SaleError::SoldOut(_) => "sold out",
        SaleError::LimitReached(_) => "limit reached",
        other => panic!("{other}"),
    }
}

impl World {
    fn new(store: &Store, buyers: &[UserId]) -> Self {
        let clock = Clock::manual(Timestamp(1_800_000_000_000_000));
        let rules = Arc::new(config::FlashSales::default());
        let metrics = Metrics::new().expect("metrics");
        let mut world = Self {
            store: store.clone(),
            gate: Gate::new(rules, clock.clone(), metrics),
            clock,
            buyers: buyers.to_vec(),
            products: Vec::new(),
            sales: Vec::new(),
            orders: Vec::new(),
        };
        // What earlier histories left unpaid would expire in the middle of this one.
        store
            .write(|tx| order::expire_due(tx, Timestamp(i64::MAX), &follow_ups(), u32::MAX))
            .blocking()
            .expect("expired");
        for price in [100, 300] {
            let new = NewProduct {
                sku: None,
                name: "Mug".to_owned(),
                description: String::new(),
                category: String::new(),
                unit_amount: price,
                currency: "CNY".to_owned(),
                stock: 12,
                popularity: 0,
            };
            let now = world.clock.now();
            let id = store
                .write::<_, ProductError>(move |tx| product::create(tx, now, &new))
                .blocking()
                .expect("a product");
            world.products.push(KnownProduct {
                id,
                free: 12,
                price,
                is_active: true,
            });
        }
        world
    }

    /// Units that a buyer has of a sale.
    fn units_of(&self, sale: usize, buyer: usize) -> i64 {
        self.orders
            .iter()
            .filter(|order| order.sale == Some(sale) && order.buyer == buyer && order.has_units())
            .map(|order| order.quantity)
            .sum()
    }

    fn run(&mut self, step: Step) {
        let now = self.clock.now();
        match step {
            Step::Create { .. } => self.create(now, &step),
            Step::Claim {
                sale,
                buyer,
                quantity,
            } if !self.sales.is_empty() => {
                let sale = sale.index(self.sales.len());
                self.claim(now, sale, buyer, quantity);
            }
            Step::Order {
                product,
                buyer,
                quantity,
            } => self.order(now, product, buyer, quantity),
            Step::Pay(order) if !self.orders.is_empty() => {
                self.pay(now, order.index(self.orders.len()));
            }
            Step::PayLate(order) => {
                let expired: Vec<usize> = (0..self.orders.len())
                    .filter(|at| self.orders[*at].status == OrderStatus::Expired)
                    .collect();
                if !expired.is_empty() {
                    self.pay(now, expired[order.index(expired.len())]);
                }
            }
            Step::Cancel(order) if !self.orders.is_empty() => {
                self.cancel(now, order.index(self.orders.len()));
            }
            Step::Expire => self.expire(now),
            Step::Close => {
                for sale in 0..self.sales.len() {
                    if self.sales[sale].ends_at <= now {
                        self.close(now, sale, SaleStatus::Ended);
                    }
                }
            }
            Step::Stop(sale) if !self.sales.is_empty() => {
                self.close(now, sale.index(self.sales.len()), SaleStatus::Stopped);
            }
            Step::Price { product, price } => {
                let patch = ProductPatch {
                    unit_amount: Some(price),
                    ..ProductPatch::default()
                };
                if self.update(now, product, patch) {
                    self.products[product].price = price;
                }
            }
            Step::Count { product, stock } => {
                let patch = ProductPatch {
                    stock: Some(stock),
                    ..ProductPatch::default()
                };
                if self.update(now, product, patch) {
                    self.products[product].free = stock;
                }
            }
            Step::Delete { product } => self.delete(now, product),
            Step::Advance(seconds) => self.clock.advance(Duration::from_secs(seconds)),
            // Nothing to choose from yet.
            Step::Claim { .. } | Step::Pay(_) | Step::Cancel(_) | Step::Stop(_) => {}
        }
        self.check();
    }

    fn create(&mut self, now: Timestamp, step: &Step) {
        let Step::Create {
            product,
            quantity,
            price,
            starts_in,
            lasts,
            limit,
            window,
        } = *step
        else {
            return;
        };
        let known = &self.products[product];
        let starts_at = now.plus_seconds(starts_in);
        let new = NewSale {
            product_id: known.id,
            quantity,
            unit_amount: price,
            starts_at,
            ends_at: starts_at.plus_seconds(lasts),
            per_user_limit: limit,
            attempts_per_minute: 1_000,
            payment_window_seconds: window,
        };
        let overlaps = self.sales.iter().any(|sale| {
            sale.product == product
                && sale.status == SaleStatus::Open
                && sale.starts_at < new.ends_at
                && sale.ends_at > new.starts_at
        });
        let (gate, ends_at) = (self.gate.clone(), new.ends_at);
        let made = self
            .store
            .write(move |tx| {
                let rules = config::FlashSales::default();
                super::create(tx, now, &rules, &Events::default(), &new)
            })
            .blocking();
        match made {
            Ok(sale) => {
                assert!(known.is_active && known.free >= i64::from(quantity) && !overlaps);
                gate.open(sale.clone());
                self.products[product].free -= i64::from(quantity);
                self.sales.push(KnownSale {
                    id: sale.id,
                    product,
                    quantity: i64::from(quantity),
                    remaining: i64::from(quantity),
                    held: 0,
                    sold: 0,
                    returned: 0,
                    price,
                    starts_at,
                    ends_at,
                    limit: i64::from(limit),
                    window,
                    status: SaleStatus::Open,
                });
            }
            Err(SaleError::Stock(StockError::NotFound(_))) => assert!(!known.is_active),
            Err(SaleError::Stock(StockError::Insufficient { available, .. })) => {
                assert_eq!(available, known.free);
                assert!(known.free < i64::from(quantity));
            }
            Err(SaleError::Overlap) => assert!(overlaps),
            Err(other) => panic!("{other}"),
        }
    }

    fn claim(&mut self, now: Timestamp, sale: usize, buyer: usize, quantity: u32) {
        let (known, units) = (self.sales[sale].clone(), i64::from(quantity));
        let expected = if known.status != SaleStatus::Open || now >= known.ends_at {
            Err("ended")
        } else if now < known.starts_at {
            Err("not started")
        } else if known.remaining < units {
            Err("sold out")
        } else if self.units_of(sale, buyer) + units > known.limit {
            Err("limit reached")
        } else {
            Ok(())
        };
        let user_id = self.buyers[buyer];
        let place = self
            .gate
            .enter(known.id, user_id, quantity, now)
            .now_or_never()
            .expect("with one claim at a time nobody waits");
        if let Err(refusal) = &place {
            assert_eq!(expected, Err(of_gate(*refusal)), "the gate");
        }
        // Past the gate as well, whatever that says.
        let request = ClaimRequest {
            sale_id: known.id,
            user_id,
            quantity,
            key: None,
            follow_ups: follow_ups(),
        };
        let claimed = self
            .store
            .write(move |tx| {
                let claim = super::claim(tx, now, &request)?;
                let super::Claim::Granted(answer) = claim else {
                    panic!("there was no key");
                };
                let answer: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
                let id = OrderId(answer["order_id"].as_i64().expect("a number"));
                Ok::<_, SaleError>(order::get(tx, id, None)?)
            })
            .blocking();
        if let Ok(place) = place {
            match &claimed {
                Ok(_) => place.decide(true),
                Err(SaleError::LimitReached(_)) => place.limit_reached(user_id),
                Err(_) => place.decide(false),
            }
        }
        assert_eq!(claimed.as_ref().map(|_| ()).map_err(of_rule), expected);
        let Ok(order) = claimed else {
            return;
        };
        let is_held = known.window > 0 && known.price > 0;
        let sale_now = &mut self.sales[sale];
        sale_now.remaining -= units;
        if is_held {
            sale_now.held += units;
        } else {
            sale_now.sold += units;
        }
        self.orders.push(KnownOrder {
            id: order.id,
            buyer,
            sale: Some(sale),
            product: known.product,
            quantity: units,
            price: known.price,
            status: if is_held {
                OrderStatus::PendingPayment
            } else {
                OrderStatus::Paid
            },
            expires_at: is_held.then(|| now.plus_seconds(known.window)),
        });
    }

    fn order(&mut self, now: Timestamp, product: usize, buyer: usize, quantity: u32) {
        let (known, user) = (self.products[product].clone(), self.buyers[buyer]);
        let made = self
            .store
            .write(move |tx| {
                let rules = config::Orders {
                    payment_window_seconds: ORDER_WINDOW as u64,
                    unpaid_orders_max: UNPAID_ORDERS_MAX,
                    unpaid_units_max: UNPAID_UNITS_MAX,
                    ..config::Orders::default()
                };
                let lines = [(known.id, quantity)];
                let buyer = Buyer {
                    user_id: user,
                    is_staff: false,
                };
                order::create(tx, now, &rules, &follow_ups(), buyer, &lines)
            })
            .blocking();
        let units = i64::from(quantity);
        let unpaid: Vec<&KnownOrder> = self.unpaid_of(buyer).collect();
        let of_product = |order: &&&KnownOrder| order.product == product;
        let held: i64 = unpaid
            .iter()
            .filter(of_product)
            .map(|order| order.quantity)
            .sum();
        let expected = if !known.is_active || known.free < units {
            Err("no units")
        } else if known.price > 0 && unpaid.len() >= UNPAID_ORDERS_MAX as usize {
            Err("unpaid orders")
        } else if known.price > 0 && held + units > i64::from(UNPAID_UNITS_MAX) {
            Err("unpaid units")
        } else {
            Ok(())
        };
        let came_to = made.as_ref().map(|_| ()).map_err(|error| match error {
            OrderError::Stock(_) => "no units",
            OrderError::Unpaid {
                what: Unpaid::Orders { .. },
                ..
            } => "unpaid orders",
            OrderError::Unpaid {
                what: Unpaid::Units { .. },
                ..
            } => "unpaid units",
            other => panic!("{other}"),
        });
        assert_eq!(came_to, expected);
        let Ok(order) = made else {
            return;
        };
        self.products[product].free -= units;
        let is_held = known.price > 0;
        self.orders.push(KnownOrder {
            id: order.id,
            buyer,
            sale: None,
            product,
            quantity: units,
            price: known.price,
            status: if is_held {
                OrderStatus::PendingPayment
            } else {
                OrderStatus::Paid
            },
            expires_at: is_held.then(|| now.plus_seconds(ORDER_WINDOW)),
        });
    }

    /// Orders of a buyer that wait for payment, those of sales left out.
    fn unpaid_of(&self, buyer: usize) -> impl Iterator<Item = &KnownOrder> {
        let is_unpaid = |order: &&KnownOrder| order.status == OrderStatus::PendingPayment;
        self.orders
            .iter()
            .filter(is_unpaid)
            .filter(move |order| order.buyer == buyer && order.sale.is_none())
    }

    /// Where a late payment may take units, told from what is known alone.
    fn late_units(&self, now: Timestamp, order: &KnownOrder) -> Option<SaleStatus> {
        let product = &self.products[order.product];
        let in_shop = product.is_active && product.free >= order.quantity;
        let Some(at) = order.sale else {
            return (in_shop && product.price <= order.price).then_some(SaleStatus::Ended);
        };
        let sale = &self.sales[at];
        let in_time = now < sale.ends_at.plus_seconds(sale.window);
        let within = self.units_of(at, order.buyer) + order.quantity <= sale.limit;
        let there = match sale.status {
            SaleStatus::Open => sale.remaining >= order.quantity,
            SaleStatus::Ended => sale.returned >= order.quantity && in_shop,
            SaleStatus::Stopped => false,
        };
        (in_time && within && there).then_some(sale.status)
    }

    fn pay(&mut self, now: Timestamp, at: usize) {
        let known = self.orders[at].clone();
        let paid = self
            .store
            .write(move |tx| {
                order::pay(
                    tx,
                    now,
                    &follow_ups(),
                    super::is_within_limit,
                    known.id,
                    None,
                )
            })
            .blocking()
            .expect("any order can be paid");
        self.moved(&paid.1);
        let units = known.quantity;
        let status = match known.status {
            OrderStatus::PendingPayment => {
                if let Some(sale) = known.sale {
                    self.sales[sale].held -= units;
                    self.sales[sale].sold += units;
                }
                OrderStatus::Paid
            }
            OrderStatus::Expired => match (self.late_units(now, &known), known.sale) {
                (None, _) => OrderStatus::RefundDue,
                (Some(from), sale) => {
                    if from == SaleStatus::Open {
                        let sale = sale.expect("units of a sale");
                        self.sales[sale].remaining -= units;
                    } else {
                        self.products[known.product].free -= units;
                        if let Some(sale) = sale {
                            self.sales[sale].returned -= units;
                        }
                    }
                    if let Some(sale) = sale {
                        self.sales[sale].sold += units;
                    }
                    OrderStatus::Paid
                }
            },
            OrderStatus::Cancelled => OrderStatus::RefundDue,
            as_before => as_before,
        };
        self.orders[at].status = status;
    }

    fn cancel(&mut self, now: Timestamp, at: usize) {
        let known = self.orders[at].clone();
        let done = self
            .store
            .write(move |tx| order::cancel(tx, now, &follow_ups(), known.id, None))
            .blocking();
        match done {
            Ok((_, moved)) => {
                assert!(known.has_units());
                self.moved(&moved);
                self.give_back(at);
                self.orders[at].status = match known.status {
                    OrderStatus::PendingPayment => OrderStatus::Cancelled,
                    _ => OrderStatus::RefundDue,
                };
            }
            Err(OrderError::State(state)) => {
                assert!(!known.has_units());
                assert_eq!(state, known.status);
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// An order's units go where they came from.
    fn give_back(&mut self, at: usize) {
        let order = self.orders[at].clone();
        let Some(sale) = order.sale else {
            self.products[order.product].free += order.quantity;
            return;
        };
        let sale = &mut self.sales[sale];
        match order.status {
            OrderStatus::PendingPayment => sale.held -= order.quantity,
            _ => sale.sold -= order.quantity,
        }
        if sale.status == SaleStatus::Open {
            sale.remaining += order.quantity;
        } else {
            sale.returned += order.quantity;
            self.products[order.product].free += order.quantity;
        }
    }

    fn expire(&mut self, now: Timestamp) {
        let (expired, moved) = self
            .store
            .write(move |tx| order::expire_due(tx, now, &follow_ups(), 1_000))
            .blocking()
            .expect("expired");
        self.moved(&moved);
        let mut due = 0;
        for at in 0..self.orders.len() {
            let order = &self.orders[at];
            if order.status == OrderStatus::PendingPayment
                && order.expires_at.is_some_and(|until| until <= now)
            {
                self.give_back(at);
                self.orders[at].status = OrderStatus::Expired;
                due += 1;
            }
        }
        assert_eq!(expired, due);
    }

    fn close(&mut self, now: Timestamp, at: usize, status: SaleStatus) {
        let id = self.sales[at].id;
        let closed = self
            .store
            .write(move |tx| super::close(tx, now, &Events::default(), id, status))
            .blocking()
            .expect("closed");
        self.gate.close(id);
        let sale = &mut self.sales[at];
        assert_eq!(closed.is_some(), sale.status == SaleStatus::Open);
        if closed.is_some() {
            self.products[sale.product].free += sale.remaining;
            sale.returned += sale.remaining;
            sale.remaining = 0;
            sale.status = status;
        }
    }

    fn update(&self, now: Timestamp, product: usize, patch: ProductPatch) -> bool {
        let known = &self.products[product];
        let id = known.id;
        let done = self
            .store
            .write(move |tx| product::update(tx, now, id, &patch))
            .blocking();
        assert_eq!(done.is_ok(), known.is_active, "{done:?}");
        done.is_ok()
    }

    fn delete(&mut self, now: Timestamp, product: usize) {
        let known = &self.products[product];
        let id = known.id;
        let selling: Vec<SaleId> = self
            .sales
            .iter()
            .filter(|sale| {
                sale.product == product && sale.status == SaleStatus::Open && sale.ends_at > now
            })
            .map(|sale| sale.id)
            .collect();
        let done = self
            .store
            .write(move |tx| product::archive(tx, now, id, allotment::not_over))
            .blocking();
        match done {
            Ok(()) => {
                assert!(known.is_active && selling.is_empty());
                self.products[product].is_active = false;
            }
            Err(ProductError::NotFound(_)) => assert!(!known.is_active),
            Err(ProductError::InSale(mut named)) => {
                named.sort_unstable();
                assert_eq!(named, selling);
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn moved(&self, units: &[SaleUnits]) {
        self.gate.adjust(units);
    }

    /// The rows are what the model knows, and no limit is passed.
    fn check(&self) {
        let ids: Vec<_> = self.orders.iter().map(|order| order.id).collect();
        let sales: Vec<_> = self.sales.iter().map(|sale| sale.id).collect();
        let (orders, rows) = self
            .store
            .read_blocking(move |tx| {
                let mut orders = Vec::new();
                for id in ids {
                    orders.push(order::get(tx, id, None)?.status);
                }
                let mut rows = Vec::new();
                for id in sales {
                    rows.push(super::get(tx, id)?);
                }
                Ok::<_, SaleError>((orders, rows))
            })
            .expect("rows");
        for (order, status) in self.orders.iter().zip(orders) {
            assert_eq!(status, order.status, "{order:?}");
        }
        for (at, (sale, row)) in self.sales.iter().zip(rows).enumerate() {
            let seen = (row.remaining, row.held, row.sold, row.returned, row.status);
            let known = (
                sale.remaining,
                sale.held,
                sale.sold,
                sale.returned,
                sale.status,
            );
            assert_eq!(seen, known, "{sale:?}");
            let units: i64 = (0..BUYERS)
                .map(|buyer| {
                    let units = self.units_of(at, buyer);
                    assert!(units <= sale.limit, "{sale:?}: buyer {buyer} has {units}");
                    units
                })
                .sum();
            assert!(units <= sale.quantity, "{sale:?}: {units} are given away");
            if sale.status == SaleStatus::Open {
                assert_eq!(self.gate.left(sale.id), Some(sale.remaining), "the gate");
            }
        }
        for product in self.products.iter().filter(|product| product.is_active) {
            let id = product.id;
            let row = self
                .store
                .read_blocking(move |tx| product::get(tx, id))
                .expect("a product");
            assert_eq!((row.stock, row.unit_amount), (product.free, product.price));
        }
    }
}

fn shop(dir: &tempfile::TempDir) -> (Store, Vec<UserId>) {
    let metrics = Metrics::new().expect("metrics");
    let path = dir.path().join("onrush.db");
    let store = Store::open(&path, &config::Database::default(), metrics, |_| ()).expect("a store");
    let cheap = config::Auth {
        argon2_memory_kib: 8,
        ..config::Auth::default()
    };
    let account = |number| {
        let email = format!("buyer{number}@example.com");
        let new = NewAccount::checked(&email, "A buyer", "long enough", &cheap).expect("valid");
        let made = store
            .write(move |tx| crate::auth::create_account(tx, Timestamp(0), &new, Role::Customer))
            .blocking();
        made.expect("an account")
    };
    let buyers = (0..BUYERS).map(account).collect();
    (store, buyers)
}

#[test]
#[expect(clippy::print_stdout, reason = "how many histories there were is told")]
fn no_order_of_calls_sells_beyond_a_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, buyers) = shop(&dir);
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(150);
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 500,
        ..ProptestConfig::with_cases(cases)
    };
    let verify = || {
        let verdict = store
            .read_blocking::<_, StoreError>(|tx| audit::verify(tx, |_| Ok(())))
            .expect("the ledger can be read");
        assert_eq!(verdict.problems, Vec::<String>::new());
    };
    let (histories, late, refused) = (
        std::cell::Cell::new(0u32),
        std::cell::Cell::new(0u32),
        std::cell::Cell::new(0u32),
    );
    proptest::test_runner::TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..70), |steps| {
            let mut world = World::new(&store, &buyers);
            world.run(Step::Create {
                product: 0,
                quantity: 3,
                price: 100,
                starts_in: 0,
                lasts: 30,
                limit: 2,
                window: 2,
            });
            for step in steps {
                let before: Vec<_> = world.orders.iter().map(|order| order.status).collect();
                world.run(step);
                for (order, before) in world.orders.iter().zip(before) {
                    if before == OrderStatus::Expired && order.sale.is_some() {
                        match order.status {
                            OrderStatus::Paid => late.set(late.get() + 1),
                            OrderStatus::RefundDue => refused.set(refused.get() + 1),
                            _ => {}
                        }
                    }
                }
            }
            histories.set(histories.get() + 1);
            // The ledger grows with the histories, and so does the time to read it over.
            if histories.get() % 50 == 0 {
                verify();
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    verify();
    println!(
        "{} histories: {} late payments took units of their sale again, {} are due back",
        histories.get(),
        late.get(),
        refused.get()
    );
    assert!(
        late.get() > 0 && refused.get() > 0,
        "the histories have late payments of both kinds"
    );
    store.close();
}

impl World {
    /// With one sale of `quantity` units, one a buyer, that begins in 3 s and lasts 10 s.
    fn with_sale(store: &Store, buyers: &[UserId], quantity: u32, window: i64) -> Self {
        let mut world = Self::new(store, buyers);
        world.run(Step::Create {
            product: 0,
            quantity,
            price: 100,
            starts_in: 3,
            lasts: 10,
            limit: 1,
            window,
        });
        world
    }

    /// What the rule itself says at a moment, past the gate.
    fn rule_at(&self, now: Timestamp, buyer: usize) -> Result<(), &'static str> {
        let request = ClaimRequest {
            sale_id: self.sales[0].id,
            user_id: self.buyers[buyer],
            quantity: 1,
            key: None,
            follow_ups: follow_ups(),
        };
        self.store
            .write(move |tx| super::claim(tx, now, &request).map(|_| ()))
            .blocking()
            .map_err(|error| of_rule(&error))
    }

    fn advance(&mut self, seconds: u64) {
        self.run(Step::Advance(seconds));
    }
}

#[test]
fn the_rule_keeps_the_window_whatever_the_gate_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, buyers) = shop(&dir);
    let world = World::with_sale(&store, &buyers, 3, 0);
    let (starts, ends) = (world.sales[0].starts_at, world.sales[0].ends_at);
    assert_eq!(
        world.rule_at(Timestamp(starts.0 - 1), 0),
        Err("not started")
    );
    assert_eq!(world.rule_at(starts, 0), Ok(()));
    assert_eq!(world.rule_at(Timestamp(ends.0 - 1), 1), Ok(()));
    assert_eq!(world.rule_at(ends, 2), Err("ended"));
    store.close();
}

#[test]
fn units_that_went_back_do_not_count_against_their_buyers_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, buyers) = shop(&dir);
    let mut world = World::with_sale(&store, &buyers, 3, 2);
    world.advance(3);
    let claim = |world: &mut World| {
        let (now, orders) = (world.clock.now(), world.orders.len());
        world.claim(now, 0, 0, 1);
        world.check();
        world.orders.len() > orders
    };
    assert!(claim(&mut world));
    assert!(!claim(&mut world), "one a buyer");
    world.advance(2);
    world.run(Step::Expire);
    assert!(claim(&mut world), "the first one expired");
    let now = world.clock.now();
    world.cancel(now, 1);
    assert!(claim(&mut world), "the second one was cancelled");
    world.pay(now, 2);
    assert!(!claim(&mut world));
    world.cancel(now, 2);
    assert!(claim(&mut world), "the third one is to be refunded");
    // The one that expired is paid for at last: its buyer has one already.
    world.pay(now, 0);
    assert_eq!(world.orders[0].status, OrderStatus::RefundDue);
    world.check();
    store.close();
}

/// The report from the field: one unit, one a buyer, claimed three times and paid three times.
#[test]
fn paying_late_is_no_way_round_the_limits_of_a_sale() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, buyers) = shop(&dir);
    let mut world = World::with_sale(&store, &buyers, 1, 1);
    world.advance(3);
    for _ in 0..3 {
        let now = world.clock.now();
        world.claim(now, 0, 0, 1);
        world.advance(1);
        world.run(Step::Expire);
    }
    let free = world.products[0].free;
    let now = world.clock.now();
    for _ in 0..2 {
        for order in 0..3 {
            world.pay(now, order);
            world.check();
        }
    }
    let states: Vec<_> = world.orders.iter().map(|order| order.status).collect();
    assert_eq!(
        states,
        [
            OrderStatus::Paid,
            OrderStatus::RefundDue,
            OrderStatus::RefundDue
        ]
    );
    assert_eq!(
        (world.sales[0].sold, world.products[0].free),
        (1, free),
        "the unit of the sale, none of the ordinary stock"
    );
    store.close();
}

#[test]
fn a_late_payment_after_the_sale_has_the_payment_window_and_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, buyers) = shop(&dir);
    for (waits, closes, expected) in [
        (10, SaleStatus::Ended, OrderStatus::Paid),
        (11, SaleStatus::Ended, OrderStatus::RefundDue),
        (1, SaleStatus::Stopped, OrderStatus::RefundDue),
    ] {
        let mut world = World::with_sale(&store, &buyers, 1, 4);
        world.advance(3);
        let now = world.clock.now();
        world.claim(now, 0, 0, 1);
        // The sale is over after 10 s, the payment window after it after 14.
        world.advance(4);
        world.run(Step::Expire);
        world.advance(waits - 1);
        let now = world.clock.now();
        world.close(now, 0, closes);
        world.pay(now, 0);
        world.check();
        assert_eq!(world.orders[0].status, expected, "{waits} s, {closes:?}");
    }
    store.close();
}
