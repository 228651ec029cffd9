//! What the real binary tells of security: to whoever reads its log, and nothing that is secret.
//!
//! Must hold: a line of the log is an event of ours whatever was sent; a flood is told by its number; the
//! link that makes the first admin is in no log; unsafe settings are named at the start and in `/health`.

use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::ask::Client;
use super::server::Launch;

/// What must never be in a log.
const SECRETS: &[&str] = &["setup_", "onk_", "a long enough password", "hunter2"];

#[test]
fn security_events_are_lines_of_the_log_and_the_link_of_the_first_admin_is_not() {
    let root = tempfile::tempdir().expect("temporary directory");
    let data = root.path().join("data");
    let server = Launch::new(&data)
        .set("ONRUSH_LOG__SECURITY_LINES_PER_SECOND", 1)
        .set("ONRUSH_AUTH__LOGIN_ADDRESS_FAILURES", 1_000)
        .start();
    let told = server.says("There is no admin yet");
    let file = data.join("setup-link");
    assert!(told.contains(&file.display().to_string()), "{told}");
    let mode = std::fs::metadata(&file)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let link = std::fs::read_to_string(&file).expect("the link");
    let (_, token) = link.trim().split_once("#setup=").expect("a token");
    let mut client = Client::new(server.address);
    let mut post = |path: &str, token: &str, body: &Value| {
        let path = format!("/api/v1/{path}");
        client.post(&path, token, body).expect("an answer")
    };
    let admin = json!({"token": token, "email": "admin@example.com", "name": "\u{1f981}",
        "password": "a long enough password"});
    let made = post("auth/setup", "", &admin);
    assert_eq!(made.status, 201, "{made:?}");
    let session = made.json()["token"].as_str().expect("a token").to_owned();
    let made = post(
        "api-keys",
        &session,
        &json!({"name": "till", "scopes": ["orders"]}),
    );
    assert_eq!(made.status, 201, "{made:?}");
    for number in 0..100 {
        // What is sent is in no line, so it can't end one and begin another.
        let email = format!("{number}%0aevent=fake@example.com");
        let wrong = json!({"email": email, "password": "hunter2\n{\"event\":\"fake\"}"});
        assert_eq!(post("auth/login", "", &wrong).status, 401);
    }
    server.signal(Signal::SIGTERM);
    let ended = server.ended();
    let log = &ended.log;
    for secret in SECRETS.iter().copied().chain([session.as_str()]) {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    assert!(!log.contains("fake"), "{log}");
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["target"] == "security")
        .collect();
    let of = |event: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["event"] == event).collect()
    };
    for event in [
        "sys_startup",
        "user_created",
        "privilege_permissions_changed",
        "authn_token_created",
        "sys_shutdown",
    ] {
        assert_eq!(of(event).len(), 1, "{event}: {log}");
    }
    let key = of("authn_token_created")[0];
    assert_eq!(
        (&key["user_id"], &key["what"]),
        (&json!(1), &json!("orders"))
    );
    assert_eq!(key["address"], "127.0.0.1");
    assert!(key["request_id"].is_string(), "{key}");
    let failures = of("authn_login_fail");
    assert!((10..60).contains(&failures.len()), "{}", failures.len());
    let left_out = failures.iter().filter_map(|line| line["left_out"].as_u64());
    let events = failures
        .iter()
        .filter(|line| line["request_id"].is_string());
    assert_eq!(left_out.sum::<u64>() + events.count() as u64, 100, "{log}");
    // The link is worth nothing now, and goes with the next start.
    let server = Launch::new(&data).start();
    assert!(!file.exists());
    server.stop();
}

#[test]
fn settings_for_trying_out_are_named_at_the_start_and_in_health_and_serving_goes_on() {
    let root = tempfile::tempdir().expect("temporary directory");
    let server = Launch::new(&root.path().join("data"))
        .set("ONRUSH_SERVER__HOST", "0.0.0.0")
        .set("ONRUSH_ORDERS__CUSTOMERS_CONFIRM_PAYMENT", "true")
        .start();
    server.says("WARNING: customers confirm their own payments");
    server.says("WARNING: passwords and sessions travel in the clear");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], server.address.port()));
    let mut client = Client::new(address);
    let health = client.get("/health", "");
    let found = (health.status, &health.json()["status"]);
    assert_eq!(found, (200, &json!("warn")));
    let told = health.json()["checks"]["settings"][0]["output"].to_string();
    assert!(
        told.contains("0.0.0.0") && told.contains("customers_confirm_payment"),
        "{told}"
    );
    assert_eq!(client.get("/readyz", "").status, 200);
    server.stop();
    let server = Launch::new(&root.path().join("data")).start();
    let mut client = Client::new(server.address);
    let health = client.get("/health", "");
    let found = (health.status, &health.json()["status"]);
    assert_eq!(found, (200, &json!("pass")));
    server.signal(Signal::SIGTERM);
    assert!(!server.ended().log.contains("WARNING"));
}
