//! What is known of a request while it is served, and the log line that ends it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header;
use pingora_core::Error;
use pingora_proxy::Session;

use super::Gateway;
use super::connection::{self, NotGood, OnConnection, Requests};
use super::plan::Plan;
use super::proxy::{self, Proxied};
use super::recording::Execution;
use crate::auth::Principal;
use crate::limits::{Decision, Seat};
use crate::route::{Cors, HeaderEdits, Route};
use crate::sandbox::Usage;
use crate::telemetry::access::RequestLine;
use crate::telemetry::metrics::metrics;
use crate::telemetry::traces::Trace;
use crate::tls::ClientCertificate;
use crate::upstream::Member;

/// What is known of a request while it is served.
pub struct Ctx {
    /// The configuration that the request began with, and ends with.
    pub(super) plan: Arc<Plan>,
    pub(super) started: Instant,
    pub(super) request_id: String,
    /// The socket's other end, and whether it is a trusted proxy.
    pub(super) peer: Option<IpAddr>,
    pub(super) peer_port: u16,
    pub(super) peer_trusted: bool,
    /// The client's address, as far as it can be believed.
    pub(super) client: Option<IpAddr>,
    pub(super) handled_by: HandledBy,
    /// How much of the path the route's own segments matched, and its captures.
    pub(super) route_path_bytes: usize,
    pub(super) params: Vec<(String, String)>,
    /// Who the client is by its certificate.
    pub(super) certificate: Result<Option<Arc<ClientCertificate>>, NotGood>,
    pub(super) principal: Principal,
    pub(super) decision: Option<Decision>,
    /// Of a guest that was not noted to have ended.
    pub(super) seat: Option<Seat>,
    /// What is left of the caller's CPU time.
    pub(super) cpu_left: Option<Decision>,
    pub(super) guest: Option<(&'static str, Usage)>,
    /// One that has begun and is not recorded yet.
    pub(super) execution: Option<Execution>,
    pub(super) failure: Option<&'static str>,
    pub(super) proxied: Proxied,
    /// The route whose rules for pages of other origins hold for the answer: that which was found, or
    /// would be with another method.
    pub(super) cors_route: Option<u32>,
    /// Whether the answer is one to a preflight.
    pub(super) is_preflight: bool,
    /// Request body bytes passed on.
    pub(super) body_bytes: u64,
    /// Of HTTP/2 only.
    pub(super) on_connection: Option<OnConnection>,
    /// Its place among the requests at a time.
    pub(super) at_once: Option<Requests>,
    /// Where traces are on.
    pub(super) trace: Option<Box<Trace>>,
    _active: Active,
}

/// Who answers a request: decides its name in logs and metrics.
pub(super) enum HandledBy {
    Nobody,
    Health,
    Metrics,
    /// A challenge of an authority that signs certificates.
    Challenge,
    Api,
    Jwks,
    Redirect,
    /// The route with this index in the request's plan.
    Route {
        index: u32,
    },
}

/// Counts the requests in flight, for the gauge and for shutdown.
pub(super) struct Active;

impl Active {
    pub(super) fn new() -> Active {
        metrics().requests_active.inc();
        Active
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        metrics().requests_active.dec();
    }
}

impl Ctx {
    pub(super) fn new(plan: Arc<Plan>) -> Ctx {
        Ctx {
            plan,
            started: Instant::now(),
            request_id: String::new(),
            peer: None,
            peer_port: 0,
            peer_trusted: false,
            client: None,
            handled_by: HandledBy::Nobody,
            route_path_bytes: 0,
            params: Vec::new(),
            certificate: Ok(None),
            principal: Principal::Anonymous,
            decision: None,
            seat: None,
            cpu_left: None,
            guest: None,
            execution: None,
            failure: None,
            proxied: Proxied::default(),
            cors_route: None,
            is_preflight: false,
            body_bytes: 0,
            on_connection: None,
            at_once: None,
            trace: None,
            _active: Active::new(),
        }
    }

    /// The client's certificate, if it has shown one that is good.
    pub(super) fn shown(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref().ok()?.as_deref()
    }

    pub(super) fn route(&self) -> Option<&Route> {
        match &self.handled_by {
            HandledBy::Route { index } => self.plan.route(*index),
            HandledBy::Nobody
            | HandledBy::Health
            | HandledBy::Metrics
            | HandledBy::Challenge
            | HandledBy::Api
            | HandledBy::Jwks
            | HandledBy::Redirect => None,
        }
    }

    /// The index of the request's route in its plan.
    pub(super) fn route_index(&self) -> Option<u32> {
        match &self.handled_by {
            HandledBy::Route { index } => Some(*index),
            HandledBy::Nobody
            | HandledBy::Health
            | HandledBy::Metrics
            | HandledBy::Challenge
            | HandledBy::Api
            | HandledBy::Jwks
            | HandledBy::Redirect => None,
        }
    }

    /// The upstream that is tried now.
    pub(super) fn member(&self) -> Option<&Member> {
        let group = self.plan.group(self.route_index()?)?;
        group.member(self.proxied.lease()?)
    }

    pub(super) fn cors(&self) -> Option<&Cors> {
        self.plan.route(self.cors_route?)?.cors.as_ref()
    }

    pub(super) fn route_headers(&self) -> Option<&HeaderEdits> {
        self.route().map(|route| &route.headers)
    }
}

impl Gateway {
    pub(super) fn log(&self, session: &Session, error: Option<&Error>, ctx: &Ctx) {
        let builtin = &self.shared.builtin_metrics;
        let (name, route_metrics) = match &ctx.handled_by {
            HandledBy::Nobody => ("", &builtin.none),
            HandledBy::Health => ("builtin:health", &builtin.health),
            HandledBy::Metrics => ("builtin:metrics", &builtin.metrics),
            HandledBy::Challenge => ("builtin:challenge", &builtin.challenge),
            HandledBy::Api => ("builtin:api", &builtin.api),
            HandledBy::Jwks => ("builtin:jwks", &builtin.jwks),
            HandledBy::Redirect => ("builtin:redirect", &builtin.redirect),
            HandledBy::Route { index } => match ctx.plan.planned(*index) {
                Some(planned) => (
                    ctx.route().map_or("", |r| r.name.as_str()),
                    &planned.metrics,
                ),
                None => ("", &builtin.none),
            },
        };
        let status = proxy::status_seen(session);
        let duration = ctx.started.elapsed();
        let certificate = connection::facts(session).and_then(|facts| facts.certificate.as_ref());
        let head = session.req_header();
        route_metrics.observe(head.method.as_str(), status, duration);
        // A failure is worth its line even where ordinary requests have none.
        if !ctx.plan.access_log.has(status, duration, &ctx.request_id) {
            return;
        }
        let key_id = match &ctx.principal {
            Principal::Anonymous | Principal::Certificate(_) => None,
            Principal::Key(key) => Some(key.key_id),
        };
        let (guest, usage) = ctx.guest.unzip();
        let line = RequestLine {
            request_id: &ctx.request_id,
            client: ctx.client,
            method: head.method.as_str(),
            host: head.headers.get(header::HOST).and_then(|h| h.to_str().ok()),
            path: head.uri.path(),
            route: name,
            status,
            duration_us: duration.as_micros() as u64,
            bytes_out: session.body_bytes_sent(),
            client_subject: certificate.map(|c| c.subject.as_str()),
            key_id,
            code: ctx.failure,
            guest,
            guest_us: usage.map(|u: Usage| u.wall.as_micros() as u64),
            upstream: ctx.proxied.server_name(),
            trace_id: ctx.trace.as_ref().map(|trace| trace.id().to_string()),
            error,
        };
        line.write(status >= 500);
    }
}
