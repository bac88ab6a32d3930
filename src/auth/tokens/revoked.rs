//! Families that were revoked of late: their access tokens end before their time.
//!
//! A revocation by this gateway counts at once, one by another when the database is asked the next
//! time. Only families whose access tokens may still be alive are kept.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::ACCESS_TTL_MAX;

/// How far another gateway's clock may be behind, and how late its transaction may commit: so much
/// of the past is asked for again each time.
const OVERLAP: TimeDelta = TimeDelta::seconds(60);

#[derive(Default)]
pub(super) struct Revoked(RwLock<State>);

#[derive(Default)]
struct State {
    /// With when they were revoked.
    families: HashMap<Uuid, DateTime<Utc>>,
    /// When the database was last asked.
    asked_at: Option<DateTime<Utc>>,
}

impl Revoked {
    pub(super) fn contains(&self, family_id: Uuid) -> bool {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state.families.contains_key(&family_id)
    }

    pub(super) fn note(&self, family_id: Uuid, now: DateTime<Utc>) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        state.families.insert(family_id, now);
    }

    /// From when on to ask the database.
    pub(super) fn since(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let oldest = now - kept();
        // The clock may have been set back since.
        let asked_at = state.asked_at.map_or(oldest, |at| at.min(now) - OVERLAP);
        asked_at.max(oldest)
    }

    /// Takes in what the database said when it was asked at `now`, and lets go of what is too old to
    /// matter.
    pub(super) fn learn(&self, found: Vec<(Uuid, DateTime<Utc>)>, now: DateTime<Utc>) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        state.families.extend(found);
        state.asked_at = Some(now);
        let oldest = now - kept();
        state.families.retain(|_, at| *at >= oldest);
    }
}

/// How long a family is kept.
fn kept() -> TimeDelta {
    TimeDelta::from_std(ACCESS_TTL_MAX).unwrap_or(TimeDelta::MAX) + OVERLAP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_900_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn families_are_kept_as_long_as_their_tokens_may_live() {
        let revoked = Revoked::default();
        let (ours, theirs) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(revoked.since(at(0)), at(-3_660));
        revoked.note(ours, at(0));
        revoked.learn(vec![(theirs, at(-5))], at(1));
        assert!(revoked.contains(ours) && revoked.contains(theirs));
        assert_eq!(revoked.since(at(2)), at(-59), "a minute is asked for again");
        assert_eq!(revoked.since(at(-10)), at(-70), "the clock was set back");
        revoked.learn(Vec::new(), at(3_657));
        assert!(revoked.contains(ours) && !revoked.contains(theirs));
    }
}
