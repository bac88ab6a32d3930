//! Users, keys and their changes through the real gateway: rotation, administration, the audit, sign-up, guesses.

use serde_json::{Value, json};
use wasm_wizard::auth::{Role, Scopes};
use wasm_wizard::limits::Tier;

use crate::support::accounts::Accounts;
use crate::support::gateway::{Gateway, gateway, run};
use crate::support::{eventually, postgres};

/// One caller of the API.
struct Caller<'a> {
    gateway: &'a Gateway,
    client: reqwest::Client,
    key: String,
}

impl<'a> Caller<'a> {
    fn new(gateway: &'a Gateway, key: impl Into<String>) -> Caller<'a> {
        Caller {
            gateway,
            client: gateway.client(),
            key: key.into(),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = self.gateway.url(path);
        let mut request = self.client.request(method.parse().unwrap(), url);
        if !self.key.is_empty() {
            request = request.bearer_auth(&self.key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (
            answer.status().as_u16(),
            answer.json().await.unwrap_or_default(),
        )
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, None).await
    }

    async fn status(&self) -> u16 {
        self.get("/api/auth/keys").await.0
    }
}

#[tokio::test]
async fn an_admin_makes_changes_and_stops_users() {
    let gateway = gateway().start();
    let admin = Caller::new(&gateway, gateway.admin_key());
    let new = json!({ "email": "Me@example.org", "tier": "basic" });
    let (status, user) = admin
        .ask("POST", "/api/admin/users", Some(new.clone()))
        .await;
    assert_eq!(status, 201, "{user}");
    assert_eq!(
        admin.ask("POST", "/api/admin/users", Some(new)).await.0,
        409
    );
    let id = user["id"].as_str().unwrap();
    let path = format!("/api/admin/users/{id}");
    assert_eq!(admin.get(&path).await, (200, user.clone()));
    let (_, found) = admin
        .get("/api/admin/users?email=mE@ex&role=user&disabled=false")
        .await;
    assert_eq!(
        (&found["users"], &found["total"]),
        (&json!([user]), &json!(1))
    );
    assert_eq!(admin.get("/api/admin/users?email=%25").await.1["total"], 0);
    for bad in [
        "role=root",
        "tier=gold",
        "page=0",
        "limit=101",
        "disabled=maybe",
    ] {
        assert_eq!(
            admin.get(&format!("/api/admin/users?{bad}")).await.0,
            400,
            "{bad}"
        );
    }

    let asked = json!({ "user_id": id, "key": { "name": "theirs" } });
    let (status, key) = admin.ask("POST", "/api/admin/keys", Some(asked)).await;
    assert_eq!((status, &key["tier"]), (201, &json!("basic")), "{key}");
    assert_eq!(
        key["scopes"],
        json!(["execute", "modules:read", "modules:write", "keys"])
    );
    let theirs = Caller::new(&gateway, key["api_key"].as_str().unwrap());
    assert_eq!(theirs.status().await, 200);
    for more in [json!({ "tier": "pro" }), json!({ "scopes": ["admin"] })] {
        let asked = json!({ "user_id": id, "key": more });
        let (status, _) = admin.ask("POST", "/api/admin/keys", Some(asked)).await;
        assert!(matches!(status, 402 | 403), "{more}: {status}");
    }

    // Its key goes with the user's tier.
    let (status, _) = admin
        .ask("PATCH", &path, Some(json!({ "tier": "pro" })))
        .await;
    assert_eq!(status, 200);
    assert_eq!(
        theirs.get("/api/auth/keys").await.1["keys"][0]["tier"],
        "pro"
    );
    let (_, tiers) = admin.get("/api/admin/tiers").await;
    assert_eq!(tiers["tiers"].as_array().unwrap().len(), 4);

    let (status, user) = admin
        .ask("PATCH", &path, Some(json!({ "disabled": true })))
        .await;
    assert_eq!((status, user["disabled_at"].is_string()), (200, true));
    assert_eq!(theirs.status().await, 401);
    let back = json!({ "disabled": false, "role": "support" });
    assert_eq!(admin.ask("PATCH", &path, Some(back)).await.0, 200);
    eventually("the user is let in again", async || {
        (theirs.status().await == 200).then_some(())
    })
    .await;
    // A key that was made for a mere user does not become support's.
    assert_eq!(theirs.get("/api/admin/users").await.0, 403);
    let key_path = format!("/api/admin/keys/{}", key["api_key_id"].as_str().unwrap());
    assert_eq!(admin.ask("DELETE", &key_path, None).await.0, 204);
    assert_eq!(theirs.status().await, 401);

    // The last admin stays.
    let (_, admins) = admin.get("/api/admin/users?role=admin").await;
    let own = format!(
        "/api/admin/users/{}",
        admins["users"][0]["id"].as_str().unwrap()
    );
    for change in [json!({ "disabled": true }), json!({ "role": "user" })] {
        let (status, answer) = admin.ask("PATCH", &own, Some(change)).await;
        assert_eq!((status, &answer["code"]), (409, &json!("last_admin")));
    }
}

#[tokio::test]
async fn every_change_is_in_the_audit_with_who_and_from_where() {
    let gateway = gateway().start();
    let admin = Caller::new(&gateway, gateway.admin_key());
    let new = json!({ "email": "a@example.org" });
    let (_, user) = admin.ask("POST", "/api/admin/users", Some(new)).await;
    let id = user["id"].as_str().unwrap();
    let (_, key) = admin
        .ask("POST", "/api/admin/keys", Some(json!({ "user_id": id })))
        .await;
    let secret = key["api_key"].as_str().unwrap();
    let theirs = Caller::new(&gateway, secret);
    let key_id = key["api_key_id"].as_str().unwrap();
    let rotate = format!("/api/auth/keys/{key_id}/rotate");
    let (status, rotated) = theirs.ask("POST", &rotate, None).await;
    assert_eq!(status, 201, "{rotated}");
    let path = format!("/api/admin/users/{id}");
    admin
        .ask("PATCH", &path, Some(json!({ "tier": "pro" })))
        .await;
    let line = ["users", "set-role", "a@example.org", "support"];
    assert!(run(&gateway.dir(), &line, &[]).status.success());

    let (_, page) = admin
        .get(&format!("/api/admin/audit?subject_id={id}"))
        .await;
    let entries = page["entries"].as_array().unwrap();
    let actions: Vec<_> = entries.iter().map(|entry| &entry["action"]).collect();
    assert_eq!(actions, ["user.update", "user.update", "user.create"]);
    assert_eq!(entries[0]["actor"], "operator");
    assert!(entries[0]["operator"].as_str().unwrap().contains("uid"));
    assert_eq!(
        (&entries[0]["before"], &entries[0]["after"]),
        (&json!({ "role": "user" }), &json!({ "role": "support" }))
    );
    assert_eq!(
        (&entries[1]["actor"], &entries[1]["address"]),
        (&json!("user"), &json!("127.0.0.1"))
    );
    assert_eq!(entries[1]["before"], json!({ "tier": "free" }));
    assert_eq!(entries[1]["after"]["tier"], "pro");
    assert!(entries[1]["key_id"].is_string() && entries[1]["request_id"].is_string());

    let (_, page) = admin.get(&format!("/api/admin/audit?user_id={id}")).await;
    let by_them: Vec<_> = page["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["action"])
        .collect();
    assert_eq!(by_them, ["key.rotate", "key.create"]);
    let (_, page) = admin.get("/api/admin/audit?action=config.change").await;
    assert_eq!(page["entries"][0]["actor"], "system");

    // Page by page it is the same as whole, and holds no secret.
    let (_, whole) = admin.get("/api/admin/audit?limit=200").await;
    let (mut paged, mut next) = (Vec::new(), String::new());
    loop {
        let (_, page) = admin.get(&format!("/api/admin/audit?limit=2{next}")).await;
        paged.extend(page["entries"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(id) => next = format!("&before={id}"),
            None => break,
        }
    }
    assert_eq!(Value::from(paged), whole["entries"]);
    let text = whole.to_string();
    for secret in [
        secret,
        rotated["api_key"].as_str().unwrap(),
        &gateway.admin_key(),
    ] {
        assert!(!text.contains(&secret[12..]));
    }
    for bad in [
        "since=yesterday",
        "user_id=me",
        "limit=0",
        "limit=201",
        "before=x",
    ] {
        assert_eq!(
            admin.get(&format!("/api/admin/audit?{bad}")).await.0,
            400,
            "{bad}"
        );
    }
    let (_, later) = admin
        .get("/api/admin/audit?since=2999-01-01T00:00:00Z")
        .await;
    assert_eq!(later["entries"], json!([]));
}

#[tokio::test]
async fn a_rotated_key_works_until_the_overlap_is_over() {
    let gateway = gateway().start();
    let accounts = Accounts::of(&gateway).await;
    let user = accounts.user(Role::User, Tier::Pro).await;
    let old = accounts.key(&user, Scopes::of_role(Role::User)).await;
    let lesser = accounts.key(&user, "keys".parse().unwrap()).await;
    let cheaper = accounts
        .key_on(&user, Scopes::of_role(Role::User), Tier::Free)
        .await;
    let path = format!("/api/auth/keys/{}/rotate", old.id);
    let caller = Caller::new(&gateway, &old.secret);
    let rotate = async |key: &str, body: Value| {
        Caller::new(&gateway, key)
            .ask("POST", &path, Some(body))
            .await
    };
    // No key gets the secret of one that is more than itself.
    assert_eq!(rotate(&lesser.secret, json!({})).await.0, 403);
    assert_eq!(rotate(&cheaper.secret, json!({})).await.0, 402);
    assert_eq!(
        rotate(&old.secret, json!({ "overlap_seconds": 2_592_001 }))
            .await
            .0,
        400
    );
    let (status, made) = rotate(&old.secret, json!({ "overlap_seconds": 1 })).await;
    assert_eq!(status, 201, "{made}");
    let new = Caller::new(&gateway, made["api_key"].as_str().unwrap());
    assert_eq!(new.status().await, 200);
    assert_eq!(
        (&made["tier"], &made["name"]),
        (&json!("pro"), &json!("test"))
    );
    eventually("the old key ends", async || {
        (caller.status().await == 401).then_some(())
    })
    .await;
    let ended =
        chrono::DateTime::parse_from_rfc3339(made["replaces"]["expires_at"].as_str().unwrap());
    assert!(ended.unwrap() <= chrono::Utc::now(), "not before its time");
    let (_, listed) = new.get("/api/auth/keys").await;
    let listed = listed["keys"].as_array().unwrap();
    let shown = listed
        .iter()
        .find(|key| key["id"] == old.id.to_string())
        .unwrap();
    assert_eq!(shown["replaced_by"], made["api_key_id"]);

    let path = format!(
        "/api/auth/keys/{}/rotate",
        made["api_key_id"].as_str().unwrap()
    );
    let (status, _) = new
        .ask("POST", &path, Some(json!({ "overlap_seconds": 0 })))
        .await;
    assert_eq!(status, 201);
    assert_eq!(new.status().await, 401);
}

#[tokio::test]
async fn strangers_sign_up_only_where_they_may_and_not_often() {
    let closed = gateway().start();
    let stranger = Caller::new(&closed, "");
    let body = json!({ "email": "me@example.org" });
    let (status, _) = stranger
        .ask("POST", "/api/auth/register", Some(body.clone()))
        .await;
    assert_eq!(status, 404);

    let open = gateway().set("auth.sign_up", json!(true)).start();
    let stranger = Caller::new(&open, "");
    let register = async |body: Value| stranger.ask("POST", "/api/auth/register", Some(body)).await;
    assert_eq!(
        register(json!({ "email": "me@example.org", "tier": "pro" }))
            .await
            .0,
        400
    );
    let (status, made) = register(body.clone()).await;
    assert_eq!((status, &made["tier"]), (201, &json!("free")), "{made}");
    let me = Caller::new(&open, made["api_key"].as_str().unwrap());
    assert_eq!(me.status().await, 200);
    assert_eq!(me.get("/api/admin/users").await.0, 403);
    assert_eq!(register(body).await.0, 409);
    let (status, answer) = register(json!({ "email": "other@example.org" })).await;
    assert_eq!((status, &answer["code"]), (429, &json!("rate_limited")));
}

#[tokio::test]
async fn guesses_are_limited_and_known_keys_go_on() {
    let gateway = gateway().set("auth.failures_per_minute", json!(5)).start();
    let admin = Caller::new(&gateway, gateway.admin_key());
    assert_eq!(admin.status().await, 200);
    let guess = |n: u32| Caller::new(&gateway, format!("ww_{n:0>43}"));
    for n in 0..5 {
        assert_eq!(guess(n).status().await, 401);
    }
    assert_eq!(guess(6).status().await, 429);
    assert_eq!(guess(7).status().await, 429);
    assert_eq!(
        admin.status().await,
        200,
        "a key in memory works from there as ever"
    );
}

#[tokio::test]
async fn in_an_outage_known_keys_work_and_new_ones_are_not_refused() {
    let mut server = postgres::Server::start_new().await;
    let url = server.database().await;
    let gateway = gateway().env("DATABASE_URL", &url).start();
    let accounts = Accounts::at(&gateway, &url).await;
    let user = accounts.user(Role::User, Tier::Enterprise).await;
    let known = accounts
        .key(&user, Scopes::of_role(Role::User))
        .await
        .secret;
    let new = accounts
        .key(&user, Scopes::of_role(Role::User))
        .await
        .secret;
    let client = gateway.client();
    let echo = async |key: &str| {
        let request = client.post(gateway.url("/fn/echo")).bearer_auth(key);
        request.body("x").send().await.unwrap().status().as_u16()
    };
    assert_eq!(echo(&known).await, 200);
    server.kill();
    for _ in 0..3 {
        assert_eq!(echo(&known).await, 200);
        assert_eq!(echo(&new).await, 503);
    }
    server.start().await;
    eventually("the new key works", async || {
        (echo(&new).await == 200).then_some(())
    })
    .await;
}
