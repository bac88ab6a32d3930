//! Compiling: who waits for which module, how many at a time, and what is kept.
//!
//! A module is checked, compiled in a child process ([`child`]) and loaded, all on a thread that
//! is made for the purpose. (On a thread of ours rather than a task, because the kernel kills a
//! child with the thread that started it, and a task's thread may go at any time.) Callers for the
//! same bytes share one flight. When the last of them has gone, the child is killed.

mod child;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;

use super::cache::{ModuleCache, Refusals};
use super::check::{self, check};
use super::memory::MemoryPool;
use super::tunables::SandboxTunables;
use super::{ModuleError, ModuleHash, Prepared, Settings, engine};
use crate::telemetry::metrics::metrics;

type Prepare = Result<Arc<Prepared>, ModuleError>;

/// The compilers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Compilers {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    memories: MemoryPool,
    cache: ModuleCache,
    refusals: Refusals,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    flights: HashMap<ModuleHash, Arc<Flight>>,
    queue: VecDeque<Arc<Flight>>,
    threads: usize,
    /// Threads that have taken a flight out of the queue.
    busy: usize,
}

/// One module on its way.
struct Flight {
    hash: ModuleHash,
    wasm: Bytes,
    /// `None` until it has landed. Its receivers are the callers.
    result: watch::Sender<Option<Prepare>>,
}

impl Compilers {
    pub(super) fn new(settings: Settings, memories: MemoryPool) -> Compilers {
        let cache = ModuleCache::new(settings.cache_bytes_max);
        Compilers {
            shared: Arc::new(Shared {
                settings,
                memories,
                cache,
                refusals: Refusals::default(),
                state: Mutex::default(),
            }),
        }
    }

    pub(super) fn cache(&self) -> &ModuleCache {
        &self.shared.cache
    }

    /// Limits of [`check`].
    pub(super) fn limits(&self) -> check::Limits {
        self.shared.limits()
    }

    /// The module, from the cache or made now. Dropping the future gives up the caller's interest.
    pub(super) async fn prepare(&self, wasm: Bytes) -> Prepare {
        if wasm.len() as u64 > self.shared.settings.wasm_bytes_max {
            // Not worth hashing; says what is wrong.
            check(&wasm, self.limits())?;
        }
        let hash = ModuleHash::of(&wasm);
        let mut landed = match self.shared.board(hash, wasm)? {
            Boarding::Cached(module) => return Ok(module),
            Boarding::Flight(receiver) => receiver,
        };
        match landed.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Err(ModuleError::Busy)),
            Err(_) => Err(ModuleError::Internal("the compile thread is gone".into())),
        }
    }
}

enum Boarding {
    Cached(Arc<Prepared>),
    Flight(watch::Receiver<Option<Prepare>>),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> check::Limits {
        check::Limits {
            wasm_bytes_max: self.settings.wasm_bytes_max,
            table_elements_max: self.settings.table_elements_max,
        }
    }

    /// Joins the module's flight, or puts a new one into the queue.
    fn board(self: &Arc<Shared>, hash: ModuleHash, wasm: Bytes) -> Result<Boarding, ModuleError> {
        if let Some(module) = self.cache.get(&hash) {
            return Ok(Boarding::Cached(module));
        }
        if let Some(error) = self.refusals.get(&hash, Instant::now()) {
            return Err(error);
        }
        let mut state = self.lock();
        if let Some(flight) = state.flights.get(&hash) {
            return Ok(Boarding::Flight(flight.result.subscribe()));
        }
        // It may have landed just now: the cache is filled before the flight ends.
        if let Some(module) = self.cache.get(&hash) {
            return Ok(Boarding::Cached(module));
        }
        state.forget_abandoned();
        let compile = &self.settings.compile;
        let workers_max = compile.workers_max.max(1);
        let free = workers_max.saturating_sub(state.busy);
        if state.queue.len() >= free.saturating_add(compile.queue_max) {
            return Err(ModuleError::Busy);
        }
        let idle = state.threads.saturating_sub(state.busy);
        if idle <= state.queue.len() && state.threads < workers_max {
            self.spawn()?;
            state.threads += 1;
        }
        let (result, receiver) = watch::channel(None);
        let flight = Arc::new(Flight { hash, wasm, result });
        state.flights.insert(hash, Arc::clone(&flight));
        state.queue.push_back(flight);
        Ok(Boarding::Flight(receiver))
    }

    /// A thread that works until the queue is empty. It waits for the lock our caller holds.
    fn spawn(self: &Arc<Shared>) -> Result<(), ModuleError> {
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name("compile".into())
            .spawn(move || shared.work())
            .map(drop)
            .map_err(|error| ModuleError::Internal(format!("no thread for a compile: {error}")))
    }

    fn work(&self) {
        loop {
            let mut state = self.lock();
            let Some(flight) = state.queue.pop_front() else {
                state.threads -= 1;
                return;
            };
            state.busy += 1;
            drop(state);
            let _busy = Busy {
                shared: self,
                flight: &flight,
            };
            let began = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| self.fly(&flight)))
                .unwrap_or_else(|_| Some(Err(ModuleError::Internal("the check panicked".into()))));
            if let Some(result) = result {
                metrics().compile(outcome(&result), began.elapsed());
                // Landing may unload other modules, and that may fail.
                if catch_unwind(AssertUnwindSafe(|| self.land(&flight, result))).is_err() {
                    tracing::error!("a module could not be unloaded");
                }
            }
        }
    }

    /// Makes the module; `None` if everybody gave up meanwhile, and the flight is forgotten.
    fn fly(&self, flight: &Arc<Flight>) -> Option<Prepare> {
        if self.abandon(flight) {
            return None;
        }
        if let Err(error) = check(&flight.wasm, self.limits()) {
            return Some(Err(error));
        }
        let artifact_bytes_max = self
            .settings
            .cache_bytes_max
            .min(self.settings.compile.memory_bytes_max);
        let abandoned = || self.abandon(flight);
        let artifact = match child::compile(
            &self.settings.compile,
            &flight.wasm,
            artifact_bytes_max,
            abandoned,
        ) {
            Ok(artifact) => artifact,
            Err(child::Failure::Abandoned) => return None,
            Err(child::Failure::Module(error)) => return Some(Err(error)),
        };
        let tunables = SandboxTunables::new(
            self.memories.clone(),
            self.settings.table_elements_max,
            self.settings.stack_bytes,
        );
        // SAFETY: the bytes are what our own compile worker wrote to its end of our pipe.
        #[expect(unsafe_code, reason = "loads machine code")]
        let loaded = unsafe { engine::load(flight.hash, artifact, tunables) };
        Some(loaded.map(Arc::new))
    }

    /// Whether nobody waits for the flight any more; then it is forgotten, and can't be joined.
    fn abandon(&self, flight: &Arc<Flight>) -> bool {
        if flight.result.receiver_count() > 0 {
            return false;
        }
        let mut state = self.lock();
        // Callers join under the lock, so now it is certain.
        if flight.result.receiver_count() > 0 {
            return false;
        }
        state.flights.remove(&flight.hash);
        true
    }

    fn land(&self, flight: &Flight, result: Prepare) {
        match &result {
            Ok(module) => self.cache.insert(Arc::clone(module)),
            Err(error) => self.refusals.insert(flight.hash, error, Instant::now()),
        }
        self.lock().flights.remove(&flight.hash);
        flight.result.send_replace(Some(result));
    }
}

/// A compile thread at work on a flight. However the work ends, the thread is free again and nobody
/// is left waiting.
struct Busy<'a> {
    shared: &'a Shared,
    flight: &'a Arc<Flight>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.busy -= 1;
        let hash = &self.flight.hash;
        if state
            .flights
            .get(hash)
            .is_some_and(|flight| Arc::ptr_eq(flight, self.flight))
        {
            state.flights.remove(hash);
        }
        drop(state);
        self.flight.result.send_if_modified(|result| {
            let lost = result.is_none();
            if lost {
                let text = "the compile's thread failed".to_owned();
                *result = Some(Err(ModuleError::Internal(text)));
            }
            lost
        });
    }
}

/// How a compile ended, as the metric names it.
fn outcome(result: &Prepare) -> &'static str {
    match result {
        Ok(_) => "compiled",
        Err(ModuleError::Invalid(_) | ModuleError::OverLimit(_)) => "refused",
        Err(ModuleError::CompileLimit(_)) => "limit",
        Err(ModuleError::Busy | ModuleError::Internal(_)) => "failed",
    }
}

impl State {
    /// Makes room in the queue: flights that nobody waits for need not start.
    fn forget_abandoned(&mut self) {
        let State { flights, queue, .. } = self;
        queue.retain(|flight| {
            let wanted = flight.result.receiver_count() > 0;
            if !wanted {
                flights.remove(&flight.hash);
            }
            wanted
        });
    }
}
