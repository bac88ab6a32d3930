//! How much there may be at a time: connections and requests, in all and of one client address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::gateway::Bounds;
use crate::telemetry::metrics::metrics;

const SHARDS: usize = 16;

/// Counts connections and requests over all public listeners.
#[derive(Clone)]
pub struct ClientCaps(Arc<All>);

struct All {
    connections: AtomicUsize,
    requests: AtomicUsize,
    connections_max: usize,
    connections_per_address_max: u32,
    /// Only addresses of which something is there are in it, so `connections_max` bounds it.
    clients: [Mutex<HashMap<IpAddr, Weak<Client>>>; SHARDS],
    hasher: RandomState,
}

/// A client address, for as long as anything of it is there.
pub struct Client {
    address: IpAddr,
    all: Arc<All>,
    connections: AtomicU32,
    requests: AtomicU32,
}

/// A place among the connections. Given back when dropped.
pub struct Open {
    all: Arc<All>,
    client: Option<Arc<Client>>,
}

/// Requests of one client that are being answered. Given back when dropped.
pub struct Requests {
    all: Arc<All>,
    /// `None` where they are a trusted proxy's own.
    client: Option<Arc<Client>>,
    count: u32,
}

/// More requests at a time than there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    OfClient,
    InAll,
}

impl TooMany {
    /// For metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            TooMany::OfClient => "address",
            TooMany::InAll => "total",
        }
    }
}

impl ClientCaps {
    pub fn new(connections_max: usize, connections_per_address_max: u32) -> ClientCaps {
        ClientCaps(Arc::new(All {
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            connections_max,
            connections_per_address_max,
            clients: Default::default(),
            hasher: RandomState::new(),
        }))
    }

    /// A place for a connection; `None` when there are too many.
    pub fn open(&self) -> Option<Open> {
        let before = self.0.connections.fetch_add(1, Ordering::Relaxed);
        metrics().connections.inc();
        let open = Open {
            all: Arc::clone(&self.0),
            client: None,
        };
        if before >= self.0.connections_max {
            metrics().connection_refused("total");
            return None;
        }
        Some(open)
    }

    /// The client with this address.
    pub fn client(&self, address: IpAddr) -> Arc<Client> {
        let address = counted_as(address);
        let mut clients = self.0.shard(address);
        match clients.entry(address) {
            Entry::Occupied(mut known) => known.get().upgrade().unwrap_or_else(|| {
                let client = self.new_client(address);
                known.insert(Arc::downgrade(&client));
                client
            }),
            Entry::Vacant(place) => {
                let client = self.new_client(address);
                place.insert(Arc::downgrade(&client));
                client
            }
        }
    }

    fn new_client(&self, address: IpAddr) -> Arc<Client> {
        Arc::new(Client {
            address,
            all: Arc::clone(&self.0),
            connections: AtomicU32::new(0),
            requests: AtomicU32::new(0),
        })
    }

    /// To count requests of this client; none yet.
    pub fn requests(&self, client: Option<Arc<Client>>) -> Requests {
        Requests {
            all: Arc::clone(&self.0),
            client,
            count: 0,
        }
    }
}

impl Open {
    /// Counts the connection for this client too. False when the client has too many already.
    pub fn count_for(&mut self, client: &Arc<Client>) -> bool {
        let max = self.all.connections_per_address_max;
        let counted =
            client
                .connections
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    (count < max).then_some(count + 1)
                });
        if counted.is_err() {
            metrics().connection_refused("address");
            return false;
        }
        self.client = Some(Arc::clone(client));
        true
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.all.connections.fetch_sub(1, Ordering::Relaxed);
        metrics().connections.dec();
        if let Some(client) = &self.client {
            client.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Requests {
    pub fn add(&mut self) {
        self.count += 1;
        self.all.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(client) = &self.client {
            client.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn remove(&mut self) {
        self.give_back(1);
    }

    fn give_back(&mut self, count: u32) {
        self.count -= count;
        self.all
            .requests
            .fetch_sub(count as usize, Ordering::Relaxed);
        if let Some(client) = &self.client {
            client.requests.fetch_sub(count, Ordering::Relaxed);
        }
    }

    /// Whether there are more than there may be, these included.
    pub fn check(&self, bounds: &Bounds) -> Result<(), TooMany> {
        check(&self.all, self.client.as_deref(), bounds)
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.give_back(self.count);
    }
}

impl Client {
    /// As [`Requests::check`], for requests that are counted elsewhere.
    pub fn check(&self, bounds: &Bounds) -> Result<(), TooMany> {
        check(&self.all, Some(self), bounds)
    }
}

fn check(all: &All, client: Option<&Client>, bounds: &Bounds) -> Result<(), TooMany> {
    let own = client.map_or(0, |client| client.requests.load(Ordering::Relaxed));
    if own > bounds.requests_per_address_max {
        return Err(TooMany::OfClient);
    }
    match all.requests.load(Ordering::Relaxed) > bounds.requests_max {
        true => Err(TooMany::InAll),
        false => Ok(()),
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut clients = self.all.shard(self.address);
        if let Entry::Occupied(known) = clients.entry(self.address)
            // Another of the same address may have come meanwhile.
            && known.get().strong_count() == 0
        {
            known.remove();
        }
    }
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ClientCaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCaps").finish_non_exhaustive()
    }
}

impl All {
    fn shard(&self, address: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, Weak<Client>>> {
        let hash = self.hasher.hash_one(address) as usize;
        self.clients[hash % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client with IPv6 has at least a /64 to itself (RFC 6177), so addresses in it are one client.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(caps: &ClientCaps, from: &str) -> Option<Open> {
        let mut open = caps.open()?;
        let client = caps.client(from.parse().unwrap());
        open.count_for(&client).then_some(open)
    }

    fn known(caps: &ClientCaps) -> usize {
        let shards = caps.0.clients.iter();
        shards.map(|shard| shard.lock().unwrap().len()).sum()
    }

    #[test]
    fn connections_are_capped_in_all_and_per_client() {
        let caps = ClientCaps::new(4, 2);
        let first = open(&caps, "192.0.2.1").unwrap();
        let _second = open(&caps, "::ffff:192.0.2.1").unwrap();
        assert!(open(&caps, "192.0.2.1").is_none());
        let _other = open(&caps, "192.0.2.2").unwrap();
        let _fourth = caps.open().unwrap();
        assert!(caps.open().is_none());
        drop(first);
        assert!(open(&caps, "192.0.2.1").is_some());
    }

    #[test]
    fn an_ipv6_network_of_one_client_is_one_client() {
        let caps = ClientCaps::new(10, 1);
        let _first = open(&caps, "2001:db8:0:1::1").unwrap();
        assert!(open(&caps, "2001:db8:0:1:ffff::2").is_none());
        assert!(open(&caps, "2001:db8:0:2::1").is_some());
    }

    #[test]
    fn requests_are_capped_in_all_and_per_client() {
        let bounds = Bounds {
            requests_max: 3,
            requests_per_address_max: 2,
            ..Bounds::for_tests()
        };
        let caps = ClientCaps::new(10, 10);
        let of = |address: &str| caps.requests(Some(caps.client(address.parse().unwrap())));
        let (mut a, mut again) = (of("192.0.2.1"), of("192.0.2.1"));
        a.add();
        again.add();
        assert_eq!(a.check(&bounds), Ok(()));
        again.add();
        // Who is over it does not matter: all of the client's wait for each other.
        assert_eq!(a.check(&bounds), Err(TooMany::OfClient));
        again.remove();
        let mut other = of("192.0.2.2");
        other.add();
        assert_eq!(other.check(&bounds), Ok(()));
        let mut proxy = caps.requests(None);
        proxy.add();
        assert_eq!(proxy.check(&bounds), Err(TooMany::InAll));
        let client = caps.client("192.0.2.2".parse().unwrap());
        assert_eq!(client.check(&bounds), Err(TooMany::InAll));
        drop(again);
        assert_eq!(proxy.check(&bounds), Ok(()));
    }

    #[test]
    fn nothing_is_kept_of_clients_that_left() {
        let caps = ClientCaps::new(10, 1);
        for n in 0..1000u32 {
            let address = std::net::Ipv4Addr::from_bits(n).to_string();
            let open = open(&caps, &address).unwrap();
            let mut requests = caps.requests(open.client.clone());
            requests.add();
            // A request may outlast its connection.
            drop(open);
            assert_eq!(known(&caps), 1);
        }
        assert_eq!(known(&caps), 0);
        assert_eq!(caps.0.connections.load(Ordering::Relaxed), 0);
        assert_eq!(caps.0.requests.load(Ordering::Relaxed), 0);
    }
}
