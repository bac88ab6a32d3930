//! What one guest leaves, the next must not see.

mod random;

use std::sync::Arc;
use std::time::Duration;

use super::super::deadline::{self, Sitting};
use super::super::engine::{Compiler, Prepared, prepare_here, prepare_with};
use super::super::guest::{self, Guest, Place, Ran};
use super::super::{Call, End, GuestLimits, Outcome, ShareKey, Stdout, Strings};
use super::{Data, Instance};
use crate::sandbox::tunables::Room;
use crate::sandbox::warm::WarmPool;

const ROOM: Room = Room {
    pages_max: 1024,
    table_elements_max: 100_000,
};

fn run(module: &Arc<Prepared>) -> Outcome {
    run_for(module, Duration::from_secs(300))
}

fn run_for(module: &Arc<Prepared>, deadline: Duration) -> Outcome {
    run_with(module, bytes::Bytes::new(), 64 << 20, deadline)
}

fn run_with(
    module: &Arc<Prepared>,
    stdin: bytes::Bytes,
    memory_bytes_max: u64,
    deadline: Duration,
) -> Outcome {
    deadline::start().unwrap();
    let sitting = Sitting::take().unwrap();
    let guest = Guest {
        module: Arc::clone(module),
        call: Call {
            args: Strings::default(),
            env: Strings::default(),
            stdin: stdin.into(),
            stdout: Stdout::Collect,
            files: None,
            limits: GuestLimits {
                deadline,
                memory_bytes_max,
                stdout_bytes_max: 1 << 20,
                stderr_bytes_max: 0,
                stack_bytes_max: 1 << 20,
                table_elements_max: 100_000,
            },
            share: ShareKey::default(),
        },
        stop: Arc::default(),
        queued: Duration::ZERO,
    };
    match guest::run(&sitting, guest, Place::Own, |_| {}) {
        Ran::Ended(outcome, _) => outcome,
        Ran::Postponed(..) => panic!("a thread of its own is not lent"),
    }
}

fn idle(module: &Prepared) -> usize {
    module.warm().map_or(0, |warm| warm.idle())
}

/// What the next guest sees, against an instance that nobody has used.
fn next_is_like_new(module: &Prepared) {
    let next = module.warm().unwrap().take().expect("one was kept");
    let Ok(new) = Instance::new(module, ROOM, Data::Written) else {
        panic!("an instance");
    };
    assert!(next.state() == new.state());
    module.warm().unwrap().put(next);
}

fn guest(body: &str) -> Arc<Prepared> {
    prepare_here(&format!(
        "(module
           (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
           (memory (export \"memory\") 3)
           (data (i32.const 5) \"hello\") (data (i32.const 100000) \"far away\") (data $p \"passive\")
           (table 10 funcref) (elem (i32.const 0) $f)
           (global $i (mut i32) (i32.const 7)) (global $l (mut i64) (i64.const 8))
           (global $f (mut f64) (f64.const 1.5)) (global $v (mut v128) (v128.const i64x2 1 2))
           (global $r (mut funcref) (ref.func $f))
           (func $f)
           (func $spoil
             (memory.fill (i32.const 0) (i32.const 0xaa) (i32.const 196608))
             (drop (memory.grow (i32.const 2)))
             (memory.fill (i32.const 196608) (i32.const 0xbb) (i32.const 131072))
             (global.set $i (i32.const -1)) (global.set $l (i64.const -1))
             (global.set $f (f64.const nan)) (global.set $v (v128.const i64x2 -1 -1))
             (global.set $r (ref.null func)))
           (func (export \"_start\") {body}))"
    ))
}

#[test]
fn memory_and_globals_are_put_back_however_a_guest_ends() {
    let once = "(if (i32.ne (global.get $i) (i32.const 7)) (then unreachable))
                (if (i32.ne (i32.load8_u (i32.const 5)) (i32.const 104)) (then (call $exit (i32.const 3))))
                (if (i32.ne (memory.size) (i32.const 3)) (then (call $exit (i32.const 4))))";
    for (end, expected) in [
        ("", End::Exit(0)),
        ("(call $exit (i32.const 0))", End::Exit(0)),
        ("(call $exit (i32.const 9))", End::Exit(9)),
        (
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            End::Trap("integer divide by zero".into()),
        ),
        (
            "(drop (i32.load (i32.const -8)))",
            End::Trap("out of bounds memory access".into()),
        ),
        ("unreachable", End::Trap("unreachable".into())),
    ] {
        let module = guest(&format!("{once} (call $spoil) {end}"));
        for _ in 0..4 {
            assert_eq!(run(&module).end, expected);
            assert_eq!(idle(&module), 1);
            next_is_like_new(&module);
        }
    }
}

#[test]
fn what_can_not_be_put_back_serves_one_guest() {
    for body in [
        "(table.set (i32.const 1) (ref.null func))",
        "(drop (table.grow (ref.null func) (i32.const 1)))",
        "(table.fill (i32.const 0) (ref.null func) (i32.const 2))",
        "(table.copy (i32.const 1) (i32.const 0) (i32.const 1))",
        "(data.drop $p)",
    ] {
        let module = guest(body);
        assert!(module.warm().is_none(), "{body}");
        for _ in 0..2 {
            assert_eq!(run(&module).end, End::Exit(0), "{body}");
        }
    }
    // Reading a passive segment takes nothing away.
    let module = guest("(memory.init $p (i32.const 0) (i32.const 0) (i32.const 7))");
    for _ in 0..3 {
        assert_eq!(run(&module).end, End::Exit(0));
        next_is_like_new(&module);
    }
}

#[test]
fn after_a_kill_or_a_full_stack_the_instance_is_thrown_away() {
    let module = guest("(loop (br 0))");
    let outcome = run_for(&module, Duration::from_millis(20));
    assert_eq!(outcome.end, End::TimeLimit);
    assert_eq!(idle(&module), 0);
    let module = prepare_here("(module (func $f (call $f)) (func (export \"_start\") (call $f)))");
    assert_eq!(run(&module).end, End::StackLimit);
    assert_eq!(idle(&module), 0);
}

/// Input that makes the host function panic that lets go of it.
struct Explosive;

impl AsRef<[u8]> for Explosive {
    fn as_ref(&self) -> &[u8] {
        b"boom"
    }
}

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("the input explodes");
    }
}

#[test]
fn a_panic_of_a_host_function_ends_its_guest_and_is_seen_by_no_other() {
    let text = "(module
        (import \"wasi_snapshot_preview1\" \"fd_close\" (func $close (param i32) (result i32)))
        (memory (export \"memory\") 1) (global $g (mut i32) (i32.const 7))
        (func $deep (param i32)
          (if (local.get 0) (then (call $deep (i32.sub (local.get 0) (i32.const 1))))
                            (else (drop (call $close (i32.const 0)))))
          (i32.store (i32.const 8) (local.get 0)))
        (func (export \"_start\")
          (if (i32.ne (global.get $g) (i32.const 7)) (then unreachable))
          (global.set $g (i32.const 8))
          (memory.fill (i32.const 0) (i32.const 9) (i32.const 65536))
          (call $deep (i32.const 50))))";
    let endless = guest("(loop (br 0))");
    for compiler in [Compiler::Cranelift, Compiler::Singlepass] {
        let module = prepare_with(text, compiler);
        for _ in 0..3 {
            assert_eq!(run(&module).end, End::Exit(0));
            assert_eq!(idle(&module), 1);
            let input = bytes::Bytes::from_owner(Explosive);
            let outcome = run_with(&module, input, 64 << 20, Duration::from_secs(300));
            let End::HostError(text) = outcome.end else {
                panic!("{:?}", outcome.end);
            };
            assert!(text.contains("the input explodes"), "{text}");
            assert_eq!(idle(&module), 0);
        }
        // The thread is as before: its guests run, and can be stopped.
        assert_eq!(run(&module).end, End::Exit(0));
        next_is_like_new(&module);
        let stopped = run_for(&endless, Duration::from_millis(20));
        assert_eq!(stopped.end, End::TimeLimit);
    }
}

#[test]
fn limits_and_refusals_are_each_guests_own() {
    // Grows by thirty pages if its input says so, and exits 1 if it may not, or was not to.
    let module = prepare_here(
        "(module
           (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
           (import \"wasi_snapshot_preview1\" \"fd_read\"
             (func $read (param i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 1)
           (func (export \"_start\")
             (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 1))
             (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
             (if (i32.eq (i32.load8_u (i32.const 16)) (i32.const 103)) (then
               (if (i32.ne (memory.grow (i32.const 30)) (i32.const -1)) (then return))))
             (call $exit (i32.const 1))))",
    );
    let end = |input: &'static str, pages: u64| {
        let stdin = bytes::Bytes::from_static(input.as_bytes());
        let outcome = run_with(&module, stdin, pages << 16, Duration::from_secs(300));
        // It is the same instance all the time.
        assert_eq!(idle(&module), 1);
        (outcome.end, outcome.usage.memory_peak_bytes >> 16)
    };
    for _ in 0..3 {
        assert_eq!(end("grow", 1000), (End::Exit(0), 31));
        assert_eq!(end("grow", 4), (End::MemoryLimit, 1));
        assert_eq!(end("none", 4), (End::Exit(1), 1));
        assert_eq!(end("grow", 31), (End::Exit(0), 31));
        assert_eq!(end("grow", 30), (End::MemoryLimit, 1));
        assert_eq!(end("none", 1000), (End::Exit(1), 1));
    }
}

#[test]
fn an_image_costs_no_more_than_its_data() {
    let module = |segments: &str| {
        prepare_here(&format!(
            "(module (memory 1024) {segments} (func (export \"_start\")))"
        ))
    };
    // A stack of 16 MiB before the data, as some compilers have it.
    let late = module("(data (i32.const 16777216) \"late\")");
    assert!(late.image().unwrap().held_bytes() < 100_000);
    // A few bytes far apart must not cost what is between them.
    let sparse = module("(data (i32.const 0) \"x\") (data (i32.const 67108848) \"x\")");
    assert!(sparse.image().is_none() && sparse.warm().is_none());
    for module in [late, sparse] {
        for _ in 0..3 {
            assert_eq!(run(&module).end, End::Exit(0));
        }
    }
}

#[test]
fn segments_that_do_not_fit_fail_each_guest() {
    let module = prepare_here(
        "(module (memory 1) (data (i32.const 65536) \"x\") (func (export \"_start\")))",
    );
    for _ in 0..2 {
        assert!(matches!(run(&module).end, End::Trap(_)));
    }
}

#[test]
fn the_pool_is_bounded_over_all_modules() {
    let pool = WarmPool::new(8);
    let modules: Vec<_> = (0..3).map(|_| guest("")).collect();
    let shelves: Vec<_> = modules.iter().map(|_| pool.module()).collect();
    let put = |at: usize| {
        let Ok(instance) = Instance::new(&modules[at], ROOM, Data::Written) else {
            panic!("an instance");
        };
        shelves[at].put(instance);
    };
    for at in [0, 0, 0, 0, 1, 1, 1, 1] {
        put(at);
    }
    assert_eq!(pool.idle(), 8);
    for _ in 0..20 {
        put(2);
        let total: usize = shelves.iter().map(|shelf| shelf.idle()).sum();
        assert!(total <= 8);
        assert_eq!(pool.idle(), total);
        assert!(shelves[2].idle() > 0);
    }
    drop(shelves);
    assert_eq!(pool.idle(), 0);
    let none = WarmPool::new(0).module();
    let Ok(instance) = Instance::new(&modules[0], ROOM, Data::Written) else {
        panic!("an instance");
    };
    none.put(instance);
    assert!(none.take().is_none());
}
