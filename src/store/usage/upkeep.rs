//! What is too old goes, a little at a time, and by one gateway at a time.

use chrono::{DateTime, NaiveDate, Utc};

use super::first_id;
use crate::store::pool::in_transaction;
use crate::store::{Store, StoreError};

/// Rows deleted in one transaction: a few milliseconds of work.
const DELETED_MAX: i64 = 2_000;

/// The number of the advisory lock: any other program on this database that takes advisory locks must use
/// other numbers.
const LOCK: i64 = 0x7761_736d_7573_6167;

/// Deletes old sums of one of the tables with them.
macro_rules! sqlite_delete {
    ($table:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE (user_id, day, key_id, module, status) IN \
             (SELECT user_id, day, key_id, module, status FROM ",
            $table,
            " WHERE day < $1 LIMIT $2)"
        )
    };
}

/// The same, by the rows' places.
macro_rules! postgres_delete {
    ($table:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE ctid = ANY (ARRAY (SELECT ctid FROM ",
            $table,
            " WHERE day < $1 LIMIT $2))"
        )
    };
}

/// What one step of the upkeep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many rows are gone; there may be more.
    Deleted(u64),
    /// Nothing is too old.
    Done,
    /// Another gateway is at it.
    Busy,
}

impl Store {
    /// Deletes some of the executions that ended before `rows_before`, and of the sums of days before
    /// `days_before`.
    pub async fn usage_expire(
        &self,
        rows_before: DateTime<Utc>,
        days_before: NaiveDate,
    ) -> Result<Step, StoreError> {
        // SQLite's transaction is alone already. PostgreSQL's lock ends with the transaction, so it needs no
        // connection of its own and is never left behind.
        let lock = self
            .pool()
            .text("SELECT $1 = $1", "SELECT pg_try_advisory_xact_lock($1)");
        let delete_days = [
            self.pool().text(
                sqlite_delete!("usage_daily"),
                postgres_delete!("usage_daily"),
            ),
            self.pool().text(
                sqlite_delete!("usage_daily_exact"),
                postgres_delete!("usage_daily_exact"),
            ),
        ];
        in_transaction!(self, |tx| {
            let alone: bool = sqlx::query_scalar(lock)
                .bind(LOCK)
                .fetch_one(&mut *tx)
                .await?;
            if !alone {
                Ok(Step::Busy)
            } else {
                let mut deleted = sqlx::query(
                    "DELETE FROM usage WHERE id IN \
                     (SELECT id FROM usage WHERE id < $1 ORDER BY id LIMIT $2)",
                )
                .bind(first_id(rows_before))
                .bind(DELETED_MAX)
                .execute(&mut *tx)
                .await?
                .rows_affected();
                for delete in delete_days {
                    deleted += sqlx::query(delete)
                        .bind(days_before)
                        .bind(DELETED_MAX)
                        .execute(&mut *tx)
                        .await?
                        .rows_affected();
                }
                Ok(match deleted {
                    0 => Step::Done,
                    deleted => Step::Deleted(deleted),
                })
            }
        })
    }
}
