//! Routes through the real gateway: every target, who may call, and what limits apply.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::gateway::{Builder, gateway};

fn open(name: &str, path: &str, target: &str, value: Value) -> Value {
    json!({ "name": name, "match": { "path": path }, "auth": "none", target: value })
}

/// An upstream that answers every request with what it got.
async fn mirror() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut got = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let n = socket.read(&mut buffer).await.unwrap_or(0);
                    if n == 0 {
                        return;
                    }
                    got.extend_from_slice(&buffer[..n]);
                    let text = String::from_utf8_lossy(&got).into_owned();
                    let Some(end) = text.find("\r\n\r\n") else {
                        continue;
                    };
                    let length: usize = text
                        .lines()
                        .find_map(|l| {
                            l.to_ascii_lowercase()
                                .strip_prefix("content-length: ")
                                .map(str::to_owned)
                        })
                        .map_or(0, |l| l.parse().unwrap());
                    let chunked = text
                        .to_ascii_lowercase()
                        .contains("transfer-encoding: chunked");
                    if got.len() < end + 4 + length || chunked && !text.ends_with("0\r\n\r\n") {
                        continue;
                    }
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nX-Mirror: {address}\r\nContent-Length: {}\r\n\r\n",
                        got.len()
                    );
                    socket.write_all(head.as_bytes()).await.unwrap();
                    socket.write_all(&got).await.unwrap();
                    got.clear();
                }
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn the_default_routes_greet_and_echo() {
    let gateway = gateway().start();
    let client = gateway.client();
    let hello = client
        .get(gateway.url("/fn/hello?name=you%3Cb%3E"))
        .send()
        .await
        .unwrap();
    assert_eq!(hello.status(), 200);
    let text = hello.text().await.unwrap();
    assert!(text.contains("you") && !text.contains("<b>"), "{text}");
    let echo = client
        .post(gateway.url("/fn/echo"))
        .bearer_auth(gateway.admin_key());
    let echo = echo.body("twice").send().await.unwrap();
    assert_eq!(echo.text().await.unwrap(), "twice");
    let nobody = client
        .post(gateway.url("/fn/echo"))
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(nobody.status(), 401);
}

#[tokio::test]
async fn redirect_and_respond() {
    let gateway = gateway()
        .route(open(
            "moved",
            "/old/{id}",
            "redirect",
            json!({ "to": "https://new.test/items/{id}", "status": 301 }),
        ))
        .route(open(
            "fixed",
            "/teapot",
            "respond",
            json!({ "status": 418, "body": "short and stout", "content_type": "text/plain" }),
        ))
        .start();
    let client = gateway.client();
    let moved = client.get(gateway.url("/old/7")).send().await.unwrap();
    assert_eq!(moved.status(), 301);
    assert_eq!(moved.headers()["location"], "https://new.test/items/7");
    let fixed = client.get(gateway.url("/teapot")).send().await.unwrap();
    assert_eq!(fixed.status(), 418);
    assert_eq!(fixed.text().await.unwrap(), "short and stout");
}

#[tokio::test]
async fn proxy_passes_requests_on_and_says_who_asked() {
    let (one, two) = (mirror().await, mirror().await);
    let gateway = gateway()
        .route(
            json!({ "name": "up", "match": { "path": "/up/*" }, "auth": "key",
            "limits": { "body_size_max": "1KiB" },
            "headers": { "request": { "set": { "X-Added": "yes" }, "remove": ["X-Secret"] } },
            "proxy": { "upstreams": [one, two] } }),
        )
        .start();
    let client = gateway.client();
    let key = gateway.admin_key();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..4 {
        let answer = client
            .post(gateway.url("/up/a?b=c"))
            .bearer_auth(&key)
            .header("x-secret", "s")
            .header("x-forwarded-for", "6.6.6.6")
            .body("payload")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        seen.insert(answer.headers()["x-mirror"].clone());
        assert!(answer.headers().contains_key("x-frame-options"));
        let got = answer.text().await.unwrap();
        assert!(got.starts_with("POST /up/a?b=c HTTP/1.1\r\n"), "{got}");
        assert!(got.ends_with("\r\n\r\npayload"), "{got}");
        let lower = got.to_ascii_lowercase();
        for line in [
            "x-added: yes",
            "x-forwarded-for: 127.0.0.1\r\n",
            "x-forwarded-proto: https",
            "x-request-id: ",
        ] {
            assert!(lower.contains(line), "{line} is missing:\n{got}");
        }
        assert!(!lower.contains("x-secret") && !got.contains(&key), "{got}");
    }
    assert_eq!(seen.len(), 2, "round robin uses both");
    let large = client
        .post(gateway.url("/up/x"))
        .bearer_auth(&key)
        .body("x".repeat(2000));
    assert_eq!(large.send().await.unwrap().status(), 413);
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(
        (0..4).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 500])),
    ));
    let large = client
        .post(gateway.url("/up/x"))
        .bearer_auth(&key)
        .body(chunked);
    assert_eq!(
        large.send().await.unwrap().status(),
        413,
        "counted while it passes"
    );
}

#[tokio::test]
async fn a_dead_upstream_is_passed_over_and_when_all_are_dead_it_is_503() {
    let dead = format!("http://127.0.0.1:{}", crate::support::free_port());
    let live = mirror().await;
    let gateway = gateway()
        .route(open(
            "half",
            "/half",
            "proxy",
            json!({ "upstreams": [dead, live], "connect_timeout": "1s" }),
        ))
        .route(open(
            "none",
            "/none",
            "proxy",
            json!({ "upstreams": [dead], "connect_timeout": "1s" }),
        ))
        .start();
    let client = gateway.client();
    for _ in 0..4 {
        assert_eq!(
            client
                .get(gateway.url("/half"))
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
    }
    let answer = client.get(gateway.url("/none")).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(
        answer.json::<Value>().await.unwrap()["code"],
        "upstream_unavailable"
    );
}

#[tokio::test]
async fn the_most_specific_route_wins_whatever_the_order() {
    let fixed = |name: &str, m: Value| {
        json!({ "name": name, "match": m, "auth": "none",
            "respond": { "status": 200, "body": name, "content_type": "text/plain" } })
    };
    let gateway = gateway()
        .route(fixed("any", json!({ "path": "/a/*" })))
        .route(fixed("param", json!({ "path": "/a/{x}" })))
        .route(fixed("exact", json!({ "path": "/a/b" })))
        .route(fixed(
            "host",
            json!({ "path": "/a/b", "hosts": ["*.example.com"] }),
        ))
        .route(fixed(
            "header",
            json!({ "path": "/a/b", "headers": { "X-Env": "beta" } }),
        ))
        .start();
    let client = gateway.client();
    let ask = async |path: &str, name: &str, value: &str| {
        let request = client.get(gateway.url(path)).header(name, value);
        request.send().await.unwrap().text().await.unwrap()
    };
    assert_eq!(ask("/a/b", "x-none", "1").await, "exact");
    assert_eq!(ask("/a/c", "x-none", "1").await, "param");
    assert_eq!(ask("/a/c/d", "x-none", "1").await, "any");
    assert_eq!(ask("/a/b", "x-env", "beta").await, "header");
}

fn wagi(builder: Builder, name: &str, wat: &str, dir: &tempfile::TempDir) -> Builder {
    let file = dir.path().join(format!("{name}.wat"));
    std::fs::write(&file, wat).unwrap();
    builder.route(open(
        name,
        &format!("/{name}"),
        "execute",
        json!({ "file": file, "abi": "wagi" }),
    ))
}

/// A guest that writes `text`, and then does `then`.
fn writer(text: &str, then: &str) -> String {
    let escaped: String = text.bytes().map(|b| format!("\\{b:02x}")).collect();
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 1024) "{escaped}")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const {}))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    {then}))"#,
        text.len()
    )
}

#[tokio::test]
async fn wagi_answers_are_streamed_and_failures_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = gateway().set("sandbox.execution_timeout", json!("3s"));
    let first = "Content-Type: text/plain\n\nfirst";
    builder = wagi(builder, "slow", &writer(first, "(loop (br 0))"), &dir);
    builder = wagi(
        builder,
        "trap",
        &writer("Content-Type: text/plain\n\n", "unreachable"),
        &dir,
    );
    builder = wagi(builder, "silent", &writer("", ""), &dir);
    builder = wagi(
        builder,
        "nonsense",
        &writer("no header here\n\nbody", ""),
        &dir,
    );
    builder = wagi(
        builder,
        "teapot",
        &writer(
            "Status: 418 Teapot\nContent-Type: text/x\nX-A: b\n\nshort",
            "",
        ),
        &dir,
    );
    let gateway = builder.start();
    let client = gateway.client();

    let mut slow = client.get(gateway.url("/slow")).send().await.unwrap();
    assert_eq!(
        slow.status(),
        200,
        "the head arrives before the guest has ended"
    );
    assert_eq!(slow.chunk().await.unwrap().unwrap(), "first");
    assert!(
        slow.chunk().await.is_err(),
        "a cut answer must not look whole"
    );

    // Depending on how far it got when the guest trapped, the answer is a 502 or is cut off.
    let trap = client.get(gateway.url("/trap")).send().await.unwrap();
    assert!(trap.status() == 502 || trap.bytes().await.is_err());
    let silent = client.get(gateway.url("/silent")).send().await.unwrap();
    assert_eq!(silent.status(), 502);
    assert_eq!(
        silent.json::<Value>().await.unwrap()["code"],
        "invalid_guest_response"
    );
    let nonsense = client.get(gateway.url("/nonsense")).send().await.unwrap();
    assert_eq!(nonsense.status(), 502);
    let teapot = client.get(gateway.url("/teapot")).send().await.unwrap();
    assert_eq!(teapot.status(), 418);
    assert_eq!(teapot.headers()["x-a"], "b");
    assert_eq!(teapot.text().await.unwrap(), "short");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_streamed_answer_stops_its_guest() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = gateway().set("sandbox.execution_timeout", json!("1h"));
    let first = "Content-Type: text/plain\n\nfirst";
    builder = wagi(builder, "endless", &writer(first, "(loop (br 0))"), &dir);
    let gateway = builder.start_plain();
    for head in [
        "GET /endless HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /endless HTTP/1.0\r\nHost: a\r\n\r\n",
        "HEAD /endless HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /endless HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", gateway.http))
            .await
            .unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        if !head.contains("/health") {
            gateway.guests_running(1).await;
        }
        drop(socket);
        gateway.guests_running(0).await;
    }
}

#[tokio::test]
async fn an_anonymous_route_can_be_limited_per_address() {
    let gateway = gateway()
        .route(json!({ "name": "few", "match": { "path": "/few" }, "auth": "none", "limits": { "per_minute": 2 },
            "respond": { "status": 200, "body": "ok", "content_type": "text/plain" } }))
        .start();
    let client = gateway.client();
    let ask = async || client.get(gateway.url("/few")).send().await.unwrap();
    assert_eq!(ask().await.status(), 200);
    assert_eq!(ask().await.headers()["x-ratelimit-remaining"], "0");
    let refused = ask().await;
    assert_eq!(refused.status(), 429);
    let waits = refused.headers().get_all("retry-after").iter().count();
    assert_eq!(waits, 1, "a field of one value (RFC 9110 section 10.2.3)");
}

#[tokio::test]
async fn answers_tell_of_the_limit_that_binds_be_it_the_routes_or_the_callers() {
    let gateway = gateway()
        .set("tiers.enterprise.per_minute", json!(4))
        .set("tiers.enterprise.per_day", json!("unlimited"))
        .route(
            json!({ "name": "few", "match": { "path": "/few" }, "limits": { "per_minute": 2 },
            "respond": { "status": 200, "body": "ok", "content_type": "text/plain" } }),
        )
        .route(
            json!({ "name": "many", "match": { "path": "/many" }, "limits": { "per_minute": 500 },
            "respond": { "status": 200, "body": "ok", "content_type": "text/plain" } }),
        )
        .start();
    let key = gateway.admin_key();
    let client = gateway.client();
    for (path, status, limit, remaining) in [
        ("/few", 200, "2", "1"),
        ("/many", 200, "4", "2"),
        ("/few", 200, "2", "0"),
        // The route refuses, and the caller's own is not drawn from.
        ("/few", 429, "2", "0"),
        ("/many", 200, "4", "0"),
        ("/many", 429, "4", "0"),
    ] {
        let request = client.get(gateway.url(path)).header("x-api-key", &key);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        let headers = answer.headers();
        assert_eq!(headers["x-ratelimit-limit"], limit, "{path}");
        assert_eq!(headers["x-ratelimit-remaining"], remaining, "{path}");
    }
}

#[tokio::test]
async fn a_role_route_wants_the_role() {
    let gateway = gateway()
        .route(
            json!({ "name": "admins", "match": { "path": "/admins" }, "auth": { "role": "admin" },
            "respond": { "status": 200, "body": "ok", "content_type": "text/plain" } }),
        )
        .start();
    let client = gateway.client();
    let made = crate::support::gateway::run(
        &gateway.dir(),
        &[
            "keys",
            "create",
            "--user",
            "u@example.com",
            "--tier",
            "basic",
        ],
        &[],
    );
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let text = String::from_utf8(made.stdout).unwrap();
    let key = text
        .split_whitespace()
        .find(|w| w.starts_with("ww_"))
        .unwrap()
        .to_owned();
    let ask = async |key: &str| {
        client
            .get(gateway.url("/admins"))
            .bearer_auth(key)
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(ask(&key).await, 403);
    assert_eq!(ask(&gateway.admin_key()).await, 200);
}

#[tokio::test]
async fn a_body_that_trickles_in_is_answered_408() {
    let gateway = gateway()
        .set("server.timeouts.request_body", json!("1s"))
        .start();
    let client = gateway.client();
    let trickle = futures_util::stream::unfold(0, |n| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Some((Ok::<_, std::io::Error>(vec![b'x']), n + 1))
    });
    let request = client
        .post(gateway.url("/fn/echo"))
        .bearer_auth(gateway.admin_key());
    let answer = request
        .body(reqwest::Body::wrap_stream(trickle))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 408);
}

#[tokio::test]
async fn a_guest_sees_the_headers_that_its_route_has_changed() {
    let gateway = gateway()
        .route(json!({ "name": "page", "match": { "path": "/page" }, "auth": "none",
            "headers": { "request": { "set": { "X-Set": "gateway" }, "add": { "X-Add": "two" }, "remove": ["X-Gone"] } },
            "execute": { "file": "examples/guests/page.wasm", "abi": "wagi" } }))
        .start();
    let answer = gateway
        .client()
        .get(gateway.url("/page"))
        .header("x-set", "client")
        .header("x-add", "one")
        .header("x-gone", "hidden")
        .header("x-stays", "stays");
    let page = answer.send().await.unwrap().text().await.unwrap();
    for seen in ["x-set", "gateway", "one, two", "stays"] {
        assert!(page.contains(seen), "{seen}\n{page}");
    }
    for hidden in ["client", "x-gone", "hidden"] {
        assert!(!page.contains(hidden), "{hidden}\n{page}");
    }
}
