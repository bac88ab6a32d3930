use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use uuid::Uuid;

use super::super::contract;
use super::super::shards::{Pool, SHARD_SUBJECTS_MAX, locked};
use super::*;

const SECOND: u64 = 1_000_000_000;

fn address(id: u32) -> Subject {
    Subject::RouteAddress(
        crate::limits::RouteKey::of("r"),
        IpAddr::V4(Ipv4Addr::from_bits(id)),
    )
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

fn per_day(limit: u32) -> Rate {
    Rate {
        per_minute: None,
        per_day: Some(limit),
    }
}

impl Shard {
    fn take(&mut self, subject: &Subject, rate: Rate, now_ns: u64) -> Decision {
        let quotas = subject.quotas(rate);
        self.change(subject, now_ns, |account| account.take(quotas, now_ns))
    }
}

/// Both indexes hold the same subjects, each where its entry says.
fn assert_consistent(shard: &Shard) {
    assert_eq!(shard.entries.len(), shard.by_full_at.len());
    assert!(shard.entries.len() <= shard.entries_max);
    for (subject, entry) in &shard.entries {
        assert!(
            shard
                .by_full_at
                .contains(&(entry.noted_full_at_ns, *subject))
        );
        assert!(entry.noted_full_at_ns <= entry.account.full_at_ns());
    }
}

#[test]
fn keeps_the_contract() {
    contract::holds(|| MemoryStore::new(100_000));
}

#[test]
fn the_room_is_exact_whatever_the_number() {
    for subjects_max in [
        0, 1, 2, 3, 63, 64, 65, 1000, 1024, 1025, 99_999, 100_000, 3_000_001,
    ] {
        let pool = Pool::new(subjects_max, Shard::new);
        let shards: Vec<usize> = pool
            .shards
            .iter()
            .map(|shard| locked(shard).entries_max)
            .collect();
        assert_eq!(
            shards.iter().sum::<usize>(),
            subjects_max.max(1),
            "{subjects_max}"
        );
        assert!(
            shards.iter().all(|&entries| entries <= SHARD_SUBJECTS_MAX),
            "{subjects_max}"
        );
    }
}

#[test]
fn never_remembers_more_than_it_may() {
    let store = MemoryStore::new(2_000);
    let now = Instant::now();
    for id in 0..50_000 {
        store.take(&address(id), per_minute(10), now);
        store.take(&key(u128::from(id)), per_minute(10), now);
    }
    let stats = store.stats();
    assert!(stats.subjects <= 2_000, "{stats:?}");
    assert!(stats.forgotten_early >= 98_000, "{stats:?}");
    for shard in store.shards.all() {
        assert_consistent(&shard);
    }
}

#[test]
fn forgets_a_full_bucket_before_any_with_a_debt() {
    let mut shard = Shard::new(3);
    // The oldest has a debt for a day; the youngest is full again after six seconds.
    shard.take(&address(1), per_day(1), 0);
    shard.take(&address(2), per_day(1), 1);
    shard.take(&address(3), per_minute(10), 2);
    shard.take(&address(4), per_minute(10), 6 * SECOND + 2);
    assert_eq!(shard.forgotten_early, 0);
    assert!(shard.entries.contains(&address(1)) && shard.entries.contains(&address(2)));
    assert!(!shard.entries.contains(&address(3)));
    assert_consistent(&shard);
}

#[test]
fn a_bucket_used_again_is_not_taken_for_full() {
    let mut shard = Shard::new(2);
    shard.take(&address(1), per_minute(10), 0);
    shard.take(&address(2), per_minute(10), 1);
    // Address 1 was noted as full at 6 s; it is used again and is full at 12 s only.
    shard.take(&address(1), per_minute(10), 5 * SECOND);
    shard.take(&address(3), per_minute(10), 6 * SECOND + 1);
    assert!(shard.entries.contains(&address(1)));
    assert!(!shard.entries.contains(&address(2)));
    assert_eq!(shard.forgotten_early, 0);
    assert_consistent(&shard);
}

#[test]
fn a_raised_limit_brings_the_note_forward() {
    let mut shard = Shard::new(2);
    shard.take(&address(1), per_day(1), 0);
    shard.take(&address(1), per_day(1_000_000), 1);
    shard.take(&address(2), per_day(1), 2);
    shard.take(&address(3), per_day(1), 10 * SECOND);
    assert!(!shard.entries.contains(&address(1)));
    assert_eq!(shard.forgotten_early, 0);
    assert_consistent(&shard);
}

#[test]
fn without_a_full_bucket_the_longest_unused_goes() {
    let mut shard = Shard::new(3);
    for id in 1..=3 {
        shard.take(&address(id), per_day(1), u64::from(id));
    }
    // A refused request is a use too: who hammers stays refused.
    assert!(!shard.take(&address(1), per_day(1), 4).allowed);
    shard.take(&address(4), per_day(1), 5);
    assert!(!shard.take(&address(1), per_day(1), 6).allowed);
    assert!(!shard.entries.contains(&address(2)));
    assert_eq!(shard.forgotten_early, 1);
    assert_consistent(&shard);
}

#[test]
fn endless_addresses_never_push_out_a_key() {
    let store = MemoryStore::new(1_000);
    let now = Instant::now();
    for _ in 0..5 {
        assert!(store.take(&key(1), per_day(5), now).allowed);
    }
    for id in 0..20_000 {
        store.take(&address(id), per_minute(1), now);
    }
    assert!(!store.take(&key(1), per_day(5), now).allowed);
}

#[test]
fn a_client_who_keeps_coming_stays_refused_through_a_flood() {
    let store = MemoryStore::new(20_000);
    let now = Instant::now();
    let offender = address(u32::MAX);
    assert!(store.take(&offender, per_minute(1), now).allowed);
    for id in 0..100_000 {
        store.take(&address(id), per_minute(1), now);
        if id % 1_000 == 0 {
            assert!(
                !store.take(&offender, per_minute(1), now).allowed,
                "after {id}"
            );
        }
    }
}

#[test]
fn peeking_at_strangers_remembers_nothing() {
    let store = MemoryStore::new(1_000);
    for id in 0..5_000 {
        assert!(
            store
                .peek(&address(id), per_minute(1), Instant::now())
                .allowed
        );
    }
    assert_eq!(store.stats(), Stats::default());
}

#[test]
fn instants_before_the_start_are_harmless() {
    let before = Instant::now();
    let store = MemoryStore::new(10);
    let rate = per_minute(1);
    assert!(store.take(&key(1), rate, before).allowed);
    assert!(!store.take(&key(1), rate, before).allowed);
    assert!(
        store
            .take(&key(1), rate, before + Duration::from_secs(60))
            .allowed
    );
    if let Some(long_ago) = before.checked_sub(Duration::from_secs(100_000)) {
        assert!(!store.take(&key(1), rate, long_ago).allowed);
    }
}

#[test]
fn concurrent_floods_keep_the_indexes_whole() {
    let store = MemoryStore::new(500);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let store = &store;
            scope.spawn(move || {
                for id in 0..5_000u32 {
                    store.take(
                        &address(id.wrapping_mul(thread + 1) % 2_000),
                        per_minute(10),
                        Instant::now(),
                    );
                }
            });
        }
    });
    for shard in &store.shards.addresses.shards {
        assert_consistent(&locked(shard));
    }
}

proptest! {
    /// Whatever the mix of subjects, limits and times, the indexes agree, and a subject is forgotten
    /// early only when no other is full.
    #[test]
    fn a_shard_stays_consistent(
        calls in prop::collection::vec((0u32..12, 1u32..40, any::<bool>(), 0..(40 * SECOND)), 1..200),
    ) {
        let mut shard = Shard::new(5);
        let mut now = 0;
        for (id, limit, day, step) in calls {
            now += step;
            let rate = if day { per_day(limit) } else { per_minute(limit) };
            let new_to_a_full_shard = !shard.entries.contains(&address(id)) && shard.entries.len() == 5;
            let some_full = shard.entries.iter().any(|(_, entry)| entry.account.full_at_ns() <= now);
            let before = shard.forgotten_early;
            shard.take(&address(id), rate, now);
            let expected = u64::from(new_to_a_full_shard && !some_full);
            prop_assert_eq!(shard.forgotten_early - before, expected);
            assert_consistent(&shard);
        }
    }
}
