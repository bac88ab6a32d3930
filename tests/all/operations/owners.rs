//! An installation in which gateways own the tables gets the two roles, by the commands of docs/UPGRADING.md, while
//! a gateway runs; and a backup and its restore keep whose what is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::{said, succeeds, twice};
use crate::support::gateway::{Gateway, gateway, run};
use crate::support::{eventually, postgres, root};

/// The commands of the document, for this server and this configuration.
fn commands(host: &str, config: &str) -> String {
    let text = fs::read_to_string(root().join("docs/UPGRADING.md")).unwrap();
    let (_, section) = text
        .split_once("## A role of their own for gateways")
        .unwrap();
    let (_, block) = section.split_once("```bash\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let block = block.replace("PGHOST=HOST", &format!("PGHOST={host}"));
    let block = block.replace("--config FILE", &format!("--config {config}"));
    assert!(block.contains(host) && block.contains(config), "{block}");
    block
}

async fn execute(connection: &mut PgConnection, statement: &'static str) -> Result<(), String> {
    let done = sqlx::raw_sql(statement).execute(connection).await;
    done.map(drop).map_err(|error| error.to_string())
}

/// A user that is made: the whole way through the API into the database and its audit.
async fn writes(gateway: &Gateway, key: &str, email: &str) -> bool {
    let request = gateway.client().post(gateway.url("/api/admin/users"));
    let request = request.bearer_auth(key).json(&json!({ "email": email }));
    request.send().await.unwrap().status() == 201
}

/// The owner of the database and of all that is in it, and who may do what with the tables that matter.
async fn belongings(server: &str, service: &str) -> Vec<String> {
    let url = format!("{server}/wasm_wizard");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let facts: Vec<String> = sqlx::query_scalar(
        "SELECT 'database ' || datdba::regrole || ' ' || array_to_string(ARRAY(SELECT unnest(datacl)::text ORDER BY 1), ' ')
             FROM pg_database WHERE datname = 'wasm_wizard'
         UNION ALL SELECT DISTINCT 'table ' || tableowner FROM pg_tables WHERE schemaname = 'public'
         UNION ALL SELECT DISTINCT 'function ' || proowner::regrole FROM pg_proc WHERE pronamespace = 'public'::regnamespace
         UNION ALL SELECT relname || ' ' || array_to_string(ARRAY(SELECT unnest(relacl)::text ORDER BY 1), ' ')
             FROM pg_class WHERE relname IN ('users', 'audit', '_sqlx_migrations') ORDER BY 1",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    let mut connection = PgConnection::connect(service).await.unwrap();
    for statement in [
        "UPDATE audit SET actor = 'system'",
        "CREATE TABLE mine (a INT)",
        "DROP TABLE audit",
    ] {
        let refused = execute(&mut connection, statement).await;
        assert!(refused.is_err(), "{statement}");
    }
    facts
}

async fn old_layout(server: &str, secrets: &Path) -> String {
    let mut connection = PgConnection::connect(&format!("{server}/postgres"))
        .await
        .unwrap();
    for statement in [
        "CREATE ROLE wasm_wizard LOGIN NOSUPERUSER NOCREATEDB PASSWORD 'the-services-own'",
        "CREATE DATABASE wasm_wizard OWNER wasm_wizard",
        "REVOKE ALL ON DATABASE wasm_wizard FROM PUBLIC",
    ] {
        execute(&mut connection, statement).await.unwrap();
    }
    let (_, host) = server.rsplit_once('@').unwrap();
    let service = format!("postgres://wasm_wizard:the-services-own@{host}/wasm_wizard");
    fs::create_dir(secrets).unwrap();
    fs::write(secrets.join("database_password"), "the-services-own").unwrap();
    fs::write(secrets.join("database_url"), &service).unwrap();
    service
}

#[tokio::test]
async fn a_restore_lets_nobody_in_where_only_the_owner_may_connect() {
    let postgres = postgres::Server::start_new().await;
    let url = postgres.url();
    let (server, _) = url.rsplit_once('/').unwrap();
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path();
    let service = old_layout(server, &work.join("secrets")).await;
    let out = run(work, &["migrate"], &[("DATABASE_URL", &service)]);
    assert!(out.status.success());
    fs::write(work.join("secrets/backup_key"), "only for this test").unwrap();
    let superuser = format!("{server}/wasm_wizard");
    let env = [
        ("BACKUP_DATABASE_URL", superuser.as_str()),
        ("BACKUP_KEY_FILE", "secrets/backup_key"),
    ];
    succeeds(work, "backup.sh", &["--to", "backups"], &env);
    let mut connection = PgConnection::connect(&format!("{server}/postgres"))
        .await
        .unwrap();
    for is_gone in [false, true] {
        if is_gone {
            let drop = "DROP DATABASE wasm_wizard WITH (FORCE)";
            execute(&mut connection, drop).await.unwrap();
        }
        let restore = ["latest", "--from", "backups"];
        succeeds(work, "restore.sh", &restore, &env);
        let rights: Vec<String> = sqlx::query_scalar(
            "SELECT unnest(COALESCE(datacl, acldefault('d', datdba)))::text
                 FROM pg_database WHERE datname = 'wasm_wizard'",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        assert_eq!(rights, ["wasm_wizard=CTc/wasm_wizard"], "{is_gone}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_get_a_role_of_their_own_while_they_run_and_a_restore_keeps_it() {
    let postgres = postgres::Server::start_new().await;
    let url = postgres.url();
    let (server, _) = url.rsplit_once('/').unwrap();
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path();
    let service = old_layout(server, &work.join("secrets")).await;
    for name in ["scripts", "conf"] {
        symlink(root().join(name), work.join(name)).unwrap();
    }
    let out = run(work, &["migrate"], &[("DATABASE_URL", &service)]);
    assert!(out.status.success());
    let mut old = gateway().env("DATABASE_URL", &service).start();
    let key = old.admin_key();
    assert!(writes(&old, &key, "before@example.org").await);

    // The commands as they stand there, twice.
    let program = Path::new(env!("CARGO_BIN_EXE_wasm-wizard"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let (host, port) = server.rsplit_once('@').unwrap().1.split_once(':').unwrap();
    let config = old.file().to_str().unwrap();
    for round in ["first", "second"] {
        let done = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &commands(host, config)])
            .current_dir(work)
            .env("PATH", &path)
            .env("PGPORT", port)
            .env("PGPASSWORD", postgres.password())
            .output()
            .unwrap();
        assert!(done.status.success(), "{round}: {}", said(&done));
        assert!(writes(&old, &key, &format!("{round}@example.org")).await);
    }
    let changed = belongings(server, &service).await;
    let owners = ["database", "table", "function"];
    for (what, fact) in owners.iter().flat_map(|what| {
        let about = changed.iter().filter(|fact| fact.starts_with(*what));
        about.map(move |fact| (what, fact))
    }) {
        let whose = format!("{what} wasm_wizard_owner");
        assert!(fact.starts_with(&whose), "{changed:#?}");
    }
    assert!(
        changed
            .iter()
            .any(|fact| fact.contains("wasm_wizard=ar/wasm_wizard_owner"))
    );

    // A backup by the superuser; what it replaces is the same afterwards, and the gateway goes on without a migration.
    let superuser = format!("{server}/wasm_wizard");
    let env = [
        ("BACKUP_DATABASE_URL", superuser.as_str()),
        ("BACKUP_KEY_FILE", "secrets/backup_key"),
    ];
    twice(work, "backup.sh", &["--to", "backups"], &env);
    let restore = ["latest", "--from", "backups"];
    succeeds(work, "restore.sh", &restore, &env);
    assert_eq!(belongings(server, &service).await, changed);
    eventually("the gateway writes again", async || {
        let email = format!("{}@example.org", uuid::Uuid::new_v4());
        writes(&old, &key, &email).await.then_some(())
    })
    .await;
    old.terminate();
    assert!(old.wait().success());

    // And where the database is gone.
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let drop = "DROP DATABASE wasm_wizard WITH (FORCE)";
    execute(&mut connection, drop).await.unwrap();
    succeeds(work, "restore.sh", &restore, &env);
    assert_eq!(belongings(server, &service).await, changed);
    let new = gateway()
        .in_dir_of(&old)
        .env("DATABASE_URL", &service)
        .start();
    assert!(writes(&new, &key, "after@example.org").await);
    let owner = fs::read_to_string(work.join("secrets/database_owner_url")).unwrap();
    let line = ["migrate", "--service-role", "wasm_wizard"];
    let out = run(work, &line, &[("DATABASE_URL", owner.trim())]);
    assert!(out.status.success());
}
