//! Who allocates memory, and how large blocks are treated.
//!
//! The gateway takes mimalloc: proxying allocates some dozens of blocks per request, which costs it half as
//! much as with the C library's allocator. A compile worker, which lives for one job, takes an
//! [arena], which can be given its memory before the job comes.

#![expect(
    unsafe_code,
    reason = "is an allocator, and calls the C library's mallopt"
)]

mod arena;

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering};

use libmimalloc_sys as mimalloc;

use self::arena::Arena;

/// The variable that makes a process take the arena.
pub(super) const ARENA: &CStr = c"WASM_WIZARD_ARENA";

/// The program's allocator; see the module's documentation.
pub struct Allocator;

static WHICH: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const MIMALLOC: u8 = 1;
const ARENA_TAKEN: u8 = 2;

/// Which one this process takes. Always the same: nothing in the process changes its environment.
fn takes_arena() -> bool {
    match WHICH.load(Ordering::Relaxed) {
        UNKNOWN => {
            // SAFETY: a string that ends in NUL. The first allocation of a process comes before its
            // second thread, so nobody changes the environment meanwhile.
            let asked = unsafe { libc::getenv(ARENA.as_ptr()) };
            let which = if asked.is_null() {
                MIMALLOC
            } else {
                ARENA_TAKEN
            };
            WHICH.store(which, Ordering::Relaxed);
            which == ARENA_TAKEN
        }
        which => which == ARENA_TAKEN,
    }
}

/// Whether a block of this layout is aligned enough without saying so: mimalloc aligns blocks of 16 bytes
/// and more to 16 (`MI_MAX_ALIGN_SIZE`), and smaller ones, which are of 8 bytes, to those. Where an alignment
/// is asked for, it takes longer ways, and for most blocks over 1 KiB larger blocks.
fn is_aligned_anyway(layout: Layout) -> bool {
    layout.align() <= 16 && layout.align() <= layout.size()
}

// SAFETY: each call is passed on as it is, and all of a process to the same allocator, so that what one
// has given is given back to that one. mimalloc's `free` and `realloc` take blocks of any of its calls; what
// `realloc_aligned` gives is aligned as asked.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that are asked for. So below.
        unsafe {
            if takes_arena() {
                Arena.alloc(layout)
            } else if is_aligned_anyway(layout) {
                mimalloc::mi_malloc(layout.size()).cast()
            } else {
                mimalloc::mi_malloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            if takes_arena() {
                Arena.alloc_zeroed(layout)
            } else if is_aligned_anyway(layout) {
                mimalloc::mi_zalloc(layout.size()).cast()
            } else {
                mimalloc::mi_zalloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe {
            if takes_arena() {
                Arena.dealloc(block, layout);
            } else {
                mimalloc::mi_free(block.cast());
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            if takes_arena() {
                Arena.realloc(block, layout, bytes)
            } else {
                mimalloc::mi_realloc_aligned(block.cast(), bytes, layout.align()).cast()
            }
        }
    }
}

/// Sizes of blocks that a request takes for a moment, in bytes: mimalloc's classes between these bounds.
const MOMENTARY_FROM: usize = 1024;
const MOMENTARY_TO: usize = 16 * 1024;

/// Has the calling thread keep the memory of momentary blocks at hand.
///
/// mimalloc gives a page of blocks back once none of them is in use, and fetches one for the next. A thread
/// that serves one request at a time has nearly all its larger blocks free between two of them, and would
/// do so for each of the sizes, request by request. One block of each keeps the pages.
pub fn keep_pages_at_hand() {
    thread_local! {
        static KEPT: Vec<Vec<u8>> = momentary_sizes().map(Vec::with_capacity).collect();
    }
    // At the thread's end there is nothing to keep.
    let _ = KEPT.try_with(|kept| std::hint::black_box(kept.len()));
}

/// Four in each doubling.
fn momentary_sizes() -> impl Iterator<Item = usize> {
    let doublings = std::iter::successors(Some(MOMENTARY_FROM), |size| Some(size * 2));
    let doublings = doublings.take_while(|size| *size < MOMENTARY_TO);
    doublings
        .flat_map(|size| (0..4).map(move |quarter| size + size / 4 * quarter))
        .chain([MOMENTARY_TO])
}

/// Blocks of this size, in bytes, and more are mapped one by one, and unmapped when they are freed.
const MAPPED_BYTES: libc::c_int = 512 << 10;
/// What may lie free at the end of a heap before it is given back, in bytes.
const KEPT_BYTES: libc::c_int = 4 << 20;

/// Has memory of large modules, bodies and artifacts go back to the system when it is freed, where the C
/// library allocates it.
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

/// Chunks of the arena that a compile worker has ready: about what small blocks take when Singlepass
/// compiles half a MiB on two threads.
const CHUNKS: usize = 20;
/// Heaps of the C library's, for large blocks.
const HEAPS: libc::c_int = 2;
/// What the heap of the main thread has ready, in bytes: the module, and its artifact in two pieces and while it
/// grows.
const FIRST_BYTES: usize = 6 << 20;
/// What that of the other threads has ready, in bytes: functions of some size.
const SECOND_BYTES: usize = 1 << 20;
/// A block that large is not kept when it is freed, as long as nothing else is said.
const SHRINKING_BYTES: usize = 1 << 20;
/// Blocks up to this size come from the heaps.
const UNMAPPED_BYTES: libc::c_int = 32 << 20;

/// Has the threads of this process, and of those forked from it, share two of the C library's heaps, which keep
/// what they have. To be called before the process has a second thread.
///
/// A further heap of the GNU C library asks a file in /proc, when it shrinks for the first time,
/// whether it may. A contained process can't open one; so it happens here.
pub(super) fn prepare_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, UNMAPPED_BYTES);
        on_second_heap(|| drop(std::hint::black_box(vec![1_u8; SHRINKING_BYTES])));
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Memory of a process that lives for one job: what the arena and both heaps take it from, but for
/// what the kernel has not given yet.
pub(super) struct Ready {
    ranges: [(*mut u8, usize); 3],
}

/// What is asked of the kernel at a time, in bytes.
const PIECE_BYTES: usize = 256 << 10;

impl Ready {
    /// # Safety
    ///
    /// The process has one thread.
    pub(super) unsafe fn reserve() -> Ready {
        // SAFETY: the caller's promise.
        let arena = unsafe { arena::begin_anew(CHUNKS) };
        let first = enlarge_heap(FIRST_BYTES);
        let second = on_second_heap(|| Reserved(enlarge_heap(SECOND_BYTES)));
        let second = second.map_or((std::ptr::null_mut(), 0), |second| second.0);
        Ready {
            ranges: [arena, first, second],
        }
    }

    /// Has the kernel give another piece of each, which costs less than a page fault for each page of it when it
    /// is used. False if there is nothing left.
    pub(super) fn fetch(&mut self) -> bool {
        for (at, left) in &mut self.ranges {
            let piece = (*left).min(PIECE_BYTES);
            // SAFETY: all that the call does to a page, whoever has it, is
            // what a write of what is there already would; where the kernel does not know it (before 5.14),
            // the pages come when they are used.
            unsafe { libc::madvise(at.cast(), piece, libc::MADV_POPULATE_WRITE) };
            *at = at.wrapping_add(piece);
            *left -= piece;
        }
        self.ranges.iter().any(|(_, left)| *left > 0)
    }
}

/// A part of a heap that another thread made larger.
struct Reserved((*mut u8, usize));

// SAFETY: an address and a length, behind which nobody reads or writes.
unsafe impl Send for Reserved {}

/// The first thread after the main one makes the second heap, and leaves it to those that follow.
fn on_second_heap<T: Send + 'static>(work: fn() -> T) -> Option<T> {
    // If there is no thread now, there may be none later, and the job will tell.
    let second = std::thread::Builder::new().spawn(work).ok()?;
    second.join().ok()
}

/// Makes the calling thread's heap larger. Returns the pages that it has more.
fn enlarge_heap(bytes: usize) -> (*mut u8, usize) {
    let mut block = Vec::<u8>::with_capacity(bytes);
    let page = 4096;
    let before = block.as_mut_ptr().align_offset(page);
    let pages = block.as_mut_ptr().wrapping_add(before);
    // Freed, it stays with the heap.
    drop(std::hint::black_box(block));
    (pages, (bytes - page) / page * page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests' own allocator is another one, so this one's blocks are taken by hand.
    #[test]
    fn blocks_are_aligned_and_keep_what_is_in_them() {
        for align in [1, 2, 4, 8, 16, 32, 64, 4096] {
            for size in [
                1,
                2,
                4,
                7,
                8,
                9,
                15,
                16,
                17,
                24,
                100,
                1000,
                1500,
                5000,
                40_000,
                2 << 20,
            ] {
                let layout = Layout::from_size_align(size, align).unwrap();
                let larger = Layout::from_size_align(size * 3, align).unwrap();
                // SAFETY: layouts are not empty, and each block is given back with its own; what is read and
                // written is within it.
                unsafe {
                    let zeroed = Allocator.alloc_zeroed(layout);
                    assert!(is_aligned(zeroed, align), "{layout:?}");
                    assert!((0..size).all(|at| *zeroed.add(at) == 0));
                    let block = Allocator.alloc(layout);
                    assert!(is_aligned(block, align), "{layout:?}");
                    block.write_bytes(7, size);
                    let block = Allocator.realloc(block, layout, larger.size());
                    assert!(is_aligned(block, align), "{layout:?}");
                    assert!((0..size).all(|at| *block.add(at) == 7));
                    Allocator.dealloc(block, larger);
                    Allocator.dealloc(zeroed, layout);
                }
            }
        }
    }

    fn is_aligned(block: *mut u8, align: usize) -> bool {
        !block.is_null() && block.addr().is_multiple_of(align)
    }

    #[test]
    fn momentary_blocks_have_four_sizes_in_each_doubling() {
        let sizes: Vec<usize> = momentary_sizes().collect();
        assert_eq!(sizes[..6], [1024, 1280, 1536, 1792, 2048, 2560]);
        assert_eq!(sizes.last(), Some(&MOMENTARY_TO));
        keep_pages_at_hand();
    }
}
