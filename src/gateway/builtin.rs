//! The gateway's own endpoints: health, metrics, challenges of authorities, and the redirect from HTTP to
//! HTTPS.

use std::time::Instant;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::respond::Stop;
use super::{Ctx, Gateway, Serves, request};
use crate::failure::Failure;
use crate::telemetry::health::Probe;
use crate::telemetry::metrics::{RouteMetrics, metrics};

/// Where ACME clients answer HTTP-01 challenges (RFC 8555 section 8.3).
pub(super) const ACME_CHALLENGE_PREFIX: &str = "/.well-known/acme-challenge/";

/// Where the public keys of access tokens are (RFC 8414 section 2 calls the page `jwks_uri`).
pub(super) const JWKS_PATH: &str = "/.well-known/jwks.json";

/// How long others may keep that page. A new key is published before it signs, at least so long.
const JWKS_CACHE: &str = "public, max-age=300";

/// Counters of what is not a route.
pub struct BuiltinMetrics {
    pub(super) health: RouteMetrics,
    pub(super) metrics: RouteMetrics,
    pub(super) challenge: RouteMetrics,
    pub(super) api: RouteMetrics,
    pub(super) jwks: RouteMetrics,
    pub(super) redirect: RouteMetrics,
    pub(super) none: RouteMetrics,
}

impl Default for BuiltinMetrics {
    fn default() -> Self {
        BuiltinMetrics {
            health: RouteMetrics::new("builtin:health"),
            metrics: RouteMetrics::new("builtin:metrics"),
            challenge: RouteMetrics::new("builtin:challenge"),
            api: RouteMetrics::new("builtin:api"),
            jwks: RouteMetrics::new("builtin:jwks"),
            redirect: RouteMetrics::new("builtin:redirect"),
            none: RouteMetrics::new("builtin:none"),
        }
    }
}

impl Gateway {
    pub(super) async fn health(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        probe: Probe,
    ) -> Result<(), Stop> {
        if is_options(session) {
            return self.options(session, ctx, PAGE_METHODS).await;
        }
        only_get(session)?;
        let health = &self.shared.health;
        let (ok, mut report) = health.report(probe, Instant::now());
        if probe == Probe::Full && matches!(self.serves, Serves::Admin { .. }) {
            report.config = Some(health.config_report());
        }
        let status = if ok {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let mut head = ResponseHeader::build(status, Some(12))?;
        head.insert_header(header::CONTENT_TYPE, "application/json")?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        let body = serde_json::to_vec(&report).map_err(|_| Failure::internal())?;
        Ok(self.send(session, ctx, head, Bytes::from(body)).await?)
    }

    pub(super) async fn metrics_page(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<(), Stop> {
        if is_options(session) {
            return self.options(session, ctx, PAGE_METHODS).await;
        }
        only_get(session)?;
        let load = self.shared.sandbox.load();
        metrics().guests_running.set(load.running as i64);
        metrics().guests_queued.set(load.queued as i64);
        metrics().modules_cached.set(load.modules_cached as i64);
        let limits = self.shared.limiter.stats();
        metrics().limit_subjects.set(limits.subjects as i64);
        let page = metrics().render().map_err(|error| {
            tracing::error!(request_id = ctx.request_id, %error, "the metrics can't be rendered");
            Failure::internal()
        })?;
        let mut head = ResponseHeader::build(StatusCode::OK, Some(12))?;
        head.insert_header(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        Ok(self.send(session, ctx, head, Bytes::from(page)).await?)
    }

    /// Answers an authority that wants to know whether a name leads here (RFC 8555 section 8.3).
    pub(super) async fn challenge(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        token: String,
    ) -> Result<(), Stop> {
        if is_options(session) {
            return self.options(session, ctx, PAGE_METHODS).await;
        }
        only_get(session)?;
        let challenges = ctx.plan.settings.challenges.clone();
        // A file is read: other connections of this thread don't wait for the disk.
        let answer = self
            .shared
            .control
            .spawn_blocking(move || challenges.answer(&token));
        let answer = answer.await.map_err(|_| Failure::internal())?;
        let answer = answer.map_err(|error| {
            tracing::error!(request_id = ctx.request_id, %error, "the answer to a challenge can't be read");
            Failure::internal()
        })?;
        let Some(answer) = answer else {
            return Err(Failure::not_found("there is no such challenge").into());
        };
        let mut head = ResponseHeader::build(StatusCode::OK, Some(12))?;
        head.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        Ok(self.send(session, ctx, head, answer).await?)
    }

    /// The public keys of access tokens, for whoever wants to verify them (RFC 7517 section 5).
    pub(super) async fn jwks(&self, session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
        let Some(jwks) = self.shared.auth.jwks() else {
            return Err(Failure::not_found("this gateway issues no access tokens").into());
        };
        if is_options(session) {
            return self.options(session, ctx, PAGE_METHODS).await;
        }
        only_get(session)?;
        let mut head = ResponseHeader::build(StatusCode::OK, Some(12))?;
        head.insert_header(header::CONTENT_TYPE, "application/jwk-set+json")?;
        head.insert_header(header::CACHE_CONTROL, JWKS_CACHE)?;
        let body = Bytes::copy_from_slice(jwks.as_bytes());
        Ok(self.send(session, ctx, head, body).await?)
    }

    /// Says which methods there are (RFC 9110 section 9.3.7).
    pub(super) async fn options(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        allow: &str,
    ) -> Result<(), Stop> {
        let mut head = ResponseHeader::build(StatusCode::NO_CONTENT, Some(12))?;
        head.insert_header(header::ALLOW, allow)?;
        Ok(self.send(session, ctx, head, Bytes::new()).await?)
    }

    /// 308 keeps the method and the body (RFC 9110 section 15.4.9).
    pub(super) async fn redirect_to_https(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        https_port: u16,
    ) -> Result<(), Stop> {
        let head = session.req_header();
        let host = request::host(head)?;
        if host.is_empty() {
            return Err(Failure::bad_request("the request has no Host header").into());
        }
        let path = head
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        let port = if https_port == 443 {
            String::new()
        } else {
            format!(":{https_port}")
        };
        let location = format!("https://{host}{port}{path}");
        let mut head = ResponseHeader::build(StatusCode::PERMANENT_REDIRECT, Some(12))?;
        head.insert_header(header::LOCATION, location)?;
        Ok(self.send(session, ctx, head, Bytes::new()).await?)
    }
}

/// What may be done with the gateway's own pages.
const PAGE_METHODS: &str = "GET, HEAD, OPTIONS";

fn only_get(session: &Session) -> Result<(), Failure> {
    match session.req_header().method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Failure::method_not_allowed(PAGE_METHODS)),
    }
}

/// Whether only the methods are asked for.
fn is_options(session: &Session) -> bool {
    session.req_header().method == Method::OPTIONS
}
