//! Threads, the queue, and callers that go away.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::super::engine::{Prepared, prepare_here};
use super::super::{Call, End, GuestLimits, RunError, ShareKey, Stdout, Strings, deadline, pipe};
use super::{Bounds, Executor, Pace};

fn call(stdout: Stdout) -> Call {
    Call {
        args: Strings::default(),
        env: Strings::default(),
        stdin: bytes::Bytes::new().into(),
        files: None,
        stdout,
        limits: GuestLimits {
            deadline: Duration::from_secs(600),
            memory_bytes_max: 1 << 20,
            stdout_bytes_max: 1 << 30,
            stderr_bytes_max: 0,
            stack_bytes_max: 1 << 20,
            table_elements_max: 100_000,
        },
        share: ShareKey::default(),
    }
}

fn executor(guests_max: usize, queue_max: usize, queue_timeout: Duration) -> Arc<Executor> {
    deadline::start().unwrap();
    Arc::new(Executor::new(Bounds {
        guests_max,
        per_share_max: guests_max,
        queue_max,
        queue_timeout,
    }))
}

fn endless() -> Arc<Prepared> {
    prepare_here("(module (func (export \"_start\") (loop (br 0))))")
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn spawn(
    executor: &Arc<Executor>,
    module: &Arc<Prepared>,
) -> tokio::task::JoinHandle<Result<super::Outcome, RunError>> {
    let (executor, module) = (Arc::clone(executor), Arc::clone(module));
    tokio::spawn(async move { executor.run(module, call(Stdout::Collect)).await })
}

#[tokio::test]
async fn a_full_queue_is_busy_and_a_dropped_caller_makes_room() {
    let executor = executor(2, 1, Duration::from_secs(600));
    let module = endless();
    let first = spawn(&executor, &module);
    let second = spawn(&executor, &module);
    until(|| executor.load() == (2, 0)).await;
    let third = spawn(&executor, &module);
    until(|| executor.load() == (2, 1)).await;
    let refused = executor
        .run(Arc::clone(&module), call(Stdout::Collect))
        .await;
    assert_eq!(refused.unwrap_err(), RunError::Busy);
    // A caller that goes while it waits leaves the queue at once.
    third.abort();
    until(|| executor.load() == (2, 0)).await;
    // A caller that goes while its guest runs stops the guest, long before its deadline.
    first.abort();
    second.abort();
    until(|| executor.load() == (0, 0)).await;
}

#[tokio::test]
async fn waiting_too_long_is_busy() {
    let executor = executor(1, 5, Duration::from_millis(50));
    let module = endless();
    let running = loop {
        let running = spawn(&executor, &module);
        until(|| executor.load() == (1, 0) || running.is_finished()).await;
        // On a busy machine it may itself have waited too long.
        if !running.is_finished() {
            break running;
        }
    };
    let waited = executor
        .run(Arc::clone(&module), call(Stdout::Collect))
        .await;
    assert_eq!(waited.unwrap_err(), RunError::Busy);
    assert_eq!(executor.load(), (1, 0));
    running.abort();
    until(|| executor.load() == (0, 0)).await;
}

#[tokio::test]
async fn a_guest_that_waits_for_its_reader_is_stopped_with_its_caller() {
    let writer = prepare_here(
        "(module
           (import \"wasi_snapshot_preview1\" \"fd_write\"
             (func $write (param i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 1)
           (func (export \"_start\")
             (i32.store (i32.const 4) (i32.const 60000))
             (loop
               (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
               (br 0))))",
    );
    let executor = executor(1, 0, Duration::from_secs(600));
    let (stdout, reader) = pipe(1000);
    let running = {
        let executor = Arc::clone(&executor);
        tokio::spawn(async move { executor.run(writer, call(Stdout::Pipe(stdout))).await })
    };
    until(|| executor.load() == (1, 0)).await;
    running.abort();
    until(|| executor.load() == (0, 0)).await;
    drop(reader);
}

#[tokio::test]
async fn shut_down_refuses_and_lets_the_rest_run() {
    let executor = executor(1, 5, Duration::from_secs(600));
    let module = prepare_here("(module (func (export \"_start\")))");
    let done = executor
        .run(Arc::clone(&module), call(Stdout::Collect))
        .await
        .unwrap();
    assert_eq!(done.end, End::Exit(0));
    executor.shut_down();
    let refused = executor.run(module, call(Stdout::Collect)).await;
    assert_eq!(refused.unwrap_err(), RunError::ShuttingDown);
}

#[tokio::test]
async fn many_guests_share_few_threads() {
    let executor = executor(3, 1000, Duration::from_secs(600));
    let module = prepare_here("(module (func (export \"_start\")))");
    let guests: Vec<_> = (0..500).map(|_| spawn(&executor, &module)).collect();
    for guest in guests {
        assert_eq!(guest.await.unwrap().unwrap().end, End::Exit(0));
    }
    assert!(executor.shared.lock().threads <= 3);
    assert_eq!(executor.load(), (0, 0));
}

#[test]
fn callers_may_come_from_several_runtimes() {
    let executor = executor(2, 100, Duration::from_secs(600));
    let module = prepare_here("(module (func (export \"_start\")))");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    for _ in 0..20 {
                        let done = executor
                            .run(Arc::clone(&module), call(Stdout::Collect))
                            .await;
                        assert_eq!(done.unwrap().end, End::Exit(0));
                    }
                });
            });
        }
    });
}

/// A guest that says "once" before or after something that takes long.
fn says_once(before: &str, after: &str) -> Arc<Prepared> {
    prepare_here(&format!(
        "(module
           (import \"wasi_snapshot_preview1\" \"fd_write\"
             (func $write (param i32 i32 i32 i32) (result i32)))
           (import \"wasi_snapshot_preview1\" \"poll_oneoff\"
             (func $poll (param i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 2)
           (data (i32.const 0) \"\\10\\00\\00\\00\\04\\00\\00\\00\") (data (i32.const 16) \"once\")
           (func $say (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
           (func $long (local $i i32)
             (loop $again
               (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $i) (i32.const 100000000)))))
           (func $sleep
             (i64.store (i32.const 124) (i64.const 20000000))
             (drop (call $poll (i32.const 100) (i32.const 200) (i32.const 1) (i32.const 300))))
           (func $flood (local $i i32)
             (i32.store (i32.const 400) (i32.const 1024)) (i32.store (i32.const 404) (i32.const 10000))
             (loop $again
               (drop (call $write (i32.const 1) (i32.const 400) (i32.const 1) (i32.const 8)))
               (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $i) (i32.const 10)))))
           (func (export \"_start\") {before} (call $say) {after}))"
    ))
}

#[tokio::test]
async fn short_guests_run_on_the_callers_thread() {
    // A machine that is very busy may take a guest's slice away, but not each time.
    let mut tries = 0;
    let (executor, module) = loop {
        let executor = executor(2, 5, Duration::from_secs(60));
        let module = says_once("", "");
        for _ in 0..3 {
            let outcome = executor
                .run(Arc::clone(&module), call(Stdout::Collect))
                .await
                .unwrap();
            assert_eq!(
                (outcome.end, &outcome.stdout[..]),
                (End::Exit(0), &b"once"[..])
            );
        }
        if executor.shared.lock().threads == 0 {
            break (executor, module);
        }
        tries += 1;
        assert!(tries < 20, "short guests run on threads of their own");
    };
    // Where it runs on a thread of its own after all, it waits for the reader.
    let (writer, mut reader) = pipe(1);
    let read = async {
        let mut output = Vec::new();
        while let Some(piece) = reader.read().await {
            output.extend_from_slice(&piece);
        }
        output
    };
    let running = executor.run(module, call(Stdout::Pipe(writer)));
    let (outcome, output) = tokio::join!(running, read);
    assert_eq!(outcome.unwrap().usage.stdout_bytes, 4);
    assert_eq!(output, b"once");
    assert!(executor.shared.lock().threads <= 1);
}

#[tokio::test]
async fn what_takes_longer_starts_again_on_a_thread_of_its_own_and_says_nothing_twice() {
    for (before, after) in [
        ("(call $long)", ""),
        ("", "(call $long)"),
        ("(call $sleep)", ""),
        ("", "(call $sleep)"),
    ] {
        let executor = executor(2, 5, Duration::from_secs(60));
        let module = says_once(before, after);
        for _ in 0..2 {
            let outcome = executor
                .run(Arc::clone(&module), call(Stdout::Collect))
                .await
                .unwrap();
            assert_eq!(outcome.end, End::Exit(0));
            assert_eq!(outcome.stdout, b"once", "{before} {after}");
            let (writer, mut reader) = pipe(100);
            let outcome = executor
                .run(Arc::clone(&module), call(Stdout::Pipe(writer)))
                .await;
            assert_eq!(outcome.unwrap().end, End::Exit(0));
            assert_eq!(reader.read().await.as_deref(), Some(&b"once"[..]));
            assert_eq!(reader.read().await, None);
        }
        assert!(executor.shared.lock().threads >= 1);
    }
}

#[tokio::test]
async fn what_a_guest_did_in_its_slice_is_undone_when_it_starts_again() {
    // Says what is not as at the start, reads all of its input, says it twice, lets go of it, and has not
    // done so when it comes back. The memory that it looks at is the one that it writes to.
    let text = "(module
        (import \"wasi_snapshot_preview1\" \"fd_read\" (func $read (param i32 i32 i32 i32) (result i32)))
        (import \"wasi_snapshot_preview1\" \"fd_write\" (func $write (param i32 i32 i32 i32) (result i32)))
        (import \"wasi_snapshot_preview1\" \"fd_close\" (func $close (param i32) (result i32)))
        (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
        (import \"wasi_snapshot_preview1\" \"poll_oneoff\" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 1) (global $g (mut i32) (i32.const 7))
        (data (i32.const 0) \"\\e8\\03\\00\\00\\64\\00\\00\\00\")
        (func $say (param i32) (drop (call $write (local.get 0) (i32.const 0) (i32.const 1) (i32.const 8))))
        (func $long (local $i i32)
          (loop $again
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const 100000000)))))
        (func $sleep
          (i64.store (i32.const 124) (i64.const 20000000))
          (drop (call $poll (i32.const 100) (i32.const 200) (i32.const 1) (i32.const 300))))
        (func (export \"_start\")
          (if (i32.ne (global.get $g) (i32.const 7)) (then (call $exit (i32.const 40))))
          (if (i32.load (i32.const 2000)) (then (call $exit (i32.const 41))))
          (if (i32.ne (memory.size) (i32.const 1)) (then (call $exit (i32.const 42))))
          (global.set $g (i32.const 8))
          (i32.store (i32.const 2000) (i32.const 1))
          (drop (memory.grow (i32.const 1)))
          (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
          (i32.store (i32.const 4) (i32.load (i32.const 8)))
          (call $say (i32.const 1)) (call $say (i32.const 2))
          (drop (call $close (i32.const 0)))
          (WAIT)
          (if (i32.ne (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 8))
            (then (call $exit (i32.const 43))))))";
    for wait in ["call $long", "call $sleep"] {
        for piped in [false, true] {
            let executor = executor(1, 5, Duration::from_secs(60));
            // A new one each time, so that it is not known for slow.
            let module = prepare_here(&text.replace("WAIT", wait));
            let (writer, mut reader) = pipe(100);
            let mut call = call(if piped {
                Stdout::Pipe(writer)
            } else {
                Stdout::Collect
            });
            call.stdin = bytes::Bytes::from_static(b"all of it").into();
            call.limits.stderr_bytes_max = 100;
            let outcome = executor.run(module, call).await.unwrap();
            assert_eq!(outcome.end, End::Exit(0), "{wait}");
            assert_eq!(outcome.stderr, b"all of it", "{wait}");
            if piped {
                assert_eq!(reader.read().await.as_deref(), Some(&b"all of it"[..]));
                assert_eq!(reader.read().await, None);
            } else {
                assert_eq!(outcome.stdout, b"all of it");
            }
            // It did not end in its slice.
            assert_eq!(executor.shared.lock().threads, 1);
        }
    }
}

#[tokio::test]
async fn more_output_than_is_held_back_streams_from_a_thread_of_its_own() {
    let executor = executor(1, 5, Duration::from_secs(60));
    let (writer, mut reader) = pipe(1000);
    let module = says_once("", "(call $flood)");
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(bytes) = reader.read().await {
            all.extend_from_slice(&bytes);
        }
        all
    });
    let outcome = executor.run(module, call(Stdout::Pipe(writer))).await;
    assert_eq!(outcome.unwrap().end, End::Exit(0));
    let all = reading.await.unwrap();
    assert_eq!((all.len(), &all[..5]), (100_004, &b"once\0"[..]));
    assert!(executor.shared.lock().threads >= 1);
}

#[test]
fn slow_modules_go_to_the_queue_at_once_and_quick_ones_come_back() {
    let pace = Pace::new(false);
    assert!(pace.may_borrow());
    pace.overran();
    let skipped = (0..).take_while(|_| !pace.may_borrow()).count();
    assert_eq!(skipped, 16);
    // The longer it goes on, the longer they wait.
    for expected in [32, 64, 128] {
        pace.overran();
        let skipped = (0..).take_while(|_| !pace.may_borrow()).count();
        assert_eq!(skipped, expected);
    }
    // Unless they turn out to be quick.
    pace.overran();
    for _ in 0..9 {
        pace.took(Duration::from_micros(5));
    }
    assert!(pace.may_borrow());
    for _ in 0..1000 {
        pace.kept();
    }
    assert!(pace.overran(), "once is forgiven");
    pace.overran();
    assert_eq!((0..).take_while(|_| !pace.may_borrow()).count(), 16);
}

#[test]
fn who_kept_to_its_slices_is_forgiven_one() {
    let pace = Pace::new(false);
    for _ in 0..31 {
        pace.kept();
    }
    assert!(!pace.overran(), "it has to keep to 32 of them");
    // All over again, and being forgiven is no reason to be forgiven the next one.
    for _ in 0..32 {
        pace.kept();
    }
    assert!(pace.overran());
    assert!(!pace.overran());
    for _ in 0..31 {
        pace.kept();
    }
    assert!(!pace.overran());
}

/// A guest that works until this moment, of which it is told.
fn works_until(moment: std::time::SystemTime) -> Call {
    let since = moment.duration_since(std::time::UNIX_EPOCH).unwrap();
    let since = u64::try_from(since.as_nanos()).unwrap();
    let mut call = call(Stdout::Collect);
    call.stdin = bytes::Bytes::copy_from_slice(&since.to_le_bytes()).into();
    call
}

/// As if those before it had been quick.
fn forgive_the_next(module: &Prepared) {
    module.pace().owed.store(0, Ordering::Relaxed);
    module.pace().skip.store(0, Ordering::Relaxed);
}

fn works_until_told() -> Arc<Prepared> {
    prepare_here(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_read"
                (func $read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "clock_time_get"
                (func $now (param i32 i64 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\10\00\00\00\08\00\00\00")
            (func (export "_start")
                (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
                (loop
                    (drop (call $now (i32.const 0) (i64.const 1) (i32.const 24)))
                    (br_if 0 (i64.lt_u (i64.load (i32.const 24)) (i64.load (i32.const 16)))))))"#,
    )
}

#[tokio::test]
async fn a_guest_that_is_forgiven_is_tried_once_more_where_it_was() {
    let executor = executor(1, 1, Duration::from_secs(600));
    let module = works_until_told();
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        assert!(Instant::now() < deadline, "no second try came to its end");
        forgive_the_next(&module);
        // Half a slice more than the first try has.
        let moment = std::time::SystemTime::now() + Duration::from_micros(300);
        let outcome = executor.run(Arc::clone(&module), works_until(moment)).await;
        let outcome = outcome.unwrap();
        assert_eq!(outcome.end, End::Exit(0));
        // What the first try took is paid for, and no other thread was asked.
        let took_more = outcome.usage.cpu >= outcome.usage.wall + Duration::from_micros(200);
        if took_more && executor.shared.lock().threads == 0 {
            return;
        }
    }
}

#[tokio::test]
async fn a_thread_does_its_other_work_before_a_second_try() {
    let executor = executor(1, 1, Duration::from_secs(600));
    let module = works_until_told();
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        assert!(Instant::now() < deadline, "no guest outlasted its slice");
        forgive_the_next(&module);
        let moment = std::time::SystemTime::now() + Duration::from_micros(300);
        let mut run = pin!(executor.run(Arc::clone(&module), works_until(moment)));
        // As a route asks.
        if run.as_mut().now_or_never().is_some() {
            continue;
        }
        for _ in 0..3 {
            assert!(run.as_mut().now_or_never().is_none());
        }
        assert_eq!(run.await.unwrap().end, End::Exit(0));
        return;
    }
}

#[tokio::test]
async fn a_guest_is_tried_once_more_and_no_oftener() {
    let executor = executor(1, 1, Duration::from_secs(600));
    let module = endless();
    let mut endless = call(Stdout::Collect);
    endless.limits.deadline = Duration::from_secs(1);
    // Others of the module are quick all the time.
    let is_over = Arc::new(AtomicBool::new(false));
    let (quick, until) = (Arc::clone(&module), Arc::clone(&is_over));
    let others = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            quick.pace().owed.store(0, Ordering::Relaxed);
            std::thread::yield_now();
        }
    });
    // Each try gives way to this, if there were ever more.
    let run = executor.run(Arc::clone(&module), endless);
    let ended = tokio::time::timeout(Duration::from_secs(300), run).await;
    is_over.store(true, Ordering::Relaxed);
    others.join().unwrap();
    assert_eq!(ended.unwrap().unwrap().end, End::TimeLimit);
    assert!(!module.pace().may_borrow());
}
