//! What every store must do, whatever it is made of.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use uuid::Uuid;

use super::*;

/// Runs the whole contract; `make` gives an empty store with room for at least 1,000 subjects.
pub(crate) fn holds<S: LimitStore>(make: impl Fn() -> S) {
    admits_the_burst_and_then_the_rate(&make());
    takes_from_both_windows_or_neither(&make());
    peeking_takes_nothing(&make());
    keeps_subjects_apart(&make());
    a_changed_limit_keeps_what_was_used(&make());
    concurrent_takers_never_overdraw(&make());
}

fn key(id: u128) -> Subject {
    Subject::User(Uuid::from_u128(id), crate::account::Tier::Free)
}

fn per_minute(limit: u32) -> Rate {
    Rate {
        per_minute: Some(limit),
        per_day: None,
    }
}

fn admits_the_burst_and_then_the_rate(store: &impl LimitStore) {
    let start = Instant::now();
    let rate = per_minute(10);
    for left in (0..10).rev() {
        let decision = store.take(&key(1), rate, start);
        let window = decision.window.unwrap();
        assert!(decision.allowed);
        assert_eq!(
            (window.seconds, window.limit, window.remaining),
            (60, 10, left)
        );
        assert_eq!(window.reset_after, Duration::from_secs(6) * (10 - left));
    }
    let refused = store.take(&key(1), rate, start);
    assert!(!refused.allowed);
    assert_eq!(refused.window.unwrap().retry_after, Duration::from_secs(6));
    assert!(
        !store
            .take(&key(1), rate, start + Duration::from_nanos(5_999_999_999))
            .allowed
    );
    assert!(
        store
            .take(&key(1), rate, start + Duration::from_secs(6))
            .allowed
    );
    assert!(
        !store
            .take(&key(1), rate, start + Duration::from_secs(6))
            .allowed
    );
}

fn takes_from_both_windows_or_neither(store: &impl LimitStore) {
    let now = Instant::now();
    let rate = Rate {
        per_minute: Some(2),
        per_day: Some(3),
    };
    for _ in 0..20 {
        store.take(&key(1), rate, now);
    }
    let later = now + Duration::from_secs(60);
    // Two were admitted; the day has one left, and the refusals cost it nothing.
    assert!(store.take(&key(1), rate, later).allowed);
    let refused = store.take(&key(1), rate, later);
    assert!(!refused.allowed);
    assert_eq!(refused.window.unwrap().seconds, 86_400);
}

fn peeking_takes_nothing(store: &impl LimitStore) {
    let now = Instant::now();
    for _ in 0..10 {
        let decision = store.peek(&key(1), per_minute(1), now);
        assert!(decision.allowed);
        assert_eq!(decision.window.unwrap().remaining, 1);
    }
    assert!(store.take(&key(1), per_minute(1), now).allowed);
    assert!(!store.peek(&key(1), per_minute(1), now).allowed);
}

fn keeps_subjects_apart(store: &impl LimitStore) {
    let now = Instant::now();
    for id in 0..500 {
        assert!(store.take(&key(id), per_minute(1), now).allowed);
    }
    for id in 0..500 {
        assert!(!store.take(&key(id), per_minute(1), now).allowed);
    }
}

fn a_changed_limit_keeps_what_was_used(store: &impl LimitStore) {
    let now = Instant::now();
    for _ in 0..10 {
        assert!(store.take(&key(1), per_minute(10), now).allowed);
    }
    let raised = store.take(&key(1), per_minute(100), now);
    assert!(raised.allowed);
    assert_eq!(raised.window.unwrap().remaining, 89);
    let lowered = store.take(&key(1), per_minute(5), now);
    assert!(!lowered.allowed);
    assert_eq!(lowered.window.unwrap().retry_after, Duration::from_secs(12));
}

fn concurrent_takers_never_overdraw(store: &impl LimitStore) {
    let now = Instant::now();
    let admitted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..500 {
                    if store.take(&key(1), per_minute(1000), now).allowed {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 1000);
}
