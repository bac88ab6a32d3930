//! Blocks of tokens taken ahead from a store that several gateways share.
//!
//! This is the gateway's side, without any network: [`Leases::take`] spends what is held, and notes
//! whom the store must be asked about; [`Leases::collect`] turns that into questions, and
//! [`Leases::settle`] takes in what the store answered. Whoever talks to the store (`redis.rs`, or a
//! simulation) calls these two in turn.
//!
//! Why the sum over all gateways never exceeds a limit: a token that a gateway holds counts as lying
//! in the subject's bucket, which refills only as far as there is room beside it, and it is gone when
//! the lease ends: here somewhat sooner than at the store, whatever happens on the way. So the bucket
//! is one bucket, and the moment in which a request is admitted is the moment in which its token
//! leaves it. `docs/LIMITS.md` has the whole argument.

mod entry;

use std::collections::{HashSet, VecDeque};
use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::{Notify, oneshot};

use super::shards::Shards;
use super::{Stats, nanoseconds};
use crate::limits::{Decision, Rate, Subject};
use entry::Entry;
pub use entry::{Answer, Call};

/// How long the store counts tokens as held that it has not heard of since.
pub const LEASE: Duration = Duration::from_secs(5);

/// How long they are spent here, from before the store was asked: shorter, so that clocks which run
/// at different speeds can't make the difference.
const LEASE_HERE: Duration = Duration::from_secs(4);

/// The store hears of a lease that is in use this often, because what was spent of it leaves room
/// for the bucket to refill only once the store knows.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// A subject without a request for so long gives back what is held for it.
const QUIET_AFTER: Duration = Duration::from_secs(1);

/// The store is not asked again so soon about a subject for whom it had nothing.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Tokens are held for requests of so long a time.
const AHEAD: Duration = Duration::from_millis(500);

const NEVER: u64 = u64::MAX;

/// Time is counted from so long before the start: a store may have lost what it held before, which
/// matters for a day.
const BEFORE_START: Duration = Duration::from_secs(2 * 86_400);

/// What a gateway holds of the buckets in a shared store.
pub struct Leases {
    shards: Shards<Shard>,
    /// Whom to ask about, in turn. An entry is in it once.
    queue: Mutex<VecDeque<Subject>>,
    wake: Notify,
    is_up: AtomicBool,
    sequence: AtomicU64,
    /// Counts how often the store was found to have lost what it held, and when it last did.
    generation: AtomicU32,
    lost_at_ns: AtomicU64,
    origin: Instant,
    forgotten: AtomicU64,
}

/// What can be said at once.
pub enum Taken {
    Decided(Decision),
    /// The store does not answer, and no token is held.
    Lost,
    /// Only the store knows. It has been asked; ask [`Leases::take`] again when this resolves.
    Asked(oneshot::Receiver<()>),
    /// Other gateways hold tokens that they don't use, and have been asked for them: try again after
    /// [`ASK_AGAIN_AFTER`], or else this is the decision.
    Soon(Decision),
}

struct Shard {
    /// In the order of their last use.
    entries: LruCache<Subject, Entry, RandomState>,
    /// Those for whom the store has a lease of ours, and those who owe.
    live: HashSet<Subject>,
    entries_max: usize,
}

impl Leases {
    /// Remembers `subjects_max` subjects at most: half for keys, half for addresses.
    pub fn new(subjects_max: usize, now: Instant) -> Leases {
        let shard = |entries_max: usize| Shard {
            entries: LruCache::unbounded_with_hasher(RandomState::new()),
            live: HashSet::new(),
            entries_max: entries_max.max(1),
        };
        Leases {
            shards: Shards::new(subjects_max, shard),
            queue: Mutex::default(),
            wake: Notify::new(),
            is_up: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            lost_at_ns: AtomicU64::new(NEVER),
            origin: now,
            forgotten: AtomicU64::new(0),
        }
    }

    /// Takes a token that is held, or says why not. Never waits.
    pub fn take(&self, subject: &Subject, rate: Rate, now: Instant) -> Taken {
        let now_ns = self.nanoseconds(now);
        let mut shard = self.shards.of(subject);
        let entry = self.entry(&mut shard, subject, now_ns);
        entry.rate = rate;
        if let Some(decision) = entry.take(subject, now_ns) {
            if entry.wants_more() {
                self.enqueue(subject, entry);
            }
            return Taken::Decided(decision);
        }
        if !self.is_up() {
            return Taken::Lost;
        }
        if let Some(decision) = entry.refuse(subject, now_ns) {
            return if entry.may_come_soon() {
                Taken::Soon(decision)
            } else {
                Taken::Decided(decision)
            };
        }
        let (waiter, asked) = oneshot::channel();
        entry.waiters.push(waiter);
        self.enqueue(subject, entry);
        Taken::Asked(asked)
    }

    /// What is left as far as it is known here; `None` where the store was not heard of for
    /// `fresh_for`, in which case it is asked.
    pub fn peek(
        &self,
        subject: &Subject,
        rate: Rate,
        fresh_for: Duration,
        now: Instant,
    ) -> Option<Decision> {
        let now_ns = self.nanoseconds(now);
        let mut shard = self.shards.of(subject);
        let entry = self.entry(&mut shard, subject, now_ns);
        entry.rate = rate;
        entry.look(subject, nanoseconds(fresh_for), now_ns)
    }

    /// Asks the store about a subject, whose answer is awaited.
    pub fn ask(&self, subject: &Subject, rate: Rate, now: Instant) -> Taken {
        if !self.is_up() {
            return Taken::Lost;
        }
        let now_ns = self.nanoseconds(now);
        let mut shard = self.shards.of(subject);
        let entry = self.entry(&mut shard, subject, now_ns);
        entry.rate = rate;
        let (waiter, asked) = oneshot::channel();
        entry.onlookers.push(waiter);
        self.enqueue(subject, entry);
        Taken::Asked(asked)
    }

    /// Charges thousandths of a token after the fact. The store hears of it with the next sweep, or
    /// when it answers again.
    pub fn charge(&self, subject: &Subject, rate: Rate, thousandths: u64, now: Instant) {
        let now_ns = self.nanoseconds(now);
        let mut shard = self.shards.of(subject);
        let entry = self.entry(&mut shard, subject, now_ns);
        entry.rate = rate;
        entry.owed = entry.owed.saturating_add(thousandths);
        shard.live.insert(*subject);
    }

    /// Puts back a token of the kind that is only borrowed ([`Subject::Guests`]).
    pub fn release(&self, subject: &Subject, now: Instant) {
        let now_ns = self.nanoseconds(now);
        let mut shard = self.shards.of(subject);
        // One that was forgotten meanwhile has no lease any more.
        if let Some(entry) = shard.entries.get_mut(subject)
            && entry.release(now_ns)
        {
            self.enqueue(subject, entry);
        }
    }

    /// Notes that a token of that kind is in use although the store could not be asked, so that it
    /// hears of it when it is back. It ends as others do, with [`Leases::release`].
    pub fn occupy(&self, subject: &Subject, rate: Rate, now: Instant) {
        let now_ns = self.nanoseconds(now);
        let mut shard = self.shards.of(subject);
        let entry = self.entry(&mut shard, subject, now_ns);
        entry.rate = rate;
        entry.occupy(now_ns);
        shard.live.insert(*subject);
    }

    /// Notes whom the store has to hear of without a request: leases in use, and those that have
    /// gone quiet. To be called a few times in a second.
    pub fn sweep(&self, now: Instant) {
        let now_ns = self.nanoseconds(now);
        for mut shard in self.shards.all() {
            let Shard { entries, live, .. } = &mut *shard;
            live.retain(|subject| {
                let Some(entry) = entries.peek_mut(subject) else {
                    return false;
                };
                if entry.is_due(subject, now_ns) {
                    self.enqueue(subject, entry);
                }
                if entry.is_in_use() {
                    // However many others come meanwhile, it is not forgotten.
                    entries.promote(subject);
                }
                true
            });
        }
    }

    /// Gives back everything: for the end of the process.
    pub fn give_back(&self) {
        for mut shard in self.shards.all() {
            let Shard { entries, live, .. } = &mut *shard;
            for subject in live.iter() {
                if let Some(entry) = entries.peek_mut(subject) {
                    entry.gives_back = true;
                    self.enqueue(subject, entry);
                }
            }
        }
    }

    /// The next questions, up to `max`. Each must come back through [`Leases::settle`] or
    /// [`Leases::fail`] before more are collected.
    pub fn collect(&self, max: usize, now: Instant) -> Vec<Call> {
        let now_ns = self.nanoseconds(now);
        let generation = self.generation.load(Ordering::Acquire);
        let lost_at_ns = Some(self.lost_at_ns.load(Ordering::Acquire)).filter(|at| *at != NEVER);
        let subjects: Vec<Subject> = {
            let mut queue = self.queue();
            let count = max.min(queue.len());
            queue.drain(..count).collect()
        };
        let mut calls = Vec::with_capacity(subjects.len());
        for subject in subjects {
            let mut shard = self.shards.of(&subject);
            let Some(entry) = shard.entries.peek_mut(&subject) else {
                continue;
            };
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
            calls.push(entry.call(subject, sequence, generation, lost_at_ns, now_ns));
        }
        calls
    }

    /// Takes in an answer; `None` says that the store had heard of something newer before.
    pub fn settle(&self, call: &Call, answer: Option<Answer>, now: Instant) {
        let now_ns = self.nanoseconds(now);
        let mut shard = self.shards.of(&call.subject);
        let Shard { entries, live, .. } = &mut *shard;
        // What was granted to a subject that is forgotten is lost with it.
        let Some(entry) = entries.peek_mut(&call.subject) else {
            return;
        };
        if entry.settle(call, answer, now_ns) || entry.owed > 0 {
            live.insert(call.subject);
            if entry.gives_way() {
                self.enqueue(&call.subject, entry);
            }
        } else {
            live.remove(&call.subject);
        }
    }

    /// A question that got no answer. Whether the store has heard it is not known: what was given
    /// back counts as lost, and what is owed is still owed.
    pub fn fail(&self, call: &Call) {
        let mut shard = self.shards.of(&call.subject);
        if let Some(entry) = shard.entries.peek_mut(&call.subject) {
            entry.fail(call);
        }
    }

    /// Whether the store answers. Without it all who wait are told at once.
    pub fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Release);
        if is_up {
            self.wake.notify_one();
            return;
        }
        let queued: Vec<Subject> = self.queue().iter().copied().collect();
        for subject in queued {
            if let Some(entry) = self.shards.of(&subject).entries.peek_mut(&subject) {
                entry.wake();
            }
        }
    }

    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire)
    }

    /// The store has lost what it held, `ago` before `now`. From there on it knows again only what it
    /// is told: its buckets begin empty, and those who have used something of their day are reported.
    pub fn store_has_lost(&self, ago: Duration, now: Instant) {
        let at_ns = self.nanoseconds(now).saturating_sub(nanoseconds(ago));
        self.lost_at_ns.store(at_ns, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
        for mut shard in self.shards.all() {
            for (subject, entry) in shard.entries.iter_mut() {
                if entry.is_known {
                    self.enqueue(subject, entry);
                }
            }
        }
    }

    /// Resolves when there is something to collect.
    pub async fn wanted(&self) {
        if !self.queue().is_empty() {
            return;
        }
        self.wake.notified().await;
    }

    pub fn stats(&self) -> Stats {
        let subjects = self.shards.all().map(|shard| shard.entries.len()).sum();
        Stats {
            subjects,
            forgotten_early: self.forgotten.load(Ordering::Relaxed),
        }
    }

    /// Tokens that are held now, of all subjects.
    pub fn held(&self) -> u64 {
        let mut held = 0;
        for shard in self.shards.all() {
            for subject in &shard.live {
                held += shard.entries.peek(subject).map_or(0, |e| u64::from(e.held));
            }
        }
        held
    }

    fn entry<'s>(&self, shard: &'s mut Shard, subject: &Subject, now_ns: u64) -> &'s mut Entry {
        while shard.entries.len() >= shard.entries_max && !shard.entries.contains(subject) {
            if let Some((forgotten, entry)) = shard.entries.pop_lru()
                && shard.live.remove(&forgotten)
            {
                // The store counts what it held as spent. Who waits is told, and asks again.
                drop(entry);
                self.forgotten.fetch_add(1, Ordering::Relaxed);
            }
        }
        shard
            .entries
            .get_or_insert_mut(*subject, || Entry::new(now_ns))
    }

    fn enqueue(&self, subject: &Subject, entry: &mut Entry) {
        if !entry.is_queued {
            entry.is_queued = true;
            self.queue().push_back(*subject);
            self.wake.notify_one();
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Subject>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.origin) + BEFORE_START)
    }
}

#[cfg(test)]
mod tests;
