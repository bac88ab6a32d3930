//! Linear memory of guests: reserved address space that is reused from guest to guest.
//!
//! A [`slot`] is 8 GiB of address space and a guard behind it, so that no 32-bit index plus 32-bit
//! offset leaves it, and compiled code needs no bounds checks. Only what the guest asked for is
//! accessible; growing is one `mprotect`, and nothing ever moves. The first bytes may show an
//! [`image`] of what the module's data segments put there. Between two guests, the pages that were
//! written to are put back, if the kernel tells which those are ([`dirty`]; it need not be asked where
//! there were no [`faults`]), and given back to it otherwise.

#![expect(
    unsafe_code,
    reason = "maps, protects and unmaps the address space of guests"
)]

pub(super) mod dirty;
pub(super) mod faults;
pub(super) mod image;
mod slot;

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wasmer::{MemoryError, MemoryType, Pages};
use wasmer_types::{MemoryStyle, TrapCode};
use wasmer_vm::{LinearMemory, Trap, VMMemory, VMMemoryDefinition, initialize_memory_with_data};

use self::faults::Faults;
use self::image::Image;
use self::slot::Slot;

/// Bytes in a page of WebAssembly.
pub(super) const PAGE_BYTES: usize = 64 * 1024;
/// Pages in the largest memory there is: 4 GiB.
pub(super) const PAGES_MAX: u32 = 65_536;

/// Slots that no guest uses at present. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct MemoryPool {
    idle: Arc<Mutex<Vec<Slot>>>,
    idle_max: usize,
    tracked: bool,
}

/// How data segments get into a memory.
#[derive(Debug, Default)]
pub(super) enum Data {
    /// As the module says.
    #[default]
    Written,
    /// The same, for an image of them; where there can be none, the instantiation fails.
    Measured,
    /// They are there: the image holds them.
    Shown(Arc<Image>),
}

/// The memory of one instance, as the runner sees it.
#[derive(Debug)]
pub(super) struct GuestMemory {
    /// `None` once it went back to the pool.
    slot: Mutex<Option<Slot>>,
    pool: MemoryPool,
    ty: MemoryType,
    pages: AtomicU32,
    /// Largest size in pages: the guest's limit.
    pages_max: AtomicU32,
    refused: AtomicBool,
    /// Data segments are being written, and the slot's image holds them already.
    shown: AtomicBool,
    /// Data segments are measured for an image: they may fail where there can be none.
    measured: bool,
    /// Where the data segments begin and end, and their bytes in all.
    data_start: AtomicUsize,
    data_end: AtomicUsize,
    data_bytes: AtomicUsize,
    /// In the instance.
    definition: NonNull<VMMemoryDefinition>,
}

/// What Wasmer holds of it.
#[derive(Debug)]
struct InstanceMemory(Arc<GuestMemory>);

impl MemoryPool {
    /// A pool that keeps at most `idle_max` unused slots; `tracked` says whether [`dirty`] works here.
    pub(super) fn new(idle_max: usize, tracked: bool) -> MemoryPool {
        MemoryPool {
            idle: Arc::default(),
            idle_max,
            tracked,
        }
    }

    /// A memory of `ty.minimum` pages that may grow to `pages_max`, or its own maximum. It holds the
    /// image, or zeros.
    ///
    /// # Safety
    ///
    /// `definition` must be valid for writes, and stay so while an instance uses the memory.
    pub(super) unsafe fn memory(
        &self,
        ty: MemoryType,
        pages_max: u32,
        data: &Data,
        definition: NonNull<VMMemoryDefinition>,
    ) -> Result<(VMMemory, Arc<GuestMemory>), MemoryError> {
        let minimum = ty.minimum.0;
        let fail = |error: io::Error| MemoryError::Region(error.to_string());
        let popped = self.lock().pop();
        let mut slot = match popped {
            Some(slot) => slot,
            None => Slot::reserve(self.tracked).map_err(fail)?,
        };
        if let Data::Shown(image) = data {
            slot.show(image).map_err(fail)?;
        }
        slot.grow(minimum as usize * PAGE_BYTES).map_err(fail)?;
        // SAFETY: the caller vouches for the pointer.
        unsafe {
            definition.write(VMMemoryDefinition {
                base: slot.base(),
                current_length: minimum as usize * PAGE_BYTES,
            });
        }
        let memory = Arc::new(GuestMemory {
            slot: Mutex::new(Some(slot)),
            pool: self.clone(),
            ty,
            pages: AtomicU32::new(minimum),
            pages_max: AtomicU32::new(pages_max.min(PAGES_MAX)),
            refused: AtomicBool::new(false),
            shown: AtomicBool::new(matches!(data, Data::Shown(_))),
            measured: matches!(data, Data::Measured),
            data_start: AtomicUsize::new(usize::MAX),
            data_end: AtomicUsize::new(0),
            data_bytes: AtomicUsize::new(0),
            definition,
        });
        let instances: Box<dyn LinearMemory + Send + Sync> =
            Box::new(InstanceMemory(Arc::clone(&memory)));
        Ok((VMMemory::from_custom(instances), memory))
    }

    fn put_back(&self, mut slot: Slot) {
        // A slot that can't be emptied is unmapped: dropping it does that.
        if slot.empty().is_err() {
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

impl GuestMemory {
    /// The largest size so far (memories only grow), in bytes.
    pub(super) fn peak_bytes(&self) -> u64 {
        u64::from(self.pages.load(Ordering::Relaxed)) * PAGE_BYTES as u64
    }

    /// Whether the guest was refused memory for its limit (not for a maximum of its own).
    pub(super) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// The instance is made: from now on, what is written to memory is the guest's doing.
    pub(super) fn instantiated(&self) {
        self.shown.store(false, Ordering::Relaxed);
    }

    /// An image of what the memory holds; `None` if it would be too large. No guest may have run.
    pub(super) fn image(&self) -> io::Result<Option<Image>> {
        let data = self.data();
        if !image::is_worth_keeping(data.len(), self.data_bytes.load(Ordering::Relaxed)) {
            return Ok(None);
        }
        let slot = self.lock();
        slot.as_ref()
            .map(|slot| Image::new(slot.bytes(), data))
            .transpose()
    }

    /// From the first byte that a data segment reaches to the last.
    fn data(&self) -> Range<usize> {
        let end = self.data_end.load(Ordering::Relaxed);
        self.data_start.load(Ordering::Relaxed).min(end)..end
    }

    /// Sets the limit of the next guest.
    pub(super) fn limit(&self, pages_max: u32) {
        self.pages_max
            .store(pages_max.min(PAGES_MAX), Ordering::Relaxed);
    }

    /// Puts everything back to where it was before the first guest; `faults` were asked for on this
    /// thread before the last one began on it. On an error the instance must be thrown away.
    ///
    /// # Safety
    ///
    /// The instance must be alive, and no guest may be running in it.
    pub(super) unsafe fn reset(&self, faults: Faults) -> io::Result<()> {
        let minimum = self.ty.minimum.0;
        let bytes = minimum as usize * PAGE_BYTES;
        self.lock()
            .as_mut()
            .ok_or_else(|| io::Error::other("the memory is gone"))?
            .clean(bytes, faults)?;
        if self.pages.swap(minimum, Ordering::Relaxed) != minimum {
            // SAFETY: the instance is alive, so the definition in it is valid, and nobody reads it.
            unsafe { (*self.definition.as_ptr()).current_length = bytes };
        }
        self.refused.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Slot>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next guest would see.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> Vec<u8> {
        let slot = self.lock();
        slot.as_ref()
            .map_or_else(Vec::new, |slot| slot.bytes().to_vec())
    }
}

// SAFETY: the pointer to the definition is used only while Wasmer calls in with the store's
// exclusive borrow, or by `reset`, whose caller has it; and only one thread has the store at a time.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; everything else in it is atomic or locked.
unsafe impl Sync for GuestMemory {}

impl LinearMemory for InstanceMemory {
    fn ty(&self) -> MemoryType {
        MemoryType {
            minimum: self.size(),
            ..self.0.ty
        }
    }

    fn size(&self) -> Pages {
        Pages(self.0.pages.load(Ordering::Relaxed))
    }

    fn style(&self) -> MemoryStyle {
        MemoryStyle::Static
    }

    fn grow(&mut self, delta: Pages) -> Result<Pages, MemoryError> {
        let memory = &self.0;
        let current = self.size();
        let refused = MemoryError::CouldNotGrow {
            current,
            attempted_delta: delta,
        };
        let own_max = memory
            .ty
            .maximum
            .map_or(PAGES_MAX, |maximum| maximum.0.min(PAGES_MAX));
        let wanted = match current.0.checked_add(delta.0) {
            Some(wanted) if wanted <= own_max => wanted,
            Some(_) | None => return Err(refused),
        };
        let allowed = wanted <= memory.pages_max.load(Ordering::Relaxed);
        let grown = allowed
            && memory
                .lock()
                .as_mut()
                .is_some_and(|slot| slot.grow(wanted as usize * PAGE_BYTES).is_ok());
        if !grown {
            memory.refused.store(true, Ordering::Relaxed);
            return Err(refused);
        }
        memory.pages.store(wanted, Ordering::Relaxed);
        // SAFETY: only an instance that is alive can make its memory grow, so the definition in it is
        // valid, and the guest that reads it is waiting for this call.
        unsafe { (*memory.definition.as_ptr()).current_length = wanted as usize * PAGE_BYTES };
        Ok(current)
    }

    fn vmmemory(&self) -> NonNull<VMMemoryDefinition> {
        self.0.definition
    }

    fn try_clone(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::MemoryNotShared)
    }

    fn copy(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::MemoryNotShared)
    }

    unsafe fn initialize_with_data(&self, start: usize, data: &[u8]) -> Result<(), Trap> {
        let memory = &self.0;
        if memory.shown.load(Ordering::Relaxed) {
            return Ok(());
        }
        let end = start.saturating_add(data.len());
        if !data.is_empty() {
            memory.data_start.fetch_min(start, Ordering::Relaxed);
        }
        memory.data_end.fetch_max(end, Ordering::Relaxed);
        memory.data_bytes.fetch_add(data.len(), Ordering::Relaxed);
        if memory.measured && !image::may_be(memory.data().len()) {
            return Err(Trap::lib(TrapCode::HeapAccessOutOfBounds));
        }
        // SAFETY: Wasmer calls this for an instance that is alive, so the definition in it is valid;
        // what it describes is the accessible part of the slot, against which the bounds are checked.
        unsafe { initialize_memory_with_data(memory.definition.as_ref(), start, data) }
    }
}

// Must not touch `definition`: the instance may be gone, as after an instantiation that failed.
impl Drop for InstanceMemory {
    fn drop(&mut self) {
        if let Some(slot) = self.0.lock().take() {
            self.0.pool.put_back(slot);
        }
    }
}

#[cfg(test)]
mod tests;
