//! The committed specification is what the code says, and says enough.

use std::collections::BTreeSet;

/// What generated clients call an operation: a verb, then what it is done to, such as
/// `create_flash_sale`. It is a contract: a name that was published is not changed.
fn is_good_id(id: &str, method: &str) -> bool {
    let is_plain = |word: &str| !word.is_empty() && word.bytes().all(|c| c.is_ascii_lowercase());
    let Some((verb, _)) = id.split_once('_') else {
        return false;
    };
    id.split('_').all(is_plain)
        && match method {
            "get" => ["get", "list", "count"].contains(&verb),
            "patch" => verb == "update",
            "delete" => ["delete", "revoke", "invalidate"].contains(&verb),
            "post" => !["get", "list", "delete", "post"].contains(&verb),
            _ => false,
        }
}

/// Texts without a length in a schema, and in those that it leads to.
fn unbounded(document: &serde_json::Value, schema: &serde_json::Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let place = name.trim_start_matches('#');
        let found = document.pointer(place).expect("what it leads to");
        return unbounded(document, found, at);
    }
    let parts = ["allOf", "anyOf", "oneOf"].map(|kind| schema[kind].as_array());
    let mut found: Vec<String> = parts
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|part| unbounded(document, part, at))
        .collect();
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        found.extend(unbounded(document, member, &format!("{at}.{name}")));
    }
    let is_free = ["maxLength", "enum", "format"].map(|key| schema[key].is_null()) == [true; 3];
    if schema["type"] == "string" && is_free {
        found.push(at.to_owned());
    }
    found
}

#[test]
fn each_text_that_is_taken_without_credentials_has_a_length() {
    let document: serde_json::Value =
        serde_json::from_str(include_str!("../openapi/onrush.json")).expect("JSON");
    let mut bodies = 0;
    let mut wrong = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let schema = &operation["requestBody"]["content"]["application/json; charset=utf-8"];
            let schema = match schema.is_null() {
                true => &operation["requestBody"]["content"]["application/json"]["schema"],
                false => &schema["schema"],
            };
            if operation["security"].is_array() || schema.is_null() {
                continue;
            }
            bodies += 1;
            wrong.extend(unbounded(&document, schema, &format!("{method} {path}")));
        }
    }
    assert!(bodies >= 5, "{bodies}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_committed_document_is_current_and_complete() {
    let (json, _) = onrush::app::openapi().expect("the document");
    let committed = include_str!("../openapi/onrush.json");
    assert!(
        json.trim_end() == committed.trim_end(),
        "openapi/onrush.json is stale; run: cargo run -- openapi > openapi/onrush.json"
    );
    let document: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let mut operations = 0;
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            operations += 1;
            let name = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{name} has no summary");
            let id = operation["operationId"].as_str().unwrap_or_default();
            assert!(
                is_good_id(id, method),
                "{name}: operation_id = \"{id}\" is no verb and noun that fit"
            );
            assert!(ids.insert(id.to_owned()), "{name}: {id} is another's");
            let responses = operation["responses"].as_object().expect("responses");
            for status in ["400", "500", "503"] {
                assert!(
                    responses.contains_key(status),
                    "{name} does not declare {status}"
                );
            }
            if operation["security"].is_array() {
                assert!(
                    responses.contains_key("401") && responses.contains_key("403"),
                    "{name}"
                );
            }
        }
    }
    assert!(operations >= 20, "only {operations} operations");
}
