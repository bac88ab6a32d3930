//! Who may do what: every endpoint against every kind of key, as the table of endpoints says.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use http::Method;
use serde_json::{Value, json};
use wasm_wizard::api::{Asks, ENDPOINTS, Endpoint};
use wasm_wizard::auth::{Role, Scope, Scopes};
use wasm_wizard::limits::Tier;

use crate::support::accounts::Accounts;
use crate::support::gateway::{Builder, Gateway, gateway};

/// An id that nothing has.
const NOBODY: &str = "0197aaaa-0000-7000-8000-000000000000";

/// Requests under way at the same time.
const AT_ONCE: usize = 16;

const ROLES: [Role; 3] = [Role::User, Role::Support, Role::Admin];
const TIERS: [Tier; 4] = [Tier::Free, Tier::Basic, Tier::Pro, Tier::Enterprise];

/// One kind of caller.
#[derive(Debug, Clone, Copy)]
struct Kind {
    role: Role,
    scopes: Scopes,
    tier: Tier,
}

/// A gateway on which no test of privileges meets a rate limit.
fn unlimited() -> Builder {
    ["FREE", "BASIC", "PRO", "ENTERPRISE"]
        .iter()
        .fold(gateway(), |builder, tier| {
            let tier = tier.to_lowercase();
            builder
                .set(&format!("tiers.{tier}.per_minute"), json!(1_000_000))
                .set(&format!("tiers.{tier}.per_day"), json!(10_000_000))
        })
}

/// What a key that has all it needs gets for a request without a body, about things that are not there.
fn allowed_status(endpoint: &Endpoint) -> u16 {
    match (endpoint.method.as_str(), endpoint.path) {
        ("POST", "/api/wasm/execute" | "/api/execute" | "/api/wasm/upload") => 415,
        ("GET", "/api/wasm/modules" | "/api/auth/keys") => 200,
        ("GET", "/api/usage" | "/api/usage/executions") => 200,
        ("GET", "/api/admin/usage" | "/api/admin/usage/executions") => 200,
        ("GET", "/api/admin/users" | "/api/admin/keys") => 200,
        ("GET", "/api/admin/tiers" | "/api/admin/audit") => 200,
        ("POST", "/api/admin/users" | "/api/admin/keys") => 400,
        ("GET", "/api/admin/users/{id}") => 404,
        ("PATCH", "/api/admin/users/{id}") => 400,
        ("DELETE", "/api/admin/keys/{id}") => 404,
        ("POST", "/api/admin/modules/{id}/stop" | "/api/admin/modules/{id}/resume") => 404,
        ("POST", "/api/auth/keys/{id}/rotate") => 404,
        // Sign-up is off.
        ("POST", "/api/auth/register") => 404,
        ("GET" | "DELETE", "/api/wasm/modules/{id}") => 404,
        ("POST", "/api/wasm/modules/{id}/execute") => 404,
        ("POST", "/api/auth/keys") => 201,
        ("DELETE", "/api/auth/keys/{id}") => 404,
        ("POST", "/api/auth/token") => 200,
        ("GET", "/api/openapi.json" | "/api/docs" | "/api/docs.css") => 200,
        ("POST", "/api/auth/token/refresh" | "/api/auth/token/revoke") => 400,
        (method, path) => panic!("say what {method} {path} answers to a caller who may use it"),
    }
}

/// What the table of endpoints says of a caller: status and code.
fn expected(endpoint: &Endpoint, kind: Option<Kind>) -> (u16, Option<&'static str>) {
    match (endpoint.asks, kind) {
        (Asks::Key { .. } | Asks::AnyKey, None) => (401, Some("unauthorized")),
        (Asks::Key { scope, .. }, Some(kind)) if !kind.scopes.has(scope) => {
            (403, Some("insufficient_scope"))
        }
        (Asks::Key { role, .. }, Some(kind)) if kind.role < role => (403, Some("forbidden")),
        (Asks::Key { .. } | Asks::AnyKey, Some(_)) | (Asks::Nothing, _) => {
            (allowed_status(endpoint), None)
        }
    }
}

/// No scope alone, each alone, each missing, and all.
fn sets_of_scopes() -> Vec<Scopes> {
    let all = Scopes::of_role(Role::Admin);
    let mut sets: Vec<Scopes> = Scope::ALL
        .into_iter()
        .flat_map(|scope| [[scope].into_iter().collect(), all.without(scope)])
        .collect();
    sets.push(all);
    sets
}

/// The status of a request to an endpoint, and the code in its body.
async fn ask(
    client: &reqwest::Client,
    gateway: &Gateway,
    endpoint: &Endpoint,
    key: Option<&str>,
) -> (u16, Option<String>) {
    let url = gateway.url(&endpoint.path.replace("{id}", NOBODY));
    let mut request = client.request(endpoint.method.clone(), url);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap_or_default();
    (status, body["code"].as_str().map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_endpoint_asks_for_what_its_row_says() {
    let gateway = unlimited().start();
    let accounts = Accounts::of(&gateway).await;
    let mut callers: Vec<(Option<Kind>, Option<String>)> = vec![(None, None)];
    for role in ROLES {
        for tier in TIERS {
            let user = accounts.user(role, tier).await;
            for scopes in sets_of_scopes() {
                let secret = accounts.key(&user, scopes).await.secret;
                callers.push((Some(Kind { role, scopes, tier }), Some(secret)));
            }
        }
    }
    let client = gateway.client();
    let asked = callers.iter().flat_map(|(kind, key)| {
        ENDPOINTS
            .iter()
            .map(move |endpoint| (endpoint, *kind, key.as_deref()))
    });
    let answers: Vec<_> = futures_util::stream::iter(asked)
        .map(|(endpoint, kind, key)| {
            let (client, gateway) = (&client, &gateway);
            async move {
                let answer = ask(client, gateway, endpoint, key).await;
                (endpoint, kind, answer)
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut wrong = BTreeMap::new();
    for (endpoint, kind, (status, code)) in &answers {
        let (expected_status, expected_code) = expected(endpoint, *kind);
        if *status != expected_status
            || expected_code.is_some_and(|expected| code.as_deref() != Some(expected))
        {
            let by = kind.map_or("anyone".to_owned(), |Kind { role, scopes, tier }| {
                format!("{role:?} with {scopes} on {tier}")
            });
            let asked = format!("{} {} by {by}", endpoint.method, endpoint.path);
            wrong.insert(asked, (status, code, expected_status, expected_code));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(answers.len(), callers.len() * ENDPOINTS.len());
}

/// What the documentation lists is what there is.
#[test]
fn every_endpoint_is_documented() {
    let docs = std::fs::read_to_string(crate::support::root().join("docs/API.md")).unwrap();
    for endpoint in ENDPOINTS {
        let name = format!("`{} {}`", endpoint.method, endpoint.path);
        let row = docs
            .lines()
            .find(|line| line.starts_with("| `") && line.contains(&name));
        let row = row.unwrap_or_else(|| panic!("{name} has no row in docs/API.md"));
        let asked = match endpoint.asks {
            Asks::Key { scope, role } => {
                let role = match role {
                    Role::User => "",
                    Role::Support => ", support",
                    Role::Admin => ", admin",
                };
                format!("| `{scope}`{role} |")
            }
            Asks::AnyKey => "| any |".to_owned(),
            Asks::Nothing => "| |".to_owned(),
        };
        assert!(
            row.contains(&asked),
            "the row of {name} must say {asked:?}: {row}"
        );
    }
}

/// Only the table makes endpoints: one that was added to a router by hand would have no guard.
#[test]
fn no_endpoint_is_made_beside_the_table() {
    let mut directories = vec![crate::support::root().join("src/api")];
    while let Some(directory) = directories.pop() {
        for file in std::fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let expected = usize::from(path.ends_with("access.rs"));
                assert_eq!(
                    text.matches(".route(").count(),
                    expected,
                    "{}",
                    path.display()
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_ask_for_execute_and_for_admin_with_a_role() {
    let respond = json!({ "status": 200, "body": "in", "content_type": "text/plain" });
    let route = |name: &str, auth: Value, target: &str, what: Value| json!({ "name": name, "match": { "path": format!("/{name}") }, "auth": auth, target: what });
    // Nothing listens there: who is let in gets 502 or 503.
    let upstream = json!({ "upstreams": [{ "url": "http://127.0.0.1:1" }] });
    let gateway = unlimited()
        .route(route("fixed", json!("key"), "respond", respond.clone()))
        .route(route("proxied", json!("key"), "proxy", upstream))
        .route(route(
            "users",
            json!({ "role": "user" }),
            "respond",
            respond.clone(),
        ))
        .route(route(
            "admins",
            json!({ "role": "admin" }),
            "respond",
            respond,
        ))
        .start();
    let accounts = Accounts::of(&gateway).await;
    let client = gateway.client();
    for role in ROLES {
        let user = accounts.user(role, Tier::Free).await;
        for scopes in sets_of_scopes() {
            let key = accounts.key(&user, scopes).await.secret;
            let status = async |path: &str| {
                let request = client.get(gateway.url(path)).bearer_auth(&key);
                request.send().await.unwrap().status().as_u16()
            };
            let executes = scopes.has(Scope::Execute);
            let says = |allowed: bool| if allowed { 200 } else { 403 };
            let about = format!("{role:?} {scopes}");
            assert_eq!(status("/fixed").await, says(executes), "{about}");
            assert_eq!(status("/users").await, says(executes), "{about}");
            let guest = client.post(gateway.url("/fn/echo")).bearer_auth(&key);
            let guest = guest.body("x").send().await.unwrap().status();
            assert_eq!(guest, says(executes), "{about}");
            let admin = executes && scopes.has(Scope::Admin) && role == Role::Admin;
            assert_eq!(status("/admins").await, says(admin), "{about}");
            let proxied = status("/proxied").await;
            assert_eq!(proxied == 403, !executes, "{about}: {proxied}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_no_key_that_is_more_than_itself() {
    let gateway = unlimited().start();
    let accounts = Accounts::of(&gateway).await;
    let client = gateway.client();
    let make = async |key: &str, body: Value| {
        let request = client.post(gateway.url("/api/auth/keys"));
        let answer = request.bearer_auth(key).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap())
    };
    for role in ROLES {
        let user = accounts.user(role, Tier::Enterprise).await;
        for tier in TIERS {
            for scopes in sets_of_scopes() {
                if !scopes.has(Scope::Keys) {
                    continue;
                }
                let maker = accounts.key_on(&user, scopes, tier).await.secret;
                for other in TIERS {
                    let (status, made) = make(&maker, json!({ "tier": other })).await;
                    assert_eq!(
                        status,
                        if other > tier { 402 } else { 201 },
                        "{tier} {other}"
                    );
                    forget(&client, &gateway, &maker, &made).await;
                }
                for scope in Scope::ALL {
                    let (status, made) = make(&maker, json!({ "scopes": [scope] })).await;
                    let expected = if scopes.has(scope) { 201 } else { 403 };
                    assert_eq!(status, expected, "{scopes}: {scope}");
                    forget(&client, &gateway, &maker, &made).await;
                }
            }
        }
    }
    // Not in two steps either: what a key makes has its bounds.
    let user = accounts.user(Role::Admin, Tier::Pro).await;
    let maker = accounts
        .key(&user, Scopes::of_role(Role::Admin))
        .await
        .secret;
    let asked = json!({ "scopes": ["keys"], "tier": "free", "expires_in_days": 1 });
    let (_, made) = make(&maker, asked).await;
    let lesser = made["api_key"].as_str().unwrap();
    assert_eq!(make(lesser, json!({ "scopes": ["admin"] })).await.0, 403);
    assert_eq!(make(lesser, json!({ "tier": "basic" })).await.0, 402);
    assert_eq!(make(lesser, json!({ "expires_in_days": 2 })).await.0, 400);
    let (status, least) = make(lesser, json!({})).await;
    assert_eq!(status, 201);
    assert_eq!(least["scopes"], json!(["keys"]));
    assert_eq!(least["tier"], "free");
    assert_eq!(least["expires_at"], made["expires_at"]);
}

/// Revokes a key that was made, so that no user has too many.
async fn forget(client: &reqwest::Client, gateway: &Gateway, maker: &str, made: &Value) {
    if let Some(id) = made["api_key_id"].as_str() {
        let url = gateway.url(&format!("/api/auth/keys/{id}"));
        let gone = client.delete(url).bearer_auth(maker).send().await.unwrap();
        assert_eq!(gone.status(), 204);
    }
}

/// Another user's keys and modules are as good as not there, whatever the caller's role is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_anothers_is_not_there() {
    let gateway = unlimited().start();
    let accounts = Accounts::of(&gateway).await;
    let client = gateway.client();
    let owner = accounts.user(Role::User, Tier::Free).await;
    let owned = accounts.key(&owner, Scopes::of_role(Role::User)).await;
    let module = accounts
        .store
        .module_create(wasm_wizard::store::modules::NewModule {
            owner_id: owner.id,
            name: "mine",
            description: "",
            hash: wasm_wizard::sandbox::ModuleHash::of(b"\0asm\x01\0\0\0"),
            wasm: b"\0asm\x01\0\0\0",
            is_public: false,
        })
        .await
        .unwrap();
    let (key_path, module_path) = (
        format!("/api/auth/keys/{}", owned.id),
        format!("/api/wasm/modules/{}", module.id),
    );
    let run_path = format!("{module_path}/execute");
    for role in ROLES {
        let other = accounts.user(role, Tier::Enterprise).await;
        let key = accounts.key(&other, Scopes::of_role(role)).await.secret;
        for (method, path) in [
            (Method::DELETE, &key_path),
            (Method::GET, &module_path),
            (Method::DELETE, &module_path),
            (Method::POST, &run_path),
        ] {
            let request = client.request(method.clone(), gateway.url(path));
            let answer = request.bearer_auth(&key).send().await.unwrap();
            assert_eq!(answer.status(), 404, "{role:?} {method} {path}");
        }
        let listed: Value = client
            .get(gateway.url("/api/auth/keys"))
            .bearer_auth(&key)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert_eq!(listed["keys"].as_array().unwrap().len(), 1, "{role:?}");
    }
    let answer = client
        .get(gateway.url(&module_path))
        .bearer_auth(&owned.secret)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
}
