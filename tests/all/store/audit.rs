//! The audit, and what it tells of: changes of users, rotation of keys, stops; and word of them.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;
use wasm_wizard::auth::{Role, Scopes};
use wasm_wizard::limits::Tier;
use wasm_wizard::store::audit::{Actor, ActorKind, Filter};
use wasm_wizard::store::changes::Changed;
use wasm_wizard::store::keys::{Key, KeysFilter, NewKeyRow};
use wasm_wizard::store::rotations::Rotation;
use wasm_wizard::store::users::{UserChange, UsersFilter};
use wasm_wizard::store::{Store, StoreError};

use super::{Database, contract, module, now, user};

contract!(
    a_change_is_told_with_its_actor,
    the_audit_is_append_only,
    a_configuration_is_noted_when_it_is_another,
    of_two_admins_one_stays,
    keys_follow_their_users_tier,
    users_are_found_by_parts_of_their_email,
    a_key_is_rotated_by_one_of_many,
    a_changed_key_is_not_rotated_as_it_was,
    a_module_is_stopped_and_resumed,
    other_programs_hear_of_changes,
);

async fn key(store: &Store, user_id: Uuid, byte: u8, tier: Tier) -> Key {
    let row = NewKeyRow {
        user_id,
        name: "key",
        prefix: "ww_prefix",
        hash: [byte; 32],
        tier,
        scopes: Scopes::of_role(Role::User),
        expires_at: None,
    };
    store.key_create(row).await.unwrap()
}

async fn actions(store: &Store) -> Vec<String> {
    let entries = store.audit_page(&Filter::default(), 200).await.unwrap();
    entries
        .into_iter()
        .rev()
        .map(|entry| entry.action)
        .collect()
}

async fn a_change_is_told_with_its_actor(database: Database) {
    let store = database.migrated().await;
    let (actor_user, actor_key) = (Uuid::now_v7(), Uuid::now_v7());
    let acting = store.acting(Actor {
        kind: ActorKind::User,
        user_id: Some(actor_user),
        key_id: Some(actor_key),
        operator: Some("ü".repeat(300)),
        address: Some("2001:db8::1".parse().unwrap()),
        request_id: Some("r\0-1".into()),
    });
    let owner = acting.user_create("a@b.c", Role::User).await.unwrap();
    let made = key(&acting, owner.id, 1, Tier::Free).await;
    acting.key_revoke(made.id, None, now()).await.unwrap();
    let m = module(&store, owner.id, "m", 1).await;
    store.module_delete(m.id).await.unwrap();
    assert_eq!(
        actions(&store).await,
        [
            "user.create",
            "key.create",
            "key.revoke",
            "module.create",
            "module.delete"
        ]
    );
    let of_key = Filter {
        subject_id: Some(made.id),
        user_id: Some(actor_user),
        ..Filter::default()
    };
    let entries = store.audit_page(&of_key, 10).await.unwrap();
    let entry = &entries[0];
    assert_eq!((entries.len(), entry.actor), (2, ActorKind::User));
    assert_eq!(
        (entry.key_id, entry.request_id.as_deref()),
        (Some(actor_key), Some("r-1"))
    );
    assert_eq!(entry.address.as_deref(), Some("2001:db8::1"));
    assert_eq!(entry.operator.as_ref().unwrap().len(), 254);
    assert_eq!(entries[1].after.as_ref().unwrap()["prefix"], "ww_prefix");
    // What fails is not told.
    assert!(acting.user_create("A@b.c", Role::User).await.is_err());
    assert!(acting.key_revoke(made.id, None, now()).await.is_err());
    assert_eq!(actions(&store).await.len(), 5);
    for (filter, count) in [
        (
            Filter {
                action: Some("key.create"),
                ..Filter::default()
            },
            1,
        ),
        (
            Filter {
                since: Some(now() + TimeDelta::days(1)),
                ..Filter::default()
            },
            0,
        ),
        (
            Filter {
                until: Some(now() + TimeDelta::days(1)),
                ..Filter::default()
            },
            5,
        ),
        (
            Filter {
                until: Some(now() - TimeDelta::days(1)),
                ..Filter::default()
            },
            0,
        ),
        (
            Filter {
                before: Some(entries[1].id),
                ..Filter::default()
            },
            1,
        ),
        (
            Filter {
                key_id: Some(Uuid::now_v7()),
                ..Filter::default()
            },
            0,
        ),
    ] {
        let found = store.audit_page(&filter, 10).await.unwrap();
        assert_eq!(found.len(), count, "{filter:?}");
    }
}

async fn the_audit_is_append_only(database: Database) {
    let store = database.migrated().await;
    user(&store).await;
    for statement in ["UPDATE audit SET action = 'a.b'", "DELETE FROM audit"] {
        let refused = database.try_sql(statement).await.unwrap_err();
        assert!(refused.contains("append-only"), "{refused}");
    }
    let other = if database.is_sqlite() {
        "INSERT OR REPLACE INTO audit SELECT * FROM audit"
    } else {
        "TRUNCATE audit"
    };
    let refused = database.try_sql(other).await.unwrap_err();
    assert!(refused.contains("append-only"), "{refused}");
    assert_eq!(actions(&store).await, ["user.create"]);
}

async fn a_configuration_is_noted_when_it_is_another(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    for facts in ["a", "a", "b", "b", "a"] {
        for store in &stores {
            store.config_used(json!({ "sha256": facts })).await.unwrap();
        }
    }
    let entries = stores[0].audit_page(&Filter::default(), 10).await.unwrap();
    let before: Vec<_> = entries.iter().map(|entry| entry.before.clone()).collect();
    assert_eq!(
        before,
        [
            Some(json!({ "sha256": "b" })),
            Some(json!({ "sha256": "a" })),
            None
        ]
    );
}

/// Two admins take the role from each other, over and over.
async fn of_two_admins_one_stays(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    for round in 0..10 {
        let mut admins = Vec::new();
        for name in ["a", "b"] {
            let email = format!("{name}{round}@b.c");
            admins.push(stores[0].user_create(&email, Role::Admin).await.unwrap());
        }
        let demote = UserChange {
            role: Some(Role::User),
            ..UserChange::default()
        };
        let disable = UserChange {
            disabled: Some(true),
            ..UserChange::default()
        };
        let (one, other) = tokio::join!(
            stores[0].user_change(admins[1].id, demote, now()),
            stores[1].user_change(admins[0].id, disable, now()),
        );
        let (kept, refused) = if one.is_ok() { (0, other) } else { (1, one) };
        assert!(matches!(refused, Err(StoreError::LastAdmin)), "{refused:?}");
        // Takes the one that is left out of the way of the next round, by force.
        let left = admins[kept].id.simple();
        let id = if database.is_sqlite() {
            format!("x'{left}'")
        } else {
            format!("'{left}'")
        };
        database
            .sql(&format!("UPDATE users SET role = 'user' WHERE id = {id}"))
            .await;
    }
}

async fn keys_follow_their_users_tier(database: Database) {
    let store = database.migrated().await;
    let owner = store
        .user_create_on("a@b.c", Role::User, Tier::Pro)
        .await
        .unwrap();
    for (byte, tier) in [(1, Tier::Free), (2, Tier::Basic), (3, Tier::Pro)] {
        key(&store, owner.id, byte, tier).await;
    }
    let tiers = async |tier| {
        let change = UserChange {
            tier: Some(tier),
            ..UserChange::default()
        };
        let changed = store.user_change(owner.id, change, now()).await.unwrap();
        assert_eq!(changed.tier, tier);
        let keys = store.keys_of_user(owner.id).await.unwrap();
        keys.into_iter()
            .rev()
            .map(|key| key.tier)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        tiers(Tier::Enterprise).await,
        [Tier::Free, Tier::Basic, Tier::Enterprise]
    );
    assert_eq!(
        tiers(Tier::Basic).await,
        [Tier::Free, Tier::Basic, Tier::Basic]
    );
    assert_eq!(tiers(Tier::Free).await, [Tier::Free; 3]);
    assert_eq!(tiers(Tier::Pro).await, [Tier::Pro; 3]);
    let nobody = store
        .user_change(Uuid::now_v7(), UserChange::default(), now())
        .await;
    assert!(matches!(nobody, Err(StoreError::NotFound("user"))));
    // A change that changes nothing is none.
    let told = actions(&store).await.len();
    assert_eq!(tiers(Tier::Pro).await, [Tier::Pro; 3]);
    assert_eq!(actions(&store).await.len(), told);
}

async fn users_are_found_by_parts_of_their_email(database: Database) {
    let store = database.migrated().await;
    for email in ["Ünï_1@b.c", "üni%2@b.c", "a\\b@b.c", "plain@b.c"] {
        store.user_create(email, Role::User).await.unwrap();
    }
    for (part, count) in [
        ("ÜN", 2),
        ("_", 1),
        ("%", 1),
        ("\\", 1),
        ("@B.C", 4),
        ("x", 0),
        ("\0", 0),
    ] {
        let filter = UsersFilter {
            email: Some(part),
            ..UsersFilter::default()
        };
        let found = store.users_page(filter, 1, 10).await.unwrap();
        assert_eq!(
            (found.users.len(), found.total),
            (count, count as u64),
            "{part:?}"
        );
    }
    let second = store
        .users_page(UsersFilter::default(), 2, 3)
        .await
        .unwrap();
    assert_eq!((second.users.len(), second.total), (1, 4));
    let disabled = UsersFilter {
        disabled: Some(true),
        tier: Some(Tier::Free),
        ..UsersFilter::default()
    };
    assert_eq!(store.users_page(disabled, 1, 10).await.unwrap().total, 0);
}

async fn a_key_is_rotated_by_one_of_many(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    let owner = user(&stores[0]).await;
    let old = key(&stores[0], owner.id, 1, Tier::Pro).await;
    let at = now();
    let tries: Vec<_> = (0..8_u8)
        .map(|n| {
            let (store, old) = (stores[usize::from(n) % 2].clone(), old.clone());
            tokio::spawn(async move {
                let rotation = Rotation {
                    old: &old,
                    prefix: "ww_new",
                    hash: [n + 10; 32],
                    old_ends_at: at + TimeDelta::hours(1),
                };
                store.key_rotate(rotation, at).await
            })
        })
        .collect();
    let mut made = Vec::new();
    for one in tries {
        match one.await.unwrap() {
            Ok(pair) => made.push(pair),
            Err(StoreError::Conflict(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    let [(new, ended)] = made.try_into().unwrap();
    assert_eq!(
        (new.tier, new.scopes, new.expires_at),
        (old.tier, old.scopes, None)
    );
    assert_eq!(ended.expires_at, Some(at + TimeDelta::hours(1)));
    assert_eq!(stores[0].key(old.id).await.unwrap(), Some(ended));
    let live = KeysFilter {
        user_id: Some(owner.id),
        live_at: Some(at + TimeDelta::hours(2)),
    };
    let page = stores[0].keys_page(live, 1, 10).await.unwrap();
    assert_eq!(page.keys, [(new, owner.email)]);
}

async fn a_changed_key_is_not_rotated_as_it_was(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    let old = key(&store, owner.id, 1, Tier::Free).await;
    let change = UserChange {
        tier: Some(Tier::Pro),
        ..UserChange::default()
    };
    store.user_change(owner.id, change, now()).await.unwrap();
    let rotation = || Rotation {
        old: &old,
        prefix: "ww_",
        hash: [2; 32],
        old_ends_at: now(),
    };
    let result = store.key_rotate(rotation(), now()).await;
    assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
    store.key_revoke(old.id, None, now()).await.unwrap();
    let result = store.key_rotate(rotation(), now()).await;
    assert!(matches!(result, Err(StoreError::NotFound(_))), "{result:?}");
    assert_eq!(store.keys_of_user(owner.id).await.unwrap().len(), 1);
}

async fn a_module_is_stopped_and_resumed(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    let made = module(&store, owner.id, "m", 1).await;
    let at = now();
    store.module_stop(made.id, true, at).await.unwrap();
    store
        .module_stop(made.id, true, at + TimeDelta::hours(1))
        .await
        .unwrap();
    assert_eq!(
        store.module(made.id).await.unwrap().unwrap().stopped_at,
        Some(at)
    );
    assert_eq!(store.modules_stopped().await.unwrap(), [made.id]);
    store.module_stop(made.id, false, at).await.unwrap();
    assert!(store.modules_stopped().await.unwrap().is_empty());
    assert_eq!(actions(&store).await[2..], ["module.stop", "module.resume"]);
    let nobody = store.module_stop(Uuid::now_v7(), true, at).await;
    assert!(matches!(nobody, Err(StoreError::NotFound("module"))));
}

async fn other_programs_hear_of_changes(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    let made = key(&store, owner.id, 1, Tier::Free).await;
    let m = module(&store, owner.id, "m", 1).await;
    let other = database.connect().await;
    let mut changes = other.changes();
    let next = async |changes: &mut wasm_wizard::store::changes::Changes| {
        let heard = tokio::time::timeout(Duration::from_secs(60), changes.next()).await;
        heard.expect("nothing was heard")
    };
    assert_eq!(next(&mut changes).await, Changed::Everything);
    // A use is no change.
    store.keys_used(&[(made.id, now())]).await.unwrap();
    store.key_revoke(made.id, None, now()).await.unwrap();
    assert_eq!(next(&mut changes).await, Changed::Key(made.id));
    store.module_stop(m.id, true, now()).await.unwrap();
    assert_eq!(next(&mut changes).await, Changed::Module(m.id));
    let disable = UserChange {
        disabled: Some(true),
        ..UserChange::default()
    };
    store.user_change(owner.id, disable, now()).await.unwrap();
    assert_eq!(next(&mut changes).await, Changed::User(owner.id));
    if database.is_sqlite() {
        // More at once than are kept.
        let flood = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) \
                     INSERT INTO changes (kind, id) SELECT 'key', randomblob(16) FROM n";
        database.sql(flood).await;
        assert_eq!(next(&mut changes).await, Changed::Everything);
        assert_eq!(database.count("SELECT COUNT(*) FROM changes").await, 1000);
    } else {
        database
            .sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                  WHERE query LIKE 'LISTEN%' AND datname = current_database()",
            )
            .await;
        assert_eq!(next(&mut changes).await, Changed::Everything);
    }
    store.module_stop(m.id, false, now()).await.unwrap();
    assert_eq!(next(&mut changes).await, Changed::Module(m.id));
}
