//! While the database can't be asked, one request a second finds out whether it is back; the others
//! don't wait for it.

use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, Utc};

/// Between two tries to ask a database that did not answer.
const RETRY_MS: i64 = 1_000;

/// `retry_at_ms` while all is well.
const NONE: i64 = i64::MIN;

pub(super) struct Outage {
    /// When to ask again.
    retry_at_ms: AtomicI64,
}

impl Outage {
    pub(super) fn new() -> Outage {
        Outage {
            retry_at_ms: AtomicI64::new(NONE),
        }
    }

    /// Whether the database did not answer just now, so that asking again must wait.
    pub(super) fn holds(&self, now: DateTime<Utc>) -> bool {
        is_ahead(
            self.retry_at_ms.load(Ordering::Relaxed),
            now.timestamp_millis(),
        )
    }

    /// Whether the caller may ask the database. In an outage one caller per retry may.
    pub(super) fn may_ask(&self, now: DateTime<Utc>) -> bool {
        let now_ms = now.timestamp_millis();
        let retry_at_ms = self.retry_at_ms.load(Ordering::Relaxed);
        if retry_at_ms == NONE {
            return true;
        }
        let next_ms = now_ms.saturating_add(RETRY_MS);
        !is_ahead(retry_at_ms, now_ms)
            && self
                .retry_at_ms
                .compare_exchange(retry_at_ms, next_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// The database did not answer. Logged at the outage's start only.
    pub(super) fn noted(&self, now: DateTime<Utc>, error: &dyn std::fmt::Display) {
        let next_ms = now.timestamp_millis().saturating_add(RETRY_MS);
        // The latest counts: a slower question may end after a later one.
        if self.retry_at_ms.fetch_max(next_ms, Ordering::Relaxed) == NONE {
            tracing::warn!(%error, "keys can't be looked up; those in memory go on working");
        }
    }

    /// The database answered.
    pub(super) fn over(&self) {
        let was = self.retry_at_ms.load(Ordering::Relaxed);
        if was != NONE && self.retry_at_ms.swap(NONE, Ordering::Relaxed) != NONE {
            tracing::info!("keys can be looked up again");
        }
    }
}

/// Whether a retry is still ahead. One that is further off than any can be means that the clock was
/// set back.
fn is_ahead(retry_at_ms: i64, now_ms: i64) -> bool {
    retry_at_ms > now_ms && retry_at_ms.saturating_sub(now_ms) <= RETRY_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_700_000_000_000 + ms).unwrap()
    }

    #[test]
    fn one_caller_per_retry_asks() {
        let outage = Outage::new();
        assert!(!outage.holds(at(0)));
        assert!(outage.may_ask(at(0)) && outage.may_ask(at(0)));
        outage.noted(at(0), &"gone");
        assert!(outage.holds(at(0)) && outage.holds(at(999)));
        assert!(!outage.may_ask(at(999)));
        assert!(!outage.holds(at(1_000)));
        assert!(outage.may_ask(at(1_000)));
        assert!(!outage.may_ask(at(1_000)) && outage.holds(at(1_001)));
        outage.over();
        assert!(!outage.holds(at(1_001)) && outage.may_ask(at(1_001)));
    }

    #[test]
    fn a_clock_set_back_does_not_prolong_it() {
        let outage = Outage::new();
        outage.noted(at(0), &"gone");
        assert!(!outage.holds(at(-10_000)));
        assert!(outage.may_ask(at(-10_000)));
    }
}
