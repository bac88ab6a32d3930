//! Upstreams through the real gateway: which one is asked, what is tried again, and who is left out.

mod exchange;
mod requests;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::gateway::{Gateway, gateway};
use crate::support::upstream::{Reply, ok, status, upstream};
use crate::support::{eventually, free_port};

fn route(path: &str, proxy: Value) -> Value {
    let name = path.trim_matches(['/', '*']).replace(['/', '{', '}'], "-");
    json!({ "name": name, "match": { "path": path }, "auth": "none", "proxy": proxy })
}

async fn metrics(gateway: &Gateway) -> String {
    let page = gateway.client().get(gateway.admin_url("/metrics")).send();
    page.await.unwrap().text().await.unwrap()
}

async fn get(gateway: &Gateway, path: &str) -> (StatusCode, String) {
    let answer = gateway
        .client()
        .get(gateway.url(path))
        .send()
        .await
        .unwrap();
    (answer.status(), answer.text().await.unwrap())
}

fn closes() -> Reply {
    Reply::Last(Vec::new())
}

#[tokio::test]
async fn what_is_safe_to_repeat_is_tried_again_and_nothing_else() {
    let broken = upstream(|_| closes()).await;
    let good = upstream(|_| ok("good")).await;
    let busy = upstream(|_| status(503, "busy")).await;
    let mut small = route(
        "/small",
        json!({ "upstreams": [broken.url, good.url], "ejection": { "enabled": false } }),
    );
    small["limits"] = json!({ "body_size_max": "1KiB" });
    let gateway = gateway()
        .route(small)
        .route(route(
            "/lost",
            json!({ "upstreams": [broken.url, good.url], "ejection": { "enabled": false } }),
        ))
        .route(route(
            "/busy",
            json!({ "upstreams": [busy.url, good.url], "retries": { "statuses": [503] } }),
        ))
        .route(route("/passed", json!({ "upstreams": [busy.url] })))
        .route(route(
            "/only",
            json!({ "upstreams": [busy.url], "retries": { "statuses": [503] } }),
        ))
        .start();
    let client = gateway.client();
    for _ in 0..4 {
        assert_eq!(
            get(&gateway, "/lost").await,
            (StatusCode::OK, "good".into())
        );
        assert_eq!(
            get(&gateway, "/busy").await,
            (StatusCode::OK, "good".into())
        );
    }
    // A PUT may be repeated with its body, a POST may not.
    let mut posted = Vec::new();
    for _ in 0..4 {
        let put = client
            .put(gateway.url("/lost"))
            .body("x".repeat(1000))
            .send();
        assert_eq!(put.await.unwrap().status(), 200);
        let post = client
            .post(gateway.url("/lost"))
            .body("x")
            .send()
            .await
            .unwrap();
        posted.push(post.status().as_u16());
        let post = client
            .post(gateway.url("/busy"))
            .body("x")
            .send()
            .await
            .unwrap();
        posted.push(post.status().as_u16());
    }
    for expected in [200, 502, 503] {
        assert!(posted.contains(&expected), "{posted:?}");
    }
    // What is sent twice counts once against the limit.
    for _ in 0..2 {
        let put = client
            .put(gateway.url("/small"))
            .body("x".repeat(700))
            .send();
        assert_eq!(put.await.unwrap().status(), 200);
    }
    // More than is kept for a repetition.
    let large = || {
        client
            .put(gateway.url("/lost"))
            .body("x".repeat(1 << 20))
            .send()
    };
    let statuses = [large().await, large().await, large().await, large().await];
    let statuses = statuses.map(|answer| answer.map_or(0, |a| a.status().as_u16()));
    assert!(
        statuses.contains(&200) && statuses.iter().any(|s| *s != 200),
        "{statuses:?}"
    );
    let passed = get(&gateway, "/passed").await;
    assert_eq!(passed, (StatusCode::SERVICE_UNAVAILABLE, "busy".into()));
    let before = busy.hits();
    let only = get(&gateway, "/only").await;
    assert_eq!(only.1, "busy", "there is nobody else to ask");
    assert_eq!(busy.hits(), before + 1);
}

#[tokio::test]
async fn retries_have_a_budget() {
    let broken = [upstream(|_| closes()).await, upstream(|_| closes()).await];
    let gateway = gateway()
        .route(route(
            "/lost",
            json!({ "upstreams": [broken[0].url, broken[1].url], "ejection": { "enabled": false },
                "retries": { "tries_max": 8, "budget_percent": 10, "budget_per_second": 0 } }),
        ))
        .start();
    for _ in 0..50 {
        assert_eq!(get(&gateway, "/lost").await.0, 502);
    }
    let hits = broken[0].hits() + broken[1].hits();
    assert!((50..=55).contains(&hits), "{hits}");
    assert!(
        !metrics(&gateway)
            .await
            .contains("wasmwiz_upstream_retries_refused_total 0\n")
    );
}

#[tokio::test]
async fn an_upstream_that_keeps_failing_is_left_out_and_comes_back() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let flaky = upstream(move |_| {
        if broken.load(Ordering::SeqCst) {
            closes()
        } else {
            ok("back")
        }
    })
    .await;
    let good = upstream(|_| ok("good")).await;
    let gateway = gateway()
        .route(route(
            "/app",
            json!({ "upstreams": [flaky.url, good.url],
                "ejection": { "failures": 3, "time": "500ms", "time_max": "500ms" } }),
        ))
        .start();
    let ejected = format!("wasmwiz_upstream_ejected{{upstream=\"{}\"}} 1\n", flaky.url);
    eventually("the upstream is ejected", async || {
        assert_eq!(
            get(&gateway, "/app").await.1,
            "good",
            "clients see nothing of it"
        );
        metrics(&gateway).await.contains(&ejected).then_some(())
    })
    .await;
    is_broken.store(false, Ordering::SeqCst);
    eventually("the upstream is used again", async || {
        (get(&gateway, "/app").await.1 == "back").then_some(())
    })
    .await;
    let page = metrics(&gateway).await;
    assert!(!page.contains(&ejected));
    for line in [
        format!("wasmwiz_upstream_up{{upstream=\"{}\"}} 1", good.url),
        format!("wasmwiz_upstream_active{{upstream=\"{}\"}} 0", good.url),
        format!(
            "wasmwiz_upstream_requests_total{{result=\"failed\",upstream=\"{}\"}}",
            flaky.url
        ),
        format!(
            "wasmwiz_upstream_ejections_total{{upstream=\"{}\"}}",
            flaky.url
        ),
        format!(
            "wasmwiz_upstream_retries_total{{upstream=\"{}\"}}",
            good.url
        ),
    ] {
        assert!(page.contains(&line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn when_all_are_down_the_answer_is_at_once() {
    let dead = [0; 2].map(|_| format!("http://127.0.0.1:{}", free_port()));
    let gateway = gateway()
        .route(route(
            "/down",
            json!({ "upstreams": dead, "ejection": { "failures": 2, "time": "1h", "time_max": "1h" } }),
        ))
        .start();
    for _ in 0..10 {
        assert_eq!(get(&gateway, "/down").await.0, 503);
    }
    let tried = |page: String| {
        let lines = page
            .lines()
            .filter(|l| l.contains("result=\"connect_failed\""));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = tried(metrics(&gateway).await);
    let answer = gateway
        .client()
        .get(gateway.url("/down"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 503);
    let wait: u64 = answer.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((3000..=3600).contains(&wait), "{wait}");
    assert_eq!(
        answer.json::<Value>().await.unwrap()["code"],
        "upstream_unavailable"
    );
    assert_eq!(tried(metrics(&gateway).await), before, "nobody was asked");
}

#[tokio::test]
async fn health_checks_leave_out_and_let_in() {
    let healthy = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&healthy);
    let one = upstream(move |request| {
        if !request.starts_with("GET /healthz?x=1 HTTP/1.1\r\n") {
            ok("one")
        } else if flag.load(Ordering::SeqCst)
            && request.to_lowercase().contains("host: app.test\r\n")
        {
            status(204, "")
        } else {
            status(500, "")
        }
    })
    .await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let gateway = gateway()
        .route(route(
            "/app",
            json!({ "upstreams": [one.url, dead], "ejection": { "enabled": false },
                "health_check": { "path": "/healthz?x=1", "host": "app.test", "status": 204,
                    "interval": "100ms", "timeout": "1s", "healthy_after": 1, "unhealthy_after": 2 } }),
        ))
        .route(route(
            "/tcp",
            json!({ "upstreams": [one.url, dead], "ejection": { "enabled": false },
                "health_check": { "interval": "100ms" } }),
        ))
        .start();
    let is_up = async |what: &str, up: bool| {
        let line = format!(
            "wasmwiz_upstream_up{{upstream=\"{what}\"}} {}\n",
            u8::from(up)
        );
        eventually(&line, async || {
            metrics(&gateway).await.contains(&line).then_some(())
        })
        .await;
    };
    is_up(&dead, false).await;
    for _ in 0..4 {
        assert_eq!(get(&gateway, "/app").await.1, "one");
        assert_eq!(get(&gateway, "/tcp").await.1, "one");
    }
    assert!(
        !metrics(&gateway)
            .await
            .contains(&format!("connect_failed\",upstream=\"{dead}\"}} 1"))
    );
    healthy.store(false, Ordering::SeqCst);
    eventually("all are unhealthy", async || {
        (get(&gateway, "/app").await.0 == 503).then_some(())
    })
    .await;
    let start = Instant::now();
    let answer = gateway
        .client()
        .get(gateway.url("/app"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(
        get(&gateway, "/tcp").await.1,
        "one",
        "other rules, other verdict"
    );
    healthy.store(true, Ordering::SeqCst);
    eventually("it is used again", async || {
        (get(&gateway, "/app").await.1 == "one").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_full_upstream_makes_a_few_wait_and_refuses_the_rest() {
    let go = Arc::new(Notify::new());
    let until = Arc::clone(&go);
    let slow = upstream(move |_| {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow".to_vec();
        Reply::Wait(Arc::clone(&until), answer)
    })
    .await;
    let gateway = gateway()
        .route(route(
            "/full",
            json!({ "upstreams": [slow.url],
                "capacity": { "requests_max": 1, "pending_max": 1, "pending_timeout": "1m" } }),
        ))
        .start();
    let (client, url) = (gateway.client(), gateway.url("/full"));
    let ask = || tokio::spawn(client.get(&url).send());
    let first = ask();
    eventually("the first is there", async || {
        (slow.hits() == 1).then_some(())
    })
    .await;
    // One of these two waits, the other is refused at once.
    let others = [ask(), ask()];
    let refused = eventually("one is refused", async || {
        others.iter().position(|other| other.is_finished())
    })
    .await;
    go.notify_one();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    eventually("the one that waited is there", async || {
        (slow.hits() == 2).then_some(())
    })
    .await;
    go.notify_one();
    for (at, other) in others.into_iter().enumerate() {
        let answer = other.await.unwrap().unwrap();
        if at == refused {
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key("retry-after"));
            assert_eq!(
                answer.json::<Value>().await.unwrap()["code"],
                "upstream_busy"
            );
        } else {
            assert_eq!(answer.status(), 200);
        }
    }
}

#[tokio::test]
async fn who_leaves_while_waiting_leaves_its_place_to_others() {
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let slow = upstream(move |_| Reply::Wait(Arc::clone(&wait), answer.clone())).await;
    let gateway = gateway()
        .route(route(
            "/full",
            json!({ "upstreams": [slow.url],
                "capacity": { "requests_max": 1, "pending_max": 1, "pending_timeout": "1m" } }),
        ))
        .start();
    let http1 = gateway.client_builder().http1_only().build().unwrap();
    let url = gateway.url("/full");
    let first = tokio::spawn(gateway.client().get(&url).send());
    eventually("the first is there", async || {
        (slow.hits() == 1).then_some(())
    })
    .await;
    for client in [gateway.client(), http1] {
        let asking = url.clone();
        let waiting = tokio::spawn(async move {
            // Until it has the place, which others may have for a moment.
            loop {
                if let Ok(answer) = client.get(&asking).send().await {
                    assert_eq!(answer.status(), 503);
                }
                // Not so fast that it is taken for a flood.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let busy = async || {
            let answer = gateway.client().get(&url);
            let answer = answer.timeout(Duration::from_millis(500)).send().await;
            matches!(answer, Ok(answer) if answer.status() == 503)
        };
        eventually("another one waits", async || busy().await.then_some(())).await;
        waiting.abort();
        // Whoever comes next waits in its place, and leaves after a while too.
        eventually("its place is free", async || (!busy().await).then_some(())).await;
    }
    let last = tokio::spawn(gateway.client().get(&url).send());
    go.notify_one();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    // One that left just now may have come to the upstream before it.
    eventually("the last one is answered", async || {
        go.notify_one();
        last.is_finished().then_some(())
    })
    .await;
    assert_eq!(last.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_client_that_comes_back_finds_its_upstream() {
    let servers = [
        upstream(|_| ok("1")).await,
        upstream(|_| ok("2")).await,
        upstream(|_| ok("3")).await,
    ];
    let urls: Vec<&String> = servers.iter().map(|s| &s.url).collect();
    let gateway = gateway()
        .route(route(
            "/cookie",
            json!({ "upstreams": urls, "balance": { "hash_cookie": "sid" } }),
        ))
        .route(route(
            "/header",
            json!({ "upstreams": urls, "balance": { "hash_header": "X-User" } }),
        ))
        .route(route(
            "/address",
            json!({ "upstreams": urls, "balance": "hash_address" }),
        ))
        .route(route(
            "/least",
            json!({ "upstreams": urls, "balance": "least_connections" }),
        ))
        .route(route(
            "/weight",
            json!({ "upstreams": [{ "url": urls[0], "weight": 3 }, urls[1]] }),
        ))
        .start();
    let client = gateway.client();
    let ask = async |path: &str, name: &str, value: &str| {
        let request = client.get(gateway.url(path)).header(name, value);
        request.send().await.unwrap().text().await.unwrap()
    };
    let mut seen = std::collections::HashSet::new();
    for i in 0..20 {
        let cookie = format!("other=1; sid=user-{i}");
        let first = ask("/cookie", "cookie", &cookie).await;
        assert_eq!(ask("/cookie", "cookie", &cookie).await, first);
        let by_header = ask("/header", "x-user", &format!("user-{i}")).await;
        assert_eq!(by_header, first, "the same value has the same upstream");
        seen.insert(first);
    }
    assert_eq!(seen.len(), 3);
    // Before the other routes have requests in flight: what a server has is counted over all of them.
    let mut least = std::collections::HashSet::new();
    for _ in 0..12 {
        least.insert(ask("/least", "x", "1").await);
    }
    let first = ask("/address", "x", "1").await;
    let mut weighted = [0; 2];
    for i in 0..8 {
        assert_eq!(ask("/address", "x", &i.to_string()).await, first);
        weighted[usize::from(ask("/weight", "x", "1").await != "1")] += 1;
    }
    assert_eq!(least.len(), 3, "idle servers take turns");
    assert_eq!(weighted, [6, 2]);
}

#[tokio::test]
async fn connections_are_kept_or_not() {
    let (kept, closed) = (
        upstream(|_| ok("kept")).await,
        upstream(|_| ok("new")).await,
    );
    let gateway = gateway()
        // Each listener's thread has connections of its own.
        .set("server.threads", json!(1))
        .route(route("/kept", json!({ "upstreams": [kept.url] })))
        .route(route(
            "/new",
            json!({ "upstreams": [closed.url], "keepalive_timeout": "0s" }),
        ))
        .start();
    for _ in 0..5 {
        assert_eq!(get(&gateway, "/kept").await.1, "kept");
        assert_eq!(get(&gateway, "/new").await.1, "new");
    }
    assert_eq!((kept.connections(), kept.hits()), (1, 5));
    assert_eq!((closed.connections(), closed.hits()), (5, 5));
}

#[tokio::test]
async fn what_is_known_of_an_upstream_outlives_a_reload() {
    let dead = format!("http://127.0.0.1:{}", free_port());
    let good = upstream(|_| ok("good")).await;
    let gateway = gateway()
        .route(route(
            "/app",
            json!({ "upstreams": [dead, good.url],
                "ejection": { "failures": 1, "time": "1h", "time_max": "1h" } }),
        ))
        .start();
    for _ in 0..2 {
        assert_eq!(get(&gateway, "/app").await.1, "good");
    }
    let failed =
        format!("wasmwiz_upstream_requests_total{{result=\"connect_failed\",upstream=\"{dead}\"}}");
    assert_eq!(gateway.metric(&failed).await, Some(1.0));
    let last = |config: &mut Value| -> usize { config["routes"].as_array().unwrap().len() - 1 };
    gateway.edit(|config| {
        let at = last(config);
        config["routes"][at]["proxy"]["read_timeout"] = json!("5s");
    });
    gateway.signal("HUP");
    gateway.reloaded("ok", 1).await;
    for _ in 0..6 {
        assert_eq!(get(&gateway, "/app").await.1, "good");
    }
    assert_eq!(gateway.metric(&failed).await, Some(1.0), "it is still out");
    // An upstream that is gone leaves no row behind.
    gateway.edit(|config| {
        let at = last(config);
        config["routes"][at]["proxy"]["upstreams"] = json!([good.url]);
    });
    gateway.signal("HUP");
    gateway.reloaded("ok", 2).await;
    eventually("its rows are gone", async || {
        (!metrics(&gateway).await.contains(&dead)).then_some(())
    })
    .await;
}
