//! Guests that want more stack than there is: with frames of all sizes, so that no guard page is
//! jumped over.

use super::Expected::StackLimit;
use super::{attacks, module};

fn repeat(word: &str, count: usize) -> String {
    format!("{word} ").repeat(count)
}

/// Recursion with `count` locals that live across the call, so that they need a place each.
fn live(ty: &str, count: usize) -> Vec<u8> {
    let sets: String = (0..count)
        .map(|n| format!("(local.set {n} (call $value))"))
        .collect();
    let sums: String = (0..count)
        .map(|n| format!("({ty}.store (i32.const 0) (local.get {n}))"))
        .collect();
    module(
        &format!(
            "(memory 1) (func $value (result {ty}) ({ty}.load (i32.const 16)))
             (func $r (local {}) {sets} (call $r) {sums})",
            repeat(ty, count)
        ),
        "(call $r)",
    )
}

/// Recursion through a frame of `count` locals of which only the last is used.
fn untouched(count: usize) -> Vec<u8> {
    let last = count - 1;
    module(
        &format!(
            "(memory 1) (func $r (local {})
               (local.set {last} (i64.load (i32.const 8))) (call $r)
               (i64.store (i32.const 0) (local.get {last})))",
            repeat("i64", count)
        ),
        "(call $r)",
    )
}

fn parameters(count: usize) -> Vec<u8> {
    module(
        &format!(
            "(func $r (param {}) (call $r {}))",
            repeat("i64", count),
            repeat("(i64.const 1)", count)
        ),
        &format!("(call $r {})", repeat("(i64.const 1)", count)),
    )
}

fn results(count: usize) -> Vec<u8> {
    module(
        &format!("(func $r (result {}) (call $r))", repeat("i64", count)),
        &format!("(call $r) {}", repeat("drop", count)),
    )
}

/// A callee with this many parameters and results, called at every depth that there is: its
/// argument area may lie beyond the guard page when the caller's frame does not.
fn wide_call_at_every_depth(parameters: usize, results: usize) -> Vec<u8> {
    module(
        &format!(
            "(memory 1) (func $wide (param {}) (result {}) {})
             (func $r (param i32) {} (call $wide) {} (call $r (local.get 0)) (call $leaf)) (func $leaf)",
            repeat("i64", parameters),
            repeat("i64", results),
            repeat("(i64.const 3)", results),
            repeat("(i64.const 2)", parameters),
            repeat("drop", results)
        ),
        "(call $r (i32.const 1))",
    )
}

attacks! {
    overflow_with_small_frames => StackLimit, vec![
        module("(func $r (call $r))", "(call $r)"),
        module("(func $r (call $r) (call $leaf)) (func $leaf)", "(call $r)"),
        module(
            "(func $r (param i32) (result i32) (i32.add (call $r (i32.add (local.get 0) (i32.const 1))) (local.get 0)))",
            "(drop (call $r (i32.const 0)))",
        ),
    ];
    overflow_with_huge_frames => StackLimit, vec![
        live("i64", 10), live("i64", 128), live("i64", 600), live("i64", 1_000), live("i64", 5_000),
        live("v128", 500), live("v128", 5_000), live("f32", 3_000),
    ];
    overflow_with_frames_hardly_touched => StackLimit, vec![
        untouched(500), untouched(1_100), untouched(5_000), untouched(19_000),
    ];
    overflow_with_many_parameters => StackLimit, vec![
        parameters(10), parameters(100), parameters(128), parameters(129), parameters(500), parameters(1_000),
    ];
    overflow_with_many_results => StackLimit, vec![
        results(2), results(16), results(17), results(128), results(400), results(1_000),
    ];
    overflow_beside_wide_calls => StackLimit, vec![
        wide_call_at_every_depth(0, 16),
        wide_call_at_every_depth(128, 0),
        wide_call_at_every_depth(128, 16),
        wide_call_at_every_depth(1_000, 1_000),
    ];
    overflow_through_a_table => StackLimit, vec![
        module(
            "(table 2 funcref) (elem (i32.const 0) $a $b)
             (func $a (call_indirect (i32.const 1)) (call $n))
             (func $b (call_indirect (i32.const 0)) (call $n)) (func $n)",
            "(call $a)",
        ),
        module(
            "(type $t (func (param i64 v128) (result i64))) (table 2 funcref) (elem (i32.const 0) $a $b)
             (func $a (type $t) (i64.add (local.get 0) (call_indirect (type $t)
               (i64.const 1) (local.get 1) (i32.const 1))))
             (func $b (type $t) (i64.add (local.get 0) (call_indirect (type $t)
               (i64.const 2) (local.get 1) (i32.const 0))))",
            "(drop (call $a (i64.const 0) (v128.const i64x2 0 0)))",
        ),
    ];
    overflow_in_the_start_section => StackLimit, vec![
        module("(func $s (call $s) (call $n)) (func $n) (start $s)", ""),
    ];
    overflow_in_nested_blocks => StackLimit, vec![
        module(
            &format!(
                "(func $r (param i64) (result i64) {} (call $r (local.get 0)) {} (i64.add (local.get 0)))",
                "(block (result i64) ".repeat(500),
                ")".repeat(500)
            ),
            "(drop (call $r (i64.const 1)))",
        ),
        // Deep in operands instead of blocks.
        module(
            &format!(
                "(func $r (result i64) {} (call $r) {})",
                "(i64.const 5) ".repeat(3_000),
                "(i64.mul) ".repeat(3_000)
            ),
            "(drop (call $r))",
        ),
    ];
}
