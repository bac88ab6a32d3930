//! Modules: a row per owner and upload, one blob per SHA-256 however many owners.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::audit::{Change, note};
use super::pool::{in_transaction, on_connection};
use super::values::{Stamp, check_text, signed};
use super::{Store, StoreError};
use crate::sandbox::ModuleHash;

/// Most modules on one page of [`Store::modules_page`].
pub const PAGE_MODULES_MAX: u32 = 100;

/// Longest description, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 4096;

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    pub id: Uuid,
    pub owner_id: Uuid,
    pub name: String,
    /// Counts an owner's uploads of one name, from 1.
    pub version: u64,
    pub description: String,
    pub hash: ModuleHash,
    pub size_bytes: u64,
    pub is_public: bool,
    pub uploaded_at: DateTime<Utc>,
    pub last_executed_at: Option<DateTime<Utc>>,
    pub execution_count: u64,
    /// Since when nobody may run it; `None` is the usual case.
    pub stopped_at: Option<DateTime<Utc>>,
}

pub struct NewModule<'a> {
    pub owner_id: Uuid,
    /// 1 to 255 bytes, without NUL. An upload under a name in use is a new version of it.
    pub name: &'a str,
    /// At most 4 KiB, without NUL.
    pub description: &'a str,
    pub hash: ModuleHash,
    pub wasm: &'a [u8],
    pub is_public: bool,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub modules: Vec<Module>,
    /// Rows in all, over all pages.
    pub total: u64,
}

#[derive(sqlx::FromRow)]
struct ModuleRow {
    id: Uuid,
    owner_id: Uuid,
    name: String,
    version: i64,
    description: String,
    hash: ModuleHash,
    size_bytes: i64,
    is_public: bool,
    uploaded_at: Stamp,
    last_executed_at: Option<Stamp>,
    execution_count: i64,
    stopped_at: Option<Stamp>,
}

#[derive(sqlx::FromRow)]
struct ModuleWithEmail {
    #[sqlx(flatten)]
    module: ModuleRow,
    email: String,
}

/// A `SELECT` of a [`ModuleRow`] from `modules m`, and what follows.
macro_rules! select {
    ($more_columns:literal, $rest:literal) => {
        concat!(
            "SELECT m.id, m.owner_id, m.name, m.version, m.description, m.hash, m.size_bytes, \
             m.is_public, m.uploaded_at, m.last_executed_at, m.execution_count, \
             m.stopped_at",
            $more_columns,
            " FROM modules m ",
            $rest
        )
    };
}

impl Store {
    /// The statement that stores a blob unless it is there, and keeps it from being deleted before a row
    /// refers to it. SQLite's transaction is alone already; in PostgreSQL the update, which changes
    /// nothing, locks the row, and its bytes are not copied.
    pub(super) fn keep_blob(&self) -> &'static str {
        self.pool().text(
            "INSERT INTO module_blobs (hash, wasm, size_bytes, created_at) \
             VALUES ($1, $2, $3, $4) ON CONFLICT (hash) DO NOTHING",
            "INSERT INTO module_blobs (hash, wasm, size_bytes, created_at) \
             VALUES ($1, $2, $3, $4) \
             ON CONFLICT (hash) DO UPDATE SET created_at = module_blobs.created_at",
        )
    }

    /// Stores the row and, unless it is there, the blob, in one transaction.
    ///
    /// # Errors
    /// NotFound when there is no such user, Invalid when the name or description may not be so.
    pub async fn module_create(&self, new: NewModule<'_>) -> Result<Module, StoreError> {
        check_text(
            new.name,
            1..=NAME_BYTES_MAX,
            "a module's name has 1 to 255 bytes and no NUL",
        )?;
        let description = "a module's description has at most 4,096 bytes and no NUL";
        check_text(new.description, 0..=DESCRIPTION_BYTES_MAX, description)?;
        let size = signed(new.wasm.len() as u64)?;
        let keep_blob = self.keep_blob();
        let row = in_transaction!(self, |tx| {
            // Made under the lock on the name, so that the ids of its versions ascend as well.
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
            let row = ModuleRow::new(&new, version, size);
            sqlx::query(keep_blob)
                .bind(new.hash)
                .bind(new.wasm)
                .bind(size)
                .bind(row.uploaded_at)
                .execute(&mut *tx)
                .await?;
            sqlx::query(
                "INSERT INTO modules (id, owner_id, name, version, description, hash, size_bytes, \
                 is_public, uploaded_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(row.id)
            .bind(row.owner_id)
            .bind(&row.name)
            .bind(row.version)
            .bind(&row.description)
            .bind(row.hash)
            .bind(row.size_bytes)
            .bind(row.is_public)
            .bind(row.uploaded_at)
            .execute(&mut *tx)
            .await
            .map_err(|error| StoreError::of_write(error, "module", "user"))?;
            let change = Change {
                action: "module.create",
                subject_id: Some(row.id),
                before: None,
                after: Some(json!({
                    "owner_id": row.owner_id,
                    "name": row.name,
                    "version": row.version,
                    "sha256_hash": row.hash.to_string(),
                    "size_bytes": row.size_bytes,
                    "is_public": row.is_public,
                })),
            };
            note!(self, tx, change)?;
            Ok(row)
        })?;
        Ok(Module::from(row))
    }

    pub async fn module(&self, id: Uuid) -> Result<Option<Module>, StoreError> {
        on_connection!(self, |conn| {
            let row: Option<ModuleRow> = sqlx::query_as(select!("", "WHERE m.id = $1"))
                .bind(id)
                .fetch_optional(&mut *conn)
                .await?;
            Ok(row.map(Module::from))
        })
    }

    /// The owner's modules and, when asked, everyone's public ones; newest first. `page` is from 1
    /// (0 is read as 1); `limit` is at most [`PAGE_MODULES_MAX`], and more is read as that. A page
    /// beyond the last has no modules, and the true total.
    pub async fn modules_page(
        &self,
        owner_id: Uuid,
        include_public: bool,
        page: u32,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let limit = i64::from(limit.min(PAGE_MODULES_MAX));
        let offset = i64::from(page.saturating_sub(1)) * limit;
        // Two texts, so that the usual listing is one walk of the owner's index.
        let (count, select) = if include_public {
            (
                "SELECT COUNT(*) FROM modules m WHERE m.owner_id = $1 OR m.is_public",
                select!(
                    "",
                    "WHERE m.owner_id = $1 OR m.is_public ORDER BY m.id DESC LIMIT $2 OFFSET $3"
                ),
            )
        } else {
            (
                "SELECT COUNT(*) FROM modules m WHERE m.owner_id = $1",
                select!(
                    "",
                    "WHERE m.owner_id = $1 ORDER BY m.id DESC LIMIT $2 OFFSET $3"
                ),
            )
        };
        on_connection!(self, |conn| {
            let total: i64 = sqlx::query_scalar(count)
                .bind(owner_id)
                .fetch_one(&mut *conn)
                .await?;
            let rows: Vec<ModuleRow> = sqlx::query_as(select)
                .bind(owner_id)
                .bind(limit)
                .bind(offset)
                .fetch_all(&mut *conn)
                .await?;
            let modules = rows.into_iter().map(Module::from).collect();
            Ok(Page {
                modules,
                total: total.unsigned_abs(),
            })
        })
    }

    /// Every module with its owner's email, newest first, for the operator's command line.
    pub async fn modules_all(&self) -> Result<Vec<(Module, String)>, StoreError> {
        on_connection!(self, |conn| {
            let rows: Vec<ModuleWithEmail> = sqlx::query_as(select!(
                ", u.email",
                "JOIN users u ON u.id = m.owner_id ORDER BY m.id DESC"
            ))
            .fetch_all(&mut *conn)
            .await?;
            Ok(rows
                .into_iter()
                .map(|row| (Module::from(row.module), row.email))
                .collect())
        })
    }

    /// Deletes the row and, when it was the last one, the blob, in one transaction. NotFound when
    /// there is no such row.
    pub async fn module_delete(&self, id: Uuid) -> Result<(), StoreError> {
        // PostgreSQL: the locks are statements of their own, so that the deletes after them see
        // what was committed while we waited. The name comes before the blob, as in a create.
        let lock_name = self.pool().text(
            "SELECT 1 FROM module_names WHERE owner_id = $1 AND name = $2",
            "SELECT 1 FROM module_names WHERE owner_id = $1 AND name = $2 FOR UPDATE",
        );
        let lock_blob = self.pool().text(
            "SELECT 1 FROM module_blobs WHERE hash = $1",
            "SELECT 1 FROM module_blobs WHERE hash = $1 FOR UPDATE",
        );
        in_transaction!(self, |tx| {
            let deleted: Option<(Uuid, String, ModuleHash)> =
                sqlx::query_as("DELETE FROM modules WHERE id = $1 RETURNING owner_id, name, hash")
                    .bind(id)
                    .fetch_optional(&mut *tx)
                    .await?;
            let Some((owner_id, name, hash)) = deleted else {
                return Err(StoreError::NotFound("module"));
            };
            sqlx::query(lock_name)
                .bind(owner_id)
                .bind(&name)
                .execute(&mut *tx)
                .await?;
            sqlx::query(
                "DELETE FROM module_names WHERE owner_id = $1 AND name = $2 AND NOT EXISTS \
                 (SELECT 1 FROM modules m WHERE m.owner_id = $1 AND m.name = $2)",
            )
            .bind(owner_id)
            .bind(&name)
            .execute(&mut *tx)
            .await?;
            sqlx::query(lock_blob).bind(hash).execute(&mut *tx).await?;
            sqlx::query(
                "DELETE FROM module_blobs WHERE hash = $1 AND NOT EXISTS \
                 (SELECT 1 FROM modules m WHERE m.hash = $1)",
            )
            .bind(hash)
            .execute(&mut *tx)
            .await?;
            let change = Change {
                action: "module.delete",
                subject_id: Some(id),
                before: Some(json!({
                    "owner_id": owner_id,
                    "name": name,
                    "sha256_hash": hash.to_string(),
                })),
                after: None,
            };
            note!(self, tx, change)
        })
    }

    /// Stops a module, so that nobody may run it, or lets it be run again. Done already is done.
    /// NotFound when there is no such row.
    pub async fn module_stop(
        &self,
        id: Uuid,
        stop: bool,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let stopped_at = stop.then(|| Stamp::from(now));
        let lock = self.pool().text(
            "SELECT stopped_at FROM modules WHERE id = $1",
            "SELECT stopped_at FROM modules WHERE id = $1 FOR UPDATE",
        );
        in_transaction!(self, |tx| {
            let before: Option<Option<Stamp>> = sqlx::query_scalar(lock)
                .bind(id)
                .fetch_optional(&mut *tx)
                .await?;
            let before = before.ok_or(StoreError::NotFound("module"))?;
            if before.is_some() == stop {
                return Ok(());
            }
            sqlx::query("UPDATE modules SET stopped_at = $2 WHERE id = $1")
                .bind(id)
                .bind(stopped_at)
                .execute(&mut *tx)
                .await?;
            let facts =
                |at: Option<Stamp>| Some(json!({ "stopped_at": at.map(DateTime::<Utc>::from) }));
            let change = Change {
                action: if stop { "module.stop" } else { "module.resume" },
                subject_id: Some(id),
                before: facts(before),
                after: facts(stopped_at),
            };
            note!(self, tx, change)
        })
    }

    /// The modules that nobody may run.
    pub async fn modules_stopped(&self) -> Result<Vec<Uuid>, StoreError> {
        on_connection!(self, |conn| {
            Ok(
                sqlx::query_scalar("SELECT id FROM modules WHERE stopped_at IS NOT NULL")
                    .fetch_all(&mut *conn)
                    .await?,
            )
        })
    }

    pub async fn blob(&self, hash: &ModuleHash) -> Result<Option<Bytes>, StoreError> {
        on_connection!(self, |conn| {
            let wasm: Option<Vec<u8>> =
                sqlx::query_scalar("SELECT wasm FROM module_blobs WHERE hash = $1")
                    .bind(*hash)
                    .fetch_optional(&mut *conn)
                    .await?;
            Ok(wasm.map(Bytes::from))
        })
    }
}

impl ModuleRow {
    fn new(new: &NewModule<'_>, version: i64, size_bytes: i64) -> ModuleRow {
        ModuleRow {
            id: Uuid::now_v7(),
            owner_id: new.owner_id,
            name: new.name.to_owned(),
            version,
            description: new.description.to_owned(),
            hash: new.hash,
            size_bytes,
            is_public: new.is_public,
            uploaded_at: Stamp::now(),
            last_executed_at: None,
            execution_count: 0,
            stopped_at: None,
        }
    }
}

impl From<ModuleRow> for Module {
    fn from(row: ModuleRow) -> Module {
        // The columns' CHECKs keep these from being negative.
        Module {
            id: row.id,
            owner_id: row.owner_id,
            name: row.name,
            version: row.version.unsigned_abs(),
            description: row.description,
            hash: row.hash,
            size_bytes: row.size_bytes.unsigned_abs(),
            is_public: row.is_public,
            uploaded_at: row.uploaded_at.into(),
            last_executed_at: row.last_executed_at.map(DateTime::from),
            execution_count: row.execution_count.unsigned_abs(),
            stopped_at: row.stopped_at.map(DateTime::from),
        }
    }
}
