//! The SQLite file: how it is made, opened and watched.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, SqliteConnection, SqlitePool, Transaction};

use super::{Settings, StoreError, pool as pools};
use crate::telemetry::database::Connections;

/// The write-ahead log is cut back to this after it grew, so that one burst of uploads does not
/// hold the disk for ever.
const WAL_BYTES_KEPT: &str = "67108864";

/// Longest wait of a migration for another program's migration.
const MIGRATION_BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// One connection writes and several read. SQLite lets only one write at a time: writers that wait
/// for our one connection wait in a fair queue, instead of polling for the lock of the file.
pub(super) struct SqlitePools {
    writer: SqlitePool,
    readers: SqlitePool,
    options: SqliteConnectOptions,
    file: Arc<File>,
}

/// The file that was opened.
struct File {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SqlitePools {
    pub(super) async fn open(settings: &Settings) -> Result<SqlitePools, StoreError> {
        let path = path_of(&settings.url)?;
        make(&path).map_err(|error| cant_open(&path, &error))?;
        let options = options(&path, settings.acquire_timeout);
        enter_wal(&options, &path, settings.acquire_timeout).await?;
        let file = Arc::new(File::identify(&path).map_err(|error| cant_open(&path, &error))?);
        let writer = pool(&file, settings, 1)
            .connect_with(options.clone())
            .await?;
        let readers = pool(&file, settings, settings.connections_max.max(1))
            .connect_with(options.clone().pragma("query_only", "ON"))
            .await?;
        Ok(SqlitePools {
            writer,
            readers,
            options,
            file,
        })
    }

    pub(super) async fn reader(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        Ok(self.readers.acquire().await?)
    }

    /// A transaction that holds the write lock from its start, so that what it reads can't change
    /// before it writes. Refused when the file is gone: what is written to a deleted file is lost.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        let transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        self.check_file().await?;
        Ok(transaction)
    }

    /// A connection outside the pools, for migrations: it waits longer for other programs.
    pub(super) async fn connection_of_its_own(&self) -> Result<SqliteConnection, StoreError> {
        self.check_file().await?;
        let options = self.options.clone().busy_timeout(MIGRATION_BUSY_TIMEOUT);
        Ok(SqliteConnection::connect_with(&options).await?)
    }

    /// Whether the file at the path is still the one that was opened.
    pub(super) async fn check_file(&self) -> Result<(), StoreError> {
        let file = Arc::clone(&self.file);
        // The disk may hang (a network mount): not on a thread that others wait for.
        let checked = tokio::task::spawn_blocking(move || file.check()).await;
        match checked {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(StoreError::Unavailable(error.to_string())),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        }
    }

    pub(super) fn connections(&self) -> Connections {
        let [readers, writer] = [&self.readers, &self.writer].map(pools::connections);
        Connections {
            active: readers.active + writer.active,
            idle: readers.idle + writer.idle,
            max: readers.max + writer.max,
        }
    }

    pub(super) fn directory(&self) -> Option<&Path> {
        self.file.path.parent()
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        // Last, because the last connection folds the log into the file, which a reader may not.
        self.writer.close().await;
    }
}

impl File {
    fn identify(path: &Path) -> io::Result<File> {
        let metadata = fs::metadata(path)?;
        Ok(File {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    fn check(&self) -> io::Result<()> {
        let told = |what: &str| io::Error::other(format!("{}: {what}", self.path.display()));
        let metadata = fs::metadata(&self.path).map_err(|error| told(&error.to_string()))?;
        if (metadata.dev(), metadata.ino()) != (self.device, self.inode) {
            return Err(told(
                "another file is in its place; restart the gateway to use it",
            ));
        }
        if metadata.len() == 0 {
            return Err(told("the file was emptied"));
        }
        Ok(())
    }
}

/// The path in `sqlite://PATH` or `sqlite:PATH`, made absolute.
fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    let refuse = |why: &str| StoreError::Internal(format!("the database URL {why}"));
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    // `mode` is what other programs need to be told to make the file; the rest would change what
    // we promise (a shared cache, an immutable file, another file system layer).
    if query
        .split('&')
        .any(|pair| !matches!(pair, "" | "mode=rwc" | "mode=rw"))
    {
        return Err(refuse("of SQLite takes no parameters"));
    }
    let path = base.strip_prefix("sqlite:").unwrap_or_default();
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() {
        return Err(refuse("of SQLite names no file; write sqlite://PATH"));
    }
    if path == ":memory:" {
        return Err(refuse(
            "names a database in memory, which would lose what it acknowledged",
        ));
    }
    // The driver decodes percent signs.
    let options =
        SqliteConnectOptions::from_str(base).map_err(|error| refuse(&error.to_string()))?;
    let path =
        std::path::absolute(options.get_filename()).map_err(|error| refuse(&error.to_string()))?;
    if path.file_name().is_none() {
        return Err(refuse("of SQLite names a directory"));
    }
    Ok(path)
}

/// The database's file, where it would be made now: for who looks from the wrong directory.
pub fn missing_file(settings: &Settings) -> Option<PathBuf> {
    let path = path_of(&settings.url).ok()?;
    (!path.exists()).then_some(path)
}

/// Makes the file, readable by its owner alone, and its directory. What is there stays as it is.
/// SQLite gives the files beside it (`-wal`, `-shm`) the same permissions.
fn make(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn options(path: &Path, busy_timeout: Duration) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        // The file is there already. Were it deleted later, a new connection of the pool must fail
        // and not start an empty database beside the open ones.
        .create_if_missing(false)
        .foreign_keys(true)
        .busy_timeout(busy_timeout)
        .journal_mode(SqliteJournalMode::Wal)
        // In WAL mode NORMAL may lose the last commits at a power cut; what we acknowledged must
        // not be lost.
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", WAL_BYTES_KEPT)
        // A file that someone tampered with can't run functions through its schema.
        .pragma("trusted_schema", "OFF")
}

/// Switches the file to a write-ahead log. The switch does not wait for a lock another program
/// holds (two gateways at their first start), so it is tried again until the time is over.
async fn enter_wal(
    options: &SqliteConnectOptions,
    path: &Path,
    timeout: Duration,
) -> Result<(), StoreError> {
    const PAUSE: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + timeout;
    loop {
        let opened = match SqliteConnection::connect_with(options).await {
            Ok(connection) => connection.close().await,
            Err(error) => Err(error),
        };
        match opened.map_err(StoreError::from) {
            Ok(()) => return Ok(()),
            Err(StoreError::Unavailable(_)) if Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(StoreError::Unavailable(text)) => {
                return Err(StoreError::Unavailable(format!(
                    "{}: {text}",
                    path.display()
                )));
            }
            Err(other) => return Err(StoreError::Internal(format!("{}: {other}", path.display()))),
        }
    }
}

fn pool(file: &Arc<File>, settings: &Settings, connections_max: u32) -> SqlitePoolOptions {
    let file = Arc::clone(file);
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(settings.acquire_timeout)
        // A connection to a local file does not go stale.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        // All connections must be to one file, also when another was put in its place meanwhile.
        .after_connect(move |_, _| {
            let checked = file.check().map_err(sqlx::Error::Io);
            Box::pin(async move { checked })
        })
}

fn cant_open(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_urls() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            path_of("sqlite://data/x.db").unwrap(),
            here.join("data/x.db")
        );
        assert_eq!(path_of("sqlite:data/x.db").unwrap(), here.join("data/x.db"));
        assert_eq!(
            path_of("sqlite:///a/b.db?mode=rwc").unwrap(),
            Path::new("/a/b.db")
        );
        assert_eq!(
            path_of("sqlite:///a%20b/ü.db").unwrap(),
            Path::new("/a b/ü.db")
        );
    }

    #[test]
    fn urls_that_would_break_a_promise_are_refused() {
        for url in [
            "sqlite:",
            "sqlite://",
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite://x.db?mode=memory",
            "sqlite://x.db?mode=ro",
            "sqlite://x.db?cache=shared",
            "sqlite://x.db?immutable=true",
            "sqlite:///",
            "sqlite:////..",
        ] {
            assert!(
                matches!(path_of(url), Err(StoreError::Internal(_))),
                "{url}"
            );
        }
    }
}
