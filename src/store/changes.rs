//! Word of changes that this program or another one made, for those who remember what they read.
//!
//! PostgreSQL sends notifications, over a connection of their own. SQLite keeps the last changes in a
//! table, which is looked at a few times a second when the file was written to.

use std::time::Duration;

use sqlx::SqliteConnection;
use sqlx::postgres::{PgListener, PgPoolOptions};
use uuid::Uuid;

use super::pool::Pool;
use super::{Store, StoreError, within};

/// The channel of PostgreSQL's notifications.
const CHANNEL: &str = "wasmwiz_changes";

/// How often SQLite's file is looked at. Whatever was stopped must be stopped everywhere within a second.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A silent connection is asked this often whether it is still there.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Longest wait for an answer or a connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Pauses between tries to connect: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// More rows than SQLite's table keeps.
const ROWS_MAX: i64 = 2_000;

/// What was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    User(Uuid),
    Key(Uuid),
    Module(Uuid),
    /// Nobody knows: some changes may have been missed.
    Everything,
}

/// Follows the changes of a database.
pub struct Changes {
    store: Store,
    source: Option<Source>,
    /// Told but not yet asked for, the next one last.
    queue: Vec<Changed>,
    retry_after: Duration,
}

enum Source {
    Sqlite {
        connection: SqliteConnection,
        /// What the file's version was when its table was last looked at.
        version: i64,
        /// The newest change that was told.
        number: i64,
    },
    Postgres(Box<PgListener>),
}

impl Store {
    /// Follows the changes from here on.
    pub fn changes(&self) -> Changes {
        Changes {
            store: self.clone(),
            source: None,
            queue: Vec::new(),
            retry_after: RETRY_FIRST,
        }
    }
}

impl Changes {
    /// Waits for the next change. The first one, and the one after each break of the connection, is
    /// [`Changed::Everything`].
    pub async fn next(&mut self) -> Changed {
        loop {
            if let Some(changed) = self.queue.pop() {
                return changed;
            }
            let Some(source) = &mut self.source else {
                self.connect().await;
                continue;
            };
            match source.wait().await {
                Ok(mut changes) => {
                    changes.reverse();
                    self.queue = changes;
                }
                Err(error) => {
                    tracing::debug!(%error, "changes in the database can't be followed");
                    self.source = None;
                }
            }
        }
    }

    /// The same from the start, so that the next change is [`Changed::Everything`].
    #[must_use]
    pub fn again(self) -> Changes {
        Changes {
            retry_after: (self.retry_after * 2).min(RETRY_MAX),
            ..self.store.changes()
        }
    }

    async fn connect(&mut self) {
        match within(ANSWER_TIMEOUT, Source::open(self.store.pool())).await {
            Ok(source) => {
                self.source = Some(source);
                self.retry_after = RETRY_FIRST;
                self.queue = vec![Changed::Everything];
            }
            Err(error) => {
                if self.retry_after == RETRY_FIRST {
                    tracing::warn!(%error, "changes in the database can't be followed now");
                }
                tokio::time::sleep(self.retry_after).await;
                self.retry_after = (self.retry_after * 2).min(RETRY_MAX);
            }
        }
    }
}

impl Source {
    async fn open(pool: &Pool) -> Result<Source, StoreError> {
        match pool {
            Pool::Sqlite(sqlite) => {
                let mut connection = sqlite.connection_of_its_own().await?;
                let version = version(&mut connection).await?;
                let number = sqlx::query_scalar("SELECT COALESCE(MAX(number), 0) FROM changes")
                    .fetch_one(&mut connection)
                    .await?;
                Ok(Source::Sqlite {
                    connection,
                    version,
                    number,
                })
            }
            Pool::Postgres(postgres) => {
                // A pool of one, which is never handed back: the gateway's own may be as small.
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .max_lifetime(None)
                    .idle_timeout(None)
                    .acquire_timeout(ANSWER_TIMEOUT)
                    .connect_with(postgres.options())
                    .await?;
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.listen(CHANNEL).await?;
                Ok(Source::Postgres(Box::new(listener)))
            }
        }
    }

    /// Waits for changes, oldest first. An error when the connection is gone.
    async fn wait(&mut self) -> Result<Vec<Changed>, StoreError> {
        match self {
            Source::Sqlite {
                connection,
                version: seen,
                number,
            } => loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let now = within(ANSWER_TIMEOUT, version(connection)).await?;
                if now == *seen {
                    continue;
                }
                let changes = within(ANSWER_TIMEOUT, since(connection, number)).await?;
                *seen = now;
                if !changes.is_empty() {
                    return Ok(changes);
                }
            },
            Source::Postgres(listener) => loop {
                match tokio::time::timeout(SILENCE_MAX, listener.try_recv()).await {
                    Ok(Ok(Some(notification))) => return Ok(vec![told(notification.payload())]),
                    Ok(Ok(None)) => return Err(StoreError::Unavailable("connection lost".into())),
                    Ok(Err(error)) => return Err(error.into()),
                    Err(_) => {
                        let ask = sqlx::query("SELECT 1").execute(&mut **listener);
                        within(ANSWER_TIMEOUT, async { Ok(ask.await?) }).await?;
                    }
                }
            },
        }
    }
}

/// Changes whenever another connection has written to the file.
async fn version(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("PRAGMA data_version")
        .fetch_one(connection)
        .await?)
}

/// The changes after this number, which is moved on.
async fn since(
    connection: &mut SqliteConnection,
    number: &mut i64,
) -> Result<Vec<Changed>, StoreError> {
    let rows: Vec<(i64, String, Uuid)> = sqlx::query_as(
        "SELECT number, kind, id FROM changes WHERE number > $1 ORDER BY number LIMIT $2",
    )
    .bind(*number)
    .bind(ROWS_MAX)
    .fetch_all(&mut *connection)
    .await?;
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Ok(Vec::new());
    };
    let missed = first.0 != *number + 1;
    *number = last.0;
    if missed {
        return Ok(vec![Changed::Everything]);
    }
    Ok(rows
        .into_iter()
        .map(|(_, kind, id)| of(&kind, Some(id)))
        .collect())
}

/// The change in a notification: `key 0198f3c9-…`.
fn told(payload: &str) -> Changed {
    let (kind, id) = payload.split_once(' ').unwrap_or((payload, ""));
    of(kind, Uuid::try_parse(id).ok())
}

/// What can't be read, perhaps because a newer program wrote it, may be anything.
fn of(kind: &str, id: Option<Uuid>) -> Changed {
    match (kind, id) {
        ("user", Some(id)) => Changed::User(id),
        ("key", Some(id)) => Changed::Key(id),
        ("module", Some(id)) => Changed::Module(id),
        _ => Changed::Everything,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_notification_says() {
        let id = Uuid::from_u128(7);
        assert_eq!(told(&format!("key {id}")), Changed::Key(id));
        assert_eq!(told(&format!("user {id}")), Changed::User(id));
        assert_eq!(told(&format!("module {id}")), Changed::Module(id));
        for other in ["", "key", "key x", "planet 7", &format!("planet {id}")] {
            assert_eq!(told(other), Changed::Everything, "{other}");
        }
    }
}
