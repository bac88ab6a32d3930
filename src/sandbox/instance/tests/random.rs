//! Random guests: whatever one does, the next one finds what a brand-new instance has, byte for
//! byte. `RESET_SEEDS` says how many, `RESET_SEED_FIRST` where to start; a failure names its seed.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Unstructured;
use bytes::Bytes;
use wasm_smith::Config;
use wasmer::sys::wasmparser::{FuncType, Parser, Payload, ValType};

use super::{idle, next_is_like_new};
use crate::sandbox::check::{Limits, check};
use crate::sandbox::deadline::{self, Sitting};
use crate::sandbox::engine::{Compiler, Prepared, prepare_in};
use crate::sandbox::guest::{self, Guest, Place, Ran};
use crate::sandbox::memory::{MemoryPool, dirty};
use crate::sandbox::sections::{EXPORT, Sections, leb};
use crate::sandbox::warm::WarmPool;
use crate::sandbox::{Call, End, GuestLimits, Outcome, ShareKey, Stdout};

const LONG: Duration = Duration::from_secs(60);
/// For guests that never end.
const SHORT: Duration = Duration::from_millis(3);

fn seeds(by_default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("RESET_SEED_FIRST").unwrap_or(1);
    first..first + number("RESET_SEEDS").unwrap_or(by_default)
}

/// Numbers that look random and are the same each time (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

fn run(sitting: &Sitting, module: &Arc<Prepared>, stdin: &[u8], deadline: Duration) -> Outcome {
    let guest = Guest {
        module: Arc::clone(module),
        call: Call {
            args: vec!["guest".into()],
            env: vec![("NAME".into(), "value".into())],
            stdin: Bytes::copy_from_slice(stdin).into(),
            stdout: Stdout::Collect,
            files: None,
            limits: GuestLimits {
                deadline,
                memory_bytes_max: 16 << 20,
                stdout_bytes_max: 1 << 16,
                stderr_bytes_max: 1 << 10,
                stack_bytes_max: 1 << 20,
                table_elements_max: 100_000,
            },
            share: ShareKey::default(),
        },
        stop: Arc::default(),
        queued: Duration::ZERO,
    };
    match guest::run(sitting, guest, Place::Own, |_| {}) {
        Ran::Ended(outcome) => outcome,
        Ran::Postponed(..) => panic!("a thread of its own is not lent"),
    }
}

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
        (memory (export "memory") 4 80)
        (data (i32.const 5) "low") (data (i32.const 65530) "across a page")
        (data (i32.const 131072) "\01") (data (i32.const 262000) "high") (data $passive "passive")
        (table $t 6 40 funcref) (elem (i32.const 1) $leaf $seven) (elem $e func $seven $leaf)
        (global $i (mut i32) (i32.const 7)) (global $l (mut i64) (i64.const -8))
        (global $f (mut f32) (f32.const 1.5)) (global $d (mut f64) (f64.const -2.5))
        (global $r (mut funcref) (ref.func $leaf)) (global $n (mut funcref) (ref.null func))
        (type $number (func (result i32)))
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
const PLAIN: &str = "(call $touch (local.get $a) (i32.and (local.get $b) (i32.const 0xff)))
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
(drop (call $close (i32.and (local.get $a) (i32.const 3))))
(drop (call $renumber (i32.and (local.get $a) (i32.const 3)) (i32.and (local.get $b) (i32.const 3))))
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

#[test]
fn scripted_guests_leave_nothing() {
    deadline::start().unwrap();
    let sitting = Sitting::take().unwrap();
    // Fewer places than modules, so that memory goes from one to another.
    let (memories, warm) = (MemoryPool::new(2, dirty::is_tracked()), WarmPool::new(3));
    let plain = format!("{PLAIN}\n{}", ENDLESS.join("\n"));
    let lasting = format!("{PLAIN}\n{LASTING}\n{}", ENDLESS.join("\n"));
    let mut modules = Vec::new();
    for operations in [&plain, &lasting] {
        let wasm = wat::parse_str(scripted(operations)).unwrap();
        for compiler in [Compiler::Cranelift, Compiler::Singlepass] {
            let module = prepare_in(&wasm, compiler, &memories, &warm);
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
        let outcome = run(&sitting, module, &stdin, deadline);
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

/// A module of random code that ends; `None` if the check refuses it.
fn module_of(seed: u64) -> Option<Vec<u8>> {
    let mut random = Random::new(seed);
    let config = Config {
        max_imports: 0,
        max_exports: 0,
        min_types: 4,
        min_funcs: 3,
        max_funcs: 12,
        max_instructions: 300,
        max_type_size: 20,
        min_globals: 3,
        min_memories: 1,
        max_memory32_bytes: 8 << 20,
        min_data_segments: 1,
        max_table_elements: 100,
        max_tables: 2,
        // Most are to come far, and to be put back after.
        disallow_traps: random.below(4) != 0,
        bulk_memory_enabled: random.below(3) == 0,
        reference_types_enabled: random.below(4) == 0,
        simd_enabled: random.below(2) == 0,
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        relaxed_simd_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        compact_imports_enabled: false,
        ..Config::default()
    };
    let entropy = random.bytes(6_000);
    let mut module = wasm_smith::Module::new(config, &mut Unstructured::new(&entropy)).ok()?;
    module.ensure_termination(20_000).ok()?;
    let wasm = with_start(&module.to_bytes(), &mut random)?;
    let limits = Limits {
        wasm_bytes_max: u64::MAX,
        table_elements_max: 1_000,
    };
    check(&wasm, limits).ok().map(|_| wasm)
}

/// The same module with its memory exported, and with a `_start` that calls each function. `None` if
/// it has none.
fn with_start(wasm: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let (mut types, mut functions) = (Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.unwrap() {
            Payload::TypeSection(reader) => {
                let all = reader.into_iter_err_on_gc_types();
                types = all.map(Result::unwrap).collect();
            }
            Payload::FunctionSection(reader) => {
                functions = reader.into_iter().map(Result::unwrap).collect();
            }
            _ => {}
        }
    }
    if functions.is_empty() {
        return None;
    }
    let mut start = vec![0];
    for (index, ty) in functions.iter().enumerate() {
        let ty: &FuncType = &types[*ty as usize];
        for parameter in ty.params() {
            constant(&mut start, *parameter, random);
        }
        start.push(0x10);
        leb(&mut start, index);
        start.extend(ty.results().iter().map(|_| 0x1a));
    }
    start.push(0x0b);
    let mut sections = Sections::of(wasm);
    let mut exports = b"\x02\x06memory\x02\x00\x06_start\x00".to_vec();
    leb(&mut exports, sections.add_function(&start));
    sections.replace(EXPORT, exports);
    Some(sections.bytes())
}

/// The operator that gives a constant of this type.
fn constant(code: &mut Vec<u8>, ty: ValType, random: &mut Random) {
    // Numbers of one byte in signed LEB128, or as they are.
    let small = random.next() as u8 & 0x7f;
    match ty {
        ValType::I32 => code.extend([0x41, small]),
        ValType::I64 => code.extend([0x42, small]),
        ValType::F32 => {
            code.push(0x43);
            code.extend(random.bytes(4));
        }
        ValType::F64 => {
            code.push(0x44);
            code.extend(random.bytes(8));
        }
        ValType::V128 => {
            code.extend([0xfd, 0x0c]);
            code.extend(random.bytes(16));
        }
        ValType::Ref(_) => code.extend([0xd0, 0x70]),
    }
}

#[test]
fn random_modules_leave_nothing() {
    deadline::start().unwrap();
    let sitting = Sitting::take().unwrap();
    let (memories, warm) = (MemoryPool::new(2, dirty::is_tracked()), WarmPool::new(3));
    let (mut accepted, mut kept) = (0, 0);
    for seed in seeds(250) {
        let Some(wasm) = module_of(seed) else {
            continue;
        };
        accepted += 1;
        let module = prepare_in(&wasm, Compiler::Cranelift, &memories, &warm);
        let stdin = Random::new(seed).bytes(500);
        let mut first = None;
        for _ in 0..4 {
            let outcome = run(&sitting, &module, &stdin, LONG);
            assert!(
                !matches!(outcome.end, End::HostError(_)),
                "seed {seed}: {outcome:?}"
            );
            let seen = (
                outcome.end,
                outcome.stdout,
                outcome.stderr,
                outcome.usage.memory_peak_bytes,
            );
            assert_eq!(*first.get_or_insert(seen.clone()), seen, "seed {seed}");
            if idle(&module) > 0 {
                kept += 1;
                next_is_like_new(&module);
            }
        }
    }
    assert!(accepted > seeds(250).count() / 2, "{accepted}");
    assert!(kept > accepted, "{kept} of {accepted}");
}
