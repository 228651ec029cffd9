//! The committed specification is what the code says, and says enough.

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
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            operations += 1;
            let name = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{name} has no summary");
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
