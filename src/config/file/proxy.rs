//! A `proxy` target as it is written.

use std::fmt;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Period;

/// Passes requests on to one of several servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// `http://host:port` or `https://host:port`, or `{ url: …, weight: … }`.
    #[schemars(required, length(min = 1))]
    pub upstreams: Vec<Upstream>,
    /// Which of them serves a request.
    #[serde(skip_serializing_if = "is_default")]
    pub balance: Balance,
    /// What is spoken to them; `http2` is what gRPC needs.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// Time to connect, TLS included.
    pub connect_timeout: Period,
    /// Longest silence while reading the response.
    pub read_timeout: Period,
    /// Longest stall while sending the request.
    pub write_timeout: Period,
    /// How long an idle connection is kept for the next request; 0 closes each.
    pub keepalive_timeout: Period,
    /// Whether the client's Host is passed on.
    pub preserve_host: bool,
    /// The path that is asked for: {rest}, {path} and the route's parameters are put in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<String>,
    /// Which headers say who asked.
    #[serde(skip_serializing_if = "is_default")]
    pub forwarded: Forwarded,
    /// Whether clients may upgrade to a WebSocket.
    #[serde(skip_serializing_if = "is_default")]
    pub websocket: bool,
    /// Longest silence, both ways, on a WebSocket.
    pub websocket_idle_timeout: Period,
    /// Longest life of a WebSocket.
    pub websocket_lifetime_max: Period,
    /// How `https` upstreams are verified, and what they are shown.
    #[serde(skip_serializing_if = "is_default")]
    pub tls: ProxyTls,
    /// How much an upstream is given at once.
    #[serde(skip_serializing_if = "is_default")]
    pub capacity: Capacity,
    /// When a request is sent again.
    #[serde(skip_serializing_if = "is_default")]
    pub retries: Retries,
    /// When an upstream that fails is left out.
    #[serde(skip_serializing_if = "is_default")]
    pub ejection: Ejection,
    /// What upstreams are asked in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

impl Default for Proxy {
    fn default() -> Proxy {
        Proxy {
            upstreams: Vec::new(),
            balance: Balance::default(),
            protocol: Protocol::default(),
            connect_timeout: Period::secs(2),
            read_timeout: Period::secs(60),
            write_timeout: Period::secs(30),
            // Less than common servers keep them, so that they rarely close one under a request.
            keepalive_timeout: Period::secs(50),
            preserve_host: true,
            rewrite: None,
            forwarded: Forwarded::default(),
            websocket: false,
            websocket_idle_timeout: Period::secs(60),
            websocket_lifetime_max: Period::secs(3_600),
            tls: ProxyTls::default(),
            capacity: Capacity::default(),
            retries: Retries::default(),
            ejection: Ejection::default(),
            health_check: None,
        }
    }
}

/// A URL alone, or with its weight.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(untagged)]
pub enum Upstream {
    Url(String),
    Weighted(WeightedUpstream),
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedUpstream {
    /// `http://host:port` or `https://host:port`.
    #[schemars(required)]
    pub url: Option<String>,
    /// Its share of the requests.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for Upstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Upstream, D::Error> {
        struct UrlOrMapping;
        impl<'de> Visitor<'de> for UrlOrMapping {
            type Value = Upstream;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL or a mapping")
            }

            fn visit_str<E>(self, text: &str) -> Result<Upstream, E> {
                Ok(Upstream::Url(text.to_owned()))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Upstream, M::Error> {
                WeightedUpstream::deserialize(MapAccessDeserializer::new(map))
                    .map(Upstream::Weighted)
            }
        }
        deserializer.deserialize_any(UrlOrMapping)
    }
}

impl Serialize for Upstream {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Upstream::Url(url) => serializer.serialize_str(url),
            Upstream::Weighted(weighted) => weighted.serialize(serializer),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastConnections,
    /// The same one for the same client address.
    HashAddress,
    /// The same one for the same value of this header.
    HashHeader(String),
    /// The same one for the same value of this cookie.
    HashCookie(String),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Http1,
    /// By ALPN with TLS, by prior knowledge without.
    Http2,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Forwarded {
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    #[default]
    #[serde(rename = "x_forwarded")]
    X,
    /// `Forwarded` (RFC 7239).
    Standard,
    Both,
    None,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyTls {
    /// A PEM file of the only authorities believed; else the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// A PEM file of the certificate that upstreams are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<String>,
    /// The PEM file of its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
    /// The name that is asked for and verified; else each upstream's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Accepts any certificate. Not for production.
    pub insecure: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Capacity {
    /// Requests in flight per upstream; null is no limit.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_max: Option<u32>,
    /// Requests that may wait for a place, per upstream.
    #[schemars(range(max = 100_000))]
    pub pending_max: u32,
    /// How long they may wait.
    pub pending_timeout: Period,
}

impl Default for Capacity {
    fn default() -> Capacity {
        Capacity {
            requests_max: None,
            pending_max: 100,
            pending_timeout: Period::secs(1),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// Tries of one request, the first included.
    #[schemars(range(min = 1, max = 8))]
    pub tries_max: u32,
    /// Statuses of answers that are not passed on while there is a try left.
    pub statuses: Vec<u16>,
    /// Retries may be this share of all requests, in percent,
    #[schemars(range(max = 100))]
    pub budget_percent: u32,
    /// and this many in each second besides.
    #[schemars(range(max = 1_000))]
    pub budget_per_second: u32,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries {
            tries_max: 3,
            statuses: Vec::new(),
            budget_percent: 20,
            budget_per_second: 10,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ejection {
    pub enabled: bool,
    /// Failures in a row.
    #[schemars(range(min = 1, max = 1_000))]
    pub failures: u32,
    /// Statuses of answers that count as failures, besides connections that fail.
    pub statuses: Vec<u16>,
    /// The first time out; each next one in a row is twice as long,
    pub time: Period,
    /// up to this.
    pub time_max: Period,
    /// Most of the upstreams that may be out for what they answered, in percent.
    #[schemars(range(max = 100))]
    pub percent_max: u32,
}

impl Default for Ejection {
    fn default() -> Ejection {
        Ejection {
            enabled: true,
            failures: 5,
            statuses: Vec::new(),
            time: Period::secs(1),
            time_max: Period::secs(60),
            percent_max: 50,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// A GET of this path; without it, a connection is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The Host that is sent; else the upstream's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The status that passes.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    pub interval: Period,
    pub timeout: Period,
    /// Successes in a row until an upstream is used again.
    #[schemars(range(min = 1, max = 100))]
    pub healthy_after: u32,
    /// Failures in a row until it is left out.
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_after: u32,
}

impl Default for HealthCheck {
    fn default() -> HealthCheck {
        HealthCheck {
            path: None,
            host: None,
            status: 200,
            interval: Period::secs(5),
            timeout: Period::secs(2),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
