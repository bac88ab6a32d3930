//! The descriptor table: three standard streams, the root of the file tree if there is one, and what
//! the guest opens of it.

use super::errno::Errno;
use super::memory::Memory;
use super::{Answer, Wasi};
use crate::sandbox::files::NodeId;

/// `fdflags` that a descriptor accepts later on: APPEND and NONBLOCK. They change nothing, as a
/// stream always appends, a file can't be written, and no other thread of the guest could use the
/// time.
const FLAGS_ACCEPTED: u32 = 0x1 | 0x4;

/// Most open descriptors.
pub(super) const DESCRIPTORS_MAX: usize = 256;

/// The standard streams' descriptors come first.
const STREAMS: usize = 3;

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

/// What a descriptor leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Object {
    Stream(Stream),
    File {
        node: NodeId,
        /// Where the next read begins; may lie beyond the end.
        position: u64,
    },
    Directory {
        node: NodeId,
        /// Open from the start, and known by a name.
        preopened: bool,
    },
}

/// An open descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub object: Object,
    /// `fdflags` as the guest set them.
    pub flags: u8,
}

/// All descriptors of a guest.
pub(super) struct Descriptors {
    streams: [Option<Descriptor>; STREAMS],
    /// Those from 3 on.
    others: Vec<Option<Descriptor>>,
}

/// What a function that an object does not support answers.
pub(super) struct Refusal {
    pub stream: Errno,
    pub file: Errno,
    pub directory: Errno,
}

impl Descriptors {
    /// The standard streams, and the tree's root as descriptor 3.
    pub fn new(root: Option<NodeId>) -> Descriptors {
        let open = |object| Some(Descriptor { object, flags: 0 });
        let directory = |node| Object::Directory {
            node,
            preopened: true,
        };
        Descriptors {
            streams: [Stream::Stdin, Stream::Stdout, Stream::Stderr]
                .map(|stream| open(Object::Stream(stream))),
            others: root.map(directory).map(open).into_iter().collect(),
        }
    }

    /// An open descriptor, or `EBADF`.
    pub fn get(&mut self, fd: u32) -> Result<&mut Descriptor, Errno> {
        self.slot(fd)?.as_mut().ok_or(Errno::Badf)
    }

    /// The directory that paths begin at: `ENOTDIR` where the descriptor is something else.
    pub fn directory(&mut self, fd: u32) -> Result<NodeId, Errno> {
        match self.get(fd)?.object {
            Object::Directory { node, .. } => Ok(node),
            Object::Stream(_) | Object::File { .. } => Err(Errno::Notdir),
        }
    }

    /// The lowest free number from 3 on, or `EMFILE`: a standard stream's is not given away, so that
    /// what the guest prints never goes where it does not belong.
    pub fn open(&mut self, descriptor: Descriptor) -> Result<u32, Errno> {
        let free = self.others.iter().position(Option::is_none);
        let index = free.unwrap_or(self.others.len());
        if STREAMS + index >= DESCRIPTORS_MAX {
            return Err(Errno::Mfile);
        }
        if free.is_none() {
            self.others.push(None);
        }
        self.others[index] = Some(descriptor);
        u32::try_from(STREAMS + index).map_err(|_| Errno::Mfile)
    }

    /// Whether any descriptor leads to this stream.
    pub fn lead_to(&self, stream: Stream) -> bool {
        let mut open = self.streams.iter().chain(&self.others).flatten();
        open.any(|descriptor| descriptor.object == Object::Stream(stream))
    }

    fn slot(&mut self, fd: u32) -> Result<&mut Option<Descriptor>, Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno::Badf)?;
        match index.checked_sub(STREAMS) {
            None => self.streams.get_mut(index),
            Some(index) => self.others.get_mut(index),
        }
        .ok_or(Errno::Badf)
    }
}

impl Wasi {
    pub(super) fn fd_close(&mut self, _memory: &mut Memory<'_>, fd: u32) -> Answer {
        self.descriptors.slot(fd)?.take().ok_or(Errno::Badf)?;
        self.release_input();
        Ok(())
    }

    /// Moves `from` to `to`; both must be open, and `from` is closed afterwards.
    pub(super) fn fd_renumber(&mut self, _memory: &mut Memory<'_>, from: u32, to: u32) -> Answer {
        let moved = *self.descriptors.get(from)?;
        *self.descriptors.get(to)? = moved;
        if from != to {
            *self.descriptors.slot(from)? = None;
        }
        self.release_input();
        Ok(())
    }

    /// `EINVAL` for flags that ask for synchronised writes: there is nothing to synchronise with.
    pub(super) fn fd_fdstat_set_flags(
        &mut self,
        _memory: &mut Memory<'_>,
        fd: u32,
        flags: u32,
    ) -> Answer {
        let descriptor = self.descriptors.get(fd)?;
        match descriptor.object {
            Object::Stream(_) | Object::File { .. } => {}
            Object::Directory { .. } => return Err(Errno::Badf.into()),
        }
        if flags & !FLAGS_ACCEPTED != 0 {
            return Err(Errno::Inval.into());
        }
        descriptor.flags = u8::try_from(flags).map_err(|_| Errno::Inval)?;
        Ok(())
    }

    /// The answer of a function that no object supports: `EBADF` unless the descriptor is open.
    pub(super) fn refuse(&mut self, fd: u32, refusal: &Refusal) -> Answer {
        Err(match self.descriptors.get(fd)?.object {
            Object::Stream(_) => refusal.stream,
            Object::File { .. } => refusal.file,
            Object::Directory { .. } => refusal.directory,
        }
        .into())
    }

    /// The answer of a function that a file supports and that changes nothing.
    pub(super) fn ignore(&mut self, fd: u32, stream: Errno) -> Answer {
        match self.descriptors.get(fd)?.object {
            Object::Stream(_) => Err(stream.into()),
            Object::File { .. } => Ok(()),
            Object::Directory { .. } => Err(Errno::Badf.into()),
        }
    }
}
