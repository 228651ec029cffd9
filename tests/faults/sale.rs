//! A running flash sale, its buyers, and the comparison of what they were told with what was kept.
//!
//! Must hold: what buyers were told is kept here, outside of the server; after a restart every unit
//! that is sold belongs to a buyer who knows of it, and the other way round.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::JoinHandle;

use onrush::clock::Clock;
use serde_json::{Value, json};

use super::PATIENCE;
use super::ask::Client;
use super::server::{Launch, Server};

/// A flash sale that runs.
pub(super) struct Sale {
    pub(super) launch: Launch,
    pub(super) admin: String,
    pub(super) product: i64,
    pub(super) path: String,
    quantity: i64,
}

impl Sale {
    /// Makes an admin, a product and its sale in a fresh data directory.
    pub(super) fn make(launch: Launch, quantity: i64) -> (Self, Server) {
        let add = ["user", "add", "--role", "admin", "--email", "a@example.com"];
        let (status, text) = launch.run(&add, "a long enough password\n");
        assert!(status.success(), "{text}");
        let server = launch.start();
        let mut client = Client::new(server.address);
        let mut made = |path: &str, token: &str, body: Value| {
            let answer = client.post(path, token, &body).expect("an answer");
            assert!(matches!(answer.status, 200 | 201), "{answer:?}");
            answer.json()
        };
        let login = json!({"email": "a@example.com", "password": "a long enough password"});
        let admin = made("/api/v1/auth/login", "", login)["token"]
            .as_str()
            .expect("a token")
            .to_owned();
        let product = json!({"name": "耳机", "unit_amount": 9900, "currency": "CNY",
            "stock": quantity + 1_000});
        let product = made("/api/v1/products", &admin, product)["id"]
            .as_i64()
            .expect("an id");
        let now = Clock::system().now();
        let sale = json!({"product_id": product, "quantity": quantity, "unit_amount": 1,
            "starts_at": now.plus_seconds(-3_600), "ends_at": now.plus_seconds(86_400),
            "attempts_per_minute": 1_000});
        let sale = made("/api/v1/flash-sales", &admin, sale)["id"].clone();
        let sale = Self {
            launch,
            admin,
            product,
            path: format!("/api/v1/flash-sales/{sale}"),
            quantity,
        };
        (sale, server)
    }

    pub(super) fn claims(&self) -> String {
        format!("{}/claims", self.path)
    }

    /// Accounts for `count` buyers; every second one will claim under an `Idempotency-Key`.
    pub(super) fn buyers(&self, address: SocketAddr, count: usize) -> Vec<Buyer> {
        let register = |number: usize| {
            let (path, name) = ("/api/v1/auth/register", format!("b{number}"));
            let body = json!({"email": format!("{name}@example.com"), "name": name,
                "password": "a long enough password"});
            (path, body)
        };
        in_parallel(8, (0..count).collect(), || {
            let mut client = Client::new(address);
            move |number| {
                let (path, body) = register(number);
                let answer = client.post(path, "", &body).expect("an answer");
                assert_eq!(answer.status, 201, "{answer:?}");
                Buyer {
                    token: answer.json()["token"].as_str().expect("a token").to_owned(),
                    key: (number % 2 == 0).then(|| format!("key-{number}")),
                    heard: Heard::Nothing,
                }
            }
        })
    }

    /// After a restart: everything that any buyer was told is so, and nothing else was sold. Buyers
    /// who never got an answer ask again here, so that what was sold is known to the unit.
    pub(super) fn assert_kept(&self, address: SocketAddr, buyers: &mut Vec<Buyer>) {
        let (claims, admin) = (self.claims(), self.admin.clone());
        *buyers = in_parallel(4, std::mem::take(buyers), || {
            let mut client = Client::new(address);
            let (claims, admin) = (claims.clone(), admin.clone());
            move |mut buyer: Buyer| {
                match &buyer.heard {
                    Heard::Granted { claim, order } => {
                        let found = client.get(&format!("/api/v1/claims/{claim}"), &admin);
                        assert_eq!(found.status, 200, "an accepted claim: {found:?}");
                        assert_eq!(found.json()["order_id"], *order);
                    }
                    Heard::NoAnswer => {
                        buyer.claim(&mut client, &claims);
                        let kept = match &buyer.heard {
                            Heard::Granted { .. } => true,
                            // It was granted before, and without a key it can't be told again.
                            Heard::Refused(_, code) => {
                                buyer.key.is_none() && code == "limit_reached"
                            }
                            Heard::Nothing | Heard::NoAnswer => false,
                        };
                        assert!(kept, "the second attempt: {:?}", buyer.heard);
                    }
                    Heard::Nothing | Heard::Refused(..) => {}
                }
                buyer
            }
        });
        let held = buyers.iter().filter(|buyer| buyer.holds_a_unit()).count();
        let (sold, remaining) = self.units(address);
        assert_eq!(sold, held as i64, "units sold and buyers who hold one");
        assert_eq!(sold + remaining, self.quantity);
        self.launch.assert_ledger_holds();
    }

    /// Orders of accepted claims are there, whole; a repeated key is answered as at first.
    pub(super) fn assert_orders_and_keys(&self, address: SocketAddr, buyers: &[Buyer]) {
        let mut client = Client::new(address);
        for buyer in buyers {
            let Heard::Granted { claim, order } = &buyer.heard else {
                continue;
            };
            let found = client.get(&format!("/api/v1/orders/{order}"), &buyer.token);
            assert_eq!(found.status, 200, "{found:?}");
            assert_eq!(found.json()["items"][0]["product_id"], self.product);
            if let Some(key) = &buyer.key {
                let answer = client
                    .ask("POST", &self.claims(), &buyer.token, Some(key), "{}")
                    .expect("an answer");
                assert_eq!(answer.status, 201, "{answer:?}");
                assert_eq!(answer.json()["claim_id"], *claim, "the same key");
            }
        }
    }

    /// Units `(sold, left)` as the server tells.
    pub(super) fn units(&self, address: SocketAddr) -> (i64, i64) {
        let sale = Client::new(address).get(&self.path, "").json();
        let number = |key: &str| sale[key].as_i64().expect("a number");
        (number("sold"), number("remaining"))
    }
}

/// What a buyer was told.
#[derive(Debug)]
pub(super) enum Heard {
    /// It has not asked.
    Nothing,
    /// It asked, and the answer did not come or left open what was done.
    NoAnswer,
    Granted {
        claim: String,
        order: i64,
    },
    Refused(u16, String),
}

/// A buyer of one unit.
pub(super) struct Buyer {
    pub(super) token: String,
    pub(super) key: Option<String>,
    pub(super) heard: Heard,
}

impl Buyer {
    pub(super) fn claim(&mut self, client: &mut Client, path: &str) {
        let answer = client.ask("POST", path, &self.token, self.key.as_deref(), "{}");
        self.heard = match answer {
            Some(answer) if answer.status == 201 => {
                let claimed = answer.json();
                Heard::Granted {
                    claim: claimed["claim_id"].as_str().expect("an id").to_owned(),
                    order: claimed["order_id"].as_i64().expect("an id"),
                }
            }
            // These two say that a write may have been done all the same.
            Some(answer) if matches!(answer.code().as_str(), "timeout" | "unavailable") => {
                Heard::NoAnswer
            }
            Some(answer) => Heard::Refused(answer.status, answer.code()),
            None => Heard::NoAnswer,
        };
    }

    pub(super) fn holds_a_unit(&self) -> bool {
        match &self.heard {
            Heard::Granted { .. } => true,
            Heard::Refused(_, code) => code == "limit_reached",
            Heard::Nothing | Heard::NoAnswer => false,
        }
    }
}

/// Buyers at a sale, each thread with one connection, until all have asked or the server is gone.
pub(super) struct Crowd {
    threads: Vec<JoinHandle<Vec<Buyer>>>,
    grants: mpsc::Receiver<()>,
}

impl Crowd {
    pub(super) fn start(
        address: SocketAddr,
        sale: &Sale,
        buyers: Vec<Buyer>,
        connections: usize,
    ) -> Self {
        let (granted, grants) = mpsc::channel();
        let mut shares: Vec<Vec<Buyer>> = (0..connections).map(|_| Vec::new()).collect();
        for (number, buyer) in buyers.into_iter().enumerate() {
            shares[number % connections].push(buyer);
        }
        let threads = shares
            .into_iter()
            .map(|mut share| {
                let (path, granted) = (sale.claims(), granted.clone());
                std::thread::spawn(move || {
                    let mut client = Client::new(address);
                    for buyer in &mut share {
                        if !matches!(buyer.heard, Heard::Nothing) {
                            continue;
                        }
                        buyer.claim(&mut client, &path);
                        match buyer.heard {
                            // Nobody may be counting any more.
                            Heard::Granted { .. } => drop(granted.send(())),
                            Heard::NoAnswer => break,
                            Heard::Nothing | Heard::Refused(..) => {}
                        }
                    }
                    share
                })
            })
            .collect();
        Self { threads, grants }
    }

    /// Waits until `count` more claims were granted, or no more can be.
    pub(super) fn wait_for_grants(&self, count: usize) {
        for _ in 0..count {
            match self.grants.recv_timeout(PATIENCE) {
                Ok(()) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("no claim is granted any more"),
            }
        }
    }

    pub(super) fn go_home(self) -> Vec<Buyer> {
        self.threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a buyer"))
            .collect()
    }
}

/// Maps `items` on `threads` threads, each with its own worker; keeps their order.
fn in_parallel<T: Send, U: Send, W: FnMut(T) -> U + Send>(
    threads: usize,
    items: Vec<T>,
    worker: impl Fn() -> W + Sync,
) -> Vec<U> {
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|t| Mutex::new(Some(t))).collect();
    let next = AtomicUsize::new(0);
    let mut done: Vec<(usize, U)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut work, mut done) = (worker(), Vec::new());
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(at) else {
                            return done;
                        };
                        let taken = item.lock().expect("item").take().expect("taken once");
                        done.push((at, work(taken)));
                    }
                })
            })
            .collect();
        running
            .into_iter()
            .flat_map(|thread| thread.join().expect("a worker"))
            .collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
