//! Mails: what is written to whom, and what becomes of mail servers that misbehave.

use std::time::Duration;

use onrush::auth::Role;
use onrush::config::{Language, MailRule, MailTls, Settings};
use serde_json::{Value, json};

use crate::faults::skip;
use crate::support::aiosmtpd::{RealMailServer, USER, USER_PASSWORD, certificates};
use crate::support::smtp::{MailServer, Post};
use crate::support::{PASSWORD, Shop, text};

fn open(change: impl FnOnce(&mut Settings)) -> (Shop, String) {
    let shop = Shop::open_with(|settings| {
        settings.auth.staff_session_idle_seconds = 31_536_000;
        settings.auth.staff_session_seconds = 31_536_000;
        settings.mail.from = "Tea & Co <shop@example.com>".to_owned();
        settings.mail.shop_name = "Tea & Co".to_owned();
        // Most of these are about a mail that is not asked for; a test of the proof turns it on.
        settings.auth.confirm_registration = MailRule::Never;
        change(settings);
    });
    let admin = shop.token(Role::Admin);
    (shop, admin)
}

fn with_server(server: &MailServer) -> impl FnOnce(&mut Settings) {
    let port = server.address.port();
    move |settings| {
        settings.mail.smtp_host = "127.0.0.1".to_owned();
        settings.mail.smtp_port = port;
        settings.mail.smtp_tls = MailTls::None;
        settings.mail.timeout_ms = 500;
    }
}

fn register(shop: &Shop, name: &str, language: Option<&str>) -> String {
    let body = json!({"email": "lilei@example.com", "name": name, "password": PASSWORD,
        "language": language});
    let answer = shop.post("/api/v1/auth/register").json(&body).send();
    text(&answer.expect(201)["token"])
}

/// The newest task of this name.
fn task(shop: &Shop, admin: &str, name: &str) -> Value {
    let path = format!("/api/v1/tasks?name={name}&limit=1");
    let page = shop.get(&path).token(admin).send().expect(200);
    let Some(found) = page["items"][0]["id"].as_str() else {
        return Value::Null;
    };
    let path = format!("/api/v1/tasks/{found}");
    shop.get(&path).token(admin).send().expect(200)
}

/// The mails in `outbox/`, oldest first.
fn outbox(shop: &Shop) -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(shop.data_dir().join("outbox")) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "eml"))
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .collect()
}

fn header<'a>(mail: &'a str, name: &str) -> &'a str {
    mail.lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.strip_prefix(&format!("{name}: ")))
        .unwrap_or_else(|| panic!("no {name} in {mail}"))
}

/// Its parts, decoded: the plain text, then the HTML.
fn parts(mail: &str) -> Vec<String> {
    use base64::Engine;
    mail.split("Content-Type: text/")
        .skip(1)
        .map(|part| {
            let (head, body) = part.split_once("\r\n\r\n").expect("a head");
            let body = body.split("\r\n--").next().unwrap_or_default();
            if head.contains("base64") {
                let body: String = body.split_whitespace().collect();
                let bytes = base64::engine::general_purpose::STANDARD.decode(body);
                String::from_utf8(bytes.expect("base64")).expect("UTF-8")
            } else if head.contains("quoted-printable") {
                quoted_printable(body)
            } else {
                body.to_owned()
            }
        })
        .collect()
}

fn quoted_printable(text: &str) -> String {
    let joined = text.replace("=\r\n", "");
    let (mut bytes, mut rest) = (Vec::new(), joined.as_bytes());
    while let [first, more @ ..] = rest {
        rest = more;
        if *first == b'=' {
            let digits = std::str::from_utf8(&rest[..2]).expect("digits");
            bytes.push(u8::from_str_radix(digits, 16).expect("a number"));
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn without_a_mail_server_mails_are_files_in_the_language_of_their_reader() {
    let (shop, admin) = open(|settings| {
        settings.mail.orders = MailRule::Always;
        settings.mail.language = Language::En;
    });
    let token = register(&shop, "李雷", Some("zh"));
    shop.wait_until("the welcome", || outbox(&shop).len() == 1);
    let mail = outbox(&shop).remove(0);
    assert!(header(&mail, "From").contains("shop@example.com"));
    assert!(header(&mail, "To").contains("lilei@example.com"));
    let both = parts(&mail);
    assert!(
        both[0].contains("您好：") && both[0].contains("欢迎来到Tea & Co"),
        "{both:?}"
    );
    assert!(
        !mail.contains("李雷") && both.iter().all(|part| !part.contains("李雷")),
        "nobody knows whose text that is: {both:?}"
    );
    assert!(both[1].contains("欢迎来到Tea &amp; Co"), "{both:?}");
    shop.wait_until("its task is done", || {
        task(&shop, &admin, "send_welcome_email")["state"] == "completed"
    });
    let sent = task(&shop, &admin, "send_welcome_email");
    assert_eq!(
        header(&mail, "Message-ID"),
        format!("<{}@example.com>", text(&sent["id"]))
    );
    // An order: placed, paid; another: placed, expired.
    let product = shop.product(&admin, 10);
    let order = || {
        let body = json!({"items": [{"product_id": product, "quantity": 2}]});
        let answer = shop.post("/api/v1/orders").token(&token).json(&body).send();
        answer.expect(201)["id"].as_i64().expect("an id")
    };
    let one = order();
    shop.wait_until("placed", || outbox(&shop).len() == 2);
    let pay = shop
        .post(&format!("/api/v1/orders/{one}/pay"))
        .token(&token);
    pay.send().expect(200);
    shop.wait_until("paid", || outbox(&shop).len() == 3);
    order();
    shop.wait_until("placed", || outbox(&shop).len() == 4);
    shop.clock.advance(Duration::from_secs(901));
    shop.wait_until("expired", || outbox(&shop).len() == 5);
    let mails = outbox(&shop);
    for (at, words) in [
        (1, "保留至 2026-11-11 00:15 UTC"),
        (2, "已付款"),
        (4, "未按时付款"),
    ] {
        let text = &parts(&mails[at])[0];
        assert!(text.contains(words), "{text}");
        assert!(text.contains("Mug 杯子  × 2  20.00 CNY"), "{text}");
    }
}

/// What somebody registers who wants a text of theirs mailed to another.
const BAIT: &str = "Click https://evil.example now";

/// The newest mail to an address, once there are so many.
fn mail_to(shop: &Shop, address: &str, count: usize) -> String {
    let mails = || {
        let mut all = outbox(shop);
        all.retain(|mail| header(mail, "To").contains(address));
        all
    };
    shop.wait_until("a mail", || mails().len() == count);
    mails().pop().expect("one")
}

/// The token in a mail, or in its link.
fn token_of(mail: &str) -> String {
    let text = parts(mail).remove(0);
    let begins = text
        .find("reg_")
        .unwrap_or_else(|| panic!("no token: {text}"));
    let rest = text[begins..].split_whitespace().next();
    rest.expect("a token").to_owned()
}

#[test]
pub fn an_account_comes_of_the_mail_and_the_password_and_no_answer_tells_of_another() {
    let (shop, admin) = open(|settings| {
        settings.auth.confirm_registration = MailRule::Always;
        settings.mail.orders = MailRule::Always;
        settings.mail.language = Language::En;
        settings.mail.confirm_url = "https://shop.example/welcome".to_owned();
    });
    shop.account("known@example.com", Role::Customer);
    let register = |email: &str, name: &str| {
        let body = json!({"email": email, "name": name, "password": PASSWORD});
        let answer = shop.post("/api/v1/auth/register").json(&body).send();
        let answer = (answer.status, answer.body);
        assert_eq!(answer.0, 202, "{answer:?}");
        answer
    };
    assert_eq!(
        register("known@example.com", BAIT),
        register("anna@example.com", "Anna")
    );
    let known = mail_to(&shop, "known@example.com", 1);
    assert!(parts(&known)[0].contains("has an account already"));
    let mail = mail_to(&shop, "anna@example.com", 1);
    for mail in [&known, &mail] {
        let all = format!("{mail}{:?}", parts(mail));
        assert!(
            !all.contains("evil.example") && !all.contains("Anna"),
            "{all}"
        );
    }
    assert!(
        parts(&mail)[0].contains("https://shop.example/welcome#token=reg_"),
        "{mail}"
    );
    let log_in = || {
        let body = json!({"email": "anna@example.com", "password": PASSWORD});
        shop.post("/api/v1/auth/login").json(&body).send().outcome()
    };
    assert_eq!(log_in(), "401 unauthorized", "there is no account yet");
    let token = token_of(&mail);
    let confirm = |token: &str, password: &str| {
        let body = json!({"token": token, "password": password});
        shop.post("/api/v1/auth/confirm").json(&body).send()
    };
    assert_eq!(
        confirm("reg_guess", PASSWORD).outcome(),
        "404 registration_not_found"
    );
    // Whoever opens the link of somebody else's registration does not know its password.
    assert_eq!(confirm(&token, "another one").outcome(), "401 unauthorized");
    let session = text(&confirm(&token, PASSWORD).expect(201)["token"]);
    assert_eq!(
        confirm(&token, PASSWORD).outcome(),
        "404 registration_not_found"
    );
    assert_eq!(log_in(), "200");
    // Now it is known whose name that is.
    let welcome = mail_to(&shop, "anna@example.com", 2);
    assert!(parts(&welcome)[0].contains("Hello Anna,"), "{welcome}");
    let product = shop.product(&admin, 10);
    let body = json!({"items": [{"product_id": product, "quantity": 1}]});
    let order = shop.post("/api/v1/orders").token(&session).json(&body);
    order.send().expect(201);
    let placed = mail_to(&shop, "anna@example.com", 3);
    assert!(parts(&placed)[0].contains("Hello Anna,"), "{placed}");
    // Few mails go to one address, whoever asks and however often.
    for _ in 0..9 {
        register("ben@example.com", BAIT);
    }
    let mail = mail_to(&shop, "ben@example.com", 3);
    shop.clock.advance(Duration::from_secs(86_401));
    let late = confirm(&token_of(&mail), PASSWORD);
    assert_eq!(late.outcome(), "404 registration_not_found");
}

#[test]
pub fn until_its_address_is_proven_no_mail_of_an_account_has_its_name() {
    let (shop, admin) = open(|settings| settings.mail.orders = MailRule::Always);
    let token = register(&shop, BAIT, Some("en"));
    let product = shop.product(&admin, 10);
    let body = json!({"items": [{"product_id": product, "quantity": 1}]});
    let order = shop.post("/api/v1/orders").token(&token).json(&body);
    let order = order.send().expect(201)["id"].clone();
    // An order that is cancelled before its mail is made is not told of as placed.
    shop.wait_until("the order's mail", || outbox(&shop).len() == 2);
    let cancel = format!("/api/v1/orders/{order}/cancel");
    shop.post(&cancel).token(&token).send().expect(200);
    shop.wait_until("all mails", || outbox(&shop).len() == 3);
    for mail in outbox(&shop) {
        let all = format!("{mail}{:?}", parts(&mail));
        assert!(!all.contains("evil.example"), "{all}");
        assert!(all.contains("Hello,"), "{all}");
    }
}

#[test]
fn a_mail_server_gets_the_mail_and_its_words_decide() {
    let server = MailServer::open(&[Post::Refuse(451), Post::HangAfterData, Post::Take]);
    let (shop, admin) = open(|settings| {
        with_server(&server)(settings);
        settings.mail.smtp_user = "shop".to_owned();
        settings.mail.smtp_password = "hunter2 and more".into();
    });
    register(&shop, "Hàn Méiméi 韩梅梅", None);
    let state = || task(&shop, &admin, "send_welcome_email");
    for (attempts, words) in [(1, "no such person here"), (2, "within 500 ms")] {
        shop.wait_until("a failure", || {
            let task = state();
            task["state"] == "retryable" && task["attempt"] == attempts
        });
        let error = text(&state()["error"]);
        assert!(error.contains(words), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        shop.clock.advance(Duration::from_secs(20));
    }
    shop.wait_until("it is sent", || state()["state"] == "completed");
    assert_eq!(state()["result"]["sent"], true);
    let mails = server.mails();
    assert_eq!(mails.len(), 1);
    let id = format!("<{}@example.com>", text(&state()["id"]));
    assert_eq!(header(&mails[0], "Message-ID").trim(), id);
    assert!(parts(&mails[0])[0].contains("Hello,"));
    assert!(header(&mails[0], "Subject").contains("Welcome to Tea & Co"));
    assert_eq!(outbox(&shop), Vec::<String>::new());
    let logins = server.lines();
    assert!(logins.iter().any(|line| line.starts_with("AUTH PLAIN ")));
}

#[test]
fn a_mail_that_is_refused_is_dead_and_a_server_that_is_away_is_asked_again() {
    let refusing = MailServer::open(&[Post::Refuse(550)]);
    let (shop, admin) = open(with_server(&refusing));
    register(&shop, "Nobody", None);
    let state = || task(&shop, &admin, "send_welcome_email");
    shop.wait_until("it is dead", || state()["state"] == "discarded");
    assert!(
        text(&state()["error"]).contains("no such person here"),
        "{}",
        state()
    );
    assert_eq!(state()["attempt"], 1);
    drop(shop);
    // Our login is wrong: that is not the mail's fault.
    let strict = MailServer::open(&[Post::RefuseLogin(535)]);
    let (shop, admin) = open(|settings| {
        with_server(&strict)(settings);
        settings.mail.smtp_user = "shop".to_owned();
        settings.mail.smtp_password = "wrong".into();
    });
    register(&shop, "Somebody", None);
    let state = || task(&shop, &admin, "send_welcome_email");
    shop.wait_until("it waits", || state()["state"] == "retryable");
    assert!(
        text(&state()["error"]).contains("who are you"),
        "{}",
        state()
    );
    drop(shop);
    // Nobody listens there.
    let (shop, admin) = open(|settings| {
        settings.mail.smtp_host = "127.0.0.1".to_owned();
        settings.mail.smtp_port = 1;
        settings.mail.smtp_tls = MailTls::None;
    });
    register(&shop, "Somebody", None);
    let state = || task(&shop, &admin, "send_welcome_email");
    shop.wait_until("it waits", || state()["state"] == "retryable");
}

/// A shop that sends its mails to a real server on this machine.
fn with_real(
    server: &RealMailServer,
    tls: MailTls,
    ca: Option<&std::path::Path>,
    password: &str,
) -> impl FnOnce(&mut Settings) {
    let (port, ca, password) = (
        server.port,
        ca.map(std::path::Path::to_owned),
        password.to_owned(),
    );
    move |settings| {
        settings.mail.smtp_host = "localhost".to_owned();
        settings.mail.smtp_port = port;
        settings.mail.smtp_tls = tls;
        settings.mail.smtp_ca = ca.unwrap_or_default();
        settings.mail.smtp_user = USER.to_owned();
        settings.mail.smtp_password = password.as_str().into();
        settings.mail.timeout_ms = 10_000;
    }
}

#[test]
fn a_real_mail_server_takes_mails_over_tls_after_a_login() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (ca, cert, key) = certificates(dir.path());
    for (mode, tls) in [("starttls", MailTls::Starttls), ("tls", MailTls::Tls)] {
        let server = match RealMailServer::open(mode, &cert, &key) {
            Ok(server) => server,
            Err(reason) => return skip(&reason),
        };
        let (shop, admin) = open(with_real(&server, tls, Some(&ca), USER_PASSWORD));
        register(&shop, "李雷 & 韩梅梅", Some("zh"));
        let state = || task(&shop, &admin, "send_welcome_email");
        shop.wait_until("it is sent", || state()["state"] == "completed");
        assert_eq!(state()["result"]["answer"], "kept by aiosmtpd", "{mode}");
        let mails = server.mails();
        assert_eq!(mails.len(), 1, "{mode}");
        let both = parts(&mails[0]);
        assert!(both[0].contains("您好："), "{mode}: {both:?}");
        assert!(both[1].contains("Tea &amp; Co"), "{mode}: {both:?}");
        assert_eq!(outbox(&shop), Vec::<String>::new());
    }
}

#[test]
fn a_real_mail_server_that_is_not_trusted_or_does_not_know_us_gets_no_mail() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (ca, cert, key) = certificates(dir.path());
    let server = match RealMailServer::open("starttls", &cert, &key) {
        Ok(server) => server,
        Err(reason) => return skip(&reason),
    };
    for (ca, password, words) in [
        (None, USER_PASSWORD, "certificate"),
        (Some(&*ca), "another one", "535"),
    ] {
        let (shop, admin) = open(with_real(&server, MailTls::Starttls, ca, password));
        register(&shop, "李雷", None);
        let state = || task(&shop, &admin, "send_welcome_email");
        shop.wait_until("it waits", || state()["state"] == "retryable");
        let error = text(&state()["error"]);
        assert!(error.contains(words), "{words}: {error}");
        assert!(!error.contains(password), "{error}");
    }
    assert_eq!(server.mails(), Vec::<String>::new());
}

#[test]
fn a_password_is_never_told_to_a_server_without_tls() {
    let plain = MailServer::open(&[Post::Take]);
    let (shop, admin) = open(|settings| {
        with_server(&plain)(settings);
        settings.mail.smtp_tls = MailTls::Starttls;
        settings.mail.smtp_user = USER.to_owned();
        settings.mail.smtp_password = USER_PASSWORD.into();
    });
    register(&shop, "李雷", None);
    let state = || task(&shop, &admin, "send_welcome_email");
    shop.wait_until("it waits", || state()["state"] == "retryable");
    assert_eq!(plain.mails(), Vec::<String>::new());
    let lines = plain.lines();
    assert!(!lines.is_empty(), "it was asked");
    assert!(
        !lines
            .iter()
            .any(|line| line.starts_with("AUTH") || line.starts_with("MAIL")),
        "{lines:?}"
    );
}
