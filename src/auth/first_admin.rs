//! The first admin: who can log in to a gateway that has just been installed.

use super::{Authenticator, NoRandomness};
use crate::limits::Tier;
use crate::store::users::FirstKey;
use crate::store::{Store, StoreError};

/// Email of the first admin.
pub const FIRST_ADMIN_EMAIL: &str = "admin@localhost";

/// Why there is no first admin though there is no user.
#[derive(Debug, thiserror::Error)]
pub enum FirstAdminError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// When there is no user at all, makes an admin with an Enterprise key and returns the key's
/// secret, which is stored nowhere. Of several gateways that start at once on one database, one
/// makes it.
pub async fn first_admin(
    store: &Store,
    auth: &Authenticator,
) -> Result<Option<String>, FirstAdminError> {
    let key = auth.new_key()?;
    let first = FirstKey {
        name: "first admin key",
        prefix: &key.prefix,
        hash: key.hash,
        tier: Tier::Enterprise,
    };
    let made = store.user_create_first(FIRST_ADMIN_EMAIL, first).await?;
    Ok(made.map(|_| key.secret))
}
