//! Prepared modules in memory, and for a short while what could not be prepared.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::compile::Quality;
use super::engine::Compiler;
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
    /// Of a module whose code could be better.
    improvement: Option<Improvement>,
    bytes: u64,
    used: AtomicU64,
}

struct Improvement {
    wasm: Bytes,
    is_asked_for: AtomicBool,
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
        let entries = self.read();
        let entry = entries.by_hash.get(hash)?;
        entry.used.store(self.tick(), Ordering::Relaxed);
        Some(Arc::clone(&entry.module))
    }

    /// Keeps a module, unless it alone is too large or there is a better one of the same bytes. If its
    /// code could be better, it comes with the bytes that would be needed.
    pub(super) fn insert(&self, module: Arc<Prepared>, improvable: Option<Bytes>) {
        let wasm_bytes = improvable.as_ref().map_or(0, Bytes::len) as u64;
        let bytes = module
            .held_bytes()
            .saturating_add(ENTRY_BYTES)
            .saturating_add(wasm_bytes);
        if bytes > self.bytes_max {
            return;
        }
        let entry = Entry {
            module,
            improvement: improvable.map(|wasm| Improvement {
                wasm,
                is_asked_for: AtomicBool::new(false),
            }),
            bytes,
            used: AtomicU64::new(self.tick()),
        };
        // What is dropped is freed after the lock: unmapping code takes its time.
        let mut dropped = Vec::new();
        let mut entries = self.write();
        if entry.module.compiler() == Compiler::Singlepass
            && let Some(other) = entries.by_hash.get(&entry.module.hash())
            && other.module.compiler() == Compiler::Cranelift
        {
            return;
        }
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

    /// The bytes of a module whose code could be better: once, for who sees to that.
    pub(super) fn improvable(&self, hash: &ModuleHash) -> Option<Bytes> {
        let entries = self.read();
        let improvement = entries.by_hash.get(hash)?.improvement.as_ref()?;
        let is_first = !improvement.is_asked_for.swap(true, Ordering::AcqRel);
        is_first.then(|| improvement.wasm.clone())
    }

    /// It was not seen to; the next to ask may.
    pub(super) fn still_improvable(&self, hash: &ModuleHash) {
        let entries = self.read();
        let entry = entries.by_hash.get(hash);
        if let Some(improvement) = entry.and_then(|entry| entry.improvement.as_ref()) {
            improvement.is_asked_for.store(false, Ordering::Release);
        }
    }

    /// There is no better code for it.
    pub(super) fn not_improvable(&self, hash: &ModuleHash) {
        let mut entries = self.write();
        let Some(entry) = entries.by_hash.get_mut(hash) else {
            return;
        };
        let Some(improvement) = entry.improvement.take() else {
            return;
        };
        let wasm_bytes = improvement.wasm.len() as u64;
        entry.bytes -= wasm_bytes;
        entries.bytes -= wasm_bytes;
    }

    pub(super) fn len(&self) -> usize {
        self.read().by_hash.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
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

/// Modules that were refused a short while ago, by the code that was asked for: one compiler may
/// manage what the other does not.
#[derive(Default)]
pub(super) struct Refusals {
    by_key: Mutex<HashMap<RefusalKey, (ModuleError, Instant)>>,
}

type RefusalKey = (ModuleHash, Quality);

impl Refusals {
    pub(super) fn get(&self, key: &RefusalKey, now: Instant) -> Option<ModuleError> {
        let refusals = self.lock();
        let (error, since) = refusals.get(key)?;
        fresh(*since, now).then(|| error.clone())
    }

    /// Remembers errors that are the module's own.
    pub(super) fn insert(&self, key: RefusalKey, error: &ModuleError, now: Instant) {
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
        refusals.insert(key, (error.clone(), now));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RefusalKey, (ModuleError, Instant)>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < REFUSAL_KEPT
}

#[cfg(test)]
mod tests;
