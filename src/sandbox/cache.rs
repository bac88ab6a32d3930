//! Prepared modules in memory, and for a short while what could not be prepared.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::{ModuleError, ModuleHash, Prepared};

/// How long a refusal is remembered. A client that repeats itself costs nothing meanwhile.
const REFUSAL_KEPT: Duration = Duration::from_secs(30);
/// Refusals remembered at a time.
const REFUSALS_MAX: usize = 1024;
/// What a module holds beside its code (its engine, tables, hash), in bytes, about.
const ENTRY_BYTES: u64 = 64 * 1024;

/// Prepared modules, least recently used out first. A module that leaves the cache lives on while
/// guests run it.
pub(super) struct ModuleCache {
    bytes_max: u64,
    clock: AtomicU64,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    by_hash: HashMap<ModuleHash, Entry>,
    bytes: u64,
}

struct Entry {
    module: Arc<Prepared>,
    bytes: u64,
    used: AtomicU64,
}

impl ModuleCache {
    /// A cache of at most `bytes_max` bytes of code and what belongs to it.
    pub(super) fn new(bytes_max: u64) -> ModuleCache {
        ModuleCache {
            bytes_max,
            clock: AtomicU64::new(0),
            entries: RwLock::default(),
        }
    }

    pub(super) fn get(&self, hash: &ModuleHash) -> Option<Arc<Prepared>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.by_hash.get(hash)?;
        entry.used.store(self.tick(), Ordering::Relaxed);
        Some(Arc::clone(&entry.module))
    }

    /// Keeps a module, unless it alone is too large.
    pub(super) fn insert(&self, module: Arc<Prepared>) {
        let bytes = module.held_bytes().saturating_add(ENTRY_BYTES);
        if bytes > self.bytes_max {
            return;
        }
        let entry = Entry {
            module,
            bytes,
            used: AtomicU64::new(self.tick()),
        };
        // What is dropped is freed after the lock: unmapping code takes its time.
        let mut dropped = Vec::new();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        dropped.extend(entries.remove(&entry.module.hash()));
        while entries.bytes.saturating_add(bytes) > self.bytes_max {
            let Some(oldest) = entries.least_used() else {
                break;
            };
            dropped.extend(entries.remove(&oldest));
        }
        entries.bytes += bytes;
        entries.by_hash.insert(entry.module.hash(), entry);
        drop(entries);
        drop(dropped);
    }

    pub(super) fn len(&self) -> usize {
        self.entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_hash
            .len()
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
}

impl Entries {
    fn least_used(&self) -> Option<ModuleHash> {
        let (hash, _) = self
            .by_hash
            .iter()
            .min_by_key(|(_, entry)| entry.used.load(Ordering::Relaxed))?;
        Some(*hash)
    }

    fn remove(&mut self, hash: &ModuleHash) -> Option<Entry> {
        let entry = self.by_hash.remove(hash)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }
}

/// Modules that were refused a short while ago.
#[derive(Default)]
pub(super) struct Refusals {
    by_hash: Mutex<HashMap<ModuleHash, (ModuleError, Instant)>>,
}

impl Refusals {
    pub(super) fn get(&self, hash: &ModuleHash, now: Instant) -> Option<ModuleError> {
        let refusals = self.lock();
        let (error, since) = refusals.get(hash)?;
        fresh(*since, now).then(|| error.clone())
    }

    /// Remembers errors that are the module's own.
    pub(super) fn insert(&self, hash: ModuleHash, error: &ModuleError, now: Instant) {
        match error {
            ModuleError::Invalid(_) | ModuleError::OverLimit(_) | ModuleError::CompileLimit(_) => {}
            ModuleError::Busy | ModuleError::Internal(_) => return,
        }
        let mut refusals = self.lock();
        if refusals.len() >= REFUSALS_MAX {
            refusals.retain(|_, (_, since)| fresh(*since, now));
        }
        if refusals.len() >= REFUSALS_MAX {
            refusals.clear();
        }
        refusals.insert(hash, (error.clone(), now));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ModuleHash, (ModuleError, Instant)>> {
        self.by_hash.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < REFUSAL_KEPT
}

#[cfg(test)]
mod tests;
