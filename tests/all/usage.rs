//! What executions used: each leaves one record, whatever happens to the gateway and the database.

mod survival;

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::gateway::{Gateway, gateway};
use crate::support::root;

/// Runs for ever.
const SPIN: &str =
    r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#;
const TRAP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#;
/// Exits with 3.
const FAIL: &str = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 3))))"#;
/// Wants memory until it gets none, and then traps.
const GROW: &str = r#"(module (memory (export "memory") 1) (func (export "_start")
    (loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable))"#;
/// Calls itself without end.
const DEEP: &str = r#"(module (memory (export "memory") 1) (func $f (export "_start") (call $f)))"#;
/// Wants table elements until it gets none, and then traps.
const TABLE: &str = r#"(module (memory (export "memory") 1) (table 1 funcref) (func (export "_start")
    (loop $l (br_if $l (i32.ne (table.grow (ref.null func) (i32.const 1000)) (i32.const -1)))) unreachable))"#;
/// Writes for ever.
const WRITE: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1) (data (i32.const 0) "\10\00\00\00\00\10\00\00")
    (func (export "_start")
        (loop $l (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br $l))))"#;

/// Executes a module through the API; returns the request's id.
async fn execute(gateway: &Gateway, module: &str, status: u16) -> String {
    let answer = gateway
        .client()
        .post(gateway.url("/api/wasm/execute?input=abc"))
        .bearer_auth(gateway.admin_key())
        .header("content-type", "text/wat")
        .body(module.to_owned())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), status, "{module}");
    answer.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned()
}

/// Asks the API, with a key.
pub async fn get(gateway: &Gateway, key: &str, path: &str) -> (u16, Value) {
    let request = gateway.client().get(gateway.url(path)).bearer_auth(key);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// The executions at a path, once there are so many.
async fn executions(gateway: &Gateway, path: &str, count: usize) -> Vec<Value> {
    let key = gateway.admin_key();
    eventually("the records arrive", async || {
        let (status, body) = get(gateway, &key, path).await;
        assert_eq!(status, 200, "{body}");
        let found = body["executions"].as_array().unwrap().clone();
        assert!(found.len() <= count, "{found:#?}");
        (found.len() == count).then_some(found)
    })
    .await
}

#[tokio::test]
async fn each_execution_leaves_one_record() {
    let gateway = gateway()
        .set("tiers.enterprise.execution_timeout", json!("300ms"))
        .set("tiers.enterprise.memory_max", json!("4MiB"))
        .set("sandbox.stdout_max", json!("64KiB"))
        .start();
    let (client, key) = (gateway.client(), gateway.admin_key());
    let echo = std::fs::read_to_string(root().join("examples/guests/echo.wat")).unwrap();
    let mut expected = HashMap::new();
    for (module, answer, status) in [
        (echo.as_str(), 200, "success"),
        (TRAP, 422, "execution_error"),
        (FAIL, 422, "execution_error"),
        (SPIN, 422, "time_limit_exceeded"),
        (GROW, 422, "memory_limit_exceeded"),
        (DEEP, 422, "stack_limit_exceeded"),
        (TABLE, 422, "table_limit_exceeded"),
        (WRITE, 422, "output_limit_exceeded"),
        ("this is no module", 422, "validation_error"),
    ] {
        expected.insert(execute(&gateway, module, answer).await, status);
    }
    // What is refused before it says what to run is a mistake of the client too; what is no execution leaves
    // nothing.
    let post = |path: &str| client.post(gateway.url(path)).bearer_auth(&key);
    let answer = post("/api/wasm/execute").send().await.unwrap();
    assert_eq!(answer.status(), 415);
    let id = |answer: &reqwest::Response| {
        answer.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    expected.insert(id(&answer), "validation_error");
    // So is a body over its limit, whose length was not announced.
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 65_536]));
    let answer = post("/api/wasm/execute")
        .header("content-type", "application/wasm")
        .body(reqwest::Body::wrap_stream(endless));
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), 413);
    expected.insert(id(&answer), "validation_error");
    let form = reqwest::multipart::Form::new().text("name", "echo").part(
        "wasm",
        reqwest::multipart::Part::bytes(echo.into_bytes()).file_name("m"),
    );
    let module = post("/api/wasm/upload")
        .multipart(form)
        .send()
        .await
        .unwrap();
    let module: Value = module.json().await.unwrap();
    let path = format!("/api/wasm/modules/{}", module["id"].as_str().unwrap());
    let answer = post(&format!("{path}/execute"))
        .body("stored")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let stored = id(&answer);
    expected.insert(stored.clone(), "success");
    let answer = post("/fn/echo").body("routed").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    // The receipt is on the answer of a route too.
    for header in [
        "x-wasm-duration-us",
        "x-wasm-cpu-us",
        "x-wasm-memory-peak-bytes",
    ] {
        let value = answer.headers()[header].to_str().unwrap();
        assert!(value.parse::<u64>().is_ok(), "{header}: {value}");
    }
    let routed = id(&answer);
    expected.insert(routed.clone(), "success");
    let anonymous = client.get(gateway.url("/fn/hello")).send().await.unwrap();
    let anonymous = id(&anonymous);

    let own = executions(&gateway, "/api/usage/executions", expected.len()).await;
    for execution in &own {
        let request = execution["request_id"].as_str().unwrap();
        assert_eq!(execution["status"], expected[request], "{execution}");
        assert!(execution.get("user_id").is_none());
    }
    let of = |request: &str| own.iter().find(|e| e["request_id"] == request).unwrap();
    let stored = of(&stored);
    assert_eq!(stored["module_id"], module["id"]);
    assert_eq!(stored["sha256_hash"], module["sha256_hash"]);
    assert_eq!(
        (&stored["bytes_in"], &stored["bytes_out"]),
        (&json!(6), &json!(6))
    );
    assert_eq!(stored["route"], Value::Null);
    assert!(stored["memory_peak_bytes"].as_u64().unwrap() >= 65_536);
    let routed = of(&routed);
    assert_eq!(
        (&routed["route"], &routed["bytes_in"]),
        (&json!("echo"), &json!(6))
    );
    let spun = own
        .iter()
        .find(|e| e["status"] == "time_limit_exceeded")
        .unwrap();
    assert!(spun["duration_us"].as_u64().unwrap() >= 300_000);
    assert!(spun["cpu_us"].as_u64().unwrap() > 0);

    let all = executions(&gateway, "/api/admin/usage/executions", expected.len() + 1).await;
    let found = all.iter().find(|e| e["request_id"] == *anonymous).unwrap();
    assert_eq!(
        (&found["user_id"], &found["key_id"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(found["route"], "hello");

    let (_, sums) = get(&gateway, &key, "/api/usage?group_by=status").await;
    let sums: HashMap<_, _> = sums["usage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sum| {
            (
                sum["status"].as_str().unwrap().to_owned(),
                sum["executions"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        (
            sums["success"],
            sums["execution_error"],
            sums["validation_error"]
        ),
        (3, 2, 3)
    );
    assert_eq!(
        (sums["stack_limit_exceeded"], sums["table_limit_exceeded"]),
        (1, 1)
    );
    for (status, count) in [("stack_limit_exceeded", 1.0), ("table_limit_exceeded", 1.0)] {
        let metric = format!("wasmwiz_guests_total{{status=\"{status}\"}}");
        assert_eq!(gateway.metric(&metric).await, Some(count), "{metric}");
    }
    let (_, module) = get(&gateway, &key, &path).await;
    assert_eq!(module["execution_count"], 1);
    // What was delivered is no longer in the journal, and a clean end leaves nothing.
    eventually("nothing waits", async || {
        (gateway.metric("wasmwiz_usage_journal_bytes").await? == 0.0).then_some(())
    })
    .await;
    let written = gateway.metric("wasmwiz_usage_rows_written_total").await;
    assert_eq!(written, Some(expected.len() as f64 + 1.0));
    let mut gateway = gateway;
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0));
    let left = std::fs::read_dir(gateway.dir().join("data/usage")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn usage_is_ones_own_and_operators_see_all() {
    let gateway = gateway().start();
    let admin = gateway.admin_key();
    let out = crate::support::gateway::run(
        &gateway.dir(),
        &[
            "keys",
            "create",
            "--user",
            "user@example.org",
            "--tier",
            "enterprise",
        ],
        &[],
    );
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    let at = out
        .find("ww_")
        .unwrap_or_else(|| panic!("no key was made:\n{out}"));
    let user = out[at..].split_whitespace().next().unwrap().to_owned();
    let run = |key: String| {
        let request = gateway.client().post(gateway.url("/fn/echo"));
        async move { request.bearer_auth(key).body("x").send().await.unwrap() }
    };
    for _ in 0..3 {
        assert_eq!(run(admin.clone()).await.status(), 200);
    }
    assert_eq!(run(user.clone()).await.status(), 200);
    let all = executions(&gateway, "/api/admin/usage/executions", 4).await;
    let (_, own) = get(&gateway, &user, "/api/usage/executions").await;
    let own = own["executions"].as_array().unwrap();
    assert_eq!(own.len(), 1);
    let of_admin = all
        .iter()
        .find(|e| e["key_id"] != own[0]["key_id"])
        .unwrap();
    let id = |name: &str| of_admin[name].as_str().unwrap().to_owned();
    // Naming another's key or id gives nothing of it.
    let path = format!(
        "/api/usage/executions?before={}",
        own[0]["id"].as_str().unwrap()
    );
    let (status, body) = get(&gateway, &user, &path).await;
    assert_eq!((status, &body["executions"]), (200, &json!([])), "{path}");
    let path = format!("/api/usage/executions?key_id={}", id("key_id"));
    let (status, body) = get(&gateway, &user, &path).await;
    assert_eq!((status, &body["code"]), (400, &json!("bad_request")));
    let (_, body) = get(
        &gateway,
        &user,
        &format!("/api/usage?key_id={}", id("key_id")),
    )
    .await;
    assert_eq!(body["usage"], json!([]));
    let (_, body) = get(
        &gateway,
        &user,
        &format!("/api/usage?user_id={}", id("user_id")),
    )
    .await;
    assert_eq!(
        body["usage"][0]["executions"], 1,
        "one's own, whatever it says"
    );
    for path in ["/api/admin/usage", "/api/admin/usage/executions"] {
        assert_eq!(get(&gateway, &user, path).await.0, 403, "{path}");
        let none = gateway
            .client()
            .get(gateway.url(path))
            .send()
            .await
            .unwrap();
        assert_eq!(none.status(), 401, "{path}");
    }
    let (_, body) = get(&gateway, &admin, "/api/admin/usage?group_by=user").await;
    let sums: Vec<_> = body["usage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["executions"])
        .collect();
    assert_eq!(sums, [&json!(3), &json!(1)]);
    let path = format!("/api/admin/usage?group_by=none&user_id={}", id("user_id"));
    assert_eq!(
        get(&gateway, &admin, &path).await.1["usage"][0]["executions"],
        3
    );
    // Page by page.
    let (_, first) = get(&gateway, &admin, "/api/usage/executions?limit=2").await;
    assert_eq!(first["executions"].as_array().unwrap().len(), 2);
    let next = format!(
        "/api/usage/executions?limit=2&before={}",
        first["next"].as_str().unwrap()
    );
    let (_, second) = get(&gateway, &admin, &next).await;
    assert_eq!(second["executions"].as_array().unwrap().len(), 1);
    assert_eq!(second["next"], Value::Null);
    for (query, says) in [
        ("from=2026-02-30", "`from` must be a day"),
        ("from=2026-02-02&to=2026-02-01", "must not be after"),
        ("group_by=user", "`group_by` must be"),
        ("group_by=day,,key", "`group_by` must be"),
        ("key_id=1", "`key_id` must be a UUID"),
        ("sha256_hash=abc", "64 hexadecimal digits"),
        ("page=0", "`page` must be a number"),
        ("limit=1001", "`limit` must be a number"),
        ("limit=1&limit=2", "more than once"),
        ("key_id=%00", "`key_id` must be a UUID"),
    ] {
        let (status, body) = get(&gateway, &user, &format!("/api/usage?{query}")).await;
        let message = body["error"].as_str().unwrap();
        assert!(
            status == 400 && message.contains(says),
            "{query}: {status} {message}"
        );
    }
}

#[tokio::test]
async fn where_nothing_can_be_recorded_nothing_is_executed() {
    let gateway = gateway().start();
    let key = gateway.admin_key();
    let journal = std::fs::read_dir(gateway.dir().join("data/usage"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .next()
        .unwrap();
    // Somebody tidies up.
    std::fs::remove_dir_all(&journal).unwrap();
    let run = async || {
        let request = gateway.client().post(gateway.url("/fn/echo"));
        let answer = request.bearer_auth(&key).body("x").send().await.unwrap();
        let has_retry = answer.headers().contains_key("retry-after");
        (
            answer.status().as_u16(),
            has_retry,
            answer.text().await.unwrap(),
        )
    };
    let (status, has_retry, body) = run().await;
    assert!(
        status == 503 && has_retry && body.contains("usage_unavailable"),
        "{status} {body}"
    );
    let answer = gateway
        .client()
        .post(gateway.url("/api/wasm/execute"))
        .bearer_auth(&key)
        .header("content-type", "text/wat")
        .body(TRAP)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 503);
    // What executes nothing goes on.
    let (status, _) = get(&gateway, &key, "/api/wasm/modules").await;
    assert_eq!(status, 200);
    let ready = async |wanted: u16| {
        eventually("readiness follows", async || {
            let answer = gateway
                .client()
                .get(gateway.url("/health/ready"))
                .send()
                .await
                .ok()?;
            (answer.status() == wanted).then_some(())
        })
        .await;
    };
    ready(503).await;
    assert_eq!(
        gateway.metric("wasmwiz_usage_journal_refusing").await,
        Some(1.0)
    );
    std::fs::create_dir(&journal).unwrap();
    ready(200).await;
    assert_eq!(run().await.0, 200);
    executions(&gateway, "/api/usage/executions", 1).await;
}
