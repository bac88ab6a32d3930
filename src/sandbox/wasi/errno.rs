//! The error numbers of WASI preview 1 that we answer with.

/// `errno` of `wasi_snapshot_preview1`; the discriminant is the number the guest sees. Success is
/// not among them: it is `Ok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Errno {
    /// Bad file descriptor, or one that is not open for this direction.
    Badf = 8,
    /// It is there already.
    Exist = 20,
    /// An address outside the guest's memory.
    Fault = 21,
    /// A name that is not UTF-8.
    Ilseq = 25,
    /// Invalid argument.
    Inval = 28,
    /// The host could not do it.
    Io = 29,
    /// A directory where a file is meant.
    Isdir = 31,
    /// Too many open descriptors.
    Mfile = 33,
    /// A name or path that is too long.
    Nametoolong = 37,
    /// No such file or directory.
    Noent = 44,
    /// Not supported at all.
    Nosys = 52,
    /// Not a directory.
    Notdir = 54,
    /// Not a socket.
    Notsock = 57,
    /// Not supported by this kind of object.
    Notsup = 58,
    /// A value too large for its type.
    Overflow = 61,
    /// It can be read only.
    Rofs = 69,
    /// Not something one can seek in.
    Spipe = 70,
    /// More than the descriptor gives access to.
    Notcapable = 76,
}

impl Errno {
    pub fn code(self) -> i32 {
        i32::from(self as u16)
    }
}
