//! What is changed of a request and its answer between client and upstream.

use serde_json::json;

use super::{get, route};
use crate::support::gateway::gateway;
use crate::support::upstream::{Reply, mirror, upstream};

#[tokio::test]
async fn paths_are_rewritten_and_keep_their_rules() {
    let app = upstream(mirror).await;
    let rewritten = |path: &str, rewrite: &str| {
        route(
            path,
            json!({ "upstreams": [app.url], "rewrite": rewrite, "preserve_host": false }),
        )
    };
    let gateway = gateway()
        .route(rewritten("/strip/*", "{rest}"))
        .route(rewritten("/v1/*", "/v2{rest}"))
        .route(rewritten("/users/{id}/posts/{post}", "/p/{post}-{id}"))
        .start();
    let line = async |path: &str| {
        let (status, text) = get(&gateway, path).await;
        let line = text.lines().next().unwrap_or_default().to_owned();
        (status.as_u16(), line)
    };
    for (path, target) in [
        ("/strip", "/"),
        ("/strip/", "/"),
        ("/strip/a%20b/c?x=%2F..", "/a%20b/c?x=%2F.."),
        ("/v1/a?b", "/v2/a?b"),
        ("/v1", "/v2"),
        ("/users/7/posts/a%20b", "/p/a%20b-7"),
    ] {
        assert_eq!(
            line(path).await,
            (200, format!("GET {target} HTTP/1.1")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn headers_say_who_asks_and_nothing_that_a_client_made_up() {
    let app = upstream(mirror).await;
    let forwarded = |path: &str, how: &str| {
        let mut route = route(path, json!({ "upstreams": [app.url], "forwarded": how }));
        route["headers"] = json!({ "request": { "add": { "X-More": "b" }, "set": { "X-User": "gateway" } },
            "response": { "add": { "X-Both": "gateway" } } });
        route
    };
    let routes = |builder: crate::support::gateway::Builder| {
        builder
            .route(forwarded("/x", "x_forwarded"))
            .route(forwarded("/standard", "standard"))
            .route(forwarded("/both", "both"))
            .route(forwarded("/none", "none"))
    };
    let gateway = routes(gateway()).start();
    let ask = async |path: &str| {
        let request = gateway.client().get(gateway.url(path));
        let request = request
            .header("x-forwarded-for", "6.6.6.6")
            .header("forwarded", "for=6.6.6.6")
            .header("x-real-ip", "6.6.6.6")
            .header("x_forwarded_for", "6.6.6.6")
            .header("x_user", "root")
            .header("x_own", "kept")
            .header("x-more", "a")
            .header("proxy-authorization", "Basic x")
            .header("te", "gzip");
        request
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
            .to_lowercase()
    };
    let host = format!("localhost:{}", gateway.https);
    let x = ask("/x").await;
    for line in [
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: https\r\n",
        &format!("x-forwarded-host: {host}\r\n"),
        &format!("host: {host}\r\n"),
        "x_own: kept\r\n",
        "x-user: gateway\r\n",
        "x-more: a\r\n",
        "x-more: b\r\n",
    ] {
        assert!(x.contains(line), "{line} is missing:\n{x}");
    }
    let standard = ask("/standard").await;
    let element = format!("forwarded: for=127.0.0.1;proto=https;host=\"{host}\"\r\n");
    assert!(standard.contains(&element), "{standard}");
    assert!(!standard.contains("x-forwarded"), "{standard}");
    let both = ask("/both").await;
    assert!(both.contains(&element) && both.contains("x-forwarded-for: 127.0.0.1\r\n"));
    let none = ask("/none").await;
    assert!(!none.contains("forwarded"), "{none}");
    for text in [x, standard, both, none] {
        for made_up in ["6.6.6.6", "root", "proxy-authorization", "\r\nte:"] {
            assert!(!text.contains(made_up), "{made_up}:\n{text}");
        }
    }

    let trusting = routes(crate::support::gateway::gateway())
        .set("server.trusted_proxies", json!(["127.0.0.0/8"]))
        .start();
    let request = trusting.client().get(trusting.url("/both"));
    let request = request
        .header("x-forwarded-for", "192.0.2.7")
        .header("forwarded", "for=192.0.2.7");
    let text = request
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap()
        .to_lowercase();
    assert!(
        text.contains("x-forwarded-for: 192.0.2.7, 127.0.0.1\r\n"),
        "{text}"
    );
    assert!(
        text.contains("forwarded: for=192.0.2.7, for=127.0.0.1;"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_for_one_connection_stays_on_it() {
    let app = upstream(|_| {
        Reply::Raw(
            b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
              Proxy-Connection: x\r\nUpgrade: h2c\r\nX-End: 1\r\nContent-Length: 2\r\n\r\nok"
                .to_vec(),
        )
    })
    .await;
    let mut edited = route("/hop", json!({ "upstreams": [app.url] }));
    edited["headers"] = json!({ "response": { "add": { "X-End": "2" } } });
    let gateway = gateway().route(edited).start();
    let answer = gateway
        .client()
        .get(gateway.url("/hop"))
        .send()
        .await
        .unwrap();
    let headers = answer.headers();
    for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert!(!headers.contains_key(name), "{name}: {headers:?}");
    }
    assert_eq!(headers.get_all("x-end").iter().count(), 2);
    assert_eq!(answer.text().await.unwrap(), "ok");
}
