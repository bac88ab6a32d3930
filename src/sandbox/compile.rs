//! Compiling: who waits for which module, how many at a time, and what is kept.
//!
//! A module is checked, compiled in a child process ([`child`]) that the [`keeper`] has ready, and
//! loaded, all on a thread that is made for the purpose. Who waits for a large one has it with the child
//! while it is checked ([`making`]). Callers for the same bytes and [`Quality`]
//! share one flight; when the last of them has gone, the child is killed. The [`queue`] says which
//! flight is next.
//!
//! Singlepass code is there soon and Cranelift code runs fast. What was compiled by Singlepass and is
//! asked for again, or will be, is compiled by Cranelift in the background, and replaces the other
//! in the cache when it is ready.
//!
//! Text becomes binary in such a child too, beside the queue (`translate`).

mod airborne;
mod child;
mod flight;
mod fork_server;
mod keeper;
mod making;
mod process;
mod queue;
mod translate;
mod turn;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;

use self::airborne::Airborne;
use self::child::{Failure, Made, Worker};
use self::flight::{Flight, Phase, Prepare};
use self::keeper::Keeper;
use self::queue::{Lane, Queue};
use self::translate::Translations;
use super::artifacts::ArtifactStore;
use super::cache::{ModuleCache, Refusals};
use super::check::{self, Facts, check};
use super::engine::{Compiled, Compiler};
use super::memory::MemoryPool;
use super::priority;
use super::tunables::SandboxTunables;
use super::warm::WarmPool;
use super::{ModuleError, ModuleHash, Preparation, Prepared, Settings, ShareKey, engine};
use crate::telemetry::metrics::{Found, metrics};

pub(super) use self::flight::Quality;

/// The bounds that make Singlepass safe were found, and are tested, for the code it makes for this
/// architecture.
const SINGLEPASS_IS_HELD: bool = cfg!(target_arch = "x86_64");

/// The compilers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Compilers {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    memories: MemoryPool,
    warm: WarmPool,
    cache: ModuleCache,
    refusals: Refusals,
    artifacts: ArtifactStore,
    keeper: Keeper,
    queue: Mutex<Queue>,
    /// A flight that was held may go on.
    next_turn: Condvar,
    /// Whether a module may be with a worker before it has passed the check.
    is_hopeful: AtomicBool,
    translations: Translations,
    is_shutting_down: AtomicBool,
}

/// Where a flight is after a thread had it.
enum Flown {
    /// With the worker to be reaped once those who wait have been told.
    Landed(Prepare, Option<ToKeep>, Option<Worker>),
    /// It needs another lane. With the worker to be reaped once it waits there.
    Again(Lane, Option<Worker>),
    /// Everybody gave up, and it is forgotten.
    Gone,
}

/// What is to be written to the disk.
struct ToKeep {
    artifact: Bytes,
    facts: Facts,
}

impl Compilers {
    /// Starts the keeper of compile workers.
    pub(super) fn start(
        settings: Settings,
        memories: MemoryPool,
        warm: WarmPool,
    ) -> Result<Compilers, ModuleError> {
        let keeper = Keeper::start(settings.compile.clone()).map_err(|error| {
            ModuleError::Internal(format!(
                "the compile workers' keeper does not start: {error}"
            ))
        })?;
        let cache = ModuleCache::new(settings.cache_bytes_max);
        let artifacts = ArtifactStore::open(settings.artifacts.as_ref(), settings.check_limits());
        let translations = Translations::new(&settings.compile);
        Ok(Compilers {
            shared: Arc::new(Shared {
                settings,
                memories,
                warm,
                cache,
                refusals: Refusals::default(),
                artifacts,
                keeper,
                queue: Mutex::default(),
                next_turn: Condvar::new(),
                is_hopeful: AtomicBool::new(true),
                translations,
                is_shutting_down: AtomicBool::new(false),
            }),
        })
    }

    /// The module, if it is in the cache.
    pub(super) fn cached(&self, hash: &ModuleHash) -> Option<Arc<Prepared>> {
        let module = self.shared.cached(hash, Quality::Soon);
        module.inspect(|_| metrics().module_lookup(Found::Memory))
    }

    /// Modules in the cache.
    pub(super) fn cached_modules(&self) -> usize {
        self.shared.cache.len()
    }

    /// Limits of [`check`].
    pub(super) fn limits(&self) -> check::Limits {
        self.shared.limits()
    }

    /// Gives up what nobody waits for.
    pub(super) fn shut_down(&self) {
        self.shared.is_shutting_down.store(true, Ordering::Release);
    }

    /// The module, from the cache or made now. Dropping the future gives up the caller's interest.
    pub(super) async fn prepare(
        &self,
        wasm: Bytes,
        preparation: Preparation,
        share: ShareKey,
    ) -> Prepare {
        if wasm.len() as u64 > self.shared.settings.wasm_bytes_max {
            // Not worth hashing; says what is wrong.
            check(&wasm, self.limits())?;
        }
        let (quality, is_kept) = match preparation {
            Preparation::Fast => (Quality::Soon, false),
            Preparation::FastThenOptimised => (Quality::Soon, true),
            Preparation::Optimised => (Quality::Best, true),
        };
        let hash = ModuleHash::of(&wasm);
        let mut flight = match self.shared.board(hash, wasm, quality, is_kept, share)? {
            Boarding::Cached(module) => return Ok(module),
            Boarding::Flight(receiver) => receiver,
        };
        let queue_timeout = self.shared.settings.compile.queue_timeout;
        loop {
            let phase = flight.borrow_and_update().clone();
            let changed = match phase {
                Phase::Landed(result) => return result,
                Phase::InTheAir => flight.changed().await,
                Phase::Waiting => tokio::time::timeout(queue_timeout, flight.changed())
                    .await
                    .map_err(|_| ModuleError::Busy)?,
            };
            changed.map_err(|_| ModuleError::Internal("the compile thread is gone".into()))?;
        }
    }
}

enum Boarding {
    Cached(Arc<Prepared>),
    Flight(watch::Receiver<Phase>),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> check::Limits {
        self.settings.check_limits()
    }

    fn workers_max(&self) -> usize {
        self.settings.compile.workers_max.max(1)
    }

    /// The module, if the cache has it in this quality. One that is asked for again is worth better
    /// code.
    fn cached(self: &Arc<Shared>, hash: &ModuleHash, quality: Quality) -> Option<Arc<Prepared>> {
        let module = self.cache.get(hash)?;
        match (module.compiler(), quality) {
            (Compiler::Cranelift, Quality::Soon | Quality::Best) => Some(module),
            (Compiler::Singlepass, Quality::Best) => None,
            (Compiler::Singlepass, Quality::Soon) => {
                if let Some(wasm) = self.cache.improvable(hash) {
                    self.improve(*hash, wasm);
                }
                Some(module)
            }
        }
    }

    /// Joins the module's flight, or puts a new one into the queue.
    fn board(
        self: &Arc<Shared>,
        hash: ModuleHash,
        wasm: Bytes,
        quality: Quality,
        is_kept: bool,
        share: ShareKey,
    ) -> Result<Boarding, ModuleError> {
        if let Some(module) = self.cached(&hash, quality) {
            metrics().module_lookup(Found::Memory);
            return Ok(Boarding::Cached(module));
        }
        if let Some(error) = self.refusals.get(&(hash, quality), Instant::now()) {
            return Err(error);
        }
        let mut queue = self.lock();
        if let Some(flight) = queue.flights.get(&(hash, quality)).map(Arc::clone) {
            flight.kept.fetch_or(is_kept, Ordering::AcqRel);
            let receiver = flight.phase.subscribe();
            if flight.background.swap(false, Ordering::AcqRel) {
                queue.hurry(&flight);
                self.staff(&mut queue)?;
            }
            return Ok(Boarding::Flight(receiver));
        }
        // It may have landed just now: the cache is filled before the flight ends.
        if let Some(module) = self.cache.get(&hash)
            && (quality == Quality::Soon || module.compiler() == Compiler::Cranelift)
        {
            return Ok(Boarding::Cached(module));
        }
        for forgotten in queue.forget_abandoned() {
            self.cache.still_improvable(&forgotten);
        }
        let queue_max = self.settings.compile.queue_max;
        if !queue.has_room(quality, share, self.workers_max(), queue_max) {
            return Err(ModuleError::Busy);
        }
        self.staff(&mut queue)?;
        let flight = Arc::new(Flight::new(hash, wasm, quality, share, queue.number()));
        flight.kept.store(is_kept, Ordering::Release);
        let receiver = flight.phase.subscribe();
        queue.flights.insert(flight.key(), Arc::clone(&flight));
        let lane = match quality {
            Quality::Soon => Lane::Quick,
            Quality::Best => Lane::Slow,
        };
        queue.push(lane, flight);
        Ok(Boarding::Flight(receiver))
    }

    /// Has Cranelift compile a module in the background, if there is room: else the next to ask for
    /// the module tries again.
    fn improve(self: &Arc<Shared>, hash: ModuleHash, wasm: Bytes) {
        let mut queue = self.lock();
        if queue.flights.contains_key(&(hash, Quality::Best)) {
            return;
        }
        let is_possible = !self.is_shutting_down.load(Ordering::Acquire)
            && queue.has_room_in_background(wasm.len())
            && self.staff(&mut queue).is_ok();
        if !is_possible {
            drop(queue);
            self.cache.still_improvable(&hash);
            return;
        }
        let flight = Flight::new(
            hash,
            wasm,
            Quality::Best,
            ShareKey::default(),
            queue.number(),
        );
        flight.background.store(true, Ordering::Release);
        flight.kept.store(true, Ordering::Release);
        let flight = Arc::new(flight);
        queue.flights.insert(flight.key(), Arc::clone(&flight));
        queue.push(Lane::Background, flight);
    }

    /// Makes one more thread, where there are fewer than may be. It takes what is in the queue, and
    /// ends when it finds nothing; it waits for the lock our caller holds.
    fn staff(self: &Arc<Shared>, queue: &mut Queue) -> Result<(), ModuleError> {
        if queue.threads >= self.workers_max() {
            return Ok(());
        }
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name("compile".into())
            .spawn(move || shared.work())
            .map_err(|error| ModuleError::Internal(format!("no thread for a compile: {error}")))?;
        queue.threads += 1;
        Ok(())
    }

    fn work(self: &Arc<Shared>) {
        priority::take_turns();
        loop {
            let mut queue = self.lock();
            let Some((lane, flight)) = queue.take(self.workers_max()) else {
                queue.threads -= 1;
                return;
            };
            if flight.is_held() {
                // It has a thread.
                queue.go_on(&flight);
                drop(queue);
                self.next_turn.notify_all();
                continue;
            }
            drop(queue);
            // Dropped behind what is declared below, which puts the flight back into the queue.
            let _reaped;
            let mut airborne = Airborne {
                shared: self,
                lane,
                flight: &flight,
                next: None,
            };
            flight.phase.send_replace(Phase::InTheAir);
            let flown = catch_unwind(AssertUnwindSafe(|| self.fly(&flight, lane)));
            match flown {
                Ok(Flown::Landed(result, to_keep, worker)) => {
                    // Landing may unload other modules, and that may fail.
                    if catch_unwind(AssertUnwindSafe(|| self.land(&flight, result))).is_err() {
                        tracing::error!("a module could not be unloaded");
                    }
                    drop(worker);
                    if let Some(ToKeep { artifact, facts }) = to_keep {
                        self.artifacts.write(&flight.hash, facts, &artifact);
                    }
                }
                Ok(Flown::Again(lane, worker)) => {
                    airborne.next = Some(lane);
                    _reaped = worker;
                }
                Ok(Flown::Gone) => {}
                Err(_) => {
                    self.is_hopeful.store(false, Ordering::Relaxed);
                    let error = ModuleError::Internal("the check panicked".into());
                    self.land(&flight, Err(error));
                }
            }
        }
    }

    /// Makes the module.
    fn fly(self: &Arc<Shared>, flight: &Arc<Flight>, lane: Lane) -> Flown {
        if self.abandon(flight) {
            return Flown::Gone;
        }
        if let Some(module) = self.cache.get(&flight.hash)
            && module.compiler() == Compiler::Cranelift
        {
            return Flown::Landed(Ok(module), None, None);
        }
        if let Some(module) = self.load_kept(&flight.hash) {
            return Flown::Landed(Ok(module), None, None);
        }
        let began = Instant::now();
        let early = self.begin_early(flight, lane);
        let facts = match self.facts(flight) {
            Ok(facts) => facts,
            Err(error) => {
                metrics().compile(outcome(&error), "none", began.elapsed());
                return Flown::Landed(Err(error), None, self.in_vain(early));
            }
        };
        let is_quick = facts.singlepass && self.may_be_quick(flight);
        let compiler = match (is_quick, lane) {
            (true, _) => Compiler::Singlepass,
            (false, Lane::Quick) => return self.slow_down(flight, self.in_vain(early)),
            (false, Lane::Slow | Lane::Background) => Compiler::Cranelift,
        };
        let (artifact, worker) = match self.compile(flight, compiler, lane, early) {
            Ok(Made { made, by }) => (made, by),
            Err(Failure::Abandoned) => return self.give_up(flight),
            Err(Failure::Refused(error)) if is_quick => {
                tracing::debug!(module = %flight.hash, %error, "Cranelift takes over from Singlepass");
                flight.singlepass_failed.store(true, Ordering::Release);
                return self.slow_down(flight, None);
            }
            Err(Failure::Refused(error) | Failure::Failed(error)) => {
                metrics().compile(outcome(&error), name(compiler), began.elapsed());
                return Flown::Landed(Err(error), None, None);
            }
        };
        // What may never be asked for again is not worth the place of something else.
        let is_worth_keeping = compiler == Compiler::Cranelift && flight.is_kept();
        let to_keep = is_worth_keeping.then(|| ToKeep {
            artifact: artifact.clone(),
            facts,
        });
        let compiled = Compiled {
            artifact,
            facts,
            compiler,
        };
        let loaded = self.load(flight.hash, compiled);
        let result = loaded.as_ref().map_or_else(outcome, |_| "compiled");
        metrics().compile(result, name(compiler), began.elapsed());
        if lane != Lane::Background {
            metrics().module_lookup(Found::Nowhere);
        }
        let to_keep = to_keep.filter(|_| loaded.is_ok());
        Flown::Landed(loaded, to_keep, Some(worker))
    }

    /// The module, from the disk.
    fn load_kept(&self, hash: &ModuleHash) -> Option<Arc<Prepared>> {
        let compiled = self.artifacts.read(hash, self.artifact_bytes_max())?;
        match self.load(*hash, compiled) {
            Ok(module) => Some(module),
            Err(error) => {
                tracing::warn!(module = %hash, %error, "a compiled module on disk does not load");
                self.artifacts.reject(hash);
                None
            }
        }
    }

    fn artifact_bytes_max(&self) -> u64 {
        let settings = &self.settings;
        settings
            .cache_bytes_max
            .min(settings.compile.memory_bytes_max)
    }

    /// A quick flight turns out to need Cranelift, if there is room in that lane. `worker` had it in vain.
    fn slow_down(&self, flight: &Flight, worker: Option<Worker>) -> Flown {
        let queue_max = self.settings.compile.queue_max;
        if self
            .lock()
            .has_room(Quality::Best, flight.share, self.workers_max(), queue_max)
        {
            Flown::Again(Lane::Slow, worker)
        } else {
            Flown::Landed(Err(ModuleError::Busy), None, worker)
        }
    }

    /// What the check finds; looked at once for each flight.
    fn facts(&self, flight: &Flight) -> Result<Facts, ModuleError> {
        if let Some(facts) = flight.facts.get() {
            return Ok(*facts);
        }
        let facts = check(&flight.wasm, self.limits())?;
        self.is_hopeful.store(true, Ordering::Relaxed);
        Ok(*flight.facts.get_or_init(|| facts))
    }

    fn load(&self, hash: ModuleHash, compiled: Compiled) -> Prepare {
        let tunables = SandboxTunables::new(
            self.memories.clone(),
            self.settings.table_elements_max,
            self.settings.stack_bytes_max,
        );
        // SAFETY: the artifact is what our own compile worker wrote to its end of our pipe, now, or
        // in the past: then it was authenticated when it was read.
        #[expect(unsafe_code, reason = "loads machine code")]
        let loaded = unsafe { engine::load(hash, compiled, tunables, &self.warm) };
        loaded.map(Arc::new)
    }

    /// Whether nobody waits for the flight any more; then it is forgotten, and can't be joined.
    fn abandon(&self, flight: &Arc<Flight>) -> bool {
        if flight.is_wanted() {
            return false;
        }
        let mut queue = self.lock();
        // Callers join under the lock, so now it is certain.
        if flight.is_wanted() {
            return false;
        }
        queue.flights.remove(&flight.key());
        drop(queue);
        if flight.quality == Quality::Best {
            self.cache.still_improvable(&flight.hash);
        }
        true
    }

    fn land(self: &Arc<Shared>, flight: &Flight, result: Prepare) {
        let mut improvable = None;
        match &result {
            Ok(module) => {
                let may_improve = module.compiler() == Compiler::Singlepass;
                self.cache
                    .insert(Arc::clone(module), may_improve.then(|| flight.wasm.clone()));
                if flight.is_kept() {
                    improvable = self.cache.improvable(&flight.hash);
                }
            }
            Err(error) => {
                self.refusals.insert(flight.key(), error, Instant::now());
                if flight.quality == Quality::Best {
                    self.not_improved(&flight.hash, error);
                }
            }
        }
        self.lock().flights.remove(&flight.key());
        flight.phase.send_replace(Phase::Landed(result));
        if let Some(wasm) = improvable {
            self.improve(flight.hash, wasm);
        }
    }

    /// The best code can't be made, now or never.
    fn not_improved(&self, hash: &ModuleHash, error: &ModuleError) {
        match error {
            ModuleError::Busy | ModuleError::Internal(_) => self.cache.still_improvable(hash),
            ModuleError::Invalid(_) | ModuleError::OverLimit(_) | ModuleError::CompileLimit(_) => {
                self.cache.not_improvable(hash);
            }
        }
    }
}

/// How a compile that failed ended, as the metric names it.
fn outcome(error: &ModuleError) -> &'static str {
    match error {
        ModuleError::Invalid(_) | ModuleError::OverLimit(_) => "refused",
        ModuleError::CompileLimit(_) => "limit",
        ModuleError::Busy | ModuleError::Internal(_) => "failed",
    }
}

/// A compiler, as the metric names it.
fn name(compiler: Compiler) -> &'static str {
    match compiler {
        Compiler::Singlepass => "singlepass",
        Compiler::Cranelift => "cranelift",
    }
}
