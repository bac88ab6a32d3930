//! The functions on files and directories. All that would change something answer `EROFS`.

use super::descriptors::{Descriptor, Object};
use super::errno::Errno;
use super::memory::Memory;
use super::path::RelativePath;
use super::stat::{self, RIGHT_FD_WRITE};
use super::{Answer, Wasi};
use crate::sandbox::files::{Content, Files, NodeId};

/// What the root of the tree is called: `fd_prestat_dir_name`.
const ROOT_NAME: &[u8] = b"/";

/// `preopentype` of a directory, the only one there is.
const PREOPEN_DIRECTORY: u8 = 0;

/// `oflags`.
const OPEN_CREATE: u32 = 1;
const OPEN_DIRECTORY: u32 = 2;
const OPEN_EXCLUSIVE: u32 = 4;
const OPEN_TRUNCATE: u32 = 8;

/// All `fdflags` there are. A file that can't be written is in step with its disk, so it can be
/// opened with those for synchronised writes too.
const FLAGS: u32 = 0x1f;

/// `advice`: the last one there is.
const ADVICE_MAX: u32 = 5;

const DIRENT_BYTES: usize = 24;

/// Bytes of directory entries to a unit of work.
const BYTES_PER_UNIT: u32 = 256;

/// From where `fd_seek` counts. The numbers differ between editions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whence {
    Start,
    Current,
    End,
}

/// What a guest asks for when it opens a path.
pub(super) struct Opening {
    pub fd: u32,
    pub lookup_flags: u32,
    pub path: (u32, u32),
    pub open_flags: u32,
    pub rights: u64,
    pub flags: u32,
}

impl Wasi {
    /// The tree that the guest's descriptors are of.
    pub(super) fn files(&self) -> Result<&Files, Errno> {
        self.files.as_deref().ok_or(Errno::Badf)
    }

    /// Only the root has a name; any other descriptor is `EBADF`, by which C libraries know that they
    /// have seen all.
    pub(super) fn fd_prestat_get(&mut self, memory: &mut Memory<'_>, fd: u32, out: u32) -> Answer {
        self.check_preopened(fd)?;
        let mut prestat = [PREOPEN_DIRECTORY, 0, 0, 0, 0, 0, 0, 0];
        prestat[4..].copy_from_slice(&length(ROOT_NAME)?.to_le_bytes());
        memory.write(out, &prestat)?;
        Ok(())
    }

    /// `ENAMETOOLONG` where the name does not fit. There is no NUL after it.
    pub(super) fn fd_prestat_dir_name(
        &mut self,
        memory: &mut Memory<'_>,
        fd: u32,
        name: u32,
        name_len: u32,
    ) -> Answer {
        self.check_preopened(fd)?;
        if name_len < length(ROOT_NAME)? {
            return Err(Errno::Nametoolong.into());
        }
        memory.write(name, ROOT_NAME)?;
        Ok(())
    }

    fn check_preopened(&mut self, fd: u32) -> Result<(), Errno> {
        match self.descriptors.get(fd)?.object {
            Object::Directory {
                preopened: true, ..
            } => Ok(()),
            Object::Directory { .. } | Object::Stream(_) | Object::File { .. } => Err(Errno::Badf),
        }
    }

    pub(super) fn path_open(
        &mut self,
        memory: &mut Memory<'_>,
        opening: &Opening,
        out: u32,
    ) -> Answer {
        let directory = self.descriptors.directory(opening.fd)?;
        let (path, path_len) = opening.path;
        let path = RelativePath::parse(memory.slice(path, path_len)?)?;
        memory.check(out, 4)?;
        stat::check_lookup_flags(opening.lookup_flags)?;
        let object = opening.object(self.files()?, directory, path)?;
        let flags = u8::try_from(opening.flags & FLAGS).map_err(|_| Errno::Inval)?;
        let fd = self.descriptors.open(Descriptor { object, flags })?;
        memory.write_u32(out, fd)?;
        Ok(())
    }

    /// Nothing is a link: `EINVAL` for what there is.
    pub(super) fn path_readlink(
        &mut self,
        memory: &mut Memory<'_>,
        fd: u32,
        (path, path_len): (u32, u32),
        (buffer, buffer_len): (u32, u32),
        out: u32,
    ) -> Answer {
        let directory = self.descriptors.directory(fd)?;
        let path = RelativePath::parse(memory.slice(path, path_len)?)?;
        memory.check(buffer, buffer_len)?;
        memory.check(out, 4)?;
        path.resolve(self.files()?, directory)?;
        Err(Errno::Inval.into())
    }

    /// The answer of all functions that would change what a path leads to, or where: `EROFS`, if
    /// their descriptors and paths are well-formed.
    pub(super) fn path_change(&mut self, memory: &Memory<'_>, paths: &[(u32, u32, u32)]) -> Answer {
        for (fd, path, path_len) in paths {
            self.descriptors.directory(*fd)?;
            RelativePath::parse(memory.slice(*path, *path_len)?)?;
        }
        Err(Errno::Rofs.into())
    }

    /// A link's target is any text, so only the place of the link has to be a path.
    pub(super) fn path_symlink(
        &mut self,
        memory: &mut Memory<'_>,
        (target, target_len): (u32, u32),
        (fd, path, path_len): (u32, u32, u32),
    ) -> Answer {
        self.descriptors.directory(fd)?;
        memory.check(target, target_len)?;
        self.path_change(memory, &[(fd, path, path_len)])
    }

    pub(super) fn fd_advise(
        &mut self,
        _memory: &mut Memory<'_>,
        fd: u32,
        _range: (u64, u64),
        advice: u32,
    ) -> Answer {
        self.ignore(fd, Errno::Spipe)?;
        if advice > ADVICE_MAX {
            return Err(Errno::Inval.into());
        }
        Ok(())
    }

    pub(super) fn fd_pread(
        &mut self,
        memory: &mut Memory<'_>,
        fd: u32,
        (iovecs, iovecs_len): (u32, u32),
        offset: u64,
        read_out: u32,
    ) -> Answer {
        match self.descriptors.get(fd)?.object {
            Object::Stream(_) => Err(Errno::Spipe.into()),
            Object::Directory { .. } => Err(Errno::Badf.into()),
            Object::File { node, .. } => {
                let content = self.content(node)?;
                let rest = from_offset(&content, offset);
                self.with_iovecs(
                    memory,
                    (iovecs, iovecs_len),
                    read_out,
                    |wasi, memory, list| wasi.copy_out(memory, list, rest),
                )?;
                Ok(())
            }
        }
    }

    /// Reads a file from its position on, which moves by what was read.
    pub(super) fn read_file(
        &mut self,
        memory: &mut Memory<'_>,
        fd: u32,
        (node, position): (NodeId, u64),
        iovecs: (u32, u32),
        read_out: u32,
    ) -> Answer {
        let content = self.content(node)?;
        let rest = from_offset(&content, position);
        let read = self.with_iovecs(memory, iovecs, read_out, |wasi, memory, list| {
            wasi.copy_out(memory, list, rest)
        })?;
        self.set_position(fd, position.saturating_add(u64::from(read)))
    }

    /// `EINVAL` for a position before the start. One beyond the end is allowed; there is nothing to
    /// read there.
    pub(super) fn fd_seek(
        &mut self,
        memory: &mut Memory<'_>,
        fd: u32,
        offset: u64,
        whence: Option<Whence>,
        out: u32,
    ) -> Answer {
        let (node, position) = match self.descriptors.get(fd)?.object {
            _ if whence.is_none() => return Err(Errno::Inval.into()),
            Object::Stream(_) => return Err(Errno::Spipe.into()),
            Object::Directory { .. } => return Err(Errno::Badf.into()),
            Object::File { node, position } => (node, position),
        };
        memory.check(out, 8)?;
        let base = match whence {
            Some(Whence::Start) | None => 0,
            Some(Whence::Current) => position,
            Some(Whence::End) => self.files()?.node(node).size(),
        };
        // The guest's number is signed, and so is a position.
        let target = i128::from(base) + i128::from(offset.cast_signed());
        let target = match u64::try_from(target) {
            Err(_) if target < 0 => return Err(Errno::Inval.into()),
            Ok(target) if i64::try_from(target).is_ok() => target,
            Ok(_) | Err(_) => return Err(Errno::Overflow.into()),
        };
        self.set_position(fd, target)?;
        memory.write_u64(out, target)?;
        Ok(())
    }

    pub(super) fn fd_tell(&mut self, memory: &mut Memory<'_>, fd: u32, out: u32) -> Answer {
        match self.descriptors.get(fd)?.object {
            Object::Stream(_) => Err(Errno::Spipe.into()),
            Object::Directory { .. } => Err(Errno::Badf.into()),
            Object::File { position, .. } => Ok(memory.write_u64(out, position)?),
        }
    }

    /// Writes entries from the one that the cookie names: `.`, `..`, and then by name. The last one
    /// is cut where the buffer ends; a buffer that is not full says that there are no more.
    pub(super) fn fd_readdir(
        &mut self,
        memory: &mut Memory<'_>,
        fd: u32,
        (buffer, buffer_len): (u32, u32),
        cookie: u64,
        used_out: u32,
    ) -> Answer {
        let directory = self.descriptors.directory(fd)?;
        memory.check(used_out, 4)?;
        let target = memory.slice_mut(buffer, buffer_len)?;
        let used = write_entries(self.files()?, directory, cookie, target)?;
        self.spend(used / BYTES_PER_UNIT)?;
        memory.write_u32(used_out, used)?;
        Ok(())
    }

    fn set_position(&mut self, fd: u32, to: u64) -> Answer {
        match &mut self.descriptors.get(fd)?.object {
            Object::File { position, .. } => {
                *position = to;
                Ok(())
            }
            Object::Stream(_) | Object::Directory { .. } => Err(Errno::Badf.into()),
        }
    }

    /// A file's bytes, which cost a count of owners, not a copy.
    fn content(&self, node: NodeId) -> Result<bytes::Bytes, Errno> {
        match &self.files()?.node(node).content {
            Content::File(bytes) => Ok(bytes.clone()),
            Content::Directory(_) => Err(Errno::Badf),
        }
    }
}

impl Opening {
    /// What is opened, for reading. As on a read-only file system of POSIX: a file that is there can
    /// be opened even if it were to be made otherwise, and `EROFS` answers the wish to write, to
    /// truncate, or to make what is not there.
    fn object(
        &self,
        files: &Files,
        directory: NodeId,
        path: RelativePath<'_>,
    ) -> Result<Object, Errno> {
        const ALL: u32 = OPEN_CREATE | OPEN_DIRECTORY | OPEN_EXCLUSIVE | OPEN_TRUNCATE;
        let asks = |flag| self.open_flags & flag != 0;
        if self.open_flags & !ALL != 0
            || self.flags & !FLAGS != 0
            || (asks(OPEN_DIRECTORY) && asks(OPEN_CREATE | OPEN_EXCLUSIVE | OPEN_TRUNCATE))
        {
            return Err(Errno::Inval);
        }
        let to_change = asks(OPEN_TRUNCATE) || self.rights & RIGHT_FD_WRITE != 0;
        let node = match path.resolve(files, directory) {
            Ok(_) if asks(OPEN_CREATE) && asks(OPEN_EXCLUSIVE) => return Err(Errno::Exist),
            Ok(node) => node,
            Err(Errno::Noent) if asks(OPEN_CREATE) => {
                if let Some(parent) = path.parent() {
                    parent.resolve(files, directory)?;
                }
                return Err(Errno::Rofs);
            }
            Err(errno) => return Err(errno),
        };
        match &files.node(node).content {
            Content::Directory(_) if to_change || asks(OPEN_CREATE) => Err(Errno::Isdir),
            Content::Directory(_) => Ok(Object::Directory {
                node,
                preopened: false,
            }),
            Content::File(_) if asks(OPEN_DIRECTORY) => Err(Errno::Notdir),
            Content::File(_) if to_change => Err(Errno::Rofs),
            Content::File(_) => Ok(Object::File { node, position: 0 }),
        }
    }
}

/// What of a file lies at and after an offset.
fn from_offset(content: &[u8], offset: u64) -> &[u8] {
    usize::try_from(offset)
        .ok()
        .and_then(|offset| content.get(offset..))
        .unwrap_or_default()
}

/// Fills the buffer; returns how many bytes were used. A cookie is the number of the entry.
fn write_entries(
    files: &Files,
    directory: NodeId,
    cookie: u64,
    buffer: &mut [u8],
) -> Result<u32, Errno> {
    let node = files.node(directory);
    let Content::Directory(entries) = &node.content else {
        return Err(Errno::Notdir);
    };
    let special = [(".", directory), ("..", node.parent)];
    let first = usize::try_from(cookie).unwrap_or(usize::MAX);
    let entries = entries
        .get(first.saturating_sub(special.len())..)
        .unwrap_or_default()
        .iter()
        .map(|entry| (&*entry.name, entry.node));
    let rest = special.into_iter().skip(first).chain(entries);
    let mut used = 0;
    for ((name, id), next) in rest.zip(cookie.saturating_add(1)..) {
        let mut dirent = [0_u8; DIRENT_BYTES];
        dirent[0..8].copy_from_slice(&next.to_le_bytes());
        dirent[8..16].copy_from_slice(&id.inode().to_le_bytes());
        dirent[16..20].copy_from_slice(&length(name.as_bytes())?.to_le_bytes());
        dirent[20] = stat::filetype(files.node(id));
        for part in [&dirent[..], name.as_bytes()] {
            let len = part.len().min(buffer.len() - used);
            buffer[used..used + len].copy_from_slice(&part[..len]);
            used += len;
        }
        if used == buffer.len() {
            break;
        }
    }
    u32::try_from(used).map_err(|_| Errno::Overflow)
}

fn length(bytes: &[u8]) -> Result<u32, Errno> {
    u32::try_from(bytes.len()).map_err(|_| Errno::Overflow)
}
