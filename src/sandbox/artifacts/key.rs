//! The key under which artifacts are authenticated: one for each installation, made at first use.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{create_once, random};

const KEY_BYTES: usize = 32;
const NAME: &str = "key";

/// Whoever has it can make the gateway run machine code of theirs, if they can write to the folder.
#[derive(Clone, PartialEq, Eq)]
pub struct ArtifactKey(Vec<u8>);

impl ArtifactKey {
    /// A key from the configuration, of whatever length.
    pub fn new(secret: &str) -> ArtifactKey {
        ArtifactKey(secret.as_bytes().to_vec())
    }

    pub(super) fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ArtifactKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArtifactKey(hidden)")
    }
}

/// The folder's own key. One that others could have read or written is replaced, and with it all that
/// was written under it is void.
pub(super) fn read_or_create(folder: &Path) -> io::Result<ArtifactKey> {
    let path = folder.join(NAME);
    if let Some(key) = read(&path)? {
        return Ok(key);
    }
    create_once(&path, &random::<KEY_BYTES>()?)?;
    // Another gateway may have been faster: its key is the one then.
    read(&path)?.ok_or_else(|| io::Error::other("the key's file can't be kept private"))
}

/// The key, or none if there is none that is ours alone; a file that is not is removed.
fn read(path: &Path) -> io::Result<Option<ArtifactKey>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A symbolic link (open(2), `O_NOFOLLOW`).
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return discard(path, "is a link").map(|()| None);
        }
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return discard(path, "is not this user's").map(|()| None);
    }
    if metadata.mode() & 0o077 != 0 {
        return discard(path, "can be read or written by others").map(|()| None);
    }
    let mut bytes = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() != KEY_BYTES {
        return discard(path, "has not the length of a key").map(|()| None);
    }
    Ok(Some(ArtifactKey(bytes)))
}

fn discard(path: &Path, why: &str) -> io::Result<()> {
    tracing::warn!(
        file = %path.display(),
        why,
        "the key of the compiled modules on disk is replaced; they are compiled again"
    );
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
