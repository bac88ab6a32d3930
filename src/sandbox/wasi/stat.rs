//! What descriptors and files say of themselves: `fdstat` and `filestat`.

use super::descriptors::{Object, Stream};
use super::errno::Errno;
use super::memory::Memory;
use super::path::RelativePath;
use super::{Answer, Wasi};
use crate::sandbox::files::{Content, Node, NodeId};

/// `rights`: they are told, not held. What a descriptor can do follows from its kind alone, as it
/// does for all who implement preview 1 today.
mod rights {
    const FD_READ: u64 = 1 << 1;
    const FD_SEEK: u64 = 1 << 2;
    const FD_FDSTAT_SET_FLAGS: u64 = 1 << 3;
    const FD_SYNC: u64 = 1 << 4;
    const FD_TELL: u64 = 1 << 5;
    pub const FD_WRITE: u64 = 1 << 6;
    const FD_ADVISE: u64 = 1 << 7;
    const PATH_OPEN: u64 = 1 << 13;
    const FD_READDIR: u64 = 1 << 14;
    const PATH_READLINK: u64 = 1 << 15;
    const PATH_FILESTAT_GET: u64 = 1 << 18;
    const FD_FILESTAT_GET: u64 = 1 << 21;
    const POLL_FD_READWRITE: u64 = 1 << 27;

    const STREAM: u64 = FD_FDSTAT_SET_FLAGS | FD_FILESTAT_GET | POLL_FD_READWRITE;
    pub const INPUT: u64 = STREAM | FD_READ;
    pub const OUTPUT: u64 = STREAM | FD_WRITE;
    pub const FILE: u64 = STREAM | FD_READ | FD_SEEK | FD_SYNC | FD_TELL | FD_ADVISE;
    pub const DIRECTORY: u64 =
        PATH_OPEN | FD_READDIR | PATH_READLINK | PATH_FILESTAT_GET | FD_FILESTAT_GET;
    /// With writing, although it is refused: C libraries leave out what does not stand here when
    /// they open a file, and would have a program that wants to write find out too late.
    pub const INHERITING: u64 = FILE | DIRECTORY | FD_WRITE;
}

pub(super) use rights::FD_WRITE as RIGHT_FD_WRITE;

/// `filetype` of the streams. WASI has no word for a pipe, and a character device would pass for a
/// terminal, which makes C libraries flush after every line.
const FILETYPE_UNKNOWN: u8 = 0;
const FILETYPE_DIRECTORY: u8 = 3;
const FILETYPE_REGULAR_FILE: u8 = 4;

/// All times of all files: a second after the epoch, as some programs take 0 for "not known".
const TIME_NS: u64 = 1_000_000_000;

/// `dev` of all files: there is one tree.
const DEVICE: u64 = 1;

/// `lookupflags`: to follow a link in the end.
const LOOKUP_SYMLINK_FOLLOW: u32 = 1;

const FDSTAT_BYTES: usize = 24;

/// The shape of `filestat`, which grew after preview 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilestatLayout {
    /// `wasi_unstable`: 56 bytes.
    Preview0,
    /// `wasi_snapshot_preview1`: 64 bytes.
    Preview1,
}

/// What `filestat` tells.
struct Filestat {
    device: u64,
    inode: u64,
    filetype: u8,
    size: u64,
    time_ns: u64,
}

impl FilestatLayout {
    fn encode(self, stat: &Filestat, memory: &mut Memory<'_>, out: u32) -> Answer {
        // After the type comes the number of links, 1, in 4 or 8 bytes at a multiple of that.
        let (nlink_at, size_at) = match self {
            FilestatLayout::Preview0 => (20, 24),
            FilestatLayout::Preview1 => (24, 32),
        };
        let mut bytes = [0_u8; 64];
        let mut put = |at: usize, value: u64| {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(0, stat.device);
        put(8, stat.inode);
        put(size_at, stat.size);
        for time in 1..=3 {
            put(size_at + time * 8, stat.time_ns);
        }
        bytes[16] = stat.filetype;
        bytes[nlink_at] = 1;
        memory.write(out, &bytes[..size_at + 32])?;
        Ok(())
    }
}

/// `filetype` of a file or directory.
pub(super) fn filetype(node: &Node) -> u8 {
    match node.content {
        Content::File(_) => FILETYPE_REGULAR_FILE,
        Content::Directory(_) => FILETYPE_DIRECTORY,
    }
}

/// `EINVAL` for flags that do not exist. Following makes no difference: there are no links.
pub(super) fn check_lookup_flags(flags: u32) -> Result<(), Errno> {
    if flags & !LOOKUP_SYMLINK_FOLLOW != 0 {
        return Err(Errno::Inval);
    }
    Ok(())
}

fn filestat(node: &Node, id: NodeId) -> Filestat {
    Filestat {
        device: DEVICE,
        inode: id.inode(),
        filetype: filetype(node),
        size: node.size(),
        time_ns: TIME_NS,
    }
}

impl Wasi {
    pub(super) fn fd_fdstat_get(&mut self, memory: &mut Memory<'_>, fd: u32, out: u32) -> Answer {
        let descriptor = self.descriptors.get(fd)?;
        let (filetype, base, inheriting) = match descriptor.object {
            Object::Stream(Stream::Stdin) => (FILETYPE_UNKNOWN, rights::INPUT, 0),
            Object::Stream(Stream::Stdout | Stream::Stderr) => {
                (FILETYPE_UNKNOWN, rights::OUTPUT, 0)
            }
            Object::File { .. } => (FILETYPE_REGULAR_FILE, rights::FILE, 0),
            Object::Directory { .. } => (FILETYPE_DIRECTORY, rights::DIRECTORY, rights::INHERITING),
        };
        let mut fdstat = [0_u8; FDSTAT_BYTES];
        fdstat[0] = filetype;
        fdstat[2] = descriptor.flags;
        fdstat[8..16].copy_from_slice(&base.to_le_bytes());
        fdstat[16..24].copy_from_slice(&inheriting.to_le_bytes());
        memory.write(out, &fdstat)?;
        Ok(())
    }

    /// A stream has one link, no size and no times.
    pub(super) fn fd_filestat_get(
        &mut self,
        memory: &mut Memory<'_>,
        layout: FilestatLayout,
        fd: u32,
        out: u32,
    ) -> Answer {
        let stat = match self.descriptors.get(fd)?.object {
            Object::Stream(_) => Filestat {
                device: 0,
                inode: 0,
                filetype: FILETYPE_UNKNOWN,
                size: 0,
                time_ns: 0,
            },
            Object::File { node, .. } | Object::Directory { node, .. } => {
                filestat(self.files()?.node(node), node)
            }
        };
        layout.encode(&stat, memory, out)
    }

    pub(super) fn path_filestat_get(
        &mut self,
        memory: &mut Memory<'_>,
        layout: FilestatLayout,
        (fd, flags): (u32, u32),
        (path, path_len): (u32, u32),
        out: u32,
    ) -> Answer {
        let directory = self.descriptors.directory(fd)?;
        let path = RelativePath::parse(memory.slice(path, path_len)?)?;
        check_lookup_flags(flags)?;
        let files = self.files()?;
        let node = path.resolve(files, directory)?;
        let stat = filestat(files.node(node), node);
        layout.encode(&stat, memory, out)
    }
}
