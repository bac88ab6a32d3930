//! What an operator may set about the request path.

use std::net::SocketAddr;
use std::time::Duration;

use super::Compression;
pub use super::client_address::ClientAddressHeader;
use crate::limits::OnLoss;
use crate::route::{Access, HeaderEdits, Network};
use crate::sandbox::GuestLimits;
use crate::tls::{Challenges, TlsFiles};

/// Settings of the request path.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The global limits of a guest: ceilings for anonymous callers and the Free tier.
    pub guest: GuestLimits,
    /// Request body of an `execute` or `proxy` route that has no limit of its own.
    /// What happens to calls of the API while the limits that gateways share can't be checked.
    pub on_redis_loss: OnLoss,
    pub body_bytes_max: u64,
    /// Request body of a control-plane request: a module, its input and the multipart framing.
    pub api_body_bytes_max: u64,
    /// Security headers and any others, on every response.
    pub headers: HeaderEdits,
    /// `Strict-Transport-Security`, sent on HTTPS only; `None` sends none.
    pub hsts: Option<http::HeaderValue>,
    /// Proxies whose word on the client's address, and `X-Request-Id`, are believed.
    pub trusted_proxies: Vec<Network>,
    pub client_address_header: ClientAddressHeader,
    /// The header that tells routes' targets the subject of the client's certificate; always removed
    /// from what clients send.
    pub client_certificate_header: Option<http::HeaderName>,
    /// Which client addresses each listener lets in, in the order of the configuration, the admin
    /// listener last.
    pub listener_access: Vec<Access>,
    /// Who knows the answers to challenges of authorities.
    pub challenges: Challenges,
    /// Path of the metrics page on the public listeners; `None` where only the admin listener has it.
    pub public_metrics_path: Option<String>,
    /// Which answers of routes are compressed.
    pub compression: Compression,
    pub timeouts: Timeouts,
    pub bounds: Bounds,
    /// Invalid keys that a client address may show.
    pub auth_failures_per_minute: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub tls_handshake: Duration,
    /// A whole request head, the wait for it included.
    pub request_head: Duration,
    /// A request body, and what its size takes at `bounds.body_rate_min` on top.
    pub request_body: Duration,
    /// Longest stall while sending a response.
    pub write: Duration,
    /// An idle connection between requests.
    pub keepalive: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    pub connections_max: usize,
    /// Of one IPv4 address, or of one IPv6 network (/64).
    pub connections_per_address_max: u32,
    /// Requests at a time.
    pub requests_max: usize,
    /// The same, of one address or network.
    pub requests_per_address_max: u32,
    pub requests_per_connection_max: u32,
    pub h2_resets_per_second_max: u32,
    /// Bytes a second; what a body takes at this rate is added to `timeouts.request_body`.
    pub body_rate_min: u64,
    /// Request line and header fields together.
    pub head_bytes_max: usize,
    pub headers_max: usize,
    pub uri_bytes_max: usize,
    pub h2_streams_max: u32,
    /// Idle connections to upstreams that each thread of a listener keeps.
    pub upstream_idle_per_thread: usize,
}

#[cfg(test)]
impl Settings {
    pub fn for_tests() -> Settings {
        let second = Duration::from_secs(1);
        Settings {
            guest: GuestLimits {
                deadline: second,
                memory_bytes_max: 0,
                stdout_bytes_max: 0,
                stderr_bytes_max: 0,
                stack_bytes_max: 0,
                table_elements_max: 0,
            },
            on_redis_loss: OnLoss::Local,
            body_bytes_max: 0,
            api_body_bytes_max: 0,
            headers: HeaderEdits::default(),
            hsts: None,
            trusted_proxies: Vec::new(),
            client_address_header: ClientAddressHeader::default(),
            client_certificate_header: None,
            listener_access: Vec::new(),
            challenges: Challenges::None,
            public_metrics_path: None,
            compression: Compression {
                enabled: false,
                bytes_min: 0,
                types: Vec::new(),
            },
            timeouts: Timeouts {
                tls_handshake: second,
                request_head: second,
                request_body: second,
                write: second,
                keepalive: second,
            },
            bounds: Bounds::for_tests(),
            auth_failures_per_minute: 60,
        }
    }
}

#[cfg(test)]
impl Bounds {
    /// Bounds that nothing reaches.
    pub fn for_tests() -> Bounds {
        Bounds {
            connections_max: usize::MAX,
            connections_per_address_max: u32::MAX,
            requests_max: usize::MAX,
            requests_per_address_max: u32::MAX,
            requests_per_connection_max: u32::MAX,
            h2_resets_per_second_max: u32::MAX,
            body_rate_min: u64::MAX,
            head_bytes_max: usize::MAX,
            headers_max: usize::MAX,
            uri_bytes_max: usize::MAX,
            h2_streams_max: u32::MAX,
            upstream_idle_per_thread: usize::MAX,
        }
    }
}

/// A public listener.
#[derive(Debug, Clone, PartialEq)]
pub enum Listener {
    /// TLS with HTTP/1.1 and HTTP/2 by ALPN; serves the routes.
    Https {
        address: SocketAddr,
        files: TlsFiles,
        proxy_protocol: bool,
    },
    /// Plain HTTP/1.1: redirects to HTTPS (308) except health and ACME paths. The port is the one
    /// the clients use for HTTPS.
    HttpRedirect {
        address: SocketAddr,
        https_port: u16,
        proxy_protocol: bool,
    },
    /// Plain HTTP/1.1 that serves the routes: for tests and trusted networks.
    Http {
        address: SocketAddr,
        proxy_protocol: bool,
    },
}

/// What a listener serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serves {
    /// The control plane and the routes.
    Everything,
    /// Redirects to HTTPS on this port, health and ACME excepted.
    Redirect { https_port: u16 },
    /// Health and metrics, for operators.
    Admin { metrics_path: Option<String> },
}
