//! Access and refresh tokens, by real requests to a real gateway on either database.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Client, Response, StatusCode};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::{PATIENCE, eventually, postgres};

/// Runs each test once per database.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::support::gateway::gateway()).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let url = crate::support::postgres::database().await;
                super::$name(crate::support::gateway::gateway().env("DATABASE_URL", &url)).await;
            })+
        }
    };
}

on_both!(
    a_token_works_wherever_its_key_does,
    a_refresh_token_used_twice_ends_the_family,
    of_refreshes_at_the_same_time_one_wins,
    tokens_end_with_their_key,
);

/// A gateway and somebody who calls it.
struct World {
    gateway: Gateway,
    client: Client,
    key: String,
}

impl World {
    fn new(builder: Builder) -> World {
        let gateway = builder.start();
        World {
            client: gateway.client(),
            key: gateway.admin_key(),
            gateway,
        }
    }

    async fn get(&self, path: &str, bearer: &str) -> Response {
        let request = self.client.get(self.gateway.url(path));
        request.bearer_auth(bearer).send().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let request = self.client.post(self.gateway.url(path)).json(&body);
        answer(request.send().await.unwrap()).await
    }

    async fn tokens(&self, key: &str) -> Pair {
        let request = self.client.post(self.gateway.url("/api/auth/token"));
        let response = request.bearer_auth(key).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["cache-control"], "no-store");
        Pair::from(response.json::<Value>().await.unwrap())
    }

    async fn refresh(&self, token: &str) -> (StatusCode, Value) {
        let body = json!({ "refresh_token": token });
        self.post("/api/auth/token/refresh", body).await
    }

    async fn status(&self, bearer: &str) -> u16 {
        self.get("/api/auth/keys", bearer).await.status().as_u16()
    }

    /// Another key of the same user, and its id.
    async fn another_key(&self) -> (String, String) {
        let request = self.client.post(self.gateway.url("/api/auth/keys"));
        let response = request.bearer_auth(&self.key).send().await.unwrap();
        let made: Value = response.json().await.unwrap();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        (text("api_key"), text("api_key_id"))
    }
}

struct Pair {
    access: String,
    refresh: String,
}

impl From<Value> for Pair {
    fn from(answer: Value) -> Pair {
        assert_eq!(answer["token_type"], "Bearer");
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        Pair {
            access: text("access_token"),
            refresh: text("refresh_token"),
        }
    }
}

async fn answer(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    (status, response.json().await.unwrap_or(Value::Null))
}

async fn a_token_works_wherever_its_key_does(builder: Builder) {
    let role = json!({ "name": "admins", "match": { "path": "/admins" }, "auth": { "role": "admin" },
        "respond": { "body": "yes" } });
    let world = World::new(builder.route(role));
    let pair = world.tokens(&world.key).await;
    let listed = world.get("/api/auth/keys", &pair.access).await;
    assert_eq!(listed.status(), 200);
    assert_eq!(world.get("/admins", &pair.access).await.status(), 200);
    let echo = world.client.post(world.gateway.url("/fn/echo"));
    let echo = echo.bearer_auth(&pair.access).body("hello").send().await;
    assert_eq!(echo.unwrap().text().await.unwrap(), "hello");
    // Not in the other header, and not for more tokens.
    let url = world.gateway.url("/api/auth/keys");
    let odd = world.client.get(&url).header("x-api-key", &pair.access);
    assert_eq!(odd.send().await.unwrap().status(), 401);
    let more = world.client.post(world.gateway.url("/api/auth/token"));
    let more = more.bearer_auth(&pair.access).send().await.unwrap();
    assert_eq!(more.status(), 403);
    // Nor is a refresh token a credential by itself.
    assert_eq!(world.status(&pair.refresh).await, 401);
    // A key that is made with a token ends with it.
    let made = world.client.post(&url).bearer_auth(&pair.access).send();
    let (status, made) = answer(made.await.unwrap()).await;
    assert_eq!(status, 201, "{made}");
    assert!(made["expires_at"].is_string(), "{made}");
    is_signed_by_a_published_key(&world, &pair.access).await;
}

/// What somebody else does who verifies: with another library's call, from the public page alone.
async fn is_signed_by_a_published_key(world: &World, token: &str) {
    let url = world.gateway.url("/.well-known/jwks.json");
    let response = world.client.get(&url).send().await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/jwk-set+json");
    assert_eq!(header("cache-control"), "public, max-age=300");
    let page: Value = response.json().await.unwrap();
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let head: Value = serde_json::from_slice(&decode(parts[0])).unwrap();
    let keys = page["keys"].as_array().unwrap();
    let key = keys.iter().find(|key| key["kid"] == head["kid"]).unwrap();
    assert_eq!(key["d"], Value::Null, "a private key is published");
    let public = UnparsedPublicKey::new(&ED25519, decode(key["x"].as_str().unwrap()));
    let message = &token[..parts[0].len() + 1 + parts[1].len()];
    public
        .verify(message.as_bytes(), &decode(parts[2]))
        .unwrap();
    let posted = world.client.post(&url).send().await.unwrap();
    assert_eq!(posted.status(), 405);
}

async fn a_refresh_token_used_twice_ends_the_family(builder: Builder) {
    let world = World::new(builder);
    let (first, other) = (
        world.tokens(&world.key).await,
        world.tokens(&world.key).await,
    );
    let (status, second) = world.refresh(&first.refresh).await;
    assert_eq!(status, 200, "{second}");
    let second = Pair::from(second);
    assert_ne!(first.refresh, second.refresh);
    assert_eq!(world.status(&first.access).await, 200, "it lives its time");
    assert_eq!(world.status(&second.access).await, 200);
    let (status, body) = world.refresh(&first.refresh).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (401, &json!("refresh_token_reused"))
    );
    let audit = world.get("/api/admin/audit?action=token.revoke", &world.key);
    let audit = answer(audit.await).await.1;
    let told = &audit["entries"][0];
    assert_eq!(
        (&told["actor"], &told["address"]),
        (&json!("system"), &json!("127.0.0.1"))
    );
    assert!(told["request_id"].is_string() && told["key_id"].is_string());
    let family = told["subject_id"].as_str().unwrap();
    let path = format!("/api/admin/audit?subject_id={family}");
    let audit = answer(world.get(&path, &world.key).await).await.1;
    let actions = audit["entries"].as_array().unwrap().iter();
    let actions: Vec<_> = actions
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["token.revoke", "token.refresh", "token.issue"]);
    // The thief and the owner are both out, with all they hold.
    let (status, body) = world.refresh(&second.refresh).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (401, &json!("invalid_refresh_token"))
    );
    for access in [&first.access, &second.access] {
        assert_eq!(world.status(access).await, 401);
    }
    assert_eq!(world.status(&other.access).await, 200, "another family");
    eventually("the log says it", async || {
        let log = world.gateway.stderr();
        log.contains("a refresh token was used twice").then_some(())
    })
    .await;
    assert!(!world.gateway.stderr().contains(&first.refresh));
    let (status, body) = world.refresh("wwr_made-up").await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (401, &json!("invalid_refresh_token"))
    );
}

async fn of_refreshes_at_the_same_time_one_wins(builder: Builder) {
    let world = World::new(builder);
    let pair = world.tokens(&world.key).await;
    let (url, body) = (
        world.gateway.url("/api/auth/token/refresh"),
        json!({ "refresh_token": pair.refresh }),
    );
    let tries: Vec<_> = (0..6)
        .map(|_| tokio::spawn(world.client.post(&url).json(&body).send()))
        .collect();
    let mut won = 0;
    for one in tries {
        let (status, body) = answer(one.await.unwrap().unwrap()).await;
        match status.as_u16() {
            200 => won += 1,
            401 => {}
            other => panic!("{other}: {body}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(
        world.status(&world.key).await,
        200,
        "the key can begin again"
    );
}

async fn tokens_end_with_their_key(builder: Builder) {
    let world = World::new(builder);
    let (key, id) = world.another_key().await;
    let pair = world.tokens(&key).await;
    assert_eq!(world.status(&pair.access).await, 200);
    let url = world.gateway.url(&format!("/api/auth/keys/{id}"));
    let revoked = world.client.delete(url).bearer_auth(&world.key).send();
    assert_eq!(revoked.await.unwrap().status(), 204);
    assert_eq!(world.status(&pair.access).await, 401);
    let (status, body) = world.refresh(&pair.refresh).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (401, &json!("invalid_refresh_token"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_heard_of_by_other_gateways() {
    let url = postgres::database().await;
    let secret = "94d1a7e06c3b5f2208b7ce914fa3d685";
    let start = |builder: Builder| {
        let builder = builder.env("DATABASE_URL", &url).env("JWT_SECRET", secret);
        builder.env("API_SALT", "5f0c2e9b7a1d4386e8f5b0c7d2a94163")
    };
    let one = World::new(start(gateway()));
    let other = start(gateway()).in_dir_of(&one.gateway).start();
    let pair = one.tokens(&one.key).await;
    let there = async |token: &str| {
        let request = other.client().get(other.url("/api/auth/keys"));
        let response = request.bearer_auth(token).send().await.unwrap();
        response.status().as_u16()
    };
    assert_eq!(there(&pair.access).await, 200, "they share the secret");
    let unknown = json!({ "token": "no token at all" });
    assert_eq!(one.post("/api/auth/token/revoke", unknown).await.0, 204);
    let body = json!({ "token": pair.refresh });
    assert_eq!(one.post("/api/auth/token/revoke", body).await.0, 204);
    let revoked = Instant::now();
    assert_eq!(one.status(&pair.access).await, 401);
    eventually("the other gateway refuses it", async || {
        (there(&pair.access).await == 401).then_some(())
    })
    .await;
    eprintln!(
        "the other gateway heard of it after {:?}",
        revoked.elapsed()
    );
    // By its access token, too.
    let pair = one.tokens(&one.key).await;
    let body = json!({ "token": pair.access });
    assert_eq!(one.post("/api/auth/token/revoke", body).await.0, 204);
    assert_eq!(one.refresh(&pair.refresh).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signing_key_is_changed_by_a_reload() {
    let directory = crate::support::gateway::workdir();
    let secrets = directory.path().join("secrets");
    let write = |lines: &[&str]| std::fs::write(&secrets, lines.join("\n")).unwrap();
    let (old, new) = (
        "2f8a61c09d3be4475a1c6e0b97d2483f",
        "94d1a7e06c3b5f2208b7ce914fa3d685",
    );
    write(&[old]);
    let builder = gateway()
        .in_dir(directory)
        .env("JWT_SECRET_FILE", "secrets");
    let world = World::new(builder);
    let kid = |token: &str| {
        let head = URL_SAFE_NO_PAD
            .decode(token.split('.').next().unwrap())
            .unwrap();
        serde_json::from_slice::<Value>(&head).unwrap()["kid"].clone()
    };
    let of_old = world.tokens(&world.key).await;
    write(&[new, old]);
    world.gateway.signal("HUP");
    world.gateway.reloaded("ok", 1).await;
    let of_new = world.tokens(&world.key).await;
    assert_ne!(kid(&of_old.access), kid(&of_new.access));
    assert_eq!(
        world.status(&of_old.access).await,
        200,
        "it is not invalidated"
    );
    assert_eq!(world.status(&of_new.access).await, 200);
    is_signed_by_a_published_key(&world, &of_old.access).await;
    is_signed_by_a_published_key(&world, &of_new.access).await;
    write(&["short"]);
    world.gateway.signal("HUP");
    world.gateway.reloaded("refused", 1).await;
    assert_eq!(world.status(&of_old.access).await, 200);
    write(&[new]);
    world.gateway.signal("HUP");
    world.gateway.reloaded("ok", 2).await;
    assert_eq!(world.status(&of_old.access).await, 401);
    assert_eq!(world.status(&of_new.access).await, 200);
    // Refresh tokens do not depend on it.
    assert_eq!(world.refresh(&of_old.refresh).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_says_so_and_is_refreshed() {
    let world = World::new(gateway().set("auth.tokens.access_ttl", json!("1s")));
    let pair = world.tokens(&world.key).await;
    let expired = eventually("the token expires", async || {
        let response = world.get("/api/auth/keys", &pair.access).await;
        (response.status() == 401).then_some(response)
    })
    .await;
    let challenge = expired.headers()["www-authenticate"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    assert_eq!(answer(expired).await.1["code"], "token_expired");
    assert_eq!(world.refresh(&pair.refresh).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_development_outlive_a_restart_and_can_be_switched_off() {
    let mut world = World::new(gateway());
    let pair = world.tokens(&world.key).await;
    let secret = world.gateway.dir().join("data/jwt_secret");
    let mode = std::os::unix::fs::PermissionsExt::mode(&secret.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    world.gateway.terminate();
    assert!(world.gateway.wait_for(PATIENCE).success());
    let again = gateway().in_dir_of(&world.gateway).start();
    let status = |gateway: &Gateway, path: &str| {
        let request = gateway
            .client()
            .get(gateway.url(path))
            .bearer_auth(&pair.access);
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(status(&again, "/api/auth/keys").await, 200);
    let off = gateway().set("auth.tokens.enabled", json!(false));
    let off = off.in_dir_of(&world.gateway).start();
    assert_eq!(status(&off, "/api/auth/keys").await, 401);
    let client = off.client();
    assert_eq!(
        client
            .get(off.url("/.well-known/jwks.json"))
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
    for path in ["/api/auth/token", "/api/auth/token/refresh"] {
        let body = json!({ "refresh_token": pair.refresh });
        let mut request = client.post(off.url(path));
        request = if path.ends_with("refresh") {
            request.json(&body)
        } else {
            request.bearer_auth(&world.key)
        };
        let (status, body) = answer(request.send().await.unwrap()).await;
        assert_eq!(
            (status.as_u16(), &body["code"]),
            (404, &json!("not_found")),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_requests_for_tokens_get_clear_answers() {
    let world = World::new(gateway());
    let pair = world.tokens(&world.key).await;
    let long = format!(r#"{{"refresh_token":"{}"}}"#, "x".repeat(20_000));
    let deep = "{\"refresh_token\":".to_owned() + &"[".repeat(5_000);
    let json_type = "application/json";
    for (path, kind, body, status, code) in [
        ("refresh", json_type, "", 400, "bad_request"),
        ("refresh", json_type, "[]", 400, "malformed_json"),
        ("refresh", json_type, "{}", 400, "malformed_json"),
        (
            "refresh",
            json_type,
            r#"{"refresh_token":1}"#,
            400,
            "malformed_json",
        ),
        (
            "refresh",
            json_type,
            r#"{"refresh_token":"x","more":1}"#,
            400,
            "malformed_json",
        ),
        (
            "refresh",
            json_type,
            r#"{"refresh_token":"\u0000"}"#,
            401,
            "invalid_refresh_token",
        ),
        ("refresh", json_type, deep.as_str(), 400, "malformed_json"),
        (
            "refresh",
            json_type,
            long.as_str(),
            413,
            "payload_too_large",
        ),
        (
            "refresh",
            "text/plain",
            r#"{"refresh_token":"x"}"#,
            415,
            "unsupported_media_type",
        ),
        (
            "refresh",
            "application/x-www-form-urlencoded",
            "refresh_token=x",
            415,
            "unsupported_media_type",
        ),
        ("revoke", json_type, "", 400, "bad_request"),
        (
            "revoke",
            json_type,
            r#"{"refresh_token":"x"}"#,
            400,
            "malformed_json",
        ),
    ] {
        let url = world.gateway.url(&format!("/api/auth/token/{path}"));
        let request = world.client.post(url).header("content-type", kind);
        let response = request.body(body.to_owned()).send().await.unwrap();
        let (found, answer) = answer(response).await;
        let body: String = body.chars().take(60).collect();
        assert_eq!(
            (found.as_u16(), &answer["code"]),
            (status, &json!(code)),
            "{path} {body}"
        );
    }
    let url = world.gateway.url("/api/auth/token");
    let anonymous = world.client.post(&url).send().await.unwrap();
    assert_eq!(anonymous.status(), 401);
    let odd = world.client.post(&url).bearer_auth(&world.key);
    let odd = odd.json(&json!({ "role": "admin" })).send().await.unwrap();
    assert_eq!(odd.status(), 400);
    assert_eq!(world.get("/api/auth/token", &world.key).await.status(), 405);
    // A refresh that carries a bad credential is refused for that, and costs the token nothing.
    let refresh = world
        .client
        .post(world.gateway.url("/api/auth/token/refresh"));
    let refresh = refresh
        .bearer_auth("x")
        .json(&json!({ "refresh_token": pair.refresh }));
    assert_eq!(refresh.send().await.unwrap().status(), 401);
    assert_eq!(world.refresh(&pair.refresh).await.0, 200);
}

#[tokio::test]
async fn refreshes_are_bounded_per_address() {
    let world = World::new(gateway());
    let refresh = async || {
        let request = world
            .client
            .post(world.gateway.url("/api/auth/token/refresh"))
            .json(&json!({ "refresh_token": "wwr_unknown" }));
        request.send().await.unwrap()
    };
    let mut refused = 0;
    let limited = loop {
        let response = refresh().await;
        if response.status() != StatusCode::UNAUTHORIZED {
            break response;
        }
        refused += 1;
        assert!(refused <= 300, "{refused} attempts");
    };
    assert!(refused >= 120, "after {refused} attempts");
    assert!(limited.headers().contains_key("retry-after"));
    let (status, body) = answer(limited).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("rate_limited"))
    );
}
