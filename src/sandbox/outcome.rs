//! How a guest ended and what it used.

use std::time::Duration;

/// The end of one guest, with its output so far.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub end: End,
    /// Empty when the output went to a pipe.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub stderr_truncated: bool,
    pub usage: Usage,
}

/// Why a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It returned (code 0) or called `proc_exit`.
    Exit(i32),
    /// It trapped: unreachable, out of bounds, division by zero … The text is safe to show to the
    /// client.
    Trap(String),
    /// Its wall-clock deadline passed.
    TimeLimit,
    /// It wanted more memory than it may have, and failed of it.
    MemoryLimit,
    /// Its calls went deeper than its stack.
    StackLimit,
    /// It wanted more table elements than it may have, and failed of it.
    TableLimit,
    /// It wrote more standard output than it may.
    OutputLimit,
    /// Nobody waits for the answer any more.
    Cancelled,
    /// Our own failure; the text is for the log, not for a client.
    HostError(String),
}

/// What a guest used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// From the first instruction to the end.
    pub wall: Duration,
    /// CPU time of the guest's thread.
    pub cpu: Duration,
    /// Time spent waiting for a guest thread.
    pub queued: Duration,
    /// Largest size of linear memory.
    pub memory_peak_bytes: u64,
    pub stdout_bytes: u64,
}

impl End {
    /// A guest that exits 0, or simply returns, is a success.
    pub fn is_success(&self) -> bool {
        matches!(self, End::Exit(0))
    }

    /// The status as it stands in usage records and metrics.
    pub fn status(&self) -> &'static str {
        match self {
            End::Exit(0) => "success",
            End::Exit(_) | End::Trap(_) | End::HostError(_) => "execution_error",
            End::TimeLimit => "time_limit_exceeded",
            End::MemoryLimit => "memory_limit_exceeded",
            End::StackLimit => "stack_limit_exceeded",
            End::TableLimit => "table_limit_exceeded",
            End::OutputLimit => "output_limit_exceeded",
            End::Cancelled => "cancelled",
        }
    }
}
