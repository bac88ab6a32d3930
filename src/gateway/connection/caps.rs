//! How many connections there may be: in all, and from one client address.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::telemetry::metrics::metrics;

const SHARDS: usize = 16;

/// Counts connections over all public listeners and refuses those over the caps.
#[derive(Clone)]
pub struct ConnectionCaps(Arc<Caps>);

struct Caps {
    open: AtomicUsize,
    max: usize,
    per_address_max: u32,
    /// Only addresses with open connections are in it, so `max` bounds it.
    by_address: [Mutex<HashMap<IpAddr, u32>>; SHARDS],
    hasher: RandomState,
}

/// A place among the connections. Given back when dropped.
pub struct Open {
    caps: Arc<Caps>,
    address: Option<IpAddr>,
}

impl ConnectionCaps {
    pub fn new(max: usize, per_address_max: u32) -> ConnectionCaps {
        ConnectionCaps(Arc::new(Caps {
            open: AtomicUsize::new(0),
            max,
            per_address_max,
            by_address: Default::default(),
            hasher: RandomState::new(),
        }))
    }

    /// A place for a connection; `None` when there are too many.
    pub fn open(&self) -> Option<Open> {
        let before = self.0.open.fetch_add(1, Ordering::Relaxed);
        metrics().connections.inc();
        let open = Open {
            caps: Arc::clone(&self.0),
            address: None,
        };
        if before >= self.0.max {
            metrics().connection_refused("total");
            return None;
        }
        Some(open)
    }
}

impl Open {
    /// Counts the connection for this client too. False when the client has too many already.
    pub fn count_for(&mut self, address: IpAddr) -> bool {
        let address = counted_as(address);
        let mut counts = self.caps.shard(address);
        let count = counts.entry(address).or_insert(0);
        if *count >= self.caps.per_address_max {
            metrics().connection_refused("address");
            return false;
        }
        *count += 1;
        drop(counts);
        self.address = Some(address);
        true
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.caps.open.fetch_sub(1, Ordering::Relaxed);
        metrics().connections.dec();
        if let Some(address) = self.address {
            let mut counts = self.caps.shard(address);
            if let Some(count) = counts.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&address);
                }
            }
        }
    }
}

impl Caps {
    fn shard(&self, address: IpAddr) -> std::sync::MutexGuard<'_, HashMap<IpAddr, u32>> {
        let hash = self.hasher.hash_one(address) as usize;
        self.by_address[hash % SHARDS]
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

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_capped_in_all_and_per_client() {
        let caps = ConnectionCaps::new(4, 2);
        let mut places: Vec<Open> = (0..4).map(|_| caps.open().unwrap()).collect();
        assert!(caps.open().is_none());
        assert!(places[0].count_for(ip("192.0.2.1")));
        assert!(places[1].count_for(ip("::ffff:192.0.2.1")));
        assert!(!places[2].count_for(ip("192.0.2.1")));
        assert!(places[2].count_for(ip("192.0.2.2")));
        places.remove(0);
        let mut next = caps.open().unwrap();
        assert!(next.count_for(ip("192.0.2.1")));
        assert!(caps.open().is_none());
    }

    #[test]
    fn an_ipv6_network_of_one_client_is_one_client() {
        let caps = ConnectionCaps::new(10, 1);
        let (mut a, mut b, mut c) = (
            caps.open().unwrap(),
            caps.open().unwrap(),
            caps.open().unwrap(),
        );
        assert!(a.count_for(ip("2001:db8:0:1::1")));
        assert!(!b.count_for(ip("2001:db8:0:1:ffff::2")));
        assert!(c.count_for(ip("2001:db8:0:2::1")));
    }

    #[test]
    fn nothing_is_kept_of_clients_that_left() {
        let caps = ConnectionCaps::new(10, 1);
        for n in 0..1000u32 {
            let mut open = caps.open().unwrap();
            assert!(open.count_for(std::net::Ipv4Addr::from_bits(n).into()));
        }
        let kept: usize = caps
            .0
            .by_address
            .iter()
            .map(|s| s.lock().unwrap().len())
            .sum();
        assert_eq!(kept, 0);
        assert_eq!(caps.0.open.load(Ordering::Relaxed), 0);
    }
}
