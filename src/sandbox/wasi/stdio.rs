//! Standard input, output and error.

use std::time::Instant;

use bytes::Bytes;

use super::descriptors::Stream;
use super::errno::Errno;
use super::memory::{Iovec, Memory};
use super::{Answer, Stop, Wasi};
use crate::sandbox;
use crate::sandbox::pipe::PipeError;

/// Bytes moved between two looks at the stop signal.
const CHUNK_BYTES: usize = 64 * 1024;

/// [`CHUNK_BYTES`] in units of work.
const CHUNK_UNITS: u32 = 64;

/// All of standard input, and how far the guest has read.
pub(super) struct Stdin {
    rest: Bytes,
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
}

impl Stdin {
    pub fn new(bytes: Bytes) -> Stdin {
        Stdin { rest: bytes }
    }

    pub fn bytes_left(&self) -> usize {
        self.rest.len()
    }

    /// Fills the buffer as far as the input goes; returns how many bytes that is.
    fn read(&mut self, buffer: &mut [u8]) -> usize {
        let len = buffer.len().min(self.rest.len());
        buffer[..len].copy_from_slice(&self.rest.split_to(len));
        len
    }
}

impl Stdout {
    pub fn new(stdout: sandbox::Stdout, bytes_max: u64) -> Stdout {
        let target = match stdout {
            sandbox::Stdout::Collect => Target::Collect(Vec::new()),
            sandbox::Stdout::Pipe(writer) => Target::Pipe(writer),
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

    pub fn into_collected(self) -> Vec<u8> {
        match self.target {
            Target::Collect(kept) => kept,
            Target::Pipe(_) => Vec::new(),
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
        match self.descriptors.stream(fd)? {
            Stream::Stdin => {}
            Stream::Stdout | Stream::Stderr => return Err(Errno::Badf.into()),
        }
        let mut list = std::mem::take(&mut self.iovecs);
        let answer = memory
            .read_iovecs(iovecs, iovecs_len, &mut list)
            .and_then(|_| memory.check(read_out, 4))
            .map_err(Into::into)
            .and_then(|()| self.fill(memory, &list, read_out));
        self.iovecs = list;
        answer
    }

    fn fill(&mut self, memory: &mut Memory<'_>, list: &[Iovec], read_out: u32) -> Answer {
        let mut total = 0_u32;
        for iovec in list {
            if self.stdin.bytes_left() == 0 {
                break;
            }
            let buffer = memory.slice_mut(iovec.address, iovec.len)?;
            for part in buffer.chunks_mut(CHUNK_BYTES) {
                let len = self.stdin.read(part);
                total += u32::try_from(len).map_err(|_| Errno::Overflow)?;
                if len < part.len() {
                    break;
                }
                if len == CHUNK_BYTES {
                    self.spend(CHUNK_UNITS)?;
                }
            }
        }
        memory.write_u32(read_out, total)?;
        Ok(())
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
        let stream = self.descriptors.stream(fd)?;
        if stream == Stream::Stdin {
            return Err(Errno::Badf.into());
        }
        let mut list = std::mem::take(&mut self.iovecs);
        let answer = memory
            .read_iovecs(iovecs, iovecs_len, &mut list)
            .and_then(|total| memory.check(written_out, 4).map(|()| total))
            .map_err(Into::into)
            .and_then(|total| {
                self.drain(memory, stream, &list)?;
                Ok(memory.write_u32(written_out, total)?)
            });
        self.iovecs = list;
        answer
    }

    fn drain(&mut self, memory: &Memory<'_>, stream: Stream, list: &[Iovec]) -> Answer {
        for iovec in list {
            let bytes = memory.slice(iovec.address, iovec.len)?;
            match stream {
                Stream::Stdin => return Err(Errno::Badf.into()),
                Stream::Stdout => self.write_stdout(bytes)?,
                Stream::Stderr => self.stderr.write(bytes),
            }
        }
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
