//! What is typed, set or mounted wrongly, as a person at the terminal meets it.
//!
//! Must hold: a refusal is one sentence that says each thing once, and advice that can be followed;
//! its exit code is the documented one; a password is never shown; a default is what `--help` says.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use onrush::clock::Clock;
use serde_json::{Value, json};

use super::ask::Client;
use super::disk::text;
use super::sale::Sale;
use super::server::{BINARY, Ended, Launch};
use super::{PATIENCE, skip, until};

const USAGE: i32 = 2;
const UNAVAILABLE: i32 = 69;
const PASSWORD: &str = "correct horse battery";

/// The command in a directory of its own, without anything that the environment sets.
fn onrush(dir: &Path, args: &[&str]) -> Command {
    of(Path::new(BINARY), dir, args)
}

fn of(binary: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary);
    let set = std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("ONRUSH_") || ["HOST", "PORT", "WORKERS"].contains(&&*name)
    });
    for name in set {
        command.env_remove(name);
    }
    command
        .current_dir(dir)
        .args(args)
        .env("ONRUSH_AUTH__ARGON2_MEMORY_KIB", "8")
        .env("ONRUSH_AUTH__ARGON2_PASSES", "1")
        .stdin(Stdio::null());
    command
}

/// Runs it to its end: how, what it printed, what it said.
fn run(command: &mut Command) -> (Ended, String) {
    let output = command.output().expect("it can be run");
    let log = String::from_utf8(output.stderr).expect("text");
    let printed = String::from_utf8(output.stdout).expect("text");
    let status = output.status;
    (Ended { status, log }, printed)
}

#[track_caller]
fn assert_done(command: &mut Command) -> String {
    let (ended, printed) = run(command);
    assert!(ended.status.success(), "{command:?}: {ended:?}");
    printed
}

/// Refuses with this code and in these words, and gives no reason twice.
#[track_caller]
fn assert_refused(command: &mut Command, code: i32, words: &str) -> String {
    let (ended, _) = run(command);
    ended.assert_refusal(code, words);
    let parts: Vec<&str> = ended.log.trim().split(": ").collect();
    for (at, part) in parts.iter().enumerate() {
        assert!(!parts[at + 1..].contains(part), "twice: {}", ended.log);
    }
    ended.log
}

/// Waits until it has ended.
fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until("the command ends", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    status.expect("it ended")
}

/// Serves in `dir`, until it is said to be ready.
fn assert_serves(dir: &Path, args: &[&str]) {
    let mut child = onrush(dir, &[&["serve", "--port", "0"], args].concat())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be run");
    let stderr = child.stderr.take().expect("stderr");
    let mut log = Screen::of(File::from(OwnedFd::from(stderr)));
    log.until("is ready");
    child.kill().expect("it runs");
    wait(&mut child);
}

/// What appears, piece by piece.
struct Screen {
    pieces: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Screen {
    fn of(mut from: File) -> Self {
        let (sender, pieces) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1_024];
            // A terminal that nobody has open any more is an error, and the end.
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let seen = String::new();
        Self { pieces, seen }
    }

    fn until(&mut self, words: &str) {
        while !self.seen.contains(words) {
            let piece = self.pieces.recv_timeout(PATIENCE);
            let piece = piece.unwrap_or_else(|error| panic!("{error}: `{words}`: {}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&piece));
        }
    }
}

/// How a command ended whose password was typed at a terminal.
struct Typed {
    status: ExitStatus,
    shown: String,
    printed: String,
    echoes_again: bool,
}

/// Asks for a password at a terminal and types it once the question is there.
fn typed(dir: &Path, args: &[&str], keys: &[u8]) -> Typed {
    let pty = openpty(None, None).expect("a terminal");
    let slave = || Stdio::from(pty.slave.try_clone().expect("another handle"));
    let mut child = onrush(dir, args)
        .stdin(slave())
        .stderr(slave())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be run");
    let mut master = File::from(pty.master);
    let mut screen = Screen::of(master.try_clone().expect("another handle"));
    screen.until("Password");
    master.write_all(keys).expect("typed");
    let status = wait(&mut child);
    let mut printed = String::new();
    let mut out = child.stdout.take().expect("stdout");
    out.read_to_string(&mut printed).expect("text");
    // Nothing of the command comes behind this.
    let mut slave = File::from(pty.slave.try_clone().expect("another handle"));
    slave.write_all(b"THE END").expect("written");
    screen.until("THE END");
    let flags = tcgetattr(&pty.slave).expect("a terminal").local_flags;
    Typed {
        status,
        shown: screen.seen,
        printed,
        echoes_again: flags.contains(LocalFlags::ECHO | LocalFlags::ISIG),
    }
}

#[test]
fn a_generated_settings_file_passes_the_check_and_serves() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path();
    assert_eq!(
        assert_done(&mut onrush(dir, &["config", "init"])),
        "wrote onrush.toml\n"
    );
    let valid = "the settings are valid; 2 differ from their defaults\n";
    assert_eq!(assert_done(&mut onrush(dir, &["config", "check"])), valid);
    assert_serves(dir, &[]);
    assert!(
        dir.join("onrush-data/onrush.db").exists(),
        "the default of --data-dir"
    );

    let named = ["config", "init", "--config", "etc/shop.toml"];
    let told = assert_done(&mut onrush(dir, &named));
    assert!(told.contains("etc/shop.toml"), "{told}");
    assert_refused(&mut onrush(dir, &named), USAGE, "exists; remove it first");
    let check = ["config", "check", "--config", "etc/shop.toml"];
    assert_eq!(assert_done(&mut onrush(dir, &check)), valid);
    let both = ["config", "init", "a.toml", "--config", "b.toml"];
    let (ended, _) = run(&mut onrush(dir, &both));
    assert_eq!(ended.status.code(), Some(USAGE), "{ended:?}");
    assert!(!dir.join("a.toml").exists() && !dir.join("b.toml").exists());
}

#[test]
fn the_check_refuses_what_a_start_would_refuse() {
    let root = tempfile::tempdir().expect("temporary directory");
    for (name, value, words) in [
        ("ONRUSH_LOG__LEVEL", "loud=very=much", "log.level"),
        ("ONRUSH_MAIL__FROM", "nobody", "mail.from"),
        ("ONRUSH_OUTGOING__EXTRA_CA", "/nowhere.pem", "/nowhere.pem"),
        ("ONRUSH_SERVER__TLS_CERT", "/nowhere.pem", "/nowhere.pem"),
        (
            "ONRUSH_SCHEDULES__ENTRIES__NIGHTLY__TASK",
            "x",
            "entries.nightly",
        ),
        ("HOST", "localhost", "`localhost` is no address"),
        ("ONRUSH_SERVER", "5", "is a section"),
    ] {
        for args in [&["config", "check"][..], &["serve", "--port", "0"]] {
            let mut command = onrush(root.path(), args);
            command
                .env("ONRUSH_SERVER__TLS_KEY", "/nowhere.pem")
                .env(name, value);
            if name != "ONRUSH_SERVER__TLS_CERT" {
                command.env_remove("ONRUSH_SERVER__TLS_KEY");
            }
            assert_refused(&mut command, USAGE, words);
        }
    }
}

#[test]
fn a_refusal_says_each_thing_once_and_ends_with_its_code() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path();
    File::create(dir.join("FILE")).expect("a file");
    std::fs::write(dir.join("bad.csv"), "color\nred\n").expect("a file");
    let add = ["user", "add", "--email", "a@example.com"];
    let mut command = onrush(dir, &add);
    assert_done(command.stdin(File::from(piped(PASSWORD))));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();

    for (args, code, words) in [
        (
            &["serve", "--data-dir", "FILE"][..],
            UNAVAILABLE,
            "it is no directory",
        ),
        (
            &["serve", "--data-dir", "FILE/data"],
            UNAVAILABLE,
            "it is no directory",
        ),
        (
            &["serve", "--port", &port],
            UNAVAILABLE,
            "another process listens there",
        ),
        (
            &["serve", "--host", "203.0.113.9"],
            UNAVAILABLE,
            "no such address",
        ),
        (
            &["demo", "--port", &port, "--exit"],
            UNAVAILABLE,
            "another process listens there",
        ),
        (
            &["stock", "verify", "--data-dir", "FILE"],
            UNAVAILABLE,
            "FILE is a file",
        ),
        (
            &["stock", "verify", "--data-dir", "none"],
            UNAVAILABLE,
            "no database in none",
        ),
        (
            &["rehearse", "--data-dir", "none"],
            UNAVAILABLE,
            "no database in none",
        ),
        (
            &["task", "list", "--data-dir", "none"],
            UNAVAILABLE,
            "no database in none",
        ),
        (
            &[
                "user",
                "promote",
                "--email",
                "b@example.com",
                "--data-dir",
                "none",
            ],
            UNAVAILABLE,
            "no database in none",
        ),
        (
            &["user", "promote", "--email", "b@example.com"],
            USAGE,
            "`onrush user add`",
        ),
        (
            &[
                "user",
                "promote",
                "--email",
                "a@example.com",
                "--role",
                "king",
            ],
            USAGE,
            "`king` is no role",
        ),
        (
            &[
                "api-key",
                "create",
                "--email",
                "a@example.com",
                "--name",
                "",
                "--scopes",
                "work",
            ],
            USAGE,
            "name must",
        ),
        (
            &[
                "api-key",
                "create",
                "--email",
                "b@example.com",
                "--name",
                "k",
                "--scopes",
                "work",
            ],
            USAGE,
            "there is no such account",
        ),
        (
            &["task", "show", "019a0000-0000-7000-8000-000000000000"],
            USAGE,
            "no task",
        ),
        (
            &["task", "enqueue", "resize", "--args", "{"],
            USAGE,
            "--args is no JSON",
        ),
        (&["task", "enqueue", "", "--queue", "q"], USAGE, "name must"),
        (
            &["rehearse", "--exit"],
            USAGE,
            "no open sale with units left",
        ),
        (
            &["rehearse", "--product", "9", "--units", "1"],
            USAGE,
            "there is no product 9",
        ),
        (
            &["rehearse", "--product", "9", "--units", "0"],
            USAGE,
            "quantity must",
        ),
        (
            &["rehearse", "--sale", "9"],
            USAGE,
            "there is no flash sale 9",
        ),
        (
            &["import", "products", "none.csv"],
            USAGE,
            "none.csv: No such file",
        ),
        (&["import", "products", "bad.csv"], USAGE, "`color`"),
        (
            &[
                "report",
                "sales",
                "--from",
                "2026-13-01",
                "--to",
                "2026-11-30",
            ],
            USAGE,
            "--from must",
        ),
        (
            &["config", "check", "--config", "none.toml"],
            USAGE,
            "none.toml: No such file",
        ),
        (&["config", "init", "FILE/x.toml"], USAGE, "FILE/x.toml"),
    ] {
        assert_refused(&mut onrush(dir, args), code, words);
    }
    assert!(!dir.join("none").exists(), "what only reads makes nothing");
}

/// A pipe with `text` as its first line, which stays open on neither side.
fn piped(text: &str) -> OwnedFd {
    let (read, write) = nix::unistd::pipe().expect("a pipe");
    let mut write = File::from(write);
    writeln!(write, "{text}").expect("written");
    read
}

#[test]
fn a_directory_that_others_can_read_comes_with_advice_that_can_be_followed() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("my volume");
    std::fs::create_dir(&dir).expect("a directory");
    std::fs::set_permissions(&dir, Permissions::from_mode(0o2775)).expect("its mode");
    let dir = text(&dir);
    let said = assert_refused(
        &mut onrush(root.path(), &["serve", "--data-dir", dir]),
        UNAVAILABLE,
        "mode 2775",
    );
    // A volume that keeps its mode needs the second way, so both must work.
    let advice = said.trim().split_once("run: ").expect("advice").1;
    let (chmod, inside) = advice.split_once("; or, ").expect("two ways");
    let inside = inside.split_once("--data-dir ").expect("a directory").1;
    assert_eq!(inside, format!("'{dir}/onrush'"));
    assert_serves(root.path(), &["--data-dir", &format!("{dir}/onrush")]);
    assert_done(Command::new("sh").args(["-c", chmod]));
    assert_serves(root.path(), &["--data-dir", dir]);
}

#[test]
fn a_volume_of_another_user_is_not_to_be_closed_but_used_from_within() {
    if !nix::unistd::geteuid().is_root() {
        return skip("another user needs root");
    }
    let root = tempfile::tempdir().expect("temporary directory");
    std::fs::set_permissions(root.path(), Permissions::from_mode(0o755)).expect("its mode");
    let (binary, nobody) = (root.path().join("onrush"), 65_534);
    // Where the tests were built, another user may not look.
    std::fs::copy(BINARY, &binary).expect("a copy");
    let volume = root.path().join("volume");
    std::fs::create_dir(&volume).expect("a directory");
    chown(&volume, None, Some(nobody)).expect("its group");
    std::fs::set_permissions(&volume, Permissions::from_mode(0o2775)).expect("its mode");
    let as_nobody = |dir: &Path, args: &[&str]| {
        let mut command = of(&binary, root.path(), args);
        command
            .args(["--data-dir", text(dir)])
            .uid(nobody)
            .gid(nobody);
        command
    };
    let verify = |dir: &Path| as_nobody(dir, &["stock", "verify"]);
    let add = |dir: &Path| {
        let mut command = as_nobody(dir, &["user", "add", "--email", "a@example.com"]);
        command.stdin(File::from(piped(PASSWORD)));
        command
    };
    let inside = volume.join("onrush");
    let words = format!("--data-dir {}", inside.display());
    let said = assert_refused(&mut add(&volume), UNAVAILABLE, &words);
    assert!(!said.contains("chmod"), "{said}");
    assert_done(&mut add(&inside));
    assert_done(&mut verify(&inside));
    // One that holds a shop is not left behind for an empty one.
    std::fs::copy(inside.join("onrush.db"), volume.join("onrush.db")).expect("a copy");
    let said = assert_refused(&mut add(&volume), UNAVAILABLE, "chown");
    let advice = said.trim().split_once("run: ").expect("advice").1;
    assert_done(Command::new("sh").args(["-c", advice]));
    assert_done(&mut verify(&volume));
}

#[test]
fn a_password_at_a_terminal_is_hidden_and_ends_with_enter() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path();
    let add = ["user", "add", "--role", "admin", "--email", "a@example.com"];

    let weak = typed(dir, &add, b"short7\n");
    assert_eq!(weak.status.code(), Some(USAGE), "{}", weak.shown);
    assert!(
        weak.shown.contains("password must have at least 8"),
        "{}",
        weak.shown
    );
    let none = typed(dir, &add, b"\n");
    assert_eq!(none.status.code(), Some(USAGE), "{}", none.shown);
    let cursor = typed(dir, &add, b"correct horse\x1b[D battery\n");
    assert_eq!(cursor.status.code(), Some(USAGE), "{}", cursor.shown);
    let stopped = typed(dir, &add, b"correct horse\x03");
    assert_eq!(stopped.status.code(), Some(130), "{}", stopped.shown);
    assert!(!dir.join("onrush-data").exists(), "nothing was made so far");

    let line = format!("{PASSWORD}\n");
    let made = typed(dir, &add, line.as_bytes());
    assert!(made.status.success(), "{}", made.shown);
    assert_eq!(made.printed, "user 1: a@example.com (admin)\n");
    for ended in [&weak, &none, &cursor, &stopped, &made] {
        assert!(
            ended.echoes_again,
            "the terminal is as before: {}",
            ended.shown
        );
        for part in ["short7", "correct", "horse", "battery"] {
            assert!(!ended.shown.contains(part), "{}", ended.shown);
        }
    }
}

#[test]
fn a_password_in_a_pipe_ends_with_its_line_and_is_refused_by_its_name() {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path();
    let add = ["user", "add", "--email", "a@example.com"];
    for (sent, words) in [
        ("short7", "password must have at least 8 characters"),
        ("", "no password was given"),
        ("PASSWORD", "among the most used passwords"),
    ] {
        let mut command = onrush(dir, &add);
        assert_refused(command.stdin(File::from(piped(sent))), USAGE, words);
    }
    let long = "x".repeat(2_000);
    let mut command = onrush(dir, &add);
    assert_refused(
        command.stdin(File::from(piped(&long))),
        USAGE,
        "at most 256 bytes",
    );
    let wrong = ["user", "add", "--email", "nobody"];
    let mut command = onrush(dir, &wrong);
    assert_refused(
        command.stdin(File::from(piped(PASSWORD))),
        USAGE,
        "email must",
    );

    // A program that leaves the pipe open is not waited for.
    let mut child = onrush(dir, &add)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("it can be run");
    let mut open = child.stdin.take().expect("stdin");
    writeln!(open, "{PASSWORD}\r").expect("written");
    assert!(wait(&mut child).success());
    drop(open);
    let mut command = onrush(dir, &add);
    let again = command.stdin(File::from(piped(PASSWORD)));
    assert_refused(again, USAGE, "the address has an account");
    let launch = Launch::new(&dir.join("onrush-data"));
    let server = launch.start();
    let login = json!({"email": "a@example.com", "password": PASSWORD});
    let mut client = Client::new(server.address);
    let answer = client.post("/api/v1/auth/login", "", &login);
    assert_eq!(answer.expect("an answer").status, 200);
    server.stop();
}

#[test]
fn a_rehearsal_takes_the_next_sale_that_has_units_left() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (sale, server) = Sale::make(Launch::new(&root.path().join("data")), 1);
    let mut buyers = sale.buyers(server.address, 1);
    let mut client = Client::new(server.address);
    buyers[0].claim(&mut client, &sale.claims());
    assert_eq!(
        sale.units(server.address),
        (1, 0),
        "sale 1 is sold out and open"
    );
    let now = Clock::system().now();
    let mut plan = |units: i64, from_days: i64, to_days: i64| {
        let mut made = |path: &str, body: Value| {
            let answer = client.post(path, &sale.admin, &body).expect("an answer");
            assert_eq!(answer.status, 201, "{answer:?}");
            answer.json()["id"].as_i64().expect("an id")
        };
        let product = json!({"name": "键盘", "unit_amount": 900, "currency": "CNY", "stock": 50});
        let product = made("/api/v1/products", product);
        let at = |days: i64| now.plus_seconds(days * 86_400);
        made(
            "/api/v1/flash-sales",
            json!({"product_id": product, "quantity": units, "unit_amount": 1,
                "starts_at": at(from_days), "ends_at": at(to_days)}),
        )
    };
    // The one that ends first does not begin first.
    plan(7, 2, 3);
    plan(5, 1, 30);
    server.stop();
    let rehearse = [
        "rehearse",
        "--buyers",
        "20",
        "--connections",
        "2",
        "--exit",
        "--json",
    ];
    let (status, card) = sale.launch.run(&rehearse, "");
    assert!(status.success(), "{card}");
    let card: Value = serde_json::from_str(&card).expect("one object");
    assert_eq!(
        (&card["allotted"], &card["sold"]),
        (&json!(5), &json!(5)),
        "{card}"
    );
}
