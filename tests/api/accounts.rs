//! Accounts: the first admin, registration, login and its throttle, sessions, keys, users.

use std::time::Duration;

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::{PASSWORD, Shop, text};

#[test]
fn the_set_up_link_makes_one_admin_and_is_then_worth_nothing() {
    let shop = Shop::open();
    let greeting = shop.app().greeting().join("\n");
    let (_, token) = greeting.split_once("#setup=").expect("a link");
    let body = |token: &str, email: &str| json!({"token": token, "email": email, "name": "Owner", "password": PASSWORD});
    let setup = |token: &str, email: &str| {
        shop.post("/api/v1/auth/setup")
            .json(&body(token, email))
            .send()
    };
    let check = |token: &str| {
        let asked = shop.post("/api/v1/auth/setup/check");
        asked.json(&json!({"token": token})).send().status
    };
    assert_eq!((check("setup_guess"), check(token)), (403, 204));
    assert_eq!(
        setup("setup_guess", "owner@example.com").outcome(),
        "403 forbidden"
    );
    // Of many at once, one wins.
    let outcomes: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| scope.spawn(move || setup(token, &format!("owner{number}@example.com"))))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("an answer").outcome())
            .collect()
    });
    let won = outcomes.iter().filter(|outcome| *outcome == "201").count();
    assert_eq!(won, 1, "{outcomes:?}");
    assert_eq!(setup(token, "late@example.com").outcome(), "403 forbidden");
    assert_eq!(check(token), 403);
    let mut shop = shop;
    shop.restart();
    assert!(!shop.app().greeting().join("\n").contains("#setup="));
}

#[test]
fn the_set_up_link_ends_by_itself() {
    let shop = Shop::open();
    let greeting = shop.app().greeting().join("\n");
    let (_, token) = greeting.split_once("#setup=").expect("a link");
    shop.clock.advance(Duration::from_secs(86_401));
    let body = json!({"token": token, "email": "a@b.co", "name": "x", "password": PASSWORD});
    let answer = shop.post("/api/v1/auth/setup").json(&body).send();
    assert_eq!(answer.outcome(), "403 forbidden");
}

#[test]
fn registering_checks_every_field_and_logs_in() {
    let shop = Shop::open();
    let register = |email: &str, name: &str, password: &str| {
        shop.post("/api/v1/auth/register")
            .json(&json!({"email": email, "name": name, "password": password}))
            .send()
    };
    let made = register("  Anna@Example.com ", " 安娜\u{3000}", PASSWORD).expect(201);
    assert_eq!(made["user"]["name"], "安娜");
    let token = text(&made["token"]);
    let me = shop.get("/api/v1/me").token(&token).send().expect(200);
    assert_eq!(
        (&me["email"], &me["role"]),
        (&json!("anna@example.com"), &json!("customer"))
    );
    let again = register("anna@example.COM", "x", PASSWORD);
    assert_eq!(again.outcome(), "409 email_taken");
    for (email, name, password, field) in [
        ("no-at-sign", "x", PASSWORD, "email"),
        ("a@", "x", PASSWORD, "email"),
        ("b c@example.com", "x", PASSWORD, "email"),
        ("b\u{200b}@example.com", "x", PASSWORD, "email"),
        ("evil@example.net>", "x", PASSWORD, "email"),
        ("b@example.com", "x", "samantha1", "password"),
        ("b@example.com", " \u{3000}\u{a0}", PASSWORD, "name"),
        ("b@example.com", "\u{200b}", PASSWORD, "name"),
        ("b@example.com", "x\u{202e}y", PASSWORD, "name"),
        ("b@example.com", "", PASSWORD, "name"),
        ("b@example.com", "x", "short", "password"),
        ("b@example.com", "x", "password123", "password"),
        ("b@example.com", "x", &"x".repeat(2_000), "password"),
    ] {
        let answer = register(email, name, password);
        assert_eq!(answer.outcome(), "422 validation_failed", "{email} {name}");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{answer:?}");
    }
    let closed = Shop::open_with(|settings| settings.auth.open_registration = false);
    let body = json!({"email": "a@b.co", "name": "x", "password": PASSWORD});
    let answer = closed.post("/api/v1/auth/register").json(&body).send();
    assert_eq!(answer.outcome(), "403 forbidden");
}

#[test]
fn a_wrong_password_and_an_unknown_account_look_alike_and_wait_longer_each_time() {
    let shop = Shop::open();
    shop.account("anna@example.com", Role::Customer);
    let login = |email: &str, password: &str| {
        shop.post("/api/v1/auth/login")
            .json(&json!({"email": email, "password": password}))
            .send()
    };
    let strip = |answer: &crate::support::Answer| {
        let mut body = answer.json();
        body["request_id"] = Value::Null;
        (answer.status, body)
    };
    let (wrong, unknown) = (
        login("anna@example.com", "wrong password"),
        login("nobody@example.com", "wrong password"),
    );
    assert_eq!(wrong.status, 401);
    assert_eq!(strip(&wrong), strip(&unknown));
    let outcomes: Vec<String> = (0..6)
        .map(|_| login("anna@example.com", "wrong password").outcome())
        .collect();
    assert_eq!(outcomes.last().expect("some"), "429 login_throttled");
    let held = login("ANNA@example.com", PASSWORD);
    assert_eq!(
        held.outcome(),
        "429 login_throttled",
        "the right one waits too"
    );
    let wait: u64 = held
        .header("retry-after")
        .expect("a wait")
        .parse()
        .expect("seconds");
    assert!((1..=900).contains(&wait), "{wait}");
    shop.clock.advance(Duration::from_secs(wait + 1));
    assert_eq!(login("anna@example.com", PASSWORD).outcome(), "200");
}

/// A shop that believes what the test says of where requests come from.
fn shop_with_addresses() -> Shop {
    Shop::open_with(|settings| {
        settings.server.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a range")];
    })
}

fn log_in(shop: &Shop, email: &str, password: &str, from: &str) -> crate::support::Answer {
    let body = json!({"email": email, "password": password});
    let ask = shop.post("/api/v1/auth/login").json(&body);
    ask.header("X-Forwarded-For", from).send()
}

/// The pair of the cookie of this name that an answer sets.
fn cookie_of(answer: &crate::support::Answer, name: &str) -> Option<String> {
    let beginning = format!("set-cookie: {name}=");
    let line = answer
        .head
        .lines()
        .find(|line| line.to_lowercase().starts_with(&beginning))?;
    let (_, value) = line.split_once(": ")?;
    Some(value.split(';').next()?.to_owned())
}

#[test]
fn strangers_do_not_shut_the_owner_out_of_a_known_address_or_browser() {
    let mut shop = shop_with_addresses();
    let owner = "owner@example.com";
    shop.account(owner, Role::Admin);
    let guess = |shop: &Shop| {
        let outcomes: Vec<String> = (1..=9)
            .map(|number| {
                log_in(
                    shop,
                    owner,
                    "wrong password",
                    &format!("203.0.113.{number}"),
                )
            })
            .map(|answer| answer.outcome())
            .collect();
        assert_eq!(outcomes[4..6], ["401 unauthorized", "429 login_throttled"]);
    };
    let (home, away) = ("198.51.100.7", "198.51.100.99");
    log_in(&shop, owner, PASSWORD, home).expect(200);
    let body = json!({"email": owner, "password": PASSWORD, "cookie": true});
    let page = shop
        .post("/api/v1/auth/login")
        .json(&body)
        .header("X-Forwarded-For", "198.51.100.8")
        .send();
    let device = cookie_of(&page, "onrush_device").expect("a device cookie");
    assert!(
        page.head
            .contains("HttpOnly; SameSite=Strict; Max-Age=7776000"),
        "{page:?}"
    );
    guess(&shop);
    assert_eq!(log_in(&shop, owner, PASSWORD, home).outcome(), "200");
    let kept_out = log_in(&shop, owner, PASSWORD, away);
    assert_eq!(kept_out.outcome(), "429 login_throttled");
    assert!(kept_out.header("retry-after").is_some(), "{kept_out:?}");
    let with_cookie = |shop: &Shop, cookie: &str, password: &str| {
        shop.post("/api/v1/auth/login")
            .json(&json!({"email": owner, "password": password}))
            .header("X-Forwarded-For", away)
            .header("Cookie", cookie)
            .send()
    };
    let wrong = with_cookie(&shop, &device, "wrong password");
    assert_eq!(
        wrong.outcome(),
        "401 unauthorized",
        "a known browser's slip is called one"
    );
    let again = with_cookie(&shop, &device, PASSWORD);
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(
        cookie_of(&again, "onrush_device"),
        Some(device.clone()),
        "it stays the same"
    );
    let made_up = "onrush_device=ond_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    // It has logged in from there by now, so from yet another address.
    let planted = shop
        .post("/api/v1/auth/login")
        .json(&json!({"email": owner, "password": PASSWORD}))
        .header("X-Forwarded-For", "198.51.100.77")
        .header("Cookie", made_up)
        .send();
    assert_eq!(planted.outcome(), "429 login_throttled");
    // What is known is on disk.
    shop.restart();
    guess(&shop);
    assert_eq!(log_in(&shop, owner, PASSWORD, home).outcome(), "200");
}

#[test]
pub fn a_browser_gets_a_fresh_device_cookie_instead_of_one_that_was_planted() {
    let shop = Shop::open();
    shop.account("anna@example.com", Role::Customer);
    let made_up = "onrush_device=ond_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let login = |cookie: Option<&str>, fetched: bool| {
        let body = json!({"email": "anna@example.com", "password": PASSWORD});
        let mut ask = shop.post("/api/v1/auth/login").json(&body);
        if let Some(cookie) = cookie {
            ask = ask.header("Cookie", cookie);
        }
        if fetched {
            ask = ask.header("Sec-Fetch-Site", "same-origin");
        }
        cookie_of(&ask.send(), "onrush_device")
    };
    assert_eq!(login(None, false), None, "a program keeps no cookies");
    let first = login(None, true).expect("a browser does");
    let fresh = login(Some(made_up), true).expect("a cookie");
    assert!(fresh != made_up && fresh != first, "{fresh}");
    assert_eq!(login(Some(&first), true), Some(first));
}

#[test]
fn many_customers_behind_one_address_may_mistype_and_only_spraying_slows_it() {
    let shop = shop_with_addresses();
    let office = "198.51.100.7";
    let email = |number: u32| format!("customer{number}@example.com");
    for number in 0..25 {
        shop.account(&email(number), Role::Customer);
        let typo = log_in(&shop, &email(number), "wrong password", office);
        assert_eq!(typo.outcome(), "401 unauthorized", "{number}");
        assert_eq!(
            log_in(&shop, &email(number), PASSWORD, office).outcome(),
            "200"
        );
    }
    shop.account("newcomer@example.com", Role::Customer);
    let spray = (0..40)
        .map(|number| {
            log_in(
                &shop,
                &format!("{number}@example.com"),
                "Summer2026!",
                office,
            )
        })
        .take_while(|answer| answer.status == 401)
        .count();
    assert_eq!(spray, 20);
    let newcomer = log_in(&shop, "newcomer@example.com", PASSWORD, office);
    assert_eq!(newcomer.outcome(), "429 login_throttled");
    assert_eq!(
        log_in(&shop, &email(3), PASSWORD, office).outcome(),
        "200",
        "it is at home there"
    );
    // Whoever sprays there can't tell who that is.
    let tell = |email: &str| {
        let answer = log_in(&shop, email, "wrong password", office);
        let (code, wait) = (
            answer.outcome(),
            answer.header("retry-after").map(str::to_owned),
        );
        (code, wait, answer.json()["detail"].clone())
    };
    assert_eq!(tell(&email(4)), tell("nobody@example.com"));
    assert_eq!(tell(&email(4)).0, "429 login_throttled");
    shop.clock.advance(Duration::from_secs(20 * 120));
    let newcomer = log_in(&shop, "newcomer@example.com", PASSWORD, office);
    assert_eq!(
        newcomer.outcome(),
        "200",
        "it is forgotten without a restart"
    );
}

#[test]
fn guesses_at_once_and_odd_spellings_pass_no_limit() {
    let shop = shop_with_addresses();
    let owner = "owner@example.com";
    shop.account(owner, Role::Admin);
    // No account can be called so, and no count of an address is met by it.
    for _ in 0..30 {
        let odd = log_in(&shop, "@198.51.100.7", PASSWORD, "127.7.7.7");
        assert_eq!(odd.outcome(), "422 validation_failed");
        assert_eq!(odd.json()["errors"][0]["field"], "email");
    }
    let long = format!("{}@example.com", "x".repeat(300));
    assert_eq!(
        log_in(&shop, &long, PASSWORD, "127.7.7.7").outcome(),
        "422 validation_failed"
    );
    let spaced = log_in(
        &shop,
        " Owner@Example.com\u{3000}",
        PASSWORD,
        "198.51.100.7",
    );
    assert_eq!(spaced.outcome(), "200");
    let outcomes: Vec<String> = std::thread::scope(|scope| {
        let shop = &shop;
        let threads: Vec<_> = (0..60)
            .map(|number| {
                scope.spawn(move || {
                    let from = format!("203.0.113.{number}");
                    log_in(shop, owner, "wrong password", &from).outcome()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect()
    });
    let checked = outcomes
        .iter()
        .filter(|outcome| *outcome == "401 unauthorized")
        .count();
    assert_eq!(checked, 5, "{outcomes:?}");
    // Right ones at once are served, whatever their number.
    let outcomes: Vec<u16> = std::thread::scope(|scope| {
        let shop = &shop;
        let login = move || log_in(shop, owner, PASSWORD, "198.51.100.7").status;
        let threads: Vec<_> = (0..30).map(|_| scope.spawn(login)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect()
    });
    assert_eq!(outcomes, [200; 30]);
}

#[test]
fn open_endpoints_refuse_what_is_too_long_or_no_address_before_they_count_or_hash() {
    let shop = Shop::open();
    let long = "x".repeat(4_000);
    let login = |email: &str, password: &str| json!({"email": email, "password": password});
    let setup = |token: &str, email: &str, name: &str, password: &str| json!({"token": token, "email": email, "name": name, "password": password});
    let register = |email: &str, name: &str, language: &str| json!({"email": email, "name": name, "password": PASSWORD, "language": language});
    let (who, evil) = ("a@example.com", "evil@example.net>");
    for (path, body, field) in [
        ("login", login(&long, PASSWORD), "email"),
        ("login", login(evil, PASSWORD), "email"),
        ("login", login("", PASSWORD), "email"),
        ("login", login(who, &long), "password"),
        ("login", login(who, ""), "password"),
        ("register", register(&long, "x", "en"), "email"),
        ("register", register(who, &long, "en"), "name"),
        ("register", register(who, "x", &long), "language"),
        ("confirm", json!({"token": long, "password": "x"}), "token"),
        (
            "confirm",
            json!({"token": "x", "password": long}),
            "password",
        ),
        ("setup/check", json!({"token": long}), "token"),
        ("setup", setup(&long, who, "x", PASSWORD), "token"),
        ("setup", setup("x", evil, "x", PASSWORD), "email"),
        ("setup", setup("x", who, &long, PASSWORD), "name"),
        ("setup", setup("x", who, "x", &long), "password"),
    ] {
        for _ in 0..25 {
            let path = format!("/api/v1/auth/{path}");
            let answer = shop.post(&path).json(&body).send();
            assert_eq!(answer.outcome(), "422 validation_failed", "{path}");
            assert_eq!(answer.json()["errors"][0]["field"], field, "{path}");
            assert!(answer.body.len() < 2_000, "{path}: {}", answer.body.len());
        }
    }
    // None of these was a guess.
    shop.account(who, Role::Customer);
    let right = shop.post("/api/v1/auth/login").json(&login(who, PASSWORD));
    assert_eq!(right.send().outcome(), "200");
}

#[test]
fn registrations_have_limits_of_their_own_and_log_ins_do_not_wait_for_them() {
    let shop = Shop::open_with(|settings| {
        settings.auth.argon2_memory_kib = 19_456;
        settings.auth.argon2_passes = 2;
        settings.auth.registrations_per_address = 40;
        settings.auth.hash_concurrency = 1;
        settings.auth.hash_queue_max = 8;
    });
    shop.account("admin@example.com", Role::Admin);
    let register = |number: u32| {
        let body =
            json!({"email": format!("{number}@example.com"), "name": "x", "password": PASSWORD});
        let answer = shop.post("/api/v1/auth/register").json(&body).send();
        (answer.outcome(), answer.header("retry-after").is_some())
    };
    let begun = std::sync::Barrier::new(61);
    let outcomes: Vec<(String, bool)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..60)
            .map(|number| {
                let (begun, register) = (&begun, &register);
                scope.spawn(move || {
                    begun.wait();
                    register(number)
                })
            })
            .collect();
        begun.wait();
        for _ in 0..5 {
            let watch = onrush::clock::Stopwatch::start();
            shop.login("admin@example.com");
            let took = watch.elapsed();
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
        threads
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect()
    });
    for (outcome, may_retry) in &outcomes {
        match outcome.as_str() {
            "201" => {}
            "503 overloaded" | "429 client_busy" | "429 registration_throttled" => {
                assert!(may_retry, "{outcome}");
            }
            other => panic!("{other}"),
        }
    }
    // Those that were turned away at the queue are none; then there are forty at once.
    let made = |outcomes: &[(String, bool)]| {
        let is_made = |(outcome, _): &&(String, bool)| outcome == "201";
        outcomes.iter().filter(is_made).count()
    };
    let later: Vec<(String, bool)> = (100..160).map(register).collect();
    assert_eq!(made(&outcomes) + made(&later), 40);
    let last = later.last().expect("one");
    assert_eq!(last, &("429 registration_throttled".to_owned(), true));
    shop.clock.advance(Duration::from_secs(90));
    assert_eq!(register(200).0, "201", "one more each minute and a half");
    assert_eq!(register(201).0, "429 registration_throttled");
}

#[test]
fn sessions_of_an_account_are_few_and_end_when_its_role_changes() {
    let shop = Shop::open_with(|settings| settings.auth.sessions_max = 3);
    let admin = shop.token(Role::Admin);
    let id = shop.account("anna@example.com", Role::Customer);
    let me = |token: &str| shop.get("/api/v1/me").token(token).send().status;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(shop.login("anna@example.com"));
        // Used, so that one in memory would show.
        assert_eq!(me(sessions.last().expect("one")), 200);
        shop.clock.advance(Duration::from_secs(1));
    }
    let states: Vec<u16> = sessions.iter().map(|token| me(token)).collect();
    assert_eq!(states, [401, 401, 200, 200, 200]);
    let path = format!("/api/v1/users/{id}");
    let change = |patch: Value| {
        let ask = shop.ask("PATCH", &path).token(&admin).json(&patch);
        ask.send().expect(200)
    };
    change(json!({"name": "Anna", "role": "customer"}));
    assert_eq!(me(&sessions[4]), 200, "nothing has changed that matters");
    change(json!({"role": "staff"}));
    assert_eq!(me(&sessions[4]), 401, "a customer's month is not for staff");
    let staff = shop.login("anna@example.com");
    change(json!({"role": "customer"}));
    assert_eq!(me(&staff), 401);
}

#[test]
fn what_matters_to_security_is_counted_by_its_owasp_name() {
    let shop = Shop::open_with(|settings| {
        settings.auth.registrations_per_address = 1;
    });
    let admin = shop.token(Role::Admin);
    let id = shop.account("anna@example.com", Role::Customer);
    let anna = shop.login("anna@example.com");
    let login = |email: &str| {
        let body = json!({"email": email, "password": "wrong password"});
        shop.post("/api/v1/auth/login").json(&body).send()
    };
    // As many as of a stranger, and as many again because this address is a known one.
    for _ in 0..12 {
        login("anna@example.com");
    }
    login("nobody@example.com");
    for number in 0..2 {
        let body =
            json!({"email": format!("{number}@example.com"), "name": "x", "password": PASSWORD});
        shop.post("/api/v1/auth/register").json(&body).send();
    }
    let body = json!({"name": "x", "scopes": ["orders"]});
    let key = shop.post("/api/v1/api-keys").token(&admin).json(&body);
    let key = format!("/api/v1/api-keys/{}", key.send().expect(201)["id"]);
    shop.ask("DELETE", &key).token(&admin).send().expect(204);
    assert_eq!(shop.get("/api/v1/users").token(&anna).send().status, 403);
    let path = format!("/api/v1/users/{id}");
    for patch in [
        json!({"role": "staff"}),
        json!({"status": "disabled"}),
        json!({"status": "active"}),
    ] {
        let ask = shop.ask("PATCH", &path).token(&admin).json(&patch);
        ask.send().expect(200);
    }
    let counted = shop.get("/metrics").send().body;
    for (event, count) in [
        ("sys_startup", 1),
        ("authn_login_success", 2),
        ("authn_login_fail", 11),
        ("authn_login_fail_max", 2),
        ("user_created", 1),
        ("excess_rate_limit_exceeded", 1),
        ("authn_token_created", 1),
        ("authn_token_revoked", 1),
        ("authz_fail", 1),
        ("privilege_permissions_changed", 1),
        ("user_updated", 2),
        ("session_expired", 2),
    ] {
        let line = format!("security_events_total{{event=\"{event}\"}} {count}\n");
        assert!(counted.contains(&line), "{line}{counted}");
    }
}

#[test]
pub fn guesses_at_the_set_up_token_wait_and_its_owner_does_not() {
    let shop = Shop::open();
    let greeting = shop.app().greeting().join("\n");
    let (_, token) = greeting.split_once("#setup=").expect("a link");
    let setup = |token: &str| {
        let body = json!({"token": token, "email": "owner@example.com", "name": "Owner", "password": PASSWORD});
        shop.post("/api/v1/auth/setup").json(&body).send()
    };
    let guessed = (0..40)
        .map(|_| setup("setup_guess"))
        .take_while(|answer| answer.status == 403);
    assert_eq!(guessed.count(), 20);
    let waits = setup("setup_guess");
    assert_eq!(waits.outcome(), "429 login_throttled");
    assert!(waits.header("retry-after").is_some());
    assert_eq!(setup(token).outcome(), "201");
}

#[test]
fn a_session_ends_when_it_is_logged_out_idle_or_old() {
    let mut shop = Shop::open();
    let token = shop.token(Role::Customer);
    let me = |shop: &Shop, token: &str| shop.get("/api/v1/me").token(token).send().status;
    shop.restart();
    assert_eq!(me(&shop, &token), 200, "a session outlives the process");
    let out = shop.post("/api/v1/auth/logout").token(&token).send();
    assert_eq!(out.status, 204);
    assert_eq!(me(&shop, &token), 401);
    let staff = shop.token(Role::Staff);
    shop.clock.advance(Duration::from_secs(1_700));
    assert_eq!(me(&shop, &staff), 200);
    shop.clock.advance(Duration::from_secs(1_700));
    assert_eq!(me(&shop, &staff), 200, "use keeps it awake");
    shop.clock.advance(Duration::from_secs(1_801));
    assert_eq!(me(&shop, &staff), 401, "idle");
    let staff = shop.token(Role::Staff);
    for _ in 0..18 {
        shop.clock.advance(Duration::from_secs(1_700));
        me(&shop, &staff);
    }
    assert_eq!(me(&shop, &staff), 401, "older than eight hours");
}

#[test]
fn the_pages_cookie_is_strict_and_writes_only_with_its_token() {
    let shop = Shop::open();
    shop.account("boss@example.com", Role::Admin);
    let login = shop
        .post("/api/v1/auth/login")
        .json(&json!({"email": "boss@example.com", "password": PASSWORD, "cookie": true}))
        .send();
    let set = login.header("set-cookie").expect("a cookie").to_owned();
    assert!(set.contains("HttpOnly; SameSite=Strict"), "{set}");
    let cookie = set.split(';').next().expect("a pair").to_owned();
    let body = login.expect(200);
    assert_eq!(
        body["token"],
        Value::Null,
        "the page's scripts never see it"
    );
    let csrf = text(&body["csrf_token"]);
    let me = shop
        .get("/api/v1/me")
        .header("Cookie", &cookie)
        .send()
        .expect(200);
    assert_eq!(me["csrf_token"], csrf, "the same after a reload");
    let write = || {
        shop.post("/api/v1/products")
            .header("Cookie", &cookie)
            .json(&json!({"name": "x", "unit_amount": 1, "currency": "CNY"}))
    };
    let own = || write().header("Sec-Fetch-Site", "same-origin");
    assert_eq!(own().send().outcome(), "403 csrf");
    assert_eq!(
        own().header("X-CSRF-Token", "x").send().outcome(),
        "403 csrf"
    );
    assert_eq!(own().header("X-CSRF-Token", &csrf).send().status, 201);
    // The token does not help where the browser names another page, or nothing says which it is.
    let with = |name: &str, value: &str| {
        let ask = write().header("X-CSRF-Token", &csrf).header(name, value);
        ask.send().outcome()
    };
    for (name, value, outcome) in [
        ("Sec-Fetch-Site", "cross-site", "403 csrf"),
        ("Sec-Fetch-Site", "same-site", "403 csrf"),
        ("Sec-Fetch-Site", "none", "403 csrf"),
        ("Origin", "https://evil.example", "403 csrf"),
        ("Origin", "http://shop.evil.example", "403 csrf"),
        ("Origin", "http://shop:81", "403 csrf"),
        ("Origin", "null", "403 csrf"),
        ("Origin", "shop", "403 csrf"),
        ("X-Nothing", "x", "403 csrf"),
        ("Origin", "http://shop", "201"),
        ("Origin", "https://Shop", "201"),
    ] {
        assert_eq!(with(name, value), outcome, "{name}: {value}");
    }
    let proxied = write()
        .header("X-CSRF-Token", &csrf)
        .header("Origin", "https://shop.example")
        .header("X-Forwarded-Host", "shop.example");
    assert_eq!(proxied.send().status, 201);
    let contradicted = own()
        .header("X-CSRF-Token", &csrf)
        .header("Origin", "https://shop.example");
    assert_eq!(
        contradicted.send().status,
        201,
        "what no script sets decides"
    );
    // No other page logs a browser in, to have it act as somebody else.
    let body = json!({"email": "boss@example.com", "password": PASSWORD, "cookie": true});
    let planted = shop.post("/api/v1/auth/login").json(&body);
    let planted = planted.header("Origin", "https://evil.example").send();
    assert_eq!(planted.outcome(), "403 csrf");
    assert_eq!(planted.header("set-cookie"), None);
    // Neither kind of token is worth anything in the other's place.
    let (_, token) = cookie.split_once('=').expect("a pair");
    assert_eq!(shop.get("/api/v1/me").token(token).send().status, 401);
    let bearer = shop.login("boss@example.com");
    let swapped = format!("onrush_session={bearer}");
    assert_eq!(
        shop.get("/api/v1/me")
            .header("Cookie", &swapped)
            .send()
            .status,
        401
    );
    let out = shop
        .post("/api/v1/auth/logout")
        .header("Cookie", &cookie)
        .header("X-CSRF-Token", &csrf)
        .header("Sec-Fetch-Site", "same-origin")
        .send();
    assert!(
        out.header("set-cookie")
            .expect("gone")
            .contains("Max-Age=0")
    );
    assert_eq!(
        shop.get("/api/v1/me")
            .header("Cookie", &cookie)
            .send()
            .status,
        401
    );
}

#[test]
fn behind_tls_at_a_trusted_proxy_the_cookie_is_bound_to_this_host() {
    let shop = Shop::open_with(|settings| {
        settings.server.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a range")];
    });
    shop.account("boss@example.com", Role::Admin);
    let body = json!({"email": "boss@example.com", "password": PASSWORD, "cookie": true});
    let login = shop
        .post("/api/v1/auth/login")
        .header("X-Forwarded-Proto", "https")
        .json(&body)
        .send();
    let set = login.header("set-cookie").expect("a cookie");
    assert!(
        set.starts_with("__Host-onrush=") && set.ends_with("; Secure"),
        "{set}"
    );
    assert!(login.header("strict-transport-security").is_some());
}

#[test]
fn keys_are_shown_once_bounded_by_their_maker_and_end() {
    let shop = Shop::open();
    let (admin, staff) = (shop.token(Role::Admin), shop.token(Role::Staff));
    let make =
        |token: &str, body: &Value| shop.post("/api/v1/api-keys").token(token).json(body).send();
    assert_eq!(
        make(&staff, &json!({"name": "x", "scopes": ["act_as"]})).status,
        403
    );
    let unknown = make(&admin, &json!({"name": "x", "scopes": ["orders", "root"]}));
    assert_eq!(unknown.json()["errors"][0]["field"], "scopes[1]");
    assert_eq!(
        make(&admin, &json!({"name": "x", "scopes": []})).status,
        422
    );
    let past = json!({"name": "x", "scopes": ["orders"], "expires_at": "2020-01-01T00:00:00Z"});
    assert_eq!(make(&admin, &past).status, 422);
    let end = shop.clock.now().plus_seconds(3_600);
    let body = json!({"name": "till", "scopes": ["sales", "orders", "orders"], "expires_at": end});
    let made = make(&staff, &body).expect(201);
    assert_eq!(made["scopes"], json!(["orders", "sales"]));
    let key = text(&made["key"]);
    let own = shop.get("/api/v1/api-keys").token(&staff).send();
    assert!(!own.body.contains(&key), "only its hash is kept");
    assert_eq!(own.expect(200)["items"][0]["name"], "till");
    let other = shop.token(Role::Staff);
    let list = shop
        .get("/api/v1/api-keys")
        .token(&other)
        .send()
        .expect(200);
    assert_eq!(list["items"], json!([]));
    let path = format!("/api/v1/api-keys/{}", made["id"]);
    let foreign = shop.ask("DELETE", &path).token(&other).send();
    assert_eq!(foreign.outcome(), "404 api_key_not_found");
    assert_eq!(shop.get("/api/v1/orders").token(&key).send().status, 200);
    shop.clock.advance(Duration::from_secs(3_601));
    assert_eq!(
        shop.get("/api/v1/orders").token(&key).send().status,
        401,
        "it ended"
    );
    let all = shop
        .get("/api/v1/api-keys")
        .token(&shop.token(Role::Admin))
        .send()
        .expect(200);
    assert_eq!(all["items"][0]["name"], "till");
}

#[test]
pub fn staff_see_users_and_admins_change_roles() {
    let shop = Shop::open();
    let (admin, staff) = (shop.token(Role::Admin), shop.token(Role::Staff));
    let body = |email: &str, role: &str| json!({"email": email, "name": "新同事", "password": PASSWORD, "role": role});
    let make =
        |token: &str, body: &Value| shop.post("/api/v1/users").token(token).json(body).send();
    assert_eq!(
        make(&staff, &body("x@example.com", "staff")).outcome(),
        "403 forbidden"
    );
    assert_eq!(make(&admin, &body("x@example.com", "owner")).status, 422);
    let made = make(&admin, &body("x@example.com", "staff")).expect(201);
    let path = format!("/api/v1/users/{}", made["id"]);
    let patch = |token: &str, body: Value| {
        shop.ask("PATCH", &path)
            .token(token)
            .json(&body)
            .send()
            .outcome()
    };
    assert_eq!(patch(&staff, json!({"role": "customer"})), "403 forbidden");
    assert_eq!(patch(&staff, json!({"name": "x"})), "403 forbidden");
    assert_eq!(patch(&admin, json!({"role": "customer"})), "200");
    assert_eq!(patch(&staff, json!({"status": "disabled"})), "200");
    assert_eq!(
        patch(&staff, json!({"password": "x"})),
        "422 validation_failed"
    );
    let found = shop
        .get("/api/v1/users?q=x%40ex&status=disabled")
        .token(&staff)
        .send()
        .expect(200);
    assert_eq!(found["items"][0]["email"], "x@example.com");
    let page = shop
        .get("/api/v1/users?limit=2")
        .token(&staff)
        .send()
        .expect(200);
    let next = text(&page["next_cursor"]);
    let rest = shop
        .get(&format!("/api/v1/users?cursor={next}"))
        .token(&staff)
        .send()
        .expect(200);
    assert_eq!(rest["items"].as_array().expect("a list").len(), 1);
    let me = shop.get("/api/v1/me").token(&admin).send().expect(200)["id"].to_string();
    let last = shop
        .ask("PATCH", &format!("/api/v1/users/{me}"))
        .token(&admin)
        .json(&json!({"role": "staff"}))
        .send();
    assert_eq!(last.outcome(), "409 last_admin");
}

#[test]
pub fn accounts_are_found_by_names_of_any_alphabet_also_those_of_an_earlier_version() {
    let mut shop = Shop::open();
    let admin = shop.token(Role::Admin);
    let names = [
        ("a@example.com", "Ärmel ÉTÉ", "Ä"),
        ("b@example.com", "ΟΔΥΣΣΕΥΣ", "οδυσσευς"),
        ("c@example.com", "Жанна", "ЖАН"),
        ("d@example.com", "李雷", "李"),
        ("e@example.com", "Straße 5", "STRASSE"),
        ("ärger@example.com", "Plain Name", "plain n"),
    ];
    for (email, name, _) in names {
        let body = json!({"email": email, "name": name, "password": PASSWORD, "role": "customer"});
        let made = shop.post("/api/v1/users").token(&admin).json(&body);
        made.send().expect(201);
    }
    let found = |shop: &Shop, beginning: &str| -> Vec<String> {
        let encoded: String = beginning
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let path = format!("/api/v1/users?q={encoded}");
        let page = shop.get(&path).token(&admin).send().expect(200);
        let items = page["items"].as_array().expect("a list");
        items.iter().map(|item| text(&item["email"])).collect()
    };
    let all_are_found = |shop: &Shop| {
        for (email, name, beginning) in names {
            assert!(found(shop, beginning).contains(&email.to_owned()), "{name}");
            assert_eq!(found(shop, name), [email], "{name}");
            assert_eq!(found(shop, &name.to_lowercase()), [email], "{name}");
        }
        assert_eq!(found(shop, "ÄRGER@EX"), ["ärger@example.com"]);
        assert_eq!(found(shop, "ä").len(), 2, "by address and by name");
    };
    all_are_found(&shop);
    let path = shop
        .get("/api/v1/users?q=e%40")
        .token(&admin)
        .send()
        .expect(200);
    let path = format!("/api/v1/users/{}", path["items"][0]["id"]);
    let renamed = json!({"name": "Éclair"});
    let patch = shop.ask("PATCH", &path).token(&admin).json(&renamed);
    patch.send().expect(200);
    assert_eq!(found(&shop, "éCL"), ["e@example.com"]);
    assert_eq!(found(&shop, "strasse"), [""; 0]);
    let back = json!({"name": "Straße 5"});
    let patch = shop.ask("PATCH", &path).token(&admin).json(&back);
    patch.send().expect(200);
    // As a version before left it.
    let database = shop.data_dir().join("onrush.db");
    let conn = rusqlite::Connection::open(database).expect("the database");
    let unfolded = conn.execute("UPDATE users SET folded_name = NULL", []);
    assert!(unfolded.expect("unfolded") > names.len());
    drop(conn);
    shop.restart();
    all_are_found(&shop);
}
