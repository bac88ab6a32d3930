//! A route as it is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Period, Proxy, Size};
use crate::auth::Role;
use crate::limits::OnLoss;
use crate::sandbox::abi::Abi;

/// What to match, who may call, what limits apply, and exactly one target: `execute`, `proxy`,
/// `redirect` or `respond`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Unique: letters, digits, '.', '_' and '-'. Stands in logs and metrics.
    #[schemars(required)]
    pub name: Option<String>,
    #[serde(rename = "match")]
    #[schemars(required)]
    pub matcher: Option<RouteMatch>,
    /// Who may call: `none`, `key`, `{ role: admin }`, `certificate`, or `{ certificate: … }`.
    #[serde(default)]
    pub auth: RouteAuth,
    /// Client networks that are let in; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Client networks that are not let in, even where they are allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: RouteLimits,
    #[serde(default, skip_serializing_if = "is_default")]
    pub headers: RouteHeaders,
    /// What pages of other origins may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Whether answers are compressed; without it, what compression.enabled says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<bool>,
    /// Runs a WebAssembly module inline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execute: Option<Execute>,
    /// Passes the request on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Box<Proxy>>,
    /// Sends the client elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Answers with fixed content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respond: Option<Respond>,
}

/// All parts must hold. The most specific route wins, whatever the order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteMatch {
    /// Any of these: `example.com` or `*.example.com`; none means any host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// `/exact`, `/prefix/*`, or `/a/{id}/b`.
    #[schemars(required)]
    pub path: Option<String>,
    /// Any of these; none means any method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Method>,
    /// All of these: the exact value, or "*" for any.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "super::super::secret::serialize_pairs"
    )]
    pub headers: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[schemars(transform = certificate_alone)]
pub enum RouteAuth {
    /// Anyone.
    None,
    /// Who has an API key. This is the default: a forgotten line must not open a route.
    #[default]
    Key,
    /// Who has an API key of a user with this role, or a higher one.
    Role(Role),
    /// Who has shown a client certificate: any, or one with one of these subjects or names.
    Certificate {
        /// The authorities that must vouch for it: the `ca` of a listener's client_certificates. Needed
        /// where listeners have several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca: Option<String>,
        /// Subjects as the log has them: `O=Example, CN=client`, or `O=Example, *`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        subjects: Vec<String>,
        /// Alternative names: `DNS:client.example.com`, `DNS:*.example.com`, `URI:spiffe://example.org/*`,
        /// `email:…`, `IP:…`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        names: Vec<String>,
    },
}

/// A word alone is that choice with nothing asked for.
fn certificate_alone(schema: &mut schemars::Schema) {
    if let Some(choices) = schema.get_mut("oneOf").and_then(|v| v.as_array_mut()) {
        choices.push(serde_json::json!({
            "description": "Who has shown a client certificate.",
            "type": "string",
            "const": "certificate"
        }));
    }
}

/// What is absent is what the caller's tier or the global setting says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteLimits {
    /// Requests per minute and key, or client address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub per_minute: Option<u32>,
    /// Requests per day and key, or client address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub per_day: Option<u32>,
    /// Request body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_size_max: Option<Size>,
    /// Time for a whole request body, besides what its size takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_timeout: Option<Period>,
    /// Linear memory of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<Size>,
    /// Wall-clock time of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_timeout: Option<Period>,
    /// Standard output of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_max: Option<Size>,
    /// What happens without Redis: `local`, `open` or `closed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_redis_loss: Option<OnLoss>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteHeaders {
    /// On the way to the target.
    #[serde(skip_serializing_if = "is_default")]
    pub request: HeaderChanges,
    /// On the way to the client.
    #[serde(skip_serializing_if = "is_default")]
    pub response: HeaderChanges,
}

/// Which pages of other origins may use the route (CORS). The gateway answers preflights itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cors {
    /// `https://example.com`, `https://*.example.com`, or `*` alone for any.
    #[schemars(required, length(min = 1))]
    pub origins: Vec<String>,
    /// What they may ask with; none means the route's own, or GET, HEAD and POST.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Method>,
    /// Request headers that they may set, beside those that any page may.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Response headers that they may read, beside those that any page may.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// Whether cookies and the like are sent along.
    pub credentials: bool,
    /// How long a browser remembers a preflight.
    pub max_age: Period,
}

impl Default for Cors {
    fn default() -> Cors {
        Cors {
            origins: Vec::new(),
            methods: Vec::new(),
            headers: Vec::new(),
            expose: Vec::new(),
            credentials: false,
            max_age: Period::secs(600),
        }
    }
}

/// Removals first, then `set`, then `add`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HeaderChanges {
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "super::super::secret::serialize_pairs"
    )]
    pub set: BTreeMap<String, String>,
    /// Beside what is there already.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "super::super::secret::serialize_pairs"
    )]
    pub add: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// The module is `file` or `module`, one of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    /// A .wasm or .wat file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The id of a stored module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// `command`: body on stdin, stdout is the body. `wagi`: CGI/1.1.
    pub abi: Option<Abi>,
    /// Arguments after the program's name (`command` only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment variables of the guest.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "super::super::secret::serialize_pairs"
    )]
    pub env: BTreeMap<String, String>,
    /// A directory that guests find as `/`, read once and never written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
    /// Content-Type of the answer (`command` only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// Absolute, or a path; {path}, {query} and the route's parameters are put in.
    #[schemars(required)]
    pub to: Option<String>,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "permanent_redirect")]
    pub status: u16,
}

fn permanent_redirect() -> u16 {
    308
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Respond {
    /// 200 to 599.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    pub body: String,
    pub content_type: String,
}

impl Default for Respond {
    fn default() -> Respond {
        Respond {
            status: 200,
            body: String::new(),
            content_type: super::TEXT.to_string(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
