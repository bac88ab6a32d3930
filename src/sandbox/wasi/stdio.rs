//! Standard input, output and error.

use std::time::Instant;

use bytes::Bytes;

use super::descriptors::{Object, Stream};
use super::errno::Errno;
use super::memory::{Iovec, Memory};
use super::{Answer, Failure, INLINE_OUTPUT_MAX, Stop, Wasi};
use crate::sandbox;
use crate::sandbox::input::{Cut, InputReader, Readiness};
use crate::sandbox::pipe::PipeError;

/// Bytes moved between two looks at the stop signal.
const CHUNK_BYTES: usize = 64 * 1024;

/// [`CHUNK_BYTES`] in units of work.
const CHUNK_UNITS: u32 = 64;

/// Standard input, and how far the guest has read.
pub(super) enum Stdin {
    Bytes { all: Bytes, read: usize },
    Pipe(InputReader),
}

/// Standard output: kept or piped, and counted.
pub(super) struct Stdout {
    target: Target,
    bytes_max: u64,
    bytes_total: u64,
}

/// Standard error: kept up to a limit.
pub(super) struct Stderr {
    kept: Vec<u8>,
    bytes_max: u64,
    truncated: bool,
}

enum Target {
    Collect(Vec<u8>),
    Pipe(sandbox::PipeWriter),
    /// For a pipe, but kept back to the end, up to [`INLINE_OUTPUT_MAX`].
    Held(sandbox::PipeWriter, Vec<u8>),
}

impl Stdin {
    pub fn new(stdin: sandbox::Stdin) -> Stdin {
        match stdin {
            sandbox::Stdin::Bytes(all) => Stdin::Bytes { all, read: 0 },
            sandbox::Stdin::Pipe(reader) => Stdin::Pipe(reader),
        }
    }

    /// The whole input, as if nothing had been read. (Of a pipe nothing has been, where it can
    /// come to this: see [`Wasi::await_input`].)
    pub fn rewind(self) -> sandbox::Stdin {
        match self {
            Stdin::Bytes { all, .. } => sandbox::Stdin::Bytes(all),
            Stdin::Pipe(reader) => sandbox::Stdin::Pipe(reader),
        }
    }

    /// What a read would find.
    fn readiness(&self) -> Result<Readiness, Cut> {
        match self {
            Stdin::Bytes { all, read } if *read == all.len() => Ok(Readiness::Ended),
            Stdin::Bytes { all, read } => Ok(Readiness::Bytes(all.len() - read)),
            Stdin::Pipe(reader) => reader.readiness(),
        }
    }

    /// Fills the buffer as far as what is there goes; returns how many bytes that is.
    fn read_now(&mut self, buffer: &mut [u8]) -> usize {
        match self {
            Stdin::Bytes { all, read } => {
                let len = buffer.len().min(all.len() - *read);
                buffer[..len].copy_from_slice(&all[*read..*read + len]);
                *read += len;
                len
            }
            Stdin::Pipe(reader) => reader.read_now(buffer),
        }
    }
}

impl Stdout {
    pub fn new(stdout: sandbox::Stdout, bytes_max: u64, may_block: bool) -> Stdout {
        let target = match stdout {
            sandbox::Stdout::Collect => Target::Collect(Vec::new()),
            sandbox::Stdout::Pipe(writer) if may_block => Target::Pipe(writer),
            sandbox::Stdout::Pipe(writer) => Target::Held(writer, Vec::new()),
        };
        Stdout {
            target,
            bytes_max,
            bytes_total: 0,
        }
    }

    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// What was collected. A pipe gets what was held back from it.
    pub fn finish(self) -> Vec<u8> {
        match self.target {
            Target::Collect(kept) => kept,
            Target::Pipe(_) => Vec::new(),
            Target::Held(mut writer, held) => {
                writer.write_now(&held);
                Vec::new()
            }
        }
    }

    /// Where the output was to go, as if nothing had been written.
    pub fn rewind(self) -> sandbox::Stdout {
        match self.target {
            Target::Collect(_) => sandbox::Stdout::Collect,
            Target::Pipe(writer) | Target::Held(writer, _) => sandbox::Stdout::Pipe(writer),
        }
    }

    /// Takes what fits below the limit, and ends the guest if that is not all.
    fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), Stop> {
        let room = self.bytes_max.saturating_sub(self.bytes_total);
        let len = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if len > 0 {
            match &mut self.target {
                Target::Collect(kept) => kept.extend_from_slice(&bytes[..len]),
                Target::Pipe(writer) => {
                    writer
                        .write(&bytes[..len], deadline)
                        .map_err(|error| match error {
                            PipeError::Closed => Stop::Cancelled,
                            PipeError::DeadlinePassed => Stop::TimeLimit,
                        })?
                }
                Target::Held(_, held) => {
                    if self.bytes_total + len as u64 > INLINE_OUTPUT_MAX {
                        return Err(Stop::WouldBlock);
                    }
                    held.extend_from_slice(&bytes[..len]);
                }
            }
            self.bytes_total += len as u64;
        }
        if len < bytes.len() {
            return Err(Stop::OutputLimit);
        }
        Ok(())
    }
}

impl Stderr {
    pub fn new(bytes_max: u64) -> Stderr {
        Stderr {
            kept: Vec::new(),
            bytes_max,
            truncated: false,
        }
    }

    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// What was kept, and whether there was more.
    pub fn into_parts(self) -> (Vec<u8>, bool) {
        (self.kept, self.truncated)
    }

    fn write(&mut self, bytes: &[u8]) {
        let room = self.bytes_max.saturating_sub(self.kept.len() as u64);
        let len = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.kept.extend_from_slice(&bytes[..len]);
        self.truncated |= len < bytes.len();
    }
}

impl Wasi {
    /// Nothing is taken from the input unless all buffers and `read_out` are in memory.
    pub(super) fn fd_read(
        &mut self,
        memory: &mut Memory<'_>,
        fd: u32,
        iovecs: u32,
        iovecs_len: u32,
        read_out: u32,
    ) -> Answer {
        let iovecs = (iovecs, iovecs_len);
        match self.descriptors.get(fd)?.object {
            Object::Stream(Stream::Stdin) => {
                self.with_iovecs(memory, iovecs, read_out, Wasi::read_stdin)?;
                Ok(())
            }
            Object::File { node, position } => {
                self.read_file(memory, fd, (node, position), iovecs, read_out)
            }
            Object::Stream(Stream::Stdout | Stream::Stderr) | Object::Directory { .. } => {
                Err(Errno::Badf.into())
            }
        }
    }

    /// Reads a list of buffers and checks it, and where the number of bytes goes, before `call`
    /// moves any.
    pub(super) fn with_iovecs(
        &mut self,
        memory: &mut Memory<'_>,
        (iovecs, iovecs_len): (u32, u32),
        moved_out: u32,
        call: impl FnOnce(&mut Wasi, &mut Memory<'_>, &[Iovec]) -> Result<u32, Failure>,
    ) -> Result<u32, Failure> {
        let mut list = std::mem::take(&mut self.iovecs);
        let moved = memory
            .read_iovecs(iovecs, iovecs_len, &mut list)
            .and_then(|_| memory.check(moved_out, 4))
            .map_err(Into::into)
            .and_then(|()| call(self, memory, &list));
        self.iovecs = list;
        let moved = moved?;
        memory.write_u32(moved_out, moved)?;
        Ok(moved)
    }

    fn read_stdin(&mut self, memory: &mut Memory<'_>, list: &[Iovec]) -> Result<u32, Failure> {
        if list.iter().any(|iovec| iovec.len > 0) {
            self.await_input()?;
        }
        self.fill(memory, list, |wasi, part| wasi.stdin.read_now(part))
    }

    /// Copies what of a file is still to be read.
    pub(super) fn copy_out(
        &mut self,
        memory: &mut Memory<'_>,
        list: &[Iovec],
        mut rest: &[u8],
    ) -> Result<u32, Failure> {
        self.fill(memory, list, |_, part| {
            let (now, later) = rest.split_at(part.len().min(rest.len()));
            part[..now.len()].copy_from_slice(now);
            rest = later;
            now.len()
        })
    }

    /// Fills buffers, one after the other, until `read_now` has no more.
    fn fill(
        &mut self,
        memory: &mut Memory<'_>,
        list: &[Iovec],
        mut read_now: impl FnMut(&mut Wasi, &mut [u8]) -> usize,
    ) -> Result<u32, Failure> {
        let mut total = 0_u32;
        'buffers: for iovec in list {
            let buffer = memory.slice_mut(iovec.address, iovec.len)?;
            for part in buffer.chunks_mut(CHUNK_BYTES) {
                let len = read_now(self, part);
                total += u32::try_from(len).map_err(|_| Errno::Overflow)?;
                if len < part.len() {
                    break 'buffers;
                }
                if len == CHUNK_BYTES {
                    self.spend(CHUNK_UNITS)?;
                }
            }
        }
        Ok(total)
    }

    /// Waits until there is input, or no more to come. Where the thread must not wait, a pipe is
    /// not even looked into: a guest that has read from it could not be run again.
    fn await_input(&mut self) -> Result<(), Stop> {
        match &self.stdin {
            Stdin::Bytes { .. } => Ok(()),
            Stdin::Pipe(_) if !self.may_block => Err(Stop::WouldBlock),
            Stdin::Pipe(reader) => match reader.wait_until(self.deadline) {
                Ok(Readiness::Bytes(_) | Readiness::Ended) => Ok(()),
                Ok(Readiness::Nothing) => Err(Stop::TimeLimit),
                Err(Cut) => Err(Stop::Cancelled),
            },
        }
    }

    /// What a read of standard input would find, for a guest that asks first.
    pub(super) fn input_readiness(&self) -> Result<Readiness, Stop> {
        if !self.may_block && matches!(self.stdin, Stdin::Pipe(_)) {
            return Err(Stop::WouldBlock);
        }
        self.stdin.readiness().map_err(|Cut| Stop::Cancelled)
    }

    /// Sleeps until there is input, no more to come, or the time has come.
    pub(super) fn sleep_until_input(&self, until: Instant) -> Result<Readiness, Stop> {
        match &self.stdin {
            Stdin::Bytes { .. } => self.input_readiness(),
            Stdin::Pipe(reader) => reader.wait_until(until).map_err(|Cut| Stop::Cancelled),
        }
    }

    /// Lets go of standard input once no descriptor of the guest's leads to it, so that what is
    /// still to come of it need not be kept.
    pub(super) fn release_input(&mut self) {
        if self.may_block && !self.descriptors.lead_to(Stream::Stdin) {
            self.stdin = Stdin::new(sandbox::Stdin::Bytes(Bytes::new()));
        }
    }

    /// Nothing is written unless all buffers and `written_out` are in memory. A write is always
    /// complete, or it ends the guest.
    pub(super) fn fd_write(
        &mut self,
        memory: &mut Memory<'_>,
        fd: u32,
        iovecs: u32,
        iovecs_len: u32,
        written_out: u32,
    ) -> Answer {
        let write = match self.descriptors.get(fd)?.object {
            Object::Stream(Stream::Stdout) => Wasi::write_stdout,
            Object::Stream(Stream::Stderr) => Wasi::write_stderr,
            Object::Stream(Stream::Stdin) | Object::File { .. } | Object::Directory { .. } => {
                return Err(Errno::Badf.into());
            }
        };
        self.with_iovecs(
            memory,
            (iovecs, iovecs_len),
            written_out,
            |wasi, memory, list| {
                let mut total = 0;
                for iovec in list {
                    write(wasi, memory.slice(iovec.address, iovec.len)?)?;
                    // The sum was checked with the list.
                    total += iovec.len;
                }
                Ok(total)
            },
        )?;
        Ok(())
    }

    fn write_stderr(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.stderr.write(bytes);
        Ok(())
    }

    fn write_stdout(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        for part in bytes.chunks(CHUNK_BYTES) {
            self.stdout.write(part, self.deadline)?;
            if part.len() == CHUNK_BYTES {
                self.spend(CHUNK_UNITS)?;
            }
        }
        Ok(())
    }
}
