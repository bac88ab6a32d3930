//! Users and keys.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;
use wasm_wizard::auth::{self, Authenticator, Role, Salt, Scopes, first_admin};
use wasm_wizard::limits::Tier;
use wasm_wizard::store::keys::{Key, NewKeyRow};
use wasm_wizard::store::{Store, StoreError};

use super::{Database, contract, now, user};

contract!(
    users_come_back_as_they_went_in,
    an_email_is_taken_without_case,
    one_of_many_with_the_same_email_wins,
    odd_emails_are_refused,
    keys_come_back_as_they_went_in,
    a_hash_is_there_once,
    odd_key_names,
    a_key_of_nobody_is_refused,
    a_key_is_revoked_once_and_by_its_owner,
    last_use_never_goes_back,
    many_uses_are_noted_at_once,
    hostile_text_stays_text,
    roles_and_tiers_come_back,
    of_many_gateways_one_makes_the_first_admin,
    a_disabled_users_keys_are_invalid,
    last_uses_are_kept_when_flush_fails,
    expiries_that_are_no_date_are_refused,
);

async fn users_come_back_as_they_went_in(database: Database) {
    let store = database.migrated().await;
    assert_eq!(store.users_count().await.unwrap(), 0);
    assert_eq!(store.user_by_email("a@b.c").await.unwrap(), None);
    let made = store
        .user_create("Ünï@Exämple.org", Role::Support)
        .await
        .unwrap();
    assert_eq!(made.id.get_version_num(), 7);
    assert_eq!(
        store.user_by_email("ÜNÏ@exÄmple.ORG").await.unwrap(),
        Some(made.clone())
    );
    assert_eq!(made.email, "Ünï@Exämple.org");
    assert_eq!(made.role, Role::Support);
    assert_eq!(store.users_count().await.unwrap(), 1);
}

async fn an_email_is_taken_without_case(database: Database) {
    let store = database.migrated().await;
    store
        .user_create("straße@example.org", Role::User)
        .await
        .unwrap();
    for taken in [
        "straße@example.org",
        "STRAßE@EXAMPLE.ORG",
        "Straße@Example.org",
    ] {
        let result = store.user_create(taken, Role::User).await;
        assert!(
            matches!(result, Err(StoreError::Conflict("user"))),
            "{result:?}"
        );
    }
    store
        .user_create("strasse@example.org", Role::User)
        .await
        .unwrap();
}

async fn one_of_many_with_the_same_email_wins(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    let tries: Vec<_> = (0..20)
        .map(|at| {
            let store = stores[at % 2].clone();
            let email = if at % 3 == 0 {
                "Me@Example.org"
            } else {
                "me@example.ORG"
            };
            tokio::spawn(async move { store.user_create(email, Role::User).await })
        })
        .collect();
    let mut won = 0;
    for one in tries {
        match one.await.unwrap() {
            Ok(_) => won += 1,
            Err(StoreError::Conflict("user")) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(stores[0].users_count().await.unwrap(), 1);
}

async fn odd_emails_are_refused(database: Database) {
    let store = database.migrated().await;
    let long = format!("{}@example.org", "a".repeat(300));
    for email in [
        "", "nobody", "a@", "@b", "a\0@b.c", "a b@c.d", "a@b.c\n", &long,
    ] {
        let result = store.user_create(email, Role::User).await;
        assert!(
            matches!(result, Err(StoreError::Invalid(_))),
            "{email:?}: {result:?}"
        );
        assert_eq!(store.user_by_email(email).await.unwrap(), None);
    }
    assert_eq!(store.users_count().await.unwrap(), 0);
}

async fn key(store: &Store, user_id: Uuid, byte: u8) -> Key {
    store.key_create(row(user_id, byte)).await.unwrap()
}

fn row(user_id: Uuid, byte: u8) -> NewKeyRow<'static> {
    NewKeyRow {
        user_id,
        name: "key",
        prefix: "ww_prefix",
        hash: [byte; 32],
        tier: Tier::Basic,
        scopes: Scopes::of_role(Role::User),
        expires_at: None,
    }
}

async fn keys_come_back_as_they_went_in(database: Database) {
    let store = database.migrated().await;
    let owner = store.user_create("a@b.c", Role::Admin).await.unwrap();
    let other = user(&store).await;
    let nanos = DateTime::from_timestamp(1_900_000_000, 123_456_789).unwrap();
    let new = NewKeyRow {
        name: "",
        expires_at: Some(nanos),
        ..row(owner.id, 1)
    };
    let made = store.key_create(new).await.unwrap();
    assert_eq!(
        made.expires_at,
        DateTime::from_timestamp(1_900_000_000, 123_456_000)
    );
    let found = store.key_by_hash(&[1; 32]).await.unwrap().unwrap();
    assert_eq!(found.key, made);
    assert_eq!(
        (found.role, found.hash, found.user_disabled_at),
        (Role::Admin, [1; 32], None)
    );
    assert_eq!(store.key_by_hash(&[0; 32]).await.unwrap(), None);

    let second = key(&store, owner.id, 2).await;
    let foreign = key(&store, other.id, 3).await;
    assert_eq!(
        store.keys_of_user(owner.id).await.unwrap(),
        [second.clone(), made.clone()]
    );
    assert_eq!(store.keys_of_user(Uuid::nil()).await.unwrap(), []);
    let all = store.keys_all().await.unwrap();
    let expected = [
        (foreign, other.email),
        (second, owner.email.clone()),
        (made, owner.email),
    ];
    assert_eq!(all, expected);

    database
        .sql("UPDATE users SET disabled_at = created_at")
        .await;
    let disabled = store
        .key_by_hash(&[1; 32])
        .await
        .unwrap()
        .unwrap()
        .user_disabled_at;
    assert_eq!(disabled, Some(owner.created_at));
}

async fn a_hash_is_there_once(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    key(&store, owner.id, 1).await;
    let result = store.key_create(row(owner.id, 1)).await;
    assert!(
        matches!(result, Err(StoreError::Conflict("API key"))),
        "{result:?}"
    );
    assert_eq!(store.keys_all().await.unwrap().len(), 1);
}

async fn odd_key_names(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    let longest = "n".repeat(255);
    for (at, name) in ["", " ", "名前 🗝", "'; DROP TABLE users; --", &longest]
        .into_iter()
        .enumerate()
    {
        let new = NewKeyRow {
            name,
            ..row(owner.id, at as u8)
        };
        assert_eq!(store.key_create(new).await.unwrap().name, name);
        assert_eq!(store.keys_of_user(owner.id).await.unwrap()[0].name, name);
    }
    for name in ["a\0b", &format!("{longest}n")] {
        let result = store
            .key_create(NewKeyRow {
                name,
                ..row(owner.id, 99)
            })
            .await;
        assert!(matches!(result, Err(StoreError::Invalid(_))), "{result:?}");
    }
    assert_eq!(store.key_by_hash(&[99; 32]).await.unwrap(), None);
}

async fn a_key_of_nobody_is_refused(database: Database) {
    let store = database.migrated().await;
    let result = store.key_create(row(Uuid::now_v7(), 1)).await;
    assert!(
        matches!(result, Err(StoreError::NotFound("user"))),
        "{result:?}"
    );
}

async fn a_key_is_revoked_once_and_by_its_owner(database: Database) {
    let store = database.migrated().await;
    let (owner, other) = (user(&store).await, user(&store).await);
    let made = key(&store, owner.id, 1).await;
    let at = now();
    let not_found = |result: Result<(), StoreError>| {
        assert!(
            matches!(result, Err(StoreError::NotFound("API key"))),
            "{result:?}"
        );
    };
    not_found(store.key_revoke(made.id, Some(other.id), at).await);
    not_found(store.key_revoke(Uuid::now_v7(), None, at).await);
    store.key_revoke(made.id, Some(owner.id), at).await.unwrap();
    not_found(
        store
            .key_revoke(made.id, Some(owner.id), at + TimeDelta::days(1))
            .await,
    );
    not_found(store.key_revoke(made.id, None, at).await);
    let revoked = store.key_by_hash(&[1; 32]).await.unwrap().unwrap();
    assert_eq!(
        revoked.key,
        Key {
            revoked_at: Some(at),
            ..made
        }
    );
    let second = key(&store, owner.id, 2).await;
    store.key_revoke(second.id, None, at).await.unwrap();
}

async fn last_use_never_goes_back(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    let made = key(&store, owner.id, 1).await;
    let at = now();
    let last = async || store.keys_of_user(owner.id).await.unwrap()[0].last_used_at;
    store.keys_used(&[]).await.unwrap();
    store
        .keys_used(&[(made.id, at), (Uuid::now_v7(), at)])
        .await
        .unwrap();
    assert_eq!(last().await, Some(at));
    store
        .keys_used(&[(made.id, at - TimeDelta::seconds(1))])
        .await
        .unwrap();
    assert_eq!(last().await, Some(at));
    let later = at + TimeDelta::microseconds(1);
    store
        .keys_used(&[(made.id, later), (made.id, at)])
        .await
        .unwrap();
    assert_eq!(last().await, Some(later));
}

/// Two gateways write the same keys in opposite orders, over and over.
async fn many_uses_are_noted_at_once(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    let owner = user(&stores[0]).await;
    let mut ids = Vec::new();
    for byte in 0..50 {
        ids.push(key(&stores[0], owner.id, byte).await.id);
    }
    let at = now();
    let writers: Vec<_> = (0..10_u32)
        .map(|round| {
            let store = stores[round as usize % 2].clone();
            let at = at + TimeDelta::seconds(round.into());
            let mut uses: Vec<_> = ids.iter().map(|&id| (id, at)).collect();
            if round % 2 == 0 {
                uses.reverse();
            }
            tokio::spawn(async move { store.keys_used(&uses).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let latest = at + TimeDelta::seconds(9);
    let keys = stores[0].keys_of_user(owner.id).await.unwrap();
    assert_eq!(keys.len(), 50);
    assert!(keys.iter().all(|key| key.last_used_at == Some(latest)));
}

async fn hostile_text_stays_text(database: Database) {
    let store = database.migrated().await;
    for email in [
        "'@b.c", "$1@b.c", "%@b.c", "_@b.c", "\\@b.c", "\"@b.c", "?@b.c",
    ] {
        let made = store.user_create(email, Role::User).await.unwrap();
        assert_eq!(store.user_by_email(email).await.unwrap(), Some(made));
    }
    assert_eq!(store.users_count().await.unwrap(), 7);
}

async fn roles_and_tiers_come_back(database: Database) {
    let store = database.migrated().await;
    let roles = [Role::User, Role::Support, Role::Admin, Role::Admin];
    let tiers = [Tier::Free, Tier::Basic, Tier::Pro, Tier::Enterprise];
    for (byte, (role, tier)) in roles.into_iter().zip(tiers).enumerate() {
        let owner = store
            .user_create(&format!("{byte}@b.c"), role)
            .await
            .unwrap();
        let byte = byte as u8;
        store
            .key_create(NewKeyRow {
                tier,
                ..row(owner.id, byte)
            })
            .await
            .unwrap();
        let found = store.key_by_hash(&[byte; 32]).await.unwrap().unwrap();
        assert_eq!((found.role, found.key.tier), (role, tier));
    }
}

async fn of_many_gateways_one_makes_the_first_admin(database: Database) {
    database.migrated().await.close().await;
    let mut gateways = Vec::new();
    for _ in 0..5 {
        let store = database.connect().await;
        gateways.push(tokio::spawn(async move {
            let auth = authenticator(&store);
            let secret = first_admin(&store, &auth).await.unwrap();
            (store, auth, secret)
        }));
    }
    let mut secrets = HashSet::new();
    for gateway in gateways {
        let (store, auth, secret) = gateway.await.unwrap();
        assert_eq!(store.users_count().await.unwrap(), 1);
        if let Some(secret) = secret {
            let mut headers = http::HeaderMap::new();
            headers.insert("x-api-key", secret.parse().unwrap());
            let principal = auth.authenticate_at(&headers, Utc::now()).await.unwrap();
            let auth::Principal::Key(key) = principal else {
                panic!("anonymous")
            };
            assert_eq!((key.role, key.tier), (Role::Admin, Tier::Enterprise));
            secrets.insert(secret);
        }
    }
    assert_eq!(secrets.len(), 1);
    assert_eq!(database.count("SELECT COUNT(*) FROM api_keys").await, 1);
}

fn authenticator(store: &Store) -> Authenticator {
    let settings = auth::Settings {
        salt: Salt::new("s".repeat(32)).unwrap(),
        cache_ttl: Duration::from_secs(60),
        negative_ttl: Duration::from_secs(10),
        outage_grace: Duration::from_secs(60),
        cache_keys_max: 100,
    };
    Authenticator::new(settings, store.clone())
}

/// An authenticator and the headers of an admin's key.
async fn admin(store: &Store) -> (Authenticator, http::HeaderMap) {
    let auth = authenticator(store);
    let secret = first_admin(store, &auth).await.unwrap().unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("x-api-key", secret.parse().unwrap());
    (auth, headers)
}

async fn a_disabled_users_keys_are_invalid(database: Database) {
    let store = database.migrated().await;
    let (auth, headers) = admin(&store).await;
    let at = now();
    assert!(auth.authenticate_at(&headers, at).await.is_ok());
    database
        .sql("UPDATE users SET disabled_at = created_at")
        .await;
    let later = at + TimeDelta::seconds(60);
    let refused = auth.authenticate_at(&headers, later).await;
    assert_eq!(refused, Err(auth::AuthError::Invalid));
    database.sql("UPDATE users SET disabled_at = NULL").await;
    assert!(
        auth.authenticate_at(&headers, later + TimeDelta::seconds(10))
            .await
            .is_ok()
    );
}

async fn last_uses_are_kept_when_flush_fails(database: Database) {
    let store = database.migrated().await;
    let (auth, headers) = admin(&store).await;
    let at = now();
    auth.authenticate_at(&headers, at).await.unwrap();
    database
        .sql("ALTER TABLE api_keys RENAME TO elsewhere")
        .await;
    assert!(auth.flush().await.is_err());
    database
        .sql("ALTER TABLE elsewhere RENAME TO api_keys")
        .await;
    auth.flush().await.unwrap();
    assert_eq!(store.keys_all().await.unwrap()[0].0.last_used_at, Some(at));
}

async fn expiries_that_are_no_date_are_refused(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    for (byte, expires_at) in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC]
        .into_iter()
        .enumerate()
    {
        let expires_at = Some(expires_at);
        let result = store
            .key_create(NewKeyRow {
                expires_at,
                ..row(owner.id, byte as u8)
            })
            .await;
        assert!(matches!(result, Err(StoreError::Invalid(_))), "{result:?}");
    }
    let past = Some(DateTime::UNIX_EPOCH);
    let made = store
        .key_create(NewKeyRow {
            expires_at: past,
            ..row(owner.id, 9)
        })
        .await
        .unwrap();
    assert_eq!(made.expires_at, past);
}
