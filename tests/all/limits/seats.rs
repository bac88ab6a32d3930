//! Places of guests, which gateways on one store hand to each other.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::sync::oneshot;
use uuid::Uuid;
use wasm_wizard::limits::store::leases::{Answer, Call, Leases, Taken};
use wasm_wizard::limits::{Rate, Subject, Tier};

use super::model::Store;

const MS: u64 = 1_000;
/// What happens, happens so often.
const STEP: u64 = 5 * MS;
const SWEEP: u64 = 250 * MS;
/// A request waits so long at most.
const WAIT_MAX: u64 = 400 * MS;
/// So long after the store is back for all, each has heard of what the others hold.
const KNOWN_AFTER: u64 = 1_500 * MS;
const NEVER: u64 = u64::MAX;

/// A gateway, whose questions take one step to the store and back.
struct Gateway {
    name: String,
    leases: Leases,
    flight: Vec<(Call, Option<Answer>, bool)>,
    /// Since when they wait, and for what.
    waiting: Vec<(u64, Option<oneshot::Receiver<()>>, u64)>,
    /// When each guest ends.
    guests: Vec<u64>,
    is_cut_off: bool,
}

struct World {
    origin: Instant,
    now: u64,
    store: Store,
    gateways: Vec<Gateway>,
    limit: u32,
    random: u64,
    lost_percent: u64,
    lives: u64,
    /// Without the store each gateway starts so many by itself.
    share: usize,
    /// From then on no guest may be one too many.
    exact_from: u64,
    most: usize,
    admitted: u32,
    refused: u32,
}

impl World {
    fn new(gateways: usize, limit: u32, lost_percent: u64, seed: u64) -> World {
        let mut world = World {
            origin: Instant::now(),
            now: 0,
            store: Store::default(),
            gateways: Vec::new(),
            limit,
            random: seed | 1,
            lost_percent,
            lives: 0,
            share: 0,
            exact_from: 0,
            most: 0,
            admitted: 0,
            refused: 0,
        };
        for _ in 0..gateways {
            let new = world.start();
            world.gateways.push(new);
        }
        world
    }

    fn start(&mut self) -> Gateway {
        self.lives += 1;
        let leases = Leases::new(100, self.origin);
        leases.set_up(true);
        Gateway {
            name: format!("gateway{}", self.lives),
            leases,
            flight: Vec::new(),
            waiting: Vec::new(),
            guests: Vec::new(),
            is_cut_off: false,
        }
    }

    /// Takes the store from a gateway, or gives it back.
    fn cut_off(&mut self, gateway: usize, is_cut_off: bool) {
        let this = &mut self.gateways[gateway];
        this.is_cut_off = is_cut_off;
        this.leases.set_up(!is_cut_off);
        if is_cut_off {
            for (call, ..) in this.flight.drain(..) {
                this.leases.fail(&call);
            }
        }
        let is_whole = self.gateways.iter().all(|one| !one.is_cut_off);
        self.exact_from = if is_whole {
            self.now + KNOWN_AFTER
        } else {
            NEVER
        };
    }

    /// The store has lost all it held.
    fn forget(&mut self) {
        self.store = Store::default();
        let now = self.clock();
        for gateway in &self.gateways {
            gateway.leases.store_has_lost(Duration::ZERO, now);
        }
        self.exact_from = self.exact_from.max(self.now + KNOWN_AFTER);
    }

    fn running(&self) -> usize {
        self.gateways.iter().map(|one| one.guests.len()).sum()
    }

    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn clock(&self) -> Instant {
        self.origin + Duration::from_micros(self.now)
    }

    fn subject() -> Subject {
        Subject::Guests(Uuid::from_u128(1), Tier::Basic)
    }

    /// A request for a guest that runs for so long. `None` where it waits.
    fn offer(&mut self, gateway: usize, since: u64, runs_for: u64) -> Option<bool> {
        let (now, at) = (self.clock(), self.now);
        let rate = Rate {
            per_minute: Some(self.limit),
            per_day: None,
        };
        let this = &mut self.gateways[gateway];
        let is_late = at - since >= WAIT_MAX;
        let outcome = match this.leases.take(&World::subject(), rate, now) {
            Taken::Decided(decision) => Some(decision.allowed),
            Taken::Soon(_) | Taken::Asked(_) if is_late => Some(false),
            Taken::Asked(asked) => {
                this.waiting.push((since, Some(asked), runs_for));
                None
            }
            Taken::Soon(_) => {
                this.waiting.push((since, None, runs_for));
                None
            }
            Taken::Lost => {
                assert!(this.is_cut_off, "the store is there");
                let starts = this.guests.len() < self.share;
                if starts {
                    this.leases.occupy(&World::subject(), rate, now);
                }
                Some(starts)
            }
        };
        match outcome {
            Some(true) => {
                self.admitted += 1;
                this.guests.push(at + runs_for);
                let all = self.running();
                self.most = self.most.max(all);
                let is_exact = at >= self.exact_from;
                assert!(
                    all <= self.limit as usize || !is_exact,
                    "{all} run at {at} us"
                );
            }
            Some(false) => self.refused += 1,
            None => {}
        }
        outcome
    }

    fn step(&mut self) {
        self.now += STEP;
        let (now, at) = (self.clock(), self.now);
        for index in 0..self.gateways.len() {
            let lost = [self.below(100), self.below(100)].map(|n| n < self.lost_percent);
            let this = &mut self.gateways[index];
            this.guests.retain(|ends| {
                let runs = *ends > at;
                if !runs {
                    this.leases.release(&World::subject(), now);
                }
                runs
            });
            for (call, answer, arrived) in this.flight.drain(..) {
                if arrived {
                    this.leases.settle(&call, answer, now);
                } else {
                    this.leases.fail(&call);
                }
            }
            if at.is_multiple_of(SWEEP) && !this.is_cut_off {
                this.leases.sweep(now);
            }
            let waiting = std::mem::take(&mut this.waiting);
            for (since, mut asked, runs_for) in waiting {
                let is_told = asked.as_mut().is_none_or(|asked| {
                    asked.try_recv() != Err(oneshot::error::TryRecvError::Empty)
                });
                if is_told || at - since >= WAIT_MAX {
                    self.offer(index, since, runs_for);
                } else {
                    self.gateways[index].waiting.push((since, asked, runs_for));
                }
            }
            let this = &mut self.gateways[index];
            if this.is_cut_off {
                continue;
            }
            for call in this.leases.collect(10, now) {
                let answer = if lost[0] {
                    None
                } else {
                    self.store.call(&this.name, &call, at)
                };
                this.flight.push((call, answer, !lost[0] && !lost[1]));
            }
        }
    }

    fn run_for(&mut self, us: u64) {
        let end = self.now + us;
        while self.now < end {
            self.step();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_more_guests_run_than_may_be_whatever_happens(
        gateways in 1usize..5,
        limit in prop_oneof![Just(1u32), Just(2), Just(5), Just(32)],
        lost_percent in 0u64..10,
        runs_for_ms in 1u64..2_000,
        crashes in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(gateways, limit, lost_percent, seed);
        for _ in 0..6_000 {
            world.step();
            if world.below(3) == 0 {
                let gateway = world.below(gateways as u64) as usize;
                let runs_for = 1 + world.below(runs_for_ms) * MS;
                world.offer(gateway, world.now, runs_for);
            }
            if crashes && world.below(1_000) == 0 {
                // Its guests end with it.
                let gateway = world.below(gateways as u64) as usize;
                world.gateways[gateway] = world.start();
            }
        }
        // All that may be had is had.
        prop_assert!(world.admitted > 0);
        prop_assert!(world.most <= limit as usize);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn what_runs_too_many_after_a_cut_ends_and_no_place_is_lost(
        gateways in 2usize..4,
        limit in prop_oneof![Just(1u32), Just(2), Just(5), Just(32)],
        share in 0usize..5,
        runs_for_ms in 1u64..4_000,
        forgets in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(gateways, limit, 0, seed);
        world.share = share;
        let all = gateways as u64;
        for _ in 0..3 {
            let mut until = vec![0; gateways];
            // Gateways come and go, some for longer than their lease, and all are kept busy.
            let whole_from = world.now + 15_000 * MS;
            while world.now < whole_from + 10_000 * MS {
                world.step();
                for _ in 0..=world.below(3) {
                    let gateway = world.below(all) as usize;
                    let runs_for = 1 + world.below(runs_for_ms) * MS;
                    world.offer(gateway, world.now, runs_for);
                }
                for (gateway, until) in until.iter_mut().enumerate() {
                    let is_cut_off = world.gateways[gateway].is_cut_off;
                    if is_cut_off && world.now >= (*until).min(whole_from) {
                        world.cut_off(gateway, false);
                    } else if !is_cut_off && world.now < whole_from && world.below(800) == 0 {
                        *until = world.now + world.below(12_000) * MS;
                        world.cut_off(gateway, true);
                    }
                }
                if forgets && world.now < whole_from && world.below(2_000) == 0 {
                    world.forget();
                }
            }
            // The old guests have ended.
            prop_assert!(world.running() <= limit as usize);
        }
        world.run_for(8_000 * MS);
        prop_assert_eq!(world.running(), 0);
        // Whoever asks, each place is found.
        for place in 0..limit as usize {
            world.offer(place % gateways, world.now, 60_000 * MS);
        }
        world.run_for(WAIT_MAX + 100 * MS);
        prop_assert_eq!(world.running(), limit as usize);
    }
}

/// How long after it became free a place is found by the other gateway, where clients ask for it all
/// the time; `busy` says whether the first has guests that come and go besides.
fn moves_after(first_asks_at: u64, busy: bool) -> u64 {
    let mut world = World::new(2, 2, 0, 7);
    // One place for long, the other one for now.
    assert_eq!(world.offer(0, 0, 3_600_000 * MS), None);
    world.offer(0, 0, 1_000 * MS);
    world.run_for(1_000 * MS);
    let freed = world.now;
    world.run_for(first_asks_at);
    let begun = world.now;
    loop {
        let ran = world.gateways[1].guests.len();
        if ran > 0 {
            return world.now - begun.max(freed);
        }
        if world.gateways[1].waiting.is_empty() {
            world.offer(1, world.now, 10_000 * MS);
        }
        if busy && (world.now / MS).is_multiple_of(100) {
            world.offer(0, world.now, 30 * MS);
        }
        world.step();
        assert!(world.now < begun + 10_000 * MS, "it never moves");
    }
}

#[test]
fn a_place_moves_to_the_gateway_that_needs_it_within_a_second() {
    let mut longest = 0;
    for busy in [false, true] {
        for asks_at in (0..1_500).step_by(35) {
            longest = longest.max(moves_after(asks_at * MS, busy));
        }
    }
    println!("a place moves within {} ms", longest / MS);
    assert!(longest <= 1_000 * MS, "{longest} us");
}

#[test]
fn who_asks_while_a_place_is_idle_elsewhere_is_not_refused() {
    for asks_at in (0..1_500).step_by(35) {
        let mut world = World::new(2, 2, 0, 7);
        world.offer(0, 0, 3_600_000 * MS);
        world.offer(0, 0, 1_000 * MS);
        // Long enough that the store has heard of it.
        world.run_for(1_300 * MS + asks_at * MS);
        world.offer(1, world.now, 10_000 * MS);
        world.run_for(WAIT_MAX + 100 * MS);
        assert_eq!(
            (world.refused, world.admitted),
            (0, 3),
            "asked at {asks_at}"
        );
    }
}
