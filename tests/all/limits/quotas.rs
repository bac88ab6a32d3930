//! What the guests of a user may use together, on one gateway and on several.

use serde_json::{Value, json};

use super::gateways::{make_key, on, redis_is};
use crate::shutdown::sleeper;
use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::redis::Redis;

/// Counts for as long as about 150 ms of CPU time, on any machine that tests run on.
const BUSY: &str = r#"(module
  (memory (export "memory") 1)
  (func (export "_start") (local $n i64)
    (local.set $n (i64.const 400000000))
    (loop $again
      (local.set $n (i64.sub (local.get $n) (i64.const 1)))
      (br_if $again (i64.ne (local.get $n) (i64.const 0))))))"#;

/// A gateway with a guest that is busy, and one that only waits.
fn with_guests(builder: Builder, dir: &std::path::Path) -> Builder {
    let route = |name: &str, text: &str| {
        let file = dir.join(format!("{name}.wat"));
        std::fs::write(&file, text).unwrap();
        json!({ "name": name, "match": { "path": format!("/{name}") }, "auth": "key",
            "execute": { "file": file } })
    };
    builder
        .set("tiers.basic.per_minute", json!("unlimited"))
        .set("tiers.basic.per_day", json!("unlimited"))
        .set("tiers.basic.guests_max", json!(2))
        .set("tiers.basic.cpu_ms_per_minute", json!(100))
        .set("tiers.basic.execution_timeout", json!("1h"))
        .set("sandbox.execution_timeout", json!("1h"))
        .route(route("busy", BUSY))
        .route(route("wait", &sleeper(3_600_000)))
        .route(route("nap", &sleeper(1)))
}

async fn ask(gateway: &Gateway, path: &str, key: &str) -> reqwest::Response {
    let request = gateway.client().get(gateway.url(path)).bearer_auth(key);
    request.send().await.unwrap()
}

async fn code(answer: reqwest::Response) -> (u16, String) {
    let status = answer.status().as_u16();
    assert!(answer.headers().contains_key("retry-after"));
    let body: Value = answer.json().await.unwrap();
    (status, body["code"].as_str().unwrap().to_owned())
}

fn used_up() -> (u16, String) {
    (429, "cpu_quota_exceeded".to_owned())
}

fn too_many() -> (u16, String) {
    (429, "too_many_guests".to_owned())
}

#[tokio::test]
async fn cpu_time_is_told_and_refused_when_it_is_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = with_guests(gateway(), dir.path()).start();
    let key = make_key(&gateway, "u@example.com");
    let first = ask(&gateway, "/nap", &key).await;
    assert_eq!(first.status(), 200);
    assert_eq!(first.headers()["x-quota-cpu-ms-limit"], "100");
    let left: u32 = first.headers()["x-quota-cpu-ms-remaining"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(left <= 100);
    let busy = ask(&gateway, "/busy", &key).await;
    assert_eq!(busy.status(), 200);
    assert_eq!(busy.headers()["x-quota-cpu-ms-remaining"], "0");
    let refused = ask(&gateway, "/nap", &key).await;
    assert_eq!(refused.headers()["x-quota-cpu-ms-remaining"], "0");
    assert_eq!(code(refused).await, used_up());
    // Through the API as well, and nobody else.
    let api = gateway
        .client()
        .post(gateway.url("/api/wasm/execute"))
        .bearer_auth(&key);
    let api = api
        .header("content-type", "text/wat")
        .body(BUSY)
        .send()
        .await
        .unwrap();
    assert_eq!(code(api).await, used_up());
    let other = make_key(&gateway, "v@example.com");
    let api = gateway
        .client()
        .post(gateway.url("/api/wasm/execute"))
        .bearer_auth(&other);
    let api = api
        .header("content-type", "text/wat")
        .body(BUSY)
        .send()
        .await
        .unwrap();
    assert_eq!(api.status(), 200);
    assert_eq!(api.headers()["x-quota-cpu-ms-remaining"], "0");
}

#[tokio::test]
async fn gateways_count_the_guests_of_a_user_together() {
    let redis = Redis::forgetful();
    let dir = tempfile::tempdir().unwrap();
    let one = with_guests(on(&redis), dir.path()).start();
    let other = with_guests(on(&redis).in_dir_of(&one), dir.path()).start();
    let key = make_key(&one, "u@example.com");
    let wait = |gateway: &Gateway| {
        let request = gateway.client().get(gateway.url("/wait")).bearer_auth(&key);
        tokio::spawn(request.send())
    };
    let _first = wait(&one);
    one.guests_running(1).await;
    let second = wait(&other);
    other.guests_running(1).await;
    assert_eq!(code(ask(&one, "/nap", &key).await).await, too_many());
    assert_eq!(code(ask(&other, "/nap", &key).await).await, too_many());
    // One leaves, and its place is free at both.
    second.abort();
    other.guests_running(0).await;
    eventually("the place is free for the other gateway", async || {
        (ask(&one, "/nap", &key).await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn gateways_charge_cpu_time_together_and_go_on_without_redis() {
    let mut redis = Redis::keeping();
    let dir = tempfile::tempdir().unwrap();
    let one = with_guests(on(&redis), dir.path()).start();
    let other = with_guests(on(&redis).in_dir_of(&one), dir.path()).start();
    let key = make_key(&one, "u@example.com");
    assert_eq!(ask(&one, "/busy", &key).await.status(), 200);
    eventually(
        "the other gateway knows that the time is used up",
        async || {
            let answer = ask(&other, "/nap", &key).await;
            (answer.status() == 429).then_some(())
        },
    )
    .await;
    redis.kill();
    redis_is(&one, 0.0).await;
    // Half of it for each gateway alone, until that is used up as well.
    let key = make_key(&one, "v@example.com");
    assert_eq!(ask(&one, "/busy", &key).await.status(), 200);
    assert_eq!(code(ask(&one, "/busy", &key).await).await, used_up());
    redis.start();
    redis_is(&other, 1.0).await;
    eventually("what was used without Redis is charged", async || {
        let answer = ask(&other, "/nap", &key).await;
        (answer.status() == 429).then_some(())
    })
    .await;
}
