//! The schema's versions: `migrations/{sqlite,postgres}/` are part of the program.

use std::time::Duration;

use sqlx::migrate::{Migrate, Migrator};
use sqlx::{Connection, Executor};

use super::pool::{Pool, on_connection};
use super::{Store, StoreError, error, within};

/// Longest a migration takes, the wait for another program's included.
pub(super) const MIGRATE_TIMEOUT: Duration = Duration::from_secs(600);

/// What `migrate` did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Versions applied now, oldest first.
    pub applied: Vec<i64>,
    /// The newest version of the schema.
    pub version: i64,
}

/// Where to bring the schema.
#[derive(Clone, Copy)]
enum Direction {
    Newest,
    /// Undo what is newer than this version.
    DownTo(i64),
}

impl Store {
    /// Brings the schema to the newest version. Programs that migrate at the same time do it one
    /// after the other. A schema newer than this program is left as it is: a release must work
    /// with the schema of the next one, so that a deployment can be rolled back.
    ///
    /// # Errors
    /// Internal when an applied migration is not the one this program holds, or when one fails; it
    /// is then rolled back whole.
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        self.move_schema(Direction::Newest).await
    }

    /// Undoes the migrations newer than `version`, newest first; 0 undoes all. **Deletes the data**
    /// in the tables they made. `applied` of the result is empty.
    pub async fn migrate_down(&self, version: i64) -> Result<Migrated, StoreError> {
        self.move_schema(Direction::DownTo(version)).await
    }

    /// Versions that `migrate` would apply, oldest first. Changes nothing.
    pub async fn pending(&self) -> Result<Vec<i64>, StoreError> {
        let migrator = self.migrator();
        let table = self.pool().text(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'",
            "SELECT 1 WHERE to_regclass('_sqlx_migrations') IS NOT NULL",
        );
        let applied = on_connection!(self, |conn| {
            if conn.fetch_optional(table).await?.is_none() {
                Ok(Vec::new())
            } else {
                applied(&migrator, &mut *conn).await
            }
        })?;
        Ok(versions(&migrator)
            .filter(|version| !applied.contains(version))
            .collect())
    }

    async fn move_schema(&self, direction: Direction) -> Result<Migrated, StoreError> {
        let migrator = self.migrator();
        let work = async {
            match self.pool() {
                Pool::Sqlite(sqlite) => {
                    let mut connection = sqlite.connection_of_its_own().await?;
                    // The driver takes no lock on SQLite; a transaction around all migrations is
                    // one, and each migration's own becomes a savepoint in it.
                    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
                    let migrated = run(&migrator, &mut *transaction, direction).await?;
                    transaction.commit().await?;
                    connection.close().await?;
                    Ok(migrated)
                }
                Pool::Postgres(postgres) => {
                    let mut connection = postgres.connection_of_its_own().await?;
                    // An advisory lock, held until the connection closes, in failure as well.
                    connection.lock().await?;
                    let migrated = run(&migrator, &mut connection, direction).await?;
                    connection.close().await?;
                    Ok(migrated)
                }
            }
        };
        within(MIGRATE_TIMEOUT, work).await
    }

    fn migrator(&self) -> Migrator {
        let mut migrator = match self.pool() {
            Pool::Sqlite(_) => sqlx::migrate!("./migrations/sqlite"),
            Pool::Postgres(_) => sqlx::migrate!("./migrations/postgres"),
        };
        // Unknown versions are judged by `applied` below; newer ones are fine.
        migrator.set_ignore_missing(true);
        migrator
    }
}

async fn run<C: Migrate>(
    migrator: &Migrator,
    connection: &mut C,
    direction: Direction,
) -> Result<Migrated, StoreError> {
    connection
        .ensure_migrations_table(&migrator.table_name)
        .await?;
    let before = applied(migrator, connection).await?;
    match direction {
        Direction::Newest => migrator.run_direct(None, connection, false).await?,
        Direction::DownTo(version) => revert(migrator, connection, version).await?,
    }
    let after = applied(migrator, connection).await?;
    Ok(Migrated {
        version: after.iter().copied().max().unwrap_or(0),
        applied: after
            .into_iter()
            .filter(|version| !before.contains(version))
            .collect(),
    })
}

async fn revert<C: Migrate>(
    migrator: &Migrator,
    connection: &mut C,
    version: i64,
) -> Result<(), StoreError> {
    let applied = applied(migrator, connection).await?;
    let newest_known = versions(migrator).max().unwrap_or(0);
    if applied.iter().any(|&version| version > newest_known) {
        return Err(StoreError::Internal(
            "the schema is newer than this program, which can't undo what it doesn't know"
                .to_owned(),
        ));
    }
    let down = migrator
        .iter()
        .rev()
        .filter(|migration| migration.migration_type.is_down_migration());
    for migration in down.filter(|down| down.version > version && applied.contains(&down.version)) {
        connection.revert(&migrator.table_name, migration).await?;
    }
    Ok(())
}

/// The versions this program holds, oldest first.
fn versions(migrator: &Migrator) -> impl Iterator<Item = i64> {
    let up = migrator
        .iter()
        .filter(|migration| migration.migration_type.is_up_migration());
    up.map(|migration| migration.version)
}

/// The versions that are applied, oldest first, each checked to be the one this program holds.
async fn applied<C: Migrate>(
    migrator: &Migrator,
    connection: &mut C,
) -> Result<Vec<i64>, StoreError> {
    let newest_known = versions(migrator).max().unwrap_or(0);
    let rows = connection
        .list_applied_migrations(&migrator.table_name)
        .await?;
    for row in &rows {
        let known = migrator.iter().find(|migration| {
            migration.version == row.version && migration.migration_type.is_up_migration()
        });
        match known {
            Some(known) if known.checksum != row.checksum => {
                return Err(error::edited(row.version));
            }
            None if row.version < newest_known => {
                return Err(StoreError::Internal(format!(
                    "the database has migration {}, which this program does not know though it \
                     knows newer ones; is it the database of another program?",
                    row.version
                )));
            }
            Some(_) | None => {}
        }
    }
    Ok(rows.into_iter().map(|row| row.version).collect())
}
