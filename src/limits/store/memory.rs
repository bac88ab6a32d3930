//! Buckets in this process's memory.
//!
//! The subjects are spread over many small shards, each with a lock of its own, by a hash under a
//! random key, so that nobody can aim at another's shard. A shard that is full makes room by
//! forgetting a subject:
//!
//! 1. one whose buckets are full again, if there is any: it would start full, so nothing is lost;
//! 2. else the one that has been unused for longest. To have a bucket of his own forgotten early, a
//!    client must bring as many *other* subjects with fresh debts as the store can hold; one that is
//!    asked again and again, even if only to be refused, stays.
//!
//! Keys and addresses are kept apart, each with half of the room: addresses cost nothing to an
//! attacker with a large network, and must not be able to push out what keys have used.
//!
//! The cost of a call is a hash lookup, and the logarithm of a shard's size where a subject is new.
//! When a shard looks for a full bucket it may have to correct what it noted of subjects that were
//! used since; each correction is paid for by an earlier call, and a shard holds at most
//! [`SHARD_SUBJECTS_MAX`].

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::{LimitStore, Stats};
use crate::limits::{Account, Decision, Rate, Subject};

/// Subjects in one shard, at most.
const SHARD_SUBJECTS_MAX: usize = 1024;

/// Shards that a pool has at least, as far as each can have a useful size.
const SHARDS_MIN: usize = 16;

/// Subjects that make a shard worth having.
const SHARD_SUBJECTS_MIN: usize = 64;

/// How far the origin of time lies before the store's start, so that an instant taken just before
/// is still told apart from the start.
const ORIGIN_BEFORE_START: Duration = Duration::from_secs(3600);

/// Buckets in memory, bounded in number.
pub struct MemoryStore {
    keys: Pool,
    addresses: Pool,
    origin: Instant,
}

/// Subjects of one kind.
struct Pool {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

struct Shard {
    /// In the order of their last use.
    entries: LruCache<Subject, Entry, RandomState>,
    /// Each entry once, by its `noted_full_at_ns`.
    by_full_at: BTreeSet<(u64, Subject)>,
    entries_max: usize,
    forgotten_early: u64,
}

struct Entry {
    account: Account,
    /// Where `by_full_at` has the entry: never later than when the account is really full, so that
    /// a use, which only moves that time on, needs no change there.
    noted_full_at_ns: u64,
}

impl MemoryStore {
    /// A store that remembers `subjects_max` subjects: half for keys, half for addresses, at least
    /// one each.
    pub fn new(subjects_max: usize) -> MemoryStore {
        let now = Instant::now();
        MemoryStore {
            keys: Pool::new(subjects_max / 2),
            addresses: Pool::new(subjects_max - subjects_max / 2),
            origin: now.checked_sub(ORIGIN_BEFORE_START).unwrap_or(now),
        }
    }

    fn since_origin_ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    fn shard(&self, subject: &Subject) -> MutexGuard<'_, Shard> {
        match subject {
            Subject::User(..) | Subject::RouteUser(..) | Subject::RouteCertificate(..) => {
                self.keys.shard(subject)
            }
            Subject::RouteAddress(..) | Subject::AuthFailure(_) => self.addresses.shard(subject),
        }
    }
}

impl LimitStore for MemoryStore {
    fn take(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision {
        let now_ns = self.since_origin_ns(now);
        self.shard(subject).take(subject, rate, now_ns)
    }

    fn peek(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision {
        let now_ns = self.since_origin_ns(now);
        self.shard(subject).peek(subject, rate, now_ns)
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for shard in self.keys.shards.iter().chain(&self.addresses.shards) {
            let shard = locked(shard);
            stats.subjects += shard.entries.len();
            stats.forgotten_early += shard.forgotten_early;
        }
        stats
    }
}

impl Pool {
    fn new(subjects_max: usize) -> Pool {
        let subjects_max = subjects_max.max(1);
        let for_size = subjects_max.div_ceil(SHARD_SUBJECTS_MAX);
        let for_concurrency = SHARDS_MIN.min(subjects_max / SHARD_SUBJECTS_MIN).max(1);
        let shards = for_size.max(for_concurrency);
        // The first shards get one more where the number does not divide, so that the sum is exact.
        let entries_max =
            |index: usize| subjects_max / shards + usize::from(index < subjects_max % shards);
        Pool {
            shards: (0..shards)
                .map(|index| Mutex::new(Shard::new(entries_max(index))))
                .collect(),
            hasher: RandomState::new(),
        }
    }

    fn shard(&self, subject: &Subject) -> MutexGuard<'_, Shard> {
        // The remainder is below the number of shards, which is at least 1.
        let index = self.hasher.hash_one(subject) % self.shards.len() as u64;
        locked(&self.shards[index as usize])
    }
}

/// A panic elsewhere while a shard was locked leaves buckets that are at worst a token off, which
/// is no reason to refuse everyone.
fn locked(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn new(entries_max: usize) -> Shard {
        Shard {
            entries: LruCache::unbounded_with_hasher(RandomState::new()),
            by_full_at: BTreeSet::new(),
            entries_max: entries_max.max(1),
            forgotten_early: 0,
        }
    }

    fn take(&mut self, subject: &Subject, rate: Rate, now_ns: u64) -> Decision {
        if let Some(entry) = self.entries.get_mut(subject) {
            let decision = entry.account.take(rate, now_ns);
            let full_at_ns = entry.account.full_at_ns();
            if full_at_ns < entry.noted_full_at_ns {
                // A higher limit refills faster: the note must not be later than the truth.
                self.by_full_at.remove(&(entry.noted_full_at_ns, *subject));
                self.by_full_at.insert((full_at_ns, *subject));
                entry.noted_full_at_ns = full_at_ns;
            }
            return decision;
        }
        while self.entries.len() >= self.entries_max {
            self.forget_one(now_ns);
        }
        let mut account = Account::default();
        let decision = account.take(rate, now_ns);
        let noted_full_at_ns = account.full_at_ns();
        self.by_full_at.insert((noted_full_at_ns, *subject));
        self.entries.put(
            *subject,
            Entry {
                account,
                noted_full_at_ns,
            },
        );
        decision
    }

    fn peek(&self, subject: &Subject, rate: Rate, now_ns: u64) -> Decision {
        match self.entries.peek(subject) {
            Some(entry) => entry.account.peek(rate, now_ns),
            None => Account::default().peek(rate, now_ns),
        }
    }

    /// Forgets one subject, as the module's documentation says.
    fn forget_one(&mut self, now_ns: u64) {
        while let Some(&(noted_full_at_ns, subject)) = self.by_full_at.first() {
            if noted_full_at_ns > now_ns {
                break;
            }
            self.by_full_at.pop_first();
            let Some(entry) = self.entries.peek_mut(&subject) else {
                continue;
            };
            let full_at_ns = entry.account.full_at_ns();
            if full_at_ns <= now_ns {
                self.entries.pop(&subject);
                return;
            }
            entry.noted_full_at_ns = full_at_ns;
            self.by_full_at.insert((full_at_ns, subject));
        }
        if let Some((subject, entry)) = self.entries.pop_lru() {
            self.by_full_at.remove(&(entry.noted_full_at_ns, subject));
            self.forgotten_early += 1;
        }
    }
}

#[cfg(test)]
mod tests;
