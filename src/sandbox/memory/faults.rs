//! Whether a thread had page faults while a guest ran on it.
//!
//! A page becomes a guest's own by a fault, which the kernel counts for the thread that had it
//! (`ru_minflt` and `ru_majflt` of getrusage(2)). A guest that ran without any has therefore written
//! to nothing but pages that were its slot's own before, and those need not be looked for again.
//! Asking for the count is several times cheaper than looking through a page table.

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// The page faults of the calling thread up to some moment, which may have passed when this is
/// made. Stays on its thread.
#[derive(Debug, Clone, Copy)]
pub(in crate::sandbox) struct Faults {
    count: Option<u64>,
    on_this_thread: PhantomData<*const ()>,
}

/// What a thread remembers from one guest to the next.
#[derive(Debug, Clone, Copy)]
struct Last {
    count: Option<u64>,
    /// There was none for a whole guest and since the one before. If so, the next is likely to have
    /// none either, and need not count at its start.
    calm: bool,
}

thread_local! {
    static LAST: Cell<Last> = const { Cell::new(Last { count: None, calm: true }) };
}

impl Faults {
    /// For a guest that starts on this thread now, or a moment later.
    pub(in crate::sandbox) fn so_far() -> Faults {
        let last = LAST.get();
        let count = if last.calm { last.count } else { count() };
        Faults {
            count,
            on_this_thread: PhantomData,
        }
    }

    /// Nothing is known, as where the guest ran on another thread.
    pub(super) fn unknown() -> Faults {
        Faults {
            count: None,
            on_this_thread: PhantomData,
        }
    }

    /// Whether this thread has had none since.
    pub(super) fn none_since(self) -> bool {
        let now = count();
        let calm = now.is_some() && now == LAST.get().count;
        LAST.set(Last { count: now, calm });
        now.is_some() && now == self.count
    }
}

/// Page faults of the calling thread since it began.
pub(super) fn count() -> Option<u64> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes to the structure it is given, which outlives it; zeros are a valid
    // one, whatever it writes.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    let (minor, major) = (
        u64::try_from(usage.ru_minflt).ok()?,
        u64::try_from(usage.ru_majflt).ok()?,
    );
    minor.checked_add(major)
}
