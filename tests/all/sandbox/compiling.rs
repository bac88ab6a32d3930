//! Two compilers, workers that are contained, and bombs.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wasm_wizard::sandbox::{End, ModuleError, ModuleHash, Preparation, Sandbox};

use super::{call, command, sandbox, settings, until, wasm, within};

/// Says hello. No two numbers make the same module.
fn ordinary(number: u32) -> Bytes {
    wasm(&format!(
        "(module
           (import \"wasi_snapshot_preview1\" \"fd_write\"
             (func $write (param i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 1)
           (data (i32.const 0) \"\\10\\00\\00\\00\\06\\00\\00\\00\") (data (i32.const 16) \"hello\\n\")
           (global $n (mut i32) (i32.const {number}))
           (func (export \"_start\")
             (global.set $n (i32.add (global.get $n) (i32.const 1)))
             (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"
    ))
}

/// Takes Cranelift seconds at least, and Singlepass no time. With a vector in it, it is not
/// for Singlepass.
fn bomb(number: u32, with_vector: bool) -> Bytes {
    const DEPTH: usize = 19_000;
    let vector = if with_vector {
        "(func (drop (v128.const i64x2 0 0)))"
    } else {
        ""
    };
    wasm(&format!(
        "(module (global i32 (i32.const {number})) {vector}
           (func (export \"_start\"))
           (func (param i32) {} (br_if 0 (local.get 0)) {}))",
        "(loop ".repeat(DEPTH),
        ")".repeat(DEPTH)
    ))
}

async fn says_hello(sandbox: &Sandbox, hash: &ModuleHash) {
    let module = sandbox.prepared(hash).unwrap();
    let outcome = sandbox.run(module, call()).await.unwrap();
    assert_eq!(outcome.end, End::Exit(0));
    assert_eq!(&outcome.stdout[..], b"hello\n");
}

#[tokio::test]
async fn what_is_wanted_soon_is_quick_first_and_better_when_it_comes_again() {
    let sandbox = sandbox();
    let bytes = ordinary(1);
    let hash = ModuleHash::of(&bytes);
    let first = sandbox
        .prepare(bytes.clone(), Preparation::Fast)
        .await
        .unwrap();
    assert_eq!(first.is_optimised(), !cfg!(target_arch = "x86_64"));
    says_hello(&sandbox, &hash).await;
    sandbox.prepare(bytes, Preparation::Fast).await.unwrap();
    until("better code", || {
        sandbox.prepared(&hash).unwrap().is_optimised()
    })
    .await;
    says_hello(&sandbox, &hash).await;
    // Who still holds the other can run it.
    let outcome = sandbox.run(first, call()).await.unwrap();
    assert_eq!(outcome.end, End::Exit(0));
}

#[tokio::test]
async fn what_is_kept_is_quick_first_and_better_soon() {
    let sandbox = sandbox();
    let bytes = ordinary(2);
    let hash = ModuleHash::of(&bytes);
    let preparation = Preparation::FastThenOptimised;
    let first = sandbox.prepare(bytes, preparation).await.unwrap();
    assert_eq!(first.is_optimised(), !cfg!(target_arch = "x86_64"));
    until("better code", || {
        sandbox.prepared(&hash).unwrap().is_optimised()
    })
    .await;
    says_hello(&sandbox, &hash).await;
}

#[tokio::test]
async fn what_singlepass_can_not_or_may_not_compile_is_compiled_well_at_once() {
    let vectors = wasm(
        "(module (memory (export \"memory\") 1)
           (func (export \"_start\") (v128.store (i32.const 0) (v128.const i32x4 1 2 3 4))))",
    );
    let wide = wasm(&format!(
        "(module (func (export \"_start\")) (func (param {})))",
        "i32 ".repeat(200)
    ));
    for bytes in [vectors, wide] {
        let module = sandbox().prepare(bytes, Preparation::Fast).await.unwrap();
        assert!(module.is_optimised());
        let outcome = sandbox().run(module, call()).await.unwrap();
        assert_eq!(outcome.end, End::Exit(0));
    }
    let mut without = settings();
    without.compile.singlepass = false;
    let sandbox = Sandbox::start(without).unwrap();
    let module = sandbox.prepare(ordinary(4), Preparation::Fast).await;
    assert!(module.unwrap().is_optimised());
}

#[tokio::test]
async fn a_better_module_is_wanted_while_a_quick_one_is_there() {
    let sandbox = sandbox();
    let bytes = ordinary(5);
    sandbox
        .prepare(bytes.clone(), Preparation::Fast)
        .await
        .unwrap();
    let best = sandbox
        .prepare(bytes.clone(), Preparation::Optimised)
        .await
        .unwrap();
    assert!(best.is_optimised());
    let again = sandbox.prepare(bytes, Preparation::Fast).await.unwrap();
    assert!(Arc::ptr_eq(&best, &again));
}

/// Fields of the compile workers that are children of this process now.
fn workers(field: &str) -> Vec<String> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let children = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<String> = children
        .flat_map(|pids| {
            pids.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    pids.iter()
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains("compile-worker"))
        })
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter_map(|status| {
            let line = status.lines().find(|line| line.starts_with(field))?;
            Some(line.split_whitespace().nth(1)?.to_owned())
        })
        .collect()
}

#[tokio::test]
async fn a_worker_that_waits_is_contained() {
    let _sandbox = sandbox();
    until("a worker without new privileges", || {
        workers("NoNewPrivs:").contains(&"1".to_owned())
    })
    .await;
    // Signals to this process's group, or by its name, are not for them.
    assert!(workers("Name:").iter().all(|name| name == "compile-worker"));
    let own = rustix::process::getpgrp().as_raw_nonzero().to_string();
    assert!(!workers("NSpgid:").contains(&own));
    // Two is a filter (proc(5)). A kernel without them says nothing here.
    if fs::read_to_string("/proc/self/status")
        .unwrap()
        .contains("Seccomp:")
    {
        until("a filtered worker", || {
            workers("Seccomp:").contains(&"2".to_owned())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_leave_a_worker_to_quick_compiles() {
    let mut settings = settings();
    settings.compile.queue_max = 2;
    settings.compile.timeout = Duration::from_secs(3600);
    settings.compile.queue_timeout = Duration::from_secs(3600);
    let sandbox = Sandbox::start(settings).unwrap();
    let bombs: Vec<_> = (0..6)
        .map(|number| {
            let (sandbox, bytes) = (sandbox.clone(), bomb(number, true));
            tokio::spawn(async move { sandbox.prepare(bytes, Preparation::Fast).await })
        })
        .collect();
    for number in 10..14 {
        // Before the bombs are known for what they are, they take up the room of quick compiles.
        let module = within(async {
            loop {
                match sandbox.prepare(ordinary(number), Preparation::Fast).await {
                    Err(ModuleError::Busy) => tokio::time::sleep(Duration::from_millis(2)).await,
                    other => break other,
                }
            }
        });
        module.await.unwrap();
    }
    // One is compiled, two or three wait, and the rest was refused: none has come to its end.
    assert!(bombs.iter().any(|bomb| !bomb.is_finished()));
    for bomb in bombs {
        if bomb.is_finished() {
            assert!(matches!(bomb.await.unwrap(), Err(ModuleError::Busy)));
        } else {
            bomb.abort();
        }
    }
}

#[tokio::test]
async fn a_bomb_in_the_background_gives_way() {
    let mut settings = settings();
    settings.compile.workers_max = 1;
    settings.compile.timeout = Duration::from_secs(3600);
    settings.compile.queue_timeout = Duration::from_secs(3600);
    let sandbox = Sandbox::start(settings).unwrap();
    let preparation = Preparation::FastThenOptimised;
    // Singlepass makes nothing of it: it runs, while Cranelift has it in the background.
    let module = within(sandbox.prepare(bomb(20, false), preparation)).await;
    let module = module.unwrap();
    assert_eq!(sandbox.run(module, call()).await.unwrap().end, End::Exit(0));
    for number in 21..24 {
        within(sandbox.prepare(ordinary(number), Preparation::Fast))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_bomb_costs_its_sender_a_bounded_time_and_so_does_waiting_for_it() {
    let mut settings = settings();
    settings.compile.workers_max = 1;
    // On a fast machine with nothing else to do, the bomb takes seconds.
    settings.compile.timeout = Duration::from_millis(1500);
    settings.compile.queue_timeout = Duration::from_millis(700);
    let sandbox = Sandbox::start(settings).unwrap();
    let (first, second) = tokio::join!(
        within(sandbox.prepare(bomb(30, true), Preparation::Fast)),
        within(sandbox.prepare(bomb(31, true), Preparation::Fast)),
    );
    // One takes as long as it may. The other waits as long as it may, or was next after all.
    let (mut cut_off, mut refused) = (0, 0);
    for result in [first, second] {
        match result {
            Err(ModuleError::CompileLimit(_)) => cut_off += 1,
            Err(ModuleError::Busy) => refused += 1,
            other => panic!("{:?}", other.map(drop)),
        }
    }
    assert!(cut_off >= 1, "{cut_off} cut off, {refused} refused");
    // The next one has nothing to wait for.
    within(sandbox.prepare(wasm(&command("(nop)")), Preparation::Fast))
        .await
        .unwrap();
}
