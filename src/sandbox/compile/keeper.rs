//! The keeper: the thread that starts all compile workers, and keeps some warm.
//!
//! The kernel kills a child when the *thread* that is its parent ends (prctl(2), `PR_SET_PDEATHSIG`): the one that
//! started the server that forked it. So one thread starts them all and lives as long as compiles can be asked for. Nothing is left behind
//! when the gateway dies: the kernel kills what the thread started, and a worker that waits for its
//! job reads the end of its input.

#![expect(unsafe_code, reason = "waits for several pipes at once")]

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::super::settings::CompileSettings;
use super::child::{Worker, set_nonblocking};
use super::fork_server::Forks;

/// How soon a spare that ended by itself is replaced, after the last start. Twice as long each time
/// it happens again: a machine on which they all end at once would do nothing else.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(64);
/// A spare that was taken is replaced when its job is done, or after this time: to start and warm up
/// another takes the processor from a client who waits for the job.
const REPLACED_AFTER: Duration = Duration::from_millis(100);

/// Hands out compile workers. When dropped, its thread and the spare workers end.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    settings: CompileSettings,
    state: Mutex<State>,
    /// A byte in it wakes the thread.
    wake: PipeWriter,
}

#[derive(Default)]
struct State {
    /// Started, contained or about to be, and without a job.
    spares: VecDeque<Worker>,
    /// Those who wait for a worker because there was no spare.
    orders: VecDeque<SyncSender<io::Result<Worker>>>,
    /// Spares that were taken and are still there.
    taken: usize,
    last_taken: Option<Instant>,
    /// Whether one was taken alive since the thread looked last: so they do not all end at once.
    has_served: bool,
    is_ending: bool,
}

/// Held by a spare that was taken: when it is dropped, the keeper knows.
pub(super) struct Taken(Arc<Shared>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.lock().taken -= 1;
        self.0.wake();
    }
}

impl Keeper {
    /// Starts the thread, which starts the spares.
    pub(super) fn start(settings: CompileSettings) -> io::Result<Keeper> {
        let (woken, wake) = io::pipe()?;
        set_nonblocking(&woken)?;
        set_nonblocking(&wake)?;
        let shared = Arc::new(Shared {
            settings,
            state: Mutex::default(),
            wake,
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("compile-keeper".into())
            .spawn(move || own.run(woken))?;
        Ok(Keeper {
            shared,
            thread: Some(thread),
        })
    }

    /// A worker for one job: a warm one if there is one, else one that is started now. Blocks.
    pub(super) fn take(&self) -> io::Result<Worker> {
        let mut dead = Vec::new();
        let mut state = match self.take_spare(&mut dead) {
            Ok(worker) => return Ok(worker),
            Err(state) => state,
        };
        let ended = || io::Error::other("the keeper of compile workers has ended");
        if state.is_ending {
            return Err(ended());
        }
        let (order, delivery) = mpsc::sync_channel(1);
        state.orders.push_back(order);
        drop(state);
        drop(dead);
        self.shared.wake();
        delivery.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// A warm worker, if there is one. Does not wait.
    pub(super) fn spare(&self) -> Option<Worker> {
        let mut dead = Vec::new();
        self.take_spare(&mut dead).ok()
    }

    /// A spare; or the state, in which there is none. Those found dead are to be dropped without it.
    fn take_spare(&self, dead: &mut Vec<Worker>) -> Result<Worker, MutexGuard<'_, State>> {
        let mut state = self.shared.lock();
        while let Some(mut worker) = state.spares.pop_front() {
            if worker.is_alive() {
                state.has_served = true;
                state.taken += 1;
                state.last_taken = Some(Instant::now());
                drop(state);
                worker.taken(Taken(Arc::clone(&self.shared)));
                self.shared.wake();
                return Ok(worker);
            }
            dead.push(worker);
        }
        Err(state)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.lock().is_ending = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // If it panicked, the panic's hook has told.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full pipe wakes as well.
        let _ = (&self.wake).write(&[0]);
    }

    fn run(&self, mut woken: PipeReader) {
        let _ending = Ending(self);
        let mut forks = Forks::new(self.settings.clone());
        let mut refill = Refill::default();
        let is_over = || self.lock().is_ending;
        loop {
            forks.look();
            let mut state = self.lock();
            if state.is_ending {
                return;
            }
            if let Some(order) = state.orders.pop_front() {
                drop(state);
                // Who has gone meanwhile gets none: the worker is dropped, which ends it.
                let _ = order.send(Worker::start(&mut forks, &is_over));
                continue;
            }
            if std::mem::take(&mut state.has_served) {
                refill = Refill::default();
            }
            let dead = state.remove_dead();
            let is_short = state.spares.len() < self.settings.workers_spare;
            let pipes = state.spares.iter().map(Worker::pipe);
            let pipes: Vec<RawFd> = pipes
                .chain(forks.socket())
                .map(|fd| fd.as_raw_fd())
                .collect();
            let courtesy = state.courtesy();
            drop(state);
            if !dead.is_empty() {
                tracing::warn!("a compile worker ended before it had a job");
                refill.failed();
            }
            drop(dead);

            let pause = refill.pause().max(courtesy);
            if is_short && pause.is_zero() {
                refill.last = Some(Instant::now());
                match Worker::start(&mut forks, &is_over) {
                    Ok(worker) => self.lock().spares.push_back(worker),
                    Err(error) => {
                        tracing::warn!(%error, "a compile worker can't be started");
                        refill.failed();
                    }
                }
                continue;
            }
            wait(&woken, &pipes, is_short.then_some(pause));
            let mut bytes = [0; 64];
            while woken.read(&mut bytes).is_ok_and(|read| read == bytes.len()) {}
        }
    }
}

/// However the thread ends, nothing of it is left and nobody waits for it.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_ending = true;
        let spares = std::mem::take(&mut state.spares);
        let orders = std::mem::take(&mut state.orders);
        drop(state);
        drop((spares, orders));
    }
}

/// When the next spare may be started.
#[derive(Default)]
struct Refill {
    last: Option<Instant>,
    failures: u32,
}

impl Refill {
    fn failed(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() > RETRY_MAX) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
    }

    fn pause(&self) -> Duration {
        match (self.failures.checked_sub(1), self.last) {
            (Some(repeated), Some(last)) => (RETRY * (1 << repeated.min(6)))
                .min(RETRY_MAX)
                .saturating_sub(last.elapsed()),
            (None, _) | (_, None) => Duration::ZERO,
        }
    }
}

impl State {
    /// How long to wait before a spare is replaced, for the sake of those that were taken.
    fn courtesy(&self) -> Duration {
        match self.last_taken {
            Some(last) if self.taken > 0 => REPLACED_AFTER.saturating_sub(last.elapsed()),
            Some(_) | None => Duration::ZERO,
        }
    }

    fn remove_dead(&mut self) -> Vec<Worker> {
        let mut dead = Vec::new();
        for mut worker in std::mem::take(&mut self.spares) {
            if worker.is_alive() {
                self.spares.push_back(worker);
            } else {
                dead.push(worker);
            }
        }
        dead
    }
}

/// Waits until there is something to read, one of the pipes hangs up, or the time is over. The pipes
/// may be closed meanwhile, which only wakes early or not at all.
fn wait(woken: &PipeReader, pipes: &[RawFd], timeout: Option<Duration>) {
    let poll = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // No event is asked for: that the other end is closed is always told (poll(2)).
    let mut polls: Vec<libc::pollfd> = pipes.iter().map(|fd| poll(*fd, 0)).collect();
    polls.push(poll(woken.as_raw_fd(), libc::POLLIN));
    let milliseconds = timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_millis().max(1)).unwrap_or(i32::MAX)
    });
    // SAFETY: the array outlives the call, which gets its length. A failure is as good as a wake.
    unsafe {
        libc::poll(
            polls.as_mut_ptr(),
            polls.len() as libc::nfds_t,
            milliseconds,
        );
    }
}

#[cfg(test)]
mod tests;
