//! Pages of other origins, and the methods that there are.

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::support::gateway::{Gateway, gateway};

async fn ask(
    gateway: &Gateway,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, HeaderMap, String) {
    let method: Method = method.parse().unwrap();
    let mut request = gateway.client().request(method, gateway.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    (
        answer.status().as_u16(),
        answer.headers().clone(),
        answer.text().await.unwrap(),
    )
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    assert!(
        headers.get_all(name).iter().count() < 2,
        "{name} stands twice"
    );
    headers.get(name).map(|value| value.to_str().unwrap())
}

fn varies_by(headers: &HeaderMap, name: &str) -> bool {
    let lines = headers.get_all("vary").iter();
    lines
        .flat_map(|line| line.to_str().unwrap().split(','))
        .any(|listed| listed.trim().eq_ignore_ascii_case(name))
}

fn app(auth: &str) -> Value {
    json!({ "name": "app", "match": { "path": "/app", "methods": ["GET", "PUT"] }, "auth": auth,
        "cors": { "origins": ["https://app.test", "https://*.apps.test"], "headers": ["Authorization"],
            "expose": ["X-Request-Id"], "credentials": true, "max_age": "5m" },
        "headers": { "response": { "set": { "Access-Control-Allow-Origin": "https://other.test" } } },
        "respond": { "body": "for pages" } })
}

const PREFLIGHT: &str = "access-control-request-method";

#[tokio::test]
async fn a_preflight_is_answered_before_authentication() {
    let gateway = gateway().route(app("key")).start();
    for origin in ["https://app.test", "https://a.b.apps.test"] {
        let asked = [
            ("origin", origin),
            (PREFLIGHT, "PUT"),
            ("access-control-request-headers", "authorization"),
        ];
        let (status, headers, body) = ask(&gateway, "OPTIONS", "/app", &asked).await;
        assert_eq!((status, body.as_str()), (204, ""));
        assert_eq!(
            header(&headers, "access-control-allow-origin"),
            Some(origin)
        );
        assert_eq!(
            header(&headers, "access-control-allow-methods"),
            Some("GET, PUT")
        );
        assert_eq!(
            header(&headers, "access-control-allow-headers"),
            Some("authorization")
        );
        assert_eq!(
            header(&headers, "access-control-allow-credentials"),
            Some("true")
        );
        assert_eq!(header(&headers, "access-control-max-age"), Some("300"));
        assert!(varies_by(&headers, "origin"));
    }
    for origin in [
        "https://apps.test",
        "https://app.test.evil.test",
        "http://app.test",
        "null",
        "https://evil.test",
    ] {
        let asked = [("origin", origin), (PREFLIGHT, "PUT")];
        let (status, headers, _) = ask(&gateway, "OPTIONS", "/app", &asked).await;
        assert_eq!(status, 403, "{origin}");
        assert_eq!(
            header(&headers, "access-control-allow-origin"),
            None,
            "{origin}"
        );
        assert!(varies_by(&headers, "origin"));
    }
    // One for a method that no route answers is a plain OPTIONS.
    let asked = [("origin", "https://app.test"), (PREFLIGHT, "DELETE")];
    let (status, headers, _) = ask(&gateway, "OPTIONS", "/app", &asked).await;
    assert_eq!(
        (status, header(&headers, "allow")),
        (204, Some("GET, HEAD, OPTIONS, PUT"))
    );
    assert_eq!(header(&headers, "access-control-allow-methods"), None);
}

#[tokio::test]
async fn answers_and_errors_can_be_read_by_listed_origins_only() {
    let gateway = gateway()
        .route(app("none"))
        .route({
            let mut route = app("key");
            route["name"] = json!("keyed");
            route["match"]["path"] = json!("/keyed");
            route
        })
        .start();
    for (method, path, expected) in [
        ("GET", "/app", 200),
        ("GET", "/keyed", 401),
        ("POST", "/app", 405),
    ] {
        let (status, headers, _) =
            ask(&gateway, method, path, &[("origin", "https://app.test")]).await;
        assert_eq!(status, expected, "{method} {path}");
        assert_eq!(
            header(&headers, "access-control-allow-origin"),
            Some("https://app.test")
        );
        assert_eq!(
            header(&headers, "access-control-expose-headers"),
            Some("x-request-id")
        );
        assert_eq!(header(&headers, "access-control-allow-methods"), None);
        assert!(varies_by(&headers, "origin"));
        for others in [&[("origin", "https://evil.test")][..], &[]] {
            let (_, headers, _) = ask(&gateway, method, path, others).await;
            assert_eq!(header(&headers, "access-control-allow-origin"), None);
            assert_eq!(header(&headers, "access-control-allow-credentials"), None);
            assert!(varies_by(&headers, "origin"));
        }
    }
}

#[tokio::test]
async fn any_origin_means_any() {
    let gateway = gateway()
        .route(
            json!({ "name": "open", "match": { "path": "/open" }, "auth": "none",
            "cors": { "origins": ["*"] }, "respond": { "body": "for all" } }),
        )
        .start();
    let (status, headers, body) =
        ask(&gateway, "GET", "/open", &[("origin", "https://any.test")]).await;
    assert_eq!((status, body.as_str()), (200, "for all"));
    assert_eq!(header(&headers, "access-control-allow-origin"), Some("*"));
    assert!(!varies_by(&headers, "origin"));
    let asked = [("origin", "https://any.test"), (PREFLIGHT, "GET")];
    let (status, headers, _) = ask(&gateway, "OPTIONS", "/open", &asked).await;
    assert_eq!(status, 204);
    assert_eq!(
        header(&headers, "access-control-allow-methods"),
        Some("GET, HEAD, POST")
    );
    assert_eq!(header(&headers, "access-control-allow-headers"), None);
    // Without the preflight's headers it is the route's own to answer.
    let (status, _, body) = ask(&gateway, "OPTIONS", "/open", &[]).await;
    assert_eq!((status, body.as_str()), (200, "for all"));
}

#[tokio::test]
async fn methods_are_listed_where_they_are_refused() {
    let gateway = gateway()
        .set("metrics.public", json!(true))
        .route(app("none"))
        .start();
    for (path, allow) in [
        ("/app", "GET, HEAD, OPTIONS, PUT"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/health/live", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
    ] {
        for (method, expected) in [("DELETE", 405), ("OPTIONS", 204), ("BREW", 405)] {
            let (status, headers, _) = ask(&gateway, method, path, &[]).await;
            assert_eq!(
                (status, header(&headers, "allow")),
                (expected, Some(allow)),
                "{method} {path}"
            );
        }
        let (status, headers, body) = ask(&gateway, "HEAD", path, &[]).await;
        assert_eq!((status, body.as_str()), (200, ""), "{path}");
        assert!(
            header(&headers, "content-length")
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 0
        );
    }
    let (status, headers, _) = ask(&gateway, "OPTIONS", "/api/wasm/modules", &[]).await;
    assert_eq!(status, 204);
    let allow = header(&headers, "allow").unwrap();
    assert!(
        allow.contains("GET") && allow.contains("OPTIONS"),
        "{allow}"
    );
    let (status, headers, _) = ask(&gateway, "DELETE", "/api/wasm/modules", &[]).await;
    assert_eq!(status, 405);
    assert!(header(&headers, "allow").unwrap().contains("GET"));
}

#[tokio::test]
async fn the_server_as_a_whole_and_tunnels() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let gateway = gateway().start_plain();
    for (head, expected) in [
        ("OPTIONS * HTTP/1.1", "HTTP/1.1 204"),
        ("GET * HTTP/1.1", "HTTP/1.1 400"),
        ("TRACE / HTTP/1.1", "HTTP/1.1 405"),
        ("CONNECT a.test:443 HTTP/1.1", "HTTP/1.1 4"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", gateway.http))
            .await
            .unwrap();
        let host = if head.starts_with("CONNECT") {
            "a.test:443"
        } else {
            "a.test"
        };
        let request = format!("{head}\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.starts_with(expected), "{head}: {answer}");
    }
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.yaml");
    for (cors, problem) in [
        (json!({}), "needs at least one origin"),
        (
            json!({ "origins": ["*"], "credentials": true }),
            "can't be given to any origin",
        ),
        (
            json!({ "origins": ["*", "https://a.test"] }),
            "is any origin already",
        ),
        (
            json!({ "origins": ["https://a.test/"] }),
            "leave out the path",
        ),
        (json!({ "origins": ["null"] }), "begins with https://"),
        (
            json!({ "origins": ["https://a.test", "https://a.test:443"] }),
            "is given twice",
        ),
        (
            json!({ "origins": ["https://a.test"], "methods": ["DELETE"] }),
            "is not a method of this route",
        ),
        (
            json!({ "origins": ["https://a.test"], "headers": ["*"] }),
            "is not a header name",
        ),
        (
            json!({ "origins": ["https://a.test"], "max_age": "2d" }),
            "must be between 0s and 1d",
        ),
    ] {
        let route = json!({ "name": "r", "match": { "path": "/r", "methods": ["GET"] }, "cors": cors,
            "respond": { "body": "x" } });
        std::fs::write(
            &file,
            serde_yaml::to_string(&json!({ "routes": [route] })).unwrap(),
        )
        .unwrap();
        let out = crate::support::gateway::run(dir.path(), &["check", "--config", "c.yaml"], &[]);
        let said = String::from_utf8_lossy(&out.stdout).into_owned()
            + &String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains(problem), "{problem}: {said}");
    }
}
