//! One subject's lease: what is held, what the store last said, what to ask it.

use tokio::sync::oneshot;

use super::{AHEAD, ASK_AGAIN_AFTER, LEASE_HERE, QUIET_AFTER, REPORT_EVERY, nanoseconds};
use crate::limits::{Account, Bucket, Decision, Rate, Subject};

/// The rate of requests is measured over at least so long, in nanoseconds.
const MEASURED_OVER_NS: u64 = 100_000_000;

/// Tokens asked for ahead, at most.
const AHEAD_MAX: u64 = 1_000_000;

/// A question to the store about one subject. Amounts are of this moment, not differences, so that
/// nothing is counted twice when an answer is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub subject: Subject,
    /// Counts this gateway's questions up: the store ignores one that comes after a newer one.
    pub sequence: u64,
    pub rate: Rate,
    /// Tokens that this gateway holds now, besides those it gives back.
    pub held: u32,
    /// Of [`Subject::Guests`]: how many of `held` are not in use.
    pub idle: u32,
    /// Tokens given back: they were held, and are not any more.
    pub back: u32,
    /// Tokens for which requests wait.
    pub need: u32,
    /// Tokens for requests to come, as far as there are plenty.
    pub ahead: u32,
    /// Thousandths of a token taken without being held.
    pub owed: u64,
    /// What the subject's buckets owe as far as is known here, minute and day, in units of a token /
    /// the window's microseconds: they begin with it where the store knows nothing of them.
    pub seed: [u128; 2],
    /// Whether the store must take over the day's, because it has lost what it held.
    pub restores: bool,
    generation: u32,
    asked_ns: u64,
}

/// What the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub granted: u32,
    /// What the buckets owe now, minute and day, in the units of [`Call::seed`]; tokens that a gateway
    /// holds count as owed.
    pub debts: [u128; 2],
    /// Of [`Subject::Guests`]: what other gateways held without using it, when they were last heard of.
    pub idle_elsewhere: u32,
    /// Of [`Subject::Guests`]: whether another gateway has asked in vain a moment ago.
    pub is_wanted: bool,
    /// Of [`Subject::Guests`]: how many more all gateways hold than there are. So it is when one was not
    /// heard of for longer than its lease, and others got its places while its guests ran on.
    pub excess: u32,
}

impl Call {
    /// The limits of the subject's two buckets, -1 for none, and their windows in microseconds.
    pub fn windows(&self) -> [(i64, u64); 2] {
        const NONE: (i64, u64) = (-1, 1);
        if self.subject.is_borrowed() {
            // A window in which all refills at once leaves nothing taken but what is held.
            let limit = self.rate.per_minute.map_or(-1, i64::from);
            return [(limit, 1), NONE];
        }
        self.subject.quotas(self.rate).map(|quota| {
            quota.map_or(NONE, |quota| {
                let window_us = u64::from(quota.window_seconds()) * 1_000_000;
                (i64::from(quota.limit()), window_us)
            })
        })
    }

    /// How many limits' worth a bucket may owe.
    pub fn owes_limits(&self) -> u32 {
        if self.subject.is_charged() { 2 } else { 1 }
    }
}

pub(super) struct Entry {
    pub rate: Rate,
    pub held: u32,
    seats: Seats,
    valid_until_ns: u64,
    /// What the store last said; all that is held here counts as taken there.
    known: Account,
    known_at_ns: u64,
    pub is_known: bool,
    asked_ns: u64,
    used_ns: u64,
    ask_again_ns: u64,
    /// At this many held, more are asked for.
    low: u32,
    measured: Measured,
    /// Thousandths of a token that were taken without being held, and not yet reported.
    pub owed: u64,
    pub waiters: Vec<oneshot::Sender<()>>,
    /// Wait for an answer, but for no token.
    pub onlookers: Vec<oneshot::Sender<()>>,
    pub is_queued: bool,
    is_asked: bool,
    pub gives_back: bool,
    generation: u32,
}

/// Of [`Subject::Guests`]: tokens that come back after use.
#[derive(Default)]
struct Seats {
    /// In use, which are held as well, beside [`Entry::held`].
    in_use: u32,
    /// As many of those in use are not granted: the store did not answer when they were taken, or has
    /// granted them to others since. They end without becoming places again.
    ungranted: u32,
    /// Taken without the store, and given up, since the store was last told how many are held.
    occupied: u32,
    given_up: u32,
    /// Most in use at a time, since `since_ns` and in the period before.
    most: [u32; 2],
    since_ns: u64,
    /// What the store last said of the other gateways.
    idle_elsewhere: u32,
    is_wanted: bool,
}

/// How many requests come.
#[derive(Default)]
struct Measured {
    since_ns: u64,
    requests: u64,
    per_second: u64,
}

impl Entry {
    pub fn new(now_ns: u64) -> Entry {
        Entry {
            rate: Rate::default(),
            held: 0,
            seats: Seats::default(),
            valid_until_ns: 0,
            known: Account::default(),
            known_at_ns: 0,
            is_known: false,
            asked_ns: 0,
            used_ns: now_ns,
            ask_again_ns: 0,
            low: 0,
            measured: Measured {
                since_ns: now_ns,
                ..Measured::default()
            },
            owed: 0,
            waiters: Vec::new(),
            onlookers: Vec::new(),
            is_queued: false,
            is_asked: false,
            gives_back: false,
            generation: 0,
        }
    }

    /// Admits a request from what is held.
    pub fn take(&mut self, subject: &Subject, now_ns: u64) -> Option<Decision> {
        self.used_ns = now_ns;
        self.measured.requests += 1;
        if self.held == 0 || now_ns >= self.valid_until_ns {
            return None;
        }
        self.held -= 1;
        if subject.is_borrowed() {
            self.seats.sit();
        }
        Some(self.admitted(subject, now_ns))
    }

    fn admitted(&self, subject: &Subject, now_ns: u64) -> Decision {
        if subject.is_borrowed() {
            return Decision {
                allowed: true,
                window: None,
            };
        }
        let quotas = subject.quotas(self.rate);
        self.known.admitted(quotas, self.held, now_ns)
    }

    /// Refuses a request for which the store has no token either, as far as is known.
    pub fn refuse(&self, subject: &Subject, now_ns: u64) -> Option<Decision> {
        let is_soon = now_ns < self.ask_again_ns;
        if subject.is_borrowed() {
            return is_soon.then_some(Decision {
                allowed: false,
                window: None,
            });
        }
        if !self.is_known {
            return None;
        }
        let decision = self.known.peek(subject.quotas(self.rate), now_ns);
        (is_soon || !decision.allowed).then_some(Decision {
            allowed: false,
            ..decision
        })
    }

    /// What is left as of an answer that is not older than `fresh_ns`.
    pub fn look(&self, subject: &Subject, fresh_ns: u64, now_ns: u64) -> Option<Decision> {
        let is_fresh = self.is_known && now_ns.saturating_sub(self.known_at_ns) < fresh_ns;
        let quotas = subject.quotas(self.rate);
        is_fresh.then(|| {
            let mut account = self.known;
            account.charge(quotas, self.owed, now_ns);
            account.peek(quotas, now_ns)
        })
    }

    /// Whether other gateways hold borrowed tokens that they don't use: they will give them back soon.
    pub fn may_come_soon(&self) -> bool {
        self.seats.idle_elsewhere > 0
    }

    /// Whether another gateway needs what is held here without being used.
    pub fn gives_way(&self) -> bool {
        self.seats.is_wanted && self.held > 0
    }

    pub fn is_in_use(&self) -> bool {
        self.seats.in_use > 0
    }

    /// Notes a borrowed token that is used without being granted.
    pub fn occupy(&mut self, now_ns: u64) {
        self.used_ns = now_ns;
        self.seats.occupy();
    }

    /// Puts a borrowed token back. Says whether the store must hear of it at once.
    pub fn release(&mut self, now_ns: u64) -> bool {
        self.used_ns = now_ns;
        self.held += self.seats.rise();
        self.seats.is_wanted
    }

    /// Whether it is time to ask for tokens, before none is held.
    pub fn wants_more(&self) -> bool {
        self.held < self.low && !self.is_asked && !self.is_queued
    }

    /// Whether the store must hear of this lease, without a request.
    pub fn is_due(&mut self, subject: &Subject, now_ns: u64) -> bool {
        if now_ns >= self.valid_until_ns {
            self.held = 0;
        }
        let since = |at_ns: u64| now_ns.saturating_sub(at_ns);
        if self.seats.in_use == 0 && since(self.used_ns) >= nanoseconds(QUIET_AFTER) {
            self.gives_back = true;
            return true;
        }
        // Whoever holds what others may want hears soon whether they do.
        let is_idle = subject.is_borrowed() && self.held > 0;
        is_idle || self.owed > 0 || since(self.asked_ns) >= nanoseconds(REPORT_EVERY)
    }

    pub fn call(
        &mut self,
        subject: Subject,
        sequence: u64,
        generation: u32,
        lost_at_ns: Option<u64>,
        now_ns: u64,
    ) -> Call {
        self.is_queued = false;
        self.is_asked = true;
        if now_ns >= self.valid_until_ns {
            self.held = 0;
        }
        self.waiters.retain(|waiter| !waiter.is_closed());
        let need = u32::try_from(self.waiters.len()).unwrap_or(u32::MAX);
        let wanted = self.wanted_ahead(&subject, now_ns);
        let gives_back = std::mem::take(&mut self.gives_back) && need == 0;
        let back = if gives_back {
            self.held
        } else if subject.is_borrowed() && need == 0 {
            self.seats.spare(self.held, now_ns)
        } else {
            0
        };
        self.held -= back;
        self.seats.told();
        let ahead = if gives_back {
            0
        } else {
            wanted.saturating_sub(self.held)
        };
        self.low = wanted / 2;
        Call {
            subject,
            sequence,
            rate: self.rate,
            held: self.held + self.seats.in_use,
            idle: if subject.is_borrowed() { self.held } else { 0 },
            back,
            need,
            ahead,
            owed: std::mem::take(&mut self.owed),
            seed: self.seed(&subject, lost_at_ns, now_ns),
            restores: self.generation != generation && self.is_known,
            generation,
            asked_ns: now_ns,
        }
    }

    /// Takes in an answer; says whether the store has a lease of ours now.
    pub fn settle(&mut self, call: &Call, answer: Option<Answer>, now_ns: u64) -> bool {
        self.is_asked = false;
        let Some(answer) = answer else {
            self.fail(call);
            return true;
        };
        self.generation = call.generation;
        self.held += answer.granted;
        if call.subject.is_borrowed() {
            self.held -= self.seats.give_up(answer.excess, self.held);
        }
        self.valid_until_ns = call.asked_ns + nanoseconds(LEASE_HERE);
        self.asked_ns = call.asked_ns;
        self.is_known = true;
        self.known_at_ns = now_ns;
        // As of now, although they were true a moment ago: then no token is awaited too soon.
        let [minute, day] = answer
            .debts
            .map(|debt| Bucket::owing(debt.saturating_mul(1_000), now_ns));
        self.known = Account::of(minute, day);
        self.seats.idle_elsewhere = answer.idle_elsewhere;
        self.seats.is_wanted = answer.is_wanted;
        if call.need > 0 && answer.granted == 0 {
            self.ask_again_ns = now_ns + nanoseconds(ASK_AGAIN_AFTER);
        }
        if answer.granted < call.need.saturating_add(call.ahead) {
            // There is not plenty: asking sooner would get no more.
            self.low = self.low.min(self.held / 2);
        }
        self.wake();
        call.held + answer.granted + self.seats.in_use > 0
    }

    pub fn fail(&mut self, call: &Call) {
        self.is_asked = false;
        self.owed = self.owed.saturating_add(call.owed);
        self.wake();
    }

    /// Who waits looks again.
    pub fn wake(&mut self) {
        for waiter in self.waiters.drain(..).chain(self.onlookers.drain(..)) {
            // One that has gone does not want to know.
            let _ = waiter.send(());
        }
    }

    /// How many tokens to hold for what is to come: none for who has just come.
    fn wanted_ahead(&mut self, subject: &Subject, now_ns: u64) -> u32 {
        let measured = &mut self.measured;
        let elapsed_ns = now_ns.saturating_sub(measured.since_ns);
        let over_ns = elapsed_ns.max(MEASURED_OVER_NS);
        let per_second = measured.requests.saturating_mul(1_000_000_000) / over_ns;
        if elapsed_ns >= MEASURED_OVER_NS {
            // It grows at once and wanes slowly.
            measured.per_second = per_second.max((measured.per_second + per_second) / 2);
            measured.requests = 0;
            measured.since_ns = now_ns;
        } else {
            measured.per_second = measured.per_second.max(per_second);
        }
        if !self.is_known || subject.is_borrowed() || subject.is_charged() {
            return 0;
        }
        let ahead = measured
            .per_second
            .saturating_mul(nanoseconds(AHEAD))
            .div_ceil(1_000_000_000);
        u32::try_from(ahead.min(AHEAD_MAX)).unwrap_or(u32::MAX)
    }

    /// What the buckets owe as far as is known here. Where the store has lost everything, its minutes
    /// begin empty: nobody knows what the other gateways have admitted.
    fn seed(&self, subject: &Subject, lost_at_ns: Option<u64>, now_ns: u64) -> [u128; 2] {
        if subject.is_borrowed() {
            return [0, 0];
        }
        let quotas = subject.quotas(self.rate);
        let [mut minute, day] = self.known.debts(quotas, now_ns);
        if let (Some(lost_at_ns), [Some(quota), _]) = (lost_at_ns, quotas) {
            let empty = Bucket::empty(quota, lost_at_ns);
            minute = minute.max(empty.debt(quota, now_ns));
        }
        [minute, day].map(|debt| debt.div_ceil(1_000))
    }
}

impl Seats {
    fn sit(&mut self) {
        self.in_use += 1;
        self.most[0] = self.most[0].max(self.in_use);
    }

    fn occupy(&mut self) {
        self.ungranted += 1;
        self.occupied += 1;
        self.sit();
    }

    /// The store is told how many are held and in use.
    fn told(&mut self) {
        self.occupied = 0;
        self.given_up = 0;
    }

    /// Of what the store was told, so many are too many among all gateways. Each of them gives up as many:
    /// what nobody uses at once, which is returned, and the rest as guests end. When that is more than
    /// need be, because others did so too, the store has places to grant again.
    fn give_up(&mut self, excess: u32, held: u32) -> u32 {
        let excess = excess
            .saturating_add(self.occupied)
            .saturating_sub(self.given_up);
        let unused = excess.min(held);
        self.given_up += unused;
        self.ungranted = (excess - unused).min(self.in_use);
        unused
    }

    /// Ends a use; returns what of it can be used again. Those that are not granted end first.
    fn rise(&mut self) -> u32 {
        if self.in_use == 0 {
            return 0;
        }
        self.in_use -= 1;
        if self.ungranted == 0 {
            return 1;
        }
        self.ungranted -= 1;
        self.given_up += 1;
        0
    }

    /// How many of `held` to give back: all while another gateway needs them, else those that were not
    /// in use for a while.
    fn spare(&mut self, held: u32, now_ns: u64) -> u32 {
        if now_ns.saturating_sub(self.since_ns) >= nanoseconds(REPORT_EVERY) {
            self.most = [self.in_use, self.most[0]];
            self.since_ns = now_ns;
        }
        if self.is_wanted {
            return held;
        }
        let most = self.most[0].max(self.most[1]);
        held.saturating_sub(most.saturating_sub(self.in_use))
    }
}
