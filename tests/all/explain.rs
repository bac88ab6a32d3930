//! `explain`: which route a request would take, and why no other.

use serde_json::{Value, json};

use crate::support::gateway::run;

fn config(dir: &std::path::Path) {
    let respond = |name: &str, matcher: Value| json!({ "name": name, "match": matcher, "auth": "none", "respond": { "body": "x" } });
    let routes = json!([
        respond("exact-host", json!({ "hosts": ["example.com"], "path": "/*" })),
        respond("wild", json!({ "hosts": ["*.example.com"], "path": "/a" })),
        respond("any", json!({ "path": "/a" })),
        respond("beta", json!({ "path": "/a", "headers": { "X-Env": "beta" } })),
        respond("post", json!({ "path": "/a", "methods": ["POST"] })),
        { "name": "inside", "match": { "path": "/inside" }, "allow": ["10.0.0.0/8"], "auth": "none",
          "respond": { "body": "x" } },
        { "name": "user", "match": { "path": "/users/{id}" }, "auth": { "role": "admin" },
          "limits": { "per_minute": 7, "execution_timeout": "2s" },
          "headers": { "request": { "set": { "X-Secret": "hunter2" }, "remove": ["Cookie"] } },
          "cors": { "origins": ["https://*.app.test"] }, "compress": true,
          "execute": { "file": "missing.wasm", "abi": "wagi" } },
    ]);
    let text = serde_yaml::to_string(&json!({ "routes": routes })).unwrap();
    std::fs::write(dir.join("c.yaml"), text).unwrap();
}

fn explain(args: &[&str]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    config(dir.path());
    let all = [&["explain"], args, &["--config", "c.yaml"]].concat();
    let out = run(dir.path(), &all, &[]);
    let text = String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap();
    (out.status.code().unwrap(), text)
}

#[test]
fn the_route_and_why_no_other() {
    let (code, said) = explain(&["GET", "https://a.example.com/a"]);
    assert_eq!(code, 0, "{said}");
    for line in [
        "→ the route `wild`",
        "any (/a): matches, but its host is less specific (rule 1)",
        "beta (/a): asks for the header x-env",
        "post (/a): is for other methods",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    let (_, said) = explain(&["GET", "/a", "-H", "X-Env: beta"]);
    assert!(said.contains("→ the route `beta`"), "{said}");
    assert!(
        said.contains("any (/a): matches, but it has fewer conditions on headers (rule 3)"),
        "{said}"
    );
    let (_, said) = explain(&["GET", "/a", "-H", "X-Env: live"]);
    assert!(
        said.contains("beta (/a): asks for another value of the header x-env"),
        "{said}"
    );
    let (_, said) = explain(&["POST", "http://localhost:8080/a"]);
    assert!(said.contains("→ the route `post`"), "{said}");
    assert!(
        said.contains("any (/a): matches, but its methods are less specific (rule 4)"),
        "{said}"
    );
}

#[test]
fn what_applies_is_listed_without_secrets() {
    let (code, said) = explain(&["GET", "/users/7", "--address", "2001:db8::7"]);
    assert_eq!(code, 0, "{said}");
    for part in [
        "id 7",
        "the role admin or a higher one",
        "per minute 7",
        "guest ms 2000",
        "execute missing.wasm (wagi)",
        "remove cookie, set x-secret",
        "https://*.app.test",
        "counted as 2001:db8::",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
    let (_, said) = explain(&["GET", "/users/7", "--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["route"]["name"], "user");
    assert_eq!(report["route"]["parameters"]["id"], "7");
    assert_eq!(report["routes"]["in_all"], 7);
}

#[test]
fn what_no_route_answers() {
    for (args, code, part) in [
        (&["GET", "/nothing"][..], 1, "404: no route matches"),
        (&["GET", "/a//b"], 1, "404: no route matches"),
        (&["GET", "/a/%2e%2e/b"], 1, "400, before any route"),
        (
            &["GET", "/health"],
            0,
            "answered by the gateway itself: health",
        ),
        (&["POST", "/api/wasm/execute"], 0, "the API"),
        (&["TRACE", "/a"], 1, "405, before any route"),
        (
            &["GET", "/inside", "--address", "10.1.2.3"],
            0,
            "the route `inside`",
        ),
        (
            &["GET", "/inside", "--address", "11.1.2.3"],
            1,
            "403: the route `inside`",
        ),
        (&["G T", "/"], 1, "this is no method"),
        (&["GET", "example.com"], 1, "name a URL"),
        (&["GET", "/a", "-H", "nonsense"], 1, "write Name: value"),
    ] {
        let (found, said) = explain(args);
        assert_eq!(found, code, "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
    }
}
