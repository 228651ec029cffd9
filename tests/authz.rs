//! Nobody acts beyond their role: every operation of the specification as every kind of caller.
//!
//! Invariant: an operation that the table below does not know fails the test, so a new route needs
//! a line here that says who may use it.

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::{Ask, PASSWORD, Shop, text};

/// Who may use an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// Anyone, logged in or not.
    Anyone,
    /// Any account or key.
    Caller,
    /// Any account; a key needs the scope.
    Customer(&'static str),
    /// Staff and admins; a key of theirs needs the scope.
    Staff(&'static str),
    /// Admins; a key of theirs needs the scope.
    Admin(&'static str),
    /// Any account, but no key.
    Person,
    /// Staff and admins, but no key.
    StaffPerson,
}

/// Every operation, who may use it, and a body that fits its schema.
fn table() -> Vec<(&'static str, &'static str, Rule, Value)> {
    use Rule::{Admin, Anyone, Caller, Customer, Person, Staff, StaffPerson};
    let product = json!({"name": "x", "unit_amount": 1, "currency": "CNY"});
    let sale = json!({
        "product_id": 999_999, "quantity": 1, "unit_amount": 1,
        "starts_at": "2030-01-01T00:00:00Z", "ends_at": "2030-01-02T00:00:00Z",
    });
    let order = json!({"items": [{"product_id": 999_999, "quantity": 1}]});
    let user = json!({"email": "made@example.com", "name": "x", "password": PASSWORD});
    let none = Value::Null;
    vec![
        ("POST", "/api/v1/auth/register", Anyone, user.clone()),
        (
            "POST",
            "/api/v1/auth/login",
            Anyone,
            json!({"email": "n@x.yz", "password": "x"}),
        ),
        (
            "POST",
            "/api/v1/auth/confirm",
            Anyone,
            json!({"token": "x", "password": "x"}),
        ),
        (
            "POST",
            "/api/v1/auth/setup",
            Anyone,
            json!({"token": "x", "email": "a@b.co", "name": "x", "password": PASSWORD}),
        ),
        (
            "POST",
            "/api/v1/auth/setup/check",
            Anyone,
            json!({"token": "x"}),
        ),
        ("POST", "/api/v1/auth/logout", Person, none.clone()),
        ("GET", "/api/v1/me", Caller, none.clone()),
        ("GET", "/api/v1/api-keys", StaffPerson, none.clone()),
        (
            "POST",
            "/api/v1/api-keys",
            StaffPerson,
            json!({"name": "x", "scopes": ["orders"]}),
        ),
        ("DELETE", "/api/v1/api-keys/{id}", StaffPerson, none.clone()),
        ("GET", "/api/v1/users", Staff("users"), none.clone()),
        ("POST", "/api/v1/users", Staff("users"), user),
        (
            "PATCH",
            "/api/v1/users/{id}",
            Staff("users"),
            json!({"name": "x"}),
        ),
        ("GET", "/api/v1/products", Anyone, none.clone()),
        ("GET", "/api/v1/products/hot", Anyone, none.clone()),
        ("GET", "/api/v1/products/{id}", Anyone, none.clone()),
        ("POST", "/api/v1/products", Staff("catalogue"), product),
        (
            "POST",
            "/api/v1/products/import",
            Staff("catalogue"),
            none.clone(),
        ),
        (
            "PATCH",
            "/api/v1/products/{id}",
            Staff("catalogue"),
            json!({"name": "x"}),
        ),
        (
            "DELETE",
            "/api/v1/products/{id}",
            Staff("catalogue"),
            none.clone(),
        ),
        ("GET", "/api/v1/orders", Customer("orders"), none.clone()),
        ("POST", "/api/v1/orders", Customer("orders"), order),
        (
            "GET",
            "/api/v1/orders/{id}",
            Customer("orders"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/orders/{id}/cancel",
            Customer("orders"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/orders/{id}/pay",
            Customer("payments"),
            none.clone(),
        ),
        ("GET", "/api/v1/flash-sales", Anyone, none.clone()),
        ("GET", "/api/v1/flash-sales/{id}", Anyone, none.clone()),
        ("POST", "/api/v1/flash-sales", Staff("sales"), sale),
        (
            "POST",
            "/api/v1/flash-sales/{id}/stop",
            Staff("sales"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/flash-sales/{id}/claims",
            Customer("orders"),
            none.clone(),
        ),
        (
            "GET",
            "/api/v1/claims/{id}",
            Customer("orders"),
            none.clone(),
        ),
        (
            "POST",
            "/seckill/{product_id}",
            Customer("orders"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/tasks",
            Admin("tasks"),
            json!({"name": "x"}),
        ),
        (
            "POST",
            "/api/v1/tasks/batch",
            Admin("tasks"),
            json!({"tasks": [{"name": "x"}]}),
        ),
        (
            "POST",
            "/api/v1/tasks/bulk",
            Admin("tasks"),
            json!({"action": "retry", "name": "none"}),
        ),
        ("GET", "/api/v1/tasks", Staff("tasks"), none.clone()),
        ("GET", "/api/v1/tasks/{id}", Staff("tasks"), none.clone()),
        (
            "PATCH",
            "/api/v1/tasks/{id}",
            Admin("tasks"),
            json!({"priority": 1}),
        ),
        ("DELETE", "/api/v1/tasks/{id}", Admin("tasks"), none.clone()),
        (
            "POST",
            "/api/v1/tasks/{id}/retry",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/tasks/{id}/cancel",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/tasks/runs/end",
            Staff("work"),
            json!({"runs": [{"task_id": "none", "attempt": 1, "outcome": "completed"}]}),
        ),
        (
            "POST",
            "/api/v1/tasks/{id}/ack",
            Staff("work"),
            json!({"attempt": 1}),
        ),
        (
            "POST",
            "/api/v1/tasks/{id}/fail",
            Staff("work"),
            json!({"attempt": 1, "error": "x"}),
        ),
        (
            "POST",
            "/api/v1/tasks/{id}/heartbeat",
            Staff("work"),
            json!({"attempt": 1}),
        ),
        (
            "POST",
            "/api/v1/tasks/{id}/progress",
            Staff("work"),
            json!({"attempt": 1, "percent": 1}),
        ),
        ("GET", "/api/v1/task-types", Staff("tasks"), none.clone()),
        ("GET", "/api/v1/task-counts", Staff("tasks"), none.clone()),
        ("GET", "/api/v1/queues", Staff("tasks"), none.clone()),
        (
            "PATCH",
            "/api/v1/queues/{name}",
            Admin("tasks"),
            json!({"concurrency_max": 1}),
        ),
        (
            "POST",
            "/api/v1/queues/{name}/pause",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/queues/{name}/resume",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/queues/{name}/fetch",
            Staff("work"),
            none.clone(),
        ),
        ("GET", "/api/v1/schedules", Staff("tasks"), none.clone()),
        (
            "POST",
            "/api/v1/schedules",
            Admin("tasks"),
            json!({"name": "x", "cron": "@daily", "task": "x"}),
        ),
        (
            "GET",
            "/api/v1/schedules/{name}",
            Staff("tasks"),
            none.clone(),
        ),
        (
            "PATCH",
            "/api/v1/schedules/{name}",
            Admin("tasks"),
            json!({"overlap": "skip"}),
        ),
        (
            "DELETE",
            "/api/v1/schedules/{name}",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/schedules/{name}/run",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/schedules/{name}/pause",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/schedules/{name}/resume",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "GET",
            "/api/v1/schedules/{name}/runs",
            Staff("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/reports/sales",
            Staff("reports"),
            json!({"start_date": "2026-11-01", "end_date": "2026-11-30"}),
        ),
        (
            "GET",
            "/api/v1/reports/sales",
            Staff("reports"),
            none.clone(),
        ),
        ("GET", "/api/v1/workers", Staff("tasks"), none.clone()),
        (
            "POST",
            "/api/v1/workers/{wid}/quiet",
            Admin("tasks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/workers/{wid}/stop",
            Admin("tasks"),
            none.clone(),
        ),
        ("GET", "/api/v1/cache/stats", Admin("cache"), none.clone()),
        (
            "GET",
            "/api/v1/cache/entries/{key}",
            Admin("cache"),
            none.clone(),
        ),
        (
            "DELETE",
            "/api/v1/cache/entries/{key}",
            Admin("cache"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/cache/invalidate",
            Admin("cache"),
            json!({"tag": "x"}),
        ),
        (
            "GET",
            "/api/v1/cache/hot-keys",
            Admin("cache"),
            none.clone(),
        ),
        ("POST", "/api/v1/cache/warm", Admin("cache"), none.clone()),
        ("GET", "/api/v1/webhooks", Admin("webhooks"), none.clone()),
        (
            "POST",
            "/api/v1/webhooks",
            Admin("webhooks"),
            json!({"url": "https://example.com/x", "events": ["*"]}),
        ),
        (
            "GET",
            "/api/v1/webhooks/{id}",
            Admin("webhooks"),
            none.clone(),
        ),
        (
            "PATCH",
            "/api/v1/webhooks/{id}",
            Admin("webhooks"),
            json!({"description": "x"}),
        ),
        (
            "DELETE",
            "/api/v1/webhooks/{id}",
            Admin("webhooks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/webhooks/{id}/rotate",
            Admin("webhooks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/webhooks/{id}/ping",
            Admin("webhooks"),
            none.clone(),
        ),
        (
            "POST",
            "/api/v1/webhooks/{id}/replay",
            Admin("webhooks"),
            json!({"event_id": "evt_none"}),
        ),
        (
            "GET",
            "/api/v1/webhooks/{id}/deliveries",
            Admin("webhooks"),
            none.clone(),
        ),
        (
            "GET",
            "/api/v1/webhook-events/{id}",
            Admin("webhooks"),
            none.clone(),
        ),
        (
            "GET",
            "/api/v1/webhook-event-types",
            Admin("webhooks"),
            none.clone(),
        ),
        (
            "GET",
            "/api/v1/system/slow-queries",
            Admin("system"),
            none.clone(),
        ),
        // A user's own account needs `orders`, anyone else's `users`: tested apart.
        ("GET", "/api/v1/users/{id}", Customer("users"), none),
    ]
}

/// What a caller carries, made anew for each request because some end with it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Nobody,
    Forged,
    ForgedCookie,
    Disabled(Role),
    Account(Role),
    /// A key of an account of this role with every scope but the one needed (and `act_as`).
    KeyWithout(Role),
    /// A key of an account of this role with just the scope needed.
    KeyWith(Role),
    RevokedKey,
}

const EVERYONE: &[Who] = &[
    Who::Nobody,
    Who::Forged,
    Who::ForgedCookie,
    Who::Disabled(Role::Customer),
    Who::Disabled(Role::Admin),
    Who::Account(Role::Customer),
    Who::Account(Role::Staff),
    Who::Account(Role::Admin),
    Who::KeyWithout(Role::Admin),
    Who::KeyWith(Role::Customer),
    Who::KeyWith(Role::Staff),
    Who::KeyWith(Role::Admin),
    Who::RevokedKey,
];

/// The status that must come back, or `None` for anything but 401 and 403.
fn expected(rule: Rule, who: Who) -> Option<u16> {
    let is_staff = |role| role != Role::Customer;
    match (rule, who) {
        (Rule::Anyone, _) => None,
        (_, Who::Nobody | Who::Forged | Who::ForgedCookie | Who::Disabled(_) | Who::RevokedKey) => {
            Some(401)
        }
        (Rule::Caller, _) => None,
        (Rule::Person | Rule::Customer(_), Who::Account(_)) => None,
        (Rule::Admin(_), Who::Account(role)) => (role != Role::Admin).then_some(403),
        (Rule::Staff(_) | Rule::StaffPerson, Who::Account(role)) => {
            (!is_staff(role)).then_some(403)
        }
        (Rule::Person | Rule::StaffPerson, Who::KeyWith(_) | Who::KeyWithout(_)) => Some(403),
        (_, Who::KeyWithout(_)) => Some(403),
        (Rule::Customer(_), Who::KeyWith(_)) => None,
        (Rule::Admin(_), Who::KeyWith(role)) => (role != Role::Admin).then_some(403),
        (Rule::Staff(_), Who::KeyWith(role)) => (!is_staff(role)).then_some(403),
    }
}

const SCOPES: &[&str] = &[
    "catalogue",
    "orders",
    "payments",
    "sales",
    "users",
    "tasks",
    "work",
    "reports",
    "webhooks",
    "system",
    "metrics",
];

struct Callers<'a> {
    shop: &'a Shop,
    admin: String,
}

impl Callers<'_> {
    /// A key for a new account that has become one of `role` since, made with the command line's function.
    fn key(&self, role: Role, scopes: &[&str]) -> (i64, String) {
        let email = format!("{:032x}@example.com", rand::random::<u128>());
        let id = self.shop.account(&email, Role::Admin);
        let new = onrush::auth::NewKey {
            name: "test".to_owned(),
            scopes: scopes
                .iter()
                .filter_map(|word| onrush::auth::Scope::from_word(word))
                .collect(),
            expires_at: None,
        };
        let now = self.shop.clock.now();
        let (key, text) = self
            .shop
            .app()
            .store
            .write(move |tx| onrush::auth::create_api_key_for(tx, now, &email, &new, 10))
            .blocking()
            .expect("a key");
        self.change(id, &json!({"role": role}));
        (key.id.0, text)
    }

    fn change(&self, user: i64, patch: &Value) {
        let path = format!("/api/v1/users/{user}");
        let ask = self.shop.ask("PATCH", &path).token(&self.admin);
        ask.json(patch).send().expect(200);
    }

    fn token(&self, who: Who, needed: &str) -> Option<String> {
        match who {
            Who::Nobody | Who::ForgedCookie => None,
            Who::Forged => Some(format!("ons_{}", "A".repeat(43))),
            Who::Account(role) => Some(self.shop.token(role)),
            Who::Disabled(role) => {
                let email = format!("{:032x}@example.com", rand::random::<u128>());
                let id = self.shop.account(&email, role);
                let token = self.shop.login(&email);
                // It was used before, so that a cached caller would show.
                self.shop.get("/api/v1/me").token(&token).send().expect(200);
                self.shop
                    .ask("PATCH", &format!("/api/v1/users/{id}"))
                    .token(&self.admin)
                    .json(&json!({"status": "disabled"}))
                    .send()
                    .expect(200);
                Some(token)
            }
            Who::KeyWithout(role) => {
                let others: Vec<&str> = SCOPES
                    .iter()
                    .copied()
                    .filter(|word| *word != needed)
                    .collect();
                Some(self.key(role, &others).1)
            }
            Who::KeyWith(role) => {
                let needed = if needed.is_empty() { "orders" } else { needed };
                Some(self.key(role, &[needed]).1)
            }
            Who::RevokedKey => {
                let (id, key) = self.key(Role::Admin, SCOPES);
                self.shop.get("/api/v1/me").token(&key).send().expect(200);
                self.shop
                    .ask("DELETE", &format!("/api/v1/api-keys/{id}"))
                    .token(&self.admin)
                    .send()
                    .expect(204);
                Some(key)
            }
        }
    }
}

#[test]
pub fn every_operation_answers_every_kind_of_caller_as_the_table_says() {
    let shop = Shop::open_with(|settings| settings.orders.customers_confirm_payment = false);
    let callers = Callers {
        shop: &shop,
        admin: shop.token(Role::Admin),
    };
    let document: Value =
        serde_json::from_str(include_str!("../openapi/onrush.json")).expect("JSON");
    let table = table();
    let mut operations = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            operations += 1;
            let method = method.to_uppercase();
            let (_, _, rule, body) = table
                .iter()
                .find(|(known, at, ..)| *known == method && at == path)
                .unwrap_or_else(|| panic!("{method} {path} has no line in this test's table"));
            let is_open = document["paths"][path][method.to_lowercase()]["security"].is_null();
            assert_eq!(
                is_open,
                *rule == Rule::Anyone,
                "{method} {path} in the specification"
            );
            for who in EVERYONE {
                check(&callers, &method, path, *rule, body, *who);
            }
        }
    }
    assert_eq!(
        operations,
        table.len(),
        "the table knows more than there is"
    );
}

fn check(callers: &Callers<'_>, method: &str, path: &str, rule: Rule, body: &Value, who: Who) {
    let needed = match rule {
        Rule::Customer(scope) | Rule::Staff(scope) | Rule::Admin(scope) => scope,
        Rule::Anyone | Rule::Caller | Rule::Person | Rule::StaffPerson => "",
    };
    let real_path = path
        .replace("{id}", "999999")
        .replace("{product_id}", "999999")
        .replace("{name}", "none")
        .replace("{wid}", "none");
    let real_path = match (method, path) {
        ("GET", "/api/v1/reports/sales") => {
            format!("{real_path}?start_date=2026-11-01&end_date=2026-11-30")
        }
        _ => real_path,
    };
    let mut ask = callers.shop.ask(method, &real_path);
    if let Some(token) = callers.token(who, needed) {
        ask = ask.token(&token);
    }
    if who == Who::ForgedCookie {
        ask = ask
            .header("Cookie", &format!("onrush_session=onc_{}", "A".repeat(43)))
            .header("X-CSRF-Token", "x");
    }
    ask = if path == "/api/v1/products/import" {
        ask.raw("text/csv", b"sku,name,price,currency\n")
    } else if body.is_null() {
        ask
    } else {
        ask.json(body)
    };
    let answer = ask.send();
    let name = format!("{method} {path} as {who:?}: {answer:?}");
    // `pay` is open to staff and to keys with the scope; customers don't confirm their own payments.
    let pays = path.ends_with("/pay");
    let expected = match who {
        Who::Account(Role::Customer) | Who::KeyWith(Role::Customer) if pays => Some(403),
        // Another's account is as absent as none for customers and their keys.
        Who::Account(Role::Customer) | Who::KeyWith(Role::Customer)
            if path == "/api/v1/users/{id}" =>
        {
            assert!(matches!(answer.status, 403 | 404), "{name}");
            return;
        }
        _ => expected(rule, who),
    };
    match expected {
        Some(status) => assert_eq!(answer.status, status, "{name}"),
        // A wrong password at login is a 401 of its own, a wrong set-up token a 403.
        None if path.ends_with("/auth/login") || path.contains("/auth/setup") => {
            assert!(answer.status < 500, "{name}");
        }
        None => assert!(
            !matches!(answer.status, 401 | 403) && answer.status < 500,
            "{name}"
        ),
    }
    if answer.status == 401 {
        assert!(answer.header("www-authenticate").is_some(), "{name}");
    }
}

#[test]
fn what_is_anothers_is_as_absent_as_nothing() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let (anna, ben) = (shop.token(Role::Customer), shop.token(Role::Customer));
    let product = shop.product(&staff, 10);
    let order = shop
        .post("/api/v1/orders")
        .token(&anna)
        .json(&json!({"items": [{"product_id": product, "quantity": 1}]}))
        .send()
        .expect(201)["id"]
        .to_string();
    let sale = shop.sale(&staff, product, 3, json!({}));
    let claims = format!("/api/v1/flash-sales/{sale}/claims");
    let claim = shop.post(&claims).token(&anna).send().expect(201);
    let me = shop.get("/api/v1/me").token(&anna).send().expect(200)["id"].to_string();
    for (method, path) in [
        ("GET", format!("/api/v1/orders/{order}")),
        ("POST", format!("/api/v1/orders/{order}/cancel")),
        ("POST", format!("/api/v1/orders/{order}/pay")),
        (
            "GET",
            format!("/api/v1/claims/{}", text(&claim["claim_id"])),
        ),
        ("GET", format!("/api/v1/users/{me}?include=orders")),
    ] {
        let other = shop.ask(method, &path).token(&ben).send();
        assert_eq!(other.status, 404, "{method} {path}: {other:?}");
        let unknown = shop
            .ask(
                method,
                &path.replace(&format!("orders/{order}"), "orders/424242"),
            )
            .token(&ben)
            .send();
        if path.contains("/orders/") {
            let strip = |body: &str| body.replace("424242", &order);
            assert_eq!(
                other.json()["detail"],
                strip(&text(&unknown.json()["detail"]))
            );
        }
        let own = shop.ask(method, &path).token(&anna).send();
        assert!(
            own.status < 404 || own.status == 409,
            "{method} {path}: {own:?}"
        );
        let mine = shop.ask(method, &path).token(&staff).send();
        assert!(
            mine.status < 404 || mine.status == 409,
            "{method} {path}: {mine:?}"
        );
    }
    let others = shop
        .get(&format!("/api/v1/orders?user_id={me}"))
        .token(&ben)
        .send();
    assert_eq!(others.outcome(), "403 forbidden");
    let list = shop.get("/api/v1/orders").token(&ben).send().expect(200);
    assert_eq!(list["items"], json!([]));
}

#[test]
fn a_key_acts_for_users_only_with_its_scope_and_only_as_a_customer() {
    let shop = Shop::open();
    let callers = Callers {
        shop: &shop,
        admin: shop.token(Role::Admin),
    };
    let user = shop.account("anna@example.com", Role::Customer);
    let boss = shop.account("boss@example.com", Role::Admin);
    let acting = callers.key(Role::Admin, &["act_as", "orders", "users"]).1;
    let plain = callers.key(Role::Admin, &["orders", "users"]).1;
    let me = |key: &str, id: &str| {
        shop.get("/api/v1/me")
            .token(key)
            .header("X-User-Id", id)
            .send()
    };
    let as_user = me(&acting, &user.to_string()).expect(200);
    assert_eq!(as_user["email"], "anna@example.com");
    assert_eq!(me(&plain, &user.to_string()).outcome(), "401 unauthorized");
    assert_eq!(me(&acting, "999999").outcome(), "401 unauthorized");
    assert_eq!(me(&acting, "anna").outcome(), "400 invalid_parameter");
    // Acting for an admin gives no admin's rights.
    let users = shop
        .get("/api/v1/users")
        .token(&acting)
        .header("X-User-Id", &boss.to_string())
        .send();
    assert_eq!(users.outcome(), "403 forbidden");
    // A person's session never acts for another.
    assert_eq!(
        me(&shop.token(Role::Admin), &user.to_string()).outcome(),
        "401 unauthorized"
    );
}

#[test]
fn a_key_loses_with_its_owner_and_gets_back_with_its_owner() {
    let shop = Shop::open_with(|settings| settings.orders.customers_confirm_payment = false);
    let callers = Callers {
        shop: &shop,
        admin: shop.token(Role::Admin),
    };
    let staff = shop.token(Role::Staff);
    let buyer = shop.account("anna@example.com", Role::Customer);
    let product = shop.product(&staff, 100);
    let session = shop.login("anna@example.com");
    let order = || {
        let body = json!({"items": [{"product_id": product, "quantity": 1}]});
        let answer = shop.post("/api/v1/orders").token(&session).json(&body);
        answer.send().expect(201)["id"].clone()
    };
    let email = "owner@example.com";
    let owner = shop.account(email, Role::Admin);
    let all: Vec<onrush::auth::Scope> = onrush::auth::Scope::WORDS
        .iter()
        .filter_map(|word| onrush::auth::Scope::from_word(word))
        .collect();
    let new = onrush::auth::NewKey {
        name: "all".to_owned(),
        scopes: all,
        expires_at: None,
    };
    let now = shop.clock.now();
    let store = &shop.app().store;
    let made = store
        .write(move |tx| onrush::auth::create_api_key_for(tx, now, email, &new, 10))
        .blocking();
    let key = made.expect("a key").1;
    // What is tried with it: another's order read, paid, and ordered for another; what staff and what
    // admins see.
    let tries = || {
        let order = order();
        let path = format!("/api/v1/orders/{order}");
        let status = |ask: Ask<'_>| ask.token(&key).send().status;
        let for_buyer = |method, path: &str| {
            let ask = shop.ask(method, path);
            ask.header("X-User-Id", &buyer.to_string())
        };
        let one = json!({"items": [{"product_id": product, "quantity": 1}]});
        [
            status(shop.get("/api/v1/orders")),
            status(shop.get(&path)),
            status(shop.post(&format!("{path}/pay"))),
            status(for_buyer("GET", &path)),
            status(for_buyer("POST", "/api/v1/orders").json(&one)),
            status(shop.get("/api/v1/users")),
            status(shop.get("/api/v1/webhooks")),
            status(shop.post("/api/v1/queues/x/fetch").json(&json!({}))),
            status(shop.get("/metrics").header("Via", "x")),
        ]
    };
    let admins = [200, 200, 200, 200, 201, 200, 200, 200, 200];
    let of_staff = [200, 200, 200, 401, 401, 200, 403, 200, 200];
    let customers = [200, 404, 403, 401, 401, 403, 403, 403, 403];
    for (patch, expected) in [
        (json!({}), admins),
        (json!({"role": "staff"}), of_staff),
        (json!({"role": "customer"}), customers),
        (json!({"status": "disabled"}), [401; 9]),
        (json!({"role": "admin"}), [401; 9]),
        (json!({"status": "active"}), admins),
    ] {
        callers.change(owner, &patch);
        assert_eq!(tries(), expected, "{patch}");
    }
}

#[test]
fn metrics_are_for_this_machine_for_allowed_addresses_and_for_who_may_see_them() {
    const LOOPBACK: &str = "127.0.0.0/8";
    let open = |allowed: &[&str], trusted: &[&str]| {
        let ranges = |texts: &[&str]| {
            let read = texts.iter().map(|text| text.parse().expect("a range"));
            read.collect::<Vec<_>>()
        };
        Shop::open_with(|settings| {
            settings.server.metrics_allow = ranges(allowed);
            settings.server.trusted_proxies = ranges(trusted);
        })
    };
    let by_default = Shop::open();
    assert_eq!(by_default.get("/metrics").send().status, 200);
    // A proxy on this machine that nobody trusts passes strangers on.
    let passed_on = by_default
        .get("/metrics")
        .header("X-Forwarded-For", "203.0.113.9")
        .send();
    assert_eq!(passed_on.outcome(), "401 unauthorized");
    let proxied = open(&["203.0.113.0/24"], &[LOOPBACK]);
    for (client, status) in [("203.0.113.9", 200), ("203.0.114.9", 401)] {
        let answer = proxied
            .get("/metrics")
            .header("X-Forwarded-For", client)
            .send();
        assert_eq!(answer.status, status, "{client}");
    }
    let closed = open(&[], &[]);
    let callers = Callers {
        shop: &closed,
        admin: closed.token(Role::Admin),
    };
    for who in EVERYONE {
        let mut ask = closed.get("/metrics");
        if let Some(token) = callers.token(*who, "metrics") {
            ask = ask.token(&token);
        }
        let answer = ask.send();
        let expected = expected(Rule::Staff("metrics"), *who).unwrap_or(200);
        assert_eq!(answer.status, expected, "{who:?}");
        let is_shown = answer.body.contains("http_requests_total");
        assert_eq!(is_shown, expected == 200, "{who:?}");
    }
}

#[test]
fn the_document_is_open_unless_the_settings_say_otherwise() {
    const PAGES: [&str; 4] = ["/docs", "/docs/init.js", "/openapi.json", "/openapi.yaml"];
    let (open, closed) = (
        Shop::open(),
        Shop::open_with(|settings| settings.server.docs = false),
    );
    for page in PAGES {
        assert_eq!(open.get(page).send().status, 200, "{page}");
        let answer = closed.get(page).send();
        assert_eq!(answer.outcome(), "404 no_route", "{page}");
    }
    let greets = |shop: &Shop| {
        shop.app()
            .greeting()
            .iter()
            .any(|line| line.contains("/docs"))
    };
    assert!(greets(&open) && !greets(&closed));
}
