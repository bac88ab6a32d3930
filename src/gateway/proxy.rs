//! `proxy` targets: which upstream, and what is changed on the way there.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::respond::is_tls;
use super::{Ctx, Gateway};
use crate::failure::Failure;
use crate::route::Auth;
use crate::telemetry::metrics::metrics;
use crate::upstream::Group;

/// Idle connections to upstreams are kept for less than common servers keep them (60 s and up).
const UPSTREAM_IDLE: Duration = Duration::from_secs(50);

impl Gateway {
    /// The next upstream to try.
    pub(super) async fn peer(
        &self,
        group: &Group,
        ctx: &mut Ctx,
    ) -> Result<Box<HttpPeer>, Box<Error>> {
        let turn = *ctx.turn.get_or_insert_with(|| group.turn());
        let member = group.select(turn, ctx.attempts);
        ctx.attempts += 1;
        ctx.upstream = Some(member.server().clone());
        let settings = group.settings();
        let resolved = tokio::time::timeout(settings.connect_timeout, member.resolve()).await;
        let address = match resolved {
            Ok(Ok(address)) => address,
            Ok(Err(error)) => return Err(unresolved(group, ctx, error)),
            Err(_) => return Err(unresolved(group, ctx, std::io::ErrorKind::TimedOut.into())),
        };
        let server = member.server();
        let mut peer = HttpPeer::new(address, server.tls, server.host.clone());
        peer.options.connection_timeout = Some(settings.connect_timeout);
        peer.options.total_connection_timeout = Some(settings.connect_timeout);
        peer.options.read_timeout = Some(settings.read_timeout);
        peer.options.write_timeout = Some(settings.write_timeout);
        peer.options.idle_timeout = Some(UPSTREAM_IDLE);
        Ok(Box::new(peer))
    }

    /// Changes the request before it is sent: who asks, through whom, and without our credentials.
    pub(super) fn edit_upstream_request(
        &self,
        session: &Session,
        upstream: &mut RequestHeader,
        ctx: &Ctx,
        group: &Group,
    ) -> Result<(), Box<Error>> {
        let client_host = session.get_header(header::HOST).cloned().or_else(|| {
            let authority = session.req_header().uri.authority()?;
            HeaderValue::from_str(authority.as_str()).ok()
        });
        // An origin server is sent the path, not the absolute form (RFC 9112 section 3.2.1).
        if upstream.uri.authority().is_some()
            && let Some(target) = upstream.uri.path_and_query().cloned()
        {
            upstream.set_uri(http::Uri::from(target));
        }
        join_cookies(upstream)?;
        if let Some(host) = &client_host {
            upstream.insert_header("x-forwarded-host", host.clone())?;
        }
        match (&ctx.upstream, &client_host) {
            (_, Some(host)) if group.settings().preserve_host => {
                upstream.insert_header(header::HOST, host.clone())?;
            }
            (Some(server), _) => upstream.insert_header(header::HOST, server.authority())?,
            (None, _) => {}
        }
        self.forwarded_for(session, upstream, ctx)?;
        upstream.insert_header(
            "x-forwarded-proto",
            if is_tls(session) { "https" } else { "http" },
        )?;
        upstream.insert_header("x-request-id", ctx.request_id.as_str())?;
        if let Some(route) = ctx.route() {
            if !matches!(route.auth, Auth::None) {
                upstream.remove_header(&header::AUTHORIZATION);
                upstream.remove_header("x-api-key");
            }
            for name in &route.headers.request_remove {
                upstream.remove_header(name);
            }
            for (name, value) in &route.headers.request_set {
                upstream.insert_header(name.clone(), value.clone())?;
            }
        }
        Ok(())
    }

    /// Behind a trusted proxy the chain is extended; from anyone else it starts anew, so that a
    /// client can't claim an address.
    fn forwarded_for(
        &self,
        session: &Session,
        upstream: &mut RequestHeader,
        ctx: &Ctx,
    ) -> Result<(), Box<Error>> {
        const NAME: HeaderName = HeaderName::from_static("x-forwarded-for");
        upstream.remove_header(&header::FORWARDED);
        let Some(peer) = ctx.peer else {
            upstream.remove_header(&NAME);
            return Ok(());
        };
        let chain = if ctx.peer_trusted {
            let before = session.req_header().headers.get_all(&NAME).iter();
            before
                .filter_map(|v| v.to_str().ok())
                .chain([peer.to_string().as_str()])
                .collect::<Vec<_>>()
                .join(", ")
        } else {
            peer.to_string()
        };
        upstream.insert_header(NAME, chain)?;
        Ok(())
    }
}

/// HTTP/2 clients may send cookies one by one; HTTP/1 has one field (RFC 9113 section 8.2.3).
fn join_cookies(upstream: &mut RequestHeader) -> Result<(), Box<Error>> {
    let crumbs: Vec<&[u8]> = upstream
        .headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if crumbs.len() < 2 {
        return Ok(());
    }
    let joined = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]));
    if let Ok(joined) = joined {
        upstream.insert_header(header::COOKIE, joined)?;
    }
    Ok(())
}

/// A name without an address counts as a connection that failed: the next upstream is tried.
fn unresolved(group: &Group, ctx: &Ctx, error: std::io::Error) -> Box<Error> {
    let mut error = Error::because(
        ErrorType::ConnectError,
        "resolving the upstream's name",
        error,
    );
    error.set_retry(ctx.attempts < group.members().len());
    error.as_up();
    error
}

/// What the client learns when proxying failed before an answer began. `None`: the client itself is
/// gone, so there is nobody to tell.
pub(super) fn failure(error: &Error) -> Option<Failure> {
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
            Some(upstream_failure(error.etype()))
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
        ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout => {
            Failure::new(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                "the upstream did not answer in time",
            )
        }
        ErrorType::ConnectRefused | ErrorType::ConnectError | ErrorType::ConnectNoRoute => {
            Failure::unavailable(
                "upstream_unavailable",
                "no upstream can be reached; try again shortly",
            )
        }
        _ => Failure::new(
            StatusCode::BAD_GATEWAY,
            "upstream_failed",
            "the upstream's answer failed",
        ),
    }
}
