//! What an operator may set about a group of upstreams.

use std::path::PathBuf;
use std::time::Duration;

use super::Server;

/// Most servers of one group: a request's tried servers are the bits of one number.
pub const SERVERS_MAX: usize = 64;

/// Most tries of one request. What Pingora allows must not be less.
pub const TRIES_MAX: u32 = 8;

/// A group of upstreams, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub servers: Vec<Weighted>,
    pub balance: Balance,
    pub protocol: Protocol,
    pub tls: Tls,
    /// Time to establish a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest silence while reading the response.
    pub read_timeout: Duration,
    /// Longest stall while sending the request.
    pub write_timeout: Duration,
    /// How long an idle connection is kept for the next request; zero keeps none.
    pub keepalive_timeout: Duration,
    /// Whether the client's `Host` is passed on; else the upstream's own name is sent.
    pub preserve_host: bool,
    pub capacity: Capacity,
    pub retries: Retries,
    /// `None` never ejects.
    pub ejection: Option<Ejection>,
    /// `None` probes nothing.
    pub health_check: Option<HealthCheck>,
}

/// A server and its share of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weighted {
    pub server: Server,
    /// At least 1.
    pub weight: u32,
}

/// How a request's server is chosen. Weights count in all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    /// In turn.
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastConnections,
    /// The same one for the same value, as long as it is there.
    Hash(HashOn),
}

/// What a request is told apart by. One without it takes its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    Header(http::HeaderName),
    Cookie(String),
    Address,
}

/// What is spoken to the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http1,
    /// By ALPN with TLS, by prior knowledge without (RFC 9113 section 3.3).
    Http2,
}

/// How servers with `https://` are believed, and who the gateway is to them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Tls {
    /// PEM file of the only authorities believed; `None` believes the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of the certificate and the key that the gateway shows.
    pub client: Option<ClientFiles>,
    /// The name that is asked for and verified; `None` takes each server's own.
    pub server_name: Option<String>,
    /// Accepts any certificate: encryption without knowing with whom.
    pub insecure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// How much a server is given at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Requests in flight per server; `None` is no limit.
    pub requests_max: Option<u32>,
    /// Requests that may wait for a place, per server.
    pub pending_max: u32,
    pub pending_timeout: Duration,
}

/// When a request is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Tries of one request, the first included.
    pub tries_max: u32,
    /// Answers that are not passed on while there is a try left.
    pub statuses: Vec<u16>,
    /// Retries may be this share of all requests,
    pub budget_percent: u32,
    /// and this many in each second besides.
    pub budget_per_second: u32,
}

/// When a server that fails is left out for a while.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ejection {
    /// Failures in a row.
    pub failures: u32,
    /// Answers that count as failures, besides connections that fail.
    pub statuses: Vec<u16>,
    /// The first time; each next one in a row is twice as long,
    pub time: Duration,
    /// up to this.
    pub time_max: Duration,
    /// Most of the group that may be out for what it answered. Servers that can't be connected to
    /// are not bound by it: nothing a client sends brings that about.
    pub percent_max: u32,
}

/// What is asked of a server in the background.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row until a server is used again.
    pub healthy_after: u32,
    /// Failures in a row until it is no longer used. The very first probe decides alone.
    pub unhealthy_after: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Probe {
    /// A connection.
    Tcp,
    /// `GET` of this path answers this status.
    Http {
        path: String,
        /// `None` sends the server's own name.
        host: Option<String>,
        status: u16,
    },
}
