//! Who is next, and who has to wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::super::ModuleHash;
use super::super::{Flight, Quality};
use super::{BACKGROUND_MAX, Lane, Queue};

/// A flight that waits in a lane.
fn waiting(queue: &mut Queue, lane: Lane) -> u64 {
    let number = queue.number();
    let quality = match lane {
        Lane::Quick => Quality::Soon,
        Lane::Slow | Lane::Background => Quality::Best,
    };
    let hash = ModuleHash::of(&number.to_le_bytes());
    let flight = Flight::new(hash, Bytes::from_static(b"wasm"), quality, number);
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
        queue.done(expected.0);
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
    queue.done(Lane::Quick);
    assert_eq!(take(&mut queue, 3), None);
    queue.done(Lane::Slow);
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
    queue.done(Lane::Background);
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
    queue.done(lane);
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
    queue.done(Lane::Slow);
    assert_eq!(take(&mut queue, 2), Some((Lane::Background, 1)));
}

#[test]
fn rooms_are_bounded() {
    let mut queue = Queue::default();
    for _ in 0..5 {
        assert!(queue.has_room(Quality::Best, 2, 3));
        waiting(&mut queue, Lane::Slow);
    }
    assert!(!queue.has_room(Quality::Best, 2, 3));
    // What is quick has room of its own.
    for _ in 0..5 {
        assert!(queue.has_room(Quality::Soon, 2, 3));
        waiting(&mut queue, Lane::Quick);
    }
    assert!(!queue.has_room(Quality::Soon, 2, 3));
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
