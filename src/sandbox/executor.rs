//! Where guests run: on the thread that asks, if they are short, else on threads of their own.
//!
//! Handing a guest to another thread costs more than a short guest does. So it first gets a slice
//! of the caller's thread. One that outlasts it, or would have to wait, is stopped before anything
//! of it has left the sandbox, and runs again from the start on a thread of its own, for which it
//! queues. A module whose guests did so goes to the queue at once for a while ([`Pace`]); if those before
//! it did not, it is tried once more first, because its thread may have lost the processor.
//!
//! The queue is fair between those the guests count for ([`ShareKey`]): each in turn, each with a
//! bound on how many run at a time; and when it is full, the longest share gives way. Guest threads
//! yield to all others of the process (nice), so that guests that spin slow down each other only. A
//! thread is made when there is work for it and ends when there has been none for a while.

mod queue;

use std::cell::RefCell;
use std::hash::{BuildHasher, Hash, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use self::queue::Queue;
use super::deadline::{self, RunId, Sitting};
use super::guest::{self, Guest, Place, Ran, Remains};
use super::input::InputCloser;
use super::pipe::PipeCloser;
use super::{Call, End, Outcome, Prepared, RunError, Stdin, Stdout, StopSignal, Usage};
use crate::telemetry::metrics::metrics;

/// How long a thread without work stays.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Stack of a guest thread: host functions run on it, the guest has another.
const THREAD_STACK_BYTES: usize = 1024 * 1024;
/// What a guest gets of its caller's thread.
const SLICE: Duration = Duration::from_micros(200);
/// Guests of a module that go to the queue at once after the first that outlasted its slice, and at
/// most.
const SKIPPED_MIN: u32 = 16;
const SKIPPED_MAX: u32 = 4096;
/// Guests of a module that have to keep to their slices, one after the other, for the next that does not to
/// be put down to its thread, which may have lost the processor. To be wrong in that costs a caller's thread
/// one more slice, a tick late: less than what these guests may take.
const KEPT_MIN: u32 = 32;

/// Whom a guest counts for: guests of one share wait for each other rather than for others'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ShareKey(u64);

impl ShareKey {
    /// No caller's: what the gateway does for itself.
    pub(super) const NOBODY: ShareKey = ShareKey(0);

    /// The share of whatever is equal to `value`.
    pub fn of(value: impl Hash) -> ShareKey {
        // Keyed anew in each process: nobody can choose to collide with another's share.
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        ShareKey(HASHER.hash_one(value))
    }
}

/// What is known of how long a module's guests take.
#[derive(Debug)]
pub(super) struct Pace {
    /// Guests that still go to the queue at once.
    skip: AtomicU32,
    /// How many did last time.
    skipped: AtomicU32,
    /// Guests that still have to keep to their slices before one is forgiven that does not.
    owed: AtomicU32,
}

impl Pace {
    /// Of a module whose guests may be short, or of one whose instances are known to be long in the
    /// making.
    pub(super) fn new(is_slow: bool) -> Pace {
        let skip = if is_slow { SKIPPED_MIN } else { 0 };
        Pace {
            skip: AtomicU32::new(skip),
            skipped: AtomicU32::new(skip),
            owed: AtomicU32::new(KEPT_MIN),
        }
    }

    /// Whether the next guest may try the caller's thread. (Counts are not exact when guests come at
    /// the same time, which is no harm.)
    fn may_borrow(&self) -> bool {
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
        }
        skip == 0
    }

    /// A guest did not end within its slice. True if that may not be its own doing, for the guests before
    /// it did: then nothing follows.
    fn overran(&self) -> bool {
        let is_forgiven = self.owed.swap(KEPT_MIN, Ordering::Relaxed) == 0;
        if !is_forgiven {
            self.slow();
        }
        is_forgiven
    }

    /// A guest was slow, without doubt.
    fn slow(&self) {
        self.owed.store(KEPT_MIN, Ordering::Relaxed);
        let skipped = self.skipped.load(Ordering::Relaxed);
        let skipped = skipped.saturating_mul(2).clamp(SKIPPED_MIN, SKIPPED_MAX);
        self.skipped.store(skipped, Ordering::Relaxed);
        self.skip.store(skipped, Ordering::Relaxed);
    }

    /// A guest ended within its slice.
    fn kept(&self) {
        let owed = self.owed.load(Ordering::Relaxed);
        if owed > 0 {
            self.owed.store(owed - 1, Ordering::Relaxed);
        }
        let skipped = self.skipped.load(Ordering::Relaxed);
        if skipped > 0 {
            self.skipped.store(skipped - 1, Ordering::Relaxed);
        }
    }

    /// A guest ended on a thread of its own after this time.
    fn took(&self, wall: Duration) {
        if wall < SLICE / 2 {
            let skip = self.skip.load(Ordering::Relaxed);
            self.skip.store(skip / 2, Ordering::Relaxed);
        }
    }
}

/// How many guests run and wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Guests on threads of their own at a time.
    pub guests_max: usize,
    /// Of these, guests of one share.
    pub per_share_max: usize,
    pub queue_max: usize,
    pub queue_timeout: Duration,
}

/// The guest threads. Dropping it refuses new guests; the threads end with the work they have.
pub(super) struct Executor {
    shared: Arc<Shared>,
    queue_timeout: Duration,
}

struct Shared {
    guests_max: usize,
    state: Mutex<State>,
    work: Condvar,
    shut_down: AtomicBool,
}

struct State {
    queue: Queue<Job>,
    threads: usize,
    idle: usize,
}

struct Job {
    guest: Guest,
    ticket: Arc<Ticket>,
    queued_at: Instant,
    answer: oneshot::Sender<Result<Outcome, RunError>>,
}

/// What the waiting caller and the guest's thread know of each other.
struct Ticket {
    share: ShareKey,
    stop: Arc<StopSignal>,
    pipe: Option<PipeCloser>,
    input: Option<InputCloser>,
    run: Mutex<Option<RunId>>,
}

/// Stops the guest when its caller goes away.
struct Waiting<'a> {
    executor: &'a Executor,
    ticket: &'a Arc<Ticket>,
    done: bool,
}

thread_local! {
    /// The seat of a thread that lends itself to guests.
    static LENT: RefCell<Option<Sitting>> = const { RefCell::new(None) };
}

/// Notes how long a guest took of a borrowed thread. Making its instance is part of it, and nothing interrupts
/// that.
fn ended(module: &Prepared, outcome: &Outcome) {
    if outcome.usage.wall > SLICE {
        module.pace().overran();
    } else {
        module.pace().kept();
    }
}

/// Runs a guest on this thread for a slice.
fn borrow(guest: Guest) -> Ran {
    LENT.with(|lent| {
        // In use only if a guest's host function came here, which none does.
        let Ok(mut lent) = lent.try_borrow_mut() else {
            return Ran::Postponed(guest, Duration::ZERO);
        };
        let sitting = match &*lent {
            Some(sitting) => sitting,
            None => match Sitting::take() {
                Ok(sitting) => lent.insert(sitting),
                Err(error) => {
                    tracing::error!(%error, "guests on this thread can't be stopped in time");
                    return Ran::Postponed(guest, Duration::ZERO);
                }
            },
        };
        guest::run(sitting, guest, Place::Borrowed(SLICE), |_| {})
    })
}

impl Executor {
    pub(super) fn new(bounds: Bounds) -> Executor {
        let guests_max = bounds.guests_max.max(1);
        Executor {
            shared: Arc::new(Shared {
                guests_max,
                state: Mutex::new(State {
                    queue: Queue::new(guests_max, bounds.per_share_max.max(1), bounds.queue_max),
                    threads: 0,
                    idle: 0,
                }),
                work: Condvar::new(),
                shut_down: AtomicBool::new(false),
            }),
            queue_timeout: bounds.queue_timeout,
        }
    }

    /// Runs one guest. Needs a tokio runtime with time.
    pub(super) async fn run(&self, module: Arc<Prepared>, call: Call) -> Result<Outcome, RunError> {
        if self.shared.shut_down.load(Ordering::Acquire) {
            return Err(RunError::ShuttingDown);
        }
        let share = call.share;
        let guest = Guest {
            module: Arc::clone(&module),
            call,
            stop: Arc::default(),
            queued: Duration::ZERO,
        };
        let all_there = matches!(guest.call.stdin, Stdin::Bytes(_));
        if !all_there || !module.pace().may_borrow() {
            return Box::pin(self.queue(guest, share)).await;
        }
        match borrow(guest) {
            Ran::Ended(outcome, remains) => {
                drop(remains);
                ended(&module, &outcome);
                Ok(outcome)
            }
            // Boxed: a guest that ends at once would be copied with the room for all of that.
            Ran::Postponed(guest, spent) => {
                Box::pin(self.go_on(&module, guest, share, spent)).await
            }
        }
    }

    /// Runs a guest that did not end on this thread: on one of its own, or here once more.
    async fn go_on(
        &self,
        module: &Prepared,
        mut guest: Guest,
        share: ShareKey,
        mut spent: Duration,
    ) -> Result<Outcome, RunError> {
        // One that has to wait says so sooner, and will again.
        let outlasted = spent > SLICE;
        if !outlasted {
            module.pace().slow();
        } else if module.pace().overran() {
            // Others have waited for this thread. To yield by a task is to yield whoever polls: who asks first whether
            // there is an answer at once, and polls again, would come back from `yield_now` before anybody else.
            let _ = tokio::spawn(std::future::ready(())).await;
            match borrow(guest) {
                Ran::Ended(mut outcome, remains) => {
                    drop(remains);
                    ended(module, &outcome);
                    outcome.usage.cpu += spent;
                    return Ok(outcome);
                }
                Ran::Postponed(again, more) => {
                    guest = again;
                    spent += more;
                    module.pace().slow();
                }
            }
        }
        metrics().guests_postponed.inc();
        let mut outcome = self.queue(guest, share).await?;
        outcome.usage.cpu += spent;
        Ok(outcome)
    }

    /// Runs one guest on a thread of its own.
    async fn queue(&self, guest: Guest, share: ShareKey) -> Result<Outcome, RunError> {
        let pipe = match &guest.call.stdout {
            Stdout::Pipe(writer) => Some(writer.closer()),
            Stdout::Collect => None,
        };
        let ticket = Arc::new(Ticket {
            share,
            stop: Arc::clone(&guest.stop),
            pipe,
            input: guest.call.stdin.closer(),
            run: Mutex::default(),
        });
        let (answer, mut outcome) = oneshot::channel();
        let job = Job {
            guest,
            ticket: Arc::clone(&ticket),
            queued_at: Instant::now(),
            answer,
        };
        self.shared.submit(job)?;
        let mut waiting = Waiting {
            executor: self,
            ticket: &ticket,
            done: false,
        };
        let in_time = tokio::time::timeout(self.queue_timeout, &mut outcome).await;
        let received = match in_time {
            Ok(received) => received,
            Err(_) if self.shared.withdraw(&ticket) => {
                waiting.done = true;
                return Err(RunError::Busy);
            }
            // It left the queue in time and runs.
            Err(_) => outcome.await,
        };
        waiting.done = true;
        received.unwrap_or_else(|_| Ok(lost()))
    }

    /// Guests running and queued.
    pub(super) fn load(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.queue.running(), state.queue.waiting())
    }

    pub(super) fn shut_down(&self) {
        // Under the lock, so that no thread goes to sleep without having seen it.
        let state = self.shared.lock();
        self.shared.shut_down.store(true, Ordering::Release);
        drop(state);
        self.shared.work.notify_all();
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.ticket.cancel();
        self.executor.shared.withdraw(self.ticket);
    }
}

impl Ticket {
    fn cancel(&self) {
        self.stop.cancel();
        if let Some(pipe) = &self.pipe {
            pipe.close();
        }
        if let Some(input) = &self.input {
            input.close();
        }
        // Under the lock: either the run is known and stopped here, or the thread will see the
        // signal when it makes the run known.
        if let Some(run) = *self.run.lock().unwrap_or_else(PoisonError::into_inner) {
            deadline::expire(run);
        }
    }

    fn started(&self, run: RunId) {
        let mut current = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(run);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(self: &Arc<Shared>, job: Job) -> Result<(), RunError> {
        let mut state = self.lock();
        if self.shut_down.load(Ordering::Acquire) {
            return Err(RunError::ShuttingDown);
        }
        if state.idle <= state.queue.ready() && state.threads < self.guests_max {
            if self.spawn() {
                state.threads += 1;
            } else if state.threads == 0 {
                // Nobody would ever take the guest.
                return Err(RunError::Busy);
            }
        }
        let share = job.ticket.share;
        let pushed = state.queue.push(share, job);
        drop(state);
        match pushed {
            Ok(None) => {}
            // The longest share gave way. Its guest's caller may be gone.
            Ok(Some(evicted)) => drop(evicted.answer.send(Err(RunError::Busy))),
            Err(_) => return Err(RunError::Busy),
        }
        self.work.notify_one();
        Ok(())
    }

    /// Whether a thread was started. It waits for the lock that our caller holds.
    fn spawn(self: &Arc<Shared>) -> bool {
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name("guest".into())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || shared.work())
            .inspect_err(|error| tracing::error!(%error, "no thread for a guest"))
            .is_ok()
    }

    /// Takes a guest out of the queue; false if it is no longer there.
    fn withdraw(&self, ticket: &Arc<Ticket>) -> bool {
        let withdrawn = self
            .lock()
            .queue
            .remove(ticket.share, |job| Arc::ptr_eq(&job.ticket, ticket));
        // The guest's input may be large: it is dropped without the lock.
        withdrawn.is_some()
    }

    /// What a guest thread does.
    fn work(&self) {
        let sitting = match Sitting::take_for_good() {
            Ok(sitting) => sitting,
            Err(error) => {
                tracing::error!(%error, "a guest thread can't be stopped in time, so it ends");
                self.leave();
                return;
            }
        };
        while let Some(job) = self.next() {
            let Job {
                mut guest,
                ticket,
                queued_at,
                answer,
            } = job;
            guest.queued = queued_at.elapsed();
            let module = Arc::clone(&guest.module);
            // What goes wrong around a guest must not cost the thread, nor its place in the count.
            let ran = catch_unwind(AssertUnwindSafe(|| {
                guest::run(&sitting, guest, Place::Own, |run| ticket.started(run))
            }));
            let (outcome, remains) = match ran {
                Ok(Ran::Ended(outcome, remains)) => {
                    module.pace().took(outcome.usage.wall);
                    (outcome, remains)
                }
                Ok(Ran::Postponed(..)) | Err(_) => (lost(), Remains::default()),
            };
            if self.lock().queue.ended(ticket.share) {
                self.work.notify_one();
            }
            // Nobody may be waiting any more.
            let _ = answer.send(Ok(outcome));
            // This may be the last use of a module that the cache has dropped.
            let unload = move || {
                drop(remains);
                drop(module);
            };
            if catch_unwind(AssertUnwindSafe(unload)).is_err() {
                tracing::error!("a module could not be unloaded");
            }
        }
    }

    /// The next guest, already counted as running; `None` when the thread has to end.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop() {
                return Some(job);
            }
            if self.shut_down.load(Ordering::Acquire) && state.queue.waiting() == 0 {
                break;
            }
            state.idle += 1;
            let (woken, timeout) = self
                .work
                .wait_timeout(state, IDLE_MAX)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.ready() == 0 {
                break;
            }
        }
        state.threads -= 1;
        None
    }

    /// A thread that could not work. If it was the last, the queue must not wait for ever.
    fn leave(&self) {
        let mut state = self.lock();
        state.threads -= 1;
        if state.threads == 0 {
            let abandoned = state.queue.clear();
            drop(state);
            drop(abandoned);
        }
    }
}

/// The thread died without an answer, which nothing known makes it do.
fn lost() -> Outcome {
    Outcome {
        end: End::HostError("the guest's thread gave no answer".into()),
        stdout: Vec::new(),
        stderr: Vec::new(),
        stderr_truncated: false,
        usage: Usage::default(),
    }
}

#[cfg(test)]
mod tests;
