//! Rate limits: token-bucket arithmetic, tiers, and the store that holds the buckets.
//!
//! The request path touches no network and no lock for longer than one bucket's arithmetic. Buckets
//! that gateways share live in Redis, which hands out leases in the background; only a request for
//! whom none is held yet, and for whom there may be a token, waits for that ([`Limiter::acquire`]).

mod account;
mod bucket;
mod compute;
mod headers;
mod shared;
pub mod store;

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::sandbox::GuestLimits;
use crate::telemetry::health::Health;

pub use crate::account::{Tier, UnknownTier};
pub use account::{Account, Quotas};
pub use bucket::{Bucket, Quota, Reading};
pub use compute::{Compute, NoSeat, Seat};
pub use headers::{cpu_headers, headers};
pub use shared::{OnLoss, Unavailable};

use compute::Running;
use shared::Shared;
use store::LimitStore;
use store::memory::MemoryStore;

const MIB: u64 = 1024 * 1024;

/// What a tier gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierLimits {
    pub rate: Rate,
    /// What the guests of a user may use together.
    pub compute: Compute,
    pub memory_bytes_max: u64,
    pub deadline: Duration,
    /// `None` gives what the global limit does, as in those below.
    pub stdout_bytes_max: Option<u64>,
    pub stderr_bytes_max: Option<u64>,
    pub stack_bytes_max: Option<u64>,
    pub table_elements_max: Option<u32>,
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
    /// Where the buckets are that gateways share; `None` has each keep its own.
    pub shared: Option<SharedSettings>,
}

/// Settings of limits that gateways share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedSettings {
    pub redis: store::redis::Settings,
    /// What a gateway admits by itself while Redis is lost, in percent of each limit.
    pub local_share_percent: u8,
    /// Whether a gateway that has lost Redis is not ready.
    pub is_vital: bool,
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
    /// The CPU time of a user's guests, in milliseconds.
    Cpu(Uuid, Tier),
    /// The guests of a user that run at the same time.
    Guests(Uuid, Tier),
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

impl std::fmt::Display for CertificateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Display for RouteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
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

impl Decision {
    /// Both: the request has to pass this limit and another.
    pub fn and(self, other: Decision) -> Decision {
        match (self.allowed, other.allowed) {
            (true, true) => Decision {
                allowed: true,
                window: self
                    .window
                    .into_iter()
                    .chain(other.window)
                    .min_by_key(Window::room),
            },
            (false, true) => self,
            (true | false, false) => other,
        }
    }
}

impl Window {
    /// The one with the least binds, of those that let a request pass: that with the least left, and of two
    /// equal ones that which takes longer to fill.
    fn room(&self) -> (u32, Reverse<Duration>) {
        (self.remaining, Reverse(self.reset_after))
    }
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
    store: Arc<MemoryStore>,
    shared: Option<Arc<Shared>>,
    /// Guests that run at this gateway.
    running: Arc<Running>,
}

impl Limiter {
    /// A limiter whose buckets live in this process's memory, all of them.
    pub fn new(settings: &Settings) -> Limiter {
        Limiter {
            store: Arc::new(MemoryStore::new(settings.subjects_max)),
            shared: None,
            running: Arc::default(),
        }
    }

    /// A limiter that shares its buckets where the settings say so. Resolves once it is known whether
    /// Redis answers; what happens when it does not is what [`OnLoss`] says.
    ///
    /// # Errors
    /// When the settings can't be used.
    pub async fn start(
        settings: &Settings,
        health: &Health,
    ) -> Result<Limiter, store::redis::SettingsError> {
        let mut limiter = Limiter::new(settings);
        if let Some(shared) = &settings.shared {
            let shared = Shared::start(shared, settings.subjects_max, health).await?;
            limiter.shared = Some(Arc::new(shared));
        }
        Ok(limiter)
    }

    /// Gives back what is held of shared buckets.
    pub async fn close(&self) {
        if let Some(shared) = &self.shared {
            shared.close().await;
        }
    }

    /// Takes a token from the subject's minute and day together, or from neither. Where gateways
    /// share the bucket, it may wait for the store: when no token is held here and the store may have
    /// one, which is so for the first request in a while and for the last before the limit.
    ///
    /// # Errors
    /// When the store is lost and `on_loss` is [`OnLoss::Closed`].
    pub async fn acquire(
        &self,
        subject: &Subject,
        rate: Rate,
        on_loss: OnLoss,
    ) -> Result<Decision, Unavailable> {
        match &self.shared {
            Some(shared) if rate != Rate::default() && subject.is_shared() => {
                shared.acquire(&subject.canonical(), rate, on_loss).await
            }
            Some(_) | None => Ok(self.take(subject, rate, Instant::now())),
        }
    }

    /// Takes a token from this process's own bucket of the subject, from its minute and day together,
    /// or from neither. Never waits.
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

    /// Takes so many thousandths of a token from this process's own bucket, whether or not they are
    /// there.
    fn charge(&self, subject: &Subject, rate: Rate, thousandths: u64, now: Instant) {
        self.store.charge(subject, rate, thousandths, now);
    }

    /// How full the stores are: for metrics.
    pub fn stats(&self) -> store::Stats {
        let own = self.store.stats();
        let shared = self.shared.as_ref().map(|shared| shared.stats());
        let shared = shared.unwrap_or_default();
        store::Stats {
            subjects: own.subjects + shared.subjects,
            forgotten_early: own.forgotten_early + shared.forgotten_early,
        }
    }
}

impl Subject {
    /// The subject with its address as buckets know it: an IPv6 client is its /64 network, which is
    /// what one subscriber has (RFC 6177), and an IPv4-mapped address (RFC 4291 section 2.5.5.2) is
    /// the IPv4 address.
    pub fn canonical(self) -> Subject {
        match self {
            Subject::User(..)
            | Subject::RouteUser(..)
            | Subject::RouteCertificate(..)
            | Subject::Cpu(..)
            | Subject::Guests(..) => self,
            Subject::RouteAddress(route, address) => {
                Subject::RouteAddress(route, subscriber(address))
            }
            Subject::AuthFailure(address) => Subject::AuthFailure(subscriber(address)),
        }
    }

    /// What `rate` means for the subject's buckets.
    pub fn quotas(&self, rate: Rate) -> Quotas {
        let quotas = [
            rate.per_minute.map(Quota::per_minute),
            rate.per_day.map(Quota::per_day),
        ];
        if self.is_charged() {
            quotas.map(|quota| quota.map(Quota::with_overdraft))
        } else {
            quotas
        }
    }

    /// Whether gateways share its buckets. Failed authentications count for each gateway alone: they
    /// are many when they matter, and a guess is as unlikely at one as at another.
    fn is_shared(&self) -> bool {
        !matches!(self, Subject::AuthFailure(_))
    }

    /// Whether its tokens are taken after the fact.
    fn is_charged(&self) -> bool {
        matches!(self, Subject::Cpu(..))
    }

    /// Whether its tokens come back after use, instead of refilling with time.
    fn is_borrowed(&self) -> bool {
        matches!(self, Subject::Guests(..))
    }
}

impl Rate {
    /// So many percent of it, but at least 1 of what is not 0.
    #[must_use]
    pub fn percent(self, percent: u8) -> Rate {
        let part = |limit: u32| {
            let part = u64::from(limit) * u64::from(percent) / 100;
            u32::try_from(part).unwrap_or(limit).max(limit.min(1))
        };
        Rate {
            per_minute: self.per_minute.map(part),
            per_day: self.per_day.map(part),
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
    /// what its row says, and the global one where the row says nothing.
    pub fn guest_limits(&self, tier: Option<Tier>, global: GuestLimits) -> GuestLimits {
        let of = |limits: &TierLimits| GuestLimits {
            deadline: limits.deadline,
            memory_bytes_max: limits.memory_bytes_max,
            stdout_bytes_max: limits.stdout_bytes_max.unwrap_or(global.stdout_bytes_max),
            stderr_bytes_max: limits.stderr_bytes_max.unwrap_or(global.stderr_bytes_max),
            stack_bytes_max: limits.stack_bytes_max.unwrap_or(global.stack_bytes_max),
            table_elements_max: limits
                .table_elements_max
                .unwrap_or(global.table_elements_max),
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
        let rate = |limits: Option<(u32, u32)>| Rate {
            per_minute: limits.map(|(minute, _)| minute),
            per_day: limits.map(|(_, day)| day),
        };
        let tier = |requests, cpu_ms, guests_max, memory_mib: u64, deadline_seconds| TierLimits {
            rate: rate(requests),
            compute: Compute {
                cpu_ms: rate(cpu_ms),
                guests_max,
            },
            memory_bytes_max: memory_mib * MIB,
            deadline: Duration::from_secs(deadline_seconds),
            stdout_bytes_max: None,
            stderr_bytes_max: None,
            stack_bytes_max: None,
            table_elements_max: None,
        };
        Tiers {
            free: tier(Some((10, 500)), Some((60_000, 1_800_000)), Some(8), 128, 5),
            basic: tier(
                Some((100, 10_000)),
                Some((240_000, 28_800_000)),
                Some(32),
                256,
                10,
            ),
            pro: tier(
                Some((500, 50_000)),
                Some((960_000, 172_800_000)),
                Some(128),
                512,
                30,
            ),
            enterprise: tier(None, None, None, 1024, 60),
        }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            tiers: Tiers::default(),
            subjects_max: 100_000,
            shared: None,
        }
    }
}

#[cfg(test)]
mod tests;
