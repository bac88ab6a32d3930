//! The upstreams of one route: which one serves a request, and what is learned from how it went.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use pingora_core::upstreams::peer::{HttpPeer, Peer};

use super::breaker::Pass;
use super::budget::Budget;
use super::member::{Lease, Refused, State};
use super::peer::{self, PeerError};
use super::registry::Registry;
use super::{Balance, Settings, Weighted, balance, http1};

/// The upstreams of one route, at run time.
pub struct Group {
    settings: Settings,
    /// One per distinct server, at least one and at most [`super::SERVERS_MAX`].
    members: Vec<Member>,
    /// Whose turn it is, by weight; indices into `members`.
    schedule: Vec<u8>,
    next: AtomicUsize,
    budget: Budget,
}

/// One server as a group uses it.
pub struct Member {
    state: Arc<State>,
    weight: u32,
    seed: u64,
    /// What is connected to, but for the address.
    peer: HttpPeer,
    /// Tells its connections from those that were made under other rules.
    connection_key: u64,
    /// The server's own name, as a `Host` field has it.
    authority: HeaderValue,
}

/// A request's tries.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tries {
    /// The members that were tried, as bits.
    tried: u64,
    pub count: u32,
    /// What the request is told apart by, where that decides.
    value: Option<u64>,
}

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// There was no connection: nothing a client sends brings that about.
    Connecting,
    /// The answer did not come, broke off, or had a status that counts as a failure.
    Answering,
}

/// No server can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoServer {
    /// All are unhealthy or ejected; the time until one will be tried again.
    Down(Duration),
    /// All have as many requests as they may have.
    Busy,
}

/// Why a group can't be made.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("a group of upstreams needs at least one server and at most {max}", max = super::SERVERS_MAX)]
    Servers,
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// What is said where nothing is known of when a server will be back.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Group {
    /// Reads the files of `settings.tls`, and starts the health checks of servers that the registry
    /// does not know yet.
    ///
    /// # Errors
    /// [`GroupError`]. A server named twice counts once.
    pub fn new(settings: Settings, registry: &Registry) -> Result<Group, GroupError> {
        let tls = peer::Tls::load(&settings.tls)?;
        let mut members: Vec<Member> = Vec::with_capacity(settings.servers.len());
        for Weighted { server, weight } in &settings.servers {
            if members.iter().any(|member| member.state.server() == server) {
                continue;
            }
            let peer = peer::template(server, &settings, &tls);
            let authority = HeaderValue::try_from(server.authority());
            members.push(Member {
                state: registry.state(server, &settings, &peer),
                weight: (*weight).max(1),
                seed: balance::hash(server.to_string().as_bytes()),
                connection_key: peer.reuse_hash(),
                peer,
                authority: authority.map_err(|_| GroupError::Servers)?,
            });
        }
        if members.is_empty() || members.len() > super::SERVERS_MAX {
            return Err(GroupError::Servers);
        }
        if members.iter().any(|member| member.state.server().tls) {
            http1::prepare_tls();
        }
        let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
        let retries = &settings.retries;
        Ok(Group {
            schedule: balance::schedule(&weights),
            next: AtomicUsize::new(0),
            budget: Budget::new(
                retries.budget_percent,
                retries.budget_per_second,
                Instant::now(),
            ),
            members,
            settings,
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The member that a lease is at.
    pub fn member(&self, lease: &Lease) -> Option<&Member> {
        self.members.get(lease.index)
    }

    /// Begins a request. `value` is what it is told apart by, where the balance asks for that.
    pub fn begin(&self, value: Option<&[u8]>) -> Tries {
        self.budget.request();
        Tries {
            value: value.map(balance::hash),
            ..Tries::default()
        }
    }

    /// A place at the server for the next try: one that was not tried yet, as long as there is one.
    /// Waits only where all servers are full and waiting is allowed.
    pub async fn acquire(&self, tries: &mut Tries) -> Result<Lease, NoServer> {
        let now = Instant::now();
        let mut found = self.pick(tries, now);
        if found.is_err() && tries.tried != 0 {
            // Only one that was tried is left; a connection may have been stale.
            tries.tried = 0;
            found = self.pick(tries, now);
        }
        let lease = match found {
            Ok(lease) => lease,
            Err(None) => return Err(NoServer::Down(self.retry_after(now))),
            Err(Some(full)) => {
                let waited = self.members[full]
                    .state
                    .wait_for_place(full, &self.settings.capacity);
                Box::pin(waited).await.map_err(|refused| match refused {
                    Refused::Full => NoServer::Busy,
                    Refused::Down => NoServer::Down(self.retry_after(Instant::now())),
                })?
            }
        };
        tries.tried |= 1 << lease.index;
        if tries.count > 0 {
            lease.state().metrics().retries.inc();
        }
        tries.count += 1;
        Ok(lease)
    }

    /// The first member in the balance's order that has a place; else the first that is only full.
    fn pick(&self, tries: &Tries, now: Instant) -> Result<Lease, Option<usize>> {
        let mut full = None;
        let mut seen = tries.tried;
        let mut consider = |at: usize| {
            if seen & (1 << at) != 0 {
                return None;
            }
            seen |= 1 << at;
            match self.members[at]
                .state
                .enter(at, &self.settings.capacity, now)
            {
                Ok(lease) => Some(lease),
                Err(Refused::Down) => None,
                Err(Refused::Full) => {
                    full.get_or_insert(at);
                    None
                }
            }
        };
        let lease = match (&self.settings.balance, tries.value) {
            (Balance::Hash(_), Some(value)) => self.by_score(value, &mut consider),
            (Balance::LeastConnections, _) => self.by_load(&mut consider),
            (Balance::Hash(_), None) | (Balance::RoundRobin, _) => self.by_turn(&mut consider),
        };
        lease.ok_or(full)
    }

    fn by_turn(&self, consider: &mut impl FnMut(usize) -> Option<Lease>) -> Option<Lease> {
        let turns = self.schedule.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % turns;
        let (before, from) = self.schedule.split_at(first);
        let mut order = from.iter().chain(before).map(|&at| usize::from(at));
        order.find_map(consider)
    }

    /// The fewest requests for its weight first. Ties take turns.
    fn by_load(&self, consider: &mut impl FnMut(usize) -> Option<Lease>) -> Option<Lease> {
        let count = self.members.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        self.in_order(consider, |at| {
            let member = &self.members[at];
            let load = (f64::from(member.state.active()) + 1.0) / f64::from(member.weight);
            let turn = (at + count - first) % count;
            // Far below what one request weighs, so that it only decides between equals.
            load + turn as f64 * 1e-9
        })
    }

    fn by_score(
        &self,
        value: u64,
        consider: &mut impl FnMut(usize) -> Option<Lease>,
    ) -> Option<Lease> {
        self.in_order(consider, |at| {
            let member = &self.members[at];
            -balance::score(member.seed, value, member.weight)
        })
    }

    /// Considers the members with the smallest rank first. The first is nearly always taken, so no
    /// order is made for all.
    fn in_order(
        &self,
        consider: &mut impl FnMut(usize) -> Option<Lease>,
        rank: impl Fn(usize) -> f64,
    ) -> Option<Lease> {
        let mut left = u64::MAX >> (64 - self.members.len());
        while left != 0 {
            let best = (0..self.members.len())
                .filter(|at| left & (1 << at) != 0)
                .min_by(|&a, &b| rank(a).total_cmp(&rank(b)))?;
            left &= !(1 << best);
            if let Some(lease) = consider(best) {
                return Some(lease);
            }
        }
        None
    }

    fn retry_after(&self, now: Instant) -> Duration {
        let waits = self.members.iter().filter_map(|m| m.state.wait(now));
        waits.min().unwrap_or(RETRY_AFTER)
    }

    /// Whether a request that failed may be tried again: there is a try left, somewhere to go, and
    /// something in the budget. Takes from the budget, so it is asked last.
    pub fn may_retry(&self, tries: &Tries) -> bool {
        if tries.count >= self.settings.retries.tries_max {
            return false;
        }
        let allowed = self.budget.take(Instant::now());
        if !allowed {
            crate::telemetry::metrics::metrics()
                .upstream_retries_refused
                .inc();
        }
        allowed
    }

    /// Whether there is another server, or another address of the same, to try.
    pub fn has_alternative(&self, tries: &Tries, lease: &Lease) -> bool {
        let now = Instant::now();
        let other = (self.members.iter().enumerate())
            .any(|(at, m)| tries.tried & (1 << at) == 0 && !m.state.is_down(now));
        other || lease.state().has_addresses()
    }

    /// The server answered as it should.
    pub fn succeeded(&self, lease: &mut Lease) {
        if std::mem::replace(&mut lease.judged, true) {
            return;
        }
        // What breaks later is judged as of any other request.
        let pass = std::mem::replace(&mut lease.pass, Pass::Ordinary);
        let state = lease.state();
        state.metrics().ok.inc();
        if state.breaker().is_some_and(|b| b.succeeded(pass)) {
            state.metrics().ejected.set(0);
            tracing::info!(upstream = %state.server(), "the upstream answers again");
        }
    }

    /// The server failed, before its answer or in the middle of it.
    pub fn failed(&self, lease: &mut Lease, failed: Failed) {
        lease.judged = true;
        let pass = std::mem::replace(&mut lease.pass, Pass::Ordinary);
        let state = lease.state();
        match failed {
            Failed::Connecting => state.metrics().connect_failed.inc(),
            Failed::Answering => state.metrics().failed.inc(),
        }
        let Some(breaker) = state.breaker() else {
            return;
        };
        let ejected = breaker.failed(pass, Instant::now(), || match failed {
            Failed::Connecting => true,
            Failed::Answering => self.may_eject(),
        });
        if ejected {
            state.metrics().ejections.inc();
            state.metrics().ejected.set(1);
            let for_ms = breaker.wait(Instant::now()).as_millis() as u64;
            tracing::warn!(upstream = %state.server(), for_ms, "the upstream keeps failing and is left out");
        }
    }

    /// Whether one more may be out.
    fn may_eject(&self) -> bool {
        let Some(ejection) = &self.settings.ejection else {
            return false;
        };
        let out = self.members.iter().filter(|m| m.state.is_ejected()).count();
        (out + 1) * 100 <= self.members.len() * ejection.percent_max as usize
    }
}

impl Member {
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What to connect to, at this address.
    pub fn peer(&self, address: SocketAddr) -> HttpPeer {
        peer::at(&self.peer, address)
    }

    /// Different for servers, and for rules under which connections to them are made. The address is not
    /// in it.
    pub fn connection_key(&self) -> u64 {
        self.connection_key
    }

    pub fn authority(&self) -> &HeaderValue {
        &self.authority
    }
}

#[cfg(test)]
mod tests;
