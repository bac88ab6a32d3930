//! The guest threads and the queue before them.
//!
//! A guest blocks its thread for as long as it runs, so guests run on threads of their own, as
//! many as there may be guests. A thread is made when there is work for it and ends when there has
//! been none for a while.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::deadline::{self, RunId, Sitting};
use super::guest::{self, Guest};
use super::pipe::PipeCloser;
use super::{Call, End, Outcome, Prepared, RunError, Stdout, StopSignal, Usage};

/// How long a thread without work stays.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Stack of a guest thread: host functions run on it, the guest has another.
const THREAD_STACK_BYTES: usize = 1024 * 1024;

/// The guest threads. Dropping it refuses new guests; the threads end with the work they have.
pub(super) struct Executor {
    shared: Arc<Shared>,
    queue_timeout: Duration,
}

struct Shared {
    guests_max: usize,
    queue_max: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    running: usize,
    threads: usize,
    idle: usize,
    shut_down: bool,
}

struct Job {
    module: Arc<Prepared>,
    call: Call,
    ticket: Arc<Ticket>,
    queued_at: Instant,
    answer: oneshot::Sender<Outcome>,
}

/// What the waiting caller and the guest's thread know of each other.
struct Ticket {
    stop: Arc<StopSignal>,
    pipe: Option<PipeCloser>,
    run: Mutex<Option<RunId>>,
}

/// Stops the guest when its caller goes away.
struct Waiting<'a> {
    executor: &'a Executor,
    ticket: &'a Arc<Ticket>,
    done: bool,
}

impl Executor {
    pub(super) fn new(guests_max: usize, queue_max: usize, queue_timeout: Duration) -> Executor {
        Executor {
            shared: Arc::new(Shared {
                guests_max: guests_max.max(1),
                queue_max,
                state: Mutex::default(),
                work: Condvar::new(),
            }),
            queue_timeout,
        }
    }

    /// Runs one guest on a thread of its own. Needs a tokio runtime with time.
    pub(super) async fn run(&self, module: Arc<Prepared>, call: Call) -> Result<Outcome, RunError> {
        let pipe = match &call.stdout {
            Stdout::Pipe(writer) => Some(writer.closer()),
            Stdout::Collect => None,
        };
        let ticket = Arc::new(Ticket {
            stop: Arc::default(),
            pipe,
            run: Mutex::default(),
        });
        let (answer, mut outcome) = oneshot::channel();
        let queued_at = Instant::now();
        let job = Job {
            module,
            call,
            ticket: Arc::clone(&ticket),
            queued_at,
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
        Ok(received.unwrap_or_else(|_| lost()))
    }

    /// Guests running and queued.
    pub(super) fn load(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.running, state.queue.len())
    }

    pub(super) fn shut_down(&self) {
        self.shared.lock().shut_down = true;
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
        if state.shut_down {
            return Err(RunError::ShuttingDown);
        }
        let free = self.guests_max.saturating_sub(state.running);
        if state.queue.len() >= free.saturating_add(self.queue_max) {
            return Err(RunError::Busy);
        }
        if state.idle <= state.queue.len() && state.threads < self.guests_max {
            if self.spawn() {
                state.threads += 1;
            } else if state.threads == 0 {
                // Nobody would ever take the guest.
                return Err(RunError::Busy);
            }
        }
        state.queue.push_back(job);
        drop(state);
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
        let mut state = self.lock();
        let Some(at) = state
            .queue
            .iter()
            .position(|job| Arc::ptr_eq(&job.ticket, ticket))
        else {
            return false;
        };
        let job = state.queue.remove(at);
        // The job's input may be large: it is dropped without the lock.
        drop(state);
        drop(job);
        true
    }

    /// What a guest thread does.
    fn work(&self) {
        let sitting = match Sitting::take() {
            Ok(sitting) => sitting,
            Err(error) => {
                tracing::error!(%error, "a guest thread can't be stopped in time, so it ends");
                self.leave();
                return;
            }
        };
        while let Some(job) = self.next() {
            let Job {
                module,
                call,
                ticket,
                queued_at,
                answer,
            } = job;
            let stop = Arc::clone(&ticket.stop);
            let guest = Guest {
                module,
                call,
                stop,
                queued: queued_at.elapsed(),
            };
            let module = Arc::clone(&guest.module);
            // What goes wrong around a guest must not cost the thread, nor its place in the count.
            let ran = catch_unwind(AssertUnwindSafe(|| {
                guest::run(&sitting, guest, |run| ticket.started(run))
            }));
            self.lock().running -= 1;
            // Nobody may be waiting any more.
            let _ = answer.send(ran.unwrap_or_else(|_| lost()));
            // This may be the last use of a module that the cache has dropped.
            if catch_unwind(AssertUnwindSafe(move || drop(module))).is_err() {
                tracing::error!("a module could not be unloaded");
            }
        }
    }

    /// The next guest, already counted as running; `None` when the thread has to end.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.running += 1;
                return Some(job);
            }
            if state.shut_down {
                break;
            }
            state.idle += 1;
            let (woken, timeout) = self
                .work
                .wait_timeout(state, IDLE_MAX)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
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
            let abandoned = std::mem::take(&mut state.queue);
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
