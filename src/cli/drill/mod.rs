//! Attacks that anyone can make without breaking a rule of HTTP, and the honest crowd beside them: for
//! `onrush rehearse --hostile`, and for `cargo bench --bench attack`.
//!
//! Invariants: everything goes over real connections from addresses of 127.0.0.0/8, as many as asked
//! for; attackers come again as soon as they are sent away, and run on threads of their own with the
//! least priority, because in the field they bring their own processors and here they would take the
//! server's and the honest ones'; what the honest see is measured by themselves: an answer counts as served if it came within [`PATIENCE`] and is neither a refusal for
//! want of room (429, 503) nor a fault of the server; what attackers hold is dropped at the end of each
//! drill, and the next begins when the server has let go of it.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use self::line::Over;
use self::line::{Asked, Line};
use crate::clock::Stopwatch;

mod line;

/// Longer than anybody honest waits for a page.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time that is told apart from longer ones; more than [`PATIENCE`].
const TRACKED_MICROS: u64 = 60_000_000;
/// Honest clients at once.
const HONEST: usize = 16;
/// Between two requests of an honest client.
const THINKS: Duration = Duration::from_millis(20);
/// Requests of an honest client on one connection.
const KEEPS: usize = 10;
/// Before an attacker that was sent away comes again.
const RETRIES: Duration = Duration::from_millis(10);
/// Before the honest are measured beside an attack that has begun.
const BEGINS: Duration = Duration::from_millis(1_500);
/// Connections of the sale's buyers.
const BUYING: usize = 32;
/// Streams of an attacker on one connection of HTTP/2.
const STREAMS: usize = 100;
const ATTACKER_THREADS: usize = 2;
/// As `nice` has it.
const LEAST_PRIORITY: i32 = 19;
/// Longest that a sale is waited for.
const SALE_PATIENCE: Duration = Duration::from_secs(60);

/// Where a drill takes place.
#[derive(Clone)]
pub struct Field {
    /// Where the server listens.
    pub address: SocketAddr,
    /// An account that has logged in before, and its password.
    pub login: (String, String),
    /// Sessions: the first sixteen are the honest ones', the others buy in the sale, and attackers who
    /// need an account use them as well.
    pub tokens: Arc<Vec<String>>,
    /// Products that people look at.
    pub products: Arc<Vec<i64>>,
    /// Words that products are found by.
    pub words: Arc<Vec<String>>,
    /// What everybody's requests travel over.
    pub over: Over,
    /// Whether attackers have accounts, and show them.
    pub have_accounts: bool,
}

impl Field {
    async fn line(&self, from: Ipv4Addr) -> io::Result<Line> {
        Line::open(&self.over, from, self.address, true).await
    }
}

/// What attackers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// 100 at once log in as what is no account but the address of somebody else.
    OddLogins,
    /// 200 at once guess the password of the account that logs in.
    Guesses,
    /// 200 at once log in with an address of a megabyte.
    LongNames,
    /// 300 at once register accounts.
    Registrations,
    /// 1,000 connections hold a body of a megabyte but its last byte.
    HeldBodies,
    /// 1,500 connections ask for the longest list and read nothing.
    UnreadAnswers,
    /// 5,000 connections hold half a login each.
    HalfLogins,
    /// 64 at once search for words that many products have.
    Searches,
}

impl Attack {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::OddLogins,
        Self::Guesses,
        Self::LongNames,
        Self::Registrations,
        Self::HeldBodies,
        Self::UnreadAnswers,
        Self::HalfLogins,
        Self::Searches,
    ];

    /// What it is called in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::OddLogins => "odd-logins",
            Self::Guesses => "guesses",
            Self::LongNames => "long-names",
            Self::Registrations => "registrations",
            Self::HeldBodies => "held-bodies",
            Self::UnreadAnswers => "unread-answers",
            Self::HalfLogins => "half-logins",
            Self::Searches => "searches",
        }
    }

    fn connections(self) -> usize {
        match self {
            Self::OddLogins => 100,
            Self::Guesses | Self::LongNames => 200,
            Self::Registrations => 300,
            Self::HeldBodies => 1_000,
            Self::UnreadAnswers => 1_500,
            Self::HalfLogins => 5_000,
            Self::Searches => 64,
        }
    }

    /// The next request of one attacker; the number grows with each.
    fn request(self, field: &Field, number: usize) -> Asked {
        let login = |email: &str, password: &str| {
            let body = json!({"email": email, "password": password});
            Asked::post("/api/v1/auth/login", "", &body)
        };
        let token = &field.tokens[number % field.tokens.len()];
        let asked = match self {
            Self::OddLogins => login(&format!("@{}", honest_address(HONEST)), "wrong"),
            Self::Guesses => login(&field.login.0, &format!("wrong {number}")),
            Self::LongNames => {
                let parts = ["{\"email\":\"", "\",\"password\":\"wrong\"}"];
                Asked::parts("/api/v1/auth/login", "", parts, 1_000_000, 0)
            }
            Self::Registrations => {
                let body = json!({
                    "email": format!("bot-{number}-{:032x}@example.net", rand::random::<u128>()),
                    "name": "Hello Click https://example.net/",
                    "password": "a password of a bot",
                });
                Asked::post("/api/v1/auth/register", "", &body)
            }
            Self::HeldBodies => Asked::parts("/api/v1/orders", token, ["", ""], 999_999, 1),
            Self::UnreadAnswers => Asked::get("/api/v1/products?limit=200", ""),
            Self::HalfLogins => {
                Asked::parts("/api/v1/auth/login", "", ["{\"email\":\"a", ""], 0, 100)
            }
            Self::Searches => {
                let word = |at: usize| &field.words[at % field.words.len()];
                let path = format!(
                    "/api/v1/products?q={}%20{}&limit={}",
                    word(number),
                    word(number / field.words.len() + number + 1),
                    1 + number % 200
                );
                Asked::get(path, "")
            }
        };
        match field.have_accounts {
            true => asked.by(token),
            false => asked,
        }
    }

    fn holds(self) -> bool {
        matches!(
            self,
            Self::HeldBodies | Self::UnreadAnswers | Self::HalfLogins
        )
    }
}

/// What the honest saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seen {
    /// Requests.
    pub asked: u64,
    /// Requests that were served.
    pub served: u64,
    /// Milliseconds that half of the served took at most.
    pub p50_ms: f64,
    /// Milliseconds that 99 of 100 served took at most.
    pub p99_ms: f64,
    /// Logins of the known account.
    pub logins: u64,
    /// Those that succeeded.
    pub logged_in: u64,
    /// Milliseconds of the slowest that succeeded.
    pub login_ms_max: f64,
}

/// How a sale went.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sold {
    /// Units that were granted.
    pub units: u64,
    /// Seconds until the last of them was, or until nobody waited longer.
    pub seconds: f64,
}

/// How a drill went.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What attackers did.
    pub attack: &'static str,
    /// From how many addresses.
    pub addresses: u32,
    /// What the honest saw meanwhile.
    pub honest: Seen,
    /// The most memory that the server held, in MB.
    pub rss_mb: f64,
    /// Answers that attackers got, by status; `closed` is a connection that was ended on them.
    pub attackers: BTreeMap<String, u64>,
    /// The sale meanwhile, if there was one.
    pub sale: Option<Sold>,
}

fn honest_address(number: usize) -> Ipv4Addr {
    let [.., last] = number.to_be_bytes();
    Ipv4Addr::new(127, 250, 0, last.saturating_add(1))
}

fn attacker_address(number: usize, addresses: u32) -> Ipv4Addr {
    let [_, a, b, c] = (u32::try_from(number).unwrap_or_default() % addresses.max(1)).to_be_bytes();
    Ipv4Addr::new(127, 10 + a, b, c.saturating_add(1))
}

/// What attackers did and were told.
#[derive(Default)]
struct Tally {
    asked: AtomicU64,
    /// Answers by status.
    told: Mutex<BTreeMap<String, u64>>,
}

impl Tally {
    fn note(&self, word: impl Into<String>) {
        *self.told.lock().entry(word.into()).or_default() += 1;
    }
}

/// One of those who attack.
struct Attacker {
    attack: Attack,
    field: Field,
    from: Ipv4Addr,
    number: usize,
    tally: Arc<Tally>,
    /// What it shares with others who come over the same connection.
    shared: Arc<tokio::sync::Mutex<Option<Line>>>,
}

impl Attacker {
    async fn open(&self) -> io::Result<Line> {
        let mut shared = self.shared.lock().await;
        if let Some(line) = shared.as_ref().and_then(Line::another) {
            return Ok(line);
        }
        let reads = self.attack != Attack::UnreadAnswers;
        let line = Line::open(&self.field.over, self.from, self.field.address, reads).await?;
        *shared = line.another();
        Ok(line)
    }

    async fn run(mut self) {
        loop {
            if let Ok(mut line) = self.open().await {
                while self.ask(&mut line).await && !self.attack.holds() {}
            }
            sleep(RETRIES).await;
        }
    }

    /// Tells whether it was answered.
    async fn ask(&mut self, line: &mut Line) -> bool {
        self.number += self.attack.connections();
        self.tally.asked.fetch_add(1, Ordering::Relaxed);
        let asked = self.attack.request(&self.field, self.number);
        let answer = match self.attack {
            Attack::UnreadAnswers => line.ask_unread(&asked).await.map(|()| None),
            _ => line.ask(&asked).await.map(|(status, _)| Some(status)),
        };
        let word = match answer {
            Ok(Some(status)) => status.to_string(),
            Ok(None) | Err(_) => "closed".to_owned(),
        };
        self.tally.note(word);
        answer.is_ok()
    }
}

/// An honest crowd for so long.
pub async fn honest(field: &Field, time: Duration) -> Seen {
    let times = Arc::new(Mutex::new(
        Histogram::<u64>::new_with_max(TRACKED_MICROS, 3)
            .unwrap_or_else(|_| unreachable!("the bounds are allowed")),
    ));
    let (asked, served) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut crowd = JoinSet::new();
    let watch = Stopwatch::start();
    for number in 0..HONEST {
        let (field, times) = (field.clone(), Arc::clone(&times));
        let (asked, served) = (Arc::clone(&asked), Arc::clone(&served));
        crowd.spawn(async move {
            let mut line: Option<Line> = None;
            let mut count = number;
            while watch.elapsed() < time {
                let product = field.products[count % field.products.len()];
                let token = &field.tokens[number % field.tokens.len()];
                let bytes = match count % 10 {
                    0 => Asked::get("/api/v1/products?limit=20", ""),
                    1 => Asked::get("/api/v1/me", token),
                    2 => {
                        let items = json!({"items": [{"product_id": product, "quantity": 1}]});
                        // Another's each time: nobody honest leaves many orders unpaid.
                        let all = field.tokens.len();
                        let token = &field.tokens[(number + count / 10 * HONEST) % all];
                        Asked::post("/api/v1/orders", token, &items)
                    }
                    _ => Asked::get(format!("/api/v1/products/{product}"), ""),
                };
                if count % KEEPS == 0 {
                    line = None;
                }
                count += 1;
                asked.fetch_add(1, Ordering::Relaxed);
                let begun = Stopwatch::start();
                let exchange = async {
                    let mut open = match line.take() {
                        Some(open) => open,
                        None => field.line(honest_address(number)).await?,
                    };
                    let answer = open.ask(&bytes).await?;
                    line = Some(open);
                    io::Result::Ok(answer.0)
                };
                if let Ok(Ok(status)) = timeout(PATIENCE, exchange).await
                    && status != 429
                    && status < 500
                {
                    served.fetch_add(1, Ordering::Relaxed);
                    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    times.lock().saturating_record(micros);
                }
                sleep(THINKS).await;
            }
        });
    }
    let mut seen = logins(field, time).await;
    crowd.join_all().await;
    let times = times.lock();
    seen.asked = asked.load(Ordering::Relaxed);
    seen.served = served.load(Ordering::Relaxed);
    seen.p50_ms = times.value_at_quantile(0.5) as f64 / 1e3;
    seen.p99_ms = times.value_at_quantile(0.99) as f64 / 1e3;
    seen
}

/// One that logs in now and then, from where it did before.
async fn logins(field: &Field, time: Duration) -> Seen {
    let (mut seen, watch) = (Seen::default(), Stopwatch::start());
    while watch.elapsed() < time {
        let begun = Stopwatch::start();
        seen.logins += 1;
        if timeout(PATIENCE, log_in(field)).await.unwrap_or(false) {
            seen.logged_in += 1;
            seen.login_ms_max = seen.login_ms_max.max(begun.elapsed_seconds() * 1e3);
        }
        sleep(Duration::from_millis(500)).await;
    }
    seen
}

/// A word as part of a query, whatever it holds.
fn encoded(word: &str) -> String {
    word.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Keys of products, and words of their names that a search finds them by.
pub async fn catalogue(address: SocketAddr) -> io::Result<(Vec<i64>, Vec<String>)> {
    let mut line = Line::open(&Over::Plain, honest_address(0), address, true).await?;
    let asked = Asked::get("/api/v1/products?limit=200", "");
    let (_, body) = line.ask(&asked).await?;
    let page: serde_json::Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
    let items = page["items"].as_array().map_or(&[][..], Vec::as_slice);
    let mut words: Vec<String> = items
        .iter()
        .filter_map(|item| item["name"].as_str())
        .flat_map(str::split_whitespace)
        .map(encoded)
        .collect();
    words.sort_unstable();
    words.dedup();
    let products = items.iter().filter_map(|item| item["id"].as_i64());
    // Where there are none, nobody finds the one that is looked at.
    let products: Vec<i64> = products.collect();
    Ok((
        if products.is_empty() {
            vec![1]
        } else {
            products
        },
        words,
    ))
}

/// Logs the known account in once; also before the drills, so that it is known there.
pub async fn log_in(field: &Field) -> bool {
    let (email, password) = &field.login;
    let body = json!({"email": email, "password": password});
    let bytes = Asked::post("/api/v1/auth/login", "", &body);
    let address = honest_address(HONEST);
    match field.line(address).await {
        Ok(mut line) => line
            .ask(&bytes)
            .await
            .is_ok_and(|(status, _)| status == 200),
        Err(_) => false,
    }
}

/// Sells `units` of an open sale to the buyers of the field.
pub async fn sell(field: &Field, sale: i64, units: u64) -> Sold {
    let (next, granted) = (
        Arc::new(AtomicUsize::new(HONEST)),
        Arc::new(AtomicU64::new(0)),
    );
    let watch = Stopwatch::start();
    let mut buyers = JoinSet::new();
    for number in 0..BUYING {
        let (field, next, granted) = (field.clone(), Arc::clone(&next), Arc::clone(&granted));
        buyers.spawn(async move {
            let path = format!("/api/v1/flash-sales/{sale}/claims");
            let mut line: Option<Line> = None;
            while granted.load(Ordering::Relaxed) < units {
                let buyer = next.fetch_add(1, Ordering::Relaxed);
                let Some(token) = field.tokens.get(buyer) else {
                    return;
                };
                let bytes = Asked::post(path.as_str(), token, &json!({}));
                // A buyer who got no answer asks again.
                for _ in 0..20 {
                    let exchange = async {
                        let mut open = match line.take() {
                            Some(open) => open,
                            None => field.line(honest_address(100 + number)).await?,
                        };
                        let answer = open.ask(&bytes).await?;
                        line = Some(open);
                        io::Result::Ok(answer.0)
                    };
                    match timeout(PATIENCE, exchange).await {
                        Ok(Ok(201)) => {
                            granted.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        Ok(Ok(409)) => break,
                        _ => sleep(THINKS).await,
                    }
                }
            }
        });
    }
    let _late = timeout(SALE_PATIENCE, async {
        while buyers.join_next().await.is_some() {}
    })
    .await;
    Sold {
        units: granted.load(Ordering::Relaxed),
        seconds: watch.elapsed_seconds(),
    }
}

/// Threads for attackers.
fn attackers_runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(ATTACKER_THREADS)
        .thread_name("attackers")
        .on_thread_start(|| {
            // On Linux that is of one thread. Where it is refused they are a little stronger.
            let _refused = rustix::process::nice(LEAST_PRIORITY);
        })
        .enable_all()
        .build()
}

/// An attack that is going on. It ends as well when it is dropped.
pub struct Siege {
    attackers: JoinSet<()>,
    tally: Arc<Tally>,
    runtime: Option<Runtime>,
}

impl Siege {
    /// Attackers begin to come from so many addresses.
    pub fn begin(field: &Field, attack: Attack, addresses: u32) -> io::Result<Self> {
        let runtime = attackers_runtime()?;
        let tally = Arc::new(Tally::default());
        let mut attackers = JoinSet::new();
        // Over HTTP/2 an address brings its streams on as few connections as it can.
        let of_one = match field.over {
            Over::Plain | Over::Proxy => 1,
            Over::Http2(_) => attack.connections() / addresses.max(1) as usize,
        };
        let mut lines: BTreeMap<(Ipv4Addr, usize), _> = BTreeMap::new();
        for number in 0..attack.connections() {
            let from = attacker_address(number, addresses);
            let turn = number / addresses.max(1) as usize;
            let shared = lines.entry((from, turn / of_one.clamp(1, STREAMS)));
            let attacker = Attacker {
                attack,
                field: field.clone(),
                from,
                number,
                tally: Arc::clone(&tally),
                shared: Arc::clone(shared.or_default()),
            };
            attackers.spawn_on(attacker.run(), runtime.handle());
        }
        Ok(Self {
            attackers,
            tally,
            runtime: Some(runtime),
        })
    }

    /// Requests that they have begun.
    pub fn asked(&self) -> u64 {
        self.tally.asked.load(Ordering::Relaxed)
    }

    /// They let go of everything. Answers what they were told; see [`Outcome::attackers`].
    pub async fn end(mut self) -> BTreeMap<String, u64> {
        self.attackers.shutdown().await;
        std::mem::take(&mut *self.tally.told.lock())
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One attack, the honest beside it for so long, and then the sale. `rss_mb` tells what the server holds.
pub async fn drill(
    field: &Field,
    attack: Attack,
    addresses: u32,
    time: Duration,
    sale: Option<(i64, u64)>,
    rss_mb: impl Fn() -> f64 + Send + Sync + 'static,
) -> io::Result<Outcome> {
    let siege = Siege::begin(field, attack, addresses)?;
    let most = Arc::new(Mutex::new(0.0_f64));
    let weighing = tokio::spawn({
        let most = Arc::clone(&most);
        async move {
            loop {
                let now = rss_mb();
                {
                    let mut most = most.lock();
                    *most = most.max(now);
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    sleep(BEGINS).await;
    let seen = honest(field, time).await;
    let sale = match sale {
        Some((sale, units)) => Some(sell(field, sale, units).await),
        None => None,
    };
    let attackers = siege.end().await;
    weighing.abort();
    let rss_mb = *most.lock();
    Ok(Outcome {
        attack: attack.name(),
        addresses,
        honest: seen,
        rss_mb,
        attackers,
        sale,
    })
}
