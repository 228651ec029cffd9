//! Power cuts: what was not synced to disk is lost.
//!
//! The data directory is on an ext4 file system in a file; its forced shutdown drops everything that
//! no sync has asked for, as a power cut does. The server's threads are frozen first, so that none
//! is answered by a disk that is already gone. Neither torn sectors nor a drive's own cache are
//! modelled. Must hold: every accepted claim is there after the disk's journal was replayed.
//! `FAULT_CUTS` asks for more cuts than the usual number.

use std::path::Path;

use nix::sys::signal::Signal;

use super::disk::{Mount, text};
use super::sale::{Crowd, Heard, Sale};
use super::server::Launch;
use super::{skip, tool, until};

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
        server.signal(Signal::SIGSTOP);
        let pid = server.pid().as_raw();
        until("all its threads stand still", || is_frozen(pid));
        let is_cut = cut_power(&at);
        server.kill().assert_killed();
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
