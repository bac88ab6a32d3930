//! How the C library's allocator treats large blocks.

#![expect(unsafe_code, reason = "calls the C library's mallopt")]

/// Blocks of this size, in bytes, and more are mapped one by one, and unmapped when they are freed.
const MAPPED_BYTES: libc::c_int = 512 << 10;
/// What may lie free at the end of a heap before it is given back, in bytes.
const KEPT_BYTES: libc::c_int = 4 << 20;

/// Has memory of large modules, bodies and artifacts go back to the system when it is freed.
///
/// The GNU C library takes the first large block that is freed as a reason to map none of that size
/// any more (mallopt(3), `M_MMAP_THRESHOLD`): from then on they lie among small ones, and a gateway
/// under attack by large modules grew by 30 MiB for each dozen. Set once, the threshold stays. To be
/// called before the program has a second thread.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator under its own lock. A thread that allocates meanwhile
    // sees the old or the new ones, and both are valid. If it refuses, nothing has changed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = (MAPPED_BYTES, KEPT_BYTES);
}
