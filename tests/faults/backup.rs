//! Backups with SQLite's own shell, as the README has them, also of what a crash left; and the files that
//! others could read.
//!
//! Must hold: a backup loses nothing, and the next start goes on; a log that somebody took away is missed,
//! and can be put back; no file of the data directory is open to others.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::ask::Client;
use super::damage::Fixture;
use super::disk::text;
use super::sale::Sale;
use super::server::Launch;
use super::{skip, tool};

fn can_back_up() -> Result<(), String> {
    tool(&["sqlite3", "--version"]).map(drop)
}

fn vacuum_into(dir: &Path, options: &[&str], target: &str) {
    let (database, sql) = (dir.join("onrush.db"), format!("VACUUM INTO '{target}'"));
    let mut argv = vec!["sqlite3"];
    argv.extend(options);
    argv.extend([text(&database), &sql]);
    tool(&argv).expect("a backup");
}

/// Everything that was sold, as the data directory has it.
fn assert_whole(fixture: &mut Fixture, dir: &Path) {
    let launch = Launch::new(dir);
    let server = launch.start();
    fixture
        .sale
        .assert_kept(server.address, &mut fixture.buyers);
    launch.assert_ledger_holds();
    server.stop();
}

#[test]
fn a_backup_of_what_a_crash_left_folds_the_log_and_the_start_goes_on() {
    if let Err(reason) = can_back_up() {
        return skip(&reason);
    }
    let mut fixture = Fixture::killed();
    let log = fs::read(fixture.root.path().join("data/onrush.db-wal")).expect("the log");
    for (options, is_folded) in [(&[][..], true), (&["-readonly"][..], false)] {
        let dir = fixture.copy();
        let backup = dir.with_extension("db");
        vacuum_into(&dir, options, text(&backup));
        let left = fs::read(dir.join("onrush.db-wal")).ok();
        assert_eq!(left.is_none(), is_folded, "{options:?}");
        assert!(
            left.is_none_or(|left| left == log),
            "{options:?}: untouched"
        );
        // Also for who only reads.
        Launch::new(&dir).assert_ledger_holds();
        assert_whole(&mut fixture, &dir);
        // The backup has it all as well.
        let restored = dir.with_extension("restored");
        fs::create_dir(&restored).expect("a directory");
        fs::set_permissions(&restored, fs::Permissions::from_mode(0o700)).expect("its mode");
        fs::rename(&backup, restored.join("onrush.db")).expect("moved");
        assert_whole(&mut fixture, &restored);
    }
}

#[test]
fn a_log_that_somebody_took_away_is_missed_and_can_be_put_back() {
    let mut fixture = Fixture::killed();
    for also in [None, Some("onrush.db-shm"), Some("onrush.wal-kept")] {
        let dir = fixture.copy();
        fs::remove_file(dir.join("onrush.db-wal")).expect("removed");
        if let Some(also) = also {
            fs::remove_file(dir.join(also)).expect("removed");
        }
        // Whoever looks does not make it worse.
        if can_back_up().is_ok() {
            vacuum_into(&dir, &[], text(&dir.with_extension("db")));
        }
        let launch = Launch::new(&dir);
        let refused = launch.attempt().err().expect("the log is missing");
        refused.assert_refusal(69, "onrush.db-wal is missing");
        let (status, _) = launch.run(&["stock", "verify"], "");
        assert_eq!(status.code(), Some(69), "{also:?}: also for who only reads");
        if also != Some("onrush.wal-kept") {
            refused.assert_refusal(69, "ln onrush.wal-kept onrush.db-wal");
            fs::hard_link(dir.join("onrush.wal-kept"), dir.join("onrush.db-wal")).expect("linked");
            assert_whole(&mut fixture, &dir);
            assert!(
                !dir.join("onrush.wal-kept").exists(),
                "it goes with an orderly stop"
            );
        }
    }
}

#[test]
fn no_file_is_open_to_others_also_not_one_that_an_earlier_version_made() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("data");
    let as_most_are_set = ["sh", "-c", "umask 022; exec \"$@\"", "sh"];
    let launch = || {
        Launch::new(&dir)
            .under(&as_most_are_set)
            .set("ONRUSH_CACHE__DISK_BYTES", 67_108_864)
    };
    let (sale, server) = Sale::make(launch(), 10);
    let mut buyers = sale.buyers(server.address, 3);
    buyers[0].claim(&mut Client::new(server.address), &sale.claims());
    let mut seen = Vec::new();
    let mut others_may = |when: &str| {
        let mut folders = vec![dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder") {
                // A file may go while it is looked at.
                let Ok((path, meta)) = entry.and_then(|one| Ok((one.path(), one.metadata()?)))
                else {
                    continue;
                };
                let mode = meta.permissions().mode() & 0o777;
                assert_eq!(mode & 0o077, 0, "{when}: {} has {mode:o}", path.display());
                seen.push(path.clone());
                if meta.is_dir() {
                    folders.push(path);
                }
            }
        }
    };
    others_may("while it serves");
    server.kill().assert_killed();
    others_may("after a crash");
    for name in ["onrush.db", "onrush.db-wal", "onrush.db-shm", "onrush.lock"] {
        let wide = fs::Permissions::from_mode(0o644);
        fs::set_permissions(dir.join(name), wide).expect(name);
    }
    let server = launch().start();
    others_may("after an earlier version");
    server.stop();
    others_may("after an orderly stop");
    for name in ["onrush.db", "onrush.db-wal", "onrush.sums"] {
        assert!(seen.contains(&dir.join(name)), "{name} was looked at");
    }
}

#[test]
fn a_rehearsal_fills_and_deletes_no_folder_that_was_there() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (sale, server) = Sale::make(Launch::new(&root.path().join("data")), 10);
    let victim = root.path().join("victim");
    fs::create_dir(&victim).expect("a directory");
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o700)).expect("its mode");
    let (trap, nowhere) = (root.path().join("trap"), root.path().join("nowhere"));
    std::os::unix::fs::symlink(&victim, &trap).expect("a link");
    std::os::unix::fs::symlink(root.path().join("none"), &nowhere).expect("a link");
    for target in [&victim, &trap, &nowhere] {
        let (status, _) = sale.launch.run(
            &[
                "rehearse",
                "--exit",
                "--buyers",
                "10",
                "--copy-to",
                text(target),
            ],
            "",
        );
        assert_eq!(status.code(), Some(2), "{}", target.display());
    }
    assert_eq!(fs::read_dir(&victim).expect("a folder").count(), 0);
    assert!(!root.path().join("none").exists());

    // What is made for a while goes to where such files go, and leaves nothing there.
    let folder = root.path().join("tmp");
    fs::create_dir(&folder).expect("a directory");
    let launch = Launch::new(&root.path().join("data")).set("TMPDIR", folder.display());
    let (status, _) = launch.run(&["config", "check"], "");
    assert!(status.success());
    let few = ["rehearse", "--exit", "--buyers", "20", "--port", "0"];
    let (status, text) = launch.run(&few, "");
    assert!(status.success(), "{text}");
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
    server.stop();
}
