//! The schema's versions.

use wasm_wizard::auth::{Role, Scope, Scopes};
use wasm_wizard::limits::Tier;
use wasm_wizard::store::keys::NewKeyRow;
use wasm_wizard::store::{Migrated, StoreError};

use super::{Database, contract, module, user};

/// The versions in `migrations/`, oldest first.
fn versions() -> Vec<i64> {
    let directory = crate::support::root().join("migrations/sqlite");
    let mut versions: Vec<i64> = std::fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".up.sql"))
        .map(|name| name.split('_').next().unwrap().parse().unwrap())
        .collect();
    versions.sort_unstable();
    versions
}

fn newest() -> i64 {
    *versions().last().unwrap()
}

contract!(
    migrating_twice_does_nothing_the_second_time,
    programs_migrate_one_after_the_other,
    down_leaves_an_empty_schema_and_up_works_again,
    down_stops_where_it_is_told,
    an_edited_migration_is_told,
    a_newer_schema_is_left_as_it_is,
    an_unknown_older_migration_is_told,
    keys_that_were_there_keep_what_their_role_allows,
);

async fn migrating_twice_does_nothing_the_second_time(database: Database) {
    let store = database.connect().await;
    let all = versions();
    assert_eq!(store.pending().await.unwrap(), all);
    assert!(store.ping().await.is_err(), "there is no table yet");
    let first = store.migrate().await.unwrap();
    assert_eq!(
        first,
        Migrated {
            applied: all,
            version: newest()
        }
    );
    assert!(store.pending().await.unwrap().is_empty());
    store.ping().await.unwrap();
    let second = store.migrate().await.unwrap();
    assert_eq!(
        second,
        Migrated {
            applied: vec![],
            version: newest()
        }
    );
}

async fn programs_migrate_one_after_the_other(database: Database) {
    let programs: Vec<_> = (0..6)
        .map(|_| {
            let settings = database.settings();
            tokio::spawn(async move {
                let store = wasm_wizard::store::Store::connect(&settings).await.unwrap();
                store.migrate().await.unwrap().applied
            })
        })
        .collect();
    let mut applied = Vec::new();
    for program in programs {
        applied.extend(program.await.unwrap());
    }
    assert_eq!(applied, versions(), "each was applied by one program");
}

async fn down_leaves_an_empty_schema_and_up_works_again(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    module(&store, owner.id, "m", 1).await;
    let down = store.migrate_down(0).await.unwrap();
    assert_eq!(
        down,
        Migrated {
            applied: vec![],
            version: 0
        }
    );
    let rest = if database.is_sqlite() {
        "SELECT COUNT(*) FROM sqlite_schema \
         WHERE tbl_name <> '_sqlx_migrations' AND name NOT LIKE 'sqlite_%'"
    } else {
        "SELECT COUNT(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'public' AND c.relname NOT LIKE '\\_sqlx\\_migrations%'"
    };
    assert_eq!(database.count(rest).await, 0);
    assert_eq!(store.pending().await.unwrap(), versions());
    store.migrate().await.unwrap();
    assert_eq!(store.users_count().await.unwrap(), 0);
}

async fn down_stops_where_it_is_told(database: Database) {
    let store = database.migrated().await;
    user(&store).await;
    let down = store.migrate_down(1).await.unwrap();
    assert_eq!(down.version, 1);
    assert_eq!(store.users_count().await.unwrap(), 1);
    assert!(store.modules_all().await.is_err());
    assert_eq!(store.migrate().await.unwrap().applied, versions()[1..]);
    assert_eq!(store.users_count().await.unwrap(), 1);
}

async fn an_edited_migration_is_told(database: Database) {
    let store = database.migrated().await;
    let other = if database.is_sqlite() {
        "x'00'"
    } else {
        "'\\x00'::bytea"
    };
    database
        .sql(&format!(
            "UPDATE _sqlx_migrations SET checksum = {other} WHERE version = 1"
        ))
        .await;
    for result in [
        store.migrate().await.map(|_| ()),
        store.pending().await.map(|_| ()),
    ] {
        let Err(StoreError::Internal(text)) = result else {
            panic!("{result:?}")
        };
        assert!(text.contains("migration 1 was edited"), "{text}");
    }
    // The lock is free again after the failure.
    assert!(store.migrate().await.is_err());
}

async fn a_newer_schema_is_left_as_it_is(database: Database) {
    let store = database.migrated().await;
    let newer = if database.is_sqlite() {
        "x'00', TRUE"
    } else {
        "'\\x00'::bytea, TRUE"
    };
    database
        .sql(&format!(
            "INSERT INTO _sqlx_migrations (version, description, checksum, success, execution_time) \
             VALUES (999, 'from the future', {newer}, 0)"
        ))
        .await;
    assert!(store.pending().await.unwrap().is_empty());
    let migrated = store.migrate().await.unwrap();
    assert_eq!(
        migrated,
        Migrated {
            applied: vec![],
            version: 999
        }
    );
    assert!(matches!(
        store.migrate_down(0).await,
        Err(StoreError::Internal(_))
    ));
    user(&store).await;
}

async fn an_unknown_older_migration_is_told(database: Database) {
    let store = database.migrated().await;
    database
        .sql("UPDATE _sqlx_migrations SET version = 0 WHERE version = 1")
        .await;
    let result = store.migrate().await;
    let Err(StoreError::Internal(text)) = result else {
        panic!("{result:?}")
    };
    assert!(text.contains("another program"), "{text}");
}

async fn keys_that_were_there_keep_what_their_role_allows(database: Database) {
    let store = database.migrated().await;
    let roles = [Role::User, Role::Support, Role::Admin];
    let mut users = Vec::new();
    for (byte, role) in (0_u8..).zip(roles) {
        let user = store
            .user_create(&format!("{byte}@b.c"), role)
            .await
            .unwrap();
        for (tier, byte) in [(Tier::Free, byte), (Tier::Pro, byte + 100)] {
            let row = NewKeyRow {
                user_id: user.id,
                name: "old",
                prefix: "ww_",
                hash: [byte; 32],
                tier,
                scopes: [Scope::Execute].into_iter().collect(),
                expires_at: None,
            };
            store.key_create(row).await.unwrap();
        }
        users.push(user);
    }
    let keyless = user(&store).await;
    store.migrate_down(2).await.unwrap();
    store.migrate().await.unwrap();
    for user in users {
        let found = store.user_by_email(&user.email).await.unwrap().unwrap();
        assert_eq!(found.tier, Tier::Pro);
        for key in store.keys_of_user(user.id).await.unwrap() {
            assert_eq!(key.scopes, Scopes::of_role(user.role), "{:?}", user.role);
        }
    }
    let found = store.user_by_email(&keyless.email).await.unwrap().unwrap();
    assert_eq!(found.tier, Tier::Free);
}
