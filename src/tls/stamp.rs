//! Whether files are still those that were read, by what the file system says of them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the files were like at some time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamps(Vec<Option<Stamp>>);

/// Two versions of a file differ in one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Stamps {
    /// A system call for each file, on files that are read at every start: not worth a thread.
    pub fn of<'p>(paths: impl Iterator<Item = &'p Path>) -> Stamps {
        Stamps(paths.map(stamp).collect())
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
        changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
    })
}
