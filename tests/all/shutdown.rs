//! SIGTERM: no new requests, the running ones end, the rest is written out, exit 0.

use serde_json::json;

use crate::support::eventually;
use crate::support::gateway::gateway;

/// Sleeps `ms` milliseconds through `poll_oneoff`, then writes "done".
pub fn sleeper(ms: u64) -> String {
    let nanos = ms * 1_000_000;
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 512) "done")
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const {nanos}))
    (drop (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256)))
    (i32.store (i32.const 400) (i32.const 512))
    (i32.store (i32.const 404) (i32.const 4))
    (drop (call $write (i32.const 1) (i32.const 400) (i32.const 1) (i32.const 408)))))"#
    )
}

#[tokio::test]
async fn a_running_request_is_answered_and_the_process_exits_0() {
    let dir = tempfile::tempdir().unwrap();
    let guest = dir.path().join("sleep.wat");
    // Long enough to be seen running, and to be told to stop, on a busy machine.
    std::fs::write(&guest, sleeper(5_000)).unwrap();
    let mut gateway = gateway()
        .set("server.shutdown_grace", json!("10m"))
        .set("sandbox.execution_timeout", json!("60s"))
        .route(
            json!({ "name": "sleep", "match": { "path": "/sleep" }, "auth": "none",
            "execute": { "file": guest, "abi": "command" } }),
        )
        .start();
    let client = gateway.client();
    let running = tokio::spawn(client.get(gateway.url("/sleep")).send());
    gateway.guests_running(1).await;
    gateway.terminate();
    let answer = running
        .await
        .unwrap()
        .expect("the running request is answered");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text().await.unwrap(), "done");
    // It waits for requests, and not for the ten minutes it may.
    assert_eq!(gateway.wait().code(), Some(0), "{}", gateway.stderr());
    let refused = tokio::net::TcpStream::connect(("127.0.0.1", gateway.https)).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn the_wait_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let guest = dir.path().join("sleep.wat");
    std::fs::write(&guest, sleeper(3_600_000)).unwrap();
    let mut gateway = gateway()
        .set("server.shutdown_grace", json!("1s"))
        .set("sandbox.execution_timeout", json!("1h"))
        .route(
            json!({ "name": "sleep", "match": { "path": "/sleep" }, "auth": "none",
            "execute": { "file": guest, "abi": "command" } }),
        )
        .start();
    let client = gateway.client();
    let _running = tokio::spawn(client.get(gateway.url("/sleep")).send());
    gateway.guests_running(1).await;
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0));
}

#[tokio::test]
async fn what_was_counted_is_written_before_the_end() {
    let mut first = gateway().start();
    let key = first.admin_key();
    let client = first.client();
    let wasm = std::fs::read(first.dir().join("examples/guests/echo.wasm")).unwrap();
    let form = reqwest::multipart::Form::new()
        .part(
            "wasm",
            reqwest::multipart::Part::bytes(wasm).file_name("echo.wasm"),
        )
        .text("name", "echo");
    let uploaded = client
        .post(first.url("/api/wasm/upload"))
        .bearer_auth(&key)
        .multipart(form);
    let uploaded: serde_json::Value = uploaded.send().await.unwrap().json().await.unwrap();
    let id = uploaded["id"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        let url = first.url(&format!("/api/wasm/modules/{id}/execute"));
        let answer = client
            .post(url)
            .bearer_auth(&key)
            .body("x")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
    }
    first.terminate();
    assert!(first.wait().success());
    let second = gateway().in_dir_of(&first).start();
    let url = second.url(&format!("/api/wasm/modules/{id}"));
    // Where the database was too slow for the end of the first, the second brings the rest.
    let module = eventually("all three are counted", async || {
        let module = second.client().get(&url).bearer_auth(&key).send().await;
        let module: serde_json::Value = module.unwrap().json().await.unwrap();
        (module["execution_count"] == 3).then_some(module)
    })
    .await;
    assert!(module["last_executed"].is_string());
}
