//! A guest's stack where it may have less than others.
//!
//! Wasmer runs guests on stacks that its threads keep from one guest to the next, all made as large as
//! any guest may have, with a guard page at the end. A guest that may have less gets a [`Fence`]: one
//! more page, nearer to the start of the stack, that can't be touched while it runs.

#![expect(
    unsafe_code,
    reason = "protects a page of the stack that Wasmer is going to use"
)]

use std::io;
use std::marker::PhantomData;

use wasmer_vm::{VMConfig, catch_traps, drain_stack_pool};

use super::engine::Prepared;
use super::memory::image::system_page_bytes;

/// How far from the end of a stack a fence must stay, in pages. Where exactly the stack begins is not known:
/// it is taken to be above what runs there first, by less than two pages.
const END_PAGES: u64 = 4;

/// A page of the stack that this thread's next guest runs on, out of reach until this is dropped. Stays
/// on its thread.
#[derive(Debug)]
pub(super) struct Fence {
    /// Its first byte; `None` if the stack has no room for one, and so is no larger than it may be.
    page: Option<usize>,
    on_this_thread: PhantomData<*const ()>,
}

impl Fence {
    /// Leaves the next guest of `module` on this thread no more than `stack_bytes_max`, in whole pages, if
    /// that is at least [`END_PAGES`] less than the module's guests can have.
    pub(super) fn put(module: &Prepared, stack_bytes_max: u64) -> io::Result<Fence> {
        let page_bytes = system_page_bytes() as u64;
        let bytes = stack_bytes_max
            .max(2 * page_bytes)
            .checked_next_multiple_of(page_bytes)
            .unwrap_or(u64::MAX);
        let page = match bytes.saturating_add(END_PAGES * page_bytes) <= module.stack_bytes_max() {
            true => Some(protect(module, bytes)?),
            false => None,
        };
        Ok(Fence {
            page,
            on_this_thread: PhantomData,
        })
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let Some(page) = self.page else { return };
        // SAFETY: the page was made inaccessible by `protect`, and its stack is still this thread's.
        if let Err(error) = unsafe { mprotect(page, libc::PROT_READ | libc::PROT_WRITE) } {
            // The stack is this thread's, and goes with all others that no guest uses.
            drain_stack_pool();
            tracing::warn!(%error, "a guest's stack can't be used again");
        }
    }
}

/// Protects the page that ends the first `bytes` of the stack that this thread's next guest will have.
fn protect(module: &Prepared, bytes: u64) -> io::Result<usize> {
    let config = VMConfig {
        wasm_stack_size: usize::try_from(module.stack_bytes_max()).ok(),
    };
    // A thread takes the stack that it gave back last, as long as that is large enough; so what runs now
    // and asks for the same size as a guest of the module shows which one the guest will have.
    // SAFETY: what is run neither traps nor leaves anything behind.
    let within = unsafe { catch_traps(None, &config, address_on_stack) }
        .map_err(|trap| io::Error::other(format!("{trap:?}")))?;
    let start = within.next_multiple_of(system_page_bytes());
    let page = usize::try_from(bytes)
        .ok()
        .and_then(|below| start.checked_sub(below)?.checked_sub(system_page_bytes()))
        .ok_or_else(|| io::Error::other("the stack is too near to address zero"))?;
    // SAFETY: the stack is this thread's, nothing runs on it, and the page is one of it: the caller has
    // made sure that it stays [`END_PAGES`] from the end.
    unsafe { mprotect(page, libc::PROT_NONE) }?;
    Ok(page)
}

/// An address in the frame of this function.
#[inline(never)]
fn address_on_stack() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

/// # Safety
///
/// The page must be one of a stack that nothing runs on, and not its guard page.
unsafe fn mprotect(page: usize, protection: libc::c_int) -> io::Result<()> {
    let page = std::ptr::with_exposed_provenance_mut(page);
    // SAFETY: passed on to the caller.
    match unsafe { libc::mprotect(page, system_page_bytes(), protection) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::deadline::{self, Sitting};
    use super::super::engine::{Compiler, prepare_with};
    use super::super::guest::{self, Guest, Place, Ran};
    use super::super::{Call, End, GuestLimits, ShareKey, Stdout, Strings};
    use super::*;

    /// Calls itself as often as its input has bytes.
    const DEPTH: &str = r#"(module
        (import "wasi_snapshot_preview1" "fd_read"
            (func $read (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 16)
        (data (i32.const 0) "\10\00\00\00\00\00\0f\00")
        (func $down (param i32) (result i32)
            (if (result i32) (local.get 0)
                (then (i32.add (i32.const 1) (call $down (i32.sub (local.get 0) (i32.const 1)))))
                (else (i32.const 0))))
        (func (export "_start")
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (drop (call $down (i32.load (i32.const 8))))))"#;

    fn end_of(sitting: &Sitting, module: &Arc<Prepared>, depth: usize, stack_kib: u64) -> End {
        let call = Call {
            args: Strings::default(),
            env: Strings::default(),
            stdin: bytes::Bytes::from(vec![0; depth]).into(),
            files: None,
            stdout: Stdout::Collect,
            limits: GuestLimits {
                deadline: Duration::from_secs(60),
                memory_bytes_max: 1 << 20,
                stdout_bytes_max: 0,
                stderr_bytes_max: 0,
                stack_bytes_max: stack_kib << 10,
                table_elements_max: 0,
            },
            share: ShareKey::default(),
        };
        let guest = Guest {
            module: Arc::clone(module),
            call,
            stop: Arc::default(),
            queued: Duration::ZERO,
        };
        match guest::run(sitting, guest, Place::Own, |_| {}) {
            Ran::Ended(outcome, _) => outcome.end,
            Ran::Postponed(..) => panic!("postponed on a thread of its own"),
        }
    }

    /// The deepest recursion that fits.
    fn deepest(sitting: &Sitting, module: &Arc<Prepared>, stack_kib: u64) -> usize {
        let (mut fits, mut too_deep) = (0_usize, 200_000);
        while too_deep - fits > 1 {
            let depth = fits.midpoint(too_deep);
            match end_of(sitting, module, depth, stack_kib) {
                End::Exit(0) => fits = depth,
                End::StackLimit => too_deep = depth,
                other => panic!("{other:?}"),
            }
        }
        fits
    }

    #[test]
    fn each_guest_has_the_stack_it_may_have_whoever_had_the_thread_before() {
        deadline::start().unwrap();
        for compiler in [Compiler::Cranelift, Compiler::Singlepass] {
            let module = prepare_with(DEPTH, compiler);
            let sitting = Sitting::take().unwrap();
            // All of the stack is one MiB here.
            let whole = deepest(&sitting, &module, 1024);
            let frame = (1 << 20) as f64 / whole as f64;
            for kib in [64, 512, 8, 1004, 256] {
                let bytes = deepest(&sitting, &module, kib) as f64 * frame;
                let expected = (kib << 10) as f64;
                // A page for where the stack begins, and what runs there before the guest.
                assert!((bytes - expected).abs() <= 6144.0, "{kib} KiB: {bytes}");
            }
            assert_eq!(deepest(&sitting, &module, 1024), whole);
            // There is no place for a fence so near to the end.
            assert_eq!(deepest(&sitting, &module, 1016), whole);
            assert_eq!(deepest(&sitting, &module, u64::MAX >> 10), whole);
        }
    }
}
