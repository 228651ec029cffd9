//! The tasks' delivery on a disk that is full, frozen, damaged under its hands, or that never answers.
//!
//! Must hold: no task that was accepted is lost, none is given out twice; `queue/` may be in any state
//! and tasks are delivered on; when the disk is well again, everything goes on without a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::ask::Client;
use super::disk::{Mount, assert_unavailable, fill, text};
use super::sale::Sale;
use super::server::{Launch, Server};
use super::{skip, tool, until};
use crate::support::receiver::{Reaction, Receiver};

/// Nearly all that waits is in `queue/`; a disk that hangs is given up soon.
fn launch(dir: &Path) -> Launch {
    Launch::new(dir)
        .set("ONRUSH_TASKS__INDEX_MEMORY_MAX", 100)
        .set("ONRUSH_TASKS__INDEX_TIMEOUT_MS", 500)
        .set("ONRUSH_OUTGOING__ALLOW_INTERNAL", "127.0.0.0/8")
}

/// Makes `count` tasks; answers their ids.
fn enqueue(server: &Server, sale: &Sale, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    let mut client = Client::new(server.address);
    while ids.len() < count {
        let task = json!({"name": "x", "queue": "q"});
        let body = json!({"tasks": vec![task; (count - ids.len()).min(500)]});
        let answer = client.post("/api/v1/tasks/batch", &sale.admin, &body);
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
        let made = answer.json();
        let made = made["tasks"].as_array().expect("a list").iter();
        ids.extend(made.map(|task| task["id"].as_str().expect("an id").to_owned()));
    }
    ids
}

/// Works off `count` tasks with several workers; answers which, and how often each was given out.
fn work(server: &Server, sale: &Sale, count: usize) -> BTreeMap<String, u32> {
    let (seen, left) = (Mutex::new(BTreeMap::new()), AtomicUsize::new(count));
    let take_one = || {
        left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
            left.checked_sub(1)
        })
        .is_ok()
    };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::new(server.address);
                while take_one() {
                    let mut run = Value::Null;
                    until("a task is given out", || {
                        let body = json!({"wait_seconds": 5});
                        let answer = client.post("/api/v1/queues/q/fetch", &sale.admin, &body);
                        run = answer.expect("an answer").json()["task"].clone();
                        run.is_object()
                    });
                    let id = run["id"].as_str().expect("an id").to_owned();
                    let path = format!("/api/v1/tasks/{id}/ack");
                    let body = json!({"attempt": run["attempt"]});
                    let answer = client.post(&path, &sale.admin, &body).expect("an answer");
                    assert_eq!(answer.status, 204, "{answer:?}");
                    *seen.lock().expect("a map").entry(id).or_default() += 1;
                }
            });
        }
    });
    seen.into_inner().expect("a map")
}

#[track_caller]
fn assert_once(given: BTreeMap<String, u32>, made: &[String], what: &str) {
    assert!(
        given.values().all(|times| *times == 1),
        "{what}: one was given out twice"
    );
    let mut made = made.to_vec();
    made.sort();
    assert_eq!(given.into_keys().collect::<Vec<_>>(), made, "{what}");
}

fn rebuilds(server: &Server, sale: &Sale) -> u64 {
    let text = Client::new(server.address)
        .get("/metrics", &sale.admin)
        .body;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("task_index_rebuilds_total "));
    line.expect("a counter").parse().expect("a number")
}

#[test]
fn a_full_disk_with_a_deep_queue_loses_nothing_and_goes_on_when_there_is_space() {
    let root = tempfile::tempdir().expect("temporary directory");
    let at = root.path().join("disk");
    let mount = match Mount::make(at, &["-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs"]) {
        Ok(mount) => mount,
        Err(reason) => return skip(&reason),
    };
    let receiver = Receiver::open(&[Reaction::Status(200)]);
    let (sale, server) = Sale::make(launch(&mount.at.join("data")), 10);
    let mut made = enqueue(&server, &sale, 2_000);
    // Of the server's own: due while the disk is full.
    let args = json!({"url": receiver.url(), "method": "POST"});
    let call = json!({"name": "http_request", "args": args, "countdown_seconds": 2});
    let mut client = Client::new(server.address);
    for _ in 0..5 {
        let answer = client
            .post("/api/v1/tasks", &sale.admin, &call)
            .expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    fill(&mount.at.join("filler"));
    // The log may have a little room left in its last block.
    let (one, mut refused) = (json!({"name": "x", "queue": "q"}), None);
    until("the disk is full", || {
        let answer = client
            .post("/api/v1/tasks", &sale.admin, &one)
            .expect("an answer");
        if answer.status == 202 {
            made.push(answer.json()["id"].as_str().expect("an id").to_owned());
            return false;
        }
        refused = Some(answer);
        true
    });
    assert_unavailable(&refused.expect("a refusal"), "storage_full");
    // A worker is told so as well, once not even its small write fits, and reading goes on.
    let (mut given, mut refused) = (Vec::new(), None);
    until("a worker is told so", || {
        let answer = client.post("/api/v1/queues/q/fetch", &sale.admin, &json!({}));
        let answer = answer.expect("an answer");
        if answer.status == 200 {
            given.push(answer.json()["task"].clone());
            return false;
        }
        refused = Some(answer);
        true
    });
    assert_unavailable(&refused.expect("a refusal"), "storage_full");
    let page = client.get("/api/v1/tasks?limit=1", &sale.admin);
    assert_eq!(page.status, 200, "{page:?}");
    let called = receiver.count();

    mount.remount("size=128m");
    until("the calls are made", || {
        receiver.count() >= called + 5 || receiver.count() >= 5
    });
    let mut done = work(&server, &sale, made.len() - given.len());
    for run in given {
        let path = format!("/api/v1/tasks/{}/ack", run["id"].as_str().expect("an id"));
        let body = json!({"attempt": run["attempt"]});
        let answer = client.post(&path, &sale.admin, &body).expect("an answer");
        assert_eq!(answer.status, 204, "{answer:?}");
        *done
            .entry(run["id"].as_str().expect("an id").to_owned())
            .or_default() += 1;
    }
    assert_once(done, &made, "after the disk was full");
    until("the calls are done", || {
        let path = "/api/v1/tasks?name=http_request";
        let page = client.get(path, &sale.admin).json();
        let items = page["items"].as_array().expect("a list").clone();
        items.len() == 5 && items.iter().all(|task| task["state"] == "completed")
    });
    let more = enqueue(&server, &sale, 300);
    assert_once(work(&server, &sale, 300), &more, "without a restart");
    server.stop();
}

#[test]
fn a_full_disk_under_the_queue_folder_alone_costs_nothing_but_the_folder() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    server.stop();
    let options = ["-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs"];
    let disk = match Mount::make(root.path().join("disk"), &options) {
        Ok(disk) => disk,
        Err(reason) => return skip(&reason),
    };
    // What fills it lies beside the folder: whatever is inside would be deleted.
    let (inside, filler) = (disk.at.join("queue"), disk.at.join("filler"));
    std::fs::create_dir(&inside).expect("a folder");
    let folder = Mount::make(dir.join("queue"), &["--bind", text(&inside)]).expect("bound");
    fill(&filler);
    let server = sale.launch.start();
    let made = enqueue(&server, &sale, 600);
    server.says("it goes on in memory");
    assert_once(work(&server, &sale, 600), &made, "full from the start");
    // Space comes back, and the folder is used again; then it fills up under its hands.
    std::fs::remove_file(&filler).expect("removed");
    let made = enqueue(&server, &sale, 600);
    // It is looked for when what memory holds is used up.
    let mut given = work(&server, &sale, 300);
    until("the folder is used", || sled_file(&folder.at).is_some());
    fill(&filler);
    let more = enqueue(&server, &sale, 600);
    let all: Vec<String> = made.into_iter().chain(more).collect();
    for (id, times) in work(&server, &sale, 900) {
        *given.entry(id).or_default() += times;
    }
    assert_once(given, &all, "full under its hands");
    server.stop();
}

/// Freezes a file system until it is dropped: whoever writes there waits.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn freeze(at: &'a Path) -> Result<Self, String> {
        tool(&["fsfreeze", "-f", text(at)]).map(|_| Self(at))
    }
}

/// A server that may be waiting for a frozen disk, and can't end before that is thawed: in this order
/// they go if the test fails.
struct OnIce<'a> {
    frozen: Frozen<'a>,
    server: Server,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // It stays frozen only if it never was.
        let _thawed = tool(&["fsfreeze", "-u", text(self.0)]);
    }
}

#[test]
fn a_frozen_disk_under_the_queue_folder_does_not_stop_the_delivery() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    server.stop();
    let image = root.path().join("image");
    let mount = match Mount::ext4(&image, dir.join("queue")) {
        Ok(mount) => mount,
        Err(reason) => return skip(&reason),
    };
    let server = sale.launch.start();
    let mut made = enqueue(&server, &sale, 300);
    until("some of them are on the disk", || {
        sled_file(&mount.at).is_some()
    });
    server.kill().assert_killed();
    // There is something to be taken up, which can be neither opened nor deleted.
    let frozen = match Frozen::freeze(&mount.at) {
        Ok(frozen) => frozen,
        Err(reason) => return skip(&reason),
    };
    let server = sale.launch.start();
    let ice = OnIce { frozen, server };
    ice.server.says("it goes on in memory");
    made.extend(enqueue(&ice.server, &sale, 300));
    assert_once(work(&ice.server, &sale, 600), &made, "frozen");
    assert!(rebuilds(&ice.server, &sale) > 0, "it was counted");
    let OnIce { frozen, server } = ice;
    drop(frozen);
    let made = enqueue(&server, &sale, 600);
    assert_once(work(&server, &sale, 600), &made, "thawed");
    server.stop();
}

/// Where sled keeps what waits.
fn sled_file(queue: &Path) -> Option<PathBuf> {
    let inside = std::fs::read_dir(queue).ok()?;
    let mut files = inside.flatten().map(|entry| entry.path().join("db"));
    files.find(|file| file.is_file())
}

#[test]
fn a_folder_that_never_answers_is_given_up_deleted_and_made_anew() {
    if let Err(reason) = tool(&["mkfifo", "--version"]) {
        return skip(&reason);
    }
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    let mut made = enqueue(&server, &sale, 300);
    until("some of them are on the disk", || {
        sled_file(&dir.join("queue")).is_some()
    });
    server.stop();
    // Whoever opens it waits for somebody to write into it, which nobody does.
    let file = sled_file(&dir.join("queue")).expect("it was kept");
    let conf = file.with_file_name("conf");
    std::fs::remove_file(&conf).expect("it was there");
    tool(&["mkfifo", text(&conf)]).expect("made");
    let server = sale.launch.start();
    server.says("it did not answer in time");
    until("it was counted", || rebuilds(&server, &sale) == 1);
    made.extend(enqueue(&server, &sale, 300));
    assert_once(work(&server, &sale, 600), &made, "hung");
    assert!(!conf.exists(), "it was deleted");
    server.stop();
}

/// What is done to sled's file.
type Damage = (&'static str, fn(&Path));

#[test]
fn what_is_done_to_the_queue_folder_while_it_is_used_loses_and_doubles_nothing() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, mut server) = Sale::make(launch(&dir), 10);
    let damages: [Damage; 5] = [
        ("deleted", |file| {
            std::fs::remove_file(file).expect("deleted")
        }),
        ("folder deleted", |file| {
            std::fs::remove_dir_all(file.parent().expect("a folder")).expect("deleted");
        }),
        ("emptied", |file| cut(file, 0)),
        ("cut short", |file| {
            cut(file, std::fs::metadata(file).expect("a file").len() / 3);
        }),
        ("flipped", |file| {
            use std::os::unix::fs::FileExt;
            let bytes = std::fs::read(file).expect("a file");
            let open = std::fs::OpenOptions::new()
                .write(true)
                .open(file)
                .expect("a file");
            for at in (0..bytes.len()).step_by(bytes.len() / 211 + 1) {
                open.write_all_at(&[bytes[at] ^ 0x10], at as u64)
                    .expect("written");
            }
        }),
    ];
    for (what, damage) in damages {
        for is_orderly in [true, false] {
            let made = enqueue(&server, &sale, 400);
            let mut file = None;
            until("some of them are on the disk", || {
                file = sled_file(&dir.join("queue"));
                file.is_some()
            });
            let before = rebuilds(&server, &sale);
            damage(&file.expect("a file"));
            if what.contains("deleted") {
                until("it was noticed", || rebuilds(&server, &sale) > before);
            }
            let mut given = work(&server, &sale, 200);
            if is_orderly {
                server.stop();
            } else {
                server.kill().assert_killed();
            }
            server = sale.launch.start();
            for (id, times) in work(&server, &sale, 200) {
                *given.entry(id).or_default() += times;
            }
            assert_once(given, &made, &format!("{what}, orderly {is_orderly}"));
        }
    }
    let ended = server.kill();
    assert!(
        !ended.log.contains("the delivery thread ended"),
        "{ended:?}"
    );
}

fn cut(file: &Path, length: u64) {
    let open = std::fs::OpenOptions::new().write(true).open(file);
    open.and_then(|file| file.set_len(length)).expect("cut");
}

/// The index knows of nothing that waits, and has seen every row; the database is brought back from a
/// copy in which all of them wait.
#[test]
fn a_database_that_is_restored_beside_a_newer_index_loses_nothing() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let (sale, server) = Sale::make(launch(&dir), 10);
    let made = enqueue(&server, &sale, 400);
    server.stop();
    let (database, copy) = (dir.join("onrush.db"), root.path().join("backup.db"));
    std::fs::copy(&database, &copy).expect("a backup");

    let server = sale.launch.start();
    assert_eq!(rebuilds(&server, &sale), 0, "an orderly end is taken up");
    assert_once(work(&server, &sale, 400), &made, "before");
    server.stop();

    std::fs::copy(&copy, &database).expect("restored");
    let server = sale.launch.start();
    assert_eq!(rebuilds(&server, &sale), 1);
    assert_once(work(&server, &sale, 400), &made, "restored");
    server.stop();
}
