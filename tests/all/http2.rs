//! HTTP/2 frames that no honest client sends, byte for byte.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::gateway::{Gateway, gateway};
use crate::support::recorder::Recorder;
use crate::support::{PATIENCE, eventually};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A connection whose preface and settings are sent.
async fn connect(gateway: &Gateway) -> TlsStream<TcpStream> {
    connect_with(gateway, &[]).await
}

/// The same, with these settings.
pub async fn connect_with(gateway: &Gateway, settings: &[(u16, u32)]) -> TlsStream<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // A client that does not read has not read much.
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let address = format!("127.0.0.1:{}", gateway.https).parse().unwrap();
    let tcp = socket.connect(address).await.unwrap();
    let mut tls = gateway.tls_over(tcp, &[b"h2"]).await;
    let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings: Vec<u8> = settings
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    begin.extend(frame(SETTINGS, 0, 0, &settings));
    tls.write_all(&begin).await.unwrap();
    tls
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK: literals without indexing and without Huffman coding (RFC 7541 section 6.2.2).
pub fn block(fields: Fields<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(text.len(), &mut block);
            block.extend(text.bytes());
        }
    }
    block
}

fn integer(mut value: usize, into: &mut Vec<u8>) {
    if value < 127 {
        return into.push(u8::try_from(value).unwrap());
    }
    into.push(127);
    value -= 127;
    while value >= 128 {
        into.push(u8::try_from(value % 128 + 128).unwrap());
        value /= 128;
    }
    into.push(u8::try_from(value).unwrap());
}

const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "localhost"),
    (":path", "/up/x"),
];

/// What came first of what ends a stream.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// An answer, with the first byte of its header block: the status, indexed.
    Answer(u8),
    Reset,
    GoAway,
    Closed,
}

const OK: Outcome = Outcome::Answer(0x88);

pub async fn next_frame(tls: &mut TlsStream<TcpStream>) -> Option<(u8, u8, Vec<u8>)> {
    let read = async {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        tls.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], payload))
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("something comes")
}

async fn outcome(tls: &mut TlsStream<TcpStream>) -> Outcome {
    loop {
        match next_frame(tls).await {
            Some((HEADERS, _, payload)) => return Outcome::Answer(payload[0]),
            Some((RST_STREAM, ..)) => return Outcome::Reset,
            Some((GOAWAY, ..)) => return Outcome::GoAway,
            Some(_) => {}
            None => return Outcome::Closed,
        }
    }
}

fn proxying(upstream: &Recorder) -> Gateway {
    gateway()
        .route(
            json!({ "name": "up", "match": { "path": "/up/*" }, "auth": "none",
            "proxy": { "upstreams": [upstream.url()] } }),
        )
        .route(
            json!({ "name": "in", "match": { "path": "/in", "methods": ["POST"] }, "auth": "none",
            "execute": { "file": "examples/guests/echo.wasm", "abi": "command" } }),
        )
        .set("server.bounds.requests_per_connection_max", json!(200))
        .start()
}

#[tokio::test]
async fn malformed_requests_are_no_requests() {
    let upstream = Recorder::start();
    let gateway = proxying(&upstream);
    let mut fine = connect(&gateway).await;
    fine.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&GET)))
        .await
        .unwrap();
    assert_eq!(outcome(&mut fine).await, OK);
    let seen = upstream.text();
    assert!(seen.contains("GET /up/x HTTP/1.1"));

    let with = |more: Fields<'static>| [&GET, more].concat();
    let without = |name: &str| -> Vec<(&'static str, &'static str)> {
        GET.iter().filter(|(n, _)| *n != name).copied().collect()
    };
    let replaced = |name: &str, value: &'static str| -> Vec<(&'static str, &'static str)> {
        let change =
            |(n, v): &(&'static str, &'static str)| (*n, if *n == name { value } else { v });
        GET.iter().map(change).collect()
    };
    for fields in [
        without(":method"),
        without(":scheme"),
        without(":path"),
        without(":authority"),
        replaced(":path", ""),
        replaced(":path", "up/x"),
        replaced(":path", "/up/x y"),
        replaced(":path", "/up/x\r\nX: y"),
        replaced(":path", "https://other/up/x"),
        replaced(":authority", "user@localhost"),
        replaced(":authority", "a b"),
        replaced(":method", "G T"),
        replaced(":scheme", "ftp"),
        with(&[(":path", "/up/y")]),
        with(&[(":authority", "other")]),
        with(&[("x", "y"), (":path", "/up/y")]),
        with(&[(":unknown", "x")]),
        with(&[(":status", "200")]),
        with(&[("host", "other")]),
        with(&[("X-Upper", "x")]),
        with(&[("x y", "x")]),
        with(&[("x:y", "x")]),
        with(&[("", "x")]),
        with(&[("x", "a\r\nb: c")]),
        with(&[("x", "a\0b")]),
        with(&[("x", "a\nb")]),
        with(&[("x", " a")]),
        with(&[("x", "a\t")]),
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("keep-alive", "1")]),
        with(&[("proxy-connection", "close")]),
        with(&[("upgrade", "websocket")]),
        with(&[("te", "gzip")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "0"), ("content-length", "5")]),
        with(&[("content-length", "-1")]),
    ] {
        let mut tls = connect(&gateway).await;
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        tls.write_all(&bytes).await.unwrap();
        let outcome = outcome(&mut tls).await;
        assert_ne!(outcome, OK, "{fields:?}");
    }
    assert_eq!(upstream.text(), seen, "nothing of it was passed on");
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_it_says_reaches_no_one_whole() {
    let upstream = Recorder::start();
    let gateway = proxying(&upstream);
    for path in ["/up/x", "/in"] {
        for body in ["abc", "abcdefg"] {
            let mut tls = connect(&gateway).await;
            let fields = [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", path),
                ("content-length", "5"),
            ];
            let mut bytes = frame(HEADERS, END_HEADERS, 1, &block(&fields));
            bytes.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
            tls.write_all(&bytes).await.unwrap();
            let outcome = outcome(&mut tls).await;
            assert_ne!(outcome, OK, "{path} {body}");
        }
    }
    assert!(!upstream.text().contains("abcde"), "{}", upstream.text());
}

#[tokio::test]
async fn a_body_that_does_not_come_ends_its_request() {
    let (upstream, other) = (Recorder::start(), Recorder::start());
    let gateway = gateway()
        .route(
            json!({ "name": "up", "match": { "path": "/up/*" }, "auth": "none",
            "proxy": { "upstreams": [upstream.url(), other.url()], "read_timeout": "1h",
                "ejection": { "failures": 1 } } }),
        )
        .route(
            json!({ "name": "patient", "match": { "path": "/patient" }, "auth": "none",
            "limits": { "body_timeout": "1h" },
            "proxy": { "upstreams": [upstream.url()], "read_timeout": "100ms" } }),
        )
        .set("server.timeouts.request_body", json!("500ms"))
        .start();
    let post = |path: &'static str| {
        let fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", path),
        ];
        frame(HEADERS, END_HEADERS, 1, &block(&fields))
    };
    // Nothing of it, and a part of it.
    for part in [&b""[..], b"part"] {
        let mut tls = connect(&gateway).await;
        tls.write_all(&post("/up/x")).await.unwrap();
        if !part.is_empty() {
            tls.write_all(&frame(DATA, 0, 1, part)).await.unwrap();
        }
        assert_eq!(outcome(&mut tls).await, Outcome::Reset);
    }
    eventually("it is logged", async || {
        let log = gateway.stderr();
        log.contains("a request was reset").then_some(())
    })
    .await;
    let requests = "wasmwiz_requests_total{method=\"POST\",route=\"up\",status=\"4xx\"}";
    assert_eq!(gateway.metric(requests).await, Some(2.0));
    // An upstream that is silent because the client is has not failed.
    for _ in 0..2 {
        let mut tls = connect(&gateway).await;
        tls.write_all(&post("/patient")).await.unwrap();
        assert_ne!(outcome(&mut tls).await, OK);
    }
    for url in [upstream.url(), other.url()] {
        let server = url.trim_start_matches("http://");
        let ejections = format!("wasmwiz_upstream_ejections_total{{upstream=\"{url}\"}}");
        let ejections = match gateway.metric(&ejections).await {
            Some(ejections) => ejections,
            None => panic!("{server} has no row"),
        };
        assert_eq!(ejections, 0.0);
    }
}

#[tokio::test]
async fn floods_end_the_connection() {
    let gateway = gateway()
        .set("server.bounds.h2_resets_per_second_max", json!(10))
        .start();
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/fn/echo"),
    ];
    let open = block(&fields);
    let mut resets = Vec::new();
    for n in 0..1000u32 {
        resets.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, &open));
        resets.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    let mut continuations = frame(HEADERS, 0, 1, &open);
    continuations.extend(frame(CONTINUATION, 0, 1, &block(&[("x", "y")])).repeat(5000));
    let mut empty = frame(HEADERS, END_HEADERS, 1, &open);
    empty.extend(frame(DATA, 0, 1, &[]).repeat(5000));
    for (kind, bytes) in [
        ("resets", resets),
        ("pings", frame(PING, 0, 0, &[0; 8]).repeat(5000)),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(5000)),
        ("continuations", continuations),
        ("empty frames", empty),
    ] {
        let mut tls = connect(&gateway).await;
        // The other end may be gone before all is sent: that is the point.
        let _ = tls.write_all(&bytes).await;
        let _ = tls.flush().await;
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, tls.read_to_end(&mut rest));
        let _ = closed
            .await
            .unwrap_or_else(|_| panic!("{kind}: the connection stays"));
    }
    let page = gateway.client().get(gateway.admin_url("/metrics")).send();
    let page = page.await.unwrap().text().await.unwrap();
    for kind in ["resets", "control", "continuations"] {
        let line = format!("wasmwiz_http2_floods_total{{kind=\"{kind}\"}}");
        assert!(page.contains(&line), "{kind}\n{page}");
    }
    let health = gateway.client().get(gateway.url("/health")).send().await;
    assert_eq!(health.unwrap().status(), 200);
}

#[tokio::test]
async fn streams_and_headers_are_bounded() {
    let gateway = proxying(&Recorder::start());
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/in"),
    ];
    let mut tls = connect(&gateway).await;
    for n in 0..101u32 {
        let bytes = frame(HEADERS, END_HEADERS, 2 * n + 1, &block(&fields));
        tls.write_all(&bytes).await.unwrap();
    }
    // The 101st is refused; the others wait for their bodies.
    assert_eq!(outcome(&mut tls).await, Outcome::Reset);

    let mut tls = connect(&gateway).await;
    let large = "x".repeat(15_000);
    let mut bytes = frame(HEADERS, END_STREAM, 1, &block(&GET));
    for n in 0..4 {
        let flags = if n == 3 { END_HEADERS } else { 0 };
        bytes.extend(frame(
            CONTINUATION,
            flags,
            1,
            &block(&[("x-large", &large)]),
        ));
    }
    tls.write_all(&bytes).await.unwrap();
    assert_ne!(outcome(&mut tls).await, OK);
}

#[tokio::test]
async fn a_connection_says_goodbye_after_its_last_request() {
    let gateway = gateway()
        .set("server.bounds.requests_per_connection_max", json!(3))
        .set("server.timeouts.keepalive", json!("1s"))
        .start();
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/health"),
    ];
    let mut tls = connect(&gateway).await;
    for n in 0..3u32 {
        let bytes = frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * n + 1,
            &block(&fields),
        );
        tls.write_all(&bytes).await.unwrap();
    }
    let (mut answers, mut goodbyes) = (0, 0);
    // A client that does not answer the goodbye is closed all the same.
    while let Some((kind, ..)) = next_frame(&mut tls).await {
        answers += u32::from(kind == HEADERS);
        goodbyes += u32::from(kind == GOAWAY);
    }
    assert_eq!(answers, 3);
    assert!(goodbyes >= 1);
    eventually("the connection is gone", async || {
        let page = gateway.client().get(gateway.admin_url("/metrics")).send();
        let page = page.await.ok()?.text().await.ok()?;
        page.contains("wasmwiz_connections ").then_some(())
    })
    .await;
}
