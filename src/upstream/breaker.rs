//! Leaves a server out that fails, and lets it in again by a single request.
//!
//! Closed, open and half-open are one number: when the server may next be tried, zero while it is in.
//! Reading it is all that an ordinary request costs.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Ejection;

/// Where time begins. Earlier than any time that is asked about, so that zero can mean "in".
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    Instant::now()
        .checked_sub(Duration::from_secs(1))
        .unwrap_or_else(Instant::now)
});

/// How a request got through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Ordinary,
    /// The one request that finds out whether the server is back, and until when it has for that.
    Probe(ProbeTime),
}

/// Which probe it is: none has the same time as the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeTime(u64);

pub struct Breaker {
    settings: Ejection,
    /// Failures in a row while the server is in.
    failures: AtomicU32,
    /// Milliseconds since [`EPOCH`] until the next try; zero while the server is in.
    out_until: AtomicU64,
    streak: Mutex<Streak>,
}

/// Ejections in a row.
#[derive(Default)]
struct Streak {
    count: u32,
    /// When the latest of them began.
    latest: Option<Instant>,
}

impl Breaker {
    pub fn new(settings: Ejection) -> Breaker {
        LazyLock::force(&EPOCH);
        Breaker {
            settings,
            failures: AtomicU32::new(0),
            out_until: AtomicU64::new(0),
            streak: Mutex::default(),
        }
    }

    /// Whether the server is left out, other than for a probe that is due.
    pub fn is_out(&self, now: Instant) -> bool {
        self.out_until.load(Ordering::Relaxed) > millis(now)
    }

    /// Whether the server is out, be a probe due or not.
    pub fn is_ejected(&self) -> bool {
        self.out_until.load(Ordering::Relaxed) != 0
    }

    /// Time until the next try; zero where one is due or the server is in.
    pub fn wait(&self, now: Instant) -> Duration {
        let until = self.out_until.load(Ordering::Relaxed);
        Duration::from_millis(until.saturating_sub(millis(now)))
    }

    /// Lets a request through, or not. A server that is out is given one probe at a time, and should
    /// one take longer than the first ejection does, another.
    pub fn enter(&self, now: Instant) -> Option<Pass> {
        let until = self.out_until.load(Ordering::Relaxed);
        if until == 0 {
            return Some(Pass::Ordinary);
        }
        let now = millis(now);
        if until > now {
            return None;
        }
        let lease = now.saturating_add(whole_millis(self.settings.time).max(1));
        let swap =
            self.out_until
                .compare_exchange(until, lease, Ordering::Relaxed, Ordering::Relaxed);
        swap.is_ok().then_some(Pass::Probe(ProbeTime(lease)))
    }

    /// A probe ended without a verdict, because its client went away or was refused: the next may try
    /// at once.
    pub fn undecided(&self, probe: ProbeTime, now: Instant) {
        // Where another verdict came meanwhile, that holds.
        let _ = self.out_until.compare_exchange(
            probe.0,
            millis(now).max(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// The server answered. Says whether that brought it back.
    pub fn succeeded(&self, pass: Pass) -> bool {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        match pass {
            // A late answer to a request from before the ejection proves nothing about now.
            Pass::Ordinary => false,
            Pass::Probe(ProbeTime(until)) => self
                .out_until
                .compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok(),
        }
    }

    /// The server failed. Says whether that ejected it. `allowed` is whether one more of the group
    /// may be out.
    pub fn failed(&self, pass: Pass, now: Instant, allowed: impl FnOnce() -> bool) -> bool {
        match pass {
            Pass::Probe(ProbeTime(until)) => {
                if self.out_until.load(Ordering::Relaxed) != until {
                    return false;
                }
            }
            Pass::Ordinary => {
                if self.is_ejected() {
                    return false;
                }
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                if failures < self.settings.failures || !allowed() {
                    return false;
                }
            }
        }
        let mut streak = self.streak.lock().unwrap_or_else(PoisonError::into_inner);
        if pass == Pass::Ordinary && self.is_ejected() {
            // Another request was faster.
            return false;
        }
        // Ejections that are further apart than the longest one have nothing to do with each other.
        let is_new = streak.latest.is_none_or(|latest| {
            now.saturating_duration_since(latest) > 2 * self.settings.time_max
        });
        streak.count = if is_new {
            1
        } else {
            streak.count.saturating_add(1)
        };
        streak.latest = Some(now);
        let doublings = (streak.count - 1).min(30);
        let time = self
            .settings
            .time
            .saturating_mul(1 << doublings)
            .min(self.settings.time_max);
        let until = millis(now).saturating_add(whole_millis(time));
        self.out_until.store(until, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        true
    }
}

fn millis(at: Instant) -> u64 {
    whole_millis(at.saturating_duration_since(*EPOCH))
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(Ejection {
            failures: 3,
            statuses: Vec::new(),
            time: Duration::from_secs(1),
            time_max: Duration::from_secs(4),
            percent_max: 50,
        })
    }

    fn probe(breaker: &Breaker, now: Instant) -> ProbeTime {
        match breaker.enter(now) {
            Some(Pass::Probe(probe)) => probe,
            other => panic!("{other:?}"),
        }
    }

    fn fail(breaker: &Breaker, now: Instant, times: u32) -> bool {
        (0..times).fold(false, |_, _| breaker.failed(Pass::Ordinary, now, || true))
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_begins_anew() {
        let (breaker, now) = (breaker(), Instant::now());
        assert!(!fail(&breaker, now, 2));
        assert!(!breaker.succeeded(Pass::Ordinary));
        assert!(!fail(&breaker, now, 2));
        assert_eq!(breaker.enter(now), Some(Pass::Ordinary));
        assert!(fail(&breaker, now, 1));
        assert!(breaker.is_out(now));
        assert_eq!(breaker.enter(now), None);
        assert_eq!(breaker.wait(now), Duration::from_secs(1));
    }

    #[test]
    fn one_probe_at_a_time_decides() {
        let (breaker, start) = (breaker(), Instant::now());
        fail(&breaker, start, 3);
        let later = start + Duration::from_secs(1);
        let probe = probe(&breaker, later);
        assert_eq!(breaker.enter(later), None, "only one");
        // A late answer from before says nothing.
        assert!(!breaker.succeeded(Pass::Ordinary));
        assert_eq!(breaker.enter(later), None);
        assert!(breaker.succeeded(Pass::Probe(probe)));
        assert_eq!(breaker.enter(later), Some(Pass::Ordinary));
        // It has had its say.
        assert!(!breaker.succeeded(Pass::Probe(probe)));
        assert!(!breaker.failed(Pass::Probe(probe), later, || true));
    }

    #[test]
    fn a_probe_without_a_verdict_is_followed_by_another() {
        let (breaker, start) = (breaker(), Instant::now());
        fail(&breaker, start, 3);
        let second = |s| start + Duration::from_secs(s);
        let slow = probe(&breaker, second(1));
        assert_eq!(breaker.enter(second(1)), None);
        let given_up = probe(&breaker, second(2));
        // Late, it lets nobody in.
        breaker.undecided(slow, second(2));
        assert!(!breaker.succeeded(Pass::Probe(slow)));
        assert_eq!(breaker.enter(second(2)), None);
        breaker.undecided(given_up, second(2));
        probe(&breaker, second(2));
    }

    #[test]
    fn each_ejection_in_a_row_is_longer_up_to_the_most() {
        let (breaker, mut now) = (breaker(), Instant::now());
        fail(&breaker, now, 3);
        for expected in [1, 2, 4, 4, 4] {
            assert_eq!(breaker.wait(now), Duration::from_secs(expected));
            now += Duration::from_secs(expected);
            let probe = probe(&breaker, now);
            assert!(breaker.failed(Pass::Probe(probe), now, || panic!("it is out already")));
        }
        // After a long good time it begins with the shortest again.
        now += Duration::from_secs(4);
        let probe = probe(&breaker, now);
        assert!(breaker.succeeded(Pass::Probe(probe)));
        now += Duration::from_secs(9);
        fail(&breaker, now, 3);
        assert_eq!(breaker.wait(now), Duration::from_secs(1));
    }

    #[test]
    fn no_more_are_ejected_than_allowed() {
        let (breaker, now) = (breaker(), Instant::now());
        for _ in 0..10 {
            assert!(!breaker.failed(Pass::Ordinary, now, || false));
        }
        assert_eq!(breaker.enter(now), Some(Pass::Ordinary));
        assert!(breaker.failed(Pass::Ordinary, now, || true));
    }

    #[test]
    fn many_threads_eject_once() {
        let (breaker, now) = (breaker(), Instant::now());
        let ejected: usize = std::thread::scope(|scope| {
            let fail = || (0..100).filter(|_| fail(&breaker, now, 1)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(fail)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(ejected, 1);
    }
}
