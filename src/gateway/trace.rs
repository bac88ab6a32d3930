//! The trace of a request, where traces are on: when it begins, what it notes, how it ends.
//!
//! Where they are off a request has none, and each of these is one branch.

use std::time::Instant;

use http::{HeaderName, HeaderValue, header};
use pingora_proxy::Session;

use super::context::HandledBy;
use super::forward::Fields;
use super::respond::is_tls;
use super::{Ctx, Gateway, proxy};
use crate::sandbox::Usage;
use crate::telemetry::traces::{
    Answer, TRACEPARENT, TRACESTATE, Trace, guest_attributes, upstream_attributes,
};

/// Hosts and paths are told up to this many bytes.
const TEXT_BYTES_MAX: usize = 1024;

impl Gateway {
    /// From here on the request's own headers say to which span it belongs, so that guests and upstreams
    /// are told by what passes them on.
    #[inline]
    pub(super) fn begin_trace(&self, session: &mut Session, ctx: &mut Ctx) {
        let headers = &session.req_header().headers;
        ctx.trace = self.shared.tracer.begin(headers, ctx.peer_trusted);
        if let Some(trace) = &ctx.trace {
            say(trace, session.req_header_mut());
        }
    }

    #[inline]
    pub(super) fn end_trace(&self, session: &Session, ctx: &mut Ctx) {
        let Some(mut trace) = ctx.trace.take() else {
            return;
        };
        let status = proxy::status_seen(session);
        let server = ctx.proxied.server_name().map(str::to_owned);
        trace.end_upstream(status >= 500 || status == 0, || {
            upstream_attributes(server.unwrap_or_default(), status)
        });
        trace.close();
        self.shared
            .tracer
            .end(*trace, || answer(session, ctx, status));
    }
}

impl Ctx {
    /// When a part of the request begins that its trace is to have.
    #[inline]
    pub(super) fn clock(&self) -> Option<Instant> {
        self.trace.as_ref().map(|_| Instant::now())
    }

    /// That part ends now.
    #[inline]
    pub(super) fn trace_part(&mut self, name: &'static str, begun: Option<Instant>, failed: bool) {
        if let (Some(trace), Some(begun)) = (&mut self.trace, begun) {
            trace.part(name, begun, failed, Vec::new);
        }
    }

    /// A guest has just ended.
    #[inline]
    pub(super) fn trace_guest(&mut self, status: &'static str, usage: Usage) {
        let Some(trace) = &mut self.trace else {
            return;
        };
        let now = Instant::now();
        let begun = now.checked_sub(usage.wall).unwrap_or(now);
        trace.part("guest", begun, status != "success", || {
            guest_attributes(status, usage.cpu, usage.queued, usage.memory_peak_bytes)
        });
    }
}

/// Tells the upstream that is asked now of the span that asks it, unless the route takes that away.
#[inline]
pub(super) fn say_upstream(upstream: &mut impl Fields, ctx: &Ctx) {
    if let Some(trace) = &ctx.trace
        && upstream.map().contains_key(TRACEPARENT)
    {
        say(trace, upstream);
    }
}

fn say(trace: &Trace, head: &mut impl Fields) {
    const PARENT: HeaderName = HeaderName::from_static(TRACEPARENT);
    const STATE: HeaderName = HeaderName::from_static(TRACESTATE);
    if let Ok(parent) = HeaderValue::try_from(trace.traceparent()) {
        // Neither name nor value can be one that HTTP does not allow.
        let _ = head.set(&PARENT, parent);
    }
    match trace.state() {
        Some(state) => {
            let _ = head.set(&STATE, state.clone());
        }
        None => head.take_away(&STATE),
    }
}

fn answer(session: &Session, ctx: &Ctx, status: u16) -> Answer {
    let head = session.req_header();
    let host = head.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    Answer {
        request_id: ctx.request_id.clone(),
        method: head.method.as_str().to_owned(),
        route: name(ctx).to_owned(),
        path: bounded(head.uri.path()),
        host: host.map(bounded),
        client: ctx.client,
        is_tls: is_tls(session),
        status,
        code: ctx.failure,
    }
}

fn name(ctx: &Ctx) -> &str {
    match &ctx.handled_by {
        HandledBy::Nobody => "unknown",
        HandledBy::Health => "builtin:health",
        HandledBy::Metrics => "builtin:metrics",
        HandledBy::Challenge => "builtin:challenge",
        HandledBy::Api => "builtin:api",
        HandledBy::Jwks => "builtin:jwks",
        HandledBy::Redirect => "builtin:redirect",
        HandledBy::Route { .. } => ctx.route().map_or("unknown", |route| route.name.as_str()),
    }
}

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}
