//! The room for request bodies: what the gateway holds of all of them at a time.
//!
//! Nobody may take it all: a share has at most a quarter, and the last part is kept for shares that
//! hold little. So one client that sends many bodies and never ends them, with or without a key,
//! is in its own way only.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::failure::{Failure, code};
use crate::sandbox::ShareKey;

/// What is held of all bodies, over all connections, in bytes, unless one body of the control plane
/// may have more than a share of that.
const HELD_BYTES_MAX: usize = 128 * 1024 * 1024;
/// The part of the room that one share may hold, and the part that is kept for shares that hold
/// little: one in so many.
const SHARE: usize = 4;
const KEPT: usize = 8;
/// What a share may hold of the kept part too, in bytes: a body that streams, or some small ones.
const LITTLE_BYTES: usize = 256 * 1024;
/// The least that is counted, in bytes: keeping a body takes more than its own bytes.
const UNIT_BYTES: usize = 1024;

/// The room for request bodies.
pub struct BodyRoom(Arc<Room>);

struct Room {
    bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    /// Only those that hold something.
    shares: HashMap<ShareKey, usize>,
}

/// The part of the room that one body takes. Given back when it is dropped.
pub(super) struct Place {
    room: Arc<Room>,
    share: ShareKey,
    /// Changed only while the room is locked.
    bytes: AtomicUsize,
}

impl BodyRoom {
    /// A room in which a share has place for at least one body of the control plane.
    pub fn new(api_body_bytes_max: u64) -> BodyRoom {
        let body = usize::try_from(api_body_bytes_max).unwrap_or(usize::MAX);
        let body = body.checked_next_multiple_of(UNIT_BYTES).unwrap_or(body);
        BodyRoom::of(body.saturating_mul(SHARE).max(HELD_BYTES_MAX))
    }

    fn of(bytes_max: usize) -> BodyRoom {
        BodyRoom(Arc::new(Room {
            bytes_max,
            held: Mutex::default(),
        }))
    }

    /// A place for a body of which nothing has come yet.
    pub(super) fn place(&self, share: ShareKey) -> Place {
        Place {
            room: Arc::clone(&self.0),
            share,
            bytes: AtomicUsize::new(0),
        }
    }
}

impl Place {
    /// Makes sure that the place has this many bytes.
    pub(super) fn cover(&self, bytes: usize) -> Result<(), Failure> {
        let wanted = bytes.div_ceil(UNIT_BYTES).saturating_mul(UNIT_BYTES);
        let mut held = self.room.lock();
        let have = self.bytes.load(Ordering::Relaxed);
        let Some(more) = wanted.checked_sub(have).filter(|more| *more > 0) else {
            return Ok(());
        };
        let share = held.shares.get(&self.share).copied().unwrap_or(0);
        let (share, all) = (share.saturating_add(more), held.bytes.saturating_add(more));
        let bytes_max = self.room.bytes_max;
        let kept = if share <= LITTLE_BYTES {
            0
        } else {
            bytes_max / KEPT
        };
        if share > bytes_max / SHARE || all > bytes_max - kept {
            drop(held);
            let message = "too many request bodies are being received; try again shortly";
            return Err(Failure::unavailable(code::GUESTS_BUSY, message));
        }
        held.shares.insert(self.share, share);
        held.bytes = all;
        self.bytes.store(wanted, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes == 0 {
            return;
        }
        let mut held = self.room.lock();
        held.bytes -= bytes;
        if let Entry::Occupied(mut share) = held.shares.entry(self.share) {
            *share.get_mut() -= bytes;
            if *share.get() == 0 {
                share.remove();
            }
        }
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn share(name: &str) -> ShareKey {
        ShareKey::of(name)
    }

    #[test]
    fn a_place_grows_and_is_given_back() {
        let room = BodyRoom::of(128 * MIB);
        let place = room.place(share("a"));
        assert!(place.cover(1).is_ok());
        assert_eq!(room.0.lock().bytes, UNIT_BYTES);
        assert!(place.cover(5 * MIB).is_ok());
        assert!(place.cover(MIB).is_ok(), "what is held already covers it");
        let other = room.place(share("a"));
        assert!(other.cover(MIB).is_ok());
        assert_eq!(room.0.lock().bytes, 6 * MIB);
        drop(place);
        assert_eq!(room.0.lock().shares[&share("a")], MIB);
        drop(other);
        let held = room.0.lock();
        assert!(held.bytes == 0 && held.shares.is_empty());
    }

    #[test]
    fn a_share_has_a_quarter_however_many_bodies_it_sends() {
        let room = BodyRoom::of(128 * MIB);
        let places: Vec<_> = (0..512).map(|_| room.place(share("a"))).collect();
        assert!(places.iter().all(|place| place.cover(64 * 1024).is_ok()));
        let refused = room.place(share("a")).cover(1).unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code),
            (503, "guests_busy")
        );
        assert!(refused.retry_after.is_some());
        assert!(room.place(share("b")).cover(32 * MIB).is_ok());
        drop(places);
        assert!(room.place(share("a")).cover(32 * MIB).is_ok());
    }

    #[test]
    fn several_together_leave_room_for_those_that_hold_little() {
        let room = BodyRoom::of(128 * MIB);
        let places: Vec<_> = (0..8).map(|_| room.place(share("a"))).collect();
        let others: Vec<_> = ["b", "c", "d"].map(|name| room.place(share(name))).into();
        for place in &places {
            assert!(place.cover(4 * MIB).is_ok());
        }
        assert!(others[0].cover(32 * MIB).is_ok());
        assert!(others[1].cover(32 * MIB).is_ok());
        assert!(others[2].cover(32 * MIB).is_err(), "only a part is left");
        assert!(others[2].cover(16 * MIB).is_ok());
        let late = room.place(share("e"));
        assert!(late.cover(LITTLE_BYTES).is_ok());
        assert!(late.cover(LITTLE_BYTES + 1).is_err());
        assert!(late.cover(LITTLE_BYTES).is_ok(), "what it has, it keeps");
    }

    #[test]
    fn a_body_of_the_control_plane_fits_into_a_share() {
        for bytes in [1, 11 * MIB, 512 * MIB + 1] {
            let room = BodyRoom::new(bytes as u64);
            assert!(room.0.bytes_max >= HELD_BYTES_MAX);
            assert!(room.place(share("a")).cover(bytes).is_ok(), "{bytes}");
        }
    }
}
