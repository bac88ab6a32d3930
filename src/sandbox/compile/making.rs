//! Having a worker make a module.
//!
//! The check of a large module takes a fifth of the time that somebody waits for it. So a spare worker gets
//! the bytes at once, and they are checked while it works. The worker is contained whatever the bytes
//! are, what it makes is looked at only when they have passed, and its own words about others are
//! never heard. A module that does not pass would then cost a worker; so after one has, none is given away
//! like that before another module has passed.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::ModuleError;
use super::super::check;
use super::super::engine::Compiler;
use super::super::worker::{Job, Task};
use super::child::{Bounds, Brake, Failure, Made, Worker, Working};
use super::flight::{Flight, Quality};
use super::queue::Lane;
use super::{SINGLEPASS_IS_HELD, Shared};

/// The check of what is smaller takes less than a millisecond, for which no worker is put at risk.
const EARLY_BYTES_MIN: usize = 64 << 10;

impl Shared {
    /// Whether Singlepass may have the module, as far as it is known without the check.
    pub(super) fn may_be_quick(&self, flight: &Flight) -> bool {
        flight.quality == Quality::Soon
            && SINGLEPASS_IS_HELD
            && self.settings.compile.singlepass
            && !flight.singlepass_failed.load(Ordering::Acquire)
    }

    /// Gives the module to Singlepass before it is checked, if that is worth it and there is a spare worker.
    pub(super) fn begin_early<'a>(&self, flight: &'a Flight, lane: Lane) -> Option<Working<'a>> {
        let is_worth_it = lane == Lane::Quick
            && flight.facts.get().is_none()
            && flight.wasm.len() >= EARLY_BYTES_MIN
            && check::header(&flight.wasm, self.limits()).is_ok()
            && self.may_be_quick(flight)
            && self.is_hopeful.load(Ordering::Relaxed);
        let spare = is_worth_it.then(|| self.keeper.spare()).flatten()?;
        let job = Job {
            task: Task::Compile(Compiler::Singlepass),
            input: &flight.wasm,
        };
        // If it can't be given anything, another one is asked in time.
        spare.begin(&job).ok()
    }

    /// The module is not for the worker that has it. What is left of that is to be reaped.
    pub(super) fn in_vain(&self, early: Option<Working<'_>>) -> Option<Worker> {
        let early = early?;
        self.is_hopeful.store(false, Ordering::Relaxed);
        Some(early.stop())
    }

    /// Has a worker compile the module, which has passed the check: the one that has it, or another.
    pub(super) fn compile(
        self: &Arc<Shared>,
        flight: &Arc<Flight>,
        compiler: Compiler,
        lane: Lane,
        early: Option<Working<'_>>,
    ) -> Result<Made, Failure> {
        let settings = &self.settings.compile;
        let working = match early {
            Some(working) => working,
            None => self.worker()?.begin(&Job {
                task: Task::Compile(compiler),
                input: &flight.wasm,
            })?,
        };
        // What it took to get a worker is not the module's fault.
        let bounds = Bounds {
            deadline: Instant::now() + settings.timeout,
            made_bytes_max: self.artifact_bytes_max(),
            is_background: lane == Lane::Background,
        };
        let turn = Cell::new(Instant::now());
        let is_abandoned = |brake: &Brake| {
            if !flight.is_wanted() || (flight.is_background() && self.must_give_way()) {
                return true;
            }
            let is_over = lane == Lane::Slow && turn.get().elapsed() >= flight.turn();
            if is_over && self.lock().is_outwaited(flight.share, self.workers_max()) {
                if !self.wait_for_a_turn(flight, brake) {
                    return true;
                }
                turn.set(Instant::now());
            }
            false
        };
        working.finish(settings, bounds, is_abandoned)
    }

    /// A worker for one job.
    pub(super) fn worker(&self) -> Result<Worker, Failure> {
        self.keeper.take().map_err(|error| {
            let worker = self.settings.compile.worker.display();
            let text = format!("the compile worker {worker} does not start: {error}");
            Failure::Failed(ModuleError::Internal(text))
        })
    }
}
