use std::sync::Arc;

use super::faults::Faults;
use super::image::Image;
use super::slot::Slot;
use super::{MemoryPool, PAGE_BYTES, dirty};

#[test]
fn a_cleaned_slot_is_empty_and_zero_again() {
    // Few pages, which are put back, and many, which are given back.
    for (pages, tracked) in [(3, true), (100, true), (3, false)] {
        let mut slot = Slot::reserve(tracked).unwrap();
        slot.grow(pages * PAGE_BYTES).unwrap();
        slot.bytes_mut().fill(0xaa);
        slot.clean(0, Faults::unknown()).unwrap();
        assert_eq!(slot.accessible(), 0);
        slot.grow(pages * PAGE_BYTES).unwrap();
        assert!(slot.bytes().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn growth_keeps_what_was_written_and_stops_at_the_guard() {
    let mut slot = Slot::reserve(true).unwrap();
    slot.grow(PAGE_BYTES).unwrap();
    slot.bytes_mut()[PAGE_BYTES - 1] = 7;
    slot.grow(2 * PAGE_BYTES).unwrap();
    slot.grow(PAGE_BYTES).unwrap();
    assert_eq!(slot.accessible(), 2 * PAGE_BYTES);
    assert_eq!(slot.bytes()[PAGE_BYTES - 1], 7);
    assert!(slot.grow(9 << 30).is_err());
}

#[test]
fn an_image_shows_again_after_each_cleaning() {
    shows_again(true);
    shows_again(false);
}

fn shows_again(tracked: bool) {
    let data: Vec<u8> = (0..10_000_u32).map(|at| at as u8 | 1).collect();
    let image = Arc::new(Image::new(&data, 0..data.len()).unwrap());
    let mut slot = Slot::reserve(tracked).unwrap();
    slot.show(&image).unwrap();
    slot.grow(PAGE_BYTES).unwrap();
    let fresh = slot.bytes().to_vec();
    assert_eq!(fresh[..data.len()], data);
    assert!(fresh[data.len()..].iter().all(|byte| *byte == 0));
    // Single bytes in image and zeros, all of it, and growth of little and of much.
    for (stride, grown) in [(5000, 1), (1, 1), (4096, 5), (1, 5), (1, 40), (4096, 1)] {
        slot.grow(grown * PAGE_BYTES).unwrap();
        for byte in slot.bytes_mut().iter_mut().step_by(stride) {
            *byte = byte.wrapping_add(3);
        }
        slot.clean(PAGE_BYTES, Faults::unknown()).unwrap();
        assert_eq!(slot.accessible(), PAGE_BYTES);
        assert!(slot.bytes() == fresh, "stride {stride}, {grown} pages");
        slot.grow(grown * PAGE_BYTES).unwrap();
        assert!(slot.bytes()[PAGE_BYTES..].iter().all(|byte| *byte == 0));
        slot.clean(PAGE_BYTES, Faults::unknown()).unwrap();
    }
    slot.bytes_mut().fill(9);
    slot.empty().unwrap();
    assert_eq!(slot.accessible(), 0);
    slot.grow(2 * PAGE_BYTES).unwrap();
    assert!(slot.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn the_pool_keeps_no_more_than_it_may() {
    let pool = MemoryPool::new(2, true);
    for _ in 0..3 {
        pool.put_back(Slot::reserve(true).unwrap());
    }
    assert_eq!(pool.lock().len(), 2);
}

#[test]
fn regions_are_all_found_whatever_their_number() {
    if !dirty::is_tracked() {
        // An older kernel: everything above ran on the slower path.
        return;
    }
    let mut slot = Slot::reserve(true).unwrap();
    slot.grow(100 * PAGE_BYTES).unwrap();
    let start = slot.base() as usize;
    for at in (0..slot.accessible()).step_by(2 * 4096) {
        slot.bytes_mut()[at] = 1;
    }
    let mut found = Vec::new();
    assert!(dirty::regions(start..start + slot.accessible(), |region| {
        found.push(region.start - start);
        region.len() == 4096
    }));
    assert_eq!(found.len(), 100 * PAGE_BYTES / (2 * 4096));
    assert!(found.iter().all(|at| at % (2 * 4096) == 0));
    let mut seen = 0;
    assert!(!dirty::regions(start..start + slot.accessible(), |_| {
        seen += 1;
        seen < 3
    }));
    assert_eq!(seen, 3);
}

#[test]
fn guests_of_many_sizes_leave_no_more_than_one() {
    if !dirty::is_tracked() {
        return;
    }
    let mut slot = Slot::reserve(true).unwrap();
    slot.grow(PAGE_BYTES).unwrap();
    let start = slot.base() as usize;
    for pages in (8..=200).rev().step_by(4) {
        slot.grow(pages * PAGE_BYTES).unwrap();
        let top = slot.accessible();
        slot.bytes_mut()[top - 6 * PAGE_BYTES..].fill(1);
        slot.clean(PAGE_BYTES, Faults::unknown()).unwrap();
        let mut resident = 0;
        dirty::regions(start..start + 200 * PAGE_BYTES, |region| {
            resident += region.len();
            true
        });
        assert!(resident <= 512 * 1024, "{resident} after {pages}");
    }
    slot.grow(200 * PAGE_BYTES).unwrap();
    assert!(slot.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn an_image_stands_where_its_data_does() {
    let mut memory = vec![0; 40 * PAGE_BYTES];
    let (start, end) = (17 * PAGE_BYTES + 100, 18 * PAGE_BYTES + 5000);
    memory[start..end].fill(7);
    let image = Image::new(&memory, start..end).unwrap();
    // Not what is before it, which may be much.
    assert!(image.held_bytes() < 8 * PAGE_BYTES as u64);
    let image = Arc::new(image);
    for tracked in [true, false] {
        let mut slot = Slot::reserve(tracked).unwrap();
        slot.show(&image).unwrap();
        slot.grow(memory.len()).unwrap();
        for (from, to) in [
            (start - 9, start + 9),
            (end - 9, end + 9),
            (0, 9),
            (start, end),
        ] {
            assert!(slot.bytes() == memory);
            slot.bytes_mut()[from..to].fill(9);
            slot.clean(memory.len(), Faults::unknown()).unwrap();
        }
        assert!(slot.bytes() == memory);
        slot.empty().unwrap();
        slot.grow(memory.len()).unwrap();
        assert!(slot.bytes().iter().all(|byte| *byte == 0));
    }
    let nothing = Image::new(&[], 0..0).unwrap();
    assert_eq!((nothing.held_bytes(), nothing.range()), (0, 0..0));
    let mut slot = Slot::reserve(true).unwrap();
    slot.show(&Arc::new(nothing)).unwrap();
    assert_eq!(slot.accessible(), 0);
}

/// What a guest does between the moment its faults are asked for and the cleaning, again and again.
#[test]
fn pages_of_its_own_are_put_back_whether_there_were_faults_or_not() {
    let data: Vec<u8> = (0..50_000_u32).map(|at| at as u8 | 1).collect();
    let image = Arc::new(Image::new(&data, 0..data.len()).unwrap());
    let mut slot = Slot::reserve(dirty::is_tracked()).unwrap();
    slot.show(&image).unwrap();
    slot.grow(2 * PAGE_BYTES).unwrap();
    let fresh = slot.bytes().to_vec();
    let mut random = 7_u32;
    for round in 0..5_000 {
        let faults = Faults::so_far();
        // The same few pages for long, then others, as a guest with another input would.
        for _ in 0..3 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pages = if round % 50 == 0 { 32 } else { 1 + round / 500 };
            let at = (random >> 8) as usize % pages * 4096 + (random >> 20) as usize % 4096;
            slot.bytes_mut()[at] ^= 0x55;
        }
        if round % 70 == 0 {
            slot.grow(3 * PAGE_BYTES).unwrap();
            slot.bytes_mut()[2 * PAGE_BYTES + round] = 1;
        }
        slot.clean(2 * PAGE_BYTES, faults).unwrap();
        assert!(slot.bytes() == fresh, "round {round}");
    }
    slot.grow(3 * PAGE_BYTES).unwrap();
    assert!(slot.bytes()[2 * PAGE_BYTES..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_page_touched_for_the_first_time_is_a_fault() {
    let mut slot = Slot::reserve(true).unwrap();
    slot.grow(100 * PAGE_BYTES).unwrap();
    let mut calm = 0;
    for page in 0..100 {
        // Whatever it has cached, it must notice.
        let faults = Faults::so_far();
        slot.bytes_mut()[page * PAGE_BYTES] = 1;
        assert!(!faults.none_since(), "page {page}");
        let faults = Faults::so_far();
        slot.bytes_mut()[page * PAGE_BYTES] = 2;
        calm += usize::from(faults.none_since());
    }
    // Nothing else of this thread faults all the time.
    assert!(calm > 50, "{calm}");
    assert!(!Faults::unknown().none_since());
}

#[test]
fn another_threads_slot_is_looked_through() {
    let mut slot = Slot::reserve(dirty::is_tracked()).unwrap();
    slot.grow(PAGE_BYTES).unwrap();
    slot.clean(PAGE_BYTES, Faults::unknown()).unwrap();
    let mut slot = std::thread::spawn(move || {
        slot.bytes_mut()[5 * 4096] = 1;
        slot
    })
    .join()
    .unwrap();
    slot.clean(PAGE_BYTES, Faults::unknown()).unwrap();
    assert!(slot.bytes().iter().all(|byte| *byte == 0));
}
