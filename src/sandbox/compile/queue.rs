//! Which compile comes next.
//!
//! Flights wait in lanes. A thread that is free takes one of whoever has the fewest in the air, and
//! of these one that came, or whose owner was served, the longest ago. The operator's own come first.
//! Cranelift can
//! take as long as the timeout for a few hundred KiB that mean harm; so it has all workers but one,
//! and the last is kept for Singlepass, which is done in milliseconds. A flood of compile bombs then
//! costs those who need Cranelift a wait, and the others nothing. (With one worker there is nothing
//! to keep.) Nor does a bomb keep its worker until the timeout: when others wait who have less, a flight's
//! turn ends, and its worker stands still until its next. What nobody waits for comes last, one at a time, and gives
//! way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::{ModuleHash, ShareKey};
use super::{Flight, Quality};

/// Compiles that may wait in the background.
const BACKGROUND_MAX: usize = 64;
/// Bytes of their modules.
const BACKGROUND_BYTES_MAX: usize = 64 << 20;

/// Workers that may stand still while others have their places: each keeps the memory it has.
const HELD_MAX: usize = 4;

/// Whose modules the configuration names.
const OPERATOR: ShareKey = ShareKey::NOBODY;

/// Where a flight waits, and what it is counted as while it is in the air.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// To be checked, and compiled if Singlepass may.
    Quick,
    /// For Cranelift, with somebody waiting.
    Slow,
    /// For Cranelift, for later.
    Background,
}

/// Everything on its way.
#[derive(Default)]
pub(super) struct Queue {
    pub flights: HashMap<(ModuleHash, Quality), Arc<Flight>>,
    quick: VecDeque<Arc<Flight>>,
    slow: VecDeque<Arc<Flight>>,
    background: VecDeque<Arc<Flight>>,
    busy: Busy,
    served: HashMap<ShareKey, Served>,
    /// Flights in the slow lane whose workers stand still.
    held: usize,
    /// Compile threads that there are, but for those of flights that are held.
    pub threads: usize,
    boarded: u64,
}

/// Compile threads at work, by what they work on.
#[derive(Debug, Default, Clone, Copy)]
struct Busy {
    quick: usize,
    slow: usize,
    background: usize,
}

/// What a share was given lately.
#[derive(Debug, Default, Clone, Copy)]
struct Served {
    in_the_air: usize,
    /// When it was served last in the quick lane and in the others, in flights of all.
    quick: u64,
    slow: u64,
}

impl Busy {
    fn of(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Quick => &mut self.quick,
            Lane::Slow => &mut self.slow,
            Lane::Background => &mut self.background,
        }
    }

    fn all(self) -> usize {
        self.quick + self.slow + self.background
    }
}

impl Queue {
    /// A number that grows: the order of boarding.
    pub(super) fn number(&mut self) -> u64 {
        self.boarded += 1;
        self.boarded
    }

    /// Puts a flight at the end of a lane, or where its number belongs.
    pub(super) fn push(&mut self, lane: Lane, flight: Arc<Flight>) {
        let lane = self.lane(lane);
        let place = lane.partition_point(|other| other.number < flight.number);
        lane.insert(place, flight);
    }

    fn lane(&mut self, lane: Lane) -> &mut VecDeque<Arc<Flight>> {
        match lane {
            Lane::Quick => &mut self.quick,
            Lane::Slow => &mut self.slow,
            Lane::Background => &mut self.background,
        }
    }

    /// Whether one more may wait in a lane that somebody waits for. Each has room of its own: a slow
    /// lane that is full is no reason to refuse what is quick. Nobody has more than half of the queue.
    ///
    /// A flight that is held waits like any other: it leaves a worker and takes a place, so that giving way makes
    /// no room for more and takes none from anybody. With those in the air there are never more than
    /// `workers_max` + `queue_max`.
    pub(super) fn has_room(
        &self,
        quality: Quality,
        share: ShareKey,
        workers_max: usize,
        queue_max: usize,
    ) -> bool {
        let busy = self.busy.quick + self.busy.slow;
        let lane = match quality {
            Quality::Soon => &self.quick,
            Quality::Best => &self.slow,
        };
        let free = workers_max.saturating_sub(busy);
        let own = lane.iter().filter(|flight| flight.share == share).count();
        lane.len() < free.saturating_add(queue_max)
            && (share == OPERATOR || own < free.saturating_add(queue_max.div_ceil(2)))
    }

    /// Whether one more may wait in the background.
    pub(super) fn has_room_in_background(&self, wasm_bytes: usize) -> bool {
        let bytes: usize = self.background.iter().map(|other| other.wasm.len()).sum();
        self.background.len() < BACKGROUND_MAX && bytes + wasm_bytes <= BACKGROUND_BYTES_MAX
    }

    /// The next flight, for a free thread. It counts as busy until [`Queue::done`]. There may be a thread too many:
    /// one that has just had a flight go on that was held, which has a thread of its own.
    pub(super) fn take(&mut self, workers_max: usize) -> Option<(Lane, Arc<Flight>)> {
        if self.busy.all() >= workers_max {
            return None;
        }
        let slow_free = self.busy.slow + self.busy.background < slow_max(workers_max);
        let quick = self.next(&self.quick, Turn::quick_turn);
        let slow = self.next(&self.slow, Turn::slow_turn);
        let (lane, at) = match (quick, slow.filter(|_| slow_free)) {
            // What is quick changes little for the others; who had much of what is slow comes later.
            (Some((quick, _)), Some((slow, at))) if slow.slow_turn() < quick.slow_turn() => {
                (Lane::Slow, at)
            }
            (Some((_, at)), Some(_) | None) => (Lane::Quick, at),
            (None, Some((_, at))) => (Lane::Slow, at),
            (None, None) if slow_free && self.busy.background == 0 => (Lane::Background, 0),
            (None, None) => return None,
        };
        let flight = self.lane(lane).remove(at)?;
        *self.busy.of(lane) += 1;
        let last = self.number();
        let mut served = self.served.get(&flight.share).copied().unwrap_or_default();
        match lane {
            Lane::Quick => served.quick = last,
            Lane::Slow => served.slow = last,
            // Nobody's.
            Lane::Background => return Some((lane, flight)),
        }
        served.in_the_air += 1;
        self.served.insert(flight.share, served);
        Some((lane, flight))
    }

    /// The flight in a lane whose turn it is, and its place there.
    fn next(
        &self,
        lane: &VecDeque<Arc<Flight>>,
        turn: fn(&Turn) -> (bool, usize, u64),
    ) -> Option<(Turn, usize)> {
        let turns = lane.iter().enumerate().map(|(at, flight)| {
            let served = self.served.get(&flight.share).copied().unwrap_or_default();
            let number = flight.number;
            let is_callers = flight.share != OPERATOR;
            (
                Turn {
                    is_callers,
                    served,
                    number,
                },
                at,
            )
        });
        turns.min_by_key(|(flight, _)| turn(flight))
    }

    /// A flight that was taken is not in the air any more.
    pub(super) fn done(&mut self, lane: Lane, share: ShareKey) {
        *self.busy.of(lane) -= 1;
        if lane != Lane::Background
            && let Some(served) = self.served.get_mut(&share)
        {
            served.in_the_air = served.in_the_air.saturating_sub(1);
        }
        // Who has nothing here any more is forgotten: what comes later has a later number.
        let Queue {
            flights, served, ..
        } = self;
        served.retain(|share, served| {
            served.in_the_air > 0 || flights.values().any(|flight| flight.share == *share)
        });
    }

    /// Whether somebody waits who could go on if the background did not.
    pub(super) fn presses(&self, workers_max: usize) -> bool {
        let slow_full = self.busy.slow + self.busy.background >= slow_max(workers_max);
        let all_full = self.busy.all() >= workers_max;
        (!self.slow.is_empty() && slow_full)
            || ((!self.slow.is_empty() || !self.quick.is_empty()) && all_full)
    }

    /// Whether somebody else waits who has fewer in the air than this share, and who would be next if one
    /// of its slow flights gave way. The operator's give way to nobody.
    pub(super) fn is_outwaited(&self, share: ShareKey, workers_max: usize) -> bool {
        let in_the_air = |share| {
            self.served
                .get(&share)
                .map_or(0, |served| served.in_the_air)
        };
        let own = in_the_air(share);
        let is_before = |flight: &Arc<Flight>| {
            let other = flight.share;
            other != share && (other == OPERATOR || in_the_air(other) < own)
        };
        let slow_max = slow_max(workers_max);
        let slow_full = self.busy.slow + self.busy.background >= slow_max;
        // Where a worker is kept for what is quick, that need not wait for what is slow.
        let takes_all = slow_max == workers_max && self.busy.all() >= workers_max;
        share != OPERATOR
            && ((slow_full && self.slow.iter().any(is_before))
                || (takes_all && self.quick.iter().any(is_before)))
    }

    /// Has a slow flight give its place to others and wait for its next turn, with its worker and thread
    /// standing still. False if as many do as may.
    pub(super) fn hold(&mut self, flight: &Arc<Flight>) -> bool {
        if self.held >= HELD_MAX {
            return false;
        }
        self.held += 1;
        self.threads -= 1;
        flight.held.store(true, Ordering::Release);
        self.done(Lane::Slow, flight.share);
        // Those who wait already come before its next turn.
        let last = self.number();
        self.served.entry(flight.share).or_default().slow = last;
        self.push(Lane::Slow, Arc::clone(flight));
        true
    }

    /// A flight that was held, and taken, goes on.
    pub(super) fn go_on(&mut self, flight: &Flight) {
        self.held -= 1;
        self.threads += 1;
        flight.held.store(false, Ordering::Release);
    }

    /// Has a flight that is held go on before its turn.
    pub(super) fn go_on_now(&mut self, flight: &Arc<Flight>) {
        let at = self
            .slow
            .iter()
            .position(|other| Arc::ptr_eq(other, flight));
        if at.and_then(|at| self.slow.remove(at)).is_some() {
            self.busy.slow += 1;
            self.served.entry(flight.share).or_default().in_the_air += 1;
            self.go_on(flight);
        }
    }

    /// Takes a flight out of the background, where it waits: somebody wants it now.
    pub(super) fn hurry(&mut self, flight: &Arc<Flight>) {
        let waits = self
            .background
            .iter()
            .position(|other| Arc::ptr_eq(other, flight));
        if let Some(flight) = waits.and_then(|at| self.background.remove(at)) {
            self.push(Lane::Slow, flight);
        }
    }

    /// Makes room: flights that nobody waits for need not start. Returns whose best code is not made.
    pub(super) fn forget_abandoned(&mut self) -> Vec<ModuleHash> {
        let mut forgotten = Vec::new();
        let Queue {
            flights,
            quick,
            slow,
            background,
            ..
        } = self;
        for lane in [quick, slow, background] {
            lane.retain(|flight| {
                // Of one that is held, its thread sees to that.
                let wanted = flight.is_wanted() || flight.is_held();
                if !wanted {
                    flights.remove(&flight.key());
                    if flight.quality == Quality::Best {
                        forgotten.push(flight.hash);
                    }
                }
                wanted
            });
        }
        forgotten
    }
}

/// What says where a flight stands among those that wait; the least is next.
#[derive(Debug, Clone, Copy)]
struct Turn {
    is_callers: bool,
    served: Served,
    number: u64,
}

impl Turn {
    fn quick_turn(&self) -> (bool, usize, u64) {
        self.after(self.served.quick)
    }

    fn slow_turn(&self) -> (bool, usize, u64) {
        self.after(self.served.slow)
    }

    /// Both numbers are of one count.
    fn after(&self, served: u64) -> (bool, usize, u64) {
        let last = served.max(self.number);
        (self.is_callers, self.served.in_the_air, last)
    }
}

/// Workers that may run Cranelift.
fn slow_max(workers_max: usize) -> usize {
    workers_max.saturating_sub(1).max(1)
}

#[cfg(test)]
mod tests;
