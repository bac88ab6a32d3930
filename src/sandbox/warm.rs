//! Instances between two guests, kept ready for the next.
//!
//! A thread finds the instance that its last guest left, whose memory is in its processor's caches:
//! each has a shelf of its own for each module, and looks at the others' only if that is empty.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::instance::Instance;
use crate::telemetry::shard::{SHARDS, Sharded};

/// The instances of all modules together. Cheap to clone.
#[derive(Clone)]
pub(super) struct WarmPool {
    shared: Arc<Shared>,
}

struct Shared {
    idle_max: usize,
    /// By shelf. One may be less than nothing for a moment (and wrap), but not their sum for long.
    idle: Sharded<AtomicUsize>,
    modules: Mutex<Vec<Weak<Shelves>>>,
    epoch: Instant,
}

/// One module's.
pub(super) struct WarmInstances {
    pool: WarmPool,
    shelves: Arc<Shelves>,
}

#[derive(Default)]
struct Shelves {
    instances: Sharded<Mutex<Vec<Instance>>>,
    /// When the last guest came, in milliseconds since the pool's epoch.
    used: AtomicU64,
}

impl WarmPool {
    /// A pool that keeps at most `idle_max` instances.
    pub(super) fn new(idle_max: usize) -> WarmPool {
        WarmPool {
            shared: Arc::new(Shared {
                idle_max,
                idle: Sharded::default(),
                modules: Mutex::default(),
                epoch: Instant::now(),
            }),
        }
    }

    /// Room for one more module.
    pub(super) fn module(&self) -> WarmInstances {
        let shelves = Arc::<Shelves>::default();
        let mut modules = self.lock();
        modules.retain(|module| module.strong_count() > 0);
        modules.push(Arc::downgrade(&shelves));
        drop(modules);
        WarmInstances {
            pool: self.clone(),
            shelves,
        }
    }

    /// Instances that are kept now.
    pub(super) fn idle(&self) -> usize {
        let counts = self.shared.idle.iter();
        let sum = counts.fold(0_usize, |sum, count| {
            sum.wrapping_add(count.load(Ordering::Relaxed))
        });
        usize::try_from(sum.cast_signed()).unwrap_or(0)
    }

    /// Takes instances away from the modules that were used least recently, an eighth of all, so that
    /// the next guests need not.
    fn evict(&self) {
        let shared = &self.shared;
        let mut modules: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        modules.sort_by_cached_key(|module| module.used.load(Ordering::Relaxed));
        let keep = shared.idle_max - shared.idle_max.div_ceil(8);
        for module in modules {
            for (shelf, idle) in module.instances.iter().zip(shared.idle.iter()) {
                let Some(more) = self.idle().checked_sub(keep).filter(|more| *more > 0) else {
                    return;
                };
                let mut instances = lock(shelf);
                let first_kept = more.min(instances.len());
                // The oldest are at the front. They are dropped without the lock.
                let evicted: Vec<Instance> = instances.drain(..first_kept).collect();
                drop(instances);
                idle.fetch_sub(evicted.len(), Ordering::Relaxed);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Shelves>>> {
        lock(&self.shared.modules)
    }
}

impl WarmInstances {
    /// The one that this thread used last, which the caches still know; or any.
    pub(super) fn take(&self) -> Option<Instance> {
        let shelves = self.shelves.instances.from_mine();
        for (shelf, idle) in shelves.zip(self.pool.shared.idle.from_mine()) {
            let taken = lock(shelf).pop();
            if taken.is_some() {
                idle.fetch_sub(1, Ordering::Relaxed);
                return taken;
            }
        }
        None
    }

    /// Keeps an instance that was [`Instance::reset`].
    pub(super) fn put(&self, instance: Instance) {
        let shared = &self.pool.shared;
        if shared.idle_max == 0 {
            return;
        }
        let now = u64::try_from(shared.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Mostly the same millisecond, and then other processors need not hear of it.
        if self.shelves.used.load(Ordering::Relaxed) != now {
            self.shelves.used.store(now, Ordering::Relaxed);
        }
        lock(self.shelves.instances.mine()).push(instance);
        let before = shared.idle.mine().fetch_add(1, Ordering::Relaxed);
        // As long as none has more than its part, all have no more than there may be.
        if before >= shared.idle_max / SHARDS && self.pool.idle() > shared.idle_max {
            self.pool.evict();
        }
    }

    /// Instances that are kept now.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.shelves
            .instances
            .iter()
            .map(|shelf| lock(shelf).len())
            .sum()
    }
}

impl Drop for WarmInstances {
    fn drop(&mut self) {
        let shelves = self.shelves.instances.iter();
        for (shelf, idle) in shelves.zip(self.pool.shared.idle.iter()) {
            let instances = std::mem::take(&mut *lock(shelf));
            idle.fetch_sub(instances.len(), Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
