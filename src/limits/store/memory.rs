//! Buckets in this process's memory.
//!
//! The subjects are spread over many small shards (see [`Shards`]), each with a lock of its own. A
//! shard that is full makes room by forgetting a subject:
//!
//! 1. one whose buckets are full again, if there is any: it would start full, so nothing is lost;
//! 2. else the one that has been unused for longest. To have a bucket of his own forgotten early, a
//!    client must bring as many *other* subjects with fresh debts as the store can hold; one that is
//!    asked again and again, even if only to be refused, stays.
//!
//! The cost of a call is a hash lookup, and the logarithm of a shard's size where a subject is new.
//! When a shard looks for a full bucket it may have to correct what it noted of subjects that were
//! used since; each correction is paid for by an earlier call, and a shard is small.

use std::collections::BTreeSet;
use std::hash::RandomState;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::shards::Shards;
use super::{LimitStore, Stats, nanoseconds};
use crate::limits::{Account, Decision, Quotas, Rate, Subject};

/// How far the origin of time lies before the store's start, so that an instant taken just before
/// is still told apart from the start.
const ORIGIN_BEFORE_START: Duration = Duration::from_secs(3600);

/// Buckets in memory, bounded in number.
pub struct MemoryStore {
    shards: Shards<Shard>,
    origin: Instant,
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
            shards: Shards::new(subjects_max, Shard::new),
            origin: now.checked_sub(ORIGIN_BEFORE_START).unwrap_or(now),
        }
    }

    fn since_origin_ns(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.origin))
    }
}

impl LimitStore for MemoryStore {
    fn take(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision {
        let now_ns = self.since_origin_ns(now);
        let quotas = subject.quotas(rate);
        let mut shard = self.shards.of(subject);
        shard.change(subject, now_ns, |account| account.take(quotas, now_ns))
    }

    fn peek(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision {
        let now_ns = self.since_origin_ns(now);
        let quotas = subject.quotas(rate);
        self.shards.of(subject).peek(subject, quotas, now_ns)
    }

    fn charge(&self, subject: &Subject, rate: Rate, thousandths: u64, now: Instant) {
        let now_ns = self.since_origin_ns(now);
        let quotas = subject.quotas(rate);
        let mut shard = self.shards.of(subject);
        shard.change(subject, now_ns, |account| {
            account.charge(quotas, thousandths, now_ns);
        });
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for shard in self.shards.all() {
            stats.subjects += shard.entries.len();
            stats.forgotten_early += shard.forgotten_early;
        }
        stats
    }
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

    /// Changes a subject's account, which is a new one where it is not known.
    fn change<T>(
        &mut self,
        subject: &Subject,
        now_ns: u64,
        change: impl FnOnce(&mut Account) -> T,
    ) -> T {
        if let Some(entry) = self.entries.get_mut(subject) {
            let decision = change(&mut entry.account);
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
        let decision = change(&mut account);
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

    fn peek(&self, subject: &Subject, quotas: Quotas, now_ns: u64) -> Decision {
        match self.entries.peek(subject) {
            Some(entry) => entry.account.peek(quotas, now_ns),
            None => Account::default().peek(quotas, now_ns),
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
