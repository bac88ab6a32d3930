//! How much memory the traces that wait for the collector may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub struct Room {
    bytes_max: usize,
    bytes_taken: AtomicUsize,
}

/// What one trace takes of it, until this is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    pub fn new(bytes_max: usize) -> Arc<Room> {
        Arc::new(Room {
            bytes_max,
            bytes_taken: AtomicUsize::new(0),
        })
    }

    /// `None` where there is not so much left.
    pub fn take(self: &Arc<Room>, bytes: usize) -> Option<Place> {
        let with = |taken: usize| {
            let taken = taken.checked_add(bytes)?;
            (taken <= self.bytes_max).then_some(taken)
        };
        self.bytes_taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, with)
            .ok()?;
        let room = Arc::clone(self);
        Some(Place { room, bytes })
    }

    /// Whether more than half of it is taken.
    pub fn is_crowded(&self) -> bool {
        self.bytes_taken.load(Ordering::Relaxed) > self.bytes_max / 2
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room
            .bytes_taken
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_what_is_given_back_is_there_again() {
        let room = Room::new(10);
        let first = room.take(6).unwrap();
        assert!(room.is_crowded());
        assert!(room.take(5).is_none() && room.take(usize::MAX).is_none());
        let second = room.take(4).unwrap();
        assert!(room.take(1).is_none());
        drop(first);
        assert!(!room.is_crowded());
        drop((room.take(6).unwrap(), second));
        assert_eq!(room.bytes_taken.load(Ordering::Relaxed), 0);
    }
}
