//! What is kept of many subjects, spread over small parts with a lock each.
//!
//! The part is chosen by a hash under a random key, so that nobody can aim at another's. Keys and
//! addresses are kept apart, each with half of the room: addresses cost nothing to an attacker with a
//! large network, and must not be able to push out what is known of keys.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::limits::Subject;

/// Subjects in one shard, at most.
pub(super) const SHARD_SUBJECTS_MAX: usize = 1024;

/// Shards that a pool has at least, as far as each can have a useful size.
const SHARDS_MIN: usize = 16;

/// Subjects that make a shard worth having.
const SHARD_SUBJECTS_MIN: usize = 64;

/// Shards for keys, and as many for addresses.
pub(super) struct Shards<S> {
    pub(super) keys: Pool<S>,
    pub(super) addresses: Pool<S>,
}

/// Subjects of one kind.
pub(super) struct Pool<S> {
    pub(super) shards: Box<[Mutex<S>]>,
    hasher: RandomState,
}

impl<S> Shards<S> {
    /// Room for `subjects_max` subjects: half for keys, half for addresses, at least one each. `make`
    /// is told how many its shard may hold.
    pub(super) fn new(subjects_max: usize, make: impl Fn(usize) -> S) -> Shards<S> {
        Shards {
            keys: Pool::new(subjects_max / 2, &make),
            addresses: Pool::new(subjects_max - subjects_max / 2, &make),
        }
    }

    pub(super) fn of(&self, subject: &Subject) -> MutexGuard<'_, S> {
        match subject {
            Subject::User(..)
            | Subject::RouteUser(..)
            | Subject::RouteCertificate(..)
            | Subject::Cpu(..)
            | Subject::Guests(..) => self.keys.of(subject),
            Subject::RouteAddress(..) | Subject::AuthFailure(_) => self.addresses.of(subject),
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = MutexGuard<'_, S>> {
        let shards = self.keys.shards.iter().chain(&self.addresses.shards);
        shards.map(locked)
    }
}

impl<S> Pool<S> {
    pub(super) fn new(subjects_max: usize, make: impl Fn(usize) -> S) -> Pool<S> {
        let subjects_max = subjects_max.max(1);
        let for_size = subjects_max.div_ceil(SHARD_SUBJECTS_MAX);
        let for_concurrency = SHARDS_MIN.min(subjects_max / SHARD_SUBJECTS_MIN).max(1);
        let shards = for_size.max(for_concurrency);
        // The first shards get one more where the number does not divide, so that the sum is exact.
        let entries_max =
            |index: usize| subjects_max / shards + usize::from(index < subjects_max % shards);
        Pool {
            shards: (0..shards)
                .map(|index| Mutex::new(make(entries_max(index))))
                .collect(),
            hasher: RandomState::new(),
        }
    }

    fn of(&self, subject: &Subject) -> MutexGuard<'_, S> {
        // The remainder is below the number of shards, which is at least 1.
        let index = self.hasher.hash_one(subject) % self.shards.len() as u64;
        locked(&self.shards[index as usize])
    }
}

/// A panic elsewhere while a shard was locked leaves buckets that are at worst a token off, which
/// is no reason to refuse everyone.
pub(super) fn locked<S>(shard: &Mutex<S>) -> MutexGuard<'_, S> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
