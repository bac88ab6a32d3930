//! Clients that are slow, or do nothing at all, and how many of them there may be.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::http2::{END_HEADERS, END_STREAM, HEADERS, block, connect_with, frame, next_frame};
use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::upstream::{Reply, upstream};
use crate::support::{PATIENCE, eventually};

const GET: &[u8] = b"GET /fixed HTTP/1.1\r\nHost: a\r\n\r\n";

fn fixed() -> Builder {
    gateway().route(
        json!({ "name": "fixed", "match": { "path": "/fixed" }, "auth": "none",
            "respond": { "body": "fixed" } }),
    )
}

/// All that comes until the other end closes.
async fn until_closed(socket: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut all));
    let _ = read.await.expect("the connection is closed");
    String::from_utf8_lossy(&all).into_owned()
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let gateway = fixed()
        .set("server.timeouts.tls_handshake", json!("300ms"))
        .start();
    // Nothing, and the beginning of a ClientHello.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut socket = connect(gateway.https).await;
        socket.write_all(bytes).await.unwrap();
        assert_eq!(until_closed(&mut socket).await, "");
    }
    let timeouts = "wasmwiz_tls_handshakes_total{result=\"timeout\"}";
    eventually(timeouts, async || {
        (gateway.metric(timeouts).await? >= 2.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_between_requests_has_its_time() {
    let gateway = fixed()
        .set("server.timeouts.keepalive", json!("500ms"))
        .set("server.timeouts.request_head", json!("300ms"))
        .start_plain();
    let mut socket = connect(gateway.http).await;
    socket.write_all(GET).await.unwrap();
    let answer = until_closed(&mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // A client that asks for longer gets no more.
    let mut socket = connect(gateway.http).await;
    let keep = b"GET /fixed HTTP/1.1\r\nHost: a\r\nKeep-Alive: timeout=3600\r\n\r\n";
    socket.write_all(keep).await.unwrap();
    until_closed(&mut socket).await;

    let mut tls = connect_with(&gateway, &[]).await;
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/fixed"),
    ];
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
    tls.write_all(&ask).await.unwrap();
    let mut answers = 0;
    while let Some((kind, ..)) = next_frame(&mut tls).await {
        answers += u32::from(kind == HEADERS);
    }
    assert_eq!(answers, 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_waited_for() {
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 16777216\r\n\r\n".to_vec();
    answer.resize(answer.len() + 16_777_216, b'x');
    let large = upstream(move |_| Reply::Raw(answer.clone())).await;
    let gateway = fixed()
        .set("server.timeouts.write", json!("500ms"))
        .route(
            json!({ "name": "large", "match": { "path": "/large" }, "auth": "none",
            "proxy": { "upstreams": [large.url] } }),
        )
        .start_plain();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let address = format!("127.0.0.1:{}", gateway.http).parse().unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    socket
        .write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    eventually("the request has ended", async || {
        // In this order: it is active when it has reached the upstream, not when the page is made before.
        let begun = large.hits() == 1;
        let active = gateway.metric("wasmwiz_requests_active").await?;
        // The one that asks is one.
        (begun && active <= 1.0).then_some(())
    })
    .await;
    let got = until_closed(&mut socket).await;
    assert!(got.len() < 16_777_216, "it was cut off");
}

/// Whether a new connection is served.
async fn is_served(gateway: &Gateway) -> bool {
    let mut socket = connect(gateway.http).await;
    let ask = b"GET /fixed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let _ = socket.write_all(ask).await;
    until_closed(&mut socket).await.starts_with("HTTP/1.1 200")
}

#[tokio::test]
async fn there_are_so_many_connections_in_all() {
    let gateway = fixed()
        .set("server.connections_max", json!(4))
        .set("server.timeouts.request_head", json!("5m"))
        .start_plain();
    let held = std::sync::Mutex::new(Vec::new());
    // The gateway's own check at start may still have a place, so one more is held each time.
    eventually("all places are taken", async || {
        let connection = connect(gateway.http).await;
        held.lock().unwrap().push(connection);
        (!is_served(&gateway).await).then_some(())
    })
    .await;
    // Operators get in all the same.
    let refused = "wasmwiz_connections_refused_total{reason=\"total\"}";
    assert!(gateway.metric(refused).await.unwrap() >= 1.0);
    drop(held);
    eventually("there is room again", async || {
        is_served(&gateway).await.then_some(())
    })
    .await;
}
