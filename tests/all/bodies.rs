//! Request bodies that stream to guests: in pieces, both ways at once, and to every kind of end.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::{PATIENCE, eventually, root};

/// A guest starts once so much of its body is there.
const BEGINNING: usize = 64 * 1024;

/// Writes a head and `ready`, and then all that it reads, as it comes.
const ECHO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (data (i32.const 64) "Content-Type: text/plain\n\nready\n")
    (func $put (param $at i32) (param $len i32)
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (local.get $len))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))
    (func (export "_start")
      (call $put (i32.const 64) (i32.const 32))
      (loop $more
        (i32.store (i32.const 0) (i32.const 65536))
        (i32.store (i32.const 4) (i32.const 50000))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
        (if (i32.load (i32.const 16)) (then
          (call $put (i32.const 65536) (i32.load (i32.const 16)))
          (br $more))))))"#;

/// Writes its environment.
const ENVIRONMENT: &str = r#"(module
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (data (i32.const 64) "Content-Type: text/plain\n\n")
    (func (export "_start")
      (i32.store (i32.const 0) (i32.const 64))
      (i32.store (i32.const 4) (i32.const 26))
      (i32.store (i32.const 8) (i32.const 65536))
      (drop (call $sizes (i32.const 16) (i32.const 12)))
      (drop (call $get (i32.const 4096) (i32.const 65536)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 16)))))"#;

/// Writes the head of an answer that has no body; some body all the same, once it has read; and
/// ends with its input.
const BODILESS: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (data (i32.const 64) "Status: {status}\nETag: \"1\"\n\nbody")
    (func $put (param $at i32) (param $len i32)
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (local.get $len))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))
    (func (export "_start")
      (call $put (i32.const 64) (i32.const 23))
      (loop $more
        (i32.store (i32.const 0) (i32.const 65536))
        (i32.store (i32.const 4) (i32.const 50000))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
        (if (i32.load (i32.const 16)) (then
          (call $put (i32.const 87) (i32.const 4))
          (br $more))))))"#;

/// Writes 32 MiB.
const LARGE: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 17)
    (data (i32.const 0) "\00\00\01\00\00\00\10\00")
    (func (export "_start") (local $left i32)
      (local.set $left (i32.const 32))
      (loop $more
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
        (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))"#;

/// Sleeps for an hour and reads nothing.
const SLEEPER: &str = r#"(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "\01\00\00\00\00\00\00\00\00\a0\b8\30\46\03\00\00")
    (func (export "_start")
      (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#;

/// A gateway whose plain HTTP port serves `/<name>` for each guest. Its files stay as long as the
/// directory.
fn serving(guests: &[(&str, &str, &str)], limits: Value) -> (Builder, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = gateway()
        .set("routes", json!([]))
        .set("sandbox.execution_timeout", json!("1h"))
        .set("sandbox.stdout_max", json!("64MiB"));
    for (name, text, abi) in guests {
        let file = folder.path().join(format!("{name}.wat"));
        std::fs::write(&file, text).unwrap();
        builder = builder.route(
            json!({ "name": name, "match": { "path": format!("/{name}") }, "auth": "none",
                "limits": limits, "execute": { "file": file, "abi": abi } }),
        );
    }
    (builder, folder)
}

/// Bytes in which every part differs from every other.
fn pattern(len: usize) -> Vec<u8> {
    (0..len.div_ceil(8) as u64)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .take(len)
        .collect()
}

/// One HTTP/1.1 connection, byte by byte.
struct Connection {
    socket: TcpStream,
    seen: Vec<u8>,
}

impl Connection {
    /// Sends a head; `framing` is the header that says where the body ends.
    async fn post(gateway: &Gateway, path: &str, framing: &str) -> Connection {
        let socket = TcpStream::connect(("127.0.0.1", gateway.http))
            .await
            .unwrap();
        let mut connection = Connection {
            socket,
            seen: Vec::new(),
        };
        connection.head(path, framing).await;
        connection
    }

    async fn head(&mut self, path: &str, framing: &str) {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
        self.send(head.as_bytes()).await;
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    async fn chunk(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.send(&chunk).await;
    }

    /// Reads on until this has come; forgets all up to its end, and returns it.
    async fn until(&mut self, wanted: &[u8]) -> Vec<u8> {
        loop {
            let at = self
                .seen
                .windows(wanted.len())
                .position(|part| part == wanted);
            if let Some(at) = at {
                return self.seen.drain(..at + wanted.len()).collect();
            }
            assert!(
                self.more().await,
                "{} did not come; this did: {}",
                String::from_utf8_lossy(wanted),
                String::from_utf8_lossy(&self.seen)
            );
        }
    }

    /// All that comes up to the end of the connection.
    async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Reads once; false at the end of the connection, however it ends.
    async fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.socket.read(&mut buffer));
        let len = read.await.unwrap().unwrap_or(0);
        self.seen.extend_from_slice(&buffer[..len]);
        len > 0
    }
}

#[tokio::test]
async fn large_bodies_reach_guests_whole_and_come_back() {
    let (builder, _folder) = serving(
        &[("wagi", ECHO, "wagi"), ("command", ECHO, "command")],
        json!({ "body_size_max": "16MiB" }),
    );
    let gateway = builder.start_plain();
    let https = gateway.client();
    let http1 = gateway.client_builder().http1_only().build().unwrap();
    for len in [0, 1, BEGINNING - 1, BEGINNING, BEGINNING + 1, 3_000_000] {
        let sent = pattern(len);
        for (client, abi, announced) in [
            (&https, "wagi", true),
            (&https, "wagi", false),
            (&https, "command", true),
            (&http1, "wagi", true),
            (&http1, "wagi", false),
            (&http1, "command", false),
        ] {
            let request = client.post(gateway.url(&format!("/{abi}")));
            let request = if announced {
                request.body(sent.clone())
            } else {
                let pieces: Vec<_> = sent
                    .chunks(10_000)
                    .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()))
                    .collect();
                request.body(reqwest::Body::wrap_stream(futures_util::stream::iter(
                    pieces,
                )))
            };
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200, "{abi} {len} {announced}");
            let got = answer.bytes().await.unwrap();
            let head: &[u8] = match abi {
                "wagi" => b"ready\n",
                _ => b"Content-Type: text/plain\n\nready\n",
            };
            assert!(
                got.starts_with(head) && got[head.len()..] == sent,
                "{abi} {len} {announced}: {} bytes came back",
                got.len()
            );
        }
    }
}

#[tokio::test]
async fn a_guest_answers_while_its_input_still_arrives() {
    let (builder, _folder) = serving(&[("echo", ECHO, "wagi")], json!({}));
    let gateway = builder.start_plain();
    let mut client = Connection::post(&gateway, "/echo", "Transfer-Encoding: chunked").await;
    client.chunk(&vec![b'a'; BEGINNING]).await;
    let head = client.until(b"\r\n\r\n").await;
    assert!(head.starts_with(b"HTTP/1.1 200"));
    client.until(b"ready").await;
    for turn in 0..20 {
        let ping = format!("<{turn}>");
        client.chunk(ping.as_bytes()).await;
        client.until(ping.as_bytes()).await;
    }
    client.send(b"0\r\n\r\n").await;
    client.until(b"\r\n0\r\n\r\n").await;
    // The connection is as good as new.
    client.head("/echo", "Content-Length: 2").await;
    client.send(b"hi").await;
    client.until(b"ready").await;
    client.until(b"hi").await;
}

#[tokio::test]
async fn an_answer_that_may_have_no_body_gets_none_while_its_guest_runs() {
    let guest = |status| BODILESS.replace("{status}", status);
    let (no_content, not_modified) = (guest("204"), guest("304"));
    let (builder, _folder) = serving(
        &[
            ("204", &no_content, "wagi"),
            ("304", &not_modified, "wagi"),
            ("echo", ECHO, "wagi"),
        ],
        json!({}),
    );
    let gateway = builder.start_plain();
    for status in ["204", "304"] {
        let path = format!("/{status}");
        let mut client = Connection::post(&gateway, &path, "Transfer-Encoding: chunked").await;
        client.chunk(&vec![b'a'; BEGINNING]).await;
        gateway.guests_running(1).await;
        client.send(b"0\r\n\r\n").await;
        let head = client.until(b"\r\n\r\n").await;
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(
            head.starts_with(&format!("http/1.1 {status}")) && head.contains("etag: \"1\""),
            "{head}"
        );
        assert!(
            !head.contains("transfer-encoding") && !head.contains("content-length"),
            "{head}"
        );
        // The next answer comes right after that head.
        client.head("/echo", "Content-Length: 2").await;
        client.send(b"hi").await;
        let next = client.until(b"ready").await;
        assert!(next.starts_with(b"HTTP/1.1 200"));
        client.until(b"hi").await;

        let pieces = (0..40).map(|_| Ok::<_, std::io::Error>(vec![b'a'; 10_000]));
        let pieces = futures_util::stream::iter(pieces);
        let request = gateway.client().post(gateway.url(&path));
        let answer = request
            .body(reqwest::Body::wrap_stream(pieces))
            .send()
            .await;
        let answer = answer.unwrap();
        assert_eq!(answer.status().as_str(), status);
        assert_eq!(answer.version(), reqwest::Version::HTTP_2);
        assert!(answer.bytes().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn the_length_is_told_where_it_is_known() {
    let (builder, _folder) = serving(&[("env", ENVIRONMENT, "wagi")], json!({}));
    let gateway = builder.start_plain();
    let large = BEGINNING * 2;
    for (framing, body, told) in [
        ("Content-Length: 0".to_owned(), 0, Some("0".to_owned())),
        ("Content-Length: 5".to_owned(), 5, Some("5".to_owned())),
        (
            format!("Content-Length: {large}"),
            large,
            Some(large.to_string()),
        ),
        (
            "Transfer-Encoding: chunked".to_owned(),
            5,
            Some("5".to_owned()),
        ),
        ("Transfer-Encoding: chunked".to_owned(), large, None),
    ] {
        let framing = format!("{framing}\r\nConnection: close");
        let mut client = Connection::post(&gateway, "/env", &framing).await;
        if framing.starts_with('T') {
            client.chunk(&vec![b'a'; body]).await;
            client.send(b"0\r\n\r\n").await;
        } else {
            client.send(&vec![b'a'; body]).await;
        }
        let text = client.rest().await;
        let line = told.map(|length| format!("\0CONTENT_LENGTH={length}\0"));
        assert_eq!(
            text.contains("CONTENT_LENGTH="),
            line.is_some(),
            "{framing} {body}"
        );
        assert!(
            line.is_none_or(|line| text.contains(&line)),
            "{framing} {body}: {text}"
        );
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_but_steadily_gets_all_of_a_large_answer() {
    let (builder, _folder) = serving(&[("large", LARGE, "command")], json!({}));
    let gateway = builder
        .set("server.timeouts.write", json!("4s"))
        .start_plain();
    let mut client =
        Connection::post(&gateway, "/large", "Content-Length: 0\r\nConnection: close").await;
    client.until(b"\r\n\r\n").await;
    // All of it takes about twice the timeout, no part a tenth of it.
    let (total, mut at_rest) = (32 << 20, 0);
    while client.more().await {
        if client.seen.len() - at_rest > 1 << 20 {
            at_rest = client.seen.len();
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
    assert_eq!(client.seen.len(), total);
}

#[tokio::test]
async fn a_body_that_turns_out_too_large_stops_its_guest() {
    let (builder, _folder) = serving(
        &[("wagi", ECHO, "wagi"), ("command", ECHO, "command")],
        json!({ "body_size_max": "100KiB" }),
    );
    let gateway = builder.start_plain();
    // Nothing of the answer has been sent: the client is told.
    let mut client = Connection::post(&gateway, "/command", "Transfer-Encoding: chunked").await;
    client.chunk(&vec![b'a'; BEGINNING]).await;
    gateway.guests_running(1).await;
    client.chunk(&vec![b'a'; 50_000]).await;
    let answer = client.until(b"payload_too_large").await;
    assert!(answer.starts_with(b"HTTP/1.1 413"));
    gateway.guests_running(0).await;
    // The answer has begun: it is broken off.
    let mut client = Connection::post(&gateway, "/wagi", "Transfer-Encoding: chunked").await;
    client.chunk(&vec![b'a'; BEGINNING]).await;
    client.until(b"ready").await;
    client.chunk(&vec![b'a'; 50_000]).await;
    let rest = client.rest().await;
    assert!(
        !rest.ends_with("0\r\n\r\n") && !rest.contains("413"),
        "the answer must not look whole"
    );
    gateway.guests_running(0).await;
}

#[tokio::test]
async fn a_client_that_stalls_or_leaves_stops_its_guest() {
    let (builder, _folder) = serving(
        &[("wagi", ECHO, "wagi"), ("command", ECHO, "command")],
        json!({}),
    );
    let gateway = builder
        .set("server.timeouts.request_body", json!("2s"))
        .start_plain();
    let mut stalled = Connection::post(&gateway, "/command", "Content-Length: 900000").await;
    stalled.send(&vec![b'a'; BEGINNING + 1]).await;
    let answer = stalled.until(b"request_timeout").await;
    assert!(answer.starts_with(b"HTTP/1.1 408"));
    gateway.guests_running(0).await;

    let mut stalled = Connection::post(&gateway, "/wagi", "Transfer-Encoding: chunked").await;
    stalled.chunk(&vec![b'a'; BEGINNING]).await;
    stalled.until(b"ready").await;
    let rest = stalled.rest().await;
    assert!(!rest.ends_with("0\r\n\r\n") && !rest.contains("408"));
    gateway.guests_running(0).await;
}

/// Operators are woken up for answers of the class 5xx.
#[tokio::test]
async fn a_client_that_leaves_is_no_failure_of_the_gateways() {
    let spin = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;
    let (builder, _folder) = serving(&[("spin", spin, "command")], json!({}));
    let gateway = builder.start_plain();
    let waiting = Connection::post(&gateway, "/spin", "Content-Length: 0").await;
    gateway.guests_running(1).await;
    drop(waiting);
    gateway.guests_running(0).await;
    // And who leaves before it is told to go on, more or less.
    for _ in 0..20 {
        let expects = "Content-Length: 70000\r\nExpect: 100-continue";
        let expecting = Connection::post(&gateway, "/spin", expects).await;
        // With something unread or not, the connection is reset.
        expecting.socket.set_zero_linger().unwrap();
    }
    let counted = |class| {
        format!("wasmwiz_requests_total{{method=\"POST\",route=\"spin\",status=\"{class}\"}}")
    };
    eventually("all have gone", async || {
        let seen = gateway.metric(&counted("4xx")).await.unwrap_or(0.0);
        let failed = gateway.metric(&counted("5xx")).await.unwrap_or(0.0);
        (seen + failed == 21.0).then_some(())
    })
    .await;
    assert_eq!(gateway.metric(&counted("5xx")).await.unwrap_or(0.0), 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_body_stops_its_guest() {
    let (builder, _folder) = serving(
        &[("wagi", ECHO, "wagi"), ("command", ECHO, "command")],
        json!({}),
    );
    let gateway = builder.start_plain();
    for path in ["/wagi", "/command"] {
        let mut client = Connection::post(&gateway, path, "Content-Length: 900000").await;
        client.send(&vec![b'a'; BEGINNING + 1]).await;
        gateway.guests_running(1).await;
        drop(client);
        gateway.guests_running(0).await;
    }
}

#[tokio::test]
async fn waiting_for_input_counts_as_the_guests_time() {
    let (builder, _folder) = serving(
        &[("command", ECHO, "command")],
        json!({ "execution_timeout": "500ms" }),
    );
    let gateway = builder.start_plain();
    let mut client = Connection::post(&gateway, "/command", "Content-Length: 900000").await;
    client.send(&vec![b'a'; BEGINNING + 1]).await;
    let answer = client.until(b"time_limit_exceeded").await;
    assert!(answer.starts_with(b"HTTP/1.1 504"));
}

#[tokio::test]
async fn a_guest_need_not_read_its_input() {
    let hello = std::fs::read_to_string(root().join("examples/guests/hello.wat")).unwrap();
    let (builder, _folder) = serving(&[("hello", &hello, "command")], json!({}));
    let gateway = builder.start_plain();
    let length = 400_000;
    let framing = format!("Content-Length: {length}");
    let mut client = Connection::post(&gateway, "/hello", &framing).await;
    let beginning = BEGINNING + 1;
    client.send(&vec![b'a'; beginning]).await;
    client.until(b"Hello, wizard\n").await;
    // The rest is read and forgotten, and the next request is read after it.
    client.send(&vec![b'a'; length - beginning]).await;
    client.head("/hello", "Content-Length: 0").await;
    client.until(b"Hello, wizard\n").await;
    // HTTP/2 clients get the whole answer too.
    let answer = gateway
        .client()
        .post(gateway.url("/hello"))
        .body(vec![b'a'; 900_000])
        .send()
        .await
        .unwrap();
    assert_eq!(answer.text().await.unwrap(), "Hello, wizard\n");
}

#[tokio::test]
async fn a_guest_that_does_not_read_holds_its_client_back() {
    let (builder, _folder) = serving(
        &[("sleep", SLEEPER, "command")],
        json!({ "body_size_max": "1GiB" }),
    );
    let gateway = builder.start_plain();
    let total = 1 << 30;
    let mut client =
        Connection::post(&gateway, "/sleep", &format!("Content-Length: {total}")).await;
    let part = vec![b'a'; 1 << 20];
    let mut sent = 0;
    // The kernel's buffers take some; then nothing more goes through.
    loop {
        let sending = client.socket.write(&part);
        match tokio::time::timeout(Duration::from_secs(2), sending).await {
            Ok(len) => sent += len.unwrap(),
            Err(_) => break,
        }
        assert!(
            sent < total / 4,
            "{sent} bytes went to a guest that reads nothing"
        );
    }
    gateway.guests_running(1).await;
    drop(client);
}

#[tokio::test]
async fn an_http2_client_that_leaves_is_seen_even_if_its_guest_reads_nothing() {
    let (builder, _folder) = serving(
        &[("sleep", SLEEPER, "command")],
        json!({ "body_size_max": "1GiB" }),
    );
    let gateway = builder.start();
    let client = gateway.client();
    let sending = tokio::spawn(
        client
            .post(gateway.url("/sleep"))
            .body(vec![b'a'; 20_000_000])
            .send(),
    );
    gateway.guests_running(1).await;
    sending.abort();
    gateway.guests_running(0).await;
}

#[tokio::test]
async fn bodies_of_the_api_have_a_bounded_room_too() {
    const MIB: usize = 1 << 20;
    // A caller's share is the larger of 32 MiB and one such body.
    let gateway = gateway()
        .set("sandbox.wasm_size_max", json!("30MiB"))
        .set("server.timeouts.request_body", json!("10m"))
        .start();
    let key = gateway.admin_key();
    let form = || {
        let head = b"--x\r\nContent-Disposition: form-data; name=\"wasm\"; filename=\"m\"\r\n\r\n";
        let pieces = std::iter::once(head.to_vec()).chain(vec![vec![0; MIB]; 20]);
        futures_util::stream::iter(pieces.map(Ok::<_, std::io::Error>))
    };
    // Each over a connection of its own.
    let post = |body: reqwest::Body| {
        let request = gateway
            .client()
            .post(gateway.url("/api/wasm/execute"))
            .bearer_auth(&key);
        request
            .header("content-type", "multipart/form-data; boundary=x")
            .body(body)
            .send()
    };
    // Neither ends, and there is no room for both: whichever comes later is told so.
    let endless = || form().chain(futures_util::stream::pending());
    let mut one = tokio::spawn(post(reqwest::Body::wrap_stream(endless())));
    let mut other = tokio::spawn(post(reqwest::Body::wrap_stream(endless())));
    let (refused, left) = tokio::select! {
        refused = &mut one => (refused, other),
        refused = &mut other => (refused, one),
    };
    let refused = refused.unwrap().unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let text = refused.text().await.unwrap();
    assert!(text.contains("guests_busy"), "{text}");
    // What the client that leaves had of the room is free again. The form is malformed, which is told.
    left.abort();
    eventually("room for a body", async || {
        let answer = post(reqwest::Body::wrap_stream(form())).await.ok()?;
        (answer.status() == 400).then_some(())
    })
    .await;
}
