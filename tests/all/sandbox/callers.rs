//! Callers: many at a time, and those that go away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use wasm_wizard::sandbox::{End, ModuleError, Preparation, RunError, Sandbox, Settings, ShareKey};

use super::limits::bomb;
use super::{PATIENCE, call, command, prepare, sandbox, settings, until, wasm, within};

/// A compile worker that begins when it is let: what happens during a compile happens during this
/// one, however fast or slow the machine is.
struct HeldWorker {
    folder: TempDir,
    settings: Settings,
}

impl HeldWorker {
    fn new() -> HeldWorker {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings();
        let here = folder.path().display();
        let script = format!(
            "#!/bin/sh\n: > {here}/started\n\
             while [ ! -e {here}/go ]; do sleep 0.02 < /dev/null > /dev/null; done\n\
             exec {} \"$@\"\n",
            settings.compile.worker.display()
        );
        settings.compile.worker = folder.path().join("worker");
        fs::write(&settings.compile.worker, script).unwrap();
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&settings.compile.worker, executable).unwrap();
        HeldWorker { folder, settings }
    }

    fn has_started(&self) -> bool {
        self.folder.path().join("started").exists()
    }

    fn release(&self) {
        fs::write(self.folder.path().join("go"), "").unwrap();
    }
}

/// A module of its own for each number.
fn numbered(number: u32) -> Bytes {
    wasm(&format!(
        "(module (global i32 (i32.const {number})) (func (export \"_start\")))"
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_guests_run_at_a_time_and_stop_with_their_callers() {
    // One caller never gets all places.
    let mut roomy = settings();
    (roomy.guests_max, roomy.guests_per_share_max) = (200, 200);
    let sandbox = Sandbox::start(roomy).unwrap();
    let module = sandbox
        .prepare(wasm(&command("(loop (br 0))")), Preparation::Optimised)
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
        assert_eq!(within(guest).await.unwrap(), End::Exit(0));
    }
}

#[tokio::test]
async fn full_and_shut_down_sandboxes_say_so() {
    let mut small = settings();
    (small.guests_max, small.queue_max) = (1, 0);
    let sandbox = Sandbox::start(small).unwrap();
    let module = sandbox
        .prepare(wasm(&command("(loop (br 0))")), Preparation::Optimised)
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
    let held = HeldWorker::new();
    let sandbox = Sandbox::start(held.settings.clone()).unwrap();
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let sandbox = sandbox.clone();
            tokio::spawn(async move {
                sandbox
                    .prepare(numbered(1), Preparation::Optimised)
                    .await
                    .unwrap()
            })
        })
        .collect();
    until("a worker", || held.has_started()).await;
    held.release();
    let mut modules = Vec::new();
    for caller in callers {
        modules.push(within(caller).await.unwrap());
    }
    assert!(
        modules
            .iter()
            .all(|module| Arc::ptr_eq(module, &modules[0]))
    );
}

#[tokio::test]
async fn a_compile_outlives_a_caller_but_not_the_last() {
    let held = HeldWorker::new();
    let sandbox = Sandbox::start(held.settings.clone()).unwrap();
    let spawn = |number| {
        let sandbox = sandbox.clone();
        tokio::spawn(async move {
            sandbox
                .prepare(numbered(number), Preparation::Optimised)
                .await
        })
    };
    let (leaver, stayer, abandoned) = (spawn(2), spawn(2), spawn(3));
    until("a worker", || held.has_started()).await;
    leaver.abort();
    abandoned.abort();
    held.release();
    within(stayer).await.unwrap().unwrap();
    // Asked for again, it is made again, whatever became of the first.
    within(sandbox.prepare(numbered(3), Preparation::Optimised))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_compile_queue_is_bounded() {
    let mut held = HeldWorker::new();
    let compile = &mut held.settings.compile;
    (compile.workers_max, compile.queue_max) = (1, 1);
    let sandbox = Sandbox::start(held.settings.clone()).unwrap();
    let spawn = |number| {
        let sandbox = sandbox.clone();
        tokio::spawn(async move {
            sandbox
                .prepare(numbered(number), Preparation::Optimised)
                .await
                .map(drop)
        })
    };
    let callers: Vec<_> = (10..14).map(spawn).collect();
    // One is compiled, one waits, and the others need not wait to be told.
    until("two refusals", || {
        callers.iter().filter(|caller| caller.is_finished()).count() == 2
    })
    .await;
    held.release();
    let mut busy = 0;
    for caller in callers {
        match within(caller).await.unwrap() {
            Ok(()) => {}
            Err(ModuleError::Busy) => busy += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(busy, 2);
}

#[tokio::test]
async fn a_bomb_does_not_keep_the_only_worker_from_others() {
    let mut one = settings();
    one.compile.workers_max = 1;
    // However slow the machine is, or how fast, they don't come to their end, of which a gigabyte is in a few seconds.
    one.compile.memory_bytes_max = 8 << 30;
    one.compile.timeout = Duration::from_secs(3600);
    one.compile.queue_timeout = Duration::from_secs(3600);
    let sandbox = Sandbox::start(one).unwrap();
    let bombers: Vec<_> = (1..3)
        .map(|share| {
            let sandbox = sandbox.clone();
            // Of different bytes, else they would share one compile.
            let mut bomb = bomb().to_vec();
            bomb.extend([0, 3, 1, b'a', share as u8]);
            tokio::spawn(async move {
                let share = ShareKey::of(share);
                let bomb = sandbox.prepare_for(share, bomb.into(), Preparation::Optimised);
                bomb.await.map(drop)
            })
        })
        .collect();
    // Both the best code and what a stranger sends once, also when the bombs have had several turns.
    for (number, preparation) in [
        (30, Preparation::Optimised),
        (31, Preparation::Fast),
        (32, Preparation::Optimised),
        (33, Preparation::Fast),
    ] {
        let share = ShareKey::of(number);
        within(sandbox.prepare_for(share, numbered(number), preparation))
            .await
            .unwrap();
    }
    assert!(bombers.iter().all(|bomber| !bomber.is_finished()));
    bombers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn a_runtime_that_ends_leaves_the_sandbox_whole() {
    let held = HeldWorker::new();
    let sandbox = Sandbox::start(held.settings.clone()).unwrap();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let task = {
        let sandbox = sandbox.clone();
        first.spawn(async move { sandbox.prepare(numbered(20), Preparation::Optimised).await })
    };
    first.block_on(until("a worker", || held.has_started()));
    drop(task);
    drop(first);
    held.release();
    let module = runtime()
        .block_on(sandbox.prepare(numbered(21), Preparation::Optimised))
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
    let deadline = std::time::Instant::now() + PATIENCE;
    while resident() > 1 << 30 {
        assert!(
            std::time::Instant::now() < deadline,
            "{} bytes are still resident",
            resident()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
