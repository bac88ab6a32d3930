//! WebSockets through the real gateway, and what passes itself off as one.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::upstream::{Reply, mirror, upstream};

const HANDSHAKE: &str = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn route(path: &str, auth: &str, url: &str, more: Value) -> Value {
    let mut proxy = json!({ "upstreams": [url], "websocket": true });
    for (key, value) in more.as_object().unwrap() {
        proxy[key] = value.clone();
    }
    json!({ "name": path.trim_matches('/'), "match": { "path": path }, "auth": auth, "proxy": proxy })
}

/// An upstream that sends every message back.
pub async fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut socket) = accept_async(socket).await else {
                    return;
                };
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        let _ = socket.send(message).await;
                    }
                }
            });
        }
    });
    format!("http://{address}")
}

pub type Socket = WebSocketStream<TcpStream>;

pub async fn connect(gateway: &Gateway, path: &str, key: Option<&str>) -> Result<Socket, Error> {
    let url = format!("ws://127.0.0.1:{}{path}", gateway.http);
    let mut request = url.into_client_request().unwrap();
    if let Some(key) = key {
        let value = format!("Bearer {key}").parse().unwrap();
        request.headers_mut().insert("authorization", value);
    }
    let stream = TcpStream::connect(("127.0.0.1", gateway.http))
        .await
        .unwrap();
    client_async(request, stream)
        .await
        .map(|(socket, _)| socket)
}

fn refused(result: Result<Socket, Error>) -> u16 {
    match result {
        Err(Error::Http(response)) => response.status().as_u16(),
        other => panic!("{other:?}"),
    }
}

pub async fn active(gateway: &Gateway, count: u32) {
    let line = format!("wasmwiz_websockets_active {count}\n");
    let client = gateway.client();
    eventually(&line, async || {
        let page = client
            .get(gateway.admin_url("/metrics"))
            .send()
            .await
            .ok()?;
        page.text().await.ok()?.contains(&line).then_some(())
    })
    .await;
}

/// Sends this and reads until the connection ends or `enough` of it is there.
async fn raw(gateway: &Gateway, bytes: &[u8], enough: impl Fn(&str) -> bool) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", gateway.http))
        .await
        .unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut got = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        loop {
            match socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => got.extend_from_slice(&buffer[..n]),
            }
            if enough(&String::from_utf8_lossy(&got)) {
                return;
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, reading)
        .await
        .unwrap();
    String::from_utf8_lossy(&got).into_owned()
}

fn has_head(text: &str) -> bool {
    text.contains("\r\n\r\n")
}

#[tokio::test]
async fn messages_go_both_ways_for_whoever_may() {
    let url = echo().await;
    let mut limited = route("/few", "key", &url, json!({}));
    limited["limits"] = json!({ "per_minute": 1 });
    let gateway = gateway()
        .route(route("/chat", "key", &url, json!({})))
        .route(limited)
        .route(
            json!({ "name": "no", "match": { "path": "/no" }, "auth": "none",
            "proxy": { "upstreams": [url] } }),
        )
        .start_plain();
    let key = gateway.admin_key();
    assert_eq!(refused(connect(&gateway, "/chat", None).await), 401);
    assert_eq!(refused(connect(&gateway, "/no", None).await), 403);

    let mut socket = connect(&gateway, "/chat", Some(&key)).await.unwrap();
    active(&gateway, 1).await;
    for size in [0, 1, 125, 126, 70_000, 1 << 20] {
        let message = Message::binary(vec![b'x'; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    active(&gateway, 0).await;

    let _first = connect(&gateway, "/few", Some(&key)).await.unwrap();
    assert_eq!(refused(connect(&gateway, "/few", Some(&key)).await), 429);
    // The line of a WebSocket stands in the log like any other.
    eventually("the log line", async || {
        gateway
            .stderr()
            .contains("\"status\":101")
            .then_some(())
            .or_else(|| gateway.stderr().contains("status=101").then_some(()))
    })
    .await;
}

#[tokio::test]
async fn over_tls_too() {
    let url = echo().await;
    let gateway = gateway()
        .route(route("/chat", "none", &url, json!({})))
        .start();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(gateway.dir().join("certs/development.crt")).unwrap();
    let cert = rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    roots.add(cert).unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = TcpStream::connect(("127.0.0.1", gateway.https))
        .await
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let request = format!("wss://localhost:{}/chat", gateway.https);
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::text("hello")
    );
}

#[tokio::test]
async fn a_silent_socket_and_an_old_one_end() {
    let url = echo().await;
    let gateway = gateway()
        // What bounds ordinary requests does not bound a socket.
        .set("server.timeouts.request_body", json!("1s"))
        .set("server.timeouts.request_head", json!("1s"))
        .route(route(
            "/idle",
            "none",
            &url,
            json!({ "websocket_idle_timeout": "2s", "read_timeout": "1s" }),
        ))
        .route(route(
            "/old",
            "none",
            &url,
            json!({ "websocket_lifetime_max": "3s" }),
        ))
        .start_plain();
    let mut idle = connect(&gateway, "/idle", None).await.unwrap();
    let mut old = connect(&gateway, "/old", None).await.unwrap();
    let start = tokio::time::Instant::now();
    let talking = tokio::spawn(async move {
        let mut answers = 0;
        loop {
            let sent = old.send(Message::text("x")).await;
            if sent.is_err() || !matches!(old.next().await, Some(Ok(_))) {
                return (answers, start.elapsed());
            }
            answers += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    // Longer than each of the timeouts of ordinary requests, but never silent for long.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        idle.send(Message::text("x")).await.unwrap();
        assert_eq!(idle.next().await.unwrap().unwrap(), Message::text("x"));
    }
    let silent = tokio::time::Instant::now();
    assert!(!matches!(idle.next().await, Some(Ok(_))));
    assert!(
        silent.elapsed() >= Duration::from_millis(1900),
        "{:?}",
        silent.elapsed()
    );
    let (answers, lived) = talking.await.unwrap();
    assert!(
        answers > 5 && lived >= Duration::from_millis(2900),
        "{answers} in {lived:?}"
    );
    active(&gateway, 0).await;
}

#[tokio::test]
async fn open_sockets_go_on_while_the_gateway_stops() {
    let url = echo().await;
    let mut gateway = gateway()
        .set("server.shutdown_grace", json!("3s"))
        .route(route("/chat", "none", &url, json!({})))
        .start_plain();
    let mut socket = connect(&gateway, "/chat", None).await.unwrap();
    gateway.terminate();
    eventually("it is stopping", async || {
        gateway.stderr().contains("shutting down").then_some(())
    })
    .await;
    socket.send(Message::text("still there?")).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::text("still there?")
    );
    assert!(gateway.wait().success(), "the grace period bounds it");
}

fn with_mirror(url: &str) -> Builder {
    gateway().route(route("/ws", "none", url, json!({}))).route(
        json!({ "name": "plain", "match": { "path": "/plain" }, "auth": "none",
            "proxy": { "upstreams": [url] } }),
    )
}

#[tokio::test]
async fn handshakes_that_are_none_go_no_further() {
    let app = upstream(mirror).await;
    let gateway = with_mirror(&app.url).start_plain();
    let good = format!("GET /ws HTTP/1.1\r\n{HANDSHAKE}\r\n");
    for (from, to, status) in [
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8", 426),
        ("dGhlIHNhbXBsZSBub25jZQ==", "short", 400),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400),
        ("GET", "POST", 400),
        ("Host: a\r\n", "Host: a\r\nContent-Length: 5\r\n", 400),
        (
            "Host: a\r\n",
            "Host: a\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        ("GET /ws", "GET /plain", 403),
    ] {
        let request = good.replacen(from, to, 1);
        let text = raw(&gateway, request.as_bytes(), has_head).await;
        assert!(
            text.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}\n{text}"
        );
        if status == 426 {
            let lower = text.to_lowercase();
            assert!(
                lower.contains("sec-websocket-version: 13\r\n")
                    && lower.contains("upgrade: websocket\r\n")
            );
        }
    }
    assert_eq!(app.hits(), 0);
}

#[tokio::test]
async fn other_upgrades_are_taken_away() {
    let app = upstream(mirror).await;
    let gateway = with_mirror(&app.url).start_plain();
    for path in ["/ws", "/plain"] {
        for upgrade in [
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
            // A WebSocket in name only: without `Connection: Upgrade` it is for another hop.
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n");
            let ends = |text: &str| text.matches("\r\n\r\n").count() >= 2;
            let text = raw(&gateway, request.as_bytes(), ends).await.to_lowercase();
            assert!(text.starts_with("http/1.1 200 "), "{text}");
            let mirrored = text.split_once("\r\n\r\n").unwrap().1;
            assert!(
                mirrored.starts_with(&format!("get {path} http/1.1\r\n")),
                "{mirrored}"
            );
            for name in ["\r\nupgrade:", "\r\nconnection:", "http2-settings"] {
                assert!(!mirrored.contains(name), "{name}:\n{mirrored}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_other_than_101_is_passed_and_a_101_nobody_asked_for_is_not() {
    let app = upstream(|request| match request.split(' ').nth(1) {
        Some("/ws") => Reply::Raw(
            b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        ),
        // Both are lies: the one was not asked, the other agrees to something else.
        _ => Reply::Last(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\nGET /secret"
                .to_vec(),
        ),
    })
    .await;
    let gateway = with_mirror(&app.url)
        .route(route("/lie", "none", &app.url, json!({})))
        .start_plain();
    let request = format!("GET /ws HTTP/1.1\r\n{HANDSHAKE}\r\n");
    let text = raw(&gateway, request.as_bytes(), |t| t.ends_with("no")).await;
    assert!(text.starts_with("HTTP/1.1 302 "), "{text}");
    assert!(text.to_lowercase().contains("connection: close"), "{text}");
    let fake = format!("GET /lie HTTP/1.1\r\n{HANDSHAKE}\r\n");
    for request in ["GET /plain HTTP/1.1\r\nHost: a\r\n\r\n", &fake] {
        let text = raw(&gateway, request.as_bytes(), has_head).await;
        assert!(text.starts_with("HTTP/1.1 502 "), "{request}\n{text}");
        assert!(!text.contains("/secret"));
    }
}

/// An upstream that notes all it is sent, and agrees to the upgrade when it is told to.
async fn hesitant() -> (
    String,
    tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
    std::sync::Arc<tokio::sync::Notify>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let agree = std::sync::Arc::new(tokio::sync::Notify::new());
    let wait = std::sync::Arc::clone(&agree);
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        loop {
            tokio::select! {
                n = socket.read(&mut buffer) => match n {
                    Ok(0) | Err(_) => return,
                    Ok(n) => { let _ = tell.send(buffer[..n].to_vec()); }
                },
                () = wait.notified() => {
                    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
                    socket.write_all(answer).await.unwrap();
                }
            }
        }
    });
    (url, told, agree)
}

#[tokio::test]
async fn nothing_a_client_sends_early_gets_through_before_the_101() {
    let (url, mut told, agree) = hesitant().await;
    let gateway = gateway()
        .route(route("/ws", "none", &url, json!({})))
        .start_plain();
    let mut client = TcpStream::connect(("127.0.0.1", gateway.http))
        .await
        .unwrap();
    let smuggled = "GET /secret HTTP/1.1\r\nHost: a\r\n\r\n";
    let request = format!("GET /ws HTTP/1.1\r\n{HANDSHAKE}\r\n{smuggled}");
    client.write_all(request.as_bytes()).await.unwrap();
    let head = told.recv().await.unwrap();
    let text = String::from_utf8(head).unwrap();
    assert!(
        text.ends_with("\r\n\r\n") && !text.contains("/secret"),
        "{text}"
    );
    let lower = text.to_lowercase();
    assert!(
        lower.contains("connection: upgrade\r\n") && lower.contains("upgrade: websocket\r\n"),
        "{text}"
    );
    client.write_all(b"more").await.unwrap();
    // Time for what must not happen; a gateway that waits sends nothing however long this is.
    let early = tokio::time::timeout(Duration::from_millis(300), told.recv()).await;
    assert!(early.is_err(), "{early:?}");
    agree.notify_one();
    let mut after = Vec::new();
    while after.len() < smuggled.len() + 4 {
        after.extend(told.recv().await.unwrap());
    }
    // From here on it is the socket's own protocol, whatever it looks like.
    assert_eq!(after, [smuggled.as_bytes(), b"more"].concat());
}
