//! Why the database did not do what was asked, and how a driver's error becomes that.

use sqlx::error::{DatabaseError, ErrorKind};
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;

use crate::telemetry::database::CallResult;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be reached, or is too busy; the same call may go through later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    #[error("{0} not found")]
    NotFound(&'static str),
    #[error("{0} exists already")]
    Conflict(&'static str),
    /// It would leave no admin who is not disabled; nothing was written.
    #[error("this is the last admin")]
    LastAdmin,
    /// A value that no row may hold; nothing was written. The text is safe to show to a client.
    #[error("{0}")]
    Invalid(&'static str),
    #[error("database: {0}")]
    Internal(String),
}

impl StoreError {
    /// The error of a write, with names for what it may break: `unique` exists already, or `parent`
    /// (what a foreign key points at) is not there.
    pub(super) fn of_write(
        error: sqlx::Error,
        unique: &'static str,
        parent: &'static str,
    ) -> StoreError {
        match error.as_database_error().map(|error| error.kind()) {
            Some(ErrorKind::UniqueViolation) => StoreError::Conflict(unique),
            Some(ErrorKind::ForeignKeyViolation) => StoreError::NotFound(parent),
            Some(_) | None => StoreError::from(error),
        }
    }
}

impl StoreError {
    /// As it is counted.
    pub(super) fn call_result(&self) -> CallResult {
        match self {
            StoreError::Unavailable(_) => CallResult::Unavailable,
            StoreError::NotFound(_)
            | StoreError::Conflict(_)
            | StoreError::Invalid(_)
            | StoreError::LastAdmin => CallResult::Refused,
            StoreError::Internal(_) => CallResult::Failed,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> StoreError {
        let text = error.to_string();
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => StoreError::Unavailable(text),
            sqlx::Error::Database(error) if is_passing(&*error) => StoreError::Unavailable(text),
            sqlx::Error::Migrate(error) => StoreError::from(*error),
            // The driver's enum is open, so this can't be a list.
            _ => StoreError::Internal(text),
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> StoreError {
        match error {
            MigrateError::Execute(error) => StoreError::from(error),
            MigrateError::ExecuteMigration(error, version) => match StoreError::from(error) {
                StoreError::Unavailable(text) => {
                    StoreError::Unavailable(format!("migration {version}: {text}"))
                }
                other => StoreError::Internal(format!("migration {version} failed: {other}")),
            },
            MigrateError::VersionMismatch(version) => edited(version),
            // The driver's enum is open, so this can't be a list.
            other => StoreError::Internal(other.to_string()),
        }
    }
}

/// The error for an applied migration that differs from the one in this program.
pub(super) fn edited(version: i64) -> StoreError {
    StoreError::Internal(format!(
        "migration {version} was edited after it had been applied to this database; put its text \
         back as it was, and make the change in a new migration"
    ))
}

/// Whether the database says of itself that it can't now, rather than that the statement is wrong.
fn is_passing(error: &dyn DatabaseError) -> bool {
    let code = error.code();
    let Some(code) = code.as_deref() else {
        return false;
    };
    match error.try_downcast_ref::<PgDatabaseError>() {
        Some(_) => is_passing_postgres(code),
        None => code.parse().is_ok_and(is_passing_sqlite),
    }
}

/// SQLSTATE classes and codes of PostgreSQL (appendix A of its manual).
fn is_passing_postgres(code: &str) -> bool {
    const CLASSES: [&str; 4] = [
        "08", // connection exception
        "53", // insufficient resources: disk full, out of memory, too many connections
        "57", // operator intervention: shutdown, starting up, statement timeout
        "58", // system error: input/output
    ];
    const CODES: [&str; 5] = [
        "25006", // read-only transaction: a standby during fail-over
        "25P03", // idle-in-transaction timeout
        "40001", // serialization failure
        "40P01", // deadlock
        "55P03", // lock not available
    ];
    CODES.contains(&code) || CLASSES.iter().any(|class| code.starts_with(class))
}

/// Result codes of SQLite; the low byte is the primary one.
fn is_passing_sqlite(code: i32) -> bool {
    const BUSY: i32 = 5;
    const LOCKED: i32 = 6;
    const NOMEM: i32 = 7;
    const READONLY: i32 = 8;
    const IOERR: i32 = 10;
    const FULL: i32 = 13;
    const CANTOPEN: i32 = 14;
    [BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN].contains(&(code & 0xff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_troubles_are_told_from_mistakes() {
        for code in [
            "57P01", "57P03", "08006", "53300", "40001", "40P01", "58030", "25006",
        ] {
            assert!(is_passing_postgres(code), "{code}");
        }
        for code in ["23505", "23503", "42P01", "22021", "28P01", "3D000"] {
            assert!(!is_passing_postgres(code), "{code}");
        }
        // SQLITE_BUSY, SQLITE_BUSY_SNAPSHOT, SQLITE_READONLY_DBMOVED, SQLITE_IOERR_FSYNC.
        for code in [5, 517, 1032, 1034] {
            assert!(is_passing_sqlite(code), "{code}");
        }
        // SQLITE_ERROR, SQLITE_CORRUPT, SQLITE_NOTADB, SQLITE_CONSTRAINT_UNIQUE.
        for code in [1, 11, 26, 2067] {
            assert!(!is_passing_sqlite(code), "{code}");
        }
    }
}
