//! Clocks: wall time, and time since the guest began.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::errno::Errno;
use super::memory::Memory;
use super::{Answer, Wasi};

/// Both clocks tick in steps of this: fine enough to measure with, too coarse to time a cache line.
pub(super) const RESOLUTION_NS: u64 = 1_000;

/// What the monotonic clock shows when the guest begins. It tells nothing of the host's uptime, and
/// is not 0, which some runtimes take for "no time yet".
const MONOTONIC_START_NS: u64 = 1_000_000_000;

/// `clockid` of the clocks we have. The two CPU-time clocks (2 and 3) are not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    Realtime,
    Monotonic,
}

/// Where the monotonic clock counts from.
pub(super) struct Clocks {
    start: Instant,
}

impl Clock {
    /// `ENOTSUP` for the CPU-time clocks, `EINVAL` for what is no clock.
    pub fn from_id(id: u32) -> Result<Clock, Errno> {
        match id {
            0 => Ok(Clock::Realtime),
            1 => Ok(Clock::Monotonic),
            2 | 3 => Err(Errno::Notsup),
            _ => Err(Errno::Inval),
        }
    }
}

impl Clocks {
    pub fn start(now: Instant) -> Clocks {
        Clocks { start: now }
    }

    pub fn started(&self) -> Instant {
        self.start
    }

    /// Nanoseconds on a clock, in steps of [`RESOLUTION_NS`].
    pub fn now_ns(&self, clock: Clock) -> u64 {
        let ns = match clock {
            // A host clock before 1970 reads as 1970.
            Clock::Realtime => nanoseconds(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default(),
            ),
            Clock::Monotonic => {
                MONOTONIC_START_NS.saturating_add(nanoseconds(self.start.elapsed()))
            }
        };
        ns - ns % RESOLUTION_NS
    }
}

impl Wasi {
    pub(super) fn clock_res_get(&mut self, memory: &mut Memory<'_>, id: u32, out: u32) -> Answer {
        Clock::from_id(id)?;
        memory.write_u64(out, RESOLUTION_NS)?;
        Ok(())
    }

    /// The precision asked for can only be a wish: the clocks have one resolution.
    pub(super) fn clock_time_get(
        &mut self,
        memory: &mut Memory<'_>,
        id: u32,
        _precision_ns: u64,
        out: u32,
    ) -> Answer {
        let clock = Clock::from_id(id)?;
        memory.write_u64(out, self.clocks.now_ns(clock))?;
        Ok(())
    }
}

/// 2⁶⁴ nanoseconds are 584 years; later times stay there.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
