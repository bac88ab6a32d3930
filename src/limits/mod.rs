//! Rate limits: token-bucket arithmetic, tiers, and the store that holds the buckets.
//!
//! [`Limiter::take`] never waits: the request path touches no network and no lock for longer than
//! one bucket's arithmetic. A store that lives elsewhere (Redis) hands out leases in the background.

mod account;
mod bucket;
mod headers;
pub mod store;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::sandbox::GuestLimits;

pub use crate::account::{Tier, UnknownTier};
pub use account::Account;
pub use bucket::{Bucket, Quota, Reading};
pub use headers::headers;

use store::LimitStore;
use store::memory::MemoryStore;

const MIB: u64 = 1024 * 1024;

/// What a tier gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierLimits {
    pub rate: Rate,
    pub memory_bytes_max: u64,
    pub deadline: Duration,
}

/// Requests per minute and per day; `None` means without limit, 0 that nothing is admitted. The
/// number is also the burst: a full minute's worth may come at once, and refills evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    pub per_minute: Option<u32>,
    pub per_day: Option<u32>,
}

/// The four tiers' limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiers {
    pub free: TierLimits,
    pub basic: TierLimits,
    pub pro: TierLimits,
    pub enterprise: TierLimits,
}

/// Settings of the limiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub tiers: Tiers,
    /// Subjects whose buckets are kept in memory, half of them keys and half addresses, about 250
    /// bytes each; beyond it those whose buckets are full again are forgotten first, then the
    /// longest unused.
    pub subjects_max: usize,
}

/// Whose bucket a request draws from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A user and a tier: all keys of one tier that a user has share their bucket.
    User(Uuid, Tier),
    /// A route and a client address (an IPv6 client is its /64 network).
    RouteAddress(RouteKey, IpAddr),
    /// A route and a user, where the route has limits of its own.
    RouteUser(RouteKey, Uuid),
    /// A route and the subject of a client certificate.
    RouteCertificate(RouteKey, CertificateKey),
    /// Failed authentications of an address.
    AuthFailure(IpAddr),
}

/// Which route's buckets: by the route's name, so that they stay the route's own when a reload moves it
/// in the list, and are the same in every gateway that shares a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey(u64);

impl RouteKey {
    /// Names are the operator's own, so nobody can look for two that share a key.
    pub fn of(route: &str) -> RouteKey {
        let hash: [u8; 32] = Sha256::digest(route).into();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        RouteKey(u64::from_be_bytes(first))
    }
}

/// Which client certificates share a bucket: those of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateKey(u128);

impl CertificateKey {
    /// Whoever chose the name, two that share a key can't be found.
    pub fn of(name: &str) -> CertificateKey {
        let hash: [u8; 32] = Sha256::digest(name).into();
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        CertificateKey(u128::from_be_bytes(first))
    }
}

/// The answer to one request for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// The window that binds: the one that refused, else the one with the least left. `None` when
    /// there is no limit.
    pub window: Option<Window>,
}

/// One window's state, as the headers report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Length in seconds: 60 or 86,400.
    pub seconds: u32,
    pub limit: u32,
    pub remaining: u32,
    /// Until the bucket is full again.
    pub reset_after: Duration,
    /// Until a token is there; zero when one is.
    pub retry_after: Duration,
}

/// Says whether a request may go on. Cheap to clone; all clones share the buckets.
#[derive(Clone)]
pub struct Limiter {
    store: Arc<dyn LimitStore>,
}

impl Limiter {
    /// A limiter whose buckets live in this process's memory.
    pub fn new(settings: &Settings) -> Limiter {
        Limiter::with_store(Arc::new(MemoryStore::new(settings.subjects_max)))
    }

    /// A limiter whose buckets live in `store`.
    pub fn with_store(store: Arc<dyn LimitStore>) -> Limiter {
        Limiter { store }
    }

    /// Takes a token from the subject's minute and day together, or from neither. Never waits.
    pub fn take(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision {
        if rate == Rate::default() {
            return Decision {
                allowed: true,
                window: None,
            };
        }
        self.store.take(&subject.canonical(), rate, now)
    }

    /// What [`Limiter::take`] would decide, without taking: for limits that are charged only after
    /// the fact, such as failed authentications.
    pub fn peek(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision {
        if rate == Rate::default() {
            return Decision {
                allowed: true,
                window: None,
            };
        }
        self.store.peek(&subject.canonical(), rate, now)
    }

    /// How full the store is: for metrics.
    pub fn stats(&self) -> store::Stats {
        self.store.stats()
    }
}

impl Subject {
    /// The subject with its address as buckets know it: an IPv6 client is its /64 network, which is
    /// what one subscriber has (RFC 6177), and an IPv4-mapped address (RFC 4291 section 2.5.5.2) is
    /// the IPv4 address.
    pub fn canonical(self) -> Subject {
        match self {
            Subject::User(..) | Subject::RouteUser(..) | Subject::RouteCertificate(..) => self,
            Subject::RouteAddress(route, address) => {
                Subject::RouteAddress(route, subscriber(address))
            }
            Subject::AuthFailure(address) => Subject::AuthFailure(subscriber(address)),
        }
    }
}

/// What one subscriber is taken to have: an IPv4 address, or an IPv6 network of 64 bits (RFC 6177).
pub fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
    }
}

impl Window {
    /// The window's name in the `RateLimit` fields.
    pub fn name(&self) -> &'static str {
        if self.seconds <= 60 { "minute" } else { "day" }
    }
}

impl Tiers {
    pub fn get(&self, tier: Tier) -> &TierLimits {
        match tier {
            Tier::Free => &self.free,
            Tier::Basic => &self.basic,
            Tier::Pro => &self.pro,
            Tier::Enterprise => &self.enterprise,
        }
    }

    /// What a guest may use when a caller of this tier (`None`: anonymous) starts it, given the
    /// global limits. Those are ceilings for anonymous callers and the Free tier; a higher tier gets
    /// what its row says. Output bounds are the global ones for all.
    pub fn guest_limits(&self, tier: Option<Tier>, global: GuestLimits) -> GuestLimits {
        let of = |limits: &TierLimits| GuestLimits {
            deadline: limits.deadline,
            memory_bytes_max: limits.memory_bytes_max,
            ..global
        };
        match tier {
            None => global,
            Some(Tier::Free) => of(&self.free).min(global),
            Some(tier @ (Tier::Basic | Tier::Pro | Tier::Enterprise)) => of(self.get(tier)),
        }
    }
}

impl Default for Tiers {
    fn default() -> Tiers {
        let tier = |rate: Option<(u32, u32)>, memory_mib: u64, deadline_seconds: u64| TierLimits {
            rate: Rate {
                per_minute: rate.map(|(minute, _)| minute),
                per_day: rate.map(|(_, day)| day),
            },
            memory_bytes_max: memory_mib * MIB,
            deadline: Duration::from_secs(deadline_seconds),
        };
        Tiers {
            free: tier(Some((10, 500)), 128, 5),
            basic: tier(Some((100, 10_000)), 256, 10),
            pro: tier(Some((500, 50_000)), 512, 30),
            enterprise: tier(None, 1024, 60),
        }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            tiers: Tiers::default(),
            subjects_max: 100_000,
        }
    }
}

#[cfg(test)]
mod tests;
