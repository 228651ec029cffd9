//! A second process, an orderly stop under load, and files that are damaged, foreign or gone.
//!
//! Must hold: damage is refused in one sentence or what is served is sound; an accepted claim never
//! disappears in silence; nothing panics.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ask::Client;
use super::sale::{Buyer, Crowd, Heard, Sale};
use super::server::{Launch, Server};

#[test]
fn a_second_process_is_refused_and_the_first_serves_on() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (sale, server) = Sale::make(Launch::new(&root.path().join("data")), 10);
    let refused = sale.launch.attempt().err().expect("it is in use");
    refused.assert_refusal(69, &format!("in use by process {}", server.pid()));
    let key = [
        "api-key",
        "create",
        "--email",
        "a@example.com",
        "--name",
        "k",
    ];
    let (status, _) = sale
        .launch
        .run(&[&key[..], &["--scopes", "orders"]].concat(), "");
    assert_eq!(
        status.code(),
        Some(69),
        "a command that writes is refused as well"
    );
    let mut buyers = sale.buyers(server.address, 1);
    buyers[0].claim(&mut Client::new(server.address), &sale.claims());
    sale.assert_kept(server.address, &mut buyers);
    assert_eq!(sale.units(server.address).0, 1);
}

#[test]
fn sigterm_under_load_loses_no_accepted_claim() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (sale, mut server) = Sale::make(Launch::new(&root.path().join("data")), 5_000);
    let mut buyers = sale.buyers(server.address, 1_000);
    for round in 0..5 {
        let crowd = Crowd::start(server.address, &sale, buyers, 16);
        crowd.wait_for_grants(20 + 30 * round);
        server.signal(Signal::SIGTERM);
        let ended = server.ended();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert!(!ended.log.contains("connections were cut"), "{ended:?}");
        buyers = crowd.go_home();
        server = sale.launch.start();
        sale.assert_kept(server.address, &mut buyers);
    }
    sale.assert_orders_and_keys(server.address, &buyers);
}

/// A shop with claims, its directory as an orderly or a violent stop leaves it.
pub(super) struct Fixture {
    pub(super) root: tempfile::TempDir,
    pub(super) sale: Sale,
    pub(super) buyers: Vec<Buyer>,
    copies: u32,
}

impl Fixture {
    pub(super) fn new() -> (Self, Server) {
        let root = tempfile::tempdir().expect("temporary directory");
        let (sale, server) = Sale::make(Launch::new(&root.path().join("data")), 100);
        let mut buyers = sale.buyers(server.address, 50);
        let mut client = Client::new(server.address);
        for buyer in &mut buyers {
            buyer.claim(&mut client, &sale.claims());
            assert!(buyer.holds_a_unit(), "{:?}", buyer.heard);
        }
        let fixture = Self {
            root,
            sale,
            buyers,
            copies: 0,
        };
        (fixture, server)
    }

    /// Everything is in `onrush.db`; the lock file says whether the last stop was orderly.
    pub(super) fn folded(orderly: bool) -> Self {
        let (fixture, server) = Self::new();
        server.stop();
        if !orderly {
            fixture.sale.launch.start().kill().assert_killed();
        }
        fixture
    }

    /// The claims are in the write-ahead log.
    pub(super) fn killed() -> Self {
        let (fixture, server) = Self::new();
        server.kill().assert_killed();
        fixture
    }

    /// A copy of the data directory, to be damaged.
    pub(super) fn copy(&mut self) -> PathBuf {
        self.copies += 1;
        let to = self.root.path().join(format!("copy-{}", self.copies));
        let done = std::process::Command::new("cp")
            .arg("-a")
            .arg(self.root.path().join("data"))
            .arg(&to)
            .status();
        assert!(done.expect("cp").success());
        to
    }

    /// What starting on a damaged copy may come to: a refusal that names the damage, errors once it was
    /// found, or everything as it was. Whatever is answered 2xx must be right.
    fn assert_sound_or_refused(&self, dir: &Path, what: &str) -> bool {
        let server = match Launch::new(dir).attempt() {
            Err(ended) => {
                ended.assert_refusal(69, "damaged");
                return true;
            }
            Ok(server) => server,
        };
        let mut client = Client::new(server.address);
        let mut lost = 0;
        for buyer in &self.buyers {
            let Heard::Granted { claim, order } = &buyer.heard else {
                continue;
            };
            let path = format!("/api/v1/claims/{claim}");
            match client.ask("GET", &path, &self.sale.admin, None, "") {
                Some(answer) if answer.status == 200 && answer.json()["order_id"] == *order => {}
                // It ended, or it says that something is wrong.
                None => {}
                Some(answer) if answer.status >= 500 => {}
                Some(_) => lost += 1,
            }
        }
        let ended = server.kill();
        assert!(!ended.log.contains("panicked"), "{what}: {ended:?}");
        assert_eq!(
            lost, 0,
            "{what}: accepted claims were lost in silence; {ended:?}"
        );
        false
    }
}

pub(super) fn write_at(path: &Path, bytes: &[u8], at: u64) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("a file");
    file.write_all_at(bytes, at).expect("written");
}

#[test]
fn a_file_that_is_no_database_of_ours_is_refused_untouched() {
    let mut fixture = Fixture::folded(true);
    let other = fixture.root.path().join("other.db");
    rusqlite::Connection::open(&other)
        .and_then(|conn| conn.execute_batch("CREATE TABLE t (a); PRAGMA application_id = 7"))
        .expect("another program's database");
    let newer = fixture.root.path().join("newer.db");
    fs::copy(fixture.copy().join("onrush.db"), &newer).expect("a copy");
    write_at(&newer, &1_000_i32.to_be_bytes(), 60);
    for (bytes, words) in [
        (
            b"not a database, but someone's notes\n".repeat(100),
            "not a database",
        ),
        (b"short".to_vec(), "not a database"),
        (fs::read(other).expect("a file"), "another program"),
        (fs::read(newer).expect("a file"), "newer Onrush"),
    ] {
        let dir = fixture.copy();
        let file = dir.join("onrush.db");
        fs::write(&file, &bytes).expect("written");
        let refused = Launch::new(&dir).attempt().err().expect(words);
        refused.assert_refusal(69, words);
        assert_eq!(fs::read(&file).expect("a file"), bytes, "untouched");
    }
}

#[test]
fn a_database_that_was_cut_short_is_refused() {
    for orderly in [true, false] {
        let mut fixture = Fixture::folded(orderly);
        let size = fs::metadata(fixture.copy().join("onrush.db"))
            .expect("a file")
            .len();
        for length in [
            0,
            50,
            100,
            4_096,
            size / 2,
            size / 2 / 4_096 * 4_096,
            size - 4_096,
        ] {
            let dir = fixture.copy();
            fs::OpenOptions::new()
                .write(true)
                .open(dir.join("onrush.db"))
                .and_then(|file| file.set_len(length))
                .expect("cut");
            let what = format!("cut to {length} of {size} bytes, orderly stop {orderly}");
            let refused = fixture.assert_sound_or_refused(&dir, &what);
            assert!(refused, "{what}");
        }
    }
}

#[test]
fn a_damaged_page_is_refused_after_an_unclean_stop() {
    let mut fixture = Fixture::folded(false);
    let file = fixture.copy().join("onrush.db");
    let size = fs::metadata(&file).expect("a file").len();
    for page in (1..size / 4_096).step_by(5) {
        let dir = fixture.copy();
        // The first byte of a page says what kind it is; none is 0xff.
        write_at(&dir.join("onrush.db"), &[0xff], page * 4_096);
        let what = format!("page {}", page + 1);
        assert!(fixture.assert_sound_or_refused(&dir, &what), "{what}");
    }
}

/// A log ends, for SQLite, at its first frame that does not check. What was accepted behind that is
/// missed: the start is refused, or no more is gone than what was written last, which can't be told
/// from a write that was cut off. Who says so goes on with an earlier moment, which is whole: claims in
/// the order in which they were granted, up to some point.
#[test]
fn a_flipped_bit_in_the_log_is_refused_or_costs_the_last_write_alone() {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut fixture = Fixture::killed();
    let log = fs::read(fixture.root.path().join("data/onrush.db-wal")).expect("the log");
    // Behind its end there is room only.
    let end = log.len() - log.iter().rev().take_while(|byte| **byte == 0).count();
    let mut refusals = 0;
    for _ in 0..8 {
        let dir = fixture.copy();
        let mut bytes = log.clone();
        let at = random.random_range(0..end);
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::write(dir.join("onrush.db-wal"), &bytes).expect("written");
        let launch = Launch::new(&dir);
        let what = format!("bit of byte {at} of {end}, seed {seed}");
        let (server, spared) = match launch.attempt() {
            Ok(server) => (server, 1),
            Err(ended) => {
                ended.assert_refusal(69, "commits stand behind that");
                ended.assert_refusal(69, "remove onrush.lock");
                refusals += 1;
                let (status, _) = launch.run(&["stock", "verify"], "");
                assert_eq!(
                    status.code(),
                    Some(69),
                    "{what}: a command that reads is refused"
                );
                fs::remove_file(dir.join("onrush.lock")).expect("removed");
                (launch.start(), fixture.buyers.len())
            }
        };
        launch.assert_ledger_holds();
        let mut client = Client::new(server.address);
        let kept: Vec<bool> = fixture
            .buyers
            .iter()
            .map(|buyer| {
                let Heard::Granted { claim, .. } = &buyer.heard else {
                    return false;
                };
                let path = format!("/api/v1/claims/{claim}");
                client
                    .ask("GET", &path, &fixture.sale.admin, None, "")
                    .is_some_and(|answer| answer.status == 200)
            })
            .collect();
        assert!(kept.is_sorted_by(|a, b| a >= b), "{what}: {kept:?}");
        let gone = kept.iter().filter(|is_kept| !**is_kept).count();
        assert!(gone <= spared, "{what}: {gone} claims are gone");
        // What lay behind the damage is not found again behind what was written since.
        let late = serde_json::json!({"email": "late@example.com", "name": "Late",
            "password": "a long enough password"});
        let made = client.post("/api/v1/auth/register", "", &late);
        assert_eq!(made.expect("an answer").status, 201, "{what}");
        let ended = server.kill();
        assert!(!ended.log.contains("panicked"), "{what}: {ended:?}");
        launch.start().kill().assert_killed();
    }
    assert!(refusals > 0, "seed {seed}: none was in the way of others");
}

#[test]
fn a_log_that_is_gone_after_an_unclean_stop_is_missed() {
    let mut fixture = Fixture::killed();
    for gone in [
        &["onrush.db-wal"][..],
        &["onrush.db-wal", "onrush.db-shm"],
        &["onrush.db"],
    ] {
        let dir = fixture.copy();
        for name in gone {
            fs::remove_file(dir.join(name)).expect("removed");
        }
        let refused = fixture.assert_sound_or_refused(&dir, &format!("without {gone:?}"));
        assert!(refused, "without {gone:?}");
    }
    // The memory of the log alone may go: it is made anew.
    let dir = fixture.copy();
    fs::remove_file(dir.join("onrush.db-shm")).expect("removed");
    assert!(!fixture.assert_sound_or_refused(&dir, "without onrush.db-shm"));
}

#[test]
fn a_start_that_fails_does_not_make_the_next_one_miss_anything() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(Launch::new(&dir), 10);
    let mut buyers = sale.buyers(server.address, 5);
    let mut client = Client::new(server.address);
    for buyer in &mut buyers {
        buyer.claim(&mut client, &sale.claims());
    }
    server.kill().assert_killed();
    let taken = root.path().join("taken");
    fs::write(&taken, "a file, not a socket").expect("written");
    Launch::new(&dir)
        .set("ONRUSH_SERVER__UNIX_SOCKET", taken.display())
        .attempt()
        .err()
        .expect("it can't listen there")
        .assert_refusal(69, "can't listen");
    let server = sale.launch.start();
    sale.assert_kept(server.address, &mut buyers);
    sale.assert_orders_and_keys(server.address, &buyers);
}
