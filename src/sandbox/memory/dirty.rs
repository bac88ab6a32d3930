//! Which pages of a slot were written to.
//!
//! Linux 6.7 and later tell by `PAGEMAP_SCAN` (Documentation/admin-guide/mm/pagemap.rst). Whether
//! the kernel does, and tells the truth, is tried once; elsewhere all pages are given back between
//! two guests, which is as safe and slower.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::OnceLock;

use super::faults;
use super::image::system_page_bytes;

/// `_IOWR('f', 16, struct pm_scan_arg)`, on all architectures with the generic layout of ioctl
/// numbers.
const PAGEMAP_SCAN: u64 = 0xC060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Regions asked for at a time.
const REGIONS: usize = 64;

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();

/// Whether [`regions`] works here. The first call tries it out, and logs what it found.
pub(in crate::sandbox) fn is_tracked() -> bool {
    pagemap().is_some()
}

fn pagemap() -> Option<&'static File> {
    PAGEMAP
        .get_or_init(|| {
            keep_pages_apart();
            let found = File::open("/proc/self/pagemap")
                .ok()
                .filter(tells_the_truth);
            match found {
                Some(_) => tracing::debug!("guests' memory is reset page by page (PAGEMAP_SCAN)"),
                None => tracing::warn!(
                    "the kernel has no PAGEMAP_SCAN (Linux 6.7 and later do), so guests' memory is \
                     given back as a whole between two guests, which is slower"
                ),
            }
            found
        })
        .as_ref()
}

/// Calls `each` with every region of pages in `range` that has been written to since it was mapped
/// or given back. False if `each` says so, or the kernel refuses: then some may not have been seen.
pub(super) fn regions(range: Range<usize>, each: impl FnMut(Range<usize>) -> bool) -> bool {
    pagemap().is_some_and(|pagemap| scan(pagemap, range, each))
}

fn scan(pagemap: &File, range: Range<usize>, mut each: impl FnMut(Range<usize>) -> bool) -> bool {
    let mut found = [PageRegion::default(); REGIONS];
    let mut from = range.start;
    while from < range.end {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start: from as u64,
            end: range.end as u64,
            vec: found.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            // Pages of the guest's own: there, here or swapped out, neither the image's nor the page
            // of zeros that reading makes.
            category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
            category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT,
            ..ScanArgument::default()
        };
        // SAFETY: argument and regions outlive the call, which is told their sizes.
        let count = unsafe {
            libc::ioctl(
                pagemap.as_raw_fd(),
                PAGEMAP_SCAN as _,
                ptr::from_mut(&mut argument),
            )
        };
        let walked = usize::try_from(argument.walk_end).unwrap_or(0);
        let count = match usize::try_from(count) {
            Ok(count) if count <= REGIONS && walked > from => count,
            Ok(_) | Err(_) => return false,
        };
        for region in &found[..count] {
            let (start, end) = (region.start as usize, region.end as usize);
            if start < range.start || end > range.end || start >= end || !each(start..end) {
                return false;
            }
        }
        from = walked;
    }
    true
}

/// Has the kernel not merge equal pages of this process (ksm(7)), whoever asked for it: merged pages
/// tell one guest what another holds, and those of zeros would look untouched.
fn keep_pages_apart() {
    const PR_SET_MEMORY_MERGE: libc::c_int = 67;
    // SAFETY: the call takes no pointers. A kernel without it does not merge by itself.
    unsafe { libc::prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0) };
}

/// Tries it on pages that are untouched, read, written, and of a file; and whether the first write to
/// a page counts as a fault.
fn tells_the_truth(pagemap: &File) -> bool {
    let page = system_page_bytes();
    let Ok(image) = super::image::Image::new(&vec![7; 3 * page], 0..3 * page) else {
        return false;
    };
    let Ok(mut slot) = super::slot::Slot::reserve(false) else {
        return false;
    };
    if slot.show(&std::sync::Arc::new(image)).is_err() || slot.grow(8 * page).is_err() {
        return false;
    }
    let base = slot.base();
    let mut counts = vec![faults::count()];
    // SAFETY: the slot has eight accessible pages, and this is its only user.
    unsafe {
        base.add(page).write_volatile(1);
        counts.push(faults::count());
        ptr::read_volatile(base.add(2 * page));
        ptr::read_volatile(base.add(4 * page));
        counts.push(faults::count());
        base.add(5 * page).write_volatile(1);
        counts.push(faults::count());
        base.add(7 * page + 1).write_volatile(1);
        counts.push(faults::count());
    }
    let are_counted = counts.is_sorted_by(|before, after| before.is_some() && before < after);
    let start = base as usize;
    let mut dirty = Vec::new();
    let whole = scan(pagemap, start..start + slot.accessible(), |region| {
        dirty.extend(
            (region.start..region.end)
                .step_by(page)
                .map(|at| (at - start) / page),
        );
        true
    });
    whole && are_counted && dirty == [1, 5, 7]
}
