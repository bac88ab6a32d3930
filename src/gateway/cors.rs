//! Pages of other origins: preflights are answered here, and answers to such pages carry the headers
//! that let a browser hand them over. Errors carry them too, so that a page can read what is wrong.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use pingora_core::Error;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::respond::{Stop, vary};
use super::{Ctx, Gateway};
use crate::failure::Failure;
use crate::route::Cors;

/// The method that a preflight asks for; `None` when the request is none.
pub(super) fn preflight_for(head: &RequestHeader) -> Option<Method> {
    if head.method != Method::OPTIONS || !head.headers.contains_key(header::ORIGIN) {
        return None;
    }
    let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    Method::from_bytes(asked.as_bytes()).ok()
}

impl Gateway {
    /// Answers a preflight. What is allowed is the same for all: the browser compares.
    pub(super) async fn preflight(&self, session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
        let plan = std::sync::Arc::clone(&ctx.plan);
        let cors = ctx
            .cors_route
            .and_then(|index| plan.route(index)?.cors.as_ref());
        let Some(cors) = cors else {
            return Err(Failure::internal().into());
        };
        let origin = session.get_header(header::ORIGIN);
        if origin
            .and_then(|origin| cors.allow_origin(origin))
            .is_none()
        {
            return Err(Failure::forbidden("pages of this origin may not use this route").into());
        }
        let mut head = ResponseHeader::build(StatusCode::NO_CONTENT, Some(16))?;
        head.insert_header(header::ACCESS_CONTROL_ALLOW_METHODS, cors.methods.clone())?;
        if let Some(names) = &cors.request_headers {
            head.insert_header(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone())?;
        }
        head.insert_header(header::ACCESS_CONTROL_MAX_AGE, cors.max_age.clone())?;
        ctx.is_preflight = true;
        Ok(self.send(session, ctx, head, Bytes::new()).await?)
    }
}

/// Adds to an answer what lets a page of an allowed origin read it.
pub(super) fn add_headers(
    request: &HeaderMap,
    ctx: &Ctx,
    cors: &Cors,
    head: &mut ResponseHeader,
) -> Result<(), Box<Error>> {
    if !ctx.is_preflight {
        // What the target may have said itself: where the gateway decides, it decides alone.
        let names = head.headers.keys();
        let own: Vec<HeaderName> = names
            .filter(|name| name.as_str().starts_with("access-control-"))
            .cloned()
            .collect();
        for name in own {
            head.remove_header(&name);
        }
    }
    // Also where there is no origin: a cache must not give that answer to a page.
    if cors.varies() {
        vary(head, "origin")?;
    }
    let origin = request.get(header::ORIGIN);
    let Some(allowed) = origin.and_then(|origin| cors.allow_origin(origin)) else {
        return Ok(());
    };
    head.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed)?;
    if cors.credentials {
        head.insert_header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")?;
    }
    if let Some(names) = &cors.exposed_headers
        && !ctx.is_preflight
    {
        head.insert_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, names.clone())?;
    }
    Ok(())
}
