//! Routes: what to match, who may call, what limits apply, and a target.

mod access;
mod certificate;
mod cors;
mod explain;
mod host;
mod network;
mod path;
mod pattern;
mod reach;
mod redirect;
mod rewrite;
mod table;
mod trie;

use std::path::PathBuf;

use uuid::Uuid;

use crate::auth::Role;
use crate::limits::{OnLoss, Rate};
use crate::sandbox::GuestLimits;
use crate::sandbox::abi::Abi;
use crate::upstream;

pub use access::Access;
pub use certificate::{CertificateRule, NamePattern, PatternError, SubjectPattern};
pub use cors::{Cors, OriginError, OriginPattern, Origins};
pub use explain::{Asked, Candidate, Rule, Verdict};
pub use host::{HostError, HostPattern, HostPatternError, normalize_host};
pub use network::{Network, NetworkError};
pub use path::{PathError, RequestPath, normalize};
pub use pattern::{PathPattern, PathPatternError, Segment};
pub use reach::Unreachable;
pub use redirect::{Redirect, RedirectError};
pub use rewrite::{Rewrite, RewriteError};
pub use table::{BuildError, Found, Table};

/// A route as configured: validated, not yet prepared.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Unique; stands in logs, metrics and usage records.
    pub name: String,
    pub matcher: Match,
    /// Which client addresses may come.
    pub access: Access,
    pub auth: Auth,
    pub limits: Limits,
    pub headers: HeaderEdits,
    /// What pages of other origins may do; `None` leaves it to the target.
    pub cors: Option<Cors>,
    /// Whether answers are compressed; `None` leaves it to the global setting.
    pub compress: Option<bool>,
    pub target: Target,
}

/// What a request must be for a route to apply. All parts must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// Any of these; empty means any host.
    pub hosts: Vec<HostPattern>,
    pub path: PathPattern,
    /// Any of these; empty means any method.
    pub methods: Vec<http::Method>,
    /// All of these: the header's value is exactly this, or `None`: it is there.
    pub headers: Vec<(http::HeaderName, Option<String>)>,
}

/// Who may call a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    None,
    Key,
    /// A key whose user has this role or a higher one.
    Role(Role),
    /// A client certificate, shown to the listener, that the rule admits.
    Certificate(Box<CertificateRule>),
}

/// A route's own limits; `None` leaves what the tier or the global setting says (see
/// [`Limits::guest`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Per user, or per client address where there is no key.
    pub rate: Rate,
    pub body_bytes_max: Option<u64>,
    /// For a whole request body, besides what its size takes.
    pub body_timeout: Option<std::time::Duration>,
    pub memory_bytes_max: Option<u64>,
    pub deadline: Option<std::time::Duration>,
    pub stdout_bytes_max: Option<u64>,
    /// What happens to a request while the limits that gateways share can't be checked.
    pub on_redis_loss: OnLoss,
}

/// Changes to headers on their way. Removals first, then `set`, then `add`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdits {
    pub request_set: Vec<(http::HeaderName, http::HeaderValue)>,
    pub request_add: Vec<(http::HeaderName, http::HeaderValue)>,
    pub request_remove: Vec<http::HeaderName>,
    pub response_set: Vec<(http::HeaderName, http::HeaderValue)>,
    pub response_add: Vec<(http::HeaderName, http::HeaderValue)>,
    pub response_remove: Vec<http::HeaderName>,
}

impl HeaderEdits {
    pub fn changes_request(&self) -> bool {
        !(self.request_set.is_empty()
            && self.request_add.is_empty()
            && self.request_remove.is_empty())
    }
}

/// What a route does.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Execute(Execute),
    Proxy(Box<Proxy>),
    Redirect(Redirect),
    Respond(Respond),
}

/// Runs a module inline.
#[derive(Debug, Clone, PartialEq)]
pub struct Execute {
    pub module: ModuleSource,
    pub abi: Abi,
    /// `argv` after the program's name (`command` only; `wagi` defines its own).
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// A directory whose files guests find as `/`.
    pub files: Option<PathBuf>,
    /// `Content-Type` of the answer of a `command` guest.
    pub content_type: http::HeaderValue,
}

/// Where a route's module comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleSource {
    /// A `.wasm` or `.wat` file on the gateway's disk.
    File(PathBuf),
    /// A stored module, by id.
    Stored(Uuid),
}

/// Passes requests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    pub upstreams: upstream::Settings,
    /// `None` asks for the request's own path.
    pub rewrite: Option<Rewrite>,
    pub forwarded: Forwarded,
    /// `None` lets nobody upgrade.
    pub websocket: Option<WebSocket>,
}

/// Which headers tell an upstream who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded {
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    pub x: bool,
    /// `Forwarded` (RFC 7239).
    pub standard: bool,
}

/// How long a WebSocket may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WebSocket {
    /// Longest silence, both ways.
    pub idle_timeout: std::time::Duration,
    pub lifetime_max: std::time::Duration,
}

/// A fixed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    pub status: http::StatusCode,
    pub body: bytes::Bytes,
    pub content_type: http::HeaderValue,
}

impl Limits {
    /// What a guest of this route may use, given what its caller may have: the tighter of the two,
    /// one by one. A route never gives a caller more than its tier does.
    pub fn guest(&self, caller: GuestLimits) -> GuestLimits {
        caller.min(GuestLimits {
            deadline: self.deadline.unwrap_or(caller.deadline),
            memory_bytes_max: self.memory_bytes_max.unwrap_or(caller.memory_bytes_max),
            stdout_bytes_max: self.stdout_bytes_max.unwrap_or(caller.stdout_bytes_max),
            stderr_bytes_max: caller.stderr_bytes_max,
            stack_bytes_max: caller.stack_bytes_max,
            table_elements_max: caller.table_elements_max,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_route_only_tightens_what_its_caller_may_have() {
        let caller = GuestLimits {
            deadline: Duration::from_secs(5),
            memory_bytes_max: 100,
            stdout_bytes_max: 100,
            stderr_bytes_max: 100,
            stack_bytes_max: 100,
            table_elements_max: 100,
        };
        assert_eq!(Limits::default().guest(caller), caller);
        let limits = Limits {
            deadline: Some(Duration::from_secs(2)),
            memory_bytes_max: Some(200),
            stdout_bytes_max: Some(50),
            ..Limits::default()
        };
        let expected = GuestLimits {
            deadline: Duration::from_secs(2),
            stdout_bytes_max: 50,
            ..caller
        };
        assert_eq!(limits.guest(caller), expected);
    }
}
