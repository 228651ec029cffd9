//! A disk that changes what it keeps, without a word: bits and blocks of the database, of every kind of
//! page, while no server runs and while one does.
//!
//! Must hold: nothing is ever served as if nothing were. A start refuses, or the server says so in `/health`;
//! once damage is known nothing is written, reads that work go on, and `stock verify` tells sound from not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::ask::Client;
use super::damage::Fixture;
use super::disk::assert_unavailable;
use super::server::{Launch, Server};
use super::{note, until};

const PAGE_BYTES: u64 = 4_096;

/// What stands beside the database's own rows: so much that there are pages of every kind.
const FILLING: &str = "
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
    INSERT INTO idempotency_keys (key, caller, fingerprint, location, body, created_at)
    SELECT printf('filling-%05d', i), 'nobody', '', '',
        CASE WHEN i % 100 = 0 THEN hex(zeroblob(6000)) ELSE hex(randomblob(40)) END, 9000000000000000 FROM n;
    DELETE FROM idempotency_keys WHERE key BETWEEN 'filling-00500' AND 'filling-00900'";

fn database(dir: &Path) -> PathBuf {
    dir.join("onrush.db")
}

/// The pages by what they are for, from 1.
fn kinds(dir: &Path) -> BTreeMap<String, Vec<u64>> {
    let path = database(dir);
    let conn = Connection::open(&path).expect("opened");
    let mut kinds: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut listed = conn
        .prepare(
            "SELECT s.pageno, s.pagetype || ' of ' || coalesce(m.type, 'table') FROM dbstat s \
             LEFT JOIN sqlite_schema m ON m.name = s.name",
        )
        .expect("a statement");
    let rows = listed
        .query_map([], |row| {
            Ok((u64::from(row.get::<_, u32>(0)?), row.get(1)?))
        })
        .expect("rows");
    let mut free: Vec<u64> =
        (1..=fs::metadata(&path).expect("a file").len() / PAGE_BYTES).collect();
    for row in rows {
        let (page, kind) = row.expect("a row");
        free.retain(|other| *other != page);
        kinds.entry(kind).or_default().push(page);
    }
    kinds.insert("free".to_owned(), free);
    kinds.insert("header".to_owned(), vec![1]);
    kinds
}

/// A fixture after an orderly stop, with pages of every kind.
fn filled() -> (Fixture, BTreeMap<String, Vec<u64>>) {
    let fixture = Fixture::folded(true);
    let dir = fixture.root.path().join("data");
    let conn = Connection::open(database(&dir)).expect("opened");
    conn.execute_batch(FILLING).expect("filled");
    drop(conn);
    // What another program wrote is told, and is as good as any after the next orderly stop.
    let server = fixture.sale.launch.start();
    assert_eq!(health(&server)["checks"]["database"][0]["status"], "warn");
    server.stop();
    let server = fixture.sale.launch.start();
    assert_eq!(health(&server)["status"], "pass");
    server.stop();
    let kinds = kinds(&dir);
    for kind in [
        "leaf of table",
        "leaf of index",
        "internal of table",
        "internal of index",
        "overflow of table",
        "free",
    ] {
        assert!(
            kinds.get(kind).is_some_and(|pages| !pages.is_empty()),
            "{kind}: {kinds:?}"
        );
    }
    (fixture, kinds)
}

fn health(server: &Server) -> Value {
    Client::new(server.address).get("/health", "").json()
}

/// Changes a few bytes; `in_silence`, the time of the file's last change stays.
fn change(file: &Path, at: u64, bytes: &[u8], in_silence: bool) {
    let file = File::options().write(true).open(file).expect("a file");
    let modified = file.metadata().and_then(|meta| meta.modified());
    file.write_all_at(bytes, at).expect("written");
    if in_silence {
        file.set_modified(modified.expect("a time")).expect("set");
    }
}

#[test]
fn whatever_a_disk_changes_after_an_orderly_stop_is_refused_or_told() {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut fixture, kinds) = filled();
    let names: Vec<&String> = kinds.keys().collect();
    let (mut refused, mut told) = (0, 0);
    for round in 0..50 {
        let kind = names[round % names.len()];
        let page = *kinds[kind].choose(&mut random).expect("a page");
        let dir = fixture.copy();
        let file = database(&dir);
        let room = if kind == "header" { 100 } else { PAGE_BYTES };
        let at = (page - 1) * PAGE_BYTES + random.random_range(0..room - 16);
        // A bit, or what else a broken disk gives back.
        let count = if round % 2 == 0 { 1 } else { 16 };
        let mut bytes = vec![0; count];
        File::open(&file)
            .and_then(|file| file.read_exact_at(&mut bytes, at))
            .expect("read");
        match count {
            1 => bytes[0] ^= 1 << random.random_range(0..8),
            _ => bytes
                .iter_mut()
                .for_each(|byte| *byte ^= random.random_range(1..=255)),
        }
        // One that was copied or moved has another time.
        let in_silence = round % 4 < 2;
        change(&file, at, &bytes, in_silence);
        let what = format!(
            "round {round}, {kind}, {count} bytes from {at} (page {page}), in silence {in_silence}, seed {seed}"
        );
        let server = match Launch::new(&dir).attempt() {
            Err(ended) => {
                assert_eq!(ended.status.code(), Some(69), "{what}: {ended:?}");
                assert!(!ended.log.contains("panicked"), "{what}: {ended:?}");
                refused += 1;
                fs::remove_dir_all(dir).expect("removed");
                continue;
            }
            Ok(server) => server,
        };
        until("it is told", || health(&server)["status"] != "pass");
        told += 1;
        let ended = server.kill();
        assert!(!ended.log.contains("panicked"), "{what}: {ended:?}");
        fs::remove_dir_all(dir).expect("removed");
    }
    assert_eq!(refused + told, 50, "seed {seed}");
    note(&format!(
        "{refused} refused, {told} told, none served in silence"
    ));
}

/// The leaf pages of a table.
fn leaves(dir: &Path, table: &str) -> Vec<u64> {
    let conn = Connection::open(database(dir)).expect("opened");
    let mut listed = conn
        .prepare("SELECT pageno FROM dbstat WHERE name = ?1 AND pagetype = 'leaf'")
        .expect("a statement");
    let rows = listed
        .query_map([table], |row| row.get::<_, u32>(0))
        .expect("rows");
    rows.map(|row| row.expect("a page").into()).collect()
}

#[test]
fn damage_that_is_met_while_it_serves_stops_writing_alone_and_is_not_forgotten() {
    let fixture = Fixture::folded(true);
    let dir = fixture.root.path().join("data");
    let pages = leaves(&dir, "orders");
    let server = fixture.sale.launch.start();
    let mut client = Client::new(server.address);
    let (admin, product) = (&fixture.sale.admin, fixture.sale.product);
    for page in pages {
        // No page is of this kind.
        change(&database(&dir), (page - 1) * PAGE_BYTES, &[0xff; 64], true);
    }
    let met = client.get("/api/v1/orders?limit=200", admin);
    assert_unavailable(&met, "database_damaged");
    until("it is told", || health(&server)["status"] == "fail");
    for path in ["/health", "/readyz", "/readyz?writes"] {
        let answer = client.get(path, "");
        assert_eq!(answer.status, 503, "{answer:?}");
        let check = &answer.json()["checks"]["database"][0];
        assert_eq!(check["status"], "fail", "{answer:?}");
    }
    for path in [
        "/livez",
        "/api/v1/products",
        &fixture.sale.path,
        "/api/v1/me",
    ] {
        assert_eq!(
            client.get(path, admin).status,
            200,
            "{path}: reading goes on"
        );
    }
    // Whatever it is about.
    let order = json!({"items": [{"product_id": product, "quantity": 1}]});
    let login = json!({"email": "a@example.com", "password": "a long enough password"});
    let patch = json!({"name": "又名"});
    let claim = client.ask("POST", &fixture.sale.claims(), admin, None, "{}");
    let changed = client.ask(
        "PATCH",
        &format!("/api/v1/products/{product}"),
        admin,
        None,
        &patch.to_string(),
    );
    for answer in [
        client.post("/api/v1/orders", admin, &order),
        client.post("/api/v1/auth/login", "", &login),
        claim,
        changed,
    ] {
        assert_unavailable(&answer.expect("an answer"), "database_damaged");
    }
    let (status, text) = fixture.sale.launch.run(&["stock", "verify", "--json"], "");
    assert_eq!(status.code(), Some(1), "{text}");
    let verdict: Value = serde_json::from_str(&text).expect("JSON");
    let damaged = verdict["database"]["damaged"].as_array().expect("a list");
    assert!(
        damaged.iter().all(|one| one["what"] == "orders") && damaged.len() == 1,
        "{text}"
    );
    let sound = verdict["database"]["sound"].as_array().expect("a list");
    for table in ["products", "stock_movements", "users"] {
        assert!(sound.contains(&json!(table)), "{table}: {text}");
    }
    assert_eq!(
        verdict["problems_total"],
        Value::Null,
        "not without the orders: {text}"
    );

    server.stop();
    let refused = fixture.sale.launch.attempt().err();
    let refused = refused.expect("it is not forgotten");
    refused.assert_refusal(69, "damaged");
    fs::remove_file(dir.join("onrush.lock")).expect("removed");
    let refused = fixture.sale.launch.attempt().err();
    let refused = refused.expect("nor is it overlooked");
    refused.assert_refusal(69, "damaged");
    let (status, text) = fixture.sale.launch.run(&["stock", "verify", "--json"], "");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("\"what\":\"orders\""), "{text}");
}

#[test]
fn a_large_database_starts_at_once_and_is_compared_while_it_serves() {
    let (fixture, _) = filled();
    let dir = fixture.root.path().join("data");
    let conn = Connection::open(database(&dir)).expect("opened");
    // Long rows: there is much to read, and little to do for it.
    let much = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120)
        INSERT INTO idempotency_keys (key, caller, fingerprint, location, body, created_at)
        SELECT printf('much-%05d', i), 'nobody', '', '', hex(zeroblob(100000)), 9000000000000000 FROM n";
    conn.execute_batch(much).expect("filled");
    drop(conn);
    fixture.sale.launch.start().stop();
    let last = fs::metadata(database(&dir)).expect("a file").len() / PAGE_BYTES;
    // Behind all that a start has the time to compare, in the middle of a long row.
    change(&database(&dir), (last - 20) * PAGE_BYTES + 700, b"x", true);
    let server = match fixture.sale.launch.attempt() {
        Ok(server) => server,
        // On a fast machine.
        Err(ended) => return ended.assert_refusal(69, "damaged"),
    };
    until("it is told", || health(&server)["status"] == "fail");
    server.says("nobody has written to it since");
    let order = json!({"items": [{"product_id": fixture.sale.product, "quantity": 1}]});
    let answer = Client::new(server.address).post("/api/v1/orders", &fixture.sale.admin, &order);
    assert_unavailable(&answer.expect("an answer"), "database_damaged");
    server.stop();
    fixture
        .sale
        .launch
        .attempt()
        .err()
        .expect("it is not forgotten")
        .assert_refusal(69, "damaged");
}
