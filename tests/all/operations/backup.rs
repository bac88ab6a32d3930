//! Backup and restore, with a gateway before and after.

use std::fs;
use std::path::Path;

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::{fails, succeeds, twice};
use crate::support::gateway::{Gateway, gateway};
use crate::support::{eventually, postgres, root};

const KEY: &str = "correct horse battery staple, and some more";

/// Stores a module; returns its id.
async fn upload(gateway: &Gateway, key: &str) -> String {
    let wasm = fs::read(root().join("examples/guests/echo.wasm")).unwrap();
    let form = Form::new()
        .part("wasm", Part::bytes(wasm).file_name("echo.wasm"))
        .text("name", "echo");
    let request = gateway.client().post(gateway.url("/api/wasm/upload"));
    let answer = request.bearer_auth(key).multipart(form).send().await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 201);
    let stored: Value = answer.json().await.unwrap();
    stored["id"].as_str().unwrap().to_owned()
}

/// A key made before and a module stored before are as they were.
async fn still_works(gateway: &Gateway, key: &str, module: &str) {
    let url = gateway.url(&format!("/api/wasm/modules/{module}/execute"));
    let request = gateway.client().post(url).bearer_auth(key).body("again");
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["output"], "again");
}

/// The names of the archives in a directory.
fn archives(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".backup"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn sqlite_is_backed_up_while_it_is_used_and_restored() {
    let mut first = gateway().start();
    let key = first.admin_key();
    let module = upload(&first, &key).await;
    let dir = first.dir();
    let config = first.file().to_str().unwrap().to_owned();
    let (to, key_file) = (dir.join("backups"), dir.join("backup_key"));
    let (to_text, remote) = (to.to_str().unwrap(), dir.join("elsewhere"));
    fs::write(&key_file, KEY).unwrap();
    let env = [("BACKUP_KEY_FILE", key_file.to_str().unwrap())];
    let backup = ["--to", to_text, "--config", &config];

    fails(&dir, "backup.sh", &backup, &[], "there is no key");
    // An old one goes, but for what somebody else keeps there.
    fs::create_dir(&to).unwrap();
    for (name, age) in [
        ("wasm-wizard-20200101T000000Z.backup", 8),
        ("wasm-wizard-20990101T000000Z.txt", 8),
        ("wasm-wizard-20200102T000000Z.backup", 6),
    ] {
        let file = fs::File::create(to.join(name)).unwrap();
        let day = std::time::Duration::from_secs(24 * 3600);
        let then = std::time::SystemTime::now() - day * age;
        file.set_modified(then).unwrap();
    }
    let remote_text = format!(":local:{}", remote.display());
    let said = succeeds(
        &dir,
        "backup.sh",
        &[&backup[..], &["--remote", &remote_text]].concat(),
        &env,
    );
    assert!(said.contains("1 1 1 1"), "{said}");
    let kept = archives(&to);
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(to.join("wasm-wizard-20990101T000000Z.txt").exists());
    let archive = to.join(&kept[1]);
    assert_eq!(archives(&remote), kept[1..]);
    let bytes = fs::read(&archive).unwrap();
    assert!(!said.contains(KEY));
    assert!(!bytes.windows(6).any(|w| w == b"SQLite"), "it is encrypted");

    // Nothing is put in the place of a database that is in use.
    let restore = ["latest", "--from", to_text, "--config", &config];
    fails(&dir, "restore.sh", &restore, &env, "stop the gateway first");
    first.terminate();
    assert!(first.wait().success());
    for lost in ["data", "certs"] {
        fs::remove_dir_all(dir.join(lost)).unwrap();
    }
    // What was changed on its way, or has another key, is not taken.
    let wrong = dir.join("wrong_key");
    fs::write(&wrong, "something else altogether").unwrap();
    let wrong = [("BACKUP_KEY_FILE", wrong.to_str().unwrap())];
    fails(&dir, "restore.sh", &restore, &wrong, "is it the right key?");
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let copy = dir.join("wasm-wizard-damaged.backup");
    fs::write(&copy, damaged).unwrap();
    let damaged = [copy.to_str().unwrap(), "--config", &config];
    fails(&dir, "restore.sh", &damaged, &env, "restore.sh: ");
    assert!(!dir.join("data/wasm-wizard.db").exists());

    for _ in 0..2 {
        succeeds(&dir, "restore.sh", &restore, &env);
        let stamp = to.join("last_success");
        let mut again = gateway()
            .in_dir_of(&first)
            .set("metrics.backup_stamp", json!(stamp))
            .start();
        still_works(&again, &key, &module).await;
        eventually("the backup is seen", async || {
            let watched = again.metric("wasmwiz_backup_watched").await?;
            let made = again
                .metric("wasmwiz_backup_last_success_timestamp_seconds")
                .await?;
            (watched == 1.0 && made > 1.7e9).then_some(())
        })
        .await;
        again.terminate();
        assert!(again.wait().success());
    }
    // What was there at the second time is kept.
    let kept = fs::read_dir(dir.join("data")).unwrap();
    let kept = kept.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_str().unwrap().contains(".before-")
    });
    assert_eq!(kept.count(), 1);
}

#[tokio::test]
async fn postgres_is_backed_up_while_it_is_used_and_restored() {
    let url = postgres::database().await;
    let mut first = gateway().env("DATABASE_URL", &url).start();
    let key = first.admin_key();
    let module = upload(&first, &key).await;
    let dir = first.dir();
    let to = dir.join("backups");
    let to = to.to_str().unwrap();
    // With age, and the URL in a file.
    let identity = dir.join("identity");
    let made = std::process::Command::new("age-keygen")
        .arg("-o")
        .arg(&identity)
        .output();
    let made = made.expect("age-keygen runs: apt-get install age");
    assert!(made.status.success());
    let text = fs::read_to_string(&identity).unwrap();
    let recipient = text.lines().find_map(|l| l.strip_prefix("# public key: "));
    let recipients = dir.join("recipients");
    fs::write(&recipients, recipient.unwrap()).unwrap();
    let url_file = dir.join("url");
    fs::write(&url_file, &url).unwrap();
    let env = [
        ("BACKUP_AGE_RECIPIENTS", recipients.to_str().unwrap()),
        ("BACKUP_AGE_IDENTITY", identity.to_str().unwrap()),
        ("DATABASE_URL_FILE", url_file.to_str().unwrap()),
    ];
    let said = twice(&dir, "backup.sh", &["--to", to], &env);
    assert!(said.contains("1 1 1 1"), "{said}");
    let password = url.split(':').nth(2).unwrap().split('@').next().unwrap();
    assert!(!said.contains(password));

    // Somebody deletes what should have stayed, while the gateway runs.
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("DELETE FROM modules; DELETE FROM module_names; DELETE FROM module_blobs")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let said = succeeds(&dir, "restore.sh", &["latest", "--from", to], &env);
    assert!(said.contains("_before_"), "{said}");
    // The gateway finds the database again by itself.
    eventually("the database is back", async || {
        let list = first.client().get(first.url("/api/wasm/modules"));
        let answer = list.bearer_auth(&key).send().await.ok()?;
        let body: Value = answer.json().await.ok()?;
        (body["total"] == 1).then_some(())
    })
    .await;
    first.terminate();
    assert!(first.wait().success());

    // And when the whole database is gone.
    let (server, name) = url.rsplit_once('/').unwrap();
    let mut connection = PgConnection::connect(&format!("{server}/postgres"))
        .await
        .unwrap();
    let drop = sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
    sqlx::raw_sql(drop).execute(&mut connection).await.unwrap();
    succeeds(&dir, "restore.sh", &["latest", "--from", to], &env);
    let again = gateway()
        .in_dir_of(&first)
        .env("DATABASE_URL", &url)
        .start();
    still_works(&again, &key, &module).await;
    // No scratch database is left behind.
    let scratch: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM pg_database WHERE datname LIKE 'wasm_wizard_verify%' OR datname LIKE '%_new_%'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(scratch, 0);
}
