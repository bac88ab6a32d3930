//! What every answer has: an id, security headers, and errors of one form.

use reqwest::Method;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::gateway::{Gateway, gateway};

const SECURITY_HEADERS: [&str; 5] = [
    "content-security-policy",
    "x-content-type-options",
    "x-frame-options",
    "referrer-policy",
    "permissions-policy",
];

async fn get(gateway: &Gateway, path: &str) -> reqwest::Response {
    gateway
        .client()
        .get(gateway.url(path))
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn security_headers_and_an_id_are_on_everything() {
    let gateway = gateway()
        .route(json!({ "name": "fixed", "match": { "path": "/fixed" }, "auth": "none",
            "respond": { "status": 200, "body": "ok", "content_type": "text/plain" } }))
        .route(json!({ "name": "open", "match": { "path": "/open" }, "auth": "none",
            "headers": { "response": { "set": { "X-Frame-Options": "SAMEORIGIN" }, "remove": ["Referrer-Policy"] } },
            "respond": { "status": 200, "body": "ok", "content_type": "text/plain" } }))
        .start();
    let mut ids = std::collections::HashSet::new();
    for path in [
        "/health",
        "/fixed",
        "/nothing",
        "/api/nothing",
        "/api/wasm/modules",
        "/%2e%2e/x",
    ] {
        let answer = get(&gateway, path).await;
        for name in SECURITY_HEADERS {
            assert!(answer.headers().contains_key(name), "{path} lacks {name}");
        }
        assert!(
            answer.headers()["strict-transport-security"]
                .to_str()
                .unwrap()
                .starts_with("max-age=")
        );
        assert!(
            ids.insert(answer.headers()["x-request-id"].clone()),
            "ids are unique"
        );
    }
    let open = get(&gateway, "/open").await;
    assert_eq!(open.headers()["x-frame-options"], "SAMEORIGIN");
    assert!(!open.headers().contains_key("referrer-policy"));
    // Plain HTTP must not carry HSTS (RFC 6797 section 7.2).
    let plain = gateway
        .client()
        .get(gateway.http_url("/fixed"))
        .send()
        .await
        .unwrap();
    assert_eq!(plain.status(), 308);
    assert!(!plain.headers().contains_key("strict-transport-security"));
}

#[tokio::test]
async fn errors_have_one_form() {
    let gateway = gateway().start();
    for (path, status, code) in [
        ("/nothing", 404, "not_found"),
        ("/api/nothing", 404, "not_found"),
        ("/api/wasm/modules", 401, "unauthorized"),
        ("/fn/echo", 405, "method_not_allowed"),
    ] {
        let answer = get(&gateway, path).await;
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/json");
        let id = answer.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        if status == 401 {
            assert!(
                answer.headers()["www-authenticate"]
                    .to_str()
                    .unwrap()
                    .starts_with("Bearer")
            );
        }
        if status == 405 {
            assert!(answer.headers()["allow"].to_str().unwrap().contains("POST"));
        }
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["code"], code, "{path}");
        assert_eq!(body["request_id"], id);
        assert!(!body["error"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_client_can_not_choose_its_request_id_but_a_trusted_proxy_can() {
    let strict = gateway().start();
    let ask = |gateway: &Gateway| {
        let request = gateway
            .client()
            .get(gateway.url("/health"))
            .header("x-request-id", "mine-1");
        async move { request.send().await.unwrap().headers()["x-request-id"].clone() }
    };
    assert_ne!(ask(&strict).await, "mine-1");
    let trusting = gateway()
        .set("server.trusted_proxies", json!(["127.0.0.0/8"]))
        .start();
    assert_eq!(ask(&trusting).await, "mine-1");
}

#[tokio::test]
async fn http_redirects_to_https_with_its_few_exceptions() {
    let gateway = gateway().start();
    let client = gateway.client();
    let answer = client
        .post(gateway.http_url("/a/b?c=d%20e"))
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 308);
    assert_eq!(answer.headers()["location"], gateway.url("/a/b?c=d%20e"));
    for path in [
        "/health",
        "/health/live",
        "/health/ready",
        "/healthz",
        "/readyz",
    ] {
        assert_eq!(
            client
                .get(gateway.http_url(path))
                .send()
                .await
                .unwrap()
                .status(),
            200,
            "{path}"
        );
    }
    let challenge = client
        .get(gateway.http_url("/.well-known/acme-challenge/token"))
        .send()
        .await
        .unwrap();
    assert_eq!(challenge.status(), 404, "served here, not redirected");
}

#[tokio::test]
async fn heads_that_could_be_read_two_ways_are_refused() {
    let gateway = gateway().start();
    for (head, expected) in [
        ("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", "200"),
        ("GET /health HTTP/1.1\r\n\r\n", "400"),
        ("GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("GET /health HTTP/1.1\r\nHost: a b\r\n\r\n", "400"),
        (
            "GET http://other/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "400",
        ),
        (
            "POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("GET /health HTTP/1.1\r\nHost : a\r\n\r\n", "400"),
        ("\x16\x03\x01 nonsense\r\n\r\n", "400"),
    ] {
        let answer = raw(gateway.http, head.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{head:?}\n{answer}"
        );
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000));
    assert!(
        raw(gateway.http, long.as_bytes())
            .await
            .starts_with("HTTP/1.1 414")
    );
    let many = format!(
        "GET /health HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X-A: b\r\n".repeat(200)
    );
    assert!(
        raw(gateway.http, many.as_bytes())
            .await
            .starts_with("HTTP/1.1 431")
    );
}

/// Sends bytes and reads the first line of the answer.
async fn raw(port: u16, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, socket.read(&mut answer));
    let n = read.await.expect("an answer").unwrap();
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

/// The answer to a request that is refused by its head comes to a client that first sends all of its
/// body, and only then reads.
#[tokio::test]
async fn a_refusal_is_not_lost_beneath_the_body() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let gateway = gateway().start_plain();
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", gateway.http))
        .await
        .unwrap();
    // More than the buffers of a socket take.
    let bytes = 3 << 20;
    let head = format!("POST /fn/%zz HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    for piece in vec![b'x'; bytes].chunks(64 << 10) {
        socket.write_all(piece).await.unwrap();
    }
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer));
    read.await.expect("the connection ends").unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let lower = answer.to_ascii_lowercase();
    assert!(lower.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.trim_end().ends_with('}'), "{answer}");
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let gateway = gateway()
        .set("server.timeouts.request_head", json!("1s"))
        .start();
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", gateway.http))
        .await
        .unwrap();
    socket
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n")
        .await
        .unwrap();
    let trickle = async {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            if socket.write_all(b"X: y\r\n").await.is_err() {
                return;
            }
            let mut byte = [0];
            let closed =
                tokio::time::timeout(std::time::Duration::from_millis(1), socket.read(&mut byte));
            if matches!(closed.await, Ok(Ok(0) | Err(_))) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, trickle)
        .await
        .expect("it is cut off");
}

#[tokio::test]
async fn head_requests_have_the_headers_and_no_body() {
    let gateway = gateway().start();
    for path in ["/health", "/fn/hello", "/nothing"] {
        let full = get(&gateway, path).await;
        let status = full.status();
        let answer = gateway
            .client()
            .request(Method::HEAD, gateway.url(path))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert!(answer.headers().contains_key("content-length"), "{path}");
        assert!(answer.bytes().await.unwrap().is_empty(), "{path}");
    }
}

#[tokio::test]
async fn one_log_line_ends_every_request_and_holds_no_secret() {
    let gateway = gateway().start();
    let key = gateway.admin_key();
    let url = gateway.url("/api/wasm/modules?secret=query");
    let answer = gateway
        .client()
        .get(url)
        .bearer_auth(&key)
        .send()
        .await
        .unwrap();
    let id = answer.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let line = crate::support::eventually("the log line", async || {
        let log = gateway.stderr();
        log.lines().find(|l| l.contains(&id)).map(str::to_owned)
    })
    .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["status"], 200);
    assert_eq!(line["path"], "/api/wasm/modules");
    assert_eq!(line["route"], "builtin:api");
    let log = gateway.stderr();
    assert!(!log.contains(&key) && !log.contains("secret=query"));
    assert_eq!(log.matches(&id).count(), 1);
}

#[tokio::test]
async fn bodies_that_could_be_read_two_ways_are_refused() {
    let gateway = gateway()
        .route(
            json!({ "name": "in", "match": { "path": "/in", "methods": ["POST"] }, "auth": "none",
            "execute": { "file": "examples/guests/echo.wasm", "abi": "command" } }),
        )
        .start_plain();
    let fine =
        "POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    assert!(
        raw(gateway.http, fine.as_bytes())
            .await
            .starts_with("HTTP/1.1 200")
    );
    for rest in [
        "Content-Length: 5, 5\r\n\r\nhello",
        "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "Content-Length: +5\r\n\r\nhello",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
    ] {
        let request = format!("POST /in HTTP/1.1\r\nHost: a\r\n{rest}");
        let answer = raw(gateway.http, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{rest:?}\n{answer}");
    }
    let trace = raw(gateway.http, b"TRACE /in HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(trace.starts_with("HTTP/1.1 405"), "{trace}");
}

#[tokio::test]
async fn a_connection_that_stops_within_the_http2_preface_is_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let gateway = gateway()
        .set("server.timeouts.request_head", json!("1s"))
        .start();
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(gateway.dir().join("certs/development.crt")).unwrap();
    for cert in rustls::pki_types::CertificateDer::pem_slice_iter(&pem) {
        roots.add(cert.unwrap()).unwrap();
    }
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", gateway.https))
        .await
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut tls = connector
        .connect("localhost".try_into().unwrap(), tcp)
        .await
        .unwrap();
    tls.write_all(b"P").await.unwrap();
    let mut all = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, tls.read_to_end(&mut all));
    // Closed with or without a farewell: what counts is that it does not stay.
    let _ = closed.await.expect("the connection is closed");
}

#[tokio::test]
async fn no_spelling_of_a_reserved_path_reaches_a_route() {
    let gateway = gateway()
        .route(
            json!({ "name": "all", "match": { "path": "/*" }, "auth": "none",
            "respond": { "status": 200, "body": "route", "content_type": "text/plain" } }),
        )
        .start();
    for path in [
        "/%61pi/wasm/modules",
        "/api",
        "/%68ealth",
        "/.well-known/acme-challenge/x",
    ] {
        let text = get(&gateway, path).await.text().await.unwrap();
        assert_ne!(text, "route", "{path}");
    }
    assert_eq!(get(&gateway, "/apis").await.text().await.unwrap(), "route");
}

#[tokio::test]
async fn challenges_of_authorities_are_answered_from_the_webroot() {
    let dir = crate::support::gateway::workdir();
    let tokens = dir.path().join("acme/.well-known/acme-challenge");
    std::fs::create_dir_all(&tokens).unwrap();
    std::fs::write(tokens.join("token-1_a"), "token-1_a.thumbprint").unwrap();
    std::fs::write(dir.path().join("acme/secret"), "secret").unwrap();
    let gateway = crate::support::gateway::gateway()
        .in_dir(dir)
        .route(json!({ "name": "all", "match": { "path": "/*" }, "auth": "none", "respond": { "body": "route" } }))
        .set("server.acme_webroot", json!("acme"))
        .start();
    let client = gateway.client();
    let known = "/.well-known/acme-challenge/token-1_a";
    for url in [gateway.url(known), gateway.http_url(known)] {
        let answer = client.get(&url).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{url}");
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
        assert_eq!(answer.text().await.unwrap(), "token-1_a.thumbprint");
        let answer = client.head(&url).send().await.unwrap();
        assert_eq!(answer.headers()["content-length"], "20");
        let answer = client.post(&url).send().await.unwrap();
        assert_eq!(answer.status(), 405);
    }
    for path in [
        "/.well-known/acme-challenge/",
        "/.well-known/acme-challenge/unknown",
        "/.well-known/acme-challenge/..%2F..%2Fsecret",
        "/.well-known/acme-challenge/token-1_a/x",
    ] {
        let answer = client.get(gateway.http_url(path)).send().await.unwrap();
        assert!(matches!(answer.status().as_u16(), 400 | 404), "{path}");
    }
    let admin = client.get(gateway.admin_url(known)).send().await.unwrap();
    assert_eq!(admin.status(), 404);
    // A client of the authority may begin, or move, while the gateway runs.
    gateway.edit(|config| config["server"]["acme_webroot"] = Value::Null);
    gateway.reloaded("ok", 1).await;
    let answer = client.get(gateway.http_url(known)).send().await.unwrap();
    assert_eq!(answer.status(), 404);
}
