//! Guests that are stopped at any moment of anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::engine::{Compiler, Prepared, prepare_with};
use super::super::guest::{self, Guest, Place, Ran};
use super::super::priority;
use super::super::{Call, End, GuestLimits, Outcome, ShareKey, Stdout, Strings};
use super::{NEVER, SETTLED_AT_A_TIME, Seat, Sitting, expire, settle, start};

fn call(deadline: Duration) -> Call {
    Call {
        args: Strings::arguments(["guest"]),
        env: Strings::default(),
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
        Ran::Ended(outcome, _) => outcome,
        Ran::Postponed(..) => panic!("a thread of its own is not lent"),
    }
}

/// Ways to spend time: in plain code, calls, host functions, bulk operators, and traps.
const BODIES: [&str; 27] = [
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
    "(loop (drop (call_indirect (result i32) (i32.const 1))) (br 0))",
    "(call $deep (i32.const 2000)) (unreachable)",
    "(loop (memory.init $p (i32.const 0) (i32.const 0) (i32.const 8)) (br 0))",
    "(loop (table.copy (i32.const 0) (i32.const 1) (i32.const 99)) (br 0))",
    "(loop (table.init $e (i32.const 9) (i32.const 0) (i32.const 3)) (br 0))",
    "(loop (table.set (i32.const 7) (table.get (i32.const 0))) (br 0))",
    "(loop (data.drop $p) (br 0))",
    "(loop (elem.drop $e) (br 0))",
    "(loop (drop (memory.size)) (br 0))",
    "(loop (drop (table.size)) (br 0))",
    "(loop (drop (ref.func $leaf)) (br 0))",
    "(loop (f64.store (i32.const 8) (f64.nearest (f64.load (i32.const 0)))) (br 0))",
    "(call $sleep (i64.const -1))",
    "(loop (call $sleep (i64.const 1000)) (br 0))",
    "(loop (call $sleep (i64.const 0)) (br 0))",
    "(loop (drop (call $random (i32.const 0) (i32.const 65536))) (br 0))",
    "(loop (drop (call $write (i32.const 2) (i32.const 64) (i32.const 1) (i32.const 72))) (br 0))",
];

/// Stops must work in the code of both.
const COMPILERS: [Compiler; 2] = [Compiler::Singlepass, Compiler::Cranelift];

/// What runs in the start section, where that is not the body.
const IDLE: &str = "(nop)";

fn module(body: &str, compiler: Compiler) -> Arc<Prepared> {
    starting(IDLE, body, compiler)
}

/// All ways to spend time, in `_start` and in the start section.
fn modules(compiler: Compiler) -> impl Iterator<Item = (&'static str, Arc<Prepared>)> {
    BODIES.into_iter().flat_map(move |body| {
        let ways = [(IDLE, body), (body, IDLE)];
        ways.map(|(first, then)| (body, starting(first, then, compiler)))
    })
}

fn starting(first: &str, body: &str, compiler: Compiler) -> Arc<Prepared> {
    let text = format!(
        "(module
           (import \"wasi_snapshot_preview1\" \"sched_yield\" (func $yield (result i32)))
           (import \"wasi_snapshot_preview1\" \"random_get\"
             (func $random (param i32 i32) (result i32)))
           (import \"wasi_snapshot_preview1\" \"fd_write\"
             (func $write (param i32 i32 i32 i32) (result i32)))
           (import \"wasi_snapshot_preview1\" \"poll_oneoff\"
             (func $poll (param i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 1) (data (i32.const 68) \"\\00\\10\")
           (table 100 funcref) (elem (i32.const 0) $leaf $yield)
           (data $p \"12345678\") (elem $e func $leaf $sleep $recurse)
           (start $first) (func $first {first})
           (func $leaf)
           (func $sleep (param i64)
             (i32.store (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (local.get 0))
             (drop (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256))))
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
    for compiler in COMPILERS {
        for (body, module) in modules(compiler) {
            ends_in_time(&sitting, &module, 4, &format!("{compiler:?}: {body}"));
        }
        for body in LARGE {
            let text = format!("(module (memory 1024) (func (export \"_start\") {body}))");
            let module = prepare_with(&text, compiler);
            // A piece takes as long as the machine needs to find the pages for it.
            ends_in_time(&sitting, &module, 20, &format!("{compiler:?}: {body}"));
        }
    }
}

/// Operators that would take many times as long as a guest may.
const LARGE: [&str; 3] = [
    "(loop (memory.fill (i32.const 0) (i32.const 7) (i32.const 0x4000000)) (br 0))",
    "(loop (memory.copy (i32.const 1) (i32.const 0) (i32.const 0x3ffffff)) (br 0))",
    "(loop (drop (memory.grow (i32.const 1)))
       (memory.fill (i32.const 0) (i32.const 7) (i32.shl (memory.size) (i32.const 16))) (br 0))",
];

/// Whoever waits for a guest's end does not wait until its memory is given back.
#[test]
fn what_a_stopped_guest_leaves_is_there_after_its_end() {
    start().unwrap();
    let sitting = Sitting::take().unwrap();
    for (body, is_stopped) in [("(loop (br 0))", true), ("(nop)", false)] {
        let text = format!("(module (memory 1) (func (export \"_start\") {body}))");
        let guest = Guest {
            module: prepare_with(&text, Compiler::Cranelift),
            call: call(Duration::from_millis(3)),
            stop: Arc::default(),
            queued: Duration::ZERO,
        };
        match guest::run(&sitting, guest, Place::Own, |_| {}) {
            Ran::Ended(outcome, remains) => {
                assert_eq!(outcome.end == End::TimeLimit, is_stopped);
                assert_eq!(remains.is_empty(), !is_stopped);
            }
            Ran::Postponed(..) => panic!("it has its thread"),
        }
    }
}

/// Runs a guest until it was soon stopped often enough. Signals come a millisecond apart, so this is what
/// the promise of five milliseconds looks like on a machine that may be busy with other things.
fn ends_in_time(sitting: &Sitting, module: &Arc<Prepared>, signals_max: u32, what: &str) {
    let mut late = Vec::new();
    let mut in_time = 0;
    while in_time < 4 {
        match run(sitting, module, Duration::from_millis(3)).end {
            End::TimeLimit => {}
            // Endless recursion may also come to the end of its stack.
            End::StackLimit => return,
            other => panic!("{what}: {other:?}"),
        }
        match sitting.signals() {
            signals if signals <= signals_max => in_time += 1,
            signals => late.push(signals),
        }
        assert!(
            late.len() <= 4,
            "{what} ends after so many signals: {late:?}"
        );
    }
}

#[test]
fn guests_are_stopped_while_those_of_other_threads_trap() {
    start().unwrap();
    let trapping = [
        ("(unreachable)", "unreachable"),
        (
            "(drop (i32.load (i32.const -9)))",
            "out of bounds memory access",
        ),
        (
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            "integer divide by zero",
        ),
        (
            "(call_indirect (i32.const 50))",
            "call of an empty table element",
        ),
        (
            "(memory.fill (i32.const 1) (i32.const 0) (i32.const -1))",
            "out of bounds memory access",
        ),
    ]
    .map(|(body, text)| (module(body, Compiler::Cranelift), End::Trap(text.into())));
    let overflowing = module(
        "(call $recurse (i32.const 100000000))",
        Compiler::Singlepass,
    );
    let stopped: Vec<_> = modules(Compiler::Cranelift).collect();
    let (stops, traps) = (AtomicI64::new(0), AtomicI64::new(0));
    let enough = || stops.load(Ordering::Relaxed) >= 200 && traps.load(Ordering::Relaxed) >= 5_000;
    let long = Duration::from_secs(600);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let sitting = Sitting::take().unwrap();
                while !enough() {
                    for (module, end) in &trapping {
                        assert_eq!(run(&sitting, module, long).end, *end);
                    }
                    assert_eq!(run(&sitting, &overflowing, long).end, End::StackLimit);
                    traps.fetch_add(trapping.len() as i64 + 1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let sitting = Sitting::take().unwrap();
            for (what, module) in stopped.iter().cycle() {
                if enough() {
                    break;
                }
                match run(&sitting, module, Duration::from_millis(1)).end {
                    End::TimeLimit | End::StackLimit => {}
                    other => panic!("{what}: {other:?}"),
                }
                stops.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
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
    let modules: Vec<_> = COMPILERS.into_iter().flat_map(modules).collect();
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
                    let (what, module) = &modules[(random >> 20) as usize % modules.len()];
                    let outcome = run(&sitting, module, Duration::from_micros(random % 1500));
                    match outcome.end {
                        End::TimeLimit => {}
                        End::StackLimit => {}
                        other => panic!("{what}: {other:?}"),
                    }
                }
            });
        }
    });
}

#[test]
fn guests_that_began_together_are_settled_some_at_a_time() {
    const ALL: usize = SETTLED_AT_A_TIME + 4;
    let seats: Vec<_> = (0..ALL).map(|_| Seat::new()).collect();
    let seats: Vec<_> = seats.iter().collect();
    for seat in &seats {
        seat.settles_at.store(5, Ordering::SeqCst);
    }
    let left = || {
        let due = |seat: &&&Seat| seat.settles_at.load(Ordering::SeqCst) != NEVER;
        seats.iter().filter(due).count()
    };
    assert_eq!(settle(&seats, 4), 1_000_004, "none is due");
    assert_eq!(left(), ALL);
    assert_eq!(settle(&seats, 10), 1_000_010, "it has to come again");
    assert_eq!(left(), 4);
    assert_eq!(settle(&seats, 1_000_010), NEVER);
    assert_eq!(left(), 0);
}

/// Where the kernel has slices of a thread's own: who begins is given short ones, and who goes on long ones.
#[test]
fn a_guest_that_goes_on_no_longer_runs_before_those_that_begin() {
    start().unwrap();
    let (said, told) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let guests = thread::spawn(move || {
        let sitting = Sitting::take_for_good().unwrap();
        let spin = module("(loop (br 0))", Compiler::Singlepass);
        // SAFETY: the call has no conditions.
        said.send(unsafe { libc::gettid() }).unwrap();
        let outcome = run(&sitting, &spin, Duration::from_secs(600));
        assert_eq!(outcome.end, End::TimeLimit);
        said.send(0).unwrap();
        goes.recv().unwrap();
        sitting.seat
    });
    let id = told.recv().unwrap();
    let seats = super::watchdog().lock().all.clone();
    let mut seats = seats.into_iter();
    let seat = seats.find(|seat| seat.lock().scheduled == Some(id));
    let seat = seat.unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    while !seat.lock().is_settled {
        assert!(Instant::now() < deadline, "it is not settled");
        thread::sleep(Duration::from_millis(1));
    }
    // A kernel without them gives none.
    assert!([0, 3_000_000].contains(&priority::slice(id)));
    let number = seat.lock().number;
    expire(super::RunId { seat, number });
    told.recv().unwrap();
    assert!([0, 200_000].contains(&priority::slice(id)));
    assert!(!seat.lock().is_settled);
    go.send(()).unwrap();
    assert!(std::ptr::eq(guests.join().unwrap(), seat));
    assert_ne!(seat.lock().scheduled, Some(id));
}
