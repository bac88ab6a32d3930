//! Linear memory of guests: reserved address space that is reused from guest to guest.
//!
//! A slot is 8 GiB of address space and a guard behind it, so that no 32-bit index plus 32-bit
//! offset leaves it, and compiled code needs no bounds checks. Only what the guest asked for is
//! accessible; growing is one `mprotect`, and nothing ever moves. Between two guests the pages are
//! given back to the kernel, which hands out zeros.

#![expect(
    unsafe_code,
    reason = "maps, protects and unmaps the address space of guests"
)]

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wasmer::{MemoryError, MemoryType, Pages};
use wasmer_types::MemoryStyle;
use wasmer_vm::{LinearMemory, VMMemory, VMMemoryDefinition};

/// Bytes in a page of WebAssembly.
pub(super) const PAGE_BYTES: usize = 64 * 1024;
/// Pages in the largest memory there is: 4 GiB.
pub(super) const PAGES_MAX: u32 = 65_536;
/// The largest index, the largest offset, and room for the widest access behind them.
const SLOT_BYTES: usize = (8 << 30) + PAGE_BYTES;

/// Slots that no guest uses at present. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct MemoryPool {
    idle: Arc<Mutex<Vec<Slot>>>,
    idle_max: usize,
}

/// What the runner learns of a guest's memory.
#[derive(Debug, Default)]
pub(super) struct MemoryRecord {
    pages: AtomicU32,
    refused: AtomicBool,
}

/// One reservation of address space. Not accessible beyond `accessible` bytes.
#[derive(Debug)]
struct Slot {
    base: NonNull<u8>,
    accessible: usize,
}

/// The memory of one guest.
#[derive(Debug)]
struct PooledMemory {
    /// `None` only while it is dropped.
    slot: Option<Slot>,
    pool: MemoryPool,
    ty: MemoryType,
    /// Largest size in pages: the guest's limit.
    pages_max: u32,
    /// In the instance, which outlives the memory.
    definition: NonNull<VMMemoryDefinition>,
    record: Arc<MemoryRecord>,
}

impl MemoryPool {
    /// A pool that keeps at most `idle_max` unused slots.
    pub(super) fn new(idle_max: usize) -> MemoryPool {
        MemoryPool {
            idle: Arc::default(),
            idle_max,
        }
    }

    /// A zeroed memory of `ty.minimum` pages that may grow to `pages_max`, or its own maximum.
    ///
    /// # Safety
    ///
    /// `definition` must be valid for writes, and stay so while the memory lives.
    pub(super) unsafe fn memory(
        &self,
        ty: MemoryType,
        pages_max: u32,
        definition: NonNull<VMMemoryDefinition>,
        record: Arc<MemoryRecord>,
    ) -> Result<VMMemory, MemoryError> {
        let minimum = ty.minimum.0;
        let fail = |error: io::Error| MemoryError::Region(error.to_string());
        let popped = self.lock().pop();
        let mut slot = match popped {
            Some(slot) => slot,
            None => Slot::reserve().map_err(fail)?,
        };
        slot.grow(minimum as usize * PAGE_BYTES).map_err(fail)?;
        record.pages.store(minimum, Ordering::Relaxed);
        // SAFETY: the caller vouches for the pointer.
        unsafe {
            definition.write(VMMemoryDefinition {
                base: slot.base.as_ptr(),
                current_length: minimum as usize * PAGE_BYTES,
            });
        }
        let memory = PooledMemory {
            slot: Some(slot),
            pool: self.clone(),
            ty,
            pages_max: pages_max.min(PAGES_MAX),
            definition,
            record,
        };
        let memory: Box<dyn LinearMemory + Send + Sync> = Box::new(memory);
        Ok(VMMemory::from_custom(memory))
    }

    fn put_back(&self, mut slot: Slot) {
        // A slot that can't be wiped is unmapped: dropping it does that.
        if slot.wipe().is_err() {
            return;
        }
        let mut idle = self.lock();
        if idle.len() < self.idle_max {
            idle.push(slot);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryRecord {
    /// The largest size so far (memories only grow), in bytes.
    pub(super) fn peak_bytes(&self) -> u64 {
        u64::from(self.pages.load(Ordering::Relaxed)) * PAGE_BYTES as u64
    }

    /// Whether the guest was refused memory for its limit (not for a maximum of its own).
    pub(super) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

// SAFETY: a slot owns its mapping, as a `Box` owns its allocation.
unsafe impl Send for Slot {}
// SAFETY: a shared slot gives no access to the mapping.
unsafe impl Sync for Slot {}

impl Slot {
    fn reserve() -> io::Result<Slot> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that
        // exists.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SLOT_BYTES,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::other("memory mapped at address zero"))?;
        let slot = Slot {
            base,
            accessible: 0,
        };
        // Guests' data stays out of core dumps. Nothing depends on it, so a refusal is no failure.
        // SAFETY: the range is the mapping just made.
        unsafe { libc::madvise(address, SLOT_BYTES, libc::MADV_DONTDUMP) };
        Ok(slot)
    }

    /// Makes the first `bytes` accessible; they hold zeros where they were not before.
    fn grow(&mut self, bytes: usize) -> io::Result<()> {
        let Some(more) = bytes.checked_sub(self.accessible).filter(|more| *more > 0) else {
            return Ok(());
        };
        if bytes > SLOT_BYTES - PAGE_BYTES {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: `accessible + more` is `bytes`, which was just found to be within the mapping.
        let result = unsafe {
            let start = self.base.as_ptr().add(self.accessible);
            libc::mprotect(start.cast(), more, libc::PROT_READ | libc::PROT_WRITE)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        self.accessible = bytes;
        Ok(())
    }

    /// Gives all pages back and makes the slot inaccessible.
    fn wipe(&mut self) -> io::Result<()> {
        if self.accessible == 0 {
            return Ok(());
        }
        let start = self.base.as_ptr().cast();
        // SAFETY: the range is within the mapping, and its guest is gone.
        let result = unsafe {
            match libc::madvise(start, self.accessible, libc::MADV_DONTNEED) {
                0 => libc::mprotect(start, self.accessible, libc::PROT_NONE),
                failed => failed,
            }
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        self.accessible = 0;
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the slot owns the mapping and nobody refers to it any more. A failure leaves
        // address space behind, nothing else.
        unsafe { libc::munmap(self.base.as_ptr().cast(), SLOT_BYTES) };
    }
}

// SAFETY: the pointer to the definition is used only while Wasmer calls in with the store's
// exclusive borrow, and only one thread has the store at a time.
unsafe impl Send for PooledMemory {}
// SAFETY: as above; the methods that take `&self` only read the pointer, not through it.
unsafe impl Sync for PooledMemory {}

impl LinearMemory for PooledMemory {
    fn ty(&self) -> MemoryType {
        MemoryType {
            minimum: self.size(),
            ..self.ty
        }
    }

    fn size(&self) -> Pages {
        Pages(self.record.pages.load(Ordering::Relaxed))
    }

    fn style(&self) -> MemoryStyle {
        MemoryStyle::Static
    }

    fn grow(&mut self, delta: Pages) -> Result<Pages, MemoryError> {
        let current = self.size();
        let refused = MemoryError::CouldNotGrow {
            current,
            attempted_delta: delta,
        };
        let own_max = self
            .ty
            .maximum
            .map_or(PAGES_MAX, |maximum| maximum.0.min(PAGES_MAX));
        let wanted = match current.0.checked_add(delta.0) {
            Some(wanted) if wanted <= own_max => wanted,
            Some(_) | None => return Err(refused),
        };
        let slot = self.slot.as_mut().filter(|_| wanted <= self.pages_max);
        let grown = slot.is_some_and(|slot| slot.grow(wanted as usize * PAGE_BYTES).is_ok());
        if !grown {
            self.record.refused.store(true, Ordering::Relaxed);
            return Err(refused);
        }
        self.record.pages.store(wanted, Ordering::Relaxed);
        // SAFETY: only an instance that is alive can make its memory grow, so the definition in it is
        // valid, and the guest that reads it is waiting for this call.
        unsafe { (*self.definition.as_ptr()).current_length = wanted as usize * PAGE_BYTES };
        Ok(current)
    }

    fn vmmemory(&self) -> NonNull<VMMemoryDefinition> {
        self.definition
    }

    fn try_clone(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::MemoryNotShared)
    }

    fn copy(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::MemoryNotShared)
    }
}

// Must not touch `definition`: the instance may be gone, as after an instantiation that failed.
impl Drop for PooledMemory {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.put_back(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MemoryPool, PAGE_BYTES, SLOT_BYTES, Slot};

    fn bytes(slot: &mut Slot) -> &mut [u8] {
        // SAFETY: the accessible part of a slot is readable and writable, and this is its only
        // reference.
        unsafe { std::slice::from_raw_parts_mut(slot.base.as_ptr(), slot.accessible) }
    }

    #[test]
    fn a_wiped_slot_is_empty_and_zero_again() {
        let mut slot = Slot::reserve().unwrap();
        slot.grow(3 * PAGE_BYTES).unwrap();
        bytes(&mut slot).fill(0xaa);
        slot.wipe().unwrap();
        assert_eq!(slot.accessible, 0);
        slot.grow(3 * PAGE_BYTES).unwrap();
        assert!(bytes(&mut slot).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn growth_keeps_what_was_written_and_stops_at_the_guard() {
        let mut slot = Slot::reserve().unwrap();
        slot.grow(PAGE_BYTES).unwrap();
        bytes(&mut slot)[PAGE_BYTES - 1] = 7;
        slot.grow(2 * PAGE_BYTES).unwrap();
        slot.grow(PAGE_BYTES).unwrap();
        assert_eq!(slot.accessible, 2 * PAGE_BYTES);
        assert_eq!(bytes(&mut slot)[PAGE_BYTES - 1], 7);
        assert!(slot.grow(SLOT_BYTES).is_err());
    }

    #[test]
    fn the_pool_keeps_no_more_than_it_may() {
        let pool = MemoryPool::new(2);
        for _ in 0..3 {
            pool.put_back(Slot::reserve().unwrap());
        }
        assert_eq!(pool.lock().len(), 2);
    }
}
