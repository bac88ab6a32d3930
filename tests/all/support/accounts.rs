//! Users and keys behind a gateway's back: straight in its database, hashed under its salt.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use uuid::Uuid;
use wasm_wizard::auth::{NewKey, Role, Salt, Scopes};
use wasm_wizard::limits::Tier;
use wasm_wizard::store::keys::NewKeyRow;
use wasm_wizard::store::users::User;
use wasm_wizard::store::{Settings, Store};

use super::gateway::Gateway;

/// The database of a gateway, and what its keys are hashed with.
pub struct Accounts {
    pub store: Store,
    salt: Salt,
    made: AtomicU32,
}

/// A key just made.
pub struct MadeKey {
    pub id: Uuid,
    pub secret: String,
}

impl Accounts {
    /// Of a gateway on its own SQLite file.
    pub async fn of(gateway: &Gateway) -> Accounts {
        let file = gateway.dir().join("data/wasm-wizard.db");
        Accounts::at(gateway, &format!("sqlite://{}", file.display())).await
    }

    /// Of a gateway whose database is at this URL.
    pub async fn at(gateway: &Gateway, url: &str) -> Accounts {
        let settings = Settings {
            url: url.to_owned(),
            connections_max: 2,
            acquire_timeout: Duration::from_secs(30),
        };
        let salt = std::fs::read_to_string(gateway.dir().join("data/api_salt")).unwrap();
        Accounts {
            store: Store::connect(&settings).await.unwrap(),
            salt: Salt::new(salt.trim()).unwrap(),
            made: AtomicU32::new(0),
        }
    }

    pub async fn user(&self, role: Role, tier: Tier) -> User {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let email = format!("{number}@example.org");
        self.store.user_create_on(&email, role, tier).await.unwrap()
    }

    pub async fn key(&self, user: &User, scopes: Scopes) -> MadeKey {
        self.key_on(user, scopes, user.tier).await
    }

    pub async fn key_on(&self, user: &User, scopes: Scopes, tier: Tier) -> MadeKey {
        let new = NewKey::generate(&self.salt).unwrap();
        let row = NewKeyRow {
            user_id: user.id,
            name: "test",
            prefix: &new.prefix,
            hash: new.hash,
            tier,
            scopes,
            expires_at: None,
        };
        let id = self.store.key_create(row).await.unwrap().id;
        MadeKey {
            id,
            secret: new.secret,
        }
    }
}
