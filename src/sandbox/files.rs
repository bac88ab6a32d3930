//! A read-only tree of files for guests, read once from a directory of the host's into memory.
//!
//! Of the host nothing but names and contents gets in: no times, owners, modes or inode numbers. A
//! link is followed to a file in the same directory only, and nothing that is neither a file nor a
//! directory is accepted, so the tree holds what its directory holds, and stays as it is.

#[cfg(test)]
mod tests;

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Most bytes of all files of a tree together.
pub const FILES_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most files and directories in a tree, its root not counted.
pub const FILES_ENTRIES_MAX: usize = 16_384;
/// Most directories within each other, the root not counted.
pub const FILES_DEPTH_MAX: usize = 32;
/// Longest name of a file or directory, in bytes.
pub const FILE_NAME_BYTES_MAX: usize = 255;

/// A tree of files and directories that never changes. Guests see it as `/`.
#[derive(Debug)]
pub struct Files {
    /// The root first.
    nodes: Vec<Node>,
}

/// One file or directory of a tree; means nothing to another tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

#[derive(Debug)]
pub(super) struct Node {
    /// The root is its own.
    pub parent: NodeId,
    pub content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    File(Bytes),
    Directory(Vec<Entry>),
}

/// A name in a directory. A directory's entries are sorted by name, byte by byte.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: Box<str>,
    pub node: NodeId,
}

/// Why a directory can't become a tree of files.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub struct FilesError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is not a directory")]
    NotDirectory,
    #[error("is neither a file nor a directory")]
    Special,
    #[error("is a link that does not lead to a file in the same tree: put the file itself there")]
    Link,
    #[error("has a name that is not UTF-8 or longer than {FILE_NAME_BYTES_MAX} bytes")]
    Name,
    #[error("is one too many: a tree may have {FILES_ENTRIES_MAX} files and directories")]
    TooMany,
    #[error(
        "is nested too deeply: a tree may have {FILES_DEPTH_MAX} directories within each other"
    )]
    TooDeep,
    #[error("is too large: the files of a tree may have {} MiB together", FILES_BYTES_MAX >> 20)]
    TooLarge,
}

impl Files {
    /// Reads a directory and all in it. Blocks.
    ///
    /// Entries whose names begin with `..` are left out: Kubernetes keeps the versions of a mounted
    /// volume there, and links to their files beside them.
    pub fn load(directory: &Path) -> Result<Files, FilesError> {
        let at_root = |problem| FilesError {
            path: directory.to_owned(),
            problem,
        };
        let root = directory
            .canonicalize()
            .map_err(|error| at_root(error.into()))?;
        if !root.is_dir() {
            return Err(at_root(Problem::NotDirectory));
        }
        let mut loader = Loader {
            root,
            nodes: Vec::new(),
            bytes_left: FILES_BYTES_MAX,
        };
        loader.directory(directory, NodeId(0), 0)?;
        Ok(Files {
            nodes: loader.nodes,
        })
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.nodes.iter().map(Node::size).sum()
    }

    pub(super) fn root(&self) -> NodeId {
        NodeId(0)
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// What a directory calls by this name.
    pub(super) fn child(&self, directory: &[Entry], name: &str) -> Option<NodeId> {
        let at = directory.binary_search_by(|entry| (*entry.name).cmp(name));
        at.ok().map(|at| directory[at].node)
    }
}

impl NodeId {
    /// Its inode number: 1 for the root, and the same whenever the same tree is read.
    pub fn inode(self) -> u64 {
        u64::from(self.0) + 1
    }
}

impl Node {
    /// Bytes of a file. A directory has none.
    pub fn size(&self) -> u64 {
        match &self.content {
            Content::File(bytes) => bytes.len() as u64,
            Content::Directory(_) => 0,
        }
    }
}

struct Loader {
    /// The real path of the tree's root.
    root: PathBuf,
    nodes: Vec<Node>,
    bytes_left: u64,
}

impl Loader {
    fn directory(
        &mut self,
        path: &Path,
        parent: NodeId,
        depth: usize,
    ) -> Result<NodeId, FilesError> {
        let names = self.names(path)?;
        // Its place comes before those of its entries.
        let id = self.push(path, parent, Content::Directory(Vec::new()))?;
        let mut entries = Vec::with_capacity(names.len());
        for (name, kind) in names {
            let path = path.join(&name);
            let node = if kind.is_dir() {
                if depth == FILES_DEPTH_MAX {
                    return Err(error(&path, Problem::TooDeep));
                }
                self.directory(&path, id, depth + 1)?
            } else {
                let bytes = self.file(&path, kind).map_err(|p| error(&path, p))?;
                self.push(&path, id, Content::File(bytes))?
            };
            entries.push(Entry {
                name: name.into_boxed_str(),
                node,
            });
        }
        self.nodes[id.0 as usize].content = Content::Directory(entries);
        Ok(id)
    }

    /// What a directory holds, sorted.
    fn names(&self, path: &Path) -> Result<Vec<(String, FileType)>, FilesError> {
        let failed = |problem: io::Error| error(path, problem.into());
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b"..") {
                continue;
            }
            let name = name
                .into_string()
                .ok()
                .filter(|name| name.len() <= FILE_NAME_BYTES_MAX)
                .ok_or_else(|| error(&entry.path(), Problem::Name))?;
            if self.nodes.len() + names.len() > FILES_ENTRIES_MAX {
                return Err(error(&entry.path(), Problem::TooMany));
            }
            let kind = entry.file_type().map_err(failed)?;
            names.push((name, kind));
        }
        names.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(names)
    }

    fn push(
        &mut self,
        path: &Path,
        parent: NodeId,
        content: Content,
    ) -> Result<NodeId, FilesError> {
        // The root is not counted.
        if self.nodes.len() > FILES_ENTRIES_MAX {
            return Err(error(path, Problem::TooMany));
        }
        let id = u32::try_from(self.nodes.len()).map_err(|_| error(path, Problem::TooMany))?;
        self.nodes.push(Node { parent, content });
        Ok(NodeId(id))
    }

    fn file(&mut self, path: &Path, kind: FileType) -> Result<Bytes, Problem> {
        let bytes = if kind.is_symlink() {
            // One that leads nowhere has no real path.
            let target = path.canonicalize().map_err(|_| Problem::Link)?;
            if !target.starts_with(&self.root) || !target.is_file() {
                return Err(Problem::Link);
            }
            self.read(&target)?
        } else if kind.is_file() {
            self.read(path)?
        } else {
            return Err(Problem::Special);
        };
        Ok(bytes)
    }

    /// Reads a file that is no link; one that grows meanwhile is bounded too.
    fn read(&mut self, path: &Path) -> Result<Bytes, Problem> {
        let file = open(path)?;
        if !file.metadata()?.is_file() {
            return Err(Problem::Special);
        }
        let mut bytes = Vec::new();
        file.take(self.bytes_left + 1).read_to_end(&mut bytes)?;
        let left = self.bytes_left.checked_sub(bytes.len() as u64);
        self.bytes_left = left.ok_or(Problem::TooLarge)?;
        Ok(Bytes::from(bytes))
    }
}

/// Neither follows a link nor waits for the writer of a pipe, whatever the path has become since it
/// was looked at.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

fn error(path: &Path, problem: Problem) -> FilesError {
    FilesError {
        path: path.to_owned(),
        problem,
    }
}
