//! Which threads of the process the kernel runs first.
//!
//! A hundred guests that spin take all processors, and a request must not notice. Two things see to
//! it. Guest threads are as nice as can be (setpriority(2)). And the threads that serve have short
//! slices (sched_setattr(2), `sched_runtime`; Linux 6.12 and later): there, a thread that wakes up
//! takes the processor at once from one with a longer slice, where it would otherwise wait for the
//! end of that slice, several milliseconds, however nice the other is.
//!
//! Nor must a short guest wait for long ones. So a guest thread's slice is hardly longer, until its guest has
//! been there for a while. All guests get the same share of the processors; who wants little gets it sooner.

#![expect(unsafe_code, reason = "calls the kernel's scheduler")]

use std::io;

/// Nice value of guest threads: the others get about 68 times as much of a processor that both want.
const GUEST_NICE: libc::c_int = 19;
/// Slice of the threads that serve: the least that the kernel takes.
const SHORTEST_SLICE_NS: u64 = 100_000;
/// Slice of a guest thread whose guest has just begun.
const SHORT_SLICE_NS: u64 = 200_000;
/// Slice of all others, about what the kernel gives by itself.
const LONG_SLICE_NS: u64 = 3_000_000;
// A thread that wakes up takes the processor at once only from one with a longer slice.
const _: () = assert!(SHORTEST_SLICE_NS < SHORT_SLICE_NS && SHORT_SLICE_NS < LONG_SLICE_NS);

/// The calling thread, to the system calls of the scheduler.
const THIS_THREAD: libc::pid_t = 0;

/// `struct sched_attr` of linux/sched/types.h, as far as it went at first.
#[repr(C)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Has the calling thread, and those that it starts, run as soon as they wake up. To be called
/// before the program has a second thread.
pub fn serve_promptly() {
    set_slice(THIS_THREAD, SHORTEST_SLICE_NS);
}

/// Takes back [`serve_promptly`] where it was inherited.
pub(super) fn take_turns() {
    set_slice(THIS_THREAD, LONG_SLICE_NS);
}

/// The calling thread is about to run a guest, or to wait for one.
pub(super) fn begin_anew() {
    set_slice(THIS_THREAD, SHORT_SLICE_NS);
}

/// The guest of this thread of the process has been there for a while.
pub(super) fn settle(thread: libc::pid_t) {
    set_slice(thread, LONG_SLICE_NS);
}

/// Makes the calling thread, which is to run guests, give way to all others of the process that want to run.
pub(super) fn yield_to_others() {
    begin_anew();
    // SAFETY: the call takes no pointer; zero is the calling thread (as Linux has it).
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, GUEST_NICE) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "guests run with the priority of all other threads");
    }
}

/// Older kernels look at the numbers and keep their own slices, which is as it was before.
fn set_slice(thread: libc::pid_t, nanoseconds: u64) {
    // SAFETY: the calls take no pointers.
    let (policy, nice) = unsafe {
        (
            libc::sched_getscheduler(thread),
            libc::getpriority(libc::PRIO_PROCESS, thread.cast_unsigned()),
        )
    };
    // A policy that an operator chose for the process is theirs.
    if policy != libc::SCHED_OTHER {
        return;
    }
    let attributes = SchedulingAttributes {
        size: size_of::<SchedulingAttributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: nanoseconds,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the structure outlives the call, and says how long it is. A refusal changes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            thread,
            std::ptr::from_ref(&attributes),
            0,
        );
    }
}

/// The slice of a thread; zero where the kernel has none of a thread's own.
#[cfg(test)]
pub(super) fn slice(thread: libc::pid_t) -> u64 {
    let mut attributes = SchedulingAttributes {
        size: 0,
        policy: 0,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime: 0,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the structure outlives the call, which is told its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            thread,
            std::ptr::from_mut(&mut attributes),
            size_of::<SchedulingAttributes>(),
            0,
        )
    };
    assert_eq!(result, 0);
    attributes.runtime
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_inherit_promptness_and_guests_yield() {
        let nice = std::thread::spawn(|| {
            serve_promptly();
            std::thread::spawn(|| {
                yield_to_others();
                // SAFETY: the call takes no pointer.
                unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
            })
            .join()
            .unwrap()
        });
        assert_eq!(nice.join().unwrap(), GUEST_NICE);
    }

    /// Where the kernel has slices of a thread's own, it tells them.
    #[test]
    fn a_slice_is_what_was_asked_for() {
        std::thread::spawn(|| {
            serve_promptly();
            let short = slice(THIS_THREAD);
            take_turns();
            let long = slice(THIS_THREAD);
            // A kernel without them gives none.
            assert!(
                [(0, 0), (SHORTEST_SLICE_NS, LONG_SLICE_NS)].contains(&(short, long)),
                "{short} {long}"
            );
        })
        .join()
        .unwrap();
    }
}
