//! Signals: those that end a server in order, and those that are no reason to end.
//!
//! Must hold: from its greeting on a server is ended in order; requests in flight are answered; SIGHUP takes over what a running server can take over,
//! names what needs a restart, and leaves everything as it is where the settings can't be used.

use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::json;

use super::PATIENCE;
use super::ask::{Client, read_answer};
use super::server::Launch;

const BODY: &str =
    r#"{"email": "a@example.com", "name": "A", "password": "a long enough password"}"#;

#[test]
fn a_server_ends_in_order_as_soon_as_it_has_said_that_it_is_ready() {
    let root = tempfile::tempdir().expect("temporary directory");
    for _ in 0..5 {
        Launch::new(&root.path().join("data")).start().stop();
    }
}

#[test]
fn signals_that_are_no_reason_to_end_leave_requests_in_flight_alone() {
    let root = tempfile::tempdir().expect("temporary directory");
    let server = Launch::new(&root.path().join("data")).start();
    let stream = TcpStream::connect(server.address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut stream = BufReader::new(stream);
    let head = format!(
        "POST /api/v1/auth/register HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        BODY.len()
    );
    let (begin, rest) = BODY.split_at(20);
    let mut send = |text: &str| stream.get_mut().write_all(text.as_bytes()).expect("sent");
    send(&head);
    send(begin);
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
        Signal::SIGHUP,
    ] {
        server.signal(signal);
    }
    server.says("SIGHUP: no other setting has changed");
    send(rest);
    let answer = read_answer(&mut stream).expect("an answer");
    assert_eq!(answer.status, 201, "{answer:?}");
    server.stop();
}

#[test]
fn hangup_takes_over_the_level_of_the_log_and_names_what_needs_a_restart() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (level, requests) = (root.path().join("level"), root.path().join("requests"));
    let write = |path, text: &str| fs::write(path, text).expect("written");
    write(&level, "warn");
    write(&requests, "false");
    let server = Launch::new(&root.path().join("data"))
        .set("ONRUSH_LOG__LEVEL_FILE", level.display())
        .set("ONRUSH_LOG__REQUESTS_FILE", requests.display())
        .start();
    write(&requests, "true");
    server.signal(Signal::SIGHUP);
    let line = server.says("need a restart");
    assert!(line.contains("log.requests"), "{line}");
    for unusable in ["=loud=", ""] {
        write(
            &requests,
            if unusable.is_empty() {
                "perhaps"
            } else {
                "true"
            },
        );
        write(
            &level,
            if unusable.is_empty() {
                "warn"
            } else {
                unusable
            },
        );
        server.signal(Signal::SIGHUP);
    }
    server.says("can't be used; the old");
    let mut client = Client::new(server.address);
    let answer = client.post("/api/v1/auth/login", "", &json!({}));
    assert_eq!(answer.expect("an answer").status, 422, "it serves on");
    write(&requests, "false");
    write(&level, "info");
    server.signal(Signal::SIGHUP);
    server.says("SIGHUP: no other setting has changed");
    server.signal(Signal::SIGTERM);
    let ended = server.ended();
    assert!(
        ended.status.success() && ended.log.contains("stopping: no new connections"),
        "level info says so: {ended:?}"
    );
}
