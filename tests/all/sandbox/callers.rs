//! Callers: many at a time, and those that go away.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use wasm_wizard::sandbox::{End, ModuleError, RunError, Sandbox};

use super::{call, command, prepare, sandbox, settings, until, wasm, within};

/// Slow to compile, but not for ever.
fn slow(number: u32) -> String {
    let body =
        "(local.set 0 (i64.mul (local.get 0) (i64.add (local.get 1) (i64.const 3))))".repeat(800);
    format!(
        "(module (global i32 (i32.const {number})) (func (export \"_start\")) {})",
        format!("(func (param i64 i64) (result i64) {body} (local.get 0))").repeat(60)
    )
}

/// Children of this process that are compile workers now.
fn workers() -> usize {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return 0;
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|children| {
            children
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
        .filter(|line| line.contains("compile-worker"))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_guests_run_at_a_time_and_stop_with_their_callers() {
    let sandbox = Sandbox::start(settings()).unwrap();
    let module = sandbox
        .prepare(wasm(&command("(loop (br 0))")))
        .await
        .unwrap();
    let guests: Vec<_> = (0..100)
        .map(|_| {
            let (sandbox, module) = (sandbox.clone(), Arc::clone(&module));
            tokio::spawn(async move { sandbox.run(module, call()).await })
        })
        .collect();
    until("a hundred guests", || sandbox.load().running == 100).await;
    for guest in &guests {
        guest.abort();
    }
    until("their end", || sandbox.load().running == 0).await;
    let quick = prepare(&command("(nop)")).await;
    let guests: Vec<_> = (0..300)
        .map(|_| {
            let (sandbox, quick) = (sandbox.clone(), Arc::clone(&quick));
            tokio::spawn(async move { sandbox.run(quick, call()).await.unwrap().end })
        })
        .collect();
    for guest in guests {
        assert_eq!(within(120, guest).await.unwrap(), End::Exit(0));
    }
}

#[tokio::test]
async fn full_and_shut_down_sandboxes_say_so() {
    let mut small = settings();
    (small.guests_max, small.queue_max) = (1, 0);
    let sandbox = Sandbox::start(small).unwrap();
    let module = sandbox
        .prepare(wasm(&command("(loop (br 0))")))
        .await
        .unwrap();
    let running = {
        let (sandbox, module) = (sandbox.clone(), Arc::clone(&module));
        tokio::spawn(async move { sandbox.run(module, call()).await })
    };
    until("a guest", || sandbox.load().running == 1).await;
    let busy = sandbox.run(Arc::clone(&module), call()).await.unwrap_err();
    assert_eq!(busy, RunError::Busy);
    running.abort();
    until("its end", || sandbox.load().running == 0).await;
    sandbox.shut_down();
    assert_eq!(
        sandbox.run(module, call()).await.unwrap_err(),
        RunError::ShuttingDown
    );
}

#[tokio::test]
async fn callers_for_the_same_bytes_share_one_compile() {
    let bytes = wasm(&slow(1));
    let sandbox = Sandbox::start(settings()).unwrap();
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (sandbox, bytes) = (sandbox.clone(), bytes.clone());
            tokio::spawn(async move { sandbox.prepare(bytes).await.unwrap() })
        })
        .collect();
    let mut modules = Vec::new();
    for caller in callers {
        modules.push(within(120, caller).await.unwrap());
    }
    assert!(
        modules
            .iter()
            .all(|module| Arc::ptr_eq(module, &modules[0]))
    );
}

#[tokio::test]
async fn a_compile_outlives_a_caller_but_not_the_last() {
    let sandbox = Sandbox::start(settings()).unwrap();
    let spawn = |number| {
        let (sandbox, bytes) = (sandbox.clone(), wasm(&slow(number)));
        tokio::spawn(async move { sandbox.prepare(bytes).await })
    };
    let (leaver, stayer) = (spawn(2), spawn(2));
    until("a worker", || workers() > 0).await;
    leaver.abort();
    within(120, stayer).await.unwrap().unwrap();

    let bytes = wasm(&slow(3));
    let abandoned = spawn(3);
    until("a worker", || workers() > 0).await;
    abandoned.abort();
    // Asked for again, it is made again, whatever became of the first.
    within(120, sandbox.prepare(bytes)).await.unwrap();
}

#[tokio::test]
async fn the_compile_queue_is_bounded() {
    let mut small = settings();
    (small.compile.workers_max, small.compile.queue_max) = (1, 1);
    let sandbox = Sandbox::start(small).unwrap();
    let spawn = |number| {
        let (sandbox, bytes) = (sandbox.clone(), wasm(&slow(number)));
        tokio::spawn(async move { sandbox.prepare(bytes).await.map(drop) })
    };
    let callers: Vec<_> = (10..14).map(spawn).collect();
    let mut busy = 0;
    for caller in callers {
        match within(200, caller).await.unwrap() {
            Ok(()) => {}
            Err(ModuleError::Busy) => busy += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(busy, 2);
}

#[test]
fn a_runtime_that_ends_leaves_the_sandbox_whole() {
    let sandbox = Sandbox::start(settings()).unwrap();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let task = {
        let (sandbox, bytes) = (sandbox.clone(), wasm(&slow(20)));
        first.spawn(async move { sandbox.prepare(bytes).await })
    };
    first.block_on(until("a worker", || workers() > 0));
    drop(task);
    drop(first);
    let module = runtime()
        .block_on(sandbox.prepare(wasm(&command("(nop) (nop)"))))
        .unwrap();
    let outcome = runtime().block_on(sandbox.run(module, call())).unwrap();
    assert_eq!(outcome.end, End::Exit(0));
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

#[tokio::test]
async fn memory_comes_back_after_an_attack() {
    // Each guest writes 100 MiB.
    let hog = prepare(
        "(module (memory (export \"memory\") 1600) (func (export \"_start\")
           (memory.fill (i32.const 0) (i32.const 7) (i32.const 104857600))))",
    )
    .await;
    for _ in 0..30 {
        assert_eq!(
            sandbox().run(Arc::clone(&hog), call()).await.unwrap().end,
            End::Exit(0)
        );
    }
    // Other tests run beside this one, so the bound is loose; thirty guests wrote three GiB.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while resident() > 1 << 30 {
        assert!(
            std::time::Instant::now() < deadline,
            "{} bytes are still resident",
            resident()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
