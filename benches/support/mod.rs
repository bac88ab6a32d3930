//! What the benchmarks share: a sandbox, and one request for it.

#![allow(dead_code, unused_imports, reason = "no benchmark uses all of it")]

pub mod guests;
pub mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wasm_wizard::config::Config;
use wasm_wizard::sandbox::{
    Call, End, GuestLimits, ModuleError, Outcome, Preparation, Prepared, Sandbox, Settings,
    ShareKey, Stdin, Stdout, Strings,
};

pub use guests::{guest, never_seen};

/// What a gateway without a configuration file has, but for the number of guests.
pub fn settings(guests_max: usize) -> Settings {
    let built_in = Config::load(None, &BTreeMap::new()).map_err(|problems| problems.to_string());
    let mut settings = built_in
        .expect("a valid built-in configuration")
        .config
        .sandbox;
    settings.guests_max = guests_max;
    settings.guests_per_share_max = guests_max;
    settings.artifacts = None;
    settings.compile.worker = PathBuf::from(env!("CARGO_BIN_EXE_wasm-wizard"));
    settings
}

pub fn sandbox(guests_max: usize) -> Sandbox {
    Sandbox::start(settings(guests_max)).expect("a sandbox that starts")
}

/// The ways a module becomes ready to run, with the names that the figures have for them.
pub const WAYS: &[(&str, Preparation)] = &[
    ("fast", Preparation::Fast),
    ("optimised", Preparation::Optimised),
];

/// The module in the best code that the sandbox makes.
pub async fn prepare_best(sandbox: &Sandbox, wasm: Bytes) -> Result<Arc<Prepared>, ModuleError> {
    sandbox.prepare(wasm, Preparation::Optimised).await
}

/// A request with an input of its own.
pub fn call(input: Bytes, deadline: Duration) -> Call {
    Call {
        args: Strings::arguments(["guest"]),
        env: Strings::default(),
        stdin: Stdin::Bytes(input),
        files: None,
        stdout: Stdout::Collect,
        limits: GuestLimits {
            deadline,
            memory_bytes_max: 128 << 20,
            stdout_bytes_max: 8 << 20,
            stderr_bytes_max: 64 << 10,
            stack_bytes_max: 1 << 20,
            table_elements_max: 100_000,
        },
        share: ShareKey::default(),
    }
}

/// 64 bytes that differ from request to request.
pub fn input(number: u64) -> [u8; 64] {
    let mut bytes = [b'.'; 64];
    let mut state = number;
    for chunk in bytes.chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// A runtime on the calling thread: where a guest runs inline, it runs here.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Panics unless the guest returned.
pub fn assert_returned(outcome: &Outcome) {
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
}
