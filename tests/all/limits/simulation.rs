//! Many gateways on one store, with networks that are slow, lose and reorder, gateways that crash, and
//! a store that restarts, with or without what it held. Whatever happens, the gateways together admit
//! what one bucket would, and no request more.

use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::sync::oneshot;
use uuid::Uuid;
use wasm_wizard::limits::store::leases::{Answer, Call, Leases, Taken};
use wasm_wizard::limits::{Bucket, Quota, Rate, Subject, Tier};

use super::model::Store;

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
/// A gateway gives up on a call after so long.
const TIMEOUT: u64 = 200 * MS;
const WAIT_MAX: u64 = 2 * TIMEOUT;

#[derive(Debug, Clone)]
struct World {
    gateways: usize,
    per_minute: u32,
    per_day: Option<u32>,
    /// Between two requests, on average.
    interval_us: u64,
    latency_us: u64,
    lost_percent: u64,
    crashes: bool,
    restarts: Restarts,
    seconds: u64,
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Restarts {
    Never,
    Keeping,
    Forgetting,
}

/// What happens, and when, in microseconds of true time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: std::cmp::Reverse<u64>,
    number: u64,
    what: usize,
}

enum What {
    Request,
    Tick {
        gateway: usize,
        life: u64,
    },
    Arrives {
        gateway: usize,
        life: u64,
        flight: u64,
        name: String,
        calls: Vec<Call>,
    },
    Answered {
        gateway: usize,
        life: u64,
        flight: u64,
        calls: Vec<Call>,
        answers: Vec<Option<Answer>>,
    },
    GivesUp {
        gateway: usize,
        life: u64,
        flight: u64,
    },
    Back {
        gateway: usize,
        life: u64,
    },
    Crash,
    Down,
    Up,
}

struct Gateway {
    life: u64,
    name: String,
    leases: Leases,
    origin: Instant,
    /// Its clock runs so many millionths faster.
    skew: i64,
    flight: Option<(u64, Vec<Call>)>,
    waiting: Vec<(u64, oneshot::Receiver<()>)>,
    generation: u64,
}

struct Simulation {
    world: World,
    random: u64,
    now: u64,
    numbers: u64,
    events: BinaryHeap<Event>,
    whats: Vec<Option<What>>,
    gateways: Vec<Gateway>,
    store: Store,
    is_up: bool,
    generation: u64,
    lost_at: Option<u64>,
    subject: Subject,
    rate: Rate,
    admitted: Vec<u64>,
    calls: u64,
}

impl Gateway {
    fn new(life: u64, skew: i64, generation: u64) -> Gateway {
        let origin = Instant::now();
        Gateway {
            life,
            name: format!("gateway{life}"),
            leases: Leases::new(1_000, origin),
            origin,
            skew,
            flight: None,
            waiting: Vec::new(),
            generation,
        }
    }

    fn clock(&self, now: u64) -> Instant {
        let skewed = i128::from(now) * i128::from(1_000_000 + self.skew) / 1_000_000;
        self.origin + Duration::from_micros(skewed as u64)
    }
}

impl Simulation {
    fn new(world: World) -> Simulation {
        let rate = Rate {
            per_minute: Some(world.per_minute),
            per_day: world.per_day,
        };
        let mut simulation = Simulation {
            random: world.seed | 1,
            now: 0,
            numbers: 0,
            events: BinaryHeap::new(),
            whats: Vec::new(),
            gateways: Vec::new(),
            store: Store::default(),
            is_up: true,
            generation: 1,
            lost_at: None,
            subject: Subject::User(Uuid::from_u128(1), Tier::Free),
            rate,
            admitted: Vec::new(),
            calls: 0,
            world,
        };
        for gateway in 0..simulation.world.gateways {
            simulation.start(gateway);
        }
        simulation.at(0, What::Request);
        if simulation.world.crashes {
            simulation.at(3 * SECOND, What::Crash);
        }
        if simulation.world.restarts != Restarts::Never {
            simulation.at(7 * SECOND, What::Down);
        }
        simulation
    }

    fn start(&mut self, gateway: usize) {
        let life = self.number();
        let skew = self.below(2_001) as i64 - 1_000;
        let new = Gateway::new(life, skew, self.generation);
        if let Some(lost_at) = self.lost_at {
            let ago = Duration::from_micros(self.now - lost_at);
            new.leases.store_has_lost(ago, new.clock(self.now));
        }
        new.leases.set_up(self.is_up);
        if gateway < self.gateways.len() {
            self.gateways[gateway] = new;
        } else {
            self.gateways.push(new);
        }
        self.at(self.now, What::Tick { gateway, life });
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }

    fn at(&mut self, at: u64, what: What) {
        let number = self.number();
        self.whats.push(Some(what));
        self.events.push(Event {
            at: std::cmp::Reverse(at),
            number,
            what: self.whats.len() - 1,
        });
    }

    fn run(&mut self) {
        let end = self.world.seconds * SECOND;
        while let Some(event) = self.events.pop() {
            self.now = event.at.0;
            if self.now > end {
                return;
            }
            if let Some(what) = self.whats[event.what].take() {
                self.happen(what);
            }
        }
    }

    fn lives(&self, gateway: usize, life: u64) -> bool {
        self.gateways[gateway].life == life
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Request => {
                let gateway = self.below(self.world.gateways as u64) as usize;
                self.request(gateway, self.now);
                let next = self.now + 1 + self.below(2 * self.world.interval_us);
                self.at(next, What::Request);
            }
            What::Tick { gateway, life } if self.lives(gateway, life) => {
                let now = self.gateways[gateway].clock(self.now);
                self.gateways[gateway].leases.sweep(now);
                self.send(gateway);
                self.at(self.now + 250 * MS, What::Tick { gateway, life });
            }
            What::Arrives {
                gateway,
                life,
                flight,
                name,
                calls,
            } if self.is_up => {
                let store = &mut self.store;
                let now = self.now;
                let answers = calls
                    .iter()
                    .map(|call| store.call(&name, call, now))
                    .collect();
                if !self.is_lost() {
                    let at = self.now + self.latency();
                    self.at(
                        at,
                        What::Answered {
                            gateway,
                            life,
                            flight,
                            calls,
                            answers,
                        },
                    );
                }
            }
            What::Answered {
                gateway,
                life,
                flight,
                calls,
                answers,
            } if self.lives(gateway, life) => {
                let this = &mut self.gateways[gateway];
                if this
                    .flight
                    .as_ref()
                    .is_some_and(|(number, _)| *number == flight)
                {
                    this.flight = None;
                    let now = this.clock(self.now);
                    for (call, answer) in calls.iter().zip(answers) {
                        this.leases.settle(call, answer, now);
                    }
                    self.look_again(gateway);
                    self.send(gateway);
                }
            }
            What::GivesUp {
                gateway,
                life,
                flight,
            } if self.lives(gateway, life) => {
                let this = &mut self.gateways[gateway];
                if let Some((_, calls)) = this.flight.take_if(|(number, _)| *number == flight) {
                    this.leases.set_up(false);
                    for call in &calls {
                        this.leases.fail(call);
                    }
                    self.look_again(gateway);
                    let at = self.now + 20 * MS + self.below(200 * MS);
                    self.at(at, What::Back { gateway, life });
                }
            }
            What::Back { gateway, life } if self.lives(gateway, life) => {
                self.reconnect(gateway, life)
            }
            What::Crash => {
                let gateway = self.below(self.world.gateways as u64) as usize;
                self.start(gateway);
                let next = self.now + self.below(20 * SECOND);
                self.at(next, What::Crash);
            }
            What::Down => {
                self.is_up = false;
                let back = self.now + self.below(6 * SECOND);
                self.at(back, What::Up);
            }
            What::Up => {
                self.is_up = true;
                if self.world.restarts == Restarts::Forgetting {
                    self.store = Store::default();
                    self.generation += 1;
                    self.lost_at = Some(self.now);
                }
                let next = self.now + self.below(40 * SECOND);
                self.at(next, What::Down);
            }
            What::Tick { .. }
            | What::Arrives { .. }
            | What::Answered { .. }
            | What::GivesUp { .. }
            | What::Back { .. } => {}
        }
    }

    fn reconnect(&mut self, gateway: usize, life: u64) {
        if !self.is_up {
            let at = self.now + 20 * MS + self.below(500 * MS);
            return self.at(at, What::Back { gateway, life });
        }
        let (generation, lost_at) = (self.generation, self.lost_at);
        let this = &mut self.gateways[gateway];
        let now = this.clock(self.now);
        if this.generation != generation {
            this.generation = generation;
            let ago = Duration::from_micros(self.now - lost_at.unwrap());
            this.leases.store_has_lost(ago, now);
        }
        this.leases.set_up(true);
        self.send(gateway);
    }

    fn is_lost(&mut self) -> bool {
        self.below(100) < self.world.lost_percent
    }

    fn latency(&mut self) -> u64 {
        // Now and then far longer than a gateway waits, so that the store hears old news.
        let most = if self.below(200) == 0 && self.world.lost_percent > 0 {
            3 * SECOND
        } else {
            self.world.latency_us
        };
        1 + self.below(most)
    }

    /// As the courier does: one flight at a time.
    fn send(&mut self, gateway: usize) {
        let this = &mut self.gateways[gateway];
        if this.flight.is_some() || !this.leases.is_up() {
            return;
        }
        let now = this.clock(self.now);
        let calls = this.leases.collect(256, now);
        if calls.is_empty() {
            return;
        }
        let (life, name) = (this.life, this.name.clone());
        let flight = self.number();
        self.calls += calls.len() as u64;
        self.gateways[gateway].flight = Some((flight, calls.clone()));
        self.at(
            self.now + TIMEOUT,
            What::GivesUp {
                gateway,
                life,
                flight,
            },
        );
        if !self.is_lost() {
            let at = self.now + self.latency();
            self.at(
                at,
                What::Arrives {
                    gateway,
                    life,
                    flight,
                    name,
                    calls,
                },
            );
        }
    }

    /// Policy: closed.
    fn request(&mut self, gateway: usize, since: u64) {
        let this = &mut self.gateways[gateway];
        let now = this.clock(self.now);
        match this.leases.take(&self.subject, self.rate, now) {
            Taken::Decided(decision) if decision.allowed => self.admitted.push(self.now),
            Taken::Decided(_) | Taken::Lost => {}
            Taken::Soon(_) => panic!("what is spent does not come back"),
            Taken::Asked(asked) => {
                this.waiting.push((since, asked));
                self.send(gateway);
            }
        }
    }

    fn look_again(&mut self, gateway: usize) {
        let waiting = std::mem::take(&mut self.gateways[gateway].waiting);
        for (since, mut asked) in waiting {
            if self.now - since > WAIT_MAX {
                continue;
            }
            match asked.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.gateways[gateway].waiting.push((since, asked));
                }
                Ok(()) | Err(oneshot::error::TryRecvError::Closed) => self.request(gateway, since),
            }
        }
    }

    /// What was admitted is what one bucket would have admitted.
    fn assert_one_bucket(&self) {
        let quotas = [
            self.rate.per_minute.map(Quota::per_minute),
            self.rate.per_day.map(Quota::per_day),
        ];
        for quota in quotas.into_iter().flatten() {
            let mut bucket = Bucket::default();
            for (number, at) in self.admitted.iter().enumerate() {
                assert!(
                    bucket.take(quota, at * 1_000),
                    "request {number}, admitted at {at} us, is one too many for {quota:?} in {:?}",
                    self.world
                );
            }
        }
    }

    /// No window of a minute has more than the limit and the burst, and one burst more for each store that
    /// may have been the first that a gateway ever saw.
    fn assert_windows(&self) {
        let firsts = if self.world.crashes {
            self.generation
        } else {
            0
        };
        let most = (2 + firsts as usize) * self.world.per_minute as usize;
        for (first, at) in self.admitted.iter().enumerate() {
            let count = self.admitted[first..].partition_point(|other| *other < at + 60 * SECOND);
            assert!(
                count <= most,
                "{count} in the minute from {at} us in {:?}",
                self.world
            );
        }
    }
}

fn worlds() -> impl Strategy<Value = World> {
    (
        (
            1usize..6,
            prop_oneof![Just(1u32), Just(7), Just(10), Just(100), Just(500)],
        ),
        (prop::option::of(1u32..800), 200u64..200_000, 50u64..50_000),
        (0u64..8, any::<bool>(), any::<u64>()),
        prop_oneof![
            Just(Restarts::Never),
            Just(Restarts::Keeping),
            Just(Restarts::Forgetting)
        ],
    )
        .prop_map(|(a, b, c, restarts)| World {
            gateways: a.0,
            per_minute: a.1,
            per_day: b.0,
            interval_us: b.1,
            latency_us: b.2,
            lost_percent: c.0,
            crashes: c.1,
            restarts,
            seconds: 90,
            seed: c.2,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn gateways_together_are_one_bucket_whatever_happens(world in worlds()) {
        let restarts = world.restarts;
        let mut simulation = Simulation::new(world);
        simulation.run();
        match restarts {
            Restarts::Never | Restarts::Keeping => simulation.assert_one_bucket(),
            // What the store has lost is known in part alone.
            Restarts::Forgetting => simulation.assert_windows(),
        }
    }
}

fn calm(gateways: usize, per_minute: u32, interval_us: u64) -> World {
    World {
        gateways,
        per_minute,
        per_day: None,
        interval_us,
        latency_us: 1_000,
        lost_percent: 0,
        crashes: false,
        restarts: Restarts::Never,
        seconds: 120,
        seed: 42,
    }
}

#[test]
fn on_a_calm_day_nearly_all_of_the_limit_is_admitted() {
    for (gateways, per_minute) in [(1, 100), (3, 10), (3, 100), (10, 100), (5, 1_000)] {
        let mut simulation = Simulation::new(calm(gateways, per_minute, 2_000));
        simulation.run();
        simulation.assert_one_bucket();
        // The last token is there only when the time is over.
        let allowed = 3 * per_minute as usize - 1;
        let admitted = simulation.admitted.len();
        assert!(
            admitted * 100 >= allowed * 98,
            "{admitted} of {allowed} with {gateways} gateways"
        );
    }
}

#[test]
fn a_client_within_its_limit_is_never_refused_and_seldom_asked_about() {
    // 500 a minute, of 6,000 allowed.
    let mut simulation = Simulation::new(calm(3, 6_000, 120_000));
    simulation.run();
    let offered = simulation.admitted.len();
    assert!(offered > 900, "{offered}");
    // Gaps between requests count as no more than a second each at a gateway.
    assert!(simulation.calls < 1_500, "{} calls", simulation.calls);
    let world = World {
        seconds: 20,
        ..calm(3, 1_000_000, 200)
    };
    let mut busy = Simulation::new(world);
    busy.run();
    let (admitted, calls) = (busy.admitted.len() as u64, busy.calls);
    assert!(
        admitted > 90_000 && calls * 100 < admitted,
        "{calls} calls for {admitted}"
    );
}
