//! Threads, the queue, and callers that go away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::engine::{Prepared, prepare_here};
use super::super::{Call, End, GuestLimits, RunError, Stdout, deadline, pipe};
use super::Executor;

fn call(stdout: Stdout) -> Call {
    Call {
        args: Vec::new(),
        env: Vec::new(),
        stdin: bytes::Bytes::new(),
        stdout,
        limits: GuestLimits {
            deadline: Duration::from_secs(120),
            memory_bytes_max: 1 << 20,
            stdout_bytes_max: 1 << 30,
            stderr_bytes_max: 0,
        },
    }
}

fn executor(guests_max: usize, queue_max: usize, queue_timeout: Duration) -> Arc<Executor> {
    deadline::start().unwrap();
    Arc::new(Executor::new(guests_max, queue_max, queue_timeout))
}

fn endless() -> Arc<Prepared> {
    prepare_here("(module (func (export \"_start\") (loop (br 0))))")
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
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
    let executor = executor(2, 1, Duration::from_secs(60));
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
    let running = spawn(&executor, &module);
    until(|| executor.load() == (1, 0)).await;
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
    let executor = executor(1, 0, Duration::from_secs(60));
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
    let executor = executor(1, 5, Duration::from_secs(60));
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
    let executor = executor(3, 1000, Duration::from_secs(60));
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
    let executor = executor(2, 100, Duration::from_secs(60));
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
