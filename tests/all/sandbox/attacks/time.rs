//! Guests that would never end.

use super::Expected::TimeLimit;
use super::{attacks, body, module, text};

/// Functions that recurse for ever without going deep, and a table with one that does nothing.
const FUNCTIONS: &str =
    "(table 2 funcref) (elem (i32.const 0) $leaf $other) (func $leaf) (func $other)
    (func $fib (param i32) (result i32)
      (if (result i32) (i32.lt_u (local.get 0) (i32.const 2))
        (then (local.get 0))
        (else (i32.add (call $fib (i32.sub (local.get 0) (i32.const 1)))
                       (call $fib (i32.sub (local.get 0) (i32.const 2)))))))";

const POLL: &str = "(import \"wasi_snapshot_preview1\" \"poll_oneoff\"
      (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export \"memory\") 1)";

/// Sleeps once, `nanoseconds` on the clock 1.
fn sleep(nanoseconds: &str) -> String {
    format!(
        "(i32.store (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (i64.const {nanoseconds}))
         (drop (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256)))"
    )
}

attacks! {
    endless_loop_in_the_body => TimeLimit, vec![
        body("(loop (br 0))"),
        body("(local i64) (loop (local.set 0 (i64.add (local.get 0) (i64.const 1))) (br_if 0 (i32.const 1)))"),
        body("(loop (block (br_table 1 1 0 (i32.const 7))) (br 0))"),
        body("(loop (loop (loop (br 2))))"),
    ];
    endless_loop_in_the_start_section => TimeLimit, vec![
        module("(func $s (loop (br 0))) (start $s)", ""),
        module(&format!("{POLL} (func $s {}) (start $s)", sleep("-1")), ""),
    ];
    endless_recursion => TimeLimit, vec![
        module(FUNCTIONS, "(drop (call $fib (i32.const 80)))"),
        text(&format!("(module {FUNCTIONS} (func $s (drop (call $fib (i32.const 80)))) (start $s)
            (func (export \"_start\")))")),
    ];
    endless_calls_through_a_table => TimeLimit, vec![
        module(FUNCTIONS, "(loop (call_indirect (i32.const 0)) (br 0))"),
        // Two that call each other in turn, never deeper than a hundred calls.
        module(
            "(type $t (func (param i32))) (table 2 funcref) (elem (i32.const 0) $a $b)
             (func $a (param i32) (if (local.get 0) (then
               (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 1)))))
             (func $b (param i32) (if (local.get 0) (then
               (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0)))))",
            "(loop (call $a (i32.const 100)) (br 0))",
        ),
    ];
    endless_operators => TimeLimit, [
        "(loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br 0))",
        "(loop (memory.copy (i32.const 1) (i32.const 0) (i32.const 65535)) (br 0))",
        "(loop (memory.init $p (i32.const 0) (i32.const 0) (i32.const 8)) (br 0))",
        "(loop (drop (memory.grow (i32.const 0))) (br 0))",
        "(loop (drop (memory.grow (i32.const 1))) (br 0))",
        "(loop (drop (table.grow (ref.null func) (i32.const 1))) (br 0))",
        "(loop (drop (table.grow (ref.null func) (i32.const -1))) (br 0))",
        "(loop (table.fill (i32.const 0) (ref.null func) (i32.const 10)) (br 0))",
        "(loop (table.copy (i32.const 0) (i32.const 1) (i32.const 9)) (br 0))",
        "(loop (table.init $e (i32.const 0) (i32.const 0) (i32.const 2)) (br 0))",
        "(loop (table.set (i32.const 0) (table.get (i32.const 1))) (br 0))",
        "(loop (data.drop $p) (elem.drop $e) (br 0))",
        "(loop (drop (memory.size)) (drop (table.size)) (drop (ref.func $f)) (br 0))",
    ]
    .map(|body| {
        module("(memory 1) (table 10 funcref) (data $p \"12345678\") (elem $e func $f $f) (func $f)", body)
    })
    .into();
    large_fills => TimeLimit, vec![
        module("(memory 2048)", "(loop (memory.fill (i32.const 0) (i32.const 7) (i32.const 0x8000000)) (br 0))"),
        module("(memory 2048)", "(loop (memory.copy (i32.const 1) (i32.const 0) (i32.const 0x7ffffff)) (br 0))"),
    ];
    endless_host_calls => TimeLimit, [
        ("sched_yield", "", "(drop (call $it))"),
        ("fd_write", "i32 i32 i32 i32", "(drop (call $it (i32.const 2) (i32.const 0) (i32.const 8) (i32.const 64)))"),
        ("fd_read", "i32 i32 i32 i32", "(drop (call $it (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 64)))"),
        ("random_get", "i32 i32", "(drop (call $it (i32.const 0) (i32.const 65536)))"),
        ("args_sizes_get", "i32 i32", "(drop (call $it (i32.const 0) (i32.const 4)))"),
        ("clock_time_get", "i32 i64 i32", "(drop (call $it (i32.const 1) (i64.const 0) (i32.const 0)))"),
        ("poll_oneoff", "i32 i32 i32 i32", "(drop (call $it (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)))"),
    ]
    .map(|(name, parameters, call)| {
        module(
            &format!(
                "(import \"wasi_snapshot_preview1\" \"{name}\" (func $it (param {parameters}) (result i32)))
                 (memory (export \"memory\") 1)"
            ),
            &format!("(loop {call} (br 0))"),
        )
    })
    .into();
    sleeping_for_ever => TimeLimit, vec![
        module(POLL, &sleep("-1")),
        module(POLL, &sleep("9223372036854775807")),
        module(POLL, &format!("(loop {} (br 0))", sleep("1000"))),
        module(POLL, &format!("(loop {} (br 0))", sleep("0"))),
    ];
    much_randomness => TimeLimit, vec![
        module(
            "(import \"wasi_snapshot_preview1\" \"random_get\" (func $random (param i32 i32) (result i32)))
             (memory (export \"memory\") 2048)",
            "(loop (drop (call $random (i32.const 0) (i32.const 0x8000000))) (br 0))",
        ),
    ];
}
