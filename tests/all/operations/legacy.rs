//! What the earlier service had, taken over: its clients notice nothing.

use std::fs;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};

use super::{fails, succeeds};
use crate::support::gateway::{Gateway, gateway};
use crate::support::{postgres, root};

/// The tables of the earlier service, as far as the import reads them.
const SCHEMA: &str = "
    CREATE TABLE users (id UUID PRIMARY KEY, email TEXT NOT NULL UNIQUE, created_at TIMESTAMPTZ NOT NULL);
    CREATE TABLE subscription_tiers (id UUID PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        max_executions_per_minute INTEGER NOT NULL, max_executions_per_day INTEGER NOT NULL,
        max_memory_mb INTEGER NOT NULL, max_execution_time_seconds INTEGER NOT NULL);
    CREATE TABLE api_keys (id UUID PRIMARY KEY, key_hash TEXT NOT NULL UNIQUE, user_id UUID NOT NULL,
        tier_id UUID NOT NULL, is_active BOOLEAN NOT NULL, created_at TIMESTAMPTZ NOT NULL,
        updated_at TIMESTAMPTZ NOT NULL, expires_at TIMESTAMPTZ);
    CREATE TABLE wasm_modules (id UUID PRIMARY KEY, name TEXT NOT NULL, description TEXT, user_id UUID NOT NULL,
        wasm_data BYTEA NOT NULL, size_bytes INTEGER NOT NULL, sha256_hash TEXT NOT NULL UNIQUE,
        upload_time TIMESTAMPTZ NOT NULL, last_executed TIMESTAMPTZ, execution_count INTEGER NOT NULL,
        is_public BOOLEAN NOT NULL);
    INSERT INTO users VALUES
        ('00000000-0000-4000-8000-000000000001', 'Ann@example.com', '2025-01-02T03:04:05Z'),
        ('00000000-0000-4000-8000-000000000002', 'no address', now());
    INSERT INTO subscription_tiers VALUES
        ('00000000-0000-4000-8000-000000000011', 'Free', 10, 500, 128, 5),
        ('00000000-0000-4000-8000-000000000012', 'Pro', 700, 50000, 512, 30);
";
const MODULE: &str = "00000000-0000-4000-8000-000000000031";
/// Keys of the earlier service: one that works, one that was switched off, one of a user who can't be taken.
const KEYS: [&str; 3] = [
    "ww_LegacyLegacyLegacyLegacyLegacyAb",
    "ww_SwitchedOffSwitchedOffSwitchedOf",
    "ww_NobodysNobodysNobodysNobodysNobo",
];

fn hexadecimal(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn earlier_service() -> String {
    let url = postgres::database().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(SCHEMA)
        .execute(&mut connection)
        .await
        .unwrap();
    for (at, key) in KEYS.iter().enumerate() {
        let id = format!("00000000-0000-4000-8000-00000000002{at}");
        let user = if at == 2 { 2 } else { 1 };
        sqlx::query(
            "INSERT INTO api_keys VALUES ($1::uuid, $2, $3::uuid, \
             '00000000-0000-4000-8000-000000000012', $4, now(), now(), NULL)",
        )
        .bind(id)
        .bind(hexadecimal(key.as_bytes()))
        .bind(format!("00000000-0000-4000-8000-00000000000{user}"))
        .bind(at != 1)
        .execute(&mut connection)
        .await
        .unwrap();
    }
    let wasm = fs::read(root().join("examples/guests/echo.wasm")).unwrap();
    sqlx::query(
        "INSERT INTO wasm_modules VALUES ($1::uuid, 'echo', NULL, \
         '00000000-0000-4000-8000-000000000001', $2, $3, $4, now(), now(), 42, TRUE)",
    )
    .bind(MODULE)
    .bind(&wasm)
    .bind(wasm.len() as i32)
    .bind(hexadecimal(&wasm))
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    url
}

async fn run(gateway: &Gateway, key: &str) -> (StatusCode, Value) {
    let url = gateway.url(&format!("/api/wasm/modules/{MODULE}/execute"));
    let request = gateway
        .client()
        .post(url)
        .bearer_auth(key)
        .body("as before");
    let answer = request.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

/// The audit tells of each row that was taken over, once, by whom, and of none that was not.
async fn told(gateway: &Gateway) {
    let mut told = Vec::new();
    for action in ["user.import", "key.import", "module.import"] {
        let url = gateway.url(&format!("/api/admin/audit?action={action}"));
        let request = gateway.client().get(url).bearer_auth(gateway.admin_key());
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        for entry in answer["entries"].as_array().unwrap() {
            assert_eq!(entry["actor"], "operator", "{entry}");
            assert!(entry["operator"].is_string(), "{entry}");
            assert!(entry["before"].is_null(), "{entry}");
            let secret = hexadecimal(KEYS[0].as_bytes());
            assert!(!entry.to_string().contains(&secret), "{entry}");
            told.push((action, entry["subject_id"].clone(), entry["after"].clone()));
        }
    }
    let of = |wanted| {
        let of = told.iter().filter(move |(action, ..)| *action == wanted);
        of.map(|(_, subject, after)| (subject.as_str().unwrap(), after))
            .collect::<Vec<_>>()
    };
    let [(user, facts)] = of("user.import")[..] else {
        panic!("{told:?}")
    };
    assert_eq!(user, "00000000-0000-4000-8000-000000000001");
    assert_eq!(facts["email"], "Ann@example.com");
    let mut keys = of("key.import");
    keys.sort_by_key(|(id, _)| *id);
    let ids: Vec<&str> = keys.iter().map(|(id, _)| *id).collect();
    let expected = [0, 1].map(|at| format!("00000000-0000-4000-8000-00000000002{at}"));
    assert_eq!(ids, expected);
    assert_eq!(
        (&keys[0].1["user_id"], &keys[0].1["tier"]),
        (&json!(user), &json!("pro"))
    );
    let [(module, facts)] = of("module.import")[..] else {
        panic!("{told:?}")
    };
    assert_eq!((module, &facts["owner_id"]), (MODULE, &json!(user)));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_keys_and_modules_of_the_earlier_service_go_on() {
    let legacy = earlier_service().await;
    for database in [None, Some(postgres::database().await)] {
        // It is tried more often than that until the key is known.
        let mut gateway = gateway().set("auth.failures_per_minute", json!(1_000_000));
        if let Some(url) = &database {
            gateway = gateway.env("DATABASE_URL", url);
        }
        let gateway = gateway.start();
        assert_eq!(run(&gateway, KEYS[0]).await.0, StatusCode::UNAUTHORIZED);
        let mut env = vec![("LEGACY_DATABASE_URL", legacy.as_str())];
        if let Some(url) = &database {
            env.push(("DATABASE_URL", url.as_str()));
        }
        let config = ["--config", gateway.file().to_str().unwrap()];
        // Beside the running gateway. What can't be taken is named, and everything else is taken.
        let said = fails(
            &gateway.dir(),
            "import_legacy.sh",
            &config,
            &env,
            "not everything was taken over",
        );
        for line in [
            "users: 1 new, 0 there already, 1 skipped",
            "keys: 2 new, 0 there already, 1 skipped",
            "modules: 1 new, 0 there already, 0 skipped",
            "  pro:\n    per_minute: 700\n    per_day: 50000\n    memory_max: 512MiB\n    execution_timeout: 30s",
        ] {
            assert!(said.contains(line), "{line}\n{said}");
        }
        let again = fails(&gateway.dir(), "import_legacy.sh", &config, &env, "skipped");
        assert!(again.contains("modules: 0 new, 1 there already"), "{again}");
        assert!(again.contains("keys: 0 new, 2 there already"), "{again}");

        // An unknown key is remembered as such for a while.
        let ran = crate::support::eventually("the key works", async || {
            let (status, body) = run(&gateway, KEYS[0]).await;
            (status == StatusCode::OK).then_some(body)
        });
        assert_eq!(ran.await["output"], "as before");
        for refused in [KEYS[1], KEYS[2], &hexadecimal(KEYS[0].as_bytes())] {
            assert_eq!(run(&gateway, refused).await.0, StatusCode::UNAUTHORIZED);
        }
        told(&gateway).await;
        let list = gateway.client().get(gateway.url("/api/wasm/modules"));
        let list = list.bearer_auth(KEYS[0]).send().await.unwrap();
        let list: Value = list.json().await.unwrap();
        assert_eq!(list["modules"][0]["id"], MODULE);
        assert!(list["modules"][0]["execution_count"].as_u64().unwrap() >= 42);
    }
    let directory = tempfile::tempdir().unwrap();
    let env = [("LEGACY_DATABASE_URL", legacy.as_str())];
    succeeds(
        directory.path(),
        "import_legacy.sh",
        &["--only-export", "rows"],
        &env,
    );
    let rows = fs::read_to_string(directory.path().join("rows")).unwrap();
    assert_eq!(rows.lines().count(), 6, "{rows}");
}
