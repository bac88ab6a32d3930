//! The audit: who changed what, from where. A row is written in the transaction of the change it tells
//! of, and is never changed or taken away.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::pool::{in_transaction, on_connection};
use super::values::Stamp;
use super::{Store, StoreError};

/// Most entries on one page of [`Store::audit_page`].
pub const PAGE_ENTRIES_MAX: u32 = 200;

/// Longest part of a name or request id that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 255;

/// What sort of somebody makes a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActorKind {
    /// Through the API.
    User,
    /// At the command line.
    Operator,
    /// The gateway by itself.
    #[default]
    System,
}

/// Who makes a change, as the audit tells it. Of what the gateway does by itself, `user_id` and `key_id`
/// tell whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actor {
    pub kind: ActorKind,
    pub user_id: Option<Uuid>,
    pub key_id: Option<Uuid>,
    /// The operator's name on the machine.
    pub operator: Option<String>,
    pub address: Option<IpAddr>,
    pub request_id: Option<String>,
}

/// A change as the audit tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: Uuid,
    pub at: DateTime<Utc>,
    pub actor: ActorKind,
    pub user_id: Option<Uuid>,
    pub key_id: Option<Uuid>,
    pub operator: Option<String>,
    pub address: Option<String>,
    pub request_id: Option<String>,
    /// `key.create`, `user.update` …
    pub action: String,
    /// The user, key or module that was changed.
    pub subject_id: Option<Uuid>,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// Which entries are asked for; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    pub user_id: Option<Uuid>,
    pub key_id: Option<Uuid>,
    pub subject_id: Option<Uuid>,
    pub action: Option<&'a str>,
    pub since: Option<DateTime<Utc>>,
    pub until: Option<DateTime<Utc>>,
    /// Only entries older than this one: for the next page.
    pub before: Option<Uuid>,
}

/// What was changed, for [`note!`].
pub(super) struct Change {
    pub action: &'static str,
    pub subject_id: Option<Uuid>,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

pub(super) const INSERT_SQLITE: &str = "INSERT INTO audit (id, at, actor, user_id, key_id, operator, address, request_id, action, subject_id, \
     before, after) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
pub(super) const INSERT_POSTGRES: &str = "INSERT INTO audit (id, at, actor, user_id, key_id, operator, address, request_id, action, subject_id, \
     before, after) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, CAST($11 AS JSONB), \
     CAST($12 AS JSONB))";

/// Writes a [`Change`] in a transaction of either database; its value is a `Result`.
macro_rules! note {
    ($store:expr, $tx:ident, $change:expr) => {{
        let change: $crate::store::audit::Change = $change;
        let actor = &$store.actor;
        let insert = $store.pool().text(
            $crate::store::audit::INSERT_SQLITE,
            $crate::store::audit::INSERT_POSTGRES,
        );
        sqlx::query(insert)
            .bind(uuid::Uuid::now_v7())
            .bind($crate::store::values::Stamp::now())
            .bind(actor.kind)
            .bind(actor.user_id)
            .bind(actor.key_id)
            .bind(actor.operator.clone())
            .bind(actor.address.map(|address| address.to_string()))
            .bind(actor.request_id.clone())
            .bind(change.action)
            .bind(change.subject_id)
            .bind(change.before.map(|value| value.to_string()))
            .bind(change.after.map(|value| value.to_string()))
            .execute(&mut *$tx)
            .await
            .map_err($crate::store::StoreError::from)
            .map(|_| ())
    }};
}
pub(super) use note;

#[derive(sqlx::FromRow)]
struct EntryRow {
    id: Uuid,
    at: Stamp,
    actor: ActorKind,
    user_id: Option<Uuid>,
    key_id: Option<Uuid>,
    operator: Option<String>,
    address: Option<String>,
    request_id: Option<String>,
    action: String,
    subject_id: Option<Uuid>,
    before: Option<String>,
    after: Option<String>,
}

impl Store {
    /// The store as this actor uses it: its changes stand in the audit under this name.
    #[must_use]
    pub fn acting(&self, mut actor: Actor) -> Store {
        let texts = [&mut actor.operator, &mut actor.request_id];
        for text in texts.into_iter().flatten() {
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
            text.retain(|c| c != '\0');
        }
        Store {
            inner: std::sync::Arc::clone(&self.inner),
            actor: std::sync::Arc::new(actor),
        }
    }

    /// The same, where only the change itself shows whose key it was made with.
    #[must_use]
    pub(super) fn acting_with(&self, user_id: Uuid, key_id: Uuid) -> Store {
        let actor = Actor {
            user_id: Some(user_id),
            key_id: Some(key_id),
            ..Actor::clone(&self.actor)
        };
        Store {
            inner: std::sync::Arc::clone(&self.inner),
            actor: std::sync::Arc::new(actor),
        }
    }

    /// Entries, newest first. `limit` is at most [`PAGE_ENTRIES_MAX`], and more is read as that.
    pub async fn audit_page(
        &self,
        filter: &Filter<'_>,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        let limit = i64::from(limit.min(PAGE_ENTRIES_MAX));
        // Ids are UUIDv7, so bounds of time are bounds of ids too: old entries are not even looked at.
        let newest = filter
            .until
            .map(|at| floor_of(at + chrono::TimeDelta::milliseconds(1)));
        let newest = [filter.before, newest].into_iter().flatten().min();
        let oldest = filter.since.map(floor_of);
        on_connection!(self, |conn| {
            let rows: Vec<EntryRow> = sqlx::query_as(
                // Of fixed parts alone.
                sqlx::AssertSqlSafe(page_statement(filter)),
            )
            // Planned for what is asked for: one plan for all would walk the whole audit to find one
            // user's part of it.
            .persistent(false)
            .bind(newest.unwrap_or(Uuid::max()))
            .bind(oldest.unwrap_or(Uuid::nil()))
            .bind(filter.user_id)
            .bind(filter.key_id)
            .bind(filter.subject_id)
            .bind(filter.action)
            .bind(filter.since.map(Stamp::from))
            .bind(filter.until.map(Stamp::from))
            .bind(limit)
            .fetch_all(&mut *conn)
            .await?;
            rows.into_iter().map(Entry::try_from).collect()
        })
    }

    /// Notes that a gateway runs on another configuration than the last one noted. Gateways that share a
    /// database and a configuration note it once.
    pub async fn config_used(&self, facts: Value) -> Result<(), StoreError> {
        const LAST: &str = "SELECT CAST(after AS TEXT) FROM audit WHERE action = 'config.change' \
                            ORDER BY id DESC LIMIT 1";
        // Without the lock two gateways that start together would both find the old one.
        let lock = self.pool().text(
            "SELECT 1",
            "SELECT pg_advisory_xact_lock(hashtext('wasm-wizard config'))",
        );
        in_transaction!(self, |tx| {
            sqlx::query(lock).execute(&mut *tx).await?;
            let last: Option<String> = sqlx::query_scalar(LAST).fetch_optional(&mut *tx).await?;
            let before = last.map(|text| parsed(&text)).transpose()?;
            if before.as_ref() == Some(&facts) {
                return Ok(());
            }
            let change = Change {
                action: "config.change",
                subject_id: None,
                before,
                after: Some(facts),
            };
            note!(self, tx, change)
        })
    }
}

impl TryFrom<EntryRow> for Entry {
    type Error = StoreError;

    fn try_from(row: EntryRow) -> Result<Entry, StoreError> {
        Ok(Entry {
            id: row.id,
            at: row.at.into(),
            actor: row.actor,
            user_id: row.user_id,
            key_id: row.key_id,
            operator: row.operator,
            address: row.address,
            request_id: row.request_id,
            action: row.action,
            subject_id: row.subject_id,
            before: row.before.map(|text| parsed(&text)).transpose()?,
            after: row.after.map(|text| parsed(&text)).transpose()?,
        })
    }
}

/// The statement of [`Store::audit_page`]. A filter that is given stands there by itself: SQLite plans before
/// it knows the values, and would use no index for what may be `NULL`.
fn page_statement(filter: &Filter<'_>) -> String {
    let of = |is_given: bool, column: &str, number: u32| {
        if is_given {
            format!("{column} = ${number}")
        } else {
            format!("(${number} IS NULL OR {column} = ${number})")
        }
    };
    format!(
        "SELECT id, at, actor, user_id, key_id, operator, address, request_id, action, \
         subject_id, CAST(before AS TEXT) AS before, CAST(after AS TEXT) AS after \
         FROM audit WHERE id < $1 AND id >= $2 AND {} AND {} AND {} AND {} \
         AND ($7 IS NULL OR at >= $7) AND ($8 IS NULL OR at < $8) ORDER BY id DESC LIMIT $9",
        of(filter.user_id.is_some(), "user_id", 3),
        of(filter.key_id.is_some(), "key_id", 4),
        of(filter.subject_id.is_some(), "subject_id", 5),
        of(filter.action.is_some(), "action", 6),
    )
}

fn parsed(text: &str) -> Result<Value, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Internal(format!("the audit holds no JSON: {error}")))
}

/// The smallest UUIDv7 of a time (RFC 9562 §5.7).
fn floor_of(at: DateTime<Utc>) -> Uuid {
    let ms = u128::from(at.timestamp_millis().max(0).unsigned_abs() & 0xffff_ffff_ffff);
    Uuid::from_u128(ms << 80)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Settings;
    use crate::store::pool::Pool;

    /// How SQLite finds what is asked for.
    async fn plan(store: &Store, filter: &Filter<'_>) -> String {
        let Pool::Sqlite(sqlite) = store.pool() else {
            panic!("it is SQLite")
        };
        let statement = format!("EXPLAIN QUERY PLAN {}", page_statement(filter));
        let mut connection = sqlite.reader().await.unwrap();
        let rows: Vec<(i64, i64, i64, String)> = sqlx::query_as(sqlx::AssertSqlSafe(statement))
            .bind(Uuid::max())
            .bind(Uuid::nil())
            .bind(filter.user_id)
            .bind(filter.key_id)
            .bind(filter.subject_id)
            .bind(filter.action)
            .bind(filter.since.map(Stamp::from))
            .bind(filter.until.map(Stamp::from))
            .bind(50)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        rows.into_iter().map(|row| row.3).collect()
    }

    #[tokio::test]
    async fn what_is_asked_for_is_found_by_its_index() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::connect(&Settings {
            url: format!("sqlite://{}/db", directory.path().display()),
            connections_max: 2,
            acquire_timeout: Duration::from_secs(10),
        })
        .await
        .unwrap();
        store.migrate().await.unwrap();
        let of = |user_id, key_id, subject_id| Filter {
            user_id,
            key_id,
            subject_id,
            ..Filter::default()
        };
        let one = Some(Uuid::now_v7());
        for (filter, index) in [
            (of(one, None, None), "audit_user (user_id=?"),
            (of(None, one, None), "audit_key (key_id=?"),
            (of(None, None, one), "audit_subject (subject_id=?"),
            (of(None, None, None), "(id>? AND id<?)"),
        ] {
            let plan = plan(&store, &filter).await;
            assert!(plan.contains(index), "{index}: {plan}");
            // Newest first by the index itself.
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
        }
    }
}
