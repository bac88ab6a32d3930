//! One server at run time: whether it is to be used, and what it is doing.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::breaker::{Breaker, Pass};
use super::resolve::Resolver;
use super::{Capacity, Ejection, Server};
use crate::telemetry::metrics::UpstreamMetrics;

/// What is known of a server. Groups with the same server and the same rules share it, also over a
/// change of the configuration.
pub struct State {
    server: Server,
    /// The server, as logs name it.
    name: String,
    resolver: Resolver,
    /// What the health checks say; true where there are none.
    healthy: AtomicBool,
    breaker: Option<Breaker>,
    /// Requests in flight, by the end of their answers.
    active: AtomicU32,
    /// Requests that wait for one of those to end.
    pending: AtomicU32,
    freed: Notify,
    metrics: Arc<UpstreamMetrics>,
    /// The task that checks it, which ends with this.
    checks: OnceLock<AbortHandle>,
}

/// Why a request does not get this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is unhealthy or ejected.
    Down,
    /// It has as many requests as it may have.
    Full,
}

/// A place at a server; dropping it frees the place.
pub struct Lease {
    state: Arc<State>,
    /// Which member of its group it is at.
    pub(super) index: usize,
    pub(super) pass: Pass,
    /// Whether the server's answer, or its absence, has been taken note of.
    pub(super) judged: bool,
}

impl State {
    pub fn new(server: Server, ejection: Option<Ejection>, metrics: Arc<UpstreamMetrics>) -> State {
        metrics.up.set(1);
        State {
            resolver: Resolver::new(&server),
            name: server.to_string(),
            server,
            healthy: AtomicBool::new(true),
            breaker: ejection.map(Breaker::new),
            active: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            freed: Notify::new(),
            metrics,
            checks: OnceLock::new(),
        }
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The server, as logs name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn metrics(&self) -> &UpstreamMetrics {
        &self.metrics
    }

    pub(super) fn breaker(&self) -> Option<&Breaker> {
        self.breaker.as_ref()
    }

    /// The task that reports to this. The first stays.
    pub(super) fn checked_by(&self, task: AbortHandle) {
        if let Err(task) = self.checks.set(task) {
            task.abort();
        }
    }

    pub(super) fn set_healthy(&self, healthy: bool) {
        if self.healthy.swap(healthy, Ordering::Relaxed) != healthy {
            self.metrics.up.set(i64::from(healthy));
            if healthy {
                tracing::info!(upstream = %self.server, "the upstream is healthy again");
            } else {
                tracing::warn!(upstream = %self.server, "the upstream failed its health checks and is left out");
            }
        }
    }

    pub(super) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.breaker.as_ref().is_some_and(Breaker::is_ejected)
    }

    pub(super) fn is_down(&self, now: Instant) -> bool {
        !self.healthy.load(Ordering::Relaxed)
            || self.breaker.as_ref().is_some_and(|b| b.is_out(now))
    }

    /// When it makes sense to ask again, as far as that is known.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.healthy
            .load(Ordering::Relaxed)
            .then(|| self.breaker.as_ref().map(|b| b.wait(now)))
            .flatten()
    }

    /// Takes a place at once, or says why there is none.
    pub(super) fn enter(
        self: &Arc<State>,
        index: usize,
        capacity: &Capacity,
        now: Instant,
    ) -> Result<Lease, Refused> {
        if !self.healthy.load(Ordering::Relaxed) {
            return Err(Refused::Down);
        }
        // Full may only be said of a server that is up: who waits for a place must get one.
        if self.breaker.as_ref().is_some_and(|b| b.is_out(now)) {
            return Err(Refused::Down);
        }
        // Never counted above the limit, not even for a moment: a place that was taken and given back
        // would look free to those who wait.
        let max = capacity.requests_max.unwrap_or(u32::MAX);
        self.active
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |active| {
                (active < max).then(|| active + 1)
            })
            .map_err(|_| Refused::Full)?;
        let pass = match &self.breaker {
            None => Some(Pass::Ordinary),
            Some(breaker) => breaker.enter(now),
        };
        let Some(pass) = pass else {
            self.leave();
            return Err(Refused::Down);
        };
        self.metrics.active.inc();
        Ok(Lease {
            state: Arc::clone(self),
            index,
            pass,
            judged: false,
        })
    }

    /// Waits for a place, among as many as may wait and as long as they may.
    pub(super) async fn wait_for_place(
        self: &Arc<State>,
        index: usize,
        capacity: &Capacity,
    ) -> Result<Lease, Refused> {
        struct Waiting<'s>(&'s AtomicU32);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let before = self.pending.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&self.pending);
        if before >= capacity.pending_max {
            return Err(Refused::Full);
        }
        let deadline = tokio::time::Instant::now() + capacity.pending_timeout;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on no place that becomes free is missed.
            freed.as_mut().enable();
            match self.enter(index, capacity, Instant::now()) {
                Err(Refused::Full) => {}
                entered @ (Ok(_) | Err(Refused::Down)) => return entered,
            }
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                return Err(Refused::Full);
            }
        }
    }

    fn leave(&self) {
        self.active.fetch_sub(1, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) > 0 {
            self.freed.notify_one();
        }
    }

    /// The address to connect to. An address in the settings is itself; a name is looked up by the
    /// system's resolver, at most every ten seconds, without blocking the thread. Several addresses
    /// of a name take turns.
    ///
    /// # Errors
    /// The look-up's, with the name in it.
    pub async fn resolve(&self) -> io::Result<SocketAddr> {
        self.resolver.resolve().await
    }

    /// The address, where the settings have it: nothing is to be waited for.
    pub fn literal(&self) -> Option<SocketAddr> {
        match &self.resolver {
            Resolver::Literal(address) => Some(*address),
            Resolver::Name(_) => None,
        }
    }

    /// Says that a connection to this address failed: a name that has others gives those for a while.
    pub fn connect_failed(&self, address: SocketAddr) {
        self.resolver.connect_failed(address);
    }

    /// Whether the server's name has more than one address.
    pub(super) fn has_addresses(&self) -> bool {
        self.resolver.has_several()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(task) = self.checks.get() {
            task.abort();
        }
    }
}

impl Lease {
    pub fn state(&self) -> &State {
        &self.state
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Pass::Probe(probe), Some(breaker)) = (self.pass, self.state.breaker()) {
            breaker.undecided(probe, Instant::now());
        }
        self.state.metrics.active.dec();
        self.state.leave();
    }
}
