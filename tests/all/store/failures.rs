//! What happens when the database is gone, busy or not what it should be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use wasm_wizard::auth::{self, AuthError, Authenticator, Principal, Role, Salt, first_admin};
use wasm_wizard::store::{Settings, Store, StoreError};

use super::{Database, contract, is_unavailable, module, until, user};
use crate::support::{PATIENCE, postgres};

contract!(
    a_closed_store_is_unavailable,
    a_dropped_call_leaves_the_store_working
);

async fn a_closed_store_is_unavailable(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    store.close().await;
    assert!(is_unavailable(&store.ping().await));
    assert!(is_unavailable(&store.users_count().await));
    assert!(is_unavailable(
        &store.user_create("a@b.c", Role::User).await
    ));
    assert!(is_unavailable(&store.keys_of_user(owner.id).await));
    assert_eq!(database.connect().await.users_count().await.unwrap(), 1);
}

/// A client that goes away in the middle of a request drops the call at any point.
async fn a_dropped_call_leaves_the_store_working(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await.id;
    for micros in 0..60 {
        let upload = module(&store, owner, "m", 1);
        let _ = tokio::time::timeout(Duration::from_micros(micros * 50), upload).await;
    }
    let last = module(&store, owner, "m", 1).await;
    let rows = store
        .modules_page(owner, false, 1, 100)
        .await
        .unwrap()
        .total;
    assert_eq!(
        last.version, rows,
        "what was dropped was rolled back whole or done whole"
    );
    for (module, _) in store.modules_all().await.unwrap() {
        store.module_delete(module.id).await.unwrap();
    }
    assert_eq!(database.count("SELECT COUNT(*) FROM module_blobs").await, 0);
}

#[tokio::test]
async fn sqlite_files_are_the_owners_alone() {
    let database = Database::sqlite();
    let store = database.migrated().await;
    user(&store).await;
    let file = database.url.strip_prefix("sqlite://").unwrap();
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for file in [
        file.to_owned(),
        format!("{file}-wal"),
        format!("{file}-shm"),
    ] {
        assert_eq!(mode(&file), 0o600, "{file}");
    }
    assert_eq!(mode(file.rsplit_once('/').unwrap().0), 0o700);
    store.close().await;
    assert!(
        !fs::exists(format!("{file}-wal")).unwrap(),
        "the log was folded into the file"
    );
}

#[tokio::test]
async fn sqlite_says_when_its_file_is_gone_and_when_it_is_back() {
    let database = Database::sqlite();
    let store = database.migrated().await;
    let file = database.url.strip_prefix("sqlite://").unwrap();
    store.ping().await.unwrap();
    let away = format!("{file}.away");
    fs::rename(file, &away).unwrap();
    assert!(is_unavailable(&store.ping().await));
    assert!(
        is_unavailable(&store.user_create("a@b.c", Role::User).await),
        "it would be lost"
    );
    assert!(
        !fs::exists(file).unwrap(),
        "nothing made an empty database in its place"
    );
    fs::write(file, b"another file").unwrap();
    assert!(is_unavailable(&store.ping().await));
    fs::remove_file(file).unwrap();
    fs::rename(&away, file).unwrap();
    store.ping().await.unwrap();
    store.user_create("a@b.c", Role::User).await.unwrap();
}

#[tokio::test]
async fn sqlite_keeps_what_it_acknowledged_when_the_program_dies() {
    let database = Database::sqlite();
    let store = database.migrated().await;
    let owner = user(&store).await;
    let file = database.url.strip_prefix("sqlite://").unwrap();
    // What is on disk now is what a crash would leave: the file and its log.
    let copy = Database::sqlite();
    let copied = copy.url.strip_prefix("sqlite://").unwrap();
    fs::create_dir_all(copied.rsplit_once('/').unwrap().0).unwrap();
    for suffix in ["", "-wal"] {
        fs::copy(format!("{file}{suffix}"), format!("{copied}{suffix}")).unwrap();
    }
    assert_eq!(
        copy.connect()
            .await
            .user_by_email(&owner.email)
            .await
            .unwrap(),
        Some(owner)
    );
}

#[tokio::test]
async fn sqlite_files_that_are_none_are_refused() {
    let database = Database::sqlite();
    let file = database.url.strip_prefix("sqlite://").unwrap();
    fs::create_dir_all(file.rsplit_once('/').unwrap().0).unwrap();
    fs::write(
        file,
        "this is no database, but it is long enough to be looked at".repeat(100),
    )
    .unwrap();
    let error = Store::connect(&database.settings()).await.err().unwrap();
    assert!(
        matches!(&error, StoreError::Internal(text) if text.contains(file)),
        "{error}"
    );
    fs::remove_file(file).unwrap();
    fs::create_dir(file).unwrap();
    let settings = Settings {
        acquire_timeout: Duration::from_secs(2),
        ..database.settings()
    };
    let error = Store::connect(&settings).await.err().unwrap();
    assert!(error.to_string().contains(file), "{error}");
}

#[tokio::test]
async fn a_busy_sqlite_is_unavailable_in_bounded_time() {
    let database = Database::sqlite();
    let store = database.migrated().await;
    let settings = Settings {
        acquire_timeout: Duration::from_secs(2),
        ..database.settings()
    };
    let hurried = Store::connect(&settings).await.unwrap();
    use sqlx::Connection;
    let mut other = sqlx::SqliteConnection::connect(&database.url)
        .await
        .unwrap();
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert!(is_unavailable(
        &hurried.user_create("a@b.c", Role::User).await
    ));
    hurried.ping().await.unwrap();
    lock.rollback().await.unwrap();
    hurried.user_create("a@b.c", Role::User).await.unwrap();
    assert_eq!(store.users_count().await.unwrap(), 1);
}

#[tokio::test]
async fn urls_of_no_database_are_refused() {
    for url in [
        "",
        "mysql://u:hunter2@h/d",
        "redis://h",
        "data/x.db",
        "sqlite::memory:",
    ] {
        let settings = Settings {
            url: url.to_owned(),
            ..Database::sqlite().settings()
        };
        let error = Store::connect(&settings).await.err().unwrap();
        assert!(matches!(error, StoreError::Internal(_)), "{url}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn no_error_shows_the_password() {
    let server = postgres::Server::start_new().await;
    let wrong = server.url().replace(server.password(), "hunter2");
    let closed = "postgres://u:hunter2@127.0.0.1:1/d".to_owned();
    let broken = "postgres://u:hunter2@127.0.0.1:port/d".to_owned();
    let unencoded = "postgres://u:hun@ter/hunter2@127.0.0.1:1/d".to_owned();
    let option = format!("{}?sslmode=often&password=hunter2", server.url());
    let database = format!("{}_there_is_not", server.url());
    for url in [wrong, closed, broken, unencoded, option, database] {
        let acquire_timeout = Duration::from_secs(1);
        let settings = Settings {
            url,
            connections_max: 1,
            acquire_timeout,
        };
        let connecting = tokio::time::timeout(PATIENCE, Store::connect(&settings));
        let error = connecting.await.unwrap().err().unwrap();
        let shown = format!("{error} {error:?} {settings:?}");
        assert!(!shown.contains(server.password()), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn ping_tells_when_postgres_is_gone_and_when_it_is_back() {
    let mut server = postgres::Server::start_new().await;
    let url = server.database().await;
    let settings = Settings {
        url,
        connections_max: 4,
        acquire_timeout: Duration::from_secs(3),
    };
    let store = Store::connect(&settings).await.unwrap();
    store.migrate().await.unwrap();
    let owner = user(&store).await;
    store.ping().await.unwrap();

    server.kill();
    let ping = tokio::time::timeout(PATIENCE, store.ping());
    assert!(is_unavailable(&ping.await.unwrap()));
    assert!(is_unavailable(&store.users_count().await));
    server.start().await;
    until("ping after a restart", async || store.ping().await.is_ok()).await;
    assert_eq!(
        store.user_by_email(&owner.email).await.unwrap(),
        Some(owner)
    );

    // A server that neither answers nor closes its connections, as behind a dead network.
    server.freeze();
    let ping = tokio::time::timeout(PATIENCE, store.ping());
    assert!(is_unavailable(&ping.await.unwrap()));
    server.thaw();
    until("ping after a thaw", async || store.ping().await.is_ok()).await;

    server.stop();
    assert!(is_unavailable(&store.ping().await));
    server.start().await;
    until("ping after a stop", async || store.ping().await.is_ok()).await;
}

#[tokio::test]
async fn keys_in_memory_outlive_an_outage_and_new_ones_return_with_the_database() {
    let mut server = postgres::Server::start_new().await;
    let url = server.database().await;
    let settings = Settings {
        url,
        connections_max: 4,
        acquire_timeout: Duration::from_secs(3),
    };
    let store = Store::connect(&settings).await.unwrap();
    store.migrate().await.unwrap();
    let settings = auth::Settings {
        salt: Salt::generate().unwrap(),
        cache_ttl: Duration::from_secs(60),
        negative_ttl: Duration::from_secs(5),
        outage_grace: Duration::from_secs(3600),
        cache_keys_max: 100,
    };
    let auth = Authenticator::new(settings.clone(), store.clone());
    let secret = first_admin(&store, &auth).await.unwrap().unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("x-api-key", secret.parse().unwrap());
    let now = Utc::now();
    let is_key = |answer| matches!(answer, Ok(Principal::Key(_)));
    assert!(is_key(auth.authenticate_at(&headers, now).await));

    server.kill();
    let stale = now + TimeDelta::minutes(10);
    assert!(is_key(auth.authenticate_at(&headers, stale).await));
    // Another gateway, which has not seen the key yet.
    let cold = Authenticator::new(settings, store.clone());
    assert_eq!(
        cold.authenticate_at(&headers, stale).await,
        Err(AuthError::Unavailable)
    );
    assert!(auth.flush().await.is_err());

    server.start().await;
    let mut seconds = 0;
    until("the key after the outage", async || {
        seconds += 2;
        is_key(
            cold.authenticate_at(&headers, stale + TimeDelta::seconds(seconds))
                .await,
        )
    })
    .await;
    auth.flush().await.unwrap();
    assert!(store.keys_all().await.unwrap()[0].0.last_used_at.is_some());
}
