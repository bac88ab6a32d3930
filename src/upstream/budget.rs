//! Retries must not make an outage worse: they are a share of the requests, and a few besides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may be saved up, so that a burst of failures after a quiet time is still retried.
const SAVED_SECONDS: u32 = 10;
const SAVED_REQUESTS: u32 = 1000;

pub struct Budget {
    percent: u32,
    per_second: u32,
    /// Requests so far; the only thing an ordinary request touches.
    requests: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// In hundredths of a retry.
    left: u64,
    requests_seen: u64,
    at: Instant,
}

impl Budget {
    pub fn new(percent: u32, per_second: u32, now: Instant) -> Budget {
        Budget {
            percent,
            per_second,
            requests: AtomicU64::new(0),
            state: Mutex::new(State {
                left: u64::from(per_second) * 100,
                requests_seen: 0,
                at: now,
            }),
        }
    }

    /// Counts a request.
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a retry, if there is one left.
    pub fn take(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = self.requests.load(Ordering::Relaxed);
        let new = requests.saturating_sub(state.requests_seen);
        let elapsed = now
            .saturating_duration_since(state.at)
            .min(Duration::from_secs(u64::from(SAVED_SECONDS)));
        let (percent, per_second) = (u64::from(self.percent), u64::from(self.per_second));
        let most =
            per_second * 100 * u64::from(SAVED_SECONDS) + percent * u64::from(SAVED_REQUESTS);
        // Hundredths of a retry per millisecond would round to nothing; so the time is only taken
        // over once it has given something.
        let by_time = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX) * per_second / 10;
        if by_time > 0 || per_second == 0 {
            state.at = now;
        }
        state.requests_seen = requests;
        state.left = state
            .left
            .saturating_add(new.saturating_mul(percent))
            .saturating_add(by_time)
            .min(most);
        if state.left < 100 {
            return false;
        }
        state.left -= 100;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &Budget, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| budget.take(now)).count()
    }

    #[test]
    fn retries_are_a_share_of_the_requests() {
        let now = Instant::now();
        let budget = Budget::new(20, 0, now);
        assert_eq!(taken(&budget, now, 10), 0);
        for _ in 0..100 {
            budget.request();
        }
        assert_eq!(taken(&budget, now, 100), 20);
        for _ in 0..5 {
            budget.request();
        }
        assert_eq!(taken(&budget, now, 100), 1);
    }

    #[test]
    fn a_few_are_always_there() {
        let now = Instant::now();
        let budget = Budget::new(0, 5, now);
        assert_eq!(taken(&budget, now, 100), 5);
        assert_eq!(taken(&budget, now + Duration::from_secs(1), 100), 5);
        // Small steps of time add up.
        let mut at = now + Duration::from_secs(1);
        let mut all = 0;
        for _ in 0..1000 {
            at += Duration::from_millis(1);
            all += taken(&budget, at, 1);
        }
        assert_eq!(all, 5);
        assert_eq!(taken(&budget, now + Duration::from_secs(3600), 1000), 50);
    }

    #[test]
    fn an_outage_gets_its_share_however_large_the_load() {
        let now = Instant::now();
        let budget = Budget::new(20, 10, now);
        let retried = (0..100_000)
            .filter(|_| {
                budget.request();
                budget.take(now)
            })
            .count();
        assert_eq!(retried, 20_010);
    }
}
