//! What the guests of a user may use together, on one gateway and on several.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

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

const SPIN: &str =
    r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#;

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
        .route(route("short", &sleeper(40)))
        .route(route("spin", SPIN))
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

/// Who stops the own key in time must not run guests for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_a_stop_ends_is_paid_for() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = with_guests(gateway(), dir.path()).start();
    for (user, path) in [
        ("u@example.com", "/api/wasm/execute"),
        ("v@example.com", "/spin"),
    ] {
        let (stopped, kept) = (make_key(&gateway, user), make_key(&gateway, user));
        let request = gateway
            .client()
            .post(gateway.url(path))
            .bearer_auth(&stopped);
        let request = request.header("content-type", "text/wat").body(SPIN);
        let guest = tokio::spawn(request.send());
        gateway.guests_running(1).await;
        // Longer than the user's CPU time of a minute.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            gateway.guests_running(1).await;
        }
        let keys: Value = ask(&gateway, "/api/auth/keys", &kept)
            .await
            .json()
            .await
            .unwrap();
        let is_it = |key: &&Value| stopped.starts_with(key["prefix"].as_str().unwrap());
        let key = keys["keys"].as_array().unwrap().iter().find(is_it).unwrap();
        let url = gateway.url(&format!("/api/auth/keys/{}", key["id"].as_str().unwrap()));
        let deleted = gateway.client().delete(url).bearer_auth(&kept).send();
        assert!(deleted.await.unwrap().status().is_success());
        assert_eq!(guest.await.unwrap().unwrap().status(), 403);
        assert_eq!(
            code(ask(&gateway, "/nap", &kept).await).await,
            used_up(),
            "{path}"
        );
    }
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
    // One leaves, and its place is free at both, whichever has used it last, while the other guest
    // runs on. The client of a request does not see where the place was.
    second.abort();
    other.guests_running(0).await;
    for round in 0..3 {
        for gateway in [&one, &other] {
            let since = Instant::now();
            eventually("the place is free", async || {
                (ask(gateway, "/nap", &key).await.status() == 200).then_some(())
            })
            .await;
            let took = since.elapsed();
            println!("round {round}: after {took:?}");
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
    }
    // Both are free, and together they are two again.
    let third = wait(&other);
    other.guests_running(1).await;
    assert_eq!(code(ask(&one, "/nap", &key).await).await, too_many());
    assert_eq!(code(ask(&other, "/nap", &key).await).await, too_many());
    drop(third);
}

/// Never more of a user's guests at once than may be, whoever asks for them where; and the places that
/// are free are found.
#[tokio::test]
async fn gateways_under_load_never_run_more_guests_than_may_be() {
    let redis = Redis::forgetful();
    let dir = tempfile::tempdir().unwrap();
    let guests = |builder: Builder| {
        with_guests(builder, dir.path())
            .set("tiers.basic.guests_max", json!(3))
            .set("tiers.basic.cpu_ms_per_minute", json!("unlimited"))
    };
    let one = guests(on(&redis)).start();
    let other = guests(on(&redis).in_dir_of(&one)).start();
    let key = make_key(&one, "u@example.com");
    let ran = AtomicU32::new(0);
    let end = Instant::now() + Duration::from_secs(4);
    let client = async |gateway: &Gateway, pause: Duration| {
        while Instant::now() < end {
            let answer = ask(gateway, "/short", &key).await;
            match answer.status().as_u16() {
                200 => drop(ran.fetch_add(1, Ordering::Relaxed)),
                429 => assert_eq!(code(answer).await, too_many()),
                other => panic!("{other}"),
            }
            tokio::time::sleep(pause).await;
        }
    };
    let watch = async {
        let mut most = 0.0_f64;
        while Instant::now() < end {
            // A sum would be of two moments: only guests that stay are summed, below.
            let (a, b) = tokio::join!(running(&one), running(&other));
            most = most.max(a.max(b));
        }
        most
    };
    let ms = Duration::from_millis;
    let (most, ..) = tokio::join!(
        watch,
        client(&one, ms(3)),
        client(&one, ms(7)),
        client(&one, ms(50)),
        client(&other, ms(5)),
        client(&other, ms(90)),
    );
    println!(
        "{} ran, {most} at once at one gateway",
        ran.load(Ordering::Relaxed)
    );
    assert!(most <= 3.0);
    // How many depends on the machine; that places are found again and again does not.
    assert!(ran.into_inner() > 12);
    // Now guests that stay: however they are offered, three find a place, and no more.
    let wait = |gateway: &Gateway| {
        let request = gateway.client().get(gateway.url("/wait")).bearer_auth(&key);
        tokio::spawn(request.send())
    };
    let offers = std::cell::RefCell::new(Vec::new());
    let sum = async || running(&one).await + running(&other).await;
    eventually("three have a place", async || {
        offers
            .borrow_mut()
            .extend([wait(&one), wait(&other), wait(&one), wait(&other)]);
        (sum().await >= 3.0).then_some(())
    })
    .await;
    assert_eq!(code(ask(&one, "/nap", &key).await).await, too_many());
    assert_eq!(code(ask(&other, "/nap", &key).await).await, too_many());
    assert!((sum().await - 3.0).abs() < f64::EPSILON);
}

async fn running(gateway: &Gateway) -> f64 {
    gateway
        .metric("wasmwiz_guests_running")
        .await
        .unwrap_or(0.0)
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
