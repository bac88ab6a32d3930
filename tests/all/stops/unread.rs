//! Answers and sockets of a stopped key that nobody reads, or that do not end by themselves.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::SinkExt;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use super::{SOON, World, change, patient};
use crate::support::accounts::Accounts;
use crate::support::eventually;
use crate::support::gateway::workdir;
use crate::websocket::{active, connect};

/// An upstream that sends on its WebSocket without end; how many messages it has sent.
async fn flood() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut socket = accept_async(socket).await.unwrap();
        let message = Message::binary(vec![0; 65_536]);
        while socket.send(message.clone()).await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (url, sent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_a_socket_whose_client_takes_nothing() {
    let (upstream, sent) = flood().await;
    let gateway = patient()
        .route(
            json!({ "name": "flood", "match": { "path": "/flood" }, "auth": "key",
            "proxy": { "upstreams": [upstream], "websocket": true } }),
        )
        .start_plain();
    let world = World::new(Accounts::of(&gateway).await).await;
    let key = world.key(&world.user).await;
    let deaf = connect(&gateway, "/flood", Some(&key.secret))
        .await
        .unwrap();
    let last = Cell::new((0, Instant::now()));
    eventually("nothing more is taken", async || {
        let now = sent.load(Ordering::Relaxed);
        if now != last.get().0 {
            last.set((now, Instant::now()));
        }
        (now > 0 && last.get().1.elapsed() > Duration::from_millis(500)).then_some(())
    })
    .await;
    active(&gateway, 1).await;
    let path = format!("/api/admin/keys/{}", key.id);
    change(&gateway, "DELETE", &path, json!({})).await;
    let since = Instant::now();
    active(&gateway, 0).await;
    println!("a deaf client's socket ended after {:?}", since.elapsed());
    assert!(since.elapsed() < SOON);
    drop(deaf);
}

/// A guest that writes a head and a line, and then does this without end.
fn guest(without_end: &str) -> String {
    format!(
        r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (data (i32.const 0) "\20\00\00\00\1e\00\00\00" "\3c\00\00\00\02\00\00\00" "\00\04\00\00\00\00\01\00")
    (data (i32.const 32) "Content-Type: text/plain\0d\0a\0d\0ax\0a")
    (data (i32.const 144) "\01\00\00\00\00\00\00\00" "\00\2d\31\01")
    (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 1000)))
        (loop $again {without_end} (br $again))))"#
    )
}

/// A line every 20 milliseconds.
const DRIP: &str = "
    (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 1000)))
    (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 1004)))";
/// As much as is taken.
const GUSH: &str = "
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 1000)))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_guests_that_still_answer() {
    let dir = workdir();
    let route = |name: &str, without_end: &str| {
        let file = format!("{name}.wat");
        std::fs::write(dir.path().join(&file), guest(without_end)).unwrap();
        json!({ "name": name, "match": { "path": format!("/{name}") },
            "execute": { "file": file, "abi": "wagi" } })
    };
    let routes = [route("drip", DRIP), route("gush", GUSH), route("spin", "")];
    let builder = patient().set("tiers.enterprise.stdout_max", json!("256MiB"));
    let builder = routes.into_iter().fold(builder, |b, route| b.route(route));
    let gateway = builder.in_dir(dir).start();
    let world = World::new(Accounts::of(&gateway).await).await;
    let ask = async |method: &str, path: &str, key: &str| {
        let url = gateway.url(path);
        let request = gateway.client().request(method.parse().unwrap(), url);
        request.bearer_auth(key).send().await.unwrap()
    };
    let stop = async |id: uuid::Uuid| {
        change(
            &gateway,
            "DELETE",
            &format!("/api/admin/keys/{id}"),
            json!({}),
        )
        .await;
        Instant::now()
    };

    // One whose client reads.
    let key = world.key(&world.user).await;
    let mut answer = ask("GET", "/drip", &key.secret).await;
    assert!(answer.chunk().await.unwrap().unwrap().starts_with(b"x\n"));
    let since = stop(key.id).await;
    let broken = loop {
        match answer.chunk().await {
            Ok(Some(_)) => assert!(since.elapsed() < SOON, "it goes on"),
            Ok(None) => panic!("the answer ended as if it were whole"),
            Err(error) => break error,
        }
    };
    println!("broken off after {:?}: {broken}", since.elapsed());
    gateway.guests_running(0).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());

    // One whose client takes nothing: it waits to be taken by the time that all of this is done.
    let key = world.key(&world.user).await;
    let answer = ask("GET", "/gush", &key.secret).await;
    assert_eq!(answer.status(), 200);
    gateway.guests_running(1).await;
    let since = stop(key.id).await;
    gateway.guests_running(0).await;
    println!("a gush ended after {:?}", since.elapsed());
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    drop(answer);

    // One whose answer is to go out whole.
    let key = world.key(&world.user).await;
    let secret = key.secret.clone();
    let (url, client) = (gateway.url("/spin"), gateway.client());
    let head = tokio::spawn(client.head(url).bearer_auth(secret).send());
    gateway.guests_running(1).await;
    let since = stop(key.id).await;
    assert_eq!(head.await.unwrap().unwrap().status(), 403);
    gateway.guests_running(0).await;
    println!("one without an answer ended after {:?}", since.elapsed());
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());

    let path = "/api/admin/usage/executions?limit=10";
    let rows = eventually("the executions are recorded", async || {
        let (_, found) = crate::usage::get(&gateway, &gateway.admin_key(), path).await;
        let rows = found["executions"].as_array()?.clone();
        (rows.len() >= 3).then_some(rows)
    })
    .await;
    assert_eq!(rows.len(), 3, "{rows:#?}");
    for row in rows {
        assert_eq!(row["status"], "cancelled", "{row}");
    }
}
