//! What is known of keys, in memory, so that a request waits for no database.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use moka::sync::Cache as Moka;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{KeyPrincipal, Role, Scope, Settings};
use crate::store::keys::{Key, KeyForAuth};

/// HMAC-SHA-256 of a key under the salt. Nobody without the salt can choose one, so looking it up
/// in a table by its bytes gives away nothing about the keys in there.
pub(super) type Hash = [u8; 32];

/// Unknown keys kept. They have a table of their own, so that guesses can't push out good keys.
const REFUSED_MAX: u64 = 16_384;

/// Calls of `forget` remembered by name. A load that overlaps with more of them asks again.
const FORGOTTEN_MAX: usize = 1_024;

/// A longer time to live is read as this.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A use is noted this long after the last one of the same key.
const NOTE_EVERY_MS: i64 = 1_000;

/// A key that was valid when it was loaded. Its expiry is checked at each use.
#[derive(Debug)]
pub(super) struct Entry {
    hash: Hash,
    pub(super) principal: Arc<KeyPrincipal>,
    loaded_at: DateTime<Utc>,
    /// The epoch before the database was asked.
    epoch: u64,
    forgotten: AtomicBool,
    noted_at_ms: AtomicI64,
}

/// What the cache says of a key.
#[derive(Debug)]
pub(super) enum Look {
    Fresh(Arc<Entry>),
    /// Older than its time to live: to be used only while the database can't be asked.
    Stale(Arc<Entry>),
    Refused,
    Missing,
}

/// What the database said of a key.
#[derive(Debug, Clone)]
pub(super) enum Loaded {
    Known(Arc<Entry>),
    Refused,
}

pub(super) struct Cache {
    known: Moka<Hash, Arc<Entry>>,
    /// Until when a key is refused unasked.
    refused: Moka<Hash, DateTime<Utc>>,
    index: Mutex<Index>,
    /// What was asked for before this epoch may be out of date.
    doubted_before: AtomicU64,
    ttl: TimeDelta,
    negative_ttl: TimeDelta,
    outage_grace: TimeDelta,
    keys_max: usize,
}

/// What `forget` needs, under one lock with every insertion.
#[derive(Default)]
struct Index {
    by_id: HashMap<Uuid, Weak<Entry>>,
    /// Counts the calls of `forget`.
    epoch: u64,
    /// The last calls, each with its epoch.
    forgotten: VecDeque<(u64, Forgotten)>,
}

/// What a call of `forget` was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forgotten {
    Key(Uuid),
    /// All keys of this user.
    User(Uuid),
}

impl Cache {
    pub(super) fn new(settings: &Settings) -> Cache {
        let ttl = settings.cache_ttl.min(TTL_MAX);
        let outage_grace = settings.outage_grace.min(TTL_MAX);
        let negative_ttl = settings.negative_ttl.min(TTL_MAX);
        Cache {
            // Ages are judged by the caller's time; the tables' own clocks only free memory.
            known: Moka::builder()
                .max_capacity(settings.cache_keys_max)
                .time_to_live(ttl + outage_grace)
                .build(),
            refused: Moka::builder()
                .max_capacity(REFUSED_MAX)
                .time_to_live(negative_ttl)
                .build(),
            index: Mutex::default(),
            doubted_before: AtomicU64::new(0),
            ttl: delta(ttl),
            negative_ttl: delta(negative_ttl),
            outage_grace: delta(outage_grace),
            keys_max: usize::try_from(settings.cache_keys_max).unwrap_or(usize::MAX),
        }
    }

    pub(super) fn look(&self, hash: &Hash, now: DateTime<Utc>) -> Look {
        if let Some(entry) = self.known.get(hash)
            && bool::from(entry.hash.ct_eq(hash))
            && !entry.is_forgotten()
        {
            // The clock may be set back, and a caller may have read it a moment before the one who
            // loaded the entry did: neither makes an entry young for longer than its time to live.
            let age = now.signed_duration_since(entry.loaded_at).abs();
            let doubted = entry.epoch < self.doubted_before.load(Ordering::Acquire);
            if age < self.ttl && !doubted {
                return Look::Fresh(entry);
            }
            if age < self.ttl + self.outage_grace {
                return Look::Stale(entry);
            }
        }
        match self.refused.get(hash) {
            Some(until) if now < until && until.signed_duration_since(now) <= self.negative_ttl => {
                Look::Refused
            }
            Some(_) | None => Look::Missing,
        }
    }

    /// The mark to take before the database is asked; see [`Cache::settle`].
    pub(super) fn epoch(&self) -> u64 {
        self.index().epoch
    }

    /// Takes in what the database said after `epoch` was read. `None` when the key was forgotten
    /// meanwhile: what was read may be from before the change, and must be asked for again.
    pub(super) fn settle(
        &self,
        epoch: u64,
        hash: &Hash,
        found: Option<KeyForAuth>,
        now: DateTime<Utc>,
    ) -> Option<Loaded> {
        let Some(found) = found.filter(|found| is_usable(found, hash)) else {
            let _index = self.index();
            self.known.invalidate(hash);
            self.refused.insert(*hash, now + self.negative_ttl);
            return Some(Loaded::Refused);
        };
        let entry = Arc::new(Entry::new(*hash, &found, epoch, now));
        let mut index = self.index();
        if index.forgotten_since(epoch, &found.key) {
            return None;
        }
        self.refused.invalidate(hash);
        self.known.insert(*hash, Arc::clone(&entry));
        index.by_id.insert(found.key.id, Arc::downgrade(&entry));
        index.prune(self.keys_max);
        Some(Loaded::Known(entry))
    }

    /// Drops what is known of a key, or of all keys of a user, now and in loads that are under way.
    pub(super) fn forget(&self, what: Forgotten) {
        let mut index = self.index();
        index.epoch += 1;
        let epoch = index.epoch;
        index.forgotten.push_back((epoch, what));
        if index.forgotten.len() > FORGOTTEN_MAX {
            index.forgotten.pop_front();
        }
        for entry in index.take(what) {
            entry.forgotten.store(true, Ordering::Release);
            self.known.invalidate(&entry.hash);
        }
    }

    /// Has everything that is known looked up again before it is used, as long as the database can be
    /// asked; while it can't, it serves as ever.
    pub(super) fn doubt(&self) {
        let mut index = self.index();
        index.epoch += 1;
        self.doubted_before.store(index.epoch, Ordering::Release);
        self.refused.invalidate_all();
    }

    /// Whether the key's record is in memory, and nobody has said that it changed.
    pub(super) fn knows(&self, key_id: Uuid) -> bool {
        let index = self.index();
        let entry = index.by_id.get(&key_id).and_then(Weak::upgrade);
        entry.is_some_and(|entry| {
            !entry.is_forgotten() && entry.epoch >= self.doubted_before.load(Ordering::Acquire)
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forgotten {
    fn is_about(self, key: &Key) -> bool {
        match self {
            Forgotten::Key(id) => id == key.id,
            Forgotten::User(user_id) => user_id == key.user_id,
        }
    }
}

impl Index {
    /// Takes out the entries that this is about.
    fn take(&mut self, what: Forgotten) -> Vec<Arc<Entry>> {
        let ids: Vec<Uuid> = match what {
            Forgotten::Key(id) => vec![id],
            Forgotten::User(user_id) => self
                .by_id
                .iter()
                .filter(|(_, entry)| {
                    let entry = entry.upgrade();
                    entry.is_some_and(|entry| entry.principal.user_id == user_id)
                })
                .map(|(&id, _)| id)
                .collect(),
        };
        ids.iter()
            .filter_map(|id| self.by_id.remove(id)?.upgrade())
            .collect()
    }

    fn forgotten_since(&self, epoch: u64, key: &Key) -> bool {
        let oldest = self
            .forgotten
            .front()
            .map_or(u64::MAX, |&(oldest, _)| oldest);
        // Calls between `epoch` and the oldest one remembered may have named this key.
        let gap = epoch < self.epoch && epoch + 1 < oldest;
        gap || self
            .forgotten
            .iter()
            .any(|&(at, what)| at > epoch && what.is_about(key))
    }

    /// The table of keys evicts on its own; their names are swept when there are too many.
    fn prune(&mut self, keys_max: usize) {
        let names_max = keys_max.saturating_mul(2).saturating_add(64);
        if self.by_id.len() > names_max {
            self.by_id.retain(|_, entry| entry.strong_count() > 0);
        }
    }
}

impl Entry {
    fn new(hash: Hash, found: &KeyForAuth, epoch: u64, now: DateTime<Utc>) -> Entry {
        let scopes = found.key.scopes;
        let principal = KeyPrincipal {
            key_id: found.key.id,
            user_id: found.key.user_id,
            role: if scopes.has(Scope::Admin) {
                found.role
            } else {
                Role::User
            },
            tier: found.key.tier,
            scopes,
            expires_at: found.key.expires_at,
            token_family: None,
        };
        Entry {
            hash,
            principal: Arc::new(principal),
            loaded_at: now,
            epoch,
            forgotten: AtomicBool::new(false),
            noted_at_ms: AtomicI64::new(i64::MIN),
        }
    }

    pub(super) fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Acquire)
    }

    /// Whether this use is worth a note, which takes a lock: one per key and second is.
    pub(super) fn is_to_note(&self, now: DateTime<Utc>) -> bool {
        let now_ms = now.timestamp_millis();
        let last_ms = self.noted_at_ms.load(Ordering::Relaxed);
        now_ms >= last_ms.saturating_add(NOTE_EVERY_MS)
            && self
                .noted_at_ms
                .compare_exchange(last_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Whether a key may be used at all. The hash is compared once more, in constant time, so that
/// nothing rests on how the database compared it.
fn is_usable(found: &KeyForAuth, hash: &Hash) -> bool {
    bool::from(found.hash.ct_eq(hash))
        && found.key.revoked_at.is_none()
        && found.user_disabled_at.is_none()
}

fn delta(duration: Duration) -> TimeDelta {
    // `TTL_MAX` is in range, and so is what is shorter.
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Salt, Scopes};
    use crate::limits::Tier;

    fn cache(keys_max: u64) -> Cache {
        Cache::new(&Settings {
            salt: Salt::generate().unwrap(),
            cache_ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(10),
            outage_grace: Duration::from_secs(600),
            cache_keys_max: keys_max,
        })
    }

    fn found(id: u128, hash: Hash) -> KeyForAuth {
        let key = Key {
            id: Uuid::from_u128(id),
            user_id: Uuid::nil(),
            name: String::new(),
            prefix: String::new(),
            tier: Tier::Free,
            scopes: Scopes::of_role(Role::User),
            created_at: at(0),
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
            replaced_by: None,
        };
        KeyForAuth {
            key,
            hash,
            role: Role::User,
            user_disabled_at: None,
        }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn entries_age_by_the_callers_clock() {
        let cache = cache(10);
        let hash = [1; 32];
        cache.settle(0, &hash, Some(found(1, hash)), at(0)).unwrap();
        assert!(matches!(cache.look(&hash, at(59)), Look::Fresh(_)));
        assert!(matches!(cache.look(&hash, at(60)), Look::Stale(_)));
        assert!(matches!(cache.look(&hash, at(659)), Look::Stale(_)));
        assert!(matches!(cache.look(&hash, at(660)), Look::Missing));
        // A clock that was set back does not keep the entry fresh for ever.
        assert!(matches!(cache.look(&hash, at(-59)), Look::Fresh(_)));
        assert!(matches!(cache.look(&hash, at(-61)), Look::Stale(_)));
        assert!(matches!(cache.look(&[2; 32], at(0)), Look::Missing));
    }

    #[test]
    fn refusals_are_short_and_apart() {
        let cache = cache(10);
        let hash = [1; 32];
        assert!(matches!(
            cache.settle(0, &hash, None, at(0)),
            Some(Loaded::Refused)
        ));
        assert!(matches!(cache.look(&hash, at(9)), Look::Refused));
        assert!(matches!(cache.look(&hash, at(10)), Look::Missing));
        assert!(matches!(cache.look(&hash, at(-1)), Look::Missing));
        let good = [2; 32];
        cache.settle(0, &good, Some(found(1, good)), at(0)).unwrap();
        for guess in 0..50_000_u32 {
            let mut hash = [9; 32];
            hash[..4].copy_from_slice(&guess.to_be_bytes());
            cache.settle(0, &hash, None, at(0));
        }
        assert!(matches!(cache.look(&good, at(1)), Look::Fresh(_)));
        cache.refused.run_pending_tasks();
        assert!(cache.refused.entry_count() <= REFUSED_MAX);
    }

    #[test]
    fn what_may_not_be_used_is_refused() {
        let hash = [1; 32];
        let revoked = {
            let mut found = found(1, hash);
            found.key.revoked_at = Some(at(1_000));
            found
        };
        let disabled = KeyForAuth {
            user_disabled_at: Some(at(1_000)),
            ..found(1, hash)
        };
        let other = found(1, [2; 32]);
        for bad in [revoked, disabled, other] {
            let cache = cache(10);
            cache.settle(0, &hash, Some(found(1, hash)), at(0)).unwrap();
            assert!(matches!(
                cache.settle(0, &hash, Some(bad), at(0)),
                Some(Loaded::Refused)
            ));
            assert!(matches!(cache.look(&hash, at(0)), Look::Refused));
        }
    }

    #[test]
    fn a_load_older_than_forget_reinstates_nothing() {
        let cache = cache(10);
        let (hash, key) = ([1; 32], Uuid::from_u128(1));
        cache
            .settle(cache.epoch(), &hash, Some(found(1, hash)), at(0))
            .unwrap();
        let before = cache.epoch();
        cache.forget(Forgotten::Key(key));
        assert!(matches!(cache.look(&hash, at(0)), Look::Missing));
        assert!(
            cache
                .settle(before, &hash, Some(found(1, hash)), at(0))
                .is_none()
        );
        assert!(matches!(cache.look(&hash, at(0)), Look::Missing));
        // Another key's load is not disturbed, and a later load of this one counts.
        let other = [2; 32];
        assert!(
            cache
                .settle(before, &other, Some(found(2, other)), at(0))
                .is_some()
        );
        assert!(
            cache
                .settle(cache.epoch(), &hash, Some(found(1, hash)), at(0))
                .is_some()
        );
        // When the calls are too many to remember each, every load in doubt asks again.
        let before = cache.epoch();
        for id in 0..=FORGOTTEN_MAX as u128 {
            cache.forget(Forgotten::Key(Uuid::from_u128(1_000 + id)));
        }
        assert!(
            cache
                .settle(before, &other, Some(found(2, other)), at(0))
                .is_none()
        );
        assert!(
            cache
                .settle(cache.epoch(), &other, Some(found(2, other)), at(0))
                .is_some()
        );
    }

    #[test]
    fn forgetting_reaches_those_who_hold_an_entry() {
        let cache = cache(10);
        let hash = [1; 32];
        let Some(Loaded::Known(held)) = cache.settle(0, &hash, Some(found(1, hash)), at(0)) else {
            panic!("the key is good");
        };
        cache.forget(Forgotten::Key(Uuid::from_u128(1)));
        assert!(held.is_forgotten());
    }

    #[test]
    fn memory_is_bounded() {
        let cache = cache(100);
        for id in 0..10_000_u32 {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&id.to_be_bytes());
            cache
                .settle(0, &hash, Some(found(u128::from(id), hash)), at(0))
                .unwrap();
        }
        cache.known.run_pending_tasks();
        assert!(cache.known.entry_count() <= 100);
        // Names of keys that were evicted are swept; a batch of evictions may be outstanding.
        assert!(
            cache.index().by_id.len() <= 2_000,
            "{}",
            cache.index().by_id.len()
        );
    }

    #[test]
    fn one_use_per_second_is_noted() {
        let hash = [1; 32];
        let entry = Entry::new(hash, &found(1, hash), 0, at(0));
        assert!(entry.is_to_note(at(0)));
        assert!(!entry.is_to_note(at(0)));
        assert!(entry.is_to_note(at(1)));
        assert!(!entry.is_to_note(at(-100)));
    }
}
