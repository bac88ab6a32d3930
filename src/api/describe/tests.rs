//! The description is that of the program.

use std::collections::BTreeSet;

use super::super::{Asks, ENDPOINTS};
use super::*;
use crate::auth::Scope;
use crate::store::usage::Status;

/// What the gateway answers itself, beside the control plane.
const BESIDE: [&str; 6] = [
    "/.well-known/jwks.json",
    "/health",
    "/health/live",
    "/health/ready",
    "/healthz",
    "/readyz",
];

fn operations(description: &Value) -> Vec<(String, String, Value)> {
    let mut operations = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if method != "parameters" {
                operations.push((method.to_uppercase(), path.clone(), operation.clone()));
            }
        }
    }
    operations
}

#[test]
fn every_endpoint_is_described_and_nothing_else() {
    let description = description().unwrap();
    let operations = operations(&description);
    let described: BTreeSet<_> = operations
        .iter()
        .filter(|(_, path, _)| !BESIDE.contains(&path.as_str()))
        .map(|(method, path, _)| (method.clone(), path.clone()))
        .collect();
    let made: BTreeSet<_> = ENDPOINTS
        .iter()
        .map(|endpoint| (endpoint.method.to_string(), endpoint.path.to_owned()))
        .collect();
    assert_eq!(described, made);
    for path in BESIDE {
        assert!(
            operations.iter().any(|(_, other, _)| other == path),
            "{path}"
        );
    }
    let ids: BTreeSet<_> = operations
        .iter()
        .map(|(_, _, operation)| operation["operationId"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), operations.len(), "an operationId is there twice");
}

#[test]
fn what_an_endpoint_asks_for_is_what_its_row_says() {
    let description = description().unwrap();
    for endpoint in ENDPOINTS {
        let method = endpoint.method.as_str().to_lowercase();
        let operation = &description["paths"][endpoint.path][&method];
        let about = format!("{method} {}", endpoint.path);
        let (security, role) = match endpoint.asks {
            Asks::Nothing => (json!([{}]), Value::Null),
            Asks::AnyKey => (json!([{ "key": [] }, { "header": [] }]), Value::Null),
            Asks::Key { scope, role } => {
                let scope = scope.as_str();
                let security = json!([{ "key": [scope] }, { "header": [scope] }]);
                let role = serde_json::to_value(role).unwrap();
                let role = if role == "user" { Value::Null } else { role };
                (security, role)
            }
        };
        assert_eq!(operation["security"], security, "{about}");
        assert_eq!(operation["x-role"], role, "{about}: x-role");
        for (status, answer) in operation["responses"].as_object().unwrap() {
            assert!(status.parse::<u16>().is_ok(), "{about}: {status}");
            assert!(answer.is_object(), "{about}: {status}");
        }
        for status in ["400", "401", "405", "429", "500", "503"] {
            assert!(
                !operation["responses"][status].is_null(),
                "{about}: {status}"
            );
        }
    }
    let scopes = json!(Scope::ALL.map(Scope::as_str));
    assert_eq!(
        description["components"]["schemas"]["Scope"]["enum"],
        scopes
    );
}

/// Every code is described, and every one that is described exists.
#[test]
fn codes_are_those_that_are_sent() {
    let description = description().unwrap();
    let mut described = BTreeSet::new();
    collect(&description["components"], &mut described);
    for known in &described {
        assert!(code::ALL.contains(&known.as_str()), "{known} is no code");
    }
    let schema = &description["components"]["schemas"]["Error"]["properties"]["code"]["enum"];
    assert_eq!(schema, &json!(code::ALL));
}

/// The codes of answers: `enum` or `const` of a property `code`.
fn collect(value: &Value, codes: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "code" {
                    let listed = value["enum"].as_array().cloned().unwrap_or_default();
                    let one = value.get("const").cloned();
                    let names = listed.into_iter().chain(one);
                    codes.extend(names.map(|name| name.as_str().unwrap().to_owned()));
                }
                collect(value, codes);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, codes)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn check(value: &Value, description: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(at)) = map.get("$ref") {
                    let pointer = at.strip_prefix('#').unwrap();
                    assert!(description.pointer(pointer).is_some(), "{at}");
                }
                map.values().for_each(|value| check(value, description));
            }
            Value::Array(items) => items.iter().for_each(|item| check(item, description)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let description = description().unwrap();
    check(&description, &description);
    let text = description.to_string();
    assert!(!text.contains("x-answers") && !text.contains("\"<<\""));
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_page_has_every_operation_and_nothing_from_elsewhere() {
    let description = description().unwrap();
    let page = page::render(&description);
    for (method, path, _) in operations(&description) {
        assert!(
            page.contains(&format!("<h3><code>{method} {path}</code></h3>")),
            "{method} {path}"
        );
    }
    for foreign in ["http:", "https:", "<script", "style=", "<img", "<iframe"] {
        assert!(!page.to_lowercase().contains(foreign), "{foreign}");
    }
    // Each link on the page leads to something on it.
    for link in page.split("href=\"#").skip(1) {
        let id = link.split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "#{id}");
    }
}

#[test]
fn what_the_description_says_is_text_on_the_page() {
    let mut description = description().unwrap();
    let evil = "<script>alert(1)</script>\"'&`<b>`";
    description["info"]["title"] = evil.into();
    description["info"]["description"] = evil.into();
    description["tags"][0]["description"] = evil.into();
    let operation = &mut description["paths"]["/api/wasm/execute"]["post"];
    operation["operationId"] = evil.into();
    operation["summary"] = evil.into();
    operation["parameters"][0]["name"] = evil.into();
    operation["parameters"][0]["schema"]["default"] = evil.into();
    operation["security"][0]["key"][0] = evil.into();
    operation["responses"][evil] = json!({ "description": evil });
    description["components"]["schemas"][evil] =
        json!({ "type": evil, "properties": { evil: { "const": evil } } });
    let page = page::render(&description);
    assert!(!page.contains("<script>") && !page.contains("<b>"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"));
}

#[test]
fn statuses_are_those_that_there_are() {
    let description = description().unwrap();
    let listed = |schema: &Value| -> BTreeSet<String> {
        let words = schema["enum"].as_array().unwrap().iter();
        words
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    };
    let schemas = &description["components"]["schemas"];
    let all: BTreeSet<_> = Status::ALL.map(|s| s.as_str().to_owned()).into();
    assert_eq!(listed(&schemas["ExecutionStatus"]), all);
    // Who did not run, or is gone, gets no receipt.
    let answered = &all
        - &["validation_error", "rejected", "cancelled"]
            .map(String::from)
            .into();
    assert_eq!(
        listed(&schemas["Receipt"]["properties"]["status"]),
        answered
    );
}
