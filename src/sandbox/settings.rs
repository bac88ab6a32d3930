//! What an operator may set about the sandbox, and what one guest may use.

use std::path::PathBuf;
use std::time::Duration;

use super::artifacts::ArtifactKey;

/// Settings of the whole sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Largest module accepted, in bytes of WebAssembly binary.
    pub wasm_bytes_max: u64,
    /// Guests that run at the same time, each on a thread of its own. (Short ones run on the threads
    /// that ask for them, and do not count.)
    pub guests_max: usize,
    /// Of these, guests that count for the same [`super::ShareKey`].
    pub guests_per_share_max: usize,
    /// Instances kept ready between two guests, of all modules together.
    pub warm_max: usize,
    /// Guests that may wait for a thread; when there are more, the newest of the share with the most
    /// is refused.
    pub queue_max: usize,
    /// Longest time a guest waits for a thread before it is refused.
    pub queue_timeout: Duration,
    /// The largest native stack that any guest may have, in bytes: what [`GuestLimits`] give is never
    /// more. At least 8 KiB is given.
    pub stack_bytes_max: u64,
    /// The most elements that any guest's table may have: what has more at the start is no module we
    /// accept, and what [`GuestLimits`] give is never more.
    pub table_elements_max: u32,
    /// Memory that prepared modules may hold together, in bytes: machine code and what belongs to
    /// it. A module that would need all of it alone is refused.
    pub cache_bytes_max: u64,
    pub compile: CompileSettings,
    /// Where compiled modules are kept on disk; `None` keeps none.
    pub artifacts: Option<ArtifactSettings>,
}

/// Compiled modules on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtifactSettings {
    /// A folder of its own; made if it is missing. Several gateways may share it.
    pub directory: PathBuf,
    /// What the files may take together, in bytes.
    pub bytes_max: u64,
    /// The key that authenticates them; without one, the folder has its own.
    pub key: Option<ArtifactKey>,
}

/// Bounds of the child process that compiles untrusted bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct CompileSettings {
    /// The program started as `PROGRAM compile-worker`: this executable, by an absolute path.
    pub worker: PathBuf,
    /// Compiles at the same time. If more than one, one of them is kept for Singlepass.
    pub workers_max: usize,
    /// Workers kept ready for the next compiles.
    pub workers_spare: usize,
    /// Compiles that may wait; one more is refused with [`super::ModuleError::Busy`].
    pub queue_max: usize,
    /// Longest time a compile waits for a worker before it is refused.
    pub queue_timeout: Duration,
    /// Whether Singlepass compiles what is wanted soon, where it is safe.
    pub singlepass: bool,
    /// Wall-clock time of one compile.
    pub timeout: Duration,
    /// Address space of the child, in bytes; a compile of one MiB takes some hundred MiB.
    pub memory_bytes_max: u64,
}

/// What one guest may use. Going over ends it with the matching [`super::End`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestLimits {
    /// Wall-clock time from the first instruction, start section included.
    pub deadline: Duration,
    /// Linear memory, at start and after growth.
    pub memory_bytes_max: u64,
    /// Standard output in all.
    pub stdout_bytes_max: u64,
    /// Standard error kept; what is written beyond it is dropped.
    pub stderr_bytes_max: u64,
    /// Native stack, in whole pages of 4 KiB. One that is smaller than [`Settings::stack_bytes_max`]
    /// costs two system calls for each guest.
    pub stack_bytes_max: u64,
    /// Elements of all tables at the start, and of each after growth.
    pub table_elements_max: u32,
}

impl Settings {
    /// What the check of a module is to hold.
    pub(super) fn check_limits(&self) -> super::check::Limits {
        super::check::Limits {
            wasm_bytes_max: self.wasm_bytes_max,
            table_elements_max: self.table_elements_max,
        }
    }

    /// The same for one command that ends soon: nothing is kept ready, and nothing is left on the disk
    /// of whoever runs it.
    #[must_use]
    pub fn for_one_command(mut self) -> Settings {
        self.compile.workers_spare = 0;
        self.artifacts = None;
        self
    }
}

impl GuestLimits {
    /// The tighter of two limits, one by one.
    pub fn min(self, other: GuestLimits) -> GuestLimits {
        GuestLimits {
            deadline: self.deadline.min(other.deadline),
            memory_bytes_max: self.memory_bytes_max.min(other.memory_bytes_max),
            stdout_bytes_max: self.stdout_bytes_max.min(other.stdout_bytes_max),
            stderr_bytes_max: self.stderr_bytes_max.min(other.stderr_bytes_max),
            stack_bytes_max: self.stack_bytes_max.min(other.stack_bytes_max),
            table_elements_max: self.table_elements_max.min(other.table_elements_max),
        }
    }
}
