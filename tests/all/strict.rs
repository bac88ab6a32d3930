//! HTTP that could be read in two ways is refused, and nothing of it goes on: raw bytes over real
//! sockets, with an upstream that records what it gets.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::PATIENCE;
use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::recorder::Recorder;

/// A request that must never be answered, behind one that is refused.
const SMUGGLED: &str = "GET /up/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

fn routes(upstream: &Recorder) -> Builder {
    gateway()
        .route(
            json!({ "name": "up", "match": { "path": "/up/*" }, "auth": "none",
            "proxy": { "upstreams": [upstream.url()] } }),
        )
        .route(
            json!({ "name": "in", "match": { "path": "/in", "methods": ["POST"] }, "auth": "none",
            "execute": { "file": "examples/guests/echo.wasm", "abi": "command" } }),
        )
        .route(
            json!({ "name": "fixed", "match": { "path": "/fixed" }, "auth": "none",
            "respond": { "body": "fixed" } }),
        )
}

/// Sends bytes and reads until the connection is closed.
pub async fn exchange(port: u16, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer));
    // A reset instead of an orderly end may follow what was not read any more.
    let _ = read.await.expect("the connection is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

/// How many answers there are: a status line has a number behind the version.
fn answers(text: &str) -> usize {
    let behind = text.split("HTTP/1.1 ").skip(1);
    behind
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        .count()
}

/// One answer with this status, in our form, and the connection closed behind it.
fn refused(answer: &str, status: u16, code: &str, what: &str) {
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "{what}\n{answer}"
    );
    assert_eq!(answers(answer), 1, "{what}\n{answer}");
    let head = answer.to_ascii_lowercase();
    for field in [
        "x-request-id: ",
        "x-content-type-options: nosniff",
        "content-type: application/json",
        "connection: close",
    ] {
        assert!(head.contains(field), "{what} lacks {field}\n{answer}");
    }
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{what}\n{answer}"));
    assert_eq!(body["code"], code, "{what}");
}

#[tokio::test]
async fn ambiguous_heads_are_refused_and_never_passed_on() {
    let upstream = Recorder::start();
    let gateway = routes(&upstream).start_plain();
    let with = |fields: &str| format!("POST /up/x HTTP/1.1\r\nHost: a\r\n{fields}");
    for head in [
        "GET /up/x HTTP/1.1\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\n\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\rX: y\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\nX(Y): b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\n Host: a\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a@b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.1\r\nHost: a:99999\r\n\r\n".to_owned(),
        "GET http://b/up/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET http://a@b/up/x HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
        "GET ftp://a/up/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET up/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET  /up/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x y HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x\t HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x#y HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x\r\nHost: a\r\n\r\n".to_owned(),
        "G@T /up/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(),
        "GET /up/x HTTP/0.9\r\nHost: a\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned(),
        "POST /up/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        with("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        with("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        with("Content-Length: 5, 5\r\n\r\nhello"),
        with("Content-Length: +5\r\n\r\nhello"),
        with("Content-Length: 0x5\r\n\r\nhello"),
        with("Content-Length: five\r\n\r\nhello"),
        with("Content-Length: 18446744073709551621\r\n\r\nhello"),
        with("Content-Length:\r\n\r\n"),
        with("Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        with("Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
    ] {
        let bytes = format!("{head}{SMUGGLED}");
        let answer = exchange(gateway.http, bytes.as_bytes()).await;
        refused(&answer, 400, "bad_request", &format!("{head:?}"));
    }
    assert_eq!(upstream.text(), "", "nothing of it was passed on");
    // The gateway is fine, and the recorder does record.
    let fine = exchange(
        gateway.http,
        b"GET http://a:80/up/fine HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(fine.starts_with("HTTP/1.1 200"), "{fine}");
    assert!(upstream.text().contains("GET /up/fine HTTP/1.1"));
}

#[tokio::test]
async fn malformed_chunks_end_the_request_and_the_connection() {
    let upstream = Recorder::start();
    let gateway = routes(&upstream).start_plain();
    for chunks in [
        "\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "2\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "5g\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "0\r\nno field\r\n\r\n",
        "0\r\nX: y\n\r\n",
    ] {
        for (path, status) in [("/in", 400), ("/up/body", 400), ("/fixed", 200)] {
            let bytes = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{SMUGGLED}"
            );
            let answer = exchange(gateway.http, bytes.as_bytes()).await;
            let what = format!("{path} {chunks:?}");
            if path == "/up/body" && answer.starts_with("HTTP/1.1 200") {
                // The upstream answered before the body's fault was there.
                assert_eq!(answers(&answer), 1, "{what}\n{answer}");
            } else if status == 200 {
                assert!(answer.starts_with("HTTP/1.1 200"), "{what}\n{answer}");
                assert_eq!(answers(&answer), 1, "{what}\n{answer}");
            } else {
                refused(&answer, status, "bad_request", &what);
            }
        }
    }
    assert!(!upstream.text().contains("smuggled"), "{}", upstream.text());
}

#[tokio::test]
async fn what_is_valid_but_odd_still_works() {
    let gateway = routes(&Recorder::start()).start_plain();
    let odd = "\r\nPOST /in HTTP/1.1\r\nhOST:a\r\nTRANSFER-encoding:\tChunked \r\n\r\n\
        0005;ext=\"q v\"\r\nhello\r\n1\r\n!\r\n000\r\nX-Trailer: t\r\n\r\n\
        \r\nGET /fixed? HTTP/1.1\r\nHost: a\r\n\r\n\
        GET http://a/fixed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    // Whole, and byte by byte.
    let answer = exchange(gateway.http, odd.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
    assert!(answer.contains("hello!"), "{answer}");
    let mut socket = TcpStream::connect(("127.0.0.1", gateway.http))
        .await
        .unwrap();
    socket.set_nodelay(true).unwrap();
    let first = odd.split_inclusive("X-Trailer: t\r\n\r\n").next().unwrap();
    let first = first.replacen("hOST:a", "hOST:a\r\nConnection: close", 1);
    for byte in first.as_bytes() {
        socket.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut slow = String::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_string(&mut slow));
    read.await.expect("closed").unwrap();
    assert!(
        slow.starts_with("HTTP/1.1 200") && slow.ends_with("hello!"),
        "{slow}"
    );
}

#[tokio::test]
async fn a_request_behind_a_good_one_is_judged_on_its_own() {
    let gateway = routes(&Recorder::start()).start_plain();
    let bytes = "GET /fixed HTTP/1.1\r\nHost: a\r\n\r\nGET /fixed HTTP/1.1\nHost: a\r\n\r\n";
    let answer = exchange(gateway.http, bytes.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let second = &answer[answer.rfind("HTTP/1.1 ").unwrap()..];
    refused(second, 400, "bad_request", "the second");
    assert_eq!(answers(&answer), 2, "{answer}");
}

#[tokio::test]
async fn limits_of_a_head_have_their_own_answers() {
    let gateway = routes(&Recorder::start()).start_plain();
    let fields = |count: usize| "X-A: b\r\n".repeat(count);
    for (bytes, status, code) in [
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9000)),
            414,
            "uri_too_long",
        ),
        (format!("GET /{}", "x".repeat(40_000)), 414, "uri_too_long"),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(101)),
            431,
            "headers_too_large",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(1000)),
            431,
            "headers_too_large",
        ),
        (
            format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(100_000)),
            431,
            "headers_too_large",
        ),
    ] {
        let answer = exchange(gateway.http, bytes.as_bytes()).await;
        refused(&answer, status, code, &bytes[..40]);
    }
    let tunnel = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
    let answer = exchange(gateway.http, tunnel.as_bytes()).await;
    refused(&answer, 405, "method_not_allowed", tunnel);
    crate::support::eventually("it is logged", async || {
        let log = gateway.stderr();
        log.contains("a request that can't be read").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_serves_so_many_requests() {
    let gateway = routes(&Recorder::start())
        .set("server.bounds.requests_per_connection_max", json!(3))
        .start_plain();
    let bytes = "GET /fixed HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5);
    let answer = exchange(gateway.http, bytes.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
}

#[tokio::test]
async fn a_body_below_the_least_rate_is_cut_off() {
    let upstream = Recorder::start();
    let patient = json!({ "body_timeout": "1h" });
    let gateway = routes(&upstream)
        .set("server.timeouts.request_body", json!("500ms"))
        .set("server.bounds.body_rate_min", json!("1KiB"))
        .route(
            json!({ "name": "in2", "match": { "path": "/patient/in" }, "auth": "none", "limits": patient,
            "execute": { "file": "examples/guests/echo.wasm", "abi": "command" } }),
        )
        .route(
            json!({ "name": "up2", "match": { "path": "/patient/up" }, "auth": "none", "limits": patient,
            "proxy": { "upstreams": [upstream.url()] } }),
        )
        .start_plain();
    for (path, each, fine) in [
        ("/in", 1, false),
        ("/in", 256, true),
        ("/up/slow", 1, false),
        // A route may give more time; 2 KiB in pieces of 64 bytes take 3.2 s.
        ("/patient/in", 64, true),
        ("/patient/up", 64, true),
    ] {
        let answer = trickle(&gateway, path, each).await;
        let expected = if fine { "HTTP/1.1 200" } else { "HTTP/1.1 408" };
        assert!(answer.starts_with(expected), "{path} {each}: {answer}");
    }
}

/// Sends a body of 2 KiB in pieces of this size, each 100 ms after the last.
async fn trickle(gateway: &Gateway, path: &str, each: usize) -> String {
    let socket = TcpStream::connect(("127.0.0.1", gateway.http))
        .await
        .unwrap();
    let (mut read, mut write) = socket.into_split();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2048\r\nConnection: close\r\n\r\n"
    );
    write.write_all(head.as_bytes()).await.unwrap();
    let sending = tokio::spawn(async move {
        for _ in 0..2048 / each {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            if write.write_all(&vec![b'x'; each]).await.is_err() {
                return;
            }
        }
        // Who closes its side before the answer counts as gone.
        std::future::pending::<()>().await;
    });
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, read.read_to_end(&mut answer)).await;
    sending.abort();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn one_client_can_not_take_all_connections() {
    let gateway = routes(&Recorder::start())
        .set("server.connections_per_address_max", json!(4))
        .set("server.timeouts.request_head", json!("5m"))
        .start_plain();
    let request = b"GET /fixed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let held = std::sync::Mutex::new(Vec::new());
    // The gateway's own check at start may still have a place, so one more is held each time.
    crate::support::eventually("the cap is reached", async || {
        let socket = TcpStream::connect(("127.0.0.1", gateway.http)).await;
        held.lock().unwrap().push(socket.unwrap());
        let answer = exchange(gateway.http, request).await;
        answer.is_empty().then_some(())
    })
    .await;
    // Another address of this machine is another client, and the admin listener is not counted.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let address = format!("127.0.0.1:{}", gateway.http).parse().unwrap();
    let mut other = socket.connect(address).await.unwrap();
    other.write_all(request).await.unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let page = gateway.client().get(gateway.admin_url("/metrics")).send();
    let page = page.await.unwrap().text().await.unwrap();
    assert!(
        page.contains("wasmwiz_connections_refused_total{reason=\"address\"}"),
        "{page}"
    );
    drop(held);
    crate::support::eventually("room again", async || {
        exchange(gateway.http, request)
            .await
            .starts_with("HTTP/1.1 200")
            .then_some(())
    })
    .await;
}
