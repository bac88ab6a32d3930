//! WASI preview 1 of our own: stdio, clocks, randomness, arguments, environment, and a read-only
//! tree of files. Nothing else is there.
//!
//! The functions work on a plain byte slice ([`memory::Memory`]) and know no engine; [`link`] is
//! the only file here that knows Wasmer. Names, layouts and error numbers are those of the
//! `wasi_snapshot_preview1` witx documents. Descriptors 0 to 2 are the standard streams; 3 is the
//! root of the file tree, where there is one, and the only way to any other descriptor. There are no
//! sockets. Functions that would change a file or directory answer with an error number.
//!
//! A guest is hostile: every pointer and length is checked against its memory before anything is
//! done, work per call is bounded, and a call that waits or loops looks at the stop signal and the
//! deadline.

mod clock;
mod descriptors;
mod errno;
mod files;
pub(super) mod link;
mod memory;
mod path;
mod poll;
mod process;
mod random;
mod stat;
mod stdio;
mod strings;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use super::{self as sandbox, Files, Stdout, StopSignal, Strings};
use clock::Clocks;
use descriptors::Descriptors;
use errno::Errno;
use memory::Iovec;
use stdio::{Stderr, Stdin, Stdout as StdoutSink};

/// Units of work (calls, and KiB moved) between two looks at the clock. A unit costs 20 µs at the
/// very most, so a guest that does nothing but call the host ends within milliseconds of its
/// deadline even if nobody interrupts it, and the ~25 ns of a clock reading vanish.
const WORK_UNITS_PER_CHECK: u32 = 128;

/// Most standard output that a guest may send to a pipe, and most randomness that it may ask for in
/// one call, while it runs on a thread that must not wait. More ends it with [`Stop::WouldBlock`].
pub(super) const INLINE_OUTPUT_MAX: u64 = 64 * 1024;

/// What one guest gets from its host.
pub(super) struct Config {
    /// `argv`.
    pub args: Strings,
    /// Environment variables.
    pub env: Strings,
    pub stdin: sandbox::Stdin,
    /// What the guest finds as `/`.
    pub files: Option<Arc<Files>>,
    pub stdout: Stdout,
    /// More standard output than this ends the guest with [`Stop::OutputLimit`].
    pub stdout_bytes_max: u64,
    /// Standard error kept; what is written beyond it is dropped.
    pub stderr_bytes_max: u64,
    /// Where its monotonic clock begins.
    pub started: Instant,
    /// When the guest must have ended. No call waits or works for longer.
    pub deadline: Instant,
    /// Tells waiting calls that nobody wants the answer any more.
    pub stop: Arc<StopSignal>,
    /// Whether the thread may wait. If not, a call that would have to ends the guest with
    /// [`Stop::WouldBlock`], and nothing that the guest writes leaves before [`Wasi::finish`], so
    /// that it can be run again from the start with what [`Wasi::rewind`] gives back.
    pub may_block: bool,
}

/// What a guest wrote.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Output {
    /// Empty when standard output went to a pipe.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Whether more was written to standard error than was kept.
    pub stderr_truncated: bool,
    /// Bytes of standard output, kept or piped.
    pub stdout_bytes: u64,
}

/// What a host function throws to end the guest (as a wasmer user error).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Stop {
    #[error("the guest exited with code {0}")]
    Exit(i32),
    #[error("the guest's deadline passed")]
    TimeLimit,
    #[error("the guest wrote more standard output than it may")]
    OutputLimit,
    #[error("nobody waits for the guest any more")]
    Cancelled,
    #[error("the guest would have to wait, which its thread must not")]
    WouldBlock,
}

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq)]
enum Failure {
    /// The guest is told and goes on.
    Errno(Errno),
    /// The guest ends here.
    Stop(Stop),
}

/// The answer of a WASI function: success, or an error number, or the guest's end.
type Answer = Result<(), Failure>;

/// The WASI state of one guest.
pub(super) struct Wasi {
    args: Strings,
    env: Strings,
    stdin: Stdin,
    stdout: StdoutSink,
    stderr: Stderr,
    files: Option<Arc<Files>>,
    descriptors: Descriptors,
    clocks: Clocks,
    deadline: Instant,
    stop: Arc<StopSignal>,
    may_block: bool,
    work_units: u32,
    /// Room for one call's buffer list, kept so that calls do not allocate.
    iovecs: Vec<Iovec>,
}

impl Wasi {
    pub fn new(config: Config) -> Wasi {
        Wasi {
            args: config.args,
            env: config.env,
            stdin: Stdin::new(config.stdin),
            stdout: StdoutSink::new(config.stdout, config.stdout_bytes_max, config.may_block),
            stderr: Stderr::new(config.stderr_bytes_max),
            descriptors: Descriptors::new(config.files.as_deref().map(Files::root)),
            files: config.files,
            clocks: Clocks::start(config.started),
            deadline: config.deadline,
            stop: config.stop,
            may_block: config.may_block,
            work_units: 0,
            iovecs: Vec::new(),
        }
    }

    /// The output so far. If there is a pipe, it gets what was held back from it, and is closed.
    pub fn finish(self) -> Output {
        let stdout_bytes = self.stdout.bytes_total();
        let (stderr, stderr_truncated) = self.stderr.into_parts();
        Output {
            stdout: self.stdout.finish(),
            stderr,
            stderr_truncated,
            stdout_bytes,
        }
    }

    /// What the guest was started with, to run it again from the start.
    /// Only for a guest that might not: of it nothing has left yet.
    pub fn rewind(self) -> Config {
        Config {
            args: self.args,
            env: self.env,
            stdin: self.stdin.rewind(),
            files: self.files,
            stdout_bytes_max: self.stdout.bytes_max(),
            stdout: self.stdout.rewind(),
            stderr_bytes_max: self.stderr.bytes_max(),
            started: self.clocks.started(),
            deadline: self.deadline,
            stop: self.stop,
            may_block: true,
        }
    }

    /// Looks at the stop signal, and at the clock once enough work has been done since the last
    /// look. Every host call comes through here with at least one unit.
    fn spend(&mut self, units: u32) -> Result<(), Stop> {
        if self.stop.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        self.work_units = self.work_units.saturating_add(units);
        if self.work_units < WORK_UNITS_PER_CHECK {
            return Ok(());
        }
        self.work_units = 0;
        if Instant::now() >= self.deadline {
            return Err(Stop::TimeLimit);
        }
        Ok(())
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Errno(errno)
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Failure {
        Failure::Stop(stop)
    }
}
