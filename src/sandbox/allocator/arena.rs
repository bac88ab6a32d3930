//! The allocator of a compile worker.
//!
//! A compiler makes and drops very many small blocks for a module of some hundred KiB, on a few
//! threads, and the process ends with it. So a block costs as little as it can: it is cut off a
//! chunk that has its memory already, and one that is freed waits for the next of its size on the
//! list of the thread that freed it. Nothing is merged, and nothing given back before the end.
//! Large blocks, of which there are few, are the C library's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks larger than that are the C library's, in bytes.
const SMALL_MAX: usize = 32 << 10;
/// All small blocks are aligned to it, and their sizes are multiples of it.
const GRAIN: usize = 16;
/// Up to this size, each multiple of the grain is a class of its own.
const FINE_MAX: usize = 512;
const FINE: usize = FINE_MAX / GRAIN;
/// Beyond, there are four classes in each doubling.
const DOUBLINGS: usize = (SMALL_MAX / FINE_MAX).ilog2() as usize;
const CLASSES: usize = FINE + 4 * DOUBLINGS;
/// What a thread takes at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// Whether a block of this layout is the arena's. Told by the layout alone, as it is when the block is
/// freed.
fn is_small(layout: Layout) -> bool {
    layout.size() <= SMALL_MAX && layout.align() <= GRAIN
}

/// The class of blocks that hold `size` bytes, from one to [`SMALL_MAX`].
fn class(size: usize) -> usize {
    if size <= FINE_MAX {
        return size.div_ceil(GRAIN).max(1) - 1;
    }
    // The doubling is that of the largest size in it, so that a power of two is the last of its own.
    let doubling = (size - 1).ilog2() as usize;
    let quarter = (size - 1) >> (doubling - 2) & 3;
    FINE + 4 * (doubling - FINE_MAX.ilog2() as usize) + quarter
}

/// How many bytes blocks of a class hold.
fn class_bytes(class: usize) -> usize {
    if class < FINE {
        return (class + 1) * GRAIN;
    }
    let (doubling, quarter) = ((class - FINE) / 4, (class - FINE) % 4);
    let doubled = FINE_MAX << doubling;
    doubled + doubled / 4 * (quarter + 1)
}

/// A free block, in its own memory.
struct Free {
    next: *mut Free,
}

/// One thread's share.
struct Heap {
    /// Of each class, the block that was freed last.
    free: [Cell<*mut Free>; CLASSES],
    /// What is left of the thread's chunk.
    at: Cell<*mut u8>,
    left: Cell<usize>,
}

thread_local! {
    // Without a destructor, so that it takes no allocation to have one. What a thread leaves is lost, which are
    // the rest of a chunk and what it freed: there are a few threads in a job.
    static HEAP: Heap = const { Heap::new() };
}

impl Heap {
    const fn new() -> Heap {
        Heap {
            free: [const { Cell::new(ptr::null_mut()) }; CLASSES],
            at: Cell::new(ptr::null_mut()),
            left: Cell::new(0),
        }
    }

    fn take(&self, class: usize) -> *mut u8 {
        let block = self.free[class].get();
        if block.is_null() {
            return self.cut(class_bytes(class));
        }
        // SAFETY: what is on the list is a block of this class that nobody uses, in which `give` wrote where
        // the next one is. No other thread has this list.
        self.free[class].set(unsafe { (*block).next });
        block.cast()
    }

    /// # Safety
    ///
    /// The block is of this class, from any thread's heap, and nobody uses it any more.
    unsafe fn give(&self, class: usize, block: *mut u8) {
        let block = block.cast::<Free>();
        // SAFETY: the smallest block has room for it, and all are aligned to more than it needs.
        unsafe {
            block.write(Free {
                next: self.free[class].get(),
            });
        }
        self.free[class].set(block);
    }

    /// Of a new chunk, if there is not enough left of the last. Null if there is no memory.
    fn cut(&self, bytes: usize) -> *mut u8 {
        if self.left.get() < bytes {
            let chunk = chunk();
            if chunk.is_null() {
                return chunk;
            }
            self.at.set(chunk);
            self.left.set(CHUNK);
        }
        let block = self.at.get();
        self.at.set(block.wrapping_add(bytes));
        self.left.set(self.left.get() - bytes);
        block
    }
}

/// Where the chunks that are ready begin and end, as addresses.
static READY: AtomicUsize = AtomicUsize::new(0);
static READY_END: AtomicUsize = AtomicUsize::new(0);

/// Has the next `count` chunks come from one piece of memory, which is returned, and the calling thread take no more
/// of what it had before: in a process that was forked, to write to that would copy it.
///
/// # Safety
///
/// The process has one thread.
pub(super) unsafe fn begin_anew(count: usize) -> (*mut u8, usize) {
    let bytes = count * CHUNK;
    let chunks = map(bytes, 0);
    if chunks.is_null() {
        return (chunks, 0);
    }
    READY_END.store(chunks.expose_provenance() + bytes, Ordering::Relaxed);
    READY.store(chunks.expose_provenance(), Ordering::Relaxed);
    HEAP.with(|heap| {
        heap.free.iter().for_each(|list| list.set(ptr::null_mut()));
        heap.left.set(0);
    });
    (chunks, bytes)
}

/// A chunk, or null.
fn chunk() -> *mut u8 {
    let taken = READY.try_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
        (at < READY_END.load(Ordering::Relaxed)).then_some(at + CHUNK)
    });
    match taken {
        Ok(chunk) => ptr::with_exposed_provenance_mut(chunk),
        // All of it at once costs less than a page fault for each page.
        Err(_) => map(CHUNK, libc::MAP_POPULATE),
    }
}

/// Memory, or null.
fn map(bytes: usize, flags: libc::c_int) -> *mut u8 {
    // SAFETY: asks for memory where nothing is.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        ptr::null_mut()
    } else {
        memory.cast()
    }
}

/// The arena, as an allocator.
pub(super) struct Arena;

// SAFETY: a block has at least the bytes of its layout and is aligned to more than any small layout asks for.
// It is cut off once, and is afterwards either somebody's or on one thread's list: it gets there when
// it is freed and leaves it when it is taken. Which of the two allocators has a block follows from the
// layout, which is the same when it is freed. Nothing here panics or allocates.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_small(layout) {
            HEAP.with(|heap| heap.take(class(layout.size())))
        } else {
            // SAFETY: the caller's promises are those that are asked for. So below.
            unsafe { System.alloc(layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_small(layout) {
            // SAFETY: as above.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let block = HEAP.with(|heap| heap.take(class(layout.size())));
        if !block.is_null() {
            // SAFETY: the block has these bytes, and is nobody else's.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_small(layout) {
            // SAFETY: it was allocated with this layout, so it is of that class; and the caller uses it no
            // more.
            HEAP.with(|heap| unsafe { heap.give(class(layout.size()), block) });
        } else {
            // SAFETY: as above.
            unsafe { System.dealloc(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's promise: `bytes`, rounded up to the alignment, do not overflow.
        let other = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        match (is_small(layout), is_small(other)) {
            (true, true) if class(layout.size()) == class(bytes) => return block,
            // SAFETY: as above.
            (false, false) => return unsafe { System.realloc(block, layout, bytes) },
            (true, _) | (_, true) => {}
        }
        // SAFETY: the new block is another one, both have the bytes that are copied, and the old one is the
        // caller's to give up, who does so if there is a new one.
        unsafe {
            let new = self.alloc(other);
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size().min(bytes));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_what_is_asked_for_and_not_a_quarter_more() {
        let mut last = 0;
        for size in 1..=SMALL_MAX {
            let class = class(size);
            let bytes = class_bytes(class);
            assert!(class < CLASSES && bytes >= size, "{size}");
            assert_eq!(bytes % GRAIN, 0, "{size}");
            assert!(bytes - size < GRAIN.max(size / 4 + 1), "{size}: {bytes}");
            assert!(class == last || class == last + 1, "{size}");
            last = class;
        }
        assert_eq!(class_bytes(CLASSES - 1), SMALL_MAX);
    }

    /// Blocks of all sizes, changed in size, and freed by another thread than took them: no two overlap.
    #[test]
    fn blocks_are_nobody_elses() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for _ in 0..4 {
            let mut blocks = Vec::new();
            for number in 0..4000_usize {
                let size = 1 + random([64, 1000, SMALL_MAX, 2 * SMALL_MAX][number % 4]);
                let layout = Layout::from_size_align(size, 1 << random(7)).unwrap();
                blocks.push(Block::new(layout, number as u8));
                if random(3) == 0 {
                    let block: Block = blocks.swap_remove(random(blocks.len()));
                    blocks.push(block.resized(1 + random(2 * SMALL_MAX)));
                }
                if random(2) == 0 {
                    drop(blocks.swap_remove(random(blocks.len())));
                }
            }
            std::thread::spawn(move || drop(blocks)).join().unwrap();
        }
    }

    struct Block {
        at: *mut u8,
        layout: Layout,
        filled: u8,
    }

    // SAFETY: the memory is the block's alone.
    unsafe impl Send for Block {}

    impl Block {
        fn new(layout: Layout, filled: u8) -> Block {
            // SAFETY: the layout is not empty; what is read and written is within the block.
            unsafe {
                let at = Arena.alloc_zeroed(layout);
                assert!(!at.is_null() && at.addr().is_multiple_of(layout.align()));
                assert!((0..layout.size()).all(|index| *at.add(index) == 0));
                at.write_bytes(filled, layout.size());
                Block { at, layout, filled }
            }
        }

        fn resized(mut self, bytes: usize) -> Block {
            // SAFETY: as above.
            unsafe {
                self.at = Arena.realloc(self.at, self.layout, bytes);
                assert!(!self.at.is_null() && self.at.addr().is_multiple_of(self.layout.align()));
                let kept = bytes.min(self.layout.size());
                self.layout = Layout::from_size_align(bytes, self.layout.align()).unwrap();
                assert!((0..kept).all(|index| *self.at.add(index) == self.filled));
                self.at.write_bytes(self.filled, bytes);
            }
            self
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            // SAFETY: as above; the block is not used again.
            unsafe {
                for index in 0..self.layout.size() {
                    assert_eq!(*self.at.add(index), self.filled);
                }
                Arena.dealloc(self.at, self.layout);
            }
        }
    }

    #[test]
    fn what_is_freed_is_taken_again() {
        let layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: the layout is not empty, and each block is freed once.
        unsafe {
            let first = Arena.alloc(layout);
            Arena.dealloc(first, layout);
            let second = Arena.alloc(layout);
            assert_eq!(first, second);
            Arena.dealloc(second, layout);
        }
    }
}
