//! Rows on their way in, with what they add up to.

mod postgres;
mod sqlite;

use std::collections::HashSet;

use uuid::Uuid;

use super::sums::Sums;
use super::{BATCH_ROWS_MAX, Execution};
use crate::store::pool::Pool;
use crate::store::{Store, StoreError};

impl Store {
    /// Writes the rows that are not there yet, and adds them to the sums of their days and to the counts
    /// of their modules, in one transaction. Modules that are not there any more are passed over. Returns
    /// how many rows were new. A batch has at most [`BATCH_ROWS_MAX`] rows.
    ///
    /// # Errors
    /// Invalid when a row holds what no row may; then nothing was written.
    pub async fn usage_write(&self, executions: &[Execution]) -> Result<u64, StoreError> {
        if executions.is_empty() {
            return Ok(0);
        }
        if executions.len() > BATCH_ROWS_MAX {
            return Err(StoreError::Internal(format!(
                "{} usage rows are too many for one transaction",
                executions.len()
            )));
        }
        self.bounded(async {
            match self.pool() {
                Pool::Sqlite(pools) => {
                    let mut transaction = pools.begin().await?;
                    let sums = if sqlite::new_rows(&mut transaction, executions).await? {
                        Sums::of(executions.iter())
                    } else {
                        transaction.rollback().await?;
                        transaction = pools.begin().await?;
                        sqlite::rows(&mut transaction, executions).await?
                    };
                    sqlite::add(&mut transaction, &sums).await?;
                    transaction.commit().await?;
                    Ok(sums.rows)
                }
                Pool::Postgres(pool) => {
                    let mut transaction = pool.begin().await?;
                    let new = postgres::rows(&mut transaction, executions).await?;
                    let sums = sums_of(executions, new);
                    postgres::add(&mut transaction, &sums).await?;
                    transaction.commit().await?;
                    Ok(sums.rows)
                }
            }
        })
        .await
    }
}

/// What the rows that are new add. A batch that holds one twice counts it once.
fn sums_of(executions: &[Execution], mut new: HashSet<Uuid>) -> Sums {
    Sums::of(executions.iter().filter(|row| new.remove(&row.id)))
}

/// A row that breaks what a column asks for will never be taken, unlike one that meets a passing trouble.
fn of_row(error: sqlx::Error) -> StoreError {
    use sqlx::error::ErrorKind;
    let refused = error.as_database_error().is_some_and(|error| {
        // Class 22 of SQLSTATE is data that can't be, such as text that the database's encoding lacks.
        let is_data = error.code().is_some_and(|code| code.starts_with("22"));
        let is_postgres = error
            .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
            .is_some();
        match error.kind() {
            ErrorKind::CheckViolation | ErrorKind::NotNullViolation => true,
            // The driver's enum is open, so this can't be a list.
            _ => is_postgres && is_data,
        }
    });
    if refused {
        tracing::debug!(%error, "the database refuses a usage row");
        StoreError::Invalid("the database refuses a usage row")
    } else {
        StoreError::from(error)
    }
}
