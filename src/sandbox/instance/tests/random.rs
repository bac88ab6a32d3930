//! Random guests: whatever one does, the next one finds what a brand-new instance has, byte for
//! byte. `RESET_SEEDS` says how many, `RESET_SEED_FIRST` where to start; a failure names its seed.

mod modules;
mod scripted;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::sandbox::deadline::Sitting;
use crate::sandbox::engine::Prepared;
use crate::sandbox::guest::{self, Guest, Place, Ran};
use crate::sandbox::memory::{MemoryPool, dirty};
use crate::sandbox::{Call, Files, GuestLimits, Outcome, ShareKey, Stdout, Strings};

const LONG: Duration = Duration::from_secs(60);

fn seeds(by_default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("RESET_SEED_FIRST").unwrap_or(1);
    first..first + number("RESET_SEEDS").unwrap_or(by_default)
}

/// Numbers that look random and are the same each time (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Where guests get their memory: as on this kernel, and as on one that does not tell which pages were
/// written to. There are few places, so that memory goes from one module to another.
fn memories() -> [MemoryPool; 2] {
    [dirty::is_tracked(), false].map(|tracked| MemoryPool::new(2, tracked))
}

fn run(
    sitting: &Sitting,
    module: &Arc<Prepared>,
    (stdin, files): (&[u8], Option<&Arc<Files>>),
    deadline: Duration,
) -> Outcome {
    let guest = Guest {
        module: Arc::clone(module),
        call: Call {
            args: Strings::arguments(["guest"]),
            env: Strings::variables([("NAME", "value")]),
            stdin: Bytes::copy_from_slice(stdin).into(),
            stdout: Stdout::Collect,
            files: files.cloned(),
            limits: GuestLimits {
                deadline,
                memory_bytes_max: 16 << 20,
                stdout_bytes_max: 1 << 16,
                stderr_bytes_max: 1 << 10,
                stack_bytes_max: 1 << 20,
                table_elements_max: 100_000,
            },
            share: ShareKey::default(),
        },
        stop: Arc::default(),
        queued: Duration::ZERO,
    };
    match guest::run(sitting, guest, Place::Own, |_| {}) {
        Ran::Ended(outcome, _) => outcome,
        Ran::Postponed(..) => panic!("a thread of its own is not lent"),
    }
}
