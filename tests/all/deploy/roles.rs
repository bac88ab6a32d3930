//! The two roles of `conf/postgres/roles.sh` on a real PostgreSQL: who migrates owns the tables, and who serves can
//! change neither them nor the audit.

use std::process::Command;

use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::support::gateway::{gateway, run};
use crate::support::{postgres, root};

const OWNER: &str = "wasm_wizard_owner";
pub const SERVICE: &str = "wasm_wizard";

/// The server's URL with another user, password and database.
fn url(server: &reqwest::Url, user: &str, password: &str) -> String {
    let mut url = server.clone();
    url.set_username(user).unwrap();
    url.set_password(Some(password)).unwrap();
    url.set_path("wasm_wizard");
    url.into()
}

/// The SQLSTATE of the error, or nothing.
async fn code(connection: &mut PgConnection, statement: &'static str) -> Option<String> {
    match sqlx::raw_sql(statement).execute(connection).await {
        Ok(_) => None,
        Err(sqlx::Error::Database(error)) => error.code().map(|code| code.into_owned()),
        Err(other) => panic!("{statement}: {other}"),
    }
}

/// Names that would be more than names, were they not quoted.
const ODD: [&str; 4] = ["a\"b; drop", "it's 100%I $$", "ROLE", "select"];

/// Rights that a role has by another way than by what it is given.
async fn ways_to_more(
    server: &reqwest::Url,
    migrate: &impl Fn(&str, &[&str]) -> (bool, String),
    owner: &str,
) {
    let mut superuser = server.clone();
    superuser.set_path("wasm_wizard");
    let mut superuser = PgConnection::connect(superuser.as_str()).await.unwrap();
    let mut sql = async |statement: &str| {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement)
            .execute(&mut superuser)
            .await
            .unwrap();
    };
    let refused = |role: &str, hints: &[&str]| {
        let (succeeded, said) = migrate(owner, &["--service-role", role]);
        assert!(!succeeded, "{role} was accepted");
        for hint in hints {
            assert!(said.contains(hint), "{hint}\n{said}");
        }
    };
    for odd in ODD {
        let quoted = format!("\"{}\"", odd.replace('"', "\"\""));
        sql(&format!("CREATE ROLE {quoted}")).await;
        let (succeeded, said) = migrate(owner, &["--service-role", odd]);
        assert!(succeeded, "{odd}: {said}");
        sql(&format!("DROP OWNED BY {quoted}; DROP ROLE {quoted}")).await;
    }
    // By a role that it is a member of, whether or not it inherits.
    sql(
        "CREATE ROLE \"the others\"; CREATE ROLE between IN ROLE \"the others\"; \
         GRANT UPDATE (actor) ON audit TO \"the others\"; GRANT between TO wasm_wizard; \
         ALTER ROLE wasm_wizard NOINHERIT",
    )
    .await;
    let hint = "it has UPDATE on audit: REVOKE \"between\" FROM wasm_wizard;";
    refused(SERVICE, &[hint]);
    sql("REVOKE between FROM wasm_wizard; ALTER ROLE wasm_wizard INHERIT").await;
    // By everybody.
    sql(
        "GRANT DELETE ON audit TO PUBLIC; GRANT CREATE ON SCHEMA public TO PUBLIC; \
         GRANT INSERT ON _sqlx_migrations TO PUBLIC",
    )
    .await;
    let hints = [
        "REVOKE DELETE ON audit FROM PUBLIC;",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;",
        "REVOKE INSERT ON _sqlx_migrations FROM PUBLIC;",
    ];
    refused(SERVICE, &hints);
    for hint in hints {
        sql(hint).await;
    }
    // By a grant that is not the owner's to take back.
    sql(
        "CREATE ROLE another; GRANT TRUNCATE ON audit TO another WITH GRANT OPTION; \
         SET ROLE another; GRANT TRUNCATE ON audit TO wasm_wizard; RESET ROLE",
    )
    .await;
    refused(SERVICE, &["REVOKE TRUNCATE ON audit FROM wasm_wizard"]);
    sql("REVOKE TRUNCATE ON audit FROM another CASCADE").await;
    // By might.
    for (give, take, why) in [
        (
            "GRANT pg_write_all_data TO wasm_wizard",
            "REVOKE pg_write_all_data FROM wasm_wizard",
            "pg_write_all_data",
        ),
        (
            "GRANT pg_execute_server_program TO wasm_wizard",
            "REVOKE pg_execute_server_program FROM wasm_wizard",
            "run programs",
        ),
        (
            "ALTER ROLE wasm_wizard CREATEROLE",
            "ALTER ROLE wasm_wizard NOCREATEROLE",
            "CREATEROLE",
        ),
        (
            "CREATE ROLE landlord; GRANT USAGE, CREATE ON SCHEMA public TO wasm_wizard_owner; \
             ALTER SCHEMA public OWNER TO landlord; GRANT landlord TO wasm_wizard",
            "REVOKE landlord FROM wasm_wizard; ALTER SCHEMA public OWNER TO pg_database_owner; \
             REVOKE ALL ON SCHEMA public FROM wasm_wizard_owner",
            "owns the tables, the schema",
        ),
    ] {
        sql(give).await;
        refused(SERVICE, &[why]);
        sql(take).await;
    }
    // What the owner can't give is missing.
    sql("CREATE TABLE not_the_owners (a INT)").await;
    refused(SERVICE, &["not_the_owners"]);
    sql("DROP TABLE not_the_owners").await;
    sql(
        "ALTER TABLE usage OWNER TO CURRENT_USER; GRANT SELECT ON usage TO wasm_wizard_owner; \
         REVOKE ALL ON usage FROM wasm_wizard",
    )
    .await;
    refused(SERVICE, &["INSERT on usage", "REASSIGN OWNED"]);
    sql("ALTER TABLE usage OWNER TO wasm_wizard_owner").await;
    // An extension's is none of ours.
    sql("CREATE TABLE spatial_ref_sys (a INT); GRANT SELECT ON spatial_ref_sys TO PUBLIC").await;
    let (succeeded, said) = migrate(owner, &["--service-role", SERVICE]);
    assert!(succeeded, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_of_the_gateways_can_change_neither_the_schema_nor_the_audit() {
    let server = reqwest::Url::parse(&postgres::database().await).unwrap();
    let secrets = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("database_owner_password", "owner's"),
        ("database_password", "service's"),
        ("postgres_exporter_password", "exporter's"),
    ] {
        std::fs::write(secrets.path().join(name), value).unwrap();
    }
    // Twice: what is there stays.
    for _ in 0..2 {
        let done = Command::new("sh")
            .arg(root().join("conf/postgres/roles.sh"))
            .env("PGHOST", server.host_str().unwrap())
            .env("PGPORT", server.port().unwrap().to_string())
            .env("PGPASSWORD", server.password().unwrap())
            .env("POSTGRES_USER", server.username())
            .env("SECRETS_DIR", secrets.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
    }
    let owner = url(&server, OWNER, "owner's");
    let service = url(&server, SERVICE, "service's");

    let dir = tempfile::tempdir().unwrap();
    let migrate = |url: &str, more: &[&str]| {
        let line = [&["migrate"], more].concat();
        let done = run(dir.path(), &line, &[("DATABASE_URL", url)]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.success(), said)
    };
    let (succeeded, said) = migrate(&service, &[]);
    assert!(!succeeded && said.contains("permission denied"), "{said}");
    for (role, why) in [
        (OWNER, "owns the tables"),
        (server.username(), "superuser"),
        ("nobody'; --", "CREATE ROLE \"nobody'; --\""),
    ] {
        let (succeeded, said) = migrate(&owner, &["--service-role", role]);
        assert!(!succeeded && said.contains(why), "{role}: {said}");
    }
    for _ in 0..2 {
        let (succeeded, said) = migrate(&owner, &["--service-role", SERVICE]);
        assert!(succeeded, "{said}");
    }

    ways_to_more(&server, &migrate, &owner).await;

    // It is all that a gateway needs.
    let gateway = gateway().env("DATABASE_URL", &service).start();
    let key = gateway.admin_key();
    let ask = async |method: &str, path: &str, body: serde_json::Value| {
        let request = gateway
            .client()
            .request(method.parse().unwrap(), gateway.url(path));
        let answer = request.bearer_auth(&key).json(&body).send().await.unwrap();
        let status = answer.status();
        assert!(
            status.is_success(),
            "{path}: {}",
            answer.text().await.unwrap()
        );
    };
    ask(
        "POST",
        "/api/admin/users",
        json!({ "email": "a@example.org" }),
    )
    .await;
    ask("POST", "/api/auth/keys", json!({ "name": "another" })).await;
    ask("POST", "/api/auth/token", json!({})).await;
    ask("GET", "/api/admin/audit", json!(null)).await;

    let mut connection = PgConnection::connect(&service).await.unwrap();
    let count: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM audit WHERE action IN ('user.create', 'key.create', 'token.issue')",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert!(count >= 3, "{count} changes are told");
    for statement in [
        "UPDATE audit SET actor = 'system'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "ALTER TABLE audit DISABLE TRIGGER audit_append_only",
        "DROP TABLE audit",
        "CREATE TABLE mine (a INT)",
        "ALTER TABLE users ADD COLUMN mine INT",
        "DROP FUNCTION wasmwiz_audit_is_append_only CASCADE",
        "DELETE FROM _sqlx_migrations",
        "INSERT INTO _sqlx_migrations SELECT * FROM _sqlx_migrations",
        "GRANT UPDATE ON audit TO wasm_wizard",
        "SET ROLE wasm_wizard_owner",
    ] {
        let refused = code(&mut connection, statement).await;
        // A grant of what one has no right to give is a warning; see below.
        let is_grant = statement.starts_with("GRANT");
        assert!(
            refused.as_deref() == Some("42501") || is_grant,
            "{statement}: {refused:?}"
        );
    }
    assert_eq!(
        code(&mut connection, "UPDATE audit SET actor = 'system'")
            .await
            .as_deref(),
        Some("42501")
    );
    // The owner has the right, and the trigger refuses it all the same.
    let mut owner = PgConnection::connect(&owner).await.unwrap();
    assert_eq!(
        code(&mut owner, "DELETE FROM audit").await.as_deref(),
        Some("P0001")
    );
}
