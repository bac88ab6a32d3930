//! The connections to whichever database it is.

use std::path::Path;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres, Row, Transaction};

use super::sqlite::SqlitePools;
use super::{Settings, StoreError};
use crate::telemetry::database::Connections;

/// The oldest PostgreSQL we know to work.
const POSTGRES_MAJOR_MIN: i64 = 15;

/// Bounds the server itself keeps, so that a gateway that vanished in the middle of a transaction
/// does not hold its locks for long.
const POSTGRES_SESSION: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s'; \
                                SET idle_in_transaction_session_timeout = '60s'";

/// Longest a connection may take to answer the test of whether it is alive.
const POSTGRES_TEST_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) enum Pool {
    Sqlite(SqlitePools),
    Postgres(PostgresPool),
}

pub(super) struct PostgresPool {
    pool: PgPool,
    options: PgConnectOptions,
    connect_timeout: Duration,
}

impl Pool {
    pub(super) async fn open(settings: &Settings) -> Result<Pool, StoreError> {
        let scheme = settings.url.split(':').next().unwrap_or_default();
        match scheme {
            "sqlite" => Ok(Pool::Sqlite(SqlitePools::open(settings).await?)),
            "postgres" | "postgresql" => Ok(Pool::Postgres(PostgresPool::open(settings).await?)),
            _ => Err(StoreError::Internal(
                "the database URL must start with sqlite:// or postgres://".to_owned(),
            )),
        }
    }

    /// For SQLite, whether the file at the path is still the one that was opened.
    pub(super) async fn check_file(&self) -> Result<(), StoreError> {
        match self {
            Pool::Sqlite(sqlite) => sqlite.check_file().await,
            Pool::Postgres(_) => Ok(()),
        }
    }

    /// The text of a statement that can't be the same for both.
    pub(super) fn text(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self {
            Pool::Sqlite(_) => sqlite,
            Pool::Postgres(_) => postgres,
        }
    }

    /// How many connections there are. Of SQLite, readers and the writer.
    pub(super) fn connections(&self) -> Connections {
        match self {
            Pool::Sqlite(sqlite) => sqlite.connections(),
            Pool::Postgres(postgres) => connections(&postgres.pool),
        }
    }

    /// For SQLite, where the file is.
    pub(super) fn directory(&self) -> Option<&Path> {
        match self {
            Pool::Sqlite(sqlite) => sqlite.directory(),
            Pool::Postgres(_) => None,
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Pool::Sqlite(sqlite) => sqlite.close().await,
            Pool::Postgres(postgres) => postgres.pool.close().await,
        }
    }
}

pub(super) fn connections<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> Connections {
    let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
    Connections {
        active: pool.size().saturating_sub(idle),
        idle,
        max: pool.options().get_max_connections(),
    }
}

/// The pool tries until its time is over and then only says that it is. One more connection of its
/// own finds out why.
async fn unreachable(options: &PgConnectOptions) -> StoreError {
    const PATIENCE: Duration = Duration::from_secs(1);
    match tokio::time::timeout(PATIENCE, PgConnection::connect_with(options)).await {
        Ok(Err(error)) => error.into(),
        Ok(Ok(_)) | Err(_) => {
            StoreError::Unavailable("the server did not accept a connection in time".to_owned())
        }
    }
}

impl PostgresPool {
    async fn open(settings: &Settings) -> Result<PostgresPool, StoreError> {
        let mut options: PgConnectOptions =
            settings.url.parse().map_err(|error: sqlx::Error| {
                StoreError::Internal(format!("the database URL can't be read: {error}"))
            })?;
        if options.get_application_name().is_none() {
            options = options.application_name("wasm-wizard");
        }
        let opened = PgPoolOptions::new()
            .max_connections(settings.connections_max.max(1))
            .acquire_timeout(settings.acquire_timeout)
            // A connection that died while it was idle is replaced, not handed out: that is how the
            // pool survives a restart of the server. The driver's own test has no bound of time.
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(is_alive(connection)))
            // The driver tests a connection that comes back too, without a bound: a server that
            // went silent in the middle of a call would take the place in the pool with it.
            .after_release(|connection, _| Box::pin(is_alive(connection)))
            .after_connect(|connection, _| {
                Box::pin(async move {
                    sqlx::raw_sql(POSTGRES_SESSION)
                        .execute(&mut *connection)
                        .await?;
                    Ok(())
                })
            })
            .connect_with(options.clone())
            .await;
        let pool = match opened {
            Ok(pool) => pool,
            Err(sqlx::Error::PoolTimedOut) => return Err(unreachable(&options).await),
            Err(error) => return Err(error.into()),
        };
        let opened = PostgresPool {
            pool,
            options,
            connect_timeout: settings.acquire_timeout,
        };
        opened.check_version().await?;
        Ok(opened)
    }

    async fn check_version(&self) -> Result<(), StoreError> {
        let row = sqlx::query("SELECT current_setting('server_version_num')::bigint / 10000")
            .fetch_one(&self.pool)
            .await?;
        let major: i64 = row.try_get(0)?;
        if major < POSTGRES_MAJOR_MIN {
            return Err(StoreError::Internal(format!(
                "PostgreSQL {major} is too old; {POSTGRES_MAJOR_MIN} or newer is needed"
            )));
        }
        Ok(())
    }

    /// How to connect to the server.
    pub(super) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    pub(super) async fn connection(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Read committed is named, because the server's default may be another: our statements rely
    /// on seeing what was committed while they waited for a lock.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        Ok(self
            .pool
            .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED")
            .await?)
    }

    /// A connection outside the pool, without the session's time bounds: for migrations, which may
    /// take long, and whose lock ends for certain when the connection does.
    pub(super) async fn connection_of_its_own(&self) -> Result<PgConnection, StoreError> {
        let connect = async { Ok(PgConnection::connect_with(&self.options).await?) };
        super::within(self.connect_timeout, connect).await
    }
}

/// Whether a connection answers soon. An error closes it without asking it.
async fn is_alive(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(POSTGRES_TEST_TIMEOUT, connection.ping()).await {
        Ok(answered) => answered.map(|()| true),
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}

/// Runs a body that only reads, on a connection of whichever database it is. The body is compiled
/// once for each; `$conn` is a `&mut` connection; the value is a `Result<_, StoreError>`.
macro_rules! on_connection {
    ($store:expr, |$conn:ident| $body:block) => {
        $store
            .bounded(async {
                match $store.pool() {
                    $crate::store::pool::Pool::Sqlite(sqlite) => {
                        let mut connection = sqlite.reader().await?;
                        let $conn = &mut *connection;
                        $body
                    }
                    $crate::store::pool::Pool::Postgres(postgres) => {
                        let mut connection = postgres.connection().await?;
                        let $conn = &mut *connection;
                        $body
                    }
                }
            })
            .await
    };
}

/// Runs a body in a transaction that may write, as [`on_connection!`] does; commits when the body's value is
/// `Ok`, and rolls back when it is `Err` or the body leaves early.
macro_rules! in_transaction {
    ($store:expr, |$tx:ident| $body:block) => {
        $store
            .bounded(async {
                match $store.pool() {
                    $crate::store::pool::Pool::Sqlite(sqlite) => {
                        let mut transaction = sqlite.begin().await?;
                        let $tx = &mut *transaction;
                        let done: Result<_, $crate::store::StoreError> = $body;
                        let value = done?;
                        transaction.commit().await?;
                        Ok(value)
                    }
                    $crate::store::pool::Pool::Postgres(postgres) => {
                        let mut transaction = postgres.begin().await?;
                        let $tx = &mut *transaction;
                        let done: Result<_, $crate::store::StoreError> = $body;
                        let value = done?;
                        transaction.commit().await?;
                        Ok(value)
                    }
                }
            })
            .await
    };
}

pub(super) use {in_transaction, on_connection};
