//! Whether files are still those that were read, by what the file system says of them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::TlsFiles;

/// What the files were like at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamps(Vec<Option<Stamp>>);

/// Two versions of a file differ in one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Stamps {
    /// A system call for each file, on files that are read at every start: not worth a thread.
    pub fn of(files: &TlsFiles) -> Stamps {
        let pairs = files.certificates.iter();
        let paths = pairs.flat_map(|pair| [Some(&pair.cert), Some(&pair.key), pair.ocsp.as_ref()]);
        let clients = files.clients.as_ref().map(|clients| &clients.ca);
        Stamps(
            paths
                .flatten()
                .chain(clients)
                .map(|path| stamp(path))
                .collect(),
        )
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
