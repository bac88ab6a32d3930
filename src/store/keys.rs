//! API keys.

use chrono::{DateTime, Datelike, Utc};
use uuid::Uuid;

use super::pool::{in_transaction, on_connection};
use super::values::{Stamp, check_text};
use super::{Store, StoreError};
use crate::account::{Role, Scopes, Tier};

const NAME_BYTES_MAX: usize = 255;
const PREFIX_BYTES_MAX: usize = 32;

/// A key as stored: everything but the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub id: Uuid,
    pub user_id: Uuid,
    pub name: String,
    pub prefix: String,
    pub tier: Tier,
    pub scopes: Scopes,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
}

/// What authentication needs of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyForAuth {
    pub key: Key,
    pub hash: [u8; 32],
    pub role: Role,
    /// Since when the key's user may do nothing; `None` is the usual case.
    pub user_disabled_at: Option<DateTime<Utc>>,
}

pub struct NewKeyRow<'a> {
    pub user_id: Uuid,
    /// At most 255 bytes, without NUL.
    pub name: &'a str,
    /// At most 32 bytes, without NUL.
    pub prefix: &'a str,
    pub hash: [u8; 32],
    pub tier: Tier,
    /// At least one.
    pub scopes: Scopes,
    pub expires_at: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
pub(super) struct KeyRow {
    pub(super) id: Uuid,
    pub(super) user_id: Uuid,
    pub(super) name: String,
    pub(super) prefix: String,
    pub(super) tier: Tier,
    pub(super) scopes: Scopes,
    pub(super) created_at: Stamp,
    pub(super) expires_at: Option<Stamp>,
    pub(super) revoked_at: Option<Stamp>,
    pub(super) last_used_at: Option<Stamp>,
}

#[derive(sqlx::FromRow)]
struct KeyWithEmail {
    #[sqlx(flatten)]
    key: KeyRow,
    email: String,
}

#[derive(sqlx::FromRow)]
struct KeyForAuthRow {
    #[sqlx(flatten)]
    key: KeyRow,
    hash: Vec<u8>,
    role: Role,
    disabled_at: Option<Stamp>,
}

/// Inserts a [`KeyRow`] in a transaction of either database.
macro_rules! insert {
    ($tx:ident, $key:expr, $hash:expr) => {
        sqlx::query(
            "INSERT INTO api_keys (id, user_id, name, prefix, hash, tier, scopes, created_at, \
             expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind($key.id)
        .bind($key.user_id)
        .bind(&$key.name)
        .bind(&$key.prefix)
        .bind($hash.to_vec())
        .bind($key.tier)
        .bind($key.scopes)
        .bind($key.created_at)
        .bind($key.expires_at)
        .execute(&mut *$tx)
        .await
    };
}
pub(super) use insert;

impl Store {
    /// NotFound when there is no such user, Conflict when the hash is there already, Invalid when
    /// the name or prefix is too long or holds NUL.
    pub async fn key_create(&self, row: NewKeyRow<'_>) -> Result<Key, StoreError> {
        let key = new_key(&row)?;
        in_transaction!(self, |tx| {
            insert!(tx, key, row.hash)
                .map_err(|error| StoreError::of_write(error, "API key", "user"))?;
            Ok(())
        })?;
        Ok(Key::from(key))
    }

    /// The keys with this hash (at most one), revoked and expired ones included.
    pub async fn key_by_hash(&self, hash: &[u8; 32]) -> Result<Option<KeyForAuth>, StoreError> {
        on_connection!(self, |conn| {
            let row: Option<KeyForAuthRow> = sqlx::query_as(
                "SELECT k.id, k.user_id, k.name, k.prefix, k.tier, k.scopes, k.created_at, k.expires_at, \
                 k.revoked_at, k.last_used_at, k.hash, u.role, u.disabled_at \
                 FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.hash = $1",
            )
            .bind(hash.to_vec())
            .fetch_optional(&mut *conn)
            .await?;
            row.map(KeyForAuth::try_from).transpose()
        })
    }

    /// The key with this id, revoked and expired ones included.
    pub async fn key_by_id(&self, id: Uuid) -> Result<Option<KeyForAuth>, StoreError> {
        on_connection!(self, |conn| {
            let row: Option<KeyForAuthRow> = sqlx::query_as(
                "SELECT k.id, k.user_id, k.name, k.prefix, k.tier, k.scopes, k.created_at, k.expires_at, \
                 k.revoked_at, k.last_used_at, k.hash, u.role, u.disabled_at \
                 FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.id = $1",
            )
            .bind(id)
            .fetch_optional(&mut *conn)
            .await?;
            row.map(KeyForAuth::try_from).transpose()
        })
    }

    /// A user's keys, newest first.
    pub async fn keys_of_user(&self, user_id: Uuid) -> Result<Vec<Key>, StoreError> {
        on_connection!(self, |conn| {
            let rows: Vec<KeyRow> = sqlx::query_as(
                "SELECT id, user_id, name, prefix, tier, scopes, created_at, expires_at, \
                 revoked_at, last_used_at FROM api_keys WHERE user_id = $1 ORDER BY id DESC",
            )
            .bind(user_id)
            .fetch_all(&mut *conn)
            .await?;
            Ok(rows.into_iter().map(Key::from).collect())
        })
    }

    /// All keys with their owners' emails, newest first, for the operator's command line.
    pub async fn keys_all(&self) -> Result<Vec<(Key, String)>, StoreError> {
        on_connection!(self, |conn| {
            let rows: Vec<KeyWithEmail> = sqlx::query_as(
                "SELECT k.id, k.user_id, k.name, k.prefix, k.tier, k.scopes, k.created_at, k.expires_at, \
                 k.revoked_at, k.last_used_at, u.email \
                 FROM api_keys k JOIN users u ON u.id = k.user_id ORDER BY k.id DESC",
            )
            .fetch_all(&mut *conn)
            .await?;
            Ok(rows
                .into_iter()
                .map(|row| (Key::from(row.key), row.email))
                .collect())
        })
    }

    /// Revokes a key of this user (`None`: of anyone). NotFound when there is none or it was
    /// revoked before.
    pub async fn key_revoke(
        &self,
        id: Uuid,
        user_id: Option<Uuid>,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        in_transaction!(self, |tx| {
            let done = sqlx::query(
                "UPDATE api_keys SET revoked_at = $2 \
                 WHERE id = $1 AND revoked_at IS NULL AND ($3 IS NULL OR user_id = $3)",
            )
            .bind(id)
            .bind(Stamp::from(now))
            .bind(user_id)
            .execute(&mut *tx)
            .await?;
            if done.rows_affected() == 0 {
                Err(StoreError::NotFound("API key"))
            } else {
                Ok(())
            }
        })
    }

    /// Notes the latest use of keys, in one transaction; never moves one back. Keys that are not
    /// there any more are passed over.
    pub async fn keys_used(&self, uses: &[(Uuid, DateTime<Utc>)]) -> Result<(), StoreError> {
        if uses.is_empty() {
            return Ok(());
        }
        // Always in the same order, so that two gateways don't wait for each other's rows.
        let mut uses = uses.to_vec();
        uses.sort_unstable();
        in_transaction!(self, |tx| {
            for (id, used_at) in &uses {
                sqlx::query(
                    "UPDATE api_keys SET last_used_at = $2 \
                     WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)",
                )
                .bind(id)
                .bind(Stamp::from(*used_at))
                .execute(&mut *tx)
                .await?;
            }
            Ok(())
        })
    }
}

pub(super) fn new_key(row: &NewKeyRow<'_>) -> Result<KeyRow, StoreError> {
    // What RFC 3339 can write, and both databases can hold.
    if row
        .expires_at
        .is_some_and(|expires_at| !(0..=9999).contains(&expires_at.year()))
    {
        return Err(StoreError::Invalid(
            "a key's expiry must be a date before the year 10000",
        ));
    }
    if row.scopes.is_empty() {
        return Err(StoreError::Invalid("a key has at least one scope"));
    }
    check_text(
        row.name,
        0..=NAME_BYTES_MAX,
        "a key's name has at most 255 bytes and no NUL",
    )?;
    check_text(
        row.prefix,
        0..=PREFIX_BYTES_MAX,
        "a key's prefix has at most 32 bytes and no NUL",
    )?;
    Ok(KeyRow {
        id: Uuid::now_v7(),
        user_id: row.user_id,
        name: row.name.to_owned(),
        prefix: row.prefix.to_owned(),
        tier: row.tier,
        scopes: row.scopes,
        created_at: Stamp::now(),
        expires_at: row.expires_at.map(Stamp::from),
        revoked_at: None,
        last_used_at: None,
    })
}

impl From<KeyRow> for Key {
    fn from(row: KeyRow) -> Key {
        Key {
            id: row.id,
            user_id: row.user_id,
            name: row.name,
            prefix: row.prefix,
            tier: row.tier,
            scopes: row.scopes,
            created_at: row.created_at.into(),
            expires_at: row.expires_at.map(DateTime::from),
            revoked_at: row.revoked_at.map(DateTime::from),
            last_used_at: row.last_used_at.map(DateTime::from),
        }
    }
}

impl TryFrom<KeyForAuthRow> for KeyForAuth {
    type Error = StoreError;

    fn try_from(row: KeyForAuthRow) -> Result<KeyForAuth, StoreError> {
        let hash = <[u8; 32]>::try_from(row.hash).map_err(|_| {
            StoreError::Internal("the hash of an API key is not 32 bytes".to_owned())
        })?;
        let user_disabled_at = row.disabled_at.map(DateTime::from);
        Ok(KeyForAuth {
            key: Key::from(row.key),
            hash,
            role: row.role,
            user_disabled_at,
        })
    }
}
