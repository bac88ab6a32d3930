//! Guests that do what their random input says.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use super::super::{idle, next_is_like_new};
use super::{LONG, Random, memories, run, seeds};
use crate::sandbox::deadline::{self, Sitting};
use crate::sandbox::engine::{Compiler, prepare_in};
use crate::sandbox::warm::WarmPool;
use crate::sandbox::{End, Files};

/// For guests that never end.
const SHORT: Duration = Duration::from_millis(3);

/// What a guest does is read from its input, in steps of an operation and two numbers. It begins by
/// looking at everything that an earlier guest could have changed: exit codes from 90 on tell what
/// is not as it should be, and the sum of all memory is the first output.
fn scripted(operations: &str) -> String {
    let mut cases = String::new();
    let count = operations.lines().count();
    for (number, operation) in operations.lines().enumerate() {
        write!(
            cases,
            "(if (i32.eq (local.get $op) (i32.const {number})) (then {operation}))"
        )
        .unwrap();
    }
    format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $fdstat (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "path_open"
          (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_tell" (func $tell (param i32 i32) (result i32)))
        (memory (export "memory") 4 80)
        (data (i32.const 5) "low") (data (i32.const 65530) "across a page")
        (data (i32.const 131072) "\01") (data (i32.const 300) "file") (data (i32.const 262000) "high") (data $passive "passive")
        (table $t 6 40 funcref) (elem (i32.const 1) $leaf $seven) (elem $e func $seven $leaf)
        (global $i (mut i32) (i32.const 7)) (global $l (mut i64) (i64.const -8))
        (global $f (mut f32) (f32.const 1.5)) (global $d (mut f64) (f64.const -2.5))
        (global $r (mut funcref) (ref.func $leaf)) (global $n (mut funcref) (ref.null func))
        (type $number (func (result i32)))
        ;; Opens the file; the error number.
        (func $open (result i32)
          (call $path_open (i32.const 3) (i32.const 0) (i32.const 300) (i32.const 4) (i32.const 0)
            (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64)))
        ;; Reads four bytes to address 72; the error number.
        (func $read_four (param $fd i32) (result i32)
          (i32.store (i32.const 80) (i32.const 72)) (i32.store (i32.const 84) (i32.const 4))
          (call $read (local.get $fd) (i32.const 80) (i32.const 1) (i32.const 64)))
        (func $leaf) (func $seven (result i32) (i32.const 7))
        (func $deep (call $deep) (call $leaf))

        (func $is_new (local $at i32) (local $sum i64)
          (if (i32.ne (memory.size) (i32.const 4)) (then (call $exit (i32.const 90))))
          (loop
            (local.set $sum (i64.add (i64.rotl (local.get $sum) (i64.const 1)) (i64.load (local.get $at))))
            (local.set $at (i32.add (local.get $at) (i32.const 8)))
            (br_if 0 (i32.lt_u (local.get $at) (i32.const 262144))))
          (if (i32.ne (global.get $i) (i32.const 7)) (then (call $exit (i32.const 91))))
          (if (i64.ne (global.get $l) (i64.const -8)) (then (call $exit (i32.const 92))))
          (if (f32.ne (global.get $f) (f32.const 1.5)) (then (call $exit (i32.const 93))))
          (if (f64.ne (global.get $d) (f64.const -2.5)) (then (call $exit (i32.const 94))))
          (if (ref.is_null (global.get $r)) (then (call $exit (i32.const 95))))
          (if (i32.eqz (ref.is_null (global.get $n))) (then (call $exit (i32.const 96))))
          (if (i32.ne (table.size $t) (i32.const 6)) (then (call $exit (i32.const 97))))
          (if (i32.eqz (ref.is_null (table.get $t (i32.const 0)))) (then (call $exit (i32.const 98))))
          (if (i32.eqz (ref.is_null (table.get $t (i32.const 5)))) (then (call $exit (i32.const 99))))
          (if (i32.ne (call_indirect $t (type $number) (i32.const 2)) (i32.const 7))
            (then (call $exit (i32.const 100))))
          (if (call $fdstat (i32.const 0) (i32.const 16)) (then (call $exit (i32.const 101))))
          (if (call $fdstat (i32.const 2) (i32.const 16)) (then (call $exit (i32.const 102))))
          ;; It traps if the segment is gone.
          (memory.init $passive (i32.const 200) (i32.const 0) (i32.const 7))
          ;; No file is open, and one that is opened is read from where it begins.
          (if (i32.ne (call $tell (i32.const 4) (i32.const 64)) (i32.const 8))
            (then (call $exit (i32.const 104))))
          (if (call $open) (then (call $exit (i32.const 105))))
          (if (i32.ne (i32.load (i32.const 64)) (i32.const 4)) (then (call $exit (i32.const 106))))
          (drop (call $read_four (i32.const 4)))
          (if (i32.ne (i32.load (i32.const 72)) (i32.const 0x33323130))
            (then (call $exit (i32.const 107))))
          (i64.store (i32.const 16) (local.get $sum))
          (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 8))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))

        ;; Memory that is new holds zeros.
        (func $grow_and_look (param $pages i32) (local $at i32)
          (local.set $at (memory.grow (local.get $pages)))
          (if (i32.eq (local.get $at) (i32.const -1)) (then return))
          (local.set $at (i32.shl (local.get $at) (i32.const 16)))
          (loop
            (if (i32.ge_u (local.get $at) (i32.shl (memory.size) (i32.const 16))) (then return))
            (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (call $exit (i32.const 103))))
            (local.set $at (i32.add (local.get $at) (i32.const 8)))
            (br 0)))

        (func $touch (param $from i32) (param $count i32) (local $bytes i32)
          (local.set $bytes (i32.shl (memory.size) (i32.const 16)))
          (loop
            (i32.store8 (i32.rem_u (local.get $from) (local.get $bytes)) (local.get $count))
            (local.set $from (i32.add (i32.mul (local.get $from) (i32.const 1664525)) (i32.const 1013904223)))
            (br_if 0 (i32.gt_s (local.tee $count (i32.sub (local.get $count) (i32.const 1))) (i32.const 0)))))

        (func (export "_start") (local $op i32) (local $a i32) (local $b i32)
          (call $is_new)
          (loop $next
            (i32.store (i32.const 32) (i32.const 40)) (i32.store (i32.const 36) (i32.const 12))
            ;; It fails once standard input is closed.
            (if (call $read (i32.const 0) (i32.const 32) (i32.const 1) (i32.const 52)) (then return))
            (if (i32.ne (i32.load (i32.const 52)) (i32.const 12)) (then return))
            (local.set $op (i32.rem_u (i32.load (i32.const 40)) (i32.const {count})))
            (local.set $a (i32.load (i32.const 44)))
            (local.set $b (i32.load (i32.const 48)))
            {cases}
            (br $next))))"#
    )
}

/// The last of them never end.
const ENDLESS: [&str; 2] = [
    "(loop (br 0))",
    "(loop (drop (call $random (i32.const 0) (i32.const 65536))) (br 0))",
];

/// What any guest may do and be put back after.
const PLAIN: &str = "(drop (call $open))
(drop (call $seek (i32.add (i32.const 3) (i32.and (local.get $a) (i32.const 3))) (i64.extend_i32_u (i32.and (local.get $b) (i32.const 15))) (i32.and (local.get $b) (i32.const 3)) (i32.const 64)))
(drop (call $read_four (i32.add (i32.const 3) (i32.and (local.get $a) (i32.const 3)))))
(call $touch (local.get $a) (i32.and (local.get $b) (i32.const 0xff)))
(call $touch (local.get $a) (i32.and (local.get $b) (i32.const 0x1fff)))
(i64.store (i32.rem_u (local.get $a) (i32.const 262137)) (i64.const -1))
(memory.fill (i32.rem_u (local.get $a) (i32.const 200000)) (local.get $b) (i32.rem_u (local.get $b) (i32.const 62144)))
(memory.copy (i32.rem_u (local.get $a) (i32.const 200000)) (i32.rem_u (local.get $b) (i32.const 200000)) (i32.const 60000))
(memory.init $passive (i32.rem_u (local.get $a) (i32.const 262137)) (i32.const 0) (i32.const 7))
(call $grow_and_look (i32.and (local.get $a) (i32.const 15)))
(call $grow_and_look (i32.and (local.get $a) (i32.const 63)))
(call $grow_and_look (i32.const 70))
(drop (memory.grow (i32.const 1))) (i32.store (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 4)) (local.get $a))
(drop (memory.grow (i32.const 60000)))
(global.set $i (local.get $a)) (global.set $l (i64.extend_i32_u (local.get $b)))
(global.set $f (f32.reinterpret_i32 (local.get $a))) (global.set $d (f64.const nan))
(global.set $r (ref.null func)) (global.set $n (ref.func $seven))
(global.set $n (table.get $t (i32.rem_u (local.get $a) (i32.const 6))))
(drop (call $random (i32.rem_u (local.get $a) (i32.const 200000)) (i32.rem_u (local.get $b) (i32.const 60000))))
(drop (call $args (i32.rem_u (local.get $a) (i32.const 262000)) (i32.rem_u (local.get $b) (i32.const 262000))))
(drop (call $close (i32.and (local.get $a) (i32.const 7))))
(drop (call $renumber (i32.and (local.get $a) (i32.const 7)) (i32.and (local.get $b) (i32.const 7))))
(i32.store (i32.const 0) (i32.rem_u (local.get $a) (i32.const 262144))) (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
(i32.store (i32.const 0) (i32.const 0)) (i32.store (i32.const 4) (i32.const 262144)) (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
(call $exit (i32.const 0))
(call $exit (i32.and (local.get $a) (i32.const 31)))
(unreachable)
(drop (i32.div_u (local.get $a) (i32.const 0)))
(drop (i32.load (i32.or (local.get $a) (i32.const 0xff000000))))
(memory.fill (local.get $a) (i32.const 1) (i32.const -1))
(call_indirect $t (i32.rem_u (local.get $a) (i32.const 7)))
(drop (i32.trunc_f64_s (f64.const 1e30)))
(call $deep)";

/// What no instance is put back after.
const LASTING: &str = "(table.set $t (i32.rem_u (local.get $a) (i32.const 7)) (ref.func $leaf))
(table.set $t (i32.rem_u (local.get $a) (i32.const 6)) (ref.null func))
(drop (table.grow $t (ref.func $seven) (i32.and (local.get $a) (i32.const 7))))
(table.fill $t (i32.const 0) (ref.func $leaf) (i32.rem_u (local.get $a) (i32.const 8)))
(table.copy $t $t (i32.rem_u (local.get $a) (i32.const 6)) (i32.rem_u (local.get $b) (i32.const 6)) (i32.const 2))
(table.init $t $e (i32.rem_u (local.get $a) (i32.const 6)) (i32.const 0) (i32.const 2))
(data.drop $passive)
(elem.drop $e)";

/// Steps for a scripted guest, the last of which may never end.
fn script(random: &mut Random, operations: u64) -> (Vec<u8>, Duration) {
    let mut steps = Vec::new();
    let mut step = |random: &mut Random, operation: u64| {
        steps.extend((operation as u32).to_le_bytes());
        steps.extend(random.bytes(8));
    };
    let endless = ENDLESS.len() as u64;
    // Operations that end the guest stand at the end, and come too often otherwise.
    for _ in 0..random.below(12) {
        let operation = random.below(operations - endless);
        step(random, operation);
    }
    if random.below(20) == 0 {
        let operation = operations - 1 - random.below(endless);
        step(random, operation);
        return (steps, SHORT);
    }
    (steps, LONG)
}

/// A tree of one file, `file`, which holds the digits.
fn files() -> Arc<Files> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "0123456789").unwrap();
    Arc::new(Files::load(folder.path()).unwrap())
}

#[test]
fn scripted_guests_leave_nothing() {
    deadline::start().unwrap();
    let sitting = Sitting::take().unwrap();
    let ([memories, untracked], warm) = (memories(), WarmPool::new(3));
    let files = files();
    let plain = format!("{PLAIN}\n{}", ENDLESS.join("\n"));
    let lasting = format!("{PLAIN}\n{LASTING}\n{}", ENDLESS.join("\n"));
    let mut modules = Vec::new();
    for (operations, memories) in [
        (&plain, &memories),
        (&lasting, &memories),
        (&plain, &untracked),
    ] {
        let wasm = wat::parse_str(scripted(operations)).unwrap();
        for compiler in [Compiler::Cranelift, Compiler::Singlepass] {
            let module = prepare_in(&wasm, compiler, memories, &warm);
            modules.push((module, operations.lines().count() as u64));
        }
    }
    assert!(modules[0].0.warm().is_some() && modules[2].0.warm().is_none());
    let (mut sum, mut kept) = (None, 0);
    for seed in seeds(6_000) {
        let mut random = Random::new(seed);
        // The same one for a while, then another.
        let (module, operations) = &modules[(seed as usize / 5) % modules.len()];
        let (stdin, deadline) = script(&mut random, *operations);
        let outcome = run(&sitting, module, (&stdin, Some(&files)), deadline);
        match &outcome.end {
            End::Exit(code) => assert!((0..90).contains(code), "seed {seed}: {code}"),
            End::HostError(text) => panic!("seed {seed}: {text}"),
            End::Trap(_)
            | End::TimeLimit
            | End::MemoryLimit
            | End::StackLimit
            | End::TableLimit
            | End::OutputLimit
            | End::Cancelled => {}
        }
        // A guest without time may be stopped before it has looked.
        if let Some(found) = outcome.stdout.get(..8) {
            assert_eq!(*sum.get_or_insert(found.to_vec()), found, "seed {seed}");
        } else {
            assert_eq!(outcome.end, End::TimeLimit, "seed {seed}");
        }
        if idle(module) > 0 {
            kept += 1;
            next_is_like_new(module);
        }
    }
    // Most guests end by themselves, of a module that can be put back.
    assert!(kept > seeds(6_000).count() / 5, "{kept}");
}
