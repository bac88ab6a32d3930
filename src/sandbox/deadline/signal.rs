//! The signal that interrupts a guest. On x86-64 only; elsewhere the guest's code polls.

#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "installs a signal handler that redirects a thread"
    )
)]

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{Thread, install, this_thread};

#[cfg(not(target_arch = "x86_64"))]
pub(super) use polled::{Thread, install, this_thread};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::sync::atomic::Ordering;
    use std::{io, mem, ptr};

    use super::super::SEAT;

    /// A thread that lives while its seat names it.
    #[derive(Debug)]
    pub(in super::super) struct Thread(libc::pthread_t);

    // What a stopped guest executes instead of its own code: `ud1 %edx, %ecx`, an invalid
    // instruction in which Wasmer 7.4 reads trap code 10 (unaligned atomic access: a trap that no
    // guest here can have by itself).
    std::arch::global_asm!(
        ".globl wasm_wizard_guest_stop",
        ".hidden wasm_wizard_guest_stop",
        "wasm_wizard_guest_stop:",
        ".byte 0x0f, 0xb9, 0xca",
        "ud2",
    );

    unsafe extern "C" {
        fn wasm_wizard_guest_stop();
    }

    fn number() -> libc::c_int {
        libc::SIGRTMIN() + 7
    }

    pub(in super::super) fn install() -> io::Result<()> {
        // SAFETY: the structures are plain data, for which zeros are valid, and outlive the calls.
        // The handler is async-signal-safe: see there.
        unsafe {
            let mut previous: libc::sigaction = mem::zeroed();
            if libc::sigaction(number(), ptr::null(), &mut previous) != 0 {
                return Err(io::Error::last_os_error());
            }
            if previous.sa_sigaction != libc::SIG_DFL {
                return Err(io::Error::other(format!("signal {} is taken", number())));
            }
            let mut action: libc::sigaction = mem::zeroed();
            // On the alternate stack, since the guest's may be full; and system calls of host
            // functions go on after it.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            action.sa_sigaction = handle as *const () as usize;
            libc::sigemptyset(&mut action.sa_mask);
            if libc::sigaction(number(), &action, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// The calling thread, ready to receive the signal.
    pub(in super::super) fn this_thread() -> io::Result<Thread> {
        // SAFETY: the set is plain data and outlives the calls.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, number());
            let error = libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            Ok(Thread(libc::pthread_self()))
        }
    }

    impl Thread {
        /// False if the signal could not be sent.
        pub(in super::super) fn send(&self) -> bool {
            // SAFETY: the thread exists: it takes its name out of its seat, under the lock that our
            // caller holds, before it ends.
            unsafe { libc::pthread_kill(self.0, number()) == 0 }
        }
    }

    /// Runs on the guest's thread, at any point of anything: it takes no lock, allocates nothing
    /// and calls nothing.
    unsafe extern "C" fn handle(
        _: libc::c_int,
        _: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        let seat = SEAT.get();
        if seat.is_null() {
            return;
        }
        // SAFETY: seats are never freed.
        let seat = unsafe { &*seat };
        seat.under_way.store(false, Ordering::Release);
        if !seat.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: the kernel hands this context to a handler with SA_SIGINFO, for it to change.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        let instruction = &mut registers[libc::REG_RIP as usize];
        let at = *instruction as usize;
        if at >= seat.code_start.load(Ordering::Relaxed)
            && at < seat.code_end.load(Ordering::Relaxed)
        {
            *instruction = wasm_wizard_guest_stop as *const () as i64;
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod polled {
    use std::io;

    /// Nobody to signal.
    #[derive(Debug)]
    pub(in super::super) struct Thread;

    pub(in super::super) fn install() -> io::Result<()> {
        Ok(())
    }

    pub(in super::super) fn this_thread() -> io::Result<Thread> {
        Ok(Thread)
    }

    impl Thread {
        pub(in super::super) fn send(&self) -> bool {
            false
        }
    }
}
