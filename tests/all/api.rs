//! The control plane's router with real guests: what `src/api/tests.rs` can't show without the
//! program that compiles them.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first step that does not work"
)]

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request};
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;
use wasm_wizard::api::{self, Caller};
use wasm_wizard::auth::{self, Authenticator, KeyPrincipal, Principal, Role, Salt, Scopes};
use wasm_wizard::failure::Failure;
use wasm_wizard::limits::{self, Limiter, OnLoss, Tier, Tiers};
use wasm_wizard::modules::Registry;
use wasm_wizard::sandbox::{self, CompileSettings, GuestLimits, ModuleHash, Sandbox};
use wasm_wizard::store::{self, Store};
use wasm_wizard::usage::{self, Recorder};

const MIB: u64 = 1 << 20;

/// Standard input to standard output.
const ECHO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (loop $next
            (i32.store (i32.const 0) (i32.const 64))
            (i32.store (i32.const 4) (i32.const 4096))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (if (i32.load (i32.const 8))
                (then
                    (i32.store (i32.const 4) (i32.load (i32.const 8)))
                    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                    (br $next))))))"#;

/// Writes `out` and `err`, then does what `end` says.
fn guest(end: &str) -> String {
    format!(
        r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\03\00\00\00\20\00\00\00\03\00\00\00")
    (data (i32.const 16) "out") (data (i32.const 32) "err")
    (func $end {end})
    (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
        (drop (call $write (i32.const 2) (i32.const 8) (i32.const 1) (i32.const 64)))
        (call $end)))"#
    )
}

const WRITE_FOR_EVER: &str = "(loop $l (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) \
     (i32.const 64))) (br $l))";

struct World {
    router: axum::Router,
    usage: Recorder,
    store: Store,
    _directory: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    failure: Option<Failure>,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl World {
    async fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::connect(&store::Settings {
            url: format!("sqlite://{}/test.db", directory.path().display()),
            connections_max: 4,
            acquire_timeout: Duration::from_secs(60),
        })
        .await
        .unwrap();
        store.migrate().await.unwrap();
        let auth = Authenticator::new(
            auth::Settings {
                salt: Salt::new(*b"a salt for tests, 32 bytes long.").unwrap(),
                cache_ttl: Duration::from_secs(60),
                negative_ttl: Duration::from_secs(60),
                outage_grace: Duration::from_secs(60),
                cache_keys_max: 100,
            },
            store.clone(),
        );
        let sandbox = Sandbox::start(sandbox_settings()).unwrap();
        let registry = Registry::new(store.clone(), sandbox.clone(), MIB);
        let kept = Duration::from_secs(3600);
        let usage = Recorder::open(&usage::Settings {
            directory: directory.path().join("usage"),
            bytes_max: 64 * MIB,
            when_full: usage::WhenFull::Refuse,
            sync_interval: None,
            retention: usage::Retention {
                executions: kept,
                days: kept,
            },
        })
        .unwrap();
        let mut tiers = Tiers::default();
        tiers.basic.memory_bytes_max = 8 * MIB;
        tiers.basic.deadline = Duration::from_secs(300);
        let router = api::router(api::State {
            settings: Arc::new(api::Settings {
                wasm_bytes_max: 4 * MIB,
                input_bytes_max: MIB,
                guest: GuestLimits {
                    deadline: Duration::from_secs(3),
                    memory_bytes_max: 4 * MIB,
                    stdout_bytes_max: MIB,
                    stderr_bytes_max: 1000,
                    stack_bytes_max: 1 << 20,
                    table_elements_max: 100_000,
                },
                tiers,
                sign_up: false,
                on_redis_loss: OnLoss::Local,
            }),
            store: store.clone(),
            auth,
            registry,
            sandbox,
            usage: usage.clone(),
            limiter: Limiter::new(&limits::Settings::default()),
            key_creation: Arc::default(),
        });
        World {
            router,
            usage,
            store,
            _directory: directory,
        }
    }

    async fn user(&self, email: &str, tier: Tier) -> KeyPrincipal {
        let user = self.store.user_create(email, Role::User).await.unwrap();
        KeyPrincipal {
            key_id: Uuid::now_v7(),
            user_id: user.id,
            role: Role::User,
            tier,
            scopes: Scopes::of_role(Role::User),
            expires_at: None,
            token_family: None,
        }
    }

    async fn send(
        &self,
        caller: &KeyPrincipal,
        request: axum::http::request::Builder,
        body: Vec<u8>,
    ) -> Answer {
        let principal = Principal::Key(Arc::new(caller.clone()));
        let caller = Caller {
            principal,
            request_id: "r-1".into(),
            client: None,
        };
        let request = request.extension(caller).body(Body::from(body)).unwrap();
        let (parts, body) = self
            .router
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .into_parts();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            failure: parts.extensions.get::<Failure>().cloned(),
            body: axum::body::to_bytes(body, usize::MAX).await.unwrap(),
        }
    }

    async fn post_form(
        &self,
        caller: &KeyPrincipal,
        path: &str,
        fields: &[(&str, &[u8])],
    ) -> Answer {
        let mut body = Vec::new();
        for (name, value) in fields {
            let head = format!("--XyZ\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
            body.extend_from_slice(&[head.as_bytes(), value, b"\r\n"].concat());
        }
        body.extend_from_slice(b"--XyZ--\r\n");
        let request =
            Request::post(path).header("content-type", "multipart/form-data; boundary=XyZ");
        self.send(caller, request, body).await
    }

    async fn execute(&self, caller: &KeyPrincipal, wat: &str, input: &[u8]) -> Answer {
        let fields = [("wasm", wat.as_bytes()), ("input", input)];
        self.post_form(caller, "/api/wasm/execute", &fields).await
    }
}

fn sandbox_settings() -> sandbox::Settings {
    sandbox::Settings {
        wasm_bytes_max: 4 * MIB,
        guests_max: 4,
        guests_per_share_max: 4,
        warm_max: 4,
        queue_max: 100,
        queue_timeout: Duration::from_secs(300),
        stack_bytes_max: 1 << 20,
        table_elements_max: 10_000,
        cache_bytes_max: 64 * MIB,
        compile: CompileSettings {
            worker: env!("CARGO_BIN_EXE_wasm-wizard").into(),
            workers_max: 2,
            workers_spare: 0,
            queue_max: 100,
            queue_timeout: Duration::from_secs(300),
            singlepass: true,
            timeout: Duration::from_secs(300),
            memory_bytes_max: 2048 * MIB,
        },
        artifacts: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_in_any_form_is_run_on_its_input() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let binary = sandbox::to_binary(Bytes::from_static(ECHO.as_bytes())).unwrap();

    let answer = world.execute(&user, ECHO, "héllo".as_bytes()).await;
    assert_eq!(answer.status, 200);
    let receipt = answer.json();
    assert_eq!(
        (&receipt["output"], &receipt["error"]),
        (&json!("héllo"), &Value::Null)
    );
    assert_eq!(
        (&receipt["exit_code"], &receipt["status"]),
        (&json!(0), &json!("success"))
    );
    assert_eq!(receipt["sha256_hash"], ModuleHash::of(&binary).to_string());
    assert_eq!(receipt["memory_peak_bytes"], 65_536);
    assert_eq!(receipt["request_id"], "r-1");
    assert!(receipt["duration_us"].as_u64().unwrap() < 3_000_000);

    // The names, path and form that clients of the earlier service use.
    let fields = [("wasm_file", &binary[..]), ("input_data", b"\xff\x00")];
    let receipt = world.post_form(&user, "/api/execute", &fields).await.json();
    assert_eq!(
        (&receipt["output"], &receipt["output_encoding"]),
        (&json!("/wA="), &json!("base64"))
    );

    let raw =
        Request::post("/api/wasm/execute?input=a%00b").header("content-type", "application/wasm");
    assert_eq!(
        world.send(&user, raw, binary.to_vec()).await.json()["output"],
        "a\0b"
    );
    let text = Request::post("/api/wasm/execute").header("content-type", "text/wat");
    assert_eq!(
        world.send(&user, text, ECHO.into()).await.json()["output"],
        ""
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_output_comes_with_its_receipt_in_headers() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let raw = |query: &str| {
        Request::post(format!("/api/wasm/execute{query}"))
            .header("content-type", "application/wat")
            .header("accept", "application/octet-stream")
    };
    let answer = world.send(&user, raw("?input=%ff%00"), ECHO.into()).await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"\xff\0"[..]));
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    assert_eq!(answer.headers["x-wasm-exit-code"], "0");
    assert_eq!(answer.headers["x-wasm-memory-peak-bytes"], "65536");
    assert_eq!(answer.headers["x-wasm-module-sha256"].len(), 64);
    let answer = world
        .send(&user, raw(""), guest("unreachable").into())
        .await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (422, &json!("guest_trap"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_fails_gives_what_it_wrote_and_why() {
    let world = World::new().await;
    let hurried = world.user("a@example.com", Tier::Free).await;
    let patient = world.user("b@example.com", Tier::Basic).await;
    let grow = "(if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))";
    for (end, code, limit, exit_code) in [
        (
            "(call $exit (i32.const 3))",
            "guest_exit",
            Value::Null,
            json!(3),
        ),
        ("unreachable", "guest_trap", Value::Null, Value::Null),
        (
            "(call $end)",
            "stack_limit_exceeded",
            json!("stack"),
            Value::Null,
        ),
        (
            "(loop $l (br $l))",
            "time_limit_exceeded",
            json!("time"),
            Value::Null,
        ),
        (grow, "memory_limit_exceeded", json!("memory"), Value::Null),
        (
            WRITE_FOR_EVER,
            "output_limit_exceeded",
            json!("output"),
            Value::Null,
        ),
    ] {
        // Only who runs for ever should meet a deadline.
        let user = match code {
            "time_limit_exceeded" => &hurried,
            _ => &patient,
        };
        let answer = world.execute(user, &guest(end), b"").await;
        assert_eq!(answer.status, 422, "{end}");
        assert!(
            answer.failure.is_none(),
            "a guest's failure has a body of its own"
        );
        let receipt = answer.json();
        assert_eq!(receipt["code"], code, "{receipt}");
        assert_eq!(
            (&receipt["limit"], &receipt["exit_code"]),
            (&limit, &exit_code)
        );
        assert!(
            receipt["output"].as_str().unwrap().starts_with("out"),
            "{end}"
        );
        assert_eq!(receipt["stderr"], "err");
        assert!(!receipt["error"].as_str().unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_tier_gets_more_than_the_global_limits() {
    let world = World::new().await;
    let free = world.user("a@example.com", Tier::Free).await;
    let basic = world.user("b@example.com", Tier::Basic).await;
    // 5 MiB more: over the global 4 MiB, within the 8 MiB of the Basic row.
    let grow =
        guest("(if (i32.eq (memory.grow (i32.const 80)) (i32.const -1)) (then unreachable))");
    assert_eq!(
        world.execute(&free, &grow, b"").await.json()["code"],
        "memory_limit_exceeded"
    );
    let answer = world.execute(&basic, &grow, b"").await;
    assert_eq!(
        (answer.status, &answer.json()["memory_peak_bytes"]),
        (200, &json!(81 * 65_536))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_lives_from_upload_to_delete() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let other = world.user("b@example.com", Tier::Free).await;
    let fields: &[(&str, &[u8])] = &[
        ("wasm", ECHO.as_bytes()),
        ("name", b"echo"),
        ("description", b"d"),
        ("is_public", b"1"),
    ];
    let uploaded = world.post_form(&user, "/api/wasm/upload", fields).await;
    assert_eq!(uploaded.status, 201);
    let module = uploaded.json();
    let path = format!("/api/wasm/modules/{}", module["id"].as_str().unwrap());
    assert_eq!(uploaded.headers["location"], path);
    let binary = sandbox::to_binary(Bytes::from_static(ECHO.as_bytes())).unwrap();
    assert_eq!(module["size_bytes"], binary.len());
    assert_eq!(module["sha256_hash"], ModuleHash::of(&binary).to_string());

    // Another owner of the same bytes gets an answer of the same shape, with nothing of the first.
    let again = world
        .post_form(&other, "/api/wasm/upload", &fields[..2])
        .await;
    assert_eq!(again.status, 201);
    let again = again.json();
    assert!(
        again
            .as_object()
            .unwrap()
            .keys()
            .eq(module.as_object().unwrap().keys())
    );
    assert_ne!(again["id"], module["id"]);
    assert_eq!(
        (&again["description"], &again["version"]),
        (&json!(""), &json!(1))
    );

    let run = format!("{path}/execute");
    let raw = Request::post(&run).header("content-type", "text/plain");
    assert_eq!(
        world.send(&user, raw, b"one".to_vec()).await.json()["output"],
        "one"
    );
    let form = world.post_form(&other, &run, &[("input", b"two")]).await;
    assert_eq!(form.json()["output"], "two");
    assert_eq!(
        world
            .send(&other, Request::post(&run), Vec::new())
            .await
            .json()["output"],
        ""
    );
    assert_eq!(world.usage.deliver(&world.store).await.unwrap(), 3);
    let module = world
        .send(&user, Request::get(&path), Vec::new())
        .await
        .json();
    assert_eq!(module["execution_count"], 3);
    assert!(module["last_executed"].is_string());

    assert_eq!(
        world
            .send(&other, Request::delete(&path), Vec::new())
            .await
            .status,
        403
    );
    assert_eq!(
        world
            .send(&user, Request::delete(&path), Vec::new())
            .await
            .status,
        204
    );
    assert_eq!(
        world
            .send(&user, Request::post(&run), Vec::new())
            .await
            .status,
        404
    );
    // The other owner's module is not touched by that.
    let run = format!(
        "/api/wasm/modules/{}/execute",
        again["id"].as_str().unwrap()
    );
    assert_eq!(
        world
            .send(&other, Request::post(&run), b"x".to_vec())
            .await
            .json()["output"],
        "x"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_asks_for_too_much_is_refused_and_not_stored() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let socket = r#"(module (import "wasi_snapshot_preview1" "sock_magic" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
    let table = r#"(module (table 99999999 funcref) (memory (export "memory") 1) (func (export "_start")))"#;
    for (wat, codes) in [
        (socket, &["invalid_module"][..]),
        (table, &["module_over_limit", "invalid_module"]),
        ("(module", &["invalid_module"]),
    ] {
        let fields = [("wasm", wat.as_bytes()), ("name", b"m")];
        let answer = world.post_form(&user, "/api/wasm/upload", &fields).await;
        let failure = answer.failure.unwrap();
        assert_eq!(answer.status, 422, "{wat}");
        assert!(codes.contains(&failure.code), "{failure:?}");
    }
    let list = world
        .send(&user, Request::get("/api/wasm/modules"), Vec::new())
        .await
        .json();
    assert_eq!(list["total"], 0);
}

/// The translator looks for the label of each branch among all that enclose it.
fn text_bomb() -> String {
    format!(
        "(module (func block $m {}{}))",
        "block $l ".repeat(105_000),
        "br $m ".repeat(160_000)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_hard_to_translate_is_refused_and_delays_no_binary() {
    let world = Arc::new(World::new().await);
    let user = world.user("t@example.com", Tier::Free).await;
    let binary = sandbox::to_binary(Bytes::from_static(ECHO.as_bytes())).unwrap();
    // More than are translated at a time.
    let mut bombs = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (world, user) = (Arc::clone(&world), user.clone());
        bombs.spawn(async move { world.execute(&user, &text_bomb(), b"").await });
    }
    // Finished when all are.
    let bombs = tokio::spawn(bombs.join_all());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let fields = [("wasm", &binary[..]), ("input", b"now")];
    let answer = world.post_form(&user, "/api/wasm/execute", &fields).await;
    assert_eq!(answer.json()["output"], "now");
    assert!(!bombs.is_finished(), "binary does not wait for text");
    let refused = tokio::time::timeout(Duration::from_secs(300), bombs).await;
    for answer in refused.expect("each text has its time limit").unwrap() {
        assert_eq!(answer.status, 422);
        let failure = answer.failure.unwrap();
        assert_eq!(failure.code, "compile_limit_exceeded");
        assert!(failure.message.contains("wat2wasm"), "{}", failure.message);
    }
    // And text is translated again.
    assert_eq!(world.execute(&user, ECHO, b"x").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_text_is_told_with_its_line() {
    let world = World::new().await;
    let user = world.user("l@example.com", Tier::Free).await;
    let text = "(module\n  (func\n    i32.nonsense))";
    let executed = world.execute(&user, text, b"").await;
    let fields = [("wasm", text.as_bytes()), ("name", b"n")];
    let uploaded = world.post_form(&user, "/api/wasm/upload", &fields).await;
    for answer in [executed, uploaded] {
        let failure = answer.failure.unwrap();
        assert_eq!((answer.status, failure.code), (422, "invalid_module"));
        assert!(failure.message.contains("line 3:"), "{}", failure.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_guests_at_once_see_only_their_own_input() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Enterprise).await;
    let inputs: Vec<String> = (0..60)
        .map(|number| format!("input {number} ").repeat(500))
        .collect();
    let binary = sandbox::to_binary(Bytes::from_static(ECHO.as_bytes())).unwrap();
    let forms: Vec<_> = inputs
        .iter()
        .map(|input| [("wasm", &binary[..]), ("input", input.as_bytes())])
        .collect();
    let runs = forms
        .iter()
        .map(|fields| world.post_form(&user, "/api/wasm/execute", fields));
    let answers = futures_util::future::join_all(runs).await;
    for (answer, input) in answers.iter().zip(&inputs) {
        assert_eq!(answer.status, 200);
        assert!(answer.json()["output"] == **input);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_output_is_one_string() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Basic).await;
    let input = "\u{1}é".repeat(300_000);
    let receipt = world.execute(&user, ECHO, input.as_bytes()).await.json();
    assert!(receipt["output"] == input, "{}", receipt["code"]);
}
