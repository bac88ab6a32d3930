//! Randomness.

use super::errno::Errno;
use super::memory::Memory;
use super::{Answer, INLINE_OUTPUT_MAX, Stop, Wasi};

/// Random bytes made between two looks at the deadline.
const CHUNK_BYTES: usize = 4096;

/// [`CHUNK_BYTES`] in units of work: a chunk takes the kernel about 10 µs.
const CHUNK_UNITS: u32 = 8;

impl Wasi {
    /// Fills the buffer from the operating system's generator; `EIO` if that fails. A buffer that
    /// is partly outside of memory is not touched.
    ///
    /// The bytes take a detour through a buffer of ours, because the kernel answers `EFAULT` where
    /// it is handed guest pages that are write-protected to track changes.
    pub(super) fn random_get(&mut self, memory: &mut Memory<'_>, address: u32, len: u32) -> Answer {
        let target = memory.slice_mut(address, len)?;
        if !self.may_block && u64::from(len) > INLINE_OUTPUT_MAX {
            return Err(Stop::WouldBlock.into());
        }
        let mut chunk = [0_u8; CHUNK_BYTES];
        for part in target.chunks_mut(CHUNK_BYTES) {
            self.spend(CHUNK_UNITS)?;
            let fresh = &mut chunk[..part.len()];
            getrandom::fill(fresh).map_err(|_| Errno::Io)?;
            part.copy_from_slice(fresh);
        }
        Ok(())
    }
}
