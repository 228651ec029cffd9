//! The catalogue: reading, searching, paging, changing, importing.

use std::time::Duration;

use onrush::auth::Role;
use onrush::store::StoreError;
use serde_json::{Value, json};

use crate::support::{Shop, text, unpack_first_version};

fn names(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().expect("a list");
    items.iter().map(|item| text(&item["name"])).collect()
}

/// Names of what a search finds, newest first.
fn found(shop: &Shop, q: &str) -> Vec<String> {
    let q: String = q.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let path = format!("/api/v1/products?sort=newest&limit=200&q={q}");
    names(&shop.get(&path).send().expect(200))
}

fn make(shop: &Shop, staff: &str, body: Value) -> i64 {
    let mut product = json!({"unit_amount": 100, "currency": "CNY"});
    for (key, value) in body.as_object().expect("an object") {
        product[key] = value.clone();
    }
    let made = shop.post("/api/v1/products").token(staff).json(&product);
    made.send().expect(201)["id"].as_i64().expect("an id")
}

/// So many different characters of Chinese.
fn different(from: u32, count: u32) -> Vec<String> {
    let one = |at| char::from_u32(0x4E00 + from + at).expect("a character");
    (0..count).map(|at| one(at).to_string()).collect()
}

#[test]
fn a_long_text_is_found_to_its_end_and_name_sku_and_category_always() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let long = different(0, 168);
    make(
        &shop,
        &staff,
        json!({"name": "Long", "description": long.concat()}),
    );
    let name = different(1_000, 110).concat();
    make(
        &shop,
        &staff,
        json!({"name": name, "sku": "QX-778", "category": "手工家具", "description": long.concat()}),
    );
    let longest = different(3_000, 10_000);
    let id = make(
        &shop,
        &staff,
        json!({"name": "Longest", "sku": "QX-779", "description": longest.concat()}),
    );
    let words: Vec<String> = (0..900).map(|at| format!("word{at}")).collect();
    make(
        &shop,
        &staff,
        json!({"name": "English", "description": words.join(" ")}),
    );
    for at in [0, 55, 110, 140, 165] {
        let q = long[at..at + 3].concat();
        assert_eq!(found(&shop, &q), [name.as_str(), "Long"], "{at}");
    }
    assert_eq!(found(&shop, &long[167]), [name.as_str(), "Long"]);
    for q in ["QX-778", "qx 778", "手工家具", "家具"] {
        assert_eq!(found(&shop, q), [name.as_str()], "{q}");
    }
    for at in [0, 4_000, 9_990] {
        assert_eq!(found(&shop, &longest[at..at + 10].concat()), ["Longest"]);
    }
    assert_eq!(found(&shop, "QX-779"), ["Longest"]);
    assert_eq!(found(&shop, "word899"), ["English"]);
    // What was there before is gone with a shorter text.
    let path = format!("/api/v1/products/{id}");
    let patch = shop.ask("PATCH", &path).token(&staff);
    let patch = patch.json(&json!({"description": longest[..5].concat()}));
    patch.send().expect(200);
    assert_eq!(found(&shop, &longest[..3].concat()), ["Longest"]);
    assert!(found(&shop, &longest[9_990..].concat()).is_empty());
}

#[test]
fn all_forms_of_a_letter_are_found_by_each_other_and_words_by_their_beginning() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    for (same, beginning) in [
        (&["ＵＳＢ－Ｃ １５", "USB-C 15", "usb-c 15"][..], "ｕｓ"),
        (&["ﾃﾚﾋﾞ ｶﾞｲﾄﾞ", "テレビ ガイド"], "ﾃ"),
        (
            &["Café Crème", "Cafe\u{301} Cre\u{300}me", "CAFE CREME"],
            "café cré",
        ),
        (&["Straße", "STRASSE", "strasse"], "straß"),
        (&["İzmir ıhlamur", "izmir ihlamur", "IZMIR IHLAMUR"], "İzm"),
        (&["Ёлка", "ёлка", "ЕЛКА"], "ёл"),
    ] {
        for stored in same {
            let id = make(&shop, &staff, json!({"name": stored}));
            for q in same.iter().copied().chain([beginning]) {
                assert_eq!(found(&shop, q), [*stored], "{q} asked for {stored}");
            }
            let gone = shop.ask("DELETE", &format!("/api/v1/products/{id}"));
            gone.token(&staff).send().expect(204);
        }
    }
    // An import goes by the SKU as it is written.
    let csv = "sku,name,price,currency\nAB-1,One,1,CNY\nＡＢ－１,Two,1,CNY\nab-1,Three,1,CNY\n";
    let import = shop.post("/api/v1/products/import").token(&staff);
    let report = import.raw("text/csv", csv.as_bytes()).send().expect(200);
    assert_eq!(report["created"], 3, "{report}");
    assert_eq!(found(&shop, "ab-1"), ["Three", "Two", "One"]);
}

#[test]
pub fn a_directory_of_the_first_version_is_searched_by_the_new_rule() {
    let shop = Shop::open_with(|settings| unpack_first_version(&settings.data.dir));
    shop.wait_until("all products are indexed again", || {
        found(&shop, "cafe noir") == ["Cafe\u{301} Noir"] && !found(&shop, "item 38").is_empty()
    });
    shop.wait_until("the last one is as well", || {
        let due = shop.app().store.read_blocking::<_, StoreError>(|tx| {
            let sql = onrush::sql!("SELECT id FROM product_terms_due");
            tx.row(sql, &[], |_| Ok(()))
        });
        due.expect("read").is_none()
    });
    for (q, sku) in [
        ("word899", "EN-LONG"),
        ("creme cafe", "CAFE-NFC"),
        ("usb-c 充电线 15", "ＵＳＢ－Ｃ－１５"),
        ("ワイヤレス", "KANA"),
        ("grosse strasse", "STRASSE"),
        ("istanbul", "ISTANBUL"),
        ("зеле", "RU"),
    ] {
        let q: String = q.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let page = shop.get(&format!("/api/v1/products?q={q}")).send();
        let page = page.expect(200);
        assert_eq!(page["items"][0]["sku"], sku, "{page}");
        assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{q}");
    }
    let long = {
        let page = shop.get("/api/v1/products?q=CN-168").send().expect(200);
        text(&page["items"][0]["description"])
    };
    let end: String = long.chars().skip(160).collect();
    assert_eq!(found(&shop, &end), ["一百六十八"]);
    // The archived one was not left out: it comes back as an import of today has it.
    assert!(found(&shop, "P039").is_empty());
    let staff = shop.token(Role::Staff);
    let csv = "sku,name,price,currency\nP039,Große Ｌａｍｐｅ,1,CNY\n";
    let import = shop.post("/api/v1/products/import").token(&staff);
    import.raw("text/csv", csv.as_bytes()).send().expect(200);
    assert_eq!(found(&shop, "grosse lampe"), ["Große Ｌａｍｐｅ"]);
    assert!(found(&shop, "item 39").is_empty());
}

#[test]
fn pages_follow_the_sort_without_gaps_and_search_finds_both_languages() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    for (number, (name, category, price)) in [
        ("Green Tea 绿茶", "Food", 300),
        ("Black Tea 红茶", "Food", 100),
        ("Tea Pot 茶壶", "Home", 300),
        ("无线耳机 Earbuds", "Audio", 900),
        ("Desk Lamp 台灯", "Home", 300),
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({
            "sku": format!("S{number}"), "name": name, "category": category,
            "unit_amount": price, "currency": "CNY",
        });
        shop.post("/api/v1/products")
            .token(&staff)
            .json(&body)
            .send()
            .expect(201);
    }
    for (sort, expected) in [
        (
            "price_asc",
            ["Black", "Green", "Tea P", "Desk ", "无线耳机 "],
        ),
        (
            "price_desc",
            ["无线耳机 ", "Desk ", "Tea P", "Green", "Black"],
        ),
        ("newest", ["Desk ", "无线耳机 ", "Tea P", "Black", "Green"]),
    ] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/v1/products?limit=2&sort={sort}{cursor}");
            let page = shop.get(&path).send().expect(200);
            seen.extend(names(&page));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen.len(), 5, "{sort}: {seen:?}");
        for (name, beginning) in seen.iter().zip(expected) {
            assert!(name.starts_with(beginning), "{sort}: {seen:?}");
        }
    }
    let found = |q: &str| {
        names(
            &shop
                .get(&format!("/api/v1/products?{q}"))
                .send()
                .expect(200),
        )
    };
    assert_eq!(found("q=tea&sort=price_asc").len(), 3);
    assert_eq!(found("q=TEA&category=Food").len(), 2);
    assert_eq!(found("q=%E8%80%B3%E6%9C%BA"), ["无线耳机 Earbuds"]);
    assert_eq!(found("q=%E8%8C%B6").len(), 3, "one character");
    assert_eq!(found("q=tea%20pot"), ["Tea Pot 茶壶"]);
    assert_eq!(found("q=S3"), ["无线耳机 Earbuds"]);
    assert_eq!(found("q=coffee"), Vec::<String>::new());
    assert_eq!(
        found("q=%22%27%3B--"),
        Vec::<String>::new(),
        "no words at all"
    );
    let other = shop
        .get("/api/v1/products?sort=newest&limit=1")
        .send()
        .expect(200);
    let cursor = text(&other["next_cursor"]);
    let mixed = shop
        .get(&format!("/api/v1/products?sort=price_asc&cursor={cursor}"))
        .send();
    assert_eq!(
        mixed.outcome(),
        "400 invalid_parameter",
        "a cursor belongs to its sort"
    );
}

#[test]
fn a_batch_keeps_the_order_and_names_what_is_missing() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let (a, b) = (shop.product(&staff, 1), shop.product(&staff, 2));
    let page = shop
        .get(&format!("/api/v1/products?ids={b},777,{a},{b}"))
        .send()
        .expect(200);
    let ids: Vec<&Value> = page["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| &item["id"])
        .collect();
    assert_eq!((ids[0], ids[1]), (&json!(b), &json!(a)));
    assert_eq!(page["missing"], json!([777]));
    let many = vec!["1"; 201].join(",");
    for ids in ["", "1,,2", "x", "1;2", &many] {
        let answer = shop.get(&format!("/api/v1/products?ids={ids}")).send();
        assert_eq!(answer.outcome(), "400 invalid_parameter", "{ids}");
    }
}

#[test]
fn a_product_in_a_sale_that_runs_or_will_stays_in_the_shop() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let product = shop.product(&staff, 20);
    let later = shop.clock.now().plus_seconds(7_200);
    let runs = shop.sale(&staff, product, 5, json!({}));
    let planned = shop.sale(
        &staff,
        product,
        5,
        json!({"starts_at": later, "ends_at": later.plus_seconds(60)}),
    );
    let delete = || {
        let path = format!("/api/v1/products/{product}");
        shop.ask("DELETE", &path).token(&staff).send()
    };
    let refused = delete();
    assert_eq!(refused.outcome(), "409 product_in_sale");
    let detail = text(&refused.json()["detail"]);
    assert!(
        detail.contains(&format!("flash sale {runs}, {planned};")),
        "{detail}"
    );
    assert_eq!(shop.stock(product), 10, "still in the shop");
    let stop = |sale: i64| {
        let path = format!("/api/v1/flash-sales/{sale}/stop");
        shop.post(&path).token(&staff).send().expect(200);
    };
    stop(planned);
    assert_eq!(delete().outcome(), "409 product_in_sale");
    shop.clock.advance(Duration::from_secs(3_600));
    let staff = shop.token(Role::Staff);
    let path = format!("/api/v1/products/{product}");
    let gone = shop.ask("DELETE", &path).token(&staff).send();
    assert_eq!(gone.status, 204, "its sales are over");
}

#[test]
pub fn a_product_is_tagged_changed_and_archived() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let id = shop.product(&staff, 5);
    let path = format!("/api/v1/products/{id}");
    let first = shop.get(&path).send();
    let tag = first.header("etag").expect("a tag").to_owned();
    let same = shop.get(&path).header("If-None-Match", &tag).send();
    assert_eq!((same.status, same.body.as_str()), (304, ""));
    let patch = |body: Value| shop.ask("PATCH", &path).token(&staff).json(&body).send();
    let changed = patch(json!({"name": "Cup", "stock": 9})).expect(200);
    assert_eq!(
        (&changed["name"], &changed["stock"]),
        (&json!("Cup"), &json!(9))
    );
    let fresh = shop.get(&path).header("If-None-Match", &tag).send();
    assert_eq!(fresh.status, 200, "another tag now");
    for body in [
        json!({"stock": -1}),
        json!({"unit_amount": -1}),
        json!({"name": ""}),
        json!({"id": 7}),
        json!({"popularity": 7}),
        json!({"unit_amount": 9_223_372_036_854_775_807i64}),
        json!({"unit_amount": 1.5}),
    ] {
        assert_eq!(
            patch(body.clone()).outcome(),
            "422 validation_failed",
            "{body}"
        );
    }
    assert_eq!(shop.stock(id), 9, "nothing changed");
    let gone = shop.ask("DELETE", &path).token(&staff).send();
    assert_eq!(gone.status, 204);
    assert_eq!(shop.get(&path).send().outcome(), "404 product_not_found");
    let again = shop.ask("DELETE", &path).token(&staff).send();
    assert_eq!(again.outcome(), "404 product_not_found");
    let sku = json!({"sku": "A-1", "name": "x", "unit_amount": 1, "currency": "CNY"});
    let make = || {
        shop.post("/api/v1/products")
            .token(&staff)
            .json(&sku)
            .send()
    };
    make().expect(201);
    assert_eq!(make().outcome(), "409 sku_taken");
}

#[test]
fn an_import_streams_names_bad_rows_and_doubles_nothing() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let send = |file: &[u8]| {
        shop.post("/api/v1/products/import")
            .token(&staff)
            .raw("text/csv; charset=utf-8", file)
            .send()
    };
    let mut file = String::from("sku,name,price,currency,stock\n");
    for number in 0..3_000 {
        file.push_str(&format!("N{number},杯子 {number},12.50,CNY,3\n"));
    }
    file.push_str("BAD1,x,12.505,CNY,1\nBAD2,x,1,yuan,1\nBAD3,x,1,CNY,-1\nBAD4,\"a,b\",1,CNY\n");
    let report = send(file.as_bytes()).expect(200);
    assert_eq!(
        (&report["read"], &report["created"], &report["failed"]),
        (&json!(3_004), &json!(3_000), &json!(4))
    );
    let lines: Vec<&Value> = report["errors"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|error| &error["line"])
        .collect();
    assert_eq!(
        lines,
        [&json!(3_002), &json!(3_003), &json!(3_004), &json!(3_005)]
    );
    let again = send(file.as_bytes()).expect(200);
    assert_eq!(
        (&again["created"], &again["unchanged"]),
        (&json!(0), &json!(3_000))
    );
    let changed = send(b"sku,name,price,currency\nN7,Cup,1,CNY\n").expect(200);
    assert_eq!(changed["updated"], 1);
    let found = shop.get("/api/v1/products?q=Cup").send().expect(200);
    assert_eq!(
        (&found["items"][0]["name"], &found["items"][0]["stock"]),
        (&json!("Cup"), &json!(3)),
        "a column that is not there changes nothing"
    );
    assert_eq!(send(b"sku,name,price\n").outcome(), "422 validation_failed");
    assert_eq!(
        send(b"sku,name,price,currency,colour\n").outcome(),
        "422 validation_failed"
    );
    let no_text = send(b"sku,name,price,currency\nX1,\xff\xfe,1,CNY\nX2,ok,1,CNY\n");
    assert_eq!(
        no_text.outcome(),
        "422 validation_failed",
        "in one encoding, or not at all"
    );
    let json = shop
        .post("/api/v1/products/import")
        .token(&staff)
        .json(&json!({}))
        .send();
    assert_eq!(json.outcome(), "415 unsupported_media_type");
}
