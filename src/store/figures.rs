//! How much there is of everything: for operators.

use super::pool::on_connection;
use super::values::Stamp;
use super::{Store, StoreError};

/// Counts over the whole database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Users that are not disabled, by role. A role that nobody has is not there.
    pub users: Vec<(String, u64)>,
    /// Keys that are neither revoked nor expired, by tier. A tier without any is not there.
    pub keys: Vec<(String, u64)>,
    /// Versions of modules.
    pub modules: u64,
    /// Bytes of all contents, each once.
    pub module_bytes: u64,
}

impl Store {
    /// Counts, which reads whole tables (not the modules' contents): for once in a while.
    pub async fn figures(&self) -> Result<Figures, StoreError> {
        on_connection!(self, |conn| {
            let users: Vec<(String, i64)> = sqlx::query_as(
                "SELECT role, COUNT(*) FROM users WHERE disabled_at IS NULL GROUP BY role",
            )
            .fetch_all(&mut *conn)
            .await?;
            let keys: Vec<(String, i64)> = sqlx::query_as(
                "SELECT tier, COUNT(*) FROM api_keys WHERE revoked_at IS NULL \
                 AND (expires_at IS NULL OR expires_at > $1) GROUP BY tier",
            )
            .bind(Stamp::now())
            .fetch_all(&mut *conn)
            .await?;
            let modules: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM modules")
                .fetch_one(&mut *conn)
                .await?;
            let module_bytes: i64 = sqlx::query_scalar(
                "SELECT CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) FROM module_blobs",
            )
            .fetch_one(&mut *conn)
            .await?;
            Ok(Figures {
                users: users
                    .into_iter()
                    .map(|(r, n)| (r, n.unsigned_abs()))
                    .collect(),
                keys: keys
                    .into_iter()
                    .map(|(t, n)| (t, n.unsigned_abs()))
                    .collect(),
                modules: modules.unsigned_abs(),
                module_bytes: module_bytes.unsigned_abs(),
            })
        })
    }
}
