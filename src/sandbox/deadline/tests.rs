//! Guests that are stopped at any moment of anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::engine::{Compiler, Prepared, prepare_with};
use super::super::guest::{self, Guest, Place, Ran};
use super::super::{Call, End, GuestLimits, Outcome, ShareKey, Stdout};
use super::{Sitting, expire, start};

fn call(deadline: Duration) -> Call {
    Call {
        args: vec!["guest".into()],
        env: Vec::new(),
        stdin: bytes::Bytes::new().into(),
        files: None,
        stdout: Stdout::Collect,
        limits: GuestLimits {
            deadline,
            memory_bytes_max: 256 << 20,
            stdout_bytes_max: 1 << 20,
            stderr_bytes_max: 1 << 10,
            stack_bytes_max: 1 << 20,
            table_elements_max: 100_000,
        },
        share: ShareKey::default(),
    }
}

fn run(sitting: &Sitting, module: &Arc<Prepared>, deadline: Duration) -> Outcome {
    let guest = Guest {
        module: Arc::clone(module),
        call: call(deadline),
        stop: Arc::default(),
        queued: Duration::ZERO,
    };
    ended(guest::run(sitting, guest, Place::Own, |_| {}))
}

fn ended(ran: Ran) -> Outcome {
    match ran {
        Ran::Ended(outcome) => outcome,
        Ran::Postponed(..) => panic!("a thread of its own is not lent"),
    }
}

/// Ways to spend time: in plain code, calls, host functions, bulk operators, and traps.
const BODIES: [&str; 11] = [
    "(loop (br 0))",
    "(loop (call $leaf) (br 0))",
    "(call $recurse (i32.const 100000000))",
    "(loop (drop (call $yield)) (br 0))",
    "(loop (drop (memory.grow (i32.const 0))) (br 0))",
    "(loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br 0))",
    "(loop (memory.copy (i32.const 8) (i32.const 0) (i32.const 60000)) (br 0))",
    "(loop (drop (table.grow (ref.null func) (i32.const 1000000))) (br 0))",
    "(loop (table.fill (i32.const 0) (ref.null func) (i32.const 100)) (br 0))",
    "(loop (call_indirect (i32.const 0)) (br 0))",
    "(call $deep (i32.const 2000)) (unreachable)",
];

/// Stops must work in the code of both.
const COMPILERS: [Compiler; 2] = [Compiler::Singlepass, Compiler::Cranelift];

fn module(body: &str, compiler: Compiler) -> Arc<Prepared> {
    let text = format!(
        "(module
           (import \"wasi_snapshot_preview1\" \"sched_yield\" (func $yield (result i32)))
           (memory (export \"memory\") 1) (table 100 funcref) (elem (i32.const 0) $leaf)
           (func $leaf)
           (func $recurse (param i32)
             (if (local.get 0) (then (call $recurse (i32.sub (local.get 0) (i32.const 1)))
                                     (call $leaf))))
           (func $deep (param i32)
             (if (local.get 0) (then (call $deep (i32.sub (local.get 0) (i32.const 1))))
                               (else (loop (br 0)))))
           (func (export \"_start\") {body}))"
    );
    prepare_with(&text, compiler)
}

#[test]
fn every_way_to_spend_time_ends_soon_after_the_deadline() {
    start().unwrap();
    let sitting = Sitting::take().unwrap();
    let cases = COMPILERS.map(|compiler| BODIES.map(|body| (compiler, body)));
    for (compiler, body) in cases.into_iter().flatten() {
        let module = module(body, compiler);
        for _ in 0..5 {
            let begun = Instant::now();
            let outcome = run(&sitting, &module, Duration::from_millis(20));
            // Endless recursion may also come to the end of its stack.
            let expected = outcome.end == End::TimeLimit || outcome.end == End::StackLimit;
            assert!(expected, "{compiler:?}: {body}: {:?}", outcome.end);
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{body}: {:?}",
                begun.elapsed()
            );
        }
    }
}

#[test]
fn a_guest_that_ends_in_time_is_left_alone_and_so_is_the_next_one() {
    start().unwrap();
    let sitting = Sitting::take().unwrap();
    for compiler in COMPILERS {
        let (quick, slow) = (
            module("(call $leaf)", compiler),
            module(BODIES[0], compiler),
        );
        for _ in 0..50 {
            assert_eq!(
                run(&sitting, &slow, Duration::from_millis(1)).end,
                End::TimeLimit
            );
            assert_eq!(
                run(&sitting, &quick, Duration::from_secs(600)).end,
                End::Exit(0)
            );
        }
    }
}

#[test]
fn expiring_a_run_ends_it_and_not_another() {
    start().unwrap();
    let module = module(BODIES[0], Compiler::Cranelift);
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        let sitting = Sitting::take().unwrap();
        let mut ends = Vec::new();
        for _ in 0..2 {
            let guest = Guest {
                module: Arc::clone(&module),
                call: call(Duration::from_secs(3600)),
                stop: Arc::default(),
                queued: Duration::ZERO,
            };
            let ran = guest::run(&sitting, guest, Place::Own, |run| sender.send(run).unwrap());
            ends.push(ended(ran).end);
        }
        ends
    });
    let first = receiver.recv().unwrap();
    expire(first);
    let second = receiver.recv().unwrap();
    // The first run is over: its id means nothing any more.
    for _ in 0..100 {
        expire(first);
    }
    assert!(!thread.is_finished());
    expire(second);
    assert_eq!(thread.join().unwrap(), [End::TimeLimit, End::TimeLimit]);
}

#[test]
fn thousands_of_stops_at_random_moments_on_two_threads() {
    start().unwrap();
    let rounds: i64 = std::env::var("KILL_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2000);
    let modules: Vec<Arc<Prepared>> = COMPILERS
        .iter()
        .flat_map(|compiler| BODIES.iter().map(|body| module(body, *compiler)))
        .collect();
    let left = AtomicI64::new(rounds * 2);
    thread::scope(|scope| {
        for number in 1..=2u64 {
            let (modules, left) = (&modules, &left);
            scope.spawn(move || {
                let sitting = Sitting::take().unwrap();
                let mut random = 88_172_645_463_325_252 + number;
                while left.fetch_sub(1, Ordering::Relaxed) > 0 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let module = &modules[(random >> 20) as usize % modules.len()];
                    let outcome = run(&sitting, module, Duration::from_micros(random % 1500));
                    match outcome.end {
                        End::TimeLimit => {}
                        End::StackLimit => {}
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
}
