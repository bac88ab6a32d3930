//! What an operator may set about the request path.

use std::net::SocketAddr;
use std::time::Duration;

use super::Compression;
use crate::route::{HeaderEdits, Network};
use crate::sandbox::GuestLimits;

/// Settings of the request path.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The global limits of a guest: ceilings for anonymous callers and the Free tier.
    pub guest: GuestLimits,
    /// Request body of an `execute` or `proxy` route that has no limit of its own.
    pub body_bytes_max: u64,
    /// Request body of a control-plane request: a module, its input and the multipart framing.
    pub api_body_bytes_max: u64,
    /// Security headers and any others, on every response.
    pub headers: HeaderEdits,
    /// `Strict-Transport-Security`, sent on HTTPS only; `None` sends none.
    pub hsts: Option<http::HeaderValue>,
    /// Proxies whose `X-Forwarded-For` and `X-Request-Id` are believed.
    pub trusted_proxies: Vec<Network>,
    /// Path of the metrics page on the public listeners; `None` where only the admin listener has it.
    pub public_metrics_path: Option<String>,
    /// Which answers of routes are compressed.
    pub compression: Compression,
    pub timeouts: Timeouts,
    pub bounds: Bounds,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub tls_handshake: Duration,
    /// A whole request head, the wait for it included.
    pub request_head: Duration,
    /// A whole request body.
    pub request_body: Duration,
    /// Longest stall while sending a response.
    pub write: Duration,
    /// An idle connection between requests.
    pub keepalive: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    pub connections_max: usize,
    /// Request line and header fields together.
    pub head_bytes_max: usize,
    pub headers_max: usize,
    pub uri_bytes_max: usize,
    pub h2_streams_max: u32,
}

/// A public listener.
#[derive(Debug, Clone, PartialEq)]
pub enum Listener {
    /// TLS with HTTP/1.1 and HTTP/2 by ALPN; serves the routes.
    Https {
        address: SocketAddr,
        certificates: Vec<crate::tls::CertificateFiles>,
    },
    /// Plain HTTP/1.1: redirects to HTTPS (308) except health and ACME paths. The port is the one
    /// the clients use for HTTPS.
    HttpRedirect {
        address: SocketAddr,
        https_port: u16,
    },
    /// Plain HTTP/1.1 that serves the routes: for tests and trusted networks.
    Http { address: SocketAddr },
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
