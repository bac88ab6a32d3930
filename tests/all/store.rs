//! The database: one contract, held against SQLite and PostgreSQL alike.

mod accounts;
mod audit;
mod failures;
mod migrations;
mod modules;
mod tls;
mod tokens;
mod usage;

use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, Utc};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;
use wasm_wizard::auth::Role;
use wasm_wizard::sandbox::ModuleHash;
use wasm_wizard::store::modules::{Module, NewModule};
use wasm_wizard::store::users::User;
use wasm_wizard::store::{Settings, Store, StoreError};

use crate::support::postgres;

/// Runs each async fn of the contract, which takes a [`Database`], once per database.
macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::store::Database::sqlite()).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::store::Database::postgres().await).await;
            })+
        }
    };
}
use contract;

/// A new, empty database of either kind.
struct Database {
    url: String,
    _directory: Option<TempDir>,
}

impl Database {
    fn sqlite() -> Database {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/data/wizard.db", directory.path().display());
        Database {
            url,
            _directory: Some(directory),
        }
    }

    async fn postgres() -> Database {
        Database {
            url: postgres::database().await,
            _directory: None,
        }
    }

    fn settings(&self) -> Settings {
        let acquire_timeout = Duration::from_secs(30);
        Settings {
            url: self.url.clone(),
            connections_max: 8,
            acquire_timeout,
        }
    }

    /// Another program on this database.
    async fn connect(&self) -> Store {
        Store::connect(&self.settings()).await.unwrap()
    }

    async fn migrated(&self) -> Store {
        let store = self.connect().await;
        store.migrate().await.unwrap();
        store
    }

    fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite")
    }

    /// Runs a statement behind the store's back.
    async fn sql(&self, statement: &str) {
        self.try_sql(statement).await.unwrap();
    }

    /// Runs a statement that the database may refuse, which then says why.
    async fn try_sql(&self, statement: &str) -> Result<(), String> {
        let statement = AssertSqlSafe(statement.to_owned());
        let done = if self.is_sqlite() {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            let done = sqlx::raw_sql(statement).execute(&mut connection).await;
            done.map(|_| ())
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            let done = sqlx::raw_sql(statement).execute(&mut connection).await;
            done.map(|_| ())
        };
        done.map_err(|error| error.to_string())
    }

    /// The single value of a query that counts.
    async fn count(&self, query: &str) -> i64 {
        let query = AssertSqlSafe(query.to_owned());
        if self.is_sqlite() {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            sqlx::query_scalar(query)
                .fetch_one(&mut connection)
                .await
                .unwrap()
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            sqlx::query_scalar(query)
                .fetch_one(&mut connection)
                .await
                .unwrap()
        }
    }
}

/// Now, as precisely as the database keeps it.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

async fn user(store: &Store) -> User {
    let email = format!("{}@example.org", Uuid::now_v7());
    store.user_create(&email, Role::User).await.unwrap()
}

fn new_module<'a>(owner_id: Uuid, name: &'a str, byte: u8, wasm: &'a [u8]) -> NewModule<'a> {
    NewModule {
        owner_id,
        name,
        description: "",
        hash: ModuleHash([byte; 32]),
        wasm,
        is_public: false,
    }
}

async fn module(store: &Store, owner_id: Uuid, name: &str, byte: u8) -> Module {
    store
        .module_create(new_module(owner_id, name, byte, &[byte; 100]))
        .await
        .unwrap()
}

/// Polls until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + crate::support::PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_unavailable<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unavailable(_)))
}
