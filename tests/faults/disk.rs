//! A disk that is full, and one that turned read-only.
//!
//! Must hold: no write is answered 2xx that is not on disk; reading goes on; when there is space
//! again, writing goes on without a restart. These tests mount file systems, which root alone may.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::ask::{Answer, Client};
use super::sale::{Heard, Sale};
use super::server::Launch;
use super::{skip, tool, until};

/// A file system that goes away with the test.
pub(super) struct Mount {
    pub(super) at: PathBuf,
}

impl Mount {
    /// `Err` says why this machine can't.
    pub(super) fn make(at: PathBuf, options: &[&str]) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("mounting needs root".to_owned());
        }
        std::fs::create_dir_all(&at).expect("a directory");
        let mut argv = vec!["mount"];
        argv.extend(options);
        argv.push(text(&at));
        tool(&argv)?;
        Ok(Self { at })
    }

    /// An ext4 file system in a file.
    pub(super) fn ext4(image: &Path, at: PathBuf) -> Result<Self, String> {
        let file = File::create(image).expect("a file");
        file.set_len(64 << 20).expect("its size");
        tool(&["mkfs.ext4", "-q", "-F", text(image)])?;
        Self::make(at, &["-o", "loop,errors=remount-ro", text(image)])
    }

    pub(super) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        tool(&["mount", "-o", &options, text(&self.at)]).expect("mounted anew");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if tool(&["umount", text(&self.at)]).is_err() {
            // Someone still uses it: it goes when they do.
            let _gone = tool(&["umount", "-l", text(&self.at)]);
        }
    }
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

pub(super) fn assert_unavailable(answer: &Answer, code: &str) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.code(), code, "{answer:?}");
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("application/problem+json"), "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

/// Takes every byte that is free.
pub(super) fn fill(path: &Path) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .expect("a file");
    for size in [1 << 16, 1 << 12, 1] {
        let block = vec![b'x'; size];
        while file.write_all(&block).is_ok() {}
    }
}

#[test]
fn a_full_disk_stops_writing_alone_and_space_brings_it_back() {
    let root = tempfile::tempdir().expect("temporary directory");
    let at = root.path().join("disk");
    let mount = match Mount::make(at, &["-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"]) {
        Ok(mount) => mount,
        Err(reason) => return skip(&reason),
    };
    // The log is given room ahead, the more the longer nobody writes: little of it is wanted here.
    let launch =
        Launch::new(&mount.at.join("data")).set("ONRUSH_DATABASE__WAL_READY_BYTES", 1_048_576);
    let (sale, server) = Sale::make(launch, 5_000);
    let mut buyers = sale.buyers(server.address, 400);
    let mut client = Client::new(server.address);
    for buyer in &mut buyers[..20] {
        buyer.claim(&mut client, &sale.claims());
        assert!(buyer.holds_a_unit(), "{:?}", buyer.heard);
    }
    fill(&mount.at.join("filler"));

    // The log has that room left, and a little in its last block.
    let refused = buyers[20..300]
        .iter_mut()
        .find_map(|buyer| {
            let (key, path) = (buyer.key.clone(), sale.claims());
            buyer.claim(&mut client, &path);
            (!buyer.holds_a_unit()).then_some((buyer, key))
        })
        .expect("the disk is full in the end");
    let (buyer, key) = refused;
    let again = client
        .ask("POST", &sale.claims(), &buyer.token, key.as_deref(), "{}")
        .expect("an answer");
    assert_unavailable(&again, "storage_full");
    assert!(
        matches!(buyer.heard, Heard::Refused(503, _)),
        "{:?}",
        buyer.heard
    );
    for path in [
        &sale.path,
        "/api/v1/products",
        "/livez",
        "/metrics",
        "/readyz",
    ] {
        assert_eq!(client.get(path, "").status, 200, "{path}: reading goes on");
    }
    for path in ["/health", "/readyz?writes"] {
        let answer = client.get(path, "");
        let check = &answer.json()["checks"]["writes"][0];
        assert_eq!(
            (answer.status, &check["status"]),
            (503, &"fail".into()),
            "{answer:?}"
        );
        let output = check["output"].as_str().unwrap_or_default();
        assert!(output.contains("nobody can log in"), "{answer:?}");
    }
    sale.assert_kept(server.address, &mut buyers);

    mount.remount("size=64m");
    until(
        "it is seen that there is room, though nobody writes",
        || client.get("/readyz?writes", "").status == 200,
    );
    let last = buyers.last_mut().expect("a buyer");
    until("writing works again", || {
        last.claim(&mut client, &sale.claims());
        last.holds_a_unit()
    });
    sale.assert_kept(server.address, &mut buyers);
    server.kill().assert_killed();
    let server = sale.launch.start();
    sale.assert_kept(server.address, &mut buyers);
    sale.assert_orders_and_keys(server.address, &buyers);
}

#[test]
fn a_full_disk_does_not_keep_a_shop_from_starting_to_read() {
    let root = tempfile::tempdir().expect("temporary directory");
    let at = root.path().join("disk");
    let mount = match Mount::make(at, &["-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"]) {
        Ok(mount) => mount,
        Err(reason) => return skip(&reason),
    };
    let (sale, server) = Sale::make(Launch::new(&mount.at.join("data")), 100);
    let mut buyers = sale.buyers(server.address, 10);
    let mut client = Client::new(server.address);
    for buyer in &mut buyers {
        buyer.claim(&mut client, &sale.claims());
    }
    server.kill().assert_killed();
    fill(&mount.at.join("filler"));
    match sale.launch.attempt() {
        Ok(server) => {
            assert_eq!(Client::new(server.address).get(&sale.path, "").status, 200);
            sale.assert_kept(server.address, &mut buyers);
        }
        Err(ended) => ended.assert_refusal(69, "full"),
    }
    mount.remount("size=64m");
    let server = sale.launch.start();
    sale.assert_kept(server.address, &mut buyers);
    sale.assert_orders_and_keys(server.address, &buyers);
}

/// A file that is open for writing forbids `remount,ro`, so the file system is made to turn
/// read-only as it does in real life: ext4 meets an error.
fn break_ext4(mount: &Mount) -> Result<(), String> {
    let device = tool(&["findmnt", "-n", "-o", "SOURCE", text(&mount.at)])?;
    let device = device.trim().trim_start_matches("/dev/");
    let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
    std::fs::write(&trigger, "1").map_err(|error| format!("{trigger}: {error}"))
}

#[test]
fn a_disk_that_turns_read_only_stops_writing_alone() {
    let root = tempfile::tempdir().expect("temporary directory");
    let made = Mount::ext4(&root.path().join("image"), root.path().join("disk"));
    let mount = match made {
        Ok(mount) => mount,
        Err(reason) => return skip(&reason),
    };
    let (sale, server) = Sale::make(Launch::new(&mount.at.join("data")), 100);
    let mut buyers = sale.buyers(server.address, 30);
    let mut client = Client::new(server.address);
    for buyer in &mut buyers[..10] {
        buyer.claim(&mut client, &sale.claims());
        assert!(buyer.holds_a_unit(), "{:?}", buyer.heard);
    }
    if let Err(reason) = break_ext4(&mount) {
        return skip(&reason);
    }
    for buyer in &mut buyers[10..15] {
        let answer = client
            .ask("POST", &sale.claims(), &buyer.token, None, "{}")
            .expect("an answer");
        assert_unavailable(&answer, "read_only");
    }
    for path in [&sale.path, "/api/v1/products", "/livez"] {
        assert_eq!(client.get(path, "").status, 200, "{path}: reading goes on");
    }
    let (sold, remaining) = sale.units(server.address);
    assert_eq!((sold, remaining), (10, 90), "none was sold after that");
    // It can't note its orderly stop, but it stops.
    server.stop();
    sale.launch
        .attempt()
        .err()
        .expect("there is nowhere to write")
        .assert_refusal(69, "read-only");

    let image = root.path().join("image");
    let at = mount.at.clone();
    drop(mount);
    // 1: errors were found and corrected, which the mark of the triggered one is.
    let _repaired = tool(&["e2fsck", "-p", text(&image)]);
    let mount = Mount::make(at, &["-o", "loop", text(&image)]).expect("mounted again");
    let server = sale.launch.start();
    sale.assert_kept(server.address, &mut buyers);
    sale.assert_orders_and_keys(server.address, &buyers);
    drop(server);
    drop(mount);
}

/// Whether the write or its sync meets it first depends on whether the log has room and on what the cache
/// still takes.
#[test]
fn a_file_system_that_turns_read_only_is_answered_alike_each_time() {
    for (round, ready_bytes) in [0, 4_194_304].into_iter().cycle().take(6).enumerate() {
        let root = tempfile::tempdir().expect("temporary directory");
        let made = Mount::ext4(&root.path().join("image"), root.path().join("disk"));
        let mount = match made {
            Ok(mount) => mount,
            Err(reason) => return skip(&reason),
        };
        let launch = Launch::new(&mount.at.join("data"))
            .set("ONRUSH_DATABASE__WAL_READY_BYTES", ready_bytes);
        let (sale, server) = Sale::make(launch, 100);
        let mut buyers = sale.buyers(server.address, 20);
        let mut client = Client::new(server.address);
        if ready_bytes > 0 {
            until("the log has room", || {
                let log = mount.at.join("data/onrush.db-wal");
                // Something has to be in it.
                let name = format!("r{}@example.com", rand::random::<u64>());
                let new = serde_json::json!({"email": name, "name": "r", "password": "a long enough password"});
                client.post("/api/v1/auth/register", "", &new);
                std::fs::metadata(log).is_ok_and(|meta| meta.len() >= ready_bytes)
            });
        }
        if let Err(reason) = break_ext4(&mount) {
            return skip(&reason);
        }
        for buyer in &mut buyers {
            let answer = client
                .ask("POST", &sale.claims(), &buyer.token, None, "{}")
                .unwrap_or_else(|| panic!("round {round}: no answer"));
            assert_unavailable(&answer, "read_only");
        }
        for (path, status) in [
            (&*sale.path, 200),
            ("/readyz", 200),
            ("/readyz?writes", 503),
        ] {
            assert_eq!(client.get(path, "").status, status, "round {round}: {path}");
        }
        server.stop();
    }
}

#[test]
fn a_directory_that_can_not_be_written_to_is_refused_in_one_sentence() {
    let root = tempfile::tempdir().expect("temporary directory");
    let at = root.path().join("disk");
    let mount = match Mount::make(at, &["-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"]) {
        Ok(mount) => mount,
        Err(reason) => return skip(&reason),
    };
    let (sale, server) = Sale::make(Launch::new(&mount.at.join("data")), 100);
    server.stop();
    mount.remount("ro");
    let refused = sale.launch.attempt().err().expect("it can't be written to");
    refused.assert_refusal(69, "read-only");
    mount.remount("rw");
    let server = sale.launch.start();
    assert_eq!(sale.units(server.address), (0, 100));
    server.stop();

    let open = root.path().join("open");
    std::fs::create_dir(&open).expect("a directory");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let refused = Launch::new(&open)
        .attempt()
        .err()
        .expect("others may read it");
    refused.assert_refusal(69, "chmod 700");
}
