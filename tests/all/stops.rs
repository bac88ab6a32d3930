//! Emergency stops: of users, keys and modules, everywhere within a second, guests that run included.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wasm_wizard::auth::{Role, Scopes};
use wasm_wizard::limits::Tier;
use wasm_wizard::sandbox::ModuleHash;
use wasm_wizard::store::modules::NewModule;
use wasm_wizard::store::users::User;

use crate::support::accounts::{Accounts, MadeKey};
use crate::support::gateway::{Builder, Gateway, gateway, run};
use crate::support::postgres;

/// How soon a stop holds, of which a slow machine gets three times as much in a test.
const SOON: Duration = Duration::from_secs(3);

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
    assert!(after < SOON, "stopped after {after:?}");
}

/// Waits until the key is not let in any more.
async fn refused(gateway: &Gateway, key: &str, since: Instant) {
    let client = gateway.client();
    loop {
        let request = client.get(gateway.url("/api/auth/keys")).bearer_auth(key);
        if request.send().await.unwrap().status() == 401 {
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
