//! Families of refresh tokens.

use chrono::{DateTime, Utc};
use serde_json::json;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::audit::{Actor, ActorKind, Change, note};
use super::pool::{in_transaction, on_connection};
use super::values::Stamp;
use super::{Store, StoreError};
use crate::account::Scopes;

/// Families deleted in one transaction, which holds SQLite's only write lock.
const PURGE_BATCH: i64 = 1_000;

/// A family to be made.
pub struct NewFamily {
    pub id: Uuid,
    pub key_id: Uuid,
    /// Hash of its first refresh token.
    pub hash: [u8; 32],
    /// At least one.
    pub scopes: Scopes,
    pub now: DateTime<Utc>,
    /// When that token ends.
    pub expires_at: DateTime<Utc>,
    /// When the family ends, however often it is refreshed; never before `expires_at`.
    pub ends_at: DateTime<Utc>,
    /// Families a key may have; the oldest of more go.
    pub families_max: u32,
}

/// A refresh to be made.
pub struct Refresh {
    pub family_id: Uuid,
    /// Hash of the token that was shown.
    pub shown: [u8; 32],
    /// Hash of the one that takes its place.
    pub next: [u8; 32],
    pub now: DateTime<Utc>,
    /// When the new one ends, unless the family ends sooner.
    pub expires_at: DateTime<Utc>,
}

/// What became of a refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refreshed {
    /// The token was the family's current one, and the new one is now.
    Rotated(Family),
    /// The token had been replaced before: somebody has a copy. The family is revoked.
    Reused { key_id: Uuid },
    /// There is no such family, it has ended or was revoked, or its key or user may do nothing now.
    Refused,
}

/// A family that is alive, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    pub key_id: Uuid,
    pub user_id: Uuid,
    pub key_expires_at: Option<DateTime<Utc>>,
    /// Those of the family that its key has, too.
    pub scopes: Scopes,
    /// When its refresh token ends.
    pub expires_at: DateTime<Utc>,
    pub ends_at: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct FamilyRow {
    key_id: Uuid,
    hash: Vec<u8>,
    scopes: Scopes,
    expires_at: Stamp,
    ends_at: Stamp,
    revoked_at: Option<Stamp>,
    user_id: Uuid,
    key_scopes: Scopes,
    key_expires_at: Option<Stamp>,
    key_revoked_at: Option<Stamp>,
    user_disabled_at: Option<Stamp>,
}

/// A family with its key and user.
macro_rules! select_family {
    () => {
        "SELECT f.key_id, f.hash, f.scopes, f.expires_at, f.ends_at, f.revoked_at, k.user_id, \
         k.scopes AS key_scopes, \
         k.expires_at AS key_expires_at, k.revoked_at AS key_revoked_at, \
         u.disabled_at AS user_disabled_at \
         FROM token_families f JOIN api_keys k ON k.id = f.key_id JOIN users u ON u.id = k.user_id \
         WHERE f.id = $1"
    };
}

impl Store {
    /// NotFound when the key is not there, or may not be used now: what a cache says of it may be
    /// a moment old. Deletes the key's oldest families when there are too many.
    pub async fn token_family_create(&self, new: NewFamily) -> Result<(), StoreError> {
        if new.scopes.is_empty() {
            return Err(StoreError::Invalid("a family has at least one scope"));
        }
        in_transaction!(self, |tx| {
            let made = sqlx::query(
                "INSERT INTO token_families \
                 (id, key_id, hash, scopes, created_at, rotated_at, expires_at, ends_at) \
                 SELECT $1, k.id, $3, $4, $5, $5, $6, $7 \
                 FROM api_keys k JOIN users u ON u.id = k.user_id \
                 WHERE k.id = $2 AND k.revoked_at IS NULL AND u.disabled_at IS NULL \
                 AND (k.expires_at IS NULL OR k.expires_at > $5)",
            )
            .bind(new.id)
            .bind(new.key_id)
            .bind(new.hash.to_vec())
            .bind(new.scopes)
            .bind(Stamp::from(new.now))
            .bind(Stamp::from(new.expires_at))
            .bind(Stamp::from(new.ends_at))
            .execute(&mut *tx)
            .await?;
            if made.rows_affected() == 0 {
                Err(StoreError::NotFound("API key"))
            } else {
                let ended = sqlx::query(
                    "DELETE FROM token_families WHERE id IN \
                     (SELECT id FROM token_families WHERE key_id = $1 \
                     ORDER BY id DESC LIMIT 1000 OFFSET $2)",
                )
                .bind(new.key_id)
                .bind(i64::from(new.families_max))
                .execute(&mut *tx)
                .await?
                .rows_affected();
                note!(self, tx, issued(&new, ended))
            }
        })
    }

    /// Puts a family's next refresh token in the place of the one that was shown, if that is its
    /// current one, and revokes the family if it is not (RFC 9700 section 4.14.2). Of refreshes with
    /// the same token at the same time one is [`Refreshed::Rotated`].
    pub async fn token_refresh(&self, refresh: &Refresh) -> Result<Refreshed, StoreError> {
        // SQLite's transaction holds the only write lock already; PostgreSQL's takes the row's, and
        // reads it again as it is once it has that.
        let select = self.pool().text(
            select_family!(),
            concat!(select_family!(), " FOR UPDATE OF f"),
        );
        in_transaction!(self, |tx| {
            let row: Option<FamilyRow> = sqlx::query_as(select)
                .bind(refresh.family_id)
                .fetch_optional(&mut *tx)
                .await?;
            match row {
                None => Ok(Refreshed::Refused),
                Some(row) if !row.is_alive(refresh.now) => Ok(Refreshed::Refused),
                Some(row) if !bool::from(row.hash.ct_eq(&refresh.shown)) => {
                    sqlx::query("UPDATE token_families SET revoked_at = $2 WHERE id = $1")
                        .bind(refresh.family_id)
                        .bind(Stamp::from(refresh.now))
                        .execute(&mut *tx)
                        .await?;
                    let store = self.by_itself().acting_with(row.user_id, row.key_id);
                    let change = revoked(refresh.family_id, "a refresh token was used twice");
                    note!(store, tx, change)?;
                    Ok(Refreshed::Reused { key_id: row.key_id })
                }
                Some(row) => {
                    let mut family = Family::from(row);
                    family.expires_at = refresh.expires_at.min(family.ends_at);
                    sqlx::query(
                        "UPDATE token_families SET hash = $2, rotated_at = $3, expires_at = $4 \
                         WHERE id = $1",
                    )
                    .bind(refresh.family_id)
                    .bind(refresh.next.to_vec())
                    .bind(Stamp::from(refresh.now))
                    .bind(Stamp::from(family.expires_at))
                    .execute(&mut *tx)
                    .await?;
                    let store = self.acting_with(family.user_id, family.key_id);
                    note!(store, tx, refreshed(refresh.family_id, &family))?;
                    Ok(Refreshed::Rotated(family))
                }
            }
        })
    }

    /// Revokes a family; one that is not there, or was revoked before, is left as it is.
    pub async fn token_family_revoke(
        &self,
        id: Uuid,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        in_transaction!(self, |tx| {
            let done = sqlx::query(
                "UPDATE token_families SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL",
            )
            .bind(id)
            .bind(Stamp::from(now))
            .execute(&mut *tx)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(());
            }
            let (user_id, key_id): (Uuid, Uuid) = sqlx::query_as(
                "SELECT k.user_id, k.id FROM token_families f JOIN api_keys k ON k.id = f.key_id \
                 WHERE f.id = $1",
            )
            .bind(id)
            .fetch_one(&mut *tx)
            .await?;
            // Whoever has a token may end it.
            let store = self.acting_with(user_id, key_id);
            note!(store, tx, revoked(id, "asked for with a token"))
        })
    }

    /// The store for what the gateway does by itself, on the same request.
    fn by_itself(&self) -> Store {
        self.acting(Actor {
            kind: ActorKind::System,
            ..Actor::clone(&self.actor)
        })
    }

    /// The families that were revoked since, with when.
    pub async fn token_families_revoked(
        &self,
        since: DateTime<Utc>,
    ) -> Result<Vec<(Uuid, DateTime<Utc>)>, StoreError> {
        on_connection!(self, |conn| {
            let rows: Vec<(Uuid, Stamp)> = sqlx::query_as(
                "SELECT id, revoked_at FROM token_families \
                 WHERE revoked_at IS NOT NULL AND revoked_at >= $1",
            )
            .bind(Stamp::from(since))
            .fetch_all(&mut *conn)
            .await?;
            Ok(rows.into_iter().map(|(id, at)| (id, at.into())).collect())
        })
    }

    /// Deletes families that ended or were revoked before a time, at most a thousand; whether there
    /// may be more.
    pub async fn token_families_purge(&self, before: DateTime<Utc>) -> Result<bool, StoreError> {
        in_transaction!(self, |tx| {
            let done = sqlx::query(
                "DELETE FROM token_families WHERE id IN (SELECT id FROM token_families \
                 WHERE expires_at < $1 OR (revoked_at IS NOT NULL AND revoked_at < $1) LIMIT $2)",
            )
            .bind(Stamp::from(before))
            .bind(PURGE_BATCH)
            .execute(&mut *tx)
            .await?;
            Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX) >= PURGE_BATCH)
        })
    }
}

/// What the audit tells of a new family, and of how many old ones it has ended.
fn issued(new: &NewFamily, ended: u64) -> Change {
    let mut after = json!({
        "scopes": new.scopes.to_string(),
        "expires_at": new.expires_at.to_rfc3339(),
        "ends_at": new.ends_at.to_rfc3339(),
    });
    if ended > 0 {
        after["families_ended"] = json!(ended);
    }
    Change {
        action: "token.issue",
        subject_id: Some(new.id),
        before: None,
        after: Some(after),
    }
}

fn refreshed(id: Uuid, family: &Family) -> Change {
    Change {
        action: "token.refresh",
        subject_id: Some(id),
        before: None,
        after: Some(json!({
            "scopes": family.scopes.to_string(),
            "expires_at": family.expires_at.to_rfc3339(),
        })),
    }
}

fn revoked(id: Uuid, why: &str) -> Change {
    Change {
        action: "token.revoke",
        subject_id: Some(id),
        before: None,
        after: Some(json!({ "why": why })),
    }
}

impl FamilyRow {
    fn is_alive(&self, now: DateTime<Utc>) -> bool {
        let is_over = |at: Stamp| DateTime::from(at) <= now;
        self.revoked_at.is_none()
            && self.key_revoked_at.is_none()
            && self.user_disabled_at.is_none()
            && !is_over(self.expires_at)
            && !self.key_expires_at.is_some_and(is_over)
    }
}

impl From<FamilyRow> for Family {
    fn from(row: FamilyRow) -> Family {
        Family {
            key_id: row.key_id,
            user_id: row.user_id,
            key_expires_at: row.key_expires_at.map(DateTime::from),
            scopes: row.scopes.and(row.key_scopes),
            expires_at: row.expires_at.into(),
            ends_at: row.ends_at.into(),
        }
    }
}
