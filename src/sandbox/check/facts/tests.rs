//! What is read off a module. (The bounds on frames are tried in `engine::tests`.)

use super::super::{Limits, check};
use super::Facts;

fn facts(text: &str) -> Facts {
    let limits = Limits {
        wasm_bytes_max: 1 << 20,
        table_elements_max: 1000,
    };
    let text = format!("(module {text} (func (export \"_start\")))");
    check(&wat::parse_str(text).unwrap(), limits).unwrap()
}

#[test]
fn an_ordinary_module_has_both() {
    let expected = Facts {
        resettable: true,
        singlepass: true,
    };
    for text in [
        "",
        "(memory (export \"memory\") 1) (data $d \"x\")
         (func (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))
           (drop (memory.grow (i32.const 1)))
           (memory.fill (i32.const 0) (i32.const 0) (i32.const 9)))",
        "(global $g (mut i32) (i32.const 1)) (func (global.set $g (i32.const 2)))",
        "(table 3 funcref) (func (param i32) (drop (table.get (local.get 0))) (drop (table.size)))",
        "(func (param i64) (result i64) (block (result i64) (local.get 0)))",
    ] {
        assert_eq!(facts(text), expected, "{text}");
    }
}

#[test]
fn a_module_that_changes_tables_or_drops_segments_is_not_resettable() {
    let around = |code: &str| {
        format!("(table $t 3 funcref) (elem $e func 0) (data $d \"x\") (memory 1) (func {code})")
    };
    for code in [
        "(table.set (i32.const 0) (ref.null func))",
        "(drop (table.grow (ref.null func) (i32.const 1)))",
        "(table.fill (i32.const 0) (ref.null func) (i32.const 1))",
        "(table.copy (i32.const 0) (i32.const 1) (i32.const 1))",
        "(table.init $e (i32.const 0) (i32.const 0) (i32.const 1))",
        "(elem.drop $e)",
        "(data.drop $d)",
        // Where it can't be reached, too: nothing is assumed.
        "(return) (data.drop $d)",
    ] {
        assert!(!facts(&around(code)).resettable, "{code}");
    }
    assert!(facts(&around("")).resettable);
}

#[test]
fn vectors_of_any_kind_are_not_for_singlepass() {
    for text in [
        "(func (drop (v128.const i64x2 0 0)))",
        "(memory 1) (func (drop (i32x4.extract_lane 0 (v128.load (i32.const 0)))))",
        "(func (param v128))",
        "(type (func (result v128)))",
        "(func (drop (i8x16.popcnt (v128.const i64x2 0 0))))",
    ] {
        assert!(!facts(text).singlepass, "{text}");
    }
}

#[test]
fn open_blocks_are_counted_for_each_function_and_closed_again() {
    let one = "(drop (block (result i64) (i64.const 1)))";
    assert!(facts(&format!("(func {})", one.repeat(500))).singlepass);
    assert!(facts(&format!("(func {})", one).repeat(500)).singlepass);
    let nest = |depth: usize| {
        format!(
            "(func (result i64) {} (i64.const 1) {})",
            "(block (result i64)".repeat(depth),
            ")".repeat(depth)
        )
    };
    assert!(facts(&nest(128)).singlepass);
    assert!(!facts(&nest(129)).singlepass);
    // What follows is still counted right.
    assert!(facts(&format!("{} {}", nest(128), nest(128))).singlepass);
    // Blocks without a result take nothing.
    let plain = format!("(func {} {})", "(block".repeat(5000), ")".repeat(5000));
    assert!(facts(&plain).singlepass);
}
