//! Files as spreadsheet programs write them, over HTTP and on the command line.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use onrush::auth::Role;
use serde_json::json;

use crate::support::{Answer, Shop};

#[test]
fn an_import_reads_the_encodings_of_spreadsheet_programs_and_says_which() {
    let shop = Shop::open();
    let staff = shop.token(Role::Staff);
    let send = |content_type: &str, file: &[u8]| {
        shop.post("/api/v1/products/import")
            .token(&staff)
            .raw(content_type, file)
            .send()
    };
    let reason = |answer: &Answer| answer.json()["errors"][0]["reason"].to_string();
    // As Excel writes it in China: GBK, and a byte for each half of 毛毯.
    let gbk = b"sku,name,price,currency\r\nM-1,\xc3\xab\xcc\xba,\"\xa3\xa41,299.00\",CNY\r\n";
    for (content_type, said) in [
        ("text/csv", "GB18030"),
        ("text/csv; charset=gbk", "GBK"),
        ("text/csv; header=present; charset=\"GB18030\"", "GB18030"),
    ] {
        let report = send(content_type, gbk).expect(200);
        assert_eq!(report["failed"], 0, "{report}");
        assert_eq!(
            (&report["encoding"], &report["delimiter"]),
            (&json!(said), &json!("comma"))
        );
    }
    let found = shop
        .get("/api/v1/products?q=%E6%AF%9B%E6%AF%AF")
        .send()
        .expect(200);
    assert_eq!(
        (
            &found["items"][0]["name"],
            &found["items"][0]["unit_amount"]
        ),
        (&json!("毛毯"), &json!(129_900))
    );
    let unicode: Vec<u8> = "\u{feff}sku\tstock\r\nM-1\t7\r\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let report = send("text/tab-separated-values", &unicode).expect(200);
    assert_eq!(
        (
            &report["updated"],
            &report["encoding"],
            &report["delimiter"]
        ),
        (&json!(1), &json!("UTF-16LE"), &json!("tab"))
    );
    let refused = send("text/csv; charset=klingon", gbk);
    assert_eq!(refused.outcome(), "422 validation_failed");
    assert!(reason(&refused).contains("there is no charset `klingon`"));
    let refused = send("text/csv; charset=utf-8", gbk);
    assert!(
        reason(&refused).contains("line 2, byte 36 of the file: is not UTF-8"),
        "{}",
        reason(&refused)
    );
    // Larger than what is kept in memory: put aside, and nothing is left of it.
    let mut large = String::from("sku,name,price,currency,description\n");
    let words = "毯".repeat(9_000);
    for number in 0..60 {
        large.push_str(&format!("L{number},Rug,1,CNY,{words}\n"));
    }
    assert!(large.len() > 1 << 20);
    assert_eq!(
        send("text/csv", large.as_bytes()).expect(200)["created"],
        60
    );
    let left: Vec<_> = std::fs::read_dir(shop.data_dir())
        .expect("the data directory")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| !name.to_string_lossy().starts_with("onrush."))
        .collect();
    assert!(
        left.iter()
            .all(|name| ["queue", "cache", "outbox", "static"].contains(&&*name.to_string_lossy())),
        "{left:?}"
    );
}

/// `onrush import` into the data directory, with the file on standard input.
fn import(data: &Path, args: &[&str], file: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onrush"))
        .args(["import", args[0], "-", "--data-dir"])
        .arg(data)
        .args(&args[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = command.stdin.take().expect("a pipe");
    // Refused before the file is read, it has closed the pipe.
    let _ = stdin.write_all(file);
    drop(stdin);
    command.wait_with_output().expect("it ends")
}

#[test]
fn the_command_line_reads_the_same_files_and_says_how() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = dir.path().join("data");
    let ran = |args: &[&str], file: &[u8]| {
        let output = import(&data, args, file);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let result = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said, result)
    };
    let products = encoding_rs::GBK
        .encode("sku;name;price;currency\r\nM-1;毛毯;￥12,50;CNY\r\n")
        .0;
    let (code, said, result) = ran(&["products"], &products);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("The file was read as GB18030; between its columns: semicolon."),
        "{said}"
    );
    assert!(result.contains("1 created"), "{result}");

    let orders = "\u{feff}order_id\tcustomer\tproduct\tquantity\tamount\tcurrency\ttime\r\n\
        1\th-1\tM-1\t1\t12.50\tCNY\t2026/1/5 9:03\r\n2\th-1\tM-1\t1\t12.50\tCNY\t1/5/2026 9:03\r\n";
    let orders: Vec<u8> = orders.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let (code, said, _) = ran(&["orders", "--time-zone", "Asia/Shangai"], &orders);
    assert_eq!(code, Some(2));
    assert!(said.contains("Asia/Shanghai"), "{said}");
    let (code, said, result) = ran(&["orders", "--time-zone", "Asia/Shanghai"], &orders);
    assert_eq!(code, Some(1), "one row is refused");
    assert!(
        said.contains("line 3: time: could mean 2026-05-01 or 2026-01-05"),
        "{said}"
    );
    assert!(result.contains("1 created"), "{result}");
    let report = Command::new(env!("CARGO_BIN_EXE_onrush"))
        .args([
            "report",
            "sales",
            "--from",
            "2026-01-05",
            "--to",
            "2026-01-05",
            "--csv",
        ])
        .arg("--data-dir")
        .arg(&data)
        .output()
        .expect("it runs");
    let report = String::from_utf8(report.stdout).expect("UTF-8");
    assert!(report.starts_with("\u{feff}section,"), "{report}");
    assert!(
        report.contains("day,2026-01-05,CNY,,,,,,1,1,1250,12.50"),
        "{report}"
    );

    for (args, file, words) in [
        (
            &["products", "--charset", "klingon"][..],
            &products[..],
            "there is no charset `klingon`",
        ),
        (
            &["products", "--charset", "utf-8"],
            &products,
            "is not UTF-8",
        ),
        (&["products"], b"PK\x03\x04", "workbook"),
        (
            &["products"],
            b"sku,name\n",
            "the column `currency` is missing",
        ),
        (
            &["products"],
            b"sku;name;price;currency\nA;caf\xe9;1;EUR\n",
            "name its charset with --charset",
        ),
    ] {
        let (code, said, result) = ran(args, file);
        assert_eq!((code, result.as_str()), (Some(2), ""), "{said}");
        assert!(said.contains(words), "{said}");
    }
    let (code, said, _) = ran(
        &["products", "--charset", "windows-1252"],
        b"sku;name;price;currency\nA;caf\xe9;1;EUR\n",
    );
    assert_eq!(code, Some(0), "{said}");
}
