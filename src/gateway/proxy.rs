//! `proxy` targets: which upstream, and what becomes of a try that fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode, header};
use pingora_core::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora_core::{Error, ErrorSource, ErrorType};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::body::{self, BodyLimit};
use super::connection::{self, Report};
use super::websocket::Open;
use super::{Ctx, Gateway, forward, websocket};
use crate::auth::{Authenticator, Leash, Principal};
use crate::failure::{Failure, code};
use crate::route::{Proxy, Target};
use crate::telemetry::metrics::metrics;
use crate::upstream::{Balance, Failed, Group, HashOn, Lease, NoServer, Tries, Turn};

/// What is known of a request while upstreams are tried.
#[derive(Default)]
pub(super) struct Proxied {
    tries: Option<Tries>,
    /// The place at the upstream that is tried now, or was tried last.
    lease: Option<Lease>,
    /// What is asked for instead of the request's own target.
    pub target: Option<PathAndQuery>,
    /// What the client is told where no upstream can be had.
    refusal: Option<Failure>,
    /// Whether this is a WebSocket's handshake that the route allows.
    pub websocket: bool,
    /// Of the connection for a WebSocket: when its answer may be read.
    turn: Option<Arc<Turn>>,
    /// The WebSocket, once the upstream has agreed.
    open: Option<Open>,
    /// The answer had a status that is tried again, and the try is paid for.
    retrying: bool,
    /// All of the request's body has come.
    body_ended: bool,
    /// The answer is being written, by us rather than by Pingora.
    pub answers: bool,
    /// Of what lasts: tells whether whom it is for is stopped.
    leash: Option<Leash>,
}

/// A request that takes longer is looked after: whom it is for may be stopped meanwhile. Of shorter ones
/// nothing is noted anywhere.
const LONG: Duration = Duration::from_millis(250);

/// A stopped request that comes to notice it by itself within this time is answered; others are cut off.
const NOTICED_WITHIN: Duration = Duration::from_millis(200);
/// The same for a stopped WebSocket that is to be closed.
const CLOSED_WITHIN: Duration = Duration::from_millis(400);

impl Proxied {
    /// The request is about to be written to the upstream.
    pub fn begin_request(&self) {
        if let Some(turn) = &self.turn {
            turn.begin_request();
        }
    }

    /// The end of the request's body is being passed on.
    pub fn end_request(&mut self) {
        self.body_ended = true;
        if let Some(turn) = &self.turn {
            turn.end_request();
        }
    }

    /// Whether all of the request's body has come.
    pub fn body_ended(&self) -> bool {
        self.body_ended
    }

    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// The upstream of the latest try.
    pub fn server_name(&self) -> Option<&str> {
        self.lease.as_ref().map(|lease| lease.state().name())
    }
}

impl Gateway {
    /// Tells whether the key that the request came with is stopped.
    fn leash<'c>(&self, ctx: &'c mut Ctx) -> Option<&'c Leash> {
        if let (None, Principal::Key(key)) = (&ctx.proxied.leash, &ctx.principal) {
            ctx.proxied.leash = Some(self.shared.auth.leash(key));
        }
        ctx.proxied.leash.as_ref()
    }

    /// Fails where the request lasts and the key that it came with is stopped.
    pub(super) fn check_leash(&self, ctx: &mut Ctx) -> pingora_core::Result<()> {
        let lasts = ctx.proxied.leash.is_some() || ctx.started.elapsed() >= LONG;
        if !lasts || !self.leash(ctx).is_some_and(Leash::has_ended) {
            return Ok(());
        }
        Err(refuse_stopped(ctx))
    }

    /// Resolves when the key that a request came with is stopped; never where there is none.
    pub(super) async fn stopped(&self, principal: &Principal, started: Instant) {
        stopped(&self.shared.auth, principal, started).await;
    }

    /// Has a request that Pingora is about to pass on cut off when its key is stopped, whatever it waits for.
    pub(super) fn look_after(&self, session: &Session, ctx: &Ctx) {
        if !matches!(ctx.principal, Principal::Key(_)) {
            return;
        }
        let noticed_within = if ctx.proxied.websocket {
            // Its connection looks itself, and says that it is closed; not while its client takes nothing.
            CLOSED_WITHIN
        } else {
            NOTICED_WITHIN
        };
        let (auth, principal) = (self.shared.auth.clone(), ctx.principal.clone());
        let started = ctx.started;
        let until = async move {
            stopped(&auth, &principal, started).await;
            tokio::time::sleep(noticed_within).await;
        };
        connection::end_when(until, resetting(session, ctx, Failure::stopped()));
    }

    /// The next upstream to try, for Pingora.
    pub(super) async fn peer(
        &self,
        group: &Group,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<Box<HttpPeer>, Box<Error>> {
        let address = self.choose(group, session, ctx).await?;
        let member = ctx.proxied.lease.as_ref();
        let Some(member) = member.and_then(|lease| group.member(lease)) else {
            return Err(not_of_group());
        };
        let mut peer = member.peer(address);
        if ctx.proxied.websocket
            && let Some(times) = proxy(ctx).and_then(|proxy| proxy.websocket)
        {
            let stopped = self.leash(ctx).and_then(Leash::watch);
            ctx.proxied.turn = Some(websocket::tether(&mut peer, times, stopped));
            peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::standard();
        }
        Ok(Box::new(peer))
    }

    /// Takes a place at the next upstream to try; gives its address.
    pub(super) async fn choose(
        &self,
        group: &Group,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<SocketAddr, Box<Error>> {
        self.check_leash(ctx)?;
        // The place of the try before is free from here on.
        ctx.proxied.lease = None;
        // Its body is sent from the beginning, and counted anew.
        ctx.body_bytes = 0;
        let mut tries = match ctx.proxied.tries.take() {
            Some(tries) => tries,
            None => begin(group, session, ctx),
        };
        let acquired = acquire(group, &mut tries, session).await?;
        ctx.proxied.tries = Some(tries);
        let mut lease = match acquired {
            Ok(lease) => lease,
            Err(none) => {
                ctx.proxied.refusal = Some(refusal(none));
                return Error::e_explain(ErrorType::HTTPStatus(503), "no upstream is available");
            }
        };
        let address = match lease.state().literal() {
            Some(address) => Ok(address),
            None => {
                let found = lease.state().resolve();
                let found = tokio::time::timeout(group.settings().connect_timeout, found).await;
                found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            }
        };
        match address {
            Ok(address) => {
                ctx.proxied.lease = Some(lease);
                Ok(address)
            }
            Err(error) => {
                // A name without an address counts as a connection that failed.
                group.failed(&mut lease, Failed::Connecting);
                let mut error = Error::because(
                    ErrorType::ConnectError,
                    "resolving the upstream's name",
                    error,
                );
                error.set_retry(group.has_alternative(&tries, &lease) && group.may_retry(&tries));
                error.as_up();
                ctx.proxied.lease = Some(lease);
                Err(error)
            }
        }
    }

    /// There is no connection. Nothing was sent yet, so any method may be tried again elsewhere.
    pub(super) fn not_connected(
        &self,
        address: Option<SocketAddr>,
        ctx: &mut Ctx,
        error: &mut Error,
    ) {
        let group = ctx.route_index().and_then(|index| ctx.plan.group(index));
        let (Some(group), Some(tries), Some(lease)) =
            (group, ctx.proxied.tries, &mut ctx.proxied.lease)
        else {
            error.set_retry(false);
            return;
        };
        if let Some(address) = address {
            lease.state().connect_failed(address);
        }
        group.failed(lease, Failed::Connecting);
        // An HTTP/2 connection that was open already may turn out to be at its end only now.
        let is_stale = matches!(
            error.etype(),
            ErrorType::H2Error | ErrorType::ConnectionClosed
        );
        let elsewhere = is_stale || group.has_alternative(&tries, lease);
        error.set_retry(elsewhere && group.may_retry(&tries));
    }

    /// The connection or the answer broke. Tried again where that is safe: nothing has gone to the
    /// client, the method may be repeated (RFC 9110 section 9.2.2), and the body is still at hand.
    pub(super) fn broke_off(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        error: &mut Error,
        reused: bool,
    ) {
        error.retry.decide_reuse(reused);
        let was_closed = error.retry();
        error.set_retry(false);
        if std::mem::take(&mut ctx.proxied.retrying) {
            error.set_retry(true);
            return;
        }
        if error.esource() != &ErrorSource::Upstream || session.was_upgraded() {
            return;
        }
        let group = ctx.route_index().and_then(|index| ctx.plan.group(index));
        let (Some(group), Some(tries), Some(lease)) =
            (group, ctx.proxied.tries, &mut ctx.proxied.lease)
        else {
            return;
        };
        // An upstream that is silent may wait for the rest of the body, as the gateway does; and a kept
        // connection that was closed meanwhile says nothing about it either.
        let awaits_body = error.etype() == &ErrorType::ReadTimedout && !ctx.proxied.body_ended;
        if !(awaits_body || reused && was_closed) {
            group.failed(lease, Failed::Answering);
        }
        let is_lost = was_closed
            || matches!(
                error.etype(),
                ErrorType::ConnectionClosed
                    | ErrorType::ReadError
                    | ErrorType::WriteError
                    | ErrorType::H2Error
                    | ErrorType::H2Downgrade
                    | ErrorType::InvalidH2
            );
        // Of a WebSocket's handshake nobody knows what the upstream has made of it.
        let may_repeat = is_repeatable(session) && !ctx.proxied.websocket;
        error.set_retry(is_lost && may_repeat && group.may_retry(&tries));
    }

    /// The head of an answer: judges the upstream by it, and may ask another one instead.
    pub(super) fn judge(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<(), Box<Error>> {
        let upgraded = response.status == StatusCode::SWITCHING_PROTOCOLS;
        if response.status.is_informational() && !upgraded {
            return Ok(());
        }
        if let Some(turn) = &ctx.proxied.turn {
            turn.answered();
        }
        let group = ctx.route_index().and_then(|index| ctx.plan.group(index));
        if let (Some(group), Some(tries), Some(lease)) =
            (group, ctx.proxied.tries, &mut ctx.proxied.lease)
        {
            let settings = group.settings();
            let status = response.status.as_u16();
            let ejects = settings.ejection.as_ref().map(|e| e.statuses.as_slice());
            if ejects.is_some_and(|statuses| statuses.contains(&status)) {
                group.failed(lease, Failed::Answering);
            } else {
                group.succeeded(lease);
            }
            if settings.retries.statuses.contains(&status)
                && is_repeatable(session)
                && group.has_alternative(&tries, lease)
                && group.may_retry(&tries)
            {
                ctx.proxied.retrying = true;
                return Error::e_explain(
                    ErrorType::Custom("retried status"),
                    "the answer's status is tried again",
                );
            }
        }
        if upgraded {
            websocket::check_agreed(session, response)?;
            ctx.proxied.open = Some(Open::new());
        }
        forward::strip_hop_by_hop(response, upgraded);
        Ok(())
    }

    /// What the client learns when proxying failed before an answer began. `None`: the client itself
    /// is gone, so there is nobody to tell.
    pub(super) fn proxy_failure(&self, ctx: &mut Ctx, error: &Error) -> Option<Failure> {
        if let Some(refusal) = ctx.proxied.refusal.take() {
            if refusal.status.is_server_error() {
                metrics().upstream_failures.inc();
            }
            return Some(refusal);
        }
        failure(error)
    }
}

/// Of what is over soon nothing is noted.
async fn stopped(auth: &Authenticator, principal: &Principal, started: Instant) {
    let Principal::Key(key) = principal else {
        return std::future::pending().await;
    };
    tokio::time::sleep_until((started + LONG).into()).await;
    auth.leash(key).ended().await;
}

/// The error of a request whose key is stopped.
pub(super) fn refuse_stopped(ctx: &mut Ctx) -> Box<Error> {
    let stopped = Failure::stopped();
    // Where the answer has begun already, it is not told any more.
    ctx.failure = Some(stopped.code);
    ctx.proxied.refusal = Some(stopped);
    Error::explain(
        ErrorType::HTTPStatus(403),
        "the key or its user was stopped",
    )
}

/// The settings of the request's route, where it is a proxy.
pub(super) fn proxy(ctx: &Ctx) -> Option<&Proxy> {
    match &ctx.route()?.target {
        Target::Proxy(proxy) => Some(proxy),
        Target::Execute(_) | Target::Redirect(_) | Target::Respond(_) => None,
    }
}

/// Gives the body of a request that is about to be passed on its time.
pub(super) fn await_body(session: &mut Session, ctx: &mut Ctx, limit: BodyLimit) {
    if ctx.proxied.websocket {
        return;
    }
    if session.as_downstream_mut().is_body_done() {
        ctx.proxied.body_ended = true;
        return;
    }
    session.set_read_timeout(Some(limit.timeout));
    if session.as_downstream().is_http2() {
        let report = resetting(session, ctx, limit.too_slow());
        connection::await_body(ctx.started + limit.timeout, report);
    }
}

/// Counts and logs a request that is reset, because its body did not come in time or its key was stopped.
fn resetting(session: &Session, ctx: &Ctx, failure: Failure) -> Report {
    let plan = Arc::clone(&ctx.plan);
    let (index, started, client) = (ctx.route_index(), ctx.started, ctx.client);
    let (method, path) = (
        session.req_header().method.clone(),
        session.req_header().uri.path().to_owned(),
    );
    let request_id = ctx.request_id.clone();
    Box::new(move || {
        let status = failure.status.as_u16();
        let planned = index.and_then(|index| plan.planned(index));
        if let Some(planned) = planned {
            let duration = started.elapsed();
            planned.metrics.observe(method.as_str(), status, duration);
        }
        let route = index.and_then(|index| plan.route(index));
        if plan.access_log.enabled {
            tracing::info!(
                request_id,
                client = client.map(tracing::field::display),
                method = method.as_str(),
                path,
                route = route.map(|route| route.name.as_str()),
                status,
                code = failure.code,
                reason = %failure.message,
                "a request was reset"
            );
        }
    })
}

/// Waits for a place, where that takes waiting, as long as the client does.
async fn acquire(
    group: &Group,
    tries: &mut Tries,
    session: &mut Session,
) -> Result<Result<Lease, NoServer>, Box<Error>> {
    let mut acquiring = std::pin::pin!(group.acquire(tries));
    if let Some(acquired) = acquiring.as_mut().now_or_never() {
        return Ok(acquired);
    }
    let waiting = async {
        tokio::select! {
            biased;
            acquired = acquiring => Ok(acquired),
            error = body::left(session) => Err(error.into_down()),
        }
    };
    Box::pin(waiting).await
}

pub(super) fn not_of_group() -> Box<Error> {
    Error::explain(
        ErrorType::InternalError,
        "the upstream is not of this group",
    )
}

fn begin(group: &Group, session: &Session, ctx: &Ctx) -> Tries {
    let headers = &session.req_header().headers;
    match &group.settings().balance {
        Balance::RoundRobin | Balance::LeastConnections => group.begin(None),
        Balance::Hash(HashOn::Header(name)) => {
            group.begin(headers.get(name).map(http::HeaderValue::as_bytes))
        }
        Balance::Hash(HashOn::Cookie(name)) => group.begin(cookie(headers, name)),
        Balance::Hash(HashOn::Address) => {
            let client = ctx.client.map(|client| client.to_string());
            group.begin(client.as_ref().map(String::as_bytes))
        }
    }
}

/// The first cookie of this name (RFC 6265 section 4.2.1).
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let lines = headers.get_all(header::COOKIE).iter();
    let mut pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let (found, value) = pair.trim_ascii().split_at_checked(name.len())?;
        let value = value.strip_prefix(b"=")?;
        (found == name.as_bytes()).then_some(value)
    })
}

/// Whether the client has seen the beginning of the answer. What comes before that is none of it
/// (RFC 9110 section 15.2).
pub(super) fn has_answered(session: &Session) -> bool {
    session.response_written().is_some_and(|written| {
        !written.status.is_informational() || written.status == StatusCode::SWITCHING_PROTOCOLS
    })
}

/// The status of the answer that the client has seen the beginning of; 0 where it has seen none.
pub(super) fn status_seen(session: &Session) -> u16 {
    let written = session.response_written().filter(|_| has_answered(session));
    written.map_or(0, |head| head.status.as_u16())
}

/// Whether sending the request once more does no harm.
fn is_repeatable(session: &Session) -> bool {
    !has_answered(session)
        && session.req_header().method.is_idempotent()
        && !session.as_ref().retry_buffer_truncated()
}

fn refusal(none: NoServer) -> Failure {
    match none {
        NoServer::Down(wait) => Failure::unavailable(
            code::UPSTREAM_UNAVAILABLE,
            "no upstream is available; try again after the time in Retry-After",
        )
        .retry_after(wait.max(Duration::from_secs(1))),
        NoServer::Busy => Failure::unavailable(
            code::UPSTREAM_BUSY,
            "the upstreams have as many requests as they may have; try again shortly",
        ),
    }
}

fn failure(error: &Error) -> Option<Failure> {
    if let ErrorType::HTTPStatus(code) = error.etype() {
        let status = StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let code = match status {
            StatusCode::PAYLOAD_TOO_LARGE => "payload_too_large",
            StatusCode::REQUEST_TIMEOUT => "request_timeout",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            _ if status.is_client_error() => "bad_request",
            _ => "internal_error",
        };
        let text = status.canonical_reason().unwrap_or("the request failed");
        return Some(Failure::new(status, code, text.to_ascii_lowercase()));
    }
    match error.esource() {
        ErrorSource::Upstream => {
            metrics().upstream_failures.inc();
            // A WebSocket's connection has timeouts of its own.
            let cause = error.root_cause().downcast_ref::<std::io::Error>();
            let kind = match cause.map(std::io::Error::kind) {
                Some(std::io::ErrorKind::TimedOut) => &ErrorType::ReadTimedout,
                Some(_) | None => error.etype(),
            };
            Some(upstream_failure(kind))
        }
        ErrorSource::Downstream => match error.etype() {
            ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed => None,
            ErrorType::ReadTimedout => Some(Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "the request body did not arrive in time",
            )),
            _ => Some(Failure::bad_request("the request is malformed")),
        },
        ErrorSource::Internal | ErrorSource::Unset => Some(Failure::internal()),
    }
}

fn upstream_failure(kind: &ErrorType) -> Failure {
    match kind {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            code::UPSTREAM_TIMEOUT,
            "the upstream did not answer in time",
        ),
        ErrorType::ConnectTimedout => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            code::UPSTREAM_TIMEOUT,
            "no upstream could be reached in time",
        ),
        ErrorType::ConnectRefused | ErrorType::ConnectError | ErrorType::ConnectNoRoute => {
            Failure::unavailable(
                code::UPSTREAM_UNAVAILABLE,
                "no upstream can be reached; try again shortly",
            )
        }
        _ => Failure::new(
            StatusCode::BAD_GATEWAY,
            code::UPSTREAM_FAILED,
            "the upstream's answer failed",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", "xsid=1; a=b;sid=7; sid=8".parse().unwrap());
        headers.append("cookie", "late=x=y".parse().unwrap());
        assert_eq!(cookie(&headers, "sid"), Some(&b"7"[..]));
        assert_eq!(cookie(&headers, "late"), Some(&b"x=y"[..]));
        assert_eq!(cookie(&headers, "si"), None);
        assert_eq!(cookie(&headers, "d"), None);
    }
}
