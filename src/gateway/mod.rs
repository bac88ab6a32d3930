//! The request path: Pingora's phases in order, as the table of contents.
//!
//! `early_request_filter` learns who is asking, `request_filter` finds the route, admits the caller
//! and answers in process; only `proxy` targets go on to `upstream_peer` and the phases after it.
//! `logging` ends every request with one line.

mod admit;
mod body;
mod builtin;
mod client_address;
mod compress;
pub mod connection;
mod context;
mod control;
mod cors;
mod exchange;
mod execute;
mod feed;
mod find;
mod forward;
pub mod plan;
mod proxy;
mod recording;
mod request;
mod respond;
mod room;
mod settings;
mod trace;
mod websocket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use pingora_core::{Error, ErrorType};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::auth::Authenticator;
use crate::failure::Failure;
use crate::limits::Limiter;
use crate::modules::Registry;
use crate::route::{self, ModuleSource, Redirect, Respond, Target};
use crate::sandbox::Sandbox;
use crate::telemetry::health::{Health, Probe};
use crate::telemetry::traces::Tracer;
use crate::upstream::Protocol;
use crate::usage::Recorder;
use body::BodyLimit;
pub use builtin::BuiltinMetrics;
pub use compress::Compression;
use compress::PassingBuilder;
pub use context::Ctx;
use context::HandledBy;
use execute::Program;
use find::{Asked, find_route};
use plan::{Plan, Service};
use respond::Stop;
pub use room::BodyRoom;
pub use settings::{Bounds, ClientAddressHeader, Listener, Serves, Settings, Timeouts};

/// What all listeners share.
pub struct Shared {
    /// What a reload of the configuration replaces, as one unit.
    pub plan: ArcSwap<Plan>,
    pub auth: Authenticator,
    pub limiter: Limiter,
    pub sandbox: Sandbox,
    pub registry: Registry,
    pub health: Health,
    /// The runtime that the control plane and the database live on.
    pub control: tokio::runtime::Handle,
    pub builtin_metrics: BuiltinMetrics,
    /// The room for request bodies in memory.
    pub body_room: BodyRoom,
    pub usage: Recorder,
    pub tracer: Tracer,
}

/// The gateway as one listener sees it.
pub struct Gateway {
    pub shared: Arc<Shared>,
    pub serves: Serves,
    /// Its place in `Settings::listener_access`.
    pub listener: usize,
}

/// What a path asks for.
enum Wanted {
    Health(Probe),
    Metrics,
    /// The answer to a challenge with this token.
    Challenge(String),
    Redirect {
        https_port: u16,
    },
    Api,
    Jwks,
    Route,
    Nothing,
}

/// What follows once `request_filter` is done.
enum Next {
    Answered,
    Upstream,
}

impl Gateway {
    /// Finds out what the request wants and answers it, unless an upstream will.
    ///
    /// What is not the commonest is boxed, here and below: a future is as large as the largest of what it
    /// may wait for, and is copied when it begins.
    async fn answer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Next, Stop> {
        request::check_head(session.req_header(), &ctx.plan.settings.bounds)?;
        let access = ctx.plan.settings.listener_access.get(self.listener);
        if access.is_some_and(|access| !access.permits(ctx.client)) {
            return Err(admit::denied("listener").into());
        }
        admit::check_at_once(session, ctx)?;
        admit::check_certificate(session, ctx)?;
        let head = session.req_header();
        if head.uri.path() == "*" {
            // The server as a whole is asked for (RFC 9112 section 3.2.4).
            if head.method != Method::OPTIONS {
                return Err(Failure::bad_request("the request target must be a path").into());
            }
            Box::pin(self.options(session, ctx, request::METHODS)).await?;
            return Ok(Next::Answered);
        }
        match self.wanted(head.uri.path(), &ctx.plan.settings)? {
            Wanted::Health(probe) => {
                ctx.handled_by = HandledBy::Health;
                Box::pin(self.health(session, ctx, probe)).await?;
            }
            Wanted::Metrics => {
                ctx.handled_by = HandledBy::Metrics;
                Box::pin(self.metrics_page(session, ctx)).await?;
            }
            Wanted::Challenge(token) => {
                ctx.handled_by = HandledBy::Challenge;
                Box::pin(self.challenge(session, ctx, token)).await?;
            }
            Wanted::Redirect { https_port } => {
                ctx.handled_by = HandledBy::Redirect;
                Box::pin(self.redirect_to_https(session, ctx, https_port)).await?;
            }
            Wanted::Api => {
                ctx.handled_by = HandledBy::Api;
                Box::pin(self.control_plane(session, ctx)).await?;
            }
            Wanted::Jwks => {
                ctx.handled_by = HandledBy::Jwks;
                Box::pin(self.jwks(session, ctx)).await?;
            }
            Wanted::Route => return self.serve(session, ctx).await,
            Wanted::Nothing => return Err(not_found().into()),
        }
        Ok(Next::Answered)
    }

    /// Whether a path is one of the gateway's own. It is decoded first, so that no spelling of a
    /// reserved path reaches a route.
    fn wanted(&self, path: &str, settings: &Settings) -> Result<Wanted, Failure> {
        let path = route::normalize(path).map_err(|e| Failure::bad_request(e.to_string()))?;
        let path = path.decoded();
        if let Some(probe) = Probe::from_path(path) {
            return Ok(Wanted::Health(probe));
        }
        let metrics_path = match &self.serves {
            Serves::Admin { metrics_path } => metrics_path.as_deref(),
            Serves::Everything => settings.public_metrics_path.as_deref(),
            Serves::Redirect { .. } => None,
        };
        if metrics_path == Some(path) {
            return Ok(Wanted::Metrics);
        }
        let token = path.strip_prefix(builtin::ACME_CHALLENGE_PREFIX);
        Ok(match (&self.serves, token) {
            (Serves::Admin { .. }, _) => Wanted::Nothing,
            (_, Some(token)) => Wanted::Challenge(token.to_owned()),
            (Serves::Redirect { https_port }, None) => Wanted::Redirect {
                https_port: *https_port,
            },
            (Serves::Everything, None) if path == "/api" || path.starts_with("/api/") => {
                Wanted::Api
            }
            (Serves::Everything, None) if path == builtin::JWKS_PATH => Wanted::Jwks,
            (Serves::Everything, None) => Wanted::Route,
        })
    }

    async fn serve(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Next, Stop> {
        let plan = Arc::clone(&ctx.plan);
        let index = match find_route(&plan, session, ctx)? {
            Asked::Route(index) => index,
            Asked::Preflight(index) => {
                ctx.handled_by = HandledBy::Route { index };
                Box::pin(self.preflight(session, ctx)).await?;
                return Ok(Next::Answered);
            }
            Asked::Options { allow } => {
                Box::pin(self.options(session, ctx, &allow)).await?;
                return Ok(Next::Answered);
            }
        };
        ctx.handled_by = HandledBy::Route { index };
        let (Some(route), Some(planned)) = (plan.route(index), plan.planned(index)) else {
            return Err(Failure::internal().into());
        };
        self.admit(session, ctx, route, planned.key).await?;
        match (&route.target, &planned.service) {
            (Target::Execute(execute), Service::Guest { module, files }) => {
                if let ModuleSource::Stored(id) = &execute.module
                    && self.shared.registry.is_stopped(*id)
                {
                    return Err(Failure::module_stopped().into());
                }
                let program = Program {
                    execute,
                    module: Arc::clone(module),
                    files: files.clone(),
                };
                self.execute(session, ctx, &route.limits, program).await?;
            }
            (Target::Proxy(proxy), Service::Upstreams(group)) => {
                self.prepare_proxy(session, ctx, proxy)?;
                let limit = BodyLimit::of_route(&plan.settings, &route.limits);
                limit.check_announced(session)?;
                proxy::await_body(session, ctx, limit);
                if !exchange::carries(proxy, ctx) {
                    self.look_after(session, ctx);
                    return Ok(Next::Upstream);
                }
                let of = exchange::Of {
                    group,
                    proxy,
                    edits: &route.headers,
                };
                self.exchange(session, ctx, of).await?;
            }
            (Target::Redirect(redirect), _) => {
                Box::pin(self.redirect(session, ctx, redirect)).await?
            }
            (Target::Respond(respond), _) => self.respond(session, ctx, respond).await?,
            (Target::Execute(_) | Target::Proxy(_), _) => return Err(Failure::internal().into()),
        }
        Ok(Next::Answered)
    }

    /// What can be wrong with a request for an upstream, before any is asked.
    fn prepare_proxy(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        proxy: &route::Proxy,
    ) -> Result<(), Failure> {
        if websocket::check(session, proxy)? {
            ctx.proxied.websocket = true;
            // How long it may be silent is looked after on the upstream's side, for both directions.
            session.set_read_timeout(None);
            // Whatever the answer is, what follows may be frames already.
            session.set_keepalive(None);
        }
        if let Some(rewrite) = &proxy.rewrite {
            let uri = &session.req_header().uri;
            let matched = uri.path().get(..ctx.route_path_bytes).unwrap_or_default();
            let target = rewrite.target(uri.path(), matched, uri.query(), &ctx.params);
            let target = target.map_err(|error| Failure::bad_request(error.to_string()))?;
            ctx.proxied.target = Some(target);
        }
        Ok(())
    }

    async fn redirect(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        redirect: &Redirect,
    ) -> Result<(), Stop> {
        let uri = &session.req_header().uri;
        let location = redirect
            .location(uri.path(), uri.query(), &ctx.params)
            .map_err(|_| {
                Failure::bad_request("the path can't be put into the redirect's target")
            })?;
        let mut head = ResponseHeader::build(redirect.status, Some(12))?;
        head.insert_header(header::LOCATION, location)?;
        Ok(self.send(session, ctx, head, Bytes::new()).await?)
    }

    async fn respond(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        respond: &Respond,
    ) -> Result<(), Stop> {
        let mut head = ResponseHeader::build(respond.status, Some(12))?;
        head.insert_header(header::CONTENT_TYPE, respond.content_type.clone())?;
        Ok(self.send(session, ctx, head, respond.body.clone()).await?)
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Ctx;

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        modules.add_module(Box::new(PassingBuilder));
    }

    fn new_ctx(&self) -> Ctx {
        connection::mark_head_read();
        Ctx::new(self.shared.plan.load_full())
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora_core::Result<()> {
        request::use_origin_form(session.req_header_mut());
        let settings = &ctx.plan.settings;
        let facts = connection::facts(session);
        let peer = facts.and_then(connection::Facts::source);
        let may_be_proxy = facts.is_some_and(connection::Facts::may_be_proxy);
        if session.as_downstream().is_http2() {
            let most = settings.bounds.requests_per_connection_max;
            ctx.on_connection = connection::count_request(session, most);
        }
        ctx.peer = peer.map(|a| a.ip().to_canonical());
        ctx.peer_port = peer.map_or(0, |a| a.port());
        ctx.peer_trusted = may_be_proxy && client_address::is_trusted(ctx.peer, settings);
        let headers = &session.req_header().headers;
        ctx.client = client_address::client(ctx.peer, ctx.peer_trusted, headers, settings);
        ctx.request_id = request::request_id(headers, ctx.peer_trusted);

        ctx.certificate = connection::certificate(session);
        if let Some(name) = &settings.client_certificate_header {
            request::name_client(session, name, ctx.shown())?;
        }

        session.set_write_timeout(Some(settings.timeouts.write));
        session.set_read_timeout(Some(settings.timeouts.request_body));
        session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
        // Pingora lets the client choose how long an idle connection stays, 0 meaning for ever.
        if let Some(asked) = session.get_keepalive() {
            let most = settings.timeouts.keepalive.as_secs().max(1);
            session.set_keepalive(Some(if asked == 0 { most } else { asked.min(most) }));
        }
        self.begin_trace(session, ctx);
        Ok(())
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora_core::Result<bool> {
        match self.answer(session, ctx).await {
            Ok(Next::Answered) => {
                body::linger(session, DRAIN_TIMEOUT).await;
                Ok(true)
            }
            Ok(Next::Upstream) => Ok(false),
            Err(Stop::Connection(error)) => Err(error),
            Err(Stop::Failure(failure)) => {
                if failure.status == StatusCode::BAD_REQUEST
                    || failure.status == StatusCode::REQUEST_TIMEOUT
                {
                    // What follows on this connection can't be trusted to begin with a request.
                    session.set_keepalive(None);
                }
                Box::pin(self.send_failure(session, ctx, &failure)).await?;
                body::linger(session, DRAIN_TIMEOUT).await;
                Ok(true)
            }
        }
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> pingora_core::Result<()> {
        self.check_leash(ctx)?;
        if session.was_upgraded() {
            return Ok(());
        }
        if end {
            ctx.proxied.end_request();
        }
        let Some(route) = ctx.route() else {
            return Ok(());
        };
        let limit = BodyLimit::of_route(&ctx.plan.settings, &route.limits);
        ctx.body_bytes += body.as_ref().map_or(0, |b| b.len() as u64);
        // Pingora's timeout is per read; the body as a whole has a deadline too.
        let deadline = ctx.started + limit.timeout + limit.time_for(ctx.body_bytes);
        connection::body_due((!end).then_some(deadline));
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() && !end {
            return Error::e_explain(
                ErrorType::HTTPStatus(408),
                "the request body came too slowly",
            );
        }
        if !session.is_upgrade_req() {
            session.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        }
        if ctx.body_bytes > limit.bytes_max {
            return Error::e_explain(
                ErrorType::HTTPStatus(413),
                "the request body is over the route's limit",
            );
        }
        Ok(())
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora_core::Result<Box<HttpPeer>> {
        let plan = Arc::clone(&ctx.plan);
        if let Some(trace) = &mut ctx.trace {
            trace.begin_upstream();
        }
        match ctx.route_index().and_then(|index| plan.group(index)) {
            Some(group) => self.peer(group, session, ctx).await,
            None => Error::e_explain(ErrorType::InternalError, "the route has no upstreams"),
        }
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Ctx,
        mut error: Box<Error>,
    ) -> Box<Error> {
        self.not_connected(peer.address().as_inet().copied(), ctx, &mut error);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Ctx,
        client_reused: bool,
    ) -> Box<Error> {
        self.broke_off(session, ctx, &mut error, client_reused);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> pingora_core::Result<()> {
        ctx.proxied.begin_request();
        match (ctx.route(), proxy::proxy(ctx)) {
            (Some(route), Some(proxy)) => {
                let wanted = proxy.upstreams.protocol;
                let is_other = upstream.version != Version::HTTP_2 && !ctx.proxied.websocket;
                if wanted == Protocol::Http2 && is_other {
                    // What asked for HTTP/2 would lose its trailers, and each connection its streams.
                    let mut error = Error::explain(
                        ErrorType::H2Error,
                        "the upstream does not speak HTTP/2: it chose another protocol (ALPN)",
                    );
                    error.as_up();
                    return Err(error);
                }
                let member = ctx.member();
                forward::edit_request(session, upstream, ctx, proxy, &route.headers, member)?;
                trace::say_upstream(upstream, ctx);
                Ok(())
            }
            (None, _) | (_, None) => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> pingora_core::Result<()> {
        self.judge(session, response, ctx)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> pingora_core::Result<()> {
        self.finish_passed(session, ctx, response)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        _end: bool,
        ctx: &mut Ctx,
    ) -> pingora_core::Result<Option<Duration>> {
        self.check_leash(ctx)?;
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Ctx,
    ) -> FailToProxy {
        let sent = proxy::has_answered(session);
        let failure = if sent {
            None
        } else {
            self.proxy_failure(ctx, error)
        };
        let error_code = failure.as_ref().map_or(0, |f| f.status.as_u16());
        if let Some(failure) = failure {
            session.set_keepalive(None);
            compress::pass_through(session, None);
            if let Err(error) = self.send_failure(session, ctx, &failure).await {
                tracing::debug!(request_id = ctx.request_id, %error, "the client left before its answer");
            }
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    fn persist_connection_context(
        &self,
        _session: &Session,
        _ctx: &Ctx,
    ) -> Option<Box<dyn std::any::Any + Send + Sync>> {
        Some(Box::new(connection::Reused))
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, _error: &Error) -> bool {
        // Our own line says it.
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        connection::is_over();
        self.log(session, error, ctx);
        self.end_trace(session, ctx);
    }
}

/// Longest time to read on after an answer that came before the end of the request's body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

fn not_found() -> Failure {
    Failure::not_found("nothing is served at this path")
}
