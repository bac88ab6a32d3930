//! API keys: made, listed, revoked, bounded.

use axum::http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::{MULTIPART, World};
use crate::auth::Principal;
use crate::limits::Tier;

#[tokio::test]
async fn a_key_is_made_shown_and_revoked() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Pro).await;
    let other = world.user("b@example.com", Tier::Free).await;
    let body = r#"{"name":"ci","tier":"basic","expires_in_days":30}"#;
    let made = world
        .post(
            &user,
            "/api/auth/keys",
            "application/json; charset=utf-8",
            body,
        )
        .await;
    assert_eq!(made.status, 201);
    let made = made.json();
    let secret = made["api_key"].as_str().unwrap();
    assert!(secret.starts_with("ww_") && secret.starts_with(made["prefix"].as_str().unwrap()));
    assert_eq!(
        (&made["name"], &made["tier"]),
        (&json!("ci"), &json!("basic"))
    );

    let mut headers = HeaderMap::new();
    headers.insert("x-api-key", secret.parse().unwrap());
    let Principal::Key(principal) = world.state.auth.authenticate(&headers).await.unwrap() else {
        panic!("the new key is not accepted")
    };
    assert_eq!(
        (principal.user_id, principal.tier),
        (user.user_id, Tier::Basic)
    );

    let list = world.call(&user, Method::GET, "/api/auth/keys").await;
    assert!(
        !list
            .body
            .windows(secret.len())
            .any(|window| window == secret.as_bytes())
    );
    let listed = &list.json()["keys"][0];
    assert_eq!(listed["id"], made["api_key_id"]);
    assert_eq!(listed["expires_at"], made["expires_at"]);
    assert_eq!(listed["revoked_at"], Value::Null);
    let others = world
        .call(&other, Method::GET, "/api/auth/keys")
        .await
        .json();
    assert_eq!(others, json!({ "keys": [] }));

    let path = format!("/api/auth/keys/{}", made["api_key_id"].as_str().unwrap());
    assert_eq!(
        world.call(&other, Method::DELETE, &path).await.failed(),
        (404, "not_found")
    );
    // The key revokes itself, and stops working at once although it was cached.
    assert_eq!(
        world.call(&principal, Method::DELETE, &path).await.status,
        204
    );
    assert!(world.state.auth.authenticate(&headers).await.is_err());
    assert_eq!(
        world.call(&user, Method::DELETE, &path).await.failed(),
        (404, "not_found")
    );
    let list = world
        .call(&user, Method::GET, "/api/auth/keys")
        .await
        .json();
    assert!(list["keys"][0]["revoked_at"].is_string());
}

#[tokio::test]
async fn a_key_needs_no_body_and_refuses_a_bad_one() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let made = world.call(&user, Method::POST, "/api/auth/keys").await;
    assert_eq!((made.status, &made.json()["tier"]), (201, &json!("free")));
    assert_eq!(made.json()["expires_at"], Value::Null);
    for (kind, body, expected) in [
        (
            "application/json",
            r#"{"role":"admin"}"#,
            (400, "malformed_json"),
        ),
        (
            "application/json",
            r#"{"tier":"pro"}"#,
            (402, "tier_too_low"),
        ),
        ("application/json", r#"{"name":""}"#, (400, "bad_request")),
        ("text/plain", "{}", (415, "unsupported_media_type")),
        (MULTIPART, "{}", (415, "unsupported_media_type")),
    ] {
        let answer = world.post(&user, "/api/auth/keys", kind, body).await;
        assert_eq!(answer.failed(), expected, "{body}");
    }
    let large = format!("\"{}\"", "x".repeat(20_000));
    let answer = world
        .post(&user, "/api/auth/keys", "application/json", large)
        .await;
    assert_eq!(answer.failed(), (413, "payload_too_large"));
}

#[tokio::test]
async fn a_user_has_a_hundred_live_keys_at_most_however_many_ask_at_once() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let make = || world.call(&user, Method::POST, "/api/auth/keys");
    let answers = futures_util::future::join_all((0..110).map(|_| make())).await;
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status != 201)
        .collect();
    assert_eq!(refused.len(), 10);
    assert!(
        refused
            .iter()
            .all(|answer| answer.failed() == (409, "too_many_keys"))
    );
    let one = answers
        .iter()
        .find(|answer| answer.status == 201)
        .unwrap()
        .json();
    let path = format!("/api/auth/keys/{}", one["api_key_id"].as_str().unwrap());
    assert_eq!(world.call(&user, Method::DELETE, &path).await.status, 204);
    assert_eq!(make().await.status, 201);
    assert_eq!(make().await.failed(), (409, "too_many_keys"));
}
