//! Upstreams of `proxy` targets: which one serves a request.
//!
//! [`Group`] chooses among [`Member`]s, [`Server`] is where one is, and `resolve` finds its address.
//! What is known of a member at run time (its address now, later its weight and health) lives in
//! [`Member`], and the choice in [`Group::select`], so that another policy changes nothing else.

mod resolve;
mod server;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resolve::Resolver;
pub use server::{Server, ServerError};

/// A group of upstreams, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub servers: Vec<Server>,
    /// Time to establish a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest silence while reading the response.
    pub read_timeout: Duration,
    /// Longest stall while sending the request.
    pub write_timeout: Duration,
    /// Whether the client's `Host` is passed on; else the upstream's own name is sent.
    pub preserve_host: bool,
}

/// A `proxy` target needs at least one upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a group of upstreams needs at least one server")]
pub struct NoServers;

/// The upstreams of one route, at run time.
pub struct Group {
    settings: Settings,
    /// One per distinct server, and at least one.
    members: Vec<Member>,
    next: AtomicUsize,
}

/// One upstream at run time.
pub struct Member {
    server: Server,
    resolver: Resolver,
}

/// A request's turn in a group's round robin: where its first attempt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn(usize);

impl Group {
    /// # Errors
    /// [`NoServers`] when `settings.servers` is empty. A server named twice counts once.
    pub fn new(settings: Settings) -> Result<Group, NoServers> {
        let mut members: Vec<Member> = Vec::with_capacity(settings.servers.len());
        for server in &settings.servers {
            if !members.iter().any(|member| member.server == *server) {
                members.push(Member::new(server.clone()));
            }
        }
        if members.is_empty() {
            return Err(NoServers);
        }
        Ok(Group {
            settings,
            members,
            next: AtomicUsize::new(0),
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The members, in the order of the settings.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Draws a turn for a request; once per request, whatever the number of its attempts.
    pub fn turn(&self) -> Turn {
        Turn(self.next.fetch_add(1, Ordering::Relaxed) % self.members.len())
    }

    /// The member for a request's attempt, counted from 0. Each attempt of one turn goes to another
    /// member until all have been tried; then they begin anew.
    pub fn select(&self, turn: Turn, attempt: usize) -> &Member {
        // The turn is reduced first, so that the sum can't overflow in any useful range.
        let at = (turn.0 % self.members.len()).wrapping_add(attempt % self.members.len());
        &self.members[at % self.members.len()]
    }
}

impl Member {
    fn new(server: Server) -> Member {
        Member {
            resolver: Resolver::new(&server),
            server,
        }
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The address to connect to. An address in the settings is itself; a name is looked up by the
    /// system's resolver, at most every ten seconds, without blocking the thread. While a new
    /// look-up runs, or fails, a recent answer goes on being used.
    ///
    /// # Errors
    /// The look-up's, with the name in it.
    pub async fn resolve(&self) -> io::Result<SocketAddr> {
        self.resolver.resolve().await
    }

    /// Says that a connection to this address failed: where the name has several, the next resolve
    /// gives another.
    pub fn connect_failed(&self, address: SocketAddr) {
        self.resolver.connect_failed(address);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn group(servers: &[&str]) -> Result<Group, NoServers> {
        Group::new(Settings {
            servers: servers
                .iter()
                .map(|server| Server::parse(server).unwrap())
                .collect(),
            connect_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(1),
            preserve_host: false,
        })
    }

    fn port(group: &Group, turn: Turn, attempt: usize) -> u16 {
        group.select(turn, attempt).server().port
    }

    #[test]
    fn requests_take_turns() {
        let group = group(&["http://a:1", "http://a:2", "http://a:3"]).unwrap();
        let ports: Vec<u16> = (0..7).map(|_| port(&group, group.turn(), 0)).collect();
        assert_eq!(ports, [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn retries_go_to_each_other_server_before_any_twice() {
        let group = group(&["http://a:1", "http://a:2", "http://a:1", "http://a:3"]).unwrap();
        for _ in 0..5 {
            let turn = group.turn();
            // Other requests draw their turns in between.
            group.turn();
            let tried: HashSet<u16> = (0..3).map(|attempt| port(&group, turn, attempt)).collect();
            assert_eq!(tried, HashSet::from([1, 2, 3]));
            assert_eq!(port(&group, turn, 3), port(&group, turn, 0));
        }
    }

    #[test]
    fn no_number_of_requests_or_attempts_panics() {
        let group = group(&["http://a:1", "http://a:2", "http://a:3"]).unwrap();
        group.next.store(usize::MAX, Ordering::Relaxed);
        for _ in 0..3 {
            let turn = group.turn();
            assert!((1..=3).contains(&port(&group, turn, usize::MAX)));
            assert!((1..=3).contains(&port(&group, Turn(usize::MAX), usize::MAX)));
        }
    }

    #[test]
    fn an_empty_group_is_refused() {
        assert_eq!(group(&[]).err(), Some(NoServers));
    }

    #[test]
    fn concurrent_requests_share_the_load_evenly() {
        let group = group(&["http://a:1", "http://a:2"]).unwrap();
        let firsts: usize = std::thread::scope(|scope| {
            let count = || {
                (0..1000)
                    .filter(|_| port(&group, group.turn(), 0) == 1)
                    .count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(firsts, 2000);
    }
}
