//! What stays and what goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::compile::Quality;
use super::super::engine::{Compiler, Prepared, prepare_here, prepare_with};
use super::super::{ModuleError, ModuleHash};
use super::{ENTRY_BYTES, ModuleCache, REFUSAL_KEPT, REFUSALS_MAX, Refusals};

fn module(number: u32) -> Arc<Prepared> {
    prepare_here(&format!(
        "(module (func (export \"_start\") (drop (i32.const {number}))))"
    ))
}

#[test]
fn the_least_recently_used_module_goes_first() {
    let [a, b, c] = [1, 2, 3].map(module);
    let entry = a.held_bytes() + ENTRY_BYTES;
    let cache = ModuleCache::new(entry * 5 / 2);
    cache.insert(Arc::clone(&a), None);
    cache.insert(Arc::clone(&b), None);
    assert!(cache.get(&a.hash()).is_some());
    cache.insert(Arc::clone(&c), None);
    assert!(cache.get(&b.hash()).is_none());
    assert!(cache.get(&a.hash()).is_some() && cache.get(&c.hash()).is_some());
    assert_eq!(cache.len(), 2);
    // The same again replaces itself.
    cache.insert(Arc::clone(&c), None);
    assert_eq!(cache.len(), 2);
    assert_eq!(
        cache.entries.read().unwrap().bytes,
        cache
            .entries
            .read()
            .unwrap()
            .by_hash
            .values()
            .map(|entry| entry.bytes)
            .sum::<u64>()
    );
}

#[test]
fn a_module_larger_than_the_cache_is_not_kept_and_empties_nothing() {
    let small = module(1);
    let cache = ModuleCache::new(small.held_bytes() + ENTRY_BYTES);
    cache.insert(Arc::clone(&small), None);
    let large = prepare_here(&format!(
        "(module (func (export \"_start\")) {})",
        "(func (param i64) (result i64) (i64.mul (local.get 0) (local.get 0)))".repeat(500)
    ));
    cache.insert(Arc::clone(&large), None);
    assert!(cache.get(&large.hash()).is_none());
    assert!(cache.get(&small.hash()).is_some());
}

#[test]
fn refusals_are_the_modules_own_and_pass_away() {
    let refusals = Refusals::default();
    let (hash, now) = ((ModuleHash([1; 32]), Quality::Soon), Instant::now());
    for transient in [ModuleError::Busy, ModuleError::Internal("x".into())] {
        refusals.insert(hash, &transient, now);
        assert!(refusals.get(&hash, now).is_none());
    }
    refusals.insert(hash, &ModuleError::CompileLimit("slow".into()), now);
    assert!(matches!(
        refusals.get(&hash, now),
        Some(ModuleError::CompileLimit(_))
    ));
    assert!(refusals.get(&hash, now + REFUSAL_KEPT).is_none());
    assert!(
        refusals
            .get(&hash, now + REFUSAL_KEPT - Duration::from_millis(1))
            .is_some()
    );
}

#[test]
fn refusals_are_bounded() {
    let refusals = Refusals::default();
    let now = Instant::now();
    for number in 0..3 * REFUSALS_MAX {
        let hash = (ModuleHash::of(&number.to_le_bytes()), Quality::Best);
        refusals.insert(hash, &ModuleError::Invalid("no".into()), now);
        assert!(refusals.get(&hash, now).is_some());
        assert!(refusals.lock().len() <= REFUSALS_MAX);
    }
}

#[test]
fn better_code_replaces_other_code_and_not_the_other_way_round() {
    let text = "(module (func (export \"_start\")))";
    let quick = prepare_with(text, Compiler::Singlepass);
    let best = prepare_with(text, Compiler::Cranelift);
    let hash = quick.hash();
    let cache = ModuleCache::new(1 << 30);
    let wasm = Bytes::from_static(b"the module");
    cache.insert(Arc::clone(&quick), Some(wasm.clone()));
    let with_wasm = cache.read().bytes;
    assert_eq!(cache.improvable(&hash), Some(wasm.clone()));
    // Only one sees to it, until it is known that nobody did.
    assert_eq!(cache.improvable(&hash), None);
    cache.still_improvable(&hash);
    assert_eq!(cache.improvable(&hash), Some(wasm.clone()));
    cache.not_improvable(&hash);
    cache.still_improvable(&hash);
    assert_eq!(cache.improvable(&hash), None);
    assert_eq!(cache.read().bytes, with_wasm - wasm.len() as u64);

    cache.insert(Arc::clone(&best), None);
    cache.insert(Arc::clone(&quick), Some(wasm));
    assert_eq!(cache.get(&hash).unwrap().compiler(), Compiler::Cranelift);
    assert_eq!(cache.len(), 1);
    assert_eq!(cache.improvable(&hash), None);
}
