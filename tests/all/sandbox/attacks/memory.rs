//! Guests that want more memory or larger tables than there are.

use super::Expected::{Exits, Invalid, MemoryLimit, OverLimit, TableLimit, Traps};
use super::{attacks, body, module};

attacks! {
    four_gib_at_start => MemoryLimit, vec![
        module("(memory 65536)", ""),
        module("(memory (export \"memory\") 65536 65536)", ""),
        module("(memory 65535)", "unreachable"),
    ];
    growth_to_the_limit_and_touching_all => Exits(0), vec![
        // Page by page, and a byte in each of its system pages.
        body(
            "(local $at i32)
             (loop (if (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0)) (then
               (local.set $at (i32.shl (i32.sub (memory.size) (i32.const 1)) (i32.const 16)))
               (loop
                 (i32.store8 (local.get $at) (i32.const 1))
                 (local.set $at (i32.add (local.get $at) (i32.const 4096)))
                 (br_if 0 (i32.and (local.get $at) (i32.const 0xffff))))
               (br 1))))",
        ),
        // In steps that are halved when they are refused, and everything written at once.
        body(
            "(local $step i32) (local.set $step (i32.const 32768))
             (loop
               (if (i32.lt_s (memory.grow (local.get $step)) (i32.const 0))
                 (then (local.set $step (i32.shr_u (local.get $step) (i32.const 1)))))
               (br_if 0 (local.get $step)))
             (memory.fill (i32.const 0) (i32.const 255) (i32.shl (memory.size) (i32.const 16)))",
        ),
    ];
    growth_that_is_refused => MemoryLimit, vec![
        body("(if (i32.lt_s (memory.grow (i32.const 60000)) (i32.const 0)) (then unreachable))"),
        body("(drop (memory.grow (i32.const 60000))) (call $exit (i32.const 1))"),
    ];
    addresses_beyond_the_end => Traps("out of bounds memory access"), [
        "(drop (i32.load8_u (i32.const 65536)))",
        "(drop (i32.load (i32.const 65533)))",
        "(drop (i32.load (i32.const -1)))",
        "(drop (i64.load offset=4294967295 (i32.const -1)))",
        "(drop (v128.load offset=4294967280 (i32.const -16)))",
        "(v128.store (i32.const 65521) (v128.const i64x2 0 0))",
        "(i64.store8 offset=4294967295 (i32.const 65536) (i64.const 0))",
        "(memory.fill (i32.const 65535) (i32.const 0) (i32.const 2))",
        "(memory.fill (i32.const 1) (i32.const 0) (i32.const -1))",
        "(memory.copy (i32.const 0) (i32.const 1) (i32.const 65536))",
        "(memory.copy (i32.const -1) (i32.const -1) (i32.const -1))",
    ]
    .map(body)
    .into();
    segments_beyond_the_end => Traps("out of bounds memory access"), vec![
        module("(memory 1) (data (i32.const 65535) \"ab\")", ""),
        module("(memory 1) (data (i32.const -1) \"a\")", ""),
        module("(memory 0) (data (i32.const 0) \"a\")", ""),
        module("(memory 1) (data $p \"ab\")", "(memory.init $p (i32.const 65535) (i32.const 0) (i32.const 2))"),
        module("(memory 1) (data $p \"ab\")", "(memory.init $p (i32.const 0) (i32.const 1) (i32.const 2))"),
        module("(memory 1) (data $p \"ab\")", "(memory.init $p (i32.const 0) (i32.const -1) (i32.const 2))"),
        module("(memory 1) (data $p \"ab\")",
            "(data.drop $p) (memory.init $p (i32.const 0) (i32.const 0) (i32.const 1))"),
    ];
    huge_tables => OverLimit, vec![
        module("(table 4294967295 funcref)", ""),
        module("(table 10000000 funcref)", ""),
        module("(table 4294967295 4294967295 funcref)", ""),
        module(&"(table 99999 funcref) ".repeat(16), ""),
    ];
    many_tables => Invalid("too many tables"), vec![
        module(&"(table 0 funcref) ".repeat(17), ""),
        module(&"(table 0 funcref) ".repeat(100_000), ""),
    ];
    /// Until it is refused, whatever the step; and what was granted is bounded.
    table_grow_without_end => Exits(0), ["1", "7", "1000", "65536", "2147483647", "-1"]
        .map(|step| {
            module(
                "(table $t 1 funcref)",
                &format!(
                    "(loop (br_if 0 (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const {step})))))
                     (if (i32.gt_u (table.size $t) (i32.const 10000000)) (then unreachable))"
                ),
            )
        })
        .into();
    table_growth_that_is_refused => TableLimit, vec![
        module(
            "(table 1 funcref)",
            "(if (i32.lt_s (table.grow (ref.null func) (i32.const 10000000)) (i32.const 0)) (then unreachable))",
        ),
        module(
            "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32))) (table 1 funcref)",
            "(drop (table.grow (ref.null func) (i32.const -1))) (call $exit (i32.const 1))",
        ),
    ];
    all_tables_grow_without_end => Exits(0), vec![module(
        &"(table 0 funcref) ".repeat(16),
        &(0..16)
            .map(|table| format!("(loop (br_if 0 (i32.ne (i32.const -1)
                (table.grow {table} (ref.null func) (i32.const 500)))))"))
            .collect::<String>(),
    )];
    elements_beyond_the_end => Traps("out of bounds table access"), [
        "(call_indirect (i32.const 10))",
        "(call_indirect (i32.const -1))",
        "(drop (table.get (i32.const 10)))",
        "(table.set (i32.const -1) (ref.null func))",
        "(table.fill (i32.const 5) (ref.null func) (i32.const 6))",
        "(table.fill (i32.const 1) (ref.null func) (i32.const -1))",
        "(table.copy (i32.const 0) (i32.const 1) (i32.const 10))",
        "(table.init $e (i32.const 9) (i32.const 0) (i32.const 2))",
        "(table.init $e (i32.const 0) (i32.const -1) (i32.const 2))",
    ]
    .map(|body| module("(table 10 funcref) (elem $e func $f $f) (func $f)", body))
    .into();
}
