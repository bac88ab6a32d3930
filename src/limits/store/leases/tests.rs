use std::net::{IpAddr, Ipv4Addr};

use tokio::sync::oneshot::error::TryRecvError;
use uuid::Uuid;

use super::*;
use crate::account::Tier;

const MINUTE: u128 = 60_000_000;

const HUNDRED: Rate = Rate {
    per_minute: Some(100),
    per_day: None,
};

fn key(id: u128) -> Subject {
    Subject::User(Uuid::from_u128(id), Tier::Basic)
}

fn guests() -> Subject {
    Subject::Guests(Uuid::from_u128(1), Tier::Basic)
}

fn up(now: Instant) -> Leases {
    let leases = Leases::new(1_000, now);
    leases.set_up(true);
    leases
}

fn allowed(leases: &Leases, subject: &Subject, now: Instant) -> Option<bool> {
    match leases.take(subject, HUNDRED, now) {
        Taken::Decided(decision) => Some(decision.allowed),
        Taken::Lost | Taken::Soon(_) => None,
        Taken::Asked(asked) => {
            // Whoever stops waiting is not asked for.
            std::mem::forget(asked);
            None
        }
    }
}

fn one(leases: &Leases, now: Instant) -> Call {
    let mut calls = leases.collect(10, now);
    assert_eq!(calls.len(), 1, "{calls:?}");
    calls.remove(0)
}

/// The store grants this many, with `used` tokens taken in all.
fn grant(leases: &Leases, call: &Call, granted: u32, used: u128, now: Instant) {
    let debts = [used * MINUTE, 0];
    leases.settle(call, Some(answer(granted, debts)), now);
}

fn answer(granted: u32, debts: [u128; 2]) -> Answer {
    Answer {
        granted,
        debts,
        idle_elsewhere: 0,
        is_wanted: false,
        excess: 0,
    }
}

#[test]
fn the_first_request_asks_and_those_behind_it_ask_with_it() {
    let now = Instant::now();
    let leases = up(now);
    let Taken::Asked(mut first) = leases.take(&key(1), HUNDRED, now) else {
        panic!("nothing is known yet")
    };
    let Taken::Asked(mut second) = leases.take(&key(1), HUNDRED, now) else {
        panic!("nothing is known yet")
    };
    let call = one(&leases, now);
    assert_eq!((call.need, call.ahead, call.held), (2, 0, 0));
    assert_eq!(call.windows(), [(100, 60_000_000), (-1, 1)]);
    assert!(leases.collect(10, now).is_empty(), "it is asked once");
    assert_eq!(first.try_recv(), Err(TryRecvError::Empty));
    grant(&leases, &call, 2, 2, now);
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(()), Ok(())));
    let Taken::Decided(decision) = leases.take(&key(1), HUNDRED, now) else {
        panic!("two were granted")
    };
    let window = decision.window.unwrap();
    assert_eq!(
        (decision.allowed, window.limit, window.remaining),
        (true, 100, 99)
    );
    assert_eq!(allowed(&leases, &key(1), now), Some(true));
    assert_eq!(allowed(&leases, &key(1), now), None);
}

#[test]
fn who_is_over_the_limit_is_refused_without_asking_until_a_token_is_due() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!(allowed(&leases, &key(1), now), None);
    grant(&leases, &one(&leases, now), 0, 100, now);
    for ms in [0, 100, 599] {
        let later = now + Duration::from_millis(ms);
        assert_eq!(allowed(&leases, &key(1), later), Some(false), "{ms}");
    }
    let due = now + Duration::from_millis(600);
    assert_eq!(allowed(&leases, &key(1), due), None);
    assert_eq!(one(&leases, due).need, 1);
}

#[test]
fn tokens_that_others_hold_are_not_asked_for_each_time() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!(allowed(&leases, &key(1), now), None);
    // There is room, but all of it is lent.
    grant(&leases, &one(&leases, now), 0, 50, now);
    assert_eq!(allowed(&leases, &key(1), now), Some(false));
    let later = now + ASK_AGAIN_AFTER;
    assert_eq!(allowed(&leases, &key(1), later), None);
}

#[test]
fn a_lease_ends_here_before_it_ends_at_the_store() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!(allowed(&leases, &key(1), now), None);
    let call = one(&leases, now);
    // The answer takes its time, which is time of the lease.
    let answered = now + Duration::from_millis(150);
    grant(&leases, &call, 10, 10, answered);
    let last = now + LEASE_HERE - Duration::from_nanos(1);
    assert_eq!(allowed(&leases, &key(1), last), Some(true));
    assert_eq!(allowed(&leases, &key(1), now + LEASE_HERE), None);
    assert_eq!(one(&leases, now + LEASE_HERE).held, 0);
    assert!(LEASE_HERE < LEASE);
}

#[test]
fn what_is_not_used_goes_back_once_the_client_is_quiet() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!(allowed(&leases, &key(1), now), None);
    grant(&leases, &one(&leases, now), 10, 10, now);
    assert_eq!(allowed(&leases, &key(1), now), Some(true));
    let soon = now + REPORT_EVERY;
    leases.sweep(soon - Duration::from_millis(1));
    assert!(leases.collect(10, now).is_empty());
    leases.sweep(soon);
    let report = one(&leases, soon);
    assert_eq!((report.held, report.back, report.need), (9, 0, 0));
    grant(&leases, &report, 0, 10, soon);
    let quiet = now + QUIET_AFTER;
    leases.sweep(quiet);
    let back = one(&leases, quiet);
    assert_eq!((back.held, back.back, back.ahead), (0, 9, 0));
    assert_eq!(leases.held(), 0);
    grant(&leases, &back, 0, 1, quiet);
    // And then there is nothing more to say.
    leases.sweep(quiet + Duration::from_secs(100));
    assert!(leases.collect(10, quiet).is_empty());
}

#[test]
fn who_comes_often_finds_tokens_and_more_are_asked_for_in_time() {
    let begin = Instant::now();
    let leases = up(begin);
    let rate = Rate {
        per_minute: Some(1_000_000),
        per_day: None,
    };
    let (mut waits, mut now) = (0, begin);
    for _ in 0..10_000 {
        now += Duration::from_micros(500);
        if let Taken::Asked(_) = leases.take(&key(1), rate, now) {
            waits += 1;
        }
        for call in leases.collect(10, now) {
            grant(&leases, &call, call.need + call.ahead, 0, now);
        }
    }
    // Only the first, and one or two before the rate was measured.
    assert!(waits < 5, "{waits} waited");
    assert!((500..1_500).contains(&leases.held()), "{}", leases.held());
}

#[test]
fn an_answer_that_is_lost_doubles_nothing() {
    let now = Instant::now();
    let leases = up(now);
    let Taken::Asked(mut asked) = leases.take(&key(1), HUNDRED, now) else {
        panic!("nothing is known yet")
    };
    leases.charge(&key(1), HUNDRED, 3_000, now);
    let lost = one(&leases, now);
    assert_eq!(lost.owed, 3_000);
    leases.set_up(false);
    leases.fail(&lost);
    assert_eq!(asked.try_recv(), Ok(()));
    assert!(matches!(leases.take(&key(1), HUNDRED, now), Taken::Lost));
    leases.set_up(true);
    leases.sweep(now);
    let again = one(&leases, now);
    assert_eq!((again.owed, again.held), (3_000, 0));
    assert!(again.sequence > lost.sequence);
    // The store knows the newer one already.
    leases.settle(&again, None, now);
    assert_eq!(leases.held(), 0);
}

#[test]
fn without_the_store_what_is_held_is_still_spent() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!(allowed(&leases, &key(1), now), None);
    grant(&leases, &one(&leases, now), 2, 2, now);
    leases.set_up(false);
    assert_eq!(allowed(&leases, &key(1), now), Some(true));
    assert_eq!(allowed(&leases, &key(1), now), Some(true));
    assert!(matches!(leases.take(&key(1), HUNDRED, now), Taken::Lost));
}

#[test]
fn borrowed_tokens_come_back_and_are_held_as_long_as_they_are_used() {
    let now = Instant::now();
    let leases = up(now);
    let two = Rate {
        per_minute: Some(2),
        per_day: None,
    };
    let take = |now| leases.take(&guests(), two, now);
    let Taken::Asked(asked) = take(now) else {
        panic!("nothing is known yet")
    };
    let call = one(&leases, now);
    assert_eq!((call.windows(), call.need), ([(2, 1), (-1, 1)], 1));
    drop(asked);
    leases.settle(&call, Some(answer(1, [1, 0])), now);
    assert!(matches!(
        take(now),
        Taken::Decided(Decision {
            allowed: true,
            window: None
        })
    ));
    // It runs for long, of which the store is told.
    let later = now + Duration::from_secs(10);
    leases.sweep(later);
    let report = one(&leases, later);
    assert_eq!((report.held, report.back), (1, 0));
    leases.settle(&report, Some(answer(0, [1, 0])), later);
    leases.release(&guests(), later);
    // The next one takes its place at once.
    assert!(matches!(
        take(later),
        Taken::Decided(Decision { allowed: true, .. })
    ));
    leases.release(&guests(), later);
    let quiet = later + QUIET_AFTER;
    leases.sweep(quiet);
    assert_eq!(one(&leases, quiet).back, 1);
}

const FOUR: Rate = Rate {
    per_minute: Some(4),
    per_day: None,
};

/// Takes a place for a guest; `None` where it is asked for.
fn sits(leases: &Leases, now: Instant) -> Option<bool> {
    match leases.take(&guests(), FOUR, now) {
        Taken::Decided(decision) => Some(decision.allowed),
        Taken::Lost | Taken::Soon(_) => None,
        Taken::Asked(asked) => {
            std::mem::forget(asked);
            None
        }
    }
}

#[test]
fn a_place_that_is_not_used_goes_back_while_others_are_in_use() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!((sits(&leases, now), sits(&leases, now)), (None, None));
    let call = one(&leases, now);
    leases.settle(&call, Some(answer(2, [2, 0])), now);
    assert_eq!(
        (sits(&leases, now), sits(&leases, now)),
        (Some(true), Some(true))
    );
    leases.release(&guests(), now);
    let (mut later, mut back) = (now, 0);
    while back == 0 {
        later += Duration::from_millis(250);
        assert!(later <= now + Duration::from_secs(1), "it is kept");
        leases.sweep(later);
        let call = one(&leases, later);
        assert_eq!(call.idle + call.back, 1);
        back = call.back;
        leases.settle(&call, Some(answer(0, [1, 0])), later);
    }
    assert_eq!(sits(&leases, later), None, "it was given back");
    assert_eq!(one(&leases, later).held, 1);
}

#[test]
fn a_place_that_another_gateway_needs_goes_back_at_once() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!((sits(&leases, now), sits(&leases, now)), (None, None));
    let call = one(&leases, now);
    leases.settle(&call, Some(answer(2, [2, 0])), now);
    assert_eq!(
        (sits(&leases, now), sits(&leases, now)),
        (Some(true), Some(true))
    );
    leases.release(&guests(), now);
    let soon = now + REPORT_EVERY;
    leases.sweep(soon);
    let wanted = Answer {
        is_wanted: true,
        ..answer(0, [2, 0])
    };
    let call = one(&leases, soon);
    assert_eq!((call.held, call.idle, call.back), (2, 1, 0));
    leases.settle(&call, Some(wanted), soon);
    let call = one(&leases, soon);
    assert_eq!((call.held, call.idle, call.back), (1, 0, 1));
    leases.settle(&call, Some(wanted), soon);
    // And the other one when its guest ends, without waiting for a sweep.
    leases.release(&guests(), soon);
    let call = one(&leases, soon);
    assert_eq!((call.held, call.back), (0, 1));
}

#[test]
fn who_finds_no_place_waits_only_where_others_have_one_to_spare() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!(sits(&leases, now), None);
    let spare = Answer {
        idle_elsewhere: 1,
        ..answer(0, [4, 0])
    };
    leases.settle(&one(&leases, now), Some(spare), now);
    let Taken::Soon(refused) = leases.take(&guests(), FOUR, now) else {
        panic!("there will be one soon")
    };
    assert!(!refused.allowed);
    let later = now + ASK_AGAIN_AFTER;
    assert_eq!(sits(&leases, later), None);
    leases.settle(&one(&leases, later), Some(answer(0, [4, 0])), later);
    assert_eq!(sits(&leases, later), Some(false));
}

#[test]
fn guests_that_run_without_the_store_are_told_to_it_and_lend_nothing() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!(sits(&leases, now), None);
    leases.settle(&one(&leases, now), Some(answer(1, [1, 0])), now);
    assert_eq!(sits(&leases, now), Some(true));
    leases.set_up(false);
    leases.occupy(&guests(), FOUR, now);
    leases.set_up(true);
    leases.sweep(now + REPORT_EVERY);
    let call = one(&leases, now + REPORT_EVERY);
    assert_eq!((call.held, call.idle), (2, 0));
    let later = now + REPORT_EVERY;
    leases.settle(&call, Some(too_many(1)), later);
    // There are no more than that, so one of the two is nobody's afterwards.
    leases.release(&guests(), later);
    assert_eq!(sits(&leases, later), None);
    leases.settle(&one(&leases, later), Some(answer(0, [1, 0])), later);
    leases.release(&guests(), later);
    assert_eq!(sits(&leases, later), Some(true));
}

/// All gateways hold so many more than there are.
fn too_many(excess: u32) -> Answer {
    Answer {
        excess,
        ..answer(0, [4, 0])
    }
}

#[test]
fn guests_that_ran_without_the_store_leave_their_places_where_there_are_enough() {
    let now = Instant::now();
    let leases = up(now);
    leases.set_up(false);
    leases.occupy(&guests(), FOUR, now);
    leases.set_up(true);
    leases.sweep(now);
    let call = one(&leases, now);
    // One more comes while the store is asked, of which it has not heard.
    leases.occupy(&guests(), FOUR, now);
    leases.settle(&call, Some(answer(0, [1, 0])), now);
    leases.release(&guests(), now);
    assert_eq!(sits(&leases, now), None);
    leases.settle(&one(&leases, now), Some(answer(0, [1, 0])), now);
    leases.release(&guests(), now);
    assert_eq!(sits(&leases, now), Some(true));
}

#[test]
fn what_is_held_beyond_what_there_is_is_given_up_once() {
    let now = Instant::now();
    let leases = up(now);
    for _ in 0..4 {
        assert_eq!(sits(&leases, now), None);
    }
    leases.settle(&one(&leases, now), Some(answer(4, [4, 0])), now);
    for _ in 0..4 {
        assert_eq!(sits(&leases, now), Some(true));
    }
    leases.release(&guests(), now);
    // Three guests run and one place is idle, and others hold two of the four.
    leases.sweep(now + REPORT_EVERY);
    let call = one(&leases, now + REPORT_EVERY);
    assert_eq!((call.held, call.idle), (4, 1));
    leases.settle(&call, Some(too_many(2)), now + REPORT_EVERY);
    let later = now + REPORT_EVERY * 2;
    leases.sweep(later);
    let call = one(&leases, later);
    assert_eq!((call.held, call.idle), (3, 0));
    // Its guest ends before the answer comes, which counts it still.
    leases.release(&guests(), later);
    leases.settle(&call, Some(too_many(1)), later);
    leases.release(&guests(), later);
    assert_eq!(sits(&leases, later), Some(true), "one is given up, not two");
}

#[test]
fn a_store_that_lost_what_it_held_is_told_and_begins_empty() {
    let now = Instant::now();
    let leases = up(now);
    let rate = Rate {
        per_minute: Some(100),
        per_day: Some(1_000),
    };
    let day = 86_400_000_000_u128;
    let _asked = leases.take(&key(1), rate, now);
    let call = one(&leases, now);
    assert_eq!((call.seed, call.restores), ([0, 0], false));
    let debts = [MINUTE, 300 * day];
    leases.settle(&call, Some(answer(1, debts)), now);
    leases.store_has_lost(Duration::from_secs(30), now);
    let told = one(&leases, now);
    // Half of the minute has been refilled since.
    assert_eq!(
        (told.seed, told.restores, told.held),
        ([50 * MINUTE, 300 * day], true, 1)
    );
    grant(&leases, &told, 0, 50, now);
    // Who was not known before begins empty all the same.
    let _asked = leases.take(&key(2), rate, now);
    let other = one(&leases, now);
    assert_eq!((other.seed, other.restores), ([50 * MINUTE, 0], false));
}

#[test]
fn endless_addresses_use_a_bounded_memory_and_push_out_no_key() {
    let now = Instant::now();
    let leases = up(now);
    assert_eq!(allowed(&leases, &key(1), now), None);
    grant(&leases, &one(&leases, now), 5, 5, now);
    for id in 0..20_000 {
        let address = IpAddr::V4(Ipv4Addr::from_bits(id));
        let route = crate::limits::RouteKey::of("r");
        let _asked = leases.take(&Subject::RouteAddress(route, address), HUNDRED, now);
        for call in leases.collect(1_000, now) {
            grant(&leases, &call, 1, 1, now);
        }
    }
    let stats = leases.stats();
    assert!(stats.subjects <= 501, "{stats:?}");
    assert!(stats.forgotten_early > 19_000, "{stats:?}");
    assert_eq!(allowed(&leases, &key(1), now), Some(true));
    assert!(leases.queue().len() <= 1_000);
}

#[test]
fn many_questions_at_once_are_asked_in_turn() {
    let now = Instant::now();
    let leases = Leases::new(100_000, now);
    leases.set_up(true);
    for id in 0..400 {
        assert_eq!(allowed(&leases, &key(id), now), None);
        assert_eq!(allowed(&leases, &key(id), now), None);
    }
    let first = leases.collect(256, now);
    assert_eq!(first.len(), 256);
    let asked: Vec<Subject> = first.iter().map(|call| call.subject).collect();
    assert_eq!(asked, (0..256).map(key).collect::<Vec<_>>());
    for call in &first {
        grant(&leases, call, 2, 2, now);
    }
    assert_eq!(leases.collect(256, now).len(), 144);
}
