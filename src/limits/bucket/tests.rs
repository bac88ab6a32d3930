use proptest::prelude::*;

use super::*;

const SECOND: u64 = NANOS_PER_SECOND;

/// The slow model: it remembers every admission and works the whole history out again each time,
/// as tokens left in fractions of `1 / window`, the other way round from the real bucket.
struct Model {
    quota: Quota,
    admitted_ns: Vec<u64>,
}

impl Model {
    fn new(quota: Quota) -> Model {
        Model {
            quota,
            admitted_ns: Vec::new(),
        }
    }

    fn tokens_at(&self, now_ns: u64) -> u128 {
        let (limit, window) = (
            u128::from(self.quota.limit),
            u128::from(self.quota.window_ns()),
        );
        let full = limit * window;
        let (mut tokens, mut at) = (full, 0u64);
        for &admission in &self.admitted_ns {
            tokens = full.min(tokens + u128::from(admission - at) * limit) - window;
            at = admission;
        }
        full.min(tokens + u128::from(now_ns - at) * limit)
    }

    fn take(&mut self, now_ns: u64) -> bool {
        let admitted = self.tokens_at(now_ns) >= u128::from(self.quota.window_ns());
        if admitted {
            self.admitted_ns.push(now_ns);
        }
        admitted
    }

    /// The defining bound, over every pair of admissions.
    fn assert_never_too_many(&self) {
        for (first, &start) in self.admitted_ns.iter().enumerate() {
            for (last, &end) in self.admitted_ns.iter().enumerate().skip(first) {
                let count = (last - first + 1) as u128;
                let refilled = u128::from(end - start) * u128::from(self.quota.limit)
                    / u128::from(self.quota.window_ns());
                assert!(
                    count <= u128::from(self.quota.limit) + refilled,
                    "{count} admitted in {} ns under {:?}",
                    end - start,
                    self.quota
                );
            }
        }
    }
}

fn quotas() -> impl Strategy<Value = Quota> {
    let limits = prop_oneof![
        0u32..4,
        1u32..60,
        Just(7u32),
        Just(500),
        Just(50_000),
        Just(u32::MAX)
    ];
    (limits, prop::bool::ANY).prop_map(|(limit, day)| {
        if day {
            Quota::per_day(limit)
        } else {
            Quota::per_minute(limit)
        }
    })
}

/// Steps between calls: bursts, single nanoseconds, odd fractions, long pauses.
fn steps() -> impl Strategy<Value = Vec<u64>> {
    let step = prop_oneof![
        4 => Just(0u64),
        2 => 1u64..10,
        4 => 1u64..(20 * SECOND),
        1 => 1u64..(100_000 * SECOND),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn agrees_with_the_model(quota in quotas(), steps in steps()) {
        let (mut bucket, mut model) = (Bucket::default(), Model::new(quota));
        let mut now = 0;
        for step in steps {
            now += step;
            prop_assert_eq!(bucket.take(quota, now), model.take(now));
            let left = model.tokens_at(now) / u128::from(quota.window_ns());
            prop_assert_eq!(u128::from(bucket.read(quota, now).remaining), left);
        }
        model.assert_never_too_many();
    }

    #[test]
    fn waiting_times_are_exact_to_the_nanosecond(quota in quotas(), steps in steps()) {
        prop_assume!(quota.limit() > 0);
        let mut bucket = Bucket::default();
        let mut now = 0;
        for step in steps {
            now += step;
            bucket.take(quota, now);
            let reading = bucket.read(quota, now);
            prop_assert!(reading.reset_after <= Duration::from_nanos(quota.window_ns()));
            prop_assert_eq!(reading.remaining > 0, reading.retry_after.is_zero());
            prop_assert_eq!(bucket.clone().take(quota, now), reading.retry_after.is_zero());
            let retry = now + reading.retry_after.as_nanos() as u64;
            prop_assert!(bucket.clone().take(quota, retry));
            if retry > now {
                prop_assert!(!bucket.clone().take(quota, retry - 1));
            }
            let full = now + reading.reset_after.as_nanos() as u64;
            prop_assert_eq!(bucket.read(quota, full).reset_after, Duration::ZERO);
            prop_assert_eq!(bucket.read(quota, full).remaining, quota.limit());
            if full > now {
                prop_assert!(bucket.read(quota, full - 1).reset_after == Duration::from_nanos(1));
            }
        }
    }

    #[test]
    fn a_steady_client_at_the_rate_is_never_refused(
        quota in quotas(),
        taken_before in 0u32..50,
        jitter in prop::collection::vec(0u64..1_000, 1..300),
    ) {
        prop_assume!(quota.limit() > 0);
        let mut bucket = Bucket::default();
        for _ in 0..taken_before.min(quota.limit() - 1) {
            prop_assert!(bucket.take(quota, 0));
        }
        let interval = quota.window_ns().div_ceil(u64::from(quota.limit()));
        let mut now = 0;
        for late in jitter {
            now += interval + late;
            prop_assert!(bucket.take(quota, now));
        }
    }

    #[test]
    fn a_clock_that_jitters_back_never_wins_tokens(
        quota in quotas(),
        steps in prop::collection::vec((0u64..(2 * SECOND), 0u64..SECOND), 1..120),
    ) {
        // A time that lies a little back counts as the latest one seen.
        let (mut bucket, mut model) = (Bucket::default(), Model::new(quota));
        let (mut clock, mut latest) = (10 * SECOND, 0);
        for (forward, back) in steps {
            clock += forward;
            let seen = clock - back;
            latest = latest.max(seen);
            prop_assert_eq!(bucket.take(quota, seen), model.take(latest));
        }
        model.assert_never_too_many();
    }

    #[test]
    fn no_sequence_of_limits_and_times_panics_or_overdraws(
        calls in prop::collection::vec((quotas(), any::<u64>()), 1..60),
    ) {
        let mut bucket = Bucket::default();
        for (quota, now) in calls {
            let before = bucket.read(quota, now);
            let taken = bucket.take(quota, now);
            let after = bucket.read(quota, now);
            prop_assert_eq!(taken, before.remaining > 0);
            prop_assert_eq!(after.remaining, before.remaining - u32::from(taken));
            prop_assert!(after.retry_after <= Duration::from_nanos(2 * quota.window_ns()));
        }
    }
}

#[test]
fn ten_per_minute_reads_as_documented() {
    let quota = Quota::per_minute(10);
    let mut bucket = Bucket::default();
    assert!(bucket.take(quota, 5 * SECOND));
    let reading = bucket.read(quota, 5 * SECOND);
    assert_eq!(reading.remaining, 9);
    assert_eq!(reading.reset_after, Duration::from_secs(6));
    assert_eq!(reading.retry_after, Duration::ZERO);
    for _ in 0..9 {
        assert!(bucket.take(quota, 5 * SECOND));
    }
    assert!(!bucket.take(quota, 5 * SECOND));
    let reading = bucket.read(quota, 5 * SECOND);
    assert_eq!(
        (reading.remaining, reading.retry_after),
        (0, Duration::from_secs(6))
    );
    assert_eq!(reading.reset_after, Duration::from_secs(60));
}

#[test]
fn a_limit_that_does_not_divide_the_window_does_not_drift() {
    // 7 per minute is one every 8.571428571428… s. Touching the bucket each nanosecond-odd step
    // must not lose the fractions: after exactly one window all 7 are back.
    let quota = Quota::per_minute(7);
    let mut bucket = Bucket::default();
    for _ in 0..7 {
        assert!(bucket.take(quota, 0));
    }
    let mut admitted = 0;
    let mut now = 0;
    while now < 60 * SECOND {
        now = (now + 999_983).min(60 * SECOND);
        admitted += u32::from(bucket.take(quota, now));
    }
    assert_eq!(admitted, 7);
    assert_eq!(bucket.read(quota, now).remaining, 0);
}

#[test]
fn a_limit_of_zero_admits_nothing() {
    let quota = Quota::per_minute(0);
    let mut bucket = Bucket::default();
    for now in [0, SECOND, u64::MAX] {
        assert!(!bucket.take(quota, now));
        let reading = bucket.read(quota, now);
        assert_eq!(reading.remaining, 0);
        assert_eq!(reading.retry_after, Duration::from_secs(60));
    }
}

#[test]
fn a_higher_limit_gives_the_difference_at_once_and_a_lower_one_caps_the_wait() {
    let (low, high) = (Quota::per_minute(10), Quota::per_minute(100));
    let mut bucket = Bucket::default();
    for _ in 0..10 {
        assert!(bucket.take(low, 0));
    }
    assert_eq!(bucket.read(high, 0).remaining, 90);
    for _ in 0..90 {
        assert!(bucket.take(high, 0));
    }
    // 100 tokens of debt under a limit of 10 would be ten minutes; it is one window at most.
    let reading = bucket.read(low, 0);
    assert_eq!(reading.reset_after, Duration::from_secs(60));
    assert_eq!(reading.retry_after, Duration::from_secs(6));
}

#[test]
fn a_clock_set_far_back_keeps_the_debt_and_goes_on() {
    let quota = Quota::per_minute(2);
    let mut bucket = Bucket::default();
    let far = 1_000_000 * SECOND;
    assert!(bucket.take(quota, far) && bucket.take(quota, far) && !bucket.take(quota, far));
    assert!(!bucket.take(quota, 0));
    assert!(bucket.read(quota, 0).retry_after <= Duration::from_secs(60));
    assert!(!bucket.take(quota, 30 * SECOND - 1));
    assert!(bucket.take(quota, 30 * SECOND));
}
