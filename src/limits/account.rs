//! A subject's two buckets, minute and day, drawn from as one.

use super::bucket::{Bucket, Quota, Reading};
use super::{Decision, Window};

/// What an account is held to: its minute's quota and its day's; `None` is without limit.
pub type Quotas = [Option<Quota>; 2];

/// The buckets of one subject. [`Account::default`] has used nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    minute: Bucket,
    day: Bucket,
    full_at_ns: u64,
}

impl Account {
    /// An account with these buckets.
    pub fn of(minute: Bucket, day: Bucket) -> Account {
        Account {
            minute,
            day,
            full_at_ns: 0,
        }
    }

    /// Takes a token from both windows, or from neither.
    pub fn take(&mut self, [minute, day]: Quotas, now_ns: u64) -> Decision {
        // Both are settled and asked before either is charged: a refusal by one costs the other
        // nothing.
        let mut allowed = true;
        for (bucket, quota) in [(&mut self.minute, minute), (&mut self.day, day)] {
            if let Some(quota) = quota {
                bucket.settle(quota, now_ns);
                allowed &= bucket.has_token(quota);
            }
        }
        if allowed {
            for (bucket, quota) in [(&mut self.minute, minute), (&mut self.day, day)] {
                if let Some(quota) = quota {
                    bucket.take(quota, now_ns);
                }
            }
        }
        let windows = self.windows([minute, day], now_ns);
        self.full_at_ns = full_at_ns(&windows, now_ns);
        decision(allowed, windows)
    }

    /// Takes so many thousandths of a token from both windows, whether or not they are there.
    pub fn charge(&mut self, [minute, day]: Quotas, thousandths: u64, now_ns: u64) {
        for (bucket, quota) in [(&mut self.minute, minute), (&mut self.day, day)] {
            if let Some(quota) = quota {
                bucket.charge(quota, thousandths, now_ns);
            }
        }
        self.full_at_ns = full_at_ns(&self.windows([minute, day], now_ns), now_ns);
    }

    /// What [`Account::take`] would answer, with what is left before it. Takes nothing.
    pub fn peek(&self, quotas: Quotas, now_ns: u64) -> Decision {
        let windows = self.windows(quotas, now_ns);
        let allowed = windows.iter().flatten().all(|window| window.remaining > 0);
        decision(allowed, windows)
    }

    /// What is reported of a request that was admitted from `spare` tokens which this account counts
    /// as taken, but which are still there.
    pub fn admitted(&self, quotas: Quotas, spare: u32, now_ns: u64) -> Decision {
        let [minute, day] = quotas;
        let with = |bucket: &Bucket, quota: Option<Quota>| {
            quota.map_or(*bucket, |quota| bucket.with(quota, spare))
        };
        let account = Account::of(with(&self.minute, minute), with(&self.day, day));
        decision(true, account.windows(quotas, now_ns))
    }

    /// What both buckets owe, in their own units.
    pub fn debts(&self, [minute, day]: Quotas, now_ns: u64) -> [u128; 2] {
        let debt = |bucket: &Bucket, quota: Option<Quota>| {
            quota.map_or(0, |quota| bucket.debt(quota, now_ns))
        };
        [debt(&self.minute, minute), debt(&self.day, day)]
    }

    /// When both buckets will be full again, as of the last [`Account::take`], in nanoseconds since
    /// the origin of its clock. From then on forgetting the account loses nothing.
    pub fn full_at_ns(&self) -> u64 {
        self.full_at_ns
    }

    fn windows(&self, [minute, day]: Quotas, now_ns: u64) -> [Option<Window>; 2] {
        [
            minute.map(|quota| Window::new(quota, self.minute.read(quota, now_ns))),
            day.map(|quota| Window::new(quota, self.day.read(quota, now_ns))),
        ]
    }
}

/// Picks the window that binds: refused, the one that refuses for longest; allowed, the one with
/// the least left, and of two equal ones that which takes longer to fill.
fn decision(allowed: bool, windows: [Option<Window>; 2]) -> Decision {
    let windows = windows.into_iter().flatten();
    let window = if allowed {
        windows.min_by_key(Window::room)
    } else {
        windows.max_by_key(|window| window.retry_after)
    };
    Decision { allowed, window }
}

fn full_at_ns(windows: &[Option<Window>; 2], now_ns: u64) -> u64 {
    windows
        .iter()
        .flatten()
        .map(|window| u64::try_from(window.reset_after.as_nanos()).unwrap_or(u64::MAX))
        .max()
        .map_or(now_ns, |after_ns| now_ns.saturating_add(after_ns))
}

impl Window {
    fn new(quota: Quota, reading: Reading) -> Window {
        Window {
            seconds: quota.window_seconds(),
            limit: quota.limit(),
            remaining: reading.remaining,
            reset_after: reading.reset_after,
            retry_after: reading.retry_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(per_minute: impl Into<Option<u32>>, per_day: impl Into<Option<u32>>) -> Quotas {
        [
            per_minute.into().map(Quota::per_minute),
            per_day.into().map(Quota::per_day),
        ]
    }

    #[test]
    fn no_limit_allows_and_reports_no_window() {
        let mut account = Account::default();
        let decision = account.take([None, None], 5);
        assert_eq!(
            decision,
            Decision {
                allowed: true,
                window: None
            }
        );
        assert_eq!(account.full_at_ns(), 5);
    }

    #[test]
    fn a_refusal_by_the_minute_costs_the_day_nothing() {
        let rate = rate(2, 100);
        let mut account = Account::default();
        for _ in 0..50 {
            account.take(rate, 0);
        }
        let day = account.day.read(Quota::per_day(100), 0);
        assert_eq!(day.remaining, 98);
    }

    #[test]
    fn a_refusal_by_the_day_costs_the_minute_nothing() {
        let rate = rate(100, 2);
        let mut account = Account::default();
        for _ in 0..50 {
            account.take(rate, 0);
        }
        assert_eq!(account.minute.read(Quota::per_minute(100), 0).remaining, 98);
    }

    #[test]
    fn the_binding_window_is_reported() {
        let rate = rate(2, 3);
        let mut account = Account::default();
        let first = account.take(rate, 0).window.unwrap();
        assert_eq!((first.seconds, first.limit, first.remaining), (60, 2, 1));
        account.take(rate, 0);
        let by_minute = account.take(rate, 0);
        assert!(!by_minute.allowed);
        assert_eq!(by_minute.window.unwrap().seconds, 60);
        assert_eq!(
            by_minute.window.unwrap().retry_after,
            Duration::from_secs(30)
        );

        assert!(account.take(rate, 60 * SECOND).allowed);
        let by_day = account.take(rate, 60 * SECOND);
        assert!(!by_day.allowed);
        assert_eq!(by_day.window.unwrap().seconds, 86_400);
        assert_eq!(
            by_day.window.unwrap().retry_after,
            Duration::from_secs(86_400 / 3 - 60)
        );
    }

    #[test]
    fn peeking_takes_nothing() {
        let rate = rate(1, 1);
        let mut account = Account::default();
        for _ in 0..5 {
            assert!(account.peek(rate, 0).allowed);
        }
        assert!(account.take(rate, 0).allowed);
        let before = account;
        assert!(!account.peek(rate, 0).allowed);
        assert_eq!(account, before);
    }

    proptest! {
        #[test]
        fn allowed_exactly_when_both_windows_allow(
            minute in prop::option::of(0u32..6),
            day in prop::option::of(0u32..12),
            steps in prop::collection::vec(prop_oneof![Just(0), 0..(60 * SECOND), 0..(9_000 * SECOND)], 1..80),
        ) {
            let rate = rate(minute, day);
            let mut account = Account::default();
            let (mut minute_alone, mut day_alone) = (Bucket::default(), Bucket::default());
            let mut now = 0;
            for step in steps {
                now += step;
                let free = |bucket: &Bucket, quota: Option<Quota>| {
                    quota.is_none_or(|quota| bucket.clone().take(quota, now))
                };
                let (minute, day) = (minute.map(Quota::per_minute), day.map(Quota::per_day));
                let expected = free(&minute_alone, minute) && free(&day_alone, day);
                prop_assert_eq!(account.peek(rate, now).allowed, expected);
                let decision = account.take(rate, now);
                prop_assert_eq!(decision.allowed, expected);
                if expected {
                    minute.map(|quota| minute_alone.take(quota, now));
                    day.map(|quota| day_alone.take(quota, now));
                } else {
                    prop_assert_eq!(decision.window.unwrap().remaining, 0);
                }
                let full = account.peek(rate, account.full_at_ns());
                if let Some(window) = full.window.filter(|window| window.limit > 0) {
                    prop_assert_eq!(window.remaining, window.limit);
                }
            }
        }
    }
}
