//! Modules and their blobs.

use uuid::Uuid;
use wasm_wizard::sandbox::ModuleHash;
use wasm_wizard::store::StoreError;
use wasm_wizard::store::modules::{
    DESCRIPTION_BYTES_MAX, Module, NewModule, PAGE_MODULES_MAX, Page,
};

use super::{Database, contract, module, new_module, user};

contract!(
    modules_come_back_as_they_went_in,
    names_and_descriptions,
    versions_count_up_per_owner_and_name,
    versions_of_concurrent_uploads_differ,
    owners_share_one_blob_until_the_last_goes,
    no_blob_is_lost_between_uploads_and_deletes,
    large_blobs,
    pages,
    a_module_of_nobody_leaves_nothing,
);

async fn modules_come_back_as_they_went_in(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    let wasm: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let new = NewModule {
        description: "says hello\n名前",
        is_public: true,
        ..new_module(owner.id, "hello", 1, &wasm)
    };
    let made = store.module_create(new).await.unwrap();
    assert_eq!(made.id.get_version_num(), 7);
    assert_eq!(
        (made.version, made.size_bytes, made.execution_count),
        (1, 10_000, 0)
    );
    assert_eq!(store.module(made.id).await.unwrap(), Some(made.clone()));
    assert_eq!(store.module(Uuid::now_v7()).await.unwrap(), None);
    assert_eq!(store.blob(&made.hash).await.unwrap().unwrap(), wasm);
    assert_eq!(store.blob(&ModuleHash([0; 32])).await.unwrap(), None);
    assert_eq!(store.modules_all().await.unwrap(), [(made, owner.email)]);
}

async fn names_and_descriptions(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await;
    let longest = "n".repeat(255);
    let longest_description = "ü".repeat(DESCRIPTION_BYTES_MAX / 2);
    for name in [
        " ",
        "a/b",
        "名前 🧙",
        "'; DROP TABLE modules; --",
        longest.as_str(),
    ] {
        let new = NewModule {
            description: &longest_description,
            ..new_module(owner.id, name, 1, b"x")
        };
        let made = store.module_create(new).await.unwrap();
        assert_eq!((made.name.as_str(), made.version), (name, 1));
        assert_eq!(store.module(made.id).await.unwrap(), Some(made));
    }
    let (long, huge) = (format!("{longest}n"), format!("{longest_description}x"));
    for (name, description) in [
        ("", ""),
        ("a\0b", ""),
        (&long, ""),
        ("a", "\0"),
        ("a", &huge),
    ] {
        let new = NewModule {
            description,
            ..new_module(owner.id, name, 9, b"y")
        };
        let result = store.module_create(new).await;
        assert!(matches!(result, Err(StoreError::Invalid(_))), "{result:?}");
    }
    assert_eq!(store.blob(&ModuleHash([9; 32])).await.unwrap(), None);
}

async fn versions_count_up_per_owner_and_name(database: Database) {
    let store = database.migrated().await;
    let (one, two) = (user(&store).await.id, user(&store).await.id);
    let first = module(&store, one, "m", 1).await;
    let second = module(&store, one, "m", 1).await;
    assert_eq!((first.version, second.version), (1, 2));
    assert_eq!(module(&store, one, "M", 1).await.version, 1);
    assert_eq!(module(&store, two, "m", 1).await.version, 1);
    // A number is not given to other bytes while the name is in use.
    store.module_delete(second.id).await.unwrap();
    let third = module(&store, one, "m", 2).await;
    assert_eq!(third.version, 3);
    store.module_delete(first.id).await.unwrap();
    store.module_delete(third.id).await.unwrap();
    let names = format!("SELECT COUNT(*) FROM module_names WHERE name = '{}'", "m");
    assert_eq!(
        database.count(&names).await,
        1,
        "the other owner's name stays"
    );
    assert_eq!(module(&store, one, "m", 3).await.version, 1);
}

async fn versions_of_concurrent_uploads_differ(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    let owner = user(&stores[0]).await.id;
    let uploads: Vec<_> = (0..20_u8)
        .map(|byte| {
            let store = stores[usize::from(byte) % 2].clone();
            tokio::spawn(async move { module(&store, owner, "m", byte).await.version })
        })
        .collect();
    let mut versions = Vec::new();
    for upload in uploads {
        versions.push(upload.await.unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=20).collect::<Vec<_>>());
}

async fn owners_share_one_blob_until_the_last_goes(database: Database) {
    let store = database.migrated().await;
    let (one, two) = (user(&store).await.id, user(&store).await.id);
    let first = module(&store, one, "m", 1).await;
    let second = module(&store, one, "other name", 1).await;
    let third = module(&store, two, "m", 1).await;
    assert_eq!(database.count("SELECT COUNT(*) FROM module_blobs").await, 1);
    for gone in [&second, &first] {
        store.module_delete(gone.id).await.unwrap();
        assert_eq!(store.module(gone.id).await.unwrap(), None);
        assert!(store.blob(&third.hash).await.unwrap().is_some());
        let again = store.module_delete(gone.id).await;
        assert!(
            matches!(again, Err(StoreError::NotFound("module"))),
            "{again:?}"
        );
    }
    store.module_delete(third.id).await.unwrap();
    assert_eq!(store.blob(&third.hash).await.unwrap(), None);
    for table in ["modules", "module_names", "module_blobs"] {
        assert_eq!(
            database
                .count(&format!("SELECT COUNT(*) FROM {table}"))
                .await,
            0,
            "{table}"
        );
    }
}

/// Two gateways upload and delete the same bytes as fast as they can, some under one name and some
/// under names of their own: a module's blob is there as long as the module is. Two workers share
/// each blob, so that it comes and goes all the time.
async fn no_blob_is_lost_between_uploads_and_deletes(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    let owner = user(&stores[0]).await.id;
    let workers: Vec<_> = (0..8_u8)
        .map(|worker| {
            let store = stores[usize::from(worker) % 2].clone();
            let name = if worker < 4 {
                "shared".to_owned()
            } else {
                format!("own {worker}")
            };
            tokio::spawn(async move {
                for _ in 0..60 {
                    let made = module(&store, owner, &name, worker / 2).await;
                    assert!(
                        store.blob(&made.hash).await.unwrap().is_some(),
                        "the blob was lost"
                    );
                    store.module_delete(made.id).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    for table in ["modules", "module_names", "module_blobs"] {
        assert_eq!(
            database
                .count(&format!("SELECT COUNT(*) FROM {table}"))
                .await,
            0,
            "{table}"
        );
    }
}

async fn large_blobs(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await.id;
    let wasm: Vec<u8> = (0..10 * 1024 * 1024_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for (byte, wasm) in [(1, wasm.as_slice()), (2, &[])] {
        let made = store
            .module_create(new_module(owner, "m", byte, wasm))
            .await
            .unwrap();
        assert_eq!(made.size_bytes, wasm.len() as u64);
        assert!(store.blob(&made.hash).await.unwrap().unwrap() == wasm);
    }
}

async fn pages(database: Database) {
    let store = database.migrated().await;
    let (one, two) = (user(&store).await.id, user(&store).await.id);
    let empty = Page {
        modules: Vec::new(),
        total: 0,
    };
    assert_eq!(store.modules_page(one, true, 1, 20).await.unwrap(), empty);
    let mut mine = Vec::new();
    for at in 0..5 {
        mine.insert(0, module(&store, one, &format!("m{at}"), at).await);
    }
    module(&store, two, "private", 1).await;
    let public = NewModule {
        is_public: true,
        ..new_module(two, "public", 1, &[1; 100])
    };
    let public = store.module_create(public).await.unwrap();
    let own_public = NewModule {
        is_public: true,
        ..new_module(one, "own public", 1, &[1; 100])
    };
    mine.insert(0, store.module_create(own_public).await.unwrap());

    let page = async |include_public, page, limit| {
        let page = store
            .modules_page(one, include_public, page, limit)
            .await
            .unwrap();
        (page.modules, page.total)
    };
    assert_eq!(page(false, 1, 20).await, (mine.clone(), 6));
    assert_eq!(page(false, 0, 20).await, (mine.clone(), 6));
    assert_eq!(page(false, 1, 4).await, (mine[..4].to_vec(), 6));
    assert_eq!(page(false, 2, 4).await, (mine[4..].to_vec(), 6));
    assert_eq!(page(false, 3, 4).await, (vec![], 6));
    assert_eq!(page(false, 1, 0).await, (vec![], 6));
    assert_eq!(page(false, u32::MAX, u32::MAX).await, (vec![], 6));
    assert_eq!(page(false, 1, u32::MAX).await.0.len(), 6);
    let mut all: Vec<Module> = mine.clone();
    all.insert(1, public.clone());
    assert_eq!(
        page(true, 1, 20).await,
        (all, 7),
        "no module twice, nobody's private one"
    );
    assert_eq!(page(true, 2, 1).await, (vec![public], 7));

    let many = user(&store).await.id;
    for _ in 0..PAGE_MODULES_MAX + 5 {
        module(&store, many, "m", 1).await;
    }
    let first = store.modules_page(many, false, 1, 1_000_000).await.unwrap();
    assert_eq!(
        (first.modules.len() as u32, first.total),
        (PAGE_MODULES_MAX, u64::from(PAGE_MODULES_MAX) + 5)
    );
    let second = store.modules_page(many, false, 2, 1_000_000).await.unwrap();
    assert_eq!(second.modules.last().unwrap().version, 1);
    assert_eq!(second.modules.len(), 5);
}

async fn a_module_of_nobody_leaves_nothing(database: Database) {
    let store = database.migrated().await;
    let result = store
        .module_create(new_module(Uuid::now_v7(), "m", 1, b"x"))
        .await;
    assert!(
        matches!(result, Err(StoreError::NotFound("user"))),
        "{result:?}"
    );
    for table in ["modules", "module_names", "module_blobs"] {
        assert_eq!(
            database
                .count(&format!("SELECT COUNT(*) FROM {table}"))
                .await,
            0,
            "{table}"
        );
    }
}
