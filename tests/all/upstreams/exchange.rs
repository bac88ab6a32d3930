//! Requests without a body, which take the short way to an HTTP/1.1 upstream: how answers are framed, what
//! is refused of them, and what becomes of the connections.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::{get, metrics, route};
use crate::support::eventually;
use crate::support::gateway::{Gateway, gateway};
use crate::support::upstream::{Reply, Upstream, ok, upstream};

/// A gateway before an upstream that answers each path by this.
async fn before(
    answer: impl Fn(&str) -> Option<Reply> + Send + Sync + 'static,
) -> (Gateway, Upstream) {
    let upstream = upstream(move |request| {
        let path = request.split(' ').nth(1).unwrap();
        answer(path).unwrap_or_else(|| ok("after"))
    })
    .await;
    let mut all = route(
        "/*",
        json!({ "upstreams": [upstream.url], "read_timeout": "5s", "ejection": { "enabled": false } }),
    );
    all["name"] = json!("all");
    let gateway = gateway()
        // Each listener's thread has connections of its own.
        .set("server.threads", json!(1))
        .route(all)
        .start();
    (gateway, upstream)
}

fn raw(text: &str) -> Option<Reply> {
    Some(Reply::Raw(text.as_bytes().to_vec()))
}

fn last(text: &str) -> Option<Reply> {
    Some(Reply::Last(text.as_bytes().to_vec()))
}

#[tokio::test]
async fn answers_arrive_whole_however_they_are_framed() {
    let (gateway, upstream) = before(|path| match path {
        "/chunked" => raw(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\nT: 1\r\n\r\n",
        ),
        "/closed" => last("HTTP/1.1 200 OK\r\n\r\nuntil the end"),
        "/old" => last("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold"),
        "/hints" => raw(
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        "/nothing" => raw("HTTP/1.1 204 No Content\r\n\r\n"),
        "/same" => raw("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"a\"\r\n\r\n"),
        "/empty" => raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        "/said" => raw("HTTP/1.1 200 Quite So\r\nContent-Length: 2\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\nok"),
        _ => None,
    })
    .await;
    let http1 = gateway.client_builder().http1_only().build().unwrap();
    for client in [gateway.client(), http1] {
        for (path, status, body) in [
            ("/chunked", 200, "abcdefgh"),
            ("/closed", 200, "until the end"),
            ("/old", 200, "old"),
            ("/hints", 200, "ok"),
            ("/nothing", 204, ""),
            ("/same", 304, ""),
            ("/empty", 200, ""),
            ("/said", 200, "ok"),
        ] {
            let answer = client.get(gateway.url(path)).send().await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
            assert!(!answer.headers().contains_key("x-hop"), "{path}");
            assert_eq!(answer.text().await.unwrap(), body, "{path}");
            let head = client.head(gateway.url("/other")).send().await.unwrap();
            // The upstream does answer with a body, which ends that connection.
            assert_eq!(head.status(), 200, "{path}");
        }
    }
    assert!(upstream.hits() >= 32);
}

#[tokio::test]
async fn answers_that_could_be_read_differently_are_refused() {
    let (gateway, _upstream) = before(|path| match path {
        "/lengths" => raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        "/coding" => raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        "/folded" => raw("HTTP/1.1 200 OK\r\nA: 1\r\n 2\r\nContent-Length: 0\r\n\r\n"),
        "/switched" => {
            raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        }
        "/hints" => raw(&"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20)),
        "/noise" => last("hello there, this is no HTTP\r\n\r\n"),
        _ => None,
    })
    .await;
    for path in ["/lengths", "/coding", "/switched", "/hints", "/noise"] {
        let (status, body) = get(&gateway, path).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{path}");
        assert!(body.contains("\"upstream_failed\""), "{path}: {body}");
        assert_eq!(get(&gateway, "/other").await.1, "after", "{path}");
    }
    // A field that goes on in a second line is put on one (RFC 9112 section 5.2).
    assert_eq!(get(&gateway, "/folded").await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let (gateway, _upstream) = before(|path| match path {
        "/length" => last("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        "/chunk" => last("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA\r\nhalf"),
        "/bad" => raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n"),
        _ => None,
    })
    .await;
    let http1 = gateway.client_builder().http1_only().build().unwrap();
    for client in [gateway.client(), http1] {
        for path in ["/length", "/chunk", "/bad"] {
            match client.get(gateway.url(path)).send().await {
                Ok(answer) if answer.status() == 200 => {
                    assert!(answer.bytes().await.is_err(), "{path}");
                }
                Ok(answer) => assert_eq!(answer.status(), 502, "{path}"),
                Err(_) => {}
            }
            assert_eq!(get(&gateway, "/other").await.1, "after", "{path}");
        }
    }
}

#[tokio::test]
async fn what_comes_unasked_is_not_taken_for_the_next_answer() {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\
        HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let (gateway, upstream) = before(move |path| match path {
        "/poison" => raw(poison),
        _ => None,
    })
    .await;
    for _ in 0..3 {
        assert_eq!(get(&gateway, "/poison").await.1, "ok");
        assert_eq!(get(&gateway, "/other").await.1, "after");
    }
    assert!(upstream.connections() >= 4);
}

#[tokio::test]
async fn an_upstream_learns_that_its_client_has_left() {
    let never = Arc::new(Notify::new());
    let wait = Arc::clone(&never);
    let (gateway, upstream) = before(move |path| match path {
        "/never" => Some(Reply::Wait(Arc::clone(&wait), Vec::new())),
        _ => None,
    })
    .await;
    let http1 = gateway.client_builder().http1_only().build().unwrap();
    for (asked, client) in [gateway.client(), http1].into_iter().enumerate() {
        let asking = tokio::spawn(client.get(gateway.url("/never")).send());
        eventually("it was asked", async || {
            (upstream.hits() > asked).then_some(())
        })
        .await;
        asking.abort();
        eventually("its place is free", async || {
            let page = metrics(&gateway).await;
            let active = page
                .lines()
                .find(|line| line.starts_with("wasmwiz_upstream_active{"));
            active.unwrap().ends_with(" 0").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_long_answer_flows_and_waits_for_its_client() {
    const BYTES: usize = 64 * 1024 * 1024;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        assert!(socket.read(&mut head).await.unwrap() > 0);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        socket.write_all(answer.as_bytes()).await.unwrap();
        let piece = vec![7; 1024 * 1024];
        for _ in 0..BYTES / piece.len() {
            socket.write_all(&piece).await.unwrap();
            counted.fetch_add(piece.len(), std::sync::atomic::Ordering::SeqCst);
        }
    });
    let gateway = gateway()
        .route(route("/long", json!({ "upstreams": [url] })))
        .start();
    let mut answer = gateway
        .client()
        .get(gateway.url("/long"))
        .send()
        .await
        .unwrap();
    // Nobody reads: what is on its way is bounded.
    let sent = || sent.load(std::sync::atomic::Ordering::SeqCst);
    let before = std::cell::Cell::new(usize::MAX);
    eventually("it waits", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        (before.replace(sent()) == sent()).then_some(())
    })
    .await;
    assert!(sent() < BYTES / 2, "{} bytes sent", sent());
    let mut got = 0;
    while let Some(piece) = answer.chunk().await.unwrap() {
        assert!(piece.iter().all(|byte| *byte == 7));
        got += piece.len();
    }
    assert_eq!(got, BYTES);
}

#[tokio::test]
async fn a_silent_upstream_is_given_up_and_an_idle_one_may_leave() {
    let never = Arc::new(Notify::new());
    let silent = upstream(move |_| Reply::Wait(Arc::clone(&never), Vec::new())).await;
    let brief =
        upstream(|_| Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbrief".to_vec()))
            .await;
    let kept = upstream(|_| ok("kept")).await;
    let gateway = gateway()
        .set("server.threads", json!(1))
        .route(route(
            "/silent",
            json!({ "upstreams": [silent.url], "read_timeout": "300ms" }),
        ))
        .route(route("/brief", json!({ "upstreams": [brief.url] })))
        .route(route(
            "/kept",
            json!({ "upstreams": [kept.url], "keepalive_timeout": "1s" }),
        ))
        .start();
    let (status, body) = get(&gateway, "/silent").await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{body}");
    // It says nothing of closing, but does.
    for _ in 0..10 {
        assert_eq!(get(&gateway, "/brief").await.1, "brief");
    }
    assert_eq!(get(&gateway, "/kept").await.1, "kept");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(get(&gateway, "/kept").await.1, "kept");
    assert_eq!(kept.connections(), 2, "it idled too long");
}

#[tokio::test]
async fn a_client_that_takes_nothing_gives_its_place_back() {
    let fields = format!("X-Large: {}\r\n", "x".repeat(60_000));
    let large = format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n");
    let upstream = upstream(move |_| Reply::Raw(large.clone().into_bytes())).await;
    let gateway = gateway()
        .set("server.timeouts.write", json!("1s"))
        .route(route(
            "/heads",
            json!({ "upstreams": [upstream.url], "capacity": { "requests_max": 1, "pending_max": 0 } }),
        ))
        .start_plain();
    let address = gateway.http_url("");
    let mut client = tokio::net::TcpStream::connect(address.trim_start_matches("http://"))
        .await
        .unwrap();
    let requests = "GET /heads HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(300);
    client.write_all(requests.as_bytes()).await.unwrap();
    let active = async || {
        let page = metrics(&gateway).await;
        let line = page
            .lines()
            .find(|line| line.starts_with("wasmwiz_upstream_active{"));
        line.is_some_and(|line| line.ends_with(" 1"))
    };
    eventually("it holds the place", async || active().await.then_some(())).await;
    eventually("it has lost it", async || {
        let (before, one_more) = (active().await, upstream.hits());
        tokio::time::sleep(Duration::from_millis(300)).await;
        (!before && !active().await && upstream.hits() == one_more).then_some(())
    })
    .await;
    assert!(
        upstream.hits() < 300,
        "the answers were to be more than fits on the way"
    );
}
