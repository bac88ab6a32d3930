//! A key that takes the place of another: the same in all but its secret. Both work for a while, so
//! that who uses the old one has time to take up the new.

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::audit::{Change, note};
use super::keys::{self, Key, KeyRow, select_keys};
use super::pool::in_transaction;
use super::values::{Stamp, check_text};
use super::{Store, StoreError};

/// A new secret for a key.
pub struct Rotation<'a> {
    /// The key whose place is taken, as it was when that was decided: a change of it since then is a
    /// Conflict.
    pub old: &'a Key,
    /// At most 32 bytes, without NUL.
    pub prefix: &'a str,
    pub hash: [u8; 32],
    /// When the old key stops working, unless it does before.
    pub old_ends_at: DateTime<Utc>,
}

impl Store {
    /// Makes a key like `old` and has the old one end; gives the new key, and the old one as it is now.
    ///
    /// # Errors
    /// NotFound when the old key is not there or can't be used any more, Conflict when it was rotated
    /// before or changed meanwhile.
    pub async fn key_rotate(
        &self,
        rotation: Rotation<'_>,
        now: DateTime<Utc>,
    ) -> Result<(Key, Key), StoreError> {
        let old = rotation.old;
        check_text(
            rotation.prefix,
            0..=keys::PREFIX_BYTES_MAX,
            "a key's prefix has at most 32 bytes and no NUL",
        )?;
        let find = self.pool().text(
            select_keys!("", "WHERE k.id = $1"),
            select_keys!("", "WHERE k.id = $1 FOR UPDATE OF k"),
        );
        let new = KeyRow {
            id: Uuid::now_v7(),
            user_id: old.user_id,
            name: old.name.clone(),
            prefix: rotation.prefix.to_owned(),
            tier: old.tier,
            scopes: old.scopes,
            created_at: Stamp::from(now),
            expires_at: old.expires_at.map(Stamp::from),
            revoked_at: None,
            last_used_at: None,
            replaced_by: None,
        };
        let old_ends_at = old
            .expires_at
            .map_or(rotation.old_ends_at, |at| at.min(rotation.old_ends_at));
        let ended = in_transaction!(self, |tx| {
            let found: Option<KeyRow> = sqlx::query_as(find)
                .bind(old.id)
                .fetch_optional(&mut *tx)
                .await?;
            let found = found.map(Key::from).filter(|key| key.is_live(now));
            let found = found.ok_or(StoreError::NotFound("API key"))?;
            let as_decided = (found.user_id, found.tier, found.scopes, found.expires_at)
                == (old.user_id, old.tier, old.scopes, old.expires_at);
            if found.replaced_by.is_some() || !as_decided {
                return Err(StoreError::Conflict("a key in place of this one"));
            }
            keys::insert!(tx, new, rotation.hash)
                .map_err(|error| StoreError::of_write(error, "API key", "user"))?;
            sqlx::query(
                "INSERT INTO key_rotations (old_id, new_id, rotated_at) VALUES ($1, $2, $3)",
            )
            .bind(old.id)
            .bind(new.id)
            .bind(Stamp::from(now))
            .execute(&mut *tx)
            .await?;
            sqlx::query("UPDATE api_keys SET expires_at = $2 WHERE id = $1")
                .bind(old.id)
                .bind(Stamp::from(old_ends_at))
                .execute(&mut *tx)
                .await?;
            note!(self, tx, keys::created(&new))?;
            let change = Change {
                action: "key.rotate",
                subject_id: Some(old.id),
                before: Some(json!({ "user_id": old.user_id, "expires_at": old.expires_at })),
                after: Some(json!({
                    "user_id": old.user_id,
                    "expires_at": old_ends_at,
                    "replaced_by": new.id,
                })),
            };
            note!(self, tx, change)?;
            Ok(Key {
                expires_at: Some(Stamp::from(old_ends_at).into()),
                replaced_by: Some(new.id),
                ..found
            })
        })?;
        Ok((Key::from(new), ended))
    }
}
