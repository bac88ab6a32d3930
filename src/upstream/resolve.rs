//! An upstream's address: names are looked up in the background and remembered for a short while.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Server;

/// How long an answer is used without asking again.
const FRESH: Duration = Duration::from_secs(10);

/// How long an answer is used while newer look-ups fail: a resolver that is down for a moment must
/// not take the upstreams down with it.
const STALE: Duration = Duration::from_secs(300);

/// How long a failure is the answer, so that requests don't queue up to fail one by one.
const FAILED: Duration = Duration::from_secs(1);

/// How long an address that could not be connected to is passed over while there are others.
const PASSED_OVER: Duration = Duration::from_secs(10);

/// Longest look-up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Finds the address of one server.
pub(super) enum Resolver {
    /// The host is an address; nothing is ever looked up.
    Literal(SocketAddr),
    Name(Arc<Name>),
}

/// A host name and what is known of it.
pub(super) struct Name {
    host: String,
    port: u16,
    known: Mutex<Known>,
    /// Held during a look-up, so that there is one at a time.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    answer: Option<Answer>,
    failure: Option<Failure>,
    /// Which of the addresses is next; they take turns.
    next: usize,
}

struct Answer {
    /// At least one.
    addresses: Vec<Address>,
    at: Instant,
}

struct Address {
    address: SocketAddr,
    /// When a connection to it last failed.
    failed: Option<Instant>,
}

struct Failure {
    kind: io::ErrorKind,
    message: String,
    at: Instant,
}

/// What is known allows without asking again.
enum Cached {
    Fresh(SocketAddr),
    /// Usable, but a look-up is due.
    Stale(SocketAddr),
    Failed(io::Error),
    Nothing,
}

impl Resolver {
    pub(super) fn new(server: &Server) -> Resolver {
        match server.literal_ip() {
            Some(ip) => Resolver::Literal(SocketAddr::new(ip, server.port)),
            None => Resolver::Name(Arc::new(Name::new(server.host.clone(), server.port))),
        }
    }

    pub(super) async fn resolve(&self) -> io::Result<SocketAddr> {
        match self {
            Resolver::Literal(address) => Ok(*address),
            Resolver::Name(name) => name.resolve(Instant::now, system_lookup).await,
        }
    }

    pub(super) fn connect_failed(&self, address: SocketAddr) {
        match self {
            Resolver::Literal(_) => {}
            Resolver::Name(name) => name.connect_failed(address, Instant::now()),
        }
    }

    /// Whether there is more than one address.
    pub(super) fn has_several(&self) -> bool {
        match self {
            Resolver::Literal(_) => false,
            Resolver::Name(name) => {
                let known = name.known();
                known.answer.as_ref().is_some_and(|a| a.addresses.len() > 1)
            }
        }
    }
}

async fn system_lookup(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host.as_str(), port))
        .await?
        .collect())
}

impl Name {
    fn new(host: String, port: u16) -> Name {
        Name {
            host,
            port,
            known: Mutex::default(),
            looking: tokio::sync::Mutex::new(()),
        }
    }

    async fn resolve<L, F>(
        self: &Arc<Name>,
        clock: fn() -> Instant,
        lookup: L,
    ) -> io::Result<SocketAddr>
    where
        L: Fn(String, u16) -> F + Send + 'static,
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send,
    {
        match self.cached(clock()) {
            Cached::Fresh(address) => return Ok(address),
            Cached::Failed(error) => return Err(error),
            Cached::Stale(address) => {
                // The request goes on with what is known; the look-up outlives it.
                let name = Arc::clone(self);
                tokio::spawn(async move {
                    if let Ok(_looking) = name.looking.try_lock() {
                        name.refresh(clock, lookup).await;
                    }
                });
                return Ok(address);
            }
            Cached::Nothing => {}
        }
        let _looking = self.looking.lock().await;
        // Another request may have asked while this one waited.
        match self.cached(clock()) {
            Cached::Fresh(address) | Cached::Stale(address) => return Ok(address),
            Cached::Failed(error) => return Err(error),
            Cached::Nothing => {}
        }
        self.refresh(clock, lookup).await;
        match self.cached(clock()) {
            Cached::Fresh(address) | Cached::Stale(address) => Ok(address),
            Cached::Failed(error) => Err(error),
            Cached::Nothing => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{}: look-up too slow", self.host),
            )),
        }
    }

    /// Looks the name up and notes the result.
    async fn refresh<L, F>(&self, clock: fn() -> Instant, lookup: L)
    where
        L: Fn(String, u16) -> F,
        F: Future<Output = io::Result<Vec<SocketAddr>>>,
    {
        let found = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup(self.host.clone(), self.port))
            .await
        {
            Ok(Ok(addresses)) if addresses.is_empty() => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            )),
            Ok(found) => found,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the look-up took too long",
            )),
        };
        self.note(found, clock());
    }

    fn note(&self, found: io::Result<Vec<SocketAddr>>, now: Instant) {
        let mut known = self.known();
        match found {
            Ok(addresses) => {
                // What is known of an address stays known where the name still has it.
                let failed = |address: &SocketAddr| {
                    let before = known.answer.as_ref()?.addresses.iter();
                    before.clone().find(|a| a.address == *address)?.failed
                };
                let addresses = addresses
                    .into_iter()
                    .map(|address| Address {
                        failed: failed(&address),
                        address,
                    })
                    .collect();
                known.answer = Some(Answer { addresses, at: now });
                known.failure = None;
            }
            Err(error) => {
                if known.failure.is_none() {
                    tracing::warn!(upstream_host = self.host, %error, "an upstream's name can't be looked up");
                }
                known.failure = Some(Failure {
                    kind: error.kind(),
                    message: format!("{}: {error}", self.host),
                    at: now,
                });
            }
        }
    }

    fn cached(&self, now: Instant) -> Cached {
        let mut known = self.known();
        let Known {
            answer,
            failure,
            next,
        } = &mut *known;
        let failure = failure
            .as_ref()
            .filter(|failure| now.saturating_duration_since(failure.at) < FAILED);
        let answer = answer.as_ref().and_then(|answer| {
            let age = now.saturating_duration_since(answer.at);
            let address = answer.take_turn(next, now)?;
            (age < STALE).then_some((address, age))
        });
        match (answer, failure) {
            (Some((address, age)), None) if age >= FRESH => Cached::Stale(address),
            (Some((address, _)), None | Some(_)) => Cached::Fresh(address),
            (None, Some(failure)) => {
                Cached::Failed(io::Error::new(failure.kind, failure.message.clone()))
            }
            (None, None) => Cached::Nothing,
        }
    }

    fn connect_failed(&self, address: SocketAddr, now: Instant) {
        let mut known = self.known();
        let addresses = known.answer.iter_mut().flat_map(|a| &mut a.addresses);
        for known in addresses.filter(|known| known.address == address) {
            known.failed = Some(now);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer {
    /// The next address that did not fail a moment ago; where all did, the next one.
    fn take_turn(&self, next: &mut usize, now: Instant) -> Option<SocketAddr> {
        let count = self.addresses.len();
        let first = *next % count.max(1);
        *next = first + 1;
        let in_turn = || (0..count).filter_map(|i| self.addresses.get((first + i) % count));
        let recently = |at: Instant| now.saturating_duration_since(at) < PASSED_OVER;
        in_turn()
            .find(|a| !a.failed.is_some_and(recently))
            .or_else(|| in_turn().next())
            .map(|a| a.address)
    }
}

#[cfg(test)]
mod tests;
