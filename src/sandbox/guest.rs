//! One guest, from instantiation to its end, on the calling thread.

#![expect(
    unsafe_code,
    reason = "arming the deadline promises that the guest's instance lives"
)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmer::{
    Extern, FunctionEnv, Instance, InstantiationError, LinkError, RuntimeError, Store,
    TypedFunction,
};
use wasmer_types::TrapCode;

use super::deadline::{RunId, Sitting};
use super::engine::{Prepared, START_EXPORT};
use super::memory::MemoryRecord;
use super::wasi::link::{self, GuestEnv};
use super::wasi::{self, Output, Stop, Wasi};
use super::{Call, End, Outcome, StopSignal, Usage, tunables};

/// A guest about to run.
pub(super) struct Guest {
    pub module: Arc<Prepared>,
    pub call: Call,
    pub stop: Arc<StopSignal>,
    /// Time spent waiting for this thread.
    pub queued: Duration,
}

/// How the guest's code ended, before its limits are looked at.
enum Finish {
    Returned,
    Failed(RuntimeError),
    /// There was no guest.
    NotStarted(End),
}

/// What the run left behind.
struct Left {
    finish: Finish,
    /// The watchdog ordered it to stop.
    struck: bool,
    output: Output,
    memory: Option<Arc<MemoryRecord>>,
}

/// Runs the guest. `on_start` learns the run's id once the guest can be stopped by it.
pub(super) fn run(sitting: &Sitting, guest: Guest, on_start: impl FnOnce(RunId)) -> Outcome {
    let Guest {
        module,
        call,
        stop,
        queued,
    } = guest;
    let started = Instant::now();
    let cpu_started = thread_cpu_time();
    // A panic of a host function comes through here. The store, its memory and whatever state the
    // panic left are dropped with the closure.
    let result = catch_unwind(AssertUnwindSafe(|| {
        start(sitting, &module, call, &stop, started, on_start)
    }));
    let usage = Usage {
        wall: started.elapsed(),
        cpu: thread_cpu_time().saturating_sub(cpu_started),
        queued,
        ..Usage::default()
    };
    match result {
        Ok(left) => outcome(left, &stop, usage),
        Err(panic) => Outcome {
            end: End::HostError(format!("the host panicked: {}", panic_text(panic.as_ref()))),
            stdout: Vec::new(),
            stderr: Vec::new(),
            stderr_truncated: false,
            usage,
        },
    }
}

fn start(
    sitting: &Sitting,
    module: &Prepared,
    call: Call,
    stop: &Arc<StopSignal>,
    started: Instant,
    on_start: impl FnOnce(RunId),
) -> Left {
    let limits = call.limits;
    // A deadline too far away to name is one that does not matter.
    let deadline = started
        .checked_add(limits.deadline)
        .unwrap_or_else(|| started + Duration::from_secs(365 * 24 * 3600));
    let mut store = Store::new(module.engine().clone());
    let wasi = Wasi::new(wasi::Config {
        args: call.args,
        env: call.env,
        stdin: call.stdin,
        stdout: call.stdout,
        stdout_bytes_max: limits.stdout_bytes_max,
        stderr_bytes_max: limits.stderr_bytes_max,
        deadline,
        stop: Arc::clone(stop),
    });
    let env = FunctionEnv::new(
        &mut store,
        GuestEnv {
            wasi: Some(wasi),
            memory: None,
        },
    );
    let (instance, made) = instantiate(&mut store, module, &env, limits.memory_bytes_max);
    let (finish, struck) = match (instance, made.stop) {
        (Ok(instance), Some(stop_global)) => {
            env.as_mut(&mut store).memory = instance.exports.get_memory("memory").ok().cloned();
            // SAFETY: the global is in the instance, which the store keeps until this function
            // returns; `armed` is disarmed before. The code is the module's, all of it compiled by
            // Wasmer.
            let armed = unsafe { sitting.arm(module.code(), stop_global, deadline) };
            on_start(armed.id());
            let finish = if stop.is_cancelled() {
                Finish::NotStarted(End::Cancelled)
            } else {
                call_guest(&mut store, &instance, module.has_start())
            };
            (finish, armed.disarm())
        }
        (Ok(_), None) => (
            Finish::NotStarted(End::HostError("the module has no stop global".into())),
            false,
        ),
        (Err(_), _) if made.memory_over_limit => (Finish::NotStarted(End::MemoryLimit), false),
        (Err(InstantiationError::Start(error)), _) => (Finish::Failed(error), false),
        (Err(error), _) => (Finish::NotStarted(End::HostError(link_text(&error))), false),
    };
    let output = env
        .as_mut(&mut store)
        .wasi
        .take()
        .map(Wasi::finish)
        .unwrap_or_default();
    Left {
        finish,
        struck,
        output,
        memory: made.memory,
    }
}

fn instantiate(
    store: &mut Store,
    module: &Prepared,
    env: &FunctionEnv<GuestEnv>,
    memory_bytes_max: u64,
) -> (Result<Instance, InstantiationError>, tunables::Made) {
    let mut imports = Vec::with_capacity(module.imports().len());
    for (from, name) in module.imports() {
        match link::import(store, env, from, name) {
            Some(function) => imports.push(Extern::from(function)),
            None => {
                let missing = LinkError::Resource(format!("no function {from}.{name}"));
                return (
                    Err(InstantiationError::Link(missing)),
                    tunables::Made::default(),
                );
            }
        }
    }
    #[expect(
        clippy::result_large_err,
        reason = "the error is Wasmer's, and passed on once"
    )]
    tunables::making(memory_bytes_max, || {
        Instance::new_by_index(store, module.module(), &imports)
    })
}

fn call_guest(store: &mut Store, instance: &Instance, has_start: bool) -> Finish {
    let names: &[&str] = if has_start {
        &[START_EXPORT, "_start"]
    } else {
        &["_start"]
    };
    for name in names {
        let function: TypedFunction<(), ()> =
            match instance.exports.get_typed_function(&*store, name) {
                Ok(function) => function,
                Err(error) => {
                    let text = format!("the module has no callable {name}: {error}");
                    return Finish::NotStarted(End::HostError(text));
                }
            };
        if let Err(error) = function.call(store) {
            return Finish::Failed(error);
        }
    }
    Finish::Returned
}

fn outcome(left: Left, stop: &StopSignal, mut usage: Usage) -> Outcome {
    let Left {
        finish,
        struck,
        output,
        memory,
    } = left;
    let memory_refused = memory.as_ref().is_some_and(|memory| memory.was_refused());
    usage.memory_peak_bytes = memory.map_or(0, |memory| memory.peak_bytes());
    usage.stdout_bytes = output.stdout_bytes;
    let end = match finish {
        Finish::Returned => End::Exit(0),
        Finish::NotStarted(end) => end,
        Finish::Failed(error) => match error.downcast_ref::<Stop>() {
            Some(Stop::Exit(0)) => End::Exit(0),
            Some(Stop::Exit(_)) if memory_refused => End::MemoryLimit,
            Some(Stop::Exit(code)) => End::Exit(*code),
            Some(Stop::TimeLimit) => End::TimeLimit,
            Some(Stop::OutputLimit) => End::OutputLimit,
            Some(Stop::Cancelled) => End::Cancelled,
            // A stopped guest traps; which trap says nothing.
            None if struck && stop.is_cancelled() => End::Cancelled,
            None if struck => End::TimeLimit,
            None if memory_refused => End::MemoryLimit,
            None => trap(error),
        },
    };
    Outcome {
        end,
        stdout: output.stdout,
        stderr: output.stderr,
        stderr_truncated: output.stderr_truncated,
        usage,
    }
}

fn trap(error: RuntimeError) -> End {
    let message = error.message();
    let Some(code) = error.to_trap() else {
        return End::HostError(format!("the guest failed without a trap: {message}"));
    };
    let text = match code {
        TrapCode::StackOverflow => "call stack exhausted",
        TrapCode::HeapAccessOutOfBounds => "out of bounds memory access",
        TrapCode::HeapMisaligned | TrapCode::UnalignedAtomic => "misaligned memory access",
        TrapCode::TableAccessOutOfBounds => "out of bounds table access",
        TrapCode::IndirectCallToNull => "call of an empty table element",
        TrapCode::BadSignature => "indirect call type mismatch",
        TrapCode::IntegerOverflow => "integer overflow",
        TrapCode::IntegerDivisionByZero => "integer divide by zero",
        TrapCode::BadConversionToInteger => "invalid conversion to integer",
        TrapCode::UnreachableCodeReached => "unreachable",
        TrapCode::UncaughtException | TrapCode::UninitializedExnRef => "uncaught exception",
        TrapCode::ReadonlyTableModified => "write to a read-only table",
        TrapCode::YieldOutsideAsyncContext | TrapCode::HostInterrupt => {
            return End::HostError(format!("a trap that can't be: {message}"));
        }
    };
    End::Trap(text.to_owned())
}

fn link_text(error: &InstantiationError) -> String {
    format!("the guest could not be instantiated: {error}")
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// CPU time of the calling thread.
fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes to the structure it is given, which outlives it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    if result != 0 {
        return Duration::ZERO;
    }
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
