//! Emergency stops: of users, keys and modules, everywhere within a second, guests that run included.

mod unread;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use wasm_wizard::auth::{Role, Scopes};
use wasm_wizard::limits::Tier;
use wasm_wizard::sandbox::ModuleHash;
use wasm_wizard::store::modules::NewModule;
use wasm_wizard::store::users::User;

use crate::support::accounts::{Accounts, MadeKey};
use crate::support::gateway::{Builder, Gateway, gateway, run};
use crate::support::{eventually, postgres, root};
use crate::websocket::{Socket, active, connect, echo};

/// How soon a stop holds everywhere.
const SOON: Duration = Duration::from_secs(1);

/// Runs for ever.
const SPIN: &str =
    r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#;

/// A gateway on which a guest may run for a minute.
fn patient() -> Builder {
    gateway()
        .set("tiers.enterprise.execution_timeout", json!("60s"))
        .set("auth.key_cache_ttl", json!("1d"))
}

struct World {
    accounts: Accounts,
    user: User,
    /// A module that anybody may run.
    module: uuid::Uuid,
}

impl World {
    async fn new(accounts: Accounts) -> World {
        let user = accounts.user(Role::User, Tier::Enterprise).await;
        let wasm = wat::parse_str(SPIN).unwrap();
        let new = NewModule {
            owner_id: user.id,
            name: "spin",
            description: "",
            hash: ModuleHash::of(&wasm),
            wasm: &wasm,
            is_public: true,
        };
        let module = accounts.store.module_create(new).await.unwrap().id;
        World {
            accounts,
            user,
            module,
        }
    }

    async fn key(&self, user: &User) -> MadeKey {
        self.accounts.key(user, Scopes::of_role(Role::User)).await
    }
}

/// A guest that runs for this key until it is stopped: the answer's status and code.
fn spin(gateway: &Gateway, module: uuid::Uuid, key: &str) -> tokio::task::JoinHandle<(u16, Value)> {
    let url = gateway.url(&format!("/api/wasm/modules/{module}/execute"));
    let request = gateway.client().post(url).bearer_auth(key);
    tokio::spawn(async move {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        (status, body["code"].clone())
    })
}

async fn stopped(guest: tokio::task::JoinHandle<(u16, Value)>, since: Instant) {
    let (status, code) = guest.await.unwrap();
    let after = since.elapsed();
    assert_eq!((status, code), (403, json!("stopped")));
    println!("a guest was stopped after {after:?}");
    assert!(after < SOON, "stopped after {after:?}");
}

/// Waits until the key is not let in any more.
async fn refused(gateway: &Gateway, key: &str, since: Instant) {
    let client = gateway.client();
    loop {
        let request = client.get(gateway.url("/api/auth/keys")).bearer_auth(key);
        if request.send().await.unwrap().status() == 401 {
            println!("a key was refused after {:?}", since.elapsed());
            return;
        }
        assert!(since.elapsed() < SOON, "still let in");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn change(gateway: &Gateway, method: &str, path: &str, body: Value) {
    let url = gateway.url(path);
    let request = gateway.client().request(method.parse().unwrap(), url);
    let request = request.bearer_auth(gateway.admin_key()).json(&body);
    let answer = request.send().await.unwrap();
    assert!(
        answer.status().is_success(),
        "{}",
        answer.text().await.unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_holds_on_every_gateway_of_a_postgresql() {
    let server = postgres::Server::start_new().await;
    let url = server.database().await;
    let one = patient().env("DATABASE_URL", &url).start();
    let other = patient()
        .env("DATABASE_URL", &url)
        .in_dir_of(&one)
        .set("usage.journal.directory", json!("data/journal-other"))
        .start();
    let world = World::new(Accounts::at(&one, &url).await).await;

    // A key.
    let key = world.key(&world.user).await;
    let guest = spin(&other, world.module, &key.secret);
    other.guests_running(1).await;
    let since = Instant::now();
    change(
        &one,
        "DELETE",
        &format!("/api/admin/keys/{}", key.id),
        json!({}),
    )
    .await;
    stopped(guest, since).await;
    refused(&other, &key.secret, since).await;
    refused(&one, &key.secret, since).await;

    // A module, for whomever it runs.
    let somebody = world.accounts.user(Role::User, Tier::Enterprise).await;
    let key = world.key(&somebody).await;
    let guest = spin(&other, world.module, &key.secret);
    other.guests_running(1).await;
    let since = Instant::now();
    let module = format!("/api/admin/modules/{}", world.module);
    change(&one, "POST", &format!("{module}/stop"), json!({})).await;
    stopped(guest, since).await;
    let (status, code) = spin(&other, world.module, &key.secret).await.unwrap();
    assert_eq!((status, code), (403, json!("module_stopped")));
    change(&one, "POST", &format!("{module}/resume"), json!({})).await;

    // A user, with all its keys, and after the connection that tells of changes was cut.
    let key = world.key(&somebody).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE query LIKE 'LISTEN%' AND datname = current_database()";
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    sqlx::raw_sql(cut).execute(&mut connection).await.unwrap();
    let guest = spin(&other, world.module, &key.secret);
    other.guests_running(1).await;
    let since = Instant::now();
    change(
        &one,
        "PATCH",
        &format!("/api/admin/users/{}", somebody.id),
        json!({ "disabled": true }),
    )
    .await;
    stopped(guest, since).await;
    refused(&other, &key.secret, since).await;
}

/// An upstream whose answers last: `/up` is answered once all has come, others for ever, 20 times a second.
async fn lasting() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let read = socket.read(&mut head).await.unwrap_or(0);
                if head[..read].starts_with(b"POST") {
                    while socket.read(&mut head).await.is_ok_and(|read| read > 0) {}
                    return;
                }
                let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                let mut sent = socket.write_all(answer.as_bytes()).await;
                while sent.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    sent = socket.write_all(b"1\r\nx\r\n").await;
                }
            });
        }
    });
    format!("http://{address}")
}

/// An upstream that takes a WebSocket, and then nothing of what is sent on it.
async fn deaf() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            kept.push(accept_async(socket).await);
        }
    });
    format!("http://{address}")
}

/// Sends until nothing more is taken; resolves when the socket has ended.
async fn choked_once_full(mut socket: Socket) -> tokio::task::JoinHandle<()> {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        let message = Message::binary(vec![0; 65_536]);
        while socket.send(message.clone()).await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let last = Cell::new((0, Instant::now()));
    eventually("nothing more is taken", async || {
        let now = sent.load(Ordering::Relaxed);
        if now != last.get().0 {
            last.set((now, Instant::now()));
        }
        (now > 0 && last.get().1.elapsed() > Duration::from_millis(500)).then_some(())
    })
    .await;
    sending
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_sockets_and_what_lasts_on_every_gateway() {
    let url = postgres::database().await;
    let (echo, deaf, lasting) = (echo().await, deaf().await, lasting().await);
    let routes = |builder: Builder| {
        let proxy = |name: &str, methods: Value, upstream: &str, socket: bool| {
            json!({ "name": name, "match": { "path": format!("/{name}"), "methods": methods },
                "auth": "key", "proxy": { "upstreams": [upstream], "websocket": socket } })
        };
        builder
            .env("DATABASE_URL", &url)
            .route(proxy("socket", json!(["GET"]), &echo, true))
            .route(proxy("deaf", json!(["GET"]), &deaf, true))
            .route(proxy("down", json!(["GET"]), &lasting, false))
            .route(proxy("up", json!(["POST"]), &lasting, false))
    };
    let one = routes(patient()).start();
    let other = routes(patient())
        .in_dir_of(&one)
        .set("usage.journal.directory", json!("data/journal-other"))
        .start_plain();
    let world = World::new(Accounts::at(&one, &url).await).await;
    let (key, kept) = (world.key(&world.user).await, world.key(&world.user).await);
    let mut silent = connect(&other, "/socket", Some(&key.secret)).await.unwrap();
    let mut stays = connect(&other, "/socket", Some(&kept.secret))
        .await
        .unwrap();
    let choked = connect(&other, "/deaf", Some(&key.secret)).await.unwrap();
    let choked = choked_once_full(choked).await;
    active(&other, 3).await;
    let down = async |key: &str| {
        let request = other.client().get(other.url("/down")).bearer_auth(key);
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.chunk().await.unwrap().is_some());
        answer
    };
    let (mut cut, mut goes_on) = (down(&key.secret).await, down(&kept.secret).await);
    let drip = futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Some((Ok::<_, std::io::Error>("x"), ()))
    });
    let up = other
        .client()
        .post(other.url("/up"))
        .bearer_auth(&key.secret);
    let up = tokio::spawn(up.body(reqwest::Body::wrap_stream(drip)).send());
    // So long that it is noted what is proxied.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(700) {
        assert!(cut.chunk().await.unwrap().is_some());
    }
    let since = Instant::now();
    let path = format!("/api/admin/keys/{}", key.id);
    change(&one, "DELETE", &path, json!({})).await;
    let ended = tokio::time::timeout(SOON, silent.next()).await;
    assert!(
        !matches!(ended, Ok(Some(Ok(ref message))) if message.is_text()),
        "{ended:?}"
    );
    println!("a silent socket ended after {:?}", since.elapsed());
    assert!(since.elapsed() < SOON);
    tokio::time::timeout(SOON, choked)
        .await
        .expect("one that waits to be taken ends too")
        .unwrap();
    println!("a choked socket ended after {:?}", since.elapsed());
    assert!(since.elapsed() < SOON);
    while let Ok(Some(_)) = cut.chunk().await {
        assert!(since.elapsed() < SOON, "it goes on");
    }
    println!("a stream ended after {:?}", since.elapsed());
    let answer = up.await.unwrap().unwrap();
    println!("an upload ended after {:?}", since.elapsed());
    assert!(since.elapsed() < SOON);
    assert_eq!(answer.status(), 403);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "stopped");
    // Another key of the same user goes on.
    stays.send(Message::text("still here")).await.unwrap();
    assert!(stays.next().await.unwrap().unwrap().is_text());
    assert!(goes_on.chunk().await.unwrap().is_some());
    active(&other, 1).await;
    // And ends with the user.
    let since = Instant::now();
    let path = format!("/api/admin/users/{}", world.user.id);
    change(&one, "PATCH", &path, json!({ "disabled": true })).await;
    active(&other, 0).await;
    while let Ok(Some(_)) = goes_on.chunk().await {
        assert!(since.elapsed() < SOON, "it goes on");
    }
}

/// An upstream that reads and never answers, and how many connections it has.
async fn silent() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut read = [0; 4096];
                while socket.read(&mut read).await.is_ok_and(|read| read > 0) {}
                counted.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (format!("http://{address}"), connections)
}

/// A body that begins and does not go on.
fn stalled() -> reqwest::Body {
    let begun = futures_util::stream::once(async { Ok::<_, std::io::Error>("begun") });
    reqwest::Body::wrap_stream(begun.chain(futures_util::stream::pending()))
}

/// What each of the requests comes to: status and code, or nothing where it was cut off.
type Ends = Vec<(&'static str, tokio::task::JoinHandle<Option<(u16, Value)>>)>;

/// Requests on which nothing moves. Three of them have a connection at the upstream.
fn motionless(gateway: &Gateway, key: &str) -> Ends {
    let ask = |name, method: &str, path, body: Option<reqwest::Body>| {
        let request = gateway
            .client()
            .request(method.parse().unwrap(), gateway.url(path));
        let mut request = request.bearer_auth(key);
        if let Some(body) = body {
            request = request.body(body);
        }
        let end = tokio::spawn(async move {
            let answer = request.send().await.ok()?;
            let status = answer.status().as_u16();
            let body: Value = answer.json().await.ok()?;
            Some((status, body["code"].clone()))
        });
        (name, end)
    };
    vec![
        ("an upstream that does not answer", "GET", "/quiet", None),
        (
            "one that has a body",
            "POST",
            "/quiet",
            Some("all of it".into()),
        ),
        ("an upload that stalls", "POST", "/quiet", Some(stalled())),
        (
            "a guest's input that stalls",
            "POST",
            "/guest",
            Some(stalled()),
        ),
    ]
    .into_iter()
    .map(|(name, method, path, body)| ask(name, method, path, body))
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_requests_on_which_nothing_moves() {
    let url = postgres::database().await;
    let (quiet, connections) = silent().await;
    let routes = |builder: Builder| {
        builder
            .env("DATABASE_URL", &url)
            .route(
                json!({ "name": "quiet", "match": { "path": "/quiet", "methods": ["GET", "POST"] },
                "auth": "key", "proxy": { "upstreams": [quiet] } }),
            )
            .route(
                json!({ "name": "guest", "match": { "path": "/guest", "methods": ["POST"] },
                "auth": "key", "execute": { "file": root().join("examples/guests/echo.wasm"), "abi": "command" } }),
            )
    };
    // One speaks HTTP/2 and the other HTTP/1.
    let one = routes(patient()).start();
    let other = routes(patient())
        .in_dir_of(&one)
        .set("usage.journal.directory", json!("data/journal-other"))
        .start_plain();
    let world = World::new(Accounts::at(&one, &url).await).await;
    let kept = world.key(&world.user).await;
    let goes_on = motionless(&one, &kept.secret);
    for runs_for in [Duration::ZERO, Duration::from_millis(600)] {
        let key = world.key(&world.user).await;
        let mut ends = motionless(&one, &key.secret);
        ends.extend(motionless(&other, &key.secret));
        // Those that go on are there too.
        eventually("all have an upstream", async || {
            (connections.load(Ordering::SeqCst) == 9).then_some(())
        })
        .await;
        let begun = Instant::now();
        while begun.elapsed() < runs_for {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let path = format!("/api/admin/keys/{}", key.id);
        change(&one, "DELETE", &path, json!({})).await;
        // From the answer on: what the change itself takes is not the stop's.
        let since = Instant::now();
        for (name, end) in ends {
            let ended = tokio::time::timeout(SOON, end).await;
            println!("{name} ended after {:?}: {ended:?}", since.elapsed());
            assert!(since.elapsed() < SOON, "{name}");
            // A stalled upload through an upstream, and what has a body, may be cut off.
            let end = ended.unwrap().unwrap();
            let is_told = name.contains("not answer") || name.contains("guest");
            assert!(end.is_some() || !is_told, "{name}");
            if let Some((status, code)) = end {
                assert_eq!((status, code), (403, json!("stopped")), "{name}");
            }
        }
        eventually("the upstream's connections are closed", async || {
            (connections.load(Ordering::SeqCst) == 3).then_some(())
        })
        .await;
    }
    for (name, end) in goes_on {
        assert!(!end.is_finished(), "{name} of another key");
        end.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_the_command_line_holds_in_a_gateway_that_runs_on_sqlite() {
    let gateway = patient().start();
    let world = World::new(Accounts::of(&gateway).await).await;
    let command = |line: &[&str]| {
        let done = run(&gateway.dir(), line, &[]);
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        Instant::now()
    };
    let key = world.key(&world.user).await;
    let guest = spin(&gateway, world.module, &key.secret);
    gateway.guests_running(1).await;
    let since = command(&["keys", "revoke", &key.id.to_string()]);
    stopped(guest, since).await;
    refused(&gateway, &key.secret, since).await;

    let key = world.key(&world.user).await;
    let guest = spin(&gateway, world.module, &key.secret);
    gateway.guests_running(1).await;
    let since = command(&["modules", "stop", &world.module.to_string()]);
    stopped(guest, since).await;
    command(&["modules", "resume", &world.module.to_string()]);

    let guest = spin(&gateway, world.module, &key.secret);
    gateway.guests_running(1).await;
    let since = command(&["users", "disable", &world.user.email]);
    stopped(guest, since).await;
    refused(&gateway, &key.secret, since).await;
}
