//! The sandbox from outside: hostile modules, hostile guests, and callers that go away. Compiles in
//! the real child process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod callers;
mod compiling;
mod early;
mod guests;
mod limits;
mod official;
mod text;

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasm_wizard::sandbox::{
    Call, CompileSettings, End, GuestLimits, ModuleError, Outcome, Preparation, Prepared, Sandbox,
    Settings, ShareKey, Stdout, Strings,
};

/// Longer than anything takes that ends at all, also on a slow machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(300);

fn settings() -> Settings {
    Settings {
        wasm_bytes_max: 10 << 20,
        guests_max: 128,
        guests_per_share_max: 128,
        warm_max: 128,
        queue_max: 256,
        queue_timeout: PATIENCE,
        stack_bytes_max: 1 << 20,
        table_elements_max: 20_000,
        cache_bytes_max: 512 << 20,
        compile: CompileSettings {
            worker: PathBuf::from(env!("CARGO_BIN_EXE_wasm-wizard")),
            workers_max: 2,
            workers_spare: 1,
            queue_max: 64,
            queue_timeout: PATIENCE,
            singlepass: true,
            timeout: PATIENCE,
            memory_bytes_max: 2 << 30,
        },
        artifacts: None,
    }
}

/// One sandbox for all tests that need no settings of their own.
fn sandbox() -> Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX
        .get_or_init(|| Sandbox::start(settings()).unwrap())
        .clone()
}

fn call() -> Call {
    Call {
        args: Strings::arguments(["guest"]),
        env: Strings::default(),
        stdin: Bytes::new().into(),
        files: None,
        stdout: Stdout::Collect,
        limits: GuestLimits {
            deadline: PATIENCE,
            memory_bytes_max: 128 << 20,
            stdout_bytes_max: 1 << 20,
            stderr_bytes_max: 64 << 10,
            stack_bytes_max: 1 << 20,
            table_elements_max: 100_000,
        },
        share: ShareKey::default(),
    }
}

fn call_for(deadline: Duration) -> Call {
    let mut call = call();
    call.limits.deadline = deadline;
    call
}

fn wasm(text: &str) -> Bytes {
    wat::parse_str(text).unwrap().into()
}

async fn prepare(text: &str) -> Arc<Prepared> {
    sandbox()
        .prepare(wasm(text), Preparation::Optimised)
        .await
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

async fn refused(wasm: Bytes) -> ModuleError {
    sandbox()
        .prepare(wasm, Preparation::Optimised)
        .await
        .expect_err("a module that is refused")
}

async fn run(text: &str, call: Call) -> Outcome {
    let module = prepare(text).await;
    sandbox().run(module, call).await.unwrap()
}

async fn end(text: &str) -> End {
    run(text, call()).await.end
}

/// A command with WASI's writing functions, one page of memory, and `body` as `_start`.
fn command(body: &str) -> String {
    format!(
        "(module
           (import \"wasi_snapshot_preview1\" \"fd_write\"
             (func $write (param i32 i32 i32 i32) (result i32)))
           (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
           (memory (export \"memory\") 1)
           (func (export \"_start\") {body}))"
    )
}

/// Polls a condition with a deadline.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails when the future never ends.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("an end in time")
}
