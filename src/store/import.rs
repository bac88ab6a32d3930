//! Rows that come from elsewhere with the ids they had there. What is there already stays as it is.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::audit::{Change, note};
use super::modules::{DESCRIPTION_BYTES_MAX, NAME_BYTES_MAX};
use super::pool::in_transaction;
use super::users::{check_email, email_key};
use super::values::{Stamp, check_text, signed};
use super::{Store, StoreError};
use crate::account::{Role, Tier};
use crate::sandbox::ModuleHash;

/// What an import did with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    New,
    /// There is a row with this id.
    Known,
}

pub struct ImportedKey<'a> {
    pub id: Uuid,
    pub user_id: Uuid,
    pub name: &'a str,
    pub prefix: &'a str,
    pub hash: [u8; 32],
    pub tier: Tier,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

pub struct ImportedModule<'a> {
    pub id: Uuid,
    pub owner_id: Uuid,
    /// 1 to 255 bytes, without NUL.
    pub name: &'a str,
    /// At most 4 KiB, without NUL.
    pub description: &'a str,
    pub wasm: &'a [u8],
    pub is_public: bool,
    pub uploaded_at: DateTime<Utc>,
    pub last_executed_at: Option<DateTime<Utc>>,
    pub execution_count: u64,
}

impl Store {
    /// The id under which the user is known: that of the user with this email, where there is one
    /// (compared without case), else `id`, of a user with the role `user` that is made now.
    ///
    /// # Errors
    /// Invalid when the email may not be so, Conflict when another user has the id.
    pub async fn user_import(
        &self,
        id: Uuid,
        email: &str,
        created_at: DateTime<Utc>,
    ) -> Result<(Uuid, Imported), StoreError> {
        check_email(email)?;
        in_transaction!(self, |tx| {
            let inserted = sqlx::query(
                "INSERT INTO users (id, email, email_key, role, created_at) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (email_key) DO NOTHING",
            )
            .bind(id)
            .bind(email)
            .bind(email_key(email))
            .bind(Role::User)
            .bind(Stamp::from(created_at))
            .execute(&mut *tx)
            .await
            .map_err(|error| StoreError::of_write(error, "user", "user"))?;
            if inserted.rows_affected() > 0 {
                let facts = json!({ "email": email, "role": Role::User });
                note!(self, tx, imported("user.import", id, facts))?;
                Ok((id, Imported::New))
            } else {
                let known: Uuid = sqlx::query_scalar("SELECT id FROM users WHERE email_key = $1")
                    .bind(email_key(email))
                    .fetch_one(&mut *tx)
                    .await?;
                Ok((known, Imported::Known))
            }
        })
    }

    /// # Errors
    /// NotFound when there is no such user, Conflict when another key has the hash.
    pub async fn key_import(&self, key: ImportedKey<'_>) -> Result<Imported, StoreError> {
        in_transaction!(self, |tx| {
            let inserted = sqlx::query(
                "INSERT INTO api_keys (id, user_id, name, prefix, hash, tier, created_at, \
                 expires_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (id) DO NOTHING",
            )
            .bind(key.id)
            .bind(key.user_id)
            .bind(key.name)
            .bind(key.prefix)
            .bind(key.hash.to_vec())
            .bind(key.tier)
            .bind(Stamp::from(key.created_at))
            .bind(key.expires_at.map(Stamp::from))
            .bind(key.revoked_at.map(Stamp::from))
            .execute(&mut *tx)
            .await
            .map_err(|error| StoreError::of_write(error, "API key", "user"))?;
            if inserted.rows_affected() == 0 {
                return Ok(Imported::Known);
            }
            let facts = json!({
                "user_id": key.user_id,
                "name": key.name,
                "prefix": key.prefix,
                "tier": key.tier.to_string(),
            });
            note!(self, tx, imported("key.import", key.id, facts))?;
            Ok(Imported::New)
        })
    }

    /// Stores a module as the next version of its name.
    ///
    /// # Errors
    /// NotFound when there is no such user, Invalid when the name or description may not be so.
    pub async fn module_import(&self, new: ImportedModule<'_>) -> Result<Imported, StoreError> {
        check_text(
            new.name,
            1..=NAME_BYTES_MAX,
            "a module's name has 1 to 255 bytes and no NUL",
        )?;
        let description = "a module's description has at most 4,096 bytes and no NUL";
        check_text(new.description, 0..=DESCRIPTION_BYTES_MAX, description)?;
        let size = signed(new.wasm.len() as u64)?;
        let executions = signed(new.execution_count)?;
        let hash = ModuleHash::of(new.wasm);
        let keep_blob = self.keep_blob();
        in_transaction!(self, |tx| {
            let known: Option<i32> = sqlx::query_scalar("SELECT 1 FROM modules WHERE id = $1")
                .bind(new.id)
                .fetch_optional(&mut *tx)
                .await?;
            if known.is_some() {
                return Ok(Imported::Known);
            }
            let version: i64 = sqlx::query_scalar(
                "INSERT INTO module_names (owner_id, name, last_version) VALUES ($1, $2, 1) \
                 ON CONFLICT (owner_id, name) \
                 DO UPDATE SET last_version = module_names.last_version + 1 \
                 RETURNING last_version",
            )
            .bind(new.owner_id)
            .bind(new.name)
            .fetch_one(&mut *tx)
            .await
            .map_err(|error| StoreError::of_write(error, "module", "user"))?;
            sqlx::query(keep_blob)
                .bind(hash)
                .bind(new.wasm)
                .bind(size)
                .bind(Stamp::from(new.uploaded_at))
                .execute(&mut *tx)
                .await?;
            sqlx::query(
                "INSERT INTO modules (id, owner_id, name, version, description, hash, size_bytes, \
                 is_public, uploaded_at, last_executed_at, execution_count) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            )
            .bind(new.id)
            .bind(new.owner_id)
            .bind(new.name)
            .bind(version)
            .bind(new.description)
            .bind(hash)
            .bind(size)
            .bind(new.is_public)
            .bind(Stamp::from(new.uploaded_at))
            .bind(new.last_executed_at.map(Stamp::from))
            .bind(executions)
            .execute(&mut *tx)
            .await
            .map_err(|error| StoreError::of_write(error, "module", "user"))?;
            let facts = json!({
                "owner_id": new.owner_id,
                "name": new.name,
                "version": version,
                "sha256_hash": hash.to_string(),
                "size_bytes": size,
                "is_public": new.is_public,
            });
            note!(self, tx, imported("module.import", new.id, facts))?;
            Ok(Imported::New)
        })
    }
}

/// What the audit tells of a row that was taken over.
fn imported(action: &'static str, id: Uuid, facts: Value) -> Change {
    Change {
        action,
        subject_id: Some(id),
        before: None,
        after: Some(facts),
    }
}
