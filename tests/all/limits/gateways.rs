//! Real gateways on a real Redis.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway, gateway, run, workdir};
use crate::support::redis::Redis;

/// A gateway on this Redis, with a route for keys and one for each policy, for anybody.
pub fn on(redis: &Redis) -> Builder {
    let route = |name: &str, more: Value| {
        let mut route = json!({ "name": name, "match": { "path": format!("/{name}") }, "auth": "none",
            "limits": { "per_minute": 4 }, "respond": { "body": "ok" } });
        for (key, value) in more.as_object().unwrap() {
            route[key] = value.clone();
        }
        route
    };
    gateway()
        .env("REDIS_URL", &redis.url())
        .set("server.upgrade_socket", Value::Null)
        .route(route("key", json!({ "auth": "key", "limits": {} })))
        .route(route("anybody", json!({})))
        .route(route(
            "local",
            json!({ "limits": { "per_minute": 4, "on_redis_loss": "local" } }),
        ))
        .route(route(
            "open",
            json!({ "limits": { "per_minute": 4, "on_redis_loss": "open" } }),
        ))
        .route(route(
            "closed",
            json!({ "limits": { "per_minute": 4, "on_redis_loss": "closed" } }),
        ))
}

/// Several gateways on one database and one Redis, and a key with 100 requests a minute.
fn three(redis: &Redis, on_loss: &str) -> (Vec<Gateway>, String) {
    let start = |builder: Builder| builder.set("limits.redis.on_loss", json!(on_loss)).start();
    let first = start(on(redis).in_dir(workdir()));
    let second = start(on(redis).in_dir_of(&first));
    let third = start(on(redis).in_dir_of(&first));
    let key = make_key(&first, "u@example.com");
    (vec![first, second, third], key)
}

/// A key of the Basic tier.
pub fn make_key(gateway: &Gateway, user: &str) -> String {
    let args = ["keys", "create", "--user", user, "--tier", "basic"];
    let made = run(&gateway.dir(), &args, &[]);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let text = String::from_utf8(made.stdout).unwrap();
    let key = text.split_whitespace().find(|word| word.starts_with("ww_"));
    key.unwrap().to_owned()
}

/// What became of the requests.
struct Offered {
    /// When each admitted one was answered, from the begin.
    admitted: Vec<Duration>,
    refused: u32,
    unavailable: u32,
    took: Duration,
}

/// Offers `count` requests to the gateways in turn, 24 at a time. `at` is called with the number of
/// those that are answered.
async fn offer(
    gateways: &[Gateway],
    key: &str,
    count: usize,
    mut at: impl FnMut(usize),
) -> Offered {
    let begun = Instant::now();
    let (next, refused, unavailable) = (AtomicUsize::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let admitted = std::sync::Mutex::new(Vec::new());
    let workers = (0..24).map(|worker| {
        let gateway = &gateways[worker % gateways.len()];
        let client = gateway.client();
        let (next, refused, unavailable, admitted) = (&next, &refused, &unavailable, &admitted);
        async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let request = client.get(gateway.url("/key")).bearer_auth(key);
                let answer = request.send().await.unwrap();
                match answer.status().as_u16() {
                    200 => admitted.lock().unwrap().push(begun.elapsed()),
                    429 => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    503 => {
                        assert!(answer.headers().contains_key("retry-after"));
                        unavailable.fetch_add(1, Ordering::Relaxed);
                    }
                    other => panic!("{other}: {}", answer.text().await.unwrap()),
                }
            }
        }
    });
    let all = futures_util::future::join_all(workers);
    tokio::pin!(all);
    loop {
        tokio::select! {
            _ = &mut all => break,
            () = tokio::time::sleep(Duration::from_millis(5)) => at(next.load(Ordering::Relaxed)),
        }
    }
    let mut admitted = admitted.lock().unwrap().clone();
    admitted.sort();
    Offered {
        admitted,
        refused: refused.load(Ordering::Relaxed),
        unavailable: unavailable.load(Ordering::Relaxed),
        took: begun.elapsed(),
    }
}

impl Offered {
    /// What a limit of 100 a minute allows in so long a time, beginning with a full bucket.
    fn allowed(took: Duration) -> f64 {
        100.0 + took.as_secs_f64() * 100.0 / 60.0
    }

    /// In no time more was admitted than the bucket holds and is refilled with meanwhile. An answer
    /// comes a little after its admission, for which some is allowed.
    fn assert_never_too_many(&self) {
        let slack = Duration::from_millis(500);
        for (first, begin) in self.admitted.iter().enumerate() {
            for (last, end) in self.admitted.iter().enumerate().skip(first) {
                let count = (last - first + 1) as f64;
                let allowed = Offered::allowed(*end - *begin + slack);
                assert!(count <= allowed, "{count} in {:?}", *end - *begin);
            }
        }
    }
}

#[tokio::test]
async fn three_gateways_admit_what_one_would() {
    let redis = Redis::forgetful();
    let (gateways, key) = three(&redis, "closed");
    let offered = offer(&gateways, &key, 8_000, |_| {}).await;
    offered.assert_never_too_many();
    let (admitted, allowed) = (
        offered.admitted.len() as f64,
        Offered::allowed(offered.took),
    );
    println!(
        "admitted {admitted} of {allowed:.1} allowed in {:?}",
        offered.took
    );
    assert!(
        admitted >= (allowed * 0.98).floor(),
        "{admitted} of {allowed}"
    );
    assert_eq!(offered.unavailable, 0);
    // Not each of the refused has asked Redis, by far.
    let mut calls = 0.0;
    for gateway in &gateways {
        calls += gateway
            .metric("wasmwiz_redis_calls_total{result=\"ok\"}")
            .await
            .unwrap();
    }
    assert!(
        calls < 3_000.0,
        "{calls} calls for {} refused",
        offered.refused
    );
}

#[tokio::test]
async fn a_restart_of_redis_in_the_middle_admits_none_too_many() {
    for keeps in [true, false] {
        let mut redis = if keeps {
            Redis::keeping()
        } else {
            Redis::forgetful()
        };
        let (gateways, key) = three(&redis, "closed");
        let (mut down, mut was_down) = (None, None);
        let offered = offer(&gateways, &key, 8_000, |answered| match (answered, down) {
            (2_500.., None) => {
                redis.kill();
                down = Some(Instant::now());
            }
            (3_500.., Some(since)) if was_down.is_none() => {
                redis.start();
                was_down = Some(since.elapsed());
            }
            _ => {}
        })
        .await;
        offered.assert_never_too_many();
        let was_down = was_down.expect("it was down");
        // How many meet the outage depends on how fast the rest is answered: who is over the limit is
        // refused without asking.
        assert!(offered.refused > 0);
        let admitted = offered.admitted.len() as f64;
        // What a Redis that forgets has missed, it has missed; and until each gateway is back.
        let missed = if keeps { Duration::ZERO } else { was_down };
        let back_after = Duration::from_secs(1);
        let allowed = Offered::allowed(offered.took.saturating_sub(missed + back_after));
        println!(
            "keeps: {keeps}: admitted {admitted}, allowed {:.1} in {:?}, down for {was_down:?}, {} unavailable",
            Offered::allowed(offered.took),
            offered.took,
            offered.unavailable
        );
        assert!(
            admitted >= (allowed * 0.98).floor(),
            "{admitted} of {allowed}"
        );
    }
}

/// The statuses of so many requests, one after the other.
async fn ask(gateway: &Gateway, path: &str, count: usize) -> Vec<u16> {
    let client = gateway.client();
    let mut statuses = Vec::new();
    for _ in 0..count {
        let answer = client.get(gateway.url(path)).send().await.unwrap();
        statuses.push(answer.status().as_u16());
    }
    statuses
}

pub async fn redis_is(gateway: &Gateway, up: f64) {
    eventually("Redis is seen to be there, or not", async || {
        (gateway.metric("wasmwiz_redis_up").await? == up).then_some(())
    })
    .await;
}

async fn health(gateway: &Gateway, path: &str) -> (u16, Value) {
    let answer = gateway
        .client()
        .get(gateway.url(path))
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// How many subjects Redis knows.
fn keys(redis: &Redis) -> u32 {
    redis.command("DBSIZE")[1..].parse().unwrap()
}

#[tokio::test]
async fn without_redis_each_route_does_as_it_says_until_it_is_back() {
    let mut redis = Redis::keeping();
    let one = on(&redis).start();
    let other = on(&redis).in_dir_of(&one).start();
    assert_eq!(
        health(&one, "/health").await.1["checks"]["redis"]["status"],
        "ok"
    );
    // Both gateways and all addresses of one client are one.
    assert_eq!(ask(&one, "/anybody", 2).await, [200, 200]);
    assert_eq!(ask(&other, "/anybody", 3).await, [200, 200, 429]);
    assert_eq!(ask(&one, "/anybody", 1).await, [429]);
    let known = keys(&redis);
    redis.kill();
    redis_is(&one, 0.0).await;
    // Half of four is two; the address has used up what Redis knows, which it can't be asked.
    assert_eq!(ask(&one, "/local", 4).await, [200, 200, 429, 429]);
    assert_eq!(ask(&one, "/open", 8).await, [200; 8]);
    assert_eq!(ask(&one, "/closed", 2).await, [503, 503]);
    let answer = one.client().get(one.url("/closed")).send().await.unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(
        answer.json::<Value>().await.unwrap()["code"],
        "limits_unavailable"
    );
    let (status, body) = health(&one, "/health").await;
    assert_eq!((status, &body["status"]), (200, &json!("degraded")));
    assert_eq!(body["checks"]["redis"]["status"], "degraded");
    assert_eq!(health(&one, "/health/ready").await.0, 200);
    let fallbacks = one
        .metric("wasmwiz_limit_fallbacks_total{policy=\"closed\"}")
        .await;
    assert_eq!(fallbacks, Some(3.0));
    redis.start();
    redis_is(&one, 1.0).await;
    redis_is(&other, 1.0).await;
    // What was admitted meanwhile is told: two of four are left, for both gateways.
    eventually(
        "what was admitted without Redis is known to it",
        async || (keys(&redis) > known).then_some(()),
    )
    .await;
    let mut statuses = ask(&other, "/local", 2).await;
    statuses.extend(ask(&one, "/local", 2).await);
    assert_eq!(statuses, [200, 200, 429, 429]);
    // Each change has one line in the log, however many requests saw it.
    let log = one.stderr();
    assert_eq!(log.matches("Redis does not answer").count(), 1, "{log}");
    assert_eq!(log.matches("Redis answers").count(), 2, "{log}");
    assert!(!log.contains(redis.password()));
}

#[tokio::test]
async fn where_the_policy_is_closed_a_gateway_that_lost_redis_is_not_ready() {
    let redis = Redis::forgetful();
    let gateway = on(&redis)
        .set("limits.redis.on_loss", json!("closed"))
        .start();
    assert_eq!(health(&gateway, "/health/ready").await.0, 200);
    // It does not answer, but nothing is refused either: as a machine that hangs.
    redis.freeze();
    let begun = Instant::now();
    assert_eq!(ask(&gateway, "/anybody", 3).await, [503; 3]);
    assert!(begun.elapsed() < Duration::from_secs(60));
    redis_is(&gateway, 0.0).await;
    assert_eq!(health(&gateway, "/health/ready").await.0, 503);
    assert_eq!(health(&gateway, "/health/live").await.0, 200);
    redis.thaw();
    redis_is(&gateway, 1.0).await;
    assert_eq!(ask(&gateway, "/anybody", 1).await, [200]);
    assert_eq!(health(&gateway, "/health/ready").await.0, 200);
}

#[tokio::test]
async fn unused_tokens_go_back_at_the_end_and_when_a_client_goes_quiet() {
    let redis = Redis::forgetful();
    let mut gateway = on(&redis)
        .route(
            json!({ "name": "wide", "match": { "path": "/wide" }, "auth": "none",
            "limits": { "per_minute": 6000 }, "respond": { "body": "ok" } }),
        )
        .start();
    let held = async || gateway.metric("wasmwiz_limit_tokens_held").await.unwrap();
    // Some requests in quick succession, and tokens are held for more.
    eventually("tokens are held", async || {
        ask(&gateway, "/wide", 20).await;
        (held().await > 0.0).then_some(())
    })
    .await;
    eventually("they go back", async || (held().await == 0.0).then_some(())).await;
    eventually("tokens are held again", async || {
        ask(&gateway, "/wide", 20).await;
        (held().await > 0.0).then_some(())
    })
    .await;
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0), "{}", gateway.stderr());
    // No gateway has a lease any more: three fields are left of the bucket.
    let lease =
        "EVAL \"local k = redis.call('keys', '*route:*')[1]; return redis.call('hlen', k)\" 0";
    assert_eq!(redis.command(lease), ":3");
}

#[tokio::test]
async fn redis_that_is_emptied_gives_nobody_a_second_burst() {
    let redis = Redis::forgetful();
    let one = on(&redis).start();
    let other = on(&redis).in_dir_of(&one).start();
    assert_eq!(ask(&one, "/anybody", 5).await, [200, 200, 200, 200, 429]);
    assert_eq!(redis.command("FLUSHALL"), "+OK");
    eventually("the loss is seen", async || {
        one.stderr().contains("has lost the limits").then_some(())
    })
    .await;
    assert_eq!(ask(&one, "/anybody", 2).await, [429, 429]);
    eventually("the other sees it too", async || {
        other.stderr().contains("has lost the limits").then_some(())
    })
    .await;
    // It had never heard of this client.
    assert_eq!(ask(&other, "/anybody", 2).await, [429, 429]);
}

#[tokio::test]
async fn a_gateway_starts_without_redis_and_finds_it_later() {
    let mut redis = Redis::forgetful();
    redis.kill();
    let gateway = on(&redis).start();
    assert_eq!(
        health(&gateway, "/health").await.1["checks"]["redis"]["status"],
        "degraded"
    );
    assert_eq!(ask(&gateway, "/local", 3).await, [200, 200, 429]);
    redis.start();
    redis_is(&gateway, 1.0).await;
    assert_eq!(
        ask(&gateway, "/anybody", 5).await,
        [200, 200, 200, 200, 429]
    );
}

#[tokio::test]
async fn over_tls_the_certificate_is_checked() {
    let own = gateway().start();
    let certificate = own.dir().join("certs/development.crt");
    let redis = Redis::with_tls(&certificate, &own.dir().join("certs/development.key"));
    let trusting = on(&redis)
        .set("limits.redis.ca", json!(certificate))
        .start();
    redis_is(&trusting, 1.0).await;
    assert_eq!(
        ask(&trusting, "/anybody", 5).await,
        [200, 200, 200, 200, 429]
    );
    let wary = on(&redis).start();
    assert!(
        wary.stderr().contains("Redis does not answer"),
        "{}",
        wary.stderr()
    );
    assert_eq!(wary.metric("wasmwiz_redis_up").await, Some(0.0));
    let configured = wary.metric("wasmwiz_redis_configured").await;
    assert_eq!(configured, Some(1.0));
    assert!(!wary.stderr().contains(redis.password()));
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_shown() {
    let redis = Redis::forgetful();
    let url = redis.url().replace(redis.password(), "hunter2");
    let gateway = on(&redis).env("REDIS_URL", &url).start();
    let log = gateway.stderr();
    assert!(
        log.contains("Redis does not answer") && !log.contains("hunter2"),
        "{log}"
    );
}
