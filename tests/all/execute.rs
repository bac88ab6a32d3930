//! The execute API through the real gateway: from a TLS socket to a guest and back.

use std::fs;
use std::time::{Duration, Instant};

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::gateway::{Gateway, gateway, workdir};
use crate::support::{eventually, root};

fn guest(name: &str) -> Vec<u8> {
    fs::read(root().join("examples/guests").join(name)).unwrap()
}

fn form(wasm: impl Into<std::borrow::Cow<'static, [u8]>>, input: &str) -> Form {
    Form::new()
        .part("wasm", Part::bytes(wasm).file_name("m.wasm"))
        .text("input", input.to_owned())
}

async fn execute(gateway: &Gateway, form: Form) -> (u16, Value) {
    let request = gateway.client().post(gateway.url("/api/wasm/execute"));
    let answer = request
        .bearer_auth(gateway.admin_key())
        .multipart(form)
        .send()
        .await
        .unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap())
}

#[tokio::test]
async fn bytes_go_in_and_output_comes_out() {
    let gateway = gateway().start();
    let (status, body) = execute(&gateway, form(guest("echo.wasm"), "hello")).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["output"], "hello");
    assert_eq!(body["error"], Value::Null);
    assert_eq!(body["exit_code"], 0);
    assert_eq!(body["sha256_hash"].as_str().unwrap().len(), 64);
    let (status, body) = execute(&gateway, form(guest("hello.wat"), "")).await;
    assert_eq!(status, 200, "text is accepted too: {body}");
}

#[tokio::test]
async fn the_old_names_still_work() {
    let gateway = gateway().start();
    let form = Form::new()
        .part(
            "wasm_file",
            Part::bytes(guest("echo.wasm")).file_name("m.wasm"),
        )
        .text("input_data", "old");
    let request = gateway.client().post(gateway.url("/api/execute"));
    let answer = request
        .header("x-api-key", gateway.admin_key())
        .multipart(form)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["output"], "old");
}

#[tokio::test]
async fn a_guest_that_fails_is_422_with_its_output_and_code() {
    let gateway = gateway().start();
    let (status, body) = execute(&gateway, form(guest("sum.wasm"), "1 two")).await;
    assert_eq!(status, 422, "{body}");
    assert_eq!(body["exit_code"], 1);
    assert!(!body["stderr"].as_str().unwrap().is_empty());
    assert!(body["error"].is_string());
    let trap = r#"(module (func (export "_start") unreachable))"#;
    let (status, body) = execute(&gateway, form(trap.as_bytes(), "")).await;
    assert_eq!(
        (status, body["code"].as_str()),
        (422, Some("guest_trap")),
        "{body}"
    );
}

#[tokio::test]
async fn a_guest_without_end_is_stopped_at_its_deadline() {
    let gateway = gateway()
        .set("tiers.enterprise.execution_timeout", json!("2s"))
        .start();
    let spin = r#"(module (func (export "_start") (loop (br 0))))"#;
    let (status, body) = execute(&gateway, form(spin.as_bytes(), "")).await;
    assert_eq!(
        (status, body["code"].as_str()),
        (422, Some("time_limit_exceeded")),
        "{body}"
    );
    let (status, _) = execute(&gateway, form(guest("echo.wasm"), "alive")).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn limits_are_enforced_while_reading() {
    let gateway = gateway()
        .set("sandbox.wasm_size_max", json!("64KiB"))
        .set("sandbox.input_size_max", json!("1KiB"))
        .start();
    for (form, what) in [
        (form(vec![0; 65 * 1024], ""), "a large module"),
        (form(guest("echo.wasm"), &"x".repeat(2000)), "a large input"),
        (form(vec![0; 4 * 1024 * 1024], ""), "a very large module"),
    ] {
        let (status, body) = execute(&gateway, form).await;
        assert_eq!(
            (status, body["code"].as_str()),
            (413, Some("payload_too_large")),
            "{what}: {body}"
        );
    }
}

#[tokio::test]
async fn bad_modules_are_refused_with_a_reason() {
    let gateway = gateway().start();
    for (bytes, says) in [
        (&b"\0asm\x0d\0\x01\0"[..], "component"),
        (&b"\0asm\x01\0\0\0\xff"[..], ""),
        (
            &b"(module (import \"env\" \"nope\" (func)) (func (export \"_start\")))"[..],
            "nope",
        ),
        (&b"(module"[..], ""),
        (&b""[..], ""),
    ] {
        let (status, body) = execute(&gateway, form(bytes.to_vec(), "")).await;
        assert!(status == 422 || status == 400, "{body}");
        assert!(
            body["error"].as_str().unwrap().contains(says),
            "{says}: {body}"
        );
    }
}

#[tokio::test]
async fn a_module_is_stored_listed_run_and_deleted() {
    let gateway = gateway().start();
    let client = gateway.client();
    let key = gateway.admin_key();
    let upload = form(guest("echo.wasm"), "")
        .text("name", "my echo")
        .text("description", "echoes");
    let answer = client
        .post(gateway.url("/api/wasm/upload"))
        .bearer_auth(&key)
        .multipart(upload);
    let answer = answer.send().await.unwrap();
    assert!(
        answer.status() == 201 || answer.status() == 400,
        "`input` is no field of an upload"
    );
    let upload = Form::new()
        .part(
            "wasm",
            Part::bytes(guest("echo.wasm")).file_name("echo.wasm"),
        )
        .text("name", "my echo")
        .text("description", "echoes");
    let answer = client
        .post(gateway.url("/api/wasm/upload"))
        .bearer_auth(&key)
        .multipart(upload);
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let module: Value = answer.json().await.unwrap();
    assert_eq!(module["name"], "my echo");
    assert_eq!(module["size_bytes"], guest("echo.wasm").len());
    let id = module["id"].as_str().unwrap();

    let list: Value = client
        .get(gateway.url("/api/wasm/modules?limit=1"))
        .bearer_auth(&key)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(list["limit"], 1);
    assert!(
        list["modules"]
            .as_array()
            .unwrap()
            .iter()
            .any(|m| m["id"] == id),
        "{list}"
    );

    let url = gateway.url(&format!("/api/wasm/modules/{id}/execute"));
    let answer = client
        .post(&url)
        .bearer_auth(&key)
        .body("raw input")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["output"], "raw input");
    let raw = client
        .post(&url)
        .bearer_auth(&key)
        .header("accept", "application/octet-stream");
    let raw = raw.body("as it is").send().await.unwrap();
    assert_eq!(raw.bytes().await.unwrap(), "as it is");

    let url = gateway.url(&format!("/api/wasm/modules/{id}"));
    assert_eq!(
        client
            .delete(&url)
            .bearer_auth(&key)
            .send()
            .await
            .unwrap()
            .status(),
        204
    );
    assert_eq!(
        client
            .get(&url)
            .bearer_auth(&key)
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
}

#[tokio::test]
async fn keys_are_made_used_and_revoked_at_once() {
    let gateway = gateway().start();
    let client = gateway.client();
    let admin = gateway.admin_key();
    let made = client
        .post(gateway.url("/api/auth/keys"))
        .bearer_auth(&admin);
    let made = made
        .json(&json!({ "name": "ci", "tier": "free" }))
        .send()
        .await
        .unwrap();
    assert_eq!(made.status(), 201);
    let made: Value = made.json().await.unwrap();
    let (key, id) = (
        made["api_key"].as_str().unwrap(),
        made["api_key_id"].as_str().unwrap(),
    );
    let list = async || {
        let request = client
            .get(gateway.url("/api/wasm/modules"))
            .bearer_auth(key);
        request.send().await.unwrap().status()
    };
    assert_eq!(list().await, 200);
    let url = gateway.url(&format!("/api/auth/keys/{id}"));
    assert_eq!(
        client
            .delete(&url)
            .bearer_auth(&admin)
            .send()
            .await
            .unwrap()
            .status(),
        204
    );
    assert_eq!(list().await, 401, "a revoked key stops at once");
    let wrong = client
        .get(gateway.url("/api/wasm/modules"))
        .bearer_auth(format!("ww_{}", "A".repeat(43)));
    assert_eq!(wrong.send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_free_key_has_its_ten_requests_a_minute() {
    let gateway = gateway().start();
    let client = gateway.client();
    let made = client
        .post(gateway.url("/api/auth/keys"))
        .bearer_auth(gateway.admin_key());
    let made: Value = made
        .json(&json!({ "name": "f", "tier": "free" }))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let key = made["api_key"].as_str().unwrap();
    let ask = async || {
        client
            .get(gateway.url("/api/wasm/modules"))
            .bearer_auth(key)
            .send()
            .await
            .unwrap()
    };
    let header = |answer: &reqwest::Response, name: &str| -> u64 {
        answer.headers()[name].to_str().unwrap().parse().unwrap()
    };
    let began = Instant::now();
    let mut asked = 0;
    let refused = loop {
        let answer = ask().await;
        if answer.status() == 429 {
            break answer;
        }
        asked += 1;
        // One comes back every six seconds.
        let more = began.elapsed().as_secs() / 6 + 1;
        assert!(asked < 10 + more, "{asked} in {:?}", began.elapsed());
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "x-ratelimit-limit"), 10);
        let left = 10_u64.saturating_sub(asked);
        let remaining = header(&answer, "x-ratelimit-remaining");
        assert!((left..left + more).contains(&remaining), "{remaining}");
        assert!(answer.headers().contains_key("x-ratelimit-reset"));
        assert!(answer.headers().contains_key("ratelimit"));
    };
    assert!(asked >= 10, "{asked}");
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=6).contains(&wait), "{wait}");
    assert_eq!(refused.headers()["x-ratelimit-remaining"], "0");
    assert_eq!(
        refused.json::<Value>().await.unwrap()["code"],
        "rate_limited"
    );
}

#[tokio::test]
async fn more_keys_are_not_more_requests() {
    let gateway = gateway().start();
    let client = gateway.client();
    let make = async || {
        let made = client
            .post(gateway.url("/api/auth/keys"))
            .bearer_auth(gateway.admin_key());
        let made = made.json(&json!({ "tier": "free" })).send().await.unwrap();
        made.json::<Value>().await.unwrap()["api_key"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut allowed = 0;
    let began = Instant::now();
    for _ in 0..5 {
        let key = make().await;
        for _ in 0..4 {
            let answer = client
                .get(gateway.url("/api/wasm/modules"))
                .bearer_auth(&key)
                .send();
            allowed += u64::from(answer.await.unwrap().status() == 200);
        }
    }
    assert!(
        (10..=11 + began.elapsed().as_secs() / 6).contains(&allowed),
        "{allowed} of 20 were let through"
    );
}

#[tokio::test]
async fn a_key_that_ends_makes_none_that_stays() {
    let gateway = gateway().start();
    let client = gateway.client();
    let make = async |key: &str, body: Value| {
        let made = client.post(gateway.url("/api/auth/keys")).bearer_auth(key);
        made.json(&body)
            .send()
            .await
            .unwrap()
            .json::<Value>()
            .await
            .unwrap()
    };
    let short = make(&gateway.admin_key(), json!({ "expires_in_days": 1 })).await;
    let key = short["api_key"].as_str().unwrap();
    let child = make(key, json!({})).await;
    assert_eq!(
        child["expires_at"], short["expires_at"],
        "its end is inherited"
    );
    let refused = make(key, json!({ "expires_in_days": 2 })).await;
    assert_eq!(refused["code"], "bad_request", "{refused}");
}

#[tokio::test]
async fn a_client_that_leaves_stops_its_guest() {
    let gateway = gateway()
        .set("tiers.enterprise.execution_timeout", json!("1h"))
        .start();
    let spin = r#"(module (func (export "_start") (loop (br 0))))"#;
    let request = gateway
        .client()
        .post(gateway.url("/api/wasm/execute"))
        .bearer_auth(gateway.admin_key())
        .multipart(form(spin.as_bytes(), ""));
    let request = tokio::spawn(request.send());
    gateway.guests_running(1).await;
    request.abort();
    // Long before its hour is over.
    gateway.guests_running(0).await;
}

/// Its compile workers are what it was started from, whatever lies at its path by now.
#[tokio::test]
async fn a_gateway_whose_program_was_replaced_goes_on_compiling() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("wasm-wizard");
    fs::copy(env!("CARGO_BIN_EXE_wasm-wizard"), &program).unwrap();
    let gateway = gateway()
        .program(&program)
        .set("sandbox.compile.workers_spare", json!(0))
        .start();
    fs::remove_file(&program).unwrap();
    fs::write(&program, "another program").unwrap();
    for number in 0..3 {
        let text = format!(r#"(module (func (export "_start") (drop (i32.const {number}))))"#);
        let (status, answer) = execute(&gateway, form(text.into_bytes(), "")).await;
        assert_eq!(status, 200, "{answer}");
    }
}

const SPIN: &str = r#"(module (func (export "_start") (loop (br 0))))"#;

/// A guest that spins until this is aborted.
fn spinning(gateway: &Gateway) -> tokio::task::JoinHandle<()> {
    let request = gateway
        .client()
        .post(gateway.url("/api/wasm/execute"))
        .bearer_auth(gateway.admin_key())
        .header("content-type", "application/wasm")
        .body(wat::parse_str(SPIN).unwrap());
    tokio::spawn(async move {
        // On a busy machine it may take too long until a thread for it gets to run.
        while let Some(request) = request.try_clone()
            && request.send().await.unwrap().status() == 503
        {}
    })
}

#[tokio::test]
async fn where_all_places_are_taken_a_guest_is_refused_and_told_when_to_come_again() {
    let dir = workdir();
    std::fs::write(dir.path().join("spin.wat"), SPIN).unwrap();
    let gateway = gateway()
        .set("tiers.enterprise.execution_timeout", json!("1h"))
        .set("sandbox.guests_max", json!(1))
        .set("sandbox.queue_max", json!(0))
        .route(json!({
            "name": "spin", "match": { "path": "/spin" }, "execute": { "file": "spin.wat" },
        }))
        .in_dir(dir)
        .start();
    let first = spinning(&gateway);
    gateway.guests_running(1).await;
    let client = gateway.client();
    let once = client
        .post(gateway.url("/api/wasm/execute"))
        .bearer_auth(gateway.admin_key())
        .header("content-type", "text/wat")
        .body(SPIN);
    let route = client
        .get(gateway.url("/spin"))
        .bearer_auth(gateway.admin_key());
    for request in [once, route] {
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), 503);
        let wait = refused.headers()["retry-after"].to_str().unwrap();
        assert!(wait.parse::<u64>().unwrap() > 0, "{wait}");
        let refused: Value = refused.json().await.unwrap();
        assert_eq!(refused["code"], "guests_busy", "{refused}");
    }
    // A short one needs no place, unless its thread is taken away from it meanwhile.
    eventually("a short guest", async || {
        let (status, answer) = execute(&gateway, form(guest("echo.wasm"), "short")).await;
        (status == 200 && answer["output"] == "short").then_some(())
    })
    .await;
    first.abort();
    gateway.guests_running(0).await;
}

#[tokio::test]
async fn others_are_served_while_guests_spin() {
    let gateway = gateway()
        .set("tiers.enterprise.execution_timeout", json!("1h"))
        .set("sandbox.guests_max", json!(30))
        .set("sandbox.guests_per_caller_max", json!(20))
        .start();
    let guests: Vec<_> = (0..20).map(|_| spinning(&gateway)).collect();
    gateway.guests_running(20).await;
    let client = gateway.client();
    // Two requests and a guest take two milliseconds where nothing else runs, and tens of them where they wait for
    // the guests that spin. Other tests may be in the way now, but not always.
    eventually("requests that are not held up", async || {
        let mut waited = Vec::new();
        for _ in 0..20 {
            let begun = Instant::now();
            let health = client.get(gateway.url("/health")).send().await.unwrap();
            assert_eq!(health.status(), 200);
            // Where its thread is taken away from it, it may have to wait longer for one of its own than it is let.
            let hello = client.get(gateway.url("/fn/hello")).send().await.unwrap();
            assert!(matches!(hello.status().as_u16(), 200 | 503), "{hello:?}");
            waited.push(begun.elapsed());
        }
        waited.sort_unstable();
        (waited[10] < Duration::from_millis(7)).then_some(())
    })
    .await;
    guests.iter().for_each(tokio::task::JoinHandle::abort);
    gateway.guests_running(0).await;
}
