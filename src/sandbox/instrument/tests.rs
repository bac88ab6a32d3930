//! What instrumentation must not change, and what it must.

mod official;

use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wasmer::sys::{Cranelift, EngineBuilder, ModuleMiddleware, NativeEngineExt};
use wasmer::{Engine, Instance, Module, Store, Value};
use wasmer_compiler::ModuleEnvironment;

use super::super::codegen::Instrumented;
use super::super::memory::{Data, MemoryPool};
use super::super::tunables::{Room, SandboxTunables, making};
use super::{Instrument, STOP, THREAD_BYTES};

/// A module with `_start` and `memory` compiled here, with polls in loops or without.
fn instance(text: &str, poll_loops: bool) -> (Store, Instance, NonNull<AtomicI64>) {
    let instrument = Arc::new(Instrument {
        poll_loops,
        plan: std::sync::OnceLock::new(),
    });
    let cranelift = Instrumented::new(Cranelift::new(), instrument);
    let mut engine: Engine = EngineBuilder::new(cranelift).engine().into();
    engine.set_tunables(SandboxTunables::new(
        MemoryPool::new(1, false),
        1000,
        1 << 20,
    ));
    let module = Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
    let mut store = Store::new(engine);
    let room = Room {
        pages_max: 1 << 14,
        table_elements_max: u32::MAX,
    };
    let (instance, made) = making(room, Data::Written, || {
        Instance::new_by_index(&mut store, &module, &[]).unwrap()
    });
    (store, instance, made.globals.last().unwrap().0.cast())
}

/// Runs `body` as `_start`, with two pages of memory and two tables of ten; the trap's text.
fn run(body: &str) -> Result<(), String> {
    let text = format!(
        "(module (memory (export \"memory\") 2) (table $t 10 funcref) (table $u 10 20 funcref)
          (data $p \"0123456789\") (data $a (i32.const 0) \"abc\")
          (elem $e func $f $f $f) (elem $b (table $t) (i32.const 1) func $f)
          (global $g (mut i32) (i32.const 41))
          (func $f) (func (export \"_start\") (local $i i32) {body}))"
    );
    let (mut store, instance, _) = instance(&text, false);
    let start = instance.exports.get_function("_start").unwrap().clone();
    start
        .call(&mut store, &[])
        .map(drop)
        .map_err(|error| error.message())
}

const MEMORY: &str = "out of bounds memory access";
const TABLE: &str = "undefined element: out of bounds table access";

fn i32s(numbers: [i64; 3]) -> String {
    numbers
        .map(|number| format!("(i32.const {number})"))
        .join(" ")
}

#[test]
fn bulk_memory_traps_exactly_where_it_must() {
    let end = 2 * 65536;
    let max = 0xffff_ffff;
    for (d, n, ok) in [
        (0, 0, true),
        (end, 0, true),
        (end + 1, 0, false),
        (0, end, true),
        (1, end, false),
        (end - 1, 1, true),
        (max, 1, false),
        (max, 0, false),
        (max, max, false),
        (1, max, false),
        (0, max, false),
        (0x8000_0000, 0x8000_0000, false),
    ] {
        let expected = if ok { Ok(()) } else { Err(MEMORY.to_owned()) };
        assert_eq!(
            run(&format!("(memory.fill {})", i32s([d, 7, n]))),
            expected,
            "fill {d} {n}"
        );
        let copy = format!("(memory.copy {})", i32s([d, 0, n.min(end)]));
        assert_eq!(
            run(&copy),
            if d + n.min(end) <= end {
                Ok(())
            } else {
                expected.clone()
            }
        );
        let from = format!("(memory.copy {})", i32s([0, d, n.min(end)]));
        assert_eq!(
            run(&from),
            if d + n.min(end) <= end {
                Ok(())
            } else {
                expected.clone()
            }
        );
    }
}

#[test]
fn large_operators_do_in_pieces_what_they_would_at_once() {
    // Each word holds its own address; `$moved` looks for that after a move by some bytes.
    let module = |body: &str| {
        let text = format!(
            "(module (memory (export \"memory\") 100) (data $big \"{}\")
              (func $number (param $n i32) (local $i i32)
                (loop (i32.store (local.get $i) (local.get $i))
                  (local.set $i (i32.add (local.get $i) (i32.const 4)))
                  (br_if 0 (i32.lt_u (local.get $i) (local.get $n)))))
              (func $moved (param $by i32) (param $n i32) (local $i i32)
                (loop
                  (if (i32.ne (i32.load (i32.add (local.get $i) (local.get $by))) (local.get $i))
                    (then unreachable))
                  (local.set $i (i32.add (local.get $i) (i32.const 4)))
                  (br_if 0 (i32.lt_u (local.get $i) (local.get $n)))))
              (func $all (param $from i32) (param $to i32) (param $byte i32)
                (loop
                  (if (i32.ne (i32.load8_u (local.get $from)) (local.get $byte)) (then unreachable))
                  (local.set $from (i32.add (local.get $from) (i32.const 1)))
                  (br_if 0 (i32.lt_u (local.get $from) (local.get $to)))))
              (func (export \"_start\") {body}))",
            "w".repeat(3_000_000)
        );
        let (mut store, instance, _) = instance(&text, false);
        let start = instance.exports.get_function("_start").unwrap().clone();
        let result = start.call(&mut store, &[]);
        assert!(result.is_ok(), "{body}: {result:?}");
    };
    // Upwards and downwards, by less than a word and by more than a piece, and lengths around pieces.
    for by in [0, 1, 5, 1_048_576, 2_500_000] {
        for n in [1_048_572, 1_048_576, 1_048_580, 2_097_152, 3_000_000] {
            module(&format!(
                "(call $number (i32.const {n}))
                 (memory.copy (i32.const {by}) (i32.const 0) (i32.const {n}))
                 (call $moved (i32.const {by}) (i32.const {n}))
                 (memory.copy (i32.const 0) (i32.const {by}) (i32.const {n}))
                 (call $moved (i32.const 0) (i32.const {n}))"
            ));
        }
    }
    module(
        "(memory.fill (i32.const 7) (i32.const 9) (i32.const 3000001))
         (call $all (i32.const 0) (i32.const 7) (i32.const 0))
         (call $all (i32.const 7) (i32.const 3000008) (i32.const 9))
         (call $all (i32.const 3000008) (i32.const 3100000) (i32.const 0))
         (memory.init $big (i32.const 3) (i32.const 5) (i32.const 2500000))
         (call $all (i32.const 3) (i32.const 2500003) (i32.const 119))
         (call $all (i32.const 2500003) (i32.const 3000008) (i32.const 9))",
    );
}

#[test]
fn bulk_memory_still_does_its_work() {
    run(
        "(memory.fill (i32.const 65530) (i32.const 0x1ff) (i32.const 10))
         (memory.copy (i32.const 10) (i32.const 65531) (i32.const 4))
         (memory.init $p (i32.const 100) (i32.const 2) (i32.const 3))
         (if (i32.ne (i32.load (i32.const 10)) (i32.const -1)) (then unreachable))
         (if (i32.load8_u (i32.const 14)) (then unreachable))
         (if (i32.load8_u (i32.const 65540)) (then unreachable))
         (if (i32.ne (i32.load (i32.const 100)) (i32.const 0x343332)) (then unreachable))
         (if (i32.ne (i32.load (i32.const 0)) (i32.const 0x636261)) (then unreachable))
         (if (i32.ne (global.get $g) (i32.const 41)) (then unreachable))",
    )
    .unwrap();
}

#[test]
fn segments_end_where_they_end_and_are_gone_when_dropped() {
    let init =
        |segment: &str, d, s, n| run(&format!("(memory.init {segment} {})", i32s([d, s, n])));
    assert_eq!(init("$p", 0, 0, 10), Ok(()));
    assert_eq!(init("$p", 0, 10, 0), Ok(()));
    assert_eq!(init("$p", 0, 1, 10), Err(MEMORY.into()));
    assert_eq!(init("$p", 0, 11, 0), Err(MEMORY.into()));
    assert_eq!(init("$p", 0, 0xffff_ffff, 2), Err(MEMORY.into()));
    assert_eq!(init("$p", 131072, 0, 1), Err(MEMORY.into()));
    assert_eq!(init("$a", 0, 0, 0), Ok(()));
    assert_eq!(init("$a", 0, 0, 1), Err(MEMORY.into()));
    let dropped = |n| {
        run(&format!(
            "(data.drop $p) (data.drop $p) (memory.init $p {})",
            i32s([0, 0, n])
        ))
    };
    assert_eq!(dropped(0), Ok(()));
    assert_eq!(dropped(1), Err(MEMORY.into()));

    let table =
        |segment: &str, d, s, n| run(&format!("(table.init $u {segment} {})", i32s([d, s, n])));
    assert_eq!(table("$e", 7, 0, 3), Ok(()));
    assert_eq!(table("$e", 8, 0, 3), Err(TABLE.into()));
    assert_eq!(table("$e", 0, 1, 3), Err(TABLE.into()));
    assert_eq!(table("$b", 0, 0, 0), Ok(()));
    assert_eq!(table("$b", 0, 0, 1), Err(TABLE.into()));
    let dropped = |n| {
        run(&format!(
            "(elem.drop $e) (table.init $u $e {})",
            i32s([0, 0, n])
        ))
    };
    assert_eq!(dropped(0), Ok(()));
    assert_eq!(dropped(1), Err(TABLE.into()));
}

#[test]
fn tables_trap_exactly_where_they_must() {
    for (index, ok) in [(0, true), (9, true), (10, false), (0xffff_ffff, false)] {
        let expected = if ok { Ok(()) } else { Err(TABLE.to_owned()) };
        let at = format!("(i32.const {index})");
        assert_eq!(run(&format!("(drop (table.get $t {at}))")), expected);
        assert_eq!(run(&format!("(table.set $u {at} (ref.func $f))")), expected);
        assert_eq!(
            run(&format!(
                "(table.fill $u {at} (ref.null func) (i32.const 1))"
            )),
            expected
        );
        assert_eq!(
            run(&format!("(table.copy $t $u {})", i32s([index, 0, 1]))),
            expected
        );
        assert_eq!(
            run(&format!("(table.copy $u $t {})", i32s([0, index, 1]))),
            expected
        );
    }
    run("(table.set $u (i32.const 3) (ref.func $f))
         (table.fill $u (i32.const 5) (ref.func $f) (i32.const 2))
         (table.copy $t $u (i32.const 0) (i32.const 3) (i32.const 4))
         (if (ref.is_null (table.get $t (i32.const 0))) (then unreachable))
         (if (i32.eqz (ref.is_null (table.get $t (i32.const 1)))) (then unreachable))
         (if (ref.is_null (table.get $t (i32.const 3))) (then unreachable))
         (call_indirect $t (i32.const 2))
         (drop (table.grow $u (ref.func $f) (i32.const 3)))
         (call_indirect $u (i32.const 12))")
    .unwrap();
}

#[test]
fn unreachable_code_may_hold_any_operator() {
    let message = run(
        "(unreachable) (memory.fill) (memory.copy) (table.set $t) (table.copy $t $u)
         (drop (table.get $t)) (memory.init $p) (data.drop $p) (drop (memory.grow)) (call $f)",
    );
    assert_eq!(message, Err("unreachable".into()));
}

#[test]
fn only_what_is_called_stays_exported_and_the_start_function_waits() {
    let (store, instance, _) = instance(
        "(module (memory (export \"memory\") 1) (global (export \"g\") i32 (i32.const 1))
           (table (export \"t\") 1 funcref) (func $s unreachable) (start $s)
           (func (export \"_start\")) (func (export \"other\")))",
        false,
    );
    let mut names: Vec<&str> = instance
        .exports
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["_start", "memory", "wasm-wizard:start"]);
    drop(store);
}

/// Runs `_start` while another thread orders it to stop, once.
fn stopped_by_polls(text: &str) {
    struct Shared(NonNull<AtomicI64>);
    // SAFETY: the global lives until the store is dropped, after the thread is joined.
    #[expect(unsafe_code, reason = "the watchdog's part is played here")]
    unsafe impl Send for Shared {}

    let (mut store, instance, stop) = instance(text, true);
    let start = instance.exports.get_function("_start").unwrap().clone();
    let done = Arc::new(AtomicI64::new(0));
    let (ended, shared) = (Arc::clone(&done), Shared(stop));
    let thread = thread::spawn(move || {
        let shared = shared;
        thread::sleep(Duration::from_millis(5));
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "the watchdog's part is played here")]
        unsafe {
            shared.0.as_ref().store(STOP, Ordering::Release);
        }
        let begun = Instant::now();
        while ended.load(Ordering::Acquire) == 0 {
            // Nothing else could end the test.
            if begun.elapsed() > Duration::from_secs(600) {
                std::process::abort();
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    let result: Result<Box<[Value]>, _> = start.call(&mut store, &[]);
    done.store(1, Ordering::Release);
    thread.join().unwrap();
    assert_eq!(result.unwrap_err().message(), "unreachable", "{text}");
}

#[test]
fn polls_alone_stop_loops_and_recursion_where_there_is_no_signal() {
    for body in [
        "(loop (br 0))",
        "(local i32) (loop (local.set 0 (i32.add (local.get 0) (i32.const 1))) (br_if 0 (i32.const 1)))",
        "(loop (call $leaf) (br 0))",
        "(drop (call $fib (i32.const 60)))",
        "(loop (drop (memory.grow (i32.const 0))) (br 0))",
    ] {
        stopped_by_polls(&format!(
            "(module (memory (export \"memory\") 1) (func $leaf)
               (func $fib (param i32) (result i32)
                 (if (result i32) (i32.lt_u (local.get 0) (i32.const 2))
                   (then (local.get 0))
                   (else (i32.add (call $fib (i32.sub (local.get 0) (i32.const 1)))
                                  (call $fib (i32.sub (local.get 0) (i32.const 2)))))))
               (func (export \"_start\") {body}))"
        ));
    }
}

/// Whoever takes which function, each has in its place what one thread would write.
#[test]
fn many_threads_write_what_one_does() {
    let functions: String = (0..2_000)
        .map(|number| {
            let concerned = match number % 3 {
                0 => "(memory.fill (local.get 0) (i32.const 0) (i32.const 9))",
                1 => "(call $yield)",
                _ => "",
            };
            format!(
                "(func (param i32) (drop (i32.const {number})) {concerned} {})",
                "(nop)".repeat(number % 97)
            )
        })
        .collect();
    let text = format!(
        "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func $imported (result i32)))
          (memory 1) (func $yield (drop (call $imported))) {functions})"
    );
    let wasm = wat::parse_str(text).unwrap();
    let mut translated = ModuleEnvironment::new().translate(&wasm).unwrap();
    let instrument = Instrument::default();
    instrument
        .transform_module_info(&mut translated.module)
        .unwrap();
    let inputs = translated.function_body_inputs.values();
    let mut bodies: Vec<&[u8]> = inputs.map(|input| input.data).collect();
    assert!(bodies.iter().map(|body| body.len()).sum::<usize>() > 3 * THREAD_BYTES);
    let written =
        |bodies: &[&[u8]], threads| instrument.bodies(bodies, NonZero::new(threads).unwrap());

    let one = written(&bodies, 1).unwrap();
    // The first is `$yield`, which calls an import; the others only call that.
    let changed = |number: usize| number == 0 || (number - 1).is_multiple_of(3);
    for (number, body) in one.iter().enumerate() {
        assert_eq!(body.is_some(), changed(number), "function {number}");
    }
    assert!(written(&bodies, 4).unwrap() == one);

    bodies[1_500] = b"\0\xff";
    for threads in [1, 4] {
        assert!(written(&bodies, threads).is_err());
    }
}
