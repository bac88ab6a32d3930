//! One guest's stop signal: host functions that wait look at it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Tells a guest's host functions that nobody waits for the answer any more.
#[derive(Debug, Default)]
pub struct StopSignal {
    cancelled: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl StopSignal {
    pub fn cancel(&self) {
        // The lock orders the store before a waiter's check, so that no wake-up is missed.
        let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.cancelled.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Blocks until `until`; true when cancelled before or while waiting.
    pub fn sleep_until(&self, until: Instant) -> bool {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.is_cancelled() {
                return true;
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return false;
            };
            let (next, _) = self
                .changed
                .wait_timeout(held, left)
                .unwrap_or_else(PoisonError::into_inner);
            held = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::StopSignal;

    #[test]
    fn sleeping_ends_with_the_time_or_with_the_signal() {
        let stop = Arc::new(StopSignal::default());
        let start = Instant::now();
        assert!(!stop.sleep_until(start));
        assert!(!stop.sleep_until(start + Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20));

        let sleeper = Arc::clone(&stop);
        let thread =
            thread::spawn(move || sleeper.sleep_until(Instant::now() + Duration::from_secs(600)));
        stop.cancel();
        assert!(thread.join().unwrap());
        assert!(stop.is_cancelled() && stop.sleep_until(start + Duration::from_secs(600)));
    }
}
