//! Compressed answers.

use std::io::Read;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::gateway::{Gateway, gateway};

fn decode(coding: Option<&str>, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match coding {
        Some("gzip") => flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain),
        Some("br") => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain),
        Some("zstd") => zstd::stream::read::Decoder::new(bytes)
            .unwrap()
            .read_to_end(&mut plain),
        Some(other) => panic!("{other}"),
        None => Ok({
            plain.extend_from_slice(bytes);
            0
        }),
    }
    .unwrap();
    plain
}

async fn get(gateway: &Gateway, path: &str, accept: &str) -> (reqwest::header::HeaderMap, Vec<u8>) {
    let request = gateway
        .client()
        .get(gateway.url(path))
        .header("accept-encoding", accept);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    let headers = answer.headers().clone();
    let bytes = answer.bytes().await.unwrap().to_vec();
    if let Some(length) = headers.get("content-length") {
        assert_eq!(length.to_str().unwrap(), bytes.len().to_string());
    }
    (headers, bytes)
}

fn text(headers: &reqwest::header::HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .map(|value| value.to_str().unwrap().to_owned())
}

/// An upstream that answers every request with this, and closes.
async fn upstream(answer: Vec<Vec<u8>>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                let mut bytes = [0; 4096];
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut bytes).await {
                        Ok(read) if read > 0 => head.extend_from_slice(&bytes[..read]),
                        _ => return,
                    }
                }
                for piece in answer {
                    stream.write_all(&piece).await.unwrap();
                    stream.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
                stream.shutdown().await.unwrap();
            });
        }
    });
    port
}

#[tokio::test]
async fn fixed_answers_of_guests_and_of_upstreams() {
    let long = "All work and no play. ".repeat(2_000);
    let fixed = &long[..40_000];
    let known = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"v1\"\r\nContent-Length: {}\r\n\r\n{long}",
        long.len()
    );
    let known = upstream(vec![known.into_bytes()]).await;
    let mut pieces = vec![
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec(),
    ];
    for piece in long.as_bytes().chunks(700) {
        let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
        chunk.extend_from_slice(piece);
        chunk.extend_from_slice(b"\r\n");
        pieces.push(chunk);
    }
    pieces.push(b"0\r\n\r\n".to_vec());
    let chunked = upstream(pieces).await;
    let proxy = |name: &str, port: u16| {
        json!({ "name": name, "match": { "path": format!("/{name}") }, "auth": "none",
            "proxy": { "upstreams": [format!("http://127.0.0.1:{port}")] } })
    };
    let gateway = gateway()
        .set("compression.enabled", json!(true))
        .route(json!({ "name": "fixed", "match": { "path": "/fixed" }, "auth": "none", "respond": { "body": fixed } }))
        .route(json!({ "name": "off", "match": { "path": "/off" }, "auth": "none", "compress": false, "respond": { "body": fixed } }))
        .route(json!({ "name": "short", "match": { "path": "/short" }, "auth": "none", "respond": { "body": "short" } }))
        .route(proxy("known", known))
        .route(proxy("chunked", chunked))
        .start();
    for (path, whole) in [("/fixed", fixed), ("/known", &long), ("/chunked", &long)] {
        for (accept, coding) in [
            ("gzip", "gzip"),
            ("gzip, br", "br"),
            ("gzip, br, zstd", "zstd"),
            ("zstd;q=0.1, gzip;q=0.2", "gzip"),
        ] {
            let (headers, bytes) = get(&gateway, path, accept).await;
            assert_eq!(
                text(&headers, "content-encoding").as_deref(),
                Some(coding),
                "{path}"
            );
            assert_eq!(text(&headers, "vary").as_deref(), Some("accept-encoding"));
            assert!(
                bytes.len() < whole.len() / 2,
                "{path} {coding}: {}",
                bytes.len()
            );
            assert!(
                decode(Some(coding), &bytes) == whole.as_bytes(),
                "{path} {coding}"
            );
            if path == "/known" {
                assert_eq!(text(&headers, "etag").as_deref(), Some("W/\"v1\""));
            }
        }
        let (headers, bytes) = get(&gateway, path, "identity").await;
        assert_eq!(text(&headers, "content-encoding"), None);
        assert_eq!(
            text(&headers, "vary").as_deref(),
            Some("accept-encoding"),
            "a cache must know"
        );
        assert!(bytes == whole.as_bytes());
    }
    let (headers, bytes) = get(&gateway, "/off", "gzip").await;
    assert_eq!(
        (text(&headers, "content-encoding"), text(&headers, "vary")),
        (None, None)
    );
    assert_eq!(bytes, fixed.as_bytes());
    let (headers, _) = get(&gateway, "/short", "gzip").await;
    assert_eq!(text(&headers, "content-encoding"), None);
    for path in ["/fixed", "/known"] {
        let request = gateway
            .client()
            .head(gateway.url(path))
            .header("accept-encoding", "gzip");
        let head = request.send().await.unwrap();
        assert_eq!(text(head.headers(), "content-encoding"), None);
        assert_eq!(
            text(head.headers(), "vary").as_deref(),
            Some("accept-encoding")
        );
    }
    // Over HTTP/1.1 too, whose bodies are framed in another way.
    let client = gateway.client_builder().http1_only().build().unwrap();
    for (path, whole) in [("/fixed", fixed), ("/chunked", &long), ("/known", &long)] {
        for _ in 0..2 {
            let answer = client
                .get(gateway.url(path))
                .header("accept-encoding", "zstd")
                .send()
                .await
                .unwrap();
            assert_eq!(
                text(answer.headers(), "content-encoding").as_deref(),
                Some("zstd")
            );
            let bytes = answer.bytes().await.unwrap();
            assert!(decode(Some("zstd"), &bytes) == whole.as_bytes(), "{path}");
        }
    }
}

/// Writes a CGI head and "first", waits a long time, and goes on.
const STREAMER: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 512) "Content-Type: text/event-stream\n\nfirst\n")
  (func (export "_start")
    (i32.store (i32.const 400) (i32.const 512))
    (i32.store (i32.const 404) (i32.const 39))
    (drop (call $write (i32.const 1) (i32.const 400) (i32.const 1) (i32.const 408)))
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256)))))"#;

#[tokio::test]
async fn what_a_guest_streams_arrives_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let guest = dir.path().join("streamer.wat");
    std::fs::write(&guest, STREAMER).unwrap();
    let gateway = gateway()
        .set("sandbox.execution_timeout", json!("1h"))
        .route(json!({ "name": "events", "match": { "path": "/events" }, "auth": "none", "compress": true,
            "execute": { "file": guest, "abi": "wagi" } }))
        .start();
    for coding in ["gzip", "br", "zstd"] {
        let request = gateway
            .client()
            .get(gateway.url("/events"))
            .header("accept-encoding", coding);
        let mut answer = request.send().await.unwrap();
        assert_eq!(
            text(answer.headers(), "content-encoding").as_deref(),
            Some(coding)
        );
        // The guest sleeps for an hour: what comes now was not held back.
        let mut bytes = Vec::new();
        let mut plain = Vec::new();
        while plain != b"first\n" {
            bytes.extend_from_slice(&answer.chunk().await.unwrap().unwrap());
            plain.clear();
            // The stream has not ended, which the decoder minds.
            let _ = match coding {
                "gzip" => flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain),
                "br" => brotli::Decompressor::new(&bytes[..], 4096).read_to_end(&mut plain),
                _ => zstd::stream::read::Decoder::new(&bytes[..])
                    .unwrap()
                    .read_to_end(&mut plain),
            };
        }
    }
}

/// How an HTTP/2 upstream ends its answer.
const ENDS: [&str; 5] = ["data", "empty", "trailers", "announced", "head"];

/// An HTTP/2 upstream that answers with this text in pieces, and ends as the path says.
async fn h2_upstream(text: String) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let text = text.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let end = request.uri().path().trim_start_matches('/').to_owned();
                    tokio::spawn(h2_answer(end, text.clone(), respond));
                }
            });
        }
    });
    url
}

async fn h2_answer(end: String, text: String, mut respond: h2::server::SendResponse<bytes::Bytes>) {
    let mut head = http::Response::builder().header("content-type", "text/plain");
    if end == "announced" {
        head = head.header("trailer", "x-trailer");
    }
    let head = head.body(()).unwrap();
    if end == "head" {
        respond.send_response(head, true).unwrap();
        return;
    }
    let mut stream = respond.send_response(head, false).unwrap();
    let pieces: Vec<&[u8]> = text.as_bytes().chunks(700).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let is_last = at + 1 == pieces.len() && end == "data";
        let piece = bytes::Bytes::copy_from_slice(piece);
        stream.send_data(piece, is_last).unwrap();
    }
    match end.as_str() {
        "empty" => stream.send_data(bytes::Bytes::new(), true).unwrap(),
        "trailers" | "announced" => {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-trailer", "1".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        }
        _ => {}
    }
}

#[tokio::test]
async fn answers_of_http2_upstreams_come_whole_however_they_end() {
    let long = "All work and no play. ".repeat(1_000);
    let url = h2_upstream(long.clone()).await;
    let gateway = gateway()
        .set("compression.enabled", json!(true))
        .route(
            json!({ "name": "h2", "match": { "path": "/*" }, "auth": "none",
            "proxy": { "upstreams": [url], "protocol": "http2" } }),
        )
        .start();
    let http1 = gateway.client_builder().http1_only().build().unwrap();
    for client in [gateway.client(), http1] {
        for end in ENDS {
            for coding in ["gzip", "br", "zstd"] {
                let request = client
                    .get(gateway.url(&format!("/{end}")))
                    .header("accept-encoding", coding);
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), 200, "{end}");
                let coded = text(answer.headers(), "content-encoding");
                // The end of a body with trailers is not ours to write, where that is known.
                let expected = Some(coding).filter(|_| !matches!(end, "announced" | "head"));
                assert_eq!(coded.as_deref(), expected, "{end}");
                let bytes = answer.bytes().await.unwrap();
                let whole = if end == "head" { "" } else { &long };
                assert!(
                    decode(expected, &bytes) == whole.as_bytes(),
                    "{end} {coding}"
                );
            }
        }
    }
}

#[tokio::test]
async fn what_has_not_changed_has_the_tag_of_the_compressed_answer() {
    let answer = b"HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\n\r\n".to_vec();
    let tagged = upstream(vec![answer]).await;
    let bare = upstream(vec![b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()]).await;
    let proxy = |name: &str, port: u16, compress: bool| {
        json!({ "name": name, "match": { "path": format!("/{name}") }, "auth": "none", "compress": compress,
            "proxy": { "upstreams": [format!("http://127.0.0.1:{port}")] } })
    };
    let gateway = gateway()
        .route(proxy("tagged", tagged, true))
        .route(proxy("bare", bare, true))
        .route(proxy("off", tagged, false))
        .start();
    let http1 = gateway.client_builder().http1_only().build().unwrap();
    for client in [gateway.client(), http1] {
        for (path, accept, tag, vary) in [
            ("/tagged", "gzip", Some("W/\"v1\""), Some("accept-encoding")),
            (
                "/tagged",
                "identity",
                Some("\"v1\""),
                Some("accept-encoding"),
            ),
            ("/bare", "gzip", None, None),
            ("/off", "gzip", Some("\"v1\""), None),
        ] {
            let request = client
                .get(gateway.url(path))
                .header("if-none-match", "W/\"v1\"")
                .header("accept-encoding", accept);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 304, "{path}");
            let headers = answer.headers().clone();
            assert_eq!(text(&headers, "etag").as_deref(), tag, "{path} {accept}");
            assert_eq!(text(&headers, "vary").as_deref(), vary, "{path} {accept}");
            assert_eq!(text(&headers, "content-encoding"), None, "{path}");
            assert!(answer.bytes().await.unwrap().is_empty());
        }
    }
}
