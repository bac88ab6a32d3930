//! The wall clock that guests can't outrun.
//!
//! Each guest thread sits in a [`Seat`]. While a guest runs, its seat is armed with a deadline; one
//! watchdog thread for the whole process sleeps until the earliest of them. When one has passed,
//! the watchdog orders the guest to stop (through the hidden global of [`super::instrument`]) and
//! sends its thread a signal, again and again until the guest is gone:
//!
//! - the signal's handler acts only when it interrupted the guest's own machine code. It makes the
//!   thread go on at an instruction that traps, and Wasmer unwinds from there as from any trap. No
//!   Rust frame is ever skipped;
//! - in Rust code (a host function, a bulk operator) it does nothing, and the guest's code looks at
//!   the hidden global when it gets back.
//!
//! Only one signal per thread is under way at a time: queued ones would starve it.
//!
//! The watchdog also sees to it that a guest that goes on for a while no longer has the processor as soon as
//! one that has just begun ([`super::priority`]).

#![expect(
    unsafe_code,
    reason = "the watchdog writes to a global inside a guest's instance"
)]

mod signal;

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::instrument::STOP;
use super::priority;

/// How long the watchdog waits before it orders a guest to stop once more.
const REPEAT: Duration = Duration::from_millis(1);
/// A deadline that never comes.
const NEVER: u64 = u64::MAX;
/// How often the watchdog looks while there are runs with [`Slack::Tick`], and how much later than
/// asked it may stop them.
const TICK: Duration = Duration::from_millis(2);

/// How long a guest has short slices of its thread, by the wall clock. Few guests take longer that are not at work
/// for long, and the watchdog, which is woken for the first of them, sees to many at a time.
const SETTLED_AFTER: Duration = Duration::from_millis(10);
/// Guests that the watchdog settles before it looks at deadlines again.
const SETTLED_AT_A_TIME: usize = 16;

/// How exactly a run's deadline is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slack {
    /// To the moment: the watchdog is woken if it sleeps for longer.
    None,
    /// A tick later will do. For runs so short and many that waking the watchdog for each would cost
    /// more than they do.
    Tick,
}

/// Where a guest thread sits. Seats are never freed, because a signal's handler holds a plain
/// pointer to one; a thread that ends leaves its seat to another.
#[derive(Debug)]
pub(super) struct Seat {
    /// Read by the handler: whether the guest has to stop.
    stop: AtomicBool,
    /// Read by the handler: the guest's machine code.
    code_start: AtomicUsize,
    code_end: AtomicUsize,
    /// A signal was sent and not yet handled.
    under_way: AtomicBool,
    /// In nanoseconds since the watchdog's epoch.
    deadline: AtomicU64,
    /// Runs with [`Slack::Tick`] so far.
    ticked: AtomicU64,
    /// When the thread is to have long slices, as `deadline`.
    settles_at: AtomicU64,
    run: Mutex<Run>,
}

/// What only the seat's thread and the watchdog use, under a lock.
#[derive(Debug, Default)]
struct Run {
    thread: Option<signal::Thread>,
    /// As the scheduler knows the thread, if it runs nothing but guests.
    scheduled: Option<libc::pid_t>,
    /// It has long slices.
    is_settled: bool,
    number: u64,
    stop_global: Option<StopGlobal>,
    /// Signals sent in the run at hand, or the last one.
    #[cfg(test)]
    signals: u32,
}

#[derive(Debug)]
struct StopGlobal(NonNull<AtomicI64>);

/// One run of one guest, for [`expire`].
#[derive(Debug, Clone, Copy)]
pub(super) struct RunId {
    seat: &'static Seat,
    number: u64,
}

/// The calling thread's seat; dropping it leaves the seat. Stays on its thread.
#[derive(Debug)]
pub(super) struct Sitting {
    seat: &'static Seat,
    on_this_thread: PhantomData<*const ()>,
}

/// A guest that runs under a deadline until this is dropped.
#[derive(Debug)]
pub(super) struct Armed<'a> {
    sitting: &'a Sitting,
    number: u64,
}

thread_local! {
    /// The seat as the handler finds it. No destructor, so that it can be read at any time.
    static SEAT: Cell<*const Seat> = const { Cell::new(ptr::null()) };
}

struct Watchdog {
    epoch: Instant,
    seats: Mutex<Seats>,
    changed: Condvar,
    /// When it wakes next; an earlier deadline has to wake it.
    wakes_at: AtomicU64,
}

#[derive(Default)]
struct Seats {
    all: Vec<&'static Seat>,
    free: Vec<&'static Seat>,
}

static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();
static STARTED: Mutex<bool> = Mutex::new(false);

/// Installs the signal handler and starts the watchdog. Once for the process; more calls are fine.
pub(super) fn start() -> io::Result<()> {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return Ok(());
    }
    signal::install()?;
    thread::Builder::new()
        .name("guest-watchdog".into())
        .spawn(|| watchdog().watch())?;
    *started = true;
    Ok(())
}

/// Makes a run's deadline pass now. Does nothing when the run is over.
pub(super) fn expire(run: RunId) {
    let current = run.seat.lock();
    if current.number == run.number && current.stop_global.is_some() {
        run.seat.deadline.store(0, Ordering::SeqCst);
        drop(current);
        watchdog().wake_by(0);
    }
}

impl Sitting {
    /// Takes a seat for the calling thread.
    pub(super) fn take() -> io::Result<Sitting> {
        Sitting::take_as(None)
    }

    /// Takes a seat for the calling thread, which runs nothing but guests, and yields to others.
    pub(super) fn take_for_good() -> io::Result<Sitting> {
        // SAFETY: the call has no conditions.
        let thread = unsafe { libc::gettid() };
        let sitting = Sitting::take_as(Some(thread))?;
        priority::yield_to_others();
        Ok(sitting)
    }

    fn take_as(scheduled: Option<libc::pid_t>) -> io::Result<Sitting> {
        let thread = signal::this_thread()?;
        let seat = watchdog().seat();
        let mut run = seat.lock();
        seat.stop.store(false, Ordering::Release);
        // A last signal to the seat's former thread may have found nobody to take it.
        seat.under_way.store(false, Ordering::Release);
        run.thread = Some(thread);
        run.scheduled = scheduled;
        drop(run);
        SEAT.set(seat);
        Ok(Sitting {
            seat,
            on_this_thread: PhantomData,
        })
    }

    /// Puts the guest under a deadline, until the result is dropped.
    ///
    /// # Safety
    ///
    /// `stop_global` must stay valid until the result is dropped or [`Armed::disarm`]ed, and `code`
    /// must hold nothing but machine code that Wasmer may unwind from when it traps.
    pub(super) unsafe fn arm(
        &self,
        code: Range<usize>,
        stop_global: NonNull<AtomicI64>,
        deadline: Instant,
        slack: Slack,
    ) -> Armed<'_> {
        let watchdog = watchdog();
        let seat = self.seat;
        seat.code_start.store(code.start, Ordering::Relaxed);
        seat.code_end.store(code.end, Ordering::Relaxed);
        let deadline = watchdog.nanoseconds(deadline);
        let mut run = seat.lock();
        run.number += 1;
        #[cfg(test)]
        {
            run.signals = 0;
        }
        run.stop_global = Some(StopGlobal(stop_global));
        let wake_by = match slack {
            Slack::None => deadline,
            Slack::Tick => {
                seat.ticked.fetch_add(1, Ordering::Relaxed);
                deadline.saturating_add(TICK.as_nanos() as u64)
            }
        };
        seat.deadline.store(deadline, Ordering::SeqCst);
        let mut wake_by = wake_by;
        if run.scheduled.is_some() {
            let settles_at = watchdog.nanoseconds(Instant::now() + SETTLED_AFTER);
            seat.settles_at.store(settles_at, Ordering::SeqCst);
            wake_by = wake_by.min(settles_at);
        }
        let number = run.number;
        drop(run);
        watchdog.wake_by(wake_by);
        Armed {
            sitting: self,
            number,
        }
    }
}

#[cfg(test)]
impl Sitting {
    /// How often the last guest was signalled before it was gone. The first may come late on a busy machine,
    /// but those that struck in vain tell how hard it was to stop.
    fn signals(&self) -> u32 {
        self.seat.lock().signals
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        // Under the lock, so that no signal is sent to a thread that is gone, and nothing is done to one that has its
        // number since.
        let mut run = self.seat.lock();
        run.thread = None;
        run.scheduled = None;
        drop(run);
        SEAT.set(ptr::null());
        watchdog().lock().free.push(self.seat);
    }
}

impl Armed<'_> {
    pub(super) fn id(&self) -> RunId {
        RunId {
            seat: self.sitting.seat,
            number: self.number,
        }
    }

    /// Ends the run; true if it was ordered to stop.
    pub(super) fn disarm(self) -> bool {
        self.sitting.seat.disarm()
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.sitting.seat.disarm();
    }
}

// SAFETY: `Run` is only used under its lock, and the global it points to is valid while it is set
// (the promise of `arm`); the global itself is atomic.
unsafe impl Send for StopGlobal {}

impl Seat {
    fn new() -> Seat {
        Seat {
            stop: AtomicBool::new(false),
            code_start: AtomicUsize::new(0),
            code_end: AtomicUsize::new(0),
            under_way: AtomicBool::new(false),
            deadline: AtomicU64::new(NEVER),
            ticked: AtomicU64::new(0),
            settles_at: AtomicU64::new(NEVER),
            run: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May be called twice for a run: the second time finds nothing to do.
    fn disarm(&self) -> bool {
        let mut run = self.lock();
        // Under the lock, as every change of it: `expire` must not slip its zero in between.
        self.deadline.store(NEVER, Ordering::SeqCst);
        run.stop_global = None;
        let was_struck = self.stop.swap(false, Ordering::AcqRel);
        if run.scheduled.is_some() {
            self.settles_at.store(NEVER, Ordering::SeqCst);
            let was_settled = std::mem::take(&mut run.is_settled);
            drop(run);
            if was_settled {
                priority::begin_anew();
            }
        }
        was_struck
    }

    /// Gives the thread long slices if its guest has run for a while at `now`.
    fn settle(&self, now: u64) {
        // As below.
        let mut run = match self.run.try_lock() {
            Ok(run) => run,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // Under the lock, so that it is the run's own, and that the run's end finds what is done here.
        if self.settles_at.load(Ordering::SeqCst) > now {
            return;
        }
        self.settles_at.store(NEVER, Ordering::SeqCst);
        if let Some(thread) = run.scheduled {
            priority::settle(thread);
            run.is_settled = true;
        }
    }

    /// Orders the guest to stop if its deadline has passed at `now`.
    fn strike(&self, now: u64) {
        // A guest's thread may have lost the processor while it holds the lock. The watchdog, whom
        // all threads need, does not wait for it, but comes again.
        #[cfg_attr(not(test), expect(unused_mut, reason = "tests count signals"))]
        let mut run = match self.run.try_lock() {
            Ok(run) => run,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Some(global) = &run.stop_global else {
            return;
        };
        // Looked at again under the lock: the run may have changed meanwhile.
        if self.deadline.load(Ordering::SeqCst) > now {
            return;
        }
        self.stop.store(true, Ordering::Release);
        // SAFETY: `stop_global` is set and we hold the lock, so by the promise of `arm` the global
        // is valid.
        unsafe {
            global.0.as_ref().store(STOP, Ordering::Release);
        }
        if let Some(thread) = &run.thread
            && !self.under_way.swap(true, Ordering::AcqRel)
        {
            let is_under_way = thread.send();
            #[cfg(test)]
            {
                run.signals += 1;
            }
            if !is_under_way {
                self.under_way.store(false, Ordering::Release);
            }
        }
    }
}

/// Settles guests that have been there for a while at `now`, but not many at once: it takes system calls. Says when
/// to come again.
fn settle(seats: &[&Seat], now: u64) -> u64 {
    let (mut left, mut next) = (SETTLED_AT_A_TIME, NEVER);
    for seat in seats {
        if left > 0 && seat.settles_at.load(Ordering::SeqCst) <= now {
            seat.settle(now);
            left -= 1;
        }
        next = next.min(seat.settles_at.load(Ordering::SeqCst));
    }
    // Some may be left, also of those whose locks were taken.
    next.max(now.saturating_add(REPEAT.as_nanos() as u64))
}

fn watchdog() -> &'static Watchdog {
    WATCHDOG.get_or_init(|| Watchdog {
        epoch: Instant::now(),
        seats: Mutex::default(),
        changed: Condvar::new(),
        wakes_at: AtomicU64::new(NEVER),
    })
}

impl Watchdog {
    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seat(&self) -> &'static Seat {
        let mut seats = self.lock();
        if let Some(seat) = seats.free.pop() {
            return seat;
        }
        let seat: &'static Seat = Box::leak(Box::new(Seat::new()));
        seats.all.push(seat);
        seat
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(NEVER)
    }

    /// Makes sure that the watchdog wakes at `deadline` or before.
    fn wake_by(&self, deadline: u64) {
        // The watchdog publishes `wakes_at` before it looks at the deadlines, and again after; the
        // caller has published its deadline. In the one order of these, one sees the other's.
        if deadline < self.wakes_at.load(Ordering::SeqCst) {
            let _seats = self.lock();
            self.changed.notify_one();
        }
    }

    fn watch(&self) {
        let mut seats = self.lock();
        let mut ticked_before = 0;
        loop {
            self.wakes_at.store(NEVER, Ordering::SeqCst);
            let now = self.nanoseconds(Instant::now());
            let mut next = NEVER;
            let mut ticked = 0_u64;
            for seat in &seats.all {
                ticked = ticked.wrapping_add(seat.ticked.load(Ordering::Relaxed));
                let deadline = seat.deadline.load(Ordering::SeqCst);
                if deadline > now {
                    next = next.min(deadline);
                } else {
                    seat.strike(now);
                    next = next.min(now.saturating_add(REPEAT.as_nanos() as u64));
                }
            }
            next = next.min(settle(&seats.all, now));
            if ticked != ticked_before {
                // There will be more of them, and they count on a tick.
                next = next.min(now.saturating_add(TICK.as_nanos() as u64));
                ticked_before = ticked;
            }
            self.wakes_at.store(next, Ordering::SeqCst);
            let sleep = Duration::from_nanos(next.saturating_sub(self.nanoseconds(Instant::now())));
            seats = if next == NEVER {
                self.changed
                    .wait(seats)
                    .unwrap_or_else(PoisonError::into_inner)
            } else {
                self.changed
                    .wait_timeout(seats, sleep)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            };
        }
    }
}

#[cfg(test)]
mod tests;
