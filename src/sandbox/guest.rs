//! One guest, from its instance to its end, on the calling thread.

#![expect(
    unsafe_code,
    reason = "arming the deadline promises that the guest's instance lives"
)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmer::RuntimeError;
use wasmer_types::TrapCode;

use super::deadline::{RunId, Sitting, Slack};
use super::engine::Prepared;
use super::instance::{Instance, NoInstance};
use super::memory::faults::Faults;
use super::memory::{Data, PAGE_BYTES, PAGES_MAX};
use super::stack;
use super::tunables::Room;
use super::wasi::{self, Output, Stop, Wasi};
use super::{Call, End, GuestLimits, Outcome, StopSignal, Usage};

/// A guest about to run.
pub(super) struct Guest {
    pub module: Arc<Prepared>,
    pub call: Call,
    pub stop: Arc<StopSignal>,
    /// Time spent waiting for this thread.
    pub queued: Duration,
}

/// What a guest may do to the thread it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the guest's until its deadline.
    Own,
    /// It has other things to do: the guest may have this much time, and must not wait.
    Borrowed(Duration),
}

/// What became of a guest.
pub(super) enum Ran {
    Ended(Outcome, Remains),
    /// It needs a thread of its own, and to start from the beginning there. Nothing of it has left
    /// the sandbox; so much CPU time has gone.
    Postponed(Guest, Duration),
}

/// What no other guest may have. To give its memory back takes milliseconds if there was much of it: to be
/// dropped when nobody waits for the guest any more.
#[derive(Default)]
pub(super) struct Remains(
    #[cfg_attr(not(test), expect(dead_code, reason = "kept to be dropped"))] Option<Instance>,
);

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
    wasi: Wasi,
    memory_peak_bytes: u64,
    memory_refused: bool,
    table_refused: bool,
    remains: Remains,
}

/// Runs the guest. `on_start` learns the run's id once the guest can be stopped by it.
pub(super) fn run(
    sitting: &Sitting,
    guest: Guest,
    place: Place,
    on_start: impl FnOnce(RunId),
) -> Ran {
    let Guest {
        module,
        call,
        stop,
        queued,
    } = guest;
    let (limits, share) = (call.limits, call.share);
    let started = Instant::now();
    let cpu_started = match place {
        Place::Own => thread_cpu_time(),
        // Asking costs as much as a small guest.
        Place::Borrowed(_) => Duration::ZERO,
    };
    // A panic of a host function comes through here. The instance, its memory and whatever state the
    // panic left are dropped with the closure.
    let result = catch_unwind(AssertUnwindSafe(|| {
        start(sitting, &module, call, place, &stop, started, on_start)
    }));
    let wall = started.elapsed();
    let usage = Usage {
        wall,
        cpu: match place {
            Place::Own => thread_cpu_time().saturating_sub(cpu_started),
            // It did not wait, so it is no more than that, and no less unless the thread lost the processor.
            Place::Borrowed(_) => wall,
        },
        queued,
        ..Usage::default()
    };
    match result {
        Ok(left) if place != Place::Own && left.needs_more(&stop, wall, limits) => {
            let config = left.wasi.rewind();
            let call = Call {
                args: config.args,
                env: config.env,
                stdin: config.stdin,
                stdout: config.stdout,
                files: config.files,
                limits,
                share,
            };
            let guest = Guest {
                module,
                call,
                stop,
                queued,
            };
            Ran::Postponed(guest, wall)
        }
        Ok(mut left) => {
            let remains = std::mem::take(&mut left.remains);
            Ran::Ended(left.outcome(&stop, usage), remains)
        }
        Err(panic) => {
            let outcome = Outcome {
                end: End::HostError(format!("the host panicked: {}", panic_text(panic.as_ref()))),
                stdout: Vec::new(),
                stderr: Vec::new(),
                stderr_truncated: false,
                usage,
            };
            Ran::Ended(outcome, Remains::default())
        }
    }
}

fn start(
    sitting: &Sitting,
    module: &Prepared,
    call: Call,
    place: Place,
    stop: &Arc<StopSignal>,
    started: Instant,
    on_start: impl FnOnce(RunId),
) -> Left {
    let limits = call.limits;
    let (time, slack) = match place {
        Place::Own => (limits.deadline, Slack::None),
        Place::Borrowed(slice) if slice < limits.deadline => (slice, Slack::Tick),
        Place::Borrowed(_) => (limits.deadline, Slack::None),
    };
    // A deadline too far away to name is one that does not matter.
    let deadline = started
        .checked_add(time)
        .unwrap_or_else(|| started + Duration::from_secs(365 * 24 * 3600));
    let wasi = Wasi::new(wasi::Config {
        args: call.args,
        env: call.env,
        stdin: call.stdin,
        files: call.files,
        stdout: call.stdout,
        stdout_bytes_max: limits.stdout_bytes_max,
        stderr_bytes_max: limits.stderr_bytes_max,
        started,
        deadline,
        stop: Arc::clone(stop),
        may_block: place == Place::Own,
    });
    let mut instance = match instance(module, limits) {
        Ok(instance) => instance,
        Err(finish) => {
            return Left {
                finish,
                struck: false,
                wasi,
                memory_peak_bytes: 0,
                memory_refused: false,
                table_refused: false,
                remains: Remains::default(),
            };
        }
    };
    instance.env.as_mut(&mut instance.store).wasi = Some(wasi);
    let faults = Faults::so_far();
    // SAFETY: the global is in the instance, which lives at least until the end of this function; `armed`
    // is disarmed before. The code is the module's, all of it compiled by Wasmer.
    let armed = unsafe { sitting.arm(module.code(), instance.stop, deadline, slack) };
    on_start(armed.id());
    let finish = if stop.is_cancelled() {
        Finish::NotStarted(End::Cancelled)
    } else {
        let has_more = limits.stack_bytes_max < module.stack_bytes_max();
        match has_more.then(|| stack::Fence::put(module, limits.stack_bytes_max)) {
            None => call_guest(&mut instance),
            Some(Ok(_fence)) => call_guest(&mut instance),
            Some(Err(error)) => {
                let text = format!("no fence in the guest's stack: {error}");
                Finish::NotStarted(End::HostError(text))
            }
        }
    };
    let struck = armed.disarm();
    let Some(wasi) = instance.env.as_mut(&mut instance.store).wasi.take() else {
        // Only this function takes it out.
        unreachable!("the guest's state is gone");
    };
    let memory = instance.memory.as_ref();
    let mut left = Left {
        struck,
        wasi,
        memory_peak_bytes: memory.map_or(0, |memory| memory.peak_bytes()),
        memory_refused: memory.is_some_and(|memory| memory.was_refused()),
        table_refused: module
            .is_refusal_of_limit(instance.tables_refused(), limits.table_elements_max),
        finish,
        remains: Remains::default(),
    };
    match module.warm() {
        Some(warm) if left.leaves_no_doubt() && instance.reset(faults) => warm.put(instance),
        Some(_) | None => left.remains = Remains(Some(instance)),
    }
    left
}

/// One that was reset after another guest, or a new one.
fn instance(module: &Prepared, limits: GuestLimits) -> Result<Instance, Finish> {
    let pages_max = u32::try_from(limits.memory_bytes_max / PAGE_BYTES as u64)
        .map_or(PAGES_MAX, |pages| pages.min(PAGES_MAX));
    if module.memory_pages_min() > pages_max {
        return Err(Finish::NotStarted(End::MemoryLimit));
    }
    let table_elements_max = limits.table_elements_max;
    if module.table_elements_min() > u64::from(table_elements_max) {
        return Err(Finish::NotStarted(End::TableLimit));
    }
    // One that is put back has no operator that makes a table grow.
    if let Some(instance) = module.warm().and_then(|warm| warm.take()) {
        if let Some(memory) = &instance.memory {
            memory.limit(pages_max);
        }
        return Ok(instance);
    }
    let data = match module.image() {
        Some(image) => Data::Shown(Arc::clone(image)),
        None => Data::Written,
    };
    let room = Room {
        pages_max,
        table_elements_max,
    };
    Instance::new(module, room, data).map_err(|none| match none {
        NoInstance::MemoryOverLimit => Finish::NotStarted(End::MemoryLimit),
        NoInstance::Trapped(error) => Finish::Failed(error),
        NoInstance::Failed(text) => Finish::NotStarted(End::HostError(text)),
    })
}

fn call_guest(instance: &mut Instance) -> Finish {
    let functions = instance.start.iter().chain([&instance.main]);
    for function in functions {
        if let Err(error) = function.call(&mut instance.store) {
            return Finish::Failed(error);
        }
    }
    Finish::Returned
}

#[cfg(test)]
impl Remains {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Left {
    fn stop(&self) -> Option<&Stop> {
        match &self.finish {
            Finish::Failed(error) => error.downcast_ref::<Stop>(),
            Finish::Returned | Finish::NotStarted(_) => None,
        }
    }

    /// Whether the guest ended by itself, so that nothing but what it can change is changed.
    fn leaves_no_doubt(&self) -> bool {
        match (&self.finish, self.stop()) {
            (_, _) if self.struck => false,
            (Finish::Returned, _) => true,
            (Finish::Failed(_), Some(Stop::Exit(_))) => true,
            (Finish::Failed(_), Some(_)) => false,
            (Finish::Failed(error), None) => match error.clone().to_trap() {
                Some(TrapCode::StackOverflow) | None => false,
                Some(_) => true,
            },
            (Finish::NotStarted(_), _) => false,
        }
    }

    /// Whether a guest on a borrowed thread should be run again on one of its own.
    fn needs_more(&self, stop: &StopSignal, wall: Duration, limits: GuestLimits) -> bool {
        if stop.is_cancelled() || matches!(self.finish, Finish::NotStarted(_)) {
            return false;
        }
        match self.stop() {
            Some(Stop::WouldBlock) => true,
            Some(Stop::TimeLimit) => wall < limits.deadline,
            Some(Stop::Exit(_) | Stop::OutputLimit | Stop::Cancelled) => false,
            None => self.struck && wall < limits.deadline,
        }
    }

    fn outcome(self, stop: &StopSignal, mut usage: Usage) -> Outcome {
        let Left {
            finish,
            struck,
            wasi,
            memory_peak_bytes,
            memory_refused,
            table_refused,
            remains: _,
        } = self;
        let output: Output = wasi.finish();
        usage.memory_peak_bytes = memory_peak_bytes;
        usage.stdout_bytes = output.stdout_bytes;
        let end = match finish {
            Finish::Returned => End::Exit(0),
            Finish::NotStarted(end) => end,
            Finish::Failed(error) => match error.downcast_ref::<Stop>() {
                Some(Stop::Exit(0)) => End::Exit(0),
                Some(Stop::Exit(_)) if memory_refused => End::MemoryLimit,
                Some(Stop::Exit(_)) if table_refused => End::TableLimit,
                Some(Stop::Exit(code)) => End::Exit(*code),
                Some(Stop::TimeLimit) => End::TimeLimit,
                Some(Stop::OutputLimit) => End::OutputLimit,
                Some(Stop::Cancelled) => End::Cancelled,
                Some(Stop::WouldBlock) => {
                    End::HostError("a guest on a thread of its own may wait".into())
                }
                // A stopped guest traps; which trap says nothing.
                None if struck && stop.is_cancelled() => End::Cancelled,
                None if struck => End::TimeLimit,
                None if memory_refused => End::MemoryLimit,
                None if table_refused => End::TableLimit,
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
}

fn trap(error: RuntimeError) -> End {
    let message = error.message();
    let Some(code) = error.to_trap() else {
        return End::HostError(format!("the guest failed without a trap: {message}"));
    };
    let text = match code {
        TrapCode::StackOverflow => return End::StackLimit,
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
