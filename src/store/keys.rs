//! API keys.

use chrono::{DateTime, Datelike, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::audit::{Change, note};
use super::pool::{in_transaction, on_connection};
use super::values::{Stamp, check_text};
use super::{Store, StoreError};
use crate::account::{Role, Scopes, Tier};

const NAME_BYTES_MAX: usize = 255;
pub(super) const PREFIX_BYTES_MAX: usize = 32;

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
    /// The key that was made to take the place of this one.
    pub replaced_by: Option<Uuid>,
}

/// Which keys are asked for; what is `None` does not matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeysFilter {
    pub user_id: Option<Uuid>,
    /// Only keys that are neither revoked nor expired at this time.
    pub live_at: Option<DateTime<Utc>>,
}

/// One page of keys, each with its owner's email.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysPage {
    pub keys: Vec<(Key, String)>,
    /// Rows in all, over all pages.
    pub total: u64,
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
    pub(super) replaced_by: Option<Uuid>,
}

/// A `SELECT` of a [`KeyRow`] from `api_keys k`, more columns, and what follows.
macro_rules! select_keys {
    ($more_columns:literal, $rest:literal) => {
        concat!(
            "SELECT k.id, k.user_id, k.name, k.prefix, k.tier, k.scopes, k.created_at, \
             k.expires_at, k.revoked_at, k.last_used_at, r.new_id AS replaced_by",
            $more_columns,
            " FROM api_keys k LEFT JOIN key_rotations r ON r.old_id = k.id ",
            $rest
        )
    };
}
pub(super) use select_keys;

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
            note!(self, tx, created(&key))
        })?;
        Ok(Key::from(key))
    }

    /// The keys with this hash (at most one), revoked and expired ones included.
    pub async fn key_by_hash(&self, hash: &[u8; 32]) -> Result<Option<KeyForAuth>, StoreError> {
        on_connection!(self, |conn| {
            let row: Option<KeyForAuthRow> = sqlx::query_as(select_keys!(
                ", k.hash, u.role, u.disabled_at",
                "JOIN users u ON u.id = k.user_id WHERE k.hash = $1"
            ))
            .bind(hash.to_vec())
            .fetch_optional(&mut *conn)
            .await?;
            row.map(KeyForAuth::try_from).transpose()
        })
    }

    /// The key with this id, revoked and expired ones included.
    pub async fn key_by_id(&self, id: Uuid) -> Result<Option<KeyForAuth>, StoreError> {
        on_connection!(self, |conn| {
            let row: Option<KeyForAuthRow> = sqlx::query_as(select_keys!(
                ", k.hash, u.role, u.disabled_at",
                "JOIN users u ON u.id = k.user_id WHERE k.id = $1"
            ))
            .bind(id)
            .fetch_optional(&mut *conn)
            .await?;
            row.map(KeyForAuth::try_from).transpose()
        })
    }

    /// The key with this id, for those who show or change it.
    pub async fn key(&self, id: Uuid) -> Result<Option<Key>, StoreError> {
        on_connection!(self, |conn| {
            let row: Option<KeyRow> = sqlx::query_as(select_keys!("", "WHERE k.id = $1"))
                .bind(id)
                .fetch_optional(&mut *conn)
                .await?;
            Ok(row.map(Key::from))
        })
    }

    /// Whether a key is there and may be used at this time.
    pub async fn key_is_usable(&self, id: Uuid, now: DateTime<Utc>) -> Result<bool, StoreError> {
        on_connection!(self, |conn| {
            let usable: Option<i32> = sqlx::query_scalar(
                "SELECT 1 FROM api_keys k JOIN users u ON u.id = k.user_id \
                 WHERE k.id = $1 AND k.revoked_at IS NULL AND u.disabled_at IS NULL \
                 AND (k.expires_at IS NULL OR k.expires_at > $2)",
            )
            .bind(id)
            .bind(Stamp::from(now))
            .fetch_optional(&mut *conn)
            .await?;
            Ok(usable.is_some())
        })
    }

    /// A user's keys, newest first.
    pub async fn keys_of_user(&self, user_id: Uuid) -> Result<Vec<Key>, StoreError> {
        on_connection!(self, |conn| {
            let rows: Vec<KeyRow> =
                sqlx::query_as(select_keys!("", "WHERE k.user_id = $1 ORDER BY k.id DESC"))
                    .bind(user_id)
                    .fetch_all(&mut *conn)
                    .await?;
            Ok(rows.into_iter().map(Key::from).collect())
        })
    }

    /// All keys with their owners' emails, newest first, for the operator's command line.
    pub async fn keys_all(&self) -> Result<Vec<(Key, String)>, StoreError> {
        on_connection!(self, |conn| {
            let rows: Vec<KeyWithEmail> = sqlx::query_as(select_keys!(
                ", u.email",
                "JOIN users u ON u.id = k.user_id ORDER BY k.id DESC"
            ))
            .fetch_all(&mut *conn)
            .await?;
            Ok(rows.into_iter().map(KeyWithEmail::parts).collect())
        })
    }

    /// Keys, newest first. `page` is from 1 (0 is read as 1).
    pub async fn keys_page(
        &self,
        filter: KeysFilter,
        page: u32,
        limit: u32,
    ) -> Result<KeysPage, StoreError> {
        let offset = i64::from(page.saturating_sub(1)) * i64::from(limit);
        let live_at = filter.live_at.map(Stamp::from);
        on_connection!(self, |conn| {
            let total: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM api_keys k WHERE ($1 IS NULL OR k.user_id = $1) \
                 AND ($2 IS NULL OR (k.revoked_at IS NULL \
                 AND (k.expires_at IS NULL OR k.expires_at > $2)))",
            )
            // Planned for what is asked for: one plan for all would walk all keys to find a user's.
            .persistent(false)
            .bind(filter.user_id)
            .bind(live_at)
            .fetch_one(&mut *conn)
            .await?;
            let rows: Vec<KeyWithEmail> = sqlx::query_as(select_keys!(
                ", u.email",
                "JOIN users u ON u.id = k.user_id WHERE ($1 IS NULL OR k.user_id = $1) \
                 AND ($2 IS NULL OR (k.revoked_at IS NULL \
                 AND (k.expires_at IS NULL OR k.expires_at > $2))) \
                 ORDER BY k.id DESC LIMIT $3 OFFSET $4"
            ))
            .persistent(false)
            .bind(filter.user_id)
            .bind(live_at)
            .bind(i64::from(limit))
            .bind(offset)
            .fetch_all(&mut *conn)
            .await?;
            Ok(KeysPage {
                keys: rows.into_iter().map(KeyWithEmail::parts).collect(),
                total: total.unsigned_abs(),
            })
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
            let owner: Option<Uuid> = sqlx::query_scalar(
                "UPDATE api_keys SET revoked_at = $2 \
                 WHERE id = $1 AND revoked_at IS NULL AND ($3 IS NULL OR user_id = $3) \
                 RETURNING user_id",
            )
            .bind(id)
            .bind(Stamp::from(now))
            .bind(user_id)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(owner) = owner else {
                return Err(StoreError::NotFound("API key"));
            };
            let change = Change {
                action: "key.revoke",
                subject_id: Some(id),
                before: Some(json!({ "user_id": owner, "revoked_at": null })),
                after: Some(json!({ "user_id": owner, "revoked_at": now })),
            };
            note!(self, tx, change)
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
        replaced_by: None,
    })
}

/// What the audit tells of a new key: all but what is secret.
pub(super) fn created(key: &KeyRow) -> Change {
    let expires_at: Option<DateTime<Utc>> = key.expires_at.map(DateTime::from);
    let facts: Value = json!({
        "user_id": key.user_id,
        "name": key.name,
        "prefix": key.prefix,
        "tier": key.tier,
        "scopes": key.scopes,
        "expires_at": expires_at,
    });
    Change {
        action: "key.create",
        subject_id: Some(key.id),
        before: None,
        after: Some(facts),
    }
}

impl Key {
    /// Whether it is neither revoked nor expired.
    pub fn is_live(&self, now: DateTime<Utc>) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| at > now)
    }
}

impl KeyWithEmail {
    fn parts(self) -> (Key, String) {
        (Key::from(self.key), self.email)
    }
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
            replaced_by: row.replaced_by,
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
