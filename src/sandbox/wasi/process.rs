//! The end of the guest, and what little there is of scheduling.

use super::errno::Errno;
use super::memory::Memory;
use super::{Answer, Stop, Wasi};

impl Wasi {
    /// Nobody else runs in the guest; each call counts as work, so a guest that spins on it still
    /// meets its deadline.
    pub(super) fn sched_yield(&mut self, _memory: &mut Memory<'_>) -> Answer {
        Ok(())
    }

    /// There are no signals.
    pub(super) fn proc_raise(&mut self, _memory: &mut Memory<'_>, _signal: u32) -> Answer {
        Err(Errno::Nosys.into())
    }
}

/// Ends the guest. The code is the guest's `u32` read as C's `int`, so −1 stays −1.
pub(super) fn exit(code: u32) -> Stop {
    Stop::Exit(code.cast_signed())
}
