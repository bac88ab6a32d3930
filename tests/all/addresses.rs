//! Where a request comes from, and what follows from it.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::gateway::{Builder, gateway};
use crate::support::{PATIENCE, eventually};

/// Routes that only let some in.
fn routes() -> Builder {
    gateway()
        .route(
            json!({ "name": "some", "match": { "path": "/some" }, "auth": "none",
            "allow": ["198.51.100.0/24", "2001:db8::/32"], "deny": ["198.51.100.66"],
            "respond": { "body": "in" } }),
        )
        .route(
            json!({ "name": "keyed", "match": { "path": "/keyed" }, "deny": ["127.0.0.0/8"],
            "respond": { "body": "in" } }),
        )
}

async fn connect_from(port: u16, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket
        .connect(format!("127.0.0.1:{port}").parse().unwrap())
        .await
        .unwrap()
}

/// All that comes back until the connection is closed.
async fn talk(mut socket: TcpStream, bytes: &[u8]) -> String {
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer));
    let _ = read.await.expect("the connection is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n")
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test]
async fn lists_of_routes_go_by_the_address_that_can_be_believed() {
    let gateway = routes()
        .set("server.trusted_proxies", json!(["127.0.0.1", "10.0.0.0/8"]))
        .start_plain();
    let trusted = "127.0.0.1";
    let stranger = "127.0.0.9";
    for (from, path, field, expected) in [
        (trusted, "/some", "X-Forwarded-For: 198.51.100.1\r\n", "200"),
        (
            trusted,
            "/some",
            "X-Forwarded-For: 6.6.6.6, 198.51.100.1, 10.0.0.7\r\n",
            "200",
        ),
        (
            trusted,
            "/some",
            "X-Forwarded-For: 198.51.100.1, 6.6.6.6\r\n",
            "403",
        ),
        (
            trusted,
            "/some",
            "X-Forwarded-For: 198.51.100.66\r\n",
            "403",
        ),
        (trusted, "/some", "X-Forwarded-For: 2001:db8::7\r\n", "200"),
        (trusted, "/some", "Forwarded: for=198.51.100.1\r\n", "403"),
        (trusted, "/some", "", "403"),
        (
            stranger,
            "/some",
            "X-Forwarded-For: 198.51.100.1\r\n",
            "403",
        ),
        // No key is asked for where the address may not come in.
        (stranger, "/keyed", "", "403"),
        (
            trusted,
            "/keyed",
            "X-Forwarded-For: 198.51.100.1\r\n",
            "401",
        ),
    ] {
        let socket = connect_from(gateway.http, from).await;
        let answer = talk(socket, get(path, field).as_bytes()).await;
        assert_eq!(status(&answer), expected, "{from} {path} {field}\n{answer}");
    }
    let page = gateway.client().get(gateway.admin_url("/metrics")).send();
    let page = page.await.unwrap().text().await.unwrap();
    assert!(
        page.contains("wasmwiz_addresses_denied_total{by=\"route\"} 6"),
        "{page}"
    );
}

#[tokio::test]
async fn forwarded_is_believed_where_it_is_configured() {
    let gateway = routes()
        .set("server.trusted_proxies", json!(["127.0.0.1"]))
        .set("server.client_address_header", json!("forwarded"))
        .start_plain();
    for (field, expected) in [
        (
            "Forwarded: for=\"198.51.100.1:4711\";proto=https\r\n",
            "200",
        ),
        ("Forwarded: for=\"[2001:db8::1]\"\r\n", "200"),
        ("Forwarded: for=198.51.100.1, for=unknown\r\n", "403"),
        ("X-Forwarded-For: 198.51.100.1\r\n", "403"),
    ] {
        let socket = connect_from(gateway.http, "127.0.0.1").await;
        let answer = talk(socket, get("/some", field).as_bytes()).await;
        assert_eq!(status(&answer), expected, "{field}\n{answer}");
    }
}

#[tokio::test]
async fn lists_of_a_listener_hold_for_all_of_it() {
    let gateway = routes()
        .listener("http", json!({ "deny": ["127.0.0.9"] }))
        .listener("admin", json!({ "allow": ["127.0.0.1"] }))
        .start_plain();
    for (port, from, path, expected) in [
        (gateway.http, "127.0.0.1", "/health", "200"),
        (gateway.http, "127.0.0.9", "/health", "403"),
        (gateway.http, "127.0.0.9", "/api/wasm/modules", "403"),
        (gateway.http, "127.0.0.9", "/nothing", "403"),
        (gateway.admin, "127.0.0.1", "/health", "200"),
        (gateway.admin, "127.0.0.9", "/metrics", "403"),
    ] {
        let socket = connect_from(port, from).await;
        let answer = talk(socket, get(path, "").as_bytes()).await;
        assert_eq!(status(&answer), expected, "{from} {path}\n{answer}");
    }
}

#[tokio::test]
async fn a_load_balancer_says_where_a_connection_comes_from() {
    let gateway = routes()
        .set("server.trusted_proxies", json!(["127.0.0.1", "10.0.0.0/8"]))
        .set("server.timeouts.request_head", json!("2s"))
        .listener("http", json!({ "proxy_protocol": true }))
        .start_plain();
    let v1 = |source: &str| format!("PROXY TCP4 {source} 192.0.2.9 4711 80\r\n").into_bytes();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    v2.extend([198, 51, 100, 1, 192, 0, 2, 9, 0x12, 0x34, 0, 80]);
    let v2_local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00".to_vec();
    let some = get("/some", "");
    let spoofed = get("/some", "X-Forwarded-For: 198.51.100.1\r\n");
    for (from, header, request, expected) in [
        ("127.0.0.1", v1("198.51.100.1"), &some, "200"),
        ("127.0.0.1", v2, &some, "200"),
        ("127.0.0.1", v1("6.6.6.6"), &some, "403"),
        // The client is no proxy, so its header means nothing; a proxy behind the load balancer is one.
        ("127.0.0.1", v1("6.6.6.6"), &spoofed, "403"),
        ("127.0.0.1", v1("10.0.0.7"), &spoofed, "200"),
        // Who is behind a balancer that does not say it is no proxy of ours.
        ("127.0.0.1", v2_local.clone(), &some, "403"),
        ("127.0.0.1", v2_local, &spoofed, "403"),
        ("127.0.0.1", b"PROXY UNKNOWN\r\n".to_vec(), &spoofed, "403"),
        // Without a header, with a broken one, and from a stranger: closed.
        ("127.0.0.1", Vec::new(), &some, "none"),
        (
            "127.0.0.1",
            b"PROXY TCP4 1.2.3.4\r\n".to_vec(),
            &some,
            "none",
        ),
        ("127.0.0.9", v1("198.51.100.1"), &some, "none"),
    ] {
        let socket = connect_from(gateway.http, from).await;
        let bytes = [&header[..], request.as_bytes()].concat();
        let answer = talk(socket, &bytes).await;
        assert_eq!(
            status(&answer),
            expected,
            "{from} {}\n{answer}",
            header.escape_ascii()
        );
    }
    // One that never comes to its end is closed in time.
    let socket = connect_from(gateway.http, "127.0.0.1").await;
    assert_eq!(talk(socket, b"PROXY TCP4 198.51").await, "");
    eventually("the log has the client's address", async || {
        gateway
            .stderr()
            .contains("\"client\":\"198.51.100.1\"")
            .then_some(())
    })
    .await;
    let page = gateway.client().get(gateway.admin_url("/metrics")).send();
    let page = page.await.unwrap().text().await.unwrap();
    assert!(
        page.contains("wasmwiz_connections_refused_total{reason=\"proxy_header\"}"),
        "{page}"
    );
}

#[tokio::test]
async fn the_proxy_protocol_comes_before_tls() {
    let gateway = routes()
        .set("server.trusted_proxies", json!(["127.0.0.1"]))
        .listener("https", json!({ "proxy_protocol": true }))
        .start();
    let mut tcp = TcpStream::connect(("127.0.0.1", gateway.https))
        .await
        .unwrap();
    tcp.write_all(b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n")
        .await
        .unwrap();
    let mut tls = gateway.tls_over(tcp, &[]).await;
    tls.write_all(get("/some", "").as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = tls.read_to_string(&mut answer).await;
    assert_eq!(status(&answer), "200", "{answer}");
}
