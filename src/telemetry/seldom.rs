//! Failures that come again and again, such as all that an outage brings: told once in a while, with how
//! many there were.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of the log about the same failure.
pub const TOLD_EVERY: Duration = Duration::from_secs(10);

/// One kind of failure.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    told_at: Option<Instant>,
    /// That it failed was the last that was told.
    is_told: bool,
    /// Since it was last told.
    failures: u64,
}

impl Seldom {
    /// It has failed so many times more. Where it is time to tell that, returns how many failures there
    /// were since it was last told, these included.
    pub fn failed(&self, times: u64, now: Instant) -> Option<u64> {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(times);
        let is_recent = |at: Instant| now.saturating_duration_since(at) < TOLD_EVERY;
        if state.told_at.is_some_and(is_recent) {
            return None;
        }
        state.told_at = Some(now);
        state.is_told = true;
        Some(std::mem::take(&mut state.failures))
    }

    /// It went well. Says whether that is news. What fails and goes well in turn is not told more often for that.
    pub fn went_well(&self) -> bool {
        std::mem::take(&mut self.state().is_told)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_at_once_and_then_seldom() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert!(!seldom.went_well());
        assert_eq!(seldom.failed(2, now), Some(2));
        for tenth in 1..100 {
            assert_eq!(seldom.failed(3, now + second * tenth / 10), None);
        }
        assert_eq!(seldom.failed(1, now + TOLD_EVERY), Some(298));
        assert_eq!(seldom.failed(1, now + TOLD_EVERY), None);
        assert!(seldom.went_well() && !seldom.went_well());
        assert_eq!(seldom.failed(1, now + 2 * TOLD_EVERY), Some(2));
    }

    #[test]
    fn what_fails_and_goes_well_in_turn_is_told_as_seldom() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.failed(1, now), Some(1));
        assert!(seldom.went_well());
        let quarter = Duration::from_millis(250);
        for round in 1..40 {
            assert_eq!(seldom.failed(1, now + quarter * round), None);
            assert!(!seldom.went_well(), "nobody was told that it failed again");
        }
        assert_eq!(seldom.failed(1, now + TOLD_EVERY), Some(40));
        assert!(seldom.went_well() && !seldom.went_well());
    }
}
