//! The router as the gateway calls it, over a real database. What runs guests is in
//! `tests/all/api.rs`, where the program is there to compile them.

mod codes;
mod keys;
mod modules;

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Method;
use serde_json::Value;
use tower::ServiceExt;
use uuid::Uuid;

use super::*;
use crate::auth::{KeyPrincipal, Role, Salt, Scopes};
use crate::limits::{Limiter, OnLoss, Tier};
use crate::sandbox::{self, CompileSettings, ModuleHash};
use crate::store::modules::NewModule;

const MULTIPART: &str = "multipart/form-data; boundary=XyZ";

/// The router, its database and a few users.
struct World {
    router: axum::Router,
    state: State,
    _directory: tempfile::TempDir,
}

struct Answer {
    status: u16,
    failure: Option<Failure>,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and code of a failure.
    fn failed(&self) -> (u16, &'static str) {
        (
            self.status,
            self.failure.as_ref().map_or("", |failure| failure.code),
        )
    }
}

fn recorder(directory: &std::path::Path) -> Recorder {
    let kept = Duration::from_secs(3600);
    Recorder::open(&crate::usage::Settings {
        directory: directory.join("usage"),
        bytes_max: 64 << 20,
        when_full: crate::usage::WhenFull::Refuse,
        sync_interval: None,
        retention: crate::usage::Retention {
            executions: kept,
            days: kept,
        },
    })
    .unwrap()
}

impl World {
    async fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::connect(&crate::store::Settings {
            url: format!("sqlite://{}/test.db", directory.path().display()),
            connections_max: 4,
            acquire_timeout: Duration::from_secs(5),
        })
        .await
        .unwrap();
        store.migrate().await.unwrap();
        let auth = Authenticator::new(
            crate::auth::Settings {
                salt: Salt::new(*b"a salt for tests, 32 bytes long.").unwrap(),
                cache_ttl: Duration::from_secs(60),
                negative_ttl: Duration::from_secs(60),
                outage_grace: Duration::from_secs(60),
                cache_keys_max: 100,
            },
            store.clone(),
        );
        let sandbox = Sandbox::start(sandbox_settings()).unwrap();
        let state = State {
            settings: Arc::new(Settings {
                wasm_bytes_max: 10_000,
                input_bytes_max: 1_000,
                guest: GuestLimits {
                    deadline: Duration::from_secs(5),
                    memory_bytes_max: 1 << 20,
                    stdout_bytes_max: 1000,
                    stderr_bytes_max: 1000,
                    stack_bytes_max: 1 << 20,
                    table_elements_max: 100_000,
                },
                tiers: Tiers::default(),
                sign_up: true,
                on_redis_loss: OnLoss::Local,
            }),
            registry: Registry::new(store.clone(), sandbox.clone(), 10_000),
            store,
            auth,
            sandbox,
            usage: recorder(directory.path()),
            limiter: Limiter::new(&crate::limits::Settings::default()),
            key_creation: Arc::default(),
        };
        World {
            router: router(state.clone()),
            state,
            _directory: directory,
        }
    }

    async fn user(&self, email: &str, tier: Tier) -> KeyPrincipal {
        let user = self
            .state
            .store
            .user_create(email, Role::User)
            .await
            .unwrap();
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

    async fn module(&self, owner: &KeyPrincipal, name: &str, is_public: bool) -> Uuid {
        let wasm = b"\0asm\x01\0\0\0";
        let new = NewModule {
            owner_id: owner.user_id,
            name,
            description: "",
            hash: ModuleHash::of(wasm),
            wasm,
            is_public,
        };
        self.state.store.module_create(new).await.unwrap().id
    }

    async fn send(&self, request: Request) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        assert_eq!(parts.headers["cache-control"], "no-store");
        Answer {
            status: parts.status.as_u16(),
            failure: parts.extensions.get::<Failure>().cloned(),
            body: axum::body::to_bytes(body, usize::MAX).await.unwrap(),
        }
    }

    async fn call(&self, caller: &KeyPrincipal, method: Method, path: &str) -> Answer {
        self.send(request(Some(caller), method, path, None, Bytes::new()))
            .await
    }

    async fn post(
        &self,
        caller: &KeyPrincipal,
        path: &str,
        kind: &str,
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send(request(
            Some(caller),
            Method::POST,
            path,
            Some(kind),
            body.into(),
        ))
        .await
    }
}

/// This test program is no compiler of modules, and no test here gets as far as to compile.
fn sandbox_settings() -> sandbox::Settings {
    sandbox::Settings {
        wasm_bytes_max: 10_000,
        guests_max: 1,
        guests_per_share_max: 1,
        warm_max: 1,
        queue_max: 1,
        queue_timeout: Duration::from_secs(1),
        stack_bytes_max: 1 << 20,
        table_elements_max: 100,
        cache_bytes_max: 1 << 20,
        compile: CompileSettings {
            worker: std::env::current_exe().unwrap(),
            workers_max: 1,
            workers_spare: 0,
            queue_max: 1,
            queue_timeout: Duration::from_secs(60),
            singlepass: true,
            timeout: Duration::from_secs(1),
            memory_bytes_max: 1 << 30,
        },
        artifacts: None,
    }
}

fn request(
    caller: Option<&KeyPrincipal>,
    method: Method,
    path: &str,
    kind: Option<&str>,
    body: Bytes,
) -> Request {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    let principal = match caller {
        Some(principal) => Principal::Key(Arc::new(principal.clone())),
        None => Principal::Anonymous,
    };
    request
        .extension(Caller {
            principal,
            request_id: "r-1".into(),
            client: None,
        })
        .body(Body::from(body))
        .unwrap()
}

fn form(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        let head = format!("--XyZ\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"--XyZ--\r\n");
    bytes
}

const RESOURCES: &[(Method, &str)] = &[
    (Method::POST, "/api/wasm/execute"),
    (Method::POST, "/api/execute"),
    (Method::POST, "/api/wasm/upload"),
    (Method::GET, "/api/wasm/modules"),
    (
        Method::GET,
        "/api/wasm/modules/0197aaaa-0000-7000-8000-000000000000",
    ),
    (
        Method::DELETE,
        "/api/wasm/modules/0197aaaa-0000-7000-8000-000000000000",
    ),
    (
        Method::POST,
        "/api/wasm/modules/0197aaaa-0000-7000-8000-000000000000/execute",
    ),
    (Method::GET, "/api/auth/keys"),
    (Method::POST, "/api/auth/keys"),
    (
        Method::DELETE,
        "/api/auth/keys/0197aaaa-0000-7000-8000-000000000000",
    ),
];

#[tokio::test]
async fn every_resource_wants_a_key() {
    let world = World::new().await;
    for (method, path) in RESOURCES {
        let answer = world
            .send(request(None, method.clone(), path, None, Bytes::new()))
            .await;
        assert_eq!(answer.failed(), (401, "unauthorized"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_request_without_its_caller_is_our_own_failure() {
    let world = World::new().await;
    for (method, path) in RESOURCES {
        let bare = Request::builder()
            .method(method)
            .uri(*path)
            .body(Body::empty())
            .unwrap();
        let answer = world.send(bare).await;
        assert_eq!(answer.failed(), (500, "internal_error"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones_and_a_wrong_path_nothing() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    for (method, path, allow) in [
        (Method::GET, "/api/wasm/execute", "POST"),
        (Method::PUT, "/api/execute", "POST"),
        (Method::POST, "/api/wasm/modules", "GET,HEAD"),
        (Method::POST, "/api/wasm/modules/x", "GET,HEAD,DELETE"),
        (Method::PATCH, "/api/auth/keys", "GET,HEAD,POST"),
    ] {
        let answer = world.call(&user, method, path).await;
        assert_eq!(answer.failed(), (405, "method_not_allowed"), "{path}");
        assert_eq!(
            answer.failure.unwrap().allow.as_deref(),
            Some(allow),
            "{path}"
        );
    }
    for path in [
        "/",
        "/api",
        "/api/",
        "/api/wasm",
        "/api/wasm/modules/",
        "/api/wasm/modules/a/b",
        "/API/execute",
    ] {
        let answer = world.call(&user, Method::GET, path).await;
        assert_eq!(answer.failed(), (404, "not_found"), "{path}");
    }
}

#[tokio::test]
async fn a_path_id_is_a_uuid() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    for path in [
        "/api/wasm/modules/1",
        "/api/wasm/modules/%ff",
        "/api/wasm/modules/..%2f..",
        "/api/wasm/modules/%00",
    ] {
        let answer = world.call(&user, Method::GET, path).await;
        assert_eq!(answer.failed(), (400, "bad_request"), "{path}");
    }
}

#[tokio::test]
async fn without_a_database_the_answer_is_503() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    world.state.store.close().await;
    for (method, path) in RESOURCES.iter().filter(|(_, path)| {
        !path.ends_with("load") && !path.ends_with("wasm/execute") && *path != "/api/execute"
    }) {
        let answer = world.call(&user, method.clone(), path).await;
        assert_eq!(
            answer.failed(),
            (503, "database_unavailable"),
            "{method} {path}"
        );
        assert!(answer.failure.unwrap().retry_after.is_some());
    }
}
