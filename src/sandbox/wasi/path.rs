//! From a guest's path to a file or directory of its tree.

#[cfg(test)]
mod tests;

use super::errno::Errno;
use crate::sandbox::files::{Content, FILE_NAME_BYTES_MAX, Files, NodeId};

/// Longest path, in bytes; the value of `PATH_MAX` on Linux.
pub(super) const PATH_BYTES_MAX: usize = 4096;

/// A path as far as it can be judged without a tree: relative, and text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RelativePath<'a>(&'a str);

impl<'a> RelativePath<'a> {
    /// `ENOENT` for an empty path, `ENAMETOOLONG`, `EINVAL` for a NUL byte, `EILSEQ` for what is not
    /// UTF-8, and `ENOTCAPABLE` for an absolute path: a descriptor gives what is below it and no
    /// more.
    pub fn parse(bytes: &'a [u8]) -> Result<RelativePath<'a>, Errno> {
        if bytes.is_empty() {
            return Err(Errno::Noent);
        }
        if bytes.len() > PATH_BYTES_MAX {
            return Err(Errno::Nametoolong);
        }
        if bytes.contains(&0) {
            return Err(Errno::Inval);
        }
        let path = std::str::from_utf8(bytes).map_err(|_| Errno::Ilseq)?;
        if path.starts_with('/') {
            return Err(Errno::Notcapable);
        }
        Ok(RelativePath(path))
    }

    /// What the path leads to from a directory. `..` leads to the parent (there are no links), but
    /// never above the directory where the path begins: that is `ENOTCAPABLE`.
    pub fn resolve(self, files: &Files, from: NodeId) -> Result<NodeId, Errno> {
        let mut at = from;
        let mut depth = 0_usize;
        for name in self.0.split('/') {
            // Also for `file/` and `file/.`, which POSIX has fail.
            let node = files.node(at);
            let Content::Directory(entries) = &node.content else {
                return Err(Errno::Notdir);
            };
            match name {
                "" | "." => {}
                ".." => {
                    depth = depth.checked_sub(1).ok_or(Errno::Notcapable)?;
                    at = node.parent;
                }
                name if name.len() > FILE_NAME_BYTES_MAX => return Err(Errno::Nametoolong),
                name => {
                    at = files.child(entries, name).ok_or(Errno::Noent)?;
                    depth += 1;
                }
            }
        }
        Ok(at)
    }

    /// The directory in which the path's last name would be made; `None` is where the path begins.
    pub fn parent(self) -> Option<RelativePath<'a>> {
        let path = self.0.trim_end_matches('/');
        path.rsplit_once('/')
            .map(|(parent, _)| RelativePath(parent))
    }
}
