//! Families of refresh tokens.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;
use wasm_wizard::limits::Tier;
use wasm_wizard::store::audit::{Actor, ActorKind, Entry, Filter};
use wasm_wizard::store::keys::NewKeyRow;
use wasm_wizard::store::tokens::{NewFamily, Refresh, Refreshed};
use wasm_wizard::store::{Store, StoreError};

use super::{Database, contract, now, user};

contract!(
    a_family_is_refreshed_token_by_token,
    a_token_used_twice_ends_the_family,
    of_many_refreshes_with_one_token_one_wins,
    a_stopped_key_or_user_gets_and_refreshes_nothing,
    a_family_ends_in_time,
    a_key_has_so_many_families,
    what_ended_is_deleted,
    revocations_are_heard_of,
    what_becomes_of_tokens_is_in_the_audit,
);

async fn key(store: &Store, byte: u8, expires_at: Option<DateTime<Utc>>) -> Uuid {
    let owner = user(store).await;
    let row = NewKeyRow {
        user_id: owner.id,
        name: "key",
        prefix: "ww_prefix",
        hash: [byte; 32],
        tier: Tier::Basic,
        scopes: "execute modules:read".parse().unwrap(),
        expires_at,
    };
    store.key_create(row).await.unwrap().id
}

fn family(key_id: Uuid, hash: u8) -> NewFamily {
    NewFamily {
        id: Uuid::now_v7(),
        key_id,
        hash: [hash; 32],
        scopes: "execute keys".parse().unwrap(),
        now: now(),
        expires_at: now() + TimeDelta::hours(1),
        ends_at: now() + TimeDelta::hours(3),
        families_max: 100,
    }
}

async fn made(store: &Store, family: NewFamily) -> Uuid {
    let id = family.id;
    store.token_family_create(family).await.unwrap();
    id
}

fn refresh(family_id: Uuid, shown: u8, next: u8) -> Refresh {
    Refresh {
        family_id,
        shown: [shown; 32],
        next: [next; 32],
        now: now(),
        expires_at: now() + TimeDelta::hours(1),
    }
}

async fn a_family_is_refreshed_token_by_token(database: Database) {
    let store = database.migrated().await;
    let key_id = key(&store, 1, None).await;
    let id = made(&store, family(key_id, 1)).await;
    for step in 1..5 {
        let refreshed = store.token_refresh(&refresh(id, step, step + 1)).await;
        let Refreshed::Rotated(family) = refreshed.unwrap() else {
            panic!("step {step}")
        };
        assert_eq!(family.key_id, key_id);
        // The key has no more of them.
        assert_eq!(family.scopes.to_string(), "execute");
    }
    let mut late = refresh(id, 5, 6);
    late.expires_at = now() + TimeDelta::days(9);
    let Refreshed::Rotated(family) = store.token_refresh(&late).await.unwrap() else {
        panic!("the current token is good")
    };
    assert_eq!(family.expires_at, family.ends_at);
    let unknown = refresh(Uuid::now_v7(), 1, 2);
    assert_eq!(
        store.token_refresh(&unknown).await.unwrap(),
        Refreshed::Refused
    );
}

async fn a_token_used_twice_ends_the_family(database: Database) {
    let store = database.migrated().await;
    let key_id = key(&store, 1, None).await;
    let id = made(&store, family(key_id, 1)).await;
    let other = made(&store, family(key_id, 1)).await;
    store.token_refresh(&refresh(id, 1, 2)).await.unwrap();
    assert_eq!(
        store.token_refresh(&refresh(id, 1, 3)).await.unwrap(),
        Refreshed::Reused { key_id }
    );
    for shown in [1, 2, 3] {
        assert_eq!(
            store.token_refresh(&refresh(id, shown, 4)).await.unwrap(),
            Refreshed::Refused,
            "{shown}"
        );
    }
    let refreshed = store.token_refresh(&refresh(other, 1, 2)).await.unwrap();
    assert!(matches!(refreshed, Refreshed::Rotated(_)), "another family");
}

async fn of_many_refreshes_with_one_token_one_wins(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    let key_id = key(&stores[0], 1, None).await;
    for _ in 0..5 {
        let id = made(&stores[0], family(key_id, 1)).await;
        let tries: Vec<_> = (0..8)
            .map(|at| {
                let store = stores[usize::from(at) % 2].clone();
                tokio::spawn(async move { store.token_refresh(&refresh(id, 1, 10 + at)).await })
            })
            .collect();
        let mut ends = [0, 0, 0];
        for one in tries {
            match one.await.unwrap().unwrap() {
                Refreshed::Rotated(_) => ends[0] += 1,
                Refreshed::Reused { .. } => ends[1] += 1,
                Refreshed::Refused => ends[2] += 1,
            }
        }
        assert_eq!(ends, [1, 1, 6], "one wins, one ends the family");
    }
}

async fn a_stopped_key_or_user_gets_and_refreshes_nothing(database: Database) {
    let store = database.migrated().await;
    let revoked = key(&store, 1, None).await;
    let expired = key(&store, 2, Some(now() + TimeDelta::minutes(1))).await;
    let disabled = key(&store, 3, None).await;
    let keys = [revoked, expired, disabled];
    let mut ids = Vec::new();
    for key_id in keys {
        ids.push(made(&store, family(key_id, 1)).await);
    }
    store.key_revoke(revoked, None, now()).await.unwrap();
    let time = if database.is_sqlite() { "1" } else { "now()" };
    database
        .sql(&format!(
            "UPDATE users SET disabled_at = {time} WHERE id = \
             (SELECT user_id FROM api_keys WHERE hash = {})",
            if database.is_sqlite() {
                format!("x'{}'", "03".repeat(32))
            } else {
                format!("'\\x{}'::bytea", "03".repeat(32))
            }
        ))
        .await;
    for (at, id) in ids.into_iter().enumerate() {
        let mut refresh = refresh(id, 1, 2);
        refresh.now += TimeDelta::minutes(2);
        assert_eq!(
            store.token_refresh(&refresh).await.unwrap(),
            Refreshed::Refused,
            "{at}"
        );
        let mut new = family(keys[at], 1);
        new.now += TimeDelta::minutes(2);
        let result = store.token_family_create(new).await;
        assert!(
            matches!(result, Err(StoreError::NotFound("API key"))),
            "{at}: {result:?}"
        );
    }
    let nobody = store.token_family_create(family(Uuid::now_v7(), 1)).await;
    assert!(matches!(nobody, Err(StoreError::NotFound("API key"))));
}

async fn a_family_ends_in_time(database: Database) {
    let store = database.migrated().await;
    let key_id = key(&store, 1, None).await;
    let id = made(&store, family(key_id, 1)).await;
    let mut late = refresh(id, 1, 2);
    late.now += TimeDelta::hours(1);
    assert_eq!(
        store.token_refresh(&late).await.unwrap(),
        Refreshed::Refused
    );
    let in_time = store.token_refresh(&refresh(id, 1, 2)).await.unwrap();
    assert!(matches!(in_time, Refreshed::Rotated(_)));
}

async fn a_key_has_so_many_families(database: Database) {
    let store = database.migrated().await;
    let key_id = key(&store, 1, None).await;
    let others = made(&store, family(key(&store, 2, None).await, 1)).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let mut new = family(key_id, 1);
        new.families_max = 3;
        ids.push(made(&store, new).await);
    }
    for (at, id) in ids.into_iter().enumerate() {
        let refreshed = store.token_refresh(&refresh(id, 1, 2)).await.unwrap();
        assert_eq!(matches!(refreshed, Refreshed::Rotated(_)), at >= 2, "{at}");
    }
    let refreshed = store.token_refresh(&refresh(others, 1, 2)).await.unwrap();
    assert!(matches!(refreshed, Refreshed::Rotated(_)), "another key's");
}

async fn what_ended_is_deleted(database: Database) {
    let store = database.migrated().await;
    let key_id = key(&store, 1, None).await;
    let alive = made(&store, family(key_id, 1)).await;
    let revoked = made(&store, family(key_id, 1)).await;
    store.token_family_revoke(revoked, now()).await.unwrap();
    let mut ended = family(key_id, 1);
    ended.expires_at = now() - TimeDelta::hours(5);
    made(&store, ended).await;
    let purge = async |hours| {
        let before = now() + TimeDelta::hours(hours);
        assert!(!store.token_families_purge(before).await.unwrap());
        database.count("SELECT COUNT(*) FROM token_families").await
    };
    assert_eq!(purge(-6).await, 3);
    assert_eq!(purge(-2).await, 2, "the one that ended");
    assert_eq!(purge(0).await, 1, "the one that was revoked");
    let refreshed = store.token_refresh(&refresh(alive, 1, 2)).await.unwrap();
    assert!(matches!(refreshed, Refreshed::Rotated(_)));
}

async fn revocations_are_heard_of(database: Database) {
    let store = database.migrated().await;
    let key_id = key(&store, 1, None).await;
    let (one, other) = (
        made(&store, family(key_id, 1)).await,
        made(&store, family(key_id, 1)).await,
    );
    made(&store, family(key_id, 1)).await;
    let (first, second) = (now(), now() + TimeDelta::minutes(1));
    store.token_family_revoke(one, first).await.unwrap();
    store.token_family_revoke(other, second).await.unwrap();
    // The first time stays.
    store.token_family_revoke(one, second).await.unwrap();
    store
        .token_family_revoke(Uuid::now_v7(), second)
        .await
        .unwrap();
    let mut found = store.token_families_revoked(first).await.unwrap();
    found.sort_by_key(|(_, at)| *at);
    assert_eq!(found, [(one, first), (other, second)]);
    let found = store.token_families_revoked(second).await.unwrap();
    assert_eq!(found, [(other, second)]);
}

async fn what_becomes_of_tokens_is_in_the_audit(database: Database) {
    let store = database.migrated().await;
    let key_id = key(&store, 1, None).await;
    // It is not known whose they are before they are looked up.
    let stranger = store.acting(Actor {
        kind: ActorKind::User,
        address: Some("192.0.2.7".parse().unwrap()),
        request_id: Some("r-1".into()),
        ..Actor::default()
    });
    let told = async || {
        let of_key = Filter {
            key_id: Some(key_id),
            ..Filter::default()
        };
        let mut entries = store.audit_page(&of_key, 200).await.unwrap();
        entries.reverse();
        entries
    };
    let reused = made(
        &stranger.acting(Actor {
            key_id: Some(key_id),
            ..Actor::default()
        }),
        family(key_id, 1),
    )
    .await;
    stranger
        .token_refresh(&refresh(reused, 1, 2))
        .await
        .unwrap();
    stranger
        .token_refresh(&refresh(reused, 1, 3))
        .await
        .unwrap();
    // What changes nothing is not told: it is revoked, and there is no such family.
    stranger
        .token_refresh(&refresh(reused, 2, 3))
        .await
        .unwrap();
    stranger.token_family_revoke(reused, now()).await.unwrap();
    stranger
        .token_family_revoke(Uuid::now_v7(), now())
        .await
        .unwrap();
    let mut last = family(key_id, 5);
    last.families_max = 1;
    let last = made(&stranger, last).await;
    stranger.token_family_revoke(last, now()).await.unwrap();

    let entries = told().await;
    let facts = |entry: &Entry| (entry.action.clone(), entry.subject_id, entry.actor);
    assert_eq!(
        entries.iter().map(facts).collect::<Vec<_>>(),
        [
            ("token.issue".into(), Some(reused), ActorKind::System),
            ("token.refresh".into(), Some(reused), ActorKind::User),
            ("token.revoke".into(), Some(reused), ActorKind::System),
            ("token.revoke".into(), Some(last), ActorKind::User),
        ]
    );
    for entry in &entries[1..] {
        assert!(entry.user_id.is_some() && entry.request_id.as_deref() == Some("r-1"));
        assert_eq!(entry.address.as_deref(), Some("192.0.2.7"));
    }
    assert_eq!(
        entries[2].after.as_ref().unwrap()["why"],
        "a refresh token was used twice"
    );
    let of_last = Filter {
        subject_id: Some(last),
        action: Some("token.issue"),
        ..Filter::default()
    };
    let issued = store.audit_page(&of_last, 10).await.unwrap();
    let after = issued[0].after.as_ref().unwrap();
    assert_eq!(
        (&after["scopes"], &after["families_ended"]),
        (&"execute keys".into(), &1.into())
    );
    // A change that does not come about leaves no row, and a row that can't be written no change.
    let gone = family(Uuid::now_v7(), 1);
    assert!(stranger.token_family_create(gone).await.is_err());
    assert_eq!(told().await.len(), 4);
    let count = store
        .audit_page(&Filter::default(), 200)
        .await
        .unwrap()
        .len();
    database
        .sql(if database.is_sqlite() {
            "CREATE TRIGGER no BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END"
        } else {
            "ALTER TABLE audit ADD CONSTRAINT full_up CHECK (action = 'x.y') NOT VALID"
        })
        .await;
    assert!(store.token_family_create(family(key_id, 9)).await.is_err());
    let revoked = store
        .token_families_revoked(now() - TimeDelta::hours(1))
        .await
        .unwrap();
    assert_eq!(revoked.len(), 1, "the last one, and no other was made");
    assert_eq!(
        store
            .audit_page(&Filter::default(), 200)
            .await
            .unwrap()
            .len(),
        count
    );
}
