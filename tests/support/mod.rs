//! A whole server for a test: a free port, a temporary directory, a clock that the test moves, and
//! a client that says what came back.
//!
//! Invariant: when a [`Shop`] is dropped, its stock ledger adds up, whatever the test did to it.

pub mod aiosmtpd;
pub mod receiver;
pub mod smtp;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use onrush::app::App;
use onrush::auth::{self, NewAccount, Role};
use onrush::clock::{Clock, Stopwatch, Timestamp};
use onrush::config::Settings;
use onrush::monitor::Metrics;
use onrush::order::audit;
use onrush::store::StoreError;
use serde_json::{Value, json};

pub const PASSWORD: &str = "correct horse battery";
/// 2026-11-11, midnight UTC.
const START: &str = "2026-11-11T00:00:00Z";

pub struct Shop {
    runtime: tokio::runtime::Runtime,
    app: Option<App>,
    pub clock: Clock,
    pub address: SocketAddr,
    settings: Settings,
    _dir: tempfile::TempDir,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The stable code of a problem.
    pub fn code(&self) -> String {
        let code = &self.json()["code"];
        code.as_str().unwrap_or_default().to_owned()
    }

    /// The status and, for a problem, its code: what most tests compare.
    pub fn outcome(&self) -> String {
        if self.status < 400 {
            self.status.to_string()
        } else {
            format!("{} {}", self.status, self.code())
        }
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        if self.body.is_empty() {
            Value::Null
        } else {
            self.json()
        }
    }
}

/// A request to be sent.
pub struct Ask<'a> {
    shop: &'a Shop,
    method: &'a str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Ask<'_> {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn token(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn json(self, body: &Value) -> Self {
        self.raw("application/json", body.to_string().as_bytes())
    }

    pub fn raw(mut self, content_type: &str, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self.header("Content-Type", content_type)
    }

    pub fn send(self) -> Answer {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n",
            self.method, self.path
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || self.method != "GET" {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        let mut stream = TcpStream::connect(self.shop.address).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        stream.write_all(head.as_bytes()).expect("sent");
        // The server may answer before it has read all, and close.
        let _early = stream.write_all(&self.body);
        let mut bytes = Vec::new();
        let _reset = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).expect("text");
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no whole answer to {} {}", self.method, self.path));
        let status = head.split(' ').nth(1).expect("a status");
        Answer {
            status: status.parse().expect("a number"),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }
}

impl Shop {
    pub fn open() -> Self {
        Self::open_with(|_| ())
    }

    /// A shop with changed settings.
    pub fn open_with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut settings = Settings::default();
        settings.data.dir = dir.path().join("data");
        settings.server.port = 0;
        settings.server.shutdown_notice_ms = 0;
        settings.server.connections_per_address_max = 10_000;
        // All that is tried in vain comes from one address.
        settings.server.refusals_per_second = 0;
        settings.auth.argon2_memory_kib = 8;
        settings.auth.argon2_passes = 1;
        // The clock of a test does not wake anybody.
        settings.tasks.poll_interval_ms = 20;
        settings.schedules.poll_interval_ms = 20;
        // Only a test of it checks the ledger besides the one at the end.
        settings.orders.ledger_check_seconds = 0;
        // Customers pay by themselves; a test of who else may turns it off.
        settings.orders.customers_confirm_payment = true;
        // Orders stay as a test made them; a test of their processing turns it on.
        settings.orders.process = false;
        change(&mut settings);
        let clock = Clock::manual(Timestamp::parse_rfc3339(START).expect("a time"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let app = start(&runtime, &settings, &clock);
        Self {
            address: app.address,
            runtime,
            app: Some(app),
            clock,
            settings,
            _dir: dir,
        }
    }

    /// Stops in order and starts again on the same directory.
    pub fn restart(&mut self) {
        let app = self.app.take().expect("it runs");
        self.runtime.block_on(app.stop());
        let app = start(&self.runtime, &self.settings, &self.clock);
        self.address = app.address;
        self.app = Some(app);
    }

    pub fn data_dir(&self) -> &std::path::Path {
        &self.settings.data.dir
    }

    pub fn app(&self) -> &App {
        self.app.as_ref().expect("it runs")
    }

    pub fn get(&self, path: &str) -> Ask<'_> {
        self.ask("GET", path)
    }

    pub fn post(&self, path: &str) -> Ask<'_> {
        self.ask("POST", path)
    }

    pub fn ask<'a>(&'a self, method: &'a str, path: &str) -> Ask<'a> {
        Ask {
            shop: self,
            method,
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Makes an account; answers its id.
    pub fn account(&self, email: &str, role: Role) -> i64 {
        let new = NewAccount::checked(email, "Somebody", PASSWORD, &self.settings.auth)
            .expect("a valid account");
        let now = self.clock.now();
        let made = self
            .app()
            .store
            .write(move |tx| auth::create_account(tx, now, &new, role))
            .blocking();
        made.expect("an account").0
    }

    pub fn login(&self, email: &str) -> String {
        let answer = self
            .post("/api/v1/auth/login")
            .json(&json!({"email": email, "password": PASSWORD}))
            .send();
        text(&answer.expect(200)["token"])
    }

    /// A new account of this role, logged in.
    pub fn token(&self, role: Role) -> String {
        let email = format!("{:032x}@example.com", rand::random::<u128>());
        self.account(&email, role);
        self.login(&email)
    }

    /// A product with so many units at 10.00; answers its id.
    pub fn product(&self, staff: &str, stock: i64) -> i64 {
        let body =
            json!({"name": "Mug 杯子", "unit_amount": 1_000, "currency": "CNY", "stock": stock});
        let answer = self
            .post("/api/v1/products")
            .token(staff)
            .json(&body)
            .send();
        answer.expect(201)["id"].as_i64().expect("an id")
    }

    /// A sale that runs from now for an hour; `more` overrides its fields.
    pub fn sale(&self, staff: &str, product: i64, quantity: i64, more: Value) -> i64 {
        let now = self.clock.now();
        let mut body = json!({
            "product_id": product, "quantity": quantity, "unit_amount": 500,
            "starts_at": now, "ends_at": now.plus_seconds(3_600),
        });
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        let answer = self
            .post("/api/v1/flash-sales")
            .token(staff)
            .json(&body)
            .send();
        answer.expect(201)["id"].as_i64().expect("an id")
    }

    /// The product's free units.
    pub fn stock(&self, product: i64) -> i64 {
        let answer = self.get(&format!("/api/v1/products/{product}")).send();
        answer.expect(200)["stock"].as_i64().expect("a number")
    }

    /// Waits until `holds`; what background services do is not done at once.
    #[track_caller]
    pub fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        let watch = Stopwatch::start();
        while watch.elapsed() < Duration::from_secs(30) {
            if holds() {
                return;
            }
            std::thread::yield_now();
        }
        panic!("waited in vain: {what}");
    }
}

fn start(runtime: &tokio::runtime::Runtime, settings: &Settings, clock: &Clock) -> App {
    let metrics = Metrics::new().expect("metrics");
    runtime
        .block_on(App::start_with_clock(
            settings.clone(),
            metrics,
            clock.clone(),
        ))
        .expect("it starts")
}

/// Makes a data directory as version 0.1.0 left it: fifty products that were imported, one of them
/// archived since, and the words that their search knew.
pub fn unpack_first_version(dir: &std::path::Path) {
    use std::os::unix::fs::DirBuilderExt;
    let packed: &[u8] = include_bytes!("../fixtures/onrush-0.1.0.db.gz");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .read_to_end(&mut bytes)
        .expect("a database");
    let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
    made.expect("a directory");
    std::fs::write(dir.join("onrush.db"), bytes).expect("written");
}

pub fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

impl Drop for Shop {
    fn drop(&mut self) {
        let Some(app) = self.app.take() else {
            return;
        };
        let verdict = app
            .store
            .read_blocking::<_, StoreError>(|tx| audit::verify(tx, |_| Ok(())));
        self.runtime.block_on(app.stop());
        if !std::thread::panicking() {
            let verdict = verdict.expect("the ledger can be read");
            assert_eq!(verdict.problems, Vec::<String>::new());
        }
    }
}
