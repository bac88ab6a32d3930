//! The YAML file, key for key. Its `Default` is what an absent key means, and is what
//! `conf/wasm-wizard.yaml` says.
//!
//! These types hold what was written; [`super::validate`] turns them into settings.

mod defaults;
mod proxy;
mod route;
mod telemetry;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Environment;
use super::values::{Address, Period, Requests, Secret, Size, Threads};
use crate::gateway::ClientAddressHeader;
use crate::limits::OnLoss;
use crate::tls::ClientCertificateMode;
use crate::usage::WhenFull;

pub use proxy::{
    Balance, Capacity, Ejection, Forwarded, HealthCheck, Protocol, Proxy, Retries, Upstream,
};
pub use route::{
    Cors, Execute, HeaderChanges, Method, Redirect, Respond, Route, RouteAuth, RouteMatch,
};
pub use telemetry::{Logging, Metrics, Tracing};

/// The content type of an answer that names none.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// Configuration of Wasm Wizard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// What is allowed: production refuses development certificates, weak salts and SQLite.
    pub environment: Environment,
    /// Listeners, their bounds and their timeouts.
    pub server: Server,
    /// Where users, keys and modules are stored.
    pub database: Database,
    /// Records of executions.
    pub usage: Usage,
    /// API keys and access tokens.
    pub auth: Auth,
    /// The global limits of guests, and the sandbox they run in.
    pub sandbox: Sandbox,
    /// What each tier gives.
    pub tiers: Tiers,
    /// Rate limiting.
    pub limits: RateLimits,
    /// The Prometheus page.
    pub metrics: Metrics,
    /// The log.
    pub logging: Logging,
    /// Traces of requests.
    pub tracing: Tracing,
    /// Headers of every response.
    pub headers: Headers,
    /// Which answers of routes are compressed.
    pub compression: Compression,
    /// What is served besides the API. Without this key there are no routes.
    pub routes: Vec<Route>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// TLS listeners: HTTP/1.1 and HTTP/2.
    pub https: Vec<Https>,
    /// Plain HTTP/1.1 listeners.
    pub http: Vec<Http>,
    /// Metrics and health for operators; null for none.
    pub admin: Option<Admin>,
    /// Threads that serve connections.
    pub threads: Threads,
    /// Longest wait for running requests at shutdown.
    pub shutdown_grace: Period,
    /// Unix socket through which a new process takes over; null for none.
    pub upgrade_socket: Option<String>,
    /// Whether a change of the configuration file is taken over at once; SIGHUP does so in any case.
    pub reload_on_change: bool,
    /// Open connections over all public listeners.
    pub connections_max: u32,
    /// Idle connections to upstreams that each listener keeps, over all of them.
    #[schemars(range(min = 1, max = 65_536))]
    pub upstream_idle_max: u32,
    /// Open connections of one client address; an IPv6 client is its /64.
    pub connections_per_address_max: u32,
    /// Requests at the same time over all public listeners.
    pub requests_max: u32,
    /// Requests at the same time of one client address; an IPv6 client is its /64.
    pub requests_per_address_max: u32,
    /// Networks whose word on the client's address, and X-Request-Id, are believed, in CIDR notation.
    pub trusted_proxies: Vec<String>,
    /// The header in which they say it.
    pub client_address_header: ClientAddressHeader,
    /// The header that tells routes' targets the subject of the client's certificate; null for none.
    pub client_certificate_header: Option<String>,
    /// A directory into which an ACME client writes answers to HTTP-01 challenges, below
    /// `.well-known/acme-challenge`; null for none.
    pub acme_webroot: Option<String>,
    pub timeouts: Timeouts,
    pub bounds: Bounds,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Https {
    /// IP address and port.
    #[schemars(required)]
    pub address: Option<Address>,
    /// At least one; the client's SNI chooses.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub certificates: Vec<Certificate>,
    /// Asks clients for a certificate (mTLS); null does not.
    #[serde(default)]
    pub client_certificates: Option<ClientCertificates>,
    /// Whether each connection begins with a header of the PROXY protocol, version 1 or 2.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Client networks that are let in; none means all.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Client networks that are not let in, even where they are allowed.
    #[serde(default)]
    pub deny: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// PEM file with the certificate chain, the server's own first.
    #[schemars(required)]
    pub cert: Option<String>,
    /// PEM file with the private key.
    #[schemars(required)]
    pub key: Option<String>,
    /// DER file with an OCSP response, sent along with the certificate.
    #[serde(default)]
    pub ocsp: Option<String>,
    /// Made at start when the files are missing; refused in production.
    #[serde(default)]
    pub development: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    /// PEM file with the authorities that sign clients' certificates.
    #[schemars(required)]
    pub ca: Option<String>,
    /// Whether a client may go without one.
    #[serde(default)]
    pub mode: ClientCertificateMode,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// IP address and port.
    #[schemars(required)]
    pub address: Option<Address>,
    #[serde(default)]
    pub serve: Serve,
    /// The port that clients are redirected to, where it is not that of the first HTTPS listener.
    #[serde(default)]
    pub https_port: Option<u16>,
    /// Whether each connection begins with a header of the PROXY protocol, version 1 or 2.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Client networks that are let in; none means all.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Client networks that are not let in, even where they are allowed.
    #[serde(default)]
    pub deny: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Serve {
    /// Redirects to HTTPS (308), except health and ACME paths.
    #[default]
    Redirect,
    /// Serves the routes without TLS: for trusted networks and behind another proxy.
    Routes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// IP address and port; keep it on a private network.
    #[schemars(required)]
    pub address: Option<Address>,
    /// Client networks that are let in; none means all.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Client networks that are not let in, even where they are allowed.
    #[serde(default)]
    pub deny: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// A whole TLS handshake.
    pub tls_handshake: Period,
    /// A whole request head.
    pub request_head: Period,
    /// A request body, and what its size takes at body_rate_min on top.
    pub request_body: Period,
    /// Longest stall while sending a response.
    pub write: Period,
    /// An idle connection between requests.
    pub keepalive: Period,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Request line and header fields together.
    pub head_size_max: Size,
    /// Header fields of a request.
    pub headers_max: u32,
    /// Path and query of a request.
    pub uri_size_max: Size,
    /// Requests at the same time on one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Streams that a client may reset in a second on one HTTP/2 connection.
    pub h2_resets_per_second_max: u32,
    /// Requests on one connection.
    pub requests_per_connection_max: u32,
    /// Request body of a route that has no limit of its own.
    pub body_size_max: Size,
    /// Bytes a second that a request body must come in with in the long run.
    pub body_rate_min: Size,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `sqlite://PATH`, or `postgres://user@host/name`. Better: DATABASE_URL or DATABASE_URL_FILE.
    #[serde(serialize_with = "super::secret::serialize_url")]
    pub url: Secret,
    /// Connections in the pool.
    pub connections_max: u32,
    /// Longest wait for a connection.
    pub acquire_timeout: Period,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    /// Where records wait until the database has them.
    pub journal: Journal,
    /// How long single executions are kept.
    pub retention: Period,
    /// How long the sums of a day are kept.
    pub daily_retention: Period,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// The folder it is in.
    pub directory: String,
    /// What it may take on the disk.
    pub size_max: Size,
    /// What happens to executions when it takes no more.
    pub when_full: WhenFull,
    /// How often it is written to the disk for sure; null leaves it to the kernel.
    pub sync_interval: Option<Period>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Secret under which API keys are hashed. Better: API_SALT or API_SALT_FILE.
    pub salt: Option<Secret>,
    /// How long a key's record is used without asking the database again.
    pub key_cache_ttl: Period,
    /// How long an unknown key is refused without asking the database again.
    pub negative_ttl: Period,
    /// How much longer a key's record is used while the database does not answer.
    pub outage_grace: Period,
    /// Keys kept in memory.
    pub key_cache_max: u32,
    /// Keys that turn out not to be valid, per minute and client address.
    pub failures_per_minute: u32,
    /// Whether anybody may make an account, on the Free tier.
    pub sign_up: bool,
    /// Access and refresh tokens.
    pub tokens: Tokens,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// Whether keys can be exchanged for tokens.
    pub enabled: bool,
    /// Secret that the signing key is derived from; further lines still verify. Better: JWT_SECRET
    /// or JWT_SECRET_FILE.
    pub secret: Option<Secret>,
    /// Who signs: the claim `iss`.
    pub issuer: String,
    /// Whom the tokens are for: the claim `aud`.
    pub audience: String,
    /// Life of an access token.
    pub access_ttl: Period,
    /// Life of a refresh token that is not used.
    pub refresh_ttl: Period,
    /// How long tokens can be refreshed before the key is needed again.
    pub session_ttl: Period,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// Largest module.
    pub wasm_size_max: Size,
    /// Largest input of an execution through the API.
    pub input_size_max: Size,
    /// Wall-clock time of a guest: the ceiling for anonymous callers and the Free tier.
    pub execution_timeout: Period,
    /// Linear memory of a guest: the ceiling for anonymous callers and the Free tier.
    pub memory_max: Size,
    /// Standard output of a guest: the ceiling for anonymous callers and the Free tier.
    pub stdout_max: Size,
    /// Standard error kept of a guest: the ceiling for anonymous callers and the Free tier.
    pub stderr_max: Size,
    /// Native stack of a guest: the ceiling for anonymous callers and the Free tier.
    pub stack_size: Size,
    /// Elements of a guest's table: the ceiling for anonymous callers and the Free tier.
    pub table_elements_max: u32,
    /// Guests that run at the same time.
    pub guests_max: u32,
    /// Guests of one caller that run at the same time.
    pub guests_per_caller_max: u32,
    /// Guests that may wait for a slot.
    pub queue_max: u32,
    /// Longest wait for a slot.
    pub queue_timeout: Period,
    /// Instances kept ready for the next guest.
    pub warm_max: u32,
    /// Compiled code kept in memory.
    pub cache_max: Size,
    /// Bounds of the child processes that compile modules.
    pub compile: Compile,
    /// Compiled modules on disk.
    pub artifacts: Artifacts,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Compile {
    /// Compiles at the same time.
    pub workers_max: u32,
    /// Child processes kept ready for the next compiles.
    pub workers_spare: u32,
    /// Compiles that may wait.
    pub queue_max: u32,
    /// Longest wait for a compile to begin.
    pub queue_timeout: Period,
    /// Whether new modules are compiled in one quick pass first, where that is safe.
    pub singlepass: bool,
    /// Wall-clock time of one compile.
    pub timeout: Period,
    /// Address space of one compile.
    pub memory_max: Size,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Artifacts {
    /// The folder they are in; null keeps none.
    pub directory: Option<String>,
    /// What they may take together.
    pub size_max: Size,
    /// Secret that authenticates them; without one the folder has its own. Better: ARTIFACT_KEY or
    /// ARTIFACT_KEY_FILE.
    pub key: Option<Secret>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tiers {
    #[serde(deserialize_with = "tier::free")]
    #[schemars(with = "tier::Written")]
    pub free: Tier,
    #[serde(deserialize_with = "tier::basic")]
    #[schemars(with = "tier::Written")]
    pub basic: Tier,
    #[serde(deserialize_with = "tier::pro")]
    #[schemars(with = "tier::Written")]
    pub pro: Tier,
    #[serde(deserialize_with = "tier::enterprise")]
    #[schemars(with = "tier::Written")]
    pub enterprise: Tier,
}

/// A tier, its defaults put in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tier {
    pub per_minute: Requests,
    pub per_day: Requests,
    pub cpu_ms_per_minute: Requests,
    pub cpu_ms_per_day: Requests,
    pub guests_max: Requests,
    pub memory_max: Size,
    pub execution_timeout: Period,
    /// What is absent here and below is what the sandbox gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_max: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_max: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_size: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_elements_max: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Keys and addresses whose use is remembered.
    pub subjects_max: u32,
    /// The Redis through which gateways share their limits.
    pub redis: Redis,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// `redis://host`, or `rediss://:password@host` with TLS; null: each gateway counts for itself.
    /// Better: REDIS_URL or REDIS_URL_FILE.
    #[serde(serialize_with = "super::secret::serialize_optional_url")]
    pub url: Option<Secret>,
    /// PEM file of the only authorities believed; null: the system's.
    pub ca: Option<String>,
    /// Longest wait for an answer.
    pub timeout: Period,
    /// Begins the names of all keys.
    pub key_prefix: String,
    /// What happens without Redis to calls of the API, and on routes that don't say themselves.
    pub on_loss: OnLoss,
    /// What each gateway admits by itself then, in percent of each limit.
    #[schemars(range(min = 1, max = 100))]
    pub local_share_percent: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Headers {
    /// `Strict-Transport-Security` of HTTPS responses; null sends none.
    pub strict_transport_security: Option<String>,
    /// Sent with every response. A default not named here stays; null removes it.
    #[serde(deserialize_with = "merged_headers")]
    pub set: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Compression {
    /// Whether answers are compressed on routes that don't say themselves.
    pub enabled: bool,
    /// Smaller answers are sent as they are.
    pub size_min: Size,
    /// Content types: `text/html`, or with one `*`: `text/*`, `application/*+json`.
    pub types: Vec<String>,
}

/// The defaults, changed by what was written. Names are compared without case.
fn merged_headers<'de, D>(deserializer: D) -> Result<BTreeMap<String, Option<String>>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let written = BTreeMap::<String, Option<String>>::deserialize(deserializer)?;
    let mut merged = Headers::default().set;
    merged.retain(|name, _| !written.keys().any(|other| other.eq_ignore_ascii_case(name)));
    merged.extend(written);
    Ok(merged)
}

/// Reads a tier over its own defaults.
mod tier {
    use super::{Deserialize, JsonSchema, Period, Requests, Size, Tier, Tiers};

    /// A key that is absent keeps the tier's own default.
    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[schemars(rename = "Tier")]
    pub struct Written {
        /// Requests per minute.
        per_minute: Option<Requests>,
        /// Requests per day.
        per_day: Option<Requests>,
        /// CPU time of all guests of a user per minute, in milliseconds.
        cpu_ms_per_minute: Option<Requests>,
        /// CPU time of all guests of a user per day, in milliseconds.
        cpu_ms_per_day: Option<Requests>,
        /// Guests of a user at the same time.
        guests_max: Option<Requests>,
        /// Linear memory of a guest.
        memory_max: Option<Size>,
        /// Wall-clock time of a guest.
        execution_timeout: Option<Period>,
        /// Standard output of a guest; absent: the sandbox's.
        stdout_max: Option<Size>,
        /// Standard error kept of a guest; absent: the sandbox's.
        stderr_max: Option<Size>,
        /// Native stack of a guest; absent: the sandbox's.
        stack_size: Option<Size>,
        /// Elements of a guest's table; absent: the sandbox's.
        table_elements_max: Option<u32>,
    }

    fn over<'de, D: serde::Deserializer<'de>>(
        default: Tier,
        deserializer: D,
    ) -> Result<Tier, D::Error> {
        let written = Written::deserialize(deserializer)?;
        Ok(Tier {
            per_minute: written.per_minute.unwrap_or(default.per_minute),
            per_day: written.per_day.unwrap_or(default.per_day),
            cpu_ms_per_minute: written
                .cpu_ms_per_minute
                .unwrap_or(default.cpu_ms_per_minute),
            cpu_ms_per_day: written.cpu_ms_per_day.unwrap_or(default.cpu_ms_per_day),
            guests_max: written.guests_max.unwrap_or(default.guests_max),
            memory_max: written.memory_max.unwrap_or(default.memory_max),
            execution_timeout: written
                .execution_timeout
                .unwrap_or(default.execution_timeout),
            stdout_max: written.stdout_max,
            stderr_max: written.stderr_max,
            stack_size: written.stack_size,
            table_elements_max: written.table_elements_max,
        })
    }

    pub fn free<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Tier, D::Error> {
        over(Tiers::default().free, deserializer)
    }

    pub fn basic<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Tier, D::Error> {
        over(Tiers::default().basic, deserializer)
    }

    pub fn pro<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Tier, D::Error> {
        over(Tiers::default().pro, deserializer)
    }

    pub fn enterprise<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Tier, D::Error> {
        over(Tiers::default().enterprise, deserializer)
    }
}
