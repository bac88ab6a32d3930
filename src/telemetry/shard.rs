//! State that is written on every request, kept apart for each thread: two processors that write to
//! the same cache line wait for each other, longer than a short guest takes.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many there are. Threads beyond as many share.
pub const SHARDS: usize = 16;

/// One value for each of [`SHARDS`] groups of threads.
#[derive(Debug, Default)]
pub struct Sharded<T>([Apart<T>; SHARDS]);

/// Nothing else is in the cache lines of the value (which come in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart<T>(T);

impl<T> Sharded<T> {
    /// The calling thread's.
    pub fn mine(&self) -> &T {
        &self.0[index()].0
    }

    /// All of them, the calling thread's first.
    pub fn from_mine(&self) -> impl Iterator<Item = &T> {
        let (before, after) = self.0.split_at(index());
        after.iter().chain(before).map(|shard| &shard.0)
    }

    /// All of them, always in the same order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|shard| &shard.0)
    }
}

/// The calling thread's place; always the same.
fn index() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static INDEX: Cell<Option<usize>> = const { Cell::new(None) };
    }
    INDEX.get().unwrap_or_else(|| {
        let index = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
        INDEX.set(Some(index));
        index
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_one_and_sees_all() {
        let counts = Sharded::<AtomicUsize>::default();
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        counts.mine().fetch_add(1, Ordering::Relaxed);
                    }
                    let mine = std::ptr::from_ref(counts.mine());
                    assert_eq!(
                        counts.from_mine().map(std::ptr::from_ref).next(),
                        Some(mine)
                    );
                    assert_eq!(counts.from_mine().count(), SHARDS);
                });
            }
        });
        let total: usize = counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum();
        assert_eq!(total, 4000);
        assert!(
            counts
                .iter()
                .filter(|count| count.load(Ordering::Relaxed) > 0)
                .count()
                > 1
        );
    }
}
