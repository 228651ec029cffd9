//! Power cuts: what was not synced to disk is lost.
//!
//! The data directory is on an ext4 file system in a file; its forced shutdown drops everything that
//! no sync has asked for, as a power cut does. The server's threads are frozen first, so that none
//! is answered by a disk that is already gone. Neither torn sectors nor a drive's own cache are
//! modelled. Must hold: every accepted claim is there after the disk's journal was replayed; so is
//! every task that was answered 202, and one that was acknowledged stays completed.
//! `FAULT_CUTS` asks for more cuts than the usual number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::ask::Client;
use super::disk::{Mount, text};
use super::sale::{Crowd, Heard, Sale};
use super::server::{Launch, Server};
use super::{note, skip, tool, until};

const CUTS: usize = 20;
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: the journal is not flushed. The call needs
/// no crate and no unsafe code this way.
const SHUTDOWN: &str = "import fcntl, os, struct, sys\n\
    fd = os.open(sys.argv[1], os.O_RDONLY)\n\
    fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))\n";

fn is_frozen(pid: i32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("its threads")
        .all(|task| {
            let stat = task.expect("a thread").path().join("stat");
            // A thread that has just ended is frozen enough.
            let stat = std::fs::read_to_string(stat).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with(['T', 't']))
        })
}

fn cut_power(at: &Path) -> Result<(), String> {
    tool(&["python3", "-c", SHUTDOWN, text(at)]).map(drop)
}

/// Ends the server as a power cut does.
fn freeze_and_cut(server: Server, at: &Path) -> Result<(), String> {
    server.signal(Signal::SIGSTOP);
    let pid = server.pid().as_raw();
    until("all its threads stand still", || is_frozen(pid));
    let is_cut = cut_power(at);
    server.kill().assert_killed();
    is_cut
}

#[test]
fn after_power_cuts_every_accepted_claim_is_there() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (image, at) = (root.path().join("image"), root.path().join("disk"));
    let mut mount = match Mount::ext4(&image, at.clone()) {
        Ok(mount) => Some(mount),
        Err(reason) => return skip(&reason),
    };
    let cuts = std::env::var("FAULT_CUTS").map_or(CUTS, |text| text.parse().expect("a number"));
    let (sale, mut server) = Sale::make(Launch::new(&at.join("data")), 100 * cuts as i64);
    let mut buyers = sale.buyers(server.address, 90 * cuts);
    for cut in 0..cuts {
        let (heard, fresh): (Vec<_>, Vec<_>) = buyers
            .into_iter()
            .partition(|buyer| !matches!(buyer.heard, Heard::Nothing));
        let crowd = Crowd::start(server.address, &sale, fresh, 8);
        crowd.wait_for_grants(1 + cut * 37 % 60);
        let is_cut = freeze_and_cut(server, &at);
        buyers = crowd.go_home();
        if let Err(reason) = is_cut {
            return skip(&reason);
        }
        buyers.extend(heard);
        drop(mount.take());
        // Mounting replays the journal.
        mount = Some(Mount::make(at.clone(), &["-o", "loop", text(&image)]).expect("mounted"));
        server = sale.launch.start();
        sale.assert_kept(server.address, &mut buyers);
    }
    sale.assert_orders_and_keys(server.address, &buyers);
    drop(server);
    drop(mount);
    let checked = tool(&["e2fsck", "-f", "-n", text(&image)]);
    assert!(checked.is_ok(), "{checked:?}");
}

/// What producers and workers were told.
#[derive(Default)]
struct Told {
    accepted: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
}

/// Makes tasks, or works them off, until the server is gone.
fn busy(address: SocketAddr, token: String, told: Arc<Mutex<Told>>, makes: bool) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut client = Client::new(address);
        loop {
            let (path, body) = if makes {
                ("/api/v1/tasks", json!({"name": "x", "queue": "q"}))
            } else {
                let body = json!({"wait_seconds": 1, "lease_seconds": 1});
                ("/api/v1/queues/q/fetch", body)
            };
            let Some(answer) = client.post(path, &token, &body) else {
                return;
            };
            let answer = answer.json();
            if makes {
                let id = answer["id"].as_str().expect("an id").to_owned();
                told.lock().expect("told").accepted.insert(id);
                continue;
            }
            let Some(id) = answer["task"]["id"].as_str() else {
                continue;
            };
            let ack = json!({"attempt": answer["task"]["attempt"]});
            match client.post(&format!("/api/v1/tasks/{id}/ack"), &token, &ack) {
                Some(answer) if answer.status == 204 => {
                    told.lock()
                        .expect("told")
                        .acknowledged
                        .insert(id.to_owned());
                }
                // The lease ran out on the way.
                Some(answer) => assert_eq!(answer.status, 409, "{answer:?}"),
                None => return,
            }
        }
    })
}

/// The states of all tasks.
fn states(server: &Server, sale: &Sale) -> BTreeMap<String, String> {
    let mut client = Client::new(server.address);
    let (mut all, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        let path = format!("/api/v1/tasks?name=x&limit=200{cursor}");
        let page = client.get(&path, &sale.admin).json();
        let word = |value: &Value| value.as_str().expect("text").to_owned();
        for task in page["items"].as_array().expect("a list") {
            all.insert(word(&task["id"]), word(&task["state"]));
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

#[test]
fn after_power_cuts_every_accepted_task_is_there_and_what_was_done_stays_done() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (image, at) = (root.path().join("image"), root.path().join("disk"));
    let mut mount = match Mount::ext4(&image, at.clone()) {
        Ok(mount) => Some(mount),
        Err(reason) => return skip(&reason),
    };
    let cuts = std::env::var("FAULT_CUTS").map_or(CUTS / 2, |text| text.parse().expect("a number"));
    // A small memory, so that the folder is in use as well.
    let launch = Launch::new(&at.join("data")).set("ONRUSH_TASKS__INDEX_MEMORY_MAX", 100);
    let (sale, mut server) = Sale::make(launch, 10);
    let told = Arc::new(Mutex::new(Told::default()));
    for cut in 0..cuts {
        let before = told.lock().expect("told").acknowledged.len();
        let threads: Vec<_> = (0..6)
            .map(|number| {
                let token = sale.admin.clone();
                busy(server.address, token, Arc::clone(&told), number < 3)
            })
            .collect();
        until("some are done", || {
            told.lock().expect("told").acknowledged.len() > before + cut * 17 % 40
        });
        let is_cut = freeze_and_cut(server, &at);
        for thread in threads {
            thread.join().expect("it went home");
        }
        if let Err(reason) = is_cut {
            return skip(&reason);
        }
        drop(mount.take());
        // Mounting replays the journal.
        mount = Some(Mount::make(at.clone(), &["-o", "loop", text(&image)]).expect("mounted"));
        server = sale.launch.start();
        let (told, found) = (told.lock().expect("told"), states(&server, &sale));
        for id in &told.accepted {
            assert!(
                found.contains_key(id),
                "cut {cut}: accepted task {id} is gone"
            );
        }
        for id in &told.acknowledged {
            let state = found.get(id).map(String::as_str);
            assert_eq!(
                state,
                Some("completed"),
                "cut {cut}: task {id} was acknowledged"
            );
        }
    }
    // What is left is still given out, to the last one.
    let token = sale.admin.clone();
    let worker = busy(server.address, token, Arc::clone(&told), false);
    until("all are done", || {
        states(&server, &sale)
            .values()
            .all(|state| state == "completed")
    });
    server.kill().assert_killed();
    worker.join().expect("it went home");
    let told = told.lock().expect("told");
    note(&format!(
        "{cuts} cuts, {} tasks accepted, {} acknowledged",
        told.accepted.len(),
        told.acknowledged.len()
    ));
    drop(mount);
    let checked = tool(&["e2fsck", "-f", "-n", text(&image)]);
    assert!(checked.is_ok(), "{checked:?}");
}
