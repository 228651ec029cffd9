//! What the statements cost: none reads a growing table from end to end, no request runs more of them
//! because it shows more rows, and the list of slow ones says who ran what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onrush::auth::Role;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::Shop;

/// Tables whose rows are few whatever the shop sells.
const SMALL: &[&str] = &[
    "api_keys",
    "queues",
    "schedules",
    "webhook_endpoints",
    "refinery_schema_history",
];

/// Statements that may walk a growing table, and why.
const MAY_SCAN: &[(&str, &str)] = &[
    (
        "allotment/sql.rs:open_sales:",
        "an index of the open ones alone",
    ),
    (
        "allotment/sql.rs:each_allotted:",
        "the check of the whole ledger",
    ),
    ("product/sql.rs:each_free:", "the check of the whole ledger"),
    (
        "product/sql.rs:each_movement:",
        "the check of the whole ledger",
    ),
    ("task/sql.rs:last_id:", "one row, by key"),
    ("task/sql.rs:counts:live", "a bounded number, by key"),
    ("task/sql.rs:counts:newest", "a bounded number, by key"),
    ("webhook/sql.rs:any_old:events", "one row, by key"),
    ("webhook/sql.rs:any_old:deliveries", "one row, by key"),
    ("webhook/sql.rs:purge:events", "the oldest few, by key"),
    ("webhook/sql.rs:purge:deliveries", "the oldest few, by key"),
];

/// The file whose name a statement bears: those of a folder `sql/` count as one, as its figures do.
fn named_after(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder.ends_with("sql") => folder.with_extension("rs"),
        Some(_) | None => path.to_owned(),
    }
}

/// `sql!` and the literal behind it, with the constants of its file put in.
pub fn statements() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut stack = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            let inside = std::fs::read_dir(&path).expect("a folder");
            stack.extend(inside.map(|entry| entry.expect("an entry").path()));
            continue;
        }
        if path.ends_with("store/tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let constants: BTreeMap<String, String> = code
            .split("const ")
            .skip(1)
            .filter_map(|rest| {
                let (name, rest) = rest.split_once(": &str = ")?;
                Some((name.to_owned(), literal(rest.trim_start())?.0))
            })
            .collect();
        let mut function = String::new();
        let mut at = 0;
        while let Some(next) = code[at..].find(['f', 's']) {
            at += next;
            if let Some(rest) = code[at..].strip_prefix("fn ") {
                function = rest
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
            } else if let Some(rest) = code[at..].strip_prefix("sql!(") {
                let place = format!("{}:{function}", named_after(&path).display());
                let mut rest = rest.trim_start();
                let mut part = String::new();
                if let Some((first, after)) = literal(rest)
                    && let Some(after) = after.trim_start().strip_prefix(',')
                    && !after.trim_start().starts_with(')')
                {
                    part = first;
                    rest = after.trim_start();
                }
                let rest = rest.strip_prefix("&format!(").unwrap_or(rest).trim_start();
                let text = match literal(rest) {
                    Some((text, _)) => text,
                    None => {
                        let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
                        let name: String = rest.chars().take_while(is_name).collect();
                        constants.get(&name).cloned().unwrap_or_default()
                    }
                };
                let text = constants.iter().fold(text, |text, (name, value)| {
                    text.replace(&format!("{{{name}}}"), value)
                });
                found.push((format!("{place}:{part}"), text));
            }
            at += 1;
        }
    }
    found.sort();
    assert!(
        found.len() > 150,
        "the statements were found: {}",
        found.len()
    );
    found
}

/// The string literal at the beginning, and what follows it.
fn literal(text: &str) -> Option<(String, &str)> {
    let inside = text.strip_prefix('"')?;
    let mut out = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &inside[at + 1..])),
            '\\' => match chars.next()?.1 {
                '\n' => {
                    let rest = chars.as_str().trim_start();
                    let skipped = chars.as_str().len() - rest.len();
                    for _ in 0..chars.as_str()[..skipped].chars().count() {
                        chars.next();
                    }
                }
                'n' => out.push('\n'),
                other => out.push(other),
            },
            other => out.push(other),
        }
    }
    None
}

#[test]
fn two_statements_of_one_function_are_told_apart() {
    let mut names = BTreeMap::new();
    for (name, _) in statements() {
        *names.entry(name).or_insert(0) += 1;
    }
    names.retain(|_, count| *count > 1);
    assert!(names.is_empty(), "give them parts: {names:#?}");
}

/// Steps of a plan that walk a table which grows.
fn scans(conn: &Connection, sql: &str) -> Vec<String> {
    let mut statement = conn
        .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
        .unwrap_or_else(|error| panic!("{error}: {sql}"));
    let mut rows = statement.raw_query();
    let mut found = Vec::new();
    while let Some(row) = rows.next().expect("a step") {
        let step: String = row.get(3).expect("its text");
        let Some(table) = step.strip_prefix("SCAN ") else {
            continue;
        };
        let table = table.split(' ').next().unwrap_or_default();
        if !SMALL.contains(&table) {
            found.push(step);
        }
    }
    found
}

#[test]
fn no_statement_walks_a_table_that_grows() {
    let shop = Shop::open();
    let conn = Connection::open(shop.data_dir().join("onrush.db")).expect("the database");
    let tables: Vec<String> = conn
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")
        .and_then(|mut all| all.query_map([], |row| row.get(0))?.collect())
        .expect("the tables");
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for (name, sql) in statements() {
        if sql.is_empty() || sql.contains('{') {
            continue; // put together: seen below, as it is run
        }
        looked_at += 1;
        let may = MAY_SCAN.iter().any(|(may, _)| name.ends_with(may));
        let steps = scans(&conn, &sql);
        // A name that is no table is a part of the statement itself.
        let walks = steps.iter().any(|step| {
            let name = step.split(' ').nth(1).unwrap_or_default();
            tables.iter().any(|table| table == name)
        });
        if walks != may {
            wrong.push(format!("{name}: {steps:?}\n    {sql}"));
        }
    }
    assert!(looked_at > 150, "{looked_at}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A shop that keeps every call in its list.
fn shop() -> Shop {
    Shop::open_with(|settings| {
        settings.database.slow_list_ms = 0;
        settings.database.slow_kept = 10_000;
        // One buyer has many orders here.
        settings.orders.unpaid_orders_max = 0;
    })
}

/// Statements that a request runs, once its caller is known.
fn statements_of(shop: &Shop, token: &str, path: &str) -> Vec<String> {
    let ask = |id: &str| {
        let asked = shop.get(path).token(token).header("X-Request-ID", id);
        asked.send().expect(200);
    };
    ask("before");
    let id = format!("{:032x}", rand::random::<u128>());
    ask(&id);
    let calls = shop.app().store.statements().recent();
    let own = calls
        .iter()
        .filter(|call| call.caller_id.as_ref() == Some(&id));
    own.map(|call| call.statement.to_string()).collect()
}

#[test]
fn a_request_runs_as_many_statements_for_many_rows_as_for_one() {
    let shop = shop();
    let (staff, admin) = (shop.token(Role::Staff), shop.token(Role::Admin));
    let user = shop.account("buyer@example.com", Role::Customer);
    let nobody = shop.account("nobody@example.com", Role::Customer);
    let buyer = shop.login("buyer@example.com");
    let products: Vec<i64> = (0..12).map(|_| shop.product(&staff, 1_000)).collect();
    for product in &products {
        let items: Vec<Value> = products
            .iter()
            .take(5)
            .map(|id| json!({"product_id": id, "quantity": 1}))
            .collect();
        let order = shop.post("/api/v1/orders").token(&buyer);
        order.json(&json!({"items": items})).send().expect(201);
        shop.sale(&staff, *product, 10, json!({}));
        let task = json!({"name": "x", "queue": "q", "args": {}});
        shop.post("/api/v1/tasks")
            .token(&admin)
            .json(&task)
            .send()
            .expect(202);
    }
    let ids = |count: usize| {
        let ids: Vec<String> = products.iter().take(count).map(i64::to_string).collect();
        ids.join(",")
    };
    // (what shows one row, what shows many, statements at most)
    let pairs = [
        (
            "/api/v1/products?limit=1".to_owned(),
            "/api/v1/products?limit=12".to_owned(),
            1,
        ),
        (
            format!("/api/v1/products?ids={}", ids(1)),
            format!("/api/v1/products?ids={}", ids(12)),
            1,
        ),
        (
            "/api/v1/products/hot?limit=1".to_owned(),
            "/api/v1/products/hot?limit=12".to_owned(),
            1,
        ),
        (
            "/api/v1/orders?limit=1".to_owned(),
            "/api/v1/orders?limit=12".to_owned(),
            2,
        ),
        (
            "/api/v1/flash-sales?limit=1".to_owned(),
            "/api/v1/flash-sales?limit=12".to_owned(),
            1,
        ),
        (
            "/api/v1/users?limit=1".to_owned(),
            "/api/v1/users?limit=3".to_owned(),
            1,
        ),
        (
            "/api/v1/tasks?limit=1".to_owned(),
            "/api/v1/tasks?limit=12".to_owned(),
            2,
        ),
        (
            "/api/v1/schedules?limit=1".to_owned(),
            "/api/v1/schedules?limit=4".to_owned(),
            2,
        ),
        (
            format!("/api/v1/users/{nobody}?include=orders"),
            format!("/api/v1/users/{user}?include=orders"),
            2,
        ),
    ];
    for (one, many, most) in pairs {
        let (one_runs, many_runs) = (
            statements_of(&shop, &admin, &one),
            statements_of(&shop, &admin, &many),
        );
        // Fewer where both are the same page for the cache, which has more of it by then.
        assert!(
            many_runs.len() <= one_runs.len(),
            "{many}: {one_runs:?}, {many_runs:?}"
        );
        assert!(many_runs.len() <= most, "{many}: {many_runs:?}");
    }
}

#[test]
fn the_list_of_slow_queries_says_who_ran_what_and_hides_values() {
    for hides in [true, false] {
        let shop = Shop::open_with(|settings| {
            settings.database.slow_list_ms = 0;
            settings.database.hide_parameters = hides;
        });
        let (admin, staff) = (shop.token(Role::Admin), shop.token(Role::Staff));
        shop.product(&staff, 1);
        let asked = shop.get("/api/v1/products?q=verysecret");
        let asked = asked.header("X-Request-ID", "who-asked");
        asked.send().expect(200);
        let list = shop
            .get("/api/v1/system/slow-queries?sort=calls&limit=200")
            .token(&admin)
            .send();
        assert_eq!(list.body.contains("verysecret"), !hides);
        let list = list.expect(200);
        assert_eq!(list["parameters_hidden"], hides);
        let call = list["recent"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|call| call["caller_id"] == "who-asked")
            .unwrap_or_else(|| panic!("the search: {list}"));
        assert_eq!(call["caller"], "GET /api/v1/products");
        assert_eq!(call["params"].is_null(), hides, "{call}");
        let items = list["items"].as_array().expect("a list");
        let same = items
            .iter()
            .find(|item| item["name"] == call["statement"])
            .expect("its figures");
        assert!(same["calls"].as_u64() >= Some(1) && same["max_ms"].as_f64() > Some(0.0));
        assert!(
            !same["plan"].as_array().expect("steps").is_empty(),
            "{same}"
        );
        assert_eq!(same["callers"][0]["caller"], "GET /api/v1/products");
        // A statement that an insert for staff ran has its place, too.
        assert!(items.iter().any(|item| {
            item["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("product."))
        }));
        let wrong = shop
            .get("/api/v1/system/slow-queries?sort=mood")
            .token(&admin)
            .send();
        assert_eq!(wrong.outcome(), "422 validation_failed");
    }
}

#[test]
fn whatever_changes_a_product_or_a_sale_says_so() {
    let mut wrong = Vec::new();
    let mut found = 0;
    for file in ["product/sql.rs", "allotment/sql.rs"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let text = std::fs::read_to_string(path).expect("a file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code = code.replace("\npub(super) fn ", "\npub fn ");
        for function in code.split("\npub fn ").skip(1) {
            for (table, topic) in [("products", "CHANGED"), ("flash_sales", "SALE_CHANGED")] {
                let writes = ["UPDATE ", "INSERT INTO ", "DELETE FROM "]
                    .iter()
                    .any(|verb| function.contains(&format!("{verb}{table} ")));
                let says = function.contains(&format!("({topic}"));
                found += usize::from(writes);
                if writes && !says {
                    wrong.push(format!(
                        "{file}: {}",
                        function.lines().next().unwrap_or_default()
                    ));
                }
            }
        }
    }
    assert!(found >= 14, "{found}");
    assert!(
        wrong.is_empty(),
        "the cache would not hear of these: {wrong:#?}"
    );
}
