//! The sandbox: untrusted WebAssembly in, an [`Outcome`] out. The only place that knows Wasmer.
//!
//! The rest of the program sees four steps and no engine: [`Sandbox::check`] says whether bytes
//! are a module we would run, [`Sandbox::prepare`] compiles and links them once, [`Sandbox::run`]
//! runs one fresh guest under [`GuestLimits`], and [`abi`] turns HTTP into a [`Call`] and the
//! guest's output back into HTTP.
//!
//! In reading order: bytes become binary (`text`, in a child process if a client sent them) and are judged (`check`); `compile` has them
//! compiled in a child process (`worker`, `codegen`) with additions of ours (`instrument`) and loads the
//! result (`engine`) into the `cache`, kept on disk as `artifacts`; the `executor` finds a thread, `guest` runs on it with
//! `memory` and limits (`tunables`) under a `deadline`, and talks to `wasi`.

pub mod abi;

mod outcome;
mod settings;

mod check;
mod hash;
mod text;

mod allocator;
mod artifacts;
mod cache;
mod codegen;
mod compile;
mod engine;
mod instrument;
mod worker;

mod deadline;
mod executor;
mod files;
mod guest;
mod input;
mod instance;
mod memory;
mod pipe;
mod priority;
#[cfg(test)]
mod sections;
mod stack;
mod stop;
mod strings;
mod tunables;
mod warm;
mod wasi;

use std::sync::Arc;

use bytes::Bytes;

use self::compile::Compilers;
use self::executor::Executor;
use self::memory::MemoryPool;
use self::warm::WarmPool;
use crate::telemetry::metrics::metrics;
use crate::telemetry::modules::ModulePlace;

pub use allocator::{Allocator, give_back_large_blocks, keep_pages_at_hand};
pub use artifacts::ArtifactKey;
pub use engine::Prepared;
pub use executor::ShareKey;
pub use files::{
    FILE_NAME_BYTES_MAX, FILES_BYTES_MAX, FILES_DEPTH_MAX, FILES_ENTRIES_MAX, Files, FilesError,
};
pub use hash::ModuleHash;
pub use input::{InputReader, InputWriter, Stdin, input};
pub use outcome::{End, Outcome, Usage};
pub use pipe::{PipeError, PipeReader, PipeWriter, pipe};
pub use priority::serve_promptly;
pub use settings::{ArtifactSettings, CompileSettings, GuestLimits, Settings};
pub use stop::StopSignal;
pub use strings::Strings;
pub use text::{TEXT_BYTES_MAX, to_binary};
pub use worker::{compile_worker, serve_forks};

/// What one guest gets.
pub struct Call {
    /// `argv`; the first is the program's name.
    pub args: Strings,
    /// Environment variables, in order.
    pub env: Strings,
    pub stdin: Stdin,
    /// What the guest finds as its root directory, `/`. Without it there are no files.
    pub files: Option<Arc<Files>>,
    /// Where standard output goes.
    pub stdout: Stdout,
    pub limits: GuestLimits,
    /// Whom the guest counts for where guests have to wait for each other.
    pub share: ShareKey,
}

/// Where a guest's standard output goes.
pub enum Stdout {
    /// Kept up to `stdout_bytes_max` and handed back in [`Outcome::stdout`].
    Collect,
    /// Written to a bounded pipe as the guest writes it; [`Outcome::stdout`] stays empty. The guest
    /// waits while the pipe is full; its deadline goes on running.
    Pipe(PipeWriter),
}

/// How a module is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// Soon: for bytes that may never be seen again. Compiled in one quick pass where that is safe;
    /// the best code is made in the background when the same bytes come again.
    Fast,
    /// Soon, and the best code follows in the background: for a module that is kept.
    FastThenOptimised,
    /// With the best code.
    Optimised,
}

/// Why bytes can't become a [`Prepared`] module.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ModuleError {
    /// The bytes are not a module we accept: the client's mistake, with what to do about it.
    #[error("{0}")]
    Invalid(String),
    /// The module asks for more than the limits give at load (memory minimum, table size, start…).
    #[error("{0}")]
    OverLimit(String),
    /// Compiling took longer or more memory than allowed.
    #[error("{0}")]
    CompileLimit(String),
    /// All compilers are busy; the same call may go through later.
    #[error("all compilers are busy")]
    Busy,
    /// Our own failure; the text is for the log, not for a client.
    #[error("{0}")]
    Internal(String),
}

/// Why a guest was not even started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// All guest threads and the queue are full.
    #[error("all guest slots are busy")]
    Busy,
    /// The sandbox is shutting down.
    #[error("the sandbox is shutting down")]
    ShuttingDown,
    /// Whom it ran for may not run it any more.
    #[error("stopped while it ran")]
    Stopped,
}

/// The engine, its compilers, its cache of prepared modules and its guest threads. Cheap to clone.
#[derive(Clone)]
pub struct Sandbox {
    compilers: Compilers,
    executor: Arc<Executor>,
}

impl Sandbox {
    /// Starts the watchdog and installs the signal handlers; threads for guests and compiles are
    /// made when there is work for them.
    ///
    /// The handlers are for SIGSEGV, SIGILL, SIGFPE and one real-time signal (SIGRTMIN + 7):
    /// whatever else in the process handles those must be installed before.
    pub fn start(settings: Settings) -> Result<Sandbox, ModuleError> {
        let worker = &settings.compile.worker;
        if !worker.is_absolute() || !worker.is_file() {
            return Err(ModuleError::Internal(format!(
                "the compile worker {} is not a file with an absolute path",
                worker.display()
            )));
        }
        deadline::start().map_err(|error| {
            ModuleError::Internal(format!("the watchdog of guests does not start: {error}"))
        })?;
        engine::install_trap_handlers();
        let memories = MemoryPool::new(settings.guests_max, memory::dirty::is_tracked());
        let warm = WarmPool::new(settings.warm_max);
        let executor = Executor::new(executor::Bounds {
            guests_max: settings.guests_max,
            per_share_max: settings.guests_per_share_max,
            queue_max: settings.queue_max,
            queue_timeout: settings.queue_timeout,
        });
        Ok(Sandbox {
            compilers: Compilers::start(settings, memories, warm)?,
            executor: Arc::new(executor),
        })
    }

    /// WebAssembly binary from what a client sent: binary passes as it is, text is translated in a
    /// child process with limits, of one `share` one at a time. When the future is dropped, the child
    /// is killed.
    pub async fn to_binary(&self, bytes: Bytes, share: ShareKey) -> Result<Bytes, ModuleError> {
        self.compilers.to_binary(bytes, share).await
    }

    /// Whether these bytes are a module we would run: format, features, imports, exports and
    /// bounds. Does not compile. Takes WebAssembly binary only (see [`Sandbox::to_binary`]).
    ///
    /// Takes about 10 ms for a MiB of code, so async callers with large modules should run it on a
    /// blocking thread, or let [`Sandbox::prepare`] do it.
    pub fn check(&self, wasm: &[u8]) -> Result<(), ModuleError> {
        check::check(wasm, self.compilers.limits()).map(drop)
    }

    /// The module ready to run: from the cache, or checked and compiled now. Concurrent calls for
    /// the same bytes compile once. When all of them are dropped, the compile is stopped.
    pub async fn prepare(
        &self,
        wasm: Bytes,
        preparation: Preparation,
    ) -> Result<Arc<Prepared>, ModuleError> {
        self.prepare_for(ShareKey::default(), wasm, preparation)
            .await
    }

    /// As [`Sandbox::prepare`], on behalf of somebody else, who takes turns with others for the
    /// compilers, and gets no more than half of the places where one waits for them.
    pub async fn prepare_for(
        &self,
        share: ShareKey,
        wasm: Bytes,
        preparation: Preparation,
    ) -> Result<Arc<Prepared>, ModuleError> {
        self.compilers.prepare(wasm, preparation, share).await
    }

    /// The module ready to run if the cache has it. Ask each time rather than hold it: better code may
    /// have come.
    pub fn prepared(&self, hash: &ModuleHash) -> Option<Arc<Prepared>> {
        self.compilers.cached(hash)
    }

    /// Runs one fresh guest to its end. Dropping the future stops the guest. Needs a tokio runtime
    /// with its clock enabled.
    pub async fn run(&self, module: Arc<Prepared>, call: Call) -> Result<Outcome, RunError> {
        // A guest that ends as the last of its module may count in the row of the next one there.
        let at = module.counted_at();
        let counted = Counted(at);
        let result = self.executor.run(module, call).await;
        std::mem::forget(counted);
        match &result {
            Ok(Outcome { end, usage, .. }) => metrics().guests.ended(
                at,
                end.status(),
                usage.wall,
                usage.cpu,
                usage.queued,
                usage.memory_peak_bytes,
            ),
            Err(RunError::Busy | RunError::ShuttingDown | RunError::Stopped) => {
                metrics().guests.rejected(at);
            }
        }
        result
    }

    /// Guests running now and waiting for a thread: for metrics and for shutdown.
    pub fn load(&self) -> Load {
        let (running, queued) = self.executor.load();
        Load {
            running,
            queued,
            modules_cached: self.compilers.cached_modules(),
        }
    }

    /// Refuses new guests from now on, and gives up compiles that nobody waits for. Those running and queued go on.
    pub fn shut_down(&self) {
        self.compilers.shut_down();
        self.executor.shut_down();
    }
}

/// Counts a guest as cancelled when nobody waited for its end.
struct Counted(ModulePlace);

impl Drop for Counted {
    fn drop(&mut self) {
        metrics().guests.cancelled(self.0);
    }
}

/// Whether these bytes are a module that a sandbox with these settings would run, as
/// [`Sandbox::check`], without starting one.
pub fn check(wasm: &[u8], settings: &Settings) -> Result<(), ModuleError> {
    let limits = check::Limits {
        wasm_bytes_max: settings.wasm_bytes_max,
        table_elements_max: settings.table_elements_max,
    };
    check::check(wasm, limits).map(drop)
}

/// How busy the sandbox is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    pub running: usize,
    pub queued: usize,
    pub modules_cached: usize,
}
