//! Who is next, and who has to wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::super::{ModuleHash, ShareKey};
use super::super::{Flight, Quality};
use super::{BACKGROUND_MAX, HELD_MAX, Lane, OPERATOR, Queue};

/// A flight that waits in a lane, of somebody who has no other.
fn waiting(queue: &mut Queue, lane: Lane) -> u64 {
    let share = ShareKey::of(queue.boarded);
    waiting_for(queue, lane, share)
}

fn waiting_for(queue: &mut Queue, lane: Lane, share: ShareKey) -> u64 {
    let number = queue.number();
    let quality = match lane {
        Lane::Quick => Quality::Soon,
        Lane::Slow | Lane::Background => Quality::Best,
    };
    let hash = ModuleHash::of(&number.to_le_bytes());
    let flight = Flight::new(hash, Bytes::from_static(b"wasm"), quality, share, number);
    flight
        .background
        .store(lane == Lane::Background, Ordering::Release);
    let flight = Arc::new(flight);
    queue.flights.insert(flight.key(), Arc::clone(&flight));
    queue.push(lane, flight);
    number
}

fn take(queue: &mut Queue, workers_max: usize) -> Option<(Lane, u64)> {
    let (lane, flight) = queue.take(workers_max)?;
    Some((lane, flight.number))
}

/// Has a flight of this number land, or go back to wait.
fn done(queue: &mut Queue, lane: Lane, number: u64) {
    let flight = queue
        .flights
        .values()
        .find(|flight| flight.number == number);
    let share = flight.map_or_else(ShareKey::default, |flight| flight.share);
    queue.done(lane, share);
}

#[test]
fn one_worker_takes_them_in_order() {
    let mut queue = Queue::default();
    let a = waiting(&mut queue, Lane::Slow);
    let b = waiting(&mut queue, Lane::Quick);
    let c = waiting(&mut queue, Lane::Slow);
    let d = waiting(&mut queue, Lane::Background);
    for expected in [
        (Lane::Slow, a),
        (Lane::Quick, b),
        (Lane::Slow, c),
        (Lane::Background, d),
    ] {
        assert_eq!(take(&mut queue, 1), Some(expected));
        done(&mut queue, expected.0, expected.1);
    }
    assert_eq!(take(&mut queue, 1), None);
}

#[test]
fn a_flood_of_slow_ones_leaves_a_worker_to_quick_ones() {
    let mut queue = Queue::default();
    for _ in 0..10 {
        waiting(&mut queue, Lane::Slow);
    }
    let quick = waiting(&mut queue, Lane::Quick);
    assert_eq!(take(&mut queue, 3), Some((Lane::Slow, 1)));
    assert_eq!(take(&mut queue, 3), Some((Lane::Slow, 2)));
    assert_eq!(take(&mut queue, 3), Some((Lane::Quick, quick)));
    done(&mut queue, Lane::Quick, quick);
    assert_eq!(take(&mut queue, 3), None);
    done(&mut queue, Lane::Slow, 1);
    assert_eq!(take(&mut queue, 3), Some((Lane::Slow, 3)));
}

#[test]
fn the_background_comes_last_one_at_a_time_and_gives_way() {
    let mut queue = Queue::default();
    let first = waiting(&mut queue, Lane::Background);
    let second = waiting(&mut queue, Lane::Background);
    let quick = waiting(&mut queue, Lane::Quick);
    assert_eq!(take(&mut queue, 4), Some((Lane::Quick, quick)));
    assert_eq!(take(&mut queue, 4), Some((Lane::Background, first)));
    assert_eq!(take(&mut queue, 4), None);
    assert!(!queue.presses(4));
    // There are workers for it besides.
    waiting(&mut queue, Lane::Slow);
    assert!(!queue.presses(4));
    // Of two workers, one may be slow.
    assert!(queue.presses(2));
    done(&mut queue, Lane::Background, first);
    assert!(take(&mut queue, 4).is_some());
    assert_eq!(take(&mut queue, 4), Some((Lane::Background, second)));
}

#[test]
fn one_worker_is_taken_from_the_background_by_a_quick_one() {
    let mut queue = Queue::default();
    waiting(&mut queue, Lane::Background);
    assert!(take(&mut queue, 1).is_some());
    assert!(!queue.presses(1));
    waiting(&mut queue, Lane::Quick);
    assert!(queue.presses(1));
}

#[test]
fn what_gave_way_or_changed_lanes_keeps_its_place() {
    let mut queue = Queue::default();
    let first = waiting(&mut queue, Lane::Quick);
    waiting(&mut queue, Lane::Slow);
    let (lane, flight) = queue.take(1).unwrap();
    done(&mut queue, lane, first);
    queue.push(Lane::Slow, flight);
    assert_eq!(take(&mut queue, 1), Some((Lane::Slow, first)));
}

#[test]
fn a_flight_in_the_background_can_be_hurried() {
    let mut queue = Queue::default();
    waiting(&mut queue, Lane::Background);
    let wanted = waiting(&mut queue, Lane::Background);
    let flight = queue
        .flights
        .values()
        .find(|flight| flight.number == wanted)
        .map(Arc::clone)
        .unwrap();
    queue.hurry(&flight);
    assert_eq!(take(&mut queue, 2), Some((Lane::Slow, wanted)));
    // One that is in the air is not put into the queue again.
    queue.hurry(&flight);
    done(&mut queue, Lane::Slow, wanted);
    assert_eq!(take(&mut queue, 2), Some((Lane::Background, 1)));
}

#[test]
fn rooms_are_bounded() {
    let mut queue = Queue::default();
    for _ in 0..5 {
        assert!(queue.has_room(Quality::Best, OPERATOR, 2, 3));
        waiting(&mut queue, Lane::Slow);
    }
    assert!(!queue.has_room(Quality::Best, ShareKey::default(), 2, 3));
    // What is quick has room of its own.
    for _ in 0..5 {
        assert!(queue.has_room(Quality::Soon, ShareKey::default(), 2, 3));
        waiting(&mut queue, Lane::Quick);
    }
    assert!(!queue.has_room(Quality::Soon, ShareKey::default(), 2, 3));
    for _ in 0..BACKGROUND_MAX {
        assert!(queue.has_room_in_background(4));
        waiting(&mut queue, Lane::Background);
    }
    assert!(!queue.has_room_in_background(4));
    assert!(!Queue::default().has_room_in_background(usize::MAX / 2));
}

#[test]
fn what_nobody_waits_for_is_forgotten() {
    let mut queue = Queue::default();
    waiting(&mut queue, Lane::Quick);
    waiting(&mut queue, Lane::Slow);
    waiting(&mut queue, Lane::Background);
    let forgotten = queue.forget_abandoned();
    assert_eq!(forgotten, [ModuleHash::of(&2_u64.to_le_bytes())]);
    assert_eq!(queue.flights.len(), 1);
    assert_eq!(take(&mut queue, 1), Some((Lane::Background, 3)));
}

#[test]
fn one_who_brings_many_takes_turns_with_others() {
    let mut queue = Queue::default();
    let (many, few) = (ShareKey::of("many"), ShareKey::of("few"));
    let first: Vec<u64> = (0..6)
        .map(|_| waiting_for(&mut queue, Lane::Slow, many))
        .collect();
    assert_eq!(take(&mut queue, 2), Some((Lane::Slow, first[0])));
    let late = [0, 1].map(|_| waiting_for(&mut queue, Lane::Slow, few));
    let quick = waiting_for(&mut queue, Lane::Quick, few);
    assert_eq!(take(&mut queue, 2), Some((Lane::Quick, quick)));
    queue.flights.retain(|_, flight| flight.number != quick);
    queue.done(Lane::Quick, few);
    queue.done(Lane::Slow, many);
    for (number, share) in [
        (first[1], many),
        (late[0], few),
        (first[2], many),
        (late[1], few),
    ] {
        assert_eq!(take(&mut queue, 2), Some((Lane::Slow, number)));
        assert_eq!(take(&mut queue, 2), None);
        queue.flights.retain(|_, flight| flight.number != number);
        queue.done(Lane::Slow, share);
    }
    // With room for two slow ones, the same share does not get both while others wait.
    let other = waiting_for(&mut queue, Lane::Slow, ShareKey::of("other"));
    assert_eq!(take(&mut queue, 3), Some((Lane::Slow, first[3])));
    assert_eq!(take(&mut queue, 3), Some((Lane::Slow, other)));
    // Who has nothing left is forgotten.
    assert!(!queue.served.contains_key(&few));
}

#[test]
fn those_who_bring_one_after_the_other_do_not_starve_one_who_brings_three() {
    let mut queue = Queue::default();
    let three = ShareKey::of("three");
    let waiting: Vec<u64> = (0..3)
        .map(|_| waiting_for(&mut queue, Lane::Slow, three))
        .collect();
    let others = ["a", "b"].map(ShareKey::of);
    for other in others {
        waiting_for(&mut queue, Lane::Slow, other);
    }
    let mut served = Vec::new();
    for _ in 0..9 {
        let (lane, flight) = queue.take(2).unwrap();
        queue.flights.remove(&flight.key());
        queue.done(lane, flight.share);
        served.push(flight.number);
        if flight.share != three {
            waiting_for(&mut queue, Lane::Slow, flight.share);
        }
    }
    assert!(
        waiting.iter().all(|number| served.contains(number)),
        "{served:?}"
    );
}

#[test]
fn the_operators_own_come_first_and_the_background_counts_for_nobody() {
    let mut queue = Queue::default();
    let caller = ShareKey::of("caller");
    waiting_for(&mut queue, Lane::Background, OPERATOR);
    assert!(matches!(take(&mut queue, 3), Some((Lane::Background, _))));
    waiting_for(&mut queue, Lane::Slow, caller);
    let ours: Vec<u64> = (0..2)
        .map(|_| waiting_for(&mut queue, Lane::Slow, OPERATOR))
        .collect();
    assert_eq!(take(&mut queue, 4), Some((Lane::Slow, ours[0])));
    assert_eq!(take(&mut queue, 4), Some((Lane::Slow, ours[1])));
    queue.done(Lane::Background, OPERATOR);
    assert_eq!(queue.served[&OPERATOR].in_the_air, 2);
    // All but the last place, if need be.
    for _ in 0..3 {
        waiting_for(&mut queue, Lane::Slow, OPERATOR);
    }
    assert!(queue.has_room(Quality::Best, OPERATOR, 2, 5));
    assert!(!queue.has_room(Quality::Best, OPERATOR, 2, 4));
}

#[test]
fn nobody_gets_the_whole_queue() {
    let mut queue = Queue::default();
    let (many, few) = (ShareKey::of("many"), ShareKey::of("few"));
    let mut room = 0;
    while queue.has_room(Quality::Best, many, 2, 10) {
        waiting_for(&mut queue, Lane::Slow, many);
        room += 1;
    }
    assert_eq!(room, 7);
    assert!(queue.has_room(Quality::Best, few, 2, 10));
    assert!(queue.has_room(Quality::Soon, many, 2, 10));
}

#[test]
fn who_keeps_the_slow_workers_gives_way_to_who_has_fewer() {
    let [own, other] = [1, 2].map(ShareKey::of);
    for (workers_max, lane) in [(1, Lane::Slow), (2, Lane::Slow), (1, Lane::Quick)] {
        let mut queue = Queue::default();
        waiting_for(&mut queue, Lane::Slow, own);
        assert!(take(&mut queue, workers_max).is_some());
        // Nobody waits, or only who has it all.
        assert!(!queue.is_outwaited(own, workers_max));
        waiting_for(&mut queue, lane, own);
        assert!(!queue.is_outwaited(own, workers_max));
        waiting_for(&mut queue, lane, other);
        assert!(queue.is_outwaited(own, workers_max));
        // Of three workers, one is free.
        assert!(!queue.is_outwaited(own, 3));
    }

    // What is quick has a worker of its own.
    let mut queue = Queue::default();
    waiting_for(&mut queue, Lane::Slow, own);
    assert!(take(&mut queue, 2).is_some());
    waiting_for(&mut queue, Lane::Quick, ShareKey::of(3));
    assert!(take(&mut queue, 2).is_some());
    waiting_for(&mut queue, Lane::Quick, other);
    assert!(!queue.is_outwaited(own, 2));

    // Who has as many waits for the end, and the operator for nobody's.
    let mut queue = Queue::default();
    for share in [own, other, OPERATOR] {
        waiting_for(&mut queue, Lane::Slow, share);
        assert!(take(&mut queue, 4).is_some());
    }
    waiting_for(&mut queue, Lane::Slow, other);
    assert!(!queue.is_outwaited(own, 4));
    waiting_for(&mut queue, Lane::Slow, OPERATOR);
    assert!(queue.is_outwaited(own, 4));
    waiting_for(&mut queue, Lane::Slow, ShareKey::of(4));
    assert!(!queue.is_outwaited(OPERATOR, 4));
}

#[test]
fn a_flight_that_is_held_takes_turns_with_others() {
    let [own, other] = [1, 2].map(ShareKey::of);
    let mut queue = Queue {
        threads: 1,
        ..Queue::default()
    };
    waiting_for(&mut queue, Lane::Slow, own);
    let (lane, bomb) = queue.take(1).unwrap();
    waiting_for(&mut queue, Lane::Slow, other);
    assert!(queue.is_outwaited(own, 1));
    assert!(queue.hold(&bomb));
    assert_eq!((bomb.is_held(), queue.threads), (true, 0));
    // Who waited goes before it.
    let (lane_of_other, flight) = queue.take(1).unwrap();
    assert!(flight.share == other && !flight.is_held());
    queue.done(lane_of_other, other);
    queue.flights.remove(&flight.key());
    // It is not forgotten while it stands still: its thread sees to that.
    queue.forget_abandoned();
    assert_eq!(queue.slow.len(), 1);
    let (third, fourth) = (
        waiting_for(&mut queue, Lane::Slow, other),
        waiting_for(&mut queue, Lane::Slow, own),
    );
    // Those who came later go after it.
    let (lane_again, again) = queue.take(1).unwrap();
    assert!(lane_again == lane && Arc::ptr_eq(&again, &bomb));
    queue.go_on(&again);
    assert_eq!((bomb.is_held(), queue.threads), (false, 1));
    assert!(queue.take(1).is_none());
    queue.done(lane, own);
    assert_eq!(take(&mut queue, 1), Some((Lane::Slow, third)));
    done(&mut queue, Lane::Slow, third);
    assert_eq!(take(&mut queue, 1), Some((Lane::Slow, fourth)));
}

#[test]
fn a_flight_that_is_held_keeps_the_place_it_had_and_makes_none() {
    const QUEUE_MAX: usize = 4;
    let mut queue = Queue {
        threads: 1,
        ..Queue::default()
    };
    let [bomber, late] = ["bomber", "late"].map(ShareKey::of);
    let fill = |queue: &mut Queue| {
        let mut added = 0;
        while queue.has_room(Quality::Best, ShareKey::of(queue.boarded), 1, QUEUE_MAX) {
            waiting(queue, Lane::Slow);
            added += 1;
        }
        added
    };
    waiting_for(&mut queue, Lane::Slow, bomber);
    let (_, bomb) = queue.take(1).unwrap();
    assert_eq!(fill(&mut queue), QUEUE_MAX);
    // Between giving way and the next one's start nobody slips in.
    assert!(queue.hold(&bomb));
    assert_eq!(fill(&mut queue), 0);
    let (lane, next) = queue.take(1).unwrap();
    assert_eq!(fill(&mut queue), 0);
    assert!(!queue.has_room(Quality::Best, late, 1, QUEUE_MAX));
    // An end makes room for one, whoever stands still.
    queue.flights.remove(&next.key());
    queue.done(lane, next.share);
    assert_eq!(fill(&mut queue), 1);
    // Of what its owner may have in the queue, it is one.
    let mut queue = Queue {
        threads: 1,
        ..Queue::default()
    };
    waiting_for(&mut queue, Lane::Slow, bomber);
    let (_, bomb) = queue.take(1).unwrap();
    waiting_for(&mut queue, Lane::Slow, late);
    assert!(queue.hold(&bomb));
    assert!(queue.take(1).is_some());
    let mut more = 0;
    while queue.has_room(Quality::Best, bomber, 1, QUEUE_MAX) {
        waiting_for(&mut queue, Lane::Slow, bomber);
        more += 1;
    }
    assert_eq!(more, QUEUE_MAX.div_ceil(2) - 1);
}

#[test]
fn one_that_goes_on_leaves_no_worker_too_many() {
    let mut queue = Queue {
        threads: 1,
        ..Queue::default()
    };
    let [bomber, other] = ["bomber", "other"].map(ShareKey::of);
    waiting_for(&mut queue, Lane::Slow, bomber);
    let (_, bomb) = queue.take(1).unwrap();
    waiting_for(&mut queue, Lane::Slow, other);
    assert!(queue.hold(&bomb));
    let (lane, flight) = queue.take(1).unwrap();
    queue.flights.remove(&flight.key());
    queue.done(lane, other);
    // The thread that has it go on finds nothing else to do while it is in the air, be it quick.
    let (lane, again) = queue.take(1).unwrap();
    assert!(again.is_held());
    queue.go_on(&again);
    let quick = waiting_for(&mut queue, Lane::Quick, other);
    assert_eq!(take(&mut queue, 1), None);
    queue.done(lane, bomber);
    assert_eq!(take(&mut queue, 1), Some((Lane::Quick, quick)));
}

#[test]
fn few_are_held_and_any_can_go_on_before_its_turn() {
    let mut queue = Queue {
        threads: 9,
        ..Queue::default()
    };
    let flights: Vec<_> = (0..HELD_MAX + 1)
        .map(|_| {
            waiting(&mut queue, Lane::Slow);
            queue.take(9).unwrap().1
        })
        .collect();
    let (last, held) = flights.split_last().unwrap();
    assert!(held.iter().all(|flight| queue.hold(flight)));
    assert!(!queue.hold(last) && !last.is_held());
    queue.go_on_now(&held[0]);
    assert!(!held[0].is_held() && queue.hold(last));
    assert_eq!((queue.busy.slow, queue.slow.len()), (1, HELD_MAX));
}

#[test]
fn each_turn_is_twice_as_long() {
    let flight = Flight::new(
        ModuleHash::of(b""),
        Bytes::new(),
        Quality::Best,
        OPERATOR,
        1,
    );
    let turns = [0, 1, 4, u32::MAX].map(|turns| {
        flight.turns.store(turns, Ordering::Release);
        flight.turn().as_secs()
    });
    assert_eq!(turns, [2, 4, 32, 2 * u64::from(u32::MAX)]);
}
