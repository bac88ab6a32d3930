//! What the fuzz targets do with an input: all that an upload and an execution go through, in a
//! sandbox with small limits. The compile worker is the fuzzer's own program.

use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::arbitrary::{self, Unstructured};
use wasm_smith::Config;
use wasm_wizard::sandbox::{
    self, Call, CompileSettings, End, GuestLimits, ModuleError, Outcome, Preparation, Sandbox,
    Settings, ShareKey, Stdout, Strings,
};

/// What a sandbox's parts may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// To be called before anything else: this program may have been started as a compile worker.
///
/// The sandbox is started with the first input, not here: libFuzzer installs its signal handlers in
/// between, and Wasmer hands on to them what is no trap of a guest only if it finds them there. So a
/// crash is told and its input kept.
pub fn init() {
    if std::env::args().nth(1).as_deref() == Some("compile-worker") {
        std::process::exit(sandbox::compile_worker());
    }
}

/// One input on its way.
struct Upload {
    bytes: Bytes,
    preparation: Preparation,
    answer: Sender<Option<Outcome>>,
}

/// Checks, compiles and runs what these bytes are. Panics if the sandbox does what it must not;
/// `None` if they are refused as they should.
///
/// On a thread of its own: libFuzzer's alarm strikes the fuzzer's thread, and its handler stays on
/// whatever stack that is on, which must not be a guest's that is full.
pub fn upload_and_run(bytes: &[u8], preparation: Preparation) -> Option<Outcome> {
    static GATEWAY: OnceLock<Sender<Upload>> = OnceLock::new();
    let gateway = GATEWAY.get_or_init(|| {
        let (uploads, received) = mpsc::channel();
        thread::Builder::new()
            .name("gateway".into())
            .spawn(move || serve(&received))
            .expect("a thread");
        uploads
    });
    let (answer, outcome) = mpsc::channel();
    let upload = Upload {
        bytes: Bytes::copy_from_slice(bytes),
        preparation,
        answer,
    };
    // A panic of the other thread ends the process, with the input kept.
    gateway.send(upload).expect("the gateway's thread");
    outcome.recv().expect("the gateway's thread")
}

fn serve(uploads: &Receiver<Upload>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let sandbox = {
        let _inside = runtime.enter();
        Sandbox::start(settings()).expect("a sandbox")
    };
    for upload in uploads {
        let outcome = runtime.block_on(run(&sandbox, upload.bytes, upload.preparation));
        // Nobody has gone: the fuzzer's thread waits.
        let _ = upload.answer.send(outcome);
    }
}

fn settings() -> Settings {
    Settings {
        wasm_bytes_max: 1 << 20,
        guests_max: 4,
        guests_per_share_max: 4,
        warm_max: 4,
        queue_max: 16,
        queue_timeout: PATIENCE,
        stack_bytes_max: 1 << 20,
        table_elements_max: 10_000,
        cache_bytes_max: 16 << 20,
        compile: CompileSettings {
            worker: std::env::current_exe().expect("the path of this program"),
            workers_max: 2,
            workers_spare: 2,
            queue_max: 16,
            queue_timeout: PATIENCE,
            singlepass: true,
            timeout: Duration::from_secs(5),
            memory_bytes_max: 2 << 30,
        },
        artifacts: None,
    }
}

async fn run(sandbox: &Sandbox, bytes: Bytes, preparation: Preparation) -> Option<Outcome> {
    let wasm = match sandbox.to_binary(bytes, ShareKey::default()).await {
        Ok(wasm) => wasm,
        Err(error) => return refused(&error),
    };
    let checked = sandbox.check(&wasm);
    let prepared = sandbox.prepare(wasm, preparation).await;
    if let Err(error) = &checked {
        assert!(
            prepared.is_err(),
            "what fails the check is prepared: {error}"
        );
    }
    let module = match prepared {
        Ok(module) => module,
        Err(error) => return refused(&error),
    };
    let mut last: Option<Outcome> = None;
    // The second guest gets what the first one used, put back.
    for _ in 0..2 {
        let outcome = match sandbox.run(module.clone(), call()).await {
            Ok(outcome) => outcome,
            Err(error) => panic!("{error}"),
        };
        if let End::HostError(text) = &outcome.end {
            panic!("the host failed: {text}");
        }
        last = Some(outcome);
    }
    let load = sandbox.load();
    assert_eq!((load.running, load.queued), (0, 0));
    last
}

fn refused(error: &ModuleError) -> Option<Outcome> {
    match error {
        ModuleError::Invalid(text) | ModuleError::OverLimit(text) => {
            // A parser's message has lines; nothing else is passed on.
            let clean = |character: char| character == '\n' || !character.is_control();
            assert!(text.chars().all(clean), "{text:?}");
        }
        ModuleError::CompileLimit(_) => {}
        ModuleError::Busy | ModuleError::Internal(_) => panic!("our own failure: {error}"),
    }
    None
}

fn call() -> Call {
    Call {
        args: Strings::arguments(["guest", "argument"]),
        env: Strings::variables([("NAME", "value")]),
        stdin: Bytes::from_static(b"some input\n").into(),
        files: None,
        stdout: Stdout::Collect,
        limits: GuestLimits {
            deadline: Duration::from_millis(200),
            memory_bytes_max: 16 << 20,
            stdout_bytes_max: 1 << 16,
            stderr_bytes_max: 1 << 10,
            stack_bytes_max: 1 << 20,
            table_elements_max: 100_000,
        },
        share: ShareKey::default(),
    }
}

/// A module that the check should accept, of random code that ends.
pub fn module(entropy: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    // Nothing that differs from run to run: no clocks, no randomness.
    let imports = r#"(module
        (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_renumber" (func (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_fdstat_get" (func (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_prestat_get" (func (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "args_get" (func (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "args_sizes_get" (func (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_get" (func (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))))"#;
    let exports = r#"(module (func (export "_start")) (memory (export "memory") 2))"#;
    let config = Config {
        available_imports: wat::parse_str(imports).ok(),
        exports: wat::parse_str(exports).ok(),
        max_instructions: 500,
        max_memories: 1,
        max_memory32_bytes: 8 << 20,
        max_table_elements: 1_000,
        max_tables: 4,
        // Bits that compilers may choose.
        canonicalize_nans: true,
        disallow_traps: entropy.ratio(1, 2)?,
        bulk_memory_enabled: entropy.ratio(1, 2)?,
        reference_types_enabled: entropy.ratio(1, 2)?,
        simd_enabled: entropy.ratio(1, 2)?,
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        relaxed_simd_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        compact_imports_enabled: false,
        ..Config::default()
    };
    let mut module = wasm_smith::Module::new(config, entropy)?;
    module
        .ensure_termination(5_000)
        .map_err(|_| arbitrary::Error::IncorrectFormat)?;
    Ok(module.to_bytes())
}
