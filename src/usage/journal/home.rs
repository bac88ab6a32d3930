//! The folder of one process's journal, inside that which gateways share.
//!
//! Its owner holds a lock on it as long as it lives. The kernel releases the lock when the process ends, however
//! it does; whoever takes it then owns the folder and what is left in it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

/// Names of folders are this and an id.
const PREFIX: &str = "journal-";
/// A folder whose owner does not hold its lock yet.
const NEW_PREFIX: &str = ".new-";
/// One that is this old was given up.
const NEW_KEPT: Duration = Duration::from_secs(3600);
const LOCK: &str = "lock";
const SUFFIX: &str = ".segment";

/// A folder whose lock this process holds.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    _lock: File,
}

/// A file of records in somebody's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub path: PathBuf,
    pub bytes: u64,
}

impl Home {
    /// Makes a folder of this process in `directory`, which is made too where it is missing, for its owner
    /// alone.
    pub(super) fn create(directory: &Path) -> io::Result<Home> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let metadata = fs::metadata(directory)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it belongs to another user"));
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
        let id = Uuid::now_v7().simple();
        let new = directory.join(format!("{NEW_PREFIX}{id}"));
        let path = directory.join(format!("{PREFIX}{id}"));
        DirBuilder::new().mode(0o700).create(&new)?;
        // Nobody else takes it before it has its name, and by then it is locked.
        let lock = open_lock(&new)?;
        lock.try_lock()?;
        fs::rename(&new, &path)?;
        Ok(Home { path, _lock: lock })
    }

    /// The folders in `directory` whose owners are gone, taken over. One that can't be looked into is passed
    /// over, with a word about it.
    pub(super) fn adopt_all(directory: &Path, besides: &[PathBuf]) -> io::Result<Vec<Home>> {
        let mut homes = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str() else { continue };
            let is_ours = name
                .strip_prefix(PREFIX)
                .is_some_and(|id| Uuid::try_parse(id).is_ok());
            if !is_ours {
                forget_new(&path, name);
                continue;
            }
            if besides.contains(&path) || !entry.file_type()?.is_dir() {
                continue;
            }
            match adopt(&path) {
                Ok(home) => homes.extend(home),
                Err(error) => tracing::warn!(
                    folder = %path.display(), %error,
                    "a usage journal that was left behind can't be taken over"
                ),
            }
        }
        // Older ones first: their names sort by time.
        homes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(homes)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file with this number is.
    pub(super) fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:012}{SUFFIX}"))
    }

    /// The files in the folder, oldest first.
    pub(super) fn segments(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_segment = name.to_str().is_some_and(|name| name.ends_with(SUFFIX));
            // Anything else than a file (a pipe, a link) is not ours, and to open it might not even end.
            let metadata = entry.metadata()?;
            if is_segment && metadata.file_type().is_file() {
                let bytes = metadata.len();
                found.push(Found {
                    path: entry.path(),
                    bytes,
                });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Removes the folder, which holds nothing any more; what is not ours in it keeps it there.
    pub(super) fn remove(&self) {
        // The lock's file goes first: one who opened it meanwhile finds a folder without segments.
        let removed =
            fs::remove_file(self.path.join(LOCK)).and_then(|()| fs::remove_dir(&self.path));
        if let Err(error) = removed {
            tracing::debug!(folder = %self.path.display(), %error, "an empty usage journal stays");
        }
    }

    /// Makes the names of new files durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Takes the folder, unless its owner is alive.
fn adopt(path: &Path) -> io::Result<Option<Home>> {
    let lock = open_lock(path)?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(Home {
            path: path.to_owned(),
            _lock: lock,
        })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open_lock(folder: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // Not through a link, and without waiting for whatever a pipe's other end does.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(folder.join(LOCK))
}

/// Removes the folder of a process that ended before it had locked it.
fn forget_new(path: &Path, name: &str) {
    let is_old = || {
        let age =
            SystemTime::now().duration_since(fs::symlink_metadata(path).ok()?.modified().ok()?);
        Some(age.ok()? > NEW_KEPT)
    };
    if name.starts_with(NEW_PREFIX) && is_old().unwrap_or(false) {
        // What can't be removed does no harm.
        let _ = fs::remove_file(path.join(LOCK));
        let _ = fs::remove_dir(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_over_once_its_owner_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("a/usage");
        let first = Home::create(&directory).unwrap();
        let second = Home::create(&directory).unwrap();
        let mode = fs::metadata(&directory).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(Home::adopt_all(&directory, &[]).unwrap().is_empty());
        let path = first.path().to_owned();
        fs::write(first.segment(3), "x").unwrap();
        drop(first);
        let adopted = Home::adopt_all(&directory, &[second.path().to_owned()]).unwrap();
        assert_eq!(adopted.len(), 1);
        assert_eq!(adopted[0].path(), path);
        // Nobody takes it a second time.
        assert!(Home::adopt_all(&directory, &[]).unwrap().is_empty());
        let segments = adopted[0].segments().unwrap();
        assert_eq!(segments.len(), 1);
        assert_eq!(
            (segments[0].bytes, &segments[0].path),
            (1, &adopted[0].segment(3))
        );
        fs::remove_file(&segments[0].path).unwrap();
        for home in adopted {
            home.remove();
        }
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path();
        let home = Home::create(directory).unwrap();
        for name in ["journal-", "journal-x", "notes", ".new-1"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        fs::write(
            directory.join(format!("{PREFIX}{}", Uuid::now_v7().simple())),
            "a file",
        )
        .unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let link = directory.join(format!("{PREFIX}{}", Uuid::now_v7().simple()));
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        assert!(Home::adopt_all(directory, &[]).unwrap().is_empty());
        // In a folder of ours, a pipe would be waited for, and a link leads elsewhere.
        let path = home.path().to_owned();
        let fifo = path.join("1.segment");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        std::os::unix::fs::symlink("/dev/zero", path.join("2.segment")).unwrap();
        fs::create_dir(path.join("3.segment")).unwrap();
        fs::write(path.join("readme"), "x").unwrap();
        assert_eq!(home.segments().unwrap(), []);
        home.remove();
        assert!(path.exists(), "what is not ours is not deleted");
    }

    #[test]
    fn a_link_in_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::create(dir.path()).unwrap();
        let path = home.path().to_owned();
        drop(home);
        fs::remove_file(path.join(LOCK)).unwrap();
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, path.join(LOCK)).unwrap();
        assert!(Home::adopt_all(dir.path(), &[]).unwrap().is_empty());
        assert!(!target.exists());
    }
}
