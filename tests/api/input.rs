//! Bad input of every kind: the right status, a code, the field, and nothing changes.

use std::io::Write;

use onrush::auth::Role;
use serde_json::{Value, json};

use crate::support::Shop;

#[test]
fn a_body_that_does_not_fit_is_told_why() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let send = |kind: &str, body: &[u8]| {
        shop.post("/api/v1/products")
            .token(&staff)
            .raw(kind, body)
            .send()
    };
    let deep = "[".repeat(100_000);
    let huge = format!("{{\"name\":\"{}\"}}", "x".repeat(3_000_000));
    for (kind, body, expected) in [
        ("application/json", &b"{"[..], "400 malformed_json"),
        (
            "application/json",
            b"{\"name\":\"x\",}",
            "400 malformed_json",
        ),
        ("application/json", b"{} {}", "422 validation_failed"),
        ("application/json", b"\xff\xfe", "400 malformed_json"),
        (
            "application/json",
            b"{\"name\":\"\xff\"}",
            "400 malformed_json",
        ),
        (
            "application/json",
            b"{\"name\":\"\\ud800\"}",
            "400 malformed_json",
        ),
        ("application/json", deep.as_bytes(), "422 validation_failed"),
        ("application/json", b"null", "422 validation_failed"),
        ("application/json", b"[]", "422 validation_failed"),
        ("application/json", b"", "400 body_required"),
        ("text/plain", b"{}", "415 unsupported_media_type"),
        ("application/json", huge.as_bytes(), "413 body_too_large"),
    ] {
        let answer = send(kind, body);
        let start = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        assert_eq!(answer.outcome(), expected, "{start}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{start}"
        );
    }
    let good = json!({"name": "x", "unit_amount": 1, "currency": "CNY"});
    for (field, value) in [
        ("name", json!(7)),
        ("name", json!(null)),
        ("name", json!("x".repeat(201))),
        ("name", json!("a\u{0}b")),
        ("unit_amount", json!("1")),
        ("unit_amount", json!(-1)),
        ("unit_amount", json!(1e300)),
        ("currency", json!("yuan")),
        ("currency", json!("cny")),
        ("stock", json!(-1)),
        ("stock", json!(true)),
        ("role", json!("admin")),
        ("id", json!(1)),
    ] {
        let mut body = good.clone();
        body[field] = value.clone();
        let answer = shop
            .post("/api/v1/products")
            .token(&staff)
            .json(&body)
            .send();
        assert_eq!(
            answer.outcome(),
            "422 validation_failed",
            "{field}: {value}"
        );
        assert_eq!(answer.json()["errors"][0]["field"], field, "{answer:?}");
    }
    let twice = send(
        "application/json",
        b"{\"name\":\"x\",\"name\":\"y\",\"unit_amount\":1,\"currency\":\"CNY\"}",
    );
    assert_eq!(
        twice.outcome(),
        "422 validation_failed",
        "a field given twice"
    );
    let none = shop.get("/api/v1/products").send().expect(200);
    assert_eq!(none["items"], json!([]), "nothing was made");
}

#[test]
fn names_and_keys_are_held_to_one_rule_wherever_they_come_in() {
    let shop = Shop::open();
    let admin = shop.token(Role::Admin);
    let send = |method: &str, path: &str, body: &Value| {
        shop.ask(method, path).token(&admin).json(body).send()
    };
    let with = |body: &Value, field: &str, value: &str| {
        let mut body = body.clone();
        body[field] = json!(value);
        body
    };
    let password = crate::support::PASSWORD;
    let product = json!({"name": "Mug", "unit_amount": 1, "currency": "CNY"});
    let user = json!({"email": "a@example.com", "name": "x", "password": password});
    let mug = send("POST", "/api/v1/products", &product).expect(201)["id"].to_string();
    let mug = format!("/api/v1/products/{mug}");
    let li = send("POST", "/api/v1/users", &user).expect(201)["id"].to_string();
    let li = format!("/api/v1/users/{li}");
    let key = json!({"name": "x", "scopes": ["orders"]});
    let other = with(&user, "email", "b@example.com");
    let third = with(&user, "email", "c@example.com");
    // Names that people read: nothing to be seen, text turned round, a bell.
    for (method, path, body) in [
        ("POST", "/api/v1/products", &product),
        ("PATCH", &mug, &json!({})),
        ("POST", "/api/v1/users", &other),
        ("PATCH", &li, &json!({})),
        ("POST", "/api/v1/auth/register", &third),
        ("POST", "/api/v1/api-keys", &key),
    ] {
        for bad in [
            "",
            "   ",
            "\u{3000}\u{a0}",
            "\u{200b}",
            "x\u{202e}y",
            "x\u{7}y",
        ] {
            let answer = send(method, path, &with(body, "name", bad));
            assert_eq!(answer.outcome(), "422 validation_failed", "{path}: {bad:?}");
            assert_eq!(answer.json()["errors"][0]["field"], "name", "{answer:?}");
        }
        let good = send(
            method,
            path,
            &with(body, "name", " \u{feff}杯子 Mug\u{3000}"),
        );
        assert!(good.status < 300, "{path}: {good:?}");
        let made = good.json();
        let name = made.get("user").unwrap_or(&made)["name"].clone();
        assert_eq!(name, "杯子 Mug", "{path}");
    }
    // Keys that programs compare.
    let keyed = with(&with(&product, "sku", " A-1\u{3000}"), "category", " Cups ");
    let made = send("POST", "/api/v1/products", &keyed).expect(201);
    assert_eq!(
        (&made["sku"], &made["category"]),
        (&json!("A-1"), &json!("Cups"))
    );
    let file =
        "sku,name,price,currency\nA-1,Mug,1,CNY\nA-2,\u{a0}\u{200b},1,CNY\nA\u{200b}3,x,1,CNY\n";
    let report = shop
        .post("/api/v1/products/import")
        .token(&admin)
        .raw("text/csv; charset=utf-8", file.as_bytes())
        .send()
        .expect(200);
    assert_eq!(
        (&report["created"], &report["updated"], &report["failed"]),
        (&json!(0), &json!(1), &json!(2)),
        "{report}"
    );
    let task = json!({"name": "resize"});
    let refused = |path: &str, body: &Value, field: &str| {
        let answer = send("POST", path, body);
        assert_eq!(answer.outcome(), "422 validation_failed", "{body}");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{answer:?}");
    };
    refused(
        "/api/v1/products",
        &with(&product, "sku", "A\u{200b}1"),
        "sku",
    );
    for (field, bad) in [
        ("name", " resize"),
        ("name", "resize\u{200b}"),
        ("unique_key", "a\u{a0}"),
        ("queue", "."),
        ("queue", ".."),
        ("queue", " mails"),
    ] {
        refused("/api/v1/tasks", &with(&task, field, bad), field);
    }
    for name in [".", "..", " ", "a "] {
        let body = json!({"name": name, "task": "resize", "interval_seconds": 60});
        refused("/api/v1/schedules", &body, "name");
    }
}

#[test]
fn a_currency_that_does_not_exist_is_refused_with_the_one_that_was_meant() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    for (code, reason) in [
        ("RMB", "RMB is no currency of ISO 4217; write CNY"),
        ("NTD", "NTD is no currency of ISO 4217; write TWD"),
        ("cny", "must be in capital letters: CNY"),
        ("HRK", "HRK is no currency any more; write EUR"),
        (
            "XYZ",
            "XYZ is no currency of ISO 4217; write one such as CNY",
        ),
    ] {
        let body = json!({"name": "x", "unit_amount": 1, "currency": code});
        let made = shop.post("/api/v1/products").token(&staff).json(&body);
        let fault = json!({"field": "currency", "reason": reason});
        assert_eq!(made.send().json()["errors"], json!([fault]));
        let file = format!("sku,name,price,currency\nA-1,x,1,{code}\n");
        let report = shop
            .post("/api/v1/products/import")
            .token(&staff)
            .raw("text/csv; charset=utf-8", file.as_bytes())
            .send()
            .expect(200);
        assert_eq!(report["errors"][0]["reason"], reason, "{report}");
    }
    // What an older version took is read as before.
    let id = shop.product(&staff, 3);
    let odd = rusqlite::Connection::open(shop.data_dir().join("onrush.db")).expect("open");
    odd.execute("UPDATE products SET currency = 'RMB' WHERE id = ?1", [id])
        .expect("changed");
    let read = shop
        .get(&format!("/api/v1/products/{id}"))
        .send()
        .expect(200);
    assert_eq!(read["currency"], "RMB");
    let order = json!({"items": [{"product_id": id, "quantity": 1}]});
    let order = shop.post("/api/v1/orders").token(&staff).json(&order);
    assert_eq!(order.send().expect(201)["currency"], "RMB");
}

#[test]
fn a_path_a_parameter_or_a_method_that_does_not_fit_is_told_why() {
    let shop = Shop::open();
    for (method, path, expected) in [
        ("GET", "/api/v1/nothing", "404 no_route"),
        ("GET", "/api/v1/products/x", "400 invalid_parameter"),
        (
            "GET",
            "/api/v1/products/99999999999999999999",
            "400 invalid_parameter",
        ),
        ("GET", "/api/v1/products/-1", "404 product_not_found"),
        ("GET", "/api/v1/products?limit=0", "400 invalid_parameter"),
        ("GET", "/api/v1/products?limit=201", "400 invalid_parameter"),
        ("GET", "/api/v1/products?limit=x", "400 invalid_parameter"),
        ("GET", "/api/v1/products?sort=best", "400 invalid_parameter"),
        (
            "GET",
            "/api/v1/products?cursor=%00",
            "400 invalid_parameter",
        ),
        ("GET", "/api/v1/flash-sales?cursor=x", "400 invalid_cursor"),
        ("PUT", "/api/v1/products", "405 method_not_allowed"),
        ("POST", "/api/v1/products/1", "405 method_not_allowed"),
    ] {
        let answer = shop.ask(method, path).send();
        assert_eq!(answer.outcome(), expected, "{method} {path}");
        assert!(answer.header("x-request-id").is_some());
        if answer.status == 405 {
            assert!(answer.header("allow").is_some(), "{method} {path}");
        }
    }
}

#[test]
fn bad_input_shows_nothing_of_the_inside() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    for path in [
        "/api/v1/products?q=%27%20OR%201%3D1--",
        "/api/v1/products?category=%27%3B%20DROP%20TABLE%20users",
        "/api/v1/users?q=%25%27",
        "/static/..%2f..%2fonrush.db",
        "/static/../onrush.db",
        "/static/%2e%2e/onrush.db",
    ] {
        let answer = shop.get(path).token(&staff).send();
        assert!(answer.status < 500, "{path}: {answer:?}");
        for word in ["SELECT", "sqlite", "rusqlite", "/src/", "SQLite format"] {
            assert!(!answer.body.contains(word), "{path}: {answer:?}");
        }
    }
    assert_eq!(shop.get("/api/v1/me").token(&staff).send().status, 200);
}

#[test]
fn a_query_parameter_that_an_operation_does_not_know_is_refused_with_the_nearest_one() {
    let shop = Shop::open();
    let admin = shop.token(Role::Admin);
    let ask = |method: &str, path: &str| shop.ask(method, path).token(&admin).send();
    for (method, path, name, reason) in [
        (
            "GET",
            "/api/v1/products?limti=5",
            "limti",
            "is not known; did you mean `limit`?",
        ),
        ("HEAD", "/api/v1/products?limti=5", "", ""),
        (
            "GET",
            "/api/v1/products?limit=5&%6Cimits=6",
            "limits",
            "is not known; did you mean `limit`?",
        ),
        (
            "GET",
            "/api/v1/tasks?stat%65=x&Queue=x",
            "Queue",
            "is not known; did you mean `queue`?",
        ),
        (
            "GET",
            "/api/v1/me?verbose",
            "verbose",
            "is not known; this operation takes none",
        ),
        (
            "POST",
            "/api/v1/orders?dry_run=true",
            "dry_run",
            "is not known; this operation takes none",
        ),
        (
            "DELETE",
            "/api/v1/tasks/x?force=1",
            "force",
            "is not known; this operation takes none",
        ),
    ] {
        let answer = ask(method, path);
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        if !name.is_empty() {
            assert_eq!(answer.code(), "unknown_parameter", "{path}");
            let error = json!({"field": name, "reason": reason});
            assert_eq!(answer.json()["errors"], json!([error]), "{path}");
        }
    }
    let answer = ask("GET", "/api/v1/tasks?zzzzzzzz=1");
    let reason = "is not known; there are state, queue, name, cursor, limit";
    assert_eq!(answer.json()["errors"][0]["reason"], reason);
    // What nobody wrote is no parameter; other paths take what browsers and proxies add.
    for path in [
        "/api/v1/products?",
        "/api/v1/products?&",
        "/api/v1/products?limit=1&",
        "/livez?probe=1",
        "/docs?deep=1",
    ] {
        assert_eq!(ask("GET", path).status, 200, "{path}");
    }
    for (method, path, outcome) in [
        ("GET", "/api/v1/nothing?x=1", "404 no_route"),
        ("PUT", "/api/v1/products?x=1", "405 method_not_allowed"),
    ] {
        assert_eq!(ask(method, path).outcome(), outcome);
    }
}

/// Each way in of JSON that is kept; `NUMBER` stands for the number.
const KEPT: &[(&str, &str, &str, &str)] = &[
    (
        "POST",
        "tasks",
        r#"{"name":"a","args":{"n":[NUMBER]}}"#,
        "args.n[0]",
    ),
    (
        "POST",
        "tasks",
        r#"{"name":"a","metadata":NUMBER}"#,
        "metadata",
    ),
    (
        "POST",
        "tasks/batch",
        r#"{"tasks":[{"name":"a"},{"name":"b","args":{"n":NUMBER}}]}"#,
        "tasks[1].args.n",
    ),
    ("PATCH", "tasks/ID", r#"{"args":{"n":NUMBER}}"#, "args.n"),
    (
        "PATCH",
        "tasks/ID",
        r#"{"metadata":{"n":{"m":NUMBER}}}"#,
        "metadata.n.m",
    ),
    (
        "POST",
        "schedules",
        r#"{"name":"s2","cron":"@daily","task":"a","args":{"n":NUMBER}}"#,
        "args.n",
    ),
    (
        "PATCH",
        "schedules/s",
        r#"{"args":[{"n":NUMBER}]}"#,
        "args[0].n",
    ),
    (
        "POST",
        "tasks/RUN/ack",
        r#"{"attempt":1,"result":{"n":NUMBER}}"#,
        "result.n",
    ),
];

#[test]
fn a_number_is_kept_as_it_came_or_refused_by_its_field() {
    let shop = Shop::open();
    let admin = shop.token(Role::Admin);
    let send = |method: &str, path: &str, body: &str| {
        let path = format!("/api/v1/{path}");
        let asked = shop.ask(method, &path).token(&admin);
        asked.raw("application/json", body.as_bytes()).send()
    };
    let made = send("POST", "tasks", r#"{"name":"a","countdown_seconds":60}"#).expect(202);
    let id = made["id"].as_str().expect("an id").to_owned();
    let run = send("POST", "tasks", r#"{"name":"a","queue":"q"}"#).expect(202);
    let run = run["id"].as_str().expect("an id").to_owned();
    send(
        "POST",
        "schedules",
        r#"{"name":"s","cron":"@daily","task":"a"}"#,
    )
    .expect(201);
    send("POST", "queues/q/fetch", "{}").expect(200);
    for (method, path, body, field) in KEPT {
        let path = path.replace("ID", &id).replace("RUN", &run);
        for number in [
            "18446744073709551616",
            "-9223372036854775809",
            "1e400",
            "738529527931269425.0",
            "0.30000000000000000001",
        ] {
            let answer = send(method, &path, &body.replace("NUMBER", number));
            let told = answer.outcome();
            assert_eq!(told, "422 validation_failed", "{method} {path} {number}");
            assert_eq!(
                answer.json()["errors"][0]["field"],
                *field,
                "{method} {path} {number}"
            );
        }
    }
    let read = |path: &str| send("GET", path, "").expect(200).to_string();
    for number in [
        "738529527931269425",
        "18446744073709551615",
        "-9223372036854775808",
        "1.7976931348623157e+308",
        "0.1",
        // Read in haste, it would come back as its neighbour.
        "31.245270191439438",
    ] {
        for (method, path, body, _) in &KEPT[3..5] {
            let path = path.replace("ID", &id);
            let kept = send(method, &path, &body.replace("NUMBER", number)).expect(200);
            assert!(kept.to_string().contains(number), "{kept}");
        }
        let (method, path, body, _) = KEPT[6];
        send(method, path, &body.replace("NUMBER", number)).expect(200);
        assert!(read("schedules/s").contains(&format!(r#"{{"n":{number}}}"#)));
    }
    let body = r#"{"attempt":1,"result":{"n":738529527931269425}}"#;
    let answer = send("POST", &format!("tasks/{run}/ack"), body);
    assert!(answer.status < 300, "{answer:?}");
    assert!(read(&format!("tasks/{run}")).contains(r#""n":738529527931269425"#));
    // Nothing of what was refused has come to anything.
    assert_eq!(
        send("GET", "tasks", "").expect(200)["items"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    assert_eq!(send("GET", "schedules/s2", "").status, 404);
}

#[test]
fn the_terminal_refuses_a_number_that_would_not_be_kept() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let enqueue = |args: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_onrush"));
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.args(["task", "enqueue", "a", "--args", args]);
        let output = command.output().expect("the binary runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), told)
    };
    let (code, told) = enqueue(r#"{"order":{"no":99999999999999999999}}"#);
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("--args: order.no ") && told.contains("64 bits"),
        "{told}"
    );
    let (code, told) = enqueue("1e400");
    assert!(code == Some(2) && told.contains("64 bits"), "{told}");
    let (code, told) = enqueue("{");
    assert!(code == Some(2) && told.contains("no JSON"), "{told}");
    let (code, told) = enqueue(r#"{"no":18446744073709551615}"#);
    assert_eq!(code, Some(0), "{told}");
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).expect("written");
    encoder.finish().expect("a whole file")
}

#[test]
fn a_gzipped_body_is_read_wherever_a_plain_one_is_and_within_the_same_limits() {
    let shop = Shop::open_with(|settings| {
        settings.server.body_bytes_max = 2_000;
        settings.server.import_bytes_max = 4_000;
    });
    let staff = shop.token(Role::Staff);
    let send = |path: &str, kind: &str, coding: &str, body: &[u8]| {
        let ask = shop.post(path).token(&staff).raw(kind, body);
        ask.header("Content-Encoding", coding).send()
    };
    let product = |name: &str| {
        json!({"name": name, "unit_amount": 1, "currency": "CNY", "stock": 9}).to_string()
    };
    let path = "/api/v1/products";
    let made = send(path, "application/json", "gzip", &gzip(&product("杯子")));
    let made = made.expect(201);
    assert_eq!(made["name"], "杯子");
    // A body that may be left out.
    let sale = shop.sale(&staff, made["id"].as_i64().expect("an id"), 5, json!({}));
    let claims = format!("/api/v1/flash-sales/{sale}/claims");
    let claim = send(
        &claims,
        "application/json",
        "gzip",
        &gzip("{\"quantity\":1}"),
    );
    assert_eq!(claim.expect(201)["remaining"], 4);
    // A file.
    let csv = "sku,name,price,currency,stock\nA,Mug,7,CNY,50\nB,Pen,1,CNY,50\n";
    let import = "/api/v1/products/import";
    let taken = send(import, "text/csv", "gzip", &gzip(csv)).expect(200);
    assert_eq!(taken["created"], 2);

    // The limit is of what is read, and larger bodies come in less.
    let fits = product(&"x".repeat(150)) + &" ".repeat(1_000);
    assert_eq!(
        send(path, "application/json", "gzip", &gzip(&fits)).status,
        201
    );
    let bomb = gzip(&(product("x") + &" ".repeat(20_000_000)));
    let rows = gzip(&(csv.to_owned() + &"C,Cup,1,CNY,50\n".repeat(1_000_000)));
    for (path, kind, coding, body, expected) in [
        (
            path,
            "application/json",
            "gzip",
            &bomb[..2_000],
            "413 body_too_large",
        ),
        (
            import,
            "text/csv",
            "gzip",
            &rows[..4_000],
            "413 body_too_large",
        ),
        (
            path,
            "application/json",
            "gzip",
            product("x").as_bytes(),
            "400 malformed_gzip",
        ),
        (
            path,
            "application/json",
            "gzip",
            &gzip(&fits)[..40],
            "400 malformed_gzip",
        ),
        (
            import,
            "text/csv",
            "gzip",
            &gzip(csv)[..40],
            "400 malformed_gzip",
        ),
        (
            path,
            "application/json",
            "gzip",
            &gzip("{"),
            "400 malformed_json",
        ),
        (
            path,
            "text/plain",
            "gzip",
            &gzip("{}"),
            "415 unsupported_media_type",
        ),
        (
            path,
            "application/json",
            "br",
            b"{}",
            "415 unsupported_content_encoding",
        ),
        (
            path,
            "application/json",
            "gzip, br",
            b"{}",
            "415 unsupported_content_encoding",
        ),
        (
            import,
            "text/csv",
            "deflate",
            b"sku",
            "415 unsupported_content_encoding",
        ),
    ] {
        let answer = send(path, kind, coding, body);
        assert_eq!(answer.outcome(), expected, "{path} {coding}: {answer:?}");
        let reads = expected.ends_with("encoding").then_some("gzip");
        assert_eq!(answer.header("accept-encoding"), reads, "{path} {coding}");
    }
    let plain = send(
        path,
        "application/json",
        "identity",
        product("z").as_bytes(),
    );
    assert_eq!(plain.status, 201);
    let count = shop.get("/api/v1/products?limit=200").send().expect(200);
    assert_eq!(count["items"].as_array().expect("a list").len(), 5);
}
