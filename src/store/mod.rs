//! The database: the only place that knows SQL. SQLite and PostgreSQL, one behaviour.
//!
//! A statement is written once for both (`$1` is a parameter in either); where the two differ, the
//! place says why. Times are kept to the microsecond and come back as they went in. Every call is
//! bounded in time and ends with [`StoreError::Unavailable`] when the bound passes.

pub mod audit;
pub mod changes;
mod error;
pub mod figures;
pub mod import;
pub mod keys;
mod migrate;
pub mod modules;
mod pool;
mod roles;
pub mod rotations;
mod settings;
mod sqlite;
pub mod tokens;
pub mod usage;
pub mod users;
mod values;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool::{Pool, on_connection};

use crate::telemetry::database::{CallResult, Connections};
use crate::telemetry::metrics::metrics;

pub use error::StoreError;
pub use migrate::Migrated;
pub use roles::GrantError;
pub use settings::Settings;
pub use sqlite::missing_file;

/// Longest a [`Store::ping`] takes.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest one call takes once it has a connection: the largest blob over a slow link, or a write
/// behind a long queue of locks.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for connections that are still in use at [`Store::close`].
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Who makes changes through it.
    actor: Arc<audit::Actor>,
}

struct Inner {
    pool: Pool,
    call_timeout: Duration,
}

impl Store {
    /// Opens the pool. SQLite: makes the file and its directory (0600 and 0700) when missing.
    ///
    /// # Errors
    /// Unavailable when the database can't be reached now, Internal when the settings or the
    /// database are not such as we can work with (a URL we can't read, a file that is no
    /// database, a PostgreSQL older than 15). No text holds the password of the URL.
    pub async fn connect(settings: &Settings) -> Result<Store, StoreError> {
        let pool = Pool::open(settings)
            .await
            .map_err(|error| settings.hide_password(error))?;
        let call_timeout = settings.acquire_timeout.saturating_add(CALL_TIMEOUT);
        Ok(Store {
            inner: Arc::new(Inner { pool, call_timeout }),
            actor: Arc::default(),
        })
    }

    /// Whether the database answers within a second: a real table is read over a connection of the
    /// pool. For SQLite also whether the file at the path is still the one that was opened, because
    /// an open file that was moved or deleted goes on working for us and for nobody else.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let probe = async {
            self.pool().check_file().await?;
            on_connection!(self, |conn| {
                sqlx::query("SELECT id FROM users LIMIT 1")
                    .fetch_optional(&mut *conn)
                    .await?;
                Ok(())
            })
        };
        within(PING_TIMEOUT, probe).await
    }

    /// Closes all connections, after the calls that are running (for at most five seconds). SQLite
    /// folds its write-ahead log into the file. Later calls are Unavailable.
    pub async fn close(&self) {
        // When the wait ends early, the connections end with the process; nothing is lost, since
        // what was acknowledged is on disk already.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.pool().close()).await;
    }

    /// How many connections there are now.
    pub fn connections(&self) -> Connections {
        self.pool().connections()
    }

    /// The directory of the file that holds everything, where the database is one.
    pub fn directory(&self) -> Option<&Path> {
        self.pool().directory()
    }

    fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    /// Bounds a call in time.
    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let result = within(self.inner.call_timeout, call).await;
        let called = match &result {
            Ok(_) => CallResult::Ok,
            Err(error) => error.call_result(),
        };
        metrics().database.called(called, began.elapsed());
        result
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unavailable(format!(
            "no answer within {limit:?}"
        ))),
    }
}
