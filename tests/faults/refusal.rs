//! What a start or a command refuses, it leaves as it was; and a log that is another database's is known.
//!
//! Must hold: after a refusal every file of the data directory has the bytes that it had, and none was
//! made or is gone; a database with a log of its own is never refused for that, whatever other programs
//! did beside the server.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use serde_json::json;

use super::ask::Client;
use super::damage::{Fixture, write_at};
use super::sale::Sale;
use super::server::Launch;
use super::until;

/// Every file with its bytes, by its path.
fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let bytes = fs::read(&path).expect("a file");
                all.insert(path, bytes);
            }
        }
    }
    all
}

fn assert_same(before: &BTreeMap<PathBuf, Vec<u8>>, dir: &Path, what: &str) {
    let after = bytes_of(dir);
    let changed: Vec<&PathBuf> = before
        .keys()
        .chain(after.keys())
        .filter(|path| before.get(*path) != after.get(*path))
        .collect();
    assert!(changed.is_empty(), "{what} changed {changed:?}");
}

/// The server and every command refuse it, or read it, without a trace.
fn assert_refused_untouched(dir: &Path, what: &str, words: &str) {
    let launch = Launch::new(dir);
    let before = bytes_of(dir);
    let refused = launch.attempt().err();
    refused.expect(what).assert_refusal(69, words);
    assert_same(&before, dir, what);
    let key = [
        "api-key",
        "create",
        "--email",
        "a@example.com",
        "--name",
        "k",
        "--scopes",
        "orders",
    ];
    let (status, _) = launch.run(&key, "");
    assert_eq!(status.code(), Some(69), "{what}");
    assert_same(&before, dir, what);
    let days = [
        "report",
        "sales",
        "--from",
        "2026-01-01",
        "--to",
        "2026-01-31",
    ];
    for args in [&["stock", "verify"][..], &days, &["task", "list"]] {
        let (status, _) = launch.run(args, "");
        assert!(
            status.code().is_some(),
            "{what}: {args:?} ended by a signal"
        );
        assert_same(&before, dir, &format!("{args:?} with {what}"));
    }
}

/// Another program, whose end leaves the log as it is.
fn other_program(dir: &Path) -> Connection {
    let conn = Connection::open(dir.join("onrush.db")).expect("opened");
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .expect("set");
    conn
}

#[test]
fn a_start_that_refuses_the_data_leaves_every_byte_as_it_was() {
    let (mut fixture, server) = Fixture::new();
    let data = fixture.root.path().join("data");
    server.stop();
    let earlier = fs::read(data.join("onrush.db")).expect("an earlier file");
    let server = fixture.sale.launch.start();
    let backup = fixture.root.path().join("backup.db");
    let target = backup.to_str().expect("text");
    // As the README says.
    Connection::open(data.join("onrush.db"))
        .and_then(|conn| conn.execute("VACUUM INTO ?1", [target]))
        .expect("a backup");
    let backup = fs::read(backup).expect("a backup");
    let mut client = Client::new(server.address);
    for number in 0..20 {
        let body = json!({"email": format!("late{number}@example.com"), "name": "Late",
            "password": "a long enough password"});
        let made = client.post("/api/v1/auth/register", "", &body);
        assert_eq!(made.expect("an answer").status, 201);
    }
    server.kill().assert_killed();
    let other = fixture.root.path().join("other");
    let add = ["user", "add", "--email", "b@example.com"];
    let (status, _) = Launch::new(&other).run(&add, "a long enough password\n");
    assert!(status.success());
    let other = fs::read(other.join("onrush.db")).expect("another shop's file");

    let foreign = "belongs to another database";
    let database = |bytes: Vec<u8>| {
        move |dir: &Path| fs::write(dir.join("onrush.db"), &bytes).expect("written")
    };
    let without = |name: &'static str, bytes: Vec<u8>| {
        move |dir: &Path| {
            fs::write(dir.join("onrush.db"), &bytes).expect("written");
            fs::remove_file(dir.join(name)).expect("removed");
        }
    };
    let mut cut = fs::read(data.join("onrush.db")).expect("the file");
    // As the backup API leaves a copy.
    let mut copied = cut.clone();
    copied[40..44].copy_from_slice(&1_u32.to_be_bytes());
    cut.truncate(cut.len() / 2);
    type Make = Box<dyn Fn(&Path)>;
    let cases: Vec<(&str, &str, Make)> = vec![
        ("a backup", foreign, Box::new(database(backup.clone()))),
        ("an earlier file", foreign, Box::new(database(earlier))),
        ("another shop's file", foreign, Box::new(database(other))),
        (
            "a copy by the backup API",
            foreign,
            Box::new(database(copied)),
        ),
        (
            "a backup, no shared memory",
            foreign,
            Box::new(without("onrush.db-shm", backup.clone())),
        ),
        (
            "a backup, no lock file",
            foreign,
            Box::new(without("onrush.lock", backup)),
        ),
        ("half a file", "damaged", Box::new(database(cut))),
        ("an empty file", "empty", Box::new(database(Vec::new()))),
        (
            "no database",
            "not a database",
            Box::new(database(b"notes".repeat(99))),
        ),
        (
            "damaged pages",
            "damaged",
            Box::new(|dir| {
                let file = dir.join("onrush.db");
                let pages = fs::metadata(&file).expect("a file").len() / 4_096;
                for page in 1..pages {
                    write_at(&file, &[0xff], page * 4_096);
                }
            }),
        ),
        (
            "damaged pages, no shared memory",
            "damaged",
            Box::new(|dir| {
                write_at(&dir.join("onrush.db"), &[0xff], 2 * 4_096);
                write_at(&dir.join("onrush.db"), &[0xff], 9 * 4_096);
            }),
        ),
        (
            "a damaged log",
            "commits stand behind",
            Box::new(|dir| {
                write_at(&dir.join("onrush.db-wal"), &[0xa5; 8], 32 + 24 + 500);
            }),
        ),
        (
            "another program's file",
            "another program",
            Box::new(|dir| {
                write_at(&dir.join("onrush.db"), &7_u32.to_be_bytes(), 68);
            }),
        ),
        (
            "a newer file",
            "newer Onrush",
            Box::new(|dir| {
                write_at(&dir.join("onrush.db"), &1_000_u32.to_be_bytes(), 60);
            }),
        ),
        (
            "a file that is newer in its log alone",
            "newer Onrush",
            Box::new(|dir| {
                let newer = other_program(dir).pragma_update(None, "user_version", 1_000);
                newer.expect("written");
            }),
        ),
        (
            "another history",
            "can't be upgraded",
            Box::new(|dir| {
                let other = "PRAGMA user_version = 9; UPDATE refinery_schema_history SET checksum = '1' WHERE version = 3";
                other_program(dir).execute_batch(other).expect("written");
            }),
        ),
    ];
    for (what, words, make) in cases {
        let dir = fixture.copy();
        make(&dir);
        assert_refused_untouched(&dir, what, words);
    }
    // And what was not touched is whole.
    let server = fixture.sale.launch.start();
    fixture
        .sale
        .assert_kept(server.address, &mut fixture.buyers);
}

#[test]
fn a_start_that_refuses_its_settings_leaves_every_byte_as_it_was() {
    let (mut fixture, server) = Fixture::new();
    server.kill().assert_killed();
    let dir = fixture.copy();
    let notes = fixture.root.path().join("notes");
    fs::write(&notes, "neither a key nor a socket").expect("written");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let notes = notes.to_str().expect("text");
    type Case<'a> = (&'a [(&'a str, &'a str)], i32, &'a str);
    let cases: &[Case<'_>] = &[
        (
            &[("SERVER__TLS_CERT", notes), ("SERVER__TLS_KEY", notes)],
            2,
            "certificate",
        ),
        (&[("SERVER__UNIX_SOCKET", notes)], 69, "can't listen"),
        (
            &[("FAKTORY__ENABLED", "true"), ("FAKTORY__PORT", &port)],
            69,
            "can't listen",
        ),
        (
            &[("MAIL__SMTP_HOST", "localhost"), ("MAIL__SMTP_CA", notes)],
            2,
            notes,
        ),
        (
            &[("OUTGOING__EXTRA_CA", "/nowhere/ca.pem")],
            2,
            "/nowhere/ca.pem",
        ),
        (
            &[("OUTGOING__EXTRA_CA", notes)],
            2,
            "it holds no certificate",
        ),
        (&[("SERVER__BACKLOG", "many")], 2, "server.backlog"),
        (
            &[
                ("SCHEDULES__ENTRIES__NIGHTLY__TASK", "no_such_task"),
                ("SCHEDULES__ENTRIES__NIGHTLY__CRON", "0 99 * * *"),
            ],
            2,
            "nightly",
        ),
    ];
    for (settings, code, words) in cases {
        let before = bytes_of(&dir);
        let set = |launch: Launch, (name, value): &(&str, &str)| {
            launch.set(&format!("ONRUSH_{name}"), value)
        };
        let launch = settings.iter().fold(Launch::new(&dir), set);
        let refused = launch.attempt().err();
        refused.expect(words).assert_refusal(*code, words);
        assert_same(&before, &dir, &format!("{settings:?}"));
        // Where there was nothing, there is nothing.
        let fresh = fixture.root.path().join("fresh");
        let launch = settings.iter().fold(Launch::new(&fresh), set);
        assert!(launch.attempt().is_err(), "{settings:?}");
        assert!(!fresh.exists(), "{settings:?}");
    }
    let before = bytes_of(&dir);
    let lock = fs::File::open(dir.join("onrush.lock")).expect("a file");
    lock.lock().expect("locked");
    let refused = Launch::new(&dir).attempt().err().expect("it is locked");
    // The file names who was killed, and that is not who has it.
    refused.assert_refusal(69, "in use by another process");
    assert_same(&before, &dir, "a lock that is another's");
    drop(lock);
    let server = Launch::new(&dir).start();
    fixture
        .sale
        .assert_kept(server.address, &mut fixture.buyers);
}

#[test]
fn a_command_that_reads_leaves_a_directory_as_it_was() {
    let (mut fixture, server) = Fixture::new();
    server.stop();
    for is_orderly in [true, false] {
        if !is_orderly {
            fixture.sale.launch.start().kill().assert_killed();
        }
        let dir = fixture.copy();
        let before = bytes_of(&dir);
        Launch::new(&dir).assert_ledger_holds();
        assert_same(
            &before,
            &dir,
            &format!("after an orderly end: {is_orderly}"),
        );
    }
}

#[test]
fn a_log_of_its_own_is_never_refused_whatever_others_did_beside_the_server() {
    let root = tempfile::tempdir().expect("temporary directory");
    let data = root.path().join("data");
    let (sale, mut server) = Sale::make(Launch::new(&data), 1_000);
    let mut buyers = sale.buyers(server.address, 60);
    let beside = [
        "",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "CREATE TABLE another (x)",
        "PRAGMA wal_checkpoint(RESTART)",
        "DROP TABLE another",
        "VACUUM",
        "PRAGMA wal_checkpoint(PASSIVE)",
    ];
    for (round, sql) in beside.into_iter().enumerate() {
        let mut client = Client::new(server.address);
        for buyer in &mut buyers[round * 4..][..2] {
            buyer.claim(&mut client, &sale.claims());
        }
        Connection::open(data.join("onrush.db"))
            .and_then(|conn| conn.execute_batch(sql))
            .expect(sql);
        for buyer in &mut buyers[round * 4 + 2..][..2] {
            buyer.claim(&mut client, &sale.claims());
        }
        server.kill().assert_killed();
        if round % 2 == 1 {
            // It was killed as well, in the middle of its own work.
            let conn = other_program(&data);
            let written =
                conn.execute_batch("CREATE TABLE left_behind (x); DROP TABLE left_behind");
            written.expect("written");
        }
        server = sale.launch.start();
        sale.assert_kept(server.address, &mut buyers);
        // At once again, before anything else is written.
        server.kill().assert_killed();
        server = sale.launch.start();
    }
    sale.assert_orders_and_keys(server.address, &buyers);
}

/// SQLite deletes the log when its last user ends. The server must not seem gone to another program:
/// its locks are the process's, and closing any file of the database gives all of them up.
#[test]
fn another_program_that_ends_beside_the_server_leaves_its_log() {
    let root = tempfile::tempdir().expect("temporary directory");
    let data = root.path().join("data");
    let (sale, server) = Sale::make(Launch::new(&data), 10);
    let mut client = Client::new(server.address);
    let days = json!({"start_date": "2026-01-01", "end_date": "2026-01-31"});
    let asked = client.post("/api/v1/reports/sales", &sale.admin, &days);
    let id = asked.expect("an answer").json()["id"].clone();
    let id = id.as_str().expect("an id").to_owned();
    until("the report is made", || {
        client
            .get(&format!("/api/v1/tasks/{id}"), &sale.admin)
            .json()["state"]
            == "completed"
    });
    let count = Connection::open(data.join("onrush.db")).and_then(|conn| {
        conn.query_row("SELECT count(*) FROM users", [], |row| row.get::<_, i64>(0))
    });
    assert_eq!(count.expect("read"), 1);
    assert!(
        data.join("onrush.db-wal").exists(),
        "the log is the server's"
    );
    let mut buyers = sale.buyers(server.address, 5);
    for buyer in &mut buyers {
        buyer.claim(&mut client, &sale.claims());
    }
    server.kill().assert_killed();
    let server = sale.launch.start();
    sale.assert_kept(server.address, &mut buyers);
}
