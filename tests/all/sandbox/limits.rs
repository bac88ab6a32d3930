//! Limits one by one: exactly where each one is, and what is left when it was met.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasm_wizard::sandbox::{End, ModuleError, Preparation, Prepared, Sandbox};

use super::{
    call, call_for, command, end, prepare, refused, run, sandbox, settings, until, wasm, within,
};

#[tokio::test]
async fn one_large_fill_overruns_the_deadline_but_little() {
    let text = "(module (memory (export \"memory\") 2048) (func (export \"_start\")
        (loop (memory.fill (i32.const 0) (i32.const 7) (i32.const 134217728)) (br 0))))";
    let outcome = run(text, call_for(Duration::from_millis(5))).await;
    assert_eq!(outcome.end, End::TimeLimit);
    // Its own CPU time, which other threads do not lengthen as they do the time on the wall.
    assert!(
        outcome.usage.cpu < Duration::from_secs(3),
        "{:?}",
        outcome.usage.cpu
    );
}

#[tokio::test]
async fn the_end_of_the_stack_is_safe_wherever_it_is_met() {
    // Recurses to the very end of the stack in steps of different sizes, and there calls what runs
    // Rust code: a host function, bulk operators, growth; also with operands that trap.
    let actions = [
        "(drop (call $yield))",
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 8))",
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 65537))",
        "(memory.copy (i32.const -1) (i32.const 1) (i32.const 8))",
        "(memory.init $p (i32.const 0) (i32.const 0) (i32.const 9))",
        "(drop (table.get (i32.const 99)))",
        "(table.set (i32.const 99) (ref.null func))",
        "(table.init $e (i32.const 0) (i32.const 0) (i32.const 9))",
        "(table.fill (i32.const 0) (ref.null func) (i32.const 99))",
        "(drop (memory.grow (i32.const 1)))",
        "(drop (table.grow (ref.null func) (i32.const 1)))",
        "(call $exit (i32.const 9))",
    ];
    for action in actions {
        // Goes down until one step before the last that fits (learned by going too deep in a guest
        // before it), then acts at each of the last depths.
        let text = format!(
            "(module
               (import \"wasi_snapshot_preview1\" \"sched_yield\" (func $yield (result i32)))
               (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
               (import \"wasi_snapshot_preview1\" \"fd_read\"
                 (func $read (param i32 i32 i32 i32) (result i32)))
               (memory (export \"memory\") 1) (table 10 funcref) (data $p \"12345678\") (elem $e func 0)
               (func $down (param $left i32) (param $pad i64)
                 (if (local.get $left)
                   (then (call $down (i32.sub (local.get $left) (i32.const 1)) (local.get $pad)))
                   (else {action}))
                 (i64.store (i32.const 16) (local.get $pad)))
               (func (export \"_start\")
                 (i32.store (i32.const 0) (i32.const 32)) (i32.store (i32.const 4) (i32.const 4))
                 (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
                 (call $down (i32.load (i32.const 32)) (i64.const 7))))"
        );
        let module = prepare(&text).await;
        let too_deep = too_deep(&module).await;
        for depth in too_deep.saturating_sub(120)..too_deep + 3 {
            let end = end_at(&module, depth).await;
            assert!(
                !matches!(end, End::HostError(_) | End::TimeLimit),
                "{action}: {end:?}"
            );
        }
        others_can_trap(action).await;
    }
    // The process, its allocator and its locks are well.
    assert_eq!(end(&command("(nop)")).await, End::Exit(0));
}

/// A guest that is told on its input how deep to go before it acts.
async fn end_at(module: &Arc<Prepared>, depth: u32) -> End {
    let mut call = call();
    call.stdin = Bytes::copy_from_slice(&depth.to_le_bytes()).into();
    let sandbox = sandbox();
    let run = sandbox.run(Arc::clone(module), call);
    within(run).await.unwrap().end
}

/// The least depth that does not fit the stack.
async fn too_deep(module: &Arc<Prepared>) -> u32 {
    let overflow = End::StackLimit;
    let (mut fits, mut too_deep) = (0, 200_000);
    while too_deep - fits > 1 {
        let middle = (fits + too_deep) / 2;
        if end_at(module, middle).await == overflow {
            too_deep = middle
        } else {
            fits = middle
        }
    }
    too_deep
}

/// What fails at the end of the stack must not take a lock of the process with it: once it did, and
/// every guest that trapped on another thread waited for that lock for ever.
async fn others_can_trap(after: &str) {
    let trap = prepare(&command("(drop (i32.load (i32.const -9)))")).await;
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let sandbox = sandbox();
        let run = runtime.block_on(async { within(sandbox.run(trap, call())).await });
        run.unwrap().end
    });
    until("the guest of another thread", || elsewhere.is_finished()).await;
    let end = elsewhere.join().unwrap();
    assert_eq!(
        end,
        End::Trap("out of bounds memory access".into()),
        "{after}"
    );
}

#[tokio::test]
async fn memory_is_limited_from_the_start_and_in_growth() {
    let four_gib = "(module (memory (export \"memory\") 65536) (func (export \"_start\")))";
    let outcome = run(four_gib, call()).await;
    assert_eq!(
        (outcome.end, outcome.usage.memory_peak_bytes),
        (End::MemoryLimit, 0)
    );

    // Grows page by page to the limit, writes to every page, and returns.
    let grow = command(
        "(loop (if (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0)) (then
           (i32.store (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 4)) (i32.const 7))
           (br 1))))",
    );
    let mut small = call();
    small.limits.memory_bytes_max = 64 << 20;
    let outcome = run(&grow, small).await;
    assert_eq!(
        (outcome.end, outcome.usage.memory_peak_bytes),
        (End::Exit(0), 64 << 20)
    );

    // Who fails of the refusal ends by it; who fails of a maximum of its own does not.
    for (body, expected) in [
        (
            "(if (i32.lt_s (memory.grow (i32.const 60000)) (i32.const 0)) (then unreachable))",
            End::MemoryLimit,
        ),
        (
            "(drop (memory.grow (i32.const 60000))) (call $exit (i32.const 2))",
            End::MemoryLimit,
        ),
        (
            "(drop (memory.grow (i32.const 60000))) (call $exit (i32.const 0))",
            End::Exit(0),
        ),
        (
            "(drop (memory.grow (i32.const 100000))) unreachable",
            End::Trap("unreachable".into()),
        ),
    ] {
        assert_eq!(end(&command(body)).await, expected, "{body}");
    }
    let own = "(module (memory (export \"memory\") 1 2) (func (export \"_start\")
        (if (i32.lt_s (memory.grow (i32.const 2)) (i32.const 0)) (then unreachable))))";
    assert_eq!(end(own).await, End::Trap("unreachable".into()));
    // A limit that is no whole number of pages, and none at all.
    for (limit, expected) in [
        (65536 * 2 - 1, End::Exit(0)),
        (65535, End::MemoryLimit),
        (0, End::MemoryLimit),
    ] {
        let mut odd = call();
        odd.limits.memory_bytes_max = limit;
        assert_eq!(run(&command("(nop)"), odd).await.end, expected);
    }
}

#[tokio::test]
async fn tables_are_limited_from_the_start_and_in_growth() {
    let large = refused(wasm(
        "(module (table 10000000 funcref) (func (export \"_start\")))",
    ))
    .await;
    assert!(matches!(large, ModuleError::OverLimit(_)), "{large}");
    let grow = "(module (table 1 funcref) (func (export \"_start\")
        (if (i32.ne (table.grow (ref.null func) (i32.const 19999)) (i32.const 1)) (then unreachable))
        (if (i32.ne (table.grow (ref.null func) (i32.const 1)) (i32.const -1)) (then unreachable))
        (if (i32.ne (table.size) (i32.const 20000)) (then unreachable))))";
    assert_eq!(end(grow).await, End::Exit(0));
}

#[tokio::test]
async fn a_guest_that_fails_of_its_table_is_told_from_one_that_fails_by_itself() {
    // Of two tables, the second may have five by its own word.
    let guest = |table: u32, more: u32, end: &str| {
        format!(
            "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
               (memory (export \"memory\") 1) (table 1 funcref) (table 1 5 funcref)
               (func (export \"_start\")
                 (if (i32.eq (table.grow {table} (ref.null func) (i32.const {more})) (i32.const -1))
                   (then {end}))))"
        )
    };
    let of_ten = async |text: String| {
        let mut tight = call();
        tight.limits.table_elements_max = 10;
        run(&text, tight).await.end
    };
    let unreachable = End::Trap("unreachable".into());
    assert_eq!(of_ten(guest(0, 9, "unreachable")).await, End::Exit(0));
    assert_eq!(of_ten(guest(0, 10, "unreachable")).await, End::TableLimit);
    assert_eq!(
        of_ten(guest(0, 10, "(call $exit (i32.const 3))")).await,
        End::TableLimit
    );
    // Who copes with it has not failed.
    assert_eq!(of_ten(guest(0, 10, "")).await, End::Exit(0));
    assert_eq!(of_ten(guest(1, 5, "unreachable")).await, unreachable);
    assert_eq!(of_ten(guest(1, u32::MAX, "unreachable")).await, unreachable);
    assert_eq!(of_ten(guest(1, 4, "unreachable")).await, End::Exit(0));
    let mut tight = call();
    tight.limits.table_elements_max = 3;
    let second = run(&guest(1, 4, "unreachable"), tight).await;
    assert_eq!(second.end, End::TableLimit);

    // At the start, all tables count together.
    let mut tight = call();
    tight.limits.table_elements_max = 1;
    let outcome = run(&guest(0, 0, "unreachable"), tight).await;
    assert_eq!(outcome.end, End::TableLimit);
}

/// A value for each of many locals at each of many branches: minutes of work for a compiler.
pub(super) fn bomb() -> Bytes {
    let branches: String = (0..19_000)
        .map(|n| {
            let to = (n * 7) % 19_000;
            format!("(if (local.get {n}) (then (local.set {to} (i32.const {n}))))")
        })
        .collect();
    wasm(&format!(
        "(module (func (export \"_start\") (local {}) {branches}))",
        "i32 ".repeat(19_000),
    ))
}

#[tokio::test]
async fn what_took_too_long_to_compile_is_not_tried_again() {
    let mut tight = settings();
    let timeout = Duration::from_secs(5);
    tight.compile.timeout = timeout;
    tight.compile.memory_bytes_max = 1 << 30;
    let sandbox = Sandbox::start(tight).unwrap();
    let bomb = bomb();
    let error = within(sandbox.prepare(bomb.clone(), Preparation::Optimised))
        .await
        .unwrap_err();
    assert!(matches!(error, ModuleError::CompileLimit(_)), "{error:?}");
    // To try would take the whole timeout.
    let again = Instant::now();
    sandbox
        .prepare(bomb, Preparation::Optimised)
        .await
        .unwrap_err();
    assert!(again.elapsed() < timeout);
}

#[tokio::test]
async fn a_compile_without_memory_is_a_limit() {
    let mut tight = settings();
    tight.compile.memory_bytes_max = 64 << 20;
    let sandbox = Sandbox::start(tight).unwrap();
    let functions = format!(
        "(func (param i64 i64) (result i64) {} (local.get 0))",
        "(local.set 0 (i64.mul (local.get 0) (i64.add (local.get 1) (i64.const 3))))"
            .repeat(20_000)
    );
    let text = format!("(module (func (export \"_start\")) {functions})");
    let error = sandbox
        .prepare(wasm(&text), Preparation::Optimised)
        .await
        .unwrap_err();
    assert!(matches!(error, ModuleError::CompileLimit(_)), "{error:?}");
    // What is small compiles still, or is refused the same way.
    let small = sandbox
        .prepare(wasm(&command("(nop)")), Preparation::Optimised)
        .await;
    assert!(
        matches!(small, Ok(_) | Err(ModuleError::CompileLimit(_))),
        "{small:?}"
    );
}

#[tokio::test]
async fn many_functions_compile_and_one_more_is_refused() {
    let module = |count: usize| {
        wasm(&format!(
            "(module (func (export \"_start\")) {})",
            "(func)".repeat(count - 1)
        ))
    };
    let prepared = within(sandbox().prepare(module(20_000), Preparation::Optimised))
        .await
        .unwrap();
    assert_eq!(
        sandbox().run(prepared, call()).await.unwrap().end,
        End::Exit(0)
    );
    let error = refused(module(50_001)).await.to_string();
    assert!(error.contains("too many functions"), "{error}");
}
