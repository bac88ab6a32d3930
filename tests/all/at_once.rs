//! How many requests there may be at a time.

use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::http2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, WINDOW_UPDATE, block, connect_with, frame, next_frame,
};
use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::upstream::{Reply, upstream};
use crate::support::{PATIENCE, eventually};

const INITIAL_WINDOW_SIZE: u16 = 4;

fn fixed() -> Builder {
    gateway().route(
        json!({ "name": "fixed", "match": { "path": "/fixed" }, "auth": "none",
            "respond": { "body": "fixed" } }),
    )
}

/// Asks over a connection of its own, from this address of this machine.
async fn ask(gateway: &Gateway, from: &str, path: &str, fields: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let address = format!("127.0.0.1:{}", gateway.http).parse().unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer));
    let _ = read.await.expect("an answer");
    answer
}

/// Waits until no more than these requests count: one counts for a moment after its client has the answer.
async fn none_but(held: u32, gateway: &Gateway) {
    eventually("the others have ended", async || {
        let active = gateway.metric("wasmwiz_requests_active").await?;
        // The one that asks is one, but does not count: it is the admin listener's.
        (active <= f64::from(held) + 1.0).then_some(())
    })
    .await;
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
    ];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))
}

#[tokio::test]
async fn one_client_can_not_have_all_requests() {
    let go = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let slow = upstream(move |_| Reply::Wait(Arc::clone(&wait), answer.clone())).await;
    let gateway = fixed()
        .route(
            json!({ "name": "slow", "match": { "path": "/slow" }, "auth": "none",
            "proxy": { "upstreams": [slow.url] } }),
        )
        .set("server.requests_per_address_max", json!(2))
        .set("server.requests_max", json!(3))
        .set("server.trusted_proxies", json!(["127.0.0.7"]))
        .start_plain();
    let (mine, other, proxy) = ("127.0.0.1", "127.0.0.2", "127.0.0.7");
    let spoken_for = "X-Forwarded-For: 127.0.0.1\r\n";
    let held = async {
        let (a, b) = tokio::join!(
            ask(&gateway, mine, "/slow", ""),
            // A trusted proxy's requests are those of whom it names.
            ask(&gateway, proxy, "/slow", spoken_for),
        );
        assert!(a.starts_with("HTTP/1.1 200") && b.starts_with("HTTP/1.1 200"));
    };
    let others = async {
        eventually("both are there", async || (slow.hits() == 2).then_some(())).await;
        for (from, path, fields, expected) in [
            (mine, "/fixed", "", "429"),
            // The gateway says how it is to anybody.
            (mine, "/health", "", "200"),
            (proxy, "/fixed", spoken_for, "429"),
            (other, "/fixed", "", "200"),
            (proxy, "/fixed", "", "200"),
        ] {
            none_but(2, &gateway).await;
            let answer = ask(&gateway, from, path, fields).await;
            let status = answer.split(' ').nth(1);
            assert_eq!(status, Some(expected), "{from} {path} {fields}\n{answer}");
            if expected == "429" {
                assert!(answer.contains("too_many_at_once"), "{answer}");
                let head = answer.to_ascii_lowercase();
                assert!(head.contains("retry-after: 1\r\n"), "{answer}");
            }
        }
        none_but(2, &gateway).await;
        let third = ask(&gateway, other, "/slow", "");
        let full = async {
            eventually("the third is there", async || {
                (slow.hits() == 3).then_some(())
            })
            .await;
            let answer = ask(&gateway, "127.0.0.3", "/fixed", "").await;
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(answer.contains("overloaded"), "{answer}");
            // Who asks for its health is told, so that no balancer takes it out for being busy.
            let answer = ask(&gateway, "127.0.0.3", "/health", "").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            let refused = |reason: &str| {
                let name = format!("wasmwiz_requests_refused_total{{reason=\"{reason}\"}}");
                let gateway = &gateway;
                async move { gateway.metric(&name).await }
            };
            assert_eq!(refused("address").await, Some(2.0));
            assert_eq!(refused("total").await, Some(1.0));
            for _ in 0..3 {
                go.notify_one();
            }
        };
        let (third, ()) = tokio::join!(third, full);
        assert!(third.starts_with("HTTP/1.1 200"), "{third}");
    };
    tokio::join!(held, others);
    none_but(0, &gateway).await;
    let answer = ask(&gateway, mine, "/fixed", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn an_answer_counts_until_its_client_has_taken_it() {
    let gateway = fixed()
        .set("server.requests_per_address_max", json!(3))
        .start_plain();
    let mut tls = connect_with(&gateway, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    for stream in [1, 3, 5] {
        tls.write_all(&get(stream, "/fixed")).await.unwrap();
    }
    let mut heads = 0;
    while heads < 3 {
        let (kind, ..) = next_frame(&mut tls).await.unwrap();
        assert_ne!(kind, DATA, "there is no window");
        heads += u32::from(kind == HEADERS);
    }
    let answer = ask(&gateway, "127.0.0.1", "/fixed", "").await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    let answer = ask(&gateway, "127.0.0.2", "/fixed", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // One is taken, and one given up.
    let window = frame(WINDOW_UPDATE, 0, 1, &100u32.to_be_bytes());
    tls.write_all(&window).await.unwrap();
    while next_frame(&mut tls).await.unwrap().0 != DATA {}
    let reset = frame(3, 0, 3, &8u32.to_be_bytes());
    tls.write_all(&reset).await.unwrap();
    eventually("there is room again", async || {
        let answer = ask(&gateway, "127.0.0.1", "/fixed", "").await;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

/// A gateway with an answer far larger than what is buffered on the way.
async fn with_large_answers() -> Builder {
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 16777216\r\n\r\n".to_vec();
    answer.resize(answer.len() + 16_777_216, b'x');
    let large = upstream(move |_| Reply::Raw(answer.clone())).await;
    gateway()
        .route(
            json!({ "name": "large", "match": { "path": "/large" }, "auth": "none",
            "proxy": { "upstreams": [large.url] } }),
        )
        // So that nothing else ends the connection.
        .set("server.timeouts.keepalive", json!("1h"))
}

const ALL: u32 = i32::MAX as u32;

/// A connection of a client that allows everything to be sent, and reads nothing of it.
async fn connect_and_read_nothing(gateway: &Gateway) -> TlsStream<TcpStream> {
    let mut tls = connect_with(gateway, &[(INITIAL_WINDOW_SIZE, ALL)]).await;
    let window = frame(WINDOW_UPDATE, 0, 0, &(ALL - 65_535).to_be_bytes());
    tls.write_all(&window).await.unwrap();
    tls
}

#[tokio::test]
async fn a_client_that_takes_nothing_loses_its_connection() {
    let gateway = with_large_answers()
        .await
        .set("server.timeouts.write", json!("1s"))
        .start();
    let mut tls = connect_and_read_nothing(&gateway).await;
    tls.write_all(&get(1, "/large")).await.unwrap();
    tls.flush().await.unwrap();
    // Whoever asks for the page has a connection too. What the system still holds of the answer, it goes on
    // offering, so the client itself does not see the end.
    let handshakes = "wasmwiz_tls_handshakes_total{result=\"ok\"}";
    eventually("it was there", async || {
        (gateway.metric(handshakes).await? == 1.0).then_some(())
    })
    .await;
    eventually("it is closed", async || {
        let open = gateway.metric("wasmwiz_connections").await?;
        (open == 1.0).then_some(())
    })
    .await;
    let health = gateway.client().get(gateway.url("/health")).send().await;
    assert_eq!(health.unwrap().status(), 200);
}

#[tokio::test]
async fn who_takes_nothing_and_asks_for_more_than_it_may_loses_its_connection_at_once() {
    let gateway = with_large_answers()
        .await
        .set("server.timeouts.write", json!("1h"))
        .set("server.requests_per_address_max", json!(3))
        .start();
    let asking = async {
        let mut tls = connect_and_read_nothing(&gateway).await;
        for stream in [1, 3, 5] {
            tls.write_all(&get(stream, "/large")).await.unwrap();
        }
        // Once nothing more can be written, one stream too many ends it.
        for stream in (7..).step_by(2) {
            if tls.write_all(&get(stream, "/large")).await.is_err() || tls.flush().await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, asking);
    ended.await.expect("the connection is closed");
    let health = gateway.client().get(gateway.url("/health")).send().await;
    assert_eq!(health.unwrap().status(), 200);
}
