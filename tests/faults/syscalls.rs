//! System calls that fail or are the last: strace answers in the kernel's place.
//!
//! Must hold: after a sync that failed nothing is answered 2xx any more, the process ends with 74,
//! and a new start has everything that was accepted. strace counts the calls of each thread by
//! itself, so the numbers below are the writer's commits.

use std::path::Path;

use super::ask::Client;
use super::sale::{Buyer, Heard, Sale};
use super::server::{Ended, Launch};
use super::{skip, tool};

/// strace, injecting; the server stays our own child (`-D`).
fn injected(dir: &Path, fault: &str) -> Launch {
    let fault = format!("inject=fsync,fdatasync:{fault}");
    let calls = "trace=fsync,fdatasync";
    Launch::new(dir).under(&[
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        calls,
        "-e",
        &fault,
    ])
}

fn can_trace() -> Result<(), String> {
    tool(&["strace", "-f", "-qq", "-o", "/dev/null", "true"]).map(drop)
}

/// Claims one after the other until the server is gone; nothing may be granted after a failure.
fn claim_until_gone(launch: &Launch, sale: &Sale, unasked: &mut Vec<Buyer>) -> (Vec<Buyer>, Ended) {
    let server = match launch.attempt() {
        Ok(server) => server,
        Err(ended) => return (Vec::new(), ended),
    };
    let (mut client, mut asked, mut failed) = (Client::new(server.address), Vec::new(), false);
    loop {
        let mut buyer = unasked
            .pop()
            .expect("the fault comes before the buyers end");
        buyer.claim(&mut client, &sale.claims());
        assert!(
            !(failed && buyer.holds_a_unit()),
            "granted after a failed sync: {:?}",
            buyer.heard
        );
        failed |= !buyer.holds_a_unit();
        let gone = failed && std::net::TcpStream::connect(server.address).is_err();
        asked.push(buyer);
        if gone {
            return (asked, server.ended());
        }
    }
}

#[test]
fn after_a_sync_that_failed_nothing_is_accepted_and_a_new_start_has_everything() {
    if let Err(reason) = can_trace() {
        return skip(&reason);
    }
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(Launch::new(&dir), 5_000);
    let mut unasked = sale.buyers(server.address, 2_000);
    server.stop();
    let mut buyers = Vec::new();
    for commit in [1, 2, 7, 20] {
        let launch = injected(&dir, &format!("error=EIO:when={commit}+"));
        let (asked, ended) = claim_until_gone(&launch, &sale, &mut unasked);
        assert_eq!(ended.status.code(), Some(74), "{commit}: {ended:?}");
        ended.assert_refusal(74, "the disk failed");
        let granted = asked.iter().filter(|buyer| buyer.holds_a_unit()).count();
        // A log's first commit takes more than one sync.
        assert!(granted < commit, "{granted} commits before sync {commit}");
        assert!(granted > 0 || commit < 5, "the fault came in the middle");
        buyers.extend(asked);
        let server = sale.launch.start();
        sale.assert_kept(server.address, &mut buyers);
        server.stop();
    }
    let server = sale.launch.start();
    sale.assert_orders_and_keys(server.address, &buyers);
}

/// The log is written by a thread of its own, which the end of the process does not wait for.
#[test]
fn a_process_that_ends_for_its_disk_says_so_on_its_last_line_each_time() {
    if let Err(reason) = can_trace() {
        return skip(&reason);
    }
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(Launch::new(&dir), 5_000);
    let mut unasked = sale.buyers(server.address, 200);
    server.stop();
    for format in ["text", "json"].repeat(5) {
        let launch = injected(&dir, "error=EIO:when=9+").set("ONRUSH_LOG__FORMAT", format);
        let (_, ended) = claim_until_gone(&launch, &sale, &mut unasked);
        ended.assert_refusal(74, "start again");
    }
    // Nobody reads what it says: it ends all the same.
    let launch = injected(&dir, "error=EIO:when=9+")
        .set("ONRUSH_LOG__LEVEL", "trace")
        .unheard();
    let (_, ended) = claim_until_gone(&launch, &sale, &mut unasked);
    assert_eq!(ended.status.code(), Some(74), "{ended:?}");
}

#[test]
fn killed_in_the_middle_of_any_sync_everything_accepted_is_there() {
    if let Err(reason) = can_trace() {
        return skip(&reason);
    }
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(Launch::new(&dir), 5_000);
    let mut unasked = sale.buyers(server.address, 300);
    server.stop();
    let mut buyers = Vec::new();
    for sync in [1, 2, 3, 5, 9, 16] {
        let launch = injected(&dir, &format!("signal=KILL:when={sync}"));
        let (asked, ended) = claim_until_gone(&launch, &sale, &mut unasked);
        ended.assert_killed();
        assert!(
            asked
                .iter()
                .all(|buyer| !matches!(buyer.heard, Heard::Refused(..))),
            "granted or cut off"
        );
        buyers.extend(asked);
        let server = sale.launch.start();
        sale.assert_kept(server.address, &mut buyers);
        sale.assert_orders_and_keys(server.address, &buyers);
        server.stop();
    }
}
