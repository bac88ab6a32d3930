//! The descriptor table: three standard streams that can be closed and renumbered, nothing else.

use super::errno::Errno;
use super::memory::Memory;
use super::{Answer, Wasi};

/// `fdflags` that a stream accepts: APPEND and NONBLOCK. They change nothing, as a stream always
/// appends, and no other thread of the guest could use the time.
const FLAGS_ACCEPTED: u32 = 0x1 | 0x4;

/// `rights` that every stream has: FD_FDSTAT_SET_FLAGS, FD_FILESTAT_GET, POLL_FD_READWRITE.
const RIGHTS_COMMON: u64 = 1 << 3 | 1 << 21 | 1 << 27;
const RIGHT_FD_READ: u64 = 1 << 1;
const RIGHT_FD_WRITE: u64 = 1 << 6;

/// `filetype` of the streams. WASI has no word for a pipe, and a character device would pass for a
/// terminal, which makes C libraries flush after every line.
const FILETYPE_UNKNOWN: u8 = 0;

const FDSTAT_BYTES: usize = 24;

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

/// The shape of `filestat`, which grew after preview 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilestatLayout {
    /// `wasi_unstable`: 56 bytes.
    Preview0,
    /// `wasi_snapshot_preview1`: 64 bytes.
    Preview1,
}

/// An open descriptor.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    stream: Stream,
    flags: u8,
}

/// Descriptors 0, 1 and 2, where open. Nothing ever opens another one.
pub(super) struct Descriptors {
    open: [Option<Descriptor>; 3],
}

impl Default for Descriptors {
    fn default() -> Descriptors {
        let open = |stream| Some(Descriptor { stream, flags: 0 });
        Descriptors {
            open: [
                open(Stream::Stdin),
                open(Stream::Stdout),
                open(Stream::Stderr),
            ],
        }
    }
}

impl Descriptors {
    /// The stream behind an open descriptor, or `EBADF`.
    pub fn stream(&mut self, fd: u32) -> Result<Stream, Errno> {
        self.descriptor(fd).map(|descriptor| descriptor.stream)
    }

    fn descriptor(&mut self, fd: u32) -> Result<&mut Descriptor, Errno> {
        self.slot(fd)?.as_mut().ok_or(Errno::Badf)
    }

    fn slot(&mut self, fd: u32) -> Result<&mut Option<Descriptor>, Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno::Badf)?;
        self.open.get_mut(index).ok_or(Errno::Badf)
    }
}

impl Wasi {
    pub(super) fn fd_close(&mut self, _memory: &mut Memory<'_>, fd: u32) -> Answer {
        self.descriptors.slot(fd)?.take().ok_or(Errno::Badf)?;
        Ok(())
    }

    /// Moves `from` to `to`; both must be open, and `from` is closed afterwards.
    pub(super) fn fd_renumber(&mut self, _memory: &mut Memory<'_>, from: u32, to: u32) -> Answer {
        let moved = *self.descriptors.descriptor(from)?;
        *self.descriptors.descriptor(to)? = moved;
        if from != to {
            *self.descriptors.slot(from)? = None;
        }
        Ok(())
    }

    pub(super) fn fd_fdstat_get(&mut self, memory: &mut Memory<'_>, fd: u32, out: u32) -> Answer {
        let descriptor = *self.descriptors.descriptor(fd)?;
        let rights = RIGHTS_COMMON
            | match descriptor.stream {
                Stream::Stdin => RIGHT_FD_READ,
                Stream::Stdout | Stream::Stderr => RIGHT_FD_WRITE,
            };
        let mut fdstat = [0_u8; FDSTAT_BYTES];
        fdstat[0] = FILETYPE_UNKNOWN;
        fdstat[2] = descriptor.flags;
        fdstat[8..16].copy_from_slice(&rights.to_le_bytes());
        memory.write(out, &fdstat)?;
        Ok(())
    }

    /// `EINVAL` for flags that ask for synchronised writes: there is nothing to synchronise with.
    pub(super) fn fd_fdstat_set_flags(
        &mut self,
        _memory: &mut Memory<'_>,
        fd: u32,
        flags: u32,
    ) -> Answer {
        let descriptor = self.descriptors.descriptor(fd)?;
        if flags & !FLAGS_ACCEPTED != 0 {
            return Err(Errno::Inval.into());
        }
        descriptor.flags = u8::try_from(flags).map_err(|_| Errno::Inval)?;
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
        self.descriptors.stream(fd)?;
        let mut filestat = [0_u8; 64];
        filestat[16] = FILETYPE_UNKNOWN;
        let (nlink_at, len) = match layout {
            FilestatLayout::Preview0 => (20, 56),
            FilestatLayout::Preview1 => (24, 64),
        };
        filestat[nlink_at] = 1;
        memory.write(out, &filestat[..len])?;
        Ok(())
    }

    /// Streams have no position. `EINVAL` for a whence that does not exist.
    pub(super) fn fd_seek(&mut self, _memory: &mut Memory<'_>, fd: u32, whence: u32) -> Answer {
        const WHENCE_MAX: u32 = 2;
        if whence > WHENCE_MAX {
            return self.refuse(fd, Errno::Inval);
        }
        self.refuse(fd, Errno::Spipe)
    }

    /// The answer of a function that no stream supports: `EBADF` unless the descriptor is open.
    pub(super) fn refuse(&mut self, fd: u32, errno: Errno) -> Answer {
        self.descriptors.stream(fd)?;
        Err(errno.into())
    }
}
