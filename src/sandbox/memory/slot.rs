//! One reservation of address space for a linear memory.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::PAGE_BYTES;
use super::dirty;
use super::faults::Faults;
use super::image::Image;

/// The largest index, the largest offset, and room for the widest access behind them.
const SLOT_BYTES: usize = (8 << 30) + PAGE_BYTES;
/// Dirty pages up to this many bytes are put back one by one, and stay resident; more are given back
/// to the kernel. Copying costs about 25 µs per MiB and grows with each page; giving back costs the
/// next guest a fault for each page it touches, and other threads an interrupt.
const RESTORE_BYTES_MAX: usize = 512 * 1024;

/// A reservation. Not accessible beyond `accessible` bytes; those hold the image, then zeros, and
/// whatever a guest wrote over them since.
#[derive(Debug)]
pub(super) struct Slot {
    base: NonNull<u8>,
    accessible: usize,
    /// The most that was accessible since all of it was given back: beyond it no page is resident.
    touched: usize,
    image: Option<Arc<Image>>,
    /// Whether dirty pages are looked for.
    tracked: bool,
    /// All resident pages that are the slot's own, as they were found when it was last cleaned;
    /// `None` where they have to be looked for. They may become more by page faults only.
    own: Option<Vec<Range<usize>>>,
}

// SAFETY: a slot owns its mapping, as a `Box` owns its allocation.
unsafe impl Send for Slot {}
// SAFETY: a shared slot gives no access to the mapping.
unsafe impl Sync for Slot {}

impl Slot {
    /// A reservation of nothing yet; `tracked` says whether [`dirty`] works here.
    pub(super) fn reserve(tracked: bool) -> io::Result<Slot> {
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
        let mut slot = Slot {
            base,
            accessible: 0,
            touched: 0,
            image: None,
            tracked,
            own: None,
        };
        slot.advise(SLOT_BYTES);
        Ok(slot)
    }

    /// Guests' data stays out of core dumps; nothing depends on it. And a guest that touches a byte
    /// gets a page, not two MiB, and has no other page made its own by the kernel in the background:
    /// that would be no fault of its thread. To be called for what was just mapped.
    fn advise(&mut self, bytes: usize) {
        let start = self.base.as_ptr().cast();
        // SAFETY: callers pass a length within the mapping.
        let result = unsafe {
            libc::madvise(start, bytes, libc::MADV_DONTDUMP);
            libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE)
        };
        // A kernel without huge pages knows nothing of them.
        let has_none = || io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
        if result != 0 && !has_none() {
            self.tracked = false;
        }
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn accessible(&self) -> usize {
        self.accessible
    }

    /// Makes the first bytes of an empty slot show an image, copied page by page when written.
    pub(super) fn show(&mut self, image: &Arc<Image>) -> io::Result<()> {
        let Range { start, end } = image.range();
        if self.accessible != 0 || self.image.is_some() || end > SLOT_BYTES - PAGE_BYTES {
            return Err(io::Error::other("an image needs an empty slot"));
        }
        if let Some(descriptor) = image.descriptor() {
            self.grow(start)?;
            // SAFETY: the range is within this slot's own mapping, of which nothing is accessible.
            // The file is sealed: nobody can change or shorten it.
            let address = unsafe {
                libc::mmap(
                    self.base.as_ptr().add(start).cast(),
                    end - start,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    descriptor,
                    0,
                )
            };
            if address == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the range is the mapping just made.
            unsafe { libc::madvise(address, end - start, libc::MADV_DONTDUMP) };
        }
        self.accessible = end;
        self.touched = self.touched.max(end);
        self.image = Some(Arc::clone(image));
        self.own = None;
        Ok(())
    }

    /// Makes the first `bytes` accessible; they hold zeros where they were not before.
    pub(super) fn grow(&mut self, bytes: usize) -> io::Result<()> {
        let Some(more) = bytes.checked_sub(self.accessible).filter(|more| *more > 0) else {
            return Ok(());
        };
        if bytes > SLOT_BYTES - PAGE_BYTES {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.protect(self.accessible, more, libc::PROT_READ | libc::PROT_WRITE)?;
        self.accessible = bytes;
        self.touched = self.touched.max(bytes);
        Ok(())
    }

    /// Puts the slot back as a new one of `bytes` would be: the image, then zeros, and nothing
    /// accessible behind. `bytes` must not be less than the image. `faults` are the calling
    /// thread's up to a moment before the last guest began, if it ran on this thread. On an error
    /// the slot is in an unknown state and must be dropped.
    pub(super) fn clean(&mut self, bytes: usize, faults: Faults) -> io::Result<()> {
        if self.accessible == 0 {
            return Ok(());
        }
        if !self.tracked || !self.restore(faults) {
            self.own = None;
            // SAFETY: the range is within the mapping, and its guest is gone.
            let result = unsafe {
                libc::madvise(self.base.as_ptr().cast(), self.touched, libc::MADV_DONTNEED)
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
            self.touched = self.accessible;
        }
        if bytes < self.accessible {
            self.protect(bytes, self.accessible - bytes, libc::PROT_NONE)?;
            self.accessible = bytes;
        }
        Ok(())
    }

    /// Writes image and zeros over each accessible page that was ever written to; false if those that
    /// are resident (also behind what is accessible, where earlier guests had more) are too many, or
    /// can't be told.
    fn restore(&mut self, faults: Faults) -> bool {
        let own = match self.own.take() {
            Some(own) if faults.none_since() => own,
            Some(own) => match self.find_own(own) {
                Some(own) => own,
                None => return false,
            },
            None => match self.find_own(Vec::new()) {
                Some(own) => own,
                None => return false,
            },
        };
        for region in &own {
            self.put_back(region.clone());
        }
        self.own = Some(own);
        true
    }

    /// The regions of pages that are the slot's own; `None` if they are too many to be put back one
    /// by one, or can't be told. Makes use of a list that is no longer needed.
    fn find_own(&self, mut own: Vec<Range<usize>>) -> Option<Vec<Range<usize>>> {
        own.clear();
        let start = self.base.as_ptr() as usize;
        let mut bytes = 0;
        dirty::regions(start..start + self.touched, |region| {
            bytes += region.len();
            own.push(region.start - start..region.end - start);
            bytes <= RESTORE_BYTES_MAX
        })
        .then_some(own)
    }

    /// Makes a region what it was at first.
    fn put_back(&mut self, region: Range<usize>) {
        // What lies behind holds zeros: it was put back before it became inaccessible.
        let region = region.start..region.end.min(self.accessible);
        if region.is_empty() {
            return;
        }
        // SAFETY: the region is within the accessible part of the slot, which is readable and
        // writable, and nobody else refers to: its guest is gone.
        let page = unsafe {
            std::slice::from_raw_parts_mut(self.base.as_ptr().add(region.start), region.len())
        };
        match &self.image {
            Some(image) => image.put_back(page, region.start),
            None => page.fill(0),
        }
    }

    fn protect(&self, from: usize, bytes: usize, protection: libc::c_int) -> io::Result<()> {
        // SAFETY: callers pass a range within the mapping, and know that no guest uses what is taken
        // away.
        let result = unsafe {
            let start = self.base.as_ptr().add(from);
            libc::mprotect(start.cast(), bytes, protection)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Empties the slot for a guest of any module. On an error it must be dropped.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        let Some(image) = self.image.take() else {
            let cleaned = self.clean(0, Faults::unknown());
            self.own = None;
            return cleaned;
        };
        self.own = None;
        // What stands before the image, and the image itself, make way for nothing.
        // SAFETY: the range is within the mapping, and its guest is gone.
        let address = unsafe {
            libc::mmap(
                self.base.as_ptr().cast(),
                self.touched.max(image.range().end),
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.advise(self.touched);
        self.accessible = 0;
        self.touched = 0;
        Ok(())
    }

    /// What a guest would see.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the accessible part is readable. Callers hold the slot's lock and know that no
        // guest runs in it.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.accessible) }
    }

    #[cfg(test)]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the accessible part is readable and writable, and this is its only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.accessible) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the slot owns the mapping and nobody refers to it any more. A failure leaves
        // address space behind, nothing else.
        unsafe { libc::munmap(self.base.as_ptr().cast(), SLOT_BYTES) };
    }
}
